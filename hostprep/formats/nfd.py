"""Labels of a node, as a feature file for node-feature-discovery's source `local`.

They get feature.node.kubernetes.io/ before their names. The file belongs into its features.d, under a name without a
dot before it. Everything in it lapses when the report does, so a pod asks for what is there (hostprep.ready In [true]),
never for what is not: a host that nobody has looked at has no label at all, and neither has a new one. There is nothing
in it that differs from look to look, since nodes are written anew for every label that changes.

What NFD does not do: where its worker is gone, the labels stay with the node as they were.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from hostprep.errors import ReportUnusable
from hostprep.model import Fact
from hostprep.report import READY, Report, stamp

_LONGEST = 63  # LabelValueMaxLength of k8s.io/apimachinery; as many characters for a name
_LAST_SECOND = 253402300799  # of the year 9999: NFD lets nothing lapse whose time it cannot parse
_PAGE_SIZE = re.compile(r"[1-9][0-9]*[KMG]iB")
_ADDRESS = "[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}[.][0-7]"
_VFS = re.compile(f"{_ADDRESS}/vfs")
_GPU = re.compile(f"({_ADDRESS})/bus")  # of GPUs alone it is told whether they answer there


def render(report: Report) -> str:
    """The labels of this host; a look at a part of the profile tells nothing of it."""
    if report.selection is not None:
        return _nothing("only a part was looked at")
    end = min(report.generated_at + report.valid_for, _LAST_SECOND)
    labels = {
        "ready": _truth(report.verdict == READY),
        "verdict": report.verdict,
        "profile": _value(report.profile),
        "reboot-required": _truth(report.reboot_required),
        **{name: value for facts in report.facts.values() for name, value in _told(facts)},
    }
    lines = [f"hostprep.{name}={value}" for name, value in labels.items()]
    return "\n".join(["# of hostprep, until:", f"# +expiry-time={stamp(end)}", *lines]) + "\n"


def unusable(error: ReportUnusable) -> str:
    """One label, which does not lapse: whatever was told of this host before holds no longer."""
    return _nothing("there is no report to rely on")


def _nothing(why: str) -> str:
    return f"# of hostprep: {why}\nhostprep.ready=false\n"


def _told(facts: Mapping[str, Fact]) -> Iterator[tuple[str, str]]:
    """What the facts of one check tell of this host now; of what is not known there is no label."""
    for key, fact in facts.items():
        if _PAGE_SIZE.fullmatch(key) and type(fact.current) is int:
            yield f"hugepages-{key}", str(fact.current)
    counts = [fact.current for key, fact in facts.items() if _VFS.fullmatch(key)]
    numbers = [count for count in counts if isinstance(count, int)]
    if counts and len(numbers) == len(counts):
        yield "vfs", str(sum(numbers))
    if gpus := [found[1] for key in facts if (found := _GPU.fullmatch(key))]:
        yield from _gpus(facts, gpus)


def _gpus(facts: Mapping[str, Fact], addresses: list[str]) -> Iterator[tuple[str, str]]:
    """How many, and what they are and run with where that is the same for all."""
    nothing = Fact.fixed(None)
    yield "gpus", str(len(addresses))
    names = {facts.get(f"{address}/name", nothing).current for address in addresses}
    if len(names) == 1 and isinstance(name := names.pop(), str):
        yield "gpu-model", _value(name)
    version = facts.get("driver/version", nothing).current or facts.get("driver", nothing).current
    if isinstance(version, str):
        yield "gpu-driver", _value(version)


def _truth(yes: bool) -> str:
    return "true" if yes else "false"


def _value(text: str) -> str:
    """Text as the value of a label: what may not be in it becomes `-` (IsValidLabelValue of k8s.io/apimachinery)."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-_.")[:_LONGEST].rstrip("-_.")
