"""Virtual functions of network cards: how many VFs each physical function (PF) has, how they are set, who makes them.

    nic_vfs:
      - pf: ens9f0np0        # a PCI address, interface name or altname, vendor:device, driver; or a glob
        vfs: 8
      - pf: 0000:41:00.*
        count: 2             # that many PFs must match
        vfs: 16
        mac: derived         # 02:, the number of the VF, and the end of the PF's permanent address: stable over reboots
        vlan: 100            # or {id: 100, qos: 3, proto: 802.1ad}
        trust: true
        spoofchk: false
        link: auto           # or enable, disable
        min_rate: 0          # Mbit/s
        max_rate: 10000
        driver: vfio-pci     # of the VFs; without it whatever the kernel chooses; none leaves them without
        autoprobe: true      # does the kernel bind new VFs by itself?
        each: {0: {mac: "02:11:22:33:44:55"}, 4-7: {vlan: 200, driver: vfio-pci}}
        mtu: 9000            # of the PF, at least: it is never lowered
        up: true             # the PF; wanted wherever VFs are, unless this says false
        eswitch: legacy      # or switchdev

Where several entries match a PF, what a later one says of a setting counts, as does a later line of `each`. What an
earlier profile had recorded of a PF, and this one does not speak of, is taken out of the record. Now is sysfs (VFs are
counted by their links), and netlink for what the PF's driver tells of its VFs. Next boot: no kernel keeps VFs over a
reboot, so it is what makes them again. That is hostprep's own boot unit (hostprep-apply.service) with the record that
apply writes, in /etc/hostprep/boot/nic_vfs.json; or an owner found elsewhere: netplan, NetworkManager, systemd .link
files, udev rules, an operator, a script. Where there is such an owner hostprep looks and does not fight: that file has
to say it. What else a profile sets of such VFs is recorded, and at boot set on as many VFs as the owner would make.

VFs in use are not dropped, moved or set: a VF that vfio holds open, that lives in another network namespace, is in a
bond or bridge, below a macvlan of a container, has addresses or routes, or RDMA users. The finding names the holder,
and only --allow-disruption nic_vfs goes on. So it is where the link of a PF in use may go down. A PF in another network
namespace (a kind worker has it) is judged there and never changed, though the host could.

From n to m VFs the kernel only goes through none: all are dropped and made anew, and what the others were set to is
set again, as far as the driver takes it. VFs are made without drivers where something is to be set first, since
drivers read it when they are bound.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from hostprep import boot_record as boot
from hostprep import pci
from hostprep.errors import ChangeFailed, HostError, HostprepError
from hostprep.host import Host, attempt
from hostprep.host.network import Link
from hostprep.host.processes import Namespace
from hostprep.model import Change, Desired, Facet, Fact, Facts, Goals, Reading, Section, Suggestion, Unknown, Value
from hostprep.sriov import eswitch, vfs
from hostprep.sriov.holders import holders
from hostprep.sriov.owners import Owner, Pf, owners

NAME = "nic_vfs"
MOVING = ("*/mac", "*/holder")

_MAC = r"^(?!00:00:00:00:00:00)[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$(?!\n)"
_RATE = {"type": "integer", "minimum": 0, "description": "Mbit/s"}
_OF_A_VF = {
    "mac": {
        "type": "string",
        "pattern": f"^derived$(?!\\n)|{_MAC}",
        "description": "derived, or an address of one device such as 02:11:22:33:44:55 (not 00:00:00:00:00:00)",
    },
    "vlan": {
        "description": "a VLAN, or {id, qos, proto}; 0: none",
        "anyOf": [
            {"type": "integer", "minimum": 0, "maximum": 4094},
            {
                "type": "object",
                "properties": {
                    "id": {"type": "integer", "minimum": 0, "maximum": 4094},
                    "qos": {"type": "integer", "minimum": 0, "maximum": 7},
                    "proto": {"enum": ["802.1Q", "802.1ad"]},
                },
                "required": ["id"],
                "additionalProperties": False,
            },
        ],
    },
    "trust": {"type": "boolean"},
    "spoofchk": {"type": "boolean"},
    "link": {"enum": ["auto", "enable", "disable"]},
    "min_rate": _RATE,
    "max_rate": _RATE,
    "driver": {"type": "string", "pattern": r"^[A-Za-z0-9_-]+$(?!\n)", "description": "a driver, or none"},
}
_ENTRY = {
    "type": "object",
    "properties": {
        "pf": pci.SELECTOR,
        "count": {"type": "integer", "minimum": 1, "description": "how many PFs must match"},
        "vfs": {"type": "integer", "minimum": 0, "maximum": 65535},
        "autoprobe": {"type": "boolean"},
        "mtu": {"type": "integer", "minimum": 68, "maximum": 65535},
        "up": {"type": "boolean"},
        "eswitch": {"enum": ["legacy", "switchdev"]},
        **_OF_A_VF,
        "mac": {"const": "derived", "description": "derived; an address is of one VF alone: each"},
        "each": {
            "description": "what single VFs have otherwise: {0: {...}, 4-7: {...}}",
            "type": "object",
            "patternProperties": {
                r"^[0-9]+(-[0-9]+)?$(?!\n)": {"type": "object", "properties": _OF_A_VF, "additionalProperties": False}
            },
            "additionalProperties": False,
        },
    },
    "required": ["pf", "vfs"],
    "additionalProperties": False,
}
SCHEMA = {
    "description": "VFs by physical function: {pf, vfs, ...}, or a list of these.",
    "anyOf": [_ENTRY, {"type": "array", "items": _ENTRY, "minItems": 1}],
}

_WITH_SRIOV = ("autoprobe", "eswitch")  # the kernel has neither of a device whose SR-IOV is off (drivers/pci/iov.c)
_PF_SETTINGS = (*_WITH_SRIOV, "mtu", "up")
_BY_NETLINK = ("mac", "vlan", "qos", "proto", "trust", "spoofchk", "link", "min_rate", "max_rate")
_SRIOV_OFF = "SR-IOV is off: the device has no sriov_totalvfs"
_TURN_ON = "Turn it on in firmware (nic_firmware: SRIOV_EN, NUM_OF_VFS), and SR-IOV in the BIOS."
# What drivers give a new VF; an Intel one gets a random address.
_PLAIN: dict[str, Value] = dict(
    zip(_BY_NETLINK, ("00:00:00:00:00:00", 0, 0, "802.1Q", False, True, "auto", 0, 0), strict=True)
)
_VF_KEY = re.compile(r"vf(\d+)/(\w+)")


# -- looking --------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a PF's network interface is, when another network namespace has it."""

    name: str  # of the interface there
    path: str  # of the namespace
    holder: str


class Seen(NamedTuple):
    """One PF as it was found."""

    function: pci.Function
    place: Place | Unknown | None  # None: it is in this network namespace, or has no interface at all
    link: Link | Unknown | None  # None: it has no interface


def inspect(host: Host) -> Facts:
    functions = pci.network_functions(host)
    capable = [f for f in functions if f.vendor_device.startswith("15b3:") or host.exists(f"{f.path}/sriov_totalvfs")]
    facts: dict[str, Fact] = {}
    seen = {f.address: s for f, s in zip(capable, _seen(host, capable), strict=True)}
    for f in functions:
        link = seen[f.address].link if f.address in seen else None
        facts |= pci.describe(f, link if isinstance(link, Unknown) else () if link is None else _names(f, link))
    drivers = {a: pci.driver(host, a) for f in capable for a in f.vfs if a} | {f.address: f.driver for f in capable}
    classes = [pci.children(host, f"/sys/class/{name}") if capable else {} for name in ("net", "infiniband")]
    for s in seen.values():
        facts |= {f"{s.function.address}/{name}": fact for name, fact in _pf_facts(host, s, drivers, *classes)}
    used = attempt(holders, host, list(drivers), drivers)
    for s in seen.values():
        facts |= {f"{s.function.address}/{name}": fact for name, fact in _holder_facts(s.function, used)}
    return _with_next_boot(host, facts, seen)


def _seen(host: Host, functions: Sequence[pci.Function]) -> list[Seen]:
    hidden = any(_is_hidden(host, f) for f in functions)
    elsewhere = attempt(lambda: host.netdevs_elsewhere(host.namespaces())) if hidden else {}
    return [_look_at(host, f, elsewhere) for f in functions]


def _is_hidden(host: Host, f: pci.Function) -> bool:
    """Has it an interface that this network namespace does not show? Its directory is there, and empty (R100)."""
    return bool(f.driver) and not f.netdevs and host.exists(f"{f.path}/net")


def _look_at(host: Host, f: pci.Function, elsewhere: Mapping[str, tuple[str, Namespace]] | Unknown) -> Seen:
    if f.netdevs:
        return Seen(f, None, _link(host, f.netdevs[0], ""))
    if not _is_hidden(host, f):
        return Seen(f, None, None)
    if isinstance(elsewhere, Unknown):
        return Seen(f, elsewhere, elsewhere)
    if f.address not in elsewhere:
        nowhere = Unknown("its network interface is in no network namespace that could be found")
        return Seen(f, nowhere, nowhere)
    name, where = elsewhere[f.address]
    return Seen(f, Place(name, where.path, where.holder), _link(host, name, where.path))


def _link(host: Host, name: str, netns: str) -> Link | Unknown:
    try:
        return host.links([name], netns)[name]
    except KeyError:
        return Unknown(f"netlink knows no network interface {name}")
    except HostError as e:
        return Unknown(str(e))


def _names(f: pci.Function, link: Link) -> tuple[str, ...]:
    return tuple(name for name in (link.name, *link.altnames) if name not in f.netdevs)


def _pf_facts(
    host: Host,
    s: Seen,
    drivers: Mapping[str, str],
    interfaces: Mapping[str, Sequence[str]],
    rdma: Mapping[str, Sequence[str]],
) -> Iterator[tuple[str, Fact]]:
    """What is so now; the next boot is added later."""
    f = s.function
    offered = attempt(_offered, host, f)
    yield "vfs", Fact(len(f.vfs), None)
    yield "total", Fact.fixed(offered)
    yield "bound", Fact(sum(bool(drivers.get(address)) for address in f.vfs), None)
    if offered is not None:
        yield "autoprobe", Fact(attempt(_autoprobe, host, f), None)
        yield "eswitch", Fact(attempt(eswitch.mode, host, f), None)
    for i, address in enumerate(f.vfs):
        yield f"vf{i}/driver", Fact(drivers.get(address) or "none", None)
        if address in interfaces:
            yield f"vf{i}/netdev", Fact.fixed(interfaces[address][0])
        if address in rdma:
            yield f"vf{i}/guid", Fact.fixed(attempt(_has_guid, host, rdma[address][0]))
    if s.place:
        yield "netns", Fact.fixed(s.place if isinstance(s.place, Unknown) else s.place.holder)
    if isinstance(s.link, Unknown):
        yield "link", Fact.fixed(s.link)
    elif s.link is not None:
        yield "mac", Fact.fixed(s.link.perm_mac or s.link.mac)
        yield "mtu", Fact(s.link.mtu, None)
        yield "up", Fact(s.link.up, None)
        for vf in s.link.vfs:
            for name in _BY_NETLINK:
                yield f"vf{vf.index}/{name}", Fact(getattr(vf, name), None)


def _offered(host: Host, f: pci.Function) -> int | None:
    """How many VFs the firmware and the driver offer; None where SR-IOV is off in firmware or BIOS (R7)."""
    path = f"{f.path}/sriov_totalvfs"
    return host.number(path) if host.exists(path) else None


def _has_guid(host: Host, device: str) -> bool:
    """Has an RDMA device a node GUID? An mlx5 VF gets it from its address, when it is probed with one (R20)."""
    return any(c in "123456789abcdef" for c in host.read(f"/sys/class/infiniband/{device}/node_guid") or "")


def _autoprobe(host: Host, f: pci.Function) -> bool:
    return bool(host.number(f"{f.path}/sriov_drivers_autoprobe"))


def _holder_facts(f: pci.Function, used: Mapping[str, str | Unknown] | Unknown) -> Iterator[tuple[str, Fact]]:
    for name, address in [("holder", f.address), *((f"vf{i}/holder", vf) for i, vf in enumerate(f.vfs))]:
        held = used if isinstance(used, Unknown) else used.get(address)
        if held is not None:
            yield name, Fact.fixed(held)


# -- the next boot --------------------------------------------------------------------------------


def _with_next_boot(host: Host, facts: Facts, seen: Mapping[str, Seen]) -> Facts:
    """What makes VFs again: an owner elsewhere, else our own record, if our unit is enabled."""
    made = dict(facts)
    record = attempt(_record, host)
    owned = attempt(owners, host, [_for_owners(s) for s in seen.values()])
    if isinstance(record, Unknown):
        for key, fact in facts.items():
            if _is_setting(key.partition("/")[2]):
                made[key] = Fact(fact.current, record)
    for address in seen:
        if not isinstance(record, Unknown):
            kept = _of_this_device(record.get(address, {}), facts[f"{address}/id"].current)
            unread = facts.get(f"{address}/link", Fact.fixed(None)).current
            for name, value in {"vfs": 0, **kept}.items():  # no kernel makes VFs by itself
                by_netlink = name in ("mtu", "up") or name.rpartition("/")[2] in _BY_NETLINK
                now = facts.get(f"{address}/{name}", Fact.fixed(unread if by_netlink else None)).current
                made[f"{address}/{name}"] = Fact(now, value)
            made[f"{address}/recorded"] = Fact.fixed(tuple(kept))
        if found := owned if isinstance(owned, Unknown) else owned.get(address):
            made |= _owned(address, made[f"{address}/vfs"], found)
        made[f"{address}/bound"] = _bound(made, address)
    return made


def _record(host: Host) -> boot.Record:
    """What our boot unit makes; nothing where systemd will not start it."""
    record = boot.read(host, NAME)
    return record if record and boot.effective(host) else {}


def _of_this_device(entry: Mapping[str, Any], now: Reading) -> dict[str, Value]:
    """The settings of a record entry, unless it speaks of another device that was at this address (R105)."""
    return {name: value for name, value in entry.items() if name != "id"} if entry.get("id") == now else {}


def _index(name: str) -> int:
    """Of which VF a setting is; -1 where it is one of the PF."""
    match = _VF_KEY.fullmatch(name)
    return int(match[1]) if match else -1


def _is_setting(name: str) -> bool:
    if found := _VF_KEY.fullmatch(name):
        return found[2] == "driver" or found[2] in _BY_NETLINK
    return name == "vfs" or name in _PF_SETTINGS


def _for_owners(s: Seen) -> Pf:
    link = s.link if isinstance(s.link, Link) else None
    names = (link.name, *link.altnames) if link else s.function.netdevs
    return Pf(s.function.address, s.function.driver, names, link.mac if link else "")


def _owned(address: str, fact: Fact, found: Sequence[Owner] | Unknown) -> dict[str, Fact]:
    """The VFs of the next boot as somebody else makes them."""
    if isinstance(found, Unknown):
        return {f"{address}/owner": Fact.fixed(found), f"{address}/vfs": fact._replace(next_boot=found)}
    unclear = [o.vfs for o in found if isinstance(o.vfs, Unknown)]
    counts = {o.vfs for o in found}
    where = "; ".join(f"{o.tool} ({o.where})" for o in found)
    later: Reading = unclear[0] if unclear else found[0].vfs
    if len(counts) > 1 and not unclear:
        later = Unknown(f"several files say how many VFs there will be, and differ: {where}")
    return {f"{address}/owner": Fact.fixed(where), f"{address}/vfs": fact._replace(next_boot=later)}


def _bound(facts: Facts, address: str) -> Fact:
    """How many VFs have a driver: of those that the next boot makes, all, unless the kernel is told not to probe.

    Of those that are there already, no driver that leaves them alone now takes them then: no boot mends that.
    """
    fact, later = facts[f"{address}/bound"], facts[f"{address}/vfs"].next_boot
    probed = facts[f"{address}/autoprobe"].next_boot if f"{address}/autoprobe" in facts else None
    if probed is False:
        return fact._replace(next_boot=0)
    there = facts[f"{address}/vfs"].current == later and facts.get(f"{address}/autoprobe", Fact.fixed(None)).current
    return fact._replace(next_boot=fact.current if there else later)


# -- deciding -------------------------------------------------------------------------------------


def decide(facts: Facts, want: Section) -> Goals:
    goals: dict[str, Desired] = {}
    by_pf: dict[str, list[Section]] = {}
    for entry in want if isinstance(want, list) else [want]:
        goals |= _selection(facts, entry)
        for address in pci.select(facts, entry["pf"]):
            by_pf.setdefault(address, []).append(entry)
    for address, entries in by_pf.items():
        of_pf = dict(_goals(facts, address, entries))
        goals |= {f"{address}/{name}": d for name, d in (of_pf | _forgotten(facts, address, of_pf)).items()}
    goals = {key: _guarded(facts, key, desired) for key, desired in goals.items()}
    return {key: _like_its_vf(facts, goals, key) for key in goals}


def suggest(facts: Facts) -> Suggestion:
    """How many VFs there are; what is set on each is for those who know why."""
    said: dict[str, dict[str, Any]] = {}
    for address in pci.addresses(facts):
        vfs = facts.get(f"{address}/vfs", Fact.fixed(0)).current
        if isinstance(vfs, int) and vfs:
            switchdev = facts.get(f"{address}/eswitch", Fact.fixed(None)).current == "switchdev"
            said[address] = {"vfs": vfs, **({"eswitch": "switchdev"} if switchdev else {})}
    entries = [{"pf": pf, "count": count, **what} for pf, count, what in pci.alike(facts, said)]
    return Suggestion(entries or None, {"": "By vendor:device where all PFs of it have as many."} if entries else {})


def _like_its_vf(facts: Facts, goals: Goals, key: str) -> Desired:
    """What is wanted of a VF that is not there yet, or of SR-IOV where it is off, can be had only where the VF can."""
    address, _, name = key.partition("/")
    vfs, there = goals.get(f"{address}/vfs"), facts.get(f"{address}/vfs", Fact.fixed(0)).current
    if vfs is None or not isinstance(there, int):
        return goals[key]
    if not (name == "bound" or _index(name) >= there or (name in _WITH_SRIOV and _off(facts, address))):
        return goals[key]
    if name == "bound":
        return goals[key]._replace(waits=vfs.waits, fix=vfs.fix if vfs.waits else goals[key].fix)
    refused = goals[key].refused_now or vfs.refused_now
    return goals[key]._replace(refused_now=refused, disrupts=vfs.disrupts, waits=vfs.waits, fix=vfs.fix)


def _off(facts: Facts, address: str) -> bool:
    """Is SR-IOV off in firmware or BIOS?"""
    return facts.get(f"{address}/total", Fact.fixed(0)).current is None


def _selection(facts: Facts, entry: Section) -> Goals:
    """Are there as many PFs as the entry speaks of?"""
    selector, wanted = entry["pf"], entry.get("count")
    found = pci.count(facts, selector)
    if wanted is None and isinstance(found, int) and found:
        return {}
    means = pci.nothing(facts, selector, "physical function") if found == 0 else ""
    fix = "Name one of these, or find out why the card is not there: lspci -nn"
    desired = Desired(
        wanted or 1, "==" if wanted else ">=", live=False, persist=False, means=means, fix=fix, counted=found
    )
    return {f"pf {selector}": desired}


def _goals(facts: Facts, address: str, entries: Sequence[Section]) -> Iterator[tuple[str, Desired]]:
    """What one PF and its VFs should be."""
    entry = {name: value for e in entries for name, value in e.items()}
    count = entry["vfs"]
    yield "vfs", _wanted_vfs(facts, address, count)
    if "up" in entry or (count and f"{address}/up" in facts):
        yield "up", _by_link(facts, address, Desired(entry.get("up", True)))
    if "mtu" in entry:
        yield "mtu", _by_link(facts, address, Desired(entry["mtu"], ">="))
    if "autoprobe" in entry:
        yield "autoprobe", Desired(entry["autoprobe"])
    if "eswitch" in entry:
        yield "eswitch", _wanted_eswitch(facts, address, entry["eswitch"])
    settings: list[dict[str, Value]] = [{} for _ in range(count)]
    for e in entries:
        settings = [{**setting, **_settings(e)} for setting in settings]
        for span, more in e.get("each", {}).items():
            first, last = _span(span)
            if first > last or last >= count:
                yield f"each {span}", _wrong_span(first, last, count)
            for i in range(first, min(last + 1, count)):
                settings[i] |= _settings(more)
    if count and entry.get("autoprobe", True):
        yield from _wanted_drivers(facts, address, [s.get("driver") for s in settings])
    for i, wanted in enumerate(settings):
        for name, value in wanted.items():
            yield f"vf{i}/{name}", _wanted_of_a_vf(facts, address, i, name, value)
        if "mac" in wanted and f"{address}/vf{i}/guid" in facts:
            means = f"The RDMA device of VF {i} has no node GUID: connections over it fail (rdma_cm)."
            yield f"vf{i}/guid", Desired(True, persist=False, means=means)


def _span(span: object) -> tuple[int, int]:
    """`3` and `4-7` as numbers."""
    first, _, last = str(span).partition("-")
    return int(first), int(last or first)


def _wrong_span(first: int, last: int, count: int) -> Desired:
    if first > last:
        means, fix = f"{first}-{last} counts backwards.", f"Write {last}-{first}."
    else:
        there = f": 0 to {count - 1}" if count else ""
        means, fix = f"There are to be {count} VFs{there}, and `each` speaks of VF {last}.", "Correct the profile."
    return Desired("a range of VFs", counted="none", live=False, persist=False, means=means, fix=fix)


def _forgotten(facts: Facts, address: str, goals: Goals) -> dict[str, Desired]:
    """What an earlier profile had recorded of this PF, and this one does not speak of: no boot sets it any more."""
    recorded = facts.get(f"{address}/recorded", Fact.fixed(())).current
    means = "An earlier profile asked for it, and this one does not: the next boot would still set it."
    forgotten = Desired(None, live=False, means=means)
    return {n: forgotten for n in (recorded if isinstance(recorded, tuple) else ()) if n not in goals}


def _wanted_drivers(facts: Facts, address: str, wanted: Sequence[Value]) -> Iterator[tuple[str, Desired]]:
    """Every VF has a driver but those that want none. Where there are such, none is probed: it would get one too."""
    count = sum(driver != "none" for driver in wanted)
    if not count:
        return
    there = f"{address}/vfs" in facts and facts[f"{address}/vfs"].current == len(wanted)  # else they come with the VFs
    means = "Not every VF has a driver. See what its driver said: dmesg" if there else ""
    if count == len(wanted):
        fix = "" if there else "hostprep apply --only nic_vfs"
        yield "bound", Desired(count, live=there, persist=False, means=means, fix=fix)
    else:
        fix = "Name the driver of those that have none: each"
        yield "bound", Desired(count, ">=", live=False, persist=False, means=means, fix=fix)


def _wanted_eswitch(facts: Facts, address: str, mode: str) -> Desired:
    """Where a driver has no switch, neither a change nor a record of it makes one."""
    if not _off(facts, address) and f"{address}/eswitch" in facts and facts[f"{address}/eswitch"].current is None:
        why = "the driver of the PF tells of no embedded switch (devlink dev eswitch show)"
        return Desired(mode, refused_now=why, refused_next=why, fix="Take eswitch out of the profile.")
    return Desired(mode)


def _settings(entry: Section) -> dict[str, Value]:
    """What is wanted of a VF, by the name of the fact."""
    wanted = {name: entry[name] for name in (*_BY_NETLINK, "driver") if name in entry}
    if "mac" in wanted:
        wanted["mac"] = wanted["mac"].lower()
    vlan = entry.get("vlan")
    if isinstance(vlan, dict):
        wanted |= {"vlan": vlan["id"], "qos": vlan.get("qos", 0), "proto": vlan.get("proto", "802.1Q")}
    return wanted


def _wanted_of_a_vf(facts: Facts, address: str, index: int, name: str, value: Value) -> Desired:
    if name == "driver":
        return Desired(value)
    if value == "derived":
        own = facts[f"{address}/mac"].current if f"{address}/mac" in facts else None
        if not isinstance(own, str) or own.count(":") != 5:  # an InfiniBand one has 20 bytes (R24)
            why = "the PF has no Ethernet address to derive one from"
            return _by_link(facts, address, Desired("derived", refused_now=why, refused_next=why))
        value = derived_mac(own, index)
    return _by_link(facts, address, Desired(value))


def derived_mac(pf: str, index: int) -> str:
    """A locally administered address: 02, the number of the VF in two bytes, the last three bytes of the PF's own."""
    return ":".join(["02", f"{index >> 8:02x}", f"{index & 255:02x}", *pf.split(":")[-3:]])


def _by_link(facts: Facts, address: str, desired: Desired) -> Desired:
    """A goal that only netlink can answer: where it does not, its reason is the reading."""
    link = f"{address}/link"
    return desired._replace(of=link) if link in facts else desired


def _wanted_vfs(facts: Facts, address: str, count: int) -> Desired:
    now, later = facts.get(f"{address}/vfs", Fact.fixed(0))
    desired = Desired(count)
    if f"{address}/vfs" not in facts and not count:
        return desired._replace(counted=0, persist=False, live=False)
    if f"{address}/vfs" not in facts:
        why = "the device has no SR-IOV capability"
        return desired._replace(refused_now=why, refused_next=why, fix="Turn SR-IOV on in the BIOS, if it can do it.")
    if f"{address}/owner" in facts and later != count:
        owner = facts[f"{address}/owner"].current
        why = f"{owner} makes the VFs of this PF" if not isinstance(owner, Unknown) else owner.reason
        fix = f"Change that file, or take the VFs out of it: {owner}" if not isinstance(owner, Unknown) else ""
        return desired._replace(refused_now=why if now != count else "", refused_next=why, fix=fix)
    total = facts[f"{address}/total"].current if f"{address}/total" in facts else None
    if count and total is None:
        return desired._replace(refused_now=_SRIOV_OFF, fix=_TURN_ON, waits=True)
    if isinstance(total, int) and count > total:
        why = f"the device offers {total} VFs (sriov_totalvfs)"
        return desired._replace(refused_now=why, fix="Raise it in firmware: nic_firmware: NUM_OF_VFS.", waits=True)
    if count and facts[f"{address}/driver"].current is None:
        fix = "Load its driver (modprobe mlx5_core), or bind pci-pf-stub."
        return desired._replace(refused_now="no driver is bound to the PF", fix=fix)
    return desired


def _guarded(facts: Facts, key: str, desired: Desired) -> Desired:
    """The goal, with what changing the running system for it would do to others."""
    address = key.partition("/")[0]
    if holder := facts.get(f"{address}/netns"):
        why = f"the PF is {_elsewhere(holder.current)}; hostprep never changes what others hold"
        fix = "It is in use. Change it after its owner has given it back."
        return desired._replace(refused_now=desired.refused_now or why, fix=desired.fix or fix)
    if "/" not in key or not desired.live:
        return desired
    told = disrupts(facts, Change(NAME, key, Facet.CURRENT, None, desired.value))
    return desired._replace(disrupts=told or _disturbs(facts, key, desired.value))


def _elsewhere(holder: Reading) -> str:
    return holder.reason if isinstance(holder, Unknown) else f"in the network namespace of {holder}"


def disrupts(facts: Facts, change: Change) -> str:
    """What making a change in the running system would take away from others; empty if nothing. Pure."""
    address, _, name = change.key.partition("/")
    if holder := facts.get(f"{address}/netns"):
        return f"the PF is {_elsewhere(holder.current)}"
    if name in ("up", "mtu"):
        return _takes_link(facts, change)
    if name not in ("vfs", "eswitch"):
        match = _VF_KEY.fullmatch(name)
        held = facts.get(f"{address}/vf{match[1]}/holder") if match else None
        return f"VF {match[1]}: {_held(held.current)}" if match and held else ""
    now = facts[f"{address}/vfs"].current if f"{address}/vfs" in facts else 0
    count = now if isinstance(now, int) else 0
    if name == "vfs" and count == change.after:
        return ""
    used = [(i, facts[key].current) for i in range(count) if (key := f"{address}/vf{i}/holder") in facts]
    told = [f"VF {i}: {_held(held)}" for i, held in used[:4]] + [f"and {len(used) - 4} more"] * (len(used) > 4)
    what = f"takes all {count} VFs away" if name == "vfs" else "takes every VF from its driver"
    return f"{what}, of which some are in use: {'; '.join(told)}" if used else ""


def _takes_link(facts: Facts, change: Change) -> str:
    """Setting a PF down, or lowering its MTU: nothing asks for that but a profile's `up: false`, and taking back."""
    address, _, name = change.key.partition("/")
    held, now = facts.get(f"{address}/holder"), facts.get(change.key, Fact.fixed(None)).current
    lowered = name == "mtu" and isinstance(now, int) and isinstance(change.after, int) and change.after < now
    down = name == "up" and change.after is False and now is not False
    what = "sets the PF down" if down else "lowers the MTU of the PF"
    return f"{what}, which is in use: {_held(held.current)}" if held and (down or lowered) else ""


def _disturbs(facts: Facts, key: str, value: Value) -> str:
    """Drivers may take the link of a PF down while they make VFs, or change switch or MTU (R13, systemd#23315)."""
    address, _, name = key.partition("/")
    held, now = facts.get(f"{address}/holder"), facts.get(key, Fact.fixed(None)).current
    enough = name == "mtu" and isinstance(now, int) and isinstance(value, int) and now >= value
    if held is None or name not in ("vfs", "eswitch", "mtu") or now == value or enough:
        return ""
    return f"the link of the PF may go down meanwhile, which is in use: {_held(held.current)}"


def _held(held: Reading) -> str:
    return f"whether it is in use cannot be told ({held.reason})" if isinstance(held, Unknown) else str(held)


def at_boot(facts: Facts) -> Sequence[Change]:
    """What our boot unit makes again: what the record says and is not so."""
    changes = []
    for address in pci.addresses(facts):
        for name in _to_make_again(facts, address):
            now, later = facts[f"{address}/{name}"]
            enough = name == "mtu" and isinstance(now, int) and isinstance(later, int) and now >= later
            if now != later and not enough and not isinstance(now, Unknown) and not isinstance(later, Unknown):
                changes.append(Change(NAME, f"{address}/{name}", Facet.CURRENT, now, later))
    return changes


def _to_make_again(facts: Facts, address: str) -> list[str]:
    """The settings in the record. VFs that somebody else makes are left to them; but where the record sets them, they
    have to be there, and as many as the other would make: then it finds them so, and writes nothing (R1)."""
    recorded = facts.get(f"{address}/recorded", Fact.fixed(())).current
    names = list(recorded) if isinstance(recorded, tuple) else []
    if f"{address}/owner" not in facts:
        return names
    first = ["vfs"] if facts[f"{address}/vfs"].current == 0 and any(_index(name) >= 0 for name in names) else []
    return first + [name for name in names if name != "vfs"]


# -- changing -------------------------------------------------------------------------------------


def apply(host: Host, changes: Sequence[Change]) -> None:
    if changes[0].facet is Facet.NEXT_BOOT:
        _write_record(host, changes)
        return
    by_pf: dict[str, dict[str, Value]] = {}
    for change in changes:
        address, _, name = change.key.partition("/")
        by_pf.setdefault(address, {})[name] = change.after
    for address, wanted in by_pf.items():
        _change(host, address, wanted)


def _write_record(host: Host, changes: Sequence[Change]) -> None:
    record: dict[str, dict[str, Any]] = {address: dict(entry) for address, entry in boot.read(host, NAME).items()}
    for change in changes:
        address, _, name = change.key.partition("/")
        now = pci.function(host, address).vendor_device
        if record.get(address, {}).get("id") != now:
            record[address] = {"id": now}
        if change.after is None or (name == "vfs" and not change.after):
            record[address].pop(name, None)
        else:
            record[address][name] = change.after
        if name == "vfs":  # what was recorded of VFs that there will be no more (sriov-network-operator#852)
            gone = [key for key in record[address] if _index(key) >= (_number(change.after) or 0)]
            record[address] = {key: value for key, value in record[address].items() if key not in gone}
    boot.put(host, NAME, {address: entry for address, entry in record.items() if len(entry) > 1})


def _change(host: Host, address: str, wanted: Mapping[str, Value]) -> None:
    """Change the running system for one PF, in the order that its drivers need."""
    f = pci.function(host, address)
    if _is_hidden(host, f):  # sriov-network-operator#2: such PFs were reset to no VFs, under their owner
        raise ChangeFailed(f"{address}: its network interface is in another network namespace: left alone")
    if not wanted.keys().isdisjoint(("vfs", *_WITH_SRIOV)) and _offered(host, f) is None:
        raise ChangeFailed(f"{address}: {_SRIOV_OFF}", hint=_TURN_ON)
    name = f.netdevs[0] if f.netdevs else ""
    if name and ("up" in wanted or "mtu" in wanted):  # first: bnxt and ixgbe make no VFs of a PF that is down (R11)
        host.set_link(name, up=_bool(wanted.get("up")), mtu=_number(wanted.get("mtu")))
    mode = wanted.get("eswitch")
    if "vfs" in wanted or (mode and f.vfs and f.driver in eswitch.WITHOUT_VFS):
        kept = attempt(_kept, host, f)
        try:
            _remake(host, f, wanted)
        except HostprepError:
            _make_as_before(host, f, kept)
            raise
        return
    if "autoprobe" in wanted:
        host.write(f"{f.path}/sriov_drivers_autoprobe", str(int(bool(wanted["autoprobe"]))))
    if mode == "legacy":
        _switch(host, f, wanted)
    for index, settings in _by_vf(wanted).items():
        if index >= len(f.vfs):
            raise ChangeFailed(f"{address}: has no VF {index} that could be set: it has {len(f.vfs)}")
        _set(host, name, index, settings)
        _rebind(host, f.vfs[index], settings)
    if mode and mode != "legacy":  # there a driver sets less of a VF
        _switch(host, f, wanted)
    if "bound" in wanted:
        vfs.probe(host, address)
        vfs.settle(host, address, bound=True)


def _switch(host: Host, f: pci.Function, wanted: Mapping[str, Value]) -> None:
    """Change the mode of the embedded switch, while the VFs that there are have no driver (R35)."""
    bound = {vf: driver for vf in f.vfs if (driver := pci.driver(host, vf))}
    for vf in bound:
        vfs.bind(host, vf, None)
    try:
        eswitch.change(host, f, str(wanted["eswitch"]), _bool(wanted.get("up")), _number(wanted.get("mtu")))
    except HostprepError:
        for vf, driver in bound.items():
            attempt(vfs.bind, host, vf, driver)  # what went wrong first is told
        raise
    for vf, driver in bound.items():
        vfs.bind(host, vf, driver)


def _by_vf(wanted: Mapping[str, Value]) -> dict[int, dict[str, Value]]:
    found: dict[int, dict[str, Value]] = {}
    for name, value in wanted.items():
        if match := _VF_KEY.fullmatch(name):
            found.setdefault(int(match[1]), {})[match[2]] = value
    return found


def _remake(host: Host, f: pci.Function, wanted: Mapping[str, Value]) -> None:
    """Make the VFs anew. What those that stay were set to is set again, and what is wanted of each over it.

    Where something is to be set, VFs are made without drivers: an mlx5 VF takes its address, and its node GUID from
    it, when it is probed (sriov-cni#232), and a VF for vfio never shows up as an interface that somebody else grabs.
    """
    count = (_number(wanted["vfs"]) or 0) if "vfs" in wanted else len(f.vfs)
    mode = wanted.get("eswitch")
    kept = _kept(host, f) if count else {}
    asked = _by_vf(wanted)
    settings = {i: {**kept.get(i, {}), **asked.get(i, {})} for i in range(count)}
    probing = f"{f.path}/sriov_drivers_autoprobe"
    before = not host.exists(probing) or bool(host.number(probing))
    after = bool(wanted["autoprobe"]) if "autoprobe" in wanted else before
    hold = (any(settings.values()) or bool(mode)) and host.exists(probing)
    if (not hold and after) != before:
        host.write(probing, str(int(not hold and after)))
    try:
        first = mode and (mode == "legacy" or not count or f.driver in eswitch.WITHOUT_VFS)
        if first:
            vfs.make(host, f.address, 0)
            _switch(host, f._replace(vfs=()), wanted)
        vfs.make(host, f.address, count)
        made = pci.virtual_functions(host, f.address)[:count]  # a rehearsal still sees those that go
        name = next(iter(pci.netdevs(host, f.path)), "")
        if any(setting.get(rate) for setting in settings.values() for rate in ("min_rate", "max_rate")):
            vfs.wait_for_link(host, name)
        for i in range(count):
            _set(host, name, i, asked.get(i, {}))
            _set_again(host, name, i, {k: v for k, v in kept.get(i, {}).items() if k not in asked.get(i, {})})
        if mode and not first:
            _switch(host, f._replace(vfs=made), wanted)
        # before they are probed: udev may be loading their usual driver, which takes all that it finds
        for i, address in enumerate(made):
            if settings[i].get("driver"):
                vfs.bind(host, address, _driver(settings[i]["driver"]))
    except HostprepError:
        if hold and after:
            attempt(host.write, probing, "1")  # what went wrong first is told (sriov-network-operator#548)
        raise
    if hold and after:
        host.write(probing, "1")
    leave = [address for i, address in enumerate(made) if settings[i].get("driver") == "none"]
    if after:
        vfs.probe(host, f.address, leave)
    vfs.settle(host, f.address, bound=after and not leave)


def _make_as_before(host: Host, f: pci.Function, kept: Mapping[int, Mapping[str, Value]] | Unknown) -> None:
    """Bring back VFs that were dropped for others which could not be made, with all that they were set to."""
    if not f.vfs or isinstance(kept, Unknown):
        return
    before = {f"vf{i}/{name}": value for i, values in kept.items() for name, value in values.items()}
    try:
        now = pci.function(host, f.address)
        if len(now.vfs) != len(f.vfs) or _kept(host, now) != kept:
            _remake(host, now, {"vfs": len(f.vfs), **before})
    except HostprepError as e:
        host.progress(f"{f.address}: its {len(f.vfs)} VFs are not all as they were: {e}")


def _kept(host: Host, f: pci.Function) -> dict[int, dict[str, Value]]:
    """What VFs are set to now, as far as it is more than a new VF has."""
    link = host.links(f.netdevs[:1]).get(f.netdevs[0]) if f.netdevs and f.vfs else None
    kept: dict[int, dict[str, Value]] = {i: {} for i in range(len(f.vfs))}
    for vf in link.vfs if link else ():
        values = {name: getattr(vf, name) for name in _BY_NETLINK}
        kept[vf.index] = {n: v for n, v in values.items() if v is not None and v != _PLAIN[n]}
    for i, address in enumerate(f.vfs):
        if pci.driver(host, address) == vfs.VFIO:
            kept[i]["driver"] = vfs.VFIO
    return kept


def _set_again(host: Host, pf: str, index: int, settings: Mapping[str, Value]) -> None:
    """What a VF was set to before. A driver that no longer takes it is told of, and is no reason to undo the rest."""
    try:
        _set(host, pf, index, settings)
    except ChangeFailed as e:
        host.progress(f"not set again as it was: {e}")


def _set(host: Host, pf: str, index: int, settings: Mapping[str, Value]) -> None:
    attributes: dict[str, Any] = {name: value for name, value in settings.items() if name in _BY_NETLINK}
    if not attributes:
        return
    if not pf:
        raise ChangeFailed(f"VF {index}: the PF has no network interface, through which its VFs are set")
    try:
        host.set_vf(pf, index, **attributes)
    except HostError as e:
        refused, why = _refused(host, pf, index, attributes) or (attributes, e)
        words = ", ".join(f"{name} {_word(value)}" for name, value in refused.items())
        hint = "Not every driver can set all of these; what its driver cannot do is left out of the profile."
        if why.code == errno.EINVAL and refused.keys() & {"min_rate", "max_rate"}:
            hint = f"igb and ixgbe take a rate only while the link is up, and up to its speed: ip link show {pf}"
        reason = str(why).removeprefix(f"{pf}: VF {index}: ")
        raise ChangeFailed(f"{pf}: VF {index}: {words}: {reason}", hint) from e


def _refused(host: Host, pf: str, index: int, attributes: Mapping[str, Any]) -> tuple[dict[str, Any], HostError] | None:
    """Of attributes that could not be set together those that cannot be set alone: the kernel does not tell which."""
    for names in (("mac",), ("vlan", "qos", "proto"), ("min_rate", "max_rate"), ("spoofchk",), ("link",), ("trust",)):
        group = {name: attributes[name] for name in names if name in attributes}
        try:
            if group and group.keys() != attributes.keys():
                host.set_vf(pf, index, **group)
        except HostError as e:
            return group, e
    return None


def _word(value: Any) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _rebind(host: Host, vf: str, settings: Mapping[str, Value]) -> None:
    """Give a VF the driver that is wanted; one that has got another address reads it when it is probed again."""
    bound = pci.driver(host, vf)
    if "driver" in settings:
        vfs.bind(host, vf, _driver(settings["driver"]))
    elif ("mac" in settings or settings.get("guid")) and bound not in ("", vfs.VFIO):
        vfs.bind(host, vf, None)
        vfs.bind(host, vf, bound)


def _driver(value: Value) -> str | None:
    return None if value in (None, "none") else str(value)


def _bool(value: Value) -> bool | None:
    return value if isinstance(value, bool) else None


def _number(value: Value) -> int | None:
    return value if type(value) is int else None
