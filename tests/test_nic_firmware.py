"""Firmware of ConnectX cards: rows K2, K10 and K18, and the firmware bugs of other tools (by their public numbers)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeHost, apply, examine, findings, profile, statuses
from fake_firmware import OWN, Card, failed, plug
from fakes import Answer, FakeHost, debian
from jsonschema import Draft202012Validator

from hostprep import engine, pci, registry
from hostprep.errors import HostError
from hostprep.journal import Journal, recalled
from hostprep.model import Facts
from hostprep.revert import revert

A, B = "0000:17:00.0", "0000:17:00.1"
C, D = "0000:65:00.0", "0000:65:00.1"
LOCKDOWN = "/sys/kernel/security/lockdown"
CHECK = registry.load(["nic_firmware"])["nic_firmware"]
EIGHT = {"cards": "15b3:1019", "count": 2, "SRIOV_EN": True, "NUM_OF_VFS": 8}


def machine(make_host: MakeHost, *cards: Card, **commands: Answer) -> FakeHost:
    host = make_host(debian(), commands)
    plug(host, *cards)
    return host


def section(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"nic_firmware": list(entries)}


def of(found: dict[str, Any], *addresses: str) -> dict[str, Any]:
    """Only what is about these PFs, without the name of the check."""
    short = {name.removeprefix("nic_firmware/"): value for name, value in found.items()}
    return {name: value for name, value in short.items() if name.startswith(addresses or ("0000:",))}


def facts(host: FakeHost, *names: str) -> Facts:
    return CHECK.inspect(host, names)  # type: ignore[call-arg]


def test_a_factory_card_takes_one_set_and_one_reboot(make_host: MakeHost, journal: Journal) -> None:
    """K10: both ports, one flash write a parameter. The same apply again writes nothing (R46)."""
    card = Card(A, B)
    host = machine(make_host, card)
    wanted = section(EIGHT)
    assert set(of(statuses(host, wanted)).values()) == {"fail"}
    assert apply(host, wanted, journal).failures == []
    assert [c for c in host.ran if " set " in c] == [f"mstconfig -d {A} -y set SRIOV_EN=1 NUM_OF_VFS=8"]
    assert set(of(statuses(host, wanted)).values()) == {"pending-reboot"}
    card.start(host)
    assert set(statuses(host, wanted).values()) == {"pass"}
    before = list(card.writes)
    apply(host, wanted, journal)
    assert card.writes == before


def test_what_plan_shows_is_what_apply_runs(make_host: MakeHost, journal: Journal) -> None:
    host = machine(make_host, Card(A, B), Card(C, D, PF_NUM_OF_VF_VALID="True(1)"))
    wanted = section({**EIGHT, "count": 4})
    checks = registry.load(["nic_firmware"])
    planned = engine.planned(examine(host, wanted), profile(wanted), checks, ())
    noted = [step.command for batch in engine.rehearse(host, planned, checks) for step in batch.steps]
    apply(host, wanted, journal)
    assert noted == [c for c in host.ran if " set " in c] != []


def test_revert_writes_back_what_was_there_and_never_resets(make_host: MakeHost, journal: Journal) -> None:
    """R52, R59: `mstconfig reset` wiped the mode of a BlueField (nic-configuration-operator, 1ec150c)."""
    card = Card(A, B, SRIOV_EN="True(1)", NUM_OF_VFS="16")
    host = machine(make_host, card)
    before = dict(card.next)
    performer = apply(host, section({"cards": "15b3:*", "SRIOV_EN": False, "NUM_OF_VFS": 4}), journal)
    assert (performer.failures, card.next["NUM_OF_VFS"]) == ([], "4")
    revert(performer)
    assert (performer.failures, card.next) == ([], before)
    assert not [command for command in host.ran if "reset" in command]


@pytest.mark.parametrize(
    ("first", "second", "set_to"), [(4, 8, "8"), (">=4", ">=8", "8"), (4, ">=8", "8"), (8, ">=4", "8")]
)
def test_ports_that_want_different_numbers_get_the_largest(
    make_host: MakeHost, journal: Journal, first: Any, second: Any, set_to: str
) -> None:
    """openshift/sriov-network-operator#218: it rebooted without end."""
    card = Card(A, B)
    host = machine(make_host, card)
    wanted = section({"cards": A, "NUM_OF_VFS": first}, {"cards": B, "NUM_OF_VFS": second})
    apply(host, wanted, journal)
    card.start(host)
    assert card.next["NUM_OF_VFS"] == set_to
    assert set(statuses(host, wanted).values()) == {"pass"}


def test_contradicting_values_on_one_card_are_refused(make_host: MakeHost, journal: Journal) -> None:
    card = Card(A, B)
    host = machine(make_host, card)
    wanted = section({"cards": A, "LINK_TYPE_P1": "ETH"}, {"cards": B, "LINK_TYPE_P1": "IB"})
    refused = of(findings(host, wanted))[f"{B}/LINK_TYPE_P1"]
    apply(host, wanted, journal)
    assert (A in refused.message and B in refused.message, card.writes) == (True, [])


def test_every_card_tells_of_itself_whether_it_waits(make_host: MakeHost, journal: Journal) -> None:
    """sriov-network-operator, `needReboot =` in a loop: the last card decided for all."""
    cards = Card(A, B), Card(C, D)
    host = machine(make_host, *cards)
    wanted = section({**EIGHT, "count": 4})
    apply(host, wanted, journal)
    cards[1].start(host)
    found = of(statuses(host, wanted))
    assert {a: found[f"{a}/NUM_OF_VFS"] for a in (A, C)} == {A: "pending-reboot", C: "pass"}


def test_parameters_that_a_card_lacks_are_told_and_hide_no_other(make_host: MakeHost, journal: Journal) -> None:
    """openshift/sriov-network-operator#43, #48: a crash on a card of one port; nic-configuration-operator 55987a3: a
    reboot was asked for though nothing could be written."""
    card = Card(A, LINK_TYPE_P2=None, PF_NUM_OF_VF_VALID=None, SRIOV_EN="True(1)")
    host = machine(make_host, card)
    wanted = section({"cards": A, "SRIOV_EN": True, "LINK_TYPE_P2": "ETH", "NO_SUCH": 1})
    apply(host, wanted, journal)
    assert of(statuses(host, wanted)) == {f"{A}/SRIOV_EN": "pass", f"{A}/LINK_TYPE_P2": "fail", f"{A}/NO_SUCH": "fail"}
    assert (card.writes, journal.standing()) == ([], [])
    assert "has no parameter NO_SUCH" in of(findings(host, wanted))[f"{A}/NO_SUCH"].message


def test_the_link_of_an_ethernet_card_is_ethernet(make_host: MakeHost) -> None:
    host = machine(make_host, Card(A, LINK_TYPE_P1=None, LINK_TYPE_P2=None))
    wanted = section({"cards": A, "LINK_TYPE_P1": "ETH", "LINK_TYPE_P2": "ETH"})
    assert of(statuses(host, wanted)) == {f"{A}/LINK_TYPE_P1": "pass", f"{A}/LINK_TYPE_P2": "fail"}  # no second port


def test_read_only_parameters_are_not_set(make_host: MakeHost, journal: Journal) -> None:
    card = Card(A)
    card.read_only = {"NUM_OF_VFS"}
    host = machine(make_host, card)
    wanted = section({"cards": A, "NUM_OF_VFS": 8})
    apply(host, wanted, journal)
    assert (card.writes, "read-only" in of(findings(host, wanted))[f"{A}/NUM_OF_VFS"].message) == ([], True)


@pytest.mark.parametrize(("value", "is_"), [("IB", "fail"), ("ETH", "pass"), (2, "fail")])
def test_enums_go_by_name(make_host: MakeHost, value: Any, is_: str) -> None:
    host = machine(make_host, Card(A))
    assert of(statuses(host, section({"cards": A, "LINK_TYPE_P1": value}))) == {f"{A}/LINK_TYPE_P1": is_}


def test_zero_and_one_are_false_and_true(make_host: MakeHost, journal: Journal) -> None:
    card = Card(A)
    host = machine(make_host, card)
    assert apply(host, section({"cards": A, "SRIOV_EN": 1}), journal).failures == []
    assert card.next["SRIOV_EN"] == "True(1)"


def test_a_power_cycle_is_asked_for_where_the_tool_asks_for_it(make_host: MakeHost, journal: Journal) -> None:
    """sriov-network-operator#1082, OCPBUGS-86028: exit 0, and every reboot in vain."""
    card = Card(A, B)
    card.needs_power_cycle = True
    host = machine(make_host, card)
    apply(host, section(EIGHT), journal)
    found = [recalled(f, journal.standing(), "this-boot") for f in of(findings(host, section(EIGHT))).values()]
    assert {f.status.value for f in found} == {"pending-power-cycle"}


@pytest.mark.parametrize("state", ["[none] integrity confidentiality\n", "none [integrity] confidentiality\n", None])
@pytest.mark.parametrize("total", ["8\n", "4\n", None])
def test_a_locked_down_kernel_leaves_what_sysfs_proves(
    make_host: MakeHost, state: str | None, total: str | None
) -> None:
    """sriov-network-operator#103, #670: failed though the firmware was right; and a missing file is not `none`."""
    card = Card(A)
    card.trouble = lambda: "-E- Failed to open the device\nwrite counter to semaphore: Operation not permitted\n"
    host = machine(make_host, card)
    if state is not None:
        host.put(LOCKDOWN, state)
    if total is not None:
        host.put(f"{pci.DEVICES}/{A}/sriov_totalvfs", total)
    found = of(findings(host, section({"cards": A, "SRIOV_EN": True, "NUM_OF_VFS": 8, "LINK_TYPE_P1": "ETH"})))
    assert found.pop(f"{A}/LINK_TYPE_P1").status.value == "unknown"
    if state is None or "[none]" in state:
        assert {name: f.status.value for name, f in found.items()} == {
            f"{A}/SRIOV_EN": "unknown",
            f"{A}/NUM_OF_VFS": "unknown",
        }
    else:
        assert list(found) == [f"{A}/total_vfs"]
        assert found[f"{A}/total_vfs"].status.value == ("pass" if total == "8\n" else "fail")


DPU = {"INTERNAL_CPU_MODEL": "EMBEDDED_CPU(1)", "INTERNAL_CPU_OFFLOAD_ENGINE": "ENABLED(0)"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (DPU, "is in DPU mode"),
        ({**DPU, "INTERNAL_CPU_MODEL": "SEPARATED_HOST(0)"}, "separated host mode"),
        ({}, "does not tell its mode"),
        ({**DPU, "INTERNAL_CPU_OFFLOAD_ENGINE": "DISABLED(1)"}, ""),
    ],
)
def test_a_bluefield_is_set_only_in_nic_mode(
    make_host: MakeHost, journal: Journal, settings: dict[str, str | None], said: str
) -> None:
    """R58, sriov-network-operator#449, #662."""
    card = Card(A, device="a2d6", **settings)
    host = machine(make_host, card)
    wanted = section({"cards": A, "NUM_OF_VFS": 8})
    assert said in of(findings(host, wanted))[f"{A}/NUM_OF_VFS"].message
    apply(host, wanted, journal)
    assert bool(card.writes) == (not said)


def test_numbers_by_pf_are_set_by_pf(make_host: MakeHost, journal: Journal) -> None:
    """R49: with PF_NUM_OF_VF_VALID, NUM_OF_VFS has no effect."""
    card = Card(A, B, PF_NUM_OF_VF_VALID="True(1)", NUM_OF_VFS="64", SRIOV_EN="True(1)")
    host = machine(make_host, card)
    wanted = section({"cards": A, "NUM_OF_VFS": 4}, {"cards": B, "NUM_OF_VFS": 8})
    assert of(statuses(host, wanted)) == {f"{A}/{OWN}": "fail", f"{B}/{OWN}": "fail"}
    assert apply(host, wanted, journal).failures == []
    assert (card.own_next, card.next["NUM_OF_VFS"]) == ({A: "4", B: "8"}, "64")
    card.start(host)
    assert set(statuses(host, wanted).values()) == {"pass"}


def test_numbers_by_pf_are_turned_on_in_two_commands_and_off_again(make_host: MakeHost, journal: Journal) -> None:
    """PF_NUM_OF_VF is hidden until PF_NUM_OF_VF_VALID is stored."""
    card = Card(A, B)
    host = machine(make_host, card)
    wanted = section({"cards": "15b3:*", "SRIOV_EN": True, "PF_NUM_OF_VF_VALID": True, "NUM_OF_VFS": 8})
    performer = apply(host, wanted, journal)
    assert (performer.failures, card.own_next) == ([], {A: "8", B: "8"})
    revert(performer)
    assert (performer.failures, card.next) == ([], card.default)


@pytest.mark.parametrize(
    ("now", "later", "key", "is_"),
    [("False(0)", "True(1)", OWN, "volatile"), ("True(1)", "False(0)", "NUM_OF_VFS", "pending-reboot")],
)
def test_each_side_is_judged_by_the_number_that_counts_there(
    make_host: MakeHost, now: str, later: str, key: str, is_: str
) -> None:
    card = Card(A, NUM_OF_VFS="8")
    card.current["PF_NUM_OF_VF_VALID"], card.next["PF_NUM_OF_VF_VALID"] = now, later
    card.own_current[A] = card.own_next[A] = "2"
    host = machine(make_host, card)
    assert of(statuses(host, section({"cards": A, "NUM_OF_VFS": 8}))) == {f"{A}/{key}": is_}


@pytest.mark.parametrize(("guids", "cards"), [(("1:2", "1:2"), 1), (("1:2", "3:4"), 2), (("0000:0000", ""), 2)])
def test_pfs_of_one_card_may_be_in_several_domains(make_host: MakeHost, guids: tuple[str, str], cards: int) -> None:
    """GB200 (nic-configuration-operator, 19bab1c): addresses are never computed."""
    host = machine(make_host, Card("0000:03:00.0", guid=guids[0]), Card("0002:03:00.0", guid=guids[1]))
    found = facts(host)
    assert len({found[f"{a}/card"] for a in pci.addresses(found)}) == cards


def test_ports_in_one_slot_are_one_card_also_when_one_tells_nothing(make_host: MakeHost) -> None:
    host = machine(make_host, Card(A, guid="1:2"), Card(B))
    found = facts(host)
    assert found[f"{A}/card"] == found[f"{B}/card"]


def test_a_busy_card_is_asked_again(make_host: MakeHost) -> None:
    answers = ["-E- Failed to open the device\n", "failed to perform lock operation.: -E- Failed ME_ERROR\n", ""]
    card = Card(A)
    card.trouble = lambda: answers.pop(0) if len(answers) > 1 else answers[0]
    assert set(of(statuses(machine(make_host, card), section({"cards": A, "NUM_OF_VFS": 0}))).values()) == {"pass"}


def test_one_dead_card_leaves_the_others_judged(make_host: MakeHost, journal: Journal) -> None:
    dead, sound = Card(A, B), Card(C, D)
    host = machine(make_host, dead, sound)
    for address in (A, B):  # fallen off the bus: whatever is read is all ones
        Path(f"{host.root}{pci.DEVICES}/{address}/config").write_bytes(b"\xff" * 4096)
    wanted = section({**EIGHT, "count": 4})
    assert apply(host, wanted, journal).failures == []
    found = of(findings(host, wanted))
    assert {a: found[f"{a}/NUM_OF_VFS"].status.value for a in (A, C)} == {A: "unknown", C: "pending-reboot"}
    assert "the card does not answer on the PCI bus" in found[f"{A}/NUM_OF_VFS"].message
    assert not [ran for ran in host.ran if A in ran]


def test_what_the_firmware_refuses_is_told_with_what_to_do_and_nothing_stays_half_done(
    make_host: MakeHost, journal: Journal
) -> None:
    card = Card(A, PF_NUM_OF_VF_VALID="False(0)")
    host = machine(make_host, card)
    wanted = section({"cards": A, "PF_NUM_OF_VF_VALID": True, "NUM_OF_VFS": 128})
    [failure] = apply(host, wanted, journal).failures
    assert "larger than maximum allowed 127" in failure.reason
    assert (failure.hint, card.next) == ("Ask for at most 127.", card.default)


def test_firmware_that_does_not_tell_current_values_is_judged_by_sysfs(make_host: MakeHost, journal: Journal) -> None:
    card = Card(A)
    card.columns = ("Next Boot",)
    host = machine(make_host, card)
    wanted = section({"cards": A, "SRIOV_EN": True, "NUM_OF_VFS": 8})
    seen = [set(of(statuses(host, wanted)).values())]
    apply(host, wanted, journal)
    seen.append(set(of(statuses(host, wanted)).values()))
    card.start(host)
    seen.append(set(of(statuses(host, wanted)).values()))
    assert seen == [{"fail"}, {"pending-reboot"}, {"pass"}]


def test_a_selector_that_matches_nothing_names_what_is_there(make_host: MakeHost) -> None:
    host = machine(make_host, Card(A))
    found = findings(host, section({"cards": "15b3:1021", "SRIOV_EN": True}, {"cards": "17:*", "count": 2}))
    assert {name: f.status.value for name, f in found.items()} == {
        "nic_firmware/cards 15b3:1021": "fail",
        "nic_firmware/cards 17:*": "fail",
    }
    assert f"{A} (15b3:1019, mlx5_core, ens23f0np0)" in found["nic_firmware/cards 15b3:1021"].message


@pytest.mark.parametrize(("devices", "tool_runs"), [({}, False), ({"vendor": "0x8086\n"}, False)])
def test_without_a_mellanox_card_no_tool_is_run(make_host: MakeHost, devices: dict[str, str], tool_runs: bool) -> None:
    host = make_host(debian())  # any command fails the test
    for name, text in devices.items():
        host.put(f"{pci.DEVICES}/{A}/{name}", text)
        host.put(f"{pci.DEVICES}/{A}/class", "0x020000\n")
    assert pci.addresses(facts(host)) == []


def test_a_host_whose_sysfs_is_empty_is_not_one_without_cards(make_host: MakeHost) -> None:
    host = make_host({**debian(), "/proc/bus/pci/devices": "1700\t15b31019\t0\n"})
    with pytest.raises(HostError, match="is sysfs mounted"):
        facts(host)


def test_without_a_tool_the_finding_says_what_to_install(make_host: MakeHost) -> None:
    host = machine(make_host, Card(A))
    host.remove("/usr/bin/mstconfig")
    found = of(findings(host, section({"cards": A, "SRIOV_EN": True})))[f"{A}/SRIOV_EN"]
    assert (found.status.value, "Install the package mstflint" in found.message) == ("unknown", True)


# -- devlink --------------------------------------------------------------------------------------


class Devlink:
    """mlx5's permanent parameters (6.18 on), of each PF for itself."""

    def __init__(self, host: FakeHost, *addresses: str, refuses: str = "") -> None:
        self.values = {a: {"enable_sriov": "false", "total_vfs": "0"} for a in addresses}
        self.refuses = refuses
        host.put("/usr/sbin/devlink", "")
        host.remove("/usr/bin/mstconfig")
        host.commands["devlink"] = self.run

    def run(self, argv: Sequence[str]) -> str:
        if argv[1:5] == ["-j", "dev", "param", "show"] or tuple(argv[1:5]) == ("-j", "dev", "param", "show"):
            values = self.values[argv[5].removeprefix("pci/")]
            params = ", ".join(
                f'{{"name":"{n}","type":"generic","values":[{{"cmode":"permanent","value":{v}}}]}}'
                for n, v in values.items()
            )
            return f'{{"param":{{"{argv[5]}":[{params}]}}}}'
        if self.refuses:
            raise failed(self.refuses)
        self.values[argv[4].removeprefix("pci/")][argv[6]] = argv[8]
        return ""


def test_devlink_sets_every_pf_where_there_is_no_tool(make_host: MakeHost, journal: Journal) -> None:
    """R57: from 6.18 on. What it brings is proved by sriov_totalvfs."""
    card = Card(A, B)
    host = machine(make_host, card)
    devlink = Devlink(host, A, B)
    assert apply(host, section(EIGHT), journal).failures == []
    assert devlink.values == {a: {"enable_sriov": "true", "total_vfs": "8"} for a in (A, B)}
    assert set(of(statuses(host, section(EIGHT))).values()) == {"pending-reboot"}
    for address in (A, B):
        host.put(f"{pci.DEVICES}/{address}/sriov_totalvfs", "8\n")
    assert set(statuses(host, section(EIGHT)).values()) == {"pass"}


def test_devlink_is_refused_for_one_port_alone(make_host: MakeHost, journal: Journal) -> None:
    """The other one would lose its VFs: numbers by PF are turned on for the whole card."""
    host = machine(make_host, Card(A, B))
    devlink = Devlink(host, A, B)
    wanted = section({"cards": A, "SRIOV_EN": True, "NUM_OF_VFS": 8})
    apply(host, wanted, journal)
    assert devlink.values[A]["total_vfs"] == "0"
    assert B in of(findings(host, wanted))[f"{A}/total_vfs"].message


def test_devlink_on_a_card_without_numbers_by_pf_says_what_to_use(make_host: MakeHost, journal: Journal) -> None:
    host = machine(make_host, Card(A))
    Devlink(host, A, refuses="kernel answers: SRIOV is not per PF on this device\n")
    [failure] = apply(host, section({"cards": A, "SRIOV_EN": True, "NUM_OF_VFS": 8}), journal).failures
    assert "Install mstflint" in failure.hint


@pytest.mark.parametrize(
    ("entry", "valid"),
    [
        ({"cards": "15b3:1019", "SRIOV_EN": True, "NUM_OF_VFS": ">=8"}, True),
        ({"cards": A, "HOST_CHAINING_DESCRIPTORS[3]": 2}, True),
        ({"SRIOV_EN": True}, False),
        ({"cards": A, "sriov_en": True}, False),
        ({"cards": A, "NUM_OF_VFS": -1}, False),
        ({"cards": A, "NUM_OF_VFS": "8 SRIOV_EN=0"}, False),
        ({"cards": A, "LINK_TYPE_P1\n": "ETH"}, False),
    ],
)
def test_what_a_profile_may_say(entry: dict[str, Any], valid: bool) -> None:
    assert Draft202012Validator(CHECK.SCHEMA).is_valid([entry]) is valid
    assert Path(str(CHECK.__file__)).name == "nic_firmware.py"  # type: ignore[attr-defined]
