"""Segmentation, depth and low_res tracks: the rows that a slow obvious loop makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from ops.images import ORIENTATION_TAG, Transform, decode_image, to_pixels
from tests.conftest import photograph
from tests.encode_run import EncodeRun, everything
from tests.track_run import CLASSES, make_tokenizer, write_labels
from tokenizer import build_tokenizer, load_tokenizer, save_tokenizer

SIDE = 32


@pytest.fixture(scope="session")
def label_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("label-tokenizer") / "labels", "segmentation")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images, one of them rotated by EXIF; read only.

    Odd sizes: no sampled place is exactly between two pixels.
    """
    folder = tmp_path_factory.mktemp("images")
    for seed, (height, width) in enumerate(((49, 67), (91, 41), (37, 101), (701, 503))):
        image = Image.fromarray(photograph(seed, height, width))
        exif = Image.Exif()
        if seed == 1:
            exif[ORIENTATION_TAG] = 6
        image.save(folder / f"{seed}.jpg", exif=exif)
    return folder


@pytest.fixture(scope="session")
def segmentations(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labels(images, tmp_path_factory.mktemp("segmentations"))


def asked(segmentations: Path, tokenizer: Path) -> dict[str, object]:
    return {
        "track": f"segmentation={segmentations}",
        "track_tokenizer": f"segmentation={tokenizer}",
    }


def cropped(
    raster: np.ndarray, crop: str, size: tuple[int, int], view: int, key: str
) -> np.ndarray:
    """Nearest-neighbour cropping, place by place: a label for each output place."""
    mirrored, view = divmod(view, 10 if crop == "ten" else 1)
    mirrored ^= crop == "ten" and view >= 5
    height, width = raster.shape
    scale = max(size[0] / height, size[1] / width) * (1.125 if crop in ("random", "ten") else 1)
    down = across = 0.5
    if crop == "random":
        down, across = places_of(key, view)
    elif crop == "ten" and view % 5 < 4:
        down, across = float(view % 5 // 2), float(view % 5 % 2)
    tall, wide = min(size[0] / scale, height), min(size[1] / scale, width)
    top, left = down * (height - tall), across * (width - wide)
    out = np.empty(size, raster.dtype)
    for y in range(size[0]):
        for x in range(size[1]):
            row = int(top + (y + 0.5) * tall / size[0])
            out[y, x] = raster[row, int(left + (x + 0.5) * wide / size[1])]
    return out[:, ::-1] if mirrored else out


def places_of(key: str, view: int) -> tuple[float, float]:
    import hashlib

    digest = hashlib.sha256(f"0/{view}/{key}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64, int.from_bytes(digest[8:16]) / 2**64


@pytest.mark.parametrize(
    ("crop", "flip"), [("center", "both"), ("random", "both"), ("ten", "none"), ("native", "both")]
)
def test_label_maps_are_cropped_as_their_images_are(
    run: EncodeRun, images: Path, segmentations: Path, label_tokenizer: Path, crop: str, flip: str
) -> None:
    tracks = asked(segmentations, label_tokenizer)
    assert run(images, crop=crop, flip=flip, batch_size=1, **tracks) == 0
    store = run.store()
    track = store.track("segmentation")
    tokenizer = load_tokenizer(
        label_tokenizer, convolution=track.provenance["image"]["convolution"]
    )
    for line in track.index.to_pylist():
        rows, columns = (int(n) * 8 for n in line["grid"].split("x"))
        labels = np.asarray(Image.open(line["source"]))
        cut = cropped(labels, crop, (rows, columns), line["view"], line["key"]).copy()
        modality = tokenizer.modality
        expected = tokenizer.encode(modality.pixels(modality.samples(cut[None].astype(np.int32))))
        found = track.read(line["grid"], np.array([line["row"]]))
        np.testing.assert_array_equal(found, expected.numpy(), str(line))
    assert len(track) == len(store) == len(track.index)
    assert track.index["key"].equals(store.index["key"])
    assert track.index["row"].equals(store.index["row"])
    assert store.provenance["segmentation"]["fingerprint"] == tokenizer.fingerprint


def test_track_of_the_images_themselves_has_the_images_codes(run: EncodeRun, images: Path) -> None:
    """Uncompressed and small enough, both ways of reading give the same pixels."""
    assert run(images, crop="ten", track=f"again={images}") == 0
    store = run.store()
    again = store.track("again")
    for grid in store.grids:
        rows = store.ok_rows(grid)[:30]  # of the first three; the fourth is read at half its size
        np.testing.assert_array_equal(again.read(grid, rows), store.read(grid, rows))
    group = zarr.open(run.out, mode="r")
    np.testing.assert_array_equal(group["g4x4/again"][:30], group["g4x4/image"][:30])
    assert again.tokenizer_folder == store.tokenizer_folder


def test_low_res_with_artefacts_differs_and_repeats(run: EncodeRun, images: Path) -> None:
    codes = []
    for number, value in enumerate(("4,artefacts", "4", "4,artefacts")):
        run.out = run.out.with_name(f"{number}.zarr")
        assert run(images, track=f"low_res={value}") == 0
        track = run.store().track("low_res")
        codes.append(np.stack([row["codes"] for row in track]))
        assert ("artefacts" in run.store().provenance["low_res"]) == ("artefacts" in value)
    np.testing.assert_array_equal(codes[0], codes[2])
    assert (codes[0] != codes[1]).any()
    assert run(images, track="low_res=4") == 2
    assert "was begun with artefacts" in run.errors


def test_low_res_is_the_image_of_means_enlarged(run: EncodeRun, images: Path) -> None:
    assert run(images, flip="both", track="low_res=4", batch_size=1) == 0
    store = run.store()
    track = store.track("low_res")
    tokenizer = load_tokenizer(run.tokenizer, convolution=store.provenance["image"]["convolution"])
    transform = Transform(image_size=SIDE, flip="both", multiple_of=8)
    for line in track.index.to_pylist():
        data = Path(line["source"]).read_bytes()
        image = transform.read(data, (SIDE, SIDE), line["view"], line["key"]).image
        small = Image.fromarray(image).resize((SIDE // 4, SIDE // 4), Image.Resampling.BOX)
        large = np.array(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        expected = tokenizer.encode(to_pixels(large)).numpy()
        np.testing.assert_array_equal(track.read("4x4", np.array([line["row"]])), expected)
    assert store.provenance["low_res"]["ratio"] == 4


def test_depth_is_read_at_full_precision(run: EncodeRun, images: Path, tmp_path: Path) -> None:
    for path in images.iterdir():
        grey = decode_image(path.read_bytes()).mean(2) * 257
        Image.fromarray(grey.astype(np.uint16)).save(tmp_path / f"{path.stem}.png")
    tokenizer = make_tokenizer(tmp_path / "depth-tokenizer", "depth")
    # The folder also holds the tokenizer, which is not an image and is ignored.
    tracks = {"track": f"depth={tmp_path}", "track_tokenizer": f"depth={tokenizer}"}
    assert run(images, batch_size=1, **tracks) == 0
    track = run.store().track("depth")
    model = load_tokenizer(tokenizer, convolution=track.provenance["image"]["convolution"])
    raster = model.modality.decode((tmp_path / "0.png").read_bytes())
    assert raster.max() > 255
    middle = Image.fromarray(raster).resize((SIDE, SIDE), Image.Resampling.BICUBIC, (9, 0, 58, 49))
    expected = model.encode(model.modality.samples(np.array(middle)[None]))
    np.testing.assert_array_equal(track.read("4x4", np.array([0])), expected.numpy())


def test_images_without_a_fitting_partner_fail_in_the_track_alone(
    run: EncodeRun, images: Path, segmentations: Path, label_tokenizer: Path, tmp_path: Path
) -> None:
    maps = tmp_path / "maps"
    maps.mkdir()
    Image.fromarray(np.zeros((49, 99), np.uint8)).save(maps / "0.png")
    (maps / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    Image.fromarray(np.full((37, 101), CLASSES, np.uint8)).save(maps / "2.png")
    assert run(images, **asked(maps, label_tokenizer)) == 0
    track = run.store().track("segmentation")
    reasons = [line["status"] for line in track.failed.to_pylist()]
    assert reasons == ["another aspect", "not an image", "unknown label", "no partner"]
    assert len(run.store()) == 4
    assert len(track) == 0
    assert "segmentation lacks: '0.jpg': another aspect: 99x49 pixels" in run.printed
    assert "segmentation: 0 rows, 4 images lack it: 1 another aspect" in run.printed
    assert (zarr.open(run.out, mode="r")["g4x4/segmentation"][:] == 65535).all()


def test_two_files_of_one_name_are_no_partner(
    run: EncodeRun, images: Path, segmentations: Path, label_tokenizer: Path, tmp_path: Path
) -> None:
    for folder in ("png", "bmp"):
        for path in segmentations.iterdir():
            Image.open(path).save((tmp_path / path.name).with_suffix(f".{folder}"))
    assert run(images, **asked(tmp_path, label_tokenizer)) == 0
    assert run.store().track("segmentation").failed["status"].unique().to_pylist() == [
        "several partners"
    ]
    assert "0.bmp, 0.png" in run.printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"track": "segmentation=HERE"}, "--track-tokenizer segmentation=DIR"),
        ({"track": "other=nowhere/at/all"}, "does not exist"),
        ({"track": "low_res=1.5"}, "a whole number from 2 on"),
        ({"track": "low_res=4", "track_tokenizer": "low_res=x"}, "name no other"),
        ({"track": "image=HERE"}, "none of image"),
        ({"track": "segmentation"}, "give NAME=VALUE"),
        ({"track_tokenizer": "depth=x"}, "no --track depth="),
    ],
)
def test_impossible_tracks_are_refused_before_anything_is_written(
    run: EncodeRun, images: Path, flags: dict[str, str], message: str
) -> None:
    words = {name: value.replace("HERE", str(images)) for name, value in flags.items()}
    assert run(images, **words) == 2
    assert message in run.errors
    assert not run.out.exists()


def test_tokenizer_of_another_downsample_factor_is_refused(
    run: EncodeRun, images: Path, tmp_path: Path
) -> None:
    save_tokenizer(tmp_path / "f4", build_tokenizer("study-f4"))
    tracks = {"track": f"again={images}", "track_tokenizer": f"again={tmp_path / 'f4'}"}
    assert run(images, **tracks) == 2
    assert "its tokenizer has downsample factor 4, the images' 8" in run.errors
    assert not run.out.exists()


def test_track_added_to_a_finished_store_leaves_the_images_alone(
    run: EncodeRun, images: Path, segmentations: Path, label_tokenizer: Path
) -> None:
    assert run(images, compress=True) == 0
    before = everything(run.out)
    assert run(images, compress=True, **asked(segmentations, label_tokenizer)) == 0
    after = everything(run.out)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"zarr.json", "g4x4/zarr.json"}  # which list the track
    assert len(run.store().track("segmentation")) == 4
    run.printed = ""
    assert run(images, compress=True) == 0
    assert "nothing to do" in run.printed
    assert everything(run.out) == after
