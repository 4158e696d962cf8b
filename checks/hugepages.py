"""Huge pages: how many there are of each size, on which NUMA node, and how many the next boot will ask for.

    hugepages: {1GiB: 32}                    # at least, on the whole host
    hugepages: {1GiB: {0: 16, 1: 16}}        # at least, on each NUMA node
    hugepages:
      1GiB: 32
      2MiB: 0              # exactly none
      default: 1GiB        # the size that mmap and /dev/hugepages use when nothing is said
      free: all            # nobody uses any yet: all free, none reserved, no surplus
      keep: 8GiB           # what must be left to the host (default: 4 GiB or a tenth, the larger)
      mounts: {1GiB: /dev/hugepages1G}

Now is /sys/kernel/mm/hugepages and /sys/devices/system/node. Next boot is what the kernel will make of the
arguments of the entry that will boot (by position, the first wins), overruled by what systemd writes later:
sysctl.d (vm.nr_hugepages, the default size only), then tmpfiles.d. Kernels before 5.16 take
counts by node (hugepages=0:16) for 0; how many pages of 1 GiB they make beside hugetlb_cma= is unknown.

A reservation that would leave the host less than `keep` is refused before it is written, for now and for the
next boot: 32 pages of 1 GiB on a machine of 32 GB make a host that does not boot. `host-memory` shows what is
left, whoever made the reservation. A NUMA node keeps 512 MiB or a tenth, the larger. Neither apply nor revert takes
pages from a running host that would then have less than 512 MiB available.

apply writes nr_hugepages, reads back what the kernel granted, makes it compact memory and tries again while that
helps. For the next boot it uses kernel arguments (for 1 GiB the only way that does not depend on luck), and
a tmpfiles.d line for counts per node, where a sysctl would overrule the arguments, or where the boot loader is
unknown. 1 GiB pages need the CPU flag pdpe1gb. Nothing is mounted on top of another mount, of a link or of files.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hostprep import bootloader, hugetlb, versions
from hostprep.errors import ChangeFailed, HostError
from hostprep.host import Host, attempt
from hostprep.model import Change, Desired, Facet, Fact, Facts, Goals, Reading, Section, Suggestion, Unknown, Value
from hostprep.quantities import BYTES_PATTERN, PAGE_SIZE_PATTERN, page_size_kib, parse_bytes, show_bytes, show_page_size
from hostprep.units import unit_name

NAME = "hugepages"
MOVING = ("memory/available",)
GENERATED = bootloader.GRUB_CFGS
finish = bootloader.regenerate

_COUNT = {"type": "integer", "minimum": 0}
_SIZE = {"type": "string", "pattern": PAGE_SIZE_PATTERN}
# Of a pool one spelling a size (1GiB, not 1024MiB), so that no profile asks twice for the same pages.
_POOL_PATTERN = r"^([1-9][0-9]{0,2}(KiB|MiB)|[1-9][0-9]*GiB)$(?!\n)"
# As /proc/self/mounts and a unit's Where= have it too: nothing that either would escape, no `//`, `.` or `..`.
_WHERE_PATTERN = r"^(/(?!\.{1,2}(/|$))[^\s\x00-\x1f/%#\\]+)+$(?!\n)"
SCHEMA = {
    "description": "Huge pages by size (1GiB, 2MiB, ...), on the whole host or per NUMA node.",
    "type": "object",
    "properties": {
        "default": {**_SIZE, "description": "the default page size, such as 1GiB"},
        "free": {"const": "all", "description": "nobody uses any page yet"},
        "keep": {
            "type": ["string", "integer"],
            "pattern": BYTES_PATTERN,
            "description": "memory left to the host, such as 4GiB",
        },
        "mounts": {
            "description": "where hugetlbfs is mounted, by page size",
            "type": "object",
            "patternProperties": {PAGE_SIZE_PATTERN: {"type": "string", "pattern": _WHERE_PATTERN}},
            "additionalProperties": False,
        },
    },
    "patternProperties": {
        _POOL_PATTERN: {
            "description": "a number of pages, or numbers by NUMA node: {0: 16, 1: 16}",
            "anyOf": [
                _COUNT,
                {
                    "type": "object",
                    "patternProperties": {r"^[0-9]+$(?!\n)": _COUNT},
                    "additionalProperties": False,
                    "minProperties": 1,
                },
            ],
        }
    },
    "additionalProperties": False,
}

POOLS = "/sys/kernel/mm/hugepages"
NODES = "/sys/devices/system/node"
TMPFILES = "/etc/tmpfiles.d/hostprep-hugepages.conf"
# Where systemd looks, first to last, without /run, which does not survive a reboot. /lib is not always /usr/lib.
TMPFILES_DIRS = ("/etc/tmpfiles.d", "/usr/local/lib/tmpfiles.d", "/usr/lib/tmpfiles.d", "/lib/tmpfiles.d")
SYSCTL_DIRS = ("/etc/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d")
PROC_POOLS = ("/proc/sys/vm/nr_hugepages",)  # of the default size
SYSCTLS = ("vm.nr_hugepages", "vm.nr_hugepages_mempolicy")
_POOL = rf"({POOLS}|{NODES}/node\d+/hugepages)/hugepages-\d+kB/nr_hugepages"
COUNTERS = {"free": "free_hugepages", "reserved": "resv_hugepages", "surplus": "surplus_hugepages"}
UNITS = "/etc/systemd/system"
PACKAGED_UNITS = ("/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
MOUNT_UNIT = """\
# Written by hostprep (check hugepages); `hostprep revert` takes it back.
[Unit]
Description=Huge pages of {size}

[Mount]
What=hugetlbfs
Where={where}
Type=hugetlbfs
Options=pagesize={size}

[Install]
WantedBy=local-fs.target
"""
GROW_S = 30.0  # how long apply keeps asking the kernel for pages that it has not granted yet
ARCH_DEFAULT = 2048  # KiB
FLAGS = {1024 * 1024: "pdpe1gb", 2048: "pse"}  # x86; arm64 has no flags for it


# -- looking --------------------------------------------------------------------------------------


def inspect(host: Host) -> Facts:
    memory = _meminfo(host)
    boot = attempt(bootloader.read, host)
    later = _next_boot(host, boot, memory)
    here = _sizes(host)
    facts: dict[str, Fact] = {}
    for kib in sorted({*here, *later.sizes()}):
        size = show_page_size(kib)
        if kib not in here:  # a pool that the next boot makes
            facts[size] = Fact(None, hugetlb.reading(later, kib, None))
            continue
        pool = f"{POOLS}/hugepages-{kib}kB"
        facts[size] = Fact(attempt(host.number, f"{pool}/nr_hugepages"), hugetlb.reading(later, kib, None))
        for name, file in COUNTERS.items():
            facts[f"{size}/{name}"] = Fact.fixed(attempt(host.number, f"{pool}/{file}"))
        for node in _nodes(host):
            count = attempt(host.number, _node_pool(node, kib))
            facts[f"{size}/node{node}"] = Fact(count, hugetlb.reading(later, kib, node))
    facts |= _memory_facts(host, memory, facts, later)
    facts["default"] = _default_size(memory, boot)
    facts |= _mounts(host, facts["default"])
    for kib, flag in FLAGS.items():
        facts[f"cpu/{show_page_size(kib)}"] = Fact.fixed(_cpu_offers(host, kib, flag))
    return facts


def _next_boot(host: Host, boot: bootloader.Boot | Unknown, memory: Mapping[str, int]) -> hugetlb.Later:
    """Kernel arguments first; then systemd-sysctl and systemd-tmpfiles write over them."""
    words = boot if isinstance(boot, Unknown) else boot.later
    later = hugetlb.Later({}, {}, _otherwise(host, words))
    default = _next_default(memory, boot)
    nodes = _nodes(host)
    if not isinstance(words, Unknown):
        lists = attempt(_node_lists, host)
        unsure = lists.reason if isinstance(lists, Unknown) else ""
        asked = hugetlb.asked(words, default, nodes, node_lists=bool(unsure or lists))
        hugetlb.ask(later, asked, unsure, hugetlb.from_cma(words))
    if (ruled := _sysctl(host)) is not None:
        hugetlb.rule(later, default, ruled)
    written = _tmpfiles(host)
    for path, count in written.items():
        if not path.startswith(NODES):
            hugetlb.rule(later, default if path in PROC_POOLS else _kib_of(path), count)
    for path, count in written.items():
        if path.startswith(NODES):
            hugetlb.rule_node(later, _kib_of(path), _node_of(path), count)
    for kib in {kib for kib, node in later.pages if node is not None}:
        hugetlb.add_up(later, kib, nodes)
    for kib in later.sizes() & FLAGS.keys():
        if not _cpu_offers(host, kib, FLAGS[kib]):  # the kernel ignores such a size
            hugetlb.drop(later, kib)
    return later


def _node_lists(host: Host) -> bool:
    """Does the kernel know `hugepages=NODE:N`? Upstream does since 5.16; some distributions take such things back."""
    release = host.kernel()
    if versions.compare(release, "5.16") >= 0:
        return True
    if re.search(r"\.el[89]|-default$", release):  # RHEL and its like, SLES
        raise HostError(f"whether the kernel {release} knows counts by node (hugepages=NODE:N) cannot be told")
    return False


def _otherwise(host: Host, words: tuple[str, ...] | Unknown) -> int | Unknown | None:
    if not isinstance(words, Unknown):
        return 0
    try:
        grub = any(host.exists(cfg) for cfg in bootloader.GRUB_CFGS)
    except HostError:
        return words
    return words if grub else None  # GRUB is there and cannot be read: what it asks for is not known


def _meminfo(host: Host) -> dict[str, int]:
    """/proc/meminfo, in KiB."""
    fields = (line.split() for line in (host.read("/proc/meminfo") or "").splitlines())
    return {f[0].rstrip(":"): int(f[1]) for f in fields if len(f) >= 2 and f[1].isdigit()}


def _sizes(host: Host) -> list[int]:
    return sorted(_kib_of(path) for path in host.glob(f"{POOLS}/hugepages-*kB"))


def _kib_of(path: str) -> int:
    return int(path.partition("hugepages-")[2].partition("kB")[0])


def _nodes(host: Host) -> list[int]:
    return sorted(int(path.rpartition("node")[2]) for path in host.glob(f"{NODES}/node[0-9]*"))


def _node_of(path: str) -> int:
    return int(path.removeprefix(f"{NODES}/node").partition("/")[0])


def _node_pool(node: int, kib: int) -> str:
    return f"{NODES}/node{node}/hugepages/hugepages-{kib}kB/nr_hugepages"


def _memory_facts(host: Host, memory: Mapping[str, int], pools: Facts, later: hugetlb.Later) -> dict[str, Fact]:
    """Memory in bytes: of the host, of each node, available now, and what huge pages leave of it."""
    if "MemTotal" not in memory:
        gone = Fact.fixed(Unknown("/proc/meminfo: no MemTotal"))
        return {"memory/total": gone, "memory/available": gone, "host-memory": gone}
    total = memory["MemTotal"] * 1024
    held = [(kib * 1024, pools[show_page_size(kib)].current) for kib in _sizes(host)]
    unread = next((count for _, count in held if isinstance(count, Unknown)), None)
    now: Reading = unread or total - sum(size * count for size, count in held if isinstance(count, int))
    asked = sum(kib * 1024 * count for (kib, node), count in later.pages.items() if node is None)
    facts = {
        "memory/total": Fact.fixed(total),
        "memory/available": Fact.fixed(memory.get("MemAvailable", 0) * 1024),
        "host-memory": Fact(now, _left_next(later, total - asked, now)),
    }
    for node in _nodes(host):
        if found := re.search(r"MemTotal:\s+(\d+) kB", host.read(f"{NODES}/node{node}/meminfo") or ""):
            facts[f"memory/node{node}"] = Fact.fixed(int(found[1]) * 1024)
    return facts


def _left_next(later: hugetlb.Later, left: int, now: Reading) -> Reading:
    if isinstance(later.otherwise, Unknown):
        return later.otherwise
    return left if later.pages or later.otherwise is not None else now


def _next_default(memory: Mapping[str, int], boot: bootloader.Boot | Unknown) -> int:
    """The default page size of the next boot in KiB, as far as it can be told."""
    now = memory.get("Hugepagesize", ARCH_DEFAULT)
    if isinstance(boot, Unknown) or isinstance(boot.later, Unknown):
        return now
    wanted = hugetlb.asked(boot.later, 0).default
    # Nothing asked for: the architecture's own, which is today's unless this boot was told another one.
    return wanted or (now if hugetlb.asked(boot.now, 0).default is None else ARCH_DEFAULT)


def _default_size(memory: Mapping[str, int], boot: bootloader.Boot | Unknown) -> Fact:
    now: Reading = show_page_size(memory["Hugepagesize"]) if "Hugepagesize" in memory else None
    if isinstance(boot, Unknown):
        return Fact(now, boot)
    if isinstance(boot.later, Unknown):
        return Fact(now, boot.later)
    if now is None and hugetlb.asked(boot.later, 0).default is None:
        return Fact(now, now)
    return Fact(now, show_page_size(_next_default(memory, boot)))


def _mounts(host: Host, default: Fact) -> dict[str, Fact]:
    """The page size of every hugetlbfs, by where it is mounted: now, and by fstab or a mount unit at the next boot."""
    now: dict[str, Reading] = {}
    for where, kind, options in _mounted(host):  # the last one of a place is on top
        if kind == "hugetlbfs":
            now[where] = _mount_size(options, default.current)
        elif where in now:
            now[where] = kind
    later = {where: _mount_size(options, default.next_boot) for where, options in _mounts_at_boot(host)}
    return {f"mount{where}": Fact(now.get(where), later.get(where)) for where in sorted({*now, *later})}


def _mounted(host: Host) -> list[tuple[str, str, str]]:
    """Where, of which type and with which options, in the order that it was mounted."""
    lines = (line.split() for line in (host.read("/proc/self/mounts") or "").splitlines())
    return [(fields[1], fields[2], fields[3]) for fields in lines if len(fields) >= 4]


def _mount_size(options: str, default: Reading) -> Reading:
    """The page size by mount options, of which the last counts. None: the kernel would refuse them."""
    sizes = [value for name, _, value in (o.partition("=") for o in options.split(",")) if name == "pagesize"]
    if not sizes:
        return default
    kib = hugetlb.size_kib(sizes[-1])
    return None if kib is None else show_page_size(kib)


def _mounts_at_boot(host: Host) -> list[tuple[str, str]]:
    """Where and with which options. Of units of one name the admin's hides fstab's, and that hides a package's."""
    units: dict[str, tuple[str, str, str] | None] = {}
    for folder in PACKAGED_UNITS[::-1]:
        units |= _mount_units(host, folder)
    fstab = {unit_name(line[0], "mount"): line for line in _fstab(host)}
    units |= fstab
    units |= _mount_units(host, UNITS)
    return [
        (unit[0], unit[2])
        for name, unit in units.items()
        if unit and unit[1] == "hugetlbfs" and unit_name(unit[0], "mount") == name  # systemd refuses other names
        if name in fstab or _is_wanted(host, name)
    ]


def _mount_units(host: Host, folder: str) -> dict[str, tuple[str, str, str] | None]:
    """Where, type and options of the mount units in a directory, by name; None of one that is masked."""
    units: dict[str, tuple[str, str, str] | None] = {}
    for name in host.names(folder):
        if not name.endswith(".mount"):
            continue
        text = host.read(f"{folder}/{name}") if host.link(f"{folder}/{name}") != "/dev/null" else None
        unit = {key.strip(): value.strip() for key, _, value in (ln.partition("=") for ln in (text or "").splitlines())}
        units[name] = (_plain(unit.get("Where", "")), unit.get("Type", ""), unit.get("Options", "")) if text else None
    return units


def _is_wanted(host: Host, unit: str) -> bool:
    kinds = ("wants", "requires")
    return any(host.glob(f"{folder}/*.{kind}/{unit}") for folder in (UNITS, *PACKAGED_UNITS) for kind in kinds)


def _fstab(host: Host) -> Iterator[tuple[str, str, str]]:
    """Where, type and options of what fstab mounts at boot."""
    for line in (host.read("/etc/fstab") or "").splitlines():
        fields = line.split()
        if len(fields) >= 4 and not fields[0].startswith("#") and "noauto" not in fields[3].split(","):
            yield _plain(fields[1]), fields[2], fields[3]


def _plain(where: str) -> str:
    """A path as systemd simplifies it: `/mnt//huge/` is `/mnt/huge`."""
    return "/" + "/".join(part for part in where.split("/") if part not in ("", "."))


def _sysctl(host: Host) -> int | None:
    """vm.nr_hugepages as systemd-sysctl will leave it; /etc/sysctl.conf counts where a link in sysctl.d leads there."""
    count = None
    for path in _drop_ins(host, SYSCTL_DIRS):
        for line in (host.read(path) or "").splitlines():
            name, equals, value = line.strip().lstrip("-").partition("=")
            if equals and name.strip().replace("/", ".") in SYSCTLS and value.strip().isdigit():
                count = int(value)
    return count


def _tmpfiles(host: Host) -> dict[str, int]:
    """Counts that systemd-tmpfiles will write at boot, by file, patterns resolved (tmpfiles.d(5), type w).

    Of two lines for one path it takes the first, unless a `+` says that both are meant.
    """
    lines: dict[str, int] = {}
    for path in _drop_ins(host, TMPFILES_DIRS):
        for line in (host.read(path) or "").splitlines():
            fields = line.split()
            if len(fields) < 7 or not fields[1].startswith("/") or not fields[6].isdigit():
                continue
            kind, modifiers = fields[0][0], fields[0][1:]
            if kind == "w" and fields[1].rpartition("/")[2] in ("nr_hugepages", "nr_hugepages_mempolicy"):
                if "+" in modifiers:
                    lines[fields[1]] = int(fields[6])
                else:
                    lines.setdefault(fields[1], int(fields[6]))
    counts: dict[str, int] = {}
    for pattern, count in lines.items():
        found = host.glob(pattern) if any(c in pattern for c in "*?[") else [pattern]
        counts |= dict.fromkeys((path.replace("nr_hugepages_mempolicy", "nr_hugepages") for path in found), count)
    return {path: count for path, count in counts.items() if path in PROC_POOLS or re.fullmatch(_POOL, path)}


def _drop_ins(host: Host, folders: Sequence[str]) -> list[str]:
    """The files that systemd reads, by name; one in an earlier folder hides those of the same name in later ones."""
    chosen: dict[str, str] = {}
    for folder in folders:
        for name in host.names(folder):
            if name.endswith(".conf"):
                chosen.setdefault(name, f"{folder}/{name}")
    return [chosen[name] for name in sorted(chosen)]


def _cpu_offers(host: Host, kib: int, flag: str) -> bool:
    if host.exists(f"{POOLS}/hugepages-{kib}kB"):
        return True
    flags = next((line for line in (host.read("/proc/cpuinfo") or "").splitlines() if line.startswith("flags")), "")
    return flag in flags.split()


# -- deciding -------------------------------------------------------------------------------------


def decide(facts: Facts, want: Section) -> Goals:
    counts = {_spelled(key): value for key, value in want.items() if key[0].isdigit()}
    total = _int(facts["memory/total"].current)
    least = hugetlb.floor(total, parse_bytes(want["keep"]) if "keep" in want else None)
    refused_next = hugetlb.starves(_bytes_next(facts, counts), total, least) if counts else ""
    refused_now = _refused_now(facts, counts, least) if counts else ""
    goals: dict[str, Desired] = {}
    for size, wanted in counts.items():
        offered = facts.get(f"cpu/{size}", Fact.fixed(size in facts)).current is True
        missing = "" if offered else f"This machine has no pages of {size}: its CPU does not offer them."
        for key, count in _by_place(size, wanted):
            short = _node_short(facts, counts, key)
            have = facts.get(key, Fact.fixed(None))
            goals[key] = Desired(
                count,
                op=">=" if count else "==",
                live=size in facts,
                persist=offered,
                # giving pages back to the host is never refused
                refused_now=(refused_now or short) if count > _int(have.current) else "",
                refused_next=(refused_next or short) if count > _int(have.next_boot) else "",
                means=missing,
                fix=f"Ask for fewer pages, or for less to keep: at present {show_bytes(least)}."
                if refused_next or refused_now or short
                else "",
            )
        if want.get("free") == "all":
            goals |= _all_free(size, sum(count for _, count in _by_place(size, wanted)))
    goals["host-memory"] = _left_to_host(facts, total, least)
    if "default" in want:
        goals["default"] = Desired(_spelled(want["default"]), live=False)
    return goals | _mount_goals(facts, want.get("mounts", {}))


def suggest(facts: Facts) -> Suggestion:
    """What is there now and comes again. That there are none in a size is no wish."""
    section: dict[str, Any] = {}
    for key, fact in facts.items():
        if re.search(PAGE_SIZE_PATTERN, key) and fact == Fact.fixed(fact.current) and _int(fact.current):
            section[key] = fact.current
    default = facts["default"]
    if section and isinstance(default.current, str) and default == Fact.fixed(default.current):
        section["default"] = default.current
    if not section:
        return Suggestion({}, {"": "None here that lasts; however many there are, they leave the host enough memory."})
    return Suggestion(
        section, {"": "At least, on the whole host; free: all asks for a host that uses none of them yet."}
    )


def _mount_goals(facts: Facts, mounts: Mapping[str, str]) -> dict[str, Desired]:
    goals: dict[str, Desired] = {}
    for where in mounts.values():
        sizes = sorted({_spelled(size) for size, place in mounts.items() if place == where})
        now = facts.get(f"mount{where}", Fact.fixed(None)).current
        taken = "something is mounted there: umount it first" if now is not None else ""
        goal = Desired(", ".join(sizes), refused_now=taken)
        if len(sizes) > 1:  # no host can have that
            why = "the profile mounts pages of several sizes there"
            goal = goal._replace(refused_now=why, refused_next=why, fix="Give each size a place of its own.")
        goals[f"mount{where}"] = goal
    return goals


def _spelled(size: str) -> str:
    """`1024MiB` as facts have it: `1GiB`."""
    return show_page_size(page_size_kib(size))


def _by_place(size: str, wanted: int | Mapping[str, int]) -> list[tuple[str, int]]:
    if isinstance(wanted, int):
        return [(size, wanted)]
    return [(f"{size}/node{node}", count) for node, count in wanted.items()]


def _all_free(size: str, count: int) -> dict[str, Desired]:
    """K9: all pages are there, and free, before the host joins."""
    fixed = Desired(0, live=False, persist=False, fix="Stop what uses them: grep -l hugetlbfs /proc/*/maps")
    return {
        f"{size}/free": fixed._replace(value=count, op=">=", means=f"Fewer than {count} pages of {size} are free."),
        f"{size}/reserved": fixed._replace(means="A process has reserved pages that it does not use yet."),
        f"{size}/surplus": fixed._replace(means="There are more pages than the pool should have, in use."),
    }


def _left_to_host(facts: Facts, total: int, least: int) -> Desired:
    left = facts["host-memory"]
    taken = any(isinstance(side, int) and side < total for side in left)
    return Desired(
        least if taken else min(least, total),
        op=">=",
        unit="bytes",
        live=False,
        persist=False,
        means="Huge pages leave the host too little memory to boot and run.",
        fix="Take some back: in the kernel arguments, sysctl.d or tmpfiles.d, whichever asks for them.",
    )


def _refused_now(facts: Facts, counts: Mapping[str, int | Mapping[str, int]], least: int) -> str:
    more = 0
    for size, wanted in counts.items():
        have = sum(_int(facts[key].current) for key, _ in _by_place(size, wanted) if key in facts)
        more += max(sum(count for _, count in _by_place(size, wanted)) - have, 0) * parse_bytes(size)
    return hugetlb.starves(more, _int(facts["memory/available"].current), least) if more else ""


def _bytes_next(facts: Facts, counts: Mapping[str, int | Mapping[str, int]]) -> int:
    """All pools of the next boot: those wanted, and those that others ask for. Of `2MiB: 0` nothing stays."""
    readings = {key: fact.next_boot for key, fact in facts.items() if key[0].isdigit() and "/" not in key}
    pools = {size: _int(count) for size, count in readings.items()}
    hidden = 0  # the most that pools can be whose counts cannot be told
    if any(isinstance(count, Unknown) for count in readings.values()):
        left = _int(facts["host-memory"].next_boot)
        hidden = _int(facts["memory/total"].current) - left - _in_bytes(pools) if left else 0
    for size, wanted in counts.items():
        count = sum(count for _, count in _by_place(size, wanted))
        pools[size] = max(count, pools.get(size, 0)) if count else 0
    return _in_bytes(pools) + max(hidden, 0)


def _in_bytes(pools: Mapping[str, int]) -> int:
    return sum(parse_bytes(size) * count for size, count in pools.items())


def _node_short(facts: Facts, counts: Mapping[str, int | Mapping[str, int]], key: str) -> str:
    """Why a node cannot have what is wanted there, together with what it has of other sizes."""
    _, _, node = key.partition("/")
    memory = _int(facts.get(f"memory/{node}", Fact.fixed(None)).current)
    if not node or not memory:
        return ""
    pools = {key.partition("/")[0]: _most(fact) for key, fact in facts.items() if key.endswith(f"B/{node}")}
    for size, wanted in counts.items():
        places = dict(_by_place(size, wanted))
        if wanted == 0 or f"{size}/{node}" in places:
            pools[size] = places.get(f"{size}/{node}", 0)
    why = hugetlb.starves_node(_in_bytes(pools), memory)
    return f"{node}: {why}" if why else ""


def _most(fact: Fact) -> int:
    return max(_int(fact.current), _int(fact.next_boot))


def _int(reading: Reading) -> int:
    return reading if isinstance(reading, int) else 0


# -- changing -------------------------------------------------------------------------------------


def apply(host: Host, changes: Sequence[Change]) -> None:
    mounts = [c for c in changes if c.key.startswith("mount/")]
    pools = [c for c in changes if c not in mounts]
    if changes[0].facet is Facet.CURRENT:
        for change in mounts:
            _mount(host, change)
        for change in sorted(pools, key=lambda c: _int(c.after) > _int(c.before)):  # giving back makes room
            _grow(host, _pool_file(change.key), _int(change.after))
        return
    if pools:
        _persist(host, {change.key: change.after for change in pools})
    for change in mounts:
        _persist_mount(host, change)


def _pool_file(key: str) -> str:
    size, _, node = key.partition("/node")
    kib = page_size_kib(size)
    return _node_pool(int(node), kib) if node else f"{POOLS}/hugepages-{kib}kB/nr_hugepages"


def _grow(host: Host, file: str, wanted: int) -> None:
    """Ask for pages until they are there, the time is up, or asking no longer helps.

    The kernel grants what it can find and says nothing: a successful write is not success.
    """
    _spare_the_host(host, (wanted - host.number(file)) * _kib_of(file) * 1024)
    end = time.monotonic() + GROW_S
    granted = -1
    while True:
        host.write(file, str(wanted))
        before, granted = granted, host.number(file)
        if granted >= wanted or granted <= before or time.monotonic() > end:
            return
        for knob, text in (("/proc/sys/vm/drop_caches", "3"), ("/proc/sys/vm/compact_memory", "1")):
            if host.exists(knob):
                host.write(knob, text)


def _spare_the_host(host: Host, more: int) -> None:
    """Taking back what was given back takes memory too, and whoever has it by now would be killed for it."""
    if more <= 0:
        return
    available = _meminfo(host).get("MemAvailable", 0) * 1024
    if available - more < hugetlb.HARD_FLOOR:
        raise ChangeFailed(
            f"{show_bytes(more)} more of huge pages would leave less than {show_bytes(hugetlb.HARD_FLOOR)} "
            f"of the {show_bytes(available)} of memory that are available",
            "Free memory first, then try again.",
        )


def _persist(host: Host, wanted: Mapping[str, Value]) -> None:
    """Through kernel arguments where they decide; else through a line that systemd-tmpfiles writes at boot."""
    boot = bootloader.read(host)
    memory = _meminfo(host)
    usual = _next_default(memory, boot)
    lines = _own_lines(host)
    overruled = {_kib_of(p) for p in _tmpfiles(host) if p.startswith(POOLS)}
    if _sysctl(host) is not None or any(p in PROC_POOLS for p in _tmpfiles(host)):
        overruled.add(usual)
    if not isinstance(boot.later, Unknown) and hugetlb.from_cma(boot.later):
        overruled |= {kib for kib in _sizes(host) if kib > hugetlb.GIGANTIC}
    arguments: dict[int, int] = {}
    for key, value in sorted(wanted.items()):  # the whole host before its nodes
        if key == "default":
            continue
        kib, on_node = page_size_kib(key.partition("/")[0]), "/" in key
        if not on_node:  # what we said of its nodes is over
            lines = {
                file: count for file, count in lines.items() if not (file.startswith(NODES) and _kib_of(file) == kib)
            }
        if not on_node and boot.loader and kib not in overruled:
            arguments[kib] = _int(value)
        elif value is None:
            lines.pop(_pool_file(key), None)
        else:
            lines[_pool_file(key)] = _int(value)
    if arguments or "default" in wanted:
        _put_arguments(host, boot, usual, arguments, wanted)
    if lines != _own_lines(host):
        head = "# Written by hostprep (check hugepages); `hostprep revert` takes it back.\n"
        text = head + "".join(f"w {file} - - - - {count}\n" for file, count in sorted(lines.items()))
        host.replace(TMPFILES, text if lines else None)


def _put_arguments(
    host: Host, boot: bootloader.Boot, usual: int, arguments: Mapping[int, int], wanted: Mapping[str, Value]
) -> None:
    """One run of arguments for all sizes: those that are wanted, and those that others asked for before."""
    if not boot.loader or isinstance(boot.later, Unknown):
        raise ChangeFailed(f"kernel arguments cannot be set: {boot.why or boot.later}")
    now = hugetlb.asked(boot.later, usual)
    default = now.default
    if "default" in wanted:
        default = None if wanted["default"] is None else page_size_kib(str(wanted["default"]))
    by_node = {kib: nodes for kib, nodes in now.by_node.items() if kib not in arguments}
    run = hugetlb.run(default, {kib: n for kib, n in now.pages.items() if kib not in by_node} | dict(arguments))
    for kib, nodes in by_node.items():
        places = ",".join(f"{node}:{count}" for node, count in nodes.items())
        run += (f"hugepagesz={hugetlb.argument_size(kib)}", f"hugepages={places}")
    bootloader.put(host, NAME, {**dict.fromkeys(hugetlb.NAMES, ()), "hugepages": run})


def _own_lines(host: Host) -> dict[str, int]:
    lines = (line.split() for line in (host.read(TMPFILES) or "").splitlines() if line.startswith("w "))
    return {fields[1]: int(fields[6]) for fields in lines}


def _mount(host: Host, change: Change) -> None:
    where = _where(host, change)
    if change.after is None:
        host.run("umount", where)
        return
    if change.before is not None or any(where == place for place, _, _ in _mounted(host)):
        raise ChangeFailed(f"{where}: something is mounted there", "umount it first.")
    if host.names(where):
        raise ChangeFailed(f"{where}: is not empty, and a mount would hide what is in it", "Mount somewhere else.")
    size = hugetlb.argument_size(page_size_kib(str(change.after)))
    host.make_directory(where)
    host.run("mount", "-t", "hugetlbfs", "-o", f"pagesize={size}", "hugetlbfs", where)


def _persist_mount(host: Host, change: Change) -> None:
    where = _where(host, change)
    name = unit_name(where, "mount")
    unit, wanted = f"{UNITS}/{name}", f"{UNITS}/local-fs.target.wants/{name}"
    if change.after is None:
        host.replace(unit, None)
        host.replace(wanted, None)
        return
    there = _mount_units(host, UNITS).get(name, ("", "hugetlbfs", ""))
    if host.link(unit) or there is None or there[1] != "hugetlbfs":
        raise ChangeFailed(f"{unit} is a unit of this site's own", "Move it out of the way, or mount somewhere else.")
    if any(place == where and kind != "hugetlbfs" for place, kind, _ in _fstab(host)):
        raise ChangeFailed(f"/etc/fstab mounts something else at {where}", "Mount somewhere else.")
    size = hugetlb.argument_size(page_size_kib(str(change.after)))
    host.replace(unit, MOUNT_UNIT.format(size=size, where=where))
    host.symlink(wanted, unit)


def _where(host: Host, change: Change) -> str:
    """The place of a mount. One behind a link would be listed by another name, and mounted again each time."""
    where = change.key.removeprefix("mount")
    if (real := host.resolve(where)) != where:
        raise ChangeFailed(f"{where}: is in truth {real}", f"Write {real} in the profile.")
    return where
