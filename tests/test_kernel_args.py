"""Kernel arguments end to end: found, planned, written, believed only when read back, and taken back."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeHost, apply, findings, statuses
from fakes import CMDLINE, GIB_IN_KIB, FakeHost, debian, grub_cfg, meminfo, mkconfig

from hostprep import registry
from hostprep import revert as taking_back
from hostprep.errors import HostError
from hostprep.journal import Journal
from hostprep.perform import Performer

GRUB_CFG = "/boot/grub/grub.cfg"
DROPIN = "/etc/default/grub.d/zz-hostprep-kernel_args.cfg"
IOMMU = {"kernel_args": ["intel_iommu=on", "iommu=pt"]}


def machine(make_host: MakeHost, cmdline: str = "", defaults: str = "", memory_kib: int = 32 * GIB_IN_KIB) -> FakeHost:
    """A Debian whose grub-mkconfig works; `cmdline` is what it was booted with and boots with."""
    files = debian(memory_kib, cmdline or CMDLINE)
    if defaults:
        files["/etc/default/grub"] = defaults
    host = make_host(files)
    host.commands["grub-mkconfig"] = mkconfig(host)
    return host


def entry(host: FakeHost) -> str:
    """The arguments of the entry that will boot."""
    text = Path(host.root + GRUB_CFG).read_text()
    return text.partition("\tlinux\t/boot/vmlinuz-6.1.0 ")[2].splitlines()[0]


def later(host: FakeHost) -> list[str]:
    """The same, without those that GRUB's scripts put first."""
    return entry(host).removeprefix("root=UUID=5b0c ro").split()


def boot(host: FakeHost) -> None:
    host.put("/proc/cmdline", f"BOOT_IMAGE=/boot/vmlinuz-6.1.0 {entry(host)}\n")


def times(host: FakeHost) -> dict[str, int]:
    paths = (Path(folder) / name for folder, _, names in os.walk(host.root) for name in names)
    return {str(path): path.lstat().st_mtime_ns for path in paths}


def revert(host: FakeHost, journal: Journal) -> None:
    performer = Performer(host, registry.load(["kernel_args"]), journal, lambda line: None)
    taking_back.revert(performer)
    assert performer.failures == []


def test_from_fail_to_pass_and_back_to_the_same_bytes(make_host: MakeHost, journal: Journal) -> None:
    host = machine(make_host)
    keys = ["kernel_args/intel_iommu", "kernel_args/iommu"]
    found = host.snapshot()
    assert statuses(host, IOMMU) == dict.fromkeys(keys, "fail")

    assert apply(host, IOMMU, journal).failures == []
    assert statuses(host, IOMMU) == dict.fromkeys(keys, "pending-reboot")
    assert later(host) == ["console=ttyS0", "quiet", "intel_iommu=on", "iommu=pt"]

    boot(host)
    assert statuses(host, IOMMU) == dict.fromkeys(keys, "pass")

    revert(host, journal)
    after = {path: state for path, state in host.snapshot().items() if not path.startswith("/proc/")}
    assert after == {path: state for path, state in found.items() if not path.startswith("/proc/")}
    assert statuses(host, IOMMU) == dict.fromkeys(keys, "volatile")


@pytest.mark.parametrize("rebooted", [False, True])
def test_a_second_apply_writes_nothing_and_runs_nothing(make_host: MakeHost, journal: Journal, rebooted: bool) -> None:
    """R93, sriov-network-operator#1016: a setting that is there already must not ask for a reboot again."""
    host = machine(make_host)
    apply(host, IOMMU, journal)
    if rebooted:
        boot(host)
    host.ran.clear()
    before = times(host)
    assert apply(host, IOMMU, journal).failures == []
    assert host.ran == []
    assert times(host) == before


@pytest.mark.parametrize(
    ("cmdline", "want", "expected"),
    [
        pytest.param("amd_iommu=pt", ["iommu=pt"], {"iommu": "fail"}, id="R94: iommu=pt in amd_iommu=pt"),
        pytest.param("hugepages=40", ["hugepages=4"], {"hugepages": "fail"}, id="R94: hugepages=4 in hugepages=40"),
        pytest.param("nohz_full=1", ["nohz"], {"nohz": "fail"}, id="R94: nohz in nohz_full"),
        pytest.param("intel_iommu=on intel_iommu=off", ["intel_iommu=on"], {"intel_iommu": "fail"}, id="both values"),
        pytest.param(
            "intel-iommu=on intel_iommu=off", ["intel_iommu=on"], {"intel_iommu": "fail"}, id="both spellings"
        ),
        pytest.param("intel-iommu=on", ["intel_iommu=on"], {"intel_iommu": "pass"}, id="to the kernel - is _"),
        pytest.param("cloud_init=disabled", ["cloud-init=disabled"], {"cloud-init": "fail"}, id="to others it is not"),
        pytest.param("console=tty0 console=ttyS0", ["console=ttyS0"], {"console=ttyS0": "pass"}, id="one of repeated"),
        pytest.param("console=tty0", ["console=ttyS0"], {"console=ttyS0": "fail"}, id="another of the repeated"),
        pytest.param("nosmt=force", ["nosmt"], {"nosmt": "fail"}, id="with a value and without"),
        pytest.param(
            "hugepagesz=2M hugepages=4 hugepagesz=1G hugepages=2",
            ["hugepagesz=2M", "hugepages=2", "hugepagesz=1G", "hugepages=4"],
            {"hugepages": "fail"},
            id="tuned verify: 2M:4,1G:2 is not 2M:2,1G:4",
        ),
        pytest.param(
            "a b=1 console=tty0",
            {"unset": ["c", "console=tty1"]},
            {"c": "pass", "console=tty1": "pass"},
            id="unset, not there",
        ),
        pytest.param("nomodeset", {"unset": ["nomodeset"]}, {"nomodeset": "fail"}, id="unset"),
        pytest.param("no-x=1", {"unset": ["no_x"]}, {"no_x": "fail"}, id="unset, the other spelling"),
        pytest.param("console=tty0 console=tty1", {"unset": ["console"]}, {"console": "fail"}, id="unset all of them"),
        pytest.param("hugepagesz=1G", {"unset": ["hugepagesz"]}, {"hugepages": "fail"}, id="unset huge pages"),
    ],
)
def test_arguments_are_words_and_not_text(
    make_host: MakeHost, journal: Journal, cmdline: str, want: Any, expected: dict[str, str]
) -> None:
    """What fails is put right by apply, and then nothing of it fails any more."""
    line = f"root=UUID=5b0c ro {cmdline}"
    host = machine(make_host, line, f'GRUB_CMDLINE_LINUX="{cmdline}"\n')
    named = {f"kernel_args/{key}": status for key, status in expected.items()}
    assert statuses(host, {"kernel_args": want}) == named
    assert apply(host, {"kernel_args": want}, journal).failures == []
    fixed = {key: "pending-reboot" if status == "fail" else status for key, status in named.items()}
    assert statuses(host, {"kernel_args": want}) == fixed
    boot(host)
    assert set(statuses(host, {"kernel_args": want}).values()) == {"pass"}


def test_a_name_is_written_as_the_profile_spells_it(make_host: MakeHost, journal: Journal) -> None:
    """cloud-init looks for cloud-init=disabled, letter by letter."""
    host = machine(make_host)
    apply(host, {"kernel_args": ["cloud-init=disabled"]}, journal)
    assert "cloud-init=disabled" in later(host)


def test_others_that_are_repeated_stay(make_host: MakeHost, journal: Journal) -> None:
    host = machine(make_host, defaults='GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0,115200 quiet"\n')
    host.put(GRUB_CFG, grub_cfg("root=UUID=5b0c ro console=tty0 console=ttyS0,115200 quiet"))
    want = {"kernel_args": {"set": ["console=ttyS1"], "unset": ["console=tty0"]}}
    assert apply(host, want, journal).failures == []
    assert later(host) == ["console=ttyS0,115200", "quiet", "console=ttyS1"]


def test_a_conflicting_set_of_huge_pages_is_taken_out(make_host: MakeHost, journal: Journal) -> None:
    """R61, R82: in GRUB_CMDLINE_LINUX it comes first, and the first wins."""
    stale = "hugepagesz=2M hugepages=512"
    host = machine(make_host, f"root=UUID=5b0c ro {stale}", f'GRUB_CMDLINE_LINUX="{stale}"\n')
    run = ["default_hugepagesz=1G", "hugepagesz=1G", "hugepages=8"]
    assert apply(host, {"kernel_args": run}, journal).failures == []
    assert later(host) == run


# -- when it goes wrong ---------------------------------------------------------------------------


def rubbish(host: FakeHost) -> Callable[[Sequence[str]], str]:
    def run(argv: Sequence[str]) -> str:
        host.put(argv[2], "\0\1\2 not a menu {{{\n")
        return "warning: something\n"

    return run


def silence(host: FakeHost) -> Callable[[Sequence[str]], str]:
    return lambda argv: ""


def firmware_only(host: FakeHost) -> Callable[[Sequence[str]], str]:
    """10_linux found no kernel, or is not executable: what is left is the firmware's own entry."""

    def run(argv: Sequence[str]) -> str:
        host.put(argv[2], "menuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' { fwsetup }\n")
        return ""

    return run


def half_done(host: FakeHost) -> Callable[[Sequence[str]], str]:
    def run(argv: Sequence[str]) -> str:
        host.put(argv[2], "menuentry 'half")
        raise HostError("grub-mkconfig: exit 1: No space left on device")

    return run


def deaf(host: FakeHost) -> Callable[[Sequence[str]], str]:
    """It exits 0 and writes a whole grub.cfg, without our arguments: a drop-in before ours is broken."""

    def run(argv: Sequence[str]) -> str:
        host.put(argv[2], grub_cfg("root=UUID=5b0c ro quiet"))
        return ""

    return run


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (HostError("grub-mkconfig: exit 1: /etc/default/grub: syntax error"), "syntax error"),
        (HostError("grub-mkconfig: no answer within 300 s"), "no answer within 300 s"),
        (HostError("grub-mkconfig: not installed"), "not installed"),
        (rubbish, "without a boot entry"),
        (silence, "without a boot entry"),
        (firmware_only, "without a boot entry"),
        (half_done, "No space left"),
        (deaf, "wanted on, but the next boot still brings not set"),
    ],
    ids=["fails", "hangs", "is not there", "prints rubbish", "writes nothing", "no kernel", "half done", "broken file"],
)
def test_a_grub_mkconfig_that_does_not_do_its_work_leaves_nothing_behind(
    make_host: MakeHost, journal: Journal, answer: Any, why: str
) -> None:
    """update-grub exits 0 on a broken drop-in: what counts is the generated entry, read back (LP#1895189)."""
    host = machine(make_host)
    host.commands["grub-mkconfig"] = answer if isinstance(answer, HostError) else answer(host)
    before, directories = host.snapshot(), host.directories()
    failures = apply(host, IOMMU, journal).failures
    assert len(failures) == 1
    assert why in failures[0].reason
    assert (host.snapshot(), host.directories()) == (before, directories)
    assert set(statuses(host, IOMMU).values()) == {"fail"}


def test_a_menu_without_a_kernel_is_no_way_to_take_an_argument_off(make_host: MakeHost, journal: Journal) -> None:
    """No entry has the argument any more: that is not what was wanted."""
    host = machine(make_host, "root=UUID=5b0c ro mem=4G", 'GRUB_CMDLINE_LINUX="mem=4G"\n')
    host.commands["grub-mkconfig"] = firmware_only(host)
    before, directories = host.snapshot(), host.directories()
    [failure] = apply(host, {"kernel_args": {"unset": ["mem"]}}, journal).failures
    assert "without a boot entry" in failure.reason
    assert (host.snapshot(), host.directories()) == (before, directories)


def test_a_file_sourced_after_ours_that_undoes_it_is_a_failure(make_host: MakeHost, journal: Journal) -> None:
    """R80: OpenNebula/addon-context-linux#100 and others assign GRUB_CMDLINE_LINUX_DEFAULT absolutely."""
    host = machine(make_host)
    host.put("/etc/default/grub.d/zzz-site.cfg", "GRUB_CMDLINE_LINUX_DEFAULT=quiet\n")
    before = host.snapshot()
    failures = apply(host, IOMMU, journal).failures
    assert [f.name for f in failures] == ["kernel_args/intel_iommu, kernel_args/iommu"]
    assert "Something else on this host decides it" in failures[0].hint
    assert host.snapshot() == before


def test_an_argument_that_grub_cannot_hand_on_is_a_failure(make_host: MakeHost, journal: Journal) -> None:
    """GRUB puts a backslash before quotes: the kernel would never get what was asked for."""
    host = machine(make_host)
    before = host.snapshot()
    assert "next boot still brings" in apply(host, {"kernel_args": ["a=it's"]}, journal).failures[0].reason
    assert host.snapshot() == before


def test_an_unknown_boot_loader_is_unknown_and_nothing_is_written(make_host: MakeHost, journal: Journal) -> None:
    """R91, R92; sriov-network-operator#1016 said done, and rebooted for ever."""
    host = machine(make_host)
    host.remove(GRUB_CFG)
    before = host.snapshot()
    found = findings(host, IOMMU | {"kernel_args": ["intel_iommu=on", "quiet"]})
    assert {f.status.value for f in found.values()} == {"unknown"}
    for finding in found.values():
        assert "no GRUB configuration was found" in finding.message
        assert "gets its kernel arguments from" in finding.fix
    assert apply(host, IOMMU, journal).failures == []
    assert host.snapshot() == before


# -- huge pages that starve the host --------------------------------------------------------------

K1 = 32_711_437  # KiB: 31.2 GiB, what a machine of 32 GB says
K8 = ["default_hugepagesz=1G", "hugepagesz=1G", "hugepages=32"]


@pytest.mark.parametrize(
    "want",
    [
        K8,
        pytest.param(["hugepagesz=1GB", "hugepages=32"], id="the kernel takes 1GB for 1G"),
        pytest.param(["hugepages=16384"], id="of the default size"),
        pytest.param(["hugepagesz=1G", "hugepages=0:16,1:16"], id="by node"),
    ],
)
def test_a_reservation_that_starves_the_host_is_refused(make_host: MakeHost, journal: Journal, want: list[str]) -> None:
    """K8 on the machine of K1; edgeservices#3: a host that does not boot."""
    host = machine(make_host, memory_kib=K1)
    before = host.snapshot()
    found = findings(host, {"kernel_args": [*want, "iommu=pt"]})["kernel_args/hugepages"]
    assert found.status.value == "fail"
    assert "32 GiB of huge pages would leave 0 B of 31.2 GiB to the host" in found.message
    assert found.fix == "Ask for fewer pages."
    apply(host, {"kernel_args": want}, journal)
    assert host.snapshot() == before


def test_the_default_size_of_the_machine_counts(make_host: MakeHost) -> None:
    """ARM with pages of 64 KiB: 512 MiB each, so 60 of them are 30 GiB."""
    host = machine(make_host, memory_kib=K1)
    host.put("/proc/meminfo", meminfo(K1, default_kib=524288))
    assert "30" in findings(host, {"kernel_args": ["hugepages=60"]})["kernel_args/hugepages"].message


def test_huge_pages_are_refused_where_the_memory_cannot_be_read(make_host: MakeHost, journal: Journal) -> None:
    host = machine(make_host)
    host.put("/proc/meminfo", "rubbish\n")
    before = host.snapshot()
    assert "cannot be read" in findings(host, {"kernel_args": K8})["kernel_args/hugepages"].message
    apply(host, {"kernel_args": K8}, journal)
    assert host.snapshot() == before


def test_a_reservation_that_fits_is_made(make_host: MakeHost, journal: Journal) -> None:
    host = machine(make_host, memory_kib=K1)
    want = {"kernel_args": [*K8[:2], "hugepages=24"]}
    assert apply(host, want, journal).failures == []
    assert statuses(host, want) == {"kernel_args/hugepages": "pending-reboot"}
