import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.checkpoint import CheckpointError
from ops.config import ConfigError
from ops.tensor_files import save_tensors
from prior import (
    GPT,
    ClassLabel,
    Conditions,
    GPTConfig,
    Prior,
    StartOfSequence,
    load_prior,
    save_prior,
)
from tests.conftest import examples

TOKENIZER = {"fingerprint": "ab" * 8, "codebook_size": 9, "downsample_factor": 4, "name": "made-up"}


def random_prior(*parts, seed=0):
    torch.manual_seed(seed)
    conditions = Conditions(parts or [StartOfSequence()], 9)
    config = GPTConfig(
        codebook_size=9,
        condition_vocab_size=conditions.vocab_size,
        condition_length=conditions.length,
        window=4,
        num_layers=1,
        num_heads=2,
        width=8,
    )
    model = GPT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    return Prior(model.eval(), conditions, TOKENIZER)


UNCONDITIONAL = random_prior()
LABELLED = random_prior(ClassLabel(num_classes=3))


def test_a_saved_and_loaded_prior_samples_the_same_codes(tmp_path):
    prior = LABELLED
    save_prior(tmp_path / "model", prior.model, prior.conditions, prior.tokenizer_info)
    loaded = load_prior(tmp_path / "model")
    assert loaded.config == prior.config
    assert loaded.conditions.parts == prior.conditions.parts
    assert loaded.tokenizer_info == TOKENIZER
    assert loaded.folder == tmp_path / "model"
    assert not loaded.model.training
    options = {"count": 3, "labels": [0, 1, 2], "seed": 5}
    assert torch.equal(loaded.sample(6, 7, **options), prior.sample(6, 7, **options))


def test_averaged_weights_are_used_when_present(tmp_path):
    prior, average = random_prior(), random_prior(seed=1)
    save_prior(tmp_path, prior.model, prior.conditions, TOKENIZER)
    save_tensors(tmp_path / "ema.safetensors", average.model.state_dict())
    assert torch.equal(load_prior(tmp_path).sample(5, 5), average.sample(5, 5))


def test_a_run_folder_gives_its_newest_complete_step(tmp_path):
    for step, seed in [(10, 0), (20, 1)]:
        prior, folder = random_prior(seed=seed), tmp_path / f"step-{step:08d}"
        save_prior(folder, prior.model, prior.conditions, TOKENIZER)
        (folder / "train_state.pt").touch()
    (tmp_path / "step-00000030").mkdir()
    assert load_prior(tmp_path).folder == tmp_path / "step-00000020"


def test_a_folder_without_a_prior_is_rejected(tmp_path):
    with pytest.raises(CheckpointError, match="neither"):
        load_prior(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"format": 2, "kind": "tokenizer"}))
    with pytest.raises(CheckpointError, match="not a 'prior'"):
        load_prior(tmp_path)


def test_weights_that_do_not_fit_the_config_are_rejected(tmp_path):
    save_prior(tmp_path, UNCONDITIONAL.model, LABELLED.conditions, TOKENIZER)
    with pytest.raises(CheckpointError, match="condition_vocab_size is 1, but the conditions need"):
        load_prior(tmp_path)
    save_prior(tmp_path, UNCONDITIONAL.model, UNCONDITIONAL.conditions, TOKENIZER)
    description = json.loads((tmp_path / "config.json").read_text())
    description["config"]["width"] = 16
    (tmp_path / "config.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match=r"is \(.*\), but config.json asks for \(.*16.*\)"):
        load_prior(tmp_path)


@given(
    samples=st.lists(st.integers(0, 40), min_size=1, max_size=5, unique=True),
    batch_size=st.integers(1, 4),
)
@settings(max_examples=examples(25), deadline=None)
def test_a_sample_does_not_depend_on_which_others_are_requested(samples, batch_size):
    # Bit for bit in float32: every sample keeps its index in the batch.
    together = UNCONDITIONAL.sample(3, 5, samples=samples, batch_size=batch_size)
    alone = [UNCONDITIONAL.sample(3, 5, samples=[k], batch_size=batch_size)[0] for k in samples]
    assert torch.equal(together, torch.stack(alone))


def test_count_requests_the_first_samples():
    codes = UNCONDITIONAL.sample(3, 5, count=3, batch_size=2)
    assert codes.shape == (3, 3, 5)
    assert codes.dtype == torch.int64
    assert torch.equal(codes, UNCONDITIONAL.sample(3, 5, samples=[0, 1, 2], batch_size=2))


def test_different_seeds_and_samples_give_different_codes():
    first = UNCONDITIONAL.sample(6, 6, count=2, seed=0)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, UNCONDITIONAL.sample(6, 6, count=2, seed=1))


def test_labels_change_the_codes():
    one = LABELLED.sample(6, 6, count=2, labels=1)
    each = LABELLED.sample(6, 6, count=2, labels=[1, 2])
    assert torch.equal(one[0], each[0])
    assert not torch.equal(one[1], each[1])
    unlabelled = LABELLED.sample(6, 6, count=2)
    assert torch.equal(unlabelled, LABELLED.sample(6, 6, count=2, labels=-1))


def test_guidance_changes_the_codes():
    plain = LABELLED.sample(6, 6, labels=1)
    assert not torch.equal(plain, LABELLED.sample(6, 6, labels=1, guidance_scale=4.0))
    assert torch.equal(plain, LABELLED.sample(6, 6, labels=1, guidance_scale=1.0))


def test_the_default_stride_is_half_the_window():
    assert torch.equal(UNCONDITIONAL.sample(9, 9), UNCONDITIONAL.sample(9, 9, stride=2))


def test_the_default_canvas_is_the_window():
    assert torch.equal(LABELLED.sample(labels=2, seed=3), LABELLED.sample(4, 4, labels=2, seed=3))


def test_sample_with_log_probs_returns_the_models_log_probabilities():
    drawn = LABELLED.sample_with_log_probs(4, 4, count=2, labels=1, seed=3)
    assert torch.equal(drawn.codes, LABELLED.sample(4, 4, count=2, labels=1, seed=3))
    prefixes = LABELLED.conditions.tokens({"label": [1, 1]}, 2)
    with torch.no_grad():
        expected = -LABELLED.model.nll(prefixes, drawn.codes)
    torch.testing.assert_close(drawn.log_probabilities, expected, rtol=0, atol=1e-4)


def test_forced_codes_have_log_probability_0():
    forced = torch.full((6, 6), -1)
    forced[2] = 3
    drawn = UNCONDITIONAL.sample_with_log_probs(6, 6, forced=forced)
    assert (drawn.log_probabilities[0, 2] == 0).all()
    assert (drawn.log_probabilities[0, 3:] < 0).all()


def test_forced_codes_are_kept():
    forced = torch.full((6, 6), -1)
    forced[:, 3:] = 8
    sampled = UNCONDITIONAL.sample(6, 6, forced=forced.numpy())
    assert (sampled[0, :, 3:] == 8).all()
    assert sampled.min() >= 0


def test_each_sample_resumes_from_its_own_forced_codes():
    options = {"batch_size": 4, "flush_every_rows": 3}
    whole = UNCONDITIONAL.sample(8, 7, count=8, **options)
    for samples in ([1, 2], [2, 5, 7], [6]):
        forced = whole[samples].clone()
        forced[:, 6:] = -1
        again = UNCONDITIONAL.sample(8, 7, samples=samples, forced=forced, **options)
        assert torch.equal(again, whole[samples])


@pytest.mark.parametrize("size", [(4, 3), (8, 7)])
def test_samples_may_have_different_known_cells(size):
    """Each equals the sample generated alone: in float64 the batch does not change codes."""
    prior = random_prior()
    prior.model.double()
    random = torch.Generator().manual_seed(3)
    forced = torch.randint(8, (3, *size), generator=random)
    forced[torch.rand(3, *size, generator=random) < 0.6] = -1
    calls = []
    options = {"batch_size": 3, "progress": lambda done, total: calls.append((done, total))}
    together = prior.sample_with_log_probs(*size, count=3, forced=forced, **options)
    assert calls[-1] == (forced[0].numel(), forced[0].numel())
    assert (together.codes[forced >= 0] == forced[forced >= 0]).all()
    assert (together.log_probabilities[forced >= 0] == 0).all()
    for sample in range(3):
        own = prior.sample_with_log_probs(
            *size, samples=[sample], forced=forced[sample], batch_size=3
        )
        assert torch.equal(own.codes[0], together.codes[sample])
        torch.testing.assert_close(own.log_probabilities[0], together.log_probabilities[sample])


def test_progress_reaches_its_total():
    calls = []
    UNCONDITIONAL.sample(3, 4, count=3, batch_size=2, progress=lambda *call: calls.append(call))
    assert calls == [(done, 24) for done in range(1, 25)]


def test_previews_show_the_codes_so_far_of_each_sample():
    previews = {0: [], 1: []}

    def preview(sample, codes):
        assert codes.shape == (6, 7)
        previews[sample].append(codes.clone())

    sampled = UNCONDITIONAL.sample(6, 7, count=2, preview=preview)
    for sample, shown in previews.items():
        drawn = [int((codes >= 0).sum()) for codes in shown]
        assert drawn == sorted(drawn)
        assert 5 <= len(shown) <= 7  # about one for each row
        assert torch.equal(shown[-1], sampled[sample])
        assert all(((codes == sampled[sample]) | (codes < 0)).all() for codes in shown)


def test_sampling_is_without_dropout_and_leaves_the_model_in_training():
    prior = random_prior()
    expected = prior.sample(4, 4)
    prior.model.train()
    assert torch.equal(prior.sample(4, 4), expected)
    assert prior.model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "Nothing to sample"),
        ({"batch_size": 0}, "batch_size"),
        ({"labels": 1}, "without classes"),
        ({"guidance_scale": 2.0}, "classes"),
        ({"temperature": -1.0}, "temperature"),
        ({"stride": 3}, "stride"),
        ({"seed": -1}, "seed"),
        ({"forced": torch.zeros(2, 2)}, "forced"),
        ({"forced": torch.full((4, 4), 9)}, "below 9"),
        ({"cache_memory": -1}, "cache_memory"),
        ({"flush_every_rows": 0}, "flush_every_rows"),
    ],
)
def test_invalid_options_are_rejected(options, message):
    with pytest.raises(ConfigError, match=message):
        UNCONDITIONAL.sample(4, 4, **options)


def test_labels_must_be_one_or_one_each():
    with pytest.raises(ConfigError, match="2 labels for 3 samples"):
        LABELLED.sample(4, 4, count=3, labels=[0, 1])
