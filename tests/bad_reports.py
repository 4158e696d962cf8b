"""Reports that nobody may rely on, and what puts each in the place of a good one."""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hostprep import profile, report, state
from hostprep.host import Host
from hostprep.model import Desired, Fact, Finding, Status, Unknown

HOSTILE = "\x1b[31m\r\nhostprep_ready 1\nready\u202e\u2028\x00`$(reboot)`%0a'\"<script>|;{}"
Data = dict[str, Any]
Put = Callable[[Path, Data], None]


class Bad(NamedTuple):
    """`put` places it where a good report would be; `reason` is the word for it (ReportUnusable.reason)."""

    put: Put
    reason: str


def good() -> Data:
    """A report of this very host, by its default profile: ready, and to be relied on."""
    finding = Finding("swap", "devices", Status.PASS, Fact.fixed("none"), Desired("none"))
    facts = {"swap": {"devices": Fact.fixed("none")}}
    made = report.make([finding], {}, profile.load(None), state.identity(Host()), time.monotonic())
    data: Data = json.loads(report.dumps(made._replace(facts=facts, durations={"swap": 1})))
    return data


def not_ready() -> Data:
    """A report of this very host that can be relied on, and says that it is not ready."""
    data = good()
    return data | {
        "findings": [data["findings"][0] | {"status": "fail"}],
        "verdict": "not-ready",
        "ready": False,
    }


def written(data: Data) -> bytes:
    return json.dumps(data, indent=1, ensure_ascii=False).encode()


def put(name: str, path: Path, data: Data | None = None) -> None:
    """Place a bad report; `data` is the good one that it is made of, where not this host's own will do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    BAD[name].put(path, data or good())


def put_good(path: Path, data: Data | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(written(data or good()))


# -- how they come to be ----------------------------------------------------------------------------


def _bytes(make: Callable[[bytes], bytes]) -> Put:
    """A good report whose bytes suffered."""
    return lambda path, data: _write(path, make(written(data)))


def _text(old: str, new: str) -> Put:
    """A good report in which a text became another."""

    def replace(whole: bytes) -> bytes:
        assert old.encode() in whole
        return whole.replace(old.encode(), new.encode(), 1)

    return _bytes(replace)


def _number(field: str, digits: str) -> Put:
    """A good report in which a number is one that few can read."""
    return _bytes(lambda good: re.sub(rf'"{field}": [0-9.]+'.encode(), f'"{field}": {digits}'.encode(), good, count=1))


def hostile() -> Data:
    """A whole report of this host, which is not ready; all the text in it is hostile."""
    said = f"{HOSTILE}\ud800"
    facts = {said: {said: Fact.fixed(said)}, "swap": {"devices": Fact(Unknown(said), (said, said))}}
    fact = Fact(said, Unknown(said))
    findings = [
        Finding("swap", said, status, fact, Desired(said), said, said, advisory, waived)
        for status in Status
        for advisory, waived in ((False, ""), (True, ""), (False, said))
    ]
    here = state.identity(Host())._replace(hostname=said, kernel=said)
    wanted = profile.load(None)._replace(name=said)
    made = report.make(findings, {}, wanted, here, time.monotonic())
    return report.to_dict(made._replace(facts=facts, durations={said: 1}, version=said))


def _fields(**fields: Any) -> Put:
    """A good report with other fields; a function makes them of the old ones."""

    def change(path: Path, data: Data) -> None:
        _write(path, written(data | {k: v(data[k]) if callable(v) else v for k, v in fields.items()}))

    return change


def _finding(**fields: Any) -> Put:
    return _fields(findings=lambda old: [old[0] | fields])


def _link(target: str) -> Put:
    return lambda path, data: path.symlink_to(target)


def _other(make: Callable[[Path], None]) -> Put:
    """Something that is no file."""
    return lambda path, data: make(path)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _for_all_to_write(path: Path, data: Data) -> None:
    _write(path, written(data))
    path.chmod(0o666)


def _at(seconds: float) -> str:
    return report.stamp(time.time() + seconds)


_NOT_ROOTS = "untrusted" if os.geteuid() == 0 else "unreadable"  # root looks first who could have put it there

BAD: dict[str, Bad] = {
    # what lies there
    "nothing": Bad(lambda path, data: None, "missing"),
    "a link to nowhere": Bad(_link("/nonexistent/report.json"), "missing"),
    "a directory": Bad(_other(os.mkdir), "unreadable"),
    "a FIFO": Bad(_other(os.mkfifo), "unreadable"),
    "a socket": Bad(_other(lambda path: os.mknod(path, stat.S_IFSOCK | 0o600)), "unreadable"),
    "a link to itself": Bad(_link("report.json"), _NOT_ROOTS),
    "a device without end": Bad(_link("/dev/zero"), _NOT_ROOTS),
    "a file that cannot be read": Bad(_link("/proc/self/mem"), "unreadable"),  # EIO
    "more than anybody reads": Bad(_bytes(lambda good: good + b" " * state.REPORT_LIMIT), "unreadable"),
    **({"a file that all may write": Bad(_for_all_to_write, "untrusted")} if os.geteuid() == 0 else {}),
    # bytes that are no JSON, or not one JSON for all
    "no bytes": Bad(_bytes(lambda good: b""), "damaged"),
    "half of it": Bad(_bytes(lambda good: good[: len(good) // 2]), "damaged"),
    "all but the last byte": Bad(_bytes(lambda good: good[:-1]), "damaged"),
    "zeros after a power cut": Bad(_bytes(lambda good: bytes(len(good))), "damaged"),
    "two of them": Bad(_bytes(lambda good: good + good), "damaged"),
    "no UTF-8": Bad(_bytes(lambda good: good.replace(b'"none"', b'"\xff\xfe"', 1)), "damaged"),
    "UTF-16": Bad(_bytes(lambda good: good.decode().encode("utf-16")), "damaged"),
    "a byte order mark": Bad(_bytes(lambda good: b"\xef\xbb\xbf" + good), "damaged"),
    "ready twice": Bad(_text('"ready": true', '"ready": false, "ready": true'), "damaged"),
    "a status twice": Bad(_text('"status": "pass"', '"status": "fail", "status": "pass"'), "damaged"),
    "not a number": Bad(_fields(uptime_s=float("nan")), "damaged"),
    "endless": Bad(_fields(uptime_s=float("-inf")), "damaged"),
    "too large for a number": Bad(_number("uptime_s", "1e999"), "damaged"),
    "400 digits": Bad(_fields(duration_ms=10**400), "damaged"),
    "5000 digits": Bad(_number("duration_ms", "9" * 5000), "damaged"),
    "a duration of ages": Bad(_fields(duration_ms=10**19), "damaged"),
    "a check that takes ages": Bad(_fields(checks={"swap": {"looked_at": _at(0), "duration_ms": 10**19}}), "damaged"),
    "nested": Bad(_text('"facts": {', '"facts": {"a": ' + "[" * 300 + "]" * 300 + ","), "damaged"),
    "nested without end": Bad(_text('"facts": {', '"facts": ' + '{"a":' * 100_000), "damaged"),
    # JSON that is no report
    "null": Bad(_bytes(lambda good: b"null"), "foreign-version"),
    "a list": Bad(_bytes(lambda good: b"[" + good + b"]"), "foreign-version"),
    "true": Bad(_bytes(lambda good: b"true"), "foreign-version"),
    "ready alone": Bad(_bytes(lambda good: b'{"ready": true}'), "foreign-version"),
    "a newer version": Bad(_fields(schema_version=2), "foreign-version"),
    "a version as text": Bad(_fields(schema_version="1"), "foreign-version"),
    "true for a version": Bad(_fields(schema_version=True), "damaged"),
    "a field of nobody's": Bad(_fields(ready_really=True), "damaged"),
    "one for true": Bad(_fields(ready=1), "damaged"),
    "text for true": Bad(_fields(ready="true"), "damaged"),
    "findings by name": Bad(_fields(findings={"swap": "pass"}), "damaged"),
    "facts without names": Bad(_fields(facts=[]), "damaged"),
    "an unknown status": Bad(_finding(status="fine"), "damaged"),
    "a status of more than text": Bad(_finding(status=["pass"]), "damaged"),
    "a machine that is a list": Bad(_fields(machine_id=lambda old: [old]), "damaged"),
    "a day that is none": Bad(_fields(generated_at="2026-02-31T00:00:00Z"), "damaged"),
    "a hostile message": Bad(_finding(message=HOSTILE, status=HOSTILE), "damaged"),
    # a report that contradicts itself
    "ready with a failure": Bad(_finding(status="fail"), "damaged"),
    "ready with an unknown": Bad(_finding(status="unknown"), "damaged"),
    "ready with a reboot to come": Bad(_finding(status="pending-reboot"), "damaged"),
    "ready without findings": Bad(_fields(findings=[]), "damaged"),
    "ready by advice alone": Bad(_finding(advisory=True), "damaged"),
    "ready against its verdict": Bad(_fields(verdict="not-ready"), "damaged"),
    # a report of something else
    "another boot": Bad(_fields(boot_id="11111111-2222-3333-4444-555555555555"), "other-boot"),
    "no boot": Bad(_fields(boot_id=""), "other-boot"),
    "another machine": Bad(_fields(machine_id="f" * 32), "other-machine"),
    "another machine with a hostile name": Bad(_fields(machine_id="f" * 32, hostname=HOSTILE), "other-machine"),
    "another machine with a long name": Bad(_fields(machine_id="f" * 32, hostname="é" * 10**6), "other-machine"),
    "no machine": Bad(_fields(machine_id=""), "other-machine"),
    "another profile": Bad(_fields(profile={"name": "other", "sha256": "f" * 64}), "other-profile"),
    "a profile with a hostile name": Bad(_fields(profile={"name": HOSTILE * 99, "sha256": ""}), "other-profile"),
    "a part": Bad(_fields(selection=["swap"]), "partial"),
    "no part": Bad(_fields(selection=[]), "partial"),
    "hostile parts": Bad(_fields(selection=[HOSTILE] * 999), "partial"),
    "the future": Bad(_fields(generated_at=lambda old: _at(3600), valid_until=lambda old: _at(7200)), "future"),
    "later in this boot": Bad(_fields(uptime_s=lambda old: old + 3600), "future"),
    "expired": Bad(_fields(generated_at=lambda old: _at(-7200), valid_until=lambda old: _at(-3600)), "expired"),
    "expired by the clock that nobody sets": Bad(_fields(uptime_s=0), "expired"),
    "valid before it was made": Bad(_fields(valid_until="1970-01-01T00:00:00Z"), "expired"),
}
