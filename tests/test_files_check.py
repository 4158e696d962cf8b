"""The check `files`: what must be there, and what it must be like (K15)."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import findings, statuses
from fakes import FakeHost, debian

from hostprep import profile_source, registry
from hostprep.errors import HostError, ProfileError
from hostprep.host import Host
from hostprep.host.record import RecordedHost, Recorder
from hostprep.model import Fact, Unknown

MakeHost = Callable[..., FakeHost]
SITE = {
    **debian(),
    "/etc/passwd": "root:x:0:0:root:/root:/bin/bash\nmunge:x:112:115::/var/lib/munge:/sbin/nologin\n",
    "/etc/group": "root:x:0:\nmunge:x:115:\n",
    "/root/src/controller.tar.gz": "no archive, but there",
    "/root/empty": "",
    "/root/nothing-in-it/": "",
    "/root/DATA/video/a.mp4": "film",
    "/root/DATA/video/b.mp4": "",
    "/root/DATA/video/.c.mp4": "half of a film",
    "/root/DATA/video/d.mp4": "-> nowhere",
    "/root/link": "-> src/controller.tar.gz",
    "/proc/cpuinfo": "processor: 0\n",
}


def only(host: FakeHost, section: Any) -> dict[str, str]:
    return statuses(host, {"files": section})


def path(host: FakeHost, name: str) -> Path:
    return Path(host.root + name)


# -- present --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("/root/src/controller.tar.gz", "pass", ""),
        ("/root/link", "pass", ""),
        ("/root/src/", "pass", ""),
        ("/proc/cpuinfo", "pass", ""),
        ("/root/empty", "fail", "is empty"),
        ("/root/nothing-in-it/", "fail", "is empty"),
        ("/root/missing", "fail", "is not there"),
        ("/root/empty/below-a-file", "fail", "is not there"),
        ("/root/DATA/video/d.mp4", "fail", "is a dangling link"),
        ("/root/src", "fail", "its path ends with a slash"),
        ("/root/empty/", "fail", "is an empty file, not a directory"),
        ("/root/DATA/video/*.mp4", "pass", ""),
        ("/root/DATA/*/a.mp4", "pass", ""),
        ("/root/DATA/video/*.mkv", "fail", "no file that is not empty"),
    ],
)
def test_present_and_not_empty(make_host: MakeHost, name: str, status: str, message: str) -> None:
    (found,) = findings(make_host(SITE), {"files": [name]}).values()
    assert (found.status.value, message in found.message) == (status, True), found.message


def test_a_fifo_is_no_file_and_holds_nobody_up(make_host: MakeHost) -> None:
    host = make_host(SITE)
    os.mkfifo(path(host, "/root/pipe"))
    section = {"path": "/root/pipe", "sha256": "0" * 64, "archive": True}
    (found,) = findings(host, {"files": section}).values()
    assert (found.status.value, found.message) == ("fail", "/root/pipe: is a FIFO, not a file.")


def test_a_pattern_counts_files_that_are_not_empty_and_not_hidden(make_host: MakeHost) -> None:
    """K15: work/DATA/video/*.mp4. What a copy that is under way has there does not count."""
    host = make_host(SITE)
    section = {"in": "/root", "present": [{"path": "DATA/video/*.mp4", "count": 2}]}
    (found,) = findings(host, {"files": section}).values()
    assert found.status.value == "fail"
    assert "1 file that is not empty, at least 2 wanted" in found.message
    assert "b.mp4 (empty file)" in found.message
    assert "d.mp4 (dangling link)" in found.message
    host.put("/root/DATA/video/e.mp4", "another film")
    assert only(host, section) == {"files/count/root/DATA/video/*.mp4": "pass"}


def test_a_file_whose_name_looks_like_a_pattern_is_itself(make_host: MakeHost) -> None:
    host = make_host({**SITE, "/root/take[1].mp4": "film"})
    assert set(only(host, ["/root/take[1].mp4"]).values()) == {"pass"}


def test_the_three_files_of_the_install_manual(make_host: MakeHost) -> None:
    """K15, as a profile has them: relative to the controller's directory."""
    host = make_host({**SITE, "/root/driver/nvidia/NVIDIA-Linux-x86_64-550.90.12.run": "#!"})
    names = ["src/controller.tar.gz", "driver/nvidia/NVIDIA-Linux-x86_64-550.90.12.run", "DATA/video/*.mp4"]
    assert set(only(host, {"in": "/root/", "present": names}).values()) == {"pass"}


# -- next boot ------------------------------------------------------------------------------------

MOUNTS = (
    "22 1 259:1 / / rw - ext4 /dev/sda1 rw\n23 22 0:21 / /run rw - tmpfs tmpfs rw\n"
    "24 23 0:22 / /run/my\\040disk rw - ext4 /dev/sdb1 rw\n"
)


@pytest.mark.parametrize(
    ("mounts", "name", "status"),
    [
        (MOUNTS, "/root/link", "pass"),
        (MOUNTS, "/run/a", "volatile"),
        (MOUNTS, "/run/my disk/b", "pass"),
        (MOUNTS, "/root/to-run", "volatile"),
        (MOUNTS, "/run/[a]", "volatile"),
        ("22 1 0:2 / / rw - tmpfs tmpfs rw\n", "/run/a", "pass"),  # a diskless node: its image brings it again
        ("garbage\n", "/run/a", "unknown"),
        ("", "/run/a", "unknown"),
    ],
)
def test_what_is_in_memory_is_lost_at_the_next_boot(make_host: MakeHost, mounts: str, name: str, status: str) -> None:
    more = {"/run/a": "1", "/run/my disk/b": "2", "/root/to-run": "-> /run/a", "/proc/self/mountinfo": mounts}
    (found,) = findings(make_host({**SITE, **more}), {"files": [name]}).values()
    assert found.status.value == status
    assert status != "volatile" or "keep it on a disk" in found.fix


# -- what it is like ------------------------------------------------------------------------------

KEY = "/etc/munge/munge.key"
TEXT = "0123456789abcdef0123456789abcdef"


def digest(algorithm: str) -> str:
    return hashlib.new(algorithm, TEXT.encode()).hexdigest()


@pytest.mark.parametrize(
    ("aspect", "good", "bad", "said"),
    [
        ("size", 32, 31, "its size is 32 B, not 31"),
        ("size", ">=32", ">32", "its size is 32 B, not >32"),
        ("size", "<=32", "<32", "its size is 32 B, not <32"),
        ("size", ">31B", ">1kB", "not >1kB"),
        ("sha256", digest("sha256").upper(), digest("sha256")[::-1], "another file than the profile means"),
        ("md5", digest("md5"), "0" * 32, f"its md5 is {digest('md5')}"),
        ("mode", "0400", "0600", f"chmod 0600 {KEY}"),
        ("mode", "400", "0444", f"chmod 0444 {KEY}"),
        ("newer", "1h", "1m", "was modified"),
        ("newer", "/etc/older", "/etc/younger", "is older than /etc/younger"),
    ],
)
def test_each_aspect_as_wanted_and_not(make_host: MakeHost, aspect: str, good: Any, bad: Any, said: str) -> None:
    host = make_host({**SITE, KEY: TEXT, "/etc/older": "1", "/etc/younger": "2"})
    path(host, KEY).chmod(0o400)
    for name, age in (("/etc/older", 9000), (KEY, 600), ("/etc/younger", 60)):
        os.utime(path(host, name), (time.time() - age,) * 2)
    key = f"files/{aspect}{KEY}"
    assert only(host, {"path": KEY, aspect: good})[key] == "pass"
    found = findings(host, {"files": {"path": KEY, aspect: bad}})[key]
    assert found.status.value == "fail"
    assert said in f"{found.message} {found.fix}"


@pytest.mark.parametrize(
    ("uid", "wanted", "status"),
    [
        (112, "munge", "pass"),
        (0, "munge", "fail"),
        (112, 112, "pass"),
        (4711, 4711, "pass"),
        (4711, "ldapuser", "pass"),
    ],
)
def test_owners_are_names_of_this_host_or_numbers(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch, uid: int, wanted: str | int, status: str
) -> None:
    """A user of a directory service is none of /etc/passwd: getent knows it."""
    host = make_host({**SITE, KEY: TEXT}, {"getent": "ldapuser:*:4711:100::/home/l:/bin/sh\n"})
    real = host.info(KEY)
    assert real is not None
    monkeypatch.setattr(FakeHost, "info", lambda self, path: real._replace(uid=uid))
    assert only(host, {"path": KEY, "owner": wanted})[f"files/owner{KEY}"] == status


def test_what_is_asked_holds_for_every_file_that_matches(make_host: MakeHost) -> None:
    host = make_host({**SITE, "/data/a": "12345", "/data/b": "1"})
    path(host, "/data/b").chmod(0o600)
    found = findings(host, {"files": {"path": "/data/*", "size": ">3", "mode": "0644"}})
    assert found["files/size/data/*"].fact == Fact.fixed(1)
    assert found["files/mode/data/*"].fact == Fact.fixed(("0600", "0644"))
    assert {f.status.value for f in found.values()} == {"pass", "fail"}


def test_a_file_from_the_future_has_no_age(make_host: MakeHost) -> None:
    host = make_host({**SITE, KEY: TEXT})
    os.utime(path(host, KEY), (time.time() + 9000,) * 2)
    found = findings(host, {"files": {"path": KEY, "newer": "30d"}})[f"files/newer{KEY}"]
    assert (found.status.value, "in the future" in found.message) == ("unknown", True)


def test_nothing_is_newer_than_what_is_not_there(make_host: MakeHost) -> None:
    found = findings(make_host({**SITE, KEY: TEXT}), {"files": {"path": KEY, "newer": "/etc/gone"}})
    assert found[f"files/newer{KEY}"].message == "/etc/gone: is not there, so that nothing can be newer than it"


# -- what cannot be read --------------------------------------------------------------------------


def test_one_file_that_cannot_be_read_is_one_unknown(make_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(self: Host, name: str) -> Any:
        if name == "/nfs/dead":
            raise HostError(f"{name}: Stale file handle")
        return real(self, name)

    real = Host.info
    monkeypatch.setattr(FakeHost, "info", stuck)
    found = findings(make_host(SITE), {"files": ["/nfs/dead", "/root/link"]})
    assert [f.status.value for f in found.values()] == ["unknown", "pass"]
    assert found["files/present/nfs/dead"].message == "/nfs/dead: Stale file handle"


def test_a_mount_that_does_not_answer_keeps_only_its_own_files_waiting(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stuck(self: Host, name: str) -> Any:
        if name.startswith("/nfs"):
            while True:
                time.sleep(60)
        return real(self, name)

    real = Host.info
    check = registry.load(["files"])["files"]
    monkeypatch.setattr(check, "PATH_S", -1.0)
    monkeypatch.setattr(FakeHost, "info", stuck)
    found = findings(make_host(SITE), {"files": ["/nfs/dead", "/root/link"]})
    assert [f.status.value for f in found.values()] == ["unknown", "pass"]
    assert "no answer within 1 s" in found["files/present/nfs/dead"].message


def test_a_digest_that_takes_too_long_says_how_far_it_came(make_host: MakeHost) -> None:
    host = make_host({"/iso": "x" * 3_000_000})
    with pytest.raises(HostError, match=r"/iso: its sha256 takes longer than 0 s: 0.0 of 0.0 GB were read"):
        host.digest("/iso", "sha256", 0)


def test_what_was_not_looked_at_is_not_absent() -> None:
    """Facts of a look that did not ask for it: never `not there`, and never as wanted."""
    check = registry.load(["files"])["files"]
    (goal,) = check.decide({}, ["/etc/hosts"]).values()
    assert goal.counted == Unknown("was not looked at")


def test_a_recorded_host_answers_as_it_did_and_knows_nothing_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "here").write_text(TEXT)
    recorder = Recorder(str(tmp_path / "recording"))
    name = str(tmp_path / "here")
    answers = recorder.info(name), recorder.digest(name, "md5", 9)
    played = RecordedHost(str(tmp_path / "recording"))
    assert (played.info(name), played.digest(name, "md5", 9)) == answers
    with pytest.raises(HostError, match="was not recorded"):
        played.info("/etc/other")
    with pytest.raises(HostError, match="was not recorded"):
        played.digest(name, "sha256", 9)


# -- profiles -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("[src/controller.tar.gz]", "write {in: DIRECTORY, present: [...]}"),
        ("[~/x]", "an absolute path"),
        ("['/a/**/b']", "an absolute path"),
        ("[/a/../b]", "an absolute path"),
        ("{path: /a, mode: 644}", 'an octal mode in quotes: "0644"'),
        ("{path: /a, mode: '0888'}", 'an octal mode in quotes: "0644"'),
        ("{path: /a, size: big}", 'a size: 32, ">1MB"'),
        ("{path: /a, sha256: 12}", "a sha256 of 64 hexadecimal digits"),
        ("{path: /a, newer: yesterday}", "an age such as 30d or 12h"),
        ("{path: /a, count: 0}", "at least 1"),
        ("{in: /a}", "several are {in: DIRECTORY, present: [...]}"),
        ("{in: /a, present: []}", "is empty: it would ask for nothing"),
        ("{in: /a, present: [b], mode: '0644'}", "a file is a path or {path: ...}"),
        ("[]", "is empty: it would ask for nothing"),
    ],
)
def test_a_profile_that_is_not_valid_is_told_what_belongs_there(section: str, said: str) -> None:
    with pytest.raises(ProfileError) as e:
        profile_source.validate("p.yaml", f"name: x\nfiles: {section}\n".encode(), registry.load())
    assert said in str(e.value)
