"""The nouns of hostprep, as frozen data. Imports nothing but the standard library.

They are NamedTuples, not dataclasses: `import dataclasses` alone costs as much as starting Python,
and `hostprep check` runs at every boot and every few minutes after it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, NamedTuple

# None: not set. A tuple is a list in which order may matter.
Value = str | int | bool | tuple[str, ...] | None


class Unknown:
    """A reading that could not be taken. Never equal to a wanted value, never written over."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unknown) and other.reason == self.reason

    def __hash__(self) -> int:
        return hash((Unknown, self.reason))

    def __repr__(self) -> str:
        return f"Unknown({self.reason!r})"


Reading = Value | Unknown


class Facet(str, enum.Enum):
    """The two sides of a setting."""

    CURRENT = "current"  # what the running system uses
    NEXT_BOOT = "next_boot"  # what it will use after a reboot


class Fact(NamedTuple):
    """One observed setting, now and after the next boot."""

    current: Reading
    next_boot: Reading

    @classmethod
    def fixed(cls, reading: Reading) -> Fact:
        """A reading that a reboot does not change, such as the number of CPUs."""
        return cls(reading, reading)

    def side(self, facet: Facet) -> Reading:
        return self.current if facet is Facet.CURRENT else self.next_boot


class Desired(NamedTuple):
    """What the profile wants one setting to be."""

    value: Value
    op: str = "=="  # or ">=": numbers by size, text as versions; or "<=": numbers
    of: str = ""  # the key of the fact it is about, where that is not the goal's own key
    unit: str = ""  # "bytes" is shown as GiB
    live: bool = True  # can hostprep change the running system?
    persist: bool = True  # can hostprep change the next boot?
    refused_now: str = ""  # why the running system must not be changed, though it could be
    refused_next: str = ""  # why the next boot must not be changed, though it could be
    disrupts: str = ""  # what changing the running system does to others: needs --allow-disruption
    means: str = ""  # one line: what it means when this is not met
    fix: str = ""  # one line: what a person does where hostprep cannot
    final: str = ""  # why revert cannot take the change back, and what does
    waits: bool = False  # the next boot brings it only where something else that is pending does its part
    counted: Reading = None  # what `decide` itself has counted among the facts, where the goal is a number of them


Facts = Mapping[str, Fact]
Goals = Mapping[str, Desired]
Section = Any  # one check's part of a profile, as its SCHEMA describes it


class Status(str, enum.Enum):
    """What the truth table says of one setting."""

    PASS = "pass"
    VOLATILE = "volatile"  # right now, lost at the next boot
    PENDING = "pending-reboot"  # wrong now, right after a reboot
    POWER_CYCLE = "pending-power-cycle"  # wrong now, and a reboot is not enough: the power has to go off
    FAIL = "fail"
    UNKNOWN = "unknown"


class Finding(NamedTuple):
    """What one check concluded about one setting."""

    check: str
    key: str
    status: Status
    fact: Fact
    desired: Desired | None
    message: str = ""  # what it means
    fix: str = ""  # what to do
    advisory: bool = False
    waived: str = ""  # the reason and the last day of the waiver that covers it

    @property
    def name(self) -> str:
        """`check/key`: stable, consumers may rely on it."""
        return f"{self.check}/{self.key}"

    @property
    def counts(self) -> bool:
        """Does it decide whether the host is ready?"""
        return not self.advisory and not self.waived


class Change(NamedTuple):
    """One facet of one setting going from one value to another.

    There is no undo code: the undo of a change is the change with its ends swapped.
    """

    check: str
    key: str
    facet: Facet
    before: Value
    after: Value

    def inverse(self) -> Change:
        return self._replace(before=self.after, after=self.before)


class Suggestion(NamedTuple):
    """A section that a good host passes, for the profile of its siblings; None: there is nothing to ask for."""

    section: Section | None
    notes: Mapping[str, str] = {}  # for a person, by key of the section or by number in a list; "" is of all of it


class Waiver(NamedTuple):
    """A known finding that somebody accepted, with a reason, until the end of a day (UTC)."""

    finding: str  # a glob over check/key
    reason: str
    until: str  # YYYY-MM-DD
    owner: str = ""


class Profile(NamedTuple):
    """What a host should be."""

    name: str
    sha256: str  # of every file it was made of
    sections: Mapping[str, Section]
    description: str = ""
    advisory: tuple[str, ...] = ()
    assert_only: tuple[str, ...] = ()
    waivers: tuple[Waiver, ...] = ()
    valid_for: int = 3600  # seconds that a report may be relied on
    source: str = ""  # the file it came from


def to_json(reading: Reading) -> Any:
    """A reading as JSON holds it; unknown is an object that says why."""
    if isinstance(reading, Unknown):
        return {"unknown": reading.reason}
    return list(reading) if isinstance(reading, tuple) else reading


def from_json(data: Any) -> Reading:
    """The inverse of to_json()."""
    if isinstance(data, dict):
        return Unknown(str(data["unknown"]))
    return tuple(data) if isinstance(data, list) else data
