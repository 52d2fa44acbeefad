"""Contract tests of every registered quantizer, and their running statistics."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ops.config import ConfigError
from tokenizer import quantizers
from tokenizer.quantizers import QUANTIZERS, QuantizerConfig, as_vectors, nearest_codes

CONFIGS = {
    "vq": QuantizerConfig(kind="vq", codebook_size=32, code_dim=4),
    "l2": QuantizerConfig(kind="l2", codebook_size=32, code_dim=4),
    "simvq": QuantizerConfig(kind="simvq", codebook_size=32, code_dim=4),
    "ema": QuantizerConfig(kind="ema", codebook_size=32, code_dim=4),
    "gumbel": QuantizerConfig(kind="gumbel", codebook_size=32, code_dim=4),
    "fsq": QuantizerConfig(kind="fsq", codebook_size=60, code_dim=3, levels=(5, 4, 3)),
    "lfq": QuantizerConfig(kind="lfq", codebook_size=32, code_dim=5),
}
every_quantizer = pytest.mark.parametrize("name", QUANTIZERS)


def make(name):
    torch.manual_seed(0)
    return QUANTIZERS[name](CONFIGS[name])


def latents_for(quantizer, spread=1.0):
    return spread * torch.randn(2, quantizer.code_dim, 5, 7)


def latents_of_codes(quantizer, name, codes):
    """Latents to which `codes` are assigned, also where looked-up latents are not."""
    latents = quantizer.lookup(codes)
    if name == "fsq":  # its latents are bounded: invert the bound
        half = (quantizer.levels.view(1, -1, 1, 1) - 1) * (1 + 1e-3) / 2
        offset = ((quantizer.levels + 1) % 2).view(1, -1, 1, 1) * 0.5
        bounded = latents * (quantizer.levels // 2).view(1, -1, 1, 1)
        return ((bounded + offset) / half).atanh() - (offset / half).atanh()
    if name == "gumbel":  # a unit vector has the largest product with itself
        unit = torch.nn.functional.normalize(quantizer.proj.weight.data, dim=1)
        quantizer.proj.weight.data.copy_(unit)
        quantizer.proj.bias.data.zero_()
        return unit[codes, :, 0, 0].movedim(-1, 1)
    return latents


def state_of(quantizer):
    return {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}


def test_every_quantizer_has_a_config_here():
    assert set(CONFIGS) == set(QUANTIZERS)


@every_quantizer
def test_lookup_of_codes_gives_the_quantized_latents(name):
    quantizer = make(name).eval()
    latents = latents_for(quantizer)
    quantized = quantizer(latents)
    assert quantized.latents.shape == latents.shape
    assert quantized.codes.shape == (2, 5, 7)
    assert quantized.codes.dtype == torch.int64
    assert torch.equal(quantizer.lookup(quantized.codes), quantized.latents)
    assert torch.equal(quantizer.assign(latents), quantized.codes)


@every_quantizer
def test_every_code_looked_up_is_assigned_to_itself(name):
    quantizer = make(name).eval()
    codes = torch.arange(quantizer.codebook_size).view(1, 1, -1)
    assert torch.equal(quantizer.assign(latents_of_codes(quantizer, name, codes)), codes)


@every_quantizer
def test_a_positions_code_depends_on_its_latent_only(name):
    quantizer = make(name)
    quantizer(latents_for(quantizer))  # initialises the codebook
    latents = latents_for(quantizer)
    codes = quantizer.assign(latents)
    assert torch.equal(quantizer.assign(latents[1:, :, 2:3, 3:4]), codes[1:, 2:3, 3:4])
    found = quantizer.lookup(codes[1:, 2:3, 3:4])
    assert torch.equal(found, quantizer.lookup(codes)[1:, :, 2:3, 3:4])


@every_quantizer
@pytest.mark.parametrize("training", [True, False])
def test_every_latent_gets_a_gradient(name, training):
    quantizer = make(name).train(training)
    quantizer(latents_for(quantizer))
    latents = latents_for(quantizer, spread=0.1).requires_grad_()
    quantized = quantizer(latents)
    (quantized.latents * torch.randn_like(quantized.latents)).sum().backward()
    assert latents.grad.isfinite().all()
    assert (latents.grad != 0).all()


@pytest.mark.parametrize("name", sorted(set(QUANTIZERS) - {"gumbel", "l2"}))
def test_the_gradient_is_straight_through(name):
    quantizer = make(name).eval()
    latents = latents_for(quantizer, spread=0.1).requires_grad_()
    quantized = quantizer(latents)
    assert torch.allclose(quantized.latents, quantizer.lookup(quantized.codes), atol=1e-5)
    quantized.latents.sum().backward()
    same = latents.grad[:, :1] if name != "fsq" else latents.grad  # its bound has a derivative
    assert (same > 0).all()
    assert name == "fsq" or torch.allclose(latents.grad, torch.ones(()))


@every_quantizer
def test_assigning_and_evaluating_change_no_state(name):
    quantizer = make(name).train()
    before = state_of(quantizer)
    quantizer.assign(latents_for(quantizer))
    quantizer.eval()(latents_for(quantizer))
    assert all(torch.equal(before[k], v) for k, v in quantizer.state_dict().items())


@every_quantizer
def test_training_lowers_the_reconstruction_error(name):
    quantizer = make(name).train()
    pixels = torch.randn(2, 6, 5, 7)
    encoder = torch.nn.Conv2d(6, quantizer.code_dim, 1)
    decoder = torch.nn.Conv2d(quantizer.code_dim, 6, 1)
    learned = [p for layer in (encoder, quantizer, decoder) for p in layer.parameters()]
    optimizer = torch.optim.Adam([p for p in learned if p.requires_grad], lr=0.02)
    errors = []
    for step in range(60):
        quantizer.step = step
        quantized = quantizer(encoder(pixels))
        error = (decoder(quantized.latents) - pixels).square().mean()
        optimizer.zero_grad()
        (error + quantized.loss).backward()
        optimizer.step()
        errors.append(error.item())
    assert sum(errors[-5:]) < 0.8 * sum(errors[:5])


@every_quantizer
def test_statistics_equal_those_counted_from_the_codes(name):
    quantizer = make(name).train()
    batches = [quantizer(latents_for(quantizer)).codes for _ in range(3)]
    share, size = torch.zeros(quantizer.codebook_size), quantizer.codebook_size
    for codes in batches:
        share = 0.99 * share + 0.01 * torch.bincount(codes.flatten(), minlength=size) / 70
    torch.testing.assert_close(quantizer.share, share)
    used = torch.cat(batches).unique()
    idle = torch.full((size,), 3)
    for age, codes in enumerate(batches[::-1]):
        idle[codes.unique()] = idle[codes.unique()].clamp(max=age)
    assert torch.equal(quantizer.idle_steps, idle)
    metrics = quantizer.metrics()
    assert metrics["codebook_usage"] == pytest.approx(len(used) / size)
    frequent = share / share.sum()
    entropy = -sum(p * math.log(p) for p in frequent.tolist() if p)
    assert metrics["perplexity"] == pytest.approx(math.exp(entropy), rel=1e-4)
    assert metrics["dead_codes"] == 0
    quantizer.restart_after = 3
    assert metrics_of(quantizer)["dead_codes"] == size - len(used)


def metrics_of(quantizer):
    return {key: float(value) for key, value in quantizer.metrics().items()}


def test_metrics_before_the_first_step_are_finite():
    assert metrics_of(make("vq"))["perplexity"] == 1
    assert metrics_of(make("vq"))["codebook_usage"] == 0


@every_quantizer
def test_weights_without_statistics_load_as_an_initialised_codebook(name):
    quantizer = make(name).train()
    quantizer(latents_for(quantizer))
    weights = {key: value.detach() for key, value in quantizer.named_parameters()}
    again = make(name).train()
    again.load_state_dict(weights)
    assert set(weights) == {
        key for key, _ in again.named_parameters()
    }  # the caller's dict is unchanged
    assert not again.needs_init
    assert again.share.sum() == 0
    latents = latents_for(quantizer)
    assert torch.equal(again.assign(latents), quantizer.assign(latents))
    if name not in ("gumbel", "ema"):  # these neither sample nor update the codebook in a forward
        again(latents)
        assert torch.equal(again.assign(latents), quantizer.assign(latents))


@every_quantizer
def test_a_resumed_quantizer_continues_bit_identically(name):
    first = make(name).train()
    first.restart_after = 2
    first(latents_for(first))
    second = make(name).train()
    second.restart_after = 2
    second.load_state_dict(state_of(first))
    batches = [latents_for(first) for _ in range(4)]
    for quantizer in (first, second):
        torch.manual_seed(1)
        for latents in batches:
            quantizer(latents)
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key


@given(seed=st.integers(0, 1000), count=st.integers(1, 70), size=st.integers(1, 40))
def test_nearest_codes_equal_those_of_the_full_distance_matrix(seed, count, size):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    codebook = torch.randn(size, 3, generator=generator, dtype=torch.float64)
    distances = (vectors[:, None] - codebook[None]).square().sum(-1)
    assert torch.equal(nearest_codes(vectors, codebook), distances.argmin(1))


@every_quantizer
def test_codes_of_bfloat16_weights_are_found_in_float32(name):
    quantizer = make(name).eval().bfloat16()
    if name == "simvq":
        torch.nn.init.normal_(quantizer.projection.weight)
    latents = latents_for(quantizer)
    codes = quantizer.assign(latents)
    assert torch.equal(codes, copy.deepcopy(quantizer).float().assign(latents))
    assert torch.equal(quantizer(latents).codes, codes)
    assert quantizer(latents).latents.dtype == torch.float32


@every_quantizer
def test_computing_in_slices_changes_no_code(name, monkeypatch):
    quantizer = make(name).eval()
    latents = latents_for(quantizer)
    whole = quantizer.assign(latents)
    monkeypatch.setattr(quantizers, "MAX_VALUES", quantizer.codebook_size * 7)
    assert torch.equal(quantizer.assign(latents), whole)


def largest_tensor(work):
    """The size of the largest tensor that an operation of `work` returns."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.largest = max(self.largest, result.numel())
            return result

    with Watch() as watch:
        work()
    return watch.largest


@pytest.mark.parametrize("kind", ["vq", "l2", "simvq", "ema", "lfq"])
def test_large_codebooks_are_compared_in_parts(kind):
    size, dim = 1 << 18, 18 if kind == "lfq" else 2
    config = QuantizerConfig(kind=kind, codebook_size=size, code_dim=dim)
    torch.manual_seed(0)
    quantizer = QUANTIZERS[kind](config).train()
    latents = torch.randn(2, dim, 6, 8).requires_grad_()
    results = []
    largest = largest_tensor(lambda: results.append(quantizer(latents)))
    assert largest <= quantizers.MAX_VALUES < 96 * size
    results[0].loss.backward()
    assert latents.grad.isfinite().all()
    if kind != "lfq":
        vectors, codebook = as_vectors(quantizer.comparable(latents)), quantizer.codebook()
        distances = torch.cdist(vectors[:4].double(), codebook.double())
        found = quantizer.assign(latents).flatten()[:4]
        # Up to float32 rounding, no code is nearer.
        assert (distances.gather(1, found[:, None])[:, 0] <= distances.min(1)[0] + 2e-3).all()


def test_invalid_configs_are_refused():
    with pytest.raises(ConfigError, match="codebook_size must be at least 2"):
        QuantizerConfig(codebook_size=1)
    with pytest.raises(ConfigError, match="restart_after must be at least 1"):
        QuantizerConfig(restart_after=0)
    with pytest.raises(ConfigError, match="final_temperature must be above 0"):
        QuantizerConfig(final_temperature=0.0)
