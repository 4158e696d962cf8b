"""A fake host whose kernel answers: pools of huge pages that grow as far as there is memory, and swap."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from fakes import Answer, FakeHost

from hostprep import hugetlb

NODES = "/sys/devices/system/node"
POOLS = "/sys/kernel/mm/hugepages"


class FakeKernel(FakeHost):
    """`most` limits pages by pool file or node file; what is written there grants no more, without an error."""

    def __init__(self, root: Path, files: Mapping[str, str], commands: Mapping[str, Answer] | None = None) -> None:
        super().__init__(root, files, commands)
        self.most: dict[str, int] = {}
        self.freed_by_compaction: dict[str, int] = {}
        self.wrote: list[str] = []

    def write(self, path: str, text: str, timeout: float = 60) -> None:
        self.wrote.append(f"{path.rpartition('/')[2]}={text}")
        if path == "/proc/sys/vm/compact_memory":
            for file, pages in self.freed_by_compaction.items():
                self.most[file] += pages
        if not path.endswith("/nr_hugepages"):
            return
        wanted = min(int(text), self.most.get(path, int(text)))
        size = path.split("/")[-2]
        nodes = self.glob(f"{NODES}/node[0-9]*/hugepages/{size}/nr_hugepages")
        if path.startswith(POOLS):
            for i, file in enumerate(nodes):
                self.put(file, f"{wanted // len(nodes) + (i < wanted % len(nodes))}\n")
        else:
            self.put(path, f"{wanted}\n")
        total = sum(self.number(file) for file in nodes) if nodes else wanted
        for counter in ("nr_hugepages", "free_hugepages"):
            self.put(f"{POOLS}/{size}/{counter}", f"{total}\n")


def with_swap(files: Mapping[str, str], *devices: str) -> dict[str, str]:
    """These files with swap devices that are on, and that fstab turns on at boot."""
    lines = "".join(f"{d} none swap sw 0 0\n" for d in devices)
    return {**files, "/proc/swaps": _swaps(devices), "/etc/fstab": files["/etc/fstab"] + lines}


def _swaps(devices: Sequence[str]) -> str:
    rows = "".join(f"{d}  file  1048572 0 -2\n" for d in devices)
    return "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n" + rows


def swap_commands(host: FakeHost, places: Sequence[str]) -> dict[str, Answer]:
    """swapoff and swapon, as /proc/swaps shows them: a device takes the first free place, as in the kernel."""

    def swapoff(argv: Sequence[str]) -> str:
        host.put("/proc/swaps", _swaps([d for d in _devices(host) if d != argv[-1]]))
        return ""

    def swapon(argv: Sequence[str]) -> str:
        host.put("/proc/swaps", _swaps(sorted([*_devices(host), argv[-1]], key=places.index)))
        return ""

    return {"swapoff": swapoff, "swapon": swapon}


def _devices(host: FakeHost) -> list[str]:
    return [line.split()[0] for line in (host.read("/proc/swaps") or "").splitlines()[1:]]


def reboot(host: FakeKernel) -> None:
    """Start anew by the first entry of grub.cfg; pools are what its arguments ask for."""
    words = re.search(r"^\s*linux\s+\S+ (.*)", host.read("/boot/grub/grub.cfg") or "", re.M)
    assert words
    host.put("/proc/cmdline", f"BOOT_IMAGE=/boot/vmlinuz-6.1.0 {words[1]}\n")
    host.put("/proc/sys/kernel/random/boot_id", "99999999-2222-3333-4444-555555555555\n")
    asked = hugetlb.asked(words[1].split(), 2048)
    for kib in (2048, 1048576):
        host.write(f"{POOLS}/hugepages-{kib}kB/nr_hugepages", str(asked.pages.get(kib, 0)))
