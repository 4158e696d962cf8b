"""A host made of a directory and a table of commands, and a small Debian machine to start from."""

from __future__ import annotations

import copy
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hostprep.errors import HostError
from hostprep.host import Host, Space, network, nvml
from hostprep.host.network import Link
from hostprep.host.nvml import Nvml
from hostprep.host.processes import Namespace, Process, Workload
from hostprep.host.reach import Resolved
from hostprep.host.remote import Got, Trust
from hostprep.model import Value

Answer = str | HostError | Callable[[Sequence[str]], str]

HUGE_2M = "/sys/kernel/mm/hugepages/hugepages-2048kB"
HUGE_1G = "/sys/kernel/mm/hugepages/hugepages-1048576kB"
GIB_IN_KIB = 1024 * 1024


class FakeHost(Host):
    """Files live under a directory; a command that was not foreseen fails the test.

    A value of `files` that starts with `-> ` is a symbolic link, one that ends in `/` (as a path) a directory.
    """

    def __init__(self, root: Path, files: Mapping[str, str], commands: Mapping[str, Answer] | None = None) -> None:
        super().__init__(str(root), self._answer)
        self.commands: dict[str, Answer] = {} if commands is None else copy.copy(commands)  # type: ignore[assignment]
        self.ran: list[str] = []
        self.clock: bool | HostError = True
        self.spaces: dict[str, Space] = {}
        # The network: by interface name; what is in another namespace by its path, with the same tables within.
        self.link_table: dict[str, Link] = {}
        self.address_table: dict[str, tuple[str, ...]] = {}
        self.route_table: dict[str, tuple[str, ...]] = {}
        self.elsewhere: dict[str, FakeHost] = {}  # by path of a namespace
        self.namespace_list: list[Namespace] = []
        self.netdev_elsewhere_table: dict[str, tuple[str, Namespace]] = {}  # by PCI address
        self.upper_elsewhere_table: dict[int, tuple[tuple[str, str, Namespace], ...]] = {}  # by index of ours
        self.name_table: dict[str, tuple[str, ...] | str] = {}  # what they resolve to, or why not
        self.neighbours: set[str] = set()  # addresses that answer ARP
        self.servers: dict[str, Got | HostError] = {}  # by URL; who trusts anybody is told of no bad certificate
        self.open_file_table: dict[str, tuple[Process, ...]] = {}  # by path
        self.workload_list: list[Workload] | HostError = []
        self.network_error: HostError | None = None  # what every question about all of that ends in
        self.refuse_vf: Callable[[str, int, dict[str, Any]], None] | None = None  # may raise in set_vf
        self._nvml: list[Nvml | HostError] = [HostError("NVML: not foreseen by the test")]  # shared by copies of us
        self.gpu_in_use = False  # then MIG mode changes at the next boot only
        self.refuse_gpu: Callable[[str, str, Value], None] | None = None  # may raise in set_gpu
        root.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            self.put(path, text)

    def put(self, path: str, text: str) -> None:
        """Make a file of the host what it is, as somebody else would."""
        real = Path(self.root + path)
        if path.endswith("/"):
            real.mkdir(parents=True, exist_ok=True)
            return
        real.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            real.symlink_to(text.removeprefix("-> "))
        else:
            real.write_text(text)

    def remove(self, path: str) -> None:
        Path(self.root + path).unlink()

    def snapshot(self) -> dict[str, tuple[int, str]]:
        """Every file and link: its mode, and its content or target."""
        found = {}
        for folder, directories, names in os.walk(self.root):
            for name in (*names, *(d for d in directories if os.path.islink(os.path.join(folder, d)))):
                path = os.path.join(folder, name)
                mode = os.lstat(path).st_mode
                text = os.readlink(path) if os.path.islink(path) else Path(path).read_text(errors="surrogateescape")
                found[path.removeprefix(self.root)] = (mode, text)
        return found

    def directories(self) -> set[str]:
        return {folder.removeprefix(self.root) for folder, _, _ in os.walk(self.root)}

    def start(self, path: str, size: int) -> bytes | None:
        data = self.read_bytes(path)
        return None if data is None else data[:size]

    def machine(self) -> str:
        return "x86_64"

    def clock_synchronised(self) -> bool:
        if isinstance(self.clock, HostError):
            raise self.clock
        return self.clock

    def space(self, path: str) -> Space:
        if path not in self.spaces:
            raise HostError(f"{path}: not foreseen by the test")
        return self.spaces[path]

    def run_for_file(self, *argv: str, timeout: float = 10) -> str:
        return self._answer(argv, timeout, b"")

    def links(self, names: Sequence[str], netns: str = "") -> dict[str, Link]:
        table = self._network(netns).link_table
        return {name: table[name] for name in names if name in table}

    def addresses(self, netns: str = "") -> dict[str, tuple[str, ...]]:
        return dict(self._network(netns).address_table)

    def routes(self, netns: str = "") -> dict[str, tuple[str, ...]]:
        return dict(self._network(netns).route_table)

    def addresses_of(self, name: str) -> Resolved:
        if name not in self.name_table:
            raise HostError(f"{name}: not foreseen by the test")
        found = self.name_table[name]
        return Resolved((), found) if isinstance(found, str) else Resolved(found)

    def names_of(self, address: str) -> Resolved:
        return self.addresses_of(address)

    def answers_arp(self, address: str, device: str, source: str, seconds: float = 3) -> bool:
        return address in self.neighbours

    def http_get(self, url: str, trust: Trust | None, proxy: str, seconds: float, limit: int) -> Got:
        answer = self.servers.get(url, HostError(f"{url}: not foreseen by the test"))
        if isinstance(answer, HostError):
            raise answer
        refused = answer.fault == "certificate"
        return answer if trust or not refused else answer._replace(fault="", why="")

    def open_files(self, prefixes: Sequence[str]) -> dict[str, tuple[Process, ...]]:
        self._network("")
        return {path: who for path, who in self.open_file_table.items() if path.startswith(tuple(prefixes))}

    def workloads(self) -> list[Workload]:
        if isinstance(self.workload_list, HostError):
            raise self.workload_list
        return list(self.workload_list)

    def namespaces(self) -> list[Namespace]:
        return list(self._network("").namespace_list)

    def netdevs_elsewhere(self, namespaces: Sequence[Namespace]) -> dict[str, tuple[str, Namespace]]:
        table = self._network("").netdev_elsewhere_table
        return {address: found for address, found in table.items() if found[1] in namespaces}

    def uppers_elsewhere(self, namespaces: Sequence[Namespace]) -> dict[int, tuple[tuple[str, str, Namespace], ...]]:
        table = self._network("").upper_elsewhere_table
        return {index: found for index, found in table.items() if found[0][2] in namespaces}

    def set_link(self, name: str, *, up: bool | None = None, mtu: int | None = None, netns: str = "") -> None:
        self.ran.append(" ".join(network.command(network.link_words(name, up, mtu), netns)))
        table = self._network(netns).link_table
        if name not in table:
            raise HostError(f"{name}: no such interface")
        old = table[name]
        table[name] = old._replace(up=old.up if up is None else up, mtu=mtu or old.mtu)

    def _set_vf(self, name: str, index: int, wanted: dict[str, Any], netns: str) -> None:
        self.ran.append(" ".join(network.command(network.vf_words(name, index, wanted), netns)))
        table = self._network(netns).link_table
        if name not in table or index not in {vf.index for vf in table[name].vfs}:
            raise HostError(f"{name}: has no VF {index}, or its driver does not tell")
        if self.refuse_vf is not None:
            self.refuse_vf(name, index, wanted)
        reset: dict[str, Any] = {"qos": 0, "proto": "802.1Q"} if wanted.get("vlan") == 0 else {}
        vfs = (vf._replace(**(reset | wanted)) if vf.index == index else vf for vf in table[name].vfs)
        table[name] = table[name]._replace(vfs=tuple(vfs))

    @property
    def nvml_answer(self) -> Nvml | HostError:
        """What NVML tells; the GPUs that are set change it."""
        return self._nvml[0]

    @nvml_answer.setter
    def nvml_answer(self, answer: Nvml | HostError) -> None:
        self._nvml[0] = answer

    def nvml(self, addresses: Sequence[str], timeout: float = 20) -> Nvml:
        if isinstance(self.nvml_answer, HostError):
            raise self.nvml_answer
        return self.nvml_answer

    def set_gpu(self, address: str, name: str, value: Value, timeout: float = 60) -> None:
        self.ran += [" ".join(argv) for argv in nvml.commands(address, name, value)]
        if self.refuse_gpu is not None:
            self.refuse_gpu(address, name, value)
        told = self.nvml([address])
        if address not in {gpu.address for gpu in told.gpus}:
            raise HostError(f"nvmlDeviceGetHandleByPciBusId_v2({address}): Not Found")
        pending = {"ecc": ("ecc-pending",), "mig": ("mig-pending",) if self.gpu_in_use else ("mig", "mig-pending")}
        names = {"instances": ("mig-devices",), **pending}.get(name, (name,))
        wanted = tuple(sorted(value)) if isinstance(value, tuple) else value
        self.nvml_answer = told._replace(
            gpus=tuple(
                gpu._replace(fields={**gpu.fields, **dict.fromkeys(names, wanted)}) if gpu.address == address else gpu
                for gpu in told.gpus
            )
        )

    def _network(self, netns: str) -> FakeHost:
        if self.network_error is not None:
            raise self.network_error
        if netns and netns not in self.elsewhere:
            raise HostError(f"{netns}: no such network namespace")
        return self.elsewhere[netns] if netns else self

    def _answer(self, argv: Sequence[str], timeout: float, stdin: bytes) -> str:
        self.ran.append(" ".join(argv))
        assert argv[0] in self.commands, f"a command that the test did not foresee: {' '.join(argv)}"
        answer = self.commands[argv[0]]
        if isinstance(answer, HostError):
            raise answer
        return answer if isinstance(answer, str) else answer(argv)


def meminfo(total_kib: int, available_kib: int | None = None, default_kib: int = 2048) -> str:
    """/proc/meminfo, as far as hostprep reads it."""
    available = total_kib if available_kib is None else available_kib
    return (
        f"MemTotal:       {total_kib} kB\nMemFree:        {available} kB\nMemAvailable:   {available} kB\n"
        f"HugePages_Total:       0\nHugepagesize:       {default_kib} kB\n"
    )


def grub_cfg(*entries: str, default: str = "0") -> str:
    """A grub.cfg as grub-mkconfig of Debian 12 writes it, with one kernel command line an entry."""
    menu = "".join(
        f"menuentry 'Debian {i}' --class gnu-linux $menuentry_id_option 'gnulinux-{i}' {{\n"
        f"\tload_video\n\tif [ x$grub_platform = xxen ]; then insmod xzio; fi\n"
        f"\tlinux\t/boot/vmlinuz-6.1.{i} {words}\n\tinitrd\t/boot/initrd.img-6.1.{i}\n}}\n"
        for i, words in enumerate(entries)
    )
    return (
        "if [ -s $prefix/grubenv ]; then\n  set have_grubenv=true\n  load_env\nfi\n"
        'if [ "${next_entry}" ] ; then\n   set default="${next_entry}"\n   set next_entry=\n   save_env next_entry\n'
        f'   set boot_once=true\nelse\n   set default="{default}"\nfi\n\n{menu}'
    )


def mkconfig(host: FakeHost) -> Answer:
    """grub-mkconfig as far as one entry goes: a real shell reads the host's files in Debian's order."""

    def run(argv: Sequence[str]) -> str:
        assert argv[1] == "-o"
        script = (
            '. "$1/etc/default/grub"; '
            'for f in "$1"/etc/default/grub.d/*.cfg; do if [ -e "$f" ]; then . "$f"; fi; done; '
            'printf "%s %s" "$GRUB_CMDLINE_LINUX" "$GRUB_CMDLINE_LINUX_DEFAULT"'
        )
        done = subprocess.run(["sh", "-c", script, "sh", host.root], capture_output=True, text=True, check=True)
        host.put(argv[2], grub_cfg(f"root=UUID=5b0c ro {done.stdout}"))
        return ""

    return run


CMDLINE = "root=UUID=5b0c ro console=ttyS0 quiet"


def debian(
    memory_kib: int = 32 * GIB_IN_KIB, cmdline: str = CMDLINE, pages_2m: int = 0, pages_1g: int = 0
) -> dict[str, str]:
    """A small Debian machine: one NUMA node, GRUB, no swap, both sizes of huge pages."""
    files = {
        "/proc/2/comm": "kthreadd\n",
        "/proc/cmdline": f"BOOT_IMAGE=/boot/vmlinuz-6.1.0 {cmdline}\n",
        "/proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu pse pdpe1gb\n\nprocessor\t: 1\nflags\t\t: fpu pse pdpe1gb\n",
        "/proc/meminfo": meminfo(memory_kib),
        "/proc/swaps": "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n",
        "/proc/modules": "",
        "/proc/self/mounts": "",
        "/proc/self/mountinfo": "22 1 259:1 / / rw shared:1 - ext4 /dev/sda1 rw\n",
        "/proc/sys/kernel/osrelease": "6.1.0-26-amd64\n",
        "/proc/sys/kernel/hostname": "node01\n",
        "/proc/sys/kernel/random/boot_id": "11111111-2222-3333-4444-555555555555\n",
        "/sys/devices/system/cpu/online": "0-1\n",
        "/sys/devices/system/cpu/cpu0/topology/physical_package_id": "0\n",
        "/sys/devices/system/cpu/cpu0/topology/core_id": "0\n",
        "/sys/devices/system/cpu/cpu1/topology/physical_package_id": "0\n",
        "/sys/devices/system/cpu/cpu1/topology/core_id": "1\n",
        "/sys/devices/system/node/has_memory": "0\n",
        "/sys/devices/system/node/node0/meminfo": f"Node 0 MemTotal:       {memory_kib} kB\n",
        "/sys/class/net/eth0/type": "1\n",
        "/sys/class/net/eth0/device/vendor": "0x8086\n",
        "/etc/os-release": 'ID=debian\nVERSION_ID="12"\n',
        "/etc/machine-id": "0123456789abcdef0123456789abcdef\n",
        "/etc/fstab": "# a comment that stays\nUUID=5b0c / ext4 errors=remount-ro 0 1\n",
        "/etc/default/grub": 'GRUB_DEFAULT=0\nGRUB_CMDLINE_LINUX="console=ttyS0"\nGRUB_CMDLINE_LINUX_DEFAULT="quiet"\n',
        "/etc/default/grub.d/": "",
        "/boot/grub/grub.cfg": grub_cfg(cmdline),
    }
    for pool, pages, kib in ((HUGE_2M, pages_2m, 2048), (HUGE_1G, pages_1g, 1048576)):
        files[f"{pool}/nr_hugepages"] = f"{pages}\n"
        files[f"{pool}/free_hugepages"] = f"{pages}\n"
        files[f"{pool}/resv_hugepages"] = "0\n"
        files[f"{pool}/surplus_hugepages"] = "0\n"
        files[f"/sys/devices/system/node/node0/hugepages/hugepages-{kib}kB/nr_hugepages"] = f"{pages}\n"
    return files
