"""Runs in an object store: a checkpoint is there as a whole or not at all, and resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch

from ops import paths
from ops.cache_folder import CACHE_VARIABLE
from ops.checkpoint import CheckpointError, newest_step
from ops.files import LockedError
from ops.paths import ObjectPath
from ops.ranks import Ranks
from ops.stored_models import local_model
from ops.stored_steps import StepConflictError, stored_steps
from ops.transient_errors import TransientError
from pipelines.training.loop import FINITE, Evaluation, LoopSettings, Source, TrainTask, train
from pipelines.training.run_folder import RunFolder, TrainingError, opened_run
from tests.crashes.encode_processes import exit_code, start
from tests.object_servers import S3, Decide, in_turn, proxy

SETTINGS = LoopSettings(steps=6, save_every=2, log_every=1, sample_every=3)
LOSSES = {3: 0.1, 6: 0.5}  # the best is neither of the newest two


class Adder(TrainTask[float]):
    """Adds up its batches and random numbers of torch."""

    def __init__(self) -> None:
        self.total = torch.zeros(())

    def train_step(self, batch: float, step: int) -> dict[str, torch.Tensor]:
        self.total += batch + torch.rand(())
        return {"loss": self.total.clone(), FINITE: torch.tensor(1.0)}

    def snapshot(self) -> Callable[[Path, Ranks], None]:
        total = self.total.clone()

        def write(folder: Path, ranks: Ranks) -> None:
            (folder / "config.json").write_text("{}")
            (folder / "model.safetensors").write_bytes(total.numpy().tobytes())
            torch.save({"total": total}, folder / "train_state.pt")

        return write

    def load(self, folder: Path) -> None:
        self.total = torch.load(folder / "train_state.pt", weights_only=True)["total"]

    def evaluate(self, step: int) -> Evaluation:
        dots = {"dots": np.zeros((4, 4, 3), np.uint8)}
        return Evaluation({"held_out_loss": LOSSES[step]}, dots, LOSSES[step])


def batches(start: int, stop: int) -> Iterator[float]:
    return iter(map(float, range(start, stop)))


def train_at(options: dict[str, str], out: ObjectPath, cache: Path) -> int:
    """A run as the commands have it; 0."""
    os.environ[CACHE_VARIABLE] = str(cache)
    with paths.storage_options(options), opened_run(out) as run:
        (run.folder / "run.json").write_text("{}")
        train(Adder(), Source(batches), run, SETTINGS, on_step=lambda *_: None)
    return 0


def checkpoints(s3: S3, out: ObjectPath) -> dict[str, bytes]:
    found = s3.objects(out)
    return {n: d for n, d in found.items() if n.startswith(("step-", "manifests/"))}


def steps_of(out: ObjectPath) -> list[int]:
    return [step.step for step in stored_steps(out)]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, short_waits: None, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr("pipelines.training.loop.plot_curves", lambda lines: None)


@pytest.fixture(scope="module")
def finished(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The objects of a run that nothing has disturbed."""
    out = s3.bucket() / "undisturbed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, "")
        train_at(s3.options, out, tmp_path_factory.mktemp("undisturbed"))
    return s3.objects(out)


@pytest.fixture
def undisturbed(finished: dict[str, bytes]) -> dict[str, bytes]:
    return {n: d for n, d in finished.items() if n.startswith(("step-", "manifests/"))}


@pytest.fixture
def copied(finished: dict[str, bytes], bucket: ObjectPath) -> ObjectPath:
    """A run of the same objects, which may be changed."""
    for name, data in finished.items():
        paths.write_whole(bucket / "copied" / name, data)
    return bucket / "copied"


def test_the_newest_steps_and_the_best_are_kept_with_metrics_and_images(
    finished: dict[str, bytes],
    undisturbed: dict[str, bytes],
    copied: ObjectPath,
    s3: S3,
    tmp_path: Path,
) -> None:
    assert steps_of(copied) == [3, 4, 6]
    names = {name.split("/")[0] for name in finished}
    assert {"run.json", "metrics.jsonl", "samples", "tensorboard", "curves.png"} <= names
    assert ".lock" not in names
    # What a copy of the whole prefix to a disk has is a run folder, too.
    for name, data in finished.items():
        target = tmp_path / "copy" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    newest = newest_step(tmp_path / "copy")
    assert newest is not None
    assert newest.name.startswith("step-00000006-")
    train_at(s3.options, copied, tmp_path / "elsewhere")  # nothing is left to do
    assert checkpoints(s3, copied) == undisturbed


def test_a_run_killed_at_any_request_is_resumed_elsewhere_to_the_same_checkpoints(
    undisturbed: dict[str, bytes], s3: S3, tmp_path: Path
) -> None:
    running = list[BaseProcess]()
    uploads = count()

    def killing(last: int) -> Decide:
        def decide(method: str, path: str) -> str:
            if method == "PUT" and "step-" in path and next(uploads) == last:
                running[0].kill()
            return ""

        return decide

    # At the upload of a file of a step, and at that of its manifest.
    for number, last in enumerate((2, 9)):
        uploads = count()
        out = s3.bucket() / "run"
        with proxy(s3, killing(last)) as before:
            running[:] = [start(train_at, before.options, out, tmp_path / f"killed{number}")]
            assert exit_code(running[0]) == -9
        with paths.storage_options(s3.options):
            seen = steps_of(out)
            assert seen != [3, 4, 6]
            paths.remove(out / ".lock")  # else it is waited for
        cache = tmp_path / (f"killed{number}" if number else "another machine")
        assert train_at(s3.options, out, cache) == 0
        assert checkpoints(s3, out) == undisturbed
        lines = [json.loads(line) for line in s3.objects(out)["metrics.jsonl"].splitlines()]
        assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_faults_between_a_run_and_the_store_change_nothing(
    undisturbed: dict[str, bytes], s3: S3, tmp_path: Path
) -> None:
    faults = ("503", "reset", "lost", "twice")
    with proxy(s3, in_turn(faults, every=3)) as before:
        out = s3.bucket() / "run"
        train_at(before.options, out, tmp_path / "faults")
        assert min(before.counts[fault] for fault in faults) > 3
    assert checkpoints(s3, out) == undisturbed


def test_a_store_that_stops_answering_ends_the_run_and_its_steps_stay(
    undisturbed: dict[str, bytes], s3: S3, tmp_path: Path
) -> None:
    dead = False

    def decide(method: str, path: str) -> str:
        nonlocal dead
        dead = dead or (method == "PUT" and "manifests/step-00000004" in path)
        return "503" if dead else ""

    with proxy(s3, decide) as before:
        out = s3.bucket() / "run"
        with pytest.raises(TransientError, match="manifests/step-00000004"):
            train_at(before.options, out, tmp_path / "dead")
    with paths.storage_options(s3.options):
        assert steps_of(out) == [2, 3]
        paths.remove(out / ".lock")
    train_at(s3.options, out, tmp_path / "dead")
    assert checkpoints(s3, out) == undisturbed


def test_a_process_that_was_taken_over_writes_no_more_checkpoints(
    bucket: ObjectPath, tmp_path: Path
) -> None:
    out = bucket / "run"
    with opened_run(out) as run:
        (run.folder / "run.json").write_text("{}")
        with pytest.raises(LockedError, match="held by"), opened_run(out):
            pass
        paths.write_whole(out / ".lock", b'{"host": "another"}')  # once this one had stopped
        with pytest.raises(LockedError, match="another one has taken over"):
            train(Adder(), Source(batches), run, SETTINGS, on_step=lambda *_: None)
        assert steps_of(out) == []
        paths.write_whole(out / ".lock", run.lease.data if run.lease else b"")


def test_a_step_that_another_process_has_written_otherwise_is_not_replaced(
    bucket: ObjectPath, tmp_path: Path
) -> None:
    out = bucket / "run"
    path = out / "manifests" / "step-00000002.json"
    run = RunFolder(tmp_path / "local", out)

    def on_step(done: int, note: str) -> None:
        if done == 1:
            paths.write_whole(path, b"of another")

    with pytest.raises(StepConflictError, match="another process"):
        train(Adder(), Source(batches), run, SETTINGS, on_step=on_step)
    assert paths.read_whole(path) == b"of another"


def test_a_corrupt_step_is_named_and_not_resumed(
    undisturbed: dict[str, bytes], copied: ObjectPath, s3: S3, tmp_path: Path
) -> None:
    out = copied
    newest = stored_steps(out)[-1]
    paths.write_whole(newest.folder / "train_state.pt", b"torn")
    with pytest.raises(CheckpointError, match="not what was written"):
        train_at(s3.options, out, tmp_path / "another machine")
    paths.remove(newest.manifest)
    train_at(s3.options, out, tmp_path / "another machine")
    assert checkpoints(s3, out) == undisturbed


def test_places_that_hold_other_things_are_refused(bucket: ObjectPath) -> None:
    with pytest.raises(TrainingError, match="whole bucket"), opened_run(bucket):
        pass
    paths.write_whole(bucket / "used" / "x", b"")
    with pytest.raises(TrainingError, match="has other objects"), opened_run(bucket / "used"):
        pass


# --- models


def test_a_copy_of_a_model_is_used_until_its_objects_change(
    bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def put(name: str, data: bytes) -> None:
        paths.write_whole(bucket / "model" / name, data)

    put("config.json", b"{}")
    with pytest.raises(CheckpointError, match="config or weights"):
        local_model(bucket / "model")
    put("model.safetensors", b"weights")
    put("train_state.pt", b"not needed")
    first = local_model(bucket / "model")
    assert {path.name for path in first.iterdir()} == {"config.json", "model.safetensors"}
    assert local_model(bucket / "model") == first
    put("model.safetensors", b"Weights")
    second = local_model(bucket / "model")
    assert (second / "model.safetensors").read_bytes() == b"Weights"
    assert first.exists()
    monkeypatch.setattr("ops.stored_models.MOST_BYTES", 10)
    put("ema.safetensors", b"averages")
    third = local_model(bucket / "model")
    assert (third / "ema.safetensors").read_bytes() == b"averages"
    assert not first.exists()
    with pytest.raises(CheckpointError, match="neither a model folder"):
        local_model(bucket / "none")


def test_a_run_s_model_is_that_of_its_newest_complete_step(
    copied: ObjectPath,
) -> None:
    out = copied
    paths.write_whole(out / "step-00000008-0123456789abcdef" / "model.safetensors", b"partly")
    paths.write_whole(out / "tokenizer" / "config.json", b"{}")
    copy = local_model(out)
    assert copy.name.startswith("step-00000006-")
    assert (copy / "tokenizer" / "config.json").is_file()


def test_a_cache_that_cannot_be_written_is_one_line(
    bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paths.write_whole(bucket / "m" / "config.json", b"{}")
    paths.write_whole(bucket / "m" / "model.safetensors", b"x" * 100)
    monkeypatch.setenv(CACHE_VARIABLE, "/dev/full/cache")
    with pytest.raises(Exception, match=f"environment variable {CACHE_VARIABLE}") as raised:
        local_model(bucket / "m")
    assert "\n" not in str(raised.value)
