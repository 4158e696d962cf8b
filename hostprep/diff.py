"""What differs between two hosts, or among several: findings first, then facts, then versions, then what always moves.

A report, or the facts that `hostprep inspect` tells, is one side; so is a host that was just looked at. Two sides are
the same only where both could be read: what no side could read is counted, and keeps them from being called the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from hostprep import __version__, render
from hostprep.errors import ProfileError, UsageError
from hostprep.judge import UNSET
from hostprep.model import Fact, Facts, Finding, Reading, Unknown, from_json
from hostprep.report import SCHEMA_FILE, SCHEMA_VERSION, from_dict
from hostprep.report import Report as JudgedReport

SIZE_LIMIT = 64 * 1024 * 1024  # bytes
NEARLY = 100  # sizes that differ by less than this part of them are those of one kind of machine
LARGE = 1024 * 1024  # bytes; of smaller numbers each counts


class Weight(IntEnum):
    """How much a difference matters, the most first."""

    FINDING = 0  # it decides whether a host is ready
    ADVISORY = 1  # it does not
    FACT = 2
    VERSION = 3
    MOVING = 4  # any two looks, or any two hosts, differ in it
    UNREAD = 5  # nobody could read it: whether it differs is not known


class Side(NamedTuple):
    """One host at one moment."""

    name: str
    facts: Mapping[str, Facts | Unknown]  # by check; of those that were looked at
    report: JudgedReport | None = None  # where it was judged
    source: str = ""  # the file, or what was looked at
    version: str = __version__


class Difference(NamedTuple):
    weight: Weight
    check: str
    key: str
    facts: tuple[Fact, ...]  # one of each side
    findings: tuple[Finding | None, ...] = ()  # one of each side, where it is one of findings

    @property
    def name(self) -> str:
        return f"{self.check}/{self.key}"


class Comparison(NamedTuple):
    sides: Sequence[Side]
    differences: Sequence[Difference]  # sorted by weight
    notes: Sequence[str]  # what makes the sides hard to compare
    apart: Mapping[str, tuple[str, ...]]  # checks that not all sides looked at, and who did

    def of(self, *weights: Weight) -> list[Difference]:
        return [d for d in self.differences if d.weight in weights]

    @property
    def differs(self) -> bool:
        return any(d.weight <= Weight.VERSION for d in self.differences)

    @property
    def sure(self) -> bool:
        """Was all read that is compared?"""
        return not self.apart and not self.of(Weight.UNREAD)


# -- reading --------------------------------------------------------------------------------------


def side(name: str, data: bytes) -> Side:
    """A report, or the facts of `hostprep inspect --format json`. UsageError, with its place, on what is neither."""
    hint = "Give what hostprep check --format json, or hostprep inspect --format json, has written."
    try:
        text = data.decode()
        found = json.loads(text)
    except UnicodeDecodeError as e:
        line, column = data.count(b"\n", 0, e.start) + 1, e.start - data.rfind(b"\n", 0, e.start)
        raise UsageError(f"{name}:{line}:{column}: not UTF-8", hint) from e
    except json.JSONDecodeError as e:
        what = "empty" if not data.strip() else f"not JSON: {e.msg}"
        raise UsageError(f"{name}:{e.lineno}:{e.colno}: {what}", hint) from e
    except RecursionError as e:
        raise UsageError(f"{name}:1:1: nested too deep to be a report", hint) from e
    if not isinstance(found, dict) or "facts" not in found:
        raise UsageError(f"{name}:1:1: neither a report nor facts of hostprep", hint)
    try:
        if "schema_version" in found or "findings" in found:
            return _of_report(name, data, found, hint)
        facts = {check: _facts(of_check) for check, of_check in found["facts"].items()}
        return Side(str(found["hostname"]), facts, None, name, str(found["hostprep_version"]))
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as e:
        raise UsageError(f"{name}:1:1: damaged: {_short(repr(e))}", hint) from e


def _of_report(name: str, data: bytes, found: dict[str, Any], hint: str) -> Side:
    import jsonschema

    if found.get("schema_version") != SCHEMA_VERSION:
        version = _short(f"{found.get('schema_version')!r} (hostprep {found.get('hostprep_version')})")
        what = f"a report of schema version {version}; this hostprep ({__version__}) reads {SCHEMA_VERSION}"
        raise UsageError(f"{_place(name, data, ('schema_version',))}: {what}", "Compare with the other's hostprep.")
    with open(SCHEMA_FILE) as f:
        validator = jsonschema.Draft202012Validator(json.load(f))
    for error in validator.iter_errors(found):
        path = tuple(error.absolute_path)
        where = ".".join(map(str, path)) or "it"
        raise UsageError(f"{_place(name, data, path)}: no report: {_short(where)}: {_short(error.message)}", hint)
    report = from_dict(found)
    if report.verdict != found["verdict"]:
        what = f"no report: its verdict is not that of its findings ({report.verdict})"
        raise UsageError(f"{_place(name, data, ('verdict',))}: {what}", hint)
    unanswered = {
        f.check: f.fact.current
        for f in report.findings
        if f.key == "*" and f.check not in report.facts and isinstance(f.fact.current, Unknown)
    }
    return Side(report.hostname, {**report.facts, **unanswered}, report, name, report.version)


def _facts(data: dict[str, Any]) -> Facts | Unknown:
    if isinstance(data.get("unknown"), str):
        return Unknown(data["unknown"])
    return {key: Fact(*map(_reading, (f["current"], f["next_boot"]))) for key, f in data.items()}


def _reading(data: Any) -> Reading:
    reading = from_json(data)
    if not isinstance(reading, (str, int, tuple, Unknown, type(None))):
        raise TypeError(f"{data!r} is no reading")
    return reading


def _place(name: str, data: bytes, path: tuple[str | int, ...]) -> str:
    """`file:line:column` of a value: JSON is YAML, whose parser tells where everything stands."""
    from hostprep import profile_source

    try:
        line, column = profile_source.parse(name, data)[1].at(path)
    except (ProfileError, RecursionError):
        line = column = 1
    return f"{name}:{line}:{column}"


def _short(text: str) -> str:
    return render.line(text[:200])


# -- comparing ------------------------------------------------------------------------------------


def compare(sides: Sequence[Side], moving: Mapping[str, Sequence[str]]) -> Comparison:
    """What differs. `moving` has, by check, globs over the keys that any two hosts differ in. Pure."""
    found = [*_findings(sides)]
    told = {d.name for d in found}
    checks = dict.fromkeys(check for s in sides for check in s.facts)
    apart = {}
    for check in checks:
        looked = [s for s in sides if check in s.facts]
        if len(looked) < len(sides):
            apart[check] = tuple(s.name for s in looked)
        else:
            found += [d for d in _differences(check, sides, moving.get(check, ())) if d.name not in told]
    found.sort(key=lambda d: (d.weight, _worst(d)))
    return Comparison(sides, found, [*_notes(sides)], apart)


def _findings(sides: Sequence[Side]) -> Iterator[Difference]:
    """Findings whose status is not the same everywhere. What one profile alone asks for is no difference of hosts."""
    judged = [{f.name: f for f in s.report.findings} if s.report else {} for s in sides]
    for name in dict.fromkeys(name for of_side in judged for name in of_side):
        found = tuple(of_side.get(name) for of_side in judged)
        there = [f for f in found if f is not None]
        if len({f.status for f in there}) < 2:
            continue
        weight = Weight.FINDING if any(f.counts for f in there) else Weight.ADVISORY
        facts = tuple(f.fact if f else UNSET for f in found)
        yield Difference(weight, there[0].check, there[0].key, facts, found)


def _differences(check: str, sides: Sequence[Side], moving: Sequence[str]) -> Iterator[Difference]:
    seen = [s.facts[check] for s in sides]
    unanswered = [facts for facts in seen if isinstance(facts, Unknown)]
    if unanswered:
        weight = Weight.UNREAD if len(unanswered) == len(seen) else Weight.FACT
        nothing = Fact.fixed("answered")
        yield Difference(weight, check, "*", tuple(Fact.fixed(f) if isinstance(f, Unknown) else nothing for f in seen))
        return
    for key in dict.fromkeys(key for facts in seen for key in _known(facts)):
        facts = tuple(of.get(key, of.get("*", UNSET)) for of in map(_known, seen))
        facets = list(zip(*facts, strict=True))  # what is now, what the next boot brings
        unread = [all(isinstance(reading, Unknown) for reading in facet) for facet in facets]
        if any(
            len({(type(r), r) for r in facet}) > 1 for facet, nobody in zip(facets, unread, strict=True) if not nobody
        ):
            yield Difference(_weight(key, facts, moving), check, key, facts)
        elif any(unread) and not any(fnmatchcase(key, glob) for glob in moving):
            yield Difference(Weight.UNREAD, check, key, facts)


def _known(facts: Facts | Unknown) -> Facts:
    return {} if isinstance(facts, Unknown) else facts


def _weight(key: str, facts: Sequence[Fact], moving: Sequence[str]) -> Weight:
    readings = [reading for fact in facts for reading in fact]
    if any(fnmatchcase(key, glob) for glob in moving) or _nearly(readings):
        return Weight.MOVING
    return Weight.VERSION if all(isinstance(r, str) and _is_version(r) for r in readings) else Weight.FACT


def _nearly(readings: Iterable[Reading]) -> bool:
    """The memory of two machines of one kind differs by a few pages."""
    sizes = [r for r in readings if isinstance(r, int) and not isinstance(r, bool) and r >= LARGE]
    return len(sizes) == len(list(readings)) and max(sizes) - min(sizes) < max(sizes) / NEARLY


def _is_version(text: str) -> bool:
    """5.15.0-122-generic, 24.04-0.7.0.0, 1.7.5~ds1; no address and no number."""
    if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){3}(/[0-9]+)?", text):
        return False
    return bool(re.fullmatch(r"v?[0-9]+(\.[0-9]+)+[A-Za-z0-9.+~_-]*", text))


_ORDER = list(render.WORDS)  # statuses, the worst first


def _worst(d: Difference) -> tuple[int, str]:
    """Of findings the worst comes first; of all else, what is like the others last is as good as any."""
    return min((_ORDER.index(f.status) for f in d.findings if f), default=0), d.check


def _notes(sides: Sequence[Side]) -> Iterator[str]:
    """What makes two sides hard to compare."""
    versions = {s.name: s.version for s in sides}
    if len(set(versions.values())) > 1:
        yield f"Looked at by different hostpreps: {_each(versions)}."
    judged = {s.name: s.report for s in sides if s.report}
    if len({r.profile_sha256 for r in judged.values()}) > 1:
        profiles = {name: f"{report.profile} ({report.profile_sha256[:8]})" for name, report in judged.items()}
        yield f"Judged by different profiles: {_each(profiles)}."
    if judged and len(judged) < len(sides):
        yield "Not every side was judged: statuses are only compared among those that were."
    partial = [name for name, report in judged.items() if report.selection is not None]
    if partial:
        yield f"Only a part was looked at (--only): {', '.join(partial)}."


def _each(said: Mapping[str, str]) -> str:
    return render.line(", ".join(f"{name}: {what}" for name, what in said.items()))


def named(sides: Sequence[Side]) -> list[Side]:
    """Sides by names that tell them apart: the host's, or where it was read from."""
    names = [s.name or s.source for s in sides]
    if len(set(names)) < len(names):
        names = [s.source for s in sides]
    if len(set(names)) < len(names):
        names = [f"{name} ({i})" for i, name in enumerate(names, start=1)]
    return [s._replace(name=name) for s, name in zip(sides, names, strict=True)]


def status(found: Comparison) -> int:
    """The exit status, as of diff(1); but what could not be compared is not the same: 3, as unknown is elsewhere."""
    if found.differs:
        return 1
    return 0 if found.sure else 3
