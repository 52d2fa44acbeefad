"""Codes embedded and predicted by their levels, against slow references and the tokenizer."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.config import ConfigError
from prior import GPT, GPTConfig, init_from_codebook
from prior.models.code_levels import LevelHead, join_levels, split_codes
from prior.models.gpt import code_nll
from prior.objective import LossSettings, training_objective
from tests.conftest import examples
from tests.device_syncs import no_device_syncs
from tokenizer.quantizers import QUANTIZERS, QuantizerConfig

LEVELS, CODES = (4, 3, 2), 24
SIZES = {"codebook_size": CODES, "condition_vocab_size": 30, "condition_length": 1, "window": 3}
FSQ = QuantizerConfig(kind="fsq", codebook_size=15360, code_dim=5, levels=(8, 8, 8, 6, 5))


def small_gpt(**options):
    """A float64 model whose weights are so large that every level clearly changes the logits."""
    torch.manual_seed(0)
    sizes = {"num_layers": 1, "num_heads": 2, "width": 8, "code_levels": LEVELS, **SIZES}
    model = GPT(GPTConfig(**{**sizes, **options})).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return model.eval()


def lfq(bits):
    return QuantizerConfig(kind="lfq", codebook_size=2**bits, code_dim=bits)


def every_latent(config):
    """The quantizer and the codebook (K, D) of its config."""
    quantizer = QUANTIZERS[config.kind](config)
    codes = torch.arange(config.codebook_size)
    return quantizer, quantizer.lookup(codes.view(1, 1, -1))[0, :, 0].T


@given(levels=st.lists(st.integers(2, 7), min_size=1, max_size=5), seed=st.integers(0, 99))
@settings(max_examples=examples(25))
def test_codes_are_joined_from_the_levels_they_are_split_into(levels, seed):
    codes = torch.randint(math.prod(levels), (3, 4), generator=torch.Generator().manual_seed(seed))
    values = split_codes(codes, levels)
    assert all(0 <= value.min() <= value.max() < n for value, n in zip(values, levels, strict=True))
    assert torch.equal(join_levels(values, levels), codes)


@pytest.mark.parametrize(
    ("config", "channels"),
    [
        (FSQ, [1, 1, 1, 1, 1]),
        (lfq(2), [1, 1]),
        (lfq(7), [3, 4]),
        (lfq(12), [6, 6]),
        (lfq(14), [4, 5, 5]),
    ],
    ids=str,
)
def test_levels_are_the_channels_of_the_tokenizers_codes(config, channels):
    """For every code: codes of equal values in a level have equal latents in its channels."""
    quantizer, latents = every_latent(config)
    assert math.prod(quantizer.code_levels) == config.codebook_size
    values = split_codes(torch.arange(config.codebook_size), quantizer.code_levels)
    for level, own, value in zip(
        quantizer.code_levels, latents.split(channels, dim=1), values, strict=True
    ):
        rows = torch.zeros(level, own.shape[1]).index_copy_(0, value, own)  # of any such code
        assert torch.equal(rows[value], own)
        assert len(rows.unique(dim=0)) == level


def test_other_quantizers_and_single_channels_have_no_levels():
    configs = [
        QuantizerConfig(kind="vq", codebook_size=16, code_dim=4),
        QuantizerConfig(kind="fsq", codebook_size=7, code_dim=1, levels=(7,)),
        lfq(1),
    ]
    assert [QUANTIZERS[config.kind](config).code_levels for config in configs] == [(), (), ()]


def test_a_token_is_embedded_as_the_sum_of_its_levels():
    """Codes, condition tokens, a condition's codes, its null token, in the order of their rows."""
    weight = (embedding := small_gpt(condition_codes=(3,)).token_embedding).weight
    rows, expected = iter(weight), []

    def codes():
        of_levels = [[next(rows) for _ in range(level)] for level in LEVELS]
        for code in range(CODES):
            yield of_levels[0][code % 4] + of_levels[1][code // 4 % 3] + of_levels[2][code // 12]

    expected = [*codes(), *(next(rows) for _ in range(3)), *codes(), *rows]
    found = embedding(torch.arange(CODES + 30))
    torch.testing.assert_close(found, torch.stack(expected))


@torch.no_grad()
def test_probabilities_of_all_codes_are_products_over_their_levels():
    model = small_gpt()
    head, codes = model.head, torch.arange(CODES).view(1, 4, 6)
    features = torch.randn(1, 4, 6, 8, dtype=torch.float64)
    features[:] = features[:, :1, :1]
    expected = torch.zeros(CODES, dtype=torch.float64)
    for code in range(CODES):
        values = [code % 4, code // 4 % 3, code // 12]
        for level, value in enumerate(values):
            hidden = head.hidden(features[0, 0, 0])[level * 8 : level * 8 + 8]
            for earlier in range(level):
                first = sum(n for pair, n in PAIRS.items() if pair < (level, earlier))
                hidden = hidden + head.earlier.weight[first + values[earlier]]
            logits = head.outputs[level](F.gelu(hidden))
            expected[code] += logits.log_softmax(-1)[value]
    torch.testing.assert_close(head(features)[0, 0, 0], expected)
    assert expected.exp().sum().item() == pytest.approx(1)
    terms = [F.cross_entropy(x.flatten(0, 2), y.flatten(), reduction="none")
             for x, y in head.terms(features, codes)]  # fmt: skip
    torch.testing.assert_close(-sum(terms), expected)


#: Number of values of the earlier level, by (later, earlier), in the order of the head's rows.
PAIRS = {(1, 0): 4, (2, 0): 4, (2, 1): 3}


def test_extra_terms_are_sums_over_levels():
    model, codes = small_gpt(), torch.randint(CODES, (2, 3, 3))
    tokens = torch.full((2, 1), CODES)
    extra = LossSettings(label_smoothing=0.1, z_loss_weight=0.01)
    nll, loss = training_objective(model, tokens, codes, codes, extra)
    torch.testing.assert_close(nll, model.nll(tokens, codes).detach())
    expected = 0.0
    for logits, values in model.head.terms(model.code_features(tokens, codes), codes):
        logits, values = logits.flatten(0, 2), values.flatten()
        expected += F.cross_entropy(logits, values, label_smoothing=0.1)
        expected += 0.01 * logits.logsumexp(-1).square().mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)


def test_values_with_similar_latents_get_similar_initial_weights():
    torch.manual_seed(0)
    quantizer, latents = every_latent(FSQ)
    sizes = {"condition_vocab_size": 2, "condition_length": 1, "window": 4, "width": 256}
    model = GPT(GPTConfig(codebook_size=15360, code_levels=quantizer.code_levels, **sizes))
    condition = model.token_embedding.weight[-2:].detach().clone()
    init_from_codebook(model, latents)
    assert torch.equal(model.token_embedding.weight[-2:], condition)
    assert isinstance(model.head, LevelHead)
    of_level = model.token_embedding.weight[8:16], model.head.outputs[1].weight
    of_level += (model.head.earlier.weight[8:16],)  # level 0 as level 2 reads it
    for weight in of_level:
        similarity = F.cosine_similarity(weight[:, None], weight[None], dim=-1)
        assert similarity.diagonal(1).min() > 0.7
        assert similarity[0, 7].abs() < 0.5
        std = 5**-0.5 if weight is of_level[2] else 0.02
        assert weight.std().item() == pytest.approx(std, rel=0.2)


def test_embedding_and_head_take_nothing_from_the_host():
    model, codes = small_gpt(condition_codes=(3,)), torch.arange(CODES).view(1, 4, 6)
    with no_device_syncs():
        embedded = model.token_embedding(codes + CODES)
        nll = code_nll(model.head, embedded, codes)
    nll.sum().backward()
    assert model.token_embedding.weight.grad.isfinite().all()


@torch.no_grad()
def test_initial_weights_predict_all_codes_alike():
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SIZES, code_levels=LEVELS))
    nll = model.nll(torch.full((4, 1), CODES), torch.randint(CODES, (4, 3, 3)))
    assert nll.mean().item() == pytest.approx(math.log(CODES), abs=0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"code_levels": (4, 3)}, r"whose product is codebook_size 24; found \[4, 3\]"),
        ({"code_levels": (24,)}, "two numbers or more"),
        ({"code_levels": (2,) * 100_000}, "two numbers or more"),
        ({"code_levels": (24, 1)}, "code_levels must be at least 2"),
        ({"code_levels": LEVELS, "condition_codes": (7,)}, "among 30 condition tokens"),
        ({"code_levels": LEVELS, "condition_codes": (0, 3)}, "rising starts of 24 codes"),
        ({"condition_codes": (3,)}, "condition_codes needs code_levels"),
    ],
)
def test_levels_that_do_not_fit_the_vocabulary_are_rejected(changes, message):
    with pytest.raises(ConfigError, match=message):
        GPTConfig(**SIZES, **changes)
