"""Network interfaces over rtnetlink, against this machine's kernel, in a namespace of the test's own."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hostprep.errors import HostError
from hostprep.host import Host, network, process
from hostprep.host.network import Link, Vf
from hostprep.host.processes import Namespace


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def netns() -> Iterator[str]:
    """A network namespace with two interfaces, d0 and d1: the ends of a veth."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs root and ip(8)")
    name = f"hostprep-net-{os.getpid()}"
    ip("netns", "add", name)
    try:
        ends = ("02:00:00:00:00:00", "type", "veth", "peer", "name", "d1", "address", "02:00:00:00:00:01")
        ip("-n", name, "link", "add", "d0", "address", *ends)
        yield f"/run/netns/{name}"
    finally:
        ip("netns", "del", name)


def within(netns: str, *commands: str) -> None:
    for command in commands:
        ip("-n", os.path.basename(netns), *command.split())


def test_links_are_told_by_name_and_by_alternative_name(netns: str) -> None:
    within(netns, "link property add dev d0 altname enp1s0f0np0 altname a-name-of-more-than-fifteen")
    within(netns, "link set d0 up", "link set d1 up")
    found = Host().links(["d0", "enp1s0f0np0", "d1", "nothing"], netns)
    altnames = ("a-name-of-more-than-fifteen", "enp1s0f0np0")
    d0 = Link(found["d0"].index, "d0", altnames, "02:00:00:00:00:00", 1500, up=True, carrier=True)
    assert found == {"d0": d0, "enp1s0f0np0": d0, "d1": found["d1"]}
    within(netns, "link set d1 down")
    d1 = Host().links(["d1"], netns)["d1"]
    assert d1 == Link(d1.index, "d1", mac="02:00:00:00:00:01", up=False, carrier=False)
    assert not Host().links(["d0"], netns)["d0"].carrier
    assert Host().links(["d0"]) == {}  # not in our own


def test_addresses_but_those_that_every_link_has(netns: str) -> None:
    within(
        netns,
        "link set d0 up",
        "link set d1 up",
        "addr add 10.1.0.5/16 dev d0 label d0:1",
        "addr add fd00::5/64 dev d0 nodad",
    )
    within(netns, "addr add 10.9.0.1 peer 10.9.0.2/32 dev d1", "link set lo up")
    lo = ("127.0.0.1/8", "::1/128")
    assert Host().addresses(netns) == {"d0": ("10.1.0.5/16", "fd00::5/64"), "d1": ("10.9.0.1/32",), "lo": lo}


def test_routes_of_the_main_table(netns: str) -> None:
    within(netns, "link set d0 up", "link set d1 up", "addr add 10.1.0.5/16 dev d0", "addr add 10.2.0.5/16 dev d1")
    within(netns, "route add default via 10.1.0.1", "route add blackhole 10.7.0.0/16", "route add 10.8.0.0/16 dev d0")
    within(netns, "route add 10.3.0.0/16 nexthop via 10.1.0.2 dev d0 nexthop via 10.2.0.2 dev d1")
    within(netns, "route add 10.6.0.0/16 dev d1 table 100", "-6 route add 2001:db8::/32 dev d1")
    assert Host().routes(netns) == {
        "d0": ("10.1.0.0/16", "10.3.0.0/16", "10.8.0.0/16", "default"),
        "d1": ("10.2.0.0/16", "10.3.0.0/16", "2001:db8::/32"),
    }


def test_a_link_is_set_up_and_down_and_its_mtu(netns: str) -> None:
    host = Host()

    def now() -> tuple[bool, int]:
        link = host.links(["d0"], netns)["d0"]
        return link.up, link.mtu

    steps: list[tuple[dict[str, Any], tuple[bool, int]]] = [
        ({"mtu": 9000}, (False, 9000)),
        ({"up": True}, (True, 9000)),
        ({"mtu": 1500, "up": True}, (True, 1500)),
        ({"up": False}, (False, 1500)),
    ]
    for wanted, expected in steps:
        host.set_link("d0", netns=netns, **wanted)
        assert now() == expected


@pytest.mark.parametrize(
    ("change", "message", "code"),
    [
        (lambda host, ns: host.set_link("d0", mtu=1, netns=ns), "d0: mtu less than device minimum", errno.EINVAL),
        (lambda host, ns: host.set_link("d9", mtu=1500, netns=ns), "d9: no such interface", errno.ENODEV),
        (lambda host, ns: host.set_link("d0", mtu=1500, netns=f"{ns}x"), "x: no such network namespace", errno.ENOENT),
        (lambda host, ns: host.set_link("d0", mtu=1500, netns="/proc/version"), "cannot be entered", errno.EINVAL),
        (lambda host, ns: host.set_vf("d0", 0, trust=True, netns=ns), "d0: has no VF 0", errno.ENODEV),
    ],
)
def test_the_kernels_own_words_and_errno_are_passed_on(
    netns: str, change: Callable[[Host, str], None], message: str, code: int
) -> None:
    """pyroute2's NetlinkError is no OSError, and has the kernel's text only where extended acknowledgement is on."""
    with pytest.raises(HostError, match=message) as caught:
        change(Host(), netns)
    assert caught.value.code == code


@pytest.mark.parametrize("wanted", [{"vlan": 5}, {"vlan": 5, "proto": "802.1ad"}, {"mac": "02:00:00:00:00:09"}])
def test_the_kernel_understands_what_is_sent_for_a_vf(netns: str, wanted: dict[str, Any]) -> None:
    """A driver without SR-IOV is asked nevertheless: EOPNOTSUPP comes from its lack of a method, after the parsing."""

    def ask(ipr: Any) -> None:
        index = network._there(ipr, "d0").index
        network._set_link_vf(ipr, index, network.vf_attributes(Vf(0), wanted))

    with pytest.raises(HostError) as caught:
        network._ask("d0", netns, 10, ask)
    assert caught.value.code == errno.EOPNOTSUPP


def test_a_kernel_that_does_not_answer_costs_no_more_than_the_deadline() -> None:
    """A driver that resets its card holds the RTNL lock, and all netlink requests wait for it."""
    started = time.monotonic()
    with pytest.raises(HostError, match=r"links: no answer within 0\.2 s"):
        network._ask("links", "", 0.2, lambda ipr: time.sleep(30))
    assert time.monotonic() - started < 10


def test_netdevs_of_other_namespaces_are_read_there(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PF in a container's namespace has no netdev in ours."""
    inode = os.stat(netns).st_ino
    there, gone = Namespace(netns, inode, "test"), Namespace(f"{netns}-gone", inode, "gone")
    taken = Namespace(f"/proc/{os.getpid()}/ns/net", inode, "its path now leads elsewhere")
    before = Path("/proc/self/mountinfo").read_text()
    assert Host().netdevs_elsewhere([there]) == {}  # they are no PCI devices
    monkeypatch.setattr(network, "_pci_netdevs", lambda folder: ((name, name) for name in sorted(os.listdir(folder))))
    found = Host().netdevs_elsewhere([there, gone, taken])
    assert {"d0": ("d0", there), "d1": ("d1", there), "lo": ("lo", there)}.items() <= found.items()
    assert not {"eth0", "ens3"} & found.keys()
    assert Path("/proc/self/mountinfo").read_text() == before
    with pytest.raises(HostError, match="cannot be entered"):
        Host().netdevs_elsewhere([there, Namespace("/proc/version", 0, "not a namespace")])


def test_what_is_mounted_to_look_elsewhere_is_seen_by_nobody_else(netns: str) -> None:
    """Under systemd all mounts are shared: one that is made in a new mount namespace would reach the old one."""

    def look() -> bytes:
        network._libc("unshare", network._CLONE_NEWNS)
        network._libc("mount", b"none", b"/", None, network._MS_REC | 1 << 20, None)  # MS_SHARED
        mounts = Path(f"/proc/{os.getpid()}/mountinfo")
        before = mounts.read_text()

        def compare(folder: str) -> Iterator[tuple[str, str]]:
            yield str(mounts.read_text() == before), folder

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(network, "_pci_netdevs", compare)
            return " ".join(network.netdevs_elsewhere([Namespace(netns, 0, "")])).encode()

    assert process.gather([("look", look)], 20)["look"][0] == b"True"


def test_a_pci_netdev_is_the_device_and_not_its_representor(tmp_path: Path) -> None:
    """In switchdev mode the representors of VFs have the PF for their device too."""
    for name, device, port in (
        ("eth1", "0000:17:00.0", "pf0vf3"),
        ("ens9f0np0", "0000:17:00.0", "p0"),
        ("eth7", "0000:17:00.2", None),
        ("eth0", "virtio0", None),
        ("dummy0", None, None),
    ):
        (tmp_path / name).mkdir()
        if device:
            (tmp_path / name / "device").symlink_to(f"../../../{device}")
        if port:
            (tmp_path / name / "phys_port_name").write_text(f"{port}\n")
    assert dict(network._pci_netdevs(str(tmp_path))) == {"0000:17:00.0": "ens9f0np0", "0000:17:00.2": "eth7"}
