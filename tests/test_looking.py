"""Looking without hanging: whatever one check does, the others' findings arrive in time, and nothing runs on."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, NoReturn, cast

import pytest

from hostprep import engine, registry
from hostprep.errors import HostError
from hostprep.host import Host, process
from hostprep.model import Desired, Fact, Facts, Profile, Unknown
from hostprep.registry import Check

DEADLINE = 2.0
GRACE = 2.5  # seconds beyond the deadline: one for what was asked to end, one for what was killed to be reaped


class Bad(Exception):
    """What a broken check raises."""


# -- checks that misbehave ------------------------------------------------------------------------


def fine(host: Host) -> Facts:
    return {"value": Fact.fixed(1)}


def raises(host: Host) -> Facts:
    raise Bad("what happened")


def loops(host: Host) -> NoReturn:
    while True:
        pass


def prints(host: Host) -> Facts:
    os.write(1, b"this is no JSON\n")
    os.write(2, b"nor this\n")
    return fine(host)


def leaves_a_command_that_ignores_sigterm(host: Host) -> Facts:
    host.run("sh", "-c", "trap '' TERM HUP INT; (trap '' TERM; sleep 2000) & setsid sleep 2000 & wait", timeout=100)
    return fine(host)


def forks_and_goes(host: Host) -> None:
    if os.fork():
        os._exit(0)
    signal.pause()  # the orphan holds the pipe


def closes_everything(host: Host) -> None:
    os.closerange(0, 1000)
    signal.pause()


def recurses(host: Host) -> Facts:
    return recurses(host)


def answering(answer: object) -> Callable[[Host], Facts]:
    return lambda host: cast(Facts, answer)


# name -> what it does, and what its finding says (None: it is answered)
MISBEHAVIOUR: dict[str, tuple[Callable[[Host], Any], str | None]] = {
    "fine": (fine, None),
    "prints": (prints, None),
    "raises": (raises, r"bug in check raises: Bad: what happened \(test_looking\.py:\d+\)"),  # T6: and where
    "host_error": (lambda host: host.number("/proc/hostprep"), r"/proc/hostprep: not there"),
    "recurses": (recurses, r"bug in check recurses: RecursionError: .*"),
    "segfaults": (lambda host: ctypes.string_at(0), r"gave no answer: killed by SIGSEGV"),
    "exits": (lambda host: os._exit(0), r"gave no answer: exit 0"),
    "sys_exits": (lambda host: sys.exit(3), r"gave no answer: exit 1"),
    "loops": (loops, r"no answer within 2 s \(state [RS].*\)"),
    "stops": (lambda host: os.kill(os.getpid(), signal.SIGSTOP), r"no answer within 2 s \(state T.*\)"),
    "forks_and_goes": (forks_and_goes, r"no answer within 2 s.*"),
    "closes_everything": (closes_everything, r"gave no answer: .*"),
    "ignores_sigterm": (leaves_a_command_that_ignores_sigterm, r"no answer within 2 s \(state S .*\)"),
    "object": (answering({"x": Fact.fixed(cast(Any, object()))}), r"bug in check object: TypeError: 'x': object .*"),
    "float": (answering({"x": Fact.fixed(cast(Any, float("nan")))}), r"bug in check float: TypeError: .*"),
    "mapping": (answering({"x": Fact.fixed(cast(Any, {"a": 1}))}), r"bug in check mapping: TypeError: .*"),
    "no_key": (answering({1: Fact.fixed(1)}), r"bug in check no_key: TypeError: .*"),
    "nothing": (answering(None), r"bug in check nothing: AttributeError: .*"),
}


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A frozen file system: whoever writes to it stays in D state, as on a dead NFS server or in a wedged driver."""
    if os.geteuid() != 0:
        pytest.skip("freezing a file system needs root")
    for tool in ("mkfs.ext4", "losetup", "fsfreeze", "mount", "umount"):
        if not shutil.which(tool, path=process.PATH):
            pytest.skip(f"{tool} is not installed")
    folder = tmp_path_factory.mktemp("frozen")
    image, mounted = folder / "image", folder / "mounted"
    mounted.mkdir()
    with image.open("wb") as f:
        f.truncate(8 * 1024 * 1024)
    with contextlib.ExitStack() as undo:
        try:
            process.run(["mkfs.ext4", "-q", str(image)], 30)
            process.run(["mount", "-o", "loop", str(image), str(mounted)], 30)
            undo.callback(process.run, ["umount", str(mounted)], 30)
            process.run(["fsfreeze", "-f", str(mounted)], 30)
            undo.callback(_reap_all)
            undo.callback(process.run, ["fsfreeze", "-u", str(mounted)], 30)
        except HostError as e:
            pytest.skip(f"no file system can be frozen here: {e}")
        yield mounted


def _reap_all() -> None:
    """What was stuck ends once the file system thaws; killed long ago, it wrote nothing."""
    end = time.monotonic() + 10
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < end:
            os.waitpid(-1, os.WNOHANG)
            time.sleep(0.01)


def stuck(mounted: Path) -> Callable[[Host], Facts]:
    def inspect(host: Host) -> Facts:
        with open(mounted / "file", "w") as f:
            f.write("x")
        return fine(host)

    return inspect


def blocked_on(fifo: Path) -> Callable[[Host], Facts]:
    return lambda host: {"x": Fact.fixed(fifo.read_text())}


# -- all of them at once --------------------------------------------------------------------------


class Look(NamedTuple):
    answers: dict[str, engine.Answer]
    findings: dict[str, str]
    seconds: float
    alive: list[str]  # what could still be killed
    in_d_state: list[str]


def check(name: str, inspect: Callable[[Host], Any]) -> Check:
    def decide(facts: Facts, want: object) -> dict[str, Desired]:
        return {"value": Desired(1)}

    return cast(Check, SimpleNamespace(NAME=name, SCHEMA={}, __doc__="", inspect=inspect, decide=decide))


@pytest.fixture(scope="module")
def look(frozen: Path, tmp_path_factory: pytest.TempPathFactory) -> Look:
    """One look with every misbehaviour there is, and several reads that are stuck in the kernel for good."""
    fifo = tmp_path_factory.mktemp("fifo") / "fifo"
    os.mkfifo(fifo)
    inspects = {f"stuck{i}": stuck(frozen) for i in range(4)} | {n: i for n, (i, _) in MISBEHAVIOUR.items()}
    inspects |= {"fifo": blocked_on(fifo), "fifo_by_host": lambda host: {"x": Fact.fixed(host.read(str(fifo)))}}
    checks = {name: check(name, inspect) for name, inspect in inspects.items()}
    before = set(descendants())
    began = time.monotonic()
    seen = engine.examine(Host(), Profile("test", "", dict.fromkeys(checks)), checks, DEADLINE)
    seconds = time.monotonic() - began
    left = {pid: state for pid, state in descendants().items() if pid not in before}
    while not set(left.values()) <= set("DZ") and time.monotonic() < began + seconds + GRACE:
        left = {pid: state for pid, state in descendants().items() if pid not in before}  # killed, and not gone yet
    return Look(
        seen.answers,
        {f.check: f.status.value for f in seen.findings},
        seconds,
        [pid for pid, state in left.items() if state not in "DZ"],
        [pid for pid, state in left.items() if state == "D"],
    )


def descendants() -> dict[str, str]:
    """The state of every process below this one, and of every `sleep 2000` that lost its parent."""
    found: dict[str, str] = {}
    parents = {str(os.getpid())}
    table = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_bytes().rpartition(b")")[2].decode().split()
            table[stat.parent.name] = (fields[0], fields[1])
            if stat.with_name("cmdline").read_bytes() == b"sleep\x002000\x00":
                found[stat.parent.name] = fields[0]
    while more := {pid for pid, (_, parent) in table.items() if parent in parents} - parents:
        parents |= more
    return found | {pid: table[pid][0] for pid in parents & table.keys() if pid != str(os.getpid())}


def test_it_ends_in_time_however_many_are_stuck(look: Look) -> None:
    assert DEADLINE <= look.seconds < DEADLINE + GRACE


def test_nothing_is_left_that_could_be_killed(look: Look) -> None:
    assert look.alive == []
    assert len(look.in_d_state) == 4, "these reads should really have been stuck"


@pytest.mark.parametrize("number", range(4))
def test_a_read_that_is_stuck_in_the_kernel_is_unknown_with_evidence(look: Look, number: int) -> None:
    """T7: D state"""
    answer = look.answers[f"stuck{number}"].facts
    assert isinstance(answer, Unknown)
    assert re.fullmatch(r"no answer within 2 s \(state D in \w+\)", answer.reason)
    assert look.findings[f"stuck{number}"] == "unknown"


@pytest.mark.parametrize(("name", "says"), [(n, says) for n, (_, says) in MISBEHAVIOUR.items()])
def test_each_misbehaviour_is_one_unknown(look: Look, name: str, says: str | None) -> None:
    answer = look.answers[name].facts
    if says is None:
        assert answer == {"value": Fact.fixed(1)}
        assert look.findings[name] == "pass"
    else:
        assert isinstance(answer, Unknown)
        assert re.fullmatch(says, answer.reason)
        assert look.findings[name] == "unknown"


def test_a_fifo_where_a_file_should_be(look: Look) -> None:
    """T7, goss#444: whoever opens it without care hangs, and the host never does"""
    careless, by_host = look.answers["fifo"].facts, look.answers["fifo_by_host"].facts
    assert isinstance(careless, Unknown)
    assert careless.reason.startswith("no answer within 2 s (state S in ")
    assert isinstance(by_host, Unknown)
    assert by_host.reason.endswith("fifo: is a FIFO, not a file")


def test_an_answer_of_100_mb_is_no_answer() -> None:
    """T8"""
    checks = {
        "big": check("big", answering({"x": Fact.fixed("y" * 100_000_000)})),
        "fine": check("fine", fine),
    }
    answers = engine.inspect(Host(), checks, 30)
    assert answers["big"].facts == Unknown(f"answered more than {process.OUTPUT_LIMIT} bytes")
    assert isinstance(answers["fine"].facts, dict)


def test_no_new_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """T23: at the limit of processes, what could not be looked at is unknown, and the rest counts"""
    fork, forks = os.fork, iter([True, False, True])

    def limited() -> int:
        if next(forks):
            return fork()
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", limited)
    answers = engine.inspect(Host(), {name: check(name, fine) for name in "abc"}, 10)
    assert list(answers) == ["a", "b", "c"]
    assert answers["b"].facts == Unknown("no process could be started to look: Resource temporarily unavailable")
    assert answers["a"].facts == answers["c"].facts == {"value": Fact.fixed(1)}


# -- as a process of its own ----------------------------------------------------------------------

CLI = """
import sys
import hostprep.checks
from hostprep import registry
from hostprep.__main__ import run
registry._FOLDER = sys.argv[1]
hostprep.checks.__path__ = [sys.argv[1]]
sys.exit(run(sys.argv[2:]))
"""
STUCK_CHECK = """
from hostprep.model import Desired
NAME = "stuck"
SCHEMA = {{}}
def inspect(host):
    {body}
def decide(facts, want):
    return {{"x": Desired(1)}}
"""


def command_line(tmp_path: Path, body: str, deadline: str) -> list[str]:
    """`hostprep check` with one more check, and the arguments to start it."""
    folder = tmp_path / "checks"
    folder.mkdir()
    for name in registry.names():
        (folder / f"{name}.py").symlink_to(Path(registry._FOLDER).resolve() / f"{name}.py")
    (folder / "stuck.py").write_text(STUCK_CHECK.format(body=body))
    (tmp_path / "profile.yaml").write_text("stuck: {}\nhardware: {cpus: 1}\n")
    wanted = ["check", "--profile", str(tmp_path / "profile.yaml"), "--deadline", deadline, "--format", "json"]
    return [sys.executable, "-c", CLI, str(folder), *wanted]


def test_the_command_line_ends_too_and_says_not_ready(tmp_path: Path, frozen: Path) -> None:
    """Nor is whoever reads its output to the end held up by the child that it leaves behind."""
    argv = command_line(tmp_path, f"open({str(frozen / 'f')!r}, 'w')", "2s")
    began = time.monotonic()
    done = subprocess.run(argv, capture_output=True, timeout=60, check=False)
    assert time.monotonic() - began < DEADLINE + GRACE + 2  # and the start of Python, and reading a new profile
    assert done.returncode == 3
    findings = {f"{f['check']}/{f['key']}": f for f in json.loads(done.stdout)["findings"]}
    assert findings["hardware/cpus"]["status"] == "pass"
    assert findings["stuck/*"]["status"] == "unknown"
    assert findings["stuck/*"]["message"].startswith("no answer within 2 s (state D in ")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_when_hostprep_is_killed_its_children_end_too(tmp_path: Path, sent: signal.Signals) -> None:
    """At once where it can still see to that; else a little after the deadline that they were given."""
    pid_file = tmp_path / "pid"
    body = f"import os; open({str(pid_file)!r}, 'w').write(f'{{os.getpid()}}\\n')\n    while True: pass"
    with subprocess.Popen(
        command_line(tmp_path, body, "1s"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as p:
        wait_for(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"))
        p.send_signal(sent)
        p.wait(10)
    child = Path(f"/proc/{pid_file.read_text().strip()}")
    wait_for(lambda: not child.exists() or " Z " in (child / "stat").read_text())


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)
