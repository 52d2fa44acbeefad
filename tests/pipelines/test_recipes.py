import dataclasses

import pytest

import prior
import tokenizer
from pipelines.recipes import PRIOR_RECIPES, TOKENIZER_RECIPES


@pytest.mark.parametrize("name", TOKENIZER_RECIPES)
def test_tokenizer_recipes_name_networks_that_fit_their_crops(name):
    recipe = TOKENIZER_RECIPES[name]
    factor = tokenizer.PRESETS[recipe.preset].downsample_factor
    assert recipe.crop_size % factor == 0
    assert recipe.evaluation_size % factor == 0
    assert recipe.losses.adversarial == "none" or recipe.losses.adversarial_start < recipe.steps


@pytest.mark.parametrize("name", PRIOR_RECIPES)
def test_prior_recipes_name_existing_networks(name):
    recipe = PRIOR_RECIPES[name]
    sizes = {"codebook_size": 8, "condition_vocab_size": 1, "condition_length": 1}
    config = prior.preset_config(recipe.preset, window=recipe.window, **sizes)
    assert (config.codebook_size, config.window) == (8, recipe.window)


def test_only_full_size_recipes_use_lpips():
    perceptual = {name: recipe.losses.perceptual for name, recipe in TOKENIZER_RECIPES.items()}
    assert {name for name, kind in perceptual.items() if kind == "lpips"} == {
        "imagenet-f16", "imagenet-f16-16384", "faces-f16", "f8-8192-gumbel", "llamagen-f16",
    }  # fmt: skip


def test_vqvae_differs_from_the_papers_tokenizer_only_in_its_losses():
    vqvae, vqgan = (TOKENIZER_RECIPES[name] for name in ("vqvae-f16", "imagenet-f16"))
    assert tokenizer.PRESETS[vqvae.preset] == tokenizer.PRESETS[vqgan.preset]
    assert (vqvae.losses.perceptual, vqvae.losses.adversarial) == ("none", "none")
    alike = dataclasses.replace(vqvae, preset=vqgan.preset, losses=vqgan.losses)
    assert alike == vqgan


def test_tiny_has_every_loss_of_the_paper_but_lpips():
    recipe = TOKENIZER_RECIPES["tiny"]
    assert tokenizer.PRESETS["tiny"].quantizer.kind == "vq"
    assert recipe.losses.l1_weight == 1
    assert recipe.losses.adversarial == "hinge"
    assert recipe.losses.adaptive
