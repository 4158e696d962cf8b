"""Rows J2 and K19 with systemd as pid 1: what waits for a host starts when it is ready, and not before."""

from __future__ import annotations

import json
from typing import Any

from hostprep import packages
from vm import Guest
from vm.admin import ACTIVE, SLOW, applied, hostprep, installed, profile, state

PF, TAKEN = "0000:41:00.0", "0000:81:00.0"
SAYS = """timeout 120 sh -c 'until grep -qx "{}" {}; do sleep 0.2; done'"""
TEXTFILES = "/srv/textfiles"
BY_HAND = "hostprep check --no-publish --format json"
CHANGING = ("hardware/free/", "hugepages/host-memory", "hugepages/memory/available", "swap/memory-available")
PUBLISHED = "timeout 120 sh -c 'until [ $(stat -c %Y /run/hostprep/report.json) -gt {} ]; do sleep 0.2; done'"


def report(guest: Guest) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(guest.get("/run/hostprep/report.json"))
    return data


def test_k19_j2_a_service_that_waits_starts_when_the_host_is_ready_and_not_before(guest: Guest) -> None:
    profile(guest, {"name": "node", "swap": "disabled", "hugepages": {"2MiB": 4}})
    guest.sh(f"mkdir -p {TEXTFILES} {packages.FEATURES}")
    guest.sh(f"hostprep install prometheus nfd --textfile-directory {TEXTFILES} 2>&1")
    guest.put("hostprep_ready 1\n", f"{TEXTFILES}/hostprep.prom")  # of an earlier boot
    installed(guest)

    guest.reboot(degraded=True)
    guest.sh(SAYS.format("hostprep_ready 0", f"{TEXTFILES}/hostprep.prom"))
    guest.sh(SAYS.format("hostprep.ready=false", f"{packages.FEATURES}/hostprep"))
    assert [state(guest, unit) for unit in ("multi-user.target", "hostprep-ready.target", "pbs")] == [
        "active",
        "inactive",
        "inactive",
    ]
    assert guest.sh("systemctl --failed --no-legend --plain").split()[0] == "hostprep-ready.service"
    assert "hugepages/2MiB: wanted >= 4, found 0" in guest.sh("journalctl -b -o cat -u hostprep-ready.service")
    assert report(guest)["boot_id"] == guest.boot_id()
    for verb in ("start", "restart"):
        refused = guest.run(f"systemctl {verb} pbs.service")
        assert (refused.returncode, state(guest, "pbs")) == (1, "inactive")

    applied(guest)  # nobody starts pbs: the report that says ready does
    guest.sh(ACTIVE.format("pbs.service"))
    assert state(guest, "hostprep-ready.target") == "active"
    guest.sh(SAYS.format("hostprep_ready 1", f"{TEXTFILES}/hostprep.prom"))
    guest.sh(SAYS.format("hostprep.ready=true", f"{packages.FEATURES}/hostprep"))
    guest.sh("echo 0 > /proc/sys/vm/nr_hugepages")
    assert hostprep(guest, "check")[0] == 4
    assert state(guest, "pbs") == "active", "jobs go on"
    assert "may be requested by dependency only" in guest.run("systemctl stop hostprep-ready.target").stderr

    guest.reboot()
    assert [state(guest, unit) for unit in ("hostprep-ready.target", "pbs", "hostprep-check.timer")] == ["active"] * 3
    assert report(guest)["ready"] is True
    assert report(guest)["boot_id"] == guest.boot_id()
    entered = "systemctl show --value -p ActiveEnterTimestampMonotonic"
    checked, reached, started = (
        int(guest.sh(f"{entered} {unit}"))
        for unit in ("hostprep-ready.service", "hostprep-ready.target", "pbs.service")
    )
    assert checked <= reached <= started
    assert guest.sh("hostprep wait --timeout 0").startswith("vm: READY")


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
