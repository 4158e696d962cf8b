"""Docker: its daemon, asked through the docker command, and its images with their layers."""

from __future__ import annotations

import hashlib
import json
import re
from calendar import timegm
from collections.abc import Mapping, Sequence
from time import strptime
from typing import Any

from hostprep.engines import COMMANDS
from hostprep.engines.images import Image, Store
from hostprep.errors import CommandFailed, HostError
from hostprep.host import Host, attempt

COMMAND = COMMANDS["docker"]
ANSWER_S = 6.0  # seconds for each question; a daemon that hangs answers `docker version`, and not `docker ps`
_SOCKETS = ("/run/docker.sock", "/var/run/docker.sock")
_DAEMONS = ("/usr/bin/dockerd", "/usr/sbin/dockerd", "/usr/local/bin/dockerd", "/snap/bin/docker")
# Docker 29 has words of its own for it.
_DOWN = re.compile(r"(cannot|failed to) connect to the docker|is the docker daemon running", re.I)
_TRIES = 3
_CONFIG = "/etc/docker/daemon.json"
_ROOT = "/var/lib/docker"
_CONTAINERD = "/etc/containerd/config.toml"


def installed(host: Host) -> bool:
    """Is there a daemon, or a socket of one?"""
    return any(host.exists(path) for path in (*_SOCKETS, *_DAEMONS))


def down(e: HostError) -> bool:
    """Does it say that nobody answers, rather than that we could not ask?"""
    return "no answer within" in str(e) or (isinstance(e, CommandFailed) and bool(_DOWN.search(e.output)))


def configured_root(host: Host) -> str:
    """Where its data is, as its configuration says: for when nobody answers."""
    root = configuration(host).get("data-root", _ROOT)
    return root if isinstance(root, str) and root.startswith("/") else _ROOT


def configuration(host: Host) -> dict[str, Any]:
    """What daemon.json says. HostError where that is nothing that docker takes."""
    text = host.read(_CONFIG)
    try:
        config = json.loads(text) if text else {}
    except (ValueError, RecursionError) as e:
        raise HostError(f"{_CONFIG}: is no JSON") from e
    if not isinstance(config, dict):
        raise HostError(f"{_CONFIG}: is not as docker takes it")
    return config


def store(host: Host) -> Store:
    """Raises HostError where the daemon does not answer."""
    server = _json(host, "version", "--format", "{{json .Server}}")
    told = _json(host, "info", "--format", "{{json .}}")
    try:
        version, root, driver = server["Version"].partition("+")[0], told["DockerRootDir"], told["Driver"]
        status = dict(told.get("DriverStatus") or ())
    except (TypeError, KeyError, AttributeError, ValueError) as e:
        raise HostError("docker: says something else than its version and data root") from e
    if not all(isinstance(text, str) and text for text in (version, root, driver)) or not root.startswith("/"):
        raise HostError("docker: says something else than its version and data root")
    separate = "io.containerd" in str(status.get("driver-type"))
    return Store(version, root, _containerd_root(host) if separate else root, driver, separate)


def _containerd_root(host: Host) -> str:
    named = re.search(r'^root\s*=\s*["\'](/[^"\']*)', host.read(_CONTAINERD) or "", re.M)
    return named[1] if named else "/var/lib/containerd"


def _json(host: Host, *argv: str) -> Any:
    said = host.run(*COMMAND, *argv, timeout=ANSWER_S)
    try:
        return json.loads(said)
    except ValueError as e:
        raise HostError(f"docker {argv[0]}: said something else than it was asked for") from e


def users(host: Host) -> dict[str, tuple[str, ...]]:
    """The containers, also those that do not run, by the id of their image."""
    found: dict[str, list[str]] = {}
    for line in _inspected(host, "container", "{{.Image}} {{.Name}}", "ps", "--all", "--quiet", "--no-trunc"):
        image, _, name = line.partition(" ")
        found.setdefault(image.removeprefix("sha256:"), []).append(name.removeprefix("/"))
    return {image: tuple(sorted(names)) for image, names in found.items()}


def _inspected(host: Host, kind: str, template: str, *listing: str) -> list[str]:
    """A line for each of those that are listed. One may have gone by the time it is asked for: then again."""
    for _ in range(_TRIES):
        ids = list(dict.fromkeys(host.run(*COMMAND, *listing, timeout=ANSWER_S).split()))
        if not ids:
            return []
        try:
            lines = host.run(*COMMAND, kind, "inspect", "--format", template, *ids, timeout=ANSWER_S).splitlines()
        except CommandFailed as e:
            if "no such" in e.output.lower():
                continue
            raise
        if len(lines) != len(ids):
            raise HostError(f"docker {kind} inspect: told of {len(lines)}, and was asked for {len(ids)}")
        return lines
    raise HostError(f"docker: each {kind} that it lists is gone when it is asked for: they come and go too fast")


def images(host: Host, of: Store, used: Mapping[str, tuple[str, ...]]) -> list[Image]:
    """The images, but for those that are only a step of another one's making."""
    lines = _inspected(host, "image", "{{json .}}", "image", "ls", "--quiet", "--no-trunc")
    try:
        return [_image(host, of, json.loads(line), used) for line in lines]
    except (TypeError, KeyError, AttributeError, ValueError) as e:
        raise HostError("docker image inspect: said something else than its images") from e


def _image(host: Host, of: Store, told: Mapping[str, Any], used: Mapping[str, tuple[str, ...]]) -> Image:
    identity = re.fullmatch(r"sha256:([0-9a-f]{64})", told["Id"])
    if identity is None:
        raise ValueError(told["Id"])
    # What layers two images share, containerd does not tell: there each counts whole.
    layers = (f"sha256:{identity[1]}",) if of.separate else chain(told["RootFS"].get("Layers") or ())
    names = _names(told.get("RepoTags") or (), told.get("RepoDigests") or ())
    return Image(
        identity[1],
        names or (identity[1][:12],),
        layers,
        _since(host, of, identity[1], layers, (told.get("Metadata") or {}).get("LastTagTime") or ""),
        used.get(identity[1], ()),
    )


def _names(tags: Sequence[str], digests: Sequence[str]) -> tuple[str, ...]:
    """The references to an image: with its last tag go the digests of a repository."""
    tags = [tag for tag in tags if not tag.startswith("<none>")]
    tagged = {tag.rpartition(":")[0] for tag in tags}
    alone = [digest for digest in digests if digest.partition("@")[0] not in tagged and not digest.startswith("<none>")]
    return (*sorted(tags), *sorted(alone))


def chain(layers: Sequence[str]) -> tuple[str, ...]:
    """The ChainIDs of layers, of which two images with the same beginning have the same (image-spec, config.md)."""
    found: list[str] = []
    for layer in layers:
        above = f"{found[-1]} {layer}".encode() if found else b""
        found.append(f"sha256:{hashlib.sha256(above).hexdigest()}" if found else layer)
    return tuple(found)


def _since(host: Host, of: Store, identity: str, layers: Sequence[str], tagged: str) -> int:
    """When an image came here or was tagged; or a container was last made of it, as far as that leaves a trace.

    Docker keeps no such time. But a new container's file system is put on that of the image, whose overlay2/*/link is
    read for it (moby, daemon/graphdriver/overlay2: getLower), and the kernel notes that to the day (relatime).
    """
    times = [_seconds(tagged)]
    if not of.separate:
        kept = f"{of.root}/image/{of.driver}"
        content = host.info(f"{kept}/imagedb/content/sha256/{identity}")
        times.append(content.modified if content else 0)
        if of.driver == "overlay2" and layers:
            cache = attempt(host.read, f"{kept}/layerdb/{layers[-1].replace(':', '/')}/cache-id")
            link = host.info(f"{of.root}/overlay2/{cache}/link") if isinstance(cache, str) else None
            times.append(link.accessed if link else 0)
    if not any(times):
        raise HostError(f"docker: image {identity[:12]}: when it came here cannot be told")
    return max(times)


def _seconds(text: str) -> int:
    """RFC 3339, as Go writes it; its zero time is none."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(?:Z|([+-])(\d\d):(\d\d))", text)
    if match is None or match[1].startswith("0001-"):
        return 0
    shift = (int(match[3]) * 3600 + int(match[4]) * 60) * (1 if match[2] == "+" else -1) if match[2] else 0
    return timegm(strptime(match[1], "%Y-%m-%dT%H:%M:%S")) - shift


def sizes(host: Host, of: Store, layers: Sequence[str]) -> dict[str, int]:
    """What each layer takes. Docker tells it of whole images only, and an image's is not its own alone."""
    if of.separate:
        lines = _inspected(host, "image", "{{.Id}} {{.Size}}", "image", "ls", "--quiet", "--no-trunc")
        whole = dict(line.split(" ", 1) for line in lines)
        if any(not whole.get(layer, "").isdecimal() for layer in layers):
            raise HostError("docker: what its images take is not told")
        return {layer: int(whole[layer]) for layer in layers}
    known = f"{of.root}/image/{of.driver}/layerdb"
    return {layer: host.number(f"{known}/{layer.replace(':', '/')}/size") for layer in layers}
