"""A tokenizer's training step, encoding and decoding never make the host wait for a GPU."""

import dataclasses

import pytest
import torch

from tests.device_syncs import DeviceSyncError, fake_gpu, no_device_syncs
from tests.tokenizer.test_quantizers import CONFIGS, every_quantizer
from tokenizer import (
    PRESETS,
    VQGAN,
    DiscriminatorConfig,
    LossConfig,
    ModalityConfig,
    VQGANObjective,
    decode_strips,
)
from tokenizer.autoencoder import AttnBlock, AutoencoderConfig

ATTENTIVE = AutoencoderConfig(
    channels=8, channel_mult=(1, 1), num_res_blocks=1, decoder_res_blocks=1, attention_levels=(1,),
    latent_channels=8, norm_groups=4, dropout=0.1,
)  # fmt: skip
LOSSES = LossConfig(
    perceptual="none",
    l2_weight=0.1,
    adversarial_start=0,
    lecam_weight=0.01,
    r1_weight=10.0,
    r1_every=1,
    discriminator=DiscriminatorConfig(channels=4, num_layers=1, spectral_norm=True),
)


def small_vqgan(name, **changes):
    quantizer = dataclasses.replace(CONFIGS[name], restart_after=2)
    config = dataclasses.replace(PRESETS["tiny"], quantizer=quantizer, autoencoder=ATTENTIVE)
    return VQGAN(dataclasses.replace(config, **changes))


#: Those whose terms need no backward pass, which a fake GPU does not have.
FORWARD_LOSSES = dataclasses.replace(LOSSES, adaptive=False, r1_weight=0.0)


def train_step(model, objective, samples, step):
    """Yields what to differentiate."""
    model.quantizer.step = step
    losses = objective.autoencoder_loss(model, samples, step)
    yield losses.total
    model.quantizer.metrics()
    if objective.discriminator is not None:
        found = objective.discriminator_loss(samples, losses.pixels, step)
        yield found.total
        objective.lecam.update(found.metrics["real_logit"], found.metrics["fake_logit"])


@every_quantizer
def test_a_training_step_does_not_wait(name):
    """Nor does the first, which initialises the codebook, or one that replaces dead codes."""
    torch.manual_seed(0)
    model, objective = small_vqgan(name).train(), VQGANObjective(LOSSES).train()
    with no_device_syncs():
        for step in range(3):
            for total in train_step(model, objective, torch.rand(2, 3, 16, 16), step):
                total.backward()


@every_quantizer
def test_all_of_a_training_step_is_on_the_device(name):
    with fake_gpu() as device:
        with device:
            model, objective = small_vqgan(name).train(), VQGANObjective(FORWARD_LOSSES).train()
            samples = torch.rand(2, 3, 16, 16)
        with no_device_syncs():
            for step in (0, 2):
                assert all(t.device == device for t in train_step(model, objective, samples, step))
            codes = model.eval().encode(samples, check=False)
            assert codes.device == model.decode(codes, (15, 16), check=False).device == device


@pytest.mark.parametrize("reconstruction", ["cross_entropy", "bce"])
def test_a_training_step_on_label_maps_does_not_wait(reconstruction):
    losses = LossConfig(reconstruction=reconstruction, perceptual="none", adversarial="none")
    with fake_gpu() as device:
        with device:
            modality = ModalityConfig(kind="segmentation", num_classes=3)
            model = VQGAN(PRESETS["tiny"].with_modality(modality)).train()
            objective, labels = VQGANObjective(losses), torch.randint(-1, 3, (2, 1, 16, 16))
        with no_device_syncs():
            assert all(total.is_cuda for total in train_step(model, objective, labels, 1))
            assert model.modality.rebuilt(model(model.modality.pixels(labels)).pixels).is_cuda


@every_quantizer
def test_encoding_and_decoding_wait_only_to_check(name):
    torch.manual_seed(0)
    model, pixels = small_vqgan(name).eval(), torch.rand(1, 3, 15, 16)
    with no_device_syncs():
        codes = model.encode(pixels, check=False)
        decoded = model.decode(codes, check=False)
        for waiting in (lambda: model.encode(pixels), lambda: model.decode(codes)):
            with pytest.raises(DeviceSyncError):
                waiting()
    assert torch.equal(model.encode(pixels), codes)
    assert torch.equal(model.decode(codes), decoded)


def test_a_strip_is_copied_to_the_host_as_a_whole():
    with fake_gpu() as device:
        with device:
            model, codes = VQGAN(PRESETS["tiny"]).eval(), torch.zeros(1, 9, 30, dtype=torch.int64)
        model.check_codes = lambda codes: None  # which waits, once
        copies = []
        with no_device_syncs() as operations, pytest.raises(DeviceSyncError, match="cpu"):
            copies += decode_strips(model, codes, tile=8)
        assert sum(name == "pixel_shuffle" for name, _ in operations) == 4  # all tiles of a row


def test_attention_on_a_gpu_can_be_fused(monkeypatch):
    seen = []

    def attention(*parts):
        seen.extend((part.ndim, part.stride(-1)) for part in parts)
        return parts[0]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    with fake_gpu() as device, device:
        AttnBlock(ATTENTIVE, 8)(torch.rand(2, 8, 4, 4))
    assert seen == [(4, 1)] * 3
