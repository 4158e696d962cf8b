"""Who else makes the virtual functions (VFs) of a physical function (PF) at boot.

The kernel forgets the number of VFs at every boot, so some file of the host has to say it again. All that are known to
do so are read here, so that hostprep asserts what they make and does not fight with them: netplan, NetworkManager,
systemd .link files, udev rules, sriov-network-operator, os-net-config, sriov-netplan-shim, sysfsutils, tmpfiles.d,
module options, and whatever writes `sriov_numvfs` from a unit, an init script, rc.local, ifupdown or cron.

Files are only read, nothing is run. What cannot be told from their text is Unknown for every PF that it may be about:
a loop, a condition, a file that could not be read. What is below /run does not survive a reboot and is left out.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from hostprep.errors import HostError
from hostprep.host import Host
from hostprep.model import Unknown
from hostprep.sriov.files import (
    LIB_DIRS,
    Found,
    Look,
    Owner,
    Pf,
    find_starts,
    folders_of,
    if_started,
    ini,
    layered,
    logical_lines,
    names_in,
    text_of,
)
from hostprep.sriov.names import (
    all_of,
    any_of,
    has_driver,
    has_kernel_name,
    has_mac,
    has_path,
    is_named,
    matches_name,
    netdev_attribute,
)
from hostprep.sriov.scripts import ATTRIBUTE_FILES, SCRIPTS
from hostprep.sriov.udev_rules import udev_rules

__all__ = ["Owner", "Pf", "owners"]


def owners(host: Host, pfs: Sequence[Pf]) -> dict[str, tuple[Owner, ...]]:
    """Who makes the VFs of each PF at the next boot, by PF address; PFs that nobody else cares for are left out."""
    if not pfs:
        return {}
    look = Look(host, pfs, [], {}, {})
    found: dict[str, dict[Owner, None]] = {}
    for source in (find_starts, *_SOURCES):
        try:
            for pf, owner in source(look):
                found.setdefault(pf.address, {})[owner] = None
        except HostError as e:
            look.unreadable.append((source.__name__.strip("_").replace("_", " "), str(e).partition(": ")[0], str(e)))
    for tool, path, reason in dict.fromkeys(look.unreadable):
        for pf in pfs:
            found.setdefault(pf.address, {})[Owner(tool, path, Unknown(reason))] = None
    return {address: tuple(those) for address, those in found.items()}


# -- tools with a setting of their own ------------------------------------------------------------


def _netplan(look: Look) -> Found:
    """netplan: `virtual-function-count`, or as many as there are interfaces that name the PF as their `link`.

    Later files (by name, /etc over /lib) override earlier ones key by key. https://netplan.readthedocs.io
    """
    folders = folders_of(look, "/etc/netplan", "/usr/lib/netplan", "/lib/netplan")
    files = layered(look, "netplan", folders, ".yaml")
    texts = {path: text_of(look, "netplan", path) for path in files.values()}
    if not any("virtual-function-count" in text or re.search(r"\blink['\"]?:", text) for text in texts.values()):
        return
    merged: dict[str, Any] = {}
    for path, text in texts.items():
        if trouble := _merge_yaml(merged, path, text):
            look.unreadable.append(("netplan", path, trouble))
            return
    network = merged.get("network")
    ethernets = network.get("ethernets") if isinstance(network, dict) else None
    entries = {k: v for k, v in ethernets.items() if isinstance(v, dict)} if isinstance(ethernets, dict) else {}
    generators = [f"{d}/systemd/system-generators/netplan" for d in ("/etc", *LIB_DIRS)]
    generator = next((path for path in generators if look.host.exists(path)), "")
    if generator and look.host.link(generator) == "/dev/null":
        return
    for name, entry in entries.items():
        linked = [other["link"] for other in entries.values() if _scalar(other.get("link")) == name]
        explicit = entry.get("virtual-function-count")
        where = explicit[1] if isinstance(explicit, tuple) else linked[0][1] if linked else ""
        if not where:
            continue
        vfs = _count(where, _scalar(explicit)) if explicit else len(linked)
        if isinstance(vfs, int) and vfs < len(linked):
            vfs = Unknown(f"{where}: netplan refuses fewer VFs than the {len(linked)} interfaces that use them")
        if not generator:
            vfs = Unknown(f"{where}: netplan's systemd generator was not found: whether netplan runs is not known")
        answers = [(pf, _netplan_matches(look, pf, name, entry.get("match"))) for pf in look.pfs]
        several = sum(answer is not False for _, answer in answers) > 1
        for pf, answer in answers:
            if answer is not False:
                unsure = Unknown(f"{where}: whether {name} is this PF alone is not known")
                yield pf, Owner("netplan", where, unsure if several or answer is None else vfs)


def _merge_yaml(into: dict[str, Any], path: str, text: str) -> str:
    """Add a file to the others: a leaf is (text, or a list of texts, and file:line). Returns what is wrong with it."""
    import yaml

    def add(node: Any, target: dict[str, Any]) -> None:
        for key, value in node.value:
            name = str(key.value)
            if isinstance(value, yaml.MappingNode):
                if not isinstance(target.get(name), dict):
                    target[name] = {}
                add(value, target[name])
            else:
                leaf = value.value if isinstance(value, yaml.ScalarNode) else [str(item.value) for item in value.value]
                target[name] = (leaf, f"{path}:{key.start_mark.line + 1}")

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if isinstance(root, yaml.MappingNode):
            add(root, into)
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        return f"{path}: is not YAML: {' '.join(str(e).split())}"
    return ""


def _scalar(leaf: object) -> str:
    return leaf[0] if isinstance(leaf, tuple) and isinstance(leaf[0], str) else ""


def _count(where: str, said: str) -> int | Unknown:
    said = said.strip().strip("\"'")
    plain = re.fullmatch(r"[0-9]{1,6}", said)
    return int(said) if plain else Unknown(f"{where}: {said[:40]!r} is not a plain number of VFs")


def _netplan_matches(look: Look, pf: Pf, name: str, match: object) -> bool | None:
    if not isinstance(match, dict) or not match:
        return is_named(look, pf, name)
    answers: list[bool | None] = []
    if "name" in match:
        answers.append(matches_name(look, pf, _scalar(match["name"])))
    if "macaddress" in match:
        answers.append(has_mac(look, pf, _scalar(match["macaddress"])))
    if "driver" in match:
        drivers = match["driver"][0] if isinstance(match["driver"], tuple) else []
        answers.append(any_of(has_driver(pf, d) for d in ([drivers] if isinstance(drivers, str) else drivers)))
    return all_of(answers or [None])


def _network_manager(look: Look) -> Found:
    """Keyfiles with a section [sriov]: NetworkManager enforces total-vfs, 0 included (nm-settings(5))."""
    tool = "NetworkManager"
    folders = [f"{d}/NetworkManager/system-connections" for d in ("/etc", "/usr/lib")]
    found: list[tuple[Pf, Owner]] = []
    for path in layered(look, tool, folders, "").values():
        text = text_of(look, tool, path, "[sriov]")
        settings = {(section, key): (value, line) for section, key, value, line in ini(text)}
        if not text or settings.get(("connection", "autoconnect"), ("true",))[0].lower() in ("false", "0", "no"):
            continue
        header = next((n for n, line in enumerate(text.splitlines(), 1) if line.strip() == "[sriov]"), 0)
        if not header:
            continue
        said, line = settings.get(("sriov", "total-vfs"), ("0", header))
        tests = {key: value for key in _NM_MATCHES if (value := settings.get(key, ("",))[0])}
        for pf in look.pfs:
            answer = all_of([_NM_MATCHES[key](look, pf, value) for key, value in tests.items()] or [None])
            found += _about(pf, tool, f"{path}:{line}", answer, said)
    folder = "/etc/sysconfig/network-scripts"
    for name in names_in(look, tool, folder):
        path = f"{folder}/{name}"
        text = text_of(look, tool, path, "SRIOV_TOTAL_VFS") if name.startswith("ifcfg-") else ""
        values = {key: (value.strip("\"'"), line) for _, key, value, line in ini(text)}
        if "SRIOV_TOTAL_VFS" in values and values.get("ONBOOT", ("yes",))[0].lower() not in ("no", "false", "n"):
            said, line = values["SRIOV_TOTAL_VFS"]
            for pf in look.pfs:
                device, mac = values.get("DEVICE", ("",))[0], values.get("HWADDR", ("",))[0]
                answers = [is_named(look, pf, device)] if device else []
                answers += [has_mac(look, pf, mac)] if mac else []
                found += _about(pf, tool, f"{path}:{line}", all_of(answers or [None]), said)
    yield from if_started(look, tool, "NetworkManager.service", found)


def _about(pf: Pf, tool: str, where: str, answer: bool | None, said: str) -> list[tuple[Pf, Owner]]:
    if answer is False:
        return []
    unsure = Unknown(f"{where}: whether it is about this PF is not known")
    return [(pf, Owner(tool, where, _count(where, said) if answer else unsure))]


def _nm_list(matches: Callable[[Look, Pf, str], bool | None]) -> Callable[[Look, Pf, str], bool | None]:
    """A list of patterns of [match]; those with `!`, `&` or `|` in front are beyond this."""

    def match(look: Look, pf: Pf, value: str) -> bool | None:
        patterns = [p for p in re.split(r"[;,\s]+", value) if p]
        return any_of(None if p[0] in "!&|\\" else matches(look, pf, p) for p in patterns)

    return match


_NM_MATCHES: dict[tuple[str, str], Callable[[Look, Pf, str], bool | None]] = {
    ("connection", "interface-name"): is_named,
    ("ethernet", "mac-address"): has_mac,
    ("802-3-ethernet", "mac-address"): has_mac,
    ("infiniband", "mac-address"): lambda look, pf, value: None,
    ("match", "interface-name"): _nm_list(matches_name),
    ("match", "driver"): _nm_list(lambda look, pf, value: has_driver(pf, value)),
    ("match", "path"): _nm_list(lambda look, pf, value: has_path(pf, value)),
    ("match", "kernel-command-line"): lambda look, pf, value: None,
}


def _link_files(look: Look) -> Found:
    """systemd.link(5): only the first file, by name, whose [Match] fits a PF counts for it."""
    tool = "systemd .link"
    folders = folders_of(look, "/etc/systemd/network", *(f"{d}/systemd/network" for d in LIB_DIRS))
    files = {name: p for name, p in layered(look, tool, folders, ".link").items() if look.host.link(p) != "/dev/null"}
    parsed: list[tuple[dict[str, list[str]], str, str]] = []
    for name, path in files.items():
        matches: dict[str, list[str]] = {}
        said = where = ""
        highest = -1
        for file in [path, *layered(look, tool, (f"{folder}/{name}.d" for folder in folders), ".conf").values()]:
            for section, key, value, line in ini(text_of(look, tool, file)):
                if section == "Match":
                    matches[key] = [*matches.get(key, []), *value.split()] if value else []
                elif (section, key) == ("Link", "SR-IOVVirtualFunctions"):
                    said, where = value, f"{file}:{line}"
                elif (section, key) == ("SR-IOV", "VirtualFunction") and re.fullmatch(r"[0-9]{1,6}", value):
                    highest = max(highest, int(value))
                    where = where or f"{file}:{line}"
        text_is_empty = not matches and not where and look.host.read_bytes(path) == b""
        if not text_is_empty:  # an empty file is masked
            parsed.append((matches, said or (str(highest + 1) if highest >= 0 else ""), where))
    if not any(said for _, said, _ in parsed) or 0 < _systemd_version(look) < 251:  # which brought the setting
        return
    for pf in look.pfs:
        unsure: list[str] = []
        for matches, said, where in parsed:
            answer = all_of(_link_matches(look, pf, key, values) for key, values in matches.items() if values)
            if answer is None:
                unsure.append(where if said else "")
            if answer:
                break
        else:
            said = where = ""
        counting = [place for place in (*unsure, where if said else "") if place]
        if counting:
            why = Unknown(f"{counting[0]}: whether this .link file is the first that matches the PF is not known")
            yield pf, Owner(tool, counting[0], why if unsure else _count(where, said))


def _systemd_version(look: Look) -> int:
    """By the name of its private library; 0 where that does not tell."""
    folders = ["/usr/lib/systemd", "/lib/systemd", *look.host.glob("/usr/lib/*-linux-gnu*/systemd")]
    names = (name for folder in folders for name in look.host.names(folder))
    return min((int(m[1]) for name in names if (m := re.match(r"libsystemd-shared-(\d+)", name))), default=0)


def _link_matches(look: Look, pf: Pf, key: str, values: list[str]) -> bool | None:
    if key in ("MACAddress", "PermanentMACAddress"):
        return any_of(has_mac(look, pf, value) for value in values)
    tests: dict[str, Callable[[str], bool | None]] = {
        "OriginalName": lambda v: has_kernel_name(look, pf, v),
        "Path": lambda v: has_path(pf, v),
        "Driver": lambda v: has_driver(pf, v),
        "Type": lambda v: _has_type(look, pf, v),
        "Kind": lambda v: False,  # hardware has none
    }
    if key not in tests:
        return None
    inverted = values[0].startswith("!")
    answer = any_of(tests[key](value.lstrip("!")) for value in values)
    return answer if answer is None else answer is not inverted


def _has_type(look: Look, pf: Pf, pattern: str) -> bool | None:
    kind = {"1": "ether", "32": "infiniband"}.get(netdev_attribute(look, pf, "type"))
    possible = [fnmatch.fnmatchcase(k, pattern) for k in ([kind] if kind else ["ether", "infiniband"])]
    return possible[0] if len(set(possible)) == 1 else None


def _operator(look: Look) -> Found:
    """sriov-network-operator: the state of each PF that it manages, and the file of its systemd mode."""
    tool, folder = "sriov-network-operator", "/etc/sriov-operator/pci"
    kept = names_in(look, tool, folder)
    for pf in look.pfs:
        if pf.address in kept:
            path = f"{folder}/{pf.address}"
            try:
                state = json.loads(text_of(look, tool, path) or "{}")
                vfs, foreign = state.get("numVfs", 0), state.get("externallyManaged", False)
            except (ValueError, AttributeError):
                vfs, foreign = None, False
            if foreign or vfs == 0:
                continue
            understood = isinstance(vfs, int) and not isinstance(vfs, bool)
            yield pf, Owner(tool, path, vfs if understood else Unknown(f"{path}: no numVfs that makes sense"))
        elif "sriov-config.service" in look.starts:
            path = "/etc/sriov-operator/sriov-interface-config.yaml"
            if text_of(look, tool, path, pf.address):
                yield pf, Owner(tool, path, Unknown(f"{path}: names the PF; sriov-config.service makes its VFs"))


def _os_net_config(look: Look) -> Found:
    """os-net-config: a list of {device_type: pf, name, numvfs}; the shim: {interfaces: {NAME: {num_vfs}}}."""
    path = "/var/lib/os-net-config/sriov_config.yaml"
    for pf, owner in _yaml_counts(look, "os-net-config", path, "numvfs"):
        yield from if_started(look, "os-net-config", "sriov_config.service", [(pf, owner)])
    path = "/etc/sriov-netplan-shim/interfaces.yaml"
    for pf, owner in _yaml_counts(look, "sriov-netplan-shim", path, "num_vfs"):
        yield from if_started(look, "sriov-netplan-shim", "sriov-netplan-shim.service", [(pf, owner)])


def _yaml_counts(look: Look, tool: str, path: str, key: str) -> Found:
    if not (text := text_of(look, tool, path, key)):
        return
    import yaml

    try:
        data = yaml.safe_load(text)
        if isinstance(data, dict):
            counts = {str(name): entry.get(key) for name, entry in data["interfaces"].items()}
        else:
            counts = {str(entry["name"]): entry.get(key) for entry in data if entry.get("device_type") == "pf"}
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError):
        look.unreadable.append((tool, path, f"{path}: hostprep does not understand what it says"))
        return
    for pf in look.pfs:
        for name, count in counts.items():
            line = next(
                (n for n, row in enumerate(text.splitlines(), 1) if re.search(rf"\b{re.escape(name)}\b", row)), 1
            )
            yield from _about(pf, tool, f"{path}:{line}", is_named(look, pf, name), str(count))


def _modprobe(look: Look) -> Found:
    """Options of older drivers: `options mlx4_core num_vfs=8`, `options igb max_vfs=7`."""
    folders = folders_of(look, "/etc/modprobe.d", *(f"{d}/modprobe.d" for d in LIB_DIRS))
    for path in layered(look, "modprobe.d", folders, ".conf").values():
        for number, line in logical_lines(text_of(look, "modprobe.d", path, "num_vfs=", "max_vfs=")):
            if option := re.match(r"options\s+(\S+)\s.*\b(?:num|max)_vfs=(\S+)", line):
                for pf in look.pfs:
                    module = option[1].replace("-", "_")
                    answer = has_driver(pf, module)
                    if option[2] != "0":
                        yield from _about(pf, "modprobe.d", f"{path}:{number}", answer, option[2])


_SOURCES: tuple[Callable[[Look], Found], ...] = (
    *(_netplan, _network_manager, _link_files, udev_rules, _operator, _os_net_config, *ATTRIBUTE_FILES),
    *(_modprobe, *SCRIPTS),
)
