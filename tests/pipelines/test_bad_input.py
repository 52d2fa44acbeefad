"""Encoding defective, unusual and foreign files: each gives a row of codes or a named failure."""

from __future__ import annotations

import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from ops.images import ORIENTATION_TAG
from tests.conftest import photograph
from tests.encode_run import EncodeRun
from tokenizer import load_tokenizer

PHOTOGRAPH = Image.fromarray(photograph(1))  # 64 wide, 48 high


def jpeg(image: Image.Image = PHOTOGRAPH, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "JPEG", **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def png(image: Image.Image, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG", **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def gif(frames: int) -> bytes:
    buffer = BytesIO()
    colours = [Image.new("P", (20, 20), colour) for colour in range(1, frames + 1)]
    colours[0].save(buffer, "GIF", save_all=True, append_images=colours[1:])
    return buffer.getvalue()


def group4_bomb() -> bytes:
    """144 million pixels in a few kilobytes."""
    buffer = BytesIO()
    Image.new("1", (12_000, 12_000)).save(buffer, "TIFF", compression="group4")
    return buffer.getvalue()


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    return jpeg(exif=exif)


SIXTEEN_BITS = Image.fromarray(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64))
PALETTE = PHOTOGRAPH.convert("RGBA").quantize()

#: Name -> (bytes, expected width and height of its row).
GOOD: dict[str, tuple[Callable[[], bytes], tuple[int, int]]] = {
    "good.jpg": (jpeg, (64, 48)),
    "progressive.jpg": (lambda: jpeg(progressive=True), (64, 48)),
    "grey.jpg": (lambda: jpeg(PHOTOGRAPH.convert("L")), (64, 48)),
    "cmyk.jpg": (lambda: jpeg(PHOTOGRAPH.convert("CMYK")), (64, 48)),
    "16bit.png": (lambda: png(SIXTEEN_BITS), (64, 48)),
    "palette with alpha.png": (lambda: png(PALETTE, transparency=b"\x00\x80"), (64, 48)),
    "half transparent.png": (lambda: png(PHOTOGRAPH.convert("LA")), (64, 48)),
    "animated.gif": (lambda: gif(3), (20, 20)),
    "one pixel.png": (lambda: png(PHOTOGRAPH.resize((1, 1))), (1, 1)),
    "line.png": (lambda: png(PHOTOGRAPH.resize((30_000, 1))), (30_000, 1)),
    "column.png": (lambda: png(PHOTOGRAPH.resize((1, 30_000))), (1, 30_000)),
    **{
        f"rotated {n}.jpg": (lambda n=n: rotated(n), (48, 64) if n >= 5 else (64, 48))
        for n in range(1, 9)
    },
    "really a jpeg": (jpeg, (64, 48)),
    "a jpeg called.png": (jpeg, (64, 48)),
    "ünï code 図.jpg": (jpeg, (64, 48)),
    "two\nlines.jpg": (jpeg, (64, 48)),
    "tab\tand \\ and 'quotes\".jpg": (jpeg, (64, 48)),
    "trailing.jpg": (lambda: jpeg() + b"\0" * 100, (64, 48)),
}
#: Name -> (bytes, expected status of its row).
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "truncated.jpg": (lambda: jpeg()[: len(jpeg()) // 2], "truncated"),
    "truncated.png": (lambda: png(PHOTOGRAPH)[:-2000], "truncated"),
    "last byte missing.jpg": (lambda: jpeg()[:-1], "truncated"),
    "header only.jpg": (lambda: jpeg()[:20], "not an image"),
    "empty.png": (bytes, "empty"),
    "zeros.jpg": (lambda: bytes(1000), "not an image"),
    "words.jpg": (lambda: b"not an image at all", "not an image"),
    "bomb.tif": (group4_bomb, "too large"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All of GOOD and BAD, a text file, a broken link and cycles of links."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, (make, _) in (GOOD | BAD).items():
        (folder / name).write_bytes(make())
    (folder / "notes.txt").write_text("words")
    (folder / "broken link.png").symlink_to("gone.png")
    (folder / "cycle a.png").symlink_to("cycle b.png")
    (folder / "cycle b.png").symlink_to("cycle a.png")
    (folder / "loop").symlink_to(folder)
    return folder


LINKS = {"broken link.png": "missing", "cycle a.png": "unreadable", "cycle b.png": "unreadable"}
EXPECTED_BAD = {name: status for name, (_, status) in BAD.items()} | LINKS


def statuses(run: EncodeRun) -> dict[str, str]:
    index = run.store().index
    return dict(zip(index["key"].to_pylist(), index["status"].to_pylist(), strict=True))


@pytest.mark.parametrize("crop", ["center", "native"])
def test_every_file_gives_codes_or_a_status(run: EncodeRun, folder: Path, crop: str) -> None:
    assert run(folder, crop=crop) == 0
    assert statuses(run) == EXPECTED_BAD | dict.fromkeys(GOOD, "ok")
    store = run.store()
    assert {row["key"]: (row["width"], row["height"]) for row in store} == {
        name: size for name, (_, size) in GOOD.items()
    }
    counts = f"{len(GOOD)} encoded, {len(EXPECTED_BAD)} failed, 2 skipped"
    assert counts in run.printed
    for line in store.failed.to_pylist():
        assert line["error"]
        array = zarr.open(str(run.out), mode="r")[f"g{line['grid']}/image"]
        assert (array[line["row"]] == 65535).all()


def test_failed_and_skipped_files_are_printed_with_the_reason(run: EncodeRun, folder: Path) -> None:
    assert run(folder) == 0
    assert "failed: 'truncated.jpg': truncated: " in run.printed
    assert "skipped: 'loop': a link to a folder above it" in run.printed
    assert "skipped: 'notes.txt': neither named nor starting like an image" in run.printed


def test_bad_images_change_no_other_codes(run: EncodeRun, folder: Path, tmp_path: Path) -> None:
    assert run(folder, batch_size=8, rows_per_task=64) == 0
    among_bad = {row["key"]: row["codes"] for row in run.store()}
    for name in EXPECTED_BAD:
        (folder / name).unlink()
    run.out = tmp_path / "good only.zarr"
    assert run(folder, batch_size=8, rows_per_task=64) == 0
    for row in run.store():
        assert (row["codes"] == among_bad[row["key"]]).all(), row["key"]


def test_codes_are_those_of_the_upright_image(run: EncodeRun, tmp_path: Path) -> None:
    # Rotated and saved losslessly with the tag that rotates it back: nothing else differs.
    folder = tmp_path / "images"
    folder.mkdir()
    orientations = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}
    for orientation, rotation in orientations.items():
        exif = Image.Exif()
        exif[ORIENTATION_TAG] = orientation
        stored = PHOTOGRAPH if rotation is None else PHOTOGRAPH.transpose(rotation)
        stored.save(folder / f"{orientation}.png", exif=exif)
    assert run(folder, crop="native") == 0
    codes = [row["codes"] for row in run.store()]
    assert len(codes) == 3
    assert all((other == codes[0]).all() for other in codes)


def test_names_that_are_not_utf8_are_skipped_with_the_reason(
    run: EncodeRun, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/good.jpg").write_bytes(jpeg())
    with open(os.fsencode(tmp_path / "images") + b"/b\xffd.jpg", "wb") as file:
        file.write(jpeg())
    assert run(tmp_path / "images") == 0
    assert "1 encoded, 0 failed, 1 skipped" in run.printed
    assert "its name is not UTF-8: rename it" in run.printed


def test_images_removed_or_changed_after_planning_fail(
    run: EncodeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("changed", "gone", "stays"):
        (folder / f"{name}.jpg").write_bytes(jpeg())

    from pipelines.encoding import job

    run_tasks = job.run_tasks

    def change_images(*arguments: object, **named: object) -> None:
        (folder / "gone.jpg").unlink()
        (folder / "changed.jpg").write_bytes(jpeg(PHOTOGRAPH.resize((80, 80))))
        run_tasks(*arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(job, "run_tasks", change_images)
        assert run(folder, max_bad=1.0) == 0
    assert statuses(run) == {"changed.jpg": "changed", "gone.jpg": "missing", "stays.jpg": "ok"}
    assert run(folder) == 0  # now the changed file is planned again, as its message says
    assert [row["key"] for row in run.store()] == ["stays.jpg", "changed.jpg"]


def test_more_failures_than_max_bad_make_the_exit_code_1(run: EncodeRun, folder: Path) -> None:
    share = len(EXPECTED_BAD) / (len(EXPECTED_BAD) + len(GOOD))
    assert run(folder, max_bad=share - 0.01) == 1
    assert f"{share:.0%} failed, more than --max-bad" in run.errors
    assert run(folder, max_bad=share + 0.01) == 0


def test_at_most_twenty_failures_are_printed(run: EncodeRun, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(25):
        (tmp_path / f"images/{number:02d}.jpg").touch()
    assert run(tmp_path / "images") == 1
    assert run.printed.count("failed: '") == 20
    assert "failed: 5 more: see the index" in run.printed


def test_native_images_are_grouped_by_grid_shape(run: EncodeRun, folder: Path) -> None:
    Image.fromarray(photograph(3, 64, 48)).save(folder / "tall.png")
    assert run(folder, crop="native") == 0
    factor = load_tokenizer(run.tokenizer).config.downsample_factor
    short = 32 // factor
    long = round(32 * 64 / 48 / factor)
    store = run.store()
    grids = {row["key"]: row["grid"] for row in store}
    assert grids["good.jpg"] == f"{short}x{long}"
    assert grids["tall.png"] == grids["rotated 6.jpg"] == f"{long}x{short}"
    assert grids["one pixel.png"] == f"{short}x{short}"
    assert grids["line.png"] == f"{short}x{4 * short}"
    assert sum(len(batch["codes"]) for batch in store.batches(3)) == len(store) == len(GOOD) + 1
