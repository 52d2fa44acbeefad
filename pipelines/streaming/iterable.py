"""Training batches as an iterable that remembers where it is, for torch's loaders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from pipelines.streaming.dataset import CodeBatch, CodeDataset
from pipelines.streaming.sources import DatasetError


class CodeStream(IterableDataset[CodeBatch]):
    """The batches of `dataset` from step `step` on, without end.

    In a DataLoader (with batch_size=None: these are batches already) each worker makes steps of
    its own, and the loader hands them out in order. `state_dict` says where the stream stands:
    after the last batch that was taken. With loader workers the main process takes batches that
    others made ahead, so there the trainer sets `step` to the steps it has done.
    """

    def __init__(self, dataset: CodeDataset, step: int = 0) -> None:
        self.dataset, self.step = dataset, step

    def __iter__(self) -> Iterator[CodeBatch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for batch in self.dataset.batches(self.step + worker, workers):
            self.step += workers
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The next step, and what decides the order: whole numbers, fit for JSON."""
        return {"step": self.step, **self.dataset.order}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was; the number of ranks may be another.

        Raises DatasetError where the order is another one, naming what differs: samples would come
        twice in an epoch, others not at all.
        """
        differing = [
            f"{name} was {state.get(name)}, is {now}"
            for name, now in self.dataset.order.items()
            if state.get(name) != now
        ]
        if differing:
            raise DatasetError(
                f"The stream's state belongs to another order: {'; '.join(differing)}. "
                "Use the same stores and settings to go on, or start anew without the state."
            )
        self.step = int(state["step"])
