"""The guest is what the other tests take it for."""

from __future__ import annotations

import json

import pytest

from vm import Guest

# Where qemu.CARDS come to lie, on which NUMA node, with which ids, and the VFs that each offers.
PFS = {
    "0000:41:00.0": (0, "8086:10c9", "igb", 7),
    "0000:81:00.0": (1, "8086:10c9", "igb", 7),
    "0000:42:00.0": (0, "15b3:1019", "pci-pf-stub", 8),
}
SHOW = """
cd /sys/bus/pci/devices
for path in */sriov_totalvfs; do
    d=${path%/*}
    driver=$(basename "$(readlink $d/driver)")
    echo $d $(cat $d/numa_node) $(cat $d/vendor):$(cat $d/device) $driver $(cat $path)
done
"""
TO_VFIO = """
modprobe vfio-pci
cd /sys/bus/pci/devices/0000:41:00.0
echo 0 > sriov_drivers_autoprobe
echo 2 > sriov_numvfs
for vf in virtfn*; do
    echo vfio-pci > $vf/driver_override
    basename $(readlink $vf) > /sys/bus/pci/drivers_probe
done
udevadm settle
"""


def test_has_two_numa_nodes_with_a_cpu_and_memory_each(guest: Guest) -> None:
    assert guest.sh("cat /sys/devices/system/node/online") == "0-1"
    assert guest.sh("cat /sys/devices/system/node/node[01]/cpulist") == "0\n1"
    sizes = guest.sh("awk '/MemTotal/ {print $4}' /sys/devices/system/node/node[01]/meminfo").split()
    assert all(int(size) > 3_500_000 for size in sizes)


def test_has_pfs_of_two_makers_on_both_nodes(guest: Guest) -> None:
    found = {}
    for line in guest.sh(SHOW).splitlines():
        address, node, ids, driver, total = line.split()
        found[address] = (int(node), ids.replace("0x", ""), driver, int(total))
    assert found == PFS


@pytest.mark.parametrize(("pf", "vf"), [("0000:41:00.0", "8086:10ca igbvf"), ("0000:42:00.0", "15b3:101a ")])
def test_makes_vfs(guest: Guest, pf: str, vf: str) -> None:
    """The kernel's own SR-IOV, with the VFs' own ids: sriov_numvfs writes, virtfn links, drivers that probe."""
    guest.sh(f"echo 4 > /sys/bus/pci/devices/{pf}/sriov_numvfs; udevadm settle")
    show = 'for d in virtfn*; do echo $(cat $d/vendor):$(cat $d/device) "$(readlink $d/driver | sed s,.*/,,)"; done'
    shown = guest.sh(f"cd /sys/bus/pci/devices/{pf}; {show}")
    assert shown.replace("0x", "").splitlines() == [vf] * 4


def test_has_vfio_groups_for_vfs(guest: Guest) -> None:
    """An IOMMU stands before the cards: vfio-pci gives a VF out by its group, each VF by its own."""
    guest.sh(TO_VFIO)
    groups = guest.sh("for vf in /sys/bus/pci/devices/0000:41:00.0/virtfn*; do readlink $vf/iommu_group; done")
    numbers = {group.rpartition("/")[2] for group in groups.splitlines()}
    assert len(numbers) == 2
    assert set(guest.sh("ls /dev/vfio").split()) == {*numbers, "vfio"}


def test_starts_anew_for_every_test(guest: Guest) -> None:
    """Nothing of the tests before is there, and the clock is right again after the thaw."""
    assert guest.sh("cat /sys/bus/pci/devices/*/sriov_numvfs").split() == ["0", "0", "0"]


def test_files_come_back_as_they_went(guest: Guest) -> None:
    content = bytes(range(256)) * 8192
    guest.put(content, "/root/file")
    assert guest.get("/root/file") == content


def test_runs_hostprep(guest: Guest) -> None:
    """The working tree's hostprep, with all its dependencies, in the guest's own Python."""
    assert guest.sh("hostprep --version").startswith("hostprep ")
    guest.sh("/opt/hostprep/bin/python -c 'import click, jsonschema, psutil, pynvml, pyroute2, pyudev, yaml'")
    done = guest.run("hostprep check --profile baseline --format json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert {f["status"] for f in report["findings"] if f["check"] == "hardware"} == {"pass"}
