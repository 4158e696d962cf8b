"""A host on which changes are noted and not made: what `plan` shows is what `apply` would do, by the same code."""

from __future__ import annotations

import contextlib
import difflib
import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hostprep.errors import HostError
from hostprep.host import ABSENT, FileState, Host, Space, attempt
from hostprep.model import Change, Unknown, Value

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from hostprep.host.network import Link
    from hostprep.host.nvml import Nvml
    from hostprep.host.processes import Namespace, Process, Workload
    from hostprep.host.remote import Got, Trust


class Step(NamedTuple):
    """One thing that would be done: the command an admin would type, and for a file the difference."""

    command: str
    diff: str = ""


class Rehearsal(Host):
    """Reads go to the real host, except for what this rehearsal would have written."""

    rehearsing = True

    def __init__(self, host: Host) -> None:
        self.__dict__.update(host.__dict__)
        self._host = host
        self._written: dict[str, FileState] = {}
        self.steps: list[Step] = []

    def read_bytes(self, path: str) -> bytes | None:
        if (state := self._written.get(self.resolve(path))) is not None:
            return state.data if state.kind == "file" else None
        return self._host.read_bytes(path)

    def state_kind(self, path: str) -> str:
        return state.kind if (state := self._written.get(path)) is not None else self._host.state_kind(path)

    def link(self, path: str) -> str | None:
        if (state := self._written.get(path)) is not None:
            return state.data.decode() if state.kind == "link" else None
        return self._host.link(path)

    def state(self, path: str) -> FileState:
        return state if (state := self._written.get(path)) is not None else self._host.state(path)

    def names(self, path: str) -> list[str]:
        names = set(self._host.names(path))
        for written, state in self._written.items():
            directory, _, name = written.rpartition("/")
            if (directory or "/") == path:
                (names.discard if state.kind == "absent" else names.add)(name)
        return sorted(names)

    def resolve(self, path: str) -> str:
        return self._host.resolve(path)

    def untrusted(self, path: str) -> str:
        return self._host.untrusted(path)

    def space(self, path: str) -> Space:
        return self._host.space(path)

    def size(self, path: str) -> int | None:
        if (state := self._written.get(self.resolve(path))) is not None:
            return len(state.data) if state.kind == "file" else None
        return self._host.size(path)

    def machine(self) -> str:
        return self._host.machine()

    def clock_synchronised(self) -> bool:
        return self._host.clock_synchronised()

    def links(self, names: Sequence[str], netns: str = "") -> dict[str, Link]:
        return self._host.links(names, netns)

    def addresses(self, netns: str = "") -> dict[str, tuple[str, ...]]:
        return self._host.addresses(netns)

    def routes(self, netns: str = "") -> dict[str, tuple[str, ...]]:
        return self._host.routes(netns)

    def http_get(self, url: str, trust: Trust | None, proxy: str, seconds: float, limit: int) -> Got:
        return self._host.http_get(url, trust, proxy, seconds, limit)

    def open_files(self, prefixes: Sequence[str]) -> dict[str, tuple[Process, ...]]:
        return self._host.open_files(prefixes)

    def workloads(self) -> list[Workload]:
        return self._host.workloads()

    def namespaces(self) -> list[Namespace]:
        return self._host.namespaces()

    def netdevs_elsewhere(self, namespaces: Sequence[Namespace]) -> dict[str, tuple[str, Namespace]]:
        return self._host.netdevs_elsewhere(namespaces)

    def uppers_elsewhere(self, namespaces: Sequence[Namespace]) -> dict[int, tuple[tuple[str, str, Namespace], ...]]:
        return self._host.uppers_elsewhere(namespaces)

    def nvml(self, addresses: Sequence[str], timeout: float = 20) -> Nvml:
        return self._host.nvml(addresses, timeout)

    def settled(self, ready: Callable[[], bool], timeout: float, subsystems: Sequence[str] = ("pci", "net")) -> bool:
        return True  # nothing was changed that could come or go

    def locked(self, path: str, timeout: float) -> AbstractContextManager[None]:
        from contextlib import nullcontext

        return nullcontext()

    def set_link(self, name: str, *, up: bool | None = None, mtu: int | None = None, netns: str = "") -> None:
        from hostprep.host import network

        self.note(shlex.join(network.command(network.link_words(name, up, mtu), netns)))

    def _set_vf(self, name: str, index: int, wanted: dict[str, Any], netns: str) -> None:
        from hostprep.host import network

        self.note(shlex.join(network.command(network.vf_words(name, index, wanted), netns)))

    def set_gpu(self, address: str, name: str, value: Value, timeout: float = 60) -> None:
        from hostprep.host import nvml

        for argv in nvml.commands(address, name, value, name == "instances" and self._has_instances(address)):
            self.note(shlex.join(argv))

    def _has_instances(self, address: str) -> bool:
        told = attempt(self._host.nvml, [address])
        gpus = () if isinstance(told, Unknown) else told.gpus
        return any(gpu.fields.get("mig-devices") for gpu in gpus if gpu.address == address)

    def run(self, *argv: str, timeout: float = 10, stdin: bytes = b"") -> str:
        self.note(shlex.join(argv))
        return ""

    def run_for_file(self, *argv: str, timeout: float = 10) -> str:
        return self.run(*argv)

    def run_logged(self, *argv: str, log: str, timeout: float, directory: str = "/") -> None:
        self.note(f"(cd {directory} && {shlex.join(argv)}) > {shlex.quote(log)} 2>&1")

    def unpacked(self, path: str, digest: str, into: str) -> AbstractContextManager[str]:
        directory = f"{into}/unpacked"
        self.note(f"tar -xf {shlex.quote(path)} -C {directory}    # once its {digest} was verified")
        return contextlib.nullcontext(directory)

    def note(self, command: str) -> None:
        """Note a command without its being run; the same one is noted once."""
        if Step(command) not in self.steps:
            self.steps.append(Step(command))

    def write(self, path: str, text: str, timeout: float = 60) -> None:
        self.note(f"echo {shlex.quote(text)} > {path}")
        self._written[self.resolve(path)] = FileState("file", text.encode())

    def edit_secret(
        self, path: str, edit: Callable[[bytes], bytes], who: tuple[str, int, int], what: str, timeout: float = 10
    ) -> None:
        self.steps.append(Step(f"edit {path}    # as {who[0]}: without {what}"))

    def restore(self, path: str, state: FileState) -> None:
        before = self.state(path)
        if before == state:
            return
        if before.kind == "other":
            raise HostError(f"{path}: is a device or a FIFO, which hostprep does not replace")
        self.must_be_writable(path)
        self._written[path] = state
        if state.kind == "link":
            self.steps.append(Step(shlex.join(["ln", "-sfn", state.data.decode(), path])))
        elif "link" in (before.kind, state.kind) or state.kind == "directory":
            self.steps.append(Step(shlex.join(["rm" if state == ABSENT else "mkdir", path])))
        else:
            self.steps.append(Step(f"remove {path}" if state == ABSENT else f"write {path}", diff(path, before, state)))

    def must_be_writable(self, path: str) -> None:
        """What apply would find is better known before anything is changed."""
        self._host.must_be_writable(path)

    def discard_leftover(self, path: str) -> None:
        return

    def keeping(
        self,
        keep: Callable[[str, FileState, FileState | None], None],
        remark: Callable[[Change, str], None] | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> Host:
        return self


def diff(path: str, before: FileState, after: FileState) -> str:
    """A unified diff of a file, as `diff -u` prints it."""

    def lines(state: FileState) -> list[str]:
        return state.data.decode(errors="replace").splitlines(keepends=True)

    old, new = (path if s.kind != "absent" else "/dev/null" for s in (before, after))
    text = "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
        for line in difflib.unified_diff(lines(before), lines(after), old, new)
    )
    if before.kind == after.kind == "file" and before.mode != after.mode:
        text = f"mode {before.mode:04o} -> {after.mode:04o}\n" + text
    return text
