"""mstconfig, and NVIDIA's own mlxconfig, which speaks alike: asking it, setting with it, understanding what it says.

Facts are of the sources of mstflint 4.15 to 4.36 and of what its binaries print. Errors are on stdout, the exit status
is 3 for all of them, and `Failed to open the device` is one text for a dozen causes.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from hostprep.errors import ChangeFailed, CommandFailed, HostError
from hostprep.host import FILE, Host
from hostprep.model import Reading, Unknown, Value

TOOLS = ("mstconfig", "mlxconfig")
FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
SET_S = 60.0  # patience of a set: NVIDIA's own scripts try that long (mlnx-tools#68)
TIMED_OUT = "no answer within"  # as a command that did not end in time is told
STUCK_S = 90.0  # a command that is stuck in the card ends by itself after 44 s


def installed(host: Host, names: Iterable[str] = TOOLS) -> str | None:
    """The first of these tools that is there."""
    return next((name for name in names if any(host.exists(f"{folder}/{name}") for folder in FOLDERS)), None)


class Row(NamedTuple):
    """One parameter in the tool's table. A column that the table lacks is Unknown."""

    current: Reading
    next_boot: Reading
    read_only: bool


_ROW = re.compile(r"\*?\s*(RO(?=\s))?\s*([A-Z][A-Z0-9_]*(?:\[[0-9.]+\])?)((?:\s+\S+)+)\s*")
_LACKING = re.compile(r"-E- (?:The Device doesn't support (\S+) parameter|Unknown Parameter: (\S+))")
_COLUMNS = ("Default", "Current", "Next Boot")


def parse(output: str) -> dict[str, Row]:
    """The rows of a query, of any version: which columns there are is what the header says.

    Widths changed in 4.22, 4.26 and 4.31, `RO` came in 4.25, a wide value is followed by a single space, and firmware
    that does not tell default or current values has no such columns (mstflint, mlxcfg_ui.cpp). No name and no value
    has white space in it. `*` marks what differs from the default too: it does not mean pending.
    """
    columns: list[str] = []
    rows: dict[str, Row] = {}
    for line in output.splitlines():
        if line.startswith("Configurations:"):
            columns = re.findall("|".join(_COLUMNS), line)
        elif columns and (m := _ROW.fullmatch(line)) and len(words := m[3].split()) == len(columns):
            values = dict(zip(columns, _values(words), strict=True))
            current, next_boot = (values.get(c, Unknown(f"{c}: the firmware does not tell it")) for c in _COLUMNS[1:])
            rows[m[2]] = Row(current, next_boot, bool(m[1]))
    return rows


def parse_json(text: str) -> dict[str, Row]:
    """The rows of a query that was told as JSON: numbers are numbers, all else is as in the table."""
    try:
        (device,) = json.loads(text).values()
        told = {name: dict(row) for name, row in device["tlv_configuration"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise HostError(f"JSON of the tool is not understood: {e!r}") from None
    return {name: _row_of_json(row) for name, row in told.items()}


def _row_of_json(row: Mapping[str, object]) -> Row:
    keys = [key for key in ("current_value", "next_value") if key in row]
    values = dict(zip(keys, _values([str(row[key]) for key in keys]), strict=True))
    current, next_boot = (
        values.get(f"{which}_value", Unknown(f"{which} value: the firmware does not tell it"))
        for which in ("current", "next")
    )
    return Row(current, next_boot, row.get("read_only") is True)


def _tells_json(host: Host, tool: str) -> bool:
    """From 4.31 on, of mstflint and of MFT; older ones know only the table."""
    try:
        found = re.search(r"(?:mstflint|mft) (\d+)\.(\d+)", host.run(tool, "-v"))
    except HostError:
        return False
    return found is not None and (int(found[1]), int(found[2])) >= (4, 31)


def _values(words: Sequence[str]) -> list[Value]:
    """True(1) is a boolean, ETH(2) the text ETH, 8 a number. One row may have ETH(2) in one column and 2 in another
    (nic-configuration-operator, 8b22714)."""
    named = {m[2]: m[1] for word in words if (m := re.fullmatch(r"(.+)\((\w+)\)", word))}
    return [_value(named.get(word, re.sub(r"(?<=.)\(\w+\)$", "", word))) for word in words]


def _value(word: str) -> Value:
    if word in ("True", "False"):
        return word == "True"
    if word == "N/A":
        return None
    return int(word, 0) if re.fullmatch(r"0|[1-9][0-9]*|0x[0-9a-fA-F]+", word) else word


# What the tool says, and what to do about it; the first that is found counts.
_CAUSES = (
    (
        r"Operation not permitted|Permission denied",
        "The kernel lets nobody write to the card: it is locked down (Secure Boot), or this is a container.",
    ),
    (r"Livefish", "The card is in flash recovery mode: burn its firmware anew (mstflint)."),
    (
        r"perform lock operation",
        "Other tools use the card at the same time (mst*, mlx*, flint): try again when they are done.",
    ),
    (
        r"Failed to identify the device|Can't find device id",
        "The card does not answer on the PCI bus: power-cycle this host, and look into dmesg.",
    ),
    (
        r"Failed to open the device|Error when trying to check|\bME_|Device is busy",
        "Another tool uses the card, or one that crashed left it locked: see who runs mst*, mlx* or flint; "
        "if nobody does: {tool} -d {address} clear_semaphore",
    ),
    (r"Cannot access NV register", "The card does not let this host in (restricted host), or its firmware is too old."),
    (r"NVQC access register", "The firmware is too old for this tool: update it."),
    (r"larger than maximum allowed (\d+)", "Ask for at most {1}."),
    (
        r"Illegal constraint",
        "The card has not enough MSI-X vectors or BAR space for that, together with its other parameters: "
        "ask for less, or lower what the tool's note names.",
    ),
    (r"rejected", "The firmware does not allow it: look at its release notes, or update it."),
    (r"erase count", "The flash has been written too often: wait for the card's next power cycle, then try again."),
    (r"Resource unavailable", "The card's flash has no room for it: update the firmware, or ask NVIDIA's support."),
    (r"Cannot parse|Unknown value|is not valid", "See which values it takes: {tool} -d {address} show_confs"),
    (r"Failed to get|Failed to set", "Look into dmesg for mlx5_core; update the firmware."),
)
_BUSY = re.compile(
    r"Failed to identify the device|Can't find device id|"  # one tool in the way of another makes it say so too
    r"Failed to open the device|Error when trying to check|\bME_|perform lock operation|Device is busy|"
    r"read counter|Register access is not supported by the device"
)
_FORBIDDEN = re.compile(r"Operation not permitted|Permission denied|Livefish")


def said(e: HostError, tool: str, address: str) -> tuple[str, str]:
    """The tool's own words, and what to do about it."""
    if not isinstance(e, CommandFailed):
        return str(e), e.hint or ("The card or the tool is stuck: look into dmesg." if TIMED_OUT in str(e) else "")
    errors = [line.partition("-E-")[2].strip() for line in e.output.splitlines() if line.startswith("-E-")]
    own = f"{tool}: {errors[0]}" if errors else str(e)
    for pattern, todo in _CAUSES:
        if m := re.search(pattern, e.output):
            return own, todo.replace("{tool}", tool).replace("{address}", address).replace("{1}", m[m.re.groups])
    return own, ""


def patiently(run: Callable[[], str], limit: float) -> str:
    """Try again while somebody else uses the card: `Failed to open the device` is one text for a dozen causes."""
    end = time.monotonic() + limit
    pause = 0.25
    busy: CommandFailed | None = None
    while True:
        try:
            return run()
        except CommandFailed as e:
            for_ever = _FORBIDDEN.search(e.output) or not _BUSY.search(e.output)
            if for_ever or time.monotonic() + pause > end:
                raise
            busy = e
        except HostError as e:
            if busy is None:
                raise
            raise busy from e  # the last try had little time left: what the earlier ones said tells more
        time.sleep(pause)
        pause = min(2 * pause, 4.0)


class Query(NamedTuple):
    """What a PF answered: its rows, and the names that the card, or the tool, does not know."""

    rows: dict[str, Row]
    lacks: tuple[str, ...]


def query(host: Host, tool: str, address: str, names: Iterable[str], limit: float) -> Query:
    """Ask one PF for these parameters. One name that the card lacks makes the tool tell nothing of all others."""
    end = time.monotonic() + limit
    wanted, lacks = list(dict.fromkeys(names)), []
    as_json = bool(wanted) and _tells_json(host, tool)

    def run() -> str:
        left = max(round(end - time.monotonic()), 1)
        if as_json:
            return host.run_for_file(tool, "-d", address, "-j", FILE, "-e", "q", *wanted, timeout=left)
        return host.run(tool, "-d", address, "-e", "q", *wanted, timeout=left)

    while wanted:
        try:
            output = patiently(run, end - time.monotonic())
        except CommandFailed as e:
            m = _LACKING.search(e.output)
            gone = [name for name in wanted if m and (m[1] or m[2]).split("[")[0] == name.split("[")[0]]
            some = "Failed to query some" in e.output
            if not gone and not (some and (as_json or parse(e.output))):
                raise
            lacks += gone
            wanted = [name for name in wanted if name not in gone]
            if gone or as_json:  # the table has what could be read of the others
                as_json = as_json and not some
                continue
            output = e.output
        rows = parse_json(output) if as_json else parse(output)
        silent = Row(Unknown(f"{tool}: no value"), Unknown(f"{tool}: no value"), False)
        return Query({name: rows.get(name, silent) for name in wanted}, tuple(lacks))
    return Query({}, tuple(lacks))


def next_boot(host: Host, tool: str, address: str, names: Iterable[str]) -> dict[str, Reading]:
    """What the next boot brings, of these parameters; None of those that the card does not have."""
    names = list(names)
    try:
        rows, lacks = query(host, tool, address, names, SET_S)
    except HostError as e:
        raise ChangeFailed(*said(e, tool, address)) from e
    return {**dict.fromkeys(lacks), **{name: row.next_boot for name, row in rows.items()}}


def put(host: Host, tool: str, address: str, values: Mapping[str, Value]) -> str:
    """What the tool said. A value None is that of a parameter which goes away with PF_NUM_OF_VF_VALID."""
    words = [f"{name}={int(v) if isinstance(v, bool) else v}" for name, v in values.items() if v is not None]
    if not words:
        return ""
    try:
        return patiently(lambda: host.run(tool, "-d", address, "-y", "set", *words, timeout=STUCK_S), SET_S)
    except HostError as e:
        own, todo = said(e, tool, address)
        raise ChangeFailed(f"{address}: {own}", todo) from e
