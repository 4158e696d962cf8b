"""Finding the checks: every module of `hostprep.checks`. It has four names, and up to eight more."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

from hostprep.host import Host
from hostprep.model import Change, Facts, Goals, Section, Suggestion

_FOLDER = os.path.join(os.path.dirname(__file__), "checks")


class Check(Protocol):
    """One subject. The module's docstring is its manual page."""

    NAME: str
    SCHEMA: dict[str, Any]  # JSON Schema of its section of a profile

    def inspect(self, host: Host) -> Facts:
        """Look. One thing that cannot be read is one Unknown fact."""

    def decide(self, facts: Facts, want: Section) -> Goals:
        """What each setting should be. Pure: it is not handed the host."""


class Fixable(Check, Protocol):
    """A check that can also change what it inspects."""

    def apply(self, host: Host, changes: Sequence[Change]) -> None:
        """Carry out changes, all of one facet. It executes and does not decide again."""


class Asking(Check, Protocol):
    """A check of things without end (firmware parameters, files): it is told which of them to look at."""

    def asked(self, want: Section, keys: Iterable[str]) -> Sequence[str]:
        """The names that a section of a profile (None: there is no profile) and the keys of facts speak of."""

    def inspect(self, host: Host, names: Sequence[str] = ()) -> Facts:
        """Look, also at what has these names."""


class Recreating(Check, Protocol):
    """A check of settings that no kernel keeps over a reboot, and that hostprep's own boot unit makes again."""

    def at_boot(self, facts: Facts) -> Sequence[Change]:
        """The changes that make the running system again what the boot record says. Pure."""


class Guarding(Check, Protocol):
    """A check whose changes may take something from others, also when they are taken back or made at boot."""

    def disrupts(self, facts: Facts, change: Change) -> str:
        """What making a change in the running system would take away, and from whom; empty if nothing. Pure."""


class Measuring(Check, Protocol):
    """A check of figures that are only measured when somebody asks for it: its looks read what was kept of that."""

    def measure(self, host: Host, want: Section, say: Callable[[str], None]) -> None:
        """Measure what a section asks for, and keep the results. `say` tells how far it is."""


class Suggesting(Check, Protocol):
    """A check that can say what a profile would ask of a host like this one."""

    def suggest(self, facts: Facts) -> Suggestion:
        """A section that this host passes, with nothing in it that a sibling cannot have too. Pure."""


Finish = Callable[[Host], None]


def names() -> list[str]:
    """The names of all checks, without importing any."""
    return sorted(f[:-3] for f in os.listdir(_FOLDER) if f.endswith(".py") and not f.startswith("_"))


def load(wanted: Iterable[str] | None = None) -> dict[str, Check]:
    """Import checks by name, or all of them."""
    chosen = names() if wanted is None else wanted
    return {name: cast(Check, importlib.import_module(f"hostprep.checks.{name}")) for name in chosen}


def fixable(check: Check) -> Fixable | None:
    """The check itself when it can change its subject."""
    return cast(Fixable, check) if hasattr(check, "apply") else None


def finisher(check: Check) -> Finish | None:
    """What has to run once after persistent changes of this check, and of others that share it (update-grub)."""
    return getattr(check, "finish", None)


def asking(check: Check) -> Asking | None:
    """The check itself when it has to be told what to look at."""
    return cast(Asking, check) if hasattr(check, "asked") else None


def recreating(check: Check) -> Recreating | None:
    """The check itself when the boot unit has to make its settings again."""
    return cast(Recreating, check) if hasattr(check, "at_boot") else None


def preparation(check: Check) -> Callable[[Host], None] | None:
    """What makes the device nodes that a check needs to look, at boot: a mere look does not make any."""
    return getattr(check, "prepare", None)


def guarding(check: Check) -> Guarding | None:
    """The check itself when it can tell who would be disturbed by a change."""
    return cast(Guarding, check) if hasattr(check, "disrupts") else None


def measuring(check: Check) -> Measuring | None:
    """The check itself when it has something to measure, which takes long and disturbs others."""
    return cast(Measuring, check) if hasattr(check, "measure") else None


def suggesting(check: Check) -> Suggesting | None:
    """The check itself when it can say what a profile would ask of a host like this one."""
    return cast(Suggesting, check) if hasattr(check, "suggest") else None


def moving(check: Check) -> tuple[str, ...]:
    """Globs over the keys of facts that any two looks, or any two hosts, are expected to differ in."""
    found: tuple[str, ...] = getattr(check, "MOVING", ())
    return found


def manual(check: Check) -> str:
    """The manual page: the module's docstring."""
    return (check.__doc__ or "").strip()


def fingerprint() -> str:
    """Changes whenever a check does: what was validated by other SCHEMAs must be validated again."""
    parts = []
    for name in names():
        info = os.stat(os.path.join(_FOLDER, f"{name}.py"))
        parts.append(f"{name}:{info.st_mtime_ns}:{info.st_size}")
    return " ".join(parts)


def schemas(checks: Mapping[str, Check]) -> dict[str, dict[str, Any]]:
    return {name: check.SCHEMA for name, check in checks.items()}
