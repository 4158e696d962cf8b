"""Row K19: `hostprep wait` lets go when a report of this host, boot and profile says ready, never before."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import hostprep.__main__ as entry
from hostprep import formats, gate, profile_files, report, state
from hostprep import profile as profiles
from hostprep.errors import ReportUnusable
from hostprep.host import Host
from hostprep.model import Desired, Fact, Finding, Status
from hostprep.report import Report


def finding(status: Status, key: str = "devices", **more: object) -> Finding:
    fact = Fact.fixed("none" if status is Status.PASS else "/swapfile")
    said = {} if status is Status.PASS else {"message": "Swap is on.", "fix": "hostprep apply --only swap"}
    return Finding("swap", key, status, fact, Desired("none"), **(said | more))  # type: ignore[arg-type]


def made(*statuses: Status, age: float = 0, **more: object) -> Report:
    """A report of this very host by its default profile, made so many seconds ago."""
    findings = [finding(status, f"device{i}") for i, status in enumerate(statuses)]
    here = report.make(findings, {}, profiles.load(None), state.identity(Host()), time.monotonic())
    return here._replace(generated_at=int(here.generated_at - age), uptime=here.uptime - age, **more)  # type: ignore[arg-type]


@pytest.fixture
def ready() -> Report:
    return made(Status.PASS)


def waited(*words: str) -> int:
    return entry.run(["wait", *words])


# -- what it takes for ready ------------------------------------------------------------------------


def test_a_ready_report_is_enough(ready: Report, capsys: pytest.CaptureFixture[str]) -> None:
    state.publish(ready)
    assert waited() == 0
    out, err = capsys.readouterr()
    assert out.endswith(": READY: 1 passed\n")
    assert err == ""


@pytest.mark.parametrize(
    ("status", "code"), [(Status.FAIL, 1), (Status.UNKNOWN, 3), (Status.PENDING, 4), (Status.POWER_CYCLE, 4)]
)
def test_what_is_not_ready_is_told_with_what_to_do(
    status: Status, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    state.publish(made(Status.PASS, status))
    assert waited("--timeout", "0") == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[1:-1] == [
        "  swap/device1: wanted none, found /swapfile",
        "    Swap is on.",
        "    -> hostprep apply --only swap",
    ]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"boot_id": "of-another-boot"}, "of an earlier boot"),
        ({"machine_id": "0" * 32}, "of another machine"),
        ({"profile_sha256": "0" * 64, "profile": "other"}, "of another profile"),
        ({"selection": ["swap"]}, "only a part"),
        ({"age": 7200}, "2 h old; at most 60 m is allowed"),
        ({"age": -300}, "from the future"),
    ],
)
def test_a_ready_report_of_something_else_is_none(
    other: dict[str, object], why: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile_files, "of_this_site", lambda: True)
    state.publish(made(Status.PASS, **other))  # type: ignore[arg-type]
    assert waited("--timeout", "0") == 3
    assert why in capsys.readouterr().err


@pytest.mark.parametrize("output", formats.NAMES)
def test_without_a_profile_of_the_site_no_program_takes_a_report_of_whatever_profile(
    output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A person is shown it, with the profile's name. Labels and textfiles would say that the host is ready."""
    state.publish(made(Status.PASS, profile="other", profile_sha256="0" * 64))
    assert entry.run(["report"]) == 0
    assert "profile other" in capsys.readouterr().out
    assert entry.run(["report", "--format", output]) == (2 if output == "npd" else 3)
    assert "it is of another profile (other, or baseline as it was then)" in capsys.readouterr().err


def test_without_a_report_it_says_how_to_make_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert waited("--timeout", "0") == 3
    assert "there is no report at" in capsys.readouterr().err


def test_a_limit_on_age_can_only_shorten(ready: Report) -> None:
    state.publish(made(Status.PASS, age=60))
    assert (waited("--timeout", "0", "--max-age", "30s"), waited("--timeout", "0", "--max-age", "10h")) == (3, 0)
    state.publish(made(Status.PASS, age=7200))
    assert waited("--timeout", "0", "--max-age", "10h") == 3


# -- waiting ----------------------------------------------------------------------------------------


def steps(*seen: Report | ReportUnusable) -> tuple[Callable[[], Report], Callable[[], object]]:
    """A look that gives one after the other, and a revision that changes with each."""
    rest: Iterator[Report | ReportUnusable] = iter(seen)
    revisions = iter(range(1000))

    def look() -> Report:
        now = next(rest)
        if isinstance(now, ReportUnusable):
            raise now
        return now

    return look, lambda: next(revisions)


def test_it_looks_again_with_every_report_until_one_is_ready(ready: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "LOOK_AGAIN_S", 0.0)
    told: list[str] = []
    look, revision = steps(ReportUnusable("none"), made(Status.FAIL), made(Status.PENDING), ready)

    def progress(seen: gate.Seen, left: float) -> None:
        told.append(str(seen) if isinstance(seen, ReportUnusable) else seen.verdict)
        assert 0 < left <= 60

    assert gate.until_ready(look, revision, 60, progress) == ready
    assert told == ["none", "not-ready", "pending-reboot"]


def test_a_report_that_nobody_replaces_is_not_read_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validating one costs more than Python's own start: a host that waits an hour is not to spend it on that."""
    looks: list[int] = []
    monkeypatch.setattr(gate, "LOOK_AGAIN_S", 0.001)

    def look() -> Report:
        looks.append(1)
        return made(Status.FAIL)

    last = gate.until_ready(look, lambda: "the same", 0.2)
    assert isinstance(last, Report)
    assert (last.verdict, len(looks)) == ("not-ready", 1)


def test_what_comes_in_the_last_moment_counts(ready: Report) -> None:
    look, revision = steps(made(Status.FAIL), ready)
    assert gate.until_ready(look, revision, 0) == ready


def test_a_report_that_gets_too_old_while_it_is_waited_for_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr(gate, "_RELY_AGAIN_S", 0.0)
    look, _ = steps(made(Status.FAIL), *[ReportUnusable("too old")] * 1000)
    last = gate.until_ready(look, lambda: "the same", 0.01)
    assert str(last) == "too old"


def test_a_program_that_waits_goes_on_when_another_publishes(tmp_path: Path, ready: Report) -> None:
    """`hostprep wait && make ...`, for real: it says once what it waits for, and ends within its limit."""
    command = [sys.executable, "-m", "hostprep", "wait", "--timeout", "60s"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        assert waiting.stdout is not None
        assert waiting.stderr.readline().startswith("waiting: there is no report at")
        state.publish(made(Status.FAIL))
        assert waiting.stderr.readline() == "waiting: swap/device0\n"
        state.publish(ready)
        assert waiting.stdout.readline().endswith(": READY: 1 passed\n")
        assert waiting.wait(timeout=60) == 0


def test_on_a_terminal_there_is_one_line_that_goes_when_it_ends(ready: Report) -> None:
    import pty

    master, slave = pty.openpty()
    command = [sys.executable, "-m", "hostprep", "wait", "--timeout", "1s"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=slave) as waiting:
        os.close(slave)
        said = b""
        reader = threading.Thread(target=waiting.wait)
        reader.start()
        while chunk := _read(master):
            said += chunk
        reader.join()
    os.close(master)
    progress, end = said.split(b"\r\x1b[Kerror: ")
    assert progress.startswith(b"\r\x1b[Kwaiting, ")
    assert b"\n" not in progress
    assert b"not ready after 1 s: there is no report at" in end


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 4096)
    except OSError:  # EIO: the other side of the terminal is closed
        return b""


@pytest.mark.parametrize("wrong", ["-1", "soon", ""])
def test_a_wrong_limit_is_said(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert waited("--timeout", wrong) == 2
    assert "--timeout" in capsys.readouterr().err


def test_the_profile_is_the_one_that_is_named() -> None:
    state.publish(made(Status.PASS))
    assert waited("--timeout", "0", "--profile", "baseline") == 0
    assert waited("--timeout", "0", "--profile", "pbs-compute-node") == 3
    assert waited("--timeout", "0", "--profile", "nosuch") == 78


def test_without_a_profile_of_the_site_the_gate_wants_the_one_that_check_judges_by(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A report of some other profile is easily ready."""
    state.publish(made(Status.PASS, profile="trivial", profile_sha256="0" * 64))
    assert waited("--timeout", "0") == 3
    assert "of another profile (trivial" in capsys.readouterr().err


def test_every_other_report_leaves_a_mark_for_those_who_tell_it(ready: Report) -> None:
    """systemd.path(5): what only has changed while the service ran starts nothing; what exists, does."""
    mark = Path(state.run_dir(), state.UNTOLD)
    for tell in (lambda: state.publish(ready), state.retract):
        tell()
        mark.unlink()
    state.retract()
    assert not mark.exists(), "there was no report, and there is none"


def test_the_unit_that_tells_of_reports_waits_for_the_mark_that_is_left_and_takes_it_away_first() -> None:
    folder = Path(__file__).parent.parent / "systemd"
    mark = f"{state.RUN_DIR}/{state.UNTOLD}"
    assert f"\nPathExists={mark}\n" in (folder / "hostprep-publish.path").read_text()
    commands = [line for line in (folder / "hostprep-publish.service").read_text().splitlines() if "Exec" in line[:8]]
    assert commands[0] == f"ExecStartPre=/bin/rm -f {mark}"
