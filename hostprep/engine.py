"""The straight line: profile -> facts -> findings -> plan -> changes -> findings again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from hostprep import jobs
from hostprep.errors import HostError, HostprepError
from hostprep.host import Host
from hostprep.host.process import gather
from hostprep.judge import brought, judge, plan, refusal, unanswered, weigh
from hostprep.model import (
    Change,
    Desired,
    Facet,
    Fact,
    Facts,
    Finding,
    Profile,
    Reading,
    Section,
    Unknown,
    from_json,
    to_json,
)
from hostprep.registry import Check, Finish, asking, finisher, fixable

if TYPE_CHECKING:
    from hostprep.host.rehearsal import Rehearsal, Step

DEADLINE = 30.0  # seconds for all checks together; below OpenPBS's hook alarm with what is needed around it

Checks = Mapping[str, Check]


class Answer(NamedTuple):
    """What one check saw, and the milliseconds it took."""

    facts: Facts | Unknown
    duration_ms: int


class Examination(NamedTuple):
    """One look at a host."""

    findings: list[Finding]
    answers: dict[str, Answer]


class Planned(NamedTuple):
    """One change as apply would make it; `refused` says why it will not be made."""

    change: Change
    desired: Desired | None
    refused: str
    allowed: bool = False  # may it disrupt?


class Batch(NamedTuple):
    """The changes of one check and one facet, and the steps that carry them out."""

    check: str
    facet: Facet
    planned: list[Planned]
    steps: list[Step]


# -- looking --------------------------------------------------------------------------------------


def inspect(
    host: Host,
    checks: Checks,
    deadline: float = DEADLINE,
    sections: Mapping[str, Section] | None = None,
    keys: Collection[str] = (),
) -> dict[str, Answer]:
    """Look at everything at once, each check in a child process of its own, under one deadline in seconds.

    What a check sees does not depend on a profile, but there are things without end (firmware parameters, files):
    of those it looks at what `sections` and `keys` (of facts) name.
    """
    works = [(name, _inspector(host, check, (sections or {}).get(name), keys)) for name, check in checks.items()]
    return {
        name: Answer(_facts(answer), round(seconds * 1000))
        for name, (answer, seconds) in gather(works, deadline).items()
    }


def _inspector(host: Host, check: Check, section: Section, keys: Collection[str]) -> Callable[[], bytes]:
    def work() -> bytes:
        try:
            told = asking(check)
            facts = check.inspect(host) if told is None else told.inspect(host, told.asked(section, keys))
            return _wire({key: [_plain(key, r) for r in (fact.current, fact.next_boot)] for key, fact in facts.items()})
        except HostError as e:
            return _wire(str(e))
        except Exception as e:  # noqa: BLE001  # a bug in one check must not hide what the others saw
            return _wire(f"bug in check {check.NAME}: {_where(e)}")

    return work


def _wire(answer: object) -> bytes:
    """JSON in UTF-8. A name of the host that is not text (its odd bytes are surrogates) could not be printed later."""
    return json.dumps(answer, ensure_ascii=False).encode(errors="replace")


def _plain(key: str, reading: Reading) -> object:
    """A reading as JSON; TypeError on what is none."""
    texts = (key, *reading) if isinstance(reading, tuple) else (key,)
    known = reading is None or isinstance(reading, (str, int, tuple, Unknown))
    if not known or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{key!r}: {type(reading).__name__} is no reading")
    return to_json(reading)


def _where(e: Exception) -> str:
    frame = e.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f" ({frame.tb_frame.f_code.co_filename.rpartition('/')[2]}:{frame.tb_lineno})" if frame else ""
    return f"{type(e).__name__}: {e}{place}"


def _facts(answer: bytes | str) -> Facts | Unknown:
    if isinstance(answer, str):
        return Unknown(answer)
    data = json.loads(answer)
    if isinstance(data, str):
        return Unknown(data)
    return {key: Fact(from_json(current), from_json(later)) for key, (current, later) in data.items()}


def examine(host: Host, profile: Profile, checks: Checks, deadline: float = DEADLINE) -> Examination:
    """Look, and judge what was seen by the profile. `checks` may be fewer than the profile has sections."""
    answers = inspect(host, checks, deadline, profile.sections)
    findings: list[Finding] = []
    for name, answer in answers.items():
        findings += _judge(checks[name], answer, profile.sections[name])
    today = _today()
    return Examination([weigh(f, profile, today) for f in brought(findings)], answers)


def _judge(check: Check, answer: Answer, section: Section) -> Iterable[Finding]:
    if isinstance(answer.facts, Unknown):
        return [unanswered(check.NAME, answer.facts.reason)]
    try:
        return list(judge(check.NAME, answer.facts, check.decide(answer.facts, section)))
    except Exception as e:  # noqa: BLE001  # a bug in one check must not hide what the others saw
        return [unanswered(check.NAME, f"bug in check {check.NAME}: {_where(e)}")]


def _today() -> str:
    import time

    return time.strftime("%Y-%m-%d", time.gmtime())


# -- planning -------------------------------------------------------------------------------------


def planned(examination: Examination, profile: Profile, checks: Checks, allowed: Collection[str]) -> list[Planned]:
    """What would have to change, live changes of all checks before persistent ones of any.

    Until the running system has taken a value, a power cycle is still an undo.
    """
    wanted: list[Planned] = []
    for finding in examination.findings:
        accepted = finding.waived or finding.check in profile.assert_only
        if accepted or fixable(checks[finding.check]) is None:
            continue
        for change in plan([finding]):
            refused = refusal(change, finding.desired, allowed)
            wanted.append(Planned(change, finding.desired, refused, change.check in allowed))
    return sorted(wanted, key=lambda p: (list(Facet).index(p.change.facet), p.change.check))


def rehearse(host: Host, wanted: Sequence[Planned], checks: Checks) -> list[Batch]:
    """The steps that carry out a plan, noted by running the very code that would make them.

    Where that code finds that it cannot (a read-only file system), nothing of that check is changed, now or later.
    What takes effect for several checks at once (update-grub) is noted once, after all of their files. A live change
    that would disturb what runs on the host is refused, or says so where that is allowed.
    """
    from hostprep.host.rehearsal import Rehearsal

    wanted = _beside_jobs(host, wanted)
    batches, obstacles = _rehearsed(Rehearsal(host), wanted, checks)
    if not obstacles:
        return batches
    refused = [p._replace(refused=p.refused or obstacles.get(p.change.check, "")) for p in wanted]
    return _rehearsed(Rehearsal(host), refused, checks)[0]


def _beside_jobs(host: Host, wanted: Sequence[Planned]) -> list[Planned]:
    """A plan, as it is beside the jobs, containers and VMs that run; asked once, if there is a live change to make."""
    live = [p for p in wanted if p.change.facet is Facet.CURRENT and not p.refused]
    seen = jobs.listing(host) if live else ""
    if not seen or (isinstance(seen, Unknown) and os.geteuid() != 0):  # others only plan; root can tell, and changes
        return list(wanted)
    running = _running(seen)
    return [_beside(p, running) if p in live else p for p in wanted]


def _beside(p: Planned, running: str) -> Planned:
    if not p.allowed or p.desired is None:
        return p._replace(refused=disturbs(running, p.change.check))
    return p._replace(desired=p.desired._replace(disrupts="; ".join(filter(None, (p.desired.disrupts, running)))))


def disturbed(host: Host) -> str:
    """Whom any live change of this host may disturb now, for a sentence; "" where nobody."""
    return _running(jobs.listing(host))


def _running(seen: str | Unknown) -> str:
    return f"what runs on this host, which cannot be told ({seen.reason})" if isinstance(seen, Unknown) else seen


def disturbs(running: str, check: str = "") -> str:
    """Why a live change is refused while that runs; `check` is its own, where it may be allowed."""
    return f"would disturb {running}" + (f" (allow it with --allow-disruption {check})" if check else "")


def _rehearsed(rehearsal: Rehearsal, wanted: Sequence[Planned], checks: Checks) -> tuple[list[Batch], dict[str, str]]:
    """The batches with their steps, and by check what stands in its way."""
    batches: list[Batch] = []
    obstacles: dict[str, str] = {}
    last: dict[Finish, int] = {}  # the batch after which each finish runs
    for (name, facet), group in _grouped(wanted).items():
        start = len(rehearsal.steps)
        check, finish = fixable(checks[name]), finisher(checks[name])
        changes = [p.change for p in group if not p.refused]
        assert check is not None
        try:
            if changes:
                check.apply(rehearsal, changes)
                if finish and facet is Facet.NEXT_BOOT:
                    last[finish] = len(batches)
        except HostprepError as e:
            obstacles[name] = _told(e)
        batches.append(Batch(name, facet, group, rehearsal.steps[start:]))
    for finish, index in last.items():
        start = len(rehearsal.steps)
        try:
            finish(rehearsal)
        except HostprepError as e:
            obstacles |= {b.check: _told(e) for b in batches if finisher(checks[b.check]) is finish}
        batches[index] = batches[index]._replace(steps=[*batches[index].steps, *rehearsal.steps[start:]])
    return batches, obstacles


def _told(e: HostprepError) -> str:
    """What stands in the way, and what to do about it, in one line."""
    return f"{e}. {e.hint}" if e.hint else str(e)


def _grouped(wanted: Iterable[Planned]) -> dict[tuple[str, Facet], list[Planned]]:
    groups: dict[tuple[str, Facet], list[Planned]] = {}
    for item in wanted:
        groups.setdefault((item.change.check, item.change.facet), []).append(item)
    return groups
