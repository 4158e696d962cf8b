"""What a machine reads: one module per format, found by its name.

Each has `render(report)`. One whose readers have to be told also where no report can be relied on has
`unusable(error)` too.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from hostprep.errors import ReportUnusable
from hostprep.report import Report, dumps

_MODULES = ("prometheus", "nagios", "junit", "html", "make", "nfd", "npd")
NAMES = ("json", *_MODULES)


def of(name: str) -> Callable[[Report], str]:
    """The function that says a report in this format."""
    return dumps if name == "json" else _module(name).render


def unusable(name: str) -> Callable[[ReportUnusable], str] | None:
    """The function that tells this format's readers that there is no report to rely on, if they have to be told."""
    return getattr(_module(name), "unusable", None) if name in _MODULES else None


def _module(name: str) -> Any:
    return importlib.import_module(f"hostprep.formats.{name}")
