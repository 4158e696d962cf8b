"""Slurm's own daemons on one node, in namespaces of their own: this machine's network, processes and /run stay."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest
from one_at_a_time import ended_with, machine_to_itself

from hostprep import slurm

T = TypeVar("T")
NODE = "node1"
PATIENCE_S = 60.0
SHARE = Path(slurm.__file__).parent / "share" / "slurm"
PROGRAMS = ("slurmctld", "slurmd", "scontrol", "munged", "unshare", "nsenter", "setpriv", "ip")

# CgroupPlugin: found out by itself, it wants a systemd. RebootProgram: nothing is rebooted here.
CONFIG = f"""\
ClusterName=t
SlurmctldHost={NODE}(127.0.0.1)
SlurmUser=slurm
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
StateSaveLocation=/var/lib/slurm/slurmctld
SlurmdSpoolDir=/var/lib/slurm/slurmd
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ReturnToService={{returns}}
SlurmdTimeout=4
RebootProgram=/bin/true
NodeName={NODE} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

# Slurm resolves with AI_ADDRCONFIG: where there is nothing but lo, not even 127.0.0.1 is an address. So a veth idles.
SETUP = """
set -e
hostname node1
ip link set lo up
ip link add idle0 type veth peer name idle1
ip addr add 192.0.2.9/32 dev idle0
ip link set idle0 up
ip link set idle1 up
mount --make-rprivate /
mount -t proc proc /proc
for folder in /run /var/lib/slurm /var/log/slurm /etc/slurm /sys/fs/cgroup; do
    mount -t tmpfs -o mode=755 tmpfs $folder
done
mkdir -p /run/munge /run/hostprep /var/lib/slurm/slurmctld /var/lib/slurm/slurmd
chown munge: /run/munge
chown -R slurm: /var/lib/slurm /var/log/slurm
printf '127.0.0.1 localhost node1\\n' >"$1/hosts"
mount --bind "$1/hosts" /etc/hosts
mount --bind "$1/run" /run/hostprep
echo CgroupPlugin=cgroup/v1 >/etc/slurm/cgroup.conf
setpriv --reuid munge --regid munge --clear-groups munged
touch "$1/up"
while :; do sleep 3600 & wait $!; done  # the first process: it reaps what the daemons leave
"""


def shipped(program: Path, interval: int) -> str:
    """The lines for slurm.conf that an admin is given, with another path and interval."""
    lines = [line.strip() for line in (SHARE / "slurm.conf.txt").read_text().splitlines() if line.startswith("    ")]
    values = {"HealthCheckProgram": str(program), "HealthCheckInterval": str(interval)}
    assert values.keys() < {line.partition("=")[0] for line in lines}
    pairs = [line.partition("=") for line in lines]
    return "".join(f"{name}={values.get(name, value)}\n" for name, _, value in pairs)


class Cluster(NamedTuple):
    """One node and its controller."""

    pid: int  # of a process within the namespaces
    folder: Path
    run_dir: Path  # where the node's report is

    def run(self, *argv: str, check: bool = True, **more: str) -> str:
        """What a program says within."""
        command = ["nsenter", "-t", str(self.pid), "-a", "--wd=/", *argv]
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **more}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE_S)
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout

    def configure(self, returns: int = 1, interval: int = 0) -> None:
        """Write slurm.conf, and start both daemons by it."""
        self.stop("slurmd")
        self.stop("slurmctld")
        text = CONFIG.format(returns=returns) + shipped(self.folder / "health", interval)
        self.run(
            "/bin/sh", "-c", 'printf %s "$1" >/etc/slurm/slurm.conf; rm -rf /var/lib/slurm/slurmctld/*', "sh", text
        )
        self.start("slurmctld")
        self.start("slurmd")
        self.until(lambda: self.node().states, lambda states: "IDLE" in states)

    def start(self, daemon: str) -> None:
        self.run(daemon)

    def stop(self, daemon: str) -> None:
        """End a daemon, and wait until it is gone."""
        script = "p=$(cat /run/$1.pid 2>/dev/null) || exit 0; kill $p; while [ -d /proc/$p ]; do sleep 0.05; done"
        self.run("/bin/sh", "-c", f"{script}; rm -f /run/$1.pid", "sh", daemon)

    def scontrol(self, *words: str) -> str:
        return self.run("scontrol", *words)

    def update(self, *words: str) -> None:
        """What an admin does to the node."""
        self.scontrol("update", f"NodeName={NODE}", *words)

    def shown(self) -> str:
        return self.scontrol("show", "node", NODE)

    def node(self) -> slurm.Node:
        return slurm.parsed(self.shown(), NODE)

    def check(self) -> str:
        """Run the program as slurmd does, but at once."""
        return self.run("env", "-i", f"SLURMD_NODENAME={NODE}", str(self.folder / "health"))

    def until(self, look: Callable[[], T], is_so: Callable[[T], bool]) -> T:
        """Look until it is so; what was then seen."""
        end = time.monotonic() + PATIENCE_S
        while not is_so(seen := look()):
            assert time.monotonic() < end, f"still {seen!r}\n{self.log()}"
            time.sleep(0.1)
        return seen

    def log(self) -> str:
        return self.run("/bin/sh", "-c", "tail -n 15 /var/log/slurm/*.log", check=False)


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster without a report, whose daemons are not started. All of it goes in the end."""
    if os.geteuid() != 0:
        pytest.skip("needs root: Slurm's daemons run in namespaces of their own")
    for program in PROGRAMS:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (packages slurm-wlm, munge, util-linux, iproute2)")
    (folder / "run").mkdir(mode=0o755)
    (folder / "health").write_text((SHARE / "hostprep-slurm-health").read_text().replace("@python@", sys.executable))
    (folder / "health").chmod(0o755)
    private = ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child"]
    if (refused := subprocess.run([*private, "true"], capture_output=True, text=True)).returncode:
        pytest.skip(f"no namespaces for Slurm here: {refused.stderr}")
    command = [*private, "/bin/sh", "-c", SETUP, "sh", str(folder)]
    with (folder / "setup.log").open("wb") as log:
        outside = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    with machine_to_itself(), ended_with(outside):
        while not (folder / "up").exists():
            assert outside.poll() is None, (folder / "setup.log").read_text()
            time.sleep(0.02)
        children = Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text().split()
        yield Cluster(int(children[0]), folder, folder / "run")
