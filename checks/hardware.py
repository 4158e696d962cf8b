"""Hardware: CPUs, memory, disk space, Ethernet ports and NUMA nodes, and what kind of machine this is.

    hardware:
      cpus: 8                    # logical CPUs online, at least
      cores: 8                   # physical cores, at least
      memory: 32GB               # MemTotal, at least; 32GB is decimal, so that a 32 GiB machine passes
      disk: {/: 100GB}           # size of the file system that holds the path, at least
      free: {/var/lib: 20GB}     # free room there, at least
      ethernet: 1                # physical Ethernet ports, at least (no VFs, no bridges)
      numa_nodes: 2              # nodes with memory, at least
      architecture: x86_64
      machine: physical          # or vm, or container

Firmware and kernel keep some of the memory that is installed: MemTotal of a machine with 32 GiB reads about
31.2 GiB. Ask for 32GB and it passes, ask for 32GiB and it does not.

Nothing here can be changed by hostprep, and a reboot changes none of it.
"""

from __future__ import annotations

from hostprep import bootloader
from hostprep.errors import HostError
from hostprep.host import Host, attempt
from hostprep.model import Desired, Fact, Facts, Goals, Section, Unknown
from hostprep.quantities import BYTES_PATTERN, parse_bytes

NAME = "hardware"

_AT_LEAST = {"type": "integer", "minimum": 1}
_SIZE = {"type": ["string", "integer"], "pattern": BYTES_PATTERN, "description": "a size such as 32GB or 32GiB"}
_SIZES = {
    "type": "object",
    "patternProperties": {r"^/[^\x00-\x1f]*$(?!\n)": _SIZE},
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
        "disk": {**_SIZES, "description": "size of the file system that holds a path, at least"},
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
ETHERNET = "1"  # ARPHRD_ETHER
# File systems that a disk, or a disk of another machine, is behind. A network one may hang and is not asked.
LOCAL = frozenset(
    ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs", "reiserfs", "bcachefs", "overlay", "tmpfs")
)
NOT_FOR_FILES = ("/dev", "/run", "/sys")  # tmpfs there is the system's own


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
    for mount in _mounts(host):
        room = attempt(host.space, mount)
        facts[f"disk{mount}"] = Fact.fixed(room if isinstance(room, Unknown) else room.size)
        facts[f"free{mount}"] = Fact.fixed(room if isinstance(room, Unknown) else room.available)
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


def _minimum(value: int, unit: str = "", of: str = "") -> Desired:
    fix = "This profile asks for a larger machine."
    return Desired(value, op=">=", of=of, unit=unit, live=False, persist=False, fix=fix)


def _holder(facts: Facts, kind: str, path: str) -> str:
    """The fact about the file system that holds a path: of the mount points above it the longest."""
    mounts = [key for key in facts if key.startswith(f"{kind}/")]
    holding = [m for m in mounts if f"{kind}{path}/".startswith(m.rstrip("/") + "/")]
    return max(holding, key=len, default="")


def _cpus(host: Host) -> int:
    """`0-7,16-23` is 16 CPUs."""
    text = host.read(f"{CPUS}/online")
    if text is None:
        raise HostError(f"{CPUS}/online: not there")
    return len(_numbers(text))


def _numbers(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.strip().isdigit():
            found += range(int(first), int(last or first) + 1)
    return found


def _cores(host: Host) -> int:
    cores = set()
    for cpu in _numbers(host.read(f"{CPUS}/online") or ""):
        topology = f"{CPUS}/cpu{cpu}/topology"
        cores.add((host.read(f"{topology}/physical_package_id"), host.read(f"{topology}/core_id")))
    if not cores or (None, None) in cores:
        raise HostError(f"{CPUS}/cpu*/topology: not there")
    return len(cores)


def _memory(host: Host) -> int:
    for line in (host.read("/proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise HostError("/proc/meminfo: no MemTotal in it")


def _ethernet(host: Host) -> int:
    """Ports with a device behind them; a virtual function is not a port."""
    ports = 0
    for name in host.names("/sys/class/net"):
        port = f"/sys/class/net/{name}"
        if (
            host.read(f"{port}/type") == ETHERNET
            and host.exists(f"{port}/device")
            and not host.exists(f"{port}/device/physfn")
        ):
            ports += 1
    return ports


def _numa_nodes(host: Host) -> int:
    text = host.read(f"{NODES}/has_memory")
    return len(_numbers(text)) if text is not None else 1  # a kernel without NUMA is one node


def _machine(host: Host) -> str:
    if bootloader.container(host):
        return "container"
    if (cpuinfo := host.read("/proc/cpuinfo")) is None:
        raise HostError("/proc/cpuinfo: not there")
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    if "hypervisor" in flags.split() or host.exists("/sys/hypervisor/type"):
        return "vm"
    vendor = f"{host.read('/sys/class/dmi/id/sys_vendor')} {host.read('/sys/class/dmi/id/product_name')}"
    return (
        "vm"
        if any(name in vendor for name in ("QEMU", "KVM", "VMware", "VirtualBox", "Virtual Machine"))
        else "physical"
    )


def _mounts(host: Host) -> list[str]:
    """Mount points of local file systems, by mountinfo (proc(5)); of several on one point the last counts."""
    mounts: dict[str, str] = {}
    for line in (host.read("/proc/self/mountinfo") or "").splitlines():
        head, _, tail = line.partition(" - ")
        where = head.split()[4].replace(r"\040", " ")
        mounts[where] = tail.split()[0] if tail else ""
    return sorted(
        where
        for where, kind in mounts.items()
        if kind in LOCAL and not (kind == "tmpfs" and where.startswith(NOT_FOR_FILES))
    )
