"""Archives that open, and those that do not, as the tools of a site make them (K15)."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import findings
from fakes import FakeHost, debian

from hostprep.errors import HostError
from hostprep.host import Host

Make = Callable[[Path], Path]
TARS = {".tar": "", ".tar.gz": "z", ".tar.xz": "J", ".tar.bz2": "j", ".tgz": "z"}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory of a few files, of which one is large and none compresses away."""
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "large").write_bytes(os.urandom(300_000))
    (folder / "small").write_text("small\n")
    (folder / "link").symlink_to("small")
    return folder


def tar(tree: Path, ending: str) -> Path:
    archive = tree.parent / f"archive{ending}"
    subprocess.run(["tar", f"-c{TARS[ending]}f", archive, "-C", tree, "."], check=True)
    return archive


def zipped(tree: Path) -> Path:
    archive = tree.parent / "archive.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as z:
        for file in sorted(tree.iterdir()):
            z.write(file, file.name)
    return archive


def nvidia_installer(tree: Path) -> Path:
    """As NVIDIA's makeself.sh makes it: MD5 is of all that follows line 3 (nvidia-installer, makeself.sh)."""
    rest = (
        b'skip=9\nlabel="NVIDIA Accelerated Graphics Driver"\ntargetdir=NVIDIA\nexit 0\n\n\n'
        + tar(tree, ".tar").read_bytes()
    )
    header = f"#! /bin/sh\nCRCsum=1234567890\nMD5={hashlib.md5(rest).hexdigest()}\n"
    installer = tree.parent / "NVIDIA-Linux-x86_64-550.90.12.run"
    installer.write_bytes(header.encode() + rest)
    return installer


def makeself_installer(tree: Path) -> Path:
    """As makeself 2.4 makes it: digests of `filesizes` bytes after `skip` lines."""
    payload = tar(tree, ".tar.gz").read_bytes()
    header = (
        f'#!/bin/sh\n# This script was generated using Makeself 2.4.5\nCRCsum="1"\nMD5="{"0" * 32}"\n'
        f'SHA="{hashlib.sha256(payload).hexdigest()}"\nskip="8"\nfilesizes="{len(payload)}"\nexit 0\n'
    )
    installer = tree.parent / "site.run"
    installer.write_bytes(header.encode() + payload)
    return installer


def old_makeself_installer(tree: Path) -> Path:
    """As makeself 2.1 makes it: the offset is in a command, and there is an MD5."""
    payload = tar(tree, ".tar.gz").read_bytes()
    header = (
        f'#!/bin/sh\n# This script was generated using Makeself 2.1.5\nMD5="{hashlib.md5(payload).hexdigest()}"\n'
        f'filesizes="{len(payload)}"\noffset=`head -n 6 "$1" | wc -c | tr -d " "`\nexit 0\n'
    )
    installer = tree.parent / "old.run"
    installer.write_bytes(header.encode() + payload)
    return installer


MAKERS: dict[str, Make] = {
    **{ending: (lambda tree, ending=ending: tar(tree, ending)) for ending in TARS},  # type: ignore[misc]
    ".zip": zipped,
    "nvidia.run": nvidia_installer,
    "makeself.run": makeself_installer,
    "old-makeself.run": old_makeself_installer,
}
every_kind = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def fault(archive: Path) -> str:
    return Host().archive_fault(str(archive), 20)


@every_kind
def test_an_archive_that_is_whole_opens(tree: Path, make: Make) -> None:
    assert fault(make(tree)) == ""


@every_kind
@pytest.mark.parametrize("part", [0.95, 0.5])
def test_one_that_is_cut_off_does_not(tree: Path, make: Make, part: float) -> None:
    """A download that ended early: the commonest fault of all."""
    archive = make(tree)
    os.truncate(archive, int(archive.stat().st_size * part))
    assert "cut off" in fault(archive)


@every_kind
def test_one_with_a_wrong_byte_does_not(tree: Path, make: Make) -> None:
    """A plain tar has sums of its headers alone: there it is the header that is hit."""
    archive = make(tree)
    data = bytearray(archive.read_bytes())
    at = 100 if archive.suffix == ".tar" else len(data) // 2
    data[at : at + 2] = bytes(255 - b for b in data[at : at + 2])
    archive.write_bytes(data)
    assert fault(archive).startswith(("is damaged", "is no archive"))


def test_a_tar_that_ends_between_two_files_is_cut_off(tree: Path) -> None:
    archive = tar(tree, ".tar")
    with tarfile.open(archive) as found:
        os.truncate(archive, next(m.offset for m in found.getmembers() if m.name == "./small"))
    assert "cut off" in fault(archive)


@pytest.mark.parametrize("name", ["page.tar.gz", "page.zip", "page.run", "page.tgz"])
def test_a_web_page_that_was_saved_as_an_archive_is_none(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("<html>404 Not Found</html>\n" * 30)
    assert fault(tmp_path / name) == "is no archive: its content is something else"


def test_a_compressed_file_that_should_be_a_tar_is_damaged(tree: Path) -> None:
    with (tree.parent / "x.tar.gz").open("wb") as f:
        subprocess.run(["gzip", "-c", tree / "large"], stdout=f, check=True)
    assert "is damaged or cut off" in fault(tree.parent / "x.tar.gz")
    os.rename(tree.parent / "x.tar.gz", tree.parent / "x.gz")
    assert fault(tree.parent / "x.gz") == ""


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\x28\xb5\x2f\xfd" + b"x" * 600, "no kind of archive that hostprep can test"),
        (b"#!/bin/sh\necho hello\n", "a script whose payload hostprep cannot find"),
        (b'#!/bin/sh\nskip="3"\nfilesizes="4"\nMD5="' + b"0" * 32 + b'"\n1234', "has no digest of its own payload"),
    ],
    ids=["zstd", "script", "no-digest"],
)
def test_what_cannot_be_told_is_unknown(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(HostError, match=why):
        fault(tmp_path / "x.bin")


def test_an_encrypted_zip_is_unknown(tree: Path) -> None:
    program = shutil.which("zip")
    if program is None:
        pytest.skip("zip is not installed")
    subprocess.run([program, "-q", "-P", "secret", tree.parent / "x.zip", tree / "small"], check=True)
    with pytest.raises(HostError, match="is encrypted"):
        fault(tree.parent / "x.zip")


def test_reading_ends_in_time(tree: Path) -> None:
    with pytest.raises(HostError, match="takes longer than -1 s"):
        Host().archive_fault(str(tar(tree, ".tar.xz")), -1)


def test_the_finding_names_the_archive(tmp_path: Path, tree: Path) -> None:
    host = FakeHost(tmp_path / "root", debian())
    archive = tar(tree, ".tar.gz")
    for name, size in (("whole", archive.stat().st_size), ("part", 1000)):
        Path(f"{host.root}/{name}.tar.gz").write_bytes(archive.read_bytes()[:size])
    found = findings(
        host, {"files": [{"path": "/whole.tar.gz", "archive": True}, {"path": "/*.tar.gz", "archive": True}]}
    )
    assert found["files/archive/whole.tar.gz"].status.value == "pass"
    assert found["files/archive/*.tar.gz"].message.startswith("/*.tar.gz: /part.tar.gz is damaged or cut off")
