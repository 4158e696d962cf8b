"""A fake host whose kernel makes VFs by the rules of drivers/pci/iov.c: sriov_numvfs, autoprobe, drivers, netlink."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from fakes import Answer, FakeHost

from hostprep import boot_record as boot
from hostprep.errors import CommandFailed, HostError
from hostprep.host.network import Link, Vf
from hostprep.pci import DEVICES

DRIVERS = "/sys/bus/pci/drivers"


def nic() -> dict[str, str]:
    """The files of a ConnectX-5 Ex with one VF, for hosts whose kernel does not matter."""
    pf, vf = f"{DEVICES}/0000:17:00.0", f"{DEVICES}/0000:17:00.2"
    numbers = {"totalvfs": 8, "numvfs": 1, "drivers_autoprobe": 1, "vf_device": "101a"}
    return {
        **{
            f"{pf}/{name}": text
            for name, text in (("vendor", "0x15b3\n"), ("device", "0x1019\n"), ("class", "0x020000\n"))
        },
        **{
            f"{vf}/{name}": text
            for name, text in (("vendor", "0x15b3\n"), ("device", "0x101a\n"), ("class", "0x020000\n"))
        },
        **{f"{pf}/sriov_{name}": f"{number}\n" for name, number in numbers.items()},
        **{f"{path}/driver": "-> ../../../bus/pci/drivers/mlx5_core" for path in (pf, vf)},
        f"{pf}/net/ens9f0np0/address": "b8:59:9f:00:00:02\n",
        "/sys/class/net/ens9f0np0": "-> ../../bus/pci/devices/0000:17:00.0/net/ens9f0np0",
        f"{pf}/virtfn0": "-> ../0000:17:00.2",
        f"{vf}/physfn": "-> ../0000:17:00.0",
    }


class SriovHost(FakeHost):
    """PFs by pf(); `wrote` has every kernel attribute written, as `FILE=TEXT` (FILE with the address of its device).

    `numvfs_error` is an errno that sriov_numvfs answers with; `short` is how many VFs fewer than asked are made.
    """

    def __init__(self, root: Path, files: Mapping[str, str], commands: Mapping[str, Answer] | None = None) -> None:
        super().__init__(root, files, {"devlink": _no_eswitch, **(commands or {})})
        self.put("/run/systemd/system/", "")
        self.put(boot.command()[0], "")  # what our boot unit starts
        self.wrote: list[str] = []
        self.numvfs_error = 0
        self.short = 0
        self.failing_probe: set[str] = set()  # addresses that no driver takes

    def pf(
        self,
        address: str = "0000:17:00.0",
        name: str = "ens9f0np0",
        ids: str = "15b3:1019",
        vf_id: str = "101a",
        total: int | None = 8,
        driver: str = "mlx5_core",
        altnames: tuple[str, ...] = (),
    ) -> str:
        """Add a PF without VFs; its address."""
        path = f"{DEVICES}/{address}"
        vendor, device = ids.split(":")
        self._device(address, vendor, device)
        self.put(f"{path}/driver", f"-> ../../../bus/pci/drivers/{driver}")
        if total is not None:
            for file, text in {"totalvfs": total, "numvfs": 0, "drivers_autoprobe": 1, "vf_device": vf_id}.items():
                self.put(f"{path}/sriov_{file}", f"{text}\n")
        index = len(self.link_table) + 2
        self._netdev(address, name)
        mac = f"b8:59:9f:00:00:{index:02x}"
        self.link_table[name] = Link(index, name, altnames, mac=mac, up=False)
        return address

    def vfs(self, address: str) -> list[str]:
        path = f"{self.root}{DEVICES}/{address}"
        return [os.readlink(f"{path}/virtfn{i}")[3:] for i in range(4096) if os.path.islink(f"{path}/virtfn{i}")]

    def drop(self, address: str) -> None:
        """As at a reboot: no kernel keeps VFs, nor what a PF was set to."""
        if self.vfs(address):
            self._numvfs(address, 0)
        self.put(f"{DEVICES}/{address}/sriov_drivers_autoprobe", "1\n")
        for name in self.names(f"{DEVICES}/{address}/net"):
            self.link_table[name] = self.link_table[name]._replace(up=False, mtu=1500)

    def write(self, path: str, text: str, timeout: float = 60) -> None:
        self.wrote.append(f"{path.removeprefix(DEVICES + '/').removeprefix('/sys/bus/pci/')}={text.strip()}")
        if not self.exists(path):
            raise HostError(f"{path}: No such file or directory", code=errno.ENOENT)
        folder, _, name = path.rpartition("/")
        address = folder.rpartition("/")[2]
        if name == "sriov_numvfs":
            self._numvfs(address, int(text))
        elif name == "drivers_probe":
            self._probe(text)
        elif name == "unbind":
            self._unbind(text)
        else:
            self.put(path, text)

    # -- the kernel -----------------------------------------------------------------------------

    def _numvfs(self, address: str, count: int) -> None:
        path = f"{DEVICES}/{address}"
        now = len(self.vfs(address))
        if count == now:
            return
        if code := self.numvfs_error or (errno.EBUSY if count and now else 0):
            raise HostError(f"{path}/sriov_numvfs: {os.strerror(code)}", code=code)
        if count > self.number(f"{path}/sriov_totalvfs"):
            raise HostError(f"{path}/sriov_numvfs: {os.strerror(errno.ERANGE)}", code=errno.ERANGE)
        for i, vf in enumerate(self.vfs(address)):
            self._unbind(vf)
            shutil.rmtree(f"{self.root}{DEVICES}/{vf}")
            Path(f"{self.root}{path}/virtfn{i}").unlink()
        made = max(count - self.short, 0) if count else 0
        bus = int(address[5:7], 16)
        first = int(address[-1]) * 16 + 2
        vendor, device = "15b3", (self.read(f"{path}/sriov_vf_device") or "")
        for i in range(made):
            vf = f"{address[:5]}{bus:02x}:{(first + i) >> 3:02x}.{(first + i) & 7}"
            self._device(vf, vendor, device)
            self.put(f"{DEVICES}/{vf}/physfn", f"-> ../{address}")
            self.put(f"{DEVICES}/{vf}/driver_override", "(null)\n")
            self.put(f"{path}/virtfn{i}", f"-> ../{vf}")
        self.put(f"{path}/sriov_numvfs", f"{made}\n")
        for name in self.names(f"{path}/net"):
            vfs = tuple(Vf(i, trust=False, spoofchk=True) for i in range(made))
            if name in self.link_table:
                self.link_table[name] = self.link_table[name]._replace(vfs=vfs, num_vf=made)
        for vf in self.vfs(address):
            self._probe(vf)

    def _probe(self, vf: str) -> None:
        path = f"{DEVICES}/{vf}"
        pf = (self.link(f"{path}/physfn") or "")[3:]
        override = (self.read(f"{path}/driver_override") or "").replace("(null)", "")
        if self.exists(f"{path}/driver") or vf in self.failing_probe:
            return
        if not override and not self.number(f"{DEVICES}/{pf}/sriov_drivers_autoprobe"):
            return  # pci_device_can_probe()
        driver = override or "mlx5_core"
        self.put(f"{path}/driver", f"-> ../../../bus/pci/drivers/{driver}")
        if driver != "vfio-pci":
            index = self.vfs(pf).index(vf)
            base = next(iter(self.names(f"{DEVICES}/{pf}/net")), "eth").partition("np")[0]
            self._netdev(vf, f"{base}v{index}")

    def _unbind(self, vf: str) -> None:
        path = Path(f"{self.root}{DEVICES}/{vf}")
        if not (path / "driver").is_symlink():
            return
        (path / "driver").unlink()
        if (path / "net").is_dir():
            for netdev in (path / "net").iterdir():
                Path(f"{self.root}/sys/class/net/{netdev.name}").unlink()
            shutil.rmtree(path / "net")

    def _device(self, address: str, vendor: str, device: str) -> None:
        path = f"{DEVICES}/{address}"
        for file, text in {"vendor": f"0x{vendor}", "device": f"0x{device}", "class": "0x020000"}.items():
            self.put(f"{path}/{file}", f"{text}\n")
        for driver in ("mlx5_core", "vfio-pci", "igb"):
            self.put(f"{DRIVERS}/{driver}/unbind", "")
        self.put("/sys/bus/pci/drivers_probe", "")

    def _netdev(self, address: str, name: str) -> None:
        self.put(f"{DEVICES}/{address}/net/{name}/ifindex", "7\n")
        self.put(f"/sys/class/net/{name}", f"-> ../../bus/pci/devices/{address}/net/{name}")


def _no_eswitch(argv: object) -> str:
    raise CommandFailed("devlink: exit 1", status=1, output="kernel answers: Operation not supported\n")
