"""How an engine gets to a registry: whose certificates it believes, whether it verifies them, and through which proxy.

Docker: moby, registry/registry.go (ReadCertsDirectory) and registry/config.go. podman: containers-certs.d(5),
containers-registries.conf(5); containers/image, docker/docker_client.go. containerd: docs/hosts.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import json
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any, NamedTuple

from hostprep.engines import docker
from hostprep.engines.proxies import proxy_of, without_login
from hostprep.errors import HostError
from hostprep.host import Host

# crypto/x509/root_linux.go: the first that is there
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+?)\s*-----END CERTIFICATE-----")
_DOCKER_CERTS, _PODMAN_CERTS = "/etc/docker/certs.d", "/etc/containers/certs.d"
CERTS = {"docker": _DOCKER_CERTS, "podman": _PODMAN_CERTS}
_PODMAN_HOME = "/root/.config/containers"
_DAEMON = "/etc/docker/daemon.json"
_CONTAINERD = "/etc/containerd/config.toml"
_UNIT_FOLDERS = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
)
_LOOPBACK = ("127.0.0.0/8", "::1/128")  # dockerd never verifies there, whatever it is told
ENGINES = ("docker", "podman", "containerd")


class Folder(NamedTuple):
    """What an engine believes for one registry, beside the roots of the system."""

    path: str  # where its certificates are, or would be
    certificates: tuple[str, ...] = ()  # fingerprints
    pem: str = ""
    pairs: tuple[tuple[str, str], ...] = ()  # a client's certificates and keys
    fault: str = ""  # why the engine would not even connect


class Settings(NamedTuple):
    """What an engine is told of registries: by its daemon now, or by files for the next boot."""

    insecure: frozenset[str]  # registries and networks that it does not verify
    environment: Mapping[str, str]  # of proxies


def fingerprint(der: bytes) -> str:
    """As `openssl x509 -fingerprint -sha256` shows it."""
    return colons(hashlib.sha256(der).hexdigest())


def colons(digest: str) -> str:
    plain = digest.replace(":", "").upper()
    return ":".join(plain[i : i + 2] for i in range(0, len(plain), 2))


def certificates(data: bytes) -> dict[str, bytes]:
    """The certificates in PEM, or the one in DER, by fingerprint; what is none is passed over."""
    found = []
    for block in _PEM.findall(data):
        try:
            found.append(base64.b64decode(re.sub(rb"\s", b"", block), validate=True))
        except binascii.Error:
            continue
    if not found and data[:2] == b"\x30\x82" and len(data) == int.from_bytes(data[2:4], "big") + 4:
        found = [data]  # a SEQUENCE, and nothing after it
    return {fingerprint(der): der for der in found}


def pem(der: bytes) -> str:
    text = base64.b64encode(der).decode()
    lines = [text[i : i + 64] for i in range(0, len(text), 64)]
    return "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""])


def system_roots(host: Host) -> str:
    """The authorities that this host believes, in PEM."""
    for path in _BUNDLES:
        if (text := host.read(path)) is not None:
            return text
    return ""


# -- certificates of a registry -------------------------------------------------------------------


def folder(host: Host, engine: str, registry: str) -> Folder:
    """What an engine has of certificates for a registry. HostError where that cannot be read."""
    path = place(host, engine, registry)
    if engine == "containerd" and (text := host.read(f"{path}/hosts.toml")):
        return _named(host, path, _server(_toml(text, f"{path}/hosts.toml"), path, registry))
    return _listed(host, path)


def configured(host: Host, engine: str) -> list[str]:
    """The registries that docker or podman has an authority's certificate for."""
    folder = CERTS[engine]
    return [name for name in host.names(folder) if _listed(host, f"{folder}/{name}").certificates]


def place(host: Host, engine: str, registry: str) -> str:
    """The directory of a registry's certificates: the one that counts, or else where to make it.

    podman looks into the first that is there, and into no other.
    """
    if engine == "docker":
        return f"{_DOCKER_CERTS}/{registry}"
    if engine == "podman":
        folders = (f"{_PODMAN_HOME}/certs.d", _PODMAN_CERTS, _DOCKER_CERTS)
        found = [f"{each}/{registry}" for each in folders if host.exists(f"{each}/{registry}")]
        return found[0] if found else f"{_PODMAN_CERTS}/{registry}"
    roots = _config_path(host)
    name, colon, port = registry.rpartition(":")
    names = (f"{name}_{port}_", registry) if colon and not registry.endswith("]") else (registry,)
    candidates = [f"{root}/{each}" for root in roots for each in (*names, "_default")]
    found = [path for path in candidates if host.exists(path)]
    return found[0] if found else f"{roots[0]}/{names[-1]}"


def _config_path(host: Host) -> list[str]:
    """Where containerd's CRI plugin looks; nowhere where nothing is configured, but for 2.x."""
    text = host.read(_CONTAINERD) or ""
    named = re.search(r'^\s*config_path\s*=\s*["\'](/[^"\']*)["\']', text, re.M)
    if named:
        return [path for path in named[1].split(":") if path]
    if re.search(r"^\s*version\s*=\s*[3-9]", text, re.M):
        return ["/etc/containerd/certs.d", _DOCKER_CERTS]
    raise HostError(f"{_CONTAINERD}: has no config_path, so what containerd believes cannot be told")


def _listed(host: Host, path: str) -> Folder:
    """A directory of *.crt (authorities), *.cert and *.key (a client's), as Docker has them."""
    certs: dict[str, bytes] = {}
    texts, pairs = [], []
    names = host.names(path)
    for name in names:
        stem, _, kind = name.rpartition(".")
        if kind == "crt":
            data = host.read_bytes(f"{path}/{name}")
            if data is None:
                return Folder(path, fault=f"{path}/{name} leads nowhere")
            certs |= certificates(data) if b"-----BEGIN" in data else {}  # in DER it is passed over
            texts.append(data.decode("latin-1"))
        elif kind == "cert":
            if f"{stem}.key" not in names:
                return Folder(path, fault=f"{path}/{name} has no {stem}.key (an authority's name must end in .crt)")
            pairs.append((host.real(f"{path}/{name}"), host.real(f"{path}/{stem}.key")))
        elif kind == "key" and f"{stem}.cert" not in names:
            return Folder(path, fault=f"{path}/{name} has no {stem}.cert")
    return Folder(path, tuple(sorted(certs)), "\n".join(texts), tuple(pairs))


def _named(host: Host, path: str, section: Mapping[str, Any]) -> Folder:
    """The files that a hosts.toml names."""
    listed = section.get("ca") or []
    certs: dict[str, bytes] = {}
    texts = []
    for name in [listed] if isinstance(listed, str) else listed:
        file = name if str(name).startswith("/") else f"{path}/{name}"
        data = host.read_bytes(file)
        if data is None or not (found := certificates(data)) or b"-----BEGIN" not in data:
            return Folder(path, fault=f"{file}, which {path}/hosts.toml names, has no certificate in PEM")
        certs |= found
        texts.append(data.decode("latin-1"))
    if section.get("client"):
        raise HostError(f"{path}/hosts.toml: names a client certificate, which hostprep does not follow")
    return Folder(path, tuple(sorted(certs)), "\n".join(texts))


def _toml(text: str, path: str) -> dict[str, Any]:
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        found: dict[str, Any] = toml.loads(text)
        return found
    except ValueError as e:
        raise HostError(f"{path}: is no TOML: {e}") from e


def _server(config: Mapping[str, Any], path: str, registry: str) -> Mapping[str, Any]:
    """Of a hosts.toml what is for the registry itself. A mirror that it names is a registry of its own."""
    server = re.sub(r"^https?://", "", str(config.get("server") or registry)).partition("/")[0]
    if server != registry:
        raise HostError(f"{path}/hosts.toml: sends containerd to {server}: ask for that registry")
    hosts = config.get("host") or {}
    own = [s for name, s in hosts.items() if re.sub(r"^https?://", "", name).partition("/")[0] == registry]
    section: Mapping[str, Any] = own[0] if own else config
    return section


# -- what an engine is told -----------------------------------------------------------------------


def settings(host: Host, engine: str) -> tuple[Settings, Settings]:
    """What it goes by now, and after a reboot. HostError where that cannot be told."""
    if engine == "podman":
        both = Settings(frozenset(_podman_insecure(host)), _environment_file(host, "/etc/environment"))
        return both, both
    if engine == "containerd":
        both = Settings(frozenset(), _unit_environment(host, "containerd.service")[0])
        return both, both
    later = _docker_later(host)
    return _docker_now(host, later), later


def verifies(host: Host, engine: str, registry: str, told: Settings) -> bool:
    """Does an engine verify the certificate of a registry? Loopback, which Docker never does, counts as if it did."""
    if engine == "containerd":
        path = f"{place(host, engine, registry)}/hosts.toml"
        text = host.read(path)
        return not text or _server(_toml(text, path), path, registry).get("skip_verify") is not True
    if registry in told.insecure:
        return False
    networks = [word for word in told.insecure if "/" in word and word not in _LOOPBACK]
    if not networks:
        return True
    name = re.sub(r":[0-9]+$", "", registry).strip("[]")
    addresses = [name] if _is_address(name) else host.addresses_of(name).found
    inside = [
        a for a in addresses for n in networks if ipaddress.ip_address(a) in ipaddress.ip_network(n, strict=False)
    ]
    return not inside


def proxy(told: Settings, scheme: str, host: str, port: int) -> str:
    return proxy_of(told.environment, scheme, host, port)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _docker_later(host: Host) -> Settings:
    config = docker.configuration(host)
    environment, command = _unit_environment(host, "docker.service")
    words = shlex.split(command, comments=False) if command.count('"') % 2 == 0 == command.count("'") % 2 else []
    listed = config.get("insecure-registries") or []
    if not isinstance(listed, list):
        raise HostError(f"{_DAEMON}: its insecure-registries are no list")
    insecure = [str(each) for each in listed]
    for number, word in enumerate(words):
        if word == "--insecure-registry" and number + 1 < len(words):
            insecure.append(words[number + 1])
        elif word.startswith("--insecure-registry="):
            insecure.append(word.partition("=")[2])
    proxies = config.get("proxies") or {}
    if not isinstance(proxies, dict):
        raise HostError(f"{_DAEMON}: its proxies are not as docker takes them")
    named = {name.replace("-", "_").upper(): str(value) for name, value in proxies.items() if value}
    return Settings(_bare(insecure), {**environment, **named})


def _bare(listed: Iterable[str]) -> frozenset[str]:
    """Without the scheme, which Docker takes off with a warning; networks that are none are left out."""
    found = set()
    for word in listed:
        bare = re.sub(r"^https?://", "", word.strip(), flags=re.I)
        try:
            found.add(str(ipaddress.ip_network(bare, strict=False)) if "/" in bare else bare)
        except ValueError:
            continue
    return frozenset(found)


def _docker_now(host: Host, later: Settings) -> Settings:
    """What the daemon itself says; where none runs, what one would go by."""
    try:
        told = json.loads(host.run(*docker.COMMAND, "info", "--format", "{{json .}}", timeout=docker.ANSWER_S))
        registries = told.get("RegistryConfig") or {}
        insecure = [name for name, each in (registries.get("IndexConfigs") or {}).items() if each["Secure"] is False]
        insecure += registries.get("InsecureRegistryCIDRs") or []
        proxies = {f"{name.upper()}_PROXY": told.get(f"{name}Proxy") or "" for name in ("Http", "Https", "No")}
        if told.get("ServerErrors"):
            return later
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise HostError("docker info: says something else than its registries and proxies") from e
    except HostError as e:
        if docker.down(e) or "not installed" in str(e):
            return later
        raise
    same = {name for name, url in proxies.items() if without_login(later.environment.get(name, "")) == _shown(url)}
    # docker info hides logins (xxxxx:xxxxx@); where it is the proxy of the files, theirs is taken
    environment = {name: later.environment.get(name, "") if name in same else url for name, url in proxies.items()}
    return Settings(_bare(map(str, insecure)), environment)


def _shown(url: str) -> str:
    return without_login(url)


def _podman_insecure(host: Host) -> list[str]:
    """https://github.com/containers/image, sysregistriesv2: root's own file comes in place of the system's."""
    own = f"{_PODMAN_HOME}/registries.conf"
    path = own if host.exists(own) else "/etc/containers/registries.conf"
    if not host.exists(path):
        path = "/usr/share/containers/registries.conf"
    insecure: dict[str, bool] = {}
    for file in (path, *host.glob("/etc/containers/registries.conf.d/*.conf")):
        text = host.read(file) or ""
        if not re.search(r'^\s*\[+\s*["\']?registr', text, re.M):  # comments alone, or short names
            continue
        config = _toml(text, file)
        old = ((config.get("registries") or {}).get("insecure") or {}).get("registries") or []
        insecure |= dict.fromkeys(map(str, old), True)
        for each in config.get("registry") or []:
            where = str(each.get("prefix") or each.get("location") or "")
            if "/" not in where:
                insecure[where] = each.get("insecure") is True
    return [name for name, is_so in insecure.items() if is_so]


# -- systemd --------------------------------------------------------------------------------------


def _unit_environment(host: Host, unit: str) -> tuple[dict[str, str], str]:
    """The environment and the command that systemd starts a service with, by its unit and its drop-ins.

    systemd.exec(5): an empty assignment takes back those before it.
    """
    environment: dict[str, str] = {}
    command = ""
    for path in _unit_files(host, unit):
        for line in re.sub(r"\\\n", " ", host.read(path) or "").splitlines():
            name, _, value = (part.strip() for part in line.partition("="))
            if name == "Environment":
                environment = {**environment, **_assignments(value)} if value else {}
            elif name == "EnvironmentFile" and value:
                environment |= _environment_file(host, value.removeprefix("-"))
            elif name == "ExecStart":
                command = f"{command} {value}" if value else ""
    variables = {name: value for name, value in environment.items() if name.upper().endswith("_PROXY")}
    return variables, re.sub(r"\$\{?([A-Z_a-z0-9]+)\}?", lambda m: environment.get(m[1], ""), command)


def _unit_files(host: Host, unit: str) -> list[str]:
    """The unit, and its drop-ins in the order of their names; of two of a name the first directory's counts."""
    base = next(
        (path for folder in (*_UNIT_FOLDERS, "/lib/systemd/system") if host.exists(path := f"{folder}/{unit}")), ""
    )
    names: dict[str, str] = {}
    for each in _UNIT_FOLDERS:
        for path in host.glob(f"{each}/{unit}.d/*.conf"):
            names.setdefault(path.rpartition("/")[2], path)
    return [path for path in (base, *(names[name] for name in sorted(names))) if path]


def _assignments(text: str) -> dict[str, str]:
    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split()
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def _environment_file(host: Host, path: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in (host.read(path) or "").splitlines():
        if not line.lstrip().startswith(("#", ";")):
            found |= _assignments(line.strip().removeprefix("export "))
    return found
