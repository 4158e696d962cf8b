"""GPUs: states of a host in which a check that is too trusting says ready, or a change cannot be taken back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from conftest import apply, findings, statuses
from fake_gpu import DRIVER, FIRST, Kernel, driver_files, gpu_files, installed, nvml, well
from fakes import FakeHost, debian
from test_gpu_changes import PERSISTENCED, SYSTEMD, boot, changed_by, taken_back

from hostprep.errors import CommandFailed, HostError
from hostprep.journal import Journal
from hostprep.model import Unknown

MakeHost = Callable[..., FakeHost]
DEVICE = f"/sys/bus/pci/devices/{FIRST}"
LOADED: dict[str, Any] = {"gpu": {"driver": "loaded"}}
UNLOADED: dict[str, Any] = {"gpu": {"driver": "unloaded"}}
RECORD = "/etc/hostprep/boot/gpu.json"
STARTED = f"/etc/systemd/system/multi-user.target.wants/{PERSISTENCED.unit}"
UNIT = f"/usr/lib/systemd/system/{PERSISTENCED.unit}"


@pytest.fixture
def node(make_host: MakeHost) -> FakeHost:
    """A node of one A100 that is well, with its driver loaded."""
    host = make_host({**debian(), **gpu_files(), **driver_files(), **SYSTEMD})
    host.nvml_answer = nvml({FIRST: well()})
    Kernel(host)
    plainly = host.commands["modprobe"]
    assert callable(plainly)

    def modprobe(argv: Sequence[str]) -> str:
        """As kmod does: where not told otherwise it runs the command of modprobe.d in place of loading."""
        if len(argv) == 2 and host.exists("/etc/modprobe.d/00-hostprep-gpu.conf"):
            raise CommandFailed("modprobe: exit 1", status=1, output="Error running install command '/bin/false'\n")
        return plainly(["modprobe", argv[-1].replace("-", "_")])

    host.commands["modprobe"] = modprobe
    return host


@pytest.fixture
def bare(make_host: MakeHost) -> FakeHost:
    """A host of one A100 whose driver is on the disk and not in the kernel."""
    host = make_host({**debian(), **gpu_files(driver=""), **installed(), **SYSTEMD})
    Kernel(host, loaded=())
    return host


# -- the driver -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"/lib/modules/6.1.0-26-amd64/modules.dep": ""}, "there is no nvidia module for this kernel"),
        ({"/version-of-the-module": "535.183.01"}, f"the file of the module is 535.183.01, and {DRIVER} runs"),
    ],
)
def test_a_driver_that_could_not_be_loaded_again_is_not_unloaded(
    node: FakeHost, journal: Journal, files: Mapping[str, str], says: str
) -> None:
    """K16: a container has loaded its own driver; or an upgrade has replaced the file. Neither comes back by modprobe.

    Nor would what is unloaded already when the kernel refuses in the middle.
    """
    for path, text in files.items():
        node.put(path, text)
    apply(node, UNLOADED, journal)
    assert changed_by(node) == []
    found = findings(node, UNLOADED)["gpu/modules"]
    assert (found.status.value, says in found.message) == ("pending-reboot", True)


def test_a_profile_may_change_its_mind_about_the_driver(node: FakeHost, journal: Journal) -> None:
    for section in (UNLOADED, LOADED, UNLOADED, LOADED):
        assert apply(node, section, journal).failures == []
        assert statuses(node, section)["gpu/modules" if section is UNLOADED else "gpu/driver"] == "pass"


def test_revert_unloads_what_came_with_the_driver(bare: FakeHost, journal: Journal) -> None:
    """Ubuntu's 71-nvidia.rules load nvidia-modeset, nvidia-drm and nvidia-uvm as soon as nvidia is there."""
    kernel = Kernel(bare, loaded=())
    before = bare.snapshot()
    apply(bare, LOADED, journal)
    for name in ("nvidia_modeset", "nvidia_uvm"):
        kernel.host.run("modprobe", name)
    assert taken_back(bare, journal).failures == []
    assert kernel.loaded == []
    assert bare.snapshot() == before


def test_nouveau_is_not_cured_by_a_reboot(bare: FakeHost, journal: Journal) -> None:
    """As long as nobody forbids it, it takes the GPU at the next boot too, and modprobe nvidia finds none."""
    bare.put(f"{DEVICE}/driver", "-> ../../../../bus/pci/drivers/nouveau")
    found = findings(bare, LOADED)["gpu/driver"]
    assert found.status.value == "fail"
    assert "nouveau" in found.message
    assert "blacklist nouveau" in found.fix
    apply(bare, LOADED, journal)
    assert changed_by(bare) == []


def test_a_host_without_a_gpu_is_not_told_of_nvml(make_host: MakeHost) -> None:
    host = make_host({**debian(), **driver_files()})
    Kernel(host)
    assert statuses(host, LOADED) == {"gpu/count": "fail", "gpu/driver": "volatile"}


def test_what_makes_the_missing_device_node_is_said(node: FakeHost) -> None:
    node.remove("/dev/nvidiactl")
    found = findings(node, LOADED)["gpu/nvml"]
    assert "nvidia-modprobe" in found.message + found.fix


# -- what cannot be read, and what is not there ---------------------------------------------------


def test_a_width_that_should_be_known_and_is_not_is_unknown(node: FakeHost) -> None:
    node.nvml_answer = nvml({FIRST: well(pcie_width=8, pcie_width_max=Unknown("Unknown Error"))})
    assert statuses(node, LOADED)[f"gpu/{FIRST}/pcie-width"] == "unknown"


@pytest.mark.parametrize(
    ("fields", "section", "key"),
    [
        ({"temperature": None, "temperature_slowdown": None}, {"temperature": 80}, "temperature"),
        ({"ecc_aggregate_uncorrectable": None}, {"ecc_errors": 0}, "ecc-aggregate-uncorrectable"),
        ({}, {"pcie_width": 16}, "pcie-width"),
    ],
)
def test_a_limit_on_what_nobody_tells_is_not_met(
    node: FakeHost, fields: dict[str, Any], section: dict[str, Any], key: str
) -> None:
    """A card in a virtual machine tells no PCIe link: that is no fault, unless the profile asks for one."""
    node.remove(f"{DEVICE}/current_link_width")
    node.nvml_answer = nvml({FIRST: well(**fields)})
    assert f"gpu/{FIRST}/{key}" not in {name for name, s in statuses(node, LOADED).items() if s != "pass"}
    found = findings(node, {"gpu": section})[f"gpu/{FIRST}/{key}"]
    assert found.status.value in ("fail", "unknown")
    assert "tells no" in found.message


@pytest.mark.parametrize("driver", ["unloaded", "vfio-pci"])
@pytest.mark.parametrize(
    "wish",
    [{"persistence": True}, {"ecc": True}, {"mig": ["1g.10gb"]}, {"compute_mode": "default"}, {"nvlinks": 12},
     {"temperature": 80}, {"retired_pages": 0}, {"ecc_errors": 0}],
    ids=str,
)  # fmt: skip
def test_a_wish_that_only_the_driver_could_tell_of_is_not_forgotten(
    bare: FakeHost, driver: str, wish: Mapping[str, Any]
) -> None:
    found = findings(bare, {"gpu": {"driver": driver, **wish}})
    (name,) = wish
    assert found[f"gpu/{name.replace('_', '-')}"].status.value == "unknown"
    assert driver in found[f"gpu/{name.replace('_', '-')}"].message


def test_a_gpu_that_sleeps_has_no_link_that_could_be_judged(bare: FakeHost) -> None:
    """In D3cold its link is down: it is neither narrow nor as wide as the profile wants it."""
    bare.put(f"{DEVICE}/power/runtime_status", "suspended\n")
    bare.put(f"{DEVICE}/current_link_width", "0\n")
    assert f"gpu/{FIRST}/pcie-width" not in statuses(bare, UNLOADED)
    assert statuses(bare, {"gpu": {"driver": "unloaded", "pcie_width": 16}})[f"gpu/{FIRST}/pcie-width"] != "pass"


# -- modes ----------------------------------------------------------------------------------------


def test_a_mig_mode_that_only_waits_is_journalled_and_taken_back(node: FakeHost, journal: Journal) -> None:
    """A daemon holds the GPU and is no process of NVML's: the mode becomes pending, and revert has to know of it."""
    node.gpu_in_use = True
    answer = node.nvml_answer
    assert apply(node, {"gpu": {"mig": True}}, journal).failures == []
    assert statuses(node, {"gpu": {"mig": True}})[f"gpu/{FIRST}/mig"] == "pending-reboot"
    assert taken_back(node, journal).failures == []
    assert node.nvml_answer == answer


def test_instances_go_before_mig_mode_does(node: FakeHost, journal: Journal) -> None:
    for _ in range(2):
        apply(node, {"gpu": {"mig": ["3g.40gb", "3g.40gb"]}}, journal)
    done = len(node.ran)
    assert taken_back(node, journal).failures == []
    assert [line for line in node.ran[done:] if "-dgi" in line or "-mig 0" in line] == [
        f"nvidia-smi mig -i {FIRST} -dgi",
        f"nvidia-smi -i {FIRST} -mig 0",
    ]


def test_mig_mode_is_not_turned_off_under_somebodys_instances(node: FakeHost, journal: Journal) -> None:
    """Nothing runs on them now; but NVML would destroy them at once, with what was meant for the next boot too."""
    node.nvml_answer = nvml({FIRST: well(mig=True, mig_pending=True, mig_devices=("7g.80gb",))})
    found = findings(node, {"gpu": {"mig": False}})[f"gpu/{FIRST}/mig"]
    assert (found.status.value, "7g.80gb" in found.message, "-dgi" in found.fix) == ("fail", True, True)
    apply(node, {"gpu": {"mig": False}}, journal)
    assert changed_by(node) == []


def test_revert_leaves_mig_mode_to_whoever_made_other_instances(node: FakeHost, journal: Journal) -> None:
    apply(node, {"gpu": {"mig": True}}, journal)
    done = changed_by(node)
    node.nvml_answer = nvml({FIRST: well(mig=True, mig_pending=True, mig_devices=("7g.80gb",))})
    assert "7g.80gb" in taken_back(node, journal).failures[0].reason
    assert changed_by(node) == done


def test_persistence_that_a_service_makes_again_cannot_be_turned_off(node: FakeHost, journal: Journal) -> None:
    """apply would turn it off at every run, and the service on at every boot."""
    node.put(UNIT, "[Service]\nExecStart=/usr/bin/nvidia-persistenced\n")
    node.put(STARTED, f"-> {UNIT}")
    node.nvml_answer = nvml({FIRST: well(persistence=True)})
    section = {"gpu": {"persistence": False}}
    found = findings(node, section)[f"gpu/{FIRST}/persistence"]
    assert found.status.value == "fail"
    assert "nvidia-persistenced.service" in found.message + found.fix
    apply(node, section, journal)
    assert changed_by(node) == []


# -- after a reboot -------------------------------------------------------------------------------


def test_the_record_of_a_card_that_was_replaced_is_no_promise(node: FakeHost, journal: Journal) -> None:
    """The boot unit leaves another card alone: it is for an apply to record it."""
    section = {"gpu": {"persistence": True}}
    apply(node, section, journal)
    node.put(f"{DEVICE}/device", "0x20f1\n")
    assert statuses(node, section)[f"gpu/{FIRST}/persistence"] == "volatile"
    assert apply(node, section, journal).failures == []
    assert json.loads(node.read(RECORD) or "")[FIRST]["id"] == "10de:20f1"
    assert statuses(node, section)[f"gpu/{FIRST}/persistence"] == "pass"


@pytest.mark.parametrize("why", ["node", "nvml", "gpu"])
def test_a_boot_at_which_nvml_does_not_answer_is_not_a_success(node: FakeHost, journal: Journal, why: str) -> None:
    apply(node, {"gpu": {"persistence": True}}, journal)
    if why == "node":
        node.remove("/dev/nvidiactl")
        node.commands["nvidia-modprobe"] = HostError("nvidia-modprobe: not installed")
    elif why == "nvml":
        node.nvml_answer = nvml({}, error="LIB_RM_VERSION_MISMATCH")
    else:
        node.nvml_answer = nvml({FIRST: "GPU_IS_LOST"})
    failures = boot(node, journal).failures
    assert [failure.name for failure in failures] == [f"gpu/{FIRST}/persistence"]
    assert {"node": "nvidiactl", "nvml": "MISMATCH", "gpu": "GPU_IS_LOST"}[why] in failures[0].reason


@pytest.mark.parametrize("section", [UNLOADED, {"gpu": {"mig": False}}], ids=str)
def test_what_cannot_be_made_any_more_is_taken_out_of_the_record(
    node: FakeHost, journal: Journal, section: dict[str, Any]
) -> None:
    """Else the boot unit fails at every boot, since the GPU has no driver then, or no MIG mode."""
    before = node.snapshot()
    for _ in range(2):
        apply(node, {"gpu": {"persistence": True, "mig": ["3g.40gb"]}}, journal)
    if section is not UNLOADED:
        node.set_gpu(FIRST, "instances", ())
    for _ in range(2):
        assert apply(node, section, journal).failures == []
    assert "mig-devices" not in (node.read(RECORD) or "")
    assert {key: s for key, s in statuses(node, section).items() if s != "pass"} == {}
    assert boot(node, journal).failures == []
    assert taken_back(node, journal).failures == []
    assert node.snapshot().keys() == before.keys()


def test_instances_that_somebody_else_makes_at_boot_are_not_destroyed(node: FakeHost, journal: Journal) -> None:
    """nvidia-mig-manager makes its own at boot; to ask NVML for ours would destroy them."""
    section = {"gpu": {"mig": ["3g.40gb", "3g.40gb"]}}
    apply(node, section, journal)
    apply(node, section, journal)
    done = changed_by(node)
    node.nvml_answer = nvml({FIRST: well(mig=True, mig_pending=True, mig_devices=("7g.80gb",))})
    (failure,) = boot(node, journal).failures
    assert failure.name == f"gpu/{FIRST}/mig-devices"
    assert "7g.80gb" in failure.reason
    assert changed_by(node) == done


@pytest.mark.parametrize("gone", ["the driver is unloaded", "and this is another boot", "the card is gone"])
def test_modes_are_taken_back_where_the_driver_or_the_card_is_gone(
    node: FakeHost, journal: Journal, gone: str, tmp_path: Any
) -> None:
    """Without its driver a GPU has no mode: nothing of it is left to take back, and nothing stands in the way."""
    before = node.snapshot()
    apply(node, {"gpu": {"persistence": True, "compute_mode": "exclusive-process"}}, journal)
    if "card" in gone:
        node.remove(f"{DEVICE}/class")
        node.nvml_answer = nvml({})
    else:
        Kernel(node, loaded=())
        node.nvml_answer = HostError("NVML was asked, and would have loaded the driver")
    later = Journal(str(tmp_path / "journal"), boot_id="next-boot") if "boot" in gone else journal
    assert taken_back(node, later).failures == []
    assert {path: now for path, now in node.snapshot().items() if before.get(path) != now}.keys() <= {"/proc/modules"}
