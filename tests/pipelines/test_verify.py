"""Whatever is flipped, cut or taken away in a store, verify names it and its rows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines import encode, verify


@pytest.fixture(scope="module")
def whole_store(
    photographs: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("verify") / "codes.zarr"
    flags = ["--in", photographs, "--out", out, "--tokenizer", tiny_tokenizer]
    flags += ["--image-size", 16, "--rows-per-task", 4]
    assert encode.main([str(flag) for flag in flags]) == 0
    return out


@pytest.fixture
def store(whole_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole_store, tmp_path / "codes.zarr"))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def shard(store: Path, task: int) -> Path:
    return next(store.glob(f"g*/image/c/{task}/0/0"))


def row_bytes(store: Path) -> int:
    rows, columns = next(store.glob("g*")).name[1:].split("x")
    return int(rows) * int(columns) * 2


def report(store: Path, capsys: pytest.CaptureFixture[str], code: int = 1) -> str:
    capsys.readouterr()
    assert verify.main([str(store)]) == code
    return capsys.readouterr().out


def test_a_whole_store_passes(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "10 rows in 3 shards, all as they should be" in report(store, capsys, 0)


def test_a_flipped_bit_is_traced_to_its_row(store: Path, capsys) -> None:
    flip(shard(store, 1), 2 * row_bytes(store) + 5)
    flip(shard(store, 1), 3 * row_bytes(store) - 1)
    flip(shard(store, 2), row_bytes(store))
    printed = report(store, capsys)
    assert f"{shard(store, 1)}: damaged in rows 6\n" in printed
    assert f"{shard(store, 2)}: damaged in rows 9\n" in printed
    assert "2 problems in 10 rows" in printed


def test_a_flipped_bit_behind_the_rows_is_found(store: Path, capsys) -> None:
    flip(shard(store, 0), -1)
    assert f"{shard(store, 0)}: damaged behind its rows" in report(store, capsys)


def test_a_cut_shard_loses_its_last_rows(store: Path, capsys) -> None:
    path = shard(store, 0)
    path.write_bytes(path.read_bytes()[: row_bytes(store) + 1])
    assert f"{path}: damaged in rows 1 to 3" in report(store, capsys)


def test_missing_files_are_named_with_their_rows(store: Path, capsys) -> None:
    shard(store, 0).unlink()
    part = next(store.glob("_index/*/1.parquet"))
    part.unlink()
    printed = report(store, capsys)
    assert "c/0/0/0: missing, rows 0 to 3" in printed
    assert f"{part}: missing, rows 4 to 7" in printed


def test_a_damaged_index_part_or_plan_is_found(store: Path, capsys) -> None:
    part = next(store.glob("_index/*/2.parquet"))
    flip(part, 60)
    assert f"{part}: damaged index part" in report(store, capsys)


def test_an_index_part_of_other_rows_is_found(store: Path, capsys) -> None:
    parts = sorted(store.glob("_index/*/*.parquet"))
    shutil.copyfile(parts[0], parts[1])
    printed = report(store, capsys)
    assert f"{parts[1]}: rows 4 to 7 are not those of the plan" in printed


def test_changed_metadata_and_tokenizers_are_found(store: Path, capsys) -> None:
    metadata = next(store.glob("g*/image/zarr.json"))
    metadata.write_text(metadata.read_text().replace("uint16", "uint32"))
    flip(store / "_tokenizer/image/model.safetensors", -100)
    flip(store / "_tokenizer/image/config.json", 0)
    printed = report(store, capsys)
    assert f"{metadata}: not what the plan says" in printed
    assert "_tokenizer/image" in printed


def test_a_folder_without_a_store_is_a_users_mistake(tmp_path: Path, capsys) -> None:
    assert verify.main([str(tmp_path)]) == 2
    assert "not a code store" in capsys.readouterr().err
