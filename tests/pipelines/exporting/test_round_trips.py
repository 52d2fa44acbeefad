"""What other libraries read of an export is what CodeStore reads of the store."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from ops.images import to_image
from pipelines.exporting.formats import FORMATS
from pipelines.store import CodeStore
from tests.exported_store import CURRENT, GRID, ROWS, WITHOUT_BOXES, boxes, make_exported_store
from tests.pipelines.exporting.conftest import run_export
from tokenizer import decode_tiled, load_tokenizer

SHARDS = [f"{GRID}-{task:05d}" for task in range(3)]


def expected(store: Path) -> list[dict[str, Any]]:
    """The exported rows, by CodeStore: key, row, view, label, class, codes, boxes."""
    opened = CodeStore.open(store)
    assert len(opened) == len(CURRENT)
    labels = opened.labels(GRID, np.array(CURRENT))
    found = []
    for position, row in enumerate(CURRENT):
        line = opened[position]
        assert line["row"] == row
        label = None if labels[position] < 0 else int(labels[position])
        name = None if label is None else opened.label_names[label]
        found.append({**line, "label": label, "class": name, "boxes": boxes()[row]})
    return found


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its tars open
def test_webdataset_reads_every_row(store: Path, tmp_path: Path) -> None:
    assert run_export(store, tmp_path, "webdataset") == 0
    tars = str(tmp_path / f"{GRID}-{{00000..00002}}.tar")
    read = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
    assert len(read) == len(CURRENT)
    for sample, row in zip(read, expected(store), strict=True):
        assert sample["__key__"].endswith(f"{GRID}-{row['row']:09d}")
        assert sample["codes.npy"].dtype == row["codes"].dtype
        assert (sample["codes.npy"] == row["codes"]).all()
        assert sample.get("cls") == row["label"]
        for name in ("key", "row", "view", "label", "class", "width", "height", "grid"):
            assert sample["json"][name] == row[name]
        assert ("boxes.npy" in sample) == (row["row"] != WITHOUT_BOXES)
        if "boxes.npy" in sample:
            assert (sample["boxes.npy"] == row["boxes"]).all()


def test_pyarrow_reads_every_row(store: Path, tmp_path: Path) -> None:
    assert run_export(store, tmp_path, "parquet") == 0
    table = pa.concat_tables(pq.read_table(tmp_path / f"{name}.parquet") for name in SHARDS)
    shapes = json.loads(table.schema.metadata[b"smalti"])["shapes"]
    assert shapes == {"codes": [4, 5], "boxes": [2, 5]}
    for line, row in zip(table.to_pylist(), expected(store), strict=True):
        assert np.array_equal(np.reshape(line.pop("codes"), (4, 5)), row["codes"])
        found = line.pop("boxes")
        if row["row"] == WITHOUT_BOXES:
            assert found is None
        else:
            assert np.array_equal(np.reshape(np.float32(found), (2, 5)), row["boxes"])
        assert line == {name: row[name] for name in line}
        assert set(line) == {"key", "row", "view", "label", "width", "height"}


@pytest.mark.parametrize("compress", [False, True])
def test_numpy_maps_every_row(tiny_tokenizer: Path, tmp_path: Path, compress: bool) -> None:
    store = make_exported_store(tmp_path / "codes.zarr", tiny_tokenizer, compress=compress)
    assert run_export(store, tmp_path / "npy", "npy") == 0

    def read(name: str) -> np.ndarray:
        paths = [tmp_path / "npy" / f"{shard}.{name}.npy" for shard in SHARDS]
        return np.concatenate([np.load(path, mmap_mode="r") for path in paths])

    rows = expected(store)
    assert np.array_equal(read("codes"), [row["codes"] for row in rows])
    assert np.array_equal(read("track_boxes"), [row["boxes"] for row in rows], equal_nan=True)
    assert read("row").tolist() == CURRENT
    assert read("label").tolist() == [-1 if row["label"] is None else row["label"] for row in rows]
    parts = [json.loads((tmp_path / f"npy/{name}.keys.json").read_text()) for name in SHARDS]
    assert [key for part in parts for key in part] == [row["key"] for row in rows]


def test_images_are_the_codes_decoded(store: Path, tmp_path: Path) -> None:
    assert run_export(store, tmp_path, "images", "--device", "cpu") == 0
    tokenizer = load_tokenizer(CodeStore.open(store).tokenizer_folder)
    lines = [
        (name, json.loads(line))
        for name in SHARDS
        for line in (tmp_path / name / "metadata.jsonl").read_text().splitlines()
    ]
    assert len(lines) == len(list(tmp_path.rglob("*.png"))) == len(CURRENT)
    for (folder, line), row in zip(lines, expected(store), strict=True):
        assert line == {"file_name": f"{row['row']:09d}.png", **{n: row[n] for n in list(line)[1:]}}
        codes = np.asarray(row["codes"], np.int64)[None]
        decoded = to_image(decode_tiled(tokenizer, torch_codes(codes)))[0]
        assert (np.asarray(Image.open(tmp_path / folder / line["file_name"])) == decoded).all()


def torch_codes(codes: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(codes)


def test_what_all_shards_hold_is_described(store: Path, tmp_path: Path) -> None:
    assert run_export(store, tmp_path, "npy") == 0
    found = json.loads((tmp_path / "export.json").read_text())
    assert found["rows"] == len(CURRENT) < ROWS
    assert found["classes"] == ["lake", "wood", "söhne"]
    assert found["tracks"]["boxes"] == {
        "row_shape": [2, 5], "dtype": "float32", "categories": ["lake"],
    }  # fmt: skip
    assert found["tracks"]["image"]["fingerprint"] == found["settings"]["fingerprint"]
    assert sorted(found["files"]) == sorted(path.name for path in tmp_path.glob(f"{GRID}-*"))


def library(name: str) -> Any:
    """A mark for tests of a format whose library is an extra."""
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"{name} is not installed")


@library("litdata")
def test_litdata_reads_every_row(store: Path, tmp_path: Path) -> None:
    from litdata import StreamingDataset

    assert run_export(store, tmp_path / "out", "litdata") == 0
    _check_streamed(StreamingDataset(str(tmp_path / "out")), store)


@library("streaming")
def test_mosaicml_reads_every_row(store: Path, tmp_path: Path) -> None:
    from streaming import LocalDataset

    assert run_export(store, tmp_path / "out", "mds") == 0
    _check_streamed(LocalDataset(str(tmp_path / "out")), store)


def _check_streamed(dataset: Any, store: Path) -> None:
    rows = expected(store)
    assert len(dataset) == len(rows)
    for position, row in enumerate(rows):
        sample = dataset[position]
        assert (sample["codes"] == row["codes"]).all()
        assert sample["codes"].dtype == row["codes"].dtype
        assert sample["key"] == row["key"]
        assert sample["label"] == (-1 if row["label"] is None else row["label"])
        assert np.array_equal(sample["track_boxes"], row["boxes"], equal_nan=True)


@pytest.mark.parametrize("to", ["litdata", "mds"])
def test_a_missing_library_is_named(
    store: Path,
    tmp_path: Path,
    to: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, FORMATS[to].library, None)
    assert run_export(store, tmp_path / "out", to) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"pip install 'smalti[{to}]'" in line
    assert not (tmp_path / "out").exists()


def test_tars_hold_nothing_of_time_or_owner(store: Path, tmp_path: Path) -> None:
    import tarfile

    assert run_export(store, tmp_path, "webdataset") == 0
    for name in SHARDS:
        data = io.BytesIO((tmp_path / f"{name}.tar").read_bytes())
        with tarfile.open(fileobj=data) as tar:
            facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar}
        assert facts == {(0, 0, 0, "", "", 0o644)}
