"""Static decoding as a whole: with every prior and condition, and what the host does meanwhile."""

import pytest
import torch

from ops.config import ConfigError
from prior import (
    Boxes,
    ClassLabel,
    Conditions,
    Coordinates,
    Prior,
    Segmentation,
    StartOfSequence,
    condition_sizes,
    make_model,
    preset_config,
)
from prior.sampling import static_local, static_windows
from prior.sampling.step_graphs import IndexedStep
from tests.device_syncs import no_device_syncs

CODES, WINDOW, ROWS, COLUMNS, COUNT = 9, 4, 6, 5, 2
LEVELS = (3, 3)  # of codes, in the architectures whose name ends with -levels
SIZES = {"window": WINDOW, "num_layers": 2, "num_heads": 2, "width": 16}
INPUTS = {
    "class": {"label": torch.tensor([0, 2])},
    "segmentation": {"segmentation": torch.arange(2 * ROWS * COLUMNS).view(2, ROWS, COLUMNS) % 5},
    "coordinates": {},
    "boxes": {
        "boxes": torch.tensor([[[0, 0.1, 0.1, 0.6, 0.9]], [[1, 0.5, 0, 1, 0.5]]]),
        "crop": torch.tensor([0.0, 0, 1, 1]),
    },
    "sos": {},
}
PARTS = {
    "class": [ClassLabel(num_classes=3)],
    "segmentation": [ClassLabel(num_classes=3), Segmentation(codebook_size=5)],
    "coordinates": [Coordinates(codebook_size=8, downsample_factor=4)],
    "boxes": [Boxes(num_categories=2, max_objects=2, places=4)],
    "sos": [StartOfSequence()],
}


def prior_for(architecture, condition="class", **options):
    """A prior in float64 with large weights, so that every token matters."""
    torch.manual_seed(0)
    preset = {"gpt": "tiny", "modern": "tiny-modern", "local": "tiny-local", "snail": "tiny-snail"}
    conditions = Conditions(PARTS[condition], CODES)
    architecture, _, by_levels = architecture.partition("-")
    levels = LEVELS if by_levels else ()
    sizes = condition_sizes(preset[architecture], conditions, WINDOW, levels)
    depth = {} if architecture == "snail" else SIZES
    radius = {"radius": 2} if architecture == "local" else {}
    model = make_model(preset_config(preset[architecture], **sizes | depth | radius | options))
    for parameter in model.double().parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    tokenizer = {"fingerprint": "ab", "codebook_size": CODES, "downsample_factor": 4, "name": "a"}
    return Prior(model.eval(), conditions, tokenizer)


def both(prior, **options):
    """What the plain sampler and static decoding draw."""
    options = {"count": COUNT, "batch_size": 2, "seed": 3, **options}
    return [
        prior.sample_with_log_probs(ROWS, COLUMNS, **options, static_decode=static)
        for static in (False, True)
    ]


def assert_same(plain, static):
    assert torch.equal(plain.codes, static.codes)
    torch.testing.assert_close(plain.log_probabilities, static.log_probabilities)


@pytest.mark.parametrize("condition", sorted(PARTS))
@pytest.mark.parametrize("architecture", ["gpt", "local"])
def test_static_decoding_equals_the_plain_sampler_with_every_condition(architecture, condition):
    prior = prior_for(architecture, condition)
    inputs = {"condition_inputs": INPUTS[condition]} if INPUTS[condition] else {}
    guidance = {"guidance_scale": 2.0, "guidance_schedule": "power-cosine"}
    assert_same(*both(prior, **inputs, **(guidance if prior.conditions.can_guide else {})))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"top_k": 3, "temperature": 0.8},
        {"top_p": 0.7, "min_p": 0.1},
        {"samples": [4, 1], "labels": [0, 2]},
        {"labels": 1, "guidance_scale": 0.0},
        {"count": 3, "batch_size": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("architecture", ["gpt", "local", "gpt-levels", "local-levels"])
def test_static_decoding_equals_the_plain_sampler_with_every_setting(architecture, options):
    assert_same(*both(prior_for(architecture), **options))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("flush_every_rows", [None, 3])
@pytest.mark.parametrize("cache_memory", [0, 4 << 30])
def test_static_decoding_equals_the_plain_sampler_at_every_stride(
    stride, flush_every_rows, cache_memory
):
    prior = prior_for("gpt")
    options = {"flush_every_rows": flush_every_rows, "cache_memory": cache_memory}
    plain, static = both(prior, stride=stride, **options)
    assert_same(plain, static)
    assert_same(*both(prior, stride=stride, **options, forced=known(plain.codes)))


def test_static_decoding_equals_the_plain_sampler_around_known_cells():
    plain, static = both(prior_for("local"))
    assert_same(plain, static)
    assert_same(*both(prior_for("local"), forced=known(plain.codes)))
    assert_same(*both(prior_for("local"), forced=known(plain.codes)[0]))


def known(codes):
    """About half of the codes, others in each sample."""
    random = torch.Generator().manual_seed(1)
    return codes.where(torch.rand(codes.shape, generator=random) < 0.5, -1)


@pytest.mark.parametrize("architecture", ["gpt", "local"])
def test_sampling_resumes_bit_for_bit_in_float32(architecture):
    prior = prior_for(architecture)
    prior.model.float()
    options = {"batch_size": 2, "static_decode": True}
    if architecture == "gpt":
        options["flush_every_rows"] = 2
    whole = prior.sample_with_log_probs(ROWS, COLUMNS, count=4, **options)
    for done in range(0, ROWS, 2):
        forced = whole.codes[[1, 2]].clone()
        forced[:, done:] = -1
        again = prior.sample_with_log_probs(ROWS, COLUMNS, samples=[1, 2], forced=forced, **options)
        assert torch.equal(again.codes, whole.codes[[1, 2]])
        assert torch.equal(
            again.log_probabilities[:, done:], whole.log_probabilities[[1, 2]][:, done:]
        )


def test_priors_in_another_order_and_pixelsnails_are_sampled_by_the_plain_sampler():
    for prior in (prior_for("gpt", ordering="spiral-in"), prior_for("snail")):
        assert prior.sample(4, 4).shape == (1, 4, 4)
        with pytest.raises(ConfigError, match="static_decode"):
            prior.sample(4, 4, static_decode=True)


@pytest.mark.parametrize("architecture", ["gpt", "local"])
def test_errors_are_those_of_the_plain_sampler(architecture):
    with pytest.raises(ConfigError, match="stride"):
        prior_for(architecture).sample(7, 7, stride=3, static_decode=True)


@pytest.mark.parametrize("architecture", ["gpt", "local"])
def test_the_host_looks_about_once_a_row(architecture):
    progress, previews = [], []
    codes = prior_for(architecture).sample(
        ROWS,
        COLUMNS,
        count=2,
        progress=lambda done, total: progress.append((done, total)),
        preview=lambda sample, codes: previews.append((sample, codes.clone())),
        static_decode=True,
    )
    cells = ROWS * COLUMNS
    assert 1 < len(progress) <= ROWS
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)
    assert progress[-1] == (cells, cells)
    assert len(previews) == 2 * len(progress)
    for sample, shown in previews:
        assert ((shown == codes[sample]) | (shown < 0)).all()


@pytest.mark.parametrize("architecture", ["gpt", "local"])
def test_an_interrupted_batch_leaves_nothing_in_the_next_one(architecture):
    prior = prior_for(architecture)
    options = {"static_decode": True, "seed": 1}
    expected = prior.sample(ROWS, COLUMNS, **options)

    def stop(done, total):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        prior.sample(ROWS, COLUMNS, **options | {"seed": 2}, progress=stop)
    assert torch.equal(prior.sample(ROWS, COLUMNS, **options), expected)


LOOPS = [
    ("local", "class", {}, {"temperature": 0}),
    ("local", "segmentation", {"guidance_scale": 2.0}, {"top_k": 4}),
    ("gpt", "class", {"guidance_scale": 2.0, "guidance_schedule": "power-cosine"}, {"top_k": 4}),
    ("modern", "segmentation", {"stride": 1}, {"top_p": 0.9, "min_p": 0.01}),
    ("modern", "class", {"stride": 2, "flush_every_rows": 3}, {}),
    ("local-levels", "class", {"guidance_scale": 2.0}, {"top_p": 0.9}),
    ("gpt-levels", "segmentation", {"stride": 2}, {"temperature": 0.7}),
]


@pytest.mark.parametrize(("architecture", "condition", "options", "drawing"), LOOPS, ids=str)
def test_the_loop_takes_nothing_from_the_host(
    architecture, condition, options, drawing, monkeypatch
):
    """And all calls of a step are the same operations of the same shapes, as a graph has them."""
    of_steps, call, run = {}, IndexedStep.__call__, static_local.run_calls

    def recorded(step):
        with no_device_syncs() as operations:
            call(step)
        of_steps.setdefault(step, []).append(operations)

    def checked(*arguments):
        with no_device_syncs():
            run(*arguments)

    monkeypatch.setattr(IndexedStep, "__call__", recorded)
    for module in (static_local, static_windows):
        monkeypatch.setattr(module, "run_calls", checked)
    prior, forced = prior_for(architecture, condition), torch.full((ROWS, COLUMNS), -1)
    forced[2, 1:] = 3
    assert_same(*both(prior, forced=forced, **options, **drawing))
    assert sum(map(len, of_steps.values())) > ROWS
    for calls in of_steps.values():
        assert all(operations == calls[0] for operations in calls)


def test_the_inference_copy_and_the_static_sampler_are_made_once(monkeypatch):
    made = []
    for name in ("StaticLocalSampler", "StaticWindowSampler"):
        cls = getattr(static_local if "Local" in name else static_windows, name)
        monkeypatch.setattr(
            f"prior.prior.{name}",
            lambda *given, cls=cls, **more: made.append(1) or cls(*given, **more),
        )
    options = {"count": 4, "batch_size": 2, "static_decode": True}
    for architecture in ("gpt", "local"):
        prior = prior_for(architecture)
        prior.model.float()  # on CPUs, its copy has packed weights of its own
        made.clear()
        first = prior.sample(ROWS, COLUMNS, **options)
        assert torch.equal(first, prior.sample(ROWS, COLUMNS, **options))
        assert len(made) == 1
        with torch.no_grad():
            prior.model.head.weight.neg_()
        changed = prior.sample(ROWS, COLUMNS, **options)
        assert not torch.equal(first, changed)
        fresh = Prior(prior.model, prior.conditions, prior.tokenizer_info)
        assert torch.equal(changed, fresh.sample(ROWS, COLUMNS, **options))


@pytest.mark.parametrize(
    ("architecture", "static"),
    [
        ("gpt", False),
        ("gpt", True),
        ("local", False),
        ("local", True),
        ("snail", False),
        ("local-levels", True),
    ],
)
def test_bfloat16_samples_repeatably_and_first_codes_are_as_in_float32(architecture, static):
    prior = prior_for(architecture)
    with torch.no_grad():
        for parameter in prior.model.float().parameters():
            parameter *= 0.2
    options = {"static_decode": static, "labels": 1, "top_k": 7, "guidance_scale": 1.5}
    codes = prior.sample(3, 3, precision="bfloat16", **options)
    assert torch.equal(codes, prior.sample(3, 3, precision="bfloat16", **options))
    exact, rounded = (
        prior.sample_with_log_probs(
            1, 1, precision=precision, count=32, batch_size=32, **options | {"guidance_scale": 1.0}
        )
        for precision in ("float32", "bfloat16")
    )
    same = exact.codes == rounded.codes
    assert same.sum() >= 30
    difference = (exact.log_probabilities - rounded.log_probabilities)[same].abs()
    assert 0 < difference.mean() < 0.01


def test_precisions_have_their_own_copies_and_samplers():
    """Else graphs of one precision would be replayed for another."""
    prior = prior_for("local")
    prior.model.float()
    codes = {}
    for precision in ("bfloat16", "float32", "tf32", "bfloat16", "auto"):
        sampled = prior.sample_with_log_probs(4, 4, precision=precision, static_decode=True)
        kept = codes.setdefault(precision, sampled.log_probabilities)
        assert torch.equal(kept, sampled.log_probabilities)
    assert torch.equal(codes["auto"], codes["float32"])
    assert not torch.equal(codes["bfloat16"], codes["float32"])
