"""Files that are whole or not there, that nobody else could have written, and the lock."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hostprep import files
from hostprep.errors import Busy, StateError
from hostprep.host.process import gather

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

# -- whole or not there ---------------------------------------------------------------------------

WRITER = """
import sys
from hostprep import files
for i in range(300):
    files.replace(sys.argv[1], sys.argv[2].encode() * 200_000)
"""


def test_a_reader_never_sees_half_a_file_though_two_write_it(tmp_path: Path) -> None:
    """T11. Two hostprep may publish at once: a timer's, and one that a person started."""
    path = tmp_path / "report"
    path.write_bytes(b"a" * 200_000)
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), letter]) for letter in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        data = path.read_bytes()
        seen.add((len(data), len(set(data))))
    assert [writer.wait() for writer in writers] == [0, 0]
    assert seen == {(200_000, 1)}
    assert os.listdir(tmp_path) == ["report"]


def test_killed_at_any_moment_the_old_file_or_the_new_one_is_there(tmp_path: Path) -> None:
    """T11"""
    path = tmp_path / "report"
    path.write_bytes(b"a" * 200_000)
    for _ in range(10):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path), "b"]) as writer:
            inode = path.stat().st_ino
            while path.stat().st_ino == inode:
                assert writer.poll() is None
            writer.send_signal(signal.SIGKILL)
        data = path.read_bytes()
        assert (len(data), len(set(data))) == (200_000, 1)


@pytest.mark.parametrize("call", ["_write_all", "sync_directory"])
def test_a_failure_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*args: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, call, fail)
    with pytest.raises(OSError, match="Input/output"):
        files.replace(str(tmp_path / "file"), b"data")
    assert set(os.listdir(tmp_path)) <= {"file"}


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("keep")
    path = str(tmp_path / "file")
    for temporary in (None, files.temporary_name(path)):
        os.symlink(target, temporary or f"{files.temporary_name(path)}-{os.getpid()}")
        files.replace(path, b"data", temporary=temporary)
    assert target.read_text() == "keep"
    assert sorted(os.listdir(tmp_path)) == ["file", "target"]


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_directories_of_our_own_can_be_read_and_not_written_by_others(tmp_path: Path, umask: int) -> None:
    """Whoever waits for the report is not root."""
    was = os.umask(umask)
    try:
        files.own_directory(str(tmp_path / "a" / "b"))
    finally:
        os.umask(was)
    assert [(tmp_path / p).stat().st_mode & 0o777 for p in ("a", "a/b")] == [0o755, 0o755]


@pytest.mark.parametrize("made", [lambda p: p.write_text(""), lambda p: p.symlink_to("nowhere"), os.mkfifo])
def test_what_is_no_directory_is_refused(tmp_path: Path, made: Callable[[Path], None]) -> None:
    made(tmp_path / "x")
    with pytest.raises(StateError):
        files.own_directory(str(tmp_path / "x"))


# -- nobody else could have written it ------------------------------------------------------------


@pytest.fixture
def tree() -> Iterator[Path]:
    """A folder that only root could have written, on the way to it too."""
    with tempfile.TemporaryDirectory(dir="/var/lib") as folder:
        top = Path(folder).resolve()
        top.chmod(0o755)
        (top / "dir").mkdir(mode=0o755)
        (top / "dir" / "file").write_text("x")
        (top / "dir" / "file").chmod(0o644)
        (top / "other").mkdir(mode=0o755)
        (top / "other" / "link").symlink_to("../dir/file")
        (top / "way").symlink_to("dir")
        assert files.untrusted(str(top / "dir" / "file")) == ""
        yield top


def chown(path: Path) -> None:
    os.chown(path, 12, -1, follow_symlinks=False)


@as_root
@pytest.mark.parametrize(
    ("spoil", "asked", "why"),
    [
        (lambda t: None, "dir/file", ""),
        (lambda t: None, "other/link", ""),
        (lambda t: None, "way/file", ""),
        (lambda t: None, "dir/new/deeper", ""),
        (lambda t: None, "dir/file/below", ""),
        (lambda t: (t / "dir/file").chmod(0o600), "dir/file", ""),
        (lambda t: (t / "dir/file").chmod(0o664), "dir/file", "dir/file can be written by others (mode 0664)"),
        (lambda t: (t / "dir/file").chmod(0o646), "dir/file", "dir/file can be written by others (mode 0646)"),
        (lambda t: (t / "dir/file").chmod(0o1646), "dir/file", "dir/file can be written by others (mode 1646)"),
        (lambda t: chown(t / "dir/file"), "dir/file", "dir/file belongs to user 12"),
        (lambda t: (t / "dir").chmod(0o775), "dir/file", "dir can be written by others (mode 0775)"),
        (lambda t: (t / "dir").chmod(0o777), "dir/new", "dir can be written by others (mode 0777)"),
        (lambda t: (t / "dir").chmod(0o1777), "dir/file", ""),  # as /tmp: others cannot replace what is ours
        (lambda t: chown(t / "dir"), "dir/file", "dir belongs to user 12"),
        (lambda t: (t / "dir").chmod(0o775), "way/file", "dir can be written by others (mode 0775)"),
        (lambda t: (t / "dir").chmod(0o775), "other/link", "dir can be written by others (mode 0775)"),
        # The link could be turned elsewhere after we have looked.
        (lambda t: (t / "other").chmod(0o777), "other/link", "other can be written by others (mode 0777)"),
        (lambda t: chown(t / "other"), "other/link", "other belongs to user 12"),
        (lambda t: chown(t / "way"), "way/file", "way belongs to user 12"),
    ],
)
def test_who_else_could_have_written_a_file(tree: Path, spoil: Callable[[Path], None], asked: str, why: str) -> None:
    spoil(tree)
    assert files.untrusted(str(tree / asked)) == (f"{tree}/{why}" if why else "")


def test_a_loop_of_links_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert files.untrusted(str(tmp_path / "a"))


@as_root
def test_a_directory_that_others_can_write_is_not_our_own(tree: Path) -> None:
    (tree / "dir").chmod(0o777)
    with pytest.raises(StateError, match="not safe to use") as caught:
        files.own_directory(str(tree / "dir" / "state"))
    assert "chown root:" in caught.value.hint


# -- the lock -------------------------------------------------------------------------------------

HOLDER = """
import sys
from hostprep import files
with files.lock(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    argv = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_two_cannot_change_a_host_at_once_and_the_one_is_named(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    path = str(tmp_path / "lock")
    for _ in range(2):
        with pytest.raises(Busy, match=f"process {holder.pid}"), files.lock(path):
            pytest.fail("two hold the lock")
    assert holder.stdin
    holder.stdin.close()
    holder.wait()
    with files.lock(path):
        assert Path(path).read_text() == f"{os.getpid()}\n"
    with files.lock(path):
        pass


def test_the_kernel_drops_the_lock_of_a_killed_holder(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with files.lock(str(tmp_path / "lock")):
        pass


def test_a_child_that_looks_does_not_hold_the_lock(tmp_path: Path) -> None:
    """One that is stuck outlives its parent by hours; its flock(2), inherited by fork, would do so too."""
    path = tmp_path / "lock"

    def holds_it() -> bytes:
        inodes = set()
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # the listing's own, closed by now
                inodes.add(os.stat(f"/proc/self/fd/{fd}").st_ino)
        return str(path.stat().st_ino in inodes).encode()

    with files.lock(str(path)):
        assert holds_it() == b"True"
        assert gather([("child", holds_it)], 10)["child"][0] == b"False"


def test_a_link_in_the_place_of_the_lock_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("keep")
    (tmp_path / "lock").symlink_to("target")
    with pytest.raises(StateError, match="lock: cannot be locked"), files.lock(str(tmp_path / "lock")):
        pytest.fail("locked")
    assert (tmp_path / "target").read_text() == "keep"


def test_a_lock_on_a_read_only_file_system_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*args: object, **more: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(StateError) as refused, files.lock(str(tmp_path / "lock")):
        pytest.fail("locked")
    assert refused.value.hint == "Its file system has to be mounted read-write, and not full."
