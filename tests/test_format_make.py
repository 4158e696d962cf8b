"""`--format make`, as make(1) reads it: the variables of a prepared host, and a stop for every other. Row K17."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import examine, profile
from fake_sriov import SriovHost
from fakes import FakeHost, debian

from hostprep import report
from hostprep.errors import HostError, ReportUnusable
from hostprep.formats import make
from hostprep.host.processes import Namespace
from hostprep.model import Desired, Fact, Finding, Reading, Status, Waiver
from hostprep.pci import DEVICES
from hostprep.report import Identity, Report

PF0, PF1 = "0000:17:00.0", "0000:17:00.1"
BOTH = [{"pf": "ens9f0np0", "vfs": 8}, {"pf": "ens9f1np1", "vfs": 8}]
HOSTILE = "$(shell touch pwned) ) # ${HOME} `touch pwned` \\\n\toverride A := $(shell touch pwned)\r'\"\x1b[31m\udcff"

# The parameters of the install manual, with what it has for them, and what the recipes make of them in a shell.
MAKEFILE = """\
SRIOV_IF_REGEX_1 := enp1s0.*
SRIOV_PF_IF_1 := enp1s0np0
SRIOV_PF_IF_2 := enp1s1np1
SRIOV_NUM_VFS := 4
NVIDIA_DRIVER_FILE := NVIDIA-Linux-x86_64-1.0.run
all:
	@touch made
	@echo $(SRIOV_PF_IF_1) $(SRIOV_PF_IF_2) $(SRIOV_NUM_VFS) $(NVIDIA_DRIVER_FILE)
moved:
	@grep -e $(SRIOV_IF_REGEX_1): addresses | cut -d ':' -f2 | tr -d ' '
	@grep -e "altname $(SRIOV_IF_REGEX_1)" addresses | cut -d ' ' -f6
"""


@pytest.fixture
def host(tmp_path: Path) -> SriovHost:
    made = SriovHost(tmp_path / "root", debian())
    made.pf(PF0, "ens9f0np0", altnames=("enp23s0f0np0",))
    made.pf(PF1, "ens9f1np1")
    return made


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def look(host: FakeHost, sections: dict[str, Any], boot: str | None = None, **more: Any) -> Report:
    examination = examine(host, sections, **more)
    here = Identity("node01", "0123456789abcdef", boot_id() if boot is None else boot, "6.1.0")
    return report.make(examination.findings, examination.answers, profile(sections, **more), here, time.monotonic())


def prepared(host: SriovHost, entries: list[dict[str, Any]] | None = None, **more: Any) -> Report:
    entries = BOTH if entries is None else entries
    for entry in entries:
        address = next(a for a in (PF0, PF1) if entry["pf"] in host.names(f"{DEVICES}/{a}/net"))
        host.set_link(entry["pf"], up=True)
        host.write(f"{DEVICES}/{address}/sriov_numvfs", str(entry["vfs"]))
    return look(host, {"nic_vfs": entries}, **more)


def told(text: str, tmp_path: Path, *goals: str) -> str:
    """What make does with the text in a file that the Makefile includes before it sets anything; its output."""
    (tmp_path / "host.mk").write_text(text, errors="surrogateescape")
    (tmp_path / "Makefile").write_text(f"include host.mk\n{MAKEFILE}")
    return run(tmp_path, *goals)


def run(tmp_path: Path, *arguments: str, stdin: str = "") -> str:
    """stdout where make succeeds, `stopped: ` and what it says where it made nothing."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
    done = subprocess.run(
        ["make", "-s", *arguments], cwd=tmp_path, env=environment, input=stdin, capture_output=True, text=True
    )
    assert not (tmp_path / "pwned").exists()
    if done.returncode == 0:
        return done.stdout
    assert not (tmp_path / "made").exists(), done.stderr
    return f"stopped: {done.stderr}"


# -- a prepared host ------------------------------------------------------------------------------


def test_k17_a_prepared_host_tells_its_variables_and_the_makefiles_defaults_do_not_win(
    host: SriovHost, tmp_path: Path
) -> None:
    text = make.render(prepared(host))
    assert told(text, tmp_path) == "ens9f0np0 ens9f1np1 8 NVIDIA-Linux-x86_64-1.0.run\n"


def test_it_can_be_piped_into_make(host: SriovHost, tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text(MAKEFILE)
    text = make.render(prepared(host))
    for order in (("-f", "Makefile", "-f", "-"), ("-f", "-", "-f", "Makefile")):
        assert run(tmp_path, *order, "all", stdin=text).startswith("ens9f0np0 ens9f1np1 8 ")


def test_pfs_are_numbered_in_the_order_of_the_profile(host: SriovHost, tmp_path: Path) -> None:
    assert told(make.render(prepared(host, BOTH[::-1])), tmp_path).startswith("ens9f1np1 ens9f0np0 8 ")


def test_a_profile_without_vfs_leaves_the_makefiles_own(tmp_path: Path) -> None:
    host = FakeHost(tmp_path / "root", debian())
    assert told(make.render(look(host, {"hardware": {"cpus": 1}})), tmp_path).startswith("enp1s0np0 enp1s1np1 4 ")


def test_the_installer_that_the_profile_names_is_the_one_that_make_takes(tmp_path: Path) -> None:
    key = "installer//root/NVIDIA-Linux-x86_64-550.90.12.run"
    fine = Finding("hardware", "cpus", Status.PASS, Fact.fixed(2), Desired(2))
    made = look(FakeHost(tmp_path / "root", debian()), {"hardware": {"cpus": 1}})
    made = made._replace(findings=[fine], facts={"one": {key: Fact.fixed("550.90.12")}})
    assert told(make.render(made), tmp_path).endswith(" NVIDIA-Linux-x86_64-550.90.12.run\n")


# -- which interfaces a worker gets ---------------------------------------------------------------

OTHERS = [
    *("ens9f01", "ens9f0", "ens9f0v80", "ens9f0np00", "xens9f0np0", "br-ens9f0np0", "ens9f0np0.100@ens9f0np0"),
    *("ens9f0v0@ens9f0v1", "macvtap0@ens9f0v7", "ens9f0np0x", "ens9f1np1", "ens9f1v0", "ens9f0v8", "ens9f0n"),
]


def ip_addr(*names: str) -> str:
    """As iproute2 prints it, each interface with an altname that begins as a name of the PF does."""
    text = ""
    for index, name in enumerate(names, start=2):
        text += (
            f"{index}: {name}: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 qdisc mq state UP group default qlen 1000\n"
            f"    link/ether b8:59:9f:00:00:{index % 256:02x} brd ff:ff:ff:ff:ff:ff\n"
        )
        text += "    altname ens9f0np0p1\n" if name not in ours(8) else "    altname enp23s0f0np0\n"
        text += f"    inet6 fe80::{index}/64 scope link\n       valid_lft forever preferred_lft forever\n"
    return text


def ours(count: int) -> list[str]:
    return ["ens9f0np0", *(f"ens9f0v{i}" for i in range(count))]


@pytest.mark.parametrize("count", [1, 8])
def test_k17_the_regex_takes_exactly_the_pf_and_its_vfs(host: SriovHost, tmp_path: Path, count: int) -> None:
    """The manual's own, ens9f0.*, takes a neighbour such as ens9f01 and any VLAN upon the PF along."""
    made = prepared(host, [{**entry, "vfs": count} for entry in BOTH])
    others = [name for name in OTHERS if name not in ours(count)] + ours(8)[count + 1 :]
    (tmp_path / "addresses").write_text(ip_addr(*others, *ours(count)))
    assert told(make.render(made), tmp_path, "moved").split() == ours(count)


def test_a_dot_in_a_name_is_a_dot(host: SriovHost, tmp_path: Path) -> None:
    (tmp_path / "addresses").write_text(ip_addr("lanx1", "lan.1"))
    text = make.render(called("lan.1")(host))
    assert told(text, tmp_path, "moved") == "lan.1\n"


def test_the_real_ip_prints_interfaces_as_these_tests_have_them(host: SriovHost, tmp_path: Path) -> None:
    if shutil.which("ip") is None or not Path("/dev/net/tun").exists():
        pytest.skip("needs ip(8) and /dev/net/tun")
    names = [*ours(8), "ens9f01", "xens9f0np0", "ens9f0v80"]
    add = " && ".join(f"ip tuntap add dev {name} mode tap" for name in names)
    done = subprocess.run(["unshare", "-n", "sh", "-c", f"{add} && ip addr"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no network namespace with taps can be made here: {done.stderr.strip()}")
    (tmp_path / "addresses").write_text(done.stdout)
    assert told(make.render(prepared(host)), tmp_path, "moved").split() == ours(8)


# -- every other host -----------------------------------------------------------------------------


def without_vfs(host: SriovHost) -> Report:
    return look(host, {"nic_vfs": BOTH})


def in_a_worker(host: SriovHost) -> Report:
    """K18: prepared and in use; what the VFs are called in their pods is not what they are called here."""
    prepared(host)
    where = Namespace("/proc/77/ns/net", 99, "kind-worker (docker 1a2b3c4d5e6f)")
    inside = FakeHost(Path(f"{host.root}-worker"), {})
    inside.link_table["ens9f0np0"] = host.link_table.pop("ens9f0np0")
    shutil.rmtree(f"{host.root}{DEVICES}/{PF0}/net/ens9f0np0")
    host.remove("/sys/class/net/ens9f0np0")
    host.namespace_list, host.elsewhere = [where], {where.path: inside}
    host.netdev_elsewhere_table[PF0] = ("ens9f0np0", where)
    return look(host, {"nic_vfs": [{"pf": address, "vfs": 8} for address in (PF0, PF1)]})


def with_a_vf_elsewhere(host: SriovHost) -> Report:
    made = prepared(host)
    facts = {
        check: {k: f for k, f in all_.items() if not k.endswith("vf3/netdev")} for check, all_ in made.facts.items()
    }
    return made._replace(facts=facts)


def unread(host: SriovHost) -> Report:
    prepared(host)
    host.network_error = HostError("netlink: Operation not permitted")
    return look(host, {"nic_vfs": [{**entry, "trust": True} for entry in BOTH]})


def waived(host: SriovHost) -> Report:
    waiver = Waiver("nic_vfs/*", "a card was ordered", time.strftime("%Y-%m-%d", time.gmtime(time.time() + 86400)))
    return look(host, {"nic_vfs": BOTH, "hardware": {"cpus": 1}}, waivers=(waiver,))


def called(name: str) -> Callable[[SriovHost], Report]:
    def seen(host: SriovHost) -> Report:
        made = prepared(host)
        names: Reading = (name,)
        facts = {check: {**all_, f"{PF0}/names": Fact.fixed(names)} for check, all_ in made.facts.items()}
        return made._replace(facts=facts)

    return seen


def with_different_numbers(host: SriovHost) -> Report:
    return prepared(host, [BOTH[0], {**BOTH[1], "vfs": 4}])


STOPS: dict[str, tuple[Callable[[SriovHost], Report], str]] = {
    "not ready": (without_vfs, "node01 is not ready by test: "),
    "unknown": (unread, "node01 is not ready by test: "),
    "waived": (waived, "nic_vfs/0000:17:00.0/vfs is fail"),
    "looked at in part": (lambda host: prepared(host)._replace(selection=["nic_vfs"]), "only a part of node01"),
    "in use": (in_a_worker, "it is in kind-worker [docker 1a2b3c4d5e6f]: this host is in use already"),
    "a VF elsewhere": (with_a_vf_elsewhere, "the interface of VF 3 of ens9f0np0 cannot be told"),
    "different numbers": (with_different_numbers, "there are 8 on ens9f0np0, 4 on ens9f1np1"),
    "of an earlier boot": (lambda host: prepared(host, boot="aaaa-bbbb"), "no longer valid, or of another boot"),
    "of no boot": (lambda host: prepared(host, boot=""), "which boot this is cannot be told"),
    "expired": (lambda host: prepared(host)._replace(valid_for=0), "no longer valid, or of another boot"),
    "a name for a shell": (called("$(reboot)"), "'$[reboot]' is no name that a shell takes"),
    "a name with an option": (called("-rf"), "'-rf' is no name that a shell takes"),
    "a name of two lines": (called("a\n\tb"), "is no name that a shell takes"),
    "no name": (called(""), "'' is no name that a shell takes"),
}


@pytest.mark.parametrize("case", STOPS)
def test_make_stops_and_says_why(host: SriovHost, tmp_path: Path, case: str) -> None:
    made, why = STOPS[case]
    text = make.render(made(host))
    said = told(text, tmp_path)
    assert said.startswith("stopped: ")
    assert "*** hostprep: " in said
    assert why in said


@pytest.mark.parametrize("hint", ["Look at the host again: hostprep check", ""])
def test_make_stops_where_there_is_no_report(tmp_path: Path, hint: str) -> None:
    said = told(make.unusable(ReportUnusable("there is no report", hint)), tmp_path)
    assert f"*** hostprep: there is no report{'. ' if hint else ''}{hint}.  Stop." in said


@pytest.mark.parametrize("shift", range(6))
def test_whatever_a_host_is_called_make_runs_nothing_of_it(host: SriovHost, tmp_path: Path, shift: int) -> None:
    """Also where the text is cut: half of an escaped dollar would take the rest of the line along."""
    hostile = HOSTILE + "$" * 500
    fine = prepared(host)._replace(hostname=HOSTILE, profile=HOSTILE)
    assert told(make.render(fine), tmp_path).startswith("ens9f0np0 ")
    (tmp_path / "made").unlink()
    for text in (
        make.render(fine._replace(valid_for=0)),
        make.render(fine._replace(selection=["x" * shift + hostile])),
        make.unusable(ReportUnusable("x" * shift + hostile, hostile)),
    ):
        said = told(text, tmp_path)
        assert said.startswith("stopped: host.mk:")
        assert "*** hostprep: " in said


@pytest.mark.parametrize("ready", [True, False])
def test_as_unquoted_words_on_the_command_line_it_makes_nothing_at_all(
    host: SriovHost, tmp_path: Path, ready: bool
) -> None:
    """`make all $(hostprep report --format make)`: make takes words for goals, and would make the first ones."""
    (tmp_path / "Makefile").write_text(MAKEFILE)
    text = make.render(prepared(host) if ready else without_vfs(host))
    assert run(tmp_path, "-k", "all", *text.split()).startswith("stopped: ")
