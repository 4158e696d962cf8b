"""One line with performance data, as Nagios, Icinga and their kin take it from a plug-in."""

from __future__ import annotations

from hostprep.model import Status
from hostprep.render import line, summary
from hostprep.report import NOT_READY, PENDING, POWER_CYCLE, READY, UNKNOWN, Report


def render(report: Report) -> str:
    """One line with performance data, as Nagios, Icinga and their kin take it from a plug-in."""
    word = {READY: "OK", PENDING: "WARNING", POWER_CYCLE: "WARNING", NOT_READY: "CRITICAL", UNKNOWN: "UNKNOWN"}[
        report.verdict
    ]
    bad = [f"{f.name} {f.status.value}" for f in report.findings if f.counts and f.status is not Status.PASS]
    bad += [f"{f.name} waived: {f.waived}" for f in report.findings if f.waived]
    data = " ".join(f"{s.value}={sum(f.status is s for f in report.findings)}" for s in Status)
    said = line(": ".join([summary(report), *(["; ".join(bad)] if bad else [])])).replace("|", "/")
    return f"HOSTPREP {word} - {said} | {data} duration={report.duration_ms / 1000:.3f}s\n"
