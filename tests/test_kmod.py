"""Kernel modules: what the next boot loads, and unloading in order. modprobe.d(5), modules-load.d(5), depmod(8)"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fake_gpu import ALIASES, KERNEL, Kernel
from fakes import FakeHost, debian, grub_cfg

from hostprep import kmod
from hostprep.errors import ChangeFailed, HostError

SBIN = "/usr/sbin:/sbin:/usr/bin:/bin"
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
        ({"/etc/modprobe.d/a.conf": "blacklist nvidia\n", "/etc/dracut.conf": 'add_drivers+=" nvidia "\n'}, False),
        (
            {
                "/etc/modprobe.d/a.conf": "blacklist nvidia\n",
                "/usr/share/initramfs-tools/modules.d/nvidia": "# x\nnvidia-current modeset=1\n",
            },
            True,
        ),
        (
            {
                "/boot/grub/grub.cfg": grub_cfg("ro module_blacklist=nvidia"),
                "/etc/initramfs-tools/modules": "nvidia\n",
            },
            False,
        ),
    ],
)
def test_what_comes_back(make_host: MakeHost, files: dict[str, str], comes: bool) -> None:
    host = make_host({**debian(), **files})
    assert ("nvidia" in kmod.come_back(host, (), {"nvidia"})) is comes


DEBIANS = "install nvidia modprobe -i nvidia-current $CMDLINE_OPTS\n"
SOFT = "softdep nvidia post: nvidia-uvm\n"  # of NVIDIA's packages for RHEL and SUSE; `install` is then not obeyed
# Files of modprobe.d, and whether nvidia is then loaded by its name, and whether udev loads it for its device.
FILES: list[tuple[dict[str, str], bool, bool]] = [
    ({}, True, True),
    ({"a.conf": "blacklist nvidia\n"}, True, False),
    ({"a.conf": "  blacklist  nvidia   # see the wiki\n"}, True, False),
    ({"a.conf": "blacklist \\\n nvidia\n"}, True, False),
    ({"a.conf": "#blacklist nvidia\ninstall nvidia\n"}, True, True),
    ({"a.conf": "blacklist nvidia*\nblacklist nvidia_drm\n"}, True, True),  # a blacklist knows no globs
    ({"a.conf": "install nvidia /bin/false\n"}, False, False),
    ({"a.conf": "install nvidia /usr/bin/true $CMDLINE_OPTS\n"}, False, False),
    ({"a.conf": "install nvid* false\n"}, False, False),
    ({"a.alias": "install nvidia /bin/false\n"}, False, False),
    ({"a.txt": "install nvidia /bin/false\n"}, True, True),
    ({"a.conf": DEBIANS}, True, True),
    ({"a.conf": "install nvidia /bin/false\n", "b.conf": DEBIANS}, False, False),
    ({"a.conf": DEBIANS, "b.conf": "install nvidia /bin/false\n"}, True, True),
    ({"a.conf": DEBIANS, "b.conf": "blacklist nvidia\n"}, True, False),
    ({"a.conf": "install nvidia /bin/false\n", "b.conf": SOFT}, True, True),
    ({"a.conf": "install nvidia /bin/false\nblacklist nvidia\n", "b.conf": SOFT}, True, False),
    ({"a.conf": "alias nvidia off\nblacklist nvidia\n", "b.conf": SOFT + DEBIANS}, False, False),
    ({"a.conf": "alias nvid* off\n"}, False, True),  # udev does not ask for a name
]


@pytest.mark.parametrize(("files", "by_name", "for_device"), FILES)
def test_what_modprobe_d_keeps_out(make_host: MakeHost, files: dict[str, str], by_name: bool, for_device: bool) -> None:
    """Of several `install` lines the first counts: Debian's own file has one for nvidia."""
    host = make_host({**debian(), **{f"/etc/modprobe.d/{name}": text for name, text in files.items()}})
    assert (not kmod.never_by(host, "nvidia"), not kmod.forbidden_by(host, "nvidia")) == (by_name, for_device)


@pytest.fixture(scope="module")
def modules_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with /lib/modules of a kernel that has nvidia: what the real depmod makes of a file of that name."""
    if not all(shutil.which(tool, path=SBIN) for tool in ("modprobe", "depmod")):
        pytest.skip("modprobe is not installed (Debian's package kmod)")
    top = tmp_path_factory.mktemp("modules")
    folder = top / f"lib/modules/{KERNEL}"
    (folder / "updates").mkdir(parents=True)
    for name in ("nvidia.ko", "nvidia-uvm.ko"):
        shutil.copy(os.path.realpath(shutil.which("modprobe", path=SBIN) or ""), folder / "updates" / name)  # any ELF
    for name in ("modules.order", "modules.builtin"):
        (folder / name).touch()
    subprocess.run(["depmod", "-b", top, KERNEL], env={"PATH": SBIN}, capture_output=True, check=True)
    return str(top)


@pytest.mark.parametrize(("files", "by_name", "for_device"), FILES)
def test_the_real_modprobe_reads_these_files_as_we_do(
    modules_folder: str, tmp_path: Path, files: dict[str, str], by_name: bool, for_device: bool
) -> None:
    for name, text in {"aliases.conf": ALIASES, **files}.items():
        (tmp_path / name).write_text(text)

    def loads(*words: str) -> bool:
        command = ["modprobe", "-n", "-v", "-d", modules_folder, "-S", KERNEL, "-C", str(tmp_path), *words]
        said = subprocess.run(command, env={"PATH": SBIN}, capture_output=True, text=True, check=True).stdout
        assert not said or said.startswith(("insmod", "install"))
        return bool(said) and not any(word in said for word in ("false", "true"))

    assert (loads("nvidia"), loads("--use-blacklist", A100)) == (by_name, for_device)


@pytest.mark.parametrize(
    ("text", "modules"),
    [
        ("", set()),
        ("alias pci:v000010DEd*sv*sd*bc03sc02i00* nvidia\n", {"nvidia"}),
        ("alias pci:v000010DEd*sv*sd*bc03sc02i00* off\n", set()),
        ("alias pci:v000010DEd000020B[0-7]sv*sd*bc03sc02i00*\tnvidia # mine\n", {"nvidia"}),
        ("alias pci:v000010DEd*sv*sd*bc03sc02i00*x nvidia\n", set()),
    ],
)
def test_the_real_modprobe_knows_a_device_by_the_aliases_that_we_see(
    modules_folder: str, make_host: MakeHost, text: str, modules: set[str]
) -> None:
    host = make_host({"/etc/modprobe.d/a.conf": text, f"{FOLDER}/modules.alias": ""})
    assert kmod.autoloaded(host, KERNEL, [A100]) == modules
    config = host.real("/etc/modprobe.d")
    command = ["modprobe", "-R", "-d", modules_folder, "-S", KERNEL, "-C", config, A100]
    said = subprocess.run(command, env={"PATH": SBIN}, capture_output=True, text=True, check=False).stdout
    assert set(said.split()) - {"off"} == modules


@pytest.mark.parametrize(
    ("arguments", "never", "forbidden"),
    [
        ("modprobe.blacklist=nouveau,nvidia", "", "modprobe.blacklist="),
        ("module_blacklist=nvidia", "module_blacklist=", "module_blacklist="),
    ],
)
def test_kernel_arguments_that_keep_a_module_out(
    make_host: MakeHost, arguments: str, never: str, forbidden: str
) -> None:
    """modprobe(8) obeys the one as a blacklist; the kernel itself the other, whoever loads it."""
    host = make_host(debian(cmdline=f"ro {arguments}"))
    assert (kmod.never_by(host, "nvidia"), kmod.forbidden_by(host, "nvidia")) == (never, forbidden)


def test_modules_alias_is_quick_where_many_devices_are(make_host: MakeHost) -> None:
    """A server has a hundred devices of one vendor without a driver, and modules.alias 26,000 lines."""
    lines = (f"alias pci:v00008086d{n:08X}sv*sd*bc*sc*i* m{n}\n" for n in range(9000))
    host = make_host({f"{FOLDER}/modules.alias": ALIASES + "".join(lines)})
    bus = [f"pci:v00008086d{n:08X}sv00008086sd00000000bc08sc80i00" for n in range(100)]
    start = time.process_time()
    assert kmod.autoloaded(host, KERNEL, [*bus, A100]) == {"nvidia", *(f"m{n}" for n in range(100))}
    assert time.process_time() - start < 0.2  # seconds; it takes 0.01, and took 0.6 with fnmatch alone


@pytest.mark.parametrize(
    ("listed", "name", "file"),
    [
        ("updates/dkms/nvidia.ko.zst: kernel/drivers/x.ko\n", "nvidia", "updates/dkms/nvidia.ko.zst"),
        ("kernel/drivers/nvidia-uvm.ko:\n", "nvidia_uvm", "kernel/drivers/nvidia-uvm.ko"),
        ("kernel/drivers/nvidiafb.ko:\n", "nvidia", None),
        (f"{FOLDER}/updates/nvidia.ko:\n", "nvidia", "updates/nvidia.ko"),
        ("updates/dkms/nvidia-current.ko:\n", "nvidia", "updates/dkms/nvidia-current.ko"),
        (
            "a/nvidia-current-open-uvm.ko.xz: a/nvidia-current-open.ko.xz\n",
            "nvidia_uvm",
            "a/nvidia-current-open-uvm.ko.xz",
        ),
        ("a/nvidia-tesla-470-drm.ko:\n", "nvidia_drm", "a/nvidia-tesla-470-drm.ko"),
        ("a/nvidia-current-uvm.ko:\n", "nvidia", None),
        ("a/nvidia-current.ko:\na/nvidia.ko:\n", "nvidia", "a/nvidia.ko"),
    ],
)
def test_the_file_of_a_module(make_host: MakeHost, listed: str, name: str, file: str | None) -> None:
    assert kmod.file_of(make_host({f"{FOLDER}/modules.dep": listed}), KERNEL, name) == file


def test_a_kernel_without_a_list_of_modules_is_not_one_without_modules(make_host: MakeHost) -> None:
    with pytest.raises(HostError, match=r"modules\.dep: not there"):
        kmod.file_of(make_host({}), KERNEL, "nvidia")


def test_several_of_debians_drivers_for_one_kernel_are_not_guessed_between(make_host: MakeHost) -> None:
    host = make_host({f"{FOLDER}/modules.dep": "a/nvidia-current.ko:\na/nvidia-legacy-390xx.ko:\n"})
    with pytest.raises(HostError, match="several modules for nvidia: nvidia_current, nvidia_legacy_390xx"):
        kmod.file_of(host, KERNEL, "nvidia")


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


KEPT_OUT = {"/etc/modprobe.d/00-ours.conf": "install nvidia_uvm /bin/false\nalias nvidia_uvm off\n"}
OPTIONS = {"/etc/modprobe.d/b.conf": "options nvidia NVreg_X=1\n", "/usr/lib/modprobe.d/c.conf": SOFT}


@pytest.mark.parametrize(
    ("files", "ran"),
    [
        ({}, "modprobe nvidia_uvm"),
        ({"/etc/modprobe.d/a.conf": "blacklist nvidia_uvm\n" + DEBIANS}, "modprobe nvidia_uvm"),
        ({"/etc/modprobe.d/a.conf": "install usb_storage /bin/true\n"}, "modprobe nvidia_uvm"),
        (KEPT_OUT, "modprobe --config /dev/null nvidia_uvm"),
        (
            {**KEPT_OUT, **OPTIONS},
            "modprobe --config /etc/modprobe.d/b.conf --config /usr/lib/modprobe.d/c.conf nvidia_uvm",
        ),
    ],
)
def test_what_the_next_boot_must_not_load_can_be_loaded_now(
    make_host: MakeHost, modules_folder: str, files: dict[str, str], ran: str
) -> None:
    """Else nothing could be put back while the file for the next boot is there. The real modprobe does load it so."""
    host = make_host({"/etc/modprobe.d/": "", **files}, {"modprobe": ""})
    kmod.load(host, ["nvidia_uvm"])
    assert host.ran == [ran]
    words = [host.real(word) if word.startswith(("/etc/", "/usr/")) else word for word in ran.split()]
    config = [] if "--config" in words else ["-C", host.real("/etc/modprobe.d")]
    command = [*words, "-n", "-v", "-d", modules_folder, "-S", KERNEL, *config]
    said = subprocess.run(command, env={"PATH": SBIN}, capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"insmod {modules_folder}{FOLDER}/updates/nvidia-uvm.ko")


def test_nothing_is_lost_when_unloading_fails_while_a_file_keeps_the_driver_out(make_host: MakeHost) -> None:
    host = make_host({"/etc/modprobe.d/a.conf": "alias nvidia_uvm off\n"})
    kernel = Kernel(host, loaded=("nvidia", "nvidia_uvm"))
    kernel.hold("nvidia")
    plainly = host.commands["modprobe"]
    assert callable(plainly)

    def modprobe(argv: Sequence[str]) -> str:
        assert list(argv[1:-1]) == ["--config", "/dev/null"]
        return plainly(["modprobe", argv[-1]])

    host.commands["modprobe"] = modprobe
    with pytest.raises(ChangeFailed, match="Module nvidia is in use"):
        kmod.unload(host, ("nvidia", "nvidia_uvm"))
    assert set(kernel.loaded) == {"nvidia", "nvidia_uvm"}
