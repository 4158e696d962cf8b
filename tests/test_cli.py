"""The command line as a person, a shell and a timer meet it."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import debian

import hostprep.__main__ as entry
from hostprep import cli, commands, profile_files, state

ROOT = Path(__file__).parent.parent
HOSTPREP = [sys.executable, "-m", "hostprep"]


def hostprep(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*HOSTPREP, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, **more)


def shell(script: str) -> int:
    """The status of hostprep within a line of shell, where `hostprep` is the command."""
    line = f"hostprep() {{ '{sys.executable}' -m hostprep \"$@\"; }}; {script}"
    return subprocess.run(["bash", "-c", line], capture_output=True, stdin=subprocess.DEVNULL).returncode


@pytest.fixture
def recorded(tmp_path: Path) -> str:
    """A recorded Debian host, to look at with --root."""
    root = tmp_path / "recorded"
    for name, text in debian().items():
        path = root / name.lstrip("/")
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return str(root)


# -- two readers of one language ------------------------------------------------------------------

PLAIN = [
    ["check"],
    ["apply"],
    ["apply", "--yes"],
    ["apply", "--yes", "--no-publish", "--only", "swap"],
    ["check", "--profile", "baseline", "--format", "json"],
    ["check", "--profile=baseline", "--format=junit", "--output=/tmp/x", "--no-publish"],
    ["check", "--only", "swap", "--only=system"],
    ["check", "--only", "swap", "--only", "swap"],
    ["check", "--no-publish", "--no-publish", "--format", "nagios"],
    ["check", "--profile", "a=b.yaml"],
    ["apply", "--boot"],
    ["apply", "--yes", "--boot"],
]
NOT_PLAIN = [
    [],
    ["--version"],
    ["chekc"],
    ["check", "--help"],
    ["check", "--root", "/tmp"],
    ["check", "--deadline", "5s"],
    ["check", "--yes"],
    ["check", "extra"],
    ["check", "--"],
    ["check", "--profile"],
    ["check", "--profile", "--yes"],
    ["check", "--output", "-"],
    ["check", "--profile", "a", "--profile", "b"],
    ["check", "--format", "xml"],
    ["check", "--format", "text", "--format", "json"],
    ["apply", "--allow-disruption", "swap"],
    ["apply", "--boot", "--only", "swap"],
    ["apply", "--boot", "--no-publish"],
    ["check", "--boot"],
    ["plan"],
    ["revert"],
]


@pytest.mark.parametrize("words", PLAIN, ids=" ".join)
def test_the_plain_reader_and_click_read_the_same(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[object, ...]] = []
    monkeypatch.setattr(commands, "check", lambda look: read.append((look,)) or 0)
    monkeypatch.setattr(
        commands,
        "apply",
        lambda look, allowed, yes, reboot=False: read.append((look, tuple(allowed), yes, reboot)) or 0,
    )
    monkeypatch.setattr(commands, "recreate", lambda: read.append(("boot",)) or 0)
    plain = entry._plain(words)
    assert plain is not None
    assert (plain(), cli.run(words)) == (0, 0)
    assert read[0] == read[1]


@pytest.mark.parametrize("words", NOT_PLAIN, ids=" ".join)
def test_all_else_is_left_to_click(words: list[str]) -> None:
    assert entry._plain(words) is None


# -- what is imported -----------------------------------------------------------------------------

DEAR = "click yaml jsonschema pyroute2 psutil pyudev pynvml subprocess dataclasses asyncio logging pathlib"
IMPORTED = (
    "import sys; before = set(sys.modules); import hostprep.__main__ as entry; "
    "code = entry.run(['check', '--output', '/dev/null']); "
    "print(code, *[name for name in sys.argv[1].split() if name in set(sys.modules) - before])"
)


def test_the_common_path_imports_nothing_dear(tmp_path: Path) -> None:
    command = [sys.executable, "-c", IMPORTED, DEAR]
    first, second = (subprocess.run(command, capture_output=True, text=True).stdout.split() for _ in range(2))
    assert {"yaml", "jsonschema"} <= set(first), "the first look reads and validates the profile"
    assert second == first[:1]


# -- wrong use ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "said", "hint"),
    [
        (["chekc"], 2, "No such command 'chekc'", "hostprep --help"),
        (["check", "--bogus"], 2, "No such option", "hostprep check --help"),
        (["check", "extra"], 2, "unexpected extra argument", "hostprep check --help"),
        (["check", "--format", "xml"], 2, "'xml' is not one of 'text', 'json'", "hostprep check --help"),
        (["check", "--only", "swop"], 2, "baseline has no such section", "It has: hardware"),
        (["check", "--root", "/nope"], 2, "--root /nope: is not a directory", "recorded host"),
        (["check", "--deadline", "soon"], 2, "'soon' is not a duration", "hostprep check --help"),
        (["check", "--profile", "nope"], 78, "there is no profile named 'nope'", "Known: baseline"),
        (["check", "--profile", "./nope.yaml"], 78, "nope.yaml: No such file", "hostprep profiles list"),
        *(
            (
                ["apply", "--boot", option, "swap"],
                2,
                f"--boot does what was recorded, and takes no {option}",
                "Leave one",
            )
            for option in ("--profile", "--only", "--allow-disruption", "--output")
        ),
        (["inspect", "--only", "swop"], 2, "there is no check named 'swop'", "Known: benchmark"),
        (["explain", "swop"], 2, "there is no check named 'swop'", "Known: benchmark"),
        (["profiles", "validate", "nope"], 78, "there is no profile named 'nope'", "A file is given by its path"),
        (["report", "--max-age", "10x"], 2, "'10x' is not a duration: write 90s, 10m", "hostprep report --help"),
        (["schema", "nope"], 2, "'nope' is not one of", "hostprep schema --help"),
    ],
)
def test_wrong_use_is_told_what_is_wrong_and_what_to_do(
    words: list[str], code: int, said: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.run(words) == code
    out, err = capsys.readouterr()
    error, told = err.splitlines()
    assert (out, error.startswith("error: "), told.startswith("hint: ")) == ("", True, True)
    assert said in error
    assert hint in told


def test_without_a_command_the_manual_is_shown_and_it_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.run([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "A first session:" in err


def every_command(group: Any = cli.main, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path]
    for name, command in getattr(group, "commands", {}).items():
        found += every_command(command, (*path, name))
    return found


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_every_command_has_a_manual_that_fits_on_a_small_terminal(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert entry.run([*words, "--help"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "..." not in out.partition("Commands:")[2].partition("\n\n")[0], "a summary is cut off"


# -- where the answer goes ------------------------------------------------------------------------

ANSWERS = ("check", "check --format json", "inspect", "--help", "--version", "explain swap", "completion bash")


@pytest.mark.parametrize("words", ANSWERS)
@pytest.mark.parametrize("sink", [">&-", ">/dev/full", ">&- 2>&- <&-"])
def test_an_answer_that_is_lost_is_no_success(words: str, sink: str) -> None:
    """A closed or full stdout must not look like a host that is ready."""
    assert shell(f"hostprep {words} {sink}") == 74


def test_a_reader_that_goes_away_is_no_success() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*HOSTPREP, "schema"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 74
    assert done.stderr == "error: stdout: Broken pipe: the answer is lost\n"


def test_nothing_is_written_into_a_file_that_took_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """The first file that is opened gets the number of a stream that is closed."""
    assert shell(f"hostprep check --format json --output {tmp_path}/out >&- 2>&-") in (0, 1, 3, 4)
    json.loads((tmp_path / "out").read_text())
    json.loads(Path(state.report_path()).read_text())


def test_an_answer_in_a_file_is_whole_and_a_device_stays_one(tmp_path: Path) -> None:
    target = tmp_path / "real"
    target.write_text("old")
    (tmp_path / "link").symlink_to(target)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    for output in (tmp_path / "link", fifo, Path("/dev/null")):
        commands.emit("new\n", str(output))
    assert ((tmp_path / "link").is_symlink(), target.read_text()) == (True, "new\n")
    assert (fifo.is_fifo(), os.read(reader, 10)) == (True, b"new\n")
    assert Path("/dev/null").is_char_device()
    os.close(reader)
    with pytest.raises(commands.OutputFailed, match="No such file or directory"):
        commands.emit("new\n", str(tmp_path / "nowhere" / "x"))


def test_one_json_document_on_stdout_and_all_else_on_stderr(recorded: str) -> None:
    for words in (["check"], ["plan"], ["inspect"]):
        done = hostprep(*words, "--root", recorded, "--format", "json")
        json.loads(done.stdout)
        assert done.stderr == ""


def on_a_terminal(words: Sequence[str], **environment: str) -> str:
    """What hostprep says to a terminal."""
    ours, theirs = pty.openpty()
    env = {"TERM": "xterm", **os.environ, **environment}
    child = subprocess.Popen([*HOSTPREP, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    said = b""
    try:
        while data := os.read(ours, 65536):
            said += data
    except OSError:
        pass  # the other end is closed
    child.wait()
    os.close(ours)
    return said.decode()


@pytest.mark.parametrize(
    ("environment", "colours"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colours_are_for_terminals_that_want_them(recorded: str, environment: dict[str, str], colours: bool) -> None:
    words = ["check", "--root", recorded]
    assert ("\x1b[" in on_a_terminal(words, **{"NO_COLOR": "", **environment})) == colours
    assert "\x1b[" not in hostprep(*words, env={**os.environ, **environment}).stdout


# -- plans, profiles, completion ------------------------------------------------------------------


def test_a_plan_ends_with_the_command_that_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Due:
        planned = (type("P", (), {"refused": ""})(),)

    look = commands.Look(profile="./my profile.yaml", only=("swap", "system"))
    for user, start in ((0, "hostprep"), (1000, "sudo hostprep")):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        said = commands._next_step(look, [Due()], ("swap",))  # type: ignore[list-item]
        selection = "--profile './my profile.yaml' --only swap --only system --allow-disruption swap"
        assert said == f"To do it: {start} apply {selection}\n"
    assert commands._next_step(look, [], ()) == ""
    assert commands._next_step(look._replace(root="/tmp"), [Due()], ()) == ""  # type: ignore[list-item]


def test_what_a_profile_comes_to_can_be_seen(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.run(["profiles", "show", "pbs-gpu-node"]) == 0
    out, err = capsys.readouterr()
    assert out.encode() == profile_files.read(profile_files.find("pbs-gpu-node"))
    assert "hostprep profiles show --effective pbs-gpu-node" in err
    assert entry.run(["profiles", "show", "--effective", "pbs-gpu-node"]) == 0
    out, _ = capsys.readouterr()
    assert "extends" not in out
    assert "swap: disabled" in out


@pytest.mark.parametrize("shell_name", ["bash", "zsh", "fish"])
def test_the_completion_script_is_one(shell_name: str, tmp_path: Path) -> None:
    script = tmp_path / "completion"
    script.write_text(hostprep("completion", shell_name, check=True).stdout)
    assert "_HOSTPREP_COMPLETE" in script.read_text()
    if shutil.which(shell_name) is None:
        pytest.skip(f"{shell_name} is not installed")
    subprocess.run([shell_name, "-n", str(script)], check=True)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("hostprep re", {"revert", "report"}),
        ("hostprep check --only s", {"services", "software", "swap", "system"}),
        ("hostprep check --profile pbs-g", {"pbs-gpu-node"}),
        ("hostprep explain k", {"kernel_args"}),
    ],
)
def test_the_shell_completes(line: str, offered: set[str]) -> None:
    env = {"_HOSTPREP_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    script = "import sys; sys.argv = ['hostprep']; import hostprep.__main__ as m; m.main()"
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | env, capture_output=True, text=True)
    assert {row.partition(",")[2] for row in done.stdout.split()} == offered
