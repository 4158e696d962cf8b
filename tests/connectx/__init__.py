"""Machines with ConnectX cards that are not there, for the unmodified mstconfig and everything else that reads /sys.

    with connectx.machine(tmp_path, connectx.card("cx5ex"), connectx.card("cx6dx", "0000:65:00.0")) as machine:
        machine.run("mstconfig", "-d", "0000:17:00.0", "-y", "set", "SRIOV_EN=1", "NUM_OF_VFS=8")
        machine.reboot()
        (machine.root / "sys/bus/pci/devices/0000:17:00.0/sriov_numvfs").write_text("4")

What a card is asked goes the whole way: configuration space, gateway, command mailbox, firmware registers, TLVs. Needs
root, /dev/fuse and mount namespaces.

What it does not do: there is no netlink behind the netdevs (they are entries in sysfs only), no kernel event tells of
a new VF, and libudev, which accepts nothing but the kernel's own sysfs, does not list the cards.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from connectx import cards, layout
from connectx.memory import Memory, create

HERE = Path(__file__).parent
TIMEOUT = 120.0  # of one command, in seconds; a stuck firmware command takes mstconfig 45

MOUNTS = """
mount -t tmpfs none /mnt && mkdir /mnt/upper /mnt/work
mount -t overlay -o lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work none /etc
"""


class Card(NamedTuple):
    """A card to plug in: its kind, the addresses of its PFs, and factory values that differ from the usual ones."""

    kind: str
    addresses: tuple[str, ...]
    settings: Mapping[str, int | None]


def card(kind: str = "cx5ex", *addresses: str, **settings: int | None) -> Card:
    """A card, by default at 0000:17:00 with all its ports. The setting None is a parameter that it does not offer."""
    usual = tuple(f"0000:17:00.{port}" for port in range(cards.KINDS[kind].ports))
    return Card(kind, addresses or usual, settings)


@functools.cache
def missing() -> str:
    """Why no such machine can be made here: empty if it can."""
    if os.geteuid() != 0:
        return "needs root"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"needs /dev/fuse: {error.strerror}"
    if not shutil.which("mstconfig") or layout.database() is None:
        return "needs mstconfig (package mstflint)"
    if not all(map(shutil.which, ("nsenter", "unshare", "taskset"))):
        return "needs nsenter, unshare and taskset (package util-linux)"
    tried = subprocess.run(["unshare", "--mount", "sh", "-ec", MOUNTS], capture_output=True, text=True, check=False)
    return f"needs mount namespaces and overlayfs: {tried.stderr.strip()}" if tried.returncode else ""


class Machine:
    """A machine that runs, with its cards."""

    def __init__(self, folder: Path, pid: int, cpu: int) -> None:
        self._pid = pid
        self._cpu = cpu
        self._cards = [Memory(path) for path in sorted(folder.glob("card*.json"))]

    @property
    def root(self) -> Path:
        """Its root directory, seen from outside. Links to absolute paths, and Path.resolve, lead outside."""
        return Path(f"/proc/{self._pid}/root")

    def command(self, *argv: str) -> list[str]:
        """What runs a command there: for subprocess.Popen."""
        enter = ["nsenter", f"--target={self._pid}", "--mount", "--wd", "--"]
        return ["taskset", "--cpu-list", str(self._cpu), *enter, *argv]

    def run(self, *argv: str, timeout: float = TIMEOUT, env: Mapping[str, str] | None = None) -> Done:
        """Run a command there, in this working directory."""
        wanted = {**os.environ, "LC_ALL": "C", **(env or {})}
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        return subprocess.run(self.command(*argv), timeout=timeout, env=wanted, check=False, **pipes)

    def fault(self, card: int | None = None, **faults: Any) -> None:
        """From now on a card, or each of them, has these faults (cards.FAULTS) and no other."""
        if unknown := set(faults) - set(cards.FAULTS):
            raise ValueError(f"no such fault: {', '.join(sorted(unknown))}")
        for memory in self._cards if card is None else [self._cards[card]]:
            with memory.change() as state:
                state["faults"] = faults

    def value(self, name: str, which: str = "next", card: int = 0, function: int = 0) -> int:
        """A parameter as it is by `default`, at `current` or at the `next` start."""
        memory = self._cards[card]
        memory.reload()
        return memory.get(name, which, function)

    def set(self, name: str, value: int, card: int = 0, function: int = 0) -> None:
        """Store a parameter for the next start behind everybody's back: not counted as a write."""
        memory = self._cards[card]
        memory.reload()
        memory.put(name, value, function)

    def firmware_writes(self) -> int:
        """How many times the cards' firmware was asked to store something (register NVDA, method set)."""
        for memory in self._cards:
            memory.reload()
        return sum(memory.state["writes"] for memory in self._cards)

    def reboot(self) -> None:
        """Start again, warm: the next values become current, but not where a card needs a power cycle."""
        self._start(cold=False)

    def power_cycle(self) -> None:
        """Start again, cold: the next values become current."""
        self._start(cold=True)

    def _start(self, *, cold: bool) -> None:
        """What both forget: VFs, /run, the id of the boot."""
        for memory in self._cards:
            memory.reload()
            memory.start(load=cold or not memory.faults.get("needs_power_cycle"))
        for entry in (self.root / "run").iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        (self.root / "proc/sys/kernel/random/boot_id").write_text(f"{uuid.uuid4()}\n")


Done = subprocess.CompletedProcess[str]


@contextmanager
def machine(folder: Path, *plugged: Card) -> Iterator[Machine]:
    """A machine with these cards (one cx5ex without any), whose memory is kept in this folder."""
    folder = folder / "connectx"
    folder.mkdir()
    for number, (kind, addresses, settings) in enumerate(plugged or (card(),)):
        create(folder / f"card{number}.json", kind, addresses, number, settings)
    search = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    # One CPU for the card and for who asks it: a query is 80,000 turns from one to the other, and in a virtual machine
    # waking another CPU takes ten times as long as the work itself.
    cpus = sorted(os.sched_getaffinity(0))
    cpu = cpus[os.getpid() % len(cpus)]
    command = ["taskset", "--cpu-list", str(cpu), sys.executable, "-m", "connectx", "serve", str(folder)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": search}, **pipes) as holder:
        if holder.stdout is None or holder.stdout.readline() != "ready\n":
            raise RuntimeError("the machine did not start: see standard error")
        yield Machine(folder, holder.pid, cpu)
