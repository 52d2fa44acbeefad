"""Pairing two inputs by name: a photograph with its label map or depth map."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from pipelines.inputs.reading import Entry

#: What names a file's format: of the dots in `v1.5` or `shot 10.15`, none does.
SUFFIX = re.compile(r"(?<=[^/])\.[A-Za-z][A-Za-z0-9]{2,4}\Z")

Lost = tuple[str, str]  # an image's key and why it has no target


class ByName:
    """Positions of keys, looked up by key without suffix."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._places: defaultdict[str, list[int]] = defaultdict(list)
        for position, key in enumerate(keys):
            self._places[without_suffix(key)].append(position)

    def places(self, key: str) -> list[int]:
        """Positions of the keys that equal `key` but for the suffix."""
        return self._places.get(without_suffix(key), [])


def paired(images: Sequence[Entry], targets: Sequence[Entry]) -> tuple[list[Entry], list[Lost]]:
    """The target of each image, with the image's key, and the images with no target or several.

    Image and target are paired if their keys are equal but for the suffix: `lake/a.jpg` and
    `lake/a.png`.
    """
    by_name = ByName(target.key for target in targets)
    found: list[Entry] = []
    lost: list[Lost] = []
    for image in images:
        partners = [targets[position] for position in by_name.places(image.key)]
        if len(partners) == 1:
            found.append(replace(partners[0], key=image.key, label_name=image.label_name))
        else:
            several = ", ".join(partner.key for partner in partners)
            why = f"several partners: {several}" if several else "no partner of the same name"
            lost.append((image.key, why))
    return found, lost


def without_suffix(key: str) -> str:
    """A key without the suffix of a file: `lake/a` for `lake/a.jpg`, `v1.5` for itself."""
    return SUFFIX.sub("", key)
