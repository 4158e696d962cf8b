"""The power goes in the middle of an apply: the host boots, check tells the truth, apply goes on, revert takes it back.

A cut is the disk as it is at one moment: what the kernel had not yet written is lost. One apply gives a cut at every
step that it tells of, and one inside update-grub. The one inside is booted; with HOSTPREP_VM=all every one is.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vm import Guest
from vm.admin import ETC, SLOW, findings, hostprep, profile
from vm.guest import started
from vm.image import Image
from vm.story import EVERYTHING, step

PF = "0000:41:00.0"
CHECKS: dict[str, Any] = {
    "swap": "disabled",
    "kernel_args": ["pcie_aspm=off"],
    "hugepages": {"1GiB": 1, "2MiB": {"0": 64}},
    "nic_vfs": [{"pf": PF, "vfs": 2}],
}
PREPARED = """
mkswap --quiet /dev/vda3 && echo '/dev/vda3 none swap sw 0 0' >> /etc/fstab
systemctl daemon-reload && swapon -a
mkfifo /run/go && chmod +x /etc/grub.d/09_wait && sync
"""
WAIT = """#!/bin/sh
if [ -p /run/go ]; then echo 'update-grub: is running' > /dev/console; read -r line < /run/go; fi
"""
APPLY = "hostprep apply --yes > /dev/console 2>&1; echo 'apply: is over' > /dev/console"
FILES = f"{ETC}\nmd5sum /boot/grub/grub.cfg"
INSIDE, OVER = "update-grub: is running", "apply: is over"
HELD = ("pass", "volatile")  # what the running system has as it is wanted


class Cut(NamedTuple):
    """The disk at the moment at which this was the last that had been said."""

    said: str
    disk: Path


def lines(console: Path) -> Iterator[str]:
    """What comes on the console from now on, line by line."""
    deadline = time.monotonic() + SLOW
    with console.open(errors="replace") as file:
        file.seek(0, os.SEEK_END)
        text = ""
        while time.monotonic() < deadline:
            text += file.read()
            *whole, text = text.split("\n")
            yield from whole
            time.sleep(0.02)
    raise TimeoutError("the apply does not end")


def cuts(guest: Guest) -> Iterator[Cut]:
    """What each moment of one apply would leave, had the power gone then."""
    disk = guest.machine.disk
    said = lines(guest.machine.folder / "console.log")
    guest.machine.agent.tell("/bin/sh", "-c", APPLY)
    guest.machine.agent.hello(60)
    for number, line in enumerate(said):
        if line.startswith(OVER):
            return
        if ": " not in line or not line.startswith((INSIDE, *CHECKS)):
            continue
        guest.machine.monitor.command("stop")  # what the guest has written is in the file then, and nothing else
        copy = disk.with_name(f"cut{number}.qcow2")
        shutil.copyfile(disk, copy)
        guest.machine.monitor.command("cont")
        yield Cut(line.strip(), copy)
        if line.startswith(INSIDE):
            guest.sh("echo go > /run/go")


def chosen(made: list[Cut]) -> list[Cut]:
    """Those that are booted."""
    return [cut for cut in made if EVERYTHING or cut.said.startswith(INSIDE)]


def test_the_power_may_go_at_any_moment_of_an_apply(guest: Guest, vm_image: Image) -> None:
    guest.put(WAIT, "/etc/grub.d/09_wait")
    guest.sh(PREPARED)
    profile(guest, {"name": "node", **CHECKS})
    guest.sh("sync")
    found = guest.sh(FILES)
    with step("apply, cut at every step that it tells of", "inside update-grub too") as saw:
        made = list(cuts(guest))
        assert any(cut.said.startswith(INSIDE) for cut in made), [cut.said for cut in made]
        saw(f"{len(made)} moments")
    whole = guest.sh(FILES)
    assert whole != found
    guest.kill()
    for cut in chosen(made):
        with (
            step(f"power cut at {cut.said}"[:60], "boots; check is true; apply converges"),
            started(cut.disk, vm_image.pciids) as after,
        ):
            is_told_as_it_is(after)
            code, said = hostprep(after, "apply --yes")
            assert code in (0, 4), said
            assert {f["status"] for f in findings(after).values()} <= {"pass", "pending-reboot"}
            assert after.sh(FILES).splitlines() == whole.splitlines()
            code, said = hostprep(after, "revert --yes")
            assert code == 0, said
            assert after.sh(FILES).splitlines() == found.splitlines()


def is_told_as_it_is(guest: Guest) -> None:
    """check says of the running system what the kernel says."""
    pages = "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages"
    kernel = {
        "swap/devices": not guest.sh("awk 'NR > 1' /proc/swaps"),
        "kernel_args/pcie_aspm": "pcie_aspm=off" in guest.sh("cat /proc/cmdline").split(),
        "hugepages/1GiB": int(guest.sh(f"cat {pages}")) >= 1,
        f"nic_vfs/{PF}/vfs": guest.sh(f"cat /sys/bus/pci/devices/{PF}/sriov_numvfs") == "2",
    }
    seen = {f"{f['check']}/{f['key']}": f["status"] in HELD for f in findings(guest).values()}
    assert {name: seen[name] for name in kernel} == kernel
