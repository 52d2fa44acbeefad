"""What `export --to` says of each format. The texts lie apart from the formats' code, which takes
seconds to import; test_notes.py holds that every format has one."""

from __future__ import annotations

from collections.abc import Mapping

FORMAT_NOTES: Mapping[str, str] = {
    "webdataset": "a tar of each shard, with codes.npy, json, cls (the label) and TRACK.npy of "
    "each row",
    "parquet": "a table of each shard with the columns key, label, codes, and one for each track",
    "npy": "arrays of each shard for numpy.load(..., mmap_mode='r'): codes, row, label (-1: none) "
    "and each track, and the keys as JSON",
    "litdata": "a chunk of each shard and index.json, for litdata.StreamingDataset",
    "mds": "a shard of each shard and index.json, for streaming.StreamingDataset (MosaicML)",
    "images": "every row decoded to a PNG by the store's tokenizer, in a folder for each shard, "
    "with metadata.jsonl (file_name, key, label)",
}


def formats_help() -> str:
    """The formats with what they write, for --help."""
    return "; ".join(f"{name}: {note}" for name, note in FORMAT_NOTES.items())
