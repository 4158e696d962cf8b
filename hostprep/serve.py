"""The published report over HTTP, for hosts without node_exporter: whoever asks may read, and nothing else.

Every answer is made of the report as it is then: nothing is kept that could say ready for too long. A connection is
good for one request, of which only the first line counts, and who talks slowly is cut off, the sooner the more come.
http.server is not used for that: its limits are for one read, so that slow clients keep their threads for ever.
"""

from __future__ import annotations

import gc
import ipaddress
import json
import os
import re
import select
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import NamedTuple

from hostprep import formats, gate
from hostprep.errors import OutputFailed, ProfileError, ReportUnusable, UsageError
from hostprep.report import READY

LISTEN = "127.0.0.1:9617"
HEAD_LIMIT = 8192  # bytes of a request; browsers send about one thousand
CONNECTIONS = 32  # at once; the oldest ends when there are more
READ_S, WRITE_S, REST_S = 5.0, 10.0, 1.0  # for a whole request, a whole answer, and what else the client says
IDLE_S = 60.0  # where systemd listens, it starts us again
_FIRST_FD = 3  # SD_LISTEN_FDS_START

_TEXT = "text/plain; charset=utf-8"
_PAGES = {  # path: the format that answers it, and its media type
    "/": ("html", "text/html; charset=utf-8"),
    "/healthz": ("npd", _TEXT),
    "/metrics": ("prometheus", "text/plain; version=0.0.4; charset=utf-8"),
    "/report.json": ("json", "application/json"),
}
# RFC 9112 3: a method, and a path or all of a URL; the query says nothing to us.
_REQUEST = re.compile(rb"([!-~]+) (?:https?://[^/?# ]*)?(/[!-~]*) HTTP/1\.[0-9]\r\n")


class Answer(NamedTuple):
    status: HTTPStatus
    media_type: str
    body: str


def serve(listen: str | None, wanted: str | None) -> int:
    """Answer for ever; where systemd listens, until nobody asks any more.

    `listen` is an address and port, `wanted` the profile that the report has to be of.
    """
    gc.enable()  # the command line is started without: nothing else there lives for long
    idle: float | None = IDLE_S
    sockets = passed()
    if sockets and listen is not None:
        raise UsageError("--listen: systemd listens already", "Say ListenStream= in the socket unit instead.")
    if not sockets:
        sockets, idle = [listening(LISTEN if listen is None else listen)], None
    run(sockets, lambda path: answer(path, wanted), idle)
    return 0


# -- what is answered -------------------------------------------------------------------------------


def answer(path: str, wanted: str | None) -> Answer:
    """The report in the format of a path; 503 where the host is not ready, or not known to be.

    /metrics is always 200: Prometheus reads no other answer, and must read that the host is not ready.
    /report.json is 200 whatever the verdict: that is in it.
    """
    if path not in _PAGES:
        return Answer(HTTPStatus.NOT_FOUND, _TEXT, f"There are {', '.join(_PAGES)}.\n")
    name, media_type = _PAGES[path]
    try:
        report = gate.relied_on(wanted)
    except (ReportUnusable, ProfileError) as e:
        none = e if isinstance(e, ReportUnusable) else ReportUnusable(str(e), e.hint, reason="broken-profile")
        status = HTTPStatus.OK if path == "/metrics" else HTTPStatus.SERVICE_UNAVAILABLE
        return Answer(status, media_type, _without_report(name, none))
    bad = path == "/healthz" and report.verdict != READY
    return Answer(HTTPStatus.SERVICE_UNAVAILABLE if bad else HTTPStatus.OK, media_type, formats.of(name)(report))


def _without_report(name: str, e: ReportUnusable) -> str:
    """What a format says where there is no report that can be relied on."""
    if say := formats.unusable(name):
        return say(e)
    if name == "json":
        return json.dumps({"ready": False, "reason": e.reason, "error": str(e), "hint": e.hint}, indent=1) + "\n"
    return f"not ready: {''.join(c if c.isprintable() else ' ' for c in str(e))}\n"


def _answered(head: bytes, respond: Callable[[str], Answer]) -> bytes:
    """The whole answer to the head of a request."""
    request = _REQUEST.match(head)
    if len(head) > HEAD_LIMIT:
        said = Answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _TEXT, "That is too long.\n")
    elif request is None:
        said = Answer(HTTPStatus.BAD_REQUEST, _TEXT, "This is no request of HTTP/1.\n")
    elif request[1] not in (b"GET", b"HEAD"):
        said = Answer(HTTPStatus.METHOD_NOT_ALLOWED, _TEXT, "All that can be done here is to read: GET, HEAD.\n")
    else:
        try:
            said = respond(request[2].partition(b"?")[0].decode("ascii"))
        except Exception:  # noqa: BLE001  # whatever it is, this host is not known to be ready, and others may ask
            traceback.print_exc()
            said = Answer(HTTPStatus.INTERNAL_SERVER_ERROR, _TEXT, "This is a bug in hostprep; see its log.\n")
    body = said.body.encode("utf-8", "replace")
    lines = [
        f"HTTP/1.1 {said.status.value} {said.status.phrase}",
        time.strftime("Date: %a, %d %b %Y %H:%M:%S GMT", time.gmtime()),
        f"Content-Type: {said.media_type}",
        f"Content-Length: {len(body)}",
        "Allow: GET, HEAD",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    ]
    without_body = request is not None and request[1] == b"HEAD"
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode() + (b"" if without_body else body)


# -- connections ------------------------------------------------------------------------------------


def run(listeners: Sequence[socket.socket], respond: Callable[[str], Answer], idle: float | None) -> None:
    """Answer whoever connects; return when nobody has for `idle` seconds, if given."""
    talking: list[socket.socket] = []  # the oldest first
    changed = threading.Condition()
    one_at_a_time = threading.Lock()  # an answer takes a processor, and what many ask for at once much memory

    def respond_in_turn(path: str) -> Answer:
        with one_at_a_time:
            return respond(path)

    def end(connection: socket.socket) -> None:
        with changed:
            talking.remove(connection)
            connection.close()
            changed.notify()

    def talk(connection: socket.socket) -> None:
        try:
            _talk(connection, respond_in_turn)
        finally:
            end(connection)

    while True:
        ready, _, _ = select.select(listeners, [], [], idle)
        if not ready and not talking:
            return
        for listener in ready:
            with changed:
                if len(talking) >= CONNECTIONS:
                    _cut_off(talking[0])
                    changed.wait_for(lambda: len(talking) < CONNECTIONS)
            try:
                connection, _ = listener.accept()
            except OSError:  # it is gone again; or the system has no room for another, and must not be hurried
                time.sleep(0.05)
                continue
            with changed:
                talking.append(connection)
            try:
                threading.Thread(target=talk, args=(connection,), daemon=True).start()
            except RuntimeError:  # no more threads
                end(connection)


def _talk(connection: socket.socket, respond: Callable[[str], Answer]) -> None:
    """Read one request and answer it."""
    try:
        head = _head(connection)
        if not head:
            return
        connection.settimeout(WRITE_S)  # socket.sendall(): for all of it
        connection.sendall(_answered(head, respond))
        connection.shutdown(socket.SHUT_WR)
        # What is not read when a connection is closed takes the answer with it (RFC 9112 9.6).
        deadline = time.monotonic() + REST_S
        while _receive(connection, deadline):
            pass
    except OSError:  # gone, or too slow
        return


def _head(connection: socket.socket) -> bytes:
    """A request to the empty line, or as much of it as there is, and a little more than may be."""
    deadline = time.monotonic() + READ_S
    said = b""
    while b"\r\n\r\n" not in said and len(said) <= HEAD_LIMIT and (chunk := _receive(connection, deadline)):
        said += chunk
    return said


def _receive(connection: socket.socket, deadline: float) -> bytes:
    """What comes next; nothing when the client has ended. Raises TimeoutError."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)
    return connection.recv(4096)


def _cut_off(connection: socket.socket) -> None:
    """End a connection under the thread that has it."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has ended by itself


# -- where to listen --------------------------------------------------------------------------------


def passed() -> list[socket.socket]:
    """The sockets that systemd hands over, as sd_listen_fds(3) has it; none where it did not start us."""
    count, pid = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if not count or pid != str(os.getpid()):
        return []
    if not re.fullmatch(r"[1-9][0-9]{0,2}", count):
        raise UsageError(f"LISTEN_FDS={count!r}: is no number of sockets", "systemd sets it; see sd_listen_fds(3).")
    return [_handed_over(fd) for fd in range(_FIRST_FD, _FIRST_FD + int(count))]


def _handed_over(fd: int) -> socket.socket:
    hint = "The socket unit has to say ListenStream= and Accept=no."
    try:
        handed = socket.socket(fileno=fd)
    except OSError as e:
        raise UsageError(f"descriptor {fd}, as systemd handed it over: {e.strerror}", hint) from e
    if handed.type != socket.SOCK_STREAM or not handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        handed.close()
        raise UsageError(f"descriptor {fd}, as systemd handed it over: is no listening stream socket", hint)
    handed.set_inheritable(False)
    handed.setblocking(False)
    return handed


def listening(where: str) -> socket.socket:
    """A listening socket at ADDRESS:PORT, and a word about who can read there."""
    address, port = _address(where)
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        made = socket.create_server((str(address), port), family=family, backlog=CONNECTIONS)
    except OSError as e:
        raise OutputFailed(f"{where}: cannot listen there: {e.strerror}") from e
    made.setblocking(False)
    shown = f"[{address}]" if address.version == 6 else address
    said = f"listening on http://{shown}:{made.getsockname()[1]}/\n"
    if not address.is_loopback:
        said += "note: whoever reaches that address can read the report of this host\n"
    sys.stderr.write(said)
    sys.stderr.flush()
    return made


def _address(where: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """An address is a number: a name may mean another one tomorrow. Raises UsageError."""
    hint = f"Give ADDRESS:PORT, such as {LISTEN} or [::1]:9617; 0.0.0.0 and [::] are all addresses of this host."
    found = re.fullmatch(r"(?:\[([^]]+)\]|([^:\[\]]+)):([0-9]{1,5})", where)
    if found is None or int(found[3]) > 65535:
        raise UsageError(f"--listen {where!r}: is no address and port", hint)
    name = "127.0.0.1" if found[2] == "localhost" else found[1] or found[2]
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        raise UsageError(f"--listen {where!r}: is no address and port", hint) from None
    if (address.version == 6) != bool(found[1]):
        raise UsageError(f"--listen {where!r}: is no address and port", hint)
    return address, int(found[3])
