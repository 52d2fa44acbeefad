"""Tracks of boxes, keypoints and classes: rows in fractions of each view of an image."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import zarr
from hypothesis import strategies as st
from PIL import Image

from ops.images import CROPS, ORIENTATION_TAG, Transform
from pipelines.conditioning.boxes import ABSENT, BoxesTrack
from pipelines.tracks import TrackInput
from tests.conftest import photograph
from tests.encode_run import EncodeRun, everything

Lines = list[dict[str, Any]]


def write_lines(path: Path, lines: Lines) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`a.png` of 60x40 and `b/c.jpg` of 40x80, which EXIF rotates to 80x40; read only."""
    folder = tmp_path_factory.mktemp("images")
    Image.fromarray(photograph(0, 40, 60)).save(folder / "a.png")
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    (folder / "b").mkdir()
    Image.fromarray(photograph(1, 80, 40)).save(folder / "b" / "c.jpg", exif=exif)
    return folder


@pytest.fixture(scope="session")
def boxes_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes the track of a list of (left, top, width, height), without a store."""
    folder = tmp_path_factory.mktemp("boxes")

    def make(boxes: list[tuple[float, ...]]) -> BoxesTrack:
        lines = [{"file": "a", "category": "it", "bbox": list(box)} for box in boxes]
        path = write_lines(folder / "boxes.jsonl", lines)
        track = BoxesTrack(folder, TrackInput("boxes", str(path), None, folder, None))  # type: ignore[arg-type]
        track.meaning()
        return track

    return make


@hypothesis.given(
    crop=st.sampled_from(sorted(CROPS)),
    flip=st.booleans(),
    width=st.integers(40, 140),
    height=st.integers(40, 140),
    edges=st.tuples(*[st.floats(0, 1)] * 4),
    data=st.data(),
)
def test_box_is_where_its_rectangle_appears_in_the_view(
    boxes_of: Any,
    crop: str,
    flip: bool,
    width: int,
    height: int,
    edges: tuple[float, ...],
    data: st.DataObject,
) -> None:
    x0, x1 = sorted(round(edge * width) for edge in edges[:2])
    y0, y1 = sorted(round(edge * height) for edge in edges[2:])
    hypothesis.assume(x1 - x0 > 4 and y1 - y0 > 4)
    raster = np.zeros((height, width, 3), np.uint8)
    raster[y0:y1, x0:x1] = 255
    file = io.BytesIO()
    Image.fromarray(raster).save(file, "PNG", compress_level=1)
    transform = Transform(
        image_size=64, crop=crop, flip="both" if flip and crop != "ten" else "none", multiple_of=8
    )
    view = data.draw(st.integers(0, transform.views - 1))
    size = transform.target_size(width, height)
    shown = transform.read(file.getvalue(), size, view, "a").image[..., 0] > 127
    cropped = transform.view_of(width, height, size, view, "a")
    track = boxes_of([(x0, y0, x1 - x0, y1 - y0)])
    row = track.row(track.lines.found["a"], (width, height), cropped)
    category, left, top, right, bottom = row[1]
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    if not len(rows):
        assert category == ABSENT or min(right - max(left, 0), bottom - max(top, 0)) < 2 / 64
        return
    assert category == 0
    scale = np.array([size[1], size[0]] * 2)
    found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    expected = np.clip([left, top, right, bottom], 0, 1) * scale
    # A pixel counts as white from half of it on, and bicubic resampling overshoots a little.
    assert np.abs(expected - found).max() <= 1.0


def test_rows_hold_the_view_and_the_largest_objects_first(
    run: EncodeRun, images: Path, tmp_path: Path
) -> None:
    boxes = write_lines(
        tmp_path / "boxes.jsonl",
        [
            {"file": "a.png", "category": "tree", "bbox": [20, 0, 10, 10]},
            {"file": "a.png", "category": "sky", "bbox": [0, 0, 60, 20]},
            {"file": "a.png", "category": "tree", "bbox": [0, 0, 5, 40]},  # left of the view
            {"file": "c", "category": "sky", "bbox": [20, 10, 40, 20]},
        ],
    )
    assert run(images, flip="both", track=f"boxes={boxes}") == 0
    track = run.store().track("boxes")
    assert track.provenance["boxes"]["categories"] == ["sky", "tree"]
    rows = track.read("4x4", track.ok_rows("4x4"))
    assert rows.shape == (4, 31, 5)
    assert rows.dtype == np.float32
    # The view is the middle 40x40 of the 60x40, and of the upright 80x40.
    expected = [
        [[0, 1 / 6, 0, 5 / 6, 1], [0, -0.25, 0, 1.25, 0.5], [1, 0.25, 0, 0.5, 0.25]],
        [[1, 1 / 6, 0, 5 / 6, 1], [0, -0.25, 0, 1.25, 0.5], [1, 0.5, 0, 0.75, 0.25]],
        [[0, 0.25, 0, 0.75, 1], [0, 0, 0.25, 1, 0.75]],
        [[1, 0.25, 0, 0.75, 1], [0, 0, 0.25, 1, 0.75]],
    ]
    for row, lines in zip(rows, expected, strict=True):
        np.testing.assert_allclose(row[: len(lines)], lines, atol=1e-6)
        np.testing.assert_array_equal(row[len(lines) :], [[ABSENT, 0, 0, 0, 0]] * (31 - len(lines)))
    np.testing.assert_array_equal(zarr.open(run.out, mode="r")["g4x4/boxes"][:], rows)


def test_thirty_largest_of_many_objects_are_kept(boxes_of: Any) -> None:
    track = boxes_of([(0, 0, side, side) for side in range(1, 41)])
    view = Transform(image_size=64).view_of(64, 64, (64, 64), 0, "a")
    row = track.row(track.lines.found["a"], (64, 64), view)
    np.testing.assert_allclose(row[1:, 3], np.arange(40, 10, -1) / 64)


@pytest.mark.parametrize("named", [False, True])
def test_keypoints_are_those_of_the_largest_figure(
    run: EncodeRun, images: Path, tmp_path: Path, named: bool
) -> None:
    def points(*values: list[float] | None) -> Any:
        return dict(zip(("foot", "hand", "head"), values, strict=True)) if named else list(values)

    poses = write_lines(
        tmp_path / "poses.jsonl",
        [
            {"file": "a", "keypoints": points([10, 10], [12, 12], [14, 13])},
            {"file": "a", "keypoints": points([20, 40, 2], [30, 10, 1], [3, 3, 0])},
            {"file": "b/c.jpg", "keypoints": None},
        ],
    )
    assert run(images, flip="both", track=f"keypoints={poses}", compress=True) == 0
    track = run.store().track("keypoints")
    none = [np.nan, np.nan]
    expected = [[[0.25, 1], [0.5, 0.25], none], [[0.75, 1], [0.5, 0.25], none]]
    rows = track.read("4x4", track.ok_rows("4x4"))
    np.testing.assert_allclose(rows[:2], expected, atol=1e-6)
    assert np.isnan(rows[2:]).all()
    assert track.provenance["keypoints"]["names"] == (["foot", "hand", "head"] if named else None)


def test_bad_lines_are_named_and_the_others_used(
    run: EncodeRun, images: Path, tmp_path: Path
) -> None:
    boxes = tmp_path / "boxes.jsonl"
    good = json.dumps({"file": "a", "category": "it", "bbox": [0, 0, 5, 5]})
    bad = [
        "no json",
        "[]",
        '{"file": "a", "category": "it", "bbox": [0, 0, 5]}',
        '{"file": "a", "category": "it", "bbox": [0, 0, 0, 5]}',
        '{"file": "a", "category": "it", "bbox": [0, 0, NaN, 5]}',
        '{"file": "a", "bbox": [0, 0, 5, 5]}',
    ]
    boxes.write_text("\n".join([*bad, "", good]))
    assert run(images, track=f"boxes={boxes}") == 0
    for number, why in enumerate(("no JSON", '"file"', "not [x", "no area", "not [x", "categ"), 1):
        (line,) = [x for x in run.printed.splitlines() if f"boxes.jsonl:{number}'" in x]
        assert why in line
    assert "boxes: 1 rows, 1 images lack it: 1 no partner" in run.printed
    boxes.write_text("\n".join(bad))
    assert run(images, track=f"boxes={boxes}") == 2
    assert "none of its lines can be used" in run.errors


def test_pipe_and_columns_without_annotations_are_refused(
    run: EncodeRun, images: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert run(images, track=f"boxes={tmp_path / 'pipe.jsonl'}") == 2
    assert "A regular file is needed" in run.errors
    (tmp_path / "labels.csv").write_text("file,label\na.png,cat\n")
    assert run(images, track=f"class={tmp_path / 'labels.csv'}") == 2
    assert "fields that are not read: 'label'" in run.errors


def test_figures_of_another_number_of_points_are_bad_lines(
    run: EncodeRun, images: Path, tmp_path: Path
) -> None:
    lines = [{"file": "a", "keypoints": [[1, 1]] * count} for count in (2, 3)]
    lines.append({"file": "a", "keypoints": {"hand": [1, 1]}})
    poses = write_lines(tmp_path / "poses.jsonl", lines)
    assert run(images, track=f"keypoints={poses}") == 0
    assert "'poses.jsonl:2': 3 keypoints, where others have 2" in run.printed
    assert "'poses.jsonl:3': named keypoints, where others are a list" in run.printed


def test_new_lines_and_categories_change_their_rows_alone(
    run: EncodeRun, images: Path, tmp_path: Path
) -> None:
    lines: Lines = [{"file": "a.png", "category": "m", "bbox": [0, 0, 60, 40]}]
    boxes = write_lines(tmp_path / "boxes.jsonl", lines)
    assert run(images, rows_per_task=1, track=f"boxes={boxes}") == 0
    before = everything(run.out)
    lines += [
        {"file": "c.jpg", "category": "z", "bbox": [0, 0, 80, 40]},
        {"file": "c.jpg", "category": "b", "bbox": [0, 0, 40, 40]},
    ]
    write_lines(boxes, lines)
    assert run(images, rows_per_task=1) == 0  # the store has recorded where the boxes are
    after = everything(run.out)
    changed = {name for name in before if before[name] != after[name]}
    assert {name for name in changed if name.startswith(("g4x4/", "_tracks"))} == {
        "g4x4/boxes/c/1/0/0",
        "_tracks/boxes/_index/4x4/1.parquet",
        "_tracks/boxes/_plan/0.parquet",
        "_tracks/boxes/_checksums.json",
    }
    track = run.store().track("boxes")
    assert track.provenance["boxes"]["categories"] == ["m", "b", "z"]
    assert track.read("4x4", np.array([0, 1]))[:, 1:4, 0].tolist() == [[0, -1, -1], [2, 1, -1]]
    assert run(images, rows_per_task=1) == 0
    assert "nothing to do" in run.printed
    assert everything(run.out) == after


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_classes_are_the_labels_of_their_images(
    run: EncodeRun, images: Path, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"classes.{suffix}"
    if suffix == "csv":
        path.write_text("file,class\na.png,wood\na.png,lake\n")
    else:
        write_lines(path, [{"file": "a", "class": "wood"}, {"file": "a", "class": "lake"}])
    assert run(images, flip="both", track=f"class={path}") == 0
    assert f"classes.{suffix}:{3 if suffix == 'csv' else 2}': class lake, where" in run.printed
    store = run.store()
    assert store.label_names == ["wood"]
    assert store.labels("4x4", np.arange(4)).tolist() == [0, 0, -1, -1]
    with path.open("a") as file:
        file.write("b/c.jpg,17\n" if suffix == "csv" else '{"file": "b/c.jpg", "class": 17}\n')
    assert run(images, flip="both") == 0
    assert run.store().label_names == ["wood", "17"]
    assert run.store().labels("4x4", np.arange(4)).tolist() == [0, 0, 1, 1]
    assert [batch["label"].tolist() for batch in run.store().batches(4)] == [[0, 0, 1, 1]]


def test_classes_of_both_folders_and_a_file_are_refused(
    run: EncodeRun, images: Path, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "classes.jsonl", [{"file": "a", "class": "wood"}])
    assert run(images, labels="first", track=f"class={path}") == 2
    assert "--labels first gives classes, and so does --track class" in run.errors


def test_name_that_two_images_share_is_no_partner(run: EncodeRun, tmp_path: Path) -> None:
    images = tmp_path / "images"
    for seed, name in enumerate(("x/same.png", "y/same.png", "y/other.png")):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(seed)).save(images / name)
    lines: Lines = [{"file": name} for name in ("same.png", "other", "y/same")]
    boxes = write_lines(tmp_path / "boxes.jsonl", lines)
    assert run(images, track=f"boxes={boxes}") == 0
    assert "'x/same.png': several partners: ambiguous: same.png" in run.printed
    assert run.store().track("boxes").index["status"].to_pylist() == [
        "several partners",
        "ok",
        "ok",
    ]
