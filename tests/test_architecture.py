"""Who may import whom: the table is the architecture."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEAVES = {"errors", "model", "quantities", "versions"}
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "model": set(),
    "quantities": set(),
    "units": set(),
    "versions": set(),
    "files": {"errors"},
    "benchmarks": {"engines", "errors", "host", "quantities"},
    "hugetlb": {"model", "quantities"},
    "host": {"errors", "files", "model"},
    "engines": {"errors", "host"},
    "net": {"engines", "errors", "host", "model"},
    "pci": {"errors", "host", "model"},
    "mstconfig": {"errors", "host", "model"},
    "kmod": {"bootloader", "errors", "host", "model", "pci", "versions"},
    "sriov": {"errors", "host", "model", "pci", "units"},
    "nvidia": {"boot_record", "errors", "host", "kmod", "makefile", "model", "pci"},
    "boot_record": {"errors", "host", "model", "pci"},
    "bootloader": {"errors", "files", "host", "model", "versions"},
    "registry": {"host", "model"},
    "judge": {"model", "quantities", "versions"},
    "journal": {"errors", "files", "host", "model"},
    "engine": {"errors", "host", "jobs", "judge", "model", "registry"},
    "perform": {"engine", "errors", "host", "journal", "judge", "model", "registry"},
    "revert": {"engine", "errors", "host", "journal", "judge", "model", "perform", "registry"},
    "recreate": {"boot_record", "errors", "host", "judge", "model", "perform", "registry"},
    "reboot": {"engine", "errors", "host", "jobs", "journal", "model", "report"},
    "profile_files": {"errors", "files"},
    "profile": {"errors", "files", "model", "profile_files", "profile_source", "registry"},
    "profile_source": {"errors", "model", "profile_files", "quantities", "registry"},
    "report": {"engine", "errors", "model"},
    "render": {"engine", "host", "install", "judge", "model", "perform", "quantities", "report"},
    "formats": {"errors", "judge", "model", "quantities", "render", "report"},
    "gate": {"errors", "host", "model", "profile", "profile_files", "report", "state"},
    "install": {"errors", "host"},
    "packages": {"boot_record", "errors", "host", "install"},
    "jobs": {"errors", "host", "model"},
    "diff": {"errors", "judge", "model", "profile_source", "render", "report"},
    "diff_text": {"diff", "judge", "model", "render"},
    "makefile": {"errors", "model"},
    "from_host": {"engine", "errors", "host", "judge", "model", "profile_source", "registry", "report"},
    "serve": {"errors", "formats", "gate", "profile", "profile_files", "report", "state"},
    "slurm": {"errors", "gate", "host", "report"},
    "share": set(),
    "state": {"errors", "files", "host", "report"},
    "commands": {
        *(
            "engine",
            "errors",
            "diff",
            "diff_text",
            "files",
            "formats",
            "from_host",
            "gate",
            "host",
            "install",
            "journal",
            "judge",
            "makefile",
            "model",
            "packages",
            "perform",
            "profile",
            "profile_files",
            "profile_source",
        ),
        *("quantities", "reboot", "recreate", "registry", "render", "report", "revert", "serve", "state"),
    },
    "cli": {"commands", "engine", "errors", "formats", "packages", "profile_files", "quantities", "registry", "report"},
    "__main__": {"cli", "commands", "errors", "report"},
}
# Words that are also the name of a check, where they are not.
OTHER_THINGS = {
    "docker": {"network"},  # docker network ls
    "hugetlb": {"hugepages"},  # the kernel's argument
    "install": {"files"},  # a key of the list of what was installed
    "makefile": {"files"},  # the field of a tuple
    "owners": {"network"},  # a key of netplan
    "registries": {"registry"},  # a key of registries.conf
}
CHECKS_MAY_IMPORT = {
    *(
        "benchmarks",
        "boot_record",
        "bootloader",
        "engines",
        "errors",
        "host",
        "hugetlb",
        "kmod",
        "model",
        "mstconfig",
        "net",
        "nvidia",
        "pci",
        "quantities",
        "sriov",
        "units",
        "versions",
    ),
}
ONLY_HOST = {"subprocess", "pyroute2", "pyudev", "pynvml", "psutil", "socket", "ssl", "ctypes"}
CORE = sorted(p for p in (ROOT / "hostprep").rglob("*.py") if "checks" not in p.relative_to(ROOT).parts)
CHECKS = sorted((ROOT / "checks").glob("*.py"))


def room(path: Path) -> str:
    """The room of a module: its own name, or its package's."""
    return path.relative_to(ROOT / "hostprep").parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Full names of what a module imports, those within functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "hostprep":
            yield from (f"hostprep.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def rooms_used(path: Path) -> set[str]:
    ours = (name.split(".") for name in imports(path) if name.startswith("hostprep."))
    return {parts[1] for parts in ours if parts[1] != "__version__"}


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT / "hostprep")))
def test_a_room_imports_only_what_the_table_allows(path: Path) -> None:
    assert rooms_used(path) <= MAY_IMPORT[room(path)] | {room(path)}


@pytest.mark.parametrize("path", CHECKS, ids=lambda p: p.stem)
def test_a_check_knows_neither_the_core_nor_another_check(path: Path) -> None:
    assert rooms_used(path) <= CHECKS_MAY_IMPORT


@pytest.mark.parametrize("path", [*CORE, *CHECKS], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_only_the_host_touches_the_machine(path: Path) -> None:
    if "host" in path.relative_to(ROOT).parts[1:-1]:
        return
    passed_by_systemd = {"socket"} if path.stem == "serve" else set()  # a listening socket is handed to it
    assert not (ONLY_HOST - passed_by_systemd) & {name.split(".")[0] for name in imports(path)}


def test_the_core_names_no_check() -> None:
    names = {p.stem for p in CHECKS} - {"__init__"}
    for path in CORE:
        strings = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)}
        assert not names & strings - OTHER_THINGS.get(path.stem, set()), path


def test_checks_are_imported_under_one_name() -> None:
    """The directory at the top is for people; two copies of one module would be two checks."""
    assert "checks" not in sys.modules
