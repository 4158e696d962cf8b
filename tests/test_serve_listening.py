"""Where `hostprep serve` listens: at this host alone unless it is told, or on the sockets that systemd hands over."""

from __future__ import annotations

import ipaddress
import os
import socket
import subprocess
import sys
from pathlib import Path

import bad_reports
import pytest

import hostprep.__main__ as entry
from hostprep import serve
from hostprep.errors import OutputFailed, UsageError

ROOT = Path(__file__).parent.parent
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n"

HANDED = """
import os, sys
import hostprep.__main__ as entry
from hostprep import serve
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="x")
serve.IDLE_S = 0.5
sys.exit(entry.run(["serve"]))
"""


def test_k19_systemd_listens_and_starts_it_when_somebody_asks() -> None:
    """It ends when nobody asks any more; who asks between two of them waits for the second."""
    bad_reports.put_good(Path(os.environ["HOSTPREP_RUN_DIR"]) / "report.json")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(2):
            with socket.create_connection(listener.getsockname(), timeout=30) as client:
                client.sendall(REQUEST)
                command = [sys.executable, "-c", HANDED, str(listener.fileno())]
                done = subprocess.run(command, pass_fds=[listener.fileno()], capture_output=True, timeout=60)
                assert (done.returncode, done.stderr) == (0, b"")
                assert client.recv(65536).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    ("count", "pid", "taken"), [("1", "1", False), ("", "own", False), ("0", "own", None), ("x", "own", None)]
)
def test_only_what_is_handed_to_this_process_is_taken(
    count: str, pid: str, taken: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sd_listen_fds(3); and nothing that is started from here finds it."""
    monkeypatch.setenv("LISTEN_FDS", count)
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()) if pid == "own" else pid)
    if taken is None:
        with pytest.raises(UsageError, match="is no number of sockets"):
            serve.passed()
    else:
        assert serve.passed() == []
    assert not {"LISTEN_FDS", "LISTEN_PID"} & set(os.environ)


@pytest.mark.parametrize("kind", ["file", "udp", "connected", "closed"])
def test_what_is_handed_over_has_to_be_a_listening_socket(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    file = os.open("/dev/null", os.O_RDONLY)
    number = {"file": file, "udp": os.dup(udp.fileno()), "connected": os.dup(ours.fileno()), "closed": 999}[kind]
    monkeypatch.setattr(serve, "_FIRST_FD", number)
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    with pytest.raises(UsageError, match="as systemd handed it over") as e:
        serve.passed()
    assert "Accept=no" in e.value.hint
    for s in (ours, theirs, udp):
        s.close()
    os.close(file)


@pytest.mark.parametrize(
    "where",
    [
        *("", "9617", ":9617", "0.0.0.0", "node01:9617", "127.1:9617", "127.0.0.1:65536", "127.0.0.1:-1"),
        *("::1:9617", "[127.0.0.1]:9617", "[::1]", "127.0.0.1:http", "*:9617", "127.0.0.1:9617\n"),
    ],
)
def test_an_address_that_can_be_taken_in_two_ways_is_none(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.run(["serve", "--listen", where]) == 2
    assert "hint: Give ADDRESS:PORT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("where", "open_to_others"), [("127.0.0.1:0", False), ("localhost:0", False), ("0.0.0.0:0", True)]
)
def test_who_opens_it_to_others_is_told(where: str, open_to_others: bool, capsys: pytest.CaptureFixture[str]) -> None:
    serve.listening(where).close()
    assert ("whoever reaches that address" in capsys.readouterr().err) == open_to_others


def test_a_port_that_is_taken_is_said() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    with taken, pytest.raises(OutputFailed, match="cannot listen there: Address already in use"):
        serve.listening(f"127.0.0.1:{taken.getsockname()[1]}")


def test_without_being_told_it_is_for_this_host_alone() -> None:
    """And the units say the same: the service itself has no network to listen on."""
    assert ipaddress.ip_address(serve.LISTEN.partition(":")[0]).is_loopback
    assert f"\nListenStream={serve.LISTEN}\n" in (ROOT / "systemd/hostprep-serve.socket").read_text()
    assert "\nPrivateNetwork=yes\n" in (ROOT / "systemd/hostprep-serve.service").read_text()
