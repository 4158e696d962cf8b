"""GPU containers: they can get the GPUs that this host has, through docker's nvidia runtime or a CDI spec.

    gpu_containers: any               # cdi or docker will do; else one of cdi, docker, podman
    gpu_containers: {via: [cdi, docker], toolkit: ">=1.14.0"}      # both

docker: dockerd is there, /etc/docker/daemon.json names a runtime `nvidia` whose program is there and may be run, and
NVIDIA's container toolkit is installed. Whether dockerd has read the file is not looked at.

cdi: the specs of kind nvidia.com/gpu in /etc/cdi and /var/run/cdi, as engines read them: files called *.json and
*.yaml, a device of /var/run/cdi goes before one of that name in /etc/cdi, and of two in one folder neither counts.
They name exactly the GPUs that the driver drives, the MIG instances that there are, /dev/nvidiactl and
/dev/nvidia-uvm, and every file that they bring into a container or run is on this host. Libraries are of the driver's
version: after its upgrade a spec still names those of the old one. The specs of other vendors are left alone.
Next boot: what is below /var/run is gone then, unless nvidia-cdi-refresh.service is enabled, which writes it anew;
nvidia-cdi-refresh.path does not, it waits for an upgrade. Which engine reads specs is not looked at: docker before 28.2
wants `"features": {"cdi": true}`, containerd before 2.0 `enable_cdi = true`.

podman: a podman that knows CDI (4.1 or later), and cdi.

toolkit: the version that nvidia-ctk tells, or nvidia-container-cli where there is no nvidia-ctk.

hostprep changes nothing here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from hostprep.errors import CommandFailed, HostError
from hostprep.host import Host, attempt
from hostprep.model import Desired, Fact, Facts, Goals, Reading, Section, Suggestion, Unknown
from hostprep.nvidia import driver
from hostprep.nvidia.health import looked_at

NAME = "gpu_containers"

_VIA = {"enum": ["any", "cdi", "docker", "podman"]}
SCHEMA = {
    "description": "How containers get GPUs: docker's nvidia runtime, a CDI spec, podman with one; or any.",
    "anyOf": [
        _VIA,
        {
            "type": "object",
            "properties": {
                "via": {
                    "description": "any, cdi, docker or podman; or a list of these, all of which are wanted",
                    "anyOf": [_VIA, {"type": "array", "items": _VIA, "minItems": 1, "uniqueItems": True}],
                },
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
SPEC_LIMIT = 512 * 1024  # characters; a spec of sixteen GPUs with MIG has about 100,000
DEPTH_LIMIT = 32  # a spec has eight
FIRST_WITH_CDI = "4.1.0"  # podman
_LASTING, _UNTIL_REBOOT = "/etc/cdi", "/var/run/cdi"
_REFRESH = "nvidia-cdi-refresh"
_UNITS = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_RULES = ("/etc/udev/rules.d", "/usr/lib/udev/rules.d", "/lib/udev/rules.d")
_OUTPUT = re.compile(r"""^\s*NVIDIA_CTK_CDI_OUTPUT_FILE_PATH=["']?([^"'\n]+)""", re.M)
_DRIVER = "/proc/driver/nvidia"
_DAEMON = "/etc/docker/daemon.json"
_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_VERSION = re.compile(r"version:? v?(\d+(?:\.\d+)+\S*)")
_GENERATE = "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
_DOCKER_FIX = "nvidia-ctk runtime configure --runtime=docker; systemctl restart docker"
_MAKE_NODES = "nvidia-modprobe -c 0 -u"
_CONTROL = ("/dev/nvidiactl", "/dev/nvidia-uvm")  # CUDA opens both
_DEVICE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?")
# Of libraries the ones that speak to the kernel's driver, and refuse one of another version.
_LIBRARY = re.compile(r"/lib(?:cuda|nvidia-ml)\.so\.(\d+(?:\.\d+)+)$")


# -- looking --------------------------------------------------------------------------------------


def inspect(host: Host) -> Facts:
    gpus = attempt(_gpus, host)
    version = attempt(driver.version, host)
    toolkit = attempt(_toolkit, host)
    docker = attempt(_docker, host, toolkit)
    refresh = attempt(_refresh, host)
    specs = {folder: attempt(_specs, host, folder) for folder in (_LASTING, _UNTIL_REBOOT)}
    now = attempt(_cdi, host, specs, gpus, version)
    later = attempt(_cdi_later, host, specs, gpus, version, refresh)
    return {
        "gpus": Fact.fixed(gpus if isinstance(gpus, Unknown) else len(gpus)),
        "driver": Fact.fixed(version),
        "toolkit": Fact.fixed(toolkit),
        "podman": Fact.fixed(attempt(_tool_version, host, "podman")),
        "docker": Fact.fixed(_short(docker)),
        "docker/lacks": Fact.fixed(docker),
        "cdi": Fact(_short(now), _short(later)),
        "cdi/lacks": Fact.fixed(now),
        "cdi/refresh": Fact.fixed(refresh),
    }


def _short(reading: str | Unknown) -> str | Unknown:
    return reading if reading == READY or isinstance(reading, Unknown) else NOT_READY


def _gpus(host: Host) -> dict[str, str]:
    """The UUIDs of the GPUs that NVIDIA's driver drives, by their device nodes: /dev/nvidia0.

    A UUID is empty while the driver does not know it: until a GPU is used for the first time it writes question marks.
    """
    found = {}
    for address in host.names(f"{_DRIVER}/gpus"):
        path = f"{_DRIVER}/gpus/{address}/information"
        said = (line.partition(":") for line in (host.read(path) or "").splitlines())
        fields = {key.strip(): value.strip() for key, _, value in said}
        if "Yes" in (fields.get("GPU Excluded"), fields.get("Blacklisted")):  # by the administrator: NVreg_ExcludedGpus
            continue
        if not re.fullmatch(r"[0-9]{1,6}", fields.get("Device Minor", "")):
            raise HostError(f"{path}: tells no Device Minor")
        uuid = fields.get("GPU UUID", "")
        found[f"/dev/nvidia{fields['Device Minor']}"] = "" if "?" in uuid else uuid
    return found


def _toolkit(host: Host) -> str | None:
    """The version of the toolkit; None where it is not installed."""
    return _tool_version(host, "nvidia-ctk") or _tool_version(host, "nvidia-container-cli")


def _tool_version(host: Host, name: str) -> str | None:
    """The version that a program tells of itself; None where it is not installed."""
    if not _program(host, name):
        return None
    said = host.run(name, "--version")
    if (found := _VERSION.search(said)) is None:
        raise HostError(f"{name} --version: tells no version: {said[:60]!r}")
    return found[1]


def _program(host: Host, name: str) -> str:
    """Where a program is that is given by its path or its name; empty if it is nowhere."""
    paths = [name] if name.startswith("/") else [f"{folder}/{name}" for folder in _PATH]
    found = (path for path in paths if path.isprintable() and host.state_kind(host.resolve(path)) == "file")
    return next(found, "")


# -- docker


def _docker(host: Host, toolkit: str | Unknown | None) -> str:
    """`ready`, or what docker lacks."""
    data = host.read_bytes(_DAEMON)  # as it is, so that line and column are right
    if not _program(host, "dockerd"):
        return "docker is not installed (no dockerd)"
    if data is None:
        return f"{_DAEMON} is not there, so docker has no nvidia runtime"
    text = data.decode(errors="replace")
    try:
        runtimes = _field(json.loads(text) if text.strip() else {}, "runtimes")  # dockerd takes an empty file
    except json.JSONDecodeError as e:
        return f"{_DAEMON}:{e.lineno}:{e.colno}: {e.msg}: docker does not start with it"
    except (ValueError, RecursionError) as e:
        return f"{_DAEMON}: {e}"
    path = _field(_field(runtimes, "nvidia"), "path")
    if not isinstance(path, str) or not path:
        return f"{_DAEMON} names no runtime nvidia"
    if not (program := _program(host, path)):
        return f"{_DAEMON} names {path[:200]} as the runtime nvidia, which is not there"
    if not _executable(host, program):
        return f"{_DAEMON} names {path[:200]} as the runtime nvidia, which may not be run: it is not executable"
    if isinstance(toolkit, Unknown):
        raise HostError(toolkit.reason)
    return READY if toolkit is not None else "NVIDIA's container toolkit is not installed (no nvidia-ctk)"


def _executable(host: Host, path: str) -> bool:
    """As the kernel would have it: modes, ACLs, mounts that forbid it."""
    try:
        host.run("test", "-x", path)
    except CommandFailed as e:
        if e.status != 1:
            raise
        return False
    return True


# -- CDI: https://github.com/cncf-tags/container-device-interface, SPEC.md, and pkg/cdi as engines use it


class _Spec(NamedTuple):
    """A spec of NVIDIA's GPUs; or a file that is no spec, and why."""

    path: str
    edits: dict[str, Any]  # to a container that gets any of the devices
    devices: dict[str, dict[str, Any]]  # by name (0, 0:1 for MIG, GPU-..., MIG-..., all) further edits
    problem: str = ""
    nvidia: bool = True  # does it speak of NVIDIA's GPUs?


_Specs = Mapping[str, "list[_Spec] | Unknown"]  # by folder
_Gpus = dict[str, str] | Unknown  # UUIDs by device node
_Version = str | Unknown | None


def _cdi_later(host: Host, specs: _Specs, gpus: _Gpus, version: _Version, refresh: str | Unknown | None) -> str:
    """What is judged is today's files. The service writes them anew, for the driver that is loaded by then."""
    if isinstance(refresh, Unknown):
        raise HostError(refresh.reason)
    if refresh == "enabled":
        return _cdi(host, specs, gpus, None)
    later = attempt(driver.later_version, host)
    return _cdi(host, {_LASTING: specs[_LASTING]}, gpus, version if later is None else later)


def _refresh(host: Host) -> str | None:
    """Is the service that writes the spec below /var/run at every boot enabled? None where it is not installed.

    Its .path unit alone does not start it at boot. Newer toolkits have a udev rule that does.
    """
    unit = f"{_REFRESH}.service"
    there = [path for folder in _UNITS if host.exists(path := f"{folder}/{unit}")]
    if not there:
        return None
    written = _OUTPUT.search(host.read(f"/etc/nvidia-container-toolkit/{_REFRESH}.env") or "")
    if host.link(there[0]) == "/dev/null" or (written and not re.match(r"(/var)?/run/cdi/", written[1])):
        return "not enabled"
    rules = [path for folder in _RULES if host.exists(path := f"{folder}/99-{_REFRESH}.rules")]
    wanted = host.glob(f"{_UNITS[0]}/*.wants/{unit}") or [path for path in rules[:1] if host.link(path) != "/dev/null"]
    return "enabled" if wanted else "not enabled"


def _cdi(host: Host, specs_by_folder: _Specs, gpus: _Gpus, version: _Version) -> str:
    """`ready`, or what is wrong with the specs in these folders, for this version of the driver (None: any)."""
    if isinstance(gpus, Unknown):
        raise HostError(gpus.reason)
    files: list[_Spec] = []
    for found in specs_by_folder.values():
        if isinstance(found, Unknown):
            raise HostError(found.reason)
        files += found
    if broken := next((file.problem for file in files if file.problem and file.nvidia), ""):
        return broken
    specs = [file for file in files if not file.problem]
    if not specs:
        also = f" ({files[0].problem})" if files else ""
        return f"no CDI spec in {' or '.join(specs_by_folder)} is of kind {KIND}{also}"
    if not gpus:
        raise HostError("NVIDIA's driver drives no GPU, so there is nothing to compare the CDI specs with")
    if conflict := _conflict(specs):
        return conflict
    taken = {name: spec for spec in specs for name in spec.devices}  # the last folder goes before the others
    nodes: dict[str, None] = {}
    for spec in specs:
        names = [name for name, of in taken.items() if of is spec]
        if wrong := _wrong(host, spec, names, gpus, version) if names else "":
            return wrong
        nodes |= dict.fromkeys(_on_host(node) for node in _paths(_edits(spec, names), "deviceNodes"))
    for what in (sorted(gpus), _CONTROL, _instances(host)):
        if missing := [node for node in what if node not in nodes]:
            hint = f" ({_MAKE_NODES} makes it; then write the spec anew)" if missing[0] in _CONTROL else ""
            return f"no CDI spec names {', '.join(missing)}{hint}"
    return READY


def _conflict(specs: Iterable[_Spec]) -> str:
    """Two specs of one folder that name the same device: no engine takes either."""
    seen: dict[tuple[str, str], str] = {}
    for spec in specs:
        for name in spec.devices:
            other = seen.setdefault((spec.path.rpartition("/")[0], name), spec.path)
            if other != spec.path:
                return f"{other} and {spec.path} both name {KIND}={name}, and engines take neither"
    return ""


def _wrong(host: Host, spec: _Spec, names: Sequence[str], gpus: dict[str, str], version: _Version) -> str:
    """Why a container that is given these devices would not start, or get another GPU than it was told."""
    edits = _edits(spec, names)
    nodes = _paths(edits, "deviceNodes")
    strays = [_on_host(n) for n in nodes if re.fullmatch(r"/dev/nvidia\d+", _on_host(n)) and _on_host(n) not in gpus]
    if all(gpus.values()):
        strays += [name for name in names if name.startswith("GPU-") and name not in gpus.values()]
    if strays:
        return f"{spec.path} names {strays[0]}, which is no GPU of this host"
    files = _paths(edits, "mounts")
    if gone := _gone(host, files):
        return f"{spec.path} brings {gone} into containers, which is not there: made for another driver?"
    if gone := _gone(host, _paths(edits, "hooks")):
        return f"{spec.path} runs {gone} when a container starts, which is not there"
    if gone := _gone(host, nodes):
        hint = f" ({_MAKE_NODES} makes it)" if gone.startswith(_CONTROL) else ""
        return f"{spec.path} names {gone}, which is not there{hint}"
    if isinstance(version, Unknown):
        raise HostError(version.reason)
    others = [file for file in files if version and (of := _LIBRARY.search(file)) and of[1] != version]
    return f"{spec.path} brings {others[0]} into containers, and the driver is {version}" if others else ""


def _gone(host: Host, paths: Sequence[str]) -> str:
    """The first path that does not exist on this host, and how many more; empty where all do."""
    gone = [path for path in paths if not _there(host, path)]
    return (gone[0][:200] + (f" (and {len(gone) - 1} more)" if len(gone) > 1 else "")) if gone else ""


def _there(host: Host, path: str) -> bool:
    return path.startswith("/") and path.isprintable() and host.exists(host.resolve(path))


def _instances(host: Host) -> list[str]:
    """The device nodes of MIG's compute instances: without its own a container cannot use one."""
    found = []
    for path in host.glob(f"{_DRIVER}/capabilities/gpu*/mig/gi*/ci*/access"):
        minor = re.search(r"^DeviceFileMinor:\s*(\d+)$", host.read(path) or "", re.M)
        if minor is None:
            raise HostError(f"{path}: tells no DeviceFileMinor")
        found.append(f"/dev/nvidia-caps/nvidia-cap{minor[1]}")
    return found


def _specs(host: Host, folder: str) -> list[_Spec]:
    """The specs of NVIDIA's GPUs in a folder, and the files that may be one and cannot be read as such."""
    found = []
    for name in host.names(folder):
        path = f"{folder}/{name}"
        if name.endswith((".json", ".yaml")) and host.state_kind(path) != "directory":
            text = (host.read_bytes(path) or b"").decode(errors="replace")
            try:
                document = _parsed(text)
                if _field(document, "kind") == KIND:
                    found.append(_Spec(path, *_checked(document)))
            except ValueError as e:
                found.append(_Spec(path, {}, {}, f"{path}{e}", KIND in text))
    return found


def _parsed(text: str) -> Any:
    """What is in a file; all scalars are text. ValueError where it is no YAML, `: why` or `:line:column: why`."""
    import yaml

    loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    if len(text) > SPEC_LIMIT:
        raise ValueError(f": larger than {SPEC_LIMIT} characters: not what nvidia-ctk writes")
    depth = 0
    event: Any
    try:
        for event in yaml.parse(text, Loader=loader):  # the loader would crash on what is nested deep enough
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH_LIMIT or getattr(event, "anchor", None) is not None:
                line = event.start_mark.line + 1
                raise ValueError(f":{line}: anchors, or nested deeper than {DEPTH_LIMIT}: not what nvidia-ctk writes")
        return yaml.load(text, Loader=loader)  # noqa: S506  # it makes nothing but text, lists and dicts
    except yaml.MarkedYAMLError as e:
        at = f":{e.problem_mark.line + 1}:{e.problem_mark.column + 1}" if e.problem_mark else ""
        raise ValueError(f"{at}: {e.problem}") from e
    except yaml.YAMLError as e:
        raise ValueError(f": {str(e).partition(chr(10))[0]}") from e


def _checked(document: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The edits and devices of a spec. ValueError, `: why`, where engines would not load it."""
    if not re.fullmatch(r"v?\d+\.\d+\.\d+", str(document.get("cdiVersion"))[:20]):
        raise ValueError(": has no cdiVersion, so engines do not load it")
    devices: dict[str, dict[str, Any]] = {}
    for device in _items(document.get("devices")):
        name, edits = _field(device, "name"), _field(device, "containerEdits")
        if not isinstance(name, str) or not _DEVICE.fullmatch(name):
            raise ValueError(": has a device without a valid name, so engines do not load it")
        if name in devices or not isinstance(edits, dict) or not any(edits.values()):
            why = "comes twice" if name in devices else "does nothing to a container"
            raise ValueError(f": its device {name[:60]} {why}, so engines do not load it")
        devices[name] = edits
    if not devices:
        raise ValueError(": names no devices, so engines do not load it")
    return document.get("containerEdits") or {}, devices


def _edits(spec: _Spec, names: Iterable[str]) -> list[dict[str, Any]]:
    return [spec.edits, *(spec.devices[name] for name in names)]


_KEYS = {"deviceNodes": ("hostPath", "path"), "mounts": ("hostPath",), "hooks": ("path",)}


def _paths(edits: Iterable[dict[str, Any]], what: str) -> list[str]:
    """What edits need on this host: device nodes, mounted files, or the programs of hooks; each once."""
    items = (item for each in edits for item in _items(_field(each, what)))
    found = (next((value for key in _KEYS[what] if (value := _field(item, key))), "") for item in items)
    return list(dict.fromkeys(path if isinstance(path, str) else "" for path in found))


def _on_host(node: str) -> str:
    """A device node without the root of a driver in a container: /run/nvidia/driver/dev/nvidia0."""
    return f"/dev/{node.rpartition('/dev/')[2]}"


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


# -- deciding -------------------------------------------------------------------------------------


def decide(facts: Facts, want: Section) -> Goals:
    section = want if isinstance(want, dict) else {"via": want}
    goals = {"gpus": _gpu(facts)}
    if "toolkit" in section:
        version = section["toolkit"].removeprefix(">=").strip()
        op = ">=" if section["toolkit"].startswith(">=") else "=="
        fix = f"Install nvidia-container-toolkit {version}{' or later' if op == '>=' else ''}."
        goals["toolkit"] = looked_at(version, "", fix, op)
    via = section.get("via", "any")
    for way in [via] if isinstance(via, str) else via:
        goals |= _way(facts, way)
    return goals


def suggest(facts: Facts) -> Suggestion:
    gpus, toolkit = facts["gpus"].current, facts["toolkit"].current
    ways = [way for way in ("cdi", "docker") if facts[way] == Fact.fixed(READY)]
    if not isinstance(gpus, int) or not gpus or not ways:
        return Suggestion(None)
    section: dict[str, Any] = {"via": ways}
    if isinstance(toolkit, str) and (number := re.match(r"[0-9]+(\.[0-9]+)+", toolkit)):
        section["toolkit"] = f">={number[0]}"
    return Suggestion(section, {"via": "any, if one of them will do"})


def _gpu(facts: Facts) -> Desired:
    loaded = facts["driver"].current is not None
    why = "NVIDIA's driver drives no GPU on this host" if loaded else "NVIDIA's driver is not loaded"
    fix = "Give the profile a section `gpu: {driver: loaded}`: it tells what is wrong."
    return looked_at(1, f"{why}, so no container can get a GPU.", fix, ">=")


def _way(facts: Facts, way: str) -> dict[str, Desired]:
    if way == "podman":
        return {"podman": _podman(facts["podman"].current)} | _way(facts, "cdi")
    ways = [way]
    if way == "any":
        way = _better(facts)
        ways = ["cdi", "docker"] if way == "cdi" else [way]
    said = " ".join(_sentence(facts[f"{each}/lacks"].current) for each in ways)
    install = "install nvidia-container-toolkit; " if facts["toolkit"].current is None else ""
    fix = _DOCKER_FIX if way == "docker" else _cdi_fix(facts["cdi/refresh"].current)
    return {way: looked_at(READY, said, f"{install}{fix}")}


def _podman(found: Reading) -> Desired:
    means = f"podman is {found}; it knows CDI from 4.1 on." if found else "podman is not installed."
    return looked_at(FIRST_WITH_CDI, means, "Install podman 4.1 or later.", ">=")


def _better(facts: Facts) -> str:
    """Of two ways the one that works now and later; else that which works now; else CDI, which all engines know."""
    both = [via for via in ("docker", "cdi") if facts[via] == Fact.fixed(READY)]
    now = [via for via in ("cdi", "docker") if facts[via].current == READY]
    return next(iter([*both, *now, "cdi"]))


def _cdi_fix(refresh: Reading) -> str:
    if refresh == "enabled":
        return f"systemctl restart {_REFRESH}.service; remove from {_LASTING} what is out of date"
    if refresh == "not enabled":
        return f"systemctl enable --now {_REFRESH}.path {_REFRESH}.service"
    return f"{_GENERATE} (again after each upgrade of the driver)"


def _sentence(reading: Reading) -> str:
    text = reading.reason if isinstance(reading, Unknown) else str(reading)
    return f"{text}." if text.startswith(("/", "podman", "docker")) else f"{text[:1].upper()}{text[1:]}."
