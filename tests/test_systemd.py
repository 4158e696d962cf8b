"""The units, as systemd itself reads them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hostprep.model import Profile

FOLDER = Path(__file__).parent.parent / "systemd"
UNITS = sorted(path for path in FOLDER.iterdir() if path.name.startswith("hostprep-"))
SERVICES = [path for path in UNITS if path.suffix == ".service"]
PROGRAM = re.compile(r"(?<=[= ])hostprep (?=(apply|check|serve|wait) ?)")
# systemd-analyze security, times ten: what each may do at most. Those that look at the host or change it need much.
# What gives a unit a mount namespace (systemd.exec(5)): its mounts would be seen as disks of the host.
MOUNTS = {"ProtectSystem", "ProtectHome", "ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "PrivateMounts"}
MOUNTS |= {"ProtectHostname", "ProtectControlGroups", "BindPaths", "TemporaryFileSystem", "RootDirectory"}
GATED = ["pbs.service", "kubelet.service", "docker.service", "slurmd.service"]
EXPOSURE = {"apply": 78, "check": 70, "prune": 71, "publish": 20, "ready": 20, "serve": 15}


@pytest.mark.parametrize("unit", UNITS, ids=lambda p: p.name)
def test_systemd_finds_nothing_wrong_with_a_unit(unit: Path, tmp_path: Path) -> None:
    """It says nothing and exits 0. The program is this interpreter: hostprep need not be on systemd's path here."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    assert unit.suffix != ".service" or PROGRAM.search(unit.read_text())
    for other in UNITS:
        startable(other, tmp_path)
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=yes", str(tmp_path / unit.name)]
    environment = os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("unit", SERVICES, ids=lambda p: p.name)
def test_a_service_may_do_no_more_than_it_has_to(unit: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    limit = EXPOSURE[unit.stem.removeprefix("hostprep-")]
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={limit}", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze cannot look at files (250 can)")
    assert done.returncode == 0, done.stdout.splitlines()[-1:]


def test_r36_r131_vfs_are_made_before_the_network_is_configured_and_in_no_circle(tmp_path: Path) -> None:
    """In one start with all that configures networks here; of a circle, systemd leaves one unit out and exits 0."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    wants = tmp_path / "multi-user.target.wants"
    wants.mkdir()
    for unit in UNITS:
        (wants / unit.name).symlink_to(startable(unit, tmp_path))
    (wants / "systemd-networkd.service").symlink_to("/lib/systemd/system/systemd-networkd.service")
    for name in GATED:  # as `hostprep install systemd --gate` makes them wait
        (tmp_path / name).write_text("[Service]\nExecStart=/bin/true\n")
        (tmp_path / f"{name}.d").mkdir()
        (tmp_path / f"{name}.d/50-hostprep.conf").write_text((FOLDER / "gate.conf").read_text())
        (wants / name).symlink_to(tmp_path / name)
    command = ["systemd-analyze", "verify", "--man=no", "multi-user.target"]
    environment = os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert not re.search("cycl|hostprep", done.stdout + done.stderr)
    before = [word for name in ("Before", "Wants") for word in values("hostprep-apply.service", name)]
    assert before.count("network-pre.target") == 2
    assert "hostprep-apply.service" in values("hostprep-check.service", "After")


def test_what_looks_and_what_changes_can_do_so_and_see_the_lock_files_of_others() -> None:
    """R53: tools of the card lock each other out by files in /tmp; without it they go on, and collide."""
    closed = {"PrivateTmp", "ProtectKernelTunables", "PrivateDevices", "PrivateNetwork", "ProtectKernelModules"}
    closed |= {"DevicePolicy", "DeviceAllow", "ProtectClock", "ProtectKernelLogs", "ProtectProc", "RestrictNamespaces"}
    for unit in ("hostprep-apply.service", "hostprep-check.service"):
        names = {line.partition("=")[0] for line in lines(unit)}
        assert not names & (closed | MOUNTS)


def startable(unit: Path, folder: Path) -> Path:
    """A copy of a unit that starts this interpreter's hostprep."""
    copy = folder / unit.name
    copy.write_text(PROGRAM.sub(f"{sys.executable} -m hostprep ", unit.read_text()))
    return copy


def lines(unit: str) -> list[str]:
    return (UNITS[0].parent / unit).read_text().splitlines()


def values(unit: str, name: str) -> list[str]:
    """All that a unit says under one name."""
    return [word for line in lines(unit) if line.startswith(f"{name}=") for word in line.partition("=")[2].split()]


def test_a_host_that_is_not_ready_is_no_failed_unit() -> None:
    """1, 3 and 4 speak of the host and are in the report; what speaks of hostprep is a failure of the unit."""
    assert values("hostprep-check.service", "SuccessExitStatus") == ["1", "3", "4"]
    assert not values("hostprep-ready.service", "SuccessExitStatus")


def test_the_periodic_look_is_not_the_gate() -> None:
    """A oneshot that remains active is not started again by its timer; the gate is what remains."""
    assert not values("hostprep-check.service", "RemainAfterExit")
    assert values("hostprep-ready.service", "RemainAfterExit") == ["yes"]
    assert values("hostprep-ready.target", "Requires") == ["hostprep-ready.service"]


def test_what_waits_is_not_stopped_by_stopping_what_it_waited_for() -> None:
    """Requires= hands a stop on (systemd.unit(5)); the jobs of a node must not end by it."""
    for unit in ("hostprep-ready.service", "hostprep-ready.target"):
        assert values(unit, "RefuseManualStop") == ["yes"]


def test_the_kubelet_starts_after_huge_pages_and_devices_are_there() -> None:
    """kubernetes#64691: it counts them once."""
    assert "kubelet.service" in values("hostprep-apply.service", "Before")


def test_a_report_is_renewed_long_before_it_is_too_old() -> None:
    assert values("hostprep-check.timer", "OnUnitInactiveSec") == ["5min"]
    assert Profile("", "", {}).valid_for >= 3 * 6 * 60
