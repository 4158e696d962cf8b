"""From a factory ConnectX-5 Ex to 16 VFs on two ports, as an admin does it: rows K2, K10, K11, K12, and back.

The real hostprep and the real mstconfig, on a card in software. The kernel's side of VFs is proven in tests/vm.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import connectx
import pytest

PORTS = ("0000:17:00.0", "0000:17:00.1")
PROFILE = """\
name: kind-host
nic_firmware:
  - {cards: "15b3:1019", count: 2, SRIOV_EN: true, NUM_OF_VFS: 8}
nic_vfs:
  - {pf: ens23f0np0, vfs: 8}
  - {pf: "0000:17:00.1", vfs: 8}
"""
RECORD = "etc/hostprep/boot/nic_vfs.json"
pytestmark = [
    pytest.mark.machine,
    pytest.mark.skipif(bool(connectx.missing()), reason=connectx.missing() or "nothing"),
]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[connectx.Machine]:
    """A machine that systemd runs, with a card as it comes from the factory; hostprep's own places are its own."""
    for name in ("RUN", "STATE", "CACHE"):
        monkeypatch.delenv(f"HOSTPREP_{name}_DIR")
    with connectx.machine(tmp_path, connectx.card("cx5ex")) as made:
        (made.root / "etc/hostprep").mkdir()
        (made.root / "etc/hostprep/profile.yaml").write_text(PROFILE)
        systemd_runs(made)
        yield made


def systemd_runs(machine: connectx.Machine) -> None:
    (machine.root / "run/systemd/system").mkdir(parents=True)


def hostprep(machine: connectx.Machine, *argv: str, code: int) -> dict[str, Any]:
    """Run it as a user would; its report."""
    done = machine.run(sys.executable, "-m", "hostprep", *argv, "--format", "json")
    assert done.returncode == code, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def statuses(report: dict[str, Any]) -> set[str]:
    return {f["status"] for f in report["findings"]}


def vfs(machine: connectx.Machine, port: str) -> list[str]:
    entries = (machine.root / "sys/bus/pci/devices" / port).iterdir()
    return sorted(os.readlink(entry) for entry in entries if entry.name.startswith("virtfn"))


def identities(machine: connectx.Machine) -> list[int]:
    """Changes when a VF is dropped and made anew, or a file of the record or the unit is written."""
    files = [RECORD, "etc/systemd/system/hostprep-apply.service", "var/lib/hostprep/journal"]
    return [(machine.root / file).stat().st_mtime_ns for file in files]


def test_k10_to_k12_from_the_factory_to_sixteen_vfs_and_back(machine: connectx.Machine) -> None:
    fresh = hostprep(machine, "check", code=1)
    assert fresh["verdict"] == "not-ready"

    prepared = hostprep(machine, "apply", "--yes", code=4)
    assert (prepared["verdict"], prepared["reboot_required"]) == ("pending-reboot", True)
    assert (machine.value("SRIOV_EN"), machine.value("NUM_OF_VFS"), machine.firmware_writes()) == (1, 8, 1)
    assert machine.value("NUM_OF_VFS", "current") == 0

    again = hostprep(machine, "apply", "--yes", code=4)
    assert statuses(again) <= {"pass", "pending-reboot"}
    assert machine.firmware_writes() == 1, "what waits for a reboot is not written again: flash wears out"

    machine.power_cycle()
    systemd_runs(machine)
    assert hostprep(machine, "check", code=4)["verdict"] == "pending-reboot"
    done = machine.run(sys.executable, "-m", "hostprep", "apply", "--boot")
    assert done.returncode == 0, done.stderr
    assert [len(vfs(machine, port)) for port in PORTS] == [8, 8]
    ready = hostprep(machine, "check", code=0)
    assert statuses(ready) == {"pass"}
    ids = {
        machine.root.joinpath("sys/bus/pci/devices", vf.removeprefix("../"), "device").read_text()
        for vf in vfs(machine, PORTS[1])
    }
    assert ids == {"0x101a\n"}, "K12: 16 functions 15b3:101a"

    before = identities(machine)

    assert hostprep(machine, "apply", "--yes", code=0)["verdict"] == "ready"
    assert (machine.firmware_writes(), identities(machine)) == (1, before), "nothing to do, and nothing written"

    reverted = machine.run(sys.executable, "-m", "hostprep", "revert", "--yes")
    assert reverted.returncode == 0, reverted.stdout + reverted.stderr
    assert [vfs(machine, port) for port in PORTS] == [[], []]
    assert (machine.value("SRIOV_EN"), machine.value("NUM_OF_VFS")) == (0, 0), "R52: written back, never reset"
    assert not (machine.root / RECORD).exists()
    assert not (machine.root / "etc/systemd/system/hostprep-apply.service").exists()


def test_a_card_that_needs_a_power_cycle_is_asked_for_one_and_never_for_two_reboots(
    machine: connectx.Machine,
) -> None:
    """sriov-network-operator#1082, OCPBUGS-86028: `Please power cycle machine`, status 0, and reboots without end."""
    machine.fault(needs_power_cycle=True)
    told = hostprep(machine, "apply", "--yes", code=4)
    assert (told["verdict"], told["reboot_required"]) == ("pending-power-cycle", False)
    waiting = {f["key"] for f in told["findings"] if f["status"] == "pending-power-cycle"}
    assert waiting == {f"{port}/{name}" for port in PORTS for name in ("SRIOV_EN", "NUM_OF_VFS")}
    machine.reboot()
    systemd_runs(machine)
    after = hostprep(machine, "apply", "--yes", code=4)
    (said,) = {f["message"] for f in after["findings"] if f["status"] == "pending-power-cycle"}
    assert said == "This was set before the last boot, and that boot has not brought it: a reboot is not enough."
    assert machine.firmware_writes() == 1
    machine.power_cycle()
    systemd_runs(machine)
    assert machine.run(sys.executable, "-m", "hostprep", "apply", "--boot").returncode == 0
    assert hostprep(machine, "check", code=0)["verdict"] == "ready"
