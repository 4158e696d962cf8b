"""The command line, read by click. It only reads: what a command does is in commands.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from hostprep import __version__, commands, engine, formats, packages, registry
from hostprep.errors import UsageError
from hostprep.quantities import parse_duration
from hostprep.report import EXIT_CODES, exit_code

if TYPE_CHECKING:  # generic for the type checker since click 8.4, never at run time
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType

F = TypeVar("F", bound=Callable[..., Any])

_EPILOG = "\b\nExit status:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())


def run(argv: Sequence[str]) -> int:
    """Read and run a command line. Raises UsageError for what click cannot read."""
    try:
        result = main.main(args=list(argv), prog_name="hostprep", standalone_mode=False)
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.ClickException as e:
        context = getattr(e, "ctx", None)
        command = context.command_path if context else "hostprep"
        raise UsageError(e.format_message(), f"{command} --help says what it takes.") from e
    return result if isinstance(result, int) else 0


def _help(ctx: click.Context, param: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        commands.emit(ctx.get_help() + "\n")
        ctx.exit()


def _version(ctx: click.Context, param: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        commands.emit(f"hostprep {__version__}\n")
        ctx.exit()


class Command(click.Command):
    """A command whose help is an answer like any other: it can get lost, and then that is said."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        option = super().get_help_option(ctx)
        if option is not None:
            option.callback = _help
        return option


class Group(Command, click.Group):
    """Commands in the order in which a person needs them."""

    command_class = Command
    group_class = type

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class Duration(_ParamType):
    """Seconds, from 90s, 10m, 1h30m, 2d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            seconds = parse_duration(value)
        except ValueError as e:
            self.fail(str(e), param, ctx)
        return seconds or self.fail("it must be at least 1s", param, ctx)


class Patience(Duration):
    """Seconds, where none is an answer too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return 0 if str(value) in ("0", "0s") else super().convert(value, param, ctx)


class CheckName(_ParamType):
    """The name of a check, completed by the shell."""

    name = "check"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(name) for name in registry.names() if name.startswith(incomplete)]


class ProfileName(_ParamType):
    """A profile's name or file, completed by the shell."""

    name = "name|file"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        from hostprep import profile_files

        if "/" in incomplete:
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(name) for name in profile_files.available() if name.startswith(incomplete)]


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_deadline = click.option(
    "--deadline",
    type=Duration(),
    default=f"{engine.DEADLINE:g}s",
    show_default=True,
    help="How long all checks together may take.",
)
_selection = _options(
    click.option(
        "--profile",
        type=ProfileName(),
        help="A profile's name or file. Default: /etc/hostprep/profile.yaml, else baseline.",
    ),
    click.option(
        "--only", multiple=True, type=CheckName(), help="Look at this check only. May be given more than once."
    ),
    _deadline,
)
_format = click.option(
    "--format",
    "output_format",
    type=click.Choice(["text", *formats.NAMES]),
    default="text",
    show_default=True,
    help="How to say it.",
)
_plan_format = click.option(
    "--format",
    "output_format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How to say it.",
)
_output = click.option("--output", metavar="FILE", help="Write the answer to FILE, whole or not at all.")
_root = click.option("--root", metavar="DIR", help="Look at the host recorded in DIR instead of this one.")
_publish = click.option("--no-publish", is_flag=True, help="Do not publish the report in /run/hostprep.")
_allow = click.option(
    "--allow-disruption",
    "allowed",
    metavar="CHECK",
    multiple=True,
    type=CheckName(),
    help="Let this check disrupt work in use, or jobs and containers that run. May be given more than once.",
)


@click.group(
    cls=Group,
    epilog=_EPILOG,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
@click.pass_context
def main(ctx: click.Context) -> int:
    """Inspect and prepare a Linux host before it joins a cluster.

    A profile says what the host should be. hostprep looks at the host as it is now and as it will be after the
    next boot, and judges both: a setting is as wanted (pass), will be lost at the next boot (volatile), waits for a
    reboot, is wrong (FAIL), or could not be read (unknown). What is unknown is not ready.

    \b
    A first session:
      hostprep check            is this host ready? what to do where it is not
      hostprep plan             what would apply do? changes nothing
      sudo hostprep apply       do it, after asking
      sudo hostprep revert      take back what hostprep changed, and only that

    \b
    Files, and the variables that name other places for them:
      /etc/hostprep/profile.yaml    this site's profile
      /etc/hostprep/profiles/       more profiles of this site, by name
      /run/hostprep/report.json     the last report ($HOSTPREP_RUN_DIR)
      /var/lib/hostprep/            what hostprep changed ($HOSTPREP_STATE_DIR)
      /var/cache/hostprep/          profiles, read once ($HOSTPREP_CACHE_DIR)
    """
    if ctx.invoked_subcommand is not None:
        return 0
    click.echo(ctx.get_help(), err=True)
    return exit_code(UsageError(""))


@main.command(epilog=_EPILOG)
@_selection
@_format
@_output
@_root
@_publish
@click.option("--benchmarks", is_flag=True, help="First run the profile's benchmarks. Takes long, and needs root.")
def check(
    profile: str | None,
    only: tuple[str, ...],
    deadline: int,
    output_format: str,
    output: str | None,
    root: str | None,
    no_publish: bool,
    benchmarks: bool,
) -> int:
    """Is this host what the profile says? Changes nothing.

    As root the report is also published in /run/hostprep/report.json, unless only a part was looked at.

    --benchmarks is for a node that is new or under suspicion, never for boot: it runs what the profile names, keeps the
    results, and later looks judge those. It refuses while jobs, containers or VMs run.
    """
    look = commands.Look(profile, only, output_format, output, root, deadline, not no_publish, benchmarks)
    return commands.check(look)


@main.command(epilog=_EPILOG)
@_selection
@_plan_format
@_output
@_root
@_allow
def plan(
    profile: str | None,
    only: tuple[str, ...],
    deadline: int,
    output_format: str,
    output: str | None,
    root: str | None,
    allowed: tuple[str, ...],
) -> int:
    """What would apply do? Changes nothing.

    Shows each change with its before and after, the command an admin would type, a diff for every file, whether it
    counts now or at the next boot, and what it disrupts. The exit status is that of check.
    """
    return commands.plan(commands.Look(profile, only, output_format, output, root, deadline), allowed)


@main.command(epilog=_EPILOG)
@_selection
@_format
@_output
@_publish
@_allow
@click.option("--yes", is_flag=True, help="Do not ask. Needed where there is no terminal.")
@click.option("--reboot", is_flag=True, help="Then reboot, if that makes this host ready and disturbs nobody.")
@click.option("--boot", is_flag=True, help="Only make again what no kernel keeps over a reboot, as recorded.")
@click.pass_context
def apply(
    ctx: click.Context,
    profile: str | None,
    only: tuple[str, ...],
    deadline: int,
    output_format: str,
    output: str | None,
    no_publish: bool,
    allowed: tuple[str, ...],
    yes: bool,
    reboot: bool,
    boot: bool,
) -> int:
    """Make this host what the profile says. Needs root.

    Shows what it will do and asks; then looks again, and ends with the findings. Every change is journalled before
    it is made and can be taken back. A value that somebody else changed meanwhile is not overwritten. What would
    disrupt work in use is refused unless --allow-disruption names the check.

    hostprep does not reboot unless --reboot asks for it, and then once for all that waits. It does not where something
    is left that no reboot mends, for a power cycle, while jobs, containers or VMs run (unless --allow-disruption
    reboot), while packages are installed, and never twice for the same cause.

    --boot is for hostprep-apply.service, which apply installs where it is needed: without a profile and without
    asking it makes again what apply has recorded in /etc/hostprep/boot, such as virtual functions and their addresses.
    """
    if boot:
        given = [name for name in ctx.params if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT]
        if stray := [name for name in given if name not in ("boot", "yes")]:
            option = next(o.opts[0] for o in ctx.command.params if o.name == stray[0])
            raise UsageError(f"--boot does what was recorded, and takes no {option}", "Leave one of the two out.")
        return commands.recreate()
    look = commands.Look(profile, only, output_format, output, None, deadline, not no_publish)
    return commands.apply(look, allowed, yes, reboot)


@main.command(epilog=_EPILOG)
@click.option("--dry-run", is_flag=True, help="Only show what would be taken back.")
@click.option("--yes", is_flag=True, help="Do not ask. Needed where there is no terminal.")
def revert(dry_run: bool, yes: bool) -> int:
    """Take back what hostprep changed. Needs root.

    Only that, and nothing else. Files that nobody else touched become the same bytes, mode and owner again; settings
    go back to the value that hostprep found. What somebody else changed since is left alone, and said.
    """
    return commands.revert(dry_run, yes)


@main.command(epilog=_EPILOG)
@_format
@_output
@click.option("--max-age", type=Duration(), help="Refuse an older report, though it says that it is still valid.")
@click.option("--profile", type=ProfileName(), help="Refuse a report that is not of this profile, as it is now.")
def report(output_format: str, output: str | None, max_age: int | None, profile: str | None) -> int:
    """The last published report, if it can be relied on.

    One that is missing, damaged, no longer valid, or of another boot or machine is refused, with status 3.
    """
    return commands.show_report(output_format, max_age, output, profile)


@main.command(epilog=_EPILOG)
@click.option("--timeout", type=Patience(), default="10m", show_default=True, help="Give up after this; 0: ask once.")
@click.option("--max-age", type=Duration(), help="Wait for a report that is no older, though it says it is valid.")
@click.option("--profile", type=ProfileName(), help="Wait for a report of this profile, as it is now.")
def wait(timeout: int, max_age: int | None, profile: str | None) -> int:
    """Wait until this host is ready, then let go.

    Returns with status 0 as soon as there is a report of this machine, this boot and this profile that is still valid
    and says ready. Looks at nothing itself: hostprep-check.timer does, or hostprep check. When it gives up it says
    what is still missing.

    \b
      hostprep wait && make create-cluster-with-all
    """
    return commands.wait(profile, timeout, max_age)


@main.command()
@click.option(
    "--listen",
    metavar="ADDRESS:PORT",
    help="Where to listen. Default: 127.0.0.1:9617, or the sockets that systemd hands over.",
)
@click.option("--profile", type=ProfileName(), help="Refuse a report that is not of this profile, as it is now.")
def serve(listen: str | None, profile: str | None) -> int:
    """Serve the published report over HTTP, read-only.

    /metrics for Prometheus, /report.json, /healthz (200 when ready, else 503), and a page for people at /. The report
    is read anew for every answer; one that cannot be relied on is 503. hostprep install serve has systemd listen.
    """
    return commands.serve(listen, profile)


@main.command()
@click.option("--only", multiple=True, type=CheckName(), help="Look at this check only. May be given more than once.")
@_plan_format
@_root
@click.option("--record", metavar="DIR", help="Also keep everything the host answered in DIR, for --root.")
@_deadline
def inspect(only: tuple[str, ...], output_format: str, root: str | None, record: str | None, deadline: int) -> int:
    """Facts, without a profile.

    Every setting that the checks know, as it is now and as it will be after the next boot.
    """
    return commands.inspect(only, output_format, root, record, deadline)


@main.command()
@click.argument("sides", metavar="A [B]...", nargs=-1, required=True)
@click.option("--profile", type=ProfileName(), help="Judge this host, or a recorded one, by this profile.")
@click.option(
    "--all", "everything", is_flag=True, help="Also what any two hosts differ in, and what nobody could read."
)
@_plan_format
@_output
@_deadline
def diff(
    sides: tuple[str, ...], profile: str | None, everything: bool, output_format: str, output: str | None, deadline: int
) -> int:
    """What differs between hosts, the most important first.

    A and B are what check --format json or inspect --format json has written (- is stdin), or directories of recorded
    hosts (inspect --record). With A alone, this host is the other side. Of more than two, the odd one out is told
    first. Findings come before facts, those before versions; free memory, MAC addresses and their like only with --all.

    Status 0: nothing differs. 1: something does. 3: nothing, but not all could be read.

    \b
      ssh node17 hostprep check --format json | hostprep diff -
      hostprep diff node*.json
    """
    return commands.diff(sides, profile, output_format, output, everything, deadline)


@main.command()
@click.argument("check", required=False, type=CheckName())
def explain(check: str | None) -> int:
    """The manual of a check.

    What it looks at, what its section of a profile takes, and what it changes. Without a name: which checks there are.
    """
    return commands.explain(check)


@main.group(invoke_without_command=True)
@click.pass_context
def profiles(ctx: click.Context) -> int:
    """List, show and validate profiles."""
    return 0 if ctx.invoked_subcommand else commands.profiles_list()


@profiles.command("list")
def profiles_list() -> int:
    """The profiles that can be named."""
    return commands.profiles_list()


@profiles.command("show")
@click.argument("name", type=ProfileName())
@click.option("--effective", is_flag=True, help="What comes out of it and of the profiles that it extends.")
def profiles_show(name: str, effective: bool) -> int:
    """A profile's file, to read or to start from."""
    return commands.profiles_show(name, effective)


@profiles.command("validate")
@click.argument("file", type=ProfileName(), metavar="FILE")
def profiles_validate(file: str) -> int:
    """Is this file a valid profile?

    Says all that is wrong with it, each with file:line:column.
    """
    return commands.profiles_validate(file)


@profiles.command("from-makefile")
@click.argument("file", type=click.Path(), metavar="MAKEFILE")
def profiles_from_makefile(file: str) -> int:
    """Make a profile from an OpenKasugai Makefile.

    The Makefile is read, never run. What it says of ports, VFs and the GPU's driver becomes sections, with comments;
    read the profile and correct it before it is put in place.

    \b
      hostprep profiles from-makefile Makefile > profile.yaml
    """
    return commands.profiles_from_makefile(file)


@profiles.command("from-host")
@click.option("--only", multiple=True, type=CheckName(), help="Of this check only. May be given more than once.")
@_output
@_root
@_deadline
def profiles_from_host(only: tuple[str, ...], output: str | None, root: str | None, deadline: int) -> int:
    """Make a profile from this host.

    For the siblings of a node that is good: what it has becomes sections that it passes, with comments. Sizes are
    rounded down; what names this machine alone, secrets, and what changes from minute to minute are left out. Nothing
    is changed. Read the profile, and take out what a sibling may have otherwise.

    \b
      sudo hostprep profiles from-host > profile.yaml
      hostprep check --profile profile.yaml
    """
    return commands.profiles_from_host(only, root, deadline, output)


@main.command()
@click.argument("which", type=click.Choice(["report", "profile"]), default="report")
def schema(which: str) -> int:
    """The JSON Schema of reports, or of profiles.

    Both are of draft 2020-12. That of reports is for whoever reads them, that of profiles for editors.
    """
    return commands.schema(which)


_targets = click.argument(
    "targets", metavar="TARGET...", nargs=-1, required=True, type=click.Choice(list(packages.TARGETS))
)
_join_options = _options(
    click.option(
        "--gate",
        "gates",
        metavar="UNIT",
        multiple=True,
        help="With systemd: this service starts only when the host is ready, such as pbs.service. May be repeated.",
    ),
    click.option("--root", metavar="DIR", help="The root directory of an image, instead of this host."),
    click.option("--dry-run", is_flag=True, help="Only show what would be done."),
)


def _list_of_targets() -> str:
    width = max(map(len, packages.TARGETS))
    return "\b\nTargets:\n" + "\n".join(f"  {n:<{width}}  {t.about}" for n, t in packages.TARGETS.items())


@main.command(epilog=_list_of_targets())
@_targets
@_join_options
@click.option("--textfile-directory", "textfiles", metavar="DIR", help="With prometheus: node_exporter's.")
def install(
    targets: tuple[str, ...], gates: tuple[str, ...], root: str | None, dry_run: bool, textfiles: str | None
) -> int:
    """Join this host to what reads its report. Needs root.

    Puts files in place, with the path of this hostprep in them, shows what it did and what to run next. It enables
    and starts nothing itself. A file that hostprep did not put there is never replaced.

    \b
      hostprep install systemd --gate pbs.service
      hostprep install prometheus bash-completion
    """
    _must_belong(gates, targets, "--gate", "systemd")
    _must_belong(textfiles, targets, "--textfile-directory", "prometheus")
    return commands.install(commands.Join(targets, gates, root, textfiles, dry_run, _completion))


@main.command(epilog=_list_of_targets())
@_targets
@_join_options
def uninstall(targets: tuple[str, ...], gates: tuple[str, ...], root: str | None, dry_run: bool) -> int:
    """Take away what install has put in place. Needs root.

    A file that was changed since is left, and said. With --gate only that service no longer waits.
    """
    _must_belong(gates, targets, "--gate", "systemd")
    return commands.uninstall(commands.Join(targets, gates, root, dry_run=dry_run))


def _must_belong(given: object, targets: Sequence[str], option: str, target: str) -> None:
    if given and target not in targets:
        raise UsageError(f"{option} belongs to the target {target}", f"hostprep install {target} {option} ...")


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """The completion script for a shell.

    \b
      hostprep completion bash > /etc/bash_completion.d/hostprep
      hostprep completion zsh > /usr/share/zsh/site-functions/_hostprep
      hostprep completion fish > /etc/fish/completions/hostprep.fish
    """
    commands.emit(_completion(shell))
    return 0


def _completion(shell: str) -> str:
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    assert script is not None
    return str(script(main, {}, "hostprep", "_HOSTPREP_COMPLETE").source()) + "\n"
