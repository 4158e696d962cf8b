"""Huge pages as the kernel command line asks for them, and what they leave of a host's memory. Pure.

The kernel reads these arguments by position, and the first wins (mm/hugetlb.c, admin-guide/mm/hugetlbpage.rst):
`hugepages=N` belongs to the `hugepagesz=` before it, or to the default size when there is none; a size or a
count that comes twice is ignored. Appending a second set therefore does nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from hostprep.quantities import show_bytes, show_page_size

NAMES = ("default_hugepagesz", "hugepagesz", "hugepages")
GIB = 1024**3


class Asked(NamedTuple):
    """What a command line asks for. Page sizes in KiB; `by_node` where it names nodes (kernel 5.16)."""

    default: int | None
    pages: dict[int, int]
    by_node: dict[int, dict[int, int]]

    def bytes(self) -> int:
        return sum(size * 1024 * count for size, count in self.pages.items())


def asked(arguments: Iterable[str], usual_default: int) -> Asked:
    """The pools that a kernel would make of these arguments, given the architecture's default size in KiB."""
    default: int | None = None
    pages: dict[int, int] = {}
    by_node: dict[int, dict[int, int]] = {}
    declared: set[int] = set()
    size: int | None = None  # that the next hugepages= is about; None before any size: the default one
    valid = True  # is there a size that it could be about?
    last: int | str | None = "none yet"  # the size that got the last count
    unsized: str | None = None
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name == "default_hugepagesz":
            kib = _size_kib(value)
            valid = default is None and kib is not None
            if valid and kib is not None:
                default = kib
                if kib not in declared:
                    size = kib
                declared.add(kib)
                if unsized is not None:
                    _take(kib, unsized, pages, by_node)
                    unsized = None
        elif name == "hugepagesz":
            kib = _size_kib(value)
            again = kib in declared and not (kib == default and not pages.get(kib))
            valid = kib is not None and not again
            if valid and kib is not None:
                size = kib
                declared.add(kib)
        elif name == "hugepages":
            if valid and size != last:
                if size is None:
                    unsized = value
                else:
                    _take(size, value, pages, by_node)
                last = size
            valid = True
    if unsized is not None:
        _take(default or usual_default, unsized, pages, by_node)
    return Asked(default, pages, by_node)


def _take(size: int, value: str, pages: dict[int, int], by_node: dict[int, dict[int, int]]) -> None:
    if ":" in value:
        nodes = re.findall(r"(\d+):(\d+)(?:,|$)", value)
        by_node[size] = {int(node): int(count) for node, count in nodes}
        pages[size] = sum(by_node[size].values())
    else:
        match = re.match(r"\d+", value)
        pages[size] = int(match[0]) if match else 0


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
    match = re.fullmatch(r"(\d+)([KMGkmg]?)", text)
    if not match:
        return None
    number = int(match[1])
    return {"": number // 1024, "k": number, "m": number * 1024, "g": number * 1024**2}[match[2].lower()] or None


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
