"""Quality of a code store: usage of codes, drift, duplicates, flat images, classes, tracks."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.config import UserError
from pipelines.console import progress_bar
from pipelines.evaluation.code_drift import Drift
from pipelines.evaluation.code_usage import add_code_usage, usage_of
from pipelines.evaluation.duplicate_rows import Signatures, add_duplicates
from pipelines.evaluation.measurements import Measurements
from pipelines.evaluation.spot_decodes import write_spot_decodes
from pipelines.evaluation.store_rows import (
    Ints,
    RowBatch,
    RowLines,
    row_batches,
    shard_sizes,
)
from pipelines.flags import EvaluateFlags
from pipelines.store import CodeStore

FLAT_BITS = 1.0  # entropy, in bits a code, of an image's codes below which it is flat
RAREST = 16  # rows that are listed and decoded
LABEL_BYTES = 256 << 20  # of counts by label


def evaluate_store(flags: EvaluateFlags) -> Measurements:
    """Measure a store in two passes; memory is that of its index, of counts and 64 bytes a row.

    The first counts codes by shard and label, flat images and signatures of duplicates. The second
    finds the rows whose codes are the rarest.
    """
    store = CodeStore.open(flags.model)
    if not len(store):
        raise UserError(f"{flags.model} has no row to measure on. Encode images first.")
    size = int(store.provenance[store.name]["codebook_size"])
    measured = Measurements(flags.seed)
    measured.facts = {"rows": len(store), "failed_rows": len(store.failed), "codebook_size": size}
    lines = RowLines(store)
    usage = UsageBy(store.label_names, size)
    drift = Drift(shard_sizes(store), size, flags.seed)
    signatures, flat = Signatures(flags.seed), 0
    with progress_bar("row") as bar:
        task = bar.add_task("counting codes", total=2 * len(store), note="")
        for batch in row_batches(store):
            usage.update(batch)
            drift.update(batch)
            signatures.update(batch)
            flat += int((row_entropies(batch.codes) < FLAT_BITS).sum())
            bar.advance(task, len(batch.rows))
        rarest = RarestRows(usage.counts)
        for batch in row_batches(store):
            rarest.update(batch)
            bar.advance(task, len(batch.rows))
    usage.add_to(measured)
    drift.add_to(measured)
    add_duplicates(measured, lines, signatures)
    measured.add("flat_images", flat / len(store), "share", len(store))
    measured.facts["flat_images_bits"] = FLAT_BITS
    _add_tracks(measured, store)
    found = rarest.rows()
    measured.facts["rarest_rows"] = [
        {"key": lines.key(position), "bits_per_code": bits} for bits, position in found
    ]
    if flags.spot_decodes is not None:
        write_spot_decodes(flags.spot_decodes, store, lines, [position for _, position in found])
    return measured


class UsageBy:
    """How often each code occurs: in all rows, in each shard, in the rows of each label."""

    def __init__(self, label_names: list[str], codebook_size: int) -> None:
        self.counts = np.zeros(codebook_size, np.int64)
        self._label_names = label_names
        fits = len(label_names) * codebook_size * self.counts.itemsize <= LABEL_BYTES
        self._by_label = np.zeros((len(label_names) if fits else 0, codebook_size), np.int64)
        self._rows_of_labels = np.zeros(len(label_names) + 1, np.int64)  # the last without one
        self._shards: list[dict[str, Any]] = []
        self._shard: tuple[str, int] | None = None
        self._of_shard = np.zeros_like(self.counts)
        self._rows_of_shard = 0

    def update(self, batch: RowBatch) -> None:
        """Count the codes of a batch."""
        if self._shard != (batch.grid, batch.task):
            self._end_shard()
            self._shard = (batch.grid, batch.task)
        size = len(self.counts)
        counts = np.bincount(batch.codes.ravel(), minlength=size)
        self.counts += counts
        self._of_shard += counts
        self._rows_of_shard += len(batch.rows)
        for label in np.unique(batch.labels):
            of_label = batch.labels == label
            self._rows_of_labels[label] += of_label.sum()
            if 0 <= label < len(self._by_label):
                self._by_label[label] += np.bincount(batch.codes[of_label].ravel(), minlength=size)

    def add_to(self, measured: Measurements) -> None:
        """Add the usage of all rows as metrics, that of shards and labels as facts."""
        self._end_shard()
        add_code_usage(measured, self.counts)
        measured.facts["shards"] = self._shards
        measured.facts["classes"] = [
            {
                "class": name,
                "rows": int(self._rows_of_labels[label]),
                **(_usage_json(self._by_label[label]) if len(self._by_label) else {}),
            }
            for label, name in enumerate(self._label_names)
        ]
        measured.facts["rows_without_class"] = int(self._rows_of_labels[-1])
        if self._label_names and not len(self._by_label):
            reason = (
                f"counts of {len(self._label_names)} classes take more than {LABEL_BYTES} bytes"
            )
            measured.lack(["entropy_of_classes"], reason)

    def _end_shard(self) -> None:
        if self._shard is None:
            return
        grid, task = self._shard
        described = {"grid": grid, "shard": task, "rows": self._rows_of_shard}
        self._shards.append({**described, **_usage_json(self._of_shard)})
        self._of_shard[:] = 0
        self._rows_of_shard = 0


class RarestRows:
    """The RAREST rows by the mean information of their codes, in bits, under `counts` (K,)."""

    def __init__(self, counts: Ints) -> None:
        shares = counts / counts.sum()
        self._bits = -np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
        self._found: list[tuple[float, int]] = []  # a heap: bits a code, and minus the position

    def update(self, batch: RowBatch) -> None:
        """Take the rows of a batch."""
        means = self._bits[batch.codes].mean(axis=1)
        for place in np.argsort(-means, kind="stable")[:RAREST]:
            found = (float(means[place]), -(batch.first + int(place)))
            if len(self._found) < RAREST:
                heapq.heappush(self._found, found)
            else:
                heapq.heappushpop(self._found, found)

    def rows(self) -> list[tuple[float, int]]:
        """(bits a code, position) of the rows, the rarest first, the earlier of equals first."""
        return [(bits, -position) for bits, position in sorted(self._found, reverse=True)]


def row_entropies(codes: Ints) -> NDArray[np.float64]:
    """The entropy, in bits, of the codes (n, cells) of each row: (n,)."""
    count, cells = codes.shape
    ordered = np.sort(codes, axis=1)
    starts = np.ones(ordered.shape, np.bool_)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    places = np.flatnonzero(starts)
    shares = np.diff(places, append=ordered.size) / cells
    entropies = np.bincount(places // cells, -shares * np.log2(shares), minlength=count)
    return entropies.astype(np.float64)


def _usage_json(counts: Ints) -> dict[str, float]:
    usage = usage_of(counts)
    return {"codes_used": usage.used, "perplexity": usage.perplexity, "entropy": usage.bits}


def _add_tracks(measured: Measurements, store: CodeStore) -> None:
    """Add the share of rows that each further track has."""
    for name in store.track_names:
        track = store.track(name)
        covered = sum(
            int(np.isin(store.ok_rows(grid), track.ok_rows(grid)).sum())
            for grid in store.grids
            if grid in track.grids
        )
        measured.add(f"coverage_{name}", covered / len(store), "share", len(store))
