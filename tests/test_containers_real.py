"""What containers of a real Docker and a real podman use, and what is left when the rest has been removed (J3, J5)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from docker_engine import MB, EngineHost, dockerd, image, podman

from hostprep import engine, registry
from hostprep.engines import docker as docker_files
from hostprep.engines import podman as podman_files
from hostprep.journal import Journal
from hostprep.model import Finding, Profile, Status
from hostprep.perform import Performer, converge
from hostprep.revert import revert

CHECKS = registry.load(["containers"])
DAY = 86400
ENGINES = {"docker": dockerd, "podman": podman}
ENGINE = {"docker": docker_files, "podman": podman_files}


@pytest.fixture(scope="module", params=ENGINES)
def there(request: pytest.FixtureRequest) -> Iterator[tuple[str, EngineHost]]:
    with ENGINES[request.param]() as host:
        yield request.param, host


@pytest.fixture
def real(there: tuple[str, EngineHost]) -> Iterator[tuple[str, EngineHost]]:
    """An engine without images and containers."""
    name, host = there
    yield name, host
    for what in (("container", "prune"), ("image", "prune", "--all")):
        host.run(name, *what, "--force", timeout=60)


def sections(name: str, limit: object = 0, keep: str = "1d", **more: Any) -> dict[str, Any]:
    return {"containers": {"engine": name, "unused_images": {"limit": limit, "keep": keep}, **more}}


def look(host: EngineHost, wanted: Mapping[str, Any]) -> dict[str, Finding]:
    found = engine.examine(host, Profile("test", "", wanted), CHECKS, 60).findings
    return {f.key: f for f in found}


def apply(host: EngineHost, wanted: Mapping[str, Any], journal: Journal) -> tuple[Performer, list[str]]:
    said: list[str] = []
    profile = Profile("test", "", wanted)
    planned = engine.planned(engine.examine(host, profile, CHECKS, 60), profile, CHECKS, ())
    performer = Performer(host, CHECKS, journal, said.append)
    converge(performer, [p.change for p in planned if not p.refused], wanted, ())
    return performer, said


def names(name: str, host: EngineHost) -> set[str]:
    listed = host.run(name, "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", timeout=30)
    return {line.removeprefix("localhost/") for line in listed.split()}


def age(name: str, host: EngineHost, identity: str, days: int) -> None:
    """Make an image one that came, and was used, so long ago: by the very traces that the engine leaves of it."""
    past = time.time() - days * DAY
    store = ENGINE[name].store(host)
    found = next(i for i in ENGINE[name].images(host, store, {}) if i.id == identity)
    if name == "docker":
        kept = f"{store.root}/image/{store.driver}"
        cache = host.read(f"{kept}/layerdb/{found.layers[-1].replace(':', '/')}/cache-id")
        paths = [f"{kept}/imagedb/content/sha256/{identity}", f"{store.root}/overlay2/{cache}/link"]
        tagged = f"{kept}/imagedb/metadata/sha256/{identity}/lastUpdated"  # which a pull leaves at year 1
        host.replace(tagged, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(past)))
    else:
        top = f"{store.root}/{store.driver}/{found.layers[-1]}"
        paths = [f"{store.root}/{store.driver}-images/{identity}", f"{top}/link"]
    for path in paths:
        os.utime(path, (past, past))


def test_j3_the_engine_answers_and_tells_its_version_and_room(real: tuple[str, EngineHost]) -> None:
    name, host = real
    found = look(host, sections(name, version=">=4.0", data_root={"free": "1kB", "inodes": "0%"}))
    assert found[name].fact.current == "answers"
    assert found[f"{name}/version"].status is Status.PASS
    assert found[f"{name}/free"].status is found[f"{name}/inodes"].status is Status.PASS
    assert found[f"{name}/unused"].fact.current == 0


def test_j5_what_a_container_that_never_ran_was_made_of_is_in_use(real: tuple[str, EngineHost]) -> None:
    name, host = real
    image(host, name, "idle:1", 2 * MB)
    image(host, name, "kept:1", 3 * MB)
    assert 5 * MB <= free(look(host, sections(name)), name) < 6 * MB
    host.run(name, "create", "--name", "asleep", "kept:1", "/bin/true", timeout=30)
    assert 2 * MB <= free(look(host, sections(name)), name) < 3 * MB


def free(found: Mapping[str, Finding], name: str) -> int:
    taken = found[f"{name}/unused"].fact.current
    assert isinstance(taken, int)
    return taken


def test_j5_the_oldest_go_down_to_the_limit_and_no_further(real: tuple[str, EngineHost], journal: Journal) -> None:
    """Never what a container has, however old; never what came today, though it is above the limit."""
    name, host = real
    days = {"used:1": 90, "older:1": 60, "old:1": 30, "young:1": 7, "today:1": 0}
    for n, (tag, since) in enumerate(days.items()):
        age(name, host, image(host, name, tag, 2 * MB + n), since)
    host.run(name, "create", "--name", "asleep", "used:1", "/bin/true", timeout=30)
    performer, _ = apply(host, sections(name, "5MB"), journal)
    assert performer.failures == []
    assert names(name, host) == {"used:1", "young:1", "today:1"}
    assert look(host, sections(name, "5MB"))[f"{name}/unused"].status is Status.PASS
    apply(host, sections(name, 0), journal)
    assert names(name, host) == {"used:1", "today:1"}
    left = look(host, sections(name, 0))[f"{name}/unused"]
    assert left.status is Status.FAIL
    assert "less than 1d ago" in left.fix


def test_j5_an_image_with_two_names_goes_with_both_and_cannot_be_brought_back(
    real: tuple[str, EngineHost], journal: Journal
) -> None:
    """What revert says is true: it leaves them as they are, once, and does not fail over it."""
    name, host = real
    age(name, host, image(host, name, "one:1", MB), 30)
    host.run(name, "tag", "one:1", "two:2", timeout=30)
    performer, _ = apply(host, sections(name, keep="0s"), journal)
    assert (performer.failures, names(name, host)) == ([], set())
    said: list[str] = []
    performer = Performer(host, CHECKS, journal, said.append)
    left = revert(performer)
    assert (len(left), performer.failures) == (1, [])
    assert f"{name} pull brings it back" in said[0]
    assert journal.standing() == []


def test_j5_what_a_container_took_after_the_plan_stays(real: tuple[str, EngineHost], journal: Journal) -> None:
    name, host = real
    for tag in ("taken:1", "idle:1"):
        age(name, host, image(host, name, tag, MB + len(tag)), 30)
    check = registry.fixable(CHECKS["containers"])
    assert check is not None
    wanted = sections(name)
    profile = Profile("test", "", wanted)
    planned = engine.planned(engine.examine(host, profile, CHECKS, 60), profile, CHECKS, ())
    host.run(name, "create", "--name", "late", "taken:1", "/bin/true", timeout=30)
    check.apply(host, [p.change for p in planned])
    assert names(name, host) == {"taken:1"}


def test_j5_layers_that_a_used_image_shares_are_not_counted(real: tuple[str, EngineHost]) -> None:
    """`docker image ls` shows the size of all layers with each image; removing one frees what is its own."""
    name, host = real
    image(host, name, "base:1", 4 * MB)
    host.run(name, "create", "--name", "grown", "base:1", "/bin/true", timeout=30)
    host.run(name, "commit", "grown", "child:1", timeout=60)
    assert free(look(host, sections(name)), name) < MB
    host.run(name, "rm", "grown", timeout=30)
    assert 4 * MB <= free(look(host, sections(name)), name) < 5 * MB


def test_a_new_container_makes_an_old_image_a_young_one(real: tuple[str, EngineHost]) -> None:
    """No engine keeps the time of last use; the access time of overlay's files does, to the day."""
    name, host = real
    identity = image(host, name, "pulled:1", MB)
    age(name, host, identity, 30)
    before = look(host, sections(name))
    assert before[f"{name}/image/{identity[:12]}"].status is Status.FAIL
    host.run(name, "create", "--name", "short", "pulled:1", "/bin/true", timeout=30)
    host.run(name, "rm", "short", timeout=30)
    after = look(host, sections(name))
    if f"{name}/image/{identity[:12]}" in after:
        pytest.skip("this file system does not note access (noatime)")
    assert "less than 1d ago" in after[f"{name}/unused"].fix


def test_a_daemon_that_hangs_does_not_answer_and_does_not_hold_us_up() -> None:
    """It takes connections and says nothing: docker.sock alone is no sign of life (moby#20600 and its kin)."""
    with dockerd() as host:
        pid = int(host.read(f"{host.home}/pid") or "0")
        os.kill(pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            found = look(host, sections("docker"))
            assert time.monotonic() - started < 28
        finally:
            os.kill(pid, signal.SIGCONT)
    assert found["docker"].status is Status.FAIL
    assert "no answer within" in found["docker"].message
    assert found["docker/unused"].status is Status.UNKNOWN
