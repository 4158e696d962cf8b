"""Services with systemd as pid 1: what is judged, what apply makes of it, what a boot brings, what revert leaves."""

from __future__ import annotations

from vm import Guest
from vm.admin import ACTIVE, ETC, applied, findings, hostprep, profile, reverted, state

VENDOR = "/usr/lib/systemd/system"
SLEEP = "[Service]\nExecStart=/bin/sleep infinity\n"
MULTI_USER = "[Install]\nWantedBy=multi-user.target\n"
UNITS = {
    "site-agent.service": f"{SLEEP}{MULTI_USER}Also=site-on-demand.socket\nAlias=agent.service\n",
    "site-on-demand.service": SLEEP,
    "site-on-demand.socket": "[Socket]\nListenStream=/run/site-on-demand\n[Install]\nWantedBy=sockets.target\n",
    "site-nightly.service": "[Service]\nType=oneshot\nExecStart=/bin/true\n",
    "site-nightly.timer": "[Timer]\nOnCalendar=daily\n[Install]\nWantedBy=timers.target\n",
    "site-old.service": SLEEP + MULTI_USER,
    "site-broken.service": f"[Service]\nExecStart=/bin/false\n{MULTI_USER}",
    "site-flaps.service": f"[Service]\nExecStart=/bin/sleep 2\nRestart=always\nRestartSec=1\n{MULTI_USER}",
    "site-elsewhere.service": f"[Unit]\nConditionPathExists=/nowhere\n{SLEEP}{MULTI_USER}",
}
WANTED = {
    "site-agent": "active",
    "agent": "active",
    "site-on-demand": "active",
    "site-nightly.timer": "masked",
    "site-old": "inactive",
}
LIVE = "systemctl is-active site-agent site-on-demand.socket site-on-demand site-nightly.timer site-old || true"


def units(guest: Guest, *started: str) -> None:
    for name, text in UNITS.items():
        guest.put(text, f"{VENDOR}/{name}")
    guest.sh(f"systemctl daemon-reload; systemctl enable --quiet {' '.join(started)}")
    guest.run(f"systemctl start {' '.join(started)}")


def test_services_are_made_active_inactive_and_masked_and_back_and_a_boot_brings_the_same(guest: Guest) -> None:
    units(guest, "site-nightly.timer", "site-old.service")
    etc, live = guest.sh(ETC), guest.sh(LIVE)
    profile(guest, {"name": "node", "services": WANTED})
    assert live.split() == ["inactive", "inactive", "inactive", "active", "active"]
    before = {key: f["status"] for key, f in findings(guest).items()}
    assert (before["site-agent.service"], before["site-old.service"]) == ("fail", "fail")
    said = hostprep(guest, "plan")[1]
    assert "ln -sfn /dev/null /etc/systemd/system/site-nightly.timer" in said
    assert "--allow-disruption services" in said

    applied(guest, "--allow-disruption services")
    assert {f["status"] for f in findings(guest).values()} == {"pass"}
    assert guest.sh(LIVE).split() == ["active", "inactive", "active", "inactive", "inactive"]
    reverted(guest)
    assert guest.sh(ETC) == etc
    assert guest.sh(LIVE) == live

    profile(guest, {"name": "node", "services": WANTED})
    applied(guest, "--allow-disruption services")
    guest.reboot()
    assert {f["status"] for f in findings(guest).values()} == {"pass"}
    assert guest.sh(LIVE).split() == ["active", "active", "inactive", "inactive", "inactive"]


def test_what_fails_flaps_ends_or_is_not_for_this_host_is_not_active_and_says_why(guest: Guest) -> None:
    units(guest, "site-broken.service", "site-flaps.service", "site-elsewhere.service")
    guest.sh("systemctl start site-nightly.service")
    guest.sh("timeout 60 sh -c 'until [ $(systemctl show --value -p NRestarts site-flaps) -gt 1 ]; do sleep 0.2; done'")
    guest.sh(ACTIVE.format("site-flaps"))
    wanted = dict.fromkeys(("site-broken", "site-flaps", "site-elsewhere", "site-nightly"), "active")
    profile(guest, {"name": "node", "services": {**wanted, "failed": "none"}})
    found = findings(guest)
    assert {f["status"] for f in found.values()} == {"fail"}, found
    said = {key: f["message"] for key, f in found.items()}
    assert "is failed (failed)" in said["site-broken.service"]
    assert "restarted" in said["site-flaps.service"]
    assert "its conditions are not met" in said["site-elsewhere.service"]
    assert "does its work, ends" in said["site-nightly.service"]
    assert found["failed"]["current"] == ["site-broken.service"]

    guest.sh("systemctl stop site-broken site-flaps; systemctl reset-failed")
    guest.sh(f"ln -s {VENDOR}/site-old.service /etc/systemd/system/multi-user.target.wants/")  # no daemon-reload
    profile(guest, {"name": "node", "services": {"site-old": "inactive", "failed": "none"}})
    found = findings(guest)
    assert (found["failed"]["status"], found["site-old.service"]["status"]) == ("pass", "unknown")
    assert state(guest, "site-old") == "inactive"
