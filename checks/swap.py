"""Swap: off now, and off after the next boot.

    swap: disabled

Now is /proc/swaps. Next boot is everything that would turn swap on again, each by its name:

    fstab:SPEC            a swap line in /etc/fstab without noauto
    gpt-auto:DEVICE       a GPT swap partition: systemd-gpt-auto-generator turns it on when fstab has no swap line at
                          all, so taking the line away turns swap back on (partitions of every disk are counted)
    unit:NAME.swap        a swap unit that some other unit wants or requires
    zram-generator:zramN  a swap device that systemd's zram generator is configured to make
    service:NAME          zramswap, dphys-swapfile, swapspace and their like, which no mask of swap.target stops
    generated:NAME.swap   a swap unit of any other generator
    waagent               Azure's agent with ResourceDisk.EnableSwap=y
    cmdline:WORD          systemd.swap-extra= on the kernel command line (by hand: see kernel_args)
    rc.local:PATH         a swapon in /etc/rc.local (by hand)
    script:PATH           a swapon in /etc/crontab, /etc/cron.d or an enabled unit of the site's own, or such a unit
                          that requires or wants a swap unit (by hand); scripts that they call are not read

What counts are the kernel arguments of the next boot: systemd.swap=0 stops what fstab says since systemd 246 and
GPT swap partitions since 254, systemd.gpt_auto=0 and systemd.zram=0 stop their own generator. They are believed
only where it is known that the next boot will have them.

apply turns swap off device by device, and is refused when what is swapped out does not fit into memory with a
margin. For the next boot it keeps every fstab line and adds noauto to its options, adds a noauto line for a GPT
swap partition, and masks units and services by a link to /dev/null; one whose file is the site's own is no longer
wanted instead, as `systemctl disable` does. The partitions and files themselves stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from hostprep import bootloader
from hostprep.errors import ChangeFailed, HostError
from hostprep.host import Host, attempt
from hostprep.model import Change, Desired, Facet, Fact, Facts, Goals, Section, Suggestion, Unknown
from hostprep.quantities import show_bytes
from hostprep.units import unit_name

NAME = "swap"
MOVING = ("used", "memory-available")
SCHEMA = {"description": "Swap, now and after the next boot.", "enum": ["disabled"]}

FSTAB = "/etc/fstab"
# Of systemd.unit(5) and systemd.generator(7) the directories that survive a reboot: what is below /run does not.
# /lib is not always /usr/lib: Debian merged them for good only with 12.
UNITS = "/etc/systemd/system"
UNIT_DIRS = (UNITS, *(f"{d}/systemd/system" for d in ("/usr/local/lib", "/usr/lib", "/lib")))
GENERATOR_DIRS = tuple(f"{d}/systemd/system-generators" for d in ("/etc", "/usr/local/lib", "/usr/lib", "/lib"))
GENERATED_DIRS = tuple(f"/run/systemd/generator{d}" for d in (".early", "", ".late"))
ZRAM_CONFIGS = tuple(f"{d}/systemd/zram-generator.conf" for d in ("/etc", "/usr/local/lib", "/usr/lib"))
SERVICES = (  # all of them wanted by multi-user.target, not by swap.target
    "zramswap.service",  # Debian's zram-tools
    "zram-config.service",  # Ubuntu
    "zram-swap.service",
    "dphys-swapfile.service",
    "swapspace.service",
    "systemd-swap.service",
)
WAAGENT = "/etc/waagent.conf"
WAAGENT_SWAP = rb'(?m)^([ \t]*ResourceDisk\.EnableSwap[ \t]*=[ \t"]*)([yYnN])(?![^"#\s])'
RC_LOCALS = ("/etc/rc.local", "/etc/rc.d/rc.local")
SWAPON = r"\bswapon\b(?!\s+(-s|-V|--s\w*|--version)\b)"  # less those that only show what is on
STARTS_SWAPON = rf"(?m)^\s*Exec(Condition|StartPre|Start|StartPost)\s*=.*{SWAPON}"
STARTS_UNITS = r"(?m)^\s*(?:Requires|Wants|BindsTo|Upholds)\s*=(.*)$"
CRONTABS = ("/etc/crontab", "/etc/cron.d/*")
NO_CRONTAB = r"^\.|~$|\.(rpm|dpkg-)\w+$"  # cron(8) passes these over
GPT_SWAP = "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"
GPT_NO_AUTO = 1 << 63
MARGIN = 256 * 1024**2  # bytes of memory that must remain available after swapoff
BY_HAND = {
    "cmdline": "Take it out in the profile: kernel_args: {unset: [systemd.swap_extra]}",
    "rc.local": "Take swapon out of that file.",
    "script": "Take what turns swap on out of that file; a unit that does nothing else can be disabled.",
}


# -- looking --------------------------------------------------------------------------------------


def inspect(host: Host) -> Facts:
    text = host.read("/proc/swaps")
    if text is None:
        raise HostError("/proc/swaps: not there: this kernel has no swap, or /proc is not mounted")
    header, *lines = text.splitlines() or [""]
    rows = [re.fullmatch(r"(/\S*)\s+\w+\s+\d+\s+(\d+)\s+(-?\d+)", line.strip()) for line in lines]
    if not header.startswith("Filename") or None in rows:
        raise HostError("/proc/swaps: hostprep does not understand what it says")
    return {
        "devices": Fact(tuple(_device(*row.group(1, 3)) for row in rows if row), attempt(_sources, host)),
        "used": Fact.fixed(sum(int(row[2]) for row in rows if row) * 1024),
        "memory-available": Fact.fixed(attempt(_available, host)),
    }


def _device(name: str, priority: str) -> str:
    """`/swapfile`, with the priority where somebody chose one (the kernel's own are negative)."""
    name = _unescaped(name)
    return f"{name} priority {priority}" if int(priority) >= 0 else name


def _unescaped(field: str) -> str:
    r"""A field of /proc/swaps or fstab: white space is written as `\040` there."""
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), field)


def _available(host: Host) -> int:
    match = re.search(r"^MemAvailable:\s+(\d+) kB", host.read("/proc/meminfo") or "", re.M)
    if not match:
        raise HostError("/proc/meminfo: no MemAvailable in it")
    return int(match[1]) * 1024


def _sources(host: Host) -> tuple[str, ...]:
    """What will turn swap on at the next boot."""
    target = not _masked(host, "swap.target")  # masked, it starts nothing; what others want is started all the same
    sources = [*_started_by_swap_target(host)] if target else []
    links = [link for link in _links(host, UNIT_DIRS) if target or not link.startswith("swap.target.")]
    for name in sorted({link.partition("/")[2] for link in links}):
        if not _masked(host, name):
            sources.append(f"unit:{name}" if name.endswith(".swap") else f"service:{name}")
    switches = re.findall(WAAGENT_SWAP, host.read_bytes(WAAGENT) or b"")
    if switches and switches[-1][1] in b"yY":
        sources.append("waagent")
    for path in dict.fromkeys(host.resolve(path) for path in RC_LOCALS):
        if _has_swapon(host, path):
            sources.append(f"rc.local:{path}")
    crontabs = (path for pattern in CRONTABS for path in host.glob(pattern))
    sources += (f"script:{path}" for path in crontabs if _counts_for_cron(host, path) and _has_swapon(host, path))
    sources += (f"script:{path}" for path in _site_units(host))
    return tuple(sources)


def _has_swapon(host: Host, path: str) -> bool:
    return re.search(rf"^[^#\n]*{SWAPON}", host.read(path) or "", re.M) is not None


def _counts_for_cron(host: Host, path: str) -> bool:
    return not re.search(NO_CRONTAB, path.rpartition("/")[2]) and host.state_kind(path) != "directory"


def _site_units(host: Host) -> Iterator[str]:
    """Files in /etc of units that something starts, and that turn swap on."""
    wanted = {link.partition("/")[2] for link in _links(host, UNIT_DIRS, of_swap=False)}
    wanted |= {re.sub(r"\.(timer|path|socket)$", ".service", name) for name in wanted}  # what they start
    wanted |= {re.sub(r"@[^.]*\.", "@.", name) for name in wanted}  # x@1.service is made of x@.service
    for path in [*host.glob(f"{UNITS}/*.*"), *host.glob(f"{UNITS}/*.*.d/*.conf")]:
        unit = path.split("/")[4].removesuffix(".d")
        if unit not in wanted or unit in SERVICES or host.state_kind(path) == "directory" or _masked(host, unit):
            continue
        text = re.sub(r"\\\n", " ", host.read(path) or "")
        units = {name for names in re.findall(STARTS_UNITS, text) for name in names.split() if name.endswith(".swap")}
        if re.search(STARTS_SWAPON, text) or any(not _masked(host, name) for name in units):
            yield path


def _started_by_swap_target(host: Host) -> Iterator[str]:
    """What generators will make swap.target start, by fstab, partitions, configuration and kernel arguments."""
    boot = bootloader.read(host)
    # Arguments that turn swap off count only where the next boot is known to have them; those that turn it on, always.
    sure: tuple[str, ...] = () if isinstance(boot.later, Unknown) else boot.later
    likely = boot.now if isinstance(boot.later, Unknown) else boot.later
    off = _switch(sure, "systemd.swap") is False
    version = _systemd_version(host)
    lines = list(_fstab(host))
    if not (off and version >= 246):  # fstab-generator honours systemd.swap= since 246
        yield from (f"fstab:{spec}" for spec, auto in lines if auto and not _masked(host, _fstab_unit(spec)))
        yield from (f"cmdline:{w}" for w in likely if bootloader.name_of(w) == "systemd.swap_extra")
    # gpt-auto-generator honours it since 254; any swap line in fstab, even with noauto, keeps it away
    if not lines and not (off and version >= 254) and _switch(sure, "systemd.gpt_auto") is not False:
        yield from (f"gpt-auto:{device}" for device in _gpt_swaps(host, version))
    for device in _zram_devices(host, sure, likely):
        if not _masked(host, f"dev-{device}.swap"):
            yield f"zram-generator:{device}"
    for link in _links(host, GENERATED_DIRS):
        name = link.partition("/")[2]
        if not _masked(host, name) and not _made_by_a_source_above(host, name):
            yield f"generated:{name}"


def _switch(words: Sequence[str], name: str) -> bool | None:
    """A boolean kernel argument as systemd reads it (parse_boolean): the last one that makes sense counts."""
    for word in reversed(words):
        _, equals, value = word.partition("=")
        if bootloader.name_of(word) == name:
            if not equals or value.lower() in ("1", "yes", "y", "true", "t", "on"):
                return True
            if value.lower() in ("0", "no", "n", "false", "f", "off"):
                return False
    return None


def _systemd_version(host: Host) -> int:
    """The version of systemd by its private library, the oldest if there are several; 0 where that does not tell."""
    folders = ["/usr/lib/systemd", "/lib/systemd", *host.glob("/usr/lib/*-linux-gnu*/systemd")]
    names = (name for folder in folders for name in host.names(folder))
    versions = [int(m[1]) for name in names if (m := re.match(r"libsystemd-shared-(\d+)", name))]
    return min(versions, default=0)


def _fstab(host: Host) -> Iterator[tuple[str, bool]]:
    """The swap lines: what they name, and whether they count at boot.

    Only the type field says that a line is about swap. Fields are parted by blanks and tabs (getmntent(3)); of `auto`
    and `noauto` the last counts, as for systemd.
    """
    for line in (host.read_bytes(FSTAB) or b"").decode(errors="replace").split("\n"):
        fields = re.findall(r"[^ \t]+", line)
        if len(fields) >= 3 and not fields[0].startswith("#") and fields[2] == "swap":
            yield fields[0], _auto(fields[3] if len(fields) > 3 else "")


def _auto(options: str) -> bool:
    said = [option for option in options.split(",") if option in ("auto", "noauto")]
    return said[-1:] != ["noauto"]


def _fstab_unit(spec: str) -> str:
    """The unit that systemd-fstab-generator makes of a swap line; '' where its name needs more rules than these."""
    tag, equals, value = spec.partition("=")
    if equals and tag in ("UUID", "LABEL", "PARTUUID", "PARTLABEL"):
        plain = re.fullmatch(r"[\w.:+-]+", value, re.A)
        return unit_name(f"/dev/disk/by-{tag.lower()}/{value}", "swap") if plain else ""
    return unit_name(_unescaped(spec), "swap") if spec.startswith("/") else ""


def _gpt_swaps(host: Host, version: int) -> Iterator[str]:
    """Swap partitions that systemd-gpt-auto-generator would turn on.

    udev's database has the partition types. Without it they cannot be told, and that is said.
    """
    if not _generator(host, "systemd-gpt-auto-generator"):
        return
    for path in host.glob("/sys/class/block/*/partition"):
        name = path.split("/")[4]
        number = host.read(f"/sys/class/block/{name}/dev")
        record = host.read(f"/run/udev/data/b{number}")
        if record is None:
            raise HostError(
                f"cannot tell what the partition {name} is: udev has no record of it (/run/udev/data/b{number})"
            )
        fields = dict(line[2:].partition("=")[::2] for line in record.splitlines() if line.startswith("E:"))
        flags = re.fullmatch(r"0x[0-9a-fA-F]+", fields.get("ID_PART_ENTRY_FLAGS", ""))
        no_auto = flags and int(flags[0], 16) & GPT_NO_AUTO
        # Later ones name the unit after /dev/disk/by-diskseq, with a number that no mask can foresee.
        masked = 0 < version < 253 and _masked(host, unit_name(f"/dev/{name}", "swap"))
        if fields.get("ID_PART_ENTRY_TYPE", "").lower() == GPT_SWAP and not no_auto and not masked:
            yield f"/dev/{name}"


def _generator(host: Host, name: str) -> bool:
    """Is this generator there? The first directory that has it decides; a link to /dev/null masks it."""
    for folder in GENERATOR_DIRS:
        if host.exists(f"{folder}/{name}"):
            return host.link(f"{folder}/{name}") != "/dev/null"
    return False


def _zram_devices(host: Host, sure: Sequence[str], likely: Sequence[str]) -> list[str]:
    """The swap devices of the first main file that exists and of all drop-ins (zram-generator.conf(5)).

    A device with a mount point or another file system is not swap. systemd.zram=1 makes zram0 in any case.
    """
    switches = [w.partition("=")[2] for w in sure if bootloader.name_of(w) == "systemd.zram"]
    if not _generator(host, "zram-generator") or switches[-1:] == ["0"]:
        return []
    swap: dict[str, bool] = {}
    if any(bootloader.name_of(w) == "systemd.zram" and not w.endswith("=0") for w in likely):
        swap["zram0"] = True
    for path in _zram_files(host):
        device = ""
        for line in (host.read(path) or "").splitlines():
            if section := re.match(r"\s*\[\s*(.*?)\s*\]", line):
                device = section[1] if re.fullmatch(r"zram\d+", section[1]) else ""
                if device:
                    swap.setdefault(device, True)
            elif device and (setting := re.match(r"\s*(mount-point|fs-type)\s*=\s*(\S+)", line)):
                swap[device] = swap[device] and setting[1] == "fs-type" and setting[2] == "swap"
    return sorted(device for device, is_swap in swap.items() if is_swap)


def _zram_files(host: Host) -> list[str]:
    """In the order they are read. A drop-in hides those of its name in later directories; /dev/null hides all."""
    main = [path for path in ZRAM_CONFIGS if host.exists(path)][:1]
    dropins: dict[str, str] = {}
    for config in ZRAM_CONFIGS:
        for path in host.glob(f"{config}.d/*.conf"):
            dropins.setdefault(path.rpartition("/")[2], path)
    files = [*main, *(dropins[name] for name in sorted(dropins))]
    return [path for path in files if host.link(path) != "/dev/null"]


def _links(host: Host, folders: Sequence[str], of_swap: bool = True) -> list[str]:
    """The links by which other units start units: `swap.target.wants/x.swap`; of_swap, swap units and SERVICES alone.

    The first folder that has a link decides; one that leads to /dev/null takes the dependency away.
    """
    found: dict[str, str] = {}
    for folder in folders:
        for directory in host.names(folder):
            if directory.endswith((".wants", ".requires", ".upholds")):
                for name in host.names(f"{folder}/{directory}"):
                    if not of_swap or name.endswith(".swap") or name in SERVICES:
                        found.setdefault(f"{directory}/{name}", folder)
    return [link for link, folder in found.items() if host.link(f"{folder}/{link}") != "/dev/null"]


def _made_by_a_source_above(host: Host, name: str) -> bool:
    """Did fstab, the kernel arguments, a partition or zram-generator make this unit? Those are looked at themselves."""
    text = next((t for folder in GENERATED_DIRS if (t := host.read(f"{folder}/{name}")) is not None), "")
    by = r"^SourcePath=(/etc/fstab|/proc/cmdline)$|^Documentation=.*\b(systemd-gpt-auto|zram)-generator\b"
    return bool(re.search(by, text, re.M))


def _masked(host: Host, unit: str) -> bool:
    """Is a unit masked for good? Its first file decides: a link to /dev/null, or empty (systemd.unit(5))."""
    for folder in UNIT_DIRS:
        if unit and host.exists(path := f"{folder}/{unit}"):
            return host.link(path) == "/dev/null" or host.read_bytes(path) == b""
    return False


# -- deciding -------------------------------------------------------------------------------------


def decide(facts: Facts, want: Section) -> Goals:
    refused, later = _no_room(facts), facts["devices"].next_boot
    by_hand = [s for s in later if s.partition(":")[0] in BY_HAND] if isinstance(later, tuple) else []
    fix = "Free memory first. Until then apply can turn it off for the next boot alone."
    if by_hand:
        fix = BY_HAND[by_hand[0].partition(":")[0]]
    return {
        "devices": Desired(
            (),
            refused_now=refused,
            refused_next=f"hostprep does not change {', '.join(by_hand)}" if by_hand else "",
            means=_meaning(facts["devices"], refused),
            fix=fix if by_hand or refused else "",
        )
    }


def suggest(facts: Facts) -> Suggestion:
    devices = facts["devices"]
    if devices == Fact.fixed(()):
        return Suggestion("disabled")
    on = any(isinstance(side, tuple) and side for side in devices)
    return Suggestion(None, {"": "Swap is on here; this check only knows `disabled`."} if on else {})


def _no_room(facts: Facts) -> str:
    """Why swap must not be turned off now; '' when what is swapped out fits into memory."""
    used, available = facts["used"].current, facts["memory-available"].current
    if not isinstance(used, int) or not used:
        return ""
    if isinstance(available, Unknown):
        return f"how much memory is available could not be read: {available.reason}"
    if isinstance(available, int) and used + MARGIN > available:
        return (
            f"{show_bytes(used)} are swapped out and only {show_bytes(available)} of memory are available: "
            "swapoff would run out of memory"
        )
    return ""


def _meaning(devices: Fact, refused: str) -> str:
    if isinstance(devices.current, Unknown) or isinstance(devices.next_boot, Unknown):
        return ""
    now = f"Swap is on{f' and stays on ({refused})' if refused else ''}" if devices.current else "Swap is off"
    return (
        f"{now}, and the next boot turns it on again."
        if devices.next_boot
        else f"{now}, and nothing turns it on at the next boot."
    )


# -- changing -------------------------------------------------------------------------------------


def apply(host: Host, changes: Sequence[Change]) -> None:
    for change in changes:
        before, after = _items(change.before), _items(change.after)
        gone = [item for item in before if item not in after]
        come = [item for item in after if item not in before]
        if change.facet is Facet.CURRENT:
            _swap_off_and_on(host, gone, come)
            continue
        for item in gone:
            _turn(host, item, on=False)
        for item in come:
            _turn(host, item, on=True)


def finish(host: Host) -> None:
    """Have a running systemd read its units again, so that it does not start what is masked now."""
    if host.exists("/run/systemd/system"):
        host.run("systemctl", "daemon-reload", timeout=90)


def _items(value: object) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else ()


def _swap_off_and_on(host: Host, gone: Sequence[str], come: Sequence[str]) -> None:
    """Every device is tried, so that one which fails does not keep the others."""
    failed = []
    commands: list[tuple[str, ...]] = [("swapoff", item.partition(" priority ")[0]) for item in gone]
    for item in come:
        name, _, priority = item.partition(" priority ")
        commands.append(("swapon", "-p", priority, name) if priority else ("swapon", name))
    for command in commands:
        try:
            host.run(*command, timeout=600)
        except HostError as e:
            failed.append(str(e))
    if failed:
        raise ChangeFailed("; ".join(failed), "The kernel's log may say more: dmesg.")


def _turn(host: Host, source: str, on: bool) -> None:
    kind, _, name = source.partition(":")
    if kind == "fstab":
        _set_noauto(host, name, not on)
    elif kind == "gpt-auto":
        _keep_gpt_auto_away(host, name, not on)
    elif kind in ("unit", "service", "generated"):
        _enable(host, name) if on else _disable(host, name)
    elif kind == "zram-generator":
        _enable(host, f"dev-{name}.swap") if on else _disable(host, f"dev-{name}.swap")
    elif kind == "waagent":
        text = host.read_bytes(WAAGENT) or b""
        host.replace(WAAGENT, re.sub(WAAGENT_SWAP, rb"\1y" if on else rb"\1n", text))
    else:
        raise ChangeFailed(f"{source}: hostprep does not change this", BY_HAND.get(kind, ""))


def _disable(host: Host, unit: str) -> None:
    """Mask a unit. Where the site has a file of its own for it, take away what wants it (systemctl disable)."""
    path = f"{UNITS}/{unit}"
    if not host.exists(path):
        host.symlink(path, "/dev/null")
        return
    links = [link for link in _links(host, UNIT_DIRS) if link.partition("/")[2] == unit]
    if not links:
        raise ChangeFailed(
            f"{path} is a file of this site's own, so it cannot be masked, and a generator starts it at boot",
            "Move it out of the way, then try again.",
        )
    for link in links:
        if any(host.exists(f"{folder}/{link}") for folder in UNIT_DIRS[1:]):
            host.symlink(f"{UNITS}/{link}", "/dev/null")  # hides the distribution's
        else:
            host.replace(f"{UNITS}/{link}", None)


def _enable(host: Host, unit: str) -> None:
    """Undo the mask. Links that were taken away come back with the files of the journal."""
    if host.link(f"{UNITS}/{unit}") == "/dev/null":
        host.replace(f"{UNITS}/{unit}", None)


def _keep_gpt_auto_away(host: Host, device: str, away: bool) -> None:
    """Add or remove a swap line that nothing turns on: its presence keeps systemd-gpt-auto-generator away.

    A mask would not do: since systemd 253 the unit's name has a number in it that every boot may give anew.
    """
    line = f"# hostprep: this line keeps systemd from turning on\n{device} none swap noauto 0 0\n".encode()
    text = host.read_bytes(FSTAB) or b""
    if away and line not in text:
        host.replace(FSTAB, text + (b"\n" if text and not text.endswith(b"\n") else b"") + line)
    elif not away:
        host.replace(FSTAB, text.replace(line, b""))


def _set_noauto(host: Host, spec: str, noauto: bool) -> None:
    """Change the options of the lines of one swap device, and not a byte of anything else."""
    lines = (host.read_bytes(FSTAB) or b"").split(b"\n")
    for i, line in enumerate(lines):
        parts = re.match(rb"([ \t]*([^ \t]+)[ \t]+[^ \t]+[ \t]+swap)(?![^ \t])(?:([ \t]+)([^ \t]+))?", line)
        if not parts or parts[2].decode(errors="replace") != spec:
            continue
        options = (parts[4] or b"").decode(errors="surrogateescape")
        if noauto and _auto(options):
            options = f"{options},noauto" if options else "defaults,noauto"
        elif not noauto:
            options = ",".join(o for o in options.split(",") if o != "noauto") or "defaults"
        encoded = options.encode(errors="surrogateescape")
        lines[i] = parts[1] + (parts[3] or b" ") + encoded + line[parts.end() :]
    host.replace(FSTAB, b"\n".join(lines))
