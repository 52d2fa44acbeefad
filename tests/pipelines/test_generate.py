import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ops.images import to_image
from pipelines.generate import main
from prior import GPT, ClassLabel, Conditions, GPTConfig, StartOfSequence, load_prior, save_prior
from tokenizer import build_tokenizer, load_tokenizer, save_tokenizer

CLASSES = ClassLabel(num_classes=3, label_names=("lake", "town", "wood"))


def make_run(folder, condition):
    """A run folder as train_prior leaves it, of random weights: window 4, the tiny tokenizer."""
    save_tokenizer(folder / "tokenizer", build_tokenizer("tiny", seed=0))
    tokenizer = load_tokenizer(folder / "tokenizer")
    conditions = Conditions([condition], tokenizer.config.codebook_size)
    torch.manual_seed(0)
    model = GPT(
        GPTConfig(
            codebook_size=tokenizer.config.codebook_size,
            condition_vocab_size=conditions.vocab_size,
            condition_length=1,
            window=4,
            num_layers=1,
            num_heads=2,
            width=16,
        )
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    info = {
        "name": "made-up",
        "fingerprint": tokenizer.fingerprint,
        "codebook_size": tokenizer.config.codebook_size,
        "downsample_factor": tokenizer.config.downsample_factor,
    }
    save_prior(folder / "step-00000007", model, conditions, info)
    (folder / "step-00000007" / "train_state.pt").touch()
    return folder


@pytest.fixture(scope="module")
def prior_run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "plain", StartOfSequence())


@pytest.fixture(scope="module")
def labelled_run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "labelled", CLASSES)


def generate(run, out, *flags):
    return main(["--prior", str(run), "--out", str(out), "--size", "24x16", *map(str, flags)])


def picture(path):
    with Image.open(path) as file:
        return np.array(file)


def contents(folder, pattern="sample-*"):
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


@pytest.fixture(scope="module")
def five(prior_run, tmp_path_factory):
    """Five samples, painted two at once; leave the folder as it is."""
    out = tmp_path_factory.mktemp("five")
    assert generate(prior_run, out, "--count", 5, "--batch-size", 2) == 0
    return out


def test_every_sample_has_a_picture_and_its_codes(five):
    assert sorted(path.name for path in five.iterdir()) == sorted(
        ["generation.json", "grid.png"]
        + [f"sample-0000{k}.{suffix}" for k in range(5) for suffix in ("npy", "png")]
    )
    assert {picture(path).shape for path in five.glob("sample-*.png")} == {(16, 24, 3)}
    assert len(set(contents(five).values())) == 10


def test_pictures_are_what_prior_and_tokenizer_make_one_by_one(five, prior_run):
    prior, tokenizer = load_prior(prior_run), load_tokenizer(prior_run / "tokenizer")
    factor = tokenizer.config.downsample_factor
    codes = prior.paint(-(-16 // factor), -(-24 // factor), count=5, batch_size=2)
    for k in range(5):
        np.testing.assert_array_equal(np.load(five / f"sample-0000{k}.npy"), codes[k].numpy())
        expected = to_image(tokenizer.decode(codes[k][None], (16, 24)))[0]
        np.testing.assert_array_equal(picture(five / f"sample-0000{k}.png"), expected)


def test_generation_json_holds_what_decides_a_picture(five, prior_run):
    settings = json.loads((five / "generation.json").read_text())
    tokenizer = load_tokenizer(prior_run / "tokenizer")
    assert settings["tokenizer_fingerprint"] == tokenizer.fingerprint
    assert settings["torch"] == torch.__version__
    expected = {"seed": 0, "width": 24, "height": 16, "stride": 2, "batch_size": 2, "threads": 1}
    assert {name: settings[name] for name in expected} == expected


def test_running_again_does_nothing_and_says_so(five, prior_run, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in five.iterdir()}
    assert generate(prior_run, five, "--count", 5, "--batch-size", 2) == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in five.iterdir()} == before


def test_what_is_missing_is_painted_again_alike(five, prior_run, tmp_path):
    out = shutil.copytree(five, tmp_path / "out")
    (out / "sample-00001.png").unlink()
    (out / "sample-00004.npy").unlink()
    assert generate(prior_run, out, "--count", 5, "--batch-size", 2) == 0
    assert contents(out) == contents(five)


def test_one_sample_alone_is_the_same(five, prior_run, tmp_path):
    assert generate(prior_run, tmp_path, "--count", 5, "--batch-size", 2, "--only", 3) == 0
    alone = contents(tmp_path)
    assert set(alone) == {"sample-00003.npy", "sample-00003.png"}
    assert alone.items() <= contents(five).items()


def test_count_may_grow_and_keeps_the_recorded_batch_size(five, prior_run, tmp_path):
    assert generate(prior_run, tmp_path, "--count", 2) == 0
    assert generate(prior_run, tmp_path, "--count", 5) == 0
    assert contents(tmp_path) == contents(five)
    assert contents(tmp_path, "grid.png") == contents(five, "grid.png")


def test_other_settings_in_the_same_folder_are_refused(five, prior_run, capsys):
    before = contents(five, "*")
    assert generate(prior_run, five, "--count", 5, "--seed", 1, "--top-k", 9) == 2
    error = capsys.readouterr().err
    assert "seed was 0, is 1" in error
    assert "top_k was None, is 9" in error
    assert contents(five, "*") == before


def test_settings_without_pictures_bind_nobody(prior_run, tmp_path):
    assert generate(prior_run, tmp_path, "--stride", 3) == 2
    assert generate(prior_run, tmp_path, "--count", 1) == 0


@pytest.mark.parametrize("size", ["5x3", "8x8", "75x41"])
def test_any_size_is_met_to_the_pixel(size, prior_run, tmp_path):
    assert generate(prior_run, tmp_path, "--count", 1, "--size", size) == 0
    height, width, _ = picture(tmp_path / "sample-00000.png").shape
    assert f"{width}x{height}" == size
    assert not (tmp_path / "grid.png").exists()


def test_large_pictures_are_shrunk_for_the_grid(prior_run, tmp_path):
    assert generate(prior_run, tmp_path, "--count", 2, "--size", "512x64") == 0
    assert picture(tmp_path / "grid.png").shape == (32, 256 + 2 + 256, 3)


def test_labels_are_dealt_out_in_turn(labelled_run, tmp_path):
    assert generate(labelled_run, tmp_path, "--count", 3, "--labels", "wood", "0") == 0
    codes = load_prior(labelled_run).paint(2, 3, count=3, labels=[2, 0, 2])
    for k in range(3):
        np.testing.assert_array_equal(np.load(tmp_path / f"sample-0000{k}.npy"), codes[k].numpy())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "12"], "WIDTHxHEIGHT"),
        (["--size", "0x8"], "WIDTHxHEIGHT"),
        (["--count", "0"], "--count"),
        (["--only", "4"], "--only"),
        (["--stride", "3"], "stride must be from 1 to 2"),
        (["--labels", "sea"], "No label 'sea'"),
        (["--labels", "3"], "0 to 2"),
        (["--temperature", "-1"], "temperature"),
        (["--batch-size", "0"], "--batch-size"),
        (["--device", "toaster"], "toaster"),
        (["--prior", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(flags, message, labelled_run, tmp_path, capsys):
    assert generate(labelled_run, tmp_path / "out", *flags) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(error) == 1
    assert message in error[0]
    assert not list(tmp_path.glob("out/sample-*"))


def test_a_foreign_tokenizer_is_refused(prior_run, tmp_path, capsys):
    run = shutil.copytree(prior_run, tmp_path / "run")
    save_tokenizer(run / "tokenizer", build_tokenizer("tiny", seed=1))
    assert generate(run, tmp_path / "out") == 2
    assert "would be noise" in capsys.readouterr().err


def test_a_missing_tokenizer_is_refused(prior_run, tmp_path, capsys):
    run = shutil.copytree(prior_run, tmp_path / "run")
    shutil.rmtree(run / "tokenizer")
    assert generate(run, tmp_path / "out") == 2
    assert "no folder `tokenizer`" in capsys.readouterr().err


@pytest.mark.ray
def test_workers_paint_the_same_pictures(five, prior_run, tmp_path, ray_local):
    flags = ["--count", 5, "--batch-size", 2, "--workers", 2]
    assert generate(prior_run, tmp_path, *flags) == 0
    assert contents(tmp_path, "*") == contents(five, "*")
