"""Killed at any point: the next look tells the truth, the next apply converges, revert gives back the original.

A child makes a real apply (or revert) over a fake host and is killed, with SIGKILL, before the n-th thing that it
does to a file, a directory, a kernel attribute or by a command, or half way through writing to the journal or to a
file. For every n, until it survives.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import apply, findings
from fake_kernel import FakeKernel, swap_commands, with_swap
from fakes import CMDLINE, HUGE_1G, debian, grub_cfg, mkconfig

from hostprep import engine, perform, registry
from hostprep.engine import Answer, Checks
from hostprep.host import Host
from hostprep.journal import Journal
from hostprep.perform import Performer
from hostprep.revert import revert

WANT: dict[str, Any] = {
    "hugepages": {"1GiB": 4, "2MiB": {0: 8}},
    "swap": "disabled",
    "kernel_args": ["iommu=pt"],
}
SWAPS = ("/swapfile", "/swapfile2")
MUTATIONS = ("replace", "mkdir", "rmdir", "unlink", "symlink", "ftruncate")
Tree = dict[str, tuple[int, str]]


class Death:
    """Kills the process that it was made in at the n-th step."""

    def __init__(self, at: int) -> None:
        self.left, self.pid = at, os.getpid()
        self.spared = False

    def step(self) -> None:
        if os.getpid() == self.pid and not self.spared:  # not in the children of the process
            self.left -= 1
            if self.left == 0:
                os.kill(self.pid, signal.SIGKILL)

    def before(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def mortal(*args: Any, **more: Any) -> Any:
            self.step()
            return real(*args, **more)

        return mortal

    def whole(self, real: Callable[..., None]) -> Callable[..., None]:
        """What the kernel does, it does at once."""

        def spared(*args: Any) -> None:
            self.spared = True
            real(*args)
            self.spared = False

        return spared

    def within(self, write: Callable[[int, bytes], int]) -> Callable[[int, bytes], int]:
        def mortal(fd: int, data: bytes) -> int:
            if os.getpid() != self.pid:
                return write(fd, data)
            half = len(data) // 2
            done = write(fd, data[:half])
            self.step()
            return done + write(fd, data[half:])

        return mortal


def die_at(at: int, host: FakeKernel) -> None:
    """From here on every change of anything is a step; for the children of a fork, which never come back."""
    death = Death(at)
    for name in MUTATIONS:
        setattr(os, name, death.before(getattr(os, name)))
    os.write = death.within(os.write)  # type: ignore[assignment]
    FakeKernel.write = death.before(FakeKernel.write)  # type: ignore[method-assign]
    FakeKernel.put = death.whole(FakeKernel.put)  # type: ignore[method-assign]
    FakeKernel._answer = death.before(FakeKernel._answer)  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look without a child for every check, and without waiting for the disk: hundreds of runs are made here."""

    def inspect(
        host: Host,
        checks: Checks,
        deadline: float = 0,
        sections: Mapping[str, Any] | None = None,
        keys: Collection[str] = (),
    ) -> dict[str, Answer]:
        looks = {
            name: engine._inspector(host, check, (sections or {}).get(name), keys) for name, check in checks.items()
        }
        return {name: Answer(engine._facts(look()), 0) for name, look in looks.items()}

    monkeypatch.setattr(engine, "inspect", inspect)
    monkeypatch.setattr(perform, "inspect", inspect)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def machine(place: Path) -> FakeKernel:
    """The host in a directory, where it exists, else a new one."""
    unread = ("/sys/devices/system/cpu", "/sys/class/net", "/etc/os-release")
    files = {
        **{path: text for path, text in with_swap(debian(), *SWAPS).items() if not path.startswith(unread)},
        "/boot/grub/grub.cfg": "# edited by hand\n" + grub_cfg(CMDLINE),
        "/proc/sys/vm/drop_caches": "0\n",
    }
    host = FakeKernel(place / "root", {} if (place / "root").exists() else files)
    host.commands = {"grub-mkconfig": mkconfig(host), **swap_commands(host, SWAPS)}
    return host


def tree(host: FakeKernel) -> Tree:
    return {**host.snapshot(), **dict.fromkeys(host.directories(), (0, "directory"))}


def converge(host: FakeKernel, journal: Journal) -> None:
    performer = apply(host, WANT, journal)
    assert not performer.failures


def take_back(host: FakeKernel, journal: Journal) -> None:
    performer = Performer(host, registry.load(WANT), journal, lambda line: None)
    revert(performer)
    assert not performer.failures


def killed(place: Path, at: int, work: Callable[[FakeKernel, Journal], None]) -> bool:
    """Do this work in a child that dies at its n-th step; False when it was done before."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            host = machine(place)
            die_at(at, host)
            work(host, Journal(str(place / "journal"), "this-boot"))
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), f"step {at}: the work itself failed"
    return status != 0


def statuses_by_the_files(host: FakeKernel) -> dict[str, str]:
    """What is true of the host, by its files alone."""
    grub = host.read("/boot/grub/grub.cfg") or ""
    fstab = [line for line in (host.read("/etc/fstab") or "").splitlines() if " swap " in line]
    node = "/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages"
    lines = host.read("/etc/tmpfiles.d/hostprep-hugepages.conf") or ""
    sides = {
        "hugepages/1GiB": (host.number(f"{HUGE_1G}/nr_hugepages") >= 4, "hugepagesz=1G hugepages=4" in grub),
        "hugepages/2MiB/node0": (host.number(node) >= 8, f"w {node} - - - - 8" in lines),
        "hugepages/host-memory": (True, True),
        "swap/devices": ("/swapfile" not in (host.read("/proc/swaps") or ""), all("noauto" in line for line in fstab)),
        "kernel_args/iommu": (False, "iommu=pt" in grub),
    }
    words = {(True, True): "pass", (True, False): "volatile", (False, True): "pending-reboot", (False, False): "fail"}
    return {name: words[both] for name, both in sides.items()}


def check_truth(host: FakeKernel) -> None:
    assert {n: f.status.value for n, f in findings(host, WANT).items()} == statuses_by_the_files(host)


def copied(place: Path, name: str) -> tuple[FakeKernel, Journal]:
    there = place.with_name(name)
    shutil.rmtree(there, ignore_errors=True)
    shutil.copytree(place, there, symlinks=True)
    return machine(there), Journal(str(there / "journal"), "this-boot")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: files keep their owner")
@pytest.mark.parametrize("work", [converge, take_back])
def test_killed_at_every_step(tmp_path: Path, work: Callable[[FakeKernel, Journal], None]) -> None:
    """T11, and the promise never to leave a host worse than it was found. What follows a kill is drawn by its step."""
    original = tree(machine(tmp_path / "start"))
    if work is take_back:
        converge(machine(tmp_path / "start"), Journal(str(tmp_path / "start" / "journal"), "this-boot"))
    survived, at = False, 0
    while not survived:
        at += 1
        host, journal = copied(tmp_path / "start", "dying")
        survived = not killed(tmp_path / "dying", at, work)
        check_truth(host)
        if random.Random(at).random() < 0.5:
            converge(host, journal)
            check_truth(host)
            assert set(statuses_by_the_files(host).values()) == {"pass", "pending-reboot"}, at
        take_back(host, journal)
        assert tree(host) == original, f"killed at step {at}"
        assert not journal.standing(), at
        assert not journal.kept_files(), at
    assert at > 30  # the steps were really seen
