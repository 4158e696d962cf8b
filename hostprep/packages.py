"""What hostprep puts in place for each program that reads its report, and what a person does after that.

The files themselves are in hostprep/share and hostprep/systemd. Paths are those that the other programs document.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

from hostprep import boot_record
from hostprep.errors import ChangeFailed, UsageError
from hostprep.host import Host
from hostprep.install import Item

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
UNITS = "/usr/local/lib/systemd/system"  # what `apply` puts into /etc/systemd/system comes before it (systemd.unit(5))
ADMIN_UNITS = "/etc/systemd/system"
TMPFILES = "/usr/local/lib/tmpfiles.d"
SHARE = "/usr/local/share/hostprep"
FEATURES = "/etc/kubernetes/node-feature-discovery/features.d"
PROBLEMS = "/etc/node-problem-detector"
# Where node_exporter's packages have it: Debian and Ubuntu; Fedora and EPEL; many who install it by hand.
TEXTFILES = (
    "/var/lib/prometheus/node-exporter",
    "/var/lib/node_exporter/textfile_collector",
    "/var/lib/node_exporter",
)
GATE = "gate "  # a target of its own for every service that waits
_ENABLED = (
    "hostprep-apply.service hostprep-check.service hostprep-check.timer hostprep-publish.path hostprep-ready.target"
)
_SERVED = "hostprep-serve.socket"
_PRUNED = "hostprep-prune.timer"
_OF_OTHERS = ("hostprep-serve.", "hostprep-prune.")  # units of targets of their own
# What the units above come after (a cycle otherwise), and what an admin needs on a host that is not ready.
_BEFORE = ("hostprep-", "nvidia-", "systemd-", "ssh.", "sshd.", "dbus", "NetworkManager", "networking.", "chrony")


class Options(NamedTuple):
    """What an admin says beside the name of a target."""

    root: str | None = None
    textfiles: str | None = None
    completion: Callable[[str], str] = lambda shell: ""


class Target(NamedTuple):
    """Something that hostprep can be joined to."""

    about: str
    items: Callable[[Host, Options], list[Item]]
    next: Callable[[Host, Options], list[str]]  # what a person does after that, line by line


def gate(unit: str) -> Target:
    """The drop-in that makes a service wait for hostprep-ready.target, and that target start it."""
    if not re.fullmatch(r"[A-Za-z0-9:_.@-]+\.service", unit):
        raise UsageError(f"--gate {unit}: is not the name of a service", "Give it in full, such as pbs.service.")
    if unit.startswith(_BEFORE):
        hint = "A gate is for what joins the cluster: pbs.service, slurmd.service, kubelet.service, docker.service."
        raise UsageError(f"--gate {unit}: that has to run before a host can be ready, or be repaired", hint)
    return Target(
        f"{unit} starts when the host is ready",
        lambda host, options: _gate(host, unit),
        lambda host, options: [*_reload(host, options), *_not_started(host, unit)],
    )


def _gate(host: Host, unit: str) -> list[Item]:
    items = [Item(f"{ADMIN_UNITS}/{unit}.d/50-hostprep.conf", _file("systemd/gate.conf").encode())]
    link = f"{ADMIN_UNITS}/hostprep-ready.target.wants/{unit}"
    path = _enabled(host, unit)  # `systemctl disable` takes the link away too, and `enable` makes it
    if path and host.link(link) in (None, path):
        items.append(Item(link, path.encode(), link=True))
    return items


def _not_started(host: Host, unit: str) -> list[str]:
    """What an admin may not expect of a service that is not enabled: it waits, and nobody starts it."""
    return [] if _enabled(host, unit) else [f"{unit} is not enabled here; once it is: systemctl enable {unit}"]


def _enabled(host: Host, unit: str) -> str:
    """The file of a unit that is started at boot; empty when it is not, or is there only as a script."""
    folders = (ADMIN_UNITS, "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
    wanted = any(host.glob(f"{folder}/*.{kind}/{unit}") for folder in folders for kind in ("wants", "requires"))
    file = next((f"{folder}/{unit}" for folder in folders if host.exists(f"{folder}/{unit}")), "")
    if not file and host.glob(f"/etc/rc[2-5].d/S??{unit.removesuffix('.service')}"):
        return f"/run/systemd/generator.late/{unit}"  # systemd-sysv-generator(8)
    return file if wanted else ""


# -- the files --------------------------------------------------------------------------------------


def _file(name: str, **values: str) -> str:
    """A file of this package, with what belongs in place of @name@."""
    with open(os.path.join(_PACKAGE, name), encoding="utf-8") as f:
        text = f.read()
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def _share(name: str, **values: str) -> bytes:
    return _file(f"share/{name}", **values).encode()


def _unit(name: str) -> Item:
    command = " ".join(words())
    text = re.sub(r"(?<=[= ])hostprep (?=(apply|check|serve|wait) ?)", f"{command} ", _file(f"systemd/{name}"))
    return Item(f"{UNITS}/{name}", f"# Written by hostprep (install); uninstall takes it away.\n{text}".encode())


def words() -> list[str]:
    """The running hostprep as the words of a command line, which systemd, sh and JSON all read alike."""
    host = Host()
    found = boot_record.command()
    for word in (found[0], sys.executable, _PACKAGE):
        if why := host.untrusted(word):
            hint = "Install hostprep where only root can write, such as a virtual environment in /opt."
            raise ChangeFailed(f"root would run this, and others could change it: {why}", hint)
    if stray := [word for word in found if not re.fullmatch(r"[A-Za-z0-9_/.+-]+", word)]:
        hint = "Install hostprep in a directory without spaces and special characters, such as /opt/hostprep."
        raise ChangeFailed(f"{stray[0]}: not every reader of a configuration file takes this path", hint)
    return found


def _program() -> str:
    """The path of the program alone."""
    if len(found := words()) > 1:
        hint = "Install it with pip, which makes one: pip install ."
        raise ChangeFailed(f"there is no program hostprep beside {found[0]}", hint)
    return found[0]


def _python() -> str:
    """The interpreter that runs this, as one word of sh."""
    words()
    return shlex.quote(sys.executable)


def _publishing(target: str, output: str) -> list[Item]:
    """What has hostprep-publish.service write a file, and what takes it away at boot, when it speaks of another one."""
    values = {"hostprep": " ".join(words()), "output": output, "directory": os.path.dirname(output)}
    dropin = _share(f"{target}/publish.conf", **values)
    stale = f"# Until this boot has a report. Written by hostprep (install {target}).\nr! {output}\n"
    return [
        Item(f"{UNITS}/hostprep-publish.service.d/{target}.conf", dropin),
        Item(f"{TMPFILES}/hostprep-{target}.conf", stale.encode()),
    ]


def _systemd(host: Host, options: Options) -> list[Item]:
    tmpfiles = Item(f"{TMPFILES}/hostprep.conf", _file("systemd/hostprep.tmpfiles.conf").encode())
    names = sorted(os.listdir(os.path.join(_PACKAGE, "systemd")))
    units = [n for n in names if n.startswith("hostprep-") and not n.startswith(_OF_OTHERS)]
    return [*(_unit(name) for name in units), tmpfiles]


def _serve(host: Host, options: Options) -> list[Item]:
    return [_unit("hostprep-serve.service"), _unit("hostprep-serve.socket")]


def _prune(host: Host, options: Options) -> list[Item]:
    return [_unit("hostprep-prune.service"), _unit("hostprep-prune.timer")]


def _prometheus(host: Host, options: Options) -> list[Item]:
    names = ("hostprep.rules.yml", "hostprep.rules.test.yml", "hostprep-dashboard.json")
    server = [Item(f"{SHARE}/prometheus/{name}", _share(f"prometheus/{name}")) for name in names]
    return [*_publishing("prometheus", f"{_textfiles(host, options)}/hostprep.prom"), *server]


def _textfiles(host: Host, options: Options) -> str:
    if options.textfiles:
        if not re.fullmatch(r"(/[A-Za-z0-9_.+-]+)+", options.textfiles):
            raise UsageError(f"--textfile-directory {options.textfiles}: is not the full path of a directory")
        return options.textfiles
    if found := next((path for path in TEXTFILES if host.state_kind(path) == "directory"), ""):
        return found
    hint = "Say where with --textfile-directory, as in node_exporter --collector.textfile.directory=DIR."
    raise UsageError("node_exporter's textfile directory is in none of the usual places", hint)


def _pbs(host: Host, options: Options) -> list[Item]:
    return [
        Item(f"{SHARE}/pbs/hostprep.py", _share("pbs/hostprep.py")),
        Item(f"{SHARE}/pbs/hostprep.json", _share("pbs/hostprep.json"), edited=True),
    ]


def _slurm(host: Host, options: Options) -> list[Item]:
    program = _share("slurm/hostprep-slurm-health", python=_python())
    return [Item("/usr/local/sbin/hostprep-slurm-health", program, 0o755)]


def _nfd(host: Host, options: Options) -> list[Item]:
    return _publishing("nfd", f"{FEATURES}/hostprep")


def _npd(host: Host, options: Options) -> list[Item]:
    return [Item(f"{PROBLEMS}/hostprep.json", _share("npd/hostprep.json", hostprep=_program()))]


_COMPLETIONS = {
    "bash": "/usr/local/share/bash-completion/completions/hostprep",
    "zsh": "/usr/local/share/zsh/site-functions/_hostprep",
    "fish": "/etc/fish/completions/hostprep.fish",
}


def _completion(shell: str) -> Target:
    return Target(
        f"completes hostprep's command line in {shell}",
        lambda host, options: [Item(_COMPLETIONS[shell], options.completion(shell).encode())],
        lambda host, options: ["Start a new shell."],
    )


def links_to_nowhere(host: Host) -> list[str]:
    """Links that `systemctl enable` made to units of ours that are there no more."""
    targets = {path: host.link(path) or "" for path in host.glob(f"{ADMIN_UNITS}/*.wants/hostprep-*")}
    return [path for path, target in targets.items() if target.startswith(UNITS) and not host.exists(target)]


def recorded(host: Host) -> list[str]:
    """Checks whose settings the boot unit in UNITS makes again, and nothing else would."""
    own = host.exists(f"{ADMIN_UNITS}/{boot_record.UNIT}")
    return [] if own or not host.exists(f"{UNITS}/{boot_record.UNIT}") else list(boot_record.names(host))


# -- what is done after that ------------------------------------------------------------------------


def _systemctl(options: Options) -> str:
    return f"systemctl --root={shlex.quote(options.root)}" if options.root else "systemctl"


def _reload(host: Host, options: Options) -> list[str]:
    return [] if options.root else ["systemctl daemon-reload"]


def _after_systemd(host: Host, options: Options) -> list[str]:
    lines = [*_reload(host, options), f"{_systemctl(options)} enable {_ENABLED}"]
    if not options.root:
        lines.append("systemctl start hostprep-publish.path hostprep-check.timer")
    if not host.exists("/etc/hostprep/profile.yaml"):
        lines.append("Write /etc/hostprep/profile.yaml: without one the host is judged by `baseline`.")
    return lines


def _after_serve(host: Host, options: Options) -> list[str]:
    if options.root:
        return [f"{_systemctl(options)} enable {_SERVED}"]
    lines = ["systemctl daemon-reload", f"systemctl enable --now {_SERVED}"]
    lines += ["systemctl try-restart hostprep-serve.service", "curl http://127.0.0.1:9617/healthz"]
    if closed := _closed(os.path.realpath(sys.executable)) or _closed(words()[0]):
        lines.append(
            f"It runs as a user of its own, who cannot look into {closed}: install hostprep elsewhere, as in /opt."
        )
    return lines


def _after_prune(host: Host, options: Options) -> list[str]:
    wanted = "The profile says what is to go: `containers: {unused_images: 20GB, logins: none}`."
    if options.root:
        return [f"{_systemctl(options)} enable {_PRUNED}", wanted]
    return ["systemctl daemon-reload", f"systemctl enable --now {_PRUNED}", wanted]


def _closed(path: str) -> str:
    """The first directory on the way to a file that not everybody may pass through; empty where there is none."""
    parents = [path[:i] for i, c in enumerate(path) if c == "/" and i]
    return next((folder for folder in parents if not os.stat(folder).st_mode & 0o001), "")


def _after_prometheus(host: Host, options: Options) -> list[str]:
    files = f"{SHARE}/prometheus/hostprep.rules.yml"
    return [
        *_after_publishing(host, options),
        f"On the Prometheus server: take {files} into rule_files.",
        f"In Grafana: import {SHARE}/prometheus/hostprep-dashboard.json.",
    ]


def _after_nfd(host: Host, options: Options) -> list[str]:
    mount = f"In kind, nfd-worker looks into the node's container: mount {FEATURES} there with extraMounts."
    return [*_after_publishing(host, options), mount]


def _after_publishing(host: Host, options: Options) -> list[str]:
    if host.exists(f"{UNITS}/hostprep-publish.service"):
        return [] if options.root else ["systemctl daemon-reload", "systemctl start hostprep-publish.service"]
    return ["hostprep install systemd   (its units write the file)"]


def _after_pbs(host: Host, options: Options) -> list[str]:
    return _file("share/pbs/qmgr.txt", share=f"{SHARE}/pbs").splitlines()


def _after_slurm(host: Host, options: Options) -> list[str]:
    return _file("share/slurm/slurm.conf.txt").splitlines()


def _after_npd(host: Host, options: Options) -> list[str]:
    return [
        f"Start node-problem-detector with --config.custom-plugin-monitor={PROBLEMS}/hostprep.json",
        "It has to run on this host, not in a pod: it runs hostprep.",
    ]


def written(host: Host, target: str) -> str:
    """The file that hostprep-publish.service goes on writing for a target until systemd is told otherwise."""
    dropin = host.read(f"{UNITS}/hostprep-publish.service.d/{target}.conf") or ""
    found = re.search(r"^ExecStart=.* --output (\S+)$", dropin, re.M)
    return found[1] if found else ""


def after_removal(target: str, options: Options, output: str) -> list[str]:
    """What a person does when the files of a target have been taken away; `output` as written() told it before."""
    if options.root:
        return []
    if output:
        return ["systemctl daemon-reload", f"rm -f {output}"]
    return {
        "systemd": ["systemctl stop hostprep-check.timer hostprep-publish.path", "systemctl daemon-reload"],
        "prune": [f"systemctl stop {_PRUNED}", "systemctl daemon-reload"],
        "serve": [f"systemctl stop {_SERVED} hostprep-serve.service", "systemctl daemon-reload"],
        "pbs": [
            'qmgr -c "delete hook hostprep"',
            'pbsnodes -r -C "" NODE for each that `pbsnodes -l` still shows with "hostprep:"',
            "rm -f /var/lib/hostprep/pbs.json on the nodes",
        ],
        "slurm": ["Take HealthCheckProgram out of slurm.conf, and: scontrol reconfigure"],
        "npd": ["Restart node-problem-detector without its file."],
    }.get(target, ["systemctl daemon-reload"] if target.startswith(GATE) else [])


TARGETS: Mapping[str, Target] = {
    "systemd": Target("looks at boot and every five minutes; hostprep-ready.target", _systemd, _after_systemd),
    "serve": Target("a small HTTP endpoint for hosts without node_exporter", _serve, _after_serve),
    "prune": Target("weekly, removes container images that nobody uses", _prune, _after_prune),
    "prometheus": Target("a textfile for node_exporter; alert rules, a dashboard", _prometheus, _after_prometheus),
    "pbs": Target("a hook for OpenPBS that takes nodes offline and back", _pbs, _after_pbs),
    "slurm": Target("a HealthCheckProgram that drains and resumes", _slurm, _after_slurm),
    "nfd": Target("labels for node-feature-discovery", _nfd, _after_nfd),
    "npd": Target("a condition through node-problem-detector", _npd, _after_npd),
    **{f"{shell}-completion": _completion(shell) for shell in _COMPLETIONS},
}
