"""The metadata that zarr makes is that of stores written before, and our shards are as zarr's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.files import json_bytes, write_bytes
from pipelines.store import StoreAttributes, code_dtype, metadata_files, write_metadata
from pipelines.store.shards import decode_shard, shard_bytes
from pipelines.store.zarr_metadata import inner_rows
from tests.conftest import examples, made_up_provenance

BOXES = {"row_shape": [8, 5], "dtype": "float32"}


def attributes_of(compress: bool = False) -> StoreAttributes:
    return StoreAttributes(
        rows_per_task=1024,
        grids={"32x48": 1500},
        compress=compress,
        tracks={"image": made_up_provenance(), "boxes": BOXES},
    )


def array_document(
    shape: list[int], chunks: int, dtype: str, compressed: list[Any]
) -> dict[str, Any]:
    """An array's `zarr.json` as stores of format 3 have had it since they exist."""
    raw = {"name": "bytes", "configuration": {"endian": "little"}}
    numbers = dtype == "float32"
    sharding = {
        "chunk_shape": [chunks, *shape[1:]],
        "codecs": [raw, *compressed],
        "index_codecs": [raw, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1024, *shape[1:]]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if numbers else 65535,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {},
        "dimension_names": ["row", "item", "value"] if numbers else ["row", "y", "x"],
    }


def group_document(attributes: dict[str, Any], members: dict[str, Any]) -> dict[str, Any]:
    inline = {"kind": "inline", "must_understand": False, "metadata": members}
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": attributes,
        "consolidated_metadata": inline,
    }


def blosc(size: int) -> dict[str, Any]:
    settings = {"cname": "zstd", "clevel": 5, "shuffle": "bitshuffle", "typesize": size}
    return {"name": "blosc", "configuration": {**settings, "blocksize": 0}}


@pytest.mark.parametrize("compress", [False, True])
def test_metadata_says_what_that_of_older_stores_says(compress: bool) -> None:
    files = metadata_files(attributes_of(compress))
    rows = 256 if compress else 64
    arrays = {
        "boxes": array_document([1500, 8, 5], rows, "float32", [blosc(4)] * compress),
        "image": array_document([1500, 32, 48], rows, "uint16", [blosc(2)] * compress),
    }
    described = {
        "format": 3,
        "rows_per_task": 1024,
        "grids": {"32x48": 1500},
        "label_names": [],
        "compress": compress,
        "tracks": {"image": made_up_provenance(), "boxes": BOXES},
    }
    members = {"g32x48": group_document({}, {})}
    members |= {f"g32x48/{name}": array for name, array in arrays.items()}
    assert files == {
        **{f"g32x48/{name}/zarr.json": array for name, array in arrays.items()},
        "g32x48/zarr.json": group_document({}, arrays),
        "zarr.json": group_document({"smalti": described}, members),
    }
    assert list(files)[-1] == "zarr.json"  # where it is, the others are


def test_equal_metadata_in_another_layout_is_not_written_again(tmp_path: Path) -> None:
    write_metadata(tmp_path, attributes_of())
    paths = sorted(tmp_path.rglob("zarr.json"))
    for path in paths:  # keys in another order, as an earlier version wrote them
        write_bytes(path, json_bytes(dict(reversed(json.loads(path.read_text()).items()))))
    before = {path: path.read_bytes() for path in paths}
    write_metadata(tmp_path, attributes_of())
    assert {path: path.read_bytes() for path in paths} == before
    paths[0].write_text("{}")
    write_metadata(tmp_path, attributes_of())
    assert json.loads(paths[0].read_text()) == json.loads(before[paths[0]])


def zarr_array(root: Path, rows: int, rows_per_task: int, codes: np.ndarray, compress: bool) -> Any:
    """The array `image` of a new store for `rows` rows, opened by zarr to be written."""
    size = 16 if codes.dtype.itemsize == 2 else 1 << 17
    attributes = StoreAttributes(
        rows_per_task=rows_per_task,
        grids={f"{codes.shape[1]}x{codes.shape[2]}": rows},
        compress=compress,
        tracks={"image": made_up_provenance(size)},
    )
    write_metadata(root, attributes)
    return zarr.open_group(root)[f"g{codes.shape[1]}x{codes.shape[2]}/image"]


@settings(max_examples=examples(20))
@given(
    rows=st.integers(1, 40),
    rows_per_task=st.integers(1, 24),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.sampled_from([16, 1 << 17]),
    seed=st.integers(0, 99),
)
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_raw_shards_are_the_bytes_that_zarr_writes(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    rows_per_task: int,
    shape: tuple[int, int],
    size: int,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    codes = random.integers(0, size, (rows, *shape)).astype(code_dtype(size))
    root = tmp_path_factory.mktemp("store")
    array = zarr_array(root, rows, rows_per_task, codes, False)
    array[:] = codes
    for task, first in enumerate(range(0, rows, rows_per_task)):
        written = root / f"g{shape[0]}x{shape[1]}/image/c/{task}/0/0"
        ours = shard_bytes(codes[first : first + rows_per_task], rows_per_task)
        assert ours == written.read_bytes()


def test_zarr_reads_our_compressed_shards_and_we_read_those_of_zarr(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 16, (600, 2, 3)).astype("<u2")
    array = zarr_array(tmp_path, 600, 1024, codes, True)
    path = tmp_path / "g2x3/image/c/0/0/0"
    write_bytes(path, shard_bytes(codes, 1024, compress=True))
    assert (array[:] == codes).all()
    array[:] = codes[::-1]
    read = decode_shard(path.read_bytes(), 600, 1024, (2, 3), codes.dtype)
    assert (read == codes[::-1]).all()
    assert inner_rows(1024, True) == 256  # so that the shard has several chunks, the last missing
