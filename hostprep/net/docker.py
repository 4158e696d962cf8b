"""Docker's networks, and the addresses of its containers in them."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from typing import Any

from hostprep.engines import COMMANDS
from hostprep.errors import HostError
from hostprep.host import Host


def networks(host: Host) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Docker's networks (subnet, bridge, name), and its containers in them (address, name)."""
    try:
        ids = host.run(*COMMANDS["docker"], "network", "ls", "--quiet", "--no-trunc", timeout=8).split()
    except HostError as e:
        if "not installed" in str(e):
            return (), ()
        raise
    if not ids:
        raise HostError("docker network ls: names no network at all, not even Docker's own")
    try:
        told = json.loads(host.run(*COMMANDS["docker"], "network", "inspect", *ids, timeout=8))
        if not isinstance(told, list) or len(told) != len(ids):
            raise ValueError
        named = {
            f"{subnet} {_bridge(net)} {net.get('Name') or net['name']}" for net in told for subnet in _subnets(net)
        }
        members = [member for net in told for member in (net.get("Containers") or {}).values()]
        held = {f"{ipaddress.ip_interface(m['IPv4Address']).ip} {m['Name']}" for m in members if m.get("IPv4Address")}
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise HostError("docker network inspect: said something else than its networks") from e
    return tuple(sorted(named)), tuple(sorted(held))


def _subnets(net: Mapping[str, Any]) -> list[str]:
    if "subnets" in net:  # podman-docker(1)
        told = [config["subnet"] for config in net["subnets"]]
    else:
        told = [config["Subnet"] for config in net["IPAM"].get("Config") or () if config.get("Subnet")]
    return [str(ipaddress.ip_network(subnet, strict=False)) for subnet in told]


def _bridge(net: Mapping[str, Any]) -> str:
    if "network_interface" in net:
        return str(net["network_interface"])
    return (net.get("Options") or {}).get("com.docker.network.bridge.name") or f"br-{net['Id'][:12]}"
