"""Child processes that always end, or are left behind: nothing here waits for ever.

`subprocess` is not used: after its timeout it waits without a limit for a child that cannot be killed
(measured: a child in D state held `subprocess.run(timeout=2)` for as long as it was stuck), and its
import costs as much as starting Python.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from collections.abc import Callable, Iterable, Sequence

from hostprep.errors import HostError

OUTPUT_LIMIT = 4 * 1024 * 1024  # bytes; more than any tool that we ask has to say
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SIGKILL = 9
_REAP_S = 1.0  # how long a killed child may take to go


def run(argv: Sequence[str], timeout: float, stdin: bytes = b"") -> str:
    """The stdout of a command; anything but exit 0 within `timeout` seconds is a HostError.

    Both streams are read, and the error carries what the command said: some tools (mstconfig) put their
    errors on stdout. The environment is LC_ALL=C.UTF-8 and a fixed PATH.
    """
    import signal  # not at the top: looking at a host that needs no command does without it

    program = which(argv[0])
    if program is None:
        raise HostError(f"{argv[0]}: not installed (not found in {PATH})")
    env = {"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": "/root"}
    out_r, out_w = os.pipe()
    err_r, err_w = os.pipe()
    in_r, in_w = os.pipe()
    try:
        pid = os.posix_spawn(
            program,
            list(argv),
            env,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, in_r, 0),
                (os.POSIX_SPAWN_DUP2, out_w, 1),
                (os.POSIX_SPAWN_DUP2, err_w, 2),
            ],
            setpgroup=0,  # a group of its own, within the session of the check: see kill_session()
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM],
        )
    except OSError as e:
        for fd in (out_r, err_r, in_w):
            os.close(fd)
        raise HostError(f"{argv[0]}: {e.strerror}") from e
    finally:
        for fd in (in_r, out_w, err_w):
            os.close(fd)
    end = time.monotonic() + timeout
    try:
        with contextlib.suppress(BrokenPipeError):
            os.write(in_w, stdin)
        os.close(in_w)
        out, err = read_all([out_r, err_r], end)
        code = _wait(pid, end)
    except TimeoutError:
        _kill_group(pid)
        raise HostError(f"{argv[0]}: no answer within {timeout:g} s{stuck_in(pid)}") from None
    except BaseException:
        _kill_group(pid)
        raise
    finally:
        os.close(out_r)
        os.close(err_r)
    stdout, stderr = out.decode(errors="replace"), err.decode(errors="replace")
    if code != 0:
        said = (stderr.strip() or stdout.strip()).splitlines()
        how = f"exit {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
        raise HostError(f"{argv[0]}: {how}" + (f": {clean(said[-1])}" if said else ""))
    return stdout


def which(name: str) -> str | None:
    """The path of a program on root's PATH, which systemd units and cron do not set."""
    if "/" in name:
        return name if os.access(name, os.X_OK) else None
    for directory in PATH.split(":"):
        path = f"{directory}/{name}"
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return None


def clean(text: str, limit: int = 300) -> str:
    """Text of a foreign tool made fit for one line of a report: no control characters, bounded."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= limit else line[: limit - 3] + "..."


class Child:
    """A forked child that runs one function and answers over a pipe."""

    def __init__(self, work: Callable[[], bytes]) -> None:
        self.answer, writer = os.pipe()
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.setsid()
                os.close(self.answer)
                data = work()
                while data:
                    data = data[os.write(writer, data) :]
                code = 0
            finally:
                os._exit(code)
        os.close(writer)

    def close(self) -> int | None:
        """Reap it; its wait status, or None when it would not go: then it is left behind."""
        os.close(self.answer)
        with contextlib.suppress(TimeoutError):
            return _wait(self.pid, time.monotonic() + _REAP_S)
        return None


def gather(works: Iterable[tuple[str, Callable[[], bytes]]], deadline: float) -> dict[str, tuple[bytes | str, float]]:
    """Run every function in a child of its own, all at once, under one deadline in seconds.

    Returns for each its answer, or a sentence that says why there is none, and the seconds it took. A child
    that is still there at the deadline is killed with everything it started; one that cannot be killed
    (stuck in the kernel) is left behind: waiting for it would hang us too.
    """
    children = {name: Child(work) for name, work in works}
    pipes = {child.answer: name for name, child in children.items()}
    received: dict[str, bytearray] = {name: bytearray() for name in children}
    took: dict[str, float] = {}
    end = time.monotonic() + deadline
    poll = select.poll()
    for fd in pipes:
        poll.register(fd, select.POLLIN)
    while pipes and (left := end - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            name = pipes[fd]
            data = os.read(fd, 65536)
            received[name] += data
            if not data or len(received[name]) > OUTPUT_LIMIT:
                took[name] = time.monotonic() - children[name].started
                poll.unregister(fd)
                del pipes[fd]
    late = set(pipes.values())
    answers: dict[str, tuple[bytes | str, float]] = {}
    for name, child in children.items():
        if name in late:
            where = stuck_in(child.pid)
            kill_session(child.pid)
            child.close()
            answers[name] = f"no answer within {deadline:g} s{where}", deadline
            continue
        code = child.close()
        if code == 0:
            answers[name] = bytes(received[name]), took[name]
        else:
            kill_session(child.pid)
            answers[name] = _ending(code), took[name]
    return answers


def _ending(code: int | None) -> str:
    import signal

    if code is not None and code < 0:
        return f"crashed: {signal.Signals(-code).name}"
    return "ended without an answer" if code is None else f"ended without an answer (exit {code})"


def stuck_in(pid: int) -> str:
    """Evidence about a process that does not answer: ` (state D in percpu_rwsem_wait)`, or ''."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            state = f.read().rpartition(")")[2].split()[0]
        with open(f"/proc/{pid}/wchan") as f:
            where = f.read().strip("0")
    except OSError:
        return ""
    return f" (state {state} in {where})" if where else f" (state {state})"


def kill_session(sid: int) -> None:
    """Kill every process of a session: a check's child and all commands that it started."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            with open(f"/proc/{entry}/stat") as f:
                fields = f.read().rpartition(")")[2].split()
            if int(fields[3]) == sid:
                os.kill(int(entry), _SIGKILL)


def read_all(fds: Sequence[int], end: float) -> list[bytes]:
    """Everything that comes out of some pipes until they close. TimeoutError at `end` (monotonic seconds)."""
    received = {fd: bytearray() for fd in fds}
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    waiting = set(fds)
    while waiting:
        if (left := end - time.monotonic()) <= 0:
            raise TimeoutError
        for fd, _ in poll.poll(left * 1000):
            data = os.read(fd, 65536)
            if not data:
                poll.unregister(fd)
                waiting.discard(fd)
            elif len(received[fd]) < OUTPUT_LIMIT:
                received[fd] += data
    return [bytes(received[fd]) for fd in fds]


def _wait(pid: int, end: float) -> int:
    """The exit code (negative: the signal) of a child. TimeoutError at `end`."""
    pause = 0.0005
    while True:
        try:
            done, status = os.waitpid(pid, os.WNOHANG)
        except OSError as e:
            if e.errno == errno.ECHILD:
                return 0
            raise
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            raise TimeoutError
        select.poll().poll(pause * 1000)
        pause = min(pause * 2, 0.02)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, _SIGKILL)
    with contextlib.suppress(TimeoutError):
        _wait(pid, time.monotonic() + _REAP_S)
