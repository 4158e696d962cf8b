"""The units, as systemd itself reads them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = sorted((Path(__file__).parent.parent / "systemd").glob("*.service"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda p: p.name)
def test_systemd_finds_nothing_wrong_with_a_unit(unit: Path, tmp_path: Path) -> None:
    """It says nothing and exits 0. The program is this interpreter: hostprep need not be on systemd's path here."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    assert "ExecStart=hostprep " in unit.read_text()
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=yes", str(startable(unit, tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_r36_r131_vfs_are_made_before_the_network_is_configured_and_in_no_circle(tmp_path: Path) -> None:
    """In one start with all that configures networks here; of a circle, systemd leaves one unit out and exits 0."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    wants = tmp_path / "multi-user.target.wants"
    wants.mkdir()
    for unit in UNITS:
        (wants / unit.name).symlink_to(startable(unit, tmp_path))
    (wants / "systemd-networkd.service").symlink_to("/lib/systemd/system/systemd-networkd.service")
    command = ["systemd-analyze", "verify", "--man=no", "multi-user.target"]
    environment = os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "cycle" not in done.stdout + done.stderr
    before = [word for name in ("Before", "Wants") for word in values("hostprep-apply.service", name)]
    assert before.count("network-pre.target") == 2
    assert "hostprep-apply.service" in values("hostprep-check.service", "After")


def test_the_boot_unit_can_write_sysfs_and_sees_the_lock_files_of_others() -> None:
    """R53: tools of the card lock each other out by files in /tmp; without it they go on, and collide."""
    names = {line.partition("=")[0] for line in lines("hostprep-apply.service")}
    assert not names & {"PrivateTmp", "ProtectKernelTunables", "ProtectSystem", "PrivateDevices", "PrivateNetwork"}


def startable(unit: Path, folder: Path) -> Path:
    """A copy of a unit that starts this interpreter's hostprep."""
    copy = folder / unit.name
    copy.write_text(unit.read_text().replace("ExecStart=hostprep ", f"ExecStart={sys.executable} -m hostprep "))
    return copy


def lines(unit: str) -> list[str]:
    return (UNITS[0].parent / unit).read_text().splitlines()


def values(unit: str, name: str) -> list[str]:
    """All that a unit says under one name."""
    return [word for line in lines(unit) if line.startswith(f"{name}=") for word in line.partition("=")[2].split()]


def test_a_host_that_is_not_ready_is_no_failed_unit() -> None:
    """1, 3 and 4 speak of the host and are in the report; what speaks of hostprep is a failure of the unit."""
    text = (UNITS[0].parent / "hostprep-check.service").read_text()
    assert "SuccessExitStatus=1 3 4\n" in text
