"""What grub-mkconfig complains of reaches the admin: the file that is broken, not the last line that it printed."""

from __future__ import annotations

import shlex

import pytest
from conftest import MakeHost, apply, statuses
from fakes import debian, grub_cfg, mkconfig
from test_bootloader import bls_host_files

from hostprep import bootloader, registry
from hostprep.errors import CommandFailed
from hostprep.journal import Journal
from hostprep.model import Change, Facet, Unknown
from hostprep.perform import Performer, converge

# As grub-mkconfig 2.06 of Debian 12 says it.
BEGIN = "Generating grub configuration file ...\n"
FOUND = "Found linux image: /boot/vmlinuz-6.1\nFound initrd image: /boot/initrd.img-6.1\n"
OS_PROBER = (
    "Warning: os-prober will not be executed to detect other bootable partitions.\n"
    "Systems on them will not be added to the GRUB boot configuration.\n"
    "Check GRUB_DISABLE_OS_PROBER documentation entry.\n"
    "Adding boot menu entry for UEFI Firmware Settings ...\n"
)
SYNTAX = """\
error: syntax error.
error: Incorrect command.
error: syntax error.
Syntax error at line 187
Syntax errors are detected in generated GRUB config file.
Ensure that there are no errors in /etc/default/grub
and /etc/grub.d/* files or please file a bug report with
/boot/grub/.grub.cfg.hostprep-new.new file attached.
"""


@pytest.mark.parametrize(
    ("status", "said", "told"),
    [
        (
            2,
            "/usr/sbin/grub-mkconfig: 40: /etc/default/grub: Syntax error: Unterminated quoted string\n",
            "exit 2: /usr/sbin/grub-mkconfig: 40: /etc/default/grub: Syntax error: Unterminated quoted string",
        ),
        (
            1,
            f"{BEGIN}{FOUND}/etc/grub.d/42_site: 2: nosuch: not found\n{SYNTAX}",
            "exit 1: /etc/grub.d/42_site: 2: nosuch: not found; error: syntax error.; error: Incorrect command.",
        ),
        (1, f"{BEGIN}{FOUND}cat: write error: No space left on device\n", "exit 1: cat: write error: No space left"),
        (3, BEGIN + FOUND + OS_PROBER, "exit 3: it does not say why: a script in /etc/grub.d failed"),
        (3, "", "exit 3: it does not say why"),
    ],
    ids=["unbalanced quote", "script that prints rubbish", "full disk", "silent script", "nothing said"],
)
def test_the_message_names_what_is_broken(
    make_host: MakeHost, journal: Journal, status: int, said: str, told: str
) -> None:
    """Its last line is of the kernels that it found, or asks for a file that hostprep has removed by then."""
    last = said.splitlines()[-1:]
    host = make_host(debian())
    host.commands["grub-mkconfig"] = CommandFailed(f"grub-mkconfig: exit {status}: {last}", status=status, output=said)
    [failure] = apply(host, {"kernel_args": ["iommu=pt"]}, journal).failures
    assert told in failure.reason
    assert ".hostprep-new" not in failure.reason
    assert ("Make room" if "No space left" in said else "Mend that in /etc/default/grub") in failure.hint


def test_what_others_wrote_since_takes_effect_too_and_is_told(make_host: MakeHost, journal: Journal) -> None:
    """A drop-in that calls what is not there may empty a variable, and update-grub still exits 0 (dash: `export`)."""
    host = make_host(debian())
    host.commands["grub-mkconfig"] = mkconfig(host)
    host.put("/etc/default/grub.d/50-site.cfg", 'export GRUB_CMDLINE_LINUX_DEFAULT="$(nosuch 2>/dev/null)"\n')
    told: list[str] = []
    performer = Performer(host, registry.load(["kernel_args"]), journal, told.append)
    want = Change("kernel_args", "iommu", Facet.NEXT_BOOT, None, "pt")
    converge(performer, [want], {"kernel_args": ["iommu=pt"]}, ())
    assert performer.failures == []
    assert "kernel arguments of the next boot: +iommu=pt -quiet" in told


@pytest.mark.parametrize("value", ['a="b', "a='b", "a\\"], ids=["double", "single", "backslash at the end of the line"])
def test_an_entry_that_does_not_end_with_its_line_is_never_put_in_place(
    make_host: MakeHost, journal: Journal, value: str
) -> None:
    """GRUB reads on to the next quote, lines later: grub-script-check finds nothing wrong, and nothing boots."""
    host = make_host(debian())
    host.commands["grub-mkconfig"] = mkconfig(host)
    host.put("/etc/default/grub.d/zzz-site.cfg", f"GRUB_CMDLINE_LINUX_DEFAULT={shlex.quote(value)}\n")
    before = host.snapshot()
    [failure] = apply(host, {"kernel_args": ["iommu=pt"]}, journal).failures
    assert "a quote is left open in the line" in failure.reason
    assert "Mend that in /etc/default/grub" in failure.hint
    assert host.snapshot() == before


def test_a_grub_cfg_whose_entry_does_not_end_with_its_line_is_unknown(make_host: MakeHost) -> None:
    host = make_host(debian() | {"/boot/grub/grub.cfg": grub_cfg('root=UUID=5b0c ro a="b quiet iommu=pt')})
    assert statuses(host, {"kernel_args": ["iommu=pt"]}) == {"kernel_args/iommu": "unknown"}


@pytest.mark.parametrize(("broken", "unknown"), [("a-2-1", True), ("a-1-1", False)], ids=["boots", "does not boot"])
def test_an_open_quote_in_a_bls_entry_is_about_that_entry_alone(
    make_host: MakeHost, broken: str, unknown: bool
) -> None:
    options = {"a-2-1": "root=/dev/vda1 ro", "a-1-1": "root=/dev/vda1 ro"} | {broken: 'root=/dev/vda1 ro a="b'}
    boot = bootloader.read(make_host(bls_host_files(options)))
    assert isinstance(boot.later, Unknown) is unknown
