"""Our Parquet files: pages with checksums, and a description with a hash in the metadata."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ops.files import json_hash
from pipelines.store.layout import FORMAT, check_format

METADATA_KEY = b"smalti"  # of the description in a file's schema metadata


def parquet_bytes(table: pa.Table) -> bytes:
    """A Parquet file of `table` whose pages carry checksums."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def description_metadata(description: dict[str, Any]) -> dict[bytes, bytes]:
    """Schema metadata that holds `description`, the format number and a hash of both.

    The hash is needed because Parquet's page checksums leave the metadata out.
    """
    content = {"format": FORMAT, **description}
    text = json.dumps({**content, "hash": json_hash(content)}, sort_keys=True)
    return {METADATA_KEY: text.encode()}


def read_description(path: Path, metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """The description in the `metadata` of the Parquet file at `path`.

    Raises StoreError where the file has another format; KeyError, TypeError or ValueError where
    the description is corrupt.
    """
    description: dict[str, Any] = json.loads((metadata or {})[METADATA_KEY])
    own = description.pop("hash", None)
    if own is not None and own != json_hash(description):
        raise ValueError("its description does not match the hash of it")
    check_format(path, description["format"])
    if own is None:
        raise ValueError("its description has no hash")
    return description
