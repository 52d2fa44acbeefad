"""PixelSNAIL by the commands: training, evaluation, generation."""

import json

from pipelines import evaluate, generate, train_prior
from prior import PixelSNAIL, load_prior, make_model, preset_config

FLAGS = [
    "--steps", "25", "--save-every", "25", "--sample-every", "25", "--log-every", "1",
    "--batch-size", "4", "--window", "4", "--threads", "1",
]  # fmt: skip


def test_it_is_trained_evaluated_and_generates_canvases_of_any_size(rule_store, tmp_path, capsys):
    run, out, found = tmp_path / "run", tmp_path / "out", tmp_path / "found.json"
    words = ["tiny-snail", "--codes", str(rule_store), "--out", str(run), *FLAGS]
    assert train_prior.main(words) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[0] > 5  # ln 256 is 5.5 nats
    assert losses[-1] < 1.8  # only few codes occur; ln 2 is 0.69
    assert isinstance(load_prior(run).model, PixelSNAIL)
    flags = ["prior", str(run), "--data", str(rule_store), "--out", str(found)]
    assert evaluate.main([*flags, "--held-out", "0.5"]) == 0
    assert json.loads(found.read_text())["metrics"]["nats_per_code"] < 2.5
    words = ["--prior", str(run), "--out", str(out), "--count", "2", "--size", "72x40"]
    assert generate.main(words) == 0
    assert (out / "sample-00001.png").is_file()
    capsys.readouterr()
    words = ["tiny-snail", "--codes", str(rule_store), "--out", str(tmp_path / "o"), *FLAGS]
    assert train_prior.main([*words, "--ordering", "random"]) == 2
    assert "'tiny-snail' has no ordering" in capsys.readouterr().err


def test_a_dry_run_prints_its_size(rule_store, tmp_path, capsys):
    words = ["tiny-snail", "--codes", str(rule_store), "--out", str(tmp_path / "run"), *FLAGS]
    assert train_prior.main([*words, "--dry-run"]) == 0
    sizes = {"codebook_size": 256, "condition_vocab_size": 1, "condition_length": 1}
    model = make_model(preset_config("tiny-snail", **sizes, window=4))
    count = sum(parameter.numel() for parameter in model.parameters())
    text = capsys.readouterr().out
    assert f"parameters  {count:,}" in text
    assert "4 windows of 4x4" in text
