"""Hardware: CPUs, memory, disk space, Ethernet ports and NUMA nodes, and what kind of machine this is.

    hardware:
      cpus: 8                    # logical CPUs online, at least
      cores: 8                   # physical cores, at least
      memory: 32GB               # MemTotal, at least; 32GB is decimal, so that a 32 GiB machine passes
      disk: {/: 100GB}           # size of the partition or volume that holds the path, at least
      free: {/var/lib: 20GB}     # free room there, at least
      ethernet: 1                # physical Ethernet ports, at least (no VFs, bridges, bonds, Wi-Fi)
      numa_nodes: 2              # nodes with memory, at least
      architecture: x86_64
      machine: physical          # or vm, or container

Firmware and kernel keep some of the memory that is installed: MemTotal of a machine with 32 GiB reads about
31.2 GiB. Ask for 32GB and it passes, ask for 32GiB and it does not.

A file system keeps 1 to 2 % of its partition for itself, and so reads less than 100GB on one of 100 GB: disk is the
size of the partition or volume (any block device) that the file system lies on. It is the size of the file system
where no single device is below it (btrfs, ZFS, tmpfs, overlay), and where it fills less than 90 % of its device, as
one that was never grown does.

A file system that another machine serves (NFS, Lustre ...) is not asked and so unknown: when its server is gone,
whoever asks waits for ever. Paths are taken as written, symbolic links in them are not followed.

Nothing here can be changed by hostprep, and a reboot changes none of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from hostprep import bootloader
from hostprep.errors import HostError
from hostprep.host import Host, Space, attempt
from hostprep.model import Desired, Fact, Facts, Goals, Section, Suggestion, Unknown
from hostprep.quantities import BYTES_PATTERN, parse_bytes, show_bytes, size_below

NAME = "hardware"
MOVING = ("free/*",)

# Absolute, as mountinfo has them: no empty name, no `.` or `..`, no slash at the end
PATH = r"^(/|(/(?!\.{1,2}(/|$))[^/\x00-\x1f]+)+)$(?!\n)"
_AT_LEAST = {"type": "integer", "minimum": 1}
_SIZE = {"type": ["string", "integer"], "pattern": BYTES_PATTERN, "description": "a size such as 32GB or 32GiB"}
_SIZES = {
    "type": "object",
    "patternProperties": {PATH: _SIZE},
    "additionalProperties": False,
    "minProperties": 1,
}
SCHEMA = {
    "description": "Minimums of the machine.",
    "type": "object",
    "properties": {
        "cpus": {**_AT_LEAST, "description": "logical CPUs online, at least"},
        "cores": {**_AT_LEAST, "description": "physical cores, at least"},
        "memory": _SIZE,
        "disk": {**_SIZES, "description": "size of the partition or volume that holds a path, at least"},
        "free": {**_SIZES, "description": "free room in the file system that holds a path, at least"},
        "ethernet": {"type": "integer", "minimum": 0, "description": "physical Ethernet ports, at least"},
        "numa_nodes": {**_AT_LEAST, "description": "NUMA nodes with memory, at least"},
        "architecture": {"type": "string", "description": "as uname -m prints it"},
        "machine": {"enum": ["physical", "vm", "container"]},
    },
    "additionalProperties": False,
    "minProperties": 1,
}

CPUS = "/sys/devices/system/cpu"
NODES = "/sys/devices/system/node"
HYPERVISORS = ("/sys/hypervisor/type", "/proc/device-tree/hypervisor")
SECTOR = 512  # bytes: the unit of sysfs, whatever the device's own is
FILLED = 0.9  # of its device, by a file system that was made for all of it
ETHERNET = "1"  # ARPHRD_ETHER
# File systems that answer at once. Any other kind that holds files may be served by another machine, and hang.
LOCAL = frozenset(
    (
        *("bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "ntfs3", "overlay", "reiserfs"),
        *("tmpfs", "vfat", "xfs", "zfs"),
    )
)
# The kernel's own, and images that are always full: there is no room to be had.
NOT_FOR_FILES = frozenset(
    (
        *("binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs"),
        *("erofs", "fusectl", "fuse.lxcfs", "hugetlbfs", "iso9660", "mqueue", "nsfs", "proc", "pstore", "ramfs"),
        *("resctrl", "rpc_pipefs", "securityfs", "selinuxfs", "smackfs", "squashfs", "sysfs", "tracefs"),
    )
)
# tmpfs and overlay below these are the system's own, or one for each container
NOT_THE_ADMINS = (
    *("/dev", "/proc", "/run", "/sys"),
    *("/var/lib/containerd", "/var/lib/containers", "/var/lib/docker", "/var/lib/kubelet"),
)
REPRESENTOR = r"(c\d+)?pf\d+(vf|sf)\d+"  # phys_port_name of the host's end of a VF (devlink-port)
# Makers of virtual machines in DMI, as systemd-detect-virt knows them.
VM_VENDORS = (
    *("QEMU", "KVM", "KubeVirt", "OpenStack", "VMware", "VMW", "innotek", "VirtualBox", "Xen", "Bochs", "Parallels"),
    *("BHYVE", "Hyper-V", "Virtual Machine", "Apple Virtualization", "Amazon EC2", "Google Compute Engine"),
)


def inspect(host: Host) -> Facts:
    facts = {
        "cpus": Fact.fixed(attempt(_cpus, host)),
        "cores": Fact.fixed(attempt(_cores, host)),
        "memory": Fact.fixed(attempt(_memory, host)),
        "ethernet": Fact.fixed(attempt(_ethernet, host)),
        "numa_nodes": Fact.fixed(attempt(_numa_nodes, host)),
        "architecture": Fact.fixed(attempt(host.machine)),
        "machine": Fact.fixed(attempt(_machine, host)),
    }
    mounts = attempt(_mounts, host)
    if isinstance(mounts, Unknown):
        return facts | {"disk/": Fact.fixed(mounts), "free/": Fact.fixed(mounts)}
    for where, mount in mounts.items():
        room = attempt(_room, host, mount)
        facts[f"disk{where}"] = Fact.fixed(room if isinstance(room, Unknown) else room.size)
        facts[f"free{where}"] = Fact.fixed(room if isinstance(room, Unknown) else room.available)
    return facts


def decide(facts: Facts, want: Section) -> Goals:
    goals: dict[str, Desired] = {}
    for key, value in want.items():
        if key in ("disk", "free"):
            for path, size in value.items():
                goals[f"{key}{path}"] = _minimum(parse_bytes(size), "bytes", of=_holder(facts, key, path))
        elif key == "memory":
            goals[key] = _minimum(parse_bytes(value), "bytes")
        elif isinstance(value, int):
            goals[key] = _minimum(value)
        else:
            goals[key] = Desired(value, live=False, persist=False, fix="This profile is for another kind of machine.")
    return goals


def suggest(facts: Facts) -> Suggestion:
    now = {key: fact.current for key, fact in facts.items() if not isinstance(fact.current, Unknown)}
    section: dict[str, Any] = {key: now[key] for key in ("cpus", "cores") if key in now}
    notes = {}
    if isinstance(memory := now.get("memory"), int):
        section["memory"] = size_below(memory)
        notes["memory"] = f"this host has {show_bytes(memory)}; rounded down, as firmware keeps some for itself"
    disks = {key.removeprefix("disk"): size for key, size in now.items() if key.startswith("disk/")}
    large = {path: size for path, size in disks.items() if isinstance(size, int) and size >= _WORTH_NAMING}
    if large := {path: size for path, size in large.items() if _is_the_sites(path, large)}:
        section["disk"] = {path: size_below(size) for path, size in large.items()}
        notes["disk"] = "rounded down; name what the cluster uses"
    for key in ("ethernet", "numa_nodes"):
        if now.get(key):
            section[key] = now[key]
    section |= {key: now[key] for key in ("architecture", "machine") if key in now}
    return Suggestion(section or None, {"": "Numbers and sizes are at least so many.", **notes} if section else {})


_WORTH_NAMING = 10**9  # bytes: what is smaller is a boot partition or of the system's own
_COMES_AND_GOES = ("/run", "/mnt", "/media", "/snap", "/dev", "/sys", "/proc")


def _is_the_sites(path: str, disks: Mapping[str, int]) -> bool:
    """Is it a place that a profile may name? Not one that comes and goes, nor one disk under a second name."""
    if f"{path}/".startswith(tuple(f"{top}/" for top in _COMES_AND_GOES)) or not re.search(PATH, path):
        return False
    return path == "/" or disks.get("/") != disks[path]


def _minimum(value: int, unit: str = "", of: str = "") -> Desired:
    fix = "This profile asks for a larger machine."
    return Desired(value, op=">=", of=of, unit=unit, live=False, persist=False, fix=fix)


def _holder(facts: Facts, kind: str, path: str) -> str:
    """The fact about the file system that holds a path: of the mount points above it the longest."""
    mounts = [key for key in facts if key.startswith(f"{kind}/")]
    holding = [m for m in mounts if f"{kind}{path}/".startswith(m.rstrip("/") + "/")]
    return max(holding, key=len, default="")


def _cpus(host: Host) -> int:
    return len(_online(host))


def _online(host: Host) -> list[int]:
    """`0-7,16-23` is 16 CPUs."""
    if not (found := _numbers(host.read(f"{CPUS}/online") or "")):
        raise HostError(f"{CPUS}/online: not there")
    return found


def _numbers(text: str) -> list[int]:
    ranges = re.findall(r"(\d+)(?:-(\d+))?", text)
    if any(len(number) > 6 for bounds in ranges for number in bounds):
        raise HostError(f"not a list of CPUs or nodes: {text[:40]!r}")
    return [number for first, last in ranges for number in range(int(first), int(last or first) + 1)]


def _cores(host: Host) -> int:
    """By what tells cores apart: core_id alone may repeat on another die or cluster of the same package."""
    cores = set()
    for cpu in _online(host):
        ids = [host.read(f"{CPUS}/cpu{cpu}/topology/{name}") for name in ("physical_package_id", "die_id", "core_id")]
        if ids[-1] is None:
            raise HostError(f"{CPUS}/cpu{cpu}/topology: not there")
        cores.add((*ids, host.read(f"{CPUS}/cpu{cpu}/topology/cluster_id")))
    return len(cores)


def _memory(host: Host) -> int:
    match = re.search(r"^MemTotal:\s+(\d+) kB", host.read("/proc/meminfo") or "", re.M)
    if not match:
        raise HostError("/proc/meminfo: no MemTotal in it")
    return int(match[1]) * 1024


def _ethernet(host: Host) -> int:
    if not host.exists("/sys/class/net"):
        raise HostError("/sys/class/net: not there")
    return sum(_is_port(host, f"/sys/class/net/{name}") for name in host.names("/sys/class/net"))


def _is_port(host: Host, netdev: str) -> bool:
    """A port has a device behind it; a virtual function, a subfunction and what stands for one have one, too."""
    if host.read(f"{netdev}/type") != ETHERNET or not host.exists(f"{netdev}/device"):
        return False
    if any(host.exists(f"{netdev}/{name}") for name in ("device/physfn", "device/sfnum", "wireless", "phy80211")):
        return False
    name = attempt(host.read, f"{netdev}/phys_port_name")  # most drivers have none: EOPNOTSUPP
    return not (isinstance(name, str) and re.fullmatch(REPRESENTOR, name))


def _numa_nodes(host: Host) -> int:
    text = host.read(f"{NODES}/has_memory")
    if text is None and not host.exists(CPUS):
        raise HostError(f"{NODES}: not there")
    return len(_numbers(text)) if text is not None else 1  # a kernel without NUMA is one node


def _machine(host: Host) -> str:
    if bootloader.container(host):
        return "container"
    if (cpuinfo := host.read("/proc/cpuinfo")) is None:
        raise HostError("/proc/cpuinfo: not there")
    flags = re.search(r"^flags\s*:(.*)", cpuinfo, re.M)  # x86 alone has them
    if (flags and "hypervisor" in flags[1].split()) or any(host.exists(path) for path in HYPERVISORS):
        return "vm"
    dmi = [host.read(f"/sys/class/dmi/id/{name}") or "" for name in ("sys_vendor", "product_name", "bios_vendor")]
    if any(vendor in text for vendor in VM_VENDORS for text in dmi) and ".metal" not in dmi[1]:
        return "vm"
    if not flags and not any(dmi) and not host.exists("/proc/device-tree"):
        raise HostError("neither the CPU nor the firmware (DMI, device tree) tells whether this is a virtual machine")
    return "physical"


class _Mount(NamedTuple):
    parent: str
    where: str
    kind: str
    device: str  # major:minor


def _mounts(host: Host) -> dict[str, _Mount]:
    """Mount points for files that a path can lead to (proc(5), mountinfo)."""
    text = host.read("/proc/self/mountinfo")
    if text is None:
        raise HostError("/proc/self/mountinfo: not there")
    mounts: dict[str, _Mount] = {}
    for line in text.splitlines():
        head, _, tail = line.partition(" - ")
        fields, kind = head.split(), tail.split()
        if len(fields) < 6 or not kind:
            raise HostError(f"/proc/self/mountinfo: cannot be understood: {line[:60]!r}")
        where = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[4])
        mounts[fields[0]] = _Mount(fields[1], where, kind[0], fields[2])
    return {m.where: m for m in sorted(_reachable(mounts), key=lambda m: m.where) if _for_files(m)}


def _reachable(mounts: dict[str, _Mount]) -> list[_Mount]:
    """Mounts that no other covers: one on the same point, or one above them that was mounted later."""
    on: dict[str, list[str]] = {}  # of each mount those that are mounted on it
    for ident, mount in mounts.items():
        on.setdefault(mount.parent, []).append(ident)
    found = []
    todo = [ident for ident, mount in mounts.items() if mount.parent not in mounts or mount.parent == ident]
    while todo:
        ident = todo.pop()
        mount = mounts[ident]
        points = {mounts[child].where: child for child in on.get(ident, ()) if child != ident}
        if mount.where in points:
            todo.append(points[mount.where])  # what lies beneath cannot be reached, nor what else is mounted there
            continue
        found.append(mount)
        todo += [child for point, child in points.items() if not points.keys() & _directories_above(point)]
    return found


def _directories_above(path: str) -> set[str]:
    """`/a/b/c` is below /a and /a/b."""
    names = path.split("/")[1:]
    return {"/" + "/".join(names[:n]) for n in range(1, len(names))}


def _for_files(mount: _Mount) -> bool:
    if mount.kind in ("tmpfs", "overlay") and mount.where.startswith(NOT_THE_ADMINS):
        return False
    return mount.kind not in NOT_FOR_FILES


def _room(host: Host, mount: _Mount) -> Space:
    """Free room of the file system, and the size of its device where it fills that."""
    if mount.kind not in LOCAL:
        raise HostError(
            f"{mount.where}: a file system of kind {mount.kind} is not asked: it may be served by another machine"
        )
    space = host.space(mount.where)
    device = _device_size(host, mount.device)
    return space._replace(size=device) if space.size < device <= space.size / FILLED else space


def _device_size(host: Host, number: str) -> int:
    """Bytes of a block device; 0 where there is none: btrfs, tmpfs and others have numbers of their own."""
    sectors = host.read(f"/sys/dev/block/{number}/size") or ""
    return int(sectors) * SECTOR if re.fullmatch(r"\d{1,18}", sectors, re.A) else 0
