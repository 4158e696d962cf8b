"""Images of a container engine, and what their removal would free. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

SHORT = 12  # digits of an id, as engines show it


class Image(NamedTuple):
    """An image that an engine has."""

    id: str  # 64 hexadecimal digits
    names: tuple[str, ...]  # by which it has to be removed; its id where it has none
    layers: tuple[str, ...]
    since: int  # seconds since the epoch: when it came, or was last seen to be used
    users: tuple[str, ...] = ()  # containers, also those that do not run

    @property
    def short(self) -> str:
        return self.id[:SHORT]


class Unused(NamedTuple):
    """An image that no container uses, and what its removal frees once all older ones have been removed."""

    image: Image
    frees: int


class Store(NamedTuple):
    """What an engine tells of itself."""

    version: str
    root: str  # where its data is
    images_root: str  # where it keeps images, if that is elsewhere
    driver: str
    separate: bool = False  # are layers kept by containerd?


def unused(images: Iterable[Image], sizes: Mapping[str, int]) -> list[Unused]:
    """The images that no container uses, oldest first. A layer that several share goes with the last of them.

    Left out is what lies wholly within images in use: its removal would free nothing.
    """
    known = list(images)
    needed = Counter(layer for image in known for layer in set(image.layers))
    in_use = {layer for image in known if image.users for layer in image.layers}
    found = []
    for image in sorted((i for i in known if not i.users), key=lambda i: (i.since, i.id)):
        if in_use.issuperset(image.layers):
            continue
        freed = 0
        for layer in set(image.layers):
            needed[layer] -= 1
            freed += 0 if needed[layer] else sizes[layer]
        found.append(Unused(image, freed))
    return found
