"""The host: the only door to the machine. Whoever reads, writes or runs anything there goes through it."""

from __future__ import annotations

import errno
import fnmatch
import os
import stat
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from hostprep import files
from hostprep.errors import HostError
from hostprep.host import process
from hostprep.model import Change, Unknown, Value

if TYPE_CHECKING:  # they cost too much for a check that does not need them
    from contextlib import AbstractContextManager

    from hostprep.host.contents import FileInfo
    from hostprep.host.network import Link
    from hostprep.host.nvml import Nvml
    from hostprep.host.processes import Namespace, Process, Workload
    from hostprep.host.reach import Resolved
    from hostprep.host.remote import Got, Trust

Runner = Callable[[Sequence[str], float, bytes], str]
T = TypeVar("T")
FILE = "FILE"  # in a command: the name of a file that it writes into
READ_LIMIT = 8 * 1024 * 1024  # bytes; /proc and configuration files are far below it
_DEV_NULL = os.makedev(1, 3)  # admin-guide/devices.txt
_HINTS = {
    errno.EPERM: "Is it immutable (lsattr), or this a container or a locked-down kernel?",
    errno.EROFS: "Find out why (findmnt -T, dmesg), and mount it read-write.",
    errno.ENOSPC: "Make room (df, df -i), then try again.",
    errno.EDQUOT: "Make room (quota), then try again.",
}


class FileState(NamedTuple):
    """A configuration file as it is: enough to put it back. `kind` is as state_kind() tells it."""

    kind: str
    data: bytes = b""  # the content of a file, the target of a link
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    attributes: str = ""  # extended ones (SELinux label, ACL), as files.attributes() tells them


ABSENT = FileState("absent")


class Space(NamedTuple):
    """Room of a mounted file system, in bytes."""

    size: int
    available: int  # to users without privilege
    inodes: int = -1  # -1: was not recorded; 0: the file system makes them as it goes
    inodes_free: int = -1


class Host:
    """Paths are absolute as on the real host; `root` decides where they really are.

    Every method raises HostError, with the path and the reason, when the host would not answer.
    """

    rehearsing = False  # are changes only noted, not made?

    def __init__(self, root: str = "/", run: Runner = process.run) -> None:
        self.root = root.rstrip("/")
        self._run = run
        self._keep: Callable[[str, FileState, FileState | None], None] | None = None
        self._remark: Callable[[Change, str], None] | None = None
        self._progress: Callable[[str], None] | None = None

    # -- looking ------------------------------------------------------------------------------

    def real(self, path: str) -> str:
        """Where a path of the host really is; symbolic links are followed within the root."""
        _must_be_a_path(path)
        return self.root + path if not self.root else _inside(self.root, path)

    def read(self, path: str) -> str | None:
        """The text of a file, stripped of white space around it; None when there is no such file."""
        data = self.read_bytes(path)
        return None if data is None else data.decode(errors="replace").strip()

    def read_bytes(self, path: str) -> bytes | None:
        """The content of a file; None when there is no such file. Anything else of that name is a HostError.

        /dev/null counts as an empty file: a link to it is how systemd and others mask a configuration file.
        """
        return self._read(path, None)

    def start(self, path: str, size: int) -> bytes | None:
        """The first bytes of a file, where reading on is not free: of a device's configuration space."""
        return self._read(path, size)

    def _read(self, path: str, start: int | None) -> bytes | None:
        try:
            # O_NONBLOCK: a FIFO where a file should be must not hold us up
            fd = os.open(self.real(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as e:
            if e.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise _host_error(path, e) from e
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode) and info.st_rdev != _DEV_NULL:
                raise HostError(f"{path}: is {_kind_of(info.st_mode)}, not a file")
            if start is not None:
                return os.read(fd, start)
            parts = []
            size = 0
            while chunk := os.read(fd, 65536):
                parts.append(chunk)
                size += len(chunk)
                if size > READ_LIMIT:
                    raise HostError(f"{path}: larger than {READ_LIMIT} bytes: not what hostprep expects there")
            return b"".join(parts)
        except OSError as e:
            raise _host_error(path, e) from e
        finally:
            os.close(fd)

    def size(self, path: str) -> int | None:
        """How many bytes a file has, or what a link leads to; None when there is no such file."""
        try:
            return os.stat(self.real(path)).st_size
        except OSError as e:
            if e.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise _host_error(path, e) from e

    def number(self, path: str) -> int:
        """The whole number that a kernel attribute holds. Missing or garbled is a HostError."""
        text = self.read(path)
        if text is None:
            raise HostError(f"{path}: not there")
        try:
            return int(text, 0)
        except ValueError:
            raise HostError(f"{path}: not a number: {process.clean(text, 60)!r}") from None

    def names(self, path: str) -> list[str]:
        """The sorted names in a directory; none when it is not there."""
        try:
            return sorted(os.listdir(self.real(path)))
        except OSError as e:
            if e.errno in (errno.ENOENT, errno.ENOTDIR):
                return []
            raise _host_error(path, e) from e

    def glob(self, pattern: str) -> list[str]:
        """The sorted absolute paths that match; `*` and `?` within one component."""
        found = [""]
        for part in pattern.strip("/").split("/"):
            if any(c in part for c in "*?["):
                found = [
                    f"{base}/{name}"
                    for base in found
                    for name in self.names(base or "/")
                    if fnmatch.fnmatchcase(name, part)
                ]
            else:
                found = [f"{base}/{part}" for base in found]
        # What was listed is there; a name that was not listed may not be.
        return found if any(c in part for c in "*?[") else [path for path in found if self.exists(path)]

    def exists(self, path: str) -> bool:
        """Is there anything of that name, be it a link that leads nowhere?"""
        return self.state_kind(path) != "absent"

    def link(self, path: str) -> str | None:
        """Where a symbolic link points, as written; None when there is no link."""
        try:
            return os.readlink(self._real_link(path))
        except OSError as e:
            if e.errno in (errno.ENOENT, errno.ENOTDIR, errno.EINVAL):
                return None
            raise _host_error(path, e) from e

    def state_kind(self, path: str) -> str:
        """file, link, directory, other (a device, a FIFO) or absent; a link is not followed."""
        try:
            mode = os.lstat(self._real_link(path)).st_mode
        except OSError as e:
            if e.errno in (errno.ENOENT, errno.ENOTDIR):
                return "absent"
            raise _host_error(path, e) from e
        kinds = {stat.S_IFLNK: "link", stat.S_IFDIR: "directory", stat.S_IFREG: "file"}
        return kinds.get(stat.S_IFMT(mode), "other")

    def state(self, path: str) -> FileState:
        """A file or link as it is now, whole."""
        kind = self.state_kind(path)
        if kind == "absent":
            return ABSENT
        try:
            info = os.lstat(self._real_link(path))
            attributes = files.attributes(self._real_link(path))
        except OSError as e:
            raise _host_error(path, e) from e
        data = b""
        if kind == "link":
            data = os.fsencode(self.link(path) or "")
        elif kind == "file":
            data = self.read_bytes(path) or b""
        return FileState(kind, data, stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, attributes)

    def resolve(self, path: str) -> str:
        """The path with all symbolic links followed, as seen from within the host."""
        if not self.root:
            return os.path.realpath(path)
        return _inside(self.root, path).removeprefix(self.root) or "/"

    def untrusted(self, path: str) -> str:
        """Who but root could have written a file of ours, or put another in its place; empty when nobody could."""
        if self.root or os.geteuid() != 0:  # a tree of files tells nothing of who may write where it came from
            return ""
        try:
            return files.untrusted(path)
        except OSError as e:
            raise _host_error(path, e) from e

    def space(self, path: str) -> Space:
        """Size and free room of the file system that holds a path. Hangs on a dead network mount."""
        if self.root:
            raise HostError(f"{path}: the room on it was not recorded")
        try:
            s = os.statvfs(self.real(path))
        except OSError as e:
            raise _host_error(path, e) from e
        return Space(s.f_blocks * s.f_frsize, s.f_bavail * s.f_frsize, s.f_files, s.f_favail)

    # the content of files: see contents.py

    def info(self, path: str) -> FileInfo | None:
        """What a path leads to: kind, size, mode, owner, time; None where nothing has that name."""
        from hostprep.host import contents

        try:
            return contents.info(self.real(path), self._real_link(path))
        except OSError as e:
            raise _host_error(path, e) from e

    def digest(self, path: str, algorithm: str, seconds: float) -> str:
        """The md5 or sha256 of a file; HostError where it takes longer than that."""
        from hostprep.host import contents

        try:
            return contents.digest(self.real(path), path, algorithm, seconds)
        except OSError as e:
            raise _host_error(path, e) from e

    def archive_fault(self, path: str, seconds: float) -> str:
        """Why an archive would not open, in words after its name; empty where all of it could be read."""
        from hostprep.host import contents

        try:
            return contents.archive_fault(self.real(path), path, seconds)
        except OSError as e:
            raise _host_error(path, e) from e

    def kernel(self) -> str:
        """The running kernel's release, as `uname -r` prints it."""
        release = self.read("/proc/sys/kernel/osrelease")
        if release is None:
            raise HostError("/proc/sys/kernel/osrelease: not there")
        return release

    def machine(self) -> str:
        """The architecture, as `uname -m` prints it."""
        if self.root:
            return self.run("uname", "-m").strip()
        return os.uname().machine

    def clock_synchronised(self) -> bool:
        """Does the kernel believe that its clock is disciplined?"""
        if self.root:
            raise HostError("clock state: was not recorded")
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        timex = (ctypes.c_long * 64)()  # modes 0: only look; larger than struct timex on any architecture
        state = libc.adjtimex(timex)
        if state < 0:
            raise HostError(f"adjtimex: {os.strerror(ctypes.get_errno())}")
        time_error = 5  # adjtimex(2): "not synchronized to a reliable server"
        return bool(state != time_error)

    def run(self, *argv: str, timeout: float = 10, stdin: bytes = b"") -> str:
        """The stdout of a command; anything but exit 0 within `timeout` seconds is a HostError."""
        return self._run(argv, timeout, stdin)

    def run_for_file(self, *argv: str, timeout: float = 10) -> str:
        """What a command writes into a file, whose name stands where `argv` has the word FILE; it is nowhere on disk.

        Errors are those of run().
        """
        fd = os.memfd_create("answer")
        try:
            self.run(*(f"/proc/{os.getpid()}/fd/{fd}" if word == FILE else word for word in argv), timeout=timeout)
            return os.pread(fd, READ_LIMIT, 0).decode(errors="replace")
        finally:
            os.close(fd)

    def together(self, works: Sequence[tuple[str, Callable[[], bytes]]], deadline: float) -> dict[str, bytes | str]:
        """Run functions at once, each in a child process; by name its answer, or why there is none (text)."""
        return {name: answer for name, (answer, _) in process.gather(works, deadline).items()}

    def links(self, names: Sequence[str], netns: str = "") -> dict[str, Link]:
        """Network interfaces, with what their driver tells of their VFs; those that are not there are left out.

        `netns` is the path of another network namespace, here and in what follows.
        """
        self._must_be_live("network interfaces")
        from hostprep.host import network

        return network.links(names, netns)

    def addresses(self, netns: str = "") -> dict[str, tuple[str, ...]]:
        """The addresses of each network interface, such as 10.0.0.1/24; link-local IPv6 ones are left out."""
        self._must_be_live("addresses")
        from hostprep.host import network

        return network.addresses(netns)

    def routes(self, netns: str = "") -> dict[str, tuple[str, ...]]:
        """What is routed through each network interface, such as default, 10.1.0.0/16; the main table only."""
        self._must_be_live("routes")
        from hostprep.host import network

        return network.routes(netns)

    # others on the network: see reach.py; nothing bounds how long the resolver takes

    def addresses_of(self, name: str) -> Resolved:
        """The addresses of a name, as programs on this host get them."""
        self._must_be_live(f"the addresses of {name}")
        from hostprep.host import reach

        return reach.addresses_of(name)

    def names_of(self, address: str) -> Resolved:
        """The name of an address, as programs on this host get it."""
        self._must_be_live(f"the name of {address}")
        from hostprep.host import reach

        return reach.names_of(address)

    def answers_arp(self, address: str, device: str, source: str, seconds: float = 3) -> bool:
        """Does a neighbour answer ARP, asked on this interface from this IPv4 address of ours?"""
        self._must_be_live(f"ARP for {address}")
        from hostprep.host import reach

        return reach.answers_arp(address, device, source, seconds)

    def http_get(self, url: str, trust: Trust | None, proxy: str, seconds: float, limit: int) -> Got:
        """What a server answers to one GET, or at which step it failed: see remote.py. None trusts anybody."""
        self._must_be_live(f"what {url} answers")
        from hostprep.host import remote

        return remote.get(url, trust, proxy, seconds, limit)

    def open_files(self, prefixes: Sequence[str]) -> dict[str, tuple[Process, ...]]:
        """Files, devices above all, whose path starts with one of these, and who has them open."""
        self._must_be_live("open files")
        from hostprep.host import processes

        return processes.open_files(prefixes)

    def workloads(self) -> list[Workload]:
        """The containers, VMs and Slurm steps that run here."""
        self._must_be_live("what runs on this host")
        from hostprep.host import processes

        return processes.workloads()

    def namespaces(self) -> list[Namespace]:
        """The other network namespaces, and who holds them."""
        self._must_be_live("network namespaces")
        from hostprep.host import processes

        return processes.namespaces()

    def netdevs_elsewhere(self, namespaces: Sequence[Namespace]) -> dict[str, tuple[str, Namespace]]:
        """By PCI address, the network interfaces in other namespaces: the name there, and where that is."""
        self._must_be_live("network interfaces in other namespaces")
        from hostprep.host import network

        return network.netdevs_elsewhere(namespaces)

    def uppers_elsewhere(self, namespaces: Sequence[Namespace]) -> dict[int, tuple[tuple[str, str, Namespace], ...]]:
        """By index of an interface of ours, what lies upon it in other namespaces: the name there, kind, and where."""
        self._must_be_live("network interfaces in other namespaces")
        from hostprep.host import network

        return network.uppers_elsewhere(namespaces)

    def nvml(self, addresses: Sequence[str], timeout: float = 20) -> Nvml:
        """What NVIDIA's management library tells of the GPUs at these PCI addresses, and of others that it has.

        To be asked only where the driver is loaded: NVML may load it. A child asks: a driver that is stuck keeps its
        callers, and a library that crashes takes them with it.
        """
        self._must_be_live("what NVML tells of GPUs")
        from hostprep.host import nvml

        return nvml.ask(addresses, timeout)

    def memory_bandwidth(self, cores: Sequence[tuple[int, int]], available: int, seconds: float) -> dict[int, int]:
        """Bytes a second that these cores (CPU, NUMA node) move in memory, all at once, by node: see bandwidth.py."""
        self._must_be_live("memory bandwidth")
        from hostprep.host import bandwidth

        may_use = os.sched_getaffinity(0)
        return bandwidth.measure([bandwidth.Core(*c) for c in cores if c[0] in may_use], available, seconds)

    def settled(self, ready: Callable[[], bool], timeout: float, subsystems: Sequence[str] = ("pci", "net")) -> bool:
        """Wait until devices have come or gone so that `ready` holds. False at the timeout."""
        if self.root:
            return ready()
        from hostprep.host import network

        return network.settled(ready, timeout, subsystems)

    def locked(self, path: str, timeout: float) -> AbstractContextManager[None]:
        """Hold another tool's lock file (flock(2)) meanwhile; HostError when it is held for `timeout` seconds."""
        from hostprep.host import network

        return network.locked(self.real(path), path, timeout)

    # -- changing -----------------------------------------------------------------------------

    def run_logged(self, *argv: str, log: str, timeout: float, directory: str = "/") -> None:
        """Run a command that takes long, in a directory: all that it says goes into a log file for root alone.

        Now and then its last line is told as progress. Anything but exit 0 within `timeout` seconds is a HostError.
        """
        real = self._real_link(log)
        try:
            os.makedirs(os.path.dirname(real), mode=0o700, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(real, flags, 0o600), "wb", buffering=0) as f:
                process.run_logged(argv, timeout, f, self.real(directory), self.progress)
        except OSError as e:
            raise _host_error(log, e) from e

    def unpacked(self, path: str, digest: str, into: str) -> AbstractContextManager[str]:
        """An archive (tar, compressed or not) unpacked meanwhile: the directory, below `into`, for us alone.

        `digest` is `md5:HEX` or `sha256:HEX`; nothing is unpacked from another content. See archives.unpacked().
        """
        from hostprep.host import archives

        return archives.unpacked(self.root, self.real(path), path, digest, self.real(into))

    def set_link(self, name: str, *, up: bool | None = None, mtu: int | None = None, netns: str = "") -> None:
        """Set a network interface up or down, and its MTU; None leaves it."""
        self._must_be_live("network interfaces")
        from hostprep.host import network

        network.set_link(name, up, mtu, netns)

    def set_vf(
        self,
        name: str,
        index: int,
        *,
        mac: str | None = None,
        vlan: int | None = None,
        qos: int | None = None,
        proto: str | None = None,
        trust: bool | None = None,
        spoofchk: bool | None = None,
        link: str | None = None,
        min_rate: int | None = None,
        max_rate: int | None = None,
        netns: str = "",
    ) -> None:
        """Set attributes of a VF through its PF's network interface, named as in network.Vf; None leaves them.

        VLAN 0 is no VLAN, and takes QoS and protocol with it.
        """
        wanted: dict[str, Any] = {"mac": mac, "vlan": vlan, "qos": qos, "proto": proto, "min_rate": min_rate}
        wanted |= {"max_rate": max_rate, "spoofchk": spoofchk, "link": link, "trust": trust}
        self._set_vf(name, index, {key: value for key, value in wanted.items() if value is not None}, netns)

    def _set_vf(self, name: str, index: int, wanted: dict[str, Any], netns: str) -> None:
        self._must_be_live("network interfaces")
        from hostprep.host import network

        network.set_vf(name, index, wanted, netns)

    def set_gpu(self, address: str, name: str, value: Value, timeout: float = 60) -> None:
        """Set persistence, ecc, mig (bool), compute-mode (str) or instances of a GPU by NVML; a child does it.

        `instances` are MIG profiles (1g.10gb), each to become a GPU instance with one compute instance: these and no
        others. ECC and, while the GPU is in use, MIG take effect at its next reset only.
        """
        self._must_be_live("GPUs")
        from hostprep.host import nvml

        nvml.change(address, name, value, timeout)

    def write(self, path: str, text: str, timeout: float = 60) -> None:
        """Write a kernel attribute: in place, in one write(2), and only if it is there.

        A child does it: a driver may keep a writer in the kernel for ever (i40e, vfio), and we must be able
        to say so.
        """
        real = self.real(path)

        def attempt_write() -> bytes:
            try:
                fd = os.open(real, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
                os.write(fd, text.encode())
                os.close(fd)
            except OSError as e:
                return str(e.errno).encode()
            return b"0"

        answer, _ = process.gather([(path, attempt_write)], timeout)[path]
        if isinstance(answer, str):
            raise HostError(f"{path}: {answer}")
        if code := int(answer):
            raise _host_error(path, OSError(code, os.strerror(code)))

    def replace(self, path: str, data: str | bytes | None) -> None:
        """Replace a configuration file whole, keeping its mode, owner and labels, or remove it when data is None.

        Of a symbolic link it is the target that is replaced. Another hard link to the file keeps the old content.
        """
        if data is None:
            self.restore(path, ABSENT)
            return
        path = self.resolve(path)
        before = self.state(path)
        content = data.encode() if isinstance(data, str) else data
        new = before._replace(data=content) if before.kind == "file" else _of_ours("file", content, 0o644)
        self.restore(path, new)

    def edit_secret(
        self, path: str, edit: Callable[[bytes], bytes], who: tuple[str, int, int], what: str, timeout: float = 10
    ) -> None:
        """Change a file of secrets that a user (name, uid, gid) has: nobody is told, or keeps, what it was.

        A child does it with that user's rights, so a link there leads nowhere that they could not go. `what` it is
        that goes is said in a plan.
        """
        from hostprep.host import secret

        become = who if os.geteuid() == 0 and not self.root else None
        if why := secret.edit(self.real(path), edit, become, timeout):
            raise HostError(f"{path}: {why}")

    def symlink(self, path: str, target: str) -> None:
        """Make a symbolic link where nothing, or another link, is."""
        self.restore(path, _of_ours("link", target.encode(), 0o777))

    def restore(self, path: str, state: FileState) -> None:
        """Make a file exactly this, through one rename; directories are made and removed with it."""
        before = self.state(path)
        if before == state:
            return
        if "directory" in (before.kind, state.kind) and ABSENT not in (before, state):
            raise HostError(f"{path}: is a directory")
        if before.kind == "other":  # above all /dev/null, where the link of a masked unit or drop-in leads
            raise HostError(f"{path}: is a device or a FIFO, which hostprep does not replace")
        if state.kind != "absent":
            self.make_directory(os.path.dirname(path))
        self.note_change(path, before, state)
        real = self._real_link(path)
        owner = (state.uid, state.gid) if os.geteuid() == 0 else None
        try:
            if state.kind == "absent":
                (os.rmdir if before.kind == "directory" else os.unlink)(real)
            elif state.kind == "directory":
                os.mkdir(real, 0o700)
                if owner:
                    os.chown(real, *owner)
                os.chmod(real, state.mode)
            elif state.kind == "link":
                files.replace_link(real, state.data, owner)
            else:
                # A fixed name, since only one hostprep changes a host: what a killed one left is found again.
                files.replace(real, state.data, state.mode, owner, state.attributes, files.temporary_name(real))
            files.sync_directory(os.path.dirname(real))
        except OSError as e:
            raise _host_error(path, e) from e

    def read_only(self, path: str) -> bool:
        """Is the file system that a file is in, or would be made in, mounted read-only?"""
        while not self.exists(path) and path not in ("", "/"):
            path = os.path.dirname(path)
        try:
            return bool(os.statvfs(self.real(path or "/")).f_flag & os.ST_RDONLY)
        except OSError as e:
            raise _host_error(path, e) from e

    def must_be_writable(self, path: str) -> None:
        """HostError where a file is, or would be made, in a file system that is mounted read-only."""
        if self.read_only(path):
            raise _host_error(path, OSError(errno.EROFS, os.strerror(errno.EROFS)))

    def discard_leftover(self, path: str) -> None:
        """Remove what a tool or a killed hostprep has left beside a file of the new one in the making."""
        temporary = files.temporary_name(self._real_link(path))
        for leftover in (temporary, f"{temporary}.new"):  # grub-mkconfig adds .new of its own
            if os.path.lexists(leftover):
                try:
                    os.unlink(leftover)
                except OSError as e:
                    raise _host_error(leftover, e) from e

    def note_change(self, path: str, before: FileState, after: FileState | None) -> None:
        """Tell whoever keeps the old files; `after` is None where a foreign tool is about to write."""
        if self._keep is not None:
            self._keep(path, before, after)

    def remark(self, change: Change, word: str) -> None:
        """Tell whoever journals a change what a tool said of it that no later look shows, such as `power-cycle`."""
        if self._remark is not None:
            self._remark(change, word)

    def progress(self, line: str) -> None:
        """Tell whoever watches how far a long change has come."""
        if self._progress is not None:
            self._progress(line)

    def keeping(
        self,
        keep: Callable[[str, FileState, FileState | None], None],
        remark: Callable[[Change, str], None] | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> Host:
        """The same host, which tells `keep` what a file was before it is changed, `remark` what tools remark, and
        `progress` how far a long change has come."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _keep=keep, _remark=remark, _progress=progress)
        return other

    def make_directory(self, path: str) -> None:
        """Make a directory, and those above it, where there is none."""
        if path in ("", "/") or self.exists(path):
            return
        self.make_directory(os.path.dirname(path))
        self.restore(path, _of_ours("directory", b"", 0o755))

    def _must_be_live(self, what: str) -> None:
        """The running kernel is asked for this, which a tree of files cannot answer."""
        if self.root:
            raise HostError(f"{what}: was not recorded")

    def _real_link(self, path: str) -> str:
        """Like real(), but the last component is not followed."""
        _must_be_a_path(path)
        directory, _, name = path.rpartition("/")
        if name in ("", ".", ".."):
            return self.real(path)
        return f"{self.real(directory)}/{name}" if self.root else path


def attempt(read: Callable[..., T], *args: object) -> T | Unknown:
    """What `read` returns, or Unknown with the reason when the host would not answer."""
    try:
        return read(*args)
    except HostError as e:
        return Unknown(str(e))


def _must_be_a_path(path: str) -> None:
    """Paths are made of what a host says, which may be garbage."""
    if "\0" in path:
        raise HostError(f"{process.clean(path, 60)!r}: no path has a NUL in it")


def _of_ours(kind: str, data: bytes, mode: int) -> FileState:
    """Something that hostprep makes where nothing was."""
    return FileState(kind, data, mode, os.geteuid(), os.getegid())


def _kind_of(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFDIR: "a directory", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _host_error(path: str, e: OSError) -> HostError:
    code = e.errno or 0
    if code in (errno.EACCES, errno.EPERM) and os.geteuid() != 0:
        return HostError(f"{path}: needs root", code=code)
    return HostError(f"{path}: {e.strerror}", _HINTS.get(code, ""), code=code)


def _inside(root: str, path: str) -> str:
    """Follow the links of a path as chroot(2) would, so that a recorded tree never leads to this machine's files."""
    done: list[str] = []
    todo = path.split("/")[::-1]
    links = 0
    while todo:
        part = todo.pop()
        if part in ("", "."):
            continue
        if part == "..":
            done[-1:] = []
            continue
        here = "/".join([root, *done, part])
        try:
            target = os.readlink(here)
        except OSError:
            done.append(part)
            continue
        links += 1
        if links > 40:
            raise HostError(f"{path}: too many symbolic links")
        if target.startswith("/"):
            done = []
        todo += target.split("/")[::-1]
    return "/".join([root, *done])
