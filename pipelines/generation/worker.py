"""GenerationWorker: samples codes from a prior, decodes them and writes the files of one task.

Every batch is sampled at its full width, whichever of its samples are missing, and decoded one
image at a time. So a sample does not depend on the number of workers, on which of them made it, or
on kills.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from ops import paths
from ops.config import UserError, to_json
from ops.disk_errors import disk_errors_explained
from ops.files import LockedError, exclusive_lock
from ops.heartbeat import Heartbeat
from ops.paths import AnyPath, ObjectPath
from ops.precision import use_precision
from ops.runtime import (
    compute_repeatably,
    describe_environment,
    keep_freed_memory,
    resolve_device,
)
from pipelines.conditioning import find_tokenizer, make_condition_encoder
from pipelines.exporting import write_tar
from pipelines.generation.code_store import commit_codes
from pipelines.generation.image_writer import ImageWriter
from pipelines.generation.index import (
    GIVEN_UP,
    SAMPLE_SCHEMA,
    commit_part,
    part_path,
    read_lines,
    sample_name,
)
from pipelines.generation.outputs import (
    image_file,
    image_path,
    tar_path,
    tar_sample,
)
from pipelines.generation.preview import Preview
from pipelines.generation.sample_buffer import (
    Codes,
    SampleBuffer,
    SampleLine,
    codes_hash,
    read_buffer,
)
from pipelines.generation.settings import GenerationRequest
from pipelines.jobs import Done, Piece
from pipelines.store import (
    CRASHED,
    OK,
    STALLED,
    environment_text,
    grid_name,
    remove_partial_shards,
    staging_path,
)
from prior import load_prior

MOST_WAITING = 2  # batches whose images are being written while the next one is sampled
BEGUN_AHEAD = 16  # images begun for a tar before they are its next members
CRASHED_LINE = SampleLine(CRASHED, "the process that sampled it died every time")
STALLED_LINE = SampleLine(STALLED, "sampling it never ended")
LACKING_LINE = SampleLine(CRASHED, "the image that it was to be made from was given up")


class SampledBatch(NamedTuple):
    """Codes (h, w) by place, and the hashes that their PNGs will have; None without PNGs."""

    codes: dict[int, Codes]
    checksums: dict[int, Future[str]] | None


class StoppedError(UserError):
    """Raised by run() of a worker after stop()."""


def quarantine(request: GenerationRequest, piece: Piece[int], stalled: bool = False) -> None:
    """Record the remaining sample as `crashed` or `stalled`, so that the next attempt skips it."""
    (place,) = range(piece.first, piece.end)
    with disk_errors_explained(request.out):
        read_buffer(request, piece.task).quarantine(
            place, STALLED_LINE if stalled else CRASHED_LINE
        )


def give_up(request: GenerationRequest, piece: Piece[int], samples: Collection[int]) -> None:
    """Record those of the piece's missing samples that are among `samples` as `crashed`."""
    buffer = read_buffer(request, piece.task)
    for place in buffer.missing(piece.first, piece.end):
        if buffer.samples[place] in samples:
            with disk_errors_explained(request.out):
                buffer.quarantine(place, LACKING_LINE)


class GenerationWorker:
    """Runs pieces of generation tasks, by their numbers; made once a process, it loads the models.

    Every sample of a task is made by `prior.sample`, its codes decoded by the prior's tokenizer.
    """

    def __init__(self, request: GenerationRequest) -> None:
        keep_freed_memory()
        self.request = request
        compute_repeatably()
        device = resolve_device(request.device)
        # With a prior in bfloat16, float32 is left for decoding pixels, of 8 bits: TF32 suffices.
        use_precision("tf32" if request.precision == "bfloat16" else request.precision)
        self.prior = load_prior(request.prior, device)
        self.tokenizer = find_tokenizer(request.prior, self.prior, device)
        self._heartbeat = Heartbeat()
        if device.type == "cpu":  # where decoding a large image takes many minutes
            self._heartbeat.follow(self.tokenizer)
        self._condition_encoder = make_condition_encoder(
            request.condition_inputs, request.prior, self.prior, self.tokenizer, request.size
        )
        self._environment = environment_text(
            {**describe_environment(device), "precision": request.precision}
        )
        self._stopped = False
        self._done = Done(0, 0, 0)  # in the piece that is running
        self._held = ExitStack()
        self._preview = self._make_preview() if request.preview else None
        self._images = ImageWriter(self.tokenizer, request.width, request.height)
        self._waiting: deque[SampledBatch] = deque()

    def _make_preview(self) -> Preview | None:
        """A preview, unless another worker writes one already to the same file."""
        request = self.request
        if isinstance(request.out, ObjectPath):
            return None
        try:
            self._held.enter_context(exclusive_lock(staging_path(request.out) / "preview.lock"))
        except LockedError:
            return None
        return Preview(request.out, self.tokenizer, request.width, request.height)

    def run(self, piece: Piece[int], /) -> Done:
        """Generate the samples of a piece that are missing; running it again changes nothing.

        Raises DiskError where the disk refuses to write, StoppedError after stop().
        """
        torch.set_num_threads(self.request.threads)  # here: the number belongs to each thread
        if paths.exists(part_path(self.request.out, piece.task)):
            return self._committed(piece)  # by an attempt that died before it returned
        buffer = read_buffer(self.request, piece.task, self._environment)
        self._done = Done(0, 0, 0)
        missing = buffer.missing(piece.first, piece.end)
        try:
            for _, batch in groupby(missing, lambda place: place // self.request.batch_size):
                self._sample(buffer, list(batch))
                self._keep_written(buffer, MOST_WAITING)
            self._keep_written(buffer, 0)
            if piece.commits:
                with disk_errors_explained(self.request.out):
                    self._commit(buffer)
        finally:
            self._waiting.clear()
            self._images.cancel()
        done, self._done = self._done, Done(0, 0, 0)
        _, failed = buffer.count(piece.first, piece.end)
        return Done(done.rows + failed, failed, done.codes)

    def progress(self) -> Done:
        """Samples and codes done in the piece that is running."""
        return self._done

    def heartbeat(self) -> int:
        """On a CPU, the tokenizer's layers computed."""
        return self._heartbeat.steps

    def stop(self) -> None:
        """Make run() end soon, with an exception."""
        self._stopped = True
        self._held.close()

    def _committed(self, piece: Piece[int]) -> Done:
        first = self.request.samples_of(piece.task).start
        wanted = range(first + piece.first, first + piece.end)
        lines = read_lines(self.request.out, piece.task)
        statuses = [line["status"] for line in lines if line["sample"] in wanted]
        return Done(len(statuses), sum(map(statuses.count, GIVEN_UP)), 0)

    def _sample(self, buffer: SampleBuffer, places: list[int]) -> None:
        request, before = self.request, self._done
        labels = request.labels
        first = buffer.samples.start

        def on_progress(done: int, total: int) -> None:
            if self._stopped:
                raise StoppedError("the worker was stopped")
            self._done = before._replace(codes=before.codes + done * len(places))

        batch = self._batch(places)
        samples = [first + place for place in batch]
        sampled = self.prior.sample(
            request.rows,
            request.columns,
            samples=samples,
            seed=request.seed,
            labels=[labels[sample % len(labels)] for sample in samples] if labels else None,
            condition_inputs=self._condition_encoder.condition_inputs(samples),
            stride=request.stride,
            batch_size=request.batch_size,
            cache_memory=request.cache_memory,
            precision=request.precision,
            # A prior without windows can resume at any row without being flushed there.
            flush_every_rows=None
            if self.prior.config.default_stride is None
            else request.flush_every_rows,
            forced=self._forced(buffer, places, batch),
            progress=on_progress,
            preview=self._on_codes(buffer, places),
            **to_json(request.sampling),
        )
        found = dict(zip(batch, sampled.numpy().astype(request.dtype), strict=True))
        checksums = None
        if "images" in request.save:
            with disk_errors_explained(request.out):
                checksums = {place: self._draw(first + place, found[place]) for place in places}
        self._waiting.append(SampledBatch({place: found[place] for place in places}, checksums))

    def _keep_written(self, buffer: SampleBuffer, most_waiting: int) -> None:
        """Keep the batches whose images are written, and wait until so many at most are not."""
        while len(self._waiting) > most_waiting:
            batch = self._waiting.popleft()
            with disk_errors_explained(self.request.out):
                for place, codes in batch.codes.items():
                    checksum = batch.checksums[place].result() if batch.checksums else None
                    buffer.put(place, SampleLine(OK, None, codes_hash(codes), checksum), codes)
                    self._done = self._done._replace(rows=self._done.rows + 1)
                buffer.keep(min(batch.codes), max(batch.codes) + 1)

    def _batch(self, places: list[int]) -> list[int]:
        """The places to sample together: the whole batch where parts of the images are known.

        The known parts decide in which order cells are drawn, so the batch must have the known
        parts of all its samples, whether they are asked for or not.
        """
        if not self._condition_encoder.has_known_codes:
            return places
        size = self.request.batch_size
        first = places[0] // size * size
        return list(range(first, first + size))

    def _forced(
        self, buffer: SampleBuffer, places: list[int], batch: list[int]
    ) -> np.ndarray[Any, Any] | None:
        """Codes (N, rows, columns) that are given, -1 elsewhere; None where none are.

        Given are the known parts of the images, and the first rows that all of `places` have kept.
        """
        known = self._condition_encoder.forced([buffer.samples.start + place for place in batch])
        rows = min(map(buffer.finished_rows, places))
        if known is None and not rows:
            return None
        shape = (len(batch), *self.request.shape)
        forced = np.full(shape, -1, np.int64) if known is None else known.numpy()
        if rows:  # any codes will do in samples of the batch that are not asked for
            for number, place in enumerate(batch):
                forced[number, :rows] = buffer.begun[place][:rows] if place in places else 0
        return forced

    def _on_codes(
        self, buffer: SampleBuffer, places: list[int]
    ) -> Callable[[int, torch.Tensor], None]:
        """The sampler's callback: shows one sample in the preview and keeps finished rows."""
        request, flush_every_rows = self.request, self.request.flush_every_rows
        first = buffer.samples.start
        kept = {place: buffer.finished_rows(place) for place in places}

        def on_codes(sample: int, codes: torch.Tensor) -> None:
            place = sample - first
            if self._preview is not None and place == places[0]:
                self._preview(codes)
            if flush_every_rows is None or place not in kept:
                return
            rows = kept[place] + flush_every_rows
            if rows < request.rows and bool((codes[kept[place] : rows] >= 0).all()):
                finished = np.full(request.shape, buffer.fill, request.dtype)
                finished[:rows] = codes[:rows].numpy()
                with disk_errors_explained(request.out):
                    buffer.keep_begun(place, finished)
                kept[place] = rows

        return on_codes

    def _draw(self, sample: int, codes: Codes, folder: AnyPath | None = None) -> Future[str]:
        """Begin to write a sample's PNG, among the samples or elsewhere; see ImageWriter."""
        return self._images.write(image_path(folder or self.request.out, sample), codes)

    # --- the end of a task

    def _commit(self, buffer: SampleBuffer) -> None:
        request, first = self.request, buffer.samples.start
        if "images" in request.save:
            removed = [
                place
                for place in buffer.sampled()
                if not paths.exists(image_path(request.out, first + place))
            ]
            deque(self._redrawn(buffer, removed, request.out), maxlen=0)
        if "tars" in request.save:
            with self._image_folder() as folder, self._tar(buffer) as file:
                write_tar(file, self._tar_samples(buffer, folder))
        if "codes" in request.save and not commit_codes(request, buffer):
            raise RuntimeError(f"another worker has given up samples of task {buffer.task}")
        commit_part(request.out, buffer.task, self._lines(buffer), buffer.environments())
        remove_partial_shards(request.out, grid_name(*request.shape), buffer.task)

    def _tar(self, buffer: SampleBuffer) -> AbstractContextManager[Path]:
        return paths.local_file(tar_path(self.request.out, buffer.task))

    @contextmanager
    def _image_folder(self) -> Iterator[AnyPath]:
        """Where the PNGs of a tar are: among the samples, or made for it alone."""
        out = self.request.out
        if "images" in self.request.save:
            yield out
        elif isinstance(out, ObjectPath):
            with TemporaryDirectory(prefix="smalti-") as folder:
                yield Path(folder)
        else:
            yield staging_path(out)

    def _tar_samples(
        self, buffer: SampleBuffer, folder: AnyPath
    ) -> Iterator[dict[str, str | bytes]]:
        """All samples of the task's tar; PNGs that are not saved are made for it and removed."""
        places: Iterable[int] = buffer.sampled()
        if "images" not in self.request.save:
            places = self._redrawn(buffer, buffer.sampled(), folder)
        for place in places:
            codes, sample = buffer.codes[place], buffer.samples[place]
            image = image_path(folder, sample)
            yield tar_sample(sample_name(sample), image, codes, self._facts(sample))
            if "images" not in self.request.save:
                paths.remove(image)

    def _redrawn(
        self, buffer: SampleBuffer, places: Sequence[int], folder: AnyPath
    ) -> Iterator[int]:
        """The places, each when its PNG is written again and its checksum, which another version
        may change, is in the buffer; some more are begun by then."""
        waiting: deque[tuple[int, Future[str]]] = deque()
        for number, place in enumerate(places, 1):
            waiting.append((place, self._draw(buffer.samples[place], buffer.codes[place], folder)))
            while waiting and (len(waiting) > BEGUN_AHEAD or number == len(places)):
                done, checksum = waiting.popleft()
                line = buffer.lines[done]
                assert line is not None
                buffer.put(done, line._replace(checksum=checksum.result()))
                yield done

    def _facts(self, sample: int) -> dict[str, Any]:
        request = self.request
        facts = {"sample": sample, "seed": request.seed, "label": request.label_of(sample)}
        return facts | {"width": request.width, "height": request.height}

    def _lines(self, buffer: SampleBuffer) -> pa.Table:
        """The task's lines of the index, SAMPLE_SCHEMA."""
        request = self.request
        lines = [
            {
                "sample": sample,
                "seed": request.seed,
                "label": request.label_of(sample),
                "status": line.status,
                "error": line.error,
                "file": image_file(request, buffer.task, sample) if line.status == OK else None,
                "checksum": line.checksum,
                "codes_hash": line.codes_hash,
            }
            for sample, line in zip(buffer.samples, buffer.index_lines(), strict=True)
        ]
        return pa.Table.from_pylist(lines, schema=SAMPLE_SCHEMA)
