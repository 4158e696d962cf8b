"""Who else makes the VFs of a PF at boot: what hostprep asserts and does not fight with."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from conftest import MakeHost
from fakes import FakeHost

from hostprep.errors import HostError
from hostprep.host.record import RecordedHost
from hostprep.model import Unknown
from hostprep.sriov.owners import Owner, Pf, owners

FIRST = Pf("0000:17:00.0", "mlx5_core", ("ens1", "enp23s0f0np0"), "b8:ce:f6:00:00:01")
SECOND = Pf("0000:17:00.1", "mlx5_core", ("ens10", "enp23s0f1np1"), "b8:ce:f6:00:00:02")
NUMVFS = "/sys/class/net/ens1/device/sriov_numvfs"
WANTS = "/etc/systemd/system/multi-user.target.wants"
NM = "/etc/NetworkManager/system-connections"
NM_STARTS = {f"{WANTS}/NetworkManager.service": "-> /x", "/usr/lib/systemd/system/NetworkManager.service": "[Unit]\n"}
NETPLAN = {"/usr/lib/systemd/system-generators/netplan": "-> /usr/libexec/netplan/generate"}
LINKS = "/etc/systemd/network"


def unit(command: str, name: str = "vfs.service") -> dict[str, str]:
    return {
        f"/etc/systemd/system/{name}": f"[Service]\nExecStart={command}\n",
        f"{WANTS}/{name}": f"-> /etc/systemd/system/{name}",
    }


def netplan(ethernets: str, name: str = "50-vfs.yaml", folder: str = "/etc/netplan") -> dict[str, str]:
    return {**NETPLAN, f"{folder}/{name}": f"network:\n  version: 2\n  ethernets:\n{ethernets}"}


def found(host: FakeHost) -> dict[str, list[tuple[str, str, int | str]]]:
    """By address what makes VFs; `unknown` for a count that cannot be told."""
    told = owners(host, (FIRST, SECOND))
    return {a: [(o.tool, o.where, o.vfs if isinstance(o.vfs, int) else "unknown") for o in t] for a, t in told.items()}


def keyfile(body: str, sriov: str = "[sriov]\ntotal-vfs=8\n") -> dict[str, str]:
    return {**NM_STARTS, f"{NM}/a.nmconnection": f"[connection]\nid=a\n{body}{sriov}"}


# What each makes of the first PF; the second, whose name begins with the name of the first, is never meant.
TOOLS: dict[str, tuple[dict[str, str], tuple[str, str, int | str]]] = {
    "netplan by name": (
        netplan("    ens1:\n      dhcp4: false\n      virtual-function-count: 8\n"),
        ("netplan", "/etc/netplan/50-vfs.yaml:6", 8),
    ),
    "netplan by address": (
        netplan(
            "    pf:\n      match: {macaddress: 'B8:CE:F6:00:00:01'}\n      set-name: x\n"
            "      virtual-function-count: 8\n"
        ),
        ("netplan", "/etc/netplan/50-vfs.yaml:7", 8),
    ),
    "netplan by the VFs that name it": (
        netplan("    ens1: {}\n    v0: {link: ens1}\n    v1: {link: ens1}\n"),
        ("netplan", "/etc/netplan/50-vfs.yaml:5", 2),
    ),
    "a later netplan file": (
        {
            **netplan("    ens1: {virtual-function-count: 4}\n", "10-a.yaml", "/usr/lib/netplan"),
            **netplan("    ens1: {virtual-function-count: 6}\n", "20-b.yaml"),
        },
        ("netplan", "/etc/netplan/20-b.yaml:4", 6),
    ),
    "NetworkManager by name": (keyfile("interface-name=ens1\n"), ("NetworkManager", f"{NM}/a.nmconnection:5", 8)),
    "NetworkManager by address": (
        keyfile("[ethernet]\nmac-address=B8:CE:F6:00:00:01\n"),
        ("NetworkManager", f"{NM}/a.nmconnection:6", 8),
    ),
    "NetworkManager by PCI path, R110: no total-vfs is 0": (
        keyfile("[match]\npath=pci-0000:17:00.0;\n", "[sriov]\nautoprobe-drivers=0\n"),
        ("NetworkManager", f"{NM}/a.nmconnection:5", 0),
    ),
    "ifcfg": (
        {**NM_STARTS, "/etc/sysconfig/network-scripts/ifcfg-ens1": 'DEVICE="ens1"\nSRIOV_TOTAL_VFS=8\n'},
        ("NetworkManager", "/etc/sysconfig/network-scripts/ifcfg-ens1:2", 8),
    ),
    ".link by path": (
        {f"{LINKS}/10-pf.link": "[Match]\nPath=pci-0000:17:00.0\n[Link]\nSR-IOVVirtualFunctions=8\n"},
        ("systemd .link", f"{LINKS}/10-pf.link:4", 8),
    ),
    ".link by address, and as many as its sections": (
        {
            f"{LINKS}/10-pf.link": "[Match]\nPermanentMACAddress=b8:ce:f6:00:00:01\nDriver=mlx5*\n"
            "[SR-IOV]\nVirtualFunction=0\n[SR-IOV]\nVirtualFunction=3\n"
        },
        ("systemd .link", f"{LINKS}/10-pf.link:5", 4),
    ),
    "udev attribute": (
        {
            "/etc/udev/rules.d/10-vf.rules": '# ATTR{device/sriov_numvfs}="4"\nACTION=="add", SUBSYSTEM=="net", '
            'KERNEL=="ens1", \\\n  ATTR{device/sriov_numvfs}="8"\n'
        },
        ("udev rule", "/etc/udev/rules.d/10-vf.rules:2", 8),
    ),
    "udev by PCI address": (
        {
            "/usr/lib/udev/rules.d/10-vf.rules": 'SUBSYSTEM=="pci", KERNEL=="0000:17:00.0", ATTRS{vendor}=="0x15b3",'
            'ATTR{sriov_numvfs}="8"\n',
            "/sys/bus/pci/devices/0000:17:00.0/vendor": "0x15b3\n",
            "/sys/bus/pci/devices/0000:17:00.1/vendor": "0x15b3\n",
        },
        ("udev rule", "/usr/lib/udev/rules.d/10-vf.rules:1", 8),
    ),
    "udev program": (
        {
            "/etc/udev/rules.d/10-vf.rules": 'ACTION=="add", ENV{ID_PATH}=="pci-0000:17:00.0", '
            "RUN+=\"/bin/sh -c 'echo 8 > /sys/class/net/%k/device/sriov_numvfs'\"\n"
        },
        ("udev rule", "/etc/udev/rules.d/10-vf.rules:1", 8),
    ),
    "sriov-network-operator": (
        {"/etc/sriov-operator/pci/0000:17:00.0": '{"name": "ens1", "numVfs": 8}'},
        ("sriov-network-operator", "/etc/sriov-operator/pci/0000:17:00.0", 8),
    ),
    "os-net-config": (
        {
            **unit("/usr/bin/os-net-config-sriov", "sriov_config.service"),
            "/var/lib/os-net-config/sriov_config.yaml": "- {device_type: pf, name: ens1, numvfs: 8}\n",
        },
        ("os-net-config", "/var/lib/os-net-config/sriov_config.yaml:1", 8),
    ),
    "sriov-netplan-shim": (
        {
            **unit("/usr/bin/sriov-netplan-shim", "sriov-netplan-shim.service"),
            "/etc/sriov-netplan-shim/interfaces.yaml": "interfaces:\n  ens1:\n    num_vfs: 8\n",
        },
        ("sriov-netplan-shim", "/etc/sriov-netplan-shim/interfaces.yaml:2", 8),
    ),
    "sysfsutils": (
        {"/etc/rcS.d/S10sysfsutils": "", "/etc/sysfs.d/a.conf": "class/net/ens1/device/sriov_numvfs = 8 # all\n"},
        ("sysfsutils", "/etc/sysfs.d/a.conf:1", 8),
    ),
    "tmpfiles.d": (
        {"/etc/tmpfiles.d/a.conf": f"w {NUMVFS} - - - - 8\n"},
        ("tmpfiles.d", "/etc/tmpfiles.d/a.conf:1", 8),
    ),
    "tmpfiles.d by a pattern": (
        {"/usr/lib/tmpfiles.d/a.conf": "w! /sys/class/net/ens?/device/sriov_numvfs - - - - 8\n"},
        ("tmpfiles.d", "/usr/lib/tmpfiles.d/a.conf:1", 8),
    ),
    "unit": (unit(f"/bin/sh -c 'echo 8 > {NUMVFS}'"), ("systemd unit", "/etc/systemd/system/vfs.service:2", 8)),
    "unit of an instance": (
        {
            "/etc/systemd/system/vf@.service": "[Service]\n"
            "ExecStart=/bin/sh -c 'echo 8 | tee /sys/class/net/%i/device/sriov_numvfs'\n",
            f"{WANTS}/vf@ens1.service": "-> /etc/systemd/system/vf@.service",
        },
        ("systemd unit", "/etc/systemd/system/vf@.service:2", 8),
    ),
    "script of a unit (K11)": (
        {**unit("/root/vfs.sh start"), "/root/vfs.sh": f"#!/bin/bash\nset -e\necho 8 > {NUMVFS}\n"},
        ("systemd unit", "/root/vfs.sh:3", 8),
    ),
    "ifupdown": (
        {
            "/etc/network/interfaces": "auto ens1\niface ens1 inet manual\n"
            "  up echo 8 > /sys/class/net/$IFACE/device/sriov_numvfs\n"
            "  down echo 0 > /sys/class/net/$IFACE/device/sriov_numvfs\n"
        },
        ("ifupdown", "/etc/network/interfaces:3", 8),
    ),
    "cron": (
        {"/etc/cron.d/vfs": f"@hourly root echo 4 > {NUMVFS}\n@reboot root echo 8 > {NUMVFS}\n"},
        ("cron", "/etc/cron.d/vfs:2", 8),
    ),
}


@pytest.mark.parametrize(("files", "expected"), TOOLS.values(), ids=TOOLS)
def test_what_makes_vfs_is_found_with_its_place_and_count(
    make_host: MakeHost, files: dict[str, str], expected: tuple[str, str, int | str]
) -> None:
    """R10, R111: the kernel keeps no number of VFs, so something else says it at every boot."""
    assert found(make_host(files)) == {FIRST.address: [expected]}


NOBODY: dict[str, dict[str, str]] = {
    "netplan of another name": netplan("    ens11: {virtual-function-count: 8}\n"),
    "netplan below /run": netplan("    ens1: {virtual-function-count: 8}\n", folder="/run/netplan"),
    "netplan in a comment": netplan("    ens1: {dhcp4: false}  # virtual-function-count: 8\n"),
    "a VLAN's link": netplan("    ens1: {}\n  vlans:\n    v0: {id: 5, link: ens1}\n"),
    "netplan masked": {
        **{p: t for p, t in netplan("    ens1: {virtual-function-count: 8}\n").items() if p.endswith("yaml")},
        "/etc/systemd/system-generators/netplan": "-> /dev/null",
    },
    "NetworkManager without autoconnect": keyfile("interface-name=ens1\nautoconnect=false\n"),
    "NetworkManager without [sriov]": keyfile("interface-name=ens1\n", ""),
    "NetworkManager masked": {
        f"{NM}/a.nmconnection": "[connection]\ninterface-name=ens1\n[sriov]\ntotal-vfs=8\n",
        "/etc/systemd/system/NetworkManager.service": "-> /dev/null",
    },
    "ifcfg without ONBOOT": {
        **NM_STARTS,
        "/etc/sysconfig/network-scripts/ifcfg-ens1": "DEVICE=ens1\nONBOOT=no\nSRIOV_TOTAL_VFS=8\n",
    },
    ".link hidden by an earlier one": {
        f"{LINKS}/05-a.link": "[Match]\nOriginalName=*\n[Link]\nMTUBytes=9000\n",
        f"{LINKS}/10-pf.link": "[Match]\nDriver=mlx5_core\n[Link]\nSR-IOVVirtualFunctions=8\n",
    },
    ".link masked": {
        f"{LINKS}/10-pf.link": "-> /dev/null",
        "/usr/lib/systemd/network/10-pf.link": "[Match]\nDriver=mlx5_core\n[Link]\nSR-IOVVirtualFunctions=8\n",
    },
    ".link of another driver": {
        f"{LINKS}/10-pf.link": "[Match]\nProperty=X=1\nDriver=!mlx5_core\n[Link]\nSR-IOVVirtualFunctions=8\n"
    },
    ".link for a systemd that does not know it": {
        f"{LINKS}/10-pf.link": "[Match]\nDriver=mlx5_core\n[Link]\nSR-IOVVirtualFunctions=8\n",
        "/usr/lib/systemd/libsystemd-shared-249.so": "",
    },
    "udev rule of another card": {
        "/etc/udev/rules.d/a.rules": 'ATTRS{vendor}=="0x8086", ATTR{device/sriov_numvfs}="8"\n',
        "/sys/bus/pci/devices/0000:17:00.0/vendor": "0x15b3\n",
        "/sys/bus/pci/devices/0000:17:00.1/vendor": "0x15b3\n",
    },
    "udev rule that is jumped over": {
        "/etc/udev/rules.d/a.rules": 'DRIVERS=="mlx5_core", GOTO="end"\nATTR{device/sriov_numvfs}="8"\nLABEL="end"\n'
    },
    "udev rule at removal": {
        "/etc/udev/rules.d/a.rules": 'ACTION=="remove", KERNEL=="ens1", ATTR{device/sriov_numvfs}="0"\n'
    },
    "udev rule that only asks": {
        "/etc/udev/rules.d/a.rules": 'TEST=="device/sriov_numvfs", KERNEL=="ens1", ATTR{mtu}="9000"\n'
    },
    "sriov-network-operator on VFs of others": {
        "/etc/sriov-operator/pci/0000:17:00.0": '{"numVfs": 8, "externallyManaged": true}'
    },
    "a unit that nothing starts": {
        "/etc/systemd/system/vfs.service": f"[Service]\nExecStart=/bin/sh -c 'echo 8 > {NUMVFS}'\n"
    },
    "a masked unit": {
        f"{WANTS}/vfs.service": "-> /x",
        "/etc/systemd/system/vfs.service": "-> /dev/null",
        "/usr/lib/systemd/system/vfs.service": f"[Service]\nExecStart=/bin/sh -c 'echo 8 > {NUMVFS}'\n",
    },
    "a unit that only takes VFs away at its end": {
        "/etc/systemd/system/vfs.service": f"[Service]\nExecStart=/bin/true\nExecStop=/bin/sh -c 'echo 0 > {NUMVFS}'\n",
        f"{WANTS}/vfs.service": "-> /etc/systemd/system/vfs.service",
    },
    "a long command of something else": unit("/bin/true " + "x" * 5000),
    "hostprep's own unit": unit(f"/bin/sh -c 'echo 8 > {NUMVFS}'", "hostprep-apply.service"),
    "a script that only reads": {
        **unit("/root/x.sh"),
        "/root/x.sh": f"if [ -e {NUMVFS} ]; then\n n=$(cat {NUMVFS}); echo sriov_numvfs is $n\nfi\nread n < {NUMVFS}\n",
    },
    "a script whose line is a comment": {**unit("/root/x.sh"), "/root/x.sh": f"ls  # echo 8 > {NUMVFS}\n"},
    "a script that ends before": {**unit("/root/x.sh"), "/root/x.sh": f"exit 0\necho 8 > {NUMVFS}\n"},
    "an interface that does not come up at boot": {
        "/etc/network/interfaces": f"iface ens1 inet manual\n  up echo 8 > {NUMVFS}\n"
    },
}


@pytest.mark.parametrize("files", NOBODY.values(), ids=NOBODY)
def test_what_makes_no_vfs_of_these_pfs_is_no_owner(make_host: MakeHost, files: dict[str, str]) -> None:
    assert found(make_host(files)) == {}


UNKNOWN: dict[str, tuple[dict[str, str], int]] = {  # and how many of the two PFs it may be about
    "a loop": (unit("/bin/sh -c 'for i in a b; do echo 8 > /sys/class/net/$i/device/sriov_numvfs; done'"), 2),
    "a loop over a part of names": (unit("/bin/sh -c 'echo 8 > /sys/class/net/ens1$i/device/sriov_numvfs'"), 2),
    "a pattern of names": (unit("/bin/sh -c 'echo 8 | tee /sys/class/net/ens??/device/sriov_numvfs'"), 1),
    "a number from elsewhere": (unit(f"/bin/sh -c 'echo $N > {NUMVFS}'"), 1),
    "a path in a variable": (unit(f"/bin/sh -c 'f={NUMVFS}; echo 8 > $f'"), 1),
    "a directory entered before": (unit("/bin/sh -c 'cd /sys/class/net/x/device; echo 8 > sriov_numvfs'"), 2),
    "a condition": (unit(f"/bin/sh -c '[ -e /x ] && echo 8 > {NUMVFS}'"), 1),
    "a condition over lines": ({**unit("/r.sh"), "/r.sh": f"if x; then\n echo 8 > {NUMVFS}\nfi\n"}, 1),
    "a script that may end before": ({**unit("/r.sh"), "/r.sh": f"[ -e /x ] || exit 0\necho 8 > {NUMVFS}\n"}, 1),
    "a udev rule of another device": (
        {"/etc/udev/rules.d/a.rules": f'SUBSYSTEM=="module", KERNEL=="x", RUN+="/bin/sh -c \'echo 8 > {NUMVFS}\'"\n'},
        1,
    ),
    "a small binary": ({**unit("/r"), "/r": "\0ELF" + "x" * 100000 + NUMVFS}, 2),
    "a script of another language": ({**unit("/r.py"), "/r.py": "#!/usr/bin/python3\nset(d + '/sriov_numvfs')\n"}, 2),
    "an altname, which sysfs does not have": (
        unit(f"/bin/sh -c 'echo 8 > {NUMVFS.replace('ens1', FIRST.names[1])}'"),
        1,
    ),
    "a .link by a property": (
        {f"{LINKS}/a.link": "[Match]\nProperty=ID_VENDOR_ID=0x15b3\n[Link]\nSR-IOVVirtualFunctions=8\n"},
        2,
    ),
    "a .link that another may hide": (
        {
            f"{LINKS}/a.link": "[Match]\nHost=x\n",
            f"{LINKS}/b.link": "[Match]\nPath=pci-0000:17:00.1\n[Link]\nSR-IOVVirtualFunctions=8\n",
        },
        1,
    ),
    "a udev rule by a tag": (
        {"/etc/udev/rules.d/a.rules": 'TAG=="x", KERNEL=="ens1", ATTR{device/sriov_numvfs}="8"\n'},
        1,
    ),
    "a udev rule that may be jumped over": (
        {
            "/etc/udev/rules.d/a.rules": 'ENV{X}=="1", GOTO="e"\n'
            'KERNEL=="ens1", ATTR{device/sriov_numvfs}="8"\nLABEL="e"\n'
        },
        1,
    ),
    "a udev rule for a name that comes later": (
        {
            "/etc/udev/rules.d/a.rules": 'ACTION=="add", KERNEL=="ens1", ATTR{device/sriov_numvfs}="8"\n',
            "/sys/class/net/ens1/name_assign_type": "4\n",
        },
        1,
    ),
    "netplan for one of several": (netplan("    p: {match: {driver: mlx5_core}, virtual-function-count: 8}\n"), 2),
    "netplan that refuses": (
        netplan("    ens1: {virtual-function-count: 1}\n    a: {link: ens1}\n    b: {link: ens1}\n"),
        1,
    ),
    "netplan that is not YAML": (netplan("  ens1: {virtual-function-count: 8\n"), 2),
    "netplan that may not run": (
        {"/etc/netplan/a.yaml": "network: {ethernets: {ens1: {virtual-function-count: 8}}}\n"},
        1,
    ),
    "NetworkManager for any interface": (keyfile(""), 2),
    "NetworkManager that may not start": ({f"{NM}/a": "[connection]\ninterface-name=ens1\n[sriov]\ntotal-vfs=8\n"}, 1),
    "sriov-network-operator, garbled": ({"/etc/sriov-operator/pci/0000:17:00.0": "{"}, 1),
    "rc.local that is not executable": ({"/etc/rc.local": f"#!/bin/sh\necho 8 > {NUMVFS}\n"}, 1),
}


@pytest.mark.parametrize(("files", "pfs"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_cannot_be_told_is_unknown_with_its_place(make_host: MakeHost, files: dict[str, str], pfs: int) -> None:
    told = owners(make_host(files), (FIRST, SECOND))
    assert len(told) == pfs
    for owner in (owner for those in told.values() for owner in those):
        assert isinstance(owner.vfs, Unknown)
        assert owner.where.partition(":")[0] in owner.vfs.reason


@pytest.mark.parametrize(
    ("script", "vfs"),
    [
        (f"echo 0 > {NUMVFS}\necho 8 > {NUMVFS}\n", 8),
        (f"echo 4 > {NUMVFS}\necho 8 > {NUMVFS}\n", 4),  # EBUSY: refused by the kernel
        ("PF=ens1\nexport N=8\necho $N > /sys/class/net/${PF}/device/sriov_numvfs\n", 8),
        ("echo 0x8 >/sys/bus/pci/devices/0000\\:17\\:00.0/sriov_numvfs\n", 8),
        ('sudo sh -c "echo 8 > /sys/devices/pci0000:16/0000:17:00.0/sriov_numvfs"\n', 8),
        ("printf '%s' 8 | sudo tee -a /sys/class/net/ens1/device/sriov_numvfs > /dev/null\n", 8),
        ("echo 8 > /sys/class/infiniband/mlx5_0/device/mlx5_num_vfs\n", 8),
        (f"[ -e {NUMVFS} ] || exit 1\nip link set ens1 up || true; modprobe x && echo 8 > {NUMVFS} || true\n", 8),
        (f"for x in a; do\n true\ndone\necho 8 > {NUMVFS}\n", 8),
        (f"/usr/local/sbin/vfs.sh\nexit 0\necho 6 > {NUMVFS}\n", 8),
    ],
)
def test_rc_local_is_read_as_its_shell_runs_it(make_host: MakeHost, script: str, vfs: int) -> None:
    host = make_host(
        {
            "/etc/rc.local": f"#!/bin/sh -e\n{script}",
            "/usr/local/sbin/vfs.sh": f"#!/bin/sh\necho 8 > {NUMVFS}\n",
            "/sys/class/infiniband/mlx5_0/device": "-> ../../../devices/pci0000:16/0000:17:00.0",
            "/sys/devices/pci0000:16/0000:17:00.0/": "",
        }
    )
    Path(host.root + "/etc/rc.local").chmod(0o755)
    told = owners(host, (FIRST, SECOND))
    assert {address: [owner.vfs for owner in those] for address, those in told.items()} == {FIRST.address: [vfs]}


def test_a_file_that_cannot_be_read_may_be_about_any_pf(make_host: MakeHost) -> None:
    class Locked(FakeHost):
        def read_bytes(self, path: str) -> bytes | None:
            if path.startswith("/etc/netplan/"):
                raise HostError(f"{path}: needs root")
            return super().read_bytes(path)

    host = make_host(netplan(""))
    locked = Locked(Path(host.root), {})
    owner = Owner("netplan", "/etc/netplan/50-vfs.yaml", Unknown("/etc/netplan/50-vfs.yaml: needs root"))
    assert owners(locked, (FIRST, SECOND)) == {pf.address: (owner,) for pf in (FIRST, SECOND)}


@pytest.mark.parametrize("files", [files for files, _ in TOOLS.values()], ids=TOOLS)
def test_a_file_cut_short_never_breaks_the_look(make_host: MakeHost, files: dict[str, str]) -> None:
    """A garbled file may make an owner unknown, or hide it; it is no bug of hostprep's."""
    host = make_host(files)
    for path, text in files.items():
        if not text.startswith("-> "):
            for end in range(0, len(text), 8):
                for tail in ("", "\n", "{", "[9", " '"):
                    host.put(path, text[:end] + tail)
                    owners(host, (FIRST, SECOND))
            host.put(path, text)


def test_a_recording_tells_the_same_and_what_was_not_recorded_is_unknown(make_host: MakeHost) -> None:
    host = make_host({**unit("/root/x.sh"), "/root/x.sh": f"echo 8 > {NUMVFS}\n"})
    assert owners(RecordedHost(host.root), (FIRST, SECOND)) == owners(host, (FIRST, SECOND)) != {}
    host.put("/.hostprep/1.jsonl", "")
    (told, *_) = owners(RecordedHost(host.root), (FIRST,)).values()
    assert all(isinstance(owner.vfs, Unknown) for owner in told)


def test_two_owners_are_both_told(make_host: MakeHost) -> None:
    host = make_host({**unit(f"/bin/sh -c 'echo 4 > {NUMVFS}'"), **netplan("    ens1: {virtual-function-count: 8}\n")})
    assert [vfs for _, _, vfs in found(host)[FIRST.address]] == [8, 4]


def test_a_pf_in_another_network_namespace_may_be_meant_by_a_name_that_is_not_here(make_host: MakeHost) -> None:
    """R100: its netdev is elsewhere, so its name is not known."""
    host = make_host({**unit(f"/bin/sh -c 'echo 8 > {NUMVFS}'"), "/sys/class/net/ens5/": ""})
    away = FIRST._replace(names=(), mac="")
    (owner,) = owners(host, (away,))[away.address]
    assert isinstance(owner.vfs, Unknown)
    host = make_host({"/sys/class/net/ens1/": ""})
    assert owners(host, (away,)) == {}, "the name belongs to another netdev"


def test_a_bonded_pf_is_known_by_its_permanent_address(make_host: MakeHost) -> None:
    files = {f"{LINKS}/a.link": f"[Match]\nMACAddress={FIRST.mac}\n[Link]\nSR-IOVVirtualFunctions=8\n"}
    files |= {
        "/sys/class/net/ens1/addr_assign_type": "3\n",
        "/sys/class/net/ens1/bonding_slave/perm_hwaddr": f"{FIRST.mac}\n",
    }
    host = make_host(files)
    assert owners(host, (FIRST._replace(mac="02:00:00:00:00:09"),))[FIRST.address][0].vfs == 8


def test_looking_is_cheap_and_loads_no_yaml(make_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs in every check of a host with SR-IOV."""
    monkeypatch.setitem(sys.modules, "yaml", None)
    host = make_host({f"/usr/lib/udev/rules.d/{n:02}.rules": "# x\n" * 500 for n in range(90)})
    Path(host.root + "/usr/local/bin").mkdir(parents=True)
    with open(host.root + "/usr/local/bin/kubelet", "wb") as f:
        os.truncate(f.fileno(), 100 * 1024**2)
    for path, text in unit("/usr/local/bin/kubelet").items():
        host.put(path, text)
    read: list[str] = []
    real = host.read_bytes

    def counting(path: str) -> bytes | None:
        read.append(path)
        return real(path)

    monkeypatch.setattr(host, "read_bytes", counting)
    before = time.process_time()
    assert owners(host, (FIRST, SECOND)) == {}
    assert time.process_time() - before < 0.5
    assert len(read) == len(set(read)), "each file is read once"
    assert "/usr/local/bin/kubelet" not in read
