"""LitData chunks: one of each shard, and the index.json that litdata's StreamingDataset reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ops.files import parse_json
from pipelines.exporting.export_format import ExportFormat
from pipelines.exporting.shard_rows import ShardRows

UNLIMITED = 1 << 62  # bytes: a shard is one chunk


class LitDataChunks(ExportFormat):
    """`32x32-00000.bin`: {"codes", "key", "label", TRACK, ...} of each row, as litdata has it.

    A label is -1 where there is none; a row that a track lacks has the track's fill value.
    """

    library = "litdata.streaming.writer"

    def write(self, rows: ShardRows, folder: Path) -> Any:
        from litdata.streaming.writer import BinaryWriter

        writer = BinaryWriter(str(folder), chunk_bytes=UNLIMITED)
        for place, facts in enumerate(rows.facts()):
            label = -1 if facts["label"] is None else facts["label"]
            sample = {"codes": rows.codes[place], "key": facts["key"], "label": label}
            tracks = {f"track_{name}": t.values[place] for name, t in rows.tracks.items()}
            writer.add_item(place, sample | tracks)
        writer.done()
        (index,) = folder.glob("*.index.json")
        found = parse_json(index.read_bytes())
        index.unlink()
        (chunk,) = found["chunks"]
        name = f"{rows.name}.bin"
        (folder / chunk["filename"]).rename(folder / name)
        return {"chunk": {**chunk, "filename": name}, "config": found["config"]}

    @staticmethod
    def index(found: Sequence[Any]) -> dict[str, Any]:
        """As BinaryWriter merges the indices of its workers, but without the time."""
        configs = {json.dumps(each["config"], sort_keys=True) for each in found}
        assert len(configs) <= 1, "the same fields in every shard give the same config"
        chunks = [each["chunk"] for each in found]
        return {"index.json": {"chunks": chunks, "config": found[0]["config"]}} if found else {}
