"""Who uses a VF or PF: the in-use guard. R4 (one write takes all VFs), R5 (or waits for ever), R13, R100, R101."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
from conftest import MakeHost

from hostprep import pci
from hostprep.errors import HostError
from hostprep.host.processes import Namespace, Process
from hostprep.model import Unknown
from hostprep.sriov.holders import NOWHERE, holders

VF = "0000:17:00.2"
PATH = f"{pci.DEVICES}/{VF}"
QEMU = Process(4242, "qemu-system-x86", "libvirt web1")
PERFTEST = Process(77, "perftest", "")
KIND = Namespace("/proc/901/ns/net", 4026532301, "docker 1a2b3c4d5e6f, pid 901 systemd")
PROC = HostError("/proc/1/fd: needs root", code=13)


@pytest.fixture
def make_host(make_host: MakeHost) -> MakeHost:
    """A host whose sysfs also lists by class what the directories of its devices hold."""
    return lambda files, *more: make_host(files | by_class(files), *more)


def by_class(files: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for path in files:
        if match := re.fullmatch(
            rf"({pci.DEVICES}/[^/]+/(net|infiniband_verbs|infiniband_mad|uio|vfio-dev)/([^/]+))/(.+)", path
        ):
            device, kind, name, entry = match.groups()
            found[f"/sys/class/{kind}/{name}"] = f"-> ../..{device.removeprefix('/sys')}"
            if entry.startswith("upper_"):
                found[f"/sys/devices/virtual/net/{entry.removeprefix('upper_')}/lower_{name}"] = "-> x"
    return found


def vf(driver: str = "mlx5_core", **entries: str) -> dict[str, str]:
    """A VF in sysfs: its driver, and what else its directory holds (`__` for `/`)."""
    files = {f"{PATH}/{name.replace('__', '/')}": text for name, text in entries.items()}
    return {f"{PATH}/class": "0x020000\n", **files} | (
        {f"{PATH}/driver": f"-> ../../../bus/pci/drivers/{driver}"} if driver else {}
    )


def vfio(driver: str = "vfio-pci") -> dict[str, str]:
    return {**vf(driver, iommu_group="-> ../../../kernel/iommu_groups/47"), f"{PATH}/vfio-dev/vfio3/dev": "511:3\n"}


def netdev(name: str = "ens9f0v3", master: str = "", **uppers: str) -> dict[str, str]:
    """A VF with a network interface, and what lies upon that, by name: the kernel's word for its kind."""
    net = f"{PATH}/net/{name}"
    files = {f"{net}/ifindex": "7\n"}
    for upper, kind in uppers.items():
        there = f"/sys/devices/virtual/net/{upper}"
        files[f"{there}/uevent"] = (f"DEVTYPE={kind}\n" if kind else "") + f"INTERFACE={upper}\nIFINDEX=9\n"
        files[f"{net}/upper_{upper}"] = f"-> {there}"
    return vf() | files | ({f"{net}/master": f"-> /sys/devices/virtual/net/{master}"} if master else {})


def made(bus: str, name: str, parent: str = "") -> dict[str, str]:
    """A device that was made of the VF, or of a device of it."""
    return {f"/sys/bus/{bus}/devices/{name}": f"-> ../../../devices/pci0000:16/0000:16:02.0/{VF}/{parent}{name}"}


@pytest.mark.parametrize(
    ("files", "file", "process", "said"),
    [
        (vfio(), "/dev/vfio/47", QEMU, "used by qemu-system-x86 (pid 4242, libvirt web1) through vfio group 47"),
        (vfio("mlx5_vfio_pci"), "/dev/vfio/47", PERFTEST, "used by perftest (pid 77) through vfio group 47"),
        (vfio(), "/dev/vfio/noiommu-47", PERFTEST, "used by perftest (pid 77) through vfio group 47"),
        (vfio(), "/dev/vfio/devices/vfio3", PERFTEST, "used by perftest (pid 77) through vfio device vfio3"),
        (
            vf(infiniband_verbs__uverbs2__dev="231:194\n"),
            "/dev/infiniband/uverbs2",
            PERFTEST,
            "used over RDMA by perftest (pid 77) through uverbs2",
        ),
        (
            vf(infiniband_mad__umad2__dev="231:2\n", infiniband_mad__issm2__dev="231:66\n"),
            "/dev/infiniband/issm2",
            Process(8, "opensm", "opensm.service"),
            "used over RDMA by opensm (pid 8, opensm.service) through issm2",
        ),
        (
            vf("uio_pci_generic", uio__uio0__dev="240:0\n"),
            "/dev/uio0",
            PERFTEST,
            "used by perftest (pid 77) through uio0",
        ),
        (
            {**vf(), **made("vdpa", "vdpa0"), f"{PATH}/vdpa0/vhost-vdpa-1/dev": "511:1\n"},
            "/dev/vhost-vdpa-1",
            QEMU,
            "used by qemu-system-x86 (pid 4242, libvirt web1) through vDPA device vdpa0; has the vDPA device vdpa0",
        ),
    ],
)
def test_r5_who_has_the_device_file_open_holds_the_function(
    make_host: MakeHost, files: dict[str, str], file: str, process: Process, said: str
) -> None:
    host = make_host(files)
    host.open_file_table = {file: (process,), "/dev/vfio/4": (QEMU,), "/dev/vfio/470": (QEMU,), "/dev/uio01": (QEMU,)}
    assert holders(host, [VF]) == {VF: said}
    del host.open_file_table[file]
    nobody = {VF: "has the vDPA device vdpa0"} if "vdpa0" in said else {}
    assert holders(host, [VF]) == nobody, "what is bound to vfio-pci, and open in no process, is free"


def test_a_parallel_program_is_named_by_its_first_processes(make_host: MakeHost) -> None:
    host = make_host(vf(infiniband_verbs__uverbs2__dev="231:194\n"))
    host.open_file_table = {"/dev/infiniband/uverbs2": tuple(Process(pid, "mpi", "") for pid in range(64))}
    assert holders(host, [VF]) == {
        VF: "used over RDMA by mpi (pid 0), mpi (pid 1), mpi (pid 2) and 61 more through uverbs2"
    }


def test_r100_an_empty_net_directory_is_an_interface_in_another_namespace(make_host: MakeHost) -> None:
    """sriov-network-operator#2 and #15: PFs of kind workers were reset to 0 VFs, since the host did not see them."""
    host = make_host(vf() | {f"{PATH}/net/": ""})
    host.namespace_list = [KIND]
    host.netdev_elsewhere_table = {VF: ("eth1", KIND)}
    said = "in another network namespace (docker 1a2b3c4d5e6f, pid 901 systemd), as eth1"
    assert holders(host, [VF]) == {VF: said}


def test_r100_an_interface_that_is_in_no_namespace_that_we_know_is_not_free(make_host: MakeHost) -> None:
    """A namespace may be held by an open file alone. Where there is no interface, there is no `net` (pci-pf-stub)."""
    host = make_host(vf() | {f"{PATH}/net/": ""})
    host.namespace_list = [KIND]
    assert holders(host, [VF]) == {VF: Unknown(NOWHERE)}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (netdev(master="bond0", bond0="bond"), "ens9f0v3 is in bond bond0"),
        (netdev(master="br0", br0="bridge"), "ens9f0v3 is in bridge br0"),
        (netdev(master="ovs-system", **{"ovs-system": ""}), "ens9f0v3 is in ovs-system"),
        (netdev(macvtap0="macvtap"), "macvtap macvtap0 is on ens9f0v3"),
        (
            netdev(master="bond0", bond0="bond", **{"ens9f0v3.5": "vlan"}),
            "ens9f0v3 is in bond bond0; vlan ens9f0v3.5 is on ens9f0v3",
        ),
        (vf() | made("mdev", "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"), "has the mediated device 83b8f4f2-"),
        (vf("ifcvf") | made("vdpa", "blue"), "has the vDPA device blue"),
        (vf() | made("auxiliary", "mlx5_core.sf.2"), "has the subfunction mlx5_core.sf.2"),
        (vf() | made("vdpa", "vdpa7", "mlx5_core.sf.2/"), "has the vDPA device vdpa7"),
    ],
)
def test_what_was_built_upon_a_function_uses_it(make_host: MakeHost, files: dict[str, str], said: str) -> None:
    found = holders(make_host(files), [VF])[VF]
    assert isinstance(found, str)
    assert found.startswith(said)


def test_a_macvlan_of_a_container_uses_the_interface_below_it(make_host: MakeHost) -> None:
    """Docker's and Kubernetes' macvlan networks: sysfs does not show the link between two namespaces."""
    host = make_host(netdev())
    host.namespace_list = [KIND]
    assert holders(host, [VF]) == {}
    host.upper_elsewhere_table = {7: (("eth0", "macvlan", KIND),), 8: (("eth1", "macvlan", KIND),)}
    said = "macvlan eth0 in another network namespace (docker 1a2b3c4d5e6f, pid 901 systemd) is on ens9f0v3"
    assert holders(host, [VF]) == {VF: said}


@pytest.mark.parametrize(
    ("addresses", "routes", "said"),
    [
        (
            ("192.168.20.11/24",),
            ("192.168.20.0/24", "default"),
            "has the address 192.168.20.11/24 and the default route",
        ),
        (("10.0.0.1/8", "fd00::1/64"), ("10.0.0.0/8",), "has the addresses 10.0.0.1/8, fd00::1/64"),
        ((), ("10.1.0.0/16",), "has routes to 10.1.0.0/16"),
        ((), ("default",), "has the default route"),
    ],
)
def test_r13_addresses_and_routes_are_use_of_an_interface_and_of_the_bond_that_it_is_in(
    make_host: MakeHost, addresses: tuple[str, ...], routes: tuple[str, ...], said: str
) -> None:
    host = make_host(netdev(master="bond0", bond0="bond"))
    host.address_table = {"ens9f0v3": addresses, "eth0": ("10.9.9.9/8",)}
    host.route_table = {"ens9f0v3": routes}
    assert holders(host, [VF]) == {VF: f"ens9f0v3 is in bond bond0; ens9f0v3 {said}"}
    host.address_table, host.route_table = {"bond0": addresses}, {"bond0": routes}
    assert holders(host, [VF]) == {VF: f"ens9f0v3 is in bond bond0, which {said}"}


def test_r13_of_a_pf_in_switchdev_mode_the_uplink_counts_and_not_its_representors(make_host: MakeHost) -> None:
    host = make_host(netdev("ens9f0np0") | netdev("eth3", master="br0", br0="bridge"))
    for name, port in (("ens9f0np0", "p0"), ("eth3", "pf0vf3")):
        host.put(f"{PATH}/net/{name}/phys_port_name", f"{port}\n")
    assert holders(host, [VF]) == {}
    host.route_table = {"ens9f0np0": ("default",)}
    assert holders(host, [VF]) == {VF: "ens9f0np0 has the default route"}


@pytest.mark.parametrize(
    "files",
    [
        {},  # it is not there
        vf(""),  # as sriov_drivers_autoprobe=0 leaves them
        vfio(),
        vf("pci-pf-stub"),
        vf(infiniband_verbs__uverbs2__dev="231:194\n"),  # an InfiniBand port without IPoIB
        netdev() | {f"{PATH}/net/ens9f0v3/operstate": "up\n"},
        vf() | made("auxiliary", "mlx5_core.eth.2"),  # what a driver makes of every function
    ],
)
def test_a_function_that_nobody_uses_is_left_out(make_host: MakeHost, files: dict[str, str]) -> None:
    host = make_host(files)
    host.open_file_table = {"/dev/vfio/vfio": (QEMU,), "/dev/infiniband/uverbs0": (PERFTEST,)}
    host.address_table = {"ens9f0v30": ("10.0.0.1/8",)}
    assert holders(host, [VF]) == {}


@pytest.mark.parametrize(
    "files",
    [
        vfio(),
        vf(infiniband_verbs__uverbs2__dev="231:194\n"),
        vf() | {f"{PATH}/net/": ""},
        netdev(),
    ],
)
def test_what_could_not_be_found_out_is_not_free(make_host: MakeHost, files: dict[str, str]) -> None:
    host = make_host(files)
    host.network_error = PROC
    assert holders(host, [VF]) == {VF: Unknown("/proc/1/fd: needs root")}


@pytest.mark.parametrize("question", ["addresses", "routes"])
def test_without_addresses_or_routes_an_interface_is_not_free(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    def fail(netns: str = "") -> None:
        raise HostError("netlink: no answer")

    host = make_host(netdev())
    monkeypatch.setattr(host, question, fail)
    assert holders(host, [VF]) == {VF: Unknown("netlink: no answer")}


@pytest.mark.parametrize("folder", ["/sys/class/net", "/sys/class/infiniband_verbs", "/sys/bus/vdpa/devices"])
def test_a_sysfs_that_cannot_be_read_is_unknown(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    host = make_host(netdev())
    names = host.names

    def fail(path: str) -> list[str]:
        if path == folder:
            raise HostError(f"{path}: Input/output error", code=5)
        return names(path)

    monkeypatch.setattr(host, "names", fail)
    assert holders(host, [VF]) == {VF: Unknown(f"{folder}: Input/output error")}


def test_a_holder_that_is_known_is_told_whatever_else_is_not(make_host: MakeHost) -> None:
    host = make_host(netdev(master="bond0", bond0="bond") | vf(infiniband_verbs__uverbs2__dev="231:194\n"))
    host.network_error = PROC
    assert holders(host, [VF]) == {VF: "ens9f0v3 is in bond bond0"}


def test_each_function_is_told_for_itself(make_host: MakeHost) -> None:
    """One opened group, among a thousand that are free, is one holder."""
    files: dict[str, str] = {}
    for i in range(40):
        path = f"{pci.DEVICES}/0000:18:00.{i}"
        files |= {f"{path}/driver": "-> ../../drivers/vfio-pci", f"{path}/iommu_group": f"-> ../../iommu_groups/{i}"}
    host = make_host(files)
    host.open_file_table = {"/dev/vfio/4": (QEMU,)}
    assert list(holders(host, [f"0000:18:00.{i}" for i in range(40)])) == ["0000:18:00.4"]


@pytest.mark.parametrize(
    ("files", "asked"),
    [
        ({}, []),
        (vf(""), []),
        (vf("pci-pf-stub"), []),
        (vfio(), ["open_files"]),
        (vf() | {f"{PATH}/net/": ""}, ["namespaces", "netdevs_elsewhere"]),
        (netdev(), ["namespaces", "uppers_elsewhere", "addresses", "routes"]),
    ],
)
def test_only_what_is_needed_is_asked_and_only_once(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], asked: list[str]
) -> None:
    """Each costs a walk over all processes, or a child."""
    host = make_host(files)
    noted: list[str] = []
    for name in ("open_files", "namespaces", "netdevs_elsewhere", "uppers_elsewhere", "addresses", "routes"):

        def answer(*_: object, name: str = name) -> object:
            noted.append(name)
            return [KIND] if name == "namespaces" else {}

        monkeypatch.setattr(host, name, answer)
    assert holders(host, []) == {}
    assert noted == []
    holders(host, [VF, VF, "0000:17:00.3"])
    assert noted == asked
