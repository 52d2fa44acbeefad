"""MDS shards: one of each shard, and the index.json that MosaicML's StreamingDataset reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ops.files import parse_json
from pipelines.exporting.export_format import ExportFormat
from pipelines.exporting.shard_rows import ShardRows


class MDSShards(ExportFormat):
    """`32x32-00000/shard.00000.mds`: columns codes, key, label and TRACKs.

    A label is -1 where there is none; a row that a track lacks has the track's fill value.
    """

    library = "streaming"

    def write(self, rows: ShardRows, folder: Path) -> Any:
        from streaming import MDSWriter

        arrays = {f"track_{name}": track.values for name, track in rows.tracks.items()}
        arrays["codes"] = rows.codes
        columns = {"key": "str", "label": "int"}
        columns |= {name: _encoding(values) for name, values in arrays.items()}
        out = folder / rows.name
        with MDSWriter(out=str(out), columns=columns, size_limit=None) as writer:
            for place, facts in enumerate(rows.facts()):
                label = -1 if facts["label"] is None else facts["label"]
                values = {name: each[place] for name, each in arrays.items()}
                writer.write({"key": facts["key"], "label": label, **values})
        found = parse_json((out / "index.json").read_bytes())
        (out / "index.json").unlink()
        for shard in found["shards"]:  # as streaming's merge_index names them
            raw = shard["raw_data"]
            raw["basename"] = f"{rows.name}/{raw['basename']}"
        return found

    @staticmethod
    def index(found: Sequence[Any]) -> dict[str, Any]:
        shards = [shard for each in found for shard in each["shards"]]
        version = found[0]["version"] if found else 2
        return {"index.json": {"version": version, "shards": shards}}


def _encoding(values: np.ndarray[Any, Any]) -> str:
    """MDS's name for arrays of one type and shape."""
    return f"ndarray:{values.dtype.name}:{','.join(map(str, values.shape[1:]))}"
