"""Huge pages as the kernel command line asks for them, and what they leave of a host's memory. Pure.

The kernel reads these arguments by position, and the first wins (mm/hugetlb.c, admin-guide/mm/hugetlbpage.rst):
`hugepages=N` belongs to the `hugepagesz=` before it, or to the default size when there is none; a size or a
count that comes twice is ignored. Appending a second set therefore does nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from hostprep.quantities import show_bytes, show_page_size

NAMES = ("default_hugepagesz", "hugepagesz", "hugepages")
GIB = 1024**3
_Count = dict["int | None", int]  # pages by node; None: on the whole host


class Asked(NamedTuple):
    """What a command line asks for. Page sizes in KiB; `by_node` where it names nodes (kernel 5.16)."""

    default: int | None
    pages: dict[int, int]
    by_node: dict[int, dict[int, int]]

    def bytes(self) -> int:
        return sum(size * 1024 * count for size, count in self.pages.items())


def asked(arguments: Iterable[str], usual_default: int, nodes: Collection[int] | None = None) -> Asked:
    """The pools that a kernel would make of these arguments, given the architecture's default size in KiB.

    Where the machine's NUMA nodes are given, a list that names another one is void, as it is to the kernel.
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
            kib = _size_kib(value)
            valid = kib is not None and result.default is None
            if valid and kib is not None:
                result = result._replace(default=kib)
                size = size if kib in declared else kib
                declared.add(kib)
                if any(unsized.values()):
                    _take(result, kib, unsized)
                unsized = {}
        elif name == "hugepagesz":
            kib = _size_kib(value)
            again = kib in declared and (kib != result.default or result.pages.get(kib, 0) > 0)
            valid = kib is not None and not again
            if valid and kib is not None:
                size = kib
                declared.add(kib)
        elif name == "hugepages":
            count = _count(value, nodes)
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


def _count(text: str, nodes: Collection[int] | None) -> _Count | None:
    """What follows `hugepages=`: N, or NODE:N,NODE:N. None where the kernel calls it invalid."""
    if not re.match(r"\d+:", text):
        number = re.match(r"\d+", text)
        return {None: int(number[0])} if number else None
    count: _Count = {}
    while text:
        pair = re.match(r"(\d+):(\d+)(,|.*)", text)
        if pair is None or (nodes is not None and int(pair[1]) not in nodes):
            return None
        count[int(pair[1])] = int(pair[2])
        text = text[pair.end() :]
    return count


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


def _size_kib(text: str) -> int | None:
    """A page size as the kernel reads it: any base, what follows the unit is ignored (lib/cmdline.c, memparse)."""
    match = re.match(r"(0[xX][0-9a-fA-F]+|\d+)([KMGT]?)", text, re.I)
    if not match:
        return None
    digits = match[1].lower()
    number = int(digits, 16 if digits.startswith("0x") else 8 if re.fullmatch("0[0-7]+", digits) else 10)
    size = number << {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[match[2].lower()]
    return size >> 10 if size >= 1 << 16 and size & (size - 1) == 0 else None  # no architecture has another


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
