r"""Mellanox driver: the MLNX_OFED release that is loaded and that the next boot loads, or the kernel's own.

    mlnx_ofed: 24.04-0.7.0.0       # this release, as `ofed_info -s` says it
    mlnx_ofed: ">=24.04"           # or at least this one
    mlnx_ofed: inbox               # the kernel's own mlx5_core, and no OFED's
    mlnx_ofed:
      version: 24.04-0.7.0.0
      archive: /root/MLNX_OFED_LINUX-24.04-0.7.0.0-ubuntu22.04-x86_64.tgz
      md5: 8a15626083c14dcd64e33f200ebd142a      # or sha256
      options: [--without-fw-update]

Now is the mlx5_core that is loaded, by the srcversion that the kernel has of it: an OFED that is installed and whose
driver is not loaded yet does not count. Next boot is the mlx5_core that modprobe finds for the kernel that boots next:
below updates/ or extra/ it is OFED's, below kernel/ it is `inbox`. A new kernel for which dkms has built nothing brings
the inbox driver back, whatever ofed_info says. What an initramfs holds is not looked at; the installer renews it.

apply installs only where the profile gives an `archive`, and only for the running kernel. That the archive is there is
looked at each time; its digest is computed right before it is unpacked, of the very file that is then unpacked, since
reading hundreds of megabytes at every check would be no help. It is unpacked to a directory of root's alone below
/var/lib/hostprep, which is removed afterwards, and `./mlnxofedinstall --force OPTIONS` runs there for at most
40 minutes. All that it says is kept in /var/log/hostprep/mlnx_ofed-DATE.log. It also updates the firmware of the cards,
unless `options` has --without-fw-update, and it removes the distribution's RDMA packages: both cannot be taken back.

Then the next boot has the driver. A further apply loads it at once (/etc/init.d/openibd restart), but only when nothing
uses a card: while there are VFs, addresses, bonds or bridges, RDMA programs or virtual machines on one it is refused,
and the finding names what that is. --allow-disruption does not change that: reboot instead.

revert leaves an installed OFED as it is, and says so: /usr/sbin/ofed_uninstall.sh removes it.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from hostprep import kmod, pci
from hostprep.errors import ChangeFailed, HostError
from hostprep.host import Host, attempt
from hostprep.model import Change, Desired, Facet, Fact, Facts, Goals, Reading, Section, Suggestion, Unknown

NAME = "mlnx_ofed"
T = TypeVar("T")

_RELEASE = r"[0-9]+\.[0-9]+-[0-9]+(\.[0-9]+)+"
_EXACT = {
    "description": "an exact release (24.04-0.7.0.0), which an archive needs",
    "type": "string",
    "pattern": rf"^{_RELEASE}$(?!\n)",
}
_VERSION = {
    "description": 'a release (24.04-0.7.0.0), at least one (">=24.04"), or inbox: the kernel\'s own driver',
    "type": "string",
    "pattern": rf"^(inbox|{_RELEASE}|>= ?[0-9]+(\.[0-9]+)*(-[0-9]+(\.[0-9]+)*)?)$(?!\n)",
}
SCHEMA = {
    "description": "Release of the Mellanox driver (MLNX_OFED), and the archive that it may be installed from.",
    "anyOf": [
        _VERSION,
        {
            "type": "object",
            "properties": {
                "version": _VERSION,
                "archive": {
                    "description": "MLNX_OFED_LINUX-*.tgz on this host; apply may install it",
                    "type": "string",
                    "pattern": r"^/[^\x00-\x1f]*$(?!\n)",
                },
                "md5": {
                    "description": "an md5 of 32 hexadecimal digits, of the archive",
                    "type": "string",
                    "pattern": r"^[0-9A-Fa-f]{32}$(?!\n)",
                },
                "sha256": {
                    "description": "a sha256 of 64 hexadecimal digits, of the archive",
                    "type": "string",
                    "pattern": r"^[0-9A-Fa-f]{64}$(?!\n)",
                },
                "options": {
                    "description": "of mlnxofedinstall, such as --without-fw-update, --add-kernel-support",
                    "type": "array",
                    "items": {
                        "description": "one option, such as --without-fw-update, without blanks and quotes",
                        "type": "string",
                        "pattern": r"^[A-Za-z0-9/-][A-Za-z0-9._/=,+-]*$(?!\n)",
                    },
                },
            },
            "required": ["version"],
            "additionalProperties": False,
            "dependentRequired": {"md5": ["archive"], "sha256": ["archive"], "options": ["archive"]},
            "dependentSchemas": {
                "archive": {
                    "description": "an archive needs md5 or sha256, exactly one of them",
                    "properties": {"version": _EXACT},
                    "oneOf": [{"required": ["md5"]}, {"required": ["sha256"]}],
                }
            },
        },
    ],
}

INBOX = "inbox"
MODULE = "mlx5_core"
MELLANOX = "15b3:"
INSTALL_S = 40 * 60.0  # seconds; with --add-kernel-support it compiles every driver
RELOAD_S = 300.0
_LOADED = f"/sys/module/{MODULE}"
_MODULES = "/lib/modules"
_OFED_INFO = "/usr/bin/ofed_info"
_OPENIBD = "/etc/init.d/openibd"
_WORK = "/var/lib/hostprep"
_LOGS = "/var/log/hostprep"
# PATH DIGEST OPTIONS: all that it takes to install, so that a plan shows it and apply needs nothing else
_ARCHIVE = "archive/"
_FINAL = "/usr/sbin/ofed_uninstall.sh removes it"
_WITHOUT_FIRMWARE = "--without-fw-update"
_FIRMWARE = f"{_FINAL}; firmware that it updates on the cards stays updated"


class _Driver(NamedTuple):
    """The mlx5_core that modprobe finds for a kernel."""

    version: str | None  # inbox, OFED's, or None where there is none
    srcversion: str = ""


# -- looking --------------------------------------------------------------------------------------


def asked(want: Section, keys: Iterable[str]) -> Sequence[str]:
    wanted = [_recipe(want)] if isinstance(want, dict) and "archive" in want else []
    return list(dict.fromkeys([*wanted, *(key for key in keys if key.startswith(_ARCHIVE))]))


def inspect(host: Host, names: Sequence[str] = ()) -> Facts:
    running = host.kernel()
    release = attempt(_release, host)
    kernels = kmod.next_kernels(host, running)
    drivers = {kernel: attempt(_driver, host, kernel) for kernel in {running, *kernels}}
    now = attempt(_current, host, running, drivers[running], release)
    on_disk = attempt(_brought, drivers, [running], release)
    several = Unknown(f"which kernel boots next cannot be told: {', '.join(kernels)}")
    facts = {
        "version": Fact(now, attempt(_brought, drivers, kernels, release)),
        "kernel": Fact(running, kernels[0] if len(kernels) == 1 else several),
        "installed": Fact.fixed(release),
        "loaded": Fact.fixed(attempt(host.read, f"{_LOADED}/version")),
        "on-disk": Fact.fixed(on_disk),
    }
    if not isinstance(on_disk, Unknown) and now != on_disk:  # else nothing can be loaded anew
        facts["users"] = Fact.fixed(attempt(_users, host))
    for name in names:
        facts[name] = facts["version"]
        facts[_file(name)] = Fact.fixed(attempt(_kind, host, _file(name).removeprefix("file/")))
    return facts


def _sure(reading: T | Unknown) -> T:
    if isinstance(reading, Unknown):
        raise HostError(reading.reason)
    return reading


def _kind(host: Host, path: str) -> str | None:
    kind = host.state_kind(host.resolve(path))
    return None if kind == "absent" else kind


def _release(host: Host) -> str | None:
    """The release of OFED that is installed: `MLNX_OFED_LINUX-24.04-0.7.0.0:`, `OFED-internal-23.07-0.5.0:`."""
    if not host.exists(_OFED_INFO):
        return None
    said = host.run(_OFED_INFO, "-s").strip()
    match = re.fullmatch(rf"[A-Za-z][A-Za-z_-]*-({_RELEASE}):?", said)
    if match is None:
        raise HostError(f"{_OFED_INFO} -s: says no release: {said[:60]!r}")
    return match[1]


def _driver(host: Host, kernel: str) -> _Driver:
    """What modprobe loads for a kernel, as depmod has written it down. OFED's modules are not below kernel/:

    updates/dkms/ on Debian and Ubuntu, extra/mlnx-ofa_kernel/ (and links in weak-updates/) on RHEL, updates/ on SLES.
    """
    file = kmod.file_of(host, kernel, MODULE)
    if file is None:
        built_in = f"/{MODULE}.ko" in (host.read(f"{_MODULES}/{kernel}/modules.builtin") or "")
        return _Driver(INBOX if built_in else None)
    if file.startswith("kernel/"):
        return _Driver(INBOX)
    said = host.run("modinfo", "-k", kernel, MODULE)
    fields = {name: value.strip() for name, _, value in (line.partition(":") for line in said.splitlines())}
    if not fields.get("version"):
        raise HostError(f"modinfo -k {kernel} {MODULE}: names no version of {file}")
    return _Driver(fields["version"], fields.get("srcversion", ""))


def _current(host: Host, kernel: str, on_disk: _Driver | Unknown, release: str | Unknown | None) -> str | None:
    """The driver that is loaded. An inbox one has no version, the kernel's, or one such as 5.0-0."""
    if not host.exists(_LOADED):
        return None
    version, source = host.read(f"{_LOADED}/version") or "", host.read(f"{_LOADED}/srcversion") or ""
    if version == kernel or not re.fullmatch(_RELEASE, version):
        return INBOX
    return _full(version, _sure(release)) if _Driver(version, source) == _sure(on_disk) else version


def _full(version: str | None, release: str | None) -> str | None:
    """A module says 24.04-0.7.0 where its release is 24.04-0.7.0.0."""
    return release if version and release and release.startswith(f"{version}.") else version


def _brought(
    drivers: Mapping[str, _Driver | Unknown], kernels: Sequence[str], release: str | Unknown | None
) -> str | None:
    """The driver that any of these kernels loads."""
    found = {kernel: _full(_sure(drivers[kernel]).version, _sure(release)) for kernel in kernels}
    if len(set(found.values())) > 1:
        each = ", ".join(f"{kernel}: {version or 'none'}" for kernel, version in found.items())
        raise HostError(f"which kernel boots next cannot be told, and their drivers differ ({each})")
    return found[kernels[0]]


def _users(host: Host) -> tuple[str, ...]:
    """What uses a Mellanox card, each in a phrase that names it. HostError where that cannot be told."""
    cards = [f.address for f in pci.network_functions(host) if f.vendor_device.startswith(MELLANOX)]
    if not cards:
        return ()
    from hostprep.sriov import holders  # not at the top: most looks do without it

    vfs = {card: pci.virtual_functions(host, card) for card in cards}
    users = [f"{card} has {len(of)} VFs" for card, of in vfs.items() if of]
    held = holders.holders(host, [*cards, *(vf for of in vfs.values() for vf in of)])
    users += [f"{address}: {who}" for address, who in held.items() if isinstance(who, str)]
    untold = [f"{address}: {who.reason}" for address, who in held.items() if isinstance(who, Unknown)]
    if untold and not users:
        raise HostError(untold[0])
    return tuple(users)


# -- deciding -------------------------------------------------------------------------------------


def decide(facts: Facts, want: Section) -> Goals:
    section = want if isinstance(want, dict) else {"version": want}
    version = section["version"].removeprefix(">=").strip()
    op = ">=" if section["version"].startswith(">=") else "=="
    live = op == "==" and version != INBOX and facts["on-disk"].current == version
    later = facts["version"].next_boot
    recipe = refused = ""
    fix = _fix(version, op)
    if "archive" in section and later != version and not isinstance(later, Unknown):
        recipe = _recipe(section)
        refused, todo = _not_installable(facts, recipe)
        fix = todo if refused else f"hostprep apply --only {NAME}"
    elif later == version and not isinstance(facts["version"].current, Unknown):
        fix = "Reboot this host."
    goals = {
        "version": Desired(
            version,
            op,
            live=live,
            persist=False,
            refused_now=_in_use(facts) if live else "",
            final=_FINAL,
            fix=fix,
        )
    }
    if recipe:
        goals[recipe] = Desired(
            version,
            live=False,
            refused_next=refused,
            final=_FINAL if _WITHOUT_FIRMWARE in section.get("options", ()) else _FIRMWARE,
            means=refused,
            fix=fix,
        )
    return goals


def suggest(facts: Facts) -> Suggestion:
    version = facts["version"]
    if not isinstance(version.current, str) or version != Fact.fixed(version.current):
        return Suggestion(None)
    return Suggestion(version.current, {"": "To have it installed it needs the archive: {version, archive, md5}."})


def _fix(version: str, op: str) -> str:
    """What a person does where the profile has no archive."""
    if version == INBOX:
        return "Remove OFED: /usr/sbin/ofed_uninstall.sh. Then reboot."
    if op == ">=":
        return (
            f"Install MLNX_OFED {version} or later; or give the profile an archive and, in place of >={version}, "
            f"its exact release: hostprep explain {NAME}"
        )
    return f"Install MLNX_OFED {version}, or give the profile its archive: hostprep explain {NAME}"


def _in_use(facts: Facts) -> str:
    """Why the driver must not be loaded anew while it is."""
    users = facts["users"].current if "users" in facts else ()
    if isinstance(users, Unknown):
        return f"who uses the cards cannot be told: {users.reason}"
    return f"the cards are in use: {'; '.join(users)}" if isinstance(users, tuple) and users else ""


def _not_installable(facts: Facts, recipe: str) -> tuple[str, str]:
    """Why the archive cannot be installed, and what to do about that."""
    path = _file(recipe).removeprefix("file/")
    kind: Reading = facts[_file(recipe)].current if _file(recipe) in facts else Unknown("was not looked at")
    if kind != "file":
        why = kind.reason if isinstance(kind, Unknown) else "is no file" if kind else "not there"
        return f"{path}: {why}", "Put the archive where the profile says that it is."
    running, later = facts["kernel"]
    todo = "Boot the kernel that is to stay, then apply again."
    if isinstance(later, Unknown):
        return later.reason, todo
    return ("", "") if running == later else (f"the installer builds for this kernel, and {later} boots next", todo)


def _recipe(section: Section) -> str:
    algorithm = "md5" if "md5" in section else "sha256"
    digest = f"{algorithm}:{section[algorithm].lower()}"
    return _ARCHIVE + shlex.join([section["archive"], digest, *section.get("options", ())])


def _file(recipe: str) -> str:
    return f"file/{shlex.split(recipe.removeprefix(_ARCHIVE))[0]}"


# -- changing -------------------------------------------------------------------------------------


def apply(host: Host, changes: Sequence[Change]) -> None:
    for change in changes:
        if change.facet is Facet.CURRENT:
            _reload(host, change)
        else:
            _install(host, change)


def _install(host: Host, change: Change) -> None:
    if not change.key.startswith(_ARCHIVE) or change.after in (None, INBOX):
        raise ChangeFailed(f"{NAME}: nothing takes an installed driver back", f"Do it by hand: {_FINAL}.")
    path, digest, *options = shlex.split(change.key.removeprefix(_ARCHIVE))
    log = f"{_LOGS}/{NAME}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.log"
    with host.unpacked(path, digest, _WORK) as directory:
        pattern = f"{directory}/*/mlnxofedinstall"
        found = [pattern] if host.rehearsing else host.glob(pattern)
        if len(found) != 1:
            raise ChangeFailed(f"{path}: has no mlnxofedinstall in it, or more than one: is it an MLNX_OFED archive?")
        host.progress(f"{path}: installing; all that is said is kept in {log}")
        try:
            where = found[0].rpartition("/")[0]
            host.run_logged("./mlnxofedinstall", "--force", *options, log=log, timeout=INSTALL_S, directory=where)
        except HostError as e:
            hint = f"See {log}; what it had installed by then stays ({_FINAL})."
            stays = f"{log} tells what was installed; {_FINAL if _WITHOUT_FIRMWARE in options else _FIRMWARE}"
            raise ChangeFailed(str(e), hint, stays=stays) from e


def _reload(host: Host, change: Change) -> None:
    release = _release(host)
    if _full(_driver(host, host.kernel()).version, release) != change.after:
        raise ChangeFailed(f"{NAME}: {change.after or 'what was loaded'} is not on disk any more", "Reboot this host.")
    try:
        host.run(_OPENIBD, "restart", timeout=RELOAD_S)
    except HostError as e:
        try:
            host.run(_OPENIBD, "start", timeout=RELOAD_S)  # better the driver that can be had than none
        except HostError:
            raise ChangeFailed(f"{e}; and {_OPENIBD} start failed too", "Reboot this host.") from e
        raise ChangeFailed(str(e), "Stop what uses the driver, or reboot this host.") from e
