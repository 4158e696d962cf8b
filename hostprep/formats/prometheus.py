"""The text exposition format of Prometheus, for node_exporter's textfile collector.

Series of a host keep their labels whatever is found, but for those that end in `_info` or exist only while they are 1.
There are no client-side timestamps: node_exporter drops a whole file that has one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hostprep import __version__
from hostprep.errors import ReportUnusable
from hostprep.model import Finding, Status
from hostprep.render import checks
from hostprep.report import READY, UNKNOWN, VERDICTS, Report

# Why a report cannot be relied on: the values of one label, which must be few.
REASONS = (
    *("missing", "unreadable", "untrusted", "damaged", "foreign-version", "other-machine", "other-boot"),
    *("other-profile", "broken-profile", "partial", "future", "expired", "other"),
)
Sample = tuple[Mapping[str, str], float]


def render(report: Report) -> str:
    """What the report says. Its age is the reader's to tell: there are only the times at which something was.

    A look at a part of the profile can say not ready, and never ready.
    """
    whole = report.selection is None
    verdict = report.verdict if whole or report.verdict != READY else UNKNOWN
    statuses = {check: {f.status for f in report.findings if f.check == check} for check in checks(report)}
    bad = [f for f in report.findings if f.status is not Status.PASS]
    waived = [f for f in report.findings if f.waived]
    lines = [
        *_verdict(report.version, verdict, "" if whole else "partial"),
        *_metric("profile_info", "The profile that the host was judged by.", [({"profile": report.profile}, 1)]),
        *_metric("reboot_required", "Does something wait for a reboot?", [({}, report.reboot_required)]),
        *_metric("report_timestamp_seconds", "When the report was made.", [({}, report.generated_at)]),
        *_metric(
            "report_valid_until_seconds",
            "Until when it may be relied on.",
            [({}, report.generated_at + report.valid_for)],
        ),
        *_metric(
            "boot_time_seconds",
            "When the boot began that it is of.",
            [({}, round(report.generated_at - report.uptime))],
        ),
        *_metric("duration_seconds", "How long the look took.", [({}, report.duration_ms / 1000)]),
        *_metric(
            "check_duration_seconds",
            "How long one check took.",
            [({"check": check}, ms / 1000) for check, ms in report.durations.items()],
        ),
        *_metric(
            "check_status",
            "Has the check a finding of this status (1) or none (0)?",
            [({"check": c, "status": s.value}, s in found) for c, found in statuses.items() for s in Status],
        ),
        *_metric(
            "findings",
            "How many findings of this status, by whether the verdict counts them.",
            [
                ({"status": s.value, "counts": _truth(counts)}, _count(report.findings, s, counts))
                for s in Status
                for counts in (True, False)
            ],
        ),
        *_metric(
            "finding_ok",
            "Is the setting as wanted, now and after a reboot (1) or not (0)?",
            [(_name(f), f.status is Status.PASS) for f in report.findings],
        ),
        *_metric(
            "finding_info",
            "A setting that is not as wanted, with its status, and whether the verdict counts it.",
            [({**_name(f), "status": f.status.value, "counts": _truth(f.counts)}, 1) for f in bad],
        ),
        *_metric("waived_findings", "How many findings a waiver covers.", [({}, len(waived))]),
        *_metric("finding_waived", "A waiver covers this finding.", [(_name(f), 1) for f in waived]),
    ]
    return "".join(f"{line}\n" for line in lines)


def unusable(error: ReportUnusable) -> str:
    """That there is no report to rely on, and why: what was said before must not be read any longer."""
    known = error.reason if error.reason in REASONS else "other"
    return "".join(f"{line}\n" for line in _verdict(__version__, UNKNOWN, known))


def _verdict(version: str, verdict: str, refused: str) -> list[str]:
    """What every file of ours has; `refused` is why the report cannot be relied on, empty when it can."""
    return [
        *_metric("build_info", "Version of hostprep that said this.", [({"version": version}, 1)]),
        *_metric("ready", "Is the host ready by its profile (1) or not (0)?", [({}, verdict == READY)]),
        *_metric("report_usable", "Is there a report that can be relied on (1) or not (0)?", [({}, not refused)]),
        *_metric("report_unusable", "Why it cannot be relied on.", [({"reason": refused}, 1)] if refused else []),
        *_metric("verdict", "The verdict: 1 for the one in force.", [({"verdict": v}, v == verdict) for v in VERDICTS]),
    ]


def _metric(name: str, meaning: str, samples: Iterable[Sample]) -> list[str]:
    """One metric. Of samples whose labels have become the same the lowest is left: a series is there only once."""
    values: dict[str, float] = {}
    for labels, value in samples:
        inner = ",".join(f'{k}="{_label(v)}"' for k, v in labels.items())
        values[inner] = min(value, values.get(inner, value))
    head = [f"# HELP hostprep_{name} {meaning}", f"# TYPE hostprep_{name} gauge"]
    rows = [f"hostprep_{name}{f'{{{inner}}}' if inner else ''} {value:.10g}" for inner, value in values.items()]
    return [*head, *rows] if rows else []


def _name(f: Finding) -> dict[str, str]:
    return {"check": f.check, "key": f.key}


def _count(findings: Iterable[Finding], status: Status, counts: bool) -> int:
    return sum(f.status is status and f.counts is counts for f in findings)


def _truth(value: bool) -> str:
    return "true" if value else "false"


def _label(value: str) -> str:
    text = "".join(c if c.isprintable() or c == "\n" else " " for c in value)
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
