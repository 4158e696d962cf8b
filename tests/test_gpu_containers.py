"""GPUs in containers (J3, K16): docker's nvidia runtime or a CDI spec, of the GPUs that are there.

What engines make of specs is that of pkg/cdi of cncf-tags/container-device-interface (1.1.0).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import findings, statuses
from fake_gpu import DRIVER, FIRST, SECOND, gpu_files, installed
from fakes import Answer, FakeHost, debian

from hostprep.errors import CommandFailed

MakeHost = Callable[..., FakeHost]
Node = Callable[..., FakeHost]
LIBRARY = f"/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.{DRIVER}"
HOOK = "/usr/bin/nvidia-cdi-hook"
PROGRAMS = dict.fromkeys(("/usr/bin/nvidia-ctk", "/usr/bin/nvidia-container-runtime", "/usr/bin/dockerd", HOOK), "")
DEVICES = {"/dev/nvidiactl": "", "/dev/nvidia-uvm": ""}
ETC, RUN, DAEMON_JSON = "/etc/cdi/nvidia.yaml", "/var/run/cdi/nvidia.yaml", "/etc/docker/daemon.json"
DAEMON = {DAEMON_JSON: '{"runtimes": {"nvidia": {"args": [], "path": "nvidia-container-runtime"}}}'}
SERVICE = {"/usr/lib/systemd/system/nvidia-cdi-refresh.service": ""}
WANTS = "/etc/systemd/system/multi-user.target.wants/nvidia-cdi-refresh"
ENABLED = {**SERVICE, f"{WANTS}.service": "-> /usr/lib/systemd/system/nvidia-cdi-refresh.service"}
SAYS = {"nvidia-ctk": "NVIDIA Container Toolkit CLI version 1.17.4\ncommit: 9b69590c\n", "test": ""}
UUIDS = ("GPU-00000000-1111-2222", "GPU-00000001-1111-2222")


def spec(
    *minors: int,
    names: tuple[str, ...] = (),
    mounts: tuple[str, ...] = (LIBRARY,),
    nodes: tuple[str, ...] = tuple(DEVICES),
    root: str = "",
    hook: str = HOOK,
    **changed: Any,
) -> str:
    """A spec as `nvidia-ctk cdi generate` writes it, shortened."""
    gpus = [{"path": f"/dev/nvidia{m}", **({"hostPath": f"{root}/dev/nvidia{m}"} if root else {})} for m in minors]
    devices = [
        {"name": name, "containerEdits": {"deviceNodes": [node]}}
        for name, node in zip(names or map(str, minors), gpus, strict=True)
    ]
    edits = {
        "deviceNodes": [{"path": node} for node in nodes],
        "hooks": [{"hookName": "createContainer", "path": hook, "args": ["nvidia-cdi-hook", "update-ldcache"]}],
        "mounts": [{"hostPath": file, "containerPath": file, "options": ["ro", "bind"]} for file in mounts],
    }
    everything = {"name": "all", "containerEdits": {"deviceNodes": gpus}}
    made = {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": [*devices, everything], "containerEdits": edits}
    return json.dumps(made | changed, indent=1)


@pytest.fixture
def node(make_host: MakeHost) -> Node:
    def make(files: dict[str, str] | None = None, gpus: int = 1, says: dict[str, Answer] | None = None) -> FakeHost:
        cards = gpu_files(FIRST) | (gpu_files(SECOND, minor=1) if gpus > 1 else {})
        there = {**debian(), **cards, "/sys/module/nvidia/version": DRIVER, **DEVICES, LIBRARY: "", **PROGRAMS}
        return make_host({**there, **(files or {})}, {**SAYS, **(says or {})})

    return make


def status(host: FakeHost, section: Any) -> dict[str, str]:
    """What is not as wanted."""
    found = statuses(host, {"gpu_containers": section})
    return {name.removeprefix("gpu_containers/"): said for name, said in found.items() if said != "pass"}


def said(host: FakeHost, section: Any, key: str) -> str:
    found = findings(host, {"gpu_containers": section})[f"gpu_containers/{key}"]
    assert found.status.value == "fail"
    return found.message


@pytest.mark.parametrize(
    ("files", "section", "expected"),
    [
        (DAEMON, "docker", {}),
        (DAEMON, "any", {}),
        (DAEMON, "cdi", {"cdi": "fail"}),
        (DAEMON, {"via": ["docker", "cdi"]}, {"cdi": "fail"}),
        ({ETC: spec(0)}, "cdi", {}),
        ({ETC: spec(0)}, "any", {}),
        ({ETC: spec(0)}, "docker", {"docker": "fail"}),
        ({ETC: spec(0), **DAEMON}, {"via": ["docker", "cdi"]}, {}),
        ({RUN: spec(0)}, "any", {"cdi": "volatile"}),
        ({RUN: spec(0), **DAEMON}, "any", {}),
        ({}, "any", {"cdi": "fail"}),
        ({ETC: spec(0)}, {"via": "cdi", "toolkit": ">=1.14.0"}, {}),
        ({ETC: spec(0)}, {"via": "cdi", "toolkit": ">=1.18.0"}, {"toolkit": "fail"}),
    ],
)
def test_the_ways_to_a_gpu(node: Node, files: dict[str, str], section: Any, expected: dict[str, str]) -> None:
    assert status(node(files), section) == expected


# -- CDI ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (ENABLED, {}),
        ({**SERVICE, "/usr/lib/udev/rules.d/99-nvidia-cdi-refresh.rules": ""}, {}),
        (SERVICE, {"cdi": "volatile"}),
        # The .path unit waits for modules.dep to change; no boot does that
        ({**SERVICE, f"{WANTS}.path": "-> /usr/lib/systemd/system/nvidia-cdi-refresh.path"}, {"cdi": "volatile"}),
        ({**ENABLED, "/etc/systemd/system/nvidia-cdi-refresh.service": "-> /dev/null"}, {"cdi": "volatile"}),
        ({f"{WANTS}.service": ENABLED[f"{WANTS}.service"]}, {"cdi": "volatile"}),  # the toolkit was removed
        (
            {**ENABLED, "/etc/nvidia-container-toolkit/nvidia-cdi-refresh.env": "NVIDIA_CTK_CDI_OUTPUT_FILE_PATH=/x\n"},
            {"cdi": "volatile"},
        ),
    ],
)
def test_a_spec_below_var_run_lasts_where_every_boot_writes_it(
    node: Node, files: dict[str, str], expected: dict[str, str]
) -> None:
    assert status(node({RUN: spec(0), **files}), "cdi") == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (spec(0), "No CDI spec names /dev/nvidia1"),
        (spec(0, 1, 2), "names /dev/nvidia2, which is no GPU of this host"),
        (spec(0, 1, names=("GPU-aaaa", "GPU-bbbb")), "names GPU-aaaa, which is no GPU"),
        (spec(0, 1, mounts=("/usr/lib/libnvidia-ml.so.535.54.03",)), "libnvidia-ml.so.535.54.03 into containers"),
        (spec(0, 1, hook="/usr/bin/gone"), "runs /usr/bin/gone when a container starts, which is not there"),
        (spec(0, 1, nodes=("/dev/nvidiactl",)), "names /dev/nvidia-uvm (nvidia-modprobe"),
        (spec(0, 1, nodes=(*DEVICES, "/dev/dri/card9")), "names /dev/dri/card9, which is not there"),
        (spec(0, 1, kind="vendor.com/net"), "is of kind nvidia.com/gpu"),
        (spec(0, 1, cdiVersion=None), "has no cdiVersion"),
        (spec(0, 1, names=("0", "0")), "its device 0 comes twice"),
        (spec(0, 1, names=("0", "-")), "without a valid name"),
        (spec(0, 1, mounts=("/x\ud800\0",)), "/etc/cdi/nvidia.yaml"),
        (spec(0, 1, mounts=("/lib/\x1b[2J",)), "which is not there"),
        (spec(devices=[{"name": "0", "containerEdits": {}}]), "its device 0 does nothing"),
        ("kind: [nvidia\n", "/etc/cdi/nvidia.yaml:2:1: "),
        ("\n\nkind: nvidia.com/gpu\ndevices: [\n", "/etc/cdi/nvidia.yaml:5:1: "),
        ("kind: nvidia.com/gpu\ncdiVersion: 0.5.0\ndevices: garbage\n", "names no devices"),
        ("kind: nvidia.com/gpu\nx: &x [1]\ny: [*x, *x]\n", "/etc/cdi/nvidia.yaml:2: anchors"),
        ("kind: nvidia.com/gpu\nx: " + "[" * 500_000, "/etc/cdi/nvidia.yaml:2: anchors, or nested"),
        ("x: nvidia.com/gpu" + "y" * 2_000_000, "larger than"),
        ("- a list\n", "is of kind nvidia.com/gpu"),
        ("", "is of kind nvidia.com/gpu"),
    ],
)
def test_what_is_wrong_with_a_spec(node: Node, text: str, says: str) -> None:
    """A spec of the driver before the upgrade is the commonest: the library that it names has gone."""
    found = findings(node({ETC: text}, gpus=2), {"gpu_containers": "cdi"})["gpu_containers/cdi"]
    assert found.status.value == "fail"
    assert says in found.message
    assert "nvidia-ctk cdi generate" in found.fix


@pytest.mark.parametrize("names", [("0", "1"), ("0:0", "1:0"), UUIDS, ("MIG-aaaa", "MIG-bbbb"), ("gpu0", "gpu1")])
def test_devices_may_be_named_in_any_of_the_ways_of_nvidia_ctk(node: Node, names: tuple[str, ...]) -> None:
    assert status(node({ETC: spec(0, 1, names=names)}, gpus=2), "cdi") == {}


def test_yaml_as_nvidia_ctk_writes_it(node: Node) -> None:
    yaml = (
        '---\ncdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- name: "0"\n  containerEdits:\n'
        "    deviceNodes:\n    - path: /dev/nvidia0\n- name: all\n  containerEdits:\n    deviceNodes:\n"
        "    - path: /dev/nvidia0\ncontainerEdits:\n  env:\n  - NVIDIA_VISIBLE_DEVICES=void\n  deviceNodes:\n"
        "  - path: /dev/nvidiactl\n  - path: /dev/nvidia-uvm\n  hooks:\n  - hookName: createContainer\n"
        f"    path: {HOOK}\n    args: [nvidia-cdi-hook, update-ldcache]\n  mounts:\n  - hostPath: {LIBRARY}\n"
        f"    containerPath: {LIBRARY}\n    options: [ro, nosuid, nodev, rbind, rprivate]\n"
    )
    assert status(node({ETC: yaml}), "cdi") == {}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        # Engines read no *.yml, and nothing below a folder
        ({"/etc/cdi/nvidia.yml": spec(0)}, "is of kind nvidia.com/gpu"),
        ({"/etc/cdi/nvidia.yaml/nvidia.yaml": spec(0)}, "is of kind nvidia.com/gpu"),
        ({ETC: spec(0), "/etc/cdi/nvidia.yml": "garbage: ["}, ""),
        # Two of one name in one folder: "unresolvable CDI devices"
        ({ETC: spec(0), "/etc/cdi/old.json": spec(0)}, "both name nvidia.com/gpu=0, and engines take neither"),
        ({ETC: spec(0, names=("0",)), "/etc/cdi/b.json": spec(0, devices=json.loads(spec(0))["devices"][:1])}, "both"),
        # /var/run/cdi goes before /etc/cdi
        ({ETC: spec(0, mounts=("/old",)), RUN: spec(0), **ENABLED}, ""),
        ({ETC: spec(0), RUN: spec(0, mounts=("/old",)), **ENABLED}, "/var/run/cdi/nvidia.yaml brings /old"),
        # Other vendors', sound or broken, are nobody's concern here
        ({ETC: spec(0), "/etc/cdi/intel.json": spec(7, kind="intel.com/gpu", names=("0",))}, ""),
        ({ETC: spec(0), "/etc/cdi/intel.json": '{"kind": "intel.com/gpu", '}, ""),
        ({ETC: spec(0), "/etc/cdi/a.yaml": '{"kind": "nvidia.com/gpu", '}, "/etc/cdi/a.yaml:2:1: "),
        ({ETC: "-> /etc/cdi/gone", "/etc/cdi/x": ""}, "is of kind nvidia.com/gpu"),
        ({"/opt/spec": spec(0), ETC: "-> ../../opt/spec"}, ""),
        # A driver in a container
        ({ETC: spec(0, root="/run/nvidia/driver"), "/run/nvidia/driver/dev/nvidia0": ""}, ""),
    ],
)
def test_which_specs_engines_take(node: Node, files: dict[str, str], expected: str) -> None:
    host = node(files)
    if expected:
        assert expected in said(host, "cdi", "cdi")
    else:
        assert status(host, "cdi") == {}


def test_a_uuid_that_the_driver_does_not_know_yet_is_not_compared(node: Node) -> None:
    """Until a GPU is first used its UUID reads GPU-????????-????-????-????-????????????."""
    host = node({ETC: spec(0, names=(UUIDS[0],))})
    path = f"/proc/driver/nvidia/gpus/{FIRST}/information"
    host.put(path, "GPU UUID: \t GPU-????????-????-????-????-????????????\nDevice Minor: \t 0\nGPU Excluded:\t No\n")
    assert status(host, "cdi") == {}


def test_a_gpu_that_the_administrator_has_excluded_is_for_no_container(node: Node) -> None:
    host = node({ETC: spec(0)}, gpus=2)
    host.put(f"/proc/driver/nvidia/gpus/{SECOND}/information", "Device Minor: \t 1\nGPU Excluded:\t Yes\n")
    assert status(host, "cdi") == {}


def test_each_mig_instance_is_to_be_named(node: Node) -> None:
    """A spec from before MIG gives /dev/nvidia0 alone, with which CUDA can do nothing."""
    access = "/proc/driver/nvidia/capabilities/gpu0/mig/gi1/ci0/access"
    mig = {access: "DeviceFileMinor: 12\nDeviceFileMode: 292\n", "/dev/nvidia-caps/nvidia-cap12": ""}
    without, having = spec(0), spec(0, nodes=(*DEVICES, "/dev/nvidia-caps/nvidia-cap12"))
    host = node({ETC: without, **mig})
    assert "No CDI spec names /dev/nvidia-caps/nvidia-cap12" in said(host, "cdi", "cdi")
    host.put(ETC, having)
    assert status(host, "cdi") == {}
    host.remove("/dev/nvidia-caps/nvidia-cap12")
    assert "nvidia-cap12, which is not there" in said(host, "cdi", "cdi")


def test_a_library_of_another_version_than_the_driver_that_runs(node: Node) -> None:
    """The driver was upgraded, the spec was written anew, and the old module still runs: a reboot mends it."""
    library = "/usr/lib/x86_64-linux-gnu/libcuda.so.570.86.15"
    host = node({ETC: spec(0, mounts=(library,)), library: "", **installed("570.86.15")}, says={"modinfo": "570.86.15"})
    assert status(host, "cdi") == {"cdi": "pending-reboot"}
    host.put(ETC, spec(0))
    assert status(host, "cdi") == {"cdi": "volatile"}


def test_without_the_driver_there_is_nothing_to_compare_a_spec_with(make_host: MakeHost) -> None:
    host = make_host({**debian(), **gpu_files(driver=""), **PROGRAMS, **DAEMON, ETC: spec(0)}, SAYS)
    found = findings(host, {"gpu_containers": "cdi"})
    assert found["gpu_containers/gpus"].message.startswith("NVIDIA's driver is not loaded, so no container")
    assert found["gpu_containers/cdi"].status.value == "unknown"
    host.put("/sys/module/nvidia/version", DRIVER)
    assert said(host, "docker", "gpus").startswith("NVIDIA's driver drives no GPU on this host")


# -- docker and podman ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("daemon", "says"),
    [
        ("", "names no runtime nvidia"),
        ('\n\n{\n "runtimes": {,}\n}', "/etc/docker/daemon.json:4:15: "),
        ("{}", "names no runtime nvidia"),
        ('{"runtimes": {"nvidia": {"path": ""}}}', "names no runtime nvidia"),
        ('{"runtimes": {"nvidia": {"path": "/opt/gone"}}}', "/opt/gone as the runtime nvidia, which is not there"),
        ('{"runtimes": {"nvidia": {"path": "/\\ud800"}}}', "as the runtime nvidia, which is not there"),
        ('["runtimes"]', "names no runtime nvidia"),
    ],
)
def test_what_is_wrong_with_docker(node: Node, daemon: str, says: str) -> None:
    assert says in said(node({DAEMON_JSON: daemon}), "docker", "docker")


@pytest.mark.parametrize(
    ("gone", "says"),
    [("nvidia-ctk", "NVIDIA's container toolkit is not installed"), ("dockerd", "docker is not installed")],
)
def test_a_runtime_without_its_parts_cannot_work(node: Node, gone: str, says: str) -> None:
    host = node(DAEMON)
    host.remove(f"/usr/bin/{gone}")
    assert says in said(host, "docker", "docker")


def test_a_runtime_that_may_not_be_run(node: Node) -> None:
    host = node(DAEMON, says={"test": CommandFailed("test: exit 1", status=1)})
    assert "it is not executable" in said(host, "docker", "docker")


def test_a_toolkit_from_before_nvidia_ctk(node: Node) -> None:
    host = node({**DAEMON, "/usr/bin/nvidia-container-cli": ""}, says={"nvidia-container-cli": "cli-version: 1.8.1\n"})
    host.remove("/usr/bin/nvidia-ctk")
    assert status(host, {"via": "docker", "toolkit": "1.8.1"}) == {}


@pytest.mark.parametrize(
    ("version", "expected"), [("", {"podman": "fail"}), ("3.4.4", {"podman": "fail"}), ("4.9.3", {})]
)
def test_podman_knows_cdi_from_4_1_on(node: Node, version: str, expected: dict[str, str]) -> None:
    """podman#20257: `Error: stat nvidia.com/gpu=0: no such file or directory`."""
    podman = {"/usr/bin/podman": ""} if version else {}
    host = node({ETC: spec(0), **podman}, says={"podman": f"podman version {version}\n"})
    assert status(host, "podman") == expected
