"""The firmware's registers, as far as mstconfig asks for them.

A body is big endian (mstflint: reg_access_hca_layouts.h). Numbers are those of mstflint's reg_id.h.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import pack_into, unpack_from

from connectx.memory import BAD_PARAMETER, REGISTER_UNSUPPORTED, Memory, Refused

GET, SET = 1, 2
NVDA = 0x9024


def access(memory: Memory, function: int, register: int, method: int, body: bytearray) -> int:
    """Do one register access on the body, in place: the status."""
    if register == NVDA and method == SET:
        with memory.change() as state:
            state["writes"] += 1
    name = f"{'get' if method == GET else 'set'}:{register:04x}"
    forced = memory.faults.get("reg_status", {}).get(name)
    if forced is not None:
        return int(forced)
    if register not in REGISTERS:
        return REGISTER_UNSUPPORTED
    try:
        REGISTERS[register](memory, function, method, body)
    except Refused as refused:
        return refused.status
    return 0


def _mgir(memory: Memory, _function: int, _method: int, body: bytearray) -> None:
    """General information: ids, firmware version, PSID."""
    kind = memory.kind
    major, minor, sub = (int(part) for part in kind.firmware.split("."))
    body[:] = bytes(len(body))
    pack_into(">HHBBHHH", body, 0, 0, kind.device, 0, kind.ports, 0, 0, kind.hardware)
    pack_into(">BBBB", body, 0x20, 0, major & 0xFF, minor & 0xFF, sub & 0xFF)
    body[0x30:0x40] = kind.psid.encode().ljust(16, b"\0")
    pack_into(">III", body, 0x44, major, minor, sub)


def _nvqc(memory: Memory, _function: int, _method: int, body: bytearray) -> None:
    """Query capabilities: whether a TLV can be read (bit 0) and written (bit 1), and its version."""
    tlv = memory.find(unpack_from(">I", body, 0)[0])
    pack_into(">I", body, 4, tlv.version << 4 | (1 if tlv.capability else 3) if tlv else 0)


def _nvgc(memory: Memory, _function: int, _method: int, body: bytearray) -> None:
    """Global capabilities: default (bit 0) and current (bit 1) values can be read."""
    pack_into(">I", body, 0, 0 if memory.faults.get("no_current") else 3)


def _nvda(memory: Memory, function: int, method: int, body: bytearray) -> None:
    """A TLV's data. Word 0: length 8:0, read current 22, read default 23; word 1: type; data from byte 12."""
    word, type_word = unpack_from(">II", body, 0)
    if method == SET:
        memory.write(type_word, bytes(body[12 : 12 + (word & 0x1FF)]), function)
        return
    which = "current" if word >> 22 & 1 else "default" if word >> 23 & 1 else "next"
    data = memory.read(type_word, which, function)[: len(body) - 12]
    pack_into(">I", body, 0, word & ~0x1FF | len(data))
    body[12 : 12 + len(data)] = data


def _mqis(memory: Memory, _function: int, _method: int, body: bytearray) -> None:
    """Information strings, in pieces: 1 is the name, 2 the description."""
    texts = {1: memory.kind.name, 2: memory.kind.description}
    if body[3] not in texts:
        raise Refused(BAD_PARAMETER)
    text = texts[body[3]].encode() + b"\0"
    offset, length = unpack_from(">HH", body, 8)
    part = text[offset : offset + length]
    pack_into(">HHHH", body, 4, 0, len(text), offset, len(part))
    body[16 : 16 + len(part)] = part


def _mfrl(memory: Memory, _function: int, method: int, body: bytearray) -> None:
    """Reset level. A set asks for a new start at the next warm boot: mstconfig does it after each `set`, and says
    "power cycle" instead of "reboot" where the firmware refuses (mstflint: mlxconfig/mlxcfg_ui.cpp)."""
    if method == GET:
        pack_into(">II", body, 0, 0, 0x48)
    elif memory.faults.get("needs_power_cycle"):
        raise Refused(REGISTER_UNSUPPORTED)


REGISTERS: dict[int, Callable[[Memory, int, int, bytearray], None]] = {
    0x9020: _mgir,
    NVDA: _nvda,
    0x9028: _mfrl,
    0x9030: _nvqc,
    0x9034: _nvgc,
    0x9064: _mqis,
}
