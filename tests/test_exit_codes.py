"""The exit status: decided in one place, the same in every format, and the same in the manual."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import MakeHost, profile
from fakes import debian

import hostprep.__main__ as entry
from hostprep import commands, errors, formats, profile_files, profile_source, registry, report, state
from hostprep.model import Desired, Fact, Finding, Status

ROOT = Path(__file__).parent.parent
OF_STATUS = {"pass": 0, "volatile": 0, "fail": 1, "unknown": 3, "pending-reboot": 4, "pending-power-cycle": 4}
HERE = report.Identity("node01", "0123", "1111", "6.1.0")


def made(status: str) -> report.Report:
    finding = Finding("swap", "devices", Status(status), Fact.fixed("a"), Desired("b"))
    return report.make([finding], {}, profile({}), HERE, time.monotonic())


def every_error() -> list[type[errors.HostprepError]]:
    kinds = [errors.HostprepError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return kinds


def error(kind: type[errors.HostprepError]) -> errors.HostprepError:
    return errors.ProfileError(["p.yaml:1:1: wrong"]) if kind is errors.ProfileError else kind("wrong", "do it right")


@pytest.mark.parametrize("name", [n for n in ("text", *formats.NAMES) if n not in ("nagios", "npd")])
@pytest.mark.parametrize("status", OF_STATUS)
def test_the_verdict_gives_the_same_status_in_every_format(status: str, name: str) -> None:
    """T14: a format changes how it is said and not what is said."""
    assert report.exit_code(made(status), name) == OF_STATUS[status]


@pytest.mark.parametrize(
    ("status", "code"), [("pass", 0), ("pending-reboot", 1), ("pending-power-cycle", 1), ("fail", 2), ("unknown", 3)]
)
def test_nagios_alone_has_codes_of_its_own(status: str, code: int) -> None:
    assert report.exit_code(made(status), "nagios") == code


@pytest.mark.parametrize("kind", every_error(), ids=lambda k: k.__name__)
def test_every_error_has_a_status_that_the_table_explains(kind: type[errors.HostprepError]) -> None:
    code = report.exit_code(error(kind))
    assert code in report.EXIT_CODES
    assert code not in (0, 1, 4), "an error says nothing of the host"
    assert report.exit_code(error(kind), "nagios") == 3
    drawn = re.search(rf"- {kind.__name__} .*\(exit (\d+)\)", errors.__doc__ or "")
    assert drawn is None or int(drawn[1]) == code, "the hierarchy in errors.py says another"


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (errors.Busy("another hostprep is at it", "Wait."), 75, "error: another hostprep is at it\nhint: Wait.\n"),
        (errors.ProfileError(["p:1:1: a", "p:2:1: b\x1b[2J"]), 78, "error: p:1:1: a\nerror: p:2:1: b [2J\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (RuntimeError("oops"), 70, "error: this is a bug in hostprep: RuntimeError: oops\n"),
    ],
    ids=lambda v: type(v).__name__,
)
@pytest.mark.parametrize("output", ["text", "nagios"])
def test_whatever_ends_it_is_said_and_has_a_status(
    raised: BaseException,
    code: int,
    said: str,
    output: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def end(look: Any) -> int:
        raise raised

    monkeypatch.setattr("hostprep.commands.check", end)
    got = entry.run(["check", f"--format={output}"])
    out, err = capsys.readouterr()
    assert said in err
    assert got == (3 if output == "nagios" else code)
    first = said.splitlines()[0].removeprefix("error: ")
    assert out == (f"HOSTPREP UNKNOWN - {first}\n" if output == "nagios" else "")


CHECKED = ["text", "json", "prometheus", "nagios", "junit"]


@pytest.mark.parametrize("output", CHECKED)
@pytest.mark.parametrize("broken", ["missing", "empty", "unknown key", "fifo"])
def test_a_broken_profile_is_never_ready(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: str, output: str
) -> None:
    """T1: whoever asks hears of it, and the report that an earlier look published does not outlive it."""
    state.publish(made("pass"))
    path = tmp_path / "p.yaml"
    if broken == "fifo":
        os.mkfifo(path)
    elif broken != "missing":
        path.write_text({"empty": "", "unknown key": "swpa: off\n"}[broken])
    assert entry.run(["check", "--profile", str(path), "--format", output]) == (3 if output == "nagios" else 78)
    published = json.loads(Path(state.report_path()).read_text())
    assert (published["verdict"], published["ready"]) == ("unknown", False)
    out, err = capsys.readouterr()
    assert str(path) in err
    assert bool(out) == (output != "text")


@pytest.mark.parametrize("output", CHECKED)
def test_a_look_at_this_machine_ends_alike_in_every_format(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    """T14, from the command line to the status, and then by the report that it published."""
    words = ["--format", output]
    code = entry.run(["check", *words])
    verdict = json.loads(Path(state.report_path()).read_text())["verdict"]
    expected = report.exit_code(made({"ready": "pass", "not-ready": "fail"}.get(verdict, verdict)), output)
    assert code == expected
    assert entry.run(["report", *words]) == expected
    assert capsys.readouterr().out


def test_a_report_that_is_refused_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.run(["report"]) == 3
    assert entry.run(["report", "--format", "nagios"]) == 3
    out, err = capsys.readouterr()
    assert out.startswith("HOSTPREP UNKNOWN - there is no report at ")
    assert "hint: Make one: hostprep check" in err


def test_an_answer_that_cannot_be_published_is_still_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOSTPREP_RUN_DIR", str(tmp_path / "file"))
    assert entry.run(["check"]) == 74
    out, err = capsys.readouterr()
    assert "hardware" in out
    assert "could not be published" in err


def an_interpreter_for_all() -> str:
    """A Python of this version that a user without privileges may run."""
    for candidate in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        words = ["setpriv", "--reuid=65534", "--clear-groups", candidate, "-c", ""]
        if shutil.which("setpriv") and subprocess.run(words, capture_output=True).returncode == 0:
            return candidate
    pytest.skip("no Python of this version that nobody may run, or no setpriv")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
@pytest.mark.parametrize(
    ("words", "codes"),
    [
        (["check", "--format", "json"], {0, 1, 3, 4}),
        (["plan"], {0, 1, 3, 4}),
        (["inspect"], {0}),
        (["apply", "--yes"], {77}),
        (["revert", "--dry-run"], {77}),
        (["report"], {3}),
    ],
)
def test_without_root_it_looks_and_changes_nothing_and_never_crashes(words: list[str], codes: set[int]) -> None:
    paths = ":".join([str(ROOT), *(p for p in sys.path if p.endswith("-packages"))])
    python = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", an_interpreter_for_all()]
    env = {"PYTHONPATH": paths, "HOME": "/nonexistent", "HOSTPREP_RUN_DIR": "/nonexistent"}
    words = [*words, "--no-publish"] if words[0] == "check" else words
    done = subprocess.run([*python, "-m", "hostprep", *words], env=env, capture_output=True, text=True)
    assert done.returncode in codes, done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode != 77 or done.stderr == "error: this needs root\nhint: Run it again with sudo.\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="changing a host needs root")
def test_a_report_does_not_outlive_a_change_of_its_host(
    make_host: MakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An apply that is cut off, a part of one and a revert leave a host of which the old report does not speak."""
    host = make_host(debian(), {"systemctl": ""})
    fstab = "UUID=5b0c / ext4 defaults 0 1\n/swapfile none swap sw 0 0\n"
    host.put("/etc/fstab", fstab)
    monkeypatch.setattr(commands, "Host", lambda: host)
    path = tmp_path / "p.yaml"
    path.write_text("swap: disabled\n")
    published = Path(state.report_path())
    assert entry.run(["check", "--profile", str(path)]) == 0
    assert f"-> hostprep apply --profile {path} --only swap" in capsys.readouterr().out
    assert published.exists()
    assert entry.run(["apply", "--profile", str(path)]) == 2, "nobody could be asked"
    assert published.exists()
    assert entry.run(["apply", "--yes", "--profile", str(path), "--only", "swap"]) == 0
    assert "sw,noauto" in (Path(host.root) / "etc/fstab").read_text()
    assert not published.exists(), "only a part was looked at after it"
    assert entry.run(["apply", "--yes", "--profile", str(path)]) == 0
    assert published.exists()
    assert entry.run(["revert", "--yes"]) == 0
    assert (Path(host.root) / "etc/fstab").read_text() == fstab
    assert not published.exists()


def table_of(text: str) -> dict[int, str]:
    """The rows of a table of exit codes: `  75  meaning` or `| 75 | meaning |`."""
    rows = re.findall(r"^\|? *`?(\d+)`? (?:\||·| ) *(.*?) *\|?$", text, re.MULTILINE)
    return {int(code): meaning.replace("`", "") for code, meaning in rows}


def test_the_manual_has_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.run(["--help"]) == 0
    assert table_of(capsys.readouterr().out) == report.EXIT_CODES


def test_the_readme_has_the_table() -> None:
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("there is no README.md yet")
    rows = table_of(readme.read_text())
    assert {code: rows.get(code) for code in report.EXIT_CODES} == report.EXIT_CODES


def test_schemas_are_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    for which in ("report", "profile"):
        assert entry.run(["schema", which]) == 0
        jsonschema.Draft202012Validator.check_schema(json.loads(capsys.readouterr().out))
    document, _ = profile_source.parse("baseline", profile_files.read(profile_files.available()["baseline"]))
    jsonschema.Draft202012Validator(profile_source.schema(registry.load())).validate(document)


def test_node_problem_detector_gets_one_line_that_it_does_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    """It keeps 80 bytes of what a plug-in says (max_output_length), in the middle of a character if need be."""
    assert entry.run(["report", "--format", "npd", "--profile", "/" + "é" * 90]) == 2
    assert re.fullmatch(r"[ -~]{1,80}\n", capsys.readouterr().out)


@pytest.mark.parametrize("words", [["install", "npd", "nosuch"], ["explain", "nagios"]])
def test_the_name_of_a_plug_in_is_no_format(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.run(words) == 2
    assert capsys.readouterr().out == ""
