"""The units, as systemd itself reads them."""

from __future__ import annotations

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
    text = unit.read_text()
    assert "ExecStart=hostprep " in text
    copy = tmp_path / unit.name
    copy.write_text(text.replace("ExecStart=hostprep ", f"ExecStart={sys.executable} -m hostprep "))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=yes", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_host_that_is_not_ready_is_no_failed_unit() -> None:
    """1, 3 and 4 speak of the host and are in the report; what speaks of hostprep is a failure of the unit."""
    text = (UNITS[0].parent / "hostprep-check.service").read_text()
    assert "SuccessExitStatus=1 3 4\n" in text
