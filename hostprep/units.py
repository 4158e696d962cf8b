"""The names that systemd gives to units of paths. Pure."""

from __future__ import annotations

import re


def unit_name(path: str, suffix: str) -> str:
    r"""The unit of a path, as systemd-escape(1) --path --suffix=SUFFIX has it.

    `/dev/disk/by-label/a b` with `swap` is `dev-disk-by\x2dlabel-a\x20b.swap`.
    """
    parts = "/".join(part for part in path.split("/") if part)
    safe = re.compile(r"[A-Za-z0-9:_./]")
    escaped = "".join(c if safe.match(c) else "".join(f"\\x{b:02x}" for b in c.encode()) for c in parts)
    if escaped.startswith("."):
        escaped = f"\\x2e{escaped[1:]}"
    return f"{escaped.replace('/', '-')}.{suffix}"
