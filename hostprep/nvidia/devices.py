"""NVIDIA's GPUs as the PCI bus shows them, which needs no driver.

One that sleeps in D3cold is woken for a moment: the kernel does so when its configuration space is read, and one that
does not wake up reads all ones (pci_config_pm_runtime_get() in Linux).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from hostprep import pci
from hostprep.errors import HostError
from hostprep.host import Host, attempt
from hostprep.model import Unknown

VENDOR = "10de"
_DISPLAY = 0x03  # base class of VGA (0300) and 3D (0302) controllers, PCI Code and ID Assignment
_ALL_ONES = b"\xff\xff\xff\xff"  # what a read of a device that does not answer ends in (PCI Express, 2.9)
_WIDTHS = (1, 2, 4, 8, 12, 16, 32)
_INFORMATION = "/proc/driver/nvidia/gpus"
_UDEV = "/run/udev/data/+pci:"
_PCI_IDS = ("/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids")


class Device(NamedTuple):
    """One GPU on the bus."""

    address: str  # 0000:3b:00.0
    vendor_device: str  # 10de:20b2
    driver: str  # nvidia, nouveau, vfio-pci; empty while none is bound
    modalias: str  # what udev looks for in modules.alias
    name: str | Unknown | None  # NVIDIA A100-SXM4-80GB; None where nothing on this host knows it
    answers: bool | Unknown  # False: its configuration space reads all ones, so it has fallen off the bus
    width: int | Unknown | None  # lanes now; None where there is no link, as in most virtual machines, or it sleeps
    width_max: int | Unknown | None  # lanes that the card and the slot both have
    minor: int | None  # of /dev/nvidiaN; None while NVIDIA's driver does not drive it


def gpus(host: Host) -> list[Device]:
    """The GPUs, by address. HostError when the bus cannot be listed. The VFs of vGPUs are left out."""
    return [_device(host, address) for address in host.names(pci.DEVICES) if _is_gpu(host, address)]


def _is_gpu(host: Host, address: str) -> bool:
    path = f"{pci.DEVICES}/{address}"
    if pci.class_code(host, address) >> 16 != _DISPLAY:
        return False
    return pci.vendor_device(host, address).startswith(f"{VENDOR}:") and not host.exists(f"{path}/physfn")


def _device(host: Host, address: str) -> Device:
    path = f"{pci.DEVICES}/{address}"
    vendor_device = pci.vendor_device(host, address)
    return Device(
        address,
        vendor_device,
        pci.driver(host, address),
        host.read(f"{path}/modalias") or "",
        attempt(_name, host, address, vendor_device),
        attempt(_answers, host, path),
        attempt(_width, host, path),
        attempt(_width_max, host, path),
        _minor(host, address),
    )


def _answers(host: Host, path: str) -> bool:
    """What sysfs tells of ids was read at boot; the configuration space is read anew."""
    start = host.start(f"{path}/config", len(_ALL_ONES))
    if not start:
        raise HostError(f"{path}/config: not there")
    return start != _ALL_ONES


def _width(host: Host, path: str) -> int | None:
    if host.read(f"{path}/power/runtime_status") in ("suspended", "suspending"):
        return None
    return _lanes(host, f"{path}/current_link_width")


def _width_max(host: Host, path: str) -> int | None:
    """The narrower end decides: an x16 card in an x8 slot has eight lanes, and nothing is wrong with it."""
    slot = host.resolve(path).rpartition("/")[0]
    found = [_lanes(host, f"{end}/max_link_width") for end in (path, slot)]
    return min((lanes for lanes in found if lanes), default=None)


def _lanes(host: Host, path: str) -> int | None:
    """A number of lanes. What has no link says 0, 63 (all ones) or 255."""
    text = host.read(path)
    return int(text) if text is not None and text.isdecimal() and int(text) in _WIDTHS else None


def _name(host: Host, address: str, vendor_device: str) -> str | None:
    """What the driver, udev's hardware database or pci.ids call it, in that order."""
    said = re.search(r"^Model:\s*(\S.*)$", host.read(f"{_INFORMATION}/{address}/information") or "", re.M)
    if said and said[1] != "Unknown":
        return said[1]
    if told := re.search(r"^E:ID_MODEL_FROM_DATABASE=(.+)$", host.read(f"{_UDEV}{address}") or "", re.M):
        return told[1]
    texts = (text for path in _PCI_IDS if (text := host.read(path)) is not None)
    return next((name for text in texts if (name := _listed(text, vendor_device))), None)


def _listed(pci_ids: str, vendor_device: str) -> str:
    """The name of a device in pci.ids: vendors begin a line, their devices follow behind a tab each."""
    vendor, _, device = vendor_device.partition(":")
    start = pci_ids.find(f"\n{vendor}  ")
    section = re.match(r"\n.*(?:\n(?:\t.*|#.*|))*", pci_ids[start:]) if start >= 0 else None
    found = re.search(rf"^\t{device}  (.+)$", section[0], re.M) if section else None
    return found[1] if found else ""


def _minor(host: Host, address: str) -> int | None:
    said = re.search(r"^Device Minor:\s*(\d+)$", host.read(f"{_INFORMATION}/{address}/information") or "", re.M)
    return int(said[1]) if said else None


def is_called(name: str, vendor_device: str, model: str) -> bool:
    """Is `model` its vendor:device, or a word of its name? An A100 is no A10."""
    if model.lower() == vendor_device:
        return True
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(model)}(?![A-Za-z0-9])", name, re.I) is not None
