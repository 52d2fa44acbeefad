"""The encode command without a tokenizer: codes are noise keyed by image and content.

Planning, committing and recovering are the real ones, so that a run takes milliseconds.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

from ops.config import UserError
from ops.disk import Disk
from ops.images import ImageError
from ops.paths import AnyPath
from pipelines import encode
from pipelines.encoding import job
from pipelines.flags import EncodeFlags
from pipelines.inputs.entries import Listing, ListingBuilder
from pipelines.inputs.reading import Entry, content_hash, read_bytes
from pipelines.jobs.queue import Done, Piece
from pipelines.jobs.run import run_tasks
from pipelines.planning.diff import DUPLICATE
from pipelines.planning.plan import Task, read_plan, task_table
from pipelines.store import INDEX_SCHEMA, commit_task, fill_value, grid_shape
from pipelines.store.shards import row_checksums
from pipelines.tracks import encode_store
from tests.crashes.disk_doubles import installed
from tests.crashes.scenarios import differing
from tests.encode_run import everything
from tokenizer.modalities import ModalityConfig

CODEBOOK_SIZE = 1000
BROKEN = b"broken"
GRIDS = ("2x2", "2x3")


def noise(key: str, content: bytes, view: int, grid: str) -> np.ndarray:
    """The codes (h, w) of one view of an image."""
    digest = hashlib.sha256(b"%d %s %s" % (view, key.encode(), content)).digest()
    random = np.random.default_rng(list(digest))
    return random.integers(0, CODEBOOK_SIZE, grid_shape(grid)).astype("<u2")


def grid_of(key: str) -> str:
    return GRIDS[len(key) % len(GRIDS)]


class NullWorker:
    """Runs a task as EncodeWorker does, but without decoding the image."""

    def __init__(self, root: Path, *_: Any, **__: Any) -> None:
        plan = read_plan(root)
        assert plan is not None
        self.root, self.rows_per_task = root, plan.settings.rows_per_task

    def run(self, piece: Piece[Task]) -> Any:
        task = piece.task
        planned = task_table(self.root, task).to_pylist()
        codes = np.full((len(planned), *grid_shape(task.grid)), fill_value(np.dtype("<u2")), "<u2")
        lines = [self._line(row, codes[place]) for place, row in enumerate(planned)]
        for line, checksum in zip(lines, row_checksums(codes), strict=True):
            line["checksum"] = checksum
        index = pa.Table.from_pylist(lines, INDEX_SCHEMA)
        commit_task(self.root, task.grid, task.number, self.rows_per_task, {"image": codes}, index)
        failed = sum(line["status"] != "ok" for line in lines)
        return Done(len(lines), failed)

    def _line(self, row: dict[str, Any], codes: np.ndarray) -> dict[str, Any]:
        """The index line of a planned row; writes its codes (h, w) into `codes`."""
        names = ("key", "grid", "row", "view", "label", "replaces")
        line = {"status": "ok", "source": row["uri"], **{name: row[name] for name in names}}
        try:
            if row["etag"] == DUPLICATE:
                raise ImageError("duplicate key", "another image has it")
            content = read_bytes(row["uri"], row["offset"], row["size"])
            if content == BROKEN:
                raise ImageError("broken", "this is no image")
        except ImageError as error:
            return {**line, "status": error.reason, "error": str(error)}
        codes[:] = noise(row["key"], content, row["view"], row["grid"])
        return {**line, "content": content_hash(content)}

    def stop(self) -> None:
        pass


def make_tokenizer(folder: Path) -> SimpleNamespace:
    """A stand-in tokenizer with the attributes that the driver uses and two small files."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    config = SimpleNamespace(
        codebook_size=CODEBOOK_SIZE, downsample_factor=4, modality=ModalityConfig()
    )
    return SimpleNamespace(name="null", fingerprint="0" * 16, config=config, folder=folder)


def list_files(files: dict[str, list[Path]]) -> Listing:
    """The listing of keys and their files, in which several files may have the same key."""
    builder = ListingBuilder()
    for key, paths in files.items():
        for path in paths:
            status = path.stat()
            etag = f"{status.st_size}-{status.st_mtime_ns}"
            builder.add(Entry(key, str(path), None, status.st_size, etag, None))
    return builder.listing()


@contextmanager
def null_parts(tokenizer: SimpleNamespace, files: dict[str, list[Path]]) -> Iterator[None]:
    """Make the command use `tokenizer`, NullWorker and `files` as its input.

    Tasks run one after another and names are numbered, so that the same operations reach the disk
    in the same order.
    """

    def grids_of(_: Any, entries: pa.Table) -> pa.Array:
        return pa.array([grid_of(key) for key in entries["key"].to_pylist()], pa.string())

    with (
        mock.patch.multiple(
            encode_store,
            load_tokenizer=lambda _: tokenizer,
            list_input=lambda *_: list_files(files),
            grids_of=grids_of,
        ),
        mock.patch.multiple(job, EncodeWorker=NullWorker, run_tasks=one_at_a_time),
        mock.patch.object(uuid, "uuid4", numbered_uuid),
    ):
        yield


ATTEMPTS = count(1)


def numbered_uuid() -> uuid.UUID:
    return uuid.UUID(int=next(ATTEMPTS) << 96)  # some names take the first digits only


def one_at_a_time(*arguments: Any, **options: Any) -> None:
    run_tasks(*arguments, **{**options, "overlap": 1, "on_progress": None})


def encode_files(
    out: AnyPath, tokenizer: SimpleNamespace, files: dict[str, list[Path]], **flags: Any
) -> int:
    """Run the command in this process: two views an image, three rows a task."""
    asked = {
        "in_": (Path("/nowhere"),),
        "out": out,
        "image_size": 8,
        "flip": "both",
        "batch_size": 1,
        "rows_per_task": 3,
        "device": "cpu",
        "max_bad": 1.0,
        **flags,
    }
    silence = io.StringIO()
    with redirect_stdout(silence), redirect_stderr(silence), null_parts(tokenizer, files):
        return encode.encode(EncodeFlags(**asked))


@dataclass(frozen=True)
class NullScenario:
    """Encoding files on top of the store `base`, or from nothing."""

    tokenizer: SimpleNamespace
    files: dict[str, list[Path]]
    base: Path | None = None
    flags: dict[str, Any] = field(default_factory=dict)
    uninterrupted: dict[str, bytes] = field(default_factory=dict)

    def prepare(self, out: Path) -> Path:
        """Make `out` what it is before the command; returns `out`."""
        if self.base is not None:
            shutil.copytree(self.base, out)
        return out

    def run(self, out: Path) -> int:
        """Run the command on a working disk; its exit code, 2 for errors."""
        with installed(Disk()):
            return self.run_here(out)

    def run_here(self, out: Path) -> int:
        try:
            return encode_files(out, self.tokenizer, self.files, **self.flags)
        except UserError:
            return 2

    def differing(self, out: Path) -> list[str]:
        return differing(out, self.uninterrupted)


def null_scenarios(folder: Path) -> tuple[NullScenario, NullScenario]:
    """Two runs: of four images, then with one added, one changed and one removed."""
    folder.mkdir()
    tokenizer = make_tokenizer(folder / "tokenizer")
    files = {}
    for key in ("a", "bb", "c", "dd", "c later", "e"):
        files[key] = [folder / f"{key}.png"]
        files[key][0].write_bytes(f"the image {key}".encode())
    first = {key: files[key] for key in ("a", "bb", "c", "dd")}
    then = {"a": files["a"], "bb": files["bb"], "c": files["c later"], "e": files["e"]}
    fresh = NullScenario(tokenizer, first)
    assert fresh.run(folder / "fresh.zarr") == 0
    fresh = replace(fresh, uninterrupted=everything(folder / "fresh.zarr"))
    extended = NullScenario(tokenizer, then, folder / "fresh.zarr", {"prune": True})
    assert extended.run(extended.prepare(folder / "extended.zarr")) == 0
    return fresh, replace(extended, uninterrupted=everything(folder / "extended.zarr"))
