"""NVIDIA's management library without a GPU: a stub of libnvidia-ml.so.1 that tells what a file in nvml/fleets says."""

from __future__ import annotations

import _ctypes
import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from hostprep.host.nvml import Gpu, Nvml

HERE = Path(__file__).parent / "nvml"
NEWEST, R470 = 999, 470

# Where the GPUs of the fleets are: of p100, a100 and r470; of p100-sick; of a100-sxm, a100-sick and h100.
P100 = "0000:3b:00.0"
P100S = [f"0000:{bus}:00.0" for bus in ("04", "05", "84", "85")]
A100S = [f"0000:{bus}:00.0" for bus in ("07", "0f", "47", "4e", "87", "90", "b7", "bd")]


def gpu(told: Nvml, address: str) -> Gpu:
    return next(gpu for gpu in told.gpus if gpu.address == address)


class Fleet(NamedTuple):
    """The GPUs that the stub tells of, in files of this test's own."""

    config: Path
    library: Path

    @property
    def environment(self) -> dict[str, str]:
        """For a whole program: to be set before it starts."""
        return {"LD_LIBRARY_PATH": str(self.library.parent), "NVMLSTUB_CONFIG": str(self.config)}

    def add(self, section: str, *lines: str) -> None:
        """Say more, or something else, of the system or a GPU: `[gpu 1]`."""
        with self.config.open("a") as f:
            f.write("\n".join(["", section, *lines, ""]))

    def reboot(self) -> None:
        """What is pending comes true. MIG instances do not survive: NVIDIA, "MIG User Guide"."""
        state = Path(f"{self.config}.state")
        if state.exists():
            now = re.sub(r"^(Get(?:Ecc|Mig)Mode) = \d (\d)$", r"\1 = \2 \2", state.read_text(), flags=re.M)
            state.write_text(re.sub(r"^(Instances) =.*$", r"\1 =", now, flags=re.M))


Build = Callable[[int], Path]
WithFleet = Callable[..., Fleet]


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The path of the stub, as it is with the driver of this major version. Skips where no compiler is."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    built: dict[int, Path] = {}

    def build(driver: int = NEWEST) -> Path:
        if compiler is None:
            pytest.skip("no C compiler to build the stub of libnvidia-ml with")
        if driver not in built:
            built[driver] = tmp_path_factory.mktemp(f"nvml{driver}") / "libnvidia-ml.so.1"
            flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-std=gnu11", "-fPIC", "-fvisibility=hidden", "-shared"]
            name = f"-Wl,-soname,{built[driver].name}"
            argv = [compiler, *flags, f"-DDRIVER={driver}", name, "-o", str(built[driver]), str(HERE / "nvmlstub.c")]
            subprocess.run(argv, check=True)
        return built[driver]

    return build


@pytest.fixture
def with_fleet(nvml_library: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WithFleet]:
    """Let the children of this process find the stub, with the GPUs of a fleet.

    A library that is loaded already is found by its SONAME: dlopen(3) does not search for it then.
    """
    loaded: list[int] = []

    def load(name: str, driver: int = NEWEST) -> Fleet:
        assert not loaded, "one library at a time"
        fleet = Fleet(Path(shutil.copy(HERE / "fleets" / f"{name}.ini", tmp_path)), nvml_library(driver))
        loaded.append(ctypes.CDLL(str(fleet.library))._handle)
        monkeypatch.setenv("NVMLSTUB_CONFIG", str(fleet.config))
        return fleet

    yield load
    for handle in loaded:
        _ctypes.dlclose(handle)
