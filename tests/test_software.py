"""Row K5: tools and their versions, as root and others find them; the tools of these tests are real programs."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeHost, debian

from hostprep import engine, registry
from hostprep.checks import software
from hostprep.errors import CommandFailed
from hostprep.host import Host
from hostprep.host.record import RecordedHost, Recorder
from hostprep.model import Finding, Profile, Unknown

# What each tool says of itself, as its releases print it.
SAID = [
    ("kind", "kind v0.23.0 go1.22.3 linux/amd64", "0.23.0"),
    ("docker", "Docker version 26.1.3, build b72abbb", "26.1.3"),
    ("docker-server", "26.1.3", "26.1.3"),
    ("docker-compose", "Docker Compose version v2.27.0", "2.27.0"),
    ("gcc", "12.2.0", "12.2.0"),
    ("slurmd", "slurm-wlm 22.05.8", "22.05.8"),
    ("go", "go version go1.23.0 linux/amd64", "1.23.0"),
    ("kubectl", "Client Version: v1.31.1\nKustomize Version: v5.4.2", "1.31.1"),
    ("kubectl", 'Client Version: version.Info{Major:"1", Minor:"20", GitVersion:"v1.20.2", GitCommit:"f"}', "1.20.2"),
    ("helm", "v3.15.2+g1a500d5", "3.15.2"),
    ("ofed_info", "MLNX_OFED_LINUX-24.04-0.7.0.0:", "24.04-0.7.0.0"),
    ("ofed_info", "OFED-internal-24.04-0.6.6:", "24.04-0.6.6"),
    ("mstconfig", "mstconfig, mstflint 4.21.0, built on Jan 10 2022, 10:00:00. Git SHA Hash: N/A", "4.21.0"),
    ("containerd", "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+b1", "1.6.20~ds1"),
    ("containerd", "containerd containerd.io 1.6.32 8b3b7ca2e5ce38e8f31a34f35b2b68ceb8470d89", "1.6.32"),
    ("runc", "runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2-dev", "1.1.5+ds1"),
    ("crun", "crun version 1.8.1\ncommit: f8a096be060b22ccd3d5f3ebe44108517fbf6c30", "1.8.1"),
    ("podman", "podman version 4.3.1", "4.3.1"),
    ("nvidia-ctk", "NVIDIA Container Toolkit CLI version 1.14.0\ncommit: 75d", "1.14.0"),
    ("python3", "Python 3.11.2", "3.11.2"),
    ("qstat", "pbs_version = 23.06.06", "23.06.06"),
    ("git", "git version 2.39.5", "2.39.5"),
    ("make", "GNU Make 4.3\nBuilt for x86_64-pc-linux-gnu", "4.3"),
    ("openssl", "OpenSSL 3.0.15 3 Sep 2024 (Library: OpenSSL 3.0.15 3 Sep 2024)", "3.0.15"),
    ("curl", "curl 7.88.1 (x86_64-pc-linux-gnu) libcurl/7.88.1", "7.88.1"),
    ("jq", "jq-1.6", "1.6"),
    ("apptainer", "apptainer version 1.3.0", "1.3.0"),
    ("singularity", "singularity-ce version 4.1.2-jammy", "4.1.2-jammy"),
    ("crictl", "crictl version v1.30.0", "1.30.0"),
    ("skopeo", "skopeo version 1.9.3", "1.9.3"),
]


@pytest.mark.parametrize(("tool", "said", "version"), SAID)
def test_what_a_tool_says_of_itself_is_understood(tool: str, said: str, version: str) -> None:
    match = re.search(software.KNOWN[tool][1], said, re.M)
    assert match is not None
    assert match[1].rstrip(",") == version


def look(section: dict[str, Any], host: Host | None = None) -> dict[str, Finding]:
    """What the check finds on this very machine."""
    wanted = Profile(name="test", sha256="0" * 64, sections={"software": section})
    found = engine.examine(host or Host(), wanted, registry.load(["software"]), deadline=60).findings
    return {f.key: f for f in found}


def program(folder: Path, script: str, mode: int = 0o755) -> str:
    path = folder / "tool"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(mode)
    return str(path)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="root asks as root; others see only their own")
VERSIONS: list[tuple[str, str, str]] = [
    ("1.4.0", "1.4.0", "pass"),
    ("v1.4.0", "1.4.0", "pass"),
    ("1.4", "1.4.0", "fail"),
    (">=1.4", "1.4.0", "pass"),
    (">=1.10", "1.9", "fail"),
    (">=1.4", "1.4.0-rc.1", "fail"),
    (">=1.4", "1.5.0-rc.1", "pass"),
    (">=1.23 <1.24", "1.24.0-rc.1", "fail"),
    (">=v1.23.0 <go1.24", "v1.23.1", "pass"),
    ("20.10.24", "20.10.24+dfsg1", "pass"),
    (">=1.6.20", "1.6.20~ds1", "pass"),
    (">=1.4.0", "1.4.0-rc.1", "fail"),
    (">=1.4.0", "1.4rc1", "fail"),
    (">=1.23.0 <1.24", "1.23.9", "pass"),
    (">=1.23.0 <1.24", "1.24.0", "fail"),
    (">=1.23.0 <1.24", "1.22.9", "fail"),
    ("any", "0.0.1", "pass"),
    (">=24.04-0.7.0.0", "24.04-0.6.6.0", "fail"),
]


@needs_root
@pytest.mark.parametrize(("wanted", "says", "status"), VERSIONS)
def test_k5_a_version_is_exact_at_least_or_in_a_range(tmp_path: Path, wanted: str, says: str, status: str) -> None:
    tool = {"command": [program(tmp_path, f"echo site-tool {says}")], "version": wanted, "pattern": r"tool (\S+)"}
    found = {f.status.value for f in look({"site-tool": tool}).values()}
    assert found == ({"pass"} if status == "pass" else found)
    assert ("fail" in found) == (status == "fail")


ODD: list[tuple[str, int, str, str]] = [
    ("echo version 1.2.3 >&2", 0o755, "pass", ""),
    ("echo none of your business", 0o755, "unknown", "no version in its answer"),
    ("echo no licence >&2; exit 3", 0o755, "unknown", "/tool: exit 3: no licence"),
    ("exec sleep 600", 0o755, "unknown", "/tool: no answer within 3 s"),
    ("printf 'version 1.2.3\\033[0m\\0'", 0o755, "pass", ""),
    ("echo version 1.2.3", 0o644, "fail", "/tool is not executable"),
    ("read -r line; echo version 1.2.3$line", 0o755, "pass", ""),
]


@needs_root
@pytest.mark.parametrize(("script", "mode", "status", "words"), ODD)
def test_a_tool_that_is_odd_is_told_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, mode: int, status: str, words: str
) -> None:
    monkeypatch.setattr(software, "RUN_S", 3.0)
    tool = {"command": [program(tmp_path, script, mode), "--version"], "version": ">=1.2"}
    (found,) = look({"site-tool": tool}).values()
    assert (found.status.value, words in found.message) == (status, True), found


@needs_root
@pytest.mark.parametrize(
    ("pattern", "words"),
    [("v(", "is no regular expression"), ("(x)?version", "no version in its answer"), ("y", "no version")],
)
def test_a_pattern_that_finds_nothing_is_unknown(tmp_path: Path, pattern: str, words: str) -> None:
    tool = {"command": [program(tmp_path, "echo version 1.2.3")], "version": "any", "pattern": pattern}
    (found,) = look({"site-tool": tool}).values()
    assert (found.status.value, words in found.message) == ("unknown", True), found


@needs_root
def test_what_others_may_write_is_not_run_as_root(tmp_path: Path) -> None:
    path = program(tmp_path, f"touch {tmp_path}/ran; echo version 1.2.3", 0o777)
    (found,) = look({"site-tool": {"command": [path], "version": ">=1.2"}}).values()
    assert (found.status.value, "not run as root" in found.message) == ("unknown", True)
    assert not (tmp_path / "ran").exists()


@needs_root
def test_each_user_runs_the_tool_as_that_user_and_one_that_is_not_there_is_unknown(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo 1.0.$(id -u)"]
    found = look({"sh": {"command": command, "version": "any", "users": ["root", "nobody", "no-such-user"]}})
    assert found["sh"].fact.current == "1.0.0"
    assert found["sh/nobody"].fact.current == "1.0.65534"
    assert found["sh/no-such-user"].fact.current == Unknown("there is no user no-such-user")


def test_who_is_not_root_cannot_tell_what_root_finds(tmp_path: Path) -> None:
    host = Shells(tmp_path / "root", "")
    host.commands["setpriv"] = CommandFailed("setpriv: exit 127: setpriv: setresuid failed: Operation not permitted")
    found = look({"git": "any"}, host)["git"]
    assert (found.status.value, found.message) == ("unknown", "what root finds: needs root")


def test_a_tool_that_is_nowhere_fails_and_says_for_whom(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root asks for another user")
    found = look({"no-such-tool": {"version": "any", "users": ["nobody"]}})["no-such-tool/nobody"]
    assert (found.status.value, found.message) == ("fail", "no-such-tool is not on the PATH of nobody.")


@needs_root
def test_what_has_its_name_and_is_no_program_is_said(tmp_path: Path) -> None:
    (found,) = look({"tmp": {"command": [str(tmp_path)], "version": "any"}}).values()
    assert (found.status.value, found.message) == ("fail", f"{tmp_path} is a directory.")
    (found,) = look({"tmp": {"command": [f"{tmp_path}/gone"], "version": "any"}}).values()
    assert (found.status.value, found.message) == ("fail", f"{tmp_path}/gone is not there.")


class Home(Host):
    """This machine, where `nobody` has a home."""

    def __init__(self, home: str, shell: str) -> None:
        super().__init__()
        self.home, self.shell = home, shell

    def run(self, *argv: str, timeout: float = 10, stdin: bytes = b"") -> str:
        if argv == ("getent", "passwd", "nobody"):
            return f"nobody:x:65534:65534::{self.home}:{self.shell}\n"
        return super().run(*argv, timeout=timeout, stdin=stdin)


@pytest.fixture
def home() -> Iterator[Path]:
    """A home that others may enter, unlike tmp_path."""
    with tempfile.TemporaryDirectory(prefix="hostprep-home-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@needs_root
@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/sh", "/usr/sbin/nologin"])
def test_k5_who_has_another_version_is_told_with_both_paths(home: Path, shell: str) -> None:
    """A tool that the admin's profile puts before root's, as ~/.profile does with ~/bin."""
    mine = program(home, "echo git version 2.0.1")
    (home / "bin").mkdir()
    Path(mine).rename(home / "bin/git")
    (home / ".profile").write_text(f"echo; echo Welcome\nPATH={home}/bin:$PATH\n")
    found = look({"git": {"version": ">=2", "users": ["root", "nobody"]}}, Home(str(home), shell))
    same = found["git/same"]
    assert (found["git"].status.value, found["git/nobody"].status.value, same.status.value) == ("pass", "pass", "fail")
    assert f"nobody finds {home}/bin/git (2.0.1)" in same.message
    assert re.search(r"root finds /\S+/git \(", same.message)


@needs_root
def test_k5_a_tool_that_only_root_has_is_told_with_its_place(home: Path) -> None:
    (home / ".profile").write_text("PATH=/nowhere\n")
    found = look({"git": {"version": ">=2", "users": ["root", "nobody"]}}, Home(str(home), "/bin/bash"))
    assert found["git"].status.value == "pass"
    assert re.match(r"git is not on the PATH of nobody; root finds /\S+/git \(", found["git/nobody"].message)
    assert "git/same" not in found


@needs_root
@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ("exec sleep 600", "the login of nobody: no answer within 4 s"),
        ("exit 1", "the login of nobody: exit 1"),
        ("exit 0", "did not say its PATH"),
        ("git() { :; }", "an alias or a function of the shell of nobody"),
    ],
)
def test_a_profile_that_goes_wrong_is_unknown_and_the_others_are_judged(
    home: Path, monkeypatch: pytest.MonkeyPatch, profile: str, words: str
) -> None:
    monkeypatch.setattr(software, "LOGIN_S", 4.0)
    (home / ".profile").write_text(f"{profile}\n")
    found = look({"git": {"version": ">=2", "users": ["root", "nobody"]}}, Home(str(home), "/bin/bash"))
    assert {key: f.status.value for key, f in found.items()} == {"git": "pass", "git/nobody": "unknown"}
    assert words in found["git/nobody"].message


class Shells(FakeHost):
    """Login shells that say what they are told to (and find nothing else), and passwd entries for two users."""

    def __init__(self, root: Path, said: str) -> None:
        super().__init__(root, debian())
        self.said = said
        self.commands |= {"getent": self.passwd, "env": self.shell, "setpriv": self.shell}

    def passwd(self, argv: Sequence[str]) -> str:
        users = {"root": "root:x:0:0:root:/root:/bin/bash", "admin": "admin:x:1000:1000::/home/admin:/bin/zsh"}
        return users.get(argv[-1], "") + "\n"

    def shell(self, argv: Sequence[str]) -> str:
        if not any("hostprep-path:" in word for word in argv):
            return "kubectl v1.0\n" + " ".join(argv)
        asked_for = argv[argv.index("sh") + 1 :] if "\t" in self.said else ()
        return self.said + "".join(f"{name}\t\n" for name in asked_for if f"\n{name}\t" not in self.said)


def test_a_host_recorded_without_a_profile_answers_one_that_asks_for_known_tools(tmp_path: Path) -> None:
    check = registry.load(["software"])["software"]
    asking = registry.asking(check)
    assert asking is not None
    here = asking.inspect(Recorder(str(tmp_path / "node")), asking.asked(None, ()))
    found = look({"git": ">=1", "kind": "any"}, RecordedHost(str(tmp_path / "node")))
    assert found["git"].fact == here["git"]
    assert {f.status.value for f in found.values()} <= {"pass", "fail"}


def test_the_path_is_that_of_a_login_whatever_the_profile_prints(tmp_path: Path) -> None:
    """K5: `sudo kubectl` and plain `go` are found along different paths."""
    host = Shells(tmp_path / "root", "Welcome!\n\nhostprep-path:/opt/go1/bin:/usr/bin\ngo\t/opt/go/bin/go\n")
    host.put("/etc/login.defs", "ENV_SUPATH\tPATH=/usr/sbin:/usr/bin\nENV_PATH\tPATH=/usr/bin\n")
    host.put("/etc/sudoers", 'Defaults\tsecure_path="/usr/local/sbin:/snap/bin"\n')
    check = registry.load(["software"])["software"]
    asking = registry.asking(check)
    assert asking is not None
    want = {"go": {"version": "any", "users": ["root", "admin", "sudo"], "command": ["go"], "pattern": "PATH=(\\S+)"}}
    facts = asking.inspect(host, asking.asked(want, ()))
    assert {key: facts[key].current for key in ("go", "go/admin", "go/sudo")} == dict.fromkeys(
        ("go", "go/admin", "go/sudo"), "/opt/go1/bin:/usr/bin"
    )
    assert facts["go/admin/path"].current == "/opt/go/bin/go"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("", "did not say its PATH"),
        ("\nhostprep-path:/usr/bin\n", "broke off before it told of apptainer"),
        ("\nhostprep-path:/usr/bin\ngo\tgo\n", "alias or a function"),
    ],
)
def test_a_shell_that_says_nothing_or_has_a_function_of_that_name_is_unknown(
    tmp_path: Path, said: str, words: str
) -> None:
    found = look({"go": ">=1.23"}, Shells(tmp_path / "root", said))["go"]
    assert (found.status.value, words in found.message) == ("unknown", True), found


SUDOERS: list[tuple[str | None, str]] = [
    (None, "sudo is not installed"),
    ("root ALL=(ALL:ALL) ALL\n", "no secure_path"),
    ("# Defaults secure_path=/bin\n", "no secure_path"),
    ('Defaults\tenv_reset\nDefaults\tsecure_path="/usr/sbin:/snap/bin2"\n', ""),
    ("Defaults env_reset, secure_path = /usr/sbin:/snap/bin2\n", ""),
]


@pytest.mark.parametrize(("sudoers", "words"), SUDOERS)
def test_what_sudo_finds_is_looked_for_along_its_own_path(tmp_path: Path, sudoers: str | None, words: str) -> None:
    host = Shells(tmp_path / "root", "\nhostprep-path:/usr/sbin:/snap/bin2\ngo\t/snap/bin/go\n")
    if sudoers is not None:
        host.put("/etc/sudoers", sudoers)
    want = {"go": {"version": "any", "users": ["sudo"], "command": ["go"], "pattern": "PATH=(\\S+)"}}
    found = look(want, host)["go/sudo"]
    assert (found.status.value, words in found.message) == ("unknown" if words else "pass", True), found
