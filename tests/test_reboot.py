"""`apply --reboot`: once for everything that waits, when that makes the host ready, and never twice for one cause."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import MakeHost
from fakes import FakeHost, debian, mkconfig

import hostprep.__main__ as entry
from hostprep import commands, reboot, state
from hostprep.errors import CommandFailed
from hostprep.host.processes import Workload
from hostprep.journal import Journal

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="changing a host needs root")
REBOOT = "env SYSTEMCTL_SKIP_AUTO_KEXEC=1 SYSTEMCTL_SKIP_AUTO_SOFT_REBOOT=1 systemctl reboot"
NOBODY = '{"type":"a(ssssuu)","data":[[["sleep","NetworkManager","turns off","delay",0,7]]]}'
APT = '{"type":"a(ssssuu)","data":[[["shutdown","apt","upgrades packages","block",0,4711]]]}'
WORKLOAD = Workload("docker", "0123456789ab", "web", "nginx", 77)
PROFILE = {"kernel_args": ["iommu=pt"]}
Run = Callable[..., int]


@pytest.fixture
def host(make_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """A Debian machine that systemd runs, and nobody holds up."""
    host = make_host(debian() | {"/run/systemd/system/": ""}, {"busctl": NOBODY, "env": ""})
    host.commands["grub-mkconfig"] = mkconfig(host)
    monkeypatch.setattr(commands, "Host", lambda: host)
    return host


@pytest.fixture
def apply(tmp_path: Path) -> Run:
    """`hostprep apply --yes --reboot`, by this profile; its exit status."""

    def run(*words: str, profile: object = PROFILE, yes: Sequence[str] = ("--yes",)) -> int:
        path = tmp_path / "profile.yaml"
        path.write_text(json.dumps(profile))
        return entry.run(["apply", *yes, "--reboot", "--profile", str(path), *words])

    return run


def boots(host: FakeHost, *, brings: bool = True) -> None:
    """Another boot, which takes what the boot loader gives, or something that undoes it."""
    if brings:
        line = next(li for li in Path(host.root, "boot/grub/grub.cfg").read_text().splitlines() if "\tlinux" in li)
        host.put("/proc/cmdline", f"BOOT_IMAGE={line.split(None, 1)[1]}\n")
    count = len(host.ran)
    host.put("/proc/sys/kernel/random/boot_id", f"00000000-0000-0000-0000-{count:012d}\n")


def rebooted(host: FakeHost) -> int:
    """How often systemd was asked."""
    return host.ran.count(REBOOT)


def test_a_host_that_a_reboot_makes_ready_is_rebooted_once(
    host: FakeHost, apply: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert apply() == 4
    assert host.ran[-1] == REBOOT, "a kexec or a soft-reboot would skip boot loader and firmware"
    assert "rebooting, for kernel_args/iommu" in capsys.readouterr().err
    boots(host)
    assert apply() == 0
    assert "not rebooted: nothing waits for a reboot" in capsys.readouterr().err
    assert rebooted(host) == 1


def test_what_waits_already_is_rebooted_for_and_nothing_is_written_but_that(host: FakeHost, apply: Run) -> None:
    assert apply("--allow-disruption", "kernel_args") == 4
    before = {path: text for path, text in host.snapshot().items() if "journal" not in path}
    assert apply() == 4, "the reboot did not come: somebody called it off"
    assert rebooted(host) == 2
    assert {path: text for path, text in host.snapshot().items() if "journal" not in path} == before


def test_a_host_that_would_not_be_ready_after_it_is_not_rebooted(
    host: FakeHost, apply: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert apply(profile={**PROFILE, "hardware": {"cpus": 64}}) == 1
    assert "not rebooted: it would not make this host ready, because of hardware/cpus" in capsys.readouterr().err
    assert rebooted(host) == 0
    assert apply(profile={**PROFILE, "hardware": {"cpus": 64}, "advisory": ["hardware"]}) == 4
    assert rebooted(host) == 1


def test_a_host_on_which_a_change_failed_is_not_rebooted(
    host: FakeHost, apply: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    host.commands["grub-mkconfig"] = CommandFailed("grub-mkconfig: exit 1", status=1)
    assert apply() == 5
    assert "not rebooted: not all was done" in capsys.readouterr().err
    assert rebooted(host) == 0


def test_what_hostprep_set_and_a_boot_has_not_brought_waits_for_the_power(
    host: FakeHost, apply: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """sriov-network-operator#1082: hosts that reboot without end."""
    assert apply() == 4
    boots(host, brings=False)
    assert apply() == 4
    assert "waits for a power cycle, which brings the rest too" in capsys.readouterr().err
    assert rebooted(host) == 1


def test_what_somebody_else_set_is_not_rebooted_for_twice_either(
    host: FakeHost, apply: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert apply(profile={**PROFILE, "assert_only": ["kernel_args"]}) == 1
    cfg = Path(host.root, "boot/grub/grub.cfg")
    cfg.write_text(cfg.read_text().replace(" quiet", " quiet iommu=pt"))
    for expected in (1, 1):
        assert apply() == 4
        assert rebooted(host) == expected
        boots(host, brings=False)
    said = capsys.readouterr().err
    assert "not rebooted: hostprep has rebooted this host for kernel_args/iommu" in said
    assert "which still waits: power-cycle it" in said


def test_what_is_set_anew_is_a_new_cause(tmp_path: Path) -> None:
    from hostprep.model import Change, Facet

    cause = reboot.Cause("kernel_args", "iommu", None, "pt")
    before, now = (Journal(str(tmp_path / "journal"), boot_id) for boot_id in ("before", "now"))
    before.rebooting([cause])
    assert before.rebooted_for() == set(), "that reboot has not come yet"
    assert now.rebooted_for() == {cause}
    assert (now.standing(), now.kept_files()) == ([], [])
    now.begin([Change("kernel_args", "iommu", Facet.NEXT_BOOT, None, "pt")])
    assert now.rebooted_for() == set()


@pytest.mark.parametrize(
    ("running", "inhibitors", "why"),
    [
        ([WORKLOAD], NOBODY, "would disturb docker 0123456789ab (web) (allow it with --allow-disruption reboot)"),
        ([], APT, "apt (pid 4711) holds it up: upgrades packages"),
    ],
)
def test_nobody_is_cut_off(
    running: list[Workload],
    inhibitors: str,
    why: str,
    host: FakeHost,
    apply: Run,
    capsys: pytest.CaptureFixture[str],
) -> None:
    host.workload_list, host.commands["busctl"] = running, inhibitors
    assert apply() == 4
    assert f"not rebooted: {why}" in capsys.readouterr().err
    assert rebooted(host) == 0


def test_jobs_may_be_given_up_but_never_the_installation_of_packages(host: FakeHost, apply: Run) -> None:
    host.workload_list, host.commands["busctl"] = [WORKLOAD], APT
    assert apply("--allow-disruption", "reboot") == 4
    assert rebooted(host) == 0
    host.commands["busctl"] = CommandFailed("busctl: exit 1: The name is not activatable", status=1)  # no logind
    assert apply("--allow-disruption", "reboot") == 4
    assert rebooted(host) == 1


def test_a_reboot_that_systemd_refuses_is_a_failure(
    host: FakeHost, apply: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    host.commands["env"] = CommandFailed("env: exit 1: Transaction is destructive", status=1)
    assert apply() == 5
    assert "error: systemd did not start the reboot: env: exit 1" in capsys.readouterr().err


def test_a_shutdown_that_ends_systemctl_too_is_the_one_that_was_asked_for(host: FakeHost, apply: Run) -> None:
    """Without logind, systemctl starts reboot.target itself, and is still there when everything is ended."""
    host.commands["env"] = CommandFailed("env: killed by SIGTERM: Call to Reboot failed", status=-15)
    assert apply() == 4


def test_without_systemd_nothing_is_changed(host: FakeHost, apply: Run, capsys: pytest.CaptureFixture[str]) -> None:
    os.rmdir(Path(host.root) / "run/systemd/system")
    before = host.snapshot()
    assert apply() == 2
    assert "error: --reboot asks systemd, which does not run this host\nhint: Leave --reboot out" in (
        capsys.readouterr().err
    )
    assert host.snapshot() == before


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--boot"], "takes no --reboot"),
        (["--allow-disruption", "reboots"], "--allow-disruption reboots: the profile profile has no such section"),
    ],
)
def test_wrong_words_are_told(
    words: list[str], why: str, host: FakeHost, apply: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["apply", "--reboot", *words] if "--boot" in words else None
    assert (entry.run(argv) if argv else apply(*words)) == 2
    assert why in capsys.readouterr().err
    assert not os.path.exists(state.journal_path())


def test_nobody_to_ask_is_told_before_anything_is_changed(
    host: FakeHost, apply: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert apply(yes=()) == 2
    assert "there is no terminal to ask on" in capsys.readouterr().err
    assert rebooted(host) == 0
