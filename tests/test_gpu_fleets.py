"""The check on GPUs that the real pynvml tells of: fleets that are well and sick, drivers that hang and crash."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import examine
from fake_gpu import Kernel, driver_files, gpu_files
from fake_nvml import A100S, P100, P100S, R470, WithFleet
from fakes import FakeHost, debian

from hostprep.host import Host
from hostprep.host.nvml import Nvml
from hostprep.model import Finding, Value


class Node(FakeHost):
    """Files are made up, and NVML is asked in earnest."""

    deadline = 20.0

    def nvml(self, addresses: Sequence[str], timeout: float = 20) -> Nvml:
        return Host().nvml(addresses, min(timeout, self.deadline))

    def set_gpu(self, address: str, name: str, value: Value, timeout: float = 60) -> None:
        Host().set_gpu(address, name, value, timeout)


def node(folder: Path, addresses: Sequence[str], version: str) -> Node:
    cards = {path: text for n, a in enumerate(addresses) for path, text in gpu_files(a, minor=n).items()}
    host = Node(folder / "root", {**debian(), **cards, **driver_files(version, on_disk=version)})
    Kernel(host)
    return host


def found(host: Node, **section: Any) -> dict[str, Finding]:
    told = examine(host, {"gpu": {"count": 1, **section}}).findings
    return {f.key: f for f in told}


def bad(host: Node, **section: Any) -> dict[str, str]:
    return {key: f.status.value for key, f in found(host, **section).items() if f.status.value != "pass"}


@pytest.mark.parametrize(
    ("fleet", "addresses", "version", "section"),
    [
        ("p100", [P100], "535.183.01", {"model": "P100", "ecc": True}),
        ("a100", [P100], "550.90.12", {"model": "A100", "mig": False}),
        ("a100-sxm", A100S, "570.133.20", {"count": 8, "model": "A100", "nvlinks": 12}),
    ],
)
def test_fleets_that_are_well(
    tmp_path: Path, with_fleet: WithFleet, fleet: str, addresses: list[str], version: str, section: dict[str, Any]
) -> None:
    """J1's Tesla P100, K3's A100, and eight of them on NVLink."""
    with_fleet(fleet)
    assert bad(node(tmp_path, addresses, version), **section) == {}


def test_four_p100_of_which_one_alone_is_well(tmp_path: Path, with_fleet: WithFleet) -> None:
    with_fleet("p100-sick")
    _, worn, gone, narrow = P100S
    assert bad(node(tmp_path, P100S, "535.183.01"), count=4, ecc=True) == {
        f"{worn}/ecc-volatile-uncorrectable": "fail",
        f"{worn}/retirement-pending": "pending-reboot",
        f"{gone}/nvml": "fail",
        f"{narrow}/pcie-width": "fail",
        f"{narrow}/ecc": "pending-reboot",
    }


def test_eight_a100_of_which_most_are_sick(tmp_path: Path, with_fleet: WithFleet) -> None:
    with_fleet("a100-sick")
    told = bad(node(tmp_path, A100S, "570.133.20"), count=8, mig=False)
    of = {a: {key.partition("/")[2]: s for key, s in told.items() if key.startswith(a)} for a in A100S}
    assert of[A100S[0]] == {"remapping-pending": "pending-reboot"}
    assert of[A100S[1]].items() >= {"remapping-failed": "fail", "recovery-action": "pending-reboot"}.items()
    assert of[A100S[2]] == {"nvml": "fail"}
    assert of[A100S[3]] == {"mig": "volatile"}
    assert of[A100S[4]] == of[A100S[5]] == {"nvml": "fail"}
    assert of[A100S[6]].items() >= {"slowdown": "fail", "nvlinks-down": "fail"}.items()


def test_a_driver_that_lacks_the_newer_functions_is_no_fault(tmp_path: Path, with_fleet: WithFleet) -> None:
    with_fleet("r470", R470)
    assert bad(node(tmp_path, [P100], "470.256.02")) == {}


@pytest.mark.parametrize(
    ("fleet", "version", "key", "says"),
    [
        ("no-driver", "550.90.12", "nvml", "cannot talk to it"),
        ("no-permission", "550.90.12", "nvml", "may not be asked"),
    ],
)
def test_an_nvml_that_does_not_start(
    tmp_path: Path, with_fleet: WithFleet, fleet: str, version: str, key: str, says: str
) -> None:
    with_fleet(fleet)
    finding = found(node(tmp_path, [P100], version))[key]
    assert finding.status.value == "fail"
    assert says in finding.message


def test_both_versions_are_told_when_library_and_module_differ(tmp_path: Path, with_fleet: WithFleet) -> None:
    with_fleet("mismatch")
    finding = found(node(tmp_path, [P100], "550.90.07"))["driver/in-step"]
    assert finding.status.value == "fail"
    assert "550.90.07" in finding.message
    assert str(finding.desired and finding.desired.value) in finding.message


@pytest.mark.parametrize(
    ("fault", "says"),
    [("Hang = Init", "no answer within"), ("Hang = GetEccMode", "no answer within"),
     ("Crash = GetName", "SIGSEGV")],
)  # fmt: skip
def test_a_driver_that_hangs_or_crashes_is_one_unknown(
    tmp_path: Path, with_fleet: WithFleet, fault: str, says: str
) -> None:
    """What the bus tells is judged all the same, and nothing of ours hangs or crashes with it."""
    with_fleet("a100").add("[system]", fault)
    host = node(tmp_path, [P100], "550.90.12")
    host.deadline = 1.0
    findings = found(host, model="A100")
    assert {key for key, f in findings.items() if f.status.value != "pass"} == {"nvml"}
    assert findings["nvml"].status.value == "unknown"
    assert says in findings["nvml"].message
