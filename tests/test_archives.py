"""Archives that root runs something from, and long commands whose output is kept (K6)."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from hostprep.errors import CommandFailed, HostError
from hostprep.host import Host, process

ARCHIVE = "/root/driver.tgz"
INTO = "/var/lib/hostprep"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "root").mkdir()
    return Host(str(tmp_path))


def named(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode, member.uid = kind, target, 0o6777, 1000
    return member


def given(host: Host, *members: tarfile.TarInfo) -> str:
    """An archive of these members is on the host; its digest."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for member in (named("./driver/install"), *members):
            tar.addfile(member)
    return written(host, data.getvalue())


def written(host: Host, data: bytes) -> str:
    Path(host.root + ARCHIVE).write_bytes(data)
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def refusal(host: Host, digest: str) -> str:
    """Why nothing is unpacked; and nothing is left."""
    with pytest.raises(HostError) as e, host.unpacked(ARCHIVE, digest, INTO):
        pytest.fail("unpacked")
    assert not os.path.isdir(host.root + INTO) or os.listdir(host.root + INTO) == []
    return str(e.value)


def test_it_is_root_alone_who_sees_what_is_unpacked_and_only_meanwhile(host: Host) -> None:
    digest = given(host, named("driver/a/link", tarfile.SYMTYPE, "../install"))
    with host.unpacked(ARCHIVE, digest, INTO) as directory:
        info = os.stat(f"{host.root}{directory}")
        assert (stat.S_IMODE(info.st_mode), info.st_uid) == (0o700, os.geteuid())
        installer = os.stat(f"{host.root}{directory}/driver/a/link")
        assert (stat.S_IMODE(installer.st_mode), installer.st_uid) == (0o755, os.geteuid())
    assert os.listdir(host.root + INTO) == []


def test_what_a_killed_hostprep_has_left_is_removed_and_nothing_else(host: Host) -> None:
    for name in ("unpacked-old/driver", "journal"):
        os.makedirs(f"{host.root}{INTO}/{name}")
    with host.unpacked(ARCHIVE, given(host), INTO):
        pass
    assert os.listdir(host.root + INTO) == ["journal"]


@pytest.mark.parametrize(
    "members",
    [
        [named("../outside")],
        [named("/outside")],
        [named("a/../../outside")],
        [named("link", tarfile.SYMTYPE, "/etc")],
        [named("a/link", tarfile.SYMTYPE, "../../etc")],
        [named("a/link", tarfile.SYMTYPE, "b/../../../etc")],
        [named("link", tarfile.LNKTYPE, "../outside")],
        [named("link", tarfile.SYMTYPE, "a"), named("link/outside")],
        [named("null", tarfile.CHRTYPE)],
        [named("fifo", tarfile.FIFOTYPE)],
    ],
    ids=lambda members: " ".join(f"{m.name} {m.linkname}".strip() for m in members),
)
def test_an_archive_that_leads_outside_is_refused_whole(host: Host, members: list[tarfile.TarInfo]) -> None:
    """CVE-2007-4559."""
    assert "refused: " in refusal(host, given(host, *members))


def test_of_another_content_nothing_is_unpacked(host: Host) -> None:
    given(host)
    assert "not 0000" in refusal(host, "md5:" + "0" * 32)


@pytest.mark.parametrize("data", [b"", b"<html>log in first</html>", b"\x1f\x8b\x08\x00cut off"])
def test_what_is_no_archive_is_said_to_be_none(host: Host, data: bytes) -> None:
    assert "is no archive" in refusal(host, written(host, data))


def test_an_archive_that_is_cut_off_is_none(host: Host) -> None:
    given(host)
    whole = Path(host.root + ARCHIVE).read_bytes()
    assert "is no archive" in refusal(host, written(host, whole[: len(whole) // 2]))


def test_an_archive_that_others_may_write_is_not_used(host: Host) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root refuses what others may write")
    digest = given(host)
    os.chmod(host.root + ARCHIVE, 0o666)
    assert "not safe to install from" in refusal(host, digest)


# -- long commands --------------------------------------------------------------------------------

LOG = "/var/log/hostprep/x.log"


def test_the_last_line_of_a_long_command_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PROGRESS_S", 0)
    told: list[str] = []
    watched = host.keeping(lambda *_: None, progress=told.append)
    watched.run_logged("sh", "-c", "printf 'one\\ntwo\\r50%%\\rthree'", log=LOG, timeout=10)
    assert told[-1] == "three"


def test_both_its_streams_are_kept_for_root_alone(host: Host) -> None:
    host.run_logged("sh", "-c", "pwd; echo wrong >&2", log=LOG, timeout=10, directory="/root")
    kept = Path(host.root + LOG)
    assert sorted(kept.read_text().splitlines()) == sorted([host.root + "/root", "wrong"])
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo a; echo b; exit 3", "exit 3: b"),
        ("kill -9 $$", "killed by SIGKILL"),
        ("exec sleep 60", "did not end within"),
    ],
)
def test_it_ends_well_within_its_time_or_is_an_error(host: Host, script: str, why: str) -> None:
    with pytest.raises(HostError, match=why) as e:
        host.run_logged("sh", "-c", script, log=LOG, timeout=0.5)
    assert isinstance(e.value, CommandFailed) is ("did not end" not in why)


def test_a_log_is_not_written_through_a_link(host: Host) -> None:
    os.makedirs(os.path.dirname(host.root + LOG))
    os.symlink("/elsewhere", host.root + LOG)
    with pytest.raises(HostError):
        host.run_logged("true", log=LOG, timeout=10)
    assert not os.path.lexists(host.root + "/elsewhere")
