"""Several conditions as one sequence of tokens, and what training drops of them."""

import pytest
import torch

from ops.config import ConfigError
from prior import (
    ClassLabel,
    Conditions,
    Inpaint,
    LowResolution,
    Segmentation,
    StartOfSequence,
    condition_sizes,
    make_model,
    preset_config,
)
from tests.prior.conditions.test_contract import EXAMPLES, SHAPE, random_batch


def test_grids_come_last_whatever_order_they_are_named_in():
    conditions = Conditions([EXAMPLES["depth"], EXAMPLES["class"], EXAMPLES["segmentation"]], 100)
    assert [part.name for part in conditions.parts] == ["class", "depth", "segmentation"]
    assert (conditions.length, conditions.num_grids, conditions.vocab_size) == (1, 2, 6 + 5 + 7)
    batch = {
        "codes": torch.zeros(1, 1, 2, dtype=torch.int64),
        "label": torch.tensor([3]),
        "depth": torch.tensor([[[0, 3]]]),
        "segmentation": torch.tensor([[[5, -1]]]),
    }
    assert conditions.tokens(batch, 1).tolist() == [[103, 106, 109, 116, 117]]
    assert conditions.null_tokens(1, (1, 2)).tolist() == [[105, 110, 110, 117, 117]]


@pytest.mark.parametrize("preset", ["tiny", "tiny-local", "tiny-snail"])
def test_conditions_of_the_priors_own_codes_are_embedded_by_levels(preset):
    """All others, label maps among them, by a row for each token."""
    own = [LowResolution(codebook_size=24), Inpaint(codebook_size=24)]
    conditions = Conditions([*own, Segmentation(codebook_size=24), ClassLabel(num_classes=2)], 24)
    assert conditions.image_code_tokens == (3, 28)
    sizes = condition_sizes(preset, conditions, 4, code_levels=(4, 3, 2))
    embedding = make_model(preset_config(preset, **sizes)).token_embedding
    others = 3 + 25 + 2 + (preset == "tiny-local")  # classes, label maps, null tokens, the border
    assert len(embedding.weight) == 3 * (4 + 3 + 2) + others


def test_missing_entries_become_null_tokens_where_that_is_asked_for():
    conditions = Conditions([EXAMPLES["depth"], EXAMPLES["class"]], 100)
    tokens = conditions.available_tokens({"label": [3]}, 1, (1, 2))
    assert tokens.tolist() == [[103, 110, 110]]
    with pytest.raises(ConfigError, match="shape"):
        conditions.null_tokens(1)


def generators(count, first=0):
    return [torch.Generator().manual_seed(first + number) for number in range(count)]


def test_training_drops_all_conditions_and_each_by_itself():
    conditions = Conditions([EXAMPLES["class"], EXAMPLES["keypoints"], EXAMPLES["sos"]], 10)
    batch = random_batch(count=1000)
    batch["label"] = torch.full((1000,), 2)
    batch["keypoints"] = torch.full((1000, 4, 2), 0.5)
    tokens = conditions.training_tokens(batch, generators(1000), 0.2)
    labels, points = tokens[:, 0] == 10 + 5, (tokens[:, 1:5] == 16 + 65).all(1)
    both = (labels & points).double().mean()
    assert 0.19 < both < 0.28  # 0.2 + 0.8 * 0.2**2 = 0.232
    for one in (labels & ~points, points & ~labels):
        assert 0.09 < one.double().mean() < 0.17  # 0.8 * 0.2 * 0.8 = 0.128
    assert ((tokens[:, 1:5] == 16 + 65).any(1) == points).all()
    assert (tokens[:, 5] == tokens[0, 5]).all()
    nothing = conditions.training_tokens(batch, generators(1000), 1.0)
    assert torch.equal(nothing, conditions.null_tokens(1000))
    everything = conditions.training_tokens(batch, generators(1000), 0.0)
    assert torch.equal(everything, conditions.tokens(batch, 1000))


def test_training_draws_do_not_depend_on_the_other_samples():
    conditions = Conditions([EXAMPLES["inpaint"], EXAMPLES["class"]], 9)
    batch = random_batch(count=8)
    together = conditions.training_tokens(batch, generators(8), 0.3)
    later = {name: value[5:] for name, value in batch.items()}
    assert torch.equal(conditions.training_tokens(later, generators(3, first=5), 0.3), together[5:])


def test_examples_are_the_entries_of_a_batch_in_turn():
    conditions = Conditions([EXAMPLES["inpaint"], EXAMPLES["boxes"]], 9)
    batch = {**random_batch(count=2), "true_edges": torch.ones(2, 3, dtype=torch.bool)}
    entries = conditions.examples(batch, generators(3))
    assert set(entries) == {"codes", "known", "boxes", "crop"}
    assert torch.equal(entries["boxes"], batch["boxes"][[0, 1, 0]])
    assert entries["known"].shape == (3, *SHAPE)


def test_only_conditions_that_can_be_left_out_can_guide():
    assert not Conditions([StartOfSequence()], 10).can_guide
    assert Conditions([ClassLabel(num_classes=2)], 10).can_guide
