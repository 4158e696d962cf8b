"""The door to the machine: looking, within a root, at files that may be anything."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import FakeHost

from hostprep.errors import HostError
from hostprep.host import Host, process

MakeHost = Callable[..., FakeHost]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def refusal(call: Callable[..., object], *args: object) -> str:
    with pytest.raises(HostError) as caught:
        call(*args)
    return str(caught.value)


# -- looking --------------------------------------------------------------------------------------

TREE = {
    "/etc/real": "real",
    "/etc/relative": "-> real",
    "/etc/absolute": "-> /etc/real",
    "/etc/up": "-> ../etc/../../../../etc/real",
    "/etc/chain": "-> absolute",
    "/etc/dangling": "-> /nowhere",
    "/etc/loop": "-> loop",
    "/etc/masked": "-> /dev/null",
    "/lib": "-> usr/lib",
    "/usr/lib/file": "in lib",
    "/usr/lib/dir/": "",
    "/sys/a1/x": "1",
    "/sys/a2/x": "2",
    "/sys/b1/x": "3",
}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/etc/real", "real"),
        ("/etc/relative", "real"),
        ("/etc/absolute", "real"),
        ("/etc/up", "real"),  # `..` at the top stays at the top
        ("/etc/chain", "real"),
        ("/../../etc/real", "real"),
        ("/lib/file", "in lib"),
        ("/lib/../etc/real", None),  # /lib is usr/lib, so `..` is /usr
        ("/lib/../../etc/real", "real"),
        ("/etc/dangling", None),
        ("/etc/nothing", None),
        ("/etc/real/below-a-file", None),
        ("/etc/masked", None),  # this root has no /dev/null; the machine's own is not looked at
    ],
)
def test_links_are_followed_within_the_root(make_host: MakeHost, path: str, text: str | None) -> None:
    assert make_host(TREE).read(path) == text


def test_nothing_leads_out_of_the_root(make_host: MakeHost, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("this machine's own")
    host = make_host({"/etc/x": f"-> {outside}", "/etc/y": "-> ../../outside", "/etc/passwd": "-> /etc/passwd"})
    for path in ("/etc/x", "/etc/y", "/../outside", f"{'/..' * 9}{outside}"):
        assert host.read(path) is None
    assert "too many symbolic links" in refusal(host.read, "/etc/passwd")
    assert host.state_kind("/..") == "directory"
    assert host.real("/..") == host.root
    host.replace("/etc/x", "new")
    assert outside.read_text() == "this machine's own"


def test_glob_names_link_and_resolve(make_host: MakeHost) -> None:
    host = make_host(TREE)
    assert host.glob("/sys/a*/x") == ["/sys/a1/x", "/sys/a2/x"]
    assert host.glob("/sys/?1/x") == ["/sys/a1/x", "/sys/b1/x"]
    assert host.glob("/lib/fi*") == ["/lib/file"]
    assert host.glob("/nowhere/*") == host.names("/nowhere") == host.names("/etc/real") == []
    assert host.names("/lib/") == ["dir", "file"]
    assert host.link("/etc/absolute") == "/etc/real"
    assert host.link("/etc/real") is host.link("/nowhere") is None
    assert host.resolve("/etc/chain") == "/etc/real"
    assert host.resolve("/lib/../x") == "/usr/x"
    assert host.resolve("/") == "/"
    assert host.exists("/etc/dangling")
    assert host.exists("/etc/loop")
    assert not host.exists("/etc/dangling/x")


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


def make_device(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (make_fifo, "is a FIFO, not a file"),
        (Path.mkdir, "is a directory, not a file"),
        (make_socket, ""),
        (make_loop, "too many"),
        pytest.param(make_device, "is a device, not a file", marks=as_root),
    ],
)
def test_what_is_no_file_is_unknown_and_not_empty(make_host: MakeHost, make: Callable[[Path], None], said: str) -> None:
    """goss#444: a FIFO where a file should be must not hang, and an empty answer would be a lie."""
    host = make_host({"/etc/": ""})
    make(Path(host.root, "etc/fstab"))
    for _ in range(2):
        assert said in refusal(host.read, "/etc/fstab")


def test_a_link_to_dev_null_is_an_empty_file() -> None:
    """So systemd and others mask a configuration file."""
    assert Host().read_bytes("/dev/null") == b""


@pytest.mark.parametrize(
    ("text", "number"),
    [("16\n", 16), ("0x10", 16), ("", None), ("many", None), ("1 2", None), ("\x1b[31m", None)],
)
def test_numbers(make_host: MakeHost, text: str, number: int | None) -> None:
    host = make_host({"/sys/n": text})
    if number is None:
        assert refusal(host.number, "/sys/n").isprintable()
    else:
        assert host.number("/sys/n") == number
    assert "not there" in refusal(host.number, "/sys/m")


@pytest.mark.parametrize(
    ("path", "code"), [("/none", errno.ENOENT), ("/etc", errno.EISDIR), ("/etc/x/y", errno.ENOTDIR)]
)
def test_what_the_kernel_said_is_kept_as_its_number(make_host: MakeHost, path: str, code: int) -> None:
    """EBUSY of sriov_numvfs means another thing than ERANGE, whatever words the locale has for them."""
    host = make_host({"/etc/x": ""})
    with pytest.raises(HostError) as e:
        Host(host.root).write(path, "8")
    assert e.value.code == code


def test_a_path_made_of_garbage_is_an_error_of_the_host() -> None:
    for ask in (Host().read, Host().names, Host().exists, Host().link, Host().space):
        assert "NUL" in refusal(ask, "/sys/module/a\0b")
    assert "too long" in refusal(Host().read, "/etc/" + "x" * 5000)


def test_a_file_without_end_is_refused(make_host: MakeHost) -> None:
    host = make_host({})
    with open(host.root + "/big", "wb") as f:
        f.truncate(100_000_000)
    assert "larger than" in refusal(host.read, "/big")


@as_root
def test_without_privilege_it_needs_root(make_host: MakeHost, tmp_path: Path) -> None:
    host = make_host({"/etc/secret": "x", "/etc/closed/file": "x"})
    for folder in (Path(host.root), *Path(host.root).parents):
        if folder.stat().st_mode & 0o005 != 0o005 and folder.is_relative_to("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o055)
    Path(host.root, "etc/secret").chmod(0o600)
    Path(host.root, "etc/closed").chmod(0o700)

    def as_nobody() -> bytes:
        os.setgid(65534)
        os.setuid(65534)
        asked: list[Callable[[], object]] = [
            lambda: host.read("/etc/secret"),
            lambda: host.names("/etc/closed"),
            lambda: host.exists("/etc/closed/file"),
            lambda: host.glob("/etc/closed/*"),
            lambda: host.replace("/etc/new", "x"),
        ]
        answers = []
        for ask in asked:
            try:
                answers.append(str(ask()))
            except HostError as e:
                answers.append(str(e).rpartition(": ")[2])
        return " ".join(answers).encode()

    answer, _ = process.gather([("nobody", as_nobody)], 10)["nobody"]
    assert answer == b" ".join([b"needs root"] * 5)
