"""What rows were made with: through partial shards and commits, and of several tasks together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import report, verify
from pipelines.store import RowForm, StoreError, summarise_environments
from pipelines.store.commit import read_environments, read_part
from pipelines.store.environments import (
    MadeIn,
    described_environments,
    environment_text,
    grouped_environments,
    made_in_of,
    parse_environments,
)
from pipelines.store.layout import index_path, staging_path
from pipelines.store.parquet import METADATA_KEY, description_metadata
from pipelines.store.task_buffer import IndexLine, TaskBuffer, index_buffer
from tests.conftest import examples
from tests.encode_run import EncodeRun

CPU = environment_text({"device": "cpu", "device_name": "AMD EPYC", "torch": "2.14"})
GPU = environment_text(
    {
        "device": "cuda", "device_name": "NVIDIA H100", "torch": "2.14", "precision": "tf32",
        "cudnn": "91002",
    }
)  # fmt: skip
LINE = IndexLine(32, 32, "ok", None, None)
CODES = np.ones((2, 3), np.uint16)


@settings(max_examples=examples(40))
@given(st.lists(st.lists(st.sampled_from([CPU, GPU]), unique=True).map(sorted).map(tuple)))
def test_environments_are_described_by_runs_of_rows(made_in: list[tuple[str, ...]]) -> None:
    grouped = grouped_environments(made_in)
    assert made_in_of(grouped, len(made_in)) == made_in
    description = json.loads(json.dumps(described_environments(grouped)))
    assert parse_environments(description, len(made_in)) == grouped


@pytest.mark.parametrize(
    "entry",
    [
        {"environment": {"device": 3}, "rows": []},
        {"environment": ["cpu"], "rows": []},
        {"environment": {}, "rows": [[0, 9]]},
        {"environment": {}, "rows": [[2, 1]]},
        {"environment": {}, "rows": [[0, 1, 2]]},
        {"rows": []},
        "cpu",
    ],
)
def test_descriptions_that_no_commit_writes_are_refused(entry: object) -> None:
    with pytest.raises((AttributeError, KeyError, TypeError, ValueError)):
        parse_environments({"environments": [entry]}, 4)


def buffer(root: Path, environment: str) -> TaskBuffer[IndexLine]:
    staging_path(root).mkdir(exist_ok=True)
    return index_buffer(root, "2x3", 0, 5, RowForm((2, 3), np.dtype(np.uint16)), environment)


def test_rows_keep_what_they_were_made_with_over_kills(tmp_path: Path) -> None:
    first = buffer(tmp_path, GPU)
    first.put(0, LINE, CODES)
    first.put(1, LINE, CODES)
    first.keep(0, 2)
    begun = np.full((2, 3), first.fill, np.uint16)
    begun[0] = 1
    first.keep_begun(3, begun)
    second = buffer(tmp_path, CPU)
    second.read_kept()
    for place in second.missing(0, 5):
        second.put(place, LINE, CODES)
    assert second.environments() == [MadeIn(GPU, ((0, 2), (3, 4))), MadeIn(CPU, ((2, 5),))]


def test_a_summary_counts_the_rows_of_all_tasks() -> None:
    tasks = [
        [MadeIn(GPU, ((0, 1000), (1500, 2000)))],
        [MadeIn(GPU, ((0, 1),)), MadeIn(CPU, ((1, 3),))],
    ]
    assert summarise_environments(tasks) == [
        "1,501 rows: NVIDIA H100, tf32, torch 2.14, cudnn 91002",
        "2 rows: AMD EPYC, torch 2.14",
    ]


def test_a_store_that_was_begun_otherwise_shows_both(run: EncodeRun, photographs: Path) -> None:
    sizes = {"batch_size": 5, "rows_per_task": 5}
    assert run(photographs / "lake", precision="bfloat16", **sizes) == 0, run.errors
    assert run(photographs, precision="float32", **sizes) == 2
    assert "--precision (the store has bfloat16, asked for float32)" in run.errors
    assert "--accept precision goes on with these all the same" in run.errors
    accepted = {"precision": "float32", "accept": "precision"}
    assert run(photographs, **accepted, **sizes) == 0, run.errors
    (first,), (second,) = (read_environments(run.out, "4x4", task) for task in (0, 1))
    assert [json.loads(each.environment)["precision"] for each in (first, second)] == [
        "bfloat16", "float32",
    ]  # fmt: skip
    assert (first.rows, second.rows) == (((0, 5),), ((0, 5),))
    assert verify.main([str(run.out)]) == 0
    printed = run.capsys.readouterr().out.splitlines()
    assert [line.partition(":")[2].partition(":")[0] for line in printed[:2]] == [
        " 10 rows", " 5 rows",
    ]  # fmt: skip
    assert ", bfloat16, torch " in printed[1]
    assert report.main([str(run.out)]) == 0
    page = (run.out / "report.html").read_text()
    assert page.count("made with") == 2
    assert ", bfloat16, torch " in page
    path = index_path(run.out, "4x4", 1)
    table = pq.read_table(path)
    description = json.loads(table.schema.metadata.pop(METADATA_KEY))
    del description["hash"]
    description["environments"][0]["rows"] = [[0, 6]]  # it has five rows
    pq.write_table(table.replace_schema_metadata(description_metadata(description)), path)
    for read in (read_part, read_environments):
        with pytest.raises(StoreError, match=r"corrupt index part .an environment has the rows"):
            read(run.out, "4x4", 1)
