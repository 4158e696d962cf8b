"""What no kernel keeps over a reboot: the record of it, and the unit of hostprep's own that makes it again.

The record of a check is /etc/hostprep/boot/CHECK.json: by PCI address, the vendor:device that was there and settings.
systemd starts hostprep-apply.service at the next boot, so nothing is told to a running systemd here (daemon-reload).
systemd.unit(5) has what is followed: the order of the directories, masks, and the links in *.wants.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from hostprep import pci
from hostprep.errors import ChangeFailed, HostError
from hostprep.host import Host
from hostprep.model import from_json, to_json

DIRECTORY = "/etc/hostprep/boot"
UNIT = "hostprep-apply.service"
ARGUMENTS = "apply --boot"

Record = Mapping[str, Mapping[str, Any]]  # PCI address -> {"id": "15b3:1019", "vfs": 8, "vf0/mac": "...", ...}

_AUTHOR = "written by"
_WORDS = f"hostprep apply, for {UNIT} to make again at every boot; hostprep revert takes it back"
_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_OURS = "# Written by hostprep apply; hostprep revert takes it away.\n"
_PACKAGE = os.path.dirname(os.path.abspath(__file__))

# First to last, without /run, which does not survive a reboot. /lib is not always /usr/lib.
_ETC = "/etc/systemd/system"
_PROVIDED = tuple(f"{d}/systemd/system" for d in ("/usr/local/lib", "/usr/lib", "/lib"))
_REACHED = ("sysinit.target", "basic.target", "multi-user.target", "default.target")  # at every ordinary boot
_SEARCHED = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")  # systemd.exec(5)
_WITHOUT_INTERFACE = ("id", "vfs", "bound", "autoprobe", "eswitch")  # what is set through sysfs and devlink
_DECIDES = re.compile(r"^\s*((?:Condition|Assert)\w+|ExecStart|ExecCondition)\s*=", re.M)


# -- the record -----------------------------------------------------------------------------------


def names(host: Host) -> list[str]:
    """The checks that have a record."""
    return [name.removesuffix(".json") for name in host.names(DIRECTORY) if name.endswith(".json") and name[0] != "."]


def read(host: Host, name: str) -> Record:
    """The record of a check; empty where there is none. HostError when it is damaged, or others could write it."""
    path = _path(name)
    data = host.read_bytes(path)
    if data is None:
        return {}
    if why := host.untrusted(path):
        raise HostError(f"{path}: not safe to use: {why}", "Give it back to root: chown root: and chmod go-w.")
    try:
        text = data.decode()
        record = json.loads(text, object_pairs_hook=_once)
    except UnicodeDecodeError as e:
        raise _damaged(path, data[: e.start].count(b"\n") + 1, "not UTF-8") from e
    except json.JSONDecodeError as e:
        raise _damaged(path, e.lineno, e.msg) from e
    except (ValueError, RecursionError) as e:
        raise _damaged(path, 1, str(e)) from e
    if not isinstance(record, dict) or not isinstance(record.pop(_AUTHOR, None), str):
        raise _damaged(path, 1, f"does not say {_AUTHOR!r}")
    return {address: _entry(path, text, address, entry) for address, entry in record.items()}


def put(host: Host, name: str, record: Record) -> None:
    """Make this the record of a check, and see to it that systemd starts our unit. Without any record, it does not."""
    path = _path(name)
    if record:
        _install(host)
        host.replace(path, _text(record))
        return
    host.replace(path, None)
    if not names(host):
        _uninstall(host)


def present(host: Host, record: Record) -> bool:
    """Are all devices of a record there, with a driver, and with the network interface that they are set through?"""
    return all(not missing(host, address) and _is_named(host, address, record[address]) for address in record)


def missing(host: Host, address: str) -> str:
    """Why a device of a record cannot be set up: it is not there, or has no driver. Empty when it can."""
    if not host.exists(f"{pci.DEVICES}/{address}"):
        return "there is no device at this address"
    return "" if host.link(f"{pci.DEVICES}/{address}/driver") else "no driver is bound to it"


def replaced(host: Host, address: str, entry: Mapping[str, Any]) -> str:
    """Which other device is at an address of a record; empty when it is the same (addresses move with the BIOS)."""
    numbers = (host.number(f"{pci.DEVICES}/{address}/{file}") for file in ("vendor", "device"))
    found = ":".join(f"{number:04x}" for number in numbers)
    return "" if found == entry["id"] else f"there is {found} at this address, and the record is of {entry['id']}"


def _is_named(host: Host, address: str, entry: Mapping[str, Any]) -> bool:
    """Has udev given the interfaces of a device their names? A driver that is bound may not have made them yet.

    What udev is done with has a file in its database, which is what sd_device_get_is_initialized(3) looks at.
    """
    if all(key in _WITHOUT_INTERFACE or key.endswith("/driver") for key in entry):
        return True
    if (kind := pci.class_code(host, address)) and kind >> 16 != pci.NETWORK:
        return True
    folder = f"{pci.DEVICES}/{address}/net"
    indexes = [host.read(f"{folder}/{name}/ifindex") for name in host.names(folder)]
    udev = host.exists("/run/udev/control")
    return bool(indexes) and (not udev or all(host.exists(f"/run/udev/data/n{index}") for index in indexes))


def _path(name: str) -> str:
    return f"{DIRECTORY}/{name}.json"


def _text(record: Record) -> str:
    """One device a line, so that a diff of it reads well."""
    lines = [f"{json.dumps(_AUTHOR)}: {json.dumps(_WORDS)}"]
    for address, entry in sorted(record.items()):
        values = {key: to_json(value) for key, value in sorted(entry.items())}
        lines.append(f"{json.dumps(address)}: {json.dumps(values)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object as it is, unless a name is there twice: which of the two would count?"""
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return made


def _entry(path: str, text: str, address: str, entry: Any) -> dict[str, Any]:
    at = text[: max(text.find(json.dumps(address)), 0)].count("\n") + 1
    if not _ADDRESS.fullmatch(address):
        raise _damaged(path, at, f"{address!r} is no PCI address")
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
        raise _damaged(path, at, f"{address} has no id")
    for key, value in entry.items():
        texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
        if not (texts or value is None or isinstance(value, (str, int))):
            raise _damaged(path, at, f"{address}: {key}: {value!r} is no setting")
    return {key: from_json(value) for key, value in entry.items()}


def _damaged(path: str, line: int, what: str) -> HostError:
    hint = "Mend that line; or remove the file, and run hostprep apply."
    return HostError(f"{path}:{line}: damaged: {what}", hint)


# -- the unit -------------------------------------------------------------------------------------


def effective(host: Host) -> bool:
    """Will systemd start our unit at the next boot? HostError where that cannot be told.

    That this boot is systemd's is taken to say the same of the next one.
    """
    path = _unit_file(host)
    if path is None or not host.exists("/run/systemd/system") or not _wanted_by(host):
        return False
    text = _unit_text(host, path)
    if not text.strip():  # masked: a link to /dev/null, or an empty file
        return False
    for dropin in _dropins(host):
        if found := _DECIDES.search(host.read(dropin) or ""):
            raise HostError(f"{dropin}: has {found[1]}=: whether {UNIT} does its work at boot cannot be told")
    return _starts_us(host, text)


def _unit_file(host: Host) -> str | None:
    """The file that decides what the unit is: the first there is."""
    paths = (f"{folder}/{UNIT}" for folder in (_ETC, *_PROVIDED))
    return next((path for path in paths if host.exists(path)), None)


def _unit_text(host: Host, path: str) -> str:
    data = host.read_bytes(path)
    return "" if data is None else data.decode(errors="replace")


def _wanted_by(host: Host) -> str:
    """The link by which a target that every boot reaches starts our unit; empty when there is none."""
    for target in _REACHED:
        for kind in ("wants", "requires"):
            paths = (f"{folder}/{target}.{kind}/{UNIT}" for folder in (_ETC, *_PROVIDED))
            first = next((path for path in paths if host.exists(path)), "")
            if first and host.link(first) != "/dev/null":
                return first
    return ""


def _dropins(host: Host) -> Iterator[str]:
    """Those of our unit, of all whose names begin as its does, and of all services."""
    for folder in (_ETC, *_PROVIDED):
        for name in (UNIT, "hostprep-.service", "service"):
            yield from host.glob(f"{folder}/{name}.d/*.conf")


def _starts_us(host: Host, text: str) -> bool:
    """Does a unit start what it should, and is that there?"""
    program, arguments = _program(text)
    return arguments.endswith(ARGUMENTS) and _is_there(host, program)


def _program(text: str) -> tuple[str, str]:
    """The program that a unit starts, and its arguments; empty where there is not exactly one."""
    found = re.findall(r"^ExecStart=[-@:+!|]*(?:\"([^\"]*)\"|(\S+))[ \t]+(.*\S)", text, re.M)
    if len(found) != 1:
        return "", ""
    quoted, plain, arguments = found[0]
    return (quoted or plain).replace("%%", "%").replace("\\\\", "\\"), arguments


def _is_there(host: Host, program: str) -> bool:
    """Is a program where systemd looks for it?"""
    paths = [program] if program.startswith("/") else [f"{folder}/{program}" for folder in _SEARCHED]
    return bool(program) and any(host.exists(host.resolve(path)) for path in paths)


def _install(host: Host) -> None:
    """Put our unit in place unless a package has, and have systemd start it at boot."""
    if not host.exists("/run/systemd/system"):
        hint = "Have whatever starts services here run at boot, before the network: hostprep apply --boot"
        raise ChangeFailed("systemd does not run this host: nothing makes this again at its next boot", hint)
    own = f"{_ETC}/{UNIT}"
    path = _unit_file(host) or own
    text = _unit_text(host, path)
    if path == own and (not host.exists(own) or (_is_ours(host, own) and not _starts_us(host, text))):
        host.replace(own, unit(host))
    elif not text.strip():
        raise ChangeFailed(f"{path}: masked: somebody does not want {UNIT} to run", f"systemctl unmask {UNIT}")
    if _wanted_by(host):
        return
    for target in re.findall(r"^WantedBy=(.*)", _unit_text(host, path), re.M)[-1:] or ["multi-user.target"]:
        for name in target.split():
            if host.link(f"{_ETC}/{name}.wants/{UNIT}") == "/dev/null":
                raise ChangeFailed(f"{_ETC}/{name}.wants/{UNIT}: masked: somebody does not want {UNIT} to run")
            host.symlink(f"{_ETC}/{name}.wants/{UNIT}", path)


def _uninstall(host: Host) -> None:
    """Take our unit away with its links. One of a package stays as it is: without a record it does nothing."""
    own = f"{_ETC}/{UNIT}"
    if not _is_ours(host, own):
        return
    for link in host.glob(f"{_ETC}/*.wants/{UNIT}"):
        if host.link(link) == own:
            host.replace(link, None)
    host.replace(own, None)


def _is_ours(host: Host, path: str) -> bool:
    return host.state_kind(path) == "file" and _unit_text(host, path).startswith(_OURS)


def unit(host: Host) -> str:
    """The text of our unit, which starts the hostprep that is running now."""
    for path in (command()[0], sys.executable, _PACKAGE):
        if why := host.untrusted(path):
            hint = "Install hostprep where only root can write, such as a virtual environment in /opt."
            raise ChangeFailed(f"root would run this at every boot, and others could change it: {why}", hint)
    with open(os.path.join(_PACKAGE, "systemd", UNIT)) as f:
        text = f.read()
    words = " ".join(_quoted(word) for word in command())
    return _OURS + text.replace("ExecStart=hostprep ", f"ExecStart={words} ")


def command() -> list[str]:
    """The running hostprep as a command with an absolute path: the script beside the interpreter, if there is one."""
    script = os.path.join(os.path.dirname(sys.executable), "hostprep")
    return [script] if os.access(script, os.X_OK) else [sys.executable, "-m", "hostprep"]


def _quoted(word: str) -> str:
    """A word of a command line as systemd reads it (systemd.service(5), COMMAND LINES)."""
    escaped = word.replace("%", "%%").replace("\\", "\\\\")
    return f'"{escaped}"' if re.search(r"[\s';]", word) else escaped
