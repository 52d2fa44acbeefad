"""The encode command: whatever the input, the workers and the kills, one and the same store."""

from __future__ import annotations

import os
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
from pipelines import encode
from pipelines.store import CodeStore
from pipelines.store.commit import read_part
from tests.conftest import photograph
from tokenizer import load_tokenizer


class Run:
    """Calls the command with small settings that each test may replace."""

    def __init__(self, tokenizer: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.tokenizer, self.out, self.capsys = tokenizer, out, capsys
        self.printed = self.errors = ""

    def flags(self, images: Path, **changed: object) -> list[str]:
        flags = {
            "in": images,
            "out": self.out,
            "tokenizer": self.tokenizer,
            "image_size": 32,
            "batch_size": 4,
            "rows_per_task": 4,
            **changed,
        }
        pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in flags.items()]
        return [word for pair in pairs for word in pair]

    def __call__(self, images: Path, **changed: object) -> int:
        code = encode.main(self.flags(images, **changed))
        self.printed, self.errors = self.capsys.readouterr()
        return code

    def store(self) -> CodeStore:
        return CodeStore.open(self.out)


@pytest.fixture
def run(tiny_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(tiny_tokenizer, tmp_path / "codes.zarr", capsys)


def everything(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_codes_are_those_of_the_bare_tokenizer(run: Run, photographs: Path) -> None:
    assert run(photographs, batch_size=1) == 0
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


def test_plain_zarr_reads_what_the_store_reads(run: Run, photographs: Path) -> None:
    assert run(photographs) == 0
    store = run.store()
    for grid, count in store.grids.items():
        array = zarr.open(str(run.out), mode="r")[f"g{grid}/image"]
        assert array.shape[0] == count == 10
        np.testing.assert_array_equal(array[:], store.read(grid, store.ok_rows(grid)))


def test_a_second_run_does_nothing_and_says_so(run: Run, photographs: Path) -> None:
    assert run(photographs) == 0
    before = everything(run.out)
    times = {path: path.stat().st_mtime_ns for path in run.out.rglob("*") if path.is_file()}
    assert run(photographs, batch_size="auto", rows_per_task="auto") == 0
    assert "nothing to do" in run.printed
    assert everything(run.out) == before
    assert {p: p.stat().st_mtime_ns for p in run.out.rglob("*") if p.is_file()} == times


@pytest.mark.parametrize("changed", [{"batch_size": 4}, {"batch_size": 8, "rows_per_task": 8}])
def test_side_by_side_passes_change_no_byte(
    run: Run, photographs: Path, monkeypatch: pytest.MonkeyPatch, changed: dict
) -> None:
    stores = []
    for lanes in (1, 3):
        monkeypatch.setattr("pipelines.encode._lanes", lambda flags, threads, n=lanes: n)
        assert run(photographs, **changed) == 0
        stores.append(everything(run.out))
        shutil.rmtree(run.out)
    assert stores[0] == stores[1]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_actors_write_the_same_bytes_as_this_process(run: Run, photographs: Path) -> None:
    assert run(photographs) == 0
    alone = everything(run.out)
    shutil.rmtree(run.out)
    assert run(photographs, workers=2) == 0
    assert everything(run.out) == alone
    assert "10 encoded" in run.printed


def test_a_driver_killed_again_and_again_gives_the_same_bytes(run: Run, photographs: Path) -> None:
    assert run(photographs, rows_per_task=1) == 0
    undisturbed = everything(run.out)
    shutil.rmtree(run.out)
    command = [sys.executable, "-m", "pipelines.encode", *run.flags(photographs, rows_per_task=1)]
    for more in (1, 3):  # killed once so many parts are new, at any point of the next
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


def test_a_shard_committed_just_before_a_kill_is_published(run: Run, photographs: Path) -> None:
    assert run(photographs) == 0
    undisturbed = everything(run.out)
    shard = next(run.out.glob("g*/image/c/1/0/0"))
    _, shards = read_part(run.out, run.store()[0]["grid"], 1)
    shard.rename(run.out / "_staging" / shards["image"]["file"])
    (run.out / "_staging" / "left by a dead attempt").touch()
    (run.out / "zarr.json.1234.partial").touch()
    assert run(photographs) == 0
    assert everything(run.out) == undisturbed


def test_more_images_are_added_and_a_changed_one_replaced(
    run: Run, photographs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(photographs / "lake", folder)
    assert run(folder) == 0
    before = {row["key"]: row["codes"] for row in run.store()}
    Image.fromarray(photograph(50)).save(folder / "00 first by name.png")
    Image.fromarray(photograph(51, 40, 40)).save(folder / "01.jpg")
    assert run(folder) == 0
    assert "6 encoded, 0 failed" in run.printed
    store = run.store()
    after = {row["key"]: row["codes"] for row in store}
    assert len(store) == len(after) == 6
    for key in before:
        assert (after[key] == before[key]).all() == (key != "01.jpg")
    assert store[5]["width"] == 40
    array = zarr.open(str(run.out), mode="r")[f"g{store[0]['grid']}/image"]
    assert array.shape[0] == 10  # rows 0 to 4, the rest of their second task, 8 and 9
    assert (array[5:8] == 65535).all()


def bad_inputs(folder: Path) -> Path:
    """One of everything that people keep among their images."""
    folder.mkdir()
    picture = Image.fromarray(photograph(1))
    picture.save(folder / "good.jpg")
    data = (folder / "good.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("not an image at all")
    (folder / "notes.txt").write_text("words")
    (folder / "really a jpeg").write_bytes(data)
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64)).save(folder / "16bit.png")
    picture.convert("RGBA").quantize().save(folder / "palette.png", transparency=b"\x00\x80")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "rotated.jpg", exif=exif)
    picture.save(folder / "ünï\ncode.png")
    picture.resize((1, 1)).save(folder / "one.png")
    picture.resize((3000, 1)).save(folder / "line.png")
    frames = [Image.new("P", (20, 20), color) for color in (1, 2)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    Image.new("1", (12_000, 12_000)).save(folder / "bomb.tif", compression="group4")
    (folder / "link.png").symlink_to("nowhere.png")
    (folder / "loop").symlink_to(folder)
    return folder


def test_what_can_be_encoded_is_and_the_rest_is_listed(run: Run, tmp_path: Path) -> None:
    assert run(bad_inputs(tmp_path / "images")) == 0
    store = run.store()
    failed = dict(zip(*(store.failed[c].to_pylist() for c in ("key", "status")), strict=True))
    assert failed == {
        "bomb.tif": "too large",
        "empty.png": "empty",
        "link.png": "missing",
        "text.jpg": "not an image",
        "truncated.jpg": "truncated",
    }
    assert len(store) == 10
    assert "10 encoded, 5 failed, 2 skipped" in run.printed
    assert "failed: 'truncated.jpg': truncated: " in run.printed
    assert "skipped: 'loop': a link to a folder above it" in run.printed
    rotated = next(row for row in store if row["key"] == "rotated.jpg")
    assert (rotated["width"], rotated["height"]) == (48, 64)
    array = zarr.open(str(run.out), mode="r")[f"g{rotated['grid']}/image"]
    for row in store.failed["row"].to_pylist():
        assert (array[row] == 65535).all()


def test_too_many_bad_images_are_an_exit_code(run: Run, tmp_path: Path) -> None:
    folder = bad_inputs(tmp_path / "images")
    assert run(folder, max_bad=0.3) == 1
    assert "33% failed, more than --max-bad 0.3" in run.errors
    assert run(folder, max_bad=0.34) == 0


def test_long_lists_of_failures_are_cut(run: Run, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(25):
        (tmp_path / f"images/{number:02d}.jpg").touch()
    assert run(tmp_path / "images") == 1
    assert run.printed.count("failed: '") == 20
    assert "failed: 5 more: see the index" in run.printed


def test_native_images_fall_into_grids_by_shape(run: Run, tmp_path: Path) -> None:
    folder = bad_inputs(tmp_path / "images")
    Image.fromarray(photograph(3, 64, 48)).save(folder / "tall.png")
    assert run(folder, crop="native") == 0
    factor = load_tokenizer(run.tokenizer).config.downsample_factor
    short = 32 // factor
    long = round(32 * 64 / 48 / factor)
    store = run.store()
    grids = {row["key"]: row["grid"] for row in store}
    assert grids["good.jpg"] == f"{short}x{long}"
    assert grids["tall.png"] == grids["rotated.jpg"] == f"{long}x{short}"
    assert grids["one.png"] == f"{short}x{short}"
    assert grids["line.png"] == f"{short}x{4 * short}"
    assert len(store.failed) == 5
    assert sum(len(batch["codes"]) for batch in store.batches(3)) == len(store) == 11


def test_ten_crops_make_ten_rows_an_image(run: Run, photographs: Path) -> None:
    assert run(photographs, crop="ten") == 0
    store = run.store()
    assert len(store) == 100
    assert store.index["view"].to_pylist() == list(range(10)) * 10


def test_random_crops_follow_the_seed(run: Run, photographs: Path) -> None:
    codes = []
    for seed in (1, 1, 2):
        assert run(photographs, crop="random", seed=seed) == 0
        codes.append(np.stack([row["codes"] for row in run.store()]))
        shutil.rmtree(run.out)
    assert (codes[0] == codes[1]).all()
    assert (codes[0] != codes[2]).any()


def test_other_settings_on_a_store_are_refused_by_name(run: Run, photographs: Path) -> None:
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
        ({"image_size": 33}, "Image size 33 is no multiple"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"tokenizer": "nothing"}, "No tokenizer 'nothing'"),
        ({"address": "auto"}, "--address needs --workers"),
        ({"device": "cuda:99"}, "cuda:99"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_no_store(
    run: Run, photographs: Path, changed: dict, message: str
) -> None:
    assert run(photographs, **changed) == 2
    assert message in run.errors
    assert "Traceback" not in run.errors
    assert not list(run.out.rglob("zarr.json"))


def test_foreign_folders_are_left_alone(run: Run, photographs: Path, tmp_path: Path) -> None:
    assert run(photographs, out=photographs) == 2
    assert "holds other things" in run.errors
    (tmp_path / "file").touch()
    assert run(photographs, out=tmp_path / "file") == 2


def test_a_second_driver_is_refused(run: Run, photographs: Path) -> None:
    from ops.files import exclusive_lock

    with exclusive_lock(run.out / "_staging" / "driver.lock"):
        assert run(photographs) == 2
    assert "held by another process" in run.errors
    assert run(photographs) == 0


def test_the_store_keeps_its_tokenizer(run: Run, photographs: Path, tmp_path: Path) -> None:
    assert run(photographs) == 0
    store = CodeStore.open(shutil.move(run.out, tmp_path / "moved.zarr"))
    tokenizer = load_tokenizer(store.tokenizer_folder)
    assert tokenizer.fingerprint == store.provenance["image"]["fingerprint"]
    codes = next(store.batches(2))["codes"]
    assert tokenizer.decode(codes).shape == (2, 3, 32, 32)


def test_the_script_form_helps(tmp_path: Path) -> None:
    script = Path(encode.__file__)
    done = subprocess.run(
        [sys.executable, script, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "--max-bad" in done.stdout
    assert os.listdir(tmp_path) == []
