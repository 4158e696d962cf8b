"""Where hostprep starts: the plain forms of `check` and `apply` at once, everything else through click.

systemd, cron and monitoring run the plain forms every few minutes on every host, and importing click takes three
times as long as starting Python. What is taken here is a subset of what cli.py takes, with the same meaning; a
test holds the two together.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence

from hostprep.errors import HostprepError

_WITH_VALUE = {"--profile", "--format", "--output", "--only"}
_FLAGS = {"check": {"--no-publish"}, "apply": {"--yes", "--no-publish"}}
_FORMATS = {"text", "json", "prometheus", "nagios", "junit"}


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


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
        from hostprep.report import exit_code

        _complain(str(e), e.hint)
        return exit_code(e, "nagios" if "nagios" in argv else "text")
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except Exception as e:  # noqa: BLE001  # the last resort: whatever it is, it has an exit status and says so
        import traceback

        from hostprep.report import exit_code

        traceback.print_exc()
        _complain(f"this is a bug in hostprep: {type(e).__name__}: {e}", "Please report it, with the lines above.")
        return exit_code(e)


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
    from hostprep import commands

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


def _complain(message: str, hint: str = "") -> None:
    lines = "".join(f"error: {line}\n" for line in message.splitlines() or [""])
    try:
        sys.stderr.write(lines + (f"hint: {hint}\n" if hint else ""))
    except (OSError, AttributeError):
        return  # nobody listens; the exit status still tells


if __name__ == "__main__":
    main()
