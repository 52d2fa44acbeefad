"""Selection: which new images are planned, by what headers and the sources' columns say of them.

An image that a store has is not selected anew. What is left out has a reason, which is recorded and
counted; images that cannot be read are planned, so that their rows name the error.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ops.config import ConfigError
from ops.images import ImageError
from ops.paths import AnyPath
from ops.text import printable
from pipelines.inputs import thread_map
from pipelines.planning.diff import DUPLICATE, repeated
from pipelines.planning.duplicates import find_copies
from pipelines.planning.expressions import Condition, Kind, column_kind, typed_column
from pipelines.planning.grid_shapes import size_in_header
from pipelines.planning.source_records import LEFT_OUT_SCHEMA, read_left_out, write_left_out

BATCH = 65536  # images whose columns are in memory at once
NAMED = 8  # columns in an error
COPY = "skip-duplicates"
#: Columns of every image, whatever its source has.
OWN_COLUMNS = {"key": "key", "caption": "caption", "label": "label_name"}

Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is asked of an image that is planned."""

    min_size: int | None = None  # pixels of the short side, at least
    max_aspect: float | None = None  # long side by short side, at most
    where: Condition | None = None
    skip_duplicates: bool = False  # of images with the same bytes the first alone

    def __bool__(self) -> bool:
        return self != Selection()

    @property
    def flags(self) -> dict[str, Any]:
        """The flags as they are recorded."""
        where = None if self.where is None else self.where.text
        found = {
            "min-size": self.min_size,
            "max-aspect": self.max_aspect,
            "where": where,
            COPY: self.skip_duplicates or None,
        }
        return {name: value for name, value in found.items() if value is not None}


class Selector:
    """Applies a selection to the new images of a run, and records in the store what it leaves out.

    `counts` are the images left out, by flag.
    """

    def __init__(self, root: AnyPath, selection: Selection) -> None:
        self.root, self.selection = root, selection
        self.counts: Counter[str] = Counter()

    def select(self, new: pa.Table, listing: pa.Table) -> pa.Table:
        """The images of `new` that are planned; both are tables of ENTRY_SCHEMA, `new` a part of
        `listing`.

        Raises ConfigError for a condition on columns that no image has.
        """
        asked, before = self.selection, read_left_out(self.root)
        left: list[pa.Table] = []
        if asked.where is not None and len(new):
            new = self._leave(new, _fails(asked.where, new, listing), "where", left)
        if (asked.min_size is not None or asked.max_aspect is not None) and len(new):
            new = self._by_header(new, before, left)
        if asked.skip_duplicates and len(new):
            new = self._copies(new, listing, before, left)
        table = pa.concat_tables([LEFT_OUT_SCHEMA.empty_table(), *left]).sort_by("key")
        self.counts.update(table["reason"].to_pylist())
        write_left_out(self.root, table, asked.flags)
        return new

    def lines(self) -> list[str]:
        """How many images were left out by which flag."""
        flags = self.selection.flags
        return [
            f"left out: {count:,} by --{name}"
            + ("" if flags[name] is True else f" {printable(str(flags[name]), 200)}")
            for name, count in sorted(self.counts.items())
        ]

    def _leave(
        self, new: pa.Table, fails: Mask, reason: str, left: list[pa.Table], **columns: Any
    ) -> pa.Table:
        """`new` without the images that fail, which go to `left`."""
        chosen = pa.array(fails)
        out = new.filter(chosen).select(["key", "uri", "offset", "etag"])
        columns["reason"] = [reason] * len(out)
        for name in LEFT_OUT_SCHEMA.names[4:]:
            values = columns.get(name, [None] * len(out))
            out = out.append_column(name, pa.array(values, LEFT_OUT_SCHEMA.field(name).type))
        left.append(out.cast(LEFT_OUT_SCHEMA))
        return new.filter(pc.invert(chosen))

    def _by_header(self, new: pa.Table, before: pa.Table, left: list[pa.Table]) -> pa.Table:
        sizes = _sizes(new, before)
        for reason, limit in (
            ("min-size", self.selection.min_size),
            ("max-aspect", self.selection.max_aspect),
        ):
            if limit is None:
                continue
            short, long = sizes.min(1), sizes.max(1)  # zeros where the size is unknown
            fails = short < limit if reason == "min-size" else long > limit * short
            fails &= short > 0
            width, height = sizes[fails].T
            new = self._leave(new, fails, reason, left, width=width, height=height)
            sizes = sizes[~fails]
        return new

    def _copies(
        self, new: pa.Table, listing: pa.Table, before: pa.Table, left: list[pa.Table]
    ) -> pa.Table:
        """`new` without the images whose bytes another one has, which is planned."""
        kept = _kept(listing, [new, *left])
        known = _known_copies(new, kept, before)
        fails = pc.is_valid(known["same_as"]).to_numpy(zero_copy_only=False)
        columns = {n: known[n].drop_null().combine_chunks() for n in ("same_as", "same_as_etag")}
        new = self._leave(new, fails, COPY, left, **columns)
        copies = find_copies(new, kept)
        fails = np.zeros(len(new), bool)
        fails[[copy.position for copy in copies]] = True
        return self._leave(
            new,
            fails,
            COPY,
            left,
            same_as=[copy.key for copy in copies],
            same_as_etag=[copy.etag for copy in copies],
        )


# --- by columns


def _fails(where: Condition, new: pa.Table, listing: pa.Table) -> Mask:
    """Which images a condition does not hold for; it holds for none where it has no value."""
    kinds = _kinds(where, new)
    if None in kinds.values():  # the new images may be few: others tell whether a column exists
        found = _kinds(where, listing)
        kinds = {name: kind or found[name] for name, kind in kinds.items()}
    for name, kind in kinds.items():
        if kind is None and not _exists(name, listing):
            raise ConfigError(
                f"--where: no image has a column {printable(name, 60)!r}. There are: "
                f"{', '.join(_column_names(listing)[:NAMED])}."
            )
    expression = where.expression(kinds)
    masks = [np.zeros(0, bool)]
    for columns in _batches(where, new):
        table = pa.table({n: typed_column(columns[n], kinds[n]) for n in sorted(where.columns)})
        numbered = table.append_column("", pa.array(np.arange(len(table))))
        holds = numbered.filter(expression)[""].to_numpy()
        fails = np.ones(len(table), bool)
        fails[holds] = False
        masks.append(fails)
    return np.concatenate(masks)


def _batches(where: Condition, entries: pa.Table) -> Iterator[Mapping[str, list[Any]]]:
    """The values of a condition's columns, some images at a time."""
    for batch in entries.select([*OWN_COLUMNS.values(), "carried"]).to_batches(BATCH):
        objects = [_values(text) for text in batch["carried"].to_pylist()]
        found = {}
        for name in where.columns:
            values = [values.get(name) for values in objects]
            own = OWN_COLUMNS.get(name)
            if own is not None and (name != "label" or batch[own].null_count < len(batch)):
                values = batch[own].to_pylist()
            found[name] = values
        yield found


def _values(text: str | None) -> Mapping[str, Any]:
    if text is None:
        return {}
    values: Mapping[str, Any] = json.loads(text)
    return values


def _kinds(where: Condition, entries: pa.Table) -> dict[str, Kind | None]:
    """The kind of each of a condition's columns; ConfigError where values are of several kinds."""
    found: dict[str, set[Kind]] = {name: set() for name in where.columns}
    for columns in _batches(where, entries):
        for name, values in columns.items():
            found[name] |= column_kind(values)
    for name, kinds in found.items():
        if len(kinds) > 1:
            raise ConfigError(
                f"--where: column {printable(name, 60)!r} has values of several kinds "
                f"({', '.join(sorted(kinds))}). Make them all of one kind."
            )
    return {name: next(iter(kinds), None) for name, kinds in found.items()}


def _exists(name: str, listing: pa.Table) -> bool:
    return name in OWN_COLUMNS or name in _column_names(listing)


def _column_names(listing: pa.Table) -> list[str]:
    """The columns that images have, sorted; null in all of them is no column."""
    names: set[str] = set()
    for chunk in pc.unique(listing["carried"].drop_null()).to_pylist():
        names |= _values(chunk).keys()
    return sorted({*map(printable, names), *OWN_COLUMNS})


# --- by headers


def _sizes(new: pa.Table, before: pa.Table) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(n, 2) width and height of the upright images; zeros where they cannot be read."""
    known = before.filter(pc.is_valid(before["width"]))
    found = pc.index_in(identities(new), value_set=identities(known))
    sizes = np.zeros((len(new), 2), np.int64)
    has = pc.is_valid(found).to_numpy(zero_copy_only=False)
    for side, name in enumerate(("width", "height")):
        sizes[has, side] = known[name].take(found.drop_null()).to_numpy()
    unread = new.filter(pa.array(~has))
    sizes[~has] = list(thread_map(_size_of, unread, "reading headers")) or np.zeros((0, 2))
    return sizes


def _size_of(uri: str, offset: int | None, size: int) -> tuple[int, int]:
    try:
        return size_in_header(uri, offset, size)
    except ImageError:
        return 0, 0


# --- by bytes


def identities(entries: pa.Table) -> pa.ChunkedArray:
    """key, uri, offset and etag of each image in one string."""
    text = pa.large_string()
    offset = entries["offset"].cast(text).fill_null("")
    separator = pa.scalar("\0", text)  # which no path contains
    return pc.binary_join_element_wise(
        entries["key"], entries["uri"], offset, entries["etag"], separator
    )


def _kept(listing: pa.Table, others: Sequence[pa.Table]) -> pa.Table:
    """The images of a listing that the store has: the first of each key that no table has."""
    kept = listing.filter(pc.invert(pa.array(repeated(listing["key"]))))
    for table in others:
        keys = table.filter(pc.not_equal(table["etag"], DUPLICATE))["key"]
        kept = kept.filter(pc.invert(pc.is_in(kept["key"], value_set=keys)))
    return kept


def _known_copies(new: pa.Table, kept: pa.Table, before: pa.Table) -> pa.Table:
    """same_as and same_as_etag of each new image that the last run found to be a copy of an image
    that is still there; nulls for the others."""
    copies = before.filter(pc.is_valid(before["same_as"]))
    firsts = pa.table({"key": copies["same_as"], "etag": copies["same_as_etag"]})
    pairs = [
        pc.binary_join_element_wise(t["key"], t["etag"], pa.scalar("\0", pa.large_string()))
        for t in (firsts, kept)
    ]
    copies = copies.filter(pc.is_in(pairs[0], value_set=pairs[1]))
    found = pc.index_in(identities(new), value_set=identities(copies))
    return copies.select(["same_as", "same_as_etag"]).take(found)
