"""NVSwitches, and the fabric manager that they need: without it no GPU behind them can be used.

It must be of the driver's own version: NVIDIA, "Fabric Manager User Guide".
"""

from __future__ import annotations

import errno
import re
from typing import NamedTuple

from hostprep import pci
from hostprep.errors import CommandFailed, HostError
from hostprep.host import Host

_VENDOR = "10de:"
_BRIDGE = 0x0680  # other bridge, PCI Code and ID Assignment
_PROGRAM = "nv-fabricmanager"
_COMM = _PROGRAM[:15]  # what the kernel keeps of a name: proc(5)
_VERSION = re.compile(r"Fabric Manager version is\s*:\s*(\d\S*)")


class Manager(NamedTuple):
    """The fabric manager of this host."""

    running: bool
    version: str  # of the program that is installed; "" where none is


def switches(host: Host) -> list[str]:
    """The PCI addresses of the NVSwitches of this host. HostError when the bus cannot be listed."""
    return [address for address in host.names(pci.DEVICES) if _is_switch(host, address)]


def _is_switch(host: Host, address: str) -> bool:
    return pci.class_code(host, address) >> 8 == _BRIDGE and pci.vendor_device(host, address).startswith(_VENDOR)


def manager(host: Host) -> Manager:
    """Does it run, and which version is it?"""
    if host.read("/proc/2/comm") != "kthreadd":  # which whoever sees all processes sees
        raise HostError(f"{_PROGRAM}: the processes of this host are not seen from here: a container, or not root?")
    running = any(_comm(host, pid) == _COMM for pid in host.names("/proc") if pid.isdecimal())
    try:
        return Manager(running, _version(host))
    except HostError:
        if running:
            raise
        return Manager(False, "")


def _comm(host: Host, pid: str) -> str | None:
    try:
        return host.read(f"/proc/{pid}/comm")
    except HostError as e:
        if e.code == errno.ESRCH:  # it has ended meanwhile
            return None
        raise


def _version(host: Host) -> str:
    try:
        said = host.run(_PROGRAM, "--version")
    except CommandFailed as e:
        said = e.output
    if found := _VERSION.search(said):
        return found[1]
    raise HostError(f"{_PROGRAM} --version: does not tell its version")
