"""Kernel modules: what the next boot loads, and unloading in order. modprobe.d(5), modules-load.d(5), depmod(8)"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_gpu import ALIASES, KERNEL, Kernel
from fakes import FakeHost, debian

from hostprep import kmod
from hostprep.errors import ChangeFailed, HostError

MakeHost = Callable[..., FakeHost]
A100 = "pci:v000010DEd000020B2sv000010DEsd00001463bc03sc02i00"
XHCI = "pci:v00008086d00001E31sv00001028sd000004ADbc0Csc03i30"
FOLDER = f"/lib/modules/{KERNEL}"


def test_what_is_loaded_and_who_needs_it(make_host: MakeHost) -> None:
    host = make_host(
        {"/proc/modules": "nvidia_uvm 4931584 2 - Live 0x0 (POE)\nnvidia 5 3 nvidia_uvm,gdrdrv, Live 0x0\n"}
    )
    assert kmod.modules(host) == {"nvidia_uvm": (2, ()), "nvidia": (3, ("nvidia_uvm", "gdrdrv"))}


@pytest.mark.parametrize("text", ["nvidia\n", "nvidia 1 many - Live\n"])
def test_a_list_of_modules_that_is_garbage_is_an_error(make_host: MakeHost, text: str) -> None:
    with pytest.raises(HostError, match="/proc/modules: not understood"):
        kmod.modules(make_host({"/proc/modules": text}))


@pytest.mark.parametrize(
    ("modalias", "aliases", "modules"),
    [
        (A100, ALIASES, {"nvidia"}),
        (A100, ALIASES + "alias pci:v000010DEd*sv*sd*bc03sc*i* nouveau\n", {"nvidia", "nouveau"}),
        (A100, "alias pci:v000010DEd000020B2sv*sd*bc*sc*i* nvidia-current\n", {"nvidia_current"}),
        (A100, "alias pci:v000010DEd*sv*sd*bc04sc80i00* nvidia\n", set()),  # another class
        (XHCI, "alias pci:v*d*sv*sd*bc0Csc03i30* xhci-pci\n", {"xhci_pci"}),  # of any vendor
        ("", ALIASES, set()),
    ],
)
def test_what_udev_loads_for_a_device(make_host: MakeHost, modalias: str, aliases: str, modules: set[str]) -> None:
    assert kmod.autoloaded(make_host({f"{FOLDER}/modules.alias": aliases}), KERNEL, [modalias]) == modules


@pytest.mark.parametrize(
    ("files", "comes"),
    [
        ({}, True),
        ({"/etc/modprobe.d/a.conf": "blacklist nvidia\n"}, False),
        ({"/usr/lib/modprobe.d/a.conf": "blacklist nvidia\n", "/etc/modprobe.d/a.conf": "# hidden\n"}, True),
        ({"/etc/modprobe.d/a.conf": "install nvidia /bin/false\n"}, False),
        ({"/etc/modprobe.d/a.conf": "install nvidia modprobe -i nvidia-current\n"}, True),
        ({"/etc/modprobe.d/a.conf": "blacklist nvidia\n", "/etc/modules": "nvidia\n"}, False),
        ({"/etc/modprobe.d/a.conf": "blacklist nvidia\n", "/etc/initramfs-tools/modules": "nvidia\n"}, True),
        ({"/etc/modprobe.d/a.conf": "blacklist nvidia\n", "/etc/dracut.conf": 'force_drivers+=" nvidia "\n'}, True),
        ({"/etc/modprobe.d/a": "blacklist nvidia\n"}, True),  # only *.conf is read
    ],
)
def test_what_comes_back(make_host: MakeHost, files: dict[str, str], comes: bool) -> None:
    host = make_host({**debian(), **files})
    assert ("nvidia" in kmod.come_back(host, (), {"nvidia"})) is comes


FILES = [
    ({"a.conf": "install nvidia /bin/false\n", "b.conf": "install nvidia modprobe -i nvidia-current\n"}, True),
    ({"a.conf": "install nvidia modprobe -i nvidia-current\n", "b.conf": "install nvidia /bin/false\n"}, False),
    ({"a.conf": "blacklist nvidia\n"}, False),
    ({"a.conf": "install nvidia /bin/true\n"}, True),
]


@pytest.mark.parametrize(("files", "never"), FILES)
def test_the_first_install_line_decides_whether_a_name_can_be_loaded(
    make_host: MakeHost, files: dict[str, str], never: bool
) -> None:
    """Debian's own file has `install nvidia modprobe -i nvidia-current`: ours has to come first."""
    host = make_host({f"/etc/modprobe.d/{name}": text for name, text in files.items()})
    assert ("nvidia" in kmod.never(host)) is never


@pytest.mark.parametrize(("files", "never"), FILES)
def test_the_real_modprobe_reads_these_files_as_we_do(tmp_path: Path, files: dict[str, str], never: bool) -> None:
    modprobe = shutil.which("modprobe", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if modprobe is None:
        pytest.skip("modprobe is not installed (Debian's package kmod)")
    folder, config = tmp_path / "lib/modules/6.1.0", tmp_path / "config"
    (folder / "updates").mkdir(parents=True)
    (folder / "updates/nvidia.ko").touch()
    config.mkdir()
    (folder / "modules.dep").write_text("updates/nvidia.ko:\n")
    for name, text in files.items():
        (config / name).write_text(text)
    command = [modprobe, "-n", "-v", "-d", str(tmp_path), "-S", "6.1.0", "-C", str(config), "nvidia"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    assert any(word in said for word in ("/bin/false", "/bin/true")) is never


@pytest.mark.parametrize(
    ("listed", "name", "file"),
    [
        ("updates/dkms/nvidia.ko.zst: kernel/drivers/x.ko\n", "nvidia", "updates/dkms/nvidia.ko.zst"),
        ("kernel/drivers/nvidia-uvm.ko:\n", "nvidia_uvm", "kernel/drivers/nvidia-uvm.ko"),
        ("kernel/drivers/nvidiafb.ko:\n", "nvidia", None),
        (f"{FOLDER}/updates/nvidia.ko:\n", "nvidia", "updates/nvidia.ko"),
    ],
)
def test_the_file_of_a_module(make_host: MakeHost, listed: str, name: str, file: str | None) -> None:
    assert kmod.file_of(make_host({f"{FOLDER}/modules.dep": listed}), KERNEL, name) == file


def test_a_kernel_without_a_list_of_modules_is_not_one_without_modules(make_host: MakeHost) -> None:
    with pytest.raises(HostError, match=r"modules\.dep: not there"):
        kmod.file_of(make_host({}), KERNEL, "nvidia")


def test_modules_go_in_the_order_that_the_kernel_allows(make_host: MakeHost) -> None:
    host = make_host({})
    Kernel(host, loaded=("nvidia", "nvidia_modeset", "nvidia_drm", "nvidia_uvm"))
    kmod.unload(host, ("nvidia", "nvidia_drm", "nvidia_modeset", "nvidia_uvm"))
    assert kmod.modules(host) == {}


def test_a_foreign_module_that_needs_one_is_named_before_anything_is_unloaded(make_host: MakeHost) -> None:
    host = make_host({"/proc/modules": "nvidia_uvm 5 0 - Live 0x0\nnvidia 5 2 nvidia_uvm,beegfs, Live 0x0\n"})
    with pytest.raises(ChangeFailed, match="nvidia is needed by beegfs"):
        kmod.unload(host, ("nvidia", "nvidia_uvm"))
    assert host.ran == []


def test_what_is_unloaded_when_one_refuses_is_loaded_again(make_host: MakeHost) -> None:
    host = make_host({})
    kernel = Kernel(host)
    kernel.hold("nvidia")
    with pytest.raises(ChangeFailed, match="Module nvidia is in use"):
        kmod.unload(host, ("nvidia", "nvidia_modeset", "nvidia_uvm"))
    assert set(kernel.loaded) == {"nvidia", "nvidia_modeset", "nvidia_uvm"}
