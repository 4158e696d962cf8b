"""What others have written for update-grub: contradictions are overcome, what is broken changes nothing."""

from __future__ import annotations

from typing import NamedTuple

from vm import Guest
from vm.admin import hostprep, missing, profile, statuses
from vm.story import step
from vm.trouble import claims, files, nothing_changed

ARGUMENTS = ["intel_iommu=on", "iommu=pt", "hugepagesz=2M", "hugepages=64"]
# By hand in /etc/default/grub: another value, what contradicts it, both twice. Then what the cloud images of Debian and
# Ubuntu ship, which assigns _DEFAULT anew. Last, what prints an error whenever update-grub runs, and lets it exit 0.
BY_HAND = r"""
cp -a /etc/default /root
sed -i /^GRUB_CMDLINE/d /etc/default/grub.d/00-vm.cfg
cat >>/etc/default/grub <<'E2'
GRUB_CMDLINE_LINUX_DEFAULT="quiet iommu=soft hugepagesz=1G hugepages=2"
GRUB_CMDLINE_LINUX_DEFAULT="intel-iommu=off splash hugepages=7 hugepagesz=2M hugepages=8"
GRUB_CMDLINE_LINUX="console=ttyS0 default_hugepagesz=1G a=\"b  c\""
E2
cat >/etc/default/grub.d/50-cloudimg-settings.cfg <<'E2'
# Cloud Image specific Grub settings for Generic Cloud Images
# CLOUD_IMG: This file was created/modified by the Cloud Image build process
# Set the recordfail timeout
GRUB_RECORDFAIL_TIMEOUT=0
# Do not wait on grub prompt
GRUB_TIMEOUT=0
# Set the default commandline
GRUB_CMDLINE_LINUX_DEFAULT="console=tty1 console=ttyS0 iommu=nopt"
# Set the grub console type
GRUB_TERMINAL=console
E2
echo 'export GRUB_SITE="$(site-settings)"' >/etc/default/grub.d/60-site.cfg
update-grub
"""
TIDY = "rm -r /etc/default; mv /root/default /etc; update-grub"


class Broken(NamedTuple):
    """Something that update-grub, or what it makes, does not survive."""

    name: str
    path: str
    content: str  # added to what is there
    words: tuple[str, ...]  # that the admin is told
    mode: str = "644"


DROPIN = "/etc/default/grub.d/70-broken.cfg"
MEND = "Mend that in /etc/default/grub, /etc/default/grub.d or /etc/grub.d, then try again."
BROKEN = (
    Broken(
        "an unbalanced quote in /etc/default/grub",
        "/etc/default/grub",
        'GRUB_CMDLINE_LINUX_DEFAULT="quiet\n',
        ("/etc/default/grub: Syntax error: Unterminated quoted string", MEND),
    ),
    Broken(
        "a quote that is closed only lines later",
        DROPIN,
        'GRUB_CMDLINE_LINUX_DEFAULT="quiet\nGRUB_TIMEOUT="\n',
        ("but the next boot still brings not set", "Something else on this host decides it."),
    ),
    Broken(
        "a quote within the value",
        DROPIN,
        "GRUB_CMDLINE_LINUX='a=\"b'\n",
        ("grub.cfg: a quote is left open in the line 'linux", "Mend that in /etc/default/grub"),
    ),
    Broken("a drop-in that says exit 0", DROPIN, "exit 0\n", ("made a grub.cfg without a boot entry",)),
    Broken(
        "a drop-in without quotes",
        DROPIN,
        "GRUB_CMDLINE_LINUX_DEFAULT=quiet splash\n",
        (f"exit 127: /usr/sbin/grub-mkconfig: 1: {DROPIN}: splash: not found", MEND),
    ),
    Broken(
        "a script in /etc/grub.d that errs, exit 0",
        "/etc/grub.d/42_site",
        "#!/bin/sh\nnosuch\necho 'menuentry {'\nexit 0\n",
        ("exit 1: /etc/grub.d/42_site: 2: nosuch: not found", MEND),
        mode="755",
    ),
)


def words_of_entries(guest: Guest) -> list[str]:
    """The kernel arguments of the ordinary and of the recovery entry, behind root= and ro."""
    lines = guest.sh("grep -P '^\\tlinux' /boot/grub/grub.cfg").splitlines()
    return [line.split(" ro ")[1].strip() for line in lines]


def test_what_contradicts_is_overcome_and_what_is_broken_changes_nothing(guest: Guest) -> None:
    """R80 to R83, LP#1895189: update-grub says nothing of either by its exit status; what counts is grub.cfg."""
    profile(guest, {"kernel_args": ARGUMENTS})
    with step("contradictions by hand; a cloud image's drop-in", "overcome, and taken back byte for byte") as saw:
        guest.sh(BY_HAND)
        before = files(guest)
        assert words_of_entries(guest)[0].endswith("console=tty1 console=ttyS0 iommu=nopt")
        code, said = hostprep(guest, "apply --yes")
        assert code == 4, said
        assert "kernel arguments of the next boot: +intel_iommu=on +iommu=pt" in said
        others = 'console=ttyS0 a="b  c"'
        assert words_of_entries(guest) == [
            f"{others} console=tty1 console=ttyS0 {' '.join(ARGUMENTS)}",
            f"single {others}",
        ]
        assert statuses(guest) <= {"pass", "pending-reboot"}
        code, said = hostprep(guest, "revert --yes")
        assert (code, files(guest) ^ before, claims(guest)) == (0, set(), []), said
        guest.sh(TIDY)
        saw("pending-reboot; reverted to the same bytes")
    for broken in BROKEN:
        with step(broken.name, "5: names it; nothing changed") as saw:
            guest.sh(f"test ! -e {broken.path} || cp -a {broken.path} /root/kept")
            guest.sh(f"cat >>{broken.path}; chmod {broken.mode} {broken.path}", broken.content)
            with nothing_changed(guest):
                code, said = hostprep(guest, "apply --yes")
            assert (code, missing(said, broken.words)) == (5, []), said
            guest.sh(f"rm {broken.path}; test ! -e /root/kept || mv /root/kept {broken.path}")
            saw(f"{code}, nothing changed")
    with step("the same when all that is mended", "4: converges") as saw:
        code, said = hostprep(guest, "apply --yes")
        assert code == 4, said
        assert words_of_entries(guest)[0].split()[-2:] == ARGUMENTS[-2:]
        saw("pending-reboot")
