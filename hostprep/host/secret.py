"""Changing a file of a user's that has secrets in it, with that user's rights and without a copy."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from hostprep import files
from hostprep.errors import HostError
from hostprep.host import process

_DONE = b"done"
_LIMIT = 8 * 1024 * 1024  # bytes


def edit(real: str, change: Callable[[bytes], bytes], become: tuple[str, int, int] | None, timeout: float) -> str:
    """Why it could not be changed; empty when it was. A link is followed, as its owner could."""

    def work() -> bytes:
        try:
            if become is not None:
                name, uid, gid = become
                os.initgroups(name, gid)
                os.setresgid(gid, gid, gid)
                os.setresuid(uid, uid, uid)
            _replace(os.path.realpath(real), change)
        except OSError as e:
            return (e.strerror or str(e)).encode()
        except HostError as e:
            return str(e).encode()
        return _DONE

    answer, _ = process.gather([(real, work)], timeout)[real]
    if isinstance(answer, str):
        return answer
    return "" if answer == _DONE else answer.decode(errors="replace")


def _replace(path: str, change: Callable[[bytes], bytes]) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    with open(fd, "rb") as f:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise HostError("is not a file")
        data = f.read(_LIMIT + 1)
    if len(data) > _LIMIT:
        raise HostError(f"is larger than {_LIMIT} bytes")
    files.replace(path, change(data), stat.S_IMODE(info.st_mode), attributes=files.attributes(path))
