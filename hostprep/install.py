"""Putting files for other programs in place, and taking them away again: what `hostprep install` does.

What was put where is kept in a list with digests. A file that is not on it, or is not as it was put there, is somebody
else's: it is neither replaced nor removed. Nothing is written while one file stands in the way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hostprep.errors import ChangeFailed, StateError
from hostprep.host import ABSENT, FileState, Host

NAME = "installed.json"
_VERSION = 1


class Item(NamedTuple):
    """A file to be put in place, or a symbolic link; one for an admin to edit stays as it is once it is there."""

    path: str
    data: bytes  # the content of a file, the target of a link
    mode: int = 0o644
    link: bool = False
    edited: bool = False


class Done(NamedTuple):
    """What was done about a file, or would be: new, updated, unchanged, kept, removed, left."""

    word: str
    path: str


class Entry(NamedTuple):
    """A file that was put in place: for which target, and the digests by which it is known again.

    A directory that was made for files has neither.
    """

    target: str
    digests: tuple[str, ...]


Entries = Mapping[str, Entry]


def install(host: Host, where: str, target: str, items: Sequence[Item], dry_run: bool = False) -> list[Done]:
    """Put the files of a target in place, all or none. `where` is the path of the list of what was.

    Raises ChangeFailed, with the names, while one is somebody else's, and StateError where the list is damaged.
    """
    entries = dict(read(host, where))
    before = {item.path: host.state(item.path) for item in items}
    done = [Done(_word(item, before[item.path], entries), item.path) for item in items]
    if foreign := [path for word, path in done if word == "foreign"]:
        hint = "Look at it; if it is not needed, move it away and try again."
        raise ChangeFailed(f"{', '.join(foreign)}: there is a file that hostprep did not put there, or not so", hint)
    changed = [item for item, (word, _) in zip(items, done, strict=True) if word in ("new", "updated")]
    if dry_run or not changed:
        return done
    for item in changed:  # first of all, so that what is cut off here can be gone on with, or taken away
        known = entries[item.path].digests if item.path in entries else ()
        entries[item.path] = Entry(target, (*known, _digest(_state(item))))
    made: list[str] = []
    watched = host.keeping(lambda path, was, now: made.append(path) if now and now.kind == "directory" else None)
    _write(watched, where, entries)
    for item in changed:
        watched.restore(item.path, _state(item))
    for item in changed:
        entries[item.path] = Entry(target, (_digest(_state(item)),))
    _write(host, where, {**entries, **{path: Entry("", ()) for path in made}})
    return done


def uninstall(host: Host, where: str, target: str, dry_run: bool = False) -> list[Done]:
    """Take the files of a target away again, but for those that somebody has changed."""
    entries = dict(read(host, where))
    ours = [path for path, entry in entries.items() if entry.target == target and entry.digests]
    done = []
    for path in sorted(ours):
        state = host.state(path)
        known = state == ABSENT or _digest(state) in entries[path].digests
        done.append(Done("removed" if known else "left", path))
        if not dry_run:
            if known and state != ABSENT:
                host.restore(path, ABSENT)
            del entries[path]
    if not dry_run:
        _write(host, where, entries)
        if left := _without_empty_directories(host, entries):
            _write(host, where, left)
    return done


def _without_empty_directories(host: Host, entries: Entries) -> Entries:
    """What is left when those directories are gone that were made for files and have none now."""
    left = dict(entries)
    for path in sorted((p for p, e in entries.items() if not e.digests), reverse=True):
        if host.state_kind(path) == "directory":
            if host.names(path):
                continue
            host.restore(path, ABSENT)
        del left[path]
    return left


def targets(host: Host, where: str) -> list[str]:
    """The targets that are installed."""
    return sorted({entry.target for entry in read(host, where).values() if entry.target})


def _word(item: Item, before: FileState, entries: Entries) -> str:
    wanted = _state(item)
    if before == ABSENT:
        return "new"
    if (before.kind, before.data, before.mode) == (wanted.kind, wanted.data, wanted.mode):
        return "unchanged"
    if item.edited and before.kind == "file":
        return "kept"
    entry = entries.get(item.path)
    return "updated" if entry and _digest(before) in entry.digests else "foreign"


def _state(item: Item) -> FileState:
    return FileState("link" if item.link else "file", item.data, 0o777 if item.link else item.mode)


def _digest(state: FileState) -> str:
    return hashlib.sha256(state.kind.encode() + b"\0" + state.data).hexdigest()


# -- the list of what was put in place --------------------------------------------------------------


def read(host: Host, where: str) -> Entries:
    text = host.read_bytes(where)
    if text is None:
        return {}
    try:
        data = json.loads(text)
        if data["version"] != _VERSION:
            raise ValueError(f"version {data['version']} is not {_VERSION}")
        return {str(p): Entry(str(e["target"]), tuple(map(str, e["digests"]))) for p, e in data["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        hint = "Files that hostprep has put in place have its name in them; take them and this list away by hand."
        raise StateError(f"{where}: damaged: {e}", hint) from e


def _write(host: Host, where: str, entries: Entries) -> None:
    if not any(entry.digests for entry in entries.values()):
        host.restore(where, ABSENT)
        return
    data: dict[str, Any] = {"version": _VERSION, "files": {p: e._asdict() for p, e in sorted(entries.items())}}
    host.replace(where, json.dumps(data, indent=1) + "\n")
