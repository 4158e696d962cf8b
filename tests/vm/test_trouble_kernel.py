"""Another kernel comes or goes between apply and reboot: the entry that boots has what was asked for, or check says so.

The hooks that Debian's kernel packages run (/etc/kernel) call update-grub, behind hostprep's back.
"""

from __future__ import annotations

import json

from vm import Guest
from vm.admin import findings, hostprep, profile
from vm.story import EVERYTHING, step
from vm.trouble import claims, files

NEW = "6.99.0-hostprep-amd64"
WANT = {"kernel_args": ["iommu.strict=1"], "hugepages": {"1GiB": 1, "2MiB": 32}}
ADDED = ["hugepagesz=1G", "hugepages=1", "hugepagesz=2M", "hugepages=32", "iommu.strict=1"]
# What dpkg does for a kernel package that is called linux-image-NEW, but for the initramfs, which is copied.
INSTALL = f"""
old=$(uname -r)
for name in vmlinuz config System.map initrd.img; do cp /boot/$name-$old /boot/$name-{NEW}; done
cp -al /lib/modules/$old /lib/modules/{NEW}
DEB_MAINT_PARAMS=configure /etc/kernel/postinst.d/zz-update-grub {NEW} /boot/vmlinuz-{NEW}
"""
REMOVE = """
rm -r /boot/*-{0} /lib/modules/{0}
DEB_MAINT_PARAMS=remove run-parts --arg={0} --arg=/boot/vmlinuz-{0} /etc/kernel/postrm.d
"""
PIN = """
echo GRUB_DEFAULT=saved >/etc/default/grub.d/10-pin.cfg; update-grub
grub-set-default "gnulinux-{}-advanced-$(findmnt -no UUID /)"
"""
UNPIN = "rm /etc/default/grub.d/10-pin.cfg; grub-editenv - unset saved_entry; update-grub"


def booted(guest: Guest) -> str:
    """Which kernel GRUB has loaded: the copy says of itself what the original says."""
    return guest.sh("sed -n 's,.*BOOT_IMAGE=/boot/vmlinuz-\\([^ ]*\\).*,\\1,p' /proc/cmdline")


def arguments(guest: Guest) -> list[str]:
    return guest.sh("cat /proc/cmdline").split()[1:]


def first_line(guest: Guest) -> list[str]:
    """The arguments of the first entry."""
    return guest.sh(r"grep -m 1 -E '^\s+linux\s' /boot/grub/grub.cfg").split()[2:]


def will_boot(guest: Guest) -> str:
    """The kernel of the entry that hostprep takes for the one that boots."""
    data = json.loads(guest.sh("hostprep inspect --only kernel_args --format json"))
    return str(data["facts"]["kernel_args"]["boot/entry"]["next_boot"]).rpartition(" ")[2]


def test_kernels_that_come_and_go_behind_hostpreps_back(guest: Guest) -> None:
    """rhboot/grubby#55: arguments are lost when a kernel is installed."""
    before, started, old = files(guest), arguments(guest), booted(guest)
    profile(guest, WANT)
    with step("apply, a kernel upgrade, reboot", "the new kernel has it all: ready") as saw:
        assert hostprep(guest, "apply --yes")[0] == 4
        guest.sh(INSTALL)
        assert will_boot(guest) == NEW
        guest.reboot()
        code, said = hostprep(guest, "check")
        assert (code, booted(guest)) == (0, NEW), said
        assert arguments(guest) == [*started, *ADDED]
        saw("booted the new kernel, ready")

    if EVERYTHING:
        pinned_and_removed(guest, old)
    with step("revert", "no grub.cfg with a kernel that is gone; all as found") as saw:
        code, said = hostprep(guest, "revert --yes")
        assert (code, claims(guest)) == (0, []), said
        if EVERYTHING:
            assert old not in guest.sh("cat /boot/grub/grub.cfg")
            guest.sh(UNPIN)
        assert (will_boot(guest), first_line(guest)) == (NEW, started)
        guest.sh("rm /etc/hostprep/profile.yaml; rmdir /etc/hostprep")
        changed = {line.split()[1] for line in files(guest) ^ before}
        assert changed <= {"/boot/grub/grub.cfg", "/boot/grub/grubenv"}
        saw("the new kernel, as it was installed; /etc byte for byte as found")


def pinned_and_removed(guest: Guest, old: str) -> None:
    with step("GRUB_DEFAULT=saved pins the old kernel; apply more", "read and judged of the old one's entry") as saw:
        guest.sh(PIN.format(old))
        assert will_boot(guest) == old
        profile(guest, {**WANT, "kernel_args": ["iommu.strict=1", "audit=1"]})
        code, said = hostprep(guest, "apply --yes")
        assert (code, findings(guest)["audit"]["status"]) == (4, "pending-reboot"), said
        saw("pending-reboot, of the old kernel's entry")

    with step("the pinned kernel is removed", "GRUB takes the first entry, and so does check") as saw:
        guest.sh(REMOVE.format(old))
        assert will_boot(guest) == NEW
        assert findings(guest)["audit"]["status"] == "pending-reboot"
        saw("the new kernel's entry, pending-reboot")
