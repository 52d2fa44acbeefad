import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.config import ConfigError
from ops.noise import uniforms
from ops.windows import Grid, Window
from prior import GPT, ClassLabel, Conditions, GPTConfig
from prior.conditions.inputs import grid_prefix
from prior.models.presets import MODERN
from prior.sampling import sliding_window
from prior.sampling.decoder import Decoder
from prior.sampling.distributions import SamplingSettings, draw
from prior.sampling.sliding_window import parallel_rows_for, sample_codes
from tests.conftest import examples

CONDITIONS = Conditions([ClassLabel(num_classes=3)], 7)
GRID_CODES = 5  # different codes of the grid condition


def random_gpt(window=4, seed=0, condition_length=1, **options):
    """A float64 model whose weights are so large that every token and position matters."""
    torch.manual_seed(seed)
    config = GPTConfig(
        codebook_size=7,
        condition_vocab_size=max(CONDITIONS.vocab_size, GRID_CODES),
        condition_length=condition_length,
        window=window,
        num_layers=2,
        num_heads=2,
        width=8,
        **options,
    )
    model = GPT(config).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def family(of_grid=False, **options):
    """Models and decoders by window; with `of_grid`, the condition is a grid like the codes."""
    models = {}
    for window in (1, 2, 3, 4, 5):
        length = window**2 if of_grid else 1
        model = random_gpt(window, condition_length=length, **options)
        models[window] = model, Decoder(model)
    return models


PAPER, GRIDDED = family(), family(of_grid=True)
FAMILIES = pytest.mark.parametrize("models", [PAPER, family(**MODERN)], ids=["paper", "modern"])


@torch.inference_mode()
def sample_slowly(model, prefix, numbers, choice, *, stride, forced=None):
    """Reference without caches, a whole forward for each cell: codes and log-probabilities.

    Open cells are -1, which the embedding rejects, so reading one is an error."""
    batch, rows, columns = numbers.shape
    window = model.config.window
    height, width = min(window, rows), min(window, columns)
    codes, logs = torch.full((batch, rows, columns), -1), torch.zeros(batch, rows, columns)
    if forced is not None:
        codes[:] = forced
    for i in range(rows):
        for j in range(columns):
            if codes[0, i, j] >= 0:
                continue
            top, left = i - window // 2, j - window // 2
            top, left = top - top % stride, left - left % stride
            top, left = max(0, min(top, rows - window)), max(0, min(left, columns - window))
            offset = (i - top) * width + (j - left)
            before = codes[:, top : top + height, left : left + width].flatten(1)[:, :offset]
            tokens = prefix(Window(top, left, height, width))
            before = before.repeat(len(tokens) // batch, 1)
            positions = model.positions(height, width)[: tokens.shape[1] + offset]
            logits = model(torch.cat([tokens, before], 1), positions)[:, -1]
            if choice.guidance_scale != 1:
                scale = choice.guidance_at(offset / (height * width))
                logits = logits[batch:] + scale * (logits[:batch] - logits[batch:])
            codes[:, i, j], logs[:, i, j] = draw(logits, numbers[:, i, j], choice)
    return codes, logs


def numbers_for(batch, rows, columns, seed=0):
    return torch.from_numpy(uniforms(seed, range(batch), rows, columns))


def sample(decoder, prefix, numbers, choice, **options):
    return sample_codes(
        decoder, prefix, lambda row: numbers[:, row], choice, tuple(numbers.shape), **options
    )


def assert_equal(drawn, expected):
    assert torch.equal(drawn.codes, expected[0])
    torch.testing.assert_close(drawn.log_probabilities, expected[1], rtol=0, atol=1e-5)


def labelled(*labels):
    tokens = CONDITIONS.tokens({"label": labels}, len(labels))
    return lambda window: tokens


def condition_grid(seed, *shape):
    """Tokens of a grid condition."""
    return 7 + torch.randint(GRID_CODES, shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def canvases(draw_from):
    window = draw_from(st.sampled_from(sorted(PAPER)))
    stride = draw_from(st.integers(1, window - window // 2))
    rows, columns = draw_from(st.integers(1, 11)), draw_from(st.integers(1, 11))
    return window, stride, rows, columns, draw_from(st.integers(0, 99))


@FAMILIES
@given(canvas=canvases())
@settings(max_examples=examples(40), deadline=None)
def test_sampling_equals_the_reference(models, canvas):
    window, stride, rows, columns, seed = canvas
    model, decoder = models[window]
    arguments = labelled(0, 2), numbers_for(2, rows, columns, seed), SamplingSettings()
    assert_equal(
        sample(decoder, *arguments, stride=stride), sample_slowly(model, *arguments, stride=stride)
    )


@given(canvas=canvases())
@settings(max_examples=examples(25), deadline=None)
def test_a_grid_condition_slides_with_the_window(canvas):
    window, stride, rows, columns, seed = canvas
    model, decoder = GRIDDED[window]
    prefix = grid_prefix(condition_grid(seed, 2, rows, columns), window)
    arguments = prefix, numbers_for(2, rows, columns, seed), SamplingSettings()
    assert_equal(
        sample(decoder, *arguments, stride=stride), sample_slowly(model, *arguments, stride=stride)
    )


@given(canvas=canvases(), flush_every_rows=st.integers(1, 6))
@settings(max_examples=examples(25), deadline=None)
def test_flushing_rows_changes_rounding_only(canvas, flush_every_rows):
    window, stride, rows, columns, seed = canvas
    model, decoder = PAPER[window]
    arguments = labelled(0, 2), numbers_for(2, rows, columns, seed), SamplingSettings()
    sampled = sample(decoder, *arguments, stride=stride, flush_every_rows=flush_every_rows)
    assert_equal(sampled, sample_slowly(model, *arguments, stride=stride))


@given(canvas=canvases(), flush_every_rows=st.integers(1, 6), memory=st.sampled_from([0, 4 << 30]))
@settings(max_examples=examples(25), deadline=None)
def test_sampling_resumes_at_flushed_rows_bit_for_bit(canvas, flush_every_rows, memory):
    window, stride, rows, columns, seed = canvas
    decoder = Decoder(random_gpt(window).float())
    arguments = labelled(0, 2), numbers_for(2, rows, columns, seed), SamplingSettings()
    options = {"stride": stride, "flush_every_rows": flush_every_rows, "cache_memory": memory}
    whole = sample(decoder, *arguments, **options)
    for done in range(0, rows, flush_every_rows):
        forced = whole.codes.clone()
        forced[:, done:] = -1
        again = sample(decoder, *arguments, forced=forced, **options)
        assert torch.equal(again.codes, whole.codes)
        assert torch.equal(again.log_probabilities[:, done:], whole.log_probabilities[:, done:])


@FAMILIES
@given(canvas=canvases())
@settings(max_examples=examples(20), deadline=None)
def test_sampling_around_forced_codes_equals_the_reference(models, canvas):
    window, stride, rows, columns, seed = canvas
    model, decoder = models[window]
    random = torch.Generator().manual_seed(seed)
    forced = torch.randint(7, (rows, columns), generator=random)
    forced[torch.rand(rows, columns, generator=random) < 0.5] = -1
    arguments = labelled(-1, -1), numbers_for(2, rows, columns, seed), SamplingSettings()
    sampled = sample(decoder, *arguments, stride=stride, forced=forced)
    assert_equal(sampled, sample_slowly(model, *arguments, stride=stride, forced=forced))
    assert (sampled.codes[:, forced >= 0] == forced[forced >= 0]).all()
    assert (sampled.log_probabilities[:, forced >= 0] == 0).all()


@given(canvas=canvases(), memory=st.floats(0, 6), parallel_rows=st.integers(1, 4))
@settings(max_examples=examples(25), deadline=None)
def test_cache_memory_and_parallel_rows_do_not_change_the_codes(canvas, memory, parallel_rows):
    window, stride, rows, columns, seed = canvas
    model, decoder = GRIDDED[window]
    forced = torch.randint(7, (rows, columns), generator=torch.Generator().manual_seed(seed))
    forced[torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.8] = -1
    prefix = grid_prefix(condition_grid(seed, 1, rows, columns), window)
    arguments = prefix, numbers_for(1, rows, columns, seed), SamplingSettings()
    length = window**2 + min(rows, window) * min(columns, window) - 1
    bound = int(memory * decoder.cache_bytes(1, length))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sliding_window.SEQUENCES_AT_ONCE, "cpu", parallel_rows)
        sampled = sample(decoder, *arguments, stride=stride, forced=forced, cache_memory=bound)
    assert_equal(sampled, sample_slowly(model, *arguments, stride=stride, forced=forced))


@FAMILIES
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("schedule", ["constant", "power-cosine"])
def test_guided_sampling_equals_the_reference(models, stride, schedule):
    model, decoder = models[4]
    choice = SamplingSettings(guidance_scale=2.5, guidance_schedule=schedule, top_k=5)
    numbers = numbers_for(2, 9, 7)
    arguments = labelled(1, 2, -1, -1), numbers, choice
    sampled = sample(decoder, *arguments, stride=stride)
    assert_equal(sampled, sample_slowly(model, *arguments, stride=stride))
    unguided = sample(decoder, labelled(1, 2), numbers, SamplingSettings(top_k=5), stride=stride)
    assert not torch.equal(sampled.codes, unguided.codes)


def test_guided_sampling_with_a_grid_condition_equals_the_reference():
    model, decoder = GRIDDED[3]
    condition_inputs = condition_grid(0, 2, 7, 6)
    prefix = grid_prefix(torch.cat([condition_inputs, torch.full_like(condition_inputs, 7)]), 3)
    arguments = prefix, numbers_for(2, 7, 6), SamplingSettings(guidance_scale=3)
    assert_equal(sample(decoder, *arguments, stride=1), sample_slowly(model, *arguments, stride=1))


@pytest.mark.parametrize("of_grid", [False, True])
def test_stride_1_equals_the_published_loop_over_whole_windows(of_grid):
    # As published: the whole window is read, with an arbitrary code in open cells.
    model, decoder = (GRIDDED if of_grid else PAPER)[4]
    condition, numbers = condition_grid(0, 1, 9, 6), numbers_for(1, 9, 6)
    codes = torch.zeros(1, 9, 6, dtype=torch.int64)
    with torch.inference_mode():
        for i in range(9):
            for j in range(6):
                top, left = max(0, min(i - 2, 9 - 4)), max(0, min(j - 2, 6 - 4))
                visible = codes[:, top : top + 4, left : left + 4].reshape(1, 16)
                condition_inputs = condition[:, top : top + 4, left : left + 4].reshape(1, 16)
                condition_inputs = condition_inputs if of_grid else CONDITIONS.null_tokens(1)
                logits = model(torch.cat([condition_inputs, visible], 1)[:, :-1])[:, -16:].view(
                    4, 4, 7
                )
                here = logits[i - top, j - left][None]
                codes[:, i, j] = draw(here, numbers[:, i, j], SamplingSettings()).codes
    prefix = grid_prefix(condition, 4) if of_grid else labelled(-1)
    assert torch.equal(sample(decoder, prefix, numbers, SamplingSettings(), stride=1).codes, codes)


def record_lengths(decoder, monkeypatch):
    """A list that receives, for each later forward, the number of tokens of each request."""
    lengths, next_features = [], decoder.next_features

    def recorded(requests):
        lengths.append([len(request.positions) for request in requests])
        return next_features(requests)

    monkeypatch.setattr(decoder, "next_features", recorded)
    return lengths


def test_each_code_of_a_window_is_read_once(monkeypatch):
    decoder = Decoder(random_gpt())
    lengths = record_lengths(decoder, monkeypatch)
    sample(decoder, labelled(-1), numbers_for(1, 4, 4), SamplingSettings(), stride=2)
    assert lengths == [[1]] * 16
    lengths.clear()
    sample(decoder, labelled(-1), numbers_for(1, 4, 8), SamplingSettings(), stride=2)
    # Three windows of 4x4 at columns 0, 2 and 4, none of which reads its last code.
    assert sum(map(sum, lengths)) == 3 * 16
    assert sum(map(len, lengths)) == 32
    assert len(lengths) == 4 * 3 + 8  # rows overlap: each starts 4 cells behind the one above


def test_cells_along_a_border_share_a_cache_at_stride_1(monkeypatch):
    decoder = Decoder(random_gpt())
    lengths = record_lengths(decoder, monkeypatch)
    sample(decoder, labelled(-1), numbers_for(1, 9, 9), SamplingSettings(), stride=1)
    # 6 x 6 windows; each is read once, up to the last cell that is predicted in it.
    last = [3 if start == 5 else 2 for start in range(6)]
    assert sum(map(sum, lengths)) == sum(1 + row * 4 + column for row in last for column in last)
    assert sum(map(len, lengths)) == 81


def test_the_number_of_caches_does_not_grow_with_the_width(monkeypatch):
    decoder, made = Decoder(random_gpt()), []
    new_cache = decoder.new_cache
    monkeypatch.setattr(decoder, "new_cache", lambda *size: made.append(1) or new_cache(*size))
    sample(decoder, labelled(-1), numbers_for(1, 12, 60), SamplingSettings(), stride=2)
    # Each row of a band is 4 columns behind the one above: the caches are those between the first
    # and the last row, however wide the canvas is.
    assert len(made) <= 12 * 4 // 2 + 1


def test_on_cells_is_called_with_the_codes_so_far():
    reported, forced = [], torch.full((3, 5), -1)
    forced[0, 0] = 1

    def on_cells(count, codes):
        reported.append((count, int((codes[0] >= 0).sum())))

    sample(
        PAPER[4][1],
        labelled(-1),
        numbers_for(1, 3, 5),
        SamplingSettings(),
        stride=1,
        forced=forced,
        on_cells=on_cells,
    )
    assert reported[0] == (1, 1)
    for before, (count, done) in zip([(0, 0), *reported], reported, strict=False):
        assert done == before[1] + count
    assert reported[-1][1] == 15


def test_parallel_rows_are_bounded_by_the_device_and_by_memory():
    cpu, grid = torch.device("cpu"), Grid(64, 64, 16, 8)
    assert [parallel_rows_for(cpu, sequences, grid, 1000) for sequences in (1, 8, 100)] == [
        64,
        8,
        1,
    ]
    # No more rows than there is memory for the caches of the windows between them.
    assert [parallel_rows_for(cpu, 1, grid, max_caches) for max_caches in (1, 7, 100)] == [1, 3, 50]
    assert parallel_rows_for(cpu, 1, Grid(64, 64, 16, 1), 7) == 7


def test_a_stride_beyond_half_the_window_is_rejected():
    with pytest.raises(ConfigError, match="stride"):
        sample(PAPER[4][1], labelled(-1), numbers_for(1, 8, 8), SamplingSettings(), stride=3)
