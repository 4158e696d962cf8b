"""Memory bandwidth: what copying large blocks on all cores at once moves, by NUMA node.

It is the `copy` kernel of STREAM (cs.virginia.edu/stream) without a compiler: memmove(3) of the C library, one process
on each core, each with two blocks of its own in the memory of its node. As STREAM does, every byte is counted twice,
once read and once written. The figure is below what a processor's data sheet promises, and other than a tuned STREAM's:
it is for comparing equal machines, with the same C library, with each other and with themselves.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from hostprep.errors import HostError
from hostprep.host import process

BLOCK = 64 * 1024 * 1024  # bytes; two of them, for each core, are far more than its caches hold
_SMALLEST = 16 * 1024 * 1024
_READY_S = 4.0  # how long the slowest may take to start and to fill its blocks; it takes a tenth of that
_CHUNK = 1024 * 1024
_LIMIT_S = 60.0


class Core(NamedTuple):
    """A core: the first of its CPUs that this process may use, and its NUMA node."""

    cpu: int
    node: int


def measure(cores: Sequence[Core], available: int, seconds: float) -> dict[int, int]:
    """Bytes a second that all cores move at once, by NUMA node. HostError where it cannot be measured.

    `available` are the bytes of memory that may be used.
    """
    block = min(BLOCK, available // max(len(cores) * 2, 1) // mmap.PAGESIZE * mmap.PAGESIZE)
    if not cores or block < _SMALLEST:
        raise HostError(f"memory bandwidth: {len(cores)} cores and {available >> 20} MiB of free memory are too little")
    start = time.monotonic() + _READY_S
    works = [(str(core.cpu), _copier(core.cpu, block, start, seconds)) for core in cores]
    found: dict[int, int] = {}
    answers = process.gather(works, start - time.monotonic() + seconds + _LIMIT_S)
    for core in cores:
        answer, _ = answers[str(core.cpu)]
        if isinstance(answer, str) or not answer.isdigit():
            why = answer if isinstance(answer, str) else answer.decode(errors="replace")
            raise HostError(f"memory bandwidth: CPU {core.cpu}: {why}")
        found[core.node] = found.get(core.node, 0) + int(answer)
    return found


def _copier(cpu: int, block: int, start: float, seconds: float) -> Callable[[], bytes]:
    """Copies on one CPU from before `start` (monotonic seconds) on, and counts for that long."""

    def work() -> bytes:
        try:
            os.sched_setaffinity(0, {cpu})
            here, there = _filled(block), _filled(block)
        except (OSError, ValueError) as e:
            return str(e).encode()
        if time.monotonic() > start:
            return b"was not ready when the others began: is this host busy?"
        while time.monotonic() < start:  # as the others do: nobody measures alone
            there[:] = here
        done, began = 0, time.monotonic()
        while (now := time.monotonic()) < start + seconds:
            there[:] = here
            here, there = there, here
            done += 2 * block
        if not done:
            return b"did not come to copy anything in time: is this host busy?"
        return str(round(done / (now - began))).encode()

    return work


def _filled(size: int) -> memoryview:
    """Memory that is really there, in large pages where the kernel has them; it is near the CPU that fills it."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without transparent huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    while memory.tell() < size:
        memory.write(b"\1" * min(_CHUNK, size - memory.tell()))
    return memoryview(memory)
