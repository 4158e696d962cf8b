"""Where huge pages are mounted: now, and by fstab or a mount unit at the next boot."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import apply, findings, statuses
from fake_kernel import FakeKernel
from fakes import debian, mkconfig

from hostprep.host import process
from hostprep.journal import Journal
from hostprep.model import Unknown
from hostprep.perform import Performer
from hostprep.registry import load
from hostprep.revert import revert
from hostprep.units import unit_name

USUAL = "hugetlbfs /dev/hugepages hugetlbfs rw,relatime,pagesize=2M 0 0\n"
UNITS = "/etc/systemd/system"
WANTS = f"{UNITS}/local-fs.target.wants"


class Mounting(FakeKernel):
    """mount and umount stack in /proc/self/mounts, as in the kernel."""

    def __init__(self, root: Path, files: dict[str, str]) -> None:
        super().__init__(root, {**debian(pages_1g=1), "/proc/self/mounts": USUAL, "/dev/": "", "/mnt/": "", **files})
        self.commands |= {"grub-mkconfig": mkconfig(self), "mount": self.mount, "umount": self.umount}

    def mount(self, argv: Sequence[str]) -> str:
        line = f"hugetlbfs {argv[-1]} hugetlbfs rw,relatime,{argv[4]} 0 0"
        self.put("/proc/self/mounts", "\n".join([*self.mounts(), line]) + "\n")
        return ""

    def umount(self, argv: Sequence[str]) -> str:
        lines = self.mounts()
        top = max(i for i, line in enumerate(lines) if line.split()[1] == argv[-1])
        self.put("/proc/self/mounts", "\n".join([*lines[:top], *lines[top + 1 :]]) + "\n")
        return ""

    def mounts(self) -> list[str]:
        return (self.read("/proc/self/mounts") or "").splitlines()


def want(where: str, size: str = "1GiB") -> dict[str, Any]:
    return {"hugepages": {"mounts": {size: where}}}


def unit(where: str, kind: str = "hugetlbfs", options: str = "pagesize=1G") -> str:
    return f"[Mount]\nWhat={kind}\nWhere={where}\nType={kind}\nOptions={options}\n"


def next_boot(host: FakeKernel, where: str) -> Any:
    return findings(host, want(where))[f"hugepages/mount{where}"].fact.next_boot


@pytest.mark.parametrize("where", ["/dev/hugepages1G", "/mnt/huge+1G", "/mnt/a-b", "/mnt/new/deep"])
def test_a_mount_is_made_now_and_by_a_unit_and_revert_leaves_no_trace(
    tmp_path: Path, journal: Journal, where: str
) -> None:
    """R72: dev-hugepages.mount mounts the default size only, and is left alone."""
    host = Mounting(tmp_path / "root", {})
    before = host.snapshot(), host.directories()
    name = f"hugepages/mount{where}"
    assert statuses(host, want(where, "1024MiB"))[name] == "fail"
    assert not apply(host, want(where, "1024MiB"), journal).failures
    assert statuses(host, want(where))[name] == "pass"
    mounted = host.mounts()
    assert not apply(host, want(where), journal).failures
    assert host.mounts() == mounted
    performer = Performer(host, load(["hugepages"]), journal, lambda line: None)
    revert(performer)
    assert not performer.failures
    assert (host.snapshot(), host.directories()) == before


def test_nothing_is_mounted_on_top_of_pages_of_another_size(tmp_path: Path, journal: Journal) -> None:
    host = Mounting(tmp_path / "root", {})
    before = host.snapshot()
    found = findings(host, want("/dev/hugepages"))["hugepages/mount/dev/hugepages"]
    assert found.desired is not None
    assert found.desired.refused_now == "something is mounted there: umount it first"
    apply(host, want("/dev/hugepages"), journal)
    assert host.mounts() == USUAL.splitlines()
    revert(Performer(host, load(["hugepages"]), journal, lambda line: None))
    assert host.snapshot() == before


IN_THE_WAY = {
    "a file system": ({"/proc/self/mounts": "tmpfs /mnt/huge tmpfs rw 0 0\n"}, "something is mounted there"),
    "files": ({"/mnt/huge/data": "x"}, "a mount would hide what is in it"),
    "a link": ({"/mnt/real/": "", "/mnt/huge": "-> real"}, "/mnt/huge: is in truth /mnt/real"),
    "a line of fstab": ({"/etc/fstab": "tmpfs /mnt/huge tmpfs defaults 0 0\n"}, "/etc/fstab mounts something else"),
    "a unit": ({f"{UNITS}/mnt-huge.mount": unit("/mnt/huge", "tmpfs", "")}, "a unit of this site's own"),
    "a mask": ({"/dev/null": "", f"{UNITS}/mnt-huge.mount": "-> /dev/null"}, "a unit of this site's own"),
}


@pytest.mark.parametrize("thing", IN_THE_WAY)
def test_what_is_in_the_way_stays_as_it_is(tmp_path: Path, journal: Journal, thing: str) -> None:
    files, why = IN_THE_WAY[thing]
    host = Mounting(tmp_path / "root", files)
    before = host.snapshot()
    assert any(why in f.reason for f in apply(host, want("/mnt/huge"), journal).failures)
    assert statuses(host, want("/mnt/huge"))["hugepages/mount/mnt/huge"] != "pass"
    revert(Performer(host, load(["hugepages"]), journal, lambda line: None))
    assert host.snapshot() == before


def test_what_is_mounted_on_top_is_what_is_there(tmp_path: Path) -> None:
    lines = "hugetlbfs /mnt/huge hugetlbfs rw,pagesize=1024M 0 0\n"
    host = Mounting(tmp_path / "root", {"/proc/self/mounts": lines + "tmpfs /mnt/huge tmpfs rw 0 0\n"})
    assert findings(host, want("/mnt/huge"))["hugepages/mount/mnt/huge"].fact.current == "tmpfs"


def test_two_sizes_at_one_place_are_refused_and_never_met(tmp_path: Path, journal: Journal) -> None:
    host = Mounting(tmp_path / "root", {})
    wanted = {"hugepages": {"mounts": {"1GiB": "/dev/hugepages", "2MiB": "/dev/hugepages"}}}
    before = host.snapshot()
    found = findings(host, wanted)["hugepages/mount/dev/hugepages"]
    assert (found.status.value, found.fix) == ("fail", "Give each size a place of its own.")
    apply(host, wanted, journal)
    assert host.snapshot() == before


ENABLED = {f"{WANTS}/mnt-huge.mount": "-> ../mnt-huge.mount"}
PLUS = r"mnt-huge\x2b1G.mount"
AT_BOOT: list[tuple[str, str, dict[str, str], str | None]] = [
    ("fstab", "/mnt/huge", {"/etc/fstab": "none /mnt/huge/ hugetlbfs pagesize=1G 0 0\n"}, "1GiB"),
    ("memparse takes 1GB", "/mnt/huge", {"/etc/fstab": "none /mnt/huge hugetlbfs pagesize=1GB 0 0\n"}, "1GiB"),
    ("no page size", "/mnt/huge", {"/etc/fstab": "none /mnt/huge hugetlbfs pagesize=huge 0 0\n"}, None),
    ("noauto", "/mnt/huge", {"/etc/fstab": "none /mnt/huge hugetlbfs pagesize=1G,noauto 0 0\n"}, None),
    ("the last one", "/mnt/huge", {"/etc/fstab": "none /mnt/huge hugetlbfs pagesize=1G,pagesize=2M 0 0\n"}, "2MiB"),
    ("a unit", "/mnt/huge", {f"{UNITS}/mnt-huge.mount": unit("/mnt/huge"), **ENABLED}, "1GiB"),
    ("not wanted", "/mnt/huge", {f"{UNITS}/mnt-huge.mount": unit("/mnt/huge")}, None),
    ("another name", "/mnt/huge+1G", {f"{UNITS}/mnt-huge.mount": unit("/mnt/huge+1G"), **ENABLED}, None),
    ("escaped", "/mnt/huge+1G", {f"{UNITS}/{PLUS}": unit("/mnt/huge+1G"), f"{WANTS}/{PLUS}": f"-> ../{PLUS}"}, "1GiB"),
    ("below /run", "/mnt/huge", {"/run/systemd/system/mnt-huge.mount": unit("/mnt/huge"), **ENABLED}, None),
    ("/lib not merged", "/mnt/huge", {"/lib/systemd/system/mnt-huge.mount": unit("/mnt/huge"), **ENABLED}, "1GiB"),
    (
        "the admin's unit hides fstab",
        "/mnt/huge",
        {
            "/etc/fstab": "none /mnt/huge hugetlbfs pagesize=1G 0 0\n",
            f"{UNITS}/mnt-huge.mount": unit("/mnt/huge", options="pagesize=2M"),
        },
        "2MiB",
    ),
    (
        "fstab hides a package's unit",
        "/mnt/huge",
        {
            "/etc/fstab": "none /mnt/huge hugetlbfs pagesize=2M 0 0\n",
            "/usr/lib/systemd/system/mnt-huge.mount": unit("/mnt/huge"),
            **ENABLED,
        },
        "2MiB",
    ),
]


@pytest.mark.parametrize(("where", "files", "expected"), [row[1:] for row in AT_BOOT], ids=[row[0] for row in AT_BOOT])
def test_what_is_mounted_at_the_next_boot(
    tmp_path: Path, where: str, files: dict[str, str], expected: str | None
) -> None:
    """systemd.unit(5), systemd.mount(5): by precedence, name and what wants it."""
    found = next_boot(Mounting(tmp_path / "root", files), where)
    assert not isinstance(found, Unknown)
    assert found == expected


@pytest.mark.parametrize("path", ["/mnt/huge+1G", "/a-b/c.d", "/.x/y", "/é_:", "/dev/hugepages", "/a b"])
def test_unit_names_are_those_of_systemd_escape(path: str) -> None:
    if (tool := process.which("systemd-escape")) is None:
        pytest.skip("systemd-escape is not installed")
    argv = [tool, "--path", "--suffix=mount", path]
    assert f"{unit_name(path, 'mount')}\n" == subprocess.run(argv, capture_output=True, text=True, check=True).stdout
