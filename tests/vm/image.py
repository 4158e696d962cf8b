"""The image and its first snapshot: made once, kept under build/vm or $HOSTPREP_VM_CACHE."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import NamedTuple

from vm import qemu
from vm.guest import started
from vm.qemu import Snapshot, overlay

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CACHE = Path(os.environ.get("HOSTPREP_VM_CACHE") or ROOT / "build" / "vm").absolute()


class Image(NamedTuple):
    """A machine that has just booted, without hostprep."""

    snapshot: Snapshot
    pciids: Path


def image() -> Image:
    """The image of these very sources, made now if there is none."""
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = CACHE / _key()
    with _locked(CACHE / "lock"):
        if not folder.exists():
            _forget_old()
            made = Path(tempfile.mkdtemp(dir=CACHE, prefix="new-"))
            _make(made)
            made.rename(folder)
        os.utime(folder)
    return Image(Snapshot(folder / "memory", folder / "booted" / "disk.qcow2"), folder / "pciids.so")


@contextlib.contextmanager
def shared(name: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """A folder that the first of several processes makes, and that the last one removes."""
    folder, lock = CACHE / name, CACHE / f"{name}.lock"
    with contextlib.ExitStack() as stack:
        with _locked(CACHE / "lock"):
            users = stack.enter_context(lock.open("w"))
            fcntl.flock(users, fcntl.LOCK_SH)
            if not (folder / "made").exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                (folder / "made").touch()
        try:
            yield folder
        finally:
            with _locked(CACHE / "lock"), contextlib.suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
                lock.unlink()


def _make(folder: Path) -> None:
    """The disk, and a snapshot of the machine once it has booted from there."""
    log = folder / "build.log"
    with log.open("wb") as out:
        command = [str(HERE / "build.sh"), str(folder), *_dependencies()]
        done = subprocess.run(command, stdout=out, stderr=out, env={**os.environ, "PYTHON": sys.executable})
    if done.returncode:
        raise RuntimeError(f"the image was not made; the end of {log}:\n{log.read_text(errors='replace')[-4000:]}")
    (folder / "booted").mkdir()
    with started(overlay(folder / "disk.qcow2", folder / "booted"), folder / "pciids.so") as guest:
        guest.sh("update-grub", timeout=300)
        guest.freeze(folder / "memory")


def _key() -> str:
    """Another name for whatever would give another image."""
    digest = hashlib.sha256(f"{qemu.version()} {_dependencies()}".encode())
    sources = [HERE / name for name in ("build.sh", "pciids.c", "connectx.c", "udevadm.c", "qemu.py", "image.py")]
    for path in (*sources, *sorted((HERE / "nvidia").iterdir())):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _dependencies() -> list[str]:
    """What hostprep itself needs, of Python's packages."""
    return sorted(line for line in requires("hostprep") or () if "extra ==" not in line)


def _forget_old() -> None:
    """Images that nobody used for a week, and what interrupted ones left."""
    for folder in CACHE.iterdir():
        if folder.is_dir() and (folder.name.startswith("new-") or folder.stat().st_mtime < time.time() - 7 * 86400):
            shutil.rmtree(folder)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
