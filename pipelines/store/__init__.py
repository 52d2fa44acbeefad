"""The code store: a Zarr group of codes beside a Parquet index that says which rows to believe.

Plain `zarr.open` reads the arrays and plain `pyarrow.parquet` the index; `CodeStore` reads both,
mapping the arrays' files into memory.
"""

from pipelines.store.commit import INDEX_SCHEMA, commit_task, publish_task
from pipelines.store.layout import (
    StoreAttributes,
    StoreError,
    code_dtype,
    fill_value,
    grid_name,
    grid_shape,
    read_attributes,
    row_form,
    write_metadata,
)
from pipelines.store.reader import CodeStore

__all__ = [
    "INDEX_SCHEMA",
    "CodeStore",
    "StoreAttributes",
    "StoreError",
    "code_dtype",
    "commit_task",
    "fill_value",
    "grid_name",
    "grid_shape",
    "publish_task",
    "read_attributes",
    "row_form",
    "write_metadata",
]
