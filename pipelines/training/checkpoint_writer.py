"""Checkpoints of a run, written in a thread while the next steps are computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ops.checkpoint import step_folder, write_held_out, write_skipped
from ops.disk_errors import disk_errors_explained
from ops.files import atomic_path
from ops.ranks import Ranks
from pipelines.training.run_folder import RunFolder

T = TypeVar("T")
#: Writes a state that no longer changes into a folder; called in a thread, by every process with
#: the ranks of that thread.
WriteState = Callable[[Path, Ranks], None]


def cpu_copies(state: T) -> T:
    """Copies of all tensors in nested containers, on the CPU, which later changes do not reach.

    From a GPU they go to page-locked memory, and this waits for all of them together.
    """
    waited_for = set()

    def copied(tensor: Tensor) -> Tensor:
        if tensor.is_cuda:
            waited_for.add(tensor.device)
        copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        return copy.copy_(tensor.detach(), non_blocking=True)

    copies: T = tree_map_only(Tensor, copied, state)
    for device in waited_for:
        torch.cuda.synchronize(device)
    return copies


class CheckpointWriter:
    """Writes a run's step folders one after the other, each in a thread of every process.

    A folder gets its name when all that is in it has been written and flushed; then it is uploaded,
    where the run lies in an object store. What fails is raised in all processes by the next call of
    `start`, `check` or `wait`.
    """

    def __init__(self, run: RunFolder, ranks: Ranks, keep: int) -> None:
        self.run, self.ranks, self.keep = run, ranks, keep
        self._ranks_of_thread = ranks.for_thread()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None

    def start(
        self,
        write: WriteState,
        step: int,
        held_out: float = math.inf,
        skipped: Sequence[int] = (),
    ) -> None:
        """Begin the checkpoint after `step` steps, once the one before it is complete.

        `held_out` is its held-out loss, if finite, and `skipped` lists the steps left out so far.
        """
        self.wait()
        self._under_way = self._pool.submit(self._write, write, step, held_out, tuple(skipped))

    def check(self) -> None:
        """Raise what made a checkpoint fail, if that is known in any process; a collective."""
        under_way = self._under_way
        failed = under_way is not None and under_way.done() and under_way.exception() is not None
        if self.ranks.any(failed):
            self.wait()

    def wait(self) -> None:
        """Wait until the checkpoint under way is complete, if there is one."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def _write(self, write: WriteState, step: int, held_out: float, skipped: Sequence[int]) -> None:
        ranks = self._ranks_of_thread
        with (
            ranks.errors_shared(),
            disk_errors_explained(self.run.folder),
            ExitStack() as published,
        ):
            partial: Path | None = None
            with ranks.errors_shared():
                if ranks.is_first:
                    folder = step_folder(self.run.folder, step)
                    partial = published.enter_context(atomic_path(folder))
                    partial.mkdir()
            partial = ranks.broadcast(partial)
            assert partial is not None
            with ranks.errors_shared():
                write(partial, ranks)
            if ranks.is_first:
                if math.isfinite(held_out):
                    write_held_out(partial, held_out)
                if skipped:
                    write_skipped(partial, skipped)
                published.close()
                self.run.publish(step, self.keep)

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()  # the checkpoint under way is completed in any case
        if kind is None:
            self.wait()
