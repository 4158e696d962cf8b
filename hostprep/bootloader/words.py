"""Words of a kernel command line, as the kernel itself takes them apart. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def split(cmdline: str) -> tuple[str, ...]:
    """The kernel's words, without quotes: `"` quotes, and what follows `--` is init's (kernel/params.c)."""
    kernels, _ = _cut(cmdline)
    return tuple(_plain(word) for word in kernels)


def name_of(word: str) -> str:
    """The parameter that a word sets. The kernel takes `-` and `_` in names for the same (parameqn)."""
    return word.partition("=")[0].replace("-", "_")


def rewrite(cmdline: str, without: Iterable[str], run: Sequence[str]) -> str:
    """A command line less every word that sets a parameter in `without` (or is exactly such a word), and `run` at
    the end of what is the kernel's. All other words stay as they are spelled."""
    dropped = {entry if "=" in entry else name_of(entry) for entry in without}
    kernels, inits = _cut(cmdline)
    kept = [word for word in kernels if not dropped & {_plain(word), name_of(_plain(word))}]
    return " ".join([*kept, *run, *inits])


def _cut(cmdline: str) -> tuple[list[str], list[str]]:
    """The words as they are spelled: those of the kernel, and from `--` on those of init."""
    words = [match[0] for match in re.finditer(r'(?:[^\s"]|"[^"]*(?:"|$))+', cmdline)]
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end:]


def _plain(word: str) -> str:
    return word.replace('"', "")
