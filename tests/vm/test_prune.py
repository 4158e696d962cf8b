"""Row J6 with systemd as pid 1: what the weekly service may do is enough for what it has to do."""

from __future__ import annotations

import json

from vm import Guest
from vm.admin import findings, hostprep, profile

FILES = ("/root/.docker/config.json", "/home/alice/.docker/config.json")
LOGIN = json.dumps({"auths": {"harbor.example.com": {"auth": "YWxpY2U6c2VjcmV0"}}, "detachKeys": "ctrl-e,e"})
HELPER = """#!/bin/sh
case $1 in
  list) cat ~/.docker/known ;;
  erase) echo "$(id -un) $(cat)" >~/.docker/erased && echo '{}' >~/.docker/known ;;
esac
"""
USERS = f"""
useradd --create-home alice
for each in root:/root alice:/home/alice; do
    install -d -m 700 -o ${{each%:*}} ${{each#*:}}/.docker
    echo '{LOGIN}' >${{each#*:}}/.docker/config.json
    chown ${{each%:*}} ${{each#*:}}/.docker/config.json; chmod 600 ${{each#*:}}/.docker/config.json
done
chmod 755 /usr/local/bin/docker-credential-memory
su alice -c 'echo "{{\\"mirror.example.com\\": \\"alice\\"}}" >~/.docker/known'
sed -i 's/"detachKeys"/"credHelpers": {{"mirror.example.com": "memory"}}, &/' /home/alice/.docker/config.json
"""


def test_j6_the_weekly_service_takes_away_what_users_left_behind(guest: Guest) -> None:
    profile(guest, {"name": "node", "containers": {"logins": {"users": ["alice"]}}})
    guest.put(HELPER, "/usr/local/bin/docker-credential-memory")
    guest.sh(USERS)
    found = findings(guest)
    assert {f["status"] for f in found.values()} == {"fail"}
    assert "mirror.example.com" in found["logins/alice"]["message"]

    said = guest.sh("hostprep install prune 2>&1")
    guest.sh(" && ".join(line.strip() for line in said.splitlines() if line.startswith("  systemctl ")))
    assert guest.sh("systemctl show --value -p NextElapseUSecRealtime hostprep-prune.timer").startswith("Sun ")
    guest.sh("systemctl start hostprep-prune.service", timeout=400)
    for path in FILES:
        config = json.loads(guest.get(path))
        assert config["auths"] == {}
        assert config["detachKeys"] == "ctrl-e,e", "what is no login stays"
    assert guest.sh(f"stat -c '%a %U' {' '.join(FILES)}").splitlines() == ["600 root", "600 alice"]
    assert guest.sh("cat /home/alice/.docker/erased") == "alice mirror.example.com", "as alice, not as root"
    assert {f["status"] for f in findings(guest).values()} == {"pass"}
    assert guest.sh("grep -rl YWxpY2U6 /var/lib/hostprep /run/hostprep || :") == "", "no journal or report has a secret"

    code, told = hostprep(guest, "uninstall prune")
    assert code == 0, told
    guest.sh("systemctl stop hostprep-prune.timer && systemctl daemon-reload")
    assert guest.sh("systemctl --failed --no-legend --plain") == ""
