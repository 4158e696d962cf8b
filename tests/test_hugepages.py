"""Huge pages: per size and node, now and at the next boot, and never more than the host can spare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import apply, examine, findings, statuses
from fake_kernel import FakeKernel, reboot
from fakes import CMDLINE, GIB_IN_KIB, HUGE_1G, HUGE_2M, debian, grub_cfg, meminfo, mkconfig

from hostprep.errors import HostError
from hostprep.journal import Journal
from hostprep.model import Unknown
from hostprep.perform import Performer
from hostprep.registry import load
from hostprep.revert import revert

Make = Callable[..., FakeKernel]
NODE = "/sys/devices/system/node/node{}/hugepages/hugepages-{}kB/nr_hugepages"
TMPFILES = "/etc/tmpfiles.d/hostprep-hugepages.conf"
DROPIN = "/etc/default/grub.d/zz-hostprep-hugepages.cfg"


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A Debian machine of 32 GiB with a kernel that grants pages; `None` takes a file of it away."""

    def make(more: dict[str, str | None] | None = None, **machine: Any) -> FakeKernel:
        files = {**debian(**machine), "/proc/sys/vm/drop_caches": "0\n", "/proc/sys/vm/compact_memory": ""}
        host = FakeKernel(tmp_path / "root", {k: v for k, v in {**files, **(more or {})}.items() if v is not None})
        host.commands["grub-mkconfig"] = mkconfig(host)
        return host

    return make


def two_nodes(memory_kib: int = 16 * GIB_IN_KIB) -> dict[str, str | None]:
    """A second NUMA node, each with half of the memory."""
    files: dict[str, str | None] = {NODE.format(1, kib): "0\n" for kib in (2048, 1048576)}
    return files | {
        f"/sys/devices/system/node/node{n}/meminfo": f"Node {n} MemTotal: {memory_kib} kB\n" for n in (0, 1)
    }


def asks(words: str) -> dict[str, str | None]:
    return {"/boot/grub/grub.cfg": grub_cfg(f"{CMDLINE} {words}")}


def told(host: FakeKernel, want: dict[str, Any]) -> str:
    return " ".join(f.message for f in examine(host, {"hugepages": want}).findings)


def next_boot(host: FakeKernel) -> dict[str, Any]:
    answer = examine(host, {"hugepages": {}}).answers["hugepages"].facts
    assert not isinstance(answer, Unknown), answer
    return {key: fact.next_boot for key, fact in answer.items()}


@pytest.mark.parametrize(
    ("now", "later", "expected"),
    [
        *((4, "hugepagesz=1G hugepages=4", "pass"), (0, "hugepagesz=1G hugepages=4", "pending-reboot")),
        *((4, "", "volatile"), (0, "", "fail")),
        (4, "hugepagesz=1G hugepages=2 hugepagesz=1G hugepages=4", "volatile"),
    ],
    ids=["pass", "pending", "volatile", "fail", "R61: the first wins"],
)
def test_pages_are_judged_now_and_at_the_next_boot(make: Make, now: int, later: str, expected: str) -> None:
    host = make(asks(later), pages_1g=now)
    assert statuses(host, {"hugepages": {"1GiB": 4}})["hugepages/1GiB"] == expected


WRITERS = [
    ("hugepagesz=1G hugepages=8", {"/etc/tmpfiles.d/x.conf": f"w {HUGE_1G}/nr_hugepages - - - - 2\n"}, 2),
    ("hugepagesz=1G hugepages=8", {"/etc/tmpfiles.d/x.conf": f"w! {NODE.format(0, 1048576)} - - - - 2\n"}, 2),
    ("hugepagesz=1G hugepages=8", {"/etc/tmpfiles.d/x.conf": f"w {NODE.format('*', 1048576)} - - - - 3\n"}, 3),
    ("hugepagesz=1G hugepages=8", {"/etc/sysctl.d/x.conf": "vm.nr_hugepages = 512\n"}, 8),  # R71: default size only
    ("default_hugepagesz=1G hugepages=8", {"/etc/sysctl.d/x.conf": "vm/nr_hugepages=4\n"}, 4),
    ("default_hugepagesz=1G hugepages=8", {"/etc/tmpfiles.d/x.conf": "w /proc/sys/vm/nr_hugepages - - - - 3\n"}, 3),
    (
        "hugepages=8",
        {"/etc/sysctl.d/a.conf": "vm.nr_hugepages=1\n", "/usr/lib/sysctl.d/a.conf": "vm.nr_hugepages=2\n"},
        0,
    ),
    ("hugepagesz=1G hugepages=0:4", {"/etc/tmpfiles.d/x.conf": f"w {HUGE_1G}/nr_hugepages - - - - 1\n"}, 1),
]


@pytest.mark.parametrize(("words", "more", "expected"), WRITERS)
def test_what_systemd_writes_at_boot_overrules_the_kernel_arguments(
    make: Make, words: str, more: dict[str, str | None], expected: int
) -> None:
    """R71, R75: a sysctl or tmpfiles line that somebody left there makes arguments of no effect."""
    assert next_boot(make({**asks(words), **more}))["1GiB"] == expected


def test_two_tmpfiles_lines_for_one_pool_the_first_by_file_name_wins(make: Make) -> None:
    lines = {f"/etc/tmpfiles.d/{n}.conf": f"w {HUGE_2M}/nr_hugepages - - - - {c}\n" for n, c in (("b", 7), ("a", 5))}
    assert next_boot(make({**lines}))["2MiB"] == 5


def test_a_total_beside_counts_of_only_some_nodes_is_not_guessed(make: Make) -> None:
    line = {"/etc/tmpfiles.d/x.conf": f"w {NODE.format(1, 1048576)} - - - - 2\n"}
    later = next_boot(make({**two_nodes(), **asks("hugepagesz=1G hugepages=8"), **line}))
    assert isinstance(later["1GiB"], Unknown)
    assert (later["1GiB/node0"], later["1GiB/node1"]) == (None, 2)


def test_apply_converges_a_second_one_writes_nothing_and_revert_leaves_no_trace(make: Make, journal: Journal) -> None:
    want = {"hugepages": {"1GiB": 4, "2MiB": 512, "default": "1GiB"}}
    host = make()
    before = host.snapshot(), host.directories()
    assert not apply(host, want, journal).failures
    assert (host.number(f"{HUGE_1G}/nr_hugepages"), host.number(f"{HUGE_2M}/nr_hugepages")) == (4, 512)
    assert set(statuses(host, want).values()) == {"pass", "pending-reboot"}  # the default size waits for the reboot
    wrote, ran, after = list(host.wrote), list(host.ran), host.snapshot()
    assert not apply(host, want, journal).failures
    assert (host.wrote, host.ran, host.snapshot()) == (wrote, ran, after)
    performer = Performer(host, load(["hugepages"]), journal, lambda line: None)
    revert(performer)
    assert not performer.failures
    assert (host.snapshot(), host.directories()) == before
    assert not journal.standing()
    assert not journal.kept_files()


def test_after_a_reboot_pending_has_become_pass(make: Make, journal: Journal) -> None:
    """K8: the arguments that the manual has an admin type."""
    want = {"hugepages": {"1GiB": 4, "default": "1GiB"}}
    host = make()
    apply(host, want, journal)
    reboot(host)
    assert "default_hugepagesz=1G hugepagesz=1G hugepages=4" in (host.read("/proc/cmdline") or "")
    host.put("/proc/meminfo", meminfo(32 * GIB_IN_KIB, default_kib=1048576))
    assert set(statuses(host, want).values()) == {"pass"}


def test_fewer_pages_than_asked_for_is_told_and_waits_for_a_reboot(make: Make, journal: Journal) -> None:
    """R67, firedancer#939, kubernetes#82656: a write that succeeds is not success."""
    host = make()
    host.most[f"{HUGE_1G}/nr_hugepages"] = 1
    host.freed_by_compaction[f"{HUGE_1G}/nr_hugepages"] = 2
    said: list[str] = []
    wanted = {"hugepages": {"1GiB": 4}}
    performer = apply(host, wanted, journal)
    assert host.wrote[:3] == ["nr_hugepages=4", "drop_caches=3", "compact_memory=1"]
    assert host.number(f"{HUGE_1G}/nr_hugepages") > 1
    assert not performer.failures
    host.most[f"{HUGE_1G}/nr_hugepages"] = 3
    host.freed_by_compaction.clear()
    host.write(f"{HUGE_1G}/nr_hugepages", "3")
    assert statuses(host, wanted)["hugepages/1GiB"] == "pending-reboot"
    performer = Performer(host, load(["hugepages"]), journal, said.append)
    changes = [c for c in _planned(host, wanted) if c.facet.value == "current"]
    performer.perform(changes, wanted)
    assert "hugepages/1GiB: asked for 4, the running system has 3" in said


def _planned(host: FakeKernel, wanted: dict[str, Any]) -> Sequence[Any]:
    from hostprep.judge import plan

    return plan(examine(host, wanted).findings)


def test_the_reservation_of_k8_is_refused_on_the_machine_of_k1(make: Make, journal: Journal) -> None:
    """K8 on K1, edgeservices#3, ubicloud#5996: 32 pages of 1 GiB on 31.2 GiB make a host that does not boot."""
    host = make(memory_kib=int(31.2 * GIB_IN_KIB))
    before = host.snapshot()
    found = findings(host, {"hugepages": {"1GiB": 32, "default": "1GiB"}})["hugepages/1GiB"]
    assert found.status.value == "fail"
    assert "would leave 0 B of 31.2 GiB" in found.message
    assert found.fix.startswith("Ask for fewer pages")
    apply(host, {"hugepages": {"1GiB": 32}}, journal)
    assert (host.snapshot(), host.wrote) == (before, [])


@pytest.mark.parametrize(
    ("want", "more", "refused"),
    [
        ({"1GiB": 20}, {}, False),
        ({"1GiB": 20}, asks("hugepages=6144"), True),  # 12 GiB that somebody else asked for
        ({"1GiB": 20}, {"/etc/sysctl.d/x.conf": "vm.nr_hugepages=6144\n"}, True),
        ({"1GiB": 20, "2MiB": 6144}, {}, True),
        ({"1GiB": 20, "2MiB": 0}, asks("hugepages=6144"), True),  # others' pages are not ours to give back first
        ({"1GiB": 28, "keep": "4GiB"}, {}, False),
        ({"1GiB": 28, "keep": "4.1GiB"}, {}, True),
        ({"1GiB": {0: 29}}, {}, True),
    ],
)
def test_the_floor_of_the_next_boot_counts_all_pools(
    make: Make, want: dict[str, Any], more: dict[str, str | None], refused: bool
) -> None:
    found = findings(make(more), {"hugepages": want})
    desired = next(f.desired for name, f in found.items() if name.startswith("hugepages/1GiB"))
    assert desired is not None
    assert bool(desired.refused_next) == refused


def test_pages_that_others_took_too_many_of_make_the_host_not_ready(make: Make) -> None:
    """ubicloud#5996: all pages are there, and the system has 76 MiB."""
    host = make(asks("hugepagesz=1G hugepages=31"), pages_1g=31)
    assert statuses(host, {"hugepages": {"1GiB": 31}}) == {"hugepages/1GiB": "pass", "hugepages/host-memory": "fail"}


@pytest.mark.parametrize("memory_kib", [2 * GIB_IN_KIB, 32 * GIB_IN_KIB])
def test_none_means_exactly_none_and_giving_back_is_never_refused(
    make: Make, journal: Journal, memory_kib: int
) -> None:
    host = make({**asks("hugepages=64")}, memory_kib=memory_kib, pages_2m=64)
    want = {"hugepages": {"2MiB": 0}}
    assert statuses(host, want)["hugepages/2MiB"] == "fail"
    assert not apply(host, want, journal).failures
    assert statuses(host, want)["hugepages/2MiB"] == "pass"
    assert (host.number(f"{HUGE_2M}/nr_hugepages"), next_boot(host)["2MiB"]) == (0, 0)


@pytest.mark.parametrize(
    ("counter", "value", "failing"),
    [("free", "31", "free"), ("reserved", "1", "reserved"), ("surplus", "2", "surplus"), ("free", "32", None)],
)
def test_free_all_wants_every_page_unused(make: Make, counter: str, value: str, failing: str | None) -> None:
    """K9: Total 32, Free 32, Rsvd 0, Surp 0."""
    host = make(asks("hugepagesz=1G hugepages=32"), memory_kib=64 * GIB_IN_KIB, pages_1g=32)
    file = {"free": "free", "reserved": "resv", "surplus": "surplus"}[counter]
    host.put(f"{HUGE_1G}/{file}_hugepages", f"{value}\n")
    found = statuses(host, {"hugepages": {"1GiB": 32, "free": "all"}})
    assert {name for name, status in found.items() if status != "pass"} == (
        {f"hugepages/1GiB/{failing}"} if failing else set()
    )


def test_a_size_that_the_cpu_does_not_offer_is_a_failure_that_nothing_is_written_for(
    make: Make, journal: Journal
) -> None:
    """R64: pdpe1gb is often masked in VMs; and what the arguments ask for then takes no memory."""
    gone: dict[str, str | None] = {f"{HUGE_1G}/{c}_hugepages": None for c in ("nr", "free", "resv", "surplus")}
    host = make(
        {
            **gone,
            **asks("hugepagesz=1G hugepages=30"),
            "/proc/cpuinfo": "flags\t\t: fpu pse\n",
            NODE.format(0, 1048576): None,
        }
    )
    found = findings(host, {"hugepages": {"1GiB": 4}})
    assert found["hugepages/1GiB"].message == "This machine has no pages of 1GiB: its CPU does not offer them."
    assert found["hugepages/host-memory"].status.value == "pass"
    apply(host, {"hugepages": {"1GiB": 4}}, journal)
    assert not journal.standing()


def test_a_size_that_only_the_next_boot_will_have_is_persisted(make: Make, journal: Journal) -> None:
    """R63, PAO#326: a kernel makes the pool of some sizes only when it is told about them."""
    gone: dict[str, str | None] = {f"{HUGE_1G}/{c}_hugepages": None for c in ("nr", "free", "resv", "surplus")}
    host = make({**gone, NODE.format(0, 1048576): None})
    want = {"hugepages": {"1GiB": 4}}
    assert not apply(host, want, journal).failures
    assert statuses(host, want)["hugepages/1GiB"] == "pending-reboot"


def test_counts_by_node_go_to_the_nodes_and_to_tmpfiles(make: Make, journal: Journal) -> None:
    """R62, R68: the kernel spreads a total as it likes."""
    host = make(two_nodes())
    want = {"hugepages": {"1GiB": {0: 4, 1: 2}}}
    assert not apply(host, want, journal).failures
    assert set(statuses(host, want).values()) == {"pass"}
    assert [host.number(NODE.format(n, 1048576)) for n in (0, 1)] == [4, 2]
    assert f"w {NODE.format(1, 1048576)} - - - - 2\n" in (host.read_bytes(TMPFILES) or b"").decode()
    assert next_boot(host)["1GiB"] == 6
    total = {"hugepages": {"1GiB": 8}}
    assert not apply(host, total, journal).failures  # another profile: what we said of the nodes is over
    assert set(statuses(host, total).values()) == {"pass"}
    assert host.read(TMPFILES) is None


def test_more_than_a_node_has_is_refused(make: Make) -> None:
    found = findings(make(two_nodes()), {"hugepages": {"1GiB": {0: 17}}})["hugepages/1GiB/node0"]
    assert "do not fit node0" in found.message


def test_pools_that_others_asked_for_stay(make: Make, journal: Journal) -> None:
    """R61: arguments are rewritten as one run, so the run has to hold everybody's."""
    host = make({**two_nodes(), **asks("hugepages=64"), "/etc/default/grub": 'GRUB_CMDLINE_LINUX="hugepages=64"\n'})
    assert not apply(host, {"hugepages": {"1GiB": 4}}, journal).failures
    assert (next_boot(host)["1GiB"], next_boot(host)["2MiB"]) == (4, 64)
    by_node = 'GRUB_CMDLINE_LINUX="hugepagesz=2M hugepages=0:8,1:4"\n'
    host = make({**two_nodes(), **asks("hugepagesz=2M hugepages=0:8,1:4"), "/etc/default/grub": by_node})
    host.remove(DROPIN)
    host.write(f"{HUGE_1G}/nr_hugepages", "0")
    assert not apply(host, {"hugepages": {"1GiB": 3}}, journal).failures
    later = next_boot(host)
    assert (later["1GiB"], later["2MiB/node0"], later["2MiB/node1"]) == (3, 8, 4)


def test_without_a_known_boot_loader_a_tmpfiles_line_asks_for_the_pages(make: Make, journal: Journal) -> None:
    host = make({"/boot/grub/grub.cfg": None, "/etc/default/grub.d/": None, "/etc/default/grub": None})
    want = {"hugepages": {"2MiB": 64}}
    assert not apply(host, want, journal).failures
    assert statuses(host, want)["hugepages/2MiB"] == "pass"
    assert f"w {HUGE_2M}/nr_hugepages - - - - 64" in (host.read(TMPFILES) or "")


def test_a_grub_that_cannot_be_read_is_unknown_and_not_volatile(make: Make) -> None:
    """Right now as wanted is not enough: what the next boot has may be anything."""
    host = make({"/boot/grub/grub.cfg": "no entry in it\n"}, pages_1g=4)
    found = statuses(host, {"hugepages": {"1GiB": 4}})
    assert found == {"hugepages/1GiB": "unknown", "hugepages/host-memory": "unknown"}


def test_a_foreign_line_that_wins_is_a_failure_with_everything_put_back(make: Make, journal: Journal) -> None:
    """sriov-network-operator#1016: what counts is what is read back."""
    host = make({"/etc/tmpfiles.d/10-site.conf": f"w {HUGE_2M}/nr_hugepages - - - - 8\n"})
    before = host.snapshot(), host.directories()
    performer = apply(host, {"hugepages": {"2MiB": 64}}, journal)
    assert "the next boot still brings 8" in performer.failures[0].reason
    host.write(f"{HUGE_2M}/nr_hugepages", "0")
    assert (host.snapshot(), host.directories()) == before


def test_a_pool_that_cannot_be_read_is_one_unknown(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """T18: the others are judged."""
    host = make(asks("hugepagesz=1G hugepages=4"), pages_1g=4)
    read = host.number

    def number(path: str) -> int:
        if path == f"{HUGE_2M}/nr_hugepages":
            raise HostError(f"{path}: Input/output error")
        return read(path)

    monkeypatch.setattr(host, "number", number)
    found = statuses(host, {"hugepages": {"1GiB": 4, "2MiB": 8}})
    assert (found["hugepages/1GiB"], found["hugepages/2MiB"]) == ("pass", "unknown")
    assert found["hugepages/host-memory"] == "unknown"  # and so is what is left


def test_a_mount_is_made_now_and_by_a_unit_and_the_default_one_is_left_alone(make: Make, journal: Journal) -> None:
    """R72: dev-hugepages.mount mounts the default size only."""
    usual = "hugetlbfs /dev/hugepages hugetlbfs rw,relatime,pagesize=1024M 0 0\n"
    host = make({"/proc/self/mounts": usual, "/dev/": ""}, pages_1g=1)

    def mount(argv: Sequence[str]) -> str:
        host.put("/proc/self/mounts", f"{usual}hugetlbfs {argv[-1]} hugetlbfs rw,{argv[4]} 0 0\n")
        return ""

    def umount(argv: Sequence[str]) -> str:
        host.put("/proc/self/mounts", usual)
        return ""

    host.commands |= {"mount": mount, "umount": umount}
    want = {"hugepages": {"mounts": {"1024MiB": "/dev/hugepages1G"}}}
    before = host.snapshot(), host.directories()
    assert statuses(host, want)["hugepages/mount/dev/hugepages1G"] == "fail"
    assert not apply(host, want, journal).failures
    assert statuses(host, want)["hugepages/mount/dev/hugepages1G"] == "pass"
    performer = Performer(host, load(["hugepages"]), journal, lambda line: None)
    revert(performer)
    assert not performer.failures
    assert (host.snapshot(), host.directories()) == before


@pytest.mark.parametrize("options", ["pagesize=1G,noauto", "pagesize=2M"])
def test_a_mount_at_boot_of_another_kind_does_not_count(make: Make, options: str) -> None:
    fstab = f"hugetlbfs /dev/hugepages1G hugetlbfs {options} 0 0\n"
    found = findings(make({"/etc/fstab": fstab}), {"hugepages": {"mounts": {"1GiB": "/dev/hugepages1G"}}})
    assert found["hugepages/mount/dev/hugepages1G"].fact.next_boot != "1GiB"
