"""What the README shows is what there is."""

from __future__ import annotations

import re
import types
from pathlib import Path

import pytest
from click.testing import CliRunner

from hostprep import cli, engine, profile_source, registry
from hostprep.host import Host
from hostprep.model import Profile

ROOT = Path(__file__).parent.parent
README, JAPANESE = ((ROOT / name).read_text() for name in ("README.md", "README.ja.md"))


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, re.S)
    assert found
    return found[1]


def test_the_profile_is_valid() -> None:
    document = profile_source.validate("README.md", block("yaml").encode())
    assert "hugepages" in document.document


def test_the_check_is_a_check() -> None:
    """It is one file: looked at on this machine, judged, and explained."""
    check = types.ModuleType("entropy")
    exec(block("python"), check.__dict__)  # the README's own code
    profile = Profile("readme", "", {"entropy": {"bits": 1}})
    seen = engine.examine(Host(), profile, {"entropy": check})  # type: ignore[dict-item]  # a module is a Check
    assert [(f.name, f.desired and f.desired.value) for f in seen.findings] == [("entropy/bits", 1)]
    assert registry.manual(check).startswith("Entropy:")  # type: ignore[arg-type]  # a module is a Check


@pytest.mark.parametrize("command", sorted(cli.main.commands))
def test_every_command_is_told_and_helps(command: str) -> None:
    assert f"`hostprep {command}" in README
    done = CliRunner().invoke(cli.main, [command, "--help"])
    assert done.exit_code == 0
    assert done.output.startswith(f"Usage: main {command}")


def test_every_check_is_told() -> None:
    assert all(f"| `{name}` |" in README for name in registry.names())


WORDS = [*(f"| `{name}` |" for name in registry.names()), *(f"`hostprep {name}" for name in cli.main.commands)]


@pytest.mark.parametrize("word", WORDS)
def test_the_japanese_readme_tells_every_check_and_command_too(word: str) -> None:
    assert word in JAPANESE


def test_the_japanese_readme_has_the_same_exit_statuses_and_sections_of_profiles() -> None:
    statuses = re.compile(r"^\| (\d+) \|", re.M)
    assert statuses.findall(JAPANESE) == statuses.findall(README)
    for text in re.findall(r"```yaml\n(name:.*?)```", JAPANESE, re.S):
        assert profile_source.validate("README.ja.md", text.encode()).document


def rows_of_documents() -> dict[str, set[str]]:
    """What the README says carries each row: names of checks and commands."""
    found = re.findall(r"^\| ([KJ][0-9]+(?:, [KJ][0-9]+)*) \| [^|]+ \| ([^|]+) \|$", README, re.M)
    return {row: set(re.findall(r"`([^`]+)`", carried)) for rows, carried in found for row in rows.split(", ")}


def test_every_row_of_the_two_documents_is_told() -> None:
    assert set(rows_of_documents()) == {*(f"K{n}" for n in range(1, 20)), *(f"J{n}" for n in range(1, 9))}


@pytest.mark.parametrize(
    ("letter", "profiles"), [("K", ["openkasugai-all-in-one"]), ("J", ["pbs-compute-node", "pbs-gpu-node"])]
)
def test_the_bundled_profiles_have_what_the_readme_says_carries_a_row(letter: str, profiles: list[str]) -> None:
    paths = [ROOT / "hostprep" / "profiles" / f"{name}.yaml" for name in profiles]
    sections = {check for p in paths for check in profile_source.load(str(p), p.read_bytes())[0].sections}
    for row, carried in rows_of_documents().items():
        commands = {word for word in carried if word.startswith("hostprep ")}
        assert all(word.split()[1] in cli.main.commands for word in commands), row
        assert row[0] != letter or carried - commands <= sections, row
