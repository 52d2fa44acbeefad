import json

import pytest
import torch

from ops.config import ConfigError, from_json, to_json
from prior import GPT, PRESETS, GPTConfig, load_prior, save_prior
from prior.conditions import Conditions, StartOfSequence
from prior.models.gpt_config import MODERN

SIZES = {"codebook_size": 11, "condition_vocab_size": 3, "condition_length": 2}


def num_parameters(**sizes):
    """Parameters of a GPT, counted without making them."""
    config = GPTConfig(**sizes)
    with torch.device("meta"):
        model = GPT(config)
    return sum(parameter.numel() for parameter in model.parameters())


# The first two counts are the published models' own; the others follow from their sizes.
@pytest.mark.parametrize(
    ("preset", "codebook_size", "condition_length", "published"),
    [
        ("large", 1024, 256, 304_932_864),
        ("huge", 16384, 1, 1_410_642_432),
        ("ffhq", 1024, 1, 28 * 12_596_224 + (2 * 1024 + 257 + 2) * 1024),
        ("coco-stuff", 8192, 256, 32 * 19_677_440 + (2 * 8192 + 512 + 2) * 1280),
    ],
)
def test_presets_have_the_papers_numbers_of_parameters(
    preset, codebook_size, condition_length, published
):
    sizes = {"codebook_size": codebook_size, "condition_length": condition_length}
    ours = num_parameters(**sizes, condition_vocab_size=1, **PRESETS[preset])
    one_more_token = PRESETS[preset]["width"]  # theirs share their condition tokens with the codes
    assert ours - one_more_token == published


@pytest.mark.parametrize("name", ["tiny", "base", "large"])
def test_modern_presets_are_as_large_as_the_papers(name):
    plain, modern = (
        num_parameters(**SIZES, **PRESETS[preset]) for preset in (name, f"{name}-modern")
    )
    assert modern == pytest.approx(plain, rel=0.025)
    assert PRESETS[f"{name}-modern"] == {**PRESETS[name], **MODERN}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_config_that_survives_json(name):
    config = GPTConfig(**SIZES, **PRESETS[name])
    assert from_json(GPTConfig, json.loads(json.dumps(to_json(config)))) == config
    in_blocks = 12 * config.num_layers * config.width**2  # 4 of attention, 8 of the MLP
    assert num_parameters(**SIZES, **PRESETS[name]) == pytest.approx(in_blocks, rel=0.1)


def test_a_prior_saved_before_there_were_modern_parts_is_the_papers(tmp_path):
    conditions = Conditions([StartOfSequence()], 11)
    model = GPT(GPTConfig(**SIZES | {"condition_vocab_size": 1, "condition_length": 1}, width=8))
    save_prior(tmp_path, model, conditions, {"fingerprint": "0" * 16})
    description = json.loads((tmp_path / "config.json").read_text())
    for name in MODERN:
        del description["config"][name]
    (tmp_path / "config.json").write_text(json.dumps(description))
    loaded = load_prior(tmp_path)
    assert loaded.config == model.config
    assert loaded.model.state_dict().keys() == model.state_dict().keys()
    # The keys that priors were saved under before, too.
    assert {"position_embedding.weight", "norm.bias", "blocks.0.attention_norm.bias"} | {
        f"blocks.3.{name}.{kind}"
        for name in ("attention.qkv", "attention.proj", "mlp.0", "mlp.2")
        for kind in ("weight", "bias")
    } < model.state_dict().keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook_size": 0}, "codebook_size"),
        ({"condition_length": 0}, "condition_length"),
        ({"window": 0}, "window"),
        ({"num_layers": 0}, "num_layers"),
        ({"num_heads": 3, "width": 8}, "multiple"),
        ({"dropout": 1.0}, "dropout"),
        ({"positions": "sine"}, "positions must be one of learned, rope2d, found 'sine'"),
        ({"norm": "batch"}, "norm must be one of layer, rms"),
        ({"mlp": "relu"}, "mlp must be one of gelu, swiglu"),
        ({"positions": "rope2d", "num_heads": 4, "width": 24}, "multiple of 4; found 6"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        GPTConfig(**SIZES | changes)
