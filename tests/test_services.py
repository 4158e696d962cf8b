"""Services now and at the next boot: what systemctl tells of units that are enabled, pulled in, triggered, masked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import apply, findings, statuses
from fakes import FakeHost, debian

from hostprep.errors import CommandFailed, HostError
from hostprep.journal import Journal
from hostprep.model import Unknown
from hostprep.perform import Performer
from hostprep.registry import load
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
        self.default = "graphical.target"
        host.commands["systemctl"] = self.answer

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
        """What is enabled is so by its links."""
        for name, unit in self.units.items():
            if unit["UnitFileState"] in ("enabled", "disabled"):
                linked = self.host.exists(f"{ETC}/multi-user.target.wants/{name}")
                unit |= ENABLED if linked else {"UnitFileState": "disabled", "WantedBy": ""}

    def shown(self, name: str) -> str:
        missing = {**DEFAULTS, "LoadState": "not-found", "UnitFileState": ""}
        return "".join(f"{key}={value}\n" for key, value in {"Id": name, **self.units.get(name, missing)}.items())

    def start(self, unit: dict[str, str], name: str) -> None:
        if unit.get("fails"):
            raise CommandFailed(f"systemctl start {name}: exit 1", status=1)
        unit |= {"ActiveState": "active", "SubState": "running"}

    def stop(self, unit: dict[str, str], name: str) -> None:
        unit |= {"ActiveState": "inactive", "SubState": "dead"}

    def enable(self, unit: dict[str, str], name: str) -> None:
        unit |= ENABLED
        self.host.put(f"{ETC}/multi-user.target.wants/{name}", f"-> /lib/systemd/system/{name}")

    def mask(self, unit: dict[str, str], name: str) -> None:
        unit |= {"LoadState": "masked", "UnitFileState": "masked"}

    def unmask(self, unit: dict[str, str], name: str) -> None:
        unit |= {"LoadState": "loaded", "UnitFileState": "static"}


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path / "root", debian())


CASES: list[tuple[dict[str, str], str]] = [
    (RUNS | ENABLED, "pass"),
    ({**RUNS, **ENABLED, "ActiveState": "reloading"}, "pass"),
    (RUNS, "volatile"),
    ({**RUNS, "UnitFileState": "enabled-runtime", "WantedBy": "multi-user.target"}, "volatile"),
    ({**RUNS, "UnitFileState": "static", "WantedBy": "multi-user.target"}, "pass"),
    ({**RUNS, "UnitFileState": "generated", "WantedBy": "graphical.target"}, "pass"),
    ({**RUNS, "UnitFileState": "enabled", "WantedBy": "kiosk.target"}, "unknown"),
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
    ({**RUNS, **ENABLED, "UnitFileState": "static"}, "inactive", "started by another unit"),
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


def test_where_systemd_does_not_run_nothing_is_known(host: FakeHost) -> None:
    host.commands["systemctl"] = HostError("systemctl: System has not been booted with systemd as init system (PID 1)")
    found = findings(host, {"services": {"docker": "active", "failed": "none", "cups": "masked"}})
    assert {f.status.value for f in found.values()} == {"unknown"}
    reasons = [f.fact.current.reason for f in found.values() if isinstance(f.fact.current, Unknown)]
    assert len(reasons) == len(found)
    assert all("not been booted" in reason for reason in reasons)


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
    for folder in ("multi-user.target.wants", "printer.target.wants"):
        host.put(f"{ETC}/{folder}/cups.service", "-> /lib/systemd/system/cups.service")
    before, want = host.snapshot(), {"services": {"cups": "inactive"}}
    refused = findings(host, want)["services/cups.service"]
    assert refused.desired is not None
    assert refused.desired.disrupts == "stops cups.service"
    assert apply(host, want, journal, allowed=("services",)).failures == []
    assert set(statuses(host, want).values()) == {"pass"}
    assert not host.exists(f"{ETC}/printer.target.wants/cups.service")
    taken_back(host, journal)
    assert (systemd.units["cups.service"]["ActiveState"], host.snapshot()) == ("active", before)


def test_masked_is_stopped_and_masked_and_back(host: FakeHost, journal: Journal) -> None:
    systemd = Systemd(host, apt__daily_timer={**RUNS, "UnitFileState": "static", "WantedBy": "multi-user.target"})
    want = {"services": {"apt-daily.timer": "masked"}}
    assert apply(host, want, journal, allowed=("services",)).failures == []
    assert set(statuses(host, want).values()) == {"pass"}
    taken_back(host, journal)
    unit = systemd.units["apt-daily.timer"]
    assert (unit["ActiveState"], unit["LoadState"]) == ("active", "loaded")


def test_a_service_that_does_not_start_is_a_failure_and_not_ready(host: FakeHost, journal: Journal) -> None:
    Systemd(host, docker_service={"fails": "yes"})
    want = {"services": {"docker": "active"}}
    assert any("systemctl start" in failure.reason for failure in apply(host, want, journal).failures)
    assert statuses(host, want)["services/docker.service"] == "fail"
