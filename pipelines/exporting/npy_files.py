"""NumPy files: arrays of each shard, to be memory-mapped."""

from __future__ import annotations

from pathlib import Path

from ops.files import json_bytes, write_bytes
from pipelines.exporting.export_format import ExportFormat
from pipelines.exporting.shard_rows import ShardRows
from pipelines.exporting.webdataset_tars import npy_bytes


class NpyFiles(ExportFormat):
    """`32x32-00000.codes.npy`, `.label.npy`, `.row.npy`, `.TRACK.npy` and `.keys.json`.

    A row that a track lacks has the track's fill value: its type's largest number, or NaN.
    """

    def write(self, rows: ShardRows, folder: Path) -> None:
        arrays = {f"track_{name}": track.values for name, track in rows.tracks.items()}
        arrays |= {name: rows.lines[name].to_numpy() for name in ("row", "label")}
        for name, array in {**arrays, "codes": rows.codes}.items():
            write_bytes(folder / f"{rows.name}.{name}.npy", npy_bytes(array))
        keys = rows.lines["key"].to_pylist()
        write_bytes(folder / f"{rows.name}.keys.json", json_bytes(keys))
