"""What hostprep changed: one JSON object a line, on disk before the change is made.

    {"event": "begin", ...change}    about to make it
    {"event": "end",   ...change}    what the host read afterwards
    {"event": "remark", ...change}   what a tool said meanwhile that no later look shows
    {"event": "left",  ...change}    a revert has left it as it is: nothing takes it back
    {"event": "file",  ...}          a file about to be written: as it was, and the digest of what it becomes;
                                     without `before`: what it is now, when the writing is over
    {"event": "reboot", ...}         about to reboot, and the settings that wait for it

Joined end to end, the entries say how the host differs from the one we found. The journal is kept after
everything was taken back: it is the history of the host.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from hostprep import files
from hostprep.errors import StateError
from hostprep.host import FileState
from hostprep.model import Change, Facet, Finding, Reading, Status, Value, from_json, to_json

POWER_CYCLE = "power-cycle"  # a remark: the tool says that a reboot does not make the change effective


class Cause(NamedTuple):
    """A setting that a reboot is for: what it is now, and what it is to be after."""

    check: str
    key: str
    current: Reading
    next_boot: Reading


class Standing(NamedTuple):
    """A change that stands, and the boot in which it was last touched.

    `begun` is the change of this setting that we were cut off in: how far it got, only the host can tell.
    """

    change: Change
    boot_id: str
    begun: Change | None = None
    remark: str = ""  # what a tool said of it that no later look shows: `power-cycle`
    final: str = ""  # why revert cannot take it back

    def left(self, reading: Reading) -> bool:
        """Is this what hostprep may have left behind?"""
        return reading == self.change.after or (self.begun is not None and _on_the_way(reading, self.begun))


class KeptFile(NamedTuple):
    """A file as it was before hostprep first wrote it.

    `ours` are the digests that it has if only hostprep wrote it since; None while a foreign tool (update-grub) was
    writing it: then whatever is there is its work. Empty when somebody else wrote in between.
    """

    path: str
    before: FileState
    ours: frozenset[str] | None


class Journal:
    """The journal of one host; `boot_id` tells which boot an entry belongs to."""

    def __init__(self, path: str, boot_id: str = "") -> None:
        self.path = path
        self.boot_id = boot_id

    def begin(self, changes: Iterable[Change], final: Mapping[Change, str] | None = None) -> None:
        final = final or {}
        self._append({"event": "begin", **_change_to_json(c), "final": final.get(c, "")} for c in changes)

    def end(self, changes: Iterable[Change], final: Mapping[Change, str] | None = None) -> None:
        final = final or {}
        self._append({"event": "end", **_change_to_json(c), "final": final.get(c, "")} for c in changes)

    def remark(self, change: Change, word: str) -> None:
        """What a tool said of a change that has begun; kept also where the host cannot be read afterwards."""
        self._append([{"event": "remark", **_change_to_json(change), "remark": word}])

    def leave(self, changes: Iterable[Change]) -> None:
        """What cannot be taken back stays as it is, and is not asked for again."""
        self._append({"event": "left", **_change_to_json(c)} for c in changes)

    def keep(self, path: str, before: FileState, after: FileState | None) -> None:
        """A file is about to change."""
        entry = {"event": "file", "path": path, "before": _file_to_json(before), "digest": after and digest(after)}
        self._append([entry])

    def settle(self, path: str, now: FileState) -> None:
        """A file is this now, and nobody is writing it any more. As it was at first: there is nothing to take back."""
        self._append([{"event": "file", "path": path, "before": None, "digest": digest(now)}])

    def rebooting(self, causes: Iterable[Cause]) -> None:
        """This host is about to be rebooted for these settings."""
        told = [{**c._asdict(), "current": to_json(c.current), "next_boot": to_json(c.next_boot)} for c in causes]
        self._append([{"event": "reboot", "causes": told}])

    def rebooted_for(self) -> set[Cause]:
        """What hostprep has rebooted this host for, and has not set anew since. Another boot than that has come."""
        known: set[Cause] = set()
        for entry in self._entries():
            if entry["event"] == "reboot":
                known |= set(entry["causes"]) if entry["boot_id"] != self.boot_id else set()
            elif entry["event"] == "begin":
                known = {c for c in known if (c.check, c.key) != entry["change"][:2]}
        return known

    def standing(self) -> list[Standing]:
        """How the host differs from the host we found, newest difference last.

        Changes of one setting are joined end to end, so a change and its undo leave nothing.
        A begin without an end (we were cut off) counts as done, as far as the host then shows it.
        """
        standing: dict[tuple[str, str, Facet], Standing] = {}
        for entry in self._entries():
            if entry["event"] in ("file", "reboot"):
                continue
            change: Change = entry["change"]
            setting = (change.check, change.key, change.facet)
            if entry["event"] == "remark":
                if setting in standing:
                    standing[setting] = standing[setting]._replace(remark=entry["remark"])
                continue
            first = standing.pop(setting, None)
            if entry["event"] == "left":
                continue
            joined = change if first is None else change._replace(before=origin(first, change.before))
            if entry["event"] == "begin":
                if joined.before == joined.after:  # cut off while undoing counts as not undone
                    joined = joined._replace(after=change.before)
                standing[setting] = Standing(joined, entry["boot_id"], begun=change, final=entry["final"])
            elif joined.before != joined.after:
                said = first.remark if first is not None and first.begun else ""
                standing[setting] = Standing(joined, entry["boot_id"], remark=said, final=entry["final"])
        return list(standing.values())

    def kept_files(self) -> list[KeptFile]:
        """The files that hostprep changed and has not put back, newest last."""
        kept: dict[str, KeptFile] = {}
        for entry in self._entries():
            if entry["event"] != "file":
                continue
            path, before, now = entry["path"], entry["before"], entry["digest"]
            known = kept.get(path)
            if before is None:
                if known is None or now == digest(known.before):
                    kept.pop(path, None)
                elif known.ours is None or known.ours:
                    kept[path] = known._replace(ours=frozenset({now, digest(known.before)}))
                continue
            first = before if known is None else known.before
            if known is not None and known.ours is not None and digest(before) not in known.ours:
                kept[path] = known._replace(ours=frozenset())
            else:
                ours = None if now is None else frozenset({now, digest(before), digest(first)})
                kept[path] = KeptFile(path, first, ours)
        return list(kept.values())

    def _entries(self) -> Iterator[dict[str, Any]]:
        try:
            if os.geteuid() == 0 and (why := files.untrusted(self.path)):
                hint = "It tells root what to write where. If nobody else wrote it: chown root: and chmod 600."
                raise StateError(f"{self.path} is not safe to use: {why}", hint)
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(fd, "rb") as f:
                lines = f.read().split(b"\n")
        except FileNotFoundError:
            return
        except OSError as e:
            raise StateError(f"{self.path}: {e.strerror}") from e
        lines.pop()  # what a power cut left of a line that was never finished: nothing was done for it
        for number, line in enumerate(lines, start=1):
            try:
                entry = _parsed(json.loads(line))
            except (ValueError, TypeError, KeyError):
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
            hint = "Make room, then try again." if e.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT) else ""
            raise StateError(f"{self.path}: {e.strerror}: what cannot be journalled is not changed", hint) from e


def digest(state: FileState) -> str:
    """Identifies a file by content, kind, mode and owner. Links have no mode of their own."""
    mode = 0o777 if state.kind == "link" else state.mode
    head = f"{state.kind} {mode:o} {state.uid} {state.gid}\n" if state.kind != "absent" else "absent\n"
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


def _parsed(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry with its values as they are in memory. ValueError, TypeError or KeyError on what is no entry."""
    event = entry["event"]
    if event == "file":
        before = None if entry["before"] is None else _file_from_json(entry["before"])
        return {"event": event, "path": str(entry["path"]), "before": before, "digest": entry["digest"]}
    if event == "reboot":
        causes = [
            Cause(c["check"], c["key"], from_json(c["current"]), from_json(c["next_boot"])) for c in entry["causes"]
        ]
        return {"event": event, "causes": causes, "boot_id": str(entry.get("boot_id", ""))}
    if event not in ("begin", "end", "remark", "left"):
        raise ValueError(event)
    ends = (from_json(entry["before"]), from_json(entry["after"]))
    change = Change(entry["check"], entry["key"], Facet(entry["facet"]), *ends)  # type: ignore[arg-type]  # never Unknown: a change has values
    words = {name: str(entry.get(name, "")) for name in ("boot_id", "remark", "final")}
    return {"event": event, "change": change, **words}


def recalled(finding: Finding, standing: Iterable[Standing], boot_id: str) -> Finding:
    """A finding that waits for a reboot, in the light of what was done: is a reboot enough?

    What hostprep has set, and a boot since then has not brought, is never waited for by yet another reboot: that is
    how hosts reboot without end (sriov-network-operator#1082, OCPBUGS-86028).
    """
    want = finding.desired
    if finding.status is not Status.PENDING or (
        want is not None and (want.waits or (want.live and not want.refused_now))
    ):
        return finding  # what can be had at once needs no boot at all; what waits for another does not wait for power
    setting = (finding.check, finding.key, Facet.NEXT_BOOT)
    for s in standing:
        if s.change[:3] != setting or s.change.after != finding.fact.next_boot:
            continue
        if boot_id and s.boot_id != boot_id:
            why = "This was set before the last boot, and that boot has not brought it: a reboot is not enough."
        elif s.remark == POWER_CYCLE:
            why = "The device says that a reboot is not enough for this."
        else:
            continue
        fix = "Power-cycle this host: off, and on again. A reboot, kexec or soft-reboot does not bring it."
        return finding._replace(status=Status.POWER_CYCLE, message=why, fix=fix)
    return finding


def origin(first: Standing, found: Value) -> Value:
    """What a setting was before us, when a further change found it at this value.

    Where somebody else has set it in between, what they set is what we found; but of a list to which they only
    added, what we took away is still ours to give back.
    """
    ours = first.change
    if first.left(found) or found == ours.before:
        return ours.before
    if isinstance(found, tuple) and isinstance(ours.before, tuple) and isinstance(ours.after, tuple):
        added = tuple(item for item in found if item not in ours.after)
        if len(found) - len(added) == len(ours.after):
            return (*ours.before, *(item for item in added if item not in ours.before))
    return found


def _on_the_way(reading: Reading, change: Change) -> bool:
    """Could a change that was cut off have got this far? Some of the pages, some of the swap devices."""
    before, after = change.before, change.after
    if reading in (before, after):
        return True
    if isinstance(reading, tuple) and isinstance(before, tuple) and isinstance(after, tuple):
        return set(before) & set(after) <= set(reading) <= set(before) | set(after)
    if isinstance(reading, int) and isinstance(before, int) and isinstance(after, int):
        return min(before, after) <= reading <= max(before, after)
    return False


def _file_to_json(state: FileState) -> dict[str, Any]:
    return {**state._asdict(), "data": base64.b64encode(state.data).decode()}


def _file_from_json(data: dict[str, Any]) -> FileState:
    return FileState(**{**data, "data": base64.b64decode(data["data"])})
