"""What a further track lacks, beside the images that have codes."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pyarrow.compute as pc

from pipelines.encoding import NO_IMAGE
from pipelines.store import CodeStore


class Lack(NamedTuple):
    rows: int  # of the track that count
    lines: list[tuple[str, str]]  # (key, why), once for each image
    summary: str  # ", 5 images lack it: 3 no partner, 2 another aspect", or nothing


def lacking(store: CodeStore, name: str) -> Lack:
    """The images of a store whose rows in a further track hold nothing, with the reasons.

    Those that failed themselves are not among them.
    """
    track = store.track(name)
    failed = track.failed.filter(pc.not_equal(track.failed["status"], NO_IMAGE)).to_pylist()
    reasons = {line["key"]: (line["status"], line["error"]) for line in failed}
    counts = Counter(status for status, _ in reasons.values())
    counts_text = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    summary = f", {len(reasons)} images lack it: {counts_text}" if reasons else ""
    lines = [(key, f"{status}: {error}") for key, (status, error) in sorted(reasons.items())]
    return Lack(len(track), lines, summary)
