#!/usr/bin/env python3
"""Run a small repetition of one of the paper's studies.

python -m pipelines.study NAME --data PATH --out DIR

Each (variant, seed) is a run that is done once. Run again, the command does the missing runs and
rewrites results.json, table.md, plot.png and report.md.
"""

from __future__ import annotations

import sys

from pipelines.console import run_command, show
from pipelines.flags import StudyFlags


def main(argv: list[str] | None = None) -> int:
    return run_command(StudyFlags, run, argv, "pipelines.study")


def run(flags: StudyFlags) -> int:
    """Do the missing runs, write the report, print the table; the exit code."""
    from ops.runtime import use_threads
    from pipelines.studies import STUDIES, StudyContext, do_runs, write_report

    study = STUDIES[flags.name]
    use_threads(flags.threads)
    context = StudyContext(
        data=flags.data,
        out=flags.out,
        threads=flags.threads,
        steps=flags.steps,
        perceptual=flags.perceptual,
        shown=flags.show,
    )
    runs = do_runs(flags.name, study, context, flags.seeds, print_progress)
    report = write_report(study, context, runs, command_of(flags))
    show(*(flags.out / "table.md").read_text().splitlines())
    show(f"{report}: {len(runs)} runs")
    return 0


def print_progress(line: str) -> None:
    show("", f"[{line}]")


def command_of(flags: StudyFlags) -> str:
    """The command that repeats the study, with placeholders for its folders."""
    words = [f"python -m pipelines.study {flags.name} --data photographs/"]
    words.append(f"--out runs/studies/{flags.name}")
    words.append(f"--seeds {' '.join(str(seed) for seed in flags.seeds)}")
    for name in ("threads", "steps"):
        if getattr(flags, name) is not None:
            words.append(f"--{name} {getattr(flags, name)}")
    if flags.perceptual != "none":
        known = flags.perceptual in ("lpips", "random-backbone")
        words.append(f"--perceptual {flags.perceptual if known else 'vgg16-397923af.pth'}")
    return " ".join(words)


if __name__ == "__main__":
    sys.exit(main())
