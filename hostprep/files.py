"""Files that must be whole or not there, and that nobody else may have written. Knows no host and no check."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from hostprep.errors import Busy, StateError

# Extended attributes that the kernel makes of a file's content (IMA) or keeps to itself (EVM).
_NOT_COPIED = ("security.ima", "security.evm")


def replace(
    path: str,
    data: bytes,
    mode: int = 0o644,
    owner: tuple[int, int] | None = None,
    attributes: str = "",
    temporary: str | None = None,
    lasting: bool = True,
) -> None:
    """Replace a file whole: temporary file beside it, fsync, rename, fsync of the directory. Raises OSError.

    A power cut leaves the old file or the new one, and at worst the temporary one beside it. Two processes may
    replace the same file at once, unless they name the `temporary` file. What means nothing after a reboot need not
    be `lasting`: no reader sees half of it either, but it is not waited for until it is on disk.
    """
    temporary = temporary or f"{temporary_name(path)}-{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            _write_all(fd, data)
            if owner is not None:
                os.fchown(fd, *owner)
            set_attributes(fd, attributes)
            os.fchmod(fd, mode)
            if lasting:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if lasting:
        sync_directory(os.path.dirname(path))


def replace_link(path: str, target: bytes, owner: tuple[int, int] | None = None) -> None:
    """Put a symbolic link in place by rename. Raises OSError."""
    temporary = temporary_name(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    os.symlink(target, temporary)
    try:
        if owner is not None:
            os.lchown(temporary, *owner)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    sync_directory(os.path.dirname(path))


def temporary_name(path: str) -> str:
    """Where the new content is before the rename: hidden, and without the ending that drop-in folders are read by."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.hostprep-new")


def sync_directory(path: str) -> None:
    """Make names that were added to or removed from a directory survive a power cut."""
    fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def attributes(path: str) -> str:
    """The extended attributes of a file (SELinux label, ACL, user.*), one `NAME=HEX` a line; a link is not followed."""
    try:
        names = sorted(n for n in os.listxattr(path, follow_symlinks=False) if n not in _NOT_COPIED)
        return "\n".join(f"{n}={os.getxattr(path, n, follow_symlinks=False).hex()}" for n in names)
    except OSError as e:
        if e.errno in (errno.ENOTSUP, errno.ENODATA):
            return ""
        raise


def set_attributes(fd: int, wanted: str) -> None:
    """Give an open file these attributes, as attributes() tells them, and no others but the kernel's labels."""
    pairs = (line.rpartition("=") for line in wanted.splitlines())
    values = {name: bytes.fromhex(value) for name, _, value in pairs}
    try:
        present = {name: os.getxattr(fd, name) for name in os.listxattr(fd)}
    except OSError as e:
        if e.errno != errno.ENOTSUP:
            raise
        present = {}
    for name in present.keys() - values.keys():
        if not name.startswith("security."):
            os.removexattr(fd, name)
    for name, value in values.items():
        if present.get(name) != value:  # setting a label anew would need a privilege that having it does not
            os.setxattr(fd, name, value)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def untrusted(path: str) -> str:
    """Why root must not believe this file: who else could have written it, or put another in its place; or ''.

    The file, every directory on the way to it and every symbolic link must belong to root (or to us), and files and
    directories must be writable by nobody else; a sticky directory such as /tmp is fine, since others cannot
    replace what is ours in it.
    """
    here = "/"
    todo = os.path.abspath(path).split("/")[::-1]
    links = 0
    while True:
        try:
            info = os.lstat(here)
        except (FileNotFoundError, NotADirectoryError):
            return ""  # it could only be made by those who may write to the directory above
        if why := _writable_by_others(here, info):
            return why
        if stat.S_ISLNK(info.st_mode):
            links += 1
            if links > 40:
                return f"{path} has too many symbolic links"
            target = os.readlink(here)
            here = "/" if target.startswith("/") else os.path.dirname(here)
            todo += target.split("/")[::-1]
        while todo and todo[-1] in ("", "."):
            todo.pop()
        if not todo:
            return ""
        part = todo.pop()
        here = os.path.dirname(here) if part == ".." else os.path.join(here, part)


def _writable_by_others(path: str, info: os.stat_result) -> str:
    if info.st_uid not in (0, os.geteuid()):
        return f"{path} belongs to user {info.st_uid}"
    sticky = stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX
    if info.st_mode & 0o022 and not sticky and not stat.S_ISLNK(info.st_mode):
        return f"{path} can be written by others (mode {stat.S_IMODE(info.st_mode):04o})"
    return ""


def own_directory(path: str) -> str:
    """A directory of hostprep's own, made if need be; StateError when others could write to it."""
    try:
        _make_directories(os.path.abspath(path))
    except OSError as e:
        raise StateError(f"{path}: {e.strerror}", "Check that its file system is mounted and writable.") from e
    if os.geteuid() == 0 and (why := untrusted(path)):
        raise StateError(f"{path} is not safe to use: {why}", "Give it back to root: chown root: and chmod go-w.")
    return path


def _make_directories(path: str) -> None:
    """Like os.makedirs, but with mode 0755 all the way, whatever the umask."""
    if os.path.isdir(path):
        return
    _make_directories(os.path.dirname(path))
    with contextlib.suppress(FileExistsError):  # another hostprep was faster
        os.mkdir(path, 0o700)
        os.chmod(path, 0o755)  # noqa: S103  # whoever waits for the report reads it there
    if not os.path.isdir(path):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)


_LOCK_HINTS = {
    **dict.fromkeys((errno.ELOOP, errno.EISDIR), "Something else is there: look at it, and remove it."),
    **dict.fromkeys((errno.EROFS, errno.ENOSPC), "Its file system has to be mounted read-write, and not full."),
}


@contextlib.contextmanager
def lock(path: str, shared: bool = False) -> Iterator[None]:
    """Hold a lock; Busy when another hostprep holds it. The kernel drops it when we die.

    Those who only want nobody to change anything meanwhile hold it `shared`.
    """
    import fcntl

    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as e:
        hint = _LOCK_HINTS.get(e.errno or 0, "")
        raise StateError(f"{path}: cannot be locked: {e.strerror}", hint) from e
    try:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "?"
            raise Busy(f"another hostprep (process {holder}) is changing this host", "Wait until it is done.") from None
        if not shared:
            with contextlib.suppress(OSError):  # a full disk: only our name is missing
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)
