"""PCI functions and the selector: rows K2, K12; names are output only, addresses are keys (R38, R100, R103)."""

from __future__ import annotations

import pytest
from conftest import MakeHost
from fakes import FakeHost

from hostprep import pci
from hostprep.model import Fact, Unknown


def card(
    address: str, ids: str, driver: str = "mlx5_core", names: tuple[str, ...] = (), code: int = 0x020000
) -> dict[str, str]:
    vendor, device = ids.split(":")
    path = f"{pci.DEVICES}/{address}"
    files = {f"{path}/vendor": f"0x{vendor}\n", f"{path}/device": f"0x{device}\n", f"{path}/class": f"0x{code:06x}\n"}
    files |= {f"{path}/net/{name}/ifindex": "2\n" for name in names}
    return files | ({f"{path}/driver": f"-> ../../../bus/pci/drivers/{driver}"} if driver else {})


HOST = {
    **card("0000:17:00.0", "15b3:1019", names=("ens9f0np0",)),
    **card("0000:17:00.1", "15b3:1019", names=("ens9f1np1",)),
    **card("0000:41:00.0", "8086:10c9", "igb", ("ens10",)),
    **card("0000:00:02.0", "8086:3e92", "i915", code=0x030000),
    **card("0000:17:00.2", "15b3:101a", names=("ens9f0v0",)),
    f"{pci.DEVICES}/0000:17:00.2/physfn": "-> ../0000:17:00.0",
}


@pytest.fixture
def facts(make_host: MakeHost) -> dict[str, Fact]:
    altnames = {"0000:17:00.0": ("enp23s0f0np0",)}
    found: dict[str, Fact] = {}
    for f in pci.network_functions(make_host(HOST)):
        found |= pci.describe(f, altnames.get(f.address, ()))
    return found


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("0000:17:00.0", ["0000:17:00.0"]),
        ("17:00.1", ["0000:17:00.1"]),
        ("15b3:1019", ["0000:17:00.0", "0000:17:00.1"]),
        ("15B3:1019", ["0000:17:00.0", "0000:17:00.1"]),
        ("15b3:*", ["0000:17:00.0", "0000:17:00.1"]),
        ("ens9f0np0", ["0000:17:00.0"]),
        ("enp23s0f0np0", ["0000:17:00.0"]),
        ("ens9f*", ["0000:17:00.0", "0000:17:00.1"]),
        ("igb", ["0000:41:00.0"]),
        ("0000:17:00.*", ["0000:17:00.0", "0000:17:00.1"]),
        ("0000:17:00.2", []),  # a VF is selected by its PF
        ("ens9f0v0", []),
        ("ens1", []),
        ("ENS10", []),  # names of interfaces are case sensitive
        ("15b3:101a", []),
    ],
)
def test_k2_a_selector_is_an_address_a_name_an_id_a_driver_or_a_glob(
    facts: dict[str, Fact], selector: str, matches: list[str]
) -> None:
    assert pci.select(facts, selector) == matches
    assert pci.count(facts, selector) == len(matches)


def test_a_selector_that_matches_nothing_names_what_is_there(facts: dict[str, Fact]) -> None:
    said = pci.nothing(facts, "15b3:1017", "network function")
    assert said.startswith(
        "No network function matches 15b3:1017. There is 0000:17:00.0 (15b3:1019, mlx5_core, ens9f0np0, enp23s0f0np0); "
    )
    assert "0000:41:00.0 (8086:10c9, igb, ens10)" in said
    assert pci.nothing({}, "x", "network function").endswith("There is none at all.")


def test_names_that_could_not_be_read_leave_a_name_unknown_but_not_an_address(facts: dict[str, Fact]) -> None:
    """sriov-network-operator d39314e10: a failed altname lookup dropped a PF, and the host rebooted without end."""
    ens10 = pci.Function("0000:41:00.0", "8086:10c9", "igb", ("ens10",))
    facts |= pci.describe(ens10, Unknown("netlink: no answer"))
    assert pci.count(facts, "0000:41:00.0") == pci.count(facts, "ens10") == 1
    assert pci.count(facts, "enp65s0") == Unknown("netlink: no answer")


def test_r38_representors_are_not_names_of_the_pf(make_host: MakeHost) -> None:
    path = f"{pci.DEVICES}/0000:17:00.0"
    host = make_host(card("0000:17:00.0", "15b3:1019", names=("eth0", "eth1", "ens9f0np0")))
    for name, port in (("eth0", "pf0vf0"), ("eth1", "pf0vf1"), ("ens9f0np0", "p0")):
        host.put(f"{path}/net/{name}/phys_port_name", f"{port}\n")
    assert pci.netdevs(host, path) == ("ens9f0np0",)


def test_r100_a_pf_in_another_namespace_is_there_without_a_name(make_host: MakeHost) -> None:
    host: FakeHost = make_host({**card("0000:17:00.0", "15b3:1019"), f"{pci.DEVICES}/0000:17:00.0/net/": ""})
    (found,) = pci.network_functions(host)
    assert found.netdevs == ()
    assert found.driver == "mlx5_core"
