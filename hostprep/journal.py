"""What hostprep changed: one JSON object a line, on disk before the change is made.

    {"event": "begin", ...change}    about to make it
    {"event": "end",   ...change}    what the host read afterwards
    {"event": "file",  ...}          a file about to be written: as it was, and the digest of what it becomes

Joined end to end, the entries say how the host differs from the one we found. The journal is kept after
everything was taken back: it is the history of the host.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from hostprep import files
from hostprep.errors import StateError
from hostprep.host import ABSENT, FileState
from hostprep.model import Change, Facet, from_json, to_json


class Standing(NamedTuple):
    """A change that stands, and the boot in which it was last touched."""

    change: Change
    boot_id: str


class KeptFile(NamedTuple):
    """A file as it was before hostprep first wrote it, and the digest of what hostprep last made of it.

    `digest` is None while a foreign tool (update-grub) was writing it: then whatever is there is its work.
    """

    path: str
    before: FileState
    digest: str | None


class Journal:
    """The journal of one host; `boot_id` tells which boot an entry belongs to."""

    def __init__(self, path: str, boot_id: str = "") -> None:
        self.path = path
        self.boot_id = boot_id

    def begin(self, changes: Iterable[Change]) -> None:
        self._append({"event": "begin", **_change_to_json(c)} for c in changes)

    def end(self, changes: Iterable[Change]) -> None:
        self._append({"event": "end", **_change_to_json(c)} for c in changes)

    def keep(self, path: str, before: FileState, after: FileState | None) -> None:
        """A file is about to change."""
        entry = {"event": "file", "path": path, "before": _file_to_json(before), "digest": after and digest(after)}
        self._append([entry])

    def standing(self) -> list[Standing]:
        """How the host differs from the host we found, newest difference last.

        Changes of one setting are joined end to end, so a change and its undo leave nothing.
        A begin without an end (we were cut off) counts as done.
        """
        standing: dict[tuple[str, str, Facet], Standing] = {}
        for entry in self._entries():
            if entry["event"] == "file":
                continue
            change = _change_from_json(entry)
            setting = (change.check, change.key, change.facet)
            boot_id = str(entry.get("boot_id", ""))
            if entry["event"] == "begin":
                standing.setdefault(setting, Standing(change, boot_id))
                continue
            first = standing.pop(setting, Standing(change, boot_id)).change
            joined = change._replace(before=first.before)
            if joined.before != joined.after:
                standing[setting] = Standing(joined, boot_id)
        return list(standing.values())

    def kept_files(self) -> list[KeptFile]:
        """The files that hostprep changed and has not put back, newest last."""
        kept: dict[str, KeptFile] = {}
        for entry in self._entries():
            if entry["event"] != "file":
                continue
            path, now = entry["path"], entry["digest"]
            before = kept.pop(path).before if path in kept else _file_from_json(entry["before"])
            if now != digest(before):
                kept[path] = KeptFile(path, before, now)
        return list(kept.values())

    def _entries(self) -> Iterator[dict[str, Any]]:
        try:
            with open(self.path, "rb") as f:
                lines = f.read().split(b"\n")
        except FileNotFoundError:
            return
        except OSError as e:
            raise StateError(f"{self.path}: {e.strerror}") from e
        torn = lines.pop()  # what a power cut left of a line that was never finished: nothing was done for it
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                if entry["event"] not in ("begin", "end", "file"):
                    raise ValueError(entry["event"])
            except (ValueError, TypeError, KeyError):
                if number == len(lines) and not torn:
                    return
                raise StateError(
                    f"{self.path}:{number}: damaged: hostprep cannot tell what it changed",
                    "Nothing is taken back on a guess. Mend or remove that line, then try again.",
                ) from None
            yield entry

    def _append(self, entries: Iterable[dict[str, Any]]) -> None:
        text = "".join(json.dumps({**entry, "boot_id": self.boot_id}) + "\n" for entry in entries)
        if not text:
            return
        try:
            new = not os.path.exists(self.path)
            fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                _end_torn_line(fd)
                data = text.encode()
                if os.write(fd, data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(fd)
            finally:
                os.close(fd)
            if new:
                files.sync_directory(os.path.dirname(self.path))
        except OSError as e:
            raise StateError(
                f"{self.path}: {e.strerror}: what cannot be journalled is not changed", "Make room, then try again."
            ) from e


def digest(state: FileState) -> str:
    """Identifies a file by content, kind, mode and owner."""
    head = f"{state.kind} {state.mode:o} {state.uid} {state.gid}\n" if state != ABSENT else "absent\n"
    return hashlib.sha256(head.encode() + state.data).hexdigest()


def _end_torn_line(fd: int) -> None:
    """Cut off what a power cut left of an unfinished line, so that the next entry starts on its own."""
    size = os.fstat(fd).st_size
    if not size or os.pread(fd, 1, size - 1) == b"\n":
        return
    data = os.pread(fd, size, 0)
    os.ftruncate(fd, data.rfind(b"\n") + 1)


def _change_to_json(change: Change) -> dict[str, Any]:
    return {
        **change._asdict(),
        "facet": change.facet.value,
        "before": to_json(change.before),
        "after": to_json(change.after),
    }


def _change_from_json(entry: dict[str, Any]) -> Change:
    before, after = from_json(entry["before"]), from_json(entry["after"])
    return Change(entry["check"], entry["key"], Facet(entry["facet"]), before, after)  # type: ignore[arg-type]  # never Unknown: a change has values


def _file_to_json(state: FileState) -> dict[str, Any]:
    return {**state._asdict(), "data": base64.b64encode(state.data).decode()}


def _file_from_json(data: dict[str, Any]) -> FileState:
    return FileState(**{**data, "data": base64.b64decode(data["data"])})
