"""GPUs (K3, K15, K16, J1): what is found of a host that is well, and of each that is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from conftest import findings, statuses
from fake_gpu import A100, DRIVER, FIRST, P100, SECOND, Kernel, driver_files, gpu_files, installed, nvml, well
from fakes import FakeHost, debian

from hostprep.errors import HostError
from hostprep.model import Reading, Unknown

MakeHost = Callable[..., FakeHost]
MakeNode = Callable[..., FakeHost]


@pytest.fixture
def node(make_host: MakeHost) -> MakeNode:
    """A node of one A100 with its driver; `files` change it, `said` is what NVML tells, `xids` what the kernel log."""

    def make(
        files: Mapping[str, str] | None = None,
        said: Mapping[str, Mapping[str, Reading] | str] | None = None,
        xids: tuple[str, ...] = (),
        card: str = A100,
        **told: str,
    ) -> FakeHost:
        host = make_host({**debian(), **gpu_files(FIRST, card), **driver_files(), **(files or {})})
        host.nvml_answer = nvml({FIRST: well(card)} if said is None else said, **told)
        Kernel(host, xids=xids)
        return host

    return make


@pytest.fixture
def bare(make_host: MakeHost) -> MakeNode:
    """A host of one A100 without a driver in its kernel, be it on its disk."""

    def make(files: Mapping[str, str] | None = None, driver: str = "") -> FakeHost:
        host = make_host({**debian(), **gpu_files(driver=driver), **installed(), **(files or {})})
        host.nvml_answer = HostError("NVML was asked, and would have loaded the driver")
        Kernel(host, loaded=())
        return host

    return make


def bad(host: FakeHost, section: Mapping[str, Any]) -> dict[str, str]:
    """The status of each finding that is not a pass, by key; the address of the first GPU left out."""
    found = statuses(host, {"gpu": section})
    return {k.removeprefix("gpu/").removeprefix(f"{FIRST}/"): s for k, s in found.items() if s != "pass"}


@pytest.mark.parametrize(("card", "model"), [(A100, "A100"), (P100, "P100"), (P100, "10de:15f8")])
def test_a_node_whose_gpu_is_well_is_ready(node: MakeNode, card: str, model: str) -> None:
    """J1: a Pascal has neither MIG nor row remapping nor a recovery action, and is no worse for it."""
    assert bad(node(card=card), {"count": 1, "model": model, "driver": f">={DRIVER}"}) == {}


# -- presence -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"count": 2}, {"count": "fail"}),
        ({"count": 1, "model": "A10"}, {"model": "fail"}),
        ({"cards": "10de:15f8"}, {"count": "fail"}),
        ({"cards": FIRST}, {}),
        ({"pcie_width": 32}, {"pcie-width": "fail"}),
        ({"driver": "560.28.03"}, {"driver/version": "fail"}),
        ({"driver": ">=535.183.01"}, {}),
        ({"driver": ">=535"}, {}),
        ({"nvlinks": 12}, {"nvlinks": "fail"}),
        ({"temperature": 30}, {"temperature": "fail"}),
    ],
)
def test_a_profile_that_asks_for_more(node: MakeNode, section: Mapping[str, Any], expected: Mapping[str, str]) -> None:
    assert bad(node(), section) == expected


def test_a_host_without_a_gpu_says_what_is_missing(make_host: MakeHost) -> None:
    host = make_host({**debian(), **installed()})
    Kernel(host, loaded=())
    found = findings(host, {"gpu": {"count": 1, "driver": "unloaded"}})
    assert found["gpu/count"].message == "No GPU matches 10de:*. There is none at all."
    assert found["gpu/count"].fact.current == 0


def test_a_bus_that_cannot_be_listed_is_unknown(node: MakeNode) -> None:
    host = node({f"/sys/bus/pci/devices/{FIRST}/class": "garbage"})
    assert statuses(host, {"gpu": {"count": 1}})["gpu/count"] == "unknown"


@pytest.mark.parametrize(
    ("files", "key", "status", "says"),
    [
        ({"config": "\xff\xff\xff\xff"}, "bus", "fail", "fallen off"),
        ({"current_link_width": "8"}, "pcie-width", "fail", "lost lanes"),
    ],
)
def test_what_the_bus_alone_tells(node: MakeNode, files: Mapping[str, str], key: str, status: str, says: str) -> None:
    host = node()
    for name, text in files.items():
        with open(host.real(f"/sys/bus/pci/devices/{FIRST}/{name}"), "wb") as f:
            f.write(text.encode("latin-1"))
    found = findings(host, {"gpu": {"count": 1}})[f"gpu/{FIRST}/{key}"]
    assert (found.status.value, says in found.message) == (status, True)


@pytest.mark.parametrize(
    ("holder", "wanted", "says"),
    [
        ("nouveau", "loaded", "nouveau, the kernel's own driver, has it"),
        ("vfio-pci", "loaded", "vfio-pci has it"),
        ("nouveau", "unloaded", "nouveau, the kernel's own driver, has it"),
        ("vfio-pci", "unloaded", "vfio-pci has it"),
    ],
)
def test_who_holds_a_gpu_is_a_finding_of_its_own(bare: MakeNode, holder: str, wanted: str, says: str) -> None:
    found = findings(bare(driver=holder), {"gpu": {"driver": wanted}})[f"gpu/{FIRST}/driver"]
    assert found.status.value == "fail"
    assert found.message.startswith(says)
    assert found.fix


def test_a_gpu_for_virtual_machines_is_vfios(bare: MakeNode) -> None:
    host = bare(driver="vfio-pci")
    assert bad(host, {"driver": "vfio-pci"}) == {}
    host.remove(f"/sys/bus/pci/devices/{FIRST}/driver")
    assert bad(host, {"driver": "vfio-pci"}) == {"driver": "fail"}


def test_a_gpu_that_the_loaded_driver_does_not_take(node: MakeNode) -> None:
    host = node(said={FIRST: "NOT_FOUND"})
    host.remove(f"/sys/bus/pci/devices/{FIRST}/driver")
    found = findings(host, {"gpu": {"count": 1}})[f"gpu/{FIRST}/driver"]
    assert (found.status.value, found.message) == ("fail", "No driver is bound to it.")


# -- the driver -----------------------------------------------------------------------------------


def test_without_the_module_nvml_is_not_asked(bare: MakeNode) -> None:
    """K16: asking would load the driver. The fake's NVML fails the test when it is asked."""
    host = bare({"/etc/modprobe.d/site.conf": "blacklist nvidia\n"})
    assert bad(host, {"count": 1, "model": "A100", "driver": "unloaded"}) == {}
    assert bad(host, {"driver": "loaded"}) == {"driver": "fail"}


def test_without_device_nodes_nvml_is_not_asked_either(node: MakeNode) -> None:
    host = node()
    host.remove("/dev/nvidiactl")
    found = findings(host, {"gpu": {"count": 1}})["gpu/nvml"]
    assert found.status.value == "unknown"
    assert "asking NVML would make it" in found.message


def test_unloaded_now_and_loaded_by_udev_at_the_next_boot_is_volatile(bare: MakeNode) -> None:
    """K16: whoever unloads it by hand finds it again after the next boot."""
    assert bad(bare(), {"driver": "unloaded"}) == {"modules": "volatile"}


@pytest.mark.parametrize(
    ("error", "library", "says", "fix"),
    [
        ("LIB_RM_VERSION_MISMATCH", "", "different versions", "Reboot this host, or unload and load"),
        ("LIBRARY_NOT_FOUND", "", "is not installed", "Install the library"),
        ("DRIVER_NOT_LOADED", "", "cannot talk to it", "NVRM"),
        ("NO_PERMISSION", DRIVER, "may not be asked", "root"),
        ("UNKNOWN", DRIVER, "NVML says UNKNOWN", "dmesg"),
    ],
)
def test_an_nvml_that_does_not_start_says_why(node: MakeNode, error: str, library: str, says: str, fix: str) -> None:
    found = findings(node(error=error, library=library, said={}), {"gpu": {"count": 1}})["gpu/nvml"]
    assert found.status.value == "fail"
    assert says in found.message
    assert fix in found.fix


def test_an_nvml_that_hangs_is_unknown_and_the_bus_is_judged_all_the_same(node: MakeNode) -> None:
    """NVSentinel#1574: a driver that does not answer is a finding, not a hang."""
    host = node()
    host.nvml_answer = HostError("NVML: no answer within 20 s: is the driver stuck?")
    assert bad(host, {"count": 1, "model": "A100"}) == {"nvml": "unknown"}


def test_an_nvml_that_does_not_answer_does_not_hide_what_the_kernel_log_says(node: MakeNode) -> None:
    host = node(xids=(FELL_OFF,))
    host.nvml_answer = HostError("NVML: no answer within 25 s: is the driver stuck?")
    assert bad(host, {"count": 1}) == {"nvml": "unknown", "xids": "fail"}


@pytest.mark.parametrize(
    ("on_disk", "status", "says"),
    [
        ("550.127.05", "pending-reboot", f"The kernel module is {DRIVER}, and the library (libnvidia-ml) 550.127.05"),
        (DRIVER, "fail", "unloaded and loaded anew"),
    ],
)
def test_module_and_library_out_of_step(node: MakeNode, on_disk: str, status: str, says: str) -> None:
    """The commonest fault in the field: an upgrade without a reboot. Where DKMS has failed, no reboot helps."""
    host = node(installed(on_disk), error="LIB_RM_VERSION_MISMATCH", library="550.127.05", said={})
    assert bad(host, {"count": 1}) == {"driver/in-step": status}  # once, not as a silent NVML too
    found = findings(host, {"gpu": {"count": 1}})["gpu/driver/in-step"]
    assert says in found.message
    assert DRIVER in found.message
    assert "eboot" in found.fix


def test_a_new_kernel_without_the_driver_is_found_before_it_boots(node: MakeNode) -> None:
    """A DKMS build that failed: the GPU is gone after the reboot that a kernel upgrade asks for."""
    newer = "/lib/modules/6.1.0-27-amd64"
    host = node({f"{newer}/modules.dep": "kernel/x.ko:\n", "/boot/vmlinuz-6.1.0-27-amd64": ""})
    host.put("/boot/grub/grub.cfg", "menuentry 'Debian GNU/Linux' { linux /vmlinuz-6.1.0-27-amd64 ro\n}\n")
    assert bad(host, {"count": 1})["driver"] in ("volatile", "unknown")


# -- what NVML tells ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({FIRST: "NOT_FOUND"}, "NVML does not list it"),
        ({FIRST: "GPU_IS_LOST"}, "NVML has lost it"),
        ({FIRST: "NO_PERMISSION"}, "may not be asked"),
        ({}, "NVML does not list it"),
    ],
)
def test_a_gpu_on_the_bus_that_nvml_does_not_answer_for(node: MakeNode, said: Mapping[str, str], says: str) -> None:
    found = findings(node(said=said), {"gpu": {"count": 1}})[f"gpu/{FIRST}/nvml"]
    assert found.status.value == "fail"
    assert says in found.message


def test_a_gpu_that_nvml_lists_and_the_bus_does_not_is_a_finding(node: MakeNode) -> None:
    host = node(said={FIRST: well(), SECOND: well()})
    found = findings(host, {"gpu": {"count": 1}})
    assert found[f"gpu/{SECOND}/bus"].status.value == "fail"


def test_one_sick_gpu_does_not_hide_the_others(node: MakeNode) -> None:
    host = node(gpu_files(SECOND, minor=1), said={FIRST: "GPU_IS_LOST", SECOND: well(remapping_pending=True)})
    assert bad(host, {"count": 2}) == {"nvml": "fail", f"{SECOND}/remapping-pending": "pending-reboot"}


@pytest.mark.parametrize(
    ("fields", "section", "expected"),
    [
        ({"ecc": False, "ecc_pending": True}, {"ecc": True}, {"ecc": "pending-reboot"}),
        ({"ecc_pending": False}, {"ecc": True}, {"ecc": "volatile"}),
        ({"ecc": None, "ecc_pending": None}, {"ecc": True}, {"ecc": "fail"}),
        ({"ecc": None, "ecc_pending": None}, {"ecc": False}, {}),
        ({"mig": None, "mig_pending": None, "mig_devices": None}, {"mig": False}, {}),
        ({"mig_pending": True}, {"mig": True}, {"mig": "pending-reboot"}),
        ({"mig": True, "mig_pending": True}, {"mig": False}, {"mig": "fail"}),
        ({"persistence": True}, {"persistence": True}, {"persistence": "volatile"}),
        ({}, {"persistence": True}, {"persistence": "fail"}),
        ({}, {"compute_mode": "exclusive-process"}, {"compute-mode": "fail"}),
        ({"compute_mode": Unknown("Unknown Error")}, {"compute_mode": "default"}, {"compute-mode": "unknown"}),
        ({"architecture": "hopper", "mig": True, "mig_pending": True}, {"mig": True}, {"mig": "volatile"}),
    ],
)
def test_modes_have_a_value_now_and_after_the_next_boot(
    node: MakeNode, fields: dict[str, Any], section: dict[str, Any], expected: dict[str, str]
) -> None:
    assert bad(node(said={FIRST: well(**fields)}), section) == expected


# -- the kernel log, the fabric, the installer ----------------------------------------------------

FELL_OFF = "Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."


@pytest.mark.parametrize(
    ("line", "section", "expected"),
    [
        (FELL_OFF, {}, {"xids": "fail"}),
        (FELL_OFF, {"ignored_xids": [79]}, {}),
        ("Xid (PCI:0000:3b:00): 31, pid=1, name=python, Ch 8, intr 0. MMU Fault", {}, {}),  # gpud#1174: an application
        (FELL_OFF.replace("3b", "af"), {}, {f"{SECOND}/xids": "fail"}),  # of a card that is gone altogether
    ],
)
def test_xids_since_boot(node: MakeNode, line: str, section: dict[str, Any], expected: dict[str, str]) -> None:
    """T19: told at every look, not once."""
    host = node(xids=(line,))
    assert [bad(host, {"count": 1, **section}) for _ in range(2)] == [expected] * 2


def test_a_kernel_log_that_cannot_be_read_is_unknown(node: MakeNode) -> None:
    host = node()
    host.commands |= {"dmesg": HostError("dmesg: needs root"), "journalctl": HostError("journalctl: not installed")}
    assert bad(host, {"count": 1}) == {"xids": "unknown"}


@pytest.mark.parametrize(
    ("comm", "version", "expected"),
    [("nv-fabricmanage", DRIVER, {}), ("nv-fabricmanage", "550.54.15", {"fabric-manager": "fail"}),
     ("bash", DRIVER, {"fabric-manager": "fail"})],
)  # fmt: skip
def test_nvswitches_need_a_fabric_manager_of_the_drivers_version(
    node: MakeNode, comm: str, version: str, expected: dict[str, str]
) -> None:
    switch = "/sys/bus/pci/devices/0000:c1:00.0"
    host = node({f"{switch}/class": "0x068000", f"{switch}/vendor": "0x10de", f"{switch}/device": "0x22a3",
                 "/proc/812/comm": f"{comm}\n"})  # fmt: skip
    host.commands["nv-fabricmanager"] = f"Fabric Manager version is : {version}\n"
    assert bad(host, {"count": 1}) == expected


RUN = f"/root/driver/nvidia/NVIDIA-Linux-x86_64-{DRIVER}.run"


@pytest.mark.parametrize(
    ("files", "section", "expected"),
    [
        ({RUN: "#!/bin/sh"}, {"installer": RUN}, {}),
        ({}, {"installer": RUN}, {"installer/driver": "fail"}),
        ({RUN: ""}, {"installer": RUN}, {"installer/driver": "fail"}),
        ({"/root/NVIDIA-Linux-x86_64-560.28.03.run": "#!"},
         {"installer": "/root/NVIDIA-Linux-x86_64-560.28.03.run"}, {"installer/driver": "fail"}),
        ({RUN: "#!/bin/sh", "/root/Makefile": f"NVIDIA_DRIVER_FILE ?= NVIDIA-Linux-x86_64-{DRIVER}.run\n"},
         {"installer": RUN, "makefile": "/root/Makefile"}, {}),
        ({RUN: "#!/bin/sh", "/root/Makefile": "NVIDIA_DRIVER_FILE ?= NVIDIA-Linux-x86_64-535.54.03.run\n"},
         {"installer": RUN, "makefile": "/root/Makefile"}, {"installer/makefile": "fail"}),
        ({RUN: "#!/bin/sh", "/root/Makefile": "NVIDIA_DRIVER_FILE := $(shell ls)\n"},
         {"installer": RUN, "makefile": "/root/Makefile"}, {"installer/makefile": "unknown"}),
        ({RUN: "#!/bin/sh"}, {"installer": RUN, "makefile": "/root/Makefile"}, {"installer/makefile": "fail"}),
    ],
)  # fmt: skip
def test_the_installer_is_named_for_the_version_that_is_meant(
    node: MakeNode, files: dict[str, str], section: dict[str, Any], expected: dict[str, str]
) -> None:
    """K15: driver/nvidia/NVIDIA-Linux-x86_64-550.90.12.run, and NVIDIA_DRIVER_FILE of the Makefile (K17)."""
    assert bad(node(files), {"count": 1, **section}) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [({RUN: "#!/bin/sh"}, {}), ({}, {"installer": "fail"}), ({RUN: ""}, {"installer": "fail"})],
)
def test_the_installer_is_there_where_the_driver_is_not(
    bare: MakeNode, files: dict[str, str], expected: dict[str, str]
) -> None:
    host = bare({**files, "/etc/modprobe.d/site.conf": "blacklist nvidia\n"})
    assert bad(host, {"driver": "unloaded", "installer": RUN}) == expected
