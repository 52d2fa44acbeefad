import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.config import ConfigError
from prior import GPT, ClassLabel, Conditions, GPTConfig, Prior
from prior.orderings import ORDERINGS, PUBLISHED_SEED
from prior.sampling.distributions import SamplingSettings, draw
from tests.conftest import examples

# forward_shuffle_idx of the published code's Permuters on 4x4, derived from its loops by hand.
GOLDEN = {
    "row-major": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    "alternate": [0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11, 15, 14, 13, 12],
    "spiral-in": [15, 11, 7, 3, 2, 1, 0, 4, 8, 12, 13, 14, 10, 6, 5, 9],
    "spiral-out": [9, 5, 6, 10, 14, 13, 12, 8, 4, 0, 1, 2, 3, 7, 11, 15],
    "z-curve": [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15],
    "subsample": [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15],
    "random": [3, 13, 7, 2, 6, 10, 4, 1, 14, 0, 15, 9, 8, 12, 11, 5],
}
SIZES = st.tuples(st.integers(1, 21), st.integers(1, 21))
CONDITIONS = Conditions([ClassLabel(num_classes=2)], 7)
INFO = {"fingerprint": "-", "codebook_size": 7, "downsample_factor": 8, "name": "none"}
OTHERS = [name for name in ORDERINGS if name != "row-major"]


def random_gpt(ordering, window=4, **options):
    """A float64 model whose weights are so large that every token and position matters."""
    torch.manual_seed(0)
    config = GPTConfig(
        codebook_size=7,
        condition_vocab_size=CONDITIONS.vocab_size,
        condition_length=1,
        window=window,
        num_layers=2,
        num_heads=2,
        width=8,
        ordering=ordering,
        **options,
    )
    model = GPT(config).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


@pytest.mark.parametrize("name", ORDERINGS)
def test_orders_of_a_square_are_the_published_ones(name):
    assert ORDERINGS[name](4, 4, PUBLISHED_SEED).tolist() == GOLDEN[name]


@pytest.mark.parametrize("name", ORDERINGS)
@given(size=SIZES, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=examples(40), deadline=None)
def test_every_order_is_a_permutation_of_any_grid(name, size, seed):
    rows, columns = size
    assert sorted(ORDERINGS[name](rows, columns, seed)) == list(range(rows * columns))


@pytest.mark.parametrize("name", ["alternate", "spiral-in", "spiral-out"])
@given(size=SIZES)
@settings(max_examples=examples(40), deadline=None)
def test_consecutive_cells_of_continuous_orders_are_adjacent(name, size):
    rows, columns = np.divmod(ORDERINGS[name](*size, 0), size[1])
    assert (abs(np.diff(rows)) + abs(np.diff(columns)) == 1).all()


@pytest.mark.parametrize("name", ["z-curve", "subsample"])
@given(size=SIZES)
@settings(max_examples=examples(40), deadline=None)
def test_orders_by_bits_are_those_of_the_enclosing_power_of_two(name, size):
    whole_rows, whole_columns = np.divmod(ORDERINGS[name](32, 32, 0), 32)
    inside = (whole_rows < size[0]) & (whole_columns < size[1])
    expected = whole_rows[inside] * size[1] + whole_columns[inside]
    assert ORDERINGS[name](*size, 0).tolist() == expected.tolist()


def test_another_seed_gives_another_random_order():
    assert not np.array_equal(ORDERINGS["random"](4, 4, 1), ORDERINGS["random"](4, 4, 2))
    models = [random_gpt("random", ordering_seed=seed) for seed in (1, 2)]
    codes = torch.randint(7, (1, 4, 4), generator=torch.Generator().manual_seed(0))
    logits = [model.code_logits(CONDITIONS.null_tokens(1), codes) for model in models]
    assert not torch.equal(*logits)


def slow_logits_of(model, prefix, codes, known):
    """Reference: logits (B, K) of the code after the first `known` ones in the model's order.

    The canvas is the window's upper left part, and the token read just before a code has the
    position that precedes that code's.
    """
    window, (_, rows, columns) = model.config.window, codes.shape
    whole = ORDERINGS[model.config.ordering](window, window, model.config.ordering_seed).tolist()
    cells = [cell for cell in whole if cell // window < rows and cell % window < columns]
    read = [codes[:, cell // window, cell % window] for cell in cells[:known]]
    tokens = torch.cat([prefix, *(code[:, None] for code in read)], dim=1)
    length = prefix.shape[1]
    condition_inputs = list(range(length - 1))
    positions = condition_inputs + [length + whole.index(cell) - 1 for cell in cells[: known + 1]]
    cell = cells[known]
    logits = model(tokens, torch.tensor(positions))[:, -1]
    return logits, (cell // window, cell % window)


@torch.inference_mode()
@pytest.mark.parametrize("name", ORDERINGS)
@pytest.mark.parametrize("size", [(4, 4), (3, 4), (4, 1), (2, 3)])
def test_logits_equal_the_reference_at_every_code(name, size):
    model = random_gpt(name)
    codes = torch.randint(7, (2, *size), generator=torch.Generator().manual_seed(0))
    prefix = CONDITIONS.tokens({"label": [0, 1]}, 2)
    logits = model.code_logits(prefix, codes)
    for known in range(codes[0].numel()):
        expected, (row, column) = slow_logits_of(model, prefix, codes, known)
        torch.testing.assert_close(logits[:, row, column], expected)


@torch.inference_mode()
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("size", [(4, 4), (3, 2)])
@pytest.mark.parametrize("guidance_scale", [1, 2.5])
def test_sampling_in_any_order_equals_the_reference(name, size, guidance_scale):
    model = random_gpt(name)
    known = torch.full(size, -1)
    known[1, 1] = 3
    choice = SamplingSettings(
        guidance_scale=guidance_scale, guidance_schedule="power-cosine", top_k=5
    )
    prior = Prior(model, CONDITIONS, INFO)
    options = {"guidance_scale": guidance_scale, "guidance_schedule": "power-cosine", "top_k": 5}
    sampled = prior.sample(*size, count=2, labels=[0, 1], forced=known, **options)
    numbers = prior._row_uniforms(0, range(2), size[1])
    codes = known.repeat(2, 1, 1)
    for number in range(codes[0].numel()):
        condition_inputs = CONDITIONS.tokens({"label": [0, 1]}, 2)
        logits, (row, column) = slow_logits_of(model, condition_inputs, codes.clamp(min=0), number)
        null_logits, _ = slow_logits_of(
            model, CONDITIONS.null_tokens(2), codes.clamp(min=0), number
        )
        scale = choice.guidance_at(number / codes[0].numel())
        logits = null_logits + scale * (logits - null_logits)
        if known[row, column] < 0:
            codes[:, row, column] = draw(logits, numbers(row)[:, column], choice).codes
    assert torch.equal(sampled, codes)


def test_a_canvas_beyond_the_window_needs_raster_order():
    prior = Prior(random_gpt("spiral-in"), CONDITIONS, INFO)
    with pytest.raises(ConfigError, match=r"order 'spiral-in'.*window of 4x4 codes; found 4x5"):
        prior.sample(4, 5)
    with pytest.raises(ConfigError, match="leave flush_every_rows out"):
        prior.sample(4, 4, flush_every_rows=2)


def test_rope2d_needs_raster_order():
    with pytest.raises(ConfigError, match=r"rope2d.*'z-curve'.*learned"):
        random_gpt("z-curve", positions="rope2d")
    with pytest.raises(ConfigError, match=r"ordering must be one of row-major"):
        random_gpt("zigzag")
