"""The machine that QEMU emulates: what is in it, how it starts, how it is frozen and thawed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vm.wire import Agent, Monitor

BOOT = 300  # seconds for what takes 30 on a machine that does nothing else
NODES = 2
# What QEMU's TCG can emulate cheaply; 1 GiB pages need pdpe1gb.
CPU = "qemu64,vendor=GenuineIntel,-svm,+pdpe1gb,+rdrand,+ssse3,+sse4.1,+sse4.2,+popcnt"
# The cards, as (NUMA node, slot of the root port, type, id of the device). One whose id says so shows other PCI ids
# (pciids.c): here a ConnectX-5 with its VFs, and an A100.
CARDS = (
    (0, 0, "igb", "pf0"),
    (1, 0, "igb", "pf1"),
    (0, 1, "igb", "x15b3-1019-101a"),
    (1, 1, "i6300esb", "x10de-20b2-0302"),
)


class Snapshot(NamedTuple):
    """A frozen machine: what was in its memory, and its disk."""

    memory: Path
    disk: Path


class Machine:
    """A running QEMU with its monitor and its agent. It ends with the process that started it."""

    def __init__(
        self,
        folder: Path,
        disk: Path,
        pciids: Path,
        *,
        thaw: Path | None = None,
        firmware: Path | None = None,
    ) -> None:
        self.folder = folder
        self.disk = disk
        monitor, monitor_end = socket.socketpair()
        agent, agent_end = socket.socketpair()
        command = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", *_platform(), *_nodes(), *_cards()]
        command += _disk(disk) + _talk(folder, monitor_end, agent_end)
        command += ["-incoming", "defer"] if thaw else []
        with (folder / "qemu.log").open("ab") as log, monitor_end, agent_end:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "LD_PRELOAD": str(pciids),
                    **({"HOSTPREP_CONNECTX": str(firmware)} if firmware else {}),
                },
                pass_fds=(monitor_end.fileno(), agent_end.fileno()),
            )
        self.ends = (monitor, agent)
        try:
            self.monitor = Monitor(monitor)
            self.agent = Agent(agent)
            if thaw:
                self._migrate("migrate-incoming", thaw)
                self.monitor.command("cont")
        except BaseException:
            self.kill()
            print((folder / "qemu.log").read_text())
            raise

    def freeze(self, memory: Path) -> Snapshot:
        """Write down what is in memory, and end: the disk stays as it is at this moment."""
        self.monitor.command("stop")
        self._migrate("migrate", memory)
        self.monitor.command("quit")
        self.process.wait(60)
        return Snapshot(memory, self.disk)

    def _migrate(self, command: str, memory: Path) -> None:
        wanted = [{"capability": name, "state": True} for name in ("mapped-ram", "events")]
        self.monitor.command("migrate-set-capabilities", capabilities=wanted)
        self.monitor.command("migrate-set-parameters", **{"max-bandwidth": 10 << 30})
        self.monitor.command(command, uri=f"file:{memory}")
        status = ""
        while status != "completed":
            status = self.monitor.wait("MIGRATION", 120)["status"]
            if status == "failed":
                raise RuntimeError(f"{command} failed")

    def kill(self) -> None:
        """End it, as when the power goes."""
        self.process.kill()
        self.process.wait()
        for end in self.ends:
            end.close()


def overlay(backing: Path, folder: Path) -> Path:
    """A disk that starts as another one, which is only read."""
    disk = folder / "disk.qcow2"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]
    # Said relative to the overlay: a folder with both can be moved.
    subprocess.run([*command, os.path.relpath(backing.resolve(), folder.resolve()), str(disk)], check=True)
    return disk


def _platform() -> Sequence[str]:
    machine = "q35,usb=off,sata=off,smbus=off,vmport=off,hpet=off"
    return (
        *("-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"),
        *("-machine", machine, "-accel", "tcg,thread=multi,tb-size=512", "-cpu", CPU),
        *("-smp", f"{NODES},sockets={NODES},cores=1,threads=1", "-m", "8192M"),
        *("-device", "intel-iommu,intremap=on"),  # before all that it translates for
    )


def _nodes() -> list[str]:
    """Two NUMA nodes, each with a CPU, half of the memory and a PCI root of its own."""
    arguments = []
    for node in range(NODES):
        arguments += ["-object", f"memory-backend-ram,id=memory{node},size={8192 // NODES}M"]
        arguments += ["-numa", f"node,nodeid={node},memdev=memory{node},cpus={node}"]
        root = f"pxb-pcie,id=root{node},bus_nr={0x40 + 0x40 * node},numa_node={node},bus=pcie.0,addr={0x10 + node}"
        arguments += ["-device", root]
    return arguments


def _cards() -> list[str]:
    arguments = []
    for number, (node, slot, kind, name) in enumerate(CARDS):
        port = f"pcie-root-port,id=port{number},bus=root{node},chassis={10 + number},slot={10 + number},addr={slot}"
        card = f"{kind},id={name},bus=port{number}"
        if kind == "igb":
            arguments += ["-netdev", f"hubport,id=net{number},hubid=0"]
            card += f",netdev=net{number},mac=52:54:00:be:ef:{number:02x},romfile="
        arguments += ["-device", port, "-device", card]
    return arguments


def _disk(disk: Path) -> list[str]:
    arguments = ["-drive", f"if=none,id=disk,file={disk},format=qcow2,cache=unsafe,discard=unmap"]
    return [*arguments, "-device", "virtio-blk-pci,drive=disk,bus=pcie.0,addr=4,bootindex=0"]


def _talk(folder: Path, monitor: socket.socket, agent: socket.socket) -> list[str]:
    return [
        *("-chardev", f"socket,id=monitor,fd={monitor.fileno()}", "-mon", "chardev=monitor,mode=control"),
        *("-chardev", f"socket,id=agent,fd={agent.fileno()}", "-device", "virtio-serial-pci,bus=pcie.0,addr=5"),
        *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
        *("-serial", f"file:{folder / 'console.log'}"),
    ]


def why_not() -> str:
    """Why no such machine can be made here, or ""."""
    needed = ("qemu-system-x86_64", "qemu-img", "setpriv", "mmdebstrap", "mkfs.ext4", "sfdisk", "gcc", "make")
    if missing := [tool for tool in needed if not shutil.which(tool)]:
        return f"not installed: {', '.join(missing)}"
    if os.uname().machine != "x86_64":
        return "the image is made in a chroot, which takes an x86_64 machine"
    if os.geteuid():
        return "only root can make the image (mmdebstrap --mode=root)"
    answer = subprocess.run(["qemu-system-x86_64", "-device", "help"], capture_output=True, text=True, check=True)
    if '"igb"' not in answer.stdout or int(version().split(".")[0]) < 9:
        return f"QEMU {version()} is too old: igb with snapshots takes 9 or later (bookworm-backports)"
    return ""


def version() -> str:
    """10.0.2, for example."""
    answer = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True)
    return answer.stdout.split()[3]
