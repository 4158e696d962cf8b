"""A look at the files of a host that may be about virtual functions, and the units that start at boot."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from hostprep.errors import HostError
from hostprep.host import Host
from hostprep.model import Unknown

ATTRIBUTES = ("sriov_numvfs", "mlx5_num_vfs")  # the second: an older name, of Mellanox's own driver
ATTRIBUTE = f"(?:{'|'.join(ATTRIBUTES)})"
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


class Look(NamedTuple):
    """One look at a host."""

    host: Host
    pfs: Sequence[Pf]
    unreadable: list[tuple[str, str, str]]  # (tool, path, reason)
    starts: dict[str, str]  # unit that something starts at boot -> its file
    called: dict[str, str]  # program that something calls -> its text, if that is about VFs


# -- files ----------------------------------------------------------------------------------------


def names_in(look: Look, tool: str, folder: str) -> list[str]:
    try:
        return look.host.names(folder)
    except HostError as e:
        look.unreadable.append((tool, folder, str(e)))
        return []


def text_of(look: Look, tool: str, path: str, *needles: str) -> str:
    """The text of a file that has one of these words in it, else ''."""
    try:
        data = look.host.read_bytes(path) or b""
    except HostError as e:
        if not _is_directory(look, path):
            look.unreadable.append((tool, path, str(e)))
        return ""
    found = not needles or any(needle.encode() in data for needle in needles)
    return data.decode(errors="replace") if found else ""


def _is_directory(look: Look, path: str) -> bool:
    try:
        return look.host.state_kind(look.host.resolve(path)) == "directory"
    except HostError:
        return False


def folders_of(look: Look, *folders: str) -> list[str]:
    """Without those that are one and the same through a link."""
    return list({look.host.resolve(folder): folder for folder in reversed(folders)}.values())[::-1]


def layered(look: Look, tool: str, folders: Iterable[str], suffix: str) -> dict[str, str]:
    """File name -> path, sorted by name: the first folder that has a name hides it in the others."""
    found: dict[str, str] = {}
    for folder in folders:
        for name in names_in(look, tool, folder):
            if name.endswith(suffix):
                found.setdefault(name, f"{folder}/{name}")
    return dict(sorted(found.items()))


def ini(text: str) -> Iterator[tuple[str, str, str, int]]:
    """(section, key, value, line) of a keyfile or unit file."""
    section = ""
    for number, line in logical_lines(text):
        line = line.strip()
        if header := re.fullmatch(r"\[(.*)\]", line):
            section = header[1]
        elif line[:1] not in ("#", ";") and "=" in line:
            key, _, value = line.partition("=")
            yield section, key.strip(), value.strip(), number


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
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


def find_starts(look: Look) -> Found:
    """Note the units that others want or require by a link, and where they are; masked ones have no file."""
    folders = folders_of(look, *UNIT_DIRS)
    listed = {folder: names_in(look, "systemd unit", folder) for folder in folders}
    wanted: dict[str, None] = {}
    for folder in folders:
        for directory in listed[folder]:
            if directory.endswith((".wants", ".requires", ".upholds")):
                for name in names_in(look, "systemd unit", f"{folder}/{directory}"):
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


def _why_not_started(look: Look, unit: str) -> str:
    """'' for a unit that starts at boot, `masked` for one that cannot, else why that is not known."""
    if unit in look.starts:
        return ""
    if any(look.host.link(f"{folder}/{unit}") == "/dev/null" for folder in UNIT_DIRS):
        return "masked"
    return f"nothing is known to start {unit} at boot"


def if_started(look: Look, tool: str, unit: str, found: Iterable[tuple[Pf, Owner]]) -> Found:
    """What a tool makes, if its unit starts at boot: unknown where that cannot be told."""
    for pf, owner in found:
        why = _why_not_started(look, unit)
        if not why:
            yield pf, owner
        elif why != "masked":
            yield pf, owner._replace(vfs=Unknown(f"{owner.where}: {tool} would make VFs, but {why}"))
