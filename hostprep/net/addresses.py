"""Addresses, routes and what configures them: as ip(8) tells what is, and configuration files what will be."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from hostprep.errors import HostError
from hostprep.host import Host, attempt
from hostprep.model import Fact, Unknown

_CONFIGURATION = (
    "/etc/network/interfaces",
    "/etc/network/interfaces.d/*",
    "/etc/netplan/*.yaml",
    "/etc/systemd/network/*.network",
    "/etc/systemd/network/*.network.d/*.conf",
    "/etc/NetworkManager/system-connections/*.nmconnection",
    "/etc/sysconfig/network-scripts/*-*",
    "/etc/sysconfig/network/*-*",
    "/etc/sysconfig/network",
)
_HOP = re.compile(r"\b(gateway|via|to|dns\w*|nameservers?|ntp|server|search)\b", re.I)
_V4_OR_V6 = re.compile(r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:.]+)(?![\w.:])")


class Interface(NamedTuple):
    """A network interface and its addresses, as `ip -j address` tells them."""

    name: str
    altnames: tuple[str, ...]
    fault: str  # why packets cannot pass, if so
    addresses: tuple[Mapping[str, Any], ...]


class Configured(NamedTuple):
    """What configuration files name: addresses of their own, and any addresses; and why not all could be read."""

    own: frozenset[str]
    named: frozenset[str]
    unread: str = ""


def parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def plain(text: str) -> str:
    """An address as the kernel writes it."""
    bare, slash, prefix = text.partition("/")
    address = parsed(bare)
    return text if address is None else f"{address}{slash}{prefix}"


def is_address(text: str) -> bool:
    return parsed(text) is not None


def ip(host: Host, *words: str) -> list[dict[str, Any]]:
    """What `ip -j` tells: a list of objects."""
    text = host.run("ip", "-j", *words, timeout=8)
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise HostError(f"ip -j {' '.join(words)}: said something else than a JSON list")
    return [entry for entry in found if entry]  # ip(8) of 2020 leaves {} for what it filters out


def interfaces(host: Host) -> list[Interface]:
    found = []
    for entry in ip(host, "address", "show"):
        flags = entry.get("flags", ())
        fault = "is down" if "UP" not in flags else "has no link" if "LOWER_UP" not in flags else ""
        known = tuple(a for a in entry.get("addr_info", ()) if a.get("scope") != "link" and "local" in a)
        found.append(Interface(entry.get("ifname", "?"), tuple(entry.get("altnames", ())), fault, known))
    if not found:
        raise HostError("ip -j address show: no interface at all, not even lo")
    return found


def cidr(address: Mapping[str, Any]) -> str:
    return f"{plain(address['local'])}/{address.get('prefixlen')}"


def configured(host: Host) -> Configured:
    own: set[str] = set()
    named: set[str] = set()
    unread = ""
    for pattern in _CONFIGURATION:
        paths = attempt(host.glob, pattern)
        for path in [] if isinstance(paths, Unknown) else paths:
            text = attempt(host.read, path)
            if isinstance(text, Unknown):
                unread = unread or ("" if "is a directory" in text.reason else text.reason)
                continue
            for line in (text or "").splitlines():
                found = {plain(word) for word in _V4_OR_V6.findall(re.split(r"(^|\s)[#;]", line)[0])}
                named |= found
                own |= set() if _HOP.search(line) else found
        if isinstance(paths, Unknown):
            unread = unread or paths.reason
    return Configured(frozenset(own), frozenset(named), unread)


def lasts(address: Mapping[str, Any], interface: str, configured: Configured) -> bool:
    return bool(address.get("dynamic")) or interface == "lo" or plain(address["local"]) in configured.own


def default(
    host: Host, family: str, interfaces: list[Interface] | Unknown, configured: Configured
) -> tuple[Fact, tuple[str, str] | None]:
    """The default route's gateway now and at the next boot, and the gateway with its interface."""
    try:
        routes = [r for r in ip(host, f"-{family}", "route", "show") if r.get("dst") == "default"]
    except HostError as e:
        return Fact.fixed(Unknown(str(e))), None
    usable = [r for r in routes if r.get("type", "unicast") == "unicast" and "dead" not in r.get("flags", ())]
    if not usable:
        return Fact.fixed(None), None
    best = min(usable, key=lambda r: int(r.get("metric", 0)))
    hop = next(iter(best.get("nexthops", ())), best)
    gateway = hop.get("gateway") or hop.get("via", {}).get("host") or ""
    device = hop.get("dev", "")
    if not gateway:
        return Fact.fixed(f"dev {device}"), None
    gateway = plain(gateway)
    dynamic = best.get("protocol") in ("dhcp", "ra") or (
        not isinstance(interfaces, Unknown)
        and any(a.get("dynamic") for i in interfaces if i.name == device for a in i.addresses)
    )
    if dynamic or gateway in configured.named:
        return Fact.fixed(gateway), (gateway, device)
    return Fact(gateway, Unknown(configured.unread) if configured.unread else None), (gateway, device)


def routes(host: Host) -> tuple[str, ...]:
    found = []
    for route in [*ip(host, "-4", "route", "show"), *ip(host, "-6", "route", "show")]:
        to = str(route.get("dst", ""))
        hop = next(iter(route.get("nexthops", ())), route)
        if to == "default" or to.startswith(("fe80:", "ff")) or route.get("type", "unicast") == "multicast":
            continue
        if wrong := _not_a_network(to):
            raise HostError(f"ip route: {wrong}")
        found.append(f"{ipaddress.ip_network(to)} {hop.get('dev', route.get('type', '?'))}")
    return tuple(sorted(set(found)))


def _not_a_network(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError as e:
        return str(e)
    return ""
