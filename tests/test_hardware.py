"""Hardware: how much of everything there is, counted as an admin counts."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

import jsonschema
import pytest
from conftest import MakeHost, findings, statuses
from fakes import FakeHost, debian, meminfo

from hostprep.checks import hardware
from hostprep.host import Space

CPUS = "/sys/devices/system/cpu"
NET = "/sys/class/net"
INSTALLED_32_GIB = 32718388  # KiB; MemTotal of a machine with 32 GiB: 31.2 GiB
DMI = "/sys/class/dmi/id"


def facts(host: FakeHost) -> dict[str, Any]:
    return {key: fact.current for key, fact in hardware.inspect(host).items()}


def status(host: FakeHost, section: Mapping[str, Any]) -> str:
    [found] = statuses(host, {"hardware": section}).values()
    return found


def mountinfo(*mounts: str) -> dict[str, str]:
    """Of `id parent where kind` the lines of mountinfo."""
    rows = (mount.split() for mount in mounts)
    return {
        "/proc/self/mountinfo": "".join(
            f"{i} {p} 0:1 / {where} rw shared:1 - {kind} x rw\n" for i, p, where, kind in rows
        )
    }


# -- memory and processors ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("want", "expected"), [("32GB", "pass"), ("31GiB", "pass"), ("32GiB", "fail"), (INSTALLED_32_GIB * 1024, "pass")]
)
def test_a_machine_with_32_gib_has_32_gb(want: str | int, expected: str, make_host: MakeHost) -> None:
    """K1: firmware and kernel keep some of what is installed."""
    host = make_host(debian() | {"/proc/meminfo": meminfo(INSTALLED_32_GIB)})
    assert status(host, {"memory": want}) == expected


def topology(cpu: int, **ids: int) -> dict[str, str]:
    return {f"{CPUS}/cpu{cpu}/topology/{name}": f"{number}\n" for name, number in ids.items()}


@pytest.mark.parametrize(
    ("online", "cpus"),
    [
        ({0: (0, 0, 0), 1: (0, 0, 1), 2: (0, 0, 0), 3: (0, 0, 1)}, 2),  # two threads a core
        ({0: (0, 0, 0), 1: (1, 0, 0)}, 2),  # the same core_id on two packages
        ({0: (0, 0, 0), 1: (0, 1, 0)}, 2),  # and on two dies
    ],
)
def test_cores_are_not_threads(online: dict[int, tuple[int, int, int]], cpus: int, make_host: MakeHost) -> None:
    files = {f"{CPUS}/online": f"0-{len(online) - 1}\n"}
    for cpu, (package, die, core) in online.items():
        files |= topology(cpu, physical_package_id=package, die_id=die, core_id=core)
    found = facts(make_host(debian() | files))
    assert (found["cpus"], found["cores"]) == (len(online), cpus)


def test_a_host_with_256_cpus_and_8_nodes_is_counted_at_once(make_host: MakeHost) -> None:
    """T24, NHC#141."""
    files = {f"{CPUS}/online": "0-127,128-255\n", "/sys/devices/system/node/has_memory": "0-7\n"}
    for cpu in range(256):
        files |= topology(cpu, physical_package_id=cpu % 128 // 64, core_id=cpu % 64)
    host = make_host(debian() | files)
    start = time.process_time()
    found = facts(host)
    assert time.process_time() - start < 1
    assert (found["cpus"], found["cores"], found["numa_nodes"]) == (256, 128, 8)


# -- Ethernet -------------------------------------------------------------------------------------

PF = {f"{NET}/ens1/type": "1\n", f"{NET}/ens1/device/vendor": "0x15b3\n", f"{NET}/ens1/phys_port_name": "p0\n"}
NOT_PORTS: dict[str, dict[str, str]] = {
    "a VF": {f"{NET}/x/type": "1\n", f"{NET}/x/device/physfn": "-> ../0000:17:00.0"},
    "a VF's representor": {f"{NET}/x/type": "1\n", f"{NET}/x/device/v": "", f"{NET}/x/phys_port_name": "pf0vf3\n"},
    "a remote representor": {f"{NET}/x/type": "1\n", f"{NET}/x/device/v": "", f"{NET}/x/phys_port_name": "c1pf0sf88\n"},
    "a subfunction": {f"{NET}/x/type": "1\n", f"{NET}/x/device/sfnum": "88\n"},
    "a bridge": {f"{NET}/x/type": "1\n", f"{NET}/x/bridge/": ""},
    "a bond": {f"{NET}/x/type": "1\n", f"{NET}/x/bonding/": "", f"{NET}/bonding_masters": "x\n"},
    "the loopback": {f"{NET}/lo/type": "772\n"},
    "InfiniBand": {f"{NET}/x/type": "32\n", f"{NET}/x/device/v": ""},
    "Wi-Fi": {f"{NET}/x/type": "1\n", f"{NET}/x/device/v": "", f"{NET}/x/phy80211/": ""},
}


@pytest.mark.parametrize("case", NOT_PORTS)
def test_what_is_no_physical_ethernet_port_is_not_counted(case: str, make_host: MakeHost) -> None:
    assert facts(make_host(debian() | PF | NOT_PORTS[case]))["ethernet"] == 2  # eth0 and ens1


# -- disks ----------------------------------------------------------------------------------------

ROOT = "1 0 / ext4"
# Each row: the mounts, a path, and the mount that holds it (`nfs`: unknown).
HOLDERS: Mapping[str, tuple[tuple[str, ...], str, str]] = {
    "the root": ((ROOT,), "/var/lib", "/"),
    "the longest": ((ROOT, "2 1 /var ext4", "3 2 /var/lib xfs"), "/var/lib/docker", "/var/lib"),
    "not one with a like name": ((ROOT, "2 1 /data ext4"), "/database", "/"),
    "its own mount point": ((ROOT, "2 1 /data ext4"), "/data", "/data"),
    "white space": ((ROOT, r"2 1 /my\040data ext4"), "/my data/x", "/my data"),
    "a network mount is not its parent": ((ROOT, "2 1 /data nfs4"), "/data/x", "nfs"),
    "on the same point the upper": ((ROOT, "2 1 /data ext4", "3 2 /data nfs4"), "/data", "nfs"),
    "on the same point, listed first": ((ROOT, "3 2 /data nfs4", "2 1 /data ext4"), "/data", "nfs"),
    "hidden below a network mount": ((ROOT, "2 1 /mnt/a ext4", "3 1 /mnt nfs4"), "/mnt/a", "nfs"),
    "mounted on a network mount": ((ROOT, "2 1 /mnt nfs4", "3 2 /mnt/a ext4"), "/mnt/a", "/mnt/a"),
    "what is on a covered mount": ((ROOT, "2 1 /m ext4", "3 2 /m/a ext4", "4 2 /m nfs4"), "/m/a", "nfs"),
    "the root mounted over the initrd's": (("0 0 / rootfs", "1 0 / ext4", "2 1 /data xfs"), "/data", "/data"),
    "autofs": ((ROOT, "2 1 /home autofs"), "/home/x", "nfs"),
}


@pytest.mark.parametrize("case", HOLDERS)
def test_a_path_is_held_by_the_mount_that_it_leads_to(case: str, make_host: MakeHost) -> None:
    mounts, path, holder = HOLDERS[case]
    host = make_host(debian() | mountinfo(*mounts))
    host.spaces = {
        where: Space(10**9, 10**8) for where in ("/", "/var", "/var/lib", "/data", "/my data", "/mnt/a", "/m", "/m/a")
    }
    host.spaces[holder] = Space(10**11, 10**10)
    found = statuses(host, {"hardware": {"disk": {path: "100GB"}, "free": {path: "10GB"}}})
    assert [*found.values()] == (["unknown"] * 2 if holder == "nfs" else ["pass"] * 2)


def test_a_network_mount_is_never_asked_and_hides_no_other(make_host: MakeHost) -> None:
    """A dead NFS server keeps whoever asks for ever."""
    host = make_host(debian() | mountinfo(ROOT, "2 1 /data nfs4", "3 1 /proc proc", "4 1 /run tmpfs"))
    host.spaces = {"/": Space(10**12, 10**11)}
    found = findings(host, {"hardware": {"disk": {"/": "1TB", "/data": "1TB"}}})
    assert found["hardware/disk/"].status.value == "pass"
    assert "kind nfs4 is not asked" in found["hardware/disk/data"].message
    assert {key for key in facts(host) if key.startswith("disk")} == {"disk/", "disk/data"}


GB = 10**9


@pytest.mark.parametrize(
    ("files", "size", "expected"),
    [
        pytest.param({"/sys/dev/block/259:1/size": f"{100 * GB // 512}\n"}, 98.3 * GB, "pass", id="K1: ext4 on 100 GB"),
        pytest.param({"/sys/dev/block/259:1/size": f"{99 * GB // 512}\n"}, 97.3 * GB, "fail", id="on 99 GB"),
        pytest.param({"/sys/dev/block/259:1/size": f"{100 * GB // 512}\n"}, 2 * GB, "fail", id="was never grown"),
        pytest.param({}, 98.3 * GB, "fail", id="btrfs, ZFS: no device has its number"),
        pytest.param({}, 100 * GB, "pass", id="and large enough"),
        pytest.param({"/sys/dev/block/259:1/size": "0\n"}, 100 * GB, "pass", id="a device of no size"),
        pytest.param({"/sys/dev/block/259:1/size": "many\n"}, 98.3 * GB, "fail", id="rubbish"),
    ],
)
def test_a_disk_of_100_gb_has_100_gb(files: dict[str, str], size: float, expected: str, make_host: MakeHost) -> None:
    """ext4 keeps 1 to 2 % of its partition for itself; what is free is the file system's own word."""
    host = make_host(debian() | files)
    host.spaces = {"/": Space(int(size), 10 * GB)}
    assert status(host, {"disk": {"/": "100GB"}}) == expected
    assert facts(host)["free/"] == 10 * GB


@pytest.mark.parametrize("path", ["/", "/var/lib", "/my data", "/...", "/.config", "/a..", "/é"])
def test_a_path_as_mount_points_are_written(path: str) -> None:
    assert re.search(hardware.PATH, path)


@pytest.mark.parametrize(
    "path",
    ["", "var", "//", "/var/", "/var//lib", "//var", "/.", "/..", "/var/./lib", "/var/..", "/a\n", "/..\n", "/\n"],
)
@pytest.mark.parametrize("section", ["disk", "free"])
def test_a_path_that_another_file_system_may_hold_is_refused(section: str, path: str) -> None:
    """`/data/../var` is on another file system than it looks to be."""
    schema = {"type": "object", "properties": {"hardware": hardware.SCHEMA}}
    validator = jsonschema.Draft202012Validator(schema)
    assert not validator.is_valid({"hardware": {section: {path: "1GB"}}})
    assert validator.is_valid({"hardware": {section: {"/var": "1GB"}}})


# -- what kind of machine -------------------------------------------------------------------------

BARE = {"/proc/cpuinfo": "flags\t: fpu pse\n"}
ARM = {"/proc/cpuinfo": "Features\t: fp asimd\n"}


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (BARE, "physical"),
        (BARE | {f"{DMI}/sys_vendor": "Dell Inc.\n", f"{DMI}/product_name": "PowerEdge R650\n"}, "physical"),
        ({"/proc/cpuinfo": "flags\t: fpu hypervisor\n"}, "vm"),
        (BARE | {f"{DMI}/sys_vendor": "QEMU\n"}, "vm"),
        (BARE | {f"{DMI}/sys_vendor": "Microsoft Corporation\n", f"{DMI}/product_name": "Virtual Machine\n"}, "vm"),
        (BARE | {f"{DMI}/sys_vendor": "Microsoft Corporation\n", f"{DMI}/product_name": "Surface\n"}, "physical"),
        (ARM | {f"{DMI}/sys_vendor": "Amazon EC2\n", f"{DMI}/product_name": "m6g.large\n"}, "vm"),
        (ARM | {f"{DMI}/sys_vendor": "Amazon EC2\n", f"{DMI}/product_name": "m6g.metal\n"}, "physical"),
        (ARM | {"/proc/device-tree/hypervisor/compatible": "linux,kvm"}, "vm"),
        (ARM | {"/proc/device-tree/model": "a board"}, "physical"),
        (BARE | {"/run/systemd/container": "lxc\n"}, "container"),
        (BARE | {"/.dockerenv": "", "/proc/2/comm": "sh\n"}, "container"),
        (BARE | {"/.dockerenv": ""}, "physical"),  # an image of a container that became a machine
    ],
)
def test_physical_vm_or_container(files: dict[str, str], kind: str, make_host: MakeHost) -> None:
    assert facts(make_host(debian() | files))["machine"] == kind


def test_a_machine_that_nothing_tells_about_is_unknown_not_physical(make_host: MakeHost) -> None:
    assert status(make_host(debian() | ARM), {"machine": "physical"}) == "unknown"


# -- what cannot be read --------------------------------------------------------------------------

EVERYTHING: Mapping[str, Any] = {
    "cpus": 2,
    "cores": 2,
    "memory": "1GB",
    "disk": {"/": "1GB"},
    "ethernet": 1,
    "numa_nodes": 1,
    "architecture": "x86_64",
    "machine": "physical",
}


@pytest.mark.parametrize("broken", ["missing", "unreadable"])
@pytest.mark.parametrize(
    ("path", "unknown"),
    [
        (f"{CPUS}/online", {"cpus", "cores"}),
        (f"{CPUS}/cpu1/topology/core_id", {"cores"}),
        ("/proc/meminfo", {"memory"}),
        ("/proc/self/mountinfo", {"disk/"}),
        (f"{NET}/eth0/type", {"ethernet"}),
        ("/proc/cpuinfo", {"machine"}),
    ],
)
def test_one_thing_that_cannot_be_read_is_unknown_and_hides_no_other(
    path: str, unknown: set[str], broken: str, make_host: MakeHost
) -> None:
    files = {name: text for name, text in debian().items() if name != path}
    if broken == "missing" and path.startswith(NET):
        files = {name: text for name, text in files.items() if not name.startswith(NET)}
    host = make_host(files | ({f"{path}/": ""} if broken == "unreadable" else {}))
    host.spaces = {"/": Space(10**12, 10**12)}
    found = statuses(host, {"hardware": EVERYTHING})
    assert {name.partition("/")[2] for name, status in found.items() if status == "unknown"} == unknown
    assert set(found.values()) == {"pass", "unknown"}
