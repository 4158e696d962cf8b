"""`hostprep install`: all of a target or nothing, never over somebody else's file, and taken away without a trace."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from fakes import FakeHost

import hostprep.__main__ as entry
from hostprep import commands, install, packages
from hostprep.errors import ChangeFailed, HostError, OutputFailed, StateError
from hostprep.install import Done, Item

LIST = "/var/lib/hostprep/installed.json"
ITEMS = [
    Item("/etc/a/one.conf", b"1\n"),
    Item("/etc/a/two", b"#!/bin/sh\n", 0o755),
    Item("/etc/b", b"/etc/a/two", link=True),
]
ROOT_UNITS = "usr/local/lib/systemd/system"


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path / "root", {"/etc/hostname": "node01\n"})


def put(host: FakeHost, items: list[Item] = ITEMS, target: str = "t", dry_run: bool = False) -> list[str]:
    return [done.word for done in install.install(host, LIST, target, items, dry_run)]


# -- putting in place and taking away ---------------------------------------------------------------


def test_what_was_installed_is_taken_away_without_a_trace(host: FakeHost) -> None:
    before = host.snapshot()
    assert put(host) == ["new"] * 3
    there = host.snapshot()
    assert {path: there[path] for path in there if path not in before and path != LIST} == {
        "/etc/a/one.conf": (0o100644, "1\n"),
        "/etc/a/two": (0o100755, "#!/bin/sh\n"),
        "/etc/b": (0o120777, "/etc/a/two"),
    }
    assert {done.word for done in install.uninstall(host, LIST, "t")} == {"removed"}
    assert host.snapshot() == before
    assert not Path(host.root, "etc/a").exists()
    assert not Path(host.root, "var").exists()


def test_again_it_changes_nothing_and_a_newer_hostprep_updates_its_own(host: FakeHost) -> None:
    put(host)
    before = host.snapshot()
    assert put(host) == ["unchanged"] * 3
    assert host.snapshot() == before
    newer = [ITEMS[0]._replace(data=b"2\n"), *ITEMS[1:]]
    assert put(host, newer) == ["updated", "unchanged", "unchanged"]
    assert host.read("/etc/a/one.conf") == "2"
    assert {done.word for done in install.uninstall(host, LIST, "t")} == {"removed"}


@pytest.mark.parametrize("foreign", ["theirs\n", "-> /dev/null"])
def test_a_file_of_somebody_else_stops_it_before_anything_is_written(host: FakeHost, foreign: str) -> None:
    host.put("/etc/a/two", foreign)
    before = host.snapshot()
    for dry_run in (True, False):
        with pytest.raises(ChangeFailed, match=r"^/etc/a/two: there is a file"):
            put(host, dry_run=dry_run)
    assert host.snapshot() == before


def test_what_an_admin_changed_is_neither_replaced_nor_removed(host: FakeHost) -> None:
    put(host)
    host.put("/etc/a/one.conf", "mine\n")
    with pytest.raises(ChangeFailed, match=r"one\.conf"):
        put(host, [ITEMS[0]._replace(data=b"2\n")])
    assert Done("left", "/etc/a/one.conf") in install.uninstall(host, LIST, "t")
    assert host.read("/etc/a/one.conf") == "mine"
    assert not host.exists("/etc/a/two")


def test_what_is_there_to_be_edited_stays_as_it_is(host: FakeHost) -> None:
    config = [Item("/etc/hook.json", b"{}\n", edited=True)]
    assert put(host, config) == ["new"]
    host.put("/etc/hook.json", '{"freq": 5}\n')
    assert put(host, config) == ["kept"]
    assert [done.word for done in install.uninstall(host, LIST, "t")] == ["left"]
    assert host.read("/etc/hook.json") == '{"freq": 5}'


def test_a_file_that_was_there_already_with_the_same_bytes_is_not_ours_to_remove(host: FakeHost) -> None:
    host.put("/etc/a/one.conf", "1\n")
    assert put(host) == ["unchanged", "new", "new"]
    install.uninstall(host, LIST, "t")
    assert host.read("/etc/a/one.conf") == "1"


def test_two_targets_do_not_take_each_others_directories(host: FakeHost) -> None:
    put(host)
    put(host, [Item("/etc/a/three", b"3\n")], "u")
    assert install.targets(host, LIST) == ["t", "u"]
    install.uninstall(host, LIST, "t")
    assert host.read("/etc/a/three") == "3"
    install.uninstall(host, LIST, "u")
    assert not Path(host.root, "etc/a").exists()


def test_a_dry_run_writes_nothing(host: FakeHost) -> None:
    before = host.snapshot()
    assert put(host, dry_run=True) == ["new"] * 3
    assert host.snapshot() == before
    put(host)
    before = host.snapshot()
    assert [done.word for done in install.uninstall(host, LIST, "t", dry_run=True)] == ["removed"] * 3
    assert host.snapshot() == before


def test_cut_off_in_the_middle_it_can_be_gone_on_with_or_taken_away(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FakeHost.restore

    def cut_off(self: FakeHost, path: str, state: object) -> None:
        if path == "/etc/a/two":
            raise HostError("power cut")
        real(self, path, state)  # type: ignore[arg-type]

    before = host.snapshot()
    monkeypatch.setattr(FakeHost, "restore", cut_off)
    with pytest.raises(HostError):
        put(host)
    monkeypatch.setattr(FakeHost, "restore", real)
    assert put(host) == ["unchanged", "new", "new"]
    assert {done.word for done in install.uninstall(host, LIST, "t")} == {"removed"}
    assert host.snapshot() == before


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"version": 2, "files": {}}', '{"version": 1, "files": {"/a": 1}}'])
def test_a_damaged_list_is_said_and_nothing_is_touched(host: FakeHost, damage: str) -> None:
    host.put(LIST, damage)
    before = host.snapshot()
    with pytest.raises(StateError, match=rf"^{LIST}: damaged"):
        put(host)
    assert host.snapshot() == before


# -- the targets --------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The root directory of a system that is being made."""
    root = tmp_path / "image"
    for folder in ("etc/systemd/system", "var/lib/prometheus/node-exporter"):
        (root / folder).mkdir(parents=True)
    return root


def files(root: Path) -> set[str]:
    found = set()
    for folder, _, names in os.walk(root):
        found |= {str(Path(folder, name).relative_to(root)) for name in names}
    return found


@pytest.mark.parametrize("target", packages.TARGETS)
def test_every_target_goes_into_an_image_and_out_again(
    image: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.run(["install", target, "--root", str(image), "--dry-run"]) == 0
    assert files(image) == set()
    assert entry.run(["install", target, "--root", str(image)]) == 0
    said = capsys.readouterr().out
    assert "\nnext:\n  " in said
    for path in (there := files(image) - {LIST[1:]}):
        assert f"new  /{path}\n" in said
        text = (image / path).read_text()
        assert not {"@hostprep@", "@python@", "@share@", "@output@"} & set(text.split("'"))
    assert there
    assert entry.run(["uninstall", target, "--root", str(image)]) == 0
    assert files(image) == set()
    assert "left" not in capsys.readouterr().out


def test_all_targets_at_once_are_all_or_none(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (image / "etc/node-problem-detector").mkdir()
    (image / "etc/node-problem-detector/hostprep.json").write_text("mine")
    assert entry.run(["install", *packages.TARGETS, "--root", str(image)]) == 5
    assert files(image) == {"etc/node-problem-detector/hostprep.json"}
    assert "error: /etc/node-problem-detector/hostprep.json: there is a file" in capsys.readouterr().err


@pytest.mark.parametrize("enabled", [True, False])
def test_a_gate_is_opened_only_for_a_service_that_is_started_at_boot(image: Path, enabled: bool) -> None:
    unit = image / "etc/systemd/system/pbs.service"
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    if enabled:
        (image / "etc/systemd/system/multi-user.target.wants").mkdir()
        (image / "etc/systemd/system/multi-user.target.wants/pbs.service").symlink_to("/etc/systemd/system/pbs.service")
    assert entry.run(["install", "systemd", "--gate", "pbs.service", "--root", str(image)]) == 0
    dropin = (image / "etc/systemd/system/pbs.service.d/50-hostprep.conf").read_text()
    assert "Requires=hostprep-ready.target\nAfter=hostprep-ready.target\n" in dropin
    link = image / "etc/systemd/system/hostprep-ready.target.wants/pbs.service"
    assert os.path.lexists(link) is enabled

    assert entry.run(["install", "systemd", "--root", str(image)]) == 0, "an upgrade"
    assert "etc/systemd/system/pbs.service.d/50-hostprep.conf" in files(image)
    assert entry.run(["uninstall", "systemd", "--gate", "pbs.service", "--root", str(image)]) == 0
    assert not os.path.lexists(link)
    assert f"{ROOT_UNITS}/hostprep-ready.target" in files(image)


def test_what_waits_goes_before_what_it_waits_for(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.run(["install", "systemd", "--gate", "kubelet.service", "--root", str(image)]) == 0
    capsys.readouterr()
    assert entry.run(["uninstall", "systemd", "--root", str(image)]) == 0
    assert capsys.readouterr().out.startswith("gate kubelet.service:\n  removed")
    assert files(image) == set()


def test_links_of_systemctl_enable_go_with_the_units(image: Path) -> None:
    assert entry.run(["install", "systemd", "--root", str(image)]) == 0
    wants = image / "etc/systemd/system/timers.target.wants"
    wants.mkdir()
    (wants / "hostprep-check.timer").symlink_to(f"/{ROOT_UNITS}/hostprep-check.timer")
    assert entry.run(["uninstall", "systemd", "--root", str(image)]) == 0
    assert files(image) == set()


def test_units_that_make_again_what_was_recorded_are_not_taken_away(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """R131: without them the next boot would have no VFs."""
    assert entry.run(["install", "systemd", "--root", str(image)]) == 0
    (image / "etc/hostprep/boot").mkdir(parents=True)
    (image / "etc/hostprep/boot/nic_vfs.json").write_text("{}")
    before = files(image)
    assert entry.run(["uninstall", "systemd", "--root", str(image)]) == 5
    assert files(image) == before
    assert "hint: Take that back first: hostprep revert" in capsys.readouterr().err


WRONG = {
    "no target": ([], "TARGET"),
    "an unknown target": (["nagios"], "nagios"),
    "a gate of what is no service": (["systemd", "--gate", "pbs"], "Give it in full, such as pbs.service."),
    "a gate with a path": (["systemd", "--gate", "../x.service"], "is not the name of a service"),
    "a gate of our own": (["systemd", "--gate", "hostprep-check.service"], "before a host can be ready"),
    "a gate that locks the admin out": (["systemd", "--gate", "ssh.service"], "or be repaired"),
    "a gate without systemd": (["pbs", "--gate", "pbs.service"], "--gate belongs to the target systemd"),
    "a directory without prometheus": (["nfd", "--textfile-directory", "/x"], "belongs to the target prometheus"),
    "a relative directory": (["prometheus", "--textfile-directory", "x"], "is not the full path of a directory"),
    "no image": (["systemd", "--root", "/nowhere"], "--root /nowhere: is not a directory"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_said(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, said = WRONG[name]
    assert entry.run(["install", *words]) == 2
    assert said in capsys.readouterr().err


def test_without_a_textfile_directory_it_says_how_to_name_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.run(["install", "prometheus", "--root", str(tmp_path)]) == 2
    assert "--textfile-directory, as in node_exporter --collector.textfile.directory=DIR" in capsys.readouterr().err
    assert entry.run(["install", "prometheus", "--root", str(tmp_path), "--textfile-directory", "/srv/prom"]) == 0
    dropin = tmp_path / ROOT_UNITS / "hostprep-publish.service.d/prometheus.conf"
    assert " --output /srv/prom/hostprep.prom\n" in dropin.read_text()


def test_the_list_names_every_file(image: Path) -> None:
    assert entry.run(["install", "systemd", "--root", str(image)]) == 0
    listed = json.loads((image / LIST[1:]).read_text())["files"]
    assert {path[1:] for path, e in listed.items() if e["digests"]} == files(image) - {LIST[1:]}


def test_who_reads_only_the_beginning_does_not_stop_it_in_the_middle(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`hostprep uninstall ... | head -1`"""
    targets = ["serve", "pbs", "systemd"]
    assert entry.run(["install", *targets, "--root", str(image)]) == 0

    def lost(text: str, output: str | None = None) -> None:
        raise OutputFailed("stdout: Broken pipe: the answer is lost")

    monkeypatch.setattr(commands, "emit", lost)
    assert entry.run(["uninstall", *targets, "--root", str(image)]) == 74
    assert files(image) == set()


def test_a_link_that_systemctl_made_is_left_as_it_made_it(image: Path) -> None:
    """It may name /lib/systemd/system where we found /usr/lib."""
    for folder in ("usr/lib/systemd/system", "etc/systemd/system/multi-user.target.wants"):
        (image / folder).mkdir(parents=True)
    (image / "lib").symlink_to("usr/lib")
    (image / "usr/lib/systemd/system/pbs.service").write_text("[Service]\nExecStart=/bin/true\n")
    assert entry.run(["install", "systemd", "--gate", "pbs.service", "--root", str(image)]) == 0
    wants = image / "etc/systemd/system/hostprep-ready.target.wants"
    wants.mkdir()
    for folder in (wants, wants.with_name("multi-user.target.wants")):
        (folder / "pbs.service").symlink_to("/lib/systemd/system/pbs.service")
    assert entry.run(["install", "systemd", "--gate", "pbs.service", "--root", str(image)]) == 0
    assert os.readlink(wants / "pbs.service") == "/lib/systemd/system/pbs.service"


def test_a_gate_goes_and_the_other_targets_that_were_named(image: Path) -> None:
    assert entry.run(["install", "systemd", "serve", "--gate", "pbs.service", "--root", str(image)]) == 0
    assert entry.run(["uninstall", "systemd", "serve", "--gate", "pbs.service", "--root", str(image)]) == 0
    assert not {path for path in files(image) if "serve" in path or "pbs" in path}
    assert f"{ROOT_UNITS}/hostprep-ready.target" in files(image)
