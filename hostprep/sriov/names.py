"""Is it a physical function (PF) that a file of the host names?

Three answers: True, False, and None where it cannot be told.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

from hostprep.errors import HostError
from hostprep.sriov.files import Look, Pf


def all_of(answers: Iterable[bool | None]) -> bool | None:
    answers = list(answers)
    return False if False in answers else None if None in answers else True


def is_named(look: Look, pf: Pf, name: str) -> bool | None:
    """Is the netdev of a PF of this name? Altnames are no names to sysfs; a PF elsewhere may have any."""
    if not pf.names:
        return None if not look.host.exists(f"/sys/class/net/{name}") else False
    return True if name == pf.names[0] else None if name in pf.names else False


def matches_name(look: Look, pf: Pf, pattern: str) -> bool | None:
    if not re.search(r"[*?\[]", pattern):
        return is_named(look, pf, pattern)
    return None if not pf.names and pattern != "*" else fnmatch.fnmatchcase((*pf.names, "")[0], pattern)


def netdev_attribute(look: Look, pf: Pf, name: str) -> str:
    """An attribute of the netdev in sysfs; '' where it cannot be told."""
    try:
        return (look.host.read(f"/sys/class/net/{pf.names[0]}/{name}") or "") if pf.names else ""
    except HostError:
        return ""


def has_mac(look: Look, pf: Pf, mac: str) -> bool | None:
    """By its permanent address, which a bond or a person may have covered with another (addr_assign_type 3)."""
    own = re.sub(r"[^0-9a-f]", "", pf.mac.lower())
    if netdev_attribute(look, pf, "addr_assign_type") == "3":
        own = re.sub(r"[^0-9a-f]", "", netdev_attribute(look, pf, "bonding_slave/perm_hwaddr").lower())
    return re.sub(r"[^0-9a-f]", "", mac.lower()) == own if own else None


def has_path(pf: Pf, pattern: str) -> bool | None:
    """udev's ID_PATH. `platform-...-pci-ADDRESS`, of ARM, may be any."""
    if fnmatch.fnmatchcase(f"pci-{pf.address}", pattern):
        return True
    return None if pattern.endswith(f"-pci-{pf.address}") or pattern.startswith(("platform-", "acpi-")) else False


def has_driver(pf: Pf, pattern: str) -> bool | None:
    return fnmatch.fnmatchcase(pf.driver, pattern) if pf.driver else None


def has_kernel_name(look: Look, pf: Pf, pattern: str) -> bool | None:
    """The name before udev renames: only where it was not renamed (name_assign_type 4) is that today's."""
    if pattern == "*":
        return True
    matched = matches_name(look, pf, pattern)
    if netdev_attribute(look, pf, "name_assign_type") != "4":
        return matched
    by_kernel = any(fnmatch.fnmatchcase(f"{kind}{n}", pattern) for kind in ("eth", "ib") for n in range(32))
    return None if matched is not False or by_kernel else False


def in_sysfs(look: Look, pf: Pf, path: str, globs: bool = False) -> bool | None:
    """Is this path, with `*` for what is not known of it, the sriov_numvfs of a PF? `globs`: are all matches meant?"""
    directory = re.sub(r"%\w", "*", path).rpartition("/")[0]
    if not directory.lstrip("*"):
        return None
    if name := re.search(r"/(?:class/)?net/([^/]+)/device$", directory):
        matched = matches_name(look, pf, name[1])
        return None if matched and re.search(r"[*?\[]", name[1]) and not globs else matched
    last = directory.rpartition("/")[2]
    if rdma := re.search(r"/infiniband/([^/*]+)/device$", directory):
        last = look.host.resolve(f"/sys/class/infiniband/{rdma[1]}/device").rpartition("/")[2]
    if re.fullmatch(r"[0-9a-fA-F]{4,}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]", last):
        return last.lower() == pf.address
    if last == "device":
        return None
    if re.search(r"[*?\[]", last):
        return (True if globs else None) if fnmatch.fnmatchcase(pf.address, last.lower()) else False
    return None if rdma else False


def any_of(answers: Iterable[bool | None]) -> bool | None:
    answers = list(answers)
    return True if True in answers else None if None in answers else False
