"""Listing: the images of an input as one sorted table, and what of the input is not listed."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.inputs.members import escaped
from pipelines.inputs.reading import Entry

MISSING = "missing"  # the etag of a file that is not there: its row will have that status
BATCH = 65536  # entries kept as Python objects before they become columns

#: The fields of Entry as columns.
ENTRY_SCHEMA = pa.schema(
    [
        # Large strings: those of ten million images exceed the two gigabytes of plain ones.
        pa.field("key", pa.large_string(), nullable=False),
        pa.field("uri", pa.large_string(), nullable=False),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("etag", pa.large_string(), nullable=False),
        pa.field("label_name", pa.large_string()),
        pa.field("caption", pa.large_string()),
        pa.field("carried", pa.large_string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Listing:
    """What an input holds: a table of ENTRY_SCHEMA sorted by key, then uri, then offset."""

    table: pa.Table
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (key, reason)
    unread: list[str] = field(default_factory=list)  # folders and archives not listed completely
    unused: list[tuple[str, str]] = field(default_factory=list)  # (archive, what else it holds)

    @property
    def entries(self) -> list[Entry]:
        """The table as objects; meant for a few thousand images at most."""
        return [Entry(**line) for line in self.table.to_pylist()]


class ListingBuilder:
    """Collects entries in any order, in columns, and makes a Listing of them."""

    def __init__(self) -> None:
        self.skipped: list[tuple[str, str]] = []
        self.unread: list[str] = []
        self.unused: list[tuple[str, str]] = []
        self._entries: list[Entry] = []
        self._batches: list[pa.RecordBatch] = []

    def add(self, entry: Entry) -> None:
        """Add an image."""
        self._entries.append(entry)
        if len(self._entries) == BATCH:
            self._flush()

    def add_table(self, entries: pa.Table) -> None:
        """Add images as a table of ENTRY_SCHEMA."""
        self._batches += entries.to_batches()

    def leave_out(self, starts: tuple[str, ...]) -> None:
        """Remove the images added so far whose keys start with one of these."""
        if not starts:
            return
        self._flush()
        masks = ([key.startswith(starts) for key in b["key"].to_pylist()] for b in self._batches)
        self._batches = [
            batch.filter(pc.invert(pa.array(mask)))
            for batch, mask in zip(self._batches, masks, strict=True)
        ]

    def skip(self, key: str, reason: str) -> None:
        """Add a file or folder that is not listed."""
        self.skipped.append((escaped(key), reason))

    def mark_unread(self, key: str, reason: str) -> None:
        """Add a folder or archive that could not be listed completely."""
        self.unread.append(escaped(key))
        self.skip(key, reason)

    def add_unused(self, key: str, what: str) -> None:
        """Add what an archive holds apart from its images, such as the number of captions."""
        self.unused.append((escaped(key), what))

    def listing(self) -> Listing:
        """Everything added so far."""
        self._flush()
        table = pa.Table.from_batches(self._batches, ENTRY_SCHEMA)
        self._batches.clear()
        return Listing(
            sorted_entries(table), sorted(self.skipped), sorted(self.unread), sorted(self.unused)
        )

    def _flush(self) -> None:
        columns = [
            pa.array([getattr(entry, column.name) for entry in self._entries], column.type)
            for column in ENTRY_SCHEMA
        ]
        self._batches.append(pa.record_batch(columns, schema=ENTRY_SCHEMA))
        self._entries.clear()


def sorted_entries(table: pa.Table) -> pa.Table:
    """A table of ENTRY_SCHEMA sorted by key, then uri, then offset.

    Archives mostly come in order, and then nothing is copied; else one column after the other is,
    so that never two whole tables are in memory.
    """
    keys = table["key"]
    if len(keys) < 2 or pc.all(pc.less(keys.slice(0, len(keys) - 1), keys.slice(1))).as_py():
        return table
    order = pc.sort_indices(table, [(name, "ascending") for name in ("key", "uri", "offset")])
    columns = []
    for name in ENTRY_SCHEMA.names:
        columns.append(table[name].take(order))
        table = table.drop_columns([name])
    return pa.table(columns, schema=ENTRY_SCHEMA)
