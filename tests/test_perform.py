"""Changing and taking back: compare and swap, refusals, failures put back, and files that others have touched."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import apply, profile, statuses
from fake_kernel import FakeKernel, reboot, swap_commands, with_swap
from fakes import HUGE_2M, debian, mkconfig

from hostprep import engine, registry
from hostprep.errors import ChangeFailed, HostError, StateError
from hostprep.host import FileState, Host
from hostprep.journal import Journal
from hostprep.model import Change, Desired, Facet, Fact, Facts, Goals, Section
from hostprep.perform import Failure, Performer, converge
from hostprep.registry import Check
from hostprep.revert import rehearse, revert

PAGES = {"hugepages": {"2MiB": 64}}
ALL: dict[str, Any] = {**PAGES, "swap": "disabled", "kernel_args": ["iommu=pt"]}
DROPIN = "/etc/default/grub.d/zz-hostprep-hugepages.cfg"
LATER = Facet.NEXT_BOOT


@pytest.fixture
def host(tmp_path: Path) -> FakeKernel:
    host = FakeKernel(tmp_path / "root", with_swap(debian(), "/swapfile"))
    host.commands = {"grub-mkconfig": mkconfig(host), **swap_commands(host, ["/swapfile"])}
    return host


def take_back(host: FakeKernel, journal: Journal, checks: dict[str, Check] | None = None) -> Performer:
    performer = Performer(host, checks or registry.load(ALL), journal, lambda line: None)
    revert(performer)
    return performer


def everything(host: FakeKernel) -> dict[str, object]:
    return {**host.snapshot(), **dict.fromkeys(host.directories(), "directory")}


def reasons(performer: Performer) -> str:
    return "; ".join(f"{f.name}: {f.reason}" for f in performer.failures)


class Toy:
    """A check of one line of a file, which is both now and the next boot."""

    SCHEMA: dict[str, Any] = {}  # noqa: RUF012  # a module's constant, as the protocol has it

    def __init__(self, name: str, **goal: Any) -> None:
        self.NAME, self.path, self.goal = name, f"/etc/{name}", goal
        self.reads_back = True

    def inspect(self, host: Host) -> Facts:
        lines = (line.partition("=") for line in (host.read(self.path) or "").splitlines())
        values = {name: value for name, _, value in lines}
        return {"value": Fact.fixed(values.get(self.NAME) if self.reads_back else "stuck")}

    def decide(self, facts: Facts, want: Section) -> Goals:
        return {"value": Desired(want, **self.goal)}

    def apply(self, host: Host, changes: Sequence[Change]) -> None:
        text = host.read(self.path) or ""
        others = [line for line in text.splitlines() if not line.startswith(f"{self.NAME}=")]
        host.replace(self.path, "\n".join([*others, f"{self.NAME}={changes[0].after}"]))


def toys(host: FakeKernel, *names: str, **goal: Any) -> dict[str, Toy]:
    for name in names:
        host.put(f"/etc/{name}", f"{name}=old\n")
    return {name: Toy(name, **goal) for name in names}


def change(name: str, before: str = "old", after: str = "new", facet: Facet = LATER) -> Change:
    return Change(name, "value", facet, before, after)


# -- compare and swap -----------------------------------------------------------------------------


@pytest.mark.parametrize("facet", list(Facet))
@pytest.mark.parametrize(
    ("found", "left", "failure"),
    [("old", "new", ""), ("new", "new", ""), ("theirs", "theirs", "expected old, found theirs: somebody else")],
)
def test_what_changed_since_the_plan_is_left_alone(
    host: FakeKernel, journal: Journal, facet: Facet, found: str, left: str, failure: str
) -> None:
    checks = toys(host, "a")
    performer = Performer(host, dict(checks), journal, lambda line: None)
    host.put("/etc/a", f"a={found}\n")
    performer.perform([change("a", facet=facet)])
    assert host.read("/etc/a") == f"a={left}"
    assert (failure in reasons(performer)) if failure else not performer.failures
    assert bool(journal.standing()) == (found == "old")


def test_revert_leaves_a_live_value_that_somebody_else_has_set(host: FakeKernel, journal: Journal) -> None:
    apply(host, PAGES, journal)
    host.write(f"{HUGE_2M}/nr_hugepages", "100")
    assert "expected 64, found 100" in reasons(take_back(host, journal))
    assert host.number(f"{HUGE_2M}/nr_hugepages") == 100
    assert not host.exists(DROPIN)


def test_what_became_unsafe_since_the_plan_is_refused(host: FakeKernel, journal: Journal) -> None:
    checks = toys(host, "a", refused_next="it would starve")
    performer = Performer(host, dict(checks), journal, lambda line: None)
    performer.perform([change("a")], {"a": "new"})
    assert reasons(performer) == "a/value: it would starve"
    assert host.read("/etc/a") == "a=old"


@pytest.mark.parametrize(("allowed", "left"), [((), "old"), (("a",), "new"), (("b",), "old")])
def test_what_disrupts_is_refused_unless_allowed_by_name(
    host: FakeKernel, journal: Journal, allowed: tuple[str, ...], left: str
) -> None:
    checks = toys(host, "a", disrupts="a job uses it")
    performer = Performer(host, dict(checks), journal, lambda line: None)
    performer.perform([change("a", facet=Facet.CURRENT)], {"a": "new"}, allowed)
    assert host.read("/etc/a") == f"a={left}"


def test_a_check_that_only_asserts_changes_nothing(host: FakeKernel, journal: Journal) -> None:
    before = everything(host)
    apply(host, ALL, journal, assert_only=("hugepages", "swap", "kernel_args"))
    assert (everything(host), host.ran) == (before, [])


class Things:
    """A check of files without end: it looks only at those that it is told of."""

    NAME = "things"
    SCHEMA: dict[str, Any] = {}  # noqa: RUF012  # a module's constant, as the protocol has it

    def asked(self, want: Section, keys: Iterable[str]) -> Sequence[str]:
        return sorted({*(want or {}), *keys})

    def inspect(self, host: Host, names: Sequence[str] = ()) -> Facts:
        return {name: Fact.fixed(host.read(f"/things/{name}")) for name in names}

    def decide(self, facts: Facts, want: Section) -> Goals:
        return {name: Desired(value, live=False) for name, value in want.items()}

    def apply(self, host: Host, changes: Sequence[Change]) -> None:
        for c in changes:
            host.remark(c, "power-cycle")
            host.replace(f"/things/{c.key}", None if c.after is None else str(c.after))


def things(host: FakeKernel, journal: Journal) -> tuple[dict[str, Check], Performer]:
    """A host on which one thing of two is as wanted, and the other was made so."""
    host.put("/things/a", "old")
    host.put("/things/b", "new")
    checks: dict[str, Check] = {"things": Things()}
    wanted = profile({"things": {"a": "new", "b": "new", "c": "new"}})
    planned = engine.planned(engine.examine(host, wanted, checks), wanted, checks, ())
    performer = Performer(host, checks, journal, lambda line: None)
    converge(performer, [p.change for p in planned], wanted.sections, ())
    assert performer.failures == []
    return checks, performer


def test_a_check_of_things_without_end_looks_at_what_profile_and_journal_name(
    host: FakeKernel, journal: Journal
) -> None:
    before = everything(host) | {"/things/a": (0o100644, "old"), "/things/b": (0o100644, "new")}
    checks, performer = things(host, journal)
    assert engine.inspect(host, checks)["things"].facts == {}
    assert performer.facts(checks["things"]) == {name: Fact.fixed("new") for name in "abc"}
    later = Performer(host, checks, journal, lambda line: None)
    assert later.facts(checks["things"]) == {"a": Fact.fixed("new"), "c": Fact.fixed("new")}, "what it has changed"
    assert [c.key for c in rehearse(host, checks, journal)[0]] == ["c", "a"]
    assert not take_back(host, journal, checks).failures
    assert host.snapshot() == {path: state for path, state in before.items() if state != "directory"}
    assert journal.standing() == []


def test_what_a_tool_remarked_is_journalled_with_its_change(host: FakeKernel, journal: Journal) -> None:
    things(host, journal)
    assert {(s.change.key, s.remark) for s in journal.standing()} == {("a", "power-cycle"), ("c", "power-cycle")}


def test_a_remark_of_a_change_that_failed_is_not_journalled(
    host: FakeKernel, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Things, "apply", lambda self, host, changes: host.remark(changes[0], "power-cycle"))
    host.put("/things/a", "old")
    performer = Performer(host, {"things": Things()}, journal, lambda line: None)
    performer.perform([Change("things", "a", LATER, "old", "new")], {"things": {"a": "new"}})
    assert "the next boot still brings old" in reasons(performer)
    assert journal.standing() == []


# -- failures -------------------------------------------------------------------------------------


def test_of_a_change_that_failed_in_part_only_that_part_is_told(
    host: FakeKernel, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two cards one refused it: the other was written, stays so, and is taken back by revert."""

    def half(self: Things, keeping: Host, changes: Sequence[Change]) -> None:
        host.put("/things/a", str(changes[0].after))
        raise ChangeFailed("b: too much", "Ask for less.")

    monkeypatch.setattr(Things, "apply", half)
    for name in ("a", "b"):
        host.put(f"/things/{name}", "old")
    performer = Performer(host, {"things": Things()}, journal, lambda line: None)
    wanted = [Change("things", name, LATER, "old", "new") for name in ("a", "b")]
    performer.perform(wanted, {"things": {"a": "new", "b": "new"}})
    assert performer.failures == [Failure("things/b", "b: too much", "Ask for less.")]
    assert [s.change for s in journal.standing()] == wanted[:1]


def test_grub_is_made_anew_once_for_two_checks(host: FakeKernel, journal: Journal) -> None:
    assert not apply(host, ALL, journal).failures
    assert sum("grub-mkconfig" in command for command in host.ran) == 1


def test_a_live_change_that_failed_is_not_made_persistent_and_the_others_go_on(
    host: FakeKernel, journal: Journal
) -> None:
    """A reboot is still its undo."""
    fstab = host.read("/etc/fstab")
    host.commands["swapoff"] = HostError("swapoff: exit 255: Cannot allocate memory")
    assert "Cannot allocate memory" in reasons(apply(host, ALL, journal))
    assert host.read("/etc/fstab") == fstab
    assert statuses(host, ALL)["hugepages/2MiB"] == "pass"
    assert [s.change.check for s in journal.standing() if s.change.check == "swap"] == []


def test_of_checks_that_share_a_file_the_failing_one_is_put_back_and_the_other_stands(
    host: FakeKernel, journal: Journal
) -> None:
    checks = toys(host, "a", "b")
    checks["b"].path = checks["a"].path
    checks["b"].reads_back = False
    performer = Performer(host, dict(checks), journal, lambda line: None)
    performer.perform([change("a"), change("b", before="stuck", after="newer")])
    assert reasons(performer).startswith("b/value: b/value: wanted newer, but the next boot still brings stuck")
    assert host.read("/etc/a") == "a=new"
    assert [(s.change.check, s.change.after) for s in journal.standing()] == [("a", "new")]


def test_what_a_foreign_line_overrules_is_put_back_and_the_other_kernel_arguments_are_made(
    host: FakeKernel, journal: Journal
) -> None:
    host.put("/etc/tmpfiles.d/10-site.conf", f"w {HUGE_2M}/nr_hugepages - - - - 8\n")
    assert "still brings 8" in reasons(apply(host, ALL, journal))
    found = statuses(host, ALL)
    assert (found["kernel_args/iommu"], found["hugepages/2MiB"]) == ("pending-reboot", "volatile")
    assert not host.exists("/etc/tmpfiles.d/hostprep-hugepages.conf")


@pytest.mark.parametrize("broken", [HostError("grub-mkconfig: no answer within 300 s"), "", RuntimeError("a bug")])
def test_when_the_tool_fails_every_file_is_put_back(host: FakeKernel, journal: Journal, broken: Any) -> None:
    def tool(argv: Sequence[str]) -> str:
        raise broken

    want = {"kernel_args": ["iommu=pt"]}
    before = everything(host)
    host.commands["grub-mkconfig"] = tool if isinstance(broken, RuntimeError) else broken
    if isinstance(broken, RuntimeError):
        with pytest.raises(RuntimeError):
            apply(host, want, journal)
    else:
        assert apply(host, want, journal).failures
    assert everything(host) == before


def test_putting_back_a_failed_change_keeps_what_an_earlier_apply_made(host: FakeKernel, journal: Journal) -> None:
    before = everything(host)
    apply(host, PAGES, journal)
    ours = host.read(DROPIN)
    host.commands["grub-mkconfig"] = HostError("grub-mkconfig: exit 1")
    assert apply(host, {"hugepages": {"2MiB": 128}}, journal).failures
    assert host.read(DROPIN) == ours
    host.commands["grub-mkconfig"] = mkconfig(host)
    assert not take_back(host, journal).failures
    assert everything(host) == before


def test_a_journal_that_fills_up_half_way_leaves_nothing_half_done(
    host: FakeKernel, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: what cannot be journalled is not changed, and what was begun is put back all the same."""
    before = everything(host)
    room = [4]  # entries

    def append(entries: Any, real: Callable[[Any], None] = journal._append) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise StateError("journal: No space left on device")
        real(entries)

    monkeypatch.setattr(journal, "_append", append)
    performer = apply(host, {"kernel_args": ["iommu=pt"], "swap": "disabled"}, journal)
    assert "No space left" in reasons(performer)
    monkeypatch.undo()
    host.commands["swapoff"] = HostError("not again")
    assert not take_back(host, Journal(journal.path, "this-boot")).failures
    assert everything(host) == before


def test_what_cannot_be_journalled_is_told_once_and_never_tried(
    host: FakeKernel, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(entries: Any) -> None:
        raise StateError("journal: No space left on device")

    monkeypatch.setattr(journal, "_append", full)
    before = everything(host)
    performer = apply(host, {"kernel_args": ["iommu=pt"], "swap": "disabled"}, journal)
    assert [f.name for f in performer.failures] == ["swap/devices", "kernel_args/iommu"]
    assert everything(host) == before


def test_a_read_only_etc_is_one_clear_message_and_nothing_half_done(
    host: FakeKernel, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T23."""
    before = everything(host)
    replace = os.replace

    def read_only(source: str, target: str) -> None:
        if "/etc/" in target:
            raise OSError(30, "Read-only file system", target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", read_only)
    assert "/etc/fstab: Read-only file system" in reasons(apply(host, {"swap": "disabled"}, journal))
    assert "swap" not in (host.read("/proc/swaps") or "")
    performer = take_back(host, journal)
    assert not performer.failures
    assert everything(host) == before
    assert not journal.kept_files()


# -- taking back ----------------------------------------------------------------------------------


def test_revert_gives_back_bytes_mode_owner_and_directories(host: FakeKernel, journal: Journal) -> None:
    os.chmod(f"{host.root}/etc/fstab", 0o640)
    if os.geteuid() == 0:
        os.chown(f"{host.root}/etc/fstab", 7, 8)
    before, state = everything(host), host.state("/etc/fstab")
    apply(host, ALL, journal)
    apply(host, {**ALL, "hugepages": {"2MiB": {0: 128}}}, journal)
    assert everything(host) != before
    steps = rehearse(host, registry.load(ALL), journal)
    assert not steps[2]
    assert not take_back(host, journal).failures
    assert (everything(host), host.state("/etc/fstab")) == (before, state)
    assert not journal.standing()
    assert not journal.kept_files()


@pytest.mark.parametrize("applied_again", [False, True])
def test_of_a_file_that_an_admin_edited_since_only_our_edit_is_taken_back(
    host: FakeKernel, journal: Journal, applied_again: bool
) -> None:
    """T21: and a second apply does not make their edit ours."""
    original = (host.read_bytes("/etc/fstab") or b"").decode()
    apply(host, ALL, journal)
    theirs = "nas:/data /data nfs ro 0 0\n/dev/sdx none swap sw 0 0\n"
    host.put("/etc/fstab", (host.read_bytes("/etc/fstab") or b"").decode() + theirs)
    if applied_again:
        assert not apply(host, ALL, journal).failures
        assert "/dev/sdx none swap sw,noauto" in (host.read("/etc/fstab") or "")
    assert not take_back(host, journal).failures
    assert host.read("/etc/fstab") == (original + theirs).strip()
    assert not journal.kept_files()


def test_a_source_of_grub_that_somebody_edited_does_not_bring_our_pages_back(
    host: FakeKernel, journal: Journal
) -> None:
    apply(host, PAGES, journal)
    host.put(DROPIN, (host.read_bytes(DROPIN) or b"").decode() + "# a remark\n")
    assert not take_back(host, journal).failures
    host.run("grub-mkconfig", "-o", "/boot/grub/grub.cfg")  # as the next kernel upgrade does
    assert "hugepages=64" not in (host.read("/boot/grub/grub.cfg") or "")


def test_after_a_reboot_live_values_that_are_gone_are_closed(host: FakeKernel, journal: Journal) -> None:
    """The boot id tells: 0 pages now are not somebody else's doing."""
    performer = Performer(host, registry.load(["hugepages"]), journal, lambda line: None)
    performer.perform([Change("hugepages", "2MiB", Facet.CURRENT, 0, 64)])
    reboot(host)
    host.write(f"{HUGE_2M}/nr_hugepages", "5")
    assert "expected 64, found 5" in reasons(take_back(host, journal))
    assert not take_back(host, Journal(journal.path, "another-boot")).failures
    assert (host.number(f"{HUGE_2M}/nr_hugepages"), journal.standing()) == (5, [])


def test_a_directory_of_ours_that_others_use_stays(host: FakeKernel, journal: Journal) -> None:
    apply(host, {"hugepages": {"2MiB": {0: 64}}}, journal)
    host.put("/etc/tmpfiles.d/theirs.conf", "")
    assert not take_back(host, journal).failures
    assert host.names("/etc/tmpfiles.d") == ["theirs.conf"]
    assert not journal.kept_files()


def test_pages_that_are_in_use_are_told_as_still_standing(host: FakeKernel, journal: Journal) -> None:
    """R69: a pool cannot shrink below what is in use."""
    apply(host, PAGES, journal)
    host.write = lambda path, text, timeout=0: FakeKernel.write(host, path, "10")  # type: ignore[method-assign]
    assert "hugepages/2MiB: asked for 0, the host still has 10" in reasons(take_back(host, journal))
    del host.write
    assert not take_back(host, journal).failures
    assert host.number(f"{HUGE_2M}/nr_hugepages") == 0


def test_a_revert_that_failed_in_part_is_finished_by_the_next(
    host: FakeKernel, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(host)
    apply(host, ALL, journal)
    real = Host.restore

    def restore(self: Host, path: str, state: FileState) -> None:
        if path == DROPIN:
            raise HostError(f"{path}: Read-only file system")
        real(self, path, state)

    monkeypatch.setattr(Host, "restore", restore)
    assert f"{DROPIN}: {DROPIN}: Read-only file system" in reasons(take_back(host, journal))
    monkeypatch.undo()
    assert not take_back(host, journal).failures
    assert everything(host) == before


def test_what_this_hostprep_has_no_check_for_is_told_and_the_rest_is_taken_back(
    host: FakeKernel, journal: Journal
) -> None:
    apply(host, PAGES, journal)
    journal.end([change("nic_vfs")])
    assert reasons(take_back(host, journal)) == "nic_vfs/value: this hostprep has no check of that name"
    assert [s.change.check for s in journal.standing()] == ["nic_vfs"]


def test_a_damaged_journal_stops_a_revert_before_it_touches_anything(host: FakeKernel, journal: Journal) -> None:
    apply(host, PAGES, journal)
    with open(journal.path, "ab") as f:
        f.write(b"rubbish\n{}\n")
    before = everything(host)
    with pytest.raises(StateError):
        take_back(host, journal)
    assert everything(host) == before
