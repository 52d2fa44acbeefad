"""Verify names every flipped bit, truncated and missing file with its rows, and doing what it says
restores the store."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import encode, verify
from tests.conftest import photograph
from tests.encode_run import EncodeRun, everything

FLIPS = 4  # flipped bytes a file, besides its first and its last
Report = Callable[..., str]


@pytest.fixture(scope="module", params=["raw", "compressed"])
def made(
    request: pytest.FixtureRequest,
    photographs: Path,
    tiny_tokenizer: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path, str]:
    """A store with two plan parts, a failed and a pruned image; its images; raw or compressed."""
    folder = tmp_path_factory.mktemp("verify")
    images = Path(shutil.copytree(photographs, folder / "images"))
    (images / "lake").rename(images / "gone")
    (images / "wood" / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    flags = ["--in", images, "--out", folder / "codes.zarr", "--tokenizer", tiny_tokenizer]
    flags += ["--image-size", 16, "--batch-size", 4, "--rows-per-task", 4]
    flags += ["--compress"] if request.param == "compressed" else []
    assert encode.main([str(flag) for flag in flags]) == 0
    (images / "gone" / "zarr.json").touch()  # no longer listed, but still readable
    Image.fromarray(photograph(77)).save(images / "wood" / "77.png")
    assert encode.main([str(flag) for flag in [*flags, "--prune"]]) == 0
    return folder / "codes.zarr", images, request.param


@pytest.fixture
def store(made: tuple[Path, Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "codes.zarr"))


@pytest.fixture
def encode_again(made: tuple[Path, Path, str], store: Path, tiny_tokenizer: Path, capsys) -> Report:
    """Run the store's encode command again; what it printed."""

    def again() -> str:
        run = EncodeRun(tiny_tokenizer, store, capsys)
        changed = {"compress": True} if made[2] == "compressed" else {}
        assert run(made[1], image_size=16, **changed) == 0
        return run.printed

    return again


@pytest.fixture
def report(store: Path, capsys: pytest.CaptureFixture[str]) -> Report:
    """Verify the store and check the exit code; what was printed."""

    def verified(code: int = 1) -> str:
        capsys.readouterr()
        assert verify.main([str(store)]) == code
        return capsys.readouterr().out

    return verified


def flip(path: Path, place: int, bit: int = 2) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def shard(store: Path, task: int) -> Path:
    return next(store.glob(f"g*/image/c/{task}/0/0"))


def part(store: Path, task: int) -> Path:
    return next(store.glob(f"_index/*/{task}.parquet"))


def files(store: Path) -> list[Path]:
    """Every file of the store but the driver's lock and the flags of the last command."""
    found = sorted(path for path in store.rglob("*") if path.is_file())
    return [path for path in found if path.name not in ("driver.lock", "settings.yaml")]


def rows_of(path: Path) -> str:
    """The rows of a shard or an index part, as verify prints them."""
    task = int(path.parts[-3] if path.name == "0" else path.stem)
    return {0: "rows 0 to 3", 1: "rows 4 to 7", 2: "rows 8 to 10", 3: "row 12"}[task]


def is_of_task(path: Path) -> bool:
    return path.name == "0" or "_index" in path.parts


def test_intact_store_passes(store: Path, report: Report) -> None:
    assert len(files(store)) == 2 + 1 + 2 + 4 + 4 + 3 + 1
    assert "12 rows in 4 shards, no problems" in report(0)


def test_flipped_bit_in_any_file_is_reported(store: Path, report: Report) -> None:
    random = np.random.default_rng(0)
    for path in files(store):
        whole = path.read_bytes()
        for place in {0, len(whole) - 1, *random.integers(0, len(whole), FLIPS)}:
            flip(path, place, int(random.integers(8)))
            printed = report()
            assert f"{path}: " in printed, (path, place)
            if is_of_task(path):
                assert re.search(rf"{re.escape(str(path))}: .*\brows? \d", printed), (path, place)
            path.write_bytes(whole)
    report(0)


def test_truncation_of_any_file_is_reported(store: Path, report: Report) -> None:
    random = np.random.default_rng(0)
    for path in files(store):
        whole = path.read_bytes()
        for length in {0, len(whole) - 1, *random.integers(0, len(whole), 2)}:
            path.write_bytes(whole[:length])
            printed = report()
            assert f"{path}: " in printed, (path, length)
            if is_of_task(path):
                assert re.search(rf"{re.escape(str(path))}: .*\brows? \d", printed), (path, length)
        path.write_bytes(whole)
    report(0)


def test_missing_file_is_reported(store: Path, report: Report) -> None:
    for path in files(store):
        whole = path.read_bytes()
        path.unlink()
        printed = report()
        assert f"{path}: " in printed
        if is_of_task(path):
            assert f"{path}: missing, {rows_of(path)}." in printed
        path.write_bytes(whole)
    report(0)


def test_unreadable_file_is_reported(store: Path, report: Report) -> None:
    for path in (shard(store, 1), part(store, 2)):
        path.unlink()
        path.mkdir()
    printed = report()
    assert f"{shard(store, 1)}: not a regular file, rows 4 to 7." in printed
    assert f"{part(store, 2)}: not a regular file, rows 8 to 10." in printed
    assert "2 problems in 12 rows" in printed


def test_corruption_is_traced_to_its_rows(made, store: Path, report: Report) -> None:
    row_bytes = shard(store, 0).stat().st_size // 6
    if made[2] == "raw":
        row_bytes = 2 * int(np.prod([int(n) for n in part(store, 0).parent.name.split("x")]))
    flip(shard(store, 1), 2 * row_bytes + 5)
    flip(shard(store, 2), row_bytes)
    flip(shard(store, 2), 3 * row_bytes - 1)
    flip(shard(store, 3), -1)
    printed = report()
    if made[2] == "raw":
        assert f"{shard(store, 1)}: corrupt in row 6. If its" in printed
        assert f"{shard(store, 2)}: corrupt in rows 9 to 10. If its" in printed
        assert f"{shard(store, 3)}: corrupt outside its row 12, in the part" in printed
    else:  # the rows are one block; the flipped bit is in the chunk index behind it
        assert f"{shard(store, 3)}: corrupt in row 12. If its" in printed
    assert "3 problems in 12 rows" in printed


def follow_advice(store: Path, printed: str, encode_again: Report) -> None:
    """Do what each line that verify printed says."""
    to_remove: set[Path] = set()
    for line in printed.splitlines()[:-1]:
        if found := re.search(r"(\S+): corrupt\. Remove it and run encode again", line):
            to_remove.add(Path(found[1]))
        elif found := re.search(r"[Rr]emove (?:the folder )?(\S+) and run encode", line):
            to_remove.add(store / found[1])
        else:
            assert "Run encode again" in line
    for path in to_remove:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    encode_again()


def corrupt(path: Path, how: str) -> None:
    if how == "remove":
        path.unlink()
    elif how == "truncate":
        os.truncate(path, path.stat().st_size // 2)
    else:
        flip(path, path.stat().st_size // 2)


def restorable_files(store: Path) -> list[Path]:
    """Files that encode can make again."""
    return [path for path in files(store) if not {"_plan", "_tombstones"} & set(path.parts)]


def test_advice_restores_any_file(store: Path, report: Report, encode_again: Report) -> None:
    before = everything(store)
    for path in restorable_files(store):
        corrupt(path, "flip")
        follow_advice(store, report(), encode_again)
        report(0)
        assert everything(store) == before, path


@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
def test_advice_restores_all_files_at_once(
    store: Path, report: Report, encode_again: Report, how: str
) -> None:
    before = everything(store)
    intact, first = part(store, 0), shard(store, 0)  # a shard is checked if its part is intact
    for path in restorable_files(store):
        if path != intact and path.name != "_checksums.json":
            corrupt(path, how)
    printed = report()
    assert f"{first}: " in printed
    follow_advice(store, printed, encode_again)
    report(0)
    assert everything(store) == before


@pytest.mark.parametrize("name", ["_plan/1.parquet", "_tombstones/0.parquet"])
def test_lost_plan_or_tombstones_must_be_restored_from_a_copy(
    store: Path, report: Report, made, tiny_tokenizer: Path, capsys, name: str
) -> None:
    (store / name).unlink()
    assert f"{store / name}: missing. Restore it from a copy" in report()
    before = everything(store)
    run = EncodeRun(tiny_tokenizer, store, capsys)
    changed = {"compress": True} if made[2] == "compressed" else {}
    assert run(made[1], image_size=16, **changed) == 2
    assert f"{store / name}: missing. Restore it from a copy" in run.errors
    assert everything(store) == before


def test_unfinished_run_is_reported(store: Path, report: Report, encode_again: Report) -> None:
    before = everything(store)
    checksums = store / "_checksums.json"
    checksums.unlink()
    assert f"{checksums}: missing: the run has not finished. Run encode again." in report()
    for task in (1, 3):
        part(store, task).unlink()
    printed = report()
    assert "2 of 4 tasks, 5 rows, are not encoded yet: the run has not finished" in printed
    assert "1 problem in 12 rows" in printed
    encode_again()
    report(0)
    assert everything(store) == before


def test_staged_shard_is_reported_as_not_published(
    store: Path, report: Report, encode_again: Report
) -> None:
    from pipelines.store.commit import read_part
    from pipelines.store.layout import staging_path

    before = everything(store)
    name = read_part(store, part(store, 1).parent.name, 1)[1]["image"]["file"]
    shard(store, 1).rename(staging_path(store) / name)
    path = store / f"g{part(store, 1).parent.name}/image/c/1/0/0"
    assert f"{path}: not published yet, rows 4 to 7. Run encode again." in report()
    encode_again()
    report(0)
    assert everything(store) == before


def test_index_part_of_other_rows_is_found_without_checksums(store: Path, report: Report) -> None:
    (store / "_checksums.json").unlink()
    shutil.copyfile(part(store, 0), part(store, 1))
    shutil.copyfile(part(store, 0), part(store, 0).with_name("9.parquet"))
    printed = report()
    assert f"{part(store, 1)}: corrupt index part (it names another file" in printed
    assert "It lists rows 4 to 7. If its images" in printed
    assert f"{part(store, 9)}: no plan lists this part" in printed


def test_metadata_in_plan_and_index_has_its_own_hash(store: Path, report: Report) -> None:
    (store / "_checksums.json").unlink()
    for path, right, wrong in (
        (part(store, 1), b'"bytes": ', b'"bytes": 1'),
        (store / "_plan/1.parquet", b'"batch_size": 4', b'"batch_size": 5'),
    ):
        table = pq.read_table(path)
        metadata = table.schema.metadata[b"smalti"]
        assert right in metadata
        pq.write_table(
            table.replace_schema_metadata({"smalti": metadata.replace(right, wrong)}), path
        )
        assert f"{path}: corrupt" in report()
        pq.write_table(table, path)


def test_other_tokenizer_is_found_without_checksums(
    store: Path, report: Report, tmp_path: Path
) -> None:
    from tokenizer import build_tokenizer, save_tokenizer

    (store / "_checksums.json").unlink()
    shutil.rmtree(store / "_tokenizer/image")
    save_tokenizer(store / "_tokenizer/image", build_tokenizer("tiny", seed=1))
    assert "_tokenizer/image: not the tokenizer that made the codes" in report()


def test_folder_without_a_store_is_an_error(tmp_path: Path, capsys) -> None:
    assert verify.main([str(tmp_path)]) == 2
    assert "not a code store" in capsys.readouterr().err
