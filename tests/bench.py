"""What hostprep costs: whole processes, side by side with starting Python, in turn within one run.

Times of one machine say little about another, so what is printed are ratios: of each round the command's time
by that of `python3 -c pass`, and of these the median. Peak memory is that of the largest single process.

Run with the interpreter of an environment in which hostprep is installed as a user installs it: make bench.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time

ROUNDS = 31
HOSTPREP = os.path.join(os.path.dirname(sys.executable), "hostprep")


def run(argv: list[str], env: dict[str, str], silent: int) -> tuple[float, float]:
    """Seconds and peak MiB of one process."""
    begin = time.perf_counter()
    actions = [(os.POSIX_SPAWN_DUP2, silent, 1), (os.POSIX_SPAWN_DUP2, silent, 2)]
    pid = os.posix_spawn(argv[0], argv, env, file_actions=actions)
    _, status, usage = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 1, 3, 4):
        raise SystemExit(f"{' '.join(argv)}: exit {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - begin, usage.ru_maxrss / 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        env |= {f"HOSTPREP_{name}_DIR": f"{folder}/{name.lower()}" for name in ("RUN", "STATE", "CACHE")}
        profile = f"{folder}/noop.yaml"
        with open(profile, "w") as f:
            f.write("extends: baseline\nassert_only: [swap, hugepages, kernel_args]\n")
        commands = {
            "python3 -c pass": [sys.executable, "-c", "pass"],
            "hostprep check": [HOSTPREP, "check", "--profile", "baseline"],
            "hostprep check --format json": [HOSTPREP, "check", "--profile", "baseline", "--format", "json"],
            "hostprep inspect": [HOSTPREP, "inspect"],
        }
        if os.geteuid() == 0:
            commands["hostprep apply (nothing to do)"] = [HOSTPREP, "apply", "--profile", profile, "--yes"]
        silent = os.open(os.devnull, os.O_WRONLY)
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for round_number in range(ROUNDS + 1):
            for name, argv in commands.items():
                seen = run(argv, env, silent)
                if round_number:  # the first round warms the caches up
                    measured[name].append(seen)
    report(measured)


def report(measured: dict[str, list[tuple[float, float]]]) -> None:
    base, check = (measured[name] for name in ("python3 -c pass", "hostprep check"))
    print(f"{'':32}  {'x python':>8}  {'x check':>8}  {'peak MiB':>8}    median of {ROUNDS} rounds")
    for name, runs in measured.items():
        to_base = statistics.median(a[0] / b[0] for a, b in zip(runs, base, strict=True))
        to_check = statistics.median(a[0] / b[0] for a, b in zip(runs, check, strict=True))
        print(f"{name:32}  {to_base:8.2f}  {to_check:8.2f}  {max(r[1] for r in runs):8.1f}")


if __name__ == "__main__":
    main()
