"""A host that keeps what it was asked and answered, and the host that plays it back elsewhere.

A recording is a tree of the files that were read, and in `.hostprep/*.jsonl` the answers that are no
files: commands, links, listings, what was not there and what could not be read. A question that was
never asked while recording has no answer: it is unknown, not absent. A plain tree without `.hostprep` is
taken as it is.

Only its owner can read a recording. Passwords in the files and commands that checks read (GRUB's, those of network
mounts) are left out of it.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from hostprep.errors import CommandFailed, HostError
from hostprep.host import FileState, Host, Space
from hostprep.model import Value

if TYPE_CHECKING:
    from hostprep.host.contents import FileInfo
    from hostprep.host.network import Link
    from hostprep.host.nvml import Nvml
    from hostprep.host.processes import Namespace, Process, Workload
    from hostprep.host.reach import Resolved
    from hostprep.host.remote import Got, Trust

ANSWERS = ".hostprep"
_SECRETS = re.compile(
    rb"(grub\.pbkdf2\.)[\w.]+"  # grub-mkpasswd-pbkdf2
    rb"|(^\s*password\s+\S+\s+)\S+"  # GRUB's plain one
    rb"|(\\?\"(?:auth|identitytoken|registrytoken|password)\\?\"\s*:\s*\\?\")[^\"\\]+"  # logins to registries
    rb"|(://[^\s/:@\"']*:)[^\s/@\"']+(?=@)"  # of proxies
    rb"|((?:\b|_)(?:pass|passwd|password|secret|token)=)[^\s,\"'\\]+",  # mount.cifs(8), arguments of dracut
    re.M | re.I,
)
T = TypeVar("T")


class Recorder(Host):
    """This machine, with everything it answers kept in a new or empty directory. OSError when there is none."""

    def __init__(self, into: str) -> None:
        super().__init__()
        self.into = os.path.abspath(into)
        os.makedirs(self.into, mode=0o700, exist_ok=True)
        if os.stat(self.into).st_uid != os.geteuid():  # its owner could plant links that lead us out of it
            raise OSError(errno.EPERM, "belongs to somebody else", into)
        if os.listdir(self.into):  # two hosts, or two moments, in one recording would be neither
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), into)
        os.chmod(self.into, 0o700)
        os.mkdir(os.path.join(self.into, ANSWERS))

    def read_bytes(self, path: str) -> bytes | None:
        data = self._ask("read", path, lambda: super(Recorder, self).read_bytes(path), keep=lambda d: d is None)
        if data is not None:
            copy = self.into + path
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            own = f"{copy}.{os.getpid()}"  # another check may be recording the same file
            with open(own, "wb") as f:
                f.write(without_secrets(data))
            os.replace(own, copy)
        return data

    def start(self, path: str, size: int) -> bytes | None:
        def read() -> str | None:
            data = super(Recorder, self).start(path, size)
            return None if data is None else data.hex()

        found = self._ask("start", path, read)
        return None if found is None else bytes.fromhex(found)

    def size(self, path: str) -> int | None:
        return self._ask("size", path, lambda: super(Recorder, self).size(path))

    def names(self, path: str) -> list[str]:
        return self._ask("list", path, lambda: super(Recorder, self).names(path))

    def link(self, path: str) -> str | None:
        return self._ask("link", path, lambda: super(Recorder, self).link(path))

    def state_kind(self, path: str) -> str:
        return self._ask("kind", path, lambda: super(Recorder, self).state_kind(path))

    def resolve(self, path: str) -> str:
        return self._ask("resolve", path, lambda: super(Recorder, self).resolve(path))

    def untrusted(self, path: str) -> str:
        return self._ask("untrusted", path, lambda: super(Recorder, self).untrusted(path))

    def space(self, path: str) -> Space:
        return self._ask("space", path, lambda: super(Recorder, self).space(path))

    def info(self, path: str) -> FileInfo | None:
        return self._ask("info", path, lambda: super(Recorder, self).info(path))

    def digest(self, path: str, algorithm: str, seconds: float) -> str:
        return self._ask(algorithm, path, lambda: super(Recorder, self).digest(path, algorithm, seconds))

    def archive_fault(self, path: str, seconds: float) -> str:
        return self._ask("archive", path, lambda: super(Recorder, self).archive_fault(path, seconds))

    def machine(self) -> str:
        return self._ask("machine", "", super().machine)

    def clock_synchronised(self) -> bool:
        return self._ask("clock", "", super().clock_synchronised)

    def run(self, *argv: str, timeout: float = 10, stdin: bytes = b"") -> str:
        return self._ask(
            "run", json.dumps(argv), lambda: super(Recorder, self).run(*argv, timeout=timeout, stdin=stdin)
        )

    def run_for_file(self, *argv: str, timeout: float = 10) -> str:
        # what it runs is of this very process, and no question that could be asked again
        return self._ask("run", json.dumps(argv), lambda: Host.run_for_file(Host(), *argv, timeout=timeout))

    def links(self, names: Sequence[str], netns: str = "") -> dict[str, Link]:
        return self._ask("links", json.dumps([list(names), netns]), lambda: super(Recorder, self).links(names, netns))

    def addresses(self, netns: str = "") -> dict[str, tuple[str, ...]]:
        return self._ask("addresses", netns, lambda: super(Recorder, self).addresses(netns))

    def routes(self, netns: str = "") -> dict[str, tuple[str, ...]]:
        return self._ask("routes", netns, lambda: super(Recorder, self).routes(netns))

    def addresses_of(self, name: str) -> Resolved:
        return self._ask("addresses of", name, lambda: super(Recorder, self).addresses_of(name))

    def names_of(self, address: str) -> Resolved:
        return self._ask("names of", address, lambda: super(Recorder, self).names_of(address))

    def answers_arp(self, address: str, device: str, source: str, seconds: float = 3) -> bool:
        asked = json.dumps([address, device, source])
        return self._ask("arp", asked, lambda: super(Recorder, self).answers_arp(address, device, source, seconds))

    def http_get(self, url: str, trust: Trust | None, proxy: str, seconds: float, limit: int) -> Got:
        asked = json.dumps([url, trust.name if trust else ""])
        return self._ask("get", asked, lambda: super(Recorder, self).http_get(url, trust, proxy, seconds, limit))

    def open_files(self, prefixes: Sequence[str]) -> dict[str, tuple[Process, ...]]:
        return self._ask("open", json.dumps(list(prefixes)), lambda: super(Recorder, self).open_files(prefixes))

    def workloads(self) -> list[Workload]:
        return self._ask("workloads", "", super().workloads)

    def namespaces(self) -> list[Namespace]:
        return self._ask("namespaces", "", super().namespaces)

    def netdevs_elsewhere(self, namespaces: Sequence[Namespace]) -> dict[str, tuple[str, Namespace]]:
        where = json.dumps([namespace.path for namespace in namespaces])
        return self._ask("netdevs", where, lambda: super(Recorder, self).netdevs_elsewhere(namespaces))

    def uppers_elsewhere(self, namespaces: Sequence[Namespace]) -> dict[int, tuple[tuple[str, str, Namespace], ...]]:
        where = json.dumps([namespace.path for namespace in namespaces])
        return self._ask("uppers", where, lambda: super(Recorder, self).uppers_elsewhere(namespaces))

    def nvml(self, addresses: Sequence[str], timeout: float = 20) -> Nvml:
        from hostprep.host.nvml import from_json, to_json

        question = json.dumps(list(addresses))
        return from_json(self._ask("nvml", question, lambda: to_json(super(Recorder, self).nvml(addresses, timeout))))

    def _ask(self, kind: str, question: str, ask: Callable[[], T], keep: Callable[[T], bool] = lambda _: True) -> T:
        try:
            answer = ask()
        except HostError as e:
            more = {"status": e.status, "output": e.output} if isinstance(e, CommandFailed) else {}
            self._note({"ask": kind, "of": question, "error": str(e), "code": e.code, **more})
            raise
        if keep(answer):
            self._note({"ask": kind, "of": question, "answer": answer})
        return answer

    def _note(self, entry: dict[str, Any]) -> None:
        """Every check records from a process of its own: one file each, so that none waits for another."""
        with open(os.path.join(self.into, ANSWERS, f"{os.getpid()}.jsonl"), "a") as f:
            f.write(without_secrets(json.dumps(entry).encode()).decode() + "\n")


def without_secrets(data: bytes) -> bytes:
    """The same text, with what looks like a password taken out."""
    return _SECRETS.sub(lambda m: b"".join(part or b"" for part in m.groups()) + b"REMOVED", data)


class RecordedHost(Host):
    """A recorded host. It can be looked at and planned for, never changed."""

    def __init__(self, root: str) -> None:
        super().__init__(os.path.realpath(root), _no_commands)
        self.answers: dict[tuple[str, str], dict[str, Any]] = {}
        folder = f"{self.root}/{ANSWERS}"
        self.complete = os.path.isdir(folder)
        for name in sorted(os.listdir(folder)) if self.complete else []:
            try:
                with open(os.path.join(folder, name)) as f:
                    for line in f:
                        entry = json.loads(line)
                        self.answers[entry["ask"], entry["of"]] = entry
            except (OSError, ValueError, TypeError, KeyError) as e:
                raise HostError(f"{folder}/{name}: is no recording of hostprep, or a damaged one") from e

    def read_bytes(self, path: str) -> bytes | None:
        data = self._recorded("read", path, super().read_bytes)
        if data is None and not self._absent(path):
            raise _not_recorded(path)
        return data

    def start(self, path: str, size: int) -> bytes | None:
        if ("start", path) in self.answers:
            found = self._recorded("start", path, lambda _: "")
            return None if found is None else bytes.fromhex(found)
        if self.complete and not self._absent(path):
            raise _not_recorded(path)
        return super().start(path, size)

    def size(self, path: str) -> int | None:
        if self._asked("size", path) or self._absent(path):
            return self._recorded("size", path, super().size)
        raise _not_recorded(path)

    def names(self, path: str) -> list[str]:
        if self._asked("list", path) or self._absent(path):
            return self._recorded("list", path, super().names)
        raise _not_recorded(path)  # what was recorded below it need not be all that was there

    def link(self, path: str) -> str | None:
        if self._asked("link", path) or self.state_kind(path) != "link":
            return self._recorded("link", path, super().link)
        raise _not_recorded(path)

    def state_kind(self, path: str) -> str:
        kind = self._recorded("kind", path, super().state_kind)
        if kind == "absent" and not self._absent(path):
            raise _not_recorded(path)
        return kind

    def state(self, path: str) -> FileState:
        kind = self.state_kind(path)
        data = self.read_bytes(path) if kind == "file" else (self.link(path) or "").encode() if kind == "link" else b""
        return FileState(kind, data or b"")  # mode and owner were not recorded

    def resolve(self, path: str) -> str:
        return self._recorded("resolve", path, super().resolve)

    def untrusted(self, path: str) -> str:
        return self._recorded("untrusted", path, super().untrusted)

    def space(self, path: str) -> Space:
        return Space(*self._recorded("space", path, super().space))

    def info(self, path: str) -> FileInfo | None:
        from hostprep.host.contents import FileInfo

        if not self._asked("info", path) and not self._absent(path):
            raise _not_recorded(path)
        found = self._recorded("info", path, super().info)
        return None if found is None else FileInfo(*found)

    def digest(self, path: str, algorithm: str, seconds: float) -> str:
        return self._recorded(algorithm, path, lambda _: self._whole(path, algorithm, seconds))

    def archive_fault(self, path: str, seconds: float) -> str:
        if not self._asked("archive", path):
            raise _not_recorded(path)
        return self._recorded("archive", path, lambda _: super(RecordedHost, self).archive_fault(path, seconds))

    def _whole(self, path: str, algorithm: str, seconds: float) -> str:
        if self.complete:  # a copy that was recorded lacks what looked like a password
            raise _not_recorded(path)
        return super().digest(path, algorithm, seconds)

    def machine(self) -> str:
        return self._recorded("machine", "", lambda _: super(RecordedHost, self).machine())

    def clock_synchronised(self) -> bool:
        return self._recorded("clock", "", lambda _: super(RecordedHost, self).clock_synchronised())

    def run(self, *argv: str, timeout: float = 10, stdin: bytes = b"") -> str:
        return self._recorded("run", json.dumps(argv), lambda _: _no_commands(argv, timeout, stdin))

    def run_for_file(self, *argv: str, timeout: float = 10) -> str:
        return self.run(*argv, timeout=timeout)

    def links(self, names: Sequence[str], netns: str = "") -> dict[str, Link]:
        from hostprep.host.network import link_of

        question = json.dumps([list(names), netns])
        found = self._recorded("links", question, lambda _: super(RecordedHost, self).links(names, netns))
        return {name: link_of(link) for name, link in found.items()}

    def addresses(self, netns: str = "") -> dict[str, tuple[str, ...]]:
        found = self._recorded("addresses", netns, super().addresses)
        return {name: tuple(values) for name, values in found.items()}

    def routes(self, netns: str = "") -> dict[str, tuple[str, ...]]:
        found = self._recorded("routes", netns, super().routes)
        return {name: tuple(values) for name, values in found.items()}

    def addresses_of(self, name: str) -> Resolved:
        return _resolved(self._recorded("addresses of", name, super().addresses_of))

    def names_of(self, address: str) -> Resolved:
        return _resolved(self._recorded("names of", address, super().names_of))

    def answers_arp(self, address: str, device: str, source: str, seconds: float = 3) -> bool:
        asked = json.dumps([address, device, source])
        return self._recorded(
            "arp", asked, lambda _: super(RecordedHost, self).answers_arp(address, device, source, seconds)
        )

    def http_get(self, url: str, trust: Trust | None, proxy: str, seconds: float, limit: int) -> Got:
        from hostprep.host.remote import from_json

        asked = json.dumps([url, trust.name if trust else ""])
        live = super().http_get
        return from_json(self._recorded("get", asked, lambda _: live(url, trust, proxy, seconds, limit)))

    def open_files(self, prefixes: Sequence[str]) -> dict[str, tuple[Process, ...]]:
        from hostprep.host.processes import Process

        question = json.dumps(list(prefixes))
        found = self._recorded("open", question, lambda _: super(RecordedHost, self).open_files(prefixes))
        return {path: tuple(Process(*who) for who in users) for path, users in found.items()}

    def workloads(self) -> list[Workload]:
        from hostprep.host.processes import Workload

        found = self._recorded("workloads", "", lambda _: super(RecordedHost, self).workloads())
        return [Workload(*work) for work in found]

    def namespaces(self) -> list[Namespace]:
        from hostprep.host.processes import Namespace

        found = self._recorded("namespaces", "", lambda _: super(RecordedHost, self).namespaces())
        return [Namespace(*namespace) for namespace in found]

    def netdevs_elsewhere(self, namespaces: Sequence[Namespace]) -> dict[str, tuple[str, Namespace]]:
        from hostprep.host.processes import Namespace

        where = json.dumps([namespace.path for namespace in namespaces])
        found = self._recorded("netdevs", where, lambda _: super(RecordedHost, self).netdevs_elsewhere(namespaces))
        return {address: (name, Namespace(*namespace)) for address, (name, namespace) in found.items()}

    def uppers_elsewhere(self, namespaces: Sequence[Namespace]) -> dict[int, tuple[tuple[str, str, Namespace], ...]]:
        from hostprep.host.processes import Namespace

        where = json.dumps([namespace.path for namespace in namespaces])
        found = self._recorded("uppers", where, lambda _: super(RecordedHost, self).uppers_elsewhere(namespaces))
        return {  # JSON has made text of the numbers
            int(index): tuple((name, kind, Namespace(*namespace)) for name, kind, namespace in uppers)
            for index, uppers in found.items()
        }

    def nvml(self, addresses: Sequence[str], timeout: float = 20) -> Nvml:
        from hostprep.host.nvml import from_json, to_json

        question = json.dumps(list(addresses))
        return from_json(
            self._recorded("nvml", question, lambda _: to_json(super(RecordedHost, self).nvml(addresses, timeout)))
        )

    def write(self, path: str, text: str, timeout: float = 60) -> None:
        raise HostError(f"{path}: a recorded host cannot be changed")

    def edit_secret(
        self, path: str, edit: Callable[[bytes], bytes], who: tuple[str, int, int], what: str, timeout: float = 10
    ) -> None:
        raise HostError(f"{path}: a recorded host cannot be changed")

    def restore(self, path: str, state: FileState) -> None:
        raise HostError(f"{path}: a recorded host cannot be changed")

    def set_link(self, name: str, *, up: bool | None = None, mtu: int | None = None, netns: str = "") -> None:
        raise HostError(f"{name}: a recorded host cannot be changed")

    def _set_vf(self, name: str, index: int, wanted: dict[str, Any], netns: str) -> None:
        raise HostError(f"{name}: a recorded host cannot be changed")

    def set_gpu(self, address: str, name: str, value: Value, timeout: float = 60) -> None:
        raise HostError(f"{address}: a recorded host cannot be changed")

    def _recorded(self, kind: str, question: str, otherwise: Callable[[str], T]) -> T:
        entry = self.answers.get((kind, question))
        if entry is None:
            return otherwise(question)
        if "error" in entry:
            if "output" in entry:
                raise CommandFailed(entry["error"], status=entry["status"], output=entry["output"])
            raise HostError(entry["error"], code=entry.get("code", 0))
        answer: T = entry["answer"]
        return answer

    def _asked(self, kind: str, path: str) -> bool:
        return not self.complete or (kind, path) in self.answers

    def _absent(self, path: str) -> bool:
        """Was it seen not to be there: itself, or in the listing of a directory above it?"""
        if not self.complete:
            return True
        nothing = {"read": None, "kind": "absent"}
        if any(self.answers.get((kind, path), {}).get("answer", ...) == gone for kind, gone in nothing.items()):
            return True
        above, _, name = path.rstrip("/").rpartition("/")
        listing = self.answers.get(("list", above or "/"), {}).get("answer")
        if listing is not None:
            return name not in listing
        return above != "" and self._absent(above)


def _resolved(answer: Sequence[Any]) -> Resolved:
    from hostprep.host.reach import Resolved

    found, why = answer
    return Resolved(tuple(found), why)


def _not_recorded(path: str) -> HostError:
    return HostError(f"{path}: was not recorded")


def _no_commands(argv: Sequence[str], timeout: float, stdin: bytes) -> str:
    raise HostError(f"{argv[0]}: was not recorded, and no command is run for a recorded host")
