"""One map of many files says what the files say, and never more than was committed."""

import mmap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.store import CodeStore, StoreError
from pipelines.store.layout import index_path
from pipelines.store.mapping import can_lie_side_by_side, map_side_by_side
from tests.conftest import make_store

PAGE = mmap.ALLOCATIONGRANULARITY
ROWS = 8  # a shard: 8 rows of 16 x 16 codes of 16 bits are 4,096 bytes


def test_files_appear_at_their_places_and_zeros_between(tmp_path):
    random = np.random.default_rng(0)
    expected = np.zeros(5 * PAGE, np.uint8)
    files = []
    for place, size in ((0, PAGE), (2, PAGE + 20), (4, 100)):
        content = random.integers(1, 255, size, np.uint8)
        (tmp_path / str(place)).write_bytes(content.tobytes())
        files.append((place, tmp_path / str(place)))
        part = content[:PAGE]
        expected[place * PAGE : place * PAGE + len(part)] = part
    mapped = map_side_by_side(files, 5, PAGE)
    np.testing.assert_array_equal(mapped, expected)
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 1


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        map_side_by_side([(0, tmp_path / "none")], 1, PAGE)


def test_only_whole_pages_lie_side_by_side():
    assert can_lie_side_by_side(3 * PAGE)
    assert not can_lie_side_by_side(PAGE + 2)


@pytest.fixture(scope="module")
def codes():
    return np.random.default_rng(1).integers(0, 999, (5 * ROWS - 3, 16, 16))


@pytest.fixture(scope="module")
def stores(tmp_path_factory, codes):
    """The same codes whole and with task 2 gone; both as shards that are one map."""
    if PAGE != ROWS * 512:
        pytest.skip("pages of another size: the shards of this test are no single map")
    folder = tmp_path_factory.mktemp("maps")
    opened = []
    for name in ("whole", "gap"):
        path = make_store(folder / name, codes, codebook_size=999, rows_per_task=ROWS)
        if name == "gap":
            index_path(path, "16x16", 2).unlink()
        opened.append(CodeStore.open(path))
        assert opened[-1]._shards.joined("16x16", "image") is not None
    return opened


@settings(max_examples=50)
@given(gap=st.booleans(), rows=st.lists(st.integers(-20, 60), max_size=12))
def test_rows_are_read_or_refused_as_the_index_says(stores, codes, gap, rows):
    held = set(range(len(codes))) - (set(range(2 * ROWS, 3 * ROWS)) if gap else set())
    if set(rows) <= held:
        got = stores[gap].read("16x16", np.array(rows, np.int64))
        np.testing.assert_array_equal(got, codes[np.array(rows, np.int64)])
    else:
        with pytest.raises(StoreError, match="not all in the index"):
            stores[gap].read("16x16", np.array(rows, np.int64))
