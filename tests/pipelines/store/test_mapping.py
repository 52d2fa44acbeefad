"""Rows read from many shards are the rows asked for, or refused where they are not committed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.store import CodeStore, StoreError
from pipelines.store.layout import index_path
from tests.conftest import examples, make_store

ROWS = 8  # of a shard


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 999, (5 * ROWS - 3, 16, 16))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, codes: np.ndarray) -> list[CodeStore]:
    """The same codes with all tasks committed, and without task 2."""
    folder: Path = tmp_path_factory.mktemp("maps")
    opened = []
    for name in ("whole", "gap"):
        path = make_store(folder / name, codes, codebook_size=999, rows_per_task=ROWS)
        if name == "gap":
            index_path(path, "16x16", 2).unlink()
        opened.append(CodeStore.open(path))
    return opened


@settings(max_examples=examples(50))
@given(gap=st.booleans(), rows=st.lists(st.integers(-20, 60), max_size=12))
def test_rows_are_read_or_refused_as_the_index_says(
    stores: list[CodeStore], codes: np.ndarray, gap: bool, rows: list[int]
) -> None:
    committed = set(range(len(codes))) - (set(range(2 * ROWS, 3 * ROWS)) if gap else set())
    if set(rows) <= committed:
        got = stores[gap].read("16x16", np.array(rows, np.int64))
        np.testing.assert_array_equal(got, codes[np.array(rows, np.int64)])
    else:
        with pytest.raises(StoreError, match="not all in the index"):
            stores[gap].read("16x16", np.array(rows, np.int64))
