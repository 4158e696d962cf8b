"""Kernel modules: which are loaded, which the next boot loads and from what file, loading and unloading.

modprobe.d(5), modules-load.d(5), depmod(8). The kernel takes `-` and `_` in names for the same.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from hostprep import bootloader, versions
from hostprep.errors import ChangeFailed, CommandFailed, HostError, HostprepError
from hostprep.host import Host, attempt
from hostprep.model import Unknown

# Read at every boot: what is below /run does not survive one. /lib is not always /usr/lib.
CONFIG_DIRS = ("/etc", "/usr/local/lib", "/usr/lib", "/lib")
_DRIVER_ATTRIBUTES = {"bind", "unbind", "uevent", "module", "new_id", "remove_id"}
_MODULES = "/lib/modules"
_LOAD_S = 120.0  # seconds; a GPU driver brings up every card while it is loaded
# `blacklist` is for loading by alias, and systemd-modules-load keeps to it; `install` is for loading by name as well.
_BLACKLIST = re.compile(r"^\s*blacklist\s+(\S+)\s*$", re.M)
_INSTALL = re.compile(r"^\s*install\s+(\S+)\s+(.*?)\s*$", re.M)
_NEVER = re.compile(r"(?:/usr)?/bin/(?:true|false)")


class Module(NamedTuple):
    """A module that is loaded, as /proc/modules has it."""

    references: int  # of modules, open devices, and whatever else holds it
    users: tuple[str, ...]  # the modules that need it


def module(name: str) -> str:
    """The name as the kernel writes it."""
    return name.replace("-", "_")


# -- now ------------------------------------------------------------------------------------------


def modules(host: Host) -> dict[str, Module]:
    """The modules that are loaded, by name; none where the kernel knows no modules at all."""
    text = host.read("/proc/modules")
    if text is None and not host.exists("/sys/module"):
        raise HostError("/proc/modules: not there, and neither is /sys/module")
    found = {}
    for line in (text or "").splitlines():
        words = line.split()
        if len(words) < 4 or not words[2].isdecimal():
            raise HostError(f"/proc/modules: not understood: {line[:60]!r}")
        users = tuple(name for name in words[3].split(",") if name and not name.startswith(("-", "[")))
        found[words[0]] = Module(int(words[2]), users)
    return found


def built_in(host: Host, loaded: Collection[str]) -> set[str]:
    """Modules that are part of the kernel: modprobe's list where there is one, else those that sysfs shows."""
    text = host.read(f"{_MODULES}/{host.kernel()}/modules.builtin")
    if text is None:
        return {module(name) for name in host.names("/sys/module")} - set(loaded)
    return {module(line.rpartition("/")[2].partition(".ko")[0]) for line in text.splitlines()}


# -- the next boot --------------------------------------------------------------------------------


def come_back(host: Host, loaded: Collection[str], autoloaded: Collection[str] = ()) -> set[str]:
    """Modules that the next boot will load: named somewhere, driving a device, or needed by one of those.

    `autoloaded` are more that udev would load for a device, though they are not loaded now.
    """
    lasting = set(named(host)) | {name for name in loaded if _drives(host, name)} | set(autoloaded)
    lasting -= set(forbidden(host))
    lasting |= early(host)
    users = {name: set(host.names(f"/sys/module/{name}/holders")) for name in loaded}
    while needed := {name for name in set(loaded) - lasting if users[name] & lasting}:
        lasting |= needed
    return lasting


def named(host: Host) -> dict[str, str]:
    """Modules that systemd loads at boot because they are named: by which file or kernel argument."""
    found = {name: f"{key}=" for key, names in _arguments(host) if key.endswith("modules_load") for name in names}
    for path, text in [("/etc/modules", host.read("/etc/modules") or ""), *_config(host, "modules-load.d")]:
        for line in text.splitlines():
            if line.strip() and line.lstrip()[0] not in "#;":
                found.setdefault(module(line.split()[0]), path)
    return found


def forbidden(host: Host) -> dict[str, str]:
    """Modules that no boot loads for a device or because they are named: by which file or kernel argument."""
    found = {name: f"{key}=" for key, names in _arguments(host) if key.endswith("blacklist") for name in names}
    for path, text in _config(host, "modprobe.d"):
        for name in _BLACKLIST.findall(text):
            found.setdefault(module(name), path)
    return never(host) | found


def never(host: Host) -> dict[str, str]:
    """Modules that modprobe does not load even when it is told to: by which file.

    Of several `install` lines for a module the first counts, in the order of the files' names (seen with kmod 30).
    """
    first: dict[str, tuple[str, str]] = {}
    for path, text in _config(host, "modprobe.d"):
        for name, command in _INSTALL.findall(text):
            first.setdefault(module(name), (path, command))
    return {name: path for name, (path, command) in first.items() if _NEVER.fullmatch(command)}


def forbidden_by(host: Host, name: str) -> str:
    """The file or kernel argument that forbids a module; empty if none does."""
    return forbidden(host).get(module(name), "")


def early(host: Host) -> set[str]:
    """Modules that the initramfs loads by name, which a blacklist does not stop."""
    text = host.read("/etc/initramfs-tools/modules") or ""
    found = {module(line.split()[0]) for line in text.splitlines() if line.strip() and line.lstrip()[0] != "#"}
    paths = ["/etc/dracut.conf", *(path for path, _ in _config(host, "dracut.conf.d"))]
    for path in paths:
        for names in re.findall(
            r"""^\s*(?:force_drivers|add_drivers)\+?=["']?([^"'#\n]*)""", host.read(path) or "", re.M
        ):
            found |= {module(name) for name in names.split()}
    return found


def autoloaded(host: Host, kernel: str, modaliases: Iterable[str]) -> set[str]:
    """The modules that udev loads for devices with these modaliases, blacklists apart (modules.alias of depmod)."""
    wanted = [alias for alias in modaliases if alias]
    if not wanted:
        return set()
    text = host.read(f"{_MODULES}/{kernel}/modules.alias") or ""
    starts = {re.escape(alias[: len("pci:v000010DE")]) for alias in wanted}  # few of 20,000 lines are then left
    lines = re.findall(rf"^alias ((?:{'|'.join(sorted(starts))}|pci:v\*)\S*) (\S+)$", text, re.M)
    return {module(name) for pattern, name in lines if any(fnmatch.fnmatchcase(alias, pattern) for alias in wanted)}


def next_kernels(host: Host, running: str) -> list[str]:
    """The kernel that boots next; all that may be it, where the boot loader does not say."""
    installed = [name for name in host.names(_MODULES) if host.exists(f"/boot/vmlinuz-{name}")]
    installed.sort(key=functools.cmp_to_key(versions.compare))
    boot = attempt(bootloader.read, host)
    if isinstance(boot, Unknown) or not boot.loader:
        return list(dict.fromkeys([running, *installed]))
    if found := [kernel for kernel in installed if kernel in boot.entry]:
        return [max(found, key=len)]
    if installed and (boot.entry == "Ubuntu" or boot.entry.endswith("GNU/Linux")):
        return installed[-1:]  # grub-mkconfig's first entry has no release in its title: it starts the newest
    return list(dict.fromkeys([running, *installed]))


def file_of(host: Host, kernel: str, name: str) -> str | None:
    """The file of a module for a kernel, below its folder, as depmod has written it down; None where there is none."""
    listed = host.read(f"{_MODULES}/{kernel}/modules.dep")
    if listed is None:
        raise HostError(f"{_MODULES}/{kernel}/modules.dep: not there: cannot tell which drivers this kernel has")
    either = re.escape(name).replace("_", "[_-]").replace(r"\-", "[_-]")
    found = re.search(rf"^((?:\S*/)?{either}\.ko(?:\.\w+)?):", listed, re.M)
    return found[1].removeprefix(f"{_MODULES}/{kernel}/") if found else None


def _arguments(host: Host) -> list[tuple[str, set[str]]]:
    """Kernel arguments that name modules, as `(modules_load, {vfio_pci})`: of the next boot where it is known."""
    boot = bootloader.read(host)
    words = boot.now if isinstance(boot.later, Unknown) else boot.later
    keys = ("modules_load", "rd.modules_load", "modprobe.blacklist", "module_blacklist")
    return [
        (key, {module(name) for name in word.partition("=")[2].split(",") if name})
        for word in words
        if (key := bootloader.name_of(word)) in keys
    ]


def _config(host: Host, folder: str) -> Iterator[tuple[str, str]]:
    """The *.conf files of a configuration folder, by path. A file hides those of its name in later directories."""
    files: dict[str, str] = {}
    for directory in CONFIG_DIRS:
        for name in host.names(f"{directory}/{folder}"):
            if name.endswith(".conf"):
                files.setdefault(name, f"{directory}/{folder}/{name}")
    yield from ((path, host.read(path) or "") for _, path in sorted(files.items()))


def _drives(host: Host, name: str) -> bool:
    """Has some device this module as its driver? In sysfs a driver has a link to each of its devices."""
    for driver in host.names(f"/sys/module/{name}/drivers"):
        folder = f"/sys/module/{name}/drivers/{driver}"
        if any(host.link(f"{folder}/{entry}") for entry in host.names(folder) if entry not in _DRIVER_ATTRIBUTES):
            return True
    return False


# -- changing -------------------------------------------------------------------------------------


def load(host: Host, names: Sequence[str]) -> None:
    """Load modules into the running kernel, in this order; what they need comes with them."""
    for name in names:
        host.run("modprobe", name, timeout=_LOAD_S)


def unload(host: Host, names: Collection[str]) -> None:
    """Take modules out of the running kernel, those first that need others of them.

    ChangeFailed when one is still in use: what was taken out by then is loaded again, so nothing is half done.
    """
    gone: list[str] = []
    for name in _users_first(modules(host), names):
        try:
            host.run("rmmod", name, timeout=_LOAD_S)
        except HostError as e:
            said = e.output.strip().splitlines()[-1] if isinstance(e, CommandFailed) and e.output.strip() else str(e)
            _load_again(host, gone[::-1], said)
            raise ChangeFailed(f"{name}: {said}", "Stop what uses it; lsmod and fuser -v /dev/nvidia* tell.") from e
        gone.append(name)


def _load_again(host: Host, names: Sequence[str], why: str) -> None:
    try:
        load(host, names)
    except HostprepError as e:
        raise ChangeFailed(f"{why}; and {e}", f"Load them by hand: modprobe -a {' '.join(names)}") from e


def _users_first(loaded: dict[str, Module], names: Collection[str]) -> list[str]:
    """The order in which the kernel lets these go. HostError where something else needs one of them."""
    order: list[str] = []
    left = [name for name in names if name in loaded]
    for name in left:
        if others := [user for user in loaded[name].users if user not in left]:
            raise ChangeFailed(f"{name} is needed by {', '.join(others)}", "Unload that first.")
    while left:
        free = [name for name in left if not any(user in left for user in loaded[name].users)]
        if not free:
            raise ChangeFailed(f"{', '.join(left)}: each needs another of them", "See lsmod.")
        order += free
        left = [name for name in left if name not in free]
    return order
