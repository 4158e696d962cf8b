"""Ordering versions as rpm-version(7) does, for kernel releases of RHEL, Debian and Ubuntu alike. Pure.

dpkg's order (deb-version(7)) would not do: it finds RHEL's 427.13.1.el9_4 older than 427.el9, and takes `generic` of
5.15.0-121-generic for a revision. For kernel releases of Debian and Ubuntu both orders say the same otherwise, and
GRUB sorts BLS entries by this one (grub-core/commands/blscfg.c).
"""

from __future__ import annotations

import re

# Where two versions first differ: `~` is older than the end, and that is older than `^`, letters and a number.
_TILDE, _END, _CARET, _LETTERS, _NUMBER = range(5)
# -rc3, Fedora's -0.rc3, Ubuntu's -061000rc3; go's 1.23rc1; -alpha.1, -beta.2 and -rc.3 of semver.org
_BEFORE_RELEASE = r"(?:-(?:0\.|0[0-9]+)?|(?<=[0-9]))(rc|alpha|beta)(?=[.0-9]|$)"


def compare(a: str, b: str) -> int:
    """Negative, zero or positive as version `a` is older than, equal to or newer than `b`."""
    key_a, key_b = _key(a), _key(b)
    return (key_a > key_b) - (key_a < key_b)


def release(version: str) -> str:
    """The release that a version comes before, if it does: 1.24.0 of 1.24.0-rc.1; otherwise the version itself."""
    return re.split(rf"~|{_BEFORE_RELEASE}", version, maxsplit=1)[0]


def _key(version: str) -> list[tuple[int, int, str]]:
    """The runs of digits and of letters, and `~` and `^`; whatever else there is only parts them."""
    epoch, rest = re.fullmatch(r"(?:([0-9]+):)?(.*)", version, re.S).groups()  # type: ignore[union-attr]  # matches all
    runs = re.findall(r"[0-9]+|[A-Za-z]+|[~^]", re.sub(_BEFORE_RELEASE, r"~\1", rest))
    return [(_NUMBER, int(epoch or 0), ""), *(_rank(run) for run in runs), (_END, 0, "")]


def _rank(run: str) -> tuple[int, int, str]:
    if run.isdigit():
        return _NUMBER, int(run), ""
    return {"~": _TILDE, "^": _CARET}.get(run, _LETTERS), 0, run
