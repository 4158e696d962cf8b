"""OpenPBS's own daemons on one node, in namespaces of their own: this machine's network, processes and files stay.

OpenPBS is in no distribution: it is what `make install` of its sources has put into /opt/pbs.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest
from fake_pbs import HOOK
from one_at_a_time import ended_with, machine_to_itself

T = TypeVar("T")
NODE = "node1"
PATIENCE_S = 90.0  # pbs_mom may leave a periodic hook alone for 48 s when the server comes back
EXEC = Path("/opt/pbs")
PROGRAMS = ("unshare", "nsenter", "setpriv", "ip", "postgres")

# OpenPBS does not live on 127/8 (hnls.c passes over it), and refuses a home that others can write to.
# pbs_postinstall writes to /etc and /usr.
SETUP = """
set -e
hostname node1
ip link set lo up
ip addr add 192.0.2.9/32 dev lo
mount --make-rprivate /
mount -t proc proc /proc
for folder in /run /var/spool /var/tmp; do mount -t tmpfs -o mode=755 tmpfs $folder; done
for folder in /etc /usr /var/lib /opt/pbs; do
    mkdir -p /run/over$folder/upper /run/over$folder/work
    mount -t overlay -o lowerdir=$folder,upperdir=/run/over$folder/upper,workdir=/run/over$folder/work overlay $folder
done
printf '127.0.0.1 localhost\\n192.0.2.9 node1\\n' >/etc/hosts
echo 'user:x:4242:4242::/tmp:/bin/sh' >>/etc/passwd
mkdir -p /run/postgresql /run/hostprep
install -d -m 1777 /run/job
chown postgres: /run/postgresql
rm -rf /etc/hostprep /var/lib/hostprep
mount --bind "$1/run" /run/hostprep
PBS_SERVER=node1 /opt/pbs/libexec/pbs_postinstall server '' /opt/pbs /var/spool/pbs postgres
sed -i 's/PBS_START_MOM=0/PBS_START_MOM=1/' /etc/pbs.conf
echo '$logevent 0xffffffff' >>/var/spool/pbs/mom_priv/config
/opt/pbs/libexec/pbs_init.d start
qmgr -c 'set server scheduler_iteration=1'
touch "$1/up"
while :; do sleep 3600 & wait $!; done  # the first process: it reaps what the daemons leave
"""


class Cluster(NamedTuple):
    """One node and its server."""

    pid: int  # of a process within the namespaces
    folder: Path
    run_dir: Path  # where the node's report is

    def run(self, *argv: str, check: bool = True) -> str:
        """What a program says within."""
        command = ["nsenter", "-t", str(self.pid), "-a", "--wd=/", "env", f"PATH={path()}", *argv]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout

    def sh(self, script: str) -> str:
        return self.run("/bin/sh", "-ec", script)

    def qmgr(self, line: str) -> str:
        return self.run("qmgr", "-c", line)

    def join(self) -> None:
        """What `hostprep install pbs` tells an admin to do, word by word but for the frequency."""
        text = HOOK.with_name("qmgr.txt").read_text().replace("@share@", str(HOOK.parent))
        assert "freq=60" in text
        text = text.replace("freq=60", "freq=1")
        self.sh("\n".join(re.findall(r"^ +(qmgr -c .*)", text, re.MULTILINE)))

    def configure(self, text: str) -> None:
        (self.folder / "hostprep.json").write_text(text)
        self.qmgr(f"import hook hostprep application/x-config default {self.folder}/hostprep.json")

    def frequency(self, seconds: int) -> None:
        self.qmgr(f"set hook hostprep freq={seconds}")

    def seen(self) -> tuple[str, str]:
        """The state of the node and its comment, without a signature of ours, as pbsnodes shows them."""
        said = self.run("pbsnodes", "-v", NODE)
        found = dict(re.findall(r"^ +(state|comment) = (.*)", said, re.MULTILINE))
        return found["state"], re.sub(r" #[0-9a-f]{8}$", "", found.get("comment", ""))

    def becomes(self, state: str, comment: str | None = None) -> None:
        self.until(self.seen, lambda seen: seen[0] == state and comment in (None, seen[1]))

    def stays(self, state: str, comment: str) -> None:
        """So it is, and so it is after the hook has been run twice more."""
        runs = self.runs()
        self.until(lambda: self.runs() - runs, lambda more: more >= 2)
        assert self.seen() == (state, comment), self.log()

    def runs(self) -> int:
        """How often mom has run the hook at its interval."""
        return self.sh("cat /var/spool/pbs/mom_logs/*").count(";hostprep;periodic hook accepted")

    def submit(self, script: str) -> str:
        """A job of a user."""
        user = ["setpriv", "--reuid=4242", "--regid=4242", "--clear-groups"]
        return self.run(*user, "qsub", "-o", "/dev/null", "-e", "/dev/null", "--", "/bin/sh", "-c", script).strip()

    def job(self, job: str) -> dict[str, str]:
        said = self.run("qstat", "-xf", job)
        return dict(re.findall(r"^    (job_state|run_count|Exit_status|comment) = (.*)", said, re.MULTILINE))

    def ends(self, daemon: str) -> None:
        """End the server or mom, and wait until it is gone; jobs go on."""
        end = "qterm -t quick" if daemon == "server" else "kill -INT $p"
        self.sh(
            f"p=$(cat /var/spool/pbs/{daemon}_priv/{daemon}.lock); {end}; while [ -d /proc/$p ]; do sleep 0.05; done"
        )

    def starts(self, daemon: str) -> None:
        self.run(f"pbs_{daemon}")

    def until(self, look: Callable[[], T], is_so: Callable[[T], bool]) -> T:
        """Look until it is so; what was then seen."""
        end = time.monotonic() + PATIENCE_S
        while not is_so(seen := look()):
            assert time.monotonic() < end, f"still {seen!r}\n{self.log()}"
            time.sleep(0.2)
        return seen

    def log(self) -> str:
        return self.run(
            "/bin/sh", "-c", "tail -n 25 /var/spool/pbs/mom_logs/* /var/spool/pbs/server_logs/*", check=False
        )


def path() -> str:
    return f"{EXEC}/bin:{EXEC}/sbin:{os.environ['PATH']}"


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster with the hook, whose node has no report. All of it goes in the end."""
    if not (EXEC / "sbin/pbs_server").exists():
        pytest.skip("OpenPBS is not installed in /opt/pbs")
    if os.geteuid() != 0:
        pytest.skip("needs root: OpenPBS's daemons run in namespaces of their own")
    for program in PROGRAMS:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (packages postgresql, util-linux, iproute2)")
    (folder / "run").mkdir(mode=0o755)
    private = ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child"]
    command = [*private, "/bin/bash", "-c", SETUP, "sh", str(folder)]
    with (folder / "setup.log").open("wb") as log:
        environment = {"PATH": path(), "LC_ALL": "C.UTF-8"}
        outside = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
    with machine_to_itself(), ended_with(outside):
        while not (folder / "up").exists():
            assert outside.poll() is None, (folder / "setup.log").read_text()
            time.sleep(0.02)
        children = Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text().split()
        yield Cluster(int(children[0]), folder, folder / "run")
