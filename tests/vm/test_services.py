"""Services of a real systemd: started and enabled, stopped with every link, masked, and back."""

from __future__ import annotations

from vm import Guest
from vm.admin import ETC, applied, findings, hostprep, missing, profile, reverted, state, statuses

UNITS = {
    "works.service": "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n",
    "fails.service": "[Service]\nExecStart=/bin/false\n[Install]\nWantedBy=multi-user.target\n",
    "pulled.service": "[Service]\nExecStart=/bin/sleep infinity\n",
    "asked.service": "[Service]\nExecStart=/bin/sleep infinity\n",
    "asked.socket": "[Socket]\nListenStream=/run/asked\n[Install]\nWantedBy=sockets.target\n",
}
LINKED = """
mkdir -p /etc/systemd/system/site.target.wants
printf '[Unit]\\nWants=pulled.service\\n[Install]\\nWantedBy=multi-user.target\\n' >/etc/systemd/system/site.target
ln -s ../works.service /etc/systemd/system/site.target.wants/works.service
systemctl daemon-reload; systemctl enable -q --now site.target asked.socket; systemctl start fails.service || true
"""


def test_services_are_what_a_profile_says_now_and_at_the_next_boot_and_come_back(guest: Guest) -> None:
    guest.sh("mkdir -p /usr/local/lib/systemd/system")
    for name, text in UNITS.items():
        guest.put(text, f"{'/usr/local/lib' if name.startswith('pulled') else '/etc'}/systemd/system/{name}")
    guest.sh(LINKED)
    before = guest.sh(ETC)

    profile(guest, {"services": {"works": "active", "pulled": "active", "asked": "active", "failed": "none"}})
    found = findings(guest)
    seen = {key: found[key]["status"] for key in found}
    assert seen == {"works.service": "pass", "pulled.service": "pass", "asked.service": "pass", "failed": "fail"}
    assert found["failed"]["current"] == ["fails.service"]
    guest.sh("systemctl stop asked.socket")
    assert findings(guest)["asked.service"]["status"] == "pending-reboot"
    guest.sh("systemctl reset-failed")

    profile(guest, {"services": {"works": "inactive", "pulled": "masked", "fails": "active"}})
    code, said = hostprep(guest, "apply --yes --allow-disruption services")
    assert code == 5, "one of them does not start"
    assert not missing(said, ["systemctl start fails.service"]), said
    assert (state(guest, "works"), state(guest, "pulled")) == ("inactive", "inactive")
    assert guest.sh("find /etc/systemd/system -name works.service -type l") == ""
    assert "masked" in guest.run("systemctl start pulled.service").stderr

    guest.sh("cd /etc/systemd/system; cp fails.service /root; sed -i s,/bin/false,'/bin/sleep infinity', fails.service")
    guest.sh("systemctl daemon-reload")
    applied(guest, "--allow-disruption services")
    assert statuses(guest) == {"pass"}
    assert guest.sh("systemctl is-enabled fails.service") == "enabled"

    guest.sh("cp /root/fails.service /etc/systemd/system")
    reverted(guest)
    assert guest.sh(ETC) == before
    assert (state(guest, "works"), state(guest, "pulled"), state(guest, "fails")) == ("active", "active", "inactive")
