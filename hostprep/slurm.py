"""Slurm's HealthCheckProgram: drains a node while its host is not ready, and takes back that drain, and no other.

slurmd runs it as root, when it starts and at an interval, with nothing but SLURMD_NODENAME in the environment; it
looks at no exit status and kills it after 60 s (slurm.conf(5), run_script_health_check() in slurmd). Running jobs go
on under a drain.

Whose a drain is, its Reason tells: ours is signed with a checksum of itself. It thus needs no memory on a host that may
have no disk, and is no longer ours once somebody edits it. Slurm cannot compare and swap: an admin who drains a node
within the few ms between our look and our change loses the Reason.

What it cannot prevent: a node that comes back from `scontrol reboot`, or from DOWN by ReturnToService=1, is in service
before it is looked at again, an interval later. A drain set earlier is taken back by the reboot, or takes the place of
the Reason by which ReturnToService=1 knows it.
"""

from __future__ import annotations

import os
import re
import sys
import zlib
from collections.abc import Callable
from typing import NamedTuple

from hostprep import gate
from hostprep.errors import HostError, HostprepError, UsageError
from hostprep.host import Host
from hostprep.report import NOT_READY, PENDING, POWER_CYCLE, READY, UNKNOWN, Report, exit_code

REASON_LIMIT = 200  # characters, so that `sinfo -R` and `scontrol show node` stay readable
NAMED = 3  # findings that a Reason names
NOT_RESPONDING = "Not responding"  # the Reason that Slurm takes for none, and lets a node come back from by itself
_READING_S, _SCONTROL_S = 20.0, 12.0  # of the 60 s: one look at the report, at most three calls

# What Slurm adds to a Reason by itself while a drained node goes down or is rebooted (set_node_reason(), since 23.11).
_ADDED = rf"(?: : (?:{NOT_RESPONDING}|reboot issued|reboot requested|reboot complete|Reboot ASAP))*"
_SIGNED = re.compile(rf"(?P<text>hostprep: .*) #(?P<sum>[0-9a-f]{{8}}){_ADDED}")

_NOBODYS = rf"(?:{NOT_RESPONDING}(?: : {NOT_RESPONDING})*)?"  # without slurmdbd, 24.11 never clears a Reason

# A node in one of these is rebooted, switched off or failing, or Slurm has refused it; to drain it would undo that
# (update_node() clears FAIL), or be undone by it, and it takes no jobs. Flags that are not known do no harm.
_LEFT_ALONE = frozenset(
    {
        *("ERROR", "FAIL", "FAILING", "FUTURE", "INVAL", "INVALID_REG", "POWER_DOWN", "POWERED_DOWN", "POWERING_DOWN"),
        *("REBOOT", "REBOOT_ISSUED", "REBOOT_REQUESTED"),
    }
)
_DRAIN = frozenset({"DRAIN", "DRAINED", "DRAINING"})


_SAID = {
    NOT_READY: "not ready",
    PENDING: "not ready until a reboot",
    POWER_CYCLE: "not ready until a power cycle",
    UNKNOWN: "not ready, as far as can be told",
}


class Node(NamedTuple):
    """A node as the controller knows it."""

    states: frozenset[str]  # the base state and all flags
    reason: str = ""

    @property
    def drained(self) -> bool:
        return bool(self.states & _DRAIN)


def main() -> int:
    """Make the node's drain what the report says; the exit status is for people."""
    host = Host()
    try:
        name = node_name(os.environ.get("SLURMD_NODENAME", ""))
        why = not_ready(host)
        done = express(host, name, why)
    except HostprepError as e:
        print(f"error: {e}", file=sys.stderr)
        return exit_code(e)
    print(f"{name}: {why or 'ready'}: {' '.join(done) or 'left as it is'}")
    return 0


def express(host: Host, name: str, why: str) -> list[str]:
    """Have the controller know why the host is not ready, or that it is; what was asked of it. Raises HostError."""
    command = scontrol(host)
    node = parsed(host.run(command, "show", "node", name, timeout=_SCONTROL_S), name)
    words = decide(node, why, lambda: comes_back(host, command))
    if words:
        host.run(command, "update", f"NodeName={name}", *words, timeout=_SCONTROL_S)
    return words


def node_name(given: str) -> str:
    """The name of this node. It goes to scontrol, which takes expressions such as n[1-9] and ALL for many nodes."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", given) or given.upper() == "ALL":
        raise UsageError(f"SLURMD_NODENAME is not the name of a node: {given!r}", "It is for slurmd to run this.")
    return given


def scontrol(host: Host) -> str:
    """The scontrol of the slurmd that runs us, which may be installed anywhere; else the one on root's PATH."""
    folder, _, program = (host.link(f"/proc/{os.getppid()}/exe") or "").rpartition("/")
    beside = f"{folder.removesuffix('/sbin')}/bin/scontrol"
    return beside if program.startswith("slurm") and host.exists(beside) else "scontrol"


def parsed(said: str, name: str) -> Node:
    """What `scontrol show node` says of one node (slurm_sprint_node_table(); the same from 20.11 to 26.05)."""
    names = re.findall(r"^NodeName=(\S+)", said, re.MULTILINE)
    state = re.search(r"^ +State=(\S+)", said, re.MULTILINE)
    if names != [name] or state is None:
        raise HostError(f"scontrol show node {name}: not understood: {said[:200]!r}")
    reason = re.search(r"^   Reason=(.*(?:\n {10}.*)*)", said, re.MULTILINE)  # further lines are indented by 10
    text = re.sub(r" \[[^][ ]+@[^][ ]+\]$", "", reason[1]) if reason else ""
    return Node(frozenset(re.findall(r"[A-Z_]+", state[1].upper())), text)


def decide(node: Node, why: str, comes_back: Callable[[], bool]) -> list[str]:
    """What to ask of scontrol, if anything; `why` is empty where the host is ready."""
    ours = is_ours(node.reason)
    if node.states & _LEFT_ALONE or (node.drained and not ours):
        return []
    if not why:
        # Not RESUME, which also brings back what is DOWN. Without slurmdbd, Slurm 24.11 leaves the last Reason with a
        # node that is back in service: not one of ours, under which its own next drain would be taken for ours.
        return ["State=UNDRAIN", f"Reason={NOT_RESPONDING}"] if node.drained else []
    if node.drained and _same(node.reason, signed(why)):
        return []
    # A node that is DOWN takes no jobs. But at the start of slurmd this is run before the node registers, and with
    # ReturnToService=2 that brings it back: jobs would start before we are run again.
    down = "DOWN" in node.states and not node.drained
    if down and not (re.fullmatch(_NOBODYS, node.reason) and comes_back()):
        return []
    return ["State=DRAIN", f"Reason={signed(why)}"]


def comes_back(host: Host, command: str) -> bool:
    """Does a node that is DOWN return to service whatever it was down for?"""
    said = host.run(command, "show", "config", timeout=_SCONTROL_S)
    return bool(re.search(r"^ReturnToService\s*=\s*2\s*$", said, re.MULTILINE))


# -- the Reason -------------------------------------------------------------------------------------


def signed(why: str) -> str:
    """A Reason that can be told from what others write, or make of it."""
    line = " ".join("".join(c if " " <= c <= "~" else "?" for c in " ".join(why.split())).split())
    text = f"hostprep: {line}"[:REASON_LIMIT].rstrip()
    return f"{text} #{zlib.crc32(text.encode()):08x}"


def is_ours(reason: str) -> bool:
    """Did we write this, and has nobody edited it since?"""
    found = _SIGNED.fullmatch(reason)
    return found is not None and found["sum"] == f"{zlib.crc32(found['text'].encode()):08x}"


def _same(reason: str, other: str) -> bool:
    """Do two Reasons of ours say the same? How old a report is grows with every look, and is no news."""

    def lasting(text: str) -> str:
        found = _SIGNED.fullmatch(text)
        return re.sub(r"it is \d+ (?:s|m|h|d) old", "it is old", found["text"] if found else text)

    return lasting(reason) == lasting(other)


# -- the report -------------------------------------------------------------------------------------


def not_ready(host: Host, look: Callable[[], Report] = gate.relied_on) -> str:
    """Why this host is not ready; empty where it is.

    A child reads the report: a disk or profile that does not answer, and a bug, are then not ready either, and the
    node is told so before slurmd kills us.
    """
    answer = host.together([("report", lambda: f"-{_told(look)}".encode())], _READING_S)["report"]
    return f"not ready: the report: {answer}" if isinstance(answer, str) else answer.decode()[1:]


def _told(look: Callable[[], Report]) -> str:
    try:
        report = look()
    except HostprepError as e:
        return f"not ready: {e}"
    if report.verdict == READY:
        return ""
    names = [finding.name for finding in gate.missing(report)]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{_SAID[report.verdict]}: {', '.join(names[:NAMED]) or 'nothing is required'}{more}"


if __name__ == "__main__":
    sys.exit(main())
