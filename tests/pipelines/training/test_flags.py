from pathlib import Path

import pytest
import torch

from ops.config import ConfigError
from ops.ranks import ALONE
from pipelines.recipes import PRIOR_RECIPES, TOKENIZER_RECIPES
from pipelines.training.flags import (
    TrainingFlags,
    lasting_settings,
    loop_settings,
    outcome,
    override_recipe,
    parallel_config_of,
)


def flags(**given):
    return TrainingFlags(out=Path("run"), **given)


@pytest.mark.parametrize("recipes", [TOKENIZER_RECIPES, PRIOR_RECIPES])
def test_no_flags_leave_every_recipe_as_it_is(recipes):
    for name, recipe in recipes.items():
        assert override_recipe(recipes, name, flags()) == recipe


def test_flags_replace_their_own_fields_only():
    laid = override_recipe(PRIOR_RECIPES, "tiny", flags(steps=7, learning_rate=0.5))
    assert (laid.steps, laid.optimizer.learning_rate) == (7, 0.5)
    assert laid.optimizer.betas == PRIOR_RECIPES["tiny"].optimizer.betas
    assert laid.batch_size == PRIOR_RECIPES["tiny"].batch_size
    assert loop_settings(laid, seed=3).steps == 7
    assert loop_settings(laid, seed=3).seed == 3


def test_counts_below_one_and_unknown_recipes_are_refused():
    with pytest.raises(ConfigError, match="--save-every must be at least 1, found 0"):
        override_recipe(PRIOR_RECIPES, "tiny", flags(save_every=0))
    with pytest.raises(ConfigError, match="No recipe 'nonesuch'; there are tiny"):
        override_recipe(PRIOR_RECIPES, "nonesuch", flags())


def test_the_length_of_a_run_may_change_and_its_batches_may_not():
    def lasting(**given):
        return lasting_settings(override_recipe(PRIOR_RECIPES, "tiny", flags(**given)), seed=0)

    assert lasting(steps=5, save_every=1) == lasting()
    assert lasting(batch_size=5) != lasting()


def test_the_last_line_says_what_was_done_and_what_comes_next():
    assert outcome(Path("r"), 3, 9, "paint") == "r: 3 steps taken, 9 in all; paint"
    assert outcome(Path("r"), 0, 9, "paint") == "r: nothing left to do, 9 in all; paint"


def test_a_batch_that_does_not_divide_evenly_is_refused_naming_one_that_does():
    with pytest.raises(ConfigError, match=r"batch of 8 .* evenly by 6 .*--batch-size 12"):
        override_recipe(PRIOR_RECIPES, "tiny", flags(workers=2, accumulate=3))
    with pytest.raises(ConfigError, match="--accumulate must be at least 1, found 0"):
        override_recipe(PRIOR_RECIPES, "tiny", flags(accumulate=0))
    with pytest.raises(ConfigError, match="--address needs --workers"):
        override_recipe(PRIOR_RECIPES, "tiny", flags(address="auto"))
    assert override_recipe(PRIOR_RECIPES, "tiny", flags(workers=2, accumulate=4)).batch_size == 8


def test_gpus_compile_unless_told_otherwise_or_sharded():
    def compiles(device, shard=False, **given):
        return parallel_config_of(flags(**given), ALONE, torch.device(device), shard).compile

    assert [compiles("cpu"), compiles("cuda"), compiles("cuda", shard=True)] == [False, True, False]
    assert [compiles("cpu", compile="yes"), compiles("cuda", compile="no")] == [True, False]
