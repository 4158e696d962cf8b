"""Podman as root: no daemon, its own storage."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hostprep.engines import COMMANDS
from hostprep.engines.images import Image, Store
from hostprep.errors import CommandFailed, HostError
from hostprep.host import Host

COMMAND = COMMANDS["podman"]
ANSWER_S = 8.0  # seconds for each question
INFO_S = 14.0  # it asks dpkg or rpm for the packages of its parts, which takes a second and, on a busy host, many
STORAGE = "/var/lib/containers/storage"


def installed(host: Host) -> bool:
    return any(host.exists(f"{folder}/podman") for folder in ("/usr/bin", "/usr/local/bin", "/bin"))


def down(e: HostError) -> bool:
    """Does podman itself not work here, rather than that we could not ask?"""
    refused = isinstance(e, CommandFailed) and "permission denied" not in e.output.lower()
    return refused or "no answer within" in str(e)


def configured_root(host: Host) -> str:
    """Where its storage is, as its configuration says: for when podman does not work."""
    for path in ("/etc/containers/storage.conf", "/usr/share/containers/storage.conf"):
        if (text := host.read(path)) is not None:
            named = re.search(r'^\s*graphroot\s*=\s*["\'](/[^"\']*)', text, re.M)
            return named[1] if named else STORAGE
    return STORAGE


def store(host: Host) -> Store:
    """Raises HostError where podman does not work."""
    told = _json(host, INFO_S, "info", "--format", "json")
    try:
        version, root = told["version"]["Version"], told["store"]["graphRoot"]
        driver = told["store"]["graphDriverName"]
    except (TypeError, KeyError) as e:
        raise HostError("podman info: says something else than its version and storage") from e
    if not all(isinstance(text, str) and text for text in (version, root, driver)) or not root.startswith("/"):
        raise HostError("podman info: says something else than its version and storage")
    return Store(version, root, root, driver)


def _json(host: Host, seconds: float, *argv: str) -> Any:
    said = host.run(*COMMAND, *argv, timeout=seconds)
    try:
        return json.loads(said)
    except ValueError as e:
        raise HostError(f"podman {argv[0]}: said something else than it was asked for") from e


def users(host: Host) -> dict[str, tuple[str, ...]]:
    """The containers, also those that do not run and those of other tools (buildah), by the id of their image."""
    found: dict[str, list[str]] = {}
    try:
        for container in _json(host, ANSWER_S, "ps", "--all", "--external", "--format", "json") or ():
            found.setdefault(container["ImageID"], []).append((container.get("Names") or [container["Id"][:12]])[0])
    except (TypeError, KeyError, AttributeError) as e:
        raise HostError("podman ps: said something else than its containers") from e
    return {image: tuple(sorted(names)) for image, names in found.items()}


def images(host: Host, of: Store, used: Mapping[str, tuple[str, ...]]) -> list[Image]:
    """The images, but for those that are only a step of another one's making."""
    listed, layers = _listed(host, of, "images"), {layer["id"]: layer for layer in _listed(host, of, "layers")}
    try:
        found = {str(each["id"]): _above(layers, each.get("layer")) for each in listed}
        inner = {layer for above in found.values() for layer in above[:-1]}
        return [
            Image(
                each["id"],
                tuple(each.get("names") or ()) or (each["id"][:12],),
                found[each["id"]],
                _since(host, of, each, found[each["id"]]),
                used.get(each["id"], ()),
            )
            for each in listed
            if each.get("names") or each["id"] in used or not (set(found[each["id"]][-1:]) & inner)
        ]
    except (TypeError, KeyError, AttributeError, ValueError) as e:
        raise HostError(f"{of.root}: its lists of images and layers are not as podman writes them") from e


def _listed(host: Host, of: Store, what: str) -> list[dict[str, Any]]:
    """https://github.com/containers/storage: images.go and layers.go."""
    path = f"{of.root}/{of.driver}-{what}/{what}.json"
    text = host.read(path)
    try:
        found = json.loads(text) if text else []
    except ValueError as e:
        raise HostError(f"{path}: is no JSON") from e
    if not isinstance(found, list) or not all(isinstance(each, dict) and each.get("id") for each in found):
        raise HostError(f"{path}: is no list of {what}")
    return found


def _above(layers: Mapping[str, Mapping[str, Any]], top: str | None) -> tuple[str, ...]:
    """A layer and those that it lies on, the lowest first."""
    found: list[str] = []
    while top and top not in found:
        found.insert(0, top)
        top = layers[top].get("parent")
    return tuple(found)


def _since(host: Host, of: Store, image: Mapping[str, Any], layers: Sequence[str]) -> int:
    """When an image came here, or a container was last made of it as far as that leaves a trace: see docker.py."""
    folder = host.info(f"{of.root}/{of.driver}-images/{image['id']}")
    link = host.info(f"{of.root}/{of.driver}/{layers[-1]}/link") if layers else None
    times = (folder.modified if folder else 0, link.accessed if link else 0)
    if not any(times):
        raise HostError(f"podman: image {image['id'][:12]}: when it came here cannot be told")
    return max(times)


def sizes(host: Host, of: Store, layers: Sequence[str]) -> dict[str, int]:
    """What each layer takes."""
    listed = {layer["id"]: layer.get("diff-size") for layer in _listed(host, of, "layers")}
    found = {layer: listed.get(layer) for layer in layers}
    if unknown := [layer for layer, size in found.items() if not isinstance(size, int)]:
        raise HostError(f"podman: what layer {unknown[0][:12]} takes is not told")
    return {layer: size for layer, size in found.items() if isinstance(size, int)}
