"""What is written to flash outlives the machine that wrote it: a power cut, and a card that wants one. Row K10."""

from __future__ import annotations

from vm import Guest
from vm.admin import findings, hostprep, missing, profile
from vm.firmware import PF, Card
from vm.guest import started
from vm.image import Image
from vm.story import EVERYTHING, step

WANTED = {
    "name": "node",
    "nic_firmware": [{"cards": "15b3:1019", "count": 1, "SRIOV_EN": True, "NUM_OF_VFS": 4}],
    "nic_vfs": [{"pf": PF, "vfs": 4, "driver": "none", "autoprobe": False}],
}


def vfs(guest: Guest) -> str:
    return guest.sh(f"cat /sys/bus/pci/devices/{PF}/sriov_numvfs")


def test_k10_a_power_cut_after_flash_was_written_and_a_card_that_wants_a_power_cycle(
    guest: Guest, card: Card, vm_image: Image
) -> None:
    """`-I- Please power cycle machine`, status 0, and reboots without end: sriov-network-operator#1082."""
    card.fault(needs_power_cycle=True)
    guest.reboot()  # the kernel has seen the factory's card
    profile(guest, WANTED)
    with step("a card says power cycle: apply --reboot", "no reboot; a power cycle is asked for") as saw:
        boot = guest.boot_id()
        code, said = hostprep(guest, "apply --yes --reboot")
        assert code == 4, said
        assert not missing(said, ["power cycle", PF]), said
        assert (guest.boot_id(), card.value("NUM_OF_VFS"), card.writes) == (boot, 4, 1)
        saw("no reboot; pending-power-cycle")
    if EVERYTHING:
        rebooted_all_the_same(guest, card)
    with step("the power goes and comes back", "the boot unit makes the VFs: ready"):
        disk = guest.machine.disk
        guest.kill()
        card.start(cold=True)
        with started(disk, vm_image.pciids, card=card) as after:
            assert (vfs(after), card.value("NUM_OF_VFS", "current")) == ("4", 4)
            code, said = hostprep(after, "check")
            assert (code, card.writes) == (0, 1), said


def rebooted_all_the_same(guest: Guest, card: Card) -> None:
    with step("a reboot all the same", "still a power cycle; nothing written"):
        guest.reboot(degraded=True)
        assert "SR-IOV is off" in guest.sh("journalctl -b -o cat -u hostprep-apply.service")
        assert card.value("NUM_OF_VFS", "current") == 0
        code, said = hostprep(guest, "apply --yes --reboot")
        assert (code, card.writes) == (4, 1), said
        assert "pending-power-cycle" in {f["status"] for f in findings(guest).values()}
