"""The software ConnectX is one: the unmodified mstconfig queries and sets it, and sysfs follows the kernel's rules."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import connectx
import pytest

PF, PF2 = "0000:17:00.0", "0000:17:00.1"
DEVICES = "sys/bus/pci/devices"
Plug = Callable[..., connectx.Machine]
pytestmark = [
    pytest.mark.machine,
    pytest.mark.skipif(bool(connectx.missing()), reason=connectx.missing() or "nothing"),
]


@pytest.fixture
def plug(tmp_path: Path) -> Iterator[Plug]:
    with ExitStack() as stack:
        yield lambda *cards: stack.enter_context(connectx.machine(tmp_path, *cards))


def query(machine: connectx.Machine, address: str, *names: str) -> dict[str, tuple[str, ...]]:
    """Default, current and next value by name, as the tool shows them."""
    done = machine.run("mstconfig", "-d", address, "-e", "query", *names)
    assert done.returncode == 0, done.stdout
    rows = [line.lstrip("* ").split() for line in done.stdout.splitlines()]
    return {row[0]: tuple(row[1:]) for row in rows if row and row[0] in names}


def configure(machine: connectx.Machine, address: str, *values: str) -> subprocess.CompletedProcess[str]:
    return machine.run("mstconfig", "-d", address, "-y", "set", *values)


def with_vfs(machine: connectx.Machine) -> connectx.Machine:
    """The machine, started with room for eight VFs on each port."""
    machine.set("SRIOV_EN", 1)
    machine.set("NUM_OF_VFS", 8)
    machine.power_cycle()
    return machine


def device(machine: connectx.Machine, name: str, address: str = PF) -> Path:
    return machine.root / DEVICES / address / name


def virtfns(machine: connectx.Machine, address: str = PF) -> list[str]:
    return sorted(os.path.basename(os.readlink(link)) for link in device(machine, "", address).glob("virtfn*"))


def driver(machine: connectx.Machine, address: str) -> str:
    link = device(machine, "driver", address)
    return link.readlink().name if link.is_symlink() else ""


def put(machine: connectx.Machine, path: str, text: str) -> int:
    """The errno of a write."""
    try:
        (machine.root / "sys/bus/pci" / path).write_text(text)
    except OSError as error:
        return error.errno or -1
    return 0


def test_both_ports_are_one_card_and_the_next_value_comes_with_a_reboot(plug: Plug) -> None:
    machine = plug()
    assert query(machine, PF, "NUM_OF_VFS", "LINK_TYPE_P2") == {
        "NUM_OF_VFS": ("0", "0", "0"),
        "LINK_TYPE_P2": ("ETH(2)", "ETH(2)", "ETH(2)"),
    }
    done = configure(machine, PF, "SRIOV_EN=1", "NUM_OF_VFS=8")
    assert done.returncode == 0, done.stdout
    assert "Please reboot machine" in done.stdout
    assert machine.firmware_writes() == 1, "both parameters are in one TLV"
    assert query(machine, PF2, "SRIOV_EN", "NUM_OF_VFS") == {
        "SRIOV_EN": ("False(0)", "False(0)", "True(1)"),
        "NUM_OF_VFS": ("0", "0", "8"),
    }
    assert not device(machine, "sriov_totalvfs").exists()
    boot = (machine.root / "proc/sys/kernel/random/boot_id").read_text()
    machine.reboot()
    assert (machine.root / "proc/sys/kernel/random/boot_id").read_text() != boot
    assert query(machine, PF, "NUM_OF_VFS") == {"NUM_OF_VFS": ("0", "8", "8")}
    assert device(machine, "sriov_totalvfs", PF2).read_text() == "8\n"
    assert machine.firmware_writes() == 1, "queries and starts write nothing"


def test_a_card_that_needs_a_power_cycle_says_so_and_a_reboot_loads_nothing(plug: Plug) -> None:
    machine = plug()
    machine.fault(needs_power_cycle=True)
    done = configure(machine, PF, "SRIOV_EN=1", "NUM_OF_VFS=8")
    assert "Please power cycle machine" in done.stdout
    machine.reboot()
    assert (machine.value("NUM_OF_VFS", "current"), machine.value("NUM_OF_VFS")) == (0, 8)
    machine.power_cycle()
    assert machine.value("NUM_OF_VFS", "current") == 8


def test_several_cards_keep_to_themselves_and_one_card_may_span_domains(plug: Plug) -> None:
    """GB200 shows one card in two PCI domains."""
    spread = ("0000:03:00.0", "0002:03:00.0")
    machine = plug(connectx.card("cx5ex"), connectx.card("cx6dx", *spread, NUM_OF_VFS=4, SRIOV_EN=1))
    assert configure(machine, spread[1], "NUM_OF_VFS=16").returncode == 0
    assert query(machine, spread[0], "NUM_OF_VFS")["NUM_OF_VFS"] == ("4", "4", "16")
    assert query(machine, PF, "NUM_OF_VFS")["NUM_OF_VFS"] == ("0", "0", "0")
    refused = machine.run("mstconfig", "-d", spread[0], "query", "LINK_TYPE_P1")
    assert (refused.returncode, "doesn't support LINK_TYPE_P1" in refused.stdout) == (3, True)
    guids = [next(device(machine, "infiniband", a).glob("*/sys_image_guid")).read_text() for a in (PF, PF2, *spread)]
    assert (guids[0] == guids[1], guids[2] == guids[3], len(set(guids))) == (True, True, 2)
    put(machine, f"devices/{spread[1]}/sriov_numvfs", "2")
    assert virtfns(machine, spread[1]) == ["0002:03:00.1", "0002:03:00.2"]
    assert {path.name for path in (machine.root / "sys/class/net").glob("en*np*")} >= {"ens23f1np1", "enP2s3f0np1"}


def test_per_function_counts_beat_the_card_s(plug: Plug) -> None:
    machine = plug()
    assert configure(machine, PF, "SRIOV_EN=1", "NUM_OF_VFS=8", "PF_NUM_OF_VF_VALID=1").returncode == 0
    assert configure(machine, PF2, "PF_NUM_OF_VF=3").returncode == 0
    machine.reboot()
    assert not device(machine, "sriov_totalvfs").exists()
    assert device(machine, "sriov_totalvfs", PF2).read_text() == "3\n"


FAILURES: list[tuple[str, dict[str, Any], str]] = [
    ("kernel lockdown", {"lockdown": "integrity"}, "Failed to open the device"),
    ("gateway semaphore of a dead tool", {"vsec_sem_held": 77}, "Failed to open the device"),
    ("flash recovery", {"livefish": True}, "Device in Livefish mode is not supported"),
    ("off the bus", {"gone": True}, "Failed to identify the device"),
    ("no gateway", {"no_vsec": True}, "Failed to identify the device"),
    ("empty slot", {"card_absent": True}, "Failed to open the device"),
    ("firmware still starting", {"fw_not_ready": True}, "Error when trying to check if NV access"),
    ("register refused", {"reg_status": {"get:9030": 7}}, "Cannot access NV register"),
    ("rejected", {"reg_status": {"set:9024": 0x20}}, "The configuration is rejected"),
]


@pytest.mark.parametrize(("faults", "text"), [f[1:] for f in FAILURES], ids=[f[0] for f in FAILURES])
def test_the_tool_fails_as_on_a_real_card_and_nothing_is_stored(plug: Plug, faults: dict[str, Any], text: str) -> None:
    machine = plug()
    machine.fault(**faults)
    done = configure(machine, PF, "NUM_OF_VFS=8")
    assert done.returncode == 3
    assert text in done.stdout
    assert machine.value("NUM_OF_VFS") == 0
    assert bool(machine.firmware_writes()) == ("set:9024" in str(faults.get("reg_status")))


def test_what_is_out_of_range_is_refused_by_tool_and_firmware(plug: Plug) -> None:
    machine = plug()
    done = configure(machine, PF, "NUM_OF_VFS=128")
    assert (done.returncode, machine.firmware_writes()) == (3, 0)
    assert "larger than maximum allowed 127" in done.stdout


def test_firmware_without_current_values_shows_only_the_next(plug: Plug) -> None:
    machine = plug()
    machine.fault(no_current=True)
    done = machine.run("mstconfig", "-d", PF, "-e", "query", "NUM_OF_VFS")
    assert done.returncode == 0
    assert "does not support reading default and current configurations" in done.stdout


def test_lockdown_shows_in_securityfs_and_other_kernel_files_stay_real(plug: Plug) -> None:
    machine = plug()
    lockdown = machine.root / "sys/kernel/security/lockdown"
    assert lockdown.read_text() == "[none] integrity confidentiality\n"
    machine.fault(lockdown="confidentiality")
    assert lockdown.read_text() == "none integrity [confidentiality]\n"
    assert os.listdir(machine.root / "sys/kernel/mm") == os.listdir("/sys/kernel/mm")


def test_tools_at_once_all_end_and_either_have_stored_or_say_why_not(plug: Plug) -> None:
    """mstflint 4.21 starves on its own file lock: what fails then says so on standard output, and may have stored."""
    machine = plug()
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    wanted = {4: PF, 6: PF2, 9: PF}
    tools = {
        number: subprocess.Popen(
            machine.command("mstconfig", "-d", address, "-y", "set", "SRIOV_EN=1", f"NUM_OF_VFS={number}"), **pipes
        )
        for number, address in wanted.items()
    }
    said = {number: tool.communicate(timeout=connectx.TIMEOUT)[0] for number, tool in tools.items()}
    done = {number for number, tool in tools.items() if tool.returncode == 0}
    assert all("Please reboot" in said[number] for number in done)
    assert all("-E-" in said[number] for number in set(tools) - done), said
    assert machine.value("NUM_OF_VFS") in ({*wanted} if done else {0, *wanted})
    assert machine.value("SRIOV_EN") == bool(machine.value("NUM_OF_VFS"))


def test_vfs_follow_the_kernel_s_rules_and_vanish_with_the_boot(plug: Plug) -> None:
    machine = with_vfs(plug())
    numvfs = f"devices/{PF}/sriov_numvfs"
    table = [("many", errno.EINVAL), ("9", errno.ERANGE), ("4", 0), ("4", 0), ("6", errno.EBUSY), ("0", 0), ("8", 0)]
    assert [(text, put(machine, numvfs, text)) for text, _ in table] == table
    assert put(machine, f"devices/{PF2}/sriov_numvfs", "8") == 0
    found = virtfns(machine) + virtfns(machine, PF2)
    assert (found[0], found[-1], len(set(found))) == ("0000:17:00.2", "0000:17:02.1", 16)
    vf = found[0]
    assert device(machine, "physfn", vf).readlink().name == PF
    assert (device(machine, "iommu_group", vf) / "devices" / vf / "physfn").exists()
    assert os.listdir(device(machine, "net", vf)) == ["ens23f0v0"]
    machine.reboot()
    assert virtfns(machine) == []
    assert device(machine, "sriov_numvfs").read_text() == "0\n"


def test_fewer_vfs_than_asked_is_a_write_that_succeeds(plug: Plug) -> None:
    """R2."""
    machine = with_vfs(plug())
    machine.fault(sriov_numvfs_short=3)
    assert put(machine, f"devices/{PF}/sriov_numvfs", "8") == 0
    assert device(machine, "sriov_numvfs").read_text() == "3\n"
    assert len(virtfns(machine)) == 3


def test_vfs_may_show_up_after_the_write_returned(plug: Plug) -> None:
    """R8."""
    machine = with_vfs(plug())
    machine.fault(sriov_numvfs_delay=3600)
    assert put(machine, f"devices/{PF}/sriov_numvfs", "2") == 0
    assert (device(machine, "sriov_numvfs").read_text(), virtfns(machine)) == ("2\n", [])
    machine.fault()
    put(machine, f"devices/{PF}/sriov_numvfs", "0")
    machine.fault(sriov_numvfs_delay=0.05)
    put(machine, f"devices/{PF}/sriov_numvfs", "2")
    shown = "until [ -e virtfn1 ]; do :; done"
    assert machine.run("timeout", "20", "sh", "-c", f"cd /{DEVICES}/{PF} && {shown}").returncode == 0


def test_the_kernel_s_refusal_to_make_vfs(plug: Plug) -> None:
    machine = with_vfs(plug())
    machine.fault(sriov_numvfs_errno=errno.ENOMEM)
    assert put(machine, f"devices/{PF}/sriov_numvfs", "2") == errno.ENOMEM
    assert virtfns(machine) == []


def test_a_vf_takes_the_driver_it_is_told(plug: Plug) -> None:
    """pci_device_can_probe: with autoprobe off only driver_override lets a driver have a VF."""
    machine = with_vfs(plug())
    put(machine, f"devices/{PF}/sriov_drivers_autoprobe", "0")
    put(machine, f"devices/{PF}/sriov_numvfs", "1")
    (vf,) = virtfns(machine)
    override = f"devices/{vf}/driver_override"
    steps = [
        (("drivers_probe", vf), 0, ""),
        (("drivers/mlx5_core/bind", vf), errno.ENODEV, ""),
        (("drivers/vfio-pci/bind", vf), errno.ENODEV, ""),
        ((override, "vfio-pci"), 0, ""),
        (("drivers_probe", vf), 0, "vfio-pci"),
        (("drivers/vfio-pci/bind", vf), errno.EBUSY, "vfio-pci"),
        (("drivers/mlx5_core/unbind", vf), errno.ENODEV, "vfio-pci"),
        (("drivers/vfio-pci/unbind", vf), 0, ""),
        ((override, "\n"), 0, ""),
        ((f"devices/{PF}/sriov_drivers_autoprobe", "1"), 0, ""),
        (("drivers_probe", vf), 0, "mlx5_core"),
        (("drivers_probe", "0000:99:00.0"), errno.ENODEV, "mlx5_core"),
    ]
    assert [(write, put(machine, *write), driver(machine, vf)) for write, _, _ in steps] == steps
    assert device(machine, "driver_override", vf).read_text() == "(null)\n"


def test_a_pf_without_its_driver_has_no_vfs(plug: Plug) -> None:
    machine = with_vfs(plug())
    put(machine, f"devices/{PF}/sriov_numvfs", "2")
    assert put(machine, "drivers/mlx5_core/unbind", PF) == 0
    assert (driver(machine, PF), virtfns(machine)) == ("", [])
    assert put(machine, f"devices/{PF}/sriov_numvfs", "2") == errno.ENOENT


def test_the_machine_s_files_are_its_own(plug: Plug) -> None:
    machine = plug()
    places = ["/etc/connectx-test", "/run/connectx-test", "/var/lib/connectx-test"]
    assert machine.run("touch", *places).returncode == 0
    assert not any(Path(place).exists() for place in places)
    machine.reboot()
    assert [(machine.root / place[1:]).exists() for place in places] == [True, False, True]
