"""The virtual functions of one physical function, as the kernel's SR-IOV interface in sysfs has them.

Documentation/ABI/testing/sysfs-bus-pci and drivers/pci/iov.c. A successful write is not success: VFs may be fewer than
asked for, and their links, drivers and interfaces come later.
"""

from __future__ import annotations

import errno
from collections.abc import Collection

from hostprep.errors import ChangeFailed, HostError
from hostprep.host import Host
from hostprep.pci import DEVICES, driver, virtual_functions

WRITE_S = 120.0  # i40e takes 22 s for 64 VFs; sriov-network-operator waits 120 s
LINKS_S = 60.0  # how long the links of VFs may take to appear after the write
DRIVERS_S = 30.0  # and their drivers and network interfaces
LINK_S = 10.0  # and the link of their PF, which some drivers take down to make them
DRIVERS = "/sys/bus/pci/drivers"
PROBE = "/sys/bus/pci/drivers_probe"
VFIO = "vfio-pci"

# What sriov_numvfs says, and why (drivers/pci/iov.c: sriov_numvfs_store, sriov_enable; drivers' sriov_configure).
_CAUSES = {
    errno.EBUSY: ("VFs are there already", "Somebody else makes VFs at this moment. Look again: hostprep check"),
    errno.ERANGE: (
        "more than sriov_totalvfs, which the firmware and the driver offer",
        "Raise NUM_OF_VFS (nic_firmware) and reboot.",
    ),
    errno.ENOENT: (
        "no driver is bound to the physical function, or its driver makes no VFs",
        "Load the driver (modprobe mlx5_core), or bind pci-pf-stub.",
    ),
    errno.ENOMEM: (
        "the BIOS has left too little address space or too few bus numbers for VFs",
        "Enable SR-IOV, ARI and `Above 4G Decoding` in the BIOS; else add pci=realloc to kernel_args and reboot.",
    ),
    errno.ENOSPC: (
        "the device is out of resources for this many VFs",
        "Ask for fewer, or for fewer MSI-X vectors or queues per VF.",
    ),
    errno.EINVAL: (
        "the driver refuses this number, or the mode of its embedded switch does",
        "See the kernel log (dmesg); in switchdev mode: devlink dev eswitch set pci/ADDRESS mode legacy",
    ),
    errno.EIO: (
        "the device is inconsistent (InitialVFs and TotalVFs differ, or it does not answer)",
        "Power-cycle this host.",
    ),
    errno.ENODEV: ("the device is not an SR-IOV physical function", "See nic_firmware: SRIOV_EN."),
    errno.ENOSYS: ("the device is not an SR-IOV physical function", "See nic_firmware: SRIOV_EN."),
    errno.EOPNOTSUPP: ("the driver makes no VFs", "Is it the right driver? hostprep inspect --only nic_vfs"),
    errno.EROFS: ("/sys is mounted read-only", "In a container or a hardened unit: run hostprep on the host itself."),
    errno.EPERM: ("the kernel does not allow it", "Is this a container, or the kernel locked down?"),
    errno.EACCES: ("the kernel does not allow it", "Is this a container, or the kernel locked down?"),
}


def make(host: Host, pf: str, count: int) -> None:
    """Make exactly this many VFs; those that are there go first (n to m is EBUSY). The caller knows who uses them."""
    attribute = f"{DEVICES}/{pf}/sriov_numvfs"
    if virtual_functions(host, pf):
        _write(host, attribute, 0, pf)
        _wait(host, pf, 0)
    if count:
        _write(host, attribute, count, pf)
        _wait(host, pf, count)


def _write(host: Host, attribute: str, count: int, pf: str) -> None:
    try:
        host.write(attribute, str(count), timeout=WRITE_S)
    except HostError as e:
        if e.code:
            why, hint = _CAUSES.get(e.code, (str(e), "See the kernel log: dmesg"))
            raise ChangeFailed(
                f"{pf}: {count} VFs: {why} ({errno.errorcode.get(e.code, e.code)})", hint.replace("ADDRESS", pf)
            ) from e
        hint = "Something holds a VF open, or the driver is stuck. Leave this PF alone until the host has rebooted."
        raise ChangeFailed(f"{pf}: {count} VFs: {e}", hint) from e


def _wait(host: Host, pf: str, count: int) -> None:
    """Wait until as many VFs are there; ChangeFailed when they do not come."""

    def there() -> bool:
        return len(virtual_functions(host, pf)) == count

    if not host.settled(there, LINKS_S) and not host.rehearsing:
        made = len(virtual_functions(host, pf))
        hint = f"See the kernel log: dmesg | grep {pf}"
        raise ChangeFailed(f"{pf}: asked for {count} VFs, and the kernel has {made}", hint)


def bind(host: Host, vf: str, wanted: str | None) -> None:
    """Bind a VF (its address) to a driver by name, or to none. Nobody uses it: that is the caller's to know.

    driver_override, not new_id, which would grab other devices of the same id too. It also binds where
    sriov_drivers_autoprobe is off (pci_device_can_probe), and stays only for drivers that no device gets by itself.
    """
    if not host.link(f"{DEVICES}/{vf}/physfn") and not host.rehearsing:
        raise ChangeFailed(f"{vf} is not a virtual function: it is left alone")  # sriov-network-operator#797
    bound = driver(host, vf)
    if bound == (wanted or ""):
        return
    if bound:
        host.write(f"{DRIVERS}/{bound}/unbind", vf)
    if wanted is None:
        if bound == VFIO:
            _forget(host, vf, "")
        return
    if not host.exists(f"{DRIVERS}/{wanted}"):
        host.run("modprobe", wanted)
    host.write(f"{DEVICES}/{vf}/driver_override", wanted)
    try:
        host.write(PROBE, vf)
    except HostError as e:
        if driver(host, vf) == wanted:  # the write may fail although it was bound (dpdk-devbind)
            _forget(host, vf, wanted)
            return
        _forget(host, vf, "")
        if wanted == VFIO and not host.exists(f"{DEVICES}/{vf}/iommu_group"):
            hint = "Enable VT-d or AMD-Vi in the BIOS, and on Intel intel_iommu=on (kernel_args)."
            raise ChangeFailed(f"{vf}: {VFIO} needs an IOMMU, and this device is in no group of one", hint) from e
        raise
    took = host.settled(lambda: driver(host, vf) == wanted, DRIVERS_S)
    _forget(host, vf, wanted if took else "")
    if not took and not host.rehearsing:
        found = driver(host, vf) or "none"
        raise ChangeFailed(f"{vf}: {wanted} does not take it (its driver is {found})", f"See dmesg | grep {vf}")


def _forget(host: Host, vf: str, bound: str) -> None:
    """Leave a driver_override only where a driver needs it that no device gets by itself."""
    if bound != VFIO:
        host.write(f"{DEVICES}/{vf}/driver_override", "\n")


def probe(host: Host, pf: str, leave: Collection[str] = ()) -> None:
    """Let the kernel bind the VFs of a PF that have no driver yet to those that it would choose, but for some."""
    for vf in virtual_functions(host, pf):
        if vf not in leave and not driver(host, vf):
            host.write(PROBE, vf)


def settle(host: Host, pf: str, *, bound: bool) -> None:
    """Wait, within limits, until VFs have the drivers and interfaces that they will have. They are judged later."""

    def ready(vf: str) -> bool:
        by = driver(host, vf)
        if not by or by == VFIO:
            return bool(by) or not bound
        return not host.exists(f"{DEVICES}/{vf}/net") or bool(host.names(f"{DEVICES}/{vf}/net"))

    host.settled(lambda: all(ready(vf) for vf in virtual_functions(host, pf)), DRIVERS_S)


def wait_for_link(host: Host, name: str) -> None:
    """Wait, within limits, for a PF that is up to have its link: igb and ixgbe refuse rates without (EINVAL)."""
    up = host.links([name]) if name and not host.rehearsing else {}
    if name in up and up[name].up:
        host.settled(lambda: host.links([name])[name].carrier, LINK_S)
