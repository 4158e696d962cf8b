"""The configuration space of one function, and the way through it to the firmware.

mstflint (mtcr_ul, functional VSEC) opens /sys/bus/pci/devices/ADDRESS/config and knows nothing else. The
vendor-specific capability is a gateway of a few words: control, ticket counter, semaphore, address, data. Behind it
are address spaces; one of them is the command mailbox (ICMD), whose only command here is register access.
"""

from __future__ import annotations

import errno
from struct import pack, pack_into, unpack, unpack_from

from connectx import firmware
from connectx.fuse import refusal
from connectx.memory import Memory

SIZE = 4096
POWER, VPD, EXPRESS, MSIX, GATEWAY = 0x40, 0x48, 0x60, 0x9C, 0xC0
GATEWAY_END = GATEWAY + 0x18
ERRORS, ROUTING, SRIOV, SECONDARY, SERVICES = 0x100, 0x150, 0x180, 0x1C0, 0x230
VENDOR = 0x15B3
SUBSYSTEM = 0x0006

# Gateway words, from the capability's start
CONTROL, COUNTER, SEMAPHORE, ADDRESS, DATA = 4, 8, 0xC, 0x10, 0x14
FLAG = 1 << 31

# Address spaces
COMMAND_EXT, CR, COMMAND, SEMAPHORES = 1, 2, 3, 0xA
SPACES = {COMMAND_EXT, CR, COMMAND, SEMAPHORES}
HARDWARE_ID = 0xF0014  # in CR space
COMMAND_CONTROL, MAILBOX_SIZE, MAILBOX = 0x0, 0x1000, 0x100000  # in the command space
MAILBOX_BYTES = 0x340
REGISTER_ACCESS = 0x9001
BAD_OPCODE = 1


class Chip:
    """What the functions of a card share: the memory, and the command semaphore."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.semaphore = 0
        self.boots = 0

    def start(self) -> None:
        """The semaphore is free after a start of the machine."""
        if self.boots != self.memory.state["boots"]:
            self.boots = self.memory.state["boots"]
            self.semaphore = 0


class Function:
    """A physical function: what its configuration space reads and does."""

    def __init__(self, chip: Chip, index: int) -> None:
        self.chip, self.index = chip, index
        self.memory = chip.memory
        self._built, self._boots = -1, 0
        self._registers = bytearray(SIZE)
        self._start()

    def _start(self) -> None:
        """As after a reset: no semaphore is held, no command runs."""
        self._space, self._space_known = 0, False
        self._ticket = self._owner = self._address = self._data = self._control = 0
        self._mailbox = bytearray(MAILBOX_BYTES)

    # Configuration space

    def read(self, offset: int, size: int) -> bytes:
        """Read configuration space."""
        memory = self.memory
        memory.glance()
        if memory.faults.get("gone"):
            return b"\xff" * max(0, min(size, SIZE - offset))
        if self._built != memory.version:
            self._build()
        if GATEWAY + CONTROL <= offset < GATEWAY_END and size <= 4 and not memory.faults.get("no_vsec"):
            return pack("<I", self._read_gateway(offset & ~3))[offset & 3 :][:size]
        return bytes(self._registers[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        """Write configuration space: only the gateway does anything. Lockdown lets a program open but not write it
        (kernel: pci_write_config, LOCKDOWN_PCI_ACCESS)."""
        self.memory.glance()
        faults = self.memory.faults
        if faults.get("lockdown"):
            raise refusal(errno.EPERM)
        gateway = GATEWAY + CONTROL <= offset < GATEWAY_END and offset % 4 == 0 and len(data) == 4
        if gateway and not faults.get("gone") and not faults.get("no_vsec"):
            self._write_gateway(offset, unpack("<I", data)[0])

    def _build(self) -> None:
        self._built = self.memory.version
        self.chip.start()
        if self._boots != self.chip.boots:
            self._boots = self.chip.boots
            self._start()
        kind, faults, space = self.memory.kind, self.memory.faults, self._registers
        device = kind.hardware if faults.get("livefish") else kind.device
        space[:] = bytes(SIZE)
        pack_into("<HHHHBBHBBBB", space, 0, VENDOR, device, 0x0546, 0x0010, 0, 0, 0x0200, 8, 0, 0x80, 0)
        pack_into("<II", space, 0x10, 0x0C | 0xF0000000 + self.index * 0x02000000, 0x2F)
        pack_into("<HH", space, 0x2C, VENDOR, SUBSYSTEM)
        space[0x34] = EXPRESS
        pack_into("<BBHIHHI", space, EXPRESS, 0x10, VPD, 2, 0x10008FE2, 0x2937, 0, 0x00400104)
        pack_into("<HH", space, EXPRESS + 16, 0x0040, 0x1104)
        pack_into("<BBH", space, VPD, 0x03, MSIX, 0)
        pack_into("<BBHII", space, MSIX, 0x11, POWER if faults.get("no_vsec") else GATEWAY, 0x803F, 0x2000, 0x3000)
        pack_into("<BBBB", space, GATEWAY, 0x09, POWER, 0x18, 0)  # the last byte: functional, not recovery
        pack_into("<BBHI", space, POWER, 0x01, 0, 0xE003, 0x0008)
        self._build_extended()

    def _build_extended(self) -> None:
        """AER, ARI, SR-IOV where there are VFs, secondary PCIe, ACS."""
        space, sriov = self._registers, self.memory.sriov(self.index)
        pack_into("<I", space, ERRORS, 0x0001 | 1 << 16 | ROUTING << 20)
        pack_into("<I", space, ROUTING, 0x000E | 1 << 16 | (SRIOV if sriov else SECONDARY) << 20)
        pack_into("<I", space, SECONDARY, 0x0019 | 1 << 16 | SERVICES << 20)
        pack_into("<I", space, SERVICES, 0x000D | 1 << 16)
        if sriov:
            total, made, offset, stride, device = sriov
            pack_into("<I", space, SRIOV, 0x0010 | 1 << 16 | SECONDARY << 20)
            counts = (0x19 if made else 0x10, 0, total, total, made)
            pack_into("<IHHHHHHHHHH", space, SRIOV + 4, 2, *counts, self.index, offset, stride, 0, device)
            pack_into("<IIII", space, SRIOV + 0x1C, 0x7FF, 1, 0x0C, 0)

    # The gateway

    def _read_gateway(self, offset: int) -> int:
        word = offset - GATEWAY
        if word == CONTROL:  # bits 31:29 not zero: the chosen space is supported
            return (1 << 29 if self._space_known else 0) | self._space
        if word == COUNTER:
            self._ticket = (self._ticket + 1) & 0xFFFFFFFF or 1
            return self._ticket
        if word == SEMAPHORE:
            return int(self.memory.faults.get("vsec_sem_held", 0)) or self._owner
        return self._address if word == ADDRESS else self._data

    def _write_gateway(self, offset: int, value: int) -> None:
        word = offset - GATEWAY
        if word == CONTROL:
            self._space_known = value & 0xFFFF in SPACES
            self._space = value & 0xFFFF if self._space_known else self._space
        elif word == SEMAPHORE and (value == 0 or self._owner == 0):
            self._owner = value
        elif word == DATA:
            self._data = value
        elif word == ADDRESS and value & FLAG:  # a write: the flag falls when it is done
            self._address = value & 0x3FFFFFFF
            self._write_space(self._address, self._data)
        elif word == ADDRESS:  # a read: the flag rises when it is done
            self._data = self._read_space(value & 0x3FFFFFFF)
            self._address = value & 0x3FFFFFFF | FLAG

    def _read_space(self, address: int) -> int:
        faults = self.memory.faults
        if self._space == SEMAPHORES and address == 0:
            return int(faults.get("icmd_sem_held", 0)) or self.chip.semaphore
        if self._space == CR:
            if address == HARDWARE_ID:
                return self.memory.kind.hardware
            not_ready = address == self.memory.kind.not_ready_at and faults.get("fw_not_ready")
            return FLAG if not_ready else 0
        if address == COMMAND_CONTROL:
            if not faults.get("icmd_stuck"):
                self._control &= ~1
            return self._control
        if address == MAILBOX_SIZE:
            return MAILBOX_BYTES
        at = address - MAILBOX
        return int.from_bytes(self._mailbox[at : at + 4], "big") if 0 <= at < MAILBOX_BYTES else 0

    def _write_space(self, address: int, value: int) -> None:
        if self._space == SEMAPHORES and address == 0:
            free = not self.memory.faults.get("icmd_sem_held") and (value == 0 or self.chip.semaphore == 0)
            self.chip.semaphore = value if free else self.chip.semaphore
        elif self._space in (COMMAND, COMMAND_EXT):
            at = address - MAILBOX
            if 0 <= at < MAILBOX_BYTES:
                self._mailbox[at : at + 4] = value.to_bytes(4, "big")
            elif address == COMMAND_CONTROL:
                go = value & 1 and not self._control & 1
                self._control = value
                if go:
                    self._execute()

    # Commands

    def answer(self, mailbox: bytes) -> bytes:
        """What a register access leaves in the mailbox, for a gateway that is elsewhere."""
        self._mailbox[:] = mailbox
        self._access_register()
        return bytes(self._mailbox)

    def _execute(self) -> None:
        """Control word: go and busy 0, status 15:8, opcode 31:16."""
        known = self._control >> 16 == REGISTER_ACCESS
        if known:
            self._access_register()
        self._control = self._control & 0xFFFF00FF | (0 if known else BAD_OPCODE) << 8

    def _access_register(self) -> None:
        """The mailbox: operation TLV (status 14:8 of word 0; register 31:16 and method 14:8 of word 1), then register
        TLV (length in words 26:16), then the register's body."""
        first, second = unpack_from(">II", self._mailbox, 0)
        words = unpack_from(">I", self._mailbox, 16)[0] >> 16 & 0x7FF
        body = bytearray(self._mailbox[20 : 20 + max(0, words * 4 - 4)])
        status = firmware.access(self.memory, self.index, second >> 16, second >> 8 & 0x7F, body)
        self._mailbox[20 : 20 + len(body)] = body
        pack_into(">II", self._mailbox, 0, first & ~0x7F00 | status << 8, second | 1 << 15)
