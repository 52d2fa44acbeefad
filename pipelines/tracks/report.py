"""What a run reports line by line; which images have no row in a further track, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow.compute as pc

from pipelines.encoding import NO_IMAGE
from pipelines.store import CodeStore

LISTED = 20  # files named of each kind; the index names all that failed


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


def lacking_lines(store: CodeStore, name: str) -> list[str]:
    """The images without a row in a further track, and its number of rows, as lines."""
    lack = lacking(store, name)
    listed = first_lines(f"{name} lacks", lack.lines, in_index=True)
    return [*listed, f"{name}: {lack.rows} rows{lack.summary}"]


def noted_lines(store: CodeStore) -> list[str]:
    """A line for each kind of note on images that are encoded, such as of a broken profile."""
    ok = store.notable.filter(pc.equal(store.notable["status"], "ok"))
    noted = ok.filter(pc.is_valid(ok["error"])).select(["key", "error"]).to_pylist()
    counts = Counter(note for _, note in {(line["key"], line["error"]) for line in noted})
    return [f"note: {n} encoded, but {note}" for note, n in counts.most_common(LISTED)]


def duplicate_lines(store: CodeStore) -> list[str]:
    """The images whose bytes an earlier image of the index has, as lines."""
    index = store.notable.filter((pc.field("view") == 0) & pc.field("content").is_valid())
    index = index.filter(pc.equal(index["status"], "ok")).select(["key", "content"])
    counts = index["content"].value_counts()
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    first: dict[str, str] = {}
    found: dict[str, str] = {}
    for line in index.filter(pc.is_in(index["content"], value_set=repeated)).to_pylist():
        key = first.setdefault(line["content"], line["key"])
        if key != line["key"]:  # an image that was encoded again has its bytes twice
            found[line["key"]] = f"the same bytes as {key!r}"
    return first_lines("duplicate", sorted(found.items()), in_index=True)


def first_lines(
    title: str, reasons: Sequence[tuple[str, str]], *, in_index: bool = False
) -> list[str]:
    """A line for each of the first LISTED (key, reason), and one that counts the others.

    `in_index`: the store's index has all of them, and the last line says so.
    """
    lines = [f"{title}: {key!r}: {reason}" for key, reason in reasons[:LISTED]]
    if len(reasons) > LISTED:
        where = ": see the index" if in_index else ""
        lines.append(f"{title}: {len(reasons) - LISTED} more{where}")
    return lines
