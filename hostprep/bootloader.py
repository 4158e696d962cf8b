"""The kernel's arguments: those it was booted with, and those of the entry that will really boot.

Several checks set arguments (kernel_args, hugepages) and none of them knows the others: each is an `owner`
here. Next boot is read from what the boot loader itself reads (the generated grub.cfg, BLS entries, grubenv),
never from /etc/default/grub, which is only what somebody meant.

Arguments are kept as ordered words without their quotes. Order matters, and so do repeats.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from hostprep import files, versions
from hostprep.errors import ChangeFailed, HostError
from hostprep.host import Host
from hostprep.model import Unknown

CMDLINE = "/proc/cmdline"
GRUB_CFGS = ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg")
BLS = "/boot/loader/entries"
GRUB_DEFAULTS = "/etc/default/grub"
DROPIN = "/etc/default/grub.d/zz-hostprep-{owner}.cfg"  # read last, so that a cloud image's file does not undo it
KERNEL_CMDLINE = "/etc/kernel/cmdline"  # what RHEL 9 and later give to a kernel that is installed later
MKCONFIGS = ("grub-mkconfig", "grub2-mkconfig")


class Boot(NamedTuple):
    """Arguments of now and of the next boot. `loader` is grub, bls, or '' with `why` when hostprep cannot write it."""

    now: tuple[str, ...]
    later: tuple[str, ...] | Unknown
    loader: str
    entry: str = ""  # title or id of the entry that will boot
    why: str = ""


def read(host: Host) -> Boot:
    """What the kernel was booted with, and what the next one will be."""
    text = host.read(CMDLINE)
    if text is None:
        raise HostError(f"{CMDLINE}: not there")
    now = split(text)
    if where := container(host):
        why = f"this is a container ({where}): kernel arguments belong to the host around it"
        return Boot(now, Unknown(why), "", why=why)
    try:
        for cfg in GRUB_CFGS:
            script = host.read(cfg)
            if script is None:
                continue
            env = grubenv(host, cfg)
            if re.search(r"^\s*blscfg\b", script, re.M):
                entry = _bls_default(host, script, env)
                return Boot(now, _resolved(entry.options, env, script), "bls", entry.name)
            title, words = _grub_default(script, env)
            return Boot(now, words, "grub", title)
    except HostError as e:
        return Boot(now, Unknown(str(e)), "", why=str(e))
    why = _no_loader(host)
    return Boot(now, Unknown(why), "", why=why)


def container(host: Host) -> str:
    """The kind of container that this is; '' on a machine of its own."""
    if kind := host.read("/run/systemd/container"):
        return kind
    if host.read("/proc/2/comm") == "kthreadd":
        return ""  # kernel threads are seen only outside; a VM made from a container image has its marks too
    for path, kind in (("/.dockerenv", "docker"), ("/run/.containerenv", "podman")):
        if host.exists(path):
            return kind
    return ""


def _no_loader(host: Host) -> str:
    found = "systemd-boot" if host.exists("/boot/loader/loader.conf") or host.exists("/efi/loader/loader.conf") else ""
    what = f"{found} is not supported yet" if found else "no GRUB configuration was found on this host"
    return f"{what}: hostprep cannot tell what the next boot's kernel arguments are"


# -- words ----------------------------------------------------------------------------------------


def split(cmdline: str) -> tuple[str, ...]:
    """The words of a command line as the kernel splits them: `"` quotes, `--` ends (kernel/params.c, next_arg)."""
    words: list[str] = []
    for match in re.finditer(r'(?:[^\s"]|"[^"]*(?:"|$))+', cmdline):
        if match[0] == "--":
            break
        words.append(match[0].replace('"', ""))
    return tuple(words)


def name_of(word: str) -> str:
    """The parameter that a word sets. The kernel takes `-` and `_` in names for the same (parameqn)."""
    return word.partition("=")[0].replace("-", "_")


def rewrite(words: Sequence[str], without: Iterable[str], run: Sequence[str]) -> tuple[str, ...]:
    """The words less every one that sets a parameter in `without` (or is exactly such a word), and `run` at the end."""
    dropped = set(without)
    return (*(w for w in words if w not in dropped and name_of(w) not in dropped), *run)


# -- reading GRUB ---------------------------------------------------------------------------------


def grubenv(host: Host, cfg: str) -> dict[str, str]:
    """The variables of the environment block beside a grub.cfg."""
    text = host.read(f"{cfg.rpartition('/')[0]}/grubenv") or ""
    pairs = (line.partition("=") for line in text.splitlines() if not line.startswith("#"))
    return {name: re.sub(r"\\(.)", r"\1", value) for name, eq, value in pairs if eq}


class _Entry(NamedTuple):
    title: str
    id: str
    words: tuple[str, ...] | None  # of its linux line; None for a submenu
    children: tuple[_Entry, ...] = ()


def _grub_default(script: str, env: dict[str, str]) -> tuple[str, tuple[str, ...] | Unknown]:
    """The entry that GRUB will start without anybody at the keyboard: its title, and its arguments."""
    entries = _parse_menu(script, env)
    if not entries:
        raise HostError("grub.cfg: no menu entry found in it")
    wanted = env.get("next_entry") or _default_setting(script, env)
    entry = _choose(entries, wanted)
    while entry.children:
        _, _, wanted = wanted.partition(">")
        entry = _choose(entry.children, wanted)
    if entry.words is None:
        return entry.title, Unknown(
            f"grub.cfg: the entry {entry.title!r} starts no Linux kernel that hostprep can read"
        )
    return entry.title, entry.words


def _default_setting(script: str, env: dict[str, str]) -> str:
    """What the header of grub.cfg makes of `default`; the branch for next_entry apart."""
    settings = re.findall(r"^\s*set\s+default=(?:\"([^\"]*)\"|'([^']*)'|(\S*))", script, re.M)
    for quoted, single, bare in settings:
        value = quoted or single or bare
        if "next_entry" in value:
            continue
        return _expand(value, env) or "0"
    return "0"


def _choose(entries: Sequence[_Entry], wanted: str) -> _Entry:
    """By number, id or title; GRUB starts the first entry when there is none such (grub-core/normal/menu.c)."""
    for part in (wanted, wanted.partition(">")[0]):
        for entry in entries:
            if part and part in (entry.id, entry.title):
                return entry
        if part.isdigit() and int(part) < len(entries):
            return entries[int(part)]
    return entries[0]


def _parse_menu(script: str, env: dict[str, str]) -> tuple[_Entry, ...]:
    """The menu of a grub.cfg, as far as `menuentry`, `submenu` and their `linux` lines go."""
    variables = dict(env)
    stack: list[tuple[str, str, list[_Entry], list[tuple[str, ...]]]] = [("", "", [], [])]
    depth: list[bool] = []  # of each open brace: does it open an entry?
    for line in script.splitlines():
        stripped = line.strip()
        if assignment := re.fullmatch(r"(?:set\s+)(\w+)=(?:\"([^\"]*)\"|'([^']*)'|(\S*))", stripped):
            if value := assignment[2] or assignment[3] or assignment[4]:
                variables.setdefault(assignment[1], value)
        elif re.match(r"(menuentry|submenu)\s", stripped) and stripped.endswith("{"):
            words = _words(stripped[:-1], {}, menu=True)
            ident = words[words.index("$menuentry_id_option") + 1] if "$menuentry_id_option" in words[:-1] else ""
            if "--id" in words[:-1]:
                ident = words[words.index("--id") + 1]
            stack.append((words[1], ident, [], []))
            depth.append(True)
        elif re.match(r"(menuentry|submenu)\s", stripped) and stripped.endswith("}"):
            stack[-1][2].append(_Entry(_words(stripped.partition("{")[0], {}, menu=True)[1], "", None))
        elif re.match(r"linux(16|efi)?\s", stripped):
            stack[-1][3].append(_words(stripped, variables)[2:])
        elif stripped.endswith("{"):
            depth.append(False)
        elif stripped == "}" and depth and depth.pop():
            title, ident, children, linux = stack.pop()
            stack[-1][2].append(_Entry(title, ident, linux[-1] if linux else None, tuple(children)))
    return tuple(stack[0][2])


def _words(line: str, variables: dict[str, str], menu: bool = False) -> tuple[str, ...]:
    """The words of a line of GRUB script, quotes taken off and known variables put in."""
    import shlex  # only where there is a grub.cfg to read

    text = line if menu else _expand(line, variables)
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        return tuple(lexer)
    except ValueError as e:
        raise HostError(f"grub.cfg: cannot read {line[:60]!r}: {e}") from e


def _expand(text: str, variables: dict[str, str]) -> str:
    """Put in what variables hold; to GRUB one that was never set is empty."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda m: variables.get(m[1] or m[2], ""), text)


# -- reading BLS ----------------------------------------------------------------------------------


class _BlsEntry(NamedTuple):
    path: str
    name: str  # the file name without .conf: its id
    options: str


def _bls_entries(host: Host) -> list[_BlsEntry]:
    """The entries of the Boot Loader Specification, newest first, as GRUB's blscfg lists them."""
    entries = []
    for path in host.glob(f"{BLS}/*.conf"):
        options = [m[1] for m in re.finditer(r"^options[ \t]+(.*)$", host.read(path) or "", re.M)]
        entries.append(_BlsEntry(path, path.rpartition("/")[2].removesuffix(".conf"), " ".join(options)))
    ordered: list[_BlsEntry] = []
    for entry in entries:
        place = next(
            (i for i, other in enumerate(ordered) if versions.compare(entry.name, other.name) > 0), len(ordered)
        )
        ordered.insert(place, entry)
    return ordered


def _bls_default(host: Host, script: str, env: dict[str, str]) -> _BlsEntry:
    entries = _bls_entries(host)
    if not entries:
        raise HostError(f"{BLS}: no boot entry found")
    wanted = env.get("next_entry") or env.get("saved_entry") or _default_setting(script, env)
    for entry in entries:
        if wanted in (entry.name, f"{entry.name}.conf"):
            return entry
    return entries[int(wanted)] if wanted.isdigit() and int(wanted) < len(entries) else entries[0]


def _resolved(options: str, env: dict[str, str], script: str) -> tuple[str, ...]:
    variables = dict(re.findall(r'^\s*set\s+(\w+)="([^"]*)"', script, re.M)) | env
    return split(_expand(options, variables))


# -- writing --------------------------------------------------------------------------------------


def owned(host: Host, owner: str) -> dict[str, tuple[str, ...]]:
    """What this owner has set in its own file: parameter -> its words (none: taken off every source)."""
    import shlex

    settings: dict[str, tuple[str, ...]] = {}
    for line in (_own_text(host, owner) or "").splitlines():
        if line.startswith("# sets "):
            name, *words = shlex.split(line.removeprefix("# sets "))
            settings[name] = tuple(words)
    return settings


def put(host: Host, owner: str, settings: dict[str, tuple[str, ...]]) -> None:
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
    cfg = next((c for c in GRUB_CFGS if host.exists(c)), None)
    if cfg is None or re.search(r"^\s*blscfg\b", host.read(cfg) or "", re.M):
        return
    mkconfig = "grub-mkconfig" if cfg == GRUB_CFGS[0] else "grub2-mkconfig"
    if host.rehearsing:
        host.run(*(("update-grub",) if cfg == GRUB_CFGS[0] else (mkconfig, "-o", cfg)))
        return
    new = files.temporary_name(cfg)
    try:
        host.run(mkconfig, "-o", new, timeout=300)
        text = host.read_bytes(new)
    finally:
        host.discard_leftover(cfg)
    if not text or not _parse_menu(text.decode(errors="replace"), {}):
        raise ChangeFailed(f"{mkconfig} made a grub.cfg without a boot entry", f"Run {mkconfig} and read what it says.")
    host.replace(cfg, text)


def _own_text(host: Host, owner: str) -> str | None:
    if _reads_dropins(host):
        return host.read(DROPIN.format(owner=owner))
    text = host.read(GRUB_DEFAULTS) or ""
    match = re.search(_block(owner), text, re.S)
    return match[0] if match else None


def _block(owner: str) -> str:
    return rf"\n*# hostprep {owner} begin\n.*# hostprep {owner} end\n?"


def _reads_dropins(host: Host) -> bool:
    """Debian's grub-mkconfig sources /etc/default/grub.d/*.cfg; upstream's and Red Hat's do not."""
    for name in MKCONFIGS:
        script = host.read(f"/usr/sbin/{name}")
        if script is not None:
            return "default/grub.d" in script
    return host.exists(GRUB_DEFAULTS + ".d")


def _put_grub(host: Host, owner: str, settings: dict[str, tuple[str, ...]]) -> None:
    text = _shell(owner, settings) if settings else None
    if _reads_dropins(host):
        host.replace(DROPIN.format(owner=owner), text)
        return
    old = host.read_bytes(GRUB_DEFAULTS)
    rest = re.sub(_block(owner), "", (old or b"").decode(errors="replace"), flags=re.S).rstrip("\n")
    block = f"\n\n# hostprep {owner} begin\n{text}# hostprep {owner} end\n" if text else "\n"
    host.replace(GRUB_DEFAULTS, rest + block)


def _shell(owner: str, settings: dict[str, tuple[str, ...]]) -> str:
    """The lines that take these parameters out of what GRUB was told so far, and add them in order.

    They go to GRUB_CMDLINE_LINUX_DEFAULT: the recovery entry then boots without them, which is the way out
    when a reservation was too large.
    """
    import shlex

    run = [word for words in settings.values() for word in words]
    patterns = "|".join(p for name in settings for p in _patterns(name))
    sets = "".join(f"# sets {shlex.join([name, *words])}\n" for name, words in settings.items())
    added = " ".join(_in_double_quotes(word) for word in run)
    return f"""\
# Written by hostprep (check {owner}); `hostprep revert` takes it back.
{sets}hostprep_without() (
    set -f
    kept=
    for word in $1; do
        case "$word" in
            {patterns}) ;;
            *) kept="$kept${{kept:+ }}$word" ;;
        esac
    done
    printf %s "$kept"
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


def _in_double_quotes(word: str) -> str:
    """A word as it has to stand within double quotes of the shell, so that GRUB hands it on whole."""
    escaped = re.sub(r'([\\"$`])', r"\\\1", word)
    return f'\\"{escaped}\\"' if re.search(r"\s", word) else escaped


def _put_bls(host: Host, settings: dict[str, tuple[str, ...]]) -> None:
    """Rewrite every entry but the rescue one, the shared kernelopts of RHEL 8, and what later kernels start from.

    grubby is not used: its --args folds repeated parameters into one, so two page sizes destroy each other.
    """
    run = [word for words in settings.values() for word in words]

    def rewritten(options: str) -> str:
        return " ".join(_quoted(w) for w in rewrite(split(options), settings, run))

    shared = False
    for entry in _bls_entries(host):
        if "rescue" in entry.name:
            continue
        if "$kernelopts" in entry.options:
            shared = True
            continue
        text = (host.read_bytes(entry.path) or b"").decode()
        lines = re.sub(r"^options[ \t].*\n?", "", text, flags=re.M).rstrip("\n")
        host.replace(entry.path, f"{lines}\noptions {rewritten(entry.options)}\n")
    if shared:
        _put_kernelopts(host, rewritten)
    if (later := host.read(KERNEL_CMDLINE)) is not None:
        host.replace(KERNEL_CMDLINE, rewritten(later) + "\n")


def _put_kernelopts(host: Host, rewritten: Callable[[str], str]) -> None:
    cfg = next(c for c in reversed(GRUB_CFGS) if host.exists(c))
    block = f"{cfg.rpartition('/')[0]}/grubenv"
    value = rewritten(grubenv(host, cfg).get("kernelopts", ""))
    host.note_change(block, host.state(block), None)
    editor = "grub2-editenv" if cfg == GRUB_CFGS[1] else "grub-editenv"
    host.run(editor, host.real(block) if host.root else block, "set", f"kernelopts={value}")


def _quoted(word: str) -> str:
    return f'"{word}"' if re.search(r"\s", word) else word
