"""Whether other hosts answer, and how large a packet may be on the way to them: by ping(8) and the neighbour table."""

from __future__ import annotations

import re
import time

from hostprep.errors import CommandFailed, HostError
from hostprep.host import Host
from hostprep.net.addresses import ip

SETTLE_S = 10.0  # until the kernel knows of a neighbour: five seconds of delay, and three probes (arp(7))
MTUS = (1280, 1400, 1420, 1450, 1460, 1480, 1492, 1500, 2000, 4000, 4500, 8000, 8900, 8950, 9000)


def ping(host: Host, *words: str) -> tuple[bool, str]:
    """Did anything come back? And what ping(8) said: of its exit codes 1 is no reply, 2 an error."""
    try:
        return True, host.run("ping", "-n", *words, timeout=8)
    except CommandFailed as e:
        if e.status == 2 and not re.search(r"unreachable|no route|not known", e.output, re.I):
            raise HostError(f"ping: {_last_line(e.output)}") from e
        if e.status not in (1, 2):
            raise
        told = re.findall(r"(?:From \S+ icmp_seq=\d+ |ping: )(.+)", e.output)
        return False, told[-1].strip() if told else "no answer to ping"


def _last_line(text: str) -> str:
    return next(iter(text.strip().splitlines()[-1:]), "")


def neighbour(host: Host, address: str) -> tuple[bool, str]:
    """Does a neighbour answer that has just been pinged in vain: by ARP, or by IPv6's neighbour discovery? And how."""
    if ":" in address:
        state = _discovered(host, address)
        return state == "REACHABLE", f"the kernel holds it for {state.lower() or 'no neighbour'}"
    try:
        way = next(iter(ip(host, "route", "get", address)), {})
    except CommandFailed as e:
        if "unreachable" not in e.output.lower():
            raise
        return False, "there is no route to it"
    if "gateway" in way or not way.get("prefsrc"):
        return False, "it is no neighbour, but behind another gateway"
    device = str(way.get("dev"))
    answers = host.answers_arp(address, device, str(way["prefsrc"]))
    return answers, "it answers ARP" if answers else f"nor to ARP on {device}"


def _discovered(host: Host, address: str) -> str:
    """What the kernel says of an IPv6 neighbour, when it has made up its mind."""
    end = time.monotonic() + SETTLE_S
    while True:
        entries = ip(host, "-6", "neighbour", "show", "to", address)
        state = next((str(s) for entry in entries for s in entry.get("state", ())), "")
        if state not in ("DELAY", "PROBE", "INCOMPLETE") or time.monotonic() > end:
            return state
        time.sleep(0.3)


def largest(host: Host, address: str, wanted: int) -> tuple[int | None, str]:
    """The largest packet up to `wanted` that gets through, None if none does, and who says so."""
    headers = 48 if ":" in address else 28  # IP, and eight bytes of ICMP

    def passes(size: int) -> tuple[bool, str]:
        try:
            words = ("-c", "2", "-i", "0.2", "-W", "1", "-M", "do", "-s", str(size - headers), address)
            return True, host.run("ping", "-n", *words, timeout=6)
        except CommandFailed as e:
            if e.status not in (1, 2):
                raise
            return False, e.output

    ok, said = passes(wanted)
    if ok:
        return wanted, ""
    told = [int(mtu) for mtu in re.findall(r"mtu ?= ?(\d+)", said) if headers < int(mtu) < wanted]
    if told and passes(min(told))[0]:
        router = re.search(r"From (\S+) .*mtu", said)
        who = f"{router[1]} on the way" if router else "this host's interface, or what it has learnt of the path,"
        return min(told), f"{who} takes no more than {min(told)}"
    answers, said = ping(host, "-c", "2", "-i", "0.2", "-W", "1", address)
    if not answers:
        return None, said
    sizes = [size for size in MTUS if size < wanted]
    passed = None
    while sizes:
        middle = sizes[len(sizes) // 2]
        if passes(middle)[0]:
            passed = middle
            sizes = [size for size in sizes if size > middle]
        else:
            sizes = [size for size in sizes if size < middle]
    if passed is None:
        return None, "small packets get through, but none that could be measured"
    return passed, "larger packets vanish on the way, and nobody says so (a black hole)"
