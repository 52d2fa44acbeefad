"""Any change of a store's files gives a result or an error of one line, in bounded time.

Changes of metadata are made with the right hashes, so that they reach the code behind those.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ops.config import UserError
from pipelines.store import CodeStore
from pipelines.store.layout import plan_path
from pipelines.streaming import CodeDataset
from pipelines.tracks import verify_store
from tests.conftest import examples
from tests.pipelines.store.foreign import (
    CODEBOOK_SIZE,
    GRID,
    NUM_ROWS,
    change_json,
    change_parquet,
    planned_store,
)

PARTS = [plan_path(Path(), 0), *(Path("_index", GRID, f"{task}.parquet") for task in range(3))]
VALUES = st.sampled_from(
    [None, True, -1, 0, 1, 3, 10**12, 2**63, 10**30, 0.5, 1e300, "", ".", "..", "../../x", "/etc",
     "a/b", "nul\0", "x" * 300, "image", "depth", GRID, "9x9", "99999999x99999999", "\u202e", [],
     [1], [[]], {}, {"a": {}}, [GRID, 0, 4], "0" * 64]
)  # fmt: skip


@pytest.fixture(scope="module", params=[False, True], ids=["raw", "compressed"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planned_store(tmp_path_factory.mktemp("made") / "store", compress=request.param)


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value in parsed JSON."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in list(items):
        yield data, key
        if isinstance(value, dict | list):
            yield from places(value)


def change(data: Any, draw: st.DataObject) -> None:
    """Replace, remove, double or rename one value."""
    container, key = draw.draw(st.sampled_from(list(places(data))))
    action = draw.draw(st.sampled_from(["replace", "replace", "remove", "again", "rename"]))
    if action == "replace":
        container[key] = draw.draw(VALUES)
    elif action == "remove":
        del container[key]
    elif isinstance(container, list):
        container.append(container[key])
    else:
        container[str(draw.draw(VALUES))] = (
            container[key] if action == "again" else container.pop(key)
        )


def check(store: Path) -> None:
    """Open, verify and read all of the store: each gives a result or a UserError."""
    with suppress(UserError):
        verify_store(store)
    with suppress(UserError):
        opened = CodeStore.open(store)
        for batch in opened.batches(3):
            assert batch["codes"].min() >= 0
            assert batch["codes"].max() < max(
                CODEBOOK_SIZE, opened.provenance["image"]["codebook_size"]
            )
            assert batch["label"].max() < max(1, len(opened.label_names))
        assert len(opened) <= NUM_ROWS
        len(opened.failed)
        dataset = CodeDataset(opened, window=1, batch_size=4)
        dataset.train_batch(0)
        dataset.train_keys(0)


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return tmp_path / "store"


def renewed(made: Path, store: Path) -> Path:
    shutil.rmtree(store, ignore_errors=True)
    return Path(shutil.copytree(made, store))


FUZZ = settings(
    max_examples=examples(20), suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(draw=st.data())
def test_changed_json(made: Path, store: Path, draw: st.DataObject) -> None:
    name = draw.draw(st.sampled_from(["zarr.json", "zarr.json", "_checksums.json"]))

    def edit(data: Any) -> None:
        ours = data["attributes"]["smalti"] if name == "zarr.json" else data
        change(ours, draw)

    change_json(renewed(made, store) / name, edit)
    check(store)


@FUZZ
@given(draw=st.data())
def test_changed_descriptions(made: Path, store: Path, draw: st.DataObject) -> None:
    path = renewed(made, store) / draw.draw(st.sampled_from(PARTS))
    change_parquet(path, lambda description: change(description, draw))
    check(store)


@FUZZ
@given(draw=st.data())
def test_changed_columns(made: Path, store: Path, draw: st.DataObject) -> None:
    path = renewed(made, store) / draw.draw(st.sampled_from(PARTS))
    table = pq.ParquetFile(path).read()
    name = draw.draw(st.sampled_from(table.schema.names))
    numbers = pa.types.is_integer(table.schema.field(name).type)
    values = table[name].to_pylist()
    others = [None, -1, 0, 3, 2**31 - 1, 2**62] if numbers else [None, "", "ok", f"{GRID}/0", "9x9"]
    for place in draw.draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=3)):
        values[place] = draw.draw(st.sampled_from(others))
    with suppress(OverflowError, pa.ArrowInvalid):  # a number that the column's type cannot hold
        change_parquet(path, columns={name: values})
    check(store)


@FUZZ
@given(draw=st.data())
def test_flipped_bytes(made: Path, store: Path, draw: st.DataObject) -> None:
    renewed(made, store)
    files = sorted(path for path in store.rglob("*") if path.is_file() and path.stat().st_size)
    path = draw.draw(st.sampled_from(files))
    data = bytearray(path.read_bytes())
    for place in draw.draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=4)):
        data[place] ^= draw.draw(st.integers(1, 255))
    end = draw.draw(st.one_of(st.just(len(data)), st.integers(1, len(data))))
    path.write_bytes(data[:end])
    check(store)


def test_the_store_as_it_is_has_no_problem_but_its_tokenizer(made: Path) -> None:
    (problem,) = verify_store(made).problems
    assert "_tokenizer" in problem
    assert len(CodeStore.open(made)) == NUM_ROWS - 1
    assert json.loads((made / "zarr.json").read_bytes())["attributes"]["smalti"]["grids"] == {
        GRID: NUM_ROWS
    }
