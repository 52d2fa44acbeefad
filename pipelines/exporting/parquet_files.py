"""Parquet files: one of each shard, codes and tracks as lists of fixed size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from ops.files import write_bytes
from pipelines.exporting.export_format import ExportFormat
from pipelines.exporting.shard_rows import Codes, Mask, ShardRows
from pipelines.store import parquet_bytes


class ParquetFiles(ExportFormat):
    """`32x32-00000.parquet`: columns key, row, view, label, width, height, codes and TRACKs."""

    def write(self, rows: ShardRows, folder: Path) -> None:
        names = ("key", "row", "view", "label", "width", "height")
        columns = {name: rows.lines[name] for name in names}
        label = rows.lines["label"].to_numpy()
        columns["label"] = pa.array(label, mask=label < 0)
        columns["codes"] = _lists(rows.codes)
        for name, track in rows.tracks.items():
            # After the other columns, under a name that is none of theirs.
            column = f"track_{name}" if name in columns else name
            columns[column] = _lists(track.values, track.present)
        described = {
            "grid": rows.shard.grid,
            "shapes": {
                "codes": rows.codes.shape[1:],
                **{name: track.values.shape[1:] for name, track in rows.tracks.items()},
            },
            "classes": rows.label_names,
        }
        table = pa.table(columns).replace_schema_metadata({"smalti": json.dumps(described)})
        write_bytes(folder / f"{rows.name}.parquet", parquet_bytes(table))


def _lists(values: Codes, present: Mask | None = None) -> pa.Array:
    """(n, h, w) as n lists of h * w numbers, row by row; null where not `present` (n,)."""
    size = int(np.prod(values.shape[1:]))
    mask = None if present is None else pa.array(~present)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), size, mask=mask)
