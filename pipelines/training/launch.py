"""Launches a training run: on several workers under Ray Train, or in this process."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.paths import AnyPath
from ops.ranks import ALONE, Ranks, ranks_here
from pipelines.console import PLAIN_ERRORS, progress_bar
from pipelines.jobs import WorkerDevices, check_on_every_node
from pipelines.training.loop import OnStep
from pipelines.training.run_folder import RunFolder, TrainingError

#: One process's part of one attempt: opens the data, builds the train task and calls `train`.
Attempt = Callable[[Ranks, OnStep | None], int]
POLL_SECONDS = 0.5  # between two reads of the workers' progress
RAY_FOLDER = ".ray_train"  # in the run folder, which all nodes share: Ray Train's own small files


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """The workers of a run under Ray; with 0 of them, it runs in this process."""

    workers: int = 0
    address: str | None = None
    cpus_per_worker: int = 1
    device: str = "auto"
    restarts: int = 10


def run_attempts(
    run: RunFolder,
    steps: int,
    attempt: Attempt,
    worker_config: WorkerConfig,
    reads: Mapping[str, AnyPath],
) -> int:
    """Train in `run` until `steps` are done; returns how many were taken.

    `attempt` is pickled for the workers and must hold absolute paths; those in `reads`, by flag,
    must exist on every node. The caller holds the run's lock. Raises ConfigError where the cluster
    has not a GPU for each worker that is to have one, the first UserError of any worker,
    TrainingError where workers die more than `restarts` times.
    """
    start = run.steps_done()
    if start >= steps:
        return 0
    if not worker_config.workers:
        return attempt(ALONE, None)
    cpus = worker_config.workers * worker_config.cpus_per_worker
    with WorkerDevices(worker_config.workers, worker_config.address, cpus) as devices:
        devices.connect()
        use_gpu = devices.resolve(worker_config.device) == "cuda"
        if use_gpu:
            devices.require(worker_config.workers)
            devices.check_usable()  # else NCCL would fail first, and less clearly
        check_on_every_node(reads, {"--out": run.place})
        _launch(run, steps, attempt, worker_config, use_gpu)
    return run.steps_done() - start


def _launch(
    run: RunFolder, steps: int, attempt: Attempt, worker_config: WorkerConfig, use_gpu: bool
) -> None:
    """Run `attempt` on every worker, restarting all of them when one dies."""
    import ray

    status: Any = ray.remote(num_cpus=0)(_RunStatus).remote()
    trainer = _make_trainer(run.folder, attempt, worker_config, status, use_gpu)
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failures.append(error)

    # In the main thread, Ray Train would handle Ctrl-C itself. A daemon thread, so that it does
    # not keep the process alive.
    thread = threading.Thread(target=fit, daemon=True, name="ray-train")
    thread.start()
    try:
        _watch(thread, status, run.steps_done(), steps)
        worker_error: BaseException | None = ray.get(status.error.remote())
    finally:
        ray.kill(status)
        shutil.rmtree(run.folder / RAY_FOLDER, ignore_errors=True)
    if worker_error is not None:
        raise worker_error
    for failure in failures:
        if not isinstance(failure, ray.train.WorkerGroupError):
            raise failure
        raise TrainingError(
            f"The workers were started {worker_config.restarts + 1} times and died each time; "
            f"{run.steps_done()} steps are safe in {run.place}. The last time: {failure}"
        ) from failure


def _make_trainer(
    run: Path, attempt: Attempt, worker_config: WorkerConfig, status: Any, use_gpu: bool
) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    return TorchTrainer(
        _run_worker,
        train_loop_config={"attempt": attempt, "status": status},
        # gloo in addition to nccl: metrics and control messages are CPU tensors.
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=worker_config.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": worker_config.cpus_per_worker, "GPU": int(use_gpu)},
        ),
        run_config=RunConfig(
            name="workers",
            storage_path=str(run / RAY_FOLDER),
            failure_config=FailureConfig(max_failures=worker_config.restarts),
        ),
    )


def _run_worker(config: dict[str, Any]) -> None:
    """One worker's attempt, from the newest complete checkpoint on disk.

    Checkpoints and errors bypass Ray Train: it was seen to restart from an older checkpoint than
    the newest, and it would retry after an error of the user's. Such an error is kept in the
    status, and workers that are started later see it and return.
    """
    import ray

    status = config["status"]
    if ray.get(status.error.remote()) is not None:
        return
    try:
        config["attempt"](ranks_here(), lambda done, note: status.update.remote(done, note))
    except PLAIN_ERRORS as error:
        ray.get(status.fail.remote(error))
        raise


def _watch(thread: threading.Thread, status: Any, start: int, steps: int) -> None:
    """Show the workers' progress until `thread` ends."""
    import ray

    with progress_bar("step") as bar:
        task = bar.add_task("train", total=steps, completed=start, note="waiting for the workers")
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            progress = ray.get(status.progress.remote())
            if progress is not None:
                bar.update(task, completed=progress[0], note=progress[1])


class _RunStatus:
    """An actor that holds what workers report to the driver: progress and the first error."""

    def __init__(self) -> None:
        self._progress: tuple[int, str] | None = None
        self._error: BaseException | None = None

    def update(self, done: int, note: str) -> None:
        self._progress = (done, note)

    def progress(self) -> tuple[int, str] | None:
        return self._progress

    def fail(self, error: BaseException) -> None:
        self._error = self._error or error

    def error(self) -> BaseException | None:
        return self._error
