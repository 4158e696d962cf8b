"""Xid and SXid messages: which of them are a fault of the host, and what of the kernel log can be relied on.

The lines are real ones: of NVIDIA's documents, and of public issues (gpud, open-gpu-kernel-modules, nvtrust).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence

import pytest
from conftest import MakeHost
from fakes import Answer, FakeHost

from hostprep.errors import CommandFailed, HostError
from hostprep.host import Host
from hostprep.nvidia import xid

BOOT = "Linux version 6.1.0-26-amd64 (debian-kernel@lists.debian.org) (gcc-12) #1 SMP PREEMPT_DYNAMIC Debian 6.1.112-1"
DRIVER = "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  570.195.03  Release Build  (dvs-builder@U22)"
GONE = "NVRM: Xid (PCI:0000:91:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
FORBIDDEN = HostError("dmesg: exit status 1: dmesg: read kernel buffer failed: Operation not permitted")
NO_JOURNAL = CommandFailed("journalctl: exit status 1: No journal files were found.", status=1, output="")


def said(line: str) -> dict[str, tuple[str, ...]]:
    return xid.faults(xid.parse(line))


@pytest.mark.parametrize(
    ("line", "address", "phrase"),
    [
        # every form of the line
        (
            "NVRM: Xid (0000:03:00): 62, 8a1c(3130) 00000000 00000000",
            "0000:03:00",
            "62: internal micro-controller halted",
        ),
        ("NVRM: Xid (01:00): 79, GPU has fallen off the bus.", "0000:01:00", "79: GPU has fallen off the bus"),
        (GONE, "0000:91:00", "79: GPU has fallen off the bus"),
        (f"[Sun Feb 23 16:24:18 2025] {GONE}", "0000:91:00", "79: GPU has fallen off the bus"),
        (f"[   38.174242][  T412] {GONE}", "0000:91:00", "79: GPU has fallen off the bus"),
        (f"Nov 22 18:29:55 node1 kernel: [  966.503025] {GONE}", "0000:91:00", "79: GPU has fallen off the bus"),
        ("NVRM: Xid (PCI:10000:3B:00): 79, ", "10000:3b:00", "79: GPU has fallen off the bus"),
        ("NVRM: Xid (PCI:0000:04:00): 79", "0000:04:00", "79: GPU has fallen off the bus"),
        (
            "NVRM: Xid (PCI:0000:3b:00 GPU-I:01 GPU-CI:02): 95, pid=7062, Uncontained: LTC TAG (0x2, 0x1). RST: Yes",
            "0000:3b:00",
            "95: memory error that more than one application is hit by",
        ),
        # 119 and 120: the GSP
        (
            "NVRM: Xid (PCI:0000:9b:00): 119, pid=2024380, name=nvidia-smi, Timeout after 6s of waiting for RPC "
            "response from GPU4 GSP! Expected function 103 (GSP_RM_ALLOC) (0x2081 0x4).",
            "0000:9b:00",
            "119: its system processor (GSP) does not answer",
        ),
        # 64, of Volta and of Ampere
        (
            "NVRM: Xid (PCI:0000:04:00): 64, Dynamic Page Retirement: Fatal error, unable to retire page (0x2f1a)",
            "0000:04:00",
            "64: a memory page could not be retired, or a row not remapped",
        ),
        (
            "NVRM: Xid (PCI:0000:65:00): 64, pid='N/A', Row Remapper: Failed to remap row",
            "0000:65:00",
            "64: a memory page could not be retired, or a row not remapped",
        ),
        # contained, but the driver asks for a reset
        (
            "NVRM: Xid (PCI:0000:01:00 GPU-I:05): 94, pid=7194, Contained: CE User Channel (0x9). RST: Yes, D-RST: No",
            "0000:01:00",
            "94: Contained: CE User Channel (0x9). RST: Yes, D-RST: No",
        ),
        # NVLink 5
        (
            "NVRM: Xid (PCI:0018:01:00): 149, NETIR_LINK_EVT  Fatal   XC0 i0 Link 08 (0x004505c6 0x00000000)",
            "0018:01:00",
            "149: fatal NVLink error",
        ),
        ("NVRM: Xid (PCI:0008:06:00): 149, Placeholder message", "0008:06:00", "149: fatal NVLink error"),
        # 154 says itself what is asked for
        (
            "NVRM: Xid (PCI:0009:01:00): 154, GPU recovery action changed from 0x0 (None) to 0x4 (Drain and Reset)",
            "0009:01:00",
            "154: GPU recovery action changed from 0x0 (None) to 0x4 (Drain and Reset)",
        ),
        # not listed: unknown is not ok
        ("NVRM: Xid (PCI:0000:05:00): 999, pid=7, name=a, b, New trouble", "0000:05:00", "999: b, New trouble"),
        ("NVRM: Xid (PCI:0000:05:00): 999", "0000:05:00", "999: NVIDIA does not say what it means"),
        # NVSwitches
        (
            "nvidia-nvswitch0: SXid (PCI:0000:05:00.0): 20034, Fatal, Link 30 LTSSM Fault Up",
            "0000:05:00",
            "20034: NVSwitch: Link 30 LTSSM Fault Up",
        ),
        (
            "nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 12028, Non-fatal, Link 32 egress non-posted PRIV error (First)",
            "0000:05:00",
            "12028: NVSwitch: Link 32 egress non-posted PRIV error (First)",
        ),
        ("nvidia-nvswitch1: SXid (PCI:0000:06:00.0): 26006, SOE HALTED", "0000:06:00", "26006: NVSwitch: SOE HALTED"),
    ],
)
def test_a_fault_is_told_with_its_number_and_device(line: str, address: str, phrase: str) -> None:
    assert said(line) == {address: (phrase,)}
    assert xid.number_of(phrase) == xid.parse(line)[0].number
    assert xid.meaning(xid.number_of(phrase)).fix


@pytest.mark.parametrize(
    "line",
    [
        "NVRM: Xid (0000:03:00): 14, Channel 00000001",
        "NVRM: Xid (PCI:0000:cb:00): 13, pid='<unknown>', name=<unknown>, Graphics SM Warp Exception on (GPC 7)",
        "NVRM: Xid (PCI:0000:00:06): 31, pid=79749, name=exe, Ch 0000000a, intr 00000000. MMU Fault: ENGINE GRAPHICS",
        "NVRM: Xid (PCI:0009:01:00): 43, pid=3188489, name=trigger_xid, channel 0x0b00000a",
        "NVRM: Xid (PCI:0000:dc:00): 45, pid=1818990, name=python3, Ch 00000001 caused by previous Xid 149",
        "NVRM: Xid (PCI:0000:04:00): 63, Dynamic Page Retirement: New retired page, reload the driver to activate.",
        "NVRM: Xid (PCI:0000:10:1c): 63, pid=1896, Row Remapper: New row marked for remapping, reset gpu to activate.",
        "NVRM: Xid (PCI:0000:01:00): 94, pid=7062, Contained: CE User Channel (0x9). RST: No, D-RST: No",
        "NVRM: Xid (PCI:0000:01:00): 94, pid=7062, Contained: FBHUB (0x1, 0x0). RST: No, D-RST: Yes",
        # gpud#1174: what the driver calls non-fatal is no fault
        "NVRM: Xid (PCI:0019:01:00): 145, pid=876766, name=ray::WorkerDict, RLW_RXPIPE Nonfatal XC0 i0 Link 12 (0x0)",
        "nvidia-nvswitch3: SXid (PCI:0000:04:00.0): 22013, Non-fatal, Link 44 Minion Link DLREQ interrupt",
        "nvidia-nvswitch3: SXid (PCI:0000:04:00.0): 11012, Correctable, Link 44 ingress header ECC limit",
        "nvidia-nvswitch3: SXid (PCI:0000:04:00.0): 10005, Thermal slowdown Disengaged",
        # the details that follow an SXid
        "nvidia-nvswitch3: SXid (PCI:0000:04:00.0): 22013, Severity 0 Engine instance 44 Sub-engine instance 00",
        "nvidia-nvswitch0: SXid (PCI:0000:a9:00.0): 20034, Data {0x50610002, 0x10100030}",
        # not of the driver
        "NVRM: GPU at PCI:0000:9b:00: GPU-509665ad-b600-ac93-3616-d754b23d636d",
        "Out of memory: Killed process 4242 (Xid (1) 79,) total-vm:1kB",
        "audit: type=1400 comm=NVRM: Xid (PCI:0000:04:00): 79, GPU has fallen off the bus.",
        "audit: type=1400 comm=kernel: NVRM: Xid (PCI:0000:04:00): 79, GPU has fallen off the bus.",
    ],
)
def test_what_an_application_did_and_mere_notices_are_no_fault(line: str) -> None:
    assert said(line) == {}


def test_an_ignored_number_and_one_of_another_device() -> None:
    log = f"{GONE}\nnvidia-nvswitch0: SXid (PCI:0000:05:00.0): 20034, Fatal, Link 63 LTSSM Fault Up"
    assert list(xid.faults(xid.parse(log), ignored=[79])) == ["0000:05:00"]


def test_what_is_repeated_is_told_once_and_counted_in_the_order_of_first_occurrence() -> None:
    line = "NVRM: Xid (PCI:0000:01:00): {}, pid={}, name=python3, trouble {}"
    log = "\n".join(line.format(n, i, i) for i, n in enumerate((119, 13, 79, 119, 119)))
    assert said(log) == {
        "0000:01:00": ("119 (3 times): its system processor (GSP) does not answer", "79: GPU has fallen off the bus")
    }


def test_a_nonfatal_message_does_not_hide_a_fatal_one_of_the_same_number() -> None:
    line = "NVRM: Xid (PCI:0000:01:00): 145, RLW_REMAP {} XC0 i0 Link 00 (0x00000004 0x00000040)"
    for order in (("Nonfatal", "Fatal"), ("Fatal", "Nonfatal")):
        assert said("\n".join(map(line.format, order))) == {"0000:01:00": ("145: fatal NVLink error",)}


@pytest.mark.parametrize(("actions", "sick"), [("031", True), ("030", False), ("03032", True), ("?", True)])
def test_of_the_recovery_actions_that_the_driver_asked_for_the_last_one_counts(actions: str, sick: bool) -> None:
    """A GPU whose peer-to-peer traffic was drained, as asked, needs nothing more."""
    line = "NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from 0x{0} (a) to 0x{1} (b)"
    log = "\n".join(line.format(a, b) for a, b in zip(actions, actions[1:] or "?", strict=False))
    assert bool(said(log)) is sick


@pytest.mark.parametrize("line", ["NVRM: Xid (invalid): 79, error", "NVRM: Xid (PCI:0000:04:00) 79"])
def test_a_message_of_a_form_that_nobody_knows_is_unknown_and_never_passed_over(line: str) -> None:
    with pytest.raises(HostError, match="not understood"):
        xid.parse(line)


# -- reading the log ------------------------------------------------------------------------------


def journal(log: str) -> Answer:
    """journalctl, as far as --grep goes (its PCRE2 and Python's re agree on what we ask for)."""

    def answer(argv: Sequence[str]) -> str:
        pattern = next(word.partition("=")[2] for word in argv if word.startswith("--grep="))
        found = [line for line in log.splitlines() if re.search(pattern, line)]
        if not found:
            raise CommandFailed("journalctl: exit status 1: -- No entries --", status=1, output="-- No entries --\n")
        return "".join(f"{line}\n" for line in found)

    return answer


def node(make_host: MakeHost, dmesg: Answer, journalctl: Answer = NO_JOURNAL) -> FakeHost:
    return make_host({}, {"dmesg": dmesg, "journalctl": journalctl})


@pytest.mark.parametrize("start", [BOOT, DRIVER])
def test_a_log_from_the_start_of_the_boot_or_of_the_driver_is_all_that_is_needed(
    make_host: MakeHost, start: str
) -> None:
    host = node(make_host, f"[    0.000000] {start}\n[   12.5] eth0: up\n")
    assert xid.read(host) == []
    assert host.ran == ["dmesg"]


def test_the_same_defect_is_told_at_every_look(make_host: MakeHost) -> None:
    """T19: AzNHC forgets an Xid at its second run."""
    host = node(make_host, f"[    0.000000] {BOOT}\n[   99.5] {GONE}\n")
    assert [list(xid.faults(xid.read(host))) for _ in range(3)] == [["0000:91:00"]] * 3


@pytest.mark.parametrize("dmesg", ["[ 99.5] eth0: up\n", FORBIDDEN])
def test_the_journal_has_what_the_buffer_has_lost(make_host: MakeHost, dmesg: Answer) -> None:
    host = node(make_host, dmesg, journal(f"{BOOT}\nusb 1-1: new\n{GONE}\n"))
    assert xid.faults(xid.read(host)) == {"0000:91:00": ("79: GPU has fallen off the bus",)}


def test_what_the_journal_could_not_write_any_more_is_in_the_buffer(make_host: MakeHost) -> None:
    """A disk that is full leaves a journal with a start and without an end. What both have counts once."""
    early = "NVRM: Xid (PCI:0000:01:00): 119, Timeout after 6s"
    host = node(make_host, f"[ 98.5] {early}\n[ 99.5] {GONE}\n", journal(f"{BOOT}\n{early}\n{early}\n"))
    assert list(xid.faults(xid.read(host)).items()) == [
        ("0000:01:00", ("119 (2 times): its system processor (GSP) does not answer",)),
        ("0000:91:00", ("79: GPU has fallen off the bus",)),
    ]


@pytest.mark.parametrize(
    "refusal", ["journalctl: unrecognized option '--grep=x'", "Compiled without pattern matching support"]
)
def test_a_journalctl_that_cannot_grep_is_read_whole(make_host: MakeHost, refusal: str) -> None:
    def answer(argv: Sequence[str]) -> str:
        if any(word.startswith("--grep") for word in argv):
            raise CommandFailed(f"journalctl: exit status 1: {refusal}", status=1, output=refusal)
        return f"{BOOT}\n{GONE}\n"

    assert list(xid.faults(xid.read(node(make_host, FORBIDDEN, answer)))) == ["0000:91:00"]


@pytest.mark.parametrize(
    ("dmesg", "journalctl", "why"),
    [
        (FORBIDDEN, NO_JOURNAL, "Operation not permitted; journalctl: .*No journal files"),
        (HostError("dmesg: said more than 4194304 bytes"), NO_JOURNAL, "said more than"),
        ("", NO_JOURNAL, "dmesg: does not reach back"),
        ("[ 99.5] eth0: up\n", journal("eth0: up\n"), "does not reach back .*-- No entries --"),
        ("[ 99.5] eth0: up\n", journal(f"eth0: up\n{GONE}\n"), "what is left has 0000:91:00 79: GPU has fallen off"),
        ("[ 99.5] foo: Linux version 6\n", NO_JOURNAL, "dmesg: does not reach back"),
    ],
)
def test_a_log_that_cannot_be_read_or_was_overwritten_never_says_that_there_was_no_xid(
    make_host: MakeHost, dmesg: Answer, journalctl: Answer, why: str
) -> None:
    with pytest.raises(HostError, match=why):
        xid.read(node(make_host, dmesg, journalctl))


def test_a_flood_of_an_applications_messages_is_left_out_by_the_journal_itself(make_host: MakeHost) -> None:
    """168,924 Xid 45 on one fleet in two days (NVSentinel#1710): they would fill any limit of output."""
    answers: list[str] = []
    flood = [f"NVRM: Xid (PCI:0000:{i % 8:02x}:00): 45, pid={i}, name=python3, Ch {i:08x}" for i in range(50_000)]
    grep = journal("\n".join([BOOT, *flood, GONE]))

    def answer(argv: Sequence[str]) -> str:
        assert callable(grep)
        answers.append(grep(argv))
        return answers[-1]

    assert len(xid.read(node(make_host, FORBIDDEN, answer))) == 1
    assert answers == [f"{BOOT}\n{GONE}\n"]


def test_the_journals_pattern_means_the_same_to_pcre(make_host: MakeHost) -> None:
    if shutil.which("grep") is None or subprocess.run(["grep", "-P", "x"], input="x", text=True).returncode:
        pytest.skip("no grep with PCRE here")
    host = node(make_host, FORBIDDEN)
    with pytest.raises(HostError):
        xid.read(host)
    pattern = host.ran[-1].partition("--grep=")[2]
    lost = "nvidia-nvswitch0: SXid (PCI:0000:a9:00.0): 20034, Data {0x50610002}"
    lines = [BOOT, DRIVER, GONE, "NVRM: Xid (PCI:0000:01:00): 31, MMU", "NVRM: Xid (x): 13", "NVRM: Xid (x) 13", lost]
    found = subprocess.run(["grep", "-P", pattern], input="\n".join(lines), capture_output=True, text=True)
    assert found.stdout.splitlines() == [BOOT, DRIVER, GONE, "NVRM: Xid (x) 13"]


def test_this_machines_own_log_is_read_or_the_reason_told() -> None:
    try:
        events = xid.read(Host())
    except HostError as e:
        pytest.skip(str(e))
    assert all(re.fullmatch(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}", e.address) and e.times > 0 for e in events)
