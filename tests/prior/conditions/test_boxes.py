import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from tests.prior.conditions.test_contract import EXAMPLES, SHAPE, random_batch


@given(seed=st.integers(0, 999))
@settings(max_examples=examples(30), deadline=None)
def test_boxes_are_the_slow_rule(seed):
    """Object by object, as the published scheme reads."""
    batch, side, none = random_batch(seed), 32, 3 + 32**2
    tokens = EXAMPLES["boxes"].tokens(batch, 3, SHAPE)
    assert tokens.shape == (3, 92)
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
        assert tokens[sample].tolist() == expected


def test_only_the_largest_objects_are_kept_where_there_are_too_many():
    sizes = torch.rand(1, 40, generator=torch.Generator().manual_seed(0))
    boxes = torch.stack([torch.arange(40)[None] % 3, 0 * sizes, 0 * sizes, sizes, sizes], -1)
    batch = {"boxes": boxes, "crop": torch.tensor([[0.0, 0, 1, 1]])}
    tokens = EXAMPLES["boxes"].tokens(batch, 1, SHAPE)[0, :90:3]
    assert tokens.tolist() == (sizes[0].argsort(descending=True)[:30] % 3).tolist()
