"""Profiles: what YAML means here, what extends what, who may write them, and the compiled form of a valid one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from hostprep import profile, profile_files, profile_source
from hostprep.errors import ProfileError
from hostprep.model import Waiver

WAIVER = {"finding": "swap/*", "reason": "crash dumps need it", "until": "2027-01-31"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for profiles, which is also where this site keeps its own."""
    monkeypatch.setattr(profile_files, "SITE_FOLDER", str(tmp_path / "profiles"))
    monkeypatch.setattr(profile_files, "SITE_PROFILE", str(tmp_path / "profile.yaml"))
    (tmp_path / "profiles").mkdir()
    return tmp_path / "profiles"


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def problems(path: str) -> list[str]:
    with pytest.raises(ProfileError) as e:
        profile.load(path)
    return e.value.problems


# -- YAML 1.2 core --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "read"),
    [
        *((text, text) for text in ("0000:17:00.0", "10:20:30:40:50:59", "off", "on", "no", "0755", "22.04", "1e3")),
        *((text, text) for text in ("2027-01-31", "1_000", "0x10", ".inf", "=", "y", "a#b", "1:30")),
        *((text, None) for text in ("", "~", "null")),
        *(("true", True), ("False", False), ("8", 8), ("-1", -1), ("0", 0)),
        *(("'8'", "8"), ('"null"', "null"), ('"true"', "true"), ("'off'", "off")),
    ],
)
def test_a_value_stays_what_was_written(written: str, read: object) -> None:
    """YAML 1.1 reads a PCI address as 1020.0, off as false, 0755 as 493 and a MAC address as a number."""
    document, _ = profile_source.parse("p", f"key: {written}\nlist: [{written or 'null'}]\n".encode())
    assert document["key"] == read
    assert type(document["key"]) is type(read)
    assert document["list"] == [read]


@pytest.mark.parametrize("prefix", [b"", b"\xef\xbb\xbf", b"---\n", b"%YAML 1.2\n---\n"], ids=repr)
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"], ids=repr)
def test_a_byte_order_mark_and_windows_line_ends_do_not_matter(folder: Path, prefix: bytes, newline: bytes) -> None:
    data = (prefix + b"swap: disabled\nhardware:\n  cpus: 8\n").replace(b"\n", newline)
    assert profile.load(write(folder / "p.yaml", data)).sections == {"swap": "disabled", "hardware": {"cpus": 8}}


def test_json_is_yaml(folder: Path) -> None:
    assert profile.load(write(folder / "p.json", '{"swap": "disabled"}')).sections == {"swap": "disabled"}


# -- finding --------------------------------------------------------------------------------------


def test_without_a_name_the_sites_own_profile_is_taken_else_baseline(folder: Path) -> None:
    assert profile.load(None).name == "baseline"
    write(Path(profile_files.SITE_PROFILE), "swap: disabled\n")
    assert profile.load(None).source == profile_files.SITE_PROFILE


def test_a_site_profile_that_leads_nowhere_is_an_error_and_not_baseline(folder: Path) -> None:
    """Baseline would say ready for a host that its own site asks more of."""
    Path(profile_files.SITE_PROFILE).symlink_to(folder / "gone.yaml")
    with pytest.raises(ProfileError, match="No such file"):
        profile.load(None)


@pytest.mark.parametrize("name", sorted(profile_files.available()))
def test_every_bundled_profile_is_valid_and_described(name: str) -> None:
    loaded = profile.load(name)
    assert loaded.name == name
    assert loaded.description.endswith(".")


def test_the_schema_of_profiles_is_a_json_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(profile_source.schema())


# -- extending ------------------------------------------------------------------------------------


def test_what_a_file_gives_replaces_what_its_base_gives(folder: Path) -> None:
    write(
        folder / "base.yaml",
        "advisory: [swap]\nvalid_for: 2h\nswap: disabled\nhardware: {cpus: 2, memory: 1GB}\nhugepages: {}\n",
    )
    top = write(folder / "top.yaml", "extends: base\nadvisory: []\nhardware: {cpus: 4}\nhugepages: null\n")
    loaded = profile.load(top)
    assert loaded.sections == {"swap": "disabled", "hardware": {"cpus": 4}}
    assert (loaded.name, loaded.advisory, loaded.valid_for) == ("top", (), 7200)


def test_a_base_may_advise_on_what_a_file_takes_out(folder: Path) -> None:
    write(folder / "base.yaml", "advisory: [swap]\nswap: disabled\nhugepages: {}\n")
    assert profile.load(write(folder / "top.yaml", "extends: base\nswap: null\n")).sections == {"hugepages": {}}


def test_a_base_is_found_beside_the_file_that_names_it(folder: Path) -> None:
    (folder / "deep").mkdir()
    write(folder / "base.yaml", "swap: disabled\n")
    assert profile.load(write(folder / "deep" / "top.yaml", "extends: ../base.yaml\n")).sections["swap"] == "disabled"


@pytest.mark.parametrize("base", ["a.yaml", "./b.yaml", "b", "a"])
def test_a_profile_that_comes_back_to_itself_is_refused(folder: Path, base: str) -> None:
    write(folder / "b.yaml", "extends: a\n")
    (problem,) = problems(write(folder / "a.yaml", f"swap: disabled\nextends: {base}\n"))
    assert "comes back to itself" in problem
    assert ".yaml:" in problem


@pytest.mark.parametrize(
    "more",
    ["", f"advisory: [swap]\nassert_only: [swap]\nvalid_for: 90\nwaivers: [{json.dumps(WAIVER)}]\n"],
    ids=["plain", "with all that a profile may say"],
)
@pytest.mark.parametrize("bus", ["0000:17:00.0", "off", "0755", "'8'"])
def test_the_effective_profile_means_the_same(folder: Path, more: str, bus: str) -> None:
    write(folder / "base.yaml", f"swap: disabled\nkernel_args: [{bus}]\nhardware: {{disk: {{/: 1GB, /var: 1GB}}}}\n")
    top = profile.load(write(folder / "top.yaml", f"extends: base\ndescription: 'A: b'\n{more}"))
    again = profile.load(write(folder / "again.yaml", profile_source.effective(top)))
    assert again._replace(sha256="", source="") == top._replace(sha256="", source="")


def test_a_waiver_comes_as_it_was_written(folder: Path) -> None:
    text = f"swap: disabled\nwaivers: [{json.dumps(WAIVER)}]\n"
    assert profile.load(write(folder / "p.yaml", text)).waivers == (Waiver(**WAIVER),)


# -- trust ----------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to distrust others")
@pytest.mark.parametrize("part", ["the file", "its directory", "its base", "its owner"])
def test_root_takes_no_orders_from_a_profile_that_others_could_write(folder: Path, part: str) -> None:
    base = folder / "base.yaml"
    write(base, "swap: disabled\n")
    (folder / "sub").mkdir()
    path = folder / "sub" / "p.yaml"
    write(path, "extends: ../base.yaml\n")
    profile.load(str(path))
    if part == "its owner":
        os.chown(path, 65534, 65534)
    else:
        {"the file": path, "its directory": path.parent, "its base": base}[part].chmod(0o777)
    assert "not safe to use" in problems(str(path))[0]


@pytest.mark.parametrize("kind", ["fifo", "directory", "device", "huge"])
def test_what_is_no_file_is_refused_at_once(folder: Path, kind: str) -> None:
    """T7: a FIFO must not hold us up, and /dev/zero has no end."""
    path = folder / "p.yaml"
    match kind:
        case "fifo":
            os.mkfifo(path, 0o644)
        case "directory":
            path.mkdir()
        case "device":
            path = Path("/dev/null")
        case "huge":
            write(path, "# " + "x" * (profile_files.SIZE_LIMIT + 1))
    assert len(problems(str(path))) == 1


# -- the compiled form ----------------------------------------------------------------------------

LOADED_WITHOUT_READING_YAML = (
    "import sys; from hostprep import profile; p = profile.load(sys.argv[1]); "
    "print('yaml' in sys.modules or 'jsonschema' in sys.modules, p.sections)"
)


def load_in_a_new_process(path: str) -> str:
    command = [sys.executable, "-c", LOADED_WITHOUT_READING_YAML, path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*.json"))


def test_a_profile_that_was_valid_once_is_not_parsed_again(folder: Path, tmp_path: Path) -> None:
    path = write(folder / "p.yaml", "swap: disabled\n")
    assert load_in_a_new_process(path) == "True {'swap': 'disabled'}"
    assert load_in_a_new_process(path) == "False {'swap': 'disabled'}"
    write(folder / "p.yaml", "swap: disabled\nhardware: {cpus: 2}\n")
    assert load_in_a_new_process(path).startswith("True")
    assert len(cached(tmp_path)) == 1, "an edited profile leaves nothing behind"


def test_a_change_of_a_base_or_of_a_check_or_a_new_base_of_that_name_counts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / "base.yaml", "hardware: {cpus: 2}\n")
    top = write(folder / "top.yaml", "extends: base\n")
    extends_bundled = write(folder / "mine.yaml", "extends: baseline\nhugepages: null\n")
    assert profile.load(top).sections == {"hardware": {"cpus": 2}}
    assert len(profile.load(extends_bundled).sections) > 1
    write(folder / "base.yaml", "hardware: {cpus: 4}\n")
    write(folder / "baseline.yaml", "swap: disabled\nhugepages: {}\n")
    assert profile.load(top).sections == {"hardware": {"cpus": 4}}
    assert profile.load(extends_bundled).sections == {"swap": "disabled"}
    monkeypatch.setattr("hostprep.registry.fingerprint", lambda: "another hugepages.py")
    monkeypatch.setattr(profile_source, "load", lambda path, data: (profile.Profile("fresh", "", {}), {}))
    assert profile.load(top).name == "fresh"


def test_the_digest_covers_the_base(folder: Path) -> None:
    write(folder / "base.yaml", "hardware: {cpus: 2}\n")
    top = write(folder / "top.yaml", "extends: base\n")
    before = profile.load(top).sha256
    write(folder / "base.yaml", "hardware: {cpus: 4}\n")
    assert profile.load(top).sha256 != before


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b"null", b'"key"', b"\xff", b'{"key": 1}'],
    ids=repr,
)
def test_a_damaged_cache_is_harmless(folder: Path, tmp_path: Path, damage: bytes) -> None:
    path = write(folder / "p.yaml", "swap: disabled\n")
    good = profile.load(path)
    cached(tmp_path)[0].write_bytes(damage)
    assert profile.load(path) == good


@pytest.mark.parametrize("field", ["sources", "profile"])
@pytest.mark.parametrize("value", [None, [], {}, "x", 5])
def test_a_cache_of_another_shape_is_harmless(folder: Path, tmp_path: Path, field: str, value: Any) -> None:
    path = write(folder / "p.yaml", "swap: disabled\n")
    good = profile.load(path)
    record = json.loads(cached(tmp_path)[0].read_text())
    cached(tmp_path)[0].write_text(json.dumps(record | {field: value}))
    assert profile.load(path) == good


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_cache_that_somebody_else_wrote_is_not_believed(folder: Path, tmp_path: Path) -> None:
    path = write(folder / "p.yaml", "swap: disabled\n")
    profile.load(path)
    (file,) = cached(tmp_path)
    file.write_text(file.read_text().replace('"disabled"', '"whatever"'))
    assert profile.load(path).sections == {"swap": "whatever"}, "the cache is used at all"
    os.chown(file, 65534, 65534)
    assert profile.load(path).sections == {"swap": "disabled"}


def test_a_cache_that_cannot_be_written_is_harmless(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "cache", "a file where the directory should be")
    assert profile.load(write(folder / "p.yaml", "swap: disabled\n")).sections == {"swap": "disabled"}
