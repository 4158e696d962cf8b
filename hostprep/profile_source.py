"""Reading and validating profile files: YAML 1.2 core, all errors at once, each with file:line:column.

PyYAML follows YAML 1.1, which reads `0000:17:00.0` as 1020.0, `off` as false and `0755` as 493, and lets the last
of two equal keys win. Here a value stays what was written, unless it is a plain whole number, true, false or null.
"""

from __future__ import annotations

import datetime
import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jsonschema
import yaml

from hostprep import profile as profiles
from hostprep import registry
from hostprep.errors import ProfileError
from hostprep.model import Profile, Waiver
from hostprep.quantities import DURATION_PATTERN, parse_duration

Path = tuple[str | int, ...]
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
SIZE_LIMIT = 1024 * 1024  # bytes
DEPTH_LIMIT = 32
DRAFT = "https://json-schema.org/draft/2020-12/schema"

META: dict[str, Any] = {
    "name": {"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]*$(?!\n)", "description": "the profile's name"},
    "description": {"type": "string", "description": "one sentence for a person"},
    "extends": {
        "type": "string",
        "description": "the profile that this one starts from: its sections, unless given here",
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
                    "pattern": r"^\d{4}-\d{2}-\d{2}$(?!\n)",
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


def load(path: str, data: bytes) -> tuple[Profile, dict[str, bytes]]:
    """A validated profile, and every file that it is made of. Raises ProfileError with all problems."""
    chain: list[tuple[str, dict[str, Any]]] = []
    sources: dict[str, bytes] = {}
    checks = registry.load()
    while True:
        if path in sources:
            raise ProfileError([f"{path}: extends: comes back to itself: {' -> '.join([*sources, path])}"])
        sources[path] = data
        document = validate(path, data, checks)
        chain.append((path, document))
        if "extends" not in document:
            break
        path = _base(path, document["extends"])
        data = profiles.read(path)
    return _merge(chain, profiles.digest(*sources.values())), sources


def _base(path: str, name: str) -> str:
    if "/" in name or name.endswith((".yaml", ".yml", ".json")):
        import os

        return os.path.normpath(os.path.join(os.path.dirname(path), name))
    known = profiles.available()
    if name not in known:
        raise ProfileError([f"{path}: extends: there is no profile named {name!r}"], f"Known: {', '.join(known)}.")
    return known[name]


def _merge(chain: Sequence[tuple[str, dict[str, Any]]], sha256: str) -> Profile:
    """A section given later replaces the whole section of the base; null takes it out; lists of names add up."""
    path, top = chain[0]
    sections: dict[str, Any] = {}
    lists: dict[str, list[Any]] = {"advisory": [], "assert_only": [], "waivers": []}
    valid_for: str | int = 3600
    for _, document in reversed(chain):
        sections |= {k: v for k, v in document.items() if k not in META}
        for name, values in lists.items():
            values += [v for v in document.get(name, []) if v not in values]
        valid_for = document.get("valid_for", valid_for)
    sections = {name: section for name, section in sections.items() if section is not None}
    if not sections:
        raise ProfileError(
            [f"{path}: this profile checks nothing"], "Add a section: hostprep explain lists the checks."
        )
    for name in ("advisory", "assert_only"):
        for value in lists[name]:
            if value.partition("/")[0] not in sections and "*" not in value:
                hint = f"Known: {', '.join(sections)}."
                raise ProfileError([f"{path}: {name}: {value!r} names no check of this profile"], hint)
    return Profile(
        name=top.get("name") or path.rpartition("/")[2].rpartition(".")[0],
        sha256=sha256,
        sections=sections,
        description=top.get("description", ""),
        advisory=tuple(lists["advisory"]),
        assert_only=tuple(lists["assert_only"]),
        waivers=tuple(Waiver(w["finding"], w["reason"], w["until"], w.get("owner", "")) for w in lists["waivers"]),
        valid_for=parse_duration(valid_for),
        source=path,
    )


# -- YAML -----------------------------------------------------------------------------------------


class Marks:
    """Where each value, and each key, of a document stands: path -> (line, column), from 1."""

    def __init__(self) -> None:
        self.values: dict[Path, tuple[int, int]] = {(): (1, 1)}
        self.keys: dict[Path, tuple[int, int]] = {}

    def at(self, path: Path, key: bool = False) -> tuple[int, int]:
        if key and path in self.keys:
            return self.keys[path]
        while path not in self.values:
            path = path[:-1]
        return self.values[path]


def parse(name: str, data: bytes) -> tuple[Any, Marks]:
    """A YAML document as plain data, and where everything in it stands. Raises ProfileError."""
    if len(data) > SIZE_LIMIT:
        raise ProfileError([f"{name}: larger than {SIZE_LIMIT // 1024} KiB: not a profile"])
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        raise ProfileError([f"{name}:{line}:1: not UTF-8"], "Save the file as UTF-8.") from e
    problems: list[str] = []
    try:
        _only_plain(name, text, problems)
        if problems:
            raise ProfileError(problems)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ProfileError(
            [f"{name}{where}: not YAML: {e.problem}"], "Mind the indentation, and quote what has a `: ` in it."
        ) from e
    except yaml.YAMLError as e:
        raise ProfileError([f"{name}: not YAML: {' '.join(str(e).split())}"]) from e
    marks = Marks()
    value = None if node is None else _construct(name, node, (), marks, problems)
    if problems:
        raise ProfileError(problems)
    return value, marks


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


def _construct(name: str, node: Any, path: Path, marks: Marks, problems: list[str]) -> Any:
    marks.values[path] = (node.start_mark.line + 1, node.start_mark.column + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_construct(name, item, (*path, i), marks, problems) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line, column = key_node.start_mark.line + 1, key_node.start_mark.column + 1
            if not isinstance(key_node, yaml.ScalarNode):
                problems.append(f"{name}:{line}:{column}: a key must be text")
                continue
            key = key_node.value
            here = (*path, key)
            if key in mapping:
                first = marks.keys[here][0]
                problems.append(f"{name}:{line}:{column}: {key!r} comes a second time; the first is on line {first}")
                continue
            marks.keys[here] = (line, column)
            mapping[key] = _construct(name, value_node, here, marks, problems)
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


def validate(name: str, data: bytes, checks: dict[str, registry.Check] | None = None) -> dict[str, Any]:
    """The document of one profile file. Raises ProfileError with every problem in it."""
    document, marks = parse(name, data)
    if document is None:
        raise ProfileError(
            [f"{name}: empty: a profile that asks for nothing"], "hostprep profiles show baseline shows one."
        )
    if not isinstance(document, dict):
        raise ProfileError([f"{name}:1:1: a profile is a mapping of sections, not {_kind(document)}"])
    full = schema(checks)
    without_removed = {k: v for k, v in document.items() if v is not None or k in META}
    found = sorted(_errors(full, without_removed), key=lambda e: (marks.at(e[0], e[2]), e[1]))
    problems = []
    for path, what, is_key in found:
        line, column = marks.at(path, is_key)
        place = _place(path if not is_key else path[:-1])
        problems.append(f"{name}:{line}:{column}: {place + ': ' if place else ''}{what}")
    problems += _dates(name, document, marks)
    for key in document.keys() - full["properties"].keys():
        if document[key] is None:
            line, column = marks.at((key,), key=True)
            problems.append(f"{name}:{line}:{column}: {_unknown_key(key, full['properties'])}")
    if problems:
        raise ProfileError(problems, "hostprep explain CHECK says what a section takes.")
    return document


def _errors(full: dict[str, Any], document: Any) -> Iterator[tuple[Path, str, bool]]:
    """Each problem as where, what, and whether it is about a key rather than a value."""
    for error in jsonschema.Draft202012Validator(full).iter_errors(document):
        yield from _explain(error)


def _explain(error: Any) -> Iterable[tuple[Path, str, bool]]:
    path: Path = tuple(error.absolute_path)
    if error.validator == "anyOf":
        # Of the alternatives, the one meant is the one whose type fits what was written.
        fitting = [e for e in error.context if e.relative_schema_path[-1] != "type" or len(e.relative_path) > 0]
        return [problem for e in fitting for problem in _explain(e)] or [(path, _wrong_type(error), False)]
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
        return [
            (
                path,
                f"{_shown(error.instance)} is not one of: {', '.join(map(str, allowed))}" + _did_you_mean(near),
                False,
            )
        ]
    if error.validator == "pattern":
        meant = error.schema.get("description", "what belongs there")
        return [(path, f"{_shown(error.instance)} is not {_article(meant)}", False)]
    if error.validator == "minimum":
        return [(path, f"{error.instance} is too small: at least {error.validator_value}", False)]
    if error.validator in ("minItems", "minProperties", "minLength"):
        return [(path, "is empty: it would ask for nothing", False)]
    if error.validator == "uniqueItems":
        return [(path, "names something twice", False)]
    return [(path, str(error.message), False)]


def _wrong_type(error: Any) -> str:
    if error.validator == "anyOf":
        kinds = [e.validator_value for e in error.context if e.validator == "type"]
        wanted = " or ".join(_KINDS.get(str(k), str(k)) for k in kinds)
    else:
        value = error.validator_value
        wanted = " or ".join(_KINDS[k] for k in (value if isinstance(value, list) else [value]))
    hint = error.schema.get("description", "")
    return f"{_shown(error.instance)} is {_kind(error.instance)}, but {wanted} belongs there" + (
        f": {hint}" if hint else ""
    )


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
    kinds = {bool: "true or false", int: "a number", str: "text", list: "a list", dict: "a mapping"}
    return kinds[type(value)]


def _shown(value: Any) -> str:
    return (
        {None: "nothing", True: "true", False: "false"}[value]
        if value is None or value is True or value is False
        else repr(value)
    )


def _article(meant: str) -> str:
    return meant if re.match(r"(a|an|the|one|what|where) ", meant) else f"valid: {meant}"


def _unknown_key(key: str, known: Iterable[str], patterns: Iterable[str] = ()) -> str:
    near = difflib.get_close_matches(key, [*known, "1GiB", "2MiB"] if patterns else list(known), 1)
    listed = ", ".join(sorted(known))
    return f"unknown key {key!r}" + (_did_you_mean(near) or (f"; known: {listed}" if listed else ""))


def _did_you_mean(near: Sequence[str]) -> str:
    return f"; did you mean {near[0]!r}?" if near else ""


def _place(path: Path) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")


def _dates(name: str, document: dict[str, Any], marks: Marks) -> Iterator[str]:
    """A waiver's last day must be a day that exists."""
    waivers = document.get("waivers")
    for i, waiver in enumerate(waivers if isinstance(waivers, list) else []):
        until = waiver.get("until") if isinstance(waiver, dict) else None
        if isinstance(until, str) and re.fullmatch(r"\d{4}-\d{2}-\d{2}", until):
            try:
                datetime.date.fromisoformat(until)
            except ValueError:
                line, column = marks.at(("waivers", i, "until"))
                yield f"{name}:{line}:{column}: waivers[{i}].until: there is no day {until}"
