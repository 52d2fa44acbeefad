#!/usr/bin/env python
"""Generate images with a trained prior: python -m pipelines.generate --prior RUN --out DIR.

An image depends on the recorded settings, the seed and its number alone, so any run of any worker
makes the same one. Run again, the command makes the missing ones.
"""

from __future__ import annotations

import sys
from functools import partial

import torch

from ops.config import ConfigError
from ops.files import exclusive_lock
from ops.runtime import threads_restored
from pipelines.conditioning import ConditionEncoder, find_tokenizer, make_condition_encoder
from pipelines.console import progress_bar, run_command
from pipelines.generation import (
    Folder,
    GenerateFlags,
    GenerationRequest,
    GenerationWorker,
    check_flags,
    check_record,
    deciding_settings,
    empty_staging,
    failed_lines,
    finish_store,
    kept_samples,
    make_request,
    part_path,
    prepare_store,
    preview_path,
    quarantine,
    read_parts,
    read_record,
    remove_grids,
    remove_partials,
    sample_name,
    write_grids,
    write_record,
)
from pipelines.jobs import Done, JobProgress, Piece, check_absolute, run_tasks, split_work
from pipelines.store import lock_path
from prior import Prior, load_prior

LISTED = 20  # failed samples named at the end; the index names all


def main(argv: list[str] | None = None) -> int:
    return run_command(GenerateFlags, run, argv, "pipelines.generate")


def run(flags: GenerateFlags) -> int:
    """Generate the samples that the folder lacks, print the outcome; the exit code."""
    check_absolute({"--prior": flags.prior, "--out": flags.out})
    check_flags(flags)
    prior = load_prior(flags.prior)
    tokenizer = find_tokenizer(flags.prior, prior, torch.device("cpu"))
    with exclusive_lock(lock_path(flags.out)):
        record = read_record(flags.out)
        request = make_request(flags, prior, tokenizer, record)
        settings = deciding_settings(request, prior)
        if record is not None:
            check_record(flags.out, record, settings)
        remove_partials(request.out)
        wanted = range(flags.count) if flags.only is None else range(flags.only, flags.only + 1)
        folder = Folder(request, read_parts(request.out), flags.retry_failed)
        pieces = folder.unfinished(wanted)
        condition_encoder = make_condition_encoder(
            request.condition_inputs, request.prior, prior, tokenizer, request.size
        )
        new = 0
        if pieces:
            condition_encoder.check()
            remove_grids(request)
            write_record(request.out, settings, request.count)
            if "codes" in request.save:
                prepare_store(request, tokenizer, label_names(prior), settings)
            for piece in pieces:
                folder.reopen(piece)
            new = generate(request, pieces, flags, proven=bool(folder.parts))
        finish(request, condition_encoder)
        return report(flags, request, wanted, new)


# --- sampling


def label_names(prior: Prior) -> tuple[str, ...]:
    """The names of the prior's classes, if it has any."""
    names: tuple[str, ...] = ()
    for part in prior.conditions.parts:
        names = getattr(part, "label_names", names)
    return names


def generate(
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
            require_whole(request, piece)
            job.add(result)

        run_tasks(
            pieces,
            partial(GenerationWorker, request),
            on_result=on_result,
            workers=flags.workers,
            cpus_per_worker=flags.cpus_per_worker or flags.threads,
            gpus_per_worker=gpus_per_worker(flags),
            address=flags.address,
            split=partial(split_work, batch_size=request.batch_size),
            give_up=partial(quarantine, request),
            proven=proven,
            on_progress=job.update,
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


def require_whole(request: GenerationRequest, piece: Piece[int]) -> None:
    """Raise ConfigError where a finished task's file of the index cannot be seen here."""
    # A worker on another machine may have written into a folder of the same name there.
    if not part_path(request.out, piece.task).exists():
        sample = request.samples_of(piece.task)[piece.first]
        raise ConfigError(
            f"A worker made sample {sample}, but it is not in {request.out}. Name an --out that "
            "every machine of the cluster shares."
        )


def gpus_per_worker(flags: GenerateFlags) -> float:
    if flags.gpus_per_worker != "auto":
        return flags.gpus_per_worker
    on_gpu = flags.device.startswith("cuda") or (
        flags.device == "auto" and torch.cuda.is_available()
    )
    return float(on_gpu)


# --- after


def finish(request: GenerationRequest, condition_encoder: ConditionEncoder) -> None:
    """Finish the folder when all tasks are done; every run does, as an earlier one may not have."""
    empty_staging(request.out)
    preview_path(request.out).unlink(missing_ok=True)  # the samples themselves exist now
    if "codes" in request.save:
        finish_store(request.out)
    if "images" in request.save:
        write_grids(request, condition_encoder)


def report(flags: GenerateFlags, request: GenerationRequest, wanted: range, new: int) -> int:
    """Print the samples that were given up and a summary; the exit code."""
    lines = failed_lines(request.out, read_parts(request.out).values())
    failed = [line for line in lines if line["sample"] in wanted]
    for line in failed[:LISTED]:
        print(f"failed: {sample_name(line['sample'])}: {line['status']}: {line['error']}")
    if len(failed) > LISTED:
        print(f"failed: {len(failed) - LISTED} more: see the index")
    done = f"{new} generated" if new else "nothing left to do"
    existed = f"{len(wanted) - new} were there"
    counts = ", ".join([done, existed, *([f"{len(failed)} given up"] if failed else [])])
    print(f"{flags.out}: {counts}; {flags.size} pixels each")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
