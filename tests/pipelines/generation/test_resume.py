"""Missing samples are found by file names, and no sample is made twice."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.generation.index import read_parts
from pipelines.generation.resume import Folder, kept_samples
from pipelines.generation.settings import deciding_settings, read_record, write_record
from pipelines.generation.worker import GenerationWorker
from pipelines.jobs.queue import Piece
from pipelines.store.layout import StoreError, staging_path
from prior import load_prior
from tests.generate_run import everything, generate, request_of


def test_unfinished_tasks_are_those_that_lack_something(prior_run: Path, tmp_path: Path) -> None:
    request = request_of(prior_run, tmp_path, samples_per_task=2)
    GenerationWorker(request).run(Piece(task=1, first=0, end=2))
    folder = Folder(request, read_parts(tmp_path), retry_failed=False)
    assert [piece.task for piece in folder.unfinished(range(6))] == [0, 2]
    assert folder.unfinished(range(3, 4)) == []
    assert folder.unfinished(range(5, 6)) == [Piece(task=2, first=1, end=2)]
    (tmp_path / "sample-00003.png").unlink()
    folder = Folder(request, read_parts(tmp_path), retry_failed=False)
    assert folder.unfinished(range(3)) == [Piece(task=0, first=0, end=2)]
    assert folder.unfinished(range(3, 4)) == [Piece(task=1, first=1, end=2)]


def test_finding_missing_samples_calls_no_stat_on_them(
    prior_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(
        prior_run, tmp_path, count=40, samples_per_task=20, save=("images", "tars")
    )
    worker = GenerationWorker(request)
    for number in range(2):
        worker.run(Piece(task=number, first=0, end=20))
    stat_paths: list[str] = []
    stat = os.stat

    def recording(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        stat_paths.append(str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", recording)
    assert Folder(request, read_parts(tmp_path), False).unfinished(range(40)) == []
    assert not [path for path in stat_paths if "sample-" in path]
    assert len(stat_paths) < 10


def test_intact_samples_of_a_reopened_task_are_not_sampled_again(
    prior_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--samples-per-task", 6, "--batch-size", 2]
    assert generate(prior_run, tmp_path / "out", "--count", 4, *flags) == 0
    sampled: list[int] = []
    sample = GenerationWorker._sample

    def recording(worker: GenerationWorker, buffer: Any, places: list[int]) -> None:
        sampled.extend(buffer.samples[place] for place in places)
        sample(worker, buffer, places)

    monkeypatch.setattr(GenerationWorker, "_sample", recording)
    assert generate(prior_run, tmp_path / "out", "--count", 6, *flags) == 0
    assert sampled == [4, 5]
    (tmp_path / "out/sample-00001.png").unlink()
    assert generate(prior_run, tmp_path / "out", "--count", 6, *flags) == 0
    assert sampled == [4, 5, 1]


def test_missing_png_is_decoded_from_codes_and_not_sampled_again(
    prior_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--samples-per-task", 4, "--batch-size", 2, "--save", "images,codes,tars"]
    assert generate(prior_run, tmp_path / "whole", "--count", 4, *flags) == 0
    out = shutil.copytree(tmp_path / "whole", tmp_path / "out")
    for name in ("sample-00001.png", "tars/00000.tar"):
        (out / name).unlink()
    monkeypatch.setattr(GenerationWorker, "_sample", None)
    assert generate(prior_run, out, "--count", 4, *flags) == 0
    assert everything(out) == everything(tmp_path / "whole")


def test_partial_shards_of_other_tasks_are_left_by_a_run_of_one(
    prior_run: Path, tmp_path: Path
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    request = request_of(prior_run, out, samples_per_task=2)
    write_record(out, deciding_settings(request, load_prior(prior_run)), 6)
    GenerationWorker(request).run(Piece(task=2, first=0, end=2, commits=False))
    kept = sorted(staging_path(out).glob("*.partial-shard"))
    assert kept
    pieces = [Piece(task=n, first=0, end=2) for n in range(3)]
    assert kept_samples(request, pieces) == 2
    flags = ["--count", 6, "--batch-size", 2, "--samples-per-task", 2]
    assert generate(prior_run, out, *flags, "--only", 0) == 0
    assert sorted(staging_path(out).glob("*.partial-shard")) == kept
    assert generate(prior_run, out, *flags) == 0
    assert generate(prior_run, whole, *flags) == 0
    assert everything(out) == everything(whole)


@pytest.mark.parametrize(
    "text",
    ["", "3", "[]", "NaN", "{" * 100_000, '{"format": 3, "count": "9"}',
     '{"format": 3, "batch_size": 0}', '{"format": 3, "samples_per_task": 1e9}',
     '{"format": 3, "count": true}', '{"format": 3, "count": 99999999999999}'],
)  # fmt: skip
def test_corrupt_record_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "sample-00000.png").touch()
    (tmp_path / "generation.json").write_text(text)
    with pytest.raises(StoreError, match="Restore it"):
        read_record(tmp_path)
