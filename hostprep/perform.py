"""Changing a host: compare and swap, journalled before, looked at after; and taking it back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from hostprep.engine import Checks, inspect
from hostprep.errors import ChangeFailed, HostError, HostprepError
from hostprep.host import FileState, Host
from hostprep.host.rehearsal import Rehearsal, Step
from hostprep.journal import Journal, KeptFile, Standing, digest
from hostprep.judge import refusal, show
from hostprep.model import Change, Desired, Facet, Facts, Reading, Section, Unknown
from hostprep.registry import Check, Finish, Fixable, finisher, fixable

Progress = Callable[[str], None]


class Failure(NamedTuple):
    """A change that did not happen."""

    name: str  # check/key, or a file
    reason: str
    hint: str = ""


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
        finishing: dict[Finish, list[tuple[Fixable, list[Change]]]] = {}
        written: dict[Finish, dict[str, FileState]] = {}
        for name in dict.fromkeys(c.check for c in changes):
            check = fixable(self.checks[name])
            assert check is not None
            section = None if sections is None else sections[name]
            todo = self._still_wanted(check, [c for c in changes if c.check == name], section, allowed)
            if not todo:
                continue
            finish = finisher(check) if todo[0].facet is Facet.NEXT_BOOT else None
            self._written = {}
            self.journal.begin(todo)
            for change in todo:
                self.progress(_sentence(change))
            try:
                check.apply(self.host, todo)
            except HostprepError as e:
                self._fail(todo, e)
                self._put_back(self._written)
                self._end(check, todo)
                continue
            if finish:
                finishing.setdefault(finish, []).append((check, todo))
                written.setdefault(finish, {}).update(self._written)
            else:
                self._end(check, todo)
        for finish, batches in finishing.items():
            self._finish(finish, batches, written[finish])

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

    def _finish(
        self, finish: Finish, batches: list[tuple[Fixable, list[Change]]], written: dict[str, FileState]
    ) -> None:
        """Run what makes written files count, once, and believe only what is then read back."""
        self._written = written
        try:
            finish(self.host)
            for check, todo in batches:
                self._must_read(check, todo)
        except HostprepError as e:
            self._fail([change for _, todo in batches for change in todo], e)
            self._put_back(self._written)
        for check, todo in batches:
            self._end(check, todo)

    def _must_read(self, check: Check, todo: Sequence[Change]) -> None:
        facts = self._facts(check)
        for change in todo:
            now = facts if isinstance(facts, Unknown) else _reading(facts, change)
            if now != change.after:
                why = f" ({now.reason})" if isinstance(now, Unknown) else ""
                raise ChangeFailed(
                    f"{_name(change)}: wanted {show(change.after)}, but the next boot still brings {show(now)}{why}",
                    f"Something else on this host decides it. hostprep explain {check.NAME} says what is read.",
                )

    def _fail(self, todo: Sequence[Change], e: HostprepError) -> None:
        self.failures.append(Failure(", ".join(_name(c) for c in todo), str(e), e.hint))

    def _put_back(self, written: Mapping[str, FileState]) -> None:
        """Nothing half done: files written for a change that failed become what they were."""
        for path, before in reversed(list(written.items())):
            try:
                self.host.restore(path, before)
            except HostprepError as e:
                self.failures.append(Failure(path, f"could not be put back: {e}", e.hint))

    def _end(self, check: Check, todo: Sequence[Change]) -> None:
        """Journal what the host reads now. What cannot be read is left out and counts as done."""
        facts = self._facts(check)
        if isinstance(facts, Unknown):
            return
        ended = [(change, _reading(facts, change)) for change in todo]
        self.journal.end([c._replace(after=now) for c, now in ended if not isinstance(now, Unknown)])

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

    Files that nobody touched since become the same bytes, mode and owner again. Then comes what has no file:
    the running system, and settings whose file somebody else has edited meanwhile.
    """
    journal, host = performer.journal, performer.host
    standing = journal.standing()
    kept = journal.kept_files()[::-1]
    ours = [k for k in kept if _untouched(host, k)]
    generated = [k for k in ours if _is_generated(performer.checks, k.path)]
    directories = [k for k in ours if host.state_kind(k.path) == "directory"]
    _restore(performer, [k for k in ours if k not in generated and k not in directories])
    later = [s for s in standing if s.change.facet is Facet.NEXT_BOOT]
    for finish in dict.fromkeys(f for s in later if (f := finisher(performer.checks[s.change.check]))):
        try:
            finish(host)
        except HostprepError as e:
            performer.failures.append(Failure("next boot", str(e), e.hint))
    _restore(performer, generated)
    for facet in (Facet.NEXT_BOOT, Facet.CURRENT):
        todo = [s for s in reversed(standing) if s.change.facet is facet and not _gone(performer, s)]
        performer.perform([s.change.inverse() for s in todo])
    _restore(performer, directories)
    for k in kept:
        host.discard_leftover(k.path)
        if k not in ours:
            performer.progress(
                f"{k.path}: somebody else changed it since; only hostprep's own settings were taken back"
            )


def _restore(performer: Performer, kept: Iterable[KeptFile]) -> None:
    for k in kept:
        try:
            if performer.host.state(k.path) != k.before:
                performer.progress(f"{k.path}: as it was")
                performer.host.restore(k.path, k.before)
            elif k.digest != digest(k.before):
                performer.journal.keep(k.path, k.before, k.before)  # written ahead, never made
        except HostprepError as e:
            if k.before.kind == "absent" and performer.host.state_kind(k.path) == "directory":
                performer.journal.keep(k.path, k.before, k.before)  # others use it now
            else:
                performer.failures.append(Failure(k.path, str(e), e.hint))


def _untouched(host: Host, k: KeptFile) -> bool:
    """Is the file still as hostprep left it (or as it was, when we were cut off before writing)?"""
    try:
        return k.digest is None or digest(host.state(k.path)) in (k.digest, digest(k.before))
    except HostError:
        return False


def _is_generated(checks: Checks, path: str) -> bool:
    """Is it made by a tool from other files (grub.cfg)? Then it is put back last, over what the tool makes now."""
    return any(path in getattr(check, "GENERATED", ()) for check in checks.values())


def _gone(performer: Performer, s: Standing) -> bool:
    """Close what no longer stands: it reads as it did before us, or a reboot has replaced a live value of ours."""
    check = performer.checks[s.change.check]
    facts = performer._facts(check)
    now = facts if isinstance(facts, Unknown) else _reading(facts, s.change)
    rebooted = s.change.facet is Facet.CURRENT and s.boot_id != performer.journal.boot_id
    if now == s.change.before or (rebooted and not isinstance(now, Unknown) and now != s.change.after):
        performer.journal.end([s.change.inverse()])
        return True
    return False


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
    kept = journal.kept_files()[::-1]
    ours = [k for k in kept if _untouched(host, k)]
    for k in ours:
        if k.before.kind != "absent" or host.state_kind(k.path) != "directory":
            rehearsal.restore(k.path, k.before)
    changes = [s.change.inverse() for s in reversed(journal.standing())]
    later = [c for c in changes if c.facet is Facet.NEXT_BOOT]
    for finish in dict.fromkeys(f for c in later if (f := finisher(checks[c.check]))):
        finish(rehearsal)
    for change in changes:
        check = fixable(checks[change.check])
        if check is not None and change.facet is Facet.CURRENT:
            check.apply(rehearsal, [change])
    return changes, rehearsal.steps, [k.path for k in kept if k not in ours]
