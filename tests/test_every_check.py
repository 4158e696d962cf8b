"""The contract of a check, held against every one there is: adding a check needs no line here."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fake_gpu import driver_files, gpu_files
from fake_sriov import nic
from fakes import Answer, FakeHost, debian
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hostprep import profile_source, registry
from hostprep.errors import HostError, HostprepError
from hostprep.host import Host, Space, process
from hostprep.host.rehearsal import Rehearsal
from hostprep.judge import judge, plan
from hostprep.model import Fact, Facts, Finding, Status
from hostprep.registry import Check

MakeHost = Callable[..., FakeHost]
CHECKS = registry.load()
MET = (Status.PASS, Status.VOLATILE, Status.PENDING)
every_check = pytest.mark.parametrize("name", CHECKS)


class Anything(dict[str, Answer]):
    """Every command is there, and says nothing."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> Answer:
        return ""


def machine() -> dict[str, str]:
    """A small Debian machine with a network card that has SR-IOV, a GPU with its driver, and an authority."""
    modules = {"/proc/modules": "nvidia 54095872 0 - Live 0x0000000000000000\n"}
    authority = {"/etc/docker/certs.d/192.168.10.100/ca.crt": "-----BEGIN CERTIFICATE-----\n"}
    return {**debian(), **nic(), **gpu_files(), **driver_files(), **modules, **authority, "/usr/bin/nvidia-ctk": ""}


def examples(check: Check) -> list[Any]:
    """The sections that a manual page shows: indented blocks of YAML, each from `name:` on."""
    blocks = re.findall(r"(?:^(?:    .*)?\n)+", registry.manual(check) + "\n", re.M)
    found = []
    for block in blocks:
        text = re.sub(r"^    ", "", block, flags=re.M)
        for part in re.split(rf"^(?={check.NAME}:)", text, flags=re.M):
            if part.startswith(f"{check.NAME}:"):
                document, _ = profile_source.parse("manual", part.encode())
                found.append(document[check.NAME])
    return found


SECTIONS = [(name, section) for name, check in CHECKS.items() for section in examples(check)]
every_section = pytest.mark.parametrize(("name", "section"), SECTIONS, ids=[n for n, _ in SECTIONS])


def patterns(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "pattern":
                yield value
            elif key == "patternProperties":
                yield from value
            yield from patterns(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from patterns(value)


def inspected(check: Check, host: Host, section: Any) -> Facts:
    """What a check sees, of things without end what the section names."""
    told = registry.asking(check)
    return check.inspect(host) if told is None else told.inspect(host, told.asked(section, ()))


def findings(check: Check, host: Host, section: Any) -> list[Finding]:
    """What a check finds; no finding at all where it would not answer."""
    try:
        facts = inspected(check, host, section)
    except HostError:
        return []
    return list(judge(check.NAME, facts, check.decide(facts, section)))


# -- the module -----------------------------------------------------------------------------------


@every_check
def test_its_names(name: str) -> None:
    check = CHECKS[name]
    assert name == check.NAME
    assert callable(check.inspect)
    assert callable(check.decide)
    assert hasattr(check, "apply") or not hasattr(check, "finish"), "only what applies has something to finish"


@every_check
def test_its_schema_is_a_schema(name: str) -> None:
    schema = CHECKS[name].SCHEMA
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema.get("description"), "an editor shows it"
    for pattern in patterns(schema):
        re.compile(pattern)
        assert pattern.endswith(r"$(?!\n)"), "to Python `$` also matches before a newline at the end"


@every_check
def test_its_manual_page_shows_sections_that_are_valid(name: str) -> None:
    check = CHECKS[name]
    first = registry.manual(check).partition("\n")[0]
    assert re.fullmatch(r"[A-Z][\w ]+: .*\.", first), "`Subject: one sentence.` is what `hostprep explain` lists"
    sections = examples(check)
    assert sections, "no example"
    for section in sections:
        jsonschema.Draft202012Validator(check.SCHEMA).validate(section)


def test_no_checks_are_none_and_not_all() -> None:
    """T3: a selection that comes out empty must not quietly become another one."""
    assert registry.load([]) == {}
    assert list(registry.load(["swap"])) == ["swap"]
    assert list(registry.load()) == registry.names()


# -- looking at hosts that do not answer ----------------------------------------------------------


@every_check
def test_an_empty_host_gives_facts_or_an_error_of_the_host(make_host: MakeHost, name: str) -> None:
    with contextlib.suppress(HostError):
        facts = CHECKS[name].inspect(make_host({}, Anything()))
        assert all(isinstance(fact, Fact) for fact in facts.values())


class Unreadable(FakeHost):
    """Everything is there, and no file can be read: the disk gives I/O errors, or root is needed."""

    def read_bytes(self, path: str) -> bytes | None:
        raise HostError(f"{path}: Input/output error")

    def _answer(self, *args: object) -> str:
        raise HostError("Input/output error")

    def space(self, path: str) -> Space:
        raise HostError(f"{path}: Input/output error")

    def clock_synchronised(self) -> bool:
        raise HostError("adjtimex: Operation not permitted")

    def machine(self) -> str:
        raise HostError("uname: Input/output error")


@every_section
def test_what_cannot_be_read_is_never_as_wanted(tmp_path: Path, name: str, section: Any) -> None:
    """T4, R12: unreadable is unknown, and never pass, however little was wanted."""
    found = findings(CHECKS[name], Unreadable(tmp_path / "root", machine()), section)
    assert {f.name: f.status.value for f in found if f.status is not Status.UNKNOWN} == {}


@every_section
def test_one_file_that_cannot_be_read_never_turns_a_failure_into_a_pass(
    tmp_path: Path, name: str, section: Any
) -> None:
    """For every file that the check reads: without its answer nothing gets better."""
    check = CHECKS[name]
    read: list[str] = []

    class Spoiled(FakeHost):
        spoiled = ""

        def read_bytes(self, path: str) -> bytes | None:
            if path == self.spoiled:
                raise HostError(f"{path}: Input/output error")
            read.append(path)
            return super().read_bytes(path)

    host = Spoiled(tmp_path / "root", machine(), Anything())
    before = {f.name: f.status for f in findings(check, host, section)}
    for path in sorted(set(read)):
        host.spoiled = path
        for finding in findings(check, host, section):
            if before.get(finding.name) not in MET:
                assert finding.status not in MET, f"{path} unreadable makes {finding.name} {finding.status.value}"


# -- looking at hosts that talk nonsense ----------------------------------------------------------

NONSENSE = st.one_of(
    st.binary(max_size=200),
    st.text(alphabet="0123456789abcdefxKMG=:,-_./ \t\n\"'$\\#[]{}", max_size=200).map(str.encode),
    st.lists(st.sampled_from(list(machine().values())), min_size=1, max_size=3).map(lambda t: "".join(t).encode()),
)


@every_section
@settings(
    max_examples=30, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(data=st.data())
def test_nonsense_in_files_is_an_error_of_the_host_or_a_finding(
    tmp_path_factory: pytest.TempPathFactory, name: str, section: Any, data: st.DataObject
) -> None:
    """Whatever is in the files, a check raises nothing but HostError."""
    check = CHECKS[name]
    drawn: dict[str, bytes | None] = {}

    class Garbled(FakeHost):
        def read_bytes(self, path: str) -> bytes | None:
            if path not in drawn:
                text = super().read_bytes(path)
                drawn[path] = data.draw(NONSENSE, label=path) if text and data.draw(st.booleans()) else text
            return drawn[path]

    host = Garbled(tmp_path_factory.mktemp("host") / "root", machine(), Anything())
    findings(check, host, section)


@every_section
@pytest.mark.parametrize("garbage", [b"", b"\xff\xfe\x00\x01" * 20, b"garbage\n" * 3, b"-1\n", b"[]{}=\n=\n"])
def test_files_of_nothing_but_garbage_are_never_as_wanted(
    tmp_path: Path, name: str, section: Any, garbage: bytes
) -> None:
    class Garbage(Unreadable):
        def read_bytes(self, path: str) -> bytes | None:
            return garbage if FakeHost.read_bytes(self, path) is not None else None

    found = findings(CHECKS[name], Garbage(tmp_path / "root", machine()), section)
    absence = (None, (), 0)  # that a thing is not named is as true of garbage as of any other text
    assert {f.name: f.fact for f in found if f.status in MET and f.desired and f.desired.value not in absence} == {}


# -- looking changes nothing ----------------------------------------------------------------------


@every_section
def test_looking_and_deciding_change_nothing_and_can_be_repeated(make_host: MakeHost, name: str, section: Any) -> None:
    """Decide is pure: the same facts give the same goals, and neither facts nor section are changed by it."""
    check, host = CHECKS[name], make_host(machine(), Anything())
    before = host.snapshot(), host.directories()
    facts, kept = inspected(check, host, section), repr(section)
    assert inspected(check, host, section) == facts
    goals = check.decide(facts, section)
    copy = {key: facts[key] for key in reversed(list(facts))}
    assert check.decide(copy, section) == goals
    assert (repr(section), facts) == (kept, inspected(check, host, section))
    assert goals, "it asks for nothing"
    assert (host.snapshot(), host.directories()) == before


@every_section
def test_planning_writes_nothing_and_runs_nothing(make_host: MakeHost, name: str, section: Any) -> None:
    """T15: what plan shows comes of the code that would do it, on a host that only takes notes."""
    check = registry.fixable(CHECKS[name])
    host = make_host(machine(), Anything())
    host.put("/proc/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 1048572 0 -2\n")
    host.put("/etc/fstab", "/dev/sda2 none swap sw 0 0\n")
    before = host.snapshot()
    changes = plan(f for f in findings(CHECKS[name], host, section))
    ran = len(host.ran)
    rehearsal = Rehearsal(host)
    if check is None:
        pytest.skip(f"{name} changes nothing")
    for facet in dict.fromkeys(c.facet for c in changes):
        with contextlib.suppress(HostprepError):
            check.apply(rehearsal, [c for c in changes if c.facet is facet])
        if finish := registry.finisher(check):
            finish(rehearsal)
    assert host.snapshot() == before
    assert len(host.ran) == ran
    assert rehearsal.steps or not changes


def test_check_opens_nothing_for_writing(tmp_path: Path) -> None:
    """T12, seen from the kernel."""
    strace = shutil.which("strace", path=process.PATH)
    if strace is None:
        pytest.skip("strace is not installed")
    own = {name: str(tmp_path / name.lower()) for name in ("RUN", "STATE", "CACHE")}
    env = {f"HOSTPREP_{name}_DIR": path for name, path in own.items()} | {"PYTHONDONTWRITEBYTECODE": "1"}
    log = tmp_path / "strace"
    calls = (
        "open,openat,creat,unlink,unlinkat,rename,renameat,renameat2,mkdir,mkdirat,mount,truncate,symlink,symlinkat,"
    )
    calls += "link,linkat,chmod,fchmodat,chown,fchownat,setxattr,mknod,mknodat,reboot,swapoff,swapon,init_module"
    argv = [strace, "-f", "-qq", "-e", f"trace={calls}", "-o", str(log), sys.executable, "-m", "hostprep", "check"]
    done = subprocess.run(argv, env={**os.environ, **env}, capture_output=True, timeout=120, check=False)
    if b"ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode in (0, 1, 3, 4)
    writing = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|^\d+ +(?!open)\w+\(")
    ours = (str(tmp_path), "/dev/null", "/dev/tty")
    lines = [line for line in log.read_text(errors="replace").splitlines() if writing.search(line)]
    assert any(own["RUN"] in line for line in lines), "the report was published, and strace saw it"
    assert [line for line in lines if "(" in line and not any(f'"{path}' in line for path in ours)] == []


# -- large machines -------------------------------------------------------------------------------


def large(cpus: int, nodes: int) -> dict[str, str]:
    """A machine of many CPUs, NUMA nodes and ports, with 64 VFs a port."""
    files = debian(memory_kib=1024**3)
    files["/sys/devices/system/cpu/online"] = f"0-{cpus - 1}\n"
    files["/sys/devices/system/node/has_memory"] = f"0-{nodes - 1}\n"
    for cpu in range(cpus):
        topology = f"/sys/devices/system/cpu/cpu{cpu}/topology"
        files |= {f"{topology}/physical_package_id": f"{cpu // 64}\n", f"{topology}/core_id": f"{cpu % 64}\n"}
    for node in range(nodes):
        files[f"/sys/devices/system/node/node{node}/meminfo"] = f"Node {node} MemTotal: {1024**3 // nodes} kB\n"
        for kib in (2048, 1048576):
            files[f"/sys/devices/system/node/node{node}/hugepages/hugepages-{kib}kB/nr_hugepages"] = "0\n"
    for port in range(cpus // 16):
        for vf in range(64):
            name = f"/sys/class/net/p{port}v{vf}"
            files |= {f"{name}/type": "1\n", f"{name}/device/physfn/vendor": "0x15b3\n"}
    files["/proc/modules"] = "".join(f"m{i} 1 0 - Live 0x0\n" for i in range(cpus))
    files["/proc/self/mountinfo"] += "".join(f"{i} 1 0:1 / /proc/{i} rw - proc p rw\n" for i in range(cpus))
    return files


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The trees of two large machines, one twice the other."""
    folder = tmp_path_factory.mktemp("large")
    FakeHost(folder / "half", large(128, 4))
    FakeHost(folder / "whole", large(256, 8))
    return folder / "half", folder / "whole"


@every_check
def test_a_large_machine_costs_in_proportion(machines: tuple[Path, Path], name: str) -> None:
    """T24, mej/nhc#141: 10 s on 255 CPUs. Twice the machine takes at most about twice the questions."""

    class Counting(FakeHost):
        asked = 0

        def real(self, path: str) -> str:
            self.asked += 1
            return super().real(path)

    def questions(root: Path) -> int:
        host = Counting(root, {}, Anything())
        CHECKS[name].inspect(host)
        return host.asked

    half, whole = (questions(root) for root in machines)
    assert whole <= 2.2 * half
    assert whole < 8000
