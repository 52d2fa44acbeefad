"""The code store: a Zarr group of codes with a Parquet index of which rows are valid.

Workers put a task's rows into a TaskBuffer, keep unfinished ones in partial shards and commit the
whole task at once; drivers prepare and finish a store with the functions of recovery.py.
`CodeStore` reads a store: it trusts the index and memory-maps the shards. Plain `zarr.open`
reads the arrays too, and plain `pyarrow.parquet` the index. Read layout.py first (where everything
lies), then commit.py (how rows are written once and never overwritten).
"""

from pipelines.store.commit import (
    INDEX_SCHEMA,
    commit_task,
    committed_tasks,
    publish_task,
    read_part,
)
from pipelines.store.integrity import check_shard
from pipelines.store.layout import (
    CLASS,
    FORMAT,
    TRACKS,
    StoreError,
    check_format,
    checksums_path,
    grid_name,
    grid_shape,
    index_path,
    lock_path,
    plan_path,
    shard_path,
    source_path,
    staging_path,
    store_root,
    tokenizer_folder,
    tokenizer_path,
    track_name,
    track_path,
)
from pipelines.store.parquet import description_metadata, parquet_bytes, read_description
from pipelines.store.partial import remove_partial_shards, task_of_partial_shard
from pipelines.store.reader import CodeStore
from pipelines.store.recovery import (
    empty_staging,
    forget,
    forget_missing,
    keep_tokenizer,
    listed_files,
    publish_committed,
    read_checksums,
    remove_partials,
    write_checksums,
)
from pipelines.store.task_buffer import (
    CRASHED,
    OK,
    IndexLine,
    TaskBuffer,
    index_buffer,
    index_table,
)
from pipelines.store.tombstones import read_tombstones, write_tombstones
from pipelines.store.zarr_metadata import (
    RowForm,
    StoreAttributes,
    code_dtype,
    fill_value,
    metadata_files,
    read_attributes,
    row_form,
    write_metadata,
)

__all__ = [
    "CLASS",
    "CRASHED",
    "CodeStore",
    "FORMAT",
    "INDEX_SCHEMA",
    "IndexLine",
    "OK",
    "RowForm",
    "StoreAttributes",
    "StoreError",
    "TRACKS",
    "TaskBuffer",
    "check_format",
    "check_shard",
    "checksums_path",
    "code_dtype",
    "commit_task",
    "committed_tasks",
    "description_metadata",
    "empty_staging",
    "fill_value",
    "forget",
    "forget_missing",
    "grid_name",
    "grid_shape",
    "index_buffer",
    "index_path",
    "index_table",
    "keep_tokenizer",
    "listed_files",
    "lock_path",
    "metadata_files",
    "parquet_bytes",
    "plan_path",
    "publish_committed",
    "publish_task",
    "read_attributes",
    "read_checksums",
    "read_description",
    "read_part",
    "read_tombstones",
    "remove_partial_shards",
    "remove_partials",
    "row_form",
    "shard_path",
    "source_path",
    "staging_path",
    "store_root",
    "task_of_partial_shard",
    "tokenizer_folder",
    "tokenizer_path",
    "track_name",
    "track_path",
    "write_checksums",
    "write_metadata",
    "write_tombstones",
]
