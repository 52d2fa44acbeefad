#!/usr/bin/env python3
"""`python -m pipelines.encode`: a folder of images to a code store, resumed or extended when
run again."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch

from ops.config import ConfigError
from ops.files import exclusive_lock
from ops.images import Transform
from ops.runtime import threads_restored
from pipelines.conditioning import track_kinds
from pipelines.console import progress_bar, run_command
from pipelines.encoding import (
    EncodeFlags,
    EncodeWorker,
    check_flags,
    check_same,
    plan_settings,
    quarantine,
)
from pipelines.inputs import InputError, Listing, list_input
from pipelines.jobs import (
    Done,
    JobProgress,
    Piece,
    check_absolute,
    cluster_address,
    ray_running,
    run_tasks,
    split_work,
)
from pipelines.planning import Plan, Task, extend_plan, grids_of, prune_plan, read_plan
from pipelines.store import (
    CodeStore,
    StoreError,
    empty_staging,
    forget_missing,
    keep_tokenizer,
    lock_path,
    publish_committed,
    remove_partials,
    write_checksums,
    write_metadata,
)
from pipelines.tracks import (
    AnnotationTrack,
    Track,
    check_as_planned,
    lacking,
    open_tracks,
    store_attributes,
    waiting_tasks,
)
from tokenizer import VQGAN, load_tokenizer

LISTED = 20  # failed and skipped files named at the end; the index names all that failed


def main(argv: list[str] | None = None) -> int:
    return run_command(EncodeFlags, encode, argv, "pipelines.encode")


def encode(flags: EncodeFlags) -> int:
    """Plan new images, encode what is not in the store, print the outcome; the exit code."""
    check_absolute({"--in": flags.in_, "--out": flags.out})
    root = flags.out.absolute()
    _check_output(root)
    check_flags(flags)
    tokenizer = load_tokenizer(flags.tokenizer)
    if tokenizer.config.modality.kind != "image":
        raise ConfigError(
            f"{flags.tokenizer} is a tokenizer of {tokenizer.modality.noun}, not of photographs. "
            "Name one of those, for instance photo-f8."
        )
    transform = Transform(
        image_size=flags.image_size,
        crop=flags.crop,
        flip=flags.flip,
        seed=flags.seed,
        multiple_of=tokenizer.config.downsample_factor,
    )
    listing = list_input(flags.in_, flags.labels)
    if flags.prune and listing.unread:
        raise InputError(
            f"--prune: {listing.unread[0]!r} cannot be read now, so its images would count as "
            "removed. Make it readable, or leave --prune out."
        )
    tracks, stale = open_tracks(
        root, flags.in_, tokenizer, flags.track, flags.track_tokenizer, track_kinds()
    )
    with exclusive_lock(lock_path(root)):
        remove_partials(root)
        forget_missing(root)
        plan = _plan(root, flags, tokenizer, transform, listing)
        publish_committed(root)
        plans = [track.plan(plan, flags.retry_failed) for track in tracks]
        write_metadata(root, store_attributes(root, plan))
        waiting = waiting_tasks(root, plan)
        with _one_ray(flags, bool(waiting)):
            started = time.perf_counter()
            _run(root, flags, plan, waiting, {"--in": flags.in_})
            seconds = time.perf_counter() - started
            _finish(root)
            track_rows = [_run_track(flags, *each) for each in zip(tracks, plans, strict=True)]
    store = CodeStore.open(root)
    for track in tracks:
        _print_list(f"{track.name}: bad line", track.bad)
    _report_tracks(store, stale)
    ran = sum(task.num_rows for task in waiting)
    return _report(flags, store, ran, sum(track_rows), listing, seconds)


def _one_ray(flags: EncodeFlags, needed: bool) -> AbstractContextManager[None]:
    """Ray for the images and all tracks, started once: a local one takes seconds to start."""
    if not (flags.workers and needed):
        return nullcontext()
    cpus = flags.workers * flags.cpus_per_worker
    return ray_running(cluster_address(flags.address), cpus=cpus)


def _finish(root: Path) -> None:
    empty_staging(root)
    write_checksums(root)


def _run_track(flags: EncodeFlags, track: Track, plan: Plan) -> int:
    """Encode the tasks that a further track lacks; returns their number of rows."""
    waiting = waiting_tasks(track.track_dir, plan)
    if isinstance(track, AnnotationTrack):
        for task in waiting:
            track.make(plan, task)
    else:
        _run(track.track_dir, flags, plan, waiting, track.reads)
    check_as_planned(track.track_dir, waiting)
    _finish(track.track_dir)
    return sum(task.num_rows for task in waiting)


# --- planning


def _check_output(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise StoreError(f"{root} is a file. Name a folder for --out.")
    ours = (root / "_plan", root / "_staging")
    if root.is_dir() and any(root.iterdir()) and not any(path.is_dir() for path in ours):
        raise StoreError(f"{root} has other files in it. Name an empty or a new folder for --out.")


def _plan(
    root: Path, flags: EncodeFlags, tokenizer: VQGAN, transform: Transform, listing: Listing
) -> Plan:
    """The store's plan extended by the listing's new images; makes the store if there is none."""
    older = read_plan(root)
    if older is not None and "generated" in older.settings.track:
        raise StoreError(f"{root} has codes that generate made. Name another --out.")
    num_rows = len(listing.table) * transform.views
    settings = plan_settings(
        flags, tokenizer, transform, num_rows, older.settings if older else None
    )
    if older is not None:
        check_same(root, older.settings, settings)
    assert tokenizer.folder is not None  # it was loaded from one
    keep_tokenizer(root, tokenizer.folder)
    grids = partial(grids_of, transform)
    plan = extend_plan(
        root,
        listing.table,
        settings,
        transform.views,
        grids,
        by_content=flags.by_content,
        retry_failed=flags.retry_failed,
    )
    if flags.prune:
        prune_plan(root, listing.table)
    return plan


# --- running


def _run(
    root: Path, flags: EncodeFlags, plan: Plan, tasks: list[Task], reads: Mapping[str, Path]
) -> None:
    """Encode tasks of the store at `root`, or of the track whose directory that is."""
    if not tasks:
        return
    track = plan.settings.track
    on_gpu = torch.device(track["device"]).type != "cpu"
    gpus = float(on_gpu) if flags.gpus_per_worker == "auto" else flags.gpus_per_worker
    concurrent_batches = 1 if on_gpu else _concurrent_batches(flags, track["threads"])
    with progress_bar("image") as progress, threads_restored():
        num_rows = sum(task.num_rows for task in tasks)
        doing = "encoding" if plan.track == "image" else f"encoding {plan.track}"
        bar = progress.add_task(doing, total=num_rows, note="", bad=0)
        job = JobProgress(lambda done: progress.update(bar, completed=done.rows, bad=done.failed))

        def on_result(piece: Piece[Task], done: Done) -> None:
            job.add(done)

        run_tasks(
            [Piece(task=task, first=0, end=task.num_rows) for task in tasks],
            partial(EncodeWorker, root, concurrent_batches, _cpus(flags) + 1),
            on_result=on_result,
            workers=flags.workers,
            cpus_per_worker=flags.cpus_per_worker,
            gpus_per_worker=gpus,
            address=flags.address,
            overlap=2,
            split=partial(split_work, batch_size=track["batch_size"]),
            give_up=partial(quarantine, root, plan),
            proven=len(tasks) < len(plan.tasks),
            reads=reads,
            writes={"--out": root},
            on_progress=job.update,
        )


def _cpus(flags: EncodeFlags) -> int:
    """CPU cores that one process may use."""
    return flags.cpus_per_worker if flags.workers else torch.get_num_threads()


def _concurrent_batches(flags: EncodeFlags, threads: int) -> int:
    """Forward passes that run in parallel in one process on CPUs."""
    return max(1, _cpus(flags) // threads)


# --- the report


def _report(
    flags: EncodeFlags,
    store: CodeStore,
    ran: int,
    track_rows: int,
    listing: Listing,
    seconds: float,
) -> int:
    """Print the outcome of `ran` rows of images and `track_rows` of other tracks; the exit code."""
    failed = store.failed.to_pylist()
    _print_list("failed", [(line["key"], f"{line['status']}: {line['error']}") for line in failed])
    _print_list("skipped", listing.skipped)
    counts = f"{len(store)} encoded, {len(failed)} failed, {len(listing.skipped)} skipped"
    if ran:
        print(f"{flags.out}: {counts}, {ran / seconds:.1f} images/s")
    elif track_rows:
        print(f"{flags.out}: {counts}, {track_rows} rows of further tracks")
    else:
        print(f"{flags.out}: nothing to do; {counts}")
    bad = len(failed) / max(1, len(failed) + len(store))
    if bad > flags.max_bad:
        print(f"error: {bad:.0%} failed, more than --max-bad {flags.max_bad}", file=sys.stderr)
        return 1
    return 0


def _report_tracks(store: CodeStore, stale_tracks: list[str]) -> None:
    for name in store.track_names:
        lack = lacking(store, name)
        _print_list(f"{name} lacks", lack.lines)
        print(f"{name}: {lack.rows} rows{lack.summary}")
    for line in stale_tracks:
        print(f"note: {line}")


def _print_list(title: str, lines: list[tuple[str, str]]) -> None:
    for key, reason in lines[:LISTED]:
        print(f"{title}: {key!r}: {reason}")
    if len(lines) > LISTED:
        where = ": see the index" if title.split()[-1] in ("failed", "lacks") else ""
        print(f"{title}: {len(lines) - LISTED} more{where}")


if __name__ == "__main__":
    sys.exit(main())
