"""The page for a person says what the text says, the worst first, and leaves nothing out."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
from html_pages import ADVISORY, ALL, EACH, FAIL, GPU, PASS, UNKNOWN, VFS, WAIVED, finding, made, tree, words

from hostprep import render
from hostprep.errors import ReportUnusable
from hostprep.formats import html
from hostprep.model import Fact, Finding, Status, Unknown


def rows(page: str) -> Iterator[tuple[ET.Element, bool]]:
    """Each row of a finding, and whether it is folded."""
    root = tree(page)
    folded = {row for fold in root.iterfind(".//section/details") for row in fold.iter("tr")}
    for row in root.iterfind(".//table[@class='findings']/tbody/tr"):
        if row.get("class") != "said":
            yield row, row in folded


def settings(page: str) -> list[str]:
    return [words(cell) for row, _ in rows(page) for cell in row.iterfind("th")]


def todo(page: str) -> list[str]:
    return [words(item) for item in tree(page).iterfind(".//ol/li")]


# -- the verdict ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("findings", "selection", "tone"),
    [
        ([PASS], None, "ok"),
        ([PASS, WAIVED, ADVISORY], None, "ok"),
        ([PASS, finding(Status.VOLATILE)], None, "wait"),
        ([PASS], ["swap"], "odd"),
        ([PASS, finding(Status.VOLATILE)], ["swap"], "odd"),
        ([PASS, finding(Status.PENDING)], None, "wait"),
        ([PASS, finding(Status.POWER_CYCLE)], None, "wait"),
        ([PASS, UNKNOWN], None, "odd"),
        ([PASS, UNKNOWN, FAIL], None, "bad"),
        ([PASS, FAIL], ["swap"], "bad"),
        ([ADVISORY], None, "odd"),
        ([], None, "odd"),
    ],
)
def test_the_verdict_is_that_of_the_text_and_looks_ready_only_where_the_host_is(
    findings: list[Finding], selection: list[str] | None, tone: str
) -> None:
    whole = made(*findings, selection=selection)
    (top,) = tree(html.render(whole)).iterfind("./body/header/div")
    assert top.get("class") == f"verdict {tone}"
    (title,) = top.iterfind(".//h1")
    (summary,) = top.iterfind(".//p")
    assert f"{words(title)}: {words(summary)}" == f"node01 {render.verdict(whole)}"


def test_it_says_until_when_it_counts() -> None:
    """A page in a browser does not grow old by itself."""
    whole = made(PASS)._replace(generated_at=1_700_000_000, valid_for=3600, uptime=120.0)
    about = words(tree(html.render(whole)).find(".//dl[@class='about']") or ET.Element("none"))
    for part in ("Looked at 2023-11-14 22:13 UTC", "Valid in this boot until 2023-11-14 23:13 UTC", "Profile test"):
        assert part in about
    times = [t.get("datetime") for t in tree(html.render(whole)).iter("time")]
    assert times == ["2023-11-14T22:13:20Z", "2023-11-14T23:13:20Z", "2023-11-14T22:11:20Z"]


def test_a_page_without_a_report_says_not_ready_and_why() -> None:
    """Who looks at yesterday's file must not read there that the host is ready."""
    page = html.unusable(ReportUnusable("it is of an earlier boot", "Look at the host again: hostprep check"))
    assert words(tree(page)[1]) == (
        "NOT READY, as far as can be told it is of an earlier boot "
        "What to do next Look at the host again: hostprep check"
    )
    assert '<code class="command">hostprep check</code>' in page
    assert "hostprep check" in html.unusable(ReportUnusable("none was made"))


# -- what to do -----------------------------------------------------------------------------------


def test_what_to_do_is_said_once_the_worst_first_with_what_it_is_about() -> None:
    page = html.render(
        made(
            finding(Status.VOLATILE, "later", fix="hostprep apply --only swap"),
            finding(Status.PENDING, "soon", fix="Reboot this host, or: hostprep apply --only swap"),
            finding(Status.UNKNOWN, "dark", message="no answer within 30 s"),
            *(finding(Status.FAIL, f"{vf}/trust", fix="hostprep apply --only swap") for vf in VFS[:4]),
            WAIVED,
            ADVISORY,
            PASS,
        )
    )
    assert todo(page) == [
        "hostprep apply --only swap swap/*/vf*/trust (4), swap/later",
        "Find out why: no answer within 30 s swap/dark",
        "Reboot this host, or: hostprep apply --only swap swap/soon",
    ]
    assert page.count('<code class="command">hostprep apply --only swap</code>') == 2 + 3  # there and at the findings


def test_a_long_list_of_things_to_do_ends_and_says_so() -> None:
    page = html.render(made(*(finding(Status.FAIL, f"key{n}", fix=f"Do {n}.") for n in range(20))))
    assert (len(todo(page)), todo(page)[-1]) == (13, "8 things more: each is said below, with its finding")
    assert all(f"Do {n}." in page for n in range(20))


@pytest.mark.parametrize(
    ("findings", "said"),
    [
        ([PASS, WAIVED], "What to do next Nothing."),
        ([ADVISORY], "What to do next Give this profile something to look at that it requires."),
        ([finding(Status.VOLATILE, fix="Keep it.")], "To keep it ready after a reboot Keep it. swap/devices"),
    ],
)
def test_where_nothing_has_to_be_done_it_says_that(findings: list[Finding], said: str) -> None:
    (section,) = tree(html.render(made(*findings))).iterfind(".//section[@aria-labelledby='next']")
    assert words(section) == said


# -- the findings ---------------------------------------------------------------------------------


def test_what_is_wrong_comes_first_and_what_passed_is_folded() -> None:
    page = html.render(made(*EACH, ADVISORY, WAIVED, finding(check="aaa"), finding(Status.UNKNOWN, check="zzz")))
    checks = [words(name) for name in tree(page).iterfind(".//h3")]
    assert checks == ["swap", "zzz", "system", "gpu", "aaa"]
    assert [words(cell) for cell in tree(page).iterfind(".//nav//li")] == [
        "swap 1 failed",
        "zzz 1 unknown",
        "system 1 advisory",
        "gpu 1 waived",
        "aaa 1 passed",
    ]
    in_order = [(words(row[1]).removeprefix("key-"), folded) for row, folded in rows(page) if "key-" in words(row[1])]
    assert in_order == [
        ("fail", False),
        ("unknown", False),
        ("pending-power-cycle", False),
        ("pending-reboot", False),
        ("volatile", False),
        ("pass", True),
    ]


def test_no_meaning_is_in_a_colour_alone() -> None:
    """Each row has the word of its status and what takes it out of the verdict; what is off is underlined and bold."""
    said = {words(row[1]): words(row[0]) for row, _ in rows(html.render(ALL))}
    statuses = {f.key: render.WORDS[f.status][0] for f in EACH}
    assert said == statuses | {"time": "FAIL advisory", GPU: "FAIL waived"}
    assert re.search(r"\.off {[^}]*underline", Path(html.STYLE_FILE).read_text())


@pytest.mark.parametrize(
    ("status", "fact", "off"),
    [
        (Status.PASS, Fact("b", "b"), []),
        (Status.VOLATILE, Fact("b", "a"), ["a"]),
        (Status.PENDING, Fact("a", "b"), ["a"]),
        (Status.FAIL, Fact("a", "c"), ["a", "c"]),
        (Status.FAIL, Fact("a", "a"), ["a"]),
        (Status.UNKNOWN, Fact("a", Unknown("why")), []),
    ],
)
def test_the_sides_that_are_not_as_wanted_are_marked(status: Status, fact: Fact, off: list[str]) -> None:
    page = html.render(made(finding(status)._replace(fact=fact)))
    assert [words(mark) for mark in tree(page).iterfind(".//span[@class='off']")] == off


def test_every_finding_and_fact_is_there() -> None:
    page = words(tree(html.render(ALL))[1])
    for f in ALL.findings:
        assert all(part in page for part in (f.key, f.message, f.fix.removeprefix("-> ") if f.counts else f.waived))
    assert "devices a b used 0" in page


def test_a_thousand_vfs_are_a_page_that_can_be_read() -> None:
    """Rows are folded as the text folds them, those that are not as wanted too, and each VF is still named."""
    alike = [finding(s, f"{vf}/{k}") for vf in VFS for s, k in ((Status.PASS, "trust"), (Status.FAIL, "vlan"))]
    apart = [finding(Status.FAIL, f"{vf}/mac", vf) for vf in VFS]
    facts = {"nic_vfs": {f"{vf}/{k}": Fact.fixed(k) for vf in VFS for k in ("mac", "vlan", "trust")}}
    page = html.render(made(*alike, *apart)._replace(facts=facts))
    shown = settings(page)
    assert [words(e) for e in tree(page).iterfind(".//tbody/tr/th/details/summary")] == (
        ["*/vf*/vlan (1016)", "*/vf*/trust (1016)"]
    )
    assert "*/vf*/trust (1016)" in render.text(made(*alike))
    assert len(shown) == 2 + len(VFS)
    assert sum(not folded for _, folded in rows(page)) == 25
    named = page.split('id="facts"')[0]
    assert all(f"{vf}/{k}<" in named for vf in VFS for k in ("trust", "vlan", "mac"))
    assert len(page) < 400 * len(VFS) * 3


def test_few_devices_that_fail_alike_are_named_unasked() -> None:
    page = html.render(made(*(finding(Status.FAIL, f"{vf}/vlan") for vf in VFS[:3])))
    (fold,) = tree(page).iterfind(".//tbody/tr/th/details")
    assert (fold.get("open"), [words(name) for name in fold.iter("li")]) == ("", [f"{vf}/vlan" for vf in VFS[:3]])


def test_kernel_modules_share_a_row_and_a_search_finds_each() -> None:
    facts = {f"module/m{n}": Fact.fixed("loaded") for n in range(30)} | {"module/odd": Fact("loaded", "forbidden")}
    page = html.render(made(PASS)._replace(facts={"system": {"kernel": Fact.fixed("6.1"), **facts}}))
    (table,) = tree(page).iterfind(".//table[@class='facts']")
    assert [words(row) for row in table.iterfind("./tbody/tr")] == [
        "kernel 6.1",
        f"module (30) {', '.join(f'm{n}' for n in range(30))} loaded",
        "module/odd loaded forbidden",
    ]
