"""A Docker daemon and a podman storage of a test's own, made of files: nothing is pulled, no network is touched."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from one_at_a_time import machine_to_itself

from hostprep.host import Host, process

MB = 1_000_000
START_S = 30.0


class EngineHost(Host):
    """This machine, but every engine's command is of the test's own engine; users are those of a test."""

    def __init__(self, options: Sequence[str], home: Path) -> None:
        super().__init__(run=self._of_ours)
        self.options = tuple(options)
        self.home = home

    def _of_ours(self, argv: Sequence[str], timeout: float, stdin: bytes = b"") -> str:
        if argv[0] in ("docker", "podman"):
            argv = [argv[0], *self.options, *argv[3 if argv[1] == "--context" else 1 :]]
        if argv[:2] == ("getent", "passwd"):
            return f"{argv[2]}:x:{os.getuid()}:{os.getgid()}::{self.home}:/bin/sh\n"
        return process.run(argv, timeout, stdin)


def archive(*sizes: int) -> bytes:
    """A tar of one file for each size, whose content is that of no other size."""
    with io.BytesIO() as data:
        with tarfile.open(fileobj=data, mode="w") as tar:
            for size in sizes:
                info = tarfile.TarInfo(f"data-{size}")
                info.size = size
                tar.addfile(info, io.BytesIO(os.urandom(size)))
        return data.getvalue()


@contextlib.contextmanager
def dockerd() -> Iterator[EngineHost]:
    """A daemon in a mount and network namespace of its own; all that it makes is below one directory."""
    for program in ("dockerd", "docker", "unshare"):
        if process.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if os.geteuid() != 0:
        pytest.skip("a Docker daemon needs root")
    with machine_to_itself():
        yield from _dockerd()


def _dockerd() -> Iterator[EngineHost]:
    folder = Path(tempfile.mkdtemp(prefix="hostprep-docker-"))  # the path of a socket may have 107 bytes only
    (folder / "daemon.json").write_text("{}")
    socket = f"unix://{folder}/docker.sock"
    words = f"--config-file {folder}/daemon.json --data-root {folder}/root --exec-root {folder}/exec --host {socket}"
    words += f" --pidfile {folder}/pid --bridge none --iptables=false --ip-forward=false --ip-masq=false"
    words += " --storage-driver overlay2"
    # Its plugins have a fixed place in /run, its key one in /etc/docker: there it has directories of its own.
    script = "set -e; mount --make-rprivate /; for d in /run /etc/docker; do test -d $d || continue; "
    script += f"mount -t tmpfs tmpfs $d; done; exec dockerd {words}"
    made = [] if os.path.exists("/etc/docker") else ["/etc/docker"]
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen(
            ["unshare", "--mount", "--net", "sh", "-c", script], stdout=log, stderr=log, start_new_session=True
        )
    try:
        host = EngineHost(["--host", socket], folder)
        end = time.monotonic() + START_S
        while not _answers(host):
            if daemon.poll() is not None or time.monotonic() > end:
                last = (folder / "log").read_text(errors="replace").strip().splitlines()[-1:]
                pytest.skip(f"no Docker daemon can run here: {' '.join(last)[:200]}")
            time.sleep(0.1)
        yield host
    finally:
        with contextlib.suppress(ProcessLookupError):
            daemon.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(daemon.pid, signal.SIGKILL)  # its containerd too
        daemon.wait(5)
        for path in (str(folder), *made):
            shutil.rmtree(path, ignore_errors=True)


def _answers(host: Host) -> bool:
    try:
        return bool(host.run("docker", "version", "--format", "{{.Server.Version}}", timeout=5).strip())
    except Exception:  # noqa: BLE001  # not yet
        return False


@contextlib.contextmanager
def podman() -> Iterator[EngineHost]:
    """A storage of its own."""
    if process.which("podman") is None:
        pytest.skip("podman is not installed")
    if os.geteuid() != 0:
        pytest.skip("podman's storage as hostprep looks at it is root's")
    folder = Path(tempfile.mkdtemp(prefix="hostprep-podman-"))
    options = ["--root", f"{folder}/root", "--runroot", f"{folder}/run", "--storage-driver", "overlay"]
    host = EngineHost([*options, "--tmpdir", f"{folder}/tmp"], folder)
    shared = [path for path in ("/var/lib/containers", "/run/libpod", "/run/containers") if not os.path.exists(path)]
    try:
        try:
            host.run("podman", "info", timeout=20)
        except Exception as e:  # noqa: BLE001
            pytest.skip(f"podman does not work here: {e}")
        yield host
    finally:
        subprocess.run(["umount", "--recursive", f"{folder}/root/overlay"], capture_output=True, check=False)
        for path in (str(folder), *shared):  # caches of podman are in fixed places
            shutil.rmtree(path, ignore_errors=True)


def image(host: Host, engine: str, name: str, *sizes: int) -> str:
    """An image of one layer of new files of these sizes; its id."""
    said = host.run(engine, "import", "-", name, timeout=60, stdin=archive(*sizes))
    return said.strip().splitlines()[-1].removeprefix("sha256:")
