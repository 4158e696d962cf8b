"""Huge pages: per size and node, now and at the next boot, and never more than the host can spare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
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
        ({"1GiB": 20, "2MiB": 0}, asks("hugepages=6144"), False),  # one size given back for another
        ({"1GiB": 20, "2MiB": 512}, asks("hugepages=6144"), True),  # at least 512: others' 6144 stay
        ({"1GiB": 20}, {"/proc/sys/kernel/osrelease": None, **asks("hugepages=0:6144")}, True),  # it may be as many
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


@pytest.mark.parametrize(
    ("want", "refused"),
    [
        ({"1GiB": {0: 14}}, False),
        ({"1GiB": {0: 15}}, True),  # a tenth of 16 GiB has to stay
        ({"1GiB": {0: 13}, "2MiB": {0: 1024}}, True),
        ({"1GiB": {0: 13}, "2MiB": {1: 1024}}, False),
    ],
)
def test_a_node_keeps_a_tenth_of_its_memory_all_sizes_counted(make: Make, want: dict[str, Any], refused: bool) -> None:
    desired = findings(make(two_nodes()), {"hugepages": want})["hugepages/1GiB/node0"].desired
    assert desired is not None
    assert [("node0: " in why and "do not fit a node of 16 GiB" in why) for why in desired[6:8]] == [refused] * 2
    assert bool(desired.fix) == refused


KERNELS = [
    ("6.1.0-26-amd64", 16),
    ("5.15.0-122-generic", 0),  # to sscanf("%lu") it is 0
    ("5.14.0-427.el9.x86_64", Unknown),  # Red Hat takes features back
    (None, Unknown),
]


@pytest.mark.parametrize(("release", "expected"), KERNELS)
def test_counts_by_node_are_what_this_kernel_makes_of_them(make: Make, release: str | None, expected: Any) -> None:
    """R62: hugepages=NODE:N is known since 5.16; where that is not sure, neither is the total."""
    host = make({**asks("hugepagesz=1G hugepages=0:16"), "/proc/sys/kernel/osrelease": release}, pages_1g=16)
    later = next_boot(host)
    assert isinstance(later["1GiB"], Unknown) if expected is Unknown else later["1GiB"] == expected, later
    wanted = {16: "pass", 0: "volatile", Unknown: "unknown"}[expected]
    assert statuses(host, {"hugepages": {"1GiB": 16}})["hugepages/1GiB"] == wanted


def test_counts_by_node_of_no_effect_are_replaced_and_those_of_other_sizes_stay_as_written(
    make: Make, journal: Journal
) -> None:
    words = "hugepagesz=1G hugepages=0:16 hugepagesz=2M hugepages=0:8"
    grub = {"/etc/default/grub": f'GRUB_CMDLINE_LINUX="{words}"\n', "/proc/sys/kernel/osrelease": "5.15.0-122-generic"}
    host = make({**asks(words), **grub})
    assert not apply(host, {"hugepages": {"1GiB": 16}}, journal).failures
    assert "hugepagesz=1G hugepages=16 hugepagesz=2M hugepages=0:8\n" in (host.read("/boot/grub/grub.cfg") or "")


def test_what_tmpfiles_writes_is_sure_on_any_kernel(make: Make) -> None:
    line = {"/etc/tmpfiles.d/x.conf": f"w {NODE.format(0, 1048576)} - - - - 2\n", "/proc/sys/kernel/osrelease": None}
    later = next_boot(make({**asks("hugepagesz=1G hugepages=0:16"), **line}))
    assert (later["1GiB"], later["1GiB/node0"]) == (2, 2)


def test_a_node_that_nothing_is_said_of_leaves_the_total_unknown_where_grub_cannot_be_read(make: Make) -> None:
    line = {"/etc/tmpfiles.d/x.conf": f"w {NODE.format(1, 1048576)} - - - - 2\n", "/boot/grub/grub.cfg": "nothing\n"}
    later = next_boot(make({**two_nodes(), **line}))
    assert isinstance(later["1GiB"], Unknown)


def test_a_total_that_equals_what_one_node_is_given_is_still_not_that_nodes(make: Make) -> None:
    line = {"/etc/tmpfiles.d/x.conf": f"w {NODE.format(1, 1048576)} - - - - 2\n"}
    later = next_boot(make({**two_nodes(), **asks("hugepagesz=1G hugepages=2"), **line}))
    assert isinstance(later["1GiB"], Unknown)  # 1 on node 0 and 1, then 2 on node 1: 3


@pytest.mark.parametrize(("words", "sure"), [("hugetlb_cma=4G", False), ("hugetlb-cma=0:2G", False), ("", True)])
def test_gigantic_pages_beside_hugetlb_cma_are_not_promised(make: Make, words: str, sure: bool) -> None:
    """R66: "hugetlb_cma is enabled, skip boot time allocation". Smaller sizes are made all the same."""
    later = next_boot(make(asks(f"{words} hugepagesz=1G hugepages=4 hugepagesz=2M hugepages=8")))
    assert (later["2MiB"], isinstance(later["1GiB"], Unknown)) == (8, not sure)


def test_beside_hugetlb_cma_a_tmpfiles_line_asks_for_gigantic_pages(make: Make, journal: Journal) -> None:
    host = make({**asks("hugetlb_cma=4G"), "/etc/default/grub": 'GRUB_CMDLINE_LINUX="hugetlb_cma=4G"\n'})
    assert not apply(host, {"hugepages": {"1GiB": 4}}, journal).failures
    assert statuses(host, {"hugepages": {"1GiB": 4}})["hugepages/1GiB"] == "pass"
    assert f"w {HUGE_1G}/nr_hugepages - - - - 4" in (host.read(TMPFILES) or "")


@pytest.mark.parametrize("folder", ["/run", "/lib"])
@pytest.mark.parametrize("file", ["sysctl.d", "tmpfiles.d"])
def test_what_is_below_run_is_not_there_after_a_reboot(make: Make, folder: str, file: str) -> None:
    lines = {"sysctl.d": "vm.nr_hugepages = 8\n", "tmpfiles.d": f"w {HUGE_2M}/nr_hugepages - - - - 8\n"}
    assert next_boot(make({f"{folder}/{file}/x.conf": lines[file]}))["2MiB"] == (0 if folder == "/run" else 8)


def test_taking_pages_never_leaves_the_running_host_without_memory(make: Make, journal: Journal) -> None:
    """Pages that were given back are not taken again by revert when somebody else uses the memory by now."""
    host = make(asks("hugepages=1024"), pages_2m=1024)
    want = {"hugepages": {"2MiB": 0}}
    assert not apply(host, want, journal).failures
    host.put("/proc/meminfo", meminfo(32 * GIB_IN_KIB, available_kib=2 * GIB_IN_KIB + 511 * 1024))
    performer = Performer(host, load(["hugepages"]), journal, lambda line: None)
    revert(performer)
    assert "2 GiB more of huge pages would leave less than 512 MiB" in performer.failures[0].reason
    assert host.number(f"{HUGE_2M}/nr_hugepages") == 0
    host.put("/proc/meminfo", meminfo(32 * GIB_IN_KIB, available_kib=2 * GIB_IN_KIB + 512 * 1024))
    performer = Performer(host, load(["hugepages"]), journal, lambda line: None)
    revert(performer)
    assert (performer.failures, host.number(f"{HUGE_2M}/nr_hugepages")) == ([], 1024)


def test_one_size_is_given_back_before_another_is_taken(make: Make, journal: Journal) -> None:
    host = make(asks("hugepages=64"), pages_2m=64)
    assert not apply(host, {"hugepages": {"1GiB": 4, "2MiB": 0}}, journal).failures
    assert host.wrote == ["nr_hugepages=0", "nr_hugepages=4"]


@pytest.mark.parametrize(
    ("section", "valid"),
    [
        *(({size: 4}, True) for size in ("1GiB", "16GiB", "2MiB", "512MiB", "64KiB")),
        *(({size: 4}, False) for size in ("1024MiB", "2048KiB", "01GiB", "0MiB", "1GiB\n")),
        *(({"mounts": {"1GiB": w}}, True) for w in ("/dev/hugepages1G", "/mnt/.huge", "/mnt/huge+1G", "/a/...")),
        *(({"mounts": {"1GiB": w}}, False) for w in ("/", "/mnt/huge/", "//mnt", "/mnt//huge", "/mnt/./x", "/mnt/..")),
        *(({"mounts": {"1GiB": w}}, False) for w in ("/.", "/mnt/a b", "/mnt/%i", "/mnt/x\n", "mnt")),
    ],
)
def test_a_profile_has_one_spelling_for_a_size_and_one_for_a_place(section: dict[str, Any], valid: bool) -> None:
    """`{1GiB: 8, 1024MiB: 4}` would lose one of them; `/mnt/huge/` would be mounted again at each apply."""
    assert jsonschema.Draft202012Validator(load(["hugepages"])["hugepages"].SCHEMA).is_valid(section) == valid


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
