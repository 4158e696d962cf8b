"""VFs of real SR-IOV devices: rows K10 to K12 and K18, and the kernel's rules R1 to R36; igb and pci-pf-stub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from vm import Guest
from vm.admin import ETC, applied, findings, hostprep, missing, profile, reverted, statuses
from vm.story import step, thorough

ENS10, ENS11, CONNECTX = "0000:41:00.0", "0000:81:00.0", "0000:42:00.0"
DEVICES = "/sys/bus/pci/devices"
RECORD = "/etc/hostprep/boot/nic_vfs.json"
UNIT = "hostprep-apply.service"
NUMBERS = f"cat {' '.join(f'{DEVICES}/{pf}/sriov_numvfs' for pf in (ENS10, ENS11, CONNECTX))}"
# What of the disk and of sysfs has to be again what it was.
STATE = f"""
{ETC}{NUMBERS}
ip -o link | sed -E 's/^[0-9]+: //' | cut -d' ' -f1,2,5 | sort
"""
# Holds a vfio group open, as a VM does.
HOLD = """
import os, sys, time
os.open(sys.argv[1], os.O_RDWR)
with open("/run/held", "w") as f:
    f.write(str(os.getpid()))
time.sleep(9999)
"""


def wanting(guest: Guest, *entries: Mapping[str, Any]) -> None:
    profile(guest, {"nic_vfs": entries})


def numbers(guest: Guest) -> list[int]:
    """How many VFs ens10, ens11 and the ConnectX have."""
    return [int(n) for n in guest.sh(NUMBERS).split()]


def attributes(guest: Guest, pf: str) -> list[dict[str, Any]]:
    """What ip-link(8), which is not ours, says of the VFs of a PF."""
    (link,) = json.loads(guest.sh(f"ip -j link show {pf}"))
    return list(link.get("vfinfo_list", []))


def drivers(guest: Guest, pf: str) -> list[str]:
    show = 'for d in $(ls -d virtfn* | sort -V); do basename "$(readlink $d/driver || echo none)"; done'
    return guest.sh(f"cd {DEVICES}/{pf}; {show}").split()


def vf(guest: Guest, pf: str, index: int) -> str:
    return guest.sh(f"basename $(readlink {DEVICES}/{pf}/virtfn{index})")


@thorough
def test_k11_k12_from_none_to_seven_vfs_on_two_ports_and_back(guest: Guest) -> None:
    """One apply; the same again touches nothing (os-net-config 23d97d3); revert. test_story.py has the reboot."""
    before = guest.sh(STATE)
    wanting(guest, {"pf": "igb", "count": 2, "vfs": 7})
    applied(guest)
    assert numbers(guest) == [7, 7, 0]
    assert drivers(guest, ENS10) + drivers(guest, ENS11) == ["igbvf"] * 14
    assert len(re.findall(r"^ens1[01]v\d", guest.sh("ls /sys/class/net"), re.M)) == 14
    assert guest.sh(f"systemctl is-enabled {UNIT}") == "enabled"

    inodes = f"ls -di {DEVICES}/*/virtfn*/ {DEVICES}/*/virtfn*/net/*; cat /var/lib/hostprep/journal"
    untouched = guest.sh(inodes)
    guest.sh("dmesg -C")
    applied(guest)
    assert guest.sh(inodes) == untouched
    assert guest.sh("dmesg") == ""

    code, said = hostprep(guest, "check")
    assert (code, "READY: 7 passed" in said) == (0, True), said
    reverted(guest)
    assert guest.sh(STATE) == before


@thorough
def test_r26_attributes_are_what_ip_link_shows_and_a_refused_one_undoes_nothing_else(guest: Guest) -> None:
    """More VFs keep what they were set to; igb, which drops the link to make VFs, refuses rates until it is back."""
    every = {"mac": "derived", "vlan": {"id": 100, "qos": 3}, "trust": True, "spoofchk": False, "max_rate": 100}
    last = {"vlan": 200, "mac": "02:11:22:33:44:55"}
    wanting(guest, {"pf": "ens10", "vfs": 5, **every, "each": {"4": last}})
    applied(guest)
    five = attributes(guest, "ens10")
    assert [a["address"] for a in five] == [*(f"02:00:0{i}:be:ef:00" for i in range(4)), "02:11:22:33:44:55"]
    assert [a["vlan_list"] for a in five] == [[{"vlan": 100, "qos": 3}]] * 4 + [[{"vlan": 200, "qos": 3}]]
    assert {(a["trust"], a["spoofchk"], a["rate"]["max_tx"]) for a in five} == {(True, False, 100)}
    # the drivers have read the addresses: they were bound after these were set (sriov-cni#232)
    assert guest.sh(f"cat {DEVICES}/{ENS10}/virtfn*/net/*/address").split() == [a["address"] for a in five]

    wanting(guest, {"pf": "ens10", "vfs": 7})
    applied(guest)
    assert attributes(guest, "ens10")[:5] == five
    assert drivers(guest, ENS10) == ["igbvf"] * 7

    seven = attributes(guest, "ens10")
    record = guest.get(RECORD)
    wanting(guest, {"pf": "ens10", "vfs": 3, "link": "enable"})
    code, said = hostprep(guest, "apply --yes")
    assert code == 5
    assert not missing(said, ["ens10: VF 0: link enable: Operation not supported"])
    assert (attributes(guest, "ens10"), numbers(guest), guest.get(RECORD)) == (seven, [7, 0, 0], record)
    assert drivers(guest, ENS10) == ["igbvf"] * 7


def test_r4_r5_vfs_in_use_are_not_dropped_and_their_holders_are_named(guest: Guest) -> None:
    """spdk#3205, sriov-network-operator#797: no kernel asks who uses a VF before it takes it away."""
    wanting(guest, {"pf": "ens10", "vfs": 6, "each": {"4": {"driver": "vfio-pci"}}})
    applied(guest)
    group = guest.sh(f"basename $(readlink {DEVICES}/{vf(guest, ENS10, 4)}/iommu_group)")
    guest.put(HOLD, "/root/hold.py")
    guest.sh(
        f"""
        ip netns add empty && ip link set ens10v0 netns empty
        ip netns add worker && ip link set ens10v1 netns worker
        ip netns exec worker setsid sleep 9999 >/dev/null 2>&1 &
        ip link add br0 type bridge && ip link set ens10v2 master br0
        ip address add 192.168.20.11/24 dev ens10v3 && ip link set ens10v3 up
        setsid python3 /root/hold.py /dev/vfio/{group} >/dev/null 2>&1 &
        until [ -s /run/held ]; do sleep 0.1; done
        """
    )
    journal = guest.get("/var/lib/hostprep/journal")
    for number, words in (
        (7, ["VF 0: in another network namespace (/run/netns/empty), as ens10v0"]),
        (
            3,
            [
                "VF 1: in another network namespace (",
                " sleep), as ens10v1",
                "ens10v2 is in bridge br0",
                "ens10v3 has the address 192.168.20.11/24",
            ],
        ),
    ):
        wanting(guest, {"pf": "ens10", "vfs": number})
        found = findings(guest)[f"{ENS10}/vfs"]
        assert found["status"] == "fail"
        assert not missing(json.dumps(found), words)
    wanting(guest, {"pf": "ens10", "vfs": 6, "each": {"4": {"driver": "igbvf"}}})
    code, said = hostprep(guest, "plan")
    assert code == 1
    assert not missing(said, ["used by python3 (pid", f"through vfio group {group}", "--allow-disruption nic_vfs"])
    assert guest.get("/var/lib/hostprep/journal") == journal

    with step("VFs in use in other namespaces, none wanted", "refused, with the holders' names") as saw:
        wanting(guest, {"pf": "ens10", "vfs": 0})
        code, said = hostprep(guest, "apply --yes")
        assert code == 4, said  # the next boot has none
        assert not missing(said, [f"refused nic_vfs/{ENS10}/vfs (now): takes all 6 VFs away", " sleep), as ens10v1"])
        assert numbers(guest) == [6, 0, 0]
        assert "ens10v0" in guest.sh("ip -n empty link")
        saw("refused; the VFs stay where they are")

    guest.sh("kill $(cat /run/held)")
    applied(guest, "--allow-disruption nic_vfs")
    assert numbers(guest) == [0, 0, 0]


def test_k18_a_pf_in_another_namespace_is_judged_there_and_never_written(guest: Guest) -> None:
    """sriov-network-operator#2 and #15: PFs of a worker were reset to no VFs, under their owner."""
    wanting(guest, {"pf": "ens10", "vfs": 4, "vlan": 100})
    applied(guest)
    guest.sh("ip netns add worker && ip link set ens10 netns worker && ip -n worker link set ens10 up")
    guest.sh("ip netns exec worker setsid sleep 9999 >/dev/null 2>&1 &")
    found = findings(guest)
    assert {f["status"] for f in found.values()} == {"pass"}
    assert found[f"{ENS10}/vf3/vlan"]["current"] == 100
    with step("a PF in another namespace, more VFs wanted", "reported, not touched") as saw:
        wanting(guest, {"pf": "ens10", "vfs": 7})
        code, said = hostprep(guest, "apply --yes --allow-disruption nic_vfs")
        assert code == 4, said  # not now; the record for the next boot, when nobody has the PF yet, is written
        assert not missing(
            said, ["the PF is in the network namespace of ", " sleep; hostprep never changes what others hold"]
        )
        assert numbers(guest) == [4, 0, 0]
        assert '"vlan_list":[{"vlan":100}]' in guest.sh("ip -n worker -j link show ens10")
        saw("reported; its VFs and their VLANs as they were")


@thorough
def test_r9_vfs_get_the_driver_that_is_wanted_and_k12_those_of_a_connectx_none(guest: Guest) -> None:
    """VFs for vfio never show up as interfaces; a ConnectX under pci-pf-stub has VFs all the same (R12)."""
    guest.sh("dmesg -C")
    stub = {"pf": "15b3:1019", "vfs": 8, "driver": "none", "autoprobe": False}
    wanting(guest, {"pf": "ens10", "vfs": 4, "driver": "vfio-pci"}, stub)
    applied(guest)
    assert drivers(guest, ENS10) == ["vfio-pci"] * 4
    assert "igbvf 0000:" not in guest.sh("dmesg")
    assert len(guest.sh("ls /dev/vfio").split()) == 5
    assert drivers(guest, CONNECTX) == ["none"] * 8
    assert guest.sh(f"cat {DEVICES}/{CONNECTX}/sriov_drivers_autoprobe") == "0"
    shown = [line for line in guest.sh("lspci -nn -d 15b3:").splitlines() if "Virtual Function" in line]
    assert len(shown) == 8
    assert all("[15b3:101a]" in line for line in shown)
    wanting(guest, {"pf": "ens10", "vfs": 4, "driver": "igbvf"}, stub)
    applied(guest)
    assert drivers(guest, ENS10) == ["igbvf"] * 4
    overrides = guest.sh(f"cat {DEVICES}/{ENS10}/virtfn*/driver_override").split()
    assert overrides == ["(null)"] * 4
    assert statuses(guest) == {"pass"}


@thorough
def test_r3_what_the_kernel_would_refuse_is_told_before_anything_is_written(guest: Guest) -> None:
    guest.sh("dmesg -C")
    wanting(guest, {"pf": "ens10", "vfs": 8}, {"pf": "virtio_net", "vfs": 1})
    code, said = hostprep(guest, "apply --yes")
    assert code == 1
    assert not missing(said, ["the device offers 7 VFs", "No physical function matches virtio_net", ENS11])
    guest.sh(f"echo {ENS11} > /sys/bus/pci/drivers/igb/unbind")
    wanting(guest, {"pf": ENS11, "vfs": 2})
    assert "no driver is bound to the PF" in hostprep(guest, "plan")[1]
    record = guest.get(RECORD)  # its 8 VFs are for a next boot, which may bring another firmware
    guest.sh(f"echo {ENS11} > /sys/bus/pci/drivers/igb/bind; mount -o remount,ro /sys")
    wanting(guest, {"pf": ENS10, "vfs": 2, "up": False})
    code, said = hostprep(guest, "apply --yes")
    assert code == 5
    assert not missing(said, ["2 VFs: /sys is mounted read-only"])
    guest.sh("mount -o remount,rw /sys")
    assert (numbers(guest), guest.get(RECORD)) == ([0, 0, 0], record)
