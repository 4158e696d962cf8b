"""Archives that root unpacks and runs something from: of a known content, and nothing outside its directory."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from typing import IO

from hostprep import files
from hostprep.errors import HostError

_PREFIX = "unpacked-"


@contextlib.contextmanager
def unpacked(root: str, real: str, path: str, digest: str, into: str) -> Iterator[str]:
    """A tar archive unpacked meanwhile, into a new directory for us alone, as a path of the host.

    The digest (`md5:HEX`, `sha256:HEX`) is that of the very file that is then unpacked: it is opened once, and root
    takes none that others could be writing to. An archive of which one member would lead out of the directory, or is
    neither file, directory nor link, is refused whole. What a killed hostprep has left is removed first.
    """
    if os.geteuid() == 0 and (why := files.untrusted(real)):
        raise HostError(f"{path}: not safe to install from: {why}", "Copy it where only root can write: /root, /opt.")
    directory = ""
    try:
        try:
            with open(os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as archive:
                _verify(archive, path, digest)
                os.makedirs(into, mode=0o700, exist_ok=True)
                _discard_leftovers(into)
                directory = tempfile.mkdtemp(prefix=_PREFIX, dir=into)  # mode 0700
                _unpack(archive, path, directory)
        except OSError as e:
            raise HostError(f"{path}: {e.strerror or e}", code=e.errno or 0) from e
        yield directory.removeprefix(root)
    finally:
        if directory:
            shutil.rmtree(directory, ignore_errors=True)


def _discard_leftovers(into: str) -> None:
    for name in os.listdir(into):
        if name.startswith(_PREFIX):
            shutil.rmtree(os.path.join(into, name))


def _verify(archive: IO[bytes], path: str, digest: str) -> None:
    algorithm, _, wanted = digest.partition(":")
    found = hashlib.new(algorithm, usedforsecurity=False)
    while chunk := archive.read(1 << 20):
        found.update(chunk)
    if found.hexdigest() != wanted.lower():
        hint = "It is another file than the profile means, or was damaged on its way: fetch it again."
        raise HostError(f"{path}: has the {algorithm} {found.hexdigest()}, not {wanted}", hint)
    archive.seek(0)


def _unpack(archive: IO[bytes], path: str, directory: str) -> None:
    try:
        with tarfile.open(fileobj=archive) as tar:
            members = tar.getmembers()
            links = {_parts(m.name) for m in members if m.issym() or m.islnk()}
            for member in members:
                if why := _refused(member, links):
                    raise HostError(f"{path}: refused: {member.name!r} {why}", "Nothing of it was unpacked.")
                member.uid = member.gid = 0
                member.uname = member.gname = ""
                member.mode &= 0o755
            if hasattr(tarfile, "data_filter"):  # since 3.10.12 and 3.11.4
                tar.extractall(directory, members, filter="data")
            else:
                tar.extractall(directory, members)  # noqa: S202  # every member was looked at above
    except (tarfile.TarError, EOFError) as e:
        raise HostError(f"{path}: is no archive that can be unpacked: {e}") from e


def _refused(member: tarfile.TarInfo, links: set[tuple[str, ...]]) -> str:
    """Why a member is not unpacked: it is, or could lead, outside; or ''."""
    parts = _parts(member.name)
    if member.name.startswith("/") or ".." in parts:
        return "leads out of the directory"
    if any(parts[:i] in links for i in range(1, len(parts))):
        return "lies behind a link"
    if member.issym() or member.islnk():
        return "is a link that leads out of the directory" if _leads_out(member, parts) else ""
    return "" if member.isfile() or member.isdir() else "is a device or a FIFO"


def _leads_out(link: tarfile.TarInfo, parts: tuple[str, ...]) -> bool:
    """Only as many `..` as there are directories above it, and those first: no link on the way can then add to them."""
    target = _parts(link.linkname)
    rest = list(target)
    while rest and rest[0] == "..":
        del rest[0]
    above = len(parts) - 1 if link.issym() else 0  # a hard link is named from the top of the archive
    return link.linkname.startswith("/") or len(target) - len(rest) > above or ".." in rest


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split("/") if part not in ("", "."))
