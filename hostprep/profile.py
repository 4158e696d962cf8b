"""Finding a profile, and the compiled form of one that was validated before.

Reading YAML and validating it costs ten times what checking a host costs. So what was found valid is kept as
JSON, under the digest of the bytes it came from; profile_source reads what is new.
"""

from __future__ import annotations

import json
import os
from typing import Any

from hostprep import __version__, files, registry
from hostprep.errors import HostprepError, ProfileError
from hostprep.model import Profile, Waiver

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


def load(wanted: str | None) -> Profile:
    """The profile of a name or file; without either the site's, else `baseline`. Raises ProfileError."""
    path = find(wanted)
    data = read(path)
    cache = _cache_file(path, data)
    if (profile := _cached(cache)) is not None:
        return profile
    from hostprep import profile_source

    profile, sources = profile_source.load(path, data)
    _keep(cache, profile, sources)
    return profile


def find(wanted: str | None) -> str:
    """The file of a profile."""
    if wanted is None:
        return SITE_PROFILE if os.path.exists(SITE_PROFILE) else os.path.join(BUNDLED_FOLDER, f"{BASELINE}.yaml")
    if "/" in wanted or wanted.endswith((".yaml", ".yml", ".json")):
        return os.path.abspath(wanted)
    for folder in (SITE_FOLDER, BUNDLED_FOLDER):
        path = os.path.join(folder, f"{wanted}.yaml")
        if os.path.exists(path):
            return path
    known = ", ".join(available())
    raise ProfileError([f"there is no profile named {wanted!r}"], f"Known: {known}. A file is given by its path.")


def available() -> dict[str, str]:
    """The named profiles, and their files; a site's own hides a bundled one of the same name."""
    found = {}
    for folder in (BUNDLED_FOLDER, SITE_FOLDER):
        if os.path.isdir(folder):
            for name in sorted(os.listdir(folder)):
                if name.endswith(".yaml"):
                    found[name.removesuffix(".yaml")] = os.path.join(folder, name)
    return found


def read(path: str) -> bytes:
    """The bytes of a profile, which as root only root may have written."""
    if os.geteuid() == 0 and (why := files.untrusted(path)):
        hint = "As root, hostprep takes orders only from root: chown root: and chmod go-w."
        raise ProfileError([f"{path}: not safe to use: {why}"], hint)
    try:
        with open(path, "rb") as f:
            return f.read()
    except OSError as e:
        raise ProfileError([f"{path}: {e.strerror}"], "hostprep profiles list shows the profiles there are.") from e


def digest(*parts: bytes) -> str:
    """The identity of a profile: SHA-256 over all files that it is made of."""
    total = sha256()
    for part in parts:
        total.update(part)
    return str(total.hexdigest())


def _cache_file(path: str, data: bytes) -> str:
    """Under root's /var/cache, or the user's own; hostprep, its checks, the path and the bytes are in its name."""
    default = "/var/cache" if os.geteuid() == 0 else os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.environ.get("HOSTPREP_CACHE_DIR") or os.path.join(default, "hostprep")
    key = digest(f"{__version__} {registry.fingerprint()} {path}\0".encode(), data)
    return os.path.join(folder, f"{key}.json")


def _cached(cache: str) -> Profile | None:
    """What was validated before, if every file that it extends is still the same."""
    try:
        if files.untrusted(cache):
            return None
        with open(cache, "rb") as f:
            record = json.load(f)
        for path, sha in record["sources"].items():
            if digest(read(path)) != sha:
                return None
        return _from_json(record["profile"])
    except (OSError, ValueError, KeyError, TypeError, HostprepError):
        return None  # it is only a cache


def _keep(cache: str, profile: Profile, sources: dict[str, bytes]) -> None:
    record = {"profile": profile._asdict(), "sources": {path: digest(data) for path, data in sources.items()}}
    try:
        os.makedirs(os.path.dirname(cache), mode=0o755, exist_ok=True)
        files.replace(cache, json.dumps(record).encode())
    except OSError:
        pass  # a read-only or full disk: the profile is read again next time


def _from_json(data: dict[str, Any]) -> Profile:
    return Profile(
        **{
            **data,
            "advisory": tuple(data["advisory"]),
            "assert_only": tuple(data["assert_only"]),
            "waivers": tuple(Waiver(*w) for w in data["waivers"]),
        }
    )
