"""Setting the kernel's arguments of the next boot, in a place of hostprep's own wherever there is one."""

from __future__ import annotations

import errno
import os
import re

from hostprep import files
from hostprep.bootloader import menu, words
from hostprep.bootloader.reading import GRUB_CFGS, bls_entries, grub_cfg, grubenv, has_blscfg, read
from hostprep.errors import ChangeFailed, CommandFailed
from hostprep.host import Host
from hostprep.host.process import clean
from hostprep.model import Unknown

GRUB_DEFAULTS = "/etc/default/grub"
DROPIN = "/etc/default/grub.d/zz-hostprep-{owner}.cfg"  # read last, so that a cloud image's file does not undo it
KERNEL_CMDLINE = "/etc/kernel/cmdline"  # what RHEL 9 and later give to a kernel that is installed later
MKCONFIGS = ("grub-mkconfig", "grub2-mkconfig")
# What grub-mkconfig says on stderr though nothing is wrong, or without telling what is.
_ORDINARY = (
    r"Generating |Found |Adding boot menu |done$|Warning: os-prober|Systems on them|Check GRUB_DISABLE_OS_PROBER"
)
_BOILERPLATE = r"Ensure that there are no errors|and /etc/grub\.d/\* files|.* file attached\.$"

Settings = dict[str, tuple[str, ...]]


def owned(host: Host, owner: str) -> Settings:
    """What this owner has set in its own file: parameter -> its words (none: taken off every source)."""
    import shlex  # here and below: looking at a host does without it

    settings: Settings = {}
    for line in _own_text(host, owner).splitlines():
        if line.startswith("# sets "):
            name, *run = shlex.split(line.removeprefix("# sets "))
            settings[name] = tuple(run)
    return settings


def put(host: Host, owner: str, settings: Settings) -> None:
    """Make these the owner's parameters for the next boot: each with the words that set it, or none to take it off.

    A parameter may be an exact word, `console=ttyS0`, of those that are meant to be repeated. Words of these
    parameters are taken out of every other source. For GRUB the result counts once regenerate() has run.
    """
    boot = read(host)
    if boot.loader == "bls":
        _put_bls(host, settings)
    elif boot.loader == "grub":
        _put_grub(host, owner, owned(host, owner) | settings)
    else:
        raise ChangeFailed(boot.why, "Set them where this host gets its kernel arguments from.")


def regenerate(host: Host) -> None:
    """Make grub.cfg anew, beside the old one, and put it in place by one rename if it is whole.

    update-grub writes over the file that the machine boots from, so a power cut within it leaves half of one;
    and it exits 0 although a file that it reads is broken. What it is here for is done by the tool it calls.
    """
    cfg = grub_cfg(host)
    if cfg is None or has_blscfg(host.read(cfg) or ""):
        return
    mkconfig = "grub-mkconfig" if cfg == GRUB_CFGS[0] else "grub2-mkconfig"
    host.must_be_writable(cfg)
    if host.rehearsing:
        host.run(*(("update-grub",) if cfg == GRUB_CFGS[0] else (mkconfig, "-o", cfg)))
        return
    new = files.temporary_name(cfg)
    try:
        host.run(mkconfig, "-o", new, timeout=300)
        text = host.read_bytes(new)
    except CommandFailed as e:
        raise ChangeFailed(f"{mkconfig}: exit {e.status}: {_complaint(e.output)}", _remedy(e.output)) from e
    finally:
        host.discard_leftover(cfg)
    if not text or not menu.starts_linux(menu.parse(text.decode(errors="replace"), {})):
        raise ChangeFailed(f"{mkconfig} made a grub.cfg without a boot entry", f"Run {mkconfig} and read what it says.")
    before = read(host).later
    host.replace(cfg, text)
    _tell(host, before, read(host).later)


def _tell(host: Host, before: tuple[str, ...] | Unknown, after: tuple[str, ...] | Unknown) -> None:
    """Say what became of the kernel's arguments: what others wrote since grub.cfg was last made takes effect too."""
    if isinstance(before, Unknown) or isinstance(after, Unknown):
        return
    come = [f"+{word}" for word in after if word not in before]
    gone = [f"-{word}" for word in before if word not in after]
    if come or gone:
        host.progress(f"kernel arguments of the next boot: {' '.join(come + gone)}")


def _complaint(said: str) -> str:
    """What of grub-mkconfig's output tells what is wrong: its last words name a file that is gone by then."""
    lines = [line.strip() for line in said.splitlines()]
    telling = [line for line in lines if line and not re.match(f"{_ORDINARY}|{_BOILERPLATE}", line)]
    return clean("; ".join(telling[:3])) or "it does not say why: a script in /etc/grub.d failed"


def _remedy(said: str) -> str:
    if os.strerror(errno.ENOSPC) in said:
        return "Make room (df, df -i), then try again."
    return "Mend that in /etc/default/grub, /etc/default/grub.d or /etc/grub.d, then try again."


# -- GRUB: what grub-mkconfig reads ---------------------------------------------------------------


def _own_text(host: Host, owner: str) -> str:
    if _reads_dropins(host):
        return host.read(DROPIN.format(owner=owner)) or ""
    match = re.search(_block(owner), host.read(GRUB_DEFAULTS) or "", re.S)
    return match[0] if match else ""


def _block(owner: str) -> str:
    return rf"\n*# hostprep {owner} begin\n.*?# hostprep {owner} end(\n|$)"


def _reads_dropins(host: Host) -> bool:
    """Debian's grub-mkconfig sources /etc/default/grub.d/*.cfg; upstream's and Red Hat's do not."""
    for name in MKCONFIGS:
        script = host.read(f"/usr/sbin/{name}")
        if script is not None:
            return "default/grub.d" in script
    return host.exists(f"{GRUB_DEFAULTS}.d")


def _put_grub(host: Host, owner: str, settings: Settings) -> None:
    text = _shell(owner, settings)
    if _reads_dropins(host):
        host.replace(DROPIN.format(owner=owner), text)
        return
    old = (host.read_bytes(GRUB_DEFAULTS) or b"").decode(errors="surrogateescape")
    rest = re.sub(_block(owner), "\n", old, flags=re.S).rstrip("\n")
    new = f"{rest}\n\n# hostprep {owner} begin\n{text}# hostprep {owner} end\n"
    host.replace(GRUB_DEFAULTS, new.encode(errors="surrogateescape"))


def _shell(owner: str, settings: Settings) -> str:
    """The lines that take these parameters out of what GRUB was told so far, and add them in order.

    They go to GRUB_CMDLINE_LINUX_DEFAULT: the recovery entry then boots without them, which is the way out
    when a reservation was too large.
    """
    import shlex

    patterns = "|".join(p for name in settings for p in _patterns(name))
    sets = "".join(f"# sets {shlex.join([name, *run])}\n" for name, run in settings.items())
    added = " ".join(_in_double_quotes(menu.quote(word)) for run in settings.values() for word in run)
    return f"""\
# Written by hostprep (check {owner}); `hostprep revert` takes it back.
{sets}hostprep_without() (
    blank=$(printf ' \\t\\n.') blank=${{blank%.}}
    rest=$1 kept= word= lead= dropped=
    while [ "$rest" ]; do
        gap=${{rest%%[!"$blank"]*}} rest=${{rest#"${{rest%%[!"$blank"]*}}"}}
        part=${{rest%%["$blank"]*}} rest=${{rest#"${{rest%%["$blank"]*}}"}}
        [ "$part" ] || break
        if [ "$word" ]; then word=$word$gap$part; else lead=$gap word=$part; fi
        open=$word
        while case $open in *\\"*\\"*) ;; *) false ;; esac; do open=${{open#*\\"*\\"}}; done
        case $open in *\\"*) continue ;; esac # a quote is open: the word goes on
        case ${{word#\\"}} in
            {patterns}) dropped=yes ;;
            *) kept=$kept${{kept:+$lead}}$word ;;
        esac
        word=
    done
    if [ "$dropped" ]; then printf %s "$kept${{word:+${{kept:+$lead}}$word}}"; else printf %s "$1"; fi
)
GRUB_CMDLINE_LINUX=$(hostprep_without "$GRUB_CMDLINE_LINUX")
GRUB_CMDLINE_LINUX_DEFAULT=$(hostprep_without "$GRUB_CMDLINE_LINUX_DEFAULT")
GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT${{GRUB_CMDLINE_LINUX_DEFAULT:+ }}{added}"
unset -f hostprep_without
"""


def _patterns(name: str) -> list[str]:
    """`case` patterns for the words of one parameter; an exact word is its own pattern."""
    import shlex

    if "=" in name:
        return [shlex.quote(name)]
    spelled = "[-_]".join(shlex.quote(part) if part else "" for part in re.split("[-_]", name))
    return [spelled, f"{spelled}=*"]


def _in_double_quotes(text: str) -> str:
    return re.sub(r'([\\"$`])', r"\\\1", text)


# -- BLS ------------------------------------------------------------------------------------------


def _put_bls(host: Host, settings: Settings) -> None:
    """Rewrite every entry but the rescue one, the shared kernelopts of RHEL 8, and what later kernels start from.

    grubby is not used: its --args folds repeated parameters into one, so two page sizes destroy each other.
    """
    run = [menu.quote(word) for words_of_one in settings.values() for word in words_of_one]
    entries = [entry for entry in bls_entries(host) if "rescue" not in entry.id]
    for entry in entries:
        shared = "$kernelopts" in entry.options
        options = words.rewrite(entry.options, settings, [] if shared else run)
        if options != entry.options:
            _replace_options(host, entry.path, options)
    if any("$kernelopts" in entry.options for entry in entries):
        _put_kernelopts(host, settings, run)
    if (later := host.read_bytes(KERNEL_CMDLINE)) is not None:
        text = words.rewrite(later.decode(errors="surrogateescape"), settings, run)
        host.replace(KERNEL_CMDLINE, f"{text}\n".encode(errors="surrogateescape"))


def _replace_options(host: Host, path: str, options: str) -> None:
    text = (host.read_bytes(path) or b"").decode(errors="surrogateescape")
    others = re.sub(r"^options[ \t].*\n?", "", text, flags=re.M).rstrip("\n")
    host.replace(path, f"{others}\noptions {options}\n".encode(errors="surrogateescape"))


def _put_kernelopts(host: Host, settings: Settings, run: list[str]) -> None:
    cfg = grub_cfg(host)
    assert cfg is not None
    value = words.rewrite(grubenv(host, cfg).get("kernelopts", ""), settings, run)
    block = host.resolve(f"{cfg.rpartition('/')[0]}/grubenv")  # on UEFI machines a link to the EFI partition
    host.note_change(block, host.state(block), None)
    host.run(f"{'grub' if cfg == GRUB_CFGS[0] else 'grub2'}-editenv", host.root + block, "set", f"kernelopts={value}")
