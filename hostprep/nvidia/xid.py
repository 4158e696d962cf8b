"""Xid and SXid messages: what NVIDIA's driver writes into the kernel log of a GPU or an NVSwitch in trouble.

Numbers and what to do about them: NVIDIA, "Xid Errors" (docs.nvidia.com/deploy/xid-errors, the catalogue's column
"Immediate Action"), "GPU Memory Error Management" and, for SXids, the "Fabric Manager User Guide", appendix D. Their
form: kernel_rc.c and common_nvswitch.h of NVIDIA's open-gpu-kernel-modules.

An Xid that asks for a restart of the application or for nothing is not judged. All others are, and so is one that
nobody has listed. The log is read anew at every look: what it says of this boot is told until the next one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

from hostprep.errors import CommandFailed, HostError
from hostprep.host import Host
from hostprep.host.process import clean

XID, SXID = "xid", "sxid"


class Event(NamedTuple):
    """What the log says of one device, as often as it says so."""

    address: str  # 0000:3b:00: domain, bus and device
    number: int
    kind: str  # xid: of a GPU; sxid: of an NVSwitch
    text: str  # of the first such message, of the last one where it tells a state
    fatal: bool | None  # the driver's own word; None where it says nothing of it
    times: int = 1


class Meaning(NamedTuple):
    """What a number stands for."""

    words: str  # "" where NVIDIA publishes none, or the message itself says more
    judged: bool  # is it a fault of the host? Where the message decides, yes
    fix: str


# -- what the numbers mean ------------------------------------------------------------------------

_REBOOT = "Reboot this host. Resetting the GPU cures it too, but the message stays in the log. If it comes back: {}"
_SUPPORT = _REBOOT.format("have this GPU checked by its vendor.")
_LINK = _REBOOT.format("check bridges, cables and baseboard.")
_SLOT = "Reboot this host. If it comes back: check the card's seat, power and cooling, and PCIe errors in the log."
_REPLACE = "Have this GPU checked or replaced by its vendor."
_UNLISTED = "Look it up in NVIDIA's Xid catalogue (docs.nvidia.com/deploy/xid-errors); reboot this host."
_SWITCHES = "Reboot this host, which resets GPUs and NVSwitches. If it comes back: have its baseboard checked."

_RECOVERY = 154  # its text tells what the driver asks for, from now on
_CONTAINED = 94  # its text tells whether the GPU must be reset
_NVLINK_5 = range(144, 151)  # their text says Fatal or Nonfatal

_FAULTS = {
    _SUPPORT: {
        46: "GPU stopped processing",
        48: "ECC error in its memory that could not be corrected",
        61: "internal micro-controller stopped at a breakpoint",
        62: "internal micro-controller halted",
        _CONTAINED: "",
        95: "memory error that more than one application is hit by",
        109: "context switch timed out",
        110: "security fault",
        119: "its system processor (GSP) does not answer",
        120: "its system processor (GSP) failed",
        140: "ECC error that nothing dealt with",
        143: "GPU could not be initialized",
        151: "key rotation failed",
        _RECOVERY: "",
        156: "a faulty part of it is retired from the next reset on",
        158: "GPU timed out for good",
        169: "security micro-controller halted",
        171: "error in its DRAM that could not be corrected",
        172: "error in its SRAM that could not be corrected",
    },
    _LINK: {
        74: "NVLink error",
        136: "NVLink could not be trained",
        **dict.fromkeys(_NVLINK_5, "fatal NVLink error"),
        155: "NVLink was taken down",
        159: "error on its link to the CPU",
        173: "its link to the CPU failed",
    },
    _SLOT: {
        54: "auxiliary power is not connected",
        79: "GPU has fallen off the bus",
        167: "PCIe timed out for good",
    },
    _REPLACE: {
        57: "link to its memory could not be trained",
        58: "interface to its memory is unstable",
        64: "a memory page could not be retired, or a row not remapped",
        157: "a faulty part of it could not be retired",
        161: "a faulty memory channel could not be retired",
        165: "its power smoothing is worn out",
    },
    "Update the drivers of host and guest to versions that go together.": {78: "a vGPU could not start"},
    "Enable ECC, so that faulty rows are remapped; reboot this host.": {168: "errors in memory that it reserves"},
}
_MEANINGS = {number: Meaning(words, True, fix) for fix, said in _FAULTS.items() for number, words in said.items()}

# Restart the application: it sent garbage, reached for memory that is not its own, or an engine failed it alone.
_APPLICATION = frozenset(
    {8, 11, 13, 25, 31, 32, 39, 40, 41, 60, *range(68, 73), 75, 76, 77, 80, *range(82, 87), 88, 89}
    | {*range(96, 106), *range(126, 136), 139}
)
# Nothing to do: clean-up after another Xid (45), what the hardware has corrected or put right by itself (92, 121,
# 160), tests, notices. Pages and rows that are marked (63) wait for a reset: NVML tells whether any still do.
_NOTICE = frozenset({14, 37, 38, 43, 44, 45, 63, 66, 67, 92, 93, 106, 107, 108, 121, 137, 141, 152, 153, 160, 162})
_NOTICE |= {163, 164}  # power smoothing off, or worn: "no GPU reset required"
_UNJUDGED = _APPLICATION | _NOTICE

# Non-fatal to the switch, but the GPU's traffic stalls until a restart; and an end of heat, which is no fault.
_STALLING = (11004, 12028, 19084)
_COOLED = 10005


def meaning(number: int) -> Meaning:
    """What the number of an Xid, or of an SXid (they begin at 10000), stands for."""
    if number >= 10000:
        return Meaning("", number != _COOLED, _SWITCHES)
    if number in _APPLICATION:
        return Meaning("an application failed", False, "")
    if number in _NOTICE:
        return Meaning("a notice", False, "")
    return _MEANINGS.get(number, Meaning("", True, _UNLISTED))


def judged(event: Event) -> bool:
    """Is this a fault of the host? Where the driver calls something non-fatal, it is none (gpud#1174)."""
    if event.kind == SXID:
        return event.number in _STALLING if event.fatal is False else meaning(event.number).judged
    if event.number in _NVLINK_5:
        return event.fatal is not False
    if event.number == _CONTAINED:
        return re.search(r"(?<!-)RST: Yes", event.text) is not None  # D-RST: a reset when convenient
    if event.number == _RECOVERY:
        return re.search(r" to 0x0 \([^()]*\)$", event.text) is None
    return meaning(event.number).judged


def faults(events: Iterable[Event], ignored: Collection[int] = ()) -> dict[str, tuple[str, ...]]:
    """By device what is judged, each a phrase such as `79 (3 times): GPU has fallen off the bus`; oldest first."""
    found: dict[str, list[str]] = {}
    for event in events:
        if event.number not in ignored and judged(event):
            found.setdefault(event.address, []).append(_phrase(event))
    return {address: tuple(phrases) for address, phrases in found.items()}


def number_of(phrase: str) -> int:
    """The number that a phrase of faults() begins with."""
    return int(re.split(r"\D", phrase, maxsplit=1)[0])


def _phrase(event: Event) -> str:
    times = f" ({event.times} times)" if event.times > 1 else ""
    words = meaning(event.number).words or event.text or "NVIDIA does not say what it means"
    return f"{event.number}{times}: {'NVSwitch: ' if event.kind == SXID else ''}{words}"


# -- the kernel log -------------------------------------------------------------------------------

# The first message of every boot, and of the driver: a log that has one of them has all Xids after it.
_STARTS = ("Linux version [0-9]", "NVRM: loading NVIDIA UNIX ")
# A job may write 100,000 Xids of its own: the journal leaves those out, and the details that follow an SXid.
_WANTED = (
    rf"NVRM: Xid (?!\([^)]*\): (?:{'|'.join(map(str, sorted(_UNJUDGED)))})(?:,|$))",
    r"nvidia-nvswitch[0-9]+: SXid (?!\([^)]*\): [0-9]+, (?:Severity [0-9]|Data \{))",
)
_JOURNAL = ("journalctl", "--dmesg", "--boot", "--output=cat", "--no-pager")
_GREP = f"--grep=^(?:{'|'.join((*_STARTS, *_WANTED))})"
_NO_GREP = re.compile("unrecognized option|pattern matching support")  # before systemd 237; built without PCRE2

# What dmesg and syslog write in front: `[  966.503025] `, `[Fri Aug 30 11:11:22 2024] `, `Nov 22 18:29:55 n1 kernel: `
_PREFIX = r"(?:[A-Z][a-z]{2} [ \d]\d [\d:]{8} \S+ kernel: )?(?:\[[^\]\n]*\] *)*"
_START = re.compile(f"^{_PREFIX}(?:{'|'.join(_STARTS)})", re.M)
_HEAD = re.compile(rf"{_PREFIX}(?:NVRM: (?=Xid )|nvidia-nvswitch\d+: (?=SXid ))")
_MESSAGE = re.compile(
    r"(S?Xid) \((?:PCI:)?(?:([0-9a-f]{4,}):)?([0-9a-f]{2}:[0-9a-f]{2})(?:\.\d)?(?: [^)]*)?\): (\d+)\b,?(.*)", re.I
)
_PROCESS = re.compile(r"pid=[^,]*, (?:name=.*?, )?")
_SEVERITY = re.compile(r"(Fatal|Non-fatal|Correctable), ")
_DETAIL = re.compile(r"Severity \d|Data \{")


def read(host: Host) -> list[Event]:
    """What the kernel log of this boot says that may be a fault, each kind of it once, oldest first.

    Where the kernel's own buffer has been overwritten, the journal has the rest; it alone may have gaps (a full disk).
    HostError unless either reaches back to the start of the boot or of the driver.
    """
    problems: list[str] = []
    events: list[Event] = []
    for name, ask in (("dmesg", _dmesg), ("journalctl", _journal)):
        try:
            text = ask(host)
        except HostError as e:
            problems.append(str(e))
            continue
        events = _together(parse(text), events)
        if _START.search(text):
            return events
        problems.append(f"{name}: does not reach back to the start of this boot")
    left = "; ".join(f"{address} {', '.join(said)}" for address, said in faults(events).items())
    raise HostError(f"the kernel log: {'; '.join(problems)}{f'; what is left has {left}' if left else ''}")


def _dmesg(host: Host) -> str:
    return host.run("dmesg")


def _journal(host: Host) -> str:
    """journalctl exits 1 both with nothing found and in error (systemd#32422): so the start is always asked for too."""
    try:
        return host.run(*_JOURNAL, _GREP)
    except CommandFailed as e:
        if not _NO_GREP.search(e.output):
            raise
    return host.run(*_JOURNAL)


def parse(text: str) -> list[Event]:
    """The events in a kernel log; those of applications and mere notices are left out."""
    found: dict[tuple[str, int, bool], Event] = {}
    for line in text.split("\n"):
        event = _event(line) if "Xid " in line else None
        if event is None:
            continue
        before = found.get(_key(event), event._replace(times=0))
        latest = event if event.number == _RECOVERY else before
        found[_key(event)] = latest._replace(times=before.times + 1)
    return list(found.values())


def _key(event: Event) -> tuple[str, int, bool]:
    """What makes two events the same; of a state the last one counts."""
    return event.address, event.number, event.number == _RECOVERY or judged(event)


def _together(older: Iterable[Event], newer: Iterable[Event]) -> list[Event]:
    """What two logs tell that overlap."""
    before = {_key(e): e for e in older}
    found = before | {_key(e): e for e in newer}
    return [e._replace(times=max(e.times, before.get(key, e).times)) for key, e in found.items()]


def _event(line: str) -> Event | None:
    """One message; None for what an application did, a notice, the details of an SXid, and anything else."""
    head = _HEAD.match(line)
    if head is None:
        return None
    match = _MESSAGE.match(line, head.end())
    if match is None:
        raise HostError(f"the kernel log: not understood: {clean(line[head.start() :], 120)!r}")
    kind, domain, device, number, text = match.groups()
    if kind == "Xid" and int(number) in _UNJUDGED:
        return None
    address = f"{domain or '0000'}:{device}".lower()
    if kind == "SXid":
        said = text.strip()
        return None if _DETAIL.match(said) else Event(address, int(number), SXID, *_switch_said(said))
    said = _PROCESS.sub("", text.strip(), count=1) if text.strip().startswith("pid=") else text.strip()
    return Event(address, int(number), XID, clean(said, 160), _gpu_said(said))


def _switch_said(text: str) -> tuple[str, bool | None]:
    severity = _SEVERITY.match(text)
    return clean(text[severity.end() :] if severity else text, 160), severity[1] == "Fatal" if severity else None


def _gpu_said(text: str) -> bool | None:
    """NVLink 5 alone says it, as in `145, RLW_REMAP Nonfatal XC0 i0 Link 00 (...)`."""
    severity = re.match(r".*\b(Fatal|Nonfatal)\s+XC\d", text)
    return severity[1] == "Fatal" if severity else None
