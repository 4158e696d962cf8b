"""OpenPBS hook: a node whose host is not ready is offline, with a comment that says why; it comes back by itself.

For exechost_startup, exechost_periodic and execjob_begin; Python 3.6 and its standard library, which is all that
pbs_python has. Running jobs go on. A job that is sent to a host that is not ready goes back to the queue: waiting costs
its user less than a wrong result, and as the node goes offline with it, it does not come here again.

Whose a mark is, its comment tells: ours is signed with a checksum of the node's name and itself, so that it is no
longer ours once somebody edits it. The server forgets comments when it is restarted, those of an admin too: then it is
ours only if the memory file says so. What is offline for somebody else is never touched. PBS cannot compare and swap:
a mark without a comment that an admin puts on top of ours, or within the second in which we act, is not seen.

A configuration that is not valid takes no node down and brings none back: hosts are judged by the defaults, those that
are ready stay as they are, and their comment says what is wrong.
"""
# ruff: noqa: UP006, UP035, UP045

import calendar
import json
import os
import re
import stat
import time
import zlib
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import pbs  # type: ignore[import-not-found,unused-ignore]  # only pbs_python has it

SIZE_LIMIT = 16 * 1024 * 1024  # bytes of a report
COMMENT_LIMIT = 200  # characters, so that pbsnodes stays readable
NAMED = 3  # findings that a comment names
BOOTTIME = getattr(time, "CLOCK_BOOTTIME", 7)  # Python 3.7 and later have the name
DEFAULTS: Dict[str, Any] = {
    "report": "/run/hostprep/report.json",
    "max_age_s": None,  # seconds: less than the report itself allows
    "profile": None,  # the name of the profile that is expected
    "profile_file": "/etc/hostprep/profile.yaml",  # a report from before its last change is not relied on
    "memory": "/var/lib/hostprep/pbs.json",
}
LEFT_ALONE = pbs.ND_PROV | pbs.ND_WAIT_PROV | pbs.ND_SLEEP | pbs.ND_STALE  # node_state() refuses, or would wake it

REPORT: Dict[str, Any] = {
    **dict.fromkeys(("hostprep_version", "generated_at", "valid_until", "hostname"), str),
    **dict.fromkeys(("machine_id", "boot_id", "kernel", "verdict"), str),
    **dict.fromkeys(("schema_version", "duration_ms"), int),
    **dict.fromkeys(("profile", "checks", "facts"), dict),
    **dict.fromkeys(("ready", "reboot_required"), bool),
    "uptime_s": (int, float),
    "selection": (list, type(None)),
    "findings": list,
}
FINDING: Dict[str, Any] = {
    **dict.fromkeys(("check", "key", "status", "unit", "waived", "message", "fix"), str),
    **dict.fromkeys(("current", "next_boot", "desired", "op"), object),
    "advisory": bool,
}
# What decides most first, the verdict that it gives, and its words.
BAD = {
    "fail": ("not-ready", "not ready"),
    "unknown": ("unknown", "unknown"),
    "pending-power-cycle": ("pending-power-cycle", "ready after a power cycle"),
    "pending-reboot": ("pending-reboot", "ready after a reboot"),
}


class Unusable(Exception):
    """A file that cannot be relied on."""


class View(NamedTuple):
    """A node as the server has it; in the event itself both are write-only."""

    state: int
    comment: str


class Note(NamedTuple):
    """What we remember of a node that we wrote to."""

    held: bool  # we took it offline, and have not brought it back
    before: str  # the comment that was there before ours


Notes = Dict[str, Optional[Note]]  # by node; None: nothing of ours is there; one that is not in it is to be looked at


class Action(NamedTuple):
    """What to make of a node; None: leave as it is."""

    note: Optional[Note]
    state: Optional[int] = None
    comment: Optional[str] = None


def main() -> None:
    event = pbs.event()
    beginning = event.type == pbs.EXECJOB_BEGIN
    config, problem = configuration(pbs.hook_config_filename)
    why = not_ready(config)
    if problem:
        pbs.logmsg(pbs.LOG_ERROR, f"hostprep: {problem}")
    try:
        mark(event, why, problem, config["memory"], beginning)
    except Exception as e:  # noqa: BLE001  # whatever it is, no job is to start on a host that is not ready
        pbs.logmsg(pbs.LOG_ERROR, f"hostprep: the node could not be marked: {type(e).__name__}: {e}")
    if beginning and why:
        event.job.rerun()
        event.reject(printable(f"hostprep: {why}"))
    event.accept()


# -- marking the node -------------------------------------------------------------------------------


def mark(event: Any, why: str, problem: str, memory: str, beginning: bool) -> None:
    """Ask for what decide() says of every vnode of this host, and remember it before."""
    here, before, actions = pbs.get_local_nodename(), remembered(memory), {}
    for name in event.vnode_list:
        if beginning and name != here and not name.startswith(f"{here}["):
            continue  # of another host of the job; the cgroups hook names the vnodes of one host like that
        if not why and not problem and name in before and before[name] is None:
            continue
        view = viewed(name)
        if view is None and beginning:  # the server has just sent a job, so the node is not offline; it would again
            view = View(pbs.ND_FREE, "")
        if view is None:
            pbs.logmsg(pbs.LOG_WARNING, f"hostprep: {name}: left as it is: the server does not say how that is")
        elif not view.state & LEFT_ALONE:
            actions[name] = decide(name, view, why, problem, before.get(name))
    after = {**before, **{name: action.note for name, action in actions.items()}}
    if after != before:
        remember(memory, after)
    for name, action in actions.items():
        if action.state is not None:
            event.vnode_list[name].state = action.state
        if action.comment is not None:
            event.vnode_list[name].comment = action.comment or None
        if action[1:] != (None, None):
            state = {None: "comment", pbs.ND_FREE: "free"}.get(action.state, "offline")
            pbs.logmsg(pbs.LOG_WARNING, f"hostprep: {name}: {state}: {action.comment}")


def decide(name: str, view: View, why: str, problem: str, note: Optional[Note]) -> Action:
    """What to make of a node; `why` is empty where its host is ready, `problem` where the configuration is valid."""
    offline = bool(view.state & pbs.ND_OFFLINE)
    signed = is_signed(name, view.comment)
    nobodys = not view.comment or view.comment.startswith("node down: ")  # that is the server's own
    before = note.before if note else ""
    if offline and not signed and not (nobodys and note and note.held):
        return Action(None)
    if not why and (offline or signed) and not problem:
        return Action(Note(False, before), pbs.ND_FREE if offline else None, before)
    if why or offline or (problem and (nobodys or signed)):
        text = sign(name, why or problem)
        before = before if nobodys or signed else view.comment
        state = pbs.ND_OFFLINE if why and not offline else None
        return Action(Note(bool(why) or offline, before), state, None if view.comment == text else text)
    return Action(None)


def viewed(name: str) -> Optional[View]:
    """The server's view of a vnode, if the server can be asked."""
    server = pbs.server()
    vnode = None if server is None else server.vnode(name)
    return None if vnode is None or vnode.state is None else View(int(vnode.state), str(vnode.comment or ""))


def sign(name: str, text: str) -> str:
    """A comment that can be told from what others write, or make of it."""
    line = printable(f"hostprep: {text}")[:COMMENT_LIMIT].rstrip()
    return f"{line} #{zlib.crc32(f'{name} {line}'.encode()):08x}"


def is_signed(name: str, comment: str) -> bool:
    """Did we write this about that node, and has nobody edited it since?"""
    line = comment.rpartition(" #")[0]
    return line.startswith("hostprep: ") and comment == sign(name, line[len("hostprep: ") :])


def printable(text: str) -> str:
    """One line of ASCII."""
    return " ".join("".join(c if " " <= c <= "~" else "?" for c in " ".join(text.split())).split())


def remembered(path: str) -> Notes:
    try:
        notes = parsed(read(path, SIZE_LIMIT))["vnodes"]
        return {name: note and Note(note[0] is True, str(note[1])) for name, note in notes.items()}
    except Exception:  # noqa: BLE001  # nothing is remembered then: every node is looked at, and signatures decide
        return {}


def remember(path: str, notes: Notes) -> None:
    """Keep it for when the server has forgotten; where that cannot be, the signature alone has to do."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with open(f"{path}.new", "w") as f:
            json.dump({"vnodes": notes}, f)
        os.rename(f"{path}.new", path)
    except OSError as e:
        pbs.logmsg(pbs.LOG_ERROR, f"hostprep: {path}: {e.strerror}")


# -- configuration and report -----------------------------------------------------------------------


def configuration(path: Optional[str]) -> Tuple[Dict[str, Any], str]:
    """The configuration, and what is wrong with it; then it is the defaults."""
    try:
        given = parsed(read(path, SIZE_LIMIT)) if path else {}
        for key, value in given.items():
            optional = key in ("max_age_s", "profile", "profile_file") and value is None
            number = key == "max_age_s" and type(value) in (int, float) and value > 0
            text = key != "max_age_s" and isinstance(value, str) and (key == "profile" or value.startswith("/"))
            if key not in DEFAULTS or not (optional or number or text):
                return DEFAULTS, f"the configuration of the hook is not valid: {key}: {value!r}"
        return {**DEFAULTS, **given}, ""
    except Exception as e:  # noqa: BLE001  # whatever an admin has imported
        return DEFAULTS, f"the configuration of the hook is not valid: {e}"


def not_ready(config: Dict[str, Any]) -> str:
    """Why this host is not ready; empty where it is. No age is in it: what changes with every look is no news."""
    try:
        report = relied_on(config)
    except Unusable as e:
        return f"not ready: {e}"
    except Exception as e:  # noqa: BLE001  # a report that the hook stumbles over vouches for nothing
        return f"not ready: the report cannot be judged: {type(e).__name__}: {e}"
    if report["ready"]:
        return ""
    order = list(BAD)
    bad = sorted((f for f in counted(report) if f["status"] in BAD), key=lambda f: order.index(f["status"]))
    names = [f"{f['check']}/{f['key']}" for f in bad]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{dict(BAD.values())[report['verdict']]}: {', '.join(names[:NAMED]) or 'nothing is required'}{more}"


def relied_on(config: Dict[str, Any]) -> Dict[str, Any]:
    """The report, if it may be relied on here and now: the rule for every consumer, as the report's schema tells it."""
    path, profile = config["report"], config["profile_file"]
    report = parsed(read(path, SIZE_LIMIT, trusted=True))
    if type(report.get("schema_version")) is not int or report["schema_version"] != 1:
        raise Unusable("the report is of another version of hostprep than this hook")
    check_shape(report)
    when, made = report["generated_at"], seconds(report["generated_at"])
    limit = min(seconds(report["valid_until"]) - made, config["max_age_s"] or float("inf"))
    age = time.clock_gettime(BOOTTIME) - report["uptime_s"]
    began = min(made + 1, os.lstat(path).st_mtime) - report["duration_ms"] / 1000
    machine, boot = (read(p, 4096).decode().strip() for p in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"))
    if not machine or report["machine_id"] != machine:
        raise Unusable(f"the report is of another machine ({report['hostname']})")
    if not boot or report["boot_id"] != boot:
        raise Unusable(f"the report is of an earlier boot ({when})")
    if report["selection"] is not None:
        raise Unusable("the report is of a part of the profile only")
    if config["profile"] not in (None, report["profile"]["name"]):
        raise Unusable(f"the report is of profile {report['profile']['name']}, not {config['profile']}")
    if not age >= -1 or made > time.time() + 60:
        raise Unusable(f"the report comes from the future ({when})")
    if not age <= limit or time.time() > made + limit:
        raise Unusable(f"the report is too old ({when})")
    if profile and os.path.lexists(profile) and os.stat(profile).st_ctime > began:  # a copy may bring an old mtime
        raise Unusable(f"the report is older than {profile} ({when})")
    return report


def check_shape(report: Dict[str, Any]) -> None:
    """Refuse what the schema does not allow, and a verdict that the findings do not give."""
    shaped(report, REPORT)
    shaped(report["profile"], {"name": str, "sha256": str})
    for finding in report["findings"]:
        shaped(finding, FINDING)
        if finding["status"] not in (*BAD, "pass", "volatile"):
            raise Unusable(f"the report is damaged: {finding['status']} is no status")
    statuses = [f["status"] for f in counted(report)]
    verdict = next((BAD[status][0] for status in BAD if status in statuses), "ready")
    if all(f["advisory"] for f in report["findings"]):  # nothing is required: that tells nothing
        verdict = "unknown"
    if report["verdict"] != verdict or report["ready"] != (verdict == "ready"):
        raise Unusable("the report is damaged: its verdict is not that of its findings")


def counted(report: Dict[str, Any]) -> List[Dict[str, Any]]:
    """The findings that decide whether the host is ready."""
    return [f for f in report["findings"] if not f["advisory"] and not f["waived"]]


def shaped(data: Any, shape: Dict[str, Any]) -> None:
    if not isinstance(data, dict) or set(data) != set(shape):
        raise Unusable("the report is damaged: other keys than it should have")
    for key, kinds in shape.items():
        if not isinstance(data[key], kinds) or (isinstance(data[key], bool) and kinds not in (bool, object)):
            raise Unusable(f"the report is damaged: {key}")


def seconds(stamp: str) -> int:
    if not re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\Z", stamp):
        raise Unusable("the report is damaged: no time")
    return calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ"))


# -- files ------------------------------------------------------------------------------------------


def read(path: str, limit: int, trusted: bool = False) -> bytes:
    """A regular file of a bounded size, at once; with `trusted`, one that only root can have put there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(fd, "rb") as f:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise Unusable(f"{path} is not a regular file")
            if trusted and any(others_can_write(i) for i in (info, *folders(path))):
                raise Unusable(f"{path} is not to be trusted: others than root can write there")
            data = f.read(limit + 1)
    except OSError as e:
        raise Unusable(f"{path}: {e.strerror}") from e
    if len(data) > limit:
        raise Unusable(f"{path} is larger than {limit} bytes")
    return data


def folders(path: str) -> List[os.stat_result]:
    """All directories on the way to a file."""
    parts = os.path.realpath(os.path.dirname(path)).split("/")
    return [os.lstat("/".join(parts[: i + 1]) or "/") for i in range(len(parts))]


def others_can_write(info: os.stat_result) -> bool:
    sticky = stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX  # others cannot replace what is ours there
    return info.st_uid not in (0, os.geteuid()) or bool(info.st_mode & 0o022 and not sticky)


def parsed(data: bytes) -> Dict[str, Any]:
    """A JSON object as it should be: no key twice, no NaN, no number that takes long to read."""
    found = json.loads(data.decode(), object_pairs_hook=no_key_twice, parse_constant=refuse, parse_int=short)
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


def no_key_twice(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


def refuse(word: str) -> None:
    raise ValueError(f"{word} is no number")


def short(digits: str) -> int:
    if len(digits) > 20:
        refuse(f"{digits[:20]}...")
    return int(digits)


if __name__ in ("builtins", "__main__"):  # pbs_python gives it no name of its own
    main()
