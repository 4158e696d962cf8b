"""Ordering versions by the rules of deb-version(7), for kernel releases of Debian, Ubuntu and RHEL alike. Pure."""

from __future__ import annotations

import re


def compare(a: str, b: str) -> int:
    """Negative, zero or positive as version `a` is older than, equal to or newer than `b`."""
    epoch_a, rest_a = _epoch(a)
    epoch_b, rest_b = _epoch(b)
    if epoch_a != epoch_b:
        return epoch_a - epoch_b
    # dpkg would set `generic` of 5.15.0-121-generic apart as its revision and so find 5.15.0-121-generic
    # newer than 5.15.0-122; a kernel release is one run.
    return _compare_part(rest_a.replace("-rc", "~rc"), rest_b.replace("-rc", "~rc"))


def _epoch(version: str) -> tuple[int, str]:
    head, colon, tail = version.partition(":")
    return (int(head), tail) if colon and head.isdigit() else (0, version)


def _compare_part(a: str, b: str) -> int:
    """Alternate runs of non-digits (letters first, `~` before the end) and of digits (as numbers)."""
    while a or b:
        text_a, digits_a, a = _next_run(a)
        text_b, digits_b, b = _next_run(b)
        order_a, order_b = _order(text_a), _order(text_b)
        if order_a != order_b:
            return -1 if order_a < order_b else 1
        if digits_a != digits_b:
            return digits_a - digits_b
    return 0


def _next_run(part: str) -> tuple[str, int, str]:
    match = re.match(r"(\D*)(\d*)", part)
    assert match
    return match[1], int(match[2] or 0), part[match.end() :]


def _order(text: str) -> list[int]:
    """Sort key of a run of non-digits; the 0 at its end stands between `~` and everything else."""
    weights = [-1 if c == "~" else ord(c) if c.isalpha() else ord(c) + 256 for c in text]
    return [*weights, 0]
