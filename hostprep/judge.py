"""Deciding, without touching anything: facts + goals -> findings -> changes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from fnmatch import fnmatchcase

from hostprep import versions
from hostprep.model import (
    Change,
    Desired,
    Facet,
    Fact,
    Facts,
    Finding,
    Goals,
    Profile,
    Reading,
    Status,
    Unknown,
    Value,
)
from hostprep.quantities import show_bytes

#                (met now, met after a reboot)
TRUTH_TABLE = {
    (True, True): Status.PASS,
    (True, False): Status.VOLATILE,
    (False, True): Status.PENDING,
    (False, False): Status.FAIL,
}
UNSET = Fact.fixed(None)


def met(desired: Desired, reading: Value) -> bool:
    """Is this what is wanted? `>=` orders numbers by size and text as versions, `<=` numbers alone."""
    if desired.op == "==" or reading is None:
        return reading == desired.value and type(reading) is type(desired.value)
    if isinstance(desired.value, str):
        return isinstance(reading, str) and versions.compare(reading, desired.value) >= 0
    assert isinstance(desired.value, int)
    if type(reading) is not int:
        return False
    return reading <= desired.value if desired.op == "<=" else reading >= desired.value


def status(fact: Fact, desired: Desired) -> Status:
    if isinstance(fact.current, Unknown) or isinstance(fact.next_boot, Unknown):
        return Status.UNKNOWN
    return TRUTH_TABLE[met(desired, fact.current), met(desired, fact.next_boot)]


def judge(check: str, facts: Facts, goals: Goals) -> Iterator[Finding]:
    """One finding a goal. A fact that is not there is a setting that is not set, unless the fact `*` says otherwise."""
    for key, desired in goals.items():
        fact = facts.get(desired.of or key, facts.get("*", UNSET))
        if desired.counted is not None:
            fact = Fact.fixed(desired.counted)
        found = status(fact, desired)
        yield Finding(check, key, found, fact, desired, _message(found, fact, desired), _fix(check, found, desired))


def brought(findings: Iterable[Finding]) -> list[Finding]:
    """What waits for something else to come with the next boot fails where nothing else does: no boot brings it."""
    known = list(findings)
    if any(f.status is Status.PENDING and not (f.desired and f.desired.waits) for f in known):
        return known
    return [_in_vain(f) if f.status is Status.PENDING else f for f in known]


def _in_vain(f: Finding) -> Finding:
    assert f.desired is not None
    message = f"Refused: {f.desired.refused_now}." if f.desired.refused_now else f.desired.means or f.message
    return f._replace(status=Status.FAIL, message=message, fix=f.desired.fix)


def unanswered(check: str, reason: str) -> Finding:
    """A check that gave no facts at all."""
    return Finding(check, "*", Status.UNKNOWN, Fact.fixed(Unknown(reason)), None, reason, _unknown_fix(reason))


def plan(findings: Iterable[Finding]) -> list[Change]:
    """The changes that would turn each finding into a pass, live ones before persistent ones.

    Until the running system has taken a value, a power cycle is still an undo. A reading that is
    unknown has no `before`, so what cannot be read is never written.
    """
    changes = [change for finding in findings for change in _changes(finding)]
    return sorted(changes, key=lambda c: list(Facet).index(c.facet))


def refusal(change: Change, desired: Desired | None, allowed: Collection[str]) -> str:
    """Why this change must not be made; empty when it may."""
    if desired is None:
        return ""
    if change.facet is Facet.NEXT_BOOT:
        return desired.refused_next
    if desired.refused_now:
        return desired.refused_now
    if desired.disrupts and change.check not in allowed:
        return f"{desired.disrupts} (allow it with --allow-disruption {change.check})"
    return ""


def weigh(finding: Finding, profile: Profile, today: str) -> Finding:
    """What the profile says of a finding: advisory, only looked at, waived. What is unknown cannot be waived.

    `today` is YYYY-MM-DD. A waiver that has ended is told: else nobody knows why a host is not ready since yesterday.
    """
    advisory = any(p in (finding.check, finding.name) or fnmatchcase(finding.name, p) for p in profile.advisory)
    message, fix, waived = finding.message, finding.fix, ""
    if finding.check in profile.assert_only and "hostprep apply" in fix:
        fix = "This profile only looks here (assert_only): whoever owns this setting changes it."
    if finding.status in (Status.FAIL, Status.PENDING, Status.POWER_CYCLE):
        for waiver in profile.waivers:
            owner = f", {waiver.owner}" if waiver.owner else ""
            if not fnmatchcase(finding.name, waiver.finding):
                continue
            if today <= waiver.until:
                waived = f"{waiver.reason} (until {waiver.until}{owner})"
                break
            message = f"{message} Its waiver ended on {waiver.until}: {waiver.reason}{owner}.".strip()
    return finding._replace(advisory=advisory, waived=waived, message=message, fix=fix)


def show(reading: Reading) -> str:
    """A reading for a person."""
    if isinstance(reading, Unknown):
        return "unknown"
    if reading is None:
        return "not set"
    if isinstance(reading, bool):
        return "yes" if reading else "no"
    if isinstance(reading, tuple):
        return ", ".join(reading) if reading else "none"
    return str(reading)


def show_beside(reading: Reading, desired: Desired | None) -> str:
    """A reading for a person who knows what is wanted: a size in the kind of unit in which that was written."""
    if desired is None or desired.unit != "bytes" or isinstance(reading, bool) or not isinstance(reading, int):
        return show(reading)
    return show_bytes(reading, desired.value if isinstance(desired.value, int) else None)


def show_desired(desired: Desired | None) -> str:
    if desired is None:
        return "an answer"
    return ("" if desired.op == "==" else f"{desired.op} ") + show_beside(desired.value, desired)


def _changes(f: Finding) -> Iterator[Change]:
    want, now, later = f.desired, f.fact.current, f.fact.next_boot
    if want is None or isinstance(now, Unknown) or isinstance(later, Unknown):
        return
    if want.live and not met(want, now):
        yield Change(f.check, f.key, Facet.CURRENT, now, want.value)
    if want.persist and not met(want, later):
        yield Change(f.check, f.key, Facet.NEXT_BOOT, later, want.value)


def _message(found: Status, fact: Fact, desired: Desired) -> str:
    if found is Status.PASS:
        return ""
    if found is Status.UNKNOWN:
        return next(r.reason for r in fact if isinstance(r, Unknown))
    now, later = show_beside(fact.current, desired), show_beside(fact.next_boot, desired)
    if found is Status.PENDING:
        why = f" It cannot be had at once: {desired.refused_now}." if desired.refused_now else ""
        now = "none" if fact.current is None else now
        said = f"{desired.means} " if desired.means and not (desired.live or desired.persist) else ""
        return f"{said}The next boot brings what is wanted; the running system still has {now}.{why}"
    if found is Status.VOLATILE:
        if fact.next_boot is None:
            return "Right now as wanted, but nothing on this host sets it at the next boot."
        return f"Right now as wanted, but the next boot brings {later}."
    if refused := desired.refused_next or desired.refused_now:
        return desired.means or f"Refused: {refused}."
    said = desired.means or f"Wanted {show_desired(desired)}, found {now}."
    return f"{said} Changing it disturbs others: {desired.disrupts}." if desired.disrupts and desired.live else said


def _fix(check: str, found: Status, desired: Desired) -> str:
    if found is Status.PASS:
        return ""
    if found is Status.UNKNOWN:  # what to do about a wrong value is no help where there is none
        return desired.fix if desired.persist else ""
    if found is Status.PENDING:
        return (
            "Reboot this host."
            if not desired.live or desired.refused_now
            else f"Reboot this host, or: hostprep apply --only {check}"
        )
    if desired.refused_next or (found is Status.FAIL and desired.refused_now):
        return desired.fix
    if desired.persist or (found is Status.FAIL and desired.live):
        allow = f" --allow-disruption {check}" if desired.disrupts and found is Status.FAIL and desired.live else ""
        return f"hostprep apply --only {check}{allow}"
    return desired.fix


def _unknown_fix(reason: str) -> str:
    return "Run hostprep as root." if "needs root" in reason else ""
