"""Where hostprep starts: the plain forms of `check` and `apply` at once, everything else through click.

systemd, cron and monitoring run the plain forms every few minutes on every host, and importing click takes three
times as long as starting Python. What is taken here is a subset of what cli.py takes, with the same meaning; a
test holds the two together.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Sequence

from hostprep.errors import HostprepError

_WITH_VALUE = {"--profile", "--format", "--output", "--only"}
_FLAGS = {"check": {"--no-publish"}, "apply": {"--yes", "--no-publish", "--boot"}}
_FORMATS = {"text", "json", "prometheus", "nagios", "junit"}  # others are read by click


def main() -> None:
    """The console script.

    What was said is out by now, and nothing else needs an orderly end: taking the interpreter down costs as much as
    looking at the host.
    """
    _open_standard_streams()
    status = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # told already, where it matters
            stream.flush()
    os._exit(status)


def _open_standard_streams() -> None:
    """Whoever starts us with a stream closed must not find what we say there in a file that we open next.

    sys.stdout stays None then, which says that nobody takes the answer.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # until the end of the process


def run(argv: Sequence[str]) -> int:
    """Run one command line; its exit status. Every ending of hostprep comes through here."""
    gc.disable()  # nothing here lives long enough for cycles to matter, and collecting costs a tenth of the start
    try:
        command = _plain(argv)
        if command is None:
            from hostprep import cli

            return cli.run(argv)
        return command()
    except HostprepError as e:
        return _end(argv, e, str(e), e.hint)
    except KeyboardInterrupt as e:
        changing = argv and argv[0] in ("apply", "revert")
        hint = "What was done so far is journalled: hostprep revert takes it back, hostprep apply goes on."
        return _end(argv, e, "interrupted", hint if changing else "")
    except Exception as e:  # noqa: BLE001  # the last resort: whatever it is, it has an exit status and says so
        import traceback

        traceback.print_exc()
        what = f"this is a bug in hostprep: {type(e).__name__}: {e}"
        return _end(argv, e, what, "Please report it, with the lines above.")


def _end(argv: Sequence[str], e: BaseException, message: str, hint: str = "") -> int:
    """Say what ended it, and its exit status. Who runs plug-ins reads the first line of stdout and nothing else."""
    from hostprep.report import exit_code

    words = " " + " ".join(argv).replace("=", " ") + " "
    plugin = next((name for name in ("nagios", "npd") if f" --format {name} " in words), "")
    lines = [_printable(line) for line in message.splitlines() or [""]]
    said = "".join(f"error: {line}\n" for line in lines) + (f"hint: {_printable(hint)}\n" if hint else "")
    with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody listens; the exit status still tells
        sys.stderr.write(said)
    if plugin:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            short = lines[0].encode("ascii", "replace").decode()[:80]  # what node-problem-detector keeps
            unknown = {"nagios": f"HOSTPREP UNKNOWN - {lines[0]}".replace("|", "/"), "npd": short}
            sys.stdout.write(f"{unknown[plugin]}\n")
            sys.stdout.flush()
    return exit_code(e, plugin or "text")


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def _plain(argv: Sequence[str]) -> Callable[[], int] | None:
    """The command of a plain command line; None when click has to read it."""
    if not argv or argv[0] not in _FLAGS or "_HOSTPREP_COMPLETE" in os.environ:
        return None
    values: dict[str, list[str]] = {name: [] for name in _WITH_VALUE}
    flags = set()
    words = iter(argv[1:])
    for word in words:
        name, equals, value = word.partition("=")
        if name in _WITH_VALUE:
            value = value if equals else next(words, "-")
            if value.startswith("-") or not value:
                return None
            values[name].append(value)
        elif word in _FLAGS[argv[0]]:
            flags.add(word)
        else:
            return None
    if any(len(values[name]) > 1 for name in ("--profile", "--format", "--output")):
        return None
    if values["--format"] and values["--format"][0] not in _FORMATS:
        return None
    if "--boot" in flags and (any(values.values()) or "--no-publish" in flags):
        return None
    from hostprep import commands

    if "--boot" in flags:
        return commands.recreate
    look = commands.Look(
        profile=next(iter(values["--profile"]), None),
        only=tuple(values["--only"]),
        format=next(iter(values["--format"]), "text"),
        output=next(iter(values["--output"]), None),
        publish="--no-publish" not in flags,
    )
    if argv[0] == "check":
        return lambda: commands.check(look)
    return lambda: commands.apply(look, (), "--yes" in flags)


if __name__ == "__main__":
    main()
