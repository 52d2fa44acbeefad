"""Workers that install a failing disk in their own process, for tests on Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import ops.disk
from pipelines.encoding.worker import EncodeWorker
from tests.crashes.disk_doubles import FailingDisk, KillingDisk, Step


class WorkerOnAFullDisk(EncodeWorker):
    """A worker whose disk fails at a step."""

    def __init__(
        self,
        root: Path,
        concurrent_batches: int,
        decoders: int,
        environment: Mapping[str, str],
        *,
        step: Step,
        error: int,
    ) -> None:
        super().__init__(root, concurrent_batches, decoders, environment)
        ops.disk.disk = FailingDisk(root, step, error)


class WorkerThatDies(EncodeWorker):
    """Each worker process takes the next of the steps and dies there; later processes do not die.

    `taken` is a folder in which they mark the steps taken.
    """

    def __init__(
        self,
        root: Path,
        concurrent_batches: int,
        decoders: int,
        environment: Mapping[str, str],
        *,
        steps: Sequence[Step],
        taken: Path,
    ) -> None:
        super().__init__(root, concurrent_batches, decoders, environment)
        for number, step in enumerate(steps):
            try:
                (taken / str(number)).touch(exist_ok=False)
            except FileExistsError:
                continue
            ops.disk.disk = KillingDisk(root, step, "after")
            return
