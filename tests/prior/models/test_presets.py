import json

import pytest
import torch

from ops.config import from_json, to_json
from prior import GPT, Conditions, GPTConfig, StartOfSequence, load_prior, save_prior
from prior.models.presets import GPT_PRESETS, MODERN

SIZES = {"codebook_size": 11, "condition_vocab_size": 3, "condition_length": 2}


TOKENIZER = {"fingerprint": "0" * 16, "name": "x", "codebook_size": 11, "downsample_factor": 8}


def num_parameters(**sizes):
    """Number of parameters of a GPT, counted without allocating them."""
    config = GPTConfig(**sizes)
    with torch.device("meta"):
        model = GPT(config)
    return sum(parameter.numel() for parameter in model.parameters())


# The first two counts are those of published checkpoints; the others follow from their sizes.
@pytest.mark.parametrize(
    ("preset", "codebook_size", "condition_length", "published"),
    [
        ("large", 1024, 256, 304_932_864),
        ("huge", 16384, 1, 1_410_642_432),
        ("ffhq", 1024, 1, 28 * 12_596_224 + (2 * 1024 + 257 + 2) * 1024),
        ("coco-stuff", 8192, 256, 32 * 19_677_440 + (2 * 8192 + 512 + 2) * 1280),
    ],
)
def test_presets_have_the_published_number_of_parameters(
    preset, codebook_size, condition_length, published
):
    sizes = {"codebook_size": codebook_size, "condition_length": condition_length}
    found = num_parameters(**sizes, condition_vocab_size=1, **GPT_PRESETS[preset])
    # Published models share condition tokens with the codes.
    extra_token = GPT_PRESETS[preset]["width"]
    assert found - extra_token == published


@pytest.mark.parametrize("name", ["tiny", "base", "large"])
def test_modern_presets_have_about_as_many_parameters_as_the_plain_ones(name):
    plain, modern = (
        num_parameters(**SIZES, **GPT_PRESETS[preset]) for preset in (name, f"{name}-modern")
    )
    assert modern == pytest.approx(plain, rel=0.025)
    assert GPT_PRESETS[f"{name}-modern"] == {**GPT_PRESETS[name], **MODERN}


@pytest.mark.parametrize("name", GPT_PRESETS)
def test_every_preset_is_a_config_that_round_trips_through_json(name):
    config = GPTConfig(**SIZES, **GPT_PRESETS[name])
    assert from_json(GPTConfig, json.loads(json.dumps(to_json(config)))) == config
    in_blocks = 12 * config.num_layers * config.width**2  # 4 of attention, 8 of the MLP
    assert num_parameters(**SIZES, **GPT_PRESETS[name]) == pytest.approx(in_blocks, rel=0.1)


def test_config_fields_that_are_missing_default_to_the_paper(tmp_path):
    conditions = Conditions([StartOfSequence()], 11)
    model = GPT(GPTConfig(**SIZES | {"condition_vocab_size": 1, "condition_length": 1}, width=8))
    save_prior(tmp_path, model, conditions, TOKENIZER)
    description = json.loads((tmp_path / "config.json").read_text())
    for name in [*MODERN, "code_levels", "condition_codes"]:
        del description["config"][name]
    (tmp_path / "config.json").write_text(json.dumps(description))
    loaded = load_prior(tmp_path)
    assert loaded.config == model.config
    assert loaded.model.state_dict().keys() == model.state_dict().keys()
    # State dict keys are part of the format on disk.
    assert {"position_embedding.weight", "norm.bias", "blocks.0.attention_norm.bias"} | {
        f"blocks.3.{name}.{kind}"
        for name in ("attention.qkv", "attention.proj", "mlp.0", "mlp.2")
        for kind in ("weight", "bias")
    } < model.state_dict().keys()
