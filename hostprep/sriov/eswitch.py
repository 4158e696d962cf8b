"""The embedded switch of a physical function: legacy or switchdev, through devlink(8) (`devlink dev eswitch`)."""

from __future__ import annotations

import json
import re

from hostprep.errors import ChangeFailed, CommandFailed, HostError
from hostprep.host import Host
from hostprep.pci import Function, netdevs

CHANGE_S = 60.0
# mlx5 changes the mode of VFs that are there and have no driver, older kernels only then; ice while there are none.
WITHOUT_VFS = ("ice",)
WITHOUT_SWITCH = ("", "pci-pf-stub", "vfio-pci")  # no devlink instance at all: not asked for
_NEEDS_INLINE = ("15b3:1013", "15b3:1015")  # ConnectX-4 and 4 Lx want inline-mode transport before switchdev


def mode(host: Host, f: Function) -> str | None:
    """The mode; None where the driver has no embedded switch."""
    if f.driver in WITHOUT_SWITCH:
        return None
    try:
        answer = json.loads(host.run("devlink", "-j", "dev", "eswitch", "show", f"pci/{f.address}"))
        found = answer["dev"][f"pci/{f.address}"].get("mode")
    except CommandFailed as e:
        # `kernel answers: Operation not supported`, `No such device`; `Failed to connect to devlink Netlink`
        if re.search(r"not supported|No such device|Failed to connect to devlink", e.output):
            return None
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise HostError(f"devlink: answered what is not understood: {e}") from e
    return str(found) if found is not None else None


def change(host: Host, f: Function, wanted: str, up: bool | None, mtu: int | None) -> None:
    """Change the mode while no VF has a driver (R35). The PF goes down on the way (R39): then it is made again what
    it was, but for `up` and `mtu`, where they are given."""
    was = host.links(f.netdevs[:1]).get(f.netdevs[0]) if f.netdevs else None
    eswitch = ("devlink", "dev", "eswitch", "set", f"pci/{f.address}")
    try:
        if wanted == "switchdev" and f.vendor_device in _NEEDS_INLINE:
            host.run(*eswitch, "inline-mode", "transport", timeout=CHANGE_S)
        host.run(*eswitch, "mode", wanted, timeout=CHANGE_S)
    except HostError as e:
        busy = isinstance(e, CommandFailed) and "busy" in e.output
        hint = "See the kernel log: dmesg"
        if busy:
            hint = "A PF that is in a bond cannot change it: make the VFs before the bond, or take the PF out of it."
        raise ChangeFailed(f"{f.address}: eswitch {wanted}: {e}", hint) from e
    uplink = netdevs(host, f.path)[:1]
    if was and uplink:
        host.set_link(uplink[0], up=was.up if up is None else up, mtu=was.mtu if mtu is None else mtu)
