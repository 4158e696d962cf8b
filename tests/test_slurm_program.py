"""Slurm's HealthCheckProgram as a program: what it makes of the report, what it asks of scontrol, and how it ends."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import FakeHost
from test_gate import made
from test_slurm import BAD, OURS, shown

from hostprep import packages, slurm
from hostprep.errors import HostError, ReportUnusable, UsageError
from hostprep.host import Host
from hostprep.model import Status
from hostprep.report import Report

# -- the report -------------------------------------------------------------------------------------


def missing() -> Report:
    raise ReportUnusable("there is no report")


def crashing() -> Report:
    os._exit(11)


def broken() -> Report:
    raise ZeroDivisionError


def hanging() -> Report:
    os.read(os.pipe()[0], 1)
    raise AssertionError


@pytest.mark.parametrize(
    ("look", "why"),
    [
        (lambda: made(Status.PASS), ""),
        (lambda: made(Status.PASS, Status.FAIL, Status.FAIL), "not ready: swap/device1, swap/device2"),
        (
            lambda: made(*[Status.FAIL] * 5),
            "not ready: swap/device0, swap/device1, swap/device2 and 2 more",
        ),
        (lambda: made(Status.UNKNOWN), "not ready, as far as can be told: swap/device0"),
        (lambda: made(), "not ready, as far as can be told: nothing is required"),
        (lambda: made(Status.PENDING), "not ready until a reboot: swap/device0"),
        (lambda: made(Status.POWER_CYCLE), "not ready until a power cycle: swap/device0"),
        (missing, "not ready: there is no report"),
        (crashing, "not ready: the report: gave no answer: exit 11"),
        (broken, "not ready: the report: gave no answer: exit 1"),
        (hanging, "not ready: the report: no answer within 1 s"),
    ],
)
def test_only_a_report_that_says_ready_is_ready(
    look: Callable[[], Report], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "_READING_S", 1.0 if look is hanging else 20.0)
    assert slurm.not_ready(Host(), look).startswith(why)
    assert bool(slurm.not_ready(Host(), look)) is bool(why)


# -- scontrol ---------------------------------------------------------------------------------------


def controller(tmp_path: Path, said: str, returns: int = 1) -> FakeHost:
    """A host whose scontrol says this."""
    answers = {
        "show node node1": said,
        "show config": f"Prolog = (null)\nReturnToService         = {returns}\n",
        f"update NodeName=node1 State=DRAIN Reason={OURS}": "",
    }
    return FakeHost(tmp_path / "root", {}, {"scontrol": lambda argv: answers[" ".join(argv[1:])]})


@pytest.mark.parametrize(
    ("said", "returns", "asked"),
    [
        (shown("IDLE"), 1, ["show node node1", f"update NodeName=node1 State=DRAIN Reason={OURS}"]),
        (shown("IDLE+DRAIN", f"{OURS} [root@now]"), 1, ["show node node1"]),
        (shown("DOWN*", "Not responding [slurm@now]"), 1, ["show node node1", "show config"]),
        (
            shown("DOWN*", "Not responding [slurm@now]"),
            2,
            ["show node node1", "show config", f"update NodeName=node1 State=DRAIN Reason={OURS}"],
        ),
    ],
)
def test_the_controller_is_asked_no_more_than_is_needed(
    tmp_path: Path, said: str, returns: int, asked: list[str]
) -> None:
    host = controller(tmp_path, said, returns)
    slurm.express(host, "node1", BAD)
    assert host.ran == [f"scontrol {words}" for words in asked]


@pytest.mark.parametrize("name", ["", "ALL", "all", "n[1-9]", "a,b", "-a", "n1 State=DOWN", "$(reboot)", "n1\n", "é"])
def test_a_name_that_would_mean_other_nodes_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        slurm.node_name(name)


def test_the_scontrol_beside_the_slurmd_that_runs_us_is_taken(tmp_path: Path) -> None:
    """Sites install Slurm where they like, and slurmd gives no PATH."""
    exe = f"/proc/{os.getppid()}/exe"
    host = FakeHost(tmp_path / "root", {exe: "-> /opt/slurm/sbin/slurmd"})
    assert slurm.scontrol(host) == "scontrol"
    host.put("/opt/slurm/bin/scontrol", "")
    assert slurm.scontrol(host) == "/opt/slurm/bin/scontrol"
    host.remove(exe)
    host.put(exe, "-> /opt/slurm/sbin/python3")
    assert slurm.scontrol(host) == "scontrol"


def test_without_a_controller_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def away(host: Host, name: str, why: str) -> list[str]:
        raise HostError("scontrol: no answer within 12 s")

    monkeypatch.setenv("SLURMD_NODENAME", "node1")
    monkeypatch.setattr(slurm, "express", away)
    assert slurm.main() == 3
    assert capsys.readouterr().err == "error: scontrol: no answer within 12 s\n"


def test_all_of_it_ends_before_slurmd_kills_it() -> None:
    """slurm.conf(5), HealthCheckProgram: 60 s."""
    assert slurm._READING_S + 3 * slurm._SCONTROL_S < 60


def test_the_program_imports_nothing_from_where_it_is_started(tmp_path: Path) -> None:
    """slurmd's directory is that of its log, where the user slurm may write; the program runs as root."""
    [item] = packages.TARGETS["slurm"].items(Host(str(tmp_path)), packages.Options())
    for module in ("hostprep", "json", "sitecustomize"):
        (tmp_path / f"{module}.py").write_text(f"open({str(tmp_path / 'planted')!r}, 'w')")
    done = subprocess.run(
        ["/bin/sh", "-c", item.data.decode()],
        cwd=tmp_path,
        env={"SLURMD_NODENAME": "ALL", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: SLURMD_NODENAME is not the name of a node: 'ALL'\n"
    assert not (tmp_path / "planted").exists()


def test_what_is_installed_is_a_program_and_lines_for_slurm_conf(tmp_path: Path) -> None:
    host, options = FakeHost(tmp_path / "root", {}), packages.Options()
    [item] = packages.TARGETS["slurm"].items(host, options)
    assert (item.path, item.mode) == ("/usr/local/sbin/hostprep-slurm-health", 0o755)
    assert item.data.splitlines()[-1].endswith(b" -I -m hostprep.slurm")
    assert b"@" not in item.data
    assert f"    HealthCheckProgram={item.path}" in packages.TARGETS["slurm"].next(host, options)
