"""The line on this very machine: huge pages really in sysfs, a real swap file, the real command.

The machine's /etc is left alone: everything runs in a mount namespace of its own, where /etc is a copy. Pages and swap
are the kernel's, and are put back whatever happens.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from one_at_a_time import machine_to_itself

from hostprep import jobs
from hostprep.host import Host

pytestmark = pytest.mark.machine
POOLS = Path("/sys/kernel/mm/hugepages")
SIZES = {"2MiB": POOLS / "hugepages-2048kB", "1GiB": POOLS / "hugepages-1048576kB"}


class Machine:
    """This machine, as a namespace with an /etc of its own sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.etc = folder / "etc"
        self.swapfile = folder / "swapfile"

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command where /etc is the copy."""
        inner = 'mount --bind "$0" /etc && exec "$@"'
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", inner, str(self.etc), *argv]
        return subprocess.run(command, capture_output=True, text=True, check=check)

    def hostprep(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "hostprep", *argv, check=False)

    def etc_files(self) -> dict[str, tuple[int, bytes]]:
        files = [p for p in self.etc.rglob("*") if p.is_file() and not p.is_symlink()]
        return {str(p): (p.stat().st_mode, p.read_bytes()) for p in files} | {
            str(p): (0, os.readlink(p).encode()) for p in self.etc.rglob("*") if p.is_symlink()
        }

    def statuses(self, profile: Path) -> dict[str, str]:
        done = self.hostprep("check", "--profile", str(profile), "--format", "json")
        return {f"{f['check']}/{f['key']}": f["status"] for f in json.loads(done.stdout)["findings"]}


def pages(size: str) -> int:
    return int((SIZES[size] / "nr_hugepages").read_text())


def swaps() -> list[str]:
    return [line.split()[0] for line in Path("/proc/swaps").read_text().splitlines()[1:]]


def available_mib() -> int:
    line = next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemAvailable:"))
    return int(line.split()[1]) // 1024


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """This machine, where no other test starts what a change would disturb."""
    with machine_to_itself():
        yield from with_swap(tmp_path)


def with_swap(tmp_path: Path) -> Iterator[Machine]:
    """This machine with a swap file of ours turned on, and named in the /etc that the test sees."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it changes huge pages and swap of this machine, and undoes it")
    if running := jobs.listing(Host()):
        pytest.skip(f"others run here, whom a change would disturb: {running}")
    if swaps():
        pytest.skip("this machine has swap of its own, which a test does not turn off")
    if not all(
        (pool / "nr_hugepages").exists() and os.access(pool / "nr_hugepages", os.W_OK) for pool in SIZES.values()
    ):
        pytest.skip("this kernel has no pools of 2 MiB and 1 GiB that can be written")
    if available_mib() < 9 * 1024:
        pytest.skip("fewer than 9 GiB of memory are available, too few for pages of 1 GiB and the floor")
    machine = Machine(tmp_path)
    shutil.copytree("/etc", machine.etc, symlinks=True)
    if machine.run("true", check=False).returncode != 0:
        pytest.skip("no mount namespace can be made here")
    before = {size: pages(size) for size in SIZES}
    with machine.swapfile.open("wb") as f:
        f.write(bytes(32 * 1024 * 1024))
    machine.swapfile.chmod(0o600)
    subprocess.run(["mkswap", str(machine.swapfile)], check=True, capture_output=True)
    if subprocess.run(["swapon", str(machine.swapfile)], capture_output=True).returncode != 0:
        pytest.skip("swapon is not allowed here")
    with (machine.etc / "fstab").open("a") as f:
        f.write(f"{machine.swapfile} none swap sw 0 0\n")
    try:
        yield machine
    finally:
        subprocess.run(["swapoff", str(machine.swapfile)], capture_output=True)
        for size, count in before.items():
            (SIZES[size] / "nr_hugepages").write_text(str(count))


def write_profile(folder: Path, text: str) -> Path:
    path = folder / "profile.yaml"
    path.write_text(text)
    return path


def test_apply_converges_applies_nothing_twice_and_revert_restores_everything(machine: Machine, tmp_path: Path) -> None:
    """K7 and K9: swap off and huge pages there, now and after a reboot."""
    wanted = {"2MiB": pages("2MiB") + 32, "1GiB": pages("1GiB") + 1}
    before = {size: pages(size) for size in SIZES}
    profile = write_profile(
        tmp_path, f"swap: disabled\nhugepages: {{2MiB: {wanted['2MiB']}, 1GiB: {wanted['1GiB']}}}\n"
    )
    files = machine.etc_files()
    assert machine.statuses(profile)["swap/devices"] == "fail"

    planned = machine.hostprep("plan", "--profile", str(profile))
    assert planned.returncode == 1
    assert f"swapoff {machine.swapfile}" in planned.stdout
    assert "none swap sw,noauto 0 0" in planned.stdout
    assert (machine.etc_files(), swaps()) == (files, [str(machine.swapfile)]), "plan changes nothing"

    applied = machine.hostprep("apply", "--profile", str(profile), "--yes")
    assert applied.returncode == 0, applied.stdout + applied.stderr
    assert {size: pages(size) for size in SIZES} == wanted
    assert swaps() == []
    assert set(machine.statuses(profile).values()) == {"pass"}

    journal = (tmp_path / "state" / "journal").read_bytes()
    after = machine.etc_files()
    assert machine.hostprep("apply", "--profile", str(profile), "--yes").returncode == 0
    assert (tmp_path / "state" / "journal").read_bytes() == journal, "a second apply writes nothing"
    assert machine.etc_files() == after

    reverted = machine.hostprep("revert", "--yes")
    assert reverted.returncode == 0, reverted.stdout + reverted.stderr
    assert {size: pages(size) for size in SIZES} == before
    assert swaps() == [str(machine.swapfile)]
    assert machine.etc_files() == files


def test_a_reservation_that_would_starve_this_machine_is_refused_before_it_is_written(
    machine: Machine, tmp_path: Path
) -> None:
    """K8 on K1: as many pages of 1 GiB as the machine has memory."""
    count = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 1024**3
    profile = write_profile(tmp_path, f"hugepages: {{1GiB: {count}}}\n")
    before, files = pages("1GiB"), machine.etc_files()
    done = machine.hostprep("apply", "--profile", str(profile), "--yes")
    assert done.returncode == 1
    assert "to boot and run" in done.stderr
    assert (pages("1GiB"), machine.etc_files()) == (before, files)


def test_pages_in_use_are_not_free(machine: Machine, tmp_path: Path) -> None:
    """K9: all pages are free before the host joins."""
    have = pages("2MiB") + 4
    (SIZES["2MiB"] / "nr_hugepages").write_text(str(have))
    profile = write_profile(tmp_path, f"hugepages: {{2MiB: {have}, free: all}}\n")
    assert machine.statuses(profile)["hugepages/2MiB/free"] == "pass"
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    map_private_anonymous_hugetlb, read_write, size = 0x2 | 0x20 | 0x40000, 0x1 | 0x2, 2 * 1024 * 1024
    address = libc.mmap(None, ctypes.c_size_t(size), read_write, map_private_anonymous_hugetlb, -1, ctypes.c_long(0))
    assert address not in (None, ctypes.c_void_p(-1).value), os.strerror(ctypes.get_errno())
    try:
        ctypes.memset(address, 1, 1)
        assert machine.statuses(profile)["hugepages/2MiB/free"] == "fail"
    finally:
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
