r"""Benchmark: figures that were measured when asked for, against a baseline, and of a container against the host.

    benchmark: memory-bandwidth                  # hostprep's own figure, without a baseline: only to be reported
    benchmark:
      himeno:
        command: [/opt/himeno/bmt, L]
        pattern: 'MFLOPS: ([\d.]+)'              # of what it prints; the last match counts
        baseline: 252
        tolerance: 3%                            # of the baseline; 5% if not said
        image: himeno:1                          # the same command in a container of this image
        compare: 2%                              # how much slower than the host the container may be
      integration:
        command: [/opt/site/bench.sh]            # without a pattern the figure is its seconds, and lower is better
        baseline: 102.2
      memory-bandwidth: {baseline: 180, tolerance: 10%, valid_for: 90d}

Nothing is run by a look. `hostprep check --benchmarks` (as root) first runs what the profile names, refused while jobs,
containers or virtual machines run, and keeps the results in /var/lib/hostprep/benchmarks.json. Every later look, also
after a reboot, judges those. What was never measured on this very machine, or with another command than the profile now
has, or longer ago than `valid_for` (if not said, it counts for good), is unknown, and so the host is not ready: list
`benchmark` under `advisory` where it only has to be reported.

Each is run `runs` times (3), each time for at most `timeout` (10m), host and container in turn. The figure is the
median; the smallest and largest are in the report too, and `spread` limits how far they may be apart, in % of the
median. `better` is higher or lower. Only what is worse than the baseline, by more than the tolerance, fails. A run that
fails, prints no figure or takes too long makes the benchmark unknown.

in: the directory to run in. user: who runs it, root if not said. engine: docker (if not said) or podman; the container
is run with --rm --pull=never and `options`, such as --gpus=all; `image_command` where the command is another there. Its
seconds hold the start of the container too.

memory-bandwidth, in GB/s: large blocks copied on all cores at once, each in memory of its own NUMA node, every byte
counted as read and written as STREAM does. It is not a tuned STREAM and does not reach the data sheet: compare it among
equal machines with the same system. The figure of each node is in the facts, as memory-bandwidth/node0.

hostprep changes nothing here but its own results.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from hostprep.benchmarks import CONTAINER, HOST, MEASURE, MEMORY, Benchmark, Say, benchmarks, median, results, show
from hostprep.host import Host
from hostprep.model import Desired, Fact, Facts, Goals, Reading, Section, Unknown
from hostprep.quantities import DURATION_PATTERN, parse_duration

NAME = "benchmark"

_PERCENT = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?%$(?!\n)", "description": "a percentage such as 3%"}
_WORDS = {
    "description": "a command as a list of words",
    "type": "array",
    "items": {"type": "string", "pattern": r"^[^\x00]*$(?!\n)"},
    "minItems": 1,
}
_JUDGED = {
    "baseline": {
        "description": "the figure of a good node, a number greater than 0",
        "anyOf": [
            {"type": "integer", "minimum": 1},
            {"type": "string", "pattern": r"^(?=.*[1-9])[0-9]+(\.[0-9]+)?$(?!\n)"},
        ],
    },
    "tolerance": {**_PERCENT, "description": "how much worse than the baseline it may be, such as 3%"},
    "spread": {**_PERCENT, "description": "how far the runs may be apart, such as 5% of their median"},
    "runs": {"type": "integer", "minimum": 1, "maximum": 100, "description": "how often it is run"},
    "valid_for": {
        "type": "string",
        "pattern": DURATION_PATTERN,
        "description": "how long a result counts, such as 90d; for good if not said",
    },
}
_ENGINE_KEYS = ("engine", "options", "image_command", "compare")
_BENCHMARK = {
    "type": "object",
    "properties": {
        "command": _WORDS,
        "better": {"enum": ["higher", "lower"]},
        **_JUDGED,
        "timeout": {
            "type": "string",
            "pattern": DURATION_PATTERN,
            "description": "a duration such as 10m, for one run",
        },
        "in": {"type": "string", "pattern": r"^/[^\x00-\x1f]*$(?!\n)", "description": "the directory to run in"},
        "user": {"type": "string", "pattern": r"^[A-Za-z_][A-Za-z0-9_.-]*$(?!\n)", "description": "the name of a user"},
        "image": {
            "type": "string",
            "pattern": r"^[A-Za-z0-9][A-Za-z0-9._/:@-]*$(?!\n)",
            "description": "a container image that is on this host",
        },
        "engine": {"enum": ["docker", "podman"]},
        "options": {**_WORDS, "description": "options of `docker run`, such as [--gpus=all]"},
        "image_command": {**_WORDS, "description": "the command in the container, where it is another"},
        "compare": {**_PERCENT, "description": "how much slower the container may be than the host, such as 2%"},
    },
    # named by a pattern: in a list of properties it would be taken for a rule of the schema
    "patternProperties": {
        r"^pattern$(?!\n)": {
            "type": "string",
            "pattern": r"^.*\(.*\).*$(?!\n)",
            "description": r"a regular expression with one group, that of the figure: 'MFLOPS: ([\d.]+)'",
        }
    },
    "required": ["command"],
    "dependentRequired": {**{key: ["image"] for key in _ENGINE_KEYS}, "tolerance": ["baseline"]},
    "additionalProperties": False,
}
_OWN = {
    "type": "object",
    "properties": _JUDGED,
    "dependentRequired": {"tolerance": ["baseline"]},
    "additionalProperties": False,
}
SCHEMA = {
    "description": "Benchmarks that are run when asked for, and what their figures should be.",
    "anyOf": [
        {
            "type": "string",
            "pattern": rf"^{MEMORY}$(?!\n)",
            "description": f"{MEMORY}, or names with their benchmarks",
        },
        {
            "type": "object",
            "properties": {MEMORY: {"anyOf": [{"type": "null"}, _OWN]}},
            "patternProperties": {rf"^(?!{MEMORY}$)[a-z0-9][a-z0-9_-]*$(?!\n)": _BENCHMARK},
            "additionalProperties": False,
            "minProperties": 1,
        },
    ],
}

MOVING = ("*/age", "*/measured")
_TOLERANCE = "5%"


# -- looking --------------------------------------------------------------------------------------


def inspect(host: Host) -> Facts:
    facts: dict[str, Fact] = {}
    now = int(time.time())
    for name, result in results(host).items():
        age: Reading = now - result["at"] if result["at"] <= now + 300 else Unknown("was measured in the future")
        told: dict[str, Reading] = {
            "of": result["of"],
            "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(result["at"])),
            "age": max(age, 0) if isinstance(age, int) else age,
        }
        for where in (HOST, CONTAINER):
            if where in result:
                told |= _told(where, result[where])
        told |= {f"node{node}": show(figure) for node, figure in result.get("nodes", {}).items()}
        facts |= {f"{name}/{key}": Fact.fixed(reading) for key, reading in told.items()}
    return facts


def _told(where: str, runs: Sequence[float] | str) -> dict[str, Reading]:
    """The figure of some runs, their median, with what it comes from."""
    if isinstance(runs, str):
        return {where: Unknown(runs)}
    return {
        where: show(median(runs)),
        f"{where}/min": show(min(runs)),
        f"{where}/max": show(max(runs)),
        f"{where}/runs": len(runs),
    }


# -- deciding -------------------------------------------------------------------------------------


def decide(facts: Facts, want: Section) -> Goals:
    goals: dict[str, Desired] = {}
    for benchmark in benchmarks(want):
        for where in benchmark.places:
            key = f"{benchmark.name}/{where}"
            goals[key] = _figure(facts, benchmark, where)
            if "spread" in benchmark.want and _usable(facts, benchmark, where) is None:
                goals[f"{key}/spread"] = _spread(facts, benchmark, where)
        if "compare" in benchmark.want and all(_usable(facts, benchmark, w) is None for w in benchmark.places):
            goals[f"{benchmark.name}/compare"] = _compared(facts, benchmark)
    return goals


def _usable(facts: Facts, benchmark: Benchmark, where: str) -> Unknown | None:
    """Why a result cannot be judged; None where it can."""
    name, of = benchmark.name, facts.get(f"{benchmark.name}/of")
    if of is None:
        return Unknown(f"{name}: was not measured on this host yet: {MEASURE}")
    if of.current != benchmark.of:
        return Unknown(f"{name}: was measured with another command than the profile now has: {MEASURE}")
    age = facts[f"{name}/age"].current
    valid_for = benchmark.want.get("valid_for")
    if isinstance(age, Unknown):
        return Unknown(f"{name}: {age.reason}: is the clock right? {MEASURE}")
    if valid_for and isinstance(age, int) and age > parse_duration(valid_for):
        return Unknown(f"{name}: was measured {_ago(age)}, and counts for {valid_for}: {MEASURE}")
    figure = facts[f"{name}/{where}"].current if f"{name}/{where}" in facts else Unknown(f"was not measured: {MEASURE}")
    return Unknown(f"{name}, {where}: {figure.reason}") if isinstance(figure, Unknown) else None


def _number(facts: Facts, key: str) -> float:
    return float(str(facts[key].current))


def _figure(facts: Facts, benchmark: Benchmark, where: str) -> Desired:
    unusable = _usable(facts, benchmark, where)
    if unusable is not None:
        return _goal(_limit(benchmark)[1] if "baseline" in benchmark.want else "a figure", unusable)
    key = f"{benchmark.name}/{where}"
    figure = _number(facts, key)
    if "baseline" not in benchmark.want:
        return _goal(show(figure), show(figure))
    baseline = float(benchmark.want["baseline"])
    allowed, limit = _limit(benchmark)
    if figure <= allowed if benchmark.lower else figure >= allowed:
        found = f"{show(figure)} ({limit})"
        return _goal(found, found)
    low, high = (str(facts[f"{key}/{end}"].current) for end in ("min", "max"))
    off = abs(figure - baseline) / baseline * 100
    runs, age = facts[f"{key}/runs"].current, facts[f"{benchmark.name}/age"].current
    means = (
        f"{benchmark.name}, {where}: {show(figure)} is {off:.1f}% {'above' if benchmark.lower else 'below'} the "
        f"baseline {show(baseline)}, {benchmark.want.get('tolerance', _TOLERANCE)} is allowed "
        f"({runs} runs, {low} to {high}, {_ago(age if isinstance(age, int) else 0)})."
    )
    return _goal(limit, show(figure), means)


def _limit(benchmark: Benchmark) -> tuple[float, str]:
    """What the figure may be, as a number and for a person."""
    part = _percent(benchmark.want.get("tolerance", _TOLERANCE)) / 100
    allowed = float(benchmark.want["baseline"]) * (1 + part if benchmark.lower else 1 - part)
    return allowed, f"at {'most' if benchmark.lower else 'least'} {show(allowed)}"


def _spread(facts: Facts, benchmark: Benchmark, where: str) -> Desired:
    key = f"{benchmark.name}/{where}"
    low, high = _number(facts, f"{key}/min"), _number(facts, f"{key}/max")
    apart, allowed = (high - low) / _number(facts, key) * 100, benchmark.want["spread"]
    limit = f"at most {allowed}"
    found = f"{apart:.2f}%"
    if apart <= _percent(allowed):
        return _goal(f"{found} ({limit})", f"{found} ({limit})")
    means = f"{key}: its runs are {found} apart ({show(low)} to {show(high)}), {allowed} is allowed."
    return _goal(limit, found, means, "Find out what else runs here, and measure again.")


def _compared(facts: Facts, benchmark: Benchmark) -> Desired:
    """How much slower the container is than the host."""
    host, container = (_number(facts, f"{benchmark.name}/{where}") for where in (HOST, CONTAINER))
    slower = (container / host - 1 if benchmark.lower else 1 - container / host) * 100
    allowed = benchmark.want["compare"]
    found = f"{abs(slower):.2f}% {'slower' if slower > 0 else 'faster'}"
    limit = f"at most {allowed} slower"
    if slower <= _percent(allowed):
        return _goal(f"{found} ({limit})", f"{found} ({limit})")
    figures = f"{show(container)}, {show(host)}"
    means = f"{benchmark.name}: the container is {found} than the host ({figures}), {allowed} is allowed."
    return _goal(limit, found, means)


def _goal(wanted: str, found: Reading, means: str = "", fix: str = "Find out why, and measure again.") -> Desired:
    # The figure is no setting that could be changed: what was counted here is what is judged.
    return Desired(wanted, live=False, persist=False, counted=found, means=means, fix=fix)


def _percent(text: str) -> float:
    return float(text.rstrip("% "))


def _ago(seconds: int) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


# -- measuring ------------------------------------------------------------------------------------


def measure(host: Host, want: Section, say: Say) -> None:
    """Run the benchmarks of a section, and keep what they gave: what `--benchmarks` asks for."""
    from hostprep.benchmarks import run

    run(host, want, say)
