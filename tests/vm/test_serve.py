"""Row K19 with systemd as pid 1: the endpoint starts when somebody asks, and may do nothing but answer."""

from __future__ import annotations

import re

from vm import Guest
from vm.admin import hostprep, profile

ASK = """
python3 - <<'END'
import http.client
connection = http.client.HTTPConnection("127.0.0.1", 9617, timeout=60)
connection.request("GET", "{}")
answer = connection.getresponse()
print(answer.status, answer.read().decode())
END
"""
PID = "systemctl show --value -p MainPID hostprep-serve.service"


def asked(guest: Guest, path: str) -> str:
    return guest.sh(ASK.format(path))


def test_k19_the_report_is_served_by_somebody_who_may_do_nothing_else(guest: Guest) -> None:
    profile(guest, {"name": "node", "swap": "disabled"})
    said = guest.sh("hostprep install serve 2>&1")
    guest.sh(" && ".join(line.strip() for line in said.splitlines() if line.startswith("  systemctl ")))
    assert guest.sh(PID).strip() == "0", "nobody has asked yet"

    assert asked(guest, "/healthz").startswith("503 not ready: there is no report at")
    assert "hostprep_ready 0\n" in asked(guest, "/metrics")
    assert hostprep(guest, "check")[0] == 0
    assert asked(guest, "/healthz").startswith("200 READY")
    metrics = asked(guest, "/metrics")
    assert "hostprep_ready 1\n" in metrics
    assert 'hostprep_profile_info{profile="node"} 1' in metrics
    assert hostprep(guest, "check", "--profile", "baseline")[0] in (0, 1, 3, 4)
    assert "of another profile" in asked(guest, "/healthz")

    pid = guest.sh(PID).strip()
    status = guest.sh(f"cat /proc/{pid}/status")
    assert re.search(r"^CapBnd:\s+0+$", status, re.M)
    assert re.search(r"^Uid:\s+[1-9]", status, re.M)
    assert guest.sh(f"ls /sys/class/net | wc -l; nsenter -t {pid} -n ip -brief link").count("lo ") == 1
    assert guest.sh("journalctl -o cat -p warning -u hostprep-serve.service") == ""

    guest.sh(f"kill -9 {pid}")
    assert asked(guest, "/healthz").startswith("503 "), "and it is started again"
    code, told = hostprep(guest, "uninstall serve")
    assert code == 0, told
    guest.sh("systemctl stop hostprep-serve.socket hostprep-serve.service && systemctl daemon-reload")
    assert guest.sh("systemctl --failed --no-legend --plain") == ""
