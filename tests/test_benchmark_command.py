"""`hostprep check --benchmarks`: measured when asked for, and only then (J8)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hostprep import engine, state
from hostprep.__main__ import run

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root measures")


@pytest.fixture(autouse=True)
def _idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else runs on this machine, whatever does."""
    monkeypatch.setattr(engine, "disturbed", lambda host: "")


@pytest.fixture
def profile(tmp_path: Path) -> str:
    """A profile of one benchmark, which leaves a mark each time it runs, and takes longer than its look may."""
    text = (
        "name: bench\nbenchmark:\n  site:\n"
        f"    command: [sh, -c, 'echo x >> {tmp_path}/ran; sleep 0.5; echo score 7.5']\n"
        "    pattern: 'score ([0-9.]+)'\n    baseline: 7\n    runs: 3\n"
    )
    (tmp_path / "bench.yaml").write_text(text)
    return str(tmp_path / "bench.yaml")


def times_run(tmp_path: Path) -> int:
    mark = tmp_path / "ran"
    return len(mark.read_text().splitlines()) if mark.exists() else 0


def test_a_look_runs_nothing_and_is_unknown_until_it_was_measured(tmp_path: Path, profile: str) -> None:
    assert run(["check", "--profile", profile]) == 3
    assert times_run(tmp_path) == 0
    assert run(["check", "--profile", profile, "--benchmarks", "--deadline", "1s"]) == 0
    assert times_run(tmp_path) == 3
    assert run(["check", "--profile", profile]) == 0
    assert times_run(tmp_path) == 3


def test_progress_is_told_and_the_figure_is_in_the_report(
    profile: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert run(["check", "--profile", profile, "--benchmarks"]) == 0
    out, err = (stream.decode() for stream in capfdbinary.readouterr())
    assert "site, host, run 3 of 3: 7.5" in err
    assert "7.5 (at least 6.65)" in out


def test_nothing_is_measured_beside_what_runs(
    tmp_path: Path, profile: str, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """J2: jobs would be slowed down, and the figures be wrong."""
    monkeypatch.setattr(engine, "disturbed", lambda host: "Slurm job 12")
    assert run(["check", "--profile", profile, "--benchmarks"]) == 5
    assert b"nothing was measured: it would disturb Slurm job 12" in capfdbinary.readouterr().err
    assert times_run(tmp_path) == 0


def test_two_do_not_measure_at_once_and_nobody_changes_the_host_meanwhile(
    tmp_path: Path, profile: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with state.measuring():
        assert run(["check", "--profile", profile, "--benchmarks"]) == 75
        assert b"another hostprep is measuring this host" in capfdbinary.readouterr().err
        assert run(["apply", "--profile", profile, "--yes"]) == 75
    assert times_run(tmp_path) == 0


def test_a_look_during_a_long_measurement_is_published(profile: str) -> None:
    """Else whoever waits for the report would have none for as long as it takes."""
    with state.measuring():
        assert run(["check", "--profile", profile]) == 3
    assert os.path.exists(state.report_path())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--profile", "baseline"], b"the profile baseline has none"),
        (["--root", "/"], b"--root looks elsewhere"),
    ],
)
def test_what_makes_no_sense_is_told(
    profile: str, words: list[str], said: bytes, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    given = words if "--profile" in words else ["--profile", profile, *words]
    assert run(["check", "--benchmarks", *given]) == 2
    assert said in capfdbinary.readouterr().err


def test_no_unit_measures() -> None:
    """Never at boot, and never by a timer."""
    texts = [path.read_text() for path in (ROOT / "systemd").iterdir() if path.is_file()]
    assert texts
    assert not any("--benchmarks" in text for text in texts)
