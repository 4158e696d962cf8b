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
_NEVER = re.compile(r"(?:(?:/usr)?/bin/)?(?:true|false)(?:\s+(?:#.*|\$CMDLINE_OPTS))?")
_FORCED = re.compile(r"""^\s*force_drivers\+?=["']?([^"'#\n]*)""", re.M)
# Debian names the files of NVIDIA's modules for the package, so that several can be there: nvidia-current-open-uvm.ko
_FLAVOUR = re.compile(r"^nvidia_(?:current|tesla|legacy)(?:_open|_[0-9]+(?:xx)?)*(?=_|$)")
_HEAD = len("pci:v00008086d00001521")  # of a modalias: the vendor and the device


class Module(NamedTuple):
    """A module that is loaded, as /proc/modules has it."""

    references: int  # of modules, open devices, and whatever else holds it
    users: tuple[str, ...]  # the modules that need it


class Line(NamedTuple):
    """A line of modprobe.d."""

    keyword: str  # alias, blacklist, install, options, softdep
    name: str  # a module; in alias and install a glob, and in alias of devices too
    rest: str
    path: str


class Rules(NamedTuple):
    """What modprobe and the kernel are told not to load: modules, and by which file or kernel argument each."""

    refused: dict[str, str]  # by the kernel itself, whoever loads them: module_blacklist=
    blacklisted: dict[str, str]  # for a device, or by systemd-modules-load; not by name, nor as what another needs
    lines: list[Line]  # of modprobe.d


_Arguments = list[tuple[str, set[str]]]  # of the kernel, those that name modules


def module(name: str) -> str:
    """The name as the kernel writes it."""
    return name.replace("-", "_")


def own_name(name: str) -> str:
    """The name that the kernel knows a module by, whatever its file is called."""
    return _FLAVOUR.sub("nvidia", module(name))


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
    arguments = _arguments(host)
    told = _rules(host, arguments)
    for_devices = {name for name in loaded if _drives(host, name)} | set(autoloaded)
    lasting = for_devices | {name for name in _named(host, arguments) if not _never_by(told, name)}
    lasting = {own_name(name) for name in lasting if not _forbidden_by(told, name)}
    lasting |= early(host) - set(told.refused)
    users = {name: set(host.names(f"/sys/module/{name}/holders")) for name in loaded}
    while needed := {name for name in set(loaded) - lasting if users[name] & lasting}:
        lasting |= needed
    return lasting


def _named(host: Host, arguments: _Arguments) -> set[str]:
    """Modules that systemd loads at boot because a file or a kernel argument names them."""
    found = {name for key, names in arguments if key.endswith("modules_load") for name in names}
    for text in (host.read("/etc/modules") or "", *(text for _, text in _config(host, "modules-load.d"))):
        lines = (line.split() for line in text.splitlines())
        found |= {module(words[0]) for words in lines if words and words[0][0] not in "#;"}
    return found


def rules(host: Host) -> Rules:
    """What modprobe.d and the kernel arguments forbid. As kmod 30 reads them: a line may go on after a backslash, what
    follows the name in `blacklist` is ignored, of several `install` lines for a name the first counts, and none where
    there is a `softdep` of that name: NVIDIA's packages for RHEL have `softdep nvidia post: nvidia-uvm`.
    """
    return _rules(host, _arguments(host))


def _rules(host: Host, arguments: _Arguments) -> Rules:
    refused: dict[str, str] = {}
    blacklisted: dict[str, str] = {}
    for key, names in arguments:
        if key.endswith("blacklist"):
            (refused if key == "module_blacklist" else blacklisted).update(dict.fromkeys(names, f"{key}="))
    lines = list(_modprobe_d(host))
    for line in lines:
        if line.keyword == "blacklist":
            blacklisted.setdefault(module(line.name), line.path)
    return Rules(refused, blacklisted, lines)


def forbidden_by(host: Host, name: str) -> str:
    """The file or kernel argument that keeps any boot from loading a module for a device; empty if none does."""
    return _forbidden_by(rules(host), module(name))


def never_by(host: Host, name: str) -> str:
    """The file or kernel argument that keeps a module from being loaded by its name; empty if none does."""
    return _never_by(rules(host), module(name))


def barred_by(host: Host, name: str) -> str:
    """The file or kernel argument that keeps a module out even where others need it; empty if none does."""
    return _barred_by(rules(host), module(name))


def _forbidden_by(told: Rules, name: str) -> str:
    return _barred_by(told, name) or told.blacklisted.get(name, "")


def _never_by(told: Rules, name: str) -> str:
    """An alias of the name is looked for before the module itself, and `off` is none."""
    aliases = [line for line in told.lines if line.keyword == "alias" and _matches(module(line.name), name)]
    off = aliases[0].path if aliases and all(map(_does_nothing, aliases)) else ""
    return _barred_by(told, name) or off


def _barred_by(told: Rules, name: str) -> str:
    if name in told.refused:
        return told.refused[name]
    if any(line.keyword == "softdep" and module(line.name) == name for line in told.lines):
        return ""
    installs = (line for line in told.lines if line.keyword == "install" and _matches(module(line.name), name))
    first = next(installs, None)
    return first.path if first is not None and _does_nothing(first) else ""


def _does_nothing(line: Line) -> bool:
    """Does this line of modprobe.d put nothing in place of a module?"""
    if line.keyword == "alias":
        return line.rest.split()[0] == "off"
    return line.keyword == "install" and _NEVER.fullmatch(line.rest) is not None


def _modprobe_d(host: Host) -> Iterator[Line]:
    """The lines of modprobe.d that say something, in the order in which they count."""
    for path, text in _config(host, "modprobe.d", (".conf", ".alias")):
        for line in text.replace("\\\n", "").splitlines():
            keyword, name, rest, *_ = [*line.split(maxsplit=2), "", "", ""]
            if keyword == "blacklist" or rest:
                yield Line(keyword, name, rest.strip(), path)


def early(host: Host) -> set[str]:
    """Modules that the initramfs loads by name, which a blacklist does not stop. initramfs-tools(7), dracut.conf(5)

    dracut's add_drivers only puts a module into the initramfs; force_drivers has it loaded.
    """
    lists = ["/etc/initramfs-tools/modules", *host.glob("/usr/share/initramfs-tools/modules.d/*")]
    lines = [line.split() for path in lists for line in (host.read(path) or "").splitlines()]
    found = {own_name(words[0]) for words in lines if words and not words[0].startswith("#")}
    folders = ("dracut.conf.d", "dracut/dracut.conf.d")  # in /etc, in /usr/lib
    for path in ("/etc/dracut.conf", *(path for folder in folders for path, _ in _config(host, folder))):
        for names in _FORCED.findall(host.read(path) or ""):
            found |= {own_name(name) for name in names.split()}
    return found


def autoloaded(host: Host, kernel: str, modaliases: Iterable[str]) -> set[str]:
    """The modules that udev loads for PCI devices with these modaliases, blacklists apart.

    `alias` in modprobe.d comes before modules.alias of depmod, and "off" there is no module.
    """
    wanted = {alias for alias in modaliases if alias.startswith("pci:v")}
    if not wanted:
        return set()
    ours = [line for line in _modprobe_d(host) if line.keyword == "alias"]
    told = {alias: {line.rest.split()[0] for line in ours if _matches(line.name, alias)} for alias in wanted}
    rest = [alias for alias, names in told.items() if not names]
    return {module(name) for names in told.values() for name in names if name != "off"} | _listed(host, kernel, rest)


def _listed(host: Host, kernel: str, modaliases: Collection[str]) -> set[str]:
    """What modules.alias has for PCI devices: a megabyte, of which only lines of these vendors are looked at."""
    if not modaliases:
        return set()
    vendors = b"|".join({re.escape(alias[5:13].encode()) for alias in modaliases})
    text = b"\n" + (host.read_bytes(f"{_MODULES}/{kernel}/modules.alias") or b"")
    heads: dict[bytes, list[str]] = {}
    for alias in modaliases:
        heads.setdefault(alias[:_HEAD].encode(), []).append(alias)
    found = set()
    for glob, name in re.findall(rb"\nalias (pci:v(?:\*|%s)\S*) (\S+)" % vendors, text):
        head = glob[:_HEAD]
        if maybe := modaliases if b"*" in head or b"[" in head or b"?" in head else heads.get(head):
            pattern = glob.decode(errors="replace")
            if any(_matches(pattern, alias) for alias in maybe):
                found.add(module(name.decode(errors="replace")))
    return found


def _matches(glob: str, text: str) -> bool:
    """fnmatch(3), quick where the only wildcard is `*`: a pattern is seldom used twice."""
    if "[" in glob or "?" in glob:
        return fnmatch.fnmatchcase(text, glob)
    first, *others = glob.split("*")
    if not others:
        return glob == text
    if not text.startswith(first):
        return False
    at, last = len(first), others.pop()
    for part in others:
        if (at := text.find(part, at)) < 0:
            return False
        at += len(part)
    return text.endswith(last) and at <= len(text) - len(last)


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
    files: dict[str, list[str]] = {}
    wanted = module(name)
    for line in listed.splitlines():
        file = line.partition(":")[0].removeprefix(f"{_MODULES}/{kernel}/")
        stem = module(file.rpartition("/")[2].partition(".")[0])
        if stem == wanted:
            return file
        if stem.startswith(wanted[:6]) and own_name(stem) == wanted:
            files.setdefault(stem, []).append(file)
    if len(files) > 1:
        raise HostError(f"{kernel} has several modules for {name}: {', '.join(sorted(files))}")
    return next((of[0] for of in files.values()), None)


def _arguments(host: Host) -> _Arguments:
    """Kernel arguments that name modules, as `(modules_load, {vfio_pci})`: of the next boot where it is known."""
    boot = bootloader.read(host)
    words = boot.now if isinstance(boot.later, Unknown) else boot.later
    keys = ("modules_load", "rd.modules_load", "modprobe.blacklist", "module_blacklist")
    return [
        (key, {module(name) for name in word.partition("=")[2].split(",") if name})
        for word in words
        if (key := bootloader.name_of(word)) in keys
    ]


def _config(host: Host, folder: str, endings: tuple[str, ...] = (".conf",)) -> Iterator[tuple[str, str]]:
    """The files of a configuration folder, by path. A file hides those of its name in later directories."""
    files: dict[str, str] = {}
    for directory in CONFIG_DIRS:
        for name in host.names(f"{directory}/{folder}"):
            if name.endswith(endings):
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
    """Load modules into the running kernel, in this order; what they need comes with them.

    What a file of modprobe.d keeps out for the next boot is not kept out now: modprobe reads the others alone.
    """
    barring = {
        line.path
        for line in _modprobe_d(host)
        if _does_nothing(line) and any(_matches(module(line.name), module(name)) for name in names)
    }
    others = [path for path, _ in _config(host, "modprobe.d", (".conf", ".alias")) if path not in barring]
    config = [word for path in others or ["/dev/null"] for word in ("--config", path)] if barring else []
    for name in names:
        host.run("modprobe", *config, name, timeout=_LOAD_S)


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
    """The order in which the kernel lets these go. ChangeFailed where something else needs one of them."""
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
