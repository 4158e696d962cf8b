"""Changing a host: what is not written about a file stays as it was, and a disk that refuses leaves all as it was."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes import FakeHost

from hostprep import files
from hostprep.errors import HostError
from hostprep.host import ABSENT, FileState, Host, process
from hostprep.host.rehearsal import Rehearsal

MakeHost = Callable[..., FakeHost]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def refusal(call: Callable[..., object], *args: object) -> str:
    with pytest.raises(HostError) as caught:
        call(*args)
    return str(caught.value)


def test_a_kernel_attribute_is_written_only_where_it_is(make_host: MakeHost) -> None:
    host = make_host({"/sys/n": "1\n"})
    host.write("/sys/n", "2")
    assert host.read("/sys/n") == "2"
    assert "No such file" in refusal(host.write, "/sys/m", "2")
    assert not host.exists("/sys/m")


def test_a_write_that_the_kernel_keeps_is_given_up(make_host: MakeHost) -> None:
    """A FIFO without a reader blocks its writer as a driver in trouble does (i40e, vfio)."""
    host = make_host({"/sys/": ""})
    os.mkfifo(host.root + "/sys/n")
    began = time.monotonic()
    with pytest.raises(HostError, match=r"/sys/n: no answer within 0.3 s \(state S in \w+\)"):
        host.write("/sys/n", "1", timeout=0.3)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_replacing_keeps_mode_and_owner_whatever_the_umask(make_host: MakeHost, umask: int) -> None:
    host = make_host({"/etc/file": "old"})
    real = Path(host.root, "etc/file")
    real.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(real, 12, 34)
    before = host.state("/etc/file")
    was = os.umask(umask)
    try:
        host.replace("/etc/file", "new")
        host.replace("/etc/new.d/file", "text")
    finally:
        os.umask(was)
    assert host.state("/etc/file") == before._replace(data=b"new")
    assert host.state("/etc/new.d/file")[:5] == ("file", b"text", 0o644, os.geteuid(), os.getegid())
    assert host.state("/etc/new.d")[:5] == ("directory", b"", 0o755, os.geteuid(), os.getegid())
    host.restore("/etc/file", before)
    assert host.state("/etc/file") == before


def set_attribute(path: Path, name: str, value: bytes) -> None:
    try:
        os.setxattr(path, name, value)
    except OSError as e:
        pytest.skip(f"no {name} can be set here: {e}")


# user::rw- user:12:rw- group::r-- mask::rw- other::r-- (acl(5); linux/posix_acl_xattr.h)
ACL = bytes.fromhex("0200000001000600ffffffff020006000c000000 04000400ffffffff10000600ffffffff20000400ffffffff")


@as_root
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("user.comment", b"\xff\x00kept"),
        ("security.selinux", b"system_u:object_r:etc_t:s0\0"),  # T21
        ("trusted.x", b""),
        ("system.posix_acl_access", ACL),
    ],
)
def test_extended_attributes_survive_and_come_back(make_host: MakeHost, name: str, value: bytes) -> None:
    """T21: a file in /etc that lost its SELinux label cannot be read by the services that need it."""
    host = make_host({"/etc/fstab": "old"})
    real = Path(host.root, "etc/fstab")
    set_attribute(real, name, value)
    before = host.state("/etc/fstab")
    host.replace("/etc/fstab", "new")
    assert os.getxattr(real, name) == value
    assert host.state("/etc/fstab") == before._replace(data=b"new")
    os.removexattr(real, name)
    host.restore("/etc/fstab", before)
    assert os.getxattr(real, name) == value
    host.restore("/etc/fstab", before._replace(attributes="", mode=0o644))
    assert name.startswith("security.") or name not in os.listxattr(real)


def test_a_link_stays_and_its_target_is_replaced(make_host: MakeHost) -> None:
    host = make_host({"/etc/grub.cfg": "-> ../boot/grub.cfg", "/boot/grub.cfg": "old", "/etc/new": "-> /boot/made"})
    host.replace("/etc/grub.cfg", "new")
    host.replace("/etc/new", "made")
    assert host.link("/etc/grub.cfg") == "../boot/grub.cfg"
    assert (host.read("/boot/grub.cfg"), host.read("/boot/made")) == ("new", "made")


def test_links_can_be_made_twice_and_taken_back(make_host: MakeHost) -> None:
    told: list[tuple[FileState, FileState | None]] = []
    host = make_host({"/etc/unit": "text", "/etc/link": "-> old"})
    keeping = host.keeping(lambda path, before, after: told.append((before, after)))
    for path in ("/etc/unit", "/etc/link", "/etc/new"):
        before = host.state(path)
        keeping.symlink(path, "/dev/null")
        assert told[-1] == (before, host.state(path)), "what is journalled is what is then read"
        count = len(told)
        keeping.symlink(path, "/dev/null")
        assert len(told) == count, "already so: nothing is written"
        host.restore(path, before)
        assert host.state(path) == before


def test_another_hard_link_keeps_the_old_content(make_host: MakeHost) -> None:
    host = make_host({"/etc/file": "old"})
    os.link(host.root + "/etc/file", host.root + "/etc/other")
    host.replace("/etc/file", "new")
    assert (host.read("/etc/file"), host.read("/etc/other")) == ("new", "old")


def test_a_replacement_is_on_disk_before_it_is_in_place(make_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync of the file, rename, fsync of the directory: a power cut leaves the old file or the new one."""
    host = make_host({"/etc/file": "old"})
    done: list[str] = []
    fsync, rename = os.fsync, os.replace

    def noted_fsync(fd: int) -> None:
        done.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else f"file {os.fstat(fd).st_size}")
        fsync(fd)

    def noted_rename(old: str, new: str) -> None:
        done.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_rename)
    host.replace("/etc/file", "newer")
    assert done[:3] == ["file 5", "rename", "directory"]


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KiB."""
    if os.geteuid() != 0 or not shutil.which("mount", path=process.PATH):
        pytest.skip("mounting a tmpfs needs root")
    folder = tmp_path / "tiny"
    folder.mkdir()
    try:
        process.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)], 10)
    except HostError as e:
        pytest.skip(f"no tmpfs can be mounted here: {e}")
    yield folder
    process.run(["umount", "-l", str(folder)], 10)


def remount_read_only(folder: Path) -> None:
    process.run(["mount", "-o", "remount,ro", str(folder)], 10)


@pytest.mark.parametrize(
    ("spoil", "size", "said"),
    [(lambda folder: None, 100_000, "No space left on device"), (remount_read_only, 10, "Read-only file system")],
)
def test_a_disk_that_takes_nothing_leaves_the_file_as_it_was(
    tiny: Path, spoil: Callable[[Path], None], size: int, said: str
) -> None:
    host = Host(str(tiny))
    (tiny / "fstab").write_text("old")
    before = host.state("/fstab")
    spoil(tiny)
    assert said in refusal(host.replace, "/fstab", "x" * size)
    assert said in refusal(host.replace, "/new.d/file", "x" * size)
    assert host.state("/fstab") == before
    assert set(os.listdir(tiny)) <= {"fstab", "new.d"}
    host.discard_leftover("/fstab")  # nothing to discard, and no complaint
    if spoil is remount_read_only:
        assert said in refusal(host.symlink, "/fstab", "/dev/null")
        assert said in refusal(host.replace, "/fstab", None)


@as_root
def test_an_immutable_file_is_said_to_be_one(make_host: MakeHost) -> None:
    host = make_host({"/etc/fstab": "old"})
    try:
        process.run(["chattr", "+i", host.root + "/etc/fstab"], 10)
    except HostError as e:
        pytest.skip(f"no file can be made immutable here: {e}")
    try:
        with pytest.raises(HostError, match="Operation not permitted") as caught:
            host.replace("/etc/fstab", "new")
        assert "immutable" in caught.value.hint
        assert host.read("/etc/fstab") == "old"
        assert host.names("/etc") == ["fstab"]
    finally:
        process.run(["chattr", "-i", host.root + "/etc/fstab"], 10)


def test_a_directory_is_never_written_over(make_host: MakeHost) -> None:
    host = make_host({"/etc/dir/file": "x"})
    assert "is a directory" in refusal(host.replace, "/etc/dir", "text")
    assert "is a directory" in refusal(host.symlink, "/etc/dir", "/dev/null")
    assert "not empty" in refusal(host.restore, "/etc/dir", ABSENT)


def test_what_a_killed_hostprep_left_is_discarded(make_host: MakeHost) -> None:
    host = make_host({"/boot/grub.cfg": "old"})
    temporary = files.temporary_name("/boot/grub.cfg")
    host.put(temporary, "half")
    host.put(temporary + ".new", "grub-mkconfig's")
    host.replace("/boot/grub.cfg", "new")
    host.discard_leftover("/boot/grub.cfg")
    assert host.names("/boot") == ["grub.cfg"]


def test_a_device_is_never_replaced_by_a_file(make_host: MakeHost) -> None:
    """The link of a masked drop-in leads to /dev/null, which the whole machine needs."""
    host = make_host({"/etc/sysctl.d/90-x.conf": "-> /dev/null", "/dev/": ""})
    null = Path(host.root + "/dev/null")
    os.mkfifo(null)  # as little a file as a device is, and made without privilege
    with pytest.raises(HostError, match="is a device"):
        host.replace("/etc/sysctl.d/90-x.conf", "mine")
    with pytest.raises(HostError, match="is a device"):
        Rehearsal(host).replace("/etc/sysctl.d/90-x.conf", "mine")
    assert null.is_fifo()
