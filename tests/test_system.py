"""System: distribution, kernel, modules and clock, each judged on its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from conftest import MakeHost, findings, statuses
from fakes import FakeHost, debian, grub_cfg

from hostprep import render
from hostprep.checks import system
from hostprep.errors import HostError

BUILTIN = "/lib/modules/6.1.0-26-amd64/modules.builtin"
IGB = {  # a driver that some device has, and a module that it needs
    "/proc/modules": "igb 262144 0 - Live 0x0\ndca 16384 1 igb, Live 0x0\n",
    "/sys/module/igb/drivers/pci:igb/bind": "",
    "/sys/module/igb/drivers/pci:igb/0000:17:00.0": "-> ../../../../devices/0000:17:00.0",
    "/sys/module/dca/holders/igb": "-> ../../igb",
}
VFIO = {  # loaded by hand: no device has it
    "/proc/modules": "vfio_pci 65536 0 - Live 0x0\n",
    "/sys/module/vfio_pci/drivers/pci:vfio-pci/new_id": "",
    "/sys/module/vfio_pci/drivers/pci:vfio-pci/module": "-> ../../../vfio_pci",
}


def without(*paths: str) -> dict[str, str]:
    return {path: text for path, text in debian().items() if path not in paths}


def status(host: FakeHost, section: Mapping[str, Any]) -> str:
    [found] = statuses(host, {"system": section}).values()
    return found


@pytest.mark.parametrize(
    ("text", "want", "expected"),
    [
        ('NAME="Ubuntu"\nID=ubuntu\nVERSION_ID="22.04"\n', {"id": "ubuntu", "version": "22.04"}, ["pass", "pass"]),
        ("ID='ubuntu'\nVERSION_ID=22.04 \n", {"id": "ubuntu", "version": "22.04"}, ["pass", "pass"]),
        ("#ID=debian\nID=ubuntu\nID_LIKE=debian\n", {"id": "debian"}, ["fail"]),
        ('ID="rhel"\nVERSION_ID="9.10"\n', {"version": ">=9.4"}, ["pass"]),
        ('ID=ubuntu\nVERSION_ID="22.04"\n', {"version": ">=22.10"}, ["fail"]),
        ('ID=ubuntu\nVERSION_ID="22.04.1"\n', {"version": "22.04"}, ["fail"]),
        ("ID=debian\n", {"version": ">=12"}, ["fail"]),
        ("NAME=x\n", {"id": "linux"}, ["pass"]),
    ],
)
def test_os_release_is_read_with_and_without_quotes(
    text: str, want: dict[str, str], expected: list[str], make_host: MakeHost
) -> None:
    host = make_host(debian() | {"/etc/os-release": text})
    assert [*statuses(host, {"system": {"os": want}}).values()] == expected


def test_os_release_in_usr_lib_counts_where_etc_has_none(make_host: MakeHost) -> None:
    host = make_host(without("/etc/os-release") | {"/usr/lib/os-release": "ID=fedora\n"})
    assert status(host, {"os": {"id": "fedora"}}) == "pass"


@pytest.mark.parametrize("extra", [{}, {"/etc/os-release/": ""}], ids=["missing", "unreadable"])
def test_no_os_release_is_unknown_and_hides_nothing_else(extra: dict[str, str], make_host: MakeHost) -> None:
    host = make_host(without("/etc/os-release") | extra)
    section = {"os": {"id": "debian", "version": "12"}, "kernel": ">=6.1", "modules": {"forbidden": ["nouveau"]}}
    assert statuses(host, {"system": section}) == {
        "system/os/id": "unknown",
        "system/os/version": "unknown",
        "system/kernel": "pass",
        "system/module/nouveau": "pass",
    }


@pytest.mark.parametrize(
    ("release", "want", "expected"),
    [
        ("5.15.0-121-generic", ">=5.15.0-122", "fail"),
        ("5.15.0-122-generic", ">=5.15.0-122", "pass"),
        ("5.15.0-122-generic", ">= 5.15.0-122", "pass"),
        ("6.10.0-rc3", ">=6.10.0", "fail"),
        ("5.14.0-427.13.1.el9_4.x86_64", ">=5.14.0-427.el9", "pass"),
        ("5.9.0", ">=5.10", "fail"),
        ("6.1.0-26-amd64", "6.1.0-26-amd64", "pass"),
        ("6.1.0-27-amd64", "6.1.0-26-amd64", "fail"),
    ],
)
def test_the_kernel_in_the_ordering_of_releases(release: str, want: str, expected: str, make_host: MakeHost) -> None:
    host = make_host(debian() | {"/proc/sys/kernel/osrelease": f"{release}\n"})
    assert status(host, {"kernel": want}) == expected


WANT_VFIO = {"loaded": ["vfio_pci"]}
NO_IGB = {"forbidden": ["igb"]}
# Each row: files of the host, what is wanted of one module, and what is found.
MODULES: dict[str, tuple[dict[str, str], dict[str, list[str]], str]] = {
    "not loaded": ({}, {"loaded": ["igb"]}, "fail"),
    "not loaded, forbidden": ({}, NO_IGB, "pass"),
    "a device has it": (IGB, {"loaded": ["igb"]}, "pass"),
    "needed by one that a device has": (IGB, {"loaded": ["dca"]}, "pass"),
    "a device has it, forbidden": (IGB, NO_IGB, "fail"),
    "loaded by hand": (VFIO, WANT_VFIO, "volatile"),
    "loaded by hand, forbidden": (VFIO, {"forbidden": ["vfio_pci"]}, "pending-reboot"),
    "dash for underscore": (VFIO | {"/etc/modules-load.d/v.conf": "vfio-pci\n"}, {"loaded": ["vfio-pci"]}, "pass"),
    "named in /etc/modules": (
        VFIO | {"/etc/modules": "# x\n; y\n  vfio-pci ids=1\n"},
        WANT_VFIO,
        "pass",
    ),
    "named in a file that is no .conf": (
        VFIO | {"/etc/modules-load.d/v.bak": "vfio-pci\n"},
        WANT_VFIO,
        "volatile",
    ),
    "named in a file that /etc hides": (
        VFIO | {"/usr/lib/modules-load.d/v.conf": "vfio-pci\n", "/etc/modules-load.d/v.conf": "-> /dev/null"},
        WANT_VFIO,
        "volatile",
    ),
    "named for this boot only": (
        VFIO | {"/run/modules-load.d/v.conf": "vfio-pci\n"},
        WANT_VFIO,
        "volatile",
    ),
    "named in the next boot's arguments": (
        VFIO | {"/boot/grub/grub.cfg": grub_cfg("ro modules-load=overlay,vfio-pci")},
        WANT_VFIO,
        "pass",
    ),
    "named in this boot's arguments alone": (
        VFIO | {"/proc/cmdline": "BOOT_IMAGE=/boot/vmlinuz-6.1.0 modules-load=vfio-pci\n"},
        WANT_VFIO,
        "volatile",
    ),
    "named, not loaded yet": ({"/etc/modules-load.d/v.conf": "vfio-pci\n"}, WANT_VFIO, "pending-reboot"),
    "blacklisted since": (
        IGB | {"/etc/modprobe.d/b.conf": "#x\n blacklist igb\n"},
        NO_IGB,
        "pending-reboot",
    ),
    "blacklisted wins over named": (
        {"/etc/modprobe.d/b.conf": "blacklist vfio-pci\n", "/etc/modules": "vfio-pci\n"},
        {"forbidden": ["vfio_pci"]},
        "pass",
    ),
    "install /bin/false": (
        IGB | {"/etc/modprobe.d/b.conf": "install igb /bin/false\n"},
        NO_IGB,
        "pending-reboot",
    ),
    "blacklisted for the next boot by an argument": (
        IGB | {"/boot/grub/grub.cfg": grub_cfg("ro modprobe.blacklist=nouveau,igb")},
        NO_IGB,
        "pending-reboot",
    ),
    "T17: built in": ({BUILTIN: "kernel/drivers/vfio/vfio-pci.ko\n"}, WANT_VFIO, "pass"),
    "T17: built in and named": (
        {BUILTIN: "kernel/drivers/vfio/vfio-pci.ko\n", "/etc/modules": "vfio-pci\n"},
        WANT_VFIO,
        "pass",
    ),
    "built in, forbidden": ({BUILTIN: "kernel/drivers/vfio/vfio-pci.ko\n"}, {"forbidden": ["vfio_pci"]}, "fail"),
    "T17: seen in sysfs alone": ({"/sys/module/vfio_pci/parameters/": ""}, {"loaded": ["vfio-pci"]}, "pass"),
}


@pytest.mark.parametrize("case", MODULES)
def test_a_module_now_and_after_the_next_boot(case: str, make_host: MakeHost) -> None:
    """T17, troubleshoot#1737: a built-in module is there."""
    files, want, expected = MODULES[case]
    assert status(make_host(debian() | files), {"modules": want}) == expected


def test_a_built_in_module_is_not_told_to_be_removed(make_host: MakeHost) -> None:
    host = make_host(debian() | {BUILTIN: "kernel/drivers/gpu/nouveau.ko\n"})
    found = findings(host, {"system": {"modules": {"forbidden": ["nouveau"]}}})["system/module/nouveau"]
    assert "boot another" in found.fix


def test_many_modules_are_told_in_order_and_never_speak_to_the_terminal(make_host: MakeHost) -> None:
    """The names are the host's, and may be anything."""
    names = [f"m{i:02}" for i in range(30)]
    builtin = "".join(f"kernel/{name}.ko\n" for name in reversed(["\x1b[2J", *names]))
    host = make_host(debian() | {BUILTIN: builtin})
    facts = system.inspect(host)
    assert [key for key in facts if key.startswith("module/")] == [f"module/{name}" for name in ["\x1b[2J", *names]]
    shown = render.facts({"system": facts})
    assert "built-in:  [2J, m00, m01, m02, m03, m04 and 25 more" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("unreadable", ["/proc/modules", BUILTIN, "/etc/modules", "/etc/modprobe.d/b.conf"])
def test_modules_that_cannot_be_told_are_unknown_and_hide_nothing_else(unreadable: str, make_host: MakeHost) -> None:
    """Neither loaded nor absent: both wishes are unknown."""
    host = make_host(without("/proc/modules") | {f"{unreadable}/": ""})
    section = {"modules": {"loaded": ["igb"], "forbidden": ["nouveau"]}, "kernel": ">=6.1", "clock": "synchronised"}
    assert statuses(host, {"system": section}) == {
        "system/module/igb": "unknown",
        "system/module/nouveau": "unknown",
        "system/kernel": "pass",
        "system/clock": "pass",
    }


@pytest.mark.parametrize(
    ("clock", "expected"),
    [(True, "pass"), (False, "fail"), (HostError("adjtimex: Operation not permitted"), "unknown")],
)
def test_the_clock_is_what_the_kernel_says(clock: bool | HostError, expected: str, make_host: MakeHost) -> None:
    host = make_host(debian())
    host.clock = clock
    assert status(host, {"clock": "synchronised"}) == expected


def test_a_forbidden_module_that_udev_will_load_at_the_next_boot_is_found(make_host: MakeHost) -> None:
    """It is not in the kernel now, since somebody unloaded it; its device has it loaded again at the next boot."""
    device = "/sys/bus/pci/devices/0000:3b:00.0"
    alias = {f"{device}/modalias": "pci:v000010DEd000020B2sv000010DEsd00001463bc03sc02i00\n"}
    listed = {"/lib/modules/6.1.0-26-amd64/modules.alias": "alias pci:v000010DEd*sv*sd*bc03sc*i* nouveau\n"}
    want = {"system": {"modules": {"forbidden": ["nouveau"]}}}
    assert statuses(make_host({**debian(), **alias, **listed}), want)["system/module/nouveau"] == "volatile"
    blacklist = {"/etc/modprobe.d/nouveau.conf": "blacklist nouveau\n"}
    assert statuses(make_host({**debian(), **alias, **listed, **blacklist}), want)["system/module/nouveau"] == "pass"
