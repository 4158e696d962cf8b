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
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from hostprep.errors import HostError
from hostprep.host import Host
from hostprep.model import Unknown

ATTRIBUTES = ("sriov_numvfs", "mlx5_num_vfs")  # the second: an older name, of Mellanox's own driver
ATTRIBUTE = f"(?:{'|'.join(ATTRIBUTES)})"
CALLED_LIMIT = 128 * 1024  # bytes of a program that a unit calls; a script is far smaller, most binaries are larger
LIB_DIRS = ("/usr/local/lib", "/usr/lib", "/lib")  # /lib is not always /usr/lib: Debian merged them for good with 12
UNIT_DIRS = ("/etc/systemd/system", *(f"{d}/systemd/system" for d in LIB_DIRS))
OURS = re.compile(r"hostprep[-.]")


class Pf(NamedTuple):
    """What a file can name a PF by."""

    address: str  # 0000:17:00.0
    driver: str
    names: tuple[str, ...]  # the netdev first, then its altnames
    mac: str


class Owner(NamedTuple):
    """A file that makes the VFs of a PF at boot."""

    tool: str
    where: str  # file:line
    vfs: int | Unknown


Found = Iterator[tuple[Pf, Owner]]


class _Look(NamedTuple):
    """One look at a host."""

    host: Host
    pfs: Sequence[Pf]
    unreadable: list[tuple[str, str, str]]  # (tool, path, reason)
    starts: dict[str, str]  # unit that something starts at boot -> its file
    called: dict[str, str]  # program that something calls -> its text, if that is about VFs


def owners(host: Host, pfs: Sequence[Pf]) -> dict[str, tuple[Owner, ...]]:
    """Who makes the VFs of each PF at the next boot, by PF address; PFs that nobody else cares for are left out."""
    if not pfs:
        return {}
    look = _Look(host, pfs, [], {}, {})
    found: dict[str, dict[Owner, None]] = {}
    for source in (_find_starts, *_SOURCES):
        try:
            for pf, owner in source(look):
                found.setdefault(pf.address, {})[owner] = None
        except HostError as e:
            look.unreadable.append((source.__name__.strip("_").replace("_", " "), str(e).partition(": ")[0], str(e)))
    for tool, path, reason in dict.fromkeys(look.unreadable):
        for pf in pfs:
            found.setdefault(pf.address, {})[Owner(tool, path, Unknown(reason))] = None
    return {address: tuple(those) for address, those in found.items()}


# -- files ----------------------------------------------------------------------------------------


def _names(look: _Look, tool: str, folder: str) -> list[str]:
    try:
        return look.host.names(folder)
    except HostError as e:
        look.unreadable.append((tool, folder, str(e)))
        return []


def _text(look: _Look, tool: str, path: str, *needles: str) -> str:
    """The text of a file that has one of these words in it, else ''."""
    try:
        data = look.host.read_bytes(path) or b""
    except HostError as e:
        if not _is_directory(look, path):
            look.unreadable.append((tool, path, str(e)))
        return ""
    found = not needles or any(needle.encode() in data for needle in needles)
    return data.decode(errors="replace") if found else ""


def _is_directory(look: _Look, path: str) -> bool:
    try:
        return look.host.state_kind(look.host.resolve(path)) == "directory"
    except HostError:
        return False


def _folders(look: _Look, *folders: str) -> list[str]:
    """Without those that are one and the same through a link."""
    return list({look.host.resolve(folder): folder for folder in reversed(folders)}.values())[::-1]


def _layered(look: _Look, tool: str, folders: Iterable[str], suffix: str) -> dict[str, str]:
    """File name -> path, sorted by name: the first folder that has a name hides it in the others."""
    found: dict[str, str] = {}
    for folder in folders:
        for name in _names(look, tool, folder):
            if name.endswith(suffix):
                found.setdefault(name, f"{folder}/{name}")
    return dict(sorted(found.items()))


def _ini(text: str) -> Iterator[tuple[str, str, str, int]]:
    """(section, key, value, line) of a keyfile or unit file."""
    section = ""
    for number, line in _logical_lines(text):
        line = line.strip()
        if header := re.fullmatch(r"\[(.*)\]", line):
            section = header[1]
        elif line[:1] not in ("#", ";") and "=" in line:
            key, _, value = line.partition("=")
            yield section, key.strip(), value.strip(), number


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines, those that end in a backslash joined with the next."""
    number, start, parts = 0, 0, [""]
    for number, line in enumerate(text.splitlines(), 1):
        start = start or number
        parts.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            yield start, " ".join(parts).strip()
            start, parts = 0, [""]
    if start:
        yield start, " ".join(parts).strip()


def _find_starts(look: _Look) -> Found:
    """Note the units that others want or require by a link, and where they are; masked ones have no file."""
    folders = _folders(look, *UNIT_DIRS)
    listed = {folder: _names(look, "systemd unit", folder) for folder in folders}
    wanted: dict[str, None] = {}
    for folder in folders:
        for directory in listed[folder]:
            if directory.endswith((".wants", ".requires", ".upholds")):
                for name in _names(look, "systemd unit", f"{folder}/{directory}"):
                    wanted[name] = None
                    wanted[re.sub(r"\.(timer|path|socket)$", ".service", name)] = None  # what they start
    for unit in wanted:
        for name in (unit, re.sub(r"@[^.]*\.", "@.", unit)):
            path = next((f"{folder}/{name}" for folder in folders if name in listed[folder]), "")
            if path:
                if look.host.link(path) != "/dev/null":
                    look.starts[unit] = path
                break
    yield from ()


def _why_not_started(look: _Look, unit: str) -> str:
    """'' for a unit that starts at boot, `masked` for one that cannot, else why that is not known."""
    if unit in look.starts:
        return ""
    if any(look.host.link(f"{folder}/{unit}") == "/dev/null" for folder in UNIT_DIRS):
        return "masked"
    return f"nothing is known to start {unit} at boot"


def _owned(look: _Look, tool: str, unit: str, found: Iterable[tuple[Pf, Owner]]) -> Found:
    """What a tool makes, if its unit starts at boot: unknown where that cannot be told."""
    for pf, owner in found:
        why = _why_not_started(look, unit)
        if not why:
            yield pf, owner
        elif why != "masked":
            yield pf, owner._replace(vfs=Unknown(f"{owner.where}: {tool} would make VFs, but {why}"))


# -- naming a PF ----------------------------------------------------------------------------------
# Three answers: True, False, and None where it cannot be told.


def _all(answers: Iterable[bool | None]) -> bool | None:
    answers = list(answers)
    return False if False in answers else None if None in answers else True


def _named(look: _Look, pf: Pf, name: str) -> bool | None:
    """Is the netdev of a PF of this name? Altnames are no names to sysfs; a PF elsewhere may have any."""
    if not pf.names:
        return None if not look.host.exists(f"/sys/class/net/{name}") else False
    return True if name == pf.names[0] else None if name in pf.names else False


def _matches_name(look: _Look, pf: Pf, pattern: str) -> bool | None:
    if not re.search(r"[*?\[]", pattern):
        return _named(look, pf, pattern)
    return None if not pf.names and pattern != "*" else fnmatch.fnmatchcase((*pf.names, "")[0], pattern)


def _attribute(look: _Look, pf: Pf, name: str) -> str:
    """An attribute of the netdev in sysfs; '' where it cannot be told."""
    try:
        return (look.host.read(f"/sys/class/net/{pf.names[0]}/{name}") or "") if pf.names else ""
    except HostError:
        return ""


def _has_mac(look: _Look, pf: Pf, mac: str) -> bool | None:
    """By its permanent address, which a bond or a person may have covered with another (addr_assign_type 3)."""
    own = re.sub(r"[^0-9a-f]", "", pf.mac.lower())
    if _attribute(look, pf, "addr_assign_type") == "3":
        own = re.sub(r"[^0-9a-f]", "", _attribute(look, pf, "bonding_slave/perm_hwaddr").lower())
    return re.sub(r"[^0-9a-f]", "", mac.lower()) == own if own else None


def _has_path(pf: Pf, pattern: str) -> bool | None:
    """udev's ID_PATH. `platform-...-pci-ADDRESS`, of ARM, may be any."""
    if fnmatch.fnmatchcase(f"pci-{pf.address}", pattern):
        return True
    return None if pattern.endswith(f"-pci-{pf.address}") or pattern.startswith(("platform-", "acpi-")) else False


def _has_driver(pf: Pf, pattern: str) -> bool | None:
    return fnmatch.fnmatchcase(pf.driver, pattern) if pf.driver else None


def _has_kernel_name(look: _Look, pf: Pf, pattern: str) -> bool | None:
    """The name before udev renames: only where it was not renamed (name_assign_type 4) is that today's."""
    if pattern == "*":
        return True
    matched = _matches_name(look, pf, pattern)
    if _attribute(look, pf, "name_assign_type") != "4":
        return matched
    by_kernel = any(fnmatch.fnmatchcase(f"{kind}{n}", pattern) for kind in ("eth", "ib") for n in range(32))
    return None if matched is not False or by_kernel else False


def _in_sysfs(look: _Look, pf: Pf, path: str, globs: bool = False) -> bool | None:
    """Is this path, with `*` for what is not known of it, the sriov_numvfs of a PF? `globs`: are all matches meant?"""
    directory = re.sub(r"%\w", "*", path).rpartition("/")[0]
    if not directory.lstrip("*"):
        return None
    if name := re.search(r"/(?:class/)?net/([^/]+)/device$", directory):
        matched = _matches_name(look, pf, name[1])
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


# -- what writes sriov_numvfs by itself -----------------------------------------------------------


class _Write(NamedTuple):
    """One line of a script about a path of sriov_numvfs; `why` says why its count cannot be told."""

    line: int
    path: str
    vfs: int = 0
    why: str = ""


_PATH = rf"[^\s;|&<>()=,{{}}]*\b{ATTRIBUTE}\b"
_WRITE = re.compile(
    rf"\b(?:echo|printf)\s+(?:-\w+\s+)*(?:%\w+\s+)?(?P<vfs>[^\s|>]+)\s*"
    rf"(?:(?<!\d)1?>{{1,2}}\|?|(?<=\s)1?>|\|\s*(?:sudo\s+)?(?:/\S*/)?tee\s+(?:-a\s+)?)\s*(?P<path>{_PATH})"
)
_READ = re.compile(rf"(?:\b(?:cat|head|grep|ls|stat|test)\s(?:[^;|>]*\s)?|(?<!<)<\s*|-[defhLrswx]\s+)(?P<path>{_PATH})")
_QUOTED_OR_COMMENT = re.compile(r"""'[^']*'|"(?:\\.|[^"\\])*"|(?<!\S)\#.*""")
_OPENS = re.compile(r"(?:^|[\s;&|()])(?:if|for|while|until|case|select|\{)(?=\s|$)")
_CLOSES = re.compile(r"(?:^|[\s;&|)])(?:fi|done|esac|\})(?=[\s;&|)]|$)")
_CONDITION = re.compile(r"(?:^|[\s;&|(])(?:(?:if|case|for|while|until)\s.*|(?:test\s|\[\[?\s|.*\|\|)[^;]*)$")
_ENDS_WELL = re.compile(r"(?:^|[\s;&|{])exit(?!\s+[1-9$])\b")  # an exit of another status is a failure


def _writes(text: str) -> list[_Write]:
    """What a shell script says of sriov_numvfs, in order. Reads are left out; it ends at an `exit` of its own."""
    longest = max(map(len, text.splitlines()), default=0)
    if re.match(r"#!(?!.*sh\b)", text) or "\0" in text or longest > 4096:
        numbers = [n for n, line in enumerate(text.splitlines(), 1) if re.search(ATTRIBUTE, line)]
        return [_Write(number, "*", why="hostprep reads shell scripts alone") for number in numbers[:1]]
    found: list[_Write] = []
    depth = 0
    may_have_ended = False
    constants = _constants(text)
    for number, raw in _logical_lines(text):
        line = _QUOTED_OR_COMMENT.sub(lambda m: "" if m[0].startswith("#") else m[0], raw)
        bare = _QUOTED_OR_COMMENT.sub("", line)
        if depth == 0 and re.match(r"\s*(exit|return)\b", bare):
            break
        before, depth = depth, max(0, depth + len(_OPENS.findall(bare)) - len(_CLOSES.findall(bare)))
        if any(attribute in line for attribute in ATTRIBUTES):
            inside = bool(before or (depth and _OPENS.search(bare)))
            found += _writes_of_line(number, _plain(line, constants), inside or may_have_ended)
        may_have_ended = may_have_ended or _ENDS_WELL.search(bare) is not None
    return found


def _constants(text: str) -> dict[str, str]:
    """Variables that are set once, at the start of a line, to plain text."""
    assigned = re.findall(r"""(?m)^(?:export\s+|readonly\s+)?(\w+)=["']?([\w.:/-]+)["']?\s*(?:;|#.*|$)""", text)
    changed = r"\b{0}\b(?=\+?=|\s+in\b)|\b(?:read|unset|local|getopts)\b.*\b{0}\b"
    return {name: value for name, value in assigned if len(re.findall(changed.format(name), text)) == 1}


def _plain(line: str, constants: dict[str, str]) -> str:
    """A line without quoting, and with `*` for what a shell would put in."""
    line = re.sub(r"\$\{(\w+)\}|\$(\w+)", lambda m: constants.get(m[1] or m[2], "*"), line)
    line = re.sub(r"\$\([^()]*\)|`[^`]*`|\$\{[^}]*\}", lambda m: m[0] if re.search(ATTRIBUTE, m[0]) else "*", line)
    return re.sub(r"[\"'\\]", "", line)


def _writes_of_line(number: int, line: str, inside: bool) -> Iterator[_Write]:
    reads = {m.span("path") for m in _READ.finditer(line)}
    writes = {m.span("path"): m for m in _WRITE.finditer(line)}
    for mention in re.finditer(_PATH, line):
        path = mention[0].lstrip(":")
        if "/" not in path and not re.search(r"(?:>|\btee\b[^;|]*)\s*$", line[: mention.start()]):
            continue  # a message, not a path
        if write := writes.get(mention.span()):
            condition = inside or _CONDITION.search(line[: write.start()])
            if condition:
                yield _Write(number, path, why="written on a condition or within a loop")
            else:
                yield _assigned(number, path, write["vfs"])
        elif mention.span() not in reads:
            yield _Write(number, path, why="hostprep does not understand what is done with it")


def _written(look: _Look, tool: str, file: str, writes: Sequence[_Write], globs: bool = False) -> Found:
    """What the writes of one file come to, PF by PF.

    From one number other than 0 to another the kernel refuses (EBUSY), so the first counts until there is a 0.
    """
    for pf in look.pfs:
        where, vfs = "", 0
        unsure = None
        for write in writes:
            meant = _in_sysfs(look, pf, write.path, globs)
            if meant is False:
                continue
            where = where or f"{file}:{write.line}"
            why = write.why or ("" if meant else f"which PF {write.path} means is not known")
            if why:
                unsure = unsure or Unknown(f"{file}:{write.line}: {why}")
            elif write.vfs == 0:
                where, vfs, unsure = f"{file}:{write.line}", 0, None
            elif vfs == 0:
                where, vfs = f"{file}:{write.line}", write.vfs
        if where:
            yield pf, Owner(tool, where, unsure or vfs)


def _called(look: _Look, tool: str, command: str) -> Found:
    """The scripts that a command line names and that are about sriov_numvfs; what they call in turn is not read."""
    for path in dict.fromkeys(re.findall(r"(?<![^\s\"'=;&|@+!:-])(/[\w./+@:-]+)", command)):
        if path.startswith(("/sys/", "/proc/", "/dev/")) or OURS.match(path.rpartition("/")[2]):
            continue
        if path not in look.called:
            look.called[path] = _text(look, tool, path, *ATTRIBUTES) if _is_small(look, path) else ""
        if text := look.called[path]:
            yield from _written(look, tool, path, _writes(text))


def _is_small(look: _Look, path: str) -> bool:
    try:
        return os.stat(look.host.real(path)).st_size <= CALLED_LIMIT
    except (OSError, HostError):
        return False


def _script(look: _Look, tool: str, path: str) -> Found:
    """A script that runs at boot if it is executable. A recording does not tell that."""
    text = _text(look, tool, path)
    found = [*_written(look, tool, path, _writes(text))] if any(a in text for a in ATTRIBUTES) else []
    commands = " \n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    found += _called(look, tool, commands.partition("\nexit ")[0])
    if found and not look.host.state(look.host.resolve(path)).mode & 0o111:
        for pf, owner in found:
            yield pf, owner._replace(vfs=Unknown(f"{path}: is not executable: whether it runs at boot is not known"))
        return
    yield from found


_STARTS = "Exec(?:Start|StartPre|StartPost|Condition)"


def _units(look: _Look) -> Found:
    """Units that something starts; what stops them is not looked at."""
    folders = _folders(look, *UNIT_DIRS)
    dropins: dict[str, list[str]] = {}
    for folder in folders:
        for directory in _names(look, "systemd unit", folder):
            if directory.endswith(".service.d"):
                names = _names(look, "systemd unit", f"{folder}/{directory}")
                dropins.setdefault(directory[:-2], []).extend(f"{folder}/{directory}/{name}" for name in names)
    for unit, path in look.starts.items():
        if OURS.match(unit) or not unit.endswith(".service"):
            continue
        template = re.sub(r"@[^.]*\.", "@.", unit)
        instance = re.sub(r"^[^@]*@?|\.service$", "", unit)
        for file in dict.fromkeys([path, *dropins.get(unit, []), *dropins.get(template, [])]):
            text = re.sub(r"%[iI]", instance or "*", _text(look, "systemd unit", file, "Exec"))
            if re.search(ATTRIBUTE, text):
                lines = ((n, value.replace("%%", "%")) for _, key, value, n in _ini(text) if re.fullmatch(_STARTS, key))
                writes = [w._replace(line=number) for number, command in lines for w in _writes(command)]
                yield from _written(look, "systemd unit", file, writes)
            for command in re.findall(rf"(?m)^\s*{_STARTS}\s*=((?:.*\\\n)*.*)", text):
                yield from _called(look, "systemd unit", command)


def _scripts(look: _Look) -> Found:
    """rc.local, init scripts, and what ifupdown and its like run when an interface comes up."""
    for path in dict.fromkeys(look.host.resolve(path) for path in ("/etc/rc.local", "/etc/rc.d/rc.local")):
        yield from _script(look, "rc.local", path)
    started: dict[str, None] = {}
    for level in "S2345":
        for name in _names(look, "init script", f"/etc/rc{level}.d"):
            if name.startswith("S"):
                started[look.host.resolve(f"/etc/rc{level}.d/{name}")] = None
    for path in started:
        if text := _text(look, "init script", path, *ATTRIBUTES):
            yield from _written(look, "init script", path, _writes(text))
    for tool, folder in (
        ("ifupdown", "/etc/network/if-pre-up.d"),
        ("ifupdown", "/etc/network/if-up.d"),
        ("NetworkManager dispatcher", "/etc/NetworkManager/dispatcher.d"),
        ("NetworkManager dispatcher", "/etc/NetworkManager/dispatcher.d/pre-up.d"),
        ("cloud-init", "/var/lib/cloud/scripts/per-boot"),
        ("networkd-dispatcher", "/etc/networkd-dispatcher/configuring.d"),
        ("networkd-dispatcher", "/etc/networkd-dispatcher/configured.d"),
        ("networkd-dispatcher", "/etc/networkd-dispatcher/routable.d"),
    ):
        for name in _names(look, tool, folder):
            if _text(look, tool, f"{folder}/{name}", *ATTRIBUTES):
                yield from _script(look, tool, f"{folder}/{name}")


def _interfaces(look: _Look) -> Found:
    """The commands of interfaces(5) that run when an interface of `auto` or `allow-hotplug` comes up."""
    folder = "/etc/network/interfaces.d"
    paths = ["/etc/network/interfaces", *(f"{folder}/{name}" for name in _names(look, "ifupdown", folder))]
    texts = {path: _text(look, "ifupdown", path) for path in paths}
    auto = {
        name
        for t in texts.values()
        for line in re.findall(r"(?m)^\s*(?:auto|allow-\w+)\s+(.*)", t)
        for name in line.split()
    }
    for path, text in texts.items():
        interface = ""
        writes: list[_Write] = []
        for number, line in _logical_lines(text):
            word, _, rest = line.strip().partition(" ")
            if word == "iface":
                interface = (rest.split() or [""])[0]
            elif word in ("pre-up", "up", "post-up") and interface in auto:
                command = re.sub(r"\$\{?IFACE\b\}?", interface, rest)
                writes += (w._replace(line=number) for w in _writes(command))
                yield from _called(look, "ifupdown", command)
        yield from _written(look, "ifupdown", path, writes)


def _cron(look: _Look) -> Found:
    """Lines of crontabs for @reboot."""
    paths = ["/etc/crontab"]
    for folder in ("/etc/cron.d", "/var/spool/cron/crontabs", "/var/spool/cron"):
        paths += (f"{folder}/{name}" for name in _names(look, "cron", folder))
    for path in paths:
        lines = [*_logical_lines(_text(look, "cron", path, "@reboot"))]
        commands = [(number, line) for number, line in lines if line.startswith("@reboot")]
        writes = [w._replace(line=number) for number, command in commands for w in _writes(command)]
        yield from _written(look, "cron", path, writes)
        for _, command in commands:
            yield from _called(look, "cron", command)


def _tmpfiles(look: _Look) -> Found:
    """tmpfiles.d(5): `w PATH - - - - 8`, where a pattern means all that match it."""
    folders = _folders(look, "/etc/tmpfiles.d", *(f"{d}/tmpfiles.d" for d in LIB_DIRS))  # noqa: S108 - no temporary file
    for path in _layered(look, "tmpfiles.d", folders, ".conf").values():
        writes = []
        for number, line in enumerate(_text(look, "tmpfiles.d", path, *ATTRIBUTES).splitlines(), 1):
            fields = line.replace("\\x3a", ":").replace('"', "").split(maxsplit=6)
            if len(fields) > 1 and fields[0][:1] in ("w", "F") and fields[1].endswith(ATTRIBUTES):
                writes.append(_assigned(number, re.sub(r"%\w", "*", fields[1]), fields[6] if len(fields) > 6 else ""))
        yield from _written(look, "tmpfiles.d", path, writes, globs=True)


def _sysfsutils(look: _Look) -> Found:
    """/etc/sysfs.conf: `class/net/ens1/device/sriov_numvfs = 8`, below /sys."""
    folder = "/etc/sysfs.d"
    names = [name for name in _names(look, "sysfsutils", folder) if name.endswith(".conf")]
    for path in ["/etc/sysfs.conf", *(f"{folder}/{name}" for name in names)]:
        lines = enumerate(_text(look, "sysfsutils", path, *ATTRIBUTES).splitlines(), 1)
        matches = ((n, re.match(rf"\s*(\S*{ATTRIBUTE})\s*=\s*([^#]*)", line)) for n, line in lines)
        writes = [_assigned(number, f"/sys/{m[1].lstrip('/')}", m[2]) for number, m in matches if m and m[1][0] != "#"]
        found = _written(look, "sysfsutils", path, writes)
        if any("sysfsutils" in name for name in _names(look, "sysfsutils", "/etc/rcS.d") if name.startswith("S")):
            yield from found
        else:
            yield from _owned(look, "sysfsutils", "sysfsutils.service", found)


def _assigned(line: int, path: str, value: str) -> _Write:
    """The kernel takes a number as C has it: 010 is 8."""
    value = value.strip().strip("\"'")
    if re.fullmatch(r"0|[1-9][0-9]{0,5}|0x[0-9a-fA-F]{1,4}", value):
        return _Write(line, path, int(value, 0))
    return _Write(line, path, why="the number written is not plain")


# -- tools with a setting of their own ------------------------------------------------------------


def _netplan(look: _Look) -> Found:
    """netplan: `virtual-function-count`, or as many as there are interfaces that name the PF as their `link`.

    Later files (by name, /etc over /lib) override earlier ones key by key. https://netplan.readthedocs.io
    """
    folders = _folders(look, "/etc/netplan", "/usr/lib/netplan", "/lib/netplan")
    files = _layered(look, "netplan", folders, ".yaml")
    texts = {path: _text(look, "netplan", path) for path in files.values()}
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


def _netplan_matches(look: _Look, pf: Pf, name: str, match: object) -> bool | None:
    if not isinstance(match, dict) or not match:
        return _named(look, pf, name)
    answers: list[bool | None] = []
    if "name" in match:
        answers.append(_matches_name(look, pf, _scalar(match["name"])))
    if "macaddress" in match:
        answers.append(_has_mac(look, pf, _scalar(match["macaddress"])))
    if "driver" in match:
        drivers = match["driver"][0] if isinstance(match["driver"], tuple) else []
        answers.append(_any(_has_driver(pf, d) for d in ([drivers] if isinstance(drivers, str) else drivers)))
    return _all(answers or [None])


def _any(answers: Iterable[bool | None]) -> bool | None:
    answers = list(answers)
    return True if True in answers else None if None in answers else False


def _network_manager(look: _Look) -> Found:
    """Keyfiles with a section [sriov]: NetworkManager enforces total-vfs, 0 included (nm-settings(5))."""
    tool = "NetworkManager"
    folders = [f"{d}/NetworkManager/system-connections" for d in ("/etc", "/usr/lib")]
    found: list[tuple[Pf, Owner]] = []
    for path in _layered(look, tool, folders, "").values():
        text = _text(look, tool, path, "[sriov]")
        settings = {(section, key): (value, line) for section, key, value, line in _ini(text)}
        if not text or settings.get(("connection", "autoconnect"), ("true",))[0].lower() in ("false", "0", "no"):
            continue
        header = next((n for n, line in enumerate(text.splitlines(), 1) if line.strip() == "[sriov]"), 0)
        if not header:
            continue
        said, line = settings.get(("sriov", "total-vfs"), ("0", header))
        tests = {key: value for key in _NM_MATCHES if (value := settings.get(key, ("",))[0])}
        for pf in look.pfs:
            answer = _all([_NM_MATCHES[key](look, pf, value) for key, value in tests.items()] or [None])
            found += _about(pf, tool, f"{path}:{line}", answer, said)
    folder = "/etc/sysconfig/network-scripts"
    for name in _names(look, tool, folder):
        path = f"{folder}/{name}"
        text = _text(look, tool, path, "SRIOV_TOTAL_VFS") if name.startswith("ifcfg-") else ""
        values = {key: (value.strip("\"'"), line) for _, key, value, line in _ini(text)}
        if "SRIOV_TOTAL_VFS" in values and values.get("ONBOOT", ("yes",))[0].lower() not in ("no", "false", "n"):
            said, line = values["SRIOV_TOTAL_VFS"]
            for pf in look.pfs:
                device, mac = values.get("DEVICE", ("",))[0], values.get("HWADDR", ("",))[0]
                answers = [_named(look, pf, device)] if device else []
                answers += [_has_mac(look, pf, mac)] if mac else []
                found += _about(pf, tool, f"{path}:{line}", _all(answers or [None]), said)
    yield from _owned(look, tool, "NetworkManager.service", found)


def _about(pf: Pf, tool: str, where: str, answer: bool | None, said: str) -> list[tuple[Pf, Owner]]:
    if answer is False:
        return []
    unsure = Unknown(f"{where}: whether it is about this PF is not known")
    return [(pf, Owner(tool, where, _count(where, said) if answer else unsure))]


def _nm_list(matches: Callable[[_Look, Pf, str], bool | None]) -> Callable[[_Look, Pf, str], bool | None]:
    """A list of patterns of [match]; those with `!`, `&` or `|` in front are beyond this."""

    def match(look: _Look, pf: Pf, value: str) -> bool | None:
        patterns = [p for p in re.split(r"[;,\s]+", value) if p]
        return _any(None if p[0] in "!&|\\" else matches(look, pf, p) for p in patterns)

    return match


_NM_MATCHES: dict[tuple[str, str], Callable[[_Look, Pf, str], bool | None]] = {
    ("connection", "interface-name"): _named,
    ("ethernet", "mac-address"): _has_mac,
    ("802-3-ethernet", "mac-address"): _has_mac,
    ("infiniband", "mac-address"): lambda look, pf, value: None,
    ("match", "interface-name"): _nm_list(_matches_name),
    ("match", "driver"): _nm_list(lambda look, pf, value: _has_driver(pf, value)),
    ("match", "path"): _nm_list(lambda look, pf, value: _has_path(pf, value)),
    ("match", "kernel-command-line"): lambda look, pf, value: None,
}


def _link_files(look: _Look) -> Found:
    """systemd.link(5): only the first file, by name, whose [Match] fits a PF counts for it."""
    tool = "systemd .link"
    folders = _folders(look, "/etc/systemd/network", *(f"{d}/systemd/network" for d in LIB_DIRS))
    files = {name: p for name, p in _layered(look, tool, folders, ".link").items() if look.host.link(p) != "/dev/null"}
    parsed: list[tuple[dict[str, list[str]], str, str]] = []
    for name, path in files.items():
        matches: dict[str, list[str]] = {}
        said = where = ""
        highest = -1
        for file in [path, *_layered(look, tool, (f"{folder}/{name}.d" for folder in folders), ".conf").values()]:
            for section, key, value, line in _ini(_text(look, tool, file)):
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
            answer = _all(_link_matches(look, pf, key, values) for key, values in matches.items() if values)
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


def _systemd_version(look: _Look) -> int:
    """By the name of its private library; 0 where that does not tell."""
    folders = ["/usr/lib/systemd", "/lib/systemd", *look.host.glob("/usr/lib/*-linux-gnu*/systemd")]
    names = (name for folder in folders for name in look.host.names(folder))
    return min((int(m[1]) for name in names if (m := re.match(r"libsystemd-shared-(\d+)", name))), default=0)


def _link_matches(look: _Look, pf: Pf, key: str, values: list[str]) -> bool | None:
    if key in ("MACAddress", "PermanentMACAddress"):
        return _any(_has_mac(look, pf, value) for value in values)
    tests: dict[str, Callable[[str], bool | None]] = {
        "OriginalName": lambda v: _has_kernel_name(look, pf, v),
        "Path": lambda v: _has_path(pf, v),
        "Driver": lambda v: _has_driver(pf, v),
        "Type": lambda v: _has_type(look, pf, v),
        "Kind": lambda v: False,  # hardware has none
    }
    if key not in tests:
        return None
    inverted = values[0].startswith("!")
    answer = _any(tests[key](value.lstrip("!")) for value in values)
    return answer if answer is None else answer is not inverted


def _has_type(look: _Look, pf: Pf, pattern: str) -> bool | None:
    kind = {"1": "ether", "32": "infiniband"}.get(_attribute(look, pf, "type"))
    possible = [fnmatch.fnmatchcase(k, pattern) for k in ([kind] if kind else ["ether", "infiniband"])]
    return possible[0] if len(set(possible)) == 1 else None


def _operator(look: _Look) -> Found:
    """sriov-network-operator: the state of each PF that it manages, and the file of its systemd mode."""
    tool, folder = "sriov-network-operator", "/etc/sriov-operator/pci"
    kept = _names(look, tool, folder)
    for pf in look.pfs:
        if pf.address in kept:
            path = f"{folder}/{pf.address}"
            try:
                state = json.loads(_text(look, tool, path) or "{}")
                vfs, foreign = state.get("numVfs", 0), state.get("externallyManaged", False)
            except (ValueError, AttributeError):
                vfs, foreign = None, False
            if foreign or vfs == 0:
                continue
            understood = isinstance(vfs, int) and not isinstance(vfs, bool)
            yield pf, Owner(tool, path, vfs if understood else Unknown(f"{path}: no numVfs that makes sense"))
        elif "sriov-config.service" in look.starts:
            path = "/etc/sriov-operator/sriov-interface-config.yaml"
            if _text(look, tool, path, pf.address):
                yield pf, Owner(tool, path, Unknown(f"{path}: names the PF; sriov-config.service makes its VFs"))


def _os_net_config(look: _Look) -> Found:
    """os-net-config: a list of {device_type: pf, name, numvfs}; the shim: {interfaces: {NAME: {num_vfs}}}."""
    path = "/var/lib/os-net-config/sriov_config.yaml"
    for pf, owner in _yaml_counts(look, "os-net-config", path, "numvfs"):
        yield from _owned(look, "os-net-config", "sriov_config.service", [(pf, owner)])
    path = "/etc/sriov-netplan-shim/interfaces.yaml"
    for pf, owner in _yaml_counts(look, "sriov-netplan-shim", path, "num_vfs"):
        yield from _owned(look, "sriov-netplan-shim", "sriov-netplan-shim.service", [(pf, owner)])


def _yaml_counts(look: _Look, tool: str, path: str, key: str) -> Found:
    if not (text := _text(look, tool, path, key)):
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
            yield from _about(pf, tool, f"{path}:{line}", _named(look, pf, name), str(count))


def _modprobe(look: _Look) -> Found:
    """Options of older drivers: `options mlx4_core num_vfs=8`, `options igb max_vfs=7`."""
    folders = _folders(look, "/etc/modprobe.d", *(f"{d}/modprobe.d" for d in LIB_DIRS))
    for path in _layered(look, "modprobe.d", folders, ".conf").values():
        for number, line in _logical_lines(_text(look, "modprobe.d", path, "num_vfs=", "max_vfs=")):
            if option := re.match(r"options\s+(\S+)\s.*\b(?:num|max)_vfs=(\S+)", line):
                for pf in look.pfs:
                    module = option[1].replace("-", "_")
                    answer = _has_driver(pf, module)
                    if option[2] != "0":
                        yield from _about(pf, "modprobe.d", f"{path}:{number}", answer, option[2])


# -- udev rules -----------------------------------------------------------------------------------

_TOKEN = re.compile(r'(\w+)(?:\{([^}]*)\})?\s*(==|!=|\+=|-=|:=|=)\s*[ei]?"((?:[^"\\]|\\.)*)"')
_PCI_ATTRIBUTES = ("vendor", "device", "subsystem_vendor", "subsystem_device", "class")
_Token = tuple[str, str, str, str]


def _udev_rules(look: _Look) -> Found:
    """udev(7): ATTR{device/sriov_numvfs}="8", or a RUN that writes it, or that calls a script of the site's."""
    folders = _folders(look, "/etc/udev/rules.d", *(f"{d}/udev/rules.d" for d in LIB_DIRS))
    for path in _layered(look, "udev rule", folders, ".rules").values():
        of_site = path.startswith("/etc/")
        text = _text(look, "udev rule", path, *ATTRIBUTES, *(("RUN",) if of_site else ()))
        lines = [(n, line) for n, line in _logical_lines(text) if not line.startswith("#")]
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
                answer = _all([*_skips(look, pf, rules, position), *conditions])
                if answer is not False:
                    yield from _udev_writes(look, pf, path, number, tokens, answer)


def _skips(look: _Look, pf: Pf, rules: Sequence[tuple[int, list[_Token]]], position: int) -> Iterator[bool | None]:
    """For each GOTO that leads past a rule: is it not taken?"""
    for index, (_, tokens) in enumerate(rules[:position]):
        target = next((value for key, _, _, value in tokens if key == "GOTO"), "")
        labels = [i for i, (_, others) in enumerate(rules) if i > index and ("LABEL", "", "=", target) in others]
        if target and labels and labels[0] > position:
            taken = _all(_udev_token(look, pf, token, tokens) for token in tokens)
            yield None if taken is None else not taken


def _udev_token(look: _Look, pf: Pf, token: _Token, tokens: Sequence[_Token]) -> bool | None:
    """Does a condition hold for a PF at boot? Assignments always do."""
    key, name, op, value = token
    if op not in ("==", "!="):
        return None if key in ("IMPORT", "PROGRAM") else True
    answer = _any(
        _udev_value(look, pf, key, name, v, ("SUBSYSTEM", "", "==", "pci") in tokens) for v in value.split("|")
    )
    return answer if answer is None or op == "==" else not answer


def _udev_value(look: _Look, pf: Pf, key: str, name: str, value: str, pci: bool) -> bool | None:
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
        return _has_driver(pf, value)
    if (key == "ENV" and name == "ID_NET_NAME_MAC") or (key in ("ATTR", "ATTRS") and name.endswith("address")):
        return _has_mac(look, pf, value)
    if key == "ENV" and name == "ID_PATH":
        return _has_path(pf, value)
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


def _has_udev_name(look: _Look, pf: Pf, pattern: str, tokens_rename: bool = False) -> bool | None:
    if tokens_rename and _attribute(look, pf, "name_assign_type") == "4":
        return _has_kernel_name(look, pf, pattern)
    if not pf.names:
        return None
    return any(fnmatch.fnmatchcase(name, pattern) for name in pf.names)


def _udev_writes(look: _Look, pf: Pf, path: str, line: int, tokens: Sequence[_Token], answer: bool | None) -> Found:
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
            found += _written(alone, "udev rule", path, [_assigned(line, target, value)])
        elif key == "RUN":
            command = re.sub(r"%k|\$kernel|\$name|\$env\{(?:INTERFACE|ID_NET_NAME)\}", own, value)
            command = re.sub(r"%S|\$sys\b", "/sys", re.sub(r"%p|\$devpath", device, command))
            command = re.sub(r"%[a-zA-Z](?:\{\w+\})?", "*", command)
            found += _written(alone, "udev rule", path, [w._replace(line=line) for w in _writes(command)])
            found += _called(alone, "udev rule", command)
    for _, owner in found:
        unsure = Unknown(f"{path}:{line}: whether this rule is about the PF is not known")
        yield pf, owner if answer or isinstance(owner.vfs, Unknown) else owner._replace(vfs=unsure)


_SOURCES: tuple[Callable[[_Look], Found], ...] = (
    *(_netplan, _network_manager, _link_files, _udev_rules, _operator, _os_net_config, _sysfsutils, _tmpfiles),
    *(_modprobe, _units, _scripts, _interfaces, _cron),
)
