import dataclasses
import functools

import numpy as np
import pytest
import torch

from ops.images import to_pixels
from pipelines.recipes import TOKENIZER_RECIPES
from pipelines.training.loop import step_seed
from pipelines.training.parallel import ParallelConfig
from pipelines.training.tokenizer_task import TokenizerTask
from tests.conftest import photograph
from tests.pipelines.training.test_prior_task import save
from tokenizer import build_tokenizer
from tokenizer.discriminator import DiscriminatorConfig
from tokenizer.modalities import ModalityConfig

CPU = torch.device("cpu")
SIDE, STEPS, START = 32, 120, 60
SMALL_DISCRIMINATOR = DiscriminatorConfig(channels=16)


def tokenizer_task(accumulate=1, compile=False, **losses):
    torch.manual_seed(0)
    recipe = TOKENIZER_RECIPES["tiny"]
    losses = {"adversarial_start": 0, "discriminator": SMALL_DISCRIMINATOR, **losses}
    recipe = dataclasses.replace(recipe, losses=dataclasses.replace(recipe.losses, **losses))
    model = build_tokenizer(recipe.preset, seed=0)
    held_out = photographs()[32:]
    parallel_config = ParallelConfig(accumulate=accumulate, compile=compile)
    return TokenizerTask(model, recipe, STEPS, held_out, CPU, parallel_config)


@functools.cache
def photographs():
    return to_pixels(np.stack([photograph(seed, 2 * SIDE, 2 * SIDE) for seed in range(40)]))


def crops(step):
    random = np.random.default_rng(step)
    top, left = random.integers(0, SIDE + 1, 2)
    chosen = photographs()[random.integers(0, 32, 8)]
    return chosen[:, :, top : top + SIDE, left : left + SIDE].contiguous()


def take(train_task, steps):
    """The metrics of some steps."""
    found = []
    for step in steps:
        torch.manual_seed(step_seed(0, step))
        found.append(train_task.train_step(crops(step), step))
    return found


def errors_after_the_start(**losses):
    """Held-out mean absolute errors after the discriminator starts, over that just before."""
    train_task = tokenizer_task(adversarial_start=START, **losses)
    take(train_task, range(START))
    before = held_out_error(train_task)
    ratios = []
    for step in range(START, STEPS, 3):
        take(train_task, range(step, step + 3))
        ratios.append(held_out_error(train_task) / before)
    return ratios


@torch.no_grad()
def held_out_error(train_task):
    train_task.model.eval()
    rebuilt = train_task.model(train_task.held_out).pixels
    train_task.model.train()
    return float((rebuilt - train_task.held_out).abs().mean())


def test_reconstructions_stay_good_when_the_discriminator_starts():
    ratios = errors_after_the_start(adversarial_ramp=30)
    assert max(ratios) < 1.1
    assert ratios[-1] < 0.95  # and they go on improving
    # Without ramp and adaptive weight they do not.
    assert max(errors_after_the_start(adversarial_ramp=1, adaptive=False)) > 1.3


# Inside torch's tracing a warning that is an error ends the compilation.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_training_goes_on_when_the_discriminator_starts(monkeypatch, backend):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    eager, compiled = (
        take(tokenizer_task(compile=compile, adversarial_start=1), range(3))
        for compile in (False, True)
    )
    assert "adaptive_weight" in compiled[1]
    for step in range(3):
        for name in ("loss", "gradient_norm", "discriminator_loss"):
            if name in eager[step]:
                torch.testing.assert_close(
                    compiled[step][name], eager[step][name], rtol=1e-4, atol=0
                )


def test_the_discriminator_is_not_called_before_it_starts():
    train_task = tokenizer_task(adversarial_start=3)
    discriminator, calls = train_task.objective.discriminator, []
    discriminator.register_forward_hook(lambda *_: calls.append(1))
    before = [parameter.clone() for parameter in discriminator.parameters()]
    take(train_task, range(3))
    assert not calls
    assert not train_task.discriminator_optimizer.state
    assert all(torch.equal(a, b) for a, b in zip(before, discriminator.parameters(), strict=True))
    take(train_task, range(3, 4))
    assert len(calls) == 3  # once for the decoder, then a real and a rebuilt batch


EVERY_TERM = {"lecam_weight": 0.1, "r1_weight": 1.0, "r1_every": 3, "adversarial_ramp": 4}
SPECTRAL = dataclasses.replace(SMALL_DISCRIMINATOR, spectral_norm=True, norm="none")


@pytest.mark.parametrize("discriminator", [SMALL_DISCRIMINATOR, SPECTRAL])
def test_a_run_resumed_at_any_step_has_identical_metrics(tmp_path, discriminator):
    losses = {**EVERY_TERM, "adversarial_start": 1, "discriminator": discriminator}
    whole = take(tokenizer_task(accumulate=2, **losses), range(6))
    train_task = tokenizer_task(accumulate=2, **losses)
    parts = []
    for step in range(6):
        parts += take(train_task, [step])
        save(train_task, tmp_path / str(step))
        train_task = tokenizer_task(accumulate=2, **losses)
        train_task.load(tmp_path / str(step))
    assert [list(metrics) for metrics in parts] == [list(metrics) for metrics in whole]
    for one, other in zip(parts, whole, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert {"lecam_loss", "r1_loss"} <= set(whole[4])
    assert "r1_loss" not in whole[5]
    assert whole[4]["lecam_loss"] > 0


def test_a_resumed_run_on_label_maps_has_identical_metrics(tmp_path):
    def train_task():
        torch.manual_seed(0)
        modality = ModalityConfig(kind="segmentation", num_classes=5)
        recipe = dataclasses.replace(TOKENIZER_RECIPES["tiny-segmentation"], modality=modality)
        model = build_tokenizer(recipe.preset, seed=0, modality=modality)
        return TokenizerTask(model, recipe, STEPS, torch.empty(0), CPU)

    def steps(train_task, numbers):
        found = []
        for step in numbers:
            random = torch.Generator().manual_seed(step)
            labels = torch.randint(-1, 5, (2, 1, SIDE, SIDE), generator=random)
            found.append(train_task.train_step(labels, step))
        return found

    whole = steps(train_task(), range(4))
    first, second = train_task(), train_task()
    parts = steps(first, range(2))
    save(first, tmp_path / "half")
    second.load(tmp_path / "half")
    parts += steps(second, range(2, 4))
    for one, other in zip(parts, whole, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole[0]["reconstruction_loss"] > 1
