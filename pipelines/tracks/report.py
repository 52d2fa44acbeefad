"""Which images have no row in a further track, and why."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pyarrow.compute as pc

from pipelines.encoding import NO_IMAGE
from pipelines.store import CodeStore


class Lack(NamedTuple):
    """The rows that a track lacks."""

    rows: int  # rows of the track that are `ok`
    lines: list[tuple[str, str]]  # (key, why), once for each image
    summary: str  # ", 5 images lack it: 3 no partner, 2 another aspect", or nothing


def lacking(store: CodeStore, name: str) -> Lack:
    """The images of a store that have codes but no row in a further track, with the reasons."""
    track = store.track(name)
    failed = track.failed.filter(pc.not_equal(track.failed["status"], NO_IMAGE)).to_pylist()
    reasons = {line["key"]: (line["status"], line["error"]) for line in failed}
    counts = Counter(status for status, _ in reasons.values())
    counts_text = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    summary = f", {len(reasons)} images lack it: {counts_text}" if reasons else ""
    lines = [(key, f"{status}: {error}") for key, (status, error) in sorted(reasons.items())]
    return Lack(len(track), lines, summary)
