"""Logins to registries that users have left behind, by the files in which docker, podman and their kin keep them.

Names of registries only: no secret is taken out of a file, or asked of a helper. containers-auth.json(5), and
https://docs.docker.com/reference/cli/docker/login/.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from hostprep.errors import HostError
from hostprep.host import Host

HELPER_S = 6.0  # seconds for a credential helper
_SECRETS = ("auth", "identitytoken", "registrytoken", "password")


class User(NamedTuple):
    """Somebody who may have logged in somewhere."""

    name: str
    uid: int
    gid: int
    home: str


class Login(NamedTuple):
    """A registry, and where the login to it is kept: in a file, or by a helper that this file names."""

    registry: str
    path: str
    helper: str = ""

    def __str__(self) -> str:
        return f"{self.registry} in {self.path}" + (f" by docker-credential-{self.helper}" if self.helper else "")


def parse(line: str) -> Login:
    """The inverse of str()."""
    registry, _, rest = line.partition(" in ")
    path, _, helper = rest.partition(" by docker-credential-")
    return Login(registry, path, helper)


def user(host: Host, name: str) -> User:
    """Local users and those of a directory service alike."""
    try:
        said = host.run("getent", "passwd", name)
    except HostError as e:
        if getattr(e, "status", 0) == 2:
            raise HostError(f"user {name} is not known here") from e
        raise
    fields = said.strip().split(":")
    if len(fields) != 7 or not (fields[2].isdecimal() and fields[3].isdecimal()) or not fields[5].startswith("/"):
        raise HostError(f"getent passwd {name}: says something else than a user")
    return User(fields[0], int(fields[2]), int(fields[3]), fields[5].rstrip("/"))


def paths(who: User) -> list[str]:
    """Where engines keep logins; what is in /run is gone after a reboot."""
    found = [
        f"{who.home}/.docker/config.json",
        f"{who.home}/.dockercfg",
        f"{who.home}/snap/docker/current/.docker/config.json",
        f"{who.home}/.config/containers/auth.json",
        f"/run/user/{who.uid}/containers/auth.json",
        f"/run/containers/{who.uid}/auth.json",
    ]
    return [*found, "/.docker/config.json"] if who.uid == 0 else found  # a service without HOME has / for it


def logins(host: Host, who: User) -> list[Login]:
    """Every login that somebody has, sorted. HostError where one of the places cannot be read."""
    return sorted({login for path in paths(who) for login in _in_file(host, who, path)})


def _in_file(host: Host, who: User, path: str) -> Iterator[Login]:
    config = _config(host.read(path), path)
    auths = _auths(config, path)
    named = config.get("credHelpers") or {}
    default = config.get("credsStore") or ""
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in (default, *named.values())):
        raise HostError(f"{path}: its credHelpers or credsStore are not as docker writes them")
    for registry, helper in named.items():
        held = _held(host, who, helper) if helper else []
        of_it = [registry] if held is None else [each for each in held if _server(each) == _server(registry)]
        yield from (Login(_word(each), path, helper) for each in of_it)
    if default:
        everything = _held(host, who, default)
        if everything is None:
            raise HostError(f"{path}: docker-credential-{default} does not tell what it holds")
        yield from (Login(_word(each), path, default) for each in everything)
    for registry, entry in auths.items():
        if not isinstance(entry, dict):
            raise HostError(f"{path}: its auths are not as docker writes them")
        if any(entry.get(secret) for secret in _SECRETS):
            yield Login(_word(registry), path)


def _config(text: str | None, path: str) -> dict[str, Any]:
    try:
        config = json.loads(text) if text else {}
    except (ValueError, RecursionError) as e:
        raise HostError(f"{path}: is no JSON, so what logins it holds cannot be told") from e
    if not isinstance(config, dict):
        raise HostError(f"{path}: is not as docker writes it")
    return config


def _auths(config: dict[str, Any], path: str) -> dict[str, Any]:
    auths = config if path.endswith("/.dockercfg") else config.get("auths") or {}
    if not isinstance(auths, dict):
        raise HostError(f"{path}: its auths are not as docker writes them")
    return auths


def _word(registry: str) -> str:
    """One word for a person, whatever somebody's file says."""
    return re.sub(r"[^\x21-\x7e]", "?", registry)[:200] or "?"


def _server(registry: str) -> str:
    return re.sub(r"^https?://", "", registry).partition("/")[0]


def _held(host: Host, who: User, helper: str) -> list[str] | None:
    """The registries that a credential helper has a login for; None where this one cannot list them.

    https://github.com/docker/docker-credential-helpers: `list` answers with users by registry. Those of clouds make a
    login when asked for one, and list nothing.
    """
    try:
        said = _ask(host, who, helper, "list")
        found = json.loads(said)
    except ValueError:
        return None
    except HostError as e:
        if "not implemented" in getattr(e, "output", "").lower() or "unimplemented" in getattr(e, "output", "").lower():
            return None
        raise
    return sorted(found) if isinstance(found, dict) else None


def _ask(host: Host, who: User, helper: str, what: str, stdin: bytes = b"") -> str:
    """Run a helper as the user whose file names it: root has no business to run what others choose."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", helper):
        raise HostError(f"docker-credential-{_word(helper)}: is no name of a helper")
    program = [f"HOME={who.home}", f"XDG_RUNTIME_DIR=/run/user/{who.uid}", f"docker-credential-{helper}", what]
    becoming = ["setpriv", f"--reuid={who.uid}", f"--regid={who.gid}", "--init-groups"] if who.uid else []
    return host.run(*becoming, "env", *program, timeout=HELPER_S, stdin=stdin)


def forget(host: Host, who: User, gone: Collection[Login]) -> None:
    """Take logins away for good: nothing keeps what they were."""
    for login in gone:
        if login.helper:
            _ask(host, who, login.helper, "erase", login.registry.encode())
    for path in sorted({login.path for login in gone if not login.helper}):
        registries = {login.registry for login in gone if login.path == path and not login.helper}

        def edit(data: bytes, path: str = path, registries: Collection[str] = registries) -> bytes:
            return without(data, path, registries)

        host.edit_secret(path, edit, (who.name, who.uid, who.gid), f"the logins to {', '.join(sorted(registries))}")


def without(data: bytes, path: str, registries: Collection[str]) -> bytes:
    """A file without these logins, and all else in it. Pure."""
    config = _config(data.decode(errors="replace"), path)
    auths: Mapping[str, Any] = _auths(config, path)
    left = {registry: entry for registry, entry in auths.items() if _word(registry) not in registries}
    config = dict(left) if path.endswith("/.dockercfg") else {**config, "auths": left}
    return (json.dumps(config, indent="\t") + "\n").encode()
