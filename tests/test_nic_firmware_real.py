"""The real mstconfig on cards in software: from the factory to room for VFs, and what can go wrong on the way (K10)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import connectx
import pytest

A, B, C = "0000:17:00.0", "0000:17:00.1", "0000:65:00.0"
READY, NOT_READY, UNKNOWN, AFTER_REBOOT = 0, 1, 3, 4
PROFILE = "name: t\nnic_firmware: {cards: '15b3:*', SRIOV_EN: true, NUM_OF_VFS: 8}\n"
Plug = Callable[..., connectx.Machine]
pytestmark = [
    pytest.mark.machine,
    pytest.mark.skipif(bool(connectx.missing()), reason=connectx.missing() or "nothing"),
]


class Said(NamedTuple):
    code: int
    status: dict[str, str]
    message: dict[str, str]


@pytest.fixture
def plug(tmp_path: Path) -> Iterator[Plug]:
    (tmp_path / "profile.yaml").write_text(PROFILE)
    with ExitStack() as stack:
        yield lambda *cards: stack.enter_context(connectx.machine(tmp_path, *cards))


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., list[str]]:
    def words(*argv: str) -> list[str]:
        profile = str(tmp_path / "profile.yaml")
        return [sys.executable, "-m", "hostprep", *argv, "--profile", profile, "--format", "json"]

    return words


def said(done: subprocess.CompletedProcess[str]) -> Said:
    report: dict[str, Any] = json.loads(done.stdout)
    found = {
        f"{f['check']}/{f['key']}".partition("/")[2]: f for f in report["findings"] if f["key"].startswith("0000:")
    }
    status = {key: f["status"] for key, f in found.items()}
    return Said(done.returncode, status, {key: f["message"] for key, f in found.items()})


def test_a_factory_card_needs_one_apply_and_one_reboot(plug: Plug, command: Callable[..., list[str]]) -> None:
    machine = plug(connectx.card("cx5ex"))
    applied = said(machine.run(*command("apply", "--yes")))
    assert (applied.code, set(applied.status.values())) == (AFTER_REBOOT, {"pending-reboot"})
    assert machine.firmware_writes() == 1  # SRIOV_EN and NUM_OF_VFS are in one TLV of the card
    assert said(machine.run(*command("apply", "--yes"))).code == AFTER_REBOOT
    machine.reboot()
    ready = said(machine.run(*command("apply", "--yes")))
    assert (ready.code, len(ready.status), set(ready.status.values())) == (READY, 4, {"pass"})
    assert machine.firmware_writes() == 1


def test_a_reboot_is_not_asked_for_where_the_tool_says_that_it_is_not_enough(
    plug: Plug, command: Callable[..., list[str]]
) -> None:
    """sriov-network-operator#1082: `Please power cycle machine`, exit 0, and reboots without end."""
    machine = plug(connectx.card("cx5ex", A))
    machine.fault(needs_power_cycle=True)
    assert set(said(machine.run(*command("apply", "--yes"))).status.values()) == {"pending-power-cycle"}
    machine.reboot()
    assert set(said(machine.run(*command("check"))).status.values()) == {"pending-power-cycle"}
    machine.power_cycle()
    assert said(machine.run(*command("check"))).code == READY


def test_a_locked_down_kernel(plug: Plug, command: Callable[..., list[str]]) -> None:
    """sriov-network-operator#103, #670: what sysfs proves counts, and nothing else."""
    machine = plug(connectx.card("cx5ex"))
    machine.fault(lockdown="integrity")
    refused = said(machine.run(*command("apply", "--yes")))
    assert (refused.code, refused.status) == (NOT_READY, {f"{A}/total_vfs": "fail", f"{B}/total_vfs": "fail"})
    machine.set("SRIOV_EN", 1)
    machine.set("NUM_OF_VFS", 8)
    machine.power_cycle()
    proved = said(machine.run(*command("check")))
    assert (proved.code, set(proved.status.values()), machine.firmware_writes()) == (READY, {"pass"}, 0)


def test_a_card_that_another_tool_left_locked_leaves_the_other_one_judged(
    plug: Plug, command: Callable[..., list[str]]
) -> None:
    machine = plug(connectx.card("cx5ex", A), connectx.card("cx5ex", C, SRIOV_EN=1, NUM_OF_VFS=8))
    machine.fault(0, vsec_sem_held=7)
    found = said(machine.run(*command("check")))
    assert found.code == UNKNOWN
    assert {a: found.status[f"{a}/NUM_OF_VFS"] for a in (A, C)} == {A: "unknown", C: "pass"}
    assert "Failed to open the device" in found.message[f"{A}/NUM_OF_VFS"]


def test_the_number_of_a_pf_is_set_where_the_card_has_numbers_by_pf(
    plug: Plug, command: Callable[..., list[str]]
) -> None:
    """R49: PF_NUM_OF_VF_VALID takes all effect from NUM_OF_VFS."""
    machine = plug(connectx.card("cx5ex", A, SRIOV_EN=1, PF_NUM_OF_VF_VALID=1))
    assert said(machine.run(*command("apply", "--yes"))).code == AFTER_REBOOT
    assert (machine.value("PF_NUM_OF_VF"), machine.value("NUM_OF_VFS")) == (8, 0)


def test_two_hostpreps_at_once_see_the_same(plug: Plug, command: Callable[..., list[str]]) -> None:
    """Two mstconfigs on one card starve each other on its lock: ours take turns."""
    machine = plug(connectx.card("cx5ex", A))
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(machine.command(*command("check", "--no-publish")), **pipes) for _ in range(2)]
    seen = [json.loads(process.communicate(timeout=120)[0]) for process in both]
    assert [process.returncode for process in both] == [NOT_READY, NOT_READY]
    assert seen[0]["findings"] == seen[1]["findings"]
