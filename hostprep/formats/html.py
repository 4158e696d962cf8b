"""A page for a person: one file that asks nobody for anything, and runs nothing."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import groupby

from hostprep import render as text
from hostprep.errors import ReportUnusable
from hostprep.judge import show
from hostprep.model import Fact, Finding, Status, Unknown
from hostprep.report import NOT_READY, PENDING, POWER_CYCLE, READY, UNKNOWN, Report, stamp

STYLE_FILE = os.path.join(os.path.dirname(__file__), "html.css")

_ICONS = {  # a shape each, so that no meaning hangs on a colour; drawn in a square of 16
    "pass": '<path d="M4.5 8.4l2.4 2.4 4.6-5"/>',
    "fail": '<path d="M5.3 5.3l5.4 5.4M10.7 5.3l-5.4 5.4"/>',
    "unknown": '<path d="M6 6.4a2 2 0 1 1 2.9 1.8c-.6.3-.9.7-.9 1.3M8 11.7v.1"/>',
    "pending-reboot": '<path d="M11 8a3 3 0 1 1-1-2.3M11 4v2.2H8.8"/>',
    "pending-power-cycle": '<path d="M8 4.2v3.6M5.7 5.7a3.2 3.2 0 1 0 4.6 0"/>',
    "volatile": '<path d="M8 4.5V8l2.4 1.6"/>',
}
_OF_STATUS = {Status.FAIL: "bad", Status.UNKNOWN: "odd", Status.PASS: "ok"}  # all else waits
_OF_VERDICT = {
    READY: ("ok", "pass"),
    NOT_READY: ("bad", "fail"),
    PENDING: ("wait", "pending-reboot"),
    POWER_CYCLE: ("wait", "pending-power-cycle"),
    UNKNOWN: ("odd", "unknown"),
}
_RANK = {status: n for n, status in enumerate(text.WORDS)}
_COMMAND = re.compile(r"(.*: |)(hostprep (?:apply|check|revert)\b.*)")
_SHOWN = 25  # rows of a check that are not as wanted, before the rest is folded
_TODO = 12  # things to do that are listed at the top
_LISTED = 8  # settings that one thing to do names; devices that a row names unasked
_RUN = 20  # facts of one kind and one value (modules) above which they share a row


def render(report: Report) -> str:
    """The verdict, what to do about it, the findings by check, what is wrong first, and all facts, folded."""
    word = text.verdict(report).removesuffix(f": {text.summary(report)}")
    tone, icon = _looks(report)
    body = [
        "<header>",
        _verdict(word, text.host(report), text.summary(report), tone, icon, _bar(report.findings)),
        _about(report),
        "</header>",
        "<main>",
        _next(report),
        *_findings(report),
        *_facts(report),
        "</main>",
        _footer(report),
    ]
    return _page(f"{text.host(report)}: {word}", tone, icon, body)


def unusable(error: ReportUnusable) -> str:
    """The page in the place of one that must not be believed any longer."""
    tone, icon = _OF_VERDICT[UNKNOWN]
    body = [
        "<header>",
        _verdict("NOT READY, as far as can be told", "", str(error), tone, icon, ""),
        "</header>",
        "<main>",
        f'<h2>What to do next</h2>\n<p class="card todo">{_fix(error.hint or "Look at the host: hostprep check")}</p>',
        "</main>",
    ]
    return _page("NOT READY: no report can be relied on", tone, icon, body)


# -- the page -------------------------------------------------------------------------------------


def _page(title: str, tone: str, icon: str, body: Sequence[str]) -> str:
    """What every browser is told: nothing is fetched, nothing runs, and no style but this one counts."""
    with open(STYLE_FILE, encoding="utf-8") as f:
        style = f"\n{f.read()}"
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8"/>',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"/>',
        '<meta name="referrer" content="no-referrer"/>',
        '<meta name="robots" content="noindex"/>',
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
        '<meta name="color-scheme" content="light dark"/>',
        f"<title>{_e(title)}</title>",
        f'<link rel="icon" href="{_favicon(tone, icon)}"/>',
        f"<style>{style}</style>",
        "</head>",
        "<body>",
        _symbols(),
        *body,
        "</body>",
        "</html>",
    ]
    return "\n".join(filter(None, lines)) + "\n"


def _e(said: str) -> str:
    """Text of the host as one line of printable text: no markup, no control or bidi characters, no surrogates."""
    return escape(text.line(said))


def _looks(report: Report) -> tuple[str, str]:
    """Tone and icon of the verdict; what is ready in part, or for now, does not look like a host that is ready."""
    if report.verdict == READY and report.selection is not None:
        return _OF_VERDICT[UNKNOWN]
    if report.verdict == READY and any(f.counts and f.status is Status.VOLATILE for f in report.findings):
        return "wait", "volatile"
    return _OF_VERDICT[report.verdict]


def _symbols() -> str:
    """The icons, drawn once and used by reference within the page."""
    pen = 'fill="none" stroke="currentColor" stroke-width="1.5" stroke-linecap="round" stroke-linejoin="round"'
    each = (
        f'<symbol id="i-{name}" viewBox="0 0 16 16" {pen}><circle cx="8" cy="8" r="6.9"/>{path}</symbol>'
        for name, path in _ICONS.items()
    )
    return f'<svg width="0" height="0" aria-hidden="true">{"".join(each)}</svg>'


def _icon(name: str, tone: str = "") -> str:
    return f'<svg class="icon {tone}" aria-hidden="true"><use href="#i-{name}"/></svg>'


def _favicon(tone: str, icon: str) -> str:
    """The verdict in the tab of a browser; without it, one that was served the page would ask for /favicon.ico."""
    colour = {"ok": "#1a7f45", "bad": "#c42b23", "wait": "#b06f00", "odd": "#8a3ab3"}[tone]
    image = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16' fill='none' stroke='#fff' stroke-width='2'>"
        f"<circle cx='8' cy='8' r='8' fill='{colour}' stroke='none'/>{_ICONS[icon]}</svg>"
    ).replace('"', "'")
    return "data:image/svg+xml," + re.sub("[<>#%]", lambda m: f"%{ord(m[0]):02X}", image)


def _verdict(word: str, host: str, said: str, tone: str, icon: str, bar: str) -> str:
    name = f'<span class="host"><bdi>{_e(host)}</bdi></span> ' if host else ""
    return (
        f'<div class="verdict {tone}">{_icon(icon)}<div><h1>{name}{_e(word)}</h1>\n<p>{_e(said)}</p></div>\n{bar}</div>'
    )


def _bar(findings: Sequence[Finding]) -> str:
    """How much of it is well, at a glance; the summary beside it says the same in words."""
    parts, x = [], 0
    for tone, members in groupby(sorted((f for f in findings if f.counts), key=_rank), key=_tone):
        width = len(list(members))
        parts.append(f'<rect class="{tone}" x="{x}" width="{width}" height="1"/>')
        x += width
    shape = f'viewBox="0 0 {x} 1" preserveAspectRatio="none"'
    return f'<svg class="bar" {shape} aria-hidden="true">{"".join(parts)}</svg>\n' if parts else ""


def _about(report: Report) -> str:
    """Of when it is, and until when it may be relied on: a page in a browser does not grow old by itself."""
    until = report.generated_at + report.valid_for
    rows = [
        ("Profile", _e(report.profile)),
        ("Looked at", _time(report.generated_at)),
        ("Valid in this boot until", _time(until)),
        ("Running since", _time(report.generated_at - report.uptime)),
        ("Kernel", _e(report.kernel)),
    ]
    if report.selection is not None:
        rows.insert(1, ("Only looked at", _e(", ".join(report.selection))))
    return _dl(rows, "about")


def _footer(report: Report) -> str:
    rows = [
        ("hostprep", _e(report.version)),
        ("Machine", _e(report.machine_id)),
        ("Boot", _e(report.boot_id)),
        ("Profile", f"sha256 {_e(report.profile_sha256)}"),
        ("The look took", _took(report.duration_ms)),
    ]
    return f"<footer>{_dl(rows)}</footer>"


def _dl(rows: Iterable[tuple[str, str]], kind: str = "") -> str:
    each = "\n".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)
    return f'<dl class="{kind}">\n{each}\n</dl>' if kind else f"<dl>\n{each}\n</dl>"


def _time(seconds: float) -> str:
    moment = stamp(seconds)
    return f'<time datetime="{moment}">{moment[:10]} {moment[11:16]} UTC</time>'


def _took(ms: int) -> str:
    return f"{ms} ms" if ms < 1000 else f"{ms // 1000}.{ms % 1000 // 100} s"


# -- what to do -----------------------------------------------------------------------------------


def _next(report: Report) -> str:
    """What to do about what decides, the worst first: each once, with the settings that it is about."""
    todo: dict[str, list[Finding]] = {}
    for f in sorted((f for f in report.findings if f.counts and f.status is not Status.PASS), key=_rank):
        todo.setdefault(f.fix or f"Find out why: {f.message or 'nothing more is known'}", []).append(f)
    numbers = {name: n for n, name in enumerate(text.checks(report))}
    items = [
        f'<li>{_fix(fix)} <span class="dim">{_about_what(found, numbers)}</span></li>'
        for fix, found in list(todo.items())[:_TODO]
    ]
    if len(todo) > _TODO:
        items.append(f"<li>{len(todo) - _TODO} things more: each is said below, with its finding</li>")
    nothing = "Nothing." if report.verdict == READY else "Give this profile something to look at that it requires."
    what = '<ol class="card todo">\n' + "\n".join(items) + "\n</ol>" if items else f'<p class="card todo">{nothing}</p>'
    title = "To keep it ready after a reboot" if items and report.verdict == READY else "What to do next"
    return f'<section aria-labelledby="next">\n<h2 id="next">{title}</h2>\n{what}\n</section>'


def _about_what(findings: Sequence[Finding], numbers: dict[str, int]) -> str:
    """Links to the checks of these settings; three or more devices with the same setting are one."""
    alike: dict[tuple[str, str], list[Finding]] = {}
    for f in findings:
        alike.setdefault((f.check, text.of_any_device(f.key)), []).append(f)
    named = []
    for (check, pattern), group in alike.items():
        many = len(group) >= text.MANY
        names = [f"{check}/{pattern} ({len(group)})"] if many else [f.name for f in group]
        named += [f'<a href="#check-{numbers[check]}"><bdi>{_e(name)}</bdi></a>' for name in names]
    more = [f"{len(named) - _LISTED} more"] if len(named) > _LISTED else []
    return ", ".join([*named[:_LISTED], *more])


def _fix(said: str) -> str:
    """What to do; a command of ours in a form that one click selects whole."""
    match = _COMMAND.fullmatch(text.line(said))
    return f'{_e(match[1])}<code class="command">{_e(match[2])}</code>' if match else _e(said)


# -- findings -------------------------------------------------------------------------------------


def _findings(report: Report) -> Iterator[str]:
    """A section for each check, those with something wrong first, and the way to each."""
    by_check: dict[str, list[Finding]] = {name: [] for name in text.checks(report)}
    for f in report.findings:
        by_check[f.check].append(f)
    numbers = {name: n for n, name in enumerate(by_check)}
    order = sorted(by_check, key=lambda name: min(map(_rank, by_check[name]), default=3 * len(_RANK)))
    yield '<section aria-labelledby="findings">\n<h2 id="findings">Findings</h2>\n<nav aria-label="Checks">\n<ul>'
    for name in order:
        worst = min(by_check[name], key=_rank, default=None)
        icon = _icon(worst.status.value, _tone(worst)) if worst else ""
        said = f' <span class="dim">{_worst(by_check[name])}</span>' if worst else ""
        yield f'<li><a href="#check-{numbers[name]}">{icon}<bdi>{_e(name)}</bdi>{said}</a></li>'
    yield "</ul>\n</nav>"
    for name in order:
        yield from _section(name, by_check[name], numbers[name], report.durations.get(name))
    yield "</section>"


def _worst(findings: Sequence[Finding]) -> str:
    """`2 failed`: how many are as bad as the worst."""
    worst = sorted(findings, key=_rank)
    return _counts([f for f in worst if _rank(f) == _rank(worst[0])])[0]


def _counts(findings: Sequence[Finding]) -> list[str]:
    """`2 failed`, `3 passed`, `1 waived`, `1 advisory`: what does not decide is not among what failed."""
    marked = [_mark(f) for f in findings]
    others = [f"{marked.count(word)} {word}" for word in ("waived", "advisory") if word in marked]
    return text.tally([f for f in findings if not _mark(f)]) + others


def _mark(f: Finding) -> str:
    """Why something that is not as wanted does not decide; empty where it does."""
    return "" if f.counts or f.status is Status.PASS else "waived" if f.waived else "advisory"


def _section(check: str, findings: Sequence[Finding], number: int, took: int | None) -> Iterator[str]:
    wrong = sorted((f for f in findings if f.status is not Status.PASS), key=_rank)
    passed = [f for f in findings if f.status is Status.PASS]
    yield f'<section class="card" id="check-{number}" aria-labelledby="name-{number}">'
    said = ", ".join([*_counts(findings), *([_took(took)] if took is not None else [])])
    head = f'<h3 id="name-{number}"><bdi>{_e(check)}</bdi></h3> <span class="dim">{said}</span>'
    if wrong or not passed:
        yield f"<header>{head}</header>"
        head = f"<b>{len(passed)} passed</b>"
    rows = list(_rows(wrong))
    if rows:
        yield _table(rows[:_SHOWN], number)
    if rest := rows[_SHOWN:]:
        yield f"<details><summary>{len(rest)} more that are not as wanted</summary>\n{_table(rest, number)}</details>"
    if passed:
        summary = f"<summary>{_icon('pass', 'ok')} {head}</summary>"
        yield f"<details>{summary}\n{_table(list(_rows(passed)), number)}</details>"
    yield "</section>"


_Said = tuple[str, str] | None
_Row = tuple[_Said, str]


def _rows(findings: Sequence[Finding]) -> Iterator[_Row]:
    """A row for each finding, or for three or more devices that are alike; with what is said about it.

    What has the same said about it follows each other, so that it is said once.
    """
    alike: dict[tuple[object, ...], list[Finding]] = {}
    for f in findings:
        _, key, *values = text.row_of(f)
        alike.setdefault((_rank(f), f.advisory, text.said_of(f), text.of_any_device(key), *values), []).append(f)
    together: dict[tuple[object, ...], list[_Row]] = {}
    for same, group in alike.items():
        folded = [group] if len(group) >= text.MANY else [[f] for f in group]
        together.setdefault(same[:3], []).extend((text.said_of(each[0]), _row(each)) for each in folded)
    for rows in together.values():
        yield from rows


def _row(alike: Sequence[Finding]) -> str:
    f = alike[0]
    _, key, wanted, now, later = text.row_of(f)
    mark = f' <span class="tag">{_mark(f)}</span>' if _mark(f) else ""
    word = f'<span class="{_tone(f)}">{_icon(f.status.value)} {text.WORDS[f.status][0]}</span>'
    cells = [
        f'<td class="status">{word}{mark}</td>',
        f'<th scope="row" class="value">{_e(key) if len(alike) == 1 else _devices(alike)}</th>',
        f'<td class="value">{_e(wanted)}</td>',
        _side(now, f.status in (Status.FAIL, Status.PENDING, Status.POWER_CYCLE)),
        _side(later, f.status in (Status.FAIL, Status.VOLATILE) and later not in ("same", wanted)),
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _side(value: str, off: bool) -> str:
    """A reading; what is not as wanted is underlined and bold."""
    kind = "value dim" if value == "same" else "value"
    shown = f'<span class="off">{_e(value)}</span>' if off else _e(value)
    return f'<td class="{kind}">{shown}</td>'


def _devices(alike: Sequence[Finding]) -> str:
    """Many devices that are alike: each is named, where somebody asks for it or they are few and not as wanted."""
    unasked = alike[0].status is not Status.PASS and len(alike) <= _LISTED
    opened = ' open=""' if unasked else ""
    title = f"{_e(text.of_any_device(alike[0].key))} ({len(alike)})"
    names = "".join(f"<li>{_e(f.key)}</li>" for f in alike)
    return f"<details{opened}><summary>{title}</summary><ul>{names}</ul></details>"


def _table(rows: Sequence[_Row], number: int) -> str:
    titles = "".join(f'<th scope="col">{t.capitalize()}</th>' for t in text.TITLES)
    lines = [f'<table class="findings" aria-labelledby="name-{number}">', f"<thead><tr>{titles}</tr></thead>"]
    for said, members in groupby(rows, key=lambda row: row[0]):
        lines += ["<tbody>", *(row for _, row in members)]
        if said:
            message, todo = said
            parts = [f"<p>{_e(message)}</p>"] if message else []
            parts += (
                [f"<p>{'' if todo.startswith('waived') else '→ '}{_fix(todo.removeprefix('-> '))}</p>"] if todo else []
            )
            lines.append(f'<tr class="said"><td></td><td colspan="4">{"".join(parts)}</td></tr>')
        lines.append("</tbody>")
    return "\n".join([*lines, "</table>"])


def _rank(f: Finding) -> int:
    """What decides comes first, the worst of it before the rest; then what is waived or advisory, then what passed."""
    return _RANK[f.status] + len(_RANK) * (2 * (f.status is Status.PASS) or bool(_mark(f)))


def _tone(f: Finding) -> str:
    return "dim" if _mark(f) else _OF_STATUS.get(f.status, "wait")


# -- facts ----------------------------------------------------------------------------------------


def _facts(report: Report) -> Iterator[str]:
    """Everything that was seen, wanted or not, folded: a browser's search opens what it finds."""
    yield '<section id="facts" aria-labelledby="seen">\n<h2 id="seen">Everything that was seen</h2>'
    for check, found in report.facts.items():
        yield f'<details class="card"><summary><b>{_e(check)}</b> <span class="dim">{len(found)}</span></summary>'
        yield '<table class="facts"><thead><tr>'
        yield '<th scope="col">Setting</th><th scope="col">Now</th><th scope="col">Next boot</th></tr></thead>\n<tbody>'
        for name, fact in _runs(found):
            now, later = (f"unknown: {r.reason}" if isinstance(r, Unknown) else show(r) for r in fact)
            sides = f"<td>{_e(now)}</td><td>{_e(later)}</td>" if now != later else f'<td colspan="2">{_e(now)}</td>'
            yield f'<tr class="value"><th scope="row">{name}</th>{sides}</tr>'
        yield "</tbody></table></details>"
    yield "</section>"


def _runs(found: dict[str, Fact]) -> Iterator[tuple[str, Fact]]:
    """Facts by name; many of one kind that are alike (kernel modules) under the name of the kind."""
    kinds: dict[tuple[str, Fact], list[str]] = {}
    for key, fact in found.items():
        kind, slash, name = key.rpartition("/")
        if slash:
            kinds.setdefault((kind, fact), []).append(name)
    told: set[tuple[str, Fact]] = set()
    for key, fact in found.items():
        run = key.rpartition("/")[0], fact
        names = kinds.get(run, [])
        if len(names) <= _RUN:
            yield _e(key), fact
        elif run not in told:
            told.add(run)
            yield f"<details><summary>{_e(run[0])} ({len(names)})</summary>{_e(', '.join(names))}</details>", fact
