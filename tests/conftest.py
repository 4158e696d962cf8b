"""What all tests share: fake hosts, and a line from profile to findings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import nvml_library, with_fleet  # noqa: F401  # fixtures
from fakes import Answer, FakeHost

from hostprep import engine, registry, report, state
from hostprep import profile as profiles
from hostprep.engine import Examination
from hostprep.host import Host
from hostprep.journal import Journal
from hostprep.model import Finding, Profile
from hostprep.perform import Performer, converge
from hostprep.report import Report

MakeHost = Callable[..., FakeHost]


@pytest.fixture
def make_host(tmp_path: Path) -> MakeHost:
    """Make a fake host of files and commands."""

    def make(files: Mapping[str, str], commands: Mapping[str, Answer] | None = None) -> FakeHost:
        return FakeHost(tmp_path / "root", files, commands)

    return make


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(str(tmp_path / "journal"), boot_id="this-boot")


@pytest.fixture(autouse=True)
def _own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes this machine's own report, journal or cache."""
    for name in ("RUN", "STATE", "CACHE"):
        monkeypatch.setenv(f"HOSTPREP_{name}_DIR", str(tmp_path / name.lower()))


def profile(sections: Mapping[str, Any], **more: Any) -> Profile:
    return Profile(name="test", sha256="0" * 64, sections=dict(sections), **more)


def here(*findings: Finding) -> Report:
    """A report of now, of this very machine, by its default profile: one that consumers take."""
    return report.make(findings, {}, profiles.load(None), state.identity(Host()), time.monotonic())


def examine(host: FakeHost, sections: Mapping[str, Any], **more: Any) -> Examination:
    """Look at a host and judge it by these sections."""
    wanted = profile(sections, **more)
    return engine.examine(host, wanted, registry.load(wanted.sections), deadline=20)


def findings(host: FakeHost, sections: Mapping[str, Any], **more: Any) -> dict[str, Finding]:
    """What is found, by check/key."""
    return {f.name: f for f in examine(host, sections, **more).findings}


def statuses(host: FakeHost, sections: Mapping[str, Any], **more: Any) -> dict[str, str]:
    """The status of every finding, by check/key."""
    return {name: f.status.value for name, f in findings(host, sections, **more).items()}


def apply(
    host: FakeHost, sections: Mapping[str, Any], journal: Journal, allowed: tuple[str, ...] = (), **more: Any
) -> Performer:
    """Make a host what the sections say, as `hostprep apply` does; failures are in the performer."""
    wanted = profile(sections, **more)
    checks = registry.load(wanted.sections)
    planned = engine.planned(engine.examine(host, wanted, checks, 20), wanted, checks, allowed)
    performer = Performer(host, checks, journal, lambda line: None)
    converge(performer, [p.change for p in planned if not p.refused], wanted.sections, allowed)
    return performer
