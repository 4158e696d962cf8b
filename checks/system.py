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
from typing import Any

from hostprep.errors import HostError
from hostprep.host import Host, attempt
from hostprep.model import Desired, Fact, Facts, Goals, Section, Suggestion, Unknown

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
LOADED = "loaded"
BUILT_IN = "built-in"
MODULES = "modules"  # the fact that stands for every module when none can be told


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
    from hostprep import kmod  # here, in the child: the checks look at once, and start-up is not theirs to share

    loaded = set(kmod.modules(host))
    lasting = kmod.come_back(host, loaded, _autoloaded(host))
    facts = {
        f"module/{name}": Fact(LOADED if name in loaded else None, LOADED if name in lasting else None)
        for name in sorted(loaded | lasting)
    }
    return facts | {f"module/{name}": Fact.fixed(BUILT_IN) for name in sorted(kmod.built_in(host, loaded))}


def _autoloaded(host: Host) -> set[str]:
    """What udev would load for the devices on the PCI bus, though somebody may have unloaded it now."""
    from hostprep import kmod, pci

    paths = (f"{pci.DEVICES}/{address}/modalias" for address in host.names(pci.DEVICES))
    return kmod.autoloaded(host, host.kernel(), [host.read(path) or "" for path in paths])


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


def suggest(facts: Facts) -> Suggestion:
    now = {key: fact.current for key, fact in facts.items()}
    section: dict[str, Any] = {}
    notes = {}
    release = {key: now[f"os/{key}"] for key in ("id", "version") if isinstance(now[f"os/{key}"], str)}
    if release:
        section["os"] = release
    kernel = now["kernel"]
    if isinstance(kernel, str) and (number := re.match(r"[0-9]+(\.[0-9]+)*(-[0-9]+)?(?![0-9])", kernel)):
        section["kernel"] = f">={number[0]}"
        notes["kernel"] = f"this host runs {kernel}"
    if now["clock"] == "synchronised":
        section["clock"] = "synchronised"
    return Suggestion(section or None, notes)


def _fixed(value: str | None) -> Desired:
    return Desired(value, live=False, persist=False)


def _version(text: str) -> Desired:
    if text.startswith(">="):
        return Desired(text[2:].strip(), op=">=", live=False, persist=False)
    return _fixed(text)


def _module(name: str) -> str:
    from hostprep import kmod

    return kmod.module(name)


def _os_release(host: Host) -> dict[str, str]:
    text = next((text for path in OS_RELEASE if (text := host.read(path)) is not None), None)
    if text is None:
        raise HostError(f"{' and '.join(OS_RELEASE)}: not there")
    settings = re.findall(r"""^\s*([A-Z_]+)=(["']?)(.*)\2\s*$""", text, re.M)
    return {name: value for name, _, value in settings}


def _clock(host: Host) -> str:
    return "synchronised" if host.clock_synchronised() else "not synchronised"
