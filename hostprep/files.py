"""Files that must be whole or not there, and that nobody else may have written. Knows no host and no check."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from hostprep.errors import Busy, StateError


def replace(path: str, data: bytes, mode: int = 0o644, owner: tuple[int, int] | None = None) -> None:
    """Replace a file whole: temporary file beside it, fsync, rename, fsync of the directory. Raises OSError.

    A power cut leaves the old file or the new one, and at worst the temporary one beside it.
    """
    directory = os.path.dirname(path)
    temporary = temporary_name(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            _write_all(fd, data)
            if owner is not None:
                os.fchown(fd, *owner)
            os.fchmod(fd, mode)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(directory)


def temporary_name(path: str) -> str:
    """Where the new content is before the rename: hidden, and without the ending that drop-in folders are read by."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.hostprep-new")


def sync_directory(path: str) -> None:
    """Make names that were added to or removed from a directory survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def untrusted(path: str) -> str:
    """Why root must not believe this file: who else could have written it, or ''.

    The file and every directory above it must belong to root (or to us) and be writable by nobody else;
    a sticky directory such as /tmp is fine, since others cannot replace what is ours in it.
    """
    path = os.path.realpath(path)
    while True:
        try:
            info = os.stat(path)
        except FileNotFoundError:
            info = None
        if info is not None:
            if info.st_uid not in (0, os.geteuid()):
                return f"{path} belongs to user {info.st_uid}"
            sticky = stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX
            if info.st_mode & 0o022 and not sticky:
                return f"{path} can be written by others (mode {stat.S_IMODE(info.st_mode):04o})"
        parent = os.path.dirname(path)
        if parent == path:
            return ""
        path = parent


def own_directory(path: str) -> str:
    """A directory of hostprep's own, made if need be; StateError when others could write to it."""
    try:
        os.makedirs(path, mode=0o755, exist_ok=True)
    except OSError as e:
        raise StateError(f"{path}: {e.strerror}", "Check that its file system is mounted and writable.") from e
    if os.geteuid() == 0 and (why := untrusted(path)):
        raise StateError(f"{path} is not safe to use: {why}", "Give it back to root: chown root: and chmod go-w.")
    return path


@contextlib.contextmanager
def lock(path: str) -> Iterator[None]:
    """Hold an exclusive lock; Busy when another hostprep holds it. The kernel drops it when we die."""
    import fcntl

    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "?"
            raise Busy(f"another hostprep (process {holder}) is changing this host", "Wait until it is done.") from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)
