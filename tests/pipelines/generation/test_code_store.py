"""The code store of samples, like any other: opened, verified, trained on, reported."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from ops.images import to_image
from pipelines import encode, report, train_prior, verify
from pipelines.store import CodeStore
from prior import load_prior
from tests.generate_run import everything, generate, image_in
from tokenizer import load_tokenizer

COUNT = 7
FLAGS = [
    "--batch-size", 2, "--samples-per-task", 4, "--labels", "lake,wood", "--save", "codes,images",
    "--size", "48x32", "--count", COUNT,
]  # fmt: skip


@pytest.fixture(scope="module")
def samples(labelled_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven samples with classes, as codes and images, four a task; leave them as they are."""
    out = tmp_path_factory.mktemp("samples")
    assert generate(labelled_run, out, *FLAGS) == 0
    return out


def test_row_k_is_sample_k(samples: Path, labelled_run: Path) -> None:
    labels = [2 * (k % 2) for k in range(COUNT)]
    expected = load_prior(labelled_run).sample(4, 6, count=COUNT, batch_size=2, labels=labels)
    store = CodeStore.open(samples / "codes.zarr")
    array = zarr.open(samples / "codes.zarr", mode="r")["g4x6/image"]
    assert len(store) == COUNT
    for k in range(COUNT):
        np.testing.assert_array_equal(store[k]["codes"], expected[k].numpy())
        np.testing.assert_array_equal(array[k], expected[k].numpy())
        assert (store[k]["key"], store[k]["row"], store[k]["label"]) == (
            f"sample-{k:05d}", k, labels[k],
        )  # fmt: skip


def test_the_store_decodes_to_the_images(samples: Path) -> None:
    store = CodeStore.open(samples / "codes.zarr")
    tokenizer = load_tokenizer(store.tokenizer_folder)
    for row in (store[place] for place in range(COUNT)):
        codes = torch.from_numpy(row["codes"].astype(np.int64))[None]
        with torch.inference_mode():
            image = to_image(tokenizer.decode(codes, (32, 48)))[0]
        np.testing.assert_array_equal(image, image_in(samples / f"{row['key']}.png"))


def test_the_store_is_verified_and_corruption_is_found(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = shutil.copytree(samples / "codes.zarr", tmp_path / "codes.zarr")
    assert verify.main([str(store)]) == 0
    shard = store / "g4x6/image/c/1/0/0"
    data = bytearray(shard.read_bytes())
    data[0] ^= 1
    shard.write_bytes(data)
    assert verify.main([str(store)]) == 1
    condition_inputs = capsys.readouterr().out
    assert "corrupt in row 4" in condition_inputs
    assert f"Remove {store}/_index/4x6/1.parquet and run generate again" in condition_inputs


def test_following_the_advice_of_verify_repairs_the_store(
    samples: Path, labelled_run: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(samples, tmp_path / "out")
    store = out / "codes.zarr"
    (store / "g4x6/image/c/1/0/0").write_bytes(b"not codes")
    assert verify.main([str(store)]) == 1
    (store / "_index/4x6/1.parquet").unlink()
    assert generate(labelled_run, out, *FLAGS) == 0
    assert verify.main([str(store)]) == 0
    assert everything(out) == everything(samples)


def test_a_prior_trains_on_generated_codes(samples: Path, tmp_path: Path) -> None:
    flags = ["--window", "4", "--steps", "1", "--batch-size", "2", "--conditions", "class"]
    store = str(samples / "codes.zarr")
    assert train_prior.main(["tiny", "--codes", store, "--out", str(tmp_path / "run"), *flags]) == 0


def test_a_report_shows_decoded_generated_codes(samples: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert report.main([str(samples / "codes.zarr"), "--out", str(out)]) == 0
    page = out.read_text()
    assert "Some of the generated codes, decoded." in page
    assert "original" not in page


def test_encoding_into_generated_codes_is_refused(
    samples: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = shutil.copytree(samples / "codes.zarr", tmp_path / "codes.zarr")
    assert encode.main(["--in", str(photographs), "--out", str(store)]) == 2
    assert "codes that generate made" in capsys.readouterr().err
