"""The report: findings and facts with a verdict, its JSON form, and the exit status of everything."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hostprep import __version__
from hostprep.engine import Answer
from hostprep.errors import (
    Busy,
    ChangeFailed,
    HostError,
    HostprepError,
    NeedsRoot,
    OutputFailed,
    ProfileError,
    ReportUnusable,
    StateError,
    UsageError,
)
from hostprep.model import Desired, Fact, Finding, Profile, Reading, Status, Unknown, from_json, to_json

SCHEMA_VERSION = 1
SCHEMA_FILE = os.path.join(os.path.dirname(__file__), "schemas", "report.schema.json")
READY, NOT_READY, PENDING, UNKNOWN = "ready", "not-ready", "pending-reboot", "unknown"
POWER_CYCLE = "pending-power-cycle"
VERDICTS = (READY, NOT_READY, PENDING, POWER_CYCLE, UNKNOWN)

# 1 to 9 speak of the host, 64 to 78 of hostprep.
EXIT_CODES = {
    0: "ready",
    1: "not ready",
    2: "wrong usage",
    3: "not ready, because something is unknown",
    4: "ready after a reboot, or after a power cycle where the report says so",
    5: "a change failed",
    70: "a bug in hostprep",
    74: "the answer could not be written (stdout closed, disk full)",
    75: "another hostprep is changing the host",
    77: "needs root",
    78: "the profile, or hostprep's own state, is not valid or not to be trusted",
    130: "interrupted",
}
_OF_VERDICT = {READY: 0, NOT_READY: 1, UNKNOWN: 3, PENDING: 4, POWER_CYCLE: 4}
_OF_ERROR: dict[type[HostprepError], int] = {
    UsageError: 2,
    ReportUnusable: 3,
    HostError: 3,
    ChangeFailed: 5,
    OutputFailed: 74,
    Busy: 75,
    NeedsRoot: 77,
    ProfileError: 78,
    StateError: 78,
}
# Plug-ins of monitoring systems have codes of their own. node-problem-detector takes 0 for OK, 1 for a problem and all
# else for unknown (pkg/custompluginmonitor/types).
_OF_VERDICT_FOR = {
    "nagios": {READY: 0, PENDING: 1, POWER_CYCLE: 1, NOT_READY: 2, UNKNOWN: 3},
    "npd": {READY: 0, PENDING: 1, POWER_CYCLE: 1, NOT_READY: 1, UNKNOWN: 2},
}
_OF_ANY_ERROR_FOR = {"nagios": 3, "npd": 2}


class Report(NamedTuple):
    """One look at one host, judged by one profile."""

    findings: list[Finding]
    facts: dict[str, dict[str, Fact]]
    durations: dict[str, int]  # ms, by check
    profile: str
    profile_sha256: str
    generated_at: int  # seconds since the epoch
    uptime: float  # seconds since boot: an age that no clock change can falsify
    valid_for: int  # seconds
    hostname: str
    machine_id: str
    boot_id: str
    kernel: str
    duration_ms: int
    selection: list[str] | None = None  # the checks that --only asked for; never published then
    version: str = __version__

    @property
    def verdict(self) -> str:
        """What cannot be told is not ready; a report in which nothing is required tells nothing."""
        statuses = {f.status for f in self.findings if f.counts}
        if Status.FAIL in statuses:
            return NOT_READY
        if Status.UNKNOWN in statuses or all(f.advisory for f in self.findings):
            return UNKNOWN
        if Status.POWER_CYCLE in statuses:
            return POWER_CYCLE
        return PENDING if Status.PENDING in statuses else READY

    @property
    def reboot_required(self) -> bool:
        """Does a reboot bring anything? Not while something waits for a power cycle, which brings the rest too."""
        statuses = {f.status for f in self.findings if f.counts}
        return Status.PENDING in statuses and Status.POWER_CYCLE not in statuses


class Identity(NamedTuple):
    """Which host, and which boot of it."""

    hostname: str
    machine_id: str
    boot_id: str
    kernel: str


def make(
    findings: Sequence[Finding],
    answers: Mapping[str, Answer],
    profile: Profile,
    identity: Identity,
    started: float,
    selection: list[str] | None = None,
) -> Report:
    """A report of now. `started` is the monotonic second at which the look began."""
    now = time.time()
    ends = [_end_of_day(w.until) for w in profile.waivers if any(w.until in f.waived for f in findings)]
    return Report(
        findings=list(findings),
        facts={name: dict(a.facts) for name, a in answers.items() if not isinstance(a.facts, Unknown)},
        durations={name: a.duration_ms for name, a in answers.items()},
        profile=profile.name,
        profile_sha256=profile.sha256,
        generated_at=int(now),
        uptime=round(time.clock_gettime(time.CLOCK_BOOTTIME), 1),
        valid_for=max(min([profile.valid_for, *(int(end - now) for end in ends)]), 0),
        hostname=identity.hostname,
        machine_id=identity.machine_id,
        boot_id=identity.boot_id,
        kernel=identity.kernel,
        duration_ms=round((time.monotonic() - started) * 1000),
        selection=selection,
    )


def exit_code(outcome: Report | BaseException, output: str = "text") -> int:
    """The exit status of an outcome: the only place that decides one. Plug-ins alone have codes of their own."""
    if isinstance(outcome, Report):
        return _OF_VERDICT_FOR.get(output, _OF_VERDICT)[outcome.verdict]
    if output in _OF_ANY_ERROR_FOR:
        return _OF_ANY_ERROR_FOR[output]
    if isinstance(outcome, KeyboardInterrupt):
        return 130
    return next((code for kind, code in _OF_ERROR.items() if isinstance(outcome, kind)), 70)


def to_dict(report: Report) -> dict[str, Any]:
    """The report as schemas/report.schema.json describes it."""
    looked_at = stamp(report.generated_at - report.duration_ms / 1000)  # all checks look at once
    return {
        "schema_version": SCHEMA_VERSION,
        "hostprep_version": report.version,
        "generated_at": stamp(report.generated_at),
        "valid_until": stamp(report.generated_at + report.valid_for),
        "uptime_s": report.uptime,
        "duration_ms": report.duration_ms,
        "hostname": report.hostname,
        "machine_id": report.machine_id,
        "boot_id": report.boot_id,
        "kernel": report.kernel,
        "profile": {"name": report.profile, "sha256": report.profile_sha256},
        "selection": report.selection,
        "verdict": report.verdict,
        "ready": report.verdict == READY,
        "reboot_required": report.reboot_required,
        "checks": {name: {"looked_at": looked_at, "duration_ms": ms} for name, ms in report.durations.items()},
        "findings": [_finding_to_dict(f) for f in report.findings],
        "facts": {
            check: {key: {"current": to_json(f.current), "next_boot": to_json(f.next_boot)} for key, f in facts.items()}
            for check, facts in report.facts.items()
        },
    }


def dumps(report: Report) -> str:
    """The report as JSON; bytes of the host that are not UTF-8 become `?`."""
    return (json.dumps(to_dict(report), indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace").decode()


def from_dict(data: dict[str, Any]) -> Report:
    """The inverse of to_dict(). Raises KeyError, TypeError or ValueError on what is no report."""
    generated = _seconds(data["generated_at"])
    return Report(
        findings=[_finding_from_dict(f) for f in data["findings"]],
        facts={
            check: {key: Fact(from_json(f["current"]), from_json(f["next_boot"])) for key, f in facts.items()}
            for check, facts in data["facts"].items()
        },
        durations={name: c["duration_ms"] for name, c in data["checks"].items()},
        profile=data["profile"]["name"],
        profile_sha256=data["profile"]["sha256"],
        generated_at=generated,
        uptime=data["uptime_s"],
        valid_for=_seconds(data["valid_until"]) - generated,
        hostname=data["hostname"],
        machine_id=data["machine_id"],
        boot_id=data["boot_id"],
        kernel=data["kernel"],
        duration_ms=data["duration_ms"],
        selection=data["selection"],
        version=data["hostprep_version"],
    )


def usable(data: object, here: Identity, max_age: int | None = None, profile: Profile | None = None) -> Report:
    """A published report, if it may be relied on here and now; else ReportUnusable says why not.

    The rule for every consumer: missing, unreadable, too old, of another boot, machine or profile, from the
    future, or of a part of the profile only, means not ready. `max_age` can only shorten what `valid_until` allows.
    """
    again = "Look at the host again: hostprep check"
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
        raise ReportUnusable("this is no report that this hostprep understands", again, reason="foreign-version")
    try:
        _validate(data)
        report = from_dict(data)
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as e:
        raise ReportUnusable(f"the report is damaged: {_short(str(e))}", again, reason="damaged") from e
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - report.uptime
    limit = report.valid_for if max_age is None else min(report.valid_for, max_age)
    why = reason = ""
    if not here.machine_id or not here.boot_id:
        why = "this machine has no /etc/machine-id, or no boot_id, to compare it with"
        reason = "other-machine"
    elif report.machine_id != here.machine_id:
        why, reason = f"it is of another machine ({_short(report.hostname)})", "other-machine"
    elif report.boot_id != here.boot_id:
        why, reason = f"it is of an earlier boot ({stamp(report.generated_at)})", "other-boot"
    elif report.selection is not None:
        why, reason = f"only a part was looked at ({_short(', '.join(report.selection))})", "partial"
    elif profile is not None and report.profile_sha256 != profile.sha256:
        why = f"it is of another profile ({_short(report.profile)}, or {profile.name} as it was then)"
        reason = "other-profile"
    elif age < -1 or report.generated_at > time.time() + 60:
        why, reason = f"it comes from the future ({stamp(report.generated_at)}): was the clock set back?", "future"
    elif age > limit or time.time() > report.generated_at + limit:
        why = f"it is {show_age(max(age, time.time() - report.generated_at))} old; at most {show_age(limit)} is allowed"
        reason = "expired"
    if why:
        raise ReportUnusable(f"the last report cannot be relied on: {why}", again, reason=reason)
    return report


def _validate(data: dict[str, Any]) -> None:
    """Raise ValueError on what the published schema does not allow, and on a verdict that its findings do not give."""
    import jsonschema

    with open(SCHEMA_FILE) as f:
        validator = jsonschema.Draft202012Validator(json.load(f))
    for error in validator.iter_errors(data):
        raise ValueError(f"{'.'.join(map(str, error.absolute_path)) or 'it'}: {error.message[:200]}")
    if (verdict := from_dict(data).verdict) != data["verdict"] or data["ready"] != (verdict == READY):
        raise ValueError("its verdict is not that of its findings")


def _short(text: str) -> str:
    """What a report that is not believed says of itself: one line of no great length."""
    return "".join(c if c.isprintable() else " " for c in text[:200])


def stamp(seconds: float) -> str:
    """RFC 3339, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def show_age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _seconds(text: str) -> int:
    import calendar

    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))


def _end_of_day(date: str) -> int:
    return _seconds(f"{date}T23:59:59Z")


def _finding_to_dict(f: Finding) -> dict[str, Any]:
    return {
        "check": f.check,
        "key": f.key,
        "status": f.status.value,
        "current": to_json(f.fact.current),
        "next_boot": to_json(f.fact.next_boot),
        "desired": None if f.desired is None else to_json(f.desired.value),
        "op": None if f.desired is None else f.desired.op,
        "unit": "" if f.desired is None else f.desired.unit,
        "advisory": f.advisory,
        "waived": f.waived,
        "message": f.message,
        "fix": f.fix,
    }


def _finding_from_dict(data: dict[str, Any]) -> Finding:
    desired = None
    if data["op"] is not None:
        value: Reading = from_json(data["desired"])
        assert not isinstance(value, Unknown)
        desired = Desired(value, op=data["op"], unit=data["unit"])
    return Finding(
        data["check"],
        data["key"],
        Status(data["status"]),
        Fact(from_json(data["current"]), from_json(data["next_boot"])),
        desired,
        data["message"],
        data["fix"],
        data["advisory"],
        data["waived"],
    )
