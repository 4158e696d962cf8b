"""A real node_exporter reads the textfile, a real Prometheus scrapes it, and the shipped alerts fire and end."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
import yaml
from conftest import here
from test_format_prometheus import RULES, dashboard, rules, series
from test_render import EVIL, FAIL, HOSTILE, PASS, PENDING, POWER, UNKNOWN, WAIVED, finding

import hostprep.__main__ as entry
from hostprep import commands, files, state
from hostprep.formats import prometheus
from hostprep.model import Finding

T = TypeVar("T")
PATIENCE = 60.0
QUIET = {"HostprepFlapping"}  # what the tests before have done


class Chain(NamedTuple):
    """A node_exporter, and a Prometheus that scrapes it."""

    textfiles: Path
    exporter: str  # address:port
    prometheus: str
    log: Path  # of node_exporter


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """Both on ports of 127.0.0.1 that the kernel chose, with the shipped rules, of which only the patience is short."""
    for program in ("prometheus", "prometheus-node-exporter"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (packages prometheus, prometheus-node-exporter)")
    folder = tmp_path_factory.mktemp("chain")
    log = folder / "exporter.log"
    quick = re.sub(r"( +for:) \S+", r"\1 1s", RULES.read_text())
    assert len(yaml.safe_load(quick)["groups"][1]["rules"]) == quick.count(" for: 1s") + len(QUIET)
    (folder / "rules.yml").write_text(quick)
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # no disk holds the writer up
    with contextlib.ExitStack() as stack:
        textfiles = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=memory)))
        exporter = _start(
            stack,
            *("prometheus-node-exporter", "--web.listen-address=127.0.0.1:0", "--collector.disable-defaults"),
            *("--collector.stat", "--collector.textfile", f"--collector.textfile.directory={textfiles}"),
            log=log,
        )
        job = {"job_name": "node", "static_configs": [{"targets": [exporter]}]}
        often = {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "200ms"}
        config = {"global": often, "rule_files": ["rules.yml"], "scrape_configs": [job]}
        (folder / "prometheus.yml").write_text(json.dumps(config))
        server = _start(
            stack,
            *("prometheus", "--web.listen-address=127.0.0.1:0", f"--config.file={folder}/prometheus.yml"),
            f"--storage.tsdb.path={folder}/data",
            log=folder / "prometheus.log",
        )
        yield Chain(textfiles, exporter, server, log)


def _start(stack: contextlib.ExitStack, *argv: str, log: Path) -> str:
    """Start a program that ends with the stack; the address that its log says it listens on."""
    with log.open("wb") as f:
        process = stack.enter_context(subprocess.Popen(argv, stdout=f, stderr=f))
    stack.callback(process.kill)

    def address() -> str | None:
        assert process.poll() is None, log.read_text()
        found = re.search(r'msg="Listening on" address=(127\.0\.0\.1:\d+)', log.read_text())
        return found[1] if found else None

    return until(address)


def until(look: Callable[[], T | None]) -> T:
    """What `look` sees as soon as it sees anything; the test fails when that takes too long."""
    end = time.monotonic() + PATIENCE
    while True:
        seen = look()
        if seen:
            return seen
        assert time.monotonic() < end, f"still nothing after {PATIENCE:g} s"
        time.sleep(0.05)


def get(address: str, path: str, **query: str) -> str:
    with urllib.request.urlopen(f"http://{address}{path}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
        return str(answer.read().decode())


def ask(chain: Chain, expression: str) -> list[dict[str, Any]]:
    answer = json.loads(get(chain.prometheus, "/api/v1/query", query=expression))
    assert answer["status"] == "success"
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def is_ready(chain: Chain) -> float | None:
    """What hostprep:ready says of the one host."""
    found = ask(chain, "hostprep:ready")
    return float(found[0]["value"][1]) if found else None


def alerts(chain: Chain) -> dict[str, str]:
    """The state of every alert that is pending or firing."""
    found = json.loads(get(chain.prometheus, "/api/v1/alerts"))["data"]["alerts"]
    return {a["labels"]["alertname"]: a["state"] for a in found if a["labels"]["alertname"] not in QUIET}


def tell(chain: Chain, *findings: Finding) -> None:
    """Publish a report of these findings, and write the textfile as hostprep-publish.service does."""
    state.publish(here(*findings))
    report(chain)


def report(chain: Chain) -> None:
    entry.run(["report", "--format", "prometheus", "--output", str(chain.textfiles / "hostprep.prom")])


def leave(chain: Chain, *, generated_at: float, valid_for: int = 10**8) -> None:
    """A textfile that says ready, of another time: what is left where nobody writes it any more."""
    left = prometheus.render(here(PASS)._replace(generated_at=int(generated_at), valid_for=valid_for))
    files.replace(str(chain.textfiles / "hostprep.prom"), left.encode())


def nothing_published(chain: Chain) -> None:
    state.retract()
    report(chain)


def nothing_written(chain: Chain) -> None:
    (chain.textfiles / "hostprep.prom").unlink()


def damaged(chain: Chain) -> None:
    (chain.textfiles / "hostprep.prom").write_text('hostprep_ready 1\nhostprep_report_usable{"')


def boot_time() -> int:
    return int(re.findall(r"^btime (\d+)", Path("/proc/stat").read_text(), re.MULTILINE)[0])


SITUATIONS: dict[str, tuple[Callable[[Chain], None], set[str]]] = {
    "not ready": (lambda c: tell(c, PASS, FAIL), {"HostprepNotReady"}),
    "unknown": (lambda c: tell(c, PASS, UNKNOWN), {"HostprepUnknown"}),
    "waits for a reboot": (lambda c: tell(c, PENDING), {"HostprepWaitsForReboot"}),
    "waits for a power cycle": (lambda c: tell(c, POWER), {"HostprepWaitsForPowerCycle"}),
    "no report": (nothing_published, {"HostprepReportUnusable"}),
    "too old": (lambda c: leave(c, generated_at=time.time() - 20, valid_for=10), {"HostprepReportTooOld"}),
    "from the future": (lambda c: leave(c, generated_at=time.time() + 9000), {"HostprepReportFromTheFuture"}),
    "of an earlier boot": (lambda c: leave(c, generated_at=boot_time() - 5), {"HostprepReportOfEarlierBoot"}),
    "no textfile": (nothing_written, {"HostprepReportMissing", "HostprepNoReports"}),
    "a damaged textfile": (damaged, {"HostprepTextfileError", "HostprepReportMissing", "HostprepNoReports"}),
}


@pytest.fixture
def well(chain: Chain) -> Chain:
    """The chain, with a host that is ready, and nothing of the test before."""
    tell(chain, PASS)
    until(lambda: is_ready(chain) == 1 and not alerts(chain))
    return chain


@pytest.mark.parametrize("name", SITUATIONS)
def test_an_alert_fires_and_ends(well: Chain, name: str) -> None:
    """And nowhere on the way does hostprep:ready go on saying 1, as hostprep_ready may."""
    situation, expected = SITUATIONS[name]
    situation(well)
    until(lambda: "pending" in alerts(well).values())
    until(lambda: is_ready(well) == 0)
    until(lambda: alerts(well) == dict.fromkeys(expected, "firing"))
    tell(well, PASS)
    until(lambda: is_ready(well) == 1 and not alerts(well))


def test_flapping_is_seen(well: Chain) -> None:
    for _ in range(3):
        for findings, value in ((FAIL, "0"), (PASS, "1")):
            tell(well, findings)
            until(lambda value=value: ask(well, f"hostprep_ready == {value}"))
    assert until(lambda: ask(well, 'ALERTS{alertname="HostprepFlapping",alertstate="firing"}'))


def test_what_an_alert_says_names_the_findings(well: Chain) -> None:
    tell(well, FAIL, finding(FAIL.status, "hostile/" + HOSTILE), FAIL._replace(key="waived", waived="till later"))

    def said() -> str | None:
        found = json.loads(get(well.prometheus, "/api/v1/alerts"))["data"]["alerts"]
        wrong = [a for a in found if a["labels"]["alertname"] == "HostprepNotReady"]
        return str(wrong[0]["annotations"]["description"]) if wrong else None

    description = until(said)
    assert "swap/devices is fail. " in description
    assert "swap/hostile/a" in description
    assert "waived" not in description


def test_text_of_the_host_arrives_as_labels_and_as_nothing_else(well: Chain) -> None:
    """T8, and no sample is there twice: node_exporter would log it, and leave one out."""
    before = len(well.log.read_text())
    files.replace(str(well.textfiles / "hostprep.prom"), prometheus.render(EVIL).encode())
    expected = {name for name in series(prometheus.render(EVIL)) if name.startswith("hostprep_finding_ok")}
    found = until(lambda: ask(well, 'hostprep_finding_ok{check="swap",key=~"(?s:.*end)"}'))
    assert len(found) == len(expected) == 1
    assert found[0]["metric"]["key"] == "".join(c if c.isprintable() or c == "\n" else " " for c in HOSTILE)
    assert well.log.read_text()[before:] == ""


def test_rewriting_never_shows_half_a_file(well: Chain) -> None:
    """In place every second scrape would fail; and a temporary file that ends in .prom would be read too."""
    whole = here(*(finding(key=f"0000:17:00.0/vf{n}/trust") for n in range(1016)))
    before, after = prometheus.render(whole._replace(version="@")).split("@")
    stop = threading.Event()

    def rewrite() -> None:
        for n in itertools.takewhile(lambda _: not stop.wait(0.001), itertools.count()):
            commands.emit(f"{before}{n}{after}", str(well.textfiles / "hostprep.prom"))

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        seen: set[str] = set()
        end = time.monotonic() + PATIENCE
        while len(seen) < 50 and time.monotonic() < end:
            said = get(well.exporter, "/metrics")
            assert "\nnode_textfile_scrape_error 0\n" in said
            assert said.count("\nhostprep_finding_ok{") in (1, 1016), "1: what the fixture wrote"
            seen |= set(re.findall(r'hostprep_build_info{version="(.*)"} 1', said))
            assert said.count("node_textfile_mtime_seconds{") == 1
    finally:
        stop.set()
        writer.join()
    assert len(seen) == 50, "the file was not rewritten while it was scraped"


def test_every_query_is_answered(well: Chain) -> None:
    """Each of the rules and the dashboard is one that Prometheus understands; each of a panel finds something."""
    for rule in (*rules("record").values(), *rules("alert").values()):
        ask(well, rule["expr"])
    targets = {target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]}
    answered: set[str] = set()

    def all_answered(what: set[str]) -> bool:
        answered.update(e for e in what - answered if ask(well, re.sub(r"\$(job|instance)", ".*", e)))
        return what <= answered

    rich = here(PASS, FAIL._replace(key="a"), UNKNOWN._replace(key="b"), WAIVED._replace(key="c"))
    state.publish(rich._replace(durations={"swap": 12}))
    report(well)
    refused = {e for e in targets if "report_unusable" in e}
    until(lambda: all_answered(targets - refused))
    nothing_published(well)
    until(lambda: all_answered(refused))


def test_a_silent_host_is_offered_by_the_dashboard(well: Chain) -> None:
    """Its variables list the hosts that are expected, not only those that say something now."""
    variables = {v["name"]: v["definition"] for v in dashboard()["templating"]["list"] if "definition" in v}
    nothing_written(well)
    until(lambda: not ask(well, "hostprep_ready"))
    for name, definition in variables.items():
        selector = re.fullmatch(r"label_values\((.+), (\w+)\)", definition)
        assert selector is not None
        assert selector[2] == name
        assert ask(well, selector[1].replace("$job", ".*"))
