"""What the OpenPBS hook takes for ready: the package's own rule (report.usable), told again in one file of Python 3.6.

It can import nothing of the package; so both are asked about the same reports here, and must say the same.
"""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_pbs import BEGIN, HOOK, PERIODIC, Event
from test_gate import made
from test_pbs_hook import FAILED, FREE, World

from hostprep import gate, profile_files, report, state
from hostprep.errors import HostprepError
from hostprep.model import Status


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


Damage = Callable[[dict[str, Any]], Any]


def sets(**values: Any) -> Damage:
    return lambda data: {**data, **values}


def of_finding(**values: Any) -> Damage:
    return lambda data: {**data, "findings": [{**data["findings"][0], **values}]}


DAMAGED: dict[str, tuple[Damage, str]] = {
    "another version": (sets(schema_version=2), "another version"),
    "another version, by type": (sets(schema_version=True), "another version"),
    "no version": (lambda data: {k: v for k, v in data.items() if k != "schema_version"}, "another version"),
    "another machine": (sets(machine_id="0" * 32), "of another machine"),
    "no machine": (sets(machine_id=""), "of another machine"),
    "another boot": (sets(boot_id="0"), "of an earlier boot"),
    "a part": (sets(selection=["swap"]), "of a part"),
    "an empty part": (sets(selection=[]), "of a part"),
    "expired": (sets(valid_until="2020-01-01T00:00:00Z"), "too old"),
    "from the future": (sets(generated_at="2999-01-01T00:00:00Z", valid_until="2999-02-01T00:00:00Z"), "future"),
    "of a later second of this boot": (sets(uptime_s=1e15), "future"),
    "of an earlier second of this boot": (sets(uptime_s=0), "too old"),
    "no such time": (sets(generated_at="2026-13-45T00:00:00Z"), ""),
    "another way of time": (sets(generated_at="2026-01-01 00:00:00"), "damaged"),
    "ready, but failed": (of_finding(status="fail"), "its verdict"),
    "ready, but unknown": (of_finding(status="unknown"), "its verdict"),
    "ready, but nothing is required": (of_finding(advisory=True), "its verdict"),
    "ready, but nothing was looked at": (sets(findings=[]), "its verdict"),
    "ready against its verdict": (sets(verdict="not-ready"), "its verdict"),
    "ready as a word": (sets(ready="true"), "damaged: ready"),
    "ready as a number": (sets(ready=1), "damaged: ready"),
    "a status that is none": (of_finding(status="green"), "is no status"),
    "a finding of another kind": (sets(findings=["pass"]), "other keys"),
    "a finding with a number for a name": (of_finding(key=7), "damaged: key"),
    "findings of another kind": (sets(findings={}), "damaged: findings"),
    "a key more": (sets(override=True), "other keys"),
    "a key less": (lambda data: {k: v for k, v in data.items() if k != "facts"}, "other keys"),
    "facts of another kind": (sets(facts=[]), "damaged: facts"),
    "a profile of another kind": (sets(profile="x"), "damaged: profile"),
    "an age that is a word": (sets(uptime_s="1"), "damaged: uptime_s"),
    "an age that is a truth": (sets(uptime_s=True), "damaged: uptime_s"),
    "null": (lambda data: None, "JSON object"),
    "a list": (lambda data: [data], "JSON object"),
}


def text(change: Callable[[str], str]) -> Callable[[str], bytes]:
    return lambda given: change(given).encode("latin-1")


UNREADABLE: dict[str, tuple[Callable[[str], bytes], str]] = {
    "empty": (text(lambda given: ""), "cannot be judged"),
    "truncated": (text(lambda given: given[:-2]), "cannot be judged"),
    "followed by more": (text(lambda given: given + "{}"), "cannot be judged"),
    "not UTF-8": (text(lambda given: given.replace('"hostname": "', '"hostname": "\xe9')), "cannot be judged"),
    "a key twice": (text(lambda given: given.replace("{", '{"ready": true, ', 1)), "a key is there twice"),
    "not a number": (
        text(lambda given: given.replace('"duration_ms": ', '"duration_ms": NaN, "x": ', 1)),
        "is no number",
    ),
    "a huge number": (
        text(lambda given: given.replace('"duration_ms": ', '"duration_ms": 9' + "9" * 5000, 1)),
        "is no number",
    ),
    "deeply nested": (lambda given: b"[" * 100_000, "RecursionError"),
    "too large": (lambda given: given.encode() + b" " * (16 * 1024 * 1024), "larger than 16777216 bytes"),
}


def said(world: World) -> str:
    """Why a job may not begin; empty where it may."""
    outcome = world.run(BEGIN)
    assert outcome.accepted is not outcome.reruns
    return outcome.message


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_report_that_cannot_be_relied_on_is_not_ready_here_as_everywhere(world: World, damage: str) -> None:
    """T9 and what else report.usable() refuses."""
    change, why = DAMAGED[damage]
    world.publish(change(world.data(Status.PASS)))
    assert why in said(world)
    world.run()
    assert world.seen()[0]
    with pytest.raises(HostprepError):
        gate.relied_on()


@pytest.mark.parametrize("damage", UNREADABLE)
def test_what_is_no_report_is_not_ready(world: World, damage: str) -> None:
    change, why = UNREADABLE[damage]
    Path(state.report_path()).write_bytes(change(json.dumps(world.data(Status.PASS))))
    assert why in said(world)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link(path: Path) -> None:
    path.rename(path.with_suffix(".old"))
    path.symlink_to(path.with_suffix(".old"))


PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "No such file"),
    "a FIFO": (fifo, "is not a regular file"),
    "a directory": (folder, "Is a directory"),
    "a link": (link, "Too many levels of symbolic links"),
    "writable by others": (lambda path: path.chmod(0o666), "not to be trusted"),
    "in a directory that is writable by others": (lambda path: path.parent.chmod(0o777), "not to be trusted"),
    "of another user": (lambda path: os.chown(path, 65534, 0), "not to be trusted"),
    "in a directory of another user": (lambda path: os.chown(path.parent, 65534, 0), "not to be trusted"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_report_that_root_did_not_put_there_is_not_ready(world: World, place: str) -> None:
    if "of another user" in place and os.geteuid() != 0:
        pytest.skip("giving a file away needs root")
    change, why = PLACES[place]
    change(Path(state.report_path()))
    assert why in said(world)


def test_a_hook_that_stumbles_over_a_report_takes_it_for_not_ready(world: World) -> None:
    world.configure(profile_file=str(world.folder / "link"))
    (world.folder / "link").symlink_to("/nowhere")
    assert "cannot be judged: FileNotFoundError" in said(world)


def test_a_report_from_before_the_last_change_of_the_profile_is_not_relied_on(world: World) -> None:
    """Also where a copy brought an old time of change with it."""
    world.profile.write_text("name: x\n")
    os.utime(world.profile, (0, 0))
    assert f"the report is older than {world.profile}" in said(world)
    world.ready()
    assert said(world) == ""


@pytest.mark.parametrize(
    ("settings", "why"), [({"profile": "gpu-node"}, "not gpu-node"), ({"max_age_s": 5}, "too old")]
)
def test_a_site_can_ask_for_more(world: World, settings: dict[str, Any], why: str) -> None:
    state.publish(made(Status.PASS, age=10))
    assert said(world) == ""
    world.configure(**settings)
    assert why in said(world)
    world.configure(profile=world.data()["profile"]["name"], max_age_s=60)
    assert said(world) == ""


# -- a configuration that is not valid --------------------------------------------------------------

BROKEN = {
    "no JSON": b"{",
    "empty": b"",
    "not UTF-8": b'{"profile": "\xe9"}',
    "a list": b"[]",
    "a key that is not known": b'{"max_age": 60}',
    "a path that is none": b'{"report": "report.json"}',
    "an age that is a word": b'{"max_age_s": "60"}',
    "an age of zero": b'{"max_age_s": 0}',
    "an age that is a truth": b'{"max_age_s": true}',
    "a profile that is a number": b'{"profile": 7}',
    "no memory": b'{"memory": null}',
    "a key twice": b'{"profile": null, "profile": "x"}',
}


@pytest.fixture
def defaults(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """The hook's own defaults lead to this test's report and memory."""
    values = json.loads((world.folder / "hostprep.json").read_text())
    source = HOOK.read_text()
    for key, path in (("report", "/run/hostprep/report.json"), ("memory", "/var/lib/hostprep/pbs.json")):
        assert source.count(f'"{path}"') == 1
        source = source.replace(f'"{path}"', repr(values[key]))
    hook = world.folder / "hook.py"
    hook.write_text(source.replace('"/etc/hostprep/profile.yaml"', repr(values["profile_file"])))
    monkeypatch.setattr("fake_pbs.HOOK", hook)
    return world


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_configuration_takes_no_node_down_brings_none_back_and_is_loud(defaults: World, broken: str) -> None:
    """A slip in one file, which goes to all nodes at once, must not empty the cluster; nor vouch for anything."""
    world = defaults
    config = world.folder / "hostprep.json"
    loud = "hostprep: the configuration of the hook is not valid: "
    good = config.read_bytes()

    config.write_bytes(BROKEN[broken])
    outcome = world.run()
    offline, comment = world.seen()
    assert (offline, comment.startswith(loud)) == (False, True), comment
    assert outcome.log[0].startswith(loud)
    assert world.run().requests == []
    assert world.run(BEGIN).accepted

    world.bad()
    assert not world.run(BEGIN).accepted
    assert world.seen() == FAILED
    world.ready()
    world.run()
    offline, comment = world.seen()
    assert (offline, comment.startswith(loud)) == (True, True), comment
    world.server.restart()
    world.run()
    assert world.server.seen()[0]

    config.write_bytes(good)
    world.run()
    assert world.seen() == FREE


@pytest.mark.parametrize("offline", [False, True])
def test_a_broken_configuration_leaves_the_words_of_an_admin(defaults: World, offline: bool) -> None:
    (defaults.folder / "hostprep.json").write_bytes(b"{")
    defaults.server.nodes["node1"].state = int(offline)
    defaults.server.nodes["node1"].comment = "new disk in May"
    assert defaults.run().requests == []


# -- the file itself --------------------------------------------------------------------------------


def test_the_hook_needs_nothing_but_an_old_python() -> None:
    """pbs_python has no site-packages, and the Python of EL8 is 3.6."""
    nodes = list(ast.walk(ast.parse(HOOK.read_text(), feature_version=(3, 7))))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert modules - {"pbs"} <= sys.stdlib_module_names
    assert not modules & {"__future__", "dataclasses"}  # its annotations are of 3.7
    newer = {"removeprefix", "removesuffix", "fromisoformat", "missing_ok", "cache"}
    assert not newer & {getattr(node, "attr", "") for node in nodes}


@pytest.fixture
def hook(world: World, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of the hook, without a run of it."""
    monkeypatch.setitem(sys.modules, "pbs", world.mom.module(Event(PERIODIC, [], []), []))
    names: dict[str, Any] = {"__name__": "hook"}
    exec(compile(HOOK.read_text(), str(HOOK), "exec"), names)
    return names


def test_the_hook_knows_every_key_of_the_schema(hook: dict[str, Any]) -> None:
    schema = json.loads(Path(report.SCHEMA_FILE).read_text())
    assert sorted(hook["REPORT"]) == sorted(schema["required"])
    assert sorted(hook["FINDING"]) == sorted(schema["$defs"]["finding"]["required"])
    assert {*hook["BAD"], "pass", "volatile"} == set(schema["$defs"]["finding"]["properties"]["status"]["enum"])
    assert hook["DEFAULTS"]["report"] == f"{state.RUN_DIR}/report.json"
    assert hook["DEFAULTS"]["profile_file"] == profile_files.SITE_PROFILE


def test_the_packaged_configuration_has_every_key_with_its_default(hook: dict[str, Any]) -> None:
    assert json.loads(HOOK.with_suffix(".json").read_text()) == hook["DEFAULTS"]
