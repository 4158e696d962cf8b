r"""Software: tools and their versions, as root and the site's other users find them on their PATH.

    software: {kind: "0.23.0", docker: ">=26.1.3", go: ">=1.23.0 <1.24", kubectl: ">=1.31.1"}
    software:
      kubectl: {version: ">=1.31.1", users: [root, admin, sudo]}     # found by each of them, in one version
      git: any                                                       # in whatever version
      site-tool: {command: [site-tool, --about], pattern: 'release (\S+)', version: ">=2"}

A version is asked of the tool itself. These are known: apptainer, containerd, crictl, crun, curl, docker,
docker-compose, docker-server (the engine, through docker), gcc, git, go, helm, jq, kind, kubectl, make, mstconfig,
nerdctl, nvidia-ctk, ofed_info, openssl, podman, podman-compose, python3, qstat, runc, singularity, skopeo and slurmd.
Any other is asked with --version, or with its `command`; `pattern` is a regular expression whose first group is the
version (a number with dots, if it is not given).

version: exact (0.23.0, not 0.23), at least (">=1.2"), or a range (">=1.2 <2"). 1.23rc1 and 1.23.0-rc.1 are older than
1.23; nor are they below 1.23, where that is the end of a range. A v or go before the number does not count, nor does
what Debian adds where it left files out (+dfsg1, ~ds1).

users: who has to find it: root (if nobody is named), users by name, and `sudo` for what `sudo TOOL` finds (secure_path
in /etc/sudoers). Each one's PATH is that of a login: /etc/environment, /etc/login.defs, then the login shell with its
profile, started as that user and with nothing on its standard input. A profile that does not end, or that fails, is
unknown. The tool is then run as that user, with an environment of its own; what others than root may write is never
run as root. Users who find different versions are a finding of their own (TOOL/same).

A tool that is there and does not answer within 10 s, that fails, or whose answer has no version in it is unknown.
hostprep changes nothing here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from hostprep import versions
from hostprep.errors import CommandFailed, HostError
from hostprep.host import Host, attempt
from hostprep.model import Desired, Fact, Facts, Goals, Section, Suggestion, Unknown

NAME = "software"

_NUMBER_OF_IT = r"(v|go)?[0-9][A-Za-z0-9.+~-]*"
_CONSTRAINT = f"(any|{_NUMBER_OF_IT}|>= ?{_NUMBER_OF_IT}( < ?{_NUMBER_OF_IT})?)"
_VERSION = {
    "description": 'a version (0.23.0), at least one (">=1.2"), a range (">=1.2 <2"), or any',
    "type": "string",
    "pattern": rf"^{_CONSTRAINT}$(?!\n)",
}
_TOOL = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$(?!\n)"
SCHEMA = {
    "description": "Tools by name, and the version that each is to be.",
    "type": "object",
    "propertyNames": {"description": "the name of a tool: letters, digits, . _ + -", "pattern": _TOOL},
    "additionalProperties": {
        "description": "a version, or {version: ..., users: [...]}",
        "anyOf": [
            _VERSION,
            {
                "type": "object",
                "properties": {
                    "version": _VERSION,
                    "users": {
                        "description": "who has to find it: root, sudo, or users by name",
                        "type": "array",
                        "minItems": 1,
                        "items": {
                            "type": "string",
                            "pattern": r"^(?!(path|same|below)$)[A-Za-z_][A-Za-z0-9_.@-]{0,63}[$]?$(?!\n)",
                        },
                    },
                    "command": {
                        "description": "the tool and its arguments, such as [site-tool, --version]",
                        "type": "array",
                        "minItems": 1,
                        "items": {"type": "string", "pattern": r"^[^\x00-\x1f]+$(?!\n)"},
                    },
                },
                # a property that is called `pattern` would be taken for the keyword by some readers of schemas
                "patternProperties": {r"^pattern$(?!\n)": {"type": "string", "description": "a regular expression"}},
                "required": ["version"],
                "additionalProperties": False,
            },
        ],
    },
    "minProperties": 1,
}

ROOT, SUDO = "root", "sudo"
ANY = "any"
RUN_S = 10.0  # seconds for one tool to say its version
LOGIN_S = 8.0  # for the profile of one user
_LOOK_S = 24.0  # for all of them, of the 30 that a check has
_NUMBER = r"(?<![\w.])v?(\d+(?:\.\d+)+[\w.+~-]*)"
_FIRST = r"version v?([0-9][^\s,]*)"
# How each tool is asked, and what of its answer is the version.
KNOWN: Mapping[str, tuple[str, str]] = {
    "apptainer": ("apptainer --version", _FIRST),
    "containerd": ("containerd --version", r"containerd(?:\.io)? v?([0-9]\S*)"),
    "crictl": ("crictl --version", _FIRST),
    "crun": ("crun --version", _FIRST),
    "curl": ("curl --version", r"curl ([0-9]\S*)"),
    "docker": ("docker --version", _FIRST),
    "docker-compose": ("docker compose version", _FIRST),
    "docker-server": ("docker version --format {{.Server.Version}}", r"^v?([0-9]\S*)$"),
    "gcc": ("gcc -dumpfullversion", r"^([0-9]\S*)$"),
    "git": ("git --version", _FIRST),
    "go": ("go version", r"go version go([0-9]\S*)"),
    "helm": ("helm version --short", r"v([0-9][^\s+]*)"),
    "jq": ("jq --version", r"jq-([0-9]\S*)"),
    "kind": ("kind version", r"kind v?([0-9]\S*)"),
    "kubectl": ("kubectl version --client", r"(?:Client Version: v|GitVersion:\"v)([0-9][^\"\s]*)"),
    "make": ("make --version", r"Make ([0-9]\S*)"),
    "mstconfig": ("mstconfig -v", r"mstflint ([0-9][^\s,]*)"),
    "nerdctl": ("nerdctl --version", _FIRST),
    "nvidia-ctk": ("nvidia-ctk --version", _FIRST),
    "ofed_info": ("ofed_info -s", r"-(\d[\d.]*-[\d.]+):"),
    "openssl": ("openssl version", r"OpenSSL ([0-9]\S*)"),
    "podman": ("podman --version", _FIRST),
    "podman-compose": ("podman-compose --version", _FIRST),
    "python3": ("python3 --version", r"Python ([0-9]\S*)"),
    "qstat": ("qstat --version", r"pbs_version = ([0-9]\S*)"),
    "runc": ("runc --version", _FIRST),
    "slurmd": ("slurmd -V", r"slurm\S* ([0-9]\S*)"),
    "singularity": ("singularity --version", r"([0-9]+\.[0-9]\S*)"),
    "skopeo": ("skopeo --version", _FIRST),
}
_REPACKED = r"[+~](?:dfsg|ds|repack)[0-9.]*(?:[+~-].*)?$"
_MARK = "hostprep-path:"
# The login shell says its PATH last, behind whatever its profile prints, and what it finds for each name.
_SAY = (
    f'printf \'\\n{_MARK}%s\\n\' "$PATH"; for name; do printf \'%s\\t%s\\n\' "$name" "$(command -v -- "$name")"; done'
)


class Question(NamedTuple):
    """A tool, how it is asked, and by whom."""

    tool: str
    command: tuple[str, ...]
    pattern: str
    user: str
    asked: bool = True  # of a profile; otherwise what is not there is not worth a word

    @property
    def key(self) -> str:
        return self.tool if self.user == ROOT else f"{self.tool}/{self.user}"


class User(NamedTuple):
    """Whom a login would make us."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str


# -- looking --------------------------------------------------------------------------------------


def asked(want: Section, keys: Iterable[str]) -> Sequence[str]:
    """The questions of a profile; without one, whether the known tools are there."""
    if want is None:
        return [json.dumps(_known(tool)._replace(asked=False)) for tool in KNOWN]
    return [json.dumps(question) for tool, wanted in want.items() for question in _questions(tool, wanted)]


def _known(tool: str) -> Question:
    command, pattern = KNOWN.get(tool, (f"{tool} --version", _NUMBER))
    return Question(tool, tuple(command.split()), pattern, ROOT)


def _questions(tool: str, wanted: Any) -> Iterator[Question]:
    told = wanted if isinstance(wanted, dict) else {}
    usual = _known(tool)
    command = tuple(told.get("command", usual.command))
    pattern = told.get("pattern", _NUMBER if "command" in told else usual.pattern)
    for user in told.get("users", [ROOT]):
        yield Question(tool, command, pattern, user)


def inspect(host: Host, names: Sequence[str] = ()) -> Facts:
    questions = [Question(tool, tuple(command), *rest) for tool, command, *rest in map(json.loads, names)]
    by_user = {user: [q for q in questions if q.user == user] for user in dict.fromkeys(q.user for q in questions)}
    found = _together(host, {user: partial(_found, host, user, mine) for user, mine in by_user.items()}, LOGIN_S + 2)
    places = {q: _place(found[q.user], q) for q in questions}
    no_program = {q: attempt(_no_program, host, q, place) for q, place in places.items()}
    there = {q: place for q, place in places.items() if isinstance(place, Place) and no_program[q] == ""}
    works = {q.key: partial(_version, host, q, place) for q, place in there.items()}
    versions_found = _together(host, works, _LOOK_S - LOGIN_S - 2)
    facts: dict[str, Fact] = {}
    for q, place in places.items():
        if no_program[q] and not q.asked:
            continue
        unread = next((u for u in (place, no_program[q]) if isinstance(u, Unknown)), None)
        facts[q.key] = Fact.fixed(unread or versions_found.get(q.key))
        if unread is None and isinstance(place, Place):
            facts[f"{q.key}/path"] = Fact.fixed(place.program if q in there else no_program[q])
    return facts


def _together(host: Host, works: Mapping[str, Callable[[], Any]], deadline: float) -> dict[str, Any]:
    """What functions return, each in a child process; Unknown where one fails or takes too long."""

    def wired(work: Callable[[], Any]) -> bytes:
        answer = attempt(work)
        return json.dumps({"unknown": answer.reason} if isinstance(answer, Unknown) else {"answer": answer}).encode()

    answers = host.together([(name, partial(wired, work)) for name, work in works.items()], deadline)
    return {name: Unknown(raw) if isinstance(raw, str) else _unwired(json.loads(raw)) for name, raw in answers.items()}


def _unwired(data: Mapping[str, Any]) -> Any:
    return Unknown(data["unknown"]) if "unknown" in data else data["answer"]


class Place(NamedTuple):
    """Where a user's shell finds a program (nowhere: ""), and the PATH that it looks along."""

    program: str
    path: str


def _place(found: Mapping[str, str] | Unknown, q: Question) -> Place | Unknown:
    return found if isinstance(found, Unknown) else Place(found.get(q.command[0], ""), found["PATH"])


def _no_program(host: Host, q: Question, place: Place | Unknown) -> str:
    """Why there is no program, in words; empty where there is one. The name may be there, and not be a program."""
    if isinstance(place, Unknown):
        return ""
    name, program = q.command[0], place.program
    if program and not program.startswith("/"):
        return ""  # an alias or a function
    beside = [name] if "/" in name else [f"{folder}/{name}" for folder in place.path.split(":") if folder[:1] == "/"]
    for path in [program] if program else beside:
        info = host.info(path)
        if info is not None and info.kind != "file":
            return f"{path} is a {info.kind}"
        if info is not None and not info.mode & 0o111:
            return f"{path} is not executable"
        if info is not None and not program:
            return f"{path} is out of reach of {q.user}"
    if program:
        return ""  # where only that user sees it (a mount of theirs), the shell is believed
    return f"{name} is not there" if "/" in name else f"{name} is not on the PATH of {q.user}"


def _found(host: Host, user: str, questions: Sequence[Question]) -> dict[str, str]:
    """Where a user's shell finds each program, and its PATH under the name PATH."""
    # always the known ones too: what was recorded without a profile then answers those that ask for some of them
    programs = sorted({command.split()[0] for command, _ in KNOWN.values()} | {q.command[0] for q in questions})
    if user == SUDO:
        path = _secure_path(host)
        command = ["env", "-i", f"PATH={path}", "/bin/sh", "-c", _SAY, "sh", *programs]
    else:
        who = _user(host, user)
        path = _first_path(host, who)
        known = who.shell.rpartition("/")[2] in ("bash", "sh", "dash", "ksh", "zsh")
        shell = who.shell if known else "/bin/sh"
        command = [*_as(who), "env", "-i", *_environment(who, path), shell, "-l", "-c", _SAY, "sh", *programs]
    try:
        said = host.run(*command, timeout=LOGIN_S)
    except HostError as e:
        if str(e).startswith("setpriv: ") and "Operation not permitted" in str(e):
            raise HostError(f"what {user} finds: needs root") from e
        raise HostError(f"the login of {user}{str(e)[str(e).find(':') :]}") from e
    _, mark, answer = said.rpartition(f"\n{_MARK}")
    if not mark:
        raise HostError(f"the login shell of {user} did not say its PATH: {said[:200]!r}")
    path, *where = answer.split("\n")
    found = {name: program for name, tab, program in (line.partition("\t") for line in where) if tab}
    if missing := [name for name in programs if name not in found]:
        raise HostError(f"the login shell of {user} broke off before it told of {missing[0]}")
    return {"PATH": path, **found}


def _version(host: Host, q: Question, place: Place) -> str:
    """What the tool says its version is. HostError where it says none."""
    program = place.program
    if not program.startswith("/"):
        raise HostError(f"{program} is an alias or a function of the shell of {q.user}, and no program")
    who = _user(host, ROOT if q.user == SUDO else q.user)
    if not who.uid and (others := host.untrusted(host.resolve(program))):
        raise HostError(f"{program}: {others}; it is not run as root")
    run = ["/bin/sh", "-c", 'exec "$0" "$@" 2>&1', program, *q.command[1:]]
    try:
        said = host.run(*_as(who), "env", "-i", *_environment(who, place.path), *run, timeout=RUN_S)
    except HostError as e:  # of what it was run by
        raise HostError(f"{program}{str(e)[str(e).find(':') :]}") from e
    try:
        match = re.search(q.pattern, said, re.M)
    except re.error as e:
        raise HostError(f"the profile's pattern {q.pattern!r} is no regular expression: {e}") from e
    version = "" if match is None else (match[1] if match.re.groups else match[0]) or ""
    if not re.search("[0-9]", version):
        raise HostError(f"{program}: no version in its answer to `{' '.join(q.command)}`: {said.strip()[:120]!r}")
    return re.sub(_REPACKED, "", _plain(version))


def _environment(who: User, path: str) -> list[str]:
    """Of a login; and go does not fetch another release of itself."""
    mine = {"PATH": path, "HOME": who.home, "USER": who.name, "LOGNAME": who.name, "SHELL": who.shell}
    return [f"{name}={value}" for name, value in {**mine, "LC_ALL": "C.UTF-8", "GOTOOLCHAIN": "local"}.items()]


def _as(who: User) -> list[str]:
    """Also root: what another user sees says nothing of root, so it must fail for them."""
    groups = ["--init-groups", "--inh-caps=-all"] if who.uid else ["--keep-groups"]
    return ["setpriv", f"--reuid={who.uid}", f"--regid={who.gid}", *groups]


def _user(host: Host, name: str) -> User:
    try:
        entries = host.run("getent", "passwd", name)
    except CommandFailed as e:
        if e.status != 2:  # getent(1): the name is not known
            raise
        entries = ""
    for line in entries.splitlines():
        fields = line.split(":")
        if len(fields) >= 7 and fields[0] == name:
            return User(name, int(fields[2]), int(fields[3]), fields[5] or "/", fields[6] or "/bin/sh")
    raise HostError(f"there is no user {name}")


def _first_path(host: Host, who: User) -> str:
    """The PATH that login(1) starts with: ENV_PATH or ENV_SUPATH of login.defs(5), then pam_env(8)'s environment."""
    setting = "ENV_PATH" if who.uid else "ENV_SUPATH"
    defs = re.search(rf"^{setting}\s+(?:PATH=)?(\S+)", host.read("/etc/login.defs") or "", re.M)
    env = re.search(r"^\s*(?:export\s+)?PATH=[\"']?([^\"'\n]+)", host.read("/etc/environment") or "", re.M)
    usual = "/usr/local/bin:/usr/bin:/bin"
    return (env or defs or [None, usual if who.uid else f"/usr/local/sbin:/usr/sbin:/sbin:{usual}"])[1] or usual


def _secure_path(host: Host) -> str:
    """What sudo(8) takes for PATH. HostError where sudoers sets none: then it is that of whoever calls it."""
    if not host.exists("/etc/sudoers"):
        raise HostError("there is no /etc/sudoers: sudo is not installed")
    files = [path for path in host.glob("/etc/sudoers.d/*") if not re.search(r"[.~]", path.rpartition("/")[2])]
    text = "\n".join(host.read(path) or "" for path in ("/etc/sudoers", *files))
    found = re.findall(r"^\s*Defaults\s(?:.*[\s,])?secure_path\s*=\s*\"?([^\"\n,]+)", text, re.M)
    if not found:
        raise HostError("no secure_path in /etc/sudoers: `sudo TOOL` finds what its caller finds")
    return str(found[-1]).strip()


# -- deciding -------------------------------------------------------------------------------------


def decide(facts: Facts, want: Section) -> Goals:
    goals: dict[str, Desired] = {}
    for tool, wanted in want.items():
        version = wanted["version"] if isinstance(wanted, dict) else wanted
        questions = list(_questions(tool, wanted))
        for question in questions:
            goals |= _goals(facts, question, questions, version)
        found = [_text(facts, q.key) for q in questions]
        if len(found) > 1 and all(found):
            told = found[0] if len(set(found)) == 1 else ", ".join(found)
            means, fix = _told(facts, questions), f"Leave one {tool}, or put the same in the place of all."
            looked = Desired(found[0], live=False, persist=False, counted=told, means=f"{means}.", fix=fix)
            goals[f"{tool}/same"] = looked
    return goals


def suggest(facts: Facts) -> Suggestion:
    """The known tools that root finds, in these versions or later."""
    tools = {tool: fact.current for tool, fact in facts.items() if tool in KNOWN}
    section = {tool: f">={version}" for tool, version in tools.items() if isinstance(version, str)}
    return Suggestion(section or None, {"": "What root finds; keep what the cluster needs."} if section else {})


def _goals(facts: Facts, q: Question, questions: Sequence[Question], version: str) -> Goals:
    looked = Desired(version, live=False, persist=False)
    if q.key not in facts:
        return {q.key: looked._replace(counted=Unknown("was not looked for"))}
    found, path = facts[q.key].current, _text(facts, f"{q.key}/path")
    if found is None:
        others = _told(facts, [other for other in questions if other != q])
        means = f"{path}{f'; {others}' if others else ''}."
        looked = looked._replace(means=means, fix=f"Install {q.tool}, or put its directory on the PATH of {q.user}.")
    else:
        looked = looked._replace(means=f"{path} says {found}.", fix=f"Install {q.tool} {version}.")
    if version == ANY:
        return {q.key: looked._replace(value=found if isinstance(found, str) else ANY)}
    low, _, below = (word.strip() for word in version.partition("<"))
    if not low.startswith(">="):
        return {q.key: looked._replace(value=_plain(low))}
    least = _plain(low.removeprefix(">=").strip())
    if not isinstance(found, str):
        return {q.key: looked._replace(value=least, op=">=")}
    goals = {q.key: looked._replace(value=_least(least, found), op=">=")}
    if below:
        fits = versions.compare(versions.release(found), _plain(below)) < 0
        goals[f"{q.key}/below"] = looked._replace(value=f"< {below}", counted=f"< {below}" if fits else found)
    return goals


def _least(wanted: str, found: str) -> str:
    """At least 1.4 is at least 1.4.0 where that is what is not released yet: 1.4.0-rc.1 is not enough."""
    release = versions.release(found)
    if release == found or not re.fullmatch(r"[0-9.]+", wanted):
        return wanted
    return wanted + ".0" * (release.count(".") - wanted.count("."))


def _told(facts: Facts, questions: Iterable[Question]) -> str:
    """Who finds what, and where."""
    return ", ".join(
        f"{q.user} finds {_text(facts, f'{q.key}/path')} ({version})"
        for q in questions
        if (version := _text(facts, q.key))
    )


def _text(facts: Facts, key: str) -> str:
    reading = facts[key].current if key in facts else None
    return reading if isinstance(reading, str) else ""


def _plain(version: str) -> str:
    return version.removeprefix("v").removeprefix("go")
