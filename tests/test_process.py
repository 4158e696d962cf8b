"""Running commands: whatever a tool does, one of two things comes of it in time: its stdout, or a HostError."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hostprep.errors import CommandFailed, HostError
from hostprep.host import process

Program = Callable[[str], str]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Make a shell script to run."""

    def make(script: str) -> str:
        path = tmp_path / "tool"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return make


def refusal(*argv: str, timeout: float = 10, stdin: bytes = b"") -> str:
    with pytest.raises(HostError) as caught:
        process.run(argv, timeout, stdin)
    return str(caught.value)


def children() -> set[str]:
    """The processes that we have started, zombies too."""
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == os.getpid():
                found.add(entry)
    return found


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> object:
    fds, before = set(os.listdir("/proc/self/fd")), children()
    yield
    assert set(os.listdir("/proc/self/fd")) == fds, "file descriptors leaked"
    assert children() == before, "a child is left, or a zombie"


@pytest.mark.parametrize(
    ("script", "stdout"),
    [
        ("echo hello", "hello\n"),
        ("echo warning >&2; echo value", "value\n"),
        (r"printf 'a\377b'", "a\ufffdb"),  # invalid UTF-8
        ("echo $LC_ALL $PATH", f"C.UTF-8 {process.PATH}\n"),
        ("exec 2>&-; echo still here", "still here\n"),
        ("cat", ""),  # stdin is empty, not the terminal
    ],
)
def test_stdout_is_the_answer(program: Program, script: str, stdout: str) -> None:
    assert process.run([program(script)], 10) == stdout


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo out; echo err >&2; exit 3", "exit 3: err"),
        (
            "echo '-E- Failed to open the device'; exit 1",
            "exit 1: -E- Failed to open the device",
        ),  # mstconfig: on stdout
        ("exit 1", "exit 1"),
        ("exit 255", "exit 255"),
        ("kill -KILL $$", "killed by SIGKILL"),
        ("kill -SEGV $$", "killed by SIGSEGV"),
        ("kill -40 $$", "killed by signal 40"),  # a real-time signal, which has no name
        (r"printf 'one\ntw\033[31mo\007\r' >&2; exit 1", "exit 1: tw [31mo"),  # T8: nothing of it steers a terminal
        (r"printf 'x\342\200\256y\377' >&2; exit 1", "exit 1: x y\ufffd"),  # nor turns the writing direction
    ],
)
def test_a_failure_says_how_it_ended_and_what_it_said(program: Program, script: str, said: str) -> None:
    assert refusal(program(script)).partition(": ")[2].rstrip() == said


@pytest.mark.parametrize(
    ("script", "status", "output"),
    [
        ("echo out; echo err >&2; exit 3", 3, "out\nerr\n"),
        ("echo one; echo two; exit 1", 1, "one\ntwo\n"),
        ("kill -KILL $$", -signal.SIGKILL, ""),
    ],
)
def test_who_knows_a_tool_is_told_its_status_and_all_that_it_said(script: str, status: int, output: str) -> None:
    """mstconfig says on stdout what went wrong, and its last line is not always what tells."""
    with pytest.raises(CommandFailed) as e:
        process.run(["sh", "-c", script], 10)
    assert (e.value.status, e.value.output) == (status, output)


@pytest.mark.parametrize(("argv", "timeout"), [(["hostprep-no-such-tool"], 10), (["sleep", "10"], 0.1)])
def test_what_did_not_run_to_its_end_is_no_command_that_failed(argv: list[str], timeout: float) -> None:
    with pytest.raises(HostError) as e:
        process.run(argv, timeout)
    assert not isinstance(e.value, CommandFailed)


def test_a_long_complaint_is_cut(program: Program) -> None:
    assert len(refusal(program("head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1"))) < 500


def test_arguments_are_handed_over_and_not_read_by_a_shell() -> None:
    """T8"""
    assert process.run(["echo", "'; rm -rf /; '", "$HOME", "*"], 10) == "'; rm -rf /; ' $HOME *\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["hostprep-no-such-tool"], "not installed"),
        (["/nowhere/tool"], "not installed"),
        (["/tmp"], "Permission denied"),
        (["echo", "a\0b"], "null"),
    ],
)
def test_what_cannot_be_started_is_said(argv: list[str], said: str) -> None:
    assert said in refusal(*argv)


def test_a_hostile_path_is_not_used(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever calls hostprep does not choose what root runs: PATH is fixed, and holds no directory of theirs."""
    program("echo mine")
    (tmp_path / "tool").rename(tmp_path / "uname")
    monkeypatch.setenv("PATH", f"{tmp_path}:.:")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert process.run(["uname", "-s"], 10) == "Linux\n"


@pytest.mark.parametrize(
    "script",
    [
        "exec sleep 1000",
        "trap '' TERM INT HUP; sleep 1000 & sleep 1000",
        "setsid sleep 1000 & wait",  # a session of its own, but still our grandchild
        "exec >&- 2>&-; exec sleep 1000",
        "while :; do echo more; done >&2",
    ],
)
def test_a_tool_that_hangs_is_killed_with_all_it_started(program: Program, script: str) -> None:
    began = time.monotonic()
    assert "no answer within 0.5 s" in refusal(program(script), timeout=0.5)
    assert time.monotonic() - began < 2
    left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if _runs(p, b"sleep\x001000\x00")]
    assert not left


def _runs(cmdline: Path, words: bytes) -> bool:
    try:
        return cmdline.read_bytes() == words
    except OSError:
        return False


def test_a_hang_is_told_with_evidence(program: Program) -> None:
    assert "(state S in " in refusal(program("exec sleep 1000"), timeout=0.3)


def test_too_much_output_is_an_error_and_not_half_an_answer(program: Program) -> None:
    """T8: 100 MB, of which a part would have been taken for the whole."""
    began = time.monotonic()
    assert "said more than" in refusal(program("exec head -c 100000000 /dev/zero"), timeout=30)
    assert time.monotonic() - began < 10


def test_much_noise_on_stderr_does_not_hurt(program: Program) -> None:
    assert process.run([program("head -c 20000000 /dev/zero >&2; echo fine")], 30) == "fine\n"


def test_a_daemon_that_keeps_the_pipes_open_does_not_keep_us(program: Program, tmp_path: Path) -> None:
    """node-problem-detector#1050: after the tool had ended, its plug-in worker waited for the pipe for ever."""
    pid_file = tmp_path / "pid"
    began = time.monotonic()
    try:
        assert process.run([program(f"sleep 1000 & echo $! >{pid_file}; echo started")], 20) == "started\n"
        assert time.monotonic() - began < 5
    finally:
        os.kill(int(pid_file.read_text()), signal.SIGKILL)


def test_stdin_is_handed_over_whole_and_need_not_be_read(program: Program) -> None:
    data = b"x" * 1_000_000  # far more than a pipe holds
    assert process.run([program("wc -c")], 10, data) == "1000000\n"
    assert process.run([program("echo not reading")], 10, data) == "not reading\n"


STARTED_BADLY = """
import os, signal
from hostprep.errors import HostError
from hostprep.host import process
if {ignoring}:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for fd in {closed}:
    os.close(fd)
try:
    process.run(["false"], 10)
    answer = "false succeeded"
except HostError as e:
    answer = str(e)
answer += " " + process.run(["cat"], 10, b"in") + process.run(["sh", "-c", "echo out; echo err >&2"], 10)
answer += str(process.gather([("a", lambda: b"1"), ("b", lambda: b"2")], 10)["b"][0])
open({result!r}, "w").write(answer)
"""


@pytest.mark.parametrize("closed", [[], [0], [1], [2], [0, 1, 2]])
@pytest.mark.parametrize("ignoring", [False, True])
def test_however_hostprep_was_started(tmp_path: Path, closed: list[int], ignoring: bool) -> None:
    """With SIGCHLD ignored the kernel throws exit statuses away, and `false` looks like success (bpo-1731717); with a
    standard stream closed a pipe takes its place."""
    result = tmp_path / "result"
    script = STARTED_BADLY.format(ignoring=ignoring, closed=closed, result=str(result))
    subprocess.run([sys.executable, "-c", script], check=False, timeout=30)
    assert result.read_text() == "false: exit 1 inout\nb'2'"


def test_many_open_files_are_no_limit(program: Program) -> None:
    """select(2) ends at descriptor 1024; poll(2) does not."""
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert max(held) > 1024
        assert process.run([program("echo fine")], 10) == "fine\n"
    finally:
        for fd in held:
            os.close(fd)
