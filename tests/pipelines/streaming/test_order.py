from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.config import ConfigError
from ops.permutation import KeyedPermutation
from pipelines.streaming.order import TURNS, KeyedOrder, SourceTurns
from tests.conftest import examples

SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=9)


def slow_epoch(sizes, seed, epoch, together):
    """One epoch of items by a slow reference: lists of shards, permuted and concatenated."""
    first = 0
    shards = []
    for size in sizes:
        shards.append(list(range(first, first + size)))
        first += size
    if together is None or together >= len(shards):
        items = list(chain(*shards))
        return [items[i] for i in KeyedPermutation(len(items), seed, epoch)(np.arange(len(items)))]
    visits = KeyedPermutation(len(shards), seed, epoch, 0)(np.arange(len(shards)))
    epoch_items = []
    for window, start in enumerate(range(0, len(shards), together)):
        items = list(chain(*(shards[visit] for visit in visits[start : start + together])))
        order = KeyedPermutation(len(items), seed, epoch, 2 + window)(np.arange(len(items)))
        epoch_items += [items[i] for i in order]
    return epoch_items


@given(sizes=SIZES, seed=st.integers(0, 2**63), together=st.none() | st.integers(1, 10))
def test_the_order_is_that_of_the_slow_reference(sizes, seed, together):
    order = KeyedOrder(np.array(sizes), seed, together)
    slow = list(chain(*(slow_epoch(sizes, seed, epoch, together) for epoch in range(3))))
    assert order(np.arange(3 * sum(sizes))).tolist() == slow


@given(sizes=SIZES, together=st.none() | st.integers(1, 10), data=st.data())
def test_the_item_at_a_position_does_not_depend_on_the_others_asked_for(sizes, together, data):
    order = KeyedOrder(np.array(sizes), 3, together)
    positions = data.draw(st.lists(st.integers(0, 4 * sum(sizes)), min_size=1, max_size=20))
    alone = [int(order(np.array([position]))[0]) for position in positions]
    assert order(np.array(positions)).tolist() == alone


def test_no_more_shards_are_in_use_than_shards_together():
    order = KeyedOrder(np.full(12, 5), 0, shards_together=3)
    shards = order(np.arange(60)) // 5
    assert [len(set(window)) for window in shards.reshape(4, 15)] == [3] * 4
    assert len(set(shards[:5])) > 1  # their items are mixed


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {
        tuple(KeyedOrder(np.full(8, 4), seed, 2)(np.arange(32) + 32 * epoch))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


@settings(max_examples=examples(20))
@given(weights=st.lists(st.floats(0.01, 10), min_size=1, max_size=4), seed=st.integers(0, 2**63))
def test_the_nth_turn_of_a_source_takes_its_nth_item(weights, seed):
    sources, earlier = SourceTurns(weights, seed)(np.arange(2 * TURNS))
    seen = Counter()
    for source, number in zip(sources.tolist(), earlier.tolist(), strict=True):
        assert number == seen[source]
        seen[source] += 1


@given(weights=st.lists(st.floats(0.01, 10), min_size=1, max_size=5))
def test_turns_follow_the_weights_in_every_period(weights):
    turns = SourceTurns(weights, 0)
    for period in (0, 7):
        sources, _ = turns(np.arange(TURNS) + period * TURNS)
        counts = np.bincount(sources, minlength=len(weights))
        assert np.abs(counts - TURNS * np.array(weights) / sum(weights)).max() < 1


def test_turns_of_sources_are_random():
    sources, _ = SourceTurns([1, 1], 0)(np.arange(TURNS))
    changes = np.count_nonzero(np.diff(sources))
    assert 4700 < changes < 5300  # half of all are expected to change


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), 1e-9])
def test_an_invalid_weight_is_refused(weight):
    with pytest.raises(ConfigError, match=r"[Ww]eight"):
        SourceTurns([1.0, weight], 0)
