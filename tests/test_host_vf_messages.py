"""VFs as the kernel's messages tell of them, and what is sent to set them: most machines have none to ask."""

from __future__ import annotations

import struct
import time
from typing import Any

import pytest

from hostprep.errors import HostError
from hostprep.host import network
from hostprep.host.network import Link, Vf

attribute = network._attribute


def vf_info(index: int, *more: bytes) -> bytes:
    """IFLA_VF_INFO as rtnl_fill_vfinfo() of net/core/rtnetlink.c writes it, statistics skipped."""
    mac = bytes.fromhex(f"0200000001{index % 256:02x}").ljust(32, b"\0")
    first = attribute(1, struct.pack("I", index) + mac) + attribute(10, b"\xff" * 32)  # IFLA_VF_MAC, IFLA_VF_BROADCAST
    return attribute(1, first + b"".join(more))


def new_link(number: int, vfs: list[bytes] | None) -> Any:
    """RTM_NEWLINK of a PF, through pyroute2's parser."""
    from pyroute2.netlink.rtnl.iprsocket import MarshalRtnl  # type: ignore[import-untyped]

    body = (
        struct.pack("BxHiII", 0, 1, 7, 0x11043, 0) + attribute(3, b"ens9f0np0\0") + attribute(4, struct.pack("I", 9000))
    )
    body += attribute(1, bytes.fromhex("02aabbccdd00")) + attribute(21, struct.pack("I", number))
    body += attribute(54, bytes.fromhex("0c42a1000010"))  # IFLA_PERM_ADDRESS
    body += b"" if vfs is None else attribute(22, b"".join(vfs))
    (message,) = MarshalRtnl().parse(struct.pack("IHHII", 16 + len(body), 16, 0, 1, 0) + body)
    return message


def test_every_attribute_of_a_vf_is_decoded() -> None:
    numbers = [(2, 100, 3), (6, 50, 1000), (4, 1), (5, 2), (9, 0)]
    told = [attribute(kind, struct.pack(f"{len(more) + 1}I", 1, *more)) for kind, *more in numbers]
    tag = struct.pack("III", 1, 100, 3) + struct.pack(">H2x", 0x88A8)
    silent = [attribute(kind, struct.pack("II", 0, 0xFFFFFFFF)) for kind in (4, 9)]
    link = network.decode(new_link(2, [vf_info(0, *silent), vf_info(1, *told, attribute(12, attribute(1, tag)))]))
    assert link == Link(
        index=7,
        name="ens9f0np0",
        mac="02:aa:bb:cc:dd:00",
        mtu=9000,
        up=True,
        carrier=True,
        num_vf=2,
        perm_mac="0c:42:a1:00:00:10",
        vfs=(
            Vf(0, "02:00:00:00:01:00", trust=None, spoofchk=None),
            Vf(1, "02:00:00:00:01:01", 100, 3, "802.1ad", False, True, "disable", 50, 1000),
        ),
    )


class Answers:
    """An IPRoute that answers from a list, its last answer again and again."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []

    def link(self, command: str, **how: Any) -> Any:
        self.asked.append(how)
        return [self.answers[min(len(self.asked), len(self.answers)) - 1]]


def test_a_list_of_vfs_that_the_kernel_cut_short_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The length of an attribute has 16 bits: of 200 VFs with statistics, 1 was told (measured on 6.12)."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    cut = Answers(new_link(200, [vf_info(0)]))
    with pytest.raises(HostError, match="ens9f0np0: the kernel told of 1 of its 200 VFs"):
        network._link(cut, "ens9f0np0")
    assert cut.asked[0] == {"ifname": "ens9f0np0", "ext_mask": 9}  # VFs, without their statistics
    coming = Answers(new_link(2, [vf_info(0)]), new_link(2, [vf_info(0), vf_info(1)]))
    link = network._link(coming, "ens9f0np0")
    assert link is not None
    assert [vf.index for vf in link.vfs] == [0, 1]
    assert len(network.decode(new_link(256, [vf_info(i) for i in range(256)])).vfs) == 256


def test_a_driver_that_does_not_tell_about_vfs_is_not_one_that_has_none() -> None:
    """Without ndo_get_vf_config the kernel sends the number alone (pci-pf-stub has no netdev at all, ena this)."""
    link = network.decode(new_link(4, None))
    assert (link.num_vf, link.vfs) == (4, ())


def test_an_interrupted_dump_is_asked_for_again() -> None:
    """NLM_F_DUMP_INTR: pyroute2 0.9 defines NetlinkDumpInterrupted and raises it nowhere."""
    whole, broken = [{"header": {"flags": 2}}] * 3, [{"header": {"flags": 2}}, {"header": {"flags": 0x12}}]
    dumps = iter([broken, broken, whole, broken])
    assert network._dump(lambda: next(dumps)) == whole
    with pytest.raises(HostError, match="changed during each of 20 looks"):
        network._dump(lambda: broken)


NOW = Vf(3, "02:00:00:00:01:03", 100, 3, "802.1ad", False, True, "auto", 50, 1000)


@pytest.mark.parametrize(
    ("wanted", "then"),
    [
        ({"mac": "02:AB:00:00:00:01"}, {"mac": "02:ab:00:00:00:01"}),
        ({"vlan": 200}, {"vlan": 200, "qos": 3, "proto": "802.1ad"}),
        ({"qos": 0}, {"vlan": 100, "qos": 0, "proto": "802.1ad"}),
        ({"proto": "802.1Q"}, {"vlan": 100, "qos": 3, "proto": "802.1Q"}),
        ({"vlan": 0}, {"vlan": 0, "qos": 0, "proto": "802.1Q"}),
        ({"vlan": 0, "qos": 2}, {"vlan": 0, "qos": 2, "proto": "802.1Q"}),
        ({"max_rate": 0}, {"min_rate": 50, "max_rate": 0}),
        ({"min_rate": 0, "max_rate": 7}, {"min_rate": 0, "max_rate": 7}),
        ({"trust": True, "spoofchk": False, "link": "enable"}, {"trust": True, "spoofchk": False, "link": "enable"}),
    ],
)
def test_what_is_sent_for_a_vf_is_what_is_wanted_and_keeps_what_goes_with_it(
    wanted: dict[str, Any], then: dict[str, Any]
) -> None:
    """Encoded by us, decoded by pyroute2. 802.1ad takes 16 bytes, of which pyroute2 0.9 sends 14: EINVAL."""
    sent = network.vf_attributes(NOW, wanted)
    message = new_link(1, [attribute(1, sent)])
    (info,) = message.get_attr("IFLA_VFINFO_LIST").get_attrs("IFLA_VF_INFO")
    assert {name.split("_", 2)[2] for name, _ in info["attrs"]} <= {
        *("MAC", "VLAN", "VLAN_LIST", "RATE", "SPOOFCHK", "LINK_STATE", "TRUST")
    }
    decoded = network._decode_vf(info)._asdict()
    tags = info.get_attr("IFLA_VF_VLAN_LIST")
    if tags is not None:
        (tag,) = tags.get_attrs("IFLA_VF_VLAN_INFO")
        decoded |= {"vlan": tag["vlan"], "qos": tag["qos"]}
        assert tag.length == 20
    assert {key: decoded[key] for key in then} == then
    assert all(value["vf"] == 3 for name, value in info["attrs"] if name != "IFLA_VF_VLAN_LIST")


@pytest.mark.parametrize(
    "wanted", [{"mac": "02:00"}, {"mac": "02:00:00:00:00:00\n"}, {"link": "up"}, {"proto": "802.1x", "vlan": 1}]
)
def test_what_is_no_value_of_an_attribute_is_not_sent(wanted: dict[str, Any]) -> None:
    with pytest.raises(HostError, match="not a"):
        network.vf_attributes(NOW, wanted)
