"""Rows K13 and J4 as a user has them: docker cannot pull from the site's registry; `hostprep apply`; it can.

dockerd, docker-registry and hostprep itself run in namespaces of their own. The registry has an address that is not of
loopback, since Docker verifies nothing there.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker_engine import archive
from one_at_a_time import ended_with, machine_to_itself
from registry_server import Authority, fingerprint

from hostprep.host import process

ADDRESS = "10.231.0.1"
REGISTRY, IMAGE = f"{ADDRESS}:5000", f"{ADDRESS}:5000/site/tiny:1"
START_S = 60
# Docker's plugins have a fixed place in /run, its key one in /etc/docker: there it has directories of its own.
SCRIPT = """
set -e
mount --make-rprivate /
for d in /run /etc/docker; do mkdir -p $d; mount -t tmpfs tmpfs $d; done
ip link set lo up && ip address add {address}/32 dev lo
docker-registry serve {folder}/registry.yml &
cd {folder}/web && {python} -m http.server --bind {address} 8000 &
exec dockerd --data-root {folder}/root --exec-root /run/docker --pidfile {folder}/pid --storage-driver overlay2 \\
    --bridge none --iptables=false --ip-forward=false --ip-masq=false
"""
CONFIG = """
version: 0.1
log: {{accesslog: {{disabled: true}}, level: error}}
storage: {{filesystem: {{rootdirectory: {folder}/images}}}}
http: {{addr: '{registry}', tls: {{certificate: {pair.certificate}, key: {pair.key}}}}}
"""
READY = """
import socket, subprocess, time
for port in (5000, 8000):
    while True:
        try: socket.create_connection(("{address}", port), 1).close(); break
        except OSError: time.sleep(0.1)
while subprocess.run(["docker", "version"], capture_output=True).returncode: time.sleep(0.1)
"""


class Site:
    """Where the engine and the registry are."""

    def __init__(self, folder: Path, outside: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        (inner,) = Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text().split()
        self.enter = ("nsenter", "--target", inner, "--mount", "--net", "--pid", "--")

    def run(self, *argv: str, stdin: bytes = b"", timeout: float = 60) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "HOSTPREP_STATE_DIR": f"{self.folder}/state",
            "HOSTPREP_RUN_DIR": f"{self.folder}/report",
            "COLUMNS": "500",
        }
        done = subprocess.run(
            [*self.enter, *argv], input=stdin, capture_output=True, timeout=timeout, env=environment, check=False
        )
        return subprocess.CompletedProcess(argv, done.returncode, done.stdout.decode(), done.stderr.decode())

    def hostprep(self, *words: str) -> tuple[int, str]:
        done = self.run(sys.executable, "-m", "hostprep", *words, "--profile", f"{self.folder}/profile.yaml")
        return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def site(tmp_path: Path, authority: Authority) -> Iterator[Site]:
    for program in ("dockerd", "docker", "docker-registry", "unshare", "nsenter", "ip"):
        if process.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if os.geteuid():
        pytest.skip("a Docker daemon needs root")
    pair = authority.issue("registry", f"IP:{ADDRESS}")
    for name in ("web", "state", "report"):
        (tmp_path / name).mkdir()
    (tmp_path / "web" / "ca.crt").write_text(authority.pair.pem)
    (tmp_path / "registry.yml").write_text(CONFIG.format(folder=tmp_path, registry=REGISTRY, pair=pair))
    script = SCRIPT.format(folder=tmp_path, address=ADDRESS, python=sys.executable)
    made = not os.path.exists("/etc/docker")
    argv = ["unshare", "--mount", "--net", "--pid", "--mount-proc", "--fork", "--kill-child", "sh", "-c", script]
    with contextlib.ExitStack() as stack:
        stack.enter_context(machine_to_itself())
        log = stack.enter_context((tmp_path / "log").open("wb"))
        outside = subprocess.Popen(argv, stdout=log, stderr=log)
        if made:
            stack.callback(lambda: os.path.isdir("/etc/docker") and os.rmdir("/etc/docker"))
        stack.enter_context(ended_with(outside))
        yield _started(tmp_path, outside)


def _started(folder: Path, outside: subprocess.Popen[bytes]) -> Site:
    while not Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text():
        assert outside.poll() is None, (folder / "log").read_text()
    there = Site(folder, outside)
    done = there.run("timeout", str(START_S), sys.executable, "-c", READY.format(address=ADDRESS), timeout=START_S + 10)
    if done.returncode:
        last = (folder / "log").read_text(errors="replace").strip().splitlines()[-1:]
        pytest.skip(f"no Docker daemon can run here: {' '.join(last)[:200]}")
    return there


def test_k13_j4_docker_pulls_from_the_sites_registry_once_hostprep_has_been_there(
    site: Site, authority: Authority, tmp_path: Path
) -> None:
    entry = f"host: '{REGISTRY}', ca: 'http://{ADDRESS}:8000/ca.crt'"
    profile = tmp_path / "profile.yaml"
    profile.write_text(f"name: node\nregistry: [{{{entry}}}]\n")
    assert site.run("docker", "import", "-", IMAGE, stdin=archive(1000)).returncode == 0
    refused = site.run("docker", "push", IMAGE)
    assert refused.returncode == 1
    assert "certificate signed by unknown authority" in refused.stderr

    code, said = site.hostprep("apply", "--yes")
    assert code == 1
    assert "authority that is not trusted (issued by Site CA)" in said
    assert f"sha256: {fingerprint(authority.pair)}" in said, "shown, and asked for"
    assert site.run("ls", "/etc/docker/certs.d").returncode, "and nothing is done"

    profile.write_text(f"name: node\nregistry: [{{{entry}, sha256: '{fingerprint(authority.pair)}', expires: 14d}}]\n")
    code, said = site.hostprep("apply", "--yes")
    assert code == 0, said
    pushed = site.run("docker", "push", IMAGE)
    assert pushed.returncode == 0, pushed.stderr
    assert site.run("docker", "image", "rm", IMAGE).returncode == 0
    assert site.run("docker", "pull", IMAGE).returncode == 0

    assert site.run(sys.executable, "-m", "hostprep", "revert", "--yes").returncode == 0
    assert site.run("docker", "pull", IMAGE).returncode == 1
