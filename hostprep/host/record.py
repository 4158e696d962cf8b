"""A host that keeps what it was asked and answered, and the host that plays it back elsewhere.

A recording is a tree of the files that were read, and in `.hostprep/*.jsonl` the answers that are no
files: commands, links, listings, what was not there and what could not be read. A question that was
never asked while recording has no answer: it is unknown, not absent. A plain tree without `.hostprep` is
taken as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hostprep.errors import HostError
from hostprep.host import Host, Space

ANSWERS = ".hostprep"
T = TypeVar("T")


class Recorder(Host):
    """This machine, with everything it answers kept in a directory."""

    def __init__(self, into: str) -> None:
        super().__init__()
        self.into = os.path.abspath(into)
        os.makedirs(os.path.join(self.into, ANSWERS), exist_ok=True)

    def read_bytes(self, path: str) -> bytes | None:
        data = self._ask("read", path, lambda: super(Recorder, self).read_bytes(path), keep=lambda d: d is None)
        if data is not None:
            copy = self.into + path
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            with open(copy, "wb") as f:
                f.write(data)
        return data

    def names(self, path: str) -> list[str]:
        return self._ask("list", path, lambda: super(Recorder, self).names(path))

    def link(self, path: str) -> str | None:
        return self._ask("link", path, lambda: super(Recorder, self).link(path))

    def state_kind(self, path: str) -> str:
        return self._ask("kind", path, lambda: super(Recorder, self).state_kind(path))

    def resolve(self, path: str) -> str:
        return self._ask("resolve", path, lambda: super(Recorder, self).resolve(path))

    def space(self, path: str) -> Space:
        return self._ask("space", path, lambda: super(Recorder, self).space(path))

    def machine(self) -> str:
        return self._ask("machine", "", super().machine)

    def clock_synchronised(self) -> bool:
        return self._ask("clock", "", super().clock_synchronised)

    def run(self, *argv: str, timeout: float = 10, stdin: bytes = b"") -> str:
        return self._ask(
            "run", json.dumps(argv), lambda: super(Recorder, self).run(*argv, timeout=timeout, stdin=stdin)
        )

    def _ask(self, kind: str, question: str, ask: Callable[[], T], keep: Callable[[T], bool] = lambda _: True) -> T:
        try:
            answer = ask()
        except HostError as e:
            self._note({"ask": kind, "of": question, "error": str(e)})
            raise
        if keep(answer):
            self._note({"ask": kind, "of": question, "answer": answer})
        return answer

    def _note(self, entry: dict[str, Any]) -> None:
        """Every check records from a process of its own: one file each, so that none waits for another."""
        with open(os.path.join(self.into, ANSWERS, f"{os.getpid()}.jsonl"), "a") as f:
            f.write(json.dumps(entry) + "\n")


class RecordedHost(Host):
    """A recorded host. It can be looked at and planned for, never changed."""

    def __init__(self, root: str) -> None:
        super().__init__(os.path.realpath(root), _no_commands)
        self.answers: dict[tuple[str, str], dict[str, Any]] = {}
        folder = os.path.join(self.root, ANSWERS)
        self.complete = os.path.isdir(folder)
        for name in sorted(os.listdir(folder)) if self.complete else []:
            with open(os.path.join(folder, name)) as f:
                for line in f:
                    entry = json.loads(line)
                    self.answers[entry["ask"], entry["of"]] = entry

    def read_bytes(self, path: str) -> bytes | None:
        if (data := self._recorded("read", path, super().read_bytes)) is None:
            self._must_be_known(path)
        return data

    def names(self, path: str) -> list[str]:
        return self._recorded("list", path, super().names)

    def link(self, path: str) -> str | None:
        return self._recorded("link", path, super().link)

    def state_kind(self, path: str) -> str:
        kind = self._recorded("kind", path, super().state_kind)
        if kind == "absent":
            self._must_be_known(path)
        return kind

    def resolve(self, path: str) -> str:
        return self._recorded("resolve", path, super().resolve)

    def space(self, path: str) -> Space:
        return Space(*self._recorded("space", path, super().space))

    def machine(self) -> str:
        return self._recorded("machine", "", lambda _: super(RecordedHost, self).machine())

    def clock_synchronised(self) -> bool:
        return self._recorded("clock", "", lambda _: super(RecordedHost, self).clock_synchronised())

    def run(self, *argv: str, timeout: float = 10, stdin: bytes = b"") -> str:
        return self._recorded("run", json.dumps(argv), lambda _: _no_commands(argv, timeout, stdin))

    def write(self, path: str, text: str, timeout: float = 60) -> None:
        raise HostError(f"{path}: a recorded host cannot be changed")

    def _recorded(self, kind: str, question: str, otherwise: Callable[[str], T]) -> T:
        entry = self.answers.get((kind, question))
        if entry is None:
            return otherwise(question)
        if "error" in entry:
            raise HostError(entry["error"])
        answer: T = entry["answer"]
        return answer

    def _must_be_known(self, path: str) -> None:
        """Absent is only what was seen to be absent."""
        if not self.complete or ("read", path) in self.answers or ("kind", path) in self.answers:
            return
        while path not in ("", "/"):
            path, _, name = path.rpartition("/")
            listing = self.answers.get(("list", path or "/"))
            if listing is not None and name not in listing.get("answer", ()):
                return
            if self.answers.get(("kind", path), {}).get("answer") == "absent":
                return
        raise HostError("was not recorded")


def _no_commands(argv: Sequence[str], timeout: float, stdin: bytes) -> str:
    raise HostError(f"{argv[0]}: was not recorded, and no command is run for a recorded host")
