import numpy as np
import pytest
import torch

from pipelines.inputs.holdout import held_out
from pipelines.store import CodeStore
from pipelines.streaming.dataset import CodeDataset
from pipelines.streaming.sources import DatasetError
from tests.conftest import make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """21 rows of 6 x 8 codes; every code of row r is r, so that windows show their row."""
    codes = np.broadcast_to(np.arange(21)[:, None, None], (21, 6, 8)).copy()
    path = tmp_path_factory.mktemp("store") / "codes.zarr"
    labels = [row % 3 for row in range(21)]
    make_store(path, codes, codebook_size=32, labels=labels, failed=(4,), rows_per_task=8)
    return CodeStore.open(path)


def rows_of(batch):
    return batch["codes"][:, 0, 0].tolist()


def stream_of(dataset, steps):
    return [row for step in steps for row in rows_of(dataset.train_batch(step))]


def test_each_row_comes_once_an_epoch_and_failed_rows_never(store):
    dataset = CodeDataset(store, window=4, batch_size=5)
    epochs = [stream_of(dataset, range(4 * epoch, 4 * epoch + 4)) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == [row for row in range(21) if row != 4]
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_batch_may_span_two_epochs(store):
    dataset = CodeDataset(store, window=4, batch_size=8)
    stream = stream_of(dataset, range(5))
    assert sorted(stream[:20]) == sorted(stream[20:40])


def test_a_batch_is_a_function_of_seed_and_step(store):
    dataset = CodeDataset(store, window=4, batch_size=5, seed=7)
    batch = dataset.train_batch(9)
    dataset.train_batch(0)
    again = CodeDataset(store, window=4, batch_size=5, seed=7).train_batch(9)
    assert torch.equal(batch["codes"], again["codes"])
    assert rows_of(CodeDataset(store, window=4, batch_size=5, seed=8).train_batch(9)) != rows_of(
        batch
    )


def test_labels_stay_with_their_codes(store):
    batch = CodeDataset(store, window=6, batch_size=20).train_batch(0)
    assert batch["label"].tolist() == [row % 3 for row in rows_of(batch)]


def test_held_out_keys_never_train_and_are_all_measured(store):
    dataset = CodeDataset(store, window=4, batch_size=5, held_out_share=0.3)
    expected = [r for r in range(21) if r != 4 and held_out(f"{r:04d}.jpg", 0.3)]
    assert expected
    trained = set(stream_of(dataset, range(40)))
    assert trained == set(range(21)) - {4} - set(expected)
    measured = [row for batch in dataset.held_out_batches() for row in rows_of(batch)]
    assert sorted(measured) == expected


def test_a_window_larger_than_the_grid_is_refused(store):
    with pytest.raises(DatasetError, match="6x8 codes, smaller than the prior's window of 7x7"):
        CodeDataset(store, window=7, batch_size=1)


def test_a_store_without_rows_to_train_on_is_refused(store):
    with pytest.raises(DatasetError, match="no row to train on"):
        CodeDataset(store, window=4, batch_size=1, held_out_share=1.0)


def test_true_edges_are_those_on_the_grids_border(tmp_path):
    codes = np.arange(5 * 7).reshape(1, 5, 7).repeat(12, 0)  # a code shows its cell
    path = make_store(tmp_path / "codes.zarr", codes, codebook_size=64)
    dataset, seen = CodeDataset(CodeStore.open(path), window=4, batch_size=6), set()
    for step in range(12):
        batch = dataset.train_batch(step)
        for window, edges in zip(batch["codes"], batch["true_edges"].tolist(), strict=True):
            top, left = divmod(int(window[0, 0]), 7)
            assert edges == [top == 0, left == 0, left + 4 == 7]
            seen.add(tuple(edges))
    assert len(seen) >= 5
    square = make_store(tmp_path / "whole.zarr", codes[:, :, :5], codebook_size=64)
    whole = CodeDataset(CodeStore.open(square), window=5, batch_size=2)
    assert whole.train_batch(0)["true_edges"].all()
