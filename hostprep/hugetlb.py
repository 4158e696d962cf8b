"""Huge pages as the next boot will ask for them, and what they leave of a host's memory. Pure.

The kernel reads these arguments by position, and the first wins (mm/hugetlb.c, admin-guide/mm/hugetlbpage.rst):
`hugepages=N` belongs to the `hugepagesz=` before it, or to the default size when there is none; a size or a
count that comes twice is ignored. Appending a second set therefore does nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from hostprep.model import Reading, Unknown
from hostprep.quantities import show_bytes, show_page_size

NAMES = ("default_hugepagesz", "hugepagesz", "hugepages")
GIB = 1024**3
MIB = 1024**2
HARD_FLOOR = 512 * MIB  # bytes of memory that no change of a running system may leave less of
GIGANTIC = 4096  # KiB; what is larger is more than the buddy allocator has on most kernels (MAX_ORDER 10, 4 KiB pages)
_Count = dict["int | None", int]  # pages by node; None: on the whole host


class Asked(NamedTuple):
    """What a command line asks for. Page sizes in KiB; `by_node` where it names nodes (kernel 5.16)."""

    default: int | None
    pages: dict[int, int]
    by_node: dict[int, dict[int, int]]

    def bytes(self) -> int:
        return sum(size * 1024 * count for size, count in self.pages.items())


def asked(
    arguments: Iterable[str], usual_default: int, nodes: Collection[int] | None = None, node_lists: bool = True
) -> Asked:
    """The pools that a kernel would make of these arguments, given the architecture's default size in KiB.

    Where the machine's NUMA nodes are given, a list that names another one is void, as it is to the kernel. Kernels
    before 5.16 know no lists: to their sscanf("%lu") `hugepages=0:16` is 0, and what is no number is 0 too.
    """
    result = Asked(None, {}, {})
    declared: set[int] = set()
    size: int | None = None  # that the next count is about; None before any size: the default one
    valid = True  # is there a size that it could be about?
    last: int | str | None = "none yet"  # the size that got the last count
    unsized: _Count = {}  # what came before any size
    for argument in arguments:
        name, _, value = argument.partition("=")
        name = name.replace("-", "_")
        if name == "default_hugepagesz":
            kib = size_kib(value)
            valid = kib is not None and result.default is None
            if valid and kib is not None:
                result = result._replace(default=kib)
                size = size if kib in declared else kib
                declared.add(kib)
                if any(unsized.values()):
                    _take(result, kib, unsized)
                unsized = {}
        elif name == "hugepagesz":
            kib = size_kib(value)
            again = kib in declared and (kib != result.default or result.pages.get(kib, 0) > 0)
            valid = kib is not None and not again
            if valid and kib is not None:
                size = kib
                declared.add(kib)
        elif name == "hugepages":
            count = _count(value, nodes, node_lists)
            if valid and size != last and count is not None:
                last = size
                if size is None:
                    unsized = count
                else:
                    _take(result, size, count)
            valid = True
    if any(unsized.values()):  # hugepages=0 before any size is as if it were not there
        _take(result, result.default or usual_default, unsized)
    return result


def _count(text: str, nodes: Collection[int] | None, node_lists: bool) -> _Count | None:
    """What follows `hugepages=`: N, or NODE:N,NODE:N. None where the kernel calls it invalid."""
    if not node_lists:
        return {None: _leading_number(text) or 0}
    if not re.match(r"\d+:", text):
        number = _leading_number(text)
        return None if number is None else {None: number}
    count: _Count = {}
    while text:
        pair = re.match(r"(\d+):(\d+)(,|.*)", text)
        if pair is None or (nodes is not None and int(pair[1]) not in nodes):
            return None
        count[int(pair[1])] = int(pair[2])
        text = text[pair.end() :]
    return count


def _leading_number(text: str) -> int | None:
    match = re.match(r"\d+", text)
    return int(match[0]) if match else None


def _take(result: Asked, size: int, count: _Count) -> None:
    result.pages[size] = sum(count.values())
    result.by_node.pop(size, None)
    if None not in count:
        result.by_node[size] = {node: pages for node, pages in count.items() if node is not None}


def run(default: int | None, pages: Mapping[int, int]) -> tuple[str, ...]:
    """The arguments that ask for these pools, in the order that the kernel needs."""
    words = [] if default is None else [f"default_hugepagesz={argument_size(default)}"]
    for size in sorted(pages, reverse=True):
        if pages[size] or size == default:
            words += [f"hugepagesz={argument_size(size)}", f"hugepages={pages[size]}"]
    return tuple(words)


def argument_size(kib: int) -> str:
    """A page size as the kernel takes it: 1G, 2M, 64K."""
    return show_page_size(kib).removesuffix("iB")


def size_kib(text: str) -> int | None:
    """A page size as the kernel reads it: any base, what follows the unit is ignored (lib/cmdline.c, memparse)."""
    match = re.match(r"(0[xX][0-9a-fA-F]+|\d+)([KMGT]?)", text, re.I)
    if not match:
        return None
    digits = match[1].lower()
    number = int(digits, 16 if digits.startswith("0x") else 8 if re.fullmatch("0[0-7]+", digits) else 10)
    size = number << {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[match[2].lower()]
    return size >> 10 if size >= 1 << 16 and size & (size - 1) == 0 else None  # no architecture has another


def from_cma(arguments: Iterable[str]) -> bool:
    """Does hugetlb_cma= set memory aside, so that the kernel skips gigantic pages at boot (mm/hugetlb.c)?"""
    values = (a.partition("=")[2] for a in arguments if a.partition("=")[0].replace("-", "_") == "hugetlb_cma")
    return any(not re.fullmatch(r"0*[KMGT]?", value, re.I) for value in values)


# -- the next boot --------------------------------------------------------------------------------


_Place = tuple[int, "int | None"]  # page size in KiB, and node; None: the whole host


class Later(NamedTuple):
    """What the next boot asks for."""

    pages: dict[_Place, int]
    unsure: dict[_Place, Unknown]  # where it cannot be told; `pages` then has the most that it can be
    otherwise: int | Unknown | None  # what a size has that nobody asks for; None: nothing that hostprep can read says

    def sizes(self) -> set[int]:
        return {kib for kib, _ in self.pages}


def ask(later: Later, asked: Asked, lists_unsure: str, cma: bool) -> None:
    """Put in what the arguments ask for. `lists_unsure`: why it is not known what the kernel makes of NODE:N lists."""
    for kib, count in asked.pages.items():
        by_node: Mapping[int, int] = asked.by_node.get(kib, {})
        places: list[_Place] = [(kib, node) for node in by_node] or [(kib, None)]
        later.pages.update({place: by_node[place[1]] if place[1] is not None else count for place in places})
        if cma and kib > GIGANTIC and count:
            why = f"with hugetlb_cma= many kernels make no pages of {show_page_size(kib)} at boot"
        else:
            why = lists_unsure if by_node else ""
        if why:
            later.unsure.update(dict.fromkeys(places, Unknown(why)))


def rule(later: Later, kib: int, count: int) -> None:
    """A write to a pool of the whole host takes the place of what was asked for, on nodes too."""
    drop(later, kib)
    later.pages[kib, None] = count


def rule_node(later: Later, kib: int, node: int, count: int) -> None:
    """A write to the pool of one node."""
    later.pages[kib, node] = count
    later.unsure.pop((kib, node), None)


def drop(later: Later, kib: int) -> None:
    for table in (later.pages, later.unsure):
        for place in [place for place in table if place[0] == kib]:
            del table[place]


def add_up(later: Later, kib: int, nodes: Collection[int]) -> None:
    """The total of a size that has counts for nodes. Nodes without one keep their share of the rest, if any."""
    said = [later.pages[kib, node] for node in nodes if (kib, node) in later.pages]
    doubt = next((later.unsure[kib, node] for node in nodes if (kib, node) in later.unsure), None)
    rest = later.pages.get((kib, None), later.otherwise) if len(said) < len(nodes) else 0
    if isinstance(rest, Unknown):
        doubt, rest = rest, 0
    elif rest:
        why = f"{rest} pages of {show_page_size(kib)} are asked for on the host, and other counts on some of its nodes"
        doubt = doubt or Unknown(why)
    later.pages[kib, None] = sum(said) + (rest or 0)
    later.unsure.pop((kib, None), None)
    if doubt:
        later.unsure[kib, None] = doubt


def reading(later: Later, kib: int, node: int | None) -> Reading:
    """Pages asked for; None when nothing on this host asks and there is no boot loader that could."""
    if (kib, node) in later.unsure:
        return later.unsure[kib, node]
    count = later.pages.get((kib, node))
    if count is not None:
        return count
    if node is not None and later.pages.get((kib, None)):
        return None  # the kernel spreads them: nothing says how many this node gets
    return 0 if (kib, None) in later.pages else later.otherwise


# -- memory ---------------------------------------------------------------------------------------


def floor(total: int, keep: int | None = None) -> int:
    """What pages must leave of a host's memory, in bytes: what the profile keeps, else 4 GiB or a tenth, the larger."""
    return keep if keep is not None else max(4 * GIB, total // 10)


def starves(pools: int, total: int, least: int) -> str:
    """Why this many bytes of huge pages are too many for this much memory; '' when they are not."""
    if total - pools >= least:
        return ""
    left = max(total - pools, 0)
    return (
        f"{show_bytes(pools)} of huge pages would leave {show_bytes(left)} of {show_bytes(total)} to the host, "
        f"which needs {show_bytes(least)} to boot and run"
    )


def starves_node(pools: int, memory: int) -> str:
    """Why this many bytes of huge pages are too many for one NUMA node; '' when they are not."""
    least = max(HARD_FLOOR, memory // 10)
    if memory - pools >= least:
        return ""
    return (
        f"{show_bytes(pools)} of huge pages do not fit a node of {show_bytes(memory)}, "
        f"which must keep {show_bytes(least)}"
    )
