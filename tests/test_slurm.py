"""Slurm's HealthCheckProgram: its own drain comes and goes with the report, and nobody else's is touched.

Forms of `scontrol show node` are those of slurm_sprint_node_table(): 22.05 as recorded (with the NextState of a
reboot), 24.11 with all optional lines.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from test_gate import made

from hostprep import slurm, state
from hostprep.errors import HostError, ReportUnusable
from hostprep.host import Host
from hostprep.model import Status
from hostprep.report import to_dict, usable
from hostprep.slurm import Node, decide, is_ours, signed

OURS = signed("not ready: swap/devices")
UNDRAIN = ["State=UNDRAIN", "Reason=Not responding"]
SHOWN = {path.stem.rpartition("-")[2]: path.read_text() for path in (Path(__file__).parent / "data/slurm").iterdir()}


def shown(states: str, reason: str = "", version: str = "22.05") -> str:
    line = f"   Reason={reason}" if reason else ""
    return SHOWN[version].format(state=states, reason=line)


def node(states: str, reason: str = "") -> Node:
    return Node(frozenset(states.split("+")), reason)


def decided(states: str, reason: str, why: str, comes_back: bool = False) -> list[str]:
    return decide(node(states, reason), why, lambda: comes_back)


# -- what the controller says -----------------------------------------------------------------------


@pytest.mark.parametrize("version", SHOWN)
@pytest.mark.parametrize(
    ("states", "reason", "seen"),
    [
        ("IDLE", "", node("IDLE")),
        ("IDLE+DRAIN", f"{OURS} [root@2026-11-23T05:53:56]", node("IDLE+DRAIN", OURS)),
        ("IDLE*+DRAIN", "maint by [alice] [alice@now] [root@now]", node("IDLE+DRAIN", "maint by [alice] [alice@now]")),
        ("MIXED+COMPLETING+DRAIN+DYNAMIC_NORM", OURS, node("MIXED+COMPLETING+DRAIN+DYNAMIC_NORM", OURS)),
        # The time stands after the first line of a Reason of more: what follows it is a part of the Reason.
        (
            "IDLE+DRAIN",
            f"{OURS} [root@now]\n          alice: keep it off",
            node("IDLE+DRAIN", f"{OURS} [root@now]\n          alice: keep it off"),
        ),
        ("IDLE+DRAIN", "x\n          State=IDLE [root@now]", node("IDLE+DRAIN", "x\n          State=IDLE")),
    ],
)
def test_a_node_is_read_as_slurm_prints_it(version: str, states: str, reason: str, seen: Node) -> None:
    assert slurm.parsed(shown(states, reason, version), "node1") == seen


@pytest.mark.parametrize(
    "said", ["", "Node node1 not found", shown("IDLE").replace("node1", "node10"), shown("IDLE") * 2, "NodeName=node1 "]
)
def test_what_is_not_one_node_is_not_understood(said: str) -> None:
    with pytest.raises(HostError, match="not understood"):
        slurm.parsed(said, "node1")


# -- what is done about it --------------------------------------------------------------------------

READY, BAD, WORSE = "", "not ready: swap/devices", "not ready: hugepages/2MiB"


@pytest.mark.parametrize("flags", ["", "+RESERVED", "+MAINTENANCE", "+PLANNED", "+CLOUD", "+NEVER_HEARD_OF"])
@pytest.mark.parametrize("base", ["IDLE", "MIXED", "ALLOCATED", "ALLOCATED+COMPLETING", "UNKNOWN"])
def test_a_drain_comes_and_goes_with_the_report_whatever_the_node_does(base: str, flags: str) -> None:
    """NHC#41, #82, #126: every new state of a node broke its helpers, and the node was not marked."""
    states = base + flags
    assert decided(states, "", BAD) == ["State=DRAIN", f"Reason={OURS}"]
    assert decided(states, "a Reason of long ago", BAD) == ["State=DRAIN", f"Reason={OURS}"]
    assert decided(states, "", READY) == []
    assert decided(f"{states}+DRAIN", OURS, READY) == UNDRAIN


@pytest.mark.parametrize(
    ("before", "why", "words"),
    [
        (OURS, BAD, []),
        (OURS, WORSE, ["State=DRAIN", f"Reason={signed(WORSE)}"]),
        (f"{OURS} : Not responding", BAD, []),
    ],
)
def test_the_same_defect_keeps_one_reason(before: str, why: str, words: list[str]) -> None:
    """T19: it is told as long as it is there, and not anew each minute."""
    assert decided("IDLE+DRAIN", before, why) == words


def test_an_old_report_keeps_one_reason_while_it_gets_older() -> None:
    def told(age: float) -> str:
        old = made(Status.PASS, age=age)
        try:
            usable(to_dict(old), state.identity(Host()))
        except ReportUnusable as e:
            return f"not ready: {e}"
        raise AssertionError("it can be relied on")

    assert told(7200) != told(7260 + 3600)
    assert decided("IDLE+DRAIN", signed(told(7200)), told(7260 + 3600)) == []


@pytest.mark.parametrize("why", [READY, BAD])
@pytest.mark.parametrize(
    "reason",
    [
        "",
        "maint by alice",
        "hostprep: not ready: swap/devices",  # somebody who writes as we do
        "hostprep: not ready: swap/devices #00000000",
        f"{OURS} alice: keep it off",
        f"{OURS} : alice: keep it off",
        f"{OURS} : Kill task failed",
        f"{OURS} : Not responding : Kill task failed",
        f"{OURS}\n          alice: keep it off",
        f"alice: {OURS}",
        OURS.replace("swap", "alice: swap"),
        OURS.upper(),
        "NHC: check_hw_ib",
        "Prolog error",
        "Low RealMemory",
    ],
)
def test_a_drain_of_somebody_else_is_never_touched(reason: str, why: str) -> None:
    """T13, NHC#134: a drain of a human was taken back, and the note lost; nor is ours any longer when it is edited."""
    for states in ("IDLE+DRAIN", "MIXED+DRAIN", "DOWN+DRAIN", "IDLE+DRAIN+MAINTENANCE", "IDLE+DRAINED"):
        assert decided(states, reason, why, comes_back=True) == []


@pytest.mark.parametrize(
    "added", ["", " : Not responding", " : reboot issued", " : reboot requested : reboot issued : Not responding"]
)
def test_a_drain_of_ours_comes_back_after_a_reboot(added: str) -> None:
    """Slurm adds to the Reason by itself (set_node_reason()); who reboots a node to make it ready wants it back."""
    assert decided("IDLE+DRAIN", OURS + added, READY) == UNDRAIN
    assert decided("DOWN+DRAIN", OURS + added, READY) == UNDRAIN


@pytest.mark.parametrize("why", [READY, BAD])
@pytest.mark.parametrize(
    "states",
    [
        "IDLE+FAIL",
        "FUTURE",
        "IDLE+REBOOT_REQUESTED",
        "DOWN+REBOOT_ISSUED",
        "IDLE+CLOUD+POWERED_DOWN",
        "IDLE+POWERING_DOWN",
        "IDLE+INVALID_REG",
    ],
)
def test_what_slurm_or_an_admin_is_doing_with_a_node_goes_on(states: str, why: str) -> None:
    """NHC#83: a node that `scontrol reboot` was working on was brought back. A drain would clear FAIL, besides."""
    for reason in ("", OURS, "Reboot ASAP"):
        for drain in ("", "+DRAIN"):
            assert decided(states + drain, reason, why, comes_back=True) == []


@pytest.mark.parametrize(
    ("reason", "comes_back", "drained"),
    [
        ("Not responding", True, True),
        ("Not responding : Not responding", True, True),
        ("Not responding : broken disk", True, False),
        ("", True, True),
        ("Not responding", False, False),
        ("broken disk", True, False),
        ("Node unexpectedly rebooted", True, False),
        (OURS, True, False),
    ],
)
def test_a_node_that_is_down_is_drained_only_where_slurm_would_bring_it_back(
    reason: str, comes_back: bool, drained: bool
) -> None:
    """ReturnToService=2, at the start of slurmd: else jobs would start before the next look."""
    assert bool(decided("DOWN", reason, BAD, comes_back)) is drained
    assert decided("DOWN", reason, READY, comes_back) == []


# -- the Reason -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "why",
    [
        "not ready: swap/devices",
        "x" * 10_000,
        "a\nState=IDLE\x1b[31m \u202e\udcff'; rm -rf / #\"$(reboot)`",
        "ends in a space " * 20,
        "not ready #00000000 : Not responding",
    ],
)
def test_a_reason_is_one_short_printable_line_that_is_known_again(why: str) -> None:
    """T8, NHC's eval of a message: it is one word of a command line, and no shell's."""
    reason = signed(why)
    assert is_ours(reason)
    assert is_ours(slurm.parsed(shown("IDLE+DRAIN", f"{reason} [root@now]"), "node1").reason)
    assert all(" " <= c <= "~" for c in reason)
    assert len(reason) <= slurm.REASON_LIMIT + 10
    assert reason.startswith("hostprep: ")
