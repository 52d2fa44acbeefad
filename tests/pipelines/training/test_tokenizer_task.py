import dataclasses
import functools

import numpy as np
import pytest
import torch

from ops.images import to_pixels
from pipelines.training.parallel import Execution
from pipelines.recipes import TOKENIZER_RECIPES
from pipelines.training.tokenizer_task import TokenizerTrainee
from pipelines.training.loop import step_seed
from tests.conftest import photograph
from tokenizer import build_tokenizer
from tokenizer.contents import ContentConfig
from tokenizer.discriminator import DiscriminatorConfig

CPU = torch.device("cpu")
SIDE, STEPS, START = 32, 120, 60
SMALL_CRITIC = DiscriminatorConfig(channels=16)


def tokenizer_trainee(accumulate=1, **losses):
    torch.manual_seed(0)
    recipe = TOKENIZER_RECIPES["tiny"]
    losses = {"adversarial_start": 0, "discriminator": SMALL_CRITIC, **losses}
    recipe = dataclasses.replace(recipe, losses=dataclasses.replace(recipe.losses, **losses))
    model = build_tokenizer(recipe.preset, seed=0)
    held_out = photographs()[32:]
    execution = Execution(accumulate=accumulate)
    return TokenizerTrainee(model, recipe, STEPS, held_out, CPU, execution)


@functools.cache
def photographs():
    return to_pixels(np.stack([photograph(seed, 2 * SIDE, 2 * SIDE) for seed in range(40)]))


def crops(step):
    random = np.random.default_rng(step)
    top, left = random.integers(0, SIDE + 1, 2)
    chosen = photographs()[random.integers(0, 32, 8)]
    return chosen[:, :, top : top + SIDE, left : left + SIDE].contiguous()


def take(trainee, steps):
    """The figures of some steps."""
    found = []
    for step in steps:
        torch.manual_seed(step_seed(0, step))
        found.append(trainee.train_step(crops(step), step))
    return found


def errors_after_the_start(**losses):
    """Mean absolute error on held-out pictures, over that at the last step before the critic's."""
    trainee = tokenizer_trainee(adversarial_start=START, **losses)
    take(trainee, range(START))
    before = held_out_error(trainee)
    ratios = []
    for step in range(START, STEPS, 3):
        take(trainee, range(step, step + 3))
        ratios.append(held_out_error(trainee) / before)
    return ratios


@torch.no_grad()
def held_out_error(trainee):
    trainee.model.eval()
    rebuilt = trainee.model(trainee.held_out).pixels
    trainee.model.train()
    return float((rebuilt - trainee.held_out).abs().mean())


def test_reconstructions_outlive_the_moment_the_critic_starts():
    ratios = errors_after_the_start(adversarial_ramp=30)
    assert max(ratios) < 1.1
    assert ratios[-1] < 0.95  # and learning goes on
    # The same moment without ramp and balance is what ruins reconstructions.
    assert max(errors_after_the_start(adversarial_ramp=1, adaptive=False)) > 1.3


def test_the_critic_does_no_work_before_it_starts():
    trainee = tokenizer_trainee(adversarial_start=3)
    critic, calls = trainee.objective.discriminator, []
    critic.register_forward_hook(lambda *_: calls.append(1))
    before = [parameter.clone() for parameter in critic.parameters()]
    take(trainee, range(3))
    assert not calls
    assert not trainee.discriminator_optimizer.state
    assert all(torch.equal(a, b) for a, b in zip(before, critic.parameters(), strict=True))
    take(trainee, range(3, 4))
    assert len(calls) == 3  # once for the decoder, then a real and a rebuilt batch


EVERY_TERM = {"lecam_weight": 0.1, "r1_weight": 1.0, "r1_every": 3, "adversarial_ramp": 4}
SPECTRAL = dataclasses.replace(SMALL_CRITIC, spectral_norm=True, norm="none")


@pytest.mark.parametrize("critic", [SMALL_CRITIC, SPECTRAL])
def test_a_run_cut_at_any_step_goes_on_to_the_very_same_figures(tmp_path, critic):
    losses = {**EVERY_TERM, "adversarial_start": 1, "discriminator": critic}
    whole = take(tokenizer_trainee(accumulate=2, **losses), range(6))
    trainee = tokenizer_trainee(accumulate=2, **losses)
    parts = []
    for step in range(6):
        parts += take(trainee, [step])
        trainee.save(tmp_path / str(step))
        trainee = tokenizer_trainee(accumulate=2, **losses)
        trainee.load(tmp_path / str(step))
    assert [list(figures) for figures in parts] == [list(figures) for figures in whole]
    for one, other in zip(parts, whole, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert {"lecam_loss", "r1_loss"} <= set(whole[4])
    assert "r1_loss" not in whole[5]
    assert whole[4]["lecam_loss"] > 0


def test_a_cut_run_of_label_maps_goes_on_to_the_very_same_figures(tmp_path):
    def trainee():
        torch.manual_seed(0)
        content = ContentConfig(kind="segmentation", num_classes=5)
        recipe = dataclasses.replace(TOKENIZER_RECIPES["tiny-segmentation"], content=content)
        model = build_tokenizer(recipe.preset, seed=0, content=content)
        return TokenizerTrainee(model, recipe, STEPS, torch.empty(0), CPU)

    def steps(trainee, numbers):
        found = []
        for step in numbers:
            random = torch.Generator().manual_seed(step)
            labels = torch.randint(-1, 5, (2, 1, SIDE, SIDE), generator=random)
            found.append(trainee.train_step(labels, step))
        return found

    whole = steps(trainee(), range(4))
    first, second = trainee(), trainee()
    parts = steps(first, range(2))
    first.save(tmp_path / "half")
    second.load(tmp_path / "half")
    parts += steps(second, range(2, 4))
    for one, other in zip(parts, whole, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole[0]["reconstruction_loss"] > 1
