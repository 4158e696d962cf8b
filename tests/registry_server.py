"""Certificates of a test's own authority, a real registry that shows them, and servers that are none."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

START_S = 20.0
DAY = 86400
Talk = Callable[[socket.socket], None]
_EXTENSIONS = {
    "ca": "basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign,cRLSign",
    "leaf": "basicConstraints=CA:FALSE",
}


class Pair(NamedTuple):
    """A certificate and its key, as files."""

    certificate: Path
    key: Path

    @property
    def pem(self) -> str:
        return self.certificate.read_text()


def openssl(*words: str | Path, cwd: Path) -> str:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    done = subprocess.run(["openssl", *map(str, words)], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fingerprint(pair: Pair) -> str:
    """As a person reads it off, to put it into a profile."""
    said = openssl("x509", "-noout", "-fingerprint", "-sha256", "-in", pair.certificate, cwd=pair.key.parent)
    return said.strip().partition("=")[2]


class Authority:
    """A certificate authority in a directory."""

    def __init__(self, folder: Path, name: str = "Site CA", days: int = 3650, above: Authority | None = None) -> None:
        self.folder = folder / name.replace(" ", "-")
        self.folder.mkdir(parents=True)
        for file, text in {"index": "", "serial": "01\n", "index.attr": "unique_subject=no\n"}.items():
            (self.folder / file).write_text(text)
        config = (
            "[ca]\ndefault_ca=d\n[d]\ndatabase=index\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\n"
        )
        (self.folder / "cnf").write_text(f"{config}[p]\ncommonName=optional\n[req]\ndistinguished_name=n\n[n]\n")
        self.pair = above.issue(name, "", days, kind="ca") if above else self._self_signed(name, "", days, "ca")

    def issue(self, name: str, names: str, days: float = 365, begins: float = -1, kind: str = "leaf") -> Pair:
        """A certificate by this authority; names are such as `DNS:localhost,IP:127.0.0.1`."""
        pair = self._request(name, names, kind)
        dates = (_date(begins), _date(days))
        words = ("-cert", self.pair.certificate, "-keyfile", self.pair.key, "-extfile", f"{pair.key.stem}.ext")
        self._ca(pair, *words, dates=dates)
        return pair

    def self_signed(self, name: str, names: str, days: float = 365) -> Pair:
        return self._self_signed(name, names, days, "leaf")

    def _self_signed(self, name: str, names: str, days: float, kind: str) -> Pair:
        pair = self._request(name, names, kind)
        words = ("-selfsign", "-keyfile", pair.key, "-extfile", f"{pair.key.stem}.ext")
        self._ca(pair, *words, dates=(_date(-1), _date(days)))
        return pair

    def _request(self, name: str, names: str, kind: str) -> Pair:
        stem = f"{len(list(self.folder.glob('*.key')))}-{name.replace(' ', '-')}"
        subject = f"/CN={name}"
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        files = ("-keyout", f"{stem}.key", "-out", f"{stem}.csr", "-subj", subject)
        openssl("req", *curve, *files, "-config", "cnf", cwd=self.folder)
        text = _EXTENSIONS[kind] + (f"\nsubjectAltName={names}" if names else "")
        (self.folder / f"{stem}.ext").write_text(f"{text}\n")
        return Pair(self.folder / f"{stem}.crt", self.folder / f"{stem}.key")

    def _ca(self, pair: Pair, *words: str | Path, dates: tuple[str, str]) -> None:
        stem = pair.key.stem
        more = ("-startdate", dates[0], "-enddate", dates[1], "-in", f"{stem}.csr", "-out", f"{stem}.crt", "-notext")
        openssl("ca", "-batch", "-config", "cnf", *words, *more, cwd=self.folder)


def _date(days: float) -> str:
    return time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + days * DAY))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@contextlib.contextmanager
def registry(folder: Path, pair: Pair, clients: Path | None = None, login: bool = False) -> Iterator[int]:
    """Debian's docker-registry with this certificate, on loopback: its port."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed")
    port = free_port()
    tls = f"{{certificate: {pair.certificate}, key: {pair.key}{f', clientcas: [{clients}]' if clients else ''}}}"
    text = "version: 0.1\nlog: {accesslog: {disabled: true}, level: error}\n"
    text += f"storage: {{filesystem: {{rootdirectory: {folder}/images}}}}\n"
    text += f"http: {{addr: '127.0.0.1:{port}', tls: {tls}}}\n"
    if login:
        text += f"auth: {{htpasswd: {{realm: site, path: {folder}/htpasswd}}}}\n"
    config = folder / "registry.yml"
    config.write_text(text)
    with (folder / "registry.log").open("wb") as log:
        server = subprocess.Popen([program, "serve", config], stdout=log, stderr=log)
    try:
        _wait(port, server, folder / "registry.log")
        yield port
    finally:
        server.kill()
        server.wait()


def _wait(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < end, "the registry does not listen"
        time.sleep(0.05)


@contextlib.contextmanager
def serving(talk: Talk, pair: Pair | None = None) -> Iterator[int]:
    """A server that talks to each connection as it is told, by TLS where it is given a certificate: its port."""
    context = None
    if pair is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.key)
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.1)

        def serve() -> None:
            while not ended.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = listening.accept()
                    threading.Thread(target=_one, args=(connection, context, talk), daemon=True).start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            ended.set()
            thread.join()


def _one(connection: socket.socket, context: ssl.SSLContext | None, talk: Talk) -> None:
    connection.settimeout(30)
    with contextlib.suppress(OSError), connection:
        if context is None:
            talk(connection)
        else:
            with context.wrap_socket(connection, server_side=True) as secure:
                talk(secure)


def says(head: str, body: bytes = b"") -> Talk:
    """One HTTP answer, whatever is asked for."""

    def talk(connection: socket.socket) -> None:
        connection.recv(4096)
        lines = f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        connection.sendall(lines.encode() + body)

    return talk


def drips(head: bytes = b"HTTP/1.1 200 OK\r\n") -> Talk:
    """A byte now and then, for ever: slow loris."""

    def talk(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(head)
        while True:
            connection.sendall(b"X")
            time.sleep(0.1)

    return talk


def floods(connection: socket.socket) -> None:
    """An answer without end."""
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    while True:
        connection.sendall(b"{" * 65536)


def garbage(connection: socket.socket) -> None:
    connection.recv(4096)
    connection.sendall(os.urandom(512))


def closes(connection: socket.socket) -> None:
    return


def silent(connection: socket.socket) -> None:
    """Takes what is said, and never answers."""
    while connection.recv(4096):
        pass


def tunnels(seen: list[str]) -> Talk:
    """A proxy that takes CONNECT to any name, and goes to loopback: what it was asked for is kept."""

    def talk(connection: socket.socket) -> None:
        head = connection.recv(4096).decode()
        seen.append(head.partition("\r\n")[0])
        if not head.startswith("CONNECT "):
            connection.sendall(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
            return
        port = int(head.split()[1].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as there:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_copy, args=(there, connection), daemon=True)
            back.start()
            _copy(connection, there)
            back.join()

    return talk


def _copy(source: socket.socket, to: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            to.sendall(data)
        to.shutdown(socket.SHUT_WR)
