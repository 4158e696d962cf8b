"""The OpenPBS hook against a server and a mom of its own kind (fake_pbs): whose mark is whose, and what ready takes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_pbs import (
    BEGIN,
    BUSY,
    BY_MOM,
    DOWN,
    MAINTENANCE,
    OFFLINE,
    PERIODIC,
    PROV,
    SLEEP,
    STALE,
    STARTUP,
    UNKNOWN,
    Mom,
    Outcome,
    Server,
)
from test_gate import made

from hostprep import report, state
from hostprep.model import Status

OURS = re.compile(r"hostprep: .* #[0-9a-f]{8}")
ADMINS = "maint by alice"


class World:
    """A node, its server, and the report on its host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.memory = folder / "memory" / "pbs.json"
        self.profile = folder / "profile.yaml"
        self.server = Server("node1")
        self.mom = Mom(self.server, config=folder / "hostprep.json")
        self.configure()
        self.ready()

    def configure(self, **settings: Any) -> None:
        paths = {"report": state.report_path(), "memory": str(self.memory), "profile_file": str(self.profile)}
        (self.folder / "hostprep.json").write_text(json.dumps({**paths, **settings}))

    def data(self, *statuses: Status, **more: Any) -> dict[str, Any]:
        return report.to_dict(made(*statuses, **more))

    def publish(self, data: object) -> None:
        Path(state.report_path()).write_text(json.dumps(data))

    def ready(self) -> None:
        state.publish(made(Status.PASS))

    def bad(self, *statuses: Status) -> None:
        state.publish(made(*statuses or (Status.FAIL,)))

    def run(self, kind: int = PERIODIC, **more: Any) -> Outcome:
        return self.mom.run(kind, **more)

    def seen(self) -> tuple[bool, str]:
        """Is the node offline, and what does its comment say without the signature?"""
        offline, comment = self.server.seen()
        return offline, comment[:-10] if OURS.fullmatch(comment) else comment


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


FAILED = (True, "hostprep: not ready: swap/device0")
FREE = (False, "")


# -- a node follows its report ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [STARTUP, PERIODIC])
def test_a_node_goes_offline_and_comes_back_with_its_report(world: World, kind: int) -> None:
    assert (world.run(kind).requests, world.seen()) == ([], FREE)
    world.bad()
    assert (world.run(kind).accepted, world.seen()) == (True, FAILED)
    world.ready()
    assert (world.run(kind).accepted, world.seen()) == (True, FREE)


@pytest.mark.parametrize(
    ("statuses", "said"),
    [
        ([Status.FAIL], "not ready: swap/device0"),
        (
            [Status.PASS, Status.PENDING, Status.UNKNOWN, Status.FAIL],
            "not ready: swap/device3, swap/device2, swap/device1",
        ),
        ([Status.FAIL] * 5, "not ready: swap/device0, swap/device1, swap/device2 and 2 more"),
        ([Status.UNKNOWN], "unknown: swap/device0"),
        ([Status.PENDING], "ready after a reboot: swap/device0"),
        ([Status.PENDING, Status.POWER_CYCLE], "ready after a power cycle: swap/device1, swap/device0"),
        ([], "unknown: nothing is required"),
        ([Status.PASS, Status.VOLATILE], ""),
    ],
)
def test_the_comment_names_what_is_missing_the_worst_first(world: World, statuses: list[Status], said: str) -> None:
    state.publish(made(*statuses))
    world.run()
    assert world.seen() == ((True, f"hostprep: {said}") if said else FREE)


def test_what_is_advisory_or_waived_keeps_no_node_away(world: World) -> None:
    good, advisory, waived = made(Status.PASS, Status.FAIL, Status.FAIL).findings
    findings = [good, advisory._replace(advisory=True), waived._replace(waived="known (until 2999-01-01)")]
    state.publish(made()._replace(findings=findings))
    assert (world.run().requests, world.seen()) == ([], FREE)


def test_the_same_defect_is_said_once_and_stays(world: World) -> None:
    """T19, NHC#134: no flapping, no storm of updates, and a defect that is still there is not forgotten."""
    world.bad()
    world.run()
    written = world.memory.stat().st_mtime_ns
    for _ in range(3):
        world.bad()  # a new report each time
        assert world.run().requests == []
    assert (world.seen(), world.memory.stat().st_mtime_ns) == (FAILED, written)
    world.bad(Status.UNKNOWN)
    assert [what for _, what, _ in world.run().requests] == ["comment"]


def test_a_report_that_grows_old_is_said_once(world: World) -> None:
    state.publish(made(Status.PASS, age=7200))
    world.run()
    state.publish(made(Status.PASS, age=7200))
    assert re.fullmatch(r"hostprep: not ready: the report is too old \(.*Z\)", world.seen()[1])
    stale = Path(state.report_path()).read_bytes()
    world.run()
    Path(state.report_path()).write_bytes(stale)
    assert world.run().requests == []


def test_the_server_is_not_asked_about_a_node_that_is_well(world: World) -> None:
    world.run()
    world.server.asked = 0
    for kind in (PERIODIC, BEGIN, STARTUP):
        assert world.run(kind).accepted
    assert world.server.asked == 0


def test_all_vnodes_of_a_host_go_and_come_together(world: World) -> None:
    names = ["node1", "node1[0]", "node1[1]"]
    world.server = world.mom.server = Server(*names)
    world.mom.vnodes = names
    world.server.offline(ADMINS, "node1[1]")
    world.bad()
    world.run()
    assert [world.server.seen(n)[0] for n in names] == [True] * 3
    world.ready()
    world.run()
    assert [world.server.seen(n) for n in names] == [FREE, FREE, (True, ADMINS)]


def test_hostile_names_stay_one_line_of_text(world: World) -> None:
    """T8: a line break in a comment would be another request in what pbs_python hands to mom."""
    evil = made(Status.FAIL).findings[0]._replace(key="\x1b[31m\n pbs.event().accept=True\u202e" + "x" * 5000)
    state.publish(made()._replace(findings=[evil]))
    outcome = world.run(BEGIN)
    comment = world.server.seen()[1]
    assert OURS.fullmatch(comment)
    assert comment.isprintable()
    assert comment.isascii()
    assert len(comment) <= 210
    assert outcome.message.isprintable()
    world.ready()
    world.run()
    assert world.seen() == FREE


# -- whose mark it is -------------------------------------------------------------------------------


def takes_over(edit: Callable[[str], str]) -> Callable[[World], None]:
    def take(world: World) -> None:
        world.bad()
        world.run()
        world.server.offline(edit(world.server.seen()[1]))

    return take


def freed(world: World) -> None:
    world.bad()
    world.run()
    world.ready()
    world.run()


def freed_then_offline(world: World) -> None:
    freed(world)
    world.server.offline()


def freed_then_restarted(world: World) -> None:
    freed(world)
    world.server.offline(ADMINS)
    world.server.restart()


ADMIN_MARKS: dict[str, Callable[[World], None]] = {
    "before ours": lambda world: world.server.offline(ADMINS),
    "before ours, without a comment": lambda world: world.server.offline(),
    "after ours": takes_over(lambda ours: ADMINS),
    "after ours, in words added to it": takes_over(lambda ours: f"{ours} alice: keep it off"),
    "after ours, with our tag edited": takes_over(lambda ours: ours.replace("hostprep: ", "hostprep: alice, ")),
    "after ours, with our signature dropped": takes_over(lambda ours: ours[:-10]),
    "with our tag": lambda world: world.server.offline("hostprep: to be installed"),
    "right after ours was taken back": freed_then_offline,
    "after ours, and the server forgot it": freed_then_restarted,
    "of a failed hook": lambda world: world.server.offline("offlined by hook 'hostprep' due to hook error"),
}


@pytest.mark.parametrize("mark", ADMIN_MARKS)
def test_an_admins_mark_is_never_touched(world: World, mark: str) -> None:
    """T13, NVSentinel#1424: whatever the report says, and through restarts of server and mom."""
    ADMIN_MARKS[mark](world)
    before = world.server.seen()
    for kind in (PERIODIC, STARTUP, PERIODIC):
        for publish in (world.bad, world.ready):
            publish()
            assert (world.run(kind).requests, world.server.seen()) == ([], before)
    world.server.restart()
    for publish in (world.bad, world.ready):
        publish()
        world.run()
        assert world.server.seen() == (True, "")


def test_our_mark_survives_a_restart_of_the_server(world: World) -> None:
    """openpbs#2579: comments are gone then; what was ours is said again, and still comes back."""
    world.bad()
    world.run()
    world.server.restart()
    world.run()
    assert world.seen() == FAILED
    world.server.restart()
    world.ready()
    world.run()
    assert world.seen() == FREE


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"vnodes": {"node1": 7}}', b"\xff", b"[]"])
def test_our_mark_survives_the_loss_of_its_memory(world: World, content: bytes | None) -> None:
    """A host without a disk of its own forgets at every boot; the signature does not."""
    world.bad()
    world.run()
    world.memory.unlink() if content is None else world.memory.write_bytes(content)
    world.run(STARTUP)
    assert world.seen() == FAILED
    world.memory.unlink(missing_ok=True)
    world.ready()
    world.run(STARTUP)
    assert world.seen() == FREE


def test_without_a_place_for_its_memory_it_works_by_signature(world: World) -> None:
    world.configure(memory=f"{world.profile}/x/pbs.json")
    world.profile.write_text("")
    world.configure(memory=f"{world.profile}/x/pbs.json", profile_file=None)
    world.bad()
    assert any("Not a directory" in line for line in world.run().log)
    assert world.seen() == FAILED
    world.ready()
    world.run()
    assert world.seen() == FREE


def test_a_comment_on_another_node_is_not_ours_there(world: World) -> None:
    world.bad()
    world.run()
    copied = world.server.seen()[1]
    world.server = world.mom.server = Server("node2")
    world.mom.name, world.mom.vnodes = "node2", ["node2"]
    world.server.offline(copied, "node2")
    world.ready()
    world.run()
    assert world.server.seen("node2") == (True, copied)


def test_a_note_on_a_free_node_is_there_again_afterwards(world: World) -> None:
    world.server.nodes["node1"].comment = "new disk in May"
    world.bad()
    world.run()
    assert world.seen() == FAILED
    world.bad(Status.UNKNOWN)
    world.run()
    world.ready()
    world.run()
    assert world.seen() == (False, "new disk in May")


def test_a_node_that_was_brought_back_by_hand_goes_offline_again_and_loses_our_words_when_well(world: World) -> None:
    world.bad()
    world.run()
    world.server.reset()
    world.run()
    assert world.seen() == FAILED
    world.server.reset()
    world.ready()
    world.run()
    assert world.seen() == FREE


@pytest.mark.parametrize("publish", ["bad", "ready"])
def test_a_request_that_was_lost_is_made_again(world: World, publish: str) -> None:
    if publish == "ready":
        world.bad()
        world.run()
    getattr(world, publish)()
    world.run(lost=True)
    world.run()
    assert world.seen() == (FAILED if publish == "bad" else FREE)


@pytest.mark.parametrize("more", [DOWN | UNKNOWN, BUSY, MAINTENANCE, BUSY | MAINTENANCE])
def test_what_else_a_node_is_stays(world: World, more: int) -> None:
    node = world.server.nodes["node1"]
    node.state = more
    node.comment = "node down: communication closed" if more & DOWN else ""
    world.bad()
    world.run(STARTUP)
    assert node.state == more & ~(DOWN | UNKNOWN) | OFFLINE
    world.ready()
    world.run()
    assert (node.state, world.seen()) == (more & ~(DOWN | UNKNOWN), FREE)


@pytest.mark.parametrize("special", [PROV, SLEEP, STALE])
def test_a_node_that_sleeps_or_is_being_installed_is_left_alone(world: World, special: int) -> None:
    world.server.nodes["node1"].state = special
    world.bad()
    assert world.run().requests == []
    world.server.nodes["node1"].state = 0
    world.run()
    assert world.seen() == FAILED


def test_what_mom_itself_marked_looks_like_an_admins(world: World) -> None:
    world.server.nodes["node1"].state = BY_MOM
    for publish in (world.bad, world.ready):
        publish()
        assert world.run().requests == []


# -- jobs, and a server that is away ----------------------------------------------------------------


def test_a_job_that_comes_to_a_host_that_is_not_ready_goes_back_and_no_other_follows(world: World) -> None:
    world.server.nodes |= Server("node2", "node10", "node1[0]").nodes
    world.bad()
    outcome = world.run(BEGIN, vnodes=["node2", "node10", "node1", "node1[0]"])
    assert outcome[:3] == (False, "hostprep: not ready: swap/device0", True)
    assert {name for name, node in world.server.nodes.items() if node.state & OFFLINE} == {"node1", "node1[0]"}


def test_a_job_starts_on_a_host_that_is_ready(world: World) -> None:
    assert world.run(BEGIN)[:3] == (True, "", False)


@pytest.mark.parametrize("kind", [STARTUP, PERIODIC])
def test_while_the_server_is_away_nothing_is_asked_for(world: World, kind: int) -> None:
    """What is asked for unseen could be an admin's mark. Jobs are kept away when they begin."""
    world.server.offline(ADMINS)
    world.server.away = True
    world.bad()
    outcome = world.run(kind)
    assert (outcome.accepted, outcome.requests) == (True, [])
    assert "the server does not say" in outcome.log[-1]
    world.server.away = False
    world.ready()
    world.run()
    assert world.server.seen() == (True, ADMINS)


def test_a_job_is_sent_back_once_even_where_the_server_cannot_be_asked(world: World) -> None:
    world.bad()
    world.server.away = True
    assert not world.run(BEGIN).accepted
    world.server.away = False
    world.mom.send()
    assert world.seen() == FAILED
    world.ready()
    world.run()
    assert world.seen() == FREE


def test_a_hook_that_stumbles_lets_no_job_start(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("pbs_statvnode")

    world.bad()
    monkeypatch.setattr(world.mom, "view", broken)
    outcome = world.run(BEGIN)
    assert (outcome.accepted, outcome.reruns) == (False, True)
    assert "RuntimeError: pbs_statvnode" in outcome.log[-1]
    assert world.run().accepted
