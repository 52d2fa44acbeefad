"""Tokenizers of label maps and depth maps by the commands, on folders paired by file name."""

import json

import numpy as np
import pytest
from PIL import Image

from ops.images import decode_image
from pipelines import encode, evaluate, train_tokenizer
from pipelines.inputs.holdout import held_out
from tests.conftest import photograph
from tokenizer import load_tokenizer

FLAGS = [
    "--steps", "4", "--save-every", "2", "--sample-every", "4", "--log-every", "1",
    "--batch-size", "2", "--crop-size", "32", "--held-out", "0.4", "--threads", "1",
    "--num-workers", "0",
]  # fmt: skip
CLASSES = 9  # the highest label is 8


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Photographs in images/, with label maps and 16-bit depth of the same names."""
    root = tmp_path_factory.mktemp("folders")
    for folder in ("images", "maps", "depth"):
        (root / folder / "lake").mkdir(parents=True)
    for seed in range(10):
        image = photograph(seed)
        name = f"lake/{seed}" if seed % 2 else f"{seed}"
        Image.fromarray(image).save(root / "images" / f"{name}.jpg")
        labels = np.where(image[..., 0] > 210, 255, image[..., 0] // 25)
        labels[0, 0] = 8
        Image.fromarray(labels.astype(np.uint8)).save(root / "maps" / f"{name}.png")
        depth = image[..., 0].astype(np.uint16) * 256 + image[..., 1]
        Image.fromarray(depth).save(root / "depth" / f"{name}.png")
    return root


def train(folders, run, recipe, targets, *more):
    flags = ["--data", str(folders / "images"), "--targets", str(targets), "--out", str(run)]
    return train_tokenizer.main([recipe, *flags, *FLAGS, *more])


def logged(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def ledger(run):
    lines = (run / "bad_images.jsonl").read_text().splitlines()
    return {entry["key"]: entry["reason"] for entry in map(json.loads, lines)}


@pytest.mark.parametrize(
    ("recipe", "folder", "metrics"),
    [
        ("tiny-segmentation", "maps", {"accuracy", "mean_iou"}),
        ("tiny-depth", "depth", {"psnr", "ssim"}),
    ],
)
def test_a_tokenizer_is_trained_evaluated_and_loaded(
    folders, tmp_path, capsys, recipe, folder, metrics
):
    run = tmp_path / "run"
    assert train(folders, run, recipe, folders / folder) == 0
    tokenizer = load_tokenizer(run)
    channels = {"maps": CLASSES, "depth": 1}[folder]
    assert tokenizer.config.autoencoder.image_channels == channels
    assert tokenizer.modality.channels == channels
    (found,) = [line for line in logged(run) if "held_out_codes_used" in line]
    assert {f"held_out_{name}" for name in metrics} <= set(found)
    for name in ("reconstructions", "errors", "code_usage"):
        assert (run / "samples" / f"{name}-00000004.png").is_file()
    flags = ["--data", str(folders / "images"), "--targets", str(folders / folder)]
    more = ["--held-out", "0.4", "--image-size", "256"]
    more += ["--reconstructions", str(tmp_path / "p.png")]
    out = tmp_path / "metrics.json"
    assert evaluate.main(["tokenizer", str(run), *flags, *more, "--out", str(out)]) == 0
    measured = json.loads(out.read_text())["metrics"]
    for name in metrics:  # as the training logged for the same files
        assert measured[name] == pytest.approx(found[f"held_out_{name}"], rel=1e-4)
    assert decode_image((tmp_path / "p.png").read_bytes()).shape[0] == 2 * 256 + 2
    capsys.readouterr()
    images = ["--in", str(folders / "images"), "--out", str(tmp_path / "codes.zarr")]
    assert encode.main([*images, "--tokenizer", str(run)]) == 2
    assert "maps, not of photographs" in capsys.readouterr().err


def test_label_maps_can_be_trained_on_without_images(folders, tmp_path):
    flags = ["--data", str(folders / "maps"), "--out", str(tmp_path / "run"), *FLAGS]
    more = ["--steps", "40", "--sample-every", "40", "--batch-size", "4", "--learning-rate", "0.01"]
    assert train_tokenizer.main(["tiny-segmentation", *flags, *more]) == 0
    losses = [line["reconstruction_loss"] for line in logged(tmp_path / "run") if "loss" in line]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_unusable_files_are_in_the_ledger_with_their_reasons(folders, tmp_path):
    maps, run = tmp_path / "maps", tmp_path / "run"
    maps.mkdir()
    (maps / "lake").mkdir()
    for path in (folders / "maps").rglob("*.png"):
        (maps / path.relative_to(folders / "maps")).write_bytes(path.read_bytes())
    (maps / "0.png").unlink()
    (maps / "2.png").write_bytes(b"")
    Image.fromarray(photograph(0)).save(maps / "4.png")
    Image.fromarray(np.full((48, 64), 20, np.uint8)).save(maps / "6.png")
    assert train(folders, run, "tiny-segmentation", maps, "--num-classes", "9", "--steps", "6") == 0
    found = ledger(run)
    assert set(found) == {"0.jpg", "2.jpg", "4.jpg", "6.jpg"}
    assert {held_out(key, 0.4) for key in found} == {True, False}
    assert found["0.jpg"] == "no partner of the same name"
    assert "no bytes" in found["2.jpg"]
    assert "RGB pixels" in found["4.jpg"]
    assert "found label 20, but the highest of 9 classes is 8" in found["6.jpg"]


@pytest.mark.parametrize(
    ("recipe", "targets", "more", "message"),
    [
        ("tiny-segmentation", "images", [], "None of 10 files is a label map"),
        ("tiny-segmentation", "depth", [], "are these label maps?"),
        ("tiny-depth", "depth", ["--num-classes", "3"], "--num-classes and --void-label are about"),
        ("tiny-depth", "depth", ["--perceptual", "lpips"], "are for photographs alone"),
        ("tiny-segmentation", "images/lake", [], "has the name of an image"),
    ],
)
def test_user_errors_end_with_one_line_and_code_2(
    folders, tmp_path, capsys, recipe, targets, more, message
):
    assert train(folders, tmp_path / "run", recipe, folders / targets, *more) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
