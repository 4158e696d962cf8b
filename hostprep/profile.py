"""Loading a profile, if it can be in the compiled form of one that was validated before.

Reading YAML and validating it costs ten times what checking a host costs. So what was found valid is kept as
JSON, with the digest of all that it came from; profile_source reads what is new.
"""

from __future__ import annotations

import json
import os
from typing import Any

from hostprep import __version__, files, registry
from hostprep.errors import HostprepError
from hostprep.model import Profile, Waiver
from hostprep.profile_files import available, digest, find, read


def load(wanted: str | None) -> Profile:
    """The profile of a name or file; without either the site's, else `baseline`. Raises ProfileError."""
    path = find(wanted)
    data = read(path)
    cache, key = _cache_file(path), _key(path, data)
    if (profile := _cached(cache, key)) is not None:
        return profile
    from hostprep import profile_source

    profile, sources = profile_source.load(path, data)
    _keep(cache, key, profile, sources)
    return profile


def _cache_file(path: str) -> str:
    """One file a profile, under root's /var/cache or the user's own."""
    default = "/var/cache" if os.geteuid() == 0 else os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.environ.get("HOSTPREP_CACHE_DIR") or os.path.join(default, "hostprep")
    return os.path.join(folder, f"{digest(path.encode(errors='surrogateescape'))}.json")


def _key(path: str, data: bytes) -> str:
    """All that decides what a file means: its bytes, hostprep, the checks, and which names `extends` finds where."""
    where = [__version__, registry.fingerprint(), path, *available().values()]
    return digest("\0".join(where).encode(errors="surrogateescape"), b"\0", data)


def _cached(cache: str, key: str) -> Profile | None:
    """What was validated before, if every file that it extends is still the same."""
    try:
        if files.untrusted(cache):
            return None
        with open(cache, "rb") as f:
            record = json.load(f)
        if record["key"] != key:
            return None
        for path, sha in record["sources"].items():
            if digest(read(path)) != sha:
                return None
        return _from_json(record["profile"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, HostprepError):
        return None  # it is only a cache


def _keep(cache: str, key: str, profile: Profile, sources: dict[str, bytes]) -> None:
    digests = {path: digest(data) for path, data in sources.items()}
    record = {"key": key, "profile": profile._asdict(), "sources": digests}
    try:
        os.makedirs(os.path.dirname(cache), mode=0o755, exist_ok=True)
        if not files.untrusted(os.path.dirname(cache)):
            files.replace(cache, json.dumps(record).encode(), lasting=False)
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
