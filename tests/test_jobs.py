"""Jobs, containers and VMs that run here: while they do, nothing of the running system is changed (J2)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeHost, apply, examine, profile
from fake_kernel import FakeKernel
from fake_sriov import SriovHost
from fakes import HUGE_2M, FakeHost, debian, mkconfig

from hostprep import engine, jobs, registry
from hostprep.errors import HostError
from hostprep.host import Host, processes
from hostprep.host.processes import Workload
from hostprep.host.record import RecordedHost, Recorder
from hostprep.host.rehearsal import Rehearsal
from hostprep.journal import Journal
from hostprep.model import Facet, Unknown
from hostprep.perform import Performer, converge
from hostprep.recreate import records, recreate
from hostprep.revert import rehearse, revert

ID = "1a2b3c4d5e6f" + "0" * 52
PBS = "/var/spool/pbs/mom_priv/jobs"
PF0 = "0000:17:00.0"


# -- what is told ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ()),
        ({f"{PBS}/": ""}, ()),
        ({f"{PBS}/12.srv.JB": "", f"{PBS}/12.srv.SC": "", f"{PBS}/12.srv.TK/": ""}, ("PBS job 12.srv",)),
        ({f"{PBS}/3[7].srv.JB": ""}, ("PBS job 3[7].srv",)),
        ({f"{PBS}/3\x1b[2J.JB": ""}, ("PBS job 3 [2J",)),
        ({"/etc/pbs.conf": "# PBS_HOME=/a\nPBS_HOME=/b\n", "/b/mom_priv/jobs/1.s.JB": ""}, ("PBS job 1.s",)),
        ({"/etc/pbs.conf": "export PBS_HOME='/b' \n", "/b/mom_priv/jobs/1.s.JB": ""}, ("PBS job 1.s",)),
        ({"/etc/pbs.conf": "PBS_HOME=/b\nPBS_MOM_HOME=/m\n", "/m/mom_priv/jobs/1.s.JB": ""}, ("PBS job 1.s",)),
        ({"/etc/pbs.conf": "PBS_EXEC=/opt/pbs\nPBS_HOME=\n", f"{PBS}/1.s.JB": ""}, ("PBS job 1.s",)),
    ],
)
def test_a_pbs_job_is_a_file_of_pbs_mom(make_host: MakeHost, files: dict[str, str], expected: tuple[str, ...]) -> None:
    """It is there before the first process of a job, and while the job is suspended. OpenPBS: mom_priv/jobs/*.JB."""
    assert jobs.running(make_host(files)) == expected


@pytest.mark.parametrize(
    ("work", "phrase"),
    [
        (Workload("Slurm step", "42.0", "", "slurmstepd", 7), "Slurm step 42.0"),
        (Workload("Slurm step", "", "", "slurmstepd", 7), "Slurm step (pid 7)"),
        (Workload("docker", ID[:12], "", "python3", 7), "docker 1a2b3c4d5e6f (kind-control-plane)"),
        (Workload("docker", "f" * 12, "", "python3", 7), "docker ffffffffffff"),
        (Workload("docker", "e" * 12, "", "python3", 7), "docker eeeeeeeeeeee"),
        (Workload("podman", ID[:12], "web", "conmon", 7), "podman 1a2b3c4d5e6f (web)"),
        (Workload("VM", "web1", "", "qemu-system-x86", 77), "VM web1 (qemu, pid 77)"),
        (Workload("VM", "", "", "firecracker", 77), "VM (firecracker, pid 77)"),
    ],
)
def test_what_runs_is_named_as_its_own_tools_name_it(make_host: MakeHost, work: Workload, phrase: str) -> None:
    config = "/var/lib/docker/containers/{}/config.v2.json"
    host = make_host({config.format(ID): '{"Name": "/kind-control-plane"}', config.format("e" * 64): "{"})
    host.workload_list = [work, work]
    assert jobs.running(host) == (phrase,)


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, ""),
        (1, "PBS job 1.s"),
        (3, "PBS job 1.s, PBS job 2.s, PBS job 3.s"),
        (5, "PBS job 1.s, PBS job 2.s, PBS job 3.s and 2 more"),
    ],
)
def test_three_are_named_and_the_rest_are_counted(make_host: MakeHost, count: int, told: str) -> None:
    assert jobs.listing(make_host({f"{PBS}/{i}.s.JB": "" for i in range(1, count + 1)})) == told


@pytest.mark.parametrize("spoil", ["processes", "relative", "mom_priv"])
def test_what_cannot_be_told_is_taken_as_running(make_host: MakeHost, spoil: str) -> None:
    host = make_host({"/etc/pbs.conf": "PBS_HOME=b\n"} if spoil == "relative" else {})
    if spoil == "processes":
        host.workload_list = HostError("/proc/9/fd: needs root")
    elif spoil == "mom_priv":
        host.put("/var/spool/pbs/mom_priv", "-> mom_priv")  # a loop: ELOOP
    assert isinstance(jobs.listing(host), Unknown)
    assert "which cannot be told (" in engine.disturbed(host)


# -- what it stands in the way of -----------------------------------------------------------------

PAGES = {"hugepages": {"2MiB": 64}}
ALLOW = "(allow it with --allow-disruption hugepages)"
WHO = "PBS job 12.srv, VM web1 (qemu, pid 77)"


@pytest.fixture
def host(tmp_path: Path) -> FakeKernel:
    host = FakeKernel(tmp_path / "root", debian())
    host.commands = {"grub-mkconfig": mkconfig(host), "update-grub": ""}
    return host


def occupy(host: FakeHost) -> None:
    host.put(f"{PBS}/12.srv.JB", "")
    host.workload_list = [Workload("VM", "web1", "", "qemu-system-x86", 77)]


def vacate(host: FakeHost) -> None:
    host.remove(f"{PBS}/12.srv.JB")
    host.workload_list = []


def plan(host: FakeHost, sections: Mapping[str, Any], allowed: Sequence[str] = ()) -> dict[Facet, engine.Planned]:
    wanted, checks = profile(sections), registry.load(sections)
    needed = engine.planned(examine(host, sections), wanted, checks, allowed)
    return {p.change.facet: p for batch in engine.rehearse(host, needed, checks) for p in batch.planned}


def test_while_jobs_run_live_changes_are_refused_and_those_of_the_next_boot_are_not(host: FakeKernel) -> None:
    occupy(host)
    planned = plan(host, PAGES)
    assert {facet: p.refused for facet, p in planned.items()} == {
        Facet.CURRENT: f"would disturb {WHO} {ALLOW}",
        Facet.NEXT_BOOT: "",
    }
    vacate(host)
    assert {p.refused for p in plan(host, PAGES).values()} == {""}


def test_a_change_that_is_allowed_by_name_says_whom_it_disturbs(host: FakeKernel) -> None:
    occupy(host)
    planned = plan(host, PAGES, ["hugepages"])
    desired = planned[Facet.CURRENT].desired
    assert desired is not None
    assert (planned[Facet.CURRENT].refused, desired.disrupts) == ("", WHO)
    assert "VM" not in str(planned[Facet.NEXT_BOOT].desired)


@pytest.mark.parametrize(
    ("sections", "asked"),
    [
        ({"hugepages": {"2MiB": 64}}, 1),
        ({"hugepages": {"2MiB": 64, "1GiB": 1}, "swap": "disabled"}, 1),
        ({"hugepages": {"2MiB": 0}}, 0),
        ({"kernel_args": ["iommu=pt"]}, 0),
        ({"hugepages": {"1GiB": 64}}, 0),  # refused: more than there is memory
    ],
)
def test_it_is_asked_once_and_only_for_a_live_change(
    host: FakeKernel, sections: dict[str, Any], asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks: list[Host] = []

    def listing(host: Host) -> str:
        asks.append(host)
        return ""

    monkeypatch.setattr(jobs, "listing", listing)
    plan(host, sections)
    assert len(asks) == asked


@pytest.mark.parametrize(("allowed", "pages"), [((), 0), (("swap",), 0), (("hugepages",), 64)])
def test_a_job_that_starts_between_plan_and_apply_is_seen(
    host: FakeKernel, journal: Journal, allowed: tuple[str, ...], pages: int
) -> None:
    """The next boot waits too, as for any check whose live change did not happen: apply again brings both."""
    planned = plan(host, PAGES, allowed)
    occupy(host)
    performer = Performer(host, registry.load(PAGES), journal, lambda line: None)
    converge(performer, [p.change for p in planned.values()], PAGES, allowed)
    why = [] if pages else [f"would disturb {WHO} {ALLOW}"]
    assert ([f.reason for f in performer.failures], host.number(f"{HUGE_2M}/nr_hugepages")) == (why, pages)
    assert bool(journal.standing()) == bool(pages)


def test_revert_leaves_the_running_system_to_those_who_run_on_it(host: FakeKernel, journal: Journal) -> None:
    """It takes back the next boot, says who is in the way, and does the rest when they are gone."""
    before = {path: content for path, content in host.snapshot().items() if path.startswith(("/etc", "/boot"))}
    assert apply(host, PAGES, journal).failures == []
    occupy(host)
    checks = registry.load(PAGES)
    assert rehearse(host, checks, journal)[2] == [
        f"the running system would stay as it is: to change it would disturb {WHO}"
    ]
    performer = Performer(host, checks, journal, lambda line: None)
    revert(performer)
    assert [(f.name, f.reason) for f in performer.failures] == [("hugepages/2MiB", f"would disturb {WHO}")]
    assert {path: host.snapshot()[path] for path in before} == before
    assert host.number(f"{HUGE_2M}/nr_hugepages") == 64
    vacate(host)
    again = Performer(host, checks, journal, lambda line: None)
    revert(again)
    assert (again.failures, journal.standing(), host.number(f"{HUGE_2M}/nr_hugepages")) == ([], [], 0)


def test_the_boot_unit_does_not_wait_for_jobs(tmp_path: Path, journal: Journal) -> None:
    """A job file that pbs_mom has not cleaned up yet after a crash must not cost the host its VFs."""
    host = SriovHost(tmp_path / "root", debian())
    host.pf(PF0, "ens9f0np0")
    assert apply(host, {"nic_vfs": [{"pf": PF0, "vfs": 8}]}, journal).failures == []
    host.drop(PF0)
    occupy(host)
    performer = Performer(host, registry.load(["nic_vfs"]), Journal(journal.path, "next-boot"), lambda line: None)
    recreate(performer, records(host, performer.failures), timeout=0.1)
    assert (performer.failures, len(host.vfs(PF0))) == ([], 8)


def test_a_recording_tells_what_ran_and_without_it_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = [Workload("podman", "1a2b3c4d5e6f", "web", "conmon", 7)]
    monkeypatch.setattr(processes, "workloads", lambda: works)
    asked, unasked = tmp_path / "asked", tmp_path / "unasked"
    phrases = jobs.running(Recorder(str(asked)))
    Recorder(str(unasked))
    assert "podman 1a2b3c4d5e6f (web)" in phrases
    replayed = RecordedHost(str(asked))
    assert jobs.running(replayed) == jobs.running(Rehearsal(replayed)) == phrases
    assert json.dumps(replayed.workloads()) == json.dumps(works)
    assert "was not recorded" in engine.disturbed(RecordedHost(str(unasked)))


def test_a_plan_of_who_is_not_root_shows_what_root_would_do(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cannot see who would be disturbed; root can, and is asked again by apply."""
    host = make_host(debian())
    host.workload_list = HostError("/proc/9/fd: needs root")
    wanted = profile({"hugepages": {"2MiB": 4}})
    checks = registry.load(wanted.sections)
    planned = engine.planned(engine.examine(host, wanted, checks, 20), wanted, checks, ())
    refused = {}
    for user in (0, 65534):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        refused[user] = {p.refused for b in engine.rehearse(host, planned, checks) for p in b.planned}
    assert refused[65534] == {""}
    assert any("which cannot be told (/proc/9/fd: needs root)" in why for why in refused[0])
