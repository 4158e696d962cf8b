"""What a kernel makes of its huge page arguments, as a table: mm/hugetlb.c since 5.8."""

from __future__ import annotations

import pytest

from hostprep import hugetlb

GIB = 1024**3
G, M2, M512 = 1048576, 2048, 524288
BAD = "a size that no architecture has"


@pytest.mark.parametrize(
    ("arguments", "default", "pages"),
    [
        pytest.param("quiet", None, {}, id="nothing asked"),
        pytest.param("default_hugepagesz=1G hugepagesz=1G hugepages=32", G, {G: 32}, id="K8, the line of the guide"),
        pytest.param("hugepages=512", None, {M2: 512}, id="R60: before any size it is the default one"),
        pytest.param("hugepages=4 default_hugepagesz=1G", G, {G: 4}, id="R60: even when the default comes later"),
        pytest.param("hugepages=512 hugepagesz=1G hugepages=4", None, {M2: 512, G: 4}, id="R60: and is not lost"),
        pytest.param("hugepages=4 hugepagesz=2M hugepages=8", None, {M2: 4}, id="R60: nor overridden later"),
        pytest.param("hugepages=0 hugepagesz=2M hugepages=8", None, {M2: 8}, id="none before any size says nothing"),
        pytest.param("default_hugepagesz=1G hugepages=4", G, {G: 4}, id="R63: the default size needs no hugepagesz"),
        pytest.param("default_hugepagesz=1G", G, {}, id="a size without a count"),
        pytest.param("hugepagesz=1G hugepages=2 hugepagesz=2M hugepages=4", None, {G: 2, M2: 4}, id="two sizes"),
        pytest.param("hugepagesz=2M hugepages=4 hugepagesz=2M hugepages=8", None, {M2: 4}, id="R61: first wins"),
        pytest.param("hugepages=4 hugepages=8", None, {M2: 4}, id="R61: two counts in a row"),
        pytest.param("default_hugepagesz=1G default_hugepagesz=2M hugepages=8", G, {}, id="R61: default twice"),
        pytest.param("hugepagesz=1G hugepagesz=1G hugepages=8", None, {}, id="R61: size twice, its count is void"),
        pytest.param("default_hugepagesz=1G hugepagesz=1G hugepages=8 hugepagesz=1G hugepages=9", G, {G: 8}, id="R61"),
        pytest.param(
            "default_hugepagesz=1G hugepages=4 hugepagesz=2M hugepages=1 hugepagesz=1G hugepages=9",
            *(G, {G: 4, M2: 1}),
            id="R61: the default size is no exception once it has a count",
        ),
        pytest.param("hugepagesz=3M hugepages=8", None, {}, id=f"R61: {BAD}"),
        pytest.param("hugepagesz=huge hugepages=8 hugepages=9", None, {M2: 9}, id="R61: only one count is void"),
        pytest.param("default_hugepagesz=5K hugepagesz=1G hugepages=1", None, {G: 1}, id=f"default: {BAD}"),
        pytest.param("hugepagesz=1G hugepages=all hugepages=3", None, {G: 3}, id="no number: the next one counts"),
        pytest.param("hugepagesz=2M default_hugepagesz=2M hugepages=8", M2, {M2: 8}, id="size before default"),
        pytest.param(
            "hugepagesz=2M hugepagesz=1G default_hugepagesz=2M hugepages=8", M2, {G: 8}, id="the last new size"
        ),
        pytest.param("hugepagesz=1048576K hugepages=1", None, {G: 1}, id="other unit"),
        pytest.param("hugepagesz=0x40000000 hugepages=1", None, {G: 1}, id="memparse takes bytes in hex"),
        pytest.param("hugepagesz=1GB hugepages=40", None, {G: 40}, id="memparse takes 1GB, so it must count as 1G"),
        pytest.param("hugepagesz=1g hugepages=1", None, {G: 1}, id="small letters"),
        pytest.param("default-hugepagesz=1G hugepages=1", G, {G: 1}, id="parameqn: - is _"),
        pytest.param("transparent_hugepage=never xhugepages=4 hugepagesz", None, {}, id="R66: not by substring"),
    ],
)
def test_the_kernel_reads_by_position_and_the_first_wins(
    arguments: str, default: int | None, pages: dict[int, int]
) -> None:
    result = hugetlb.asked(arguments.split(), usual_default=M2)
    assert (result.default, result.pages, result.by_node) == (default, pages, {})


@pytest.mark.parametrize(
    ("arguments", "nodes", "pages", "by_node"),
    [
        ("hugepagesz=1G hugepages=0:16,1:8", [0, 1], {G: 24}, {G: {0: 16, 1: 8}}),
        ("hugepages=0:16", [0], {M2: 16}, {M2: {0: 16}}),
        ("hugepages=0:16 default_hugepagesz=1G", [0], {G: 16}, {G: {0: 16}}),
        ("hugepages=0:16,1:8", None, {M2: 24}, {M2: {0: 16, 1: 8}}),
        pytest.param("hugepages=0:16,2:8", [0, 1], {}, {}, id="R62: a node that is not there discards the list"),
        pytest.param("hugepages=0:16,8", [0, 1], {}, {}, id="R62: so does a count without a node"),
        pytest.param("hugepages=0:x", [0, 1], {}, {}, id="R62: and a node without a count"),
    ],
)
def test_counts_by_node(
    arguments: str, nodes: list[int] | None, pages: dict[int, int], by_node: dict[int, dict[int, int]]
) -> None:
    result = hugetlb.asked(arguments.split(), M2, nodes)
    assert (result.pages, result.by_node) == (pages, by_node)


@pytest.mark.parametrize(
    ("arguments", "pages"),
    [
        ("hugepagesz=1G hugepages=0:16,1:8", {G: 0}),
        ("hugepagesz=1G hugepages=16:0", {G: 16}),
        ("hugepagesz=1G hugepages=16", {G: 16}),
        pytest.param("hugepagesz=1G hugepages=all hugepages=3", {G: 0}, id="no number is 0, and the first wins"),
        ("hugepages=0:16", {}),
    ],
)
def test_kernels_before_5_16_read_the_number_before_the_colon(arguments: str, pages: dict[int, int]) -> None:
    """R62: `sscanf(s, "%lu", mhp) <= 0` makes it 0 (mm/hugetlb.c, 5.15)."""
    result = hugetlb.asked(arguments.split(), M2, [0, 1], node_lists=False)
    assert (result.pages, result.by_node) == (pages, {})


@pytest.mark.parametrize("default", [None, M2, G])
@pytest.mark.parametrize("pages", [{M2: 4}, {G: 2, M2: 4}, {G: 2}, {G: 2, M2: 0}, {M512: 3, G: 1}])
def test_what_is_written_reads_back_the_same(default: int | None, pages: dict[int, int]) -> None:
    result = hugetlb.asked(hugetlb.run(default, pages), usual_default=M2)
    assert result.default == default
    assert {size: n for size, n in result.pages.items() if n} == {size: n for size, n in pages.items() if n}


def test_the_run_names_every_size_before_its_count() -> None:
    """MCO 8d90eb808, tuned 1be642d (rhbz#1816168): sorted or folded, two page sizes destroy each other."""
    expected = ("default_hugepagesz=1G", "hugepagesz=1G", "hugepages=2", "hugepagesz=2M", "hugepages=4")
    assert hugetlb.run(G, {M2: 4, G: 2}) == expected


@pytest.mark.parametrize(
    ("pools", "total", "keep", "refused"),
    [
        pytest.param(32 * GIB, 33501511680, None, True, id="K8 on K1: 32 pages of 1 GiB on a machine of 31.2 GiB"),
        pytest.param(120 * GIB, 128 * GIB, None, True, id="ubicloud#5996: 8 GiB is less than a tenth of 128 GiB"),
        pytest.param(28 * GIB, 32 * GIB, None, False, id="exactly the floor is left"),
        pytest.param(28 * GIB + 1, 32 * GIB, None, True, id="a byte less than the floor"),
        pytest.param(30 * GIB, 32 * GIB, 2 * GIB, False, id="the profile keeps less"),
        pytest.param(40 * GIB, 32 * GIB, 0, True, id="more than there is"),
    ],
)
def test_a_reservation_must_leave_a_floor_to_the_host(pools: int, total: int, keep: int | None, refused: bool) -> None:
    assert bool(hugetlb.starves(pools, total, hugetlb.floor(total, keep))) == refused
