"""The report: its schema, its verdict, who may rely on it and when, and how it is published."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import MakeHost, examine, profile
from fakes import FakeHost, debian

from hostprep import report, state
from hostprep.errors import OutputFailed, ReportUnusable
from hostprep.host import Host
from hostprep.model import Desired, Fact, Finding, Reading, Status, Unknown, Waiver
from hostprep.report import Identity, Report

SCHEMA = json.loads(Path(report.SCHEMA_FILE).read_text())
HERE = Identity("node01", "0123456789abcdef", "11111111-2222", "6.1.0")
HOSTILE = "a\nb\x1b[31m\"'</x>\\ & ]]> \udcff \ufffe\u2028 '; rm -rf /; '"
SECTIONS: dict[str, Any] = {
    "hardware": {"cpus": 2, "memory": "64GB", "disk": {"/": "1GB"}},
    "swap": "disabled",
    "kernel_args": ["iommu=pt"],
    "hugepages": {"2MiB": 16},
}


def finding(status: Status, current: Reading = "a", **more: Any) -> Finding:
    return Finding("swap", "devices", status, Fact.fixed(current), Desired("b"), **more)


def made(*findings: Finding, **more: Any) -> Report:
    return report.make(findings, {}, profile({"swap": "disabled"}, **more), HERE, time.monotonic())


def valid(made: Report) -> dict[str, Any]:
    """What a consumer reads, after it was held against the published schema."""
    data: dict[str, Any] = json.loads(report.dumps(made))
    jsonschema.Draft202012Validator(SCHEMA).validate(data)
    return data


def refused(data: object, **more: Any) -> str:
    with pytest.raises(ReportUnusable) as e:
        report.usable(data, HERE, **more)
    return str(e.value)


# -- what it says ---------------------------------------------------------------------------------


def test_the_schema_is_a_json_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"].endswith("2020-12/schema")


@pytest.mark.parametrize("swaps", ["", "/dev/sda2 partition 1024 0 -2\n"])
def test_the_report_of_a_host_is_as_the_schema_says(make_host: MakeHost, swaps: str) -> None:
    host = make_host(debian())
    host.put("/proc/swaps", f"Filename Type Size Used Priority\n{swaps}")
    seen = examine(host, SECTIONS)
    whole = report.make(seen.findings, seen.answers, profile(SECTIONS), state.identity(host), time.monotonic())
    data = valid(whole)
    assert {f["check"] for f in data["findings"]} == set(SECTIONS) == set(data["facts"])
    assert (data["hostname"], data["verdict"], data["ready"]) == ("node01", "not-ready", False)
    assert valid(report.from_dict(data)) == data


@pytest.mark.parametrize(
    ("statuses", "verdict"),
    [
        (("pass",), "ready"),
        (("pass", "volatile"), "ready"),
        (("pass", "pending-reboot"), "pending-reboot"),
        (("pending-reboot", "unknown"), "unknown"),
        (("unknown", "fail"), "not-ready"),
        (("pending-reboot", "fail"), "not-ready"),
        (("pass", "pending-power-cycle"), "pending-power-cycle"),
        (("pending-reboot", "pending-power-cycle"), "pending-power-cycle"),
        (("pending-power-cycle", "unknown"), "unknown"),
        (("pending-power-cycle", "fail"), "not-ready"),
        ((), "unknown"),
    ],
)
def test_the_worst_finding_decides(statuses: tuple[str, ...], verdict: str) -> None:
    """T5: fail before unknown before pending before volatile before pass; nothing seen is unknown."""
    for order in (statuses, statuses[::-1]):
        data = valid(made(*(finding(Status(s)) for s in order)))
        assert (data["verdict"], data["ready"]) == (verdict, verdict == "ready")


@pytest.mark.parametrize(("status", "required"), [("pending-reboot", True), ("pending-power-cycle", False)])
def test_a_reboot_is_asked_for_only_where_it_brings_something(status: str, required: bool) -> None:
    """Who reboots a host for a setting that no reboot brings reboots it for ever (sriov-network-operator#1082)."""
    data = valid(made(finding(Status(status)), finding(Status.PASS)))
    assert (data["reboot_required"], data["ready"]) == (required, False)
    assert valid(report.from_dict(data)) == data


def test_advisory_and_waived_findings_do_not_decide() -> None:
    others = [finding(Status.FAIL, advisory=True), finding(Status.FAIL, waived="dumps (until 2999-01-01)")]
    data = valid(made(finding(Status.PASS), *others))
    assert data["ready"]
    assert [f["waived"] for f in data["findings"]] == ["", "", "dumps (until 2999-01-01)"]


def test_a_host_of_which_nothing_is_required_is_not_ready() -> None:
    """T3: if all that was looked at is advisory, then nothing says that the host is ready."""
    assert valid(made(finding(Status.PASS, advisory=True)))["verdict"] == "unknown"


def test_a_waiver_never_covers_what_is_unknown(make_host: MakeHost) -> None:
    host = make_host(debian())
    host.remove("/proc/swaps")
    waiver = Waiver("*", "whatever it is", "2999-01-01")
    seen = examine(host, {"swap": "disabled"}, waivers=(waiver,))
    assert [(f.status, f.waived) for f in seen.findings] == [(Status.UNKNOWN, "")]


def test_a_report_ends_with_the_waiver_that_it_rests_on() -> None:
    today = time.strftime("%Y-%m-%d", time.gmtime())
    waiver = Waiver("swap/*", "dumps", today)
    data = valid(made(finding(Status.FAIL, waived=f"dumps (until {today})"), waivers=(waiver,), valid_for=10**6))
    assert data["valid_until"] <= f"{today}T23:59:59Z"


@pytest.mark.parametrize("where", ["current", "message", "fix", "waived", "unknown", "key"])
def test_whatever_the_host_says_the_report_is_json_in_utf_8(where: str) -> None:
    """T8: newlines, colour codes, quotes and bytes that are no text."""
    hostile = {
        "current": finding(Status.FAIL, HOSTILE),
        "unknown": finding(Status.UNKNOWN, Unknown(HOSTILE)),
        "key": finding(Status.FAIL)._replace(key=HOSTILE),
    }.get(where) or finding(Status.FAIL, **{where: HOSTILE})
    data = valid(made(hostile))
    assert report.from_dict(data).verdict == data["verdict"]


# -- who may rely on it ---------------------------------------------------------------------------


def changed(data: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return data | fields


UNUSABLE: Mapping[str, tuple[dict[str, Any], str]] = {
    "another boot": ({"boot_id": "99999999"}, "earlier boot"),
    "another machine": ({"machine_id": "ffff"}, "another machine"),
    "the future": ({"generated_at": "2999-01-01T00:00:00Z", "valid_until": "2999-01-02T00:00:00Z"}, "future"),
    "later in this boot": ({"uptime_s": 10**9}, "future"),
    "no longer valid": ({"generated_at": "2020-01-01T00:00:00Z", "valid_until": "2020-01-01T01:00:00Z"}, "old"),
    "a part": ({"selection": ["swap"]}, "only a part"),
    "another version": ({"schema_version": 2}, "no report that this hostprep understands"),
    "no version": ({"schema_version": None}, "no report"),
    "no findings": ({"findings": []}, "damaged"),
    "a verdict that is not its findings'": ({"verdict": "unknown", "ready": False}, "damaged"),
    "ready against its verdict": ({"ready": False}, "damaged"),
    "a time that is none": ({"generated_at": "2026-99-99T00:00:00Z"}, "damaged"),
    "text for a number": ({"uptime_s": "5"}, "damaged"),
    "findings of another kind": ({"findings": [{"check": "swap"}]}, "damaged"),
    "facts of another kind": ({"facts": {"swap": {"devices": 1}}}, "damaged"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_report_that_does_not_speak_of_here_and_now_is_refused(name: str) -> None:
    """T9."""
    fields, why = UNUSABLE[name]
    data = valid(made(finding(Status.PASS)))
    assert report.usable(data, HERE).verdict == "ready"
    assert why in refused(changed(data, **fields))


@pytest.mark.parametrize("data", [None, [], "ready", 1, {}, {"ready": True}], ids=repr)
def test_what_is_no_report_is_refused(data: object) -> None:
    assert "no report that this hostprep understands" in refused(data)


@pytest.mark.parametrize("missing", sorted(valid(made(finding(Status.PASS)))))
def test_a_report_without_any_of_its_fields_is_refused(missing: str) -> None:
    data = valid(made(finding(Status.PASS)))
    del data[missing]
    refused(data)


def test_max_age_can_only_shorten() -> None:
    old = valid(made(finding(Status.PASS))._replace(generated_at=int(time.time()) - 100, valid_for=50))
    assert "at most 50 s" in refused(old)
    assert "at most 50 s" in refused(old, max_age=1000)
    young = valid(made(finding(Status.PASS))._replace(generated_at=int(time.time()) - 100))
    assert report.usable(young, HERE, max_age=1000)
    assert "at most 20 s" in refused(young, max_age=20)


def test_a_report_by_another_profile_is_refused() -> None:
    data = valid(made(finding(Status.PASS)))
    assert report.usable(data, HERE, profile=profile({}))
    assert "another profile" in refused(data, profile=profile({})._replace(sha256="f" * 64))


@pytest.mark.parametrize("field", ["machine_id", "boot_id"])
def test_a_host_that_cannot_be_told_from_others_has_no_report(field: str) -> None:
    nameless = HERE._replace(**{field: ""})
    data = valid(made(finding(Status.PASS))._replace(**{field: ""}))
    with pytest.raises(ReportUnusable):
        report.usable(data, nameless)


# -- publishing -----------------------------------------------------------------------------------


def test_a_report_is_published_whole_and_for_all_to_read(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        path = Path(state.publish(made(finding(Status.FAIL))))
        inode = path.stat().st_ino
        state.publish(made(finding(Status.PASS)))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o7777 == 0o644
    assert path.parent.stat().st_mode & 0o055 == 0o055, "and its directory is open too"
    assert path.stat().st_ino != inode, "by rename: who reads the old one reads it to its end"
    assert set(os.listdir(path.parent)) == {"report.json", state.UNTOLD}
    assert report.usable(state.published(), HERE).verdict == "ready"


def test_when_publishing_fails_the_old_report_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """T11: an old `ready` must not outlive a look that could not be told."""
    path = Path(state.publish(made(finding(Status.PASS))))

    def full(*args: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hostprep.files.replace", full)
    with pytest.raises(OutputFailed, match="No space left"):
        state.publish(made(finding(Status.FAIL)))
    assert not path.exists()


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, None], ids=["empty", "half", "bytes", "deep", "none"]
)
def test_what_cannot_be_read_is_no_report(data: bytes | None) -> None:
    path = Path(state.publish(made(finding(Status.PASS))))
    path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(ReportUnusable):
        state.published()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to distrust others")
def test_root_does_not_believe_a_report_that_others_could_write() -> None:
    path = Path(state.publish(made(finding(Status.PASS))))
    path.chmod(0o666)
    with pytest.raises(ReportUnusable, match="not to be trusted"):
        state.published()


def test_this_machine_and_this_boot_have_names() -> None:
    identity = state.identity(Host())
    assert identity.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert identity.kernel == os.uname().release


def test_a_host_that_does_not_say_who_it_is_has_an_empty_name(tmp_path: Path) -> None:
    assert state.identity(FakeHost(tmp_path / "root", {})) == Identity("", "", "", "")
