"""Training steps with every quantizer: what they log, and bit-identical resuming."""

import dataclasses

import pytest
import torch

from pipelines.recipes import TOKENIZER_RECIPES
from pipelines.training.loop import step_seed
from pipelines.training.parallel import ParallelConfig
from pipelines.training.tokenizer_task import TokenizerTask
from tests.pipelines.training.test_prior_task import save
from tests.tokenizer.test_quantizers import CONFIGS
from tokenizer import VQGAN, VQGANConfig
from tokenizer.autoencoder import AutoencoderConfig
from tokenizer.quantizers import QUANTIZERS

STEPS = 4
AUTOENCODER = AutoencoderConfig(
    channels=8, channel_mult=(1, 2), num_res_blocks=1, decoder_res_blocks=1, attention_levels=(),
    mid_block=False, latent_channels=6, norm_groups=4, patch_size=4,
)  # fmt: skip


def train_task(kind, **parallel_config):
    torch.manual_seed(0)
    quantizer = dataclasses.replace(CONFIGS[kind], restart_after=2, temperature_steps=4)
    model = VQGAN(VQGANConfig(autoencoder=AUTOENCODER, quantizer=quantizer))
    recipe = TOKENIZER_RECIPES["tiny"]
    losses = dataclasses.replace(recipe.losses, adversarial="none")
    recipe = dataclasses.replace(recipe, losses=losses)
    held_out = torch.rand(2, 3, 32, 32) * 2 - 1
    device = torch.device("cpu")
    return TokenizerTask(model, recipe, STEPS, held_out, device, ParallelConfig(**parallel_config))


def take(made, steps):
    """The metrics of these steps, each with a batch and random numbers of its own."""
    found = []
    for step in steps:
        batch = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(step)) * 2 - 1
        torch.manual_seed(step_seed(0, step))
        found.append({name: float(value) for name, value in made.train_step(batch, step).items()})
    return found


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_usage_is_logged_and_a_resumed_run_is_bit_identical(kind, tmp_path):
    whole, first, second = (train_task(kind) for _ in range(3))
    expected = take(whole, range(STEPS))
    take(first, range(2))
    save(first, tmp_path / "half")
    second.load(tmp_path / "half")
    assert take(second, range(2, STEPS)) == expected[2:]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name
    for metrics in expected:
        assert 0 < metrics["codebook_usage"] <= 1
        assert 1 <= metrics["perplexity"] <= CONFIGS[kind].codebook_size
        assert metrics["dead_codes"] >= 0
    assert set(whole.evaluate(STEPS).metrics) >= {"held_out_psnr", "held_out_perplexity"}


def test_schedules_follow_the_loops_step():
    made = train_task("gumbel")
    temperatures = [metrics["temperature"] for metrics in take(made, (0, 2, 3))]
    assert temperatures == sorted(temperatures, reverse=True)
    assert temperatures[0] == 1


def test_activation_checkpointing_changes_no_metric():
    plain, recomputed = train_task("vq"), train_task("vq", recompute=True)
    assert recomputed.model.encoder.blocks.recompute
    assert take(recomputed, range(2)) == take(plain, range(2))
