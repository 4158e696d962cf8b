"""Benchmarks: how they are run, and where their results are kept. What the results should be, the check decides."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from hostprep.engines import COMMANDS
from hostprep.errors import HostError
from hostprep.host import Host
from hostprep.quantities import parse_duration

MEMORY = "memory-bandwidth"
HOST, CONTAINER = "host", "container"
MEASURE = "hostprep check --benchmarks"
_RUNS = 3
_TIMEOUT = "10m"
_COPY_S = 2.0  # seconds that one run of the memory's bandwidth counts
_OF_ENGINE = 125  # the exit status of docker and podman for an error of their own
_LIMIT = 200  # characters of an error that is kept

Say = Callable[[str], None]
Result = dict[str, Any]  # of, at; host and container: figures, or why there are none; nodes


class Benchmark(NamedTuple):
    """One benchmark, as a profile asks for it."""

    name: str
    want: Mapping[str, Any]

    @property
    def lower(self) -> bool:
        """Is less better?"""
        timed = self.name != MEMORY and "pattern" not in self.want
        return bool(self.want.get("better", "lower" if timed else "higher") == "lower")

    @property
    def of(self) -> str:
        """What decides about its figures, in a word: those of another command are others."""
        import hashlib

        keys = ("command", "pattern", "in", "user", "image", "engine", "options", "image_command")
        made = json.dumps([self.want.get(key) for key in keys])
        return hashlib.sha256(made.encode()).hexdigest()[:12]

    @property
    def places(self) -> tuple[str, ...]:
        return (HOST, CONTAINER) if "image" in self.want else (HOST,)


def benchmarks(want: Any) -> Iterator[Benchmark]:
    section = {want: {}} if isinstance(want, str) else want
    return (Benchmark(name, asked or {}) for name, asked in section.items())


def results_file() -> str:
    """Where the results are: beside the journal, in $HOSTPREP_STATE_DIR or /var/lib/hostprep."""
    return f"{os.environ.get('HOSTPREP_STATE_DIR') or '/var/lib/hostprep'}/benchmarks.json"


def results(host: Host) -> dict[str, Result]:
    """What was measured, by name. HostError where it is damaged, or of another machine."""
    path = results_file()
    text = host.read(path)
    if text is None:
        return {}
    try:
        data = json.loads(text)
        found: dict[str, Result] = data["results"]
        for result in found.values():
            _must_be_a_result(result)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise HostError(f"{path}: damaged, measure again: {MEASURE}") from e
    if data.get("machine") != _machine(host):
        raise HostError(f"{path}: was measured on another machine, measure on this one: {MEASURE}")
    return found


def _must_be_a_result(result: Result) -> None:
    """ValueError, KeyError or TypeError where it is none."""
    good = isinstance(result["of"], str) and type(result["at"]) is int and result["at"] >= 0
    for where in {HOST, CONTAINER} & result.keys():
        runs = result[where]
        good &= isinstance(runs, str) or (bool(runs) and all(type(r) in (int, float) and r > 0 for r in runs))
    if not good or not all(type(figure) in (int, float) for figure in result.get("nodes", {}).values()):
        raise ValueError("no result")


def _machine(host: Host) -> str | None:
    return host.read("/etc/machine-id")


def median(runs: Sequence[float]) -> float:
    ordered = sorted(runs)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def show(figure: float) -> str:
    return f"{figure:.6g}"


# -- measuring ------------------------------------------------------------------------------------


def run(host: Host, want: Any, say: Say) -> None:
    """Run the benchmarks of a section, and keep what they gave."""
    for benchmark in benchmarks(want):
        result: Result = {"of": benchmark.of, "at": int(time.time())}
        result |= _memory(host, benchmark, say) if benchmark.name == MEMORY else _runs(host, benchmark, say)
        _keep(host, benchmark.name, result)  # at once: the next one may take hours, and be stopped


def _keep(host: Host, name: str, result: Result) -> None:
    try:
        others = results(host)
    except HostError:  # damaged, or of another machine
        others = {}
    data = {"machine": _machine(host), "results": {**others, name: result}}
    host.replace(results_file(), json.dumps(data, indent=1) + "\n")


def _runs(host: Host, benchmark: Benchmark, say: Say) -> Result:
    """All runs, host and container in turn: what drifts meanwhile is then in both. An error ends those of its place."""
    count = benchmark.want.get("runs", _RUNS)
    found: dict[str, Any] = {where: [] for where in benchmark.places}
    for number in range(1, count + 1):
        for where in benchmark.places:
            if isinstance(found[where], str):
                continue
            try:
                figure = _run(host, benchmark, where)
                found[where].append(figure)
                said = show(figure)
            except HostError as e:
                found[where] = said = str(e)[:_LIMIT]
            say(f"{benchmark.name}, {where}, run {number} of {count}: {said}")
    return found


def _run(host: Host, benchmark: Benchmark, where: str) -> float:
    want = benchmark.want
    limit = parse_duration(want.get("timeout", _TIMEOUT))
    name = f"hostprep-{benchmark.name}-{os.getpid()}"
    argv, directory = (_own(want), want.get("in", "/")) if where == HOST else (_contained(want, name), "/")
    started = time.monotonic()
    try:
        said = host.run("sh", "-c", 'cd "$1" && shift && exec "$@" 2>&1', "sh", directory, *argv, timeout=limit)
    except HostError as e:
        raise HostError(_reason(e)) from e
    finally:
        if where == CONTAINER:
            _remove(host, want.get("engine", "docker"), name)
    seconds = time.monotonic() - started
    return _read(want["pattern"], said) if "pattern" in want else seconds


def _reason(e: HostError) -> str:
    """Why a run failed. Where it is the engine that failed, docker-run(1) says so first, and then how to get help."""
    first = next((line for line in getattr(e, "output", "").splitlines() if line.strip()), "")
    return first.strip() if first and getattr(e, "status", 0) == _OF_ENGINE else str(e).removeprefix("sh: ")


def _own(want: Mapping[str, Any]) -> list[str]:
    return [*(["runuser", "-u", want["user"], "--"] if "user" in want else []), *want["command"]]


def _contained(want: Mapping[str, Any], name: str) -> list[str]:
    user = ["--user", want["user"]] if "user" in want else []
    directory = ["--workdir", want["in"]] if "in" in want else []
    engine = [*COMMANDS[want.get("engine", "docker")], "run", "--rm", "--pull=never", "--name", name]
    command = want.get("image_command", want["command"])
    return [*engine, *user, *directory, *want.get("options", ()), want["image"], *command]


def _remove(host: Host, engine: str, name: str) -> None:
    """Away with the container: one whose client was stopped goes on running."""
    try:
        host.run(*COMMANDS[engine], "rm", "--force", name, timeout=60)
    except HostError:  # it is gone already, as it should be
        return


def _read(pattern: str, said: str) -> float:
    """The last figure that a pattern finds."""
    try:
        found = re.findall(pattern, said)
    except re.error as e:
        raise HostError(f"the pattern {pattern!r} is no regular expression: {e}") from e
    if not found:
        last = said.strip().splitlines()[-1:] or ["nothing"]
        raise HostError(f"no figure: {pattern!r} does not match; its last line is {last[0][:60]!r}")
    try:
        figure = float(found[-1])
    except (TypeError, ValueError) as e:
        raise HostError(f"no figure: {pattern!r} finds {found[-1]!r}, which is no number") from e
    if not 0 < figure < float("inf"):
        raise HostError(f"no figure: {pattern!r} finds {found[-1]!r}")
    return figure


def _memory(host: Host, benchmark: Benchmark, say: Say) -> Result:
    count = benchmark.want.get("runs", _RUNS)
    totals, nodes = [], {}
    try:
        cores = _cores(host)
        for number in range(1, count + 1):
            found = host.memory_bandwidth(cores, _available(host) // 2, _COPY_S)
            totals.append(sum(found.values()) / 1e9)
            nodes = {str(node): figure / 1e9 for node, figure in found.items()}
            say(f"{benchmark.name}, run {number} of {count}: {show(totals[-1])} GB/s")
    except HostError as e:
        say(str(e))
        return {HOST: str(e)[:_LIMIT]}
    return {HOST: totals, "nodes": nodes}


def _cores(host: Host) -> list[tuple[int, int]]:
    """One CPU of each core, with its NUMA node."""
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for path in host.glob("/sys/devices/system/cpu/cpu[0-9]*"):
        topology = f"{path}/topology"
        if not host.exists(topology):  # offline
            continue
        cpu = int(path.rpartition("/cpu")[2])
        node = next((int(n[4:]) for n in host.names(path) if re.fullmatch("node[0-9]+", n)), 0)
        core = (host.number(f"{topology}/physical_package_id"), host.number(f"{topology}/core_id"))
        found.setdefault(core, (cpu, node))
    return list(found.values())


def _available(host: Host) -> int:
    match = re.search(r"^MemAvailable:\s+([0-9]+) kB", host.read("/proc/meminfo") or "", re.M)
    if not match:
        raise HostError("/proc/meminfo: does not tell how much memory is available")
    return int(match[1]) * 1024
