"""A guest of its own for every test in this folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vm import qemu
from vm.firmware import Card
from vm.guest import Guest, thawed
from vm.image import ROOT, Image, image, shared
from vm.qemu import Snapshot
from vm.story import STEPS, Step, table

WHEEL = (sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", ".")
# As a user does it (`pip install .`), but for the packages that it needs: those came with the image.
INSTALL = """
/opt/hostprep/bin/pip install --quiet --disable-pip-version-check --no-index --no-deps /tmp/hostprep-*.whl
rm /tmp/hostprep-*.whl; ln -sf /opt/hostprep/bin/hostprep /usr/local/bin/hostprep
"""
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "hostprep", "checks", "systemd")
STEP = "step"
LONGEST = (
    "test_story",
    "test_power_cuts",
    "test_trouble_kernel",
    "test_trouble_grub",
    "test_trouble_room",
    "test_firmware",
    "test_gpu",
)


@pytest.fixture(scope="session")
def vm_image() -> Image:
    """The image, made now if it must be: a few minutes."""
    if why := qemu.why_not():
        pytest.skip(why)
    return image()


@pytest.fixture(scope="session")
def snapshot(vm_image: Image) -> Iterator[Snapshot]:
    """A machine that has booted, with the hostprep of this working tree: the processes of a run have one for all."""

    def make(folder: Path) -> None:
        wheel = _wheel(folder)
        with thawed(vm_image.snapshot, vm_image.pciids, folder) as guest:
            guest.put(wheel, f"/tmp/{wheel.name}")
            guest.sh(INSTALL, timeout=300)
            guest.freeze(folder / "memory")

    with shared(f"run-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}", make) as folder:
        yield Snapshot(folder / "memory", folder / "disk.qcow2")


def _wheel(folder: Path) -> Path:
    """The working tree as a wheel, built from a copy: setuptools leaves build/lib behind, and takes what lies there."""
    source = folder / "source"
    source.mkdir()
    subprocess.run(["cp", "-a", *SOURCES, source], cwd=ROOT, check=True)
    subprocess.run([*WHEEL, "--wheel-dir", str(folder)], cwd=source, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(autouse=True)
def _steps(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test did to its machine goes with its report, from whatever process ran it."""
    STEPS.clear()
    yield
    request.node.user_properties += [(STEP, tuple(step)) for step in STEPS]


@pytest.fixture
def card(tmp_path: Path) -> Card:
    """A ConnectX-5 as it comes from the factory: no VFs."""
    return Card(tmp_path)


@pytest.fixture
def guest(request: pytest.FixtureRequest, vm_image: Image, snapshot: Snapshot) -> Iterator[Guest]:
    """A machine that nobody has touched, with the card of a test that has one.

    What its console said is shown when the test fails.
    """
    card = request.getfixturevalue("card") if "card" in request.fixturenames else None
    with thawed(snapshot, vm_image.pciids, card=card) as guest:
        yield guest
        print(guest.console())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: the two machines then end at about the same time."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was done to the machine, and how that went."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    told = [
        value
        for r in reports
        if getattr(r, "when", "") == "teardown"
        for key, value in r.user_properties
        if key == STEP
    ]
    if told:
        terminalreporter.section("on a machine that really reboots")
        for line in table([Step(*row) for row in told]):
            terminalreporter.write_line(line)
