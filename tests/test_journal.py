"""What hostprep changed, joined end to end, through being cut off, damage and a full disk."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest

from hostprep import commands, state
from hostprep.errors import StateError
from hostprep.host import ABSENT, FileState
from hostprep.journal import POWER_CYCLE, Journal, digest, recalled
from hostprep.model import Change, Desired, Facet, Fact, Finding, Status, Value

FIRST, SECOND, THEIRS = (FileState("file", text) for text in (b"first", b"second", b"theirs"))
FOUND = FileState("file", b"found", mode=0o600)


def change(before: Value, after: Value, key: str = "pages") -> Change:
    return Change("hugepages", key, Facet.CURRENT, before, after)


def ends(journal: Journal) -> list[tuple[Value, Value]]:
    return [(s.change.before, s.change.after) for s in journal.standing()]


@pytest.mark.parametrize(
    ("entries", "stands"),
    [
        ("b 0 16, e 0 16", [(0, 16)]),
        ("b 0 16, e 0 16, b 16 32, e 16 32", [(0, 32)]),
        ("b 0 16, e 0 16, b 16 0, e 16 0", []),
        ("b 0 16, e 0 12", [(0, 12)]),  # the kernel granted fewer
        ("b 0 16, e 0 0", []),  # it failed and was put back
        ("b 0 16", [(0, 16)]),  # cut off counts as done
        ("b 0 16, e 0 16, b 16 0", [(0, 16)]),  # cut off while undoing counts as not undone
        ("b 0 16, e 0 16, b 16 32", [(0, 32)]),  # and in a second change as done
        ("b 0 16, b 12 16, e 12 16", [(0, 16)]),  # cut off half way, and gone on with
        ("b 0 16, e 0 16, b 64 128, e 64 128", [(64, 128)]),  # somebody else set 64: that is what we found
        ("b 0 16, e 0 16, b 0 16, e 0 16", [(0, 16)]),  # lost in a reboot, and made again
    ],
)
def test_changes_of_one_setting_are_one_difference(journal: Journal, entries: str, stands: list[object]) -> None:
    for entry in entries.split(", "):
        kind, before, after = entry.split()
        (journal.begin if kind == "b" else journal.end)([change(int(before), int(after))])
    assert ends(journal) == stands


def test_of_a_list_that_somebody_added_to_what_we_took_away_is_still_ours_to_give_back(journal: Journal) -> None:
    for step in (change(("/a", "/b"), ("/b",)), change(("/b", "/theirs"), ())):
        journal.begin([step])
        journal.end([step])
    assert ends(journal) == [(("/a", "/b", "/theirs"), ())]


@pytest.mark.parametrize(
    ("begun", "reading", "ours"),
    [
        *((change(0, 16), 9, True), (change(0, 16), 0, True), (change(16, 0), 9, True), (change(0, 16), 17, False)),
        *((change(("a", "b"), ()), ("b",), True), (change(("a", "b"), ()), ("c",), False)),
        *((change(None, "on"), "on", True), (change(None, "on"), "off", False)),
    ],
)
def test_of_a_change_that_was_cut_off_any_step_on_the_way_is_ours(
    journal: Journal, begun: Change, reading: Value, ours: bool
) -> None:
    journal.begin([begun])
    assert journal.standing()[0].left(reading) is ours


def test_of_a_change_that_ended_only_its_end_is_ours(journal: Journal) -> None:
    journal.end([change(0, 16)])
    assert [journal.standing()[0].left(n) for n in (16, 9, 0)] == [True, False, False]


def test_newest_last_and_each_with_its_boot(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    Journal(path, "old").end([change(0, 1, "a"), change(0, 1, "b")])
    Journal(path, "new").end([change(1, 2, "a")])
    assert [(s.change.key, s.boot_id) for s in Journal(path).standing()] == [("b", "old"), ("a", "new")]


def test_a_line_that_a_power_cut_tore_is_dropped_and_the_next_one_stands_on_its_own(journal: Journal) -> None:
    journal.end([change(0, 16)])
    with open(journal.path, "ab") as f:
        f.write(b'{"event": "begin", "check": "hugep')
    assert ends(journal) == [(0, 16)]
    journal.end([change(16, 32)])
    assert ends(journal) == [(0, 32)]


@pytest.mark.parametrize("damaged", [0, 1, 2])
@pytest.mark.parametrize("rubbish", [b"\0\0\0", b"{}", b"[]", b"\xff", b'{"event": "end"}', b'{"event": "moved"}'])
def test_a_damaged_line_says_which_and_nothing_is_taken_back_on_a_guess(
    journal: Journal, damaged: int, rubbish: bytes
) -> None:
    """A damaged line may be the one that holds the only copy of a file."""
    journal.keep("/f", FOUND, FIRST)
    journal.begin([change(0, 16)])
    journal.end([change(0, 16)])
    lines = Path(journal.path).read_bytes().splitlines()
    lines[damaged] = rubbish
    Path(journal.path).write_bytes(b"\n".join(lines) + b"\n")
    for read in (journal.standing, journal.kept_files):
        with pytest.raises(StateError, match=f":{damaged + 1}: damaged"):
            read()


def test_what_is_written_is_on_disk_before_begin_returns_and_for_root_alone(journal: Journal) -> None:
    journal.begin([change(0, 16)])
    assert json.loads(Path(journal.path).read_text())["event"] == "begin"
    assert os.stat(journal.path).st_mode & 0o777 == 0o600


def test_a_full_disk_is_a_state_error_and_leaves_no_half_line(journal: Journal) -> None:
    """What cannot be journalled is not changed."""
    journal.end([change(0, 16)])
    size = os.path.getsize(journal.path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))
    try:
        with pytest.raises(StateError, match="what cannot be journalled is not changed"):
            journal.begin([change(16, 32)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ends(journal) == [(0, 16)]
    journal.begin([change(16, 32)])
    assert ends(journal) == [(0, 32)]


def test_a_journal_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "journal").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError):
        Journal(str(tmp_path / "journal")).begin([change(0, 16)])


# -- is a reboot enough? --------------------------------------------------------------------------

OURS = Change("nic", "NUM_OF_VFS", Facet.NEXT_BOOT, 0, 8)
WAITS = Finding("nic", "NUM_OF_VFS", Status.PENDING, Fact(0, 8), Desired(8, live=False))
REBOOT, POWER = Status.PENDING, Status.POWER_CYCLE
RECALLED = [
    ("set in this boot", "this-boot", [OURS], "", WAITS, REBOOT),
    ("set in this boot, and a reboot is not enough", "this-boot", [OURS], POWER_CYCLE, WAITS, POWER),
    ("a boot has not brought it", "old", [OURS], "", WAITS, POWER),
    ("by somebody else", "old", [], "", WAITS, REBOOT),
    ("somebody else's value since", "old", [OURS], "", WAITS._replace(fact=Fact(0, 16)), REBOOT),
    ("the running system's side", "old", [OURS._replace(facet=Facet.CURRENT)], "", WAITS, REBOOT),
    ("another setting", "old", [OURS._replace(key="SRIOV_EN")], POWER_CYCLE, WAITS, REBOOT),
    ("another check's", "old", [OURS._replace(check="other")], POWER_CYCLE, WAITS, REBOOT),
    ("taken back", "old", [OURS, OURS.inverse()], POWER_CYCLE, WAITS, REBOOT),
    ("wrong, and waiting for nothing", "old", [OURS], "", WAITS._replace(status=Status.FAIL), Status.FAIL),
    ("unknown", "old", [OURS], POWER_CYCLE, WAITS._replace(status=Status.UNKNOWN), Status.UNKNOWN),
    ("there", "old", [OURS], POWER_CYCLE, WAITS._replace(status=Status.PASS), Status.PASS),
]


@pytest.mark.parametrize(
    ("boot", "made", "remark", "found", "status"), [r[1:] for r in RECALLED], ids=[r[0] for r in RECALLED]
)
def test_what_a_boot_has_not_brought_is_not_waited_for_by_yet_another(
    tmp_path: Path, boot: str, made: list[Change], remark: str, found: Finding, status: Status
) -> None:
    """sriov-network-operator#1082, OCPBUGS-86028: hosts that reboot without end."""
    journal = Journal(str(tmp_path / "journal"), boot)
    for step in made:
        journal.begin([step])
        if remark:
            journal.remark(step, remark)
        journal.end([step])
    told = recalled(found, journal.standing(), "this-boot")
    assert told.status is status
    if status is POWER:
        assert told.fix.startswith("Power-cycle this host")
    else:
        assert told == found


def test_a_change_that_was_cut_off_before_the_boot_is_one_that_it_has_not_brought(tmp_path: Path) -> None:
    Journal(str(tmp_path / "journal"), "old").begin([OURS])
    assert recalled(WAITS, Journal(str(tmp_path / "journal")).standing(), "this-boot").status is POWER


@pytest.mark.parametrize("text", ["rubbish\n", "{}\n"])
def test_a_journal_that_cannot_be_read_tells_nothing_of_the_past(text: str) -> None:
    """A look goes on: the host waits for a reboot, as its facts say."""
    os.makedirs(state.state_dir())
    Path(state.journal_path()).write_text(text)
    with pytest.raises(StateError):
        Journal(state.journal_path()).standing()
    assert commands._recalled([WAITS], "this-boot") == [WAITS]


# -- kept files -----------------------------------------------------------------------------------

KEPT = [
    ("once", [(FOUND, FIRST)], {FOUND, FIRST}),
    ("twice: cut off in the second", [(FOUND, FIRST), (FIRST, SECOND)], {FOUND, FIRST, SECOND}),
    ("settled", [(FOUND, FIRST), (FIRST, SECOND), (None, SECOND)], {FOUND, SECOND}),
    ("back, but perhaps not yet written", [(FOUND, FIRST), (FIRST, FOUND)], {FOUND, FIRST}),
    ("back for sure", [(FOUND, FIRST), (FIRST, FOUND), (None, FOUND)], None),
    ("never made", [(FOUND, FIRST), (None, FOUND)], None),
    ("by others in between", [(FOUND, FIRST), (THEIRS, SECOND)], set()),
    ("by others, and settled", [(FOUND, FIRST), (THEIRS, SECOND), (None, SECOND)], set()),
    ("made again after a cut off", [(FOUND, FIRST), (FOUND, FIRST), (None, FIRST)], {FOUND, FIRST}),
    ("by others, but as found", [(FOUND, FIRST), (None, FIRST), (FOUND, SECOND)], {FOUND, SECOND}),
]


@pytest.mark.parametrize(("entries", "ours"), [k[1:] for k in KEPT], ids=[k[0] for k in KEPT])
def test_a_kept_file_is_as_it_was_first_and_knows_what_is_ours(
    journal: Journal, entries: list[tuple[FileState | None, FileState]], ours: set[FileState] | None
) -> None:
    for before, after in entries:
        if before is None:
            journal.settle("/f", after)
        else:
            journal.keep("/f", before, after)
    kept = journal.kept_files()
    if ours is None:
        assert not kept
    else:
        assert [(k.path, k.before, k.ours) for k in kept] == [("/f", FOUND, frozenset(digest(s) for s in ours))]


def test_while_a_foreign_tool_writes_anything_is_its_work_and_then_only_what_it_left(journal: Journal) -> None:
    journal.keep("/boot/grub/grubenv", FOUND, None)
    assert journal.kept_files()[0].ours is None
    journal.settle("/boot/grub/grubenv", FIRST)
    assert journal.kept_files()[0].ours == frozenset({digest(FIRST), digest(FOUND)})


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (FOUND, FOUND._replace(data=b"x"), False),
        (FOUND, FOUND._replace(mode=0o644), False),
        (FOUND, FOUND._replace(uid=7), False),
        (FileState("link", b"/dev/null"), FileState("link", b"/dev/null", mode=0o777), True),  # links have no mode
        (FileState("file", b""), ABSENT, False),
        (FileState("directory", mode=0o755), FileState("file", mode=0o755), False),
    ],
)
def test_a_digest_is_of_content_kind_mode_and_owner(a: FileState, b: FileState, same: bool) -> None:
    assert (digest(a) == digest(b)) is same


def test_a_remark_is_kept_where_the_host_could_not_be_read_afterwards(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "journal"), "this-boot")
    journal.begin([change(0, 8)])
    journal.remark(change(0, 8), "power-cycle")
    assert [s.remark for s in journal.standing()] == ["power-cycle"]
    journal.begin([change(8, 16)])
    journal.end([change(8, 16)])
    assert [s.remark for s in journal.standing()] == [""], "the remark was about the change before"
