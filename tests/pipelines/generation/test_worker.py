"""A task's samples outlast the worker that paints them; one that kills is given up alone."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines import generate as command
from pipelines.generation import preview as preview
from pipelines.generation.index import read_lines
from pipelines.generation.worker import (
    Done,
    GenerationTask,
    GenerationWorker,
    buffer_of,
    quarantine,
    split_work,
)
from pipelines.store import CodeStore
from pipelines.store.layout import staging_path
from tests.generate_run import contents, everything, generate, picture, request_of


def test_a_piece_is_kept_for_the_task_and_not_painted_again(
    prior_run: Path, tmp_path: Path
) -> None:
    request = request_of(prior_run, tmp_path / "out")
    worker = GenerationWorker(request)
    sampled: list[list[int]] = []
    sample = worker.prior.sample

    def counting(*arguments: Any, samples: list[int], **options: Any) -> torch.Tensor:
        sampled.append(list(samples))
        return sample(*arguments, samples=samples, **options)

    worker.prior.sample = counting  # type: ignore[method-assign]
    assert worker.run(GenerationTask(number=0, first=3, end=4, whole=False)) == Done(1, 0, 6)
    assert contents(request.out).keys() == {"sample-00003.png"}
    assert not (request.out / "index").exists()
    assert worker.run(GenerationTask(number=0, first=0, end=6)) == Done(5, 0, 30)
    assert sampled == [[3], [0, 1], [2], [4, 5]]
    assert [line["status"] for line in read_lines(request.out, 0)] == ["ok"] * 6


def test_a_task_that_is_finished_is_not_painted_again(prior_run: Path, tmp_path: Path) -> None:
    request = request_of(prior_run, tmp_path / "out")
    task = GenerationTask(number=0, first=0, end=6)
    GenerationWorker(request).run(task)
    before = everything(request.out)
    assert GenerationWorker(request).run(task) == Done(6, 0, 0)
    assert everything(request.out) == before


def test_a_given_up_sample_stands_in_the_index_and_holds_no_codes(
    prior_run: Path, tmp_path: Path
) -> None:
    request = replace(request_of(prior_run, tmp_path / "out"), save=("images",))
    quarantine(request, GenerationTask(number=0, first=2, end=3, whole=False))
    assert GenerationWorker(request).run(GenerationTask(number=0, first=0, end=6)) == Done(6, 1, 30)
    line = read_lines(request.out, 0)[2]
    assert (line["status"], line["file"], line["codes_hash"]) == ("crashed", None, None)
    assert "every time" in line["error"]
    assert "sample-00002.png" not in contents(request.out)


def test_a_stopped_worker_ends_within_a_sample(prior_run: Path, tmp_path: Path) -> None:
    worker = GenerationWorker(request_of(prior_run, tmp_path / "out"))
    worker.stop()
    with pytest.raises(Exception, match="told to end"):
        worker.run(GenerationTask(number=0, first=0, end=6))
    assert not contents(tmp_path / "out")


@pytest.mark.parametrize("stride", [1, 2, None])
def test_finished_rows_of_a_canvas_outlast_the_worker(
    stride: int | None, prior_run: Path, local_run: Path, tmp_path: Path
) -> None:
    run = local_run if stride is None else prior_run
    options = {"count": 3, "size": "56x96", "keep_rows": 4, "stride": stride, "batch_size": 3}
    options |= {"samples_per_task": 3, "save": ("tars",)}
    request, task = (
        request_of(run, tmp_path / "out", **options),
        GenerationTask(number=0, first=0, end=3),
    )
    worker = GenerationWorker(request)
    look_on = worker._look_on

    def stopping(buffer: Any, shown: int) -> Any:
        look = look_on(buffer, shown)

        def looking(sample: int, codes: torch.Tensor) -> None:
            look(sample, codes)
            if len(list(staging_path(request.out).glob("*.partial-shard"))) == 3:
                worker.stop()

        return looking

    worker._look_on = stopping  # type: ignore[method-assign]
    with pytest.raises(Exception, match="told to end"):
        worker.run(task)

    again = GenerationWorker(request)
    sample = again.prior.sample
    known: list[np.ndarray] = []

    def noting(*arguments: Any, forced: np.ndarray, **options: Any) -> torch.Tensor:
        known.append(forced >= 0)
        return sample(*arguments, forced=forced, **options)

    again.prior.sample = noting  # type: ignore[method-assign]
    assert again.run(task) == Done(3, 0, 3 * 12 * 7)
    assert known[0][:, :4].all()
    assert not known[0][:, 4:].any()
    undisturbed = request_of(run, tmp_path / "undisturbed", **options)
    GenerationWorker(undisturbed).run(task)
    assert everything(request.out) == everything(undisturbed.out)


def test_the_first_worker_alone_previews(
    prior_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "SECONDS", 0.0)
    monkeypatch.setattr(preview, "SHARE", 1e9)
    request = request_of(prior_run, tmp_path / "out", preview=True)
    first, second = GenerationWorker(request), GenerationWorker(request)
    second.run(GenerationTask(number=0, first=4, end=6, whole=False))
    assert not (request.out / "preview.png").exists()
    first.run(GenerationTask(number=0, first=0, end=2, whole=False))
    shown = picture(request.out / "preview.png")
    np.testing.assert_array_equal(shown, picture(request.out / "sample-00000.png"))
    first.stop()
    second.stop()


def test_halving_ends_at_single_samples() -> None:
    work, batches = [GenerationTask(number=0, first=0, end=7)], []
    while work:
        task = work.pop()
        pieces = split_work(task, batch_size=2)
        batches += [(task.first, task.end)] * (not pieces)
        work += pieces
        assert not any(piece.whole for piece in pieces)
    assert sorted(batches) == [(k, k + 1) for k in range(7)]


def test_pieces_of_a_draft_never_shadow_one_another(prior_run: Path, tmp_path: Path) -> None:
    request = request_of(prior_run, tmp_path / "out")
    worker = GenerationWorker(request)
    for first, end in ((1, 2), (0, 4), (2, 3)):
        worker.run(GenerationTask(number=0, first=first, end=end, whole=False))
    buffer = buffer_of(request, 0)
    assert buffer.sampled() == [0, 1, 2, 3]
    expected = worker.prior.sample(2, 3, count=6, batch_size=2)
    np.testing.assert_array_equal(buffer.codes[:4], expected[:4].numpy())


class Poisoned(GenerationWorker):
    """Dies of sample 2, every time."""

    def _sample(self, buffer: Any, samples: list[int]) -> None:
        if 2 in samples:
            os.kill(os.getpid(), signal.SIGKILL)
        super()._sample(buffer, samples)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("at_once", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_sample_that_kills_its_workers_is_given_up_alone(
    at_once: int,
    prior_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cloudpickle = pytest.importorskip("ray.cloudpickle")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray cannot import this file
    whole, out = tmp_path / "whole", tmp_path / "out"
    flags = ["--count", 6, "--batch-size", at_once, "--samples-per-task", at_once**2]
    flags += ["--save", "images,codes"]
    assert generate(prior_run, whole, *flags) == 0
    with monkeypatch.context() as patched:
        patched.setattr(command, "GenerationWorker", Poisoned)
        assert generate(prior_run, out, *flags, "--workers", 1) == 1
    assert "failed: sample-00002: crashed" in capsys.readouterr().out
    assert contents(whole).keys() - contents(out).keys() == {"sample-00002.png"}
    assert contents(out).items() <= contents(whole).items()
    assert [line["key"] for line in CodeStore.open(out / "codes.zarr").failed.to_pylist()] == [
        "sample-00002"
    ]
    before = everything(out)
    assert generate(prior_run, out, *flags) == 1  # it stays given up,
    assert everything(out) == before
    again = shutil.copytree(out, tmp_path / "again")
    assert generate(prior_run, again, *flags, "--retry-failed") == 0  # until it is asked for
    assert everything(again) == everything(whole)
