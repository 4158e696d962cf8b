"""NVIDIA's driver out of the host's kernel, and back: row K16; a card and modules that stand in for the real ones."""

from __future__ import annotations

import re

from vm import Guest
from vm.admin import ETC, applied, findings, hostprep, missing, profile, reverted, statuses

GPU = "0000:82:00.0"
# In the order in which the kernel lets go of them.
MODULES = ["nvidia_modeset", "nvidia_uvm", "nvidia"]
# What loads the driver beside udev: a service, a list of modules, and an install line as Debian's packages have it.
SERVICE = """
[Service]
Type=oneshot
ExecStart=-/sbin/modprobe nvidia-uvm
[Install]
WantedBy=multi-user.target
"""
LOADERS = {
    "/etc/systemd/system/uses-gpu.service": SERVICE,
    "/etc/modules-load.d/nvidia.conf": "nvidia-uvm\n",
    "/etc/modprobe.d/nvidia.conf": "install nvidia /sbin/modprobe --ignore-install nvidia $CMDLINE_OPTS\n",
}
# A job: the name of its process, and the GPU open for as long as it lives.
JOB = """
cp /bin/sleep /root/trainer
setsid /root/trainer 9999 </dev/nvidia0 >/dev/null 2>&1 &
until [ "$(cat /proc/$!/comm)" = trainer ]; do sleep 0.1; done
echo $!
"""


def loaded(guest: Guest) -> set[str]:
    """NVIDIA's modules, as the kernel lists them."""
    return {line.split()[0] for line in guest.sh("cat /proc/modules").splitlines() if line.startswith("nvidia")}


def driver(guest: Guest) -> str:
    return guest.sh(f"basename $(readlink /sys/bus/pci/devices/{GPU}/driver || echo none)")


def test_the_guest_has_a_gpu_whose_driver_udev_has_loaded(guest: Guest) -> None:
    """The ids of an A100, a 3D controller, and modules that the kernel lets go only in order of dependency."""
    assert guest.sh("lspci -n -d 10de:").split()[:3] == ["82:00.0", "0302:", "10de:20b2"]
    assert guest.sh(f"cat /sys/bus/pci/devices/{GPU}/numa_node") == "1"
    assert (driver(guest), loaded(guest)) == ("nvidia", set(MODULES))
    assert guest.sh("cat /sys/module/nvidia/version; modinfo -n nvidia").splitlines() == [
        "550.90.12",
        f"/lib/modules/{guest.sh('uname -r')}/updates/dkms/nvidia.ko",
    ]
    refused = guest.run("rmmod nvidia")
    assert refused.returncode
    assert re.search(r"Module nvidia is in use by: nvidia_(uvm nvidia_modeset|modeset nvidia_uvm)", refused.stderr)
    assert guest.sh(f"rmmod {' '.join(MODULES)}; ls /dev/nvidia* 2>&1 || true") == (
        "ls: cannot access '/dev/nvidia*': No such file or directory"
    )


def test_k16_the_driver_is_unloaded_stays_away_over_a_reboot_and_comes_back(guest: Guest) -> None:
    """In use, it stays until the next boot. After that, not even a service's modprobe brings it back.

    That one a blacklist does not stop, nor an install line: not where `softdep nvidia post: nvidia-uvm` is around.
    """
    for path, content in LOADERS.items():
        guest.put(content, path)
    guest.sh("systemctl -q enable uses-gpu.service")
    before = guest.sh(ETC)
    profile(guest, {"gpu": {"count": 1, "model": "10de:20b2", "driver": "unloaded"}})

    job = guest.sh(JOB)
    found = findings(guest)["modules"]
    assert (found["status"], found["current"]) == ("fail", sorted(MODULES))
    assert f"pid {job} trainer (/dev/nvidia0)" in found["message"]
    code, said = hostprep(guest, "apply --yes")
    assert code == 4, said  # not now; the next boot, which the job does not live to see, is without
    assert not missing(said, ["refused gpu/modules (now)", f"pid {job} trainer (/dev/nvidia0)"])
    assert (driver(guest), loaded(guest)) == ("nvidia", set(MODULES))

    guest.sh(f"kill {job}")
    applied(guest)
    assert (driver(guest), loaded(guest)) == ("none", set())

    guest.reboot()
    assert (driver(guest), loaded(guest)) == ("none", set())
    assert "nvidia" not in guest.sh("dmesg")  # as soon as it is loaded, it taints the kernel
    assert statuses(guest) == {"pass"}

    reverted(guest)
    assert (driver(guest), loaded(guest)) == ("nvidia", set(MODULES))
    assert guest.sh(ETC) == before
