"""What makes a GPU that NVML tells of sick, and what to do about it. Pure.

The limits are those of NVIDIA's documents "Dynamic Page Retirement", "GPU Memory Error Management" and "GPU Debug
Guidelines". What a model does not have is no fault of it; what could not be read is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hostprep.model import Desired, Fact, Facts, Reading, Unknown

# From 60 on NVIDIA takes a board back (RMA); the InfoROM has room for 64.
RETIRED_PAGES = 59
# Reasons that are no setting and no want of work: the card is too hot, or its power is held down.
HARMFUL = ("hw-slowdown", "thermal-sw", "thermal-hw", "power-brake")
_CURED_BY_REBOOT = ("gpu-reset", "node-reboot", "drain-and-reset", "bus-reset", "system-reboot")
_RESET = "Stop what uses it, then nvidia-smi --gpu-reset -i {address}; or reboot this host."
_REPLACE = "Have this GPU replaced."


def facts(address: str, fields: Mapping[str, Reading]) -> dict[str, Fact]:
    """What NVML tells of a GPU's health, as settings; what a reboot is known to cure is told as cured then."""
    found = {f"{address}/{name}": Fact.fixed(reading) for name, reading in fields.items()}
    for name in ("retirement-pending", "remapping-pending"):
        found[f"{address}/{name}"] = _cured(fields.get(name), False)
    action = fields.get("recovery-action")
    found[f"{address}/recovery-action"] = _cured(action, "none") if action in _CURED_BY_REBOOT else Fact.fixed(action)
    found[f"{address}/retired-pages"] = Fact.fixed(_sum(fields.get("retired-single"), fields.get("retired-double")))
    found[f"{address}/slowdown"] = Fact.fixed(_harmful(fields.get("clock-reasons")))
    return found


def _cured(now: Reading, then: Reading) -> Fact:
    return Fact.fixed(now) if now is None or isinstance(now, Unknown) else Fact(now, then)


def _sum(*readings: Reading) -> Reading:
    """The sum of those that there are."""
    unknown = next((r for r in readings if isinstance(r, Unknown)), None)
    numbers = [r for r in readings if isinstance(r, int)]
    return unknown or (sum(numbers) if numbers else None)


def _harmful(reasons: Reading) -> Reading:
    return tuple(r for r in reasons if r in HARMFUL) if isinstance(reasons, tuple) else reasons


def goals(facts: Facts, address: str, limits: Mapping[str, Any]) -> dict[str, Desired]:
    """What each of these readings should be. `limits` is the section of a profile."""
    wanted = {
        **_memory(limits),
        **_links(facts, address, limits),
        **_heat(facts, address, limits),
        "recovery-action": looked_at("none", "NVIDIA's driver asks for it.", _RESET),
        "slowdown": looked_at(
            (), "Its clocks are held down by heat or power.", "Look at its cooling and power supply."
        ),
    }
    for limit, name in (("temperature", "temperature"), ("ecc_errors", "ecc-aggregate-uncorrectable")):
        if limit in limits and _reading(facts, address, name) is None:
            wanted[name] = wanted[name]._replace(counted=Unknown(f"it tells no {name}, and this profile limits that"))
    there = {
        name: goal
        for name, goal in wanted.items()
        if goal.counted is not None or _reading(facts, address, name) is not None
    }
    return {f"{address}/{name}": goal._replace(fix=goal.fix.format(address=address)) for name, goal in there.items()}


def _reading(facts: Facts, address: str, name: str) -> Reading:
    return facts.get(f"{address}/{name}", Fact.fixed(None)).current


def looked_at(value: Any, means: str, fix: str, op: str = "==") -> Desired:
    """Something that hostprep does not change."""
    return Desired(value, op=op, live=False, persist=False, means=means, fix=fix)


def _memory(limits: Mapping[str, Any]) -> dict[str, Desired]:
    errors = "Its memory has had errors since the driver was loaded that ECC could not correct."
    found = {
        "ecc-volatile-uncorrectable": looked_at(0, errors, f"{_RESET} If they come back: {_REPLACE}"),
        "retired-pages": looked_at(
            limits.get("retired_pages", RETIRED_PAGES), "Too many pages of its memory are retired.", _REPLACE, "<="
        ),
        "retirement-pending": looked_at(False, "Pages of its memory wait to be retired.", _RESET),
        "remapping-pending": looked_at(False, "Rows of its memory wait to be remapped.", _RESET),
        "remapping-failed": looked_at(
            False, "A row of its memory could not be remapped: no spare one is left.", _REPLACE
        ),
    }
    if "ecc_errors" in limits:
        means = "Its memory has had more errors in its life than ECC could not correct, and this profile allows."
        found["ecc-aggregate-uncorrectable"] = looked_at(limits["ecc_errors"], means, _REPLACE, "<=")
    return found


def _links(facts: Facts, address: str, limits: Mapping[str, Any]) -> dict[str, Desired]:
    """NVLinks that are all down belong to a card without a bridge: that is a fault where the profile says so."""
    up = _reading(facts, address, "nvlinks-up")
    found: dict[str, Desired] = {}
    cable = "Look at dmesg and nvidia-smi nvlink -s; check bridges, baseboard and the fabric manager."
    if isinstance(up, Unknown):
        found["nvlinks-up"] = looked_at((), "", "")
    elif up:
        found["nvlinks-down"] = looked_at((), "Some of its NVLinks are down, and others are up.", cable)
    if "nvlinks" in limits:
        number: Reading = len(up) if isinstance(up, tuple) else 0 if up is None else up
        found["nvlinks"] = looked_at(limits["nvlinks"], "Too few of its NVLinks are up.", cable, ">=")._replace(
            counted=number
        )
    if _reading(facts, address, "fabric-state") not in (None, "not-supported"):
        manager = "It is not part of the NVLink fabric: see systemctl status nvidia-fabricmanager."
        found["fabric-state"] = looked_at("completed", manager, "Start the fabric manager, and see its log.")
        found["fabric-status"] = looked_at(
            0, "Joining the NVLink fabric ended in an error.", "See the fabric manager's log."
        )
        found["fabric-health"] = looked_at((), "NVML reports the NVLink fabric of this GPU as unhealthy.", cable)
    if _busy(facts, address) and isinstance(most := _reading(facts, address, "pcie-generation-max"), int):
        slow = "Under load its PCIe link runs slower than both ends can."
        found["pcie-generation"] = looked_at(most, slow, "Seat the card anew; look at slot, riser and BIOS.", ">=")
    return found


def _busy(facts: Facts, address: str) -> bool:
    """Under load; an idle card lowers the speed of its link (hwloc#653), never its width."""
    used = _reading(facts, address, "utilization")
    return isinstance(used, int) and used >= 50


def _heat(facts: Facts, address: str, limits: Mapping[str, Any]) -> dict[str, Desired]:
    """The profile's limit; else the card's own: newer ones tell the degrees that are left, others where they slow."""
    cool = "Look at its cooling."
    if "temperature" in limits:
        return {"temperature": looked_at(limits["temperature"], "It is hotter than this profile allows.", cool, "<=")}
    if _reading(facts, address, "temperature-margin") is not None:
        means = "It has so few degrees (Celsius) left until it slows down."
        return {"temperature-margin": looked_at(1, means, cool, ">=")}
    slows = _reading(facts, address, "temperature-slowdown")
    if isinstance(slows, int):
        return {"temperature": looked_at(slows - 1, f"It slows down from {slows} degrees Celsius on.", cool, "<=")}
    return {"temperature-slowdown": looked_at(0, "", cool, ">=")} if isinstance(slows, Unknown) else {}
