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
sysctl.d (vm.nr_hugepages, the default size only), then tmpfiles.d.

A reservation that would leave the host less than `keep` is refused before it is written, for now and for the
next boot: 32 pages of 1 GiB on a machine of 32 GB make a host that does not boot. `host-memory` shows what is
left, whoever made the reservation.

apply writes nr_hugepages, reads back what the kernel granted, makes it compact memory and tries again while that
helps. For the next boot it uses kernel arguments (for 1 GiB the only way that does not depend on luck), and
a tmpfiles.d line for counts per node, where a sysctl would overrule the arguments, or where the boot loader is
unknown. 1 GiB pages need the CPU flag pdpe1gb.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from hostprep import bootloader, hugetlb
from hostprep.errors import ChangeFailed, HostError
from hostprep.host import Host, attempt
from hostprep.model import Change, Desired, Facet, Fact, Facts, Goals, Reading, Section, Unknown, Value
from hostprep.quantities import BYTES_PATTERN, PAGE_SIZE_PATTERN, page_size_kib, parse_bytes, show_bytes, show_page_size

NAME = "hugepages"
GENERATED = bootloader.GRUB_CFGS
finish = bootloader.regenerate

_COUNT = {"type": "integer", "minimum": 0}
_SIZE = {"type": "string", "pattern": PAGE_SIZE_PATTERN}
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
            "patternProperties": {PAGE_SIZE_PATTERN: {"type": "string", "pattern": r"^/[^\s\x00-\x1f]*$(?!\n)"}},
            "additionalProperties": False,
        },
    },
    "patternProperties": {
        PAGE_SIZE_PATTERN: {
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
TMPFILES_DIRS = ("/etc/tmpfiles.d", "/run/tmpfiles.d", "/usr/local/lib/tmpfiles.d", "/usr/lib/tmpfiles.d")
SYSCTL_DIRS = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d")
PROC_POOLS = ("/proc/sys/vm/nr_hugepages",)  # of the default size
SYSCTLS = ("vm.nr_hugepages", "vm.nr_hugepages_mempolicy")
_POOL = rf"({POOLS}|{NODES}/node\d+/hugepages)/hugepages-\d+kB/nr_hugepages"
COUNTERS = {"free": "free_hugepages", "reserved": "resv_hugepages", "surplus": "surplus_hugepages"}
UNITS = "/etc/systemd/system"
UNIT_DIRS = (UNITS, "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system")
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
    for kib in sorted({*here, *(kib for kib, _ in later.pages)}):
        size = show_page_size(kib)
        if kib not in here:  # a pool that the next boot makes
            facts[size] = Fact(None, _asked(later, kib, None))
            continue
        pool = f"{POOLS}/hugepages-{kib}kB"
        facts[size] = Fact(attempt(host.number, f"{pool}/nr_hugepages"), _asked(later, kib, None))
        for name, file in COUNTERS.items():
            facts[f"{size}/{name}"] = Fact.fixed(attempt(host.number, f"{pool}/{file}"))
        for node in _nodes(host):
            count = attempt(host.number, _node_pool(node, kib))
            facts[f"{size}/node{node}"] = Fact(count, _asked(later, kib, node))
    facts |= _memory_facts(host, memory, facts, later)
    facts["default"] = _default_size(memory, boot)
    facts |= _mounts(host, facts["default"])
    for kib, flag in FLAGS.items():
        facts[f"cpu/{show_page_size(kib)}"] = Fact.fixed(_cpu_offers(host, kib, flag))
    return facts


class _Later(NamedTuple):
    """What the next boot asks for: page size in KiB and node (None: the whole host) -> pages."""

    pages: dict[tuple[int, int | None], int]
    unsure: dict[int, Unknown]  # sizes of which the total cannot be told; `pages` then has the most that it can be
    otherwise: int | Unknown | None  # what a size has that nobody asks for; None: nothing that hostprep can read says


def _next_boot(host: Host, boot: bootloader.Boot | Unknown, memory: Mapping[str, int]) -> _Later:
    """Kernel arguments first; then systemd-sysctl and systemd-tmpfiles write over them."""
    words = boot if isinstance(boot, Unknown) else boot.later
    later = _Later({}, {}, _otherwise(host, words))
    default = _next_default(memory, boot)
    if not isinstance(words, Unknown):
        asked = hugetlb.asked(words, default, _nodes(host))
        for kib, count in asked.pages.items():
            later.pages[kib, None] = count
        for kib, by_node in asked.by_node.items():
            later.pages.update({(kib, node): count for node, count in by_node.items()})
    if (ruled := _sysctl(host)) is not None:
        _rule(later, default, ruled)
    written = _tmpfiles(host)
    for path, count in written.items():
        if path.startswith(POOLS):
            _rule(later, _kib_of(path), count)
        elif path in PROC_POOLS:
            _rule(later, default, count)
    nodes = _nodes(host)
    for path, count in written.items():
        if path.startswith(NODES):
            later.pages[_kib_of(path), _node_of(path)] = count
    for kib in {kib for kib, node in later.pages if node is not None}:
        _add_up(later, kib, nodes)
    for kib in {kib for kib, _ in later.pages}:
        if kib in FLAGS and not _cpu_offers(host, kib, FLAGS[kib]):  # the kernel ignores such a size
            for key in [key for key in later.pages if key[0] == kib]:
                del later.pages[key]
    return later


def _otherwise(host: Host, words: tuple[str, ...] | Unknown) -> int | Unknown | None:
    if not isinstance(words, Unknown):
        return 0
    try:
        grub = any(host.exists(cfg) for cfg in bootloader.GRUB_CFGS)
    except HostError:
        return words
    return words if grub else None  # GRUB is there and cannot be read: what it asks for is not known


def _rule(later: _Later, kib: int, count: int) -> None:
    """A write to a pool of the whole host takes the place of what was asked for, on nodes too."""
    for key in [key for key in later.pages if key[0] == kib]:
        del later.pages[key]
    later.pages[kib, None] = count


def _add_up(later: _Later, kib: int, nodes: Sequence[int]) -> None:
    """The total of a size that has counts for nodes. Nodes without one keep their share of the rest, if any."""
    on_nodes = sum(count for (k, node), count in later.pages.items() if k == kib and node in nodes)
    rest = later.pages.get((kib, None), 0)
    all_said = all((kib, node) in later.pages for node in nodes)
    shared = sum(count for (k, node), count in later.pages.items() if k == kib and node is not None)
    if all_said or rest in (0, shared):
        later.pages[kib, None] = on_nodes
    else:
        why = f"{rest} pages of {show_page_size(kib)} are asked for on the host, and other counts on some of its nodes"
        later.pages[kib, None] = on_nodes + rest
        later.unsure[kib] = Unknown(why)


def _asked(later: _Later, kib: int, node: int | None) -> Reading:
    """Pages asked for; None when nothing on this host asks and there is no boot loader that could."""
    if node is None and kib in later.unsure:
        return later.unsure[kib]
    count = later.pages.get((kib, node))
    if count is not None:
        return count
    if node is not None and later.pages.get((kib, None)):
        return None  # the kernel spreads them: nothing says how many this node gets
    return 0 if (kib, None) in later.pages else later.otherwise


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


def _memory_facts(host: Host, memory: Mapping[str, int], pools: Facts, later: _Later) -> dict[str, Fact]:
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


def _left_next(later: _Later, left: int, now: Reading) -> Reading:
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
    for line in (host.read("/proc/self/mounts") or "").splitlines():
        fields = line.split()
        if len(fields) >= 4 and fields[2] == "hugetlbfs":
            now[fields[1]] = _mount_size(fields[3], default.current)
    later = {where: _mount_size(options, default.next_boot) for where, options in _mounts_at_boot(host)}
    return {f"mount{where}": Fact(now.get(where), later.get(where)) for where in sorted({*now, *later})}


def _mount_size(options: str, default: Reading) -> Reading:
    for option in options.split(","):
        name, _, value = option.partition("=")
        if name == "pagesize":
            return show_page_size(_argument_kib(value))
    return default


def _argument_kib(text: str) -> int:
    units = {"K": 1, "M": 1024, "G": 1024**2}
    return int(text[:-1]) * units[text[-1].upper()] if text[-1:].isalpha() else int(text) // 1024


def _mounts_at_boot(host: Host) -> Iterator[tuple[str, str]]:
    """Where and with which options. A unit of the admin's hides the one of the same name that a package brought."""
    units: dict[str, str] = {}
    for folder in UNIT_DIRS[::-1]:
        units |= {name: f"{folder}/{name}" for name in host.names(folder) if name.endswith(".mount")}
    for name, path in units.items():
        text = host.read(path) if host.link(path) != "/dev/null" else None
        if text is None or "hugetlbfs" not in text:
            continue
        unit = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in text.splitlines())}
        wanted = any(host.glob(f"{folder}/*.wants/{name}") for folder in UNIT_DIRS)
        if unit.get("Type") == "hugetlbfs" and wanted:
            yield unit.get("Where", ""), unit.get("Options", "")
    for line in (host.read("/etc/fstab") or "").splitlines():
        fields = line.split()
        mounted = len(fields) >= 4 and not fields[0].startswith("#") and "noauto" not in fields[3].split(",")
        if mounted and fields[2] == "hugetlbfs":
            yield fields[1], fields[3]


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
            short = _node_short(facts, key, count)
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
                if refused_next or refused_now
                else "",
            )
        if want.get("free") == "all":
            goals |= _all_free(size, sum(count for _, count in _by_place(size, wanted)))
    goals["host-memory"] = _left_to_host(facts, total, least)
    if "default" in want:
        goals["default"] = Desired(_spelled(want["default"]), live=False)
    for size, where in want.get("mounts", {}).items():
        goals[f"mount{where}"] = Desired(_spelled(size))
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
    """All pools of the next boot: those wanted, and those that others ask for."""
    pools = {key: _int(fact.next_boot) for key, fact in facts.items() if key[0].isdigit() and "/" not in key}
    for size, wanted in counts.items():
        pools[size] = max(sum(count for _, count in _by_place(size, wanted)), pools.get(size, 0))
    return sum(parse_bytes(size) * count for size, count in pools.items())


def _node_short(facts: Facts, key: str, count: int) -> str:
    size, _, node = key.partition("/")
    memory = _int(facts.get(f"memory/{node}", Fact.fixed(None)).current)
    if node and memory and parse_bytes(size) * count > memory:
        return f"{count} pages of {size} do not fit {node}, which has {memory // 1024**2} MiB"
    return ""


def _int(reading: Reading) -> int:
    return reading if isinstance(reading, int) else 0


# -- changing -------------------------------------------------------------------------------------


def apply(host: Host, changes: Sequence[Change]) -> None:
    mounts = [c for c in changes if c.key.startswith("mount/")]
    pools = [c for c in changes if c not in mounts]
    if changes[0].facet is Facet.CURRENT:
        for change in pools:
            _grow(host, _pool_file(change.key), _int(change.after))
        for change in mounts:
            _mount(host, change)
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


def _persist(host: Host, wanted: Mapping[str, Value]) -> None:
    """Through kernel arguments where they decide; else through a line that systemd-tmpfiles writes at boot."""
    boot = bootloader.read(host)
    memory = _meminfo(host)
    usual = _next_default(memory, boot)
    lines = _own_lines(host)
    overruled = {_kib_of(p) for p in _tmpfiles(host) if p.startswith(POOLS)}
    if _sysctl(host) is not None or any(p in PROC_POOLS for p in _tmpfiles(host)):
        overruled.add(usual)
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
    where = change.key.removeprefix("mount")
    if change.after is None:
        host.run("umount", where)
        return
    size = hugetlb.argument_size(page_size_kib(str(change.after)))
    host.make_directory(where)
    host.run("mount", "-t", "hugetlbfs", "-o", f"pagesize={size}", "hugetlbfs", where)


def _persist_mount(host: Host, change: Change) -> None:
    where = change.key.removeprefix("mount")
    name = where.strip("/").replace("-", r"\x2d").replace("/", "-") + ".mount"
    if change.after is None:
        host.replace(f"{UNITS}/{name}", None)
        host.replace(f"{UNITS}/local-fs.target.wants/{name}", None)
        return
    size = hugetlb.argument_size(page_size_kib(str(change.after)))
    host.replace(f"{UNITS}/{name}", MOUNT_UNIT.format(size=size, where=where))
    host.symlink(f"{UNITS}/local-fs.target.wants/{name}", f"{UNITS}/{name}")
