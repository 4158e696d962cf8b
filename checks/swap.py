"""Swap: off now, and off after the next boot.

    swap: disabled

Now is /proc/swaps. Next boot is everything that would turn swap on again, each by its name:

    fstab:SPEC            a swap line in /etc/fstab without noauto
    gpt-auto:DEVICE       a GPT swap partition: systemd-gpt-auto-generator turns it on when fstab has no swap line at
                          all, so taking the line away turns swap back on
    unit:NAME.swap        a swap unit that some target wants
    zram-generator        systemd's zram generator with a configuration
    service:NAME          zramswap, dphys-swapfile and swapspace, which no mask of swap.target stops
    waagent               Azure's agent with ResourceDisk.EnableSwap=y
    cmdline:WORD          systemd.swap-extra= on the kernel command line

apply turns swap off device by device, and is refused when what is swapped out does not fit into memory with a
margin. For the next boot it keeps every fstab line and adds noauto to its options, masks units and services by a
link to /dev/null, and masks the zram generator. The partitions and files themselves stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hostprep import bootloader
from hostprep.errors import ChangeFailed, HostError
from hostprep.host import Host, attempt
from hostprep.model import Change, Desired, Facet, Fact, Facts, Goals, Section, Unknown
from hostprep.quantities import show_bytes

NAME = "swap"
SCHEMA = {"description": "Swap, now and after the next boot.", "enum": ["disabled"]}

FSTAB = "/etc/fstab"
UNITS = "/etc/systemd/system"
UNIT_DIRS = (UNITS, "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system")
GENERATOR_DIRS = (
    "/run/systemd/system-generators",
    "/etc/systemd/system-generators",
    "/usr/local/lib/systemd/system-generators",
    "/usr/lib/systemd/system-generators",
)
ZRAM_CONFIGS = tuple(f"{d}/systemd/zram-generator.conf" for d in ("/run", "/etc", "/usr/local/lib", "/usr/lib"))
SERVICES = ("zramswap.service", "dphys-swapfile.service", "swapspace.service")
WAAGENT = "/etc/waagent.conf"
GPT_SWAP = "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"
GPT_NO_AUTO = 1 << 63
MARGIN = 256 * 1024**2  # bytes of memory that must remain available after swapoff


# -- looking --------------------------------------------------------------------------------------


def inspect(host: Host) -> Facts:
    text = host.read("/proc/swaps")
    if text is None:
        raise HostError("/proc/swaps: not there: this kernel has no swap, or /proc is not mounted")
    rows = [line.split() for line in text.splitlines()[1:]]
    return {
        "devices": Fact(tuple(_device(row) for row in rows), attempt(_sources, host)),
        "used": Fact.fixed(sum(int(row[3]) for row in rows) * 1024),
        "memory-available": Fact.fixed(_available(host)),
    }


def _device(row: Sequence[str]) -> str:
    """`/swapfile`, with the priority where somebody chose one (the kernel's own are negative)."""
    name = row[0].replace(r"\040", " ")
    return f"{name} priority {row[4]}" if int(row[4]) >= 0 else name


def _available(host: Host) -> int:
    for line in (host.read("/proc/meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise HostError("/proc/meminfo: no MemAvailable in it")


def _sources(host: Host) -> tuple[str, ...]:
    """What will turn swap on at the next boot."""
    by_target = () if _masked(host, "swap.target") else _pulled_in_by_swap_target(host)
    services = (f"service:{name}" for name in SERVICES if _enabled(host, name))
    waagent = re.search(r"^\s*ResourceDisk\.EnableSwap\s*=\s*y", host.read(WAAGENT) or "", re.M)
    return (*by_target, *services, *(("waagent",) if waagent else ()))


def _pulled_in_by_swap_target(host: Host) -> list[str]:
    boot = bootloader.read(host)
    # Arguments that turn swap off count only where the next boot is known to have them; those that turn it on, always.
    sure: tuple[str, ...] = () if isinstance(boot.later, Unknown) else boot.later
    likely = boot.now if isinstance(boot.later, Unknown) else boot.later
    off = any(word in sure for word in ("systemd.swap=0", "systemd.swap=no", "systemd.swap=off", "systemd.swap=false"))
    version = _systemd_version(host)
    lines = _fstab(host)
    sources = []
    if not (off and version >= 246):  # fstab-generator honours systemd.swap= since 246
        sources += [f"fstab:{spec}" for spec, options in lines if "noauto" not in options]
        sources += [f"cmdline:{w}" for w in likely if re.match(r"systemd\.swap[-_]extra=", w)]
    # gpt-auto-generator honours it since 254; any swap line in fstab, even with noauto, keeps it away
    if not lines and not (off and version >= 254) and "systemd.gpt_auto=0" not in sure:
        sources += [f"gpt-auto:{device}" for device in _gpt_swaps(host)]
    sources += [f"unit:{name}" for name in _swap_units(host)]
    if _zram_generator(host) and "systemd.zram=0" not in sure:
        sources.append("zram-generator")
    return sources


def _systemd_version(host: Host) -> int:
    """The version of systemd by its private library; 0 where that does not tell."""
    for folder in ("/usr/lib/systemd", "/usr/lib/x86_64-linux-gnu/systemd", "/usr/lib/aarch64-linux-gnu/systemd"):
        for name in host.names(folder):
            if match := re.match(r"libsystemd-shared-(\d+)", name):
                return int(match[1])
    return 0


def _fstab(host: Host) -> list[tuple[str, list[str]]]:
    """The swap lines: what they name, and their options. Only the type field says that a line is about swap."""
    lines = []
    for line in (host.read(FSTAB) or "").splitlines():
        fields = line.split()
        if len(fields) >= 3 and not fields[0].startswith("#") and fields[2] == "swap":
            lines.append((fields[0], fields[3].split(",") if len(fields) > 3 else ["defaults"]))
    return lines


def _gpt_swaps(host: Host) -> list[str]:
    """Swap partitions that systemd-gpt-auto-generator would turn on, unless its unit is masked.

    udev's database has the partition types. Without it they cannot be told, and that is said.
    """
    if not _generator(host, "systemd-gpt-auto-generator"):
        return []
    found = []
    for path in host.glob("/sys/class/block/*/partition"):
        name = path.split("/")[4]
        number = host.read(f"/sys/class/block/{name}/dev")
        record = host.read(f"/run/udev/data/b{number}")
        if record is None:
            raise HostError(
                f"cannot tell what the partition {name} is: udev has no record of it (/run/udev/data/b{number})"
            )
        fields = dict(line[2:].partition("=")[::2] for line in record.splitlines() if line.startswith("E:"))
        flags = int(fields.get("ID_PART_ENTRY_FLAGS", "0"), 0)
        wanted = fields.get("ID_PART_ENTRY_TYPE", "").lower() == GPT_SWAP and not flags & GPT_NO_AUTO
        if wanted and not _masked(host, _unit_name(f"/dev/{name}")):
            found.append(f"/dev/{name}")
    return found


def _generator(host: Host, name: str) -> bool:
    """Is this generator there? The first directory that has it decides; a link to /dev/null masks it."""
    for folder in GENERATOR_DIRS:
        if host.exists(f"{folder}/{name}"):
            return host.link(f"{folder}/{name}") != "/dev/null"
    return False


def _zram_generator(host: Host) -> bool:
    """A zram device in the first main file that exists, or in any drop-in (zram-generator.conf(5))."""
    if not _generator(host, "zram-generator"):
        return False
    main = next((path for path in ZRAM_CONFIGS if host.exists(path)), None)
    texts = [host.read(path) for path in [main] if path and host.link(path) != "/dev/null"]
    texts += [host.read(f) for config in ZRAM_CONFIGS for f in host.glob(f"{config}.d/*.conf")]
    return any(re.search(r"^\s*\[zram\d+\]", text or "", re.M) for text in texts)


def _swap_units(host: Host) -> list[str]:
    """Swap units that a target wants and that nobody masked; generated ones belong to their source."""
    names = {path.rpartition("/")[2] for folder in UNIT_DIRS for path in host.glob(f"{folder}/*.wants/*.swap")}
    return sorted(name for name in names if not _masked(host, name))


def _enabled(host: Host, name: str) -> bool:
    return bool(host.glob(f"{UNITS}/*.wants/{name}")) and not _masked(host, name)


def _masked(host: Host, unit: str) -> bool:
    """Is a unit masked, by a link to /dev/null in /etc or /run?"""
    return any(host.link(f"{folder}/{unit}") == "/dev/null" for folder in UNIT_DIRS[:2])


def _unit_name(device: str) -> str:
    """`/dev/disk/by-label/a b` as systemd-escape(1) --path --suffix=swap has it."""
    escaped = "".join(
        c if c.isalnum() or c in ":_./" else "".join(f"\\x{b:02x}" for b in c.encode()) for c in device.strip("/")
    )
    return escaped.replace("/", "-") + ".swap"


# -- deciding -------------------------------------------------------------------------------------


def decide(facts: Facts, want: Section) -> Goals:
    used, available = facts["used"].current, facts["memory-available"].current
    assert isinstance(used, int)
    assert isinstance(available, int)
    refused = ""
    if used + MARGIN > available:
        refused = (
            f"{show_bytes(used)} are swapped out and only {show_bytes(available)} of memory are available: "
            "swapoff would run out of memory"
        )
    later = facts["devices"].next_boot
    fixed = [s for s in later if s.startswith("cmdline:")] if isinstance(later, tuple) else []
    return {
        "devices": Desired(
            (),
            refused_now=refused,
            refused_next=f"{fixed[0]} is a kernel argument" if fixed else "",
            means=_meaning(facts["devices"]),
            fix="Take it out in the profile: kernel_args: {unset: [systemd.swap_extra]}"
            if fixed
            else "Free memory first, or reboot.",
        )
    }


def _meaning(devices: Fact) -> str:
    if isinstance(devices.current, Unknown) or isinstance(devices.next_boot, Unknown):
        return ""
    now = "Swap is on" if devices.current else "Swap is off"
    return (
        f"{now}, and the next boot turns it on again."
        if devices.next_boot
        else f"{now}, and nothing turns it on at the next boot."
    )


# -- changing -------------------------------------------------------------------------------------


def apply(host: Host, changes: Sequence[Change]) -> None:
    for change in changes:
        before, after = _items(change.before), _items(change.after)
        if change.facet is Facet.CURRENT:
            for item in before:
                if item not in after:
                    host.run("swapoff", item.partition(" priority ")[0], timeout=600)
            for item in after:
                if item not in before:
                    name, _, priority = item.partition(" priority ")
                    host.run("swapon", *(("-p", priority) if priority else ()), name, timeout=60)
            continue
        for item in before:
            if item not in after:
                _turn(host, item, on=False)
        for item in after:
            if item not in before:
                _turn(host, item, on=True)


def finish(host: Host) -> None:
    """Have a running systemd read its units again, so that it does not start what is masked now."""
    if host.exists("/run/systemd/system"):
        host.run("systemctl", "daemon-reload", timeout=90)


def _items(value: object) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else ()


def _turn(host: Host, source: str, on: bool) -> None:
    kind, _, name = source.partition(":")
    if kind == "fstab":
        _set_noauto(host, name, not on)
    elif kind == "gpt-auto":
        _mask(host, f"{UNITS}/{_unit_name(name)}", not on)
    elif kind in ("unit", "service"):
        _mask(host, f"{UNITS}/{name}", not on)
    elif kind == "zram-generator":
        _mask(host, "/etc/systemd/system-generators/zram-generator", not on)
    elif kind == "waagent":
        text = (host.read_bytes(WAAGENT) or b"").decode(errors="surrogateescape")
        text = re.sub(r"^(\s*ResourceDisk\.EnableSwap\s*=\s*)[yn]", rf"\g<1>{'y' if on else 'n'}", text, flags=re.M)
        host.replace(WAAGENT, text.encode(errors="surrogateescape"))
    else:
        raise ChangeFailed(f"{source}: hostprep does not change this")


def _mask(host: Host, path: str, masked: bool) -> None:
    if not masked:
        if host.link(path) == "/dev/null":
            host.replace(path, None)
        return
    if host.state_kind(path) == "file":
        raise ChangeFailed(
            f"{path} is a file of this site's own, so it cannot be masked", "Disable it, then try again."
        )
    host.symlink(path, "/dev/null")


def _set_noauto(host: Host, spec: str, noauto: bool) -> None:
    """Change the options of one swap line, and not a byte of anything else."""
    text = (host.read_bytes(FSTAB) or b"").decode(errors="surrogateescape")
    lines = text.splitlines(keepends=True)
    for i, line in enumerate(lines):
        parts = re.match(r"(\s*(\S+)\s+\S+\s+swap)(?:(\s+)(\S+))?", line)
        if not parts or parts[2] != spec or parts[2].startswith("#"):
            continue
        options = [o for o in (parts[4] or "defaults").split(",") if o != "noauto"]
        if noauto:
            options.append("noauto")
        lines[i] = parts[1] + (parts[3] or " ") + (",".join(options) or "defaults") + line[parts.end() :]
    host.replace(FSTAB, "".join(lines).encode(errors="surrogateescape"))
