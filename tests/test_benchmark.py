"""The check `benchmark`: figures that were measured, judged; and how they are measured (J8)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from conftest import findings
from fakes import FakeHost, debian

from hostprep import benchmarks, profile_source, registry
from hostprep.checks import benchmark as check
from hostprep.errors import CommandFailed, HostError, ProfileError
from hostprep.host import Host
from hostprep.model import Finding

MakeHost = Callable[..., FakeHost]
HIMENO = {
    "command": ["/opt/himeno/bmt", "L"],
    "pattern": r"MFLOPS: ([\d.]+)",
    "baseline": 252,
    "tolerance": "3%",
    "image": "himeno:1",
    "compare": "2%",
}
INTEGRATION = {
    "command": ["/opt/bench"],
    "baseline": "102.2",
    "tolerance": "3%",
    "image": "site/bench",
    "compare": "2%",
}
DAY = 86400


def measured(host: FakeHost, want: Any, age: int = 0, /, **result: Any) -> FakeHost:
    """A host on which that was measured so many seconds ago."""
    (one,) = benchmarks.benchmarks(want)
    kept = {one.name: {"of": one.of, "at": int(time.time()) - age, **result}}
    host.put(benchmarks.results_file(), json.dumps({"machine": "0123456789abcdef0123456789abcdef", "results": kept}))
    return host


def judged(host: FakeHost, want: Any) -> dict[str, Finding]:
    return {name.removeprefix("benchmark/"): f for name, f in findings(host, {"benchmark": want}).items()}


def statuses(host: FakeHost, want: Any) -> dict[str, str]:
    return {name: f.status.value for name, f in judged(host, want).items()}


# -- judging --------------------------------------------------------------------------------------


def test_the_himeno_figures_of_the_paper(make_host: MakeHost) -> None:
    """J8: 251.6/252.3/251.6 MFLOPS on the host, 252.5/252.6/253.1 in a container: no slower."""
    host = measured(make_host(debian()), {"h": HIMENO}, host=[251.6, 252.3, 251.6], container=[252.5, 252.6, 253.1])
    found = judged(host, {"h": HIMENO})
    assert {name: f.status.value for name, f in found.items()} == dict.fromkeys(
        ("h/host", "h/container", "h/compare"), "pass"
    )
    assert found["h/host"].fact.current == "251.6 (at least 244.44)"
    assert found["h/compare"].fact.current == "0.40% faster (at most 2% slower)"


def test_the_integration_times_of_the_paper(make_host: MakeHost) -> None:
    """J8: 102.26/102.15/102.19 s on the host, 99.92/99.98/99.99 s in a container. Without a pattern, less is better."""
    host = measured(
        make_host(debian()), {"i": INTEGRATION}, host=[102.26, 102.15, 102.19], container=[99.92, 99.98, 99.99]
    )
    assert set(statuses(host, {"i": INTEGRATION}).values()) == {"pass"}


@pytest.mark.parametrize(
    ("want", "host", "container", "status", "compare"),
    [
        (HIMENO, [244.5], [252], "pass", "pass"),
        (HIMENO, [244.4], [252], "fail", "pass"),
        (HIMENO, [300], [299], "pass", "pass"),
        (HIMENO, [252], [246], "pass", "fail"),
        (HIMENO, [200, 252, 300], [252], "pass", "pass"),
        (HIMENO, [200, 201, 300], [252], "fail", "pass"),
        (INTEGRATION, [105.2], [106], "pass", "pass"),
        (INTEGRATION, [105.3], [105.3], "fail", "pass"),
        (INTEGRATION, [50], [52], "pass", "fail"),
        ({**HIMENO, "better": "lower"}, [259], [260], "pass", "pass"),
        ({**HIMENO, "better": "lower"}, [260], [250], "fail", "pass"),
    ],
)
def test_only_what_is_worse_by_more_than_the_tolerance_fails(
    make_host: MakeHost, want: Any, host: list[float], container: list[float], status: str, compare: str
) -> None:
    found = statuses(measured(make_host(debian()), {"x": want}, host=host, container=container), {"x": want})
    assert (found["x/host"], found["x/compare"]) == (status, compare)


def test_a_failure_says_how_far_off_and_how_sure_it_is(make_host: MakeHost) -> None:
    host = measured(make_host(debian()), {"h": HIMENO}, 3 * DAY, host=[238, 239.1, 240.2], container=[200.0])
    found = judged(host, {"h": HIMENO})
    assert found["h/host"].message == (
        "h, host: 239.1 is 5.1% below the baseline 252, 3% is allowed (3 runs, 238 to 240.2, 3 days ago)."
    )
    assert found["h/compare"].message == "h: the container is 16.35% slower than the host (200, 239.1), 2% is allowed."


def test_the_spread_has_a_limit_of_its_own(make_host: MakeHost) -> None:
    want = {"h": {"command": ["x"], "spread": "5%"}}
    found = judged(measured(make_host(debian()), want, host=[100, 103, 106]), want)
    assert found["h/host"].status.value == "pass"
    assert found["h/host/spread"].message == "h/host: its runs are 5.83% apart (100 to 106), 5% is allowed."


# -- what cannot be judged ------------------------------------------------------------------------


def test_what_was_never_measured_is_unknown_and_says_how_to(make_host: MakeHost) -> None:
    found = judged(make_host(debian()), {"h": HIMENO})
    assert {f.status.value for f in found.values()} == {"unknown"}
    assert found["h/host"].message == "h: was not measured on this host yet: hostprep check --benchmarks"


@pytest.mark.parametrize(
    ("now", "age", "result", "said"),
    [
        ({**HIMENO, "command": ["/opt/other"]}, 0, {"host": [252]}, "with another command"),
        ({**HIMENO, "valid_for": "30d"}, 31 * DAY, {"host": [252]}, "was measured 31 days ago, and counts for 30d"),
        (HIMENO, -9000, {"host": [252]}, "is the clock right?"),
        (HIMENO, 0, {"host": "exit 127: himeno: not found"}, "h, host: exit 127: himeno: not found"),
        (HIMENO, 0, {}, "h, host: was not measured"),
    ],
)
def test_a_result_that_does_not_count_is_unknown(
    make_host: MakeHost, now: Any, age: int, result: dict[str, Any], said: str
) -> None:
    before = {**HIMENO, **({"valid_for": now["valid_for"]} if "valid_for" in now else {})}
    found = judged(measured(make_host(debian()), {"h": before}, age, **result), {"h": now})["h/host"]
    assert (found.status.value, said in found.message) == ("unknown", True), found.message


def test_a_result_counts_after_a_change_of_what_is_wanted_of_it(make_host: MakeHost) -> None:
    host = measured(make_host(debian()), {"h": HIMENO}, 400 * DAY, host=[252], container=[252])
    assert set(statuses(host, {"h": {**HIMENO, "baseline": 200, "tolerance": "1%"}}).values()) == {"pass"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "damaged"),
        ('{"results": {"h": {"of": "x", "at": 1, "host": []}}}', "damaged"),
        ('{"results": {"h": {"of": "x", "at": 1, "host": [0]}}}', "damaged"),
        ('{"results": {"h": {"of": "x", "at": -1}}}', "damaged"),
        ('{"machine": "that of the disk\'s original", "results": {}}', "on another machine"),
    ],
)
def test_results_that_are_not_this_machines_are_unknown(make_host: MakeHost, text: str, said: str) -> None:
    """A cloned disk brings the results of the node that it was cloned from."""
    found = judged(make_host({**debian(), benchmarks.results_file(): text}), {"h": HIMENO})
    assert {name: (f.status.value, said in f.message) for name, f in found.items()} == {"*": ("unknown", True)}


# -- measuring ------------------------------------------------------------------------------------


def shell(*answers: str | HostError) -> Callable[[Sequence[str]], str]:
    """What runs of a command say, one after the other."""
    left = list(answers)

    def run(argv: Sequence[str]) -> str:
        answer = left.pop(0)
        if isinstance(answer, HostError):
            raise answer
        return answer

    return run


def test_host_and_container_run_in_turn_and_the_container_goes(make_host: MakeHost) -> None:
    want = {"himeno": {**HIMENO, "runs": 2, "options": ["--gpus=all"], "user": "pbs", "in": "/opt"}}
    said = [f"MFLOPS: 1.0\nMFLOPS: {n}" for n in (251.6, 252.5, 252.3, 252.6)]
    host = make_host(debian(), {"sh": shell(*said), "docker": ""})
    told: list[str] = []
    check.measure(host, want, told.append)
    assert told[0] == "himeno, host, run 1 of 2: 251.6"
    runs = [line for line in host.ran if line.startswith("sh ")]
    assert runs[0].endswith(" sh /opt runuser -u pbs -- /opt/himeno/bmt L")
    name = runs[1].partition(" --name ")[2].split()[0]
    options = f"run --rm --pull=never --name {name} --user pbs --workdir /opt --gpus=all"
    assert runs[1].endswith(f"docker --context default {options} himeno:1 /opt/himeno/bmt L")
    assert host.ran.count(f"docker --context default rm --force {name}") == 2
    assert [(f.fact.current, f.status.value) for f in judged(host, want).values()] == [
        ("251.95 (at least 244.44)", "pass"),
        ("252.55 (at least 244.44)", "pass"),
        ("0.24% faster (at most 2% slower)", "pass"),
    ]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (HostError("sh: no answer within 600 s"), "no answer within 600 s"),
        (
            "Segmentation fault\n",
            "no figure: 'MFLOPS: ([\\\\d.]+)' does not match; its last line is 'Segmentation fault'",
        ),
        ("", "its last line is 'nothing'"),
        ("MFLOPS: ...", "which is no number"),
        ("MFLOPS: 0.0", "no figure"),
    ],
)
def test_a_run_that_gives_no_figure_ends_the_others_and_is_unknown(
    make_host: MakeHost, answer: str | HostError, said: str
) -> None:
    want = {"h": {key: HIMENO[key] for key in ("command", "pattern", "baseline")}}
    host = make_host(debian(), {"sh": shell(answer)})
    check.measure(host, want, lambda line: None)
    found = judged(host, want)["h/host"]
    assert (found.status.value, said in found.message) == ("unknown", True), found.message


def test_an_engine_that_does_not_run_is_told_by_its_own_first_line(make_host: MakeHost) -> None:
    output = (
        "docker: Error response from daemon: No such image: himeno:1\n\nRun 'docker run --help' for more information\n"
    )
    failed = CommandFailed("sh: exit 125: Run 'docker run --help'", status=125, output=output)
    host = make_host(debian(), {"sh": shell("MFLOPS: 252", failed), "docker": ""})
    check.measure(host, {"h": {**HIMENO, "runs": 1}}, lambda line: None)
    found = judged(host, {"h": {**HIMENO, "runs": 1}})
    assert found["h/host"].status.value == "pass"
    assert found["h/container"].message == "h, container: docker: Error response from daemon: No such image: himeno:1"


def test_results_of_other_benchmarks_stay(make_host: MakeHost) -> None:
    other = {"other": {"command": ["x"]}}
    host = measured(make_host(debian(), {"sh": "MFLOPS: 252"}), other, host=[7.5])
    check.measure(host, {"h": {"command": ["y"], "runs": 1}}, lambda line: None)
    assert statuses(host, other) == {"other/host": "pass"}


def test_a_real_command_is_run_and_timed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine: stderr counts too, the directory is the one named, and the time is what it took."""
    monkeypatch.setenv("HOSTPREP_STATE_DIR", str(tmp_path))
    want = {
        "where": {
            "command": ["sh", "-c", "pwd >&2; echo 42.5 >&2"],
            "in": str(tmp_path),
            "pattern": r"\n([\d.]+)",
            "runs": 1,
        },
        "nap": {"command": ["sleep", "0.1"], "runs": 2},
        "slow": {"command": ["sleep", "60"], "timeout": "1s", "runs": 3},
    }
    check.measure(Host(), want, lambda line: None)
    facts = check.inspect(Host())
    assert facts["where/host"].current == "42.5"
    assert 0.1 <= float(str(facts["nap/host"].current)) < 30
    assert "no answer within 1 s" in repr(facts["slow/host"].current)


# -- memory bandwidth -----------------------------------------------------------------------------


def test_memory_bandwidth_takes_one_cpu_of_each_core_and_adds_up_the_nodes(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = "/sys/devices/system/cpu/cpu"
    files = {f"{cpu}{n}/topology/physical_package_id": f"{n // 2}\n" for n in (0, 1, 2, 3)}
    files |= {f"{cpu}{n}/topology/core_id": f"{n % 2 if n < 2 else 0}\n" for n in (0, 1, 2, 3)}  # 2 and 3 are one core
    files |= {f"{cpu}{n}/node{n // 2}/": "" for n in (0, 1, 2, 3)} | {f"{cpu}4/": ""}  # 4 is offline
    seen: list[Any] = []

    def copied(self: Host, cores: Sequence[tuple[int, int]], available: int, seconds: float) -> dict[int, int]:
        seen.append(list(cores))
        return {0: 20_000_000_000, 1: 9_900_000_000}

    monkeypatch.setattr(FakeHost, "memory_bandwidth", copied)
    host = make_host({**debian(), **files})
    check.measure(host, "memory-bandwidth", lambda line: None)
    assert seen == [[(0, 0), (1, 0), (2, 1)]] * 3
    assert check.inspect(host)["memory-bandwidth/node1"].current == "9.9"
    assert judged(host, "memory-bandwidth")["memory-bandwidth/host"].fact.current == "29.9"
    assert statuses(host, {"memory-bandwidth": {"baseline": 40}}) == {"memory-bandwidth/host": "fail"}


def test_the_memory_of_this_machine_has_a_bandwidth() -> None:
    try:
        found = Host().memory_bandwidth([(0, 0)], 1 << 30, 0.2)
    except HostError as e:
        if "busy" in str(e) or "cores" in str(e):
            pytest.skip(str(e))
        raise
    assert 100e6 < found[0] < 2000e9, "between a very slow machine and none that there is"


def test_too_little_memory_is_no_figure() -> None:
    with pytest.raises(HostError, match="1 cores and 8 MiB of free memory are too little"):
        Host().memory_bandwidth([(0, 0)], 8 << 20, 0.1)


# -- profiles -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("{h: {command: ./himeno}}", "a command as a list of words"),
        ("{h: {command: [x], pattern: 'MFLOPS: .*'}}", "a regular expression with one group"),
        ("{h: {command: [x], baseline: fast}}", "the figure of a good node"),
        ("{h: {command: [x], baseline: 0}}", "at least 1"),
        ("{h: {command: [x], tolerance: 3%}}", "tolerance needs baseline"),
        ("{h: {command: [x], baseline: 3, tolerance: 3}}", "may be, such as 3%"),
        ("{h: {command: [x], compare: 3%}}", "compare needs image"),
        ("{h: {command: [x], image: i, engine: lxc}}", "not one of: docker, podman"),
        ("{memory-bandwidth: {command: [x]}}", "command"),
        ("{h: {}}", "command must be given"),
        ("himeno", "memory-bandwidth, or names with their benchmarks"),
    ],
)
def test_a_profile_that_is_not_valid_is_told_what_belongs_there(section: str, said: str) -> None:
    with pytest.raises(ProfileError) as e:
        profile_source.validate("p.yaml", f"name: x\nbenchmark: {section}\n".encode(), registry.load())
    assert said in str(e.value)


def test_a_regular_expression_that_is_none_is_told_when_it_is_used(make_host: MakeHost) -> None:
    want = {"h": {"command": ["x"], "pattern": "(MFLOPS: [0-9+)", "runs": 1}}
    host = make_host(debian(), {"sh": "MFLOPS: 1"})
    check.measure(host, want, lambda line: None)
    assert "is no regular expression" in judged(host, want)["h/host"].message


def test_who_never_came_to_copy_is_no_figure() -> None:
    """On a host whose cores are taken: 0 bytes a second is what nobody has measured."""
    with pytest.raises(HostError, match="is this host busy"):
        Host().memory_bandwidth([(0, 0)], 1 << 30, 0.0)
