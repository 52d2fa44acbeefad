"""Paints samples with a prior, decodes them and writes them: the work of one generation task.

Every batch is painted at its full width, whichever of its samples are missing, and decoded one
image at a time. So a sample does not depend on how many workers there are, nor on which of them
painted it, nor on what was killed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from ops.config import UserError, to_json
from ops.files import LockedError, exclusive_lock, file_hash
from ops.runtime import keep_freed_memory, resolve_device
from pipelines.conditioning import make_condition_encoder
from pipelines.generation.code_store import commit_codes
from pipelines.generation.index import (
    CRASHED,
    OK,
    SAMPLE_SCHEMA,
    commit_part,
    part_path,
    read_lines,
    sample_name,
)
from pipelines.generation.outputs import (
    holder,
    members_of,
    picture_path,
    tar_path,
    write_picture,
    write_tar,
)
from pipelines.generation.preview import Preview
from pipelines.generation.sample_buffer import (
    Line,
    SampleBuffer,
    codes_hash,
    keep,
    keep_partial,
    read_buffer,
)
from pipelines.generation.settings import GenerationRequest
from pipelines.jobs import halves
from pipelines.store import grid_name, remove_partial_shards, staging_path
from pipelines.training import find_tokenizer
from prior import load_prior

GIVEN_UP = Line(CRASHED, "the process that painted it died, every time")


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationTask:
    """Samples `first` to before `end` of the task of that number: all of them, or some."""

    number: int
    first: int
    end: int
    whole: bool = True  # it ends with the task's files; else with samples that are kept for it


class Done(NamedTuple):
    """What became of some samples."""

    samples: int
    failed: int  # of these
    codes: int  # drawn for them


class StoppedError(UserError):
    """A worker was told to end."""


def split_work(work: GenerationTask, batch_size: int) -> list[GenerationTask]:
    """Two halves: cut between batches, then inside of one; nothing for a single sample."""
    return [
        GenerationTask(number=work.number, first=part.start, end=part.stop, whole=False)
        for part in halves(work.first, work.end, batch_size)
    ]


def buffer_of(request: GenerationRequest, number: int) -> SampleBuffer:
    """A task's samples, with all that earlier attempts have kept."""
    samples = request.samples_of(number)
    return read_buffer(request.out, number, samples, request.shape, request.codebook_size)


def quarantine(request: GenerationRequest, work: GenerationTask) -> None:
    """Put down, for whoever does the task next, that its one sample kills who works on it."""
    assert work.end - work.first == 1, "only what cannot be split is given up"
    buffer = buffer_of(request, work.number)
    buffer.put(work.first, GIVEN_UP)
    keep(request.out, buffer, work.first, work.end)


class GenerationWorker:
    """Holds a prior and its tokenizer; made once a process."""

    def __init__(self, request: GenerationRequest) -> None:
        keep_freed_memory()
        self.request = request
        device = resolve_device(request.device)
        self.prior = load_prior(request.prior, device)
        self.tokenizer = find_tokenizer(request.prior, self.prior, device)
        self._condition_encoder = make_condition_encoder(
            request.condition_inputs, request.prior, self.prior, self.tokenizer, request.size
        )
        self._stopped = False
        self._inside = Done(0, 0, 0)
        self._held = ExitStack()
        self._preview = self._first_preview() if request.preview else None

    def _first_preview(self) -> Preview | None:
        """A preview, unless another worker makes one already: two would overwrite each other."""
        request = self.request
        try:
            self._held.enter_context(exclusive_lock(staging_path(request.out) / "preview.lock"))
        except LockedError:
            return None
        return Preview(request.out, self.tokenizer, request.width, request.height)

    def run(self, work: GenerationTask, /) -> Done:
        """Paint the samples that are missing; whoever runs it again changes nothing."""
        torch.set_num_threads(self.request.threads)  # here: it is each thread's own
        if part_path(self.request.out, work.number).exists():
            return self._committed(work)  # by an attempt that died before it could say so
        buffer = buffer_of(self.request, work.number)
        self._inside = Done(0, 0, 0)
        for batch in self._batches(buffer, work):
            self._sample(buffer, batch)
            keep(self.request.out, buffer, batch[0], batch[-1] + 1)
        if work.whole:
            self._commit(buffer)
        done, self._inside = self._inside, Done(0, 0, 0)
        failed = sum(buffer.line(s).status == CRASHED for s in range(work.first, work.end))
        return Done(done.samples + failed, failed, done.codes)

    def progress(self) -> Done:
        """What has been painted of the work that this worker is inside of."""
        return self._inside

    def stop(self) -> None:
        """Make run() end soon, with an exception."""
        self._stopped = True
        self._held.close()

    def _committed(self, work: GenerationTask) -> Done:
        lines = read_lines(self.request.out, work.number)
        statuses = [line["status"] for line in lines if work.first <= line["sample"] < work.end]
        return Done(len(statuses), statuses.count(CRASHED), 0)

    def _batches(self, buffer: SampleBuffer, work: GenerationTask) -> Iterator[list[int]]:
        missing = buffer.missing(work.first, work.end)
        for _, batch in groupby(missing, lambda sample: sample // self.request.batch_size):
            yield list(batch)

    def _sample(self, buffer: SampleBuffer, samples: list[int]) -> None:
        request, before = self.request, self._inside
        labels = request.labels

        def on_progress(done: int, total: int) -> None:
            if self._stopped:
                raise StoppedError("told to end")
            self._inside = before._replace(codes=before.codes + done * len(samples))

        together = self._together(samples)
        sampled = self.prior.sample(
            request.rows,
            request.columns,
            samples=together,
            seed=request.seed,
            labels=[labels[sample % len(labels)] for sample in together] if labels else None,
            condition_inputs=self._condition_encoder.condition_inputs(together),
            stride=request.stride,
            batch_size=request.batch_size,
            cache_memory=request.cache_memory,
            # A prior without windows goes on from any row: it need not rest for it.
            flush_every_rows=None
            if self.prior.config.default_stride is None
            else request.flush_every_rows,
            forced=self._forced(buffer, samples, together),
            progress=on_progress,
            preview=self._look_on(buffer, samples),
            **to_json(request.sampling),
        )
        found = dict(zip(together, sampled.numpy().astype(request.dtype), strict=True))
        for sample in samples:
            codes = found[sample]
            checksum = self._draw(sample, codes) if "images" in request.save else None
            buffer.put(sample, Line(OK, None, codes_hash(codes), checksum), codes)
            self._inside = self._inside._replace(samples=self._inside.samples + 1)

    def _together(self, samples: list[int]) -> list[int]:
        """Whom to paint for the sake of `samples`: the whole batch where pictures have known parts.

        What is known decides in which order cells are drawn, so every sample's mates are to have
        their own, asked for or not.
        """
        if not self._condition_encoder.has_known_codes:
            return samples
        size = self.request.batch_size
        first = samples[0] // size * size
        return list(range(first, first + size))

    def _forced(
        self, buffer: SampleBuffer, samples: list[int], together: list[int]
    ) -> np.ndarray[Any, Any] | None:
        """Codes (N, rows, columns) that stay: what the pictures told, and the first rows that all
        have kept; else -1. None where there are none."""
        known = self._condition_encoder.forced(together)
        rows = min(map(buffer.finished_rows, samples))
        if known is None and not rows:
            return None
        shape = (len(together), *self.request.shape)
        forced = np.full(shape, -1, np.int64) if known is None else known.numpy()
        if rows:  # mates that nobody asked for have anything there
            for place, sample in enumerate(together):
                forced[place, :rows] = buffer.partial[sample][:rows] if sample in samples else 0
        return forced

    def _look_on(
        self, buffer: SampleBuffer, samples: list[int]
    ) -> Callable[[int, torch.Tensor], None]:
        """What is done while samples are painted: one is previewed, finished rows are kept."""
        request, flush_every_rows = self.request, self.request.flush_every_rows
        kept = {sample: buffer.finished_rows(sample) for sample in samples}

        def look(sample: int, codes: torch.Tensor) -> None:
            if self._preview is not None and sample == samples[0]:
                self._preview(codes)
            if flush_every_rows is None or sample not in kept:
                return
            rows = kept[sample] + flush_every_rows
            if rows < request.rows and bool((codes[kept[sample] : rows] >= 0).all()):
                finished = np.full(request.shape, buffer.fill, request.dtype)
                finished[:rows] = codes[:rows].numpy()
                keep_partial(request.out, buffer, sample, finished)
                kept[sample] = rows

        return look

    def _draw(self, sample: int, codes: np.ndarray[Any, Any], folder: Path | None = None) -> str:
        """Write a sample's PNG, among the samples or in another folder; its hash."""
        path = picture_path(folder or self.request.out, sample)
        write_picture(path, self.tokenizer, codes, self.request.width, self.request.height)
        return file_hash(path)

    # --- the end of a task

    def _commit(self, buffer: SampleBuffer) -> None:
        request = self.request
        if "images" in request.save:
            for sample in buffer.sampled():
                if not picture_path(request.out, sample).exists():  # taken away since it was kept
                    self._draw(sample, buffer.codes_of(sample))
        if "tars" in request.save:
            write_tar(tar_path(request.out, buffer.number), self._members(buffer))
        if "codes" in request.save:
            contents = [line.checksum for line in buffer.lines]
            if not commit_codes(request, buffer, contents):
                raise RuntimeError(f"another worker has given up what this one painted: {buffer}")
        commit_part(request.out, buffer.number, self._lines(buffer))
        remove_partial_shards(request.out, grid_name(*request.shape), buffer.number)

    def _members(self, buffer: SampleBuffer) -> Iterator[tuple[str, bytes | Path]]:
        """All members of the task's tar; a PNG that nobody keeps is made for it and removed."""
        for sample in buffer.sampled():
            codes, name = buffer.codes_of(sample), sample_name(sample)
            folder = self.request.out
            if "images" not in self.request.save:
                folder = staging_path(folder)
                checksum = self._draw(sample, codes, folder)
                buffer.put(sample, buffer.line(sample)._replace(checksum=checksum))
            picture = picture_path(folder, sample)
            yield from members_of(name, picture, codes, self._facts(sample))
            if "images" not in self.request.save:
                picture.unlink()

    def _facts(self, sample: int) -> dict[str, Any]:
        request = self.request
        facts = {"sample": sample, "seed": request.seed, "label": request.label_of(sample)}
        return facts | {"width": request.width, "height": request.height}

    def _lines(self, buffer: SampleBuffer) -> pa.Table:
        """The task's lines of the index."""
        request = self.request
        lines = [
            {
                "sample": sample,
                "seed": request.seed,
                "label": request.label_of(sample),
                "status": line.status,
                "error": line.error,
                "file": holder(request, buffer.number, sample) if line.status == OK else None,
                "checksum": line.checksum,
                "codes_hash": line.codes_hash,
            }
            for sample, line in zip(buffer.samples, buffer.lines, strict=True)
        ]
        return pa.Table.from_pylist(lines, schema=SAMPLE_SCHEMA)
