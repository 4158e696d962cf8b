"""Services: systemd units that run and will run at the next boot, that do not, or that are masked; failed units.

    services:
      docker: active                  # runs now, and the next boot starts it
      chrony: active                  # without an ending it is a .service
      fstrim.timer: active
      avahi-daemon: inactive          # does not run, and the next boot does not start it
      apt-daily.timer: masked         # nor can anything else start it
      failed: none                    # no unit of this host has failed

Now is the unit's ActiveState. What systemd starts on demand counts as active while its socket, timer or path is. A unit
that keeps failing and is restarted is not active. A service that does its work and ends (oneshot without
RemainAfterExit) is never active: ask for its timer.

Next boot: active is what the default target will pull in, over any number of units, from what is enabled, from vendors'
own links and from generators. Enabled for this boot only (`systemctl enable --runtime`) is not. What is enabled below a
target that is not reached (graphical.target on a server) is unknown until systemd knows who wants it.

apply starts and enables, stops and disables, masks; stopping needs --allow-disruption services. A masked unit is not
unmasked, nor is an init script enabled: somebody else decided that. Links that disabling takes away come back with
revert. Most sites want failed units as a hint only: `advisory: [services/failed]`. hostprep's own units are not looked
at: a host that is not ready has one that failed. Do not ask for a unit that waits for hostprep-ready.target (`hostprep
install systemd --gate`): it would wait for itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from hostprep.errors import ChangeFailed, HostError
from hostprep.host import Host, attempt
from hostprep.model import Change, Desired, Facet, Fact, Facts, Goals, Reading, Section, Suggestion, Unknown

NAME = "services"

_UNIT = r"^[A-Za-z0-9:_.\\@-]{1,250}$(?!\n)"
SCHEMA = {
    "description": "systemd units by name, and what each is to be.",
    "type": "object",
    "properties": {"failed": {"const": "none", "description": "none: no unit has failed"}},
    "propertyNames": {"description": "a unit such as docker, chrony.service or fstrim.timer", "pattern": _UNIT},
    "additionalProperties": {"enum": ["active", "inactive", "masked"], "description": "what a unit is to be"},
    "minProperties": 1,
}

READY = "hostprep-ready.target"
RUNNING = "running"  # the services that run, told where no profile names any
MOVING = ("*/state", RUNNING)
# What the siblings of a node are to run too, where it does.
_OF_A_NODE = (
    *("chrony", "chronyd", "ntpsec", "systemd-timesyncd", "docker", "containerd", "crio", "munge", "openibd", "opensm"),
    *("nvidia-persistenced", "nvidia-fabricmanager", "rpcbind", "sssd", "autofs", "ssh", "sshd"),
)
ACTIVE, INACTIVE, MASKED, FAILED = "active", "inactive", "masked", "failed"
_ETC = "/etc/systemd/system"
_TYPES = ("service", "socket", "timer", "path", "target", "mount", "automount", "swap", "slice", "scope", "device")
_PULLED_BY = ("WantedBy", "RequiredBy", "RequisiteOf", "UpheldBy", "BoundBy")
_PROPERTIES = (
    "Id",
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "NRestarts",
    "FragmentPath",
    "Requires",
    "TriggeredBy",
    *_PULLED_BY,
)
_START_S = 90.0  # seconds for a unit to start or stop: systemd's own default
_DEPTH = 32  # how far up it is looked for the default target
_DISABLED_AT_BOOT = ("enabled-runtime", "linked-runtime", "masked-runtime", "transient")


class Unit(NamedTuple):
    """A unit as `systemctl show` tells it."""

    id: str
    load: str
    state: str
    sub: str
    file: str  # UnitFileState
    restarts: int
    path: str  # of its file
    gated: bool  # it waits for this host to be ready
    triggers: tuple[str, ...]  # sockets, timers, paths that start it
    pulled_by: tuple[str, ...]


# -- looking --------------------------------------------------------------------------------------


def unit_name(word: str) -> str:
    """`docker` is docker.service, as systemctl has it."""
    return word if word.rpartition(".")[2] in _TYPES and "." in word else f"{word}.service"


def asked(want: Section, keys: Iterable[str]) -> Sequence[str]:
    """The units that a profile names, and those of facts."""
    named = {unit_name(word) for word in want or () if word != FAILED}
    return sorted(named | {key.partition("/")[0] for key in keys if key not in (FAILED, RUNNING)})


def inspect(host: Host, names: Sequence[str] = ()) -> Facts:
    facts = {FAILED: Fact.fixed(attempt(_failed, host))}
    if not names:
        return facts | {RUNNING: Fact.fixed(attempt(_listed, host, "--state=active", "--type=service"))}
    try:
        found = _show(host, names)
        boots = _Boots(host, host.run("systemctl", "get-default").strip())
    except HostError as e:
        return facts | {f"{name}{more}": Fact.fixed(Unknown(str(e))) for name in names for more in ("", "/masked")}
    triggers = attempt(_show, host, sorted({trigger for unit in found.values() for trigger in unit.triggers}))
    for name in names:
        facts |= dict(_unit_facts(boots, name, found[name], triggers))
    return facts


def _unit_facts(
    boots: _Boots, name: str, unit: Unit, triggers: Mapping[str, Unit] | Unknown
) -> Iterator[tuple[str, Fact]]:
    by: list[str] | Unknown = []
    if unit.triggers:
        by = triggers if isinstance(triggers, Unknown) else [t for t in unit.triggers if triggers[t].state == ACTIVE]
    now: str | Unknown = ACTIVE if unit.state in (ACTIVE, "reloading") else INACTIVE
    if now == INACTIVE and unit.state != FAILED and by and not unit.sub.startswith("auto-restart"):
        now = by if isinstance(by, Unknown) else ACTIVE
    yield name, Fact(now, attempt(boots.starts, unit))
    yield f"{name}/masked", Fact(unit.load == MASKED, unit.file == MASKED)
    yield f"{name}/load", Fact.fixed(unit.load)
    yield f"{name}/file", Fact.fixed(unit.file or "none")
    yield f"{name}/path", Fact.fixed(unit.path)
    yield f"{name}/gated", Fact.fixed(unit.gated)
    state = f"{unit.state} ({unit.sub})" + (f", restarted {unit.restarts} times" if unit.restarts else "")
    yield f"{name}/state", Fact.fixed(state)
    if unit.triggers and isinstance(by, list):
        yield f"{name}/triggers", Fact.fixed(tuple(unit.triggers))


def _failed(host: Host) -> tuple[str, ...]:
    """The units that have failed, but for hostprep's own."""
    return tuple(unit for unit in _listed(host, "--failed") if not unit.startswith("hostprep-"))


def _listed(host: Host, *which: str) -> tuple[str, ...]:
    listed = host.run("systemctl", "list-units", *which, "--plain", "--no-legend", "--no-pager", "--full")
    return tuple(sorted(line.split()[0] for line in listed.splitlines() if line.split()))


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
    restarts = fields.get("NRestarts", "")
    return Unit(
        fields["Id"],
        fields["LoadState"],
        fields["ActiveState"],
        fields["SubState"],
        fields.get("UnitFileState", ""),
        int(restarts) if restarts.isdecimal() else 0,
        fields.get("FragmentPath", ""),
        READY in fields.get("Requires", "").split(),
        tuple(fields.get("TriggeredBy", "").split()),
        tuple(pulled_by),
    )


class _Boots:
    """Who is started at the next boot: whoever the default target pulls in."""

    def __init__(self, host: Host, goal: str) -> None:
        self.host = host
        self.goal = goal

    def starts(self, unit: Unit) -> str:
        """`active` or `inactive`. HostError where it cannot be told."""
        if unit.load == "not-found" or unit.file == MASKED:
            return INACTIVE
        if unit.file in _DISABLED_AT_BOOT:
            if unit.file == "masked-runtime":
                raise HostError("it is masked until the next boot; what that brings is not told before")
            return INACTIVE
        if self._reached(unit):
            return ACTIVE
        if unit.file == "enabled":
            raise HostError(
                f"it is enabled, but systemd knows of nothing below {self.goal} that wants it "
                "(systemctl daemon-reload, or another target is meant)"
            )
        return INACTIVE

    def _reached(self, unit: Unit) -> bool:
        """Is the default target above it? Sockets, timers and paths start it too."""
        seen: set[str] = set()
        level = [unit]
        for _ in range(_DEPTH):
            if any(each.id == self.goal for each in level):
                return True
            above = {
                name
                for each in level
                if each.file not in (MASKED, *_DISABLED_AT_BOOT)
                for name in (*each.pulled_by, *each.triggers)
            }
            if self.goal in above:
                return True
            if not (names := sorted(above - seen)):
                return False
            seen |= above
            level = list(_show(self.host, names).values())
        raise HostError(f"more than {_DEPTH} units stand between it and {self.goal}")


def suggest(facts: Facts) -> Suggestion:
    failed, running = facts[FAILED].current, facts.get(RUNNING, Fact.fixed(())).current
    names = [name for name in _OF_A_NODE if isinstance(running, tuple) and f"{name}.service" in running]
    section = dict.fromkeys(names, ACTIVE) | ({FAILED: "none"} if failed == () else {})
    notes = {FAILED: "a hint only, with advisory: [services/failed]"} if failed == () else {}
    return Suggestion(section or None, notes)


# -- deciding -------------------------------------------------------------------------------------


def decide(facts: Facts, want: Section) -> Goals:
    goals: dict[str, Desired] = {}
    for word, wanted in want.items():
        if word == FAILED:
            fix = "systemctl --failed; systemctl status UNIT; journalctl -b -u UNIT"
            goals[FAILED] = Desired((), live=False, persist=False, means="These units have failed.", fix=fix)
            continue
        name = unit_name(word)
        goals[name] = _running(facts, name) if wanted == ACTIVE else _stopped(facts, name, masked=wanted == MASKED)
        if wanted == MASKED:
            goals[f"{name}/masked"] = _masked(facts, name)
    return goals


def _text(facts: Facts, key: str) -> str:
    reading = facts[key].current if key in facts else ""
    return reading if isinstance(reading, str) else ""


def _later(facts: Facts, key: str) -> Reading:
    return facts[key].next_boot if key in facts else None


def _running(facts: Facts, name: str) -> Desired:
    desired = Desired(ACTIVE)
    load, file, state = (_text(facts, f"{name}/{what}") for what in ("load", "file", "state"))
    if load == "not-found":
        why, fix = f"{name} is not installed", f"Install what brings {name}."
        return desired._replace(refused_now=why, refused_next=why, fix=fix)
    if f"{name}/gated" in facts and facts[f"{name}/gated"].current is True:
        why = f"{name} waits for {READY}, and this host is not ready before it runs"
        fix = f"Take {name} out of the profile."
        return desired._replace(refused_now=why, refused_next=why, fix=fix, waits=True)
    if MASKED in (load, file) or file == "masked-runtime":
        why = f"{name} is masked: somebody decided that nothing may start it"
        return desired._replace(refused_now=why, refused_next=why, fix=f"If it may: systemctl unmask {name}")
    if state.startswith((FAILED, "activating", "deactivating")):  # a reboot alone is no remedy
        why = f"Find out why: journalctl -b -u {name}"
        desired = desired._replace(means=f"{name} is {state}.", fix=why, waits=True)
    if _later(facts, name) == ACTIVE:
        return desired
    if file == "generated":
        return desired._replace(refused_next=f"{name} is an init script", fix=_by_script(name, "enable"))
    if file in ("static", "transient"):
        why = f"{name} has nothing that it could be enabled by ([Install])"
        return desired._replace(refused_next=why, fix="Ask for the unit that starts it instead.")
    return desired


def _stopped(facts: Facts, name: str, *, masked: bool) -> Desired:
    desired = Desired(INACTIVE, disrupts=f"stops {name}", persist=not masked)
    file = _text(facts, f"{name}/file")
    if masked or _later(facts, name) != ACTIVE:
        return desired
    if file == "generated":
        return desired._replace(refused_next=f"{name} is an init script", fix=_by_script(name, "disable"))
    if file in ("static", "alias", "indirect", "disabled"):
        why = f"{name} is started by another unit, whether it is enabled or not"
        fix = f"Ask for masked, or find out who: systemctl list-dependencies --reverse {name}"
        return desired._replace(refused_next=why, fix=fix)
    return desired


def _masked(facts: Facts, name: str) -> Desired:
    """A mask takes the place of the file in /etc, which a site's own unit has already (systemctl: File exists)."""
    desired, path = Desired(True, live=False), _text(facts, f"{name}/path")
    if not path.startswith(_ETC) or _later(facts, f"{name}/masked") is True:
        return desired
    why = f"{path} is a file of this site's own, in the place that a mask takes"
    return desired._replace(
        refused_next=why, fix="Ask for inactive, or move that file to /usr/local/lib/systemd/system."
    )


def _by_script(name: str, verb: str) -> str:
    return f"update-rc.d {name.removesuffix('.service')} {verb}"


# -- changing -------------------------------------------------------------------------------------


def apply(host: Host, changes: Sequence[Change]) -> None:
    for change in changes:
        name, _, what = change.key.partition("/")
        if what:
            host.run("systemctl", "mask" if change.after else "unmask", name, timeout=_START_S)
        elif change.facet is Facet.CURRENT:
            host.run("systemctl", "start" if change.after == ACTIVE else "stop", name, timeout=_START_S)
        elif change.after == ACTIVE:
            host.run("systemctl", "enable", name, timeout=_START_S)
        else:
            _disable(host, name)


def _disable(host: Host, name: str) -> None:
    """Take away this site's links to a unit, so that revert has them: systemctl knows only those of [Install]."""
    links = [
        path
        for pattern in (f"{_ETC}/*.wants/{name}", f"{_ETC}/*.requires/{name}", f"{_ETC}/*.upholds/{name}", f"{_ETC}/*")
        for path in host.glob(pattern)
        if (target := host.link(path)) and target.rpartition("/")[2] == name
    ]
    if not links:
        raise ChangeFailed(
            f"{name}: no link below {_ETC} starts it", f"systemctl list-dependencies --reverse {name} says who does."
        )
    for link in links:
        host.replace(link, None)


def finish(host: Host) -> None:
    """systemd is told of links that came and went."""
    host.run("systemctl", "daemon-reload", timeout=_START_S)
