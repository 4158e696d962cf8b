"""A profile from a site's OpenKasugai Makefile: its variables as make(1) would have them, without running make.

Nothing is executed, so what a Makefile takes from `$(shell ...)`, a function, a condition, another file or the
environment is not told. Of a variable that a profile needs that is an error, of any other a comment in the profile.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from hostprep.errors import ProfileError
from hostprep.model import Unknown

# -- what make reads ------------------------------------------------------------------------------


class Variable(NamedTuple):
    """A variable, and where its name stands the last time that it is set."""

    value: str | Unknown  # expanded, if it is simple
    line: int
    column: int
    simple: bool = False  # `:=`: expanded where it is set; else where it is used
    default: bool = False  # `?=`: set unless the environment has it
    override: bool = False  # only another `override` sets it again


_ASSIGNMENT = re.compile(
    r"(?P<words>(?:(?:export|override|private)\s+)*)(?P<name>[^\s:#=]+?)\s*(?P<op>[?+!]=|:{0,3}=)\s*(?P<value>.*)", re.S
)
_DEFINE = re.compile(r"(?P<words>(?:(?:export|override)\s+)*)define\s+(?P<name>[^\s:#=]+)")
_CONDITION = re.compile(r"ifn?eq\b|ifn?def\b")
_UNDEFINE = re.compile(r"(?P<override>override\s+)?undefine\s+(?P<name>\S+)")
_INCLUDE = re.compile(r"(?:-include|sinclude|include)\s+(?P<files>.+)")
_HASH = re.compile(r"(?<!\\)(\\*)#")
_OF_A_TARGET = re.compile(rf"[^=]*?:\s*{_ASSIGNMENT.pattern}", re.S)
_NAME = r"[^\s$(){}:=,#]+"
_REFERENCE = re.compile(rf"\$(?:(?P<dollar>\$)|\((?P<round>{_NAME})\)|\{{(?P<curly>{_NAME})\}}|(?P<one>\w))")
_DEPTH_LIMIT, _SIZE_LIMIT = 50, 4096  # of references, and of characters: a few lines can stand for gigabytes


def variables(text: str) -> tuple[dict[str, Variable], list[str]]:
    """The global variables that a Makefile sets, and in words what it leaves to something that cannot be seen here.

    As GNU make has it: the last setting counts, one for a single target does not, and a tab begins a recipe only
    below a rule.
    """
    found: dict[str, Variable] = {}
    notes: list[str] = []
    conditions: list[int] = []
    recipe, defines = False, 0
    for number, raw in _logical_lines(text):
        if raw.startswith("\t") and (recipe or defines):
            continue
        line = _without_comment(raw).lstrip()
        column = len(raw) - len(raw.lstrip()) + 1
        if defines:
            defines += bool(_DEFINE.match(line)) - bool(re.match(r"endef\b", line))
        elif defined := _DEFINE.match(line):
            defines, recipe = 1, False
            name, override = defined["name"], "override" in defined["words"]
            if override or name not in found or not found[name].override:
                why = Unknown("of several lines (define)")
                found[name] = Variable(why, number, column, override=override)
        elif _CONDITION.match(line):
            conditions.append(number)
        elif re.match(r"endif\b", line):
            del conditions[-1:]
        elif undefined := _UNDEFINE.match(line):
            _undefine(found, undefined, number, column, conditions)
        elif given := _ASSIGNMENT.match(line):
            recipe = False
            if "$" in given["name"]:
                notes.append(f"line {number} sets a variable whose name is computed, {given['name']}")
            else:
                _set(found, given, number, column + given.start("name"), conditions)
        elif included := _INCLUDE.match(line):
            notes.append(f"line {number} includes {included['files'].strip()}, which may set some of this otherwise")
        elif re.match(r"\$[({](eval|call|foreach)\b", line):
            notes.append(f"line {number} may set variables: {line.strip()}")
        elif ":" in line:
            recipe = not _OF_A_TARGET.fullmatch(line)
    return found, notes


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with those that continue them (after an odd number of backslashes), each with the number of its first."""
    joined, first = "", 1
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        kept = line.rstrip("\\")
        if (slashes := len(line) - len(kept)) % 2:  # of several, half stay
            part = (kept + "\\" * (slashes // 2)).rstrip(" \t")
            joined += (part.lstrip(" \t") if joined else part) + " "
            continue
        yield first, joined + (line.lstrip() if joined else line)
        joined, first = "", number + 1
    if joined:
        yield first, joined


def _without_comment(line: str) -> str:
    """A backslash makes `#` part of the value; of several before it, half stay."""
    parts, end = [], 0
    for found in _HASH.finditer(line):
        slashes = len(found[1])
        parts += [line[end : found.start()], "\\" * (slashes // 2)]
        if slashes % 2 == 0:
            return "".join(parts)
        parts.append("#")
        end = found.end()
    return "".join([*parts, line[end:]])


def _set(found: dict[str, Variable], given: re.Match[str], line: int, column: int, conditions: list[int]) -> None:
    """What one assignment does to a variable."""
    name, op, said = given["name"], given["op"], given["value"]
    old, override = found.get(name), "override" in given["words"]
    if old and (op == "?=" or (op == "+=" and not said) or (old.override and not override)):
        return
    simple = op.endswith(":=") or op in ("::=", ":::=") or (op == "+=" and old is not None and old.simple)
    value: str | Unknown = said
    if conditions:
        value = Unknown(_under(conditions))
    elif op == "!=":
        value = Unknown("what a command answers (!=)")
    elif simple:
        value = _expanded(said, found)
    if op == "+=" and old is not None and not isinstance(value, Unknown):
        value = old.value if isinstance(old.value, Unknown) else f"{old.value} {value}".lstrip()
    found[name] = Variable(value, line, column, simple, op == "?=", override)


def _undefine(found: dict[str, Variable], given: re.Match[str], line: int, column: int, conditions: list[int]) -> None:
    old = found.get(given["name"])
    if old and (given["override"] or not old.override):
        del found[given["name"]]
        if conditions:
            found[given["name"]] = Variable(Unknown(_under(conditions)), line, column)


def _under(conditions: list[int]) -> str:
    return f"set under a condition (line {conditions[-1]})"


def _expanded(text: str, known: Mapping[str, Variable], within: tuple[str, ...] = ()) -> str | Unknown:
    """A value with its references to other variables filled in."""
    parts, end = [], 0
    for at in re.finditer(r"\$", text):
        if at.start() < end:
            continue
        match = _REFERENCE.match(text, at.start())
        if match is None:
            return Unknown(f"made by {text[at.start() :]}")
        name = match["round"] or match["curly"] or match["one"]
        value = _value(name, known, within) if name else "$"
        if isinstance(value, Unknown):
            return Unknown(f"{name}: {value.reason}")
        parts += [text[end : match.start()], value]
        end = match.end()
    whole = "".join([*parts, text[end:]])
    return whole if len(whole) <= _SIZE_LIMIT else Unknown("too long")


def _value(name: str, known: Mapping[str, Variable], within: tuple[str, ...] = ()) -> str | Unknown:
    """What make puts in place of a reference, at the end of the file."""
    if name in within:
        return Unknown("refers to itself")
    if len(within) > _DEPTH_LIMIT:
        return Unknown("too many references deep")
    if (variable := known.get(name)) is None:
        return Unknown("not set in this file")
    if isinstance(variable.value, Unknown) or variable.simple:
        return variable.value
    return _expanded(variable.value, known, (*within, name))


def told(known: Mapping[str, Variable], name: str) -> str | Unknown:
    """What a variable is in recipes, without the blanks at its end, which make keeps."""
    value = _value(name, known)
    return value if isinstance(value, Unknown) else value.rstrip()


# -- what a profile takes -------------------------------------------------------------------------

_BASE = "openkasugai-all-in-one"
_PF = re.compile(r"SRIOV_PF_IF_([1-9][0-9]*)")
# dev_valid_name() of the kernel allows more; but recipes hand the name to a shell, and a profile takes globs.
_INTERFACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
_VFS = re.compile(r"[1-9][0-9]{0,4}")
_FILE = re.compile(r"[A-Za-z0-9_.+-]+")
# What else the install manual has as parameters. Which of it a site wants to be looked at is for the site to say.
_OTHERS = {
    "versions": r"(K8S|GO|SRIOV_CNI|METALLB|NVIDIA_K8S_IPAM)_VERSION|CRIO_(OS|REPO_VERSION|PKG_VERSION)|IMG_TAG",
    "registry login": r"DCI_REGISTRY_\w+",
    "SR-IOV network": r"SRIOV_PF_IPADDR_\d+|NV_IPAM_\w+",
    "archive": r"DCI_K8S_SOFTWARE_TARFILE",
}
_LONGEST = 200  # characters of the Makefile in one comment


class _Makefile(NamedTuple):
    path: str
    known: Mapping[str, Variable]

    def problem(self, name: str, what: str) -> str:
        line, column = self.known[name][1:3] if name in self.known else (1, 1)
        return f"{_one_line(self.path)}:{line}:{column}: {name}: {_comment(what)}"


def profile_from(text: str, path: str) -> str:
    """The profile, as YAML, of the host that a Makefile of OpenKasugai all-in-one is written for.

    Raises ProfileError with all that keeps it from being made, each with file:line:column.
    """
    known, notes = variables(text)
    makefile = _Makefile(path, known)
    problems: list[str] = []
    pfs = _interfaces(makefile, problems)
    vfs = _number_of_vfs(makefile, problems)
    if problems:
        hint = "Correct the Makefile, or write the profile by hand: hostprep profiles show openkasugai-all-in-one"
        raise ProfileError(problems, hint)
    parts = [
        *_head(path, [*notes, *_traps(known, pfs)]),
        *(f"name: {_BASE}-site", "description: One host for OpenKasugai all-in-one, as its Makefile describes it."),
        *(f"extends: {_BASE}  # hardware, system, swap, hugepages and mlnx_ofed of the install manual", ""),
        *_firmware(known, pfs, vfs),
        *("", *_virtual_functions(known, pfs, vfs)),
        *("", *_gpu(makefile)),
        *("", *_others(known)),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _interfaces(makefile: _Makefile, problems: list[str]) -> dict[str, str]:
    """The interface of each PF, by its variable in the order of their numbers."""
    names = sorted(filter(_PF.fullmatch, makefile.known), key=lambda name: int(name.rpartition("_")[2]))
    if not names:
        problems.append(makefile.problem("SRIOV_PF_IF_1", "is not set: is this OpenKasugai's Makefile?"))
    found: dict[str, str] = {}
    for name in names:
        value = told(makefile.known, name)
        if isinstance(value, Unknown):
            problems.append(makefile.problem(name, f"cannot be told: {value.reason}"))
        elif not _INTERFACE.fullmatch(value):
            what = f"{value!r} is not the name of a network interface: at most 15 letters, digits and . _ -"
            problems.append(makefile.problem(name, what))
        elif value in found.values():
            other = next(n for n, v in found.items() if v == value)
            problems.append(makefile.problem(name, f"{value} is {other} already: each worker has a PF of its own"))
        else:
            found[name] = value
    return found


def _number_of_vfs(makefile: _Makefile, problems: list[str]) -> int:
    name = "SRIOV_NUM_VFS"
    value = told(makefile.known, name)
    if isinstance(value, Unknown):
        problems.append(makefile.problem(name, f"cannot be told: {value.reason}"))
    elif not _VFS.fullmatch(value) or int(value) > 65535:
        problems.append(makefile.problem(name, f"{value!r} is not a number of VFs, from 1 to 65535"))
    else:
        return int(value)
    return 0


def _traps(known: Mapping[str, Variable], pfs: Mapping[str, str]) -> Iterator[str]:
    """What is told, and yet may be otherwise when make runs, or does something else than it seems to."""
    for name in (*pfs, "SRIOV_NUM_VFS"):
        value = _value(name, known)
        if isinstance(value, str) and value != value.rstrip():
            yield f"{name} (line {known[name].line}) ends with a blank, which make keeps: paths break on it"
        if known[name].default:
            yield f"{name} (line {known[name].line}) is set with ?=, unless the environment has it"
    for name in pfs:
        regex = f"SRIOV_IF_REGEX_{name.rpartition('_')[2]}"
        value = told(known, regex)
        if not isinstance(value, str) or not re.fullmatch(r"[\w.*-]+", value, re.A):  # means the same to grep and here
            continue
        taken = [pf for pf in pfs.values() if re.search(f"{value}:", f"1: {pf}: <")]
        if pfs[name] not in taken:
            yield f"{regex} (line {known[regex].line}) does not match {pfs[name]}"
        for other in taken:
            if other != pfs[name]:
                yield f"{regex} (line {known[regex].line}) matches {other} too: its worker would get both PFs"


def _head(path: str, notes: list[str]) -> Iterator[str]:
    yield f"# Made from {_comment(path)} by hostprep profiles from-makefile: read it, and correct what this host has"
    yield "# otherwise. Its place is /etc/hostprep/profile.yaml; hostprep profiles validate says whether it is valid."
    for note in notes:
        yield f"# Beware: {_comment(note)}."


def _firmware(known: Mapping[str, Variable], pfs: Mapping[str, str], vfs: int) -> Iterator[str]:
    yield "# NVIDIA (Mellanox) cards. Where the PFs are another maker's, this is: nic_firmware: null"
    yield "nic_firmware:"
    for name, pf in pfs.items():
        yield from (f'  - cards: "{pf}"  # {_at(known, name)}', "    count: 1", "    SRIOV_EN: true")
        yield f"    NUM_OF_VFS: {vfs}  # {_at(known, 'SRIOV_NUM_VFS')}"


def _virtual_functions(known: Mapping[str, Variable], pfs: Mapping[str, str], vfs: int) -> Iterator[str]:
    yield "nic_vfs:"
    for name, pf in pfs.items():
        yield from (f'  - pf: "{pf}"  # {_at(known, name)}', "    count: 1", f"    vfs: {vfs}")


def _gpu(makefile: _Makefile) -> Iterator[str]:
    """The GPU, which the Makefile takes for granted, and the installer of its driver, which it names."""
    name = "NVIDIA_DRIVER_FILE"
    yield "gpu:"
    yield "  count: 1"
    yield "  model: A100  # the manual's; the Makefile does not say"
    yield "  driver: unloaded  # it runs in the first worker; create-cluster unloads it here"
    value, here = told(makefile.known, name), os.path.abspath(makefile.path)
    why = value.reason if isinstance(value, Unknown) else ""
    if isinstance(value, str) and not _FILE.fullmatch(value):
        why = f"{value!r} is not the name of a file"
    if not here.isprintable() or makefile.path == "-":
        why = why or "where the Makefile is cannot be told"
    if why:
        yield f"  # no installer: {name} cannot be told: {_comment(why)}"
        return
    path = os.path.join(os.path.dirname(here), "driver/nvidia", str(value))
    yield f"  installer: {json.dumps(path, ensure_ascii=False)}  # {_at(makefile.known, name)}"
    yield f"  makefile: {json.dumps(here, ensure_ascii=False)}  # goes on naming the same version"


def _others(known: Mapping[str, Variable]) -> Iterator[str]:
    """What no section is made of: told all the same, for whoever prepares the host."""
    others = [(subject, name) for subject, pattern in _OTHERS.items() for name in known if re.fullmatch(pattern, name)]
    if others:
        yield "# The Makefile also says this, of which no section is made:"
    for subject, name in others:
        value = told(known, name)
        shown = f"cannot be told: {value.reason}" if isinstance(value, Unknown) else value
        yield f"#   {subject}: {name} = {_comment(shown)}"


def _at(known: Mapping[str, Variable], name: str) -> str:
    return f"{name}, line {known[name].line}"


def _comment(text: str) -> str:
    said = _one_line(text)
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."


def _one_line(text: str) -> str:
    """Fit for a comment and a terminal: one line, no control characters."""
    return "".join(c if c.isprintable() else " " for c in text)
