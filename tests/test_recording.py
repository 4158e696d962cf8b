"""Recording a host and looking at it elsewhere: the same facts, and never a guess about what was not asked."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeHost, debian

from hostprep import engine, registry
from hostprep.errors import HostError
from hostprep.host import Host, process
from hostprep.host.record import RecordedHost, Recorder, without_secrets
from hostprep.model import Facts, Unknown

MakeHost = Callable[..., FakeHost]


def facts(host: Host) -> dict[str, Facts | Unknown]:
    return {name: answer.facts for name, answer in engine.inspect(host, registry.load(), 30).items()}


@pytest.fixture
def no_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*args: object) -> str:
        raise AssertionError("a command was run")

    monkeypatch.setattr(process, "run", run)
    monkeypatch.setattr(process, "_spawn", run)


# What another look at the same machine, by another check even, may find to be different.
MOVING = ("swap/memory-available", "swap/used", "hugepages/memory/available", "hardware/free/")


def still(seen: dict[str, Facts | Unknown]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, found in seen.items():
        if isinstance(found, Unknown):
            flat[name] = found
        else:
            flat |= {f"{name}/{key}": fact for key, fact in found.items()}
    return {key: fact for key, fact in flat.items() if not key.startswith(MOVING)}


def test_this_machine_replays_with_the_same_facts(tmp_path: Path) -> None:
    live = facts(Host())
    recorded = facts(Recorder(str(tmp_path / "recording")))
    assert still(recorded) == still(live)
    assert still(facts(RecordedHost(str(tmp_path / "recording")))) == still(live)
    assert len(still(live)) > 20


@pytest.mark.usefixtures("no_commands")
def test_a_replay_runs_no_command(tmp_path: Path) -> None:
    host = RecordedHost(str(tmp_path))
    asks: tuple[Callable[[], str], ...] = (lambda: host.run("uname", "-m"), host.machine)
    for ask in asks:
        with pytest.raises(HostError, match="no command is run for a recorded host"):
            ask()


def test_a_replay_is_never_written(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/file").write_text("old")
    host = RecordedHost(str(tmp_path))
    with pytest.raises(HostError, match="cannot be changed"):
        host.write("/etc/file", "new")
    with pytest.raises(HostError, match="cannot be changed"):
        host.replace("/etc/file", "new")
    with pytest.raises(HostError, match="cannot be changed"):
        host.symlink("/etc/link", "file")
    assert os.listdir(tmp_path / "etc") == ["file"]


# -- what was asked, and what was not -------------------------------------------------------------


@pytest.fixture
def replay(tmp_path: Path) -> RecordedHost:
    """The recording of a few questions to a small host."""
    host = FakeHost(
        tmp_path / "root",
        {
            "/etc/read": "text",
            "/etc/dir/one": "1",
            "/etc/dir/two": "2",
            "/etc/seen": "x",
            "/etc/ls/a": "",
            "/etc/link": "-> read",
            "/etc/fifo/": "",
        },
    )

    small = Recorder(str(tmp_path / "recording"))
    small.root = host.root
    assert small.read("/etc/read") == "text"
    assert small.read("/etc/missing") is None
    assert small.read("/etc/dir/one") == "1"
    assert small.exists("/etc/seen")
    assert not small.exists("/opt/tool")
    assert small.glob("/etc/ls/*") == ["/etc/ls/a"]
    assert small.names("/nowhere") == []
    assert small.link("/etc/link") == "read"
    with pytest.raises(HostError):
        small.read("/etc/fifo")
    return RecordedHost(small.into)


@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (lambda h: h.read("/etc/read"), "text"),
        (lambda h: h.exists("/etc/read"), True),
        (lambda h: h.read("/etc/missing"), None),
        (lambda h: h.exists("/etc/missing"), False),
        (lambda h: h.read("/etc/dir/one"), "1"),
        (lambda h: h.exists("/etc/dir"), True),
        (lambda h: h.exists("/etc/seen"), True),
        (lambda h: h.exists("/opt/tool/bin"), False),
        (lambda h: h.names("/opt/tool"), []),
        (lambda h: h.names("/etc/ls"), ["a"]),
        (lambda h: h.glob("/etc/ls/*"), ["/etc/ls/a"]),
        (lambda h: h.exists("/etc/ls/b"), False),
        (lambda h: h.read("/nowhere/x/y"), None),
        (lambda h: h.link("/etc/link"), "read"),
        (lambda h: h.link("/etc/ls/b"), None),
    ],
)
def test_what_was_asked_is_answered(replay: RecordedHost, ask: Callable[[Host], object], answer: object) -> None:
    assert ask(replay) == answer


@pytest.mark.parametrize(
    "ask",
    [
        lambda h: h.read("/etc/fstab"),
        lambda h: h.exists("/etc/fstab"),
        lambda h: h.names("/etc"),  # it holds what was read, and not only that
        lambda h: h.names("/etc/dir"),
        lambda h: h.glob("/etc/dir/*"),
        lambda h: h.read("/etc/seen"),  # it was there; what was in it was never asked
        lambda h: h.names("/etc/seen"),
        lambda h: h.read("/etc/ls/a"),
        lambda h: h.link("/opt"),
        lambda h: h.read("/etc/fifo"),
        lambda h: h.run("uname"),
        lambda h: h.machine(),
        lambda h: h.clock_synchronised(),
        lambda h: h.space("/"),
    ],
)
def test_what_was_never_asked_is_unknown_and_not_absent(replay: RecordedHost, ask: Callable[[Host], object]) -> None:
    with pytest.raises(HostError):
        ask(replay)


def test_a_listing_that_could_not_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / ".hostprep").mkdir()
    (tmp_path / ".hostprep/1.jsonl").write_text('{"ask": "list", "of": "/etc/d", "error": "/etc/d: needs root"}\n')
    host = RecordedHost(str(tmp_path))
    with pytest.raises(HostError, match="needs root"):
        host.names("/etc/d")
    with pytest.raises(HostError, match="/etc/d/file: was not recorded"):
        host.read("/etc/d/file")


@pytest.mark.parametrize("line", ["{", "[]", '{"ask": "list"}', "\x00", '"text"'])
def test_a_damaged_recording_says_so(tmp_path: Path, line: str) -> None:
    (tmp_path / ".hostprep").mkdir()
    (tmp_path / ".hostprep/1.jsonl").write_text(line + "\n")
    with pytest.raises(HostError, match=r"1.jsonl: .* damaged"):
        RecordedHost(str(tmp_path))


# -- a plain tree ---------------------------------------------------------------------------------


def test_a_plain_tree_is_taken_as_it_is_and_says_what_it_could_not_see(make_host: MakeHost, tmp_path: Path) -> None:
    seen = facts(RecordedHost(make_host(debian()).root))
    assert isinstance(seen["hardware"], dict)
    assert seen["hardware"]["cpus"].current == 2
    for name in ("architecture", "disk/"):
        reading = seen["hardware"][name].current
        assert isinstance(reading, Unknown)
        assert "was not recorded" in reading.reason
    assert isinstance(seen["system"], dict)
    assert isinstance(seen["system"]["clock"].current, Unknown)


def test_links_of_a_tree_do_not_lead_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").symlink_to("/etc/../../../../../../../../etc/machine-id")
    (tmp_path / "proc").symlink_to("/proc")
    host = RecordedHost(str(tmp_path))
    assert host.read("/etc/passwd") is None
    with pytest.raises(HostError, match="symbolic links"):
        host.read("/proc/version")


# -- what a recording may hold --------------------------------------------------------------------


def test_only_its_owner_can_read_a_recording(tmp_path: Path) -> None:
    Recorder(str(tmp_path / "recording"))
    assert (tmp_path / "recording").stat().st_mode & 0o777 == 0o700


def test_two_recordings_are_not_mixed(tmp_path: Path) -> None:
    Recorder(str(tmp_path / "recording"))
    with pytest.raises(OSError, match="not empty"):
        Recorder(str(tmp_path / "recording"))


@pytest.mark.parametrize(
    "line",
    [
        "password_pbkdf2 root grub.pbkdf2.sha512.10000.SECRET.SECRET",
        "  password root SECRET",
        "//server/share /mnt cifs username=me,password=SECRET,uid=0 0 0",
        "//server/share /mnt cifs pass=SECRET 0 0",
        'GRUB_CMDLINE_LINUX="rd.iscsi.password=SECRET quiet"',
        json.dumps({"answer": 'x "password=SECRET" y'}),
        json.dumps({"answer": "token=SECRET\nnext"}),
        "LUKS_PASSWORD=SECRET",
    ],
)
def test_passwords_are_left_out(line: str) -> None:
    cleaned = without_secrets(line.encode()).decode()
    assert "SECRET" not in cleaned
    assert "REMOVED" in cleaned
    if line.startswith("{"):
        json.loads(cleaned)


@pytest.mark.parametrize("line", ["UUID=1 / ext4 defaults 0 1", "passive=1 compass=2", "no password is set"])
def test_other_text_is_recorded_as_it_is(line: str) -> None:
    assert without_secrets(line.encode()) == line.encode()


def test_a_recording_of_this_machine_holds_no_secrets(tmp_path: Path) -> None:
    """Checks read the configuration of hardware, boot and memory, and never what is secret to begin with."""
    recording = tmp_path / "recording"
    facts(Recorder(str(recording)))
    names = [str(p.relative_to(recording)) for p in recording.rglob("*") if p.is_file()]
    assert not [n for n in names if n.startswith(("home/", "root/", "etc/ssh/", "etc/ssl/", "etc/shadow", "proc/1/"))]
