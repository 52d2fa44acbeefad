import dataclasses
import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ops.config import ConfigError
from ops.images import ImageError, resize_and_crop
from tests.conftest import photograph
from tokenizer import PRESETS, build_tokenizer, load_tokenizer, save_tokenizer
from tokenizer.label_maps import VOID, binary_loss, cross_entropy_loss, one_hot
from tokenizer.modalities import MODALITIES, ModalityConfig, make_modality

CONFIGS = {
    "image": ModalityConfig(),
    "segmentation": ModalityConfig(kind="segmentation", num_classes=7, void_label=255),
    "depth": ModalityConfig(kind="depth"),
}


def file_of(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def example(kind, seed, height=40, width=56):
    """The bytes of a file of a modality."""
    image = photograph(seed, height, width)
    if kind == "image":
        return file_of(image)
    grey = image[..., 0]
    if kind == "depth":
        return file_of(grey.astype(np.uint16) * 256 + image[..., 1])
    return file_of(np.where(grey > 200, 255, grey // 37).astype(np.uint8))


def samples_of(kind, side=32):
    modality = make_modality(CONFIGS[kind])
    rasters = [modality.decode(example(kind, seed)) for seed in range(2)]
    squares = [resize_and_crop(r, side, resampling=modality.resampling) for r in rasters]
    return modality, modality.samples(np.stack(squares))


@pytest.mark.parametrize("kind", MODALITIES)
def test_every_modality_goes_through_a_tokenizer_and_back(kind, tmp_path):
    modality, samples = samples_of(kind)
    model = build_tokenizer("tiny", seed=0, modality=CONFIGS[kind]).eval()
    pixels = modality.pixels(samples)
    assert pixels.shape == (2, modality.channels, 32, 32)
    save_tokenizer(tmp_path, model)
    loaded = load_tokenizer(tmp_path)
    assert loaded.config.modality == CONFIGS[kind]
    assert loaded.fingerprint == model.fingerprint
    codes = loaded.encode(pixels)
    assert torch.equal(codes, model.encode(pixels))
    rebuilt = loaded.modality.rebuilt(loaded.decode(codes))
    assert rebuilt.shape == samples.shape
    metrics = modality.metrics(samples, rebuilt)
    assert modality.headline in metrics
    perfect = modality.metrics(samples, samples.clone())
    assert all(perfect[name] >= metrics[name] for name in metrics)
    for shown in (samples, rebuilt):
        images = modality.images(shown)
        assert images.dtype == np.uint8
        assert images.shape == (2, 32, 32, 3)
    errors = modality.errors(samples, rebuilt)
    assert errors.shape == (2, 32, 32)
    assert 0 < errors.max() <= 1
    assert modality.errors(samples, samples).max() == 0


@pytest.mark.parametrize("kind", MODALITIES)
def test_pixels_taken_as_output_give_the_samples_back(kind):
    modality, samples = samples_of(kind)
    known = samples != VOID if kind == "segmentation" else torch.ones_like(samples, dtype=bool)
    assert torch.equal(modality.rebuilt(modality.pixels(samples))[known], samples[known])


def test_resizing_interpolates_no_labels():
    modality = make_modality(CONFIGS["segmentation"])
    labels = np.where(np.arange(90)[:, None] + np.arange(120) < 100, 0, 6).astype(np.uint8)
    for size in (17, 64, 200):
        cropped = resize_and_crop(labels, size, "random", resampling=modality.resampling)
        assert set(np.unique(cropped)) <= {0, 6}


def test_depth_keeps_more_than_eight_bits():
    modality = make_modality(CONFIGS["depth"])
    samples = modality.samples(np.array([[[0, 1, 2, 32768, 65535]]], np.float32))
    assert samples.min() == -1
    assert samples.max() == 1
    assert (samples.diff(dim=-1) > 0).all()
    assert samples[0, 0, 0, 1] == pytest.approx(-1 + 2 / 65535, abs=1e-7)


def test_void_is_hidden_from_network_metrics_and_losses():
    modality = make_modality(CONFIGS["segmentation"])
    samples = modality.samples(np.array([[[0, 255, 6]]], np.uint8))
    assert samples.tolist() == [[[[0, VOID, 6]]]]
    pixels = modality.pixels(samples)
    assert pixels.sum(1).tolist() == [[[1, 0, 1]]]
    predicted = torch.tensor([[[[0, 3, 6]]]])
    assert modality.metrics(samples, predicted) == {"accuracy": 1.0, "mean_iou": 1.0}
    assert modality.errors(samples, predicted).sum() == 0
    logits = torch.randn(1, 7, 1, 3, requires_grad=True)
    for loss in (cross_entropy_loss, binary_loss):
        (gradient,) = torch.autograd.grad(loss(logits, samples), logits)
        assert gradient[..., 1].abs().sum() == 0
        assert gradient[..., 0].abs().sum() > 0


def test_label_losses_equal_torchs_where_nothing_is_void():
    labels = torch.randint(0, 7, (2, 1, 4, 4))
    logits = torch.randn(2, 7, 4, 4)
    assert torch.allclose(cross_entropy_loss(logits, labels), F.cross_entropy(logits, labels[:, 0]))
    targets = F.one_hot(labels[:, 0], 7).movedim(-1, 1).float()
    assert torch.equal(one_hot(labels, 7), targets)
    expected = F.binary_cross_entropy_with_logits(logits, targets)
    assert torch.allclose(binary_loss(logits, labels), expected)


@pytest.mark.parametrize("loss", [cross_entropy_loss, binary_loss])
def test_the_loss_of_a_batch_is_the_mean_of_its_parts_with_any_void(loss):
    labels = torch.randint(0, 7, (4, 1, 4, 4))
    labels[0, 0, :3] = VOID
    labels[1] = VOID
    logits = torch.randn(4, 7, 4, 4)
    parts = [loss(logits[i : i + 2], labels[i : i + 2]) for i in (0, 2)]
    assert torch.allclose(loss(logits, labels), sum(parts) / 2)
    assert loss(logits[1:2], labels[1:2]) == 0


def test_a_label_beyond_the_classes_is_an_error_with_a_reason():
    modality = make_modality(CONFIGS["segmentation"])
    with pytest.raises(
        ImageError, match="found label 7, but the highest of 7 classes is 6"
    ) as caught:
        modality.decode(file_of(np.array([[0, 7]], np.uint8)))
    assert caught.value.reason == "unknown label"


def test_invalid_modalities_are_refused():
    with pytest.raises(ConfigError, match="No modality 'sound'"):
        make_modality(ModalityConfig(kind="sound"))
    with pytest.raises(ConfigError, match="at least 2 classes, found 0"):
        build_tokenizer("tiny", modality=ModalityConfig(kind="segmentation"))
    with pytest.raises(ConfigError, match="depth has 1 channels, but image_channels is 3"):
        dataclasses.replace(PRESETS["tiny"], modality=CONFIGS["depth"])


def test_the_modality_is_part_of_the_fingerprint_except_for_photographs():
    # A tokenizer of photographs keeps the fingerprint from before there were other modalities.
    models = [
        build_tokenizer("tiny", modality=ModalityConfig(kind="segmentation", num_classes=3)),
        build_tokenizer(
            "tiny", modality=ModalityConfig(kind="segmentation", num_classes=3, void_label=0)
        ),
        build_tokenizer("tiny"),
    ]
    for model in models:
        model.load_state_dict(models[0].state_dict())
    assert len({model.fingerprint for model in models}) == 3
