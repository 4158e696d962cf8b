"""What nic_firmware says where a card is not as wanted, or will not be set: the sentence that helps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeHost, apply, findings, statuses
from fake_firmware import Card, plug
from fakes import FakeHost, debian

from hostprep import mstconfig, pci
from hostprep.errors import HostError
from hostprep.journal import Journal
from hostprep.model import Finding

A, B = "0000:17:00.0", "0000:17:00.1"
C, D = "0000:65:00.0", "0000:65:00.1"
DEAD = "0000:ca:00.0"
LOCKED = "-E- Failed to open the device\nwrite counter to semaphore: Operation not permitted\n"


def machine(make_host: MakeHost, *cards: Card) -> FakeHost:
    host = make_host(debian())
    plug(host, *cards)
    return host


def found(host: FakeHost, **entry: Any) -> dict[str, Finding]:
    """Findings by parameter, of the first PF."""
    return {name.rpartition("/")[2]: f for name, f in findings(host, {"nic_firmware": {"cards": A, **entry}}).items()}


@pytest.mark.parametrize(
    ("now", "wanted", "later", "writes"), [("ETH(2)", "eth", "ETH(2)", 0), ("ETH(2)", "ib", "IB", 1)]
)
def test_names_of_values_are_compared_without_case(
    make_host: MakeHost, journal: Journal, now: str, wanted: str, later: str, writes: int
) -> None:
    """The tool takes `eth` and shows `ETH`: flash was written at each apply, which then failed."""
    card = Card(A, B, LINK_TYPE_P1=now)
    host = machine(make_host, card)
    assert apply(host, {"nic_firmware": {"cards": A, "LINK_TYPE_P1": wanted}}, journal).failures == []
    assert (len(card.writes), card.next["LINK_TYPE_P1"].startswith(later)) == (writes, True)
    again = list(card.writes)
    apply(host, {"nic_firmware": {"cards": A, "LINK_TYPE_P1": wanted}}, journal)
    assert card.writes == again


def test_of_two_cards_only_the_one_that_refused_is_a_failure(make_host: MakeHost, journal: Journal) -> None:
    weak, strong = Card(A, B, PF_NUM_OF_VF_VALID="False(0)"), Card(C, D)
    host = machine(make_host, weak, strong)
    wanted = [{"cards": A, "NUM_OF_VFS": 128}, {"cards": C, "NUM_OF_VFS": 8}]
    (failure,) = apply(host, {"nic_firmware": wanted}, journal).failures
    assert (failure.name, failure.hint) == (f"nic_firmware/{A}/NUM_OF_VFS", "Ask for at most 127.")
    assert [s.change.key for s in journal.standing()] == [f"{C}/NUM_OF_VFS"]
    assert statuses(host, {"nic_firmware": wanted})[f"nic_firmware/{C}/NUM_OF_VFS"] == "pending-reboot"


def test_two_cards_that_refuse_are_told_one_by_one_with_what_to_do(make_host: MakeHost, journal: Journal) -> None:
    cards = Card(A), Card(C)
    host = machine(make_host, *cards)
    wanted = {"cards": "15b3:*", "NUM_OF_VFS": 128}
    run = host.commands["mstconfig"]

    def refuses(argv: Sequence[str]) -> str:
        if " set " in " ".join(argv) and argv[2] == C:
            raise HostError("the card does not like it", "Ask nicely.")
        assert callable(run)
        return run(argv)

    host.commands["mstconfig"] = refuses
    (failure,) = apply(host, {"nic_firmware": wanted}, journal).failures
    assert f"{A}: mstconfig: Parameter NUM_OF_VFS" in failure.reason
    assert f"{C}: the card does not like it" in failure.reason
    assert failure.hint == f"{A}: Ask for at most 127. {C}: Ask nicely."


@pytest.mark.parametrize("patient", [True, False])
def test_ports_that_share_a_semaphore_share_the_reason(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch, patient: bool
) -> None:
    """The second PF is asked with the little time that the first one left."""
    card = Card(A, B)
    host = machine(make_host, card)
    run = host.commands["mstconfig"]

    def held(argv: Sequence[str]) -> str:
        if B in argv:
            raise HostError("mstconfig: no answer within 1 s (state S in hrtimer_nanosleep)")
        assert callable(run)
        return run(argv)

    host.commands["mstconfig"] = held
    card.trouble = lambda: "-E- Failed to open the device\n"
    monkeypatch.setattr(mstconfig, "patiently", lambda run, limit: run())
    if not patient:  # the first one answers: then what the second one says is all that there is
        card.trouble = None
    told = findings(host, {"nic_firmware": {"cards": "15b3:*", "SRIOV_EN": True, "LINK_TYPE_P1": "ETH"}})
    message = told[f"nic_firmware/{B}/SRIOV_EN"].message
    assert ("clear_semaphore" in message) is patient
    assert ("no answer within 1 s" in message) is not patient


@pytest.mark.parametrize("others", [(), (Card(A),)])
def test_a_card_in_flash_recovery_mode_is_named(make_host: MakeHost, others: Sequence[Card]) -> None:
    """It has its hardware's id, here of a ConnectX-5, so that no selector of the profile matches it."""
    host = machine(make_host, *others)
    host.put("/proc/bus/pci/devices", "1700\t15b31019\t0\nca00\t15b3020d\t0\n")
    for name, text in {"class": "0x050000", "vendor": "0x15b3", "device": "0x020d"}.items():
        host.put(f"{pci.DEVICES}/{DEAD}/{name}", f"{text}\n")
    told = findings(host, {"nic_firmware": {"cards": "15b3:1021", "SRIOV_EN": True}})["nic_firmware/cards 15b3:1021"]
    assert f"In flash recovery mode, without its firmware: {DEAD} (15b3:020d)." in told.message
    assert f"mstflint -d {DEAD} -i IMAGE burn" in told.fix


@pytest.mark.parametrize(
    ("kernel", "devlink", "advice"),
    [
        ("6.1.0", False, "or with a kernel from 6.18 on (devlink)"),
        ("6.18.0", False, "install iproute2"),
        ("6.18.2-generic", True, "devlink on this host does not offer the parameters"),
    ],
)
def test_a_locked_down_host_is_told_of_devlink_what_is_true_there(
    make_host: MakeHost, kernel: str, devlink: bool, advice: str
) -> None:
    card = Card(A)
    card.trouble = lambda: LOCKED
    host = machine(make_host, card)
    host.put("/sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
    host.put("/proc/sys/kernel/osrelease", f"{kernel}\n")
    if devlink:
        host.put("/usr/sbin/devlink", "")
        host.commands["devlink"] = "{}"
    assert advice in found(host, NUM_OF_VFS=8)["total_vfs"].fix


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"SRIOV_EN": "yes"}, "'yes' is text; SRIOV_EN is true or false, without quotes."),
        ({"NUM_OF_VFS": True}, "The value true is no number and no name; NUM_OF_VFS is a number, without quotes."),
        ({"LINK_TYPE_P1": 2}, "2 is a number; LINK_TYPE_P1 has names for its values, and is ETH."),
    ],
)
def test_a_value_of_another_kind_is_told_in_the_words_of_a_profile(
    make_host: MakeHost, wanted: dict[str, Any], message: str
) -> None:
    (name,) = wanted
    assert found(machine(make_host, Card(A)), **wanted)[name].message == message


def test_a_card_of_ethernet_alone_says_so(make_host: MakeHost) -> None:
    told = found(machine(make_host, Card(A, LINK_TYPE_P1=None, LINK_TYPE_P2=None)), LINK_TYPE_P1="IB")["LINK_TYPE_P1"]
    assert (told.status.value, "This card is Ethernet only" in told.message) == ("fail", True)


def test_one_pf_matches(make_host: MakeHost) -> None:
    assert found(machine(make_host, Card(A)), count=2)[f"cards {A}"].message == f"1 PF matches {A}."


def test_sentences_end_once(make_host: MakeHost) -> None:
    host = machine(make_host, Card(A))
    Path(f"{host.root}{pci.DEVICES}/{A}/config").write_bytes(b"\xff" * 4096)
    message = found(host, SRIOV_EN=True)["SRIOV_EN"].message
    assert ("dmesg" in message, ".." in message) == (True, False)
