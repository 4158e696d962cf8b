"""What revert cannot take back: said in the plan, journalled, and named and left by revert."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from conftest import MakeHost
from fakes import FakeHost

from hostprep import commands, engine, render, report
from hostprep import revert as taking_back
from hostprep.engine import Planned
from hostprep.host import Host
from hostprep.journal import Journal
from hostprep.judge import judge, plan
from hostprep.model import Change, Desired, Facet, Fact, Facts, Goals, Section, Unknown
from hostprep.perform import Performer, converge
from hostprep.registry import Check

WHY = "uninstall.sh removes it"
CHANGE = Change("driver", "version", Facet.NEXT_BOOT, "inbox", "24.04")


@pytest.fixture
def host(make_host: MakeHost) -> FakeHost:
    return make_host({"/version": "inbox", "/proc/sys/kernel/osrelease": "6.1.0"})


@pytest.fixture
def checks() -> dict[str, Check]:
    """A check of a driver whose installer has no way back, and of nothing else."""

    def inspect(host: Host) -> Facts:
        return {"version": Fact.fixed(host.read("/version"))}

    def decide(facts: Facts, want: Section) -> Goals:
        return {"version": Desired(want, live=False, final=WHY)}

    def apply(host: Host, changes: Sequence[Change]) -> None:
        assert changes == [CHANGE], "there is no way back"
        cast(FakeHost, host).put("/version", "24.04")

    return {"driver": cast(Check, SimpleNamespace(NAME="driver", inspect=inspect, decide=decide, apply=apply))}


def installed(host: FakeHost, checks: Mapping[str, Check], journal: Journal) -> None:
    performer = Performer(host, checks, journal, lambda line: None)
    converge(performer, [CHANGE], {"driver": "24.04"}, ())
    assert performer.failures == []


def reverted(host: FakeHost, checks: Mapping[str, Check], journal: Journal) -> tuple[list[str], list[str]]:
    told: list[str] = []
    performer = Performer(host, checks, journal, told.append)
    left = taking_back.revert(performer)
    assert performer.failures == []
    return left, told


def planned(host: FakeHost, checks: Mapping[str, Check]) -> list[engine.Batch]:
    facts = engine.inspect(host, checks)["driver"].facts
    assert not isinstance(facts, Unknown)
    goals = checks["driver"].decide(facts, "24.04")
    found = judge("driver", facts, goals)
    return engine.rehearse(host, [Planned(c, goals[c.key], "") for c in plan(found)], {"driver": quiet(checks)})


def quiet(checks: Mapping[str, Check]) -> Check:
    """The same check, which does nothing in a rehearsal."""
    return cast(Check, SimpleNamespace(**{**vars(checks["driver"]), "apply": lambda host, changes: None}))


def test_a_plan_says_what_cannot_be_taken_back(host: FakeHost, checks: dict[str, Check]) -> None:
    batches = planned(host, checks)
    assert f"cannot be taken back: {WHY}" in render.plan(batches)
    made = cast(report.Report, SimpleNamespace(profile="", profile_sha256="", verdict=""))
    shown: Any = json.loads(json.dumps(commands._plan_to_dict(batches, made)))
    assert [c["final"] for b in shown["batches"] for c in b["changes"]] == [WHY]


def test_revert_names_and_leaves_it_once(host: FakeHost, checks: dict[str, Check], journal: Journal) -> None:
    installed(host, checks, journal)
    assert [s.final for s in journal.standing()] == [WHY]
    changes, _, foreign = taking_back.rehearse(host, checks, journal)
    sentence = f"left as it is: driver/version: 24.04: {WHY}"
    assert (changes, foreign) == ([], [sentence])
    assert reverted(host, checks, journal) == (["driver/version"], [sentence])
    assert host.read("/version") == "24.04"
    assert journal.standing() == []
    assert reverted(host, checks, journal) == ([], [])


def test_what_somebody_has_removed_meanwhile_is_not_named(
    host: FakeHost, checks: dict[str, Check], journal: Journal
) -> None:
    installed(host, checks, journal)
    host.put("/version", "inbox")
    assert taking_back.rehearse(host, checks, journal)[2] == []
    assert reverted(host, checks, journal) == ([], [])
    assert journal.standing() == []


def test_being_cut_off_while_making_it_changes_nothing_of_that(
    host: FakeHost, checks: dict[str, Check], journal: Journal
) -> None:
    journal.begin([CHANGE], {CHANGE: WHY})
    host.put("/version", "24.04")
    assert reverted(host, checks, journal)[0] == ["driver/version"]


def test_installed_again_after_a_revert_it_stands_again(
    host: FakeHost, checks: dict[str, Check], journal: Journal
) -> None:
    installed(host, checks, journal)
    reverted(host, checks, journal)
    host.put("/version", "inbox")
    installed(host, checks, journal)
    assert [s.change for s in journal.standing()] == [CHANGE]


def test_other_changes_are_taken_back_beside_it(host: FakeHost, checks: dict[str, Check], journal: Journal) -> None:
    host.keeping(journal.keep).replace("/etc/a.conf", "ours")
    installed(host, checks, journal)
    left, told = reverted(host, checks, journal)
    assert left == ["driver/version"]
    assert not host.exists("/etc/a.conf")
    assert any("/etc/a.conf: as it was" in line for line in told)
