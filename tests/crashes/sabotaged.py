"""Workers whose own process has a bad disk; on Ray, where a test cannot reach into it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ops.disk
from pipelines.encoding.worker import EncodeWorker
from tests.crashes.disk_doubles import FailingDisk, KillingDisk, Step


class WorkerOnAFullDisk(EncodeWorker):
    """Every worker's disk refuses the step named."""

    def __init__(
        self, root: Path, concurrent_batches: int, decoders: int, *, step: Step, error: int
    ) -> None:
        super().__init__(root, concurrent_batches, decoders)
        ops.disk.disk = FailingDisk(root, step, error)


class WorkerThatDies(EncodeWorker):
    """Each worker process takes the next of the steps and dies there; when none is left it lives.

    `taken` is a folder where they note which steps are.
    """

    def __init__(
        self,
        root: Path,
        concurrent_batches: int,
        decoders: int,
        *,
        steps: Sequence[Step],
        taken: Path,
    ) -> None:
        super().__init__(root, concurrent_batches, decoders)
        for number, step in enumerate(steps):
            try:
                (taken / str(number)).touch(exist_ok=False)
            except FileExistsError:
                continue
            ops.disk.disk = KillingDisk(root, step, "after")
            return
