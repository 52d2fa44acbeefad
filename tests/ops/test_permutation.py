import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.config import ConfigError
from ops.permutation import KeyedPermutation


@given(length=st.integers(1, 3000), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 1000))
def test_every_item_stands_at_exactly_one_position(length, seed, epoch):
    items = KeyedPermutation(length, seed, epoch)(np.arange(length))
    assert np.array_equal(np.sort(items), np.arange(length))


def test_a_position_means_the_same_item_alone_and_in_a_batch():
    shuffle = KeyedPermutation(1000, seed=3, epoch=1)
    together = shuffle(np.arange(1000))
    assert [int(shuffle(np.array([p]))[0]) for p in range(0, 1000, 97)] == list(together[::97])


def test_seeds_and_epochs_give_other_orders():
    orders = {
        tuple(KeyedPermutation(50, seed, epoch)(np.arange(50)))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16


def test_neighbours_are_spread_over_the_range():
    items = KeyedPermutation(100_000, seed=0, epoch=0)(np.arange(100_000))
    correlation = np.corrcoef(np.arange(100_000), items)[0, 1]
    assert abs(correlation) < 0.02
    steps = np.abs(np.diff(items)).mean()  # a third of the range, were the order random
    assert 32_000 < steps < 34_500


def test_the_order_is_pinned_for_resuming_old_runs():
    order = KeyedPermutation(10, seed=0, epoch=0)(np.arange(10))
    assert list(order) == [2, 0, 3, 7, 9, 6, 4, 1, 5, 8]


def test_no_items_is_an_error():
    with pytest.raises(ConfigError, match="at least one item"):
        KeyedPermutation(0, seed=0, epoch=0)
