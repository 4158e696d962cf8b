"""Every mistake in a profile is said, all at once, each with file:line:column and what would be right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hostprep import profile, profile_source
from hostprep.errors import ProfileError

WAIVED = "swap: disabled\nwaivers:\n- {finding: %s, reason: %s, until: %s}\n"
FIRMWARE = "nic_firmware: {cards: a, %s}\n"
OFED = "mlnx_ofed: {archive: /a.tgz, version: %s}\n"

# What is written -> `line:column: ` and what is said, one for each problem, in the order of the lines.
MISTAKES: dict[str, tuple[str | bytes, list[str]]] = {
    # T1, T3: a profile that asks for nothing must not make a host ready
    "empty": ("", ["1:1: empty"]),
    "only a comment": ("# nothing\n", ["1:1: empty"]),
    "only a name": ("name: nothing\n", ["1:1: this profile checks nothing"]),
    "a section without a value": ("hardware: {cpus: 1}\nswap:\n", ["2:6: swap: nothing is given"]),
    "all sections null": ("swap: null\n", ["1:7: swap: nothing is given"]),
    "all taken out": (
        "extends: baseline\n" + "".join(f"{s}: null\n" for s in profile.load("baseline").sections),
        ["1:1"],
    ),
    "an empty list": ("system: {modules: {loaded: []}}\n", ["1:28: system.modules.loaded: is empty"]),
    "an empty mapping": ("hardware: {}\n", ["1:11: hardware: is empty"]),
    # T2: unknown and duplicate keys
    "an unknown section": ("swpa: disabled\n", ["1:1: unknown key 'swpa'; did you mean 'swap'?"]),
    "an unknown section that is null": ("swap: disabled\nswpa:\n", ["2:1: unknown key 'swpa'; did you mean 'swap'?"]),
    "an unknown key": ("hardware:\n  cors: 4\n", ["2:3: hardware: unknown key 'cors'; did you mean 'cores'?"]),
    "an unknown size": ("hugepages: {1GB: 4}\n", ["1:13: hugepages: unknown key '1GB'; did you mean '1GiB'?"]),
    "a key twice": ("swap: disabled\nswap: disabled\n", ["2:1: 'swap' comes a second time; the first is on line 1"]),
    "a key twice below": ("hardware: {cpus: 1, cpus: 2}\n", ["1:21: 'cpus' comes a second time"]),
    "a key that is no text": ("? [a]\n: b\n", ["1:3: a key must be text"]),
    "a merge key": ("<<: {swap: disabled}\n", ["1:1: unknown key '<<'"]),
    # quantities
    "32gb": ("hardware: {memory: 32gb}\n", ["1:20: hardware.memory: '32gb' is not a size such as 32GB or 32GiB"]),
    "32 Gb": ("hardware: {disk: {/: 32 Gb}}\n", ["1:22: hardware.disk./: '32 Gb' is not a size"]),
    "a newline at the end of a size": ('hardware: {memory: "32GB\\n"}\n', ["1:20: hardware.memory: '32GB\\n' is not"]),
    "a newline at the end of a name": ('name: "a\\n"\nswap: disabled\n', ["1:7: name: 'a\\n' is not a name"]),
    "a duration": ("swap: disabled\nvalid_for: 10x\n", ["2:12: valid_for: '10x' is not valid: how long"]),
    "no time at all": ("swap: disabled\nvalid_for: 0\n", ["2:12: valid_for: 0 is too small"]),
    # kinds
    "a word for a number": ("hardware: {cpus: eight}\n", ["1:18: hardware.cpus: 'eight' is text, but a whole number"]),
    "a truth value for a number": ("hardware: {cpus: yes, cores: true}\n", ["1:18: ", "1:30: hardware.cores: true is"]),
    "a negative number": ("hugepages: {1GiB: -1}\n", ["1:19: hugepages.1GiB: -1 is too small"]),
    "a choice": ("swap: enabled\n", ["1:7: swap: 'enabled' is not one of: disabled; did you mean 'disabled'?"]),
    "a list at the top": ("- swap\n", ["1:1: a profile is a mapping of sections, not a list"]),
    "a word at the top": ("disabled\n", ["1:1: a profile is a mapping of sections, not text"]),
    "no value": ("hardware: {cpus: }\n", ["1:18: hardware.cpus: has no value; what belongs there: logical CPUs"]),
    "a mapping for a number": ("hardware: {cpus: {a: b}}\n", ["1:18: hardware.cpus: is a mapping, but a whole"]),
    # alternatives, and what depends on other keys: each is one line, in the words of the schema
    "a truth value in words": (
        FIRMWARE % "SRIOV_EN: yes",
        ["1:36: nic_firmware.SRIOV_EN: 'yes' is not valid: true or"],
    ),
    "a quoted number": (FIRMWARE % "NUM_OF_VFS: '8'", ["1:38: nic_firmware.NUM_OF_VFS: '8' is not a number of VFs"]),
    "less than none": (FIRMWARE % "PF_NUM_OF_VF: -1", ["1:40: nic_firmware.PF_NUM_OF_VF: -1 is too small: at least 0"]),
    "no parameter's value": (FIRMWARE % "X: a b", ["1:29: nic_firmware.X: 'a b' is not a value as the tool shows it"]),
    "small letters": (
        FIRMWARE % "link_type_p1: IB",
        ["1:26: nic_firmware: unknown key 'link_type_p1'; parameters are in"],
    ),
    "no digest": (OFED % "24.04-0.7.0.0", ["1:12: mlnx_ofed: an archive needs md5 or sha256, exactly one"]),
    "two digests": (
        OFED % f"24.04-0.7.0.0, md5: x{'0' * 31}, sha256: x{'0' * 63}".replace("x", "a"),
        ["1:12: mlnx_ofed: an archive needs md5 or sha256, exactly one"],
    ),
    "an archive of at least": (OFED % f"'>=24.04', md5: a{'0' * 31}", ["1:39: mlnx_ofed.version: '>=24.04' is not an"]),
    "an archive of a word": (OFED % f"latest, md5: a{'0' * 31}", ["1:39: mlnx_ofed.version: 'latest' is not an exact"]),
    "a digest of nothing": (
        f"mlnx_ofed: {{version: inbox, md5: a{'0' * 31}}}\n",
        ["1:29: mlnx_ofed: md5 needs archive"],
    ),
    "too many VFs": ("nic_vfs: [{pf: '*', vfs: 65536}]\n", ["1:26: nic_vfs[0].vfs: 65536 is too large: at most 65535"]),
    # advisory, assert_only and waivers that would have no effect
    "advisory": ("swap: disabled\nadvisory: [swop]\n", ["2:12: advisory[0]: 'swop' names no check of this profile"]),
    "an advisory glob": ("swap: disabled\nadvisory: ['swop/*']\n", ["2:12: advisory[0]: 'swop/*' names no check"]),
    "assert_only": ("swap: disabled\nassert_only: [system]\n", ["2:15: assert_only[0]: 'system' names no check"]),
    "assert_only of a part": (
        "swap: disabled\nassert_only: [swap/devices]\n",
        ["2:15: assert_only[0]: 'swap/devices'"],
    ),
    "assert_only of a glob": ("swap: disabled\nassert_only: [sw*]\n", ["2:15: assert_only[0]: 'sw*' names no check"]),
    "a waiver of nothing": (WAIVED % ("swop/*", "because", "2027-01-31"), ["3:13: waivers[0].finding: 'swop' is no"]),
    "a waiver of a check": (WAIVED % ("swap", "because", "2027-01-31"), ["3:13: waivers[0].finding: names no finding"]),
    # waivers need a reason and a day
    "a waiver without both": (
        "swap: disabled\nwaivers: [{finding: swap/*}]\n",
        ["2:11: waivers[0]: reason and until must be given"],
    ),
    "a waiver with an empty reason": (WAIVED % ("swap/*", '""', "2027-01-31"), ["3:29: waivers[0].reason: '' is too"]),
    "a German date": (
        WAIVED % ("swap/*", "because", "31.1.2027"),
        ["3:45: waivers[0].until: '31.1.2027' is not a date"],
    ),
    "a day that is not": (
        WAIVED % ("swap/*", "because", "2027-02-30"),
        ["3:45: waivers[0].until: there is no day 2027-02"],
    ),
    "for ever": (WAIVED % ("swap/*", "because", "never"), ["3:45: waivers[0].until: 'never' is not a date"]),
    # extends
    "an unknown base": (
        "extends: baselin\n",
        ["1:10: extends: there is no profile named 'baselin'; did you mean 'base"],
    ),
    "a base that is not there": ("extends: ./gone.yaml\n", ["1:10: extends: "]),
    "nothing to take out": ("extends: baseline\nswap: null\nnic: null\n", ["3:1: unknown key 'nic'"]),
    # what YAML itself allows and nobody needs here
    "an anchor": ("hardware: &a {cpus: 1}\nswap: *a\n", ["1:11: anchors and aliases", "2:7: anchors and aliases"]),
    "a billion laughs": ("a: &a [x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", ["1:4: anchors"] + ["2:"] * 3 + ["3:"] * 3),
    "a tag": ("swap: !!python/object/apply:os.system [id]\n", ["1:7: tags (tag:yaml.org,2002:python/object/apply"]),
    "two documents": ("swap: disabled\n---\nswap: disabled\n", ["2:1: a second document"]),
    "an abyss": ("hardware: " + "[" * 100_000, ["1:42: nested deeper than 32"]),
    # bytes
    "a tab": ("hardware:\n\tcpus: 8\n", ["2:1: not YAML: a tab where spaces belong"]),
    "a NUL": ("swap: dis\0abled\n", ["1:10: the control character U+0000 is not text"]),
    "an escape": ("swap: disabled # \x1b[2J\n", ["1:18: the control character U+001B is not text"]),
    "Latin-1": (b"# Gr\xfc\xdfe\nswap: disabled\n", ["1:5: not UTF-8"]),
    "UTF-16": ("swap: disabled\n".encode("utf-16"), ["1:1: not UTF-8"]),
    "an open quote": ('hardware: {machine: "vm\n', ["2:1: not YAML: found unexpected end of stream"]),
    "a colon": ("description: the host: mine\nswap: disabled\n", ["1:22: not YAML: mapping values are not allowed"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_said_with_its_place(tmp_path: Path, name: str) -> None:
    """T1, T2, T3: whatever is wrong with a profile, it is told by line and column, and nothing is judged by it."""
    written, expected = MISTAKES[name]
    path = tmp_path / "p.yaml"
    path.write_bytes(written.encode() if isinstance(written, str) else written)
    with pytest.raises(ProfileError) as e:
        profile.load(str(path))
    said = [problem.removeprefix(f"{path}:") for problem in e.value.problems]
    assert len(said) == len(expected), said
    for got, start in zip(said, expected, strict=True):
        assert got.startswith(start)
        assert re.match(r"[0-9]+:[0-9]+: ", got)
        assert got.isprintable(), "it goes to a terminal"


def test_all_mistakes_are_said_at_once_in_the_order_of_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("name: a b\nhardware: {cpus: x, cors: 1}\nwaivers: [{finding: a}]\nswpa:\nswap: no\nvalid_for: x\n")
    with pytest.raises(ProfileError) as e:
        profile.load(str(path))
    places = [tuple(map(int, problem.split(":")[1:3])) for problem in e.value.problems]
    assert [line for line, _ in places] == [1, 2, 2, 3, 3, 4, 5, 6]
    assert places == sorted(places)
    assert "hostprep explain CHECK" in e.value.hint


def test_hostile_text_in_a_key_does_not_reach_the_terminal(tmp_path: Path) -> None:
    """T8: a key may hold anything that YAML can escape."""
    path = tmp_path / "p.yaml"
    path.write_text('"\\e[2J\\nswap": disabled\nhardware: {disk: {"/\\e[31m": x}, free: {"/a": {"\\a": 1}}}\n')
    with pytest.raises(ProfileError) as e:
        profile.load(str(path))
    assert all(problem.isprintable() for problem in e.value.problems)
    assert len(str(e.value).splitlines()) == len(e.value.problems)


def test_a_slip_of_the_pen_is_told_together_with_all_else() -> None:
    """All at once: what names nothing, what is no number, what comes twice, in the order of the lines."""
    text = (
        "advisory: [swp]\nhardware: {cpus: many}\nwaivers: [{finding: swap, reason: known, until: 2030-01-01}, 7]\n"
        "swap: disabled\nswap: disabled\n"
    )
    with pytest.raises(ProfileError) as caught:
        profile_source.validate("p", text.encode())
    places = [problem.split(": ")[0] for problem in caught.value.problems]
    assert places == ["p:1:12", "p:2:18", "p:3:21", "p:3:62", "p:5:1"]
