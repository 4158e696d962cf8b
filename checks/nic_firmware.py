"""NIC firmware: parameters of NVIDIA (Mellanox) cards such as SRIOV_EN and NUM_OF_VFS, now and at the next boot.

    nic_firmware:
      - cards: "15b3:1019"   # a PCI address, interface name or altname, vendor:device, driver; or a glob
        count: 2             # that many physical functions (PFs) must match
        SRIOV_EN: true
        NUM_OF_VFS: 8        # or ">=8"
      - cards: ens10f0np0
        LINK_TYPE_P1: ETH    # any parameter that `mstconfig -d ADDRESS query` lists; its values by name
    nic_firmware: {cards: "15b3:*", SRIOV_EN: true, NUM_OF_VFS: ">=16"}

Read and set with mstconfig (package mstflint), or mlxconfig where only that is installed. Firmware takes nothing into
a running card: all of this comes with the next boot, or with a power cycle where the tool says so.

Values belong to a card. PFs are of one card if they have one sys_image_guid or phys_switch_id, otherwise if they are in
one slot. NUM_OF_VFS is one number for all PFs of a card, so the largest that is asked for on any of them is set. Where
PF_NUM_OF_VF_VALID is set NUM_OF_VFS has no effect: then each PF has its own PF_NUM_OF_VF, and what is asked for as
NUM_OF_VFS is looked for there. Where firmware does not tell its current values, sriov_totalvfs does for these.

apply runs one `set` for a card, looks at the other PFs, and sets there what only they have. What already is as wanted
is not written: flash wears out. A BlueField that is not in NIC mode is never set. Nothing is ever `reset`: revert
writes the values that were there before.

A kernel that is locked down (Secure Boot) lets no tool at the card: then sriov_totalvfs is judged, as total_vfs. Where
no tool can be used, and the kernel's mlx5 driver has the parameters (6.18 on), devlink is: enable_sriov and total_vfs
of each PF. That turns on PF_NUM_OF_VF_VALID, so all PFs of a card have to be asked for.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from hostprep import mstconfig, pci, versions
from hostprep.errors import ChangeFailed, CommandFailed, HostError, HostprepError
from hostprep.host import Host, attempt
from hostprep.model import (
    Change,
    Desired,
    Fact,
    Facts,
    Goals,
    Reading,
    Section,
    Suggestion,
    Unknown,
    Value,
    from_json,
    to_json,
)

NAME = "nic_firmware"
MOVING = ("*/card",)
V = TypeVar("V", bound=Reading)

_PARAMETER = r"^[A-Z][A-Z0-9_]*(\[[0-9]+\])?$(?!\n)"
_BOOLEAN = {
    "description": "true or false, without quotes",
    "anyOf": [{"type": "boolean"}, {"enum": [0, 1]}],
}
_NUMBER = {
    "description": 'a number of VFs without quotes (8), or at least so many: ">=8"',
    "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": r"^>= ?[0-9]+$(?!\n)"}],
}
_KNOWN = {"SRIOV_EN": _BOOLEAN, "PF_NUM_OF_VF_VALID": _BOOLEAN, "NUM_OF_VFS": _NUMBER, "PF_NUM_OF_VF": _NUMBER}
_ENTRY = {
    "type": "object",
    "properties": {
        "cards": pci.SELECTOR,
        "count": {"type": "integer", "minimum": 1, "description": "how many PFs must match, exactly"},
        **_KNOWN,
    },
    "patternProperties": {
        rf"^(?!({'|'.join(_KNOWN)})$){_PARAMETER[1:]}": {
            "description": 'a value as the tool shows it (true, 8, ETH), or at least a number: ">=8"',
            "anyOf": [
                {"type": "boolean"},
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": r"^(>= ?[0-9]+|[A-Za-z_][A-Za-z0-9_.-]*)$(?!\n)"},
            ],
        }
    },
    "required": ["cards"],
    "additionalProperties": False,
}
SCHEMA = {
    "description": "Firmware parameters of NVIDIA (Mellanox) cards, by a selector of their PFs.",
    "anyOf": [_ENTRY, {"type": "array", "items": _ENTRY, "minItems": 1}],
}

ETHERNET = 0x0200  # the class and subclass
MELLANOX = "15b3:"
BLUEFIELD = "15b3:a2d"
EN, NUMBER, VALID, OWN_NUMBER = "SRIOV_EN", "NUM_OF_VFS", "PF_NUM_OF_VF_VALID", "PF_NUM_OF_VF"
ENGINE, MODEL = "INTERNAL_CPU_OFFLOAD_ENGINE", "INTERNAL_CPU_MODEL"
ALWAYS = (EN, NUMBER, VALID)
OF_BLUEFIELD = (MODEL, "INTERNAL_CPU_PAGE_SUPPLIER", "INTERNAL_CPU_ESWITCH_MANAGER", ENGINE)
DEVLINK_EN, TOTAL = "enable_sriov", "total_vfs"
LOCKDOWN = "/sys/kernel/security/lockdown"
LOCKED = ("integrity", "confidentiality")
POWER_CYCLE = "power-cycle"
# Device ids of cards that run no firmware: hardware ids of ConnectX-4 to BlueField-3 and later, and those plus one.
_HARDWARE = (0x209, 0x20B, 0x20D, 0x20F, 0x211, 0x212, 0x214, 0x216, 0x218, 0x21C, 0x21E)
RECOVERY = {f"15b3:{number + n:04x}" for number in _HARDWARE for n in (0, 1)}
DEVLINK_KERNEL = "6.18"  # the first whose mlx5 driver has the parameters
CARD_S = 24.0  # for looking at one card, of the 30 that a check has
QUERY_S = 20.0  # for one query, with patience for whoever else uses the card


# -- looking --------------------------------------------------------------------------------------


def asked(want: Section, keys: Iterable[str]) -> Sequence[str]:
    """The parameters that a profile names, and those of facts."""
    named = {name for entry in _entries(want) for name in entry}
    named |= {key.rpartition("/")[2] for key in keys}
    names = {name for name in named if re.search(_PARAMETER, name)}
    if any(name.startswith("LINK_TYPE_P") for name in names):
        names.add("LINK_TYPE_P1")  # which cards of Ethernet alone lack
    return sorted(names)


def _entries(want: Section) -> list[Any]:
    return want if isinstance(want, list) else [want] if want else []


def inspect(host: Host, names: Sequence[str] = ()) -> Facts:
    lockdown = attempt(_lockdown, host)
    facts: dict[str, Fact] = {"lockdown": Fact.fixed(lockdown)}
    functions = _functions(host)
    if dead := _in_recovery(host):
        facts["recovery"] = Fact.fixed(dead)
    if not functions:
        return facts
    if lockdown in LOCKED:
        facts["kernel"] = Fact.fixed(attempt(host.kernel))
        facts["devlink"] = Fact.fixed(mstconfig.installed(host, ["devlink"]))
    tool = mstconfig.installed(host)
    facts["tool"] = Fact.fixed(tool)
    altnames = _altnames(host, functions)
    for f in functions:
        facts |= pci.describe(f, altnames if isinstance(altnames, Unknown) else altnames.get(f.address, ()))
        facts[f"{f.address}/firmware"] = Fact.fixed(attempt(_firmware, host, f))
        facts[f"{f.address}/{TOTAL}"] = Fact.fixed(attempt(_total, host, f))
    cards = _cards(host, functions)
    wanted = tuple(dict.fromkeys((*ALWAYS, *names)))
    works = [(card, _looker(host, tool, of_card, wanted, lockdown)) for card, of_card in cards.items()]
    for card, answer in host.together(works, CARD_S).items():
        for f in cards[card]:
            facts[f"{f.address}/card"] = Fact.fixed(card)
            if isinstance(answer, str):
                facts |= _unread(f, wanted, answer)
        if isinstance(answer, bytes):
            facts |= {key: Fact(*map(from_json, sides)) for key, sides in json.loads(answer).items()}
    return facts


def _functions(host: Host) -> list[pci.Function]:
    """The PFs of Mellanox cards. Where sysfs lists no device at all, the kernel's other list has to agree."""
    if not host.names(pci.DEVICES) and host.read("/proc/bus/pci/devices"):
        raise HostError(f"{pci.DEVICES}: empty, though there are PCI devices: is sysfs mounted?")
    return [f for f in pci.network_functions(host) if f.vendor_device.startswith(MELLANOX)]


def _in_recovery(host: Host) -> tuple[str, ...]:
    """Cards in flash recovery mode, of any class: they have another device id, so no selector matches them."""
    listed = re.findall(r"^\w+\s+(15b3)(\w{4})\s", host.read("/proc/bus/pci/devices") or "", re.M)
    if RECOVERY.isdisjoint(map(":".join, listed)):
        return ()
    ids = {address: pci.vendor_device(host, address) for address in host.names(pci.DEVICES)}
    return tuple(f"{address} ({known})" for address, known in ids.items() if known in RECOVERY)


def _altnames(host: Host, functions: Iterable[pci.Function]) -> dict[str, tuple[str, ...]] | Unknown:
    netdevs = [name for f in functions for name in f.netdevs]
    links = attempt(host.links, netdevs) if netdevs else {}
    if isinstance(links, Unknown):
        return links
    return {f.address: tuple(alt for n in f.netdevs if n in links for alt in links[n].altnames) for f in functions}


def _lockdown(host: Host) -> str | None:
    """none, integrity or confidentiality; None where the kernel does not tell: no securityfs is not `none`."""
    m = re.search(r"\[(\w+)\]", host.read(LOCKDOWN) or "")
    return m[1] if m else None


def _firmware(host: Host, f: pci.Function) -> str | None:
    paths = host.glob(f"{f.path}/infiniband/*/fw_ver")
    return host.read(paths[0]) if paths else None


def _total(host: Host, f: pci.Function) -> int | None:
    """How many VFs the PF could have now. The file is there only where the running firmware offers SR-IOV."""
    path = f"{f.path}/sriov_totalvfs"
    return host.number(path) if host.exists(path) else None


def _cards(host: Host, functions: Sequence[pci.Function]) -> dict[str, list[pci.Function]]:
    """PFs by card. Addresses alone do not tell: the PFs of one GB200 card are in several PCI domains."""
    own = {f.address: _identity(host, f) for f in functions}
    slots: dict[str, set[str]] = {}
    for f in functions:
        slots.setdefault(_slot(f), set()).update({own[f.address]} - {""})
    cards: dict[str, list[pci.Function]] = {}
    for f in functions:
        known = slots[_slot(f)]
        card = own[f.address] or (next(iter(known)) if len(known) == 1 else _slot(f))
        cards.setdefault(card, []).append(f)
    return cards


def _slot(f: pci.Function) -> str:
    return f.address.rpartition(".")[0]


def _identity(host: Host, f: pci.Function) -> str:
    """What all ports of a card have in common and no other card has; serial numbers do not do (HGX B300)."""
    paths = [
        *host.glob(f"{f.path}/infiniband/*/sys_image_guid"),
        *(f"{f.path}/net/{n}/phys_switch_id" for n in f.netdevs),
    ]
    for path in paths:
        guid = attempt(host.read, path)  # EOPNOTSUPP of phys_switch_id in legacy mode
        if isinstance(guid, str) and re.fullmatch(r"[0-9a-f:]+", guid) and guid.strip("0:"):
            return guid
    return ""


def _looker(
    host: Host, tool: str | None, functions: Sequence[pci.Function], names: Sequence[str], lockdown: Reading
) -> Callable[[], bytes]:
    def work() -> bytes:
        facts = _card_facts(host, tool, functions, names, lockdown)
        return json.dumps({key: [to_json(side) for side in fact] for key, fact in facts.items()}).encode(
            errors="replace"
        )

    return work


def _card_facts(
    host: Host, tool: str | None, functions: Sequence[pci.Function], names: Sequence[str], lockdown: Reading
) -> dict[str, Fact]:
    """What the PFs of one card tell, one after the other."""
    end = time.monotonic() + CARD_S - 1
    facts: dict[str, Fact] = {}
    shared: dict[str, mstconfig.Row] = {}  # what is one for the whole card: asked once, since each query takes its time
    lacks: set[str] = set()
    failed = ""
    try:
        with host.locked(f"{functions[0].path}/config", QUERY_S / 2):
            for f in functions:
                left = min(end - time.monotonic(), QUERY_S)
                if failed and left < 2:  # the others share what it waits for
                    facts |= _unread(f, names, failed)
                    continue
                try:
                    found = _function_facts(host, tool, f, names, lacks, len(functions), left, shared)
                    facts |= {f"{f.address}/{name}": fact for name, fact in found.items()}
                    lacks = set(ALWAYS) & set(_names(facts, f.address, "lacks"))  # of the whole card: asked once
                    if True in found[VALID]:
                        names = (*names, OWN_NUMBER)
                except HostError as e:
                    if not failed or mstconfig.TIMED_OUT not in str(e):  # else it had but little time left
                        failed = _reason(e, tool, f, lockdown)
                    facts |= _unread(f, names, failed)
    except HostError as e:  # the lock
        facts = {key: fact for f in functions for key, fact in _unread(f, names, str(e)).items()}
    for f in functions:
        if isinstance(facts[f"{f.address}/{EN}"].next_boot, Unknown) and (not tool or lockdown in LOCKED):
            facts |= _devlink_facts(host, f)
    return facts


def _unread(f: pci.Function, names: Iterable[str], reason: str) -> dict[str, Fact]:
    more = OF_BLUEFIELD if f.vendor_device.startswith(BLUEFIELD) else ()
    return {f"{f.address}/{name}": Fact.fixed(Unknown(reason)) for name in (*names, OWN_NUMBER, *more)}


def _reason(e: HostError, tool: str | None, f: pci.Function, lockdown: Reading) -> str:
    if tool is None:
        return str(e)
    own, todo = mstconfig.said(e, tool, f.address)
    own = own.rstrip(".")
    if lockdown in LOCKED:
        return f"{own}. The kernel is locked down ({lockdown}, Secure Boot): it lets no tool at the card."
    return f"{own}. {todo}".strip()


def _function_facts(
    host: Host,
    tool: str | None,
    f: pci.Function,
    names: Sequence[str],
    known: Collection[str],
    ports: int,
    limit: float,
    shared: dict[str, mstconfig.Row],
) -> dict[str, Fact]:
    """What one PF tells, by parameter; the names in `known` are those that its card, of so many ports, lacks.

    SRIOV_EN, NUM_OF_VFS and PF_NUM_OF_VF_VALID are in TLVs of the whole card, seen and set through any of its PFs
    (nv_global_pci_conf): `shared` has them after the first PF.
    """
    if tool is None:
        raise HostError("neither mstconfig nor mlxconfig is installed. Install the package mstflint.")
    config = attempt(host.read_bytes, f"{f.path}/config")
    if isinstance(config, bytes) and config[:4] == b"\xff" * 4:
        raise HostError("the card does not answer on the PCI bus. Power-cycle this host, and look into dmesg.")
    if isinstance(config, bytes) and len(config) == 64:  # all that others than root may read of it
        raise HostError(f"{f.path}/config: needs root")
    end = time.monotonic() + limit
    more = OF_BLUEFIELD if f.vendor_device.startswith(BLUEFIELD) else ()
    asked_for = [n for n in (*names, *more) if n not in known and n not in shared]
    rows, lacks = mstconfig.query(host, tool, f.address, asked_for, limit)
    lacks = (*lacks, *known)
    shared |= {name: row for name, row in rows.items() if name in ALWAYS}
    rows |= shared
    if OWN_NUMBER not in rows and VALID in rows and True in rows[VALID][:2]:
        own = mstconfig.query(host, tool, f.address, [OWN_NUMBER], end - time.monotonic())
        rows |= own.rows
    facts = {name: Fact(row.current, row.next_boot) for name, row in rows.items()}
    facts |= {name: Fact.fixed(None) for name in (*lacks, OWN_NUMBER) if name not in rows}
    _complete(facts, attempt(_total, host, f))
    if "LINK_TYPE_P1" in lacks and pci.class_code(host, f.address) >> 8 == ETHERNET:  # it can be nothing else
        facts |= {f"LINK_TYPE_P{n}": Fact.fixed("ETH") for n in range(1, ports + 1) if f"LINK_TYPE_P{n}" in lacks}
    facts["lacks"] = Fact.fixed(tuple(sorted(lacks)))
    facts["read_only"] = Fact.fixed(tuple(sorted(name for name, row in rows.items() if row.read_only)))
    return facts


def _complete(facts: dict[str, Fact], total: int | Unknown | None) -> None:
    """Where the table has no current values, sysfs tells those of SR-IOV. What counts now and what counts after the
    next boot may be two parameters: the one of the next boot then has what counts now as its current value."""
    valid = facts.get(VALID, Fact.fixed(False))
    if EN in facts and isinstance(facts[EN].current, Unknown) and not isinstance(total, Unknown):
        facts[EN] = facts[EN]._replace(current=total is not None)
    for name in (NUMBER, OWN_NUMBER):
        if name in facts and isinstance(facts[name].current, Unknown):
            facts[name] = facts[name]._replace(current=0 if total is None else total)
    ours, theirs = (OWN_NUMBER, NUMBER) if valid.next_boot is True else (NUMBER, OWN_NUMBER)
    told = isinstance(valid.current, bool) and isinstance(valid.next_boot, bool)
    if told and valid.current != valid.next_boot and ours in facts and theirs in facts:
        facts[ours] = facts[ours]._replace(current=facts[theirs].current)


def _devlink_facts(host: Host, f: pci.Function) -> dict[str, Fact]:
    """The permanent parameters of the kernel's driver, of the next boot (Documentation/networking/devlink/mlx5.rst)."""
    if mstconfig.installed(host, ["devlink"]) is None:
        return {}
    device = f"pci/{f.address}"
    try:
        told = json.loads(host.run("devlink", "-j", "dev", "param", "show", device))["param"][device]
        values = {p["name"]: v["value"] for p in told for v in p["values"] if v.get("cmode") == "permanent"}
    except (HostError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # the driver has no parameters, or another kernel another form of them
    enable, number = values.get(DEVLINK_EN), values.get(TOTAL)
    if not isinstance(enable, bool) or type(number) is not int:
        return {}
    total = attempt(_total, host, f)
    now: Reading = total if isinstance(total, Unknown) else total is not None
    return {f"{f.address}/{DEVLINK_EN}": Fact(now, enable), f"{f.address}/{TOTAL}": Fact(total, number)}


# -- deciding -------------------------------------------------------------------------------------


class Ask(NamedTuple):
    """What an entry of a profile wants of a parameter."""

    value: Value
    at_least: bool
    selector: str


def decide(facts: Facts, want: Section) -> Goals:
    goals: dict[str, Desired] = {}
    asks: dict[str, dict[str, list[Ask]]] = {}  # by address and parameter
    for entry in _entries(want):
        selector = entry["cards"]
        key, goal = f"cards {selector}", _number_of_cards(facts, selector, entry.get("count"))
        if (
            key not in goals or goals[key].value == goals[key].counted
        ):  # of two that contradict, the one that is not met
            goals[key] = goal
        for address in sorted(pci.select(facts, selector)):
            of_function = asks.setdefault(address, {})
            for name, value in entry.items():
                if name not in ("cards", "count"):
                    of_function.setdefault(name, []).append(_ask(value, selector))
    for address in asks:
        goals |= _goals(facts, asks, address)
    return goals


def suggest(facts: Facts) -> Suggestion:
    """SR-IOV as it is and stays; other parameters are for those who know why."""
    said: dict[str, dict[str, Any]] = {}
    for address in pci.addresses(facts):
        lasting = {n: f.current for n in (EN, NUMBER) if (f := facts[f"{address}/{n}"]) == Fact.fixed(f.current)}
        if lasting.get(EN) is True and isinstance(lasting.get(NUMBER), int):
            said[address] = lasting
    entries = [{"cards": cards, "count": count, **what} for cards, count, what in pci.alike(facts, said)]
    return Suggestion(entries or None, {"": "By vendor:device where all cards of it are set alike."} if entries else {})


def _number_of_cards(facts: Facts, selector: str, count: int | None) -> Desired:
    found = pci.count(facts, selector)
    matching = f"{found} PF{' matches' if found == 1 else 's match'} {selector}."
    means = pci.nothing(facts, selector, "Mellanox card") if found == 0 else matching
    fix = (
        "Correct the selector, or the number, in the profile; or see whether the card is in its slot (lspci -d 15b3:)."
    )
    dead = facts["recovery"].current if "recovery" in facts else ()
    if isinstance(dead, tuple) and dead:
        means += f" In flash recovery mode, without its firmware: {', '.join(dead)}."
        address = dead[0].partition(" ")[0]
        fix = f"Burn the firmware of that card: mstflint -d {address} -i IMAGE burn. Then power-cycle this host."
    op = ">=" if count is None else "=="
    return Desired(count or 1, op, live=False, persist=False, means=means, fix=fix, counted=found)


def _ask(value: Any, selector: str) -> Ask:
    if isinstance(value, str) and value.startswith(">="):
        return Ask(int(value[2:]), True, selector)
    return Ask(value, False, selector)


def _goals(facts: Facts, asks: Mapping[str, Mapping[str, list[Ask]]], address: str) -> Goals:
    """What the parameters of one PF should be."""
    mine = asks[address]
    way = _way(facts, address)
    if way and {EN, NUMBER, OWN_NUMBER} & set(mine):
        others = {name: wanted for name, wanted in mine.items() if name not in (EN, NUMBER, OWN_NUMBER)}
        return way(facts, asks, address) | {
            f"{address}/{name}": _goal(facts, address, name, wanted, mine) for name, wanted in others.items()
        }
    goals = {}
    card = [a for a in sorted(asks) if facts[f"{a}/card"] == facts[f"{address}/card"]]
    for name in mine:
        if name == NUMBER and _own_numbers(facts, address, mine):
            if OWN_NUMBER not in mine:
                goals[f"{address}/{OWN_NUMBER}"] = _goal(facts, address, OWN_NUMBER, mine[NUMBER], mine)
            continue
        wanted = mine[name] if name == OWN_NUMBER else [ask for a in card for ask in asks[a].get(name, ())]
        goals[f"{address}/{name}"] = _goal(facts, address, name, wanted, mine)
    return goals


def _own_numbers(facts: Facts, address: str, mine: Mapping[str, Sequence[Ask]]) -> bool:
    """Does each PF of the card have, or will it have, its own number of VFs? Then NUM_OF_VFS has no effect."""
    if VALID in mine:
        return mine[VALID][0].value in (True, 1)
    valid = facts.get(f"{address}/{VALID}", Fact.fixed(None))
    return valid.next_boot is True


def _goal(facts: Facts, address: str, name: str, wanted: Sequence[Ask], mine: Mapping[str, Sequence[Ask]]) -> Desired:
    fact = facts.get(f"{address}/{name}", Fact.fixed(Unknown("was not looked at")))
    value, op, refused = _together(name, wanted, fact)
    fix = "Correct the profile." if refused else ""
    reason, todo = _obstacle(facts, address, name, mine)
    if reason and not refused:
        refused, fix = reason, todo
    kinds = {type(side) for side in fact if side is not None and not isinstance(side, Unknown)}
    if not refused and kinds and type(value) not in kinds:
        refused, fix = f"{_kind(value)}; {_values_of(name, fact)}", "Write values as the tool shows them."
    means = f"{refused[:1].upper()}{refused[1:]}." if refused else ""
    if name == OWN_NUMBER and not refused:
        means = f"{VALID} is set: {NUMBER} has no effect on this card, each PF has its own {OWN_NUMBER}."
    unread = fact.next_boot if f"{address}/{name}" not in facts else None
    return Desired(value, op, live=False, refused_next=refused, means=means, fix=fix, counted=unread)


def _kind(value: Value) -> str:
    if isinstance(value, bool):
        return f"the value {_shown(value)} is no number and no name"
    return f"'{value}' is text" if isinstance(value, str) else f"{value} is a number"


def _values_of(name: str, fact: Fact) -> str:
    if any(isinstance(side, bool) for side in fact):
        return f"{name} is true or false, without quotes"
    if any(isinstance(side, int) for side in fact):
        return f"{name} is a number, without quotes"
    return f"{name} has names for its values, and is {_shown(fact.next_boot)}"


def _shown(value: Reading) -> str:
    """A value as a profile has it."""
    if isinstance(value, Unknown):
        return "unknown"
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _together(name: str, wanted: Sequence[Ask], fact: Fact) -> tuple[Value, str, str]:
    """One value, how it is compared, and why it cannot be had: the ports of a card share it.

    The largest number of VFs does for all ports. Of what contradicts, the goal is something that is not met.
    """
    asked_for = [(_as_in(fact, ask.value), ">=" if ask.at_least else "==") for ask in wanted]
    exact = [value for value, op in asked_for if op == "=="]
    numbers = [value for value, _ in asked_for if type(value) is int]
    if len(numbers) == len(wanted) and (name in (NUMBER, OWN_NUMBER) or not exact):
        return max(numbers), "==" if max(numbers) in exact else ">=", ""
    if all(_meets(exact[0], goal) for goal in asked_for):
        return exact[0], "==", ""
    value, op = next(goal for goal in (*asked_for, (exact[0], "==")) if not _meets(fact.next_boot, goal))
    told = ", ".join(f"{'at least ' if ask.at_least else ''}{_shown(ask.value)} ({ask.selector})" for ask in wanted)
    return value, op, f"the profile contradicts itself about {name} of one card: {told}"


def _meets(reading: Reading, goal: tuple[Value, str]) -> bool:
    value, op = goal
    if op == "==":
        return reading == value
    return type(reading) is int and type(value) is int and reading >= value


def _as_in(fact: Fact, value: Value) -> Value:
    """0 and 1 are as good as false and true; names are told apart without case, as the tool does."""
    if isinstance(value, str):
        names = [side for side in (fact.next_boot, fact.current) if isinstance(side, str)]
        same = [name for name in names if name.casefold() == value.casefold()]
        return same[0] if same else value.upper() if names and all(map(str.isupper, names)) else value
    boolean = any(isinstance(side, bool) for side in fact)
    return bool(value) if boolean and type(value) is int and value in (0, 1) else value


def _obstacle(facts: Facts, address: str, name: str, mine: Mapping[str, Sequence[Ask]]) -> tuple[str, str]:
    """Why a parameter must not be set, and what to do."""
    if str(facts[f"{address}/id"].current).startswith(BLUEFIELD) and (mode := _mode(facts, address)):
        todo = "Put it into NIC mode first, as its manual says, or set it on the BlueField itself; then power-cycle."
        return f"this BlueField {mode}, and is not set from the host then", todo
    if name in _names(facts, address, "read_only"):
        return f"{name} is read-only on this card", "Ask the vendor of the card or of this server."
    if name in _names(facts, address, "lacks"):
        if name == OWN_NUMBER and _own_numbers(facts, address, mine):
            return "", ""  # it shows up when PF_NUM_OF_VF_VALID is stored
        if name.startswith("LINK_TYPE_P") and facts[f"{address}/{name}"] == Fact.fixed("ETH"):
            return f"this card is Ethernet only, and has no parameter {name}", "Correct the profile."
        return (
            f"this card, or this version of the tool, has no parameter {name}",
            "See its spelling in `mstconfig -d ADDRESS query`; update mstflint or the firmware; or leave it out.",
        )
    return "", ""


def _names(facts: Facts, address: str, which: str) -> tuple[str, ...]:
    names = facts.get(f"{address}/{which}", Fact.fixed(())).current
    return names if isinstance(names, tuple) else ()


def _mode(facts: Facts, address: str) -> str:
    """Empty for a BlueField in NIC mode, now and after the next boot. In DPU mode no reboot of the host loads anything
    (sriov-network-operator#449, #662)."""
    engine, model = (facts.get(f"{address}/{name}", Fact.fixed(None)) for name in (ENGINE, MODEL))
    if engine == Fact.fixed("DISABLED"):
        return ""
    if "ENABLED" in engine and "SEPARATED_HOST" not in model:
        return "is in DPU mode, or will be"
    return "is in separated host mode" if "SEPARATED_HOST" in model else "does not tell its mode"


_Way = Callable[[Facts, Mapping[str, Mapping[str, list[Ask]]], str], dict[str, Desired]]


def _way(facts: Facts, address: str) -> _Way | None:
    """How SR-IOV of a PF is judged where the tool cannot tell."""
    if not isinstance(facts.get(f"{address}/{EN}", Fact.fixed(None)).next_boot, Unknown):
        return None
    if f"{address}/{DEVLINK_EN}" in facts:
        return _by_devlink
    return _by_sysfs if facts["lockdown"].current in LOCKED else None


def _by_devlink(facts: Facts, asks: Mapping[str, Mapping[str, list[Ask]]], address: str) -> dict[str, Desired]:
    card = [a for a in sorted(pci.addresses(facts)) if facts[f"{a}/card"] == facts[f"{address}/card"]]
    left_out = [a for a in card if not {NUMBER, OWN_NUMBER} & set(asks.get(a, {}))]
    refused = fix = ""
    if left_out:
        refused = (
            "devlink gives each PF of a card its own number of VFs, and the profile has none for "
            f"{', '.join(left_out)}, which would lose its VFs"
        )
        fix = f"Ask for {NUMBER} on all PFs of the card, or install mstflint where the kernel is not locked down."
    elif str(facts[f"{address}/id"].current).startswith(BLUEFIELD):
        refused, fix = "whether this BlueField is in DPU mode cannot be told without mstconfig", "Install mstflint."
    elif any(isinstance(ask.value, str) for name in (EN, NUMBER, OWN_NUMBER) for ask in asks[address].get(name, ())):
        refused, fix = f"{EN} is true or false, and {NUMBER} a number", "Correct the profile."
    means = f"{refused[:1].upper()}{refused[1:]}." if refused else ""
    goals = {}
    if EN in asks[address]:
        value, op, _ = _together(EN, asks[address][EN], facts[f"{address}/{DEVLINK_EN}"])
        goals[f"{address}/{DEVLINK_EN}"] = Desired(
            bool(value), op, live=False, refused_next=refused, means=means, fix=fix
        )
    if number := asks[address].get(OWN_NUMBER) or asks[address].get(NUMBER):
        value, op, _ = _together(NUMBER, number, facts[f"{address}/{TOTAL}"])
        goals[f"{address}/{TOTAL}"] = Desired(value, op, live=False, refused_next=refused, means=means, fix=fix)
    return goals


def _by_sysfs(facts: Facts, asks: Mapping[str, Mapping[str, list[Ask]]], address: str) -> dict[str, Desired]:
    """A locked down kernel: what the running firmware offers is proved by sriov_totalvfs, and nothing can be set."""
    mine = asks[address]
    number = mine.get(OWN_NUMBER) or mine.get(NUMBER) or [Ask(1, True, "")]
    wanted = max((ask.value for ask in number if isinstance(ask.value, int)), default=1)
    if not all(ask.value for ask in mine.get(EN, ())):
        wanted = 0
    means = (
        "The kernel is locked down (Secure Boot), so the parameters cannot be read. "
        "What the running firmware offers is sriov_totalvfs, which is there only with SR-IOV on."
    )
    fix = (
        "Set it while the kernel is not locked down (Secure Boot off), or with NVIDIA's MFT and its signed driver"
        f"{_devlink_advice(facts)} If the firmware is right, see that SR-IOV is on in the BIOS."
    )
    if not wanted:
        return {f"{address}/{TOTAL}": Desired(None, live=False, persist=False, means=means, fix=fix)}
    return {f"{address}/{TOTAL}": Desired(wanted, ">=", live=False, persist=False, means=means, fix=fix)}


def _devlink_advice(facts: Facts) -> str:
    kernel = facts["kernel"].current
    if not isinstance(kernel, str) or versions.compare(kernel, DEVLINK_KERNEL) < 0:
        return f", or with a kernel from {DEVLINK_KERNEL} on (devlink)."
    if not facts["devlink"].current:
        return ", or with devlink: install iproute2."
    return ". (devlink on this host does not offer the parameters.)"


# -- changing -------------------------------------------------------------------------------------


def apply(host: Host, changes: Sequence[Change]) -> None:
    functions = {f.address: f for f in _functions(host)}
    if gone := sorted({_address(c) for c in changes} - set(functions)):
        raise ChangeFailed(f"{', '.join(gone)}: no PF of a Mellanox card is there any more", "Plan again.")
    failures: dict[str, HostprepError] = {}  # by card
    for card in _cards(host, list(functions.values())).values():
        ours = [c for c in changes if _address(c) in {f.address for f in card}]
        if not ours:
            continue
        try:
            with host.locked(f"{card[0].path}/config", mstconfig.SET_S):
                _apply_to_card(host, ours)
        except HostprepError as e:  # the other cards are set nevertheless
            failures[min(map(_address, ours))] = e
    if failures:
        said = [str(e) if any(f in str(e) for f in functions) else f"{a}: {e}" for a, e in failures.items()]
        hints = {a: e.hint for a, e in failures.items() if e.hint}
        same = len(failures) == 1 or len(set(hints.values())) == 1
        hint = " ".join(set(hints.values()) if same else (f"{a}: {todo}" for a, todo in hints.items()))
        raise ChangeFailed("; ".join(said), hint)


def _address(change: Change) -> str:
    return change.key.partition("/")[0]


def _name(change: Change) -> str:
    return change.key.partition("/")[2]


def _apply_to_card(host: Host, changes: Sequence[Change]) -> None:
    devlink = [c for c in changes if _name(c) in (DEVLINK_EN, TOTAL)]
    if devlink:
        _apply_by_devlink(host, devlink)
    if rest := [c for c in changes if c not in devlink]:
        tool = mstconfig.installed(host)
        if tool is None:
            raise ChangeFailed("neither mstconfig nor mlxconfig is installed", "Install the package mstflint.")
        try:
            _apply_by_tool(host, tool, rest)
        except HostprepError as e:
            left = "" if host.rehearsing else _take_back(host, tool, rest)
            raise ChangeFailed(f"{e}{left}", e.hint) from e


def _apply_by_tool(host: Host, tool: str, changes: Sequence[Change]) -> None:
    """One `set` for what the card shares; then, through each PF, what it has for itself."""
    wanted: dict[str, dict[str, Value]] = {}
    for change in changes:
        wanted.setdefault(_address(change), {})[_name(change)] = change.after
    first = min(wanted)
    switches = {
        name: value for name, value in wanted[first].items() if name != OWN_NUMBER or VALID not in wanted[first]
    }
    said = [mstconfig.put(host, tool, first, switches)]
    for address, all_values in sorted(wanted.items()):
        values = {n: v for n, v in all_values.items() if address == first or n not in ALWAYS}
        if not values:
            continue
        done: Mapping[str, Reading] = {n: v for n, v in switches.items() if address == first or not _of_a_pf(n)}
        if not host.rehearsing:
            done = mstconfig.next_boot(host, tool, address, values)
        said.append(mstconfig.put(host, tool, address, left := _others(values, done)))
        if left and not host.rehearsing:
            done = mstconfig.next_boot(host, tool, address, values)
        if not host.rehearsing and (wrong := _others(done, values)):
            told = ", ".join(f"{n} {_shown(v)}" for n, v in wrong.items())
            raise ChangeFailed(f"{address}: {tool} reported success, but the next boot still brings {told}")
    if any("power cycle" in text for text in said):
        for change in changes:
            host.remark(change, POWER_CYCLE)


def _others(values: Mapping[str, V], than: Mapping[str, Reading]) -> dict[str, V]:
    return {name: value for name, value in values.items() if not _same(value, than.get(name))}


def _same(one: Reading, other: Reading) -> bool:
    """Names without case, as the tool takes them."""
    if isinstance(one, str) and isinstance(other, str):
        return one.casefold() == other.casefold()
    return one == other


def _of_a_pf(name: str) -> bool:
    """Is it one of the parameters that each PF has for itself, as far as names tell?"""
    return name.startswith("PF_") and name != VALID


def _take_back(host: Host, tool: str, changes: Sequence[Change]) -> str:
    """Nothing half done: what the next boot would bring goes back to what it was. Empty, or why that failed."""
    before: dict[str, dict[str, Value]] = {}
    for change in changes:
        before.setdefault(_address(change), {})[_name(change)] = change.before
    try:
        for address, values in sorted(before.items()):
            now = mstconfig.next_boot(host, tool, address, values)
            mstconfig.put(host, tool, address, _others(values, now))
    except HostprepError as e:
        return f"; and what it was before could not be set again: {e}"
    return ""


def _apply_by_devlink(host: Host, changes: Sequence[Change]) -> None:
    done: list[Change] = []
    for change in sorted(changes, key=lambda c: (c.key.endswith(TOTAL), c.key)):
        try:
            _devlink_set(host, change.key, change.after)
        except HostError as e:
            told = [_not_taken_back(host, earlier) for earlier in reversed(done)]
            raise ChangeFailed(f"{change.key}: {e}{''.join(told)}", _devlink_hint(e)) from e
        done.append(change)


def _devlink_set(host: Host, key: str, value: Value) -> None:
    address, _, name = key.partition("/")
    text = str(value).lower()
    words = ("name", name, "value", text, "cmode", "permanent")
    host.run("devlink", "dev", "param", "set", f"pci/{address}", *words, timeout=mstconfig.STUCK_S)


def _not_taken_back(host: Host, change: Change) -> str:
    try:
        _devlink_set(host, change.key, change.before)
    except HostError as e:
        return f"; and {change.key} could not be set to {_shown(change.before)} again: {e}"
    return ""


def _devlink_hint(e: HostError) -> str:
    output = e.output if isinstance(e, CommandFailed) else ""
    if m := re.search(r"Max allowed by device is (\d+)", output):
        return f"Ask for at most {m[1]}."
    if re.search(r"not per PF|not supported", output):
        return "This card cannot be set by devlink: its firmware has no numbers by PF. Install mstflint and use that."
    return ""
