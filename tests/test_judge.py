"""Deciding: the truth table, what is met, what is never written, and the verdict over all of it."""

from __future__ import annotations

from itertools import product

import pytest

from hostprep import engine, registry
from hostprep.judge import judge, met, plan, refusal, show, show_beside, show_desired, status, weigh
from hostprep.model import Change, Desired, Facet, Fact, Finding, Profile, Reading, Status, Unknown, Value, Waiver
from hostprep.report import Identity, exit_code, make

GONE = Unknown("no answer")
NOW, LATER = Facet.CURRENT, Facet.NEXT_BOOT


@pytest.mark.parametrize(
    ("current", "later", "expected"),
    [
        *((8, 8, "pass"), (8, 4, "volatile"), (4, 8, "pending-reboot"), (4, 4, "fail"), (None, None, "fail")),
        *((GONE, GONE, "unknown"), (8, GONE, "unknown"), (GONE, 8, "unknown"), (4, GONE, "unknown")),
    ],
)
def test_the_truth_table(current: Reading, later: Reading, expected: str) -> None:
    assert status(Fact(current, later), Desired(8)) == expected


@pytest.mark.parametrize(
    ("reading", "op", "wanted", "expected"),
    [
        *((8, "==", 8, True), (9, "==", 8, False), (9, ">=", 8, True), (8, ">=", 8, True), (7, ">=", 8, False)),
        *((True, "==", 1, False), (1, "==", True, False), (0, "==", False, False), (False, "==", False, True)),
        *((7, "<=", 8, True), (8, "<=", 8, True), (9, "<=", 8, False), (None, "<=", 8, False), ("7", "<=", 8, False)),
        *((True, ">=", 1, False), (None, ">=", 0, False), (None, "==", None, True), ("8", ">=", 8, False)),
        *(("5.15.0-122", ">=", "5.15.0-121", True), ("5.15.0-9", ">=", "5.15.0-10", False), (6, ">=", "5", False)),
        *((("a", "b"), "==", ("a", "b"), True), (("b", "a"), "==", ("a", "b"), False), ("a", "==", ("a",), False)),
    ],
)
def test_what_is_met(reading: Value, op: str, wanted: Value, expected: bool) -> None:
    """Order matters in a list (T16), a bool is no number, and text is ordered as versions (K4)."""
    assert met(Desired(wanted, op=op), reading) is expected


def test_what_is_not_there_yet_is_none() -> None:
    (found,) = judge("x", {"k": Fact(None, 8)}, {"k": Desired(8, live=False)})
    assert found.message == "The next boot brings what is wanted; the running system still has none."


def test_what_is_only_looked_at_says_what_is_wrong_while_it_waits_for_a_reboot() -> None:
    (found,) = judge("x", {"k": Fact(True, False)}, {"k": Desired(False, live=False, persist=False, means="It waits.")})
    assert found.message == "It waits. The next boot brings what is wanted; the running system still has yes."


@pytest.mark.parametrize(
    ("fact", "desired", "facets"),
    [
        (Fact(4, 4), Desired(8), [NOW, LATER]),
        (Fact(8, 4), Desired(8), [LATER]),
        (Fact(4, 8), Desired(8), [NOW]),
        (Fact(4, 8), Desired(8, live=False), []),  # waits for its reboot: not written again
        (Fact(4, 4), Desired(8, persist=False), [NOW]),
        (Fact(GONE, 4), Desired(8), []),
        (Fact(4, GONE), Desired(8), []),
        (Fact(9, 7), Desired(8, op=">="), [LATER]),
    ],
)
def test_only_what_is_not_met_is_changed_and_what_is_unknown_never(
    fact: Fact, desired: Desired, facets: list[Facet]
) -> None:
    assert [c.facet for c in plan(judge("x", {"k": fact}, {"k": desired}))] == facets


def test_all_live_changes_come_before_any_persistent_one() -> None:
    """Until the running system has taken a value, a power cycle is still an undo."""
    found = judge("x", {"a": Fact(1, 1), "b": Fact(1, 1)}, {"a": Desired(2), "b": Desired(2)})
    changes = [(c.key, c.facet) for c in plan(found)]
    assert changes == [("a", NOW), ("b", NOW), ("a", LATER), ("b", LATER)]


def test_a_setting_that_is_nowhere_is_not_set() -> None:
    (found,) = judge("x", {}, {"k": Desired(8)})
    assert (found.status, found.fact) == (Status.FAIL, Fact(None, None))


@pytest.mark.parametrize(
    ("counted", "expected"), [(2, "pass"), (1, "fail"), (0, "fail"), (3, "fail"), (GONE, "unknown")]
)
def test_what_was_counted_among_the_facts_is_judged_as_a_fact_and_never_changed(
    counted: Reading, expected: str
) -> None:
    """How many cards a selector matched: one that matches nothing is no pass."""
    desired = Desired(2, live=False, persist=False, counted=counted)
    (found,) = judge("x", {"k": Fact(2, 2)}, {"k": desired})
    assert (found.status.value, found.fact) == (expected, Fact.fixed(counted))
    assert plan([found]) == []


def test_the_undo_of_a_change_is_the_change_with_its_ends_swapped() -> None:
    change = Change("x", "k", NOW, None, 8)
    assert change.inverse() == Change("x", "k", NOW, 8, None)
    assert change.inverse().inverse() == change


@pytest.mark.parametrize(
    ("desired", "allowed", "refused"),
    [
        (Desired(8), (), []),
        (Desired(8, refused_now="no room"), (), [NOW]),
        (Desired(8, refused_next="no room"), (), [LATER]),
        (Desired(8, refused_now="no room"), ("x",), [NOW]),  # unsafe is not merely disruptive
        (Desired(8, disrupts="jobs run"), (), [NOW]),
        (Desired(8, disrupts="jobs run"), ("x",), []),
        (Desired(8, disrupts="jobs run"), ("y",), [NOW]),
    ],
)
def test_what_is_refused(desired: Desired, allowed: tuple[str, ...], refused: list[Facet]) -> None:
    changes = [Change("x", "k", facet, 4, 8) for facet in Facet]
    assert [c.facet for c in changes if refusal(c, desired, allowed)] == refused


def test_every_finding_that_is_not_pass_says_what_it_means() -> None:
    readings: tuple[Reading, ...] = (4, 8, GONE)
    for current, later in product(readings, repeat=2):
        (found,) = judge("x", {"k": Fact(current, later)}, {"k": Desired(8)})
        assert bool(found.message) == (found.status is not Status.PASS)


@pytest.mark.parametrize(
    ("reading", "text"), [(GONE, "unknown"), (None, "not set"), (True, "yes"), ((), "none"), (2**30, "1073741824")]
)
def test_a_reading_is_shown_to_a_person(reading: Reading, text: str) -> None:
    assert show(reading) == text


@pytest.mark.parametrize(
    ("wanted", "reading", "texts"),
    [
        (32 * 10**9, 32 * 10**9 - 1, (">= 32 GB", "31.9 GB")),
        (4 * 2**30, 31 * 2**30, (">= 4 GiB", "31 GiB")),
    ],
)
def test_a_size_is_shown_in_the_unit_in_which_it_was_asked_for(
    wanted: int, reading: int, texts: tuple[str, str]
) -> None:
    desired = Desired(wanted, op=">=", unit="bytes")
    assert (show_desired(desired), show_beside(reading, desired)) == texts


# -- the verdict ----------------------------------------------------------------------------------

PROFILE = Profile("t", "0" * 64, {})
WORST_FIRST = [
    ("fail", "not-ready", 1),
    ("unknown", "unknown", 3),
    ("pending-power-cycle", "pending-power-cycle", 4),  # a reboot alone would not bring it
    ("pending-reboot", "pending-reboot", 4),
]


def verdict(*findings: Finding) -> tuple[str, int]:
    made = make(findings, {"x": engine.Answer({}, 0)}, PROFILE, Identity("h", "m", "b", "k"), 0.0)
    return made.verdict, exit_code(made)


def finding(found: Status, *, advisory: bool = False, waived: str = "") -> Finding:
    return Finding("x", "k", found, Fact(1, 1), Desired(1), advisory=advisory, waived=waived)


@pytest.mark.parametrize("several", [c for n in (1, 2, 3) for c in product(Status, repeat=n)])
def test_the_worst_status_decides_the_verdict(several: tuple[Status, ...]) -> None:
    """T5: fail, then unknown, then pending, whatever stands beside it and in whatever order."""
    expected = next(((v, code) for s, v, code in WORST_FIRST if Status(s) in several), ("ready", 0))
    assert verdict(*map(finding, several)) == expected


@pytest.mark.parametrize("found", list(Status))
def test_advisory_and_waived_findings_do_not_decide_and_nothing_looked_at_is_not_ready(found: Status) -> None:
    """T3, T10: no findings tell nothing."""
    assert verdict(finding(Status.PASS), finding(found, advisory=True)) == ("ready", 0)
    assert verdict(finding(Status.PASS), finding(found, waived="known")) == ("ready", 0)
    assert verdict() == ("unknown", 3)


@pytest.mark.parametrize("found", list(Status))
def test_what_is_unknown_cannot_be_waived(found: Status) -> None:
    waivers = (Waiver("x/*", "because", "2030-12-31"),)
    weighed = weigh(finding(found), PROFILE._replace(waivers=waivers), "2030-12-31")
    assert bool(weighed.waived) == (found in (Status.FAIL, Status.PENDING, Status.POWER_CYCLE))


def test_an_expired_waiver_has_no_effect_and_is_said() -> None:
    profile = PROFILE._replace(waivers=(Waiver("x/*", "crash dumps", "2030-12-31", "ops"),))
    weighed = weigh(finding(Status.FAIL)._replace(message="Swap is on."), profile, "2031-01-01")
    assert (weighed.waived, weighed.message) == ("", "Swap is on. Its waiver ended on 2030-12-31: crash dumps, ops.")


def test_where_a_profile_only_looks_nobody_is_told_to_apply() -> None:
    told = finding(Status.FAIL)._replace(fix="hostprep apply --only x")
    assert "assert_only" in weigh(told, PROFILE._replace(assert_only=("x",)), "2030-01-01").fix
    assert weigh(told, PROFILE, "2030-01-01").fix == "hostprep apply --only x"


def test_what_is_waived_is_not_changed_either() -> None:
    """Swap that somebody keeps for crash dumps stays on."""
    check = registry.load(["swap"])["swap"]
    wrong = Finding("swap", "devices", Status.FAIL, Fact(("/swap",), ()), Desired(()))
    for waived, changes in (("known", 0), ("", 1)):
        seen = engine.Examination([wrong._replace(waived=waived)], {})
        assert len(engine.planned(seen, PROFILE, {"swap": check}, ())) == changes
