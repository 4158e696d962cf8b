"""Arguments that are written reach the kernel whole, once, in order; everybody else's stay as they are."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from conftest import MakeHost, apply, statuses
from fakes import FakeHost, debian
from test_bootloader import bls_host_files

from hostprep import bootloader, hugetlb, registry
from hostprep import revert as taking_back
from hostprep.bootloader import menu
from hostprep.bootloader.reading import BLS
from hostprep.bootloader.writing import GRUB_DEFAULTS, KERNEL_CMDLINE
from hostprep.journal import Journal
from hostprep.perform import Performer

SHELLS = ["dash", "bash"]
SOURCE_ALL = (
    'if [ -e "$1/etc/default/grub" ]; then . "$1/etc/default/grub"; fi; '
    'for x in "$1"/etc/default/grub.d/*.cfg; do if [ -e "$x" ]; then . "$x"; fi; done; '
)
ENTRY = SOURCE_ALL + 'printf "%s\\n%s" "$GRUB_CMDLINE_LINUX" "$GRUB_CMDLINE_LINUX_DEFAULT"'


def sourced(host: FakeHost, shell: str, script: str = ENTRY) -> tuple[str, str]:
    """GRUB_CMDLINE_LINUX and GRUB_CMDLINE_LINUX_DEFAULT as grub-mkconfig makes them: under set -e, files around."""
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    run = [shell, "-e", "-c", script, shell, host.root]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd="/etc", timeout=20)
    assert done.stderr == ""
    recovery, _, default = done.stdout.partition("\n")
    return recovery, default


def kernel_words(recovery: str, default: str) -> list[str]:
    """What the kernel is given by the line that 10_linux makes of the two."""
    return [menu.handed_on(word) for word in menu.tokens(f"linux /vmlinuz {recovery} {default}", {})[2:]]


def debian_with(make_host: MakeHost, files: Mapping[str, str]) -> FakeHost:
    return make_host(debian() | dict(files))


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "word",
    [
        *("isolcpus=domain,managed_irq,1-3", "crashkernel=1G-4G:192M,4G-:512M", "quiet", "a=", "acpi_osi=!*"),
        *("memmap=2G$4G", "a=`id`", "a=$(id)", "a=${HOME}", "a=*", "a=/*", "a=[a-z]?", "a=x;y&z|{w}<v>", "a=#b", "#a"),
        *("dyndbg=file a.c +p; file b.c -p", "a=two  blanks", "a=~", "-n", "a=%s", "cloud-init=disabled"),
    ],
)
def test_a_word_reaches_the_kernel_as_it_is(make_host: MakeHost, shell: str, word: str) -> None:
    """R83: these files are shell, and what comes out of them is GRUB script."""
    host = debian_with(make_host, {})
    bootloader.put(host, "someone", {bootloader.name_of(word): (word,)})
    others = [w for w in ("console=ttyS0", "quiet") if w != word]
    assert kernel_words(*sourced(host, shell)) == [*others, word]
    assert bootloader.owned(host, "someone") == {bootloader.name_of(word): (word,)}


RUN = ("hugepagesz=1G", "hugepages=4")
PAGES = {**dict.fromkeys(hugetlb.NAMES, ()), "hugepages": RUN}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("files", "recovery", "default"),
    [
        pytest.param(
            {GRUB_DEFAULTS: 'GRUB_CMDLINE_LINUX="hugepagesz=2M hugepages=512 a"\nGRUB_CMDLINE_LINUX_DEFAULT=quiet\n'},
            *("a", "quiet hugepagesz=1G hugepages=4"),
            id="R82: a stale set in GRUB_CMDLINE_LINUX comes first, and the first wins",
        ),
        pytest.param(
            {"/etc/default/grub.d/50-cloudimg-settings.cfg": 'GRUB_CMDLINE_LINUX_DEFAULT="console=tty1"\n'},
            *("console=ttyS0", "console=tty1 hugepagesz=1G hugepages=4"),
            id="R80: a cloud image assigns it anew (AFLplusplus#1998, installimage#39)",
        ),
        pytest.param(
            {GRUB_DEFAULTS: 'GRUB_CMDLINE_LINUX_DEFAULT="default-hugepagesz=2M transparent_hugepage=on hugepages"\n'},
            *("", "transparent_hugepage=on hugepagesz=1G hugepages=4"),
            id="R66, R94: the other spelling goes, a longer name stays",
        ),
        pytest.param(
            {GRUB_DEFAULTS: "GRUB_CMDLINE_LINUX='b=\"p  q\"  c=*'\nGRUB_CMDLINE_LINUX_DEFAULT=\n"},
            *('b="p  q"  c=*', "hugepagesz=1G hugepages=4"),
            id="where nothing has to go, nothing is touched",
        ),
        pytest.param(
            {GRUB_DEFAULTS: 'GRUB_CMDLINE_LINUX=\'"hugepages=1 2" b="p q" hugepages=3 "c\'\n'},
            *('b="p q" "c', "hugepagesz=1G hugepages=4"),
            id="a quoted word goes or stays whole",
        ),
        pytest.param(
            {GRUB_DEFAULTS: "GRUB_CMDLINE_LINUX=' a=\"b  c\td\"  e   hugepages=1\tf '\n"},
            *('a="b  c\td"  e\tf', "hugepagesz=1G hugepages=4"),
            id="white space within what stays is not touched",
        ),
        pytest.param(
            {GRUB_DEFAULTS: "GRUB_CMDLINE_LINUX='hugepages=1 * /e*'\n"},
            *("* /e*", "hugepagesz=1G hugepages=4"),
            id="no word becomes the names of files",
        ),
        pytest.param(
            {"/etc/default/grub.d/a.cfg": "", GRUB_DEFAULTS: ""},
            *("", "hugepagesz=1G hugepages=4"),
            id="nothing is set",
        ),
    ],
)
def test_own_words_are_added_and_conflicting_ones_taken_out(
    make_host: MakeHost, shell: str, files: Mapping[str, str], recovery: str, default: str
) -> None:
    host = debian_with(make_host, files)
    bootloader.put(host, "someone", PAGES)
    assert sourced(host, shell) == (recovery, default)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("mkconfig", ["", "# reads only ${sysconfdir}/default/grub\n"], ids=["Debian", "upstream"])
def test_two_owners_stand_side_by_side(make_host: MakeHost, shell: str, mkconfig: str) -> None:
    """R81: where grub-mkconfig reads no grub.d, each has a block at the end of /etc/default/grub."""
    host = debian_with(make_host, {"/usr/sbin/grub-mkconfig": mkconfig} if mkconfig else {})
    before = Path(host.root + GRUB_DEFAULTS).read_bytes()
    bootloader.put(host, "hugepages", PAGES)
    bootloader.put(host, "kernel_args", {"iommu": ("iommu=pt",)})
    bootloader.put(host, "kernel_args", {"nosmt": ("nosmt",), "quiet": ()})
    bootloader.put(host, "hugepages", PAGES | {"hugepages": ("hugepages=8",)})
    assert bootloader.owned(host, "kernel_args") == {"iommu": ("iommu=pt",), "nosmt": ("nosmt",), "quiet": ()}
    words = kernel_words(*sourced(host, shell))
    assert words[0] == "console=ttyS0"
    assert sorted(words[1:]) == ["hugepages=8", "iommu=pt", "nosmt"]
    assert Path(host.root + GRUB_DEFAULTS).read_bytes().startswith(before)


def test_bytes_that_are_no_utf8_stay(make_host: MakeHost) -> None:
    host = debian_with(make_host, {"/usr/sbin/grub-mkconfig": "# upstream\n"})
    Path(host.root + GRUB_DEFAULTS).write_bytes(b"# Gr\xfc\xdfe\nGRUB_TIMEOUT=5")
    bootloader.put(host, "someone", {"quiet": ("quiet",)})
    assert Path(host.root + GRUB_DEFAULTS).read_bytes().startswith(b"# Gr\xfc\xdfe\nGRUB_TIMEOUT=5\n")


# -- BLS ------------------------------------------------------------------------------------------


def grub2_editenv(argv: Sequence[str]) -> str:
    if not shutil.which("grub-editenv"):
        pytest.skip("grub-editenv is not installed")
    done = subprocess.run(["grub-editenv", *argv[1:]], capture_output=True, text=True, check=True)
    return done.stdout


def bls_host(make_host: MakeHost, options: Mapping[str, str], **more: str) -> FakeHost:
    host = make_host(bls_host_files(options) | more, {"grub2-editenv": grub2_editenv})
    env = Path(f"{host.root}/boot/grub2/grubenv")
    env.unlink()
    grub2_editenv(["grub2-editenv", str(env), "create"])
    return host


def options_of(host: FakeHost, ident: str) -> str:
    text = Path(f"{host.root}{BLS}/{ident}.conf").read_text()
    assert text.startswith(f"title RHEL ({ident})\nlinux /vmlinuz-{ident}\n")
    assert text.count("options ") == 1
    return text.partition("options ")[2].splitlines()[0]


def test_every_bls_entry_but_the_rescue_one_gets_the_arguments(make_host: MakeHost) -> None:
    """grubby --update-kernel=DEFAULT is lost at the next kernel; its --args folds two page sizes (R88, R89)."""
    stale = 'root=/dev/vda1 hugepagesz=2M hugepages=40 amd_iommu=pt b="p  q" -- init'
    host = bls_host(make_host, {"a-2-1": stale, "a-1-1": "root=/dev/vda1", "a-0-rescue": "root=/dev/vda1"})
    host.put(KERNEL_CMDLINE, "root=/dev/vda1 hugepages=40\n")
    bootloader.put(host, "hugepages", PAGES | {"hugepages": (*RUN, "hugepagesz=2M", "hugepages=8")})
    bootloader.put(host, "kernel_args", {"iommu": ("iommu=pt",)})
    added = "hugepagesz=1G hugepages=4 hugepagesz=2M hugepages=8 iommu=pt"
    assert options_of(host, "a-2-1") == f'root=/dev/vda1 amd_iommu=pt b="p  q" {added} -- init'
    assert options_of(host, "a-1-1") == f"root=/dev/vda1 {added}"
    assert options_of(host, "a-0-rescue") == "root=/dev/vda1"
    assert Path(host.root + KERNEL_CMDLINE).read_text() == f"root=/dev/vda1 {added}\n"
    assert bootloader.read(host).later == ("root=/dev/vda1", "amd_iommu=pt", "b=p  q", *added.split())


@pytest.mark.parametrize("linked", [False, True], ids=["BIOS", "UEFI, where it is a link"])
def test_kernelopts_of_rhel_8_is_written_by_grub_editenv(make_host: MakeHost, linked: bool) -> None:
    host = bls_host(make_host, {"a-1-1": "$kernelopts hugepages=9 $tuned_params", "a-0-rescue": "$kernelopts"})
    env = Path(f"{host.root}/boot/grub2/grubenv")
    if linked:
        real = Path(f"{host.root}/boot/efi/EFI/redhat/grubenv")
        real.parent.mkdir(parents=True)
        env.rename(real)
        env.symlink_to("../efi/EFI/redhat/grubenv")
    grub2_editenv(["", str(env), "set", r"kernelopts=root=/dev/vda1 hugepages=40 a=C:\b", "saved_entry=a-1-1"])
    noted: list[tuple[str, str]] = []
    keeping = host.keeping(lambda path, before, after: noted.append((path, before.kind)))
    bootloader.put(keeping, "hugepages", PAGES)
    listed = grub2_editenv(["", str(env), "list"]).splitlines()
    assert r"kernelopts=root=/dev/vda1 a=C:\b hugepagesz=1G hugepages=4" in listed
    assert "saved_entry=a-1-1" in listed
    assert bootloader.read(host).later == ("root=/dev/vda1", "a=C:b", *RUN)  # GRUB takes the backslash away
    assert options_of(host, "a-1-1") == "$kernelopts $tuned_params"
    path = "/boot/efi/EFI/redhat/grubenv" if linked else "/boot/grub2/grubenv"
    assert (path, "file") in noted  # what grub-editenv is about to change is kept first
    assert env.stat().st_size == 1024


@pytest.mark.parametrize(
    "options", ["root=/dev/vda1 iommu=soft", "$kernelopts $tuned_params"], ids=["RHEL 9", "RHEL 8"]
)
def test_bls_from_fail_to_pending_and_back_to_the_same_bytes(
    make_host: MakeHost, journal: Journal, options: str
) -> None:
    """RHEL has no grub.d to drop a file into: every file that is rewritten is kept, and put back."""
    host = bls_host(make_host, {"a-2-1": options, "a-1-1": options, "a-0-rescue": "root=/dev/vda1"})
    grub2_editenv(["", f"{host.root}/boot/grub2/grubenv", "set", "kernelopts=root=/dev/vda1 iommu=soft"])
    host.put(KERNEL_CMDLINE, "root=/dev/vda1   iommu=soft\n")
    before = host.snapshot()
    want = {"kernel_args": ["iommu=pt", "console=ttyS0"]}
    assert set(statuses(host, want).values()) == {"fail"}
    assert apply(host, want, journal).failures == []
    assert set(statuses(host, want).values()) == {"pending-reboot"}
    performer = Performer(host, registry.load(["kernel_args"]), journal, lambda line: None)
    taking_back.revert(performer)
    assert performer.failures == []
    assert host.snapshot() == before
