"""What the tests of this folder proved, step by step: the table that is printed when they have run."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pytest

# Everything takes half as long again.
EVERYTHING = os.environ.get("HOSTPREP_VM") == "all"
thorough = pytest.mark.skipif(not EVERYTHING, reason="HOSTPREP_VM=all runs it too")


class Step(NamedTuple):
    """One thing that was done to a machine."""

    name: str
    expected: str
    seen: str
    seconds: float


STEPS: list[Step] = []


@contextlib.contextmanager
def step(name: str, expected: str) -> Iterator[Callable[[str], None]]:
    """A row of the table; what is yielded takes what was seen, which is `as expected` where nobody says more."""
    started, said = time.monotonic(), ["as expected"]
    try:
        yield said.append
    except BaseException as e:
        said.append(f"FAILED: {(str(e) or type(e).__name__).splitlines()[0][:60]}")
        raise
    finally:
        STEPS.append(Step(name, expected, said[-1], time.monotonic() - started))


def table(steps: Sequence[Step]) -> list[str]:
    """The rows, in columns."""
    rows = [("step", "expected", "seen", "seconds"), *((*s[:3], f"{s.seconds:.0f}") for s in steps)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), f"{row[3]:>7}"]) for row in rows]
