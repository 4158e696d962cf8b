"""`hostprep serve`, over real sockets: it says what the report says, to whoever asks in whatever way."""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

import bad_reports
import pytest

from hostprep import serve

ROOT = Path(__file__).parent.parent
PATHS = ("/", "/metrics", "/report.json", "/healthz")
RAW = "GET {} HTTP/1.1\r\nHost: node\r\n\r\n"


class Server(NamedTuple):
    address: tuple[str, int]
    report: Path


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    body: str


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real `hostprep serve` at a free port."""
    run = tmp_path_factory.mktemp("run")
    command = [sys.executable, "-m", "hostprep", "serve", "--listen", "127.0.0.1:0"]
    env = os.environ | {"HOSTPREP_RUN_DIR": str(run), "HOSTPREP_CACHE_DIR": str(run / "cache")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as serving:
        assert serving.stderr is not None
        said = re.fullmatch(r"listening on http://127\.0\.0\.1:(\d+)/\n", serving.stderr.readline())
        assert said is not None
        yield Server(("127.0.0.1", int(said[1])), run / "report.json")
        serving.terminate()
        assert serving.stderr.read() == "", "no request is worth a line in the log"


@pytest.fixture
def server(process: Server) -> Iterator[Server]:
    """It, and no report yet."""
    yield process
    process.report.unlink(missing_ok=True)


def asked(server: Server, path: str, method: str = "GET") -> Response:
    connection = http.client.HTTPConnection(*server.address, timeout=30)
    connection.request(method, path)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return Response(answer.status, dict(answer.getheaders()), body)


def said(server: Server, request: bytes) -> bytes:
    """All that is answered to these bytes, which are all that is said."""
    with socket.create_connection(server.address, timeout=30) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


# -- what is answered -------------------------------------------------------------------------------


def test_each_path_says_it_in_its_format(server: Server) -> None:
    bad_reports.put_good(server.report)
    answers = {path: asked(server, path) for path in PATHS}
    assert [a.status for a in answers.values()] == [200] * 4
    assert answers["/healthz"].body == "READY: 1 passed\n"
    assert answers["/report.json"].body.encode() == server.report.read_bytes() + b"\n"
    assert "hostprep_ready 1\n" in answers["/metrics"].body
    assert answers["/"].body.startswith("<!DOCTYPE html>")
    assert [a.headers["Content-Type"].partition(";")[0] for a in answers.values()] == [
        *("text/html", "text/plain", "application/json", "text/plain")
    ]
    assert "version=0.0.4" in answers["/metrics"].headers["Content-Type"], "Prometheus 3 reads nothing without it"


@pytest.mark.parametrize("path", PATHS)
def test_nobody_on_the_way_keeps_an_answer(server: Server, path: str) -> None:
    """And asking for the head alone says the same without a body (RFC 9110 9.3.2)."""
    bad_reports.put_good(server.report)
    whole, head = asked(server, path), asked(server, path, "HEAD")
    assert whole.headers["Cache-Control"] == "no-store"
    assert int(whole.headers["Content-Length"]) == len(whole.body.encode())
    assert (head.status, head.body) == (whole.status, "")
    assert head.headers | {"Date": ""} == whole.headers | {"Date": ""}


def test_every_answer_is_of_the_report_as_it_is_then(server: Server) -> None:
    """T9, T11: nothing that was said before outlives its report."""
    seen = []
    for step in ("good", "ready with a failure", "another boot", "good", "nothing"):
        server.report.unlink(missing_ok=True)
        (bad_reports.put_good if step == "good" else bad_reports.BAD[step].put)(server.report, bad_reports.good())
        metrics = asked(server, "/metrics")
        seen.append((metrics.status, *(f"hostprep_{n} 1\n" in metrics.body for n in ("ready", "report_usable"))))
        assert [asked(server, path).status == 200 for path in ("/", "/report.json", "/healthz")] == [seen[-1][1]] * 3
    refused = (200, False, False)
    assert seen == [(200, True, True), refused, refused, (200, True, True), refused]


def test_a_host_that_is_not_ready_has_a_report_and_no_health(server: Server) -> None:
    server.report.write_bytes(bad_reports.written(bad_reports.not_ready()))
    assert [asked(server, path).status for path in PATHS] == [200, 200, 200, 503]
    assert asked(server, "/healthz").body == "swap/devices failed\n"
    assert '"ready": false' in asked(server, "/report.json").body
    assert "hostprep_ready 0\n" in asked(server, "/metrics").body


def test_what_is_wrong_with_a_report_is_told_in_the_place_of_it(server: Server) -> None:
    refused = {path: asked(server, path) for path in ("/report.json", "/healthz", "/")}
    assert {a.status for a in refused.values()} == {503}
    assert re.search(r'"ready": false,\n "reason": "missing",\n "error": "there is no', refused["/report.json"].body)
    assert refused["/healthz"].body.startswith("not ready: there is no report at")
    assert "NOT READY" in refused["/"].body


def test_a_profile_that_cannot_be_read_is_no_profile_to_be_ready_by() -> None:
    bad_reports.put_good(Path(os.environ["HOSTPREP_RUN_DIR"]) / "report.json")
    assert serve.answer("/healthz", "baseline").status == 200
    assert serve.answer("/healthz", "nosuch").status == 503
    assert 'hostprep_report_unusable{reason="broken-profile"} 1' in serve.answer("/metrics", "nosuch").body


# -- who asks in another way ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        *((RAW.format(path), 200) for path in ("/healthz", "/healthz?a=b", "http://node:9617/healthz")),
        ("GET /healthz HTTP/1.0\r\n\r\n", 200),
        *(
            (RAW.format(path), 404)
            for path in ("/../../etc/passwd", "/%2e%2e/etc/passwd", "//healthz", "/healthz/", "/HEALTHZ", "/healthz%00")
        ),
        *((f"{method} /report.json HTTP/1.1\r\n\r\n", 405) for method in ("POST", "PUT", "DELETE", "get", "TRACE")),
        *((RAW.format(path), 400) for path in ("", "healthz", "*", "/a b", "/\x01", "/\x1b[31m", "/\xe9", "file:///a")),
        ("GET /healthz\r\n\r\n", 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS
        ("\r\n\r\n", 400),
        (" " * 8192, 400),
        (f"GET /{'a' * 9000} HTTP/1.1\r\n\r\n", 431),
        (f"GET /healthz HTTP/1.1\r\nCookie: {'a' * 9000}\r\n\r\n", 431),
        (f"GET /healthz HTTP/1.1\r\n{'A: b' * 3000}", 431),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_request_is_taken_for_what_it_is(server: Server, request_line: str, status: int) -> None:
    bad_reports.put_good(server.report)
    answer = said(server, request_line.encode("latin-1"))
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    if status != 200:
        assert len(answer) < 500, "nothing of a request comes back"
        assert b"\r\nAllow: GET, HEAD\r\n" in answer


def test_a_connection_is_good_for_one_request(server: Server) -> None:
    """What is said after the first is not taken for a request, whatever it pretends to be."""
    bad_reports.put_good(server.report)
    smuggled = "GET /healthz HTTP/1.1\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n" + RAW.format(
        "/metrics"
    )
    answer = said(server, smuggled.encode())
    assert answer.count(b"HTTP/1.1 200 OK") == 1
    assert answer.endswith(b"\r\n\r\nREADY: 1 passed\n")


def test_who_sends_much_gets_the_answer_nevertheless(server: Server) -> None:
    """RFC 9112 9.6: to close with something unread resets the connection, and the answer is lost."""
    connection = http.client.HTTPConnection(*server.address, timeout=30)
    connection.request("POST", "/report.json", body=b"x" * 500_000)
    assert connection.getresponse().status == 405
    connection.close()


def test_a_bug_is_not_a_ready_host(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(path: str) -> serve.Answer:
        raise ZeroDivisionError("of all things")

    assert serve._answered(RAW.format("/healthz").encode(), broken).startswith(b"HTTP/1.1 500 ")
    assert "of all things" in capsys.readouterr().err


# -- who is slow ------------------------------------------------------------------------------------


def test_who_says_nothing_keeps_nobody_from_asking(server: Server) -> None:
    """Slowloris: the oldest is cut off, long before its time is over."""
    bad_reports.put_good(server.report)
    started = time.monotonic()
    idle = [socket.create_connection(server.address, timeout=30) for _ in range(serve.CONNECTIONS * 2)]
    for connection in idle[1::2]:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nX-a: ")
    assert asked(server, "/healthz").status == 200
    assert idle[0].recv(1) == b""
    assert time.monotonic() - started < serve.READ_S
    for connection in idle:
        connection.close()
    assert asked(server, "/healthz").status == 200


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection, and not much time."""
    for name in ("READ_S", "WRITE_S", "REST_S"):
        monkeypatch.setattr(serve, name, 0.2)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def pouring(theirs: socket.socket, what: bytes, pause: float) -> threading.Thread:
    """A client that says the same again and again until nobody listens."""

    def pour() -> None:
        try:
            while True:
                theirs.sendall(what)
                time.sleep(pause)
        except OSError:
            return

    thread = threading.Thread(target=pour)
    thread.start()
    return thread


@pytest.mark.parametrize("start", ["", "GET /healthz HTTP/1.1\r\n", RAW.format("/healthz")], ids=["n", "head", "rest"])
def test_who_goes_on_and_on_is_cut_off(pair: tuple[socket.socket, socket.socket], start: str) -> None:
    """A limit for each read would never be reached: the whole has one."""
    ours, theirs = pair
    theirs.sendall(start.encode())
    client = pouring(theirs, b"x", 0.01)
    serve._talk(ours, lambda path: serve.Answer(HTTPStatus.OK, "text/plain", "well\n"))
    ours.close()
    client.join()
    assert theirs.recv(65536).endswith(b"well\n") == start.endswith("\r\n\r\n")


def test_who_does_not_read_is_cut_off(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(RAW.format("/").encode())
    serve._talk(ours, lambda path: serve.Answer(HTTPStatus.OK, "text/plain", "x" * 10**7))
    ours.close()
    assert len(b"".join(iter(lambda: theirs.recv(65536), b""))) < 10**7
