"""A small FUSE server over /dev/fuse, without a library: enough for a tree like sysfs.

Structures are those of the kernel's include/uapi/linux/fuse.h, protocol 7.31.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct, pack, unpack_from

LOOKUP, FORGET, GETATTR, SETATTR, READLINK = 1, 2, 3, 4, 5
OPEN, READ, WRITE, STATFS, RELEASE, FSYNC = 14, 15, 16, 17, 18, 20
FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR = 25, 26, 27, 28, 29
ACCESS, INTERRUPT, DESTROY, BATCH_FORGET = 34, 36, 38, 42
WITHOUT_ANSWER = {FORGET, BATCH_FORGET, INTERRUPT}
EMPTY_ANSWER = {RELEASE, RELEASEDIR, FLUSH, FSYNC, ACCESS, DESTROY}
DIRECT_IO = 1
PAGE = 4096
HEAD = Struct("<IIQQ")
HEAD_BYTES = 40
ANSWER = Struct("<IiQ")
TRANSFER = Struct("<QQI")  # file handle, offset, size: the head of READ, WRITE and READDIR
NOSUID, NODEV, NOEXEC = 2, 4, 8

libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Dir:
    """A directory: its entries, in order."""

    names: dict[str, None] = field(default_factory=dict)


@dataclass
class Link:
    """A symbolic link."""

    target: str


@dataclass
class File:
    """A file: what it reads, and what writing does. `polled` files are read and written by the ten thousand."""

    read: Callable[[int, int], bytes] | None = None
    write: Callable[[int, bytes], None] | None = None
    mode: int = 0o444
    polled: bool = False


Node = Dir | Link | File


def mount(source: str, target: Path, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    texts = [text.encode() or None for text in (source, str(target), kind)]
    if libc.mount(*texts, ctypes.c_ulong(flags), data.encode() or None):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(target))


def refusal(code: int) -> OSError:
    """What a system call on a file fails with."""
    return OSError(code, os.strerror(code))


class Server:
    """Answers what the kernel asks about one mounted tree."""

    def __init__(self, lookup: Callable[[str], Node | None], target: Path) -> None:
        self._lookup = lookup
        self._paths = {1: ""}
        self._numbers = {"": 1}
        self._polled: dict[int, File] = {}
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0,allow_other"
        mount("connectx", target, "fuse.connectx", NOSUID | NODEV | NOEXEC, options)

    def close(self) -> None:
        """Leave the serving to another process."""
        os.close(self._fd)

    def serve(self) -> None:
        """Answer until the tree is unmounted."""
        buffer = bytearray(1 << 17)
        while True:
            try:
                size = os.readv(self._fd, [buffer])
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                return
            _, operation, unique, number = HEAD.unpack_from(buffer, 0)
            if operation in WITHOUT_ANSWER:
                continue
            code, answer = self._answer(operation, number, bytes(buffer[HEAD_BYTES:size]))
            self._reply(unique, code, answer)
            if operation == DESTROY:
                return

    def _reply(self, unique: int, code: int, answer: bytes) -> None:
        try:
            os.write(self._fd, ANSWER.pack(ANSWER.size + len(answer), -code, unique) + answer)
        except OSError as error:
            if error.errno != errno.ENOENT:  # ENOENT: who asked was interrupted
                raise

    def _answer(self, operation: int, number: int, body: bytes) -> tuple[int, bytes]:
        try:
            return 0, self._handle(operation, number, body)
        except OSError as error:
            return error.errno or errno.EIO, b""
        except Exception:  # noqa: BLE001 -- a tool that waits for the answer would hang for ever
            traceback.print_exc(file=sys.stderr)
            return errno.EIO, b""

    def _handle(self, operation: int, number: int, body: bytes) -> bytes:
        if operation in (READ, WRITE):
            file = self._polled.get(number) or self._node(number)
            return _read(file, body) if operation == READ else _write(file, body)
        if operation in EMPTY_ANSWER:
            return b""
        if operation not in HANDLERS:
            raise refusal(errno.ENOSYS)
        return HANDLERS[operation](self, number, body)

    def _node(self, number: int) -> Node:
        node = self._lookup(self._paths[number])
        if node is None:
            raise refusal(errno.ENOENT)
        return node

    def _number(self, path: str) -> int:
        if path not in self._numbers:
            self._numbers[path] = len(self._paths) + 1
            self._paths[self._numbers[path]] = path
        return self._numbers[path]

    def _attributes(self, path: str, node: Node) -> bytes:
        mode, size = stat.S_IFDIR | 0o755, 0
        if isinstance(node, Link):
            mode, size = stat.S_IFLNK | 0o777, len(node.target)
        elif isinstance(node, File):
            mode, size = stat.S_IFREG | node.mode, PAGE
        now = int(time.time())
        links = 2 if stat.S_ISDIR(mode) else 1
        return pack("<6Q10I", self._number(path), size, 0, now, now, now, 0, 0, 0, mode, links, 0, 0, 0, PAGE, 0)

    def _find(self, number: int, body: bytes) -> bytes:
        path = _join(self._paths[number], body.rstrip(b"\0").decode())
        node = self._lookup(path)
        if node is None:
            raise refusal(errno.ENOENT)
        return pack("<QQQQII", self._number(path), 0, 0, 0, 0, 0) + self._attributes(path, node)

    def _status(self, number: int, _body: bytes) -> bytes:
        return pack("<QII", 0, 0, 0) + self._attributes(self._paths[number], self._node(number))

    def _read_link(self, number: int, _body: bytes) -> bytes:
        node = self._node(number)
        if not isinstance(node, Link):
            raise refusal(errno.EINVAL)
        return node.target.encode()

    def _open(self, number: int, _body: bytes) -> bytes:
        node = self._node(number)
        if isinstance(node, File) and node.polled:
            self._polled[number] = node
        return pack("<QII", 0, DIRECT_IO, 0)

    def _open_dir(self, _number: int, _body: bytes) -> bytes:
        return pack("<QII", 0, 0, 0)

    def _read_dir(self, number: int, body: bytes) -> bytes:
        path, node = self._paths[number], self._node(number)
        if not isinstance(node, Dir):
            raise refusal(errno.ENOTDIR)
        _, offset, size = TRANSFER.unpack_from(body)
        out = b""
        for at, name in enumerate(list(node.names)[offset:], offset + 1):
            child = _join(path, name)
            kind = {Link: 10, File: 8}.get(type(self._lookup(child)), 4)
            entry = pack("<QQII", self._number(child), at, len(name.encode()), kind) + name.encode()
            entry += b"\0" * (-len(entry) % 8)
            if len(out) + len(entry) > size:
                break
            out += entry
        return out

    def _init(self, _number: int, body: bytes) -> bytes:
        readahead = unpack_from("<IIII", body)[2]
        return pack("<IIIIHHIIHHIII", 7, 31, readahead, 0, 12, 9, 1 << 16, 1, 16, 0, 0, 0, 0).ljust(64, b"\0")

    def _file_system(self, _number: int, _body: bytes) -> bytes:
        return pack("<5Q10I", 0, 0, 0, 0, 0, PAGE, 255, PAGE, 0, 0, 0, 0, 0, 0, 0)


HANDLERS: dict[int, Callable[[Server, int, bytes], bytes]] = {
    INIT: Server._init,
    LOOKUP: Server._find,
    GETATTR: Server._status,
    SETATTR: Server._status,
    READLINK: Server._read_link,
    OPEN: Server._open,
    OPENDIR: Server._open_dir,
    READDIR: Server._read_dir,
    STATFS: Server._file_system,
}


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _read(node: Node, body: bytes) -> bytes:
    _, offset, size = TRANSFER.unpack_from(body)
    if not isinstance(node, File) or node.read is None:
        raise refusal(errno.EACCES)
    return node.read(offset, size)


def _write(node: Node, body: bytes) -> bytes:
    _, offset, size = TRANSFER.unpack_from(body)
    if not isinstance(node, File) or node.write is None:
        raise refusal(errno.EACCES)
    node.write(offset, body[HEAD_BYTES : HEAD_BYTES + size])
    return pack("<II", size, 0)
