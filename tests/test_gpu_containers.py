"""GPUs in containers (J3, K16): docker's nvidia runtime or a CDI spec, of the GPUs that are there."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import findings, statuses
from fake_gpu import DRIVER, FIRST, SECOND, gpu_files
from fakes import FakeHost, debian

MakeHost = Callable[..., FakeHost]
LIBRARY = f"/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.{DRIVER}"
TOOLKIT = {"/usr/bin/nvidia-ctk": "", "/usr/bin/nvidia-container-runtime": ""}
DAEMON = {"/etc/docker/daemon.json": '{"runtimes": {"nvidia": {"args": [], "path": "nvidia-container-runtime"}}}'}
SAYS = {"nvidia-ctk": "NVIDIA Container Toolkit CLI version 1.17.4\ncommit: 9b69590c\n"}


def spec(*minors: int, kind: str = "nvidia.com/gpu", library: str = LIBRARY, names: tuple[str, ...] = ()) -> str:
    """A spec as `nvidia-ctk cdi generate` writes it, shortened."""
    devices = [
        {"name": name, "containerEdits": {"deviceNodes": [{"path": f"/dev/nvidia{minor}"}]}}
        for minor, name in zip(minors, names or map(str, minors), strict=True)
    ]
    everything = {"name": "all", "containerEdits": {"deviceNodes": [{"path": f"/dev/nvidia{m}"} for m in minors]}}
    edits = {
        "deviceNodes": [{"path": "/dev/nvidiactl"}],
        "mounts": [{"hostPath": library, "containerPath": library, "options": ["ro", "bind"]}],
    }
    made = {"cdiVersion": "0.5.0", "kind": kind, "devices": [*devices, everything], "containerEdits": edits}
    return json.dumps(made, indent=1)


@pytest.fixture
def node(make_host: MakeHost) -> Callable[..., FakeHost]:
    def make(files: dict[str, str] | None = None, gpus: int = 1) -> FakeHost:
        cards = gpu_files(FIRST) | (gpu_files(SECOND, minor=1) if gpus > 1 else {})
        return make_host({**debian(), **cards, "/dev/nvidiactl": "", LIBRARY: "", **TOOLKIT, **(files or {})}, SAYS)

    return make


def status(host: FakeHost, section: Any) -> dict[str, str]:
    found = statuses(host, {"gpu_containers": section})
    return {name.removeprefix("gpu_containers/"): said for name, said in found.items() if said != "pass"}


@pytest.mark.parametrize(
    ("files", "section", "expected"),
    [
        (DAEMON, "docker", {}),
        (DAEMON, "any", {}),
        (DAEMON, "cdi", {"cdi": "fail"}),
        ({"/etc/cdi/nvidia.yaml": spec(0)}, "cdi", {}),
        ({"/etc/cdi/nvidia.yaml": spec(0)}, "any", {}),
        ({"/etc/cdi/nvidia.yaml": spec(0)}, "docker", {"docker": "fail"}),
        ({"/var/run/cdi/nvidia.json": spec(0)}, "any", {"cdi": "volatile"}),
        ({"/var/run/cdi/nvidia.json": spec(0), **DAEMON}, "any", {}),
        ({}, "any", {"cdi": "fail"}),
        ({"/etc/cdi/nvidia.yaml": spec(0)}, {"via": "cdi", "toolkit": ">=1.14.0"}, {}),
        ({"/etc/cdi/nvidia.yaml": spec(0)}, {"via": "cdi", "toolkit": ">=1.18.0"}, {"toolkit": "fail"}),
    ],
)
def test_the_ways_to_a_gpu(node: Any, files: dict[str, str], section: Any, expected: dict[str, str]) -> None:
    assert status(node(files), section) == expected


def test_a_spec_that_is_written_at_every_boot_lasts(node: Any) -> None:
    enabled = {"/etc/systemd/system/multi-user.target.wants/nvidia-cdi-refresh.path": "-> /lib/systemd/system/x"}
    assert status(node({"/var/run/cdi/nvidia.yaml": spec(0), **enabled}), "cdi") == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (spec(0), "No CDI spec names /dev/nvidia1"),
        (spec(0, 1, 2), "names /dev/nvidia2, which is no GPU of this host"),
        (spec(0, 1, names=("GPU-aaaa", "GPU-bbbb")), "names GPU-aaaa, which is no GPU"),
        (spec(0, 1, library="/usr/lib/libnvidia-ml.so.535.54.03"), "libnvidia-ml.so.535.54.03 into containers"),
        (spec(0, 1, kind="vendor.com/net"), "is of kind nvidia.com/gpu"),
        ("kind: [nvidia\n", "/etc/cdi/nvidia.yaml:2:1: "),
        ("kind: nvidia.com/gpu\ndevices: garbage\n", "No CDI spec names /dev/nvidia0, /dev/nvidia1"),
        ("- a list\n", "is no CDI spec"),
        ("x: " + "y" * 2_000_000, "larger than"),
        ("", "is no CDI spec"),
    ],
)
def test_what_is_wrong_with_a_spec(node: Any, text: str, says: str) -> None:
    """A spec of the driver before the upgrade is the commonest: the library that it names has gone."""
    found = findings(node({"/etc/cdi/nvidia.yaml": text}, gpus=2), {"gpu_containers": "cdi"})["gpu_containers/cdi"]
    assert found.status.value == "fail"
    assert says in found.message
    assert "nvidia-ctk cdi generate" in found.fix


@pytest.mark.parametrize(
    "names",
    [("0", "1"), ("0:0", "1:0"), ("GPU-00000000-1111-2222", "GPU-00000001-1111-2222"), ("MIG-aaaa", "MIG-bbbb")],
)
def test_devices_may_be_named_in_any_of_the_ways_of_nvidia_ctk(node: Any, names: tuple[str, ...]) -> None:
    assert status(node({"/etc/cdi/nvidia.yaml": spec(0, 1, names=names)}, gpus=2), "cdi") == {}


@pytest.mark.parametrize(
    ("daemon", "says"),
    [
        ("", "/etc/docker/daemon.json:1:1: "),
        ('{\n "runtimes": {,}\n}', "/etc/docker/daemon.json:2:15: "),
        ("{}", "names no runtime nvidia"),
        ('{"runtimes": {"nvidia": {"path": "/opt/gone"}}}', "/opt/gone as the runtime nvidia, which is not there"),
        ('["runtimes"]', "names no runtime nvidia"),
    ],
)
def test_what_is_wrong_with_docker(node: Any, daemon: str, says: str) -> None:
    host = node({"/etc/docker/daemon.json": daemon})
    assert says in findings(host, {"gpu_containers": "docker"})["gpu_containers/docker"].message


def test_a_runtime_without_the_toolkit_cannot_work(node: Any) -> None:
    host = node(DAEMON)
    host.remove("/usr/bin/nvidia-ctk")
    found = findings(host, {"gpu_containers": "docker"})["gpu_containers/docker"]
    assert "toolkit is not installed" in found.message


def test_a_host_whose_driver_is_not_loaded_has_no_gpu_to_give(make_host: MakeHost) -> None:
    host = make_host({**debian(), **gpu_files(driver=""), **DAEMON, **TOOLKIT}, SAYS)
    found = findings(host, {"gpu_containers": "docker"})["gpu_containers/gpus"]
    assert (found.status.value, found.message.partition(",")[0]) == (
        "fail",
        "NVIDIA's driver drives no GPU on this host",
    )
