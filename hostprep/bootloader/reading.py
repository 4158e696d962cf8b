"""What the kernel was booted with, and what the next one will be: read where the boot loader itself reads."""

from __future__ import annotations

import re
from typing import NamedTuple

from hostprep.bootloader import menu, words
from hostprep.errors import HostError
from hostprep.host import Host
from hostprep.model import Unknown

CMDLINE = "/proc/cmdline"
GRUB_CFGS = ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg")
EFI_GRUB_CFGS = "/boot/efi/EFI/*/grub.cfg"  # where RHEL 8 has it on UEFI machines
BLS = "/boot/loader/entries"
LOADER_INFO = "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"


class Boot(NamedTuple):
    """Arguments of now and of the next boot. `loader` is grub, bls, or '' with `why` when hostprep cannot write it."""

    now: tuple[str, ...]
    later: tuple[str, ...] | Unknown
    loader: str
    entry: str = ""  # title or id of the entry that will boot
    why: str = ""


def read(host: Host) -> Boot:
    """What the kernel was booted with, and what the next one will be."""
    text = host.read(CMDLINE)
    if text is None:
        raise HostError(f"{CMDLINE}: not there")
    now = words.split(text)
    try:
        cfg = grub_cfg(host)
        if cfg is None or (why := _started_elsewhere(host, now)):
            raise HostError(why if cfg else _no_loader(host))
        script, env = grub_script(host, cfg), grubenv(host, cfg)
        if "env_block" in env:  # openSUSE on btrfs: the file does not hold what GRUB saves
            raise HostError(f"{cfg}: GRUB keeps its variables in raw blocks: hostprep cannot tell which entry boots")
        bls = [_menu_entry(entry, script, env) for entry in bls_entries(host)] if has_blscfg(script) else []
        entry = menu.default(script, env, bls)
        if entry.words is None:
            raise HostError(f"{cfg}: the entry {entry.title!r} starts no Linux kernel that hostprep can read")
    except HostError as e:
        return Boot(now, Unknown(str(e)), "", why=str(e))
    if has_blscfg(script):
        return Boot(now, entry.words, "bls", entry.id or entry.title)
    return Boot(now, tuple(menu.handed_on(word) for word in entry.words), "grub", entry.title)


def container(host: Host) -> str:
    """The kind of container that this is; '' on a machine of its own."""
    if kind := host.read("/run/systemd/container"):
        return kind
    if host.read("/proc/2/comm") == "kthreadd":
        return ""  # kernel threads are seen only outside; a VM made from a container image has its marks too
    for path, kind in (("/.dockerenv", "docker"), ("/run/.containerenv", "podman")):
        if host.exists(path):
            return kind
    return ""


# -- which boot loader ----------------------------------------------------------------------------


def grub_cfg(host: Host) -> str | None:
    """The grub.cfg that GRUB reads on this host: the only one that has a menu."""
    found = [path for path in GRUB_CFGS if host.exists(path)]
    found += [path for path in host.glob(EFI_GRUB_CFGS) if _has_menu(host.read(path) or "")]
    if len({host.resolve(path) for path in found}) > 1:  # which one depends on what the firmware starts
        raise HostError(f"two grub.cfg ({', '.join(found)}): cannot tell which one is read")
    return found[0] if found else None


def _has_menu(script: str) -> bool:
    """Or is it but a stub, which leads to another grub.cfg (`configfile`)?"""
    return re.search(r"^\s*(menuentry|submenu|blscfg)\b", script, re.M) is not None


def has_blscfg(script: str) -> bool:
    """Does this grub.cfg take its entries from the Boot Loader Specification's files?"""
    return re.search(r"^\s*blscfg\b", script, re.M) is not None


def _started_elsewhere(host: Host, now: tuple[str, ...]) -> str:
    """Why the grub.cfg found here is not what starts this machine; '' when it may well be."""
    if where := container(host):
        return f"this is a container ({where}): kernel arguments belong to the host around it"
    loader = (host.read_bytes(LOADER_INFO) or b"")[4:].decode("utf-16-le", errors="replace").strip("\0")
    if loader.startswith("systemd-boot"):
        return f"this machine was started by {loader}, which is not supported yet, though there is a grub.cfg"
    if not any(word.startswith("BOOT_IMAGE=") for word in now):  # GRUB puts it before all others
        return (
            "this kernel was not started by GRUB (no BOOT_IMAGE= in /proc/cmdline), though there is a grub.cfg: "
            "a hypervisor, PXE or kexec decides its arguments"
        )
    return ""


def _no_loader(host: Host) -> str:
    if where := container(host):
        return f"this is a container ({where}): kernel arguments belong to the host around it"
    found = any(host.exists(f"{esp}/loader/loader.conf") for esp in ("/boot", "/efi", "/boot/efi"))
    what = "systemd-boot is not supported yet" if found else "no GRUB configuration was found on this host"
    return f"{what}: hostprep cannot tell what the next boot's kernel arguments are"


# -- GRUB -----------------------------------------------------------------------------------------


def grub_script(host: Host, cfg: str) -> str:
    """A grub.cfg, with the custom.cfg beside it that Debian's includes."""
    script = host.read(cfg) or ""
    custom = f"{cfg.rpartition('/')[0]}/custom.cfg"
    return f"{script}\n{host.read(custom) or ''}" if "custom.cfg" in script else script


def grubenv(host: Host, cfg: str) -> dict[str, str]:
    """The variables of the environment block beside a grub.cfg."""
    text = (host.read_bytes(f"{cfg.rpartition('/')[0]}/grubenv") or b"").decode(errors="surrogateescape")
    pairs = (line.partition("=") for line in text.splitlines() if not line.startswith("#"))
    return {name: re.sub(r"\\(.)", r"\1", value) for name, eq, value in pairs if eq}


# -- Boot Loader Specification --------------------------------------------------------------------


class BlsEntry(NamedTuple):
    """A file that describes one menu entry. Its options may hold variables of GRUB."""

    path: str
    id: str  # the file name without .conf
    title: str
    options: str


def bls_entries(host: Host) -> list[BlsEntry]:
    """The entries of the Boot Loader Specification, newest first, as GRUB's blscfg lists them."""
    entries = []
    for path in host.glob(f"{BLS}/*.conf"):
        text = (host.read_bytes(path) or b"").decode(errors="surrogateescape")
        fields: dict[str, list[str]] = {}
        for match in re.finditer(r"^(title|options)[ \t]+(.*?)[ \t]*$", text, re.M):
            fields.setdefault(match[1], []).append(match[2])
        ident = path.rpartition("/")[2].removesuffix(".conf")
        entries.append(BlsEntry(path, ident, *(" ".join(fields.get(name, [])) for name in ("title", "options"))))
    return sorted(entries, key=lambda entry: _age(entry.id), reverse=True)


def _menu_entry(entry: BlsEntry, script: str, env: dict[str, str]) -> menu.Entry:
    return menu.Entry(entry.title, entry.id, menu.bls_words(entry.options, script, env))


def _age(ident: str) -> list[list[tuple[int, int, str]]]:
    """Sort key of an id as blscfg orders them: name, version and release, each by rpm's rules (rpmvercmp)."""
    parts = []
    for part in ident.rsplit("-", 2):
        runs = re.findall(r"\d+|[A-Za-z]+|~", part)
        key = [(3, int(r), "") if r.isdecimal() else (0, 0, "") if r == "~" else (2, 0, r) for r in runs]
        parts.append([*key, (1, 0, "")])
    return parts
