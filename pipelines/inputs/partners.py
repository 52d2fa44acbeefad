"""Files that belong together: the label map or depth map of a photograph, by its name."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from pipelines.inputs.reading import Entry

Lost = tuple[str, str]  # a key and why it has no partner


class ByName:
    """Keys by all of their name but what comes after the last dot."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._places: defaultdict[str, list[int]] = defaultdict(list)
        for place, key in enumerate(keys):
            self._places[without_suffix(key)].append(place)

    def places(self, key: str) -> list[int]:
        """Where the keys stand that have the name of `key`."""
        return self._places.get(without_suffix(key), [])


def paired(images: Sequence[Entry], targets: Sequence[Entry]) -> tuple[list[Entry], list[Lost]]:
    """The target of each image under the image's key, and the images that have none, or several.

    Two belong together whose paths below their folders differ by nothing but what comes after the
    last dot: `lake/a.jpg` and `lake/a.png`.
    """
    by_name = ByName(target.key for target in targets)
    found: list[Entry] = []
    lost: list[Lost] = []
    for image in images:
        partners = [targets[place] for place in by_name.places(image.key)]
        if len(partners) == 1:
            found.append(replace(partners[0], key=image.key, label_name=image.label_name))
        else:
            several = ", ".join(partner.key for partner in partners)
            why = f"several partners: {several}" if several else "no partner of the same name"
            lost.append((image.key, why))
    return found, lost


def without_suffix(key: str) -> str:
    """A key without what comes after its last dot: `lake/a` of `lake/a.jpg`."""
    return os.path.splitext(key)[0]
