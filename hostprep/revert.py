"""Taking back what hostprep changed, and only that.

First the files. One that nobody else has written since becomes the same bytes, mode and owner again: those that a
tool generates from others (grub.cfg) before their sources, so that being cut off in between leaves what an apply knows
how to go on from. Then settings whose file somebody has edited meanwhile: there only hostprep's own part is taken back.
Then the running system, unless that would disturb somebody, and last the directories that hostprep made. What nothing
takes back (an installed driver) is named and left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from hostprep.engine import Checks, disturbed, disturbs
from hostprep.errors import HostprepError
from hostprep.host import Host
from hostprep.host.rehearsal import Rehearsal, Step
from hostprep.journal import Journal, KeptFile, Standing, digest, origin
from hostprep.judge import show
from hostprep.model import Change, Facet, Reading, Unknown
from hostprep.perform import Failure, Performer, name_of, reading_of
from hostprep.registry import finisher, fixable, recreating


class _Kept(NamedTuple):
    """The files that hostprep changed, newest first, by what may be done with them."""

    sources: list[KeptFile]
    generated: list[KeptFile]  # made by a tool from other files
    directories: list[KeptFile]
    foreign: list[KeptFile]  # somebody else has written them since


def revert(performer: Performer) -> list[str]:
    """Take back everything that stands. What could not be taken back is in the performer's failures.

    Returns the names of what is left, since nothing takes it back.
    """
    left = _leave(performer)
    for path in _paths(performer):
        try:
            performer.host.discard_leftover(path)
        except HostprepError as e:
            performer.failures.append(Failure(path, str(e), e.hint))
    kept = _kept(performer)
    _restore(performer, [*kept.generated, *kept.sources])
    clean = not kept.foreign and not performer.failures
    _finish(performer, clean)
    _take_back_next_boot(performer, clean)
    for group in _groups(performer.checks, _revertible(performer, Facet.CURRENT)):
        _undo(performer, group)
    _restore(performer, kept.directories)
    _tell_what_stands(performer)
    _let_go(performer, kept.foreign)
    return left


def rehearse(host: Host, checks: Checks, journal: Journal) -> tuple[list[Change], list[Step], list[str]]:
    """What revert would do: the changes taken back, the steps, and what is not hostprep's any more."""
    rehearsal, performer = Rehearsal(host), Performer(host, checks, journal, lambda line: None)
    kept = _kept(performer)
    known = [s for s in reversed(journal.standing()) if s.change.check in checks]
    final = [s for s in known if s.final]
    known = [s for s in known if not s.final]
    changes = [s.change.inverse() for s in known if _stands(performer, s)]
    foreign = [f"{k.path}: somebody else changed it since; its other content stays" for k in kept.foreign]
    sides = [(s.change.check, s.change.facet) for s in known]
    foreign += [
        f"{name_of(s.change)}: somebody else changed it since; it stays"
        for s in known
        # of several settings of a check one may be part of another (a pool, and that of its node)
        if _is_anothers(performer, s) and sides.count((s.change.check, s.change.facet)) == 1
    ]
    foreign += dict.fromkeys(_left_sentence(s) for s in final if s.begun or _now(performer, s) != s.change.before)
    for k in [*kept.generated, *kept.sources]:
        with contextlib.suppress(HostprepError):  # what cannot be done is told when it is done
            rehearsal.restore(k.path, k.before)
    later = [c for c in changes if c.facet is Facet.NEXT_BOOT]
    for finish in dict.fromkeys(f for c in later if (f := finisher(checks[c.check]))):
        with contextlib.suppress(HostprepError):
            finish(rehearsal)
    live = [s for s in known if s.change.inverse() in changes and s.change.facet is Facet.CURRENT]
    if live and (running := disturbed(host)):
        foreign.append(f"the running system would stay as it is: to change it {disturbs(running)}")
    for group in _groups(checks, live):
        check = fixable(checks[group[0].change.check])
        if check is not None:
            with contextlib.suppress(HostprepError):
                check.apply(rehearsal, [s.change.inverse() for s in group])
    return changes, rehearsal.steps, foreign


# -- files ----------------------------------------------------------------------------------------


def _paths(performer: Performer) -> list[str]:
    """The files beside which a killed hostprep may have left what was to become the new one."""
    generated = [path for check in performer.checks.values() for path in getattr(check, "GENERATED", ())]
    return list(dict.fromkeys([*(k.path for k in performer.journal.kept_files()), *generated]))


def _kept(performer: Performer) -> _Kept:
    kept = _Kept([], [], [], [])
    made = {path for check in performer.checks.values() for path in getattr(check, "GENERATED", ())}
    for k in performer.journal.kept_files()[::-1]:
        try:
            if not _untouched(performer.host, k):
                kept.foreign.append(k)
            elif performer.host.state_kind(k.path) == "directory":
                kept.directories.append(k)
            else:
                (kept.generated if k.path in made else kept.sources).append(k)
        except HostprepError as e:
            performer.failures.append(Failure(k.path, str(e), e.hint))
    return kept


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
                    performer.host.restore(k.path, k.before)
                    performer.progress(f"{k.path}: as it was")
            performer.journal.settle(k.path, k.before)
        except HostprepError as e:
            performer.failures.append(Failure(k.path, str(e), e.hint))
    performer.forget()


def _let_go(performer: Performer, foreign: Sequence[KeptFile]) -> None:
    """What somebody else has written since is theirs, once nothing of ours is left in it."""
    nothing_stands = not performer.journal.standing()
    for k in foreign:
        performer.progress(f"{k.path}: somebody else changed it since; only hostprep's own settings were taken back")
        if nothing_stands:
            performer.journal.settle(k.path, k.before)


# -- settings -------------------------------------------------------------------------------------


def _leave(performer: Performer) -> list[str]:
    """Let go of what nothing takes back; the names of what of it is still there."""
    left: dict[str, str] = {}
    for s in [s for s in performer.journal.standing() if s.final]:
        if s.change.check not in performer.checks or s.begun or _now(performer, s) != s.change.before:
            left[name_of(s.change)] = _left_sentence(s)
        performer.journal.leave([s.change])
    for sentence in left.values():
        performer.progress(sentence)
    return list(left)


def _left_sentence(s: Standing) -> str:
    what = f"{show(s.change.after)}{', begun and not finished' if s.begun else ''}"
    return f"left as it is: {name_of(s.change)}: {what}: {s.final}"


def _finish(performer: Performer, clean: bool) -> None:
    """Have restored files take effect, unless the generated ones were restored with them and show it."""
    stale = [
        s
        for s in _revertible(performer, Facet.NEXT_BOOT)
        if not clean or not _has_generated(performer, s) or _stands(performer, s)
    ]
    for finish in dict.fromkeys(f for s in stale if (f := finisher(performer.checks[s.change.check]))):
        try:
            finish(performer.host)
        except HostprepError as e:
            performer.failures.append(Failure("next boot", str(e), e.hint))
    performer.forget()


def _take_back_next_boot(performer: Performer, clean: bool) -> None:
    """Close what the restored files have taken back; take back by hand what is left in files that others edited."""
    later = _revertible(performer, Facet.NEXT_BOOT)
    by_hand = [] if clean else [s for s in later if _stands(performer, s)]
    _undo(performer, by_hand)
    if not any(_stands(performer, s) for s in by_hand):  # the tool no longer makes our values: its file as it was
        _restore(performer, _kept(performer).generated)
    if clean:  # all files are as they were: what is read now is not ours
        gone = [s for s in later if _has_generated(performer, s) and not _stands(performer, s)]
        performer.journal.end([s.change.inverse() for s in gone])
    tried = {s.change[:3] for s in by_hand}
    _undo(performer, [s for s in _revertible(performer, Facet.NEXT_BOOT) if s.change[:3] not in tried])


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


def _groups(checks: Checks, standing: Iterable[Standing]) -> Iterator[list[Standing]]:
    """What is taken back of the running system at once.

    One by one, as a rule: a pool of the host and that of its only node are the same pages. But all of a device whose
    settings come and go together: its VFs, and what they were set to.
    """
    together: dict[tuple[str, str], list[Standing]] = {}
    for s in standing:
        if recreating(checks[s.change.check]):
            together.setdefault((s.change.check, s.change.key.partition("/")[0]), []).append(s)
        else:
            yield [s]
    yield from together.values()


def _revertible(performer: Performer, facet: Facet) -> list[Standing]:
    """What stands on one side, newest first. What this hostprep has no check for is a failure, once."""
    known = []
    for s in reversed(performer.journal.standing()):
        check = performer.checks.get(s.change.check)
        if check is not None and fixable(check) is not None:
            known.append(s)
        elif not any(f.name == name_of(s.change) for f in performer.failures):
            performer.failures.append(Failure(name_of(s.change), "this hostprep has no check of that name"))
    return [s for s in known if s.change.facet is facet]


def _tell_what_stands(performer: Performer) -> None:
    """What was undone, and yet is there: somebody uses it."""
    told = {name for f in performer.failures for name in f.name.split(", ")}
    for s in performer.journal.standing():
        if name_of(s.change) not in told:
            reason = f"asked for {show(s.change.before)}, the host still has {show(s.change.after)}"
            hint = "Something uses it. Stop that, then revert again."
            performer.failures.append(Failure(name_of(s.change), reason, hint))


def _has_generated(performer: Performer, s: Standing) -> bool:
    return hasattr(performer.checks[s.change.check], "GENERATED")


def _stands(performer: Performer, s: Standing) -> bool:
    """Does the host read a value of ours, or can that not be told?"""
    now = _now(performer, s)
    return isinstance(now, Unknown) or (now != s.change.before and s.left(now))


def _is_anothers(performer: Performer, s: Standing) -> bool:
    """Does the host read a value that is surely neither ours nor what was before us?"""
    now = _now(performer, s)
    return not isinstance(now, Unknown) and not s.left(now) and now != s.change.before


def _now(performer: Performer, s: Standing) -> Reading:
    facts = performer.seen(performer.checks[s.change.check])
    return facts if isinstance(facts, Unknown) else reading_of(facts, s.change)
