"""Kernel arguments: what this kernel was booted with, and what the entry that will boot next has.

    kernel_args: [intel_iommu=on, iommu=pt]
    kernel_args:
      set: [intel_iommu=on, iommu=pt]
      unset: [nomodeset]

Now is /proc/cmdline. Next boot is the entry that GRUB will really start: the generated grub.cfg (with
next_entry, saved_entry and submenus), or the BLS entry with its kernelopts. /etc/default/grub is not read:
it says what somebody meant.

A parameter must have the value that is asked for and no other one beside it: a second `intel_iommu=off`
is a failure, since the kernel takes one of the two. Parameters that are meant to be repeated (console, pci,
ip, memmap, rd.* and their like) are looked for word by word. hugepages, hugepagesz and default_hugepagesz
are one setting, in order: the kernel reads them by position and the first wins. A reservation that leaves the
host too little memory to boot is refused. The `hugepages` check does all this better.

To the kernel, `-` and `_` in a name are the same. To others that read its command line they are not
(cloud-init=disabled), so a name with `-` is looked for, and written, as it is spelled here.

apply writes a file of hostprep's own, /etc/default/grub.d/zz-hostprep-kernel_args.cfg, that takes these
parameters out of all other sources and adds them, then makes grub.cfg anew; where GRUB's script reads no such
directory, a block at the end of /etc/default/grub; on BLS systems, every entry but the rescue one, kernelopts
and /etc/kernel/cmdline. They take effect at the next boot. The recovery entry does not get them. What counts is
the generated entry, read back: if it does not have them, everything is put back.

An unknown boot loader is `unknown`, and nothing is written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hostprep import bootloader, hugetlb
from hostprep.host import Host
from hostprep.model import Change, Desired, Fact, Facts, Goals, Reading, Section, Suggestion, Unknown, Value

NAME = "kernel_args"
MOVING = ("root", "resume")
GENERATED = bootloader.GRUB_CFGS
finish = bootloader.regenerate

# Parameters that are meant to stand more than once: each word of them is a setting of its own.
REPEATED = (
    *("console", "earlycon", "earlyprintk", "ip", "pci", "memmap", "module_blacklist", "modprobe.blacklist"),
    *("dyndbg", "nameserver", "acpi_osi", "systemd.mask", "systemd.wants", "systemd.setenv"),
    *("crashkernel", "video", "ifname", "vlan", "bond"),
)
_WORD = r'[^\s"=\x00-\x1f]+=[^"\x00-\x1f]*'
_NAME = r'[^\s"=\x00-\x1f]+'
_WORDS = {
    "type": "array",
    "items": {
        "type": "string",
        "pattern": f"^({_NAME}|{_WORD})$(?!\\n)",
        "description": "one kernel argument, NAME or NAME=VALUE",
    },
    "minItems": 1,
    "uniqueItems": True,
}
_UNWANTED = {
    **_WORDS,
    "items": {
        "type": "string",
        "pattern": f'^({_NAME}|({"|".join(REPEATED)}|rd[.]{_NAME})=[^"\\x00-\\x1f]*)$(?!\\n)',
        "description": "the NAME of a parameter, or NAME=VALUE of one that may be repeated (console, pci, ...)",
    },
}
SCHEMA = {
    "description": "Kernel arguments of the running kernel and of the next boot.",
    "anyOf": [
        _WORDS,
        {
            "type": "object",
            "properties": {
                "set": {**_WORDS, "description": "arguments to have, in this order"},
                "unset": {**_UNWANTED, "description": "parameters not to have"},
            },
            "additionalProperties": False,
            "minProperties": 1,
        },
    ],
}

_HUGEPAGES = "hugepages"
_ENTRY = "boot/entry"
_TOTAL = "boot/total-memory"
_PAGE_SIZE = "boot/page-size"  # in KiB, of huge pages of which the arguments do not say it


def inspect(host: Host) -> Facts:
    boot = bootloader.read(host)
    now = _settings(boot.now)
    facts: dict[str, Fact] = {}
    later: dict[str, Value] = {} if isinstance(boot.later, Unknown) else _settings(boot.later)
    for key in sorted({*now, *later}):
        reading: Reading = boot.later if isinstance(boot.later, Unknown) else later.get(key)
        facts[key] = Fact(now.get(key), reading)
    if isinstance(boot.later, Unknown):
        facts["*"] = Fact(None, boot.later)  # parameters that are in neither
    facts[_ENTRY] = Fact(None, boot.later) if isinstance(boot.later, Unknown) else Fact.fixed(boot.entry)
    memory = _meminfo(host)
    booted = hugetlb.asked(boot.now, usual_default=0).default
    facts[_TOTAL] = Fact.fixed(memory["MemTotal"] * 1024 if "MemTotal" in memory else None)
    facts[_PAGE_SIZE] = Fact.fixed(memory.get("Hugepagesize", 2048) if booted is None else 2048)
    return facts


def _meminfo(host: Host) -> dict[str, int]:
    """/proc/meminfo, in KiB."""
    fields = (line.split() for line in (host.read("/proc/meminfo") or "").splitlines())
    return {f[0].rstrip(":"): int(f[1]) for f in fields if len(f) >= 2 and f[1].isdecimal()}


def _settings(words: Sequence[str]) -> dict[str, Value]:
    """Each parameter with its value: text, True for a bare word, a tuple where it stands more than once.

    `-` and `_` in a name are one to the kernel, but not to all that read its command line (cloud-init=disabled):
    a name with `-` is found under both. A word of a parameter that may be repeated is also found by itself.
    """
    values: dict[str, list[str | bool]] = {}
    also: dict[str, str] = {}
    found: dict[str, Value] = {}
    for word in words:
        spelled, equals, value = word.partition("=")
        name = bootloader.name_of(word)
        if name in hugetlb.NAMES:
            continue
        values.setdefault(name, []).append(value if equals else True)
        also[spelled] = name
        if _repeated(name) and equals:
            found[word] = True
    found |= {name: _one_or_all(v) for name, v in values.items()}
    found |= {spelled: found[name] for spelled, name in also.items()}
    if pages := tuple(word for word in words if bootloader.name_of(word) in hugetlb.NAMES):
        found[_HUGEPAGES] = pages
    return found


def _one_or_all(values: list[str | bool]) -> Value:
    return values[0] if len(values) == 1 else tuple("" if v is True else str(v) for v in values)


def _repeated(name: str) -> bool:
    return name in REPEATED or name.startswith("rd.")


def decide(facts: Facts, want: Section) -> Goals:
    wanted, unwanted = (want, []) if isinstance(want, list) else (want.get("set", []), want.get("unset", []))
    given = _settings(wanted)
    values: dict[str, Value] = {key: given[key] for key in map(_key, wanted)}
    values |= {_key(word if "=" in word else bootloader.name_of(word)): None for word in unwanted}
    refused = _refused(facts, wanted)
    return {
        key: Desired(
            value,
            live=False,
            refused_next=refused if key == _HUGEPAGES else "",
            means=refused if key == _HUGEPAGES else "",
            fix=_TOO_MANY if refused and key == _HUGEPAGES else _ELSEWHERE,
        )
        for key, value in values.items()
    }


# What a cluster asks of a kernel. Of all others some name this machine (root, ip), some may be secrets (rd.iscsi.*).
_PORTABLE = re.compile(
    r"(intel|amd)_iommu|iommu(\..+)?|vfio.*|pci|pcie_(aspm|acs_override|ports)|swiotlb|pci_hole\w*"
    r"|isolcpus|nohz(_full)?|rcu_nocbs|rcu_nocb_poll|irqaffinity|kthread_cpus|nosmt|nosoftlockup|nmi_watchdog|skew_tick"
    r"|tsc|clocksource|hpet|idle|cpuidle\.\w+|(processor|intel_idle)\.max_cstate|(intel|amd)_pstate|cpufreq\.\w+"
    r"|mitigations|spectre_v2|transparent_hugepage|numa_balancing|cma|hugetlb_cma|preempt|mce"
    r"|selinux|apparmor|lsm|audit|cgroup_(enable|disable)|swapaccount|systemd\.unified_cgroup_hierarchy"
    r"|(modprobe\.|module_|rd\.driver\.)blacklist|nouveau\.\w+|nvidia.*|mlx[45]_\w+\..+|kvm.*"
)


def suggest(facts: Facts) -> Suggestion:
    """The arguments that a sibling wants, too; what names this machine is none."""
    lasting = {key: fact.current for key, fact in facts.items() if fact == Fact.fixed(fact.current)}
    words: list[str] = []
    left: list[str] = []
    for key, value in lasting.items():
        name, _, rest = key.partition("=")
        plain = bootloader.name_of(name)
        spelled = any(k != key and "-" in k and bootloader.name_of(k) == key for k in facts)
        if value is None or isinstance(value, Unknown) or "/" in key or key == _HUGEPAGES or spelled:
            continue
        if not rest and _repeated(plain) and value is not True:
            continue  # each word of it is a setting of its own
        if _PORTABLE.fullmatch(plain):
            words += _words(key, value)
        else:
            left.append(name)
    notes = {"": f"Left out, by name: {', '.join(dict.fromkeys(left))}."} if left else {}
    return Suggestion(words or None, notes)


def _key(word: str) -> str:
    """The setting that a word of a profile is about, spelled as it is there: that is what gets written."""
    name = bootloader.name_of(word)
    if name in hugetlb.NAMES:
        return _HUGEPAGES
    return word if _repeated(name) else word.partition("=")[0]


_TOO_MANY = "Ask for fewer pages."
_ELSEWHERE = "Look at where this host gets its kernel arguments from: its hypervisor, PXE server or boot loader."


def _refused(facts: Facts, wanted: Sequence[str]) -> str:
    """K8 on the machine of K1: a reservation that leaves the host nothing to boot with."""
    total, page_size = facts[_TOTAL].current, facts[_PAGE_SIZE].current
    assert isinstance(page_size, int)
    pools = hugetlb.asked(wanted, usual_default=page_size).bytes()
    if pools and not isinstance(total, int):
        return "huge pages are asked for, and how much memory this host has cannot be read (/proc/meminfo)"
    return hugetlb.starves(pools, total, hugetlb.floor(total)) if pools and isinstance(total, int) else ""


def apply(host: Host, changes: Sequence[Change]) -> None:
    settings: dict[str, tuple[str, ...]] = {}
    for change in changes:
        if change.key == _HUGEPAGES:
            settings |= dict.fromkeys(hugetlb.NAMES, ())
        settings[change.key] = _words(change.key, change.after)
    bootloader.put(host, NAME, settings)


def _words(key: str, value: Value) -> tuple[str, ...]:
    if value is None:
        return ()
    if key == _HUGEPAGES:
        return value if isinstance(value, tuple) else (str(value),)
    if value is True:
        return (key,)
    return tuple(f"{key}={v}" for v in (value if isinstance(value, tuple) else (value,)))
