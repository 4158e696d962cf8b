"""GPU containers: they can get the GPUs that this host has, through docker's nvidia runtime or a CDI spec.

    gpu_containers: any               # either will do: cdi, docker
    gpu_containers: {via: cdi, toolkit: ">=1.14.0"}

docker: /etc/docker/daemon.json names a runtime `nvidia` whose program is there, and NVIDIA's container toolkit is
installed. Whether dockerd has read the file is not looked at.

cdi: a spec of kind nvidia.com/gpu in /etc/cdi or /var/run/cdi (podman, containerd, CRI-O and docker read these) names
exactly the GPUs that the driver drives, and every file that it brings into a container is on this host: after an
upgrade of the driver a spec still names the libraries of the old one. Next boot: what is below /var/run is gone then,
unless nvidia-cdi-refresh.service is enabled, which writes it anew.

toolkit: the version that nvidia-ctk tells.

hostprep changes nothing here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from hostprep.errors import HostError
from hostprep.host import Host, attempt
from hostprep.model import Desired, Fact, Facts, Goals, Reading, Section, Unknown

NAME = "gpu_containers"

_VIA = {"enum": ["any", "cdi", "docker"]}
SCHEMA = {
    "description": "How containers get GPUs: docker's nvidia runtime, a CDI spec, or any of the two.",
    "anyOf": [
        _VIA,
        {
            "type": "object",
            "properties": {
                "via": {**_VIA, "description": "cdi, docker or any"},
                "toolkit": {
                    "description": "version of NVIDIA's container toolkit: 1.17.4 or >=1.14.0",
                    "type": "string",
                    "pattern": r"^(>= ?)?[0-9]+(\.[0-9]+)+$(?!\n)",
                },
            },
            "additionalProperties": False,
            "minProperties": 1,
        },
    ],
}

READY, NOT_READY = "ready", "not ready"
KIND = "nvidia.com/gpu"
SPEC_LIMIT = 1024 * 1024  # characters; a spec of sixteen GPUs with MIG has about 100,000
_FOLDERS = ("/etc/cdi", "/var/run/cdi")
_LASTING = ("/etc/cdi",)
_REFRESH = ("nvidia-cdi-refresh.service", "nvidia-cdi-refresh.path")
_GPUS = "/proc/driver/nvidia/gpus"
_DAEMON = "/etc/docker/daemon.json"
_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_GENERATE = "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"


# -- looking --------------------------------------------------------------------------------------


def inspect(host: Host) -> Facts:
    gpus = attempt(_gpus, host)
    toolkit = attempt(_toolkit, host)
    docker = attempt(_docker, host, toolkit)
    cdi = attempt(_cdi, host, gpus, _FOLDERS)
    return {
        "gpus": Fact.fixed(gpus if isinstance(gpus, Unknown) else len(gpus)),
        "toolkit": Fact.fixed(toolkit),
        "docker": Fact.fixed(_short(docker)),
        "docker/lacks": Fact.fixed(docker),
        "cdi": Fact(_short(cdi), _short(attempt(_cdi, host, gpus, _folders_later(host)))),
        "cdi/lacks": Fact.fixed(cdi),
    }


def _short(reading: str | Unknown) -> str | Unknown:
    return reading if reading == READY or isinstance(reading, Unknown) else NOT_READY


def _gpus(host: Host) -> dict[str, str]:
    """The UUIDs of the GPUs that NVIDIA's driver drives, by their device nodes: /dev/nvidia0."""
    found = {}
    for address in host.names(_GPUS):
        said = host.read(f"{_GPUS}/{address}/information") or ""
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in said.splitlines())}
        if not fields.get("Device Minor", "").isdecimal():
            raise HostError(f"{_GPUS}/{address}/information: tells no Device Minor")
        found[f"/dev/nvidia{fields['Device Minor']}"] = fields.get("GPU UUID", "")
    return found


def _toolkit(host: Host) -> str | None:
    """The version of the toolkit; None where it is not installed."""
    if not _program(host, "nvidia-ctk"):
        return None
    said = host.run("nvidia-ctk", "--version")
    found = re.search(r"version v?(\d+(?:\.\d+)+\S*)", said)
    if found is None:
        raise HostError(f"nvidia-ctk --version: tells no version: {said[:60]!r}")
    return found[1]


def _program(host: Host, name: str) -> bool:
    paths = [name] if name.startswith("/") else [f"{folder}/{name}" for folder in _PATH]
    return any(host.state_kind(host.resolve(path)) == "file" for path in paths)


def _docker(host: Host, toolkit: str | Unknown | None) -> str:
    """`ready`, or what docker lacks."""
    text = host.read(_DAEMON)
    if text is None:
        return f"{_DAEMON} is not there, so docker has no nvidia runtime"
    try:
        runtimes = _field(json.loads(text), "runtimes")
    except json.JSONDecodeError as e:
        return f"{_DAEMON}:{e.lineno}:{e.colno}: {e.msg}: docker does not start with it"
    except (ValueError, RecursionError) as e:
        return f"{_DAEMON}: {e}"
    path = _field(_field(runtimes, "nvidia"), "path")
    if not isinstance(path, str):
        return f"{_DAEMON} names no runtime nvidia"
    if not _program(host, path):
        return f"{_DAEMON} names {path} as the runtime nvidia, which is not there"
    if isinstance(toolkit, Unknown):
        raise HostError(toolkit.reason)
    return READY if toolkit is not None else "NVIDIA's container toolkit is not installed (no nvidia-ctk)"


def _folders_later(host: Host) -> tuple[str, ...]:
    """Where there are specs after a reboot."""
    wants = (path for unit in _REFRESH for path in host.glob(f"/etc/systemd/system/*.wants/{unit}"))
    return _FOLDERS if any(host.link(path) != "/dev/null" for path in wants) else _LASTING


def _cdi(host: Host, gpus: dict[str, str] | Unknown, folders: tuple[str, ...]) -> str:
    """`ready`, or what is wrong with the specs in these folders."""
    if isinstance(gpus, Unknown):
        raise HostError(gpus.reason)
    specs = [(path, spec) for path, spec in _specs(host, folders) if isinstance(spec, str) or spec.get("kind") == KIND]
    if not specs:
        return f"no CDI spec in {' or '.join(folders)} is of kind {KIND}"
    nodes: set[str] = set()
    for path, spec in specs:
        if isinstance(spec, str):
            return spec
        if wrong := _wrong(host, path, spec, gpus):
            return wrong
        nodes |= _nodes(spec)
    if missing := sorted(set(gpus) - nodes):
        return f"no CDI spec names {', '.join(missing)}"
    return READY


def _specs(host: Host, folders: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """The specs by path; text where one cannot be used, which is how the engines see it too."""
    for folder in folders:
        for name in host.names(folder):
            if name.endswith((".json", ".yaml", ".yml")):
                path = f"{folder}/{name}"
                text = host.read(path)
                yield path, "" if text is None else _parsed(path, text)


def _parsed(path: str, text: str) -> dict[str, Any] | str:
    import yaml

    if len(text) > SPEC_LIMIT:
        return f"{path}: larger than {SPEC_LIMIT} characters: not what nvidia-ctk writes"
    try:
        spec = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506  # both are safe ones
    except yaml.MarkedYAMLError as e:
        at = f":{e.problem_mark.line + 1}:{e.problem_mark.column + 1}" if e.problem_mark else ""
        return f"{path}{at}: {e.problem}"
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        return f"{path}: {e}"
    return spec if isinstance(spec, dict) else f"{path}: is no CDI spec"


def _wrong(host: Host, path: str, spec: Mapping[str, Any], gpus: Mapping[str, str]) -> str:
    """Why a container that is given this spec's devices would not start, or get another GPU than it was told."""
    if more := sorted(_nodes(spec) - set(gpus)):
        return f"{path} names {', '.join(more)}, which is no GPU of this host"
    uuids = [name for name in _devices(spec) if name.startswith("GPU-") and name not in gpus.values()]
    if uuids:
        return f"{path} names {uuids[0]}, which is no GPU of this host"
    gone = [file for file in _files(spec) if not host.exists(host.resolve(file))]
    if gone:
        more_gone = f" (and {len(gone) - 1} more)" if len(gone) > 1 else ""
        return f"{path} brings {gone[0]}{more_gone} into containers, which is not there: made for another driver?"
    return ""


def _devices(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The devices of a spec by name: 0, 0:1 (MIG), GPU-..., MIG-..., all."""
    return {str(_field(device, "name")): device for device in _items(_field(spec, "devices"))}


def _edits(spec: Mapping[str, Any]) -> Iterator[Any]:
    yield _field(spec, "containerEdits")
    yield from (_field(device, "containerEdits") for device in _devices(spec).values())


def _nodes(spec: Mapping[str, Any]) -> set[str]:
    """The GPUs of a spec, by their device nodes."""
    nodes = (_field(node, "path") for edits in _edits(spec) for node in _items(_field(edits, "deviceNodes")))
    return {node for node in nodes if isinstance(node, str) and re.fullmatch(r"/dev/nvidia\d+", node)}


def _files(spec: Mapping[str, Any]) -> list[str]:
    """What a spec brings from the host into containers: device nodes and mounted files."""
    found: dict[str, None] = {}
    for edits in _edits(spec):
        for node in _items(_field(edits, "deviceNodes")):
            found[str(_field(node, "hostPath") or _field(node, "path"))] = None
        for mount in _items(_field(edits, "mounts")):
            found[str(_field(mount, "hostPath"))] = None
    return [path for path in found if path.startswith("/")]


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


# -- deciding -------------------------------------------------------------------------------------


def decide(facts: Facts, want: Section) -> Goals:
    section = want if isinstance(want, dict) else {"via": want}
    none = "NVIDIA's driver drives no GPU on this host, so no container can get one."
    goals = {"gpus": _is(1, none, "Have the check gpu of a profile say what is wrong with the driver.", ">=")}
    if "toolkit" in section:
        version = section["toolkit"].removeprefix(">=").strip()
        op = ">=" if section["toolkit"].startswith(">=") else "=="
        fix = f"Install nvidia-container-toolkit {version}{' or later' if op == '>=' else ''}."
        goals["toolkit"] = _is(version, "", fix, op)
    via = section.get("via", "any")
    if via == "any":
        via = _better(facts)
    return goals | {via: _way(facts, via, section.get("via", "any") == "any")}


def _is(value: Any, means: str, fix: str, op: str = "==") -> Desired:
    return Desired(value, op=op, live=False, persist=False, means=means, fix=fix)


def _better(facts: Facts) -> str:
    """Of two ways the one that works now and later; else that which works now; else CDI, which all engines know."""
    both = [via for via in ("docker", "cdi") if facts[via] == Fact.fixed(READY)]
    now = [via for via in ("cdi", "docker") if facts[via].current == READY]
    return next(iter([*both, *now, "cdi"]))


def _way(facts: Facts, via: str, either: bool) -> Desired:
    fixes = {
        "cdi": f"{_GENERATE}, and systemctl enable nvidia-cdi-refresh.path where there is one.",
        "docker": "nvidia-ctk runtime configure --runtime=docker, then systemctl restart docker.",
    }
    ways = [via, "docker"] if either and via == "cdi" else [via]
    said = " ".join(_sentence(facts[f"{way}/lacks"].current) for way in ways)
    return _is(READY, said, fixes[via])


def _sentence(reading: Reading) -> str:
    text = reading.reason if isinstance(reading, Unknown) else str(reading)
    return f"{text[:1].upper()}{text[1:]}." if not text.startswith("/") else f"{text}."
