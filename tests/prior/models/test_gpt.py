import cmath
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from ops.config import ConfigError
from prior import GPT, GPTConfig, init_from_codebook
from prior.models.presets import MODERN

SIZES = {"codebook_size": 11, "condition_vocab_size": 3, "condition_length": 2}
# The defaults of the paper, each modern part alone, and all of them together.
OPTIONS = [{}, *({name: value} for name, value in MODERN.items()), MODERN]


def small_gpt(seed=0, **changes):
    """A GPT of 2 layers in float64, with weights so large that its logits clearly differ."""
    torch.manual_seed(seed)
    sizes = {"window": 4, "num_layers": 2, "num_heads": 2, "width": 8} | changes
    config = GPTConfig(**SIZES, **sizes)
    model = GPT(config).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def random_tokens(model, batch, length):
    config = model.config
    condition = torch.randint(
        config.codebook_size,
        config.codebook_size + config.condition_vocab_size,
        (batch, config.condition_length),
    )
    codes = torch.randint(config.codebook_size, (batch, length - config.condition_length))
    return torch.cat([condition, codes], dim=1)


def slow_logits(model, tokens, positions):
    """Reference implementation: one sequence, one head and one position at a time."""
    weights, config = model.state_dict(), model.config
    x = weights["token_embedding.weight"][tokens]
    if config.positions == "learned":
        x = x + weights["position_embedding.weight"][positions]
    for layer in range(config.num_layers):
        block = f"blocks.{layer}"
        normed = slow_norm(model, x, f"{block}.attention_norm")
        x = x + slow_attention(model, normed, f"{block}.attention", positions)
        x = x + slow_mlp(model, slow_norm(model, x, f"{block}.mlp_norm"), f"{block}.mlp")
    return slow_norm(model, x, "norm") @ weights["head.weight"].T


def slow_linear(model, x, name):
    weights = model.state_dict()
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)


def slow_norm(model, x, name):
    weights = model.state_dict()
    if model.config.norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    x = x / ((x**2).mean(-1, keepdim=True) + 1e-5).sqrt()
    return x * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0)


def slow_mlp(model, x, name):
    x = slow_linear(model, x, f"{name}.0")
    if model.config.mlp == "gelu":
        x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    else:
        gates, values = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
        x = gates / (1 + (-gates).exp()) * values
    return slow_linear(model, x, f"{name}.2")


def slow_attention(model, x, name, positions):
    config = model.config
    q, k, v = slow_linear(model, x, f"{name}.qkv").chunk(3, -1)
    attended = torch.zeros_like(x)

    def rotated_and_normed(x, place, norm):
        """One head's query or key after the norm and rotation of the config."""
        x = slow_norm(model, x, f"{name}.{norm}") if config.qk_norm else x
        return rotated(x, int(positions[place]), config) if config.positions == "rope2d" else x

    for head in range(config.num_heads):
        cut = slice(head * config.head_dim, (head + 1) * config.head_dim)
        keys = [rotated_and_normed(k[place, cut], place, "key_norm") for place in range(len(x))]
        for place in range(len(x)):
            query = rotated_and_normed(q[place, cut], place, "query_norm")
            scores = torch.stack(keys[: place + 1]) @ query / math.sqrt(config.head_dim)
            attended[place, cut] = scores.softmax(0) @ v[: place + 1, cut]
    return slow_linear(model, attended, f"{name}.proj")


def rotated(x, position, config):
    """One vector whose pairs, as complex numbers, are rotated by its row or column."""
    row, column = divmod(position - config.condition_length, config.window)
    pairs, result = len(x) // 2, x.clone()
    for i in range(pairs):
        place, step = (row, i) if i < pairs // 2 else (column, i - pairs // 2)
        angle = place * 10_000 ** (-step / (pairs // 2))
        pair = complex(x[i], x[i + pairs]) * cmath.exp(1j * angle)
        result[i], result[i + pairs] = pair.real, pair.imag
    return result


@torch.inference_mode()
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", [(4, 4), (3, 2)])
def test_logits_equal_the_reference_implementation(options, shape):
    model = small_gpt(**options)
    positions = model.positions(*shape)
    tokens = random_tokens(model, 2, len(positions))
    expected = torch.stack([slow_logits(model, row, positions) for row in tokens])
    torch.testing.assert_close(model(tokens, positions), expected)
    if shape == (4, 4):
        torch.testing.assert_close(model(tokens), expected)


@pytest.mark.parametrize("options", OPTIONS)
def test_initial_weights_have_the_published_distribution(options):
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SIZES, **{"num_layers": 8, "width": 64} | options))
    for name, weight in model.state_dict().items():
        if name.startswith("position") or name.endswith("bias"):
            assert (weight == 0).all(), name
        elif "norm" in name:
            assert (weight == 1).all(), name
        else:
            scaled = options.get("scaled_residual") and name.endswith(
                ("proj.weight", "mlp.2.weight")
            )
            expected = 0.02 / math.sqrt(2 * 8) if scaled else 0.02
            assert 0.85 < weight.std() / expected < 1.15, name


@torch.inference_mode()
@pytest.mark.parametrize("options", OPTIONS)
def test_logits_are_causal(options):
    model = small_gpt(**options)
    tokens = random_tokens(model, 1, 12)
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % model.config.codebook_size
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :7], before[:, :7], rtol=0, atol=0)
    assert (after[:, 7] != before[:, 7]).any()


@torch.inference_mode()
@pytest.mark.parametrize("options", [{}, MODERN])
@pytest.mark.parametrize("shape", [(4, 4), (2, 4), (4, 3), (1, 1), (3, 2)])
def test_nll_is_the_cross_entropy_of_each_code(shape, options):
    model = small_gpt(**options)
    condition = random_tokens(model, 3, 2)
    codes = torch.randint(model.config.codebook_size, (3, *shape))
    flat, positions = codes.flatten(1), model.positions(*shape)
    nll = model.nll(condition, codes)
    assert nll.shape == codes.shape
    for place in range(flat.shape[1]):
        tokens = torch.cat([condition, flat[:, :place]], dim=1)
        logits = model(tokens, positions[: 2 + place])[:, -1]
        cross_entropy = -logits.log_softmax(-1).gather(1, flat[:, place : place + 1])[:, 0]
        torch.testing.assert_close(nll.flatten(1)[:, place], cross_entropy.float())
    assert model.loss(condition, codes).item() == pytest.approx(nll.mean().item())


def test_an_untrained_model_predicts_all_codes_alike():
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SIZES | {"codebook_size": 512}))
    loss = model.loss(torch.full((2, 2), 512), torch.randint(512, (2, 16, 16)))
    spread = 0.02**2 * model.config.width / 2  # what random logits add to the mean nll
    assert loss.item() == pytest.approx(math.log(512) + spread, abs=0.03)


def test_a_few_training_steps_fit_a_pattern():
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SIZES, window=4, num_layers=1, num_heads=2, width=16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    codes = (torch.arange(16) % 5).view(1, 4, 4)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.loss(torch.tensor([[11, 12]]), codes)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_positions_of_a_full_window_are_consecutive():
    assert small_gpt().positions(4, 4).tolist() == list(range(18))


def test_positions_of_a_narrow_window_are_those_of_the_full_one():
    # 2 condition tokens, then 2 rows of 3 in a trained window of 4: a row's
    # last code has the position of the trained row's last code.
    assert small_gpt().positions(2, 3).tolist() == [0, 1, 2, 3, 5, 6, 7, 9]


@pytest.mark.parametrize("shape", [(5, 4), (4, 5)])
def test_a_grid_larger_than_the_window_is_rejected(shape):
    with pytest.raises(ConfigError, match="cut windows"):
        small_gpt().positions(*shape)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("options", [{}, MODERN])
def test_recomputed_activations_give_the_same_gradients(options, dropout):
    model = small_gpt(dropout=dropout, **options).train()
    condition, codes = random_tokens(model, 3, 2), torch.randint(11, (3, 4, 4))
    stored, gradients = [], []
    for recompute in (False, True):
        model.recompute_activations = recompute
        model.zero_grad()
        sizes = []
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(partial(note_size, sizes), lambda x: x):
            loss = model.loss(condition, codes)
        loss.backward()
        stored.append(sum(sizes))
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
    assert stored[1] < stored[0] / 2


@pytest.mark.parametrize("options", OPTIONS)
def test_bfloat16_changes_the_loss_by_rounding_only(options):
    model = small_gpt(width=16, **options).float()
    condition, codes = random_tokens(model, 3, 2), torch.randint(11, (3, 4, 4))
    expected = model.loss(condition, codes).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(condition, codes)
    assert loss.item() != expected
    assert loss.item() == pytest.approx(expected, rel=0.05)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def note_size(sizes, tensor):
    """Record the size of a tensor that autograd stores for the backward pass."""
    sizes.append(tensor.numel())
    return tensor


def test_dropout_is_active_in_training_only():
    model = small_gpt(dropout=0.5)
    tokens = random_tokens(model, 1, 10)
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def test_codes_with_similar_latents_get_similar_initial_weights():
    config = GPTConfig(
        codebook_size=40, condition_vocab_size=3, condition_length=1, window=4, width=256
    )
    torch.manual_seed(0)
    model = GPT(config)
    conditions = model.token_embedding.weight[40:].detach().clone()
    latents = torch.arange(40.0)[:, None] * torch.tensor([1.0, -2.0])  # code k is next to code k+1
    init_from_codebook(model, latents)
    for weight in (model.token_embedding.weight[:40], model.head.weight):
        similarity = F.cosine_similarity(weight[:, None], weight[None], dim=-1)
        assert similarity.diagonal(1).min() > 0.9
        assert similarity[0, 20:].abs().max() < 0.5
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(model.token_embedding.weight[40:], conditions)
    with pytest.raises(ConfigError, match=r"latents must be \(40, D\)"):
        init_from_codebook(model, latents[:39])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook_size": 0}, "codebook_size"),
        ({"condition_length": 0}, "condition_length"),
        ({"window": 0}, "window"),
        ({"num_layers": 0}, "num_layers"),
        ({"num_heads": 3, "width": 8}, "multiple"),
        ({"dropout": 1.0}, "dropout"),
        ({"positions": "sine"}, "positions must be one of learned, rope2d, found 'sine'"),
        ({"norm": "batch"}, "norm must be one of layer, rms"),
        ({"mlp": "relu"}, "mlp must be one of gelu, swiglu"),
        ({"positions": "rope2d", "num_heads": 4, "width": 24}, "multiple of 4; found 6"),
    ],
)
def test_invalid_configs_are_rejected(changes, message):
    with pytest.raises(ConfigError, match=message):
        GPTConfig(**SIZES | changes)
