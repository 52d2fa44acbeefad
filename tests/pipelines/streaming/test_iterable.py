"""One stream of samples on any number of ranks and loader workers, stopped and gone on with."""

import itertools
import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from pipelines.store import CodeStore
from pipelines.store.zarr_metadata import read_attributes
from pipelines.streaming.dataset import CodeDataset
from pipelines.streaming.iterable import CodeStream
from pipelines.streaming.sources import DatasetError
from tests.conftest import make_store

ROWS = 23


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    codes = np.broadcast_to(np.arange(ROWS)[:, None, None], (ROWS, 4, 4)).copy()
    path = tmp_path_factory.mktemp("stream") / "codes.zarr"
    return CodeStore.open(make_store(path, codes, codebook_size=99, rows_per_task=4))


def rows_of(batch):
    return batch["codes"][:, 0, 0].tolist()


def ranks(store, world, global_batch, **choices):
    size = global_batch // world
    return [
        CodeStream(CodeDataset(store, window=4, batch_size=size, rank=rank, world=world, **choices))
        for rank in range(world)
    ]


def step_of_all(iterators):
    """A global batch put together from its ranks': rank r has the positions r mod world."""
    parts = [rows_of(next(iterator)) for iterator in iterators]
    return [row for turn in zip(*parts, strict=True) for row in turn]


@settings(max_examples=40)
@given(
    worlds=st.lists(st.sampled_from([1, 2, 3, 6]), min_size=1, max_size=5),
    stops=st.data(),
    seed=st.integers(0, 2**32),
    cache=st.none() | st.integers(1, 500),
)
def test_stopping_anywhere_and_going_on_with_other_ranks_loses_and_repeats_nothing(
    store, worlds, stops, seed, cache
):
    choices = {"seed": seed, "cache_memory": cache}
    stream, state = [], None
    for world in worlds:
        streams = ranks(store, world, 6, **choices)
        for one in streams if state else []:
            one.load_state_dict(state)
        iterators = [iter(one) for one in streams]
        for _ in range(stops.draw(st.integers(1, 9))):
            stream += step_of_all(iterators)
        states = [one.state_dict() for one in streams]
        assert all(one == states[0] for one in states)
        state = json.loads(json.dumps(states[0]))
    for start in range(0, len(stream) - ROWS + 1, ROWS):  # 23 rows in batches of 6
        assert sorted(stream[start : start + ROWS]) == list(range(ROWS))
    whole = iter(ranks(store, 1, 6, **choices)[0])
    assert stream == list(itertools.chain(*(rows_of(next(whole)) for _ in range(len(stream) // 6))))


def test_the_stream_is_that_of_the_training_steps(store):
    dataset = CodeDataset(store, window=4, batch_size=5)
    for step, batch in enumerate(itertools.islice(CodeStream(dataset), 12)):
        assert torch.equal(batch["codes"], dataset.train_batch(step)["codes"])
    for step in (11, 0, 5):  # in any order
        assert rows_of(dataset.train_batch(step)) == rows_of(next(iter(CodeStream(dataset, step))))


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_workers_share_the_steps_in_order(store, workers):
    dataset = CodeDataset(store, window=4, batch_size=5)
    loader = DataLoader(CodeStream(dataset, step=2), batch_size=None, num_workers=workers)
    got = [rows_of(batch) for batch in itertools.islice(loader, 10)]
    assert got == [rows_of(dataset.train_batch(step)) for step in range(2, 12)]


def test_a_loader_workers_state_goes_on_in_that_worker(store, monkeypatch):
    info = type("Info", (), {"id": 1, "num_workers": 3})
    monkeypatch.setattr("pipelines.streaming.iterable.get_worker_info", lambda: info)
    dataset = CodeDataset(store, window=4, batch_size=5)
    stream = CodeStream(dataset)
    list(itertools.islice(stream, 2))  # steps 1 and 4
    again = CodeStream(dataset)
    again.load_state_dict(stream.state_dict())
    assert rows_of(next(iter(again))) == rows_of(dataset.train_batch(7))


def test_a_state_of_another_order_is_refused_naming_what_differs(store):
    state = CodeStream(CodeDataset(store, window=4, batch_size=6)).state_dict()
    other = CodeStream(CodeDataset(store, window=4, batch_size=4, seed=1))
    with pytest.raises(DatasetError, match="seed was 0, is 1; global_batch_size was 6, is 4"):
        other.load_state_dict(state)


def test_cache_memory_bounds_the_shards_in_use(store):
    shard_bytes = 4 * 4 * 4 * 2
    dataset = CodeDataset(store, window=4, batch_size=1, cache_memory=2 * shard_bytes)
    shards = [rows_of(dataset.train_batch(step))[0] // 4 for step in range(ROWS)]
    changes = [len(set(shards[start : start + 7])) for start in range(0, 21, 7)]
    assert max(changes) <= 4  # two windows of two shards at most; 6 shards in all
    assert sorted(set(shards[:7])) != sorted(set(shards[-7:]))


def test_of_a_compressed_store_no_more_shards_are_in_use_than_stay_decoded(tmp_path):
    codes = np.broadcast_to(np.arange(ROWS)[:, None, None], (ROWS, 4, 4))
    path = make_store(tmp_path / "a", codes, codebook_size=99, rows_per_task=4, compress=True)
    store = CodeStore(path, read_attributes(path), decoded_bytes=3 * 4 * 32)
    for cache_memory, together in ((None, 3), (10**9, 3), (2 * 4 * 32, 2)):
        dataset = CodeDataset(store, window=4, batch_size=ROWS, cache_memory=cache_memory)
        assert dataset.order["shards_together"] == [together]
        assert sorted(rows_of(dataset.train_batch(0))) == list(range(ROWS))


def test_a_dataset_travels_to_another_process(store):
    dataset = CodeDataset(store, window=4, batch_size=5)
    batch = dataset.train_batch(3)
    assert rows_of(pickle.loads(pickle.dumps(dataset)).train_batch(3)) == rows_of(batch)


def test_changing_a_batch_changes_no_other(store):
    dataset = CodeDataset(store, window=4, batch_size=5)
    before = dataset.train_batch(3)
    changed = dataset.train_batch(3)
    changed["codes"].zero_()
    changed["label"].zero_()
    after = dataset.train_batch(3)
    assert all(torch.equal(before[name], after[name]) for name in before)
