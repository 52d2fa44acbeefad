#!/usr/bin/env python3
"""`python -m pipelines.encode`: a folder of images to a code store, resumed or extended when
run again."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch

from ops.config import ConfigError
from ops.files import exclusive_lock
from ops.images import Transform
from pipelines.conditioning import track_kinds
from pipelines.console import progress_bar, run_command
from pipelines.encoding import (
    Done,
    EncodeFlags,
    EncodeWorker,
    Piece,
    check_same,
    plan_settings,
    quarantine,
    split_work,
)
from pipelines.inputs import InputError, Listing, list_input
from pipelines.jobs import check_absolute, cluster_address, ray_running, run_tasks
from pipelines.planning import Plan, Task, extend_plan, grids_of, prune_plan, read_plan
from pipelines.store import (
    CLASS,
    CodeStore,
    StoreError,
    empty_staging,
    forget_missing,
    keep_tokenizer,
    publish_committed,
    remove_partials,
    staging_path,
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
    """Plan what is new, encode what is not in the store, print what came of it; the exit code."""
    check_absolute({"--in": flags.in_, "--out": flags.out})
    root = flags.out.absolute()
    _check_output(root)
    _check_flags(flags)
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
            f"--prune: {listing.unread[0]!r} cannot be read now, so what it holds would count as "
            "removed. Make it readable, or leave --prune out."
        )
    tracks, behind = open_tracks(
        root, flags.in_, tokenizer, flags.track, flags.track_tokenizer, track_kinds()
    )
    with exclusive_lock(staging_path(root) / "driver.lock"):
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
            also_ran = [_run_track(flags, *each) for each in zip(tracks, plans, strict=True)]
    store = CodeStore.open(root)
    for track in tracks:
        _print_list(f"{track.name}: bad line", track.bad)
    _report_tracks(store, behind)
    ran = sum(task.num_rows for task in waiting)
    return _report(flags, store, ran, sum(also_ran), listing, seconds)


def _one_ray(flags: EncodeFlags, needed: bool) -> AbstractContextManager[None]:
    """One Ray for the images and all tracks: a local one takes seconds to start."""
    if not (flags.workers and needed):
        return nullcontext()
    cpus = flags.workers * flags.cpus_per_worker
    return ray_running(cluster_address(flags.address), cpus=cpus)


def _finish(root: Path) -> None:
    empty_staging(root)
    write_checksums(root)


def _run_track(flags: EncodeFlags, track: Track, plan: Plan) -> int:
    """Encode what is not in a further track; how many rows that was."""
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
        raise StoreError(f"{root} holds other things. Name an empty or a new folder for --out.")


def _check_flags(flags: EncodeFlags) -> None:
    if flags.address and not flags.workers:
        raise ConfigError("--address needs --workers: how many actors shall encode there?")
    if flags.labels != "none" and any(track.startswith(f"{CLASS}=") for track in flags.track):
        raise ConfigError(
            f"--labels {flags.labels} gives classes, and so does --track class. Ask "
            "for one of them."
        )
    for name in ("batch_size", "rows_per_task", "threads", "cpus_per_worker"):
        value = getattr(flags, name)
        if value != "auto" and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, found {value}.")


def _plan(
    root: Path, flags: EncodeFlags, tokenizer: VQGAN, transform: Transform, listing: Listing
) -> Plan:
    """The store's plan with the listing's new images in it; the store made if there is none."""
    older = read_plan(root)
    if older is not None and "generated" in older.settings.track:
        raise StoreError(f"{root} holds codes that generate painted. Name another --out.")
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
    """Encode tasks of the store at `root`, or of the track whose books that is."""
    if not tasks:
        return
    track = plan.settings.track
    on_gpu = torch.device(track["device"]).type != "cpu"
    gpus = float(on_gpu) if flags.gpus_per_worker == "auto" else flags.gpus_per_worker
    concurrent_batches = 1 if on_gpu else _concurrent_batches(flags, track["threads"])
    with progress_bar("image") as progress, _threads_restored():
        num_rows = sum(task.num_rows for task in tasks)
        doing = "encoding" if plan.track == "image" else f"encoding {plan.track}"
        bar = progress.add_task(doing, total=num_rows, note="", bad=0)
        finished = shown = Done(0, 0)

        def show(inside: list[Done]) -> None:
            nonlocal shown
            # Never back: what dead workers were inside of is done again, the bar waits for it.
            everything = [finished, *inside]
            shown = Done(
                max(shown.rows, sum(done.rows for done in everything)),
                max(shown.failed, sum(done.failed for done in everything)),
            )
            progress.update(bar, completed=shown.rows, bad=shown.failed)

        def on_result(task: Task | Piece, done: Done) -> None:
            nonlocal finished
            finished = Done(finished.rows + done.rows, finished.failed + done.failed)
            show([])

        work: list[Task | Piece] = [*tasks]
        run_tasks(
            work,
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
            on_progress=show,
        )


def _cpus(flags: EncodeFlags) -> int:
    """What one process may use."""
    return flags.cpus_per_worker if flags.workers else torch.get_num_threads()


def _concurrent_batches(flags: EncodeFlags, threads: int) -> int:
    """Forward passes that run side by side in one process on CPUs."""
    return max(1, _cpus(flags) // threads)


@contextmanager
def _threads_restored() -> Iterator[None]:
    # Encoding threads set their own number, which torch also gives to threads that start later.
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# --- before and after


def _report(
    flags: EncodeFlags,
    store: CodeStore,
    ran: int,
    also_ran: int,
    listing: Listing,
    seconds: float,
) -> int:
    """Say what came of `ran` rows of images and `also_ran` of further tracks; the exit code."""
    failed = store.failed.to_pylist()
    _print_list("failed", [(line["key"], f"{line['status']}: {line['error']}") for line in failed])
    _print_list("skipped", listing.skipped)
    counts = f"{len(store)} encoded, {len(failed)} failed, {len(listing.skipped)} skipped"
    if ran:
        print(f"{flags.out}: {counts}, {ran / seconds:.1f} images/s")
    elif also_ran:
        print(f"{flags.out}: {counts}, {also_ran} rows of further tracks")
    else:
        print(f"{flags.out}: nothing to do; {counts}")
    bad = len(failed) / max(1, len(failed) + len(store))
    if bad > flags.max_bad:
        print(f"error: {bad:.0%} failed, more than --max-bad {flags.max_bad}", file=sys.stderr)
        return 1
    return 0


def _report_tracks(store: CodeStore, behind: list[str]) -> None:
    for name in store.track_names:
        lack = lacking(store, name)
        _print_list(f"{name} lacks", lack.lines)
        print(f"{name}: {lack.rows} rows{lack.summary}")
    for line in behind:
        print(f"note: {line}")


def _print_list(title: str, lines: list[tuple[str, str]]) -> None:
    for key, reason in lines[:LISTED]:
        print(f"{title}: {key!r}: {reason}")
    if len(lines) > LISTED:
        where = ": see the index" if title.split()[-1] in ("failed", "lacks") else ""
        print(f"{title}: {len(lines) - LISTED} more{where}")


if __name__ == "__main__":
    sys.exit(main())
