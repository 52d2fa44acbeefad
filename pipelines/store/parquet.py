"""Our Parquet files: pages with checksums, and a description with a hash in the metadata.

A store may come from elsewhere, so a file is data to be checked: its size before it is read, then
its columns and its text.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ops.config import UserError
from ops.files import NotRegularError, json_hash, open_regular, parse_json
from ops.paths import AnyPath, ObjectPath, open_binary
from pipelines.store.layout import FORMAT, check_format

METADATA_KEY = b"smalti"  # of the description in a file's schema metadata
#: Of an image, as its source has them, in the plan and the index; stores that were begun by earlier
#: versions lack them.
CARRIED_FIELDS = (
    pa.field("caption", pa.large_string()),
    pa.field("carried", pa.large_string()),  # a JSON object of further columns
)
MAX_GROUP_BYTES = 4 << 30  # of a row group in memory; one of 65,536 rows takes some 20 MB
#: What pyarrow and the checks of what it read raise for a file that is not as we write them.
PARQUET_ERRORS = (
    pa.ArrowException,
    AttributeError,
    KeyError,
    MemoryError,
    NotRegularError,
    OSError,
    OverflowError,
    TypeError,
    ValueError,
)


def parquet_bytes(table: pa.Table) -> bytes:
    """A Parquet file of `table` whose pages carry checksums."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


@contextlib.contextmanager
def corrupt_as(error_of: Callable[[Exception], UserError]) -> Iterator[None]:
    """Raise what `error_of` makes of an error of the body, which reads a Parquet file, instead."""
    try:
        yield
    except PARQUET_ERRORS as error:
        raise error_of(error) from error


def open_parquet(
    path: AnyPath, footer: pq.FileMetaData | None = None, group: int | None = None
) -> pq.ParquetFile:
    """A Parquet file whose row groups, or the one to be read, take at most MAX_GROUP_BYTES.

    String columns are read as dictionaries where one long value in many rows could take more.
    Raises one of PARQUET_ERRORS for any other file; `footer` may have been read before.
    """
    source: Any = path
    if isinstance(path, ObjectPath):
        source = open_binary(path)
    else:
        open_regular(path, follow=False).close()
    file = pq.ParquetFile(source, metadata=footer, page_checksum_verification=True)
    long_text = False
    for number in range(file.num_row_groups) if group is None else (group,):
        found = file.metadata.row_group(number)
        if not 0 <= found.total_byte_size <= MAX_GROUP_BYTES:
            raise ValueError(f"row group {number} has {found.total_byte_size:,} bytes")
        long_text |= found.num_rows * found.total_byte_size > MAX_GROUP_BYTES
    if not long_text:
        return file
    strings = [field.name for field in file.schema_arrow if _is_text(field.type)]
    return pq.ParquetFile(
        source, metadata=footer, page_checksum_verification=True, read_dictionary=strings
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def checked_table(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of `schema` of a table that was read, with its types and without metadata.

    CARRIED_FIELDS that are missing are null.

    Raises one of PARQUET_ERRORS where a column is missing, has another type or nulls that it may
    not have, text that is not UTF-8, or more than MAX_GROUP_BYTES.
    """
    for field in CARRIED_FIELDS:
        if field.name in schema.names and field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    table = table.replace_schema_metadata(None).select(schema.names)
    size = sum(_text_bytes(column) for column in table.columns)
    if size > MAX_GROUP_BYTES:
        raise ValueError(f"its text has {size:,} bytes")
    for field, column in zip(schema, table.columns, strict=True):
        if not field.nullable and column.null_count:
            raise ValueError(f"column {field.name} has nulls")
    table = table.cast(schema.remove_metadata())
    table.validate(full=True)
    return table


def _text_bytes(column: pa.ChunkedArray) -> int:
    """Bytes of a column of dictionaries once it is cast to strings; of others 0."""
    if not pa.types.is_dictionary(column.type):
        return 0
    sizes = (
        pc.sum(pc.binary_length(chunk.dictionary).cast(pa.int64()).take(chunk.indices))
        for chunk in column.chunks
    )
    return sum(size.as_py() or 0 for size in sizes)


def description_metadata(description: dict[str, Any]) -> dict[bytes, bytes]:
    """Schema metadata that holds `description`, the format number and a hash of both.

    The hash is needed because Parquet's page checksums leave the metadata out.
    """
    content = {"format": FORMAT, **description}
    text = json.dumps({**content, "hash": json_hash(content)}, sort_keys=True)
    return {METADATA_KEY: text.encode()}


def read_description(path: AnyPath, metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """The description in the `metadata` of the Parquet file at `path`.

    Raises StoreError where the file has another format; KeyError, TypeError or ValueError where
    the description is corrupt.
    """
    description = parse_json((metadata or {})[METADATA_KEY])
    if not isinstance(description, dict):
        raise ValueError("its description is no JSON object")
    own = description.pop("hash", None)
    if own is not None and own != json_hash(description):
        raise ValueError("its description does not match the hash of it")
    check_format(path, description["format"])
    if own is None:
        raise ValueError("its description has no hash")
    return description
