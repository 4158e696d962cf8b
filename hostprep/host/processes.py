"""Who is on this machine besides us: processes with device files open, and network namespaces."""

from __future__ import annotations

import errno
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
)
_RUNTIMES = {"docker": "docker", "libpod_parent": "podman", "default": "containerd", "k8s.io": "containerd"}
_ID = re.compile(r"[0-9a-f]{64}")
_NAME_LENGTH = 12  # what `docker ps`, `crictl ps` and `podman ps` show of an id


class Process(NamedTuple):
    """A process, and the container, VM or service that it belongs to; "" where it is none of them."""

    pid: int
    name: str
    unit: str

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.unit, f"pid {self.pid} {self.name}")))


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
        try:
            with os.scandir(f"/proc/{pid}/fd") as entries:
                for entry in entries:
                    if (target := _link(entry.path)) and target.startswith(wanted):
                        found.setdefault(target.removesuffix(" (deleted)"), set()).add(pid)
        except OSError as e:
            if e.errno not in _GONE:
                raise _unreadable(f"/proc/{pid}/fd", e) from e
    return {path: tuple(map(process, sorted(pids))) for path, pids in sorted(found.items())}


def process(pid: int) -> Process:
    """What a process is; one that has gone has no name."""
    return Process(pid, _text(f"/proc/{pid}/comm").strip() or "?", unit(_text(f"/proc/{pid}/cgroup")))


def unit(cgroups: str) -> str:
    """The container, VM or service that cgroups(7), as /proc/PID/cgroup lists them, belong to; "" if none."""
    paths = [path for line in cgroups.splitlines() if (path := line.partition(":")[2].partition(":")[2])]
    for path in paths:
        parts = path.replace("\\x2d", "-").strip("/").split("/")
        for above, part in zip(("", *parts), parts, strict=False):
            for pattern, kind in _UNITS:
                if match := pattern.fullmatch(part):
                    groups = match.groupdict()
                    return f"{kind} {groups.get('name') or groups['id'][:_NAME_LENGTH]}"
            if _ID.fullmatch(part):
                return f"{_RUNTIMES.get(above, 'container')} {part[:_NAME_LENGTH]}"
            if above == "lxc":
                return f"lxc {part}"
    services = [part for path in paths for part in path.split("/") if part.endswith(".service")]
    return services[-1] if services else ""


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
