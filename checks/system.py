"""System: distribution, kernel, kernel modules, and a clock that is synchronised.

    system:
      os: {id: ubuntu, version: "22.04"}     # of /etc/os-release; version >= allowed: ">=22.04"
      kernel: ">=5.15.0-122"                 # the running kernel, in the distribution's ordering
      modules: {loaded: [vfio_pci], forbidden: [nouveau]}
      clock: synchronised

Kernel: at least this release, in the ordering of deb-version(7), which also sorts RHEL's. Next boot is not
looked at: which kernel that will be is not known before it runs.

Modules: one that is built into the kernel counts as loaded. Next boot: a module comes back if modules-load.d,
/etc/modules or the kernel arguments name it, or if a device has it as its driver (udev loads it again); one that
somebody loaded by hand is `volatile`.

Clock: what the kernel itself says (adjtimex), not whether some daemon runs.

hostprep changes nothing here.
"""

from __future__ import annotations

import re

from hostprep.errors import HostError
from hostprep.host import Host, attempt
from hostprep.model import Desired, Fact, Facts, Goals, Section

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

LOAD_DIRS = ("/etc/modules-load.d", "/run/modules-load.d", "/usr/local/lib/modules-load.d", "/usr/lib/modules-load.d")
BLACKLIST_DIRS = (
    "/etc/modprobe.d",
    "/run/modprobe.d",
    "/usr/local/lib/modprobe.d",
    "/usr/lib/modprobe.d",
    "/lib/modprobe.d",
)
LOADED = "loaded"
BUILT_IN = "built-in"


def inspect(host: Host) -> Facts:
    os_release = _os_release(host)
    facts = {
        "os/id": Fact.fixed(os_release.get("ID")),
        "os/version": Fact.fixed(os_release.get("VERSION_ID")),
        "kernel": Fact.fixed(attempt(host.kernel)),
        "clock": Fact.fixed(attempt(_clock, host)),
    }
    loaded = _loaded(host)
    lasting = _come_back(host, loaded)
    for name in _built_in(host):
        facts[f"module/{name}"] = Fact.fixed(BUILT_IN)
    for name in sorted({*loaded, *lasting}):
        facts[f"module/{name}"] = Fact(LOADED if name in loaded else None, LOADED if name in lasting else None)
    return facts


def decide(facts: Facts, want: Section) -> Goals:
    goals: dict[str, Desired] = {}
    for key, value in want.get("os", {}).items():
        goals[f"os/{key}"] = _version(value)._replace(fix="This profile is for another system.")
    if "kernel" in want:
        goals["kernel"] = _version(want["kernel"])._replace(fix="Install a newer kernel, and boot it.")
    for name in (_module(n) for n in want.get("modules", {}).get("loaded", ())):
        built_in = facts.get(f"module/{name}") == Fact.fixed(BUILT_IN)
        goals[f"module/{name}"] = _fixed(BUILT_IN if built_in else LOADED)._replace(
            means=f"The kernel module {name} is not loaded.",
            fix=f"modprobe {name}, and name it in /etc/modules-load.d/{name}.conf",
        )
    for name in (_module(n) for n in want.get("modules", {}).get("forbidden", ())):
        goals[f"module/{name}"] = _fixed(None)._replace(
            means=f"The kernel module {name} must not be in the kernel.",
            fix=f"modprobe -r {name}, and write 'blacklist {name}' to /etc/modprobe.d/{name}.conf",
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
    text = host.read("/etc/os-release") or host.read("/usr/lib/os-release") or ""
    pairs = (line.partition("=") for line in text.splitlines() if not line.startswith("#"))
    return {name: value.strip("\"'") for name, equals, value in pairs if equals}


def _clock(host: Host) -> str:
    return "synchronised" if host.clock_synchronised() else "not synchronised"


def _loaded(host: Host) -> set[str]:
    return {line.split()[0] for line in (host.read("/proc/modules") or "").splitlines() if line}


def _built_in(host: Host) -> list[str]:
    """Modules that are part of the kernel (T17): modprobe's list where there is one, else those that sysfs shows."""
    try:
        text = host.read(f"/lib/modules/{host.kernel()}/modules.builtin")
    except HostError:
        text = None
    if text is not None:
        return sorted({_module(line.rpartition("/")[2].partition(".ko")[0]) for line in text.splitlines()})
    loaded = _loaded(host)
    return sorted({_module(name) for name in host.names("/sys/module")} - loaded)


def _come_back(host: Host, loaded: set[str]) -> set[str]:
    """Modules that the next boot will load again: named somewhere, driving a device, or needed by one of those."""
    named = set()
    for path in ["/etc/modules", *(f"{folder}/{name}" for folder in LOAD_DIRS for name in host.names(folder))]:
        lines = (host.read(path) or "").splitlines()
        named |= {_module(line.split()[0]) for line in lines if line.strip() and line.lstrip()[0] not in "#;"}
    for word in re.findall(r"modules[-_]load=(\S+)", host.read("/proc/cmdline") or ""):
        named |= {_module(name) for name in word.split(",")}
    driving = {name for name in loaded if host.names(f"/sys/module/{name}/drivers")} - _blacklisted(host)
    lasting = named | driving
    users = {name: set(host.names(f"/sys/module/{name}/holders")) for name in loaded}
    while needed := {name for name in loaded - lasting if users[name] & lasting}:
        lasting |= needed
    return lasting


def _blacklisted(host: Host) -> set[str]:
    names = set()
    for folder in BLACKLIST_DIRS:
        for file in host.names(folder):
            if file.endswith(".conf"):
                for match in re.finditer(r"^\s*blacklist\s+(\S+)", host.read(f"{folder}/{file}") or "", re.M):
                    names.add(_module(match[1]))
    return names
