"""VFs, rule by rule: what kernels and drivers insist on, and what other tools got wrong."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeHost, apply, findings, statuses
from fake_sriov import SriovHost
from fakes import debian
from test_nic_vfs import NETPLAN, PF0, PF1, RECORD, taken_back, wanting

import hostprep.__main__ as entry
from hostprep import commands, registry
from hostprep.errors import CommandFailed, HostError
from hostprep.journal import Journal
from hostprep.model import Change, Facts
from hostprep.pci import DEVICES
from hostprep.sriov import vfs


@pytest.fixture
def host(tmp_path: Path) -> SriovHost:
    made = SriovHost(tmp_path / "root", debian())
    made.pf(PF0, "ens9f0np0")
    made.pf(PF1, "ens9f1np1")
    return made


def look(host: SriovHost) -> Facts:
    facts: Facts = registry.load(["nic_vfs"])["nic_vfs"].inspect(host)
    return facts


def at_boot(host: SriovHost) -> list[Change]:
    check = registry.recreating(registry.load(["nic_vfs"])["nic_vfs"])
    assert check is not None
    return list(check.at_boot(look(host)))


def driver(host: SriovHost, index: int) -> str:
    return (host.link(f"{DEVICES}/{host.vfs(PF0)[index]}/driver") or "").rpartition("/")[2]


# -- counting and making --------------------------------------------------------------------------


def test_r6_sriov_numvfs_is_never_read(host: SriovHost, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """spdk#3205: from Linux 5.5 to 6.9 a reader of it waits for ever behind a stuck writer."""
    apply(host, wanting(2), journal)
    read = host.read_bytes

    def watched(path: str) -> bytes | None:
        assert not path.endswith("sriov_numvfs")
        return read(path)

    monkeypatch.setattr(host, "read_bytes", watched)
    assert look(host)[f"{PF0}/vfs"].current == 2


def test_r11_the_pf_is_up_before_it_makes_vfs(host: SriovHost, journal: Journal, monkeypatch: Any) -> None:
    """systemd#40739, lxd#5041: bnxt and ixgbe make none of a PF that is down."""
    write = host.write

    def watched(path: str, text: str, timeout: float = 60) -> None:
        assert not path.endswith("numvfs") or host.link_table["ens9f0np0"].up
        write(path, text, timeout)

    monkeypatch.setattr(host, "write", watched)
    assert apply(host, wanting(2), journal).failures == []


def test_one_pf_that_fails_leaves_all_as_they_were_and_the_next_apply_makes_them(
    host: SriovHost, journal: Journal, monkeypatch: Any
) -> None:
    write = host.write

    def refusing(path: str, text: str, timeout: float = 60) -> None:
        if path == f"{DEVICES}/{PF1}/sriov_numvfs" and text != "0":
            raise HostError(f"{path}: {errno.ENOMEM}", code=errno.ENOMEM)
        write(path, text, timeout)

    both = {"nic_vfs": [{"pf": "15b3:1019", "vfs": 4}]}
    monkeypatch.setattr(host, "write", refusing)
    (failure,) = apply(host, both, journal).failures
    assert "pci=realloc" in failure.hint
    assert (host.vfs(PF0), host.vfs(PF1), host.read(RECORD)) == ([], [], None)
    monkeypatch.setattr(host, "write", write)
    assert apply(host, both, journal).failures == []
    assert set(statuses(host, both).values()) == {"pass"}


def test_settings_of_a_pf_count_where_no_vfs_are_wanted(host: SriovHost) -> None:
    found = statuses(host, wanting(0, mtu=9000))
    assert found[f"nic_vfs/{PF0}/mtu"] == "fail"


@pytest.mark.parametrize("fewer", [0, 2])
def test_the_record_forgets_vfs_that_there_will_be_no_more(host: SriovHost, journal: Journal, fewer: int) -> None:
    """sriov-network-operator#852 and #1124: files of VFs that were gone stayed, and failed at every boot."""
    apply(host, wanting(4, mac="derived"), journal)
    assert apply(host, wanting(fewer, **({"mac": "derived"} if fewer else {})), journal).failures == []
    host.drop(PF0)
    of_vfs = {c.key.partition("/")[2] for c in at_boot(host)} - {"up", "vfs"}
    assert of_vfs == {f"vf{i}/mac" for i in range(fewer)}


def test_a_device_without_sr_iov_is_not_promised_vfs_at_the_next_boot(host: SriovHost, journal: Journal) -> None:
    host.pf("0000:65:00.0", "ens7", ids="8086:1533", total=None, driver="igb")
    found = findings(host, wanting(4, "ens7"))["nic_vfs/0000:65:00.0/vfs"]
    assert "no SR-IOV capability" in found.message
    apply(host, wanting(4, "ens7"), journal)
    assert (host.wrote, host.read(RECORD)) == ([], None)


# -- setting VFs ----------------------------------------------------------------------------------


def test_a_qos_alone_leaves_the_vlan_and_a_vlan_alone_the_qos(host: SriovHost, journal: Journal) -> None:
    apply(host, wanting(1, vlan={"id": 100, "qos": 0}), journal)
    for vlan, qos in ((100, 3), (200, 3)):
        want = wanting(1, vlan={"id": vlan, "qos": qos})
        assert apply(host, want, journal).failures == []
        assert host.link_table["ens9f0np0"].vfs[0][2:4] == (vlan, qos)
        assert set(statuses(host, want).values()) == {"pass"}


def test_what_a_driver_does_not_take_again_does_not_undo_what_was_wanted(host: SriovHost, journal: Journal) -> None:
    apply(host, wanting(2), journal)
    host.set_vf("ens9f0np0", 0, vlan=77)

    def no_vlans(name: str, index: int, wanted: dict[str, Any]) -> None:
        if wanted.get("vlan"):
            raise HostError("Operation not supported", code=errno.EOPNOTSUPP)

    host.refuse_vf = no_vlans
    assert apply(host, wanting(4, trust=True), journal).failures == []
    assert [vf.trust for vf in host.link_table["ens9f0np0"].vfs] == [True] * 4


def test_r24_of_an_infiniband_pf_no_address_is_derived(host: SriovHost, journal: Journal) -> None:
    host.link_table["ens9f0np0"] = host.link_table["ens9f0np0"]._replace(mac=":".join(["80"] * 20))
    found = findings(host, wanting(1, mac="derived"))[f"nic_vfs/{PF0}/vf0/mac"]
    assert "no Ethernet address" in found.message
    apply(host, wanting(1, mac="derived"), journal)
    assert "derived" not in (host.read(RECORD) or "")


def test_r20_an_rdma_device_without_a_node_guid_is_not_ready_and_is_probed_again(
    host: SriovHost, journal: Journal
) -> None:
    """openshift/sriov-network-operator#219: rdma_cm does not work over it."""
    want = wanting(2, mac="derived")
    apply(host, want, journal)
    vf = host.vfs(PF0)[1]
    host.put("/sys/class/infiniband/mlx5_3", f"-> ../../bus/pci/devices/{vf}/infiniband/mlx5_3")
    host.put(f"{DEVICES}/{vf}/infiniband/mlx5_3/node_guid", "0000:0000:0000:0000\n")
    found = findings(host, want)[f"nic_vfs/{PF0}/vf1/guid"]
    assert (found.status.value, "rdma_cm" in found.message) == ("fail", True)
    assert f"nic_vfs/{PF0}/vf1/guid" not in statuses(host, wanting(2))
    host.wrote.clear()
    apply(host, want, journal)
    assert host.wrote[0] == f"drivers/mlx5_core/unbind={vf}"
    host.put(f"{DEVICES}/{vf}/infiniband/mlx5_3/node_guid", "0200:01ff:fe00:0002\n")
    assert set(statuses(host, want).values()) == {"pass"}


# -- drivers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_vf0", ["vfio-pci", "none"])
def test_r25_beside_vfs_with_drivers_of_their_own_the_others_need_one_too(
    host: SriovHost, journal: Journal, of_vf0: str
) -> None:
    want = wanting(3, each={"0": {"driver": of_vf0}})
    assert apply(host, want, journal).failures == []
    assert [driver(host, i) for i in range(3)] == [of_vf0.replace("none", ""), "mlx5_core", "mlx5_core"]
    assert set(statuses(host, want).values()) == {"pass"}
    host.remove(f"{DEVICES}/{host.vfs(PF0)[2]}/driver")
    assert statuses(host, want)[f"nic_vfs/{PF0}/bound"] != "pass"


def test_autoprobe_off_and_a_driver_bind_the_vfs_all_the_same(host: SriovHost, journal: Journal) -> None:
    want = wanting(2, autoprobe=False, driver="mlx5_core")
    assert apply(host, want, journal).failures == []
    assert set(statuses(host, want).values()) == {"pass"}
    assert host.number(f"{DEVICES}/{PF0}/sriov_drivers_autoprobe") == 0


@pytest.mark.parametrize("back", ["mlx5_core", "none"])
def test_r27_no_override_stays_behind_vfio(host: SriovHost, journal: Journal, back: str) -> None:
    apply(host, wanting(1, driver="vfio-pci"), journal)
    override = f"{DEVICES}/{host.vfs(PF0)[0]}/driver_override"
    assert host.read(override) == "vfio-pci"
    assert apply(host, wanting(1, driver=back), journal).failures == []
    assert (driver(host, 0), host.read(override)) == (back.replace("none", ""), "")


def test_r27_a_probe_that_fails_and_yet_binds_has_bound(host: SriovHost, journal: Journal, monkeypatch: Any) -> None:
    apply(host, wanting(1), journal)
    write = host.write

    def failing(path: str, text: str, timeout: float = 60) -> None:
        write(path, text, timeout)
        if path == vfs.PROBE:
            raise HostError(f"{path}: Invalid argument", code=errno.EINVAL)

    monkeypatch.setattr(host, "write", failing)
    vfs.bind(host, host.vfs(PF0)[0], "vfio-pci")
    assert driver(host, 0) == "vfio-pci"


# -- the embedded switch --------------------------------------------------------------------------


def switch(host: SriovHost, error: str = "") -> dict[str, str]:
    """Give PF0 an embedded switch; what is done to it is among what was written."""
    modes = {PF0: "legacy"}

    def devlink(argv: Sequence[str]) -> str:
        address = next(word for word in argv if word.startswith("pci/")).removeprefix("pci/")
        if "show" in argv and address in modes:
            return f'{{"dev": {{"pci/{address}": {{"mode": "{modes[address]}"}}}}}}'
        if error or address not in modes:
            raise CommandFailed("devlink: exit 1", status=1, output=error or "kernel answers: Operation not supported")
        host.wrote.append(" ".join(argv[-2:]))
        if argv[-2] == "mode":
            modes[address] = argv[-1]
            host.link_table["ens9f0np0"] = host.link_table["ens9f0np0"]._replace(up=False, mtu=1500)
        return ""

    host.commands["devlink"] = devlink
    return modes


def order(host: SriovHost) -> list[str]:
    """What was done, as words: of a VF with a driver, only that it got or lost it."""
    words = {"sriov_numvfs": "vfs", "drivers_probe": "bind", "unbind": "unbind"}
    found = []
    for line in host.wrote:
        name, _, value = line.partition("=")
        word = words.get(name.rpartition("/")[2], line if line.startswith(("mode", "inline")) else "")
        found += [f"{word} {value}" if word == "vfs" else word] * bool(word)
    return list(dict.fromkeys(found))


@pytest.mark.parametrize(
    ("ids", "driver", "expected"),
    [
        ("15b3:1019", "mlx5_core", ["vfs 2", "mode switchdev", "bind"]),
        ("15b3:1015", "mlx5_core", ["vfs 2", "inline-mode transport", "mode switchdev", "bind"]),
        ("8086:1592", "ice", ["mode switchdev", "vfs 2", "bind"]),
    ],
)
def test_r35_r39_vfs_and_the_switch_come_in_the_order_that_the_driver_needs(
    tmp_path: Path, journal: Journal, ids: str, driver: str, expected: list[str]
) -> None:
    """sriov-network-operator#1015 and #1019: switchdev before the VFs were there."""
    host = SriovHost(tmp_path / "other", debian())
    host.pf(PF0, "ens9f0np0", ids=ids, driver=driver)
    switch(host)
    want = wanting(2, eswitch="switchdev", mtu=9000)
    assert apply(host, want, journal).failures == []
    assert order(host) == expected
    assert (host.link_table["ens9f0np0"].up, host.link_table["ens9f0np0"].mtu) == (True, 9000)
    assert set(statuses(host, want).values()) == {"pass"}
    host.wrote.clear()
    assert taken_back(host, journal).failures == []
    assert order(host) == ["vfs 0", "mode legacy"]


def test_r36_a_switch_that_does_not_change_leaves_vfs_their_drivers(host: SriovHost, journal: Journal) -> None:
    """netplan 32b19b8f: EBUSY, since the PF was in a bond."""
    apply(host, wanting(2), journal)
    switch(host, "kernel answers: Device or resource busy")
    failure = apply(host, wanting(2, eswitch="switchdev"), journal).failures[0]
    assert "eswitch switchdev" in failure.reason
    assert "bond" in failure.hint
    assert [driver(host, i) for i in range(2)] == ["mlx5_core"] * 2


def test_a_driver_without_a_switch_is_asked_for_none_and_none_is_recorded(host: SriovHost, journal: Journal) -> None:
    found = findings(host, wanting(1, eswitch="legacy"))[f"nic_vfs/{PF0}/eswitch"]
    assert "no embedded switch" in found.message
    apply(host, wanting(1, eswitch="legacy"), journal)
    assert "eswitch" not in (host.read(RECORD) or "")


# -- in use, and owned by others ------------------------------------------------------------------


@pytest.mark.parametrize(("key", "more"), [("up", {"up": False}), ("mtu", {"mtu": 9000})])
def test_r13_r134_a_pf_in_use_is_neither_set_down_nor_given_another_mtu_unasked(
    host: SriovHost, key: str, more: dict[str, Any]
) -> None:
    host.link_table["ens9f0np0"] = host.link_table["ens9f0np0"]._replace(up=True)
    host.route_table["ens9f0np0"] = ("default",)
    found = findings(host, wanting(1, **more))[f"nic_vfs/{PF0}/{key}"]
    assert found.desired is not None
    assert "default route" in found.desired.disrupts
    assert "--allow-disruption" in found.fix


def test_r13_a_pf_that_somebody_uses_by_now_is_not_set_down_by_a_revert(host: SriovHost, journal: Journal) -> None:
    apply(host, wanting(1, mtu=9000), journal)
    host.address_table["ens9f0np0"] = ("10.0.0.5/24",)
    failures = taken_back(host, journal).failures
    assert any("10.0.0.5/24" in f.reason for f in failures)
    assert (host.link_table["ens9f0np0"].up, host.link_table["ens9f0np0"].mtu) == (True, 9000)


def test_r111_at_boot_vfs_that_others_make_are_there_before_they_are_set(host: SriovHost, journal: Journal) -> None:
    """As many as the other would make: it finds them so, and writes nothing (R1)."""
    host.put("/etc/netplan/50-site.yaml", NETPLAN.format(4))
    host.put("/usr/lib/systemd/system-generators/netplan", "-> ../../../libexec/netplan/generate")
    host.write(f"{DEVICES}/{PF0}/sriov_numvfs", "4")
    assert apply(host, wanting(4, trust=True), journal).failures == []
    assert '"vfs"' not in (host.read(RECORD) or "")
    host.drop(PF0)
    assert {c.key.partition("/")[2]: c.after for c in at_boot(host) if "trust" not in c.key} == {"vfs": 4, "up": True}
    host.write(f"{DEVICES}/{PF0}/sriov_numvfs", "2")
    assert f"{PF0}/vfs" not in {c.key for c in at_boot(host)}, "what the other has made is left to it"


def test_what_is_wanted_of_vfs_that_cannot_be_made_is_not_tried(host: SriovHost, journal: Journal) -> None:
    host.pf("0000:65:00.0", "ens7np0", total=None)
    assert apply(host, wanting(4, "ens7np0", mac="derived"), journal).failures == []
    apply(host, wanting(2), journal)
    host.address_table["ens9f0v1"] = ("192.168.20.11/24",)
    refused = apply(host, wanting(4, mac="derived"), journal)
    assert [f.name for f in refused.failures] == []
    assert {vf.mac for vf in host.link_table["ens9f0np0"].vfs if vf.index == 0} == {"02:00:00:00:00:02"}


def test_a_selector_that_matches_nothing_known_is_never_passed_over(host: SriovHost) -> None:
    """Where the names of one PF cannot be read, a name may be another's: unknown, and not ready."""
    del host.link_table["ens9f1np1"]
    want = {"nic_vfs": [{"pf": "ens99", "vfs": 8}, {"pf": "ens9f0np0", "vfs": 0, "up": False}]}
    assert statuses(host, want)["nic_vfs/pf ens99"] == "unknown"


@pytest.mark.parametrize(
    ("span", "said", "fix"),
    [("7-4", "counts backwards", "4-7"), ("2-9", "8 VFs: 0 to 7", ""), ("8", "8 VFs: 0 to 7", "")],
)
def test_a_range_of_vfs_that_is_none_is_told(host: SriovHost, span: str, said: str, fix: str) -> None:
    found = findings(host, wanting(8, each={span: {"vlan": 5}}))[f"nic_vfs/{PF0}/each {span}"]
    assert found.status.value == "fail"
    assert said in found.message
    assert fix in found.fix


def test_of_several_entries_what_a_later_one_says_of_a_setting_counts(host: SriovHost, journal: Journal) -> None:
    want = {
        "nic_vfs": [
            {"pf": "15b3:*", "vfs": 2, "vlan": 7, "each": {"0": {"trust": True, "vlan": 9}, "1": {"trust": True}}},
            {"pf": PF0, "vfs": 4, "each": {"0": {"spoofchk": False}, "0-3": {"max_rate": 10}, "3": {"max_rate": 20}}},
            {"pf": PF0, "vfs": 4, "vlan": 8},
        ]
    }
    assert apply(host, want, journal).failures == []
    vfs = host.link_table["ens9f0np0"].vfs
    assert [(vf.vlan, vf.trust, vf.spoofchk, vf.max_rate) for vf in vfs] == [
        (8, True, False, 10),
        (8, True, True, 10),
        (8, False, True, 10),
        (8, False, True, 20),
    ]


def test_no_vfs_are_what_a_device_without_sr_iov_has(make_host: MakeHost) -> None:
    host = make_host(debian() | {f"{DEVICES}/0000:00:03.0/class": "0x020000\n"})
    assert set(statuses(host, wanting(0, "0000:00:03.0")).values()) == {"pass"}


def test_what_the_profile_no_longer_speaks_of_leaves_the_record(host: SriovHost, journal: Journal) -> None:
    apply(host, wanting(4, each={"2-3": {"driver": "vfio-pci"}}, mtu=9000), journal)
    assert '"vf2/driver": "vfio-pci"' in (host.read(RECORD) or "")
    told = findings(host, wanting(4, mtu=9000))[f"nic_vfs/{PF0}/vf2/driver"]
    assert "An earlier profile asked for it" in told.message
    assert apply(host, wanting(4, mtu=9000), journal).failures == []
    assert "driver" not in (host.read(RECORD) or "")
    assert '"mtu": 9000' in (host.read(RECORD) or "")
    assert set(statuses(host, wanting(4, mtu=9000)).values()) == {"pass"}


def test_a_plan_that_makes_vfs_leaves_their_drivers_to_nobody(
    host: SriovHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "Host", lambda: host)
    path = tmp_path / "profile.yaml"
    path.write_text(json.dumps({"name": "node", **wanting(2)}))
    assert entry.run(["plan", "--profile", str(path)]) == 1
    said = capsys.readouterr().out
    assert f"{PF0}/vfs: 0 -> 2" in said
    assert "Left to you" not in said
