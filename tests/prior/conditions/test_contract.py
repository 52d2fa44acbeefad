"""The contract of every registered condition."""

import json

import pytest
import torch

from ops.config import ConfigError
from prior import (
    CONDITIONS,
    Boxes,
    ClassLabel,
    Conditions,
    Coordinates,
    Depth,
    Inpaint,
    Keypoints,
    LowResolution,
    Segmentation,
    StartOfSequence,
)

EXAMPLES = {
    "sos": StartOfSequence(),
    "class": ClassLabel(num_classes=5),
    "segmentation": Segmentation(codebook_size=6, fingerprint="ab" * 8),
    "depth": Depth(codebook_size=4),
    "low_res": LowResolution(codebook_size=7, ratio=4),
    "inpaint": Inpaint(codebook_size=9),
    "boxes": Boxes(num_categories=3, category_names=("cat", "dog", "cup")),
    "keypoints": Keypoints(num_points=4, places=8),
    "coordinates": Coordinates(codebook_size=50, downsample_factor=4),
}
SHAPE = (4, 5)


def random_batch(seed=0, count=3):
    """A batch with every entry there is, about windows of SHAPE; boxes reach out and are absent."""
    random = torch.Generator().manual_seed(seed)

    def grid(below):
        return torch.randint(-1, below, (count, *SHAPE), generator=random)

    boxes = torch.rand(count, 6, 5, generator=random) * 3 - 1
    boxes[..., 0] = torch.randint(-1, 3, (count, 6), generator=random)
    points = torch.rand(count, 4, 2, generator=random) * 2 - 0.5
    points[0, 1] = torch.nan
    return {
        "codes": grid(9).clamp(min=0),
        "known": grid(1) == 0,
        "label": torch.randint(-1, 5, (count,), generator=random),
        "segmentation": grid(6),
        "depth": grid(4),
        "low_res": grid(7),
        "boxes": boxes,
        "crop": torch.tensor([[0.1, 0.0, 0.7, 1.0]]).repeat(count, 1),
        "keypoints": points,
        "place": torch.tensor([[2, 1, 20, 30]]).repeat(count, 1),
    }


@pytest.mark.parametrize("name", CONDITIONS)
def test_every_condition_has_tokens_of_the_promised_form(name):
    condition = EXAMPLES[name]
    assert isinstance(condition, CONDITIONS[name])
    assert condition.name == name
    for seed in range(5):
        tokens = condition.tokens(random_batch(seed), 3, SHAPE)
        assert tokens.dtype == torch.int64
        assert tokens.shape == ((3, *SHAPE) if condition.is_grid else (3, condition.length))
        assert 0 <= tokens.min() <= tokens.max() < condition.vocab_size
    assert 0 <= condition.null_token < condition.vocab_size


@pytest.mark.parametrize("name", CONDITIONS)
def test_every_condition_survives_json(name):
    conditions = Conditions([EXAMPLES[name]], 7)
    read = Conditions.from_json(json.loads(json.dumps(conditions.to_json())), 7)
    assert read.parts == conditions.parts
    assert read.codebook_size == 7


@pytest.mark.parametrize("name", [name for name in CONDITIONS if EXAMPLES[name].entries])
def test_every_condition_names_the_entry_that_is_missing(name):
    for missing in EXAMPLES[name].entries:
        batch = random_batch()
        del batch[missing]
        with pytest.raises(ConfigError, match=f"condition '{name}' needs"):
            EXAMPLES[name].tokens(batch, 3, SHAPE)


@pytest.mark.parametrize("name", [name for name in CONDITIONS if EXAMPLES[name].entries])
def test_every_condition_refuses_entries_of_another_shape(name):
    entries = [entry for entry in EXAMPLES[name].entries if entry != "label"]
    for wrong in entries:
        batch = random_batch()
        batch[wrong] = batch[wrong][1:]
        with pytest.raises(ConfigError, match=f"'{wrong}' must be"):
            EXAMPLES[name].tokens(batch, 3, SHAPE)


@pytest.mark.parametrize(
    ("name", "entry", "value", "message"),
    [
        ("segmentation", "segmentation", 6, "'segmentation' must be from -1 to 5"),
        ("low_res", "low_res", -2, "'low_res' must be from -1 to 6"),
        ("inpaint", "codes", 9, "Known codes must be from 0 to 8"),
        ("boxes", "boxes", 3, "Categories must be from -1 to 2"),
        ("boxes", "boxes", torch.nan, "Categories must be"),
        ("coordinates", "place", 28, "a grid that holds it"),
    ],
)
def test_values_out_of_range_are_refused(name, entry, value, message):
    batch = {**random_batch(), "known": torch.ones(3, *SHAPE, dtype=torch.bool)}
    batch[entry].view(-1)[0] = value
    with pytest.raises(ConfigError, match=message):
        EXAMPLES[name].tokens(batch, 3, SHAPE)


def test_missing_track_is_named_with_its_remedy():
    with pytest.raises(ConfigError, match="encode with --track segmentation="):
        EXAMPLES["segmentation"].tokens({}, 3, SHAPE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Conditions([], 10), "at least one condition"),
        (lambda: ClassLabel(num_classes=0), "at least 1"),
        (lambda: ClassLabel(num_classes=2, label_names=("a",)), "1 names"),
        (lambda: Conditions.from_json([{"name": "smell"}], 10), "smell"),
        (lambda: Segmentation(codebook_size=0), "at least 1"),
        (lambda: Boxes(num_categories=0), "at least 1"),
        (lambda: Boxes(num_categories=2, places=1), "at least 2"),
        (lambda: Boxes(num_categories=2, category_names=("a",)), "1 names"),
        (lambda: Keypoints(num_points=0), "at least 1"),
        (lambda: Keypoints(num_points=3, point_names=("nose",)), "1 names"),
        (lambda: Coordinates(codebook_size=9, downsample_factor=0), "at least 1"),
    ],
)
def test_conditions_that_cannot_be_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
