#!/usr/bin/env python
"""Paint pictures with a trained prior: python -m pipelines.generate --prior RUN --out DIR.

A picture depends on the recorded settings, the seed and its number alone, so any run of any worker
paints the same one. Run again, it paints what is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from ops.config import ConfigError
from ops.files import exclusive_lock, write_json
from pipelines.conditioning import ConditionEncoder, make_condition_encoder
from pipelines.console import progress_bar, run_command
from pipelines.generation import (
    Done,
    Folder,
    GenerateFlags,
    GenerationRequest,
    GenerationTask,
    GenerationWorker,
    check_flags,
    check_record,
    deciding_settings,
    empty_staging,
    failed_lines,
    finish_store,
    kept_samples,
    lock_path,
    make_request,
    part_path,
    prepare_store,
    preview_path,
    quarantine,
    read_parts,
    read_record,
    record_path,
    remove_grids,
    remove_partials,
    sample_name,
    split_work,
    write_grids,
)
from pipelines.jobs import check_absolute, run_tasks
from pipelines.training import find_tokenizer
from prior import Prior, load_prior

LISTED = 20  # failed samples named at the end; the index names all


def main(argv: list[str] | None = None) -> int:
    return run_command(GenerateFlags, run, argv, "pipelines.generate")


def run(flags: GenerateFlags) -> int:
    """Paint what the folder lacks, print what came of it; the exit code."""
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
        tasks = folder.unfinished(wanted)
        condition_encoder = make_condition_encoder(
            request.condition_inputs, request.prior, prior, tokenizer, request.size
        )
        new = 0
        if tasks:
            condition_encoder.check()
            remove_grids(request)
            write_json(record_path(request.out), {**settings, "count": request.count})
            if "codes" in request.save:
                prepare_store(request, tokenizer, label_names(prior), settings)
            for task in tasks:
                folder.reopen(task)
            new = generate(request, tasks, flags, proven=bool(folder.parts))
        finish(request, condition_encoder)
        return report(flags, request, wanted, new)


# --- painting


def label_names(prior: Prior) -> tuple[str, ...]:
    """The names of the prior's classes, if it has any."""
    names: tuple[str, ...] = ()
    for part in prior.conditions.parts:
        names = getattr(part, "label_names", names)
    return names


def generate(
    request: GenerationRequest, tasks: list[GenerationTask], flags: GenerateFlags, proven: bool
) -> int:
    """Do the tasks, behind a bar that counts codes; how many samples were painted or given up."""
    codes = request.rows * request.columns
    wanted = sum(task.end - task.first for task in tasks)
    kept = kept_samples(request, tasks)
    with progress_bar("code") as bar, threads_restored():
        row = bar.add_task("painting", total=codes * wanted, completed=codes * kept, note="", bad=0)
        done, shown = Done(kept, 0, codes * kept), 0

        def show(inside: list[Done]) -> None:
            nonlocal shown
            # Never back: what dead workers were inside of is done again, the bar waits for it.
            shown = max(shown, done.codes + sum(work.codes for work in inside))
            samples = done.samples + sum(work.samples for work in inside)
            note = f"{samples:,} of {wanted:,} samples"
            bar.update(row, completed=shown, bad=done.failed, note=note)

        def on_result(task: GenerationTask, result: Done) -> None:
            nonlocal done
            require_whole(request, task)
            done = Done(*(sum(pair) for pair in zip(done, result, strict=True)))
            show([])

        run_tasks(
            tasks,
            partial(GenerationWorker, request),
            on_result=on_result,
            workers=flags.workers,
            cpus_per_worker=flags.cpus_per_worker or flags.threads,
            gpus_per_worker=gpus_per_worker(flags),
            address=flags.address,
            split=partial(split_work, batch_size=request.batch_size),
            give_up=partial(quarantine, request),
            proven=proven,
            on_progress=show,
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


def require_whole(request: GenerationRequest, task: GenerationTask) -> None:
    """Raise ConfigError where a task that is done has left nothing that can be seen here."""
    # A worker on another machine may have written into a folder of the same name there.
    if not part_path(request.out, task.number).exists():
        raise ConfigError(
            f"A worker painted sample {task.first}, but it is not in {request.out}. Name an --out "
            "that every machine of the cluster shares."
        )


@contextmanager
def threads_restored() -> Iterator[None]:
    """A worker in this process sets its own number of threads."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def gpus_per_worker(flags: GenerateFlags) -> float:
    if flags.gpus_per_worker != "auto":
        return flags.gpus_per_worker
    on_gpu = flags.device.startswith("cuda") or (
        flags.device == "auto" and torch.cuda.is_available()
    )
    return float(on_gpu)


# --- after


def finish(request: GenerationRequest, condition_encoder: ConditionEncoder) -> None:
    """What remains when all tasks are done, each time: an earlier run may not have come to it."""
    empty_staging(request.out)
    preview_path(request.out).unlink(missing_ok=True)  # the samples are there
    if "codes" in request.save:
        finish_store(request.out)
    if "images" in request.save:
        write_grids(request, condition_encoder)


def report(flags: GenerateFlags, request: GenerationRequest, wanted: range, new: int) -> int:
    """Print which samples were given up, and one line; the exit code."""
    lines = failed_lines(request.out, read_parts(request.out).values())
    failed = [line for line in lines if line["sample"] in wanted]
    for line in failed[:LISTED]:
        print(f"failed: {sample_name(line['sample'])}: {line['status']}: {line['error']}")
    if len(failed) > LISTED:
        print(f"failed: {len(failed) - LISTED} more: see the index")
    done = f"{new} painted" if new else "nothing left to do"
    there = f"{len(wanted) - new} were there"
    counts = ", ".join([done, there, *([f"{len(failed)} given up"] if failed else [])])
    print(f"{flags.out}: {counts}; {flags.size} pixels each")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
