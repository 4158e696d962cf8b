"""Network interfaces, over rtnetlink: what they are, their VFs' attributes, addresses, routes; and setting them.

Every request is made in a child with a deadline: a driver that resets its card holds the kernel's RTNL lock, and
whoever asks waits for as long as that takes. The child is also what can enter another network namespace.

pyroute2 (0.9) leaves three things to its caller: a list of VFs that the kernel cut short, the flag of an interrupted
dump, and the VLAN protocol, which it packs too short for the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from hostprep.errors import HostError
from hostprep.host import process
from hostprep.host.processes import Namespace

LOOK_S = 10.0  # how long a question may take
CHANGE_S = 60.0  # and a change: mlx5 talks to its firmware to bring a link up
_AGAIN_S = 1.0  # how often to look again where events should tell
_TRIES = 20  # at a dump that others keep interrupting; where VFs appear most are (measured: 83 of 100)
_EXT_MASK = 1 | 8  # linux/rtnetlink.h: RTEXT_FILTER_VF, RTEXT_FILTER_SKIP_STATS
_DUMP_INTR = 0x10  # linux/netlink.h: NLM_F_DUMP_INTR
_UP, _LOWER_UP = 0x1, 0x10000  # linux/if.h
_MAIN = 254  # linux/rtnetlink.h: RT_TABLE_MAIN
_UNICAST = 1  # RTN_UNICAST
_NOT_SAID = 0xFFFFFFFF  # the kernel presets trust and spoofchk to -1 for drivers that do not tell
_LINK_STATES = ("auto", "enable", "disable")  # linux/if_link.h: IFLA_VF_LINK_STATE_*
_PROTOCOLS = {"802.1Q": 0x8100, "802.1ad": 0x88A8}
_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000  # linux/sched.h
_MS_RDONLY, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 0x1, 0x4000, 0x40000, 0x2  # linux/mount.h
_PCI = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_REPRESENTOR = re.compile(r"(c\d+)?pf\d+(vf|sf)\d+")  # phys_port_name of a VF's other end (devlink-port)


class Vf(NamedTuple):
    """A virtual function as its physical function's driver tells it. Rates in Mbit/s, 0 is no limit."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    mac: str = "00:00:00:00:00:00"
    vlan: int = 0
    qos: int = 0
    proto: str = "802.1Q"
    trust: bool | None = None  # None: the driver does not tell
    spoofchk: bool | None = None
    link: str = "auto"  # or enable, disable
    min_rate: int = 0
    max_rate: int = 0


class Link(NamedTuple):
    """A network interface. `vfs` is empty, whatever num_vf is, where the driver does not tell about its VFs."""

    index: int  # type: ignore[assignment]
    name: str
    altnames: tuple[str, ...] = ()
    mac: str = ""
    mtu: int = 1500
    up: bool = False  # set up by an administrator
    carrier: bool = False
    vfs: tuple[Vf, ...] = ()
    num_vf: int = 0
    perm_mac: str = ""  # the card's own; "" where the driver or a kernel before 5.6 does not tell


# -- looking --------------------------------------------------------------------------------------


def links(names: Sequence[str], netns: str = "") -> dict[str, Link]:
    """Interfaces by the names they were asked for; those that are not there are left out."""

    def look(ip: Any) -> list[Any]:
        return [[name, link] for name in names if (link := _link(ip, name)) is not None]

    if not names:
        return {}
    return {name: link_of(link) for name, link in _ask("links", netns, LOOK_S, look)}


def addresses(netns: str = "") -> dict[str, tuple[str, ...]]:
    """The addresses of each interface, with their prefix lengths; link-local IPv6 ones, which all have, left out."""
    return _tuples(_ask("addresses", netns, LOOK_S, lambda ip: _addresses(_dump(lambda: ip.addr("dump")))))


def routes(netns: str = "") -> dict[str, tuple[str, ...]]:
    """The unicast destinations that the main table routes through each interface; `default`, or with prefix length."""

    def look(ip: Any) -> dict[str, list[str]]:
        def dump(family: int) -> list[Any]:
            return _dump(lambda: ip.route("dump", table=_MAIN, family=family))

        return _routes([*dump(2), *dump(10)])  # AF_INET, AF_INET6

    return _tuples(_ask("routes", netns, LOOK_S, look))


def netdevs_elsewhere(namespaces: Sequence[Namespace]) -> dict[str, tuple[str, Namespace]]:
    """PCI addresses of the network devices in other namespaces: the interface's name there, and where.

    In a mount namespace of its own a child mounts the sysfs of each, which shows the interfaces of the namespace that
    mounts it (sysfs(5)). One that has gone meanwhile is left out; one that cannot be entered is a HostError.
    """
    where = {namespace.path: namespace for namespace in namespaces}

    def look() -> list[Any]:
        _libc("unshare", _CLONE_NEWNS)
        _libc("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
        found: list[Any] = []
        for namespace in where.values():
            if not enter(namespace.path, namespace.inode):
                continue
            try:
                _libc("mount", b"sysfs", b"/sys", b"sysfs", _MS_RDONLY, None)
                found += [[address, name, namespace.path] for address, name in _pci_netdevs("/sys/class/net")]
                _libc("umount2", b"/sys", _MNT_DETACH)
            except OSError as e:
                raise HostError(f"network namespace {namespace.holder}: {e.strerror}", code=e.errno or 0) from e
        return found

    if not where:
        return {}
    answer = _child("network devices in other namespaces", LOOK_S, look)
    return {address: (name, where[path]) for address, name, path in answer}


def uppers_elsewhere(namespaces: Sequence[Namespace]) -> dict[int, tuple[tuple[str, str, Namespace], ...]]:
    """By index of an interface of ours, the interfaces in other namespaces that lie upon it: name, kind, and where.

    A macvlan or ipvlan that has been moved away leaves no trace in our sysfs (net/core/dev.c: the links of adjacent
    devices are within one namespace). There it tells the index of the lower one, and by a number in whose namespace
    that is (IFLA_LINK_NETNSID), which rtnetlink(7) gives for ours.
    """
    where = {namespace.path: namespace for namespace in namespaces}

    def look() -> list[Any]:
        import pyroute2  # type: ignore[import-untyped]
        from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

        ours = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        found: list[Any] = []
        for namespace in where.values():
            if not enter(namespace.path, namespace.inode):
                continue
            try:
                with pyroute2.IPRoute(ext_ack=True, strict_check=True) as ip:
                    found += [[*upper, namespace.path] for upper in _uppers(ip, ours)]
            except NetlinkError as e:
                raise HostError(f"network namespace {namespace.holder}: {e.args[-1]}", code=e.code) from e
        return found

    if not where:
        return {}
    uppers: dict[int, tuple[tuple[str, str, Namespace], ...]] = {}
    for index, name, kind, path in _child("network interfaces in other namespaces", LOOK_S, look):
        uppers[index] = (*uppers.get(index, ()), (name, kind, where[path]))
    return uppers


def link_of(answer: Sequence[Any]) -> Link:
    """A Link from what JSON makes of it."""
    link = Link(*answer)
    return link._replace(altnames=tuple(link.altnames), vfs=tuple(Vf(*vf) for vf in link.vfs))


# -- changing -------------------------------------------------------------------------------------


def set_link(name: str, up: bool | None, mtu: int | None, netns: str = "") -> None:
    """Set an interface up or down, and its MTU."""
    wanted: dict[str, Any] = {} if mtu is None else {"mtu": mtu}
    if up is not None:
        wanted["state"] = "up" if up else "down"

    def change(ip: Any) -> None:
        ip.link("set", index=_there(ip, name).index, **wanted)

    _ask(name, netns, CHANGE_S, change)


def set_vf(name: str, index: int, wanted: Mapping[str, Any], netns: str = "") -> None:
    """Set attributes of a VF, named as in Vf, through its PF's interface, all in one request.

    VLAN, QoS and protocol go together, and so do both rates: what is not given of them is kept. Only VLAN 0, which is
    no VLAN, takes QoS and protocol back with it.
    """

    def change(ip: Any) -> None:
        link = _there(ip, name)
        now = next((vf for vf in link.vfs if vf.index == index), None)
        if now is None:
            raise HostError(f"{name}: has no VF {index}, or its driver does not tell", code=errno.ENODEV)
        _set_link_vf(ip, link.index, vf_attributes(now, wanted))

    for key in ("trust", "spoofchk"):
        if not isinstance(wanted.get(key, False), bool):
            raise HostError(f"{name}: VF {index}: {key} is neither true nor false")
    _ask(f"{name}: VF {index}", netns, CHANGE_S, change)


def vf_attributes(now: Vf, wanted: Mapping[str, Any]) -> bytes:
    """The attributes of IFLA_VF_INFO (linux/if_link.h) that make a VF what is wanted, packed."""
    vf = struct.pack("I", now.index)
    parts = []
    if "mac" in wanted:
        if not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", wanted["mac"]):
            raise HostError(f"{wanted['mac']!r}: not a MAC address")
        parts.append(_attribute(1, vf + bytes.fromhex(wanted["mac"].replace(":", "")).ljust(32, b"\0")))
    if {"vlan", "qos", "proto"} & wanted.keys():
        kept = Vf(now.index) if wanted.get("vlan") == 0 else now
        vlan, qos, proto = (wanted.get(key, getattr(kept, key)) for key in ("vlan", "qos", "proto"))
        if proto == "802.1Q":
            parts.append(_attribute(2, vf + struct.pack("II", vlan, qos)))  # IFLA_VF_VLAN
        else:  # IFLA_VF_VLAN_LIST: struct ifla_vf_vlan_info ends in two bytes of padding, which the kernel insists on
            info = vf + struct.pack("II", vlan, qos) + struct.pack(">H2x", _protocol(proto))
            parts.append(_attribute(12, _attribute(1, info)))
    if {"min_rate", "max_rate"} & wanted.keys():
        rates = (wanted.get(key, getattr(now, key)) for key in ("min_rate", "max_rate"))
        parts.append(_attribute(6, vf + struct.pack("II", *rates)))
    if "spoofchk" in wanted:
        parts.append(_attribute(4, vf + struct.pack("I", wanted["spoofchk"])))
    if "link" in wanted:
        if wanted["link"] not in _LINK_STATES:
            raise HostError(f"{wanted['link']!r}: not a link state ({', '.join(_LINK_STATES)})")
        parts.append(_attribute(5, vf + struct.pack("I", _LINK_STATES.index(wanted["link"]))))
    if "trust" in wanted:
        parts.append(_attribute(9, vf + struct.pack("I", wanted["trust"])))
    return b"".join(parts)


def command(words: Iterable[str], netns: str = "") -> list[str]:
    """What an administrator types for a change of a link: ip-link(8), in another namespace through nsenter(1)."""
    return [*(["nsenter", f"--net={netns}"] if netns else []), "ip", "link", "set", "dev", *words]


def link_words(name: str, up: bool | None, mtu: int | None) -> list[str]:
    return [name, *([] if mtu is None else ["mtu", str(mtu)]), *([] if up is None else ["up" if up else "down"])]


def vf_words(name: str, index: int, wanted: Mapping[str, Any]) -> list[str]:
    ip = {"link": "state", "min_rate": "min_tx_rate", "max_rate": "max_tx_rate"}
    words = [name, "vf", str(index)]
    for key, value in wanted.items():
        words += [ip.get(key, key), ("on" if value else "off") if isinstance(value, bool) else str(value)]
    return words


# -- rtnetlink ------------------------------------------------------------------------------------


def decode(message: Any) -> Link:
    """A Link from RTM_NEWLINK as pyroute2 parses it. HostError when the kernel's list of VFs is not complete.

    The length of a netlink attribute has 16 bits, and the list of VFs grows past them: the kernel then sends its
    beginning, or nonsense, under the true number (ip-link(8) calls it "Truncated VF list").
    """
    name = message.get_attr("IFLA_IFNAME") or ""
    number = message.get_attr("IFLA_NUM_VF") or 0
    told = message.get_attr("IFLA_VFINFO_LIST")
    vfs: list[Any] = told.get_attrs("IFLA_VF_INFO") if told is not None else []
    if told is not None and len(vfs) != number:
        raise HostError(f"{name}: the kernel told of {len(vfs)} of its {number} VFs", code=errno.EAGAIN)
    properties = message.get_attr("IFLA_PROP_LIST")
    return Link(
        index=message["index"],
        name=name,
        altnames=tuple(sorted(properties.get_attrs("IFLA_ALT_IFNAME"))) if properties is not None else (),
        mac=message.get_attr("IFLA_ADDRESS") or "",
        mtu=message.get_attr("IFLA_MTU") or 0,
        up=bool(message["flags"] & _UP),
        carrier=bool(message["flags"] & _LOWER_UP),
        vfs=tuple(map(_decode_vf, vfs)),
        num_vf=number,
        perm_mac=message.get_attr("IFLA_PERM_ADDRESS") or "",
    )


def _decode_vf(info: Any) -> Vf:
    def field(attribute: str, key: str, default: Any = 0) -> Any:
        value = info.get_attr(attribute)
        return default if value is None else value[key]

    def flag(attribute: str, key: str) -> bool | None:
        value = field(attribute, key, _NOT_SAID)
        return None if value == _NOT_SAID else bool(value)

    tags = info.get_attr("IFLA_VF_VLAN_LIST")
    tag = next(iter(tags.get_attrs("IFLA_VF_VLAN_INFO")), None) if tags is not None else None
    proto = tag["proto"] if tag is not None else 0  # 0: the driver does not say, or there is no VLAN
    state = field("IFLA_VF_LINK_STATE", "link_state")
    return Vf(
        index=field("IFLA_VF_MAC", "vf"),
        mac=field("IFLA_VF_MAC", "mac", ""),
        vlan=field("IFLA_VF_VLAN", "vlan"),
        qos=field("IFLA_VF_VLAN", "qos"),
        proto={0x88A8: "802.1ad", 0x8100: "802.1Q", 0: "802.1Q"}.get(proto, f"{proto:#06x}"),
        trust=flag("IFLA_VF_TRUST", "trust"),
        spoofchk=flag("IFLA_VF_SPOOFCHK", "spoofchk"),
        link=_LINK_STATES[state] if state < len(_LINK_STATES) else str(state),
        min_rate=field("IFLA_VF_RATE", "min_tx_rate"),
        max_rate=field("IFLA_VF_RATE", "max_tx_rate"),
    )


def _link(ip: Any, name: str) -> Link | None:
    """One interface, asked for alone: a dump would bring all VFs' own interfaces along."""
    from pyroute2.netlink.exceptions import NetlinkError

    for attempt in range(_TRIES):
        try:
            messages = ip.link("get", ifname=name, ext_mask=_EXT_MASK)
        except NetlinkError as e:
            if e.code == errno.ENODEV:
                return None
            raise
        try:
            return decode(messages[0])
        except HostError as e:
            if e.code != errno.EAGAIN or attempt == _TRIES - 1:
                raise
            time.sleep(0.05)  # VFs may be coming or going
    return None


def _there(ip: Any, name: str) -> Link:
    link = _link(ip, name)
    if link is None:
        raise HostError(f"{name}: no such interface", code=errno.ENODEV)
    return link


def _dump(ask: Callable[[], Iterable[Any]]) -> list[Any]:
    """The messages of a dump during which nothing changed. The kernel only marks those that are not consistent."""
    for _ in range(_TRIES):
        messages = list(ask())
        if not any(message["header"]["flags"] & _DUMP_INTR for message in messages):
            return messages
    raise HostError(f"the network configuration changed during each of {_TRIES} looks at it", code=errno.EINTR)


def _uppers(ip: Any, netns: int) -> Iterator[tuple[int, str, str]]:
    """Index of the lower interface in another namespace (a file descriptor), name and kind of what lies upon it."""
    number = ip.get_netnsid(fd=netns)["nsid"]
    for link in _dump(lambda: ip.link("dump")) if number >= 0 else ():  # -1: nothing here leads there
        if link.get_attr("IFLA_LINK_NETNSID") == number and link.get_attr("IFLA_LINK"):
            kind = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or ""
            yield link.get_attr("IFLA_LINK"), link.get_attr("IFLA_IFNAME"), kind


def _addresses(messages: Iterable[Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for message in messages:
        address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        if address and not _link_local(address):
            name = _name(message["index"])
            if name:
                found.setdefault(name, []).append(f"{address}/{message['prefixlen']}")
    return found


def _routes(messages: Iterable[Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for message in messages:
        to, length = message.get_attr("RTA_DST"), message["dst_len"]
        # a kernel that does not know the request's filter answers with all tables
        table = message.get_attr("RTA_TABLE") or message["table"]
        if table != _MAIN or message["type"] != _UNICAST or (to and _link_local(to)):
            continue
        hops = message.get_attr("RTA_MULTIPATH") or ()
        through = {message.get_attr("RTA_OIF"), *(hop["oif"] for hop in hops)} - {None}
        if not through:  # sysctl net.ipv4.nexthop_compat_mode=0 leaves them out
            raise HostError(f"route to {to or 'default'}: the kernel does not say through which interface")
        for name in filter(None, map(_name, through)):
            found.setdefault(name, []).append(f"{to}/{length}" if length else "default")
    return found


def _link_local(address: str) -> bool:
    return address.startswith(("fe8", "fe9", "fea", "feb"))


def _name(index: int) -> str:
    """The name of an interface; "" when it has just gone."""
    import socket

    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""


def _set_link_vf(ip: Any, index: int, attributes: bytes) -> None:
    from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST  # type: ignore[import-untyped]
    from pyroute2.netlink.rtnl import RTM_SETLINK  # type: ignore[import-untyped]
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg  # type: ignore[import-untyped]

    class Request(ifinfmsg):  # type: ignore[misc,unused-ignore]
        """ifinfmsg with IFLA_VFINFO_LIST as packed here."""

        def encode(self) -> None:
            super().encode()
            self.data += _attribute(22, _attribute(1, attributes))
            self["header"]["length"] = len(self.data)
            struct.pack_into("I", self.data, 0, len(self.data))

    message = Request()
    message["index"] = index
    ip.status.setdefault("nlm_generator", False)  # without it IPRoute.nlm_request() of 0.9.7 is a KeyError
    ip.nlm_request(message, msg_type=RTM_SETLINK, msg_flags=NLM_F_REQUEST | NLM_F_ACK)


def _attribute(number: int, value: bytes) -> bytes:
    """A netlink attribute: struct nlattr of linux/netlink.h, and its value padded to four bytes."""
    return struct.pack("HH", 4 + len(value), number) + value + b"\0" * (-len(value) % 4)


def _protocol(word: str) -> int:
    try:
        return _PROTOCOLS[word]
    except KeyError:
        raise HostError(f"{word!r}: not a VLAN protocol ({', '.join(_PROTOCOLS)})") from None


# -- in a child, and in other namespaces ----------------------------------------------------------


def _ask(what: str, netns: str, timeout: float, ask: Callable[[Any], Any]) -> Any:
    """What `ask` makes of an IPRoute within a network namespace; `what` it is about, for an error."""
    import pyroute2  # here, so that children inherit it: it takes 0.2 s
    from pyroute2.netlink.exceptions import NetlinkError

    def work() -> Any:
        if netns and not enter(netns):
            raise HostError(f"{netns}: no such network namespace", code=errno.ENOENT)
        try:
            # strict_check: the kernel says what it does not know instead of passing over it
            with pyroute2.IPRoute(ext_ack=True, strict_check=True) as ip:
                return ask(ip)
        except NetlinkError as e:
            raise HostError(f"{what}: {e.args[-1]}", code=e.code) from e

    return _child(what, timeout, work)


def _child(what: str, timeout: float, work: Callable[[], Any]) -> Any:
    """What `work` returns, through JSON, from a child that has `timeout` seconds for it."""

    def attempt() -> bytes:
        try:
            return json.dumps([0, "", work()]).encode()
        except HostError as e:
            return json.dumps([e.code, str(e), None]).encode()
        except OSError as e:
            return json.dumps([e.errno or 0, f"{what}: {e.strerror or e}", None]).encode()

    answer, _ = process.gather([(what, attempt)], timeout)[what]
    if isinstance(answer, str):
        raise HostError(f"{what}: {answer}")
    code, error, result = json.loads(answer)
    if error:
        if code in (errno.EPERM, errno.EACCES) and os.geteuid() != 0:
            raise HostError(f"{what}: needs root", code=code)
        raise HostError(error, code=code)
    return result


def enter(path: str, inode: int = 0) -> bool:
    """Enter a network namespace. False when it has gone, or its place has been taken by another."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        if e.errno in (errno.ENOENT, errno.ESRCH):
            return False
        raise HostError(f"{path}: {e.strerror}", code=e.errno or 0) from e
    try:
        if inode and os.fstat(fd).st_ino != inode:
            return False
        _libc("setns", fd, _CLONE_NEWNET)  # os.setns is of Python 3.12
    except OSError as e:
        raise HostError(f"{path}: cannot be entered: {e.strerror}", code=e.errno or 0) from e
    finally:
        os.close(fd)
    return True


def _libc(function: str, *args: object) -> None:
    """Call a function of the C library; OSError when it fails."""
    import ctypes

    if getattr(ctypes.CDLL(None, use_errno=True), function)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _pci_netdevs(folder: str) -> Iterator[tuple[str, str]]:
    """PCI addresses and names of the network devices in a sysfs; a VF's representor is not the device."""
    found: dict[str, tuple[bool, str]] = {}
    for name in sorted(os.listdir(folder)):
        with contextlib.suppress(OSError):  # it has no device, or has just gone
            address = os.path.basename(os.readlink(f"{folder}/{name}/device"))
            if _PCI.fullmatch(address):
                own = (_is_representor(f"{folder}/{name}/phys_port_name"), name)
                found[address] = min(found.get(address, own), own)
    return ((address, name) for address, (_, name) in found.items())


def _is_representor(path: str) -> bool:
    try:
        with open(path) as f:
            return bool(_REPRESENTOR.fullmatch(f.read().strip()))
    except OSError:
        return False


def _tuples(found: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(sorted(set(values))) for name, values in sorted(found.items())}


# -- waiting --------------------------------------------------------------------------------------


def settled(ready: Callable[[], bool], timeout: float, subsystems: Sequence[str]) -> bool:
    """Wait until `ready` holds: it is asked again after every event of the kernel's (or of udev's, which follow when
    its rules have run and names are final), and once a second, since events can be lost. False at the timeout."""
    end = time.monotonic() + timeout
    wait = _events(subsystems)  # first, so that nothing happens unseen between the question and the wait
    while not ready():
        if (left := end - time.monotonic()) <= 0:
            return False
        wait(min(left, _AGAIN_S))
    return True


def _events(subsystems: Sequence[str]) -> Callable[[float], object]:
    """Listen; what is returned waits for an event, up to as many seconds."""
    import select

    poll = select.poll()
    try:
        import pyudev  # type: ignore[import-untyped]

        source = "udev" if os.path.exists("/run/udev/control") else "kernel"
        monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source=source)
        for subsystem in subsystems:
            monitor.filter_by(subsystem)
        monitor.start()
    except (ImportError, OSError):  # no libudev: then we look again at short intervals
        return lambda seconds: poll.poll(min(seconds, 0.2) * 1000)

    def wait(seconds: float) -> None:
        poll.poll(seconds * 1000)
        with contextlib.suppress(OSError):  # ENOBUFS: some were lost
            for _ in range(1000):
                if monitor.poll(0) is None:
                    break

    poll.register(monitor.fileno(), select.POLLIN)
    return wait


@contextlib.contextmanager
def locked(path: str, shown: str, timeout: float) -> Iterator[None]:
    """Hold the lock (flock(2)) of a file that is there; without the file there is nobody to lock out."""
    import fcntl

    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        yield
        return
    except OSError as e:
        raise HostError(f"{shown}: {e.strerror}", code=e.errno or 0) from e
    try:
        end = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as e:
                if e.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                    raise HostError(f"{shown}: {e.strerror}", code=e.errno or 0) from e
            if time.monotonic() > end:
                raise HostError(f"{shown}: held by another process for {timeout:g} s", code=errno.EWOULDBLOCK)
            time.sleep(0.05)
        yield
    finally:
        os.close(fd)
