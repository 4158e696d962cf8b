"""A site's plan of networks, judged: is it consistent with itself, and with the routes that a host already has? Pure.

nvidia-k8s-ipam (IPPool) cuts a subnet into blocks of perNodeBlockSize addresses, from the first after the network's
own on; a block that would end at the broadcast address or behind it is not given out (pkg/ipam-controller/allocator).
Of its block a node gives out what is in no exclusion and is not the gateway (pkg/ipam-node/allocator).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any, NamedTuple

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

SRIOV, DOCKER, METALLB, MANAGEMENT = "sriov", "docker", "metallb", "management"
_DOCKER_BRIDGE = re.compile(r"br-[0-9a-f]{12}|docker\d+|podman\d+")
# What the network plugins of Kubernetes call their interfaces.
_OF_CLUSTER = re.compile(r"(cni|flannel|cali|tunl|vxlan\.calico|cilium|lxc|kube-|ovn|weave|antrea|nodelocaldns)")


class Span(NamedTuple):
    """The addresses from `first` to `last`."""

    first: Address
    last: Address

    def __str__(self) -> str:
        if self.first == self.last:
            return str(self.first)
        nets = list(ipaddress.summarize_address_range(self.first, self.last))
        return str(nets[0]) if len(nets) == 1 else f"{self.first}-{self.last}"

    def meets(self, other: Span) -> bool:
        same = self.first.version == other.first.version
        return same and int(self.first) <= int(other.last) and int(other.first) <= int(self.last)

    def holds(self, other: Span) -> bool:
        same = self.first.version == other.first.version
        return same and int(self.first) <= int(other.first) and int(other.last) <= int(self.last)


class Route(NamedTuple):
    """A network that the host has a route to, and the interface it leaves by."""

    to: str
    device: str


class DockerNetwork(NamedTuple):
    """A network of the container engine: its name, subnet and bridge."""

    name: str
    subnet: str
    bridge: str


class Live(NamedTuple):
    """What the host already has."""

    routes: tuple[Route, ...] = ()
    networks: tuple[DockerNetwork, ...] = ()
    containers: tuple[tuple[str, str], ...] = ()  # address and name of each container
    own: frozenset[str] = (
        frozenset()
    )  # addresses of the host, without prefix length, with their interface: 10.0.0.1 eth0


Clashes = dict[str, tuple[str, ...]]


def clashes(plan: Mapping[str, Any], live: Live | None) -> Clashes:
    """By name of a network of the plan, what speaks against it; `live` is None where the host is not known."""
    found: dict[str, list[str]] = {name: [] for name in plan}
    spans: dict[str, list[Span]] = {}
    for name, entry in plan.items():
        try:
            spans[name] = [span_of(text) for text in subnets(entry)]
        except ValueError as e:
            found[name].append(f"{name}: {e}.")
            spans[name] = []
    for (name, some), (other, more) in combinations(spans.items(), 2):
        for a, b in ((a, b) for a in some for b in more if a.meets(b)):
            if {name, other} == {METALLB, DOCKER}:
                continue
            sentence = f"{name} {a} overlaps {other} {b}."
            found[name].append(sentence)
            found[other].append(sentence)
    if METALLB in spans:
        found[METALLB] += _outside(spans, live)
    if SRIOV in plan and spans[SRIOV]:
        try:
            found[SRIOV] += sriov_clashes(plan[SRIOV])
        except ValueError as e:
            found[SRIOV].append(f"{SRIOV}: {e}.")
    if live is not None:
        for name, some in spans.items():
            found[name] += _met_by_host(name, plan[name], some, live)
    return {name: tuple(dict.fromkeys(sentences)) for name, sentences in found.items()}


def subnets(entry: Any) -> list[str]:
    """The subnets of one entry of a plan."""
    if isinstance(entry, Mapping):
        entry = entry["subnet"]
    return list(entry) if isinstance(entry, list) else [entry]


def span_of(text: str, within: Network | None = None) -> Span:
    """The addresses of 10.0.0.0/8, 10.0.0.1-10.0.0.9, 10.0.0.1, or .1-.9 within a network. ValueError with why not."""
    if "/" in text:
        net = network_of(text)
        return Span(net.network_address, net.broadcast_address)
    first, _, last = (part.strip() for part in text.partition("-"))
    span = Span(address_of(first, within), address_of(last or first, within))
    if span.first.version != span.last.version or int(span.first) > int(span.last):
        raise ValueError(f"{text} does not end behind where it begins")
    return span


def network_of(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_interface(text).network
    except ValueError:
        raise ValueError(f"{text} is not a network such as 192.168.20.0/24") from None
    raise ValueError(f"{text} is not a network: it has bits behind its prefix (is {meant} meant?)")


def address_of(text: str, within: Network | None = None) -> Address:
    if re.fullmatch(r"\.[0-9]{1,3}", text) and within is not None and within.version == 4:
        text = str(within.network_address).rpartition(".")[0] + text
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"{text} is not an address such as 192.168.20.1") from None


# -- with the host --------------------------------------------------------------------------------


def _outside(spans: Mapping[str, list[Span]], live: Live | None) -> Iterator[str]:
    """MetalLB's addresses are those of a network that the nodes are in: of Docker's, where kind is."""
    if spans.get(DOCKER):
        around, where = spans[DOCKER], f"{DOCKER} {', '.join(map(str, spans[DOCKER]))}"
    elif DOCKER not in spans and live is not None:
        around = [net for route in live.routes if (net := _routed(route)) is not None]
        where = "any network that this host has a route to"
    else:
        return
    for span in spans[METALLB]:
        if not any(net.holds(span) for net in around):
            yield f"{METALLB} {span} is not inside {where}."
        elif DOCKER in spans and any(span.meets(Span(net.first, net.first + 1)) for net in around):
            yield f"{METALLB} {span} holds the network's own address or its gateway {around[0].first + 1}."


def _met_by_host(name: str, entry: Any, spans: Iterable[Span], live: Live) -> Iterator[str]:
    networks = {net.bridge: net for net in live.networks}
    wanted = entry.get("name", "") if isinstance(entry, Mapping) else ""
    for span in spans:
        if name == METALLB:
            for address, container in live.containers:
                if span.holds(span_of(address)):
                    yield f"{name} {span} holds {address}, which the container {container} has."
            continue
        if name == MANAGEMENT:
            continue
        for route in live.routes:
            to = _routed(route)
            if to is None or not to.meets(span) or _own(name, entry, span, to, route, live, wanted):
                continue
            owner = networks.get(route.device)
            by = f"Docker's network {owner.name} ({route.device})" if owner else f"interface {route.device}"
            yield f"{name} {span} overlaps {to}, which this host already has a route to, by {by}."
        routed = {route.device for route in live.routes}
        for net in (net for net in live.networks if net.bridge not in routed):
            to = span_of(net.subnet)
            if to.meets(span) and not (name == DOCKER and to == span and wanted in ("", net.name)):
                yield f"{name} {span} overlaps {to}, which is Docker's network {net.name}."


def _own(name: str, entry: Any, span: Span, to: Span, route: Route, live: Live, wanted: str) -> bool:
    """Is it the very network of the plan, already made?"""
    if name == DOCKER:
        owner = next((net for net in live.networks if net.bridge == route.device), None)
        if not span.holds(to) or not (owner or _DOCKER_BRIDGE.fullmatch(route.device)):
            return False
        return to == span and (not wanted or owner is None or owner.name == wanted)
    if name == SRIOV:  # the PFs are still in the host's namespace, and have their addresses
        pfs = [str(pf).partition("/")[0] for pf in entry.get("pfs", ())]
        net = network_of(entry["subnet"])
        return to == span and any(f"{_absolute(pf, net)} {route.device}" in live.own for pf in pfs)
    return span.holds(to) and bool(_OF_CLUSTER.match(route.device))


def _absolute(text: str, net: Network) -> str:
    try:
        return str(address_of(text, net))
    except ValueError:
        return text


def _routed(route: Route) -> Span | None:
    """None for default routes, and for their halves (0.0.0.0/1), by which VPNs take everything."""
    if route.to == "default":
        return None
    net = network_of(route.to)
    return None if net.prefixlen <= 1 else Span(net.network_address, net.broadcast_address)


# -- nvidia-k8s-ipam ------------------------------------------------------------------------------


def sriov_clashes(plan: Mapping[str, Any]) -> Iterator[str]:
    """What speaks against the plan of one IPPool. ValueError where something in it is no address."""
    net = network_of(plan["subnet"])
    whole = Span(net.network_address, net.broadcast_address)
    gateway = address_of(plan["gateway"], net) if "gateway" in plan else None
    pool = span_of(plan["pool"], net) if "pool" in plan else None
    excluded = [span_of(text, net) for text in plan.get("exclusions", ())]
    for span in [*excluded, *([pool] if pool else [])]:
        if not whole.holds(span):
            yield f"{span} is not inside the subnet {net}."
    if pool and "exclusions" in plan:
        yield from _disagree(net, pool, excluded)
    elif pool:
        excluded = _around(whole, pool)
    if gateway is not None:
        yield from _gateway_clashes(net, gateway, excluded)
    yield from _pf_clashes(net, plan.get("pfs", ()), gateway, excluded)
    if "block" in plan:
        yield from _block_clashes(net, gateway, excluded, plan["block"], plan.get("nodes", 1), plan.get("vfs", 0))


def _disagree(net: Network, pool: Span, excluded: list[Span]) -> Iterator[str]:
    for span in excluded:
        if span.meets(pool):
            yield f"The exclusion {span} and the pool {pool} overlap."
    for gap in _without(_around(Span(net.network_address, net.broadcast_address), pool), excluded):
        yield f"{gap} is neither in the pool {pool} nor in an exclusion: it would be given to VFs too."


def _around(whole: Span, pool: Span) -> list[Span]:
    """What of a network is outside of the pool."""
    return list(_without([whole], [pool]))


def _without(spans: Iterable[Span], taken: Iterable[Span]) -> Iterator[Span]:
    """What is left of some spans when others are taken out."""
    left = list(spans)
    for t in taken:
        left = [piece for span in left for piece in _cut(span, t)]
    yield from left


def _cut(span: Span, taken: Span) -> Iterator[Span]:
    if not span.meets(taken):
        yield span
        return
    if int(span.first) < int(taken.first):
        yield Span(span.first, taken.first - 1)
    if int(taken.last) < int(span.last):
        yield Span(taken.last + 1, span.last)


def _gateway_clashes(net: Network, gateway: Address, excluded: list[Span]) -> Iterator[str]:
    if gateway not in net:
        yield f"The gateway {gateway} is not inside the subnet {net}."
    elif gateway in (net.network_address, net.broadcast_address):
        yield f"The gateway {gateway} is the network's own or its broadcast address."
    elif not any(span.holds(Span(gateway, gateway)) for span in excluded):
        yield f"The gateway {gateway} is in no exclusion."


def _pf_clashes(net: Network, pfs: Iterable[str], gateway: Address | None, excluded: list[Span]) -> Iterator[str]:
    seen: set[Address] = set()
    for text in pfs:
        bare, _, prefix = text.partition("/")
        pf = address_of(bare, net)
        if prefix and prefix != str(net.prefixlen):
            yield f"The PF's address {text} has another prefix length than the subnet {net}."
        if pf not in net:
            yield f"The PF's address {pf} is not inside the subnet {net}."
        elif pf in (net.network_address, net.broadcast_address):
            yield f"The PF's address {pf} is the network's own or its broadcast address."
        elif not any(span.holds(Span(pf, pf)) for span in excluded):
            yield f"The PF's address {pf} is in no exclusion: a VF could get the same."
        if pf == gateway:
            yield f"The PF's address {pf} is the gateway's."
        if pf in seen:
            yield f"Two PFs have the address {pf}."
        seen.add(pf)


def _block_clashes(
    net: Network, gateway: Address | None, excluded: list[Span], block: int, nodes: int, vfs: int
) -> Iterator[str]:
    usable = net.num_addresses - 2
    if block > usable:
        yield f"A block of {block} addresses is larger than the {usable} of {net}."
        return
    held = excluded if gateway is None else [*excluded, Span(gateway, gateway)]
    for node in range(nodes):
        if (node + 1) * block > usable:
            fit = usable // block
            yield f"{net} has room for {fit} blocks of {block} addresses, and there are {nodes} nodes."
            return
        first = net.network_address + 1 + node * block
        span = Span(first, first + (block - 1))
        free = sum(int(s.last) - int(s.first) + 1 for s in _without([span], held))
        if free < max(vfs, 1):
            yield (
                f"The block {span.first}-{span.last} of node {node + 1} has {free} addresses left beside the "
                f"exclusions and the gateway, for {vfs or 'its'} VFs."
            )
