"""The time services of Linux: which server they follow, and how far off it the clock is."""

from __future__ import annotations

import re

from hostprep.errors import CommandFailed, HostError
from hostprep.host import Host
from hostprep.model import Unknown
from hostprep.net.addresses import plain


def follows(host: Host) -> tuple[str | None, str | None, int | Unknown | None]:
    """Of the first service that answers: its name, the server that it follows, and microseconds from that."""
    for service, ask in (("chrony", _chrony), ("ntp", _ntp), ("timesyncd", _timesyncd)):
        try:
            answer = ask(host)
        except CommandFailed:  # it does not run
            continue
        except HostError as e:
            if "not installed" in str(e):
                continue
            raise
        if answer is not None:
            return service, *answer
    return None, None, None


def _chrony(host: Host) -> tuple[str | None, int | None]:
    """chronyc(1): -c is comma-separated; reference id, its address, stratum, time, offset in seconds, ..., leap."""
    fields = host.run("chronyc", "-n", "-c", "tracking", timeout=5).strip().split(",")
    if len(fields) < 14 or not re.fullmatch(r"-?[0-9.]+(e-?\d+)?", fields[4]):
        raise HostError("chronyc: tracking is not as expected")
    if fields[-1] == "Not synchronised":
        return None, None
    return fields[1] or "a local clock", round(abs(float(fields[4])) * 1e6)


def _ntp(host: Host) -> tuple[str | None, int | None]:
    """ntpq(1): the peer that is followed is marked `*`, or `o` with a pulse; its ninth column is the offset in ms."""
    text = host.run("ntpq", "-pn", timeout=5)
    if "=====" not in text and "No association" not in text:
        raise HostError("ntpq: the list of peers is not as expected")
    for line in text.splitlines():
        fields = line[1:].split()
        if line[:1] in ("*", "o") and len(fields) >= 10 and re.fullmatch(r"[-+]?[0-9.]+", fields[8]):
            return plain(fields[0]), round(abs(float(fields[8])) * 1000)
    return None, None


def _timesyncd(host: Host) -> tuple[str | None, Unknown | None] | None:
    """None where it does not run: asking would start it, over D-Bus."""
    if not host.exists("/run/systemd/timesync"):
        return None
    text = host.run("timedatectl", "show-timesync", timeout=5)
    server = re.search(r"^ServerAddress=(.+)$", text, re.M)
    if not server or not host.exists("/run/systemd/timesync/synchronized"):
        return None, None
    return plain(server[1]), Unknown("systemd-timesyncd does not tell how far off the clock is")
