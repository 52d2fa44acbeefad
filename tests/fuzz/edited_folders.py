"""Stores, runs and samples with edited files, resealed so that they are believed, or odd ones."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from ops.files import json_bytes, json_hash
from pipelines.store.layout import FORMAT
from pipelines.store.parquet import METADATA_KEY, description_metadata
from pipelines.store.recovery import OWN
from tests.fuzz.json_values import ODD, OUTSIDE, json_files, json_text, mutated_json
from tests.fuzz.parquet_files import broken_parquet
from tests.fuzz.raw_bytes import mutated_bytes

CHECKSUMS = "_checksums.json"
#: What may stand in the place of a file or folder.
TREE_CHANGES = ("remove", "folder", "fifo", "empty", "unreadable", "loop", "link to canary",
                "link to canary folder", "link to nothing", "link to itself elsewhere")  # fmt: skip
#: Names of files that do not belong in a store or another folder, below it.
STRAYS = (
    "_index/2x2/note.parquet", "_index/2x2/99.parquet", "_index/2x2/-1.parquet",
    "_index/2x2/1e3.parquet", "_index/axb/0.parquet", "_index/x/0.parquet",
    "_index/2x2/0.parquet.partial", "_index/99999999999x1/0.parquet", "_plan/2.parquet",
    "_plan/x.parquet", "_tombstones/0.parquet", "_tombstones/note.parquet", "_staging/x.shard",
    "_staging/2x2-0-image-0.shard", "_staging/a-b-c.shard", "_tracks/depth/_plan/0.parquet",
    "_tracks/\x1b[31m/_source.json", "_tracks/file", "_tracks/depth/_source.json",
    "g2x2/zarr.json.0.partial", "index/note.parquet", "index/9.parquet",
    "step-00000009/config.json", "step-9/config.json", "run.json.x.partial", "sample-00009.png",
    "samples/step.png", "samples/step-00000001.png",
)  # fmt: skip


class Edit(NamedTuple):
    """One change below a folder."""

    path: str
    change: str  # "write", or one of TREE_CHANGES
    data: bytes = b""


class EditedFolder(NamedTuple):
    """Changes of a valid folder."""

    edits: tuple[Edit, ...]
    reseal: bool  # whether _checksums.json is made to match


def apply_edits(edited: EditedFolder, root: Path, canary: Path) -> None:
    """Make the changes in the folder at `root`."""
    for edit in edited.edits:
        with contextlib.suppress(OSError):  # an earlier change is in the way
            _apply(edit, root / edit.path, canary)
    if edited.reseal:
        _reseal(root)


def _apply(edit: Edit, path: Path, canary: Path) -> None:
    if edit.change == "write":
        if path.is_symlink() or (path.exists() and not path.is_file()):
            return  # writing to a FIFO would wait for ever
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(edit.data)
    else:
        _change_tree(path, edit.change, canary)


def _change_tree(path: Path, change: str, canary: Path) -> None:
    kept = path.with_name(f"{path.name}.kept")
    if path.is_dir() and change == "link to itself elsewhere":
        path.rename(kept)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if change == "folder":
        path.mkdir()
    elif change == "fifo":
        os.mkfifo(path)
    elif change in ("empty", "unreadable"):
        path.touch(0o000 if change == "unreadable" else 0o644)
    elif change != "remove":
        targets = {
            "link to canary": canary / "thesis.txt",
            "link to canary folder": canary,
            "link to nothing": canary / "nothing",
            "loop": path,
            "link to itself elsewhere": kept,
        }
        path.symlink_to(targets[change])


def _reseal(root: Path) -> None:
    path = root / CHECKSUMS
    if not path.is_file():
        return
    try:
        checksums = json.loads(path.read_text())
        checksums.pop(OWN, None)
        for name in checksums:
            if (root / name).is_file() and not (root / name).is_symlink():
                checksums[name] = hashlib.sha256((root / name).read_bytes()).hexdigest()
        path.write_bytes(json_bytes({**checksums, OWN: json_hash(checksums)}))
    except (ValueError, TypeError, AttributeError, OSError):
        return  # it is one of the edited files


@st.composite
def edited_folders(draw: st.DrawFn, files: Mapping[str, bytes], folder: str) -> EditedFolder:
    """A valid folder, given as its files by path, with one or two changes."""
    edits = []
    folders = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
        kind = draw(st.sampled_from(["file"] * 8 + ["tree", "tree", "stray"]))
        if kind == "tree":
            path = draw(st.sampled_from(sorted({*files, *folders, "_staging"})))
            edits.append(Edit(path, draw(st.sampled_from(TREE_CHANGES))))
        elif kind == "stray":
            data = draw(st.sampled_from([b"", b"note", b"{}", *files.values()]))
            edits.append(Edit(draw(st.sampled_from(STRAYS)), "write", data))
        else:
            path = draw(st.sampled_from(sorted(files)))
            edits.append(Edit(path, "write", draw(_edited_file(path, files[path], folder))))
    return EditedFolder(tuple(edits), draw(st.booleans()))


@st.composite
def _edited_file(draw: st.DrawFn, path: str, data: bytes, folder: str) -> bytes:
    if path.endswith(".json"):
        return draw(json_files(json.loads(data), folder))
    if path.endswith(".jsonl"):
        line, _, rest = data.partition(b"\n")
        return json_text(draw(mutated_json(json.loads(line), folder))) + b"\n" + rest
    if path.endswith(".parquet"):
        return draw(parts(data, folder))
    return draw(mutated_bytes(data)).data


@st.composite
def parts(draw: st.DrawFn, data: bytes, folder: str) -> bytes:
    """A part of an index or a plan with other values under a hash that is right."""
    table = pq.read_table(io.BytesIO(data))
    description = json.loads((table.schema.metadata or {})[METADATA_KEY])
    description.pop("hash")
    change = draw(
        st.sampled_from(["description"] * 3 + ["values"] * 4 + ["columns", "rows", "bytes"])
    )
    if change == "bytes":
        return draw(broken_parquet(data))
    if change == "description":
        description = draw(mutated_json(description, folder))
    elif change == "values":
        table = draw(_with_odd_value(table, folder))
    elif change == "columns":
        table = draw(_with_odd_columns(table))
    else:
        rows = draw(st.lists(st.integers(0, len(table) - 1), max_size=2 * len(table)))
        table = table.take(pa.array(rows, pa.int64()))
    groups = draw(st.sampled_from([len(table) or 1, len(table) or 1, 1]))
    buffer = io.BytesIO()
    sealed = table.replace_schema_metadata(_sealed(description))
    pq.write_table(sealed, buffer, row_group_size=groups, write_page_checksum=True)
    return buffer.getvalue()


def _sealed(description: Any) -> dict[bytes, bytes]:
    try:
        format_ = description.pop("format", FORMAT)
        sealed = description_metadata({**description, "format": format_})
    except (AttributeError, TypeError, UnicodeError):  # no object, or text that has no UTF-8
        return {METADATA_KEY: json.dumps(description).encode()}
    return sealed


@st.composite
def _with_odd_value(draw: st.DrawFn, table: pa.Table, folder: str) -> pa.Table:
    """A table with one value replaced by an odd one of its column's type."""
    name = draw(st.sampled_from(table.column_names))
    column = table[name]
    if pa.types.is_integer(column.type):
        bits = column.type.bit_width
        odd = draw(
            st.sampled_from([0, 1, 2, 7, 2**31 - 1, 2 ** (bits - 1) - 1, -1, -(2 ** (bits - 1))])
        )
        odd = odd % 2**bits if str(column.type).startswith("u") else odd
    else:
        texts = [value for value in ODD if isinstance(value, str) and value != "\ud800"]
        more = [
            "2x2/0",
            "2x2/1",
            "2x2/99",
            "0x0/0",
            "ok",
            "broken",
            "a/b/c",
            f"{folder}/canary/thesis.txt",
        ]
        odd = draw(st.sampled_from([*texts, *more, *OUTSIDE]))
    values = column.to_pylist()
    values[draw(st.integers(0, len(values) - 1))] = draw(st.sampled_from([odd, odd, odd, None]))
    new = table.schema.field(name).with_nullable(True)
    return table.set_column(table.column_names.index(name), new, pa.array(values, column.type))


@st.composite
def _with_odd_columns(draw: st.DrawFn, table: pa.Table) -> pa.Table:
    """A table with a column removed, repeated, renamed or of another type."""
    at = draw(st.integers(0, table.num_columns - 1))
    name = table.column_names[at]
    change = draw(
        st.sampled_from(["remove", "repeat", "rename", "nulls", "numbers", "lists", "text"])
    )
    if change == "remove":
        return table.remove_column(at)
    if change == "repeat":
        return table.append_column(name, table[at])
    if change == "rename":
        names = list(table.column_names)
        names[at] = draw(st.sampled_from(["", "key", "x"]))
        return table.rename_columns(names)
    rows = range(len(table))
    columns = {
        "nulls": pa.array([None] * len(table)),
        "numbers": pa.array([row / 2 for row in rows]),
        "lists": pa.array([[row] for row in rows]),
        "text": pa.array([f"{row}" for row in rows]),
    }
    return table.set_column(at, name, columns[change])
