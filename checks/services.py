"""Services: systemd units that run and will run at the next boot, that do not, or that are masked; failed units.

    services:
      docker: active                  # runs now, and the next boot starts it
      chrony: active                  # without an ending it is a .service
      fstrim.timer: active
      avahi-daemon: inactive          # does not run, and the next boot does not start it
      apt-daily.timer: masked         # nor can anything else start it
      failed: none                    # no unit of this host has failed

Now is the unit's ActiveState. What systemd starts on demand counts as active while its socket, timer or path is. A unit
that fails and is restarted again and again is not active. A service that does its work and ends (oneshot without
RemainAfterExit) is never active: ask for its timer.

Next boot: active is what the default target will pull in, over any number of units, from what is enabled, from vendors'
own links and from generators. Enabled for this boot only (`systemctl enable --runtime`), or below a target that the
default one does not pull in, is not. Links of which systemd has not been told yet (daemon-reload) make it unknown.

apply starts and enables, stops and disables, masks; stopping needs --allow-disruption services. A masked unit is not
unmasked, nor is an init script enabled: somebody else decided that. revert takes back every link that came or went,
also those of units that are enabled along with one (Also=). Most sites want failed units as a hint only:
`advisory: [services/failed]`. What itself waits for hostprep-ready.target must not be asked for here: each would wait
for the other. hostprep's own units are not looked at: a host that is not ready has one that failed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from hostprep.errors import ChangeFailed, CommandFailed, HostError
from hostprep.host import ABSENT, Host, attempt
from hostprep.model import Change, Desired, Facet, Fact, Facts, Goals, Section, Suggestion, Unknown

NAME = "services"
MOVING = ("*/state",)

_UNIT = r"^(?!.*@(?:\.|$))[A-Za-z0-9:_.\\@-]{1,250}$(?!\n)"  # a template is no unit
SCHEMA = {
    "description": "systemd units by name, and what each is to be.",
    "type": "object",
    "properties": {"failed": {"const": "none", "description": "none: no unit has failed"}},
    "propertyNames": {"description": "a unit such as docker, chrony.service or fstrim.timer", "pattern": _UNIT},
    "additionalProperties": {"enum": ["active", "inactive", "masked"], "description": "what a unit is to be"},
    "minProperties": 1,
}

ACTIVE, INACTIVE, MASKED, FAILED = "active", "inactive", "masked", "failed"
_ETC = "/etc/systemd/system"
_TYPES = ("service", "socket", "timer", "path", "target", "mount", "automount", "swap", "slice", "scope", "device")
_PULLED_BY = ("WantedBy", "RequiredBy", "UpheldBy", "BoundBy")
_PROPERTIES = (
    "Id",
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "NRestarts",
    "ActiveEnterTimestampMonotonic",
    "ConditionResult",
    "ConditionTimestampMonotonic",
    "Type",
    "RemainAfterExit",
    "FragmentPath",
    "Requires",
    "TriggeredBy",
    *_PULLED_BY,
)
_UNIT_PATH = (_ETC, "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_WELL_KNOWN = (
    *(
        "docker",
        "docker.socket",
        "containerd",
        "podman.socket",
        "kubelet",
        "pbs",
        "slurmd",
        "munge",
        "chrony",
        "chronyd",
    ),
    *("systemd-timesyncd", "ntpsec", "openibd", "nvidia-persistenced", "nvidia-fabricmanager", "ssh", "sshd"),
)
_READY = "hostprep-ready.target"
_WAITING = ("pbs", "slurmd", "kubelet")  # what usually waits for the host to be ready
_IF_THERE = "?"
_FLAPS_S = 30  # seconds: restarted less than that ago it may fail again
_START_S = 90.0  # seconds for a unit to start or stop: systemd's own default
_DEPTH = 32  # how far up it is looked for the default target
_FOR_THIS_BOOT = ("enabled-runtime", "linked-runtime", "masked-runtime", "transient")


class Unit(NamedTuple):
    """A unit as `systemctl show` tells it."""

    id: str
    load: str
    state: str
    sub: str
    file: str  # UnitFileState
    restarts: int
    since: int  # microseconds after boot, when it last became active
    skipped: bool  # its conditions were not met
    ends: bool  # it does its work and is gone
    path: str  # of its file
    gated: bool  # it waits for this host to be ready
    triggers: tuple[str, ...]  # sockets, timers, paths that start it
    pulled_by: tuple[str, ...]


# -- looking --------------------------------------------------------------------------------------


def unit_name(word: str) -> str:
    """`docker` is docker.service, as systemctl has it."""
    return word if word.rpartition(".")[2] in _TYPES and "." in word else f"{word}.service"


def asked(want: Section, keys: Iterable[str]) -> Sequence[str]:
    """The units that a profile names, and those of facts; without a profile, well-known ones if they are there."""
    if want is None and not (keys := list(keys)):
        return [f"{_IF_THERE}{unit_name(word)}" for word in _WELL_KNOWN]
    named = {unit_name(word) for word in want or () if word != FAILED}
    return sorted(named | {key.partition("/")[0] for key in keys if key != FAILED})


def inspect(host: Host, names: Sequence[str] = ()) -> Facts:
    facts = {FAILED: Fact.fixed(attempt(_failed, host))}
    if not names:
        return facts
    optional = {name.removeprefix(_IF_THERE) for name in names if name.startswith(_IF_THERE)}
    names = [name.removeprefix(_IF_THERE) for name in names]
    try:
        _must_run(host)
        known = _show(host, names)
        goal = host.run("systemctl", "get-default").strip()
        uptime = float((host.read("/proc/uptime") or "0").split()[0])
    except (HostError, ValueError) as e:
        named = [name for name in names if name not in optional]
        return facts | {f"{name}{more}": Fact.fixed(Unknown(str(e))) for name in named for more in ("", "/masked")}
    for name, unit in list(known.items()):
        if name in optional and unit.load == "not-found":
            continue
        facts |= dict(_unit_facts(host, goal, known, name, unit, uptime))
    return facts


def _unit_facts(
    host: Host, goal: str, known: dict[str, Unit], name: str, unit: Unit, uptime: float
) -> Iterator[tuple[str, Fact]]:
    waiting = attempt(_waiting, host, known, unit)
    flaps = unit.restarts and uptime - unit.since / 1e6 < _FLAPS_S
    now: str | Unknown = ACTIVE if unit.state in (ACTIVE, "reloading") and not flaps else INACTIVE
    if unit.state == INACTIVE and unit.load != MASKED and waiting:
        now = waiting if isinstance(waiting, Unknown) else ACTIVE
    yield name, Fact(now, attempt(_next_boot, host, goal, known, unit))
    yield f"{name}/masked", Fact(unit.load == MASKED, unit.file == MASKED)
    yield f"{name}/load", Fact.fixed(unit.load)
    yield f"{name}/file", Fact.fixed(unit.file or "none")
    yield f"{name}/path", Fact.fixed(unit.path)
    yield f"{name}/gated", Fact.fixed(unit.gated)
    yield f"{name}/pulled-by", Fact.fixed(unit.pulled_by or tuple(_wanted_by(host, unit.id)))
    yield f"{name}/triggers", Fact.fixed(waiting)
    yield f"{name}/state", Fact.fixed(_state(unit, uptime))


def _state(unit: Unit, uptime: float) -> str:
    if unit.state == INACTIVE and (unit.skipped or unit.ends):
        return f"skipped: its conditions are not met ({unit.state})" if unit.skipped else "ended: it does its work once"
    if not unit.restarts:
        return f"{unit.state} ({unit.sub})"
    last = f", last {uptime - unit.since / 1e6:.0f} s ago" if unit.state == ACTIVE else ""
    return f"{unit.state} ({unit.sub}), restarted {unit.restarts} times{last}"


def _waiting(host: Host, known: dict[str, Unit], unit: Unit) -> tuple[str, ...]:
    """The sockets, timers and paths that are active and would start it."""
    _learn(host, known, unit.triggers)
    return tuple(name for name in unit.triggers if known[name].state == ACTIVE)


def _must_run(host: Host) -> None:
    """As sd_booted(3) tells it."""
    if not host.exists("/run/systemd/system"):
        raise HostError("systemd is not what runs this host (there is no /run/systemd/system)")


def _failed(host: Host) -> tuple[str, ...]:
    """The units that have failed, but for hostprep's own."""
    _must_run(host)
    listed = host.run("systemctl", "list-units", "--failed", "--plain", "--no-legend", "--no-pager", "--full")
    units = [line.split()[0] for line in listed.splitlines() if line.split()]
    return tuple(sorted(unit for unit in units if not unit.startswith("hostprep-")))


def _show(host: Host, names: Sequence[str]) -> dict[str, Unit]:
    """Units by the names that they were asked by: an alias answers with the unit that it stands for."""
    if not names:
        return {}
    said = host.run("systemctl", "show", "--no-pager", f"--property={','.join(_PROPERTIES)}", "--", *names)
    blocks = said.strip("\n").split("\n\n")
    if len(blocks) != len(names):
        raise HostError(f"systemctl show told of {len(blocks)} units, and was asked for {len(names)}")
    return {name: _unit(dict(_fields(block))) for name, block in zip(names, blocks, strict=True)}


def _fields(block: str) -> Iterator[tuple[str, str]]:
    for line in block.splitlines():
        name, _, value = line.partition("=")
        yield name, value


def _unit(fields: Mapping[str, str]) -> Unit:
    if missing := [name for name in ("Id", "LoadState", "ActiveState", "SubState") if not fields.get(name)]:
        raise HostError(f"systemctl show tells no {', '.join(missing)}")
    pulled_by = dict.fromkeys(other for name in _PULLED_BY for other in fields.get(name, "").split())
    return Unit(
        fields["Id"],
        fields["LoadState"],
        fields["ActiveState"],
        fields["SubState"],
        fields.get("UnitFileState", ""),
        _number(fields, "NRestarts"),
        _number(fields, "ActiveEnterTimestampMonotonic"),
        fields.get("ConditionResult") == "no" and _number(fields, "ConditionTimestampMonotonic") > 0,
        fields.get("Type") == "oneshot" and fields.get("RemainAfterExit") == "no",
        fields.get("FragmentPath", ""),
        _READY in fields.get("Requires", "").split(),
        tuple(fields.get("TriggeredBy", "").split()),
        tuple(pulled_by),
    )


def _number(fields: Mapping[str, str], name: str) -> int:
    text = fields.get(name, "")
    return int(text) if text.isdecimal() else 0


def _learn(host: Host, known: dict[str, Unit], names: Iterable[str]) -> None:
    if missing := sorted(set(names) - known.keys()):
        known |= _show(host, missing)


def _next_boot(host: Host, goal: str, known: dict[str, Unit], unit: Unit) -> str:
    """`active` or `inactive`. HostError where it cannot be told."""
    if unit.load == "not-found" or unit.file == MASKED:
        return INACTIVE
    if unit.file == "masked-runtime":
        raise HostError("it is masked until the next boot; what that brings is not told before")
    if unit.file in _FOR_THIS_BOOT:
        return INACTIVE
    on_disk = _reached(host, goal, known, unit._replace(pulled_by=tuple(_wanted_by(host, unit.id))))
    in_memory = _reached(host, goal, known, unit)
    links_gone = unit.file == "enabled" and not _links(host, unit.id)
    if (on_disk and not in_memory) or links_gone:
        raise HostError("links to it have come or gone since systemd last read them: systemctl daemon-reload")
    return ACTIVE if in_memory else INACTIVE


def _reached(host: Host, goal: str, known: dict[str, Unit], unit: Unit) -> bool:
    """Is the default target above it? Sockets, timers and paths start it too."""
    seen: set[str] = set()
    level = [unit]
    for _ in range(_DEPTH):
        if any(each.id == goal for each in level):
            return True
        sound = [each for each in level if each.file not in (MASKED, *_FOR_THIS_BOOT)]
        above = {name for each in sound for name in (*each.pulled_by, *each.triggers)} - seen
        if goal in above or not above:
            return goal in above
        seen |= above
        _learn(host, known, above)
        level = [known[name] for name in above]
    raise HostError(f"more than {_DEPTH} units stand between it and {goal}")


def _dependency_links(host: Host, folders: Sequence[str], name: str) -> list[str]:
    kinds = ("wants", "requires", "upholds")
    return [
        path for folder in folders for kind in kinds for path in host.glob(f"{folder}/*.{kind}/*") if _is(path, name)
    ]


def _wanted_by(host: Host, name: str) -> list[str]:
    """Who pulls a unit in by a link in a directory."""
    return [path.split("/")[-2].rpartition(".")[0] for path in _dependency_links(host, _UNIT_PATH, name)]


def _is(path: str, name: str) -> bool:
    return path.rpartition("/")[2] == name


def _links(host: Host, name: str) -> list[str]:
    """This site's links to a unit: what pulls it in, and its other names."""
    aliases = [
        path
        for path in host.glob(f"{_ETC}/*")
        if not _is(path, name) and (target := host.link(path)) and _is(f"/{target}", name)
    ]
    return [*_dependency_links(host, (_ETC,), name), *aliases]


# -- deciding -------------------------------------------------------------------------------------


def decide(facts: Facts, want: Section) -> Goals:
    goals: dict[str, Desired] = {}
    stopped = {unit_name(word) for word, wanted in want.items() if wanted in (INACTIVE, MASKED)}
    # What starts others on demand comes before them: it is stopped first, and started last when that is taken back.
    for word, wanted in sorted(want.items(), key=lambda item: unit_name(item[0]).endswith(".service")):
        if word == FAILED:
            fix = "systemctl --failed; systemctl status UNIT; journalctl -b -u UNIT"
            goals[FAILED] = Desired((), live=False, persist=False, means="These units have failed.", fix=fix)
            continue
        name = unit_name(word)
        if name not in facts:
            unknown = Unknown("was not looked at")
            goals[name] = Desired(wanted, live=False, persist=False, counted=unknown)
            continue
        goals[name] = _running(facts, name) if wanted == ACTIVE else _stopped(facts, name, stopped, wanted == MASKED)
        if wanted == MASKED:
            goals[f"{name}/masked"] = _masked(facts, name)
    return goals


def _text(facts: Facts, key: str) -> str:
    reading = facts[key].current if key in facts else ""
    return reading if isinstance(reading, str) else ""


def _list(facts: Facts, key: str) -> tuple[str, ...]:
    reading = facts[key].current if key in facts else ()
    return reading if isinstance(reading, tuple) else ()


def _running(facts: Facts, name: str) -> Desired:
    desired = Desired(ACTIVE)
    load, file, state = (_text(facts, f"{name}/{what}") for what in ("load", "file", "state"))
    if load == "not-found":
        why, fix = f"{name} is not installed", f"Install what brings {name}."
        return desired._replace(refused_now=why, refused_next=why, fix=fix)
    if f"{name}/gated" in facts and facts[f"{name}/gated"].current is True:
        why = f"{name} waits for {_READY}, and this host is not ready before it runs"
        return desired._replace(refused_now=why, refused_next=why, fix=f"Take {name} out of the profile.", waits=True)
    if MASKED in (load, file) or file == "masked-runtime":
        why = f"{name} is masked: somebody decided that nothing may start it"
        return desired._replace(refused_now=why, refused_next=why, fix=f"If it may: systemctl unmask {name}")
    if facts[name].current == INACTIVE and state.startswith("ended"):
        why = f"{name} is of the kind (oneshot) that does its work, ends, and is never active"
        fix = "Ask for the timer that starts it, or for failed: none."
        return desired._replace(refused_now=why, refused_next=why, fix=fix, waits=True)
    if facts[name].current == INACTIVE and not state.startswith(INACTIVE):  # a reboot alone is no remedy
        fix = f"Find out why: {_why(name)}"
        desired = desired._replace(means=f"{name} is {state}: {_why(name)}.", fix=fix, waits=True)
    if facts[name].next_boot == ACTIVE:
        return desired
    if file == "generated":
        return _left(desired, facts[name], f"{name} is an init script", f"Run: update-rc.d {name[:-8]} enable")
    if file == "enabled":
        above = ", ".join(_list(facts, f"{name}/pulled-by")) or "nothing"
        why = f"{name} is enabled below {above}, which the default target does not pull in"
        return _left(desired, facts[name], why, "See systemctl get-default.")
    if file in ("static", "transient"):
        why = f"{name} has nothing that it could be enabled by ([Install])"
        return _left(desired, facts[name], why, "Ask for the unit that starts it instead.")
    return desired


def _why(name: str) -> str:
    return f"systemctl status {name}; journalctl -b -u {name}"


def _left(desired: Desired, fact: Fact, why: str, fix: str) -> Desired:
    """The next boot is not ours to change. Where all is well now, only what to do is told."""
    right_now = fact.current == desired.value
    return desired._replace(refused_next=why, fix=f"{why}. {fix}" if right_now else fix)


def _stopped(facts: Facts, name: str, stopped: Collection[str], masked: bool) -> Desired:
    """Stopped now and at the next boot; what is masked need not be disabled."""
    desired = Desired(INACTIVE, disrupts=f"stops {name}", persist=not masked)
    file, triggers = _text(facts, f"{name}/file"), _list(facts, f"{name}/triggers")
    if left := [trigger for trigger in triggers if trigger not in stopped]:
        why = f"{', '.join(left)} would start {name} again"
        fix = f"Ask for {left[0]} to be {MASKED if masked else INACTIVE} as well."
        return desired._replace(refused_now=why, refused_next="" if masked else why, fix=fix)
    if masked or facts[name].next_boot != ACTIVE:
        return desired
    if file == "generated":
        return _left(desired, facts[name], f"{name} is an init script", f"Run: update-rc.d {name[:-8]} disable")
    if file in ("static", "alias", "indirect", "disabled"):
        if triggers:  # the next boot brings what it wants once they are stopped
            return desired._replace(persist=False)
        above = ", ".join(_list(facts, f"{name}/pulled-by"))
        why = f"{name} is started by {above or 'another unit'}, whether it is enabled or not"
        return _left(desired, facts[name], why, "Ask for it to be masked, or change that unit.")
    return desired


def _masked(facts: Facts, name: str) -> Desired:
    """A mask takes the place of the file in /etc, which a site's own unit has already (systemctl: File exists)."""
    desired, path = Desired(True, live=False), _text(facts, f"{name}/path")
    if not path.startswith(_ETC) or facts[f"{name}/masked"].next_boot is True:
        return desired
    why = f"{path} is a file of this site's own, in the place that a mask takes"
    return desired._replace(
        refused_next=why, fix="Ask for inactive, or move that file to /usr/local/lib/systemd/system."
    )


def suggest(facts: Facts) -> Suggestion:
    """The well-known units that run and will, by the names that their files have."""
    active = Fact.fixed(ACTIVE)
    running = [name.removesuffix(".service") for name, fact in facts.items() if fact == active]
    section = dict.fromkeys((name for name in running if name not in _WAITING), ACTIVE)
    if facts[FAILED].current == ():
        section[FAILED] = "none"
    return Suggestion(section or None, {FAILED: "most sites want this as a hint: advisory: [services/failed]"})


# -- changing -------------------------------------------------------------------------------------


def apply(host: Host, changes: Sequence[Change]) -> None:
    for change in changes:
        name, _, what = change.key.partition("/")
        if what:
            mask = f"{_ETC}/{name}"
            host.symlink(mask, "/dev/null") if change.after else host.replace(mask, None)
        elif change.facet is Facet.CURRENT:
            _switch(host, "start" if change.after == ACTIVE else "stop", name)
        elif change.after == ACTIVE:
            _enable(host, name)
        else:
            _disable(host, name)


def _switch(host: Host, verb: str, name: str) -> None:
    try:
        host.run("systemctl", verb, name, timeout=_START_S)
    except CommandFailed as e:  # its last line only says where to read on
        said = next(iter(e.output.strip().splitlines()), str(e))
        raise ChangeFailed(f"systemctl {verb} {name}: {said}", f"Find out why: {_why(name)}") from e


def _enable(host: Host, name: str) -> None:
    """Enable a unit, and keep account of every link that this makes: units may name others that come along (Also=)."""
    before = set(_made(host))
    host.run("systemctl", "enable", name, timeout=_START_S)
    for path in sorted(set(_made(host)) - before):
        host.note_change(path, ABSENT, host.state(path))


def _made(host: Host) -> list[str]:
    """What enabling makes more of: links, and directories for them."""
    paths = [*host.glob(f"{_ETC}/*"), *host.glob(f"{_ETC}/*/*")]
    return [path for path in paths if host.state_kind(path) in ("link", "directory")]


def _disable(host: Host, name: str) -> None:
    """Take away this site's links to a unit, so that revert has them: systemctl knows only those of [Install]."""
    links = _links(host, name)
    if not links:
        raise ChangeFailed(
            f"{name}: no link below {_ETC} starts it", f"systemctl list-dependencies --reverse {name} says who does."
        )
    for link in links:
        host.replace(link, None)


def finish(host: Host) -> None:
    """systemd is told of links that came and went."""
    host.run("systemctl", "daemon-reload", timeout=_START_S)
