"""Finding the checks: every module of `hostprep.checks`, which has four names, five or six."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

from hostprep.host import Host
from hostprep.model import Change, Facts, Goals, Section

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
