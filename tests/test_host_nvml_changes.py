"""Setting GPUs by NVML: what was set is what the next process reads, and a refusal is told in NVML's words."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_nvml import A100S, P100, Fleet, WithFleet, gpu
from fakes import FakeHost

from hostprep.errors import HostError
from hostprep.host import Host, nvml
from hostprep.host.record import RecordedHost
from hostprep.host.rehearsal import Rehearsal
from hostprep.model import Reading, Value

SPLIT = A100S[7]  # of the fleet a100-sxm: 3g.20gb and two of 1g.5gb
OLD = ("1g.5gb", "1g.5gb", "3g.20gb")


def field(address: str, name: str) -> Reading:
    return gpu(Host().nvml([address]), address).fields[name]


@pytest.mark.parametrize(
    ("name", "value", "now", "pending"),
    [
        ("persistence", False, {"persistence": False}, {}),
        ("ecc", False, {"ecc": True, "ecc-pending": False}, {"ecc": False}),
        ("mig", True, {"mig": True, "mig-pending": True, "mig-devices": ()}, {}),
        ("compute-mode", "prohibited", {"compute-mode": "prohibited"}, {}),
        ("compute-mode", "exclusive-process", {"compute-mode": "exclusive-process"}, {}),
    ],
)
def test_what_is_set_is_what_the_next_process_reads(
    name: str, value: Value, now: dict[str, Reading], pending: dict[str, Reading], with_fleet: WithFleet
) -> None:
    fleet: Fleet = with_fleet("a100")
    before = gpu(Host().nvml([P100]), P100).fields
    Host().set_gpu(P100, name, value)
    assert gpu(Host().nvml([P100]), P100).fields == {**before, **now}
    fleet.reboot()
    assert gpu(Host().nvml([P100]), P100).fields == {**before, **now, **pending}


@pytest.mark.parametrize("status", ["IN_USE", "RESET_REQUIRED"])
def test_mig_that_has_to_wait_for_a_reset_is_no_error(status: str, with_fleet: WithFleet) -> None:
    """nvmlDeviceSetMigMode succeeds, and its activation status says why the mode is only pending."""
    fleet: Fleet = with_fleet("a100")
    fleet.add("[gpu 0]", f"SetMigMode = {status}")
    Host().set_gpu(P100, "mig", True)
    assert (field(P100, "mig"), field(P100, "mig-pending")) == (False, True)
    fleet.reboot()
    assert field(P100, "mig") is True


@pytest.mark.parametrize(
    ("name", "value", "line", "error"),
    [
        ("persistence", True, "SetPersistenceMode = !NO_PERMISSION", "SetPersistenceMode: Insufficient Permissions"),
        ("ecc", True, "SetEccMode = !NO_PERMISSION", "SetEccMode: Insufficient Permissions"),
        ("ecc", True, "GetEccMode = !NOT_SUPPORTED", "SetEccMode: Not Supported"),
        ("mig", True, "SetMigMode = !NO_PERMISSION", "SetMigMode: Insufficient Permissions"),
        ("compute-mode", "default", "Lost = 1", "GetHandleByPciBusId: GPU is lost"),
        ("instances", ("1g.10gb",), "GetMigMode = 0 0", "no MIG profile .*1g.10gb.*none while MIG is disabled"),
        ("instances", ("1g.5gb",), "GetMigMode = 1 1", r"no MIG profile .*: 1g\.5gb\. It has: 1g\.10gb, "),
    ],
)
def test_a_refusal_is_told_in_nvmls_words(
    name: str, value: Value, line: str, error: str, with_fleet: WithFleet
) -> None:
    with_fleet("a100").add("[gpu 0]", line)
    with pytest.raises(HostError, match=error):
        Host().set_gpu(P100, name, value)


def test_a_gpu_that_is_not_there_and_a_driver_that_is_not(with_fleet: WithFleet) -> None:
    fleet: Fleet = with_fleet("a100")
    with pytest.raises(HostError, match="nvmlDeviceGetHandleByPciBusId: Not Found"):
        Host().set_gpu("0000:99:00.0", "ecc", True)
    fleet.add("[system]", "Init = !LIB_RM_VERSION_MISMATCH")
    with pytest.raises(HostError, match="nvmlInit: RM has detected an NVML/RM version mismatch"):
        Host().set_gpu(P100, "ecc", True)


def test_a_driver_that_hangs_while_it_is_told(with_fleet: WithFleet) -> None:
    with_fleet("a100").add("[gpu 0]", "Hang = SetEccMode")
    with pytest.raises(HostError, match=r"no answer within 0\.4 s"):
        Host().set_gpu(P100, "ecc", False, timeout=0.4)


# -- MIG instances --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wanted",
    [
        ("1g.5gb",) * 7,
        ("7g.40gb",),
        ("3g.20gb", "3g.20gb"),
        ("1g.5gb", "2g.10gb", "4g.20gb"),
        ("1g.5gb+me",),
        (),
    ],
    ids=",".join,
)
def test_the_instances_are_these_and_no_others(wanted: tuple[str, ...], with_fleet: WithFleet) -> None:
    fleet: Fleet = with_fleet("a100-sxm")
    assert field(SPLIT, "mig-devices") == OLD
    Host().set_gpu(SPLIT, "instances", wanted)
    assert field(SPLIT, "mig-devices") == wanted
    fleet.reboot()
    assert field(SPLIT, "mig-devices") == ()


@pytest.mark.parametrize(
    ("wanted", "lines", "error"),
    [
        (("4g.20gb", "4g.20gb"), (), "nvmlDeviceCreateGpuInstance: "),  # eight slices, and there are seven
        (("2g.10gb", "4g.20gb"), ("CreateGpuInstance.14 = !UNKNOWN",), "nvmlDeviceCreateGpuInstance: Unknown Error"),
        ((), ("ComputeInstanceDestroy = !IN_USE",), "nvmlComputeInstanceDestroy: "),
        ((), ("GpuInstanceDestroy = !IN_USE",), "nvmlGpuInstanceDestroy: "),
    ],
)
def test_what_was_there_is_made_again_when_what_is_wanted_cannot_be(
    wanted: tuple[str, ...], lines: tuple[str, ...], error: str, with_fleet: WithFleet
) -> None:
    with_fleet("a100-sxm").add("[gpu 7]", *lines)
    with pytest.raises(HostError, match=error):
        Host().set_gpu(SPLIT, "instances", wanted)
    assert field(SPLIT, "mig-devices") == OLD


def test_what_cannot_be_made_again_is_told(with_fleet: WithFleet) -> None:
    with_fleet("a100-sxm").add("[gpu 7]", "CreateGpuInstance.19 = !UNKNOWN")
    with pytest.raises(HostError, match=r"that were there \(.*1g\.5gb.*\) could not be made again"):
        Host().set_gpu(SPLIT, "instances", ("1g.5gb",))


# -- who does not change anything -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "name", "value", "commands"),
    [
        (P100, "persistence", True, ["nvidia-smi -i 0000:3b:00.0 -pm 1"]),
        (P100, "ecc", False, ["nvidia-smi -i 0000:3b:00.0 -e 0"]),
        (P100, "mig", True, ["nvidia-smi -i 0000:3b:00.0 -mig 1"]),
        (P100, "compute-mode", "exclusive-process", ["nvidia-smi -i 0000:3b:00.0 -c EXCLUSIVE_PROCESS"]),
        (P100, "instances", ("1g.5gb", "2g.10gb"), ["nvidia-smi mig -i 0000:3b:00.0 -cgi 1g.5gb,2g.10gb -C"]),
        (SPLIT, "instances", (), ["nvidia-smi mig -i 0000:bd:00.0 -dci", "nvidia-smi mig -i 0000:bd:00.0 -dgi"]),
        (
            SPLIT,
            "instances",
            ("7g.40gb",),
            [f"nvidia-smi mig -i 0000:bd:00.0 {words}" for words in ("-dci", "-dgi", "-cgi 7g.40gb -C")],
        ),
    ],
)
def test_a_rehearsal_notes_what_an_admin_would_type_and_sets_nothing(
    address: str, name: str, value: Value, commands: list[str], with_fleet: WithFleet
) -> None:
    fleet: Fleet = with_fleet("a100-sxm")
    rehearsal = Rehearsal(Host())
    rehearsal.set_gpu(address, name, value)
    assert [step.command for step in rehearsal.steps] == commands
    assert not Path(f"{fleet.config}.state").exists()


def test_a_recorded_host_and_a_tree_of_files_are_not_set(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="a recorded host cannot be changed"):
        RecordedHost(str(tmp_path)).set_gpu(P100, "ecc", True)
    with pytest.raises(HostError, match="GPUs: was not recorded"):
        Host(str(tmp_path)).set_gpu(P100, "ecc", True)


@pytest.mark.parametrize(
    ("name", "value"), [("persistence", False), ("ecc", False), ("mig", True), ("compute-mode", "prohibited")]
)
def test_the_fake_host_of_other_tests_does_as_the_library_does(
    name: str, value: Value, with_fleet: WithFleet, tmp_path: Path
) -> None:
    with_fleet("a100")
    fake = FakeHost(tmp_path / "root", {})
    fake.nvml_answer = Host().nvml([P100])
    fake.set_gpu(P100, name, value)
    Host().set_gpu(P100, name, value)
    assert fake.nvml([P100]) == Host().nvml([P100])
    assert fake.ran == [" ".join(argv) for argv in nvml.commands(P100, name, value)]
