"""The Mellanox driver (K6): the loaded one, the one that the next boot loads, and installing it from an archive."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import MakeHost, apply, findings, profile, statuses
from fakes import CMDLINE, FakeHost, debian, grub_cfg

from hostprep import engine, registry
from hostprep import revert as taking_back
from hostprep.checks import mlnx_ofed
from hostprep.errors import CommandFailed, HostError
from hostprep.journal import Journal
from hostprep.model import Fact, Unknown

KERNEL, NEWER = "6.1.0-26-amd64", "6.1.0-27-amd64"
RELEASE, MODULE = "24.04-0.7.0.0", "24.04-0.7.0"
INBOX_DEP = "kernel/drivers/net/ethernet/mellanox/mlx5/core/mlx5_core.ko.xz: kernel/lib/x.ko.xz\n"
OFED_DEP = "updates/dkms/mlx5_core.ko: updates/dkms/mlx_compat.ko\n"
PF = "/sys/bus/pci/devices/0000:17:00.0"
CARD = {
    f"{PF}/vendor": "0x15b3",
    f"{PF}/device": "0x1019",
    f"{PF}/class": "0x020000",
    f"{PF}/driver": "-> ../../../bus/pci/drivers/mlx5_core",
    f"{PF}/net/ens9f0np0/ifindex": "2",
    "/sys/class/net/ens9f0np0": "-> ../../devices/pci0000:16/0000:17:00.0/net/ens9f0np0",
}
ARCHIVE = "/root/MLNX_OFED_LINUX-24.04-0.7.0.0-ubuntu22.04-x86_64.tgz"
ROOT_OF_HOST = "../../../../.."  # as seen from where the archive is unpacked
INSTALLS = f"""echo Installing; test -e {ROOT_OF_HOST}/{ARCHIVE} || exit 1
echo "$@" > {ROOT_OF_HOST}/ran-with
mkdir -p {ROOT_OF_HOST}/usr/bin; touch {ROOT_OF_HOST}/usr/bin/ofed_info
echo '{OFED_DEP.strip()}' > {ROOT_OF_HOST}/lib/modules/{KERNEL}/modules.dep
echo Installation passed successfully >&2
"""


@pytest.fixture
def machine(make_host: MakeHost) -> Callable[..., FakeHost]:
    """A Debian machine with a card: which driver is loaded (version and srcversion) and on disk, by kernel."""

    def make(
        loaded: tuple[str, str] | None = ("", "INBOX"),
        disk: str = INBOX_DEP,
        release: str = "",
        module: str = MODULE,
        **more: str,
    ) -> FakeHost:
        files = {**debian(), **CARD, f"/lib/modules/{KERNEL}/modules.dep": f"kernel/a.ko:\n{disk}", **more}
        if loaded is not None:
            files |= {"/sys/module/mlx5_core/srcversion": loaded[1]}
            files |= {"/sys/module/mlx5_core/version": loaded[0]} if loaded[0] else {}
        if release:
            files["/usr/bin/ofed_info"] = ""
        modinfo = f"filename:       x.ko\nversion:        {module}\nlicense: a: b\nsrcversion:     OFED\n"
        return make_host(files, {"modinfo": modinfo, "/usr/bin/ofed_info": release or f"MLNX_OFED_LINUX-{RELEASE}:\n"})

    return make


def version(host: FakeHost) -> Fact:
    return mlnx_ofed.inspect(host)["version"]


# -- looking --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loaded", "disk", "said", "expected"),
    [
        (("", "INBOX"), INBOX_DEP, "", Fact.fixed("inbox")),
        (("5.0-0", "INBOX"), INBOX_DEP, "", Fact.fixed("inbox")),  # in-tree ones up to 5.x have a version of their own
        ((KERNEL, "INBOX"), INBOX_DEP, "", Fact.fixed("inbox")),
        (None, INBOX_DEP, "", Fact(None, "inbox")),
        (None, "", "", Fact(None, None)),
        ((MODULE, "OFED"), OFED_DEP, f"MLNX_OFED_LINUX-{RELEASE}:\n", Fact.fixed(RELEASE)),
        ((MODULE, "OFED"), OFED_DEP, f"MLNX_EN_LINUX-{RELEASE}:\n", Fact.fixed(RELEASE)),
        ((MODULE, "OFED"), OFED_DEP, "OFED-internal-24.04-0.7.0:\n", Fact.fixed(MODULE)),
        ((MODULE, "OFED"), f"extra/mlnx-ofa_kernel/{OFED_DEP[13:]}", f"mlnx-en-{RELEASE}:", Fact.fixed(RELEASE)),
        (("", "INBOX"), OFED_DEP, f"MLNX_OFED_LINUX-{RELEASE}:", Fact("inbox", RELEASE)),
        (("23.10-1.1.9", "OLD"), OFED_DEP, f"MLNX_OFED_LINUX-{RELEASE}:", Fact("23.10-1.1.9", RELEASE)),
        ((MODULE, "OTHER"), OFED_DEP, f"MLNX_OFED_LINUX-{RELEASE}:", Fact(MODULE, RELEASE)),  # another build of it
        ((MODULE, "OFED"), INBOX_DEP, f"MLNX_OFED_LINUX-{RELEASE}:", Fact(MODULE, "inbox")),  # no module built
        ((MODULE, "OFED"), OFED_DEP, "", Fact.fixed(MODULE)),  # a module alone, as operators bring it
    ],
)
def test_now_is_the_loaded_driver_and_next_boot_the_one_that_modprobe_finds(
    machine: Callable[..., FakeHost], loaded: tuple[str, str] | None, disk: str, said: str, expected: Fact
) -> None:
    assert version(machine(loaded, disk, said)) == expected


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"release": "something else\n"}, "says no release"),
        ({"disk": OFED_DEP, "module": ""}, "names no version"),
    ],
)
def test_what_cannot_be_told_is_unknown(machine: Callable[..., FakeHost], more: dict[str, str], what: str) -> None:
    later = version(machine((MODULE, "OFED"), **more)).next_boot
    assert isinstance(later, Unknown)
    assert what in later.reason


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Debian GNU/Linux", "inbox"),  # the first entry of grub-mkconfig: the newest kernel
        (f"Debian GNU/Linux, with Linux {NEWER}", "inbox"),
        (f"Debian GNU/Linux, with Linux {KERNEL}", RELEASE),
        ("of the admin", Unknown),
    ],
)
def test_a_new_kernel_for_which_dkms_built_nothing_brings_the_inbox_driver_back(
    machine: Callable[..., FakeHost], title: str, expected: object
) -> None:
    more = {f"/lib/modules/{NEWER}/modules.dep": INBOX_DEP, f"/boot/vmlinuz-{NEWER}": "", f"/boot/vmlinuz-{KERNEL}": ""}
    host = machine((MODULE, "OFED"), OFED_DEP, f"MLNX_OFED_LINUX-{RELEASE}:", **more)
    host.put("/boot/grub/grub.cfg", grub_cfg(CMDLINE).replace("Debian 0", title))
    found = version(host)
    assert found.current == RELEASE
    assert found.next_boot == expected or isinstance(found.next_boot, Unknown) is (expected is Unknown)
    assert statuses(host, {"mlnx_ofed": RELEASE})["mlnx_ofed/version"] == {
        "inbox": "volatile",
        RELEASE: "pass",
    }.get(str(expected), "unknown")


@pytest.mark.parametrize(
    ("want", "inbox", "installed", "loaded"),
    [
        (RELEASE, "fail", "pending-reboot", "pass"),
        (">=24.04", "fail", "pending-reboot", "pass"),
        (">= 24.04-0.7.0.1", "fail", "fail", "fail"),
        ("inbox", "pass", "volatile", "fail"),
    ],
)
def test_what_a_profile_asks_for(
    machine: Callable[..., FakeHost], want: str, inbox: str, installed: str, loaded: str
) -> None:
    host = machine()
    found = [statuses(host, {"mlnx_ofed": want})["mlnx_ofed/version"]]
    host.put("/usr/bin/ofed_info", "")
    host.put(f"/lib/modules/{KERNEL}/modules.dep", OFED_DEP)
    found.append(statuses(host, {"mlnx_ofed": want})["mlnx_ofed/version"])
    host.put("/sys/module/mlx5_core/version", MODULE)
    host.put("/sys/module/mlx5_core/srcversion", "OFED")
    found.append(statuses(host, {"mlnx_ofed": want})["mlnx_ofed/version"])
    assert found == [inbox, installed, loaded]


# -- installing -----------------------------------------------------------------------------------


def tgz(script: str = INSTALLS) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        member = tarfile.TarInfo("./MLNX_OFED_LINUX-24.04/mlnxofedinstall")
        member.mode, text = 0o755, f"#!/bin/sh\n{script}".encode()
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text))
    return data.getvalue()


def given(host: FakeHost, data: bytes, digest: str = "") -> dict[str, Any]:
    """The archive is on the host: the section of a profile that installs from it."""
    Path(host.root + "/root").mkdir(exist_ok=True)
    Path(host.root + ARCHIVE).write_bytes(data)
    digest = digest or hashlib.md5(data, usedforsecurity=False).hexdigest()
    options = ["--without-fw-update"]
    return {"mlnx_ofed": {"version": RELEASE, "archive": ARCHIVE, "md5": digest, "options": options}}


def left(host: FakeHost) -> list[str]:
    """What is left of the installing, but for logs."""
    return [str(p) for p in Path(host.root + "/var/lib").rglob("*") if p.name != "hostprep"]


def log(host: FakeHost) -> Path:
    (found,) = Path(host.root + "/var/log/hostprep").glob("mlnx_ofed-*.log")
    return found


def test_an_archive_is_installed_and_its_driver_waits_for_a_reload_or_reboot(
    machine: Callable[..., FakeHost], journal: Journal
) -> None:
    """K6: non-interactive, with the options of the profile; nothing is left but the log, which is root's alone."""
    host = machine()
    section = given(host, tgz())
    assert statuses(host, section)["mlnx_ofed/version"] == "fail"
    assert apply(host, section, journal).failures == []
    assert Path(host.root + "/ran-with").read_text() == "--force --without-fw-update\n"
    assert (log(host).stat().st_mode & 0o777, log(host).parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert "Installing\n" in log(host).read_text()
    assert "Installation passed successfully\n" in log(host).read_text()
    assert left(host) == []
    assert statuses(host, section) == {"mlnx_ofed/version": "pending-reboot"}
    (stands,) = journal.standing()
    assert stands.final == "/usr/sbin/ofed_uninstall.sh removes it"


def test_a_plan_names_the_archive_its_digest_and_the_commands_and_runs_none(machine: Callable[..., FakeHost]) -> None:
    host = machine()
    section = given(host, tgz())
    wanted, checks = profile(section), registry.load(section)
    planned = engine.planned(engine.examine(host, wanted, checks, 20), wanted, checks, ())
    (batch,) = engine.rehearse(host, planned, checks)
    unpack, install = (step.command for step in batch.steps)
    assert ARCHIVE in unpack
    assert section["mlnx_ofed"]["md5"] in unpack
    assert "./mlnxofedinstall --force --without-fw-update" in install
    assert not os.path.exists(host.root + "/var/lib")


def test_nothing_is_run_of_another_archive_than_the_profile_means(
    machine: Callable[..., FakeHost], journal: Journal
) -> None:
    host = machine()
    (failure,) = apply(host, given(host, tgz(), "0" * 32), journal).failures
    assert "has the md5 " in failure.reason
    assert not os.path.exists(host.root + "/ran-with")
    assert left(host) == []
    assert journal.standing() == []


def test_an_archive_that_is_not_there_is_told_before_anything_is_tried(machine: Callable[..., FakeHost]) -> None:
    host = machine()
    section = given(host, tgz())
    host.remove(ARCHIVE)
    (found,) = (f for name, f in findings(host, section).items() if "archive/" in name)
    assert (found.message, found.fix) == (
        f"{ARCHIVE}: not there",
        "Put the archive where the profile says that it is.",
    )
    assert found.desired is not None
    assert found.desired.refused_next == f"{ARCHIVE}: not there"
    assert findings(host, section)["mlnx_ofed/version"].fix == found.fix, "apply cannot do it either"


def test_nothing_is_installed_for_a_kernel_that_does_not_boot_next(machine: Callable[..., FakeHost]) -> None:
    """mlnxofedinstall builds for the running kernel."""
    more = {f"/lib/modules/{NEWER}/modules.dep": INBOX_DEP, f"/boot/vmlinuz-{NEWER}": ""}
    host = machine(**more)
    host.put("/boot/grub/grub.cfg", grub_cfg(CMDLINE).replace("Debian 0", "Debian GNU/Linux"))
    (found,) = (f for name, f in findings(host, given(host, tgz())).items() if "archive/" in name)
    assert found.desired is not None
    assert f"{NEWER} boots next" in found.desired.refused_next


def no_digest(section: dict[str, Any]) -> None:
    del section["md5"]


def two_digests(section: dict[str, Any]) -> None:
    section["sha256"] = "0" * 64


def a_minimum(section: dict[str, Any]) -> None:
    section["version"] = ">=24.04"


def an_option_with_a_blank(section: dict[str, Any]) -> None:
    section["options"] = ["--x y"]


@pytest.mark.parametrize("change", [no_digest, two_digests, a_minimum, an_option_with_a_blank])
def test_an_archive_has_one_digest_and_brings_one_release(
    machine: Callable[..., FakeHost], change: Callable[[dict[str, Any]], None]
) -> None:
    section = given(machine(), tgz())["mlnx_ofed"]
    valid = jsonschema.Draft202012Validator(mlnx_ofed.SCHEMA).is_valid
    assert valid(section)
    change(section)
    assert not valid(section)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (
            "echo Checking; echo 'Error: no space left on device' >&2; exit 28",
            "exit 28: Error: no space left on device",
        ),
        ("echo started; exec sleep 600", "did not end within 0.5 s"),
        ("(sleep 5 &) ; exit 1", "exit 1"),  # what it leaves behind is not waited for
    ],
)
def test_an_installer_that_fails_or_hangs_is_a_failure_that_names_its_log(
    machine: Callable[..., FakeHost], journal: Journal, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    monkeypatch.setattr(mlnx_ofed, "INSTALL_S", 0.5)
    host = machine()
    (failure,) = apply(host, given(host, tgz(script)), journal).failures
    assert why in failure.reason
    assert str(log(host)).removeprefix(host.root) in failure.hint
    assert left(host) == []
    (stands,) = journal.standing()
    assert str(log(host)).removeprefix(host.root) in stands.final
    assert "ofed_uninstall.sh removes it" in stands.final


def test_what_a_failed_installer_left_is_named_by_revert_once(
    machine: Callable[..., FakeHost], journal: Journal
) -> None:
    """It had begun to replace packages: this host is not as hostprep found it. A later try that is refused before it
    begins does not hide that."""
    host = machine()
    apply(host, given(host, tgz("exit 1")), journal)
    performer = apply(host, given(host, tgz(), "0" * 32), journal)
    assert len(journal.standing()) == 1
    (said,) = taking_back.rehearse(host, performer.checks, journal)[2]
    assert "begun and not finished" in said
    assert str(log(host)).removeprefix(host.root) in said
    assert len(taking_back.revert(performer)) == 1
    assert journal.standing() == []


@pytest.mark.parametrize(
    ("want", "fix"),
    [
        ("inbox", "Reboot this host."),
        (RELEASE, f"Install MLNX_OFED {RELEASE}, or give the profile its archive: hostprep explain mlnx_ofed"),
        (">=24.10", "Install MLNX_OFED 24.10 or later; or give the profile an archive and, in place of >=24.10, "),
    ],
)
def test_the_advice_is_one_that_helps(machine: Callable[..., FakeHost], want: str, fix: str) -> None:
    host = machine((MODULE, "OLD"), INBOX_DEP, f"MLNX_OFED_LINUX-{RELEASE}:")
    assert findings(host, {"mlnx_ofed": want})["mlnx_ofed/version"].fix.startswith(fix)


# -- loading --------------------------------------------------------------------------------------


def installed(machine: Callable[..., FakeHost]) -> FakeHost:
    """OFED is installed, and the inbox driver is still loaded."""
    host = machine(("", "INBOX"), OFED_DEP, f"MLNX_OFED_LINUX-{RELEASE}:")

    def openibd(argv: Sequence[str]) -> str:
        host.put("/sys/module/mlx5_core/version", MODULE)
        host.put("/sys/module/mlx5_core/srcversion", "OFED")
        return ""

    host.commands["/etc/init.d/openibd"] = openibd
    return host


def test_the_driver_is_loaded_anew_when_nothing_uses_the_cards(
    machine: Callable[..., FakeHost], journal: Journal
) -> None:
    host = installed(machine)
    assert apply(host, {"mlnx_ofed": RELEASE}, journal).failures == []
    assert "/etc/init.d/openibd restart" in host.ran
    assert statuses(host, {"mlnx_ofed": RELEASE}) == {"mlnx_ofed/version": "pass"}


def vf(host: FakeHost) -> None:
    host.put(f"{PF}/virtfn0", "-> ../0000:17:00.2")


def address(host: FakeHost) -> None:
    host.address_table = {"ens9f0np0": ("192.168.10.5/24",)}


def untold(host: FakeHost) -> None:
    host.network_error = HostError("netlink: no answer")


@pytest.mark.parametrize(("use", "named_as"), [(vf, "has 1 VFs"), (address, "192.168.10.5"), (untold, "no answer")])
def test_it_is_never_loaded_anew_while_something_uses_a_card(
    machine: Callable[..., FakeHost], journal: Journal, use: Callable[[FakeHost], None], named_as: str
) -> None:
    """Not even with --allow-disruption: an admin may be logged in over it, and a reboot does as well."""
    host = installed(machine)
    use(host)
    apply(host, {"mlnx_ofed": RELEASE}, journal, allowed=("mlnx_ofed",))
    assert not any("openibd" in command for command in host.ran)
    found = findings(host, {"mlnx_ofed": RELEASE})["mlnx_ofed/version"]
    assert found.status.value == "pending-reboot"
    assert named_as in found.message
    assert found.fix == "Reboot this host."


def test_where_it_cannot_be_loaded_anew_what_can_be_loaded_is(
    machine: Callable[..., FakeHost], journal: Journal
) -> None:
    host = installed(machine)
    asked: list[str] = []

    def openibd(argv: Sequence[str]) -> str:
        asked.append(argv[1])
        if argv[1] == "restart":
            raise CommandFailed("openibd: exit 1: Please stop the following applications", status=1)
        return ""

    host.commands["/etc/init.d/openibd"] = openibd
    (failure,) = apply(host, {"mlnx_ofed": RELEASE}, journal).failures
    assert "Please stop" in failure.reason
    assert asked == ["restart", "start"]
