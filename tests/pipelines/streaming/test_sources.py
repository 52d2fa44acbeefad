"""Views, replaced rows, the held-out split, and several stores."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.config import UserError
from pipelines.inputs.holdout import held_out
from pipelines.store import CodeStore, row_table, write_metadata
from pipelines.store.zarr_metadata import read_attributes
from pipelines.streaming.dataset import CodeDataset
from pipelines.streaming.sources import CodeSource, DatasetError, cut_windows
from tests.conftest import make_store

VIEWS = 3


def codes_of(rows, first=0):
    """Codes (n, 4, 4), each equal to its row's number, counted from `first`."""
    return np.broadcast_to(np.arange(first, first + rows)[:, None, None], (rows, 4, 4)).copy()


def open_store(path, rows, first=0, **changes):
    return CodeStore.open(make_store(path, codes_of(rows, first), codebook_size=999, **changes))


def rows_of(batch):
    return batch["codes"][:, 0, 0].tolist()


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    """11 images in 3 views each, in tasks of 4 rows, so that some lie in two; two views failed."""
    columns = {
        "key": [f"{row // VIEWS}.jpg" for row in range(33)],
        "view": [row % VIEWS for row in range(33)],
    }
    path = tmp_path_factory.mktemp("views") / "codes.zarr"
    return open_store(path, 33, columns=columns, rows_per_task=4, failed=(4, 9))


def test_an_epoch_has_each_image_once_in_one_of_its_views(views):
    dataset = CodeDataset(views, window=4, batch_size=11)
    epochs = [rows_of(dataset.train_batch(epoch)) for epoch in range(30)]
    for epoch in epochs:
        assert sorted(row // VIEWS for row in epoch) == list(range(11))
    seen = {row for epoch in epochs for row in epoch}
    assert seen == set(range(33)) - {4, 9}


def test_views_are_drawn_by_seed_and_position_alone(views):
    first, again, other = (
        rows_of(CodeDataset(views, window=4, batch_size=11, seed=seed).train_batch(5))
        for seed in (1, 1, 2)
    )
    assert first == again
    assert sorted(first) != sorted(other)


def test_every_view_of_an_image_can_be_trained_on(views):
    dataset = CodeDataset(views, window=4, batch_size=31, every_view=True)
    assert sorted(rows_of(dataset.train_batch(0))) == sorted(set(range(33)) - {4, 9})


@pytest.mark.parametrize("every_view", [False, True])
def test_no_view_of_a_held_out_image_trains(views, every_view):
    held = {image for image in range(11) if held_out(f"{image}.jpg", 0.4)}
    assert 0 < len(held) < 11
    dataset = CodeDataset(views, window=4, batch_size=5, held_out_share=0.4, every_view=every_view)
    trained = {row // VIEWS for step in range(40) for row in rows_of(dataset.train_batch(step))}
    measured = {row // VIEWS for batch in dataset.held_out_batches() for row in rows_of(batch)}
    assert (trained, measured) == (set(range(11)) - held, held)


def test_held_out_images_are_measured_on_their_middle_view(views):
    source = CodeSource(views, 1.0, every_view=False)
    held = source.held_out[np.arange(len(source.held_out))]
    rows = source.rows(source.middle_lines(held))[1].tolist()
    middle = {0: 1, 1: 3, 3: 10}  # of images 1 and 3 the views 1 and 0 failed
    assert rows == [middle.get(image, image * VIEWS + 1) for image in range(11)]


def test_replaced_rows_never_appear(tmp_path):
    columns = {
        "key": ["a", "b", "c", "a"],
        "replaces": [None, None, None, "4x4/0"],
    }
    store = open_store(tmp_path / "codes.zarr", 4, columns=columns)
    batch = CodeDataset(store, window=4, batch_size=3).train_batch(0)
    assert sorted(rows_of(batch)) == [1, 2, 3]


def test_grids_of_several_shapes_come_in_one_batch(tmp_path):
    path = tmp_path / "codes.zarr"
    make_store(path, codes_of(6), codebook_size=999)
    wide = np.broadcast_to(np.arange(100, 105)[:, None, None], (5, 4, 9)).copy()
    make_store(path, wide, codebook_size=999, labels=[0, 1, 0, 1, 0])
    write_metadata(path, replace(read_attributes(path), grids={"4x4": 6, "4x9": 5}))
    store = CodeStore.open(path)
    batch = CodeDataset(store, window=4, batch_size=11, every_view=True).train_batch(0)
    assert sorted(rows_of(batch)) == [*range(6), *range(100, 105)]
    labels = dict(zip(rows_of(batch), batch["label"].tolist(), strict=True))
    assert [labels[row] for row in (0, 100, 101)] == [-1, 0, 1]


def test_train_keys_are_those_of_the_samples(views):
    dataset = CodeDataset(views, window=4, batch_size=7)
    assert dataset.train_keys(3) == [
        f"{row // VIEWS}.jpg" for row in rows_of(dataset.train_batch(3))
    ]


def test_stores_are_mixed_by_weight_each_with_its_own_epochs(tmp_path):
    small = open_store(tmp_path / "small", 20)
    large = open_store(tmp_path / "large", 60, first=100)
    dataset = CodeDataset([small, large], window=4, batch_size=50, weights=[3, 1])
    stream = [row for step in range(200) for row in rows_of(dataset.train_batch(step))]
    of_small = [row for row in stream if row < 100]
    assert len(of_small) == 7500
    for rows, size in ((of_small, 20), ([row for row in stream if row >= 100], 60)):
        first = rows[0] // 100 * 100
        for epoch in range(3):
            part = rows[epoch * size : (epoch + 1) * size]
            assert sorted(part) == list(range(first, first + size))


def test_without_weights_stores_count_by_their_images(tmp_path):
    stores = [open_store(tmp_path / "a", 10), open_store(tmp_path / "b", 30, first=100)]
    dataset = CodeDataset(stores, window=4, batch_size=1000)
    stream = [row for step in range(10) for row in rows_of(dataset.train_batch(step))]
    assert sum(row < 100 for row in stream) == 2500
    assert dataset.steps_per_epoch == 40 / 1000


def test_labels_of_several_stores_are_joined_by_name(tmp_path):
    first = open_store(tmp_path / "a", 2, labels=[0, 1], label_names=("lake", "wood"))
    second = open_store(
        tmp_path / "b", 3, first=100, labels=[0, 1, None], label_names=("town", "lake")
    )
    dataset = CodeDataset([first, second], window=4, batch_size=50)
    assert dataset.label_names == ["lake", "wood", "town"]
    batch = dataset.train_batch(0)
    labels = dict(zip(rows_of(batch), batch["label"].tolist(), strict=True))
    assert labels == {0: 0, 1: 1, 100: 2, 101: 0, 102: -1}


def test_stores_of_two_tokenizers_are_refused_naming_both(tmp_path):
    stores = [open_store(tmp_path / name, 3, fingerprint=name * 16) for name in ("a", "b")]
    with pytest.raises(DatasetError, match=f"{'b' * 16}.*{'a' * 16}"):
        CodeDataset(stores, window=4, batch_size=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": [1.0]}, "2 stores, but 1 weight"),
        ({"weights": [1.0, -1.0]}, "above 0"),
        ({"rank": 2, "world_size": 2}, "from 0 to 1, found 2"),
    ],
)
def test_invalid_settings_are_refused(tmp_path, changes, message):
    stores = [open_store(tmp_path / name, 3) for name in ("a", "b")]
    with pytest.raises(UserError, match=message):
        CodeDataset(stores, window=4, batch_size=1, **changes)


@given(height=st.integers(1, 9), width=st.integers(1, 9), count=st.integers(1, 4), data=st.data())
def test_windows_are_the_slices_at_the_drawn_corners(height, width, count, data):
    window = data.draw(st.integers(1, min(height, width)))
    unit = st.floats(0, 1, exclude_max=True)
    draws = np.array(data.draw(st.lists(st.tuples(unit, unit), min_size=count, max_size=count)))
    codes = np.arange(count * height * width).reshape(count, height, width)
    cut = cut_windows(codes, window, draws)
    for number in range(count):
        top = int(draws[number, 0] * (height - window + 1))
        left = int(draws[number, 1] * (width - window + 1))
        expected = codes[number, top : top + window, left : left + window]
        assert np.array_equal(cut[number], expected)


def test_view_and_window_are_drawn_independently(tmp_path):
    codes = 10 * np.arange(8)[:, None, None] + np.arange(5)[:, None] + np.zeros((8, 5, 4), int)
    columns = {"key": [f"{row // 2}.jpg" for row in range(8)], "view": [0, 1] * 4}
    store = CodeStore.open(make_store(tmp_path / "a", codes, codebook_size=999, columns=columns))
    batch = CodeDataset(store, window=4, batch_size=100).train_batch(0)
    pairs = {(code // 10 % 2, code % 10) for code in rows_of(batch)}
    assert pairs == {(0, 0), (0, 1), (1, 0), (1, 1)}  # (view, top row)


@pytest.mark.parametrize("every_view", [False, True])
@pytest.mark.parametrize("several_views", [False, True])
def test_a_row_table_that_was_kept_gives_the_same_batches(
    tmp_path, monkeypatch, views, several_views, every_view
):
    path = tmp_path / "codes.zarr"
    if several_views:
        shutil.copytree(views.path, path)
    else:
        labels = [row % 5 for row in range(40)]
        make_store(path, codes_of(40), codebook_size=999, labels=labels, failed=(0, 11))
    settings = {"window": 4, "batch_size": 6, "held_out_share": 0.3, "every_view": every_view}
    before = CodeDataset(CodeStore.open(path), **settings)
    monkeypatch.setattr(row_table, "KEPT_FROM", 0)
    CodeStore.open(path)
    kept = CodeStore.open(path)
    assert isinstance(kept.rows.row, np.memmap)
    after = CodeDataset(kept, **settings)
    assert after.order == before.order
    for step in range(12):
        for name, values in before.train_batch(step).items():
            assert (after.train_batch(step)[name] == values).all()
    for ours, theirs in zip(after.held_out_batches(), before.held_out_batches(), strict=True):
        assert ours["codes"].equal(theirs["codes"])
