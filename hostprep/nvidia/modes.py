"""Modes of GPUs: persistence, ECC, MIG and its instances, compute mode; now, after the next boot, and setting them.

ECC and, up to Ampere, MIG are kept by the card. The others are lost at a reboot: the boot record has our unit make them
again (see boot_record).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from hostprep import boot_record, pci
from hostprep.errors import ChangeFailed
from hostprep.host import Host, attempt
from hostprep.host.nvml import Gpu
from hostprep.model import Change, Desired, Facet, Fact, Facts, Reading, Section, Unknown, Value
from hostprep.nvidia import driver
from hostprep.nvidia.driver import ANSWERS, UNLOADED
from hostprep.nvidia.health import looked_at

# The order in which they are made: instances need MIG mode.
NAMES = ("persistence", "ecc", "mig", "mig-devices", "compute-mode")
RECORDED = ("persistence", "compute-mode", "mig", "mig-devices")
_LOST = ("persistence", "compute-mode", "mig-devices")  # at a reboot, by every model
_DEFAULTS: Mapping[str, Value] = {"persistence": False, "compute-mode": "default", "mig": False, "mig-devices": ()}
_KEEPS_MIG = ("ampere",)  # in its InfoROM; from Hopper on it is lost (MIG User Guide, Deployment Considerations)
_UNLOADED = "the driver is not loaded, and the card alone does not tell"
_NOTHING = Fact.fixed(None)


# -- looking --------------------------------------------------------------------------------------


def facts(host: Host, gpu: Gpu, record: boot_record.Record | Unknown) -> dict[str, Fact]:
    """The modes of a GPU that NVML tells of, now and after the next boot."""
    fields = gpu.fields
    found: dict[str, Fact] = {}
    if fields.get("ecc") is not None:
        found["ecc"] = Fact(fields["ecc"], fields.get("ecc-pending"))
    lost = [name for name in RECORDED if name != "mig" or fields.get("architecture") not in _KEEPS_MIG]
    entry: Unknown | Mapping[str, Any] = record if isinstance(record, Unknown) else record.get(gpu.address, {})
    for name in lost:
        if fields.get(name) is not None:
            found[name] = Fact(fields[name], _made_again(host, name, entry))
    if "mig" not in lost and fields.get("mig") is not None:
        found["mig"] = Fact(fields["mig"], fields.get("mig-pending"))
    if not isinstance(entry, Unknown):
        found["recorded"] = Fact.fixed(tuple(name for name in NAMES if name in entry))
    return {f"{gpu.address}/{name}": fact for name, fact in found.items()}


def untold(host: Host, check: str, facts: Facts, names: Sequence[str]) -> dict[str, Fact]:
    """The modes that hostprep has changed or recorded of GPUs that NVML tells nothing of.

    What is lost at a reboot is lost with the driver and with the card.
    """
    made = attempt(record, host, check)
    entries = {} if isinstance(made, Unknown) else made
    recorded = [f"{address}/{name}" for address, entry in entries.items() for name in entry if name in NAMES]
    found = {}
    for key in dict.fromkeys([*names, *recorded]):
        address, _, name = key.rpartition("/")
        said = [facts[of].current for of in (f"{address}/nvml", "nvml") if of in facts]
        if key in facts or facts.get(f"{address}/nvml", _NOTHING).current == ANSWERS:
            continue
        why = _silence(said[0]) if said else _UNLOADED
        entry = made if isinstance(made, Unknown) else made.get(address, {})
        lost = name in _LOST or key in recorded
        gone = lost and (facts["driver"].current == UNLOADED or f"{address}/id" not in facts)
        found[key] = Fact(_DEFAULTS[name], _made_again(host, name, entry)) if gone else Fact.fixed(Unknown(why))
    kept = {a: tuple(n for n in NAMES if n in entry) for a, entry in entries.items() if f"{a}/recorded" not in facts}
    return found | {f"{address}/recorded": Fact.fixed(modes) for address, modes in kept.items()}


def _silence(said: Reading) -> str:
    return said.reason if isinstance(said, Unknown) else f"NVML says {said}"


def _made_again(host: Host, name: str, entry: Mapping[str, Any] | Unknown) -> Reading:
    """What a mode that is lost at a reboot will be after it."""
    if isinstance(entry, Unknown):
        return entry
    if name in entry:
        value: Reading = entry[name]
        return value
    return attempt(driver.made_persistent, host) if name == "persistence" else _DEFAULTS[name]


def record(host: Host, check: str) -> boot_record.Record:
    """What our boot unit makes; nothing where systemd will not start it. It leaves a card that was replaced alone."""
    found = {a: entry for a, entry in boot_record.read(host, check).items() if _is_of(host, a, entry)}
    return found if found and boot_record.effective(host) else {}


def _is_of(host: Host, address: str, entry: Mapping[str, Any]) -> bool:
    return bool(entry["id"] == pci.vendor_device(host, address))


# -- deciding -------------------------------------------------------------------------------------


def goals(facts: Facts, address: str, want: Section) -> dict[str, Desired]:
    """Modes of a GPU; one that its model does not have is told, since the profile asks for it."""
    wanted: dict[str, Desired] = {}
    busy = _processes(facts, address)
    if "persistence" in want:
        wanted["persistence"] = _persistence(facts, address, want["persistence"])
    if "ecc" in want:
        wanted["ecc"] = Desired(want["ecc"], live=False)
    if "compute_mode" in want:
        wanted["compute-mode"] = Desired(want["compute_mode"])
    if "mig" in want:
        wanted["mig"] = _mig(facts, address, want["mig"] is not False, busy)
    if isinstance(want.get("mig"), list):
        wanted["mig-devices"] = _instances(facts, address, tuple(sorted(want["mig"])), busy)
    for name in wanted:
        if facts.get(f"{address}/{name}", _NOTHING).current is None:
            model = facts.get(f"{address}/name", _NOTHING).current
            none = f"This GPU has no {name} to set ({model})."
            off: Reading = False if wanted[name].value is False else None  # what a card does not have is off
            wanted[name] = looked_at(wanted[name].value, none, "Take it out of this profile.")._replace(counted=off)
    return {f"{address}/{name}": goal for name, goal in wanted.items()}


def _persistence(facts: Facts, address: str, wanted: bool) -> Desired:
    later, recorded = (facts.get(f"{address}/{name}", _NOTHING) for name in ("persistence", "recorded"))
    ours = isinstance(recorded.current, tuple) and "persistence" in recorded.current
    if wanted or later.next_boot is not True or ours:
        return Desired(wanted)
    why = f"{driver.PERSISTENCED} turns it on at every boot"
    fix = f"systemctl disable --now {driver.PERSISTENCED}"
    return Desired(wanted, refused_now=why, refused_next=why, means=f"{why}.", fix=fix)


def _processes(facts: Facts, address: str) -> str:
    pids = facts.get(f"{address}/processes", _NOTHING).current
    if isinstance(pids, Unknown):
        return f"which processes run on it cannot be told: {pids.reason}"
    return f"processes run on it: {', '.join(pids)}" if isinstance(pids, tuple) and pids else ""


def _mig(facts: Facts, address: str, wanted: bool, busy: str) -> Desired:
    """MIG mode. To turn it off destroys the instances, and where nothing runs on the GPU NVML does so at once."""
    there = facts.get(f"{address}/mig-devices", _NOTHING).current
    if wanted or not there:
        return Desired(wanted, refused_now=busy)
    why = there.reason if isinstance(there, Unknown) else _theirs(there if isinstance(there, tuple) else ())
    return Desired(wanted, refused_now=why, refused_next=why, means=f"{why}.", fix=_destroy(address))


def _instances(facts: Facts, address: str, wanted: tuple[str, ...], busy: str) -> Desired:
    there = facts.get(f"{address}/mig-devices", _NOTHING).current
    others = _theirs(there) if there and isinstance(there, tuple) else ""
    on = facts.get(f"{address}/mig", _NOTHING).current is True
    off = "" if on else "they are made once MIG mode is on"
    return Desired(
        wanted,
        refused_now=busy or others or off,
        fix=_destroy(address),
    )


def _destroy(address: str) -> str:
    return f"nvidia-smi mig -dci -i {address}, nvidia-smi mig -dgi -i {address}, then apply again."


def _theirs(instances: Sequence[str]) -> str:
    return f"it has {', '.join(instances)}, and to destroy those is for whoever made them"


def forgotten(facts: Facts, names: Collection[str]) -> dict[str, Desired]:
    """What is recorded and cannot be made any more: our boot unit would fail at every boot."""
    recorded = {key.partition("/")[0]: fact.current for key, fact in facts.items() if key.endswith("/recorded")}
    return {
        f"{address}/{name}": Desired(_DEFAULTS[name], live=False)
        for address, kept in recorded.items()
        for name in names
        if isinstance(kept, tuple) and name in kept
    }


def disrupts(facts: Facts, change: Change) -> str:
    """What would be taken from whom."""
    address, _, name = change.key.rpartition("/")
    if name == "mig-devices" and isinstance(change.before, tuple) and change.before and change.after:
        return _theirs(change.before)
    return _processes(facts, address) if name in ("mig", "mig-devices") else ""


def to_make_again(facts: Facts) -> Iterator[tuple[str, Value, Value]]:
    """What the record says and is not so: the keys, with what is and what should be."""
    for key, (now, later) in facts.items():
        address, _, name = key.rpartition("/")
        recorded = facts.get(f"{address}/recorded", _NOTHING).current
        if name not in RECORDED or not isinstance(recorded, tuple) or name not in recorded:
            continue
        if now != later and not isinstance(now, Unknown) and not isinstance(later, Unknown):
            yield key, now, later


# -- changing -------------------------------------------------------------------------------------


def apply(host: Host, check: str, changes: Sequence[Change]) -> None:
    """Make changes of one facet."""
    changes = sorted(changes, key=_turn)
    if changes and changes[0].facet is Facet.NEXT_BOOT:
        _keep(host, check, changes)
        return
    for change in changes:
        address, _, name = change.key.rpartition("/")
        if name == "mig":
            _put_mig(host, address, change.after)
        elif name != "mig-devices":
            host.set_gpu(address, name, change.after)
        elif host.rehearsing or not change.after or _field(host, address, "mig") is True:
            host.set_gpu(address, "instances", change.after)  # else MIG mode waits for a reboot, and they with it


def _turn(change: Change) -> int:
    """When its turn is: instances go before MIG mode does, and come after it."""
    name = change.key.rpartition("/")[2]
    return -1 if name == "mig-devices" and not change.after else NAMES.index(name)


def _put_mig(host: Host, address: str, value: Value) -> None:
    """MIG mode now or not at all: one that would only wait is for the next boot, and journalled as a change of that."""
    before = None if host.rehearsing else _field(host, address, "mig-pending")
    there = None if host.rehearsing or value else _field(host, address, "mig-devices")
    if isinstance(there, tuple) and there:
        raise ChangeFailed(_theirs(there), _destroy(address))
    host.set_gpu(address, "mig", value)
    if isinstance(before, bool) and before != value and _field(host, address, "mig") != value:
        host.set_gpu(address, "mig", before)


def _keep(host: Host, check: str, changes: Sequence[Change]) -> None:
    """What the card keeps goes into the card, and the rest into the record of our boot unit."""
    record: dict[str, dict[str, Any]] = {a: dict(entry) for a, entry in boot_record.read(host, check).items()}
    for change in changes:
        address, _, name = change.key.rpartition("/")
        if address in record and not _is_of(host, address, record[address]):
            del record[address]
        if name == "ecc" or (name == "mig" and _keeps_mig(host, address)):
            host.set_gpu(address, name, change.after)
            continue
        entry = record.setdefault(address, {"id": pci.vendor_device(host, address)})
        entry.pop(name, None)
        if change.after != _DEFAULTS[name]:
            entry[name] = change.after
    kept = {address: entry for address, entry in record.items() if len(entry) > 1}
    if kept != boot_record.read(host, check):
        boot_record.put(host, check, kept)


def _keeps_mig(host: Host, address: str) -> bool:
    return _field(host, address, "architecture") in _KEEPS_MIG


def _field(host: Host, address: str, name: str) -> Reading:
    return next((gpu.fields.get(name) for gpu in host.nvml([address]).gpus if gpu.address == address), None)
