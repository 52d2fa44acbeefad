import pytest
import torch
import torch.nn.functional as F

from ops.config import ConfigError
from tokenizer import build_tokenizer
from tokenizer.discriminator import (
    BatchNorm,
    DiscriminatorConfig,
    LeCam,
    PatchDiscriminator,
    hinge_loss,
    r1_penalty,
    vanilla_loss,
)
from tokenizer.losses import LossConfig, VQGANObjective, adaptive_weight
from tokenizer.perceptual import PerceptualError, make_perceptual_loss

SMALL_DISCRIMINATOR = DiscriminatorConfig(channels=8, num_layers=2)


def pixels_of(count=2, side=32):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_discriminator_is_the_papers():
    discriminator = PatchDiscriminator(DiscriminatorConfig())
    assert sum(p.numel() for p in discriminator.parameters()) == 2_765_633
    assert discriminator(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)


def test_discriminator_losses_are_lowest_when_it_is_right():
    right, wrong = torch.full((4,), 3.0), torch.full((4,), -3.0)
    assert hinge_loss(right, wrong) == 0
    assert hinge_loss(wrong, right) == 4
    expected = 0.5 * (F.softplus(-right).mean() + F.softplus(wrong).mean())
    assert torch.equal(vanilla_loss(right, wrong), expected)


def test_the_adaptive_weight_is_the_ratio_of_gradient_norms():
    layer = torch.tensor([1.0, 2.0], requires_grad=True)
    reconstruction, adversarial = 3 * layer.sum(), 0.5 * layer.sum()
    weight = adaptive_weight(reconstruction, adversarial, layer)
    assert weight == pytest.approx(6.0, rel=1e-3)
    assert not weight.requires_grad


def test_the_adaptive_weight_is_bounded():
    objective = VQGANObjective(
        LossConfig(
            perceptual="none",
            adversarial_start=0,
            adversarial_ramp=1,
            max_adaptive_weight=0.01,
            adversarial_weight=0.5,
            discriminator=SMALL_DISCRIMINATOR,
        )
    )
    losses = objective.autoencoder_loss(build_tokenizer("tiny"), pixels_of(), step=0)
    assert losses.metrics["adaptive_weight"] == 0.005


def test_the_adversarial_term_starts_at_its_step_and_ramps():
    objective = VQGANObjective(
        LossConfig(
            perceptual="none",
            adversarial_start=10,
            adversarial_ramp=4,
            discriminator=SMALL_DISCRIMINATOR,
        )
    )
    strengths = [objective.adversarial_strength(step) for step in (0, 9, 10, 11, 13, 99)]
    assert strengths == [0, 0, 0.25, 0.5, 1, 1]
    model, pixels = build_tokenizer("tiny"), pixels_of()
    before = objective.autoencoder_loss(model, pixels, step=9)
    assert "adversarial_loss" not in before.metrics
    assert objective.discriminator_loss(pixels, before.pixels, step=9) is None
    after = objective.autoencoder_loss(model, pixels, step=10)
    assert after.metrics["adaptive_weight"] > 0
    assert objective.discriminator_loss(pixels, after.pixels, step=10).total > 0


def test_the_total_is_the_sum_of_its_terms():
    objective = VQGANObjective(
        LossConfig(
            l1_weight=2.0,
            l2_weight=3.0,
            perceptual="none",
            adversarial_start=0,
            adversarial_ramp=1,
            discriminator=SMALL_DISCRIMINATOR,
        )
    )
    torch.manual_seed(0)
    pixels = pixels_of()
    losses = objective.autoencoder_loss(build_tokenizer("tiny").eval(), pixels, step=0)
    error = losses.pixels - pixels
    metrics = losses.metrics
    expected = 2 * error.abs().mean() + 3 * error.square().mean()
    assert torch.allclose(metrics["reconstruction_loss"], expected)
    adversarial = metrics["adaptive_weight"] * metrics["adversarial_loss"]
    total = metrics["reconstruction_loss"] + metrics["quantizer_loss"] + adversarial
    assert torch.allclose(losses.total, total)


def test_the_discriminator_loss_has_no_gradient_to_the_autoencoder():
    objective = VQGANObjective(
        LossConfig(perceptual="none", adversarial_start=0, discriminator=SMALL_DISCRIMINATOR)
    )
    model, pixels = build_tokenizer("tiny"), pixels_of()
    losses = objective.autoencoder_loss(model, pixels, step=0)
    objective.discriminator_loss(pixels, losses.pixels, step=0).total.backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in objective.discriminator.parameters())


def test_the_autoencoder_loss_has_no_gradient_to_the_discriminator():
    objective = VQGANObjective(
        LossConfig(perceptual="none", adversarial_start=0, discriminator=SMALL_DISCRIMINATOR)
    )
    model = build_tokenizer("tiny")
    objective.autoencoder_loss(model, pixels_of(), step=0).total.backward()
    assert all(p.grad is None for p in objective.discriminator.parameters())
    assert all(p.requires_grad for p in objective.discriminator.parameters())
    assert model.encoder.conv_in.weight.grad.norm() > 0


def test_batch_norm_equals_torchs_in_training():
    ours, torchs = BatchNorm(3), torch.nn.BatchNorm2d(3)
    pixels = pixels_of()
    assert torch.allclose(ours(pixels), torchs(pixels), atol=1e-6)


def test_spectral_norm_keeps_each_kernels_largest_singular_value_at_one():
    discriminator = PatchDiscriminator(
        DiscriminatorConfig(channels=8, num_layers=2, norm="none", spectral_norm=True)
    )
    for _ in range(50):  # one step of the power iteration each
        discriminator(pixels_of())
    kernels = [layer.weight.detach() for layer in discriminator.layers if hasattr(layer, "weight")]
    assert len(kernels) == 4
    for kernel in kernels:
        largest = torch.linalg.matrix_norm(kernel.flatten(1), ord=2)
        assert largest == pytest.approx(1, abs=1e-3)


def test_r1_is_half_the_squared_gradient_at_real_images():
    discriminator = PatchDiscriminator(SMALL_DISCRIMINATOR).double()
    pixels = pixels_of(side=16).double()

    @torch.no_grad()
    def logits(pixels):
        return discriminator(pixels).mean((1, 2, 3)).sum()

    gradient = torch.zeros_like(pixels)
    for index in range(pixels.numel()):
        step = torch.zeros_like(pixels)
        step.flatten()[index] = 1e-5
        gradient.flatten()[index] = (logits(pixels + step) - logits(pixels - step)) / 2e-5
    expected = 0.5 * gradient.square().sum((1, 2, 3)).mean()
    penalty = r1_penalty(discriminator.float(), pixels).item()
    assert penalty == pytest.approx(expected.item(), rel=1e-4)


def test_minimising_r1_lowers_the_penalty():
    torch.manual_seed(0)
    discriminator, pixels = PatchDiscriminator(SMALL_DISCRIMINATOR), pixels_of()
    optimizer = torch.optim.SGD(discriminator.parameters(), lr=0.3)
    penalties = []
    for _ in range(20):
        optimizer.zero_grad()
        penalty = r1_penalty(discriminator, pixels)
        penalty.backward()
        optimizer.step()
        penalties.append(penalty.item())
    assert penalties[-1] < 0.5 * penalties[0]


def test_lecam_penalises_logits_beyond_the_means_of_the_other_kind():
    lecam = LeCam(decay=0.9)
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([-3.0, 1.0])
    assert lecam(real, fake) == 0  # there are no means yet
    lecam.update(torch.tensor(1.0), torch.tensor(-2.0))
    # real exceeds the fake mean -2 by 4 and 1; fake is below the real mean 1 by 4 and 0.
    assert lecam(real, fake) == pytest.approx((16 + 1) / 2 + 16 / 2)
    lecam.update(torch.tensor(2.0), torch.tensor(0.0))
    assert lecam.real == pytest.approx(1.1)
    assert lecam.fake == pytest.approx(-1.8)


def test_lpips_is_zero_for_equal_images_and_never_uses_dropout():
    distance = make_perceptual_loss("random-backbone")
    distance.train()
    a, b = pixels_of(side=64), -pixels_of(side=64)
    assert distance(a, a) == 0
    assert distance(a, b) > 0
    assert torch.equal(distance(a, b), distance(a, b))
    assert not any(p.requires_grad for p in distance.parameters())


def test_lpips_without_its_backbone_says_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(
        "torchvision.models.VGG16_Weights.IMAGENET1K_V1._value_.url",
        "http://127.0.0.1:9/vgg16-397923af.pth",
        raising=False,
    )
    with pytest.raises(PerceptualError) as caught:
        make_perceptual_loss("lpips")
    message = str(caught.value)
    assert "vgg16-397923af.pth" in message
    assert str(tmp_path) in message
    assert "--perceptual none" in message


def test_a_backbone_of_another_hash_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"not weights")
    with pytest.raises(PerceptualError, match="SHA-256"):
        make_perceptual_loss("lpips")
    with pytest.raises(PerceptualError, match="neither lpips"):
        make_perceptual_loss(str(tmp_path / "missing.pth"))


def test_perceptual_none_gives_no_module():
    assert make_perceptual_loss("none") is None


def test_an_unknown_adversarial_loss_is_refused():
    with pytest.raises(ConfigError, match="hinge, vanilla or none"):
        LossConfig(adversarial="nonesuch")
