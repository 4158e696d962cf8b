"""Child processes that always end, or are left behind: nothing here waits for ever.

`subprocess` is not used: after its timeout it waits without a limit for a child that cannot be killed
(measured: a child in D state held `subprocess.run(timeout=2)` for as long as it was stuck), and its
import costs as much as starting Python.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, NoReturn

from hostprep.errors import CommandFailed, HostError

OUTPUT_LIMIT = 4 * 1024 * 1024  # bytes; more than any tool that we ask has to say
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROGRESS_S = 5.0  # how often a long command's last line is told
_SIGTERM, _SIGKILL = 15, 9
_GRACE_S = 1.0  # how long what was asked to end may take to finish what it is at
_REAP_S = 1.0  # how long killed children may take to go, all of them together
_TICK_S = 0.1  # how long until we notice that a command has ended while somebody else holds its pipes


# -- commands -------------------------------------------------------------------------------------


def run(argv: Sequence[str], timeout: float, stdin: bytes = b"") -> str:
    """The stdout of a command; anything but exit 0 within `timeout` seconds is a HostError.

    Both streams are read, and the error carries what the command said: some tools (mstconfig) put their
    errors on stdout. The environment is LC_ALL=C.UTF-8 and a fixed PATH.
    """
    end = time.monotonic() + timeout
    program = which(argv[0])
    if program is None:
        raise HostError(f"{argv[0]}: not installed (not found in {PATH})")
    try:
        pid, out_r, err_r = _spawn(program, argv, stdin)
    except (OSError, ValueError) as e:  # ValueError: a NUL in an argument
        raise HostError(f"{argv[0]}: {getattr(e, 'strerror', None) or e}") from e
    try:
        out, err = _read(pid, [out_r, err_r], end)
        code = _wait(pid, end)
    except TimeoutError:
        where = stuck_in(pid)
        _kill_and_reap(pid)
        raise HostError(f"{argv[0]}: no answer within {timeout:g} s{where}") from None
    except BaseException:
        _kill_and_reap(pid)
        raise
    finally:
        os.close(out_r)
        os.close(err_r)
    if len(out) > OUTPUT_LIMIT:
        raise HostError(f"{argv[0]}: said more than {OUTPUT_LIMIT} bytes: not what hostprep expects of it")
    stdout, stderr = out.decode(errors="replace"), err.decode(errors="replace")
    if code != 0:
        said = (stderr.strip() or stdout.strip()).splitlines()
        message = f"{argv[0]}: {_ending(code)}" + (f": {clean(said[-1])}" if said else "")
        raise CommandFailed(message, status=code, output=stdout + stderr)
    return stdout


def run_logged(
    argv: Sequence[str], timeout: float, log: IO[bytes], directory: str, progress: Callable[[str], None]
) -> None:
    """Run a command that takes long, in a directory: all that it says goes into `log`, at once.

    Every few seconds its last line is told as progress. Anything but exit 0 within `timeout` seconds is a HostError.
    """
    end = time.monotonic() + timeout
    # posix_spawn(3) has no directory to start in, and changing our own would be seen by all that we do.
    pid, out_r, err_r = _spawn("/bin/sh", ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", directory, *argv], b"")
    try:
        last = _copy(pid, [out_r, err_r], end, log, progress)
        code = _wait(pid, end)
    except TimeoutError:
        _kill_and_reap(pid)
        raise HostError(f"{argv[0]}: did not end within {timeout:g} s, and was stopped") from None
    except BaseException:
        _kill_and_reap(pid)
        raise
    finally:
        os.close(out_r)
        os.close(err_r)
    if code != 0:
        raise CommandFailed(f"{argv[0]}: {_ending(code)}" + (f": {last}" if last else ""), status=code, output=last)


def _copy(pid: int, fds: Sequence[int], end: float, log: IO[bytes], progress: Callable[[str], None]) -> str:
    """Copy what a command writes into some pipes to a log; the last line. TimeoutError at `end`."""
    tail, told = b"", time.monotonic()
    for _, data in _written(pid, fds, end):
        log.write(data)
        tail = (tail + data)[-4096:]
        if time.monotonic() - told >= PROGRESS_S and (line := _last_line(tail)):
            progress(line)
            told = time.monotonic()
    return _last_line(tail)


def _last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").replace("\r", "\n").strip().splitlines()
    return clean(lines[-1].strip()) if lines else ""


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


def _spawn(program: str, argv: Sequence[str], stdin: bytes) -> tuple[int, int, int]:
    """Start a command; its pid, and where its stdout and stderr come out."""
    import signal  # not at the top: looking at a host that needs no command does without it

    _prepare_for_children()
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        out_r, out_w = _pipe(ours, theirs)
        err_r, err_w = _pipe(ours, theirs)
        pid = os.posix_spawn(
            program,
            list(argv),
            {"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": "/root"},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, _stdin(stdin, theirs), 0),
                (os.POSIX_SPAWN_DUP2, out_w, 1),
                (os.POSIX_SPAWN_DUP2, err_w, 2),
            ],
            setpgroup=0,  # a group of its own, within the session of the check: see kill_families()
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD],
        )
        ours.pop_all()
    return pid, out_r, err_r


def _pipe(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[int, int]:
    reader, writer = os.pipe()
    ours.callback(os.close, reader)
    theirs.callback(os.close, writer)
    return reader, writer


def _stdin(data: bytes, closing: contextlib.ExitStack) -> int:
    """A file of this content. Not a pipe: a command that does not read it would hold us up."""
    fd = os.memfd_create("stdin") if data else os.open(os.devnull, os.O_RDONLY)
    closing.callback(os.close, fd)
    if data:
        with open(fd, "wb", closefd=False) as f:
            f.write(data)
        os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _read(pid: int, fds: Sequence[int], end: float) -> list[bytes]:
    """What a command writes into some pipes. The first may hold OUTPUT_LIMIT, and no more is read."""
    received = {fd: bytearray() for fd in fds}
    for fd, data in _written(pid, fds, end):
        if len(received[fd]) <= OUTPUT_LIMIT:
            received[fd] += data
        if len(received[fds[0]]) > OUTPUT_LIMIT:
            kill_families({pid})
            break
    return [bytes(received[fd]) for fd in fds]


def _written(pid: int, fds: Sequence[int], end: float) -> Iterator[tuple[int, bytes]]:
    """What comes out of some pipes of a command. TimeoutError at `end` (monotonic seconds).

    It is complete when the pipes close, or when the command has ended and they are empty: a daemon that it
    left behind may keep them open for ever.
    """
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    waiting = set(fds)
    while waiting:
        if (left := end - time.monotonic()) <= 0:
            raise TimeoutError
        ended = _exit_code(pid) is not None
        ready = poll.poll(0 if ended else min(left, _TICK_S) * 1000)
        if ended and not ready:
            return
        for fd, _ in ready:
            if data := os.read(fd, 65536):
                yield fd, data
            else:
                poll.unregister(fd)
                waiting.discard(fd)


def _wait(pid: int, end: float) -> int:
    """Reap a child; its exit code (negative: the signal). TimeoutError at `end`."""
    pause = 0.0005
    while (code := _exit_code(pid)) is None:
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
    os.waitpid(pid, 0)
    return code


def _exit_code(pid: int) -> int | None:
    """The exit code (negative: the signal) of a child that has ended, which is not reaped: its pid stays its own."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def _kill_and_reap(pid: int) -> None:
    end_families({pid})
    with contextlib.suppress(TimeoutError):
        _wait(pid, time.monotonic() + _REAP_S)


# -- functions ------------------------------------------------------------------------------------


class Child:
    """A forked child that runs one function and answers over a pipe."""

    def __init__(self, work: Callable[[], bytes], limit: float, held: Iterable[int]) -> None:
        self.answer, writer = os.pipe()
        self.received = bytearray()
        self.seconds: float | None = None  # that it took; None while it has not finished
        self.where = ""  # evidence, where it did not finish
        self.code: int | None = None  # None while it has not ended
        self.started = time.monotonic()
        try:
            self.pid = os.fork()
        except OSError:
            os.close(self.answer)
            os.close(writer)
            raise
        if self.pid == 0:
            _live(work, writer, limit, (*held, self.answer))
        os.close(writer)

    def listen(self) -> bool:
        """Take what has come; is there more to come?"""
        data = os.read(self.answer, 65536)
        self.received += data
        if data and len(self.received) <= OUTPUT_LIMIT:
            return True
        self.seconds = time.monotonic() - self.started
        return False

    def gone(self) -> bool:
        """Has it ended? If so it is reaped, and before that, when it ended badly, all that it left behind is killed."""
        if self.code is None and (code := _exit_code(self.pid)) is not None:
            if code:
                kill_families({self.pid})
            os.waitpid(self.pid, 0)
            self.code = code
        return self.code is not None

    def result(self, deadline: float) -> bytes | str:
        """Its answer, or a sentence that says why there is none."""
        if self.seconds is None:
            return f"no answer within {deadline:g} s{self.where}"
        if len(self.received) > OUTPUT_LIMIT:
            return f"answered more than {OUTPUT_LIMIT} bytes"
        return bytes(self.received) if self.code == 0 and self.received else f"gave no answer: {_ending(self.code)}"


def _live(work: Callable[[], bytes], writer: int, limit: float, held: Iterable[int]) -> NoReturn:
    """The life of a child. It holds nothing of its parent's but the pipe: one that is stuck would otherwise hold
    a lock, or the stdout that a caller reads to its end, long after the parent is gone."""
    code = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        for fd in held:
            if fd not in (0, 1, 2, writer):
                with contextlib.suppress(OSError):
                    os.close(fd)
        signals = _signals()
        signals.signal(signals.SIGALRM, signals.SIG_DFL)
        signals.alarm(int(limit) + 2)  # should the parent be killed meanwhile, nobody else would end us
        data = work()
        while data:
            data = data[os.write(writer, data) :]
        code = 0
    finally:
        os._exit(code)


def gather(works: Iterable[tuple[str, Callable[[], bytes]]], deadline: float) -> dict[str, tuple[bytes | str, float]]:
    """Run every function in a child of its own, all at once, under one deadline in seconds.

    Returns for each its answer, or a sentence that says why there is none, and the seconds it took. A child
    that is still there at the deadline is killed with everything it started; one that cannot be killed
    (stuck in the kernel) is left behind: waiting for it would hang us too.
    """
    _prepare_for_children()
    end = time.monotonic() + deadline
    children: dict[str, Child | str] = {}
    held = [int(fd) for fd in os.listdir("/proc/self/fd")]
    try:
        for name, work in works:
            try:
                children[name] = child = Child(work, deadline, held)
                held.append(child.answer)
            except OSError as e:
                children[name] = f"no process could be started to look: {e.strerror}"
        _listen(_started(children), end)
    finally:
        _end(_started(children))
    return {
        name: (child, 0.0)
        if isinstance(child, str)
        else (child.result(deadline), deadline if child.seconds is None else child.seconds)
        for name, child in children.items()
    }


def _started(children: Mapping[str, Child | str]) -> list[Child]:
    return [child for child in children.values() if isinstance(child, Child)]


def _listen(children: Iterable[Child], end: float) -> None:
    """Read what children answer, until each is done or the end (monotonic seconds) has come."""
    poll = select.poll()
    waiting = {child.answer: child for child in children}
    for fd in waiting:
        poll.register(fd, select.POLLIN)
    while waiting and (left := end - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            if not waiting[fd].listen():
                poll.unregister(fd)
                del waiting[fd]


def _end(children: Sequence[Child]) -> None:
    """Kill those that are not done, and reap all, within one limit for them together."""
    unfinished = [c for c in children if c.seconds is None or len(c.received) > OUTPUT_LIMIT]
    for child in unfinished:
        child.where = stuck_in(child.pid)
    for child in children:
        os.close(child.answer)
    if unfinished:
        end_families({child.pid for child in unfinished})
    end = time.monotonic() + _REAP_S
    pause = 0.0002
    left = list(children)
    while (left := [child for child in left if not child.gone()]) and time.monotonic() < end:
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
    if left:
        kill_families({child.pid for child in left})


def _ending(code: int | None) -> str:
    if code is None:
        return "does not end"
    if code >= 0:
        return f"exit {code}"
    import signal

    names = {s.value: s.name for s in signal.Signals}  # real-time signals have no names
    return f"killed by {names.get(-code, f'signal {-code}')}"


# -- both -----------------------------------------------------------------------------------------


def stuck_in(pid: int) -> str:
    """Evidence about a process that does not answer: ` (state D in percpu_rwsem_wait)`, or ''."""
    try:
        state = _stat(pid)[0]
        with open(f"/proc/{pid}/wchan") as f:
            where = f.read().strip("0")
    except OSError:
        return ""
    return f" (state {state} in {where})" if where else f" (state {state})"


def end_families(roots: set[int]) -> None:
    """End these children of ours and all that they started: asked first, then killed.

    A mstconfig that is killed in the middle of a command leaves the semaphore of its card held, and no tool gets
    through to that any more before the next boot; on SIGTERM it finishes the command that it is at.
    """
    asked = _families(roots)
    for pid in asked:
        with contextlib.suppress(OSError):
            os.kill(pid, _SIGTERM)
    end = time.monotonic() + _GRACE_S
    while any(_may_end(pid) for pid in asked) and time.monotonic() < end:
        time.sleep(0.01)
    kill_families(roots)


def _may_end(pid: int) -> bool:
    """Is it still there, and not stuck in the kernel?"""
    try:
        return _stat(pid)[0] not in ("Z", "X", "D")
    except OSError:
        return False


def kill_families(roots: set[int]) -> None:
    """Kill these children of ours and all that they started: their sessions, groups and descendants.

    They must not have been reaped yet, or their numbers could be another's. Only a daemon that left its session
    and whose parent is gone gets away.
    """
    killed: set[int] = set()
    for _ in range(5):  # what is started while we look is found by looking again
        found = _families(roots) - killed
        if not found:
            return
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, _SIGKILL)
        killed |= found


def _families(roots: set[int]) -> set[int]:
    parents: dict[int, int] = {}
    members: set[int] = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                _, parent, group, session = _stat(int(entry))[:4]
                parents[int(entry)] = int(parent)
                if roots & {int(entry), int(group), int(session)}:
                    members.add(int(entry))
    while more := {pid for pid, parent in parents.items() if parent in members} - members:
        members |= more
    return members


def _stat(pid: int) -> list[str]:
    """State, parent, group, session and what follows them in proc_pid_stat(5)."""
    with open(f"/proc/{pid}/stat", "rb") as f:
        return f.read().rpartition(b")")[2].decode().split()


def _prepare_for_children() -> None:
    """Undo what whoever started us may have done to our children.

    With SIGCHLD ignored the kernel throws exit statuses away. With stdin, stdout or stderr closed, a pipe of
    ours would become one of them.
    """
    signals = _signals()
    if signals.getsignal(signals.SIGCHLD) == signals.SIG_IGN:
        signals.signal(signals.SIGCHLD, signals.SIG_DFL)
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def _signals() -> Any:
    import _signal  # type: ignore[import-not-found,unused-ignore]  # signal without its enums, which cost a millisecond

    return _signal
