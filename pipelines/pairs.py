"""Files that belong together: the label map or depth map of a photograph, by its name."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from pipelines.readers import Entry

Lost = tuple[str, str]  # a key and why it has no partner


def paired(images: Sequence[Entry], targets: Sequence[Entry]) -> tuple[list[Entry], list[Lost]]:
    """The target of each image under the image's key, and the images that have none, or several.

    Two belong together whose paths below their folders differ by nothing but what comes after the
    last dot: `lake/a.jpg` and `lake/a.png`.
    """
    by_name: defaultdict[str, list[Entry]] = defaultdict(list)
    for target in targets:
        by_name[_name(target.key)].append(target)
    found: list[Entry] = []
    lost: list[Lost] = []
    for image in images:
        partners = by_name[_name(image.key)]
        if len(partners) == 1:
            found.append(replace(partners[0], key=image.key, label_name=image.label_name))
        else:
            several = ", ".join(partner.key for partner in partners)
            why = f"several partners: {several}" if several else "no partner of the same name"
            lost.append((image.key, why))
    return found, lost


def _name(key: str) -> str:
    return os.path.splitext(key)[0]
