"""udev rules that make virtual functions, or call what does (udev(7))."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence

from hostprep.errors import HostError
from hostprep.model import Unknown
from hostprep.sriov.files import (
    ATTRIBUTES,
    LIB_DIRS,
    Found,
    Look,
    Owner,
    Pf,
    folders_of,
    layered,
    logical_lines,
    text_of,
)
from hostprep.sriov.names import all_of, any_of, has_driver, has_kernel_name, has_mac, has_path, netdev_attribute
from hostprep.sriov.scripts import assigned, called, writes_of, written

_TOKEN = re.compile(r'(\w+)(?:\{([^}]*)\})?\s*(==|!=|\+=|-=|:=|=)\s*[ei]?"((?:[^"\\]|\\.)*)"')
_PCI_ATTRIBUTES = ("vendor", "device", "subsystem_vendor", "subsystem_device", "class")
_Token = tuple[str, str, str, str]


def udev_rules(look: Look) -> Found:
    """udev(7): ATTR{device/sriov_numvfs}="8", or a RUN that writes it, or that calls a script of the site's."""
    folders = folders_of(look, "/etc/udev/rules.d", *(f"{d}/udev/rules.d" for d in LIB_DIRS))
    for path in layered(look, "udev rule", folders, ".rules").values():
        of_site = path.startswith("/etc/")
        text = text_of(look, "udev rule", path, *ATTRIBUTES, *(("RUN",) if of_site else ()))
        lines = [(n, line) for n, line in logical_lines(text) if not line.startswith("#")]
        rules = [(number, _TOKEN.findall(line)) for number, line in lines]
        for position, (number, tokens) in enumerate(rules):
            if not any(a in part for token in tokens for a in ATTRIBUTES for part in token) and not (
                of_site and any(key == "RUN" for key, *_ in tokens)
            ):
                continue
            for pf in look.pfs:
                conditions: Iterable[bool | None] = (_udev_token(look, pf, token, tokens) for token in tokens)
                if any(t[0] == "SUBSYSTEM" and _udev_token(look, pf, t, tokens) is False for t in tokens):
                    # About another device: what it runs may write to any PF, what it sets is its own.
                    conditions = [None if any(key == "RUN" for key, *_ in tokens) else False]
                answer = all_of([*_skips(look, pf, rules, position), *conditions])
                if answer is not False:
                    yield from _udev_writes(look, pf, path, number, tokens, answer)


def _skips(look: Look, pf: Pf, rules: Sequence[tuple[int, list[_Token]]], position: int) -> Iterator[bool | None]:
    """For each GOTO that leads past a rule: is it not taken?"""
    for index, (_, tokens) in enumerate(rules[:position]):
        target = next((value for key, _, _, value in tokens if key == "GOTO"), "")
        labels = [i for i, (_, others) in enumerate(rules) if i > index and ("LABEL", "", "=", target) in others]
        if target and labels and labels[0] > position:
            taken = all_of(_udev_token(look, pf, token, tokens) for token in tokens)
            yield None if taken is None else not taken


def _udev_token(look: Look, pf: Pf, token: _Token, tokens: Sequence[_Token]) -> bool | None:
    """Does a condition hold for a PF at boot? Assignments always do."""
    key, name, op, value = token
    if op not in ("==", "!="):
        return None if key in ("IMPORT", "PROGRAM") else True
    answer = any_of(
        _udev_value(look, pf, key, name, v, ("SUBSYSTEM", "", "==", "pci") in tokens) for v in value.split("|")
    )
    return answer if answer is None or op == "==" else not answer


def _udev_value(look: Look, pf: Pf, key: str, name: str, value: str, pci: bool) -> bool | None:
    if key == "ACTION":
        at_boot = any(fnmatch.fnmatchcase(action, value) for action in ("add", "bind", "move"))
        return True if at_boot else None if value == "change" else False
    if key in ("SUBSYSTEM", "SUBSYSTEMS"):
        return any(fnmatch.fnmatchcase(subsystem, value) for subsystem in ("net", "pci"))
    if key == "KERNEL":
        return fnmatch.fnmatchcase(pf.address, value) if pci else _has_udev_name(look, pf, value, tokens_rename=True)
    if key == "NAME" or (key == "ENV" and name in ("INTERFACE", *_NAME_PROPERTIES)):
        return _has_udev_name(look, pf, value)
    if key == "KERNELS":  # the device itself or one above it
        above = look.host.resolve(f"/sys/bus/pci/devices/{pf.address}").split("/")
        return any(fnmatch.fnmatchcase(part, value) for part in (*above, *pf.names[:1]))
    if key in ("DRIVER", "DRIVERS") or (key == "ENV" and name in ("DRIVER", "ID_NET_DRIVER")):
        return has_driver(pf, value)
    if (key == "ENV" and name == "ID_NET_NAME_MAC") or (key in ("ATTR", "ATTRS") and name.endswith("address")):
        return has_mac(look, pf, value)
    if key == "ENV" and name == "ID_PATH":
        return has_path(pf, value)
    if key == "ENV" and name == "PCI_SLOT_NAME":
        return fnmatch.fnmatchcase(pf.address, value)
    if key == "TEST" and any(a in value for a in ATTRIBUTES):
        return True
    attribute = name.removeprefix("device/")
    if key in ("ATTR", "ATTRS") and attribute in _PCI_ATTRIBUTES:
        try:
            said = look.host.read(f"/sys/bus/pci/devices/{pf.address}/{attribute}")
        except HostError:
            said = None
        return None if said is None else fnmatch.fnmatchcase(said, value)
    return None


_NAME_PROPERTIES = (
    *(f"ID_NET_NAME{kind}" for kind in ("", "_ONBOARD", "_SLOT", "_PATH")),
    "ID_NET_LABEL_ONBOARD",
)


def _has_udev_name(look: Look, pf: Pf, pattern: str, tokens_rename: bool = False) -> bool | None:
    if tokens_rename and netdev_attribute(look, pf, "name_assign_type") == "4":
        return has_kernel_name(look, pf, pattern)
    if not pf.names:
        return None
    return any(fnmatch.fnmatchcase(name, pattern) for name in pf.names)


def _udev_writes(look: Look, pf: Pf, path: str, line: int, tokens: Sequence[_Token], answer: bool | None) -> Found:
    """What a rule that fits a PF, or may do so, writes."""
    alone = look._replace(pfs=[pf])
    pci = ("SUBSYSTEM", "", "==", "pci") in tokens
    own = pf.address if pci else (*pf.names, "*")[0]
    device = f"/bus/pci/devices/{own}" if pci else f"/class/net/{own}"
    found: list[tuple[Pf, Owner]] = []
    for key, name, op, value in tokens:
        if key == "ATTR" and op in ("=", ":=") and name.endswith(ATTRIBUTES):
            elsewhere = re.match(r"\[(\w+)/([^]]+)\](.*)", name)
            base = {"net": "/sys/class/net", "pci": "/sys/bus/pci/devices"}
            if elsewhere:
                target = f"{base.get(elsewhere[1], '*')}/{elsewhere[2]}/{elsewhere[3]}"
            else:
                target = f"/sys{device}/{name}"
            found += written(alone, "udev rule", path, [assigned(line, target, value)])
        elif key == "RUN":
            command = re.sub(r"%k|\$kernel|\$name|\$env\{(?:INTERFACE|ID_NET_NAME)\}", own, value)
            command = re.sub(r"%S|\$sys\b", "/sys", re.sub(r"%p|\$devpath", device, command))
            command = re.sub(r"%[a-zA-Z](?:\{\w+\})?", "*", command)
            found += written(alone, "udev rule", path, [w._replace(line=line) for w in writes_of(command)])
            found += called(alone, "udev rule", command)
    for _, owner in found:
        unsure = Unknown(f"{path}:{line}: whether this rule is about the PF is not known")
        yield pf, owner if answer or isinstance(owner.vfs, Unknown) else owner._replace(vfs=unsure)
