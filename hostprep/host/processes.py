"""Who is on this machine besides us: containers, VMs, steps of jobs, holders of device files, network namespaces."""

from __future__ import annotations

import errno
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hostprep.errors import HostError

_GONE = (errno.ENOENT, errno.ESRCH)  # what /proc says of a process that has ended meanwhile
_NSFS_ROOT = re.compile(r"net:\[(\d+)\]")

# How container runtimes and libvirt call the cgroups that they make: with systemd's driver a scope, with the cgroupfs
# driver a directory. Where one is within another (kind), the outer one is what the host's own tools know.
_UNITS = (
    (re.compile(r"docker-(?P<id>[0-9a-f]{64})\.scope"), "docker"),
    (re.compile(r"cri-containerd-(?P<id>[0-9a-f]{64})\.scope"), "containerd"),
    (re.compile(r"nerdctl-(?P<id>[0-9a-f]{64})\.scope"), "containerd"),
    (re.compile(r"crio-(?P<id>[0-9a-f]{64})(\.scope)?"), "cri-o"),
    (re.compile(r"libpod-(?P<id>[0-9a-f]{64})(\.scope)?"), "podman"),
    (re.compile(r"machine-qemu-\d+-(?P<name>.+)\.scope"), "libvirt"),
    (re.compile(r"machine-lxc-\d+-(?P<name>.+)\.scope"), "lxc"),
    (re.compile(r"lxc\.payload\.(?P<name>.+)"), "lxc"),
    (re.compile(r"machine-(?P<name>.+)\.scope"), "machine"),  # systemd-machined: nspawn, vmspawn
    (re.compile(r"systemd-nspawn@(?P<name>.+)\.service"), "machine"),
)
_RUNTIMES = {"docker": "docker", "libpod_parent": "podman", "default": "containerd", "k8s.io": "containerd"}
_ID = re.compile(r"[0-9a-f]{64}")
_NAME_LENGTH = 12  # what `docker ps`, `crictl ps` and `podman ps` show of an id

# Slurm's cgroups, v1 (/slurm_node1/uid_7/job_42/step_0) and v2 (.../slurmstepd.scope/job_42/step_batch/user), and the
# title of the daemon that each step has.
_SLURM_CGROUP = re.compile(r"/(?:slurm[^/]*|[^/]*slurmstepd\.scope)/(?:uid_\d+/)?job_(\d+)(?:/step_(\w+))?(?:/|$)")
_SLURM_TITLE = re.compile(r"slurmstepd: \[([\w.+-]+)\] *")
_KVM = ("anon_inode:kvm-vm", "/dev/kvm")  # a VM of KVM, whoever runs it
_EMULATORS = ("qemu-system-", "qemu-kvm")  # they run VMs without KVM too
_INIT = 1  # nobody's VM and in no image, and too mighty to be looked into by a root without all capabilities
_IMAGES = ("APPTAINER_CONTAINER=", "SINGULARITY_CONTAINER=")  # in the environment of all that runs in one


class Process(NamedTuple):
    """A process, and the container, VM or service that it belongs to; "" where it is none of them."""

    pid: int
    name: str
    unit: str

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.unit, f"pid {self.pid} {self.name}")))


class Workload(NamedTuple):
    """Something that runs here for others: a container, a VM, or a step of a Slurm job."""

    kind: str  # docker, podman ..., "VM", "Slurm step" or "Slurm job"
    name: str  # the id or name that its own tools show; "" where that cannot be told
    label: str  # what a person calls it, where that is something else
    program: str
    pid: int  # one of its processes


class Namespace(NamedTuple):
    """A network namespace other than ours: where setns(2) finds it, and who holds it, for a person to read."""

    path: str
    inode: int
    holder: str


def open_files(prefixes: Sequence[str]) -> dict[str, tuple[Process, ...]]:
    """Files whose path starts with one of these, and the processes that have them open. One pass over /proc.

    A process that ends meanwhile has closed them. One that cannot be looked into makes the answer incomplete,
    which is a HostError.
    """
    wanted = tuple(prefixes)
    found: dict[str, set[int]] = {}
    for pid in _pids():
        for target in _opened(pid, wanted):
            found.setdefault(target.removesuffix(" (deleted)"), set()).add(pid)
    return {path: tuple(map(process, sorted(pids))) for path, pids in sorted(found.items())}


def _opened(pid: int, wanted: tuple[str, ...]) -> list[str]:
    """What a process has open whose name starts with one of these."""
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            return [target for entry in entries if (target := _link(entry.path)).startswith(wanted)]
    except OSError as e:
        if e.errno in _GONE:
            return []
        raise _unreadable(f"/proc/{pid}/fd", e) from e


def process(pid: int) -> Process:
    """What a process is; one that has gone has no name."""
    return Process(pid, _text(f"/proc/{pid}/comm").strip() or "?", unit(_text(f"/proc/{pid}/cgroup")))


def unit(cgroups: str) -> str:
    """The container, VM or service that cgroups(7), as /proc/PID/cgroup lists them, belong to; "" if none."""
    if container := _container(cgroups):
        return " ".join(container)
    services = [part for path in _cgroup_paths(cgroups) for part in path.split("/") if part.endswith(".service")]
    return services[-1] if services else ""


def _cgroup_paths(cgroups: str) -> list[str]:
    return [path for line in cgroups.splitlines() if (path := line.partition(":")[2].partition(":")[2])]


def _container(cgroups: str, ours: Sequence[tuple[str, str]] = ()) -> tuple[str, str] | None:
    """The kind and the name of the container or VM that cgroups belong to: the outermost that is not `ours`."""
    for path in _cgroup_paths(cgroups):
        found = _containers(path)
        if found[: len(ours)] == list(ours):
            found = found[len(ours) :]
        if found:
            return found[0]
    return None


def _containers(path: str) -> list[tuple[str, str]]:
    """The containers and VMs along the path of a cgroup, the outermost first."""
    found = []
    parts = path.replace("\\x2d", "-").strip("/").split("/")
    for above, part in zip(("", *parts), parts, strict=False):
        matches = ((kind, match.groupdict()) for pattern, kind in _UNITS if (match := pattern.fullmatch(part)))
        if known := next(matches, None):
            kind, groups = known
            found.append((kind, groups.get("name") or groups["id"][:_NAME_LENGTH]))
        elif _ID.fullmatch(part):
            found.append((_RUNTIMES.get(above, "container"), part[:_NAME_LENGTH]))
        elif above == "lxc":
            found.append(("lxc", part))
    return found


def workloads() -> list[Workload]:
    """The containers, VMs and Slurm steps that run here, but for the container that we are in. One pass over /proc.

    What ends meanwhile runs no more. A process that cannot be looked into makes the answer incomplete, which is a
    HostError.
    """
    found: dict[tuple[str, str, int], Workload] = {}
    ours = max(map(_containers, _cgroup_paths(_look("/proc/self/cgroup"))), key=len, default=[])
    for pid in _pids():
        for work in _works_for(pid, ours):
            one = (work.kind, work.name, 0 if work.name else pid)
            known = found.setdefault(one, work)
            if work.label and not known.label:  # podman's monitor knows the name, what it started does not
                found[one] = known._replace(label=work.label)
    return sorted(found.values())


def _works_for(pid: int, ours: Sequence[tuple[str, str]]) -> list[Workload]:
    """The workloads that a process is part of: of a VM in a container, both."""
    program, cgroups = _look(f"/proc/{pid}/comm").strip(), _look(f"/proc/{pid}/cgroup")
    works = []
    container = _container(cgroups, ours)
    opened = [] if pid == _INIT else _opened(pid, _KVM)
    is_vm = bool(opened) or program.startswith(_EMULATORS)
    if is_vm or (container and container[0] == "libvirt"):
        name = container[1] if container and container[0] == "libvirt" else _vm_name(_argv(pid))
        works.append(Workload("VM", name, "", program, pid))
    if container and container[0] != "libvirt":
        works.append(Workload(*container, "", program, pid))
    elif not container and (kept := _monitored(program, pid)):
        works.append(Workload(*kept, program, pid))
    if step := _slurm(program, cgroups, pid):
        works.append(Workload(*step, "", program, pid))
    variables = [] if pid == _INIT else _look(f"/proc/{pid}/environ").split("\0")
    images = (v.removeprefix(prefix) for prefix in _IMAGES for v in variables if v.startswith(prefix))
    if image := next(filter(None, images), ""):
        works.append(Workload("apptainer", image, "", program, pid))
    return works


def _vm_name(argv: Sequence[str]) -> str:
    """The name in the words of a hypervisor: `-name web1` or `-name guest=web1,debug-threads=on` of QEMU."""
    for option, value in itertools.pairwise(argv):
        if option in ("-name", "--name", "--id"):
            words = value.split(",")
            return next((w.removeprefix("guest=") for w in words if w.startswith("guest=")), words[0])
    return ""


def _monitored(program: str, pid: int) -> tuple[str, str, str] | None:
    """The container that a process outside of it watches over: kind, name, label.

    Some containers have no cgroup of their own (rootless podman on cgroup v1), or one that says nothing (`ctr run`).
    """
    if program not in ("conmon", "containerd-shim") or _has_ended(pid):
        return None
    argv = _argv(pid)
    options = dict(itertools.pairwise(argv))
    if program == "conmon":
        kind = "podman" if any("podman" in word or "libpod" in word for word in argv) else "cri-o"
        name, label = options.get("-c", options.get("--cid", "")), options.get("-n", options.get("--name", ""))
    else:
        kind = "docker" if options.get("-namespace") == "moby" else "containerd"
        name, label = options.get("-id", ""), ""
    return kind, name[:_NAME_LENGTH] if _ID.fullmatch(name) else name, label


def _slurm(program: str, cgroups: str, pid: int) -> tuple[str, str] | None:
    """The step or job of Slurm that a process is part of. A step's processes may outlive its slurmstepd."""
    for path in _cgroup_paths(cgroups):
        if match := _SLURM_CGROUP.search(path):
            return ("Slurm step", f"{match[1]}.{match[2]}") if match[2] else ("Slurm job", match[1])
    argv = _argv(pid)
    holds_scope = argv[1:2] == ["infinity"]  # of Slurm's cgroups, as long as slurmd runs; since 22.05
    if program != "slurmstepd" or holds_scope or _has_ended(pid):
        return None
    match = _SLURM_TITLE.fullmatch(" ".join(argv))
    return "Slurm step", match[1] if match else ""


def _argv(pid: int) -> list[str]:
    """The words of a command line; none of a process that is just starting or has ended."""
    return [word for word in _look(f"/proc/{pid}/cmdline").rstrip("\0").split("\0") if word]


def _has_ended(pid: int) -> bool:
    """Has it gone, or is it a zombie, which somebody has only to take notice of?"""
    return not _link(f"/proc/{pid}/exe")


def _look(path: str) -> str:
    """The text of a file of a process; "" when that has gone."""
    try:
        with open(path, errors="replace") as f:
            return f.read()
    except OSError as e:
        if e.errno in _GONE:
            return ""
        raise _unreadable(path, e) from e


def namespaces() -> list[Namespace]:
    """The network namespaces other than ours that a process is in, or that are mounted where we see it.

    One that is held by nothing but an open file, or by a thread that left its process's, is not found.
    """
    try:
        ours = os.stat("/proc/self/ns/net").st_ino
    except OSError as e:
        raise _unreadable("/proc/self/ns/net", e) from e
    mounts = _mounted(_text("/proc/self/mountinfo", must_be=True))
    holders = _inhabited()
    found = []
    for inode in (mounts.keys() | holders.keys()) - {ours}:
        path = mounts.get(inode) or f"/proc/{holders[inode]}/ns/net"
        found.append(Namespace(path, inode, _holder(mounts.get(inode, ""), holders.get(inode))))
    return sorted(found)


def _holder(mount: str, pid: int | None) -> str:
    if pid is None:
        return mount
    there = process(pid)
    container = there.unit and not there.unit.endswith(".service")  # which says more than where its namespace lies
    return str(there) if container or not mount else f"{mount}, {there}"


def _inhabited() -> dict[int, int]:
    """Inodes of network namespaces, and the lowest pid in each."""
    found: dict[int, int] = {}
    for pid in _pids():
        target = _link(f"/proc/{pid}/ns/net")
        if target and (match := _NSFS_ROOT.fullmatch(target)):
            found.setdefault(int(match[1]), pid)
    return found


def _mounted(mountinfo: str) -> dict[int, str]:
    """Inodes of network namespaces, and the first path at which each is mounted (`ip netns add`, CNI, Docker)."""
    found: dict[int, str] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if after.startswith("nsfs ") and len(fields) > 4 and (match := _NSFS_ROOT.fullmatch(fields[3])):
            path = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[4])
            inode = int(match[1])
            found[inode] = min(found.get(inode, path), path)
    return found


def _pids() -> Iterator[int]:
    try:
        names = os.listdir("/proc")
    except OSError as e:
        raise _unreadable("/proc", e) from e
    if str(_INIT) not in names:  # proc(5), hidepid: all but our own are hidden from who is not root
        raise _unreadable("/proc", PermissionError(errno.EACCES, "shows not all processes"))
    return iter(sorted(int(name) for name in names if name.isdigit()))


def _link(path: str) -> str:
    """Where a link of /proc leads; "" when it has gone."""
    try:
        return os.readlink(path)
    except OSError as e:
        if e.errno in _GONE:
            return ""
        raise _unreadable(path, e) from e


def _text(path: str, must_be: bool = False) -> str:
    """The text of a file of /proc; "" when it cannot be read: all but `must_be` only describe."""
    try:
        with open(path, errors="replace") as f:
            return f.read()
    except OSError as e:
        if must_be:
            raise _unreadable(path, e) from e
        return ""


def _unreadable(path: str, e: OSError) -> HostError:
    if e.errno in (errno.EACCES, errno.EPERM) and os.geteuid() != 0:
        return HostError(f"{path}: needs root", code=e.errno)
    return HostError(
        f"{path}: {e.strerror}", "Is this a container, or root without all capabilities?", code=e.errno or 0
    )
