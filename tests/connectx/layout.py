"""Where a parameter lies in the firmware's non-volatile configuration.

The configuration is a set of TLVs (type, length, value). Which TLV holds SRIOV_EN, and at which bit, is data that
mstconfig itself ships, in an SQLite file (mstflint's mlxconfig/mlxconfig_dbs). The model reads the installed file, so
both sides always agree.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DATABASES = (
    Path("/usr/share/mstflint/mlxconfig_dbs/mlxconfig_host.db"),
    Path("/usr/share/mft/mlxconfig_dbs/mlxconfig_host.db"),
)

# TLV classes, the top byte of a type word (mstflint: mlxconfig/mlxcfg_tlv.h, TLVClass)
GLOBAL, PORT, FUNCTION, HOST, MODULE = 0, 1, 3, 7, 9
INSTANCE_SHIFT = {PORT: 16, FUNCTION: 10, MODULE: 14}
INDEX_MASK = {PORT: 0xFFFF, FUNCTION: 0x3FF, HOST: 0x3FFFF, MODULE: 0x3FFF}


@dataclass(frozen=True)
class Param:
    """One field of a TLV. `public` is the name that mstconfig shows, empty for what it does not."""

    name: str
    bit: int
    width: int
    public: str
    dependency: str
    valid: str


@dataclass(frozen=True)
class Tlv:
    """One record of the configuration."""

    name: str
    index: int
    cls: int
    size: int
    capability: bool
    version: int
    params: dict[str, Param] = field(default_factory=dict)

    def type_word(self, instance: int = 0) -> int:
        """The 32 bit type, as it stands in the header of an NVDA access, of this port or function."""
        return self.cls << 24 | instance << INSTANCE_SHIFT.get(self.cls, 0) | self.index

    def get(self, data: bytes, name: str) -> int:
        """Read a field: bits count from the low end of each big-endian 32 bit word."""
        param = self.params[name]
        at = param.bit // 32 * 4
        word = int.from_bytes(data[at : at + 4].ljust(4, b"\0"), "big")
        return word >> param.bit % 32 & (1 << param.width) - 1

    def put(self, data: bytearray, name: str, value: int) -> None:
        """Write a field."""
        param = self.params[name]
        at, shift = param.bit // 32 * 4, param.bit % 32
        mask = (1 << param.width) - 1 << shift
        word = int.from_bytes(data[at : at + 4], "big") & ~mask | value << shift & mask
        data[at : at + 4] = word.to_bytes(4, "big")


def database() -> Path | None:
    """The file of layouts that is installed, if any."""
    return next((path for path in DATABASES if path.exists()), None)


def load() -> dict[str, Tlv]:
    """All TLVs by name."""
    path = database()
    if path is None:
        raise FileNotFoundError("no mlxconfig_host.db: mstflint is not installed")
    db = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    try:
        tlvs = {
            name: Tlv(name, int(index), int(cls), int(size), bool(capability), int(version or 0))
            for name, index, cls, size, capability, version in db.execute(
                "select name,id,class,size,cap,version from tlvs"
            )
        }
        for tlv, name, *rest in db.execute(
            "select tlv_name,name,offset,size,mlxconfig_name,dependency,valid_bit from params"
        ):
            if tlv in tlvs:
                offset, size, public, dependency, valid = rest
                tlvs[tlv].params[name] = Param(
                    name, _bits(offset), _bits(size), public or "", dependency or "", valid or ""
                )
    finally:
        db.close()
    return tlvs


def key(type_word: int) -> tuple[int, int]:
    """Class and index, without the port or function that a type word addresses."""
    cls = type_word >> 24
    return cls, type_word & INDEX_MASK.get(cls, 0xFFFFFF)


def by_key(tlvs: Mapping[str, Tlv]) -> dict[tuple[int, int], Tlv]:
    """The TLVs by class and index."""
    return {(tlv.cls, tlv.index): tlv for tlv in tlvs.values()}


def _bits(text: str) -> int:
    """`0x4.31` is byte 4, bit 31: 63."""
    byte, _, bit = text.partition(".")
    return int(byte, 0) * 8 + int(bit or 0)
