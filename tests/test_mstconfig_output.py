"""The tables and errors of mstconfig, as the real 4.21 and 4.31 print them, and in all shapes (R40 to R47)."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from hostprep import mstconfig
from hostprep.errors import CommandFailed, HostError
from hostprep.host import Host
from hostprep.model import Unknown, Value
from hostprep.mstconfig import Row, parse

DATA = Path(__file__).parent / "data" / "mstconfig"
RECORDED = sorted(DATA.glob("*/*.txt"))


def recorded(version: str, name: str) -> str:
    return (DATA / version / f"{name}.txt").read_text()


def values(output: str) -> dict[str, tuple[Value | str, Value | str]]:
    """Current and next value by name; `?` where the firmware does not tell."""
    return {
        name: ("?" if isinstance(row.current, Unknown) else row.current, row.next_boot)  # type: ignore[misc]
        for name, row in parse(output).items()
    }


@pytest.mark.parametrize("version", ["4.21", "4.31"])
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("factory", {"SRIOV_EN": (False, False), "NUM_OF_VFS": (0, 0), "LINK_TYPE_P1": ("ETH", "ETH")}),
        ("pending", {"SRIOV_EN": (False, True), "NUM_OF_VFS": (0, 8)}),
        ("pending-other-port", {"SRIOV_EN": (False, True), "NUM_OF_VFS": (0, 8)}),
        ("loaded", {"SRIOV_EN": (True, True), "NUM_OF_VFS": (8, 8)}),  # `*` is no pending mark
        ("next-boot-only", {"SRIOV_EN": ("?", False), "NUM_OF_VFS": ("?", 0)}),
        ("no-current", {"SRIOV_EN": ("?", True), "NUM_OF_VFS": ("?", 127)}),
        ("per-pf", {"PF_NUM_OF_VF_VALID": (False, True), "PF_NUM_OF_VF": (0, 0)}),
        ("factory-bf2", {"INTERNAL_CPU_OFFLOAD_ENGINE": ("ENABLED", "ENABLED")}),
        (
            "wide-values",
            {
                "PHY_FEC_OVERRIDE_P1": ("DEVICE_DEFAULT", "DEVICE_DEFAULT"),
                "HOST_CHAINING_DESCRIPTORS": ("Array[0..7]", "Array[0..7]"),
            },
        ),
    ],
)
def test_recorded_tables(version: str, name: str, rows: dict[str, tuple[Value, Value]]) -> None:
    found = values(recorded(version, name))
    assert {name: found[name] for name in rows} == rows


@pytest.mark.parametrize("name", sorted(p.stem for p in (DATA / "4.31").glob("*.json")))
def test_r44_the_json_of_4_31_tells_what_its_table_tells(name: str) -> None:
    told = mstconfig.parse_json((DATA / "4.31" / f"{name}.json").read_text())
    assert told == parse(recorded("4.31", name)) != {}


@pytest.mark.parametrize(
    ("row", "current", "next_boot"),
    [
        ('"next_value": 8', "?", 8),  # firmware that does not tell current values
        ('"current_value": "ETH(2)", "next_value": 2', "ETH", "ETH"),  # one row, two forms
        ('"current_value": "Array[0..7]", "next_value": "N/A"', "Array[0..7]", None),
    ],
)
def test_json_has_the_same_traps_as_the_table(row: str, current: Value, next_boot: Value) -> None:
    text = '{"Device #1": {"tlv_configuration": {"X": {ROW, "read_only": true}}}}'.replace("ROW", row)
    found = mstconfig.parse_json(text)["X"]
    assert ("?" if isinstance(found.current, Unknown) else found.current, found.next_boot) == (current, next_boot)
    assert found.read_only


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"a": 1}', '{"Device #1": {"tlv_configuration": [1]}}', "{} {}"])
def test_json_that_is_none_of_the_tool_is_an_error_of_the_host(text: str) -> None:
    with pytest.raises(HostError, match="JSON of the tool"):
        mstconfig.parse_json(text)


@pytest.mark.parametrize(("version", "form"), [("4.21.0", "table"), ("4.31.0", "json"), ("5.0.1", "json")])
def test_r44_json_is_asked_of_versions_that_have_it(tmp_path: Path, version: str, form: str) -> None:
    """The tool writes into a file: here a real one does, into a file that is on no disk."""
    tool = tmp_path / "mstconfig"
    table, data = DATA / "4.31" / "pending.txt", DATA / "4.31" / "pending.json"
    lines = [
        "#!/bin/sh",
        f'[ "$1" = -v ] && echo "mstconfig, mstflint {version}, Git SHA Hash: N/A" && exit',
        f'case "$3 $5" in "-j -e") cat {data} > "$4"; echo json >> {tmp_path}/asked;;',
        f"*) sed /^exit/d {table}; echo table >> {tmp_path}/asked;; esac",
    ]
    tool.write_text("\n".join(lines) + "\n")
    tool.chmod(0o755)
    rows, lacks = mstconfig.query(Host(), str(tool), "0000:17:00.0", ["SRIOV_EN", "NUM_OF_VFS"], 10)
    assert (rows["NUM_OF_VFS"].current, rows["NUM_OF_VFS"].next_boot, lacks) == (0, 8, ())
    assert (tmp_path / "asked").read_text() == f"{form}\n"


# By version: width of name and of values, and whether there is an RO column.
LAYOUTS = {"4.15": (36, 16, False), "4.22": (44, 16, False), "4.25": (44, 16, True), "4.31": (44, 20, True)}
SHAPES = [
    ("Default", "Current", "Next Boot"),
    ("Default", "Next Boot"),
    ("Current", "Next Boot"),
    ("Next Boot",),
]
CELLS = {"Default": "DEVICE_DEFAULT(0)", "Current": "CURRENT_ONE(1)", "Next Boot": "TO_BE_NEXT_AND_WIDE(2)"}


@pytest.mark.parametrize(
    ("version", "columns", "star", "read_only"),
    [row for row in product(LAYOUTS, SHAPES, (" ", "*"), (False, True)) if LAYOUTS[row[0]][2] or not row[3]],
)
def test_every_layout_in_every_shape(version: str, columns: tuple[str, ...], star: str, read_only: bool) -> None:
    """R42, R43: sriov-network-operator took `RO` for the name, and failed on a table of one column."""
    name, width, has_ro = LAYOUTS[version]
    mark = ("RO" if read_only else "  ") + " " * 5 if has_ro else " " * 8
    cells = "".join(f"{CELLS[c]:<{width}}" + (" " if len(CELLS[c]) >= width else "") for c in columns)
    table = f"{'Configurations:':<16}{'':>30}{'         '.join(columns)}\n{star}{mark}{'ROCE_CONTROL':<{name}}{cells}\n"
    row = parse(f"{table}The 'RO' shows parameters that are read only.\n")["ROCE_CONTROL"]
    current = "CURRENT_ONE" if "Current" in columns else Unknown("Current: the firmware does not tell it")
    assert row == Row(current, "TO_BE_NEXT_AND_WIDE", read_only)


@pytest.mark.parametrize(
    ("cells", "sides"),
    [
        ("ETH(2) 2 ETH(2)", ("ETH", "ETH")),  # nic-configuration-operator 8b22714
        ("IB(1) 2 IB(1)", (2, "IB")),
        ("0 True(1) 1", (True, True)),
        ("N/A N/A 4", (None, 4)),
        ("0x10 0x10 0x20", (16, 32)),
        ("0012 0012 0012", ("0012", "0012")),
    ],
)
def test_each_column_is_read_for_itself(cells: str, sides: tuple[Value, Value]) -> None:
    [row] = parse(f"Configurations:   Default  Current  Next Boot\n      NAME     {cells}\n").values()
    assert row[:2] == sides


@pytest.mark.parametrize("path", RECORDED, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_recorded_error_says_in_the_tools_words_what_happened_and_what_to_do(path: Path) -> None:
    """R40: errors are on stdout; stderr alone tells nothing."""
    command, *output, ending = path.read_text().strip().splitlines()
    if ending == "exit 0":
        assert " set " in command or parse("\n".join(output))
        return
    error = CommandFailed("mstconfig: exit 3", status=3, output="\n".join(output))
    said, todo = mstconfig.said(error, "mstconfig", "0000:17:00.0")
    told = [line.removeprefix("-E- ") for line in output if line.startswith("-E- ")]
    assert said == f"mstconfig: {told[0]}"
    assert "{" not in todo
    if path.stem not in ("hidden-parameter", "lacks-parameter", "unknown-parameter"):  # which no reader ever sees
        assert todo, "what to do"


@pytest.mark.parametrize(
    ("version", "name"),
    [
        *product(["4.21", "4.31"], ["gateway-held", "command-held", "set-busy"]),
        ("4.21", "busy-identify"),
        ("4.21", "busy-tlv"),
    ],
)
def test_what_may_pass_is_tried_again(version: str, name: str) -> None:
    calls = []

    def run() -> str:
        calls.append(1)
        if len(calls) < 2:
            raise CommandFailed("exit 3", status=3, output=recorded(version, name))
        return "done"

    assert mstconfig.patiently(run, 5) == "done"


def test_a_last_try_that_had_no_time_left_does_not_hide_why_the_others_failed() -> None:
    answers: list[HostError] = [
        CommandFailed("exit 3", status=3, output=recorded("4.31", "gateway-held")),
        HostError("mstconfig: no answer within 1 s"),
    ]

    def run() -> str:
        raise answers.pop(0)

    with pytest.raises(CommandFailed, match="exit 3"):
        mstconfig.patiently(run, 5)


@pytest.mark.parametrize("name", ["lockdown", "livefish", "lacks-parameter", "too-large", "set-rejected"])
@pytest.mark.parametrize("version", ["4.21", "4.31"])
def test_what_will_not_pass_is_not_tried_again(version: str, name: str) -> None:
    calls = []

    def run() -> str:
        calls.append(1)
        raise CommandFailed("exit 3", status=3, output=recorded(version, name))

    with pytest.raises(CommandFailed):
        mstconfig.patiently(run, 60)
    assert len(calls) == 1
