"""All stages by their commands: images, codes, a prior, generated images, a report of all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image

from ops.images import Transform, decode_image, to_pixels
from pipelines import encode, generate, report, train_prior
from pipelines.store import CodeStore
from tests.conftest import photograph
from tokenizer import load_tokenizer

SIDE = 128  # 16x16 codes: one window of the tiny recipe
COUNT = 6


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the commands have gone through, up to the trained prior."""
    folder = tmp_path_factory.mktemp("out")
    (folder / "imgs").mkdir()
    for seed in range(COUNT):
        Image.fromarray(photograph(seed, 140, 180)).save(folder / "imgs" / f"{seed}.png")
    assert encode.main(encode_words(folder)) == 0
    assert train_prior.main(train_words(folder)) == 0
    return folder


def encode_words(out: Path) -> list[str]:
    words = [
        "--in",
        str(out / "imgs"),
        "--out",
        str(out / "codes.zarr"),
        "--batch-size",
        "1",
    ]
    return [*words, "--image-size", str(SIDE)]


def train_words(out: Path) -> list[str]:
    words = ["tiny", "--codes", str(out / "codes.zarr"), "--out", str(out / "prior")]
    return [*words, "--steps", "2", "--batch-size", "2"]


def sample(out: Path, name: str, size: str, count: int, seed: int = 0) -> list[Path]:
    words = ["--prior", str(out / "prior"), "--out", str(out / name), "--size", size]
    assert generate.main([*words, "--count", str(count), "--seed", str(seed)]) == 0
    return sorted((out / name).glob("sample-*.png"))


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file's time and content, but for locks: what a command that does nothing leaves."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "lock" not in path.name]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def test_store_holds_the_tokenizers_own_codes(out: Path) -> None:
    tokenizer, store = load_tokenizer("photo-f8"), CodeStore.open(out / "codes.zarr")
    array = zarr.open(out / "codes.zarr", mode="r")["g16x16/image"]
    transform = Transform(image_size=SIDE, multiple_of=tokenizer.config.downsample_factor)
    assert len(store) == COUNT
    for position in range(COUNT):
        row = store[position]
        data = (out / "imgs" / row["key"]).read_bytes()
        with torch.inference_mode():
            codes = tokenizer.encode(to_pixels(transform.read(data, (SIDE, SIDE)).image))[0]
        np.testing.assert_array_equal(row["codes"], codes.numpy())
        np.testing.assert_array_equal(array[row["row"]], codes.numpy())
    assert store.provenance["image"]["fingerprint"] == tokenizer.fingerprint
    assert load_tokenizer(store.tokenizer_folder).fingerprint == tokenizer.fingerprint


def test_encoding_and_training_again_change_nothing(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(out / "codes.zarr") | files_of(out / "prior")
    assert encode.main(encode_words(out)) == 0
    assert train_prior.main(train_words(out)) == 0
    assert capsys.readouterr().out.count("nothing") == 2
    assert files_of(out / "codes.zarr") | files_of(out / "prior") == before


def test_same_seed_gives_the_same_bytes_and_another_does_not(out: Path) -> None:
    first, again = sample(out, "samples", "72x64", 2), sample(out, "again", "72x64", 2)
    other = sample(out, "other", "72x64", 2, seed=1)
    assert [size_of(path) for path in first] == [(72, 64)] * 2
    images = [[path.read_bytes() for path in paths] for paths in (first, again, other)]
    assert images[0] == images[1]
    assert len({*images[0], *images[2]}) == 4


def test_canvas_wider_than_the_window_has_the_size_asked_for(out: Path) -> None:
    (canvas,) = sample(out, "canvas", "171x140", 1)
    image = decode_image(canvas.read_bytes())
    assert image.shape == (140, 171, 3)
    assert image[:, SIDE:].std() > 0  # generated beyond the first window, too


def test_report_has_a_section_for_each_stage(out: Path) -> None:
    sample(out, "samples", "72x64", 2)
    (out / "timings.json").write_text(json.dumps([{"stage": "encode", "seconds": 1.5}]))
    assert report.main([str(out)]) == 0
    page = (out / "report.html").read_text()
    for words in ("Codes: codes.zarr", "Training: prior", "Samples: samples", "1.5 s"):
        assert words in page
    # An original next to its reconstruction has a PSNR; each of the images must have been found.
    assert page.count(" dB</figcaption>") == COUNT
    assert "no longer there" not in page
