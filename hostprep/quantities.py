"""Quantities with units: bytes and durations. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable

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
    match = re.fullmatch(r"([0-9]+)(\.[0-9]+)? ?([A-Za-z]*)", text)
    if not match or match[3] not in _BYTES:
        raise ValueError(f"{text!r} is not a size: write 32GB (decimal), 32GiB (binary) or a number of bytes")
    unit = _BYTES[match[3]]
    return int(match[1]) * unit + round(float(match[2] or 0) * unit)


def size_below(number: int) -> str:
    """A round size a little below a number, as a profile asks for it: 33500000000 -> `32GB`."""
    power = max((p for p in range(5) if number >= 4 * 1000**p), default=0)
    count = number // 1000**power
    step = max(2 ** (count.bit_length() - 1) // 8, 1)
    return f"{count // step * step}{('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def parse_duration(text: str | int) -> int:
    """Seconds of `10m`, `1h30m`, `45s`, `2d` or 90. Raises ValueError."""
    if isinstance(text, int):
        return text
    if re.fullmatch(r"[0-9]+", text):
        return int(text)
    if not re.fullmatch(r"(?:[0-9]+[smhd])+", text):
        raise ValueError(f"{text!r} is not a duration: write 90s, 10m, 1h30m or 2d")
    return sum(int(number) * _SECONDS[unit] for number, unit in re.findall(r"([0-9]+)([smhd])", text))


def show_bytes(number: int, like: int | None = None) -> str:
    """`31.2 GiB`, the largest binary unit that leaves a number of at least 1.

    Beside `like`, a size that somebody wrote, it has the kind of unit which that is round in (`33.5 GB`) and is
    rounded down, so that what is too little never looks like enough; `like` itself is shown as it was written.
    """
    if like is None:
        return _rounded(number, _BINARY, round)
    written, units = _as_written(like)
    return written if number == like else _rounded(number, units, int)


_DECIMAL = (1000, ("B", "kB", "MB", "GB", "TB", "PB"))
_BINARY = (1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))
_Units = tuple[int, tuple[str, ...]]


def _as_written(number: int) -> tuple[str, _Units]:
    """The shortest exact form, and its kind of unit: `32 GB` of 32000000000, `4 GiB` of 4294967296."""
    exact = [
        (f"{number / base**power:.12g} {unit}", (base, units))
        for base, units in (_BINARY, _DECIMAL)
        for power, unit in enumerate(units)
        if number * 100 % base**power == 0
    ]
    shortest = min(exact, key=lambda e: len(e[0].replace("i", "")))
    return shortest if len(shortest[0]) <= 10 else (_rounded(number, _BINARY, round), _BINARY)


def _rounded(number: int, kind: _Units, to_whole: Callable[[float], int]) -> str:
    """One decimal of the largest unit that leaves at least 1."""
    base, units = kind
    tenths = [to_whole(abs(number) * 10 / base**power) for power in range(len(units))]
    power = next((p for p, t in enumerate(tenths) if t < base * 10), len(units) - 1)
    sign = "-" if number < 0 else ""
    return f"{sign}{tenths[power] // 10}.{tenths[power] % 10}".removesuffix(".0") + f" {units[power]}"


def show_page_size(kib: int) -> str:
    """A page size as profiles write it: 1048576 -> `1GiB`, 2048 -> `2MiB`, 64 -> `64KiB`."""
    for unit, size in (("GiB", 1024 * 1024), ("MiB", 1024)):
        if kib % size == 0:
            return f"{kib // size}{unit}"
    return f"{kib}KiB"


def page_size_kib(text: str) -> int:
    """The inverse of show_page_size()."""
    return parse_bytes(text) // 1024
