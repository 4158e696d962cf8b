"""`--format npd` and its configuration, by the rules of node-problem-detector (kubernetes/node-problem-detector)."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from conftest import here
from test_render import ADVISORY, EVIL, FAIL, HOSTILE, PASS, PENDING, POWER, UNKNOWN, VOLATILE, WAIVED, finding, made

import hostprep.__main__ as entry
from hostprep import state
from hostprep.formats import npd
from hostprep.model import Finding, Status
from hostprep.report import Report

CONFIG = Path(npd.__file__).parent.parent / "share" / "npd" / "hostprep.json"
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def config(program: str = sys.executable) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(CONFIG.read_text().replace("@hostprep@", program))
    return loaded


# -- the configuration, by pkg/custompluginmonitor/types/config.go ------------------------------------


def seconds(duration: str) -> float:
    """time.ParseDuration, which takes no bare number."""
    assert re.fullmatch(r"([0-9]+(ms|s|m|h))+", duration), duration
    return sum(int(number) * UNITS[unit] for number, unit in re.findall(r"([0-9]+)(ms|s|m|h)", duration))


def test_node_problem_detector_takes_the_configuration() -> None:
    """CustomPluginConfig.ApplyConfiguration and Validate: it ends at once with what is not so."""
    ours = config()
    everything, rules = ours["pluginConfig"], ours["rules"]
    assert ours["plugin"] == "custom"
    assert seconds(everything["invoke_interval"]) > 0
    assert all(seconds(rule["timeout"]) <= seconds(everything["timeout"]) for rule in rules)
    assert all(os.path.exists(rule["path"]) for rule in rules)
    assert {rule["condition"] for rule in rules} <= {condition["type"] for condition in ours["conditions"]}


def test_it_has_no_key_that_would_be_passed_over() -> None:
    """Their json.Unmarshal says nothing of a key that was misspelt (fields of CustomPluginConfig and CustomRule)."""
    ours = config()
    keys = {"invoke_interval", "timeout", "max_output_length", "concurrency"}
    keys |= {"enable_message_change_based_condition_update", "skip_initial_status"}
    assert set(ours) == {"plugin", "pluginConfig", "source", "metricsReporting", "conditions", "rules"}
    assert set(ours["pluginConfig"]) == keys
    assert {key for rule in ours["rules"] for key in rule} == {"type", "condition", "reason", "path", "args", "timeout"}
    assert all(set(condition) == {"type", "reason", "message"} for condition in ours["conditions"])


def test_names_are_those_that_the_api_takes() -> None:
    """A condition's reason is CamelCase, and not too long; NodeCondition and metav1.Condition of k8s.io/api."""
    ours = config()
    words = [rule["reason"] for rule in ours["rules"]] + [c[k] for c in ours["conditions"] for k in ("type", "reason")]
    assert [word for word in words if not re.fullmatch(r"[A-Z][A-Za-z0-9]{0,62}", word)] == []


def test_a_look_that_changes_nothing_makes_no_event() -> None:
    """generateStatus: a temporary rule that is not met makes an event at every look."""
    assert [rule["type"] for rule in config()["rules"]] == ["permanent"]


def test_nothing_is_said_of_a_host_before_it_was_looked_at() -> None:
    """initialConditions begins with False, which is ready, and sendInitialStatus says so unless this is set."""
    assert config()["pluginConfig"]["skip_initial_status"] is True


def test_its_metrics_are_not_said_where_they_do_not_tell_unknown_from_ready() -> None:
    """SetProblemGauge has 1 for True and 0 for all else: problem_gauge was 0 beside a damaged report."""
    assert config()["metricsReporting"] is False


# -- what becomes of it, by plugin.go and custom_plugin_monitor.go ------------------------------------


def condition(exit_status: int, stdout: str, before: str = "False") -> tuple[str, str, str]:
    """Status, reason and message of the condition after another one: Plugin.run, toConditionStatus, generateStatus."""
    ours = config()
    (default,), (rule,) = ours["conditions"], ours["rules"]
    output = stdout.strip().encode()[: ours["pluginConfig"]["max_output_length"]].decode()  # raises where it is cut
    status = {0: "False", 1: "True"}.get(exit_status, "Unknown")
    if status == "True":
        return status, rule["reason"], output
    unchanged = status == before
    return status, default["reason"], default["message"] if status == "False" or unchanged else output


REPORTS: dict[str, tuple[list[Finding] | str | None, str, str]] = {
    "ready": ([PASS, WAIVED, ADVISORY], "False", "the host is ready by its profile"),
    "ready until the next boot": ([VOLATILE], "False", "the host is ready by its profile"),
    "not ready": ([PASS, FAIL], "True", "swap/devices failed"),
    "waits for a reboot": ([PENDING], "True", "swap/devices needs a reboot"),
    "waits for a power cycle": ([PENDING, POWER], "True", "swap/devices needs a power cycle (+1 more)"),
    "unknown": ([UNKNOWN, PENDING], "Unknown", "swap/devices unknown (+1 more)"),
    "nothing required": ([ADVISORY], "Unknown", "NOT READY, as far as can be told: nothing was looked at that"),
    "no report": (None, "Unknown", "there is no report at "),
    "damaged": ("{", "Unknown", ""),
}


@pytest.mark.parametrize("case", REPORTS)
def test_the_condition_is_false_for_a_host_that_is_ready_and_for_no_other(
    case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """R61: its exit status 2, and every other but 0 and 1, is Unknown; that is what a report is that is not there."""
    given, wanted, said = REPORTS[case]
    if isinstance(given, list):
        state.publish(here(*given))
    elif given is not None:
        state.publish(here(PASS))
        Path(state.report_path()).write_text(given)
    (rule,) = config()["rules"]
    code = entry.run(rule["args"])
    stdout = capsys.readouterr().out
    assert code == {"False": 0, "True": 1, "Unknown": 2}[wanted]
    status, reason, message = condition(code, stdout)
    assert status == wanted
    assert message.startswith(said)
    assert stdout.count("\n") == 1
    assert "Ready" not in reason or wanted == "True", "Unknown has the reason of the default"


# -- the line -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("findings", "said"),
    [
        ([PASS, VOLATILE], "READY until the next boot: 1 volatile, 1 passed"),
        ([PASS, WAIVED], "READY (1 waived): 1 passed, 1 waived"),
        ([PENDING, UNKNOWN, POWER, FAIL, PASS], "swap/devices failed (+3 more)"),
        ([PENDING, finding(Status.UNKNOWN, "a"), UNKNOWN], "swap/a unknown (+2 more)"),
        ([WAIVED, ADVISORY, finding(Status.FAIL, "x", message="Off.")], "swap/x failed: Off."),
        (
            [finding(Status.FAIL, "a", message=f"Wanted {'many ' * 20}, found 1."), FAIL],
            "swap/a failed: Wanted many many many many many many many many many... (+1 more)",
        ),
        ([finding(Status.FAIL, "n" * 90), *[PENDING] * 1015], f"swap/{'n' * 59}... (+1015 more)"),
        ([finding(Status.FAIL, "é" * 90)], f"swap/{'?' * 72}..."),
    ],
)
def test_the_worst_finding_comes_first_and_the_others_are_counted(findings: list[Finding], said: str) -> None:
    line = npd.render(made(*findings)).removesuffix("\n")
    assert line == said
    assert len(line.encode()) <= 80


def test_a_part_is_called_a_part() -> None:
    assert npd.render(made(PASS, selection=["swap"])) == "READY (only swap looked at): 1 passed\n"


LONG = f"{HOSTILE}\n" * 9


@pytest.mark.parametrize(
    "whole",
    [EVIL, made(finding(Status.FAIL, message=LONG)), made(finding(Status.FAIL, LONG)), made(PASS, selection=[LONG])],
    ids=["everywhere", "message", "key", "selection"],
)
def test_it_is_one_line_of_80_bytes_whatever_the_host_says(whole: Report) -> None:
    """T8. Plugin.run cuts by the byte, and half a character is no UTF-8."""
    said = npd.render(whole)
    assert re.fullmatch(r"[ -~]{1,80}\n", said)


# -- the real one -------------------------------------------------------------------------------------


@pytest.fixture
def changes(tmp_path: Path) -> Iterator[Iterator[str]]:
    """What a real node-problem-detector says of our condition, with our configuration and without a cluster."""
    program = shutil.which("node-problem-detector")
    if program is None:
        pytest.skip("node-problem-detector is not installed")
    wrapper = tmp_path / "hostprep"
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hostprep "$@"\n')
    wrapper.chmod(0o755)
    ours = config(str(wrapper))
    ours["pluginConfig"]["invoke_interval"] = "300ms"
    (tmp_path / "c.json").write_text(json.dumps(ours))
    words = [program, f"--config.custom-plugin-monitor={tmp_path}/c.json", "--enable-k8s-exporter=false"]
    with socket.socket() as free:  # it ends where it has no exporter at all
        free.bind(("127.0.0.1", 0))
        words += [f"--prometheus-port={free.getsockname()[1]}", "--port=0", "--logtostderr"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        limit = threading.Timer(60, run.kill)
        limit.start()
        found = (re.search(r"New status generated: .*?Message:Node condition (.*?)}", line) for line in run.stderr)
        yield (said for said, _ in groupby(match[1] for match in found if match))  # each is said twice
        limit.cancel()
        run.kill()


def test_the_real_one_says_what_the_report_says(changes: Iterator[str]) -> None:
    assert next(changes).startswith('HostNotReady is now: Unknown, reason: HostprepReport, message: "there is no')
    for said, findings in {
        'False, reason: HostprepReport, message: "the host is ready by its profile"': [PASS],
        'True, reason: HostNotReady, message: "swap/devices failed"': [FAIL],
        'True, reason: HostNotReady, message: "swap/devices failed (+1 more)"': [FAIL, PENDING],
        'Unknown, reason: HostprepReport, message: "swap/devices unknown"': [UNKNOWN],
        'True, reason: HostNotReady, message: "swap/devices needs a reboot"': [PENDING],
    }.items():
        state.publish(here(*findings))
        assert next(changes) == f"HostNotReady is now: {said}"
