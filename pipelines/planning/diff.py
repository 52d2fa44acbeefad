"""What a listing holds that a store's plan does not: new images, changed ones, repeated keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ops.images import ImageError
from pipelines.inputs import content_hash, read_bytes, thread_map
from pipelines.store import (
    INDEX_SCHEMA,
    StoreError,
    committed_tasks,
    plan_path,
    read_part,
    read_tombstones,
)

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Places = np.ndarray[Any, np.dtype[np.int64]]

#: The etag of a row whose key another image of the listing has already.
DUPLICATE = "duplicate"
BATCH = 65536  # rows of a plan looked at together


def fresh_entries(
    root: Path,
    num_parts: int,
    listing: pa.Table,
    *,
    by_content: bool = False,
    retry_failed: bool = False,
) -> pa.Table:
    """The entries of a listing (ENTRY_SCHEMA, sorted) that a plan of `num_parts` parts lacks.

    Two columns more, `older_grid` and `older_row`, say where view 0 of the same image's older
    content is; null for what is new. An entry whose key the one before it has too gets the etag
    DUPLICATE.
    """
    repeated = _repeated(listing["key"])
    newest = _newest_images(root, num_parts)
    places = np.where(repeated, -1, _places(listing["key"], newest["key"]))
    found = pa.array(places, mask=places < 0)  # null where nothing is known
    known = _is_true(pc.equal(listing["etag"], newest["etag"].take(found)))
    if by_content:
        _compare_contents(root, listing, newest.take(found), known)
    if retry_failed:
        known &= ~_is_true(pc.is_in(addresses(newest.take(found)), value_set=_failed(root)))
    seconds = listing.filter(pa.array(repeated))
    known[repeated] = _known_duplicates(root, num_parts, seconds)
    chosen = pa.array(~known)
    fresh, older = listing.filter(chosen), newest.take(found.filter(chosen))
    etags = pc.if_else(pa.array(repeated[~known]), DUPLICATE, fresh["etag"])
    fresh = fresh.set_column(fresh.schema.get_field_index("etag"), "etag", etags)
    return fresh.append_column("older_grid", older["grid"]).append_column("older_row", older["row"])


def planned_rows(root: Path, num_parts: int, columns: tuple[str, ...]) -> Iterator[pa.Table]:
    """Some columns of every planned row, oldest first, a batch at a time; strings are large."""
    for part in range(num_parts):
        path = plan_path(root, part)
        try:
            file = pq.ParquetFile(path, page_checksum_verification=True)
            for batch in file.iter_batches(BATCH, columns=list(columns)):
                yield _with_large_strings(pa.Table.from_batches([batch]))
        except (pa.ArrowInvalid, OSError) as error:
            raise StoreError(f"{path}: damaged plan ({error}). Restore it from a copy.") from error


def addresses(table: pa.Table) -> pa.ChunkedArray:
    """ "grid/row" of each line of a table that has these columns."""
    grids, rows = (table[name].cast(pa.large_string()) for name in ("grid", "row"))
    return pc.binary_join_element_wise(grids, rows, pa.scalar("/", pa.large_string()))


def unmarked(root: Path, rows: pa.Table) -> pa.Table:
    """The rows whose "grid/row" no pruning has marked."""
    marked = read_tombstones(root)
    if not len(marked):
        return rows
    return rows.filter(pc.invert(pc.is_in(addresses(rows), value_set=addresses(marked))))


def _with_large_strings(table: pa.Table) -> pa.Table:
    fields = [
        (column.name, pa.large_string() if pa.types.is_string(column.type) else column.type)
        for column in table.schema
    ]
    return table.cast(pa.schema(fields))


def _repeated(keys: pa.ChunkedArray) -> Mask:
    """Which of the sorted keys equal the one before."""
    repeated = np.zeros(len(keys), bool)
    if len(keys) > 1:
        repeated[1:] = pc.equal(keys.slice(1), keys.slice(0, len(keys) - 1)).to_numpy()
    return repeated


def _newest_images(root: Path, num_parts: int) -> pa.Table:
    """View 0 of the newest content of each image that is planned and not marked as gone."""
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
    images = unmarked(root, pa.concat_tables([schema.empty_table(), *tables]))
    numbered = images.append_column("place", pa.array(np.arange(len(images))))
    last = numbered.group_by("key").aggregate([("place", "max")])["place_max"]
    return images.take(last)


def _places(keys: pa.ChunkedArray, among: pa.ChunkedArray) -> Places:
    """Where each key stands in `among`, which names none twice; -1 for nowhere."""
    found = pc.index_in(keys, value_set=among)
    places: Places = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    return places


def _is_true(flags: pa.ChunkedArray) -> Mask:
    """A mask one may write to; null counts as false."""
    mask: Mask = np.array(pc.fill_null(flags, False).to_numpy())
    return mask


def _compare_contents(root: Path, listing: pa.Table, planned: pa.Table, known: Mask) -> None:
    """Correct `known` by the files' own bytes, wherever those of the planned row were hashed."""
    contents = _contents(root)
    place = pc.index_in(addresses(planned), value_set=addresses(contents))
    hashed = contents["content"].take(place)
    asked = pc.is_valid(hashed).to_numpy()
    # A row is only ever made of as many bytes as were planned, so another size is another content.
    asked_same_size = asked & _is_true(pc.equal(listing["size"], planned["size"]))
    chosen = pa.array(asked_same_size)
    now = pa.array(thread_map(_hash_of, listing.filter(chosen), "comparing contents"), pa.string())
    readable = pc.is_valid(now).to_numpy(zero_copy_only=False)  # the others' etags must do
    known[asked & ~asked_same_size] = False
    same = _is_true(pc.equal(now, hashed.filter(chosen)))
    known[asked_same_size] = np.where(readable, same, known[asked_same_size])


def _contents(root: Path) -> pa.Table:
    """grid, row and content of each row, view 0, whose image file was hashed."""
    columns = ["grid", "row", "view", "content"]
    tables = [INDEX_SCHEMA.empty_table().select(columns)]
    for grid, task in committed_tasks(root):
        rows = read_part(root, grid, task)[0].select(columns)
        tables.append(rows.filter((pc.field("view") == 0) & pc.field("content").is_valid()))
    return pa.concat_tables(tables)


def _failed(root: Path) -> pa.ChunkedArray:
    """ "grid/row" of view 0 of each image one of whose rows has no codes."""
    tables = [INDEX_SCHEMA.empty_table().select(["grid", "row"])]
    for grid, task in committed_tasks(root):
        rows = read_part(root, grid, task)[0].filter(pc.field("status") != "ok")
        firsts = pc.subtract(rows["row"], rows["view"].cast(pa.int64()))
        tables.append(rows.select(["grid"]).append_column(tables[0].schema.field("row"), firsts))
    return addresses(pa.concat_tables(tables))


def _hash_of(uri: str, offset: int | None, size: int) -> str | None:
    try:
        return content_hash(read_bytes(uri, offset, size))
    except ImageError:
        return None


def _known_duplicates(root: Path, num_parts: int, seconds: pa.Table) -> Mask:
    """Which of the entries that come second under their key are planned as such."""
    if not len(seconds):
        return np.zeros(0, bool)
    columns = ("view", "key", "uri", "offset", "etag", "grid", "row")
    tables = [
        rows.filter((pc.field("view") == 0) & (pc.field("etag") == DUPLICATE))
        for rows in planned_rows(root, num_parts, columns)
    ]
    if not tables:
        return np.zeros(len(seconds), bool)
    planned = _identities(unmarked(root, pa.concat_tables(tables)))
    return _is_true(pc.is_in(_identities(seconds), value_set=planned))


def _identities(entries: pa.Table) -> pa.ChunkedArray:
    offset = entries["offset"].cast(pa.large_string()).fill_null("")
    between = pa.scalar("\0", pa.large_string())  # no path has one
    return pc.binary_join_element_wise(entries["key"], entries["uri"], offset, between)
