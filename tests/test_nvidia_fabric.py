"""NVSwitches, and whether the fabric manager that they need runs."""

from __future__ import annotations

import os

import pytest
from conftest import MakeHost
from fakes import Answer, FakeHost, debian

from hostprep.errors import CommandFailed, HostError
from hostprep.host import Host
from hostprep.nvidia import fabric
from hostprep.nvidia.fabric import Manager

RUNNING = {"/proc/1234/comm": "nv-fabricmanage\n"}  # the kernel keeps 15 characters of a name
SAYS = "\n\n\n\tFabric Manager version is : 535.161.08\n\n"
MISSING = HostError("nv-fabricmanager: not installed (not found in /usr/sbin:/usr/bin:/sbin:/bin)")


def node(make_host: MakeHost, files: dict[str, str], says: Answer) -> FakeHost:
    return make_host({**debian(), **files}, {"nv-fabricmanager": says})


def device(address: str, vendor: str, code: str) -> dict[str, str]:
    path = f"/sys/bus/pci/devices/{address}"
    return {f"{path}/vendor": f"{vendor}\n", f"{path}/device": "0x22a3\n", f"{path}/class": f"{code}\n"}


def test_nvswitches_are_nvidias_bridges_and_nothing_else(make_host: MakeHost) -> None:
    bus = (
        device("0000:07:00.0", "0x10de", "0x068000")
        | device("0000:08:00.0", "0x10de", "0x068000")
        | device("0000:1b:00.0", "0x10de", "0x030200")  # a GPU
        | device("0000:00:1f.0", "0x8086", "0x068000")  # another vendor's bridge
    )
    assert fabric.switches(make_host(bus)) == ["0000:07:00.0", "0000:08:00.0"]


def test_a_host_without_a_pci_bus_has_none(make_host: MakeHost) -> None:
    assert fabric.switches(make_host({})) == []


@pytest.mark.parametrize(
    ("files", "says", "found"),
    [
        (RUNNING, SAYS, Manager(True, "535.161.08")),
        (RUNNING, CommandFailed("nv-fabricmanager: exit status 1", status=1, output=SAYS), Manager(True, "535.161.08")),
        ({}, SAYS, Manager(False, "535.161.08")),  # gpud#1151: installed, not active, and told as healthy
        ({}, MISSING, Manager(False, "")),
        ({"/proc/1234/comm": "nvidia-persiste\n"}, MISSING, Manager(False, "")),
    ],
)
def test_the_manager_and_its_version(make_host: MakeHost, files: dict[str, str], says: Answer, found: Manager) -> None:
    assert fabric.manager(node(make_host, files, says)) == found


@pytest.mark.parametrize(
    "says", [MISSING, "usage: nv-fabricmanager\n", HostError("nv-fabricmanager: no answer within 10 s")]
)
def test_one_that_runs_and_does_not_tell_its_version_is_unknown(make_host: MakeHost, says: Answer) -> None:
    with pytest.raises(HostError, match="nv-fabricmanager"):
        fabric.manager(node(make_host, RUNNING, says))


def test_from_within_a_container_the_hosts_manager_is_not_seen_and_so_never_called_stopped(make_host: MakeHost) -> None:
    host = node(make_host, {"/proc/2/comm": "bash\n"}, SAYS)
    with pytest.raises(HostError, match="not seen from here"):
        fabric.manager(host)
    assert host.ran == []


def test_this_machine() -> None:
    host = Host()
    if host.read("/proc/2/comm") != "kthreadd":
        pytest.skip("a container, where the processes of the host are not seen")
    comms = [host.read(f"/proc/{pid}/comm") for pid in os.listdir("/proc") if pid.isdecimal()]
    assert fabric.manager(host).running is ("nv-fabricmanage" in comms)
