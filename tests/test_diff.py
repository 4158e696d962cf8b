"""What differs between hosts: the weight of each difference, what is refused, and what a person reads."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeHost, debian
from test_cli import HOSTPREP, hostprep

from hostprep import cli, diff, diff_text, registry, report
from hostprep.diff import Comparison, Side, compare, named, side
from hostprep.errors import UsageError
from hostprep.model import Desired, Fact, Facts, Finding, Profile, Reading, Status, Unknown
from hostprep.report import Identity, Report

PROFILE = Profile(name="node", sha256="1" * 64, sections={})
Found = Mapping[str, Status | Finding]


def finding(key: str, status: Status, current: Reading = 1, **more: Any) -> Finding:
    return Finding("swap", key, status, Fact.fixed(current), Desired(1), **more)


def judged(name: str, found: Found, facts: Mapping[str, Facts] | None = None, profile: Profile = PROFILE) -> Report:
    findings = [f if isinstance(f, Finding) else finding(key, f) for key, f in found.items()]
    made = report.make(findings, {}, profile, Identity(name, "m", "b", "6.1"), time.monotonic())
    return made._replace(facts={check: dict(of) for check, of in (facts or {}).items()})


def sides(*of_each: Mapping[str, Reading | Fact], check: str = "system") -> list[Side]:
    """Sides that were looked at by one check, by names a, b, c ..."""
    facts = [{key: r if isinstance(r, Fact) else Fact.fixed(r) for key, r in of.items()} for of in of_each]
    return [Side(name, {check: of}) for name, of in zip("abcdefgh", facts, strict=False)]


def weights(found: Comparison) -> dict[str, str]:
    return {d.name: d.weight.name for d in found.differences}


# -- what a difference weighs ---------------------------------------------------------------------

GONE = Unknown("Input/output error")


@pytest.mark.parametrize(
    ("a", "b", "weight"),
    [
        (16, 16, None),
        (16, 32, "FACT"),
        (None, 0, "FACT"),
        (True, 1, "FACT"),
        ("on", "off", "FACT"),
        (("a", "b"), ("b", "a"), "FACT"),
        ("5.15.0-122-generic", "5.15.0-121-generic", "VERSION"),
        ("24.04-0.7.0.0", "24.10-1.1.4.0", "VERSION"),
        ("v1.31.1", "v1.31.2-rc.1+k3s1", "VERSION"),
        ("5.15.0-122-generic", None, "FACT"),  # a driver that one of them lacks
        ("192.168.10.2", "192.168.10.3", "FACT"),
        (67108864000, 67108000000, "MOVING"),  # the memory of two machines of one kind
        (67108864000, 33554432000, "FACT"),
        (1000, 1001, "FACT"),  # each of few counts
        (GONE, 16, "FACT"),
        (GONE, GONE, "UNREAD"),
        (GONE, Unknown("another reason"), "UNREAD"),
        (Fact(16, GONE), Fact(16, Unknown("b")), "UNREAD"),
        (Fact(16, GONE), Fact(32, GONE), "FACT"),
        (Fact(16, 16), Fact(16, 0), "FACT"),
        (Fact(16, GONE), Fact(16, 16), "FACT"),
    ],
)
def test_the_weight_of_a_fact(a: Reading | Fact, b: Reading | Fact, weight: str | None) -> None:
    expected = {"system/x": weight} if weight else {}
    assert weights(compare(sides({"x": a}, {"x": b}), {})) == expected
    assert weights(compare(sides({"x": b}, {"x": a}), {})) == expected


def test_what_is_not_there_is_not_set() -> None:
    """As everywhere in hostprep: a fact that is missing is a setting that is not set, unless `*` says otherwise."""
    assert weights(compare(sides({"module/x": "loaded", "y": None}, {}), {})) == {"system/module/x": "FACT"}
    assert weights(compare(sides({"x": 1}, {"*": GONE}), {})) == {"system/*": "FACT", "system/x": "FACT"}


def test_what_always_moves_is_told_by_the_check() -> None:
    found = compare(
        sides({"free/var": 1, "users": GONE}, {"free/var": 2, "users": GONE}), {"system": ["free/*", "users"]}
    )
    assert weights(found) == {"system/free/var": "MOVING"}
    assert (found.differs, found.sure, diff.status(found)) == (False, True, 0)


def test_what_moves_is_a_key_of_the_check_that_says_so() -> None:
    """A glob that matches no key of any host would hide nothing, and nobody would see it."""
    moving = {name: registry.moving(check) for name, check in registry.load().items()}
    assert {"hardware", "swap", "nic_vfs"} <= {name for name, globs in moving.items() if globs}
    assert all(isinstance(glob, str) and glob for globs in moving.values() for glob in globs)


def test_a_check_that_gave_no_answer_is_a_difference_and_on_all_sides_it_is_unread() -> None:
    answered, silent = Side("a", {"gpu": {"driver": Fact.fixed("loaded")}}), Side("b", {"gpu": GONE})
    assert weights(compare([answered, silent], {})) == {"gpu/*": "FACT"}
    assert weights(compare([silent, silent], {})) == {"gpu/*": "UNREAD"}


def test_findings_come_first_the_worst_of_them_at_the_top() -> None:
    a = judged("a", {"one": Status.PASS, "two": Status.PASS, "three": Status.PASS, "same": Status.FAIL})
    waived = finding("three", Status.FAIL, waived="known (until 2030-01-01)")
    b = judged("b", {"one": Status.PENDING, "two": Status.FAIL, "three": waived, "same": Status.FAIL})
    facts: list[Facts] = [{"one": Fact.fixed(n), "kernel": Fact.fixed(f"6.{n}"), "x": Fact.fixed(n)} for n in (1, 2)]
    both = [Side(r.hostname, {"swap": of}, r) for r, of in zip((a, b), facts, strict=True)]
    found = compare(both, {})
    assert weights(found) == {
        "swap/two": "FINDING",
        "swap/one": "FINDING",
        "swap/three": "FINDING",
        "swap/x": "FACT",
        "swap/kernel": "VERSION",
    }
    assert [d.key for d in found.differences] == ["two", "three", "one", "x", "kernel"]


def test_what_only_one_profile_asks_for_is_told_as_a_note() -> None:
    a = judged("a", {"one": Status.PASS})
    b = judged("b", {"one": Status.PASS, "two": Status.FAIL}, profile=PROFILE._replace(sha256="2" * 64))
    found = compare([Side("a", {}, a), Side("b", {}, b, version="9.9")], {})
    assert not found.differences
    assert [note.partition(":")[0] for note in found.notes] == [
        "Looked at by different hostpreps",
        "Judged by different profiles",
    ]


def test_what_was_only_looked_at_on_one_side_is_not_the_same() -> None:
    """Never say the same of what nobody compared."""
    found = compare([Side("a", {"swap": {}, "gpu": {}}), Side("b", {"swap": {}})], {})
    assert (found.apart, diff.status(found)) == ({"gpu": ("a",)}, 3)
    assert "Only looked at on a: gpu." in diff_text.text(found, False)


@pytest.mark.parametrize(
    ("a", "b", "status", "last"),
    [
        ({"x": 1}, {"x": 1}, 0, "Nothing differs"),
        ({"x": 1}, {"x": 2}, 1, "1 fact differs"),
        ({"x": 1, "y": "1.2.3"}, {"x": 2, "y": "1.2.4"}, 1, "1 fact, 1 version differ"),
        ({"x": GONE}, {"x": GONE}, 3, "Nothing differs, as far as can be told"),
    ],
)
def test_the_exit_status_and_the_sentence(
    a: Mapping[str, Reading], b: Mapping[str, Reading], status: int, last: str
) -> None:
    found = compare(sides(a, b), {})
    assert diff.status(found) == status
    assert last in diff_text.text(found, False).splitlines()


# -- what a person reads --------------------------------------------------------------------------


def test_two_sides_stand_beside_each_other() -> None:
    a, b = judged("node1", {"devices": Status.PASS}), judged("node2", {"devices": finding("devices", Status.FAIL, 2)})
    pages = [{"1GiB": Fact(16, 32)}, {"1GiB": Fact.fixed(32)}]
    both = [Side(r.hostname, {"hugepages": of}, r) for r, of in zip((a, b), pages, strict=True)]
    assert diff_text.text(compare(both, {}), False).splitlines()[3:] == [
        "Findings",
        "  SETTING       node1    node2",
        "  swap/devices  pass: 1  FAIL: 2",
        "",
        "Facts",
        "  SETTING         node1              node2",
        "  hugepages/1GiB  16, next boot: 32  32",
        "",
        "1 finding, 1 fact differ",
    ]


def test_of_several_siblings_the_odd_one_out_comes_first() -> None:
    found = compare(sides(*({"x": n} for n in (16, 16, 32, 16))), {})
    assert diff_text.text(found, False).splitlines()[-5:-2] == ["  system/x", "    32: c", "    16: a, b, d"]


def test_many_of_a_kind_are_one_row() -> None:
    modules = {f"module/m{i}": "loaded" for i in range(9)}
    drivers = {f"0000:17:00.0/vf{i}/driver": "vfio-pci" for i in range(8)}
    told = diff_text.text(compare(sides({**modules, **drivers}, dict.fromkeys(drivers, "mlx5_core")), {}), False)
    assert "system/module/*: m0, m1, m2, m3, m4, m5 and 3 more" in told
    assert "system/0000:17:00.0/vf*/driver (8)" in told or "system/*/vf*/driver (8)" in told
    assert "17 facts differ" in told


def test_what_is_hidden_is_counted_and_shown_on_demand() -> None:
    found = compare(sides({"free/": 1, "y": GONE}, {"free/": 2, "y": GONE}), {"system": ["free/*"]})
    short, whole = (diff_text.text(found, everything) for everything in (False, True))
    assert "Not shown: 1 in which any two hosts differ" in short
    assert "system/free/" not in short
    assert "system/free/" in whole
    assert "  Input/output error:\n    system/y" in whole


def test_text_of_a_host_cannot_write_to_the_terminal() -> None:
    hostile = "\x1b[31m\r\nREADY\u202e"
    found = compare([Side(hostile, {"system": {hostile: Fact.fixed(hostile)}}), Side("b", {"system": {}})], {})
    assert all(c.isprintable() or c == "\n" for c in diff_text.text(found, True))
    assert "\nREADY" not in diff_text.text(found, True)


def test_as_data_it_says_the_same() -> None:
    data = diff_text.to_dict(
        compare(sides({"x": GONE, "free/": 1}, {"x": 2, "free/": 3}), {"system": ["free/*"]}), False
    )
    assert (data["differs"], data["sure"], data["hidden"], data["unread"]) == (True, True, 1, 0)
    assert data["differences"] == [
        {
            "weight": "fact",
            "check": "system",
            "key": "x",
            "sides": [
                {"status": None, "current": {"unknown": GONE.reason}, "next_boot": {"unknown": GONE.reason}},
                {"status": None, "current": 2, "next_boot": 2},
            ],
        }
    ]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["n1", "n2"], ["n1", "n2"]),
        (["n1", "n1"], ["1.json", "2.json"]),
        (["", "n1"], ["1.json", "n1"]),
    ],
)
def test_sides_have_names_that_tell_them_apart(given: Sequence[str], names: Sequence[str]) -> None:
    assert [s.name for s in named([Side(n, {}, None, f"{i}.json") for i, n in enumerate(given, 1)])] == names
    assert [s.name for s in named([Side("n", {}, None, "x"), Side("n", {}, None, "x")])] == ["x (1)", "x (2)"]


# -- what is read ---------------------------------------------------------------------------------


def as_report(**changed: Any) -> str:
    facts = {"swap": {"devices": Fact.fixed(())}}
    return json.dumps(report.to_dict(judged("n", {"devices": Status.PASS}, facts)) | changed, indent=1)


def at(text: str, word: str) -> str:
    """The place of a word, as line:column of what stands after `"word": `."""
    line = next(i for i, row in enumerate(text.splitlines(), 1) if f'"{word}": ' in row)
    return f"{line}:{text.splitlines()[line - 1].index(': ') + 3}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "x.json:1:1: empty"),
        ("READY: 7 passed\n", "x.json:1:1: not JSON"),
        ('{"facts": {},\n  oops}', "x.json:2:3: not JSON"),
        ("[1, 2]", "x.json:1:1: neither a report nor facts of hostprep"),
        ('{"verdict": "ready"}', "x.json:1:1: neither a report nor facts of hostprep"),
        ('{"facts": {"swap": 3}, "hostname": "n", "hostprep_version": "1"}', "x.json:1:1: damaged"),
        ('{"facts": {"swap": {"a": {"current": 1}}}, "hostname": "n", "hostprep_version": "1"}', "x.json:1:1: damaged"),
        ("[" * 100_000, "x.json:1:1: nested too deep"),
        (as_report(schema_version=2), "x.json:2:20: a report of schema version 2 (hostprep"),
        (
            as_report(verdict="perfect"),
            f"x.json:{at(as_report(), 'verdict')}: no report: verdict: 'perfect' is not one",
        ),
        (as_report(verdict="not-ready"), "no report: its verdict is not that of its findings (ready)"),
        (as_report(uptime_s="x"), f"x.json:{at(as_report(), 'uptime_s')}: no report: uptime_s"),
    ],
)
def test_what_is_no_report_is_refused_with_its_place(text: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        side("x.json", text.encode())
    assert said in str(refused.value)
    assert refused.value.hint


def test_bytes_that_are_no_text_are_refused_with_their_place() -> None:
    with pytest.raises(UsageError, match=r"x\.json:2:3: not UTF-8"):
        side("x.json", b'{\n "\xff"}')


def test_a_report_is_read_whole() -> None:
    read = side("x.json", as_report().encode())
    assert (read.name, read.facts) == ("n", {"swap": {"devices": Fact.fixed(())}})
    assert read.report is not None
    assert not compare([read, read], {}).differences


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[..., str]:
    """The directory of a host, to look at with --root."""

    def make(name: str, **more: Any) -> str:
        FakeHost(tmp_path / name, debian(**more))
        return str(tmp_path / name)

    return make


def test_recorded_hosts_differ_in_what_they_have(
    recorded: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    a, b = recorded("a"), recorded("b", memory_kib=64 * 1024**2)
    assert cli.run(["diff", a, b]) == 1
    assert "hardware/memory" in capfd.readouterr().out
    assert cli.run(["diff", a, a, "--format", "json"]) in (0, 3)
    assert json.loads(capfd.readouterr().out)["differences"] == []


def test_a_recorded_host_is_judged_where_the_report_was(
    recorded: Callable[..., str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    a, b, saved = recorded("a"), recorded("b"), str(tmp_path / "a.json")
    Path(b, "proc/swaps").write_text("Filename Type Size Used Priority\n/swap file 1048572 0 -2\n")
    profile = tmp_path / "profile.yaml"
    profile.write_text("swap: disabled\nhardware: {cpus: 2}\n")
    cli.run(["check", "--root", a, "--profile", str(profile), "--format", "json", "--output", saved])
    capfd.readouterr()
    assert cli.run(["diff", saved, b, "--profile", str(profile)]) == 1
    said = capfd.readouterr().out
    assert "swap/devices" in said
    assert "1 finding differs" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["/nowhere"], "/nowhere: No such file or directory"),
        (["-", "-"], "stdin can be one side only"),
        ([], "Missing argument"),
        (["/dev/null"], "/dev/null:1:1: empty"),
    ],
)
def test_wrong_usage(words: Sequence[str], said: str) -> None:
    done = hostprep("diff", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_facts_from_stdin_and_this_host() -> None:
    """As the help shows it: ssh node17 hostprep inspect --format json | hostprep diff -"""

    def status(given: str) -> tuple[int, str]:
        done = subprocess.run([*HOSTPREP, "diff", "-"], input=given, capture_output=True, text=True)
        return done.returncode, done.stdout

    told = json.loads(hostprep("inspect", "--only", "hardware", "--format", "json").stdout)
    assert status(json.dumps(told))[0] in (0, 3)  # free memory alone is no difference
    told["facts"]["hardware"]["cpus"] = {"current": 999, "next_boot": 999}
    code, said = status(json.dumps(told))
    assert code == 1
    assert "hardware/cpus  999" in said
