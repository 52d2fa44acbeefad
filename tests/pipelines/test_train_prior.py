import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from ops.checkpoint import step_folder
from ops.tensor_files import load_tensors
from pipelines import evaluate, generate, train_prior
from pipelines.recipes import PRIOR_RECIPES
from pipelines.store import CodeStore
from pipelines.training.prior_run import code_levels
from prior import load_prior
from tests.conftest import make_store
from tokenizer import PRESETS, VQGAN, load_tokenizer, save_tokenizer
from tokenizer.quantizers import QuantizerConfig

FLAGS = [
    "--steps", "4", "--save-every", "2", "--sample-every", "4", "--log-every", "1",
    "--batch-size", "2", "--window", "4", "--threads", "1",
]  # fmt: skip


@pytest.fixture
def store(rule_store):
    return rule_store


def train(store, out, *more):
    return train_prior.main(["tiny", "--codes", str(store), "--out", str(out), *FLAGS, *more])


def logged(run, name):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[name]) for line in lines if name in line]


def test_training_writes_a_prior_that_samples_and_records_its_tokenizer(store, tmp_path, capsys):
    assert train(store, tmp_path / "run") == 0
    assert "4 steps taken" in capsys.readouterr().out
    prior = load_prior(tmp_path / "run")
    kept = load_tokenizer(tmp_path / "run" / "tokenizer")
    assert prior.tokenizer_info["fingerprint"] == kept.fingerprint
    codes = prior.sample(4, 4, count=1)
    assert kept.decode(codes).shape == (1, 3, 32, 32)
    assert (tmp_path / "run" / "samples" / "samples-00000004.png").is_file()
    assert len(logged(tmp_path / "run", "loss")) == 4
    assert train(store, tmp_path / "run") == 0
    assert "nothing left to do" in capsys.readouterr().out


def test_a_resumed_run_has_the_losses_and_weights_of_an_uninterrupted_one(store, tmp_path):
    train(store, tmp_path / "whole")
    train(store, tmp_path / "parts")
    shutil.rmtree(step_folder(tmp_path / "parts", 4))  # as if it had been killed in step 3
    assert train(store, tmp_path / "parts") == 0
    losses = logged(tmp_path / "whole", "loss")
    assert [step for step, _ in losses] == [1, 2, 3, 4]
    assert logged(tmp_path / "parts", "loss") == losses
    whole, parts = (
        load_tensors(step_folder(tmp_path / name, 4) / "model.safetensors")
        for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_it_learns_the_rule(store, tmp_path):
    assert train(store, tmp_path / "run", "--steps", "40", "--batch-size", "8") == 0
    losses = [loss for _, loss in logged(tmp_path / "run", "loss")]
    assert losses[0] > 5  # ln 256 is 5.5 nats
    assert losses[-1] < 1.8  # only few codes occur; ln 2 is 0.69


def test_classes_are_learned_and_named(store, tmp_path):
    assert train(store, tmp_path / "run", "--conditions", "class") == 0
    prior = load_prior(tmp_path / "run")
    assert prior.conditions.label_number("class2") == 2
    assert prior.sample(4, 4, labels=1, guidance_scale=2.0).shape == (1, 4, 4)


def test_another_ordering_is_trained_and_generates_only_its_window(store, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    assert train(store, run, "--ordering", "spiral-in") == 0
    assert load_prior(run).config.ordering == "spiral-in"
    words = ["--prior", str(run), "--count", "1", "--out"]
    assert generate.main([*words, str(out), "--size", "32x24"]) == 0
    assert (out / "sample-00000.png").is_file()
    capsys.readouterr()
    assert generate.main([*words, str(tmp_path / "o"), "--size", "64x32"]) == 2
    assert "its canvas is at most its window of 4x4 codes; found 4x8" in capsys.readouterr().err


def test_codes_of_a_tokenizer_with_levels_are_learned_by_these(tmp_path, capsys):
    config = dataclasses.replace(
        PRESETS["tiny"],
        quantizer=QuantizerConfig(kind="fsq", codebook_size=240, code_dim=3, levels=(8, 6, 5)),
    )
    save_tokenizer(tmp_path / "tokenizer", VQGAN(config))
    fingerprint = load_tokenizer(tmp_path / "tokenizer").fingerprint
    codes = np.random.default_rng(0).integers(0, 240, (8, 4, 4))
    store = make_store(
        tmp_path / "s.zarr", codes, codebook_size=240, fingerprint=fingerprint, downsample_factor=8
    )
    shutil.copytree(tmp_path / "tokenizer", store / "_tokenizer" / "image")
    run = tmp_path / "run"
    assert train(store, run, "--factorised", "auto", "--dry-run") == 0
    rows = 8 + 6 + 5 + 1
    assert f"token_embedding {rows * 256:,}" in capsys.readouterr().out
    flags = ["--conditions", "inpaint", "--steps", "2", "--sample-every", "2"]
    assert train(store, run, "--factorised", "auto", *flags) == 0
    prior = load_prior(run)
    assert prior.config.code_levels == (8, 6, 5)
    assert prior.config.condition_codes == (0,)
    assert (run / "samples" / "samples-00000002.png").is_file()
    assert train(store, run, *flags) == 2
    assert 'recipe.factorised: "auto" -> "no"' in capsys.readouterr().err


def test_codes_without_levels_are_learned_by_themselves(store):
    recipe = dataclasses.replace(PRIOR_RECIPES["tiny"], factorised="auto")
    assert code_levels(recipe, CodeStore.open(store)) == ()


def test_codes_of_another_tokenizer_are_refused_naming_both(store, tmp_path, capsys):
    train(store, tmp_path / "run")
    kept = load_tokenizer(tmp_path / "run" / "tokenizer").fingerprint
    other = make_store(tmp_path / "o.zarr", np.zeros((4, 4, 4), int), codebook_size=256)
    assert train(other, tmp_path / "run") == 2
    message = capsys.readouterr().err
    assert kept in message
    assert "0" * 16 in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--window", "6"], "smaller than the prior's window"),
        (["--conditions", "nonesuch"], "No condition 'nonesuch'"),
        (["--device", "abacus"], "No device"),
        (["--held-out", "1"], "no row to train on"),
        (["--factorised", "yes"], "the quantizer 'vq'. Use --factorised no"),
        (["--ordering", "zigzag"], "ordering must be one of row-major, alternate"),
    ],
)
def test_user_errors_end_with_one_line_and_code_2(store, tmp_path, capsys, changes, message):
    assert train(store, tmp_path / "run", *changes) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_resuming_with_other_settings_is_refused(store, tmp_path, capsys):
    train(store, tmp_path / "run")
    assert train(store, tmp_path / "run", "--batch-size", "3") == 2
    assert "started with other settings" in capsys.readouterr().err


def test_an_unknown_recipe_is_refused_naming_all_recipes(store, tmp_path, capsys):
    flags = ["nonesuch", "--codes", str(store), "--out", str(tmp_path / "run")]
    assert train_prior.main(flags) == 2
    assert "there are tiny" in capsys.readouterr().err


def test_evaluate_gives_the_models_likelihood_of_a_store(store, tmp_path):
    train(store, tmp_path / "run")
    flags = ["--data", str(store), "--out", str(tmp_path / "m.json"), "--held-out", "1"]
    assert evaluate.main(["prior", str(tmp_path / "run"), *flags]) == 0
    metrics = json.loads((tmp_path / "m.json").read_text())["metrics"]
    prior = load_prior(tmp_path / "run")
    # the middle window of 4 in a grid of 5 starts at int(0.5 * 2) = 1
    codes = CodeStore.open(store).read("5x5", np.arange(24)).astype(np.int64)[:, 1:, 1:]
    with torch.no_grad():
        expected = prior.model.loss(prior.conditions.null_tokens(24), torch.from_numpy(codes))
    assert metrics["rows"] == 24
    assert metrics["nats_per_code"] == pytest.approx(float(expected), rel=1e-5)


def test_evaluating_on_codes_of_another_tokenizer_is_refused(store, tmp_path, capsys):
    train(store, tmp_path / "run")
    other = make_store(tmp_path / "o.zarr", np.zeros((4, 4, 4), int), codebook_size=256)
    flags = ["--data", str(other), "--out", str(tmp_path / "m.json"), "--held-out", "1"]
    assert evaluate.main(["prior", str(tmp_path / "run"), *flags]) == 2
    assert f"was encoded by tokenizer {'0' * 16}, but the prior in" in capsys.readouterr().err
