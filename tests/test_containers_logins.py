"""Logins to registries that somebody left behind, and the next user of the node would inherit (J6)."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeHost, apply, findings, statuses
from fakes import FakeHost, debian

from hostprep.engines import logins
from hostprep.engines.logins import Login
from hostprep.errors import CommandFailed, HostError
from hostprep.host import Host, process
from hostprep.host.record import without_secrets
from hostprep.host.rehearsal import Rehearsal
from hostprep.journal import Journal
from hostprep.model import Change, Facet, Fact
from hostprep.perform import Performer
from hostprep.registry import fixable, load
from hostprep.revert import revert

CHECKS = load(["containers"])
SECRET = "cGJzOmh1bnRlcjI="
DOCKER, PODMAN = "/root/.docker/config.json", "/run/containers/0/auth.json"
NONE = {"containers": {"logins": "none"}}
WITH_PBS = {"containers": {"logins": {"users": ["pbs"]}}}
USERS = {"root": "root:x:0:0:root:/root:/bin/bash\n", "pbs": "pbs:x:990:990::/home/pbs:/bin/sh\n"}


def passwd(argv: Sequence[str]) -> str:
    if argv[2] not in USERS:
        raise CommandFailed("getent: exit 2", status=2, output="")
    return USERS[argv[2]]


def auths(*registries: str, **more: Any) -> str:
    return json.dumps({"auths": {registry: {"auth": SECRET} for registry in registries}, **more})


@pytest.fixture
def host(make_host: MakeHost) -> FakeHost:
    return make_host(debian(), {"getent": passwd})


# -- finding them ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        (DOCKER, auths("harbor.example.com"), ["harbor.example.com"]),
        (DOCKER, auths("https://index.docker.io/v1/"), ["https://index.docker.io/v1/"]),
        (DOCKER, '{"auths": {"a": {"identitytoken": "t"}, "b": {"username": "u", "password": "p"}}}', ["a", "b"]),
        (DOCKER, '{"auths": {"harbor.example.com": {}}}', []),
        (DOCKER, '{"auths": {"harbor.example.com": {"auth": ""}}}', []),
        (DOCKER, '{"HttpHeaders": {"User-Agent": "Docker"}}', []),
        (DOCKER, "", []),
        ("/root/.dockercfg", '{"harbor.example.com": {"auth": "x", "email": ""}}', ["harbor.example.com"]),
        ("/root/.config/containers/auth.json", auths("harbor.example.com/team"), ["harbor.example.com/team"]),
        ("/run/user/0/containers/auth.json", auths("quay.io"), ["quay.io"]),
        ("/.docker/config.json", auths("quay.io"), ["quay.io"]),
    ],
)
def test_j6_where_docker_and_podman_keep_a_login(host: FakeHost, path: str, text: str, found: list[str]) -> None:
    host.put(path, text)
    finding = findings(host, NONE)["containers/logins/root"]
    assert finding.fact.current == tuple(f"{registry} in {path}" for registry in found)
    assert finding.status.value == ("pass" if not found else "pending-reboot" if path.startswith("/run/") else "fail")
    assert all(word in finding.message for word in found)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"auths": ["a"]}', '{"auths": {"a": "b"}}', '{"credsStore": 1}', "[" * 9999]
)
def test_a_file_that_is_not_as_docker_writes_it_is_unknown(host: FakeHost, text: str) -> None:
    host.put(DOCKER, text)
    assert statuses(host, WITH_PBS) == {"containers/logins/root": "unknown", "containers/logins/pbs": "pass"}


def test_a_user_that_is_not_known_here_is_unknown_and_the_others_are_judged(host: FakeHost) -> None:
    found = findings(host, {"containers": {"logins": {"users": ["nobody7", "pbs"]}}})
    assert found["containers/logins/nobody7"].message == "user nobody7 is not known here"
    assert {f.status.value for f in found.values()} == {"unknown", "pass"}


def test_what_is_in_run_is_gone_at_the_next_boot_and_must_go_now(host: FakeHost) -> None:
    """podman's default place: `podman login` of root does not outlive a boot."""
    host.put(PODMAN, auths("quay.io"))
    finding = findings(host, NONE)["containers/logins/root"]
    assert finding.fact == Fact((f"quay.io in {PODMAN}",), ())
    assert finding.status.value == "pending-reboot"
    assert finding.fix == "Reboot this host, or: hostprep apply --only containers"


@pytest.mark.parametrize(
    ("allow", "status"),
    [
        (["mirror.example.com"], "fail"),
        (["mirror.example.com", "harbor.example.com"], "pass"),
        (["*.example.com"], "pass"),
        (["harbor.example.com/team"], "fail"),
    ],
)
def test_what_is_allowed_may_stay_and_the_rest_goes(
    host: FakeHost, journal: Journal, allow: list[str], status: str
) -> None:
    host.put(DOCKER, auths("https://mirror.example.com/v2/", "harbor.example.com"))
    wanted = {"containers": {"logins": {"allow": allow}}}
    assert statuses(host, wanted)["containers/logins/root"] == status
    assert apply(host, wanted, journal).failures == []
    assert statuses(host, wanted)["containers/logins/root"] == "pass"
    left = json.loads(host.read(DOCKER) or "")["auths"]
    assert left.keys() <= {"https://mirror.example.com/v2/", "harbor.example.com"}
    assert ("harbor.example.com" in left) == (status == "pass")


# -- credential helpers ---------------------------------------------------------------------------


def helper(said: str | HostError) -> Any:
    def run(argv: Sequence[str]) -> str:
        assert argv[-1] in ("list", "erase"), "a secret is never asked for"
        if isinstance(said, HostError):
            raise said
        return said if argv[-1] == "list" else ""

    return run


UNIMPLEMENTED = CommandFailed("env: exit 1: list is unimplemented", status=1, output="list is unimplemented")


@pytest.mark.parametrize(
    ("config", "said", "found"),
    [
        ({"credsStore": "pass"}, '{"https://harbor.example.com": "pbs"}', ("https://harbor.example.com",)),
        ({"credsStore": "pass"}, "{}", ()),
        (
            {"credHelpers": {"harbor.example.com": "pass"}},
            '{"https://harbor.example.com": "u"}',
            ("https://harbor.example.com",),
        ),
        ({"credHelpers": {"harbor.example.com": "pass"}}, '{"quay.io": "u"}', ()),
        ({"credHelpers": {"gcr.io": "gcloud"}}, UNIMPLEMENTED, ("gcr.io",)),
        ({"credsStore": "pass"}, UNIMPLEMENTED, None),
        ({"credsStore": "pass"}, HostError("env: no answer within 6 s"), None),
        ({"credsStore": "../../tmp/x"}, "{}", None),
        ({"credsStore": "a b"}, "{}", None),
    ],
)
def test_j6_a_helper_is_asked_which_registries_it_knows(
    host: FakeHost, config: dict[str, Any], said: Any, found: tuple[str, ...] | None
) -> None:
    host.put(DOCKER, json.dumps(config))
    host.commands["env"] = helper(said)
    finding = findings(host, NONE)["containers/logins/root"]
    if found is None:
        assert finding.status.value == "unknown"
        return
    name = "gcloud" if "gcr.io" in found else "pass"
    assert finding.fact.current == tuple(f"{each} in {DOCKER} by docker-credential-{name}" for each in found)


def test_a_users_helper_is_run_as_that_user_and_told_to_erase(host: FakeHost, journal: Journal) -> None:
    """Root has no business to run what a user's file names; and the helper alone knows how to forget."""
    host.put("/home/pbs/.docker/config.json", '{"credsStore": "pass"}')
    held = ["harbor.example.com"]
    ran: list[list[str]] = []

    def setpriv(argv: Sequence[str]) -> str:
        ran.append(list(argv))
        if argv[-1] == "erase":
            held.clear()
        return json.dumps(dict.fromkeys(held, "u"))

    host.together = lambda works, deadline: {name: work() for name, work in works}  # type: ignore[method-assign]
    host.commands["setpriv"] = setpriv
    assert apply(host, WITH_PBS, journal).failures == []
    becoming = [
        "setpriv",
        "--reuid=990",
        "--regid=990",
        "--init-groups",
        "env",
        "HOME=/home/pbs",
        "XDG_RUNTIME_DIR=/run/user/990",
    ]
    assert {tuple(argv[:7]) for argv in ran} == {tuple(becoming)}
    assert ["docker-credential-pass", "erase"] in [argv[7:] for argv in ran]


@pytest.mark.parametrize(("name", "number"), [("root", 0), ("nobody", 65534)])
def test_a_real_helper_runs_as_the_user_whose_file_names_it(tmp_path: Path, name: str, number: int) -> None:
    """As docker would run it: `docker-credential-NAME list` on PATH, with the user's home."""
    program = f"/usr/local/bin/docker-credential-hostprep-{os.getpid()}"
    if os.geteuid() != 0 or not os.access("/usr/local/bin", os.W_OK):
        pytest.skip("needs root, to put a program on root's PATH")
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker/config.json").write_text(json.dumps({"credsStore": program.rpartition("credential-")[2]}))
    try:
        Path(program).write_text('#!/bin/sh\n[ "$1" = list ] && printf \'{"%s": "", "%s": ""}\' "$HOME" "$(id -u)"\n')
        os.chmod(program, 0o755)
        who = logins.User(name, number, number, str(tmp_path))
        found = [login.registry for login in logins.logins(Host(), who) if login.helper]
    finally:
        os.unlink(program)
    assert found == [str(tmp_path), str(number)]


# -- taking them away -----------------------------------------------------------------------------


def test_j6_a_login_goes_and_all_else_in_the_file_stays(host: FakeHost, journal: Journal) -> None:
    other = {"HttpHeaders": {"a": "b"}, "proxies": {"default": {"httpProxy": "http://p:1"}}}
    host.put(DOCKER, auths("harbor.example.com", "quay.io", **other))
    os.chmod(f"{host.root}{DOCKER}", 0o600)
    assert apply(host, NONE, journal).failures == []
    assert json.loads(host.read(DOCKER) or "") == {"auths": {}, **other}
    assert host.state(DOCKER).mode == 0o600


def test_no_secret_is_told_or_kept_and_revert_says_that_it_cannot_come_back(host: FakeHost, journal: Journal) -> None:
    """A login in a journal that is kept for ever would be left behind again, where nobody looks."""
    host.put(DOCKER, auths("harbor.example.com"))
    told = repr(findings(host, NONE))
    apply(host, NONE, journal)
    text = Path(journal.path).read_text()
    assert "harbor.example.com" in told
    assert "harbor.example.com" in text
    assert SECRET not in told + text
    said: list[str] = []
    performer = Performer(host, CHECKS, journal, said.append)
    assert revert(performer) == ["containers/logins/root"]
    assert performer.failures == []
    assert "log in again" in said[0]
    assert "harbor" not in (host.read(DOCKER) or "")


def test_no_secret_is_in_a_recording() -> None:
    files = [auths("harbor.example.com").encode(), json.dumps({"answer": auths("quay.io")}).encode()]
    more = b'{"auths": {"a": {"identitytoken": "s3cret", "password" : "s3cret"}}}'
    recorded = b"".join(without_secrets(file) for file in [*files, more])
    assert SECRET.encode() not in recorded
    assert b"s3cret" not in recorded
    assert json.loads(without_secrets(files[0]))["auths"]["harbor.example.com"] == {"auth": "REMOVED"}


def test_while_jobs_run_nobody_is_logged_out(host: FakeHost, journal: Journal) -> None:
    """J2: a job's prologue may be pulling with it."""
    host.put(DOCKER, auths("harbor.example.com"))
    host.put("/var/spool/pbs/mom_priv/jobs/17.server.JB", "")
    performer = apply(host, NONE, journal)
    assert "would disturb PBS job 17.server" in performer.failures[0].reason
    assert SECRET in (host.read(DOCKER) or "")


def test_a_plan_shows_whose_file_is_edited_and_no_secret(host: FakeHost) -> None:
    check = fixable(CHECKS["containers"])
    assert check is not None
    before = tuple(map(str, (Login("quay.io", DOCKER), Login("gcr.io", DOCKER, "pass"))))
    rehearsal = Rehearsal(host)
    check.apply(rehearsal, [Change("containers", "logins/root", Facet.CURRENT, before, ())])
    assert [step.command for step in rehearsal.steps] == [
        "env 'HOME=~root' XDG_RUNTIME_DIR=/run/user/0 docker-credential-pass erase",
        f"edit {DOCKER}    # as root: without the logins to quay.io",
    ]
    assert host.ran == []


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A directory that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="hostprep-logins-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_a_users_link_does_not_make_root_write_where_the_user_could_not(open_to_all: Path) -> None:
    """~/.docker/config.json may be a link to root's; the file is edited with the user's own rights."""
    if os.geteuid() != 0 or process.which("setpriv") is None:
        pytest.skip("needs root, to become somebody else")
    roots, link = open_to_all / "root.json", open_to_all / "home" / "config.json"
    roots.write_text(auths("harbor.example.com"))
    roots.chmod(0o600)
    link.parent.mkdir(mode=0o755)
    os.chown(link.parent, 65534, 65534)
    link.symlink_to(roots)
    who = logins.User("nobody", 65534, 65534, str(open_to_all))
    with pytest.raises(HostError, match="Permission denied"):
        logins.forget(Host(), who, [Login("harbor.example.com", str(link))])
    assert SECRET in roots.read_text()
    link.unlink()
    link.write_text(auths("harbor.example.com"))
    os.chown(link, 65534, 65534)
    logins.forget(Host(), who, [Login("harbor.example.com", str(link))])
    assert (json.loads(link.read_text()), link.stat().st_uid) == ({"auths": {}}, 65534)
