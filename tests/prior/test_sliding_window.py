import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.config import ConfigError
from ops.noise import uniforms
from ops.windows import Window
from prior import GPT, ClassLabel, Conditions, GPTConfig, KVCache
from prior.gpt_config import MODERN
from prior.sampling import SamplingSettings, draw
from prior.sliding_window import WindowCaches, paint_codes

CONDITIONS = Conditions([ClassLabel(num_classes=3)], 7)


def random_gpt(window=4, seed=0, **options):
    """Weights large enough that every token and place weighs on the next code; float64."""
    torch.manual_seed(seed)
    config = GPTConfig(
        codebook_size=7,
        condition_vocab_size=CONDITIONS.vocab_size,
        condition_length=1,
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


MODELS = {window: random_gpt(window) for window in (1, 2, 3, 4, 5)}
MODERN_MODELS = {window: random_gpt(window, **MODERN) for window in MODELS}
FAMILIES = pytest.mark.parametrize("models", [MODELS, MODERN_MODELS], ids=["paper", "modern"])


@torch.inference_mode()
def paint_slowly(model, prefixes, numbers, choice, *, stride, null_prefixes=None, forced=None):
    """The rule without any cache: one whole forward a cell. A cell not yet drawn is -1, which no
    embedding takes, so reading one is an error."""
    batch, rows, columns = numbers.shape
    window = model.config.window
    height, width = min(window, rows), min(window, columns)
    codes = torch.full((batch, rows, columns), -1)
    if forced is not None:
        codes[:] = forced
    for i in range(rows):
        for j in range(columns):
            if codes[0, i, j] >= 0:
                continue
            top, left = i - window // 2, j - window // 2
            top, left = top - top % stride, left - left % stride
            top, left = max(0, min(top, rows - window)), max(0, min(left, columns - window))
            place = (i - top) * width + (j - left)
            before = codes[:, top : top + height, left : left + width].flatten(1)[:, :place]
            positions = model.positions(height, width)[: 1 + place]
            logits = model(torch.cat([prefixes, before], 1), positions)[:, -1]
            if null_prefixes is not None:
                nothing = model(torch.cat([null_prefixes, before], 1), positions)[:, -1]
                logits = nothing + choice.guidance_scale * (logits - nothing)
            codes[:, i, j] = draw(logits, numbers[:, i, j], choice).codes
    return codes


def numbers_for(batch, rows, columns, seed=0):
    return torch.from_numpy(uniforms(seed, range(batch), rows, columns))


@st.composite
def canvases(draw_from):
    window = draw_from(st.sampled_from(sorted(MODELS)))
    stride = draw_from(st.integers(1, window - window // 2))
    rows, columns = draw_from(st.integers(1, 11)), draw_from(st.integers(1, 11))
    return window, stride, rows, columns, draw_from(st.integers(0, 99))


@FAMILIES
@given(canvas=canvases())
@settings(max_examples=40, deadline=None)
def test_painting_is_the_slow_loop_code_for_code(models, canvas):
    window, stride, rows, columns, seed = canvas
    prefixes = CONDITIONS.tokens({"label": [0, 2]}, 2)
    arguments = models[window], prefixes, numbers_for(2, rows, columns, seed), SamplingSettings()
    painted = paint_codes(*arguments, stride=stride).codes
    assert torch.equal(painted, paint_slowly(*arguments, stride=stride))


@FAMILIES
@given(canvas=canvases())
@settings(max_examples=20, deadline=None)
def test_painting_around_known_codes_is_the_slow_loop(models, canvas):
    window, stride, rows, columns, seed = canvas
    random = torch.Generator().manual_seed(seed)
    forced = torch.randint(7, (rows, columns), generator=random)
    forced[torch.rand(rows, columns, generator=random) < 0.5] = -1
    prefixes = CONDITIONS.null_tokens(2)
    arguments = models[window], prefixes, numbers_for(2, rows, columns, seed), SamplingSettings()
    painted = paint_codes(*arguments, stride=stride, forced=forced).codes
    assert torch.equal(painted, paint_slowly(*arguments, stride=stride, forced=forced))
    assert (painted[:, forced >= 0] == forced[forced >= 0]).all()


@FAMILIES
@pytest.mark.parametrize("stride", [1, 2])
def test_guided_painting_is_the_slow_loop(models, stride):
    prefixes, nulls = CONDITIONS.tokens({"label": [1, 2]}, 2), CONDITIONS.null_tokens(2)
    choice = SamplingSettings(guidance_scale=2.5, top_k=5)
    arguments = models[4], prefixes, numbers_for(2, 9, 7), choice
    painted = paint_codes(*arguments, stride=stride, null_prefixes=nulls).codes
    expected = paint_slowly(*arguments, stride=stride, null_prefixes=nulls)
    assert torch.equal(painted, expected)
    unguided = paint_codes(*arguments[:3], SamplingSettings(top_k=5), stride=stride).codes
    assert not torch.equal(painted, unguided)


def test_stride_1_is_the_papers_loop_over_whole_windows():
    # As published: the whole window goes in, what is not drawn yet as an arbitrary code.
    model, numbers = MODELS[4], numbers_for(1, 9, 6)
    codes = torch.zeros(1, 9, 6, dtype=torch.int64)
    with torch.inference_mode():
        for i in range(9):
            for j in range(6):
                top, left = max(0, min(i - 2, 9 - 4)), max(0, min(j - 2, 6 - 4))
                patch = codes[:, top : top + 4, left : left + 4].reshape(1, 16)
                tokens = torch.cat([CONDITIONS.null_tokens(1), patch], 1)[:, :-1]
                logits = model(tokens)[:, (i - top) * 4 + j - left]
                codes[:, i, j] = draw(logits, numbers[:, i, j], SamplingSettings()).codes
    painted = paint_codes(
        model, CONDITIONS.null_tokens(1), numbers, SamplingSettings(), stride=1
    ).codes
    assert torch.equal(painted, codes)


def test_each_code_is_read_once_while_a_window_stays():
    model, read = random_gpt(), []
    forward = model.features
    model.features = lambda tokens, *rest: read.append(tokens.shape[1]) or forward(tokens, *rest)
    prefixes, choice = CONDITIONS.null_tokens(1), SamplingSettings()
    paint_codes(model, prefixes, numbers_for(1, 4, 4), choice, stride=2)
    assert read == [1] * 16
    read.clear()
    paint_codes(model, prefixes, numbers_for(1, 4, 8), choice, stride=2)
    # Three windows of 4x4 at columns 0, 2 and 4, none of which reads its last code.
    assert sum(read) == 3 * 16
    assert len(read) == 32


def test_windows_without_room_read_anew_and_draw_the_same():
    model = MODELS[4]
    prefixes, numbers, choice = CONDITIONS.null_tokens(1), numbers_for(1, 9, 14), SamplingSettings()
    roomy = paint_codes(model, prefixes, numbers, choice, stride=2).codes
    one = KVCache(model, 1, 16).nbytes
    for memory in (0, one, 2 * one, 3 * one):
        cramped = paint_codes(model, prefixes, numbers, choice, stride=2, cache_bytes=memory).codes
        assert torch.equal(cramped, roomy)


def test_caches_are_handed_on_and_never_more_than_there_is_room_for():
    made = []

    def make():
        made.append(KVCache(MODELS[4], 1, 16))
        return made[-1]

    caches = WindowCaches(make, 3 * KVCache(MODELS[4], 1, 16).nbytes)
    for row in range(6):
        for column in range(5):
            window = Window(row // 3, column, 4, 4)
            cache = caches.enter(window, needed_again=row % 3 < 2)
            kept = row % 3 and column < 2
            assert cache.length == (row % 3 if kept else 0)
            cache.length = row % 3 + 1
    assert len(made) == 3


def test_windows_that_are_done_with_hand_their_cache_on():
    made = []

    def make():
        made.append(KVCache(MODELS[4], 1, 16))
        return made[-1]

    caches = WindowCaches(make, 1 << 30)
    for column in range(5):
        caches.enter(Window(0, column, 4, 4), needed_again=False)
    assert len(made) == 1
    for row in range(1, 4):  # the raster may leave a row band before it comes back to a window
        for column in range(5):
            assert caches.enter(Window(row, column, 4, 4), needed_again=True).length == 0
    assert len(made) == 5


def test_every_cell_is_reported():
    calls = []
    forced = torch.full((3, 5), -1)
    forced[0, 0] = 1
    paint_codes(
        MODELS[4],
        CONDITIONS.null_tokens(1),
        numbers_for(1, 3, 5),
        SamplingSettings(),
        stride=1,
        forced=forced,
        on_cell=lambda: calls.append(1),
    )
    assert len(calls) == 15


def test_a_stride_beyond_half_the_window_is_refused():
    with pytest.raises(ConfigError, match="stride"):
        paint_codes(
            MODELS[4], CONDITIONS.null_tokens(1), numbers_for(1, 8, 8), SamplingSettings(), stride=3
        )
