"""The encode command gives the same store whatever the workers and the kills."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image

from ops.images import Transform, to_pixels
from pipelines.store import CodeStore
from pipelines.store.commit import read_part
from tests.conftest import photograph
from tests.encode_run import EncodeRun, everything, file_times
from tokenizer import load_tokenizer


def test_codes_are_those_of_the_bare_tokenizer(run: EncodeRun, photographs: Path) -> None:
    assert run(photographs, batch_size=1, labels="first") == 0
    assert "10 encoded, 0 failed, 0 skipped, " in run.printed
    assert run.printed.rstrip().endswith("images/s")
    tokenizer = load_tokenizer(run.tokenizer)
    grid = f"{32 // tokenizer.config.downsample_factor}x" * 2
    store = run.store()
    assert store.grids == {grid[:-1]: 10}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for row in store:
        data = (photographs / row["key"]).read_bytes()
        image = Transform(image_size=32).read(data, (32, 32)).image
        expected = tokenizer.encode(to_pixels(image))[0].numpy()
        np.testing.assert_array_equal(row["codes"], expected)
        assert (row["width"], row["height"]) == (64, 48)
        assert store.label_names[row["label"]] == row["key"].split("/")[0]
    torch.set_num_threads(threads)
    assert store.label_names == ["lake", "wood"]


def test_plain_zarr_reads_what_the_store_reads(run: EncodeRun, photographs: Path) -> None:
    assert run(photographs) == 0
    store = run.store()
    for grid, count in store.grids.items():
        array = zarr.open(str(run.out), mode="r")[f"g{grid}/image"]
        assert array.shape[0] == count == 10
        np.testing.assert_array_equal(array[:], store.read(grid, store.ok_rows(grid)))


def test_a_second_run_does_nothing(run: EncodeRun, photographs: Path) -> None:
    assert run(photographs) == 0
    before = everything(run.out)
    times = file_times(run.out)
    assert run(photographs, batch_size="auto", rows_per_task="auto") == 0
    assert "nothing to do" in run.printed
    assert everything(run.out) == before
    assert file_times(run.out) == times


def test_profiles_that_cannot_be_used_are_counted_and_named(run: EncodeRun, tmp_path: Path) -> None:
    image = Image.fromarray(photograph(0))
    (tmp_path / "in").mkdir()
    for name, profile in (("a", None), ("b", b"no profile"), ("c", b"nor this")):
        image.save(tmp_path / "in" / f"{name}.png", icc_profile=profile)
    assert run(tmp_path / "in") == 0
    note = "its colour profile is for '' and not for RGB: read as sRGB"
    assert f"note: 2 encoded, but {note}" in run.printed
    index = run.store().index
    assert index["status"].to_pylist() == ["ok"] * 3
    assert index["error"].to_pylist() == [None, note, note]
    assert len(set(index["checksum"].to_pylist())) == 1


@pytest.mark.parametrize("changed", [{"batch_size": 4}, {"batch_size": 8, "rows_per_task": 8}])
def test_concurrent_batches_change_no_byte(
    run: EncodeRun, photographs: Path, monkeypatch: pytest.MonkeyPatch, changed: dict
) -> None:
    stores = []
    for count in (1, 3):
        monkeypatch.setattr(
            "pipelines.encoding.job._concurrent_batches", lambda cpus, threads, n=count: n
        )
        assert run(photographs, **changed) == 0
        stores.append(everything(run.out))
        shutil.rmtree(run.out)
    assert stores[0] == stores[1]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_actors_write_the_same_bytes_as_this_process(run: EncodeRun, photographs: Path) -> None:
    assert run(photographs) == 0
    alone = everything(run.out)
    shutil.rmtree(run.out)
    assert run(photographs, workers=2) == 0
    assert everything(run.out) == alone
    assert "10 encoded" in run.printed


def test_a_driver_killed_again_and_again_gives_the_same_bytes(
    run: EncodeRun, photographs: Path
) -> None:
    assert run(photographs, rows_per_task=1) == 0
    undisturbed = everything(run.out)
    shutil.rmtree(run.out)
    command = [sys.executable, "-m", "pipelines.encode", *run.flags(photographs, rows_per_task=1)]
    for more in (1, 3):  # killed after so many new parts, anywhere in the next task
        parts = len(list(run.out.glob("_index/*/*.parquet"))) + more
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(list(run.out.glob("_index/*/*.parquet"))) < parts and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert run(photographs, rows_per_task=1) == 0
    assert everything(run.out) == undisturbed


def test_a_shard_committed_just_before_a_kill_is_published(
    run: EncodeRun, photographs: Path
) -> None:
    assert run(photographs) == 0
    undisturbed = everything(run.out)
    shard = next(run.out.glob("g*/image/c/1/0/0"))
    _, shards = read_part(run.out, run.store()[0]["grid"], 1)
    shard.rename(run.out / "_staging" / shards["image"]["file"])
    (run.out / "_staging" / "left by a dead attempt").touch()
    (run.out / "zarr.json.1234.partial").touch()
    assert run(photographs) == 0
    assert everything(run.out) == undisturbed


def test_other_settings_than_the_stores_are_refused_by_name(
    run: EncodeRun, photographs: Path
) -> None:
    assert run(photographs) == 0
    before = everything(run.out)
    assert run(photographs, image_size=64, crop="ten", threads=2) == 2
    assert "--image-size (the store has 32, asked for 64)" in run.errors
    assert "--crop (the store has center, asked for ten)" in run.errors
    assert "--threads (the store has 1, asked for 2)" in run.errors
    assert everything(run.out) == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"in": "/nowhere"}, "/nowhere does not exist"),
        ({"image_size": 33}, "Image size 33 is not a multiple"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"tokenizer": "nothing"}, "No tokenizer 'nothing'"),
        ({"address": "auto"}, "--address needs --workers"),
        ({"device": "cuda:99"}, "cuda:99"),
    ],
)
def test_user_errors_end_in_one_line_and_leave_no_store(
    run: EncodeRun, photographs: Path, changed: dict, message: str
) -> None:
    assert run(photographs, **changed) == 2
    assert message in run.errors
    assert "Traceback" not in run.errors
    assert not list(run.out.rglob("zarr.json"))


def test_foreign_folders_are_left_alone(run: EncodeRun, photographs: Path, tmp_path: Path) -> None:
    assert run(photographs, out=photographs) == 2
    assert "has other files in it" in run.errors
    (tmp_path / "file").touch()
    assert run(photographs, out=tmp_path / "file") == 2


def test_a_second_driver_is_refused(run: EncodeRun, photographs: Path) -> None:
    from ops.files import exclusive_lock

    with exclusive_lock(run.out / "_staging" / "driver.lock"):
        assert run(photographs) == 2
    assert "held by another process" in run.errors
    assert run(photographs) == 0


def test_the_store_keeps_its_tokenizer(run: EncodeRun, photographs: Path, tmp_path: Path) -> None:
    assert run(photographs) == 0
    store = CodeStore.open(shutil.move(run.out, tmp_path / "moved.zarr"))
    tokenizer = load_tokenizer(store.tokenizer_folder)
    assert tokenizer.fingerprint == store.provenance["image"]["fingerprint"]
    codes = next(store.batches(2))["codes"]
    assert tokenizer.decode(codes).shape == (2, 3, 32, 32)
