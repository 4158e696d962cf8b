"""What must hold whatever happens around a change: the journal, read-only file systems, signals, arguments."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import MakeHost, apply, findings
from fakes import FakeHost, debian

from hostprep import commands, engine, registry, state
from hostprep.errors import HostError, OutputFailed, StateError
from hostprep.host import FileState
from hostprep.journal import Journal
from hostprep.model import Change, Facet, Profile
from hostprep.perform import Performer, converge

CHANGE = Change("swap", "devices", Facet.CURRENT, ("/swapfile",), ())
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to lose here")


@needs_root
@pytest.mark.parametrize("spoil", ["mode", "owner", "link"])
def test_a_journal_that_others_could_have_written_tells_root_nothing(journal: Journal, spoil: str) -> None:
    """It says what bytes go into which file: whoever writes it writes /etc/shadow."""
    journal.begin([CHANGE])
    path = Path(journal.path)
    if spoil == "mode":
        path.chmod(0o666)
    elif spoil == "owner":
        os.chown(path, 65534, 65534)
    else:
        path.rename(path.with_suffix(".real"))
        path.symlink_to(path.with_suffix(".real"))
    with pytest.raises(StateError):
        journal.standing()


@needs_root
def test_nothing_is_changed_on_top_of_a_damaged_journal(tmp_path: Path) -> None:
    """What could not be taken back is not done."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "journal").write_text("garbage\n{}\n")
    with pytest.raises(StateError, match="journal:1: damaged"):
        commands._changed(FakeHost(tmp_path / "root", {}), {}, str(tmp_path / "state" / "journal"), [], PROFILE, ())


PROFILE = Profile("test", "0" * 64, {})


READ_ONLY = "/etc/fstab: Read-only file system. Find out why (findmnt -T, dmesg), and mount it read-write."


class ReadOnly(FakeHost):
    """A host whose /etc is mounted read-only."""

    def read_only(self, path: str) -> bool:
        return path.startswith("/etc")

    def note_change(self, path: str, before: FileState, after: FileState | None) -> None:
        raise HostError(f"{path}: Read-only file system")


def test_on_a_read_only_etc_a_check_is_refused_before_the_running_system_is_changed(
    tmp_path: Path, journal: Journal
) -> None:
    files = debian() | {"/proc/swaps": "Filename Type Size Used Priority\n/swapfile file 1024 0 -2\n"}
    files["/etc/fstab"] += "/swapfile none swap sw 0 0\n"
    host = ReadOnly(tmp_path / "root", files)  # a command, such as swapoff, would fail the test
    wanted = PROFILE._replace(sections={"swap": "disabled"})
    checks = registry.load(wanted.sections)
    needed = engine.planned(engine.examine(host, wanted, checks, 20), wanted, checks, ())
    planned = [p for batch in engine.rehearse(host, needed, checks) for p in batch.planned]
    assert {p.change.facet: p.refused for p in planned} == dict.fromkeys(Facet, READ_ONLY)
    performer = Performer(host, checks, journal, lambda line: None)
    converge(performer, [p.change for p in planned if not p.refused], wanted.sections, ())
    assert (performer.failures, journal.standing()) == ([], [])


def test_a_live_change_that_fails_half_way_is_put_back(make_host: MakeHost, journal: Journal) -> None:
    """The first pool has its pages when the second cannot be written."""
    host = make_host(debian())
    huge = "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages"
    write = host.write

    def broken(path: str, text: str, timeout: float = 60) -> None:
        if path == huge:
            raise HostError(f"{path}: Input/output error")
        write(path, text, timeout)

    host.write = broken  # type: ignore[method-assign]  # the test's own kernel
    performer = apply(host, {"hugepages": {"2MiB": 4, "1GiB": 1}}, journal)
    assert [f.reason for f in performer.failures] == [f"{huge}: Input/output error"]
    assert findings(host, {"hugepages": {"2MiB": 4}})["hugepages/2MiB"].fact.current == 0
    assert journal.standing() == []


def test_update_grub_is_planned_once_after_all_files(make_host: MakeHost) -> None:
    host = make_host(debian())
    wanted = PROFILE._replace(sections={"hugepages": {"1GiB": 1}, "kernel_args": ["iommu=pt"]})
    checks = registry.load(wanted.sections)
    batches = engine.rehearse(
        host, engine.planned(engine.examine(host, wanted, checks, 20), wanted, checks, ()), checks
    )
    steps = [step.command for batch in batches for step in batch.steps]
    assert steps[-1] == "update-grub"
    assert steps.count("update-grub") == 1


@needs_root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_apply_in_order(tmp_path: Path, number: signal.Signals) -> None:
    """A dropped connection is no reason to stop in the middle without a word."""
    program = (
        "import os, signal, sys\n"
        "from hostprep import __main__, commands\n"
        "def apply(*_):\n"
        "    with commands._ending_in_order():\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "        signal.pause()\n"
        "commands.apply = apply\n"
        "signal.signal(2, signal.default_int_handler)\n"  # a shell starts what it runs with & deaf to it
        "sys.exit(__main__.run(['apply', '--yes']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
    assert done.returncode == 130
    assert done.stderr.splitlines()[0] == "error: interrupted"
    assert "hostprep revert takes it back" in done.stderr


@needs_root
def test_a_report_is_not_published_for_a_host_that_was_changed_meanwhile(tmp_path: Path) -> None:
    """check looks, apply retracts the report and changes the host, check would publish what is no longer so."""
    (tmp_path / "state").mkdir(mode=0o755)
    before = state.revision()
    with state.changing() as path:
        Journal(path).begin([CHANGE])
        with state.unchanged(before) as sure:
            assert not sure, "somebody is changing it"
    with state.unchanged(before) as sure:
        assert not sure, "somebody has changed it"
    with state.unchanged(state.revision()) as sure, state.unchanged(state.revision()) as other:
        assert (sure, other) == (True, True), "two that only look do not mind each other"


@needs_root
def test_output_does_not_follow_a_link_that_others_planted(tmp_path: Path) -> None:
    secret, shared = tmp_path / "secret", tmp_path / "shared"
    secret.write_text("untouched")
    secret.chmod(0o600)
    shared.mkdir(mode=0o777)
    shared.chmod(0o1777)
    link = shared / "report"
    link.symlink_to(secret)
    os.lchown(link, 65534, 65534)
    with pytest.raises(OutputFailed, match="link"):
        commands.emit("the report", str(link))
    assert secret.read_text() == "untouched"


def test_output_keeps_the_mode_of_a_file_and_does_not_wait_for_a_reader(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("old")
    there.chmod(0o640)
    commands.emit("new", str(there))
    assert (there.read_text(), there.stat().st_mode & 0o777) == ("new", 0o640)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OutputFailed):
        commands.emit("new", str(tmp_path / "fifo"))


def test_a_mistyped_profile_does_not_take_the_published_report_away(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "report.json").write_text(json.dumps({"good": True}))
    done = subprocess.run([sys.executable, "-m", "hostprep", "check", "--profile", "nosuch"], capture_output=True)
    assert done.returncode == 78
    assert json.loads((run / "report.json").read_text()) == {"good": True}
