"""A real slurmctld and slurmd run the program that `hostprep install slurm` puts in place: what sinfo then shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from slurm_cluster import NODE, Cluster, cluster
from test_gate import made

from hostprep import state
from hostprep.model import Status
from hostprep.slurm import is_ours

Publish = Callable[..., None]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm")) as one:
        one.configure()
        yield one


@pytest.fixture
def publish(started: Cluster, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Publish a report of these statuses on the node."""
    monkeypatch.setenv("HOSTPREP_RUN_DIR", str(started.run_dir))
    return lambda *statuses, **more: state.publish(made(*statuses, **more)) and None


@pytest.fixture
def slurm(started: Cluster, publish: Publish) -> Cluster:
    """A ready node in service; slurmd does not run the program by itself."""
    publish(Status.PASS)
    started.configure()
    return started


def seen(slurm: Cluster) -> tuple[str, str]:
    """The states that last, and the Reason. In service it means nothing: without slurmdbd, 24.11 never clears it."""
    node = slurm.node()
    states = "+".join(sorted(node.states - {"NOT_RESPONDING"}))
    return states, "" if states == "IDLE" and node.reason == "Not responding" else node.reason


def jobs(slurm: Cluster) -> str:
    return slurm.run("squeue", "--noheader", "--format=%T")


def submit(slurm: Cluster) -> None:
    slurm.run("sbatch", "--wrap=sleep 600", "--output=/dev/null")


# -- what slurmd does by itself ---------------------------------------------------------------------


def test_slurmd_drains_a_node_that_is_not_ready_and_gives_it_back(started: Cluster, publish: Publish) -> None:
    """With nothing but SLURMD_NODENAME in its environment; `sinfo -R` shows which findings it is."""
    publish(Status.PASS)
    started.configure(interval=1)
    publish(Status.PASS, Status.FAIL)
    started.until(started.node, lambda node: node.drained)
    assert "hostprep: not ready: swap/device1 #" in started.run("sinfo", "-R", "--noheader", "--format=%E")
    publish(Status.PASS)
    started.until(lambda: seen(started), lambda now: now == ("IDLE", ""))


@pytest.mark.parametrize("down", [False, True])
def test_no_job_starts_on_a_node_that_comes_up_without_being_ready(
    started: Cluster, publish: Publish, down: bool
) -> None:
    """slurmd runs the program before it registers; with ReturnToService=2 that alone brings a node back."""
    publish(Status.PASS)
    started.configure(returns=2, interval=3600)
    started.stop("slurmd")
    if down:
        started.update("State=DOWN", "Reason=Not responding")  # what Slurm does itself after SlurmdTimeout
    publish(Status.UNKNOWN)
    started.start("slurmd")
    submit(started)
    started.until(lambda: seen(started)[0], lambda states: states == "DRAIN+IDLE")
    assert jobs(started) == "PENDING\n"
    assert is_ours(started.node().reason)
    publish(Status.PASS)
    started.check()
    started.until(lambda: jobs(started), lambda now: now == "RUNNING\n")


# -- what it does, run by run -----------------------------------------------------------------------


def test_running_jobs_go_on_and_waiting_ones_wait(slurm: Cluster, publish: Publish) -> None:
    submit(slurm)
    slurm.until(lambda: jobs(slurm), lambda now: now == "RUNNING\n")
    publish(Status.FAIL)
    slurm.check()
    slurm.run("sbatch", "--wrap=true", "--output=/dev/null")
    slurm.until(lambda: seen(slurm)[0], lambda states: states in ("ALLOCATED+DRAIN", "DRAIN+MIXED"))
    assert sorted(jobs(slurm).split()) == ["PENDING", "RUNNING"]
    publish(Status.PASS)
    slurm.check()
    slurm.until(lambda: jobs(slurm), lambda now: now == "RUNNING\n")
    assert not slurm.node().drained
    assert not is_ours(slurm.node().reason)


def test_a_defect_is_told_once_and_another_anew(slurm: Cluster, publish: Publish) -> None:
    """T19: on every run it is there, and no run but the first changes anything."""
    publish(Status.FAIL)
    assert "State=DRAIN" in slurm.check()
    assert "left as it is" in slurm.check()
    assert "swap/device0" in slurm.node().reason
    publish(Status.PASS, Status.FAIL)
    assert "State=DRAIN" in slurm.check()
    assert "swap/device1" in slurm.node().reason


@pytest.mark.parametrize(
    "done",
    [
        ("State=DRAIN", "Reason=maint by alice"),
        ("State=DOWN", "Reason=broken disk"),
        ("State=FAIL", "Reason=broken disk"),
        ("State=DRAIN", "Reason={ours} alice: keep it off"),
        ("State=DRAIN", "Reason={ours}\nalice: keep it off"),
    ],
)
@pytest.mark.parametrize("after_ours", [False, True])
def test_what_an_admin_did_stays(slurm: Cluster, publish: Publish, done: tuple[str, str], after_ours: bool) -> None:
    """T13, NHC#134: before our drain or after it, through bad reports and good ones."""
    publish(Status.FAIL)
    slurm.check()
    ours = slurm.node().reason
    if not after_ours:
        publish(Status.PASS)
        slurm.check()
    slurm.update(done[0], done[1].replace("{ours}", ours))
    before = seen(slurm)
    for status in (Status.UNKNOWN, Status.PASS):
        publish(status)
        assert "left as it is" in slurm.check()
        assert seen(slurm) == before


def test_a_reboot_that_an_admin_asked_for_goes_on(slurm: Cluster, publish: Publish) -> None:
    """NHC#81: and the drain of a node that is rebooted to become ready is still known as ours after it."""
    publish(Status.PENDING)
    slurm.check()
    slurm.scontrol("reboot", NODE)
    slurm.until(slurm.node, lambda node: "REBOOT_ISSUED" in node.states)
    assert "left as it is" in slurm.check()
    publish(Status.PASS)
    assert "left as it is" in slurm.check()
    assert is_ours(slurm.node().reason)


@pytest.mark.parametrize("returns", [0, 1, 2])
def test_a_node_that_went_down_while_drained_is_given_back_to_return_to_service(
    slurm: Cluster, publish: Publish, returns: int
) -> None:
    """A host that is rebooted to become ready is often away for longer than SlurmdTimeout."""
    slurm.configure(returns)
    publish(Status.FAIL)
    slurm.check()
    ours = slurm.node().reason
    slurm.stop("slurmd")
    slurm.update("State=DOWN", f"Reason={ours}")  # as Slurm does after SlurmdTimeout: the drain and its Reason stay
    slurm.update("State=DRAIN", f"Reason={ours}")
    assert seen(slurm) == ("DOWN+DRAIN", ours)
    publish(Status.PASS)
    slurm.check()
    assert seen(slurm) == ("DOWN", "Not responding")
    slurm.start("slurmd")
    if returns:
        slurm.until(lambda: seen(slurm), lambda now: now == ("IDLE", ""))
    else:
        assert seen(slurm) == ("DOWN", "Not responding")


def test_a_controller_that_was_restarted_knows_it_still(slurm: Cluster, publish: Publish) -> None:
    publish(Status.FAIL)
    slurm.check()
    before = seen(slurm)
    slurm.stop("slurmctld")
    slurm.start("slurmctld")
    assert slurm.until(lambda: seen(slurm), lambda now: "IDLE" in now[0]) == before
    publish(Status.PASS)
    slurm.check()
    slurm.until(lambda: seen(slurm), lambda now: now == ("IDLE", ""))


def test_every_way_of_having_no_report_drains(slurm: Cluster, publish: Publish) -> None:
    """T9: the report of another boot, machine or time is none; nor is one of a part, or a file that is no report."""
    path = slurm.run_dir / "report.json"
    reasons = []
    for other in ({"boot_id": "b"}, {"machine_id": "m"}, {"age": 7200.0}, {"age": -300.0}, {"selection": ["swap"]}):
        publish(Status.PASS, **other)
        slurm.check()
        reasons.append(slurm.node().reason)
    path.write_bytes(path.read_bytes()[:100])
    slurm.check()
    reasons.append(slurm.node().reason)
    path.unlink()
    slurm.check()
    reasons.append(slurm.node().reason)
    assert all(is_ours(reason) for reason in reasons)
    assert len(set(reasons)) == len(reasons)
    assert slurm.node().drained
