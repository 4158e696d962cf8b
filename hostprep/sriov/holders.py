"""Who uses a PCI function: a virtual function (VF) before it is dropped or rebound, a physical one (PF) before it is
reset or makes VFs, which may take its link down (R13).

The kernel does not ask: 0 in sriov_numvfs takes all VFs at once, also those in other network namespaces (R4), or waits
for ever for a process that has one open through vfio (R5, spdk#3205). So this is asked before:

- processes with its device file open: vfio (group, /dev/vfio/devices, noiommu), uio, uverbs, umad, vhost-vdpa;
- its network interface in another network namespace (R100), which is told by a `net` directory that is empty;
- its network interface here in a bond, bridge or switch, below a VLAN or macvtap, with an address or routes;
- a macvlan or ipvlan upon it that was moved to another network namespace, where the kernel's sysfs hides the link;
- vDPA devices, mediated devices and subfunctions made of it.

A monitor that opens every RDMA device (ibacm) is a holder like others: it is named, and can be stopped; a list of
harmless names would go stale. That an interface is up is no use of it. Not seen are RDMA and XDP users within the
kernel that have no address, packet sockets, device files of other names in a container, and, where root may not look
into all processes (a hardened unit), that macvlan or ipvlan.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from hostprep.host import Host, attempt
from hostprep.model import Unknown
from hostprep.pci import DEVICES, children, driver, interfaces, netdevs

if TYPE_CHECKING:
    from hostprep.host.processes import Namespace, Process

K = TypeVar("K")
V = TypeVar("V")
Table = Mapping[K, V] | Unknown
NOWHERE = "its network interface is in no network namespace that could be found"
_MOST = 3  # processes of a parallel program that are named
# Device classes whose devices have the function as parent, and their files (drivers/infiniband/core, drivers/uio).
_CLASSES = (
    ("/sys/class/infiniband_verbs", "/dev/infiniband", "over RDMA "),
    ("/sys/class/infiniband_mad", "/dev/infiniband", "over RDMA "),
    ("/sys/class/uio", "/dev", ""),
)
# Buses whose devices are made of a function, by an administrator (`vdpa dev add`, a mdev's UUID, `devlink port add`).
_BUSES = (("vdpa", "", "vDPA device"), ("mdev", "", "mediated device"), ("auxiliary", ".sf.", "subfunction"))


class Stacked(NamedTuple):
    """An interface that lies upon another."""

    lower: str
    upper: str
    kind: str  # bond, bridge, vlan ...; empty where the kernel does not tell
    master: bool  # is the lower one a port of it?


class Function(NamedTuple):
    """One function, as sysfs shows what may be used of it."""

    files: Mapping[str, tuple[str, str]]  # device file -> how it is used, through what
    netdevs: tuple[str, ...] = ()
    hidden: bool = False  # has it an interface that this network namespace does not show?
    indexes: tuple[int, ...] = ()  # of netdevs
    stacked: tuple[Stacked, ...] = ()


class Classes(NamedTuple):
    """What sysfs lists by class and not by function, read once: of a thousand VFs most have none of it."""

    made: Mapping[str, Mapping[str, str]]  # PCI address -> device made of it -> what a person calls that
    files: Mapping[str, Mapping[str, tuple[str, str]]]  # PCI address -> as Function.files
    vfio: Mapping[str, Sequence[str]]  # PCI address -> its vfio devices
    netdevs: Mapping[str, Sequence[str]]  # PCI address -> interfaces of this namespace
    stacked: Mapping[str, Sequence[Stacked]]  # by the lower interface


class Users(NamedTuple):
    """What is read once for all functions; what need not be asked is empty."""

    made: Mapping[str, Sequence[str]]  # PCI address -> "vDPA device vdpa0"
    opened: Table[str, tuple[Process, ...]]  # by device file
    elsewhere: Table[str, tuple[str, Namespace]]  # by PCI address
    uppers: Table[int, tuple[tuple[str, str, Namespace], ...]]  # in other namespaces, by index of the lower interface
    addresses: Table[str, tuple[str, ...]]  # by interface
    routes: Table[str, tuple[str, ...]]


def holders(host: Host, addresses: Sequence[str], drivers: Mapping[str, str] | None = None) -> dict[str, str | Unknown]:
    """Of the functions (PCI addresses) that are in use, by whom; Unknown where that could not be found out.

    A function that is not there has no user. `drivers`, by address, are those that the caller has read already.
    """
    if not addresses:
        return {}
    classes = attempt(_classes, host)
    if isinstance(classes, Unknown):
        return dict.fromkeys(addresses, classes)
    known = drivers or {}
    free = {a for a in addresses if known.get(a) == "" and a not in classes.made}  # nothing is used without a driver
    seen = {a: attempt(_look, host, a, known.get(a), classes) for a in addresses if a not in free}
    users = _users(host, classes, [f for f in seen.values() if isinstance(f, Function)])
    told = {a: f if isinstance(f, Unknown) else _tell(a, f, users) for a, f in seen.items()}
    return {a: said for a, said in told.items() if said}


# -- looking --------------------------------------------------------------------------------------


def _classes(host: Host) -> Classes:
    files: dict[str, dict[str, tuple[str, str]]] = {}
    for folder, devices, how in _CLASSES:
        for address, names in children(host, folder).items():
            files.setdefault(address, {}).update({f"{devices}/{name}": (how, name) for name in names})
    return Classes(_made(host), files, children(host, "/sys/class/vfio-dev"), interfaces(host), _stacked(host))


def _look(host: Host, address: str, bound: str | None, classes: Classes) -> Function:
    path = f"{DEVICES}/{address}"
    files = {
        f"/dev/{name}": ("", what)  # drivers/vhost/vdpa.c
        for child, what in classes.made.get(address, {}).items()
        for name in host.names(f"{path}/{child}")
        if name.startswith("vhost-vdpa-")
    }
    bound = driver(host, address) if bound is None else bound
    if not bound:  # what uses a function does so through its driver
        return Function(files)
    if "vfio" in bound:  # vfio-pci, and what is made of it: mlx5_vfio_pci, ice-vfio-pci ...
        return Function(files | _vfio_files(host, path, classes.vfio.get(address, ())))
    files |= classes.files.get(address, {})
    found = tuple(classes.netdevs.get(address, ()))
    if len(found) > 1:
        found = netdevs(host, path)  # without representors
    hidden = not found and host.exists(f"{path}/net")
    stacked = tuple(s for name in found for s in classes.stacked.get(name, ()))
    return Function(files, found, hidden, tuple(host.number(f"{path}/net/{n}/ifindex") for n in found), stacked)


def _vfio_files(host: Host, path: str, devices: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Documentation/driver-api/vfio.rst: a group's file, or a device's own (since Linux 6.6)."""
    group = (host.link(f"{path}/iommu_group") or "").rpartition("/")[2]
    files = {f"/dev/vfio/devices/{name}": ("", f"vfio device {name}") for name in devices}
    if group:
        files |= {f"/dev/vfio/{prefix}{group}": ("", f"vfio group {group}") for prefix in ("", "noiommu-")}
    return files


def _stacked(host: Host) -> dict[str, list[Stacked]]:
    """By lower interface; what lies upon others is virtual (net/core/dev.c: netdev_adjacent_sysfs_add)."""
    found: dict[str, list[Stacked]] = {}
    for upper in host.names("/sys/devices/virtual/net"):
        path = f"/sys/devices/virtual/net/{upper}"
        lowers = [entry.removeprefix("lower_") for entry in host.names(path) if entry.startswith("lower_")]
        kind = re.search(r"^DEVTYPE=(.+)$", (lowers and host.read(f"{path}/uevent")) or "", re.MULTILINE)
        for lower in lowers:
            master = (host.link(f"/sys/class/net/{lower}/master") or "").rpartition("/")[2]
            found.setdefault(lower, []).append(Stacked(lower, upper, kind[1] if kind else "", upper == master))
    return found


def _made(host: Host) -> dict[str, dict[str, str]]:
    """By PCI address, the names of devices that are made of a function, and what a person calls them."""
    found: dict[str, dict[str, str]] = {}
    for bus, mark, what in _BUSES:
        for address, names in children(host, f"/sys/bus/{bus}/devices").items():
            found.setdefault(address, {}).update({name: f"{what} {name}" for name in names if mark in name})
    return found


def _users(host: Host, classes: Classes, functions: Sequence[Function]) -> Users:
    """What the functions call for, and no more: each question costs a walk over all processes, or a child."""

    def ask(needed: bool, read: Callable[[], Mapping[K, V]]) -> Table[K, V]:
        return attempt(read) if needed else {}

    # of /dev/infiniband/uverbs12 what comes before the number: few prefixes, for many files
    prefixes = sorted({file.rstrip("0123456789") for f in functions for file in f.files})
    named, hidden = any(f.netdevs for f in functions), any(f.hidden for f in functions)
    others = attempt(host.namespaces) if named or hidden else []

    def there(needed: bool, read: Callable[[Sequence[Namespace]], Mapping[K, V]]) -> Table[K, V]:
        return others if needed and isinstance(others, Unknown) else attempt(read, others) if needed and others else {}

    return Users(
        {address: list(devices.values()) for address, devices in classes.made.items()},
        ask(bool(prefixes), lambda: host.open_files(prefixes)),
        there(hidden, host.netdevs_elsewhere),
        there(named and not isinstance(others, Unknown), host.uppers_elsewhere),
        ask(named, host.addresses),
        ask(named, host.routes),
    )


# -- telling --------------------------------------------------------------------------------------


def _tell(address: str, f: Function, users: Users) -> str | Unknown:
    """A phrase that names all users; Unknown where none was found, and not everything could be looked at."""
    told = [*_processes(f, users), *_namespace(address, f, users), *_interfaces(f, users), *_devices(address, users)]
    known = [said for said in told if isinstance(said, str)]
    unknown = [said.reason for said in told if isinstance(said, Unknown)]
    return Unknown("; ".join(dict.fromkeys(unknown))) if unknown and not known else "; ".join(known)


def _processes(f: Function, users: Users) -> Iterator[str | Unknown]:
    if f.files and isinstance(users.opened, Unknown):
        yield users.opened
        return
    for file, (how, through) in f.files.items():
        if not isinstance(users.opened, Unknown) and (who := users.opened.get(file)):
            yield f"used {how}by {_people(who)} through {through}"


def _people(processes: Sequence[Process]) -> str:
    named = [f"{p.name} ({', '.join(filter(None, (f'pid {p.pid}', p.unit)))})" for p in processes[:_MOST]]
    more = len(processes) - _MOST
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def _namespace(address: str, f: Function, users: Users) -> Iterator[str | Unknown]:
    if not f.hidden:
        return
    if isinstance(users.elsewhere, Unknown):
        yield users.elsewhere
    elif found := users.elsewhere.get(address):
        name, namespace = found
        yield f"in another network namespace ({namespace.holder}), as {name}"
    else:
        yield Unknown(NOWHERE)


def _interfaces(f: Function, users: Users) -> Iterator[str | Unknown]:
    for name in f.netdevs:
        for s in f.stacked:
            if s.lower == name:
                upper = f"{s.kind} {s.upper}".strip()
                carries = _carries(s.upper, users)
                more = f", which {carries}" if isinstance(carries, str) and carries else ""
                yield (f"{name} is in {upper}" if s.master else f"{upper} is on {name}") + more
        if carries := _carries(name, users):
            yield carries if isinstance(carries, Unknown) else f"{name} {carries}"
    if f.netdevs and isinstance(users.uppers, Unknown):
        yield users.uppers
    elif not isinstance(users.uppers, Unknown):
        for lower, index in zip(f.netdevs, f.indexes, strict=True):
            for upper, kind, namespace in users.uppers.get(index, ()):
                yield f"{kind} {upper} in another network namespace ({namespace.holder}) is on {lower}".strip()


def _carries(name: str, users: Users) -> str | Unknown:
    """What an interface has of addresses and routes; empty if nothing."""
    if isinstance(users.addresses, Unknown):
        return users.addresses
    addresses = users.addresses.get(name, ())
    routes = () if isinstance(users.routes, Unknown) else users.routes.get(name, ())
    if not addresses and isinstance(users.routes, Unknown):
        return users.routes
    parts = [f"{'the address' if len(addresses) == 1 else 'the addresses'} {', '.join(addresses)}"] if addresses else []
    if "default" in routes:
        parts.append("the default route")
    elif routes and not addresses:  # each address brings a route of its own
        parts.append(f"routes to {', '.join(routes)}")
    return f"has {' and '.join(parts)}" if parts else ""


def _devices(address: str, users: Users) -> Iterator[str]:
    return (f"has the {device}" for device in users.made.get(address, ()))
