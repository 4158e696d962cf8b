"""What a person reads in a terminal: pure functions from a report, a plan or facts to text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from hostprep.judge import show, show_beside, show_desired
from hostprep.model import Change, Desired, Facet, Fact, Finding, Status, Unknown
from hostprep.report import NOT_READY, PENDING, POWER_CYCLE, READY, UNKNOWN, Report, stamp

if TYPE_CHECKING:
    from hostprep.engine import Batch, Planned
    from hostprep.host.rehearsal import Step
    from hostprep.install import Done
    from hostprep.perform import Failure


class Paint(Protocol):
    """Text in a colour, or as it is."""

    def __call__(self, text: str, colour: str) -> str: ...


_COLOURS = {"red": "31;1", "green": "32", "yellow": "33", "magenta": "35", "bold": "1", "dim": "2", "cyan": "36"}
WORDS = {  # as a row says it, as the last line counts it, and its colour
    Status.FAIL: ("FAIL", "failed", "red"),
    Status.UNKNOWN: ("unknown", "unknown", "magenta"),
    Status.POWER_CYCLE: ("power", "waiting for a power cycle", "yellow"),
    Status.PENDING: ("reboot", "waiting for a reboot", "yellow"),
    Status.VOLATILE: ("volatile", "volatile", "yellow"),
    Status.PASS: ("pass", "passed", "green"),
}
_VERDICTS = {
    READY: ("READY", "green"),
    NOT_READY: ("NOT READY", "red"),
    PENDING: ("NOT READY before a reboot", "yellow"),
    POWER_CYCLE: ("NOT READY before a power cycle", "yellow"),
    UNKNOWN: ("NOT READY, as far as can be told", "magenta"),
}
TITLES = ("STATUS", "SETTING", "WANTED", "NOW", "NEXT BOOT")
WIDTH = 100  # characters of a line, where no terminal says otherwise
_NARROW = 10  # a column is not squeezed below this
MANY = 3  # rows that say the same of as many devices become one
_DEVICE = r"^[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7](?=/)|(?<=/vf)[0-9]+(?=/)"  # PCI address; VF


def plain(text: str, colour: str) -> str:
    return text


def coloured(text: str, colour: str) -> str:
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


# -- text -----------------------------------------------------------------------------------------


def text(report: Report, paint: Paint = plain, width: int = WIDTH) -> str:
    """A table per check: what is wanted, what is now, what the next boot brings; under it what to do.

    Settings that follow each other and have the same said about them share what is said, and of three or more devices
    that pass with the same values one row is enough. What does not fit into its column goes on below; nothing is cut.
    """
    name, when = host(report), stamp(report.generated_at)
    findings, rows = _folded(report.findings)
    widths = fit([max(map(len, column)) for column in zip(TITLES, *rows, strict=True)], width - 2)
    head = f"hostprep {line(report.version)}  {name}  profile {line(report.profile)}  {when}"
    lines = [paint(head, "bold"), "", *cells(TITLES, widths, lambda t: paint(t, "dim"))]
    for i, (finding, row) in enumerate(zip(findings, rows, strict=True)):
        if i == 0 or finding.check != findings[i - 1].check:
            lines.append(paint(finding.check, "bold"))
        lines += cells(row, widths, partial(paint, colour=_colour(finding)))
        if (said := said_of(finding)) and not _says_the_same(findings[i + 1 : i + 2], finding):
            lines += _indented(said, widths[0] + 4, width, paint)
    return "\n".join([*lines, "", verdict(report, paint)]) + "\n"


def host(report: Report) -> str:
    """What a host is called."""
    return line(report.hostname) or "this host"


def verdict(report: Report, paint: Paint = plain) -> str:
    """One line: the verdict, and what it rests on."""
    word, colour = _VERDICTS[report.verdict]
    waived = sum(bool(f.waived) for f in report.findings)
    if report.verdict == READY and any(f.status is Status.VOLATILE and f.counts for f in report.findings):
        word, colour = "READY until the next boot", "yellow"
    if report.verdict == READY and waived:
        word += f" ({waived} waived)"
    part = f" (only {', '.join(report.selection)} looked at)" if report.selection is not None else ""
    return paint(word, colour) + part + ": " + summary(report)


def summary(report: Report) -> str:
    """`1 failed, 7 passed, 1 waived; advisory: 3 unknown`: what decides comes first."""
    counting = [f for f in report.findings if f.counts or (f.status is Status.PASS and not f.waived)]
    waived = sum(bool(f.waived) for f in report.findings)
    advisory = [f for f in report.findings if f.advisory and not f.waived and f.status is not Status.PASS]
    first = ", ".join(tally(counting) + [f"{waived} waived"] * bool(waived))
    if all(f.advisory for f in report.findings):
        first = "nothing was looked at that this profile requires"
    return "; ".join([first, *([f"advisory: {', '.join(tally(advisory))}"] if advisory else [])])


def tally(findings: Sequence[Finding]) -> list[str]:
    counts = {status: sum(f.status is status for f in findings) for status in WORDS}
    return [f"{count} {WORDS[status][1]}" for status, count in counts.items() if count]


def _folded(findings: Iterable[Finding]) -> tuple[list[Finding], list[tuple[str, ...]]]:
    """The findings that get a row, and the rows: of GPUs and VFs that are all well, one stands for each setting."""
    found = [(f, row_of(f)) for f in findings]
    common = [(f.check, row[0], of_any_device(row[1]), *row[2:]) for f, row in found]
    alike: dict[tuple[str, ...], int] = {}
    for key in common:
        alike[key] = alike.get(key, 0) + 1
    rows: list[tuple[Finding, tuple[str, ...]]] = []
    told: set[tuple[str, ...]] = set()
    for (f, row), key in zip(found, common, strict=True):
        if f.status is not Status.PASS or f.waived or alike[key] < MANY:
            rows.append((f, row))
        elif key not in told:
            rows.append((f, (row[0], f"{key[2]} ({alike[key]})", *row[2:])))
            told.add(key)
    return [f for f, _ in rows], [row for _, row in rows]


def of_any_device(key: str) -> str:
    return re.sub(_DEVICE, "*", key) if ":" in key else key  # most hosts need no pattern to be compiled


def row_of(f: Finding) -> tuple[str, ...]:
    now, later = (line(show_beside(side, f.desired)) for side in f.fact)
    word = "waived" if f.waived else WORDS[f.status][0]
    if f.advisory and not f.waived and f.status not in (Status.PASS, Status.UNKNOWN):
        word = "advisory"
    return word, line(f.key), line(show_desired(f.desired)), now, "same" if later == now else later


def _colour(f: Finding) -> str:
    return "cyan" if f.waived or (f.advisory and f.status is not Status.PASS) else WORDS[f.status][2]


def said_of(f: Finding) -> tuple[str, str] | None:
    """What a finding that is not pass means, and what to do. What its row says already is not said again."""
    known = f"Wanted {show_desired(f.desired)}, found {show_beside(f.fact.current, f.desired)}."
    message = line(f.message.removeprefix(known).strip())
    todo = f"waived: {f.waived}" if f.waived else f"-> {f.fix}" if f.fix else ""
    return (message, line(todo)) if message or todo else None


def _says_the_same(following: Sequence[Finding], f: Finding) -> bool:
    return any(n.check == f.check and said_of(n) == said_of(f) for n in following)


def _indented(said: tuple[str, str], indent: int, width: int, paint: Paint) -> list[str]:
    """The meaning is wrapped; what to do is not, since somebody may copy it."""
    message, todo = said
    lines = _wrap(message, max(width - indent, 2 * _NARROW)) if message else []
    return [" " * indent + row for row in [*lines, *([paint(todo, "cyan")] if todo else [])]]


def line(text: str) -> str:
    """Text of this host made fit for a terminal: one line, no control characters."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def fit(widths: list[int], room: int) -> list[int]:
    """Column widths that fit: of those that can be wrapped, the widest gives way."""
    while sum(widths) + 2 * (len(widths) - 1) > room and max(widths[1:]) > _NARROW:
        widest = widths.index(max(widths[1:]), 1)
        widths = [*widths[:widest], widths[widest] - 1, *widths[widest + 1 :]]
    return widths


def cells(row: Sequence[str], widths: Sequence[int], first: Callable[[str], str]) -> list[str]:
    """A row, on as many lines as its longest cell needs."""
    columns = [_wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
    lines = []
    for i in range(max(map(len, columns))):
        padded = [f"{c[i] if i < len(c) else '':<{width}}" for c, width in zip(columns, widths, strict=True)]
        lines.append("  " + "  ".join([first(padded[0]) if i == 0 else padded[0], *padded[1:]]).rstrip())
    return lines


def _wrap(text: str, width: int) -> list[str]:
    """Lines of at most this width, broken after a space where there is one, else after a comma or slash."""
    lines = []
    while len(text) > width:
        space = text.rfind(" ", 0, width + 1) + 1
        cut = space if space > width // 2 else max(space, *(text.rfind(c, 0, width) + 1 for c in ",/"))
        cut = cut if cut > width // 3 else width
        lines.append(text[:cut].rstrip())
        text = text[cut:].lstrip()
    return [*lines, text]


def checks(report: Report) -> list[str]:
    """The checks that were run, and those that only have a finding: a profile that is not valid is one."""
    return list(dict.fromkeys([*report.durations, *(f.check for f in report.findings)]))


# -- plans and facts ------------------------------------------------------------------------------


def plan(batches: Sequence[Batch], paint: Paint = plain) -> str:
    """What apply would do, batch by batch: each change, what it disrupts, the commands and the files.

    What is needed and refused comes after it, with the reason.
    """
    lines: list[str] = []
    for batch in batches:
        if all(p.refused for p in batch.planned):
            continue
        when = "now" if batch.facet is Facet.CURRENT else "for the next boot"
        lines.append(paint(f"{batch.check}, {when}", "bold"))
        for item in batch.planned:
            if item.refused:
                continue
            lines.append("  " + paint(_change(item.change, item.desired), "yellow"))
            if item.desired and item.desired.disrupts and batch.facet is Facet.CURRENT:
                lines.append("    " + paint(f"disrupts: {line(item.desired.disrupts)}", "red"))
            if item.desired and item.desired.final:
                lines.append("    " + paint(f"cannot be taken back: {line(item.desired.final)}", "red"))
        lines += [*_steps(batch.steps, paint), ""]
    refused = [p for batch in batches for p in batch.planned if p.refused]
    if refused:
        lines.append(paint("Refused: needed, but hostprep will not do it", "red"))
        for i, item in enumerate(refused):
            when = "now" if item.change.facet is Facet.CURRENT else "next boot"
            lines.append(f"  {item.change.check}/{_change(item.change, item.desired)} ({when})")
            if [_why_refused(item)] != [_why_refused(following) for following in refused[i + 1 : i + 2]]:
                lines += _indented(_why_refused(item), 4, WIDTH, paint)
        lines.append("")
    return "\n".join([*lines, ""]) if lines else "Nothing to change.\n\n"


def _why_refused(item: Planned) -> tuple[str, str]:
    """The reason, and what to do about it where it is the check's own."""
    wanted = item.desired
    fix = wanted.fix if wanted and item.refused in (wanted.refused_now, wanted.refused_next) else ""
    return line(item.refused), f"-> {line(fix)}" if fix else ""


def _change(change: Change, desired: Desired | None) -> str:
    before, after = (line(show_beside(side, desired)) for side in (change.before, change.after))
    return f"{line(change.key)}: {before} -> {after}"


def left_over(findings: Sequence[Finding], paint: Paint = plain) -> str:
    """What a plan does not touch, though it is not as wanted, and what a person does about it."""
    lines = _one_by_one(findings, paint)
    return "\n".join([paint("Left to you: hostprep cannot change it", "bold"), *lines, "", ""]) if lines else ""


def missing(findings: Sequence[Finding], paint: Paint = plain) -> str:
    """What keeps a host from being ready, and what a person does about it."""
    return "".join(f"{row}\n" for row in _one_by_one(findings, paint))


def _one_by_one(findings: Sequence[Finding], paint: Paint) -> list[str]:
    lines = []
    for i, f in enumerate(findings):
        advisory = " (advisory)" if f.advisory else ""
        found = line(show_beside(f.fact.current, f.desired))
        lines.append(f"  {line(f.name)}{advisory}: wanted {line(show_desired(f.desired))}, found {found}")
        if (said := said_of(f)) and not _says_the_same(findings[i + 1 : i + 2], f):
            lines += _indented(said, 4, WIDTH, paint)
    return lines


def revert(changes: Sequence[Change], steps: Sequence[Step], foreign: Sequence[str], paint: Paint = plain) -> str:
    """What revert would do."""
    if not changes and not steps and not foreign:  # what was begun on a full disk, and never done
        return "Nothing is left to take back: this host is as hostprep found it.\n"
    lines = [paint("To be taken back", "bold")]
    for change in changes:
        when = "now" if change.facet is Facet.CURRENT else "next boot"
        sides = f"{show(change.before)} -> {show(change.after)}"
        lines.append("  " + paint(f"{change.check}/{change.key} ({when}): {sides}", "yellow"))
    lines += _steps(steps, paint)
    lines += [f"  {line(said)}" for said in foreign]
    return "\n".join(lines) + "\n"


def _steps(steps: Sequence[Step], paint: Paint) -> list[str]:
    lines = []
    for step in steps:
        lines.append("    " + paint(f"# {step.command}" if not step.diff else step.command, "cyan"))
        for row in step.diff.splitlines():
            colour = {"+": "green", "-": "red"}.get(row[:1], "dim")
            lines.append("      " + paint(line(row), colour))
    return lines


def failures(failed: Sequence[Failure], paint: Paint = plain) -> str:
    lines = []
    for failure in failed:
        lines.append(paint("failed", "red") + f"  {failure.name}: {failure.reason}")
        if failure.hint:
            lines.append(f"        -> {failure.hint}")
    return "".join(f"{row}\n" for row in lines)


def installed(target: str, done: Sequence[Done], todo: Sequence[str], dry_run: bool, paint: Paint = plain) -> str:
    """What was done about each file of a target, or would be, and what a person does next."""
    if not done:
        return f"{target}: nothing of it is installed\n"
    colours = {"new": "green", "updated": "green", "removed": "yellow", "left": "red"}
    meaning = {"kept": "  (yours: as it was)", "left": "  (changed since: look at it, and remove it by hand)"}
    head = f"{target}, if it were done:" if dry_run else f"{target}:"
    width = max(len(d.word) for d in done)
    lines = [paint(head, "bold")]
    for word, path in done:
        lines.append(f"  {paint(f'{word:<{width}}', colours.get(word, 'dim'))}  {line(path)}{meaning.get(word, '')}")
    if todo and not dry_run:
        lines += [paint("next:", "bold"), *(f"  {paint(row, 'cyan')}" if row else "" for row in todo)]
    return "\n".join(lines) + "\n"


def facts(everything: Mapping[str, Mapping[str, Fact] | Unknown], paint: Paint = plain) -> str:
    """Facts without a profile: one line each; long runs of one kind (modules) are folded into one.

    Why something is unknown is told once, below the check.
    """
    lines: list[str] = []
    for check, found in everything.items():
        lines.append(paint(check, "bold"))
        if isinstance(found, Unknown):
            lines.append(f"  unknown: {line(found.reason)}")
            continue
        folded: dict[tuple[str, Fact], list[str]] = {}
        width = min(max((len(k) for k in found), default=0), WIDTH // 3)
        for key, fact in found.items():
            prefix, slash, rest = key.partition("/")
            if slash and sum(k.startswith(f"{prefix}/") for k in found) > 20:
                folded.setdefault((prefix, fact), []).append(rest)
                continue
            lines.append(f"  {line(key):<{width}}  {_fact(fact)}")
        for (prefix, fact), keys in folded.items():
            names = ", ".join(map(line, keys[:6])) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
            lines.append(f"  {line(prefix):<{width}}  {_fact(fact)}: {names}")
        reasons = dict.fromkeys(r.reason for fact in found.values() for r in fact if isinstance(r, Unknown))
        lines += [f"  unknown: {line(reason)}" for reason in reasons]
    return "\n".join(lines) + "\n"


def _fact(fact: Fact) -> str:
    now, later = (line(show(r)) for r in fact)
    return now if now == later else f"{now}  (next boot: {later})"
