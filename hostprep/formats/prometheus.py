"""The text exposition format of Prometheus, for node_exporter's textfile collector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hostprep.model import Status
from hostprep.render import checks
from hostprep.report import READY, VERDICTS, Report


def render(report: Report) -> str:
    """The text exposition format, for node_exporter's textfile collector."""
    lines: list[str] = []

    def metric(name: str, meaning: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> None:
        lines.append(f"# HELP hostprep_{name} {meaning}")
        lines.append(f"# TYPE hostprep_{name} gauge")
        for labels, value in samples:
            inner = ",".join(f'{k}="{_label(v)}"' for k, v in labels.items())
            lines.append(f"hostprep_{name}{{{inner}}} {value:g}" if inner else f"hostprep_{name} {value:.10g}")

    profile = {"profile": report.profile}
    statuses = {check: {f.status for f in report.findings if f.check == check} for check in checks(report)}
    metric("build_info", "Version of hostprep that made the report.", [({"version": report.version}, 1)])
    metric("ready", "Is the host ready by its profile (1) or not (0)?", [(profile, report.verdict == READY)])
    metric("verdict", "The verdict: 1 for the one in force.", [({"verdict": v}, report.verdict == v) for v in VERDICTS])
    metric("reboot_required", "Does something wait for a reboot?", [({}, report.reboot_required)])
    metric("report_timestamp_seconds", "When the report was made.", [({}, report.generated_at)])
    metric(
        "report_valid_until_seconds", "Until when it may be relied on.", [({}, report.generated_at + report.valid_for)]
    )
    metric(
        "boot_time_seconds", "When the boot began that it is of.", [({}, round(report.generated_at - report.uptime))]
    )
    metric("duration_seconds", "How long the look took.", [({}, report.duration_ms / 1000)])
    metric(
        "check_duration_seconds",
        "How long one check took.",
        [({"check": check}, ms / 1000) for check, ms in report.durations.items()],
    )
    metric(
        "check_status",
        "Has the check a finding of this status (1) or none (0)?",
        [({"check": c, "status": s.value}, s in found) for c, found in statuses.items() for s in Status],
    )
    metric(
        "finding_ok",
        "Is the setting as wanted, now and after a reboot (1) or not (0)?",
        [
            ({"check": f.check, "key": f.key, "required": "true" if f.counts else "false"}, f.status is Status.PASS)
            for f in report.findings
        ],
    )
    waived = [f for f in report.findings if f.waived]
    metric("waived_findings", "How many findings a waiver covers.", [({}, len(waived))])
    metric("finding_waived", "A waiver covers this finding.", [({"check": f.check, "key": f.key}, 1) for f in waived])
    return "\n".join(lines) + "\n"


def _label(value: str) -> str:
    text = "".join(c if c.isprintable() or c == "\n" else " " for c in value)
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
