"""Compressed stores: small, readable by plain zarr, deterministic, decompressed once."""

from __future__ import annotations

import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import blosc

from ops.paths import read_whole
from pipelines.store import CodeStore, StoreError, code_dtype, mapping
from pipelines.store.layout import shard_path
from pipelines.store.shards import decode_shard, shard_bytes
from pipelines.store.zarr_metadata import inner_rows
from tests.conftest import make_store


def uniform_codes(codebook_size: int, rows: int, side: int, seed: int = 0) -> np.ndarray:
    codes = np.random.default_rng(seed).integers(0, codebook_size, (rows, side, side))
    return codes.astype(code_dtype(codebook_size))


@pytest.mark.parametrize("side", [8, 16, 32])
@pytest.mark.parametrize("codebook_size", [256, 257, 1000, 1024, 8192, 15_360, 16_384, 65_535])
def test_uniform_codes_take_about_the_bits_they_need(codebook_size: int, side: int) -> None:
    for rows, rows_per_task in ((256, 256), (300, 300), (700, 4096), (300, 65_536)):
        codes = uniform_codes(codebook_size, rows, side)
        bits = 8 * len(shard_bytes(codes, rows_per_task, compress=True)) / codes.size
        assert bits <= 1.03 * math.ceil(math.log2(codebook_size))


@pytest.mark.parametrize("codebook_size", [16, 15_360, 100_000])
def test_plain_zarr_reads_a_compressed_store(tmp_path: Path, codebook_size: int) -> None:
    codes = uniform_codes(codebook_size, 700, 8)
    path = make_store(
        tmp_path / "codes.zarr",
        codes.copy(),
        codebook_size=codebook_size,
        rows_per_task=512,
        failed=(3, 699),
        compress=True,
    )
    array = zarr.open(str(path), mode="r")["g8x8/image"]
    store = CodeStore.open(path)
    rows = store.ok_rows("8x8")
    assert len(rows) == 698
    np.testing.assert_array_equal(array[:][rows], codes[rows])
    np.testing.assert_array_equal(store.read("8x8", rows[::-1]), codes[rows[::-1]])
    assert (array[3] == array.fill_value).all()


@given(
    rows_per_task=st.integers(1, 700),
    share=st.floats(0, 1),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    codebook_size=st.sampled_from([2, 3000, 70_000]),
)
def test_compressed_rows_are_read_back(
    rows_per_task: int, share: float, shape: tuple[int, int], codebook_size: int
) -> None:
    rows = max(1, round(share * rows_per_task))
    dtype = code_dtype(codebook_size)
    codes = np.random.default_rng(rows).integers(0, codebook_size, (rows, *shape)).astype(dtype)
    data = shard_bytes(codes, rows_per_task, compress=True)
    np.testing.assert_array_equal(decode_shard(data, rows, rows_per_task, shape, dtype), codes)
    assert rows_per_task % inner_rows(rows_per_task, True) == 0


def test_threads_change_no_byte() -> None:
    codes = uniform_codes(15_360, 4096, 16)
    before = blosc.get_nthreads()
    try:
        blosc.set_nthreads(1)
        expected = shard_bytes(codes, 65_536, compress=True)
        blosc.set_nthreads(8)
        with ThreadPoolExecutor(1) as elsewhere:
            assert elsewhere.submit(shard_bytes, codes, 65_536, True).result() == expected
        assert all(shard_bytes(codes, 65_536, compress=True) == expected for _ in range(5))
    finally:
        blosc.set_nthreads(before)
    # Blosc's threads write the blocks of a buffer in any order, so there must be only one.
    _, decoded, block = np.frombuffer(expected[:12], "<u4")
    assert block == decoded == codes.nbytes


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Four shards of 16 KiB each when decompressed."""
    codes = uniform_codes(1000, 512, 8)
    return make_store(
        tmp_path / "codes.zarr", codes, codebook_size=1000, rows_per_task=128, compress=True
    )


def test_decompressed_shards_are_kept_up_to_a_limit(archive: Path, monkeypatch) -> None:
    read: list[Path] = []

    def counting(path: Path, *, follow: bool) -> bytes:
        read.append(path)
        return read_whole(path, follow=follow)

    store = CodeStore.open(archive, decoded_bytes=40_000)
    monkeypatch.setattr(mapping, "read_whole", counting)
    for row in (0, 1, 130, 2, 131, 260, 3, 132):
        store.read("8x8", np.array([row]))
    shards = [shard_path(archive, "8x8", "image", task) for task in (0, 1, 2, 0, 1)]
    assert read == shards  # 2 evicts 0, the oldest; then 1 is the oldest


def test_a_shard_larger_than_the_limit_is_read(archive: Path) -> None:
    store = CodeStore.open(archive, decoded_bytes=1)
    codes = uniform_codes(1000, 512, 8)
    np.testing.assert_array_equal(store.read("8x8", np.arange(512)), codes)
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.read("8x8", np.array([500, 2])), codes[[500, 2]])


def test_a_compressed_shard_that_does_not_decode_is_an_error(archive: Path) -> None:
    path = shard_path(archive, "8x8", "image", 1)
    whole = path.read_bytes()
    refusals: list[str] = []
    for place in [*range(16), *range(16, len(whole), 97), *range(len(whole) - 20, len(whole))]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        store = CodeStore.open(archive)
        try:
            store.read("8x8", np.arange(128, 256))
        except StoreError as error:
            refusals.append(str(error))
    # Blosc has no checksum: a flipped bit in the codes is found by verify only, unless it gives a
    # code beyond the codebook.
    undecodable = f"{path}: rows 0 to 127 of this shard cannot be decoded. Run verify."
    assert refusals.count(undecodable) > 20
    others = [refusal for refusal in refusals if refusal != undecodable]
    assert all("but its tokenizer has" in refusal for refusal in others)


def test_a_missing_or_short_compressed_shard_is_an_error(archive: Path) -> None:
    path = shard_path(archive, "8x8", "image", 2)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match="expected"):
        CodeStore.open(archive)
    path.unlink()
    with pytest.raises(StoreError, match="missing"):
        CodeStore.open(archive)
