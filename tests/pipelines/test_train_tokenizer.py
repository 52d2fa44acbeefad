import json
import shutil

import pytest
import torch
from PIL import Image

from ops.checkpoint import step_folder
from ops.images import decode_image, resize_and_crop, to_pixels
from ops.metrics import psnr
from ops.tensor_files import load_tensors
from pipelines import evaluate, train_tokenizer
from pipelines.inputs.holdout import held_out
from pipelines.inputs.listing import list_input
from tests.conftest import photograph
from tokenizer import load_tokenizer

FLAGS = [
    "--steps", "4", "--save-every", "2", "--sample-every", "4", "--log-every", "1",
    "--batch-size", "2", "--crop-size", "32", "--adversarial-start", "2", "--threads", "1",
    "--num-workers", "0",
]  # fmt: skip


def train(data, out, *more, recipe="tiny"):
    return train_tokenizer.main([recipe, "--data", str(data), "--out", str(out), *FLAGS, *more])


def logged(run, name):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[name]) for line in lines if name in line]


def test_training_writes_a_tokenizer_metrics_and_images(photographs, tmp_path, capsys):
    assert train(photographs, tmp_path / "run", "--held-out", "0.4") == 0
    assert "4 steps taken" in capsys.readouterr().out
    tokenizer = load_tokenizer(tmp_path / "run")
    assert tokenizer.config.downsample_factor == 8
    averages = load_tensors(step_folder(tmp_path / "run", 4) / "ema.safetensors")
    assert torch.equal(tokenizer.encoder.conv_in.weight, averages["encoder.conv_in.weight"])
    assert [step for step, _ in logged(tmp_path / "run", "adversarial_loss")] == [3, 4]
    assert [step for step, _ in logged(tmp_path / "run", "discriminator_loss")] == [3, 4]
    assert [step for step, _ in logged(tmp_path / "run", "held_out_psnr")] == [4]
    assert (tmp_path / "run" / "samples" / "reconstructions-00000004.png").is_file()
    assert train(photographs, tmp_path / "run", "--held-out", "0.4") == 0
    assert "nothing left to do" in capsys.readouterr().out


def test_it_learns_to_reconstruct(photographs, tmp_path):
    run = tmp_path / "run"
    flags = ["--steps", "60", "--adversarial-start", "1000", "--batch-size", "4"]
    assert train(photographs, run, *flags) == 0
    losses = [loss for _, loss in logged(run, "reconstruction_loss")]
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])


def test_unreadable_images_are_in_the_ledger_once_and_stop_nothing(photographs, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(photographs, data)
    whole = (data / "wood" / "00.jpg").read_bytes()
    names = [f"broken{number}.jpg" for number in range(4)]
    for name in names:
        (data / name).write_bytes(whole[:-100])
    assert {held_out(name, 0.4) for name in names} == {
        True,
        False,
    }  # some to train on, some held out
    for steps in ("8", "10"):
        assert train(data, run, "--steps", steps, "--held-out", "0.4") == 0
    entries = [json.loads(line) for line in (run / "bad_images.jsonl").read_text().splitlines()]
    assert sorted(entry["key"] for entry in entries) == names
    assert all("cut short" in entry["reason"] for entry in entries)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--crop-size", "30"], "not a multiple of 8"),
        (["--perceptual", "/no/such/file"], "neither lpips, none"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--held-out", "1"], "no image to train on"),
        (["--num-workers", "-1"], "--num-workers must be at least 0"),
    ],
)
def test_user_errors_end_with_one_line_and_code_2(photographs, tmp_path, capsys, changes, message):
    assert train(photographs, tmp_path / "run", *changes) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_unknown_recipes_and_missing_data_are_named(tmp_path, capsys):
    assert train(tmp_path / "nowhere", tmp_path / "run") == 2
    assert "does not exist" in capsys.readouterr().err
    assert train(tmp_path, tmp_path / "run", recipe="nonesuch") == 2
    assert "there are tiny" in capsys.readouterr().err


def test_a_resumed_run_refuses_other_settings(photographs, tmp_path, capsys):
    train(photographs, tmp_path / "run")
    assert train(photographs, tmp_path / "run", "--seed", "1") == 2
    assert "seed was 0, is 1" in capsys.readouterr().err


def test_evaluate_gives_the_metrics_of_the_images(tiny_tokenizer, tmp_path, capsys):
    data, reconstructions = tmp_path / "data", tmp_path / "reconstructions.png"
    data.mkdir()
    for seed in range(3):
        Image.fromarray(photograph(seed)).save(data / f"{seed}.png")
    (data / "empty.png").write_bytes(b"")
    flags = ["--data", str(data), "--out", str(tmp_path / "m.json"), "--held-out", "1"]
    more = ["--image-size", "32", "--reconstructions", str(reconstructions)]
    assert evaluate.main(["tokenizer", str(tiny_tokenizer), *flags, *more]) == 0
    metrics = json.loads((tmp_path / "m.json").read_text())["metrics"]
    tokenizer = load_tokenizer(tiny_tokenizer)
    assert list(metrics["unreadable"]) == ["empty.png"]
    entries = [entry for entry in list_input(data).entries if entry.size]
    images = [resize_and_crop(decode_image((data / e.key).read_bytes()), 32) for e in entries]
    pixels = torch.cat([to_pixels(image) for image in images])
    codes = tokenizer.encode(pixels)
    assert metrics["images"] == 3
    assert metrics["psnr"] == pytest.approx(float(psnr(tokenizer.decode(codes), pixels).mean()))
    assert metrics["codes_used"] == len(codes.unique())
    assert metrics["bits_per_pixel"] == 8 / 64
    assert decode_image(reconstructions.read_bytes()).shape == (2 * 32 + 2, 3 * 32 + 2 * 2, 3)
    printed = capsys.readouterr().out
    assert "psnr" in printed
    assert "unreadable: 'empty.png': the file has no bytes" in printed


def test_loader_workers_give_the_losses_of_none(photographs, tmp_path):
    for workers in ("0", "1"):
        assert train(photographs, tmp_path / workers, "--num-workers", workers) == 0
    assert logged(tmp_path / "1", "loss") == logged(tmp_path / "0", "loss")
