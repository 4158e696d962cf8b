"""What makes a GPU sick: J1's Pascal retires pages, Ampere remaps rows, and what a model lacks is no fault of it."""

from __future__ import annotations

from typing import Any

import pytest

from hostprep.judge import judge
from hostprep.model import Reading, Unknown
from hostprep.nvidia import health

A = "0000:3b:00.0"
WELL: dict[str, Reading] = {
    "ecc-volatile-uncorrectable": 0,
    "ecc-aggregate-uncorrectable": 2,
    "retired-single": 3,
    "retired-double": 1,
    "retirement-pending": False,
    "remapping-pending": False,
    "remapping-failed": False,
    "clock-reasons": ("idle", "power-cap"),
    "temperature": 38,
    "temperature-slowdown": 82,
    "nvlinks-up": ("0", "1"),
    "nvlinks-down": (),
    "pcie-generation": 1,
    "pcie-generation-max": 4,
    "utilization": 0,
    "recovery-action": "none",
    "fabric-state": "completed",
    "fabric-status": 0,
    "fabric-health": (),
}


def told(fields: dict[str, Reading], **limits: Any) -> dict[str, str]:
    """The status of each finding that is not a pass."""
    facts = health.facts(A, fields)
    found = judge("gpu", facts, health.goals(facts, A, limits))
    return {f.key.removeprefix(f"{A}/"): f.status.value for f in found if f.status.value != "pass"}


@pytest.mark.parametrize(
    ("changed", "limits", "bad"),
    [
        ({}, {}, {}),
        ({"ecc-volatile-uncorrectable": 1}, {}, {"ecc-volatile-uncorrectable": "fail"}),
        ({}, {"ecc_errors": 2}, {}),
        ({}, {"ecc_errors": 1}, {"ecc-aggregate-uncorrectable": "fail"}),
        ({"retired-single": 58}, {}, {}),
        ({"retired-single": 59}, {}, {"retired-pages": "fail"}),  # NVIDIA's limit for taking a board back: 60
        ({}, {"retired_pages": 3}, {"retired-pages": "fail"}),
        ({"retirement-pending": True}, {}, {"retirement-pending": "pending-reboot"}),
        ({"remapping-pending": True}, {}, {"remapping-pending": "pending-reboot"}),
        ({"remapping-failed": True}, {}, {"remapping-failed": "fail"}),
        ({"clock-reasons": ("idle", "thermal-hw")}, {}, {"slowdown": "fail"}),
        ({"clock-reasons": ("power-brake",)}, {}, {"slowdown": "fail"}),
        ({"temperature": 82}, {}, {"temperature": "fail"}),
        ({"temperature": 81}, {"temperature": 80}, {"temperature": "fail"}),
        ({"temperature-margin": 0}, {}, {"temperature-margin": "fail"}),
        ({"temperature-margin": 30, "temperature": 90}, {}, {}),  # newer cards tell what is left, and that counts
        ({"nvlinks-down": ("5",)}, {}, {"nvlinks-down": "fail"}),
        ({"nvlinks-up": (), "nvlinks-down": ("0", "1")}, {}, {}),  # gpud#1227: an A100 without a bridge
        ({"nvlinks-up": (), "nvlinks-down": ("0", "1")}, {"nvlinks": 2}, {"nvlinks": "fail"}),
        ({"nvlinks-up": None, "nvlinks-down": None}, {"nvlinks": 2}, {"nvlinks": "fail"}),
        ({}, {"nvlinks": 2}, {}),
        ({"pcie-generation": 1, "utilization": 99}, {}, {"pcie-generation": "fail"}),  # hwloc#653: only under load
        ({"pcie-generation": 4, "utilization": 99}, {}, {}),
        ({"recovery-action": "gpu-reset"}, {}, {"recovery-action": "pending-reboot"}),
        ({"recovery-action": "node-reboot"}, {}, {"recovery-action": "pending-reboot"}),
        ({"recovery-action": "drain-p2p"}, {}, {"recovery-action": "fail"}),  # DCGM#263: told as healthy
        ({"fabric-state": "in-progress"}, {}, {"fabric-state": "fail"}),
        ({"fabric-state": "not-supported", "fabric-status": 3}, {}, {}),
        ({"fabric-status": 999}, {}, {"fabric-status": "fail"}),
        ({"fabric-health": ("degraded-bandwidth",)}, {}, {"fabric-health": "fail"}),
    ],
)  # fmt: skip
def test_what_is_found_of_a_gpu(changed: dict[str, Reading], limits: dict[str, Any], bad: dict[str, str]) -> None:
    assert told({**WELL, **changed}, **limits) == bad


@pytest.mark.parametrize("name", [name for name in WELL if name not in ("ecc-aggregate-uncorrectable", "temperature")])
def test_a_field_that_a_model_does_not_have_is_no_fault(name: str) -> None:
    """A P100 has no row remapping, an A100 no retired pages, and an A100 with MIG instances neither."""
    assert told({**WELL, name: None}) == {}


@pytest.mark.parametrize(
    "name",
    [
        *("ecc-volatile-uncorrectable", "retired-double", "retirement-pending", "remapping-pending"),
        *("remapping-failed", "clock-reasons", "temperature-slowdown", "nvlinks-up", "nvlinks-down"),
        *("recovery-action", "fabric-state", "fabric-status", "fabric-health"),
    ],
)
def test_a_field_that_cannot_be_read_is_unknown(name: str) -> None:
    assert "unknown" in told({**WELL, name: Unknown("Unknown Error")}).values()


def test_a_card_that_tells_nothing_is_no_fault_of_its_own() -> None:
    """A GeForce tells neither ECC nor pages nor rows; gpud#351 has one that answers with zeros."""
    assert told(dict.fromkeys(WELL)) == {}


def test_what_to_do_names_the_card() -> None:
    facts = health.facts(A, {**WELL, "ecc-volatile-uncorrectable": 7})
    goal = health.goals(facts, A, {})[f"{A}/ecc-volatile-uncorrectable"]
    assert f"nvidia-smi --gpu-reset -i {A}" in goal.fix
