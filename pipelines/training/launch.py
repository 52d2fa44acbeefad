"""A training run on several processes under Ray Train, or in this process alone."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.checkpoint import newest_step, step_of
from ops.files import exclusive_lock
from ops.ranks import ALONE, Ranks, ranks_here
from pipelines.console import PLAIN_ERRORS, progress_bar
from pipelines.jobs import check_on_every_node, cluster_address, ray_running
from pipelines.training.loop import OnStep, TrainingError

#: One process's part of a run: opens the data, builds the trainee and calls `train`.
Attempt = Callable[[Ranks, OnStep | None], int]
LOOK_SECONDS = 0.5  # between two looks at the board
RAY_FOLDER = ".ray_train"  # Ray Train's own small files, inside the run folder: all nodes see it


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """The processes of a run under Ray; without workers there is this one alone."""

    workers: int = 0
    address: str | None = None
    cpus_per_worker: int = 1
    device: str = "auto"
    restarts: int = 10


def run_attempts(
    run: Path, steps: int, attempt: Attempt, worker_config: WorkerConfig, reads: Mapping[str, Path]
) -> int:
    """Train in the run folder `run` until `steps` are done; returns how many were taken.

    `sitting` is sent to workers by pickle and must name absolute paths; those in `reads`, by flag,
    must be there on every node. Raises LockedError where another process trains in `run`, the
    first UserError of any worker, TrainingError where they die too often.
    """
    with exclusive_lock(run / ".lock"):
        start = _steps_done(run)
        if start >= steps:
            return 0
        if not worker_config.workers:
            return attempt(ALONE, None)
        address = cluster_address(worker_config.address)
        with ray_running(address, cpus=worker_config.workers * worker_config.cpus_per_worker):
            check_on_every_node(reads, {"--out": run})
            _launch(run, steps, attempt, worker_config)
        return _steps_done(run) - start


def _steps_done(run: Path) -> int:
    newest = newest_step(run)
    return step_of(newest) if newest else 0


def _launch(run: Path, steps: int, attempt: Attempt, worker_config: WorkerConfig) -> None:
    """Run the sitting on every worker to its end, starting all again where one dies."""
    import ray

    board: Any = ray.remote(num_cpus=0)(_Board).remote()
    trainer = _make_trainer(run, attempt, worker_config, board)
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failures.append(error)

    # In a thread of its own: in the main one Ray Train would take Ctrl-C for itself. A daemon,
    # since nothing needs it once we leave.
    thread = threading.Thread(target=fit, daemon=True, name="ray-train")
    thread.start()
    try:
        _watch(thread, board, _steps_done(run), steps)
        worker_error: BaseException | None = ray.get(board.error.remote())
    finally:
        ray.kill(board)
        shutil.rmtree(run / RAY_FOLDER, ignore_errors=True)
    if worker_error is not None:
        raise worker_error
    for failure in failures:
        if not isinstance(failure, ray.train.WorkerGroupError):
            raise failure
        raise TrainingError(
            f"The workers were started {worker_config.restarts + 1} times and died each time; "
            f"{_steps_done(run)} steps are safe in {run}. The last time: {failure}"
        ) from failure


def _make_trainer(run: Path, attempt: Attempt, worker_config: WorkerConfig, board: Any) -> Any:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpus = ray.cluster_resources().get("GPU", 0)
    use_gpu = worker_config.device.startswith("cuda") or (
        worker_config.device == "auto" and gpus >= worker_config.workers
    )
    return TorchTrainer(
        _work,
        train_loop_config={"attempt": attempt, "board": board},
        # gloo beside nccl: figures and messages between the processes are in the CPU's memory.
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


def _work(config: dict[str, Any]) -> None:
    """What each worker does: its sitting, from the newest whole checkpoint on disk.

    Nothing is reported to Ray Train: it was seen to restart from an older checkpoint than the
    newest one there is, and it would try again after an error that trying does not mend. So such
    an error is left on the board, where a new group finds it and goes home.
    """
    import ray

    board = config["board"]
    if ray.get(board.error.remote()) is not None:
        return
    try:
        config["attempt"](ranks_here(), lambda done, note: board.show.remote(done, note))
    except PLAIN_ERRORS as error:
        ray.get(board.fail.remote(error))
        raise


def _watch(thread: threading.Thread, board: Any, start: int, steps: int) -> None:
    """Show how far the workers are until `thread` ends."""
    import ray

    with progress_bar("step") as bar:
        task = bar.add_task("train", total=steps, completed=start, note="waiting for the workers")
        while thread.is_alive():
            thread.join(LOOK_SECONDS)
            progress = ray.get(board.progress.remote())
            if progress is not None:
                bar.update(task, completed=progress[0], note=progress[1])


class _Board:
    """An actor where workers leave word for the driver: (steps done, note), and what is wrong."""

    def __init__(self) -> None:
        self._progress: tuple[int, str] | None = None
        self._error: BaseException | None = None

    def show(self, done: int, note: str) -> None:
        self._progress = (done, note)

    def progress(self) -> tuple[int, str] | None:
        return self._progress

    def fail(self, error: BaseException) -> None:
        self._error = self._error or error

    def error(self) -> BaseException | None:
        return self._error
