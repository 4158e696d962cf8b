"""A `pbs` module, with a server and a mom behind it, as OpenPBS 23 has them for hooks that run in mom.

What is faithful to the source, and what the hook has to live with:
- a vnode in the event is write-only: its state and comment read as None (fprint_vnl() does not tell them);
- the server's view says offline for the admin's bit and for mom's alike (encode_state());
- a new state replaces down, offline, offline-by-mom and sleep, and leaves the rest (node_state()); a stale vnode and
  one that is being provisioned refuse it, and take the comment all the same (update2_to_vnode());
- requests reach the server whether the event was accepted or rejected, and wait in mom while the server is away;
- pbs.server() is None then;
- comments are lost when the server is restarted, states are not;
- accept() and reject() end the hook by SystemExit, and it has no __name__ but that of the builtins.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from hostprep import packages

HOOK = Path(packages.__file__).parent / "share" / "pbs" / "hostprep.py"
FREE, OFFLINE, DOWN, STALE, UNKNOWN, PROV = 0, 1, 2, 0x20, 0x100, 0x800
WAIT_PROV, BY_MOM, MAINTENANCE, SLEEP, BUSY = 0x1000, 0x4000, 0x20000, 0x40000, 0x10
STATES = FREE | OFFLINE | DOWN | STALE | UNKNOWN | PROV | WAIT_PROV | BY_MOM | MAINTENANCE | SLEEP | BUSY
STARTUP, PERIODIC, BEGIN = 0x2000, 0x1000, 0x40
CONSTANTS = {
    "ND_FREE": FREE,
    "ND_OFFLINE": OFFLINE,
    "ND_STALE": STALE,
    "ND_PROV": PROV,
    "ND_WAIT_PROV": WAIT_PROV,
    "ND_SLEEP": SLEEP,
    "EXECHOST_STARTUP": STARTUP,
    "EXECHOST_PERIODIC": PERIODIC,
    "EXECJOB_BEGIN": BEGIN,
    "LOG_WARNING": 4,
    "LOG_ERROR": 3,
}
Request = tuple[str, str, Any]  # vnode, attribute, value


class BadAttributeValueError(Exception):
    """A value that the attribute cannot have."""


class UnsetAttributeNameError(Exception):
    """There is no such attribute."""


class Node:
    """A vnode, as the server has it."""

    def __init__(self) -> None:
        self.state = FREE
        self.comment = ""


class Server:
    """What pbs_server keeps, and what admins do to it."""

    def __init__(self, *names: str) -> None:
        self.nodes = {name: Node() for name in names}
        self.away = False
        self.asked = 0
        self.requests: list[Request] = []  # all that ever came from hooks

    def seen(self, name: str = "node1") -> tuple[bool, str]:
        """Is it offline, and what does its comment say?"""
        node = self.nodes[name]
        return bool(node.state & (OFFLINE | BY_MOM)), node.comment

    def offline(self, comment: str | None = None, name: str = "node1") -> None:
        """`pbsnodes -o [-C COMMENT]`."""
        self.nodes[name].state |= OFFLINE
        if comment is not None:
            self.nodes[name].comment = comment

    def reset(self, name: str = "node1") -> None:
        """`pbsnodes -r`, which clears both bits (set_node_state()) and leaves the comment."""
        self.nodes[name].state &= ~(OFFLINE | BY_MOM)

    def restart(self) -> None:
        for node in self.nodes.values():
            node.comment = ""

    def update(self, requests: Iterable[Request]) -> None:
        """update2_to_vnode(), for what comes from a hook."""
        for name, attribute, value in requests:
            self.requests.append((name, attribute, value))
            node = self.nodes[name]
            if attribute == "comment":
                node.comment = value or ""
            elif not node.state & (STALE | PROV):
                node.state = node.state & ~(DOWN | OFFLINE | BY_MOM | SLEEP) | value
            node.state &= ~(STALE | UNKNOWN)


class Vnode:
    """A vnode in the event: it takes what is written, and tells nothing of the server."""

    def __init__(self, name: str, requests: list[Request]) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "state", None)
        object.__setattr__(self, "comment", None)
        object.__setattr__(self, "_requests", requests)

    def __setattr__(self, attribute: str, value: Any) -> None:
        if attribute not in ("state", "comment"):
            raise UnsetAttributeNameError(f"vnode attribute '{attribute}' not found")
        if attribute == "state" and (not isinstance(value, int) or value & ~STATES):
            raise BadAttributeValueError(f"invalid vnode state value '{value}'")
        if attribute == "comment" and value is not None and (not isinstance(value, str) or "\n" in value):
            raise BadAttributeValueError("what comes out of a hook has one line for each value")
        object.__setattr__(self, attribute, "" if value is None else value)
        self._requests.append((self.name, attribute, value))

    name: str
    _requests: list[Request]


class Job:
    id = "1.server"

    def __init__(self) -> None:
        self.reruns = False

    def rerun(self) -> None:
        self.reruns = True


class Outcome(NamedTuple):
    """How a run of the hook ended."""

    accepted: bool
    message: str
    reruns: bool
    log: list[str]
    requests: list[Request]


class Event:
    def __init__(self, kind: int, vnodes: Iterable[str], requests: list[Request]) -> None:
        self.type = kind
        self.hook_name = "hostprep"
        self.vnode_list = {name: Vnode(name, requests) for name in vnodes}
        self.ended: tuple[bool, str] | None = None
        if kind == BEGIN:
            self.job = Job()

    def accept(self, ecode: int = 0) -> None:
        self.ended = (True, "")
        raise SystemExit(str(ecode))

    def reject(self, emsg: str = "", ecode: int = 255) -> None:
        self.ended = (False, emsg)
        raise SystemExit(str(ecode))


class Mom:
    """pbs_mom of one host: it runs the hook in a new interpreter each time, and sends what that asks for."""

    def __init__(self, server: Server, name: str = "node1", config: Path | None = None) -> None:
        self.server = server
        self.name = name
        self.config = config
        self.vnodes = [name]
        self.waiting: list[Request] = []

    def run(self, kind: int = PERIODIC, vnodes: Iterable[str] = (), lost: bool = False) -> Outcome:
        """Run the hook; its requests are sent, unless they are `lost`, as when mom dies just then."""
        requests: list[Request] = []
        log: list[str] = []
        event = Event(kind, tuple(vnodes) or self.vnodes, requests)
        code = compile(HOOK.read_text(), str(HOOK), "exec")
        sys.modules["pbs"] = self.module(event, log)
        try:
            exec(code, {})
        except SystemExit:
            pass
        finally:
            del sys.modules["pbs"]
        assert event.ended is not None, "the hook neither accepted nor rejected"
        if not lost:
            self.waiting += requests
            self.send()
        return Outcome(*event.ended, kind == BEGIN and event.job.reruns, log, requests)

    def send(self) -> None:
        if not self.server.away:
            self.server.update(self.waiting)
            self.waiting = []

    def module(self, event: Event, log: list[str]) -> types.ModuleType:
        module = types.ModuleType("pbs")
        vars(module).update(
            CONSTANTS,
            event=lambda: event,
            server=lambda: None if self.server.away else types.SimpleNamespace(vnode=self.view),
            logmsg=lambda level, text: log.append(text),
            get_local_nodename=lambda: self.name,
            hook_config_filename=None if self.config is None else str(self.config),
        )
        return module

    def view(self, name: str) -> types.SimpleNamespace | None:
        """pbs.server().vnode(NAME): pbs_statvnode()."""
        self.server.asked += 1
        node = self.server.nodes.get(name)
        if node is None:
            return None
        state = node.state & ~BY_MOM | (OFFLINE if node.state & BY_MOM else 0)
        return types.SimpleNamespace(name=name, state=state, comment=node.comment or None)
