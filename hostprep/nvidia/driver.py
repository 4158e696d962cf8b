"""NVIDIA's kernel driver: its modules, who uses the GPUs through it, and what makes the next boot load it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hostprep import kmod, pci
from hostprep.errors import HostError
from hostprep.host import Host
from hostprep.model import Unknown
from hostprep.nvidia import devices

MAIN = "nvidia"
LOADED, UNLOADED = "loaded", "unloaded"
ANSWERS = "answers"  # the bus, NVML, a GPU
# The driver's own, what comes beside it (GPUDirect, vGPU), and GDRCopy's.
MODULES = (
    *(MAIN, "nvidia_modeset", "nvidia_drm", "nvidia_uvm", "nvidia_peermem", "nvidia_fs", "nvidia_vgpu_vfio"),
    *("gdrdrv", "nv_peer_mem"),
)
# Files of the main module in Debian's packages: udev finds them by the aliases within.
_DEBIANS = (
    *("nvidia_current", "nvidia_current_open", "nvidia_tesla", "nvidia_tesla_open", "nvidia_tesla_535"),
    *("nvidia_tesla_470", "nvidia_tesla_460", "nvidia_tesla_450", "nvidia_tesla_418", "nvidia_legacy_390xx"),
)
PERSISTENCED = "nvidia-persistenced.service"
# They load the driver by its name, through nvidia-modprobe, which a blacklist does not stop.
_LOADERS = (
    PERSISTENCED,
    "nvidia-fabricmanager.service",
    "nvidia-powerd.service",
    "dcgm.service",
    "nvidia-dcgm.service",
)
_HOLDS = (
    *(("dri", "nvidia_drm"), ("nvidia-uvm", "nvidia_uvm"), ("nvidia-modeset", "nvidia_modeset")),
    *(("nvidia-fs", "nvidia_fs"), ("gdrdrv", "gdrdrv")),
)
_UNITS = tuple(f"{folder}/systemd/system" for folder in ("/etc", "/usr/local/lib", "/usr/lib", "/lib"))
_INSTALLER = re.compile(r"NVIDIA-Linux-\w+-(\d+(?:\.\d+)+)(?:-[\w-]+)?\.run")


def loaded(host: Host) -> tuple[str, ...]:
    """The modules of the driver that are in the kernel."""
    return _ours(kmod.modules(host))


def later(host: Host, modaliases: Iterable[str]) -> tuple[str, ...]:
    """The modules of the driver that the next boot loads by itself. HostError where that cannot be told.

    What is loaded for want of it later (nvidia_uvm by the first user of CUDA) is not followed: it needs nvidia.
    """
    kernels = kmod.next_kernels(host, host.kernel())
    having = [kernel for kernel in kernels if _file(host, kernel) is not None]
    coming = set(_early(host))
    if not kmod.barred_by(host, MAIN):
        found = {name for kernel in having for name in kmod.autoloaded(host, kernel, modaliases)}
        coming |= set(_ours(kmod.come_back(host, (), found)))
        by_name = any(_starts_at_boot(host, unit) for unit in _LOADERS) and not kmod.never_by(host, MAIN)
        if coming or by_name:
            coming.add(MAIN)  # which every other of them needs
    if not coming or not having:
        return ()
    if without := [kernel for kernel in kernels if kernel not in having]:
        raise HostError(f"which kernel boots next cannot be told, and {', '.join(without)} has no nvidia module")
    return _ours(coming)


def _file(host: Host, kernel: str) -> str | None:
    """The file of the driver for a kernel, below its folder; None where it has none, such as after an upgrade."""
    return kmod.file_of(host, kernel, MAIN) if _has_modules(host, kernel) else None


def _has_modules(host: Host, kernel: str) -> bool:
    return host.exists(f"/lib/modules/{kernel}/modules.dep")


def _ours(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({kmod.own_name(name) for name in names} & set(MODULES)))


def early(host: Host) -> str:
    """What has the initramfs load the driver, which no blacklist stops; empty if nothing does."""
    return ", ".join(_early(host))


def _early(host: Host) -> tuple[str, ...]:
    names = _ours(kmod.early(host))
    refused = kmod.rules(host).refused if names else {}
    return tuple(name for name in names if name not in refused)


def forbidding() -> str:
    """A file of modprobe.d that keeps the driver out of the kernel.

    A blacklist alone is for udev; services and container engines load it by name, through nvidia-modprobe, which ends
    at the alias. `install` is for what needs the driver: alone it is not enough (see kmod.rules).
    """
    lines = [
        line for name in MODULES for line in (f"blacklist {name}", f"alias {name} off", f"install {name} /bin/false")
    ]
    lines += [f"blacklist {name}" for name in _DEBIANS]
    return "\n".join(["# Written by hostprep apply; hostprep revert takes it away.", *lines, ""])


def version(host: Host) -> str | None:
    """The version of the driver that is in the kernel."""
    if (told := host.read(f"/sys/module/{MAIN}/version")) is not None:
        return told
    said = re.search(
        r"^NVRM version:.*?Module[^\n]*?\s(\d+(?:\.\d+)+)\s", host.read("/proc/driver/nvidia/version") or "", re.M
    )
    return said[1] if said else None


def version_on_disk(host: Host, kernel: str) -> str | None:
    """The version of the module that modprobe finds for a kernel; None where there is none."""
    if (file := _file(host, kernel)) is None:
        return None
    said = host.run("modinfo", "-F", "version", f"/lib/modules/{kernel}/{file}").split()
    if not said:
        raise HostError(f"/lib/modules/{kernel}/{file}: modinfo tells no version")
    return said[0]


def later_version(host: Host) -> str | None:
    """The version that the next boot would load; HostError where the kernels that may boot have several."""
    found = {kernel: version_on_disk(host, kernel) for kernel in kmod.next_kernels(host, host.kernel())}
    if len(set(found.values())) > 1:
        each = ", ".join(f"{kernel}: {told or 'none'}" for kernel, told in found.items())
        raise HostError(f"which kernel boots next cannot be told, and their drivers differ ({each})")
    return next(iter(found.values()), None)


# -- who uses it ----------------------------------------------------------------------------------


def users(host: Host) -> tuple[str, ...]:
    """Who uses the GPUs, each in a phrase that names it: a process with its service or container, a kernel module.
    HostError where that cannot be told.

    The kernel's own counts are a second witness: a module that is held, and no process that we see has a file of it
    open (a console, a display server, somebody in another PID namespace), is told too.
    """
    modules = kmod.modules(host)
    if MAIN not in modules:
        return ()
    nodes = _drm_nodes(host)
    opened = host.open_files(["/dev/nvidia", "/dev/gdrdrv", *nodes])
    opened = {path: by for path, by in opened.items() if not path.startswith("/dev/dri/") or path in nodes}
    found = dict.fromkeys(str(who) for processes in opened.values() for who in processes)
    phrases = [f"{who} ({', '.join(p for p, w in opened.items() if who in map(str, w))})" for who in found]
    explained = {_module_of(path) for path in opened}
    for name in _ours(modules):
        phrases += [f"the kernel module {user}" for user in modules[name].users if user not in MODULES]
        more = modules[name].references - len(modules[name].users)
        if more > 0 and name not in explained:
            phrases.append(f"{name}, which the kernel counts {more} more users of (a console, a display?)")
    return tuple(dict.fromkeys(phrases))


def _module_of(path: str) -> str:
    """The module that an open device file holds."""
    name = path.removeprefix("/dev/").partition("/")[0]
    for start, held in _HOLDS:
        if name.startswith(start):
            return held
    return MAIN


def _drm_nodes(host: Host) -> list[str]:
    """The /dev/dri nodes of NVIDIA's GPUs."""
    ours = {gpu.address for gpu in devices.gpus(host)}
    cards = pci.children(host, "/sys/class/drm")
    return [f"/dev/dri/{name}" for address in sorted(ours) for name in cards.get(address, ()) if "-" not in name]


def made_persistent(host: Host) -> bool:
    """Does nvidia-persistenced start at boot, and in the mode that it is there for? nvidia-persistenced(1)"""
    if not _starts_at_boot(host, PERSISTENCED):
        return False
    files = [path for folder in _UNITS if host.exists(path := f"{folder}/{PERSISTENCED}")][:1]
    files += [path for folder in _UNITS for path in host.glob(f"{folder}/{PERSISTENCED}.d/*.conf")]
    starts = [line for path in files for line in re.findall(r"^ExecStart=(.+)$", host.read(path) or "", re.M)]
    return bool(starts) and "--no-persistence-mode" not in starts[-1]


def _starts_at_boot(host: Host, unit: str) -> bool:
    """Is a unit enabled, and not masked?"""
    masked = host.link(f"{_UNITS[0]}/{unit}") == "/dev/null"
    return not masked and any(host.link(link) != "/dev/null" for link in host.glob(f"{_UNITS[0]}/*.wants/{unit}"))


# -- the installer --------------------------------------------------------------------------------


def installer_version(path: str) -> str | None:
    """The version that an installer is named for: NVIDIA-Linux-x86_64-550.90.12.run; None for another name."""
    found = _INSTALLER.fullmatch(path.rpartition("/")[2])
    return found[1] if found else None


def makefile_version(text: str, path: str) -> str:
    """The version of the installer that a Makefile names as NVIDIA_DRIVER_FILE: the last assignment, as make has it.

    HostError, with the line, when it is no plain name, or depends on a condition.
    """
    from hostprep import makefile  # few profiles name one

    known, _ = makefile.variables(text)
    if "NVIDIA_DRIVER_FILE" not in known:
        raise HostError(f"{path}: names no NVIDIA_DRIVER_FILE")
    value, at = makefile.told(known, "NVIDIA_DRIVER_FILE"), known["NVIDIA_DRIVER_FILE"].line
    if isinstance(value, Unknown):
        raise HostError(f"{path}:{at}: NVIDIA_DRIVER_FILE is not told: {value.reason}")
    if (named := installer_version(value)) is None:
        raise HostError(f"{path}:{at}: NVIDIA_DRIVER_FILE is {value!r}, which names no NVIDIA-Linux-*-VERSION.run")
    return named
