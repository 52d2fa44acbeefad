"""The samples that a folder lacks, and how unfinished tasks are reopened.

A task is finished once, when its file of the index exists. When more is asked of it (a larger
count, samples that `--only` left out, crashed ones, a file that is gone), the driver, which holds
the lock, puts what is intact into partial shards and removes that file.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from ops import paths
from ops.paths import AnyPath, ObjectPath, join
from pipelines.generation.code_store import has_codes, stored_codes, take_codes_out
from pipelines.generation.index import (
    GIVEN_UP,
    Part,
    SamplesError,
    part_path,
    read_lines,
    read_made_in,
    sample_name,
)
from pipelines.generation.outputs import codes_in_tar, image_path, tar_path
from pipelines.generation.sample_buffer import (
    Codes,
    SampleBuffer,
    SampleLine,
    codes_hash,
    read_buffer,
)
from pipelines.generation.settings import GenerationRequest
from pipelines.jobs import Piece
from pipelines.store import OK, made_in_of, staging_path, task_of_partial_shard
from pipelines.store import empty_staging as empty_staging_except
from pipelines.store import remove_partials as remove_partials_in

IMAGE_NAME = re.compile(r"sample-(\d+)\.png")


def remove_partials(out: AnyPath) -> None:
    """Remove files that a killed driver or worker left half written."""
    remove_partials_in(out, ("", "_staging/", "tars/"))


def empty_staging(out: AnyPath) -> None:
    """Remove staged files, but keep the partial shards of unfinished tasks."""
    unfinished = {task for task in _begun(out) if not paths.exists(part_path(out, task[1]))}
    empty_staging_except(out, unfinished)


def _begun(out: AnyPath) -> set[tuple[str, int]]:
    """(grid, task) of every task that has a partial shard."""
    found = map(task_of_partial_shard, paths.matching(staging_path(out), "*"))
    return {task for task in found if task is not None}


def _names_in(folder: AnyPath) -> list[str]:
    """The names in a folder; of an object store those of objects alone."""
    if isinstance(folder, ObjectPath):
        return [path.name for path in paths.matching(folder, "*")]
    return os.listdir(folder) if folder.is_dir() else []


class Folder:
    """The samples that a folder has and lacks of those that are asked for."""

    def __init__(
        self, request: GenerationRequest, parts: dict[int, Part], retry_failed: bool
    ) -> None:
        self.request, self.parts, self.retry_failed = request, parts, retry_failed
        # One listing of the folder: a million names take a second, a million stat calls minutes.
        names = _names_in(request.out)
        self.images = {name for name in names if name.endswith(".png")}
        self.tars = set(_names_in(join(request.out, "tars")))
        numbers = (int(found[1]) for name in names if (found := IMAGE_NAME.fullmatch(name)))
        self._images_of = Counter(number // request.samples_per_task for number in numbers)

    def unfinished(self, wanted: range) -> list[Piece[int]]:
        """The tasks that lack any of the samples `wanted`, and the places of those in them."""
        found = []
        for number in range(self.request.num_tasks):
            samples = self.request.samples_of(number)
            first, end = max(samples.start, wanted.start), min(samples.stop, wanted.stop)
            if first < end and not self._has(number, range(first, end)):
                start = samples.start
                found.append(Piece(task=number, first=first - start, end=end - start))
        return found

    def _has(self, number: int, wanted: range) -> bool:
        part, save = self.parts.get(number), self.request.save
        if part is None or ("tars" in save and tar_path(Path(), number).name not in self.tars):
            return False
        if "codes" in save and not has_codes(self.request, number):
            return False
        settled = part.ok + part.crashed * (not self.retry_failed)
        if part.rows == len(self.request.samples_of(number)) == settled and (
            "images" not in save or self._images_of[number] >= part.ok
        ):
            return True
        return all(self._is_done(line) for line in self._lines(number, wanted))

    def _lines(self, number: int, wanted: range) -> list[dict[str, Any]]:
        """The lines of the samples `wanted`; a line with an empty status where there is none."""
        lines = {line["sample"]: line for line in read_lines(self.request.out, number)}
        return [lines.get(sample, {"status": ""}) for sample in wanted]

    def _is_done(self, line: dict[str, Any]) -> bool:
        """Whether nothing is left to do for a sample."""
        if line["status"] in GIVEN_UP:
            return not self.retry_failed
        if line["status"] != OK or "images" not in self.request.save:
            return bool(line["status"] == OK)
        return image_path(Path(), line["sample"]).name in self.images

    # --- reopening tasks

    def reopen(self, piece: Piece[int]) -> None:
        """Keep what is intact of a finished task in a partial shard and remove its index file."""
        request, number = self.request, piece.task
        if number in self.parts:
            buffer = self._salvaged(number)
            buffer.keep(0, len(buffer.samples))
        if "codes" in request.save:
            take_codes_out(request, number)
        path = part_path(request.out, number)
        if paths.exists(path):
            paths.remove(path)
            paths.flush(path.parent)

    def _salvaged(self, number: int) -> SampleBuffer:
        request = self.request
        buffer = SampleBuffer(request, number)
        codes = self._codes(number)
        lines = read_lines(request.out, number)
        made_in = made_in_of(read_made_in(request.out, number), len(lines))
        for line, environments in zip(lines, made_in, strict=True):
            if line["sample"] not in buffer.samples:
                path = part_path(request.out, number)
                raise SamplesError(
                    f"{path} lists sample {line['sample']} of another task. Remove it."
                )
            place = buffer.samples.index(line["sample"])
            buffer.made_in[place] = environments
            found = codes.get(sample_name(line["sample"]))
            if found is not None and (found.shape, found.dtype) != (request.shape, request.dtype):
                found = None
            known = SampleLine(*(line[name] for name in SampleLine._fields))
            if line["status"] == OK and found is not None:
                if codes_hash(found) == line["codes_hash"]:  # its PNG can be decoded again
                    buffer.put(place, known, found)
            elif self._is_done(line) and (line["status"] in GIVEN_UP or not self._needs_codes):
                buffer.put(place, known)
        return buffer

    @property
    def _needs_codes(self) -> bool:
        return "codes" in self.request.save or "tars" in self.request.save

    def _codes(self, number: int) -> dict[str, Codes]:
        """Codes (h, w) of a task's samples by name, from the store or from its tar."""
        request = self.request
        if "codes" in request.save and has_codes(request, number):
            return stored_codes(request, number)
        return codes_in_tar(tar_path(request.out, number)) if "tars" in request.save else {}


def kept_samples(request: GenerationRequest, pieces: list[Piece[int]]) -> int:
    """How many samples of these pieces are kept in partial shards."""
    begun = {number for _, number in _begun(request.out)}
    kept = 0
    for piece in pieces:
        if piece.task in begun:
            rows, _ = read_buffer(request, piece.task).count(piece.first, piece.end)
            kept += rows
    return kept
