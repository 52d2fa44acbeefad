"""Inputs: which images there are, and their bytes.

Folders, files, tar files, Parquet tables and lists of paths go in, from disks, object stores and
servers; `list_input` gives one sorted
table of entries (key, uri, offset, size, etag, class, caption, other columns), and any process can
then read an entry's bytes.
Annotations (boxes, keypoints, classes) are read from JSONL and CSV files, and the
held-out share of samples is chosen by key. Read listing.py first, then reading.py and archives.py.
"""

from pipelines.inputs.annotations import Lines, are_numbers, read_lines
from pipelines.inputs.archives import Address, ArchiveError, parse_address
from pipelines.inputs.bad_images import Ledger
from pipelines.inputs.carried import parse_carry
from pipelines.inputs.entries import Listing
from pipelines.inputs.fields import Fields
from pipelines.inputs.file_names import FileNames
from pipelines.inputs.holdout import held_out, held_out_hashes, which_held_out
from pipelines.inputs.input_state import input_state
from pipelines.inputs.listing import label_lines, list_input
from pipelines.inputs.members import MEMBER_SCHEMA, MemberCache, Members
from pipelines.inputs.parquet import group_of, is_table
from pipelines.inputs.partners import ByName, Lost, paired
from pipelines.inputs.patterns import InputError, fixed_path, input_sources
from pipelines.inputs.reading import (
    Entry,
    content_hash,
    open_image_file,
    read_bytes,
    read_end,
    read_entry,
    read_source,
)
from pipelines.inputs.tar_entries import tar_entries, tars_below
from pipelines.inputs.thread_map import thread_map

__all__ = [
    "Address",
    "ArchiveError",
    "ByName",
    "Entry",
    "Fields",
    "FileNames",
    "InputError",
    "Ledger",
    "Lines",
    "Listing",
    "Lost",
    "MEMBER_SCHEMA",
    "MemberCache",
    "Members",
    "are_numbers",
    "content_hash",
    "fixed_path",
    "group_of",
    "held_out",
    "held_out_hashes",
    "input_sources",
    "input_state",
    "is_table",
    "label_lines",
    "list_input",
    "open_image_file",
    "paired",
    "parse_carry",
    "parse_address",
    "read_bytes",
    "read_end",
    "read_entry",
    "read_lines",
    "read_source",
    "tar_entries",
    "tars_below",
    "thread_map",
    "which_held_out",
]
