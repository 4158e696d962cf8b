"""The network of hosts that are recorded, rehearsed or made up: the same questions, the same answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeHost

from hostprep.errors import HostError
from hostprep.host import Host, network, processes
from hostprep.host.network import Link, Vf
from hostprep.host.processes import Namespace, Process
from hostprep.host.record import RecordedHost, Recorder
from hostprep.host.rehearsal import Rehearsal

MakeHost = Callable[..., FakeHost]
NS = Namespace("/run/netns/t1", 4026532177, "/run/netns/t1")
PF = Link(7, "ens9f0np0", ("enp23s0f0np0",), "02:aa:bb:cc:dd:00", 1500, True, True, (Vf(0), Vf(1, vlan=5)), 2)
QUESTIONS: dict[str, tuple[Callable[[Host], Any], Any]] = {
    "links": (lambda host: host.links(["ens9f0np0", "gone"]), {"ens9f0np0": PF}),
    "links there": (lambda host: host.links(["ens9f0np0"], NS.path), {}),
    "addresses": (lambda host: host.addresses(), {"ens9f0np0": ("10.0.0.1/24", "fd00::1/64")}),
    "routes": (lambda host: host.routes(), {"ens9f0np0": ("default",)}),
    "open files": (lambda host: host.open_files(["/dev/vfio/"]), {"/dev/vfio/12": (Process(42, "qemu", "libvirt a"),)}),
    "namespaces": (lambda host: host.namespaces(), [NS]),
    "netdevs": (lambda host: host.netdevs_elsewhere([NS]), {"0000:17:00.2": ("eth0", NS)}),
    "uppers": (lambda host: host.uppers_elsewhere([NS]), {7: (("eth1", "macvlan", NS),)}),
}


def fill(host: FakeHost) -> FakeHost:
    host.link_table["ens9f0np0"] = PF
    host.address_table["ens9f0np0"] = ("10.0.0.1/24", "fd00::1/64")
    host.route_table["ens9f0np0"] = ("default",)
    host.open_file_table = {"/dev/vfio/12": (Process(42, "qemu", "libvirt a"),), "/dev/null": (Process(1, "init", ""),)}
    host.namespace_list = [NS]
    host.elsewhere[NS.path] = FakeHost(Path(host.root) / "t1", {})
    host.netdev_elsewhere_table = {"0000:17:00.2": ("eth0", NS)}
    host.upper_elsewhere_table = {7: (("eth1", "macvlan", NS),)}
    return host


@pytest.fixture
def machine(make_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """A host of tables, which is also what this machine then seems to be."""
    host = fill(make_host({}))
    for name in ("links", "addresses", "routes", "netdevs_elsewhere", "uppers_elsewhere"):
        monkeypatch.setattr(network, name, getattr(host, name))
    for name in ("open_files", "namespaces"):
        monkeypatch.setattr(processes, name, getattr(host, name))
    return host


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("other", ["tables", "recorder", "replay", "rehearsal"])
def test_every_kind_of_host_gives_the_same_answer(machine: FakeHost, tmp_path: Path, question: str, other: str) -> None:
    ask, expected = QUESTIONS[question]
    folder = str(tmp_path / "recording")
    if other == "replay":
        ask(Recorder(folder))
    hosts: dict[str, Callable[[], Host]] = {
        "tables": lambda: machine,
        "recorder": lambda: Recorder(folder),
        "replay": lambda: RecordedHost(folder),
        "rehearsal": lambda: Rehearsal(machine),
    }
    found = ask(hosts[other]())
    assert found == expected
    assert repr(found) == repr(expected)  # tuples, not the lists that JSON makes of them


@pytest.mark.parametrize("question", QUESTIONS)
def test_what_was_not_asked_or_not_answered_is_not_known_in_a_replay(
    machine: FakeHost, tmp_path: Path, question: str
) -> None:
    """Nobody holding a VF, and nobody having been looked for, must not look the same."""
    ask, _ = QUESTIONS[question]
    recorder = Recorder(str(tmp_path / "recording"))
    with pytest.raises(HostError, match="was not recorded"):
        ask(RecordedHost(recorder.into))
    machine.network_error = HostError("needs root")
    with pytest.raises(HostError, match="needs root"):
        ask(recorder)
    machine.network_error = None
    with pytest.raises(HostError, match="needs root"):
        ask(RecordedHost(recorder.into))
    (tmp_path / "tree").mkdir()  # a plain tree of files has no running kernel to ask
    with pytest.raises(HostError, match="was not recorded"):
        ask(RecordedHost(str(tmp_path / "tree")))


CHANGES: list[tuple[Callable[[Host], None], str, Link]] = [
    (
        lambda host: host.set_link("ens9f0np0", up=True, mtu=9000),
        "ip link set dev ens9f0np0 mtu 9000 up",
        PF._replace(mtu=9000),
    ),
    (lambda host: host.set_link("ens9f0np0", up=False), "ip link set dev ens9f0np0 down", PF._replace(up=False)),
    (
        lambda host: host.set_vf("ens9f0np0", 1, mac="02:00:00:00:00:01", trust=True, spoofchk=False),
        "ip link set dev ens9f0np0 vf 1 mac 02:00:00:00:00:01 spoofchk off trust on",
        PF._replace(vfs=(Vf(0), Vf(1, "02:00:00:00:00:01", 5, trust=True, spoofchk=False))),
    ),
    (
        lambda host: host.set_vf("ens9f0np0", 0, vlan=100, qos=3, proto="802.1ad"),
        "ip link set dev ens9f0np0 vf 0 vlan 100 qos 3 proto 802.1ad",
        PF._replace(vfs=(Vf(0, vlan=100, qos=3, proto="802.1ad"), Vf(1, vlan=5))),
    ),
    (
        lambda host: host.set_vf("ens9f0np0", 0, link="enable", min_rate=0, max_rate=1000),
        "ip link set dev ens9f0np0 vf 0 min_tx_rate 0 max_tx_rate 1000 state enable",
        PF._replace(vfs=(Vf(0, link="enable", max_rate=1000), Vf(1, vlan=5))),
    ),
]


@pytest.mark.parametrize(("change", "command", "then"), CHANGES)
def test_a_rehearsal_shows_the_command_and_the_change_does_what_it_shows(
    machine: FakeHost, change: Callable[[Host], None], command: str, then: Link
) -> None:
    rehearsal = Rehearsal(machine)
    change(rehearsal)
    assert [step.command for step in rehearsal.steps] == [command]
    assert machine.links(["ens9f0np0"]) == {"ens9f0np0": PF}
    change(machine)
    assert machine.ran == [command]
    assert machine.links(["ens9f0np0"]) == {"ens9f0np0": then}


def test_a_change_in_another_namespace_is_shown_with_how_to_get_there(machine: FakeHost) -> None:
    rehearsal = Rehearsal(machine)
    rehearsal.set_link("eth0", mtu=9000, netns=NS.path)
    assert rehearsal.steps[0].command == f"nsenter --net={NS.path} ip link set dev eth0 mtu 9000"


def test_a_recorded_host_is_not_changed(tmp_path: Path) -> None:
    """Else this machine's interface of the same name would be."""
    for change, *_ in CHANGES:
        with pytest.raises(HostError, match="a recorded host cannot be changed"):
            change(RecordedHost(str(tmp_path)))
