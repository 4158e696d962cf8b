"""The menu of a grub.cfg, and the entry of it that boots when nobody is at the keyboard. Pure.

This reads what grub-mkconfig of the distributions writes, by GRUB's own rules (grub-core/script, normal/menu.c);
it is no interpreter of GRUB script: both branches of an `if` are taken.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from hostprep.errors import HostError

Variables = Mapping[str, str]


class Entry(NamedTuple):
    """A line of the menu. `words` are the kernel's arguments; None where it starts no Linux that can be read here."""

    title: str
    id: str
    words: tuple[str, ...] | None
    children: tuple[Entry, ...] = ()


def default(script: str, env: Variables, bls: Sequence[Entry] = ()) -> Entry:
    """The entry that boots by itself; `bls` are those that the command `blscfg` puts into the menu."""
    if len({_wanted(without_dead_branches(script, env, taken), env) for taken in (True, False)}) > 1:
        raise HostError("grub.cfg: which entry boots depends on a condition that only GRUB can tell")
    script = without_dead_branches(script, env)
    entries = parse(script, env, bls)
    if not entries:
        raise HostError("grub.cfg: no menu entry found in it")
    # `1>2` leads into a submenu, `>>` is a `>` of the title; what is not there is the first (get_entry_number)
    path = [part.replace(">>", ">") for part in re.split(r"(?<!>)>(?!>)", _wanted(script, env))]
    entry = _pick(entries, path.pop(0))
    while entry.children:
        entry = _pick(entry.children, path.pop(0) if path else "")
    return entry


def _pick(entries: Sequence[Entry], wanted: str) -> Entry:
    if wanted.isdecimal():
        return entries[int(wanted)] if int(wanted) < len(entries) else entries[0]
    return next((entry for entry in entries if wanted and wanted in (entry.id, entry.title)), entries[0])


def _wanted(script: str, env: Variables) -> str:
    """What the script makes of its variable `default`: the last that it is set to, unless grub-reboot asked once."""
    settings = [match[1] for match in re.finditer(r"^\s*(?:set\s+)?default=(.*)$", script, re.M)]
    once = env.get("next_entry", "")
    if once and any("next_entry" in setting for setting in settings):
        return once
    values = ["".join(tokens(setting, env)[:1]) for setting in settings]
    return next((value for value in reversed(values) if value), "0")


def without_dead_branches(script: str, env: Variables, otherwise: bool | None = None) -> str:
    """The script less the branches of an `if` that grubenv alone rules out, such as a fallback after failed boots.

    What can be told are the variables that the script itself keeps there: without a line in grubenv they are empty.
    Of other conditions both branches stay, unless `otherwise` says what they come to.
    """
    saved = {"next_entry", "saved_entry"}  # grub-reboot and grub-set-default write these
    saved |= {name for names in re.findall(r"^\s*save_env\s+(.*?);?\s*$", script, re.M) for name in names.split()}
    open_ifs: list[tuple[bool | None, bool | None]] = []  # of each: is this branch taken, was one before it
    alive = []
    for line in script.splitlines():
        word = line.strip()
        if branch := re.fullmatch(r"(if|elif)\s+(.*?)\s*;\s*then", word):
            before = False if branch[1] == "if" or not open_ifs else _any(open_ifs.pop())
            told = _decided(branch[2], env, saved)
            taken = _all((otherwise if told is None else told, None if before is None else not before))
            open_ifs.append((taken, before))
            open_ifs += [(None, None)] * len(re.findall(r";\s*then\s+if\s", branch[2]))  # others on the same line
        elif word == "else" and open_ifs:
            before = _any(open_ifs.pop())
            open_ifs.append((None if before is None else not before, before))
        elif re.fullmatch(r"fi(\s*;\s*fi)*\s*;?", word) and word.count("fi") <= len(open_ifs):
            del open_ifs[-word.count("fi") :]
        elif re.match(r"(if|elif|else|fi)\b(?!.*\bfi$)", word):
            return script  # written in a way that this does not follow: then every branch counts
        elif all(taken is not False for taken, _ in open_ifs):
            alive.append(line)
    return script if open_ifs else "\n".join(alive)


def _decided(condition: str, env: Variables, saved: Collection[str]) -> bool | None:
    """What `[ ... ]` comes to; None where that depends on anything but what grubenv holds."""
    test = re.fullmatch(r"\[\s+(.*?)\s+\]", condition)
    if test is None or (" -a " in test[1] and " -o " in test[1]):
        return None
    found = [_term(term, env, saved) for term in re.split(r"\s+-[ao]\s+", test[1])]
    return _any(found) if " -o " in test[1] else _all(found)


def _term(term: str, env: Variables, saved: Collection[str]) -> bool | None:
    match = re.fullmatch(r"""(-[nz]\s+)?"?\$\{?(\w+)\}?"?(?:\s+(==?|!=)\s+"?([\w.-]*)"?)?""", term)
    if match is None or match[2] not in saved or (match[1] and match[3]):
        return None
    value = env.get(match[2], "")
    if match[3]:
        return (value == match[4]) is (match[3] != "!=")
    return bool(value) is not (match[1] or "").startswith("-z")


def _all(known: Sequence[bool | None]) -> bool | None:
    return False if False in known else None if None in known else True


def _any(known: Sequence[bool | None]) -> bool | None:
    return True if True in known else None if None in known else False


class _Open(NamedTuple):
    """A menuentry or submenu whose end has not come yet."""

    title: str
    id: str
    children: list[Entry]
    linux: list[tuple[str, ...]]


def parse(script: str, env: Variables, bls: Sequence[Entry] = ()) -> tuple[Entry, ...]:
    """All entries, as far as `menuentry`, `submenu`, `blscfg` and `linux` lines go."""
    variables, exported = _variables(script, env)
    stack = [_Open("", "", [], [])]
    braces: list[bool] = []  # of each open brace: does it open an entry?
    for line in map(str.strip, script.splitlines()):
        if re.match(r"(menuentry|submenu)\s", line):
            title, ident = _heading(line)
            if line.endswith("}"):  # menuentry 'Firmware' { fwsetup }
                stack[-1].children.append(Entry(title, ident, None))
            else:
                stack.append(_Open(title, ident, [], []))
                braces.append(True)
        elif re.match(r"linux(16|efi)?\s", line):
            # A submenu is a context of its own: variables that are not exported are not there.
            visible = variables if len(stack) <= 2 else {k: v for k, v in variables.items() if k in exported}
            stack[-1].linux.append(_kernels(tokens(line, visible)[2:]))
        elif line == "blscfg":
            stack[-1].children.extend(bls)
        elif line.endswith("{"):
            braces.append(False)
        elif line == "}" and braces and braces.pop():
            done = stack.pop()
            sure = len(set(done.linux)) == 1  # not when two branches of an `if` differ
            words = done.linux[0] if sure else None
            stack[-1].children.append(Entry(done.title, done.id, words, tuple(done.children)))
    return tuple(stack[0].children)


def _kernels(words: Sequence[str]) -> tuple[str, ...]:
    """Those before `--`: what follows is for init."""
    return tuple(words[: words.index("--")] if "--" in words else words)


def _heading(line: str) -> tuple[str, str]:
    """Title and id of a menuentry or submenu."""
    words = iter(tokens(line, {"menuentry_id_option": "--id"})[1:])
    title = ident = ""
    for word in words:
        if word in ("--id", "--class", "--users", "--hotkey", "--source"):
            value = next(words, "")
            ident = value if word == "--id" else ident
        elif not word.startswith("--"):
            title = title or word
    return title, ident


def _variables(script: str, env: Variables) -> tuple[dict[str, str], set[str]]:
    """What the script sets its variables to, beneath what grubenv says, and the names that it exports."""
    variables: dict[str, str] = {}
    exported: set[str] = set()
    for match in re.finditer(r"^\s*(?:set\s+(\w+)=(.*)|export\s+(\w+)\s*)$", script, re.M):
        if match[3]:
            exported.add(match[3])
        elif value := "".join(tokens(match[2], variables)[:1]):
            variables[match[1]] = value
    return variables | dict(env), exported


def tokens(text: str, variables: Variables) -> list[str]:
    """The words of one command of GRUB script: quotes off, variables put in; one that was never set is empty.

    HostError where it does not end with its line: what GRUB then makes of the lines that follow cannot be told here.
    """
    found: list[str] = []
    word: str | None = None  # None: between words
    for piece in re.finditer(
        r"""'(?P<literal>[^']*)'|"(?P<quoted>(?:\\.|[^"\\])*)"|\\(?P<escaped>.)|\$\{?(?P<name>\w+)\}?"""
        r"""|(?P<blank>\s+)|(?P<end>[;&|{}<>])|(?P<plain>.)""",
        text,
    ):
        kind, value = piece.lastgroup, piece[piece.lastgroup or 0]
        if kind == "plain" and value in ("'", '"', "\\"):  # to GRUB the word goes on in the next line, and further
            hint = "Mend that in /etc/default/grub, /etc/default/grub.d or /etc/grub.d, and run update-grub."
            raise HostError(f"grub.cfg: a quote is left open in the line {text.strip()[:200]!r}", hint)
        if kind == "end" or (kind == "plain" and value == "#" and word is None):
            break
        if kind == "blank":
            found += [] if word is None else [word]
            word = None
        elif kind == "name":  # without quotes, what it holds falls into words
            first, *more = variables.get(value, "").split() or [""]
            word = (word or "") + first if word is not None or first else None
            for part in more:
                found.append(word or "")
                word = part
        else:
            word = (word or "") + (_in_quotes(value, variables) if kind == "quoted" else value)
    return found if word is None else [*found, word]


def _in_quotes(text: str, variables: Variables) -> str:
    """The content of double quotes: there `\\` is special before `$`, `"` and itself only."""
    return re.sub(r'\\([\\"$])|\$\{(\w+)\}|\$(\w+)', lambda m: m[1] or variables.get(m[2] or m[3], ""), text)


def bls_words(options: str, script: str, env: Variables) -> tuple[str, ...] | None:
    """The arguments in the options of a BLS entry: blscfg puts its variables in before GRUB sees words.

    None where they cannot be read; that is about no other entry.
    """
    variables, _ = _variables(script, env)
    try:
        return _kernels(tokens(re.sub(r"\$(\w+)", lambda m: variables.get(m[1], "") + " ", options), {}))
    except HostError:
        return None


def quote(word: str) -> str:
    """A word as it has to stand in GRUB script, so that it stays one and the same."""
    if re.fullmatch(r"[A-Za-z0-9_.,:=/+@%^~!()-]+", word):
        return word
    return '"' + re.sub(r'([\\"$])', r"\\\1", word) + '"'


def handed_on(word: str) -> str:
    """A word as GRUB gives it to the kernel: it escapes quotes and backslashes (grub-core/lib/cmdline.c)."""
    return re.sub(r"\\(?!x[0-9a-fA-F]{2})|['\"]", r"\\\g<0>", word)


def starts_linux(entries: Sequence[Entry]) -> bool:
    """Is there a line, in a submenu or not, that starts a Linux kernel?"""
    return any(entry.words is not None or starts_linux(entry.children) for entry in entries)
