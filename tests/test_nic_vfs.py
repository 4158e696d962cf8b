"""VFs: counted, made, set and kept over reboots. Rows K10 to K12 and K18; the kernel's rules R1 to R36."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import apply, examine, findings, statuses
from fake_sriov import SriovHost
from fakes import FakeHost, debian

from hostprep import registry
from hostprep.errors import HostError
from hostprep.host.network import Link
from hostprep.host.processes import Namespace, Process
from hostprep.journal import Journal
from hostprep.model import Facet, Unknown
from hostprep.pci import DEVICES
from hostprep.perform import Performer
from hostprep.revert import revert

PF0, PF1 = "0000:17:00.0", "0000:17:00.1"
RECORD = "/etc/hostprep/boot/nic_vfs.json"


@pytest.fixture
def host(tmp_path: Path) -> SriovHost:
    """The sample machine of OpenKasugai: a dual-port ConnectX-5 Ex whose firmware offers 8 VFs a port."""
    made = SriovHost(tmp_path / "root", debian())
    made.pf(PF0, "ens9f0np0", altnames=("enp23s0f0np0",))
    made.pf(PF1, "ens9f1np1")
    return made


def wanting(vfs: int = 8, pf: str = "ens9f0np0", **more: Any) -> dict[str, Any]:
    return {"nic_vfs": [{"pf": pf, "vfs": vfs, **more}]}


def taken_back(host: SriovHost, journal: Journal) -> Performer:
    performer = Performer(host, registry.load(["nic_vfs"]), journal, lambda line: None)
    revert(performer)
    return performer


# -- how many -------------------------------------------------------------------------------------


def test_k11_k12_sixteen_vfs_on_two_ports_are_made_and_made_again_at_boot(host: SriovHost, journal: Journal) -> None:
    both = {"nic_vfs": [{"pf": "ens9f0np0", "vfs": 8}, {"pf": "enp23s0f1np1", "vfs": 8}, {"pf": PF1, "vfs": 8}]}
    host.link_table["ens9f1np1"] = host.link_table["ens9f1np1"]._replace(altnames=("enp23s0f1np1",))
    assert statuses(host, both)[f"nic_vfs/{PF0}/vfs"] == "fail"
    assert apply(host, both, journal).failures == []
    assert set(statuses(host, both).values()) == {"pass"}
    assert [len(host.vfs(pf)) for pf in (PF0, PF1)] == [8, 8]
    host.drop(PF0)
    host.drop(PF1)
    after_boot = findings(host, both)
    assert {f.status.value for f in after_boot.values()} == {"pending-reboot"}
    assert after_boot[f"nic_vfs/{PF0}/vfs"].fact.next_boot == 8


def test_what_is_so_already_is_not_written_again(host: SriovHost, journal: Journal) -> None:
    """os-net-config 23d97d3: applying the same again took VFs from their drivers."""
    want = wanting(mac="derived", trust=True, mtu=9000)
    apply(host, want, journal)
    host.wrote.clear()
    host.ran.clear()
    before = host.snapshot()
    assert apply(host, want, journal).failures == []
    assert (host.wrote, [r for r in host.ran if "set" in r.split()]) == ([], [])
    assert host.snapshot() == before


def test_r1_from_n_to_m_goes_through_none(host: SriovHost, journal: Journal) -> None:
    apply(host, wanting(4), journal)
    host.wrote.clear()
    assert apply(host, wanting(8), journal).failures == []
    assert [w for w in host.wrote if "numvfs" in w] == [f"{PF0}/sriov_numvfs=0", f"{PF0}/sriov_numvfs=8"]


def test_a_bigger_number_keeps_what_vfs_were_set_to(host: SriovHost, journal: Journal) -> None:
    apply(host, wanting(4), journal)
    host.set_vf("ens9f0np0", 2, mac="02:aa:aa:aa:aa:aa", vlan=77)
    assert apply(host, wanting(8), journal).failures == []
    vf = host.link_table["ens9f0np0"].vfs[2]
    assert (vf.mac, vf.vlan) == ("02:aa:aa:aa:aa:aa", 77)


def test_r2_fewer_vfs_than_asked_for_is_a_failure_and_is_put_back(host: SriovHost, journal: Journal) -> None:
    host.short = 2
    (failure,) = apply(host, wanting(), journal).failures
    assert f"{PF0}: asked for 8 VFs, and the kernel has 6" in failure.reason
    assert host.vfs(PF0) == []


@pytest.mark.parametrize(
    ("code", "said", "hint"),
    [
        (errno.ENOMEM, "address space", "pci=realloc"),
        (errno.ENOENT, "no driver", "modprobe"),
        (errno.EIO, "inconsistent", "Power-cycle"),
        (errno.ENOSPC, "resources", "fewer"),
        (errno.EROFS, "read-only", "container"),
        (errno.EBUSY, "already", "hostprep check"),
    ],
)
def test_r3_an_errno_of_the_kernel_becomes_a_cause_and_a_remedy(
    host: SriovHost, journal: Journal, code: int, said: str, hint: str
) -> None:
    """openshift-docs#32619: `write error: Cannot allocate memory` told nobody about the BIOS."""
    host.numvfs_error = code
    (failure,) = apply(host, wanting(), journal).failures
    assert said in failure.reason
    assert hint in failure.hint


def test_a_stuck_driver_is_said_to_be_stuck(host: SriovHost, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """sriov-network-operator a3c884fe3: i40e blocked a writer for ever."""

    def stuck(path: str, text: str, timeout: float = 60) -> None:
        raise HostError(f"{path}: no answer within {timeout:g} s (state D in i40e_pci_sriov_configure)")

    monkeypatch.setattr(host, "write", stuck)
    (failure,) = [f for f in apply(host, wanting(), journal).failures if "could not be put back" not in f.reason]
    assert "state D in i40e_pci_sriov_configure" in failure.reason
    assert "until the host has rebooted" in failure.hint


def test_r7_without_sr_iov_in_firmware_nothing_is_tried_and_the_next_boot_is_prepared(
    host: SriovHost, journal: Journal
) -> None:
    host.pf("0000:65:00.0", "ens7np0", total=None)
    want = wanting(8, "ens7np0")
    found = findings(host, want)["nic_vfs/0000:65:00.0/vfs"]
    assert "SR-IOV is off" in found.message
    assert "nic_firmware" in found.fix
    assert apply(host, want, journal).failures == []
    later = findings(host, want)["nic_vfs/0000:65:00.0/vfs"]
    assert (later.status.value, later.fact.next_boot) == ("fail", 8), "no boot alone brings what the firmware does not"
    assert ("SR-IOV is off" in later.message, "nic_firmware" in later.fix) == (True, True)
    with_more = findings(host, {**want, "hugepages": {"2MiB": 8}, "swap": "disabled"})
    assert with_more["nic_vfs/0000:65:00.0/vfs"].status.value == "fail"


def test_r7_without_sr_iov_what_is_set_beside_the_vfs_waits_for_the_firmware_too(
    host: SriovHost, journal: Journal
) -> None:
    """The kernel shows sriov_drivers_autoprobe only of a device with the capability (drivers/pci/iov.c)."""
    host.pf("0000:65:00.0", "ens7np0", total=None)
    want = {"nic_vfs": [{"pf": "ens7np0", "vfs": 4, "driver": "none", "autoprobe": False, "eswitch": "legacy"}]}
    assert apply(host, want, journal).failures == []
    for key in ("autoprobe", "eswitch"):
        found = findings(host, want)[f"nic_vfs/0000:65:00.0/{key}"]
        assert (found.status.value, found.fact.next_boot) == ("fail", want["nic_vfs"][0][key])
        assert ("SR-IOV is off" in found.message, "nic_firmware" in found.fix) == (True, True)


def test_more_than_the_device_offers_is_refused_before_it_is_written(host: SriovHost, journal: Journal) -> None:
    found = findings(host, wanting(9))[f"nic_vfs/{PF0}/vfs"]
    assert "offers 8 VFs" in found.message
    apply(host, wanting(9), journal)
    assert host.wrote == []


def test_selecting_nothing_or_another_number_is_a_finding_that_names_what_is_there(host: SriovHost) -> None:
    found = findings(host, wanting(pf="15b3:1017"))["nic_vfs/pf 15b3:1017"]
    assert found.status.value == "fail"
    assert "There is 0000:17:00.0 (15b3:1019, mlx5_core, ens9f0np0, enp23s0f0np0)" in found.message
    assert statuses(host, wanting(pf="15b3:1019", count=3))["nic_vfs/pf 15b3:1019"] == "fail"
    assert statuses(host, wanting(pf="15b3:1019", count=2))["nic_vfs/pf 15b3:1019"] == "pass"


def test_revert_leaves_the_host_as_it_was_found(host: SriovHost, journal: Journal) -> None:
    before = host.snapshot()
    apply(host, wanting(mac="derived", mtu=9000), journal)
    assert taken_back(host, journal).failures == []
    after = host.snapshot()
    assert {p: f for p, f in after.items() if "17:0" not in p} == {p: f for p, f in before.items() if "17:0" not in p}
    assert host.vfs(PF0) == []
    assert host.link_table["ens9f0np0"].mtu == 1500
    assert not host.link_table["ens9f0np0"].up


# -- how they are set -----------------------------------------------------------------------------


def test_attributes_are_set_before_a_driver_reads_them(host: SriovHost, journal: Journal) -> None:
    """sriov-cni#232, openshift/sriov-network-operator#219: an mlx5 VF that was probed first keeps a zero GUID."""
    want = wanting(3, mac="derived", vlan={"id": 100, "qos": 3}, trust=True, spoofchk=False, max_rate=1000)
    assert apply(host, want, journal).failures == []
    assert set(statuses(host, want).values()) == {"pass"}
    vfs = host.link_table["ens9f0np0"].vfs
    assert [vf.mac for vf in vfs] == [f"02:00:0{i}:00:00:02" for i in range(3)]
    assert {(vf.vlan, vf.qos, vf.trust, vf.spoofchk, vf.max_rate) for vf in vfs} == {(100, 3, True, False, 1000)}
    order = [w.partition("=")[0].rpartition("/")[2] + "=" + w.partition("=")[2][:1] for w in host.wrote]
    assert order[:3] == ["sriov_drivers_autoprobe=0", "sriov_numvfs=3", "sriov_drivers_autoprobe=1"]
    assert order.count("drivers_probe=0") == 3
    assert host.number(f"{DEVICES}/{PF0}/sriov_drivers_autoprobe") == 1


def test_single_vfs_may_differ_and_a_range_beyond_the_last_is_told(host: SriovHost, journal: Journal) -> None:
    want = wanting(4, vlan=100, each={"0": {"mac": "02:11:22:33:44:55"}, "2-3": {"vlan": 200, "driver": "vfio-pci"}})
    assert apply(host, want, journal).failures == []
    vfs = host.link_table["ens9f0np0"].vfs
    assert [vf.vlan for vf in vfs] == [100, 100, 200, 200]
    assert vfs[0].mac == "02:11:22:33:44:55"
    drivers = [(host.link(f"{DEVICES}/{vf}/driver") or "").rpartition("/")[2] for vf in host.vfs(PF0)]
    assert drivers == ["mlx5_core", "mlx5_core", "vfio-pci", "vfio-pci"]
    assert set(statuses(host, want).values()) == {"pass"}
    beyond = findings(host, wanting(4, each={"2-5": {"vlan": 1}}))["nic_vfs/" + f"{PF0}/each 2-5"]
    assert beyond.status.value == "fail"
    assert "0 to 3" in beyond.message


def test_vfs_for_vfio_never_show_up_as_interfaces(host: SriovHost, journal: Journal) -> None:
    assert apply(host, wanting(4, driver="vfio-pci"), journal).failures == []
    assert set(statuses(host, wanting(4, driver="vfio-pci")).values()) == {"pass"}
    assert host.names("/sys/class/net") == ["ens9f0np0", "ens9f1np1", "eth0"]
    assert not [w for w in host.wrote if "unbind" in w]


def test_r9_vfs_without_drivers_are_as_wanted_where_the_profile_says_so(host: SriovHost, journal: Journal) -> None:
    """nmstate 3fcf1386: with autoprobe off no VF interface is legal."""
    want = wanting(4, autoprobe=False)
    assert apply(host, want, journal).failures == []
    assert set(statuses(host, want).values()) == {"pass"}


def test_r25_a_vf_that_no_driver_takes_is_not_ready(host: SriovHost, journal: Journal) -> None:
    host.failing_probe.add("0000:17:00.3")
    apply(host, wanting(4), journal)
    found = findings(host, wanting(4))[f"nic_vfs/{PF0}/bound"]
    assert (found.status.value, found.fact.current) == ("fail", 3), "no boot gives it a driver, so none is asked for"
    assert found.fix == "hostprep apply --only nic_vfs"
    host.failing_probe.clear()
    assert apply(host, wanting(4), journal).failures == []
    assert set(statuses(host, wanting(4)).values()) == {"pass"}


def test_a_new_address_makes_the_driver_read_it(host: SriovHost, journal: Journal) -> None:
    apply(host, wanting(2), journal)
    host.wrote.clear()
    assert apply(host, wanting(2, each={"1": {"mac": "02:00:00:00:00:99"}}), journal).failures == []
    assert "drivers/mlx5_core/unbind=0000:17:00.3" in host.wrote
    assert (host.link(f"{DEVICES}/0000:17:00.3/driver") or "").endswith("mlx5_core")
    assert not [w for w in host.wrote if "numvfs" in w]


def test_r26_what_a_driver_cannot_set_is_told_and_nothing_stays_half_done(host: SriovHost, journal: Journal) -> None:
    def no_rates(name: str, index: int, wanted: dict[str, Any]) -> None:
        if wanted.get("max_rate"):
            raise HostError("Operation not supported", code=errno.EOPNOTSUPP)

    host.refuse_vf = no_rates
    assert apply(host, wanting(2, max_rate=0), journal).failures == []  # os-net-config 44eab22: 0 is what it is
    (failure,) = apply(host, wanting(4, max_rate=100), journal).failures
    assert "VF 0: max_rate 100: Operation not supported" in failure.reason
    assert len(host.vfs(PF0)) == 2


@pytest.mark.parametrize(("now", "writes"), [(1500, True), (9000, False), (9216, False)])
def test_r134_an_mtu_is_raised_and_never_lowered(host: SriovHost, journal: Journal, now: int, writes: bool) -> None:
    """sriov-network-operator#700: an MTU above the wanted one was lowered without end."""
    host.link_table["ens9f0np0"] = host.link_table["ens9f0np0"]._replace(mtu=now, up=True)
    apply(host, wanting(1, mtu=9000), journal)
    assert any("mtu" in r for r in host.ran) is writes
    assert host.link_table["ens9f0np0"].mtu == max(now, 9000)


def test_what_netlink_does_not_tell_is_unknown_and_never_written(host: SriovHost, journal: Journal) -> None:
    del host.link_table["ens9f0np0"]
    found = statuses(host, wanting(2, trust=True))
    assert found[f"nic_vfs/{PF0}/vf0/trust"] == "unknown"
    assert found[f"nic_vfs/{PF0}/vfs"] == "fail"
    assert apply(host, wanting(2), journal).failures == []
    assert statuses(host, wanting(2)) == {f"nic_vfs/{PF0}/vfs": "pass", f"nic_vfs/{PF0}/bound": "pass"}


# -- who uses them --------------------------------------------------------------------------------

QEMU = Process(4242, "qemu-system-x86", "VM web1")


def held_by_vfio(host: SriovHost) -> None:
    vf = host.vfs(PF0)[1]
    host.remove(f"{DEVICES}/{vf}/driver")
    host.put(f"{DEVICES}/{vf}/driver", "-> ../../../bus/pci/drivers/vfio-pci")
    host.put(f"{DEVICES}/{vf}/iommu_group", "-> ../../../../kernel/iommu_groups/47")
    host.open_file_table["/dev/vfio/47"] = (QEMU,)


def held_by_a_bond(host: SriovHost) -> None:
    host.put("/sys/devices/virtual/net/bond0/lower_ens9f0v1", "-> x")
    host.put(f"{DEVICES}/{host.vfs(PF0)[1]}/net/ens9f0v1/master", "-> ../../../../../virtual/net/bond0")


def held_by_an_address(host: SriovHost) -> None:
    host.address_table["ens9f0v1"] = ("192.168.20.11/24",)


def held_by_a_namespace(host: SriovHost) -> None:
    vf = host.vfs(PF0)[1]
    Path(f"{host.root}{DEVICES}/{vf}/net/ens9f0v1/ifindex").unlink()
    Path(f"{host.root}{DEVICES}/{vf}/net/ens9f0v1").rmdir()
    host.remove("/sys/class/net/ens9f0v1")
    where = Namespace("/proc/77/ns/net", 99, "kind-worker (docker 1a2b3c4d5e6f)")
    host.namespace_list = [where]
    host.netdev_elsewhere_table[vf] = ("eth1", where)


@pytest.mark.parametrize(
    ("hold", "named"),
    [
        (held_by_vfio, "qemu-system-x86"),
        (held_by_a_bond, "bond0"),
        (held_by_an_address, "192.168.20.11/24"),
        (held_by_a_namespace, "kind-worker"),
    ],
)
def test_r4_a_vf_in_use_is_not_dropped_and_its_holder_is_named(
    host: SriovHost, journal: Journal, hold: Callable[[SriovHost], None], named: str
) -> None:
    """spdk#3205 and others: no kernel asks who uses a VF, and no other tool did."""
    apply(host, wanting(4), journal)
    hold(host)
    host.wrote.clear()
    examination = examine(host, wanting(8))
    (finding,) = [f for f in examination.findings if f.key == f"{PF0}/vfs"]
    assert finding.desired is not None
    assert named in finding.desired.disrupts
    assert "takes all 4 VFs away, of which some are in use: VF 1: " in finding.desired.disrupts
    assert named in finding.message
    failures = taken_back(host, journal).failures
    assert any(named in f.reason for f in failures)
    assert (host.wrote, len(host.vfs(PF0))) == ([], 4)
    allowed = apply(host, wanting(8), journal, allowed=("nic_vfs",))
    assert allowed.failures == []
    assert len(host.vfs(PF0)) == 8


def test_whether_a_vf_is_in_use_that_cannot_be_told_counts_as_in_use(host: SriovHost) -> None:
    apply(host, wanting(2), Journal(f"{host.root}.journal", "b"))
    held_by_vfio(host)
    host.network_error = HostError("/proc/1/fd: needs root")
    (finding,) = [f for f in examine(host, wanting(8, PF0)).findings if f.key == f"{PF0}/vfs"]
    assert finding.desired is not None
    assert "needs root" in finding.desired.disrupts


def test_r13_a_pf_with_the_default_route_is_not_touched_unasked(host: SriovHost) -> None:
    host.route_table["ens9f0np0"] = ("default",)
    (finding,) = [f for f in examine(host, wanting(2)).findings if f.key == f"{PF0}/vfs"]
    assert finding.desired is not None
    assert "default route" in finding.desired.disrupts


def test_k18_a_pf_in_a_worker_is_judged_where_it_is_and_never_written(host: SriovHost, journal: Journal) -> None:
    """sriov-network-operator#2 and #15: PFs in another namespace were reset to no VFs, under their owner."""
    apply(host, wanting(4, vlan=100), journal)
    where = Namespace("/proc/77/ns/net", 99, "kind-worker (docker 1a2b3c4d5e6f)")
    inside = FakeHost(Path(f"{host.root}-worker"), {})
    inside.link_table["ens9f0np0"] = host.link_table.pop("ens9f0np0")
    Path(f"{host.root}{DEVICES}/{PF0}/net/ens9f0np0/ifindex").unlink()
    Path(f"{host.root}{DEVICES}/{PF0}/net/ens9f0np0").rmdir()
    host.remove("/sys/class/net/ens9f0np0")
    host.namespace_list, host.elsewhere = [where], {where.path: inside}
    host.netdev_elsewhere_table[PF0] = ("ens9f0np0", where)
    host.wrote.clear()
    assert set(statuses(host, wanting(4, vlan=100)).values()) == {"pass"}
    found = findings(host, wanting(8, "enp23s0f0np0"))[f"nic_vfs/{PF0}/vfs"]
    assert "kind-worker (docker 1a2b3c4d5e6f)" in found.message
    apply(host, wanting(8), journal, allowed=("nic_vfs",))
    failures = taken_back(host, journal).failures
    assert any("kind-worker" in f.reason for f in failures)
    assert (host.wrote, len(host.vfs(PF0))) == ([], 4)


# -- the next boot --------------------------------------------------------------------------------


def test_vfs_that_nothing_makes_again_are_volatile(host: SriovHost, journal: Journal) -> None:
    host.write(f"{DEVICES}/{PF0}/sriov_numvfs", "8")
    found = findings(host, wanting())[f"nic_vfs/{PF0}/vfs"]
    assert (found.status.value, found.fact.next_boot) == ("volatile", 0)
    host.wrote.clear()
    apply(host, wanting(), journal)
    assert statuses(host, wanting())[f"nic_vfs/{PF0}/vfs"] == "pass"
    assert not [w for w in host.wrote if "numvfs" in w]


NETPLAN = "network:\n  ethernets:\n    ens9f0np0:\n      virtual-function-count: {}\n"


@pytest.mark.parametrize(("count", "status"), [(8, "pass"), (4, "volatile")])
def test_r111_an_owner_elsewhere_is_looked_at_and_not_fought(
    host: SriovHost, journal: Journal, count: int, status: str
) -> None:
    host.write(f"{DEVICES}/{PF0}/sriov_numvfs", "8")
    host.put("/etc/netplan/50-site.yaml", NETPLAN.format(count))
    host.put("/usr/lib/systemd/system-generators/netplan", "-> ../../../libexec/netplan/generate")
    host.link_table["ens9f0np0"] = host.link_table["ens9f0np0"]._replace(up=True)
    before = host.snapshot()
    found = findings(host, wanting(up=False))[f"nic_vfs/{PF0}/vfs"]
    assert (found.status.value, found.fact.next_boot) == (status, count)
    if status == "volatile":
        assert found.desired is not None
        assert "/etc/netplan/50-site.yaml" in found.desired.refused_next
        apply(host, {"nic_vfs": [{"pf": PF0, "vfs": 8}]}, journal)
        assert host.snapshot()["/etc/netplan/50-site.yaml"] == before["/etc/netplan/50-site.yaml"]
        assert '"vfs"' not in (host.read(RECORD) or "")


def test_r105_a_record_of_another_card_at_the_same_address_makes_nothing(host: SriovHost, journal: Journal) -> None:
    apply(host, wanting(), journal)
    host.drop(PF0)
    host.put(f"{DEVICES}/{PF0}/device", "0x101d\n")
    assert findings(host, wanting())[f"nic_vfs/{PF0}/vfs"].fact.next_boot == 0
    facts = registry.load(["nic_vfs"])["nic_vfs"].inspect(host)
    recreating = registry.recreating(registry.load(["nic_vfs"])["nic_vfs"])
    assert recreating is not None
    assert recreating.at_boot(facts) == []


def test_the_boot_unit_makes_what_the_record_says_and_nothing_else(host: SriovHost, journal: Journal) -> None:
    apply(host, wanting(2, mac="derived", mtu=9000), journal)
    host.drop(PF0)
    check = registry.recreating(registry.load(["nic_vfs"])["nic_vfs"])
    assert check is not None
    changes = check.at_boot(check.inspect(host))
    assert {c.facet for c in changes} == {Facet.CURRENT}
    assert {c.key.removeprefix(f"{PF0}/"): c.after for c in changes} == {
        "vfs": 2,
        "up": True,
        "mtu": 9000,
        "vf0/mac": "02:00:00:00:00:02",
        "vf1/mac": "02:00:01:00:00:02",
    }
    performer = Performer(host, registry.load(["nic_vfs"]), journal, lambda line: None)
    performer.perform(changes)
    assert performer.failures == []
    assert check.at_boot(check.inspect(host)) == []
    assert set(statuses(host, wanting(2, mac="derived", mtu=9000)).values()) == {"pass"}


def test_a_damaged_record_is_unknown_not_none(host: SriovHost, journal: Journal) -> None:
    apply(host, wanting(), journal)
    host.put(RECORD, "{")
    found = findings(host, wanting())[f"nic_vfs/{PF0}/vfs"]
    assert isinstance(found.fact.next_boot, Unknown)
    assert found.status.value == "unknown"


def test_r12_a_dual_link_table_is_not_needed_where_no_attribute_is_wanted(host: SriovHost, journal: Journal) -> None:
    """pci-pf-stub and InfiniBand: a PF without a network interface has VFs all the same."""
    host.pf("0000:65:00.0", "gone0", driver="pci-pf-stub")
    Path(f"{host.root}{DEVICES}/0000:65:00.0/net/gone0/ifindex").unlink()
    Path(f"{host.root}{DEVICES}/0000:65:00.0/net/gone0").rmdir()
    Path(f"{host.root}{DEVICES}/0000:65:00.0/net").rmdir()
    host.remove("/sys/class/net/gone0")
    want = wanting(4, "0000:65:00.0", driver="none", autoprobe=False)
    assert apply(host, want, journal).failures == []
    assert set(statuses(host, want).values()) == {"pass"}


def test_a_bond_gives_no_two_ports_the_same_vf_addresses(host: SriovHost) -> None:
    for name in ("ens9f0np0", "ens9f1np1"):
        own = host.link_table[name].mac
        host.link_table[name] = Link(*host.link_table[name])._replace(mac="b8:59:9f:00:00:02", perm_mac=own)
    wanted = {
        name: f.desired.value
        for pf in ("ens9f0np0", "ens9f1np1")
        for name, f in findings(host, wanting(1, pf, mac="derived")).items()
        if name.endswith("/mac") and f.desired
    }
    assert len(set(wanted.values())) == 2
