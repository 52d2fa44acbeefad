"""One stream of samples on any number of ranks and loader workers, stopped and resumed."""

import inspect
import itertools
import json
import pickle
import textwrap

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from pipelines.store import CodeStore
from pipelines.streaming.dataset import CodeDataset
from pipelines.streaming.iterable import CodeStream
from pipelines.streaming.sources import DatasetError
from tests.conftest import examples, make_store

ROWS = 23


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    codes = np.broadcast_to(np.arange(ROWS)[:, None, None], (ROWS, 4, 4)).copy()
    path = tmp_path_factory.mktemp("stream") / "codes.zarr"
    return make_store(path, codes, codebook_size=99, rows_per_task=4)


@pytest.fixture(scope="module")
def store(path):
    return CodeStore.open(path)


def rows_of(batch):
    return batch["codes"][:, 0, 0].tolist()


def take(stream, count, workers=0):
    """The rows of the next `count` batches, through a DataLoader."""
    loader = DataLoader(stream, batch_size=None, num_workers=workers)
    return [rows_of(batch) for batch in itertools.islice(loader, count)]


def streams_of_ranks(store, world_size, global_batch, **choices):
    size = global_batch // world_size
    return [
        CodeStream(store, batch_size=size, rank=rank, world_size=world_size, **choices)
        for rank in range(world_size)
    ]


def interleaved(parts):
    """The rows of a global batch from its ranks': rank r has the positions r mod world_size."""
    return [row for turn in zip(*parts, strict=True) for row in turn]


@settings(max_examples=examples(40))
@given(
    world_sizes=st.lists(st.sampled_from([1, 2, 3, 6]), min_size=1, max_size=5),
    stops=st.data(),
    seed=st.integers(0, 2**32),
    cache=st.none() | st.integers(1, 500),
)
def test_resuming_anywhere_on_other_ranks_loses_and_repeats_nothing(
    store, world_sizes, stops, seed, cache
):
    choices = {"seed": seed, "cache_memory": cache}
    order, state = [], None
    for world_size in world_sizes:
        streams = streams_of_ranks(store, world_size, 6, **choices)
        for stream in streams if state else []:
            stream.load_state_dict(state)
        iterators = [iter(stream) for stream in streams]
        for _ in range(stops.draw(st.integers(1, 9))):
            order += interleaved([rows_of(next(iterator)) for iterator in iterators])
        states = [stream.state_dict() for stream in streams]
        assert all(one == states[0] for one in states)
        state = json.loads(json.dumps(states[0]))
    for start in range(0, len(order) - ROWS + 1, ROWS):  # 23 rows in batches of 6
        assert sorted(order[start : start + ROWS]) == list(range(ROWS))
    whole = iter(streams_of_ranks(store, 1, 6, **choices)[0])
    assert order == list(itertools.chain(*(rows_of(next(whole)) for _ in range(len(order) // 6))))


def test_the_stream_has_the_batches_of_the_training_steps(store):
    dataset = CodeDataset(store, window=4, batch_size=5)
    for step, batch in enumerate(itertools.islice(CodeStream(store, batch_size=5), 12)):
        assert torch.equal(batch["codes"], dataset.train_batch(step)["codes"])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_epoch_is_the_same_for_any_number_of_workers(path, workers):
    stream = CodeStream(path, batch_size=1)
    assert stream.steps_per_epoch == ROWS
    epoch = list(itertools.chain(*take(stream, ROWS, workers)))
    assert sorted(epoch) == list(range(ROWS))
    assert epoch == [rows_of(stream.dataset.train_batch(step))[0] for step in range(ROWS)]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_resuming_after_the_batches_that_were_taken_continues_the_order(store, workers):
    whole = take(CodeStream(store, batch_size=5), 12)
    stream = CodeStream(store, batch_size=5)
    first = take(stream, 5, workers)
    state = json.loads(json.dumps(stream.state_dict(batches=5)))  # workers have read further
    resumed = CodeStream(store, batch_size=5)
    resumed.load_state_dict(state)
    assert first + take(resumed, 7, 2 - workers) == whole
    resumed.load_state_dict({"batches": 5})
    assert take(resumed, 7, workers) == whole[5:]


def test_each_iteration_starts_at_the_loaded_position(store):
    stream = CodeStream(store, batch_size=5)
    stream.load_state_dict({"batches": 3})
    assert take(stream, 4) == take(stream, 4) == take(stream, 4, workers=1)


def test_two_ranks_with_workers_share_the_global_batches(store):
    whole = take(CodeStream(store, batch_size=6), 8)
    ranks = [take(stream, 8, workers=2) for stream in streams_of_ranks(store, 2, 6)]
    assert [interleaved(parts) for parts in zip(*ranks, strict=True)] == whole


def test_ranks_default_to_those_of_torch_distributed(store, monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    expected = CodeDataset(store, window=4, batch_size=3, rank=1, world_size=2).train_batch(0)
    assert take(CodeStream(store, batch_size=3), 1) == [rows_of(expected)]


def test_the_state_of_one_worker_resumes_in_that_worker(store, monkeypatch):
    # as torchdata's StatefulDataLoader does it
    info = type("Info", (), {"id": 1, "num_workers": 3})
    monkeypatch.setattr("pipelines.streaming.iterable.get_worker_info", lambda: info)
    stream = CodeStream(store, batch_size=5)
    list(itertools.islice(stream, 2))  # batches 1 and 4
    resumed = CodeStream(store, batch_size=5)
    resumed.load_state_dict(stream.state_dict())
    assert rows_of(next(iter(resumed))) == rows_of(stream.dataset.train_batch(7))


def test_a_state_of_another_order_is_refused_naming_what_differs(store):
    state = CodeStream(store, batch_size=6).state_dict()
    other = CodeStream(store, batch_size=4, seed=1)
    with pytest.raises(DatasetError, match="seed was 0, is 1; global_batch_size was 6, is 4"):
        other.load_state_dict(state)


def test_the_window_defaults_to_the_largest_that_every_grid_holds(store, tmp_path):
    codes = np.arange(2 * 6 * 3).reshape(2, 6, 3)
    tall = CodeStore.open(make_store(tmp_path / "tall.zarr", codes, codebook_size=99))
    batch = next(iter(CodeStream([store, tall], batch_size=4)))
    assert batch["codes"].shape == (4, 3, 3)


def test_the_example_in_the_docstring_runs(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    documentation = inspect.getdoc(CodeStream)
    start = documentation.index("    from torch.utils.data")
    end = documentation.index("`window` is the side")
    names: dict = {}
    exec(textwrap.dedent(documentation[start:end]), names)
    assert names["codes"].shape == (4, 4, 4)
    assert names["state"]["batches"] == 1010


def test_cache_memory_bounds_the_shards_in_use(store):
    shard_bytes = 4 * 4 * 4 * 2
    dataset = CodeDataset(store, window=4, batch_size=1, cache_memory=2 * shard_bytes)
    shards = [rows_of(dataset.train_batch(step))[0] // 4 for step in range(ROWS)]
    changes = [len(set(shards[start : start + 7])) for start in range(0, 21, 7)]
    assert max(changes) <= 4  # two windows of two shards at most; 6 shards in all
    assert sorted(set(shards[:7])) != sorted(set(shards[-7:]))


def test_a_compressed_store_uses_no_more_shards_at_a_time_than_stay_decoded(tmp_path):
    codes = np.broadcast_to(np.arange(ROWS)[:, None, None], (ROWS, 4, 4))
    path = make_store(tmp_path / "a", codes, codebook_size=99, rows_per_task=4, compress=True)
    store = CodeStore.open(path, decoded_bytes=3 * 4 * 32)
    for cache_memory, together in ((None, 3), (10**9, 3), (2 * 4 * 32, 2)):
        dataset = CodeDataset(store, window=4, batch_size=ROWS, cache_memory=cache_memory)
        assert dataset.order["shards_together"] == [together]
        assert sorted(rows_of(dataset.train_batch(0))) == list(range(ROWS))


def test_a_pickled_dataset_yields_the_same_batches(store):
    dataset = CodeDataset(store, window=4, batch_size=5)
    batch = dataset.train_batch(3)
    assert rows_of(pickle.loads(pickle.dumps(dataset)).train_batch(3)) == rows_of(batch)


def test_modifying_a_batch_changes_no_other(store):
    dataset = CodeDataset(store, window=4, batch_size=5)
    before = dataset.train_batch(3)
    changed = dataset.train_batch(3)
    changed["codes"].zero_()
    changed["label"].zero_()
    after = dataset.train_batch(3)
    assert all(torch.equal(before[name], after[name]) for name in before)
