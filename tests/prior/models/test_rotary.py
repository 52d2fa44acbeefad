import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prior.models.rotary import places, rotate, rotation_at

PLACES = st.tuples(st.integers(-20, 40), st.integers(0, 40))


def turned(vector, row, column):
    rotation = rotation_at(torch.tensor([row]), torch.tensor([column]), len(vector), vector.dtype)
    return rotate(vector[None], rotation)[0]


@given(PLACES, PLACES, PLACES)
def test_a_product_tells_the_offset_of_two_places_alone(first, second, moved):
    random = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 16, generator=random, dtype=torch.float64)
    product = turned(query, *first) @ turned(key, *second)
    shifted = [[a + b for a, b in zip(place, moved, strict=True)] for place in (first, second)]
    again = turned(query, *shifted[0]) @ turned(key, *shifted[1])
    torch.testing.assert_close(product, again)


def test_rows_turn_one_half_of_the_pairs_and_columns_the_other():
    vector = torch.ones(16, dtype=torch.float64)
    by_row, by_column = turned(vector, 3, 0) != vector, turned(vector, 0, 3) != vector
    assert by_row.tolist() == [True] * 4 + [False] * 4 + [True] * 4 + [False] * 4
    assert torch.equal(by_row, ~by_column)


def test_a_condition_lies_in_the_rows_above_the_picture():
    # Nine condition tokens before a window of 4x4: the last of them ends the row above row 0.
    rows, columns = places(torch.arange(9 + 16), 9, 4)
    assert rows.tolist() == [-3] + [-2] * 4 + [-1] * 4 + [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert columns.tolist() == [3] + 6 * [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_angles_are_never_coarser_than_float32(dtype, expected):
    rotation = rotation_at(torch.arange(3), torch.arange(3), 8, dtype)
    assert rotation.cosines.dtype == rotation.sines.dtype == expected
    assert rotation.cosines.shape == rotation.sines.shape == (3, 4)
