import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prior import LocalConfig, LocalGPT
from prior.models.rotary import grid_coordinates, rotate, rotation_at

POSITIONS = st.tuples(st.integers(-20, 40), st.integers(0, 40))


def rotated(vector, row, column):
    rotation = rotation_at(torch.tensor([row]), torch.tensor([column]), len(vector), vector.dtype)
    return rotate(vector[None], rotation)[0]


@given(POSITIONS, POSITIONS, POSITIONS)
def test_a_dot_product_depends_on_the_offset_of_two_positions_only(first, second, moved):
    random = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 16, generator=random, dtype=torch.float64)
    product = rotated(query, *first) @ rotated(key, *second)
    shifted = [
        [a + b for a, b in zip(position, moved, strict=True)] for position in (first, second)
    ]
    again = rotated(query, *shifted[0]) @ rotated(key, *shifted[1])
    torch.testing.assert_close(product, again)


def test_rows_rotate_one_half_of_the_pairs_and_columns_the_other():
    vector = torch.ones(16, dtype=torch.float64)
    by_row, by_column = rotated(vector, 3, 0) != vector, rotated(vector, 0, 3) != vector
    assert by_row.tolist() == [True] * 4 + [False] * 4 + [True] * 4 + [False] * 4
    assert torch.equal(by_row, ~by_column)


def test_condition_tokens_are_placed_in_the_rows_above_the_codes():
    # Nine condition tokens before a window of 4x4: the last one is at the end of row -1.
    rows, columns = grid_coordinates(torch.arange(9 + 16), 9, 4)
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
def test_angles_are_computed_at_least_in_float32(dtype, expected):
    rotation = rotation_at(torch.arange(3), torch.arange(3), 8, dtype)
    assert rotation.cosines.dtype == rotation.sines.dtype == expected
    assert rotation.cosines.shape == rotation.sines.shape == (3, 1, 2, 4)


def test_rotation_is_the_published_formula():
    """RoFormer, equation 34, for each pair of channels."""
    vectors = torch.randn(2, 5, 16, dtype=torch.float64)
    rows, columns = torch.arange(5), torch.tensor([3, 0, 7, 7, 1])
    rotation = rotation_at(rows, columns, 16, torch.float64)
    frequencies = 10_000.0 ** -(torch.arange(4, dtype=torch.float64) / 4)
    angles = torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], 1)
    first, second = vectors.chunk(2, dim=-1)
    expected = [
        first * angles.cos() - second * angles.sin(),
        first * angles.sin() + second * angles.cos(),
    ]
    torch.testing.assert_close(
        rotate(vectors, rotation), torch.cat(expected, -1), rtol=0, atol=2e-15
    )


def test_half_of_a_local_head_and_condition_tokens_are_not_rotated():
    config = LocalConfig(
        codebook_size=3, condition_vocab_size=1, condition_length=1, width=32, num_heads=2
    )
    model, vectors = LocalGPT(config).double(), torch.randn(3, 1, 16, dtype=torch.float64)
    rows, columns = torch.tensor([4, 6]), torch.tensor([2, 1])
    rotated = rotate(vectors, model.rotation(rows, columns, condition_length=1))
    assert torch.equal(rotated[..., 8:], vectors[..., 8:])
    assert not rotated[0, :, :8].any()
    expected = rotate(vectors[1:, 0, :8], rotation_at(rows, columns, 8, torch.float64))
    torch.testing.assert_close(rotated[1:, 0, :8], expected, rtol=0, atol=2e-15)
