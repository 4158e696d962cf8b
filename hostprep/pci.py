"""PCI functions as sysfs shows them, and the one way in which a profile selects them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeVar

from hostprep.errors import HostError
from hostprep.host import Host, attempt
from hostprep.model import Fact, Facts, Reading, Unknown

DEVICES = "/sys/bus/pci/devices"
NETWORK = 0x02  # base class, PCI Code and ID Assignment
SELECTOR = {
    "description": "a PCI address, a network interface's name or altname, vendor:device, a driver; or a glob of these",
    "type": "string",
    "pattern": r"^[^\s/\x00-\x1f]+$(?!\n)",
}
_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
# Of an uplink, as drivers name its port: `p0`, of a port that is split `p0s1`; representors are `pf0vf3`.
_UPLINK = re.compile(r"p\d+(s\d+)?")

T = TypeVar("T")


class Function(NamedTuple):
    """One PCI function."""

    address: str  # 0000:17:00.0
    vendor_device: str  # 15b3:1019
    driver: str  # empty while none is bound
    netdevs: tuple[str, ...]  # those that this network namespace shows
    vfs: tuple[str, ...] = ()  # the addresses of its virtual functions, by index; empty where a link is missing

    @property
    def path(self) -> str:
        return f"{DEVICES}/{self.address}"


def network_functions(host: Host) -> list[Function]:
    """The physical functions of network class, by address. Virtual ones are told by `physfn`, never by their id.

    Raises HostError when the bus cannot be listed. A PF comes before its VFs, whose routing ids are larger: so those
    are known by then, and cost nothing more.
    """
    found: list[Function] = []
    virtual: set[str] = set()
    for address in host.names(DEVICES):
        if address in virtual or class_code(host, address) >> 16 != NETWORK:
            continue
        if not host.exists(f"{DEVICES}/{address}/physfn"):
            found.append(function(host, address))
            virtual.update(found[-1].vfs)
    return found


def class_code(host: Host, address: str) -> int:
    """The class, subclass and interface of a function; 0 when it has gone."""
    path = f"{DEVICES}/{address}/class"
    text = host.read(path) or "0"
    try:
        return int(text, 16)
    except ValueError:
        raise HostError(f"{path}: not a number: {text[:20]!r}") from None


def function(host: Host, address: str) -> Function:
    """One physical function."""
    path = f"{DEVICES}/{address}"
    bound = driver(host, address)
    return Function(address, vendor_device(host, address), bound, netdevs(host, path), virtual_functions(host, address))


def vendor_device(host: Host, address: str) -> str:
    """15b3:1019; question marks for what has gone."""
    ids = [host.read(f"{DEVICES}/{address}/{name}") or "0x????" for name in ("vendor", "device")]
    return ":".join(text.removeprefix("0x") for text in ids)


def driver(host: Host, address: str) -> str:
    """The driver that is bound to a function, or ''."""
    return (host.link(f"{DEVICES}/{address}/driver") or "").rpartition("/")[2]


def virtual_functions(host: Host, address: str) -> tuple[str, ...]:
    """The addresses of a PF's VFs by index, read and never computed: ARI and bus numbers move them (R15)."""
    path = host.resolve(f"{DEVICES}/{address}")  # once: with a thousand VFs each link on the way counts
    numbers = sorted(int(name[6:]) for name in host.names(path) if name.startswith("virtfn") and name[6:].isdigit())
    return tuple((host.link(f"{path}/virtfn{n}") or "").rpartition("/")[2] for n in numbers)


def netdevs(host: Host, path: str) -> tuple[str, ...]:
    """The network interfaces of a function, the uplink alone where representors are listed beside it (since 5.8)."""
    names = host.names(f"{path}/net")
    if len(names) < 2:
        return tuple(names)
    uplinks = [name for name in names if _UPLINK.fullmatch(_port(host, path, name))]
    return tuple(uplinks or names)


def interfaces(host: Host) -> dict[str, list[str]]:
    """The network interfaces of this namespace by the PCI address of their device: one look for all functions."""
    return children(host, "/sys/class/net")


def children(host: Host, folder: str) -> dict[str, list[str]]:
    """The names of a class or bus in sysfs, by the PCI address of the function that each belongs to."""
    found: dict[str, list[str]] = {}
    for name in host.names(folder):
        above = (host.link(f"{folder}/{name}") or "").split("/")[:-1]
        if address := next(filter(_ADDRESS.fullmatch, reversed(above)), ""):
            found.setdefault(address, []).append(name)
    return found


def _port(host: Host, path: str, name: str) -> str:
    port = attempt(host.read, f"{path}/net/{name}/phys_port_name")  # EOPNOTSUPP where a driver has none
    return port if isinstance(port, str) else ""


# -- selecting ------------------------------------------------------------------------------------


def describe(f: Function, altnames: Sequence[str] | Unknown = ()) -> Facts:
    """What a selector goes by, as facts."""
    told = () if isinstance(altnames, Unknown) else altnames
    facts = {
        f"{f.address}/id": Fact.fixed(f.vendor_device),
        f"{f.address}/driver": Fact.fixed(f.driver or None),
        f"{f.address}/names": Fact.fixed((*f.netdevs, *told)),
    }
    return facts | ({f"{f.address}/altnames": Fact.fixed(altnames)} if isinstance(altnames, Unknown) else {})


def addresses(facts: Facts) -> list[str]:
    """Every function that was described, by address."""
    return [key.removesuffix("/id") for key in facts if key.endswith("/id")]


def select(facts: Facts, selector: str) -> list[str]:
    """The addresses of the functions that a selector matches.

    It is compared with the address (also without its domain 0000), vendor:device, driver and names of each. Where it is
    a glob, any of these may match; PCI addresses and ids are compared in lower case, as the kernel writes them.
    """
    return [a for a in addresses(facts) if any(_matches(word, selector) for word in _words(facts, a))]


def alike(facts: Facts, said: Mapping[str, T]) -> list[tuple[str, int, T]]:
    """Selectors for functions of which something is said: by vendor:device where all of that device have the same said,
    else by address; with how many each matches."""
    found: dict[str, tuple[str, int, T]] = {}
    for address, what in said.items():
        device = facts[f"{address}/id"].current
        same = select(facts, device) if isinstance(device, str) and "?" not in device else []
        whole = bool(same) and all(said.get(other) == what for other in same)
        selector = str(device) if whole else address
        found[selector] = (selector, len(same) if whole else 1, what)
    return list(found.values())


def count(facts: Facts, selector: str) -> int | Unknown:
    """How many functions a selector matches; unknown where none does, and a name could not be read."""
    found = len(select(facts, selector))
    unread = [facts[key].current for a in addresses(facts) if (key := f"{a}/altnames") in facts]
    return next((reason for reason in unread if isinstance(reason, Unknown) and not found), found)


def nothing(facts: Facts, selector: str, what: str) -> str:
    """A sentence for a selector that matches nothing: what there is to choose from."""
    there = [_shown(facts, a) for a in addresses(facts)]
    return f"No {what} matches {selector}. There is " + (f"{_list(there)}." if there else "none at all.")


def _words(facts: Facts, address: str) -> Iterable[str]:
    yield address
    yield address.removeprefix("0000:")
    names = facts[f"{address}/names"].current
    for word in (facts[f"{address}/id"].current, facts[f"{address}/driver"].current, *_tuple(names)):
        if isinstance(word, str):
            yield word


def _matches(word: str, selector: str) -> bool:
    return fnmatchcase(word, selector) or (":" in word and fnmatchcase(word, selector.lower()))


def _shown(facts: Facts, address: str) -> str:
    driver, names = (facts[f"{address}/{name}"].current for name in ("driver", "names"))
    more = [facts[f"{address}/id"].current, driver or "no driver", *_tuple(names)]
    return f"{address} ({', '.join(str(word) for word in more)})"


def _tuple(names: Reading) -> tuple[str, ...]:
    return names if isinstance(names, tuple) else ()


def _list(items: Sequence[str], most: int = 8) -> str:
    return "; ".join([*items[:most], *([f"and {len(items) - most} more"] if len(items) > most else [])])
