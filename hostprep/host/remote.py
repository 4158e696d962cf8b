"""Asking a server: TCP, TLS and one HTTP GET, under one deadline, with what went wrong at which step.

TLS is verified as Go does it, in which container engines are written: by the names in the certificate and never by its
CN; any certificate that is trusted may end a chain, be it a CA or not; at least TLS 1.2. http.client has timeouts for
each read only, so a server that says a byte now and then would hold it for ever: reading has its own deadline here.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from http.client import HTTPException, HTTPResponse
from typing import Any, NamedTuple, cast
from urllib.parse import unquote, urlsplit

from hostprep.errors import HostError
from hostprep.host import process, reach

RESOLVE_S = 5.0
_HEADERS = 65536  # bytes before the body; http.client takes 100 headers at most
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\r?\n[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
# connect(2): these say something of the network or the server, others of this process
_DOWN = (
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ETIMEDOUT,
    errno.EHOSTUNREACH,
    errno.EHOSTDOWN,
    errno.ENETUNREACH,
    errno.ENETDOWN,
    errno.EADDRNOTAVAIL,
    errno.EPIPE,
    errno.ECONNABORTED,
    errno.EPROTO,
)
_CERTIFICATE_S = 3.0  # to look once more at a certificate that was refused
# openssl/x509_vfy.h: X509_V_ERR_*
_REFUSED = {
    9: "is not valid yet",
    10: "has expired",
    18: "is self-signed, and not trusted",
    19: "is signed by an authority that is not trusted",
    20: "is signed by an authority that is not trusted",
    21: "is signed by an authority that is not trusted",
    62: "is not for {name}",
    64: "is not for {name}",
}
_ALERTS = {
    "WRONG_VERSION_NUMBER": "speaks no TLS (plain HTTP?)",
    "HTTP_REQUEST": "speaks no TLS (plain HTTP?)",
    "UNSUPPORTED_PROTOCOL": "speaks only a TLS older than 1.2",
    "TLSV1_ALERT_PROTOCOL_VERSION": "speaks only a TLS older than 1.2",
}
_CLIENT = "asks for a client certificate"
_CLIENT_ALERTS = re.compile(
    r"TLSV13_ALERT_CERTIFICATE_REQUIRED|TLSV1_ALERT_UNKNOWN_CA"
    r"|SSLV3_ALERT_(BAD_CERTIFICATE|CERTIFICATE_(UNKNOWN|EXPIRED|REVOKED)|UNSUPPORTED_CERTIFICATE)"
)


class Certificate(NamedTuple):
    """As far as a person wants to know it; times are seconds since 1970."""

    subject: str
    issuer: str
    names: tuple[str, ...]  # DNS names and addresses that it is for
    begins: int
    ends: int
    sha256: str  # its fingerprint, in 64 hexadecimal digits


class Trust(NamedTuple):
    """Whose certificates are believed, and what is shown to a server that asks who we are."""

    name: str  # of what trusts so
    roots: str = ""  # certificates in PEM, and anything between them
    pairs: tuple[tuple[str, str], ...] = ()  # paths of client certificates and their keys


class Got(NamedTuple):
    """What a server said; or, where `fault` names a step (name, connect, proxy, tls, certificate, http), why not."""

    fault: str
    why: str
    status: int = 0
    reason: str = ""
    headers: tuple[tuple[str, str], ...] = ()  # with lower-case names
    body: str = ""  # its bytes as Latin-1
    more: bool = False  # there was more of it than was to be read
    chain: tuple[Certificate, ...] = ()  # the server's own certificate first

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key == name), "")


class _Fault(Exception):
    """A step that failed on the other side."""

    def __init__(self, step: str, why: str) -> None:
        super().__init__(why)
        self.step = step


def from_json(data: Sequence[Any]) -> Got:
    """What a recording has made lists of."""
    fault, why, status, reason, headers, body, more, chain = data
    certificates = (Certificate(s, i, tuple(names), b, e, f) for s, i, names, b, e, f in chain)
    return Got(fault, why, status, reason, tuple((k, v) for k, v in headers), body, more, tuple(certificates))


def get(url: str, trust: Trust | None, proxy: str, seconds: float, limit: int) -> Got:
    """GET a URL without following redirects; of its body at most `limit` bytes. Of https, None: nothing is verified.

    A certificate that is refused is looked at once more, unverified, so that what is wrong with it can be said.
    """
    end = time.monotonic() + seconds
    got = _get(url, trust, proxy, end, limit)
    if got.fault != "certificate":
        return got
    end = time.monotonic() + _CERTIFICATE_S
    return got._replace(chain=_get(url, None, proxy, end, 0).chain)


def _get(url: str, trust: Trust | None, proxy: str, end: float, limit: int) -> Got:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    path = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
    chain: tuple[Certificate, ...] = ()
    connection: socket.socket | None = None
    try:
        if proxy:
            through = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
            connection = _connected(through.hostname or "", through.port or 80, end, "the proxy ")
            if parts.scheme == "https":
                _tunnel(connection, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", through, end)
            else:
                path = url
        else:
            connection = _connected(host, port, end)
        if parts.scheme == "https":
            connection = secure = _secured(connection, host, trust, end)
            chain = _chain(secure, trust is not None)
        request = f"GET {path} HTTP/1.1\r\nHost: {parts.netloc.rpartition('@')[2]}\r\n"
        request += "User-Agent: hostprep\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        return _asked(connection, request, end, limit)._replace(chain=chain)
    except _Fault as e:
        shown = ", and does not take the one that it is shown" if trust is not None and trust.pairs else ""
        return Got(e.step, f"{e}{shown if str(e) == _CLIENT else ''}", chain=chain)
    finally:
        if connection is not None:
            connection.close()


# -- connecting -----------------------------------------------------------------------------------


def _connected(host: str, port: int, end: float, what: str = "") -> socket.socket:
    """Each address of the name is tried, as getaddrinfo(3) orders them; a child asks, since nothing bounds that."""
    step = "proxy" if what else "connect"
    last = f"{what}{host} has no address"
    addresses = _addresses(host, min(RESOLVE_S, _left(end)), what)
    for number, address in enumerate(addresses):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        seconds = max(_left(end) / (len(addresses) - number), 0.1)
        try:
            connection.settimeout(seconds)
            connection.connect((address, port))
        except OSError as e:
            connection.close()
            where = address if address == host else f"{host} ({address})"
            if isinstance(e, TimeoutError) and e.errno is None:
                last = f"{what}{where} port {port}: no answer within {seconds:.0f} s"
                continue
            if e.errno not in _DOWN:
                raise HostError(f"{where} port {port}: {e.strerror or e}", code=e.errno or 0) from e
            last = f"{what}{where} port {port}: {os.strerror(e.errno or 0).lower()}"
        else:
            return connection
    raise _Fault(step, last)


def _addresses(host: str, seconds: float, what: str) -> list[str]:
    if re.fullmatch(r"[0-9.]+", host) or ":" in host:
        return [host]

    def ask() -> bytes:
        try:
            found = reach.addresses_of(host)
        except HostError as e:
            return f"!{e}".encode()
        return " ".join(found.found).encode() if found.found else f"?{found.why}".encode()

    answer, _ = process.gather([(host, ask)], seconds)[host]
    if isinstance(answer, str):
        if answer.startswith("no answer within"):
            raise _nameless(what, host, f"no name server gives an answer within {seconds:.0f} s")
        raise HostError(f"{host}: {answer}")
    text = answer.decode()
    if text.startswith("!"):
        raise HostError(text[1:])
    if text.startswith("?"):
        raise _nameless(what, host, text[1:])
    return text.split()


def _nameless(what: str, host: str, why: str) -> _Fault:
    return _Fault("proxy", f"{what}{host}: {why}") if what else _Fault("name", why)


def _left(end: float) -> float:
    """Seconds until the deadline; a little is left always, since 0 would mean not to wait at all."""
    return max(end - time.monotonic(), 0.05)


def _tunnel(connection: socket.socket, to: str, proxy: Any, end: float) -> None:
    """RFC 9110, 9.3.6: CONNECT."""
    request = f"CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: hostprep\r\n"
    if proxy.username:
        import base64

        login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        request += f"Proxy-Authorization: Basic {base64.b64encode(login.encode()).decode()}\r\n"
    try:
        got = _asked(connection, f"{request}\r\n", end, 0, "CONNECT")
    except _Fault as e:
        raise _Fault("proxy", f"the proxy {proxy.hostname} {e}") from e
    if got.status != 200:
        raise _Fault("proxy", f"the proxy {proxy.hostname} answers {got.status} {got.reason}".rstrip())


# -- TLS ------------------------------------------------------------------------------------------


def _secured(connection: socket.socket, host: str, trust: Trust | None, end: float) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if trust is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.hostname_checks_common_name = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        _trust(context, trust)
    started = time.monotonic()
    try:
        connection.settimeout(_left(end))
        return context.wrap_socket(connection, server_hostname=host)
    except ssl.SSLCertVerificationError as e:
        why = _REFUSED.get(e.verify_code, f"is refused: {e.verify_message}")
        raise _Fault("certificate", why.format(name=host)) from e
    except TimeoutError as e:
        raise _Fault("tls", f"makes no TLS connection within {time.monotonic() - started:.0f} s") from e
    except (ssl.SSLEOFError, ConnectionError) as e:
        raise _Fault("tls", "closes the connection in place of TLS") from e
    except ssl.SSLError as e:
        raise _Fault("tls", _alert(e)) from e
    except OSError as e:
        if e.errno in (*_DOWN, None, 0):
            raise _Fault("tls", f"breaks the connection off: {e.strerror or e}") from e
        raise HostError(f"{host}: TLS: {e.strerror}", code=e.errno or 0) from e


def _alert(e: ssl.SSLError) -> str:
    reason = e.reason or ""
    if _CLIENT_ALERTS.fullmatch(reason):
        return _CLIENT
    said = reason.lower().replace("_", " ") or "no reason given"
    return _ALERTS.get(reason, f"makes no TLS connection: {said}")


def _trust(context: ssl.SSLContext, trust: Trust) -> None:
    """What is no certificate among the roots is passed over, as Go does; a client's that is unfit is an error."""
    for pem in dict.fromkeys(_PEM.findall(trust.roots)):
        try:
            context.load_verify_locations(cadata=pem)
        except (ssl.SSLError, ValueError):
            continue
    for certificate, key in trust.pairs:
        try:
            context.load_cert_chain(certificate, key, password="")  # "": never asks the terminal for one
        except ssl.SSLError as e:
            raise _Fault("tls", f"is not asked: {certificate} and {key} are no certificate and its key") from e
        except OSError as e:
            raise HostError(f"{key}: {'needs root' if e.errno == errno.EACCES else e.strerror}") from e


def _chain(connection: ssl.SSLSocket, verified: bool) -> tuple[Certificate, ...]:
    """The certificates; none where this Python does not tell.

    Only from 3.13 on SSLSocket has methods for that, which give bytes alone; but what they stand on is there from 3.10.
    """
    tell = getattr(getattr(connection, "_sslobj", None), f"get_{'verified' if verified else 'unverified'}_chain", None)
    try:
        return tuple(_certificate(each) for each in (tell() if tell else None) or ())
    except (ssl.SSLError, ValueError, KeyError, AttributeError, TypeError):
        return ()


def _certificate(each: Any) -> Certificate:
    info = each.get_info()
    der = ssl.PEM_cert_to_DER_cert(each.public_bytes())
    names = tuple(value for kind, value in info.get("subjectAltName", ()) if kind in ("DNS", "IP Address"))
    begins, ends = (int(ssl.cert_time_to_seconds(info[key])) for key in ("notBefore", "notAfter"))
    digest = hashlib.sha256(der).hexdigest()
    return Certificate(_named(info.get("subject")), _named(info.get("issuer")), names, begins, ends, digest)


def _named(parts: Any) -> str:
    """The CN of a name, or else all of it."""
    words = [(str(key), str(value)) for part in parts or () for key, value in part]
    common = [value for key, value in words if key == "commonName"]
    text = common[0] if common else ", ".join(f"{key}={value}" for key, value in words)
    return process.clean(text, 100)


# -- HTTP -----------------------------------------------------------------------------------------


class _Stream(io.RawIOBase):
    """What a socket says, up to a deadline and a number of bytes."""

    def __init__(self, connection: socket.socket, end: float, limit: int) -> None:
        self.connection, self.end, self.left = connection, end, limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(left)
        count = self.connection.recv_into(buffer, min(len(buffer), self.left)) if self.left > 0 else 0
        self.left -= count
        return count


class _Source:
    """As http.client wants a socket."""

    def __init__(self, stream: _Stream) -> None:
        self.stream = stream

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self.stream)


def _asked(connection: socket.socket, request: str, end: float, limit: int, method: str = "GET") -> Got:
    started = time.monotonic()
    stream = _Stream(connection, end, _HEADERS + limit + 1)
    answer = HTTPResponse(cast(socket.socket, _Source(stream)), method=method)
    try:
        connection.settimeout(_left(end))
        connection.sendall(request.encode("latin-1", errors="replace"))
        answer.begin()
        body = b"".join(_body(answer, limit + 1)) if limit else b""
    except TimeoutError as e:
        raise _Fault("http", f"does not finish an answer within {time.monotonic() - started:.0f} s") from e
    except ssl.SSLError as e:
        raise _Fault("tls", _alert(e)) from e
    except (HTTPException, ValueError, EOFError) as e:
        what = "closes the connection without an answer" if "RemoteDisconnected" in repr(e) else "answers no HTTP"
        raise _Fault("http", what) from e
    except OSError as e:
        raise _Fault("http", f"breaks the connection off: {e.strerror or e}") from e
    headers = tuple((name.lower(), process.clean(value, 500)) for name, value in answer.getheaders())
    text = body[:limit].decode("latin-1")
    return Got("", "", answer.status, process.clean(answer.reason, 60), headers, text, len(body) > limit > 0)


def _body(answer: HTTPResponse, limit: int) -> Iterator[bytes]:
    while limit > 0 and (part := answer.read1(limit)):
        limit -= len(part)
        yield part
