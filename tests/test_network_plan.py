"""A site's plan of networks: consistent with itself, and with what the host already has (K14)."""

from __future__ import annotations

from typing import Any

import pytest

from hostprep.net import plan
from hostprep.net.plan import DockerNetwork, Live, Route

SRIOV: dict[str, Any] = {
    "subnet": "192.168.20.0/24",
    "gateway": ".1",
    "pfs": ["192.168.20.2/24", ".3"],
    "pool": ".10-.50",
    "exclusions": ["192.168.20.0-192.168.20.9", ".51-.255"],
    "block": 30,
    "nodes": 2,
    "vfs": 8,
}
K14: dict[str, Any] = {
    "management": "192.168.10.0/24",
    "sriov": SRIOV,
    "docker": {"name": "kind", "subnet": "172.18.0.0/16"},
    "metallb": "172.18.9.0-172.18.9.10",
    "pods": "10.100.0.0/16",
}
BRIDGE = "br-0123456789ab"
KIND = DockerNetwork("kind", "172.18.0.0/16", BRIDGE)
HOST = (Route("192.168.10.0/24", "eth0"), Route("172.17.0.0/16", "docker0"))
SOME_HOST = Live(HOST)


def said(wanted: dict[str, Any], live: Live | None = SOME_HOST) -> str:
    """All that speaks against a plan."""
    return " ".join(sentence for found in plan.clashes(wanted, live).values() for sentence in found)


def test_the_manuals_own_plan_is_consistent() -> None:
    assert plan.clashes(K14, Live(HOST)) == dict.fromkeys(K14, ())
    assert plan.clashes(K14, None) == dict.fromkeys(K14, ())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pfs": [".2", "192.168.21.3"]}, "The PF's address 192.168.21.3 is not inside the subnet 192.168.20.0/24."),
        ({"pfs": [".2", ".12"]}, "The PF's address 192.168.20.12 is in no exclusion: a VF could get the same."),
        ({"pfs": [".2", ".2"]}, "Two PFs have the address 192.168.20.2."),
        ({"pfs": [".1"]}, "The PF's address 192.168.20.1 is the gateway's."),
        ({"pfs": [".255"]}, "The PF's address 192.168.20.255 is the network's own or its broadcast address."),
        ({"pfs": ["192.168.20.2/16"]}, "192.168.20.2/16 has another prefix length than the subnet 192.168.20.0/24."),
        ({"gateway": "192.168.2.1"}, "The gateway 192.168.2.1 is not inside the subnet 192.168.20.0/24."),
        ({"gateway": ".20"}, "The gateway 192.168.20.20 is in no exclusion."),
        ({"gateway": ".0"}, "The gateway 192.168.20.0 is the network's own or its broadcast address."),
        ({"gateway": ".300"}, "sriov: 192.168.20.300 is not an address such as 192.168.20.1."),
        ({"exclusions": [".0-.12", ".51-.255"]}, "The exclusion 192.168.20.0-192.168.20.12 and the pool"),
        ({"exclusions": [".0-.9", ".61-.255"]}, "192.168.20.51-192.168.20.60 is neither in the pool"),
        ({"exclusions": [".0-.9", ".255-.51"]}, ".255-.51 does not end behind where it begins."),
        ({"pool": "192.168.21.10-192.168.21.50"}, "192.168.21.10-192.168.21.50 is not inside the subnet"),
        ({"subnet": "192.168.20.1/24"}, "it has bits behind its prefix (is 192.168.20.0/24 meant?)"),
    ],
)
def test_what_is_wrong_with_the_sriov_network_is_said(change: dict[str, Any], sentence: str) -> None:
    assert sentence in said({"sriov": SRIOV | change})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"vfs": 20}, ""),  # .10-.30 are 21, .31-.50 are 20
        ({"vfs": 21}, "The block 192.168.20.31-192.168.20.60 of node 2 has 20 addresses left"),
        ({"vfs": 22}, "The block 192.168.20.1-192.168.20.30 of node 1 has 21 addresses left"),
        ({"nodes": 3}, "The block 192.168.20.61-192.168.20.90 of node 3 has 0 addresses left"),
        ({"nodes": 9}, "192.168.20.0/24 has room for 8 blocks of 30 addresses, and there are 9 nodes."),
        ({"block": 255}, "A block of 255 addresses is larger than the 254 of 192.168.20.0/24."),
    ],
)
def test_each_nodes_block_holds_an_address_for_each_of_its_vfs(change: dict[str, Any], sentence: str) -> None:
    """nvidia-k8s-ipam: blocks .1-.30 and .31-.60 leave 21 and 20."""
    found = said({"sriov": SRIOV | change})
    assert (sentence in found) if sentence else found == ""


def test_no_block_ends_at_the_broadcast_address() -> None:
    """pkg/ipam-controller/allocator: 254 usable addresses are two blocks of 127, and 128 + 127 + 1 are too many."""
    of = {"subnet": "192.168.20.0/24", "block": 127, "nodes": 2}
    assert said({"sriov": of}) == ""
    assert "room for 1 blocks" in said({"sriov": of | {"block": 128}})


def test_the_gateway_in_a_block_is_not_given_out() -> None:
    of = {"subnet": "10.0.0.0/28", "gateway": ".1", "exclusions": [".1"], "block": 7, "nodes": 2, "vfs": 7}
    assert "The block 10.0.0.1-10.0.0.7 of node 1 has 6 addresses left" in said({"sriov": of})


def test_networks_of_the_plan_do_not_overlap() -> None:
    """kubeadm's default for services, 10.96.0.0/12, reaches to 10.111.255.255."""
    found = plan.clashes(K14 | {"services": "10.96.0.0/12", "other": ["fd00::/8", "192.168.20.64/26"]}, None)
    assert found["pods"] == found["services"] == ("pods 10.100.0.0/16 overlaps services 10.96.0.0/12.",)
    assert found["sriov"] == found["other"] == ("sriov 192.168.20.0/24 overlaps other 192.168.20.64/26.",)
    assert found["docker"] == ()


@pytest.mark.parametrize(
    ("route", "sentence"),
    [
        ("10.100.3.0/24 eth0", "pods 10.100.0.0/16 overlaps 10.100.3.0/24, which this host already has a route to"),
        ("10.0.0.0/8 eth0", "pods 10.100.0.0/16 overlaps 10.0.0.0/8, which this host already has a route to, by inte"),
        ("192.168.20.0/24 eth1", "sriov 192.168.20.0/24 overlaps 192.168.20.0/24, which this host already has"),
        ("172.18.0.0/16 eth1", "docker 172.18.0.0/16 overlaps 172.18.0.0/16, which this host already has a route"),
        ("172.18.4.0/24 docker0", "docker 172.18.0.0/16 overlaps 172.18.4.0/24, which this host already has"),
        ("default eth0", ""),
        ("0.0.0.0/1 tun0", ""),  # OpenVPN's redirect-gateway def1
        ("10.100.0.0/24 cni0", ""),
        ("10.100.0.0/24 cali12345678901", ""),
        ("192.168.10.0/24 eth0", ""),  # management
        (f"172.18.0.0/16 {BRIDGE}", ""),
        ("fd00::/64 eth0", ""),
    ],
)
def test_a_route_that_the_host_already_has_is_a_clash_unless_it_is_of_the_plan(route: str, sentence: str) -> None:
    to, device = route.split()
    found = said(K14, Live((*HOST, Route(to, device))))
    assert (sentence in found) if sentence else found == ""


def test_the_pfs_own_route_is_no_clash_after_they_have_their_addresses() -> None:
    route = Route("192.168.20.0/24", "ens9f0np0")
    assert said(K14, Live((route,), own=frozenset({"192.168.20.2 ens9f0np0"}))) == ""
    assert "ens9f0np0" in said(K14, Live((route,), own=frozenset({"192.168.20.9 ens9f0np0"})))


def test_a_subnet_that_another_network_of_docker_has_taken_is_a_clash() -> None:
    """Docker gives 172.18.0.0/16 to the first network that is made after its own: to a compose project, say."""
    route = Route("172.18.0.0/16", BRIDGE)
    assert said(K14, Live((route,), (KIND,))) == ""
    found = said(K14, Live((route,), (KIND._replace(name="app_default"),)))
    assert found == (
        "docker 172.18.0.0/16 overlaps 172.18.0.0/16, which this host already has a route to, "
        f"by Docker's network app_default ({BRIDGE})."
    )
    assert "which is Docker's network app_default" in said(K14, Live((), (KIND._replace(name="app_default"),)))


@pytest.mark.parametrize(
    ("addresses", "sentence"),
    [
        ("172.19.9.0-172.19.9.10", "metallb 172.19.9.0-172.19.9.10 is not inside docker 172.18.0.0/16."),
        ("172.18.255.250-172.19.0.3", "is not inside docker 172.18.0.0/16."),
        ("172.18.0.0/28", "metallb 172.18.0.0/28 holds the network's own address or its gateway 172.18.0.1."),
        ("172.18.0.1-172.18.0.9", "holds the network's own address or its gateway 172.18.0.1."),
        ("172.18.3.0/28", "metallb 172.18.3.0/28 holds 172.18.3.2, which the container kind-worker has."),
        ("172.18.9.0-172.18.9.10", ""),
    ],
)
def test_metallb_lies_within_dockers_network(addresses: str, sentence: str) -> None:
    found = said(K14 | {"metallb": addresses}, Live(HOST, (KIND,), (("172.18.3.2", "kind-worker"),)))
    assert (sentence in found) if sentence else found == ""


def test_metallb_without_docker_lies_where_the_host_has_a_route() -> None:
    assert said({"metallb": "192.168.10.200-192.168.10.220"}) == ""
    assert "not inside every network" not in said({"metallb": "192.168.99.1-192.168.99.9"})
    assert "is not inside any network" in said({"metallb": "192.168.99.1-192.168.99.9"})
