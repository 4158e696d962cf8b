"""What runs on this very machine: processes that look like what they stand for, and real QEMU, KVM and Slurm."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from one_at_a_time import machine_to_itself
from slurm_cluster import cluster

from hostprep import jobs
from hostprep.errors import HostError
from hostprep.host import Host, process, processes
from hostprep.model import Unknown

ID = "1a2b3c4d5e6f" + "0" * 52
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root sees into the processes of others")

Look = Callable[[int], tuple[str, ...]]


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with machine_to_itself():
        yield


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Look:
    """What a process of the test is taken for: others on this machine are not looked at."""

    def seen(pid: int) -> tuple[str, ...]:
        monkeypatch.setattr(processes, "_pids", lambda: iter([pid]))
        return tuple(phrase for phrase in jobs.running(Host()) if not phrase.startswith("PBS"))

    return seen


@contextlib.contextmanager
def started(argv: Sequence[str], executable: str = "", **environment: str) -> Iterator[int]:
    """A process that waits for its standard input to end.

    When we go on it is the program, to all who look: the kernel tells the arguments last.
    """
    program, end = executable or shutil.which(argv[0]), time.monotonic() + 20
    with subprocess.Popen(argv, executable=program, stdin=subprocess.PIPE, env=environment) as child:
        try:
            while Path(f"/proc/{child.pid}/cmdline").read_text() != "".join(f"{word}\0" for word in argv):
                assert time.monotonic() < end, "it never started"
            yield child.pid
        finally:
            child.kill()


SHIM, CONMON = "containerd-shim-runc-v2", ["/usr/bin/conmon", "-s", "--", "-c", ID, "-n", "web", "--exit-command"]


@needs_root
@pytest.mark.parametrize(
    ("program", "argv", "phrase"),
    [
        ("slurmstepd", ["slurmstepd: [42.0]"], "Slurm step 42.0"),
        ("slurmstepd", ["slurmstepd: [1234567.batch]"], "Slurm step 1234567.batch"),
        ("slurmstepd", ["/usr/sbin/slurmstepd"], "Slurm step (pid {pid})"),
        ("slurmstepd", ["/usr/sbin/slurmstepd", "-s", "--", "spank"], "Slurm step (pid {pid})"),
        ("conmon", [*CONMON, "/usr/bin/podman"], "podman 1a2b3c4d5e6f (web)"),
        ("conmon", [*CONMON, "/usr/bin/crio"], "cri-o 1a2b3c4d5e6f (web)"),
        (SHIM, [SHIM, "-s", "--", "-namespace", "default", "-id", "redis"], "containerd redis"),
        (
            "qemu-system-x86_64",
            ["qemu", "-s", "--", "-name", "guest=web1,debug-threads=on"],
            "VM web1 (qemu, pid {pid})",
        ),
        ("qemu-kvm", ["qemu-kvm"], "VM (qemu, pid {pid})"),
        ("slurmd", ["/usr/sbin/slurmd"], None),
        ("dockerd", ["/usr/bin/dockerd"], None),
    ],
)
def test_a_process_is_known_by_its_program_and_title(
    look: Look, tmp_path: Path, program: str, argv: list[str], phrase: str | None
) -> None:
    (tmp_path / program).symlink_to("/bin/sh")  # which with -s takes all that follows as it comes
    with started(argv, str(tmp_path / program)) as pid:
        assert look(pid) == (() if phrase is None else (phrase.format(pid=pid),))


@needs_root
def test_what_holds_the_scope_of_slurms_cgroups_is_no_job(look: Look) -> None:
    """Since Slurm 22.05 `slurmstepd infinity` runs as long as slurmd does."""
    program = shutil.which("slurmstepd") or "/usr/sbin/slurmstepd"
    if not os.path.exists(program):
        pytest.skip("slurmstepd is not installed (package slurmd)")
    with started([program, "infinity"], program) as pid:
        assert look(pid) == ()


@needs_root
def test_a_step_that_has_ended_and_whose_parent_did_not_notice_is_none(look: Look, tmp_path: Path) -> None:
    (tmp_path / "slurmstepd").symlink_to("/bin/sh")
    with subprocess.Popen(["slurmstepd"], executable=tmp_path / "slurmstepd", stdin=subprocess.DEVNULL) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{child.pid}/comm").read_text() == "slurmstepd\n"
        assert look(child.pid) == ()


@needs_root
@pytest.mark.parametrize("name", ["APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"])
def test_apptainer_has_no_cgroup_and_is_known_by_its_environment(look: Look, name: str) -> None:
    with started(["cat"], **{name: "/data/lolcow.sif"}) as pid:
        assert look(pid) == ("apptainer /data/lolcow.sif",)


@pytest.fixture
def hierarchy() -> Path:
    """A cgroup hierarchy that we may make cgroups in."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    plain = [m[1] for m in mounts if m[2] == "cgroup2" or (m[2] == "cgroup" and "pids" in m[3])]
    found = [Path(mount) for mount in plain if os.access(mount, os.W_OK)]
    if os.geteuid() != 0 or not found:
        pytest.skip("no cgroup can be made here")
    return found[0]


@pytest.mark.parametrize(
    ("cgroup", "phrase"),
    [
        (f"docker-{ID}.scope", "docker 1a2b3c4d5e6f"),
        (f"kubepods/burstable/pod7/{ID}", "container 1a2b3c4d5e6f"),
        (r"machine.slice/machine-qemu\x2d3\x2dweb.scope/libvirt/emulator", "VM web (cat, pid {pid})"),
        (r"machine.slice/machine-build\x2d1.scope/payload", "machine build-1"),
        ("machine.slice/systemd-nspawn@build.service/payload", "machine build"),
        ("system.slice/slurmstepd.scope/job_42/step_batch/user/task_0", "Slurm step 42.batch"),
        ("slurm_node1/uid_7/job_42/step_0", "Slurm step 42.0"),
        ("slurm/uid_7/job_42", "Slurm job 42"),
        ("system.slice/slurmstepd.scope/system", None),
        ("system.slice/cron.service", None),
    ],
)
def test_a_process_is_known_by_its_cgroup(look: Look, hierarchy: Path, cgroup: str, phrase: str | None) -> None:
    """Also what a slurmstepd or a conmon that was killed has left behind."""
    top = hierarchy / f"hostprep-test-{os.getpid()}"
    place = top / cgroup
    try:
        place.mkdir(parents=True)
        with started(["cat"]) as pid:
            (place / "cgroup.procs").write_text(str(pid))
            if cgroup not in Path(f"/proc/{pid}/cgroup").read_text():
                pytest.skip("this machine's cgroups have no names")
            assert look(pid) == (() if phrase is None else (phrase.format(pid=pid),))
    except PermissionError:
        pytest.skip("no cgroup can be made here")
    finally:
        for folder in (place, *place.parents):
            if folder != hierarchy and hierarchy in folder.parents and folder.is_dir():
                folder.rmdir()


@pytest.mark.parametrize(
    ("inside", "found"),
    [
        ("", None),
        (f"/system.slice/docker-{'f' * 64}.scope", ("docker", "f" * 12)),  # kind within
        ("/payload/system.slice/cron.service", None),
    ],
)
def test_the_container_that_we_are_in_is_not_in_our_way(inside: str, found: tuple[str, str] | None) -> None:
    """A host may be a container itself; what is within it, and beside it, counts."""
    ours = [("machine", "node1")]
    top = "0::/machine.slice/machine-node1.scope"
    assert processes._container(top + inside, ours) == found
    assert processes._container(top.replace("node1", "node2") + inside, ours) == ("machine", "node2")
    assert processes._container(top + inside) == ("machine", "node1")


@needs_root
def test_a_vm_of_kvm_is_known_whoever_runs_it(look: Look) -> None:
    """What KVM_CREATE_VM gives is held while the VM is there; /dev/kvm itself may be closed."""
    try:
        with open("/dev/kvm", "rb") as kvm:
            vm = fcntl.ioctl(kvm, 0xAE01, 0)
    except OSError as e:
        pytest.skip(f"/dev/kvm: {e.strerror}")
    try:
        assert look(os.getpid()) == (f"VM ({Path('/proc/self/comm').read_text().strip()}, pid {os.getpid()})",)
    finally:
        os.close(vm)
    assert look(os.getpid()) == ()


@needs_root
def test_a_real_qemu_is_known_by_its_name(look: Look) -> None:
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        pytest.skip("QEMU is not installed (package qemu-system-x86)")
    words = ["-S", "-display", "none", "-nodefaults", "-machine", "none", "-monitor", "stdio", "-name", "guest=web1"]
    with started([program, *words], program) as pid:
        assert look(pid) == (f"VM web1 (qemu, pid {pid})",)


def test_a_real_slurm_step_is_known(tmp_path: Path) -> None:
    with cluster(tmp_path) as slurm:
        slurm.configure()
        number = slurm.run("sbatch", "--parsable", "--output=/dev/null", "--wrap", "srun sleep 600").strip()
        wanted = {f"Slurm step {number}.batch", f"Slurm step {number}.0"}
        slurm.until(lambda: set(jobs.running(Host())), lambda seen: wanted <= seen)


def test_processes_that_are_hidden_are_not_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """proc(5), hidepid=2: who is not root sees nothing but its own."""
    monkeypatch.setattr(os, "listdir", lambda path: ["4711", "meminfo"])
    with pytest.raises(HostError, match=r"^/proc: "):
        processes.workloads()


def test_a_process_that_ends_while_we_look_runs_no_more(look: Look) -> None:
    assert look(2**22 + 1) == ()  # above PID_MAX_LIMIT


@needs_root
def test_without_root_it_is_not_known() -> None:
    def as_nobody() -> bytes:
        os.setgid(65534)
        os.setuid(65534)
        seen = jobs.listing(Host())
        return seen.reason.encode() if isinstance(seen, Unknown) else b"known"

    found, _ = process.gather([("nobody", as_nobody)], 20)["nobody"]
    assert isinstance(found, bytes)
    assert re.fullmatch(rb".*needs root", found), found
