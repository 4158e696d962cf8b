"""A profile from a good host: what its checks found, as sections that this very host passes, for a person to prune.

Nothing is believed: each section that a check suggests is validated and tried on the host before it is written, and
what the host would not pass is written as a comment, with the reason.
"""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jsonschema
import yaml

from hostprep import __version__, engine, profile_source, registry
from hostprep.errors import HostError
from hostprep.host import Host
from hostprep.judge import judge, show_beside, show_desired
from hostprep.model import Facts, Finding, Section, Status, Suggestion, Unknown
from hostprep.report import Identity, stamp

_DUMP: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 100}
_WIDTH = 116  # characters of a comment
_REASONS = 3  # of what could not be read, for one check
_MET = (Status.PASS, Status.VOLATILE)  # ready with it, and ready again if it is made again at boot


class Tried(NamedTuple):
    """What became of one check: a section that the host passes, or none, and what a person has to know of it."""

    check: str
    section: Section | None
    notes: Mapping[str, str]
    volatile: tuple[str, ...] = ()  # findings that pass, and are lost at the next boot
    left: tuple[tuple[Section, str], ...] = ()  # what was suggested and did not pass, and why
    unread: tuple[str, ...] = ()  # why something could not be read


def profile_from(host: Host, checks: engine.Checks, identity: Identity, deadline: float) -> str:
    """The profile as YAML. HostError where no check finds anything to ask for."""
    seen = {name: answer.facts for name, answer in engine.inspect(host, checks, deadline).items()}
    suggested = {name: _suggestion(check, seen[name]) for name, check in checks.items()}
    sections = {name: s.section for name, s in suggested.items() if s.section is not None}
    again = engine.inspect(host, {name: checks[name] for name in sections}, deadline, sections)
    tried = []
    for name, check in checks.items():
        facts = again[name].facts if name in again else seen[name]
        if host.root:  # a recorded host knows no answer to what only the second look asks in these words
            facts = _filled(facts, seen[name])
        tried.append(_tried(check, facts, suggested[name]))
    if all(t.section is None for t in tried):
        raise HostError(
            "no check finds anything here that a profile could ask for", "hostprep inspect shows what there is."
        )
    text = written(tried, identity, stamp(time.time()))
    profile_source.validate("from-host", text.encode(), dict(checks))
    return text


def _filled(facts: Facts | Unknown, before: Facts | Unknown) -> Facts | Unknown:
    """Facts, with what an earlier look read where they are unknown."""
    if isinstance(facts, Unknown) or isinstance(before, Unknown):
        return before if isinstance(facts, Unknown) else facts
    unread = {key for key, fact in facts.items() if any(isinstance(side, Unknown) for side in fact)}
    return {**facts, **{key: fact for key, fact in before.items() if key in unread}}


def _suggestion(check: registry.Check, facts: Facts | Unknown) -> Suggestion:
    suggesting = registry.suggesting(check)
    if suggesting is None or isinstance(facts, Unknown):
        return Suggestion(None)
    try:
        return suggesting.suggest(facts)
    except Exception as e:  # noqa: BLE001  # a bug in one check must not take the others' sections away
        return Suggestion(None, {"": f"bug in check {check.NAME}: {type(e).__name__}: {e}"})


# -- trying ---------------------------------------------------------------------------------------


def _tried(check: registry.Check, facts: Facts | Unknown, suggested: Suggestion) -> Tried:
    if isinstance(facts, Unknown):
        return Tried(check.NAME, None, {}, unread=(facts.reason,))
    unread = tuple(dict.fromkeys(side.reason for fact in facts.values() for side in fact if isinstance(side, Unknown)))
    section = suggested.section
    if section is None:
        return Tried(check.NAME, None, suggested.notes, unread=unread)
    if why := _fails(check, facts, section):
        parts = [(part, _fails(check, facts, part)) for part in _parts(section)]
        section = _whole([part for part, fault in parts if not fault])
        left = tuple((part, fault) for part, fault in parts if fault) or ((suggested.section, why),)
        if section is None or _fails(check, facts, section):
            return Tried(check.NAME, None, {}, left=((suggested.section, why),), unread=unread)
        notes = suggested.notes if isinstance(section, dict) else {"": suggested.notes.get("", "")}
        return Tried(check.NAME, section, notes, _volatile(check, facts, section), left, unread)
    return Tried(check.NAME, section, suggested.notes, _volatile(check, facts, section), unread=unread)


def _parts(section: Section) -> list[Section]:
    """What a section says, one by one."""
    if isinstance(section, dict):
        return [{key: value} for key, value in section.items()]
    return [[item] for item in section] if isinstance(section, list) else [section]


def _whole(parts: Sequence[Section]) -> Section | None:
    """The inverse of _parts(); None where nothing is left."""
    if not parts:
        return None
    if isinstance(parts[0], dict):
        return {key: value for part in parts for key, value in part.items()}
    return [item for part in parts for item in part] if isinstance(parts[0], list) else parts[0]


def _fails(check: registry.Check, facts: Facts, section: Section) -> str:
    """Why this host would not pass a section; empty where it does."""
    for error in jsonschema.Draft202012Validator(check.SCHEMA).iter_errors(section):
        return f"no valid section: {error.message}"
    try:
        found = _judged(check, facts, section)
    except Exception as e:  # noqa: BLE001  # a bug in one check must not take the others' sections away
        return f"bug in check {check.NAME}: {type(e).__name__}: {e}"
    bad = [f for f in found if f.status not in _MET]
    return "; ".join(map(_told, bad[:_REASONS])) + (f"; and {len(bad) - _REASONS} more" if bad[_REASONS:] else "")


def _judged(check: registry.Check, facts: Facts, section: Section) -> list[Finding]:
    return list(judge(check.NAME, facts, check.decide(facts, section)))


def _volatile(check: registry.Check, facts: Facts, section: Section) -> tuple[str, ...]:
    return tuple(f.key for f in _judged(check, facts, section) if f.status is Status.VOLATILE)


def _told(f: Finding) -> str:
    said = f.message or f"wanted {show_desired(f.desired)}, found {show_beside(f.fact.current, f.desired)}"
    return f"{f.key} is {f.status.value}: {said.rstrip('.')}"


# -- writing --------------------------------------------------------------------------------------


def written(tried: Sequence[Tried], identity: Identity, when: str) -> str:
    """The profile of what was tried, with comments."""
    hostname = _one_line(identity.hostname)
    name = re.sub(r"[^A-Za-z0-9._-]", "-", hostname).strip("._-") or "host"
    parts = [
        *_head(hostname or "a host without a name", identity.kernel, when),
        *_yaml({"name": f"from-{name}"}),
        *_yaml({"description": f"What {hostname or 'a host'} was on {when[:10]}."}),
    ]
    for of_check in tried:
        parts += _section(of_check)
    nothing = [t.check for t in tried if t.section is None and not t.left and not t.unread and not t.notes]
    if nothing:
        parts += ["", *_comment(f"Nothing was found to ask for by: {', '.join(nothing)}.")]
    return "\n".join(parts) + "\n"


def _head(hostname: str, kernel: str, when: str) -> Iterator[str]:
    yield from _comment(f"Made from {hostname} ({kernel}) on {when} by hostprep profiles from-host, {__version__}.")
    yield from _comment(
        "That host passes all of it. It says what the host has, not what a node needs: read it, take out what its "
        "siblings may have otherwise, and correct what is too strict. hostprep explain CHECK tells what else a section "
        "can ask for. Its place is /etc/hostprep/profile.yaml; hostprep profiles validate says whether it is valid."
    )


def _section(tried: Tried) -> Iterator[str]:
    if tried.section is None and not tried.left and not tried.unread and not tried.notes:
        return
    yield ""
    if about := tried.notes.get("", ""):
        yield from _comment(about if tried.section is not None else f"{tried.check}: {about}")
    if tried.volatile:
        names = ", ".join(tried.volatile[:_REASONS]) + (" and more" if tried.volatile[_REASONS:] else "")
        yield from _comment(f"Right now only: the next boot of this host does not bring {names}.")
    if tried.section is not None:
        yield from _body(tried.check, tried.section, tried.notes)
    for section, why in tried.left:
        yield from _comment(f"Left out, this host does not pass it: {why}.")
        yield from (f"# {line}" for line in _yaml({tried.check: section}))
    unread = [why for why in tried.unread if not any(why in fault for _, fault in tried.left)]
    for why in unread[:_REASONS]:
        yield from _comment(f"{tried.check}: could not be read here: {why}")
    if unread[_REASONS:]:
        yield from _comment(f"{tried.check}: and {len(unread) - _REASONS} more could not be read")


def _body(check: str, section: Section, notes: Mapping[str, str]) -> Iterator[str]:
    """One section, block by block, so that each line can be taken out; notes stand at the end of theirs."""
    items: list[tuple[str, Any]] = []
    if isinstance(section, dict) and section:
        items = [(notes.get(key, ""), {key: value}) for key, value in section.items()]
    elif isinstance(section, list) and section and isinstance(section[0], dict):
        items = [(notes.get(str(i), ""), [item]) for i, item in enumerate(section)]
    if not items:
        yield from _yaml({check: section})
        return
    yield f"{check}:"
    for note, item in items:
        lines = _yaml(item)
        if note and (len(lines) > 1 or len(lines[0]) + len(note) + 6 > _WIDTH):
            yield from (f"  {line}" for line in _comment(note))
            note = ""
        yield from (f"  {line}" + (f"  # {_one_line(note)}" if note else "") for line in lines)


def _yaml(data: Any) -> list[str]:
    """Lines that hostprep's own loader reads as these data: PyYAML quotes what YAML 1.1 takes for something else."""
    inner = next(iter(data.values())) if isinstance(data, dict) else data
    text: str = yaml.safe_dump(data, default_flow_style=None if isinstance(inner, (dict, list)) else False, **_DUMP)
    read, _ = profile_source.parse("what was written", text.encode())
    assert read == data, text
    return text.rstrip("\n").split("\n")


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(_one_line(text), _WIDTH, break_on_hyphens=False)]


def _one_line(text: str) -> str:
    """Fit for a comment and a terminal: one line, no control characters."""
    return "".join(c if c.isprintable() else " " for c in text)
