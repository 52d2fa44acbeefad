import re

import pytest
import torch

from pipelines import train_prior, train_tokenizer
from pipelines.recipes import PRIOR_RECIPES, TOKENIZER_RECIPES
from pipelines.training.estimate import Division, describe_prior, describe_tokenizer
from prior import GPT, preset_config
from tokenizer import build_tokenizer

DIVISION = {"workers": 1, "accumulate": 1, "recompute": False, "shard": False, "bfloat16": False}
CONFIG = preset_config(
    "tiny", codebook_size=256, condition_vocab_size=1, condition_length=1, window=16
)


def lines(**division):
    recipe = PRIOR_RECIPES["tiny"]
    changed = Division(**{**DIVISION, **division})
    return "\n".join(describe_prior(CONFIG, recipe, images=100, held_out=5, division=changed))


def mebibytes(text, name):
    number, unit = re.search(rf"{name} ([\d.]+) (\w+)", text).groups()
    return float(number) * {"KiB": 2**-10, "MiB": 1, "GiB": 1024}[unit]


def test_the_sizes_of_a_prior_are_those_of_the_model_and_the_recipe():
    parameters = sum(p.numel() for p in GPT(CONFIG).parameters())
    text = lines()
    assert f"parameters  {parameters:,}: token_embedding {257 * 256:,}," in text
    assert "8 windows of 16x16: 2,048 codes, 2,048 tokens" in text
    assert "12.5 steps: 100 images to train on, 5 held out; 400 steps are 32.00 epochs" in text
    assert mebibytes(text, "weights") == pytest.approx(4 * parameters / 2**20, abs=0.6)
    assert mebibytes(text, "AdamW") == pytest.approx(8 * parameters / 2**20, abs=0.6)


def test_activations_are_the_tensors_saved_for_the_backward_pass():
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    model = GPT(CONFIG)
    codes, tokens = torch.zeros(8, 16, 16, dtype=torch.int64), torch.full((8, 1), 256)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.loss(tokens, codes)
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage()._cdata, None)
    expected = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 2**20
    assert mebibytes(lines(), "roughly") == pytest.approx(expected, rel=0.02)


def test_micro_batches_processes_and_bfloat16_need_less_memory():
    whole = mebibytes(lines(), "roughly")
    assert mebibytes(lines(accumulate=4), "roughly") == pytest.approx(whole / 4, rel=0.1)
    assert mebibytes(lines(workers=4), "roughly") == pytest.approx(whole / 4, rel=0.1)
    assert mebibytes(lines(bfloat16=True), "roughly") < 0.8 * whole
    assert mebibytes(lines(recompute=True), "roughly") < 0.4 * whole
    assert "2 processes x 2 micro-batches of 2" in lines(workers=2, accumulate=2)
    assert mebibytes(lines(workers=2, shard=True), "weights") == pytest.approx(
        mebibytes(lines(), "weights") / 2, abs=0.6
    )


def test_the_sizes_of_a_tokenizer_are_those_of_the_model():
    recipe = TOKENIZER_RECIPES["tiny"]

    def lines(**division):
        changed = Division(**{**DIVISION, **division})
        return "\n".join(describe_tokenizer(recipe, 100, 5, changed))

    text = lines()
    parameters = sum(p.numel() for p in build_tokenizer("tiny", 0).parameters())
    assert f"parameters  {parameters:,}: encoder" in text
    assert "8 crops of 64x64 pixels: 512 codes" in text
    assert mebibytes(text, "roughly") > 1
    assert mebibytes(lines(recompute=True), "roughly") < 0.7 * mebibytes(text, "roughly")


def test_a_dry_run_prints_and_writes_nothing(rule_store, photographs, tmp_path, capsys):
    flags = ["tiny", "--out", str(tmp_path / "run"), "--dry-run", "--batch-size", "4"]
    assert train_prior.main([*flags, "--codes", str(rule_store), "--window", "4"]) == 0
    assert "23 images to train on, 1 held out" in capsys.readouterr().out
    assert train_tokenizer.main([*flags, "--data", str(photographs)]) == 0
    assert "images to train on" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
