"""What a prepared host knows of OpenKasugai's Makefile, for make(1) to read; where it is not ready, make stops.

    hostprep report --format make > host.mk && make -f Makefile -f host.mk create-cluster-with-all

Or the Makefile includes host.mk: it is of this boot, and valid as long as the report; after that, make stops. It says
`override`, since otherwise the last one to set a variable wins, and that may be the Makefile's own default.

The Makefile takes SRIOV_IF_REGEX_n into a shell twice: as `grep -e $(...):` over the lines of `ip addr`, and as
`grep -e "altname $(...)"`. The quotes that the first needs make the second match nothing, which is as it should be:
by then no interface of the PF is left, and an altname may begin as another one does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence

from hostprep.errors import ReportUnusable
from hostprep.model import Fact, Finding, Status, Unknown
from hostprep.render import line, summary
from hostprep.report import READY, Report, stamp

_OURS = "HOSTPREP_READY"
# What recipes can hand to a shell as it is; the kernel allows more in a name (dev_valid_name).
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_BOOT_ID = re.compile(r"[0-9a-f-]+")
_INSTALLER = re.compile(r"NVIDIA-Linux-[A-Za-z0-9_.-]+\.run")
_WITHOUT_INTERFACE = ("none", "vfio-pci", "pci-stub", "igb_uio", "uio_pci_generic")  # drivers of a VF
_IN_MAKE = str.maketrans({"$": "$$", "#": " ", "\\": "/", "(": "[", ")": "]"})  # where a message stands
_LONGEST = 400


class _Untold(Exception):
    """Why make must not go on."""


def render(report: Report) -> str:
    """The variables; or what makes make stop, where the host is not ready or does not tell them all."""
    if report.verdict != READY:
        bad = [f for f in report.findings if f.counts and f.status not in (Status.PASS, Status.VOLATILE)]
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        why = f"{summary(report)} ({', '.join(f.name for f in bad[:3])}{more})" if bad else summary(report)
        return _stop(f"{report.hostname} is not ready by {report.profile}: {why}. See: hostprep report")
    if report.selection is not None:
        return _stop(f"only a part of {report.hostname} was looked at: {', '.join(report.selection)}")
    try:
        told = dict(_variables(report))
        guard = list(_guard(report))
    except _Untold as e:
        return _stop(f"{report.hostname} is ready by {report.profile}, and yet: {e}")
    head = f"# {_safe(report.hostname)} is ready by {_safe(report.profile)}, until {stamp(_end(report))} or a reboot."
    lines = [f"override {name} := {value}" for name, value in {_OURS: "true", **told}.items()]
    return "\n".join([head, *guard, *lines]) + "\n"


def unusable(error: ReportUnusable) -> str:
    """make stops where there is no report to rely on, too."""
    return _stop(f"{error}. {error.hint}" if error.hint else str(error))


def _stop(why: str) -> str:
    """A variable that stops make as soon as it is read. As words of a command line this is no valid variable either:
    make stops before it makes anything."""
    return f"override {_OURS} := $(error hostprep: {_safe(why[:_LONGEST])})\n"


def _safe(text: str) -> str:
    """Text of this host within a comment or a function of make: nothing in it is make's own."""
    return line(text).translate(_IN_MAKE).strip()


def _end(report: Report) -> int:
    return report.generated_at + report.valid_for


def _guard(report: Report) -> Iterator[str]:
    """A file stays where it is when the host changes: after a reboot the VFs are others, if there are any."""
    if not _BOOT_ID.fullmatch(report.boot_id):
        raise _Untold("which boot this is cannot be told")
    same = f'[ "$$(cat /proc/sys/kernel/random/boot_id)" = {report.boot_id} ]'
    yield f'ifneq ($(shell {same} && [ "$$(date +%s)" -lt {_end(report)} ] && echo valid),valid)'
    yield f"$(error hostprep: what {_safe(report.hostname)} had told is no longer valid, or of another boot: " + (
        "hostprep report --format make)"
    )
    yield "endif"


def _variables(report: Report) -> Iterator[tuple[str, str]]:
    """The variables of the Makefile that this host knows, in the order in which the profile has its PFs."""
    counts: dict[str, int] = {}
    for number, (finding, facts) in enumerate(_pfs(report), start=1):
        address = finding.key.partition("/")[0]
        pf, interfaces = _interfaces(address, facts)
        yield f"SRIOV_PF_IF_{number}", pf
        yield f"SRIOV_IF_REGEX_{number}", _pattern(interfaces)
        counts[pf] = _number(facts, finding.key)
    if len(set(counts.values())) > 1:
        numbers = ", ".join(f"{count} on {pf}" for pf, count in counts.items())
        raise _Untold(f"SRIOV_NUM_VFS is one number, and there are {numbers}")
    for count in set(counts.values()):
        yield "SRIOV_NUM_VFS", str(count)
    installers = {os.path.basename(key) for facts in report.facts.values() for key in facts if _is_installer(key)}
    if len(installers) == 1:
        yield "NVIDIA_DRIVER_FILE", installers.pop()


def _is_installer(key: str) -> bool:
    return key.startswith("installer/") and bool(_INSTALLER.fullmatch(os.path.basename(key)))


def _pfs(report: Report) -> Iterator[tuple[Finding, Mapping[str, Fact]]]:
    """The PFs of which VFs are wanted, each with the facts of its check."""
    for f in report.findings:
        address, slash, name = f.key.partition("/")
        wanted = f.desired.value if f.desired else None
        if slash and name == "vfs" and ":" in address and wanted:
            if f.status not in (Status.PASS, Status.VOLATILE):
                raise _Untold(f"{f.name} is {f.status.value}")
            yield f, report.facts.get(f.check, {})


def _number(facts: Mapping[str, Fact], key: str) -> int:
    count = facts[key].current if key in facts else None
    if type(count) is not int:
        raise _Untold(f"{key} cannot be told")
    return count


def _interfaces(address: str, facts: Mapping[str, Fact]) -> tuple[str, list[str]]:
    """The interface of a PF, and with it those of its VFs, as they are called here: a pod calls its own otherwise."""
    if holder := facts.get(f"{address}/netns"):
        where = holder.current.reason if isinstance(holder.current, Unknown) else f"it is in {holder.current}"
        raise _Untold(f"the interface of {address} is not here, {where}: this host is in use already")
    names = facts[f"{address}/names"].current if f"{address}/names" in facts else ()
    if not isinstance(names, tuple) or not names:
        raise _Untold(f"the interface of {address} cannot be told")
    found = [names[0]]
    for i in range(_number(facts, f"{address}/vfs")):
        name, driver = (facts.get(f"{address}/vf{i}/{what}", Fact.fixed(None)).current for what in ("netdev", "driver"))
        if isinstance(name, str):
            found.append(name)
        elif driver not in _WITHOUT_INTERFACE:
            raise _Untold(f"the interface of VF {i} of {names[0]} cannot be told: is it in another network namespace?")
    if strange := [name for name in found if not _NAME.fullmatch(name)]:
        raise _Untold(f"{strange[0]!r} is no name that a shell takes as it is")
    return found[0], found


def _pattern(names: Sequence[str]) -> str:
    """For `grep -e PATTERN:` over `ip addr`: the lines that begin an interface of one of these names, and no other."""
    either = r"\|".join(name.replace(".", "[.]") for name in names)
    return rf"'^[0-9]*: \({either}\)'"
