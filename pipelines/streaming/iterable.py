"""CodeStream: a code store as an iterable dataset for any training loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from ops.paths import AnyPath, ObjectPath
from ops.ranks import ranks_here
from pipelines.flags import CACHE_BYTES
from pipelines.store import CodeStore, grid_shape
from pipelines.streaming.dataset import CodeBatch, CodeDataset
from pipelines.streaming.sources import DatasetError


class CodeStream(IterableDataset[CodeBatch]):
    """Shuffled batches of the codes in one store or several, epoch after epoch, without end.

    Each image comes once an epoch. The batches are a function of the stores and settings alone:
    the same for any number of loader workers, and on any number of ranks the same global batches
    of `world_size * batch_size` samples. Resuming needs the number of batches taken so far:

        from torch.utils.data import DataLoader
        from pipelines.streaming import CodeStream

        stream = CodeStream("codes.zarr", batch_size=4, seed=0)
        stream.load_state_dict({"batches": 1000})  # resume after 1,000 batches
        loader = DataLoader(stream, batch_size=None, num_workers=2)
        for step, batch in enumerate(loader, start=stream.batches):
            codes, labels = batch["codes"], batch["label"]  # (B, h, w) and (B,), int64
            if step + 1 == 1010:  # train on them; here, stop after ten steps
                break
        state = stream.state_dict(batches=step + 1)  # for JSON or torch.save

    `window` is the side of the square windows that are cut from the grids, by default the largest
    that fits all of them. `batch_size` is one rank's. `rank` and `world_size` default to those of
    torch.distributed where it is initialised, else to one process. Other `settings` are those of
    CodeDataset, which also lists the entries of a batch: held_out_share, weights, every_view,
    tracks and cache_memory. Stores at s3:// and gs:// are read through the cache that
    CodeStore.open describes; give DataLoader's workers multiprocessing_context="forkserver" then.

    Each `iter()` starts at the position that was loaded. Pass `batch_size=None` to DataLoader,
    since these are batches already. Raises DatasetError as CodeDataset does.
    """

    def __init__(
        self,
        stores: str | AnyPath | CodeStore | Sequence[str | AnyPath | CodeStore],
        *,
        batch_size: int,
        window: int | None = None,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        cache_dir: str | Path | None = None,
        cache_bytes: int = CACHE_BYTES,
        **settings: Any,
    ) -> None:
        named = [stores] if isinstance(stores, (str, Path, ObjectPath, CodeStore)) else stores
        opened = [
            s
            if isinstance(s, CodeStore)
            else CodeStore.open(s, cache_dir=cache_dir, cache_bytes=cache_bytes)
            for s in named
        ]
        here = ranks_here()
        self.dataset = CodeDataset(
            opened,
            window=_largest_window(opened) if window is None else window,
            batch_size=batch_size,
            seed=seed,
            rank=here.rank if rank is None else rank,
            world_size=here.world if world_size is None else world_size,
            **settings,
        )
        self._start = 0
        #: Batches taken so far, by this copy of the stream.
        self.batches = 0

    @property
    def steps_per_epoch(self) -> float:
        """Batches in which as many samples pass as there are images to train on."""
        return self.dataset.steps_per_epoch

    def __iter__(self) -> Iterator[CodeBatch]:
        # Worker w of W makes batches w, w + W, ...; the DataLoader takes them from the workers in
        # turn, so they arrive in order.
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        self.batches = self._start
        for batch in self.dataset.batches(self._start + worker, stride=workers):
            self.batches += workers
            yield batch

    def state_dict(self, batches: int | None = None) -> dict[str, Any]:
        """The position after `batches` batches of this rank, and the order: numbers fit for JSON.

        Pass the number that your loop has taken, counted from the start of the run, where the
        DataLoader has workers: they read ahead, in copies of this object. Without workers it
        defaults to what was taken. torchdata's StatefulDataLoader needs neither: it keeps each
        worker's own state.
        """
        return {"batches": self.batches if batches is None else batches, **self.dataset.order}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after `state["batches"]` batches; call it before the DataLoader is iterated.

        The numbers of ranks and of workers may differ from those of the state. Raises DatasetError
        where the state has entries of another order and names them: continuing would repeat some
        samples of the epoch and leave out others.
        """
        differing = [
            f"{name} was {state[name]}, is {now}"
            for name, now in self.dataset.order.items()
            if state.get(name, now) != now
        ]
        if differing:
            raise DatasetError(
                f"The state belongs to a stream with another order: {'; '.join(differing)}. "
                "Use the same stores and settings to resume, or start without the state."
            )
        self._start = self.batches = int(state["batches"])


def _largest_window(stores: Sequence[CodeStore]) -> int:
    """The side of the largest square that every grid of `stores` holds."""
    return min((min(grid_shape(grid)) for store in stores for grid in store.grids), default=1)
