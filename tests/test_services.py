"""Services now and at the next boot: what systemctl tells of units that are enabled, pulled in, triggered, masked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import apply, findings, statuses
from fakes import FakeHost, debian

from hostprep.errors import CommandFailed, HostError
from hostprep.journal import Journal
from hostprep.model import Unknown
from hostprep.perform import Performer
from hostprep.registry import asking as asking_of
from hostprep.registry import load
from hostprep.registry import suggesting as suggesting_of
from hostprep.revert import revert

DEFAULTS = {"LoadState": "loaded", "ActiveState": "inactive", "SubState": "dead", "UnitFileState": "disabled"}
ETC = "/etc/systemd/system"
RUNS = {"ActiveState": "active", "SubState": "running"}
ENABLED = {"UnitFileState": "enabled", "WantedBy": "multi-user.target"}


class Systemd:
    """As much of systemctl as there are units: a name, and the properties in which it differs from a plain one."""

    def __init__(self, host: FakeHost, **units: Mapping[str, str]) -> None:
        self.host = host
        self.units = {name.replace("__", "-").replace("_", "."): {**DEFAULTS, **of} for name, of in units.items()}
        self.units |= {
            "multi-user.target": {**DEFAULTS, "ActiveState": "active", "UnitFileState": "static"},
            "graphical.target": {**DEFAULTS, "UnitFileState": "static"},
        }
        self.units["multi-user.target"]["WantedBy"] = "graphical.target"
        self.originally = {name: {k: of[k] for k in ("LoadState", "UnitFileState")} for name, of in self.units.items()}
        self.default = "graphical.target"
        host.commands["systemctl"] = self.answer
        host.put("/proc/uptime", "5000.00 9000.00\n")
        for name, unit in self.units.items():
            if unit["UnitFileState"] == "enabled":
                self.link(name, unit.get("WantedBy", ""))

    def link(self, name: str, target: str = "multi-user.target") -> None:
        if not self.host.exists(path := f"{ETC}/{target}.wants/{name}"):
            self.host.put(path, f"-> /lib/systemd/system/{name}")

    def answer(self, argv: Sequence[str]) -> str:
        verb, name = argv[1], argv[-1]
        if verb == "get-default":
            return f"{self.default}\n"
        if verb == "list-units":
            failed = [name for name, unit in self.units.items() if unit["ActiveState"] == "failed"]
            return "".join(f"{name} loaded failed failed It\n" for name in failed)
        if verb == "show":
            return "\n".join(self.shown(n) for n in argv[argv.index("--") + 1 :])
        if verb == "daemon-reload":
            self.reload()
        else:
            getattr(self, verb)(self.units[name], name)
        return ""

    def reload(self) -> None:
        """What is enabled or masked is so by its links."""
        for name, unit in self.units.items():
            masked = self.host.link(f"{ETC}/{name}") == "/dev/null"
            if masked != (unit["UnitFileState"] == "masked"):
                unit |= {"LoadState": "masked", "UnitFileState": "masked"} if masked else dict(self.originally[name])
            elif unit["UnitFileState"] in ("enabled", "disabled"):
                linked = self.host.exists(f"{ETC}/multi-user.target.wants/{name}")
                unit |= ENABLED if linked else {"UnitFileState": "disabled", "WantedBy": ""}

    def shown(self, name: str) -> str:
        missing = {**DEFAULTS, "LoadState": "not-found", "UnitFileState": ""}
        return "".join(f"{key}={value}\n" for key, value in {"Id": name, **self.units.get(name, missing)}.items())

    def start(self, unit: dict[str, str], name: str) -> None:
        if unit.get("fails"):
            said = f'Job for {name} failed because the control process exited.\nSee "systemctl status" for details.\n'
            raise CommandFailed("systemctl: exit 1: See ...", status=1, output=said)
        unit |= {"ActiveState": "active", "SubState": "running"}

    def stop(self, unit: dict[str, str], name: str) -> None:
        unit |= {"ActiveState": "inactive", "SubState": "dead"}

    def enable(self, unit: dict[str, str], name: str) -> None:
        unit |= ENABLED
        self.link(name, "paths.target" if name.endswith(".path") else "multi-user.target")
        for other in unit.get("also", "").split():
            self.enable(self.units[other], other)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path / "root", {**debian(), "/run/systemd/system/": ""})


CASES: list[tuple[dict[str, str], str]] = [
    (RUNS | ENABLED, "pass"),
    ({**RUNS, **ENABLED, "ActiveState": "reloading"}, "pass"),
    (RUNS, "volatile"),
    ({**RUNS, "UnitFileState": "enabled-runtime", "WantedBy": "multi-user.target"}, "volatile"),
    ({**RUNS, "UnitFileState": "static", "WantedBy": "multi-user.target"}, "pass"),
    ({**RUNS, "UnitFileState": "generated", "WantedBy": "graphical.target"}, "pass"),
    ({**RUNS, "UnitFileState": "enabled", "WantedBy": "kiosk.target"}, "volatile"),
    ({**RUNS, **ENABLED, "NRestarts": "3", "ActiveEnterTimestampMonotonic": "4999000000"}, "fail"),
    ({**RUNS, **ENABLED, "NRestarts": "3", "ActiveEnterTimestampMonotonic": "60000000"}, "pass"),
    ({**ENABLED, "Type": "oneshot", "RemainAfterExit": "no"}, "fail"),
    ({**ENABLED, "ConditionResult": "no", "ConditionTimestampMonotonic": "7"}, "fail"),
    (ENABLED, "pending-reboot"),
    ({**ENABLED, "ActiveState": "failed", "SubState": "failed"}, "fail"),
    ({**ENABLED, "ActiveState": "activating", "SubState": "auto-restart", "NRestarts": "12"}, "fail"),
    ({}, "fail"),
    ({"LoadState": "not-found", "UnitFileState": ""}, "fail"),
    ({"LoadState": "masked", "UnitFileState": "masked"}, "fail"),
    ({**RUNS, "LoadState": "masked", "UnitFileState": "masked-runtime"}, "unknown"),
]


@pytest.mark.parametrize(("unit", "status"), CASES)
def test_a_service_is_judged_now_and_at_the_next_boot(host: FakeHost, unit: dict[str, str], status: str) -> None:
    Systemd(host, docker_service=unit)
    assert statuses(host, {"services": {"docker": "active"}}) == {"services/docker.service": status}


def test_what_its_socket_starts_is_active_while_that_listens_and_will_be_where_that_is_enabled(host: FakeHost) -> None:
    systemd = Systemd(
        host,
        docker_service={"TriggeredBy": "docker.socket"},
        docker_socket={**RUNS, "UnitFileState": "enabled", "WantedBy": "sockets.target"},
        sockets_target={**RUNS, "UnitFileState": "static", "WantedBy": "basic.target"},
        basic_target={**RUNS, "UnitFileState": "static", "RequiredBy": "multi-user.target"},
    )
    want = {"services": {"docker": "active"}}
    assert set(statuses(host, want).values()) == {"pass"}
    systemd.stop(systemd.units["docker.socket"], "")
    assert set(statuses(host, want).values()) == {"pending-reboot"}
    systemd.units["docker.service"] |= {"ActiveState": "failed", "SubState": "failed"}
    systemd.start(systemd.units["docker.socket"], "")
    assert set(statuses(host, want).values()) == {"fail"}, "a service that failed is not there on demand"


WORDS: list[tuple[dict[str, str], str, str]] = [
    ({"LoadState": "not-found", "UnitFileState": ""}, "active", "chrony.service is not installed"),
    ({"LoadState": "masked", "UnitFileState": "masked"}, "active", "systemctl unmask chrony.service"),
    ({"UnitFileState": "generated"}, "active", "update-rc.d chrony enable"),
    (
        {**ENABLED, "Requires": "hostprep-ready.target sysinit.target"},
        "active",
        "Take chrony.service out of the profile",
    ),
    ({"UnitFileState": "static"}, "active", "has nothing that it could be enabled by"),
    ({**ENABLED, "ActiveState": "failed", "SubState": "failed"}, "active", "journalctl -b -u chrony.service"),
    (
        {**ENABLED, "ActiveState": "activating", "SubState": "auto-restart", "NRestarts": "12"},
        "active",
        "activating (auto-restart), restarted 12 times",
    ),
    ({**RUNS, **ENABLED, "UnitFileState": "static"}, "inactive", "is started by multi-user.target, whether it is"),
    ({**RUNS, **ENABLED, "WantedBy": "kiosk.target"}, "active", "enabled below kiosk.target, which the default target"),
    ({**ENABLED, "Type": "oneshot", "RemainAfterExit": "no"}, "active", "Ask for the timer that starts it"),
    ({**ENABLED, "ConditionResult": "no", "ConditionTimestampMonotonic": "7"}, "active", "conditions are not met"),
    (
        {**RUNS, **ENABLED, "NRestarts": "3", "ActiveEnterTimestampMonotonic": "4999000000"},
        "active",
        "restarted 3 times, last 1 s ago",
    ),
    ({"FragmentPath": f"{ETC}/chrony.service"}, "masked", "in the place that a mask takes"),
]


@pytest.mark.parametrize(("unit", "wanted", "words"), WORDS)
def test_what_is_wrong_is_said_and_what_to_do(host: FakeHost, unit: dict[str, str], wanted: str, words: str) -> None:
    Systemd(host, chrony_service=unit)
    found = findings(host, {"services": {"chrony": wanted}}).values()
    assert any(words in f"{f.message} {f.fix}" for f in found), found


def test_failed_units_are_a_finding_and_hostpreps_own_are_none(host: FakeHost) -> None:
    """A host that is not ready has a failed hostprep-ready.service, and would never be ready again."""
    broken = {"ActiveState": "failed", "SubState": "failed"}
    systemd = Systemd(host, hostprep__ready_service=broken)
    want = {"services": {"failed": "none"}}
    assert statuses(host, want) == {"services/failed": "pass"}
    systemd.units["zfs-import.service"] = {**DEFAULTS, **broken}
    found = findings(host, want, advisory=("services/failed",))["services/failed"]
    assert (found.status.value, found.fact.current, found.counts) == ("fail", ("zfs-import.service",), False)


@pytest.mark.parametrize("runs", [True, False])
def test_where_systemd_does_not_answer_nothing_is_known(host: FakeHost, runs: bool) -> None:
    """A container, another init system, or a systemd that hangs: unknown, and not failed."""
    host.commands["systemctl"] = HostError("systemctl: Failed to connect to bus: Host is down")
    if not runs:
        Path(f"{host.root}/run/systemd/system").rmdir()
    found = findings(host, {"services": {"docker": "active", "failed": "none", "cups": "masked"}})
    assert {f.status.value for f in found.values()} == {"unknown"}
    reason = "Failed to connect to bus" if runs else "systemd is not what runs this host"
    reasons = [f.fact.current.reason for f in found.values() if isinstance(f.fact.current, Unknown)]
    assert [reason in given for given in reasons] == [True] * len(found)


def taken_back(host: FakeHost, journal: Journal) -> None:
    performer = Performer(host, load(["services"]), journal, lambda line: None)
    revert(performer)
    assert performer.failures == []


def test_apply_starts_and_enables_and_revert_stops_and_disables(host: FakeHost, journal: Journal) -> None:
    systemd = Systemd(host, docker_service={})
    want: dict[str, Any] = {"services": {"docker": "active"}}
    before = host.snapshot()
    assert apply(host, want, journal).failures == []
    assert set(statuses(host, want).values()) == {"pass"}
    ran = list(host.ran)
    assert apply(host, want, journal).failures == []
    assert not [line for line in host.ran[len(ran) :] if " show " not in line and "get-default" not in line]
    taken_back(host, journal)
    assert (systemd.units["docker.service"]["ActiveState"], host.snapshot()) == ("inactive", before)


def test_what_is_stopped_disturbs_and_every_link_that_disabling_takes_comes_back(
    host: FakeHost, journal: Journal
) -> None:
    systemd = Systemd(host, cups_service={**RUNS, **ENABLED})
    systemd.link("cups.service", "printer.target")
    before, want = host.snapshot(), {"services": {"cups": "inactive"}}
    assert "--allow-disruption services" in findings(host, want)["services/cups.service"].fix
    assert apply(host, want, journal).failures == []
    assert statuses(host, want)["services/cups.service"] == "pending-reboot", "it still runs"
    assert apply(host, want, journal, allowed=("services",)).failures == []
    assert set(statuses(host, want).values()) == {"pass"}
    assert not host.exists(f"{ETC}/printer.target.wants/cups.service")
    taken_back(host, journal)
    assert (systemd.units["cups.service"]["ActiveState"], host.snapshot()) == ("active", before)


def test_what_comes_along_when_a_unit_is_enabled_is_taken_back_with_it(host: FakeHost, journal: Journal) -> None:
    """[Install] Also=: `systemctl disable` would not know which of them were enabled before."""
    Systemd(host, cups_service={"also": "cups.path cups.socket"}, cups_path={}, cups_socket=ENABLED)
    before = host.snapshot(), host.directories()
    assert apply(host, {"services": {"cups": "active"}}, journal).failures == []
    assert host.exists(f"{ETC}/paths.target.wants/cups.path")
    taken_back(host, journal)
    assert (host.snapshot(), host.directories()) == before


def test_a_service_stays_stopped_only_where_its_socket_does_too(host: FakeHost, journal: Journal) -> None:
    docker = {**RUNS, **ENABLED, "TriggeredBy": "docker.socket"}
    systemd = Systemd(host, docker_service=docker, docker_socket={**RUNS, **ENABLED})
    (alone,) = findings(host, {"services": {"docker": "inactive"}}).values()
    assert (alone.message, alone.fix) == (
        "Refused: docker.socket would start docker.service again.",
        "Ask for docker.socket to be inactive as well.",
    )
    want = {"services": {"docker": "inactive", "docker.socket": "inactive"}}
    assert apply(host, want, journal, allowed=("services",)).failures == []
    assert set(statuses(host, want).values()) == {"pass"}
    stopped = [line for line in host.ran if line.startswith("systemctl stop")]
    assert stopped == ["systemctl stop docker.socket", "systemctl stop docker.service"]
    taken_back(host, journal)
    assert [systemd.units[f"docker.{kind}"]["ActiveState"] for kind in ("service", "socket")] == ["active"] * 2


@pytest.mark.parametrize(("enabled", "wanted"), [(False, "inactive"), (True, "active")])
def test_links_that_systemd_was_not_told_of_make_the_next_boot_unknown(
    host: FakeHost, enabled: bool, wanted: str
) -> None:
    systemd = Systemd(host, cups_service=ENABLED if enabled else {})
    if enabled:
        host.remove(f"{ETC}/multi-user.target.wants/cups.service")
    else:
        systemd.link("cups.service")
    found = findings(host, {"services": {"cups": wanted}})["services/cups.service"]
    assert (found.status.value, "daemon-reload" in found.message) == ("unknown", True), found


def test_an_alias_is_looked_at_as_what_it_stands_for(host: FakeHost) -> None:
    systemd = Systemd(host, chrony_service={**RUNS, **ENABLED}, chronyd_service={**RUNS, **ENABLED})
    systemd.units["chronyd.service"]["Id"] = "chrony.service"
    host.remove(f"{ETC}/multi-user.target.wants/chronyd.service")
    assert statuses(host, {"services": {"chronyd": "active"}}) == {"services/chronyd.service": "pass"}


@pytest.mark.parametrize("word", ["getty@", "getty@.service", "*", "a b", "", "docker\n"])
def test_what_is_no_unit_is_refused_by_the_schema(word: str) -> None:
    schema = load(["services"])["services"].SCHEMA
    assert list(jsonschema.Draft202012Validator(schema).iter_errors({word: "active"}))


def test_without_a_profile_well_known_units_are_looked_at_where_they_are_and_suggested(host: FakeHost) -> None:
    Systemd(host, docker_service={**RUNS, **ENABLED}, chrony_service=RUNS, pbs_service={**RUNS, **ENABLED})
    check = load(["services"])["services"]
    asking, suggesting = asking_of(check), suggesting_of(check)
    assert asking is not None
    assert suggesting is not None
    facts = asking.inspect(host, asking.asked(None, ()))
    assert {key.partition("/")[0] for key in facts} == {"failed", "docker.service", "chrony.service", "pbs.service"}
    assert suggesting.suggest(facts).section == {"docker": "active", "failed": "none"}, "pbs waits for the host"


def test_masked_is_stopped_and_masked_and_back(host: FakeHost, journal: Journal) -> None:
    systemd = Systemd(host, apt__daily_timer={**RUNS, "UnitFileState": "static", "WantedBy": "multi-user.target"})
    before = host.snapshot()
    want = {"services": {"apt-daily.timer": "masked"}}
    assert apply(host, want, journal, allowed=("services",)).failures == []
    assert set(statuses(host, want).values()) == {"pass"}
    taken_back(host, journal)
    unit = systemd.units["apt-daily.timer"]
    assert (unit["ActiveState"], unit["LoadState"], host.snapshot()) == ("active", "loaded", before)


def test_a_service_that_does_not_start_is_a_failure_and_not_ready(host: FakeHost, journal: Journal) -> None:
    Systemd(host, docker_service={"fails": "yes"})
    want = {"services": {"docker": "active"}}
    (failure,) = apply(host, want, journal).failures
    said = "Job for docker.service failed because the control process exited."
    assert (failure.reason, "journalctl -b -u docker.service" in failure.hint) == (
        f"systemctl start docker.service: {said}",
        True,
    )
    assert statuses(host, want)["services/docker.service"] == "fail"
