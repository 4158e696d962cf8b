"""What is in a file: its digest, and whether an archive opens. Read as a stream, in limited time, nothing unpacked."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple, Protocol, cast

from hostprep.errors import HostError

_CHUNK = 1 << 20
_HEADER = 256 * 1024  # bytes; the script before the payload of an installer has some 20 to 60 kB
_TAR_BLOCK = 512
_NO_SUM = re.compile("0*")  # what makeself writes where it was told to leave a digest out


class FileInfo(NamedTuple):
    """What stat(2) tells of what a path leads to."""

    kind: str  # file, directory, FIFO, socket, device, or dangling link
    size: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    modified: int = 0  # seconds since the epoch
    accessed: int = 0  # likewise; most file systems note it once a day (relatime)


def info(real: str, link: str) -> FileInfo | None:
    """What a path leads to, where `link` is the path itself; None where nothing has that name. Raises OSError."""
    try:
        found = os.stat(real)
    except (FileNotFoundError, NotADirectoryError):
        return FileInfo("dangling link") if os.path.islink(link) else None
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
    kind = kinds.get(stat.S_IFMT(found.st_mode), "device")
    size = found.st_size
    if kind == "file" and size == 0:  # files of /proc and /sys say so too, and are not empty
        with _opened(real) as f:
            size = len(f.read(1))
    times = (int(found.st_mtime), int(found.st_atime))
    return FileInfo(kind, size, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, *times)


def digest(real: str, path: str, algorithm: str, seconds: float) -> str:
    """The digest of a file, in hexadecimal digits. HostError where it takes longer than that; raises OSError."""
    found = hashlib.new(algorithm, usedforsecurity=False)
    with _opened(real) as f:
        for chunk in _chunks(f, path, seconds, f"its {algorithm}"):
            found.update(chunk)
    return found.hexdigest()


def archive_fault(real: str, path: str, seconds: float) -> str:
    """Why an archive would not open, in words after its name; empty where all of it can be read.

    What it is, its first bytes tell and not its name: tar, gzip, bzip2, xz, zip, or a shell script with a payload and
    its digest (makeself.io, NVIDIA's *.run). Others are a HostError: whether they open cannot be told.
    """
    with _opened(real) as f:
        start = f.read(_TAR_BLOCK)
        f.seek(0)
        test = next((test for fits, test in _TESTS if fits(start)), None)
        if test is None:
            if _named_tar(path) or path.endswith((".zip", ".run", ".gz", ".xz", ".bz2")):
                return "is no archive: its content is something else"
            raise HostError(f"{path}: is no kind of archive that hostprep can test", "Give its sha256 instead.")
        return test(f, path, seconds)


def _opened(real: str) -> IO[bytes]:
    # O_NONBLOCK: a FIFO that has come since must not hold us up
    return open(os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")


def _chunks(f: IO[bytes], path: str, seconds: float, what: str) -> Iterator[bytes]:
    end, done = time.monotonic() + seconds, 0
    while chunk := f.read(_CHUNK):
        yield chunk
        done += len(chunk)
        if time.monotonic() > end:
            size = os.fstat(f.fileno()).st_size
            read = f"{done / 1e9:.1f} of {size / 1e9:.1f} GB were read" if done < size else f"{done / 1e9:.1f} GB were"
            raise HostError(f"{path}: {what} takes longer than {seconds:g} s: {read}")


# -- archives -------------------------------------------------------------------------------------


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class _Watched:
    """A stream that ends in time, and remembers the last block: a tar that was cut off has no mark of its end."""

    def __init__(self, f: _Readable, path: str, seconds: float) -> None:
        self._f, self._path, self._end, self._seconds = f, path, time.monotonic() + seconds, seconds
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        if time.monotonic() > self._end:
            raise HostError(f"{self._path}: reading all of it takes longer than {self._seconds:g} s")
        data = self._f.read(size)
        self.last = (self.last + data)[-_TAR_BLOCK:]
        return data


def _named_tar(path: str) -> bool:
    return bool(re.search(r"\.(tar(\.\w+)?|tgz|txz|tbz2?)$", path))


def _tar(f: _Readable, path: str, seconds: float) -> str:
    import tarfile

    watched = _Watched(f, path, seconds)
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", watched), mode="r|", bufsize=_CHUNK) as tar:
            members = sum(1 for _ in tar)
        while watched.read(_CHUNK):
            pass
    except tarfile.TarError as e:
        return f"is damaged or cut off: {e}"
    if watched.last.strip(b"\0"):
        return "is cut off: the mark of its end is missing"
    return "" if members else "has nothing in it"


def _compressed(f: IO[bytes], path: str, seconds: float) -> str:
    import bz2
    import gzip
    import lzma
    import zlib

    openers: dict[bytes, Callable[[IO[bytes]], gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile]]
    openers = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
    magic = f.read(2)
    f.seek(0)
    try:
        with openers[magic](f) as stream:
            if _named_tar(path):
                return _tar(stream, path, seconds)
            watched = _Watched(stream, path, seconds)
            while watched.read(_CHUNK):
                pass
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as e:
        return f"is damaged or cut off: {e}"
    except OSError as e:
        if e.errno:  # of the disk; what bz2 says of its data has none
            raise
        return f"is damaged or cut off: {e}"
    return ""


def _zip(f: IO[bytes], path: str, seconds: float) -> str:
    import zipfile
    import zlib

    try:
        with zipfile.ZipFile(f) as archive:
            for member in archive.infolist():
                if member.flag_bits & 1:
                    raise HostError(f"{path}: is encrypted, and hostprep has no password", "Give its sha256 instead.")
                with archive.open(member) as content:
                    watched = _Watched(content, path, seconds)
                    while watched.read(_CHUNK):
                        pass
            return "" if archive.infolist() else "has nothing in it"
    except (zipfile.BadZipFile, zlib.error, EOFError) as e:
        return f"is damaged or cut off: {e}"
    except NotImplementedError as e:
        raise HostError(f"{path}: {e}", "Give its sha256 instead.") from e


def _installer(f: IO[bytes], path: str, seconds: float) -> str:
    """A shell script with a payload, and in the script the digest of that.

    NVIDIA's own makeself has CRCsum and MD5 in the lines 2 and 3, of all that follows those lines (`tail -n +4`, as
    its --check does). makeself.io has the digests of payloads of `filesizes` bytes, which begin after `skip` lines.
    """
    header = f.read(_HEADER)
    own = re.match(rb"#! ?/bin/sh\nCRCsum=[0-9]+\nMD5=([0-9a-f]{32})\n", header)
    if own:
        sums, sizes, start = {"md5": [own[1].decode()]}, [os.fstat(f.fileno()).st_size - own.end()], own.end()
    else:
        skip = re.search(rb'^skip="?([0-9]+)"?$', header, re.M) or re.search(rb"head -n ([0-9]+) .*wc -c", header)
        filesizes = re.search(rb'^filesizes="([0-9 ]+)"', header, re.M)
        if not skip or not filesizes:
            raise HostError(f"{path}: is a script whose payload hostprep cannot find", "Give its sha256 instead.")
        start = _after_lines(header, int(skip[1]))
        sizes = [int(size) for size in filesizes[1].split()]
        sums = {name: _embedded(header, word) for name, word in (("sha256", b"SHA"), ("md5", b"MD5"))}
    algorithm = next((name for name, of in sums.items() if len(of) == len(sizes) and all(map(_is_sum, of))), "")
    if not algorithm:
        raise HostError(f"{path}: has no digest of its own payload", "Give its sha256 instead.")
    end = time.monotonic() + seconds
    f.seek(start)
    for size, wanted in zip(sizes, sums[algorithm], strict=True):
        found = hashlib.new(algorithm, usedforsecurity=False)
        while size > 0:
            chunk = f.read(min(size, _CHUNK))
            if not chunk:
                return f"is cut off: {size} bytes are missing"
            if time.monotonic() > end:
                raise HostError(f"{path}: reading all of it takes longer than {seconds:g} s")
            found.update(chunk)
            size -= len(chunk)
        if found.hexdigest() != wanted:
            return f"is damaged or cut off: its {algorithm} is not the one that its header names"
    return ""


def _after_lines(data: bytes, lines: int) -> int:
    at = 0
    for _ in range(lines):
        at = data.find(b"\n", at) + 1 or len(data)
    return at


def _embedded(header: bytes, word: bytes) -> list[str]:
    found = re.search(rb'^%s="([0-9a-f ]+)"' % word, header, re.M)
    return found[1].decode().split() if found else []


def _is_sum(text: str) -> bool:
    return _NO_SUM.fullmatch(text) is None


_Test = Callable[[IO[bytes], str, float], str]
_TESTS: tuple[tuple[Callable[[bytes], bool], _Test], ...] = (
    (lambda start: start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")), _compressed),
    (lambda start: start.startswith((b"PK\x03\x04", b"PK\x05\x06")), _zip),
    (lambda start: start.startswith(b"#!"), _installer),
    (lambda start: start[257:262] == b"ustar", _tar),
)
