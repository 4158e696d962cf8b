"""What NVIDIA's management library tells of GPUs. Runs in a child process: a driver that is stuck keeps its callers.

Names and meanings: NVIDIA, "NVML API Reference Guide". The binding is nvidia-ml-py, NVIDIA's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from hostprep.errors import HostError
from hostprep.host import process
from hostprep.model import Reading, Unknown, Value

Library = Any  # the module pynvml
Handle = Any  # of NVML: a GPU, a MIG device, an instance


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


# -- in a child -----------------------------------------------------------------------------------

_STUCK = "is the driver stuck? See what the kernel log says of NVRM and Xid; a reboot may be all that helps"


def ask(addresses: Sequence[str], timeout: float) -> Nvml:
    """read() in a child. HostError when the library hangs, crashes or cannot be used at all."""
    return from_json(_in_child(lambda: to_json(read(addresses)), timeout))


def change(address: str, name: str, value: Value, timeout: float) -> None:
    """put() in a child. HostError when it was not done, or it is not known whether it was."""
    _in_child(lambda: put(address, name, value), timeout)


def _in_child(work: Callable[[], Any], timeout: float) -> Any:
    """What a function returns, as JSON has it. The child has no stdout that the library could write into."""

    def tell() -> bytes:
        try:
            return json.dumps({"answer": work()}).encode()
        except HostError as e:
            return json.dumps({"error": str(e), "hint": e.hint}).encode()
        except Exception as e:  # noqa: BLE001  # the parent has to hear of it: the child's own stderr is nowhere
            return json.dumps({"error": f"NVML: {type(e).__name__}: {e}", "hint": ""}).encode()

    answer, _ = process.gather([("NVML", tell)], timeout)["NVML"]
    if isinstance(answer, str):
        raise HostError(f"NVML: {answer}: {_STUCK}" if "no answer within" in answer else f"NVML: {answer}")
    told = json.loads(answer)
    if "error" in told:
        raise HostError(told["error"], told["hint"])
    return told["answer"]


def to_json(told: Nvml) -> dict[str, Any]:
    """As JSON has it: tuples are lists, and what is unknown is an object with the reason."""

    def plain(reading: Reading) -> Any:
        return {"unknown": reading.reason} if isinstance(reading, Unknown) else reading

    gpus = [gpu._asdict() | {"fields": {k: plain(v) for k, v in gpu.fields.items()}} for gpu in told.gpus]
    return told._asdict() | {"gpus": gpus}


def from_json(told: Mapping[str, Any]) -> Nvml:
    """The inverse of to_json()."""

    def reading(plain: Any) -> Reading:
        if isinstance(plain, dict):
            return Unknown(plain["unknown"])
        return tuple(plain) if isinstance(plain, list) else plain

    gpus = (Gpu(**(g | {"fields": {k: reading(v) for k, v in g["fields"].items()}})) for g in told["gpus"])
    return Nvml(**{**told, "gpus": tuple(gpus)})


# -- the library ----------------------------------------------------------------------------------

_INSTALL = "pip uninstall --yes pynvml; pip install --force-reinstall 'nvidia-ml-py>=12.570.86'"
_NEWEST = ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetMarginTemperature", "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION")


def _library() -> Library:
    """The binding. HostError unless it is NVIDIA's, which is a single file; other projects are packages of its name."""
    try:
        import pynvml  # type: ignore[import-untyped,unused-ignore]
    except ImportError as e:
        raise HostError(f"pynvml: cannot be imported: {e}", _INSTALL) from e
    if hasattr(pynvml, "__path__"):
        raise HostError(f"{pynvml.__file__}: not NVIDIA's pynvml, but another project's of that name", _INSTALL)
    if not all(hasattr(pynvml, name) for name in _NEWEST):
        raise HostError(f"{pynvml.__file__}: nvidia-ml-py is older than 12.570.86", _INSTALL)
    return pynvml


def _error_name(n: Library, code: int) -> str:
    """15 -> GPU_IS_LOST"""
    names = (name for name, value in vars(n).items() if name.startswith("NVML_ERROR_") and value == code)
    return next(names, f"error {code}").removeprefix("NVML_ERROR_")


def _word(n: Library, prefix: str, value: int) -> str:
    """The library's name of a constant, in the manner of ours: NVML_COMPUTEMODE_PROHIBITED -> prohibited."""
    names = (name for name, number in vars(n).items() if name.startswith(prefix) and number == value)
    return next(names, str(value)).removeprefix(prefix).lower().replace("_", "-")


def _error(n: Library, call: Callable[[], object]) -> str:
    """The name of the error that a call ends in; "" when it succeeds."""
    try:
        call()
    except n.NVMLError as e:
        return _error_name(n, e.value)
    return ""


def _text(n: Library, call: Callable[[], Any]) -> str:
    try:
        return str(call())
    except n.NVMLError:
        return ""


# -- looking --------------------------------------------------------------------------------------


def read(addresses: Sequence[str]) -> Nvml:
    """What NVML tells: of every address in that order, then of the GPUs that nobody has asked for.

    There is no nvmlShutdown at the end: the process ends with it, and a driver that is stuck could keep the answer.
    """
    n = _library()
    error = _error(n, n.nvmlInit)
    library = _text(n, n.nvmlSystemGetNVMLVersion).partition(".")[2]  # CUDA's major version comes first
    if error:
        return Nvml(error, library, "", "", ())
    cuda = _text(n, n.nvmlSystemGetCudaDriverVersion_v2)
    gpus = {address: _gpu(n, address) for address in addresses}
    gpus |= {address: _gpu(n, address) for address in _listed(n) if address not in gpus}
    return Nvml(
        "",
        library,
        _text(n, n.nvmlSystemGetDriverVersion),
        f"{int(cuda) // 1000}.{int(cuda) % 1000 // 10}" if cuda.isdecimal() else "",
        tuple(gpus.values()),
    )


def _listed(n: Library) -> Iterator[str]:
    """The addresses of the GPUs that NVML has and that answer."""
    for index in range(int(_text(n, n.nvmlDeviceGetCount) or 0)):
        try:
            pci = n.nvmlDeviceGetPciInfo(n.nvmlDeviceGetHandleByIndex(index))
        except n.NVMLError:
            continue
        yield f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0"


def _gpu(n: Library, address: str) -> Gpu:
    try:
        handle = n.nvmlDeviceGetHandleByPciBusId(address.encode())
    except n.NVMLError as e:
        return Gpu(address, _error_name(n, e.value), {})
    fields: dict[str, Reading] = {}
    for names, read_group in _GROUPS.items():
        try:
            fields |= zip(names.split(), read_group(n, handle), strict=True)
        except n.NVMLError as e:
            if e.value == n.NVML_ERROR_GPU_IS_LOST:
                lost = _error_name(n, e.value)
                return Gpu(address, lost, dict.fromkeys(" ".join(_GROUPS).split(), Unknown(lost)) | fields)
            # "== None" would raise: NVMLError compares values
            reading = None if e.value in _unsupported(n, names) else Unknown(f"NVML, asked for {names}: {e}")
            fields |= dict.fromkeys(names.split(), reading)
        except n.NVMLLibraryMismatchError:  # no NVMLError: this function is newer than the driver
            fields |= dict.fromkeys(names.split())
    return Gpu(address, "", fields)


def _unsupported(n: Library, names: str = "") -> set[int]:
    """The errors of what this model or driver does not have. A driver calls an argument that it does not know invalid;
    where there is none but the handle, that is another matter."""
    found = {n.NVML_ERROR_NOT_SUPPORTED, n.NVML_ERROR_FUNCTION_NOT_FOUND, n.NVML_ERROR_ARGUMENT_VERSION_MISMATCH}
    found |= {n.NVML_ERROR_VGPU_ECC_NOT_SUPPORTED, n.NVML_ERROR_DEPRECATED}
    return found | {n.NVML_ERROR_INVALID_ARGUMENT} if names in _WITH_ARGUMENT else found


def _newest(n: Library, *calls: Callable[[], Any]) -> Any:
    """What the first call answers that this driver has."""
    for call in calls[:-1]:
        try:
            return call()
        except n.NVMLError as e:
            if e.value not in _unsupported(n):
                raise
        except n.NVMLLibraryMismatchError:
            pass
    return calls[-1]()


def _field_value(n: Library, handle: Handle, field: int) -> int:
    found = n.nvmlDeviceGetFieldValues(handle, [field])[0]
    if found.nvmlReturn:
        raise n.NVMLError(found.nvmlReturn)
    return int(found.value.uiVal)


_REASONS = {  # nvmlClocksEventReasons
    0x1: "idle",
    0x2: "application-clocks",
    0x4: "power-cap",
    0x8: "hw-slowdown",
    0x10: "sync-boost",
    0x20: "thermal-sw",
    0x40: "thermal-hw",
    0x80: "power-brake",
    0x100: "display",
    0x200: "board-limit",
    0x400: "reliability",
}


def _clock_reasons(n: Library, handle: Handle) -> tuple[str, ...]:
    bits = _newest(  # before R535 it had the other name
        n,
        lambda: n.nvmlDeviceGetCurrentClocksEventReasons(handle),
        lambda: n.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
    )
    return tuple(_REASONS.get(1 << i, f"{1 << i:#x}") for i in range(64) if bits >> i & 1)


def _nvlinks(n: Library, handle: Handle) -> tuple[Value, Value]:
    """The links that are up, and those that are down. Past the last one old drivers and some models call the number
    invalid: that is no link."""
    found: dict[bool, list[str]] = {True: [], False: []}
    for link in range(n.NVML_NVLINK_MAX_LINKS):
        try:
            found[bool(n.nvmlDeviceGetNvLinkState(handle, link))].append(str(link))
        except n.NVMLError as e:
            if e.value not in (*_unsupported(n), n.NVML_ERROR_INVALID_ARGUMENT):
                raise
    return (tuple(found[True]), tuple(found[False])) if found[True] or found[False] else (None, None)


# nvml.h, NVML_GPU_FABRIC_HEALTH_MASK_*: two bits each, 0 where it does not apply, 1 yes, 2 no; then four bits of
# what is not configured right. The binding has other widths in 12.570, and lacks the last part.
_HEALTH = ("degraded-bw", "route-recovery", "route-unhealthy", "access-timeout-recovery")
_MISCONFIGURED = {
    2: "incorrect-sysguid",
    3: "incorrect-chassis-sn",
    4: "no-partition",
    5: "insufficient-nvlinks",
    6: "incompatible-gpu-fw",
    7: "invalid-location",
    8: "gpu-state-invalid",
}


def _fabric(n: Library, handle: Handle) -> tuple[Value, Value, Value]:
    """State, status and what is unhealthy. Before R545 nothing was told of health."""
    import ctypes

    # nvml.h: nvmlGpuFabricInfo_t has cluster (four words), status, clique and state; _v2_t a version before that, and
    # the health behind. Not every binding has both.
    new, old = (ctypes.c_uint32 * 9)(), (ctypes.c_uint32 * 7)()
    new[0] = ctypes.sizeof(new) | 2 << 24

    def ask_new() -> tuple[int, ...]:
        n.nvmlDeviceGetGpuFabricInfoV(handle, ctypes.byref(new))
        return new[5], new[7], new[8]

    def ask_old() -> tuple[int, ...]:
        n.nvmlDeviceGetGpuFabricInfo(handle, ctypes.byref(old))
        return old[4], old[6]

    status, state, *health = _newest(n, ask_new, ask_old)
    word = _word(n, "NVML_GPU_FABRIC_STATE_", state)
    if state == n.NVML_GPU_FABRIC_STATE_NOT_SUPPORTED:
        return word, None, None
    return word, status, _unhealthy(health[0]) if health else None


def _unhealthy(mask: int) -> tuple[str, ...]:
    found = [name for i, name in enumerate(_HEALTH) if mask >> 2 * i & 3 == 1]
    wrong = mask >> 2 * len(_HEALTH) & 0xF
    return tuple(found + [_MISCONFIGURED.get(wrong, f"incorrect-configuration-{wrong}")] * (wrong > 1))


def _mig_devices(n: Library, handle: Handle) -> tuple[str, ...]:
    """The profiles of the MIG devices, by the end of their names: NVIDIA A100-SXM4-40GB MIG 1g.5gb."""
    if not n.nvmlDeviceGetMigMode(handle)[0]:
        return ()
    found = []
    for index in range(n.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            device = n.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        except n.NVMLError as e:
            if e.value != n.NVML_ERROR_NOT_FOUND:
                raise
        else:
            found.append(n.nvmlDeviceGetName(device).rpartition("MIG ")[2])
    return tuple(sorted(found))


def _processes(n: Library, handle: Handle) -> Value:
    """Who computes or draws, by pid; None where the driver has none of the three lists."""
    found: set[int] | None = None
    for kind in ("Compute", "MPSCompute", "Graphics"):
        name = f"nvmlDeviceGet{kind}RunningProcesses"
        calls = [getattr(n, name), getattr(n, f"{name}_v2")]  # before R510 there was no third version
        try:
            listed = _newest(n, *(lambda call=call: call(handle) for call in calls))
        except n.NVMLError as e:
            if e.value not in _unsupported(n):
                raise
        except n.NVMLLibraryMismatchError:
            pass
        else:
            found = (found or set()) | {user.pid for user in listed}
    return None if found is None else tuple(str(pid) for pid in sorted(found))


# By the names of the fields that one call gives.
_GROUPS: Mapping[str, Callable[[Library, Handle], Iterable[Value]]] = {
    "name": lambda n, h: [n.nvmlDeviceGetName(h)],
    "uuid": lambda n, h: [n.nvmlDeviceGetUUID(h)],
    "serial": lambda n, h: [n.nvmlDeviceGetSerial(h)],
    "vbios": lambda n, h: [n.nvmlDeviceGetVbiosVersion(h)],
    "architecture": lambda n, h: [_word(n, "NVML_DEVICE_ARCH_", n.nvmlDeviceGetArchitecture(h))],
    "minor": lambda n, h: [n.nvmlDeviceGetMinorNumber(h)],
    "memory": lambda n, h: [n.nvmlDeviceGetMemoryInfo(h).total],
    "display-active": lambda n, h: [bool(n.nvmlDeviceGetDisplayActive(h))],
    "ecc ecc-pending": lambda n, h: map(bool, n.nvmlDeviceGetEccMode(h)),
    "ecc-volatile-uncorrectable": lambda n, h: [_uncorrected(n, h, n.NVML_VOLATILE_ECC)],
    "ecc-aggregate-uncorrectable": lambda n, h: [_uncorrected(n, h, n.NVML_AGGREGATE_ECC)],
    "retired-single": lambda n, h: [
        len(n.nvmlDeviceGetRetiredPages(h, n.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS))
    ],
    "retired-double": lambda n, h: [
        len(n.nvmlDeviceGetRetiredPages(h, n.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR))
    ],
    "retirement-pending": lambda n, h: [bool(n.nvmlDeviceGetRetiredPagesPendingStatus(h))],
    "remapped-correctable remapped-uncorrectable remapping-pending remapping-failed": lambda n, h: _remapped(n, h),
    "mig mig-pending": lambda n, h: map(bool, n.nvmlDeviceGetMigMode(h)),
    "mig-devices": lambda n, h: [_mig_devices(n, h)],
    "persistence": lambda n, h: [bool(n.nvmlDeviceGetPersistenceMode(h))],
    "compute-mode": lambda n, h: [_word(n, "NVML_COMPUTEMODE_", n.nvmlDeviceGetComputeMode(h))],
    "pcie-generation": lambda n, h: [n.nvmlDeviceGetCurrPcieLinkGeneration(h)],
    "pcie-generation-max": lambda n, h: [n.nvmlDeviceGetMaxPcieLinkGeneration(h)],
    "pcie-width": lambda n, h: [n.nvmlDeviceGetCurrPcieLinkWidth(h)],
    "pcie-width-max": lambda n, h: [n.nvmlDeviceGetMaxPcieLinkWidth(h)],
    "temperature": lambda n, h: [
        _newest(
            n,
            lambda: n.nvmlDeviceGetTemperatureV(h, n.NVML_TEMPERATURE_GPU),
            lambda: n.nvmlDeviceGetTemperature(h, n.NVML_TEMPERATURE_GPU),
        )
    ],
    "temperature-slowdown": lambda n, h: [
        n.nvmlDeviceGetTemperatureThreshold(h, n.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
    ],
    "temperature-shutdown": lambda n, h: [
        n.nvmlDeviceGetTemperatureThreshold(h, n.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN)
    ],
    "temperature-margin": lambda n, h: [n.nvmlDeviceGetMarginTemperature(h)],
    "clock-reasons": lambda n, h: [_clock_reasons(n, h)],
    "nvlinks-up nvlinks-down": lambda n, h: _nvlinks(n, h),
    "fabric-state fabric-status fabric-health": lambda n, h: _fabric(n, h),
    "recovery-action": lambda n, h: [
        _word(n, "NVML_GPU_RECOVERY_ACTION_", _field_value(n, h, n.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION))
    ],
    "utilization": lambda n, h: [n.nvmlDeviceGetUtilizationRates(h).gpu],
    "processes": lambda n, h: [_processes(n, h)],
}
_WITH_ARGUMENT = {"temperature-slowdown", "temperature-shutdown", "recovery-action", "retired-single", "retired-double"}


def _uncorrected(n: Library, handle: Handle, counter: int) -> int:
    return int(n.nvmlDeviceGetTotalEccErrors(handle, n.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, counter))


def _remapped(n: Library, handle: Handle) -> tuple[Value, ...]:
    correctable, uncorrectable, pending, failed = n.nvmlDeviceGetRemappedRows(handle)
    return correctable, uncorrectable, bool(pending), bool(failed)


# -- changing -------------------------------------------------------------------------------------


def commands(address: str, name: str, value: Value, replaces: bool = False) -> list[list[str]]:
    """What an admin would type for put(); `replaces`: there are MIG instances that have to go first."""
    gpu = ["nvidia-smi", "-i", address]
    if name == "compute-mode":
        return [[*gpu, "-c", str(value).upper().replace("-", "_")]]
    if name != "instances":
        return [[*gpu, {"persistence": "-pm", "ecc": "-e", "mig": "-mig"}[name], str(int(value is True))]]
    mig = ["nvidia-smi", "mig", "-i", address]
    wanted = _names(value)
    gone = [[*mig, "-dci"], [*mig, "-dgi"]] if replaces or not wanted else []
    return [*gone, *([[*mig, "-cgi", ",".join(wanted), "-C"]] if wanted else [])]


def _names(value: Value) -> tuple[str, ...]:
    assert isinstance(value, tuple)
    return value


def put(address: str, name: str, value: Value) -> None:
    """Make one setting of a GPU what it should be. HostError with NVML's function and words when it cannot be."""
    n = _library()
    _do(n, "nvmlInit")
    handle = _do(n, "nvmlDeviceGetHandleByPciBusId", address.encode())
    if name == "persistence":
        _do(n, "nvmlDeviceSetPersistenceMode", handle, int(value is True))
    elif name == "ecc":
        _do(n, "nvmlDeviceSetEccMode", handle, int(value is True))
    elif name == "mig":
        _put_mig(n, handle, int(value is True))
    elif name == "compute-mode":
        mode = f"NVML_COMPUTEMODE_{str(value).upper().replace('-', '_')}"
        _do(n, "nvmlDeviceSetComputeMode", handle, getattr(n, mode))
    elif name == "instances":
        _put_instances(n, handle, _names(value))
    else:
        raise ValueError(f"no setting of a GPU: {name}")


def _do(n: Library, name: str, *args: object) -> Any:
    try:
        return getattr(n, name)(*args)
    except n.NVMLError as e:
        raise HostError(f"{name}: {e}") from e


def _put_mig(n: Library, handle: Handle, mode: int) -> None:
    """Where the GPU cannot be reset for it, the mode is pending: the next reset or boot brings it."""
    status = _do(n, "nvmlDeviceSetMigMode", handle, mode)
    if _do(n, "nvmlDeviceGetMigMode", handle)[1] != mode:
        raise HostError(f"nvmlDeviceSetMigMode: {n.NVMLError(status) if status else 'succeeded, and changed nothing'}")


def _put_instances(n: Library, handle: Handle, wanted: Sequence[str]) -> None:
    """These and no others. When one cannot be had, those that were there are made again."""
    profiles = _profiles(n, handle)
    if missing := sorted(set(wanted) - set(profiles)):
        has = ", ".join(sorted(profiles)) or "none while MIG is disabled"
        raise HostError(f"no MIG profile of this GPU: {', '.join(missing)}. It has: {has}")
    destroyed: list[str] = []
    created: list[Handle] = []
    try:
        for name, info in profiles.items():
            for instance in _instances(n, handle, info):
                _destroy(n, instance)
                destroyed.append(name)
        for name in sorted(wanted, key=lambda name: -profiles[name].sliceCount):  # the large ones need the most room
            created.append(_create(n, handle, profiles[name]))
    except HostError as e:
        try:
            for instance in reversed(created):
                _destroy(n, instance)
            for name in destroyed:
                _create(n, handle, profiles[name])
        except HostError as again:
            was = ",".join(destroyed) or "none"
            raise HostError(
                f"{e}; and the MIG instances that were there ({was}) could not be made again: {again}"
            ) from e
        raise


def _profiles(n: Library, handle: Handle) -> dict[str, Any]:
    """The GPU instance profiles of this model, by name; newer drivers write MIG before it."""
    found = {}
    for profile in range(n.NVML_GPU_INSTANCE_PROFILE_COUNT):
        try:
            info = n.nvmlDeviceGetGpuInstanceProfileInfo(handle, profile)
        except n.NVMLError as e:
            if e.value not in (n.NVML_ERROR_NOT_SUPPORTED, n.NVML_ERROR_INVALID_ARGUMENT):
                raise HostError(f"nvmlDeviceGetGpuInstanceProfileInfo: {e}") from e
        else:
            found[info.name.removeprefix("MIG ")] = info
    return found


def _instances(n: Library, handle: Handle, profile: Any) -> list[Handle]:
    import ctypes

    found = (n.c_nvmlGpuInstance_t * profile.instanceCount)()
    count = ctypes.c_uint()
    _do(n, "nvmlDeviceGetGpuInstances", handle, profile.id, found, ctypes.byref(count))
    return list(found[: count.value])


def _create(n: Library, handle: Handle, profile: Any) -> Handle:
    """A GPU instance with one compute instance, which has all of it."""
    instance = _do(n, "nvmlDeviceCreateGpuInstance", handle, profile.id)
    try:
        _compute_instance(n, instance)
    except HostError:
        _do(n, "nvmlGpuInstanceDestroy", instance)
        raise
    return instance


def _compute_instance(n: Library, instance: Handle) -> None:
    whole = max(_compute_profiles(n, instance), key=lambda info: info.sliceCount, default=None)
    if whole is None:
        raise HostError("nvmlGpuInstanceGetComputeInstanceProfileInfo: has no profile")
    _do(n, "nvmlGpuInstanceCreateComputeInstance", instance, whole.id)


def _compute_profiles(n: Library, instance: Handle) -> list[Any]:
    found = []
    for profile in range(n.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
        try:
            found.append(n.nvmlGpuInstanceGetComputeInstanceProfileInfo(instance, profile, 0, version=1))
        except n.NVMLError as e:
            if e.value not in (n.NVML_ERROR_NOT_SUPPORTED, n.NVML_ERROR_INVALID_ARGUMENT):
                raise HostError(f"nvmlGpuInstanceGetComputeInstanceProfileInfo: {e}") from e
    return found


def _destroy(n: Library, instance: Handle) -> None:
    """A GPU instance and what computes in it; one that is in use stays as it is."""
    import ctypes

    for profile in _compute_profiles(n, instance):
        found = (n.c_nvmlComputeInstance_t * profile.instanceCount)()
        count = ctypes.c_uint()
        _do(n, "nvmlGpuInstanceGetComputeInstances", instance, profile.id, found, ctypes.byref(count))
        for compute in found[: count.value]:
            _do(n, "nvmlComputeInstanceDestroy", compute)
    try:
        _do(n, "nvmlGpuInstanceDestroy", instance)
    except HostError:
        _compute_instance(n, instance)
        raise
