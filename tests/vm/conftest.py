"""A guest of its own for every test in this folder."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vm import qemu
from vm.guest import Guest, thawed
from vm.image import ROOT, Image, image
from vm.qemu import Snapshot
from vm.story import STEPS, table

SITE = "/opt/hostprep/lib/python3.11/site-packages"
# As an installation has them: the links in the package followed, and everything root's alone to write.
PACK = ("tar", "-cz", "--dereference", "--exclude=__pycache__", "--owner=0", "--group=0", "--mode=go-w", "hostprep")


@pytest.fixture(scope="session")
def vm_image() -> Image:
    """The image, made now if it must be: a few minutes."""
    if why := qemu.why_not():
        pytest.skip(why)
    return image()


@pytest.fixture(scope="session")
def snapshot(vm_image: Image) -> Iterator[Snapshot]:
    """A machine that has booted, with the hostprep of this working tree."""
    packed = subprocess.run(PACK, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    with tempfile.TemporaryDirectory(prefix="hostprep-vm-") as name:
        folder = Path(name)
        with thawed(vm_image.snapshot, vm_image.pciids, folder) as guest:
            guest.put(packed, "/tmp/hostprep.tgz")
            guest.sh(f"tar -xzf /tmp/hostprep.tgz -C {SITE} && rm /tmp/hostprep.tgz")
            guest.sh(f"/opt/hostprep/bin/python -m compileall -q {SITE}/hostprep", timeout=300)
            frozen = guest.freeze(folder / "memory")
        yield frozen


@pytest.fixture
def guest(vm_image: Image, snapshot: Snapshot) -> Iterator[Guest]:
    """A machine that nobody has touched; what its console said is shown when the test fails."""
    with thawed(snapshot, vm_image.pciids) as guest:
        yield guest
        print(guest.console())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was done to the machine, and how that went."""
    if STEPS:
        terminalreporter.section("on a machine that really reboots")
        for line in table(STEPS):
            terminalreporter.write_line(line)
