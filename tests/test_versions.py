"""Versions: ordered as the kernels of a distribution are, and always in one order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostprep.versions import compare, release

# Every row goes from old to new.
ASCENDING = [
    ["5.15.0-121-generic", "5.15.0-122", "5.15.0-122-generic", "5.15.0-1061-azure", "5.19.0-1"],
    ["5.9.0", "5.10.0-8-amd64", "5.10.0-28-amd64", "6.1.0-0.deb11.5-amd64", "6.1.0-5-amd64", "6.1.0-26-amd64"],
    ["6.12.94+deb12-amd64", "6.12.95", "6.12.95+deb12-amd64", "6.12.96"],
    ["6.10-rc1", "6.10-rc7", "6.10", "6.10.1"],
    ["6.9.12", "6.10.0-rc3+", "6.10.0", "6.10.0-15-generic"],
    ["6.10.0-0.rc3.28.fc41.x86_64", "6.10.0", "6.10.0-64.fc41.x86_64"],
    ["6.10.0-061000rc3-generic", "6.10.0", "6.10.0-061000-generic"],
    [
        *("4.18.0-553.el8_10.x86_64", "5.14.0-427", "5.14.0-427.el9.x86_64", "5.14.0-427.13.1.el9_4.x86_64"),
        *("5.14.0-427.31.1.el9_4.x86_64", "5.14.0-503.11.1.el9_5.x86_64", "6.12.0-55.el10.x86_64"),
    ],
    ["9.4", "9.10", "22.04", "22.10", "24.04.1"],
    ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0"],  # semver.org, point 11
    ["1.22.9", "1.23beta1", "1.23rc1", "1.23rc2", "1.23", "1.23.0", "1.23.1", "1.24rc1"],  # releases of go
    ["v1.31.1-rc.0", "v1.31.1", "v1.31.10", "v1.32.0-alpha.1"],  # of Kubernetes
    ["23.10-1.1.9.0", "24.04-0.6.6.0", "24.04-0.7.0.0", "24.10-0.5.5.0"],  # of MLNX_OFED
    ["20.10.24", "25.0.0-beta.1", "26.1.3", "26.1.13", "27.0.0-rc.1", "27.0.0"],  # of docker
    ["18.1.4", "22.05.11", "23.06.06", "2022.1.1"],  # of OpenPBS
    ["1.0~beta", "1.0", "1.0^post", "1.0a", "1.0.1", "2", "1:0.1"],
]


@pytest.mark.parametrize("row", ASCENDING, ids=lambda row: row[0])
def test_every_version_is_newer_than_those_before_it(row: list[str]) -> None:
    for i, old in enumerate(row):
        for j, new in enumerate(row):
            assert compare(old, new) == (i > j) - (i < j), (old, new)


@pytest.mark.parametrize(("a", "b"), [("22.04", "22.4"), ("1.0-1", "1.0.1"), ("0:1", "1"), ("", "0:")])
def test_what_is_written_differently_may_be_the_same(a: str, b: str) -> None:
    assert compare(a, b) == 0


@pytest.mark.parametrize(
    ("version", "before"),
    [
        ("1.24.0-rc.1", "1.24.0"),
        ("1.24rc1", "1.24"),
        ("1.0~beta", "1.0"),
        ("1.24.0", "1.24.0"),
        ("5.15.0-arch1", "5.15.0-arch1"),
    ],
)
def test_the_release_that_a_version_comes_before(version: str, before: str) -> None:
    assert release(version) == before


versions = st.text("0019az.-+~^:_ é²\n", max_size=12) | st.sampled_from([v for row in ASCENDING for v in row])


@given(versions, versions, versions)
def test_the_order_is_total(a: str, b: str, c: str) -> None:
    assert compare(a, a) == 0
    assert compare(a, b) == -compare(b, a)
    if compare(a, b) >= 0 and compare(b, c) >= 0:
        assert compare(a, c) >= 0


@given(versions, st.integers(0, 10**9))
def test_one_more_component_is_newer(a: str, n: int) -> None:
    assert compare(f"{a}.{n}", a) > 0
    assert compare(f"{a}.{n + 1}", f"{a}.{n}") > 0
