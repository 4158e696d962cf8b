"""QEMU's two conversations, one JSON message per line: the monitor (QMP) and the agent in the guest."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

Message = dict[str, Any]
CHUNK = 1 << 20


class Ended(Exception):
    """QEMU is no more."""


class Wire:
    """Messages over a socket."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self.buffer = b""

    def send(self, message: Message, start: bytes = b"") -> None:
        self.end.settimeout(60)
        try:
            self.end.sendall(start + json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise Ended from error

    def line(self, timeout: float) -> bytes:
        """The next line; TimeoutError when there is none in that time."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self.buffer:
            self.end.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                got = self.end.recv(CHUNK)
            except ConnectionError as error:
                raise Ended from error
            if not got:
                raise Ended
            self.buffer += got
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line


class Monitor:
    """The QEMU Machine Protocol: https://www.qemu.org/docs/master/interop/qmp-spec.html"""

    def __init__(self, end: socket.socket) -> None:
        self.wire = Wire(end)
        self.events: list[Message] = []
        self.wire.line(60)  # the greeting
        self.command("qmp_capabilities")

    def command(self, execute: str, **arguments: object) -> Any:
        self.wire.send({"execute": execute, "arguments": arguments})
        while True:
            answer = json.loads(self.wire.line(60))
            if "error" in answer:
                raise RuntimeError(f"{execute}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
            self.events.append(answer)

    def wait(self, event: str, timeout: float) -> Message:
        """The data of the next such event; those that came before `forget` do not count."""
        deadline = time.monotonic() + timeout
        while True:
            while self.events:
                found = self.events.pop(0)
                if found.get("event") == event:
                    return dict(found.get("data", {}))
            self.events.append(json.loads(self.wire.line(deadline - time.monotonic())))

    def forget(self) -> None:
        """Let go of the events so far, those not read yet too: they come before this answer."""
        self.command("query-status")
        self.events.clear()


class Agent:
    """The QEMU guest agent: https://www.qemu.org/docs/master/interop/qemu-ga-ref.html"""

    def __init__(self, end: socket.socket) -> None:
        self.wire = Wire(end)
        self.asked = 0

    def hello(self, timeout: float) -> None:
        """Wait until the agent answers; what was sent to an earlier one is lost, and its answers are dropped."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self.asked += 1
            # 0xff ends whatever the agent had half read.
            self.wire.send({"execute": "guest-sync-delimited", "arguments": {"id": self.asked}}, b"\xff")
            if self._answered(self.asked):
                return
        raise TimeoutError("the agent in the guest does not answer")

    def _answered(self, number: int) -> bool:
        """Whether this number comes back within a second."""
        until = time.monotonic() + 1
        while True:
            try:
                line = self.wire.line(until - time.monotonic())
            except TimeoutError:
                return False
            try:
                answer = json.loads(line[line.rfind(b"\xff") + 1 :])
            except ValueError:
                continue
            if answer.get("return") == number:
                return True

    def command(self, execute: str, **arguments: object) -> Any:
        self.wire.send({"execute": execute, "arguments": arguments})
        answer = json.loads(self.wire.line(60))
        if "error" in answer:
            raise RuntimeError(f"{execute}: {answer['error'].get('desc')}")
        return answer.get("return")

    def tell(self, path: str, *argv: str) -> None:
        """Start a program, without waiting for anything."""
        self.wire.send({"execute": "guest-exec", "arguments": {"path": path, "arg": argv}})

    def run(self, command: str, stdin: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """Run a shell command as root, to its end."""
        arguments: Message = {"path": "/bin/sh", "arg": ["-c", command], "capture-output": True, "env": ENVIRONMENT}
        if stdin:
            arguments["input-data"] = base64.b64encode(stdin.encode()).decode()
        pid = self.command("guest-exec", **arguments)["pid"]
        for _ in _growing(timeout):
            done = self.command("guest-exec-status", pid=pid)
            if done["exited"]:
                status = done.get("exitcode", -done.get("signal", 0))
                return subprocess.CompletedProcess(command, status, _text(done, "out-data"), _text(done, "err-data"))
        raise TimeoutError(f"still running in the guest after {timeout:.0f} s: {command}")

    def write(self, path: str, content: bytes) -> None:
        def put(handle: int) -> None:
            for start in range(0, len(content), CHUNK):
                piece = base64.b64encode(content[start : start + CHUNK]).decode()
                self.command("guest-file-write", **{"handle": handle, "buf-b64": piece})

        self._with_file(path, "wb", put)

    def read(self, path: str) -> bytes:
        content = b""

        def get(handle: int) -> None:
            nonlocal content
            end = False
            while not end:
                piece = self.command("guest-file-read", handle=handle, count=CHUNK)
                content += base64.b64decode(piece["buf-b64"])
                end = piece["eof"]

        self._with_file(path, "rb", get)
        return content

    def _with_file(self, path: str, mode: str, use: Callable[[int], None]) -> None:
        handle = self.command("guest-file-open", path=path, mode=mode)
        try:
            use(handle)
        finally:
            self.command("guest-file-close", handle=handle)


ENVIRONMENT = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"]


def _text(done: Message, stream: str) -> str:
    return base64.b64decode(done.get(stream, "")).decode(errors="replace")


def _growing(timeout: float) -> Iterator[None]:
    """When to look again: the agent only answers, it does not call."""
    deadline, pause = time.monotonic() + timeout, 0.01
    while time.monotonic() < deadline:
        yield
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)
