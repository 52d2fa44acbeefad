"""Extending a store: new, changed and removed images; views, labels and archives."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from tests.conftest import photograph
from tests.encode_run import EncodeRun, everything


@pytest.fixture
def folder(photographs: Path, tmp_path: Path) -> Path:
    """A copy of five photographs, 01.jpg to 09.png, that a test may change."""
    return Path(shutil.copytree(photographs / "lake", tmp_path / "images"))


def codes_by_key(run: EncodeRun) -> dict[str, np.ndarray]:
    return {row["key"]: row["codes"] for row in run.store()}


def put(path: Path, seed: int, *size: int) -> None:
    Image.fromarray(photograph(seed, *size)).save(path)


def test_more_images_are_added_and_a_changed_one_replaced(run: EncodeRun, folder: Path) -> None:
    assert run(folder) == 0
    before = codes_by_key(run)
    put(folder / "00 first by name.png", 50)
    put(folder / "01.jpg", 51, 40, 40)
    assert run(folder) == 0
    assert "6 encoded, 0 failed" in run.printed
    store = run.store()
    after = codes_by_key(run)
    assert len(store) == len(after) == 6
    for key in before:
        assert (after[key] == before[key]).all() == (key != "01.jpg")
    assert store[5]["width"] == 40
    assert store[5]["replaces"] == f"{store[5]['grid']}/0"
    array = zarr.open(str(run.out), mode="r")[f"g{store[0]['grid']}/image"]
    assert array.shape[0] == 10  # rows 0 to 4, the rest of their second task, 8 and 9
    assert (array[5:8] == 65535).all()


def test_a_later_listing_moves_no_row_and_no_byte(run: EncodeRun, folder: Path) -> None:
    assert run(folder) == 0
    before = everything(run.out)
    put(folder / "00 first by name.png", 50)
    assert run(folder) == 0
    after = everything(run.out)
    kept = [name for name in before if "/c/" in name or name.startswith(("_plan", "_index"))]
    assert len(kept) == 5  # two shards, their index parts, a plan
    for name in kept:
        assert after[name] == before[name], name


def test_an_image_that_becomes_readable_leaves_the_failed_ones(
    run: EncodeRun, folder: Path
) -> None:
    good = (folder / "03.jpg").read_bytes()
    (folder / "03.jpg").write_bytes(good[:300])
    assert run(folder) == 0
    assert "4 encoded, 1 failed" in run.printed
    (folder / "03.jpg").write_bytes(good)
    assert run(folder) == 0
    assert "5 encoded, 0 failed" in run.printed


def test_an_image_that_was_broken_for_a_while_has_one_row(run: EncodeRun, folder: Path) -> None:
    assert run(folder) == 0
    (folder / "01.jpg").write_bytes(b"broken")
    assert run(folder) == 0
    assert len(run.store()) == len(codes_by_key(run)) == 5  # still the older content
    put(folder / "01.jpg", 51)
    assert run(folder) == 0
    assert len(run.store()) == len(codes_by_key(run)) == 5
    assert not len(run.store().failed)


def test_a_touched_file_is_the_same_by_content(run: EncodeRun, folder: Path) -> None:
    assert run(folder) == 0
    os.utime(folder / "01.jpg", (1, 1))
    before = everything(run.out)
    assert run(folder, by_content=True) == 0
    assert "nothing to do; 5 encoded" in run.printed
    assert everything(run.out) == before
    assert run(folder) == 0  # by size and time it has changed
    assert "5 encoded" in run.printed
    assert "nothing to do" not in run.printed


def test_a_file_changed_without_size_and_time_is_found_by_content(
    run: EncodeRun, folder: Path
) -> None:
    for name in ("10.bmp", "11.bmp"):
        put(folder / name, 1)
    assert run(folder) == 0
    before = codes_by_key(run)
    times = (folder / "10.bmp").stat()
    put(folder / "10.bmp", 2)  # as many bytes as before
    os.utime(folder / "10.bmp", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert run(folder) == 0
    assert "nothing to do" in run.printed
    assert run(folder, by_content=True) == 0
    after = codes_by_key(run)
    assert after.keys() == before.keys()
    changed = [key for key in before if (after[key] != before[key]).any()]
    assert changed == ["10.bmp"]


def test_removed_images_stay_until_they_are_pruned(run: EncodeRun, folder: Path) -> None:
    assert run(folder) == 0
    (folder / "03.jpg").unlink()
    assert run(folder) == 0
    assert "5 encoded" in run.printed
    assert run(folder, prune=True) == 0
    assert "4 encoded" in run.printed
    assert "03.jpg" not in codes_by_key(run)
    before = everything(run.out)
    assert run(folder, prune=True) == 0
    assert everything(run.out) == before
    put(folder / "03.jpg", 60)
    assert run(folder) == 0
    assert "5 encoded" in run.printed
    assert run.store()[4]["replaces"] is None


def test_nothing_is_pruned_while_a_folder_cannot_be_read(
    run: EncodeRun, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "closed").mkdir()
    put(folder / "closed" / "a.png", 7)
    assert run(folder) == 0
    scandir = os.scandir

    def closed(path: Path | str | int) -> object:
        if not isinstance(path, int) and Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", closed)
        assert run(folder, prune=True) == 2
    assert "'closed' cannot be read now" in run.errors
    assert run(folder, prune=True) == 0
    assert "6 encoded" in run.printed


def test_failed_images_are_tried_again_on_request(
    run: EncodeRun, folder: Path, tmp_path: Path
) -> None:
    put(folder / "late.png", 8)
    (folder / "late.png").rename(tmp_path / "late.png")
    (folder / "late.png").symlink_to(tmp_path / "late.png")
    (tmp_path / "late.png").rename(tmp_path / "away.png")
    (folder / "never.jpg").write_bytes(b"no image")
    assert run(folder) == 0
    assert "5 encoded, 2 failed" in run.printed
    before = run.store().index.num_rows
    assert run(folder, retry_failed=True) == 0
    assert "5 encoded, 2 failed" in run.printed
    assert run.store().index.num_rows == before + 2
    assert run(folder) == 0
    assert "nothing to do; 5 encoded, 2 failed" in run.printed


def test_ten_crops_make_ten_rows_an_image(run: EncodeRun, photographs: Path) -> None:
    assert run(photographs, crop="ten") == 0
    store = run.store()
    assert len(store) == 100
    assert store.index["view"].to_pylist() == list(range(10)) * 10


def test_flipped_views_are_the_codes_of_flipped_images(
    run: EncodeRun, folder: Path, tmp_path: Path
) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    put(folder / "a.png", 5)
    assert run(folder, flip="both", batch_size=1) == 0
    plain, mirrored = (row["codes"] for row in run.store())
    assert run.store().index["view"].to_pylist() == [0, 1]
    Image.open(folder / "a.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "a.png")
    run.out = tmp_path / "other.zarr"
    assert run(folder, flip="both", batch_size=1) == 0
    of_mirrored = [row["codes"] for row in run.store()]
    assert (of_mirrored[0] == mirrored).all()
    assert (of_mirrored[1] == plain).all()
    assert (plain != mirrored).any()


def test_flips_of_ten_crops_are_refused(run: EncodeRun, folder: Path) -> None:
    assert run(folder, flip="both", crop="ten") == 2
    assert "ten" in run.errors
    assert "mirror" in run.errors


def test_random_crops_follow_the_seed(run: EncodeRun, photographs: Path) -> None:
    codes = []
    for seed in (1, 1, 2):
        assert run(photographs, crop="random", seed=seed) == 0
        codes.append(np.stack([row["codes"] for row in run.store()]))
        shutil.rmtree(run.out)
    assert (codes[0] == codes[1]).all()
    assert (codes[0] != codes[2]).any()


def test_random_crops_do_not_depend_on_other_images(
    run: EncodeRun, photographs: Path, folder: Path, tmp_path: Path
) -> None:
    assert run(photographs / "lake", crop="random") == 0
    among_five = codes_by_key(run)
    (folder / "01.jpg").unlink()
    run.out = tmp_path / "four.zarr"
    assert run(folder, crop="random") == 0
    for key, codes in codes_by_key(run).items():
        assert (codes == among_five[key]).all()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("none", {"a.png": None, "one/b.png": None, "one/deep/c.png": None}),
        ("first", {"a.png": None, "one/b.png": "one", "one/deep/c.png": "one"}),
        ("last", {"a.png": None, "one/b.png": "one", "one/deep/c.png": "one/deep"}),
    ],
)
def test_folders_are_labels_on_request(
    run: EncodeRun, tmp_path: Path, labels: str, expected: dict
) -> None:
    for seed, key in enumerate(expected):
        path = tmp_path / "images" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        put(path, seed)
    assert run(tmp_path / "images", labels=labels) == 0
    store = run.store()
    names = [*store.label_names, None]
    found = {row["key"]: names[-1 if row["label"] is None else row["label"]] for row in store}
    assert found == expected


def test_later_labels_follow_the_first(run: EncodeRun, tmp_path: Path) -> None:
    images = tmp_path / "images"
    for name in ("m/1.png", "a/2.png"):
        (images / name).parent.mkdir(parents=True)
        put(images / name, 1)
        assert run(images, labels="first") == 0
    store = run.store()
    assert store.label_names == ["m", "a"]
    assert [(row["key"], row["label"]) for row in store] == [("m/1.png", 0), ("a/2.png", 1)]


def test_a_compressed_store_has_the_same_codes_in_fewer_bytes(
    run: EncodeRun, photographs: Path, tmp_path: Path
) -> None:
    flags = {"rows_per_task": 512, "crop": "ten", "image_size": 64}
    assert run(photographs, **flags) == 0
    raw = run.store()
    run.out = tmp_path / "archive.zarr"
    assert run(photographs, compress=True, **flags) == 0
    archive = run.store()
    for one, other in zip(raw, archive, strict=True):
        assert (one["codes"] == other["codes"]).all()
    grid = raw[0]["grid"]
    array = zarr.open(str(run.out), mode="r")[f"g{grid}/image"]
    np.testing.assert_array_equal(array[:], archive.read(grid, archive.ok_rows(grid)))
    sizes = [next(s.path.glob("g*/image/c/0/0/0")).stat().st_size for s in (raw, archive)]
    assert sizes[1] < sizes[0]


def test_differing_settings_of_a_store_are_named(run: EncodeRun, folder: Path) -> None:
    assert run(folder) == 0
    before = everything(run.out)
    assert run(folder, compress=True, labels="last", flip="both") == 2
    assert "--compress (the store has False, asked for True)" in run.errors
    assert "--labels (the store has none, asked for last)" in run.errors
    assert "--flip (the store has none, asked for both)" in run.errors
    assert everything(run.out) == before
