"""Which entry will boot, and with which arguments: read as GRUB reads it, or unknown."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
from conftest import MakeHost

from hostprep import bootloader
from hostprep.bootloader import menu, words
from hostprep.bootloader.reading import BLS, LOADER_INFO, bls_entries
from hostprep.errors import ChangeFailed, HostError
from hostprep.model import Unknown

MACHINE = {"/proc/2/comm": "kthreadd\n", "/proc/cmdline": "BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro old\n"}

# As grub-mkconfig of Debian 12 and Ubuntu 22.04 write it: entry, submenu with recovery entries, Xen, firmware.
DEBIAN = """\
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${{next_entry}}" ] ; then
   set default="${{next_entry}}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="{default}"
fi
export menuentry_id_option
function gfxmode {{
	set gfxpayload="${{1}}"
	if [ "${{1}}" = "keep" ]; then
		set vt_handoff=vt.handoff=7
	else
		set vt_handoff=
	fi
}}
set tuned_params="isolcpus=2-3 nohz=on"
set for_submenus="exported=yes"
export for_submenus
menuentry 'Ubuntu' --class ubuntu --class gnu-linux $menuentry_id_option 'gnulinux-simple-5b0c' {{
	load_video
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	linux	/boot/vmlinuz-6.1 root=UUID=5b0c ro  quiet splash first $vt_handoff $tuned_params ${{for_submenus}}
	initrd	/boot/initrd.img-6.1
}}
submenu 'Advanced options for Ubuntu' $menuentry_id_option 'gnulinux-advanced-5b0c' {{
	menuentry 'Ubuntu, with Linux 6.1' --class ubuntu $menuentry_id_option 'gnulinux-6.1-advanced-5b0c' {{
		linux	/boot/vmlinuz-6.1 root=UUID=5b0c ro sub $tuned_params $for_submenus
	}}
	menuentry 'Ubuntu, with Linux 6.1 (recovery mode)' $menuentry_id_option 'gnulinux-6.1-recovery-5b0c' {{
		linux	/boot/vmlinuz-6.1 root=UUID=5b0c ro single
	}}
}}
menuentry 'Ubuntu GNU/Linux, with Xen hypervisor' --class xen $menuentry_id_option 'xen-gnulinux-simple-5b0c' {{
	multiboot2	/boot/xen-4.17.gz placeholder
	module2	/boot/vmlinuz-6.1 placeholder root=UUID=5b0c ro xen
}}
menuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {{ fwsetup }}
menuentry "A > B's" --unrestricted {{
	linux16 /boot/memtest last -- init=argument
}}
"""


def grub(make_host: MakeHost, default: str = "0", env: str = "", **files: str) -> bootloader.Boot:
    block = f"# GRUB Environment Block\n{env}\n{'#' * 40}"
    host = make_host(
        MACHINE | {"/boot/grub/grub.cfg": DEBIAN.format(default=default), "/boot/grub/grubenv": block} | files
    )
    return bootloader.read(host)


FIRST = "root=UUID=5b0c ro quiet splash first vt.handoff=7 isolcpus=2-3 nohz=on exported=yes"
SUB = "root=UUID=5b0c ro sub exported=yes"  # tuned#738: what is not exported is not there in a submenu
RECOVERY = "root=UUID=5b0c ro single"


@pytest.mark.parametrize(
    ("default", "env", "expected"),
    [
        ("0", "", FIRST),
        ("", "", FIRST),
        ("1", "", SUB),
        ("1>0", "", SUB),
        ("1>1", "", RECOVERY),
        ("gnulinux-simple-5b0c", "", FIRST),
        ("gnulinux-advanced-5b0c>gnulinux-6.1-recovery-5b0c", "", RECOVERY),
        ("Advanced options for Ubuntu>Ubuntu, with Linux 6.1", "", SUB),
        ("Advanced options for Ubuntu>no such entry", "", SUB),
        pytest.param("Ubuntu, with Linux 6.1", "", FIRST, id="a title of a submenu is not found from above"),
        pytest.param("no such entry", "", FIRST, id="missing: the first"),
        pytest.param("99", "", FIRST, id="too large a number: the first"),
        pytest.param("A >> B's", "", "last", id=">> is a > of the title"),
        ("4", "", "last"),
        pytest.param("${saved_entry}", "saved_entry=gnulinux-advanced-5b0c>1", RECOVERY, id="GRUB_DEFAULT=saved"),
        pytest.param("${saved_entry}", "", FIRST, id="saved, but nothing was"),
        pytest.param("0", "saved_entry=4", FIRST, id="saved_entry counts only where grub.cfg asks for it"),
        pytest.param("0", "saved_entry=0\nnext_entry=1>1", RECOVERY, id="grub-reboot"),
        pytest.param("0", "next_entry=", FIRST, id="grub-reboot was used up"),
    ],
)
def test_the_entry_that_grub_will_start(make_host: MakeHost, default: str, env: str, expected: str) -> None:
    boot = grub(make_host, default, env)
    assert boot.later == tuple(expected.split())
    assert boot.loader == "grub"


@pytest.mark.parametrize(("default", "title"), [("2", "Xen hypervisor"), ("uefi-firmware", "UEFI Firmware Settings")])
def test_an_entry_that_starts_no_linux_is_unknown(make_host: MakeHost, default: str, title: str) -> None:
    """R92: the arguments of a Xen dom0 are not the kernel's alone."""
    boot = grub(make_host, default)
    assert isinstance(boot.later, Unknown)
    assert title in boot.later.reason
    assert boot.loader == ""


def test_grub_reboot_counts_only_where_grub_cfg_asks_for_it(make_host: MakeHost) -> None:
    script = "load_env\nset default=0\nmenuentry 'a' {\n linux /v a\n}\nmenuentry 'b' {\n linux /v b\n}\n"
    files = {"/boot/grub/grub.cfg": script, "/boot/grub/grubenv": "# GRUB Environment Block\nnext_entry=1\n"}
    assert bootloader.read(make_host(MACHINE | files)).later == ("a",)


def test_custom_cfg_of_the_administrator_counts(make_host: MakeHost) -> None:
    custom = "set default=mine\nmenuentry 'Mine' --id mine {\n linux /vmlinuz mine\n}\n"
    included = DEBIAN.format(default="0") + "if [ -f $prefix/custom.cfg ]; then\n  source $prefix/custom.cfg\nfi\n"
    files = {"/boot/grub/custom.cfg": custom, "/boot/grub/grub.cfg": included}
    assert bootloader.read(make_host(MACHINE | files)).later == ("mine",)


def test_branches_that_differ_are_not_guessed(make_host: MakeHost) -> None:
    entry = "menuentry 'x' {\nif a; then\nlinux /v one\nelse\nlinux /v two\nfi\n}\n"
    assert isinstance(bootloader.read(make_host(MACHINE | {"/boot/grub/grub.cfg": entry})).later, Unknown)


# 08_fallback_counting of RHEL 8 and 9, and 10_reset_boot_success after it
FALLBACK = """\
set default=0
if [ -n "${boot_counter}" -a "${boot_success}" = "0" ]; then
  # if countdown has ended, choose to boot rollback deployment
  if  [ "${boot_counter}" = "0" -o "${boot_counter}" = "-1" ]; then
    set default=1
    set boot_counter=-1
  else
    decrement boot_counter
  fi
  save_env boot_counter
fi
menuentry 'newest' {
	linux /vmlinuz newest
}
menuentry 'rollback' {
	linux /vmlinuz rollback
}
if [ "${boot_success}" = "1" ] ; then
  set boot_indeterminate=0
elif [ "${boot_indeterminate}" = "1" ]; then
  set boot_indeterminate=2
fi
set boot_success=0
save_env boot_success boot_indeterminate
"""

# 00_header and 10_linux of Ubuntu's cloud images, which set GRUB_FORCE_PARTUUID
PARTUUID = """\
if [ "${initrdfail}" = 2 ]; then
   set initrdfail=
elif [ "${initrdfail}" = 1 ]; then
   set next_entry="${prev_entry}"
   set prev_entry=
   save_env prev_entry
   if [ "${next_entry}" ]; then
      set initrdfail=2
   fi
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="0"
fi
function initrdfail {
    if [ -n "${have_grubenv}" ]; then if [ -n "${partuuid}" ]; then
      if [ -z "${initrdfail}" ]; then
        set initrdfail=1
        if [ -n "${boot_once}" ]; then
          set prev_entry="${default}"
          save_env prev_entry
        fi
      fi
      save_env initrdfail
    fi; fi
}
menuentry 'Ubuntu' {
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	if [ "${initrdfail}" = 1 ]; then
		linux	/boot/vmlinuz root=PARTUUID=1 ro with-initrd
		initrd	/boot/initrd.img
	else
		linux	/boot/vmlinuz root=PARTUUID=1 ro panic=-1
	fi
	initrdfail
}
menuentry 'Once' {
	linux /vmlinuz once
}
"""


@pytest.mark.parametrize(
    ("script", "env", "expected"),
    [
        pytest.param(FALLBACK, "", "newest", id="nothing is counted"),
        pytest.param(FALLBACK, "boot_success=0", "newest", id="not counted, though not yet a success"),
        pytest.param(FALLBACK, "boot_counter=2\nboot_success=0", "newest", id="attempts are left"),
        pytest.param(FALLBACK, "boot_counter=0\nboot_success=0", "rollback", id="none is left"),
        pytest.param(FALLBACK, "boot_counter=-1\nboot_success=0", "rollback", id="it has fallen back before"),
        pytest.param(FALLBACK, "boot_counter=0\nboot_success=1", "newest", id="it was a success"),
        pytest.param(PARTUUID, "", "root=PARTUUID=1 ro panic=-1", id="first without an initrd"),
        pytest.param(PARTUUID, "initrdfail=1", "root=PARTUUID=1 ro with-initrd", id="that failed"),
        pytest.param(PARTUUID, "initrdfail=2", "root=PARTUUID=1 ro panic=-1", id="the entry of once failed"),
        pytest.param(PARTUUID, "next_entry=1", "once", id="grub-reboot"),
        pytest.param(PARTUUID, "next_entry=", "root=PARTUUID=1 ro panic=-1", id="grub-reboot was used up"),
    ],
)
def test_branches_that_grubenv_rules_out_do_not_count(
    make_host: MakeHost, script: str, env: str, expected: str
) -> None:
    files = {"/boot/grub/grub.cfg": script, "/boot/grub/grubenv": f"# GRUB Environment Block\n{env}\n####"}
    assert bootloader.read(make_host(MACHINE | files)).later == tuple(expected.split())


@pytest.mark.parametrize(
    ("script", "known"),
    [
        ("set default=0\nif CONDITION; then\n  set default=1\nfi\n", False),
        ("if CONDITION; then\n  set default=1\nelse\n  set default=0\nfi\n", False),  # GRUB_DEFAULT_BUTTON
        ("if CONDITION; then\n  set default=0\nelse\n  set default=0\nfi\n", True),
        ("set default=1\nif CONDITION; then\n  set timeout=0\nfi\nset default=0\n", True),
    ],
)
@pytest.mark.parametrize("condition", ["cmostest $GRUB_BUTTON_CMOS_ADDRESS", '[ "$grub_platform" = "efi" ]'])
def test_a_default_that_only_grub_can_tell_is_unknown(
    make_host: MakeHost, condition: str, script: str, known: bool
) -> None:
    entries = "menuentry 'a' {\n linux /v a\n}\nmenuentry 'b' {\n linux /v b\n}\n"
    host = make_host(MACHINE | {"/boot/grub/grub.cfg": script.replace("CONDITION", condition) + entries})
    later = bootloader.read(host).later
    assert later == ("a",) if known else isinstance(later, Unknown) and "only GRUB can tell" in later.reason


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ('[ "${counter}" = 2 ]', "yes"),
        ('[ "${counter}" != 2 ]', "no"),
        ('[ -z "${unset}" ]', "yes"),
        ('[ -n "${unset}" -a "$grub_platform" = efi ]', "no"),
        ('[ -n "${counter}" -o "$grub_platform" = efi ]', "yes"),
        ('[ -n "${counter}" -a "$grub_platform" = efi ]', "yes no"),
        ('[ -n "${counter}" -a -z "${unset}" -o "${unset}" = 1 ]', "yes no"),
        ('[ "$grub_platform" = efi ]', "yes no"),
        ("[ -f $prefix/custom.cfg ]", "yes no"),
        ("loadfont unicode", "yes no"),
        ("keystatus --shift", "yes no"),
    ],
)
def test_only_what_grubenv_alone_decides_is_decided(condition: str, kept: str) -> None:
    script = f"save_env counter unset\nif {condition} ; then\n  yes\nelse\n  no\nfi\nend"
    lines = menu.without_dead_branches(script, {"counter": "2", "grub_platform": "pc"}).split()
    assert lines == ["save_env", "counter", "unset", *kept.split(), "end"]


@pytest.mark.parametrize(
    "odd",
    [
        'if [ "$a" ]\nthen\nx\nelse\ny\nfi',  # GRUB takes it; grub-mkconfig does not write it
        'if [ "$a" ]; then\nx',
        "fi",
        "else\nx\nfi",
    ],
)
def test_a_script_that_is_written_in_another_way_keeps_every_branch(odd: str) -> None:
    script = f"save_env once\nif [ $once ]; then\ndead\n{odd}\nfi\nend"
    assert menu.without_dead_branches(script, {}) == script


BLSCFG = """\
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
else
   set default="${saved_entry}"
fi
if [ -z "${kernelopts}" ]; then
  set kernelopts="root=/dev/vda1 ro fallback"
fi
insmod blscfg
blscfg
menuentry 'Custom' --id custom {
	linux /vmlinuz custom
}
"""


def bls_host_files(options: Mapping[str, str], env: str = "", script: str = BLSCFG) -> dict[str, str]:
    """A machine with BLS entries, by id: the options of each."""
    files = MACHINE | {"/boot/grub2/grub.cfg": script, "/boot/grub2/grubenv": f"# GRUB Environment Block\n{env}\n##"}
    for ident, line in options.items():
        files[f"{BLS}/{ident}.conf"] = f"title RHEL ({ident})\nlinux /vmlinuz-{ident}\noptions {line}\nid x\n"
    return files


KERNELS = {
    "0a1b-5.14.0-427.el9.x86_64": "root=/dev/vda1 ro older",
    "0a1b-5.14.0-427.13.1.el9.x86_64": "root=/dev/vda1 ro newest $tuned_params",
    "0a1b-5.14.0-70.el9.x86_64": "root=/dev/vda1 ro oldest",
    "0a1b-0-rescue": "root=/dev/vda1 ro rescue",
}


def test_bls_entries_stand_newest_first_by_the_rules_of_rpm(make_host: MakeHost) -> None:
    """By those of dpkg, 427.el9 would be newer than 427.13.1.el9."""
    ids = [entry.id.removeprefix("0a1b-") for entry in bls_entries(make_host(bls_host_files(KERNELS)))]
    assert ids == ["5.14.0-427.13.1.el9.x86_64", "5.14.0-427.el9.x86_64", "5.14.0-70.el9.x86_64", "0-rescue"]


@pytest.mark.parametrize(
    ("env", "script", "expected"),
    [
        ("", BLSCFG, "newest"),
        ("saved_entry=0a1b-5.14.0-427.el9.x86_64", BLSCFG, "older"),
        ("saved_entry=2", BLSCFG, "oldest"),
        ("saved_entry=RHEL (0a1b-0-rescue)", BLSCFG, "rescue"),
        ("saved_entry=custom", BLSCFG, "custom"),
        ("saved_entry=gone", BLSCFG, "newest"),
        ("saved_entry=1\nnext_entry=2", BLSCFG, "oldest"),
        pytest.param("saved_entry=2", BLSCFG.replace("${saved_entry}", "0"), "newest", id="grub.cfg asks for no saved"),
        ("tuned_params=isolcpus=1 nohz=on", BLSCFG, "newest isolcpus=1 nohz=on"),
    ],
)
def test_the_bls_entry_that_grub_will_start(make_host: MakeHost, env: str, script: str, expected: str) -> None:
    boot = bootloader.read(make_host(bls_host_files(KERNELS, env, script)))
    assert isinstance(boot.later, tuple)
    assert " ".join(boot.later).removeprefix("root=/dev/vda1 ro ") == expected
    assert boot.loader == "bls"


@pytest.mark.parametrize(
    ("env", "expected"),
    [("kernelopts=root=/dev/vda1 ro of=grubenv", "of=grubenv"), ("", "fallback")],
)
def test_kernelopts_of_rhel_8(make_host: MakeHost, env: str, expected: str) -> None:
    boot = bootloader.read(make_host(bls_host_files({"a-1-1": "$kernelopts $tuned_params"}, env)))
    assert boot.later == ("root=/dev/vda1", "ro", expected)


def test_grub_cfg_of_rhel_8_lies_on_the_efi_partition(make_host: MakeHost) -> None:
    files = bls_host_files({"a-1-1": "root=/dev/vda1 ro efi"})
    files["/boot/efi/EFI/redhat/grub.cfg"] = files.pop("/boot/grub2/grub.cfg")
    assert bootloader.read(make_host(files)).later == ("root=/dev/vda1", "ro", "efi")


TWO = "menuentry 'x' {\n\tlinux /v two\n}\n"
STUB = "search.fs_uuid 5b0c root\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n"
EFI_CFG = "/boot/efi/EFI/debian/grub.cfg"


@pytest.mark.parametrize(
    ("files", "later"),
    [
        ({"/boot/grub/grub.cfg": TWO, "/boot/grub2/grub.cfg": TWO}, None),
        ({"/boot/grub/grub.cfg": TWO, EFI_CFG: TWO}, None),
        ({"/boot/grub2/grub.cfg": TWO, EFI_CFG: "blscfg\n", f"{BLS}/a-1-1.conf": "options efi\n"}, None),
        ({EFI_CFG: TWO, EFI_CFG.replace("debian", "other"): TWO}, None),
        ({"/boot/grub/grub.cfg": TWO, EFI_CFG: STUB}, ("two",)),
        ({"/boot/grub/grub.cfg": TWO, "/boot/grub2/grub.cfg": "-> ../grub/grub.cfg"}, ("two",)),
        ({EFI_CFG: TWO, "/boot/grub2/grub.cfg": "-> ../efi/EFI/debian/grub.cfg"}, ("two",)),
        ({EFI_CFG: TWO, "/boot/grub2": "-> efi/EFI/debian"}, ("two",)),
    ],
    ids=["both", "EFI", "EFI with BLS", "two on EFI", "a stub", "a link", "a link to EFI", "a linked folder"],
)
def test_which_of_two_grub_cfg_is_read_is_not_guessed(
    make_host: MakeHost, files: dict[str, str], later: tuple[str, ...] | None
) -> None:
    host = make_host(MACHINE | files)
    boot = bootloader.read(host)
    if later:
        assert boot.later == later
        return
    assert isinstance(boot.later, Unknown)
    assert boot.later.reason.startswith("two grub.cfg (/boot/")
    assert "cannot tell which one is read" in boot.later.reason
    with pytest.raises(ChangeFailed, match=r"two grub\.cfg"):
        bootloader.put(host, "someone", {"quiet": ("quiet",)})


SYSTEMD_BOOT = {LOADER_INFO: "\6\0\0\0" + "".join(f"{c}\0" for c in "systemd-boot 252\0")}
CFG = {"/boot/grub/grub.cfg": DEBIAN.format(default="0")}


@pytest.mark.parametrize(
    ("files", "why"),
    [
        pytest.param({}, "no GRUB configuration", id="nothing"),
        pytest.param({"/boot/loader/loader.conf": ""}, "systemd-boot", id="systemd-boot"),
        pytest.param(CFG | SYSTEMD_BOOT, "systemd-boot 252", id="systemd-boot, and a grub.cfg left over"),
        pytest.param(CFG | {"/run/systemd/container": "lxc"}, "container (lxc)", id="lxc"),
        pytest.param({"/proc/2/comm": "bash", "/.dockerenv": ""}, "container (docker)", id="docker"),
        pytest.param(CFG | {"/proc/cmdline": "root=/dev/vda ro"}, "not started by GRUB", id="PXE or hypervisor"),
        pytest.param({"/boot/grub/grub.cfg": ""}, "no menu entry", id="tuned 36e0892: an empty grub.cfg"),
        pytest.param({"/boot/grub/grub.cfg": "\0\1rubbish {{{\n}"}, "no menu entry", id="rubbish"),
        pytest.param({"/boot/grub/grub.cfg": "blscfg\n"}, "no menu entry", id="BLS without entries"),
    ],
)
def test_what_starts_this_machine_is_unknown(make_host: MakeHost, files: Mapping[str, str], why: str) -> None:
    host = make_host(MACHINE | dict(files))
    boot = bootloader.read(host)
    assert isinstance(boot.later, Unknown)
    assert why in boot.later.reason
    assert (boot.loader, boot.why) == ("", boot.later.reason)
    before = host.snapshot()
    with pytest.raises(ChangeFailed, match=re.escape(why)):
        bootloader.put(host, "someone", {"quiet": ("quiet",)})
    assert host.snapshot() == before


def test_an_unreadable_grub_cfg_is_unknown_and_says_why(make_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian 12 has it 0600: without root nobody can say what boots next."""
    host = make_host(MACHINE | CFG)
    read = host.read_bytes

    def refuse(path: str) -> bytes | None:
        if path == "/boot/grub/grub.cfg":
            raise HostError(f"{path}: needs root")
        return read(path)

    monkeypatch.setattr(host, "read_bytes", refuse)
    assert bootloader.read(host).later == Unknown("/boot/grub/grub.cfg: needs root")


@pytest.mark.parametrize(
    ("cmdline", "expected"),
    [
        ("a  b\tc\n", ["a", "b", "c"]),
        ('dyndbg="file a.c +p" b', ["dyndbg=file a.c +p", "b"]),
        ('"dyndbg=file a.c +p" b', ["dyndbg=file a.c +p", "b"]),
        ('open="to the end', ["open=to the end"]),
        ("a -- b c", ["a"]),
        ("a --b", ["a", "--b"]),
    ],
)
def test_words_as_the_kernel_splits_them(cmdline: str, expected: list[str]) -> None:
    assert list(words.split(cmdline)) == expected


@pytest.mark.parametrize(
    ("cmdline", "without", "run", "expected"),
    [
        pytest.param("a amd_iommu=pt", ["iommu"], ["iommu=pt"], "a amd_iommu=pt iommu=pt", id="R94"),
        pytest.param("hugepages=40 b", ["hugepages=4"], [], "hugepages=40 b", id="grubby: hugepages=4 took 40 away"),
        pytest.param("nohz_full=1 nohz=on", ["nohz"], [], "nohz_full=1", id="nohz and nohz_full"),
        pytest.param("intel-iommu=off b", ["intel_iommu"], ["intel_iommu=on"], "b intel_iommu=on", id="- is _"),
        pytest.param("console=tty0 console=ttyS0", ["console=tty0"], [], "console=ttyS0", id="one of the repeated"),
        pytest.param('a="x y" b="p  q" c', ["a"], [], 'b="p  q" c', id="quotes of others stay"),
        pytest.param("a -- init b", [], ["c"], "a c -- init b", id="before what is init's"),
        pytest.param("$kernelopts a", ["a"], ["b"], "$kernelopts b", id="variables stay"),
    ],
)
def test_rewriting_a_command_line(cmdline: str, without: list[str], run: list[str], expected: str) -> None:
    assert words.rewrite(cmdline, without, run) == expected


@pytest.mark.parametrize(
    "word", ["a=b", "memmap=2G$4G", 'a="b"', r"a\b", "dyndbg=file a +p; file b", "a={x}", "#no", "acpi_osi=!*", "a='b"]
)
def test_a_quoted_word_comes_back_whole_from_grub_script(word: str) -> None:
    assert menu.tokens(f"linux /vmlinuz {menu.quote(word)} end", {"4G": "wrong"}) == ["linux", "/vmlinuz", word, "end"]


def test_variables_that_grub_keeps_outside_of_grubenv_cannot_be_read(make_host: MakeHost) -> None:
    """openSUSE on btrfs: saved_entry of the file may be an old one."""
    script = DEBIAN.format(default="${saved_entry}")
    block = "# GRUB Environment Block\nenv_block=512+1\nsaved_entry=0\n"
    boot = bootloader.read(make_host(MACHINE | {"/boot/grub/grub.cfg": script, "/boot/grub/grubenv": block}))
    assert isinstance(boot.later, Unknown)
    assert "raw blocks" in boot.later.reason
