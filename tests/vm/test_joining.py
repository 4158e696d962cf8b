"""Rows J2 and K19 with systemd as pid 1: what waits for a host starts when it is ready, and not before."""

from __future__ import annotations

import json
from typing import Any

from vm import Guest
from vm.admin import ACTIVE, SLOW, applied, hostprep, installed, profile, state
from vm.story import thorough

PF, TAKEN = "0000:41:00.0", "0000:81:00.0"
BY_HAND = "hostprep check --no-publish --format json"
CHANGING = ("hardware/free/", "hugepages/host-memory", "hugepages/memory/available", "swap/memory-available")
PUBLISHED = "timeout 120 sh -c 'until [ $(stat -c %Y /run/hostprep/report.json) -gt {} ]; do sleep 0.2; done'"


def report(guest: Guest) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(guest.get("/run/hostprep/report.json"))
    return data


# One who is told takes long: he holds up the unit that tells.
HOLD = """[Service]
ExecStart=-/bin/sh -c '[ ! -p /run/hold ] || read -r line </run/hold'
"""
HELD = """
mkfifo /run/hold /run/release
(exec 3>/run/hold; touch /run/held; read -r line </run/release; rm /run/hold) >/dev/null 2>&1 &
"""


def test_k19_j2_a_service_starts_as_soon_as_the_host_is_ready_and_jobs_go_on_when_it_is_not(guest: Guest) -> None:
    """In a boot that began not ready. What a boot does is in test_story.py."""
    profile(guest, {"name": "node", "swap": "disabled", "hugepages": {"2MiB": 4}})
    guest.sh("mkdir -p /etc/systemd/system/hostprep-publish.service.d")
    guest.put(HOLD, "/etc/systemd/system/hostprep-publish.service.d/hold.conf")
    installed(guest)
    guest.sh(f"systemctl stop hostprep-check.timer; {HELD}")
    assert hostprep(guest, "check")[0] == 1
    assert guest.run("systemctl start pbs.service").returncode == 1
    guest.sh("timeout 120 sh -c 'until [ -e /run/held ]; do sleep 0.2; done'")

    applied(guest)  # nobody starts pbs: the report that says ready does, though the one before is still being told
    guest.sh("echo go >/run/release")
    guest.sh(ACTIVE.format("pbs.service"))
    assert state(guest, "hostprep-ready.target") == "active"
    assert (report(guest)["ready"], report(guest)["boot_id"]) == (True, guest.boot_id())
    assert guest.sh("hostprep wait --timeout 0").startswith("vm: READY")
    guest.sh("echo 0 > /proc/sys/vm/nr_hugepages")
    assert hostprep(guest, "check")[0] == 4
    assert state(guest, "pbs") == "active", "jobs go on"
    assert "may be requested by dependency only" in guest.run("systemctl stop hostprep-ready.target").stderr


@thorough
def test_a_service_that_its_admin_has_disabled_is_not_started_by_the_gate(guest: Guest) -> None:
    profile(guest, {"name": "node", "swap": "disabled"})
    installed(guest)
    guest.sh("systemctl start hostprep-ready.target")
    guest.sh(ACTIVE.format("pbs.service"))

    guest.sh("systemctl disable --now --quiet pbs.service")
    assert not guest.sh("find /etc/systemd/system -name pbs.service -type l")
    guest.sh("systemctl enable --quiet pbs.service")
    assert guest.sh("cd /etc/systemd/system; find -name pbs.service -type l | sort").split() == [
        "./hostprep-ready.target.wants/pbs.service",
        "./multi-user.target.wants/pbs.service",
    ]

    before = guest.sh("stat -c %Y /run/hostprep/report.json")
    guest.sh("systemctl start hostprep-check.service")
    guest.sh(PUBLISHED.format(before))
    guest.sh("systemctl start hostprep-publish.service")
    assert state(guest, "pbs") == "inactive", "what was stopped by hand stays so"

    code, said = hostprep(guest, "uninstall systemd")
    assert code == 0, said
    assert guest.sh("find /etc/systemd /usr/local/lib -name '*hostprep*'") == ""
    guest.sh("systemctl daemon-reload && systemctl start pbs.service")
    assert state(guest, "pbs") == "active"


def test_the_unit_sees_what_root_sees(guest: Guest) -> None:
    """Its sandbox hides nothing that is looked at: cards, VFs, other network namespaces, modules, the kernel's log."""
    sections = {
        "hardware": {"cpus": 1, "ethernet": 1},
        "system": {"modules": {"forbidden": ["nouveau"]}},
        "swap": "disabled",
        "kernel_args": ["iommu=pt"],
        "hugepages": {"2MiB": 4, "default": "2MiB"},
        "nic_vfs": [{"pf": PF, "vfs": 2}, {"pf": TAKEN, "vfs": 2}],
        "gpu": {"count": 1, "driver": "loaded"},
        "gpu_containers": "any",
        "services": {"dbus": "active", "failed": "none"},
        "software": {"mstconfig": "any", "python3": {"version": ">=3", "users": ["root", "nobody"]}},
    }
    profile(guest, {"name": "node", **sections})
    guest.sh(f"""
        echo 2 > /sys/bus/pci/devices/{PF}/sriov_numvfs; udevadm settle
        ip netns add worker; ip link set $(ls /sys/bus/pci/devices/{TAKEN}/net) netns worker
    """)
    installed(guest)
    guest.sh("systemctl start hostprep-check.service")
    seen, there = flat(report(guest)), flat(json.loads(guest.run(BY_HAND, timeout=SLOW).stdout))
    different = {key: (seen.get(key), there.get(key)) for key in seen.keys() | there if seen.get(key) != there.get(key)}
    assert not {key: sides for key, sides in different.items() if not key.startswith(CHANGING)}
    assert {key.partition("/")[0] for key in seen} == set(sections)


def flat(data: dict[str, Any]) -> dict[str, Any]:
    """The facts of a report by check/key."""
    return {f"{check}/{key}": fact for check, facts in data["facts"].items() for key, fact in facts.items()}
