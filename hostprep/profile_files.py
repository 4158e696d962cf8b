"""Where profiles are, and their bytes, which as root only root may have written."""

from __future__ import annotations

import os
import stat

from hostprep import files
from hostprep.errors import ProfileError

try:  # hashlib loads OpenSSL, which costs a third of Python's own start; the standard library's random does the same
    from _sha2 import sha256  # type: ignore[import-not-found,unused-ignore]  # Python 3.12 and later
except ImportError:
    try:
        from _sha256 import sha256  # type: ignore[import-not-found,unused-ignore]  # Python 3.10 and 3.11
    except ImportError:
        from hashlib import sha256

SITE_PROFILE = "/etc/hostprep/profile.yaml"
SITE_FOLDER = "/etc/hostprep/profiles"
BUNDLED_FOLDER = os.path.join(os.path.dirname(__file__), "profiles")
BASELINE = "baseline"
SIZE_LIMIT = 1024 * 1024  # bytes


def find(wanted: str | None) -> str:
    """The file of a profile."""
    if wanted is None:
        return SITE_PROFILE if _is_there(SITE_PROFILE) else os.path.join(BUNDLED_FOLDER, f"{BASELINE}.yaml")
    if is_file(wanted):
        return os.path.abspath(wanted)
    for folder in (SITE_FOLDER, BUNDLED_FOLDER):
        path = os.path.join(folder, f"{wanted}.yaml")
        if _is_there(path):
            return path
    known = ", ".join(available())
    raise ProfileError([f"there is no profile named {wanted!r}"], f"Known: {known}. A file is given by its path.")


def _is_there(path: str) -> bool:
    """Also where it cannot be read, or is a link that leads nowhere: then that is said, and no other one is taken."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def is_file(wanted: str) -> bool:
    """Is this the path of a profile, rather than its name?"""
    return "/" in wanted or wanted.endswith((".yaml", ".yml", ".json"))


def of_this_site() -> bool:
    """Has this site a profile of its own, by which its hosts are judged when none is named?"""
    return _is_there(SITE_PROFILE)


def available() -> dict[str, str]:
    """The named profiles, and their files; a site's own hides a bundled one of the same name."""
    found = {}
    for folder in (BUNDLED_FOLDER, SITE_FOLDER):
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        for name in names:
            if name.endswith(".yaml"):
                found[name.removesuffix(".yaml")] = os.path.join(folder, name)
    return found


def read(path: str) -> bytes:
    """The bytes of a profile, which as root only root may have written."""
    real = os.path.realpath(path)  # resolved once: a link that is turned round after the look leads nowhere new
    if os.geteuid() == 0 and (why := files.untrusted(real)):
        hint = "As root, hostprep takes orders only from root: chown root: and chmod go-w."
        raise ProfileError([f"{path}: not safe to use: {why}"], hint)
    try:
        fd = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would hold us up
        with open(fd, "rb") as f:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ProfileError([f"{path}: not a regular file"], "Write the profile to a file, and name that.")
            data = f.read(SIZE_LIMIT + 1)
    except OSError as e:
        raise ProfileError([f"{path}: {e.strerror}"], "hostprep profiles list shows the profiles there are.") from e
    if len(data) > SIZE_LIMIT:
        raise ProfileError([f"{path}: larger than {SIZE_LIMIT // 1024} KiB: not a profile"])
    return data


def digest(*parts: bytes) -> str:
    """The identity of a profile: SHA-256 over all files that it is made of."""
    total = sha256()
    for part in parts:
        total.update(part)
    return str(total.hexdigest())
