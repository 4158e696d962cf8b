"""Quantities with units: bytes and durations. Pure."""

from __future__ import annotations

import re

_BYTES = {"": 1, "B": 1}
for _power, _letter in enumerate("kMGTP", start=1):
    _BYTES[f"{_letter}B"] = 1000**_power
    _BYTES[f"{_letter.upper()}iB"] = 1024**_power
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

BYTES_PATTERN = r"^[0-9]+(\.[0-9]+)? ?(B|[kMGTP]B|[KMGTP]iB)?$(?!\n)"
DURATION_PATTERN = r"^([0-9]+[smhd])+$(?!\n)"
# A size as a key: page sizes are always binary.
PAGE_SIZE_PATTERN = r"^[0-9]+(KiB|MiB|GiB)$(?!\n)"


def parse_bytes(text: str | int) -> int:
    """Bytes of `32GB` (decimal), `32GiB` (binary), `512` or 512. Raises ValueError."""
    if isinstance(text, int):
        return text
    match = re.match(r"^([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)$", text)
    if not match or match[2] not in _BYTES:
        raise ValueError(f"{text!r} is not a size: write 32GB (decimal), 32GiB (binary) or a number of bytes")
    return round(float(match[1]) * _BYTES[match[2]])


def parse_duration(text: str | int) -> int:
    """Seconds of `10m`, `1h30m`, `45s`, `2d` or 90. Raises ValueError."""
    if isinstance(text, int):
        return text
    if text.isdigit():
        return int(text)
    parts = re.findall(r"([0-9]+)([smhd])", text)
    if not parts or "".join(n + u for n, u in parts) != text:
        raise ValueError(f"{text!r} is not a duration: write 90s, 10m, 1h30m or 2d")
    return sum(int(n) * _SECONDS[u] for n, u in parts)


def show_bytes(number: int) -> str:
    """`31.2 GiB`, the largest binary unit that leaves a number of at least 1."""
    value, unit = float(number), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(value) < 1024 or unit == "PiB":
            break
        value /= 1024
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"


def show_page_size(kib: int) -> str:
    """A page size as profiles write it: 1048576 -> `1GiB`, 2048 -> `2MiB`, 64 -> `64KiB`."""
    for unit, size in (("GiB", 1024 * 1024), ("MiB", 1024)):
        if kib % size == 0:
            return f"{kib // size}{unit}"
    return f"{kib}KiB"


def page_size_kib(text: str) -> int:
    """The inverse of show_page_size()."""
    return parse_bytes(text) // 1024
