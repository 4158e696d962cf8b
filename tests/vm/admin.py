"""What an admin does with hostprep in a guest, and what it says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vm import Guest

SLOW = 600.0  # under emulation an apply takes half a minute, and more with a card and beside another machine
# Every file, link and folder of /etc, with what is in it: what a revert has to give back. The profile is not ours.
ETC = """
find /etc -xdev -type f -not -path '/etc/hostprep/profile.yaml' -printf '%p %m %u ' -exec md5sum {} +
find /etc -xdev -type l -printf '%p %l\\n'; find /etc -xdev -type d
"""

# What stands in for pbs_mom: a service that is started at boot, and knows nothing of hostprep.
PBS = """
[Unit]
Description=Stand-in for pbs_mom
[Service]
ExecStart=/bin/sleep infinity
[Install]
WantedBy=multi-user.target
"""
ACTIVE = "timeout 120 sh -c 'until systemctl --quiet is-active {}; do sleep 0.2; done'"


def profile(guest: Guest, sections: Mapping[str, Any]) -> None:
    """This is the profile from now on."""
    guest.sh("mkdir -p /etc/hostprep")
    guest.put(json.dumps(sections), "/etc/hostprep/profile.yaml")
    guest.sh("chmod 0644 /etc/hostprep/profile.yaml")


def hostprep(guest: Guest, *words: str) -> tuple[int, str]:
    """The exit status of a command, and all that it said, on one line: tables and wrapped lines read alike."""
    done = guest.run(f"hostprep {' '.join(words)}", timeout=SLOW)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def applied(guest: Guest, *words: str) -> None:
    code, said = hostprep(guest, "apply --yes", *words)
    assert code == 0, said


def reverted(guest: Guest) -> None:
    """All is taken back, and the profile is gone."""
    code, said = hostprep(guest, "revert --yes")
    assert code == 0, said
    guest.sh("rm /etc/hostprep/profile.yaml; rmdir /etc/hostprep")


def findings(guest: Guest) -> dict[str, dict[str, Any]]:
    """What check finds, by key."""
    done = guest.run("hostprep check --format json", timeout=SLOW)
    assert done.stdout, done.stderr
    return {f["key"]: f for f in json.loads(done.stdout)["findings"]}


def statuses(guest: Guest) -> set[str]:
    return {f["status"] for f in findings(guest).values()}


def missing(said: str, words: Sequence[str]) -> list[str]:
    """Those of the words that a text lacks."""
    return [word for word in words if word not in said]


def state(guest: Guest, unit: str) -> str:
    return guest.run(f"systemctl is-active {unit}").stdout.strip()


def installed(guest: Guest) -> None:
    """As `hostprep install systemd` says it: install, then what it prints under `next:`."""
    guest.put(PBS, "/etc/systemd/system/pbs.service")
    guest.sh("systemctl enable --quiet pbs.service")
    said = guest.sh("hostprep install systemd --gate pbs.service 2>&1")
    following = [line.strip() for line in said.splitlines() if line.startswith("  systemctl ")]
    assert len(following) == 4, said  # the gate wants a daemon-reload too
    guest.sh(" && ".join(following))
