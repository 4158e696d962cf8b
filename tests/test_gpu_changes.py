"""Changing GPUs (K16): the driver is unloaded in order or not at all, and modes are kept over a reboot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from conftest import apply, findings, statuses
from fake_gpu import FIRST, Kernel, driver_files, gpu_files, installed, nvml, well
from fakes import FakeHost, debian

from hostprep import boot_record, registry
from hostprep.errors import HostError
from hostprep.host.processes import Process
from hostprep.journal import Journal
from hostprep.model import Value
from hostprep.perform import Performer
from hostprep.recreate import records, recreate
from hostprep.revert import revert

MakeHost = Callable[..., FakeHost]
UNLOADED = {"gpu": {"count": 1, "model": "A100", "driver": "unloaded"}}
SYSTEMD = {"/run/systemd/system/": "", boot_record.command()[0]: ""}
PERSISTENCED = Process(812, "nvidia-persistenced", "nvidia-persistenced.service")


@pytest.fixture
def node(make_host: MakeHost) -> FakeHost:
    host = make_host({**debian(), **gpu_files(), **driver_files(), **SYSTEMD})
    host.nvml_answer = nvml({FIRST: well()})
    return host


@pytest.fixture
def kernel(node: FakeHost) -> Kernel:
    return Kernel(node)


def taken_back(host: FakeHost, journal: Journal) -> Performer:
    performer = Performer(host, registry.load(["gpu"]), journal, lambda line: None)
    revert(performer)
    return performer


def changed_by(host: FakeHost) -> list[str]:
    """What was done, without what only looks."""
    return [line for line in host.ran if not line.startswith(("dmesg", "modinfo", "journalctl"))]


# -- unloading ------------------------------------------------------------------------------------


def test_unloading_goes_in_order_and_stays_over_a_reboot(node: FakeHost, kernel: Kernel, journal: Journal) -> None:
    assert statuses(node, UNLOADED)["gpu/modules"] == "fail"
    performer = apply(node, UNLOADED, journal)
    assert performer.failures == []
    assert changed_by(node)[-1] == "rmmod nvidia"
    assert sorted(changed_by(node)) == ["rmmod nvidia", "rmmod nvidia_modeset", "rmmod nvidia_uvm"]
    assert set(statuses(node, UNLOADED).values()) == {"pass"}
    assert "install nvidia /bin/false" in (node.read("/etc/modprobe.d/00-hostprep-gpu.conf") or "")


def test_apply_again_changes_nothing(node: FakeHost, kernel: Kernel, journal: Journal) -> None:
    apply(node, UNLOADED, journal)
    before, done = node.snapshot(), changed_by(node)
    apply(node, UNLOADED, journal)
    assert (node.snapshot(), changed_by(node)) == (before, done)


def test_revert_loads_every_module_again_and_leaves_no_file(node: FakeHost, kernel: Kernel, journal: Journal) -> None:
    before = node.snapshot()
    loaded = set(kernel.loaded)
    apply(node, UNLOADED, journal)
    assert taken_back(node, journal).failures == []
    assert set(kernel.loaded) == loaded
    after = node.snapshot()
    assert {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)} <= {"/proc/modules"}


@pytest.mark.parametrize(
    ("path", "who", "says"),
    [
        ("/dev/nvidia0", Process(4711, "python3", "docker 0123456789ab"), "docker 0123456789ab, pid 4711 python3"),
        ("/dev/nvidiactl", PERSISTENCED, "nvidia-persistenced.service, pid 812 nvidia-persistenced"),
        ("/dev/dri/card1", Process(900, "Xorg", "gdm.service"), "gdm.service, pid 900 Xorg"),
    ],
)
def test_what_uses_a_gpu_is_named_and_keeps_it(
    node: FakeHost, kernel: Kernel, journal: Journal, path: str, who: Process, says: str
) -> None:
    node.put("/sys/class/drm/card1", f"-> ../../devices/pci0000:3a/0000:3a:00.0/{FIRST}/drm/card1")
    node.open_file_table = {path: (who,)}
    before = node.snapshot()
    found = findings(node, UNLOADED)["gpu/modules"]
    assert says in found.message
    apply(node, UNLOADED, journal)
    assert changed_by(node) == []
    assert node.snapshot().keys() - before.keys() <= {"/etc/modprobe.d/00-hostprep-gpu.conf"}


def test_a_use_that_no_process_explains_is_told_by_the_kernels_count(node: FakeHost, kernel: Kernel) -> None:
    """A console on nvidia_drm holds it, and has no process."""
    kernel.loaded.append("nvidia_drm")
    kernel.hold("nvidia_drm")
    assert "nvidia_drm, which the kernel counts 1 more user" in findings(node, UNLOADED)["gpu/modules"].message


def test_users_that_cannot_be_told_are_not_taken_for_none(node: FakeHost, kernel: Kernel, journal: Journal) -> None:
    node.network_error = HostError("/proc/1/fd: Permission denied")
    apply(node, UNLOADED, journal)
    assert changed_by(node) == []


def test_a_refusal_in_the_middle_loads_again_what_was_unloaded(
    node: FakeHost, kernel: Kernel, journal: Journal
) -> None:
    before = set(kernel.loaded)
    rmmod = node.commands["rmmod"]
    assert callable(rmmod)

    def refuse_the_last(argv: Sequence[str]) -> str:
        if argv[1] == "nvidia":  # opened between the look and the change
            kernel.hold("nvidia")
        return rmmod(argv)

    node.commands["rmmod"] = refuse_the_last
    performer = apply(node, UNLOADED, journal)
    assert "Module nvidia is in use" in performer.failures[0].reason
    assert set(kernel.loaded) == before
    assert node.read("/etc/modprobe.d/00-hostprep-gpu.conf") is None


def test_a_service_loads_it_in_spite_of_a_blacklist(make_host: MakeHost, journal: Journal) -> None:
    """nvidia-persistenced has nvidia-modprobe load it by name; and ours comes before Debian's own install line."""
    unit = "nvidia-persistenced.service"
    debians = {"/etc/modprobe.d/nvidia.conf": "blacklist nvidia\ninstall nvidia modprobe -i nvidia-current\n"}
    enabled = {f"/etc/systemd/system/multi-user.target.wants/{unit}": f"-> /usr/lib/systemd/system/{unit}"}
    host = make_host({**debian(), **gpu_files(driver=""), **installed(), **debians, **enabled})
    Kernel(host, loaded=())
    assert statuses(host, UNLOADED)["gpu/modules"] == "volatile"
    assert apply(host, UNLOADED, journal).failures == []
    assert statuses(host, UNLOADED)["gpu/modules"] == "pass"


def test_a_module_that_the_initramfs_loads_is_not_kept_out_by_a_blacklist(
    node: FakeHost, kernel: Kernel, journal: Journal
) -> None:
    node.put("/etc/initramfs-tools/modules", "# list\nnvidia\n")
    apply(node, UNLOADED, journal)
    found = findings(node, UNLOADED)["gpu/modules"]
    assert found.status.value == "volatile"
    assert node.read("/etc/modprobe.d/00-hostprep-gpu.conf") is None


def test_the_driver_is_loaded_where_it_is_wanted(make_host: MakeHost, journal: Journal) -> None:
    host = make_host({**debian(), **gpu_files(), **installed()})
    kernel = Kernel(host, loaded=())
    apply(host, {"gpu": {"driver": "loaded"}}, journal)
    assert kernel.loaded == ["nvidia"]
    assert taken_back(host, journal).failures == []
    assert kernel.loaded == []


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"/lib/modules/6.1.0-26-amd64/modules.dep": ""}, "there is no nvidia module for this kernel"),
        ({"/etc/modprobe.d/site.conf": "blacklist nvidia\n"}, "/etc/modprobe.d/site.conf forbids it"),
    ],
)
def test_a_driver_that_cannot_be_loaded_says_why(
    make_host: MakeHost, journal: Journal, files: dict[str, str], says: str
) -> None:
    host = make_host({**debian(), **gpu_files(driver=""), **installed(), **files})
    Kernel(host, loaded=())
    found = findings(host, {"gpu": {"driver": "loaded"}})["gpu/driver"]
    assert found.status.value == "fail"
    assert says in found.message + found.fix + (found.desired.refused_now if found.desired else "")
    apply(host, {"gpu": {"driver": "loaded"}}, journal)
    assert changed_by(host) == []


# -- modes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "commands", "after"),
    [
        ({"ecc": False}, [f"nvidia-smi -i {FIRST} -e 0"], "pending-reboot"),
        ({"mig": True}, [f"nvidia-smi -i {FIRST} -mig 1"], "pass"),
        ({"persistence": True}, [f"nvidia-smi -i {FIRST} -pm 1"], "pass"),
        ({"compute_mode": "exclusive-process"}, [f"nvidia-smi -i {FIRST} -c EXCLUSIVE_PROCESS"], "pass"),
    ],
)
def test_modes_are_set_now_and_for_the_next_boot(
    node: FakeHost, kernel: Kernel, journal: Journal, section: dict[str, Any], commands: list[str], after: str
) -> None:
    performer = apply(node, {"gpu": section}, journal)
    assert performer.failures == []
    assert [line for line in changed_by(node) if line.startswith("nvidia-smi")] == commands
    (name,) = (name.replace("_", "-") for name in section)
    assert statuses(node, {"gpu": section})[f"gpu/{FIRST}/{name}"] == after
    before = changed_by(node)
    apply(node, {"gpu": section}, journal)
    assert changed_by(node) == before


@pytest.mark.parametrize("section", [{"ecc": False}, {"mig": True}, {"persistence": True}])
def test_modes_are_taken_back(node: FakeHost, kernel: Kernel, journal: Journal, section: dict[str, Any]) -> None:
    answer, before = node.nvml_answer, node.snapshot()
    apply(node, {"gpu": section}, journal)
    assert taken_back(node, journal).failures == []
    assert node.nvml_answer == answer
    assert node.snapshot() == before


def test_mig_waits_while_processes_run_on_the_gpu(node: FakeHost, kernel: Kernel, journal: Journal) -> None:
    node.nvml_answer = nvml({FIRST: well(processes=("4711",))})
    node.gpu_in_use = True
    apply(node, {"gpu": {"mig": True}}, journal)
    found = findings(node, {"gpu": {"mig": True}})[f"gpu/{FIRST}/mig"]
    assert found.status.value == "pending-reboot"
    assert "4711" in found.message


def test_instances_are_made_where_there_are_none(node: FakeHost, kernel: Kernel, journal: Journal) -> None:
    section = {"gpu": {"mig": ["3g.40gb", "3g.40gb"]}}
    apply(node, section, journal)
    assert statuses(node, section)[f"gpu/{FIRST}/mig"] == "pass"
    apply(node, section, journal)
    assert statuses(node, section)[f"gpu/{FIRST}/mig-devices"] == "pass"


def test_instances_of_others_are_left_alone(node: FakeHost, kernel: Kernel, journal: Journal) -> None:
    node.nvml_answer = nvml({FIRST: well(mig=True, mig_pending=True, mig_devices=("7g.80gb",))})
    found = findings(node, {"gpu": {"mig": ["1g.10gb"]}})[f"gpu/{FIRST}/mig-devices"]
    assert "7g.80gb" in found.message
    apply(node, {"gpu": {"mig": ["1g.10gb"]}}, journal)
    assert not any("mig" in line for line in changed_by(node))


# -- after a reboot -------------------------------------------------------------------------------


def reboot(host: FakeHost, **lost: Value) -> None:
    assert not isinstance(host.nvml_answer, HostError)
    (gpu,) = host.nvml_answer.gpus
    host.nvml_answer = nvml({FIRST: {**gpu.fields, "persistence": False, "compute-mode": "default", **lost}})


def boot(host: FakeHost, journal: Journal) -> Performer:
    performer = Performer(host, registry.load(["gpu"]), journal, lambda line: None)
    recreate(performer, records(host, performer.failures), timeout=0.1)
    return performer


def test_what_a_reboot_takes_the_boot_unit_makes_again(node: FakeHost, kernel: Kernel, journal: Journal) -> None:
    section = {"gpu": {"persistence": True, "compute_mode": "exclusive-process"}}
    apply(node, section, journal)
    assert "pass" in statuses(node, section).values()
    reboot(node)
    assert statuses(node, section)[f"gpu/{FIRST}/persistence"] == "pending-reboot"
    assert boot(node, journal).failures == []
    assert set(statuses(node, section).values()) == {"pass"}


def test_at_boot_the_device_nodes_are_made_that_a_look_does_not_make(
    node: FakeHost, kernel: Kernel, journal: Journal
) -> None:
    """NVIDIA's installer brings no udev rule that makes them, and nvidia-persistenced starts later, if at all."""
    section = {"gpu": {"persistence": True}}
    apply(node, section, journal)
    reboot(node)
    node.remove("/dev/nvidiactl")

    def nvidia_modprobe(argv: Sequence[str]) -> str:
        assert list(argv[1:]) == ["-c", "0"]
        node.put("/dev/nvidiactl", "")
        return ""

    node.commands["nvidia-modprobe"] = HostError("nvidia-modprobe: not installed")
    (failure,) = boot(node, journal).failures
    assert "/dev/nvidiactl: not there" in failure.reason
    node.commands["nvidia-modprobe"] = nvidia_modprobe
    assert boot(node, journal).failures == []
    assert statuses(node, section)[f"gpu/{FIRST}/persistence"] == "pass"


def test_a_gpu_that_is_gone_at_boot_is_a_failure_with_a_name(node: FakeHost, kernel: Kernel, journal: Journal) -> None:
    apply(node, {"gpu": {"persistence": True}}, journal)
    node.remove(f"/sys/bus/pci/devices/{FIRST}/driver")
    (failure,) = boot(node, journal).failures
    assert failure.name == f"gpu/{FIRST}"
    assert "no driver is bound" in failure.reason


@pytest.mark.parametrize(
    ("start", "status"),
    [
        ("/usr/bin/nvidia-persistenced --user nvpd", "pass"),
        ("/usr/bin/nvidia-persistenced --user nvidia-persistenced --no-persistence-mode --verbose", "volatile"),
    ],
)
def test_nvidia_persistenced_makes_persistence_last(node: FakeHost, kernel: Kernel, start: str, status: str) -> None:
    """Ubuntu's unit starts it with --no-persistence-mode: then it does not."""
    node.nvml_answer = nvml({FIRST: well(persistence=True)})
    unit = "nvidia-persistenced.service"
    node.put(f"/usr/lib/systemd/system/{unit}", f"[Service]\nExecStart={start}\n")
    node.put(f"/etc/systemd/system/multi-user.target.wants/{unit}", f"-> /usr/lib/systemd/system/{unit}")
    assert statuses(node, {"gpu": {"persistence": True}})[f"gpu/{FIRST}/persistence"] == status
