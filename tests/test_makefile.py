"""A profile from a site's OpenKasugai Makefile, row K17: what make would read, without make, and what only it can."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hostprep import makefile, profile
from hostprep.errors import ProfileError
from hostprep.model import Unknown

# The parameters of the install manual, as it has them.
MANUAL = r"""# OpenKasugai all-in-one

.PHONY: all moved

DCI_REGISTRY_ADDR := ghcr.io/openkasugai/controller
DCI_REGISTRY_CERT_URL := http://192.168.10.100/harbor/ca.crt
NVIDIA_DRIVER_FILE := NVIDIA-Linux-x86_64-550.90.12.run
GO_VERSION := 1.23.0

SRIOV_IF_REGEX_1 := ens9f0.*
SRIOV_IF_REGEX_2 := ens9f1.*
SRIOV_PF_IF_1 := ens9f0np0
SRIOV_PF_IF_2 := ens9f1np1
SRIOV_PF_IPADDR_1 := 192.168.20.2/24
SRIOV_NUM_VFS := 8
NV_IPAM_GATEWAY := $(shell echo 192.168.20.1)

all: moved
	sudo bash -c 'echo $(SRIOV_NUM_VFS) > /sys/class/net/$(SRIOV_PF_IF_1)/device/sriov_numvfs' || true
"""


def profiled(tmp_path: Path, text: str) -> tuple[profile.Profile, str]:
    """The profile, loaded as any other one, and its text."""
    made = makefile.profile_from(text, str(tmp_path / "Makefile"))
    (tmp_path / "site.yaml").write_text(made)
    return profile.load(str(tmp_path / "site.yaml")), made


def comments(text: str) -> str:
    return "\n".join(line.partition("#")[2] for line in text.splitlines() if "#" in line)


# -- the profile ----------------------------------------------------------------------------------


def test_k17_the_manuals_makefile_makes_a_valid_profile_of_its_host(tmp_path: Path) -> None:
    made, text = profiled(tmp_path, MANUAL)
    assert made.sections["nic_vfs"] == [
        {"pf": "ens9f0np0", "count": 1, "vfs": 8},
        {"pf": "ens9f1np1", "count": 1, "vfs": 8},
    ]
    assert made.sections["nic_firmware"] == [
        {"cards": pf, "count": 1, "SRIOV_EN": True, "NUM_OF_VFS": 8} for pf in ("ens9f0np0", "ens9f1np1")
    ]
    assert made.sections["gpu"] == {
        "count": 1,
        "model": "A100",
        "driver": "unloaded",
        "installer": f"{tmp_path}/driver/nvidia/NVIDIA-Linux-x86_64-550.90.12.run",
        "makefile": f"{tmp_path}/Makefile",
    }
    base = profile.load("openkasugai-all-in-one").sections
    own = ("nic_vfs", "nic_firmware", "gpu")
    assert {name: s for name, s in made.sections.items() if name not in own} == {
        name: s for name, s in base.items() if name not in own
    }
    assert "Beware" not in text


@pytest.mark.parametrize(
    "said",
    [
        "SRIOV_PF_IF_2, line 13",
        "versions: GO_VERSION = 1.23.0",
        "registry login: DCI_REGISTRY_CERT_URL = http://192.168.10.100/harbor/ca.crt",
        "SR-IOV network: SRIOV_PF_IPADDR_1 = 192.168.20.2/24",
        "SR-IOV network: NV_IPAM_GATEWAY = cannot be told: made by $(shell echo 192.168.20.1)",
    ],
)
def test_what_a_profile_cannot_carry_is_said_in_a_comment(tmp_path: Path, said: str) -> None:
    assert said in comments(profiled(tmp_path, MANUAL)[1])


def test_one_saved_under_the_name_of_its_base_is_told_so(tmp_path: Path) -> None:
    """A file in /etc/hostprep/profiles hides the bundled one of its name, and would extend itself."""
    assert profiled(tmp_path, MANUAL)[0].name != "openkasugai-all-in-one"


# -- what make reads ------------------------------------------------------------------------------

# Text -> what X is at the end; None: only make can tell. The real make says the same, or at least not the opposite.
READ: dict[str, tuple[str, str | None]] = {
    "simple": ("X := 8\n", "8"),
    "posix": ("X ::= 8\n", "8"),
    "recursive": ("X = $(Y)\nY = 8\n", "8"),
    "simple, too early": ("Y := 1\nX := $(Y)\nY := 8\n", "1"),
    "without blanks": ("X:=8\n", "8"),
    "the last one": ("X := 1\nX := 8\n", "8"),
    "default": ("X ?= 8\n", "8"),
    "default of what is set": ("X := 8\nX ?= 1\n", "8"),
    "appended": ("X := a\nX += b\n", "a b"),
    "appended to nothing": ("X += b\n", "b"),
    "appended, recursive": ("X = a\nX += $(Y)\nY = b\n", "a b"),
    "appended, simple": ("Y := b\nX := a\nX += $(Y)\nY := c\n", "a b"),
    "continued": ("X := a \\\n   b\\\n\tc\n", "a b c"),
    "continued, and a comment": ("X := a \\\n b # c \\\n X := 1\n", "a b"),
    "two backslashes do not continue": ("X := 8\nZ := a\\\\\nX := 9\n", "9"),
    "comment": ("X := 8# eight\n", "8"),
    "commented out": ("X := 8\n# X := 9\n", "8"),
    "comment that goes on": ("X := 8\n# no \\\nX := 9\n", "8"),
    "a number sign": ("X := a\\#b\n", "a#b"),
    "a dollar": ("X := a$$b\n", "a$b"),
    "braces": ("Y := 8\nX := ${Y}\n", "8"),
    "one letter": ("Y := 8\nX := $Y\n", "8"),
    "export": ("export X := 8\n", "8"),
    "override": ("override X := 8\nX := 9\n", "8"),
    "windows": ("X := 8\r\nY := 1\r\n", "8"),
    "in a recipe": ("X := 8\nall:\n\tX := 9\n", "8"),
    "in a recipe, continued": ("X := 8\nall:\n\techo \\\nX := 9\n", "8"),
    "after a recipe": ("all:\n\ttrue\nX := 8\n", "8"),
    "a tab without a rule": ("Y := 1\n\tX := 8\n", "8"),
    "a tab after a setting": ("all:\n\ttrue\nY := 1\n\tX := 8\n", "8"),
    "a tab after a setting of one target": ("all: Y := 1\n\tX := 8\n", "8"),
    "half of the backslashes": ("X := a\\\\\\#b\\\\# no\n", "a\\#b\\"),
    "half of those that continue": ("X := a\\\\\\\n b\n", "a\\ b"),
    "of one target": ("X := 8\nall: X := 9\n", "8"),
    "a rule that looks like one": ("X := 8\nX: ; true\n", "8"),
    "in a define": ("X := 8\ndefine Y\nX := 9\nendef\n", "8"),
    "after a define": ("define Y\ndefine Z\nendef\nendef\nX := 8\n", "8"),
    "after a condition": ("ifdef Y\nX := 1\nendif\nX := 8\n", "8"),
    "in a condition": ("X := 1\nifdef HOME\n  X := 8\nendif\n", None),
    "in an else": ("ifeq (1,1)\nX := 8\nelse ifeq (1,2)\nX := 9\nelse\nX := 7\nendif\n", None),
    "of one in a condition": ("ifdef Y\nY := 1\nendif\nX := $(Y)\n", None),
    "undefined in a condition": ("X := 8\nifdef Y\nundefine X\nendif\n", None),
    "appended in a condition": ("X := 8\nifdef HOME\nX += 9\nendif\n", None),
    "appended after a condition": ("ifdef HOME\nX := 8\nendif\nX += 9\n", None),
    "default in a condition": ("X := 8\nifdef HOME\nX ?= 9\nendif\n", "8"),
    "undefined": ("X := 8\nundefine X\n", None),
    "the shell": ("X := $(shell echo 8)\n", None),
    "a command": ("X != echo 8\n", None),
    "a function": ("X := $(strip 8)\n", None),
    "a substitution": ("Y := a.c\nX := $(Y:.c=.o)\n", None),
    "a computed name": ("Y := 8\nZ := Y\nX := $($(Z))\n", None),
    "of nothing": ("X := $(NOWHERE)\n", None),
    "of several lines": ("define X\n8\nendef\n", None),
    "an open reference": ("X = $(Y\nX = 8\n", "8"),
    "a dollar at the end": ("X = a$\n", None),
}


@pytest.mark.parametrize("case", READ)
def test_a_variable_is_what_make_has(case: str) -> None:
    text, wanted = READ[case]
    found = makefile.told(makefile.variables(text)[0], "X")
    assert (None if isinstance(found, Unknown) else found) == wanted


@pytest.mark.parametrize("case", [case for case, (_, wanted) in READ.items() if wanted is not None])
def test_the_real_make_has_the_same(case: str, tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    text, wanted = READ[case]
    (tmp_path / "Makefile").write_text(f"{text}\n$(info <$(X)>)\nall:\n", newline="")
    command = ["make", "-n", "all"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert f"<{wanted}" in re.sub(r"\s+>", ">", done.stdout), done.stderr


# -- what keeps a profile from being made ---------------------------------------------------------

MISTAKES: dict[str, tuple[str, str, list[str]]] = {
    "another makefile": (MANUAL, "all:\n\ttrue\n", ["1:1: SRIOV_PF_IF_1: is not set", "1:1: SRIOV_NUM_VFS: cannot be"]),
    "empty": (MANUAL, "", ["1:1: SRIOV_PF_IF_1: is not set", "1:1: SRIOV_NUM_VFS: cannot be told: not set"]),
    "no number": ("VFS := 8", "VFS := eight", ["15:1: SRIOV_NUM_VFS: 'eight' is not a number of VFs, from 1 to 65535"]),
    "none": ("VFS := 8", "VFS := 0", ["15:1: SRIOV_NUM_VFS: '0' is not a number"]),
    "octal": ("VFS := 8", "VFS := 010", ["15:1: SRIOV_NUM_VFS: '010' is not a number"]),
    "too many": ("VFS := 8", "VFS := 65536", ["15:1: SRIOV_NUM_VFS: '65536' is not a number"]),
    "the shell": ("VFS := 8", "VFS := $(shell touch pwned)", ["15:1: SRIOV_NUM_VFS: cannot be told: made by $(shell"]),
    "indented": ("SRIOV_NUM_VFS := 8", "  export SRIOV_NUM_VFS := x", ["15:10: SRIOV_NUM_VFS: 'x' is not"]),
    "a condition": (
        "SRIOV_NUM_VFS := 8",
        "ifdef BIG\nSRIOV_NUM_VFS := 8\nendif",
        ["16:1: SRIOV_NUM_VFS: cannot be told: set under a condition (line 15)"],
    ),
    "of another": (
        "VFS := 8",
        "VFS = $(N)\nN = $(M)\nM = $(N)",
        ["15:1: SRIOV_NUM_VFS: cannot be told: N: M: N: refers to itself"],
    ),
    "no name": ("_1 := ens9f0np0", "_1 := ens9/f0", ["12:1: SRIOV_PF_IF_1: 'ens9/f0' is not the name of a network"]),
    "an altname": ("_1 := ens9f0np0", "_1 := enp23s0f0np0np0x", ["12:1: SRIOV_PF_IF_1: 'enp23s0f0np0np0x' is not"]),
    "a glob": ("_1 := ens9f0np0", "_1 := ens9f*", ["12:1: SRIOV_PF_IF_1: 'ens9f*' is not the name"]),
    "two names": ("_1 := ens9f0np0", "_1 := a b", ["12:1: SRIOV_PF_IF_1: 'a b' is not the name"]),
    "nothing": ("_1 := ens9f0np0", "_1 :=", ["12:1: SRIOV_PF_IF_1: '' is not the name"]),
    "a quote": ("_1 := ens9f0np0", '_1 := a", b: "c', ["12:1: SRIOV_PF_IF_1: 'a\", b: \"c' is not the name"]),
    "twice the same": ("ens9f1np1", "ens9f0np0", ["13:1: SRIOV_PF_IF_2: ens9f0np0 is SRIOV_PF_IF_1 already"]),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_a_profile_needs_and_cannot_be_told_is_an_error_with_its_place(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before, after, wanted = MISTAKES[case]
    with pytest.raises(ProfileError) as e:
        makefile.profile_from(MANUAL.replace(before, after), "site/Makefile")
    assert len(e.value.problems) == len(wanted)
    for problem, start in zip(e.value.problems, wanted, strict=True):
        assert problem.startswith(f"site/Makefile:{start}")
    assert os.listdir(tmp_path) == []


def test_a_line_of_many_number_signs_is_read() -> None:
    found = makefile.told(makefile.variables("X := " + "\\#" * 4000 + "# no\n")[0], "X")
    assert found == "#" * 4000


def test_a_loop_or_a_tower_of_references_ends() -> None:
    tower = "".join(f"V{i} = $(V{i + 1})\n" for i in range(5000)) + "V5000 = 8\n"
    found = makefile.told(makefile.variables(tower)[0], "V0")
    assert isinstance(found, Unknown)
    wide = "".join(f"V{i} = $(V{i + 1})$(V{i + 1})\n" for i in range(40)) + "V40 = 8\n"
    assert makefile.told(makefile.variables(wide)[0], "V30") == "8" * 1024
    assert isinstance(makefile.told(makefile.variables(wide)[0], "V0"), Unknown)


# -- what is told, and may yet be otherwise -------------------------------------------------------

TRAPS: dict[str, tuple[str, str, str]] = {
    "an include": ("all: moved", "include host.mk", "line 18 includes host.mk, which may set some of this otherwise"),
    "eval": ("all: moved", "$(eval SRIOV_NUM_VFS := 9)", "line 18 may set variables: $(eval SRIOV_NUM_VFS := 9)"),
    "a computed name": ("all: moved", "$(P)_VFS := 9", "line 18 sets a variable whose name is computed, $(P)_VFS"),
    "the environment": ("VFS := 8", "VFS ?= 8", "SRIOV_NUM_VFS (line 15) is set with ?=, unless the environment has"),
    "a blank": ("_1 := ens9f0np0", "_1 := ens9f0np0 # the first", "SRIOV_PF_IF_1 (line 12) ends with a blank"),
    "both PFs": ("ens9f0.*", "ens9f.*", "SRIOV_IF_REGEX_1 (line 10) matches ens9f1np1 too"),
    "no PF": ("ens9f0.*", "ens9f2.*", "SRIOV_IF_REGEX_1 (line 10) does not match ens9f0np0"),
}


@pytest.mark.parametrize("case", TRAPS)
def test_what_may_be_otherwise_is_said_at_the_top(case: str, tmp_path: Path) -> None:
    before, after, said = TRAPS[case]
    made, text = profiled(tmp_path, MANUAL.replace(before, after))
    assert f"# Beware: {said}" in text
    assert made.sections["nic_vfs"][0] == {"pf": "ens9f0np0", "count": 1, "vfs": 8}


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("$(shell ls driver/nvidia)", "made by $(shell ls driver/nvidia)"),
        ("../NVIDIA-Linux-x86_64-1.run", "'../NVIDIA-Linux-x86_64-1.run' is not the name of a file"),
        ("a b.run", "'a b.run' is not the name of a file"),
    ],
)
def test_an_installer_that_cannot_be_told_is_left_out_and_said(tmp_path: Path, file: str, why: str) -> None:
    made, text = profiled(tmp_path, MANUAL.replace("NVIDIA-Linux-x86_64-550.90.12.run", file))
    assert not {"installer", "makefile"} & set(made.sections["gpu"])
    assert f"NVIDIA_DRIVER_FILE cannot be told: {why}" in comments(text)


@pytest.mark.parametrize(
    "path", ["-", "/tmp/a\nswap: enabled\n/Makefile", "/tmp/\udcff/Makefile", '/tmp/"#: /Makefile']
)
@pytest.mark.parametrize("value", ["a\x1b[31m\x85swap: x", "\u2028x", "\udcff\ufeff", "é\U0001f600", "x" * 5000])
def test_hostile_text_stays_in_its_comment(tmp_path: Path, path: str, value: str) -> None:
    text = makefile.profile_from(MANUAL.replace("1.23.0", value) + f"include {value}\n", path)
    (tmp_path / "site.yaml").write_text(text)
    made = profile.load(str(tmp_path / "site.yaml"))
    assert made.sections["swap"] == "disabled"
    assert max(map(len, text.splitlines())) < 400
