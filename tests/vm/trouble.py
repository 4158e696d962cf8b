"""What holds after something went wrong: the files are what they were, and the journal claims nothing else."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hostprep.journal import Journal
from hostprep.model import Facet
from vm import Guest

JOURNAL = "/var/lib/hostprep/journal"
# What decides how the machine boots, and what nobody may leave beside it, a line for each. The profile is not ours.
FILES = """
set -- /etc /boot/grub/grub.cfg /boot/grub/grubenv -xdev
find "$@" -not -path '/etc/hostprep/profile.yaml' -printf '%y %p %l %m %u\\n'
find "$@" -type f -not -path '/etc/hostprep/profile.yaml' -exec md5sum {} +
find /boot -maxdepth 2 -name '*.hostprep-new*'
"""


def journal(guest: Guest) -> Journal:
    """The guest's journal as it is now, to be read here."""
    with tempfile.NamedTemporaryFile(prefix="hostprep-journal-", delete=False) as file:
        if guest.run(f"test -e {JOURNAL}").returncode == 0:
            file.write(guest.get(JOURNAL))
    return Journal(file.name)


def claims(guest: Guest) -> list[str]:
    """The settings of the next boot that the journal says hostprep has changed, without those that it only began."""
    read = journal(guest)
    standing = read.standing()
    Path(read.path).unlink()
    return [s.change.key for s in standing if s.change.facet is Facet.NEXT_BOOT and not s.begun]


def files(guest: Guest) -> set[str]:
    return set(guest.sh(FILES).splitlines())


@contextlib.contextmanager
def nothing_changed(guest: Guest) -> Iterator[None]:
    """Whatever fails meanwhile leaves the files as they were, and the journal in accord with that."""
    before, claimed = files(guest), claims(guest)
    yield
    assert files(guest) ^ before == set()
    assert claims(guest) == claimed
