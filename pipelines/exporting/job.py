"""export_store: plans what a folder lacks of a store, exports it, and writes the index of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from os import listdir
from typing import Any, NamedTuple

from ops import paths
from ops.config import ConfigError
from ops.disk_errors import disk_errors_explained
from ops.files import exclusive_lock
from ops.paths import AnyPath, ObjectPath, join, write_json_if_changed
from ops.runtime import threads_restored
from pipelines.console import progress_bar
from pipelines.exporting.export_format import ExportFormat
from pipelines.exporting.formats import format_named
from pipelines.exporting.record import (
    FORMAT,
    PARTIALS,
    ShardRecord,
    check_folder,
    export_path,
    forget_shard,
    read_record,
    records_path,
)
from pipelines.exporting.shard_rows import Shard, StoreRows
from pipelines.exporting.worker import ExportWorker
from pipelines.flags import ExportFlags
from pipelines.jobs import Done, WorkerDevices, check_absolute, gpus_of_worker, run_tasks
from pipelines.store import CodeStore, held_lease, remove_partials, row_form


class ExportOutcome(NamedTuple):
    """What a run reports."""

    lines: list[str]


def export_store(flags: ExportFlags) -> ExportOutcome:
    """Export what --out lacks of the store.

    Raises UserError for flags, a store or a folder that cannot be used.
    """
    check_absolute({"STORE": flags.store, "--out": flags.out})
    if flags.address and not flags.workers:
        raise ConfigError("--address needs --workers: the number of actors to start there.")
    out, chosen = flags.out.absolute(), format_named(flags.to)
    cpus = flags.cpus_per_worker or flags.threads
    with WorkerDevices(flags.workers, flags.address, flags.workers * cpus) as devices:
        rows = StoreRows(flags.store.absolute())
        device = devices.resolve(flags.device) if chosen.decodes else "cpu"
        settings = _settings(flags, rows.store, chosen, device)
        check_folder(out, settings)
        with disk_errors_explained(out):
            paths.make_folder(records_path(out))
        with _locked(out):
            shards = rows.shards()
            waiting = _begin(out, rows, shards, settings, keep_files=chosen.in_place)
            _run(flags, flags.store.absolute(), out, waiting, device, cpus)
            records = [record for record in (read_record(out, s) for s in shards) if record]
            if len(records) < len(shards):
                raise ConfigError(
                    f"Workers have exported shards that are not in {out}. Name an --out that every "
                    "machine of the cluster shares."
                )
            _finish(out, rows, chosen, records, settings)
    return ExportOutcome(_outcome(flags, rows.store, shards, len(waiting), records))


@contextmanager
def _locked(out: AnyPath) -> Iterator[None]:
    """Keep other drivers from exporting there, too; LockedError where one does."""
    if isinstance(out, ObjectPath):
        with held_lease(records_path(out) / "driver.lock"):
            yield
    else:
        with exclusive_lock(records_path(out) / "driver.lock"):
            yield


def _names_in(folder: AnyPath) -> list[str]:
    if isinstance(folder, ObjectPath):
        return [path.name for path in paths.matching(folder, "*")]
    return listdir(folder)


def _settings(
    flags: ExportFlags, store: CodeStore, chosen: type[ExportFormat], device: str
) -> dict[str, Any]:
    """What decides the files, apart from the rows."""
    image = store.provenance["image"]
    settings = {
        "format": FORMAT,
        "to": flags.to,
        "fingerprint": image["fingerprint"],
        "rows_per_task": store.rows_per_task,
    }
    if chosen.decodes:
        settings |= {"device": device.partition(":")[0], "threads": flags.threads}
    return settings


def _begin(
    out: AnyPath,
    rows: StoreRows,
    shards: Sequence[Shard],
    settings: dict[str, Any],
    keep_files: bool,
) -> list[Shard]:
    """Prepare the folder; returns the shards that it lacks, or has with other rows."""
    remove_partials(out, PARTIALS)
    waiting = []
    # Listed once: a look-up in a large folder for each shard would take long.
    begun = {
        name.partition(".")[0] for place in (out, records_path(out)) for name in _names_in(place)
    }
    for shard in shards:
        record = read_record(out, shard)
        if record is None or record.digest != rows.digest(rows.lines(shard)):
            if shard.name in begun:  # one that was done before may have had more files
                forget_shard(out, shard, keep_files=keep_files and record is None)
            waiting.append(shard)
    if waiting:  # until all are there, nothing says that they are
        write_json_if_changed(export_path(out), {"settings": settings})
        paths.remove(join(out, "index.json"))
    return waiting


def _run(
    flags: ExportFlags,
    store: AnyPath,
    out: AnyPath,
    waiting: Sequence[Shard],
    device: str,
    cpus: int,
) -> None:
    with progress_bar("shard") as progress, threads_restored():
        bar = progress.add_task("exporting", total=len(waiting), note="", bad=0)
        exported = 0

        def on_result(shard: Shard, done: Done) -> None:
            nonlocal exported
            exported += done.rows
            progress.update(bar, advance=1, note=f"{exported:,} rows")

        run_tasks(
            waiting,
            partial(ExportWorker, store, out, flags.to, device, flags.threads),
            on_result=on_result,
            workers=flags.workers,
            cpus_per_worker=cpus,
            gpus_per_worker=gpus_of_worker("auto", device),
            address=flags.address,
            reads={"STORE": store},
            writes={"--out": out},
        )


def _finish(
    out: AnyPath,
    rows: StoreRows,
    chosen: type[ExportFormat],
    records: Iterable[ShardRecord],
    settings: dict[str, Any],
) -> None:
    """Write the format's index and export.json, which describes all that was exported."""
    store, written = rows.store, [record for record in records if record.rows]
    tracks = {"image": store.provenance["image"]}
    tracks |= {name: track.provenance[name] for name, track in rows.tracks.items()}
    described = {
        "settings": settings,
        "rows": sum(record.rows for record in written),
        "files": [name for record in written for name in record.files if "/" not in name],
        "classes": store.label_names,
        "tracks": {
            name: {**provenance, "dtype": row_form("1x1", provenance).dtype.name}
            for name, provenance in tracks.items()
        },
    }
    with disk_errors_explained(out):
        for name, data in chosen.index([record.index for record in written]).items():
            write_json_if_changed(join(out, name), data)
        write_json_if_changed(export_path(out), described)


def _outcome(
    flags: ExportFlags,
    store: CodeStore,
    shards: Sequence[Shard],
    new: int,
    records: Sequence[ShardRecord],
) -> list[str]:
    exported = sum(record.rows for record in records)
    reasons = Counter(store.failed["status"].to_pylist())
    reasons["replaced or removed"] = len(store.index) - exported - sum(reasons.values())
    left_out = ", ".join(f"{n:,} {why}" for why, n in sorted(reasons.items()) if n)
    done = f"{new} of {len(shards)} shards exported" if new else "nothing left to do"
    return [
        f"{flags.out}: {done}; {exported:,} rows in all"
        + (f", left out {len(store.index) - exported:,}: {left_out}" if left_out else "")
    ]
