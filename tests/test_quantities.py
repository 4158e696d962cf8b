"""Quantities: what profiles may write, and what people are shown."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostprep.quantities import (
    BYTES_PATTERN,
    DURATION_PATTERN,
    PAGE_SIZE_PATTERN,
    page_size_kib,
    parse_bytes,
    parse_duration,
    show_bytes,
    show_page_size,
)

BYTES = {
    "0": 0,
    "512": 512,
    "512B": 512,
    "32GB": 32 * 10**9,
    "32 GB": 32 * 10**9,
    "32GiB": 32 * 2**30,
    "1.5KiB": 1536,
    "0.1kB": 100,
    "9007199254740993B": 2**53 + 1,  # one more than a float holds
    "3PB": 3 * 10**15,
    "1PiB": 2**50,
}
NO_BYTES = ["", "GB", "-1GB", "1,5GB", "1.GB", ".5GB", "32gb", "32KB", "32kiB", "32G", "32  GB", "32GB\n", "1e3", "٣GB"]
DURATIONS = {"90s": 90, "10m": 600, "1h30m": 5400, "2d": 172800, "30m1h": 5400, "0s": 0}
NO_DURATIONS = ["", "m", "10 m", "1.5h", "-1s", "10m5", "1w", "10m\n", "²", "٣s"]


@pytest.mark.parametrize("text", BYTES)
def test_a_size_is_read_and_the_schema_allows_it(text: str) -> None:
    assert parse_bytes(text) == BYTES[text]
    assert re.search(BYTES_PATTERN, text)


@pytest.mark.parametrize("text", NO_BYTES)
def test_what_is_no_size_is_refused_with_a_hint_and_the_schema_refuses_it_too(text: str) -> None:
    with pytest.raises(ValueError, match="32GiB"):
        parse_bytes(text)
    assert not re.search(BYTES_PATTERN, text)


@pytest.mark.parametrize("text", DURATIONS)
def test_a_duration_is_read_and_the_schema_allows_it(text: str) -> None:
    assert parse_duration(text) == DURATIONS[text]
    assert re.search(DURATION_PATTERN, text)


@pytest.mark.parametrize("text", NO_DURATIONS)
def test_what_is_no_duration_is_refused_with_a_hint_and_the_schema_refuses_it_too(text: str) -> None:
    with pytest.raises(ValueError, match="1h30m"):
        parse_duration(text)
    assert not re.search(DURATION_PATTERN, text)


def test_a_bare_number_is_bytes_or_seconds() -> None:
    assert (parse_bytes(512), parse_duration(90), parse_duration("90")) == (512, 90, 90)


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (2**20 - 1, "1 MiB"),
        (32718388 * 1024, "31.2 GiB"),
        (32 * 10**9, "29.8 GiB"),
        (2**60, "1024 PiB"),
        (-2048, "-2 KiB"),
    ],
)
def test_bytes_for_a_person(number: int, shown: str) -> None:
    assert show_bytes(number) == shown


@given(st.integers(0, 2**62))
def test_what_is_shown_reads_back_as_nearly_the_same(number: int) -> None:
    assert abs(parse_bytes(show_bytes(number)) - number) <= number * 0.05


@given(st.integers(0, 2**62), st.sampled_from(["B", "kB", "MB", "GB", "TB", "PB", "KiB", "MiB", "GiB", "TiB", "PiB"]))
def test_whole_numbers_are_exact_whatever_the_unit(number: int, unit: str) -> None:
    assert parse_bytes(f"{number}{unit}") == number * parse_bytes(f"1{unit}")


@given(st.integers(1, 2**40))
def test_a_page_size_reads_back_as_the_same(kib: int) -> None:
    assert re.search(PAGE_SIZE_PATTERN, show_page_size(kib))
    assert page_size_kib(show_page_size(kib)) == kib


def test_page_sizes_as_profiles_write_them() -> None:
    assert [show_page_size(kib) for kib in (64, 2048, 32768, 524288, 1048576)] == [
        *("64KiB", "2MiB", "32MiB", "512MiB", "1GiB")
    ]
