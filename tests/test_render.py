"""What a person and a monitoring system read."""

from __future__ import annotations

import re
import time
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from conftest import profile

from hostprep import formats, render, report
from hostprep.engine import Batch, Planned
from hostprep.formats import junit, nagios, prometheus
from hostprep.host.rehearsal import Step
from hostprep.model import Change, Desired, Facet, Fact, Finding, Reading, Status, Unknown
from hostprep.report import Identity, Report

HERE = Identity("node01", "0123456789abcdef", "11111111-2222", "6.1.0")
HOSTILE = "a\nb\x1b[31m\"'</x>\\ & ]]> | \udcff \ufffe end"
GIB = 1024**3


def finding(status: Status = Status.PASS, key: str = "devices", current: Reading = "a", **more: Any) -> Finding:
    desired = more.pop("desired", Desired("b"))
    return Finding(more.pop("check", "swap"), key, status, Fact.fixed(current), desired, **more)


def made(*findings: Finding, selection: list[str] | None = None) -> Report:
    return report.make(findings, {}, profile({}), HERE, time.monotonic(), selection)


def lines(*findings: Finding, width: int = render.WIDTH) -> list[str]:
    """The text of a report without its head and its last line."""
    return render.text(made(*findings), width=width).splitlines()[2:-2]


PASS, FAIL, UNKNOWN = finding(), finding(Status.FAIL), finding(Status.UNKNOWN)
PENDING, VOLATILE, POWER = (finding(s) for s in (Status.PENDING, Status.VOLATILE, Status.POWER_CYCLE))
ADVISORY, WAIVED = FAIL._replace(advisory=True), FAIL._replace(waived="dumps (until 2999-01-01)")


@pytest.mark.parametrize(
    ("findings", "said"),
    [
        ([PASS, PASS], "READY: 2 passed"),
        ([PASS, VOLATILE], "READY until the next boot: 1 volatile, 1 passed"),
        ([PASS, WAIVED], "READY (1 waived): 1 passed, 1 waived"),
        ([WAIVED], "READY (1 waived): 1 waived"),
        ([PASS, ADVISORY, UNKNOWN._replace(advisory=True)], "READY: 1 passed; advisory: 1 failed, 1 unknown"),
        ([PASS, UNKNOWN, FAIL, FAIL], "NOT READY: 2 failed, 1 unknown, 1 passed"),
        ([PENDING, PASS], "NOT READY before a reboot: 1 waiting for a reboot, 1 passed"),
        (
            [PENDING, POWER, PASS],
            "NOT READY before a power cycle: 1 waiting for a power cycle, 1 waiting for a reboot, 1 passed",
        ),
        ([UNKNOWN, PENDING], "NOT READY, as far as can be told: 1 unknown, 1 waiting for a reboot"),
        (
            [ADVISORY],
            "NOT READY, as far as can be told: nothing was looked at that this profile requires; advisory: 1 failed",
        ),
        ([], "NOT READY, as far as can be told: nothing was looked at that this profile requires"),
    ],
)
def test_the_last_line_says_first_what_decides(findings: list[Finding], said: str) -> None:
    assert render.verdict(made(*findings)) == said
    assert render.text(made(*findings)).endswith(f"\n\n{said}\n")


def test_a_part_is_called_a_part() -> None:
    assert render.verdict(made(PASS, selection=["swap"])) == "READY (only swap looked at): 1 passed"


# -- the table ------------------------------------------------------------------------------------


def test_settings_with_the_same_said_about_them_share_it() -> None:
    same = {"status": Status.UNKNOWN, "current": Unknown("no GRUB"), "message": "no GRUB", "fix": "Look."}
    table = lines(finding(key="nosmp", **same), finding(key="mem", **same), finding(), finding(key="maxcpus", **same))
    assert [line.split()[0] for line in table[1:]] == (
        ["swap", "unknown", "unknown", "no", "->", "pass", "unknown", "no", "->"]
    )


def test_many_devices_that_pass_alike_have_one_row_and_one_that_does_not_its_own() -> None:
    """Eight GPUs, or sixteen VFs with three settings each, are no forty-eight rows."""
    gpus = [finding(key=f"0000:{bus}:00.0/{name}") for bus in ("04", "05", "84", "85") for name in ("bus", "model")]
    vfs = [finding(key=f"0000:17:00.{pf}/vf{n}/trust") for pf in (0, 1) for n in range(8)]
    gpus[5] = finding(Status.FAIL, key="0000:84:00.0/model", current="c")
    rows = [line for line in lines(*gpus, *vfs) if line.startswith(("  pass", "  FAIL"))]
    assert [re.split(r" {2,}", row.strip())[1] for row in rows] == [
        "*/bus (4)",
        "*/model (3)",
        "0000:84:00.0/model",
        "*/vf*/trust (16)",
    ]
    two = [finding(key=f"0000:17:00.{pf}/vfs") for pf in (0, 1)]
    assert "*" not in "".join(lines(*two))


def test_another_check_with_the_same_said_about_it_says_it_again() -> None:
    table = lines(*(finding(Status.FAIL, check=check, message="Wrong.") for check in ("swap", "system")))
    assert sum("Wrong." in line for line in table) == 2


def test_what_the_row_says_is_not_said_again() -> None:
    wanted = Desired(8, op=">=")
    table = lines(finding(Status.FAIL, current=2, desired=wanted, message="Wanted >= 8, found 2.", fix="Buy more."))
    assert table[2].split() == ["FAIL", "devices", ">=", "8", "2", "same"]
    assert [line.strip() for line in table[3:]] == ["-> Buy more."]


@pytest.mark.parametrize(
    ("wanted", "found", "cells"),
    [
        (32 * 10**9, 33_500_000_000, [">= 32 GB", "33.5 GB"]),
        (32 * GIB, 33_500_000_000, [">= 32 GiB", "31.1 GiB"]),
        (32 * 10**9, 31_990_000_000, [">= 32 GB", "31.9 GB"]),
        (1_500_000_000_000, 10**12, [">= 1.5 TB", "1 TB"]),
        (512 * 1024, 5, [">= 512 KiB", "5 B"]),
        (10**6, 0, [">= 1 MB", "0 B"]),
        (2_527_651_020, GIB, [">= 2.4 GiB", "1 GiB"]),
    ],
)
def test_a_size_is_shown_as_it_was_asked_for(wanted: int, found: int, cells: list[str]) -> None:
    """Who wrote 32GB finds 32 GB, and what is found is never rounded up to what is wanted."""
    row = lines(finding(Status.FAIL, current=found, desired=Desired(wanted, op=">=", unit="bytes")))[2]
    assert [cell.strip() for cell in row.split("  ") if cell.strip()][2:4] == cells


LONG = finding(
    Status.FAIL,
    "fstab:UUID=3f1e9f3e-6f4b-4f0e-8f0a-0a3c2f0c6a11",
    "intel_iommu=on, iommu=pt, default_hugepagesz=1G, hugepagesz=1G, hugepages=32",
    desired=Desired("/dev/disk/by-id/nvme-eui.0025388b710116a1-part3"),
    message="What it means, in a sentence that is much longer than the eighty characters of a small terminal.",
)


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_the_table_fits_and_nothing_is_cut(width: int) -> None:
    table = lines(LONG, PASS, width=width)
    assert max(map(len, table)) <= width
    together = "".join("".join(table).split())
    assert "…" not in together
    for part in ("iommu=pt", "part3", "6a11", "hugepages=32", "smallterminal."):
        assert part in together or width < 80


def test_a_command_to_copy_is_not_broken() -> None:
    fix = "hostprep apply --only swap --allow-disruption swap --profile /etc/hostprep/profiles/a-long-name.yaml"
    assert any(fix in line for line in lines(PASS, finding(Status.FAIL, fix=fix), width=60))


def test_colours_colour_and_change_nothing_else() -> None:
    whole = made(PASS, FAIL, UNKNOWN, PENDING, VOLATILE, ADVISORY, WAIVED)
    coloured = render.text(whole, render.coloured)
    assert "\x1b[31;1mFAIL" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == render.text(whole)


# -- hostile text (T8) ----------------------------------------------------------------------------

EVIL = made(
    *(finding(s, HOSTILE, HOSTILE, message=HOSTILE, fix=HOSTILE) for s in Status),
    finding(Status.UNKNOWN, HOSTILE, Unknown(HOSTILE), message=HOSTILE),
    finding(Status.FAIL, HOSTILE, waived=HOSTILE),
    finding(Status.FAIL, HOSTILE, advisory=True, message=HOSTILE),
)._replace(hostname=HOSTILE)


def test_text_of_the_host_cannot_write_on_the_terminal() -> None:
    """T8: a swap file may be named `\\x1b[2J`."""
    assert all(line.isprintable() for line in render.text(EVIL).splitlines())


@pytest.mark.parametrize("whole", [EVIL, made(UNKNOWN, WAIVED)], ids=["hostile", "plain"])
def test_junit_is_xml_with_a_case_for_each_finding(whole: Report) -> None:
    root = ET.fromstring(junit.render(whole).encode("utf-8", "replace"))
    assert len(root.findall("./testsuite/testcase")) == len(whole.findings)


def test_junit_counts_what_decides() -> None:
    (suite,) = ET.fromstring(junit.render(made(PASS, FAIL, UNKNOWN, PENDING, ADVISORY, WAIVED))).findall("testsuite")
    numbers = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert numbers == {"tests": "6", "failures": "2", "errors": "1", "skipped": "2"}
    assert [s.get("message") for s in suite.findall("./testcase/skipped")][1] == "waived: dumps (until 2999-01-01)"


def test_a_check_without_an_answer_is_in_every_format() -> None:
    """A profile that is not valid has a finding and no check; a JUnit file without a case would look like success."""
    broken = made(finding(Status.UNKNOWN, "*", check="profile", message="not valid"))
    assert "<error " in junit.render(broken)
    assert 'hostprep_check_status{check="profile",status="unknown"} 1' in prometheus.render(broken)
    assert "profile/* unknown" in nagios.render(broken)


@pytest.mark.parametrize(
    ("findings", "start"),
    [
        ([PASS], "HOSTPREP OK - 1 passed | pass=1 volatile=0 pending-reboot=0 pending-power-cycle=0 fail=0 "),
        ([POWER], "HOSTPREP WARNING - 1 waiting for a power cycle: swap/devices pending-power-cycle | "),
        ([PASS, ADVISORY], "HOSTPREP OK - 1 passed; advisory: 1 failed | "),
        ([PASS, WAIVED], "HOSTPREP OK - 1 passed, 1 waived: swap/devices waived: dumps (until 2999-01-01) | "),
        ([PENDING], "HOSTPREP WARNING - 1 waiting for a reboot: swap/devices pending-reboot | "),
        ([FAIL, UNKNOWN], "HOSTPREP CRITICAL - 1 failed, 1 unknown: swap/devices fail; swap/devices unknown | "),
        ([UNKNOWN], "HOSTPREP UNKNOWN - 1 unknown: swap/devices unknown | "),
        ([], "HOSTPREP UNKNOWN - nothing was looked at"),
    ],
)
def test_nagios_gets_one_line(findings: list[Finding], start: str) -> None:
    assert nagios.render(made(*findings)).startswith(start)


def test_what_waits_for_a_power_cycle_is_told_apart_from_what_waits_for_a_reboot() -> None:
    (suite,) = ET.fromstring(junit.render(made(POWER))).findall("testsuite")
    assert suite.get("failures") == "1"
    row = next(line for line in lines(POWER) if "devices" in line)
    assert row.split()[0] == "power"


def test_nagios_gets_one_line_and_one_bar_whatever_the_host_says() -> None:
    said = nagios.render(EVIL)
    assert (said.count("|"), said.count("\n"), said[:-1].isprintable()) == (1, 1, True)


@pytest.mark.parametrize("name", [n for n in formats.NAMES if n not in ("make", "nfd", "npd")])  # a word or a number
def test_a_waiver_is_shown_to_machines_too(name: str) -> None:
    shown = formats.of(name)(made(PASS, WAIVED))
    assert ("hostprep_finding_waived" if name == "prometheus" else "dumps (until 2999-01-01)") in shown


# -- plans ----------------------------------------------------------------------------------------


def test_a_plan_says_what_is_done_how_and_what_is_refused_and_why() -> None:
    change = Change("swap", "devices", Facet.CURRENT, ("/swapfile",), ())
    later = change._replace(facet=Facet.NEXT_BOOT)
    disrupting = Desired((), disrupts="2 GiB come back into memory")
    busy = Desired((), refused_now="a job uses it", fix="Stop the job.")
    step = Step("write /etc/fstab", "--- /etc/fstab\n+++ /etc/fstab\n-old\n+new\n")
    said = render.plan(
        [
            Batch("swap", Facet.CURRENT, [Planned(change, disrupting, "")], [Step("swapoff /swapfile")]),
            Batch("swap", Facet.NEXT_BOOT, [Planned(later, None, "it is \x1bours")], [step]),
            Batch("swap", Facet.CURRENT, [Planned(change, busy, busy.refused_now)], []),
            Batch("swap", Facet.CURRENT, [Planned(change, busy, "no space left on device")], []),
        ]
    )
    assert said.splitlines() == [
        "swap, now",
        "  devices: /swapfile -> none",
        "    disrupts: 2 GiB come back into memory",
        "    # swapoff /swapfile",
        "",
        "Refused: needed, but hostprep will not do it",
        "  swap/devices: /swapfile -> none (next boot)",
        "    it is  ours",
        "  swap/devices: /swapfile -> none (now)",
        "    a job uses it",
        "    -> Stop the job.",
        "  swap/devices: /swapfile -> none (now)",
        "    no space left on device",
        "",
    ]


def test_what_was_begun_and_never_done_is_nothing_to_take_back() -> None:
    assert render.revert([], [], []) == "Nothing is left to take back: this host is as hostprep found it.\n"
