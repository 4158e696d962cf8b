"""A report that is damaged, hostile, or of something else is refused with a reason by whoever reads it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import bad_reports
import pytest

import hostprep.__main__ as entry
from hostprep import formats, gate, profile_files, serve, slurm, state
from hostprep.errors import ReportUnusable
from hostprep.host import Host

Capture = pytest.CaptureFixture[str]


class Told(NamedTuple):
    """What a consumer made of the published report: does it take the host for ready, and what does it say?"""

    ready: bool
    said: str


def report_in(name: str) -> Callable[[Capture], Told]:
    """`hostprep report --format NAME`: its exit status, and what is read there by those who look at no status."""
    ready_when = {
        "prometheus": r"^hostprep_ready 1$",
        "nfd": r"^hostprep\.ready=true$",
        "make": r"^override HOSTPREP_READY := true$",
        "nagios": r"^HOSTPREP OK",
        "html": r"^<title>[^<]*(?<!NOT )READY",
    }.get(name)

    def told(capture: Capture) -> Told:
        status = entry.run(["report", "--format", name])
        out, err = capture.readouterr()
        ready = bool(re.search(ready_when, out, re.M)) if ready_when else bool(out) and status == 0
        assert ready == (status == 0)
        assert not err or re.match(r"error: .+\nhint: .+\n\Z", err)
        return Told(ready, err if name == "html" else out + err)

    return told


def wait(capture: Capture) -> Told:
    status = entry.run(["wait", "--timeout", "0"])
    out, err = capture.readouterr()
    return Told(status == 0, out + err)


def served(path: str) -> Callable[[Capture], Told]:
    """`hostprep serve`: what it answers, and whether that says ready by its status and by its text."""
    ready_when = {"/metrics": "hostprep_ready 1$", "/report.json": ' "ready": true', "/": "<title>[^<]*(?<!NOT )READY"}

    def told(capture: Capture) -> Told:
        answer = serve.answer(path, None)
        ready = bool(re.search(f"^{ready_when.get(path, 'READY')}", answer.body, re.M))
        assert answer.status == 200 or not ready
        return Told(ready, "" if path == "/" else answer.body)

    return told


def slurm_health(capture: Capture) -> Told:
    why = slurm.not_ready(Host())
    return Told(not why, slurm.signed(why) if why else "")


CONSUMERS: dict[str, Callable[[Capture], Told]] = {
    "slurm": slurm_health,
    **{f"report --format {name}": report_in(name) for name in ("text", *formats.NAMES)},
    "wait": wait,
    **{f"serve {path}": served(path) for path in ("/", "/metrics", "/report.json", "/healthz")},
}


@pytest.fixture(autouse=True)
def a_site_with_a_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is none, a person is shown a report of whatever profile."""
    monkeypatch.setattr(profile_files, "of_this_site", lambda: True)


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_a_good_report_is_believed(consumer: str, capsys: Capture) -> None:
    bad_reports.put_good(Path(state.report_path()))
    assert CONSUMERS[consumer](capsys).ready


@pytest.mark.parametrize("name", bad_reports.BAD)
def test_t9_a_bad_report_is_never_ready(name: str, capsys: Capture) -> None:
    """Whoever reads it says what is wrong with it, in words that are few and fit for a terminal.

    `hostprep serve` reads reports for weeks: none leaves a file open.
    """
    bad_reports.put(name, Path(state.report_path()))
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(ReportUnusable) as e:
        gate.relied_on()
    assert (e.value.reason, bool(e.value.hint)) == (bad_reports.BAD[name].reason, True), e.value
    for consumer, read in CONSUMERS.items():
        told = read(capsys)
        assert not told.ready, consumer
        assert len(told.said) < 3000, consumer
        assert told.said.replace("\n", "").isprintable(), consumer
    assert set(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_t8_a_report_full_of_hostile_text_says_only_what_its_findings_say(consumer: str, capsys: Capture) -> None:
    """It may be that of a host with such names: none is a line of its own, or moves a terminal's cursor."""
    path = Path(state.report_path())
    path.parent.mkdir()
    path.write_text(json.dumps(bad_reports.hostile()))
    told = CONSUMERS[consumer](capsys)
    assert not told.ready
    assert "json" in consumer or told.said.replace("\n", "").isprintable()
    assert "junit" in consumer or not re.search("^(hostprep_ready 1|ready)", told.said, re.M)
