"""What lies upon an interface of ours and was moved to another network namespace: against this machine's kernel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from hostprep.host import Host, network, process
from hostprep.host.processes import Namespace


@pytest.fixture
def two() -> Iterator[tuple[str, str]]:
    """Two network namespaces; in the first the ends of a veth, d0 and d1."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs root and ip(8)")
    names = [f"hostprep-{which}-{os.getpid()}" for which in ("ours", "other")]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("-n", names[0], "link", "add", "d0", "type", "veth", "peer", "name", "d1")
        yield names[0], names[1]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def seen_from(netns: str, other: Namespace) -> dict[str, list[list[str]]]:
    """What a process in a namespace is told."""

    def look() -> bytes:
        network.enter(f"/run/netns/{netns}")
        return json.dumps(Host().uppers_elsewhere([other])).encode()

    answer = process.gather([("look", look)], 20)["look"][0]
    assert isinstance(answer, bytes), answer
    found: dict[str, list[list[str]]] = json.loads(answer)
    return found


@pytest.mark.parametrize("kind", ["macvlan", "ipvlan"])
def test_an_interface_of_a_container_upon_one_of_ours_is_found(two: tuple[str, str], kind: str) -> None:
    """Docker's and Kubernetes' macvlan networks: our sysfs does not show who lies upon the lower interface."""
    ours, other = two
    where = Namespace(f"/run/netns/{other}", os.stat(f"/run/netns/{other}").st_ino, "web1")
    assert seen_from(ours, where) == {}
    try:
        ip("-n", ours, "link", "add", "m0", "link", "d0", "type", kind)
    except subprocess.CalledProcessError as e:
        pytest.skip(f"this kernel makes no {kind}: {e.stderr.strip()}")
    ip("-n", ours, "link", "set", "m0", "netns", other)
    index = str(json.loads(ip("-n", ours, "-j", "link", "show", "d0"))[0]["ifindex"])
    assert seen_from(ours, where) == {index: [["m0", kind, list(where)]]}
    assert seen_from(other, where) == {}, "within one namespace sysfs tells"


def test_a_veth_between_namespaces_leads_to_its_peer_and_counts_as_what_uses_it(two: tuple[str, str]) -> None:
    """The kernel tells of it alike; a PF or VF is no veth, so none is mistaken for what lies upon one."""
    ours, other = two
    where = Namespace(f"/run/netns/{other}", 0, "web1")
    ip("-n", ours, "link", "set", "d1", "netns", other)
    assert [found[0][:2] for found in seen_from(ours, where).values()] == [["d1", "veth"]]
