"""A real OpenPBS runs the hook as `hostprep install pbs` says: what pbsnodes and qstat then show."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fake_pbs import HOOK
from pbs_cluster import NODE, Cluster, cluster
from test_gate import made

from hostprep import state
from hostprep.model import Status

Publish = Callable[..., None]
MISSING = ("offline", "hostprep: not ready: /run/hostprep/report.json: No such file or directory")
FAILED = ("offline", "hostprep: not ready: swap/device0")
FREE = ("free", "")
ADMINS = ("offline", "maint by alice")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("pbs")) as one:
        one.join()
        one.becomes(*MISSING)
        yield one


@pytest.fixture
def publish(started: Cluster, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Publish a report of these statuses on the node."""
    monkeypatch.setenv("HOSTPREP_RUN_DIR", str(started.run_dir))

    def publish(*statuses: Status) -> None:
        state.publish(made(*statuses))

    return publish


@pytest.fixture
def pbs(started: Cluster, publish: Publish) -> Cluster:
    """A ready node in service, with nothing on it."""
    publish(Status.PASS)
    started.sh("qdel -W force $(qselect) 2>/dev/null || :")
    started.run("pbsnodes", "-r", "-C", "", NODE)
    started.becomes(*FREE)
    return started


def test_a_node_goes_offline_and_comes_back_with_its_report(pbs: Cluster, publish: Publish) -> None:
    publish(Status.FAIL)
    pbs.becomes(*FAILED)
    assert FAILED[1] in pbs.run("pbsnodes", "-l")
    publish(Status.PASS, Status.UNKNOWN)
    pbs.becomes("offline", "hostprep: unknown: swap/device1")
    publish(Status.PASS)
    pbs.becomes(*FREE)


@pytest.mark.parametrize("later", [False, True])
def test_an_admins_mark_stays(pbs: Cluster, publish: Publish, later: bool) -> None:
    if later:
        publish(Status.FAIL)
        pbs.becomes(*FAILED)
    pbs.run("pbsnodes", "-o", "-C", ADMINS[1], NODE)
    for status in (Status.FAIL, Status.PASS):
        publish(status)
        pbs.stays(*ADMINS)
    pbs.ends("mom")
    pbs.starts("mom")
    pbs.stays(*ADMINS)


def test_what_was_written_on_a_free_node_is_there_again(pbs: Cluster, publish: Publish) -> None:
    pbs.run("pbsnodes", "-C", 'new "disk", in May', NODE)
    publish(Status.FAIL)
    pbs.becomes(*FAILED)
    publish(Status.PASS)
    pbs.becomes("free", 'new "disk", in May')


def test_a_running_job_goes_on_and_no_other_starts(pbs: Cluster, publish: Publish) -> None:
    pbs.qmgr("set server job_history_enable=True")
    first = pbs.submit("touch /run/job/runs; while [ ! -e /run/job/end ]; do sleep 0.1; done")
    pbs.until(lambda: pbs.sh("ls /run/job"), lambda seen: "runs" in seen)
    publish(Status.FAIL)
    pbs.until(pbs.seen, lambda seen: "offline" in seen[0])
    second = pbs.submit("true")
    pbs.stays(*pbs.seen())
    assert pbs.job(first)["job_state"] == "R"
    pbs.sh("touch /run/job/end")
    assert pbs.until(lambda: pbs.job(first), lambda job: job["job_state"] == "F")["Exit_status"] == "0"
    assert pbs.job(second)["job_state"] == "Q"
    publish(Status.PASS)
    pbs.until(lambda: pbs.job(second)["job_state"], lambda state: state == "F")


def test_a_job_that_comes_before_the_hook_has_looked_goes_back_once(pbs: Cluster, publish: Publish) -> None:
    pbs.frequency(3600)
    publish(Status.FAIL)
    job = pbs.submit("true")
    pbs.becomes(*FAILED)
    seen = pbs.until(lambda: pbs.job(job), lambda job: job["job_state"] == "Q")
    assert seen["run_count"] == "1"
    publish(Status.PASS)
    pbs.frequency(1)
    pbs.until(lambda: pbs.job(job), lambda job: job["job_state"] == "F" and job["run_count"] == "2")


def test_mom_comes_up_offline_on_a_host_that_is_not_ready(pbs: Cluster, publish: Publish) -> None:
    pbs.frequency(3600)
    pbs.ends("mom")
    publish(Status.FAIL)
    pbs.starts("mom")
    pbs.becomes(*FAILED)
    pbs.frequency(1)
    publish(Status.PASS)
    pbs.becomes(*FREE)


def test_a_configuration_that_is_not_valid_is_said_and_empties_no_cluster(pbs: Cluster, publish: Publish) -> None:
    """The server takes it as it is: it looks at scripts only."""
    pbs.configure('{"max_age": 60}')
    said = "hostprep: the configuration of the hook is not valid: max_age: 60"
    pbs.becomes("free", said)
    publish(Status.FAIL)
    pbs.becomes(*FAILED)
    publish(Status.PASS)
    pbs.becomes("offline", said)
    pbs.configure(HOOK.with_suffix(".json").read_text())
    pbs.becomes(*FREE)


def test_our_mark_survives_a_restart_of_the_server(pbs: Cluster, publish: Publish) -> None:
    """openpbs#2579: the server forgets comments."""
    publish(Status.FAIL)
    pbs.becomes(*FAILED)
    pbs.ends("server")
    pbs.starts("server")
    pbs.becomes(*FAILED)
    pbs.ends("server")
    publish(Status.PASS)
    pbs.starts("server")
    pbs.becomes(*FREE)


def test_an_admins_mark_without_a_comment_survives_a_restart_of_the_server(pbs: Cluster, publish: Publish) -> None:
    pbs.run("pbsnodes", "-o", "-C", ADMINS[1], NODE)
    publish(Status.FAIL)
    pbs.ends("server")
    pbs.starts("server")
    pbs.becomes("offline", "")
    publish(Status.PASS)
    pbs.stays("offline", "")
