"""Reports as pages, and how to read one back."""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from typing import Any

from conftest import profile

from hostprep import report
from hostprep.errors import ReportUnusable
from hostprep.formats import html
from hostprep.model import Desired, Fact, Finding, Reading, Status, Unknown
from hostprep.report import Identity, Report

HERE = Identity("node01", "0123456789abcdef", "11111111-2222", "6.1.0")
HOSTILE = "a\nb\x1b[31m\"'</title></style></td><script>alert(1)</script><!-- ]]> & &lt; \u202egnp\u2066 \udcff \ufffe"
GPU = "0000:65:00.0/ecc"


def finding(status: Status = Status.PASS, key: str = "devices", current: Reading = "a", **more: Any) -> Finding:
    desired = more.pop("desired", Desired("b"))
    return Finding(more.pop("check", "swap"), key, status, Fact.fixed(current), desired, **more)


def made(*findings: Finding, selection: list[str] | None = None) -> Report:
    return report.make(findings, {}, profile({}), HERE, time.monotonic(), selection)


def everywhere(said: str) -> Report:
    """A report that says this wherever a host, or who made up the report, can say something."""
    findings = [
        *(finding(s, said, said, check=said, message=said, fix=said, desired=Desired(said)) for s in Status),
        *(finding(Status.FAIL, f"0000:17:00.0/vf{n}/{said}", said, check=said) for n in range(4)),
        finding(Status.UNKNOWN, said, Unknown(said), message=said, desired=None),
        finding(Status.FAIL, said, waived=said),
        finding(Status.FAIL, fix=f"{said}: hostprep apply {said}"),
    ]
    run = {f"{said}/{n}<&": Fact(said, None) for n in range(30)}
    return made(*findings, selection=[said])._replace(
        hostname=said,
        profile=said,
        profile_sha256=said,
        machine_id=said,
        boot_id=said,
        kernel=said,
        version=said,
        facts={said: {said: Fact.fixed(said), "later": Fact(None, said), "dark": Fact.fixed(Unknown(said)), **run}},
    )


PASS, FAIL, UNKNOWN = finding(), finding(Status.FAIL), finding(Status.UNKNOWN)
EACH = [finding(status, f"key-{status.value}", message=f"It is {status.value}.") for status in Status]
ADVISORY = finding(Status.FAIL, "time", advisory=True, message="No clock.", fix="Start one.", check="system")
WAIVED = finding(Status.FAIL, GPU, waived="dumps (until 2999-01-01)", message="Off.", fix="Turn it on.", check="gpu")
ALL = made(*EACH, ADVISORY, WAIVED)._replace(facts={"swap": {"devices": Fact("a", "b"), "used": Fact.fixed(0)}})
VFS = [f"0000:{bus:02x}:00.{pf}/vf{n}" for bus in range(1, 5) for pf in (0, 1) for n in range(127)]  # 1,016 of them
PAGES = {
    "every status": html.render(ALL),
    "hostile": html.render(everywhere(HOSTILE)),
    "empty": html.render(made()),
    "a part": html.render(made(PASS, selection=["swap"])),
    "unusable": html.unusable(ReportUnusable(HOSTILE, HOSTILE)),
}


def tree(page: str) -> ET.Element:
    """The page as strict XML takes it, which it does only when every tag is closed and every character escaped."""
    return ET.fromstring(page.removeprefix("<!DOCTYPE html>\n").encode())


def words(element: ET.Element) -> str:
    return " ".join(" ".join(element.itertext()).split()).replace(" ,", ",")
