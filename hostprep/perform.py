"""Changing a host: compare and swap, journalled before, looked at after; and taking it back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from hostprep.engine import Checks, inspect
from hostprep.errors import ChangeFailed, HostprepError, StateError
from hostprep.host import FileState, Host
from hostprep.host.rehearsal import Rehearsal, Step
from hostprep.journal import Journal, KeptFile, Standing, digest, origin
from hostprep.judge import refusal, show
from hostprep.model import Change, Desired, Facet, Facts, Reading, Section, Unknown
from hostprep.registry import Check, Finish, Fixable, finisher, fixable

Progress = Callable[[str], None]


class Failure(NamedTuple):
    """A change that did not happen."""

    name: str  # check/key, or a file
    reason: str
    hint: str = ""


class _Batch(NamedTuple):
    """The changes of one check that were made together, and what their files were before."""

    check: Fixable
    todo: list[Change]
    written: dict[str, FileState]


class Performer:
    """Carries out changes on one host; what did not happen collects in `failures`."""

    def __init__(self, host: Host, checks: Checks, journal: Journal, progress: Progress) -> None:
        self.checks = checks
        self.journal = journal
        self.progress = progress
        self.failures: list[Failure] = []
        self._looking = host
        self._written: dict[str, FileState] = {}  # what the files of the batch in hand were before it
        self.host = host.keeping(self._keep)

    def _keep(self, path: str, before: FileState, after: FileState | None) -> None:
        self.journal.keep(path, before, after)
        self._written.setdefault(path, before)

    def perform(
        self, changes: Sequence[Change], sections: Mapping[str, Section] | None = None, allowed: Collection[str] = ()
    ) -> None:
        """Make changes of one facet. A check that fails is put back as it was, the others go on.

        With `sections`, every check decides again from a fresh look: a change which has become unsafe since it
        was planned is refused.
        """
        unfinished: dict[Finish | None, list[_Batch]] = {}
        try:
            for name in dict.fromkeys(c.check for c in changes):
                check = fixable(self.checks[name])
                assert check is not None
                section = None if sections is None else sections[name]
                todo = self._still_wanted(check, [c for c in changes if c.check == name], section, allowed)
                batch = self._make(check, todo) if todo else None
                if batch is None:
                    continue
                if todo[0].facet is Facet.NEXT_BOOT:
                    unfinished.setdefault(finisher(check), []).append(batch)
                else:
                    self._end(batch)
            while unfinished:
                finish = next(iter(unfinished))
                self._finish(finish, unfinished.pop(finish))
        except BaseException:  # a bug, or somebody at the keyboard: nothing stays half done
            for batch in (b for batches in unfinished.values() for b in batches[::-1]):
                self._put_back(batch.written)
            raise

    def _still_wanted(
        self, check: Check, batch: list[Change], section: Section | None, allowed: Collection[str]
    ) -> list[Change]:
        """Compare and swap: what is already so is skipped; what changed since, or became unsafe, is refused."""
        facts = self._facts(check)
        if isinstance(facts, Unknown):
            self.failures += [Failure(_name(c), f"cannot be read: {facts.reason}") for c in batch]
            return []
        goals: Mapping[str, Desired] = {} if section is None else check.decide(facts, section)
        todo = []
        for change in batch:
            now = _reading(facts, change)
            if now == change.after:
                continue
            if why := _obstacle(change, now) or refusal(change, goals.get(change.key), allowed):
                self.failures.append(Failure(_name(change), why))
            else:
                todo.append(change)
        return todo

    def _make(self, check: Fixable, todo: list[Change]) -> _Batch | None:
        """Make the changes of one check; None when that failed, and everything was put back."""
        batch = _Batch(check, todo, {})
        self._written = batch.written
        try:
            self.journal.begin(todo)
            for change in todo:
                self.progress(_sentence(change))
            check.apply(self.host, todo)
        except HostprepError as e:
            self._fail(todo, e)
            self._put_back(batch.written)
            self._end(batch)
            return None
        except BaseException:
            self._put_back(batch.written)
            raise
        return batch

    def _finish(self, finish: Finish | None, batches: list[_Batch]) -> None:
        """Run what makes written files count, once, and believe only what is then read back.

        When that fails for some checks, everything is put back, and the others are made again without them.
        """
        finished: dict[str, FileState] = {}
        self._written = finished
        failed: list[_Batch] = []
        try:
            if finish is not None:
                finish(self.host)
        except HostprepError as e:
            self._fail([change for batch in batches for change in batch.todo], e)
            failed = batches
        except BaseException:
            for written in (finished, *(b.written for b in batches[::-1])):
                self._put_back(written)
            raise
        else:
            failed = [batch for batch in batches if not self._reads(batch)]
        if failed:
            for written in (finished, *(b.written for b in batches[::-1])):
                self._put_back(written)
        self._settle(finished)
        for batch in batches:
            self._end(batch)
        sound = [batch for batch in batches if batch not in failed]
        if failed and (again := [made for batch in sound if (made := self._make(batch.check, batch.todo))]):
            self._finish(finish, again)

    def _reads(self, batch: _Batch) -> bool:
        """Does the next boot bring what was asked for?"""
        facts = self._facts(batch.check)
        for change in batch.todo:
            now = facts if isinstance(facts, Unknown) else _reading(facts, change)
            if now != change.after:
                why = f" ({now.reason})" if isinstance(now, Unknown) else ""
                reason = f"wanted {show(change.after)}, but the next boot still brings {show(now)}{why}"
                hint = f"Something else on this host decides it. hostprep explain {batch.check.NAME} says what is read."
                self._fail(batch.todo, ChangeFailed(f"{_name(change)}: {reason}", hint))
                return False
        return True

    def _fail(self, todo: Sequence[Change], e: HostprepError) -> None:
        self.failures.append(Failure(", ".join(_name(c) for c in todo), str(e), e.hint))

    def _put_back(self, written: Mapping[str, FileState]) -> None:
        """Nothing half done: files written for a change that failed become what they were before it.

        That is what an earlier apply made of them, where there was one. A journal that is full does not stop this:
        it was told before the change that these files are ours.
        """
        for path, before in reversed(list(written.items())):
            try:
                try:
                    self.host.restore(path, before)
                except StateError:
                    self._looking.restore(path, before)
            except HostprepError as e:
                self.failures.append(Failure(path, f"could not be put back: {e}", e.hint))

    def _end(self, batch: _Batch) -> None:
        """Journal what the host reads now. What cannot be read is left out and counts as done."""
        self._settle(batch.written)
        facts = self._facts(batch.check)
        if isinstance(facts, Unknown):
            return
        ended: list[Change] = []
        for change in batch.todo:
            now = _reading(facts, change)
            if isinstance(now, Unknown):
                continue
            ended.append(change._replace(after=now))
            if change.facet is Facet.CURRENT and now != change.after:
                self.progress(f"{_name(change)}: asked for {show(change.after)}, the running system has {show(now)}")
        try:
            self.journal.end(ended)
        except StateError as e:
            self._fail(batch.todo, e)

    def _settle(self, written: Iterable[str]) -> None:
        """Journal what the files have become, now that nobody is writing them any more."""
        try:
            for path in written:
                self.journal.settle(path, self._looking.state(path))
        except HostprepError as e:
            self.failures.append(Failure(path, str(e), e.hint))

    def _facts(self, check: Check) -> Facts | Unknown:
        return inspect(self._looking, {check.NAME: check})[check.NAME].facts


def converge(
    performer: Performer, approved: Sequence[Change], sections: Mapping[str, Section], allowed: Collection[str]
) -> None:
    """Make the approved changes, and no others: the running system first, then the next boot.

    A check whose live change failed is not made persistent: a reboot is still its undo.
    """
    performer.perform([c for c in approved if c.facet is Facet.CURRENT], sections, allowed)
    failed = {name.split("/")[0] for f in performer.failures for name in f.name.split(", ")}
    persistent = [c for c in approved if c.facet is Facet.NEXT_BOOT and c.check not in failed]
    performer.perform(persistent, sections, allowed)


def revert(performer: Performer) -> None:
    """Take back what the journal says hostprep changed, newest first, and only that.

    Files that nobody touched since become the same bytes, mode and owner again: first those that a tool generates
    from others (grub.cfg), so that being cut off here leaves what an apply knows how to go on from. Then comes what
    has no file: the running system, and settings whose file somebody else has edited meanwhile.
    """
    journal, host, failures = performer.journal, performer.host, performer.failures
    for path in _temporary(performer):
        host.discard_leftover(path)
    kept, foreign = _ours(performer)
    directories = [k for k in kept if host.state_kind(k.path) == "directory"]
    generated = [k for k in kept if _is_generated(performer.checks, k.path)]
    _restore(performer, generated)
    _restore(performer, [k for k in kept if k not in directories and k not in generated])
    clean = not foreign and not failures
    later = [s for s in _revertible(performer) if s.change.facet is Facet.NEXT_BOOT]
    stale = [s for s in later if not clean or not _has_generated(performer, s) or _stands(performer, s)]
    for finish in dict.fromkeys(f for s in stale if (f := finisher(performer.checks[s.change.check]))):
        try:
            finish(host)
        except HostprepError as e:
            failures.append(Failure("next boot", str(e), e.hint))
    by_hand = [] if clean else [s for s in later if _stands(performer, s)]
    _undo(performer, by_hand)
    if not any(_stands(performer, s) for s in by_hand):  # the tool no longer makes our values: its file as it was
        kept, _ = _ours(performer)
        _restore(performer, [k for k in kept if _is_generated(performer.checks, k.path)])
    tried = {s.change[:3] for s in by_hand}
    left = [s for s in _revertible(performer) if s.change[:3] not in tried]
    if clean:  # all files are as they were: what is read now is not ours
        journal.end(
            [s.change.inverse() for s in left if s in later and _has_generated(performer, s) and _other(performer, s)]
        )
        left = [s for s in left if s in journal.standing()]
    _undo(performer, [s for s in left if s.change.facet is Facet.NEXT_BOOT])
    for s in left:  # one by one: a pool of the host and that of its only node are the same pages
        if s.change.facet is Facet.CURRENT:
            _undo(performer, [s])
    _restore(performer, directories)
    standing = journal.standing()
    told = {name for f in failures for name in f.name.split(", ")}
    for s in standing:
        if _name(s.change) not in told:
            reason = f"asked for {show(s.change.before)}, the host still has {show(s.change.after)}"
            failures.append(Failure(_name(s.change), reason, "Something uses it. Stop that, then revert again."))
    for k in foreign:
        performer.progress(f"{k.path}: somebody else changed it since; only hostprep's own settings were taken back")
        if not standing:
            journal.settle(k.path, k.before)  # what is left in it is theirs


def _temporary(performer: Performer) -> list[str]:
    """The files beside which a killed hostprep may have left what was to become the new one."""
    generated = [path for check in performer.checks.values() for path in getattr(check, "GENERATED", ())]
    return list(dict.fromkeys([*(k.path for k in performer.journal.kept_files()), *generated]))


def _ours(performer: Performer) -> tuple[list[KeptFile], list[KeptFile]]:
    """The kept files, newest first: those as hostprep left them, and those that somebody else has written since."""
    ours: list[KeptFile] = []
    foreign: list[KeptFile] = []
    for k in performer.journal.kept_files()[::-1]:
        try:
            (ours if _untouched(performer.host, k) else foreign).append(k)
        except HostprepError as e:
            performer.failures.append(Failure(k.path, str(e), e.hint))
    return ours, foreign


def _untouched(host: Host, k: KeptFile) -> bool:
    """Is the file as hostprep left it, or as it was (we were cut off before writing, or somebody was faster)?"""
    now = host.state(k.path)
    return k.ours is None or digest(now) in k.ours or digest(now) == digest(k.before)


def _restore(performer: Performer, kept: Iterable[KeptFile]) -> None:
    for k in kept:
        try:
            if performer.host.state(k.path) != k.before:
                if performer.host.state_kind(k.path) == "directory" and performer.host.names(k.path):
                    performer.progress(f"{k.path}: stays, since others use it now")
                else:
                    performer.progress(f"{k.path}: as it was")
                    performer.host.restore(k.path, k.before)
            performer.journal.settle(k.path, k.before)
        except HostprepError as e:
            performer.failures.append(Failure(k.path, str(e), e.hint))


def _is_generated(checks: Checks, path: str) -> bool:
    """Is it made by a tool from other files (grub.cfg)?"""
    return any(path in getattr(check, "GENERATED", ()) for check in checks.values())


def _has_generated(performer: Performer, s: Standing) -> bool:
    return hasattr(performer.checks[s.change.check], "GENERATED")


def _revertible(performer: Performer) -> list[Standing]:
    """What stands, newest first. What this hostprep has no check for is a failure, once."""
    known = []
    for s in reversed(performer.journal.standing()):
        check = performer.checks.get(s.change.check)
        if check is not None and fixable(check) is not None:
            known.append(s)
        elif not any(f.name == _name(s.change) for f in performer.failures):
            performer.failures.append(Failure(_name(s.change), "this hostprep has no check of that name"))
    return known


def _undo(performer: Performer, standing: Iterable[Standing]) -> None:
    """Perform the inverse of what still stands, from what the host reads if that is ours, all of it together."""
    inverses = []
    for s in standing:
        now = _now(performer, s)
        rebooted = s.change.facet is Facet.CURRENT and s.boot_id != performer.journal.boot_id
        replaced = rebooted and not isinstance(now, Unknown) and not s.left(now)
        if now == s.change.before or replaced:
            performer.journal.end([s.change.inverse()])
        elif s.left(now) and not isinstance(now, Unknown):
            inverses.append(s.change.inverse()._replace(before=now))
        elif not isinstance(now, Unknown) and (found := origin(s, now)) != now:  # others only added to a list
            inverses.append(s.change._replace(before=now, after=found))
        else:
            inverses.append(s.change.inverse())
    performer.perform(inverses)


def _stands(performer: Performer, s: Standing) -> bool:
    """Does the host read a value of ours, or can that not be told?"""
    now = _now(performer, s)
    return isinstance(now, Unknown) or (now != s.change.before and s.left(now))


def _other(performer: Performer, s: Standing) -> bool:
    """Does the host read a value that is surely not ours?"""
    now = _now(performer, s)
    return not isinstance(now, Unknown) and not s.left(now)


def _now(performer: Performer, s: Standing) -> Reading:
    facts = performer._facts(performer.checks[s.change.check])
    return facts if isinstance(facts, Unknown) else _reading(facts, s.change)


def _reading(facts: Facts, change: Change) -> Reading:
    fact = facts.get(change.key)
    return None if fact is None else fact.side(change.facet)


def _obstacle(change: Change, now: Reading) -> str:
    if isinstance(now, Unknown):
        return f"cannot be read: {now.reason}"
    if now != change.before:
        return (
            f"expected {show(change.before)}, found {show(now)}: somebody else changed it, so hostprep leaves it alone"
        )
    return ""


def _name(change: Change) -> str:
    return f"{change.check}/{change.key}"


def _sentence(change: Change) -> str:
    when = "now" if change.facet is Facet.CURRENT else "next boot"
    return f"{_name(change)}: {show(change.before)} -> {show(change.after)} ({when})"


def rehearse_revert(host: Host, checks: Checks, journal: Journal) -> tuple[list[Change], list[Step], list[str]]:
    """What revert would do: the changes taken back, the steps, and the files that somebody else has changed since."""
    rehearsal = Rehearsal(host)
    ours, foreign = _ours(Performer(host, checks, journal, lambda line: None))
    for k in ours:
        if k.before.kind != "absent" or host.state_kind(k.path) != "directory":
            rehearsal.restore(k.path, k.before)
    changes = [s.change.inverse() for s in reversed(journal.standing()) if s.change.check in checks]
    later = [c for c in changes if c.facet is Facet.NEXT_BOOT]
    for finish in dict.fromkeys(f for c in later if (f := finisher(checks[c.check]))):
        finish(rehearsal)
    for change in changes:
        check = fixable(checks[change.check])
        if check is not None and change.facet is Facet.CURRENT:
            check.apply(rehearsal, [change])
    return changes, rehearsal.steps, [k.path for k in foreign]
