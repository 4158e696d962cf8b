"""What hostprep costs: whole processes, side by side with starting Python, in turn within one run.

Times of one machine say little about another, so what is printed are ratios: of each round the command's time
by that of `python3 -c pass`, and of these the median. Peak memory is that of the largest single process.

As root, also what looking at VFs costs as they become more: a tree of PFs and VFs, bound over /sys in a mount
namespace of this process, is looked at by nic_vfs where only sysfs is needed.

Run with the interpreter of an environment in which hostprep is installed as a user installs it: make bench.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import sys
import tempfile
import time

ROUNDS = 31
VFS = (16, 128, 1016)
PORTS = 8  # over which the VFs are spread
HOSTPREP = os.path.join(os.path.dirname(sys.executable), "hostprep")


def run(argv: list[str], env: dict[str, str], silent: int) -> tuple[float, float]:
    """Seconds and peak MiB of one process."""
    begin = time.perf_counter()
    actions = [(os.POSIX_SPAWN_DUP2, silent, 1), (os.POSIX_SPAWN_DUP2, silent, 2)]
    pid = os.posix_spawn(argv[0], argv, env, file_actions=actions)
    _, status, usage = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 1, 3, 4):
        raise SystemExit(f"{' '.join(argv)}: exit {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - begin, usage.ru_maxrss / 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        env |= {f"HOSTPREP_{name}_DIR": f"{folder}/{name.lower()}" for name in ("RUN", "STATE", "CACHE")}
        profile = f"{folder}/noop.yaml"
        with open(profile, "w") as f:
            f.write("extends: baseline\nassert_only: [swap, hugepages, kernel_args]\n")
        commands = {
            "python3 -c pass": [sys.executable, "-c", "pass"],
            "hostprep check": [HOSTPREP, "check", "--profile", "baseline"],
            "hostprep check --format json": [HOSTPREP, "check", "--profile", "baseline", "--format", "json"],
            "hostprep inspect": [HOSTPREP, "inspect"],
        }
        if os.geteuid() == 0:
            commands["hostprep apply (nothing to do)"] = [HOSTPREP, "apply", "--profile", profile, "--yes"]
        silent = os.open(os.devnull, os.O_WRONLY)
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for round_number in range(ROUNDS + 1):
            for name, argv in commands.items():
                seen = run(argv, env, silent)
                if round_number:  # the first round warms the caches up
                    measured[name].append(seen)
    report(measured)
    if os.geteuid() == 0:
        looking_at_vfs()
    else:
        print("\nlooking at VFs: not measured (needs root, for a mount namespace)")


def report(measured: dict[str, list[tuple[float, float]]]) -> None:
    base, check = (measured[name] for name in ("python3 -c pass", "hostprep check"))
    print(f"{'':32}  {'x python':>8}  {'x check':>8}  {'peak MiB':>8}    median of {ROUNDS} rounds")
    for name, runs in measured.items():
        to_base = statistics.median(a[0] / b[0] for a, b in zip(runs, base, strict=True))
        to_check = statistics.median(a[0] / b[0] for a, b in zip(runs, check, strict=True))
        print(f"{name:32}  {to_base:8.2f}  {to_check:8.2f}  {max(r[1] for r in runs):8.1f}")


def looking_at_vfs() -> None:
    """Seconds of nic_vfs.inspect for more and more VFs, in turn within one run, and what each VF adds."""
    from hostprep.checks import nic_vfs
    from hostprep.host import Host

    seconds: dict[int, list[float]] = {count: [] for count in VFS}
    with tempfile.TemporaryDirectory() as folder:
        for count in VFS:
            make_tree(f"{folder}/{count}", count)
        libc = ctypes.CDLL(None, use_errno=True)
        new_namespace, private, bind, detach = 0x20000, 1 << 18 | 1 << 14, 1 << 12, 2
        if libc.unshare(new_namespace) or libc.mount(b"none", b"/", None, private, None):
            print("\nlooking at VFs: not measured (no mount namespace can be made here)")
            return
        for _ in range(ROUNDS):
            for count in VFS:
                if libc.mount(f"{folder}/{count}".encode(), b"/sys", None, bind, None):
                    raise SystemExit(f"mount: {os.strerror(ctypes.get_errno())}")
                begin = time.perf_counter()
                facts = nic_vfs.inspect(Host())
                seconds[count].append(time.perf_counter() - begin)
                libc.umount2(b"/sys", detach)
                assert sum(fact.current for key, fact in facts.items() if key.endswith("/vfs")) == count
    least = {count: statistics.median(times) for count, times in seconds.items()}
    print(f"\nlooking at VFs    {'ms':>8}  {'us for each more':>17}    median of {ROUNDS} rounds")
    for before, count in zip((None, *VFS), VFS, strict=False):
        more = "" if before is None else f"{(least[count] - least[before]) / (count - before) * 1e6:17.1f}"
        print(f"{count:14}    {least[count] * 1000:8.2f}  {more}")


def make_tree(root: str, vfs: int) -> None:
    """A /sys with PORTS physical functions whose VFs have no driver yet: nobody but sysfs knows anything of them."""
    devices = f"{root}/bus/pci/devices"
    os.makedirs(f"{root}/class/net")
    for port in range(PORTS):
        pf = f"0000:{0x10 + port:02x}:00.0"
        share = vfs // PORTS + (port < vfs % PORTS)
        attributes = {"sriov_totalvfs": "128", "sriov_numvfs": str(share), "sriov_drivers_autoprobe": "1"}
        make_function(
            root, pf, {"vendor": "0x15b3", "device": "0x1019", **attributes}, "../../../../bus/pci/drivers/pci-pf-stub"
        )
        for index in range(share):
            vf = f"0000:{0x10 + port:02x}:{(index + 1) >> 3:02x}.{(index + 1) & 7}"
            make_function(root, vf, {"vendor": "0x15b3", "device": "0x101a"})
            os.symlink(f"../{pf}", f"{devices}/{vf}/physfn")
            os.symlink(f"../{vf}", f"{devices}/{pf}/virtfn{index}")


def make_function(root: str, address: str, attributes: dict[str, str], driver: str = "") -> None:
    """One PCI function: its directory below /sys/devices, and the link to it."""
    path = f"{root}/devices/pci0000:00/{address}"
    os.makedirs(path)
    os.makedirs(f"{root}/bus/pci/devices", exist_ok=True)
    os.symlink(f"../../../devices/pci0000:00/{address}", f"{root}/bus/pci/devices/{address}")
    for name, text in {"class": "0x020000", **attributes}.items():
        with open(f"{path}/{name}", "w") as f:
            f.write(f"{text}\n")
    if driver:
        os.symlink(driver, f"{path}/driver")


if __name__ == "__main__":
    main()
