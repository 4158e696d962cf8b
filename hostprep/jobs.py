"""What runs on this host for others, and a live change may disturb: jobs of PBS and Slurm, containers, VMs.

A PBS job is a file of pbs_mom, from before its first process until after its last one, while it is suspended too.
All else is seen by its processes. What cannot be told is taken as running.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hostprep.errors import HostError
from hostprep.host import Host
from hostprep.host.process import clean
from hostprep.model import Unknown

if TYPE_CHECKING:
    from hostprep.host.processes import Workload

PBS_CONF = "/etc/pbs.conf"
PBS_HOME = "/var/spool/pbs"  # where pbs.conf names no other
DOCKER = "/var/lib/docker/containers"
SHOWN = 3  # so many are named, the rest are counted
DEADLINE = 20.0  # seconds


def running(host: Host) -> tuple[str, ...]:
    """Each job, container and VM in a phrase that names it, sorted. HostError where it cannot be told."""
    found = {f"PBS job {job}" for job in _pbs_jobs(host)} | {_phrase(host, work) for work in host.workloads()}
    return tuple(sorted(clean(phrase, 120) for phrase in found))


def listing(host: Host) -> str | Unknown:
    """What runs, in part of a sentence; "" where nothing does, Unknown where it cannot be told.

    A child asks: /proc of a process that is stuck, and PBS_HOME on a dead NFS mount, would keep us for ever.
    """

    def work() -> bytes:
        try:
            return json.dumps(running(host)).encode()
        except HostError as e:
            return json.dumps(str(e)).encode()

    answer = host.together([("jobs", work)], DEADLINE)["jobs"]
    found = answer if isinstance(answer, str) else json.loads(answer)
    if isinstance(found, str):
        return Unknown(found)
    named, more = found[:SHOWN], len(found) - SHOWN
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def _pbs_jobs(host: Host) -> Iterator[str]:
    """The jobs that pbs_mom has here, by the files that it keeps: of array jobs `1[3].server.JB`."""
    settings = dict(_assignments(host.read(PBS_CONF) or ""))
    home = settings.get("PBS_MOM_HOME") or settings.get("PBS_HOME") or PBS_HOME
    if not home.startswith("/"):
        raise HostError(f"{PBS_CONF}: {home!r} is no absolute path")
    for name in host.names(f"{home}/mom_priv/jobs"):
        if name.endswith(".JB"):
            yield name.removesuffix(".JB")


def _assignments(text: str) -> Iterator[tuple[str, str]]:
    """pbs.conf, which is read by pbs_mom and by a shell."""
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and not name.lstrip().startswith("#"):
            yield name.strip().removeprefix("export "), value.strip().strip("\"'")


def _phrase(host: Host, work: Workload) -> str:
    if work.kind == "VM":
        program = "qemu" if work.program.startswith("qemu") else work.program
        return " ".join(filter(None, ("VM", work.name, f"({program}, pid {work.pid})")))
    if not work.name:
        return f"{work.kind} (pid {work.pid})"
    label = work.label or (_docker_name(host, work.name) if work.kind == "docker" else "")
    return f"{work.kind} {work.name}" + (f" ({label})" if label else "")


def _docker_name(host: Host, short: str) -> str:
    """The name of a container, where Docker keeps it in its usual place."""
    try:
        for path in host.glob(f"{DOCKER}/{short}*/config.v2.json"):
            name = json.loads(host.read(path) or "{}").get("Name")
            return name.removeprefix("/") if isinstance(name, str) else ""
    except (HostError, ValueError, AttributeError):
        pass  # it only says more
    return ""
