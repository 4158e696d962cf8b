"""What Prometheus reads: series of a host keep their labels, no stale 1 is left, and what comes with it knows them."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import here
from test_render import ADVISORY, EVIL, FAIL, PASS, PENDING, POWER, UNKNOWN, VOLATILE, WAIVED, finding, made

import hostprep.__main__ as entry
from hostprep import report, state
from hostprep.errors import ReportUnusable
from hostprep.formats import prometheus
from hostprep.model import Finding, Status

SHARE = Path(prometheus.__file__).parent.parent / "share" / "prometheus"
RULES, RULES_TEST = SHARE / "hostprep.rules.yml", SHARE / "hostprep.rules.test.yml"
METRIC = r"\b(?:hostprep[_:][a-z_]+|node_(?!exporter)[a-z_]+|up)\b"
OF_OTHERS = {"up", "node_boot_time_seconds", "node_textfile_scrape_error"}  # of Prometheus and node_exporter


def refused(reason: str) -> ReportUnusable:
    return ReportUnusable("it cannot be relied on", reason=reason)


def series(text: str) -> dict[str, float]:
    """Value by name and labels, of an exposition in which each is there once."""
    rows = [row.rsplit(" ", 1) for row in text.splitlines() if not row.startswith("#")]
    values = {name: float(value) for name, value in rows}
    assert len(values) == len(rows), "a series is there twice: node_exporter would drop it"
    return values


def of(*findings: Finding) -> dict[str, float]:
    return series(prometheus.render(made(*findings)))


def promtool(*words: str, data: bytes = b"", cwd: Path | None = None) -> tuple[int, str]:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (package prometheus)")
    done = subprocess.run([program, *words], input=data, capture_output=True, cwd=cwd)
    return done.returncode, (done.stdout + done.stderr).decode()


TEXTS = {
    "hostile": prometheus.render(EVIL),
    "plain": prometheus.render(made(PASS, WAIVED, ADVISORY)),
    "empty": prometheus.render(made()),
    "none": prometheus.unusable(refused("missing")),
}


@pytest.mark.parametrize("name", TEXTS)
def test_promtool_accepts_the_metrics(name: str) -> None:
    assert promtool("check", "metrics", data=TEXTS[name].encode()) == (0, "")


@pytest.mark.parametrize("name", TEXTS)
def test_each_sample_is_one_line_and_there_once(name: str) -> None:
    """T8. One sample that is there twice, or has a timestamp, and node_exporter drops it or the whole file."""
    rows = TEXTS[name].split("\n")
    assert rows.pop() == ""
    sample = r'hostprep_[a-z_]+(\{[a-z]+="([^"\\\n]|\\["\\n])*"(,[a-z]+="([^"\\\n]|\\["\\n])*")*\})? [0-9.]+'
    assert [row for row in rows if not re.fullmatch(rf"# (HELP|TYPE) hostprep_[a-z_]+ .+|{sample}", row)] == []
    assert series(TEXTS[name])


def test_two_settings_that_look_alike_are_one_series_and_the_worse_one() -> None:
    """Bytes that are not printable become spaces, and so two names may become one."""
    alike = [finding(key="a\x01b"), finding(Status.FAIL, key="a\x02b"), finding(key="a\x03b")]
    for order in (alike, alike[::-1]):
        assert of(*order)['hostprep_finding_ok{check="swap",key="a b"}'] == 0


def test_what_a_report_says() -> None:
    whole = made(
        *(f._replace(key=key) for f, key in zip((PASS, FAIL, UNKNOWN, ADVISORY, WAIVED), "abcde", strict=True))
    )._replace(generated_at=1_790_000_000, uptime=1234.5, valid_for=3600, duration_ms=1250, durations={"swap": 40})
    said = series(prometheus.render(whole._replace(version="1.2.3")))
    assert {name: value for name, value in said.items() if "status=" not in name or "key=" in name} == {
        'hostprep_build_info{version="1.2.3"}': 1,
        "hostprep_ready": 0,
        "hostprep_report_usable": 1,
        **{f'hostprep_verdict{{verdict="{v}"}}': v == "not-ready" for v in report.VERDICTS},
        'hostprep_profile_info{profile="test"}': 1,
        "hostprep_reboot_required": 0,
        "hostprep_report_timestamp_seconds": 1_790_000_000,
        "hostprep_report_valid_until_seconds": 1_790_003_600,
        "hostprep_boot_time_seconds": 1_789_998_766,
        "hostprep_duration_seconds": 1.25,
        'hostprep_check_duration_seconds{check="swap"}': 0.04,
        **{f'hostprep_finding_ok{{check="swap",key="{key}"}}': key == "a" for key in "abcde"},
        'hostprep_finding_info{check="swap",key="b",status="fail",counts="true"}': 1,
        'hostprep_finding_info{check="swap",key="c",status="unknown",counts="true"}': 1,
        'hostprep_finding_info{check="swap",key="d",status="fail",counts="false"}': 1,
        'hostprep_finding_info{check="swap",key="e",status="fail",counts="false"}': 1,
        "hostprep_waived_findings": 1,
        'hostprep_finding_waived{check="swap",key="e"}': 1,
    }
    assert {name for name, value in said.items() if "check_status" in name and value} == {
        f'hostprep_check_status{{check="swap",status="{status}"}}' for status in ("pass", "fail", "unknown")
    }
    counted = {name: value for name, value in said.items() if name.startswith("hostprep_findings") and value}
    assert counted == {
        'hostprep_findings{status="pass",counts="true"}': 1,
        'hostprep_findings{status="fail",counts="true"}': 1,
        'hostprep_findings{status="fail",counts="false"}': 2,
        'hostprep_findings{status="unknown",counts="true"}': 1,
    }


@pytest.mark.parametrize("other", [FAIL, UNKNOWN, PENDING, VOLATILE, POWER, ADVISORY, WAIVED])
def test_series_are_the_same_whatever_is_found(other: Finding) -> None:
    """One that got other labels would reset every `for:` and leave a hole in every graph."""

    def lasting(f: Finding) -> set[str]:
        return {name for name in of(f) if "_info{" not in name and "finding_waived{" not in name}

    assert lasting(other) == lasting(PASS)


def test_what_waits_for_a_power_cycle_does_not_wait_for_a_reboot() -> None:
    """Whoever reboots by hostprep_reboot_required must not do so where no reboot helps."""
    said = of(POWER, PENDING)
    assert said['hostprep_verdict{verdict="pending-power-cycle"}'] == 1
    assert said["hostprep_reboot_required"] == 0


@pytest.mark.parametrize(("f", "verdict"), [(PASS, "unknown"), (FAIL, "not-ready")])
def test_a_part_can_say_not_ready_and_never_ready(f: Finding, verdict: str) -> None:
    """T9, as `hostprep check --only swap --format prometheus --output hostprep.prom` would leave it behind."""
    said = series(prometheus.render(made(f, selection=["swap"])))
    assert (said["hostprep_ready"], said["hostprep_report_usable"]) == (0, 0)
    assert said['hostprep_report_unusable{reason="partial"}'] == 1
    assert [name for name, value in said.items() if "hostprep_verdict{" in name and value] == [
        f'hostprep_verdict{{verdict="{verdict}"}}'
    ]


# -- no report ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reason", "label"), [("other-boot", "other-boot"), ("", "other"), ("/run/x: EIO", "other")])
def test_without_a_report_nothing_is_said_of_the_host(reason: str, label: str) -> None:
    """The reason is a word of a short list: text would make a series of every message."""
    said = series(prometheus.unusable(refused(reason)))
    assert {name: value for name, value in said.items() if "build_info" not in name} == {
        "hostprep_ready": 0,
        "hostprep_report_usable": 0,
        **{f'hostprep_verdict{{verdict="{v}"}}': v == "unknown" for v in report.VERDICTS},
        f'hostprep_report_unusable{{reason="{label}"}}': 1,
    }
    assert set(said) - set(of(PASS)) == {f'hostprep_report_unusable{{reason="{label}"}}'}


def test_every_reason_is_one_of_the_list() -> None:
    """Whoever refuses a report says why in one of these words, or it counts as `other`."""
    package = SHARE.parent.parent
    trees = [ast.parse(path.read_text()) for path in package.rglob("*.py")]
    words = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.keyword)]
    given = {w.value.value for w in words if w.arg == "reason" and isinstance(w.value, ast.Constant)}
    assert given <= set(prometheus.REASONS)


def test_an_old_textfile_does_not_go_on_saying_ready(tmp_path: Path) -> None:
    output = tmp_path / "hostprep.prom"
    words = ["report", "--format", "prometheus", "--output", str(output)]
    state.publish(here(PASS))
    assert entry.run(words) == 0
    assert series(output.read_text())["hostprep_ready"] == 1
    state.retract()
    assert entry.run(words) == 3
    assert series(output.read_text())["hostprep_ready"] == 0
    assert [path.name for path in tmp_path.glob("*.prom")] == ["hostprep.prom"]


REFUSED = {
    "missing": lambda: None,
    "damaged": lambda: Path(state.publish(here(PASS))).write_text("{"),
    "foreign-version": lambda: Path(state.publish(here(PASS))).write_text("{}"),
    "untrusted": lambda: os.chmod(state.publish(here(PASS)), 0o666),
    "other-boot": lambda: state.publish(here(PASS)._replace(boot_id="another")),
    "other-machine": lambda: state.publish(here(PASS)._replace(machine_id="0" * 32)),
    "partial": lambda: state.publish(here(PASS)._replace(selection=["swap"])),
    "future": lambda: state.publish(here(PASS)._replace(generated_at=int(time.time()) + 600)),
    "expired": lambda: state.publish(here(PASS)._replace(generated_at=int(time.time()) - 7200)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_the_reason_is_told_in_a_word(reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    REFUSED[reason]()
    assert entry.run(["report", "--format", "prometheus"]) == 3
    assert f'hostprep_report_unusable{{reason="{reason}"}} 1\n' in capsys.readouterr().out


@pytest.mark.parametrize(("words", "reason"), [("other", "other-profile"), ("absent", "broken-profile")])
def test_a_profile_is_a_reason_too(words: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.yaml").write_text("swap: disabled\n")
    state.publish(here(PASS))
    entry.run(["report", "--format", "prometheus", "--profile", str(tmp_path / f"{words}.yaml")])
    assert f'hostprep_report_unusable{{reason="{reason}"}} 1\n' in capsys.readouterr().out


# -- what comes with it ---------------------------------------------------------------------------


def rules(kind: str) -> dict[str, dict[str, Any]]:
    """Recording rules (`record`) or alerts (`alert`), by name."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule[kind]: rule for group in groups for rule in group["rules"] if kind in rule}


def nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object within a JSON document."""
    if isinstance(tree, dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from nodes(child)


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((SHARE / "hostprep-dashboard.json").read_text())
    return loaded


def expressions() -> list[str]:
    """Every query in the rules, the templates of their annotations, and the dashboard."""
    found = [rule["expr"] for kind in ("record", "alert") for rule in rules(kind).values()]
    found += [text for rule in rules("alert").values() for text in rule["annotations"].values()]
    found += [node["expr"] for node in nodes(dashboard()) if "expr" in node]
    return found + [node["definition"] for node in nodes(dashboard()) if "definition" in node]


def test_promtool_accepts_the_rules_and_their_tests_pass() -> None:
    assert promtool("check", "rules", str(RULES))[0] == 0
    code, said = promtool("test", "rules", RULES_TEST.name, cwd=SHARE)
    assert code == 0, said


def test_every_alert_fires_and_ends_in_the_tests_of_the_rules() -> None:
    tests = [t for group in yaml.safe_load(RULES_TEST.read_text())["tests"] for t in group["alert_rule_test"]]
    fires = {t["alertname"] for t in tests if t.get("exp_alerts")}
    silent = {t["alertname"] for t in tests if not t.get("exp_alerts")}
    assert fires == silent == set(rules("alert"))


def test_every_alert_says_what_to_do() -> None:
    assert {name for name, rule in rules("alert").items() if not rule["annotations"].get("action")} == set()
    assert {rule["labels"]["severity"] for rule in rules("alert").values()} == {"warning", "info"}


def test_rules_and_dashboard_ask_only_for_what_there_is() -> None:
    """A name that nobody exports gives an empty answer and no error."""
    everything = [prometheus.render(made(PASS, FAIL, WAIVED)._replace(durations={"swap": 1}))]
    told = "\n".join([*everything, TEXTS["none"]])
    there = {name.partition("{")[0] for name in re.findall(r"^hostprep\S+", told, re.MULTILINE)}
    asked = {name for text in expressions() for name in re.findall(METRIC, text)}
    assert asked - OF_OTHERS <= there | set(rules("record"))
    assert set(rules("record")) <= asked


def test_the_dashboard_can_be_imported_anywhere() -> None:
    """Of no other data source than the one that is chosen; no panel covers another."""
    board = dashboard()
    used = {node["datasource"]["uid"] for node in nodes(board) if isinstance(node.get("datasource"), dict)}
    assert used == {"${datasource}"}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in board["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_the_dashboard_has_a_word_for_every_status_and_verdict() -> None:
    mapped = {key for node in nodes(dashboard()) if node.get("type") == "value" for key in node["options"]}
    assert mapped >= {*report.VERDICTS, *(s.value for s in Status if s is not Status.PASS)}
