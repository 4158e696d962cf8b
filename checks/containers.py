r"""Containers: the engine answers, has room, and nothing is left behind by others: unused images, logins to registries.

    containers: docker                    # or podman: it answers
    containers:
      engine: docker                      # what follows is asked of it
      version: ">=26.1.3"                 # of the server; or exactly 26.1.3
      data_root: {free: 50GB, inodes: 10%}
      unused_images: {limit: 20GB, keep: 2d, except: ["himeno:*"]}
      logins: {users: [pbs], allow: [mirror.example.com]}
    containers: {engine: podman, unused_images: 20GB, logins: none}

The engine is asked through its own command, a few seconds for each question. A daemon that nobody answers for, or that
does not answer in time, is a failure; one that could not be asked (no docker command, no right to) is unknown. Next
boot is whether a unit of Docker is enabled; podman needs none. `data_root` is the file system that the data really is
on, and that of the images where they are elsewhere (containerd).

unused_images: the space that images take which no container uses, be it one that does not run. Layers that several
images share are counted once, and only if no used image needs them. apply removes the oldest, down to the limit and no
further, and never with force; nothing that came or was used within `keep` (a day if it is not said), and nothing that
has a name in `except`. What a container has taken since is skipped. The age of an image is the time since it came here
or was tagged, or since a container was last made of it: no engine keeps that, but the overlay driver leaves a trace, to
the day, in access times (none where the file system is mounted noatime). Pulling brings an image back, revert does not.
Build caches, images of containerd for Kubernetes and those of users' own podman are not looked at. Where Docker keeps
images in containerd (its default from 29 on) nothing tells which layers they share, so each counts whole: what is
within the limit then surely is. `hostprep install prune` has it done weekly.

logins: registries that root, and the users that are named, have left a login to: in .docker/config.json, the
auth.json files of podman, and with credential helpers (asked which registries they know; never for a secret). `none`
is the same with no other users. Those in /run are gone at the next boot. apply takes them away, unless jobs,
containers or VMs run, which may be using them. The secret is kept nowhere, so revert does not bring it back: log in
again. A helper that cannot list what it knows counts as a login to what the file says it is for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from types import ModuleType
from typing import Any

from hostprep.engines import docker, logins, podman
from hostprep.engines.images import Image, Store, unused
from hostprep.errors import ChangeFailed, CommandFailed, HostError
from hostprep.host import Host, attempt
from hostprep.model import (
    Change,
    Desired,
    Facet,
    Fact,
    Facts,
    Goals,
    Reading,
    Section,
    Suggestion,
    Unknown,
    from_json,
    to_json,
)
from hostprep.quantities import BYTES_PATTERN, DURATION_PATTERN, parse_bytes, parse_duration, show_bytes

NAME = "containers"
MOVING = ("*/free", "*/inodes", "*/unused", "*/unused-images", "*/image/*", "*/images")

_BYTES = {
    "description": "a size such as 20GB or 20GiB",
    "anyOf": [{"type": "string", "pattern": BYTES_PATTERN}, {"type": "integer", "minimum": 0}],
}
_ENGINE = {"description": "docker or podman", "type": "string", "enum": ["docker", "podman"]}
_USER = r"^[A-Za-z_][A-Za-z0-9_.@-]*\$?$(?!\n)"
SCHEMA = {
    "description": "A container engine that answers and has room; images and logins that were left behind.",
    "anyOf": [
        _ENGINE,
        {
            "type": "object",
            "properties": {
                "engine": _ENGINE,
                "version": {
                    "description": 'a version (26.1.3), or at least one (">=26.1.3")',
                    "type": "string",
                    "pattern": r"^(>= ?)?[0-9]+(\.[0-9]+)+([-~][A-Za-z0-9.~-]+)?$(?!\n)",
                },
                "data_root": {
                    "description": "the room for images and containers: 50GB, or {free: 50GB, inodes: 10%}",
                    "anyOf": [
                        *_BYTES["anyOf"],
                        {
                            "type": "object",
                            "properties": {
                                "free": _BYTES,
                                "inodes": {
                                    "description": "a percentage of all inodes that must be free, such as 10%",
                                    "type": "string",
                                    "pattern": r"^([0-9]|[1-9][0-9]|100)%$(?!\n)",
                                },
                            },
                            "minProperties": 1,
                            "additionalProperties": False,
                        },
                    ],
                },
                "unused_images": {
                    "description": "what images without containers may take: 20GB, or {limit: 20GB, keep: 2d}",
                    "anyOf": [
                        *_BYTES["anyOf"],
                        {
                            "type": "object",
                            "properties": {
                                "limit": _BYTES,
                                "keep": {
                                    "description": "how long an image stays that came or was used: 12h, 2d",
                                    "type": "string",
                                    "pattern": DURATION_PATTERN,
                                },
                                "except": {
                                    "description": "names of images that always stay, or globs: himeno:*",
                                    "type": "array",
                                    "items": {"type": "string", "minLength": 1},
                                },
                            },
                            "required": ["limit"],
                            "additionalProperties": False,
                        },
                    ],
                },
                "logins": {
                    "description": "none, or {users: [names beside root], allow: [registries that may stay]}",
                    "anyOf": [
                        {"const": "none"},
                        {
                            "type": "object",
                            "properties": {
                                "users": {
                                    "description": "names of users, beside root",
                                    "type": "array",
                                    "items": {"type": "string", "pattern": _USER},
                                },
                                "allow": {
                                    "description": "registries, such as mirror.example.com; or globs",
                                    "type": "array",
                                    "items": {"type": "string", "minLength": 1},
                                },
                            },
                            "minProperties": 1,
                            "additionalProperties": False,
                        },
                    ],
                },
            },
            "minProperties": 1,
            "additionalProperties": False,
        },
    ],
}

ENGINES: Mapping[str, ModuleType] = {"docker": docker, "podman": podman}
ANSWERS = "answers"
LOOK_S = 25.0  # of the 30 that a check has
REMOVE_S = 300.0  # for an image: of tens of GB in a hundred thousand files
KEEP = "1d"
_USERS = "logins/"
_UNITS = ("docker.service", "docker.socket", "snap.docker.dockerd.service")
_LIB = ("/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system")
_FORGOTTEN = "a login that was taken away is kept nowhere; log in again where it is needed"


# -- looking --------------------------------------------------------------------------------------


def asked(want: Section, keys: Iterable[str]) -> Sequence[str]:
    """The engine and the users (`logins/NAME`) that a profile names, and those of facts; none: what there is."""
    section = _section(want)
    named = [section["engine"]] if "engine" in section else []
    if "logins" in section:
        named += [f"{_USERS}root", *(f"{_USERS}{name}" for name in _logins(section).get("users", ()))]
    named += [key if key.startswith(_USERS) else key.partition("/")[0] for key in keys]
    return list(dict.fromkeys(named))


def _section(want: Section) -> dict[str, Any]:
    """A section with what it leaves out: an engine is asked for by name, or by what is wanted of one."""
    section = {"engine": want} if isinstance(want, str) else dict(want or {})
    if section.keys() & {"version", "data_root", "unused_images"}:
        section.setdefault("engine", "docker")
    return section


def _logins(section: Mapping[str, Any]) -> dict[str, Any]:
    return section["logins"] if isinstance(section["logins"], dict) else {}


def inspect(host: Host, names: Sequence[str] = ()) -> Facts:
    engines = [name for name in names if name in ENGINES]
    users = [name.removeprefix(_USERS) for name in names if name.startswith(_USERS)]
    if not names:  # asking podman makes its storage where there is none
        engines = ["docker", *(["podman"] if host.exists(podman.STORAGE) else [])]
        users = ["root"]
    works = [(name, _work(_engine_facts, host, name)) for name in engines]
    works += [(f"{_USERS}{name}", _work(_login_facts, host, name)) for name in users]
    facts: dict[str, Fact] = {}
    for name, answer in host.together(works, LOOK_S).items():
        if isinstance(answer, str):
            facts |= _unread(name, answer)
        else:
            facts |= {key: Fact(*map(from_json, sides)) for key, sides in json.loads(answer).items()}
    return facts


def _work(look: Callable[[Host, str], dict[str, Fact]], host: Host, name: str) -> Callable[[], bytes]:
    def work() -> bytes:
        return json.dumps({key: [to_json(side) for side in fact] for key, fact in look(host, name).items()}).encode()

    return work


def _unread(name: str, reason: str) -> dict[str, Fact]:
    more = ("", "/version", "/root", "/free", "/inodes", "/unused", "/unused-images") if name in ENGINES else ("",)
    return {f"{name}{what}": Fact.fixed(Unknown(reason)) for what in more}


def _engine_facts(host: Host, name: str) -> dict[str, Fact]:
    engine = ENGINES[name]
    try:
        store: Store = engine.store(host)
        used = engine.users(host)  # the question that a daemon hangs at
    except HostError as e:
        return _no_answer(host, engine, name, e)
    images: list[Image] | Unknown = attempt(engine.images, host, store, used)
    free, inodes = attempt(_room, host, store), attempt(_inodes, host, store)
    facts = {
        name: Fact(ANSWERS, attempt(_next_boot, host) if name == "docker" else ANSWERS),
        f"{name}/version": Fact.fixed(store.version),
        f"{name}/root": Fact.fixed(store.root),
        f"{name}/driver": Fact.fixed(store.driver),
        f"{name}/free": Fact.fixed(free),
        f"{name}/inodes": Fact.fixed(inodes),
        f"{name}/images": Fact.fixed(images if isinstance(images, Unknown) else len(images)),
    }
    listed = images if isinstance(images, Unknown) else attempt(_unused, host, engine, store, images)
    lines = listed if isinstance(listed, Unknown) else tuple(_line(*each) for each in listed)
    taken: Reading = listed if isinstance(listed, Unknown) else sum(frees for _, frees, _ in listed)
    facts[f"{name}/unused"] = Fact.fixed(taken)
    facts[f"{name}/unused-images"] = Fact.fixed(lines)
    if not isinstance(images, Unknown):
        facts |= {f"{name}/image/{i.short}": Fact.fixed(i.names) for i in images if not i.users}
    else:
        facts["*"] = Fact.fixed(images)  # whether an image is there cannot be told
    return facts


def _no_answer(host: Host, engine: ModuleType, name: str, e: HostError) -> dict[str, Fact]:
    facts = _unread(name, f"{name} does not answer" if engine.down(e) else str(e))
    if "not installed" in str(e) and not isinstance(e, CommandFailed):
        there = attempt(engine.installed, host)
        why = Unknown(f"{name} cannot be asked: {e}") if there is True else there
        if not isinstance(why, Unknown):
            return {name: Fact.fixed(None)}
        facts = _unread(name, why.reason)
    elif engine.down(e):
        facts[name] = Fact.fixed("does not answer")
        facts[f"{name}/why"] = Fact.fixed(str(e).removeprefix(f"{name}: "))
        root = attempt(engine.configured_root, host)  # a full disk may be why
        if isinstance(root, str):
            there = Store("", root, root, "")
            rooms = {"root": root, "free": attempt(_room, host, there), "inodes": attempt(_inodes, host, there)}
            facts |= {f"{name}/{what}": Fact.fixed(reading) for what, reading in rooms.items()}
    return {**facts, "*": facts[f"{name}/unused"]}


def _next_boot(host: Host) -> str:
    """Is a unit of Docker enabled, or an init script? It says no more than that: `services` does."""
    units = [unit for unit in _UNITS if host.link(f"{_LIB[0]}/{unit}") != "/dev/null"]
    links = [path for folder in _LIB for unit in units for path in host.glob(f"{folder}/*.wants/{unit}")]
    return ANSWERS if links or host.glob("/etc/rc[2-5].d/S??docker") else "no unit of it is enabled"


def _room(host: Host, store: Store) -> int:
    """Of the file systems that the data and the images are on, the fuller one counts."""
    return min(host.space(path).available for path in dict.fromkeys((store.root, store.images_root)))


def _inodes(host: Host, store: Store) -> int:
    """Percent free, rounded down. btrfs and others make inodes as they go, and count none."""
    spaces = [host.space(path) for path in dict.fromkeys((store.root, store.images_root))]
    if any(space.inodes < 0 for space in spaces):
        raise HostError(f"{store.root}: its inodes were not recorded")
    return min(100 * space.inodes_free // space.inodes if space.inodes else 100 for space in spaces)


def _unused(host: Host, engine: ModuleType, store: Store, images: Sequence[Image]) -> list[tuple[Image, int, int]]:
    """Images that nobody uses, oldest first: what the removal of each frees then, and its age in hours."""
    if all(image.users for image in images):
        return []
    layers = dict.fromkeys(layer for image in images for layer in image.layers)
    now = time.time()
    return [
        (image, frees, max(int(now - image.since) // 3600, 0))
        for image, frees in unused(images, engine.sizes(host, store, list(layers)))
    ]


def _line(image: Image, frees: int, hours: int) -> str:
    return f"{image.short} {frees} {hours}h {image.names[0]}"


def _login_facts(host: Host, name: str) -> dict[str, Fact]:
    """By side: what is kept in /run does not outlive a boot."""
    found = attempt(lambda: logins.logins(host, logins.user(host, name)))
    if isinstance(found, Unknown):
        return {f"{_USERS}{name}": Fact.fixed(found)}
    later = [login for login in found if not login.path.startswith("/run/")]
    return {f"{_USERS}{name}": Fact(tuple(map(str, found)), tuple(map(str, later)))}


# -- deciding -------------------------------------------------------------------------------------


def decide(facts: Facts, want: Section) -> Goals:
    section = _section(want)
    goals: dict[str, Desired] = {}
    if "engine" in section:
        goals |= _engine_goals(facts, section, section["engine"])
    if "logins" in section:
        allow = _logins(section).get("allow", ())
        for user in dict.fromkeys(("root", *_logins(section).get("users", ()))):
            goals[f"{_USERS}{user}"] = _no_logins(facts, user, allow)
    return {
        key: goal if key in facts else goal._replace(counted=Unknown(_not_seen(facts, key)))
        for key, goal in goals.items()
    }


def _not_seen(facts: Facts, key: str) -> str:
    """Why there is no fact of a key."""
    engine = key.partition("/")[0]
    return f"{engine} is not installed" if facts.get(engine) == Fact.fixed(None) else "was not looked at"


def _engine_goals(facts: Facts, section: Mapping[str, Any], name: str) -> dict[str, Desired]:
    goals = {name: _seen(ANSWERS, _state(name, facts), _engine_fix(name, facts.get(name)))}
    if "version" in section:
        version, op = section["version"].removeprefix(">=").strip(), "=="
        if section["version"].startswith(">="):
            op = ">="
        goals[f"{name}/version"] = _seen(version, "", f"Install {name} {version}{' or later' * (op == '>=')}.", op)
    if "data_root" in section:
        goals |= _room_goals(facts, section["data_root"], name)
    if "unused_images" in section:
        goals |= _image_goals(facts, section["unused_images"], name)
    return goals


def _seen(value: str | int, means: str, fix: str, op: str = "==", unit: str = "") -> Desired:
    """Something that hostprep does not change."""
    return Desired(value, op, unit=unit, live=False, persist=False, means=means, fix=fix)


def _state(name: str, facts: Facts) -> str:
    fact, why = facts.get(name), facts.get(f"{name}/why")
    if fact is None or isinstance(fact.current, Unknown):
        return ""
    said = f"{name} {fact.current}{f': {why.current}' if why else ''}" if fact.current else f"{name} is not installed"
    return said if said.endswith((".", "?")) else f"{said}."


def _engine_fix(name: str, fact: Fact | None) -> str:
    if fact is not None and fact.current is None:
        return f"Install {name}."
    if name == "podman":
        return "podman info says what is wrong."
    return "systemctl enable --now docker; if it hangs: journalctl -u docker, then systemctl restart docker."


def _room_goals(facts: Facts, want: Any, name: str) -> dict[str, Desired]:
    wanted = want if isinstance(want, dict) else {"free": want}
    root = facts[f"{name}/root"].current if f"{name}/root" in facts else ""
    goals = {}
    fix = "Make room: hostprep explain containers (unused_images), docker system df; or move data-root."
    if "free" in wanted:
        key = f"{name}/free"
        free = facts[key].current if key in facts else None
        limit = parse_bytes(wanted["free"])
        means = f"{root} has {show_bytes(free, limit)} left." if isinstance(free, int) else ""
        goals[key] = _seen(limit, means, fix.replace("docker system", f"{name} system"), ">=", "bytes")
    if "inodes" in wanted:
        key = f"{name}/inodes"
        percent = int(wanted["inodes"].rstrip("%"))
        means = f"Of the inodes below {root} {facts[key].current}% are free." if key in facts else ""
        goals[key] = _seen(percent, means, f"Remove what has many small files: {name} system df; df -i.", ">=")
    return goals


def _image_goals(facts: Facts, want: Any, name: str) -> dict[str, Desired]:
    """The limit, and each image that has to go for it."""
    wanted = want if isinstance(want, dict) else {"limit": want}
    limit, keep = parse_bytes(wanted["limit"]), wanted.get("keep", KEEP)
    taken = facts[f"{name}/unused"].current if f"{name}/unused" in facts else None
    lines = facts[f"{name}/unused-images"].current if f"{name}/unused-images" in facts else ()
    if not isinstance(taken, int) or not isinstance(lines, tuple):
        return {f"{name}/unused": _seen(limit, "", "", "<=", "bytes")}
    going: dict[str, Desired] = {}
    left, stay = taken, wanted.get("except", ())
    for line in lines:
        short, frees, hours, _ = line.split(" ", 3)
        if left <= limit or int(hours[:-1]) * 3600 < parse_duration(keep):
            break
        if any(fnmatchcase(each, glob) for each in _names(facts, f"{name}/image/{short}") for glob in stay):
            continue
        left -= int(frees)
        since, room = _age(int(hours[:-1])), show_bytes(int(frees), limit)
        going[f"{name}/image/{short}"] = Desired(
            None,
            live=False,
            final=f"{name} pull brings it back, where its registry still has it",
            means=f"It came or was used {since} ago; its removal frees {room}.",
        )
    means = f"{len(lines)} images that no container uses take {show_bytes(taken, limit)}."
    fix = f"hostprep apply --only {NAME}"
    if left > limit:
        fix = f"{fix}, which leaves {show_bytes(left, limit)}" if going else f"Or {name} image rm, by hand"
        excepted = ", or is excepted" if stay else ""
        fix = f"The rest came or was used less than {keep} ago (unused_images: keep){excepted}. {fix}."
    return {f"{name}/unused": _seen(limit, means, fix, "<=", "bytes"), **going}


def _names(facts: Facts, key: str) -> tuple[str, ...]:
    names = facts[key].current if key in facts else ()
    return names if isinstance(names, tuple) else ()


def _age(hours: int) -> str:
    if hours >= 48:
        return f"{hours // 24} days"
    return f"{hours} hours" if hours > 1 else "an hour" if hours else "less than an hour"


def _no_logins(facts: Facts, user: str, allow: Iterable[str]) -> Desired:
    fact = facts.get(f"{_USERS}{user}")
    found = fact.current if fact is not None and isinstance(fact.current, tuple) else ()
    mine = tuple(line for line in found if _allowed(logins.parse(line).registry, allow))
    over = [line for line in found if line not in mine]
    means = f"Whoever works as {user} next inherits what these logins may do: {', '.join(over)}."
    return Desired(mine, persist=False, final=_FORGOTTEN, means=means)


def _allowed(registry: str, allow: Iterable[str]) -> bool:
    bare = registry.removeprefix("https://").removeprefix("http://").rstrip("/")
    return any(fnmatchcase(bare, glob) or fnmatchcase(bare.partition("/")[0], glob) for glob in allow)


def suggest(facts: Facts) -> Suggestion:
    name = next((name for name in ENGINES if facts.get(name, Fact.fixed(None)).current == ANSWERS), "")
    if not name or facts[name].next_boot != ANSWERS:
        return Suggestion(None)
    section: dict[str, Any] = {"engine": name, "version": f">={facts[f'{name}/version'].current}"}
    if isinstance(taken := facts[f"{name}/unused"].current, int):
        section["unused_images"] = "20GB" if taken <= parse_bytes("20GB") else show_bytes(taken + 1)
    if all(facts.get(f"{_USERS}root", Fact.fixed(None)).side(facet) == () for facet in Facet):
        section["logins"] = "none"
    notes = {"unused_images": "apply removes what is above it", "logins": "name users beside root: {users: [pbs]}"}
    return Suggestion(section, {key: note for key, note in notes.items() if key in section})


# -- changing -------------------------------------------------------------------------------------


def apply(host: Host, changes: Sequence[Change]) -> None:
    """Logins are of the running system, where jobs may be using them; images that nobody uses disturb nobody."""
    stores: dict[str, Store] = {}
    failed = []
    for change in changes:
        if change.key.startswith(_USERS):
            failed.append(_forget(host, change))
            continue
        name, *_ = change.key.split("/")
        if name not in stores and not host.rehearsing:
            stores[name] = ENGINES[name].store(host)
        failed.append(_remove(host, change, stores.get(name)))
    if any(failed):
        raise ChangeFailed("; ".join(filter(None, failed)))


def _forget(host: Host, change: Change) -> str:
    before, after = (side if isinstance(side, tuple) else () for side in (change.before, change.after))
    if set(after) - set(before):
        raise ChangeFailed(f"{change.key}: {_FORGOTTEN}")
    gone = [logins.parse(line) for line in before if line not in after]
    name = change.key.removeprefix(_USERS)
    somebody = logins.User(name, 0 if name == "root" else 1, 1, f"~{name}")
    try:
        logins.forget(host, somebody if host.rehearsing else logins.user(host, name), gone)
    except HostError as e:
        return str(e)
    return ""


def _remove(host: Host, change: Change, store: Store | None) -> str:
    """Remove one image, if still nobody uses it and its names are those that were seen; else it stays."""
    name, _, short = change.key.split("/")
    names = change.before if isinstance(change.before, tuple) else ()
    if change.after is not None or not names:
        raise ChangeFailed(f"{change.key}: nothing but a pull brings a removed image back")
    if store is not None:
        engine = ENGINES[name]
        now = next((i for i in engine.images(host, store, engine.users(host)) if i.short == short), None)
        if now is None or now.users or now.names != names:
            what = "has gone" if now is None else f"is used by {', '.join(now.users)}" if now.users else "was renamed"
            host.progress(f"{name}: image {short} {what} since: left as it is")
            return ""
    try:
        host.run(*ENGINES[name].COMMAND, "image", "rm", *names, timeout=REMOVE_S)
    except CommandFailed as e:
        if not any(words in e.output for words in ("is using", "in use", "being used")):
            return str(e)
        host.progress(f"{name}: image {short} is used since: left as it is")
    except HostError as e:
        return str(e)
    return ""
