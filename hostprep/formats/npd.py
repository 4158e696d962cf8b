"""One line for node-problem-detector, which runs `hostprep report --format npd` as a custom plug-in.

It takes at most 80 bytes of stdout (max_output_length), and the exit status: 0 for no problem, 1 for one, all else for
unknown. Its condition HostNotReady is then False, True or Unknown. What of this comes from its own ways:

It shows the reason of the condition's default with Unknown too (generateStatus), so that reason must not say that the
host is ready; and before its first look, it would say the default as what it has found, but for skip_initial_status.
Its metrics know no Unknown: problem_gauge is 0 then, as it is for a host that is ready, and so metricsReporting is off;
`hostprep report --format prometheus` is what can be relied on. Where it is gone, the condition stays as it was: a
reader looks at lastHeartbeatTime too.
"""

from __future__ import annotations

from hostprep.model import Finding, Status
from hostprep.render import line, verdict
from hostprep.report import READY, Report

_LONGEST = 80
_WORDS = {  # what decides comes first
    Status.FAIL: "failed",
    Status.UNKNOWN: "unknown",
    Status.POWER_CYCLE: "needs a power cycle",
    Status.PENDING: "needs a reboot",
}


def render(report: Report) -> str:
    """The worst finding, and how many more keep the host from being ready."""
    bad = [f for f in report.findings if f.counts and f.status in _WORDS]
    if report.verdict == READY or not bad:
        return _fit(verdict(report)) + "\n"
    worst = min(bad, key=lambda f: list(_WORDS).index(f.status))
    more = f" (+{len(bad) - 1} more)" if len(bad) > 1 else ""
    return _fit(_said(worst), more) + "\n"


def _said(f: Finding) -> str:
    """What it is comes before what it means: there is not much room."""
    return f"{f.name} {_WORDS[f.status]}: {f.message}" if f.message else f"{f.name} {_WORDS[f.status]}"


def _fit(text: str, end: str = "") -> str:
    """One line of ASCII: others are cut by the byte, and a character that was cut in two is no UTF-8."""
    room = _LONGEST - len(end)
    told = line(text).encode("ascii", "replace").decode().strip()
    return (told if len(told) <= room else told[: room - 3].rstrip() + "...") + end
