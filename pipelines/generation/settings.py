"""GenerationRequest, and the settings recorded in a folder of samples for later runs to match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ops.checkpoint import fingerprint
from ops.config import ConfigError, Registry, to_json
from ops.files import json_bytes
from ops.paths import AnyPath, P, exists, join, matching, read_json_at, write_whole
from ops.precision import Precision
from ops.runtime import named_device
from pipelines.conditioning import ConditionFiles
from pipelines.jobs import ACCEPTABLE, differing_environment, how_to_accept, precision_of
from pipelines.store import FORMAT, StoreError, check_format, code_dtype
from prior import Prior
from prior.sampling import SamplingSettings

#: What --save can keep of the samples, with descriptions.
SAVES: Registry[str] = Registry("thing to save")
SAVES.register("images")("a PNG file each")
SAVES.register("codes")("a code store, codes.zarr, whose row k is sample k")
SAVES.register("tars")("WebDataset tars of PNG, codes and facts, one a task")

NUM_TASKS = 256  # about: quick to redo and enough to share among workers
SAMPLES_PER_TASK = 1024  # at most: a tar of a gigabyte with images of a megapixel
MOST = 1 << 50  # samples, or bytes of caches
MOST_TASKS = 1 << 16  # each has a file of the index
LARGE_CANVAS = 1 << 14  # codes; a megapixel where f = 8
MIN_FLUSH_ROWS = 64
#: On a GPU the prior's products are in bfloat16, those of the decoder of pixels in TF32.
GPU_PRECISION: Precision = "bfloat16"
#: Fields of a request that do not decide the content of the folder.
NOT_DECIDING = (
    "prior", "out", "device", "count", "rows", "columns", "codebook_size", "preview",
    "condition_inputs",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """What to generate, as plain values that can be sent to workers."""

    prior: AnyPath  # a run folder or model folder
    out: AnyPath
    width: int  # pixels
    height: int
    rows: int  # of codes, which cover the image
    columns: int
    codebook_size: int
    count: int
    seed: int
    stride: int | None  # None for priors without a window
    batch_size: int
    samples_per_task: int
    save: tuple[str, ...]  # names of SAVES
    labels: tuple[int, ...]  # sample k has labels[k % len]; none: no label
    condition_inputs: tuple[ConditionFiles, ...]
    sampling: SamplingSettings
    cache_memory: int  # bytes
    flush_every_rows: int | None  # rows of codes between two partial shards; None: whole samples
    device: str  # of the workers: "cpu", "cuda" or "cuda:1"
    precision: Precision
    threads: int
    preview: bool

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of codes."""
        return self.rows, self.columns

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of codes as stored."""
        return code_dtype(self.codebook_size)

    @property
    def num_tasks(self) -> int:
        return -(-self.count // self.samples_per_task)

    def samples_of(self, number: int) -> range:
        """The samples of one task."""
        first = number * self.samples_per_task
        return range(first, min(first + self.samples_per_task, self.count))

    def label_of(self, sample: int) -> int | None:
        return self.labels[sample % len(self.labels)] if self.labels else None


def words_of(texts: Sequence[str], known: Sequence[str] = ()) -> tuple[str, ...]:
    """The words of a flag given as `a b` or as `a,b`; words in `known` are not split at commas."""
    words = [[text] if text in known else text.split(",") for text in texts]
    return tuple(word.strip() for group in words for word in group if word.strip())


def saves_of(texts: Sequence[str]) -> tuple[str, ...]:
    """The names of SAVES that a flag asks for, in the order of SAVES; ConfigError for others."""
    asked = set(words_of(texts))
    for name in sorted(asked):
        SAVES[name]
    if not asked:
        raise ConfigError(f"--save names nothing; there are {', '.join(SAVES)}.")
    return tuple(name for name in SAVES if name in asked)


def labels_of(texts: Sequence[str], prior: Prior) -> tuple[int, ...]:
    """The classes that a flag names, by name or number; raises ConfigError for unknown ones."""
    known = [name for part in prior.conditions.parts for name in getattr(part, "label_names", ())]
    return tuple(prior.conditions.label_number(word) for word in words_of(texts, known))


def default_samples_per_task(count: int, batch_size: int) -> int:
    """Samples of a task: whole batches, for about NUM_TASKS tasks."""
    batches = -(-count // (NUM_TASKS * batch_size))
    return batch_size * max(1, min(batches, SAMPLES_PER_TASK // batch_size))


def default_flush_every_rows(rows: int, columns: int, window: int) -> int | None:
    """Rows of a large canvas between two flushes, whole windows; None where it is small.

    Rows are sampled in parallel, each a window behind the one above, so a flush costs about the
    time of columns / window rows: four times as many rows lie between two.
    """
    if rows * columns < LARGE_CANVAS:
        return None
    flush_every_rows = -(-max(MIN_FLUSH_ROWS, 4 * columns // window) // window) * window
    return flush_every_rows if flush_every_rows < rows else None


def deciding_settings(request: GenerationRequest, prior: Prior) -> dict[str, Any]:
    """Everything but the count that decides the content of the folder."""
    settings = {k: v for k, v in to_json(request).items() if k not in NOT_DECIDING}
    return {
        "prior_fingerprint": fingerprint(to_json(prior.config), prior.model.state_dict()),
        "tokenizer_fingerprint": prior.tokenizer_info["fingerprint"],
        **settings.pop("sampling"),
        **settings,
        "condition_inputs": {
            condition_inputs.name: condition_inputs.digest
            for condition_inputs in request.condition_inputs
        }
        or None,
        "device": torch.device(request.device).type,
        "torch": torch.__version__,
    }


def record_path(out: P) -> P:
    return join(out, "generation.json")


def write_record(out: AnyPath, settings: Mapping[str, Any], count: int) -> None:
    """Record the deciding settings of a folder, and its number of samples."""
    record = {"format": FORMAT, **settings, "count": count}
    write_whole(record_path(out), json_bytes(record))


def read_record(out: AnyPath) -> dict[str, Any] | None:
    """The settings that the samples in `out` were made with, or None where there are none.

    Raises StoreError where an older version wrote the folder.
    """
    begun = ("index/*.parquet", "_staging/*.partial-shard", "sample-*.png")
    if not any(any(True for _ in matching(out, pattern)) for pattern in begun):
        return None
    path = record_path(out)
    try:
        record: dict[str, Any] = read_json_at(path, follow=False) if exists(path) else {}
        if not isinstance(record, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}. Restore it from a copy.") from error
    check_format(path, record.get("format"), "generate")
    # What flags that are not given take.
    for name in ("count", "batch_size", "samples_per_task", "cache_memory"):
        value, least = record.get(name, 1), 0 if name == "cache_memory" else 1
        if type(value) is not int or not least <= value <= MOST:
            raise StoreError(f"{path}: its {name} is {value!r}. Restore it from a copy.")
    try:
        named_device(record["device"])
        precision_of(record)
    except (KeyError, TypeError, ConfigError) as error:
        raise StoreError(
            f"{path}: its device or precision cannot be read ({error}). Restore it from a copy."
        ) from error
    return record


def check_record(
    out: AnyPath,
    record: Mapping[str, Any],
    settings: Mapping[str, Any],
    accept: frozenset[str] = frozenset(),
) -> None:
    """Raise ConfigError, naming what differs, unless the samples in `out` have these settings.

    `accept` has names of ACCEPTABLE that may differ.
    """
    differing = {
        name: (repr(record.get(name)), repr(value))
        for name, value in settings.items()
        if name not in ACCEPTABLE and record.get(name) != value
    }
    environment = differing_environment(record, settings, accept)
    if differing or environment:
        found = "; ".join(
            f"{name} was {was}, is {value}"
            for name, (was, value) in {**differing, **environment}.items()
        )
        raise ConfigError(
            f"The samples in {out} were made with other settings: {found}. "
            "Use the same to make the missing ones, or another --out."
            + ("" if differing else f" {how_to_accept([*environment])}")
        )
