"""Comparing a listing with a store's plan: new images, changed ones, repeated keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ops.images import ImageError
from ops.paths import AnyPath
from pipelines.inputs import content_hash, read_bytes, thread_map
from pipelines.planning.rows import BATCH, planned_rows
from pipelines.store import (
    INDEX_SCHEMA,
    committed_tasks,
    read_part,
    read_tombstones,
)

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Positions = np.ndarray[Any, np.dtype[np.int64]]

#: The etag of a row whose key an earlier image of the listing has.
DUPLICATE = "duplicate"


def new_entries(
    root: AnyPath,
    num_parts: int,
    listing: pa.Table,
    *,
    by_content: bool = False,
    retry_failed: bool = False,
) -> pa.Table:
    """The entries of a listing (ENTRY_SCHEMA, sorted) that a plan of `num_parts` parts lacks.

    Two more columns, `older_grid` and `older_row`, are the address of view 0 of the same image's
    older content; null for a new image. Of entries with the same key, all but the first get the
    etag DUPLICATE. `by_content` and `retry_failed`: see plan.extend_plan.
    """
    again = repeated(listing["key"])
    newest = _newest_images(root, num_parts)
    if not len(newest) and not again.any():  # nothing to compare a new store's input with
        return _with_older(listing, _nulls(len(listing), newest.schema, ("grid", "row")))
    positions = np.where(again, -1, _positions(listing["key"], newest["key"]))
    found = pa.array(positions, mask=positions < 0)  # null for a key without a planned row
    known = _is_true(pc.equal(listing["etag"], newest["etag"].take(found)))
    if by_content:
        _compare_contents(root, listing, newest.take(found), known)
    if retry_failed:
        known &= ~_is_true(pc.is_in(addresses(newest.take(found)), value_set=_failed(root)))
    duplicates = listing.filter(pa.array(again))
    known[again] = _known_duplicates(root, num_parts, duplicates)
    new, older = listing, newest.select(["grid", "row"]).take(found)
    if known.any():
        chosen = pa.array(~known)
        new, older = listing.filter(chosen), older.filter(chosen)
    if again[~known].any():
        etags = pc.if_else(pa.array(again[~known]), DUPLICATE, new["etag"])
        new = new.set_column(new.schema.get_field_index("etag"), "etag", etags)
    return _with_older(new, older)


def _with_older(new: pa.Table, older: pa.Table) -> pa.Table:
    return new.append_column("older_grid", older["grid"]).append_column("older_row", older["row"])


def _nulls(length: int, schema: pa.Schema, names: Sequence[str]) -> pa.Table:
    """Columns of nulls, whose chunks share their memory."""
    full, rest = divmod(length, BATCH)
    columns = {}
    for name in names:
        chunk = pa.nulls(BATCH, schema.field(name).type)
        columns[name] = pa.chunked_array([*[chunk] * full, chunk.slice(0, rest)])
    return pa.table(columns)


def addresses(table: pa.Table) -> pa.ChunkedArray:
    """ "grid/row" for each line of a table with these columns."""
    grids, rows = (table[name].cast(pa.large_string()) for name in ("grid", "row"))
    return pc.binary_join_element_wise(grids, rows, pa.scalar("/", pa.large_string()))


def without_tombstones(root: AnyPath, rows: pa.Table) -> pa.Table:
    """The rows that have no tombstone, by grid and row."""
    tombstones = read_tombstones(root)
    if not len(tombstones):
        return rows
    return rows.filter(pc.invert(pc.is_in(addresses(rows), value_set=addresses(tombstones))))


def repeated(keys: pa.ChunkedArray) -> Mask:
    """Which of the sorted keys equal the previous one."""
    found = np.zeros(len(keys), bool)
    if len(keys) > 1:
        found[1:] = pc.equal(keys.slice(1), keys.slice(0, len(keys) - 1)).to_numpy()
    return found


def _newest_images(root: AnyPath, num_parts: int) -> pa.Table:
    """View 0 of the newest content of each planned image that has no tombstone."""
    schema = pa.schema(
        [
            ("key", pa.large_string()),
            ("size", pa.int64()),
            ("etag", pa.large_string()),
            ("grid", pa.large_string()),
            ("row", pa.int64()),
        ]
    )
    tables = [
        rows.filter((pc.field("view") == 0) & (pc.field("etag") != DUPLICATE)).select(schema.names)
        for rows in planned_rows(root, num_parts, ("view", *schema.names))
    ]
    images = without_tombstones(root, pa.concat_tables([schema.empty_table(), *tables]))
    numbered = images.append_column("position", pa.array(np.arange(len(images))))
    last = numbered.group_by("key").aggregate([("position", "max")])["position_max"]
    return images.take(last)


def _positions(keys: pa.ChunkedArray, unique_keys: pa.ChunkedArray) -> Positions:
    """The position of each key in `unique_keys`; -1 if it is not there."""
    found = pc.index_in(keys, value_set=unique_keys)
    positions: Positions = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    return positions


def _is_true(flags: pa.ChunkedArray) -> Mask:
    """Flags as a writable mask; null becomes False."""
    mask: Mask = np.array(pc.fill_null(flags, False).to_numpy())
    return mask


def _compare_contents(root: AnyPath, listing: pa.Table, planned: pa.Table, known: Mask) -> None:
    """Correct `known` by comparing content hashes, for planned rows whose content was hashed."""
    contents = _contents(root)
    position = pc.index_in(addresses(planned), value_set=addresses(contents))
    hashed = contents["content"].take(position)
    has_hash = pc.is_valid(hashed).to_numpy()
    # Rows are encoded from files of the planned size only, so another size is another content.
    same_size = has_hash & _is_true(pc.equal(listing["size"], planned["size"]))
    chosen = pa.array(same_size)
    hashes = pa.array(
        thread_map(_hash_of, listing.filter(chosen), "comparing contents"), pa.string()
    )
    readable = pc.is_valid(hashes).to_numpy(zero_copy_only=False)  # for the others the etag decides
    known[has_hash & ~same_size] = False
    same = _is_true(pc.equal(hashes, hashed.filter(chosen)))
    known[same_size] = np.where(readable, same, known[same_size])


def _contents(root: AnyPath) -> pa.Table:
    """grid, row and content hash of view 0 of each image whose content was hashed."""
    columns = ["grid", "row", "view", "content"]
    tables = [INDEX_SCHEMA.empty_table().select(columns)]
    for grid, task in committed_tasks(root):
        rows = read_part(root, grid, task)[0].select(columns)
        tables.append(rows.filter((pc.field("view") == 0) & pc.field("content").is_valid()))
    return pa.concat_tables(tables)


def _failed(root: AnyPath) -> pa.ChunkedArray:
    """ "grid/row" of view 0 of each image with a failed row."""
    tables = [INDEX_SCHEMA.empty_table().select(["grid", "row"])]
    for grid, task in committed_tasks(root):
        rows = read_part(root, grid, task)[0].filter(pc.field("status") != "ok")
        first_rows = pc.subtract(rows["row"], rows["view"].cast(pa.int64()))
        tables.append(
            rows.select(["grid"]).append_column(tables[0].schema.field("row"), first_rows)
        )
    return addresses(pa.concat_tables(tables))


def _hash_of(uri: str, offset: int | None, size: int) -> str | None:
    """The content hash of an image; None if it cannot be read."""
    try:
        return content_hash(read_bytes(uri, offset, size))
    except ImageError:
        return None


def _known_duplicates(root: AnyPath, num_parts: int, duplicates: pa.Table) -> Mask:
    """Which of the entries whose key is repeated are planned as duplicates already."""
    if not len(duplicates):
        return np.zeros(0, bool)
    columns = ("view", "key", "uri", "offset", "etag", "grid", "row")
    tables = [
        rows.filter((pc.field("view") == 0) & (pc.field("etag") == DUPLICATE))
        for rows in planned_rows(root, num_parts, columns)
    ]
    if not tables:
        return np.zeros(len(duplicates), bool)
    planned = _identities(without_tombstones(root, pa.concat_tables(tables)))
    return _is_true(pc.is_in(_identities(duplicates), value_set=planned))


def _identities(entries: pa.Table) -> pa.ChunkedArray:
    """key, uri and offset of each entry in one string."""
    offset = entries["offset"].cast(pa.large_string()).fill_null("")
    separator = pa.scalar("\0", pa.large_string())  # which no path contains
    return pc.binary_join_element_wise(entries["key"], entries["uri"], offset, separator)
