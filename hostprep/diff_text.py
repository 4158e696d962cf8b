"""What differs between hosts, for a person and as data: pure functions of a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hostprep import __version__, render
from hostprep.diff import Comparison, Difference, Side, Weight
from hostprep.judge import show_beside
from hostprep.model import Desired, Fact, Unknown, to_json

TITLES = {
    Weight.FINDING: "Findings",
    Weight.ADVISORY: "Findings that do not decide (advisory, waived)",
    Weight.FACT: "Facts",
    Weight.VERSION: "Versions",
    Weight.MOVING: "What any two hosts differ in",
    Weight.UNREAD: "Could not be read on any side",
}


def text(found: Comparison, everything: bool, paint: render.Paint = render.plain, width: int = render.WIDTH) -> str:
    """What a person reads: two sides beside each other, or more of them by what they have in common."""
    lines = [_head(s, paint) for s in found.sides]
    lines += [paint(f"! {render.line(note)}", "yellow") for note in found.notes]
    for names in dict.fromkeys(found.apart.values()):
        checks = ", ".join(check for check, looked in found.apart.items() if looked == names)
        lines.append(paint(f"! Only looked at on {', '.join(map(render.line, names))}: {checks}.", "yellow"))
    for weight, title in TITLES.items():
        rows = found.of(weight)
        if rows and (everything or weight <= Weight.VERSION):
            lines += ["", paint(title, "bold")]
            lines += _unread(rows) if weight is Weight.UNREAD else _rows(rows, found.sides, paint, width)
    return "\n".join([*lines, "", *_summary(found, everything, paint)]) + "\n"


def _head(s: Side, paint: render.Paint) -> str:
    source = f" from {render.line(s.source)}" if s.source and s.source != s.name else ""
    said = f", {render.verdict(s.report)} (profile {render.line(s.report.profile)})" if s.report else ""
    return f"{paint(render.line(s.name), 'bold')}{source}{said}"


def _rows(rows: Sequence[Difference], sides: Sequence[Side], paint: render.Paint, width: int) -> list[str]:
    lines: list[str] = []
    folded = _folded(rows)
    if len(sides) == 2:
        table = [(name, *cells) for name, cells in folded]
        titles = ("SETTING", *(render.line(s.name) for s in sides))
        widths = render.fit([max(map(len, column)) for column in zip(titles, *table, strict=True)], width - 2)
        lines += render.cells(titles, widths, lambda t: paint(t, "dim"))
        for row in table:
            lines += render.cells(row, widths, str)
        return lines
    for name, cells in folded:
        lines.append(f"  {name}")
        by_value: dict[str, list[str]] = {}
        for cell, s in zip(cells, sides, strict=True):
            by_value.setdefault(cell, []).append(render.line(s.name))
        for cell, names in sorted(by_value.items(), key=lambda item: len(item[1])):  # the odd one out comes first
            lines.append(f"    {cell}: {', '.join(names)}")
    return [*lines, *_reasons(rows)]


def _reasons(rows: Sequence[Difference]) -> list[str]:
    """Why something is unknown, told once."""
    reasons = dict.fromkeys(r.reason for d in rows for fact in d.facts for r in fact if isinstance(r, Unknown))
    return [f"  unknown: {render.line(reason)}" for reason in reasons]


def _unread(rows: Sequence[Difference]) -> list[str]:
    """By reason what could not be read."""
    lines: list[str] = []
    by_reason: dict[str, list[str]] = {}
    for d in rows:
        reason = next(r.reason for fact in d.facts for r in fact if isinstance(r, Unknown))
        by_reason.setdefault(reason, []).append(render.line(d.name))
    for reason, names in by_reason.items():
        lines += [f"  {render.line(reason)}:", *(f"    {name}" for name in names)]
    return lines


def _folded(rows: Sequence[Difference]) -> list[tuple[str, tuple[str, ...]]]:
    """Names and cells; of three or more devices, or kernel modules, that differ in the same way one row stands."""
    told = [(d, tuple(_cell(d, i) for i in range(len(d.facts)))) for d in rows]
    common: dict[tuple[str, tuple[str, ...]], list[Difference]] = {}
    for d, cells in told:
        common.setdefault((_of_any(d), cells), []).append(d)
    found = []
    for (name, cells), alike in common.items():
        if len(alike) < render.MANY:
            found += [(render.line(d.name), cells) for d in alike]
            continue
        which = [d.key.partition("/")[2] for d in alike] if render.of_any_device(alike[0].key) == alike[0].key else []
        listed = f": {', '.join(which[:_LISTED])}" if which else ""
        more = f" and {len(which) - _LISTED} more" if which[_LISTED:] else "" if which else f" ({len(alike)})"
        found.append((render.line(f"{name}{listed}{more}"), cells))
    return found


_LISTED = 6  # names in one row


def _of_any(d: Difference) -> str:
    """The name with the device taken out; of facts that are many of a kind (module/x), the kind."""
    key = render.of_any_device(d.key)
    head, slash, _ = key.partition("/")
    return f"{d.check}/{key if '*' in key or not slash or d.findings else f'{head}/*'}"


def _cell(d: Difference, i: int) -> str:
    if not d.findings:
        return _sides(d.facts[i], None)
    f = d.findings[i]
    if f is None:
        return "not asked for"
    return f"{'waived' if f.waived else render.WORDS[f.status][0]}: {_sides(f.fact, f.desired)}"


def _sides(fact: Fact, desired: Desired | None) -> str:
    now, later = (render.line(show_beside(reading, desired)) for reading in fact)
    return now if now == later else f"{now}, next boot: {later}"


def _summary(found: Comparison, everything: bool, paint: render.Paint) -> Iterator[str]:
    words = ("finding", "advisory finding", "fact", "version")
    counts = [(len(found.of(weight)), word) for weight, word in zip(Weight, words, strict=False)]
    said = ", ".join(f"{n} {word}{'' if n == 1 else 's'}" for n, word in counts if n)
    if said:
        verb = "differs" if sum(n for n, _ in counts) == 1 else "differ"
        yield paint(f"{said} {verb}", "yellow")
    else:
        yield paint("Nothing differs", "green") + ("" if found.sure else ", as far as can be told")
    hidden = len(found.of(Weight.MOVING))
    if hidden and not everything:
        yield f"Not shown: {hidden} in which any two hosts differ, such as free memory (--all)."
    if unread := len(found.of(Weight.UNREAD)):
        why = next(r.reason for d in found.of(Weight.UNREAD) for f in d.facts for r in f if isinstance(r, Unknown))
        yield render.line(f"Not compared: {unread} could not be read on all sides: {why}")


def to_dict(found: Comparison, everything: bool) -> dict[str, Any]:
    return {
        "hostprep_version": __version__,
        "differs": found.differs,
        "sure": found.sure,
        "sides": [
            {
                "name": s.name,
                "source": s.source,
                "hostprep_version": s.version,
                "profile": s.report.profile if s.report else None,
                "verdict": s.report.verdict if s.report else None,
            }
            for s in found.sides
        ],
        "notes": list(found.notes),
        "only_looked_at_on": {check: list(names) for check, names in found.apart.items()},
        "differences": [
            {
                "weight": d.weight.name.lower(),
                "check": d.check,
                "key": d.key,
                "sides": [_side_of(d, i) for i in range(len(d.facts))],
            }
            for d in found.differences
            if everything or d.weight <= Weight.VERSION
        ],
        "hidden": 0 if everything else len(found.of(Weight.MOVING)),
        "unread": len(found.of(Weight.UNREAD)),
    }


def _side_of(d: Difference, i: int) -> dict[str, Any]:
    f = d.findings[i] if d.findings else None
    return {
        "status": f.status.value if f else None,
        "current": to_json(d.facts[i].current),
        "next_boot": to_json(d.facts[i].next_boot),
    }
