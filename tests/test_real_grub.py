"""The real grub-mkconfig of this machine, in a mount namespace with a /boot and an /etc/default of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOOLS = ("unshare", "mount", "grub-mkconfig", "grub-script-check", "grub-editenv", "grub-reboot", "grub-set-default")
ARGUMENTS = ["intel_iommu=on", "iommu=pt", "memmap=2M$4G", "dyndbg=file a.c +p; file b.c +p", "acpi_osi=!*"]
DEFAULTS = """\
GRUB_DEFAULT=saved
GRUB_TIMEOUT=0
GRUB_TERMINAL=console
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX="console=ttyS0 intel_iommu=off"
GRUB_CMDLINE_LINUX_DEFAULT="lost"
"""
CLOUD_IMAGE = 'GRUB_CMDLINE_LINUX_DEFAULT="quiet iommu=soft amd_iommu=pt"\n'
PROBE = """\
#!/bin/sh
case "$*" in
    *target=device*) echo /dev/vda1 ;;
    *target=fs_uuid*) echo 5b0c ;;
    *target=fs*) echo ext2 ;;
esac
"""
# Each stage keeps what grub.cfg is, what hostprep then reads, and its exit code.
SCRIPT = r"""
set -eu
mount --make-rprivate /
mount -t tmpfs none /boot
mount -t tmpfs none /etc/default
mount --bind "$W/grub-probe" /usr/sbin/grub-probe
mount --bind "$W/cmdline" /proc/cmdline
mkdir /boot/grub /etc/default/grub.d
for version in 6.1.0-25-amd64 6.1.0-26-amd64; do
    touch "/boot/vmlinuz-$version" "/boot/initrd.img-$version" "/boot/config-$version"
done
cp "$W/defaults" /etc/default/grub
cp "$W/cloud" /etc/default/grub.d/50-cloudimg-settings.cfg
grub-editenv /boot/grub/grubenv create
grub-mkconfig -o /boot/grub/grub.cfg

stage() {
    mkdir "$W/$1"
    code=0
    "$PYTHON" -m hostprep "$2" --profile "$W/profile.yaml" $3 >"$W/$1/out" 2>"$W/$1/err" || code=$?
    "$PYTHON" -m hostprep check --profile "$W/profile.yaml" --format json >"$W/$1/report.json" || true
    "$PYTHON" -m hostprep inspect --only kernel_args --format json >"$W/$1/facts.json"
    echo "$code" >"$W/$1/code"
    cp -a /boot/grub/grub.cfg "$W/$1/"
    ls -A /boot/grub /etc/default /etc/default/grub.d >"$W/$1/names"
}
boot() {
    sed -n 's,^\tlinux\t\(/[^ ]*\) ,BOOT_IMAGE=\1 ,p' /boot/grub/grub.cfg | head -n 1 | sed 's/\\\$/$/g' >"$W/cmdline"
}

stage found check ""
echo 'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT iommu=nofull"' >/etc/default/grub.d/zzz-site.cfg
stage overruled apply --yes
echo 'GRUB_TIMEOUT="' >/etc/default/grub.d/zzz-site.cfg
stage broken apply --yes
rm /etc/default/grub.d/zzz-site.cfg
stage applied apply --yes
stage again apply --yes
boot
stage booted check ""
grub-set-default '1>2'
stage by-number check ""
grub-set-default 'gnulinux-advanced-5b0c>gnulinux-6.1.0-25-amd64-recovery-5b0c'
stage by-id check ""
grub-set-default 'Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-26-amd64'
stage by-title check ""
grub-reboot '1>1'
stage once check ""
grub-editenv /boot/grub/grubenv create
"$PYTHON" -m hostprep revert --yes
stage reverted check ""
"""


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what each stage left."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if missing := [tool for tool in TOOLS if not shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if "default/grub.d" not in Path("/usr/sbin/grub-mkconfig").read_text():
        pytest.skip("this is not the grub-mkconfig of Debian")
    work = tmp_path_factory.mktemp("grub")
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here")
    (work / "grub-probe").write_text(PROBE)
    (work / "grub-probe").chmod(0o755)
    (work / "cmdline").write_text("BOOT_IMAGE=/boot/vmlinuz-6.1.0-26-amd64 root=/dev/vda1 ro quiet\n")
    (work / "defaults").write_text(DEFAULTS)
    (work / "cloud").write_text(CLOUD_IMAGE)
    (work / "profile.yaml").write_text(json.dumps({"name": "test", "kernel_args": ARGUMENTS}))
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "W": str(work), "PYTHON": sys.executable, "LC_ALL": "C"}
    env |= {f"HOSTPREP_{name}_DIR": str(work / name.lower()) for name in ("RUN", "STATE", "CACHE")}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", SCRIPT], env=env, cwd="/", capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    return work


def report(stages: Path, stage: str) -> dict[str, str]:
    made: dict[str, Any] = json.loads((stages / stage / "report.json").read_text())
    return {f["key"]: f["status"] for f in made["findings"]}


def text(stages: Path, stage: str, name: str) -> str:
    return (stages / stage / name).read_text()


def lines(stages: Path, stage: str) -> dict[str, str]:
    """The command lines in grub.cfg by their entry's title, as they stand there; the first entry is the simple one."""
    found: dict[str, str] = {}
    title = ""
    for line in text(stages, stage, "grub.cfg").splitlines():
        if heading := re.match(r"\s*menuentry '([^']*)'", line):
            title = heading[1]
        elif linux := re.match(r"\s*linux\s+\S+ (.*)", line):
            found[title] = linux[1]
    return found


STATUSES = [(stage, "fail") for stage in ("found", "overruled", "broken", "reverted")]


@pytest.mark.parametrize(
    ("stage", "status"), [*STATUSES, ("applied", "pending-reboot"), ("again", "pending-reboot"), ("booted", "pass")]
)
def test_what_hostprep_says_at_each_stage(stages: Path, stage: str, status: str) -> None:
    expected = "volatile" if stage == "reverted" else status  # the running kernel still has them
    assert set(report(stages, stage).values()) == {expected}


@pytest.mark.parametrize("stage", ["applied", "booted", "reverted"])
def test_grub_takes_the_generated_file(stages: Path, stage: str) -> None:
    subprocess.run(["grub-script-check", stages / stage / "grub.cfg"], check=True)


def test_every_entry_has_the_arguments_but_the_recovery_ones(stages: Path) -> None:
    """R82: without them the machine still boots when a reservation was too large. R86: in the submenu too."""
    found = lines(stages, "applied")
    assert len(found) == 5  # the simple one, and two kernels with recovery
    for title, line in found.items():
        if "recovery" in title:
            assert line.split() == ["root=/dev/vda1", "ro", "single", "console=ttyS0"]
        else:
            assert line.split()[:5] == ["root=/dev/vda1", "ro", "console=ttyS0", "quiet", "amd_iommu=pt"]
            assert line.split()[5:7] == ["intel_iommu=on", "iommu=pt"]
            assert "intel_iommu=off" not in line


def test_a_second_apply_leaves_the_same_file(stages: Path) -> None:
    """To the nanosecond: nothing was written."""
    first, second = (os.stat(stages / stage / "grub.cfg").st_mtime_ns for stage in ("applied", "again"))
    assert first == second
    assert text(stages, "again", "grub.cfg") == text(stages, "applied", "grub.cfg")


@pytest.mark.parametrize("stage", ["overruled", "broken"])
def test_what_other_files_spoil_is_put_back(stages: Path, stage: str) -> None:
    """One overrules ours while grub-mkconfig exits 0 (R80), one is no shell at all."""
    assert text(stages, stage, "code") == "5\n"
    assert text(stages, stage, "err").count("error:") <= 1
    assert text(stages, stage, "grub.cfg") == text(stages, "found", "grub.cfg")
    assert set(text(stages, stage, "names").split()) == {*text(stages, "found", "names").split(), "zzz-site.cfg"}


def test_revert_gives_back_the_same_bytes(stages: Path) -> None:
    """And the same mode, owner and names beside it."""
    assert text(stages, "reverted", "grub.cfg") == text(stages, "found", "grub.cfg")
    assert text(stages, "reverted", "names") == text(stages, "found", "names")
    before, after = (os.stat(stages / stage / "grub.cfg") for stage in ("found", "reverted"))
    assert (before.st_mode, before.st_uid, before.st_gid) == (after.st_mode, after.st_uid, after.st_gid)


@pytest.mark.parametrize(
    ("stage", "entry"),
    [
        ("applied", "Debian GNU/Linux"),
        ("by-number", "Debian GNU/Linux, with Linux 6.1.0-25-amd64"),
        ("by-id", "Debian GNU/Linux, with Linux 6.1.0-25-amd64 (recovery mode)"),
        ("by-title", "Debian GNU/Linux, with Linux 6.1.0-26-amd64"),
        ("once", "Debian GNU/Linux, with Linux 6.1.0-26-amd64 (recovery mode)"),
    ],
)
def test_the_entry_that_will_boot(stages: Path, stage: str, entry: str) -> None:
    facts = json.loads(text(stages, stage, "facts.json"))["facts"]["kernel_args"]
    assert facts["boot/entry"]["next_boot"] == entry
    assert facts["iommu"]["next_boot"] == (None if "recovery" in entry else "pt")
