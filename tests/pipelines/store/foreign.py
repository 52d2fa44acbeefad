"""A small planned store, and changes of its metadata as someone with bad intentions makes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ops.files import json_hash, make_folders
from pipelines.inputs.entries import ListingBuilder
from pipelines.inputs.reading import Entry
from pipelines.planning.plan import PlanSettings, extend_plan, task_table
from pipelines.store import IndexLine, commit_task, description_metadata, index_table
from pipelines.store.layout import staging_path
from pipelines.store.parquet import METADATA_KEY, parquet_bytes
from pipelines.store.recovery import OWN, write_checksums
from pipelines.store.zarr_metadata import write_metadata
from tests.conftest import made_up_provenance

GRID = "2x3"
CODEBOOK_SIZE = 16
ROWS_PER_TASK = 4
NUM_ROWS = 10


def planned_store(root: Path, *, compress: bool = False) -> Path:
    """A finished store of NUM_ROWS images with labels, whose row 1 failed, without a tokenizer."""
    builder = ListingBuilder()
    for number in range(NUM_ROWS):
        key = f"{number % 2}/{number:02d}.png"
        builder.add(Entry(key, f"/images/{key}", None, 9, f"9-{number}", str(number % 2)))
    settings = PlanSettings(
        rows_per_task=ROWS_PER_TASK, track=made_up_provenance(CODEBOOK_SIZE), compress=compress
    )
    make_folders(staging_path(root))
    plan = extend_plan(
        root, builder.listing().table, settings, 1, lambda new: pa.repeat(GRID, len(new))
    )
    write_metadata(root, plan.attributes)
    random = np.random.default_rng(0)
    for task in plan.tasks:
        codes = random.integers(0, CODEBOOK_SIZE, (task.num_rows, 2, 3)).astype("<u2")
        lines = [IndexLine(8, 8, "ok", None, f"{k:032x}") for k in range(task.num_rows)]
        if task.number == 0:
            codes[1] = np.iinfo("<u2").max
            lines[1] = IndexLine(None, None, "broken", "it would not open", None)
        index = index_table(task_table(root, task), lines, codes)
        commit_task(root, GRID, task.number, ROWS_PER_TASK, {"image": codes}, index, compress)
    write_checksums(root)
    return root


def change_parquet(
    path: Path,
    change: Callable[[dict[str, Any]], Any] | None = None,
    columns: dict[str, list[Any]] | None = None,
) -> None:
    """Change the description in a Parquet file, and whole columns, and seal it again."""
    file = pq.ParquetFile(path)
    groups = [file.read_row_group(number) for number in range(file.num_row_groups)]
    description = json.loads(file.schema_arrow.metadata[METADATA_KEY])
    del description["hash"]
    if change is not None:
        change(description)
    metadata = description_metadata(description)
    if columns is None and len(groups) > 1:
        with pq.ParquetWriter(path, groups[0].schema.with_metadata(metadata)) as writer:
            for group in groups:
                writer.write_table(group)
        return
    table = pa.concat_tables(groups)
    for name, values in (columns or {}).items():
        place = table.schema.get_field_index(name)
        field = table.schema.field(name).with_nullable(True)
        table = table.set_column(place, field, pa.array(values, field.type))
    path.write_bytes(parquet_bytes(table.replace_schema_metadata(metadata)))


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file; the checksum file gets its own checksum again."""
    data = json.loads(path.read_bytes())
    own = data.pop(OWN, None)
    change(data)
    if own is not None:
        data = dict(sorted(data.items()))
        data[OWN] = json_hash(data)
    path.write_text(json.dumps(data, indent=2) + "\n")
