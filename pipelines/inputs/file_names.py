"""Which image a name in an annotation file means: its key, or a part of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

from pipelines.inputs.partners import ByName, without_suffix


class Match(NamedTuple):
    """The name that means an image; neither is set where no name does."""

    name: str | None
    unclear: str  # the names or images that are in question, where it is not one name

    def __bool__(self) -> bool:
        return bool(self.name or self.unclear)


class FileNames:
    """Names as annotations give them, and the keys of all images that they may mean.

    A name means the image whose key it is, with or without the suffix; a base name, with or without
    the suffix, where no other image has the same.
    """

    def __init__(self, names: Collection[str], keys: Collection[str]) -> None:
        self._names = list(names)
        self._exact = set(self._names)
        self._by_name = ByName(self._names)
        self._bases = Counter(map(_base, keys))
        self._stems = Counter(without_suffix(_base(key)) for key in keys)

    def of(self, key: str) -> Match:
        """The name that means the image of this key."""
        if key in self._exact:
            return Match(key, "")
        found = self._names_like(key)
        if found:
            return found
        base = _base(key)
        if base in self._exact:
            return Match(base, "") if self._bases[base] == 1 else _shared(base)
        found = self._names_like(base)
        return _shared(base) if found and self._stems[without_suffix(base)] > 1 else found

    def _names_like(self, key: str) -> Match:
        names = [self._names[place] for place in self._by_name.places(key)]
        return Match(names[0] if len(names) == 1 else None, ", ".join(names[1:] and names))


def _shared(base: str) -> Match:
    return Match(None, f"{base}, which other images are called too")


def _base(key: str) -> str:
    return key.rpartition("/")[2]
