"""Through which proxy a program written in Go goes, by its environment. Pure.

https://pkg.go.dev/golang.org/x/net/http/httpproxy, which docker, podman and containerd follow.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping


def proxy_of(environment: Mapping[str, str], scheme: str, host: str, port: int) -> str:
    """The proxy's URL; empty where the server is asked directly."""
    url = _either(environment, f"{scheme.upper()}_PROXY")
    if not url or _direct(_either(environment, "NO_PROXY"), host, port):
        return ""
    return url if "://" in url else f"http://{url}"


def without_login(url: str) -> str:
    """A proxy's URL as it may be shown."""
    return re.sub(r"//[^/@]*@", "//", url)


def _either(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name) or environment.get(name.lower()) or ""


def _direct(no_proxy: str, host: str, port: int) -> bool:
    """A network holds only for a host that is written as an address: names are not looked up for it."""
    name = host.lower().rstrip(".").strip("[]")
    address = _address(name)
    if name == "localhost" or (address is not None and address.is_loopback):
        return True
    return any(_covers(word, name, address, port) for word in no_proxy.lower().replace(" ", "").split(",") if word)


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _covers(word: str, name: str, address: _Address | None, port: int) -> bool:
    if word == "*":
        return True
    if "/" in word:
        try:
            return address is not None and address in ipaddress.ip_network(word, strict=False)
        except ValueError:
            return False
    bare = word.strip("[]")
    if _address(bare) is None:
        bare, _, given = word.rpartition(":") if re.search(r":[0-9]+$", word) else (word, "", "")
        if given and int(given) != port:
            return False
        bare = bare.strip("[]")
    if (meant := _address(bare)) is not None:
        return meant == address
    if bare.startswith("*."):
        bare = bare[1:]
    return name.endswith(bare) if bare.startswith(".") else name == bare or name.endswith(f".{bare}")


def _address(text: str) -> _Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
