"""A mount namespace whose /sys also holds the cards, and whose /etc, /run and /var/lib are its own.

Two processes live in it: one answers for the cards' files, one holds the namespace and ends when its standard input
does. Whatever was mounted goes with them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import sys
import uuid
from collections.abc import Collection
from pathlib import Path

from connectx import fuse, sysfs
from connectx.memory import Memory

CLONE_NEWNS = 0x00020000
BIND, RECURSIVE, PRIVATE = 0x1000, 0x4000, 0x40000
PR_SET_PDEATHSIG = 1
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PERSISTENT = (Path("/etc"), Path("/var/lib"))
LOCKS = Path("/tmp/mstflint_lockfiles")  # of mstflint's access layer, by PCI address: not shared with other machines
CARDS = "card*.json"


def serve(folder: Path) -> None:
    """Make the machine whose cards are in this folder, say so on standard output, and keep it until input ends."""
    real = os.open("/sys", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    libc = fuse.libc
    if libc.unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "no mount namespace")
    fuse.mount("none", Path("/"), flags=RECURSIVE | PRIVATE)
    work = folder / "mounts"
    work.mkdir(exist_ok=True)
    fuse.mount("connectx", work, "tmpfs", data="mode=700")
    cards = work / "cards"
    cards.mkdir()
    tree = sysfs.Tree([Memory(path) for path in sorted(folder.glob(CARDS))], real)
    server = fuse.Server(tree.lookup, cards)
    child = os.fork()
    if child == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        server.serve()
        os._exit(0)
    server.close()
    try:
        _assemble(cards, work / "sys")
        _own_files(work)
        print("ready", flush=True)
        sys.stdin.buffer.read()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _bind(source: Path, target: Path) -> None:
    """Bind a file or directory, and all that is mounted below it, to a target that is made."""
    if stat.S_ISDIR(source.stat().st_mode):
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.touch()
    fuse.mount(str(source), target, flags=BIND | RECURSIVE)


def _mirror(source: Path, target: Path, but: Collection[str] = ()) -> None:
    """Make a directory with what another one holds."""
    target.mkdir(parents=True, exist_ok=True)
    for entry in source.iterdir() if source.is_dir() else ():
        if entry.name in but:
            continue
        if entry.is_symlink():
            (target / entry.name).symlink_to(entry.readlink())
        else:
            _bind(entry, target / entry.name)


def _assemble(cards: Path, new: Path) -> None:
    """A /sys in which all that is real is bound, and the cards' entries are added."""
    new.mkdir()
    fuse.mount("sysfs", new, "tmpfs", data="mode=755")
    real = Path("/sys")
    _mirror(real, new, {"bus", "class", "devices", "kernel"})
    _mirror(real / "devices", new / "devices")
    _mirror(cards / "devices", new / "devices")
    _mirror(real / "kernel", new / "kernel", {"security", "iommu_groups"})
    _mirror(cards / "kernel", new / "kernel")
    _mirror(real / "bus", new / "bus", {"pci"})
    _mirror(real / "bus/pci", new / "bus/pci", {"devices", "drivers", "drivers_probe", "rescan"})
    _mirror(cards / "bus/pci", new / "bus/pci", {"drivers"})
    _mirror(real / "bus/pci/drivers", new / "bus/pci/drivers", {sysfs.MLX5, sysfs.VFIO})
    _mirror(cards / "bus/pci/drivers", new / "bus/pci/drivers")
    _mirror(real / "class", new / "class", {"net", "infiniband"})
    _mirror(cards / "class", new / "class")
    fuse.mount(str(new), real, flags=BIND | RECURSIVE)


def _own_files(work: Path) -> None:
    """Files that the machine may write without touching this one, and the id of its boot."""
    for place in PERSISTENT:
        upper, scratch = work / f"upper{place.name}", work / f"scratch{place.name}"
        upper.mkdir()
        scratch.mkdir()
        fuse.mount("overlay", place, "overlay", data=f"lowerdir={place},upperdir={upper},workdir={scratch}")
    fuse.mount("run", Path("/run"), "tmpfs", data="mode=755")
    LOCKS.mkdir(mode=0o777, exist_ok=True)
    fuse.mount("locks", LOCKS, "tmpfs", data="mode=777")
    boot_id = work / "boot_id"
    boot_id.write_text(f"{uuid.uuid4()}\n")
    fuse.mount(str(boot_id), BOOT_ID, flags=BIND)
