"""GenerationWorker: kept samples outlast the worker; one that kills it is given up alone."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.generation import job
from pipelines.generation import preview as preview
from pipelines.generation.index import failed_lines, read_lines, read_parts
from pipelines.generation.resume import Folder
from pipelines.generation.sample_buffer import read_buffer
from pipelines.generation.worker import GenerationWorker, quarantine
from pipelines.jobs.queue import Done, Piece
from pipelines.jobs.run import run_tasks
from pipelines.store import CodeStore
from pipelines.store.layout import staging_path
from prior import prior as sampling_prior
from tests.generate_run import contents, everything, generate, image_in, request_of


def piece_of(task: int, first: int, end: int) -> Piece[int]:
    return Piece(task=task, first=first, end=end, commits=False)


def test_kept_piece_is_not_sampled_again(prior_run: Path, tmp_path: Path) -> None:
    request = request_of(prior_run, tmp_path / "out")
    worker = GenerationWorker(request)
    sampled: list[list[int]] = []
    sample = worker.prior.sample

    def counting(*arguments: Any, samples: list[int], **options: Any) -> torch.Tensor:
        sampled.append(list(samples))
        return sample(*arguments, samples=samples, **options)

    worker.prior.sample = counting  # type: ignore[method-assign]
    assert worker.run(piece_of(0, 3, 4)) == Done(1, 0, 6)
    assert contents(request.out).keys() == {"sample-00003.png"}
    assert not (request.out / "index").exists()
    assert worker.run(Piece(task=0, first=0, end=6)) == Done(5, 0, 30)
    assert sampled == [[3], [0, 1], [2], [4, 5]]
    assert [line["status"] for line in read_lines(request.out, 0)] == ["ok"] * 6


def test_finished_task_is_not_sampled_again(prior_run: Path, tmp_path: Path) -> None:
    request = request_of(prior_run, tmp_path / "out")
    task = Piece(task=0, first=0, end=6)
    GenerationWorker(request).run(task)
    before = everything(request.out)
    assert GenerationWorker(request).run(task) == Done(6, 0, 0)
    assert everything(request.out) == before


@pytest.mark.parametrize(
    ("stalled", "status", "error"),
    [(False, "crashed", "died every time"), (True, "stalled", "never ended")],
)
def test_quarantined_sample_is_in_the_index_without_codes(
    stalled: bool, status: str, error: str, prior_run: Path, tmp_path: Path
) -> None:
    request = replace(request_of(prior_run, tmp_path / "out"), save=("images",))
    quarantine(request, piece_of(0, 2, 3), stalled)
    worker = GenerationWorker(request)
    piece = Piece(task=0, first=0, end=6)
    assert worker.run(piece) == Done(6, 1, 30)
    assert worker.run(piece) == Done(6, 1)  # of the finished task
    line = read_lines(request.out, 0)[2]
    assert (line["status"], line["file"], line["codes_hash"]) == (status, None, None)
    assert error in line["error"]
    parts = read_parts(request.out)
    assert failed_lines(request.out, parts.values()) == [line]
    assert not Folder(request, parts, retry_failed=False).unfinished(range(6))
    assert Folder(request, parts, retry_failed=True).unfinished(range(6)) == [piece]
    assert "sample-00002.png" not in contents(request.out)


def test_stopped_worker_ends_within_a_sample(prior_run: Path, tmp_path: Path) -> None:
    worker = GenerationWorker(request_of(prior_run, tmp_path / "out"))
    worker.stop()
    with pytest.raises(Exception, match="worker was stopped"):
        worker.run(Piece(task=0, first=0, end=6))
    assert not contents(tmp_path / "out")


@pytest.mark.parametrize("stride", [1, 2, None])
def test_finished_rows_of_a_canvas_outlast_the_worker(
    stride: int | None, prior_run: Path, local_run: Path, tmp_path: Path
) -> None:
    run = local_run if stride is None else prior_run
    options = {"count": 3, "size": "56x96", "keep_rows": 4, "stride": stride, "batch_size": 3}
    options |= {"samples_per_task": 3, "save": ("tars",)}
    request, task = request_of(run, tmp_path / "out", **options), Piece(task=0, first=0, end=3)
    worker = GenerationWorker(request)
    on_codes = worker._on_codes

    def stopping(buffer: Any, places: list[int]) -> Any:
        callback = on_codes(buffer, places)

        def wrapped(sample: int, codes: torch.Tensor) -> None:
            callback(sample, codes)
            if len(list(staging_path(request.out).glob("*.partial-shard"))) == 3:
                worker.stop()

        return wrapped

    worker._on_codes = stopping  # type: ignore[method-assign]
    with pytest.raises(Exception, match="worker was stopped"):
        worker.run(task)

    again = GenerationWorker(request)
    sample = again.prior.sample
    known: list[np.ndarray] = []

    def recording(*arguments: Any, forced: np.ndarray, **options: Any) -> torch.Tensor:
        known.append(forced >= 0)
        return sample(*arguments, forced=forced, **options)

    again.prior.sample = recording  # type: ignore[method-assign]
    assert again.run(task) == Done(3, 0, 3 * 12 * 7)
    assert known[0][:, :4].all()
    assert not known[0][:, 4:].any()
    uninterrupted = request_of(run, tmp_path / "uninterrupted", **options)
    GenerationWorker(uninterrupted).run(task)
    assert everything(request.out) == everything(uninterrupted.out)


def test_only_the_first_worker_writes_a_preview(
    prior_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "SECONDS", 0.0)
    monkeypatch.setattr(preview, "SHARE", 1e9)
    request = request_of(prior_run, tmp_path / "out", preview=True)
    first, second = GenerationWorker(request), GenerationWorker(request)
    second.run(piece_of(0, 4, 6))
    assert not (request.out / "preview.png").exists()
    first.run(piece_of(0, 0, 2))
    shown = image_in(request.out / "preview.png")
    np.testing.assert_array_equal(shown, image_in(request.out / "sample-00000.png"))
    first.stop()
    second.stop()


def test_partial_shards_of_a_task_replace_no_other(prior_run: Path, tmp_path: Path) -> None:
    request = request_of(prior_run, tmp_path / "out")
    worker = GenerationWorker(request)
    for first, end in ((1, 2), (0, 4), (2, 3)):
        worker.run(piece_of(0, first, end))
    buffer = read_buffer(request, 0)
    assert buffer.sampled() == [0, 1, 2, 3]
    expected = worker.prior.sample(2, 3, count=6, batch_size=2)
    np.testing.assert_array_equal(buffer.codes[:4], expected[:4].numpy())


def test_samples_have_the_precision_of_the_request(
    prior_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(prior_run, tmp_path / "out", precision="bfloat16")
    worker, types = GenerationWorker(request), set()
    decoder = sampling_prior.Decoder

    def recorded(model: Any) -> Any:
        types.add((model.token_embedding.weight.dtype, model.head.weight.dtype))
        return decoder(model)

    monkeypatch.setattr(sampling_prior, "Decoder", recorded)
    worker.run(piece_of(0, 0, 2))
    assert types == {(torch.bfloat16, torch.float32)}


class Poisoned(GenerationWorker):
    """Dies whenever it makes sample 2."""

    def _sample(self, buffer: Any, places: list[int]) -> None:
        if 2 in [buffer.samples[place] for place in places]:
            os.kill(os.getpid(), signal.SIGKILL)
        super()._sample(buffer, places)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    ("at_once", "attempts"),
    # Each death costs the start of a worker: in every run the first one blames a sample.
    [(1, 1), pytest.param(2, 3, marks=pytest.mark.slow)],
)
def test_only_the_sample_that_kills_its_workers_is_given_up(
    at_once: int,
    attempts: int,
    prior_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray cannot import this file
    whole, out = tmp_path / "whole", tmp_path / "out"
    flags = ["--count", 6, "--batch-size", at_once, "--samples-per-task", at_once**2]
    flags += ["--save", "images,codes"]
    assert generate(prior_run, whole, *flags) == 0
    with monkeypatch.context() as patched:
        patched.setattr(job, "GenerationWorker", Poisoned)
        patched.setattr(job, "run_tasks", partial(run_tasks, attempts=attempts))
        assert generate(prior_run, out, *flags, "--workers", 1) == 1
    assert "failed: sample-00002: crashed" in capsys.readouterr().out
    assert contents(whole).keys() - contents(out).keys() == {"sample-00002.png"}
    assert contents(out).items() <= contents(whole).items()
    assert [line["key"] for line in CodeStore.open(out / "codes.zarr").failed.to_pylist()] == [
        "sample-00002"
    ]
    before = everything(out)
    assert generate(prior_run, out, *flags) == 1  # it stays given up
    assert everything(out) == before
    again = shutil.copytree(out, tmp_path / "again")
    assert generate(prior_run, again, *flags, "--retry-failed") == 0  # until retried
    assert everything(again) == everything(whole)
