"""VFs that cannot be made as wanted: what was there comes back, and the one setting that was refused is named."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import apply
from fake_sriov import SriovHost
from fakes import debian

from hostprep.errors import HostError
from hostprep.journal import Journal

PF = "0000:17:00.0"


@pytest.fixture
def host(tmp_path: Path) -> SriovHost:
    made = SriovHost(tmp_path / "root", debian())
    made.pf(PF, "ens9f0np0")
    return made


def wanting(vfs: int, **more: Any) -> dict[str, Any]:
    return {"nic_vfs": [{"pf": PF, "vfs": vfs, **more}]}


def no_link_state(name: str, index: int, wanted: dict[str, Any]) -> None:
    if "link" in wanted:
        raise HostError(f"{name}: VF {index}: Operation not supported", code=errno.EOPNOTSUPP)


@pytest.mark.parametrize("wanted", [2, 7])
def test_r26_vfs_that_were_dropped_come_back_as_they_were_set(host: SriovHost, journal: Journal, wanted: int) -> None:
    """igb has no link state: the five VFs of before came back without addresses, VLANs and trust."""
    apply(host, wanting(5, mac="derived", vlan=100, trust=True, each={"4": {"driver": "vfio-pci"}}), journal)
    before = host.link_table["ens9f0np0"].vfs
    drivers = [host.link(f"/sys/bus/pci/devices/{vf}/driver") for vf in host.vfs(PF)]
    host.refuse_vf = no_link_state
    (failure,) = apply(host, wanting(wanted, link="enable"), journal).failures
    assert failure.reason == "ens9f0np0: VF 0: link enable: Operation not supported"
    assert host.link_table["ens9f0np0"].vfs == before
    assert [host.link(f"/sys/bus/pci/devices/{vf}/driver") for vf in host.vfs(PF)] == drivers


def test_vfs_that_nobody_could_drop_are_not_made_again(host: SriovHost, journal: Journal) -> None:
    apply(host, wanting(5, vlan=100), journal)
    host.wrote.clear()
    host.numvfs_error = errno.EBUSY
    (failure,) = apply(host, wanting(7), journal).failures
    assert "EBUSY" in failure.reason
    assert [w for w in host.wrote if "numvfs" in w] == [f"{PF}/sriov_numvfs=0"]


def test_r13_rates_wait_for_the_link_that_making_vfs_took_down(
    host: SriovHost, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """igb and ixgbe answer EINVAL to a rate while the link is down, and take it down for new VFs."""
    host.link_table["ens9f0np0"] = host.link_table["ens9f0np0"]._replace(up=True, carrier=False)

    def rates_need_a_link(name: str, index: int, wanted: dict[str, Any]) -> None:
        if wanted.get("max_rate") and not host.link_table[name].carrier:
            raise HostError("Invalid argument", code=errno.EINVAL)

    def settled(ready: Callable[[], bool], timeout: float, subsystems: Sequence[str] = ()) -> bool:
        if not ready():
            host.link_table["ens9f0np0"] = host.link_table["ens9f0np0"]._replace(carrier=True)
        return ready()

    host.refuse_vf = rates_need_a_link
    (failure,) = apply(host, wanting(2, max_rate=100), journal).failures
    assert (
        failure.hint
        == "igb and ixgbe take a rate only while the link is up, and up to its speed: ip link show ens9f0np0"
    )
    monkeypatch.setattr(host, "settled", settled)
    assert apply(host, wanting(2, max_rate=100), journal).failures == []
    assert [vf.max_rate for vf in host.link_table["ens9f0np0"].vfs] == [100, 100]


def test_a_driver_that_udev_loads_meanwhile_does_not_take_vfs_for_vfio(host: SriovHost, journal: Journal) -> None:
    """Once new VFs may be probed, igbvf, which their coming makes udev load, takes all that have no driver_override."""
    assert apply(host, wanting(2, driver="vfio-pci"), journal).failures == []
    probed = host.wrote.index(f"{PF}/sriov_drivers_autoprobe=1")
    overrides = [i for i, w in enumerate(host.wrote) if w.endswith("driver_override=vfio-pci")]
    assert len(overrides) == 2
    assert max(overrides) < probed
