"""NVML that does not answer, answers wrongly or does harm: the other GPUs, and hostprep, go on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import A100S, P100, Fleet, WithFleet, gpu

from hostprep.errors import HostError
from hostprep.host import Host
from hostprep.host.nvml import Nvml
from hostprep.model import Unknown

# -- what does not answer -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "error"), [(1, "UNINITIALIZED"), (15, "GPU_IS_LOST"), (999, "UNKNOWN"), (4711, "error 4711")]
)
def test_an_init_that_fails_is_told_by_name_with_the_librarys_version(
    code: int, error: str, with_fleet: WithFleet
) -> None:
    with_fleet("mismatch").add("[system]", f"Init = !{code}")
    assert Host().nvml([P100]) == Nvml(error, "550.90.12", "", "", ())


@pytest.mark.parametrize(
    ("fleet", "error"),
    [("mismatch", "LIB_RM_VERSION_MISMATCH"), ("no-driver", "DRIVER_NOT_LOADED"), ("no-permission", "NO_PERMISSION")],
)
def test_the_fleets_of_failures(fleet: str, error: str, with_fleet: WithFleet) -> None:
    with_fleet(fleet)
    assert Host().nvml([]).error == error


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.setattr("ctypes.CDLL", no_such_library)
    assert Host().nvml([P100]) == Nvml("LIBRARY_NOT_FOUND", "", "", "", ())


def no_such_library(name: str) -> Any:
    raise OSError(f"{name}: cannot open shared object file: No such file or directory")


@pytest.mark.parametrize(("address", "error"), [(A100S[2], "NO_PERMISSION"), (A100S[5], "GPU_IS_LOST"), (A100S[0], "")])
def test_a_gpu_that_may_not_be_asked_fails_no_other(address: str, error: str, with_fleet: WithFleet) -> None:
    with_fleet("a100-sick")
    told = Host().nvml(A100S)
    assert gpu(told, address).error == error
    assert bool(gpu(told, address).fields) == (not error)
    assert len(told.gpus) == 8


def test_a_gpu_lost_midway_keeps_what_was_read_and_the_rest_is_unknown(with_fleet: WithFleet) -> None:
    with_fleet("a100-sick")
    lost = gpu(Host().nvml(A100S), A100S[4])
    assert lost.error == "GPU_IS_LOST"
    assert lost.fields["name"] == "NVIDIA A100-SXM4-40GB"
    assert lost.fields["temperature"] == lost.fields["mig"] == Unknown("GPU_IS_LOST")
    assert set(lost.fields) == set(gpu(Host().nvml([A100S[0]]), A100S[0]).fields)


# -- a library that does harm ---------------------------------------------------------------------


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.mark.parametrize("function", ["Init", "GetMigMode"])
def test_a_call_that_blocks_for_ever_is_an_error_and_leaves_no_process(function: str, with_fleet: WithFleet) -> None:
    with_fleet("a100").add("[system]", f"Hang = {function}")
    before = children()
    with pytest.raises(HostError, match=r"NVML: no answer within 0\.4 s .*: is the driver stuck\?"):
        Host().nvml([P100], timeout=0.4)
    assert children() == before


def test_a_library_that_crashes_is_an_error(with_fleet: WithFleet) -> None:
    with_fleet("a100").add("[gpu 0]", "Crash = GetTemperature")
    before = children()
    with pytest.raises(HostError, match="NVML: gave no answer: killed by SIGSEGV"):
        Host().nvml([P100])
    assert children() == before


def test_what_the_library_prints_does_not_get_into_our_output(
    with_fleet: WithFleet, capfd: pytest.CaptureFixture[str]
) -> None:
    with_fleet("p100").add("[system]", "Say = hello from the library")
    assert Host().nvml([P100]).error == ""
    assert capfd.readouterr() == ("", "")


def test_a_whole_program_finds_the_library_by_its_path(with_fleet: WithFleet) -> None:
    fleet: Fleet = with_fleet("a100")
    code = "from hostprep.host import Host; print(Host().nvml([]).gpus[0].fields['name'])"
    environment = {**os.environ, **fleet.environment}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "NVIDIA A100 80GB PCIe\n"


# -- the binding ----------------------------------------------------------------------------------

OLD = "nvmlDeviceGetTemperatureV = None\n"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("pynvml/__init__.py", OLD, "__init__.py: not NVIDIA's pynvml, but another project's of that name"),
        ("pynvml.py", OLD, "pynvml.py: nvidia-ml-py is older than 12.570.86"),
        ("pynvml.py", "import no_such_module", "pynvml: cannot be imported: No module named 'no_such_module'"),
        ("pynvml.py", "print >>sys.stderr", "NVML: NameError: "),  # a bug of others is no crash of ours
    ],
)
def test_another_binding_of_that_name_is_refused(
    file: str, text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pynvml 11 is a package that shadows nvidia-ml-py's module."""
    (tmp_path / "site" / file).parent.mkdir(parents=True)
    (tmp_path / "site" / file).write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    with pytest.raises(HostError, match=message) as raised:
        Host().nvml([])
    assert "NameError" in message or "pip install" in raised.value.hint
