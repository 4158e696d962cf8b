"""Rebooting, where that was asked for: once for everything that waits, and never twice for the same cause."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from signal import SIGTERM

from hostprep import jobs
from hostprep.engine import disturbs
from hostprep.errors import ChangeFailed, CommandFailed, HostError, UsageError
from hostprep.host import Host
from hostprep.host.process import clean
from hostprep.journal import Cause, Journal
from hostprep.model import Finding, Status, Unknown
from hostprep.report import PENDING, POWER_CYCLE, READY, Report

NAME = "reboot"  # what --allow-disruption calls it
SHOWN = 3  # so many settings are named, the rest are counted
# A kernel that is loaded for kexec, or a root in /run/nextroot, makes systemd skip the firmware and the boot loader
# (systemctl(1), `reboot`): neither GRUB's arguments nor a card's settings would come.
WHOLE = ("env", "SYSTEMCTL_SKIP_AUTO_KEXEC=1", "SYSTEMCTL_SKIP_AUTO_SOFT_REBOOT=1", "systemctl", "reboot")
LOGIND = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager")
INHIBITORS = ("busctl", "--json=short", "call", *LOGIND, "ListInhibitors")
DEADLINE = 60.0  # seconds


def must_be_possible(host: Host) -> None:
    """UsageError, before anything is changed, where nobody could be asked to reboot this host."""
    if not host.exists("/run/systemd/system"):
        hint = "Leave --reboot out, and reboot it yourself when apply has said that something waits for it."
        raise UsageError("--reboot asks systemd, which does not run this host", hint)


def causes(made: Report) -> list[Cause]:
    """What a reboot is for: each setting that waits for it, by what it is and what it will be."""
    return [
        Cause(f.check, f.key, f.fact.current, f.fact.next_boot)
        for f in made.findings
        if f.counts and f.status is Status.PENDING and not (f.desired and f.desired.waits)
    ]


def obstacle(made: Report, journal: Journal) -> str:
    """Why no reboot makes this host ready; "" where one does."""
    if made.verdict == READY:
        return "nothing waits for a reboot"
    if made.verdict == POWER_CYCLE:
        waiting = names([f for f in made.findings if f.counts and f.status is Status.POWER_CYCLE])
        return f"{waiting} {_verb(waiting, 'waits', 'wait')} for a power cycle, which brings the rest too"
    if made.verdict != PENDING:
        bad = names([f for f in made.findings if f.counts and f.status in (Status.FAIL, Status.UNKNOWN)])
        return f"it would not make this host ready, because of {bad}" if bad else "it would not make this host ready"
    if not made.boot_id:
        return "which boot this is cannot be told, so neither whether it was rebooted for this before"
    wanted = causes(made)
    if wanted and set(wanted) <= journal.rebooted_for():
        told = _listed([f"{c.check}/{c.key}" for c in wanted])
        return (
            f"hostprep has rebooted this host for {told} before, which still {_verb(told, 'waits', 'wait')}: "
            "power-cycle it, off and on again, or look what undoes it at boot"
        )
    return ""


def disruption(host: Host, allowed: Collection[str]) -> str:
    """Whom a reboot now would disturb; "" where nobody, or where that is allowed.

    Nobody is allowed to cut off the installation of packages: dpkg leaves a host that may not boot.
    """
    if holder := _held_up(host):
        return holder
    if NAME in allowed:
        return ""
    running = jobs.listing(host)
    if isinstance(running, Unknown):
        running = f"what runs on this host, which cannot be told ({running.reason})"
    return disturbs(running, NAME) if running else ""


def _held_up(host: Host) -> str:
    """Who holds up the shutdown of this host (systemd-inhibit(1)), as apt does while dpkg runs; "" where nobody.

    systemctl asks that of nobody who is root. Where there is no logind, nobody can hold anything up.
    """
    try:
        answer = json.loads(host.run(*INHIBITORS))["data"][0]
        for what, who, why, mode, _, pid in answer:
            if "shutdown" in what.split(":") and mode.startswith("block"):
                return clean(f"{who} (pid {pid}) holds it up: {why}")
    except (HostError, ValueError, TypeError, LookupError):
        pass
    return ""


def reboot(host: Host) -> None:
    """Ask systemd for a whole reboot: firmware, boot loader and all.

    Where there is no logind to ask, the shutdown has begun before systemctl ends, and ends it.
    """
    try:
        host.run(*WHOLE, timeout=DEADLINE)
    except HostError as e:
        if isinstance(e, CommandFailed) and e.status == -SIGTERM:
            return
        raise ChangeFailed(f"systemd did not start the reboot: {e}", "Reboot this host: systemctl reboot") from e


def names(findings: Sequence[Finding]) -> str:
    """A few of the findings, in a sentence."""
    return _listed([f.name for f in findings])


def _listed(words: Sequence[str]) -> str:
    if len(words) > SHOWN:
        return f"{', '.join(words[:SHOWN])} and {len(words) - SHOWN} more"
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1] if words else "")))


def _verb(listed: str, one: str, many: str) -> str:
    return many if " and " in listed else one
