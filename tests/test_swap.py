"""Swap: whatever would turn it on again is seen, turned off without harm, and put back as it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import MakeHost, apply, findings, statuses
from fakes import Answer, FakeHost, debian, grub_cfg, meminfo

from hostprep.checks import swap
from hostprep.errors import HostError
from hostprep.journal import Journal
from hostprep.revert import revert

WANT = {"swap": "disabled"}
HEADER = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
ROOT_LINE = "UUID=5b0c / ext4 errors=remount-ro 0 1\n"
GENERATORS = "/usr/lib/systemd/system-generators"
GPT = f"{GENERATORS}/systemd-gpt-auto-generator"
ZRAM = f"{GENERATORS}/zram-generator"
UNITS = "/etc/systemd/system"
WANTS = f"{UNITS}/swap.target.wants"
VDA3 = {
    GPT: "",
    "/sys/class/block/vda3/partition": "3\n",
    "/sys/class/block/vda3/dev": "254:3\n",
    "/run/udev/data/b254:3": "E:ID_PART_ENTRY_TYPE=0657fd6d-a4ab-43c4-84e5-0933c84b4f4f\n",
}
UNIT = {f"{UNITS}/swapfile.swap": "[Swap]\nWhat=/swapfile\n", f"{WANTS}/swapfile.swap": "-> ../swapfile.swap"}
VENDOR_UNIT = {
    "/usr/lib/systemd/system/x.swap": "[Swap]\nWhat=/x\n",
    "/usr/lib/systemd/system/swap.target.wants/x.swap": "-> ../x.swap",
}
SERVICE = {
    "/usr/lib/systemd/system/zramswap.service": "[Service]\n",
    f"{UNITS}/multi-user.target.wants/zramswap.service": "-> /usr/lib/systemd/system/zramswap.service",
}
ZRAM0 = {ZRAM: "", "/usr/lib/systemd/zram-generator.conf": "[zram0]\nzram-size = ram / 2\n"}
GENERATED = {
    "/run/systemd/generator/foo.swap": "# by foo-generator\n[Swap]\nWhat=/foo\n",
    "/run/systemd/generator/swap.target.requires/foo.swap": "-> ../foo.swap",
}


def fstab(*lines: str) -> dict[str, str]:
    return {"/etc/fstab": ROOT_LINE + "".join(f"{line}\n" for line in lines)}


def cmdline(words: str, version: int = 252) -> dict[str, str]:
    """A next boot with these arguments, and a systemd of this version."""
    library = f"/usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-{version}.so"
    return {"/boot/grub/grub.cfg": grub_cfg(f"root=UUID=5b0c ro {words}"), library: ""}


def masked(unit: str, folder: str = UNITS) -> dict[str, str]:
    return {f"{folder}/{unit}": "-> /dev/null"}


def sources(host: FakeHost) -> tuple[str, ...]:
    found = findings(host, WANT)["swap/devices"].fact.next_boot
    assert isinstance(found, tuple), found
    return found


EXEC_SWAPON = "[Service]\nType=oneshot\nExecStart=/sbin/swapon /s\n"


def site(unit: str, text: str = EXEC_SWAPON) -> dict[str, str]:
    """An enabled unit of the site's own."""
    return {f"{UNITS}/{unit}": text, f"{UNITS}/multi-user.target.wants/{unit}": f"-> ../{unit}"}


def swaps(*rows: tuple[str, int, int]) -> str:
    return HEADER + "".join(f"{name} partition 1048572 {used} {priority}\n" for name, used, priority in rows)


def kernel(host: FakeHost, *stuck: str) -> dict[str, Answer]:
    """swapon and swapoff of a kernel that keeps /proc/swaps; the devices in `stuck` cannot be turned off."""

    def rows() -> list[str]:
        return Path(host.root + "/proc/swaps").read_text().splitlines()[1:]

    def off(argv: Sequence[str]) -> str:
        if argv[1] in stuck:
            raise HostError(f"swapoff: {argv[1]}: swapoff failed: Cannot allocate memory")
        host.put("/proc/swaps", HEADER + "".join(f"{r}\n" for r in rows() if r.split()[0] != argv[1]))
        return ""

    def on(argv: Sequence[str]) -> str:
        priority = argv[2] if argv[1] == "-p" else "-2"
        host.put("/proc/swaps", HEADER + "".join(f"{r}\n" for r in [*rows(), f"{argv[-1]} file 9 0 {priority}"]))
        return ""

    return {"swapoff": off, "swapon": on}


# What the next boot turns on. Each row: files of the host, and what is found.
SOURCES: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "no swap anywhere": ({}, ()),
    "R126: only the type field counts": (fstab("/dev/sdb1 /data/swapstuff ext4 defaults 0 2", "#/s none swap sw"), ()),
    "R126: swap as mount point, tabs": (fstab("UUID=5b0d\tswap\tswap\tsw\t0\t0"), ("fstab:UUID=5b0d",)),
    "no options field": (fstab("/swap.img none swap"), ("fstab:/swap.img",)),
    "noauto": (fstab("/swap.img none swap sw,noauto,pri=5 0 0"), ()),
    "of auto and noauto the last counts": (fstab("/s none swap noauto,auto 0 0"), ("fstab:/s",)),
    "noautoclear is not noauto": (fstab("/s none swap x-noauto 0 0"), ("fstab:/s",)),
    "swapfs is not swap": (fstab("/s /m swapfs defaults 0 0"), ()),
    "the unit of the line is masked": (
        fstab("UUID=5b-d none swap sw") | masked(r"dev-disk-by\x2duuid-5b\x2dd.swap"),
        (),
    ),
    "a mask in /run is gone after a reboot": (
        fstab("/swapfile none swap sw") | masked("swapfile.swap", "/run/systemd/system"),
        ("fstab:/swapfile",),
    ),
    "R120: GPT partition": (VDA3, ("gpt-auto:/dev/vda3",)),
    "R120: any swap line keeps gpt-auto away": (VDA3 | fstab("/dev/vda3 none swap noauto 0 0"), ()),
    "R120: GPT attribute no-auto": (
        VDA3 | {"/run/udev/data/b254:3": VDA3["/run/udev/data/b254:3"] + "E:ID_PART_ENTRY_FLAGS=0x8000000000000000\n"},
        (),
    ),
    "R120: gpt_auto off": (VDA3 | cmdline("systemd.gpt_auto=no"), ()),
    "gpt-auto masked for this boot only": (
        VDA3 | {f"/run/systemd/system-generators/{GPT.rpartition('/')[2]}": "-> /dev/null"},
        ("gpt-auto:/dev/vda3",),
    ),
    "Debian before the merged /usr": (
        {k.replace("/usr/lib", "/lib"): v for k, v in VDA3.items()},
        ("gpt-auto:/dev/vda3",),
    ),
    "gpt-auto of 252, its unit masked": (VDA3 | cmdline("") | masked("dev-vda3.swap"), ()),
    "gpt-auto of 255 does not use that name": (
        VDA3 | cmdline("", 255) | masked("dev-vda3.swap"),
        ("gpt-auto:/dev/vda3",),
    ),
    "systemd#27782: systemd.swap=0 and gpt-auto of 252": (VDA3 | cmdline("systemd.swap=0"), ("gpt-auto:/dev/vda3",)),
    "systemd.swap=0 and gpt-auto of 254": (VDA3 | cmdline("systemd.swap=0", 254), ()),
    "systemd.swap=off and fstab of 249": (fstab("/s none swap sw") | cmdline("systemd.swap=off", 249), ()),
    "systemd.swap=0 and fstab of 245": (fstab("/s none swap sw") | cmdline("systemd.swap=0", 245), ("fstab:/s",)),
    "the last systemd.swap= counts": (fstab("/s none swap sw") | cmdline("systemd.swap=0 systemd.swap"), ("fstab:/s",)),
    "only this boot has systemd.swap=0": (
        fstab("/s none swap sw") | cmdline("") | {"/proc/cmdline": "BOOT_IMAGE=/boot/vmlinuz-6.1.0 systemd.swap=0\n"},
        ("fstab:/s",),
    ),
    "R122: swap-extra": (cmdline("systemd.swap_extra=/s"), ("cmdline:systemd.swap_extra=/s",)),
    "a unit that swap.target wants": (UNIT, ("unit:swapfile.swap",)),
    "a unit that swap.target requires": (
        {f"{UNITS}/swap.target.requires/x.swap": "-> ../x.swap"},
        ("unit:x.swap",),
    ),
    "a dependency that is masked": (VENDOR_UNIT | masked("x.swap", WANTS), ()),
    "swap.target masked": (fstab("/s none swap sw") | UNIT | VDA3 | ZRAM0 | GENERATED | masked("swap.target"), ()),
    "swap.target masked, another target wants it": (
        masked("swap.target") | {f"{UNITS}/multi-user.target.wants/x.swap": "-> ../x.swap"},
        ("unit:x.swap",),
    ),
    "R122: zramswap is not stopped by swap.target": (SERVICE | masked("swap.target"), ("service:zramswap.service",)),
    "R123: vendor's zram": (ZRAM0, ("zram-generator:zram0",)),
    "R123: an empty file in /etc hides it": (ZRAM0 | {"/etc/systemd/zram-generator.conf": ""}, ()),
    "R123: so does a link to /dev/null": (ZRAM0 | {"/etc/systemd/zram-generator.conf": "-> /dev/null"}, ()),
    "R123: drop-ins still count": (
        ZRAM0 | {"/etc/systemd/zram-generator.conf": "", "/etc/systemd/zram-generator.conf.d/a.conf": "[zram1]\n"},
        ("zram-generator:zram1",),
    ),
    "a drop-in hides one of its name": (
        {
            ZRAM: "",
            "/usr/lib/systemd/zram-generator.conf.d/a.conf": "[zram1]\n",
            "/etc/systemd/zram-generator.conf.d/a.conf": "-> /dev/null",
        },
        (),
    ),
    "zram with a file system": ({ZRAM: "", "/etc/systemd/zram-generator.conf": "[zram0]\nmount-point=/t\n"}, ()),
    "zram-generator masked": (ZRAM0 | {"/etc/systemd/system-generators/zram-generator": "-> /dev/null"}, ()),
    "systemd.zram=0": (ZRAM0 | cmdline("systemd.zram=0"), ()),
    "systemd.zram=1 needs no configuration": ({ZRAM: ""} | cmdline("systemd.zram=1"), ("zram-generator:zram0",)),
    "a unit of a generator we do not know": (GENERATED, ("generated:foo.swap",)),
    "a unit made of fstab before its line was noauto": (
        fstab("/foo none swap noauto")
        | GENERATED
        | {"/run/systemd/generator/foo.swap": "[Unit]\nSourcePath=/etc/fstab\n"},
        (),
    ),
    "WALinuxAgent#1733": ({"/etc/waagent.conf": "ResourceDisk.EnableSwap=Y\n"}, ("waagent",)),
    "waagent without": ({"/etc/waagent.conf": "# ResourceDisk.EnableSwap=y\nResourceDisk.EnableSwap=n\n"}, ()),
    "rc.local": ({"/etc/rc.local": "#!/bin/sh\n/sbin/swapon /s\n"}, ("rc.local:/etc/rc.local",)),
    "swapon that only shows": ({"/etc/rc.local": "swapon --show > /run/swaps\nswapon -s\n"}, ()),
    "R122: a site's service": (site("swapon.service"), (f"script:{UNITS}/swapon.service",)),
    "its command goes on": (
        site("a.service", "[Service]\nExecStartPre=/bin/sh -c \\\n  'swapon /s'\n"),
        (f"script:{UNITS}/a.service",),
    ),
    "its drop-in": (
        {f"{UNITS}/docker.service.d/swap.conf": "[Service]\nExecStartPost=-/sbin/swapon -a\n"}
        | {f"{UNITS}/multi-user.target.wants/docker.service": "-> /usr/lib/systemd/system/docker.service"},
        (f"script:{UNITS}/docker.service.d/swap.conf",),
    ),
    "started by a timer": (
        {f"{UNITS}/b.service": EXEC_SWAPON} | site("b.timer", "[Timer]\nOnBootSec=1min\n"),
        (f"script:{UNITS}/b.service",),
    ),
    "an instance": (
        {f"{UNITS}/c@.service": EXEC_SWAPON, f"{UNITS}/multi-user.target.wants/c@1.service": "-> ../c@.service"},
        (f"script:{UNITS}/c@.service",),
    ),
    "not enabled": ({f"{UNITS}/swapon.service": EXEC_SWAPON}, ()),
    "enabled, and masked since": (
        {
            f"{UNITS}/multi-user.target.wants/a.service": "-> ../a.service",
            f"{UNITS}/a.service.d/s.conf": EXEC_SWAPON,
            f"{UNITS}/a.service": "-> /dev/null",
        },
        (),
    ),
    "only its description": (site("a.service", "[Unit]\nDescription=after swapon\n[Service]\nExecStart=/a\n"), ()),
    "swapoff": (site("a.service", "[Service]\nExecStart=/sbin/swapoff -a\nExecStop=/sbin/swapon -a\n"), ()),
    "a site's unit that requires a swap unit": (
        fstab("/s none swap noauto") | site("db.service", "[Unit]\nRequires=net.target s.swap\n"),
        (f"script:{UNITS}/db.service",),
    ),
    "a target that wants one": (site("db.target", "[Unit]\nWants=s.swap\n"), (f"script:{UNITS}/db.target",)),
    "and that swap unit is masked": (site("db.service", "[Unit]\nRequires=s.swap\n") | masked("s.swap"), ()),
    "after a swap unit is not requiring it": (site("db.service", "[Unit]\nAfter=s.swap\n"), ()),
    "crontab": ({"/etc/crontab": "@reboot root /sbin/swapon -a\n"}, ("script:/etc/crontab",)),
    "cron.d": ({"/etc/cron.d/swap": "MAILTO=x\n*/5 * * * * root swapon /s\n"}, ("script:/etc/cron.d/swap",)),
    "no line of cron's": (
        {"/etc/crontab": "# @reboot root swapon -a\n", "/etc/cron.d/a~": "swapon", "/etc/cron.d/a/": ""},
        (),
    ),
}


@pytest.mark.parametrize("case", SOURCES)
def test_what_will_turn_swap_on_at_the_next_boot(case: str, make_host: MakeHost) -> None:
    files, expected = SOURCES[case]
    assert sources(make_host(debian() | files)) == expected


def test_what_turns_swap_off_counts_only_where_the_next_boot_is_known_to_have_it(make_host: MakeHost) -> None:
    files = (
        debian()
        | fstab("/s none swap sw")
        | cmdline("")
        | {"/proc/cmdline": "BOOT_IMAGE=/boot/vmlinuz-6.1.0 systemd.swap=0\n"}
    )
    del files["/boot/grub/grub.cfg"]
    assert sources(make_host(files)) == ("fstab:/s",)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"/proc/swaps": "rubbish\n"}, "does not understand"),
        ({"/proc/swaps": HEADER + "/s partition many 0 -2\n"}, "does not understand"),
        ({"/etc/fstab/": ""}, "directory"),
        ({k: v for k, v in VDA3.items() if "udev" not in k}, "udev has no record"),
    ],
    ids=["swaps", "row", "fstab", "udev"],
)
def test_what_cannot_be_read_is_unknown_and_never_off(make_host: MakeHost, files: dict[str, str], why: str) -> None:
    """kubeadm takes an unreadable /proc/swaps for swap that is off."""
    start = debian()
    if "/etc/fstab/" in files:
        del start["/etc/fstab"]
    found = [*findings(make_host(start | files), WANT).values()]
    assert [f.status.value for f in found] == ["unknown"]
    assert why in found[0].message.lower()


def test_no_proc_swaps_is_unknown(make_host: MakeHost) -> None:
    host = make_host({path: text for path, text in debian().items() if path != "/proc/swaps"})
    assert [*statuses(host, WANT).values()] == ["unknown"]


# What apply does. Each row: files of the host, and what of them is another afterwards (None: gone).
ODD = (
    "# swap\n\n UUID=5b0c\t/ ext4  defaults 0 1\n{}\n/dev/sdb1 /data/swapstuff ext4 defaults 0 2\n"
    "# \x0c/s none swap sw\n\xe9"
)
APPLIED: dict[str, tuple[dict[str, str], dict[str, str | None]]] = {
    **{
        f"T21: {before!r}": ({"/etc/fstab": ODD.format(before)}, {"/etc/fstab": ODD.format(after)})
        for before, after in [
            ("/s  none\tswap   sw\t 0 0  # odd ", "/s  none\tswap   sw,noauto\t 0 0  # odd "),
            ("\t/s none swap", "\t/s none swap defaults,noauto"),
            ("/s none swap ", "/s none swap defaults,noauto "),
            ("/s none swap sw,auto,pri=5", "/s none swap sw,auto,pri=5,noauto"),
            ("/s none swap sw 0 0\n/s /mnt swapfs rw", "/s none swap sw,noauto 0 0\n/s /mnt swapfs rw"),
            ("/s none swap sw\n/s none swap pri=1", "/s none swap sw,noauto\n/s none swap pri=1,noauto"),
            (r"/a\040b none swap sw", r"/a\040b none swap sw,noauto"),
        ]
    },
    "T21: no newline at the end": (
        {"/etc/fstab": "/s none swap sw"},
        {"/etc/fstab": "/s none swap sw,noauto"},
    ),
    "systemd#6192: the GPT partition gets a line that nothing turns on": (
        VDA3 | {"/etc/fstab": "/dev/vda2 / ext4 defaults 0 1"},
        {
            "/etc/fstab": "/dev/vda2 / ext4 defaults 0 1\n"
            "# hostprep: this line keeps systemd from turning on\n/dev/vda3 none swap noauto 0 0\n"
        },
    ),
    "a unit of the distribution": (VENDOR_UNIT, {f"{UNITS}/x.swap": "/dev/null"}),
    "a unit of the site's own": (UNIT, {f"{WANTS}/swapfile.swap": None}),
    "one wanted by the distribution, too": (
        VENDOR_UNIT | {f"{UNITS}/x.swap": "[Swap]\nWhat=/y\n"},
        {f"{WANTS}/x.swap": "/dev/null"},
    ),
    "a service": (SERVICE, {f"{UNITS}/zramswap.service": "/dev/null"}),
    "zram": (ZRAM0, {f"{UNITS}/dev-zram0.swap": "/dev/null"}),
    "a generated unit": (GENERATED, {f"{UNITS}/foo.swap": "/dev/null"}),
    "waagent": (
        {"/etc/waagent.conf": 'A=y\nResourceDisk.EnableSwap = "y"  # \xe9\nB=y'},
        {"/etc/waagent.conf": 'A=y\nResourceDisk.EnableSwap = "n"  # \xe9\nB=y'},
    ),
}


@pytest.mark.parametrize("case", APPLIED)
def test_apply_changes_that_and_no_more_and_revert_gives_the_same_tree(
    case: str, make_host: MakeHost, journal: Journal
) -> None:
    files, changed = APPLIED[case]
    host = make_host(debian() | files)
    before, directories = host.snapshot(), host.directories()
    performer = apply(host, WANT, journal)
    after = host.snapshot()
    assert not performer.failures
    assert statuses(host, WANT) == {"swap/devices": "pass"}
    texts = {
        path: after[path][1] if path in after else None
        for path in before | after
        if before.get(path) != after.get(path)
    }
    assert texts == changed
    apply(host, WANT, journal)
    assert host.snapshot() == after
    revert(performer)
    assert not performer.failures
    assert (host.snapshot(), host.directories()) == (before, directories)


@pytest.mark.parametrize(
    "files",
    [ZRAM0 | {f"{UNITS}/dev-zram0.swap": "[Swap]\n"}, GENERATED | {f"{UNITS}/foo.swap": "[Swap]\n"}],
    ids=["zram", "generated"],
)
def test_a_file_of_the_sites_own_is_not_overwritten_and_nothing_is_half_done(
    files: dict[str, str], make_host: MakeHost, journal: Journal
) -> None:
    host = make_host(debian() | files | fstab("/s none swap sw"))
    before = host.snapshot()
    [failure] = apply(host, WANT, journal).failures
    assert "a file of this site's own" in failure.reason
    assert host.snapshot() == before


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (cmdline("systemd.swap-extra=/s"), "cmdline"),
        ({"/etc/rc.local": "swapon /s\n"}, "rc.local"),
        (site("a.service"), "script"),
        ({"/etc/cron.d/swap": "@reboot root swapon -a\n"}, "script"),
    ],
)
def test_what_hostprep_does_not_change_is_said_and_nothing_is_half_done(
    files: dict[str, str], kind: str, make_host: MakeHost, journal: Journal
) -> None:
    host = make_host(debian() | files | fstab("/s none swap sw"))
    before = host.snapshot()
    apply(host, WANT, journal)
    assert host.snapshot() == before
    found = findings(host, WANT)["swap/devices"]
    assert (found.status.value, found.fix) == ("volatile", swap.BY_HAND[kind])


def test_swap_on_one_source_edited_since_is_taken_back_alone(make_host: MakeHost, journal: Journal) -> None:
    """What somebody else did to fstab after us stays; our own line goes."""
    host = make_host(debian() | VDA3)
    performer = apply(host, WANT, journal)
    edited = Path(host.root + "/etc/fstab").read_text() + "/dev/sdc1 /new ext4 defaults 0 2\n"
    host.put("/etc/fstab", edited)
    revert(performer)
    text = Path(host.root + "/etc/fstab").read_text()
    assert (text, sources(host)) == (
        debian()["/etc/fstab"] + "/dev/sdc1 /new ext4 defaults 0 2\n",
        ("gpt-auto:/dev/vda3",),
    )


# -- the running system ---------------------------------------------------------------------------


def test_swap_goes_off_now_and_revert_keeps_its_priority(make_host: MakeHost, journal: Journal) -> None:
    host = make_host(
        debian() | fstab("/s none swap sw,pri=7") | {"/proc/swaps": swaps(("/s", 0, 7), ("/dev/vda3", 0, -2))}
    )
    host.commands |= kernel(host)
    performer = apply(host, WANT, journal)
    assert statuses(host, WANT) == {"swap/devices": "pass"}
    revert(performer)
    assert host.ran == ["swapoff /s", "swapoff /dev/vda3", "swapon -p 7 /s", "swapon /dev/vda3"]
    assert findings(host, WANT)["swap/devices"].fact.current == ("/s priority 7", "/dev/vda3")


MIB = 1024


@pytest.mark.parametrize(
    ("used", "available", "goes_off"),
    [(512 * MIB, 512 * MIB, False), (512 * MIB, 767 * MIB, False), (512 * MIB, 768 * MIB, True), (0, 100 * MIB, True)],
)
def test_swapoff_is_refused_when_memory_cannot_take_what_is_swapped_out(
    used: int, available: int, goes_off: bool, make_host: MakeHost, journal: Journal
) -> None:
    """R124. The next boot is made right all the same."""
    files = {"/proc/swaps": swaps(("/s", used, -2)), "/proc/meminfo": meminfo(4 * 1024 * MIB, available)}
    host = make_host(debian() | fstab("/s none swap sw") | files)
    host.commands |= kernel(host)
    apply(host, WANT, journal)
    found = findings(host, WANT)["swap/devices"]
    assert found.status.value == ("pass" if goes_off else "pending-reboot")
    assert goes_off or "swapoff would run out of memory" in found.message
    assert sources(host) == ()


def test_memory_that_cannot_be_read_refuses_swapoff_and_hides_nothing(make_host: MakeHost, journal: Journal) -> None:
    files = debian() | {"/proc/swaps": swaps(("/s", 9, -2)), "/proc/meminfo": "MemTotal: 5 kB\n"}
    host = make_host(files)
    assert not host.ran
    found = findings(host, WANT)["swap/devices"]
    assert (found.status.value, "could not be read" in found.message) == ("pending-reboot", True)
    host.put("/proc/swaps", HEADER)
    assert statuses(host, WANT) == {"swap/devices": "pass"}


def test_when_one_of_two_devices_stays_on_the_other_is_put_back(make_host: MakeHost, journal: Journal) -> None:
    host = make_host(debian() | fstab("/s none swap sw") | {"/proc/swaps": swaps(("/dev/vda3", 0, -2), ("/s", 0, -3))})
    host.commands |= kernel(host, "/dev/vda3")
    performer = apply(host, WANT, journal)
    [failure] = performer.failures
    assert "Cannot allocate memory" in failure.reason
    found = findings(host, WANT)["swap/devices"]
    assert (found.status.value, found.fact.current) == ("fail", ("/dev/vda3", "/s"))
    assert journal.standing() == []


def test_systemd_reads_its_units_again(make_host: MakeHost, journal: Journal) -> None:
    """R121: it would start what is masked now."""
    host = make_host(debian() | VENDOR_UNIT | {"/run/systemd/system/": ""}, {"systemctl": ""})
    performer = apply(host, WANT, journal)
    revert(performer)
    assert host.ran == ["systemctl daemon-reload"] * 2
