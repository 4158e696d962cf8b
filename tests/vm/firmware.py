"""The firmware of the machine's ConnectX-5: connectx.c, in QEMU, asks it over a socket; its flash is a file here.

So it outlives the machine, as flash does, and a test reads it without asking hostprep or mstconfig.
"""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path

from connectx import cards
from connectx.gateway import MAILBOX_BYTES, Chip, Function
from connectx.memory import Memory, create

PF = "0000:42:00.0"


class Card:
    """A card as it comes from the factory, with one port."""

    def __init__(self, folder: Path, **settings: int) -> None:
        file = folder / "card.json"
        create(file, "cx5ex", (PF,), 0, {"NUM_OF_PF": 1, **settings})
        self.memory = Memory(file)
        self.function = Function(Chip(self.memory), 0)
        self.path = folder / "connectx.socket"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def start(self, *, cold: bool = False) -> None:
        """The machine starts: warm, or after a power cycle. The next values become current, if the card lets them."""
        self.memory.reload()
        self.memory.start(load=cold or not self.memory.faults.get("needs_power_cycle"))

    def fault(self, **faults: int) -> None:
        """From now on it has these faults (cards.FAULTS) and no other."""
        assert not set(faults) - set(cards.FAULTS)
        with self.memory.change() as state:
            state["faults"] = faults

    def value(self, name: str, which: str = "next") -> int:
        """A parameter as it is by `default`, at `current` or at the `next` start."""
        self.memory.reload()
        return self.memory.get(name, which)

    @property
    def writes(self) -> int:
        """How many times it was asked to store something."""
        self.memory.reload()
        return int(self.memory.state["writes"])

    def _serve(self) -> None:
        """One machine after the other."""
        while True:
            end, _ = self.listener.accept()
            with end, end.makefile("rb") as asked:
                while what := asked.read(1):
                    self.memory.reload()
                    end.sendall(self._offered() if what == b"V" else self.function.answer(asked.read(MAILBOX_BYTES)))

    def _offered(self) -> bytes:
        """How many VFs the card offers since its last start."""
        sriov = self.memory.sriov(0)
        return struct.pack("<I", sriov.total if sriov else 0)
