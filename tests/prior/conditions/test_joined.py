import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

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
def test_every_condition_keeps_the_contract(name):
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
def test_every_condition_asks_for_what_it_needs(name):
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
def test_what_cannot_be_told_is_refused(name, entry, value, message):
    batch = {**random_batch(), "known": torch.ones(3, *SHAPE, dtype=torch.bool)}
    batch[entry].view(-1)[0] = value
    with pytest.raises(ConfigError, match=message):
        EXAMPLES[name].tokens(batch, 3, SHAPE)


def test_a_track_that_is_missing_is_named_with_its_remedy():
    with pytest.raises(ConfigError, match="encode with --track segmentation="):
        EXAMPLES["segmentation"].tokens({}, 3, SHAPE)


def test_a_label_is_its_number_and_none_is_the_null_token():
    batch = {"label": torch.tensor([0, 4, -1])}
    assert ClassLabel(num_classes=5).tokens(batch, 3, SHAPE).tolist() == [[0], [4], [5]]


@pytest.mark.parametrize("labels", [[5, 0, 0], [-2, 0, 0]])
def test_labels_out_of_range_are_refused(labels):
    with pytest.raises(ConfigError, match="from 0 to 4"):
        ClassLabel(num_classes=5).tokens({"label": torch.tensor(labels)}, 3, SHAPE)


def test_what_is_not_known_is_masked():
    codes, known = torch.tensor([[[1, 2]]]), torch.tensor([[[True, False]]])
    condition_inputs = Inpaint(codebook_size=9).tokens({"codes": codes, "known": known}, 1, (1, 2))
    assert condition_inputs.tolist() == [[[1, 9]]]


@given(seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_boxes_are_the_slow_rule(seed):
    """Object by object, as the published scheme reads."""
    batch, side, none = random_batch(seed), 32, 3 + 32**2
    condition_inputs = EXAMPLES["boxes"].tokens(batch, 3, SHAPE)
    assert condition_inputs.shape == (3, 92)
    for sample, boxes in enumerate(batch["boxes"]):
        objects = []
        for category, *corners in boxes.tolist():
            x0, y0, x1, y1 = (min(1.0, max(0.0, number)) for number in corners)
            if category >= 0 and x1 > x0 and y1 > y0:
                objects.append((-(x1 - x0) * (y1 - y0), category, x0, y0, x1, y1))
        expected = []
        for _, category, *corners in sorted(objects, key=lambda it: it[0]):
            columns = [round(number * (side - 1)) for number in corners]
            places = [3 + y * side + x for x, y in (columns[:2], columns[2:])]
            expected += [int(category), *places]
        expected += [none] * (90 - len(expected))
        expected += [3 + round(0.1 * 31), 3 + 31 * side + round(0.7 * 31)]
        assert condition_inputs[sample].tolist() == expected


def test_only_the_largest_objects_are_told_where_there_are_too_many():
    sizes = torch.rand(1, 40, generator=torch.Generator().manual_seed(0))
    boxes = torch.stack([torch.arange(40)[None] % 3, 0 * sizes, 0 * sizes, sizes, sizes], -1)
    batch = {"boxes": boxes, "crop": torch.tensor([[0.0, 0, 1, 1]])}
    condition_inputs = EXAMPLES["boxes"].tokens(batch, 1, SHAPE)[0, :90:3]
    assert condition_inputs.tolist() == (sizes[0].argsort(descending=True)[:30] % 3).tolist()


def test_a_point_is_its_place_and_outside_it_is_none():
    points = torch.tensor([[[0.0, 0.0], [1.0, 0.5], [torch.nan, 0.5], [1.1, 0.5]]])
    condition_inputs = EXAMPLES["keypoints"].tokens({"keypoints": points}, 1, SHAPE)
    assert condition_inputs.tolist() == [
        [0, 4 * 8 + 7, 64, 64]
    ]  # 0.5 * 7 = 3.5 goes to the even one
    assert EXAMPLES["keypoints"].null_token == 65


@given(
    top=st.integers(0, 5),
    left=st.integers(0, 5),
    more=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    f=st.sampled_from([1, 2, 4, 8, 16]),
)
@settings(max_examples=30, deadline=None)
def test_coordinates_are_the_published_map_of_pixels(top, left, more, f):
    """The map made and pooled pixel by pixel, in float64."""
    rows, columns = top + SHAPE[0] + more[0], left + SHAPE[1] + more[1]
    pixels = torch.arange(rows * f * columns * f, dtype=torch.float64) / (rows * columns * f * f)
    pooled = F.avg_pool2d(pixels.view(1, 1, rows * f, columns * f), f)[0, 0]
    expected = (50 * pooled[top : top + SHAPE[0], left : left + SHAPE[1]]).round().clamp(max=49)
    place = torch.tensor([[top, left, rows, columns]])
    condition_inputs = Coordinates(codebook_size=50, downsample_factor=f).tokens(
        {"place": place}, 1, SHAPE
    )
    assert (
        condition_inputs[0] - expected
    ).abs().max() <= 1  # sums that end in a half may round either way
    assert (condition_inputs[0] == expected).double().mean() > 0.9


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


def test_what_is_missing_tells_nothing_where_that_is_asked_for():
    conditions = Conditions([EXAMPLES["depth"], EXAMPLES["class"]], 100)
    condition_inputs = conditions.tokens_of_what_is_there({"label": [3]}, 1, (1, 2))
    assert condition_inputs.tolist() == [[103, 110, 110]]
    with pytest.raises(ConfigError, match="shape"):
        conditions.null_tokens(1)


def generators(count, first=0):
    return [torch.Generator().manual_seed(first + number) for number in range(count)]


def test_training_drops_everything_and_each_by_itself():
    conditions = Conditions([EXAMPLES["class"], EXAMPLES["keypoints"], EXAMPLES["sos"]], 10)
    batch = random_batch(count=1000)
    batch["label"] = torch.full((1000,), 2)
    batch["keypoints"] = torch.full((1000, 4, 2), 0.5)
    condition_inputs = conditions.training_tokens(batch, generators(1000), 0.2)
    labels, points = condition_inputs[:, 0] == 10 + 5, (condition_inputs[:, 1:5] == 16 + 65).all(1)
    both = (labels & points).double().mean()
    assert 0.19 < both < 0.28  # 0.2 + 0.8 * 0.2**2 = 0.232
    for one in (labels & ~points, points & ~labels):
        assert 0.09 < one.double().mean() < 0.17  # 0.8 * 0.2 * 0.8 = 0.128
    assert ((condition_inputs[:, 1:5] == 16 + 65).any(1) == points).all()
    assert (condition_inputs[:, 5] == condition_inputs[0, 5]).all()
    nothing = conditions.training_tokens(batch, generators(1000), 1.0)
    assert torch.equal(nothing, conditions.null_tokens(1000))
    everything = conditions.training_tokens(batch, generators(1000), 0.0)
    assert torch.equal(everything, conditions.tokens(batch, 1000))


def test_what_training_draws_for_a_sample_does_not_hang_on_its_neighbours():
    conditions = Conditions([EXAMPLES["inpaint"], EXAMPLES["class"]], 9)
    batch = random_batch(count=8)
    together = conditions.training_tokens(batch, generators(8), 0.3)
    later = {name: value[5:] for name, value in batch.items()}
    assert torch.equal(conditions.training_tokens(later, generators(3, first=5), 0.3), together[5:])


def test_masks_of_training_are_of_every_kind_and_never_whole():
    conditions = Conditions([EXAMPLES["inpaint"]], 9)
    codes = torch.zeros(400, 12, 16, dtype=torch.int64)
    condition_inputs = conditions.training_tokens({"codes": codes}, generators(400), 0.0)
    known = (condition_inputs == 9).view(400, 12, 16)
    shares = known.double().mean((1, 2))
    assert (shares < 1).all()
    assert 60 < (shares == 0).sum() < 140  # everything is unknown in a quarter
    halves = {tuple(mask.flatten().tolist()) for mask in known[shares == 0.5]}
    assert len(halves) >= 4
    assert ((shares > 0) & (shares != 0.5)).sum() > 100


def test_examples_are_what_a_batch_is_told_in_turn():
    conditions = Conditions([EXAMPLES["inpaint"], EXAMPLES["boxes"]], 9)
    batch = {**random_batch(count=2), "true_edges": torch.ones(2, 3, dtype=torch.bool)}
    condition_inputs = conditions.examples(batch, generators(3))
    assert set(condition_inputs) == {"codes", "known", "boxes", "crop"}
    assert torch.equal(condition_inputs["boxes"], batch["boxes"][[0, 1, 0]])
    assert condition_inputs["known"].shape == (3, *SHAPE)


def test_only_what_can_be_told_can_guide():
    assert not Conditions([StartOfSequence()], 10).can_guide
    assert Conditions([ClassLabel(num_classes=2)], 10).can_guide


def test_labels_are_found_by_name_and_by_number():
    conditions = Conditions([ClassLabel(num_classes=2, label_names=("cat", "dog"))], 10)
    assert [conditions.label_number(label) for label in ("dog", "0")] == [1, 0]
    for wrong in ("2", "-1", "fox"):
        with pytest.raises(ConfigError, match="0 to 1 or a name"):
            conditions.label_number(wrong)
    with pytest.raises(ConfigError, match="without classes"):
        Conditions([StartOfSequence()], 10).label_number("0")


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
