"""Containers, without an engine: what is wanted of one that answers, and what is said of one that does not."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from conftest import MakeHost, apply, findings, statuses
from fakes import FakeHost, debian

from hostprep import profile_source
from hostprep.engines import docker
from hostprep.engines.images import Image, unused
from hostprep.errors import ChangeFailed, CommandFailed, HostError, ProfileError
from hostprep.host import Space
from hostprep.host.rehearsal import Rehearsal
from hostprep.journal import Journal
from hostprep.model import Change, Facet, Fact
from hostprep.registry import fixable, load

CHECK = load(["containers"])["containers"]
GB = 10**9
ID, LAYER = "a" * 64, "sha256:" + "b" * 64
DOWN = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
DOWN_29 = (
    "failed to connect to the docker API at unix:///var/run/docker.sock; check if the path is correct and if the "
    "daemon is running: dial unix /var/run/docker.sock: connect: no such file or directory"
)
DENIED = "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock"
SERVER, INFO = {"Version": "26.1.3"}, {"DockerRootDir": "/data/docker", "Driver": "overlay2"}
ENABLED = {"/etc/systemd/system/multi-user.target.wants/docker.service": "-> /lib/systemd/system/docker.service"}


def failed(said: str, status: int = 1) -> CommandFailed:
    return CommandFailed(f"docker: exit {status}: {said}", status=status, output=said)


def answers(**more: Any) -> Callable[[Sequence[str]], str]:
    """A docker command by its subcommand: of a daemon without images."""
    said: dict[str, Any] = {"version": json.dumps(SERVER), "info": json.dumps(INFO), "ps": "", "image": ""} | more

    def run(argv: Sequence[str]) -> str:
        assert list(argv[1:3]) == ["--context", "default"], "a daemon of another host might answer"
        if isinstance(said[argv[3]], HostError):
            raise said[argv[3]]
        return str(said[argv[3]])

    return run


@pytest.fixture
def host(make_host: MakeHost) -> FakeHost:
    made = make_host({**debian(), **ENABLED}, {"docker": answers()})
    made.spaces = {"/data/docker": Space(500 * GB, 60 * GB, 1000, 150)}
    return made


# -- the engine -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("docker", {"docker": "pass"}),
        ({"version": ">=26.1.3"}, {"docker": "pass", "docker/version": "pass"}),
        ({"version": "26.1.4"}, {"docker": "pass", "docker/version": "fail"}),
        ({"version": ">=26.1.10"}, {"docker": "pass", "docker/version": "fail"}),
        ({"data_root": "50GB"}, {"docker": "pass", "docker/free": "pass"}),
        ({"data_root": "61GB"}, {"docker": "pass", "docker/free": "fail"}),
        ({"data_root": {"inodes": "15%"}}, {"docker": "pass", "docker/inodes": "pass"}),
        ({"data_root": {"inodes": "16%"}}, {"docker": "pass", "docker/inodes": "fail"}),
        ({"unused_images": 0}, {"docker": "pass", "docker/unused": "pass"}),
    ],
    ids=str,
)
def test_j3_an_engine_that_answers(host: FakeHost, section: Any, expected: dict[str, str]) -> None:
    assert statuses(host, {"containers": section}) == {f"containers/{key}": status for key, status in expected.items()}


@pytest.mark.parametrize(
    ("answer", "status", "word"),
    [
        (failed(DOWN), "fail", "docker does not answer: exit 1: Cannot connect"),
        (failed(DOWN_29), "fail", "docker does not answer: exit 1: failed to connect"),
        (HostError("docker: no answer within 6 s"), "fail", "docker does not answer: no answer within 6 s."),
        (HostError("docker: not installed (not found in /usr/bin)"), "fail", "docker is not installed."),
        (failed(DENIED), "unknown", "permission denied"),
        (failed("Error response from daemon: oh dear"), "unknown", "oh dear"),
        ("", "unknown", "docker version: said something else than it was asked for"),
        ("null", "unknown", "something else than its version"),
    ],
    ids=str,
)
def test_who_does_not_answer_has_failed_and_who_cannot_be_asked_is_unknown(
    host: FakeHost, answer: object, status: str, word: str
) -> None:
    host.commands["docker"] = answers(version=answer)
    found = findings(host, {"containers": {"unused_images": 0}})
    assert (found["containers/docker"].status.value, word in found["containers/docker"].message) == (status, True)
    assert found["containers/docker/unused"].status.value == "unknown"


def test_a_daemon_without_its_command_cannot_be_asked(host: FakeHost) -> None:
    host.commands["docker"] = HostError("docker: not installed (not found in /usr/bin)")
    host.put("/usr/sbin/dockerd", "")
    assert statuses(host, {"containers": "docker"}) == {"containers/docker": "unknown"}


def test_a_daemon_that_hangs_at_ps_does_not_answer(host: FakeHost) -> None:
    """It answers `docker version` all the same (moby#13885 and many more)."""
    host.commands["docker"] = answers(ps=HostError("docker: no answer within 6 s"))
    assert statuses(host, {"containers": {"version": "26.1.3"}}) == {
        "containers/docker": "fail",
        "containers/docker/version": "unknown",
    }


def test_a_full_disk_is_told_though_the_daemon_is_down_for_it(host: FakeHost) -> None:
    host.commands["docker"] = answers(version=failed(DOWN))
    host.put("/etc/docker/daemon.json", '{"data-root": "/big/docker"}')
    host.spaces["/big/docker"] = Space(GB, 0, 10, 0)
    found = findings(host, {"containers": {"data_root": {"free": "1GB", "inodes": "1%"}}})
    assert found["containers/docker/free"].message == "/big/docker has 0 B left."
    assert found["containers/docker/inodes"].status.value == "fail"


def test_images_that_containerd_keeps_count_whole_and_where_they_are_is_where_room_is_needed(host: FakeHost) -> None:
    """Docker 29 keeps them in /var/lib/containerd: another file system, where only /var/lib/docker was made large."""
    status = [["driver-type", "io.containerd.snapshotter.v1"]]
    images = [{"Id": f"sha256:{c * 64}", "RepoTags": [f"{c}:1"], "RootFS": {"Layers": [LAYER]}} for c in "ab"]
    lines = [json.dumps({**i, "Metadata": {"LastTagTime": "2026-01-01T09:00:00.5+09:00"}}) for i in images]

    def run(argv: Sequence[str]) -> str:
        if list(argv[3:5]) == ["image", "inspect"]:
            return "\n".join(f"{i['Id']} 300" for i in images) if "Size" in argv[6] else "\n".join(lines)
        info = json.dumps({**INFO, "DriverStatus": status})
        return answers(info=info, image="\n".join(str(i["Id"]) for i in images))(argv)

    host.commands["docker"] = run
    host.spaces["/var/lib/containerd"] = Space(GB, GB // 2, 0, 0)
    found = findings(host, {"containers": {"data_root": {"free": "1GB", "inodes": "15%"}, "unused_images": "300B"}})
    assert found["containers/docker/free"].fact == Fact.fixed(GB // 2)
    assert found["containers/docker/inodes"].fact == Fact.fixed(15)
    assert found["containers/docker/unused"].fact == Fact.fixed(600)
    assert sum("/image/" in name for name in found) == 1


@pytest.mark.parametrize(
    ("files", "later"),
    [
        (ENABLED, "pass"),
        ({"/etc/systemd/system/sockets.target.wants/docker.socket": "-> /lib/systemd/system/docker.socket"}, "pass"),
        ({"/etc/rc3.d/S01docker": "-> ../init.d/docker"}, "pass"),
        ({}, "volatile"),
        ({**ENABLED, "/etc/systemd/system/docker.service": "-> /dev/null"}, "volatile"),
    ],
)
def test_an_engine_that_nothing_starts_at_boot_is_volatile(
    make_host: MakeHost, files: dict[str, str], later: str
) -> None:
    host = make_host({**debian(), **files}, {"docker": answers()})
    assert statuses(host, {"containers": "docker"}) == {"containers/docker": later}


# -- images ---------------------------------------------------------------------------------------


def test_j5_what_is_freed_is_each_layer_once_and_only_what_no_used_image_needs() -> None:
    images = [
        Image("u", ("used:1",), ("base", "app"), 1, ("web",)),
        Image("c", ("child:1",), ("base", "x", "y"), 30),
        Image("p", ("parent:1",), ("base", "x"), 20),
        Image("b", ("base:1",), ("base",), 10),
    ]
    found = unused(images, {"base": 1000, "app": 500, "x": 70, "y": 7})
    assert [(each.image.id, each.frees) for each in found] == [("p", 0), ("c", 77)]


def facts(*lines: str) -> dict[str, Fact]:
    """Of images by `ID BYTES AGE`."""
    images = {f"docker/image/{line.split()[0]}": Fact.fixed((f"{line.split()[0]}:1",)) for line in lines}
    total = sum(int(line.split()[1]) for line in lines)
    listed = tuple(f"{line} {line.split()[0]}:1" for line in lines)
    seen = {
        "docker": Fact.fixed("answers"),
        "docker/unused": Fact.fixed(total),
        "docker/unused-images": Fact.fixed(listed),
    }
    return seen | images


@pytest.mark.parametrize(
    ("limit", "keep", "going"),
    [
        (100, "1d", ""),
        (99, "1d", "old"),
        (50, "1d", "old mid"),
        (0, "1d", "old mid"),
        (0, "2h", "old mid new"),
        (0, "9d", "old"),
        (0, "0s", "old mid new"),
    ],
)
def test_j5_the_oldest_go_until_the_limit_is_met_and_what_is_young_stays(limit: int, keep: str, going: str) -> None:
    wanted = {"unused_images": {"limit": limit, "keep": keep}}
    goals = CHECK.decide(facts("old 40 240h", "mid 40 100h", "new 20 2h"), wanted)
    assert [key.rpartition("/")[2] for key in goals if "/image/" in key] == going.split()


def test_what_is_excepted_stays_and_the_next_oldest_goes_in_its_place() -> None:
    """A benchmark's image, or one that was loaded from a file and no registry has."""
    wanted = {"unused_images": {"limit": 50, "except": ["ol?:*"]}}
    goals = CHECK.decide(facts("old 40 240h", "mid 40 100h", "new 20 72h"), wanted)
    assert [key.rpartition("/")[2] for key in goals if "/image/" in key] == ["mid", "new"]
    assert "or is excepted" in CHECK.decide(facts("old 90 240h"), wanted)["docker/unused"].fix


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0001-01-01T00:00:00Z", 0),
        ("1970-01-01T09:00:01.123456789+09:00", 1),
        ("1970-01-01T00:00:01Z", 1),
        ("1969-12-31T23:30:00-00:30", 0),
        ("never", 0),
    ],
)
def test_times_are_read_as_go_writes_them(text: str, seconds: int) -> None:
    assert docker._seconds(text) == seconds


def test_a_chain_of_layers_is_named_as_the_image_specification_says() -> None:
    """image-spec, config.md: ChainID(L0|L1) = Digest(ChainID(L0) + " " + DiffID(L1))."""
    first, second = docker.chain([f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"])
    assert first == f"sha256:{'a' * 64}"
    assert second == "sha256:ccd722928bd92476ba1745586fed6e45a102504185ad88cd89e01ff116fd146c"


def with_image(host: FakeHost, removed: str | HostError = "", tags: Sequence[str] = ("a:1",)) -> list[str]:
    """An image of two months ago that nobody uses; the answer to its removal. Returns what was asked of images."""
    kept = "/data/docker/image/overlay2"
    host.put(f"{kept}/imagedb/content/sha256/{ID}", "{}")
    os.utime(f"{host.root}{kept}/imagedb/content/sha256/{ID}", (1, 1))
    host.put(f"{kept}/layerdb/{LAYER.replace(':', '/')}/size", "5000")
    told = {"Id": f"sha256:{ID}", "RepoTags": list(tags), "RootFS": {"Layers": [LAYER]}}
    asked: list[str] = []

    def run(argv: Sequence[str]) -> str:
        if argv[3] != "image":
            return answers()(argv)
        asked.append(" ".join(argv[4:]))
        if argv[4] == "rm" and isinstance(removed, HostError):
            raise removed
        return {"ls": f"sha256:{ID}\n", "inspect": json.dumps(told), "rm": str(removed)}[argv[4]]

    host.commands["docker"] = run
    return asked


def test_j5_images_go_while_jobs_run(host: FakeHost, journal: Journal) -> None:
    """A compute node is never without jobs on a Sunday night, and what nobody uses disturbs none of them."""
    host.put("/var/spool/pbs/mom_priv/jobs/17.server.JB", "")
    asked = with_image(host)
    apply(host, {"containers": {"unused_images": "1kB"}}, journal)
    assert "rm a:1" in asked


@pytest.mark.parametrize(
    ("said", "failures"),
    [
        ("conflict: unable to delete aaaa (must be forced) - image is being used by stopped container c1", 0),
        ("conflict: unable to remove repository reference - container c1 is using its referenced image", 0),
        ("Error response from daemon: layer: input/output error", 1),
    ],
)
def test_j5_what_the_engine_will_not_remove_stays_and_is_never_forced(host: FakeHost, said: str, failures: int) -> None:
    asked = with_image(host, failed(said))
    check = fixable(CHECK)
    assert check is not None
    change = Change("containers", f"docker/image/{ID[:12]}", Facet.NEXT_BOOT, ("a:1",), None)
    with pytest.raises(ChangeFailed, match="input/output") if failures else contextlib.nullcontext():
        check.apply(host, [change])
    assert asked[-1] == "rm a:1"


def test_j5_what_was_given_another_name_since_the_plan_stays(host: FakeHost) -> None:
    """`docker tag` of a build that has just ended, say."""
    asked = with_image(host, tags=("a:1", "release:2"))
    check = fixable(CHECK)
    assert check is not None
    check.apply(host, [Change("containers", f"docker/image/{ID[:12]}", Facet.NEXT_BOOT, ("a:1",), None)])
    assert not any(words.startswith("rm") for words in asked)


def test_a_container_that_ends_while_it_is_asked_for_does_not_matter(host: FakeHost) -> None:
    """`docker run --rm` of short jobs: it is listed, and gone when it is inspected."""
    listed = ["c1\nc2\n", "c2\n"]
    plain = answers()

    def run(argv: Sequence[str]) -> str:
        if argv[3] == "ps":
            return listed.pop(0)
        if argv[3] == "container" and "c1" in argv:
            raise failed("Error response from daemon: No such container: c1")
        return f"sha256:{ID} /web\n" if argv[3] == "container" else plain(argv)

    host.commands["docker"] = run
    assert docker.users(host) == {ID: ("web",)}


def test_images_are_unknown_where_the_containers_cannot_be_told(host: FakeHost, journal: Journal) -> None:
    """Who cannot tell what is in use removes nothing."""
    asked = with_image(host)
    listing = host.commands["docker"]
    assert callable(listing)

    def run(argv: Sequence[str]) -> str:
        if argv[3] == "ps":
            return "c1\n"
        if argv[3] == "container":
            raise failed("Error response from daemon: No such container: c1")
        return listing(argv)

    host.commands["docker"] = run
    performer = apply(host, {"containers": {"unused_images": 0}}, journal)
    assert performer.failures == []
    assert not any(words.startswith("rm") for words in asked)
    assert statuses(host, {"containers": {"unused_images": 0}})["containers/docker/unused"] == "unknown"


def test_a_plan_shows_the_command_and_runs_nothing(host: FakeHost) -> None:
    check = fixable(CHECK)
    assert check is not None
    rehearsal = Rehearsal(host)
    change = Change("containers", "docker/image/aa", Facet.NEXT_BOOT, ("a:1", "b:2"), None)
    check.apply(rehearsal, [change])
    assert [step.command for step in rehearsal.steps] == ["docker --context default image rm a:1 b:2"]
    assert host.ran == []


def test_nothing_brings_a_removed_image_back(host: FakeHost) -> None:
    check = fixable(CHECK)
    assert check is not None
    change = Change("containers", "docker/image/aa", Facet.NEXT_BOOT, None, ("a:1",))
    with pytest.raises(ChangeFailed, match="nothing but a pull"):
        check.apply(host, [change])


def test_a_section_is_told_of_the_kind_that_was_written_and_of_no_other() -> None:
    """Not also that a mapping is not one of: docker, podman."""
    with pytest.raises(ProfileError) as e:
        profile_source.validate("p", b"containers: {engine: lxc, unused_images: lots}\n")
    assert [text.split(" ")[1] for text in e.value.problems] == ["containers.engine:", "containers.unused_images:"]
