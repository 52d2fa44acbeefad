"""What a folder of samples lacks, and how its unfinished tasks are opened again.

A task is finished once: its file of the index stands. When more is asked of it (a larger count,
samples that `--only` left out, those that were given up, a file that is gone), the driver, alone
with the folder, gives what is whole back to the task and takes that file away.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from ops import disk
from ops.files import fsync_path
from pipelines.generation.code_store import has_codes, stored_codes, take_codes_out
from pipelines.generation.index import CRASHED, OK, Part, part_path, read_lines, sample_name
from pipelines.generation.outputs import codes_in_tar, picture_path, tar_path
from pipelines.generation.sample_buffer import (
    Codes,
    Line,
    SampleBuffer,
    codes_hash,
    keep,
    read_buffer,
)
from pipelines.generation.settings import GenerationRequest
from pipelines.generation.worker import GenerationTask
from pipelines.store import staging_path

LOCK = "driver.lock"
PARTIAL_SUFFIX = re.compile(r"\d+x\d+-(\d+)-.*\.partial-shard")
PICTURE = re.compile(r"sample-(\d+)\.png")


def lock_path(out: Path) -> Path:
    return staging_path(out) / LOCK


def remove_partials(out: Path) -> None:
    """Remove what a killed driver, or its workers, left half written."""
    for pattern in ("*.partial", "_staging/*.partial", "_staging/*.png", "tars/*.partial"):
        for path in out.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else disk.disk.unlink(path)


def empty_staging(out: Path) -> None:
    """Remove what dead attempts left, but not samples kept for tasks that are still to be done."""
    for path in staging_path(out).iterdir():
        kept = PARTIAL_SUFFIX.fullmatch(path.name)
        if path.name != LOCK and not (kept and not part_path(out, int(kept[1])).exists()):
            disk.disk.unlink(path)


class Folder:
    """What is there of the samples that are asked for."""

    def __init__(
        self, request: GenerationRequest, parts: dict[int, Part], retry_failed: bool
    ) -> None:
        self.request, self.parts, self.retry_failed = request, parts, retry_failed
        # One look at the folder: a million names are read in a second, a million files in minutes.
        names = os.listdir(request.out)
        self.pictures = {name for name in names if name.endswith(".png")}
        tars = request.out / "tars"
        self.tars = set(os.listdir(tars)) if tars.is_dir() else set()
        numbers = (int(found[1]) for name in names if (found := PICTURE.fullmatch(name)))
        self._pictures_of = Counter(number // request.samples_per_task for number in numbers)

    def unfinished(self, wanted: range) -> list[GenerationTask]:
        """The tasks that lack any of the samples `wanted`."""
        found = []
        for number in range(self.request.num_tasks):
            samples = self.request.samples_of(number)
            first, end = max(samples.start, wanted.start), min(samples.stop, wanted.stop)
            if first < end and not self._has(number, range(first, end)):
                found.append(GenerationTask(number=number, first=first, end=end))
        return found

    def _has(self, number: int, wanted: range) -> bool:
        part, save = self.parts.get(number), self.request.save
        if part is None or ("tars" in save and tar_path(Path(), number).name not in self.tars):
            return False
        if "codes" in save and not has_codes(self.request, number):
            return False
        settled = part.ok + part.crashed * (not self.retry_failed)
        if part.rows == len(self.request.samples_of(number)) == settled and (
            "images" not in save or self._pictures_of[number] >= part.ok
        ):
            return True
        return all(self._is_whole(line) for line in self._lines(number, wanted))

    def _lines(self, number: int, wanted: range) -> list[dict[str, Any]]:
        """The lines of the samples `wanted`; of one that has none, an empty line."""
        lines = {line["sample"]: line for line in read_lines(self.request.out, number)}
        return [lines.get(sample, {"status": ""}) for sample in wanted]

    def _is_whole(self, line: dict[str, Any]) -> bool:
        """Whether nothing is left to do for a sample."""
        if line["status"] == CRASHED:
            return not self.retry_failed
        if line["status"] != OK or "images" not in self.request.save:
            return bool(line["status"] == OK)
        return picture_path(Path(), line["sample"]).name in self.pictures

    # --- opening tasks again

    def reopen(self, task: GenerationTask) -> None:
        """Give what is whole of a finished task back to it, and take its file of the index away."""
        request, number = self.request, task.number
        if number in self.parts:
            buffer = self._salvaged(number)
            keep(request.out, buffer, buffer.samples.start, buffer.samples.stop)
        if "codes" in request.save:
            take_codes_out(request, number)
        path = part_path(request.out, number)
        if path.exists():
            disk.disk.unlink(path)
            fsync_path(path.parent)

    def _salvaged(self, number: int) -> SampleBuffer:
        request = self.request
        samples = request.samples_of(number)
        buffer = SampleBuffer(number, samples, request.shape, request.codebook_size)
        codes = self._codes(number)
        for line in read_lines(request.out, number):
            sample, found = line["sample"], codes.get(sample_name(line["sample"]))
            known = Line(*(line[name] for name in Line._fields))
            if line["status"] == OK and found is not None:
                if codes_hash(found) == line["codes_hash"]:  # a picture can be drawn of them again
                    buffer.put(sample, known, found)
            elif self._is_whole(line) and (line["status"] == CRASHED or not self._needs_codes):
                buffer.put(sample, known)
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


def kept_samples(request: GenerationRequest, tasks: list[GenerationTask]) -> int:
    """How many of the samples that these tasks want are painted and kept already."""
    names = os.listdir(staging_path(request.out))
    begun = {int(found[1]) for name in names if (found := PARTIAL_SUFFIX.fullmatch(name))}
    kept = 0
    for task in tasks:
        if task.number in begun:
            samples = request.samples_of(task.number)
            buffer = read_buffer(
                request.out, task.number, samples, request.shape, request.codebook_size
            )
            kept += task.end - task.first - len(buffer.missing(task.first, task.end))
    return kept
