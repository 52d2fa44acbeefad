"""Which image a name means that a file of annotations gives: its key, or less of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

from pipelines.inputs.partners import ByName, without_suffix


class Meant(NamedTuple):
    name: str | None
    unclear: str  # what may be meant, where that is not one name

    def __bool__(self) -> bool:
        return bool(self.name or self.unclear)


class FileNames:
    """Names as annotations have them, and the keys of all images they may mean.

    An image is meant by its key, by its key without what comes after the last dot, or by its base
    name, with that or without, where no other image has the same.
    """

    def __init__(self, names: Collection[str], keys: Collection[str]) -> None:
        self._names = list(names)
        self._exact = set(self._names)
        self._by_name = ByName(self._names)
        self._bases = Counter(map(_base, keys))
        self._stems = Counter(without_suffix(_base(key)) for key in keys)

    def of(self, key: str) -> Meant:
        """The name that means an image."""
        if key in self._exact:
            return Meant(key, "")
        found = self._names_like(key)
        if found:
            return found
        base = _base(key)
        if base in self._exact:
            return Meant(base, "") if self._bases[base] == 1 else _shared(base)
        found = self._names_like(base)
        return _shared(base) if found and self._stems[without_suffix(base)] > 1 else found

    def _names_like(self, key: str) -> Meant:
        names = [self._names[place] for place in self._by_name.places(key)]
        return Meant(names[0] if len(names) == 1 else None, ", ".join(names[1:] and names))


def _shared(base: str) -> Meant:
    return Meant(None, f"{base}, as other images are called too")


def _base(key: str) -> str:
    return key.rpartition("/")[2]
