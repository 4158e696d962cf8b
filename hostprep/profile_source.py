"""Reading and validating profile files: YAML 1.2 core, all errors at once, each with file:line:column.

PyYAML follows YAML 1.1, which reads `0000:17:00.0` as 1020.0, `off` as false and `0755` as 493, and lets the last
of two equal keys win. Here a value stays what was written, unless it is a plain whole number, true, false or null.
"""

from __future__ import annotations

import datetime
import difflib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jsonschema
import yaml

from hostprep import profile_files, registry
from hostprep.errors import ProfileError
from hostprep.model import Profile, Waiver
from hostprep.quantities import DURATION_PATTERN, parse_duration

Path = tuple[str | int, ...]
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DEPTH_LIMIT = 32
_DUMP: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 100}
DRAFT = "https://json-schema.org/draft/2020-12/schema"

META: dict[str, Any] = {
    "name": {
        "type": "string",
        "pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]*$(?!\n)",
        "description": "a name of letters, digits and . _ -",
    },
    "description": {"type": "string", "description": "one sentence for a person"},
    "extends": {
        "type": "string",
        "description": "the profile that this one starts from; each key given here replaces the whole key there",
    },
    "advisory": {
        "type": "array",
        "items": {"type": "string"},
        "description": "checks, or globs over check/key, that never make the host not ready",
    },
    "assert_only": {
        "type": "array",
        "items": {"type": "string"},
        "description": "checks that look and never change: somebody else owns these settings",
    },
    "waivers": {
        "type": "array",
        "description": "known findings that somebody accepts, with a reason, until the end of a day",
        "items": {
            "type": "object",
            "properties": {
                "finding": {"type": "string", "minLength": 1, "description": "check/key, or a glob such as swap/*"},
                "reason": {"type": "string", "minLength": 3},
                "owner": {"type": "string", "minLength": 1},
                "until": {
                    "type": "string",
                    "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$(?!\n)",
                    "description": "a date: 2027-01-31",
                },
            },
            "required": ["finding", "reason", "until"],
            "additionalProperties": False,
        },
    },
    "valid_for": {
        "type": ["string", "integer"],
        "pattern": DURATION_PATTERN,
        "minimum": 1,
        "description": "how long a report may be relied on: 10m, 1h (default), 2d",
    },
}


def schema(checks: dict[str, registry.Check] | None = None) -> dict[str, Any]:
    """The JSON Schema of a profile, put together from the checks' own."""
    sections = registry.schemas(checks or registry.load())
    return {
        "$schema": DRAFT,
        "$id": "urn:hostprep:profile",
        "title": "hostprep profile",
        "description": "What a host should be before it joins a cluster.",
        "type": "object",
        "properties": {**META, **sections},
        "additionalProperties": False,
    }


class _File(NamedTuple):
    """One profile file: what it says, and where everything in it stands."""

    path: str
    document: dict[str, Any]
    marks: Marks

    def problem(self, path: Path, what: str, key: bool = False) -> str:
        """One problem, as `file:line:column: where: what`."""
        line, column = self.marks.at(path, key)
        place = _place(path[:-1] if key else path)
        return f"{self.path}:{line}:{column}: {place + ': ' if place else ''}{what}"


def load(path: str, data: bytes) -> tuple[Profile, dict[str, bytes]]:
    """A validated profile, and every file that it is made of. Raises ProfileError with all problems."""
    chain: list[_File] = []
    sources: dict[str, bytes] = {}
    checks = registry.load()
    while True:
        sources[path] = data
        file = validate(path, data, checks)
        chain.append(file)
        if "extends" not in file.document:
            break
        path, data = _base(file)
        if path in sources:
            raise ProfileError([file.problem(("extends",), f"comes back to itself: {' -> '.join([*sources, path])}")])
    return _merge(chain, profile_files.digest(*sources.values())), sources


def _base(file: _File) -> tuple[str, bytes]:
    """The file that another one extends, and its bytes."""
    name = file.document["extends"]
    if profile_files.is_file(name):
        path = os.path.normpath(os.path.join(os.path.dirname(file.path), name))
    elif name in (known := profile_files.available()):
        path = known[name]
    else:
        near = difflib.get_close_matches(name, known, 1)
        what = f"there is no profile named {name!r}" + _did_you_mean(near)
        raise ProfileError([file.problem(("extends",), what)], f"Known: {', '.join(known)}.")
    try:
        return path, profile_files.read(path)
    except ProfileError as e:
        raise ProfileError([file.problem(("extends",), str(e))], e.hint) from e


def _merge(chain: Sequence[_File], sha256: str) -> Profile:
    """What a file gives replaces what its base gives, key by key and whole; null takes a section out."""
    sections: dict[str, Any] = {}
    meta: dict[str, Any] = {}
    problems = []
    for file in reversed(chain):
        given = {name: section for name, section in file.document.items() if name not in META}
        empty = [name for name, section in given.items() if section is None and name not in sections]
        why = "nothing is given" if file is chain[-1] else "null takes a section out, and the base has no such section"
        problems += [file.problem((name,), why) for name in empty]
        sections = {name: section for name, section in (sections | given).items() if section is not None}
        meta |= {name: value for name, value in file.document.items() if name in META}
        problems += [file.problem(path, what) for path, what in _naming_nothing(file.document, sections)]
    top = chain[0]
    if problems:
        raise ProfileError(problems, "hostprep explain lists the checks, hostprep explain CHECK says what one takes.")
    if not sections:
        hint = "Add a section: hostprep explain lists the checks."
        raise ProfileError([top.problem((), "this profile checks nothing")], hint)
    own_name = os.path.basename(top.path).rpartition(".")[0] or os.path.basename(top.path)
    return Profile(
        name=top.document.get("name", own_name),
        sha256=sha256,
        sections=sections,
        description=top.document.get("description", ""),
        advisory=tuple(meta.get("advisory", ())),
        assert_only=tuple(meta.get("assert_only", ())),
        waivers=tuple(
            Waiver(w["finding"], w["reason"], w["until"], w.get("owner", "")) for w in meta.get("waivers", ())
        ),
        valid_for=parse_duration(meta.get("valid_for", 3600)),
        source=top.path,
    )


def _naming_nothing(said: Mapping[str, Any], sections: Collection[str]) -> Iterator[tuple[Path, str]]:
    """What is said about a check that this profile does not have is a slip of the pen, and would have no effect."""
    for key in ("advisory", "assert_only"):
        for i, value in _texts(said.get(key)):
            check = value if key == "assert_only" else value.partition("/")[0]
            if not any(name == check if key == "assert_only" else fnmatchcase(name, check) for name in sections):
                near = difflib.get_close_matches(value.partition("/")[0], sections, 1)
                yield (key, i), f"{value!r} names no check of this profile" + _did_you_mean(near)
    waivers = said.get("waivers")
    named = [w.get("finding") if isinstance(w, dict) else None for w in waivers] if isinstance(waivers, list) else []
    for i, finding in _texts(named):
        check, slash, _ = finding.partition("/")
        if not any(fnmatchcase(name, check) for name in sections):
            near = difflib.get_close_matches(check, sections, 1)
            yield ("waivers", i, "finding"), f"{check!r} is no check of this profile" + _did_you_mean(near)
        elif not slash and "*" not in check:
            yield ("waivers", i, "finding"), f"names no finding; all of this check are '{check}/*'"


def _texts(values: object) -> Iterator[tuple[int, str]]:
    """The texts of a list, with their places; what is no text is the schema's business."""
    for i, value in enumerate(values if isinstance(values, list) else ()):
        if isinstance(value, str):
            yield i, value


def effective(profile: Profile) -> str:
    """A profile as one file that extends nothing and means the same."""
    meta = {
        "name": profile.name,
        "description": profile.description,
        "advisory": profile.advisory,
        "assert_only": profile.assert_only,
        "waivers": [{k: v for k, v in w._asdict().items() if v} for w in profile.waivers],
        "valid_for": "" if profile.valid_for == 3600 else profile.valid_for,
    }
    whole = {k: v for k, v in meta.items() if v} | dict(profile.sections)
    plain = json.loads(json.dumps(whole))  # lists, no tuples, and nothing twice that PyYAML would make an anchor of
    parts = [({key: value}, None if isinstance(value, (dict, list)) else False) for key, value in plain.items()]
    return "".join(yaml.safe_dump(p, default_flow_style=style, **_DUMP) for p, style in parts)


# -- YAML -----------------------------------------------------------------------------------------


class Marks:
    """Where each value, and each key, of a document stands: path -> (line, column), from 1."""

    def __init__(self) -> None:
        self.values: dict[Path, tuple[int, int]] = {(): (1, 1)}
        self.keys: dict[Path, tuple[int, int]] = {}
        self.problems: list[tuple[tuple[int, int], str]] = []  # keys that cannot be: where, and what is wrong

    def at(self, path: Path, key: bool = False) -> tuple[int, int]:
        if key and path in self.keys:
            return self.keys[path]
        while path not in self.values:
            path = path[:-1]
        return self.values[path]


def parse(name: str, data: bytes) -> tuple[Any, Marks]:
    """A YAML document as plain data, and where everything in it stands. Raises ProfileError on what is no YAML.

    What is wrong with its keys is in the marks, so that it is told together with all else.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        line, column = data[: e.start].count(b"\n") + 1, e.start - data.rfind(b"\n", 0, e.start)
        raise ProfileError([f"{name}:{line}:{column}: not UTF-8"], "Save the file as UTF-8.") from e
    if bad := re.search(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\U0010ffff]", text):
        line = text[: bad.start()].count("\n") + 1
        column = bad.start() - text.rfind("\n", 0, bad.start())
        raise ProfileError([f"{name}:{line}:{column}: the control character U+{ord(bad[0]):04X} is not text"])
    problems: list[str] = []
    try:
        _only_plain(name, text, problems)
        if problems:
            raise ProfileError(problems)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as e:
        raise _not_yaml(name, text, e) from e
    except yaml.YAMLError as e:
        raise ProfileError([f"{name}:1:1: not YAML: {' '.join(str(e).split())}"]) from e
    marks = Marks()
    return (None if node is None else _construct(node, (), marks)), marks


def _not_yaml(name: str, text: str, e: Any) -> ProfileError:
    mark = e.problem_mark or e.context_mark
    if mark is None:
        return ProfileError([f"{name}:1:1: not YAML: {e.problem}"])
    at = f"{name}:{mark.line + 1}:{mark.column + 1}"
    if text.splitlines()[mark.line : mark.line + 1] and "\t" in text.splitlines()[mark.line][: mark.column + 1]:
        return ProfileError([f"{at}: not YAML: a tab where spaces belong"], "YAML is indented with spaces only.")
    return ProfileError([f"{at}: not YAML: {e.problem}"], "Mind the indentation, and quote what has a `: ` in it.")


def _only_plain(name: str, text: str, problems: list[str]) -> None:
    """No anchors (a few lines of them can stand for gigabytes), no tags, one document, no abyss."""
    depth = documents = 0
    events: Iterator[Any] = yaml.parse(text, Loader=_Loader)
    for event in events:
        at = f"{name}:{event.start_mark.line + 1}:{event.start_mark.column + 1}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            problems.append(f"{at}: anchors and aliases (& and *) are not allowed: write it out, or quote it")
        elif getattr(event, "tag", None) is not None:
            problems.append(f"{at}: tags ({event.tag}) are not allowed")
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents == 2:
                problems.append(f"{at}: a second document: a profile is one")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH_LIMIT:
            raise ProfileError([f"{at}: nested deeper than {DEPTH_LIMIT}: not a profile"])


def _construct(node: Any, path: Path, marks: Marks) -> Any:
    marks.values[path] = (node.start_mark.line + 1, node.start_mark.column + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, (*path, i), marks) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line, column = key_node.start_mark.line + 1, key_node.start_mark.column + 1
            if not isinstance(key_node, yaml.ScalarNode):
                marks.problems.append(((line, column), "a key must be text"))
                continue
            key = key_node.value
            here = (*path, key)
            if key in mapping:
                first = marks.keys[here][0]
                marks.problems.append(((line, column), f"{key!r} comes a second time; the first is on line {first}"))
                continue
            marks.keys[here] = (line, column)
            mapping[key] = _construct(value_node, here, marks)
        return mapping
    return node.value if node.style else _scalar(node.value)


def _scalar(text: str) -> Any:
    """A plain scalar: null, true, false and whole numbers; all else stays what was written, 22.04 and 0755 included."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE"):
        return True
    if text in ("false", "False", "FALSE"):
        return False
    return int(text) if re.fullmatch(r"[-+]?(0|[1-9][0-9]{0,17})", text) else text


# -- validating -----------------------------------------------------------------------------------


def validate(name: str, data: bytes, checks: dict[str, registry.Check] | None = None) -> _File:
    """One profile file by itself. Raises ProfileError with every problem in it, in the order of its lines."""
    document, marks = parse(name, data)
    if document is None:
        hint = "hostprep profiles show baseline shows one."
        raise ProfileError([f"{name}:1:1: empty: a profile that asks for nothing"], hint)
    if not isinstance(document, dict):
        raise ProfileError([f"{name}:1:1: a profile is a mapping of sections, not {_kind(document)}"])
    file = _File(name, document, marks)
    full = schema(checks)
    removed = {k for k, v in document.items() if v is None and k in full["properties"] and k not in META}
    found = {*_errors(full, {k: v for k, v in document.items() if k not in removed}), *_dates(document)}
    problems = [(marks.at(path, is_key), file.problem(path, what, is_key)) for path, what, is_key in found]
    problems += [((line, column), f"{name}:{line}:{column}: {what}") for (line, column), what in marks.problems]
    if "extends" not in document:  # else what it has is only known with its base
        nothing = _naming_nothing(document, [key for key in document if key not in META])
        problems += [(marks.at(path), file.problem(path, what)) for path, what in nothing]
    if problems:
        raise ProfileError([text for _, text in sorted(problems)], "hostprep explain CHECK says what a section takes.")
    return file


def _errors(full: dict[str, Any], document: Any) -> Iterator[tuple[Path, str, bool]]:
    """Each problem as where, what, and whether it is about a key rather than a value."""
    for error in jsonschema.Draft202012Validator(full).iter_errors(document):
        yield from _explain(error)


def _explain(error: Any) -> Iterable[tuple[Path, str, bool]]:
    path: Path = tuple(error.absolute_path)
    if error.validator is None:  # the schema `false`
        return [(path, "does not belong here", False)]
    if error.validator == "anyOf":
        return _explain_alternatives(error, path)
    if error.validator == "oneOf":
        return [(path, error.schema.get("description", "is not one of what belongs there"), False)]
    if error.validator == "dependentRequired":
        needed = [(k, n) for k, names in error.validator_value.items() if k in error.instance for n in names]
        return [((*path, key), f"{key} needs {name}", True) for key, name in needed if name not in error.instance]
    if error.validator == "additionalProperties":
        known = dict(error.schema.get("properties", {}))
        patterns = error.schema.get("patternProperties", {})
        unknown = [k for k in error.instance if k not in known and not any(re.search(p, k) for p in patterns)]
        return [((*path, key), _unknown_key(key, known, patterns), True) for key in unknown]
    if error.validator == "type":
        return [(path, _wrong_type(error), False)]
    if error.validator == "required":
        missing = [k for k in error.validator_value if k not in error.instance]
        return [(path, f"{' and '.join(missing)} must be given", False)]
    if error.validator in ("enum", "const"):
        allowed = error.validator_value if error.validator == "enum" else [error.validator_value]
        near = difflib.get_close_matches(str(error.instance), [str(a) for a in allowed], 1)
        listed = ", ".join(a if isinstance(a, str) else _shown(a) for a in allowed)
        return [(path, f"{_told(error.instance)} not one of: {listed}" + _did_you_mean(near), False)]
    if error.validator == "pattern":
        meant = error.schema.get("description", "what belongs there")
        return [(path, f"{_shown(error.instance)} is not {_article(meant)}", False)]
    if error.validator == "minimum":
        return [(path, f"{error.instance} is too small: at least {error.validator_value}", False)]
    if error.validator == "maximum":
        return [(path, f"{error.instance} is too large: at most {error.validator_value}", False)]
    if error.validator == "minLength":
        return [(path, f"{_shown(error.instance)} is too short", False)]
    if error.validator in ("minItems", "minProperties"):
        return [(path, "is empty: it would ask for nothing", False)]
    if error.validator == "uniqueItems":
        return [(path, "names something twice", False)]
    return [(path, str(error.message), False)]


def _explain_alternatives(error: Any, path: Path) -> Iterable[tuple[Path, str, bool]]:
    """Of the alternatives, the one meant is the one whose type fits what was written."""
    others = {e.relative_schema_path[0] for e in error.context if e.validator == "type" and not e.relative_path}
    fitting = [e for e in error.context if e.relative_schema_path[0] not in others]
    limits = [e for e in fitting if e.validator in ("minimum", "maximum")]
    described = [e.schema["description"] for e in fitting if "description" in e.schema]
    meant = described[0] if len(described) == len(fitting) == 1 else error.schema.get("description")
    if not fitting or error.instance is None:
        return [(path, _wrong_type(error), False)]
    if isinstance(error.instance, (dict, list)):
        # a text that is not as two rules want it is told once, by the stricter one, which comes later
        once = {(tuple(e.absolute_path), "" if e.validator == "pattern" else id(e)): e for e in fitting}
        return [problem for e in once.values() for problem in _explain(e)]
    if limits or not meant:
        return [problem for e in limits or fitting for problem in _explain(e)]
    return [(path, f"{_shown(error.instance)} is not {_article(meant)}", False)]


def _wrong_type(error: Any) -> str:
    if error.validator == "anyOf":
        kinds = [e.validator_value for e in error.context if e.validator == "type"]
        wanted = " or ".join(_KINDS.get(str(k), str(k)) for k in kinds)
    else:
        value = error.validator_value
        wanted = " or ".join(_KINDS[k] for k in (value if isinstance(value, list) else [value]))
    hint = error.schema.get("description", "")
    if error.instance is None:
        return f"has no value; what belongs there: {hint or wanted}"
    what = f"{_told(error.instance)} {_kind(error.instance)}"
    return f"{what}, but {wanted} belongs there" + (f": {hint}" if hint else "")


_KINDS = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "boolean": "true or false",
}


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    kinds = {bool: "a truth value", int: "a number", str: "text", list: "a list", dict: "a mapping"}
    return kinds[type(value)]


def _shown(value: Any) -> str:
    return (
        {None: "nothing", True: "true", False: "false"}[value]
        if value is None or value is True or value is False
        else repr(value)
    )


def _told(value: Any) -> str:
    """A value as the start of a sentence; a long one is not said again."""
    return "is" if isinstance(value, (dict, list)) else f"{_shown(value)} is"


def _article(meant: str) -> str:
    return meant if re.match(r"(a|an|the|one|what|where) ", meant) else f"valid: {meant}"


def _unknown_key(key: str, known: Iterable[str], patterns: Iterable[str] = ()) -> str:
    if key.startswith("/") and patterns:
        return f"{key!r} is no such path: write an absolute one without //, ., .. or a slash at its end"
    near = difflib.get_close_matches(key, [*known, "1GiB", "2MiB"] if patterns else list(known), 1)
    capitals = key.upper()
    if not near and key != capitals and (capitals in known or any(re.search(p, capitals) for p in patterns)):
        return f"unknown key {key!r}; parameters are in capitals: {capitals}"
    listed = ", ".join(sorted(known))
    return f"unknown key {key!r}" + (_did_you_mean(near) or (f"; known: {listed}" if listed else ""))


def _did_you_mean(near: Sequence[str]) -> str:
    return f"; did you mean {near[0]!r}?" if near else ""


def _place(path: Path) -> str:
    parts = (f"[{p}]" if isinstance(p, int) else f".{p if p.isprintable() else ascii(p)}" for p in path)
    return "".join(parts).lstrip(".")


def _dates(document: dict[str, Any]) -> Iterator[tuple[Path, str, bool]]:
    """A waiver's last day must be a day that exists."""
    waivers = document.get("waivers")
    for i, waiver in enumerate(waivers if isinstance(waivers, list) else []):
        until = waiver.get("until") if isinstance(waiver, dict) else None
        if isinstance(until, str) and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", until):
            try:
                datetime.date.fromisoformat(until)
            except ValueError:
                yield ("waivers", i, "until"), f"there is no day {until}", False
