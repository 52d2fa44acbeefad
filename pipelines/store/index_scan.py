"""One pass over a store's index: its current rows as columns, and the lines that say more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ops.key_hashes import key_hashes
from pipelines.store.commit import INDEX_SCHEMA
from pipelines.store.row_table import PartRows, part_rows

#: From positions of index parts, the lines of each, INDEX_SCHEMA.
ReadParts = Callable[[Sequence[int]], Iterator[pa.Table]]
AT_ONCE = 1 << 20  # rows whose addresses are text at a time


class IndexScan(NamedTuple):
    """What a store's whole index says."""

    rows: list[PartRows]  # of each part the rows whose status is `ok`
    #: INDEX_SCHEMA in index order: lines of rows that failed, have a note, replace others, or whose
    #: image has the bytes of another one.
    notable: pa.Table


def scan_index(num_parts: int, read: ReadParts) -> IndexScan:
    """Read each part once, and those with repeated images twice."""
    rows: list[PartRows] = []
    notable: list[list[pa.Table]] = []
    contents: list[NDArray[np.uint64]] = []
    for lines in read(range(num_parts)):
        ok = pc.equal(lines["status"], "ok")
        rows.append(part_rows(lines["grid"][0].as_py(), lines.filter(ok)))
        notable.append([lines.filter(_is_marked(lines))])
        contents.append(_content_hashes(lines.filter(_has_content(lines))))
    repeated = _repeated(np.concatenate([np.empty(0, np.uint64), *contents]))
    if len(repeated):
        places = [n for n, found in enumerate(contents) if np.isin(found, repeated).any()]
        for place, lines in zip(places, read(places), strict=True):
            candidates = lines.filter(pc.and_(_has_content(lines), pc.invert(_is_marked(lines))))
            found = np.isin(_content_hashes(candidates), repeated)
            notable[place].append(candidates.filter(pa.array(found)))
    ordered = [pa.concat_tables(found).sort_by("row") for found in notable]
    return IndexScan(rows, pa.concat_tables([INDEX_SCHEMA.empty_table(), *ordered]))


def without_rows(rows: Iterable[PartRows], dropped: pa.ChunkedArray) -> list[PartRows]:
    """The rows whose address, "grid/row", is not among `dropped`."""
    if not len(dropped):
        return list(rows)
    kept = []
    for part in rows:
        start = pa.scalar(f"{part.grid}/", pa.large_string())
        nothing = pa.scalar("", pa.large_string())
        masks = [np.empty(0, bool)]
        for first in range(0, len(part.row), AT_ONCE):
            numbers = pa.array(part.row[first : first + AT_ONCE]).cast(pa.large_string())
            addresses = pc.binary_join_element_wise(start, numbers, nothing)
            found = pc.is_in(addresses, value_set=dropped)
            masks.append(~found.to_numpy(zero_copy_only=False))
        keep = np.concatenate(masks)
        kept.append(PartRows(part.grid, part.row[keep], part.label[keep], part.hashes[keep]))
    return kept


def _is_marked(lines: pa.Table) -> Any:
    failed = pc.not_equal(lines["status"], "ok")
    return pc.or_(pc.or_(failed, pc.is_valid(lines["error"])), pc.is_valid(lines["replaces"]))


def _has_content(lines: pa.Table) -> Any:
    first = pc.and_(pc.equal(lines["view"], 0), pc.equal(lines["status"], "ok"))
    return pc.and_(first, pc.is_valid(lines["content"]))


def _content_hashes(lines: pa.Table) -> NDArray[np.uint64]:
    return key_hashes(lines["content"].cast(pa.large_binary()).to_pylist())


def _repeated(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The values that occur more than once, ascending."""
    values.sort()
    return np.unique(values[1:][values[1:] == values[:-1]])
