"""What NVIDIA's management library tells of GPUs. Runs in a child process: a driver that is stuck keeps its callers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from hostprep.model import Reading


class Gpu(NamedTuple):
    """One GPU as NVML tells of it."""

    address: str  # 0000:3b:00.0, as sysfs writes it
    error: str  # why it could not be asked, by the name of NVML's error, such as GPU_IS_LOST; "" when it answered
    fields: Mapping[str, Reading]  # None: this model or driver does not have it


class Nvml(NamedTuple):
    """What NVML tells of a host."""

    error: str  # what nvmlInit said, such as LIB_RM_VERSION_MISMATCH; "" when it succeeded
    library: str  # version of libnvidia-ml: 550.90.12; "" where it is not known
    driver: str  # version of the kernel driver, as NVML tells it
    cuda: str  # 12.4
    gpus: tuple[Gpu, ...]
