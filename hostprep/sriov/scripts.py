"""Scripts, and settings that are as plain, which write `sriov_numvfs` at boot: read as text, never run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from hostprep.errors import HostError
from hostprep.model import Unknown
from hostprep.sriov.files import (
    ATTRIBUTE,
    ATTRIBUTES,
    LIB_DIRS,
    OURS,
    UNIT_DIRS,
    Found,
    Look,
    Owner,
    folders_of,
    if_started,
    ini,
    layered,
    logical_lines,
    names_in,
    text_of,
)
from hostprep.sriov.names import in_sysfs

CALLED_LIMIT = 128 * 1024  # bytes of a program that a unit calls; a script is far smaller, most binaries are larger


class Write(NamedTuple):
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


def writes_of(text: str) -> list[Write]:
    """What a shell script says of sriov_numvfs, in order. Reads are left out; it ends at an `exit` of its own."""
    longest = max(map(len, text.splitlines()), default=0)
    if re.match(r"#!(?!.*sh\b)", text) or "\0" in text or longest > 4096:
        numbers = [n for n, line in enumerate(text.splitlines(), 1) if re.search(ATTRIBUTE, line)]
        return [Write(number, "*", why="hostprep reads shell scripts alone") for number in numbers[:1]]
    found: list[Write] = []
    depth = 0
    may_have_ended = False
    constants = _constants(text)
    for number, raw in logical_lines(text):
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


def _writes_of_line(number: int, line: str, inside: bool) -> Iterator[Write]:
    reads = {m.span("path") for m in _READ.finditer(line)}
    writes = {m.span("path"): m for m in _WRITE.finditer(line)}
    for mention in re.finditer(_PATH, line):
        path = mention[0].lstrip(":")
        if "/" not in path and not re.search(r"(?:>|\btee\b[^;|]*)\s*$", line[: mention.start()]):
            continue  # a message, not a path
        if write := writes.get(mention.span()):
            condition = inside or _CONDITION.search(line[: write.start()])
            if condition:
                yield Write(number, path, why="written on a condition or within a loop")
            else:
                yield assigned(number, path, write["vfs"])
        elif mention.span() not in reads:
            yield Write(number, path, why="hostprep does not understand what is done with it")


def written(look: Look, tool: str, file: str, writes: Sequence[Write], globs: bool = False) -> Found:
    """What the writes of one file come to, PF by PF.

    From one number other than 0 to another the kernel refuses (EBUSY), so the first counts until there is a 0.
    """
    for pf in look.pfs:
        where, vfs = "", 0
        unsure = None
        for write in writes:
            meant = in_sysfs(look, pf, write.path, globs)
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


def called(look: Look, tool: str, command: str) -> Found:
    """The scripts that a command line names and that are about sriov_numvfs; what they call in turn is not read."""
    for path in dict.fromkeys(re.findall(r"(?<![^\s\"'=;&|@+!:-])(/[\w./+@:-]+)", command)):
        if path.startswith(("/sys/", "/proc/", "/dev/")) or OURS.match(path.rpartition("/")[2]):
            continue
        if path not in look.called:
            look.called[path] = text_of(look, tool, path, *ATTRIBUTES) if _is_small(look, path) else ""
        if text := look.called[path]:
            yield from written(look, tool, path, writes_of(text))


def _is_small(look: Look, path: str) -> bool:
    try:
        size = look.host.size(path)
    except HostError:
        return True  # why it cannot be read is told when it is read
    return size is not None and size <= CALLED_LIMIT


def _script(look: Look, tool: str, path: str) -> Found:
    """A script that runs at boot if it is executable. A recording does not tell that."""
    text = text_of(look, tool, path)
    found = [*written(look, tool, path, writes_of(text))] if any(a in text for a in ATTRIBUTES) else []
    commands = " \n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    found += called(look, tool, commands.partition("\nexit ")[0])
    if found and not look.host.state(look.host.resolve(path)).mode & 0o111:
        for pf, owner in found:
            yield pf, owner._replace(vfs=Unknown(f"{path}: is not executable: whether it runs at boot is not known"))
        return
    yield from found


_STARTS = "Exec(?:Start|StartPre|StartPost|Condition)"


def _units(look: Look) -> Found:
    """Units that something starts; what stops them is not looked at."""
    folders = folders_of(look, *UNIT_DIRS)
    dropins: dict[str, list[str]] = {}
    for folder in folders:
        for directory in names_in(look, "systemd unit", folder):
            if directory.endswith(".service.d"):
                names = names_in(look, "systemd unit", f"{folder}/{directory}")
                dropins.setdefault(directory[:-2], []).extend(f"{folder}/{directory}/{name}" for name in names)
    for unit, path in look.starts.items():
        if OURS.match(unit) or not unit.endswith(".service"):
            continue
        template = re.sub(r"@[^.]*\.", "@.", unit)
        instance = re.sub(r"^[^@]*@?|\.service$", "", unit)
        for file in dict.fromkeys([path, *dropins.get(unit, []), *dropins.get(template, [])]):
            text = re.sub(r"%[iI]", instance or "*", text_of(look, "systemd unit", file, "Exec"))
            if re.search(ATTRIBUTE, text):
                lines = ((n, value.replace("%%", "%")) for _, key, value, n in ini(text) if re.fullmatch(_STARTS, key))
                writes = [w._replace(line=number) for number, command in lines for w in writes_of(command)]
                yield from written(look, "systemd unit", file, writes)
            for command in re.findall(rf"(?m)^\s*{_STARTS}\s*=((?:.*\\\n)*.*)", text):
                yield from called(look, "systemd unit", command)


def _scripts(look: Look) -> Found:
    """rc.local, init scripts, and what ifupdown and its like run when an interface comes up."""
    for path in dict.fromkeys(look.host.resolve(path) for path in ("/etc/rc.local", "/etc/rc.d/rc.local")):
        yield from _script(look, "rc.local", path)
    started: dict[str, None] = {}
    for level in "S2345":
        for name in names_in(look, "init script", f"/etc/rc{level}.d"):
            if name.startswith("S"):
                started[look.host.resolve(f"/etc/rc{level}.d/{name}")] = None
    for path in started:
        if text := text_of(look, "init script", path, *ATTRIBUTES):
            yield from written(look, "init script", path, writes_of(text))
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
        for name in names_in(look, tool, folder):
            if text_of(look, tool, f"{folder}/{name}", *ATTRIBUTES):
                yield from _script(look, tool, f"{folder}/{name}")


def _interfaces(look: Look) -> Found:
    """The commands of interfaces(5) that run when an interface of `auto` or `allow-hotplug` comes up."""
    folder = "/etc/network/interfaces.d"
    paths = ["/etc/network/interfaces", *(f"{folder}/{name}" for name in names_in(look, "ifupdown", folder))]
    texts = {path: text_of(look, "ifupdown", path) for path in paths}
    auto = {
        name
        for t in texts.values()
        for line in re.findall(r"(?m)^\s*(?:auto|allow-\w+)\s+(.*)", t)
        for name in line.split()
    }
    for path, text in texts.items():
        interface = ""
        writes: list[Write] = []
        for number, line in logical_lines(text):
            word, _, rest = line.strip().partition(" ")
            if word == "iface":
                interface = (rest.split() or [""])[0]
            elif word in ("pre-up", "up", "post-up") and interface in auto:
                command = re.sub(r"\$\{?IFACE\b\}?", interface, rest)
                writes += (w._replace(line=number) for w in writes_of(command))
                yield from called(look, "ifupdown", command)
        yield from written(look, "ifupdown", path, writes)


def _cron(look: Look) -> Found:
    """Lines of crontabs for @reboot."""
    paths = ["/etc/crontab"]
    for folder in ("/etc/cron.d", "/var/spool/cron/crontabs", "/var/spool/cron"):
        paths += (f"{folder}/{name}" for name in names_in(look, "cron", folder))
    for path in paths:
        lines = [*logical_lines(text_of(look, "cron", path, "@reboot"))]
        commands = [(number, line) for number, line in lines if line.startswith("@reboot")]
        writes = [w._replace(line=number) for number, command in commands for w in writes_of(command)]
        yield from written(look, "cron", path, writes)
        for _, command in commands:
            yield from called(look, "cron", command)


def _tmpfiles(look: Look) -> Found:
    """tmpfiles.d(5): `w PATH - - - - 8`, where a pattern means all that match it."""
    folders = folders_of(look, "/etc/tmpfiles.d", *(f"{d}/tmpfiles.d" for d in LIB_DIRS))  # noqa: S108 - no temporary file
    for path in layered(look, "tmpfiles.d", folders, ".conf").values():
        writes = []
        for number, line in enumerate(text_of(look, "tmpfiles.d", path, *ATTRIBUTES).splitlines(), 1):
            fields = line.replace("\\x3a", ":").replace('"', "").split(maxsplit=6)
            if len(fields) > 1 and fields[0][:1] in ("w", "F") and fields[1].endswith(ATTRIBUTES):
                writes.append(assigned(number, re.sub(r"%\w", "*", fields[1]), fields[6] if len(fields) > 6 else ""))
        yield from written(look, "tmpfiles.d", path, writes, globs=True)


def _sysfsutils(look: Look) -> Found:
    """/etc/sysfs.conf: `class/net/ens1/device/sriov_numvfs = 8`, below /sys."""
    folder = "/etc/sysfs.d"
    names = [name for name in names_in(look, "sysfsutils", folder) if name.endswith(".conf")]
    for path in ["/etc/sysfs.conf", *(f"{folder}/{name}" for name in names)]:
        lines = enumerate(text_of(look, "sysfsutils", path, *ATTRIBUTES).splitlines(), 1)
        matches = ((n, re.match(rf"\s*(\S*{ATTRIBUTE})\s*=\s*([^#]*)", line)) for n, line in lines)
        writes = [assigned(number, f"/sys/{m[1].lstrip('/')}", m[2]) for number, m in matches if m and m[1][0] != "#"]
        found = written(look, "sysfsutils", path, writes)
        if any("sysfsutils" in name for name in names_in(look, "sysfsutils", "/etc/rcS.d") if name.startswith("S")):
            yield from found
        else:
            yield from if_started(look, "sysfsutils", "sysfsutils.service", found)


def assigned(line: int, path: str, value: str) -> Write:
    """The kernel takes a number as C has it: 010 is 8."""
    value = value.strip().strip("\"'")
    if re.fullmatch(r"0|[1-9][0-9]{0,5}|0x[0-9a-fA-F]{1,4}", value):
        return Write(line, path, int(value, 0))
    return Write(line, path, why="the number written is not plain")


ATTRIBUTE_FILES: tuple[Callable[[Look], Found], ...] = (_sysfsutils, _tmpfiles)
SCRIPTS: tuple[Callable[[Look], Found], ...] = (_units, _scripts, _interfaces, _cron)
