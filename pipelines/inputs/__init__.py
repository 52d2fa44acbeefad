"""Inputs: which images there are, and their bytes.

A folder, a file, a tar file or a Parquet table goes in; `list_input` gives one sorted table of
entries (key, uri, offset, size, etag, class), and any process can then read an entry's bytes.
Annotations (boxes, keypoints, classes) are read from JSONL and CSV files, and the
held-out share of samples is chosen by key. Read listing.py first, then reading.py and archives.py.
"""

from pipelines.inputs.annotations import Lines, are_numbers, read_lines
from pipelines.inputs.archives import ArchiveError, parse_address
from pipelines.inputs.bad_images import Ledger
from pipelines.inputs.file_names import FileNames
from pipelines.inputs.holdout import held_out, which_held_out
from pipelines.inputs.listing import InputError, Listing, label_lines, list_input
from pipelines.inputs.parquet import group_of, is_table
from pipelines.inputs.partners import ByName, Lost, paired
from pipelines.inputs.reading import (
    Entry,
    content_hash,
    open_image_file,
    read_bytes,
    read_entry,
    read_source,
)
from pipelines.inputs.tar_entries import tar_entries
from pipelines.inputs.thread_map import thread_map

__all__ = [
    "ArchiveError",
    "ByName",
    "Entry",
    "FileNames",
    "InputError",
    "Ledger",
    "Lines",
    "Listing",
    "Lost",
    "are_numbers",
    "content_hash",
    "group_of",
    "held_out",
    "is_table",
    "label_lines",
    "list_input",
    "open_image_file",
    "paired",
    "parse_address",
    "read_bytes",
    "read_entry",
    "read_lines",
    "read_source",
    "tar_entries",
    "thread_map",
    "which_held_out",
]
