"""What a person or a monitoring system reads: pure functions from a report to text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from hostprep.judge import show, show_desired
from hostprep.model import Change, Facet, Fact, Finding, Status, Unknown
from hostprep.report import NOT_READY, PENDING, READY, UNKNOWN, Report, stamp, to_dict

if TYPE_CHECKING:
    from hostprep.engine import Batch
    from hostprep.host.rehearsal import Step
    from hostprep.perform import Failure


class Paint(Protocol):
    """Text in a colour, or as it is."""

    def __call__(self, text: str, colour: str) -> str: ...


_COLOURS = {"red": "31;1", "green": "32", "yellow": "33", "magenta": "35", "bold": "1", "dim": "2", "cyan": "36"}
_WORDS = {
    Status.PASS: ("pass", "green"),
    Status.VOLATILE: ("volatile", "yellow"),
    Status.PENDING: ("reboot", "yellow"),
    Status.FAIL: ("FAIL", "red"),
    Status.UNKNOWN: ("unknown", "magenta"),
}
_VERDICTS = {
    READY: ("READY", "green"),
    NOT_READY: ("NOT READY", "red"),
    PENDING: ("NOT READY YET: reboot", "yellow"),
    UNKNOWN: ("NOT READY: unknown", "magenta"),
}
_COLUMN = 34  # characters; a longer value is cut, and whole in the JSON


def plain(text: str, colour: str) -> str:
    return text


def coloured(text: str, colour: str) -> str:
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


# -- text -----------------------------------------------------------------------------------------


def text(report: Report, paint: Paint = plain) -> str:
    """A table per check: what is wanted, what is now, what the next boot brings; under it what to do."""
    host, when = report.hostname or "this host", stamp(report.generated_at)
    head = f"hostprep {report.version}  {host}  profile {report.profile}  {when}"
    rows = [_row(f) for f in report.findings]
    widths = [max((len(r[i]) for r in rows), default=0) for i in range(5)]
    titles = ("STATUS", "SETTING", "WANTED", "NOW", "NEXT BOOT")
    widths = [max(w, len(t)) for w, t in zip(widths, titles, strict=True)]
    lines = [paint(head, "bold"), "", paint("  " + _cells(titles, widths), "dim")]
    last = ""
    for finding, row in zip(report.findings, rows, strict=True):
        if finding.check != last:
            lines.append(paint(finding.check, "bold"))
            last = finding.check
        lines.append("  " + _cells(row, widths, partial(paint, colour=_colour(finding))))
        indent = " " * (widths[0] + 4)
        if finding.message:
            lines += [indent + finding.message]
        if finding.waived:
            lines += [indent + paint(f"waived: {finding.waived}", "cyan")]
        elif finding.fix:
            lines += [indent + paint(f"-> {finding.fix}", "cyan")]
    return "\n".join([*lines, "", verdict(report, paint)]) + "\n"


def verdict(report: Report, paint: Paint = plain) -> str:
    """One line: the verdict, and what it rests on."""
    word, colour = _VERDICTS[report.verdict]
    waived = sum(bool(f.waived) for f in report.findings)
    counts = [f"{report.count(s)} {_WORDS[s][0].lower()}" for s in reversed(Status) if report.count(s)]
    advisory = sum(f.advisory and f.status is not Status.PASS for f in report.findings)
    notes = [f"{waived} waived"] * bool(waived) + [f"{advisory} of them only advisory"] * bool(advisory)
    part = f" (only {', '.join(report.selection)} looked at)" if report.selection is not None else ""
    if report.verdict == READY and waived:
        word = f"READY ({waived} waived)"
        notes = notes[1:]
    return paint(word, colour) + part + ": " + ", ".join([*counts, *notes])


def _row(f: Finding) -> tuple[str, str, str, str, str]:
    unit = f.desired.unit if f.desired else ""
    now, later = show(f.fact.current, unit), show(f.fact.next_boot, unit)
    word = "waived" if f.waived else _WORDS[f.status][0]
    if f.advisory and f.status is not Status.PASS:
        word = "advice" if f.status is not Status.UNKNOWN else "unknown"
    return word, _cut(f.key), _cut(show_desired(f.desired)), _cut(now), "same" if later == now else _cut(later)


def _colour(f: Finding) -> str:
    return "cyan" if f.waived or (f.advisory and f.status is not Status.PASS) else _WORDS[f.status][1]


def _cut(text: str) -> str:
    return text if len(text) <= _COLUMN else text[: _COLUMN - 1] + "…"


def _cells(cells: Sequence[str], widths: Sequence[int], first: Callable[[str], str] = lambda t: t) -> str:
    padded = [f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)]
    return "  ".join([first(padded[0]), *padded[1:]]).rstrip()


# -- machines -------------------------------------------------------------------------------------


def json(report: Report) -> str:
    import json

    return json.dumps(to_dict(report), indent=1) + "\n"


def prometheus(report: Report) -> str:
    """The text exposition format, for node_exporter's textfile collector."""
    lines: list[str] = []

    def metric(name: str, meaning: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> None:
        lines.append(f"# HELP hostprep_{name} {meaning}")
        lines.append(f"# TYPE hostprep_{name} gauge")
        for labels, value in samples:
            inner = ",".join(f'{k}="{_label(v)}"' for k, v in labels.items())
            lines.append(f"hostprep_{name}{{{inner}}} {value:g}" if inner else f"hostprep_{name} {value:.10g}")

    profile = {"profile": report.profile}
    statuses = {check: {f.status for f in report.findings if f.check == check} for check in report.durations}
    metric("build_info", "Version of hostprep that made the report.", [({"version": report.version}, 1)])
    metric("ready", "Is the host ready by its profile (1) or not (0)?", [(profile, report.verdict == READY)])
    metric(
        "verdict", "The verdict: 1 for the one in force.", [({"verdict": v}, report.verdict == v) for v in _VERDICTS]
    )
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
    metric("waived_findings", "Findings that a waiver covers.", [({}, sum(bool(f.waived) for f in report.findings))])
    return "\n".join(lines) + "\n"


def nagios(report: Report) -> str:
    """One line with performance data, as Nagios, Icinga and their kin take it from a plug-in."""
    word = {READY: "OK", PENDING: "WARNING", NOT_READY: "CRITICAL", UNKNOWN: "UNKNOWN"}[report.verdict]
    bad = [
        f"{f.name} {f.status.value}"
        for f in report.findings
        if f.counts and f.status not in (Status.PASS, Status.VOLATILE)
    ]
    data = " ".join(f"{s.value}={report.count(s)}" for s in Status)
    details = "; ".join(bad) or f"{len(report.findings)} settings as {report.profile} wants them"
    return f"HOSTPREP {word} - {details}".replace("|", "/") + f" | {data} duration={report.duration_ms / 1000:.3f}s\n"


def junit(report: Report) -> str:
    """A test suite per check, a test case per finding; unknown is an error, advisory and waived ones are skipped."""
    from xml.sax.saxutils import escape, quoteattr

    suites = []
    for check, ms in report.durations.items():
        findings = [f for f in report.findings if f.check == check]
        cases = []
        for f in findings:
            body = ""
            if f.status not in (Status.PASS, Status.VOLATILE):
                kind = "skipped" if not f.counts else "error" if f.status is Status.UNKNOWN else "failure"
                said = f"{f.message}\n{f.fix}".strip()
                body = f"<{kind} message={quoteattr(f.waived or f.message)}>{escape(_xml(said))}</{kind}>"
            cases.append(
                f"    <testcase classname={quoteattr(f'hostprep.{check}')} name={quoteattr(f.key)}>{body}</testcase>"
            )
        counts = [sum(f"<{kind} " in case for case in cases) for kind in ("failure", "error", "skipped")]
        names = ("failures", "errors", "skipped")
        numbers = " ".join(f'{name}="{count}"' for name, count in zip(names, counts, strict=True))
        numbers = f'tests="{len(cases)}" {numbers} time="{ms / 1000:.3f}"'
        suites.append("\n".join([f"  <testsuite name={quoteattr(check)} {numbers}>", *cases, "  </testsuite>"]))
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<testsuites name="hostprep">\n'
        + "\n".join(suites)
        + "\n</testsuites>\n"
    )


def _label(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _xml(text: str) -> str:
    return "".join(c for c in text if c.isprintable() or c == "\n")


FORMATS: dict[str, Callable[[Report], str]] = {
    "text": text,
    "json": json,
    "prometheus": prometheus,
    "nagios": nagios,
    "junit": junit,
}


# -- plans and facts ------------------------------------------------------------------------------


def plan(batches: Sequence[Batch], paint: Paint = plain) -> str:
    """What apply would do, batch by batch: each change, what it disrupts, the commands and the files."""
    if not batches:
        return "Nothing to change.\n"
    lines: list[str] = []
    for batch in batches:
        when = "now" if batch.facet is Facet.CURRENT else "for the next boot"
        lines.append(paint(f"{batch.check}, {when}", "bold"))
        for item in batch.planned:
            unit = item.desired.unit if item.desired else ""
            change = f"{item.change.key}: {show(item.change.before, unit)} -> {show(item.change.after, unit)}"
            if item.refused:
                lines.append("  " + paint(f"refused  {change}", "red"))
                lines.append(f"           {item.refused}")
            else:
                lines.append("  " + paint(change, "yellow"))
                if item.desired and item.desired.disrupts and batch.facet is Facet.CURRENT:
                    lines.append("    " + paint(f"disrupts: {item.desired.disrupts}", "red"))
        lines += _steps(batch.steps, paint)
        lines.append("")
    return "\n".join(lines)


def revert(changes: Sequence[Change], steps: Sequence[Step], foreign: Sequence[str], paint: Paint = plain) -> str:
    """What revert would do."""
    lines = [paint("To be taken back", "bold")]
    for change in changes:
        when = "now" if change.facet is Facet.CURRENT else "next boot"
        sides = f"{show(change.before)} -> {show(change.after)}"
        lines.append("  " + paint(f"{change.check}/{change.key} ({when}): {sides}", "yellow"))
    lines += _steps(steps, paint)
    lines += [f"  {path}: changed by somebody else since; its other content stays" for path in foreign]
    return "\n".join(lines) + "\n"


def _steps(steps: Sequence[Step], paint: Paint) -> list[str]:
    lines = []
    for step in steps:
        lines.append("    " + paint(f"# {step.command}" if not step.diff else step.command, "cyan"))
        for line in step.diff.splitlines():
            colour = {"+": "green", "-": "red"}.get(line[:1], "dim")
            lines.append("      " + paint(line, colour))
    return lines


def failures(failed: Sequence[Failure], paint: Paint = plain) -> str:
    lines = []
    for failure in failed:
        lines.append(paint("failed", "red") + f"  {failure.name}: {failure.reason}")
        if failure.hint:
            lines.append(f"        -> {failure.hint}")
    return "".join(f"{line}\n" for line in lines)


def facts(everything: Mapping[str, Mapping[str, Fact] | Unknown], paint: Paint = plain) -> str:
    """Facts without a profile: one line each; long runs of one kind (modules) are folded into one."""
    lines: list[str] = []
    for check, found in everything.items():
        lines.append(paint(check, "bold"))
        if isinstance(found, Unknown):
            lines.append(f"  unknown: {found.reason}")
            continue
        folded: dict[tuple[str, Fact], list[str]] = {}
        width = min(max((len(k) for k in found), default=0), _COLUMN)
        for key, fact in found.items():
            prefix, slash, rest = key.partition("/")
            if slash and sum(k.startswith(f"{prefix}/") for k in found) > 20:
                folded.setdefault((prefix, fact), []).append(rest)
                continue
            lines.append(f"  {key:<{width}}  {_fact(fact)}")
        for (prefix, fact), keys in folded.items():
            names = ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
            lines.append(f"  {prefix:<{width}}  {_fact(fact)}: {names}")
    return "\n".join(lines) + "\n"


def _fact(fact: Fact) -> str:
    now, later = (f"unknown: {r.reason}" if isinstance(r, Unknown) else show(r) for r in fact)
    return now if now == later else f"{now}  (next boot: {later})"
