"""Waiting for devices that come and go, and for another tool's lock."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import FakeHost

from hostprep.errors import HostError
from hostprep.host import Host, network, process
from hostprep.host.rehearsal import Rehearsal

MakeHost = Callable[..., FakeHost]


def within_namespace(look: Callable[[], str]) -> str:
    """Do this in a new network namespace, which goes with the child that made it: uevents of net are of theirs."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and ip(8)")

    def work() -> bytes:
        try:
            network._libc("unshare", network._CLONE_NEWNET)
            return look().encode()
        except Exception as e:  # noqa: BLE001 - an assertion that fails in the child is told to the parent
            return repr(e).encode()

    answer, _ = process.gather([("look", work)], 30)["look"]
    return answer if isinstance(answer, str) else answer.decode()


@pytest.mark.parametrize("event", ["while the first question is answered", "long after"])
def test_an_event_ends_the_wait(event: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """We listen before the first question: what happens while it is answered would otherwise be noticed by nobody."""
    monkeypatch.setattr(network, "_AGAIN_S", 1000)  # nothing but an event leads to another look
    add = "ip link add d0 type veth peer name d1"
    command = add if event.startswith("while") else f"sleep 0.3; {add}"

    def look() -> str:
        asked = []

        def ready() -> bool:
            there = any(name == "d0" for _, name in socket.if_nameindex())
            asked.append(there)
            if len(asked) == 1:
                run = subprocess.run if event.startswith("while") else subprocess.Popen
                run(["sh", "-c", command])
            return there

        return f"{network.settled(ready, 20, ('net',))} {asked[0]} {asked[-1]}"

    assert within_namespace(look) == "True False True"


def test_what_never_comes_is_waited_for_no_longer_than_asked() -> None:
    started = time.monotonic()
    assert not Host().settled(lambda: False, 0.3)
    assert 0.3 <= time.monotonic() - started < 5


def test_what_is_there_is_not_waited_for() -> None:
    assert Host().settled(lambda: True, 0)


@pytest.mark.parametrize("lost", ["the event", "libudev"])
def test_it_is_looked_again_when_no_event_comes(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel drops events that its reader is too slow for; a slim host may have no libudev."""
    if lost == "libudev":
        monkeypatch.setitem(sys.modules, "pyudev", None)
    answers = iter([False, False, True])
    assert Host().settled(lambda: next(answers), 20)


def test_nothing_is_waited_for_in_a_rehearsal(make_host: MakeHost) -> None:
    """What would have come after a change that is only noted never comes."""
    assert Rehearsal(make_host({})).settled(lambda: False, 1000)


# -- locks ----------------------------------------------------------------------------------------


def test_a_lock_that_another_holds_is_waited_for_and_then_an_error(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    with open(path) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(HostError, match=r"lock: held by another process for 0\.1 s") as caught:
            Host().locked(str(path), 0.1).__enter__()
        assert caught.value.code == errno.EWOULDBLOCK
        heir = subprocess.Popen(["sleep", "0.3"], pass_fds=(other.fileno(),))
    with heir, Host().locked(str(path), 20):
        assert heir.poll() is not None or heir.wait(1) == 0


def test_a_lock_is_held_meanwhile_and_no_longer(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()

    def free() -> bool:
        with open(path) as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    def fail() -> None:
        with Host().locked(str(path), 1):
            assert not free()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert free()
    with Host().locked(str(path), 1):
        assert Host().run("true") == ""
        assert not free()


def test_without_the_file_there_is_nobody_to_lock_out(tmp_path: Path, make_host: MakeHost) -> None:
    with Host().locked(str(tmp_path / "none"), 1):
        assert not (tmp_path / "none").exists()
    with Rehearsal(make_host({})).locked("/etc/none", 1):
        pass
