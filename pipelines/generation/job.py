"""generate_samples: plans what a folder of samples lacks, makes it, and finishes the folder."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from ops import paths
from ops.config import ConfigError
from ops.runtime import threads_restored
from pipelines.conditioning import (
    ConditionEncoder,
    ConditionFiles,
    find_tokenizer,
    gives_known_codes,
    make_condition_encoder,
)
from pipelines.console import progress_bar
from pipelines.flags import GenerateFlags, stall_seconds
from pipelines.generation.code_store import finish_store, prepare_store
from pipelines.generation.contact_sheet import remove_grids, write_grids
from pipelines.generation.flags import check_flags, make_request
from pipelines.generation.index import failed_lines, part_path, read_parts, sample_name
from pipelines.generation.preview import preview_path
from pipelines.generation.resume import Folder, empty_staging, kept_samples, remove_partials
from pipelines.generation.settings import (
    GenerationRequest,
    check_record,
    deciding_settings,
    read_record,
    write_record,
)
from pipelines.generation.worker import GenerationWorker, give_up, quarantine
from pipelines.jobs import (
    ACCEPTABLE,
    Done,
    JobProgress,
    Piece,
    WorkerDevices,
    accepted,
    check_absolute,
    gpus_of_worker,
    how_to_accept,
    precision_of,
    run_tasks,
    split_work,
)
from pipelines.store import locked
from prior import Prior, find_prior, load_prior

LISTED = 20  # failed samples named at the end; the index names all


class GenerationOutcome(NamedTuple):
    """What a run reports."""

    lines: list[str]  # samples that were given up, and a summary
    num_failed: int  # samples asked for that were given up


def generate_samples(
    flags: GenerateFlags,
    *,
    given: Sequence[ConditionFiles] = (),
    lacking: Collection[int] = (),
    prior: Prior | None = None,
    devices: WorkerDevices | None = None,
) -> GenerationOutcome:
    """Generate the samples that the folder lacks.

    `given` are inputs of conditions in addition to those that the flags name; the samples in
    `lacking` have none, and are given up. `prior` and `devices` are those of the flags, where these
    are loaded and asked already. Raises UserError for flags that cannot be used with the prior or
    the folder.
    """
    assert flags.prior is not None
    assert flags.count is not None
    where = find_prior(flags.prior)
    check_absolute({"--prior": where, "--out": flags.out})
    check_flags(flags)
    prior = prior or load_prior(where)
    tokenizer = find_tokenizer(where, prior, torch.device("cpu"))
    own_devices = nullcontext(devices) if devices else devices_of(flags)
    with locked(flags.out), own_devices as devices:
        record = read_record(flags.out)
        request = make_request(flags, prior, tokenizer, record, devices, given)
        settings = deciding_settings(request, prior)
        if record is not None:
            check_record(flags.out, record, settings, accepted(flags.accept, flags.allow_mixed))
        remove_partials(request.out)
        wanted = range(flags.count) if flags.only is None else range(flags.only, flags.only + 1)
        folder = Folder(request, read_parts(request.out), flags.retry_failed)
        pieces = folder.unfinished(wanted)
        condition_encoder = make_condition_encoder(
            request.condition_inputs, request.prior, prior, tokenizer, request.size
        )
        new = 0
        if pieces:
            by_us = {each.name for each in given if not gives_known_codes(each.name)}
            condition_encoder.check(set(condition_encoder.names) - by_us)
            device = _device(flags, request, devices)
            remove_grids(request)
            if record is not None:  # what is accepted to differ is recorded by the workers
                begun = {**record, "precision": precision_of(record)}
                settings |= {name: begun[name] for name in ACCEPTABLE if name in begun}
            write_record(request.out, settings, request.count)
            if "codes" in request.save:
                prepare_store(request, tokenizer, _label_names(prior), settings)
            for piece in pieces:
                folder.reopen(piece)
                give_up(request, piece, lacking)
            request = replace(request, device=device)
            new = _run(request, pieces, flags, proven=bool(folder.parts))
        _finish(request, condition_encoder)
        return _outcome(flags, request, wanted, new)


# --- sampling


def _label_names(prior: Prior) -> tuple[str, ...]:
    """The names of the prior's classes, if it has any."""
    names: tuple[str, ...] = ()
    for part in prior.conditions.parts:
        names = getattr(part, "label_names", names)
    return names


def _run(
    request: GenerationRequest, pieces: list[Piece[int]], flags: GenerateFlags, proven: bool
) -> int:
    """Generate the samples of `pieces`; returns how many are new, given up ones included."""
    codes = request.rows * request.columns
    wanted = sum(piece.end - piece.first for piece in pieces)
    kept = kept_samples(request, pieces)
    with progress_bar("code") as bar, threads_restored():
        row = bar.add_task("sampling", total=codes * wanted, completed=codes * kept, note="", bad=0)

        def show(done: Done) -> None:
            note = f"{done.rows:,} of {wanted:,} samples"
            bar.update(row, completed=done.codes, bad=done.failed, note=note)

        job = JobProgress(show, Done(kept, 0, codes * kept))

        def on_result(piece: Piece[int], result: Done) -> None:
            _require_whole(request, piece)
            job.add(result)

        run_tasks(
            pieces,
            partial(GenerationWorker, request),
            on_result=on_result,
            workers=flags.workers,
            cpus_per_worker=_cpus(flags),
            gpus_per_worker=gpus_of_worker(flags.gpus_per_worker, request.device),
            address=flags.address,
            split=partial(split_work, batch_size=request.batch_size),
            give_up=partial(quarantine, request),
            proven=proven,
            on_progress=job.update,
            stall_timeout=stall_seconds(flags.stall_timeout),
            reads={
                "--prior": request.prior,
                **{
                    f"--condition {condition_inputs.name}": condition_inputs.path
                    for condition_inputs in request.condition_inputs
                },
            },
            writes={"--out": request.out},
        )
    return wanted - kept


def _require_whole(request: GenerationRequest, piece: Piece[int]) -> None:
    """Raise ConfigError where a finished task's file of the index cannot be seen here."""
    # A worker on another machine may have written into a folder of the same name there.
    if not paths.exists(part_path(request.out, piece.task)):
        sample = request.samples_of(piece.task)[piece.first]
        raise ConfigError(
            f"A worker made sample {sample}, but it is not in {request.out}. Name an --out that "
            "every machine of the cluster shares."
        )


def devices_of(flags: GenerateFlags) -> WorkerDevices:
    """The devices of the workers that the flags name, to be used in a `with` statement."""
    return WorkerDevices(flags.workers, flags.address, flags.workers * _cpus(flags))


def _cpus(flags: GenerateFlags) -> int:
    """CPU cores of a worker."""
    return flags.cpus_per_worker or flags.threads


def _device(flags: GenerateFlags, request: GenerationRequest, devices: WorkerDevices) -> str:
    """The request's device, once the workers are known to have it; ConfigError where not."""
    try:
        return devices.resolve(request.device, flags.gpus_per_worker)
    except ConfigError as error:
        if flags.device != "auto":
            raise
        raise ConfigError(
            f"{error} The folder was begun there. {how_to_accept(['device'])}"
        ) from None


# --- after


def _finish(request: GenerationRequest, condition_encoder: ConditionEncoder) -> None:
    """Finish the folder when all tasks are done; every run does, as an earlier one may not have."""
    empty_staging(request.out)
    paths.remove(preview_path(request.out))  # the samples themselves exist now
    if "codes" in request.save:
        finish_store(request.out)
    if "images" in request.save:
        write_grids(request, condition_encoder)


def _outcome(
    flags: GenerateFlags, request: GenerationRequest, wanted: range, new: int
) -> GenerationOutcome:
    """The report on the samples `wanted`, of which `new` were made by this run."""
    failed = [
        line
        for line in failed_lines(request.out, read_parts(request.out).values())
        if line["sample"] in wanted
    ]
    lines = [
        f"failed: {sample_name(line['sample'])}: {line['status']}: {line['error']}"
        for line in failed[:LISTED]
    ]
    if len(failed) > LISTED:
        lines.append(f"failed: {len(failed) - LISTED} more: see the index")
    done = f"{new} generated" if new else "nothing left to do"
    existed = f"{len(wanted) - new} were there"
    counts = ", ".join([done, existed, *([f"{len(failed)} given up"] if failed else [])])
    lines.append(f"{flags.out}: {counts}; {flags.size} pixels each")
    return GenerationOutcome(lines, len(failed))
