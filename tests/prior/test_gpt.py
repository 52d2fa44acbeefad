import math

import pytest
import torch
import torch.nn.functional as F

from ops.config import ConfigError, from_json, to_json
from prior import GPT, PRESETS, GPTConfig, KVCache, start_alike

SIZES = {"codebook_size": 11, "condition_vocab_size": 3, "condition_length": 2}


def small_gpt(seed=0, **changes):
    """A GPT of 2 layers in float64, with weights large enough for its logits to differ."""
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


def slow_logits(model, tokens):
    """The transformer's formulas for one sequence, one head and one place at a time."""
    weights, config = model.state_dict(), model.config
    head_dim = config.width // config.num_heads

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = weights["token_embedding.weight"][tokens]
    x = x + weights["position_embedding.weight"][: len(tokens)]
    for layer in range(config.num_layers):
        block = f"blocks.{layer}"
        q, k, v = linear(norm(x, f"{block}.attention_norm"), f"{block}.attention.qkv").chunk(3, -1)
        attended = torch.zeros_like(x)
        for place in range(len(tokens)):
            for head in range(config.num_heads):
                cut = slice(head * head_dim, (head + 1) * head_dim)
                scores = k[: place + 1, cut] @ q[place, cut] / math.sqrt(head_dim)
                attended[place, cut] = scores.softmax(0) @ v[: place + 1, cut]
        x = x + linear(attended, f"{block}.attention.proj")
        hidden = linear(norm(x, f"{block}.mlp_norm"), f"{block}.mlp.0")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + linear(hidden, f"{block}.mlp.2")
    return norm(x, "norm") @ weights["head.weight"].T


@torch.inference_mode()
def test_logits_are_the_formulas_of_the_paper():
    model = small_gpt()
    tokens = random_tokens(model, 3, 12)
    expected = torch.stack([slow_logits(model, row) for row in tokens])
    torch.testing.assert_close(model(tokens), expected)


def test_the_large_preset_has_the_papers_number_of_parameters():
    # 304,932,864 in the released 24-layer model, which shares its condition tokens with the codes.
    config = GPTConfig(
        codebook_size=1024, condition_vocab_size=1, condition_length=256, **PRESETS["large"]
    )
    with torch.device("meta"):
        model = GPT(config)
    one_more_token = config.width
    assert sum(p.numel() for p in model.parameters()) == 304_932_864 + one_more_token


def test_weights_start_as_the_paper_says():
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SIZES, width=64))
    for name, weight in model.state_dict().items():
        if name.startswith("position") or name.endswith("bias"):
            assert (weight == 0).all(), name
        elif "norm" in name:
            assert (weight == 1).all(), name
        else:
            assert 0.017 < weight.std() < 0.023, name


@torch.inference_mode()
@pytest.mark.parametrize("cuts", [[1] * 18, [18], [7, 1, 1, 6, 3]])
def test_reading_in_pieces_with_a_cache_is_reading_at_once(cuts):
    model = small_gpt()
    tokens = random_tokens(model, 2, 18)
    cache = KVCache(model, 2, 18)
    pieces = [model(piece, cache=cache) for piece in tokens.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens))
    assert cache.length == 18


@torch.inference_mode()
def test_a_cache_set_back_reads_others():
    model = small_gpt()
    first, second = random_tokens(model, 2, 10), random_tokens(model, 2, 10)
    cache = KVCache(model, 2, 10)
    model(first, cache=cache)
    cache.length = 0
    torch.testing.assert_close(model(second, cache=cache), model(second))


@torch.inference_mode()
def test_a_logit_does_not_see_what_comes_after_it():
    model = small_gpt()
    tokens = random_tokens(model, 1, 12)
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % model.config.codebook_size
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :7], before[:, :7], rtol=0, atol=0)
    assert (after[:, 7] != before[:, 7]).any()


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(4, 4), (2, 4), (4, 3), (1, 1), (3, 2)])
def test_loss_is_the_mean_surprise_at_each_code(shape):
    model = small_gpt()
    condition = random_tokens(model, 3, 2)
    codes = torch.randint(model.config.codebook_size, (3, *shape))
    flat, positions = codes.flatten(1), model.positions(*shape)
    total = 0.0
    for place in range(flat.shape[1]):
        tokens = torch.cat([condition, flat[:, :place]], dim=1)
        logits = model(tokens, positions[: 2 + place])[:, -1]
        total -= logits.log_softmax(-1).gather(1, flat[:, place : place + 1]).sum().item()
    assert model.loss(condition, codes).item() == pytest.approx(total / codes.numel())


def test_an_untrained_model_is_as_surprised_as_a_die():
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SIZES | {"codebook_size": 512}))
    loss = model.loss(torch.full((2, 2), 512), torch.randint(512, (2, 16, 16)))
    spread = 0.02**2 * model.config.width / 2  # the mean surprise that random logits add
    assert loss.item() == pytest.approx(math.log(512) + spread, abs=0.03)


def test_a_few_steps_learn_a_pattern():
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


def test_positions_of_a_full_window_are_counted():
    assert small_gpt().positions(4, 4).tolist() == list(range(18))


def test_positions_of_a_narrow_window_keep_their_place():
    # 2 condition tokens, then 2 rows of 3 in a trained window of 4: each row ends at 4's end.
    assert small_gpt().positions(2, 3).tolist() == [0, 1, 2, 3, 5, 6, 7, 9]


@pytest.mark.parametrize("shape", [(5, 4), (4, 5)])
def test_a_grid_larger_than_the_window_is_refused(shape):
    with pytest.raises(ConfigError, match="cut windows"):
        small_gpt().positions(*shape)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook_size": 0}, "codebook_size"),
        ({"condition_length": 0}, "condition_length"),
        ({"window": 0}, "window"),
        ({"num_layers": 0}, "num_layers"),
        ({"num_heads": 3, "width": 8}, "multiple"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        GPTConfig(**SIZES | changes)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_config_that_survives_json(name):
    config = GPTConfig(**SIZES, **PRESETS[name])
    assert from_json(GPTConfig, to_json(config)) == config


def test_dropout_acts_in_training_only():
    model = small_gpt(dropout=0.5)
    tokens = random_tokens(model, 1, 10)
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def test_codes_that_decode_alike_start_alike():
    config = GPTConfig(
        codebook_size=40, condition_vocab_size=3, condition_length=1, window=4, width=256
    )
    torch.manual_seed(0)
    model = GPT(config)
    conditions = model.token_embedding.weight[40:].detach().clone()
    latents = torch.arange(40.0)[:, None] * torch.tensor([1.0, -2.0])  # code k beside code k+1
    start_alike(model, latents)
    for weight in (model.token_embedding.weight[:40], model.head.weight):
        likeness = F.cosine_similarity(weight[:, None], weight[None], dim=-1)
        assert likeness.diagonal(1).min() > 0.9
        assert likeness[0, 20:].abs().max() < 0.5
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(model.token_embedding.weight[40:], conditions)
    with pytest.raises(ConfigError, match=r"latents must be \(40, D\)"):
        start_alike(model, latents[:39])
