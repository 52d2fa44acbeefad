"""encode_tracks: plans and encodes what a code store lacks, first its images, then further tracks.

The driver holds the store's lock and alone plans. Each track is finished, its staging folder and
checksums too, before the next one begins.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from ops.config import ConfigError
from ops.images import DECODERS, Transform
from ops.paths import AnyPath, ObjectPath, below, list_objects
from pipelines.encoding import check_same, encode_tasks, fitting_batch_size, plan_settings
from pipelines.flags import EncodeFlags
from pipelines.inputs import (
    Fields,
    InputError,
    Listing,
    fixed_path,
    input_state,
    label_lines,
    list_input,
    parse_carry,
)
from pipelines.jobs import WorkerDevices, accepted, check_absolute
from pipelines.planning import (
    ArchiveLists,
    Plan,
    PlannedInput,
    Selection,
    Selector,
    extend_plan,
    grids_of,
    keep_planned_input,
    parse_condition,
    prune_plan,
    read_plan,
    read_planned_input,
)
from pipelines.store import (
    CodeStore,
    StoreError,
    empty_staging,
    forget_missing,
    keep_tokenizer,
    locked,
    num_parts,
    plan_path,
    publish_committed,
    remove_partials,
    write_checksums,
    write_metadata,
)
from pipelines.tracks.annotations import AnnotationTrack
from pipelines.tracks.flags import open_tracks
from pipelines.tracks.plan import check_as_planned, store_attributes
from pipelines.tracks.report import duplicate_lines, first_lines, lacking_lines, noted_lines
from pipelines.tracks.track import Track, check_made_by_encode, waiting_tasks
from tokenizer import VQGAN, load_tokenizer


class EncodeOutcome(NamedTuple):
    """What a run reports."""

    lines: list[str]  # failed and skipped files, rows of further tracks, and a summary
    error: str | None  # set where more than --max-bad failed, or a track's input is gone


def encode_tracks(flags: EncodeFlags, kinds: Mapping[str, type[Track]]) -> EncodeOutcome:
    """Plan the new images of --in and encode what the store's tracks lack.

    `kinds` are the kinds of further tracks by name. Raises UserError for flags or input that
    cannot be used.
    """
    reads = _reads(flags)
    check_absolute({**reads, "--out": flags.out})
    root = flags.out.absolute()
    _check_output(root)
    selection = _selection(flags)
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
        **DECODERS[flags.decoder],
    )
    # What decides what is written is read under the lock: another run may be writing now.
    cpus = flags.workers * (1 if flags.cpus_per_worker == "auto" else flags.cpus_per_worker)
    with locked(root), WorkerDevices(flags.workers, flags.address, cpus) as devices:
        listed = _list_images(root, flags, selection)
        tracks, gone = open_tracks(
            root, reads, tokenizer, flags.track, flags.track_tokenizer, kinds
        )
        remove_partials(root)
        forget_missing(root)
        selector = Selector(root, selection)
        plan = _plan(root, flags, tokenizer, transform, listed, devices, selector)
        listed = listed._replace(listing=None)  # of many images it has gigabytes
        publish_committed(root)
        plans = [track.plan(plan, flags.retry_failed) for track in tracks]
        write_metadata(root, store_attributes(root, plan))
        waiting = waiting_tasks(root, plan)
        if waiting:
            devices.connect()  # not timed: a local Ray takes seconds to start
        started = time.perf_counter()
        encode_tasks(root, flags, plan, waiting, reads, devices)
        seconds = time.perf_counter() - started
        _finish(root)
        track_rows = [_run_track(flags, devices, *each) for each in zip(tracks, plans, strict=True)]
    store = CodeStore.open(root)
    lines = [line for track in tracks for line in first_lines(f"{track.name}: bad line", track.bad)]
    lines += [line for name in store.track_names for line in lacking_lines(store, name)]
    ran = sum(task.num_rows for task in waiting)
    lines += selector.lines()
    lines += _summary(flags, store, ran, sum(track_rows), listed, seconds)
    return EncodeOutcome(lines, "; ".join([*_too_many_failed(flags, store), *gone]) or None)


def _reads(flags: EncodeFlags) -> dict[str, AnyPath]:
    """By flag, a path that must exist for each value of --in, but for those at servers."""
    found = {f"--in {value}" if len(flags.in_) > 1 else "--in": value for value in flags.in_}
    fixed = {flag: fixed_path(value) for flag, value in found.items()}
    return {flag: path for flag, path in fixed.items() if path is not None}


def _selection(flags: EncodeFlags) -> Selection:
    return Selection(
        min_size=flags.min_size,
        max_aspect=flags.max_aspect,
        where=None if flags.where is None else parse_condition(flags.where),
        skip_duplicates=flags.skip_duplicates,
    )


class Listed(NamedTuple):
    """What a run knows of its input."""

    asked: Any  # of which input and how, as JSON; None where it cannot be known again
    found: PlannedInput
    listing: Listing | None  # None where all of it is planned, and nothing has changed since


def _list_images(root: AnyPath, flags: EncodeFlags, selection: Selection) -> Listed:
    fields = Fields(
        image_column=flags.image_column,
        label_column=flags.label_column,
        carry=parse_carry(flags.carry),
    )
    asked = _asked(flags, fields, selection)  # before listing: what changes meanwhile is not missed
    planned = None
    if asked is not None and not (flags.prune or flags.by_content or flags.retry_failed):
        planned = read_planned_input(root, asked, num_parts(plan_path(root, 0).parent))
    if planned is not None:
        return Listed(asked, planned, None)
    listing = list_input(flags.in_, flags.labels_from, fields, ArchiveLists(root))
    if flags.label_column is not None and listing.table["label_name"].null_count == len(
        listing.table
    ):
        raise InputError(f"--label-column {flags.label_column}: no image has a class in it.")
    if flags.prune and listing.unread:
        raise InputError(
            f"--prune: {listing.unread[0]!r} cannot be read now, so its images would count as "
            "removed. Make it readable, or leave --prune out."
        )
    lines = label_lines(listing, flags.labels_from)
    found = PlannedInput(len(listing.table), listing.skipped, listing.unused, lines, {}, 0)
    return Listed(None if listing.unread else asked, found, listing)


def _asked(flags: EncodeFlags, fields: Fields, selection: Selection) -> Any:
    """Which files the input has and what is asked of them, as JSON; None where that says nothing
    about the images."""
    state = input_state(flags.in_, fields)
    if state is None:
        return None
    return [state, flags.labels_from, fields.description, selection.flags]


def _finish(root: AnyPath) -> None:
    empty_staging(root)
    write_checksums(root)


def _run_track(flags: EncodeFlags, devices: WorkerDevices, track: Track, plan: Plan) -> int:
    """Encode the tasks that a further track lacks; returns their number of rows."""
    waiting = waiting_tasks(track.track_dir, plan)
    if isinstance(track, AnnotationTrack):
        for task in waiting:
            track.make(plan, task)
    else:
        encode_tasks(track.track_dir, flags, plan, waiting, track.reads, devices)
    check_as_planned(track.track_dir, waiting)
    _finish(track.track_dir)
    return sum(task.num_rows for task in waiting)


# --- planning


def _check_output(root: AnyPath) -> None:
    if isinstance(root, ObjectPath):
        _check_output_prefix(root)
        return
    if root.exists() and not root.is_dir():
        raise StoreError(f"{root} is a file. Name a folder for --out.")
    ours = (root / "_plan", root / "_staging")
    if root.is_dir() and any(root.iterdir()) and not any(path.is_dir() for path in ours):
        raise StoreError(f"{root} has other files in it. Name an empty or a new folder for --out.")


def _check_output_prefix(root: ObjectPath) -> None:
    if not root.key:
        raise StoreError(f"{root} is a whole bucket. Name a store in it: {root}/codes.zarr.")
    found = [below(each.path, root).split("/")[0] for each in list_objects(root)]
    if found and not {"_plan", "_staging"} & set(found):
        raise StoreError(f"{root} has other objects below it. Name another --out.")


def _plan(
    root: AnyPath,
    flags: EncodeFlags,
    tokenizer: VQGAN,
    transform: Transform,
    listed: Listed,
    devices: WorkerDevices,
    selector: Selector,
) -> Plan:
    """The store's plan extended by the input's new images; makes the store if there is none."""
    older = read_plan(root)
    if older is not None and "generated" in older.settings.track:
        raise StoreError(f"{root} has codes that generate made. Name another --out.")
    if older is not None:
        check_made_by_encode(root, older.settings.track)
    num_rows = listed.found.images * transform.views
    begun = None if older is None else older.settings
    fit = partial(fitting_batch_size, flags, devices, tokenizer.config, transform)
    settings = plan_settings(flags, tokenizer, transform, num_rows, begun, devices, fit)
    if begun is not None:
        check_same(root, begun, settings, accepted(flags.accept, flags.allow_mixed))
    assert tokenizer.folder is not None  # it was loaded from one
    keep_tokenizer(root, tokenizer.folder)
    if older is not None and listed.listing is None:
        selector.counts.update(listed.found.left_out)
        return older
    assert listed.listing is not None  # or it would be of a plan that exists
    plan = extend_plan(
        root,
        listed.listing.table,
        settings,
        transform.views,
        partial(grids_of, transform),
        by_content=flags.by_content,
        retry_failed=flags.retry_failed,
        select=selector.select,
    )
    if flags.prune:
        prune_plan(root, listed.listing.table)
    found = listed.found._replace(left_out=dict(selector.counts), parts=plan.num_parts)
    if listed.asked is not None:
        keep_planned_input(root, listed.asked, found)
    return plan


# --- the report


def _summary(
    flags: EncodeFlags,
    store: CodeStore,
    ran: int,
    track_rows: int,
    listed: Listed,
    seconds: float,
) -> list[str]:
    """The outcome of `ran` rows of images and `track_rows` of further tracks, as lines."""
    failed = store.failed.to_pylist()
    reasons = [(line["key"], f"{line['status']}: {line['error']}") for line in failed]
    counts = f"{len(store)} encoded, {len(failed)} failed, {len(listed.found.skipped)} skipped"
    if ran:
        summary = f"{flags.out}: {counts}, {ran / seconds:.1f} images/s"
    elif track_rows:
        summary = f"{flags.out}: {counts}, {track_rows} rows of further tracks"
    else:
        summary = f"{flags.out}: nothing to do; {counts}"
    return [
        *noted_lines(store),
        *duplicate_lines(store),
        *first_lines("failed", reasons, in_index=True),
        *first_lines("skipped", listed.found.skipped),
        *first_lines("note", listed.found.unused),
        *listed.found.lines,
        summary,
    ]


def _too_many_failed(flags: EncodeFlags, store: CodeStore) -> list[str]:
    num_failed = len(store.failed)
    share = num_failed / max(1, num_failed + len(store))
    if share > flags.max_bad:
        return [f"{share:.0%} failed, more than --max-bad {flags.max_bad}"]
    return []
