"""The network check against this machine's kernel: namespaces, routes, gateways, and paths of any MTU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostprep.checks import network
from hostprep.errors import HostError
from hostprep.host import Host
from hostprep.host.network import enter
from hostprep.host.record import RecordedHost, Recorder
from hostprep.judge import judge
from hostprep.model import Fact, Finding, from_json, to_json


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


class Site:
    """Three namespaces in a row: this host (192.168.10.2), its gateway (.1), and a server beyond (10.9.9.9)."""

    def __init__(self, name: str) -> None:
        self.host, self.gateway, self.server = (f"{name}-{part}" for part in ("host", "gw", "far"))

    def ip(self, where: str, *commands: str) -> None:
        for command in commands:
            run("ip", "-n", where, *command.split())

    def sysctl(self, where: str, *settings: str) -> None:
        run("ip", "netns", "exec", where, "sysctl", "-qw", *settings)

    def found(self, want: dict[str, Any], host: Host | None = None) -> dict[str, Finding]:
        """What the check finds in the host's namespace, by key."""
        facts = self.facts(want, host)
        return {f.key: f for f in judge("network", facts, network.decide(facts, want))}

    def facts(self, want: dict[str, Any], host: Host | None = None) -> dict[str, Fact]:
        looking = host or Host()

        def look() -> bytes:
            assert enter(f"/run/netns/{self.host}")
            facts = network.inspect(looking, network.asked(want, ()))
            return json.dumps({key: [to_json(side) for side in fact] for key, fact in facts.items()}).encode()

        answer = Host().together([("look", look)], 28)["look"]
        assert isinstance(answer, bytes), answer
        return {key: Fact(*map(from_json, sides)) for key, sides in json.loads(answer).items()}

    def statuses(self, want: dict[str, Any]) -> dict[str, str]:
        return {key: f.status.value for key, f in self.found(want).items()}


@pytest.fixture
def site() -> Iterator[Site]:
    for tool in ("ip", "ping", "sysctl"):
        if shutil.which(tool) is None or os.geteuid() != 0:
            pytest.skip(f"needs root and {tool}(8)")
    made = Site(f"hp{os.getpid()}")
    names = (made.host, made.gateway, made.server)
    try:
        for name in names:
            run("ip", "netns", "add", name)
            made.ip(name, "link set lo up")
        made.ip(made.host, f"link add eth0 type veth peer name lan netns {made.gateway}")
        made.ip(made.gateway, f"link add wan type veth peer name eth0 netns {made.server}")
        made.ip(made.host, "link set eth0 up", "addr add 192.168.10.2/24 dev eth0")
        made.ip(made.gateway, "link set lan up", "addr add 192.168.10.1/24 dev lan")
        made.ip(made.gateway, "link set wan up", "addr add 10.9.9.1/24 dev wan")
        made.ip(made.server, "link set eth0 up", "addr add 10.9.9.9/24 dev eth0", "route add default via 10.9.9.1")
        made.ip(made.host, "route add default via 192.168.10.1")
        made.sysctl(made.gateway, "net.ipv4.ip_forward=1")
        yield made
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


WANT = {"addresses": ["192.168.10.2/24"], "gateway": "192.168.10.1", "mtu": {"10.9.9.9": 1500}}
GATEWAY = "gateway/192.168.10.1"


def test_k13_address_route_and_a_gateway_that_answers(site: Site) -> None:
    """Made by hand, they are volatile; unless this machine's own configuration happens to name them."""
    assert site.statuses(WANT) == {
        "address/192.168.10.2/24": "volatile",
        "route/default": "volatile",
        GATEWAY: "pass",
        "mtu/10.9.9.9/1500": "pass",
    }


def test_a_gateway_that_drops_ping_answers_arp(site: Site) -> None:
    site.sysctl(site.gateway, "net.ipv4.icmp_echo_ignore_all=1")
    assert site.statuses({"gateway": "answers"})["gateway"] == "pass"


def test_a_gateway_that_was_there_a_minute_ago_does_not_answer(site: Site) -> None:
    """The kernel's neighbour table still says REACHABLE: that is no answer."""
    assert site.statuses({"gateway": "answers"})["gateway"] == "pass"
    site.ip(site.gateway, "link set lan down", "addr flush dev lan", "link set lan up")
    site.ip(site.gateway, "addr add 192.168.10.77/24 dev lan")
    started = time.monotonic()
    gateway = site.found({"gateway": "answers"})["gateway"]
    assert gateway.status.value == "fail"
    assert gateway.message.startswith("The gateway does not answer: 192.168.10.1: ")
    assert time.monotonic() - started < network.LOOK_S


def test_an_ipv6_gateway_that_drops_ping_is_found_by_neighbour_discovery(site: Site) -> None:
    site.ip(site.host, "addr add fd00:10::2/64 dev eth0 nodad", "-6 route add default via fd00:10::1")
    site.ip(site.gateway, "addr add fd00:10::1/64 dev lan nodad")
    assert site.statuses({"gateway": "fd00:10::1"})["gateway/fd00:10::1"] == "pass"
    site.sysctl(site.gateway, "net.ipv6.icmp.echo_ignore_all=1")
    assert site.statuses({"gateway": "fd00:10::1"})["gateway/fd00:10::1"] == "pass"
    assert site.statuses({"gateway": "fd00:10::7"}) == {"route/default6": "fail", "gateway/fd00:10::7": "fail"}


RESOLVE = """
from hostprep.checks import network
from hostprep.host import Host
network.LOOK_S = 4.0
facts = network.inspect(Host(), ["name/registry.example.com", "name/localhost"])
print(facts["name/registry.example.com/why"].current, "|", facts["name/localhost"].current)
"""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("timeout:1 attempts:1", "no name server gives an answer |"),
        ("timeout:9 attempts:2", "no name server gives an answer within 4 s |"),
    ],
)
def test_a_name_server_that_is_silent(site: Site, tmp_path: Path, options: str, said: str) -> None:
    """What is in /etc/hosts is judged nevertheless."""
    if not os.path.isfile("/etc/resolv.conf") or shutil.which("unshare") is None:
        pytest.skip("needs unshare(1) and an /etc/resolv.conf")
    site.ip(site.host, "neigh add 192.168.10.53 lladdr 02:00:00:00:00:53 dev eth0")  # nobody's
    (tmp_path / "resolv.conf").write_text(f"nameserver 192.168.10.53\noptions {options}\n")
    within = f"mount --bind {tmp_path}/resolv.conf /etc/resolv.conf && exec {sys.executable} -c '{RESOLVE}'"
    argv = ["nsenter", f"--net=/run/netns/{site.host}", "unshare", "--mount", "sh", "-c", within]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith(said), done
    assert "127.0.0.1" in done.stdout


@pytest.mark.parametrize(
    ("break_it", "key", "message"),
    [
        ("link set eth0 down", "address/192.168.10.2/24", "It is on eth0, which is down."),
        ("addr del 192.168.10.2/24 dev eth0", "address/192.168.10.2/24", "No interface has it."),
        ("route del default", "route/default", "The default route is wrong: there is none."),
        ("route replace default via 192.168.10.9", "route/default", "it leads to 192.168.10.9."),
        ("route replace default dev eth0", "route/default", "it leads to dev eth0."),
        ("route replace unreachable default metric 0", GATEWAY, ""),
    ],
)
def test_what_is_missing_is_said(site: Site, break_it: str, key: str, message: str) -> None:
    site.ip(site.host, break_it)
    found = site.found(WANT | {"mtu": {"127.0.0.1": 1500}})
    if message:
        assert (found[key].status.value, message in found[key].message) == ("fail", True), found[key]
    else:
        assert found[key].status.value == "pass"  # the gateway is a neighbour, whatever the default route is


def test_an_address_on_the_wrong_interface_or_of_the_wrong_size(site: Site) -> None:
    site.ip(site.host, "link property add dev eth0 altname enp1s0f0np0")
    wanted = {"eth0": "192.168.10.2", "enp1s0f0np0": "192.168.10.2/24", "eth1": "192.168.10.2", "lo": "127.0.0.1/8"}
    assert site.statuses({"addresses": wanted}) == {
        "address/eth0/192.168.10.2": "volatile",
        "address/enp1s0f0np0/192.168.10.2/24": "volatile",
        "address/eth1/192.168.10.2": "fail",
        "address/lo/127.0.0.1/8": "pass",
    }
    assert (
        "It is 192.168.10.2/24 on eth0."
        in site.found({"addresses": ["192.168.10.2/16"]})["address/192.168.10.2/16"].message
    )


def test_a_router_that_says_what_it_takes(site: Site) -> None:
    site.ip(site.gateway, "link set wan mtu 1400")
    mtu = site.found(WANT)["mtu/10.9.9.9/1500"]
    assert (mtu.status.value, mtu.fact.current) == ("fail", 1400)
    assert "192.168.10.1 on the way takes no more than 1400" in mtu.message


def test_a_black_hole_is_found_and_measured(site: Site) -> None:
    """A switch or tunnel in between that drops what is too large for it: pings pass, and TCP hangs in transfers."""
    for where, device in ((site.gateway, "wan"), (site.host, "eth0"), (site.gateway, "lan")):
        site.ip(where, f"link set {device} mtu 9000")
    site.ip(site.server, "link set eth0 mtu 1450")
    mtu = site.found({"mtu": {"10.9.9.9": 9000}})["mtu/10.9.9.9/9000"]
    assert (mtu.status.value, mtu.fact.current) == ("fail", 1450)
    assert "a black hole" in mtu.message


def test_jumbo_frames_that_the_own_interface_does_not_take(site: Site) -> None:
    found = site.found({"mtu": 9000})["mtu/gateway/9000"]
    assert (found.status.value, found.fact.current) == ("fail", 1500)
    assert "this host's interface" in found.message


@pytest.mark.parametrize("target", ["192.168.10.200", "203.0.113.9"])
def test_a_target_that_does_not_answer_has_no_path(site: Site, target: str) -> None:
    found = site.found({"mtu": {target: 1500}})[f"mtu/{target}/1500"]
    assert (found.status.value, found.fact.current) == ("fail", None)


def test_k14_against_real_routes(site: Site) -> None:
    plan = {"pods": "10.100.0.0/16", "management": "192.168.10.0/24", "lab": "10.9.0.0/16"}
    site.ip(site.host, "route add 10.100.7.0/24 via 192.168.10.1", "route add blackhole 10.9.1.0/26")
    routes = site.facts({"plan": plan})["plan/routes"].current
    assert routes == ("10.100.7.0/24 eth0", "10.9.1.0/26 blackhole", "192.168.10.0/24 eth0")


def test_a_recording_plays_back_what_was_found(site: Site, tmp_path: Path) -> None:
    want = WANT | {"names": ["localhost", "no-such-name.invalid"], "hostname": "both-ways"}
    live = site.found(want, Recorder(str(tmp_path / "recorded")))
    recorded = RecordedHost(str(tmp_path / "recorded"))
    facts = network.inspect(recorded, network.asked(want, ()))
    assert {f.key: f for f in judge("network", facts, network.decide(facts, want))} == live
    with pytest.raises(HostError, match="not recorded"):
        recorded.addresses_of("other.example.com")
