"""Nowhere to write: a disk that is full at once or in the middle, /etc or the root read-only; and no memory to give."""

from __future__ import annotations

from vm import Guest
from vm.admin import findings, hostprep, missing, profile
from vm.story import step
from vm.trouble import claims, files, nothing_changed

WANT = {
    "hugepages": {"2MiB": 64},
    "kernel_args": ["iommu.strict=1"],
    "swap": "disabled",
    "nic_vfs": [{"pf": "ens10", "vfs": 2}],
}
SWAP = """
dd if=/dev/zero of=/swapfile bs=1M count=16 status=none && chmod 600 /swapfile && mkswap -q /swapfile
echo '/swapfile none swap sw 0 0' >>/etc/fstab && swapon /swapfile
"""
# All the room that root has (fallocate takes nearly all of it at once), less so many KiB.
FULL = """
dd if=/dev/zero of=/ballast bs=1k count={} status=none; sync
fallocate -l $((($(stat -f -c %f /) - 10000) * 4096)) /fill
for size in 64k 4k 1k; do dd if=/dev/zero of=/fill$size bs=$size 2>/dev/null; done
rm /ballast; sync
"""
ROOM = "rm -f /fill*; sync"
READ_ONLY_ETC = "mount --bind /etc /etc && mount -o remount,bind,ro /etc"
REMEDY = "Find out why (findmnt -T, dmesg), and mount it read-write."
LIVE = "cat /proc/sys/vm/nr_hugepages /sys/class/net/ens10/device/sriov_numvfs; swapon --noheadings --show=NAME"


def test_where_nothing_can_be_written_nothing_is_half_done(guest: Guest) -> None:
    """The files are byte for byte what they were, check tells so, and with room for them everything is done."""
    profile(guest, WANT)
    with step("apply on a root that is read-only", "78: names the lock; nothing changed") as saw:
        guest.sh("mount -o remount,ro /")
        with nothing_changed(guest):
            code, said = hostprep(guest, "apply --yes")
        guest.sh("mount -o remount,rw /")
        assert (code, missing(said, ["/var/lib/hostprep", "Read-only file system"])) == (78, [])
        saw(f"{code}, nothing changed")

    guest.sh(SWAP)
    start, running = files(guest), guest.sh(LIVE)

    with step("apply where /etc is read-only", "refused, before anything is changed") as saw:
        guest.sh(READ_ONLY_ETC)
        with nothing_changed(guest):
            code, said = hostprep(guest, "apply --yes")
        guest.sh("umount /etc")
        assert code == 1
        for word in ("kernel_args/iommu.strict (next boot)", "swap/devices (now)", "swap/devices (next boot)"):
            assert f"refused {word}: /etc/" in said
        assert REMEDY in said
        assert guest.sh(LIVE) == running
        saw("refused, nothing changed")

    with step("apply on a disk without a byte left", "5: nothing is journalled, so nothing is changed") as saw:
        guest.sh(FULL.format(0))
        with nothing_changed(guest):
            code, said = hostprep(guest, "apply --yes")
        guest.sh(ROOM)
        words = ["/var/lib/hostprep/journal: No space left on device: what cannot be journalled is not changed"]
        assert (code, missing(said, words)) == (5, []), said
        assert guest.sh(LIVE) == running
        saw(f"{code}, nothing changed")

    with step("apply on a disk that is full within update-grub", "5: made for now, not for the next boot") as saw:
        guest.sh(FULL.format(12))
        with nothing_changed(guest):
            code, said = hostprep(guest, "apply --yes")
        assert (code, missing(said, ["No space left on device", "Make room (df, df -i), then try again."])) == (5, [])
        found = findings(guest)
        assert (found["iommu.strict"]["status"], found["2MiB"]["status"]) == ("fail", "volatile")
        guest.sh(ROOM)
        saw(f"{code}, files as they were, next boot unchanged")

    with step("apply again, with room; revert", "4: waits for a reboot; all as it was") as saw:
        code, said = hostprep(guest, "apply --yes")
        assert code == 4, said
        assert {"iommu.strict", "2MiB", "devices"} <= set(claims(guest))
        code, said = hostprep(guest, "revert --yes")
        assert code == 0, said
        assert (files(guest) ^ start, guest.sh(LIVE)) == (set(), running)
        saw("converged, and byte for byte as found")

    with step("7 pages of 1 GiB on a host of 8 GiB", "refused, now and at the next boot") as saw:
        _refused(guest, {"hugepages": {"1GiB": 7}}, "hugepages/1GiB (now)", "hugepages/1GiB (next boot)")
        _refused(guest, {"kernel_args": ["hugepagesz=1G", "hugepages=7"]}, "kernel_args/hugepages (next boot)")
        saw("refused, both")


def _refused(guest: Guest, sections: dict[str, object], *settings: str) -> None:
    """K8: 32 pages of 1 GiB on a machine of 32 GB make a host that does not boot."""
    profile(guest, sections)
    with nothing_changed(guest):
        code, said = hostprep(guest, "apply --yes")
    assert code == 1, said
    for setting in settings:
        assert f"refused {setting}: " in said
    assert guest.sh("cat /proc/sys/vm/nr_hugepages; cat /sys/kernel/mm/hugepages/*/nr_hugepages") == "0\n0\n0"
