"""This machine, for one test at a time: some start jobs and containers, others look for any that run here."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

LOCK = Path(tempfile.gettempdir()) / f"hostprep-tests-{os.getuid()}.lock"
_depth = 0


@contextlib.contextmanager
def machine_to_itself() -> Iterator[None]:
    """Wait until no test in another process has it. A test that has it may ask again."""
    global _depth  # one lock for this process
    with contextlib.ExitStack() as stack:
        if not _depth:
            fcntl.flock(stack.enter_context(LOCK.open("w")), fcntl.LOCK_EX)
        _depth += 1
        try:
            yield
        finally:
            _depth -= 1


@contextlib.contextmanager
def ended_with(outside: subprocess.Popen[bytes], patience_s: float = 60) -> Iterator[None]:
    """End `unshare --fork --kill-child`, and wait until nothing of its process namespace is left.

    pid_namespaces(7): when the first process of one ends, the kernel kills the others and waits for them.
    """
    try:
        yield
    finally:
        children = Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text().split()
        ends = [os.pidfd_open(int(child)) for child in children]
        outside.kill()
        outside.wait()
        for end in ends:
            assert select.select([end], [], [], patience_s)[0], "its processes do not end"
            os.close(end)
