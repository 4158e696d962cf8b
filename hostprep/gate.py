"""The gate of a cluster: the report that can be relied on here and now, and waiting for one that says ready."""

from __future__ import annotations

import time
from collections.abc import Callable

from hostprep import profile, profile_files, state
from hostprep.errors import ReportUnusable
from hostprep.host import Host
from hostprep.model import Finding, Status
from hostprep.report import READY, Report, usable

LOOK_AGAIN_S = 0.5  # a report that was replaced is seen after this
_RELY_AGAIN_S = 10.0  # one that was not may have become too old, or its profile another one, after this

Seen = Report | ReportUnusable


def relied_on(wanted: str | None = None, max_age: int | None = None, *, any_profile: bool = False) -> Report:
    """The published report, if it is one of this machine, boot and profile, whole and fresh.

    `wanted` is the name or file of the profile that is expected: without one, that by which `hostprep check` judges.
    Where a site has none, `any_profile` will do, for a person who reads whose it is. Raises ReportUnusable, or
    ProfileError where the profile cannot be read.
    """
    lenient = any_profile and wanted is None and not profile_files.of_this_site()
    expected = None if lenient else profile.load(wanted)
    return usable(state.published(), state.identity(Host()), max_age, expected)


def until_ready(
    look: Callable[[], Report],
    revision: Callable[[], object],
    timeout: float,
    progress: Callable[[Seen, float], None] = lambda seen, left: None,
) -> Seen:
    """Look until the report is ready, or `timeout` seconds have passed; what was seen last.

    `look` gives a report that can be relied on or raises ReportUnusable. It is asked again when `revision` has
    changed, and now and then. `progress` gets what was seen, and the seconds that are left.
    """
    end = time.monotonic() + timeout
    while True:
        before, seen_at = revision(), time.monotonic()
        seen = _seen(look)
        if isinstance(seen, Report) and seen.verdict == READY:
            return seen
        while True:
            left = end - time.monotonic()
            if left <= 0:
                return _seen(look) if revision() != before else seen
            progress(seen, left)
            time.sleep(min(LOOK_AGAIN_S, left))
            if revision() != before or time.monotonic() - seen_at >= _RELY_AGAIN_S:
                break


def _seen(look: Callable[[], Report]) -> Seen:
    try:
        return look()
    except ReportUnusable as e:
        return e


def missing(report: Report) -> list[Finding]:
    """What keeps a host from being ready, what decides most first."""
    order = (Status.FAIL, Status.UNKNOWN, Status.POWER_CYCLE, Status.PENDING)
    bad = [f for f in report.findings if f.counts and f.status in order]
    return sorted(bad, key=lambda f: order.index(f.status))
