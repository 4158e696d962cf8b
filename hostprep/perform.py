"""Changing a host: compare and swap, journalled before, looked at after."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from hostprep.engine import Checks, disturbed, disturbs, inspect
from hostprep.errors import ChangeFailed, HostprepError, StateError
from hostprep.host import FileState, Host
from hostprep.journal import Journal
from hostprep.judge import refusal, show
from hostprep.model import Change, Desired, Facet, Facts, Reading, Section, Unknown
from hostprep.registry import Check, Finish, Fixable, finisher, fixable, guarding

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
        self._sections: Mapping[str, Section] = {}
        self._seen: dict[str, Facts | Unknown] = {}
        self._final: dict[Change, str] = {}  # why what is being done cannot be taken back
        self._looking = host
        self._written: dict[str, FileState] = {}  # what the files of the batch in hand were before it
        self.host = host.keeping(self._keep, journal.remark, progress)

    def _keep(self, path: str, before: FileState, after: FileState | None) -> None:
        self.journal.keep(path, before, after)
        self._written.setdefault(path, before)

    def perform(
        self,
        changes: Sequence[Change],
        sections: Mapping[str, Section] | None = None,
        allowed: Collection[str] = (),
        beside_jobs: bool = False,
    ) -> None:
        """Make changes of one facet. A check that fails is put back as it was, the others go on.

        With `sections`, every check decides again from a fresh look: a change which has become unsafe since it
        was planned is refused. So is a live one while jobs, containers or VMs run, unless `beside_jobs`.
        """
        self._sections = sections or {}
        self.forget()
        unfinished: dict[Finish | None, list[_Batch]] = {}
        try:
            for name in dict.fromkeys(c.check for c in changes):
                check = fixable(self.checks[name])
                assert check is not None
                section = None if sections is None else sections[name]
                todo = self._still_wanted(check, [c for c in changes if c.check == name], section, allowed)
                if todo and todo[0].facet is Facet.CURRENT and not beside_jobs and name not in allowed:
                    todo = self._undisturbing(todo, can_be_allowed=section is not None)
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
            self.forget()
        except BaseException:  # a bug, or somebody at the keyboard: nothing stays half done
            for batch in (b for batches in unfinished.values() for b in batches[::-1]):
                self._put_back(batch.written)
            raise

    def _still_wanted(
        self, check: Check, batch: list[Change], section: Section | None, allowed: Collection[str]
    ) -> list[Change]:
        """Compare and swap: what is already so is skipped; what changed since, or became unsafe, is refused."""
        facts = self.facts(check)
        if isinstance(facts, Unknown):
            self.failures += [Failure(name_of(c), f"cannot be read: {facts.reason}") for c in batch]
            return []
        goals: Mapping[str, Desired] = {} if section is None else check.decide(facts, section)
        self._final |= {c: goals[c.key].final for c in batch if c.key in goals}
        todo = []
        for change in batch:
            now = reading_of(facts, change)
            if now == change.after:
                continue
            why = _obstacle(change, now) or refusal(change, goals.get(change.key), allowed)
            if why or (section is None and (why := _disrupts(check, facts, change))):
                self.failures.append(Failure(name_of(change), why))
            else:
                todo.append(change)
        return todo

    def _undisturbing(self, todo: list[Change], can_be_allowed: bool) -> list[Change]:
        """The live changes of one check, if nothing runs here that they could disturb: it may have started just now."""
        if not (running := disturbed(self._looking)):
            return todo
        why = disturbs(running, todo[0].check if can_be_allowed else "")
        hint = "" if can_be_allowed else "Let it end, or stop it, then try again."
        self.failures += [Failure(name_of(c), why, hint) for c in todo]
        return []

    def _make(self, check: Fixable, todo: list[Change]) -> _Batch | None:
        """Make the changes of one check; None when that failed, and everything was put back."""
        batch = _Batch(check, todo, {})
        self._written = batch.written
        halves = {s.change[:3]: s.final for s in self.journal.standing() if s.final and s.begun}
        try:
            self.journal.begin(todo, self._final)
        except StateError as e:  # nothing was tried, so there is nothing to put back, and no end to tell
            self._fail(todo, e)
            return None
        try:
            for change in todo:
                self.progress(_sentence(change))
            check.apply(self.host, todo)
        except HostprepError as e:
            self._put_back(batch.written)
            self._fail(self._not_made(batch), e)
            if todo[0].facet is Facet.CURRENT:
                self._undo(batch)
            now = e.stays if isinstance(e, ChangeFailed) else ""
            self._end(batch, {c: left for c in todo if (left := now or halves.get(c[:3], ""))})
            return None
        except BaseException:
            self._put_back(batch.written)
            raise
        return batch

    def _not_made(self, batch: _Batch) -> list[Change]:
        """Of a batch that failed what is not as wanted: of two cards one may have taken it, and keeps it.

        In the running system all of it is undone.
        """
        facts = self.facts(batch.check) if batch.todo[0].facet is Facet.NEXT_BOOT else Unknown("is undone")
        if isinstance(facts, Unknown):
            return batch.todo
        return [c for c in batch.todo if reading_of(facts, c) != c.after] or batch.todo

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
        facts = self.facts(batch.check)
        for change in batch.todo:
            now = facts if isinstance(facts, Unknown) else reading_of(facts, change)
            if now != change.after:
                why = f" ({now.reason})" if isinstance(now, Unknown) else ""
                reason = f"wanted {show(change.after)}, but the next boot still brings {show(now)}{why}"
                hint = f"Something else on this host decides it. hostprep explain {batch.check.NAME} says what is read."
                self._fail(batch.todo, ChangeFailed(f"{name_of(change)}: {reason}", hint))
                return False
        return True

    def _fail(self, todo: Sequence[Change], e: HostprepError) -> None:
        self.failures.append(Failure(", ".join(name_of(c) for c in todo), str(e), e.hint))

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

    def _undo(self, batch: _Batch) -> None:
        """Nothing half done: what a failed batch has changed in the running system goes back to what it was."""
        facts = self.facts(batch.check)
        if isinstance(facts, Unknown):
            return
        found = [(change, reading_of(facts, change)) for change in batch.todo]
        back = [
            change._replace(before=now, after=change.before)
            for change, now in found
            if not isinstance(now, Unknown) and now != change.before
        ]
        try:
            if back:
                batch.check.apply(self.host, back)
        except HostprepError as e:
            self.failures.append(Failure(", ".join(name_of(c) for c in back), f"could not be put back: {e}", e.hint))

    def _end(self, batch: _Batch, halves: Mapping[Change, str] | None = None) -> None:
        """Journal what the host reads now. What cannot be read is left out and counts as done.

        So is what was left half done that nothing takes back (`halves`, by change): revert has to name it.
        """
        self._settle(batch.written)
        halves = halves or {}
        try:
            self.journal.begin(halves, halves)
        except StateError as e:
            self._fail(list(halves), e)
        facts = self.facts(batch.check)
        if isinstance(facts, Unknown):
            return
        ended: list[Change] = []
        final: dict[Change, str] = {}
        for change in batch.todo:
            now = reading_of(facts, change)
            if isinstance(now, Unknown) or (change in halves and now != change.after):
                continue
            ended.append(change._replace(after=now))
            final[ended[-1]] = self._final.get(change, "")
            if change.facet is Facet.CURRENT and now != change.after:
                self.progress(f"{name_of(change)}: asked for {show(change.after)}, the running system has {show(now)}")
        try:
            self.journal.end(ended, final)
        except StateError as e:
            self._fail(batch.todo, e)

    def _settle(self, written: Iterable[str]) -> None:
        """Journal what the files have become, now that nobody is writing them any more."""
        try:
            for path in written:
                self.journal.settle(path, self._looking.state(path))
        except HostprepError as e:
            self.failures.append(Failure(path, str(e), e.hint))

    def seen(self, check: Check) -> Facts | Unknown:
        """What a check saw since the last change: one look at a card may take a second."""
        if check.NAME not in self._seen:
            self._seen[check.NAME] = self.facts(check)
        return self._seen[check.NAME]

    def forget(self) -> None:
        """Something is about to change, or has."""
        self._seen.clear()

    def facts(self, check: Check) -> Facts | Unknown:
        keys = [s.change.key for s in self.journal.standing() if s.change.check == check.NAME]
        return inspect(self._looking, {check.NAME: check}, sections=self._sections, keys=keys)[check.NAME].facts


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


def _disrupts(check: Check, facts: Facts, change: Change) -> str:
    """Who would be disturbed, where no profile has weighed it: on taking back, and at boot."""
    guard = guarding(check)
    return "" if guard is None or change.facet is Facet.NEXT_BOOT else guard.disrupts(facts, change)


def reading_of(facts: Facts, change: Change) -> Reading:
    """What the host reads on the side that a change is about."""
    fact = facts.get(change.key, facts.get("*"))
    return None if fact is None else fact.side(change.facet)


def _obstacle(change: Change, now: Reading) -> str:
    if isinstance(now, Unknown):
        return f"cannot be read: {now.reason}"
    if now != change.before:
        return (
            f"expected {show(change.before)}, found {show(now)}: somebody else changed it, so hostprep leaves it alone"
        )
    return ""


def name_of(change: Change) -> str:
    """`check/key`, as findings are named."""
    return f"{change.check}/{change.key}"


def _sentence(change: Change) -> str:
    when = "now" if change.facet is Facet.CURRENT else "next boot"
    return f"{name_of(change)}: {show(change.before)} -> {show(change.after)} ({when})"
