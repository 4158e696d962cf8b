"""The network check on hosts that are made up: what the next boot brings, names, time, and what cannot be told."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import jsonschema
import pytest
from fakes import Answer, FakeHost, debian

from hostprep.checks import network
from hostprep.errors import CommandFailed, HostError
from hostprep.judge import judge
from hostprep.model import Fact, Finding

MakeHost = Callable[..., FakeHost]
NOT_INSTALLED = "{}: not installed (not found in /usr/bin)"


def address(local: str, prefixlen: int = 24, **more: Any) -> dict[str, Any]:
    return {"family": "inet", "local": local, "prefixlen": prefixlen, "scope": "global", **more}


LO = {"ifname": "lo", "flags": ["UP", "LOWER_UP"], "addr_info": [address("127.0.0.1", 8, scope="host")]}


def interface(*addresses: dict[str, Any], name: str = "eth0", flags: Sequence[str] = ("UP", "LOWER_UP")) -> Any:
    return {"ifname": name, "flags": list(flags), "addr_info": list(addresses), "altnames": ["enp1s0"]}


def ip(interfaces: Sequence[Any], routes: Sequence[Any] = (), way: Answer = "[{}]") -> Answer:
    def run(argv: Sequence[str]) -> str:
        if "get" in argv:
            if isinstance(way, HostError):
                raise way
            return str(way)
        table = {"address": interfaces, "-4": routes}.get(argv[2], ())
        return json.dumps([LO, *table] if argv[2] == "address" else list(table))

    return run


NO_TOOLS: dict[str, Answer] = {
    name: HostError(NOT_INSTALLED.format(name)) for name in ("chronyc", "ntpq", "timedatectl", "docker")
}
DEFAULT = {"dst": "default", "gateway": "192.168.10.1", "dev": "eth0"}


@pytest.fixture
def host(make_host: MakeHost) -> FakeHost:
    made = make_host(debian(), NO_TOOLS)
    made.commands["ip"] = ip([interface(address("192.168.10.2"))], [DEFAULT])
    return made


def found(host: FakeHost, want: dict[str, Any]) -> dict[str, Finding]:
    facts = network.inspect(host, network.asked(want, ()))
    return {f.key: f for f in judge("network", facts, network.decide(facts, want))}


def statuses(host: FakeHost, want: dict[str, Any]) -> dict[str, str]:
    return {key: f.status.value for key, f in found(host, want).items()}


# -- the next boot --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text", "status"),
    [
        ("/etc/network/interfaces", "iface eth0 inet static\n  address 192.168.10.2\n  gateway 192.168.10.1\n", "pass"),
        ("/etc/network/interfaces.d/eth0", "address 192.168.10.2/24\ngateway 192.168.10.1", "pass"),
        ("/etc/netplan/50.yaml", "addresses: [192.168.10.2/24]\nroutes: [{to: default, via: 192.168.10.1}]", "pass"),
        ("/etc/systemd/network/a.network", "[Network]\nAddress=192.168.10.2/24\nGateway=192.168.10.1", "pass"),
        ("/etc/NetworkManager/system-connections/a.nmconnection", "address1=192.168.10.2/24,192.168.10.1", "pass"),
        ("/etc/sysconfig/network-scripts/ifcfg-eth0", "IPADDR=192.168.10.2\nGATEWAY=192.168.10.1", "pass"),
        ("/etc/network/interfaces", "# address 192.168.10.2 gateway 192.168.10.1", "volatile"),
        ("/etc/network/interfaces", "address 192.168.10.22/24\ngateway 192.168.10.11", "volatile"),
        ("/etc/netplan/50.yaml", "dhcp4: false", "volatile"),
    ],
)
def test_an_address_that_configuration_names_comes_back(host: FakeHost, path: str, text: str, status: str) -> None:
    host.put(path, text)
    want = {"addresses": ["192.168.10.2/24"], "gateway": "192.168.10.1"}
    host.commands["ping"] = ""
    assert statuses(host, want) == {
        "address/192.168.10.2/24": status,
        "route/default": status,
        "gateway/192.168.10.1": "pass",
    }


def test_the_address_of_another_as_gateway_or_name_server_is_none_of_the_hosts_own(host: FakeHost) -> None:
    host.put("/etc/netplan/50.yaml", "      - to: default\n        via: 192.168.10.2\n  nameservers: [192.168.10.2]\n")
    assert statuses(host, {"addresses": ["192.168.10.2"]}) == {"address/192.168.10.2": "volatile"}


def test_what_came_by_dhcp_comes_back(host: FakeHost) -> None:
    host.commands["ip"] = ip([interface(address("192.168.10.2", dynamic=True))], [DEFAULT])
    host.commands["ping"] = ""
    want = {"addresses": {"enp1s0": "192.168.10.2/24"}, "gateway": "answers"}
    assert set(statuses(host, want).values()) == {"pass"}


def test_an_address_that_only_the_next_boot_brings_is_pending(host: FakeHost) -> None:
    host.put("/etc/network/interfaces", "address 192.168.20.2/24\n")
    assert statuses(host, {"addresses": ["192.168.20.2/24"]}) == {"address/192.168.20.2/24": "pending-reboot"}


def test_configuration_that_cannot_be_read_leaves_the_next_boot_unknown(host: FakeHost) -> None:
    host.put("/etc/netplan/50.yaml", "-> 50.yaml")  # to itself
    (finding,) = found(host, {"addresses": ["192.168.10.2"]}).values()
    assert (finding.status.value, "/etc/netplan/50.yaml" in finding.message) == ("unknown", True)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"dadfailed": True}, "a duplicate of another host's"),
        ({"tentative": True}, "not yet usable (tentative)"),
    ],
)
def test_an_address_that_cannot_be_used(host: FakeHost, state: dict[str, bool], said: str) -> None:
    host.commands["ip"] = ip([interface(address("192.168.10.2", **state))])
    finding = found(host, {"addresses": ["192.168.10.2"]})["address/192.168.10.2"]
    assert (finding.status.value, said in finding.message) == ("fail", True)


# -- what cannot be told --------------------------------------------------------------------------


EVERYTHING: dict[str, Any] = {
    "addresses": ["192.168.10.2"],
    "gateway": "answers",
    "mtu": 1500,
    "hostname": "both-ways",
    "plan": {"pods": "10.100.0.0/16"},
}


def test_without_ip_everything_that_stands_on_it_is_unknown(host: FakeHost) -> None:
    host.commands |= {"ip": HostError(NOT_INSTALLED.format("ip")), "ping": ""}
    host.name_table["node01"] = ("192.168.10.2",)
    assert set(statuses(host, EVERYTHING).values()) == {"unknown"}


@pytest.mark.parametrize("said", ["", "[", "{}", "[1]", '"text"', "null"])
def test_an_ip_that_talks_nonsense_is_unknown(host: FakeHost, said: str) -> None:
    host.commands |= {"ip": said, "ping": ""}
    assert set(statuses(host, EVERYTHING | {"hostname": "resolves"}).values()) == {"unknown"}


@pytest.mark.parametrize(
    ("ping", "way", "status", "said"),
    [
        (HostError(NOT_INSTALLED.format("ping")), "[{}]", "unknown", "not installed"),
        (CommandFailed("", status=2, output="ping: socket: Operation not permitted"), "[{}]", "unknown", "permitted"),
        (CommandFailed("", status=1, output=""), "[{}]", "fail", "192.168.10.1: no answer to ping"),
        (
            CommandFailed("", status=2, output="ping: connect: Network is unreachable"),
            CommandFailed("", status=2, output="RTNETLINK answers: Network is unreachable"),
            "fail",
            "there is no route to it",
        ),
        (
            CommandFailed("", status=1, output="From 192.168.10.2 icmp_seq=1 Destination Host Unreachable"),
            '[{"dev": "eth0", "prefsrc": "192.168.10.2"}]',
            "fail",
            "Destination Host Unreachable; nor to ARP on eth0",
        ),
    ],
)
def test_a_gateway_that_cannot_be_asked_is_unknown_and_one_that_does_not_answer_fails(
    host: FakeHost, ping: HostError, way: Answer, status: str, said: str
) -> None:
    host.commands |= {"ip": ip([interface(address("192.168.10.2"))], [DEFAULT], way), "ping": ping}
    gateway = found(host, {"gateway": "answers"})["gateway"]
    assert (gateway.status.value, said in gateway.message) == (status, True), gateway.message


def test_an_answer_to_arp_is_an_answer(host: FakeHost) -> None:
    way = '[{"dev": "eth0", "prefsrc": "192.168.10.2"}]'
    host.commands["ip"] = ip([interface(address("192.168.10.2"))], [DEFAULT], way)
    host.commands["ping"] = CommandFailed("", status=1, output="")
    host.neighbours = {"192.168.10.1"}
    assert statuses(host, {"gateway": "answers"})["gateway"] == "pass"


def test_a_docker_that_is_there_and_does_not_answer_leaves_the_plan_unknown(host: FakeHost) -> None:
    """But what contradicts itself fails, whatever Docker would say."""
    host.commands["docker"] = CommandFailed("docker: exit 1: Cannot connect to the Docker daemon", status=1, output="")
    plan = {"pods": "10.100.0.0/16", "lab": "10.96.0.0/16", "more": "10.96.7.0/24"}
    assert statuses(host, {"plan": plan}) == {"plan/pods": "unknown", "plan/lab": "fail", "plan/more": "fail"}


def test_docker_is_asked_for_its_networks_and_its_containers(host: FakeHost) -> None:
    """K14: the first compose project on a host gets 172.18.0.0/16, and kind another network than planned."""
    told = {
        "Name": "app_default",
        "Id": "0123456789ab" + "0" * 52,
        "IPAM": {"Config": [{"Subnet": "172.18.0.0/16"}]},
        "Containers": {"c": {"Name": "web", "IPv4Address": "172.18.0.2/16"}},
        "Options": {},
    }
    host.commands["docker"] = lambda argv: "0123\n" if argv[4] == "ls" else json.dumps([told])
    finding = found(host, {"plan": {"docker": {"name": "kind", "subnet": "172.18.0.0/16"}}})["plan/docker"]
    assert "which is Docker's network app_default." in finding.message
    assert found(host, {"plan": {"docker": "172.18.0.0/16"}})["plan/docker"].status.value == "pass"


@pytest.mark.parametrize(
    ("told", "network_and_containers"),
    [
        ([{"Name": "none", "Id": "0" * 64, "IPAM": {"Config": None}, "Containers": {}}], ((), ())),
        (
            [{"name": "podman", "id": "2f25", "network_interface": "podman0", "subnets": [{"subnet": "10.88.0.0/16"}]}],
            (("10.88.0.0/16 podman0 podman",), ()),
        ),
    ],
)
def test_networks_without_a_subnet_and_a_podman_that_is_called_docker(
    host: FakeHost, told: Any, network_and_containers: Any
) -> None:
    host.commands["docker"] = lambda argv: "0123\n" if argv[4] == "ls" else json.dumps(told)
    facts = network.inspect(host, ["plan"])
    assert (facts["plan/networks"].current, facts["plan/containers"].current) == network_and_containers


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "status", "said"),
    [
        ({"h": ("192.168.10.100",)}, "pass", ""),
        ({"h": ("192.168.10.100", "fd00::1")}, "pass", ""),
        ({"h": ("192.168.10.7",)}, "fail", "h resolves to 192.168.10.7."),
        ({"h": ("192.168.10.100", "192.168.10.7")}, "fail", "h resolves to 192.168.10.100, 192.168.10.7."),
        ({"h": "no such name"}, "fail", "h: no such name."),
        ({"h": "no name server gives an answer"}, "fail", "h: no name server gives an answer."),
        ({}, "unknown", "not foreseen"),
    ],
)
def test_a_name_resolves_to_what_is_wanted(host: FakeHost, table: dict[str, Any], status: str, said: str) -> None:
    host.name_table = table
    finding = found(host, {"names": {"h": "192.168.10.100"}})["name/h"]
    assert (finding.status.value, said in finding.message) == (status, True), finding.message


@pytest.mark.parametrize(
    ("table", "resolves", "reverse"),
    [
        ({"node01": ("192.168.10.2",), "192.168.10.2": ("node01.example.com",)}, "pass", "pass"),
        ({"node01": ("192.168.10.2",), "192.168.10.2": ("other",)}, "pass", "fail"),
        ({"node01": ("192.168.10.2",), "192.168.10.2": "no such name"}, "pass", "fail"),
        ({"node01": ("127.0.1.1",), "127.0.1.1": ("node01",)}, "fail", "pass"),
        ({"node01": ("192.168.10.2", "127.0.1.1"), "192.168.10.2": ("node01",)}, "fail", "pass"),
        ({"node01": ("192.168.10.99",), "192.168.10.99": ("node01",)}, "fail", "pass"),
        ({"node01": "no such name"}, "fail", "fail"),
    ],
)
def test_the_hosts_own_name(host: FakeHost, table: dict[str, Any], resolves: str, reverse: str) -> None:
    """OpenPBS's mom and kubelet announce what this resolves to; Debian's installer writes 127.0.1.1."""
    host.name_table = table
    assert statuses(host, {"hostname": "both-ways"}) == {"hostname/resolves": resolves, "hostname/reverse": reverse}


# -- time -----------------------------------------------------------------------------------------

CHRONY = "C0A80A01,192.168.10.1,3,1700000000.1,-0.000012345,0.00001,0.00002,1.2,0.01,0.1,0.01,0.002,64.2,Normal\n"
PEERS = (
    "     remote           refid      st t when poll reach   delay   offset  jitter\n{}\n"
    "+192.168.10.9    10.0.0.1         3 u   33   64  377    0.300    9.000   0.020\n"
    "*192.168.10.1    10.0.0.1         3 u   33   64  377    0.300   -1.500   0.020\n"
).format("=" * 78)
OFF = CommandFailed("506 Cannot talk to daemon", status=1, output="506 Cannot talk to daemon")


@pytest.mark.parametrize(
    ("commands", "facts"),
    [
        ({"chronyc": CHRONY}, ("chrony", "192.168.10.1", 12)),
        ({"chronyc": CHRONY.replace("Normal", "Not synchronised")}, ("chrony", None, None)),
        ({"chronyc": OFF, "ntpq": PEERS}, ("ntp", "192.168.10.1", 1500)),
        ({"ntpq": PEERS.replace("*", " ")}, ("ntp", None, None)),
        ({"chronyc": OFF}, (None, None, None)),
    ],
)
def test_the_service_that_answers_tells_its_server(
    host: FakeHost, commands: dict[str, Answer], facts: tuple[str, str, int]
) -> None:
    host.commands |= commands
    seen = network.inspect(host)
    assert tuple(seen[f"time/{key}"] for key in ("source", "server", "offset-us")) == tuple(map(Fact.fixed, facts))


@pytest.mark.parametrize(
    ("want", "wrong"),
    [
        ("any", []),
        ({"source": "chrony", "server": ["192.168.10.1"], "offset": "12us"}, []),
        ({"server": ["ntp.example.com"]}, []),
        ("ntp", ["time/source"]),
        ({"server": ["192.168.10.9"], "offset": "11us"}, ["time/server", "time/offset-us"]),
    ],
)
def test_time_as_wanted(host: FakeHost, want: Any, wrong: list[str]) -> None:
    host.commands["chronyc"] = CHRONY
    host.name_table["ntp.example.com"] = ("192.168.10.1",)
    assert [key for key, status in statuses(host, {"time": want}).items() if status != "pass"] == wrong


def test_timesyncd_is_asked_where_it_runs_only_since_asking_would_start_it(host: FakeHost) -> None:
    host.commands["timedatectl"] = "ServerName=ntp.example.com\nServerAddress=192.168.10.1\n"
    assert network.inspect(host)["time/source"].current is None
    host.put("/run/systemd/timesync/", "")
    assert statuses(host, {"time": {"source": "timesyncd"}})["time/server"] == "fail"  # not yet synchronised
    host.put("/run/systemd/timesync/synchronized", "")
    want = {"source": "timesyncd", "server": ["192.168.10.1"], "offset": "1s"}
    assert list(statuses(host, {"time": want}).values()) == ["pass", "pass", "unknown"]


def test_a_time_service_that_talks_nonsense_is_unknown(host: FakeHost) -> None:
    host.commands["chronyc"] = "garbage"
    assert set(statuses(host, {"time": {"offset": "1s"}}).values()) == {"unknown"}


# -- what a profile may say -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "valid"),
    [
        ({"gateway": "192.168.10.1"}, True),
        ({"gateway": "fd00::1"}, True),
        ({"gateway": ".1"}, False),
        ({"gateway": "192.168.10.300"}, False),
        ({"addresses": ["10.0.0.1/24", "fd00::2/64", "10.0.0.1"]}, True),
        ({"addresses": ["eth0"]}, False),
        ({"mtu": {"--help": 1500}}, False),
        ({"names": ["-f"]}, False),
        ({"plan": {"docker": "172.18.0.0"}}, False),
        ({"plan": {"pods": ["10.100.0.0/16", "fd00:100::/56"]}}, True),
        ({"plan": {"sriov": {"subnet": "10.0.0.0/24", "exclusions": [".0-.9", ".1", "10.0.0.64/26"]}}}, True),
        ({"plan": {"sriov": {"subnet": "10.0.0.0/24", "vfs": 8}}}, False),
    ],
)
def test_what_a_section_may_say(section: dict[str, Any], valid: bool) -> None:
    assert jsonschema.Draft202012Validator(network.SCHEMA).is_valid(section) is valid


def test_what_is_suggested_for_siblings_passes_here(host: FakeHost) -> None:
    host.commands |= {"ping": "", "chronyc": CHRONY}
    host.name_table = {"node01": ("192.168.10.2",), "192.168.10.2": ("node01",)}
    section = network.suggest(network.inspect(host, network.asked(None, ()))).section
    assert section == {"gateway": "192.168.10.1", "hostname": "both-ways", "time": "chrony"}
    assert set(statuses(host, section).values()) == {"pass", "volatile"}


def test_nothing_is_suggested_that_was_not_seen(host: FakeHost) -> None:
    host.commands |= {"ping": HostError(NOT_INSTALLED.format("ping"))}
    host.name_table = {"node01": ("127.0.1.1",), "127.0.1.1": ("node01",)}
    assert network.suggest(network.inspect(host, network.asked(None, ()))).section is None


@pytest.mark.parametrize(
    "said", ["", "garbage", "{}", "[]", "[{}]", '[{"Name": "a", "Id": 3, "IPAM": {"Config": [{"Subnet": "x"}]}}]']
)
def test_a_docker_that_talks_nonsense_is_unknown(host: FakeHost, said: str) -> None:
    host.commands["docker"] = lambda argv: "0123\n" if argv[4] == "ls" else said
    assert statuses(host, {"plan": {"pods": "10.100.0.0/16"}}) == {"plan/pods": "unknown"}
