"""The boot record, the unit that makes it again, and `apply --boot`, which that unit runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeHost, apply
from fake_sriov import SriovHost
from fakes import debian

from hostprep import boot_record as boot
from hostprep import commands, registry, state
from hostprep.errors import ChangeFailed, HostError
from hostprep.host import Host
from hostprep.host.rehearsal import Rehearsal
from hostprep.journal import Journal
from hostprep.pci import DEVICES
from hostprep.perform import Performer
from hostprep.revert import revert

PF0, PF1 = "0000:17:00.0", "0000:17:00.1"
RECORD = {PF0: {"id": "15b3:1019", "vfs": 8, "vf0/mac": "02:00:00:00:00:02", "up": True, "names": ("a", "b")}}
FILE = f"{boot.DIRECTORY}/toy.json"
ETC = f"/etc/systemd/system/{boot.UNIT}"
PACKAGED = f"/usr/lib/systemd/system/{boot.UNIT}"
WANTS = f"/etc/systemd/system/multi-user.target.wants/{boot.UNIT}"
SYSTEMD = {"/run/systemd/system/": "", boot.command()[0]: "", "/usr/bin/hostprep": ""}
UNIT = (Path(boot.__file__).parent.parent / "systemd" / boot.UNIT).read_text()


# -- the record -----------------------------------------------------------------------------------


def test_what_was_put_is_read_again_with_one_device_a_line(make_host: MakeHost) -> None:
    host = make_host(SYSTEMD)
    two = RECORD | {PF1: {"id": "15b3:1019", "vfs": 4}}
    boot.put(host, "toy", dict(reversed(two.items())))
    assert (boot.read(host, "toy"), boot.names(host)) == (two, ["toy"])
    lines = (host.read(FILE) or "").splitlines()
    assert [line.split(": ")[0] for line in lines[2:4]] == [f'"{PF0}"', f'"{PF1}"']
    assert "written by" in lines[1]
    assert boot.read(host, "other") == {}


GOOD = '{\n"written by": "us",\n'
DAMAGED = [
    ("", 1, "Expecting value"),
    (GOOD + '"0000:17:00.0": {"id": "15b3:1019", "vfs": 8', 3, "delimiter"),
    ('{"0000:17:00.0": {"id": "15b3:1019"}}', 1, "written by"),
    ("[]", 1, "written by"),
    (GOOD + '"0000:17:00.0": 8}', 3, "has no id"),
    (GOOD + '"0000:17:00.0": {"vfs": 8}}', 3, "has no id"),
    (GOOD + '"0000:17:00.0": {"id": "a", "vfs": 1.5}}', 3, "1.5"),
    (GOOD + '"0000:17:00.0": {"id": "a", "mac": {"0": "b"}}}', 3, "no setting"),
    (GOOD + '"0000:17:00.0": {"id": "a"},\n"0000:17:00.0": {"id": "b"}}', 1, "twice"),
    (GOOD + '"../../etc": {"id": "a"}}', 3, "no PCI address"),
    (GOOD + '"0000:17:00.0": {"id": "a", "x": NaN}}', 3, "no setting"),
    ("[" * 5000, 1, "recursion"),
]


@pytest.mark.parametrize(("text", "line", "why"), DAMAGED)
def test_a_damaged_record_is_told_with_its_line_and_makes_nothing(
    make_host: MakeHost, text: str, line: int, why: str
) -> None:
    host = make_host({FILE: text})
    with pytest.raises(HostError, match=why) as e:
        boot.read(host, "toy")
    assert str(e.value).startswith(f"{FILE}:{line}: damaged: ")


def test_bytes_that_are_no_text_are_damage(make_host: MakeHost) -> None:
    host = make_host({FILE: "x"})
    Path(host.root + FILE).write_bytes(b'{\n"a": "\xff"}')
    with pytest.raises(HostError, match=f"{FILE}:2: damaged: not UTF-8"):
        boot.read(host, "toy")


def test_root_takes_no_record_that_others_could_have_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CWE-732: it tells root at every boot what to write where."""
    if os.geteuid() != 0:
        pytest.skip("only root is led by others")
    monkeypatch.setattr(boot, "DIRECTORY", str(tmp_path))
    path = tmp_path / "toy.json"
    path.write_text(boot._text(RECORD))
    assert boot.read(Host(), "toy") == RECORD
    path.chmod(0o666)
    with pytest.raises(HostError, match="can be written by others"):
        boot.read(Host(), "toy")


# -- the unit -------------------------------------------------------------------------------------


def test_a_record_installs_and_enables_the_unit_and_the_last_one_takes_it_away(make_host: MakeHost) -> None:
    host = make_host(SYSTEMD)
    before = host.snapshot()
    assert not boot.effective(host)
    boot.put(host, "toy", RECORD)
    boot.put(host, "other", RECORD)
    assert boot.effective(host)
    assert f"ExecStart={' '.join(boot.command())} apply --boot\n" in (host.read(ETC) or "")
    assert host.link(WANTS) == ETC
    boot.put(host, "toy", {})
    assert boot.effective(host), "another check has a record"
    boot.put(host, "other", {})
    assert host.snapshot() == before


def test_what_is_so_already_is_not_written_again(make_host: MakeHost) -> None:
    host = make_host(SYSTEMD)
    boot.put(host, "toy", RECORD)
    rehearsal = Rehearsal(host)
    boot.put(rehearsal, "toy", RECORD)
    assert rehearsal.steps == []


def test_a_plan_shows_the_record_the_unit_and_the_link(make_host: MakeHost) -> None:
    rehearsal = Rehearsal(make_host(SYSTEMD))
    boot.put(rehearsal, "toy", RECORD)
    assert boot.effective(rehearsal)
    commands_shown = [step.command for step in rehearsal.steps]
    assert [c for c in commands_shown if not c.startswith("mkdir")] == [
        f"write {ETC}",
        f"ln -sfn {ETC} {WANTS}",
        f"write {FILE}",
    ]
    assert '+"0000:17:00.0": {"id": "15b3:1019"' in rehearsal.steps[-1].diff


def test_a_unit_of_a_package_is_enabled_and_stays(make_host: MakeHost) -> None:
    host = make_host(SYSTEMD | {PACKAGED: UNIT})
    boot.put(host, "toy", RECORD)
    assert (boot.effective(host), host.exists(ETC), host.link(WANTS)) == (True, False, PACKAGED)
    boot.put(host, "toy", {})
    assert host.exists(PACKAGED)


def test_our_unit_follows_hostprep_to_where_it_is_now(make_host: MakeHost) -> None:
    """A unit that starts a virtual environment which is gone makes nothing."""
    host = make_host(SYSTEMD)
    boot.put(host, "toy", RECORD)
    text = (host.read(ETC) or "") + "\n"
    host.put(ETC, text.replace(boot.command()[0], "/opt/old/bin/python"))
    assert not boot.effective(host)
    boot.put(host, "toy", RECORD)
    assert boot.effective(host)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({ETC: "-> /dev/null"}, id="masked"),
        pytest.param({ETC: "", PACKAGED: UNIT}, id="masked by an empty file"),
        pytest.param({PACKAGED: UNIT, WANTS: "-> /dev/null"}, id="link masked"),
    ],
)
def test_a_mask_is_somebodys_decision_and_stays(make_host: MakeHost, more: Mapping[str, str]) -> None:
    """systemd.unit(5)."""
    host = make_host(SYSTEMD | dict(more))
    before = host.snapshot()
    with pytest.raises(ChangeFailed, match="masked"):
        boot.put(host, "toy", RECORD)
    assert (host.snapshot(), boot.effective(host)) == (before, False)


LINK = {WANTS: f"-> {PACKAGED}"}
ENABLED = {PACKAGED: UNIT, **LINK}
EFFECTIVE = [
    ("of a package", ENABLED, True),
    ("no unit file", LINK, False),
    ("not enabled", {PACKAGED: UNIT}, False),
    ("enabled by the package", {PACKAGED: UNIT, WANTS.replace("/etc", "/usr/lib"): f"-> ../{boot.UNIT}"}, True),
    ("masked", ENABLED | {ETC: "-> /dev/null"}, False),
    ("masked until the next boot alone", ENABLED | {ETC.replace("/etc", "/run"): "-> /dev/null"}, True),
    ("enabled for this boot alone", {PACKAGED: UNIT, WANTS.replace("/etc", "/run"): f"-> {PACKAGED}"}, False),
    ("wanted by what no boot reaches", {PACKAGED: UNIT, WANTS.replace("multi-user", "rescue"): "-> x"}, False),
    ("another's unit of that name", ENABLED | {PACKAGED: "[Service]\nExecStart=/bin/true\n"}, False),
    ("a program that is gone", ENABLED | {PACKAGED: UNIT.replace("ExecStart=", "ExecStart=/opt/gone/")}, False),
    ("a harmless drop-in", ENABLED | {f"{ETC}.d/a.conf": "[Unit]\nAfter=openibd.service\n"}, True),
]


@pytest.mark.parametrize(("more", "expected"), [row[1:] for row in EFFECTIVE], ids=[row[0] for row in EFFECTIVE])
def test_systemd_starts_the_unit_at_the_next_boot(make_host: MakeHost, more: Mapping[str, str], expected: bool) -> None:
    assert boot.effective(make_host(SYSTEMD | dict(more))) is expected


@pytest.mark.parametrize("folder", [f"{ETC}.d", "/usr/lib/systemd/system/service.d"])
@pytest.mark.parametrize(
    "line", ["ConditionHost=other", "ExecStart=", "AssertPathExists=/x", "ExecCondition=/bin/false"]
)
def test_a_drop_in_that_decides_makes_it_unknown(make_host: MakeHost, line: str, folder: str) -> None:
    host = make_host(SYSTEMD | ENABLED | {f"{folder}/50-site.conf": f"[Service]\n{line}\n"})
    with pytest.raises(HostError, match="50-site"):
        boot.effective(host)


def test_without_systemd_nothing_is_promised(make_host: MakeHost) -> None:
    host = make_host(ENABLED | {"/usr/bin/hostprep": ""})
    assert not boot.effective(host)
    with pytest.raises(ChangeFailed, match="systemd does not run this host"):
        boot.put(host, "toy", RECORD)


def test_root_installs_no_unit_that_starts_what_others_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sudo ~/venv/bin/hostprep apply` must not make a user root at the next boot."""
    if os.geteuid() != 0:
        pytest.skip("only root is led by others")
    program = tmp_path / "hostprep"
    program.touch()
    monkeypatch.setattr(boot, "command", lambda: [str(program)])
    assert f"ExecStart={program} apply --boot\n" in boot.unit(Host())
    os.chown(program, 1000, 1000)
    with pytest.raises(ChangeFailed, match="belongs to user 1000"):
        boot.unit(Host())


def test_a_program_of_an_odd_name_is_quoted_as_systemd_reads_it(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "/opt/my tools/100%/hostprep"
    monkeypatch.setattr(boot, "command", lambda: [program])
    host = make_host(SYSTEMD | {program: ""})
    boot.put(host, "toy", RECORD)
    assert 'ExecStart="/opt/my tools/100%%/hostprep" apply --boot' in (host.read(ETC) or "")
    assert boot.effective(host)


# -- apply --boot ---------------------------------------------------------------------------------

BOTH = {"nic_vfs": [{"pf": PF0, "vfs": 8}, {"pf": PF1, "vfs": 4, "mac": "derived"}]}


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SriovHost:
    """Two ports, prepared in an earlier boot, and no VFs: they went with that boot."""
    host = SriovHost(tmp_path / "root", debian())
    host.pf(PF0, "ens9f0np0")
    host.pf(PF1, "ens9f1np1")
    assert apply(host, BOTH, Journal(_journal(), "first-boot")).failures == []
    host.drop(PF0)
    host.drop(PF1)
    monkeypatch.setattr(commands, "Host", lambda: host)
    return host


def _journal() -> str:
    os.makedirs(state.state_dir(), exist_ok=True)
    return state.journal_path()


def made(host: SriovHost) -> tuple[int, int]:
    return len(host.vfs(PF0)), len(host.vfs(PF1))


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes need root")


@needs_root
def test_k12_the_boot_unit_makes_all_again_and_a_second_run_nothing(prepared: SriovHost) -> None:
    assert (commands.recreate(), made(prepared)) == (0, (8, 4))
    assert prepared.link_table["ens9f1np1"].vfs[3].mac == "02:00:03:00:00:03"
    prepared.wrote.clear()
    prepared.ran.clear()
    Path(state.run_dir()).mkdir()
    Path(state.report_path()).touch()
    assert (commands.recreate(), prepared.wrote, prepared.ran) == (0, [], [])
    assert os.path.exists(state.report_path()), "nothing was changed, so what was published still holds"


@needs_root
def test_revert_in_the_boot_after_finds_its_way_back_to_no_vfs(prepared: SriovHost) -> None:
    assert commands.recreate() == 0
    journal = Journal(_journal(), prepared.read("/proc/sys/kernel/random/boot_id") or "")
    stands = {s.change.key: s.change[3:] for s in journal.standing() if s.change.facet.value == "current"}
    assert stands[f"{PF0}/vfs"] == (0, 8)
    performer = Performer(prepared, registry.load(["nic_vfs"]), journal, lambda line: None)
    revert(performer)
    assert made(prepared) == (0, 0)
    assert not prepared.exists(boot.DIRECTORY)
    assert not prepared.exists(ETC)
    assert not [s for s in journal.standing() if s.change.key.endswith("/vfs")]


def gone(host: SriovHost) -> None:
    os.rename(f"{host.root}{DEVICES}/{PF0}", f"{host.root}/gone")


def another_card(host: SriovHost) -> None:
    host.put(f"{DEVICES}/{PF0}/device", "0x101d\n")


def unbound(host: SriovHost) -> None:
    host.remove(f"{DEVICES}/{PF0}/driver")


def refusing(host: SriovHost) -> None:
    host.put(f"{DEVICES}/{PF0}/sriov_totalvfs", "2\n")


def switched_off(host: SriovHost) -> None:
    """As a card whose firmware waits for a power cycle, after a mere reboot."""
    for name in ("totalvfs", "numvfs", "drivers_autoprobe", "vf_device"):
        host.remove(f"{DEVICES}/{PF0}/sriov_{name}")


TROUBLE: list[tuple[Callable[[SriovHost], None], str]] = [
    (gone, "there is no device at this address"),
    (another_card, "there is 15b3:101d at this address, and the record is of 15b3:1019"),
    (unbound, "no driver is bound to it"),
    (refusing, "8 VFs"),
    (switched_off, "SR-IOV is off: the device has no sriov_totalvfs\n        -> Turn it on in firmware"),
]


@needs_root
@pytest.mark.parametrize(("trouble", "why"), TROUBLE)
def test_r105_one_card_in_trouble_is_named_and_the_other_is_made(
    prepared: SriovHost, capsys: pytest.CaptureFixture[str], trouble: Callable[[SriovHost], None], why: str
) -> None:
    trouble(prepared)
    assert commands.recreate() == 5
    told = capsys.readouterr().err
    assert why in told
    assert f"nic_vfs/{PF0}" in told
    assert len(prepared.vfs(PF1)) == 4
    if trouble is not gone:
        assert prepared.vfs(PF0) == []


@needs_root
def test_a_damaged_record_is_a_failure_with_its_line(prepared: SriovHost, capsys: pytest.CaptureFixture[str]) -> None:
    prepared.put(f"{boot.DIRECTORY}/nic_vfs.json", "{")
    assert (commands.recreate(), made(prepared)) == (5, (0, 0))
    assert "nic_vfs.json:1: damaged" in capsys.readouterr().err


@needs_root
def test_a_record_of_a_check_that_is_no_more_is_a_failure(
    prepared: SriovHost, capsys: pytest.CaptureFixture[str]
) -> None:
    boot.put(prepared, "no_such_check", RECORD)
    assert (commands.recreate(), made(prepared)) == (5, (8, 4))
    assert "no_such_check" in capsys.readouterr().err


@needs_root
def test_without_a_record_there_is_nothing_to_do(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host = make_host(debian())
    before = host.snapshot()
    monkeypatch.setattr(commands, "Host", lambda: host)
    assert (commands.recreate(), host.snapshot()) == (0, before)
    assert "Nothing is recorded" in capsys.readouterr().err


AT = f"{DEVICES}/{PF0}"
BARE = {f"{AT}/vendor": "0x15b3", f"{AT}/driver": "-> ../../../bus/pci/drivers/mlx5_core"}
NAMED = BARE | {f"{AT}/net/ens9f0np0/ifindex": "7"}
UDEV = {"/run/udev/control": ""}
PRESENT = [
    ("not there", {}, {"vfs": 8}, False),
    ("no driver yet", {f"{AT}/vendor": "0x15b3"}, {"vfs": 8}, False),
    ("no interface needed", BARE, {"vfs": 8, "vf0/driver": "vfio-pci"}, True),
    ("no interface yet", BARE, {"vf0/mac": "02:00:00:00:00:01"}, False),
    ("no name from udev yet", NAMED | UDEV, {"up": True}, False),
    ("named by udev", NAMED | UDEV | {"/run/udev/data/n7": ""}, {"up": True}, True),
    ("no udev here", NAMED, {"up": True}, True),
]


@pytest.mark.parametrize(("files", "entry", "expected"), [row[1:] for row in PRESENT], ids=[row[0] for row in PRESENT])
def test_r131_a_device_is_waited_for_until_it_can_be_set_up(
    make_host: MakeHost, files: Mapping[str, str], entry: Mapping[str, Any], expected: bool
) -> None:
    assert boot.present(make_host(files), {PF0: {"id": "15b3:1019", **entry}}) is expected
