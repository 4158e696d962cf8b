"""A guest as a test sees it: run something in it, move files, reboot it."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from vm.firmware import Card
from vm.qemu import BOOT, Machine, Snapshot, overlay

READY = "systemctl is-system-running --wait; status=$?; udevadm settle; exit $status"


class Guest:
    """A running guest; its disk is an overlay that goes with it."""

    def __init__(self, machine: Machine, card: Card | None = None) -> None:
        self.machine = machine
        self.card = card

    def run(self, command: str, stdin: str = "", timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a shell command as root, whatever it ends with.

        What it leaves in the background must not keep stdout or stderr open: the agent waits for both to close.
        """
        return self.machine.agent.run(command, stdin, timeout)

    def sh(self, command: str, stdin: str = "", timeout: float = 120) -> str:
        """What a shell command that has to succeed says, without the last newline."""
        done = self.run(command, stdin, timeout)
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.rstrip("\n")

    def put(self, content: str | bytes | Path, path: str) -> None:
        """Write a file, with this content or that of a file here."""
        data = content.read_bytes() if isinstance(content, Path) else content
        self.machine.agent.write(path, data.encode() if isinstance(data, str) else data)

    def get(self, path: str) -> bytes:
        """What is in a file, of any size (those in sysfs: use `sh`)."""
        return self.machine.agent.read(path)

    def reboot(self, *, degraded: bool = False) -> None:
        """Reboot, and wait until the boot has ended.

        After a `degraded` boot some unit has failed, as the test expects.
        """
        self.machine.monitor.forget()
        self.machine.agent.tell("/bin/systemctl", "reboot")
        self.restarts(BOOT)
        self.booted("degraded" if degraded else "running")

    def restarts(self, timeout: float) -> None:
        """Wait until the machine starts again, by itself or by somebody else: its card starts with it."""
        self.machine.monitor.wait("RESET", timeout)
        if self.card:
            self.card.start()

    def booted(self, state: str = "running") -> None:
        """Wait until systemd has started all there is, and udev is done."""
        self.machine.agent.hello(BOOT)
        done = self.run(READY, timeout=BOOT)
        assert done.stdout.strip() == state, (
            f"{done.stdout}{self.run('systemctl --failed --no-legend').stdout}{self.console()}"
        )

    def boot_id(self) -> str:
        return self.sh("cat /proc/sys/kernel/random/boot_id")

    def console(self) -> str:
        """The end of what came on the serial console."""
        return (self.machine.folder / "console.log").read_text(errors="replace")[-4000:]

    def kill(self) -> None:
        """Pull the plug, for good: what was not yet written to the disk is lost."""
        self.machine.kill()

    def freeze(self, memory: Path) -> Snapshot:
        """Keep this machine as it is; it ends."""
        self.sh("sync")
        return self.machine.freeze(memory)


@contextlib.contextmanager
def started(disk: Path, pciids: Path, card: Card | None = None) -> Iterator[Guest]:
    """A guest that boots from this very disk."""
    firmware = card.path if card else None
    with _scratch() as scratch, _running(Machine(scratch, disk, pciids, firmware=firmware), card) as guest:
        guest.booted()
        yield guest


@contextlib.contextmanager
def thawed(snapshot: Snapshot, pciids: Path, folder: Path | None = None, card: Card | None = None) -> Iterator[Guest]:
    """A guest that goes on where a snapshot was taken; its disk goes into the folder, for what is to be kept.

    Without a card nothing answers for the firmware of its ConnectX. With one, the kernel asks it for its VFs when it
    boots the next time.
    """
    with _scratch() as scratch:
        disk = overlay(snapshot.disk, folder or scratch)
        machine = Machine(scratch, disk, pciids, thaw=snapshot.memory, firmware=card.path if card else None)
        with _running(machine, card) as guest:
            guest.machine.agent.hello(60)
            guest.machine.agent.command("guest-set-time", time=time.time_ns())
            yield guest


@contextlib.contextmanager
def _running(machine: Machine, card: Card | None) -> Iterator[Guest]:
    try:
        yield Guest(machine, card)
    finally:
        machine.kill()


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hostprep-vm-") as folder:
        yield Path(folder)
