"""What NVML tells of GPUs: the real binding, on a library that tells what a file says."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_nvml import A100S, P100, P100S, R470, WithFleet, gpu

from hostprep.errors import HostError
from hostprep.host import Host
from hostprep.host.record import RecordedHost, Recorder
from hostprep.model import Reading, Unknown

GIB = 1 << 30
TWELVE = tuple(str(link) for link in range(12))


# -- fields ---------------------------------------------------------------------------------------

FIELDS: dict[tuple[str, str], dict[str, Reading]] = {
    ("p100", P100): {
        "name": "Tesla P100-PCIE-16GB",
        "uuid": "GPU-00000000-1111-2222-3333-444444444444",
        "serial": "0324717000000",
        "vbios": "86.00.52.00.02",
        "architecture": "pascal",
        "minor": 0,
        "memory": 16 * GIB,
        "display-active": False,
        "ecc": True,
        "ecc-pending": True,
        "ecc-volatile-uncorrectable": 0,
        "ecc-aggregate-uncorrectable": 0,
        "retired-single": 0,
        "retired-double": 0,
        "retirement-pending": False,
        "remapped-correctable": None,  # Ampere and later
        "remapped-uncorrectable": None,
        "remapping-pending": None,
        "remapping-failed": None,
        "mig": None,
        "mig-pending": None,
        "mig-devices": None,
        "persistence": True,
        "compute-mode": "default",
        "pcie-generation": 3,
        "pcie-generation-max": 3,
        "pcie-width": 16,
        "pcie-width-max": 16,
        "temperature": 38,
        "temperature-slowdown": 82,
        "temperature-shutdown": 85,
        "temperature-margin": None,
        "clock-reasons": ("idle",),
        "nvlinks-up": None,
        "nvlinks-down": None,
        "fabric-state": None,
        "fabric-status": None,
        "fabric-health": None,
        "recovery-action": None,
        "utilization": 0,
        "processes": (),
    },
    ("p100-sick", P100S[0]): {"nvlinks-up": ("0", "1", "2", "3"), "nvlinks-down": (), "retired-double": 0},
    ("p100-sick", P100S[1]): {
        "ecc-volatile-uncorrectable": 1,
        "ecc-aggregate-uncorrectable": 3,
        "retired-single": 1,
        "retired-double": 2,
        "retirement-pending": True,
    },
    ("p100-sick", P100S[3]): {
        "ecc": False,
        "ecc-pending": True,
        "persistence": False,
        "pcie-width": 8,
        "pcie-width-max": 16,
        "pcie-generation": 1,
    },
    ("a100", P100): {
        "name": "NVIDIA A100 80GB PCIe",
        "architecture": "ampere",
        "memory": 80 * GIB,
        "retired-single": None,  # up to Volta
        "remapped-correctable": 0,
        "remapping-pending": False,
        "remapping-failed": False,
        "mig": False,
        "mig-pending": False,
        "mig-devices": (),
        "nvlinks-up": None,
        "recovery-action": "none",
        "fabric-state": "not-supported",
        "fabric-status": None,
    },
    ("a100-sxm", A100S[7]): {"mig": True, "mig-devices": ("1g.5gb", "1g.5gb", "3g.20gb"), "utilization": None},
    ("a100-sick", A100S[0]): {"remapped-correctable": 1, "remapped-uncorrectable": 2, "remapping-pending": True},
    ("a100-sick", A100S[1]): {"remapping-failed": True, "remapping-pending": False, "recovery-action": "gpu-reset"},
    ("a100-sick", A100S[3]): {"mig": False, "mig-pending": True, "ecc": True, "ecc-pending": False},
    ("a100-sick", A100S[6]): {
        "nvlinks-up": tuple(link for link in TWELVE if link != "5"),
        "nvlinks-down": ("5",),
        "temperature": 93,
        "clock-reasons": ("hw-slowdown", "thermal-sw", "thermal-hw"),
    },
    ("a100-sick", A100S[7]): {
        "persistence": Unknown("NVML, asked for persistence: Insufficient Permissions"),
        "compute-mode": "exclusive-process",
        "utilization": 97,
        "processes": ("77", "4242", "4243"),
    },
    ("h100", A100S[0]): {
        "architecture": "hopper",
        "temperature-margin": 47,
        "fabric-state": "completed",
        "fabric-status": 0,
        "fabric-health": (),
    },
    ("h100", A100S[7]): {
        "temperature-margin": -2,
        "fabric-status": 999,
        "fabric-health": ("degraded-bw", "incorrect-sysguid"),
        "recovery-action": "drain-and-reset",
    },
}


@pytest.mark.parametrize(("fleet", "address"), FIELDS, ids=lambda value: value)
def test_the_fields_of_a_gpu(fleet: str, address: str, with_fleet: WithFleet) -> None:
    with_fleet(fleet)
    found = gpu(Host().nvml([address]), address)
    assert found.error == ""
    wanted = FIELDS[fleet, address]
    assert {name: found.fields[name] for name in wanted} == wanted


def test_every_field_that_there_is_is_in_the_table_above(with_fleet: WithFleet) -> None:
    with_fleet("p100")
    assert set(gpu(Host().nvml([P100]), P100).fields) == set(FIELDS["p100", P100])


@pytest.mark.parametrize(
    ("fleet", "library", "driver", "cuda"),
    [("p100", "535.183.01", "535.183.01", "12.2"), ("a100-sxm", "570.133.20", "570.133.20", "12.8")],
)
def test_the_versions(fleet: str, library: str, driver: str, cuda: str, with_fleet: WithFleet) -> None:
    with_fleet(fleet)
    assert Host().nvml([])[:4] == ("", library, driver, cuda)


def test_what_was_asked_for_comes_first_and_in_that_order(with_fleet: WithFleet) -> None:
    with_fleet("a100-sxm")
    told = Host().nvml([A100S[5], "0000:99:00.0", A100S[1]])
    assert [gpu.address for gpu in told.gpus[:3]] == [A100S[5], "0000:99:00.0", A100S[1]]
    assert sorted(gpu.address for gpu in told.gpus[3:]) == sorted(set(A100S) - {A100S[5], A100S[1]})
    assert [gpu.error for gpu in told.gpus if gpu.error] == ["NOT_FOUND"]


@pytest.mark.parametrize(
    ("line", "name", "reading"),
    [
        ("GetEccMode = !NOT_SUPPORTED", "ecc", None),
        ("GetEccMode = !FUNCTION_NOT_FOUND", "ecc", None),
        ("GetTemperatureThreshold.1 = !INVALID_ARGUMENT", "temperature-slowdown", None),  # an older driver's word
        ("GetEccMode = !INVALID_ARGUMENT", "ecc", Unknown("NVML, asked for ecc ecc-pending: Invalid Argument")),
        ("GetEccMode = !UNKNOWN", "ecc-pending", Unknown("NVML, asked for ecc ecc-pending: Unknown Error")),
        ("GetName = !CORRUPTED_INFOROM", "name", Unknown("NVML, asked for name: Corrupted infoROM")),
        ("FieldValue.230 = !NO_PERMISSION", "recovery-action", Unknown("NVML, asked for recovery-action: Insufficient Permissions")),  # noqa: E501
        ("GetNvLinkState.3 = !UNKNOWN", "nvlinks-up", Unknown("NVML, asked for nvlinks-up nvlinks-down: Unknown Error")),  # noqa: E501
        ("GetNvLinkState.0 = !NOT_SUPPORTED", "nvlinks-up", None),
        ("GetArchitecture = 77", "architecture", "77"),
        ("GetCurrentClocksEventReasons = 0x100004", "clock-reasons", ("power-cap", "0x100000")),
        ("GetCurrentClocksEventReasons = 0", "clock-reasons", ()),
        ("GetGpuFabricInfo = 0 0 2 0", "fabric-state", "in-progress"),
        ("GetMPSComputeRunningProcesses = !NOT_SUPPORTED", "processes", ()),
        ("GetComputeRunningProcesses = !NO_PERMISSION", "processes", Unknown("NVML, asked for processes: Insufficient Permissions")),  # noqa: E501
    ],
)  # fmt: skip
def test_one_field_never_fails_a_gpu(line: str, name: str, reading: Reading, with_fleet: WithFleet) -> None:
    with_fleet("a100").add("[gpu 0]", line)
    found = gpu(Host().nvml([P100]), P100)
    assert found.error == ""
    assert found.fields["memory"] == 80 * GIB
    assert found.fields[name] == reading


def test_an_old_driver_has_the_older_functions(with_fleet: WithFleet) -> None:
    """R470 lacks the third version of process lists, GetCurrentClocksEventReasons and GetTemperatureV."""
    with_fleet("r470", R470).add("[gpu 0]", "GetComputeRunningProcesses = 31", "GetMarginTemperature = 40")
    found = gpu(Host().nvml([P100]), P100)
    assert found.error == ""
    assert found.fields["processes"] == ("31",)
    assert found.fields["clock-reasons"] == ("idle",)
    assert found.fields["temperature"] == 38
    assert found.fields["temperature-margin"] is None
    assert not [name for name, reading in found.fields.items() if isinstance(reading, Unknown)]


def test_a_driver_before_r545_tells_nothing_of_the_fabrics_health(with_fleet: WithFleet) -> None:
    with_fleet("h100", 535)
    found = gpu(Host().nvml([A100S[0]]), A100S[0])
    told = [found.fields[f"fabric-{name}"] for name in ("state", "status", "health")]
    assert told == ["completed", 0, None]


# -- recordings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fleet", ["p100-sick", "a100-sick", "h100", "mismatch"])
def test_a_recording_replays_the_same(fleet: str, with_fleet: WithFleet, tmp_path: Path) -> None:
    with_fleet(fleet)
    told = Recorder(str(tmp_path / "recording")).nvml(A100S)
    assert told == Host().nvml(A100S)
    replay = RecordedHost(str(tmp_path / "recording"))
    assert replay.nvml(A100S) == told
    with pytest.raises(HostError, match="was not recorded"):
        replay.nvml([])


def test_a_recording_replays_the_same_error(with_fleet: WithFleet, tmp_path: Path) -> None:
    with_fleet("p100").add("[system]", "Crash = Init")
    with pytest.raises(HostError) as live:
        Recorder(str(tmp_path / "recording")).nvml([P100])
    with pytest.raises(HostError) as replayed:
        RecordedHost(str(tmp_path / "recording")).nvml([P100])
    assert str(replayed.value) == str(live.value)
