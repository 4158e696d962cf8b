"""System: distribution, kernel, kernel modules, and a clock that is synchronised.

    system:
      os: {id: ubuntu, version: "22.04"}     # of /etc/os-release; version >= allowed: ">=22.04"
      kernel: ">=5.15.0-122"                 # the running kernel, in the distribution's ordering
      modules: {loaded: [vfio_pci], forbidden: [nouveau]}
      clock: synchronised

Kernel: at least this release, in the ordering of rpm-version(7), which also sorts Debian's. Next boot is not
looked at: which kernel that will be is not known before it runs.

Modules: one that is built into the kernel counts as loaded. Next boot: a module comes back if modules-load.d,
/etc/modules or the kernel arguments name it, or if a device has it as its driver (udev loads it again), unless
modprobe.d or the kernel arguments forbid it; one that somebody loaded by hand is `volatile`.

Clock: what the kernel itself says (adjtimex), not whether some daemon runs.

hostprep changes nothing here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from hostprep import bootloader
from hostprep.errors import HostError
from hostprep.host import Host, attempt
from hostprep.model import Desired, Fact, Facts, Goals, Section, Unknown

NAME = "system"

_MODULES = {
    "type": "array",
    "items": {"type": "string", "pattern": r"^[A-Za-z0-9_-]+$(?!\n)"},
    "minItems": 1,
    "uniqueItems": True,
}
_VERSION = {"type": "string", "pattern": r"^(>=)? ?[A-Za-z0-9][^\s]*$(?!\n)"}
SCHEMA = {
    "description": "Distribution, kernel, modules and clock.",
    "type": "object",
    "properties": {
        "os": {
            "type": "object",
            "properties": {
                "id": {"type": "string", "description": "ID in /etc/os-release: debian, ubuntu, rhel, rocky"},
                "version": {**_VERSION, "description": 'VERSION_ID in /etc/os-release: "22.04" or ">=22.04"'},
            },
            "additionalProperties": False,
            "minProperties": 1,
        },
        "kernel": {**_VERSION, "description": 'release of the running kernel: ">=5.15.0-122"'},
        "modules": {
            "type": "object",
            "properties": {"loaded": _MODULES, "forbidden": _MODULES},
            "additionalProperties": False,
            "minProperties": 1,
        },
        "clock": {"const": "synchronised"},
    },
    "additionalProperties": False,
    "minProperties": 1,
}

OS_RELEASE = ("/etc/os-release", "/usr/lib/os-release")
# Read at every boot: what is below /run does not survive one. /lib is not always /usr/lib.
CONFIG_DIRS = ("/etc", "/usr/local/lib", "/usr/lib", "/lib")
LOADED = "loaded"
BUILT_IN = "built-in"
MODULES = "modules"  # the fact that stands for every module when none can be told
_DRIVER_ATTRIBUTES = {"bind", "unbind", "uevent", "module", "new_id", "remove_id"}


def inspect(host: Host) -> Facts:
    os_release = attempt(_os_release, host)
    known = {} if isinstance(os_release, Unknown) else os_release
    unread = os_release if isinstance(os_release, Unknown) else None
    facts = {
        "os/id": Fact.fixed(unread or known.get("ID", "linux")),  # the default of os-release(5)
        "os/version": Fact.fixed(unread or known.get("VERSION_ID")),
        "kernel": Fact.fixed(attempt(host.kernel)),
        "clock": Fact.fixed(attempt(_clock, host)),
    }
    modules = attempt(_modules, host)
    return facts | ({MODULES: Fact.fixed(modules)} if isinstance(modules, Unknown) else modules)


def _modules(host: Host) -> dict[str, Fact]:
    loaded = _loaded(host)
    lasting = _come_back(host, loaded)
    facts = {
        f"module/{name}": Fact(LOADED if name in loaded else None, LOADED if name in lasting else None)
        for name in sorted(loaded | lasting)
    }
    return facts | {f"module/{name}": Fact.fixed(BUILT_IN) for name in sorted(_built_in(host, loaded))}


def decide(facts: Facts, want: Section) -> Goals:
    goals: dict[str, Desired] = {}
    for key, value in want.get("os", {}).items():
        goals[f"os/{key}"] = _version(value)._replace(fix="This profile is for another system.")
    if "kernel" in want:
        goals["kernel"] = _version(want["kernel"])._replace(fix="Install a newer kernel, and boot it.")
    unread = MODULES if MODULES in facts else ""
    for name in (_module(n) for n in want.get("modules", {}).get("loaded", ())):
        built_in = facts.get(f"module/{name}") == Fact.fixed(BUILT_IN)
        goals[f"module/{name}"] = _fixed(BUILT_IN if built_in else LOADED)._replace(
            of=unread,
            means=f"The kernel module {name} is not loaded.",
            fix=f"modprobe {name}, and name it in /etc/modules-load.d/{name}.conf",
        )
    for name in (_module(n) for n in want.get("modules", {}).get("forbidden", ())):
        built_in = facts.get(f"module/{name}") == Fact.fixed(BUILT_IN)
        goals[f"module/{name}"] = _fixed(None)._replace(
            of=unread,
            means=f"The kernel module {name} must not be in the kernel.",
            fix="It is part of this kernel and cannot be unloaded: boot another one."
            if built_in
            else f"modprobe -r {name}, and write 'blacklist {name}' to /etc/modprobe.d/{name}.conf",
        )
    if want.get("clock") == "synchronised":
        goals["clock"] = _fixed("synchronised")._replace(
            means="The kernel's clock is not synchronised: certificates, logs and the cluster's leases depend on it.",
            fix="Start a time service: systemctl enable --now chrony (or systemd-timesyncd).",
        )
    return goals


def _fixed(value: str | None) -> Desired:
    return Desired(value, live=False, persist=False)


def _version(text: str) -> Desired:
    if text.startswith(">="):
        return Desired(text[2:].strip(), op=">=", live=False, persist=False)
    return _fixed(text)


def _module(name: str) -> str:
    """The kernel takes `-` and `_` in module names for the same."""
    return name.replace("-", "_")


def _os_release(host: Host) -> dict[str, str]:
    text = next((text for path in OS_RELEASE if (text := host.read(path)) is not None), None)
    if text is None:
        raise HostError(f"{' and '.join(OS_RELEASE)}: not there")
    settings = re.findall(r"""^\s*([A-Z_]+)=(["']?)(.*)\2\s*$""", text, re.M)
    return {name: value for name, _, value in settings}


def _clock(host: Host) -> str:
    return "synchronised" if host.clock_synchronised() else "not synchronised"


def _loaded(host: Host) -> set[str]:
    """None where the kernel knows no modules at all."""
    text = host.read("/proc/modules")
    if text is None and not host.exists("/sys/module"):
        raise HostError("/proc/modules: not there, and neither is /sys/module")
    return {line.split()[0] for line in (text or "").splitlines()}


def _built_in(host: Host, loaded: set[str]) -> set[str]:
    """Modules that are part of the kernel: modprobe's list where there is one, else those that sysfs shows."""
    text = host.read(f"/lib/modules/{host.kernel()}/modules.builtin")
    if text is None:
        return {_module(name) for name in host.names("/sys/module")} - loaded
    return {_module(line.rpartition("/")[2].partition(".ko")[0]) for line in text.splitlines()}


def _come_back(host: Host, loaded: set[str]) -> set[str]:
    """Modules that the next boot will load again: named somewhere, driving a device, or needed by one of those."""
    arguments = _arguments(host)
    named = {name for key, names in arguments if key.endswith("modules_load") for name in names}
    for text in [host.read("/etc/modules") or "", *_config(host, "modules-load.d")]:
        named |= {
            _module(line.split()[0]) for line in text.splitlines() if line.strip() and line.lstrip()[0] not in "#;"
        }
    # systemd-modules-load and udev leave alone what is blacklisted; the kernel itself, what module_blacklist= names
    forbidden = {name for key, names in arguments if key.endswith("blacklist") for name in names}
    for text in _config(host, "modprobe.d"):
        never = r"^\s*(?:blacklist\s+(\S+)|install\s+(\S+)\s+(?:/usr)?/bin/(?:true|false))\s*$"
        forbidden |= {_module(a or b) for a, b in re.findall(never, text, re.M)}
    lasting = (named | {name for name in loaded if _drives(host, name)}) - forbidden
    users = {name: set(host.names(f"/sys/module/{name}/holders")) for name in loaded}
    while needed := {name for name in loaded - lasting if users[name] & lasting}:
        lasting |= needed
    return lasting


def _drives(host: Host, module: str) -> bool:
    """Has some device this module as its driver? In sysfs a driver has a link to each of its devices."""
    for driver in host.names(f"/sys/module/{module}/drivers"):
        folder = f"/sys/module/{module}/drivers/{driver}"
        if any(host.link(f"{folder}/{name}") for name in host.names(folder) if name not in _DRIVER_ATTRIBUTES):
            return True
    return False


def _arguments(host: Host) -> list[tuple[str, set[str]]]:
    """Kernel arguments that name modules, as `(modules_load, {vfio_pci})`: of the next boot where it is known."""
    boot = bootloader.read(host)
    words = boot.now if isinstance(boot.later, Unknown) else boot.later
    keys = ("modules_load", "rd.modules_load", "modprobe.blacklist", "module_blacklist")
    return [
        (key, {_module(name) for name in word.partition("=")[2].split(",") if name})
        for word in words
        if (key := bootloader.name_of(word)) in keys
    ]


def _config(host: Host, folder: str) -> Iterator[str]:
    """The *.conf files of a configuration folder. A file hides those of its name in later directories."""
    files: dict[str, str] = {}
    for directory in CONFIG_DIRS:
        for name in host.names(f"{directory}/{folder}"):
            if name.endswith(".conf"):
                files.setdefault(name, f"{directory}/{folder}/{name}")
    yield from (host.read(path) or "" for path in files.values())
