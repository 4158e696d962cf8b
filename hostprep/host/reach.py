"""What answers on the network: the resolver, as every program here asks it, and a neighbour that is asked by ARP.

The resolver is asked as getaddrinfo(3) asks (nsswitch.conf, /etc/hosts, name servers), and nothing bounds how long that
takes: ask in a child that has a deadline.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from typing import NamedTuple

from hostprep.errors import HostError

# getaddrinfo(3): these say something of the name, or of its servers; others (EAI_MEMORY, EAI_SYSTEM) of this process.
_NOTHING = {
    socket.EAI_NONAME: "no such name",
    socket.EAI_NODATA: "the name has no address",
    socket.EAI_AGAIN: "no name server gives an answer",
    socket.EAI_FAIL: "the name server refuses or fails",
}


_ARP = 0x0806  # linux/if_ether.h: ETH_P_ARP
_REQUEST, _REPLY = 1, 2  # RFC 826
_ASK_EVERY_S = 1.0


class Resolved(NamedTuple):
    """What a name or an address resolves to; where that is nothing, `why`."""

    found: tuple[str, ...]
    why: str = ""


def addresses_of(name: str) -> Resolved:
    """The addresses of a name, in the resolver's order."""
    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except socket.gaierror as e:
        return _nothing(name, e)
    except UnicodeError:  # a label that is empty, or longer than 63
        return Resolved((), "no such name")
    except OSError as e:
        raise HostError(f"{name}: {e.strerror}", code=e.errno or 0) from e
    return Resolved(tuple(dict.fromkeys(str(answer[4][0]) for answer in answers)))


def names_of(address: str) -> Resolved:
    """The name of an address: the first one alone, as getnameinfo(3) tells it."""
    try:
        name, _ = socket.getnameinfo((address, 0), socket.NI_NAMEREQD)
    except socket.gaierror as e:
        return _nothing(address, e)
    except OSError as e:
        raise HostError(f"{address}: {e.strerror or e}", code=e.errno or 0) from e
    return Resolved((name,))


def answers_arp(address: str, device: str, source: str, seconds: float) -> bool:
    """Does a neighbour answer ARP, asked on this interface from this IPv4 address of ours?

    The kernel's table does not tell: it believes in a neighbour for up to 45 s after it has gone (arp(7)).
    """
    wanted = socket.inet_aton(address)
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ARP)) as s:
            s.bind((device, _ARP))
            mac = s.getsockname()[4]
            if len(mac) != 6:
                raise HostError(f"{device}: is no Ethernet, and has no ARP")
            request = struct.pack(
                "!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, _REQUEST, mac, socket.inet_aton(source), b"", wanted
            )
            poll = select.poll()
            poll.register(s, select.POLLIN)
            end = time.monotonic() + seconds
            again = 0.0
            while (now := time.monotonic()) < end:
                if now >= again:
                    s.sendto(request, (device, _ARP, 0, 0, b"\xff" * 6))
                    again = now + _ASK_EVERY_S
                if poll.poll(max(min(again, end) - now, 0) * 1000):
                    told = s.recv(64)
                    if len(told) >= 28 and told[6:8] == struct.pack("!H", _REPLY) and told[14:18] == wanted:
                        return True
    except OSError as e:
        why = "needs root" if e.errno in (errno.EPERM, errno.EACCES) else e.strerror
        raise HostError(f"ARP for {address} on {device}: {why}", code=e.errno or 0) from e
    return False


def _nothing(asked: str, e: socket.gaierror) -> Resolved:
    if e.errno not in _NOTHING:
        raise HostError(f"{asked}: {e.strerror}")
    return Resolved((), _NOTHING[e.errno])
