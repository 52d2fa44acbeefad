"""What is missing is found by names, and what is there is never painted twice."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.generation.index import read_parts
from pipelines.generation.resume import Folder, kept_samples
from pipelines.generation.worker import GenerationTask, GenerationWorker
from pipelines.store.layout import staging_path
from tests.generate_run import everything, generate, request_of


def test_unfinished_tasks_are_those_that_lack_something(prior_run: Path, tmp_path: Path) -> None:
    request = request_of(prior_run, tmp_path, samples_per_task=2)
    GenerationWorker(request).run(GenerationTask(number=1, first=2, end=4))
    folder = Folder(request, read_parts(tmp_path), retry_failed=False)
    assert [task.number for task in folder.unfinished(range(6))] == [0, 2]
    assert folder.unfinished(range(3, 4)) == []
    assert folder.unfinished(range(5, 6)) == [GenerationTask(number=2, first=5, end=6)]
    (tmp_path / "sample-00003.png").unlink()
    folder = Folder(request, read_parts(tmp_path), retry_failed=False)
    assert folder.unfinished(range(3)) == [GenerationTask(number=0, first=0, end=2)]
    assert folder.unfinished(range(3, 4)) == [GenerationTask(number=1, first=3, end=4)]


def test_finding_what_is_missing_looks_at_no_sample(
    prior_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(
        prior_run, tmp_path, count=40, samples_per_task=20, save=("images", "tars")
    )
    worker = GenerationWorker(request)
    for number in range(2):
        worker.run(GenerationTask(number=number, first=20 * number, end=20 * number + 20))
    looked_at: list[str] = []
    stat = os.stat

    def noting(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        looked_at.append(str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", noting)
    assert Folder(request, read_parts(tmp_path), False).unfinished(range(40)) == []
    assert not [path for path in looked_at if "sample-" in path]
    assert len(looked_at) < 10


def test_what_is_whole_in_a_task_that_is_opened_again_is_not_painted(
    prior_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--samples-per-task", 6, "--batch-size", 2]
    assert generate(prior_run, tmp_path / "out", "--count", 4, *flags) == 0
    sampled: list[int] = []
    sample = GenerationWorker._sample

    def noting(worker: GenerationWorker, buffer: Any, samples: list[int]) -> None:
        sampled.extend(samples)
        sample(worker, buffer, samples)

    monkeypatch.setattr(GenerationWorker, "_sample", noting)
    assert generate(prior_run, tmp_path / "out", "--count", 6, *flags) == 0
    assert sampled == [4, 5]
    (tmp_path / "out/sample-00001.png").unlink()
    assert generate(prior_run, tmp_path / "out", "--count", 6, *flags) == 0
    assert sampled == [4, 5, 1]


def test_codes_that_are_there_are_drawn_again_not_painted(
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


def test_samples_kept_of_other_tasks_outlast_a_run_of_one(prior_run: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    request = request_of(prior_run, out, samples_per_task=2)
    GenerationWorker(request).run(GenerationTask(number=2, first=4, end=6, whole=False))
    kept = sorted(staging_path(out).glob("*.partial-shard"))
    assert kept
    tasks = [GenerationTask(number=n, first=2 * n, end=2 * n + 2) for n in range(3)]
    assert kept_samples(request, tasks) == 2
    flags = ["--count", 6, "--batch-size", 2, "--samples-per-task", 2]
    assert generate(prior_run, out, *flags, "--only", 0) == 0
    assert sorted(staging_path(out).glob("*.partial-shard")) == kept
    assert generate(prior_run, out, *flags) == 0
    assert generate(prior_run, whole, *flags) == 0
    assert everything(out) == everything(whole)
