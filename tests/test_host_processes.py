"""Who has device files open, and which network namespaces there are, on this very machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hostprep.errors import HostError
from hostprep.host import process, processes

ID = "1a2b3c4d5e6f" + "0" * 52
INNER = "f" * 64


@pytest.mark.parametrize(
    ("cgroups", "unit"),
    [
        (f"0::/system.slice/docker-{ID}.scope", "docker 1a2b3c4d5e6f"),
        (f"0::/docker/{ID}", "docker 1a2b3c4d5e6f"),
        (f"12:pids:/docker/{ID}\n1:name=systemd:/docker/{ID}\n0::/", "docker 1a2b3c4d5e6f"),
        (f"0::/docker/{ID}/kubelet.slice/kubepods.slice/cri-containerd-{INNER}.scope", "docker 1a2b3c4d5e6f"),
        (f"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope", "containerd 1a2b3c4d5e6f"),
        (f"0::/kubepods.slice/kubepods-pod1.slice/crio-{ID}.scope", "cri-o 1a2b3c4d5e6f"),
        (f"0::/kubepods/burstable/pod77/{ID}", "container 1a2b3c4d5e6f"),
        (f"0::/machine.slice/libpod-{ID}.scope/container", "podman 1a2b3c4d5e6f"),
        (f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope", "podman 1a2b3c4d5e6f"),
        (r"0::/machine.slice/machine-qemu\x2d3\x2dweb\x2d1.scope/libvirt/emulator", "libvirt web-1"),
        ("0::/lxc.payload.build/init.scope", "lxc build"),
        ("0::/lxc/build", "lxc build"),
        ("0::/system.slice/openvswitch-switch.service", "openvswitch-switch.service"),
        ("0::/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service"),
        ("0::/user.slice/user-1000.slice/session-3.scope", ""),
        ("0::/", ""),
        ("", ""),
        ("garbage", ""),
    ],
)
def test_the_container_vm_or_service_of_a_process(cgroups: str, unit: str) -> None:
    """Where one container is within another (kind), it is the outer one, which the host's own tools know."""
    assert processes.unit(cgroups) == unit


def alone(script: str) -> subprocess.Popen[str]:
    """Run Python with /proc showing its own processes only: this machine's may belong to somebody with more
    capabilities than we have, who cannot be looked into."""
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        pytest.skip("needs root and unshare(1)")
    argv = [unshare, "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", script]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer(script: str) -> list[object]:
    """The JSON that a script prints, run alone."""
    with alone(f"import json\nfrom hostprep.host import Host, processes\nhost = Host()\n{script}") as running:
        out, _ = running.communicate(timeout=60)
    assert running.returncode == 0, out
    found: list[object] = json.loads(out)
    return found


def test_who_has_a_device_open_is_found() -> None:
    """The holders of a VF: `/dev/vfio/12` of a VM, `/dev/infiniband/uverbs0` of an RDMA job."""
    found = answer(
        "import subprocess\n"
        "with subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=open('/dev/full', 'w')) as child:\n"
        "    print(json.dumps([host.open_files(['/dev/ful', '/dev/nothing']), host.open_files(['/dev/nothing'])]))\n"
        "    child.stdin.close()\n"
    )
    assert isinstance(found[0], dict)
    ((path, ((pid, name, unit), *others)),) = found[0].items()
    assert (path, name, unit, others) == ("/dev/full", "cat", "", [])
    assert pid > 1
    assert found[1] == {}


@pytest.fixture
def named_namespace() -> Iterator[str]:
    ip = shutil.which("ip")
    if ip is None or os.geteuid() != 0:
        pytest.skip("needs root and ip(8)")
    name = f"hostprep-test-{os.getpid()}"
    subprocess.run([ip, "netns", "add", name], check=True)
    yield name
    subprocess.run([ip, "netns", "del", name], check=True)


def test_a_named_namespace_and_one_that_a_process_is_in_are_found(named_namespace: str) -> None:
    """A PF that was moved into a container's namespace is gone from ours, and still on this machine."""
    found = answer(
        "import subprocess\n"
        "def cat(*within):  # which answers as soon as it runs\n"
        "    child = subprocess.Popen([*within, 'cat'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)\n"
        "    child.stdin.write(b'here')\n"
        "    return child.stdout.read(4) and child.pid\n"
        f"pids = [cat('unshare', '-n'), cat('ip', 'netns', 'exec', '{named_namespace}')]\n"
        "print(json.dumps([host.namespaces(), *pids, host.namespaces() == host.namespaces()]))\n"
    )
    listed, pid, other, stable = found
    assert isinstance(listed, list)
    by_path = {path: (inode, holder) for path, inode, holder in listed}
    mount = next(path for path in by_path if path.endswith(f"/netns/{named_namespace}"))
    assert by_path[mount] == (os.stat(f"/run/netns/{named_namespace}").st_ino, f"{mount}, pid {other} cat")
    assert by_path[f"/proc/{pid}/ns/net"][1] == f"pid {pid} cat"
    assert os.stat("/proc/self/ns/net").st_ino not in {inode for inode, _ in by_path.values()}
    assert stable


def test_mounted_namespaces_are_read_from_mountinfo() -> None:
    """proc_pid_mountinfo(5): white space in a path is octal; one namespace may be mounted in several places."""
    mountinfo = (
        "22 1 259:1 / / rw shared:1 - ext4 /dev/sda1 rw\n"
        "30 22 0:4 net:[4026532177] /run/netns/b rw shared:2 - nsfs nsfs rw\n"
        "31 22 0:4 net:[4026532177] /run/netns/a\\040b rw shared:2 - nsfs nsfs rw\n"
        "32 22 0:4 mnt:[4026532999] /run/snapd/ns/lxd.mnt rw - nsfs nsfs rw\n"
        "33 22 0:40 net:[1] /srv rw - ext4 /dev/sdb rw\n"
    )
    assert processes._mounted(mountinfo) == {4026532177: "/run/netns/a b"}


@pytest.mark.parametrize("ask", ["open_files(['/dev/vfio/'])", "namespaces()"])
def test_without_root_the_answer_is_not_known(ask: str) -> None:
    """An incomplete list of holders would let us take a VF from somebody whom we did not see."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be somebody else")

    def as_nobody() -> bytes:
        os.setgid(65534)
        os.setuid(65534)
        try:
            return repr(eval(f"processes.{ask}", {"processes": processes})).encode()
        except HostError as e:
            return str(e).encode()

    found, _ = process.gather([("nobody", as_nobody)], 20)["nobody"]
    assert isinstance(found, bytes)
    assert found.endswith(b": needs root"), found


def test_processes_that_end_while_we_look_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_pids", lambda: iter([2**22 + 1]))  # above PID_MAX_LIMIT
    assert processes.open_files(["/dev/"]) == {}
    assert processes._inhabited() == {}
