"""NNPACK convolutions: what they compute and when they are used."""

import threading

import numpy as np
import pytest
import torch
from skimage import data
from torch import nn

from ops.config import ConfigError
from ops.cpu import Convolution, convolution, nnpack_works, use_convolution
from ops.images import resize_and_crop, to_pixels
from tokenizer import build_tokenizer, encode_tiled, load_tokenizer, save_tokenizer

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")

needs_nnpack = pytest.mark.skipif(not nnpack_works(), reason="torch has no NNPACK here")


def with_nnpack(layer):
    use_convolution(layer, "nnpack")
    return layer.requires_grad_(False)


def slow_convolution(x, weight, bias):
    """The definition, in float64: nine shifted copies, each times its 1x1 kernel."""
    height, width = x.shape[-2:]
    padded = nn.functional.pad(x.double(), (1, 1, 1, 1))
    total = torch.zeros(len(x), len(weight), height, width, dtype=torch.float64)
    for row in range(3):
        for column in range(3):
            shifted = padded[:, :, row : row + height, column : column + width]
            kernel = weight[:, :, row, column].double()
            total += torch.einsum("oc,bchw->bohw", kernel, shifted)
    return total if bias is None else total + bias.double()[:, None, None]


@needs_nnpack
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("channels", "size", "batch"),
    [
        ((48, 96), (32, 32), 1),
        ((50, 33), (33, 47), 3),
        ((3, 64), (64, 64), 2),
        ((96, 5), (61, 35), 1),
        ((7, 49), (1, 1025), 1),
        ((64, 64), (130, 67), 2),
    ],
)
def test_nnpack_computes_the_convolution(channels, size, batch, bias):
    torch.manual_seed(0)
    layer = with_nnpack(Convolution(*channels, bias=bias))
    x = torch.randn(batch, channels[0], *size)
    found = layer(x)
    expected = slow_convolution(x, layer.weight, layer.bias)
    assert not torch.equal(found, nn.Conv2d.forward(layer, x))  # NNPACK was used
    assert (found - expected).abs().max() < 2e-4 * expected.abs().max()


@needs_nnpack
def test_an_image_is_bit_identical_in_every_batch_and_layout():
    torch.manual_seed(0)
    layer = with_nnpack(Convolution(48, 64))
    x = torch.randn(5, 48, 40, 36)
    alone = torch.cat([layer(image) for image in x.split(1)])
    assert torch.equal(layer(x), alone)
    assert torch.equal(layer(x[[3, 0, 3]]), alone[[3, 0, 3]])
    assert torch.equal(layer(x.contiguous(memory_format=torch.channels_last)), alone)
    assert layer(x[:0]).shape == (0, 64, 40, 36)


@needs_nnpack
def test_two_concurrent_threads_compute_identical_bits():
    torch.manual_seed(0)
    layer = with_nnpack(Convolution(64, 64))
    images = torch.randn(24, 1, 64, 64, 64)
    expected = [layer(image) for image in images]
    found = {}
    start = threading.Barrier(2)

    def convolve(which):
        start.wait()
        for number in range(which, 24, 2):
            found[number] = layer(images[number])

    threads = [threading.Thread(target=convolve, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[number], expected[number]) for number in range(24))


@needs_nnpack
def test_training_small_maps_and_other_dtypes_are_convolved_directly():
    torch.manual_seed(0)
    layer = Convolution(64, 64)
    use_convolution(layer, "nnpack")
    x = torch.randn(1, 64, 40, 40)
    assert torch.equal(layer(x), nn.Conv2d.forward(layer, x))  # needs a gradient
    with torch.no_grad():
        assert not torch.equal(layer(x), nn.Conv2d.forward(layer, x))
    layer.requires_grad_(False)
    learned = x.clone().requires_grad_()
    assert torch.equal(layer(learned), nn.Conv2d.forward(layer, learned))
    small = x[:, :, :31, :31]
    assert torch.equal(layer(small), nn.Conv2d.forward(layer, small))
    layer.double()
    assert torch.equal(layer(x.double()), nn.Conv2d.forward(layer, x.double()))


@needs_nnpack
def test_the_method_changes_neither_fingerprint_nor_state_dict(tmp_path):
    save_tokenizer(tmp_path, build_tokenizer("tiny", seed=3))
    direct = load_tokenizer(tmp_path)
    nnpack = load_tokenizer(tmp_path, convolution="nnpack")
    assert nnpack.fingerprint == direct.fingerprint
    assert list(nnpack.state_dict()) == list(direct.state_dict())
    plain = nn.Conv2d(4, 4, 3, padding=1)
    Convolution(4, 4).load_state_dict(plain.state_dict())


@needs_nnpack
def test_nnpack_works_leaves_the_thread_count_unchanged():
    nnpack_works.cache_clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert nnpack_works()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@needs_nnpack
def test_photographs_get_the_codes_of_direct_convolutions_whole_and_tiled():
    pixels = to_pixels(
        np.stack([resize_and_crop(getattr(data, name)(), 256) for name in PHOTOGRAPHS])
    )
    expected = load_tokenizer("photo-f8").encode(pixels)
    model = load_tokenizer("photo-f8", convolution="nnpack")
    found = model.encode(pixels)
    assert (found == expected).float().mean() >= 0.999
    assert (encode_tiled(model, pixels, tile=128) == expected).float().mean() >= 0.999
    assert torch.equal(torch.cat([model.encode(image) for image in pixels.split(1)]), found)


@needs_nnpack
def test_wrong_results_make_nnpack_unavailable(monkeypatch):
    layer = Convolution(64, 64)
    original = torch._nnpack_spatial_convolution
    monkeypatch.setattr(
        torch,
        "_nnpack_spatial_convolution",
        lambda x, *args: original(x, *args) + 1,
    )
    nnpack_works.cache_clear()
    try:
        with pytest.raises(ConfigError, match="No NNPACK convolutions here"):
            use_convolution(layer, "nnpack")
    finally:
        nnpack_works.cache_clear()
    assert layer.method == "direct"


def test_torch_without_nnpack_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(torch, "_nnpack_available", lambda: False)
    nnpack_works.cache_clear()
    try:
        with pytest.raises(ConfigError, match="No NNPACK convolutions here"):
            load_tokenizer("photo-f8", convolution="nnpack")
    finally:
        nnpack_works.cache_clear()


def test_an_unknown_method_is_refused_with_the_known_ones():
    assert convolution.CONVOLUTIONS == ("direct", "nnpack")
    with pytest.raises(ConfigError, match="there are direct, nnpack"):
        load_tokenizer("photo-f8", convolution="winograd")
