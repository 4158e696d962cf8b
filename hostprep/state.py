"""Where hostprep keeps what is its own: the published report, the journal, the lock."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import stat
from collections.abc import Iterator
from typing import Any

from hostprep import files
from hostprep.errors import Busy, HostError, NeedsRoot, OutputFailed, ReportUnusable, StateError
from hostprep.host import Host
from hostprep.report import Identity, Report, dumps

RUN_DIR = "/run/hostprep"
STATE_DIR = "/var/lib/hostprep"
UNTOLD = "untold"  # beside the report: there is another one, or none, and hostprep-publish.service has not told it yet
REPORT_LIMIT = 16 * 1024 * 1024  # bytes; a host with a thousand virtual functions makes about one million
_DEPTH = 8  # of a report: an item of a list in a fact is at 6


def run_dir() -> str:
    """Where the report is published: $HOSTPREP_RUN_DIR, else /run/hostprep."""
    return os.environ.get("HOSTPREP_RUN_DIR") or RUN_DIR


def state_dir() -> str:
    """Where the journal and the lock are: $HOSTPREP_STATE_DIR, else /var/lib/hostprep."""
    return os.environ.get("HOSTPREP_STATE_DIR") or STATE_DIR


def report_path() -> str:
    return os.path.join(run_dir(), "report.json")


def journal_path() -> str:
    return os.path.join(state_dir(), "journal")


def publishes() -> bool:
    """Does this user publish reports? root does; others where they name a directory of their own."""
    return os.geteuid() == 0 or "HOSTPREP_RUN_DIR" in os.environ


def identity(host: Host) -> Identity:
    """Which host this is, and which boot of it; empty where it cannot be read."""

    def text(path: str) -> str:
        try:
            return host.read(path) or ""
        except HostError:  # what cannot be read matches no other host's: the report is then not relied on
            return ""

    hostname = text("/proc/sys/kernel/hostname") or text("/etc/hostname")
    boot_id = text("/proc/sys/kernel/random/boot_id")
    return Identity(hostname, text("/etc/machine-id"), boot_id, text("/proc/sys/kernel/osrelease"))


def report_revision() -> object:
    """Changes whenever another report is published, or the one there is taken away."""
    try:
        info = os.stat(report_path())
    except OSError:
        return None
    return info.st_ino, info.st_mtime_ns, info.st_size


def publish(report: Report) -> str:
    """Put the report where the cluster waits for it, by rename. When that fails, the old one is taken away."""
    path = report_path()
    try:
        files.own_directory(run_dir())
        files.replace(path, dumps(report).encode(), 0o644, lasting=False)
    except (OSError, StateError) as e:
        with contextlib.suppress(OSError):
            os.unlink(path)
        reason = e.strerror if isinstance(e, OSError) else str(e)
        raise OutputFailed(f"{path}: the report could not be published: {reason}", getattr(e, "hint", "")) from e
    finally:
        _mark_untold()
    return path


def _mark_untold() -> None:
    """Have hostprep-publish.path start its service, or once more where that runs already."""
    with contextlib.suppress(OSError):  # without the mark a change of the report starts it, unless it runs
        os.close(
            os.open(os.path.join(run_dir(), UNTOLD), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        )


def retract() -> None:
    """Take the published report away, before the host is changed: it speaks of a host that will be no more.

    Whoever is cut off while changing leaves no report, and without one the host is not ready.
    """
    path = report_path()
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as e:
        raise OutputFailed(f"{path}: the old report cannot be taken away: {e.strerror}; nothing was changed") from e
    _mark_untold()


def published() -> Any:
    """The report that was published last, as data. Raises ReportUnusable."""
    path = report_path()
    again = "Make one: hostprep check (as root)"
    if os.geteuid() == 0 and os.path.lexists(path) and (why := files.untrusted(path)):
        raise ReportUnusable(f"{path} is not to be trusted: {why}", again, reason="untrusted")
    try:
        data = _read(path)
    except FileNotFoundError:
        raise ReportUnusable(f"there is no report at {path}", again, reason="missing") from None
    except OSError as e:
        raise ReportUnusable(f"{path}: {e.strerror}", again, reason="unreadable") from e
    try:
        return _parsed(data)
    except (ValueError, RecursionError) as e:
        raise ReportUnusable(f"{path}: damaged: {e}", again, reason="damaged") from e


def _read(path: str) -> bytes:
    """The bytes of a regular file, of which a report has no more than REPORT_LIMIT. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would hold us up
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        with open(fd, "rb", closefd=False) as f:
            data = f.read(REPORT_LIMIT + 1)
    finally:
        os.close(fd)
    if len(data) > REPORT_LIMIT:
        raise OSError(errno.EFBIG, f"more than {REPORT_LIMIT} bytes: no report")
    return data


def _parsed(data: bytes) -> Any:
    """JSON of which all readers take the same: no name twice, no NaN, no number out of range, UTF-8, and not deep.

    RFC 8259 4, 6 and 8.1 leave these to the reader; json.loads() takes the last of two names, and much else.
    """
    hooks: dict[str, Any] = {"parse_int": _whole, "parse_float": _finite, "parse_constant": _refused_constant}
    level = [json.loads(data.decode("utf-8"), object_pairs_hook=_names_once, **hooks)]
    whole = level[0]
    for _ in range(_DEPTH):
        level = [v for n in level if isinstance(n, (dict, list)) for v in (n.values() if isinstance(n, dict) else n)]
    if level:
        raise ValueError("nested too deeply")
    return whole


def _names_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name[:80]!r} is there twice")
        found[name] = value
    return found


def _whole(text: str) -> int:
    if len(text) > 20:  # 64 bits have 20 digits
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:80]} is no number")
    return number


def _refused_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")


@contextlib.contextmanager
def changing() -> Iterator[str]:
    """The journal's path, with nobody else changing this host. Raises NeedsRoot, Busy or StateError."""
    if os.geteuid() != 0:
        raise NeedsRoot("this needs root", "Run it again with sudo.")
    folder = files.own_directory(state_dir())
    with files.lock(os.path.join(folder, "lock")):
        yield os.path.join(folder, "journal")


@contextlib.contextmanager
def measuring() -> Iterator[None]:
    """Nobody changes this host meanwhile, and nobody else measures it. Raises NeedsRoot, Busy or StateError."""
    if os.geteuid() != 0:
        raise NeedsRoot("to measure needs root", "Run it again with sudo.")
    folder = files.own_directory(state_dir())
    with contextlib.ExitStack() as stack:
        stack.enter_context(files.lock(os.path.join(folder, "lock"), shared=True))
        try:
            stack.enter_context(files.lock(os.path.join(folder, "measuring")))
        except Busy as e:
            raise Busy("another hostprep is measuring this host", "Wait until it is done.") from e
        yield


def revision() -> object:
    """Changes whenever hostprep changes this host: what was seen before is then not published."""
    try:
        info = os.stat(journal_path())
    except OSError:
        return None
    return info.st_mtime_ns, info.st_size


@contextlib.contextmanager
def unchanged(since: object) -> Iterator[bool]:
    """Is this host still as it was at that revision? Nobody changes it while the caller acts on the answer."""
    with contextlib.ExitStack() as stack:
        sure = True
        if os.geteuid() == 0:
            try:
                folder = files.own_directory(state_dir())
                stack.enter_context(files.lock(os.path.join(folder, "lock"), shared=True))
                sure = revision() == since
            except Busy:
                sure = False
            except StateError:  # where hostprep cannot keep a journal it changes nothing
                sure = True
        yield sure
