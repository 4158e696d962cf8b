"""A profile from a good host: the host passes it, its siblings can have it, and nothing in it is secret or passing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from conftest import examine
from fake_firmware import Card, plug
from fake_gpu import A100, FIRST, SECOND, Kernel, driver_files, gpu_files, nvml, well
from fake_sriov import SriovHost
from fakes import Answer, FakeHost, debian, meminfo

from hostprep import engine, from_host, profile_source, registry
from hostprep import profile as profiles
from hostprep.errors import HostError
from hostprep.host import Host, Space
from hostprep.model import Desired, Fact, Facts, Goals, Section, Status, Suggestion, Unknown
from hostprep.quantities import parse_bytes, size_below
from hostprep.report import Identity

MakeHost = Callable[..., FakeHost]
GIB = 1024**3
SUGGESTING = {name: check for name, check in registry.load().items() if registry.suggesting(check)}
NODE = Identity("node17", "", "", "6.1.0-26-amd64")
PAGES = "root=UUID=5b0c ro hugepagesz=1G hugepages=4 default_hugepagesz=1G intel_iommu=on iommu=pt quiet"


def suggested(host: Host, checks: engine.Checks = SUGGESTING, identity: Identity = NODE) -> str:
    return from_host.profile_from(host, checks, identity, 20)


def sections(text: str) -> dict[str, Any]:
    document, _ = profile_source.parse("from-host", text.encode())
    return {key: value for key, value in document.items() if key not in profile_source.META}


class NotInstalled(dict[str, Answer]):
    """No command but those that are given is on the host."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> Answer:
        return HostError(f"{name}: not installed")


def plain(root: Path) -> FakeHost:
    host = FakeHost(root, debian(), NotInstalled())
    host.spaces = {"/": Space(size=480 * 10**9, available=3 * 10**9)}
    return host


def with_pages(root: Path) -> FakeHost:
    memory = {"/proc/meminfo": meminfo(32 * 1024**2, default_kib=1024**2)}
    return FakeHost(root, {**debian(cmdline=PAGES, pages_1g=4), **memory})


def with_swap(root: Path) -> FakeHost:
    swaps = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/sda2 partition 1048572 0 -2\n"
    return FakeHost(root, {**debian(), "/proc/swaps": swaps})


def with_vfs(root: Path) -> FakeHost:
    host = SriovHost(root, debian())
    for port in (0, 1):
        host.pf(f"0000:17:00.{port}", f"ens9f{port}np{port}")
        host.write(f"/sys/bus/pci/devices/0000:17:00.{port}/sriov_numvfs", "8")
        host.link_table[f"ens9f{port}np{port}"] = host.link_table[f"ens9f{port}np{port}"]._replace(up=True)
    return host


def with_firmware(root: Path) -> FakeHost:
    host = FakeHost(root, debian())
    cards = [
        Card("0000:17:00.0", "0000:17:00.1", guid="0c42:a103:0060:1a2c", SRIOV_EN="True(1)", NUM_OF_VFS="8"),
        Card("0000:3b:00.0", guid="0c42:a103:0060:1a2d", device="101d", SRIOV_EN="True(1)", NUM_OF_VFS="4"),
        Card("0000:5e:00.0", guid="0c42:a103:0060:1a2e", device="101d", SRIOV_EN="True(1)", NUM_OF_VFS="16"),
    ]
    plug(host, *cards)
    for card in cards:
        card.start(host)
    return host


def with_gpus(root: Path) -> FakeHost:
    files = {**debian(), **gpu_files(FIRST), **gpu_files(SECOND, minor=1), **driver_files()}
    host = FakeHost(root, files)
    host.nvml_answer = nvml({FIRST: well(), SECOND: well()})
    Kernel(host)
    return host


def without_driver(root: Path) -> FakeHost:
    host = FakeHost(root, {**debian(), **gpu_files(driver="")})
    host.put("/lib/modules/6.1.0-26-amd64/modules.dep", "")
    host.put("/lib/modules/6.1.0-26-amd64/modules.alias", "")
    host.put("/lib/modules/6.1.0-26-amd64/modules.builtin", "")
    host.put("/boot/vmlinuz-6.1.0-26-amd64", "")
    Kernel(host, loaded=())
    return host


HOSTS = [plain, with_pages, with_swap, with_vfs, with_firmware, with_gpus, without_driver]


@pytest.mark.parametrize("make", HOSTS, ids=lambda make: make.__name__)
def test_the_host_that_it_was_made_from_is_ready(tmp_path: Path, make: Callable[[Path], FakeHost]) -> None:
    """Whatever the host has, its own profile is one that it passes, read back by the loader that everybody uses."""
    host = make(tmp_path / "root")
    path = tmp_path / "profile.yaml"
    path.write_text(suggested(host))
    loaded = profiles.load(str(path))
    found = examine(host, loaded.sections).findings
    assert {f.name: f.message for f in found if f.status not in (Status.PASS, Status.VOLATILE)} == {}
    assert {"hardware", "system"} <= set(loaded.sections)


@pytest.mark.parametrize(
    ("make", "check", "section"),
    [
        (plain, "swap", "disabled"),
        (plain, "kernel_args", None),  # root=, console= and quiet are this machine's own
        (plain, "nic_vfs", None),
        (plain, "gpu", None),
        (with_swap, "swap", None),
        (with_pages, "hugepages", {"1GiB": 4, "default": "1GiB"}),
        (with_pages, "kernel_args", ["intel_iommu=on", "iommu=pt"]),
        (with_vfs, "nic_vfs", [{"pf": "15b3:1019", "count": 2, "vfs": 8}]),
        (
            with_firmware,
            "nic_firmware",
            [
                {"cards": "15b3:1019", "count": 2, "SRIOV_EN": True, "NUM_OF_VFS": 8},
                {"cards": "0000:3b:00.0", "count": 1, "SRIOV_EN": True, "NUM_OF_VFS": 4},
                {"cards": "0000:5e:00.0", "count": 1, "SRIOV_EN": True, "NUM_OF_VFS": 16},
            ],
        ),
        (with_gpus, "gpu", {"count": 2, "model": A100, "driver": "loaded", "ecc": True, "mig": False}),
        (without_driver, "gpu", {"count": 1, "model": A100, "driver": "unloaded"}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)[:20]),
)
def test_what_a_host_has_becomes_what_its_siblings_need(
    tmp_path: Path, make: Callable[[Path], FakeHost], check: str, section: Section
) -> None:
    """K2, K8 to K12, J1: devices by vendor:device where all of them are alike, by address where they are not."""
    assert sections(suggested(make(tmp_path / "root"))).get(check) == section


def test_sizes_are_rounded_down_and_what_passes_is_left_out(tmp_path: Path) -> None:
    """A 32 GiB machine becomes `32GB`: its sibling, with a little less, passes too."""
    hardware = sections(suggested(plain(tmp_path / "root")))["hardware"]
    assert (hardware["memory"], hardware["disk"]) == ("32GB", {"/": "480GB"})
    assert "free" not in hardware


@pytest.mark.parametrize(
    ("number", "size"),
    [
        *((32 * GIB, "32GB"), (25276510208, "24GB"), (62 * 10**9, "60GB"), (3840 * 10**9, "3840GB"), (4000, "4kB")),
        *((4 * 10**9, "4GB"), (3999999999, "3840MB"), (1000, "960B"), (7, "7B"), (1, "1B"), (0, "0B")),
    ],
)
def test_a_round_size_below(number: int, size: str) -> None:
    assert size_below(number) == size
    assert number * 7 // 8 <= parse_bytes(size_below(number)) <= number


def test_secrets_and_what_names_this_machine_are_named_and_not_told(tmp_path: Path) -> None:
    """A kernel command line may hold an iSCSI password; a sibling has another root file system and address."""
    words = "root=UUID=5b0c ro rd.iscsi.password=hunter2 ip=10.1.2.3::10.1.2.1 intel_iommu=on vfio-pci.ids=15b3:101a"
    host = FakeHost(tmp_path / "root", debian(cmdline=words))
    text = suggested(host)
    assert not [secret for secret in ("hunter2", "10.1.2", "5b0c", "0123456789abcdef") if secret in text]
    assert sections(text)["kernel_args"] == ["intel_iommu=on", "vfio-pci.ids=15b3:101a"]
    assert re.search(r"# Left out, by name: .*\brd\.iscsi\.password\b", text)


def test_what_could_not_be_read_is_told_with_the_reason(tmp_path: Path) -> None:
    host = plain(tmp_path / "root")
    host.remove("/boot/grub/grub.cfg")
    text = suggested(host)
    assert "kernel_args" not in sections(text)
    assert "# kernel_args: could not be read here: no GRUB configuration" in text


def check_of(suggestion: Suggestion | Exception, current: object = 1) -> dict[str, registry.Check]:
    """A check of `a` and `b`, of which `a` is as wanted and `b` never is."""

    def inspect(host: Host) -> Facts:
        return {"a": Fact.fixed(cast(Any, current)), "b": Fact.fixed(2)}

    def decide(facts: Facts, want: Section) -> Goals:
        return {key: Desired(1) for key in want}

    def suggest(facts: Facts) -> Suggestion:
        if isinstance(suggestion, Exception):
            raise suggestion
        return suggestion

    schema = {"type": "object", "description": "a test", "additionalProperties": {"type": "integer"}}
    module = SimpleNamespace(NAME="hugepages", SCHEMA=schema, inspect=inspect, decide=decide, suggest=suggest)
    return {"system": SUGGESTING["system"], "hugepages": cast(registry.Check, module)}


@pytest.mark.parametrize(
    ("suggestion", "kept", "said"),
    [
        (
            Suggestion({"a": 1, "b": 1}),
            {"a": 1},
            "# Left out, this host does not pass it: b is fail: Wanted 1, found 2.",
        ),
        (Suggestion({"b": 1}), None, "# hugepages: {b: 1}\n"),
        (Suggestion({"a": "x"}), None, "no valid section: 'x' is not of type 'integer'"),
        (Suggestion({"a": 1}, {"a": "one\nb: 7 \x1b[31m", "": "more\nc: 8"}), {"a": 1}, "a: 1  # one b: 7"),
        (Suggestion(None, {"": "why not"}), None, "# hugepages: why not"),
        (ZeroDivisionError("division by zero"), None, "# hugepages: bug in check hugepages: ZeroDivisionError"),
    ],
    ids=["in part", "nothing", "not valid", "notes", "none", "bug"],
)
def test_what_is_suggested_is_tried_first(
    tmp_path: Path, suggestion: Suggestion | Exception, kept: Section, said: str
) -> None:
    """No section is believed: what this host would not pass is a comment, with the reason."""
    text = suggested(plain(tmp_path / "root"), check_of(suggestion))
    assert sections(text).get("hugepages") == kept
    assert said in text


def test_what_is_so_now_alone_is_told(tmp_path: Path) -> None:
    """VFs that nothing makes again: the host is ready with them, until it boots."""
    text = suggested(with_vfs(tmp_path / "root"))
    assert "# Right now only: the next boot of this host does not bring 0000:17:00.0/vfs" in text


@pytest.mark.parametrize(
    ("name", "facts", "section"),
    [
        ("software", {"docker": "26.1.3", "docker/path": "/usr/bin/docker", "go": None}, {"docker": ">=26.1.3"}),
        ("software", {"docker": Unknown("no answer"), "mytool": "2.0"}, None),
        ("services", {"failed": ()}, {"failed": "none"}),
        ("services", {"failed": ("nginx.service",)}, None),
        ("mlnx_ofed", {"version": "24.04-0.7.0.0"}, "24.04-0.7.0.0"),
        ("mlnx_ofed", {"version": "inbox"}, "inbox"),
        ("mlnx_ofed", {"version": None}, None),
        (
            "gpu_containers",
            {"gpus": 1, "toolkit": "1.17.4~rc1", "cdi": "ready", "docker": "not ready"},
            {"via": ["cdi"], "toolkit": ">=1.17.4"},
        ),
        ("gpu_containers", {"gpus": 0, "toolkit": "1.17.4", "cdi": "ready", "docker": "ready"}, None),
    ],
)
def test_what_facts_suggest(name: str, facts: dict[str, Any], section: Section) -> None:
    """K5, K6, J3: a version that is here is the least that a sibling needs."""
    check = registry.suggesting(SUGGESTING[name])
    assert check is not None
    assert check.suggest({key: Fact.fixed(reading) for key, reading in facts.items()}).section == section


def test_an_unreadable_host_gives_no_profile(make_host: MakeHost) -> None:
    """A profile that asks for nothing would find every host ready."""

    def inspect(host: Host) -> Facts:
        return {"a": Fact.fixed(Unknown("Input/output error"))}

    check = SimpleNamespace(
        NAME="swap", SCHEMA={}, inspect=inspect, decide=dict, suggest=lambda facts: Suggestion(None)
    )
    with pytest.raises(HostError, match="no check finds anything here"):
        suggested(make_host({}), {"swap": cast(registry.Check, check)})


@pytest.mark.parametrize("hostname", ["", "node\x1b[31m\nswap: disabled", "-", "a" * 300, "ノード", "node: 1 # x"])
def test_a_name_of_a_host_breaks_nothing(tmp_path: Path, hostname: str) -> None:
    checks = {"system": SUGGESTING["system"]}
    text = suggested(plain(tmp_path / "root"), checks, NODE._replace(hostname=hostname))
    assert list(sections(text)) == ["system"]
    assert all(c.isprintable() or c == "\n" for c in text)


@pytest.mark.parametrize("name", SUGGESTING)
def test_a_check_suggests_something_of_hosts_that_it_cannot_read(name: str, tmp_path: Path) -> None:
    """Facts that are all unknown, as inspect gives them, lead to no exception and to no section that asks for them."""
    facts = SUGGESTING[name].inspect(plain(tmp_path / "root"))
    unread = {key: Fact.fixed(Unknown("Input/output error")) for key in facts}
    check = registry.suggesting(SUGGESTING[name])
    assert check is not None
    assert not check.suggest(unread).section


def test_this_machine_is_what_its_own_profile_says(tmp_path: Path) -> None:
    """The whole of it, on a real machine: make, load, look, ready."""
    path = tmp_path / "profile.yaml"
    path.write_text(from_host.profile_from(Host(), registry.load(), NODE, 30))
    loaded = profiles.load(str(path))
    found = engine.examine(Host(), loaded, registry.load(loaded.sections), 30).findings
    assert {f.name: f.message for f in found if f.status not in (Status.PASS, Status.VOLATILE)} == {}
    assert found
