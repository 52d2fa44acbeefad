"""Both implementations of neighbourhood attention against a dense mask, pair by pair."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prior.models.neighbourhood import (
    Layout,
    attend_in_bands,
    attend_in_blocks,
    band_mask,
    neighbour_offsets,
)

LAYOUTS = st.builds(Layout, st.integers(1, 3), st.integers(1, 5), st.integers(2, 6))


def visible_pairs(layout, radius):
    """Reference mask (T, T)."""
    first, rows, columns = layout
    places = [None] * first + [(i, j) for i in range(rows) for j in range(columns)]

    def one(query, key):
        if key is None:
            return True
        if query is None:
            return False
        (i, j), (k, m) = query, key
        if k == i:
            return j - radius <= m <= j
        return i - radius <= k < i and abs(m - j) <= radius

    return torch.tensor([[one(query, key) for key in places] for query in places])


def tokens_for(layout, seed=0):
    """Queries, keys and values, (2, T, 3, 4) in float64."""
    length = layout.condition_length + layout.rows * layout.columns
    random = torch.Generator().manual_seed(seed)
    return torch.randn(3, 2, length, 3, 4, generator=random, dtype=torch.float64).unbind()


def attend_slowly(queries, keys, values, layout, radius):
    scores = torch.einsum("bqhd,bkhd->bhqk", queries, keys) / queries.shape[-1] ** 0.5
    weights = scores.masked_fill(~visible_pairs(layout, radius), -torch.inf).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, values)


@given(layout=LAYOUTS, radius=st.integers(1, 4), seed=st.integers(0, 9))
def test_band_attention_equals_dense_attention_with_the_mask(layout, radius, seed):
    tokens = tokens_for(layout, seed)
    mask = band_mask(layout, radius, torch.device("cpu"))
    attended = attend_in_bands(*tokens, layout=layout, radius=radius, mask=mask)
    torch.testing.assert_close(attended, attend_slowly(*tokens, layout, radius))


@pytest.mark.parametrize("layout", [Layout(1, 4, 5), Layout(3, 12, 13)])
def test_flex_attention_equals_band_attention(layout):
    tokens = tokens_for(layout)
    mask = band_mask(layout, 2, torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        attended = attend_in_blocks(*tokens, layout=layout, radius=2)
    torch.testing.assert_close(
        attended, attend_in_bands(*tokens, layout=layout, radius=2, mask=mask)
    )


@pytest.mark.parametrize("radius", [1, 3])
def test_offsets_are_those_of_a_position_far_from_the_edges(radius):
    side = 2 * radius + 1
    visible = visible_pairs(Layout(0, side, side), radius)[radius * side + radius].view(side, side)
    assert {(int(i) - radius, int(j) - radius) for i, j in visible.nonzero()} == {
        (int(i), int(j)) for i, j in neighbour_offsets(radius)
    }
    assert len(neighbour_offsets(radius)) == visible.sum()


def test_gradients_reach_exactly_the_visible_positions():
    layout, radius = Layout(1, 4, 5), 1
    queries, keys, values = (t.requires_grad_() for t in tokens_for(layout))
    mask = band_mask(layout, radius, torch.device("cpu"))
    attended = attend_in_bands(queries, keys, values, layout=layout, radius=radius, mask=mask)
    place = 1 + 2 * 5 + 3
    attended[0, place].sum().backward()
    reached = values.grad[0].abs().sum((-1, -2)) > 0
    assert torch.equal(reached, visible_pairs(layout, radius)[place])
    assert not values.grad[1].any()
