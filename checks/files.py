r"""Files: present and not empty, how many match, size, digest, owner and mode, age, archives that open.

    files: [/root/controller/src/controller.tar.gz, /etc/hosts]
    files:
      in: /root/controller                        # what the names below are relative to
      present:
        - src/controller.tar.gz
        - {path: driver/nvidia/NVIDIA-Linux-x86_64-550.90.12.run, archive: true}
        - {path: "work/DATA/video/*.mp4", count: 1, size: ">1MB"}
    files:
      - {path: /root/MLNX_OFED.tgz, md5: 8a15626083c14dcd64e33f200ebd142a}       # or sha256
      - {path: /etc/munge/munge.key, owner: munge, group: munge, mode: "0400", size: ">=32"}
      - {path: /var/lib/site/hosts.db, newer: 30d}           # modified within these days
      - {path: /var/lib/site/hosts.db, newer: /etc/hosts}    # not older than that other file
      - /scratch/                                            # with a slash: a directory that is not empty

A path is absolute, or below the directory that `in` names: hostprep also runs as a service, which is in none. A
symbolic link counts as what it leads to. An empty file, a directory, a FIFO or a link to nowhere is not a file that is
present; a file of /proc or /sys, which says that its size is 0, is not empty if something can be read from it.

In a path with * ? or [ each part matches names in one directory; hidden names only where the part begins with a dot.
At least `count` of what matches (1 if not said) must be files that are not empty, and what else is asked must hold for
each of them.

size: a number of bytes or 10MB, 1GiB, also with > >= < or <=. owner and group: a name, or a number. mode: octal,
0644. archive: all of it is read and nothing unpacked: tar, alone or in gzip, bzip2 or xz; zip; and *.run installers,
by the digest that their own --check compares (NVIDIA's, makeself.io's), without running them.

A digest or an archive of a large file is read anew at each look: what takes longer than 22 s is unknown, and says how
far it came; ask for its size instead. A file on a network mount that does not answer is unknown; the others are judged.

Next boot: a file on tmpfs or ramfs is lost then, and `volatile`. Which mounts come back is not looked at. Where the
root itself is in memory (diskless nodes) what is in it counts as kept: its image brings it again.

hostprep changes nothing here.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hostprep.errors import CommandFailed, HostError
from hostprep.host import Host, attempt
from hostprep.model import Desired, Fact, Facts, Goals, Reading, Section, Unknown, Value, from_json, to_json
from hostprep.quantities import BYTES_PATTERN, DURATION_PATTERN, parse_bytes, parse_duration, show_bytes

if TYPE_CHECKING:
    from hostprep.host.contents import FileInfo

NAME = "files"

_NO_PARENTS = r"(?!.*(\*\*|(^|/)\.\.?(/|$)))"
_ABSOLUTE = {
    "description": "an absolute path; for names relative to a directory write {in: DIRECTORY, present: [...]}",
    "type": "string",
    "pattern": rf"^{_NO_PARENTS}/[^\x00-\x1f]+$(?!\n)",
}
_BELOW = {
    "description": "a path below `in`, or an absolute one: without ** . and .., and not beginning with ~",
    "type": "string",
    "pattern": rf"^{_NO_PARENTS}[^~\x00-\x1f][^\x00-\x1f]*$(?!\n)",
}
_WHO = {
    "description": "a name, or a number",
    "anyOf": [
        {"type": "integer", "minimum": 0},
        {"type": "string", "pattern": r"^[A-Za-z_][A-Za-z0-9_.@\\-]*[$]?$(?!\n)"},
    ],
}
_ASPECTS = {
    "count": {"type": "integer", "minimum": 1, "description": "how many files must match, at least"},
    "size": {
        "description": 'a size: 32, ">1MB", ">=1GiB", "<=10GB"',
        "anyOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": rf"^([<>]=?)? ?{BYTES_PATTERN.removeprefix('^')}"},
        ],
    },
    "sha256": {
        "description": "a sha256 of 64 hexadecimal digits",
        "type": "string",
        "pattern": r"^[0-9A-Fa-f]{64}$(?!\n)",
    },
    "md5": {"description": "an md5 of 32 hexadecimal digits", "type": "string", "pattern": r"^[0-9A-Fa-f]{32}$(?!\n)"},
    "owner": _WHO,
    "group": _WHO,
    "mode": {"description": 'an octal mode in quotes: "0644"', "type": "string", "pattern": r"^0?[0-7]{3,4}$(?!\n)"},
    "newer": {
        "description": "an age such as 30d or 12h, or the absolute path of another file",
        "type": "string",
        "pattern": rf"{DURATION_PATTERN}|{_ABSOLUTE['pattern']}",
    },
    "archive": {"const": True, "description": "true: it opens, all of it"},
}
_RELATIVE_FILE = {
    "description": "a path, or {path: ..., sha256: ...}",
    "anyOf": [
        _BELOW,
        {
            "type": "object",
            "properties": {"path": _BELOW, **_ASPECTS},
            "required": ["path"],
            "additionalProperties": False,
        },
    ],
}
_GROUP_KEYS = ("in", "present")
_ENTRY = {
    "description": "a file is a path or {path: ...}; or several are {in: DIRECTORY, present: [...]}",
    "type": "object",
    "properties": {
        "path": _ABSOLUTE,
        **_ASPECTS,
        "in": {**_ABSOLUTE, "description": "an absolute path of a directory"},
        "present": {"type": "array", "items": _RELATIVE_FILE, "minItems": 1},
    },
    "additionalProperties": False,
    "oneOf": [
        {"required": ["path"], "not": {"anyOf": [{"required": ["in"]}, {"required": ["present"]}]}},
        {"required": ["in", "present"], "maxProperties": 2},
    ],
}
SCHEMA = {
    "description": "Files that must be there, and what they must be like.",
    "anyOf": [_ENTRY, {"type": "array", "items": {"anyOf": [_ABSOLUTE, _ENTRY]}, "minItems": 1}],
}

MOVING = ("age/*",)
FILE, DIRECTORY, OPENS = "file", "directory", "opens"
PATH_S = 22.0  # seconds for all that is asked of one path, of the 30 that a check has
_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")
_SKEW_S = 300  # how far the clock of a file server may be ahead of ours
_MEMORY = "It is in memory (tmpfs), and gone after a reboot: keep it on a disk."
_SHOWN = 3  # of the files that do not count, how many are named

_Mounts = Mapping[str, str] | Unknown


# -- looking --------------------------------------------------------------------------------------


def asked(want: Section, keys: Iterable[str]) -> Sequence[str]:
    """The keys of the facts that a section needs; those of facts are what they are."""
    return list(dict.fromkeys([*(key for entry in _entries(want) for key in _needs(entry)), *keys]))


def inspect(host: Host, names: Sequence[str] = ()) -> Facts:
    wanted: dict[str, list[str]] = {}
    for name in names:
        aspect, _, rest = name.partition("/")
        wanted.setdefault(f"/{rest}", []).append(aspect)
    if not wanted:
        return {}
    mounts = attempt(_mounts, host)
    works = [(path, _work(host, path, aspects, mounts)) for path, aspects in wanted.items()]
    facts: dict[str, Fact] = {}
    for path, answer in host.together(works, PATH_S + 2).items():
        if isinstance(answer, str):
            facts |= {f"{aspect}{path}": Fact.fixed(Unknown(f"{path}: {answer}")) for aspect in wanted[path]}
        else:
            facts |= {key: Fact(from_json(now), from_json(later)) for key, (now, later) in json.loads(answer).items()}
    return facts


def _work(host: Host, path: str, aspects: Sequence[str], mounts: _Mounts) -> Callable[[], bytes]:
    """What looks at one path, in a child of its own: a dead network mount keeps whoever asks."""

    def work() -> bytes:
        facts = _look(host, path, aspects, mounts)
        return json.dumps(
            {key: [to_json(fact.current), to_json(fact.next_boot)] for key, fact in facts.items()}
        ).encode()

    return work


def _look(host: Host, path: str, aspects: Sequence[str], mounts: _Mounts) -> dict[str, Fact]:
    end = time.monotonic() + PATH_S
    meant = DIRECTORY if path.endswith("/") else FILE
    try:
        found = {p: _info(host, p) for p in _matches(host, path)}
        kinds = {p: _kind(host, p, info) for p, info in found.items()}
        good = {p: info for p, info in found.items() if info is not None and kinds[p] == meant}
        stay = good if not isinstance(mounts, Unknown) and all(not _in_memory(host, p, mounts) for p in good) else {}
        facts = {}
        for aspect in aspects:
            if aspect == "present":
                later = kinds.get(path) if path not in good or path in stay else None
                facts[aspect] = Fact(kinds.get(path), later)
            elif aspect == "count":
                facts[aspect] = Fact(len(good), len(stay))
                facts["not-counted"] = Fact.fixed(_others(kinds, meant))
            else:
                facts[aspect] = Fact.fixed(attempt(_aspect, host, aspect, good, end))
    except HostError as e:
        return {f"{aspect}{path}": Fact.fixed(Unknown(str(e))) for aspect in aspects}
    if isinstance(mounts, Unknown):
        facts = {aspect: Fact(fact.current, mounts) for aspect, fact in facts.items()}
    return {f"{aspect}{path}": fact for aspect, fact in facts.items()}


def _matches(host: Host, path: str) -> list[str]:
    """The paths that are meant; one that is there as it is written is no pattern."""
    if not re.search(r"[*?[]", path) or host.exists(path.rstrip("/")):
        return [path]
    parts = path.strip("/").split("/")
    found = [
        p for p in host.glob(path) if not any(_hidden(*pair) for pair in zip(p[1:].split("/"), parts, strict=True))
    ]
    return [f"{p}/" for p in found] if path.endswith("/") else found


def _hidden(name: str, pattern: str) -> bool:
    """As for a shell: a name with a dot in front is only matched by a pattern that has one too."""
    return name.startswith(".") and not pattern.startswith(".")


def _info(host: Host, path: str) -> FileInfo | None:
    return host.info(path.rstrip("/") or "/")


def _kind(host: Host, path: str, info: FileInfo | None) -> str | None:
    """What is there, in a word or two; what is empty says so."""
    if info is None:
        return None
    empty = (
        info.size == 0 if info.kind == FILE else info.kind == DIRECTORY and path.endswith("/") and not host.names(path)
    )
    return f"empty {info.kind}" if empty else info.kind


def _others(kinds: Mapping[str, str | None], meant: str) -> tuple[str, ...]:
    """What matches and does not count."""
    others = [f"{path} ({kind})" for path, kind in kinds.items() if kind not in (meant, None)]
    more = [f"{len(others) - _SHOWN} more"] if len(others) > _SHOWN else []
    return (*others[:_SHOWN], *more)


def _mounts(host: Host) -> dict[str, str]:
    """By mount point the kind of file system; of several on one point the last (proc(5), mountinfo)."""
    text = host.read("/proc/self/mountinfo")
    if not text:
        raise HostError("/proc/self/mountinfo: not there, or empty")
    mounts = {}
    for line in text.splitlines():
        head, _, tail = line.partition(" - ")
        if len(head.split()) < 6 or not tail.split():
            raise HostError(f"/proc/self/mountinfo: cannot be understood: {line[:60]!r}")
        mounts[re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), head.split()[4])] = tail.split()[0]
    return mounts


def _in_memory(host: Host, path: str, mounts: Mapping[str, str]) -> bool:
    """Is it gone after a reboot? Not below a root that is in memory: an image brings that again."""
    here = host.resolve(path.rstrip("/") or "/")
    while here not in mounts and here != "/":
        here = here.rpartition("/")[0] or "/"
    return here != "/" and mounts[here] in _IN_MEMORY


def _aspect(host: Host, aspect: str, good: Mapping[str, FileInfo], end: float) -> Reading:
    """One reading of all that matches: the one that they share, else the worst, or a list."""
    infos = list(good.values())
    if not infos:
        return None
    if aspect in ("size", "largest"):
        return (min if aspect == "size" else max)(info.size for info in infos)
    if aspect in ("modified", "age"):
        oldest = min(info.modified for info in infos)
        return oldest if aspect == "modified" else _age(max(info.modified for info in infos), oldest)
    if aspect == "archive":
        faults = ((path, host.archive_fault(path, end - time.monotonic())) for path in good)
        return next((fault if len(good) == 1 else f"{path} {fault}" for path, fault in faults if fault), OPENS)
    if aspect in ("sha256", "md5"):
        values = [host.digest(path, aspect, end - time.monotonic()) for path in good]
    elif aspect in ("uid", "gid"):
        return _shared([str(info.uid if aspect == "uid" else info.gid) for info in infos])
    elif aspect in _NAMES:
        file, number = _NAMES[aspect]
        values = [_name(host, file, getattr(info, number)) for info in infos]
    elif aspect == "mode":
        values = [f"{info.mode:04o}" for info in infos]
    else:
        raise HostError(f"{aspect}: nothing that hostprep can tell of a file")
    return _shared(values)


def _shared(values: Iterable[str]) -> Value:
    found = sorted(set(values))
    return found[0] if len(found) == 1 else tuple(found)


def _age(newest: int, oldest: int) -> int:
    now = int(time.time())
    if newest > now + _SKEW_S:
        raise HostError("was modified in the future: is the clock of this host, or of its file server, right?")
    return max(now - oldest, 0)


_UNITS = (("days", 86400), ("hours", 3600), ("minutes", 60))
_NAMES = {"owner": ("passwd", "uid"), "group": ("group", "gid")}


def _name(host: Host, file: str, number: int) -> str:
    """The name of a user or group: of /etc/passwd or /etc/group, else of a directory service; its number if none."""
    for line in (host.read(f"/etc/{file}") or "").splitlines():
        fields = line.split(":")
        if len(fields) > 3 and fields[2] == str(number):
            return fields[0]
    try:
        return host.run("getent", file, str(number), timeout=5).partition(":")[0] or str(number)
    except CommandFailed as e:
        if e.status == 2:  # getent(1): the key could not be found
            return str(number)
        raise


# -- deciding -------------------------------------------------------------------------------------


def _entries(want: Section) -> Iterator[dict[str, Any]]:
    """Each file as a mapping with an absolute `path`, that may be a pattern."""
    for entry in want if isinstance(want, list) else [want] if want else []:
        if isinstance(entry, str):
            yield {"path": _tidy(entry)}
        elif "in" in entry:
            for below in entry["present"]:
                one = {"path": below} if isinstance(below, str) else below
                yield {
                    **one,
                    "path": _tidy(one["path"] if one["path"].startswith("/") else f"{entry['in']}/{one['path']}"),
                }
        else:
            yield {**entry, "path": _tidy(entry["path"])}


def _tidy(path: str) -> str:
    return re.sub(r"/+", "/", path)


def _several(entry: Mapping[str, Any]) -> bool:
    return "count" in entry or bool(re.search(r"[*?[]", entry["path"]))


def _needs(entry: Mapping[str, Any]) -> list[str]:
    """The keys of the facts that decide about one file."""
    path = entry["path"]
    keys = [f"{'count' if _several(entry) else 'present'}{path}"]
    keys += [f"{_fact_of(aspect, entry[aspect])}{path}" for aspect in entry if aspect not in ("path", "count")]
    newer = str(entry.get("newer", ""))
    return [*keys, f"modified{_tidy(newer)}"] if newer.startswith("/") else keys


def _fact_of(aspect: str, value: Any) -> str:
    if aspect == "size":
        return "largest" if str(value).startswith("<") else "size"
    if aspect == "newer":
        return "modified" if value.startswith("/") else "age"
    if aspect in _NAMES and isinstance(value, int):
        return _NAMES[aspect][1]
    return aspect


def decide(facts: Facts, want: Section) -> Goals:
    goals: dict[str, Desired] = {}
    for entry in _entries(want):
        path = entry["path"]
        key = f"{'count' if _several(entry) else 'present'}{path}"
        there = _now(facts, key)
        goals[key] = _told(there, _count(facts, entry) if _several(entry) else _present(there, path))
        if there in (0, None) or (isinstance(there, str) and there != goals[key].value):
            continue  # of what is not there nothing else can be said
        for aspect, value in entry.items():
            if aspect not in ("path", "count"):
                of = f"{_fact_of(aspect, value)}{path}"
                goals[f"{aspect}{path}"] = _told(_now(facts, of), _goal(facts, path, aspect, value)._replace(of=of))
    return goals


def _now(facts: Facts, key: str) -> Reading:
    return facts[key].current if key in facts else Unknown("was not looked at")


def _told(found: Reading, goal: Desired) -> Desired:
    """A goal, where the setting was looked at: one that is not among the facts is not `not there`, but unknown."""
    return goal._replace(counted=found) if isinstance(found, Unknown) else goal


def _present(found: Reading, path: str) -> Desired:
    meant = DIRECTORY if path.endswith("/") else FILE
    if found is None:
        return _desired(meant, means=f"{path}: is not there.", fix="Put it there.")
    if found == meant:
        return _desired(meant, fix=_MEMORY)
    article = "an" if str(found).startswith("e") else "a"
    means = f"{path}: is empty." if found == f"empty {meant}" else f"{path}: is {article} {found}, not a {meant}."
    if found == DIRECTORY:
        means += " Where a directory is wanted, its path ends with a slash."
    return _desired(meant, means=means, fix="Put there what belongs there.")


def _count(facts: Facts, entry: Mapping[str, Any]) -> Desired:
    path, count = entry["path"], entry.get("count", 1)
    found, others = _now(facts, f"count{path}"), _now(facts, f"not-counted{path}")
    noun = "directory" if path.endswith("/") else "file"
    means = f"{path}: {found or 'no'} {noun} that is not empty, at least {count} wanted."
    if isinstance(others, tuple) and others:
        means += f" Not counted: {', '.join(others)}."
    enough = isinstance(found, int) and found >= count
    return _desired(count, ">=", means=means, fix=_MEMORY if enough else "Put there what belongs there.")


def _goal(facts: Facts, path: str, aspect: str, value: Any) -> Desired:
    found = _now(facts, f"{_fact_of(aspect, value)}{path}")
    if aspect == "size":
        op, size = _size(value)
        means = f"{path}: its size is {show_bytes(found, size)}, not {value}." if isinstance(found, int) else ""
        return _desired(size, op, unit="bytes", means=means)
    if aspect == "newer":
        return _newer(facts, path, value, found)
    if aspect == "archive":
        return _desired(OPENS, means=f"{path}: {found}.", fix="Fetch it again.")
    if aspect in ("sha256", "md5"):
        means = f"{path}: its {aspect} is {_show(found)}, not {value.lower()}."
        fix = "It is another file than the profile means, or was damaged on its way: fetch it again."
        return _desired(value.lower(), means=means, fix=fix)
    tool = {"owner": "chown", "group": "chgrp", "mode": "chmod"}[aspect]
    wanted = f"{int(value, 8):04o}" if aspect == "mode" else str(value)
    means = f"{path}: its {aspect} is {_show(found)}, not {wanted}."
    return _desired(wanted, means=means, fix=f"{tool} {wanted} {shlex.quote(path)}")


def _size(value: str | int) -> tuple[str, int]:
    match = re.fullmatch(r"([<>]=?)?\s*(.*)", str(value))
    assert match is not None
    more = {">": 1, "<": -1}.get(match[1], 0)
    return f"{match[1][0]}=" if match[1] else "==", parse_bytes(match[2]) + more


def _newer(facts: Facts, path: str, value: str, found: Reading) -> Desired:
    if not value.startswith("/"):
        age = f"{_days(found)} old" if isinstance(found, int) else "of unknown age"
        good = isinstance(found, int) and found <= parse_duration(value)
        return _either(
            good, f"at most {value} old", age, f"{path}: was modified {_days(found)} ago, {value} is the limit."
        )
    other = _now(facts, f"modified{_tidy(value)}")
    if isinstance(other, int):
        good = isinstance(found, int) and found >= other
        return _either(good, f"not older than {value}", "older", f"{path}: is older than {value}.")
    why = other.reason if isinstance(other, Unknown) else f"{value}: is not there, so that nothing can be newer than it"
    return _desired(f"not older than {value}", counted=Unknown(why))


def _either(good: bool, wanted: str, otherwise: str, means: str) -> Desired:
    return _desired(wanted, counted=wanted if good else otherwise, means=means, fix="Put there what is up to date.")


def _days(seconds: Reading) -> str:
    if not isinstance(seconds, int):
        return "some time"
    return next((f"{seconds / size:.1f} {unit}" for unit, size in _UNITS if seconds >= 2 * size), f"{seconds} s")


def _show(found: Reading) -> str:
    return ", ".join(found) if isinstance(found, tuple) else str(found)


def _desired(value: Value, op: str = "==", **more: Any) -> Desired:
    return Desired(value, op, live=False, persist=False, **more)
