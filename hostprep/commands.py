"""The commands: what each does with the line from profile to report. They and the click layer are all that prints."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hostprep import __version__, engine, files, profile, profile_files, registry, render, report, state
from hostprep.errors import (
    ChangeFailed,
    HostprepError,
    OutputFailed,
    ProfileError,
    ReportUnusable,
    StateError,
    UsageError,
)
from hostprep.host import Host
from hostprep.model import Change, Facet, Fact, Finding, Profile, Status, Unknown, to_json

if TYPE_CHECKING:
    from hostprep.diff import Side


class Look(NamedTuple):
    """What to look at, and how to say what was seen."""

    profile: str | None = None
    only: tuple[str, ...] = ()
    format: str = "text"
    output: str | None = None
    root: str | None = None
    deadline: float = engine.DEADLINE
    publish: bool = True
    benchmarks: bool = False  # measure first


# -- looking --------------------------------------------------------------------------------------


def check(look: Look) -> int:
    if look.benchmarks and look.root is not None:
        raise UsageError("--benchmarks measures this machine, and --root looks elsewhere: choose one")
    host = _host(look.root)
    wanted = _wanted(look, host)
    if look.benchmarks:
        _measure(host, wanted)
    started, since = time.monotonic(), state.revision()
    examination = engine.examine(host, wanted, registry.load(wanted.sections), look.deadline)
    made = _report(look, host, wanted, examination, started)
    if not _publishes(look, made):
        return _deliver(look, made)
    with state.unchanged(since) as sure:
        if not sure:
            _say("not published: hostprep is changing this host, or has since it was looked at")
        return _deliver(look._replace(publish=sure), made)


def _measure(host: Host, wanted: Profile) -> None:
    """Run the benchmarks of a profile, before the look that judges them: no look has the time."""
    measuring = {name: registry.measuring(check) for name, check in registry.load(wanted.sections).items()}
    if not any(measuring.values()):
        raise UsageError(f"--benchmarks: the profile {wanted.name} has none", "hostprep explain lists the checks.")
    with _ending_in_order(), state.measuring():
        if others := engine.disturbed(host):
            hint = "Its figures would be wrong too: measure when nothing else runs here."
            raise ChangeFailed(f"nothing was measured: it would disturb {others}", hint)
        for name, check in measuring.items():
            if check is not None:
                check.measure(host, wanted.sections[name], _say)


def plan(look: Look, allowed: Sequence[str]) -> int:
    host = _host(look.root)
    started = time.monotonic()
    wanted = _selected(profile.load(look.profile), look.only)
    _must_have("--allow-disruption", allowed, wanted)
    checks = registry.load(wanted.sections)
    examination = engine.examine(host, wanted, checks, look.deadline)
    batches = engine.rehearse(host, engine.planned(examination, wanted, checks, allowed), checks)
    made = _report(look, host, wanted, examination, started)
    if look.format == "json":
        import json

        emit(json.dumps(_plan_to_dict(batches, made), indent=1, ensure_ascii=False) + "\n", look.output)
        return report.exit_code(made)
    paint = _paint() if look.output is None else render.plain
    planned = {(b.check, p.change.key) for b in batches for p in b.planned}
    left = [
        f
        for f in made.findings
        if f.status is not Status.PASS
        and not f.waived
        and (f.check, f.key) not in planned
        and not _comes_with(f, planned)
    ]
    text = render.plan(batches, paint) + render.left_over(left, paint)
    emit(f"{text}{render.verdict(made, paint)}\n{_next_step(look, batches, allowed)}", look.output)
    return report.exit_code(made)


def _comes_with(f: Finding, planned: Collection[tuple[str, str]]) -> bool:
    """Does a finding go away with what is planned of its check? A driver of VFs comes with the VFs."""
    return f.fix.startswith("hostprep apply") and any(check == f.check for check, _ in planned)


def _next_step(look: Look, batches: Sequence[engine.Batch], allowed: Sequence[str]) -> str:
    """The command that does what was shown, with the same selection."""
    if look.root is not None or not any(not p.refused for b in batches for p in b.planned):
        return ""
    return f"To do it: {'' if os.geteuid() == 0 else 'sudo '}hostprep apply{_selection_words(look, allowed)}\n"


def _selection_words(look: Look, allowed: Sequence[str]) -> str:
    import shlex

    words = [""]
    words += ["--profile", look.profile] if look.profile else []
    for option, names in (("--only", look.only), ("--allow-disruption", allowed)):
        words += [word for name in names for word in (option, name)]
    return " ".join([words[0], *map(shlex.quote, words[1:])])


def inspect(only: tuple[str, ...], output_format: str, root: str | None, record: str | None, deadline: float) -> int:
    _must_be_checks(only)
    if record:
        if root:
            raise UsageError("--record keeps what this machine answers, and --root looks elsewhere: choose one")
        from hostprep.host.record import Recorder

        try:
            host: Host = Recorder(record)
        except OSError as e:
            raise OutputFailed(f"{record}: {e.strerror}") from e
    else:
        host = _host(root)
    answers = engine.inspect(host, registry.load(only or registry.names()), deadline)
    if record:
        engine.disturbed(host)  # a plan for a recorded host asks that too
    identity = state.identity(host)
    everything = {name: answer.facts for name, answer in answers.items()}
    if output_format == "json":
        import json

        data = {
            "hostprep_version": __version__,
            **identity._asdict(),
            "facts": {name: _facts_to_dict(facts) for name, facts in everything.items()},
        }
        emit(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    else:
        emit(render.facts(everything, _paint()))
    if record:
        _say(f"recorded in {record}; look at it elsewhere with --root {record}")
    return 0


def _must_be_checks(names: Sequence[str]) -> None:
    known = registry.names()
    if stray := [name for name in names if name not in known]:
        raise UsageError(f"there is no check named {stray[0]!r}", f"Known: {', '.join(known)}.")


def diff(
    sources: Sequence[str],
    wanted: str | None,
    output_format: str,
    output: str | None,
    everything: bool,
    deadline: float,
) -> int:
    from hostprep import diff as comparing
    from hostprep import diff_text

    if sources.count("-") > 1:
        raise UsageError("stdin can be one side only")
    read = {source: comparing.side(source, _report_data(source)) for source in sources if not os.path.isdir(source)}
    looked_at: list[str | None] = [source for source in sources if source not in read]
    looked_at += [None] if len(sources) == 1 else []
    if wanted is not None and not looked_at:
        hint = "Leave --profile out, or give one report: it is compared with this host."
        raise UsageError("--profile judges a host that is looked at, and reports were judged already", hint)
    judged = looked_at and (wanted is not None or any(side.report for side in read.values()))
    by = profile.load(wanted) if judged else None
    only = {check for side in read.values() for check in side.facts} or set(registry.names())
    looks = {source: _side(source, by, only, deadline) for source in looked_at}
    sides = [read[source] if source in read else looks[source] for source in sources]
    sides += [looks[None]] if None in looks else []
    moving = {name: registry.moving(check) for name, check in registry.load().items()}
    found = comparing.compare(comparing.named(sides), moving)
    if output_format == "json":
        import json

        emit(json.dumps(diff_text.to_dict(found, everything), indent=1, ensure_ascii=False) + "\n", output)
    else:
        paint, width = (_paint(), _width()) if output is None else (render.plain, render.WIDTH)
        emit(diff_text.text(found, everything, paint, width), output)
    return comparing.status(found)


def _report_data(source: str) -> bytes:
    """What a file, a pipe or stdin holds, within reason."""
    from hostprep.diff import SIZE_LIMIT

    try:
        if source == "-":
            data = sys.stdin.buffer.read(SIZE_LIMIT + 1)
        else:
            with open(source, "rb") as f:
                data = f.read(SIZE_LIMIT + 1)
    except OSError as e:
        raise UsageError(f"{source}: {e.strerror}", "Give a report, or the directory of a recorded host.") from e
    if len(data) > SIZE_LIMIT:
        raise UsageError(f"{source}: larger than {SIZE_LIMIT // 1024 // 1024} MiB: this is no report")
    return data


def _side(root: str | None, by: Profile | None, only: Collection[str], deadline: float) -> Side:
    """This host, or a recorded one, as it is found now; judged where the other side is. Nothing is published."""
    from hostprep.diff import Side

    host, started = _host(root), time.monotonic()
    source = root or "this host"
    if by is None:
        answers = engine.inspect(host, registry.load(n for n in registry.names() if n in only), deadline)
        return Side(state.identity(host).hostname, {n: a.facts for n, a in answers.items()}, None, source)
    examination = engine.examine(host, by, registry.load(by.sections), deadline)
    made = _report(Look(root=root, publish=False), host, by, examination, started)
    return Side(made.hostname, {n: a.facts for n, a in examination.answers.items()}, made, source)


def show_report(output_format: str, max_age: int | None, output: str | None, wanted: str | None = None) -> int:
    from hostprep import gate

    try:
        # A person reads whose profile it is; a program takes it for this host's.
        made = gate.relied_on(wanted, max_age, any_profile=output_format == "text")
    except (ReportUnusable, ProfileError) as e:
        _tell_there_is_none(e, output_format, output)
        raise
    return _deliver(Look(format=output_format, output=output, publish=False), made)


def wait(wanted: str | None, timeout: int, max_age: int | None) -> int:
    """Return when this host is ready; say what is missing when it is not in time."""
    from hostprep import gate

    watched = _Progress()
    try:
        seen = gate.until_ready(lambda: gate.relied_on(wanted, max_age), state.report_revision, timeout, watched)
    finally:
        watched.end()
    if isinstance(seen, ReportUnusable):
        nobody_looks = os.path.exists("/run/systemd/system") and not os.path.exists("/run/hostprep")
        hint = "Nothing looks at this host at boot yet: hostprep install systemd" if nobody_looks else seen.hint
        raise ReportUnusable(f"not ready{_after(timeout)}: {seen}", hint) from seen
    if seen.verdict == report.READY:
        emit(f"{render.host(seen)}: {render.verdict(seen, _paint())}\n")
    else:
        told = f"not ready{_after(timeout)}: {render.host(seen)}, profile {seen.profile}"
        sys.stderr.write(f"error: {told}\n{render.missing(gate.missing(seen), _paint(sys.stderr))}")
        _say(render.verdict(seen, _paint(sys.stderr)))
    return report.exit_code(seen)


def _after(timeout: int) -> str:
    return f" after {report.show_age(timeout)}" if timeout else ""


def serve(listen: str | None, wanted: str | None) -> int:
    from hostprep import serve as serving

    return serving.serve(listen, wanted)


def _names(seen: report.Report) -> str:
    """The first few findings that keep a host from being ready."""
    from hostprep import gate

    names = [render.line(f.name) for f in gate.missing(seen)]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more if names else "nothing that this profile requires was looked at"


class _Progress:
    """What is waited for: on a terminal one line that changes, elsewhere a line whenever it is something else."""

    def __init__(self) -> None:
        self.on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self.told = ""

    def __call__(self, seen: report.Report | ReportUnusable, left: float) -> None:
        what = str(seen) if isinstance(seen, ReportUnusable) else _names(seen)
        if self.on_terminal:
            text = f"waiting, {report.show_age(left)} left: {what}"
            sys.stderr.write(f"\r\x1b[K{text[: _width(sys.stderr) - 1]}")
            sys.stderr.flush()
        elif what != self.told:
            _say(f"waiting: {what}")
        self.told = what

    def end(self) -> None:
        """Leave a terminal as it was."""
        if self.on_terminal and self.told:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _tell_there_is_none(e: HostprepError, output_format: str, output: str | None) -> None:
    """Whoever reads a file of ours must not go on reading there that this host is ready."""
    from hostprep import formats

    if say := formats.unusable(output_format):
        none = e if isinstance(e, ReportUnusable) else ReportUnusable(str(e), e.hint, reason="broken-profile")
        emit(say(none), output)


def _host(root: str | None) -> Host:
    if root is None:
        return Host()
    if not os.path.isdir(root):
        raise UsageError(f"--root {root}: is not a directory", "Give the directory of a recorded host.")
    from hostprep.host.record import RecordedHost

    return RecordedHost(root)


def _wanted(look: Look, host: Host) -> Profile:
    """The profile to judge by. One that is not valid is also reported: the host is then unknown, and not ready."""
    try:
        whole = profile.load(look.profile)
    except ProfileError as e:
        _report_broken_profile(look, host, e)
        raise
    return _selected(whole, look.only)


def _selected(whole: Profile, only: tuple[str, ...]) -> Profile:
    """The profile less the checks that --only did not name."""
    _must_have("--only", only, whole)
    return whole._replace(sections={n: s for n, s in whole.sections.items() if n in only}) if only else whole


def _must_have(option: str, names: Sequence[str], wanted: Profile) -> None:
    """UsageError when an option names a check that the profile has no section of."""
    if stray := [name for name in names if name not in wanted.sections]:
        hint = f"It has: {', '.join(wanted.sections)}."
        raise UsageError(f"{option} {stray[0]}: the profile {wanted.name} has no such section", hint)


def _report(look: Look, host: Host, wanted: Profile, seen: engine.Examination, started: float) -> report.Report:
    only = list(wanted.sections) if look.only else None
    findings = seen.findings if look.root is not None else _recalled(seen.findings, state.identity(host).boot_id)
    if look.root is not None:  # what is done about another host is not done here
        findings = [f._replace(fix="") if "hostprep apply" in f.fix or "Reboot" in f.fix else f for f in findings]
    if look.profile:  # else whoever copies the command applies another profile
        import shlex

        told = f"hostprep apply --profile {shlex.quote(look.profile)} --only"
        findings = [f._replace(fix=f.fix.replace("hostprep apply --only", told)) for f in findings]
    return report.make(findings, seen.answers, wanted, state.identity(host), started, only)


def _recalled(findings: Sequence[Finding], boot_id: str) -> list[Finding]:
    """The findings that wait for a reboot, in the light of what hostprep did before the last one."""
    if not any(f.status is Status.PENDING for f in findings):
        return list(findings)
    from hostprep.journal import Journal, recalled

    try:
        standing = Journal(state.journal_path(), boot_id).standing()
    except StateError:  # a journal that this user cannot read, or a damaged one, tells nothing of the past
        return list(findings)
    told = [recalled(f, standing, boot_id) for f in findings]
    if not any(f.status is Status.POWER_CYCLE and f.counts for f in told):
        return told
    return [f._replace(fix="The power cycle brings it too.") if f.fix == "Reboot this host." else f for f in told]


def _in_format(made: report.Report, name: str) -> str:
    if name == "text":
        return render.text(made)
    from hostprep import formats

    return formats.of(name)(made)


def _deliver(look: Look, made: report.Report) -> int:
    """Publish the report where the cluster waits for it, and say it where it was asked for."""
    failed = _publish(look, made)
    if failed and look.format in ("nagios", "npd"):  # they read one line, and that must be the failure's
        raise failed
    if look.format == "text" and look.output is None:
        emit(render.text(made, _paint(), _width()))
    else:
        emit(_in_format(made, look.format), look.output)
    if failed:
        raise failed
    return report.exit_code(made, look.format)


def _publish(look: Look, made: report.Report) -> OutputFailed | None:
    """The error, if it could not be published: whoever asked still gets the answer first."""
    if _publishes(look, made):
        try:
            state.publish(made)
        except OutputFailed as e:
            return e
    return None


def _publishes(look: Look, made: report.Report) -> bool:
    """Only what was seen of all of this very host is what the cluster waits for."""
    return look.publish and look.root is None and made.selection is None and state.publishes()


def _report_broken_profile(look: Look, host: Host, e: ProfileError) -> None:
    """An older report must not go on saying ready for a host whose profile cannot be read any more."""
    reason = e.problems[0]
    fact = Fact.fixed(Unknown(reason))
    finding = Finding("profile", "*", Status.UNKNOWN, fact, None, f"The profile is not valid: {reason}", e.hint)
    nothing = Profile(name=look.profile or "default", sha256="", sections={})
    only = list(look.only) if look.only else None
    made = report.make([finding], {}, nothing, state.identity(host), time.monotonic(), only)
    mistyped = look.profile is not None and "/" not in look.profile and not os.path.exists(look.profile)
    if failed := None if mistyped else _publish(look, made):
        _say(f"error: {failed}")
    if look.output or look.format not in ("text", "nagios", "npd"):  # these have it from the error itself
        emit(_in_format(made, look.format), look.output)


# -- changing -------------------------------------------------------------------------------------


def apply(look: Look, allowed: Sequence[str], yes: bool, reboot: bool = False) -> int:
    host = Host()
    if reboot:
        from hostprep import reboot as rebooting

        rebooting.must_be_possible(host)
    with _ending_in_order(), state.changing() as journal_path:
        started = time.monotonic()
        wanted = _wanted(look, host)
        _must_have("--allow-disruption", [n for n in allowed if not (reboot and n == rebooting.NAME)], wanted)
        checks = registry.load(wanted.sections)
        seen = engine.examine(host, wanted, checks, look.deadline)
        needed = engine.planned(seen, wanted, checks, allowed)
        planned: list[engine.Planned] = []
        failed: Sequence[Any] = ()
        if needed:
            batches = engine.rehearse(host, needed, checks)
            planned = [p for batch in batches for p in batch.planned]
            if todo := [p.change for p in planned if not p.refused]:
                _must_be_writable(look.output)
                if not yes and not _agreed(
                    render.plan(batches, _paint(sys.stderr)),
                    f"hostprep plan{_selection_words(look, allowed)}",
                    "Make these changes, and reboot this host if it needs that?" if reboot else CHANGES,
                ):
                    return report.exit_code(_report(look, host, wanted, seen, started))
                yes = True
                failed = _changed(host, checks, journal_path, todo, wanted, allowed)
                seen = engine.examine(host, wanted, checks, look.deadline)
        for p in planned:
            if p.refused:
                when = "now" if p.change.facet is Facet.CURRENT else "next boot"
                _say(f"refused {p.change.check}/{p.change.key} ({when}): {p.refused}")
        made = _report(look, host, wanted, seen, started)
        code = _deliver(look, made)
        if reboot and not failed:
            _reboot(host, made, journal_path, allowed, yes)
    if reboot and failed:
        _say("not rebooted: not all was done")
    return _failed(failed) or code


def _reboot(host: Host, made: report.Report, journal_path: str, allowed: Sequence[str], yes: bool) -> None:
    """Reboot, if that makes this host ready and disturbs nobody; else say why not."""
    from hostprep import reboot as rebooting
    from hostprep.journal import Journal

    journal = Journal(journal_path, made.boot_id)
    if why := rebooting.obstacle(made, journal) or rebooting.disruption(host, allowed):
        _say(f"not rebooted: {why}")
        return
    what = rebooting.names([f for f in made.findings if f.counts and f.status is Status.PENDING])
    if not yes and not _agreed(f"Waiting for a reboot: {what}\n", "hostprep check", "Reboot this host?"):
        return
    journal.rebooting(rebooting.causes(made))
    _say(f"rebooting, for {what}")
    _survive_the_shutdown()
    rebooting.reboot(host)


def _survive_the_shutdown() -> None:
    """systemd ends everybody's session, ours too: this is the end that was asked for, and no interruption."""
    import signal

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _changed(
    host: Host,
    checks: engine.Checks,
    journal_path: str,
    todo: Sequence[Change],
    wanted: Profile,
    allowed: Sequence[str],
) -> Sequence[Any]:
    """Make the changes; what failed."""
    from hostprep.journal import Journal
    from hostprep.perform import Performer, converge

    journal = Journal(journal_path, state.identity(host).boot_id)
    journal.standing()  # what cannot be taken back for a damaged journal is not changed
    state.retract()
    performer = Performer(host, checks, journal, _say)
    converge(performer, todo, wanted.sections, allowed)
    return performer.failures


def recreate() -> int:
    """Make again what no kernel keeps over a reboot: what hostprep's boot unit runs."""
    host = Host()
    with _ending_in_order(), state.changing() as journal_path:
        from hostprep import recreate as making_again
        from hostprep.journal import Journal
        from hostprep.perform import Failure, Performer

        failures: list[Failure] = []
        records = making_again.records(host, failures)
        if records:
            journal = Journal(journal_path, state.identity(host).boot_id)
            journal.standing()  # what cannot be taken back for a damaged journal is not changed
            checks = registry.load(name for name in registry.names() if name in records)
            performer = Performer(host, checks, journal, _say)
            making_again.recreate(performer, records, state.retract)
            failures += performer.failures
    if not failures:
        _say("This host is what its boot records say." if records else "Nothing is recorded to be made at boot.")
    return _failed(failures)


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """A dropped connection or a `kill` ends a change as ^C does: with files put back, and a word."""
    import signal

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def revert(dry_run: bool, yes: bool) -> int:
    host = Host()
    with _ending_in_order(), state.changing() as journal_path:
        from hostprep import revert as taking_back
        from hostprep.journal import Journal
        from hostprep.perform import Performer

        journal = Journal(journal_path, state.identity(host).boot_id)
        if not journal.standing() and not journal.kept_files():
            emit("Nothing to take back: this host is as hostprep found it.\n")
            return 0
        checks = registry.load()
        text = render.revert(*taking_back.rehearse(host, checks, journal), _paint())
        if dry_run:
            emit(text)
            return 0
        if not yes and not _agreed(text, "hostprep revert --dry-run"):
            return 0
        state.retract()
        performer = Performer(host, checks, journal, _say)
        kept = taking_back.revert(performer)
    if code := _failed(performer.failures):
        return code
    if left := [s.change for s in journal.standing()]:
        names = ", ".join(dict.fromkeys(f"{c.check}/{c.key}" for c in left))
        raise ChangeFailed(f"not everything could be taken back; still standing: {names}", "Try again: hostprep revert")
    but = f", but for {', '.join(kept)}" if kept else ""
    emit(f"Taken back: this host is as hostprep found it{but}.\n")
    return 0


CHANGES = "Make these changes?"


def _agreed(text: str, instead: str, question: str = CHANGES) -> bool:
    """Show what will be done, and ask. UsageError where nobody can be asked."""
    if sys.stdin is None or not sys.stdin.isatty():
        hint = f"Say --yes, or look first: {instead}"
        raise UsageError("this changes the host, and there is no terminal to ask on", hint)
    sys.stderr.write(text)
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        answer = ""
    if not answer.endswith("\n"):
        _say("")
    if answer.strip().lower() in ("y", "yes"):
        return True
    _say("Nothing was changed.")
    return False


def _must_be_writable(output: str | None) -> None:
    """Better known before the host is changed than when the findings have nowhere to go."""
    folder = os.path.dirname(os.path.realpath(output)) if output and output != "-" else "/"
    if not os.path.isdir(folder):
        raise OutputFailed(f"{output}: there is no directory {folder}", "Nothing was changed.")


def _failed(failed: Sequence[Any]) -> int:
    if not failed:
        return 0
    sys.stderr.write(render.failures(failed, _paint(sys.stderr)))
    return report.exit_code(ChangeFailed(""))


# -- joining --------------------------------------------------------------------------------------


class Join(NamedTuple):
    """What hostprep is to be joined to, and how."""

    targets: tuple[str, ...]
    gates: tuple[str, ...] = ()
    root: str | None = None
    textfiles: str | None = None
    dry_run: bool = False
    completion: Callable[[str], str] = lambda shell: ""


def install(join: Join) -> int:
    from hostprep import install as putting
    from hostprep import packages

    wanted = {name: packages.TARGETS[name] for name in join.targets}
    wanted |= {f"{packages.GATE}{unit}": packages.gate(unit) for unit in join.gates}
    options = packages.Options(join.root, join.textfiles, join.completion)
    said = []  # when all is done: who reads only the beginning of it must not stop us in the middle
    with _joining(join) as (host, where):
        items = {name: target.items(host, options) for name, target in wanted.items()}
        for name in wanted:  # all or none: what stands in the way is found before anything is written
            putting.install(host, where, name, items[name], dry_run=True)
        for name, target in wanted.items():
            done = putting.install(host, where, name, items[name], join.dry_run)
            said.append(render.installed(name, done, target.next(host, options), join.dry_run, _paint()))
    emit("".join(said))
    return 0


def uninstall(join: Join) -> int:
    from hostprep import install as putting
    from hostprep import packages

    options = packages.Options(join.root)
    said = []
    with _joining(join) as (host, where):
        there = putting.targets(host, where)
        names = [f"{packages.GATE}{unit}" for unit in join.gates]
        if not names:  # what waits for a target that is gone would never start
            names = [name for name in there if name.startswith(packages.GATE)] if "systemd" in join.targets else []
            names += join.targets
        else:
            names += [name for name in join.targets if name != "systemd"]
        if "systemd" in names and (kept := packages.recorded(host)):
            what = f"{', '.join(kept)}: hostprep-apply.service is what makes it again at boot"
            raise ChangeFailed(what, "Take that back first: hostprep revert")
        for name in names:
            output = packages.written(host, name)
            done = putting.uninstall(host, where, name, join.dry_run)
            links = packages.links_to_nowhere(host) if not join.dry_run else []
            for link in links:
                host.replace(link, None)
            done += [putting.Done("removed", link) for link in links]
            todo = packages.after_removal(name, options, output) if done else []
            said.append(render.installed(name, done, todo, join.dry_run, _paint()))
    emit("".join(said))
    return 0


@contextlib.contextmanager
def _joining(join: Join) -> Iterator[tuple[Host, str]]:
    """The host, or a tree of files that will be one, and where the list of what was put there is."""
    from hostprep.install import NAME

    if join.root is None and not join.dry_run:
        with _ending_in_order(), state.changing():
            yield Host(), os.path.join(state.state_dir(), NAME)
        return
    if join.root is not None and not os.path.isdir(join.root):
        raise UsageError(f"--root {join.root}: is not a directory", "Give the root directory of an image.")
    folder = state.state_dir() if join.root is None else state.STATE_DIR
    yield Host(join.root or "/"), os.path.join(folder, NAME)


# -- telling --------------------------------------------------------------------------------------


def explain(name: str | None) -> int:
    checks = registry.load()
    if name is None:
        width = max(map(len, checks))
        lines = [f"  {n:<{width}}  {_first_sentence(registry.manual(c))}" for n, c in checks.items()]
        emit(
            "\n".join(["Checks, each a section of a profile:", "", *lines, "", "hostprep explain CHECK tells more."])
            + "\n"
        )
        return 0
    if name not in checks:
        raise UsageError(f"there is no check named {name!r}", f"Known: {', '.join(checks)}.")
    emit(registry.manual(checks[name]) + "\n")
    return 0


def _first_sentence(manual: str) -> str:
    return manual.partition("\n")[0].partition(": ")[2] or manual.partition("\n")[0]


def profiles_list() -> int:
    known = profile_files.available()
    lines = []
    for name, path in known.items():
        try:
            description = profile.load(name).description
        except HostprepError as e:
            description = f"NOT VALID: {str(e).splitlines()[0]}"
        lines.append((name, description, path))
    width = max(len(name) for name, _, _ in lines)
    here = profile_files.find(None)
    emit("".join(f"{'*' if path == here else ' '} {name:<{width}}  {text}\n" for name, text, path in lines))
    if here == profile_files.SITE_PROFILE:
        _say(f"Without --profile, this site's own is taken: {here}")
    else:
        _say(f"* is taken without --profile, until there is a {profile_files.SITE_PROFILE}")
    return 0


def profiles_show(name: str, effective: bool) -> int:
    loaded = profile.load(name) if effective else None
    if loaded is not None:
        from hostprep import profile_source

        emit(profile_source.effective(loaded))
        return 0
    path = profile_files.find(name)
    data = profile_files.read(path)
    emit(data.decode(errors="replace"))
    if any(line.startswith(b"extends:") for line in data.splitlines()):
        _say(f"It extends another one; what comes out of both: hostprep profiles show --effective {name}")
    return 0


def profiles_validate(wanted: str) -> int:
    loaded = profile.load(os.path.abspath(wanted) if os.path.lexists(wanted) else wanted)
    emit(f"{wanted}: valid: profile {loaded.name}, checks: {', '.join(loaded.sections)}\n")
    return 0


def profiles_from_makefile(path: str) -> int:
    from hostprep import makefile

    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as f:  # a lone CR is none to make
            text = f.read(profile_files.SIZE_LIMIT + 1)
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}", "Give the Makefile of OpenKasugai all-in-one.") from e
    if len(text) > profile_files.SIZE_LIMIT:
        raise UsageError(f"{path}: larger than {profile_files.SIZE_LIMIT // 1024} KiB: this is no Makefile")
    emit(makefile.profile_from(text, path))
    return 0


def profiles_from_host(only: tuple[str, ...], root: str | None, deadline: float, output: str | None) -> int:
    from hostprep import from_host

    _must_be_checks(only)
    host = _host(root)
    if root is None and os.geteuid() != 0:
        _say("Not root: what only root can read is left out.")
    checks = registry.load(only or registry.names())
    emit(from_host.profile_from(host, checks, state.identity(host), deadline), output)
    return 0


def schema(which: str) -> int:
    import json

    if which == "report":
        with open(report.SCHEMA_FILE) as f:
            emit(f.read())
    else:
        from hostprep import profile_source

        emit(json.dumps(profile_source.schema(), indent=1) + "\n")
    return 0


# -- saying ---------------------------------------------------------------------------------------


def emit(text: str, output: str | None = None) -> None:
    """The answer itself: to stdout, or whole into a file. OutputFailed when it does not get there.

    It is UTF-8 wherever it goes; bytes of the host that are not become `?`.
    """
    data = text.encode("utf-8", "replace")
    if output == "":
        raise UsageError("--output needs the name of a file")
    if output is not None and output != "-":
        _write_file(output, data)
        return
    if sys.stdout is None:
        raise OutputFailed("stdout is closed: the answer is lost")
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    except (OSError, ValueError) as e:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains a second time at its end
        raise OutputFailed(f"stdout: {getattr(e, 'strerror', e)}: the answer is lost") from e


def _write_file(output: str, data: bytes) -> None:
    """A file is replaced whole and stays whose it is; /dev/null or a FIFO takes what it is given."""
    if os.geteuid() == 0 and os.path.islink(output) and (why := files.untrusted(output)):
        raise OutputFailed(f"{output}: is a link that leads root where others want it: {why}")
    try:
        info = os.stat(output) if os.path.exists(output) else None
        if info is None:
            files.replace(os.path.realpath(output), data)
        elif stat.S_ISREG(info.st_mode):
            mode, owner = stat.S_IMODE(info.st_mode), (info.st_uid, info.st_gid)
            files.replace(os.path.realpath(output), data, mode, owner if os.geteuid() == 0 else None)
        else:
            # O_NONBLOCK: a FIFO that nobody reads must not hold us up
            with open(os.open(output, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC), "wb") as f:
                f.write(data)
    except OSError as e:
        raise OutputFailed(f"{output}: {e.strerror}") from e


def _say(line: str) -> None:
    """Progress, for whoever watches: it may get lost."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        return


def _paint(stream: Any = None) -> render.Paint:
    """Colours on a terminal that has them and unless NO_COLOR says otherwise (no-color.org)."""
    stream = stream or sys.stdout
    wanted = (
        stream is not None and stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )
    return render.coloured if wanted else render.plain


def _width(stream: Any = None) -> int:
    """The columns of the terminal, within reason; of what is no terminal, those that a mail or an issue shows."""
    try:
        return min(max(os.get_terminal_size((stream or sys.stdout).fileno()).columns, 60), 160)
    except (OSError, ValueError, AttributeError):
        return render.WIDTH


def _facts_to_dict(facts: Mapping[str, Fact] | Unknown) -> Any:
    if isinstance(facts, Unknown):
        return to_json(facts)
    return {key: {"current": to_json(f.current), "next_boot": to_json(f.next_boot)} for key, f in facts.items()}


def _plan_to_dict(batches: Sequence[engine.Batch], made: report.Report) -> dict[str, Any]:
    return {
        "hostprep_version": __version__,
        "profile": {"name": made.profile, "sha256": made.profile_sha256},
        "verdict": made.verdict,
        "batches": [
            {
                "check": batch.check,
                "when": batch.facet.value,
                "changes": [
                    {
                        "key": p.change.key,
                        "before": to_json(p.change.before),
                        "after": to_json(p.change.after),
                        "disrupts": p.desired.disrupts if p.desired else "",
                        "final": p.desired.final if p.desired else "",
                        "refused": p.refused,
                    }
                    for p in batch.planned
                ],
                "steps": [step._asdict() for step in batch.steps],
            }
            for batch in batches
        ],
    }
