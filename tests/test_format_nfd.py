"""`--format nfd`, by the rules of kubernetes-sigs/node-feature-discovery for a feature file."""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import examine, here, profile
from fake_gpu import A100, FIRST, P100, SECOND, Kernel, driver_files, gpu_files, installed, nvml, well
from fake_sriov import SriovHost
from fakes import FakeHost, debian
from test_render import ADVISORY, EVIL, FAIL, HOSTILE, PASS, PENDING, POWER, UNKNOWN, VOLATILE, WAIVED, made

import hostprep.__main__ as entry
from hostprep import packages, report, state
from hostprep.errors import HostError, ReportUnusable
from hostprep.formats import nfd
from hostprep.model import Fact, Unknown
from hostprep.pci import DEVICES
from hostprep.report import Identity

UDEVS = "GA100-A100-SXM4-80GB"  # GA100 [A100 SXM4 80GB]
PF0, PF1 = "0000:17:00.0", "0000:17:00.1"
NOTHING = {"hostprep.ready": "false"}


# -- their rules --------------------------------------------------------------------------------------


def read(text: str, now: float | None = None) -> dict[str, str]:
    """The labels of a feature file: getFileContent, parseFeatureFile and parseDirectives of source/local/local.go.

    What NFD only writes into its log is an error here: a directive that it does not know or cannot parse.
    """
    now = time.time() if now is None else now
    assert len(text.encode()) <= 65536, "MaxFeatureFileSize: it would pass over the file"
    end, labels = now, {}
    for row in map(str.strip, text.split("\n")):
        if row.startswith("# +"):
            assert re.fullmatch(r"# \+expiry-time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row), row
            end = calendar.timegm(time.strptime(row, "# +expiry-time=%Y-%m-%dT%H:%M:%SZ"))
        elif row and not row.startswith("#") and end >= now:
            name, equals, value = row.partition("=")
            assert name not in labels, f"{name} is there twice"
            labels[name] = value if equals else "true"
    for name, value in labels.items():
        assert_label(name, value)
    return labels


def assert_label(name: str, value: str) -> None:
    """IsQualifiedName and IsValidLabelValue of k8s.io/apimachinery, as GetFeatureLabels and validate.Label ask them.

    A name without a namespace gets feature.node.kubernetes.io/; a value that begins with @ names another feature.
    """
    letters = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
    assert re.fullmatch(letters, name), name
    assert re.fullmatch(f"({letters})?", value), value


# -- the verdict --------------------------------------------------------------------------------------

VERDICTS = {
    "ready": ([PASS], "true", "ready", "false"),
    "ready with waivers": ([PASS, WAIVED, ADVISORY], "true", "ready", "false"),
    "ready until the next boot": ([VOLATILE], "true", "ready", "false"),
    "not ready": ([PASS, FAIL], "false", "not-ready", "false"),
    "waits for a reboot": ([PENDING], "false", "pending-reboot", "true"),
    "waits for a power cycle": ([PENDING, POWER], "false", "pending-power-cycle", "false"),
    "unknown": ([UNKNOWN], "false", "unknown", "false"),
    "nothing required": ([ADVISORY], "false", "unknown", "false"),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_the_labels_say_the_verdict(case: str) -> None:
    findings, ready, verdict, reboot = VERDICTS[case]
    assert read(nfd.render(made(*findings))) == {
        "hostprep.ready": ready,
        "hostprep.verdict": verdict,
        "hostprep.profile": "test",
        "hostprep.reboot-required": reboot,
    }


def test_a_look_at_a_part_tells_nothing_of_the_host() -> None:
    assert read(nfd.render(made(PASS, selection=["swap"]))) == NOTHING


def test_all_of_it_lapses_with_the_report() -> None:
    """R61: an agent that is gone leaves no label that says ready; without a time, labels stay for ever."""
    whole = made(PASS)
    text, end = nfd.render(whole), whole.generated_at + whole.valid_for
    assert len(read(text, end)) == 4
    assert read(text, end + 1) == {}


@pytest.mark.parametrize("valid_for", [0, 10**12, 10**20])
def test_its_end_can_be_parsed_however_long_it_is_valid(valid_for: int) -> None:
    """parseFeatureFile goes on with a time that it cannot parse as if there were none, and nothing lapses."""
    assert len(read(nfd.render(made(PASS)._replace(valid_for=valid_for)), time.time() - 5)) == 4


def test_looks_that_see_the_same_give_the_same_labels() -> None:
    """Every label that changes has the node written anew."""
    first = made(PASS)
    later = first._replace(generated_at=first.generated_at + 300, uptime=first.uptime + 300, duration_ms=9)
    differing = set(nfd.render(first).splitlines()) ^ set(nfd.render(later).splitlines())
    assert {line.partition("=")[0] for line in differing} == {"# +expiry-time"}


# -- the facts ----------------------------------------------------------------------------------------


def seen(host: FakeHost, **sections: Any) -> dict[str, str]:
    """The labels of a host for what the checks see there, without the `hostprep.` before them."""
    examination = examine(host, sections)
    here = Identity("node01", "0123", "1111", "6.1.0")
    made_of = report.make(examination.findings, examination.answers, profile(sections), here, time.monotonic())
    labels = {name.removeprefix("hostprep."): value for name, value in read(nfd.render(made_of)).items()}
    return {name: labels[name] for name in labels if name not in ("ready", "verdict", "profile", "reboot-required")}


def with_vfs(root: Path) -> dict[str, str]:
    host = SriovHost(root, debian())
    for address, name, count in ((PF0, "ens9f0np0", 8), (PF1, "ens9f1np1", 4)):
        host.pf(address, name)
        host.write(f"{DEVICES}/{address}/sriov_numvfs", str(count))
    return seen(host, nic_vfs=[{"pf": "ens9f0np0", "vfs": 8}])


def with_gpus(root: Path, first: str = A100, second: str = A100) -> dict[str, str]:
    files = gpu_files(FIRST, first) | gpu_files(SECOND, second, minor=1) | driver_files()
    host = FakeHost(root, debian() | files)
    host.nvml_answer = nvml({FIRST: well(first), SECOND: well(second)})
    Kernel(host)
    return seen(host, gpu={"count": 2})


def without_its_driver(root: Path) -> dict[str, str]:
    host = FakeHost(root, debian() | gpu_files(driver="") | installed())
    host.nvml_answer = HostError("NVML was asked, and would have loaded the driver")
    Kernel(host, loaded=())
    return seen(host, gpu={"count": 1, "driver": "unloaded"})


FACTS: dict[str, tuple[Callable[[Path], dict[str, str]], dict[str, str]]] = {
    "huge pages": (
        lambda root: seen(FakeHost(root, debian(pages_2m=512, pages_1g=4)), hugepages={"1GiB": 4}),
        {"hugepages-1GiB": "4", "hugepages-2MiB": "512"},
    ),
    "VFs": (with_vfs, {"vfs": "12"}),
    "GPUs": (with_gpus, {"gpus": "2", "gpu-model": "NVIDIA-A100-SXM4-80GB", "gpu-driver": "550.90.12"}),
    "GPUs of two models": (lambda root: with_gpus(root, A100, P100), {"gpus": "2", "gpu-driver": "550.90.12"}),
    "a GPU for a worker": (without_its_driver, {"gpus": "1", "gpu-model": UDEVS, "gpu-driver": "unloaded"}),
    "nothing of it": (lambda root: seen(FakeHost(root, debian()), swap="disabled"), {}),
}


@pytest.mark.parametrize("case", FACTS)
def test_the_labels_say_what_is_there(case: str, tmp_path: Path) -> None:
    look, wanted = FACTS[case]
    assert look(tmp_path / "root") == wanted


@pytest.mark.parametrize("key", [f"{PF0}/vfs", "1GiB", "driver/version"])
def test_of_what_is_not_known_there_is_no_label(key: str) -> None:
    """A sum of VFs of which one part is not known is no sum."""
    known = {f"{PF1}/vfs": Fact.fixed(8), "2MiB": Fact.fixed(0), f"{FIRST}/bus": Fact.fixed("answers")}
    gone = {"1GiB": "hugepages-1GiB", f"{PF0}/vfs": "vfs", "driver/version": "gpu-driver"}[key]
    told = read(nfd.render(made(PASS)._replace(facts={"a": {**known, key: Fact.fixed(Unknown("EIO"))}})))
    rest = {"vfs", "hugepages-2MiB", "gpus"} - {gone}
    assert {f"hostprep.{name}" for name in rest} == {n for n in told if re.search("vfs|pages|gpu", n)}


# -- whatever the host says ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("pbs-gpu-node", "pbs-gpu-node"),
        ("Tesla P100-PCIE-16GB", "Tesla-P100-PCIE-16GB"),
        ("@local.label.x", "local.label.x"),
        ("-a-", "a"),
        ("a" * 62 + ".b", "a" * 62),
        ("a" * 70, "a" * 63),
        ("日本", ""),
        ("", ""),
    ],
)
def test_text_becomes_a_value_that_labels_can_have(text: str, value: str) -> None:
    assert read(nfd.render(made(PASS)._replace(profile=text)))["hostprep.profile"] == value


def test_text_of_the_host_makes_no_label_of_its_own() -> None:
    """T8. A profile may be called `x\\nhostprep.ready=true`."""
    hostile = f"{HOSTILE}\nhostprep.ready=true\n# +expiry-time=9999-01-01T00:00:00Z\r"
    facts = {f"{FIRST}/bus": Fact.fixed(1), f"{FIRST}/name": Fact.fixed(hostile), hostile: Fact.fixed(3)}
    whole = EVIL._replace(profile=hostile, facts={hostile: {**facts, "driver/version": Fact.fixed(hostile)}})
    told = read(nfd.render(whole))
    names = {"ready", "verdict", "profile", "reboot-required", "gpus", "gpu-model", "gpu-driver"}
    assert set(told) == {f"hostprep.{name}" for name in names}
    assert told["hostprep.ready"] == "false"


# -- no report ----------------------------------------------------------------------------------------


def test_without_a_report_the_host_is_not_ready_and_stays_so() -> None:
    assert read(nfd.unusable(ReportUnusable(f"{HOSTILE}\nhostprep.ready=true")), time.time() + 1e9) == NOTHING


@pytest.mark.parametrize("broken", ["missing", "damaged", "of another boot"])
def test_an_older_file_does_not_go_on_saying_ready(broken: str, tmp_path: Path) -> None:
    file = tmp_path / "hostprep"
    words = ["report", "--format", "nfd", "--output", str(file)]

    state.publish(here(PASS))
    assert entry.run(words) == 0
    assert read(file.read_text())["hostprep.ready"] == "true"
    if broken == "missing":
        Path(state.report_path()).unlink()
    elif broken == "damaged":
        Path(state.report_path()).write_text("{")
    else:
        state.publish(here(PASS)._replace(boot_id="another"))
    assert entry.run(words) == 3
    assert read(file.read_text()) == NOTHING
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["hostprep"]
    assert file.stat().st_mode & 0o777 == 0o644, "nfd-worker is not root"


def test_the_unit_writes_where_node_feature_discovery_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """featureFilesDir of local.go; without the directory there is no NFD, and the unit does not fail for it."""
    folder = "/etc/kubernetes/node-feature-discovery/features.d"
    monkeypatch.setattr(packages, "words", lambda: ["/opt/hostprep/bin/hostprep"])
    items = packages.TARGETS["nfd"].items(FakeHost(tmp_path / "root", {}), packages.Options())
    lines = [line for item in items for line in item.data.decode().splitlines()]
    assert f"ReadWritePaths=-{folder}" in lines
    assert f"r! {folder}/hostprep" in lines, "what an earlier boot said is gone before NFD reads it"
    assert f"ExecStart=-/opt/hostprep/bin/hostprep report --format nfd --output {folder}/hostprep" in lines
