"""Network: addresses, default route, a gateway that answers, MTU of paths, names, time source, the site's plan.

    network:
      addresses: [192.168.10.2/24]        # or by interface: {eno1: 192.168.10.2/24}
      gateway: 192.168.10.1               # the default route leads there, and it answers; or: answers
      mtu: {192.168.20.3: 9000}           # packets of that size get through; 9000 alone: to the gateway
      names: {harbor.example.com: 192.168.10.100}     # or only a list of names that must resolve
      hostname: resolves                  # to an address of this host; both-ways: and that back to this name
      time: {source: chrony, server: [192.168.10.1], offset: 100ms}     # or: any, chrony, ntp, timesyncd
    network:
      plan:                               # the networks of the site's design: said with both sides of each clash
        management: 192.168.10.0/24
        sriov: {subnet: 192.168.20.0/24, gateway: .1, pfs: [.2, .3], pool: .10-.50,
                exclusions: [.0-.9, .51-.255], block: 30, nodes: 2, vfs: 8}
        docker: {name: kind, subnet: 172.18.0.0/16}
        metallb: 172.18.9.0-172.18.9.10
        pods: 10.100.0.0/16
        services: 10.96.0.0/16
    network: {gateway: answers, mtu: 1500, names: [registry.example.com], hostname: both-ways, time: any}

addresses: on an interface that is up and has a link, and not found to be a duplicate. Next boot: an address comes back
if it came by DHCP or router advertisement, or if the configuration of ifupdown, netplan, systemd-networkd,
NetworkManager or ifcfg files names it; any other, such as one added by hand, is `volatile`. That is told by the
address alone: whether the file will be used is not looked at. So it is with the default route and its gateway.

gateway: it answers ping; or, where it drops that, ARP, for which hostprep needs root. An IPv6 gateway that drops ping
is believed to answer where the kernel holds it for reachable, which it may do for 45 s after it has gone.

mtu: a ping of that size, headers included, that must not be fragmented. Where it does not pass, the size that does is
looked for, and whether somebody says so or larger packets just vanish (a black hole). The kernel remembers for ten
minutes what it was told of a path. A target has to answer ping.

names and hostname: as every program here resolves them (nsswitch.conf, /etc/hosts, name servers). With an address
given, that and no other of its family. A host whose own name leads to 127.0.1.1, as Debian's installer writes it,
tells its peers (OpenPBS, kubelet) to look for it in themselves.

time: which server the time service follows now, and how far off it is; `system: {clock: synchronised}` is what the
kernel says. timesyncd tells no offset.

plan: subnets must not overlap each other, a route that this host has, or one of Docker's networks; but those that are
already made of the plan are no clash: Docker's bridge of that subnet (of `name`, if given), a Kubernetes network
plugin's, the PFs'. management is where the host itself is. metallb lies in Docker's subnet, or else in a route's, and
holds no container's address. sriov is as nvidia-k8s-ipam gives out addresses (IPPool): each node a block of `block`
addresses from the first of the subnet on, less exclusions and gateway; in it must be `vfs` addresses. PFs and gateway
lie in the subnet and in an exclusion. Of engines only Docker is asked, or a podman that is installed as `docker`.

hostprep changes nothing here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hostprep.errors import HostError
from hostprep.host import Host, attempt
from hostprep.model import Desired, Fact, Facts, Goals, Reading, Section, Suggestion, Unknown, from_json, to_json
from hostprep.net import addresses, clock, docker, paths, plan
from hostprep.net.addresses import Configured, Interface, cidr, default, is_address, lasts, parsed, plain

NAME = "network"
MOVING = ("hostname", "addresses/*", "time/offset")

_OCTET = r"(25[0-5]|2[0-4][0-9]|1?[0-9]{1,2})"
_ONE = rf"({_OCTET}(\.{_OCTET}){{3}}|[0-9A-Fa-f]{{0,4}}(:[0-9A-Fa-f]{{0,4}}){{2,7}})"
_PREFIX = r"/(12[0-8]|1[01][0-9]|[0-9]{1,2})"
_PART = rf"({_ONE}|\.{_OCTET})"  # of an address in a subnet that is known
_ADDRESS = {
    "description": "an address, such as 192.168.10.2 or 192.168.10.2/24",
    "type": "string",
    "pattern": rf"^{_ONE}({_PREFIX})?$(?!\n)",
}
_BARE = {
    "description": "an address, such as 192.168.10.1",
    "type": "string",
    "pattern": rf"^{_ONE}$(?!\n)",
}
_MTU = {"type": "integer", "minimum": 576, "maximum": 65535, "description": "a packet's size in bytes: 1500, 9000"}
_TARGET = r"^[A-Za-z0-9][A-Za-z0-9.:_-]*$(?!\n)"  # never an option of ping
_IN_SUBNET = {
    "description": "an address of the subnet: 192.168.20.1, or its last part: .1",
    "type": "string",
    "pattern": rf"^{_PART}({_PREFIX})?$(?!\n)",
}
_RANGE = {
    "description": "addresses of the subnet: 192.168.20.10-192.168.20.50, .10-.50, .1",
    "type": "string",
    "pattern": rf"^{_PART}({_PREFIX}| ?- ?{_PART})?$(?!\n)",
}
_NET = {
    "description": "a network (172.18.0.0/16), or a range of addresses (172.18.9.0-172.18.9.10)",
    "type": "string",
    "pattern": rf"^{_ONE}({_PREFIX}| ?- ?{_ONE})$(?!\n)",
}
_CIDR = {
    "description": "a network, such as 192.168.20.0/24",
    "type": "string",
    "pattern": rf"^{_ONE}{_PREFIX}$(?!\n)",
}
_COUNT = {"type": "integer", "minimum": 1}


def _one_or_more(schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "description": f"{schema['description']}; or a list of such",
        "anyOf": [schema, {"type": "array", "items": schema, "minItems": 1}],
    }


_SERVICES = {"enum": ["any", "chrony", "ntp", "timesyncd"]}
_PLAN = {
    "type": "object",
    "properties": {
        "sriov": {
            "type": "object",
            "properties": {
                "subnet": _CIDR,
                "gateway": _IN_SUBNET,
                "pfs": {"type": "array", "items": _IN_SUBNET},
                "pool": _RANGE,
                "exclusions": {"type": "array", "items": _RANGE},
                "block": {
                    **_COUNT,
                    "minimum": 2,
                    "description": "perNodeBlockSize: addresses for each node, 2 or more",
                },
                "nodes": {**_COUNT, "description": "how many nodes get a block"},
                "vfs": {**_COUNT, "description": "how many VFs of a node need an address"},
            },
            "required": ["subnet"],
            "dependentRequired": {"nodes": ["block"], "vfs": ["block"]},
            "additionalProperties": False,
        },
        "docker": {
            "description": "a network (172.18.0.0/16), or {name: kind, subnet: 172.18.0.0/16}",
            "anyOf": [
                _CIDR,
                {
                    "type": "object",
                    "properties": {"name": {"type": "string", "minLength": 1}, "subnet": _one_or_more(_CIDR)},
                    "required": ["subnet"],
                    "additionalProperties": False,
                },
            ],
        },
    },
    "patternProperties": {r"^(?!(sriov|docker)$)[a-z][a-z0-9_-]*$(?!\n)": _one_or_more(_NET)},
    "additionalProperties": False,
    "minProperties": 1,
}
SCHEMA = {
    "description": "Addresses, gateway, MTU of paths, names, time source, and the plan of a site's networks.",
    "type": "object",
    "properties": {
        "addresses": {
            "description": "addresses, or by interface: {eth0: 192.168.10.2/24}",
            "anyOf": [
                {"type": "array", "items": _ADDRESS, "minItems": 1},
                {
                    "type": "object",
                    "patternProperties": {r"^[^\s/]+$(?!\n)": _one_or_more(_ADDRESS)},
                    "additionalProperties": False,
                    "minProperties": 1,
                },
            ],
        },
        "gateway": {"description": "the gateway's address, or: answers", "anyOf": [{"const": "answers"}, _BARE]},
        "mtu": {
            "description": "a packet's size in bytes (to the gateway), or by target: {192.168.20.3: 9000}",
            "anyOf": [
                _MTU,
                {
                    "type": "object",
                    "patternProperties": {_TARGET: _MTU},
                    "additionalProperties": False,
                    "minProperties": 1,
                },
            ],
        },
        "names": {
            "description": "names that resolve; or with their addresses: {harbor.example.com: 192.168.10.100}",
            "anyOf": [
                {"type": "array", "items": {"type": "string", "pattern": _TARGET}, "minItems": 1},
                {
                    "type": "object",
                    "patternProperties": {_TARGET: _one_or_more(_BARE)},
                    "additionalProperties": False,
                    "minProperties": 1,
                },
            ],
        },
        "hostname": {"enum": ["resolves", "both-ways"]},
        "time": {
            "description": "any, chrony, ntp or timesyncd; or {source: any, server: [ADDRESS], offset: 100ms}",
            "anyOf": [
                _SERVICES,
                {
                    "type": "object",
                    "properties": {
                        "source": _SERVICES,
                        "server": {
                            "description": "the servers' names or addresses, one of which is to be followed",
                            "type": "array",
                            "items": {"type": "string", "pattern": _TARGET},
                            "minItems": 1,
                        },
                        "offset": {
                            "description": "at most so much: 100ms, 500us, 1s",
                            "type": "string",
                            "pattern": r"^[0-9]+ ?(us|ms|s)$(?!\n)",
                        },
                    },
                    "additionalProperties": False,
                    "minProperties": 1,
                },
            ],
        },
        "plan": _PLAN,
    },
    "additionalProperties": False,
    "minProperties": 1,
}

PRESENT, ANSWERS, RESOLVES, CONSISTENT = "present", "answers", "resolves", "consistent"
LOOK_S = 20.0  # for all that is asked of others, at once
_NOT_LOOKED_AT = Unknown("not looked at")
_UNITS = {"us": 1, "ms": 1000, "s": 1_000_000}
_Found = dict[str, Fact]
Gateway = tuple[str, str] | Unknown | None  # of the default route, with its interface


# -- looking --------------------------------------------------------------------------------------


def asked(want: Section, keys: Iterable[str]) -> Sequence[str]:
    """The facts that a profile needs, by key; none of them is ever changed, so facts that were need none."""
    if want is None:  # nobody asks for anything: what every host has
        return ["gateway", "hostname"]
    names = [*_addresses_wanted(want), *_gateway_wanted(want), *_mtu_wanted(want)]
    names += [f"name/{name}" for name in want.get("names", ())]
    names += [key for key in ("hostname", "time", "plan") if key in want]
    names += [f"name/{name}" for name in _servers(want) if not is_address(name)]
    return sorted(set(names))


def _addresses_wanted(want: Section) -> list[str]:
    wanted = want.get("addresses", ())
    if isinstance(wanted, Mapping):
        return [f"address/{name}/{plain(a)}" for name, some in wanted.items() for a in _list(some)]
    return [f"address/{plain(address)}" for address in wanted]


def _gateway_wanted(want: Section) -> list[str]:
    if "gateway" not in want:
        return []
    return ["gateway"] if want["gateway"] == ANSWERS else [f"gateway/{plain(want['gateway'])}"]


def _mtu_wanted(want: Section) -> list[str]:
    wanted = want.get("mtu", {})
    targets = wanted if isinstance(wanted, Mapping) else {"gateway": wanted}
    return [f"mtu/{target}/{size}" for target, size in targets.items()]


def _servers(want: Section) -> list[str]:
    wanted = want.get("time", {})
    return list(wanted.get("server", ())) if isinstance(wanted, Mapping) else []


def _list(some: Any) -> list[Any]:
    return some if isinstance(some, list) else [some]


def inspect(host: Host, names: Sequence[str] = ()) -> Facts:
    configured = addresses.configured(host)
    interfaces = attempt(addresses.interfaces, host)
    facts: dict[str, Fact] = {"hostname": Fact.fixed(attempt(_name, host))}
    if isinstance(interfaces, Unknown):
        facts["addresses"] = Fact.fixed(interfaces)
    else:
        facts |= {f"addresses/{i.name}": _addresses(i, configured) for i in interfaces if i.addresses}
    defaults = {}
    for family in ("4", "6"):
        key = "route/default" if family == "4" else "route/default6"
        facts[key], defaults[family] = default(host, family, interfaces, configured)
    for name in names:
        if name.startswith("address/"):
            facts[name] = _address(name, interfaces, configured)
    unread = next(
        (f.current for key, f in facts.items() if key.startswith("route/") if isinstance(f.current, Unknown)), None
    )
    gateway = defaults["4"] or defaults["6"] or unread
    works: list[tuple[str, Callable[[], bytes]]] = []
    for name in ("time", *names):
        work = _work(host, name, interfaces, gateway)
        if work is not None and name not in dict(works):
            works.append((name, _wired(name, work)))
    for name, answer in host.together(works, LOOK_S).items():
        facts |= _facts_of(name, answer)
    return facts


def _work(
    host: Host, name: str, interfaces: list[Interface] | Unknown, gateway: Gateway
) -> Callable[[], _Found] | None:
    kind, _, what = name.partition("/")
    if kind == "gateway":
        return lambda: _gateway(host, name, what, gateway)
    if kind == "mtu":
        return lambda: _mtu(host, name, gateway)
    if kind == "name":
        return lambda: _resolved(host, name)
    if kind in ("hostname", "time", "plan"):
        works = {
            "hostname": lambda: _own_name(host, interfaces),
            "time": lambda: _time(host),
            "plan": lambda: _live(host),
        }
        return works[kind]
    return None


def _wired(name: str, work: Callable[[], _Found]) -> Callable[[], bytes]:
    def run() -> bytes:
        try:
            found = work()
        except HostError as e:
            found = {key: Fact.fixed(Unknown(str(e))) for key in _keys(name)}
        return json.dumps({key: [to_json(side) for side in fact] for key, fact in found.items()}).encode(
            errors="replace"
        )

    return run


def _keys(name: str) -> tuple[str, ...]:
    """The facts that asking for something gives."""
    several = {
        "hostname": ("hostname/resolves", "hostname/reverse"),
        "time": ("time/source", "time/server", "time/offset-us"),
        "plan": ("plan/routes", "plan/networks", "plan/containers"),
    }
    return several.get(name, (name,))


def _facts_of(name: str, answer: bytes | str) -> _Found:
    if isinstance(answer, bytes):
        return {key: Fact(*map(from_json, sides)) for key, sides in json.loads(answer).items()}
    if name.startswith("name/") and answer.startswith("no answer within"):
        return _nothing(name, f"no name server gives an answer within {LOOK_S:g} s")
    return {key: Fact.fixed(Unknown(answer)) for key in _keys(name)}


def _nothing(name: str, why: str) -> _Found:
    return {name: Fact.fixed(None), f"{name}/why": Fact.fixed(why)}


# addresses and routes


def _addresses(interface: Interface, configured: Configured) -> Fact:
    now = tuple(sorted(map(cidr, interface.addresses)))
    lasting = tuple(sorted(cidr(a) for a in interface.addresses if lasts(a, interface.name, configured)))
    return Fact(now, Unknown(configured.unread) if configured.unread and lasting != now else lasting)


def _address(name: str, interfaces: list[Interface] | Unknown, configured: Configured) -> Fact:
    if isinstance(interfaces, Unknown):
        return Fact.fixed(interfaces)
    where, _, wanted = name.removeprefix("address/").partition("/")
    if is_address(where):
        where, wanted = "", name.removeprefix("address/")
    bare = wanted.partition("/")[0]
    having = [(i, a) for i in interfaces for a in i.addresses if plain(a["local"]) == bare]
    readings = [_as_wanted(i, a, where, wanted) for i, a in having]
    now = PRESENT if PRESENT in readings else next(iter(readings), None)
    if bare in configured.own or any(lasts(a, i.name, configured) for i, a in having):
        return Fact(now, PRESENT if now in (PRESENT, None) else now)
    return Fact(now, Unknown(configured.unread) if configured.unread else None)


def _as_wanted(interface: Interface, address: Mapping[str, Any], where: str, wanted: str) -> str:
    if where and where not in (interface.name, *interface.altnames):
        return f"on {interface.name}"
    if "/" in wanted and cidr(address) != wanted:
        return f"{cidr(address)} on {interface.name}"
    if address.get("dadfailed"):
        return f"on {interface.name}, a duplicate of another host's"
    if address.get("tentative"):
        return f"on {interface.name}, not yet usable (tentative)"
    return f"on {interface.name}, which {interface.fault}" if interface.fault else PRESENT


# what others answer


def _gateway(host: Host, name: str, wanted: str, default: Gateway) -> _Found:
    if not wanted and not isinstance(default, tuple):
        return _no_gateway(name, default)
    address, device = default if isinstance(default, tuple) and wanted in ("", default[0]) else (wanted, "")
    target = f"{address}%{device}" if address.startswith("fe80:") else address
    ok, said = paths.ping(host, "-c", "3", "-i", "0.3", "-W", "1", target)
    if ok:
        return {name: Fact.fixed(ANSWERS)}
    answers, how = paths.neighbour(host, address)
    if answers:
        return {name: Fact.fixed(ANSWERS), f"{name}/why": Fact.fixed(f"{how}, not ping")}
    return _nothing(name, f"{address}: {said}; {how}")


def _no_gateway(name: str, gateway: Unknown | None) -> _Found:
    if gateway is None:
        return _nothing(name, "there is no default route with a gateway")
    raise HostError(gateway.reason)


def _mtu(host: Host, name: str, gateway: Gateway) -> _Found:
    _, target, size = name.split("/")
    if target == "gateway":
        if not isinstance(gateway, tuple):
            return _no_gateway(name, gateway)
        target = gateway[0]
    address = target
    if not is_address(target):
        found = host.addresses_of(target)
        if not found.found:
            return _nothing(name, f"{target}: {found.why}")
        address = found.found[0]
    passed, why = paths.largest(host, address, int(size))
    return {name: Fact.fixed(passed), f"{name}/why": Fact.fixed(why)}


def _resolved(host: Host, name: str) -> _Found:
    found = host.addresses_of(name.removeprefix("name/"))
    return {name: Fact.fixed(tuple(sorted(found.found)))} if found.found else _nothing(name, found.why)


def _name(host: Host) -> str:
    name = host.read("/proc/sys/kernel/hostname")
    if not name:
        raise HostError("/proc/sys/kernel/hostname: tells no name")
    return name


def _own_name(host: Host, interfaces: list[Interface] | Unknown) -> _Found:
    name = _name(host)
    found = host.addresses_of(name)
    if isinstance(interfaces, Unknown):
        raise HostError(interfaces.reason)
    own = {plain(a["local"]): i.name for i in interfaces for a in i.addresses}
    loopback = [a for a in found.found if (p := parsed(a)) is not None and p.is_loopback]
    foreign = [a for a in found.found if a not in own and a not in loopback]
    if not found.found:
        reading = found.why
    elif loopback:
        reading = f"to {loopback[0]}, which to every host is itself"
    elif foreign:
        reading = f"to {foreign[0]}, which no interface here has"
    else:
        reading = RESOLVES
    facts = {"hostname/resolves": Fact.fixed(reading), "hostname/addresses": Fact.fixed(found.found)}
    facts["hostname/reverse"] = Fact.fixed(attempt(_reverse, host, name, found.found))
    return facts


def _reverse(host: Host, name: str, own: Sequence[str]) -> str:
    if not own:
        return "no address"
    back = host.names_of(own[0])
    if not back.found:
        return f"{own[0]} has no name: {back.why}"
    if back.found[0].partition(".")[0].lower() == name.partition(".")[0].lower():
        return RESOLVES
    return f"{own[0]} is named {back.found[0]}"


def _time(host: Host) -> _Found:
    """Of the first time service that answers: its name, the server it follows, and microseconds from that."""
    return {key: Fact.fixed(reading) for key, reading in zip(_keys("time"), clock.follows(host), strict=True)}


def _live(host: Host) -> _Found:
    networks = attempt(docker.networks, host)
    unknown = networks if isinstance(networks, Unknown) else None
    named, containers = ((), ()) if isinstance(networks, Unknown) else networks
    return {
        "plan/routes": Fact.fixed(attempt(addresses.routes, host)),
        "plan/networks": Fact.fixed(unknown or named),
        "plan/containers": Fact.fixed(unknown or containers),
    }


# -- deciding -------------------------------------------------------------------------------------


def decide(facts: Facts, want: Section) -> Goals:
    goals: dict[str, Desired] = {}
    for key in _addresses_wanted(want):
        goals[key] = _address_goal(facts, key)
    goals |= _gateway_goals(facts, want)
    for key in _mtu_wanted(want):
        _, target, size = key.split("/")
        why = _why(facts, key)
        goals[key] = _goal(
            int(size),
            means=f"Packets of {size} bytes do not get to {target}: {why or 'no answer'}.",
            fix="Set the MTU of the interfaces, switches and tunnels on the way, or let ICMP pass.",
        )
    goals |= _name_goals(facts, want)
    if "time" in want:
        goals |= _time_goals(facts, want["time"])
    if "plan" in want:
        goals |= _plan_goals(facts, want["plan"])
    return {
        key: goal if key in facts or goal.counted is not None else goal._replace(counted=_NOT_LOOKED_AT)
        for key, goal in goals.items()
    }


def suggest(facts: Facts) -> Suggestion:
    """What siblings have in common: addresses are each one's own."""
    section: dict[str, Any] = {}
    gateway = next((g for key in ("route/default", "route/default6") if isinstance(g := _now(facts, key), str)), "")
    if _now(facts, "gateway") == ANSWERS and is_address(gateway):
        section["gateway"] = gateway
    if _now(facts, "hostname/resolves") == RESOLVES:
        section["hostname"] = RESOLVES if _now(facts, "hostname/reverse") != RESOLVES else "both-ways"
    if isinstance(_now(facts, "time/server"), str):
        section["time"] = _now(facts, "time/source")
    notes = {"gateway": "of this site", "": "add names, mtu and the site's plan: hostprep explain network"}
    return Suggestion(section or None, {key: note for key, note in notes.items() if not key or key in section})


def _goal(value: str | int | tuple[str, ...], means: str = "", fix: str = "") -> Desired:
    return Desired(value, live=False, persist=False, means=means, fix=fix)


def _now(facts: Facts, key: str) -> Reading:
    return facts[key].current if key in facts else _NOT_LOOKED_AT


def _why(facts: Facts, key: str) -> str:
    why = facts[f"{key}/why"].current if f"{key}/why" in facts else ""
    return why if isinstance(why, str) else ""


def _address_goal(facts: Facts, key: str) -> Desired:
    where, _, address = key.removeprefix("address/").partition("/")
    if is_address(where):
        where, address = "", key.removeprefix("address/")
    at = f" on {where}" if where else ""
    found = _now(facts, key)
    means = f"It is {found}." if isinstance(found, str) and found != PRESENT else "No interface has it."
    return _goal(
        PRESENT,
        means=f"The address {address} is wanted{at}. {means}",
        fix="Set it in the host's network configuration (netplan, /etc/network/interfaces, nmcli), and apply that.",
    )


def _gateway_goals(facts: Facts, want: Section) -> Goals:
    if "gateway" not in want:
        return {}
    (key,) = _gateway_wanted(want)
    wanted = key.partition("/")[2]
    route = (
        "route/default6" if ":" in wanted or (not wanted and _now(facts, "route/default") is None) else "route/default"
    )
    now = _now(facts, route)
    found = f"it leads to {now}" if isinstance(now, str) else "there is none"
    return {
        route: _goal(
            wanted or (now if isinstance(now, str) else "a gateway"),
            means=f"The default route is wrong: {found}.",
            fix="Set the gateway in the host's network configuration, and apply that.",
        ),
        key: _goal(
            ANSWERS,
            means=f"The gateway does not answer: {_why(facts, key) or 'no answer'}.",
            fix="Look at cable, VLAN and the gateway itself: ip neighbour; ping.",
        ),
    }


def _name_goals(facts: Facts, want: Section) -> Goals:
    goals: dict[str, Desired] = {}
    names = want.get("names", ())
    for name in names:
        key = f"name/{name}"
        now = _now(facts, key)
        wanted = [plain(a) for a in _list(names[name])] if isinstance(names, Mapping) else []
        found = now if isinstance(now, tuple) else ()
        seen = tuple(a for a in found if not wanted or any((":" in a) == (":" in b) for b in wanted))
        means = f"{name} resolves to {', '.join(found)}." if found else f"{name}: {_why(facts, key)}."
        goals[key] = _goal(
            tuple(sorted(set(wanted))) or found or ("an address",),
            means=means,
            fix="Correct the name server's record, /etc/resolv.conf or /etc/hosts: getent ahosts " + name,
        )._replace(counted=now if isinstance(now, Unknown) else seen)
    if "hostname" in want:
        name = _now(facts, "hostname")
        for key in ("hostname/resolves", *(["hostname/reverse"] if want["hostname"] == "both-ways" else [])):
            goals[key] = _goal(
                RESOLVES,
                means=f"This host's own name {name} does not resolve as its peers need it: {_now(facts, key)}.",
                fix="Give the name this host's address in DNS, or in /etc/hosts (and take 127.0.1.1 out of that).",
            )
    return goals


def _time_goals(facts: Facts, want: Any) -> Goals:
    want = want if isinstance(want, Mapping) else {"source": want}
    source, server, offset = (_now(facts, key) for key in _keys("time"))
    fix = "Look at: chronyc sources; ntpq -p; timedatectl timesync-status."
    wanted = want.get("source", "any")
    goals = {
        "time/source": _goal(
            wanted if wanted != "any" else source if isinstance(source, str) else "a time service",
            means=f"The time service that answers is {source}." if source else "No time service answers.",
            fix=fix,
        )
    }
    known: set[str] = set()
    unknown: Unknown | None = None
    for name in want.get("server", ()):
        found = (plain(name),) if is_address(name) else _now(facts, f"name/{name}")
        known |= set(found) if isinstance(found, tuple) else set()
        unknown = found if isinstance(found, Unknown) else unknown
    good = isinstance(server, str) and (not want.get("server") or server in known)
    goals["time/server"] = _goal(
        str(server) if good else ", ".join(want.get("server", ())) or "a time server",
        means=f"It follows {server}." if server else "No time server is followed.",
        fix=fix,
    )._replace(counted=unknown if unknown and not good else None)
    if "offset" in want:
        number, unit = re.fullmatch(r"([0-9]+) ?(us|ms|s)", want["offset"]).groups()  # type: ignore[union-attr]
        far = f"The clock is {offset} us off" if isinstance(offset, int) else "No server tells how far off the clock is"
        goals["time/offset-us"] = _goal(
            int(number) * _UNITS[unit], means=f"{far}; at most {want['offset']} is wanted.", fix=fix
        )._replace(op="<=")
    return goals


def _plan_goals(facts: Facts, wanted: Mapping[str, Any]) -> Goals:
    """What contradicts itself fails, whatever the host says; for the rest its routes and networks must be known."""
    readings = {key: _now(facts, key) for key in _keys("plan")}
    unknown = next((r for r in readings.values() if isinstance(r, Unknown)), None)
    live = None if unknown else _live_of(facts, readings)
    goals = {}
    for name, found in plan.clashes(wanted, live).items():
        goals[f"plan/{name}"] = _goal(
            CONSISTENT,
            means=" ".join(found),
            fix="Change the site's plan, or what the host has there, so that each network has addresses of its own.",
        )._replace(counted="in conflict" if found else unknown or CONSISTENT)
    return goals


def _live_of(facts: Facts, readings: Mapping[str, Reading]) -> plan.Live:
    routes, networks, containers = (
        [str(line).split(" ", 2) for line in reading] if isinstance(reading, tuple) else []
        for reading in readings.values()
    )
    own = {
        f"{address.partition('/')[0]} {key.removeprefix('addresses/')}"
        for key, fact in facts.items()
        if key.startswith("addresses/") and isinstance(fact.current, tuple)
        for address in fact.current
    }
    return plan.Live(
        tuple(plan.Route(to, device) for to, device in routes),
        tuple(plan.DockerNetwork(name, subnet, bridge) for subnet, bridge, name in networks),
        tuple((address, name) for address, name in containers),
        frozenset(own),
    )
