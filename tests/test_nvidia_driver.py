"""NVIDIA's kernel driver: what the next boot loads of it (K16), its versions, and who uses the GPUs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_gpu import ALIASES, DRIVER, FIRST, KERNEL, gpu_files, installed
from fakes import FakeHost, debian

from hostprep.errors import HostError
from hostprep.host.processes import Process
from hostprep.nvidia import driver

MakeHost = Callable[..., FakeHost]
A100 = ("pci:v000010DEd000020B2sv000010DEsd00001463bc03sc02i00",)
FOLDER = f"/lib/modules/{KERNEL}"
NEWER = "6.1.0-28-amd64"
BOTH = {
    f"/boot/vmlinuz-{KERNEL}": "",
    f"/boot/vmlinuz-{NEWER}": "",
    f"/lib/modules/{NEWER}/modules.dep": "kernel/a.ko:\n",
}
UNIT = "nvidia-persistenced.service"
ENABLED = {f"/etc/systemd/system/multi-user.target.wants/{UNIT}": f"-> /usr/lib/systemd/system/{UNIT}"}
BLACKLIST = {"/etc/modprobe.d/a.conf": "blacklist nvidia\n"}
SOFT = {"/usr/lib/modprobe.d/nvidia.conf": "softdep nvidia post: nvidia-uvm\n"}  # yum-packaging-nvidia-kmod-common
# Debian's package nvidia-kernel-dkms, and its nvidia-modprobe.conf
DEBIANS = {
    f"{FOLDER}/modules.dep": "updates/dkms/nvidia-current.ko:\nupdates/dkms/nvidia-current-uvm.ko: a\n",
    f"{FOLDER}/modules.alias": ALIASES.replace(" nvidia\n", " nvidia_current\n"),
}
DEBIANS_CONFIG = {
    "/etc/modprobe.d/nvidia.conf": "install nvidia modprobe -i nvidia-current $CMDLINE_OPTS\n" + ALIASES,
}


# -- the next boot --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "later"),
    [
        ({}, ("nvidia",)),
        ({f"{FOLDER}/modules.dep": "kernel/a.ko:\n"}, ()),  # no driver is installed
        (BLACKLIST, ()),
        ({**BLACKLIST, **ENABLED}, ("nvidia",)),  # it has nvidia-modprobe load the driver by name
        ({**BLACKLIST, **ENABLED, f"/etc/systemd/system/{UNIT}": "-> /dev/null"}, ()),  # masked
        ({"/etc/modprobe.d/a.conf": "install nvidia /bin/false\n", **ENABLED}, ()),
        ({**BLACKLIST, "/etc/modules-load.d/a.conf": "nvidia\n"}, ()),  # systemd-modules-load keeps to it
        ({"/etc/modprobe.d/a.conf": "blacklist nvidia\ninstall nvidia /bin/false\n", **ENABLED, **SOFT}, ("nvidia",)),
        ({"/etc/modprobe.d/a.conf": "alias nvidia off\n"}, ("nvidia",)),  # udev does not ask for a name
        # A blacklist does not stop what another module needs: seen with kmod 30.
        ({**BLACKLIST, "/etc/modules-load.d/a.conf": "nvidia-uvm\n"}, ("nvidia", "nvidia_uvm")),
        ({"/etc/modprobe.d/a.conf": "install nvidia /bin/false\n", "/etc/modules-load.d/a.conf": "nvidia-uvm\n"}, ()),
        ({**BLACKLIST, "/etc/initramfs-tools/modules": "nvidia_drm\n"}, ("nvidia", "nvidia_drm")),
        (DEBIANS, ("nvidia",)),
        ({**DEBIANS, **DEBIANS_CONFIG}, ("nvidia",)),
        ({**DEBIANS, **DEBIANS_CONFIG, **BLACKLIST}, ()),
        ({**DEBIANS, **BLACKLIST}, ("nvidia",)),  # udev finds nvidia_current, which nobody has forbidden
    ],
)
def test_what_the_next_boot_loads(make_host: MakeHost, files: dict[str, str], later: tuple[str, ...]) -> None:
    host = make_host({**debian(), **installed(), **files})
    assert driver.later(host, A100) == later


@pytest.mark.parametrize("flavour", [{}, DEBIANS, {**DEBIANS, **DEBIANS_CONFIG}], ids=["plain", "udev", "Debian"])
@pytest.mark.parametrize("enabled", [{}, {**ENABLED, **SOFT}], ids=["alone", "persistenced"])
def test_what_hostprep_writes_keeps_every_driver_out(
    make_host: MakeHost, flavour: dict[str, str], enabled: dict[str, str]
) -> None:
    host = make_host({**debian(), **installed(), **flavour, **enabled})
    assert driver.later(host, A100)
    host.put("/etc/modprobe.d/00-hostprep-gpu.conf", driver.forbidding())
    assert driver.later(host, A100) == ()


def test_a_kernel_for_which_dkms_has_built_nothing_boots_without_a_driver(make_host: MakeHost) -> None:
    host = make_host({**debian(), **installed(), **BOTH})
    titled = f"Debian GNU/Linux, with Linux {NEWER}"
    grub = (host.read("/boot/grub/grub.cfg") or "").replace("Debian 0", titled)
    host.put("/boot/grub/grub.cfg", grub)
    assert (driver.later(host, A100), driver.later_version(host)) == ((), None)


def test_kernels_of_which_one_has_no_driver_are_not_guessed_between(make_host: MakeHost) -> None:
    host = make_host({**debian(), **installed(), **BOTH}, {"modinfo": DRIVER})
    with pytest.raises(HostError, match=f"which kernel boots next cannot be told, and {NEWER} has no nvidia module"):
        driver.later(host, A100)
    with pytest.raises(HostError, match=f"{NEWER}: none"):
        driver.later_version(host)
    host.put("/etc/modprobe.d/a.conf", driver.forbidding())
    assert driver.later(host, A100) == ()  # whichever it is


# -- versions -------------------------------------------------------------------------------------

NVRM = "NVRM version: NVIDIA UNIX {}  550.90.12  {}\nGCC version:  gcc version 12.2.0 (Debian 12.2.0-14)"


@pytest.mark.parametrize(
    ("files", "version"),
    [
        ({"/sys/module/nvidia/version": "550.90.12\n"}, "550.90.12"),
        ({"/proc/driver/nvidia/version": NVRM.format("x86_64 Kernel Module", "Fri May 31 2024")}, "550.90.12"),
        ({"/proc/driver/nvidia/version": NVRM.format("Open Kernel Module for x86_64", "Release Build")}, "550.90.12"),
        ({}, None),
    ],
)
def test_the_version_that_runs(make_host: MakeHost, files: dict[str, str], version: str | None) -> None:
    assert driver.version(make_host(files)) == version


def test_debians_module_is_asked_for_its_version_by_its_file(make_host: MakeHost) -> None:
    """modinfo nvidia finds none: the file is nvidia-current.ko."""
    host = make_host({**debian(), **installed(), **DEBIANS}, {"modinfo": f"{DRIVER}\n"})
    assert driver.version_on_disk(host, KERNEL) == DRIVER
    assert host.ran == [f"modinfo -F version {FOLDER}/updates/dkms/nvidia-current.ko"]


# -- who uses it ----------------------------------------------------------------------------------

WORKER = Process(4711, "python3", "docker 0123456789ab")  # within kind's first worker
XORG = Process(900, "Xorg", "gdm.service")
COUNTED = "which the kernel counts {} more users of (a console, a display?)"


@pytest.mark.parametrize(
    ("modules", "opened", "users"),
    [
        ("nvidia_uvm 5 0 - Live 0x0\nnvidia 5 1 nvidia_uvm, Live 0x0\n", {}, ()),
        (
            "nvidia_uvm 5 2 - Live 0x0\nnvidia 5 5 nvidia_uvm, Live 0x0\n",
            {"/dev/nvidia0": (WORKER,), "/dev/nvidia-uvm": (WORKER,), "/dev/nvidiactl": (WORKER,)},
            ("docker 0123456789ab, pid 4711 python3 (/dev/nvidia0, /dev/nvidia-uvm, /dev/nvidiactl)",),
        ),
        # A process that is named must not hide a console that holds another module.
        (
            "nvidia_drm 5 2 - Live 0x0\nnvidia 5 2 nvidia_drm, Live 0x0\n",
            {"/dev/nvidiactl": (WORKER,)},
            ("docker 0123456789ab, pid 4711 python3 (/dev/nvidiactl)", f"nvidia_drm, {COUNTED.format(2)}"),
        ),
        ("nvidia_drm 5 1 - Live 0x0\nnvidia 5 1 nvidia_drm, Live 0x0\n", {"/dev/dri/card1": (XORG,)},
         ("gdm.service, pid 900 Xorg (/dev/dri/card1)",)),
        # card10 is another vendor's
        ("nvidia_drm 5 0 - Live 0x0\nnvidia 5 1 nvidia_drm, Live 0x0\n", {"/dev/dri/card10": (XORG,)}, ()),
        ("nvidia 5 1 beegfs, Live 0x0\n", {}, ("the kernel module beegfs",)),
        ("nvidia 5 1 - Live 0x0\n", {}, (f"nvidia, {COUNTED.format(1)}",)),
        ("", {"/dev/nvidia0": (WORKER,)}, ()),
    ],
)  # fmt: skip
def test_who_uses_the_gpus(
    make_host: MakeHost, modules: str, opened: dict[str, tuple[Process, ...]], users: tuple[str, ...]
) -> None:
    """K16: the driver runs in a container of the kind host, and the host sees its modules."""
    host = make_host({**debian(), **gpu_files(), "/proc/modules": modules})
    host.put("/sys/class/drm/card1", f"-> ../../devices/pci0000:3a/0000:3a:00.0/{FIRST}/drm/card1")
    host.open_file_table = opened
    assert driver.users(host) == users


# -- the installer --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("/root/NVIDIA-Linux-x86_64-550.90.12.run", "550.90.12"),
        ("NVIDIA-Linux-x86_64-550.90.07-grid.run", "550.90.07"),
        ("NVIDIA-Linux-x86_64-550.90.05-vgpu-kvm.run", "550.90.05"),
        ("NVIDIA-Linux-x86_64-470.256.02-no-compat32.run", "470.256.02"),
        ("NVIDIA-Linux-aarch64-550.90.12.run", "550.90.12"),
        ("NVIDIA-Linux-x86_64-550.90.12.run.part", None),
        ("cuda_12.4.1_550.54.15_linux.run", None),
    ],
)
def test_the_version_that_an_installer_is_named_for(name: str, version: str | None) -> None:
    assert driver.installer_version(name) == version


RUN = "NVIDIA-Linux-x86_64-{}.run"
A, B = RUN.format("550.90.12"), RUN.format("535.104.05")
PLAIN = [
    f"NVIDIA_DRIVER_FILE={A}\n",
    f"NVIDIA_DRIVER_FILE ?= {A} # K15\n",
    f"export NVIDIA_DRIVER_FILE := {A}\n",
    f"NVIDIA_DRIVER_FILE ::= {A}#x\n",
    f"NVIDIA_DRIVER_FILE = {B}\nNVIDIA_DRIVER_FILE = {A}\n",
    f"NVIDIA_DRIVER_FILE = {A}\nNVIDIA_DRIVER_FILE ?= {B}\n",
    f"#NVIDIA_DRIVER_FILE = {B}\n  NVIDIA_DRIVER_FILE = \\\n    {A}\n",
    f"NVIDIA_DRIVER_FILE = {A}\nMY_NVIDIA_DRIVER_FILE = {B}\nNVIDIA_DRIVER_FILES = {B}\n",
    f"NVIDIA_DRIVER_FILE = {A}\nall:\n\tNVIDIA_DRIVER_FILE={B} true\n",
    f"ifeq (1,1)\nX = 1\nendif\nNVIDIA_DRIVER_FILE = {A}\n",
]
ODD = [
    "NVIDIA_DRIVER_FILE = NVIDIA-Linux-x86_64-$(VERSION).run\n",
    f"ifdef OLD\nNVIDIA_DRIVER_FILE = {B}\nelse\nNVIDIA_DRIVER_FILE = {A}\nendif\n",
    f"NVIDIA_DRIVER_FILE = {A}\nNVIDIA_DRIVER_FILE += {B}\n",
    f"NVIDIA_DRIVER_FILE != ls {A}\n",
]


@pytest.mark.parametrize("text", PLAIN)
def test_the_version_that_a_makefile_names(text: str) -> None:
    assert driver.makefile_version(text, "/root/Makefile") == "550.90.12"


@pytest.mark.parametrize("text", PLAIN)
def test_the_real_make_reads_these_files_as_we_do(tmp_path: Path, text: str) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    (tmp_path / "Makefile").write_text(text + "\ntell:\n\t@echo $(NVIDIA_DRIVER_FILE)\n")
    said = subprocess.run(
        [make, "-s", "tell"], cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == A


@pytest.mark.parametrize("text", ODD)
def test_what_only_make_can_tell_is_not_guessed(text: str) -> None:
    with pytest.raises(HostError, match=r"/root/Makefile:\d: NVIDIA_DRIVER_FILE is "):
        driver.makefile_version(text, "/root/Makefile")
