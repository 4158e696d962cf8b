"""From a fresh host to a node that has joined, and back: the whole of hostprep on a machine that really reboots.

The guest's own mstconfig talks to the firmware of a ConnectX-5 as it comes from the factory (firmware.py).
"""

from __future__ import annotations

import time
from typing import Any

from hostprep import packages
from vm import Guest
from vm.admin import ACTIVE, ETC, SLOW, findings, hostprep, installed, missing, profile, state
from vm.firmware import PF as CONNECTX
from vm.firmware import Card
from vm.story import step

PORTS = ("0000:41:00.0", "0000:81:00.0")
NODES = "/sys/devices/system/node/node{}/hugepages/hugepages-{}kB/nr_hugepages"
KIB_1G, KIB_2M = 1048576, 2048
WANTED: dict[str, Any] = {
    "name": "node",
    "swap": "disabled",
    "kernel_args": ["pcie_aspm=off", "transparent_hugepage=never"],
    "hugepages": {"1GiB": 2, "2MiB": {"0": 64, "1": 32}, "default": "1GiB"},
    "nic_firmware": [{"cards": "15b3:1019", "count": 1, "SRIOV_EN": True, "NUM_OF_VFS": 4}],
    "nic_vfs": [
        *({"pf": port, "vfs": 4} for port in PORTS),
        {"pf": CONNECTX, "vfs": 4, "driver": "none", "autoprobe": False},
    ],
}
# On a partition, which its type alone would not hide from systemd-gpt-auto-generator, and in a file.
SWAP = """
sfdisk --quiet --part-type /dev/vda 3 0657FD6D-A4AB-43C4-84E5-0933C84B4F4F
mkswap --quiet /dev/vda3
fallocate -l 64M /swapfile && chmod 600 /swapfile && mkswap --quiet /swapfile
printf '/dev/vda3 none swap sw 0 0\n/swapfile none swap sw,pri=5 0 0\n' >> /etc/fstab
systemctl daemon-reload && swapon -a
"""
TEXTFILES = "/srv/textfiles"
FAILED = "apply: failed"
APPLY = f"hostprep apply --yes --reboot > /root/said 2>&1 || [ $? -gt 128 ] || echo '{FAILED}' > /dev/console"
SAYS = """timeout 120 sh -c 'until grep -qx "{}" {}; do sleep 0.2; done'"""
# All that a revert has to give back: what lies on the disk, and what the running system has of it.
FOUND = f"""
{{ {ETC}}} | grep -v {packages.FEATURES}
find /boot /usr/lib/systemd /usr/local -xdev -type f -printf '%p %m %u ' -exec md5sum {{}} +
awk 'NR > 1 {{print $1, $2}}' /proc/swaps | sort; cat /proc/cmdline /sys/kernel/mm/hugepages/*/nr_hugepages
cat /sys/bus/pci/devices/*/sriov_numvfs
"""
# What apply may write: none of it is written when there is nothing to do. The lock has its holder's pid, and the label
# of the node is told anew with every report.
WRITTEN = f"""
find /etc /boot /var/lib/hostprep -xdev -not -name lock -not -path '{packages.FEATURES}*' -printf '%p %i %T@ %C@\\n'
ls -di /sys/bus/pci/devices/*/virtfn*/; cat /sys/kernel/mm/hugepages/*/nr_hugepages
"""


def pages(guest: Guest, kib: int) -> list[int]:
    """Huge pages of a size on each of the two NUMA nodes."""
    return [int(guest.sh(f"cat {NODES.format(node, kib)}")) for node in (0, 1)]


def vfs(guest: Guest) -> list[int]:
    return [int(guest.sh(f"cat /sys/bus/pci/devices/{pf}/sriov_numvfs")) for pf in (*PORTS, CONNECTX)]


def told(guest: Guest, ready: bool) -> None:
    """What others are told, by units that follow each report: Prometheus and node-feature-discovery."""
    guest.sh(SAYS.format(f"hostprep_ready {ready:d}", f"{TEXTFILES}/hostprep.prom"))
    guest.sh(SAYS.format(f"hostprep.ready={str(ready).lower()}", f"{packages.FEATURES}/hostprep"))


def swaps(guest: Guest) -> set[str]:
    return set(guest.sh("awk 'NR > 1 {print $1}' /proc/swaps").split())


def applied_and_rebooted(guest: Guest) -> str:
    """`apply --reboot`, as an admin who is then thrown out; what it said."""
    guest.machine.monitor.forget()
    guest.machine.agent.tell("/bin/sh", "-c", APPLY)
    deadline = time.monotonic() + SLOW
    while True:
        try:
            guest.restarts(5)
            break
        except TimeoutError as e:
            if FAILED in guest.console() or time.monotonic() > deadline:
                raise AssertionError(f"it did not reboot: {guest.get('/root/said').decode()}") from e
    guest.booted()
    return guest.get("/root/said").decode()


def test_from_a_fresh_host_to_one_that_has_joined_and_back(guest: Guest, card: Card) -> None:
    """Rows K1, K7 to K12, K19, J2: one apply, one reboot, ready; nothing more to do; and as it was found."""
    with step("a fresh host: installed, enabled, booted", "not ready; pbs waits; swap is on"):
        guest.sh(SWAP)
        guest.sh(f"mkdir -p {TEXTFILES} {packages.FEATURES}")
        guest.sh(f"hostprep install prometheus nfd --textfile-directory {TEXTFILES} 2>&1")
        guest.put("hostprep_ready 1\n", f"{TEXTFILES}/hostprep.prom")  # of an earlier boot
        installed(guest)
        profile(guest, WANTED)
        guest.reboot(degraded=True)
        assert swaps(guest) == {"/dev/vda3", "/swapfile"}
        waits(guest)
        found = guest.sh(FOUND)
    with step("check", "not ready, and why"):
        code, said = hostprep(guest, "check")
        assert code == 1
        why = ["NOT READY", "/dev/vda3", "/swapfile", "pcie_aspm", "2MiB/node1", "SRIOV_EN"]
        assert not missing(said, why), said
    with step("plan", "every change, and nothing done"):
        code, said = hostprep(guest, "plan")
        assert code == 1
        shown = [
            "swapoff /dev/vda3",
            "swapoff /swapfile",
            "hugepagesz=1G",
            "update-grub",
            f"mstconfig -d {CONNECTX}",
        ]
        assert not missing(said, [*shown, "pcie_aspm=off", "sriov_numvfs", "To do it: hostprep apply"]), said
        assert guest.sh(FOUND) == found
    with step("apply --reboot", "one reboot, then ready") as saw:
        said = applied_and_rebooted(guest)
        *_, last = said.splitlines()
        assert last.startswith("rebooting, for kernel_args/pcie_aspm"), said
        saw(last[:60])
    with step("after it", "boot units made VFs; ready; then pbs"):
        is_ready(guest)
        assert (card.value("NUM_OF_VFS", "current"), card.writes) == (4, 1)
        told(guest, ready=True)
    with step("apply again", "nothing to do, nothing written"):
        before = guest.sh(WRITTEN)
        code, said = hostprep(guest, "apply --yes --reboot")
        assert code == 0, said
        assert set(guest.sh(WRITTEN).splitlines()) ^ set(before.splitlines()) == set()
        assert "nothing waits for a reboot" in said
        assert card.writes == 1, "flash wears out"
    with step("revert, reboot", "boots, and is what it was"):
        code, said = hostprep(guest, "revert --yes")
        assert code == 0, said
        guest.reboot(degraded=True)
        assert not missing(guest.sh(FOUND), found.splitlines())
        assert not missing(found, guest.sh(FOUND).splitlines())
        assert (card.value("SRIOV_EN", "current"), card.value("NUM_OF_VFS", "current"), card.writes) == (0, 0, 2)
        assert state(guest, "pbs") == "inactive"


def waits(guest: Guest) -> None:
    """Not ready is told everywhere, with what is missing; and nobody starts what waits, not even by hand."""
    told(guest, ready=False)
    units = ("multi-user.target", "hostprep-ready.target", "pbs")
    assert [state(guest, unit) for unit in units] == ["active", "inactive", "inactive"]
    assert guest.sh("systemctl --failed --no-legend --plain").split()[0] == "hostprep-ready.service"
    assert "hugepages/1GiB: wanted >= 2, found 0" in guest.sh("journalctl -b -o cat -u hostprep-ready.service")
    refused = guest.run("systemctl start pbs.service")
    assert (refused.returncode, state(guest, "pbs")) == (1, "inactive")


def is_ready(guest: Guest) -> None:
    """What was asked for is there, each told by somebody else than hostprep; and hostprep says so."""
    guest.sh(ACTIVE.format("pbs.service"))
    assert set(WANTED["kernel_args"]) <= set(guest.sh("cat /proc/cmdline").split())
    assert sum(pages(guest, KIB_1G)) == 2
    assert pages(guest, KIB_2M) == [64, 32]
    assert swaps(guest) == set()
    assert vfs(guest) == [4, 4, 4]
    assert hostprep(guest, "wait --timeout 0")[0] == 0
    assert hostprep(guest, "check")[0] == 0
    assert {f["status"] for f in findings(guest).values()} == {"pass"}
    entered = "systemctl show --value -p ActiveEnterTimestampMonotonic"
    made, network, checked, reached, started = (
        int(guest.sh(f"{entered} {unit}"))
        for unit in (
            "hostprep-apply.service",
            "network-pre.target",
            "hostprep-ready.service",
            "hostprep-ready.target",
            "pbs.service",
        )
    )
    assert 0 < made <= network
    assert made <= checked <= reached <= started
