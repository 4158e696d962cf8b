"""Hosts with NVIDIA GPUs: what sysfs and /proc show of them, and what NVML tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fakes import FakeHost

from hostprep.errors import CommandFailed
from hostprep.host.nvml import Gpu, Nvml
from hostprep.model import Reading

KERNEL = "6.1.0-26-amd64"
DRIVER = "550.90.12"
A100 = "10de:20b2"
P100 = "10de:15f8"
FIRST = "0000:3b:00.0"
SECOND = "0000:af:00.0"
NAMES = {A100: "NVIDIA A100-SXM4-80GB", P100: "Tesla P100-PCIE-16GB"}

DMESG = "[    0.000000] Linux version 6.1.0-26-amd64 (debian-kernel@lists.debian.org)\n"
ALIASES = (
    "alias pci:v000010DEd*sv*sd*bc04sc80i00* nvidia\n"
    "alias pci:v000010DEd*sv*sd*bc03sc02i00* nvidia\n"
    "alias pci:v000010DEd*sv*sd*bc03sc00i00* nvidia\n"
)


def gpu_files(
    address: str = FIRST, vendor_device: str = A100, *, driver: str = "nvidia", minor: int = 0
) -> dict[str, str]:
    """One GPU on the PCI bus; `driver` is what is bound to it."""
    path = f"/sys/bus/pci/devices/{address}"
    vendor, _, device = vendor_device.partition(":")
    files = {
        f"{path}/vendor": f"0x{vendor}\n",
        f"{path}/device": f"0x{device}\n",
        f"{path}/class": "0x030200\n",
        f"{path}/config": "a configuration space",
        f"{path}/modalias": f"pci:v0000{vendor.upper()}d0000{device.upper()}sv000010DEsd00001463bc03sc02i00\n",
        f"{path}/current_link_width": "16\n",
        f"{path}/max_link_width": "16\n",
        f"/run/udev/data/+pci:{address}": f"E:ID_MODEL_FROM_DATABASE=GA100 [{NAMES[vendor_device].split()[1]}]\n",
    }
    if driver:
        files[f"{path}/driver"] = f"-> ../../../../bus/pci/drivers/{driver}"
    if driver == "nvidia":
        files[f"/proc/driver/nvidia/gpus/{address}/information"] = (
            f"Model: \t\t {NAMES[vendor_device]}\nIRQ:   \t\t 64\nGPU UUID: \t GPU-0000000{minor}-1111-2222\n"
            f"Bus Location: \t {address}\nDevice Minor: \t {minor}\n"
        )
        files[f"/dev/nvidia{minor}"] = ""
    return files


def driver_files(version: str = DRIVER, on_disk: str = DRIVER) -> dict[str, str]:
    """NVIDIA's driver as it runs; `on_disk` is the version of the module's file."""
    return {
        "/sys/module/nvidia/version": f"{version}\n",
        "/dev/nvidiactl": "",
        **installed(on_disk),
    }


def installed(version: str = DRIVER) -> dict[str, str]:
    """NVIDIA's driver on the disk of the kernel that runs and boots next."""
    folder = f"/lib/modules/{KERNEL}"
    names = ("nvidia", "nvidia-modeset", "nvidia-uvm")
    return {
        f"{folder}/modules.dep": "".join(f"updates/dkms/{name}.ko:\n" for name in names),
        f"{folder}/modules.alias": ALIASES,
        f"{folder}/modules.builtin": "",
        f"/boot/vmlinuz-{KERNEL}": "",
        "/version-of-the-module": version,  # which the test's modinfo tells
    }


def well(vendor_device: str = A100, **changed: Reading) -> dict[str, Reading]:
    """What NVML tells of a GPU that is well; names of fields have `_` for `-`."""
    pascal = vendor_device == P100
    fields: dict[str, Reading] = {
        "name": NAMES[vendor_device],
        "architecture": "pascal" if pascal else "ampere",
        "ecc": True,
        "ecc-pending": True,
        "ecc-volatile-uncorrectable": 0,
        "retired-single": 0 if pascal else None,
        "retired-double": 0 if pascal else None,
        "retirement-pending": False if pascal else None,
        "remapping-pending": None if pascal else False,
        "remapping-failed": None if pascal else False,
        "mig": None if pascal else False,
        "mig-pending": None if pascal else False,
        "mig-devices": None if pascal else (),
        "persistence": False,
        "compute-mode": "default",
        "temperature": 38,
        "temperature-slowdown": 82,
        "clock-reasons": ("idle",),
        "recovery-action": None if pascal else "none",
        "utilization": 0,
        "processes": (),
    }
    return fields | {name.replace("_", "-"): value for name, value in changed.items()}


def nvml(gpus: Mapping[str, Mapping[str, Reading] | str], *, error: str = "", library: str = DRIVER) -> Nvml:
    """NVML's answer: by address the fields of a GPU, or the error that it ends in."""
    told: Sequence[Gpu] = [
        Gpu(address, said, {}) if isinstance(said, str) else Gpu(address, "", dict(said))
        for address, said in gpus.items()
    ]
    return Nvml(error, library, "" if error else library, "" if error else "12.4", tuple(told))


NEEDS = {"nvidia_modeset": "nvidia", "nvidia_uvm": "nvidia", "nvidia_drm": "nvidia_modeset"}
LOADED = ("nvidia", "nvidia_modeset", "nvidia_uvm")


class Kernel:
    """The kernel of a host: it loads and unloads modules in the order of their needs, and has Xids in its log."""

    def __init__(self, host: FakeHost, loaded: Sequence[str] = LOADED, xids: Sequence[str] = ()) -> None:
        self.host = host
        self.loaded = list(loaded)
        self.held: dict[str, int] = {}  # by whom the kernel does not say
        self.log = DMESG + "".join(f"[   99.000000] NVRM: {line}\n" for line in xids)
        host.commands |= {"dmesg": lambda _: self.log, "modinfo": lambda _: host.read("/version-of-the-module") or ""}
        host.commands |= {"rmmod": self._rmmod, "modprobe": self._modprobe}
        self._show()

    def hold(self, name: str) -> None:
        self.held[name] = 1
        self._show()

    def _users(self, name: str) -> list[str]:
        return [other for other in self.loaded if NEEDS.get(other) == name]

    def _show(self) -> None:
        lines = []
        for name in self.loaded[::-1]:
            users = self._users(name)
            count = len(users) + self.held.get(name, 0)
            lines.append(
                f"{name} 4096 {count} {''.join(f'{user},' for user in users) or '-'} Live 0x0000000000000000\n"
            )
        self.host.put("/proc/modules", "".join(lines))

    def _rmmod(self, argv: Sequence[str]) -> str:
        name, users = argv[1], self._users(argv[1])
        if users or self.held.get(name):
            said = f"rmmod: ERROR: Module {name} is in use" + (f" by: {' '.join(users)}" if users else "")
            raise CommandFailed(f"rmmod: exit 1: {said}", status=1, output=f"{said}\n")
        self.loaded.remove(name)
        self._show()
        return ""

    def _modprobe(self, argv: Sequence[str]) -> str:
        wanted = argv[-1].replace("-", "_")
        for name in (NEEDS.get(NEEDS.get(wanted, "")), NEEDS.get(wanted), wanted):
            if name and name not in self.loaded:
                self.loaded.append(name)
        self._show()
        return ""
