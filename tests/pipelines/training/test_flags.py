from pathlib import Path

import pytest
import torch

from ops.config import ConfigError
from ops.ranks import ALONE
from pipelines.flags import TrainingFlags
from pipelines.recipes import PRIOR_RECIPES, TOKENIZER_RECIPES
from pipelines.training.flags import loop_settings, override_recipe, parallel_config_of


def flags(**given):
    return TrainingFlags(out=Path("run"), **given)


@pytest.mark.parametrize("recipes", [TOKENIZER_RECIPES, PRIOR_RECIPES])
def test_without_flags_every_recipe_stays_as_it_is(recipes):
    for name, recipe in recipes.items():
        assert override_recipe(recipes, name, flags()) == recipe


def test_flags_replace_their_own_fields_only():
    recipe = override_recipe(PRIOR_RECIPES, "tiny", flags(steps=7, learning_rate=0.5))
    assert (recipe.steps, recipe.optimizer.learning_rate) == (7, 0.5)
    assert recipe.optimizer.betas == PRIOR_RECIPES["tiny"].optimizer.betas
    assert recipe.batch_size == PRIOR_RECIPES["tiny"].batch_size
    assert loop_settings(recipe, flags(seed=3)).steps == 7
    assert loop_settings(recipe, flags(seed=3, skip_non_finite=2)).skip_non_finite == 2


def test_counts_below_one_and_unknown_recipes_are_refused():
    with pytest.raises(ConfigError, match="--save-every must be at least 1, found 0"):
        override_recipe(PRIOR_RECIPES, "tiny", flags(save_every=0))
    with pytest.raises(ConfigError, match="No recipe 'nonesuch'; there are tiny"):
        override_recipe(PRIOR_RECIPES, "nonesuch", flags())


def test_a_batch_that_does_not_divide_evenly_is_refused_naming_one_that_does():
    with pytest.raises(ConfigError, match=r"batch of 8 .* evenly by 6 .*--batch-size 12"):
        override_recipe(PRIOR_RECIPES, "tiny", flags(workers=2, accumulate=3))
    with pytest.raises(ConfigError, match="--accumulate must be at least 1, found 0"):
        override_recipe(PRIOR_RECIPES, "tiny", flags(accumulate=0))
    with pytest.raises(ConfigError, match="--address needs --workers"):
        override_recipe(PRIOR_RECIPES, "tiny", flags(address="auto"))
    assert override_recipe(PRIOR_RECIPES, "tiny", flags(workers=2, accumulate=4)).batch_size == 8


def test_gpus_compile_unless_disabled():
    def compiles(device, shard=False, **given):
        return parallel_config_of(flags(**given), ALONE, torch.device(device), shard).compile

    assert [compiles("cpu"), compiles("cuda"), compiles("cuda", shard=True)] == [False, True, True]
    assert [compiles("cpu", compile="yes"), compiles("cuda", compile="no")] == [True, False]


def test_auto_precision_is_bfloat16_on_gpus_alone():
    def precision(device, **given):
        return parallel_config_of(flags(**given), ALONE, torch.device(device)).precision

    assert [precision("cpu"), precision("cuda")] == ["float32", "bfloat16"]
    assert precision("cpu", precision="bfloat16") == "bfloat16"
    assert precision("cuda", precision="tf32") == "tf32"
