"""The memory of one card: factory values, current ones (loaded at the last start), the next ones, and what runs.

It is one JSON file, so the test, the model and a person can all read and change it at once.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from connectx import cards, layout

# Status of a register access (mstflint: reg_access/reg_access_common.h, and mtcr for 0x20 and 0x21)
REGISTER_UNSUPPORTED, BAD_PARAMETER, NOT_AVAILABLE, BAD_CONFIG = 4, 7, 8, 0x20
LOOK_EVERY = 0.01  # seconds between two looks at the file while registers are polled
DEPENDENCY = re.compile(r"\$(\w+)\.(\w+)\s*(==|!=)\s*(\d+)")


class Refused(Exception):
    """The firmware does not do it: the status of the register access."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status:#x}")
        self.status = status


class Sriov(NamedTuple):
    """The SR-IOV capability of a function."""

    total: int
    made: int
    offset: int
    stride: int
    device: int


def create(path: Path, kind: str, addresses: tuple[str, ...], number: int, settings: Mapping[str, int | None]) -> None:
    """A card as it comes from the factory."""
    state = {"kind": kind, "addresses": addresses, "number": number, "settings": dict(settings), "boots": 1}
    more: dict[str, Any] = {"writes": 0, "next": {}, "current": {}, "runtime": {}, "faults": {}}
    _write(path, {**state, **more})


class Memory:
    """One card."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tlvs = layout.load()
        self._by_key = layout.by_key(self.tlvs)
        self._stamp: tuple[int, int, int] | None = None
        self._looked = 0.0
        self.version = 0  # grows with each change of the file
        self.state: dict[str, Any] = {}
        self.reload()
        self.kind = cards.KINDS[self.state["kind"]]
        self.addresses: list[str] = self.state["addresses"]
        self.number: int = self.state["number"]
        self.offered: set[str] = set()
        self._factory = self._make_factory()

    # The file

    def reload(self) -> None:
        """Take what the file says, if it changed."""
        status = self.path.stat()
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        if stamp != self._stamp:
            self.state = json.loads(self.path.read_text())
            self._stamp = stamp
            self.version += 1

    def glance(self) -> None:
        """Reload, but look at the file only so often: tools poll registers by the ten thousand."""
        now = time.monotonic()
        if now - self._looked > LOOK_EVERY:
            self._looked = now
            self.reload()

    @contextmanager
    def change(self) -> Iterator[dict[str, Any]]:
        """Change the state, with nobody else doing so."""
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.reload()
            yield self.state
            _write(self.path, self.state)
            self.reload()

    @property
    def faults(self) -> dict[str, Any]:
        faults: dict[str, Any] = self.state["faults"]
        return faults

    # What the firmware does

    def find(self, type_word: int) -> layout.Tlv | None:
        """The TLV that a type word names, if the card has it."""
        tlv = self._by_key.get(layout.key(type_word))
        return tlv if tlv and tlv.name in self.offered else None

    def read(self, type_word: int, which: str, function: int = 0) -> bytes:
        """The TLV as it is by `default`, at `current` or at the `next` start."""
        name = _own(type_word, function)
        if name not in self._factory:
            raise Refused(NOT_AVAILABLE)
        stored = None if which == "default" else self.state[which].get(f"{name:#010x}")
        return bytes.fromhex(stored) if stored else self._factory[name]

    def write(self, type_word: int, data: bytes, function: int = 0) -> None:
        """Store a TLV for the next start."""
        name, tlv = _own(type_word, function), self.find(type_word)
        if tlv is None or tlv.capability or name not in self._factory:
            raise Refused(NOT_AVAILABLE)
        data = bytes(data[: tlv.size]).ljust(tlv.size, b"\0")
        if tlv.name == "nv_global_pci_conf" and tlv.get(data, "total_vfs") > self.kind.max_vfs:
            raise Refused(BAD_CONFIG)
        with self.change() as state:
            state["next"][f"{name:#010x}"] = data.hex()

    def start(self, load: bool) -> None:
        """The machine starts: VFs and semaphores are gone; the next values are loaded, or not."""
        with self.change() as state:
            if load:
                state["current"] = dict(state["next"])
            state["runtime"] = {}
            state["boots"] += 1

    # By the names that mstconfig shows

    def get(self, name: str, which: str, function: int = 0) -> int:
        """The value of a parameter."""
        tlv, field, instance = self._locate(name)
        return tlv.get(self.read(tlv.type_word(instance), which, function), field.name)

    def put(self, name: str, value: int, function: int = 0) -> None:
        """Store a value for the next start, as another tool would."""
        tlv, field, instance = self._locate(name)
        data = bytearray(self.read(tlv.type_word(instance), "next", function))
        tlv.put(data, field.name, value)
        if field.valid:
            tlv.put(data, field.valid, 1)
        self.write(tlv.type_word(instance), bytes(data), function)

    def offers(self, name: str) -> bool:
        """Whether the card has this parameter."""
        return self._find_parameter(name) is not None

    def _find_parameter(self, name: str) -> tuple[layout.Tlv, layout.Param] | None:
        for tlv in self.tlvs.values():
            if tlv.name in self.offered:
                for field in tlv.params.values():
                    if field.public == name:
                        return tlv, field
        return None

    def _locate(self, name: str) -> tuple[layout.Tlv, layout.Param, int]:
        """The TLV, the field and the port: LINK_TYPE_P2 is LINK_TYPE of port 2."""
        if found := self._find_parameter(name):
            return *found, 0
        base, _, port = name.rpartition("_P")
        if port.isdigit() and (found := self._find_parameter(base)):
            return *found, int(port)
        raise KeyError(name)

    # SR-IOV

    def ethernet(self, function: int) -> bool:
        """Whether the port of this function is Ethernet."""
        return not self.offers("LINK_TYPE") or self.get(f"LINK_TYPE_P{function + 1}", "current") == 2

    def sriov(self, function: int) -> Sriov | None:
        """The capability as the firmware started with it.

        PF_NUM_OF_VF_VALID makes each function count its own VFs, and NUM_OF_VFS count for nothing. Without VFs there
        is no capability at all.
        """
        total = self.get("NUM_OF_VFS", "current")
        if self.offers("PF_NUM_OF_VF_VALID") and self.get("PF_NUM_OF_VF_VALID", "current"):
            total = self.get("PF_NUM_OF_VF", "current", function)
        if not total or not self.get("SRIOV_EN", "current"):
            return None
        address = self.addresses[function]
        slot = [a for a in self.addresses if a[:-2] == address[:-2]]
        index = slot.index(address)
        return Sriov(
            total, self.running(address, "numvfs", 0), len(slot) - index + index * total, 1, self.kind.vf_device
        )

    def running(self, address: str, name: str, default: Any) -> Any:
        """What a start forgets, of a function: how many VFs, which driver..."""
        return self.state["runtime"].get(address, {}).get(name, default)

    # The factory

    def _make_factory(self) -> dict[int, bytes]:
        """Data of each TLV that this card offers, by type word. A capability follows from what depends on it."""
        values = cards.factory(self.state["kind"], self.state["settings"])
        fields: dict[str, dict[str, int]] = {"nv_global_pci_cap": self._limits()}
        for tlv in self.tlvs.values():
            for field in tlv.params.values():
                if not tlv.capability and field.public in values:
                    own = fields.setdefault(tlv.name, {})
                    own[field.name] = values[field.public]
                    if field.valid:
                        own[field.valid] = 1
                    self._fulfil(field.dependency, fields)
        self.offered = set(fields)
        return {
            tlv.type_word(instance): _filled(tlv, fields[tlv.name])
            for tlv in (self.tlvs[name] for name in fields)
            for instance in self._instances(tlv)
        }

    def _limits(self) -> dict[str, int]:
        limits = {"max_vfs_per_pf_valid": 1, "max_vfs_per_pf": self.kind.max_vfs, "max_num_pfs": 16}
        sizes = {"max_num_pf_msix": 63, "max_num_vf_msix": 63}
        return limits | sizes | {"max_log_pf_uar_bar_size": 8, "max_log_vf_uar_bar_size": 6}

    def _fulfil(self, dependency: str, fields: dict[str, dict[str, int]]) -> None:
        for capability, field, operator, text in DEPENDENCY.findall(dependency):
            if capability in self.tlvs and self.tlvs[capability].capability:
                wanted = int(text) if operator == "==" else int(text == "0")
                fields.setdefault(capability, {}).setdefault(field, wanted)

    def _instances(self, tlv: layout.Tlv) -> range:
        if tlv.cls == layout.PORT:
            return range(1, self.kind.ports + 1)
        return range(len(self.addresses)) if tlv.cls == layout.FUNCTION else range(1)


def _own(type_word: int, function: int) -> int:
    """A function's TLV addressed without host and function is the one of whoever asks."""
    asks_own = type_word >> 24 == layout.FUNCTION and not type_word & 0x00FFFC00
    return type_word | function << layout.INSTANCE_SHIFT[layout.FUNCTION] if asks_own else type_word


def _filled(tlv: layout.Tlv, fields: Mapping[str, int]) -> bytes:
    data = bytearray(tlv.size)
    for name, value in fields.items():
        if name in tlv.params:
            tlv.put(data, name, value)
    return bytes(data)


def _write(path: Path, state: Mapping[str, Any]) -> None:
    """Replace the file, so that a reader finds the old or the new."""
    new = path.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(state, indent=1) + "\n")
    new.replace(path)
