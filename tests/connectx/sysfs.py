"""The cards' part of /sys. Writes follow the kernel's rules: drivers/pci/iov.c, drivers/base/bus.c, dd.c."""

from __future__ import annotations

import errno
import os
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

from connectx.fuse import Dir, File, Link, Node, refusal
from connectx.gateway import SUBSYSTEM, VENDOR, Chip, Function
from connectx.memory import Memory

MLX5, VFIO = "mlx5_core", "vfio-pci"
LOCKDOWN_LEVELS = ("none", "integrity", "confidentiality")
SHARED = ("bus/pci/devices", "class/net", "class/infiniband")  # directories that hold real entries too
BASE_MAC = 0xB8599FA00010
BRIDGE = (0x8086, 0x347A, 0x060400)

Write = Callable[[bytes], None]


class Pci(NamedTuple):
    """A PCI function of a card: a PF, or the VF number `vf` of it."""

    memory: Memory
    port: int  # from 0
    address: str
    vf: int = -1

    @property
    def is_vf(self) -> bool:
        return self.vf >= 0

    @property
    def pf(self) -> str:
        return self.memory.addresses[self.port]

    @property
    def path(self) -> str:
        """Below /sys: behind a root port on the bus before, as on most servers."""
        bus = f"{self.pf[:5]}{int(self.pf[5:7], 16) - 1:02x}"
        return f"devices/pci{bus}/{bus}:00.0/{self.address}"

    def running(self, name: str, default: Any) -> Any:
        return self.memory.running(self.address, name, default)


class Tree:
    """All cards, as a tree of nodes by path."""

    def __init__(self, memories: list[Memory], real: int) -> None:
        """`real` is the real /sys, open: its devices are shown beside the cards."""
        self._memories, self._real = memories, real
        chips = [Chip(memory) for memory in memories]
        self._functions = {
            address: Function(chip, index) for chip in chips for index, address in enumerate(chip.memory.addresses)
        }
        self._nodes: dict[str, Node] = {}
        self._pci: dict[str, Pci] = {}
        self._built: list[int] = []
        self._due = float("inf")  # when something shows up by itself

    def lookup(self, path: str) -> Node | None:
        """The node at a path, as it is now."""
        for memory in self._memories:
            memory.reload()
        if self._built != [memory.version for memory in self._memories] or time.time() >= self._due:
            self._build()
        return self._nodes.get(path)

    # Building

    def _put(self, path: str, node: Node) -> None:
        self._nodes[path] = node
        while path:
            path, _, name = path.rpartition("/")
            folder = self._nodes.setdefault(path, Dir())
            if not isinstance(folder, Dir) or name in folder.names:
                return
            folder.names[name] = None

    def _texts(self, path: str, **texts: object) -> None:
        for name, text in texts.items():
            self._put(f"{path}/{name}", attribute(f"{text}\n"))

    def _build(self) -> None:
        self._nodes, self._pci, self._due = {}, {}, float("inf")
        self._built = [memory.version for memory in self._memories]
        for folder in SHARED:
            self._put(folder, Dir())
            self._show_real(folder)
        self._put("kernel/security/lockdown", attribute(self._lockdown()))
        self._put("kernel/iommu_groups", Dir())
        self._put("bus/pci/drivers_probe", attribute("", self._probe, 0o200))
        for driver in (MLX5, VFIO):
            self._put(f"bus/pci/drivers/{driver}/bind", attribute("", partial(self._bind, driver), 0o200))
            self._put(f"bus/pci/drivers/{driver}/unbind", attribute("", partial(self._unbind, driver), 0o200))
        for memory in self._memories:
            for index, address in enumerate(memory.addresses):
                self._build_pf(Pci(memory, index, address))

    def _show_real(self, folder: str) -> None:
        with suppress(FileNotFoundError):
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._real)
            try:
                for name in os.listdir(fd):
                    self._put(f"{folder}/{name}", Link(os.readlink(name, dir_fd=fd)))
            finally:
                os.close(fd)

    def _lockdown(self) -> str:
        now = next((memory.faults["lockdown"] for memory in self._memories if "lockdown" in memory.faults), "none")
        return " ".join(f"[{level}]" if level == now else level for level in LOCKDOWN_LEVELS) + "\n"

    def _build_pf(self, pci: Pci) -> None:
        kind, faults = pci.memory.kind, pci.memory.faults
        port = pci.path.rpartition("/")[0]
        self._build_function(port, BRIDGE, -1)
        self._build_link_speed(port, pci)
        if faults.get("card_absent"):
            return
        self._pci[pci.address] = pci
        recovery = bool(faults.get("livefish"))
        function = self._functions[pci.address]
        self._build_device(pci, kind.hardware if recovery else kind.device)
        self._put(f"{pci.path}/config", File(function.read, function.write, 0o644, polled=True))
        self._put(f"{pci.path}/vpd", attribute(vpd(pci.memory)))
        self._build_link_speed(pci.path, pci)
        if recovery:
            return
        self._build_driver(pci)
        self._build_sriov(pci)

    def _build_function(self, path: str, ids: tuple[int, int, int], node: int) -> None:
        """What every PCI function has."""
        vendor, device, code = ids
        address = path.rpartition("/")[2]
        self._texts(path, vendor=f"{vendor:#06x}", device=f"{device:#06x}", revision="0x00", numa_node=node)
        self._texts(path, subsystem_vendor=f"{VENDOR:#06x}", subsystem_device=f"{SUBSYSTEM:#06x}")
        self._put(f"{path}/class", attribute(f"{code:#08x}\n"))
        self._put(f"{path}/subsystem", Link(f"{up(path)}bus/pci"))
        self._put(f"bus/pci/devices/{address}", Link(f"../../../{path}"))
        uevent = f"PCI_CLASS={code:X}\nPCI_ID={vendor:04X}:{device:04X}\nPCI_SLOT_NAME={address}"
        self._texts(path, uevent=uevent)

    def _build_device(self, pci: Pci, device: int) -> None:
        """What PFs and VFs have."""
        code = 0x020000 if pci.memory.ethernet(pci.port) else 0x020700
        self._build_function(pci.path, (VENDOR, device, code), 0)
        override = pci.running("override", "") or "(null)"
        self._put(f"{pci.path}/driver_override", attribute(f"{override}\n", partial(self._set_override, pci)))
        group = zlib.crc32(pci.address.encode()) % 10_000
        self._put(f"{pci.path}/iommu_group", Link(f"{up(pci.path)}kernel/iommu_groups/{group}"))
        self._put(f"kernel/iommu_groups/{group}/devices/{pci.address}", Link(f"../../../../{pci.path}"))

    def _build_link_speed(self, path: str, pci: Pci) -> None:
        kind = pci.memory.kind
        self._texts(path, current_link_speed=kind.link, max_link_speed=kind.link)
        self._texts(path, current_link_width=kind.width, max_link_width=kind.width)

    def _build_driver(self, pci: Pci) -> None:
        driver = driver_of(pci)
        if not driver:
            return
        self._put(f"{pci.path}/driver", Link(f"{up(pci.path)}bus/pci/drivers/{driver}"))
        self._put(f"bus/pci/drivers/{driver}/{pci.address}", Link(f"../../../../{pci.path}"))
        if driver == MLX5:
            self._build_netdev(pci)
            if not pci.is_vf:
                self._build_rdma(pci)

    def _build_sriov(self, pci: Pci) -> None:
        sriov = pci.memory.sriov(pci.port)
        if sriov is None:
            return
        self._texts(pci.path, sriov_totalvfs=sriov.total, sriov_offset=sriov.offset, sriov_stride=sriov.stride)
        self._texts(pci.path, sriov_vf_device=f"{sriov.device:x}", sriov_vf_total_msix=0)
        self._put(f"{pci.path}/sriov_numvfs", attribute(f"{sriov.made}\n", partial(self._set_vfs, pci)))
        autoprobe = pci.running("autoprobe", 1)
        self._put(f"{pci.path}/sriov_drivers_autoprobe", attribute(f"{autoprobe}\n", partial(self._set_auto, pci)))
        shown_at = pci.running("shown_at", 0)
        if shown_at > time.time():
            self._due = min(self._due, shown_at)
            return
        for number in range(sriov.made):
            address = vf_address(pci.address, sriov.offset + number * sriov.stride)
            self._build_vf(Pci(pci.memory, pci.port, address, number))

    def _build_vf(self, vf: Pci) -> None:
        self._pci[vf.address] = vf
        self._build_device(vf, vf.memory.kind.vf_device)
        self._put(f"{vf.path}/config", attribute(bytes(256)))
        self._put(f"{vf.path}/physfn", Link(f"../{vf.pf}"))
        self._put(f"{vf.path.rpartition('/')[0]}/{vf.pf}/virtfn{vf.vf}", Link(f"../{vf.address}"))
        self._build_driver(vf)

    def _build_netdev(self, pci: Pci) -> None:
        memory, name = pci.memory, netdev_name(pci)
        path = f"{pci.path}/net/{name}"
        index = 1000 + zlib.crc32(name.encode()) % 1_000_000
        self._texts(path, address="00:00:00:00:00:00" if pci.is_vf else mac(memory, pci.port), mtu=1500)
        self._texts(path, type=1 if memory.ethernet(pci.port) else 32, operstate="up", carrier=1, duplex="full")
        self._texts(
            path, dev_port=0, dev_id="0x0", ifindex=index, iflink=index, speed=memory.kind.speed, flags="0x1003"
        )
        self._texts(path, uevent=f"INTERFACE={name}\nIFINDEX={index}")
        if not pci.is_vf:
            self._texts(path, phys_port_name=f"p{pci.port}", phys_switch_id=f"{guid(memory, 0):016x}")
        self._put(f"{path}/device", Link(f"../../../{pci.address}"))
        self._put(f"{path}/subsystem", Link(f"{up(path)}class/net"))
        self._put(f"class/net/{name}", Link(f"../../{path}"))

    def _build_rdma(self, pci: Pci) -> None:
        memory, kind = pci.memory, pci.memory.kind
        addresses = list(chain.from_iterable(other.addresses for other in self._memories))
        name = f"mlx5_{addresses.index(pci.address)}"
        path = f"{pci.path}/infiniband/{name}"
        self._texts(path, fw_ver=kind.firmware, hca_type=kind.hca_type, board_id=kind.psid, hw_rev="0x0")
        self._texts(path, node_type="1: CA", node_desc=name, node_guid=colons(guid(memory, pci.port)))
        self._texts(path, sys_image_guid=colons(guid(memory, 0)))  # of the card: the same on both ports
        layer = "Ethernet" if memory.ethernet(pci.port) else "InfiniBand"
        self._texts(f"{path}/ports/1", link_layer=layer, state="4: ACTIVE", phys_state="5: LinkUp")
        self._put(f"{path}/device", Link(f"../../../{pci.address}"))
        self._put(f"class/infiniband/{name}", Link(f"../../{path}"))

    # Writing

    def _remember(self, pci: Pci, **values: Any) -> None:
        with pci.memory.change() as state:
            state["runtime"].setdefault(pci.address, {}).update(values)

    def _set_auto(self, pci: Pci, data: bytes) -> None:
        text = data.decode().strip().lower()
        if text not in ("0", "1", "n", "y"):
            raise refusal(errno.EINVAL)
        self._remember(pci, autoprobe=int(text in "1y"))

    def _set_override(self, pci: Pci, data: bytes) -> None:
        self._remember(pci, override=data.decode().strip("\0\n "))

    def _set_vfs(self, pci: Pci, data: bytes) -> None:
        """sriov_numvfs_store: the number is checked before the driver is asked, which may make fewer."""
        faults, sriov = pci.memory.faults, pci.memory.sriov(pci.port)
        try:
            want = int(data.decode().strip(), 0)
        except ValueError:
            raise refusal(errno.EINVAL) from None
        if sriov is None or not 0 <= want <= 0xFFFF:
            raise refusal(errno.EINVAL)
        if want > sriov.total:
            raise refusal(errno.ERANGE)
        if want == sriov.made:
            return
        if driver_of(pci) != MLX5:
            raise refusal(errno.ENOENT)
        if want and sriov.made:
            raise refusal(errno.EBUSY)
        if faults.get("sriov_numvfs_errno"):
            raise refusal(int(faults["sriov_numvfs_errno"]))
        made = min(want, faults.get("sriov_numvfs_short", want))
        self._make_vfs(pci, made, time.time() + faults.get("sriov_numvfs_delay", 0))

    def _make_vfs(self, pci: Pci, made: int, shown_at: float) -> None:
        """New VFs know nothing of those before; they get a driver if the PF says so."""
        old = [other.address for other in self._pci.values() if other.is_vf and other.pf == pci.address]
        sriov = pci.memory.sriov(pci.port)
        with pci.memory.change() as state:
            for address in old:
                state["runtime"].pop(address, None)
            own = state["runtime"].setdefault(pci.address, {})
            own.update(numvfs=made, shown_at=shown_at)
            if sriov and not own.get("autoprobe", 1):
                for number in range(made):
                    address = vf_address(pci.address, sriov.offset + number * sriov.stride)
                    state["runtime"][address] = {"driver": ""}

    def _named(self, data: bytes) -> Pci:
        pci = self._pci.get(data.decode().strip())
        if pci is None:
            raise refusal(errno.ENODEV)
        return pci

    def _may_probe(self, pci: Pci) -> bool:
        """pci_device_can_probe: a VF whose PF has autoprobe off takes a driver only with driver_override."""
        autoprobe = pci.memory.running(pci.pf, "autoprobe", 1)
        return not pci.is_vf or bool(autoprobe) or bool(pci.running("override", ""))

    def _probe(self, data: bytes) -> None:
        """drivers_probe succeeds even where no driver takes the device."""
        pci = self._named(data)
        wanted = pci.running("override", "") or MLX5
        if not driver_of(pci) and wanted in (MLX5, VFIO) and self._may_probe(pci):
            self._remember(pci, driver=wanted)

    def _bind(self, driver: str, data: bytes) -> None:
        pci = self._named(data)
        if (pci.running("override", "") or MLX5) != driver:
            raise refusal(errno.ENODEV)
        if driver_of(pci):
            raise refusal(errno.EBUSY)
        if not self._may_probe(pci):
            raise refusal(errno.ENODEV)
        self._remember(pci, driver=driver)

    def _unbind(self, driver: str, data: bytes) -> None:
        """Without its driver a PF has no VFs (mlx5_core removes them)."""
        pci = self._named(data)
        if driver_of(pci) != driver:
            raise refusal(errno.ENODEV)
        if not pci.is_vf and pci.running("numvfs", 0):
            self._make_vfs(pci, 0, 0)
        self._remember(pci, driver="")


def driver_of(pci: Pci) -> str:
    """The driver that a function is bound to, empty for none."""
    driver: str = pci.running("driver", MLX5)
    return driver


def attribute(content: str | bytes, write: Write | None = None, mode: int = 0) -> File:
    """A sysfs attribute: a text, and what writing a text does."""
    data = content.encode() if isinstance(content, str) else content
    whole = (lambda _offset, text: write(text)) if write else None
    return File(lambda offset, size: data[offset : offset + size], whole, mode or (0o644 if write else 0o444))


def up(path: str) -> str:
    """From a directory below /sys to /sys."""
    return "../" * (path.count("/") + 1)


def vf_address(pf: str, distance: int) -> str:
    """The address of a VF: the routing id of the PF (bus 15:8, device 7:3, function 2:0) and a distance."""
    bus, device, function = int(pf[5:7], 16), int(pf[8:10], 16), int(pf[11:], 16)
    routing = (bus << 8 | device << 3 | function) + distance
    return f"{pf[:4]}:{routing >> 8:02x}:{routing >> 3 & 31:02x}.{routing & 7}"


def netdev_name(pci: Pci) -> str:
    """As systemd names ports: enP2s3f0np0 is domain 2, slot 3, function 0, port 0."""
    domain, bus, function = int(pci.pf[:4], 16), int(pci.pf[5:7], 16), pci.pf[11:]
    prefix = ("en" if pci.memory.ethernet(pci.port) else "ib") + (f"P{domain}" if domain else "")
    return f"{prefix}s{bus}f{function}" + (f"v{pci.vf}" if pci.is_vf else f"np{pci.port}")


def mac(memory: Memory, index: int) -> str:
    """The MAC of a port."""
    return colons(BASE_MAC + 0x100 * memory.number + index, 6, 1)


def guid(memory: Memory, index: int) -> int:
    """EUI-64 from the port's MAC, as Mellanox does: 0003 in the middle."""
    address = BASE_MAC + 0x100 * memory.number + index
    return address >> 24 << 40 | 0x0003 << 24 | address & 0xFFFFFF


def colons(value: int, size: int = 8, group: int = 2) -> str:
    """Bytes in hexadecimal, in groups."""
    return value.to_bytes(size, "big").hex(":", group)


def vpd(memory: Memory) -> bytes:
    """Vital product data (PCI 2.2, appendix I): name, part and serial number, and a byte that makes the sum zero."""
    name = memory.kind.name.encode()
    fields = {b"PN": name, b"SN": b"MT2026X%05d" % memory.number}
    read_only = b"".join(key + bytes([len(value)]) + value for key, value in fields.items()) + b"RV\x01"
    size = (len(read_only) + 1).to_bytes(2, "little")
    data = b"\x82" + len(name).to_bytes(2, "little") + name + b"\x90" + size + read_only
    return data + bytes([-sum(data) & 0xFF, 0x78])
