"""Writes a study's results.json, table.md, plot.png, images.png and report.md."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ops.files import write_bytes, write_json
from pipelines.studies.context import StudyContext
from pipelines.studies.plots import image_sheet, metrics_plot
from pipelines.studies.runs import Run, shared_seconds
from pipelines.studies.study import Study
from pipelines.studies.summary import summarise, table

IMAGES = "images.png"


def write_report(study: Study, context: StudyContext, runs: Sequence[Run], command: str) -> Path:
    """Write all files about the runs into the study's folder; the report's path.

    `command` is the command that repeats the study; no file contains a path of this machine.
    """
    settings = json.loads((context.out / "run.json").read_text())
    machine = describe_machine()
    cells = summarise(study, runs)
    results = {
        "command": command,
        "machine": machine,
        "settings": settings,
        "shared_seconds": shared_seconds(context.out),
        "runs": [run._asdict() for run in runs],
        "summary": {v: {name: cell._asdict() for name, cell in cells[v].items()} for v in cells},
    }
    write_json(context.out / "results.json", results)
    write_bytes(context.out / "table.md", table(study, runs).encode())
    write_bytes(context.out / "plot.png", metrics_plot(study, runs))
    rows = study.images(context, runs[0].seed)
    if rows:
        write_bytes(context.out / IMAGES, image_sheet(rows))
    report = context.out / "report.md"
    about = {"command": command, "made": _made(runs, machine, shared_seconds(context.out))}
    text = _report(study, runs, settings, has_images=bool(rows), **about)
    write_bytes(report, text.encode())
    return report


def _report(
    study: Study,
    runs: Sequence[Run],
    settings: dict[str, Any],
    *,
    has_images: bool,
    command: str,
    made: str,
) -> str:
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(run.seed for run in runs))
    parts = [
        f"# {study.title}",
        study.paper,
        table(study, runs).rstrip(),
        f"Mean and standard deviation over seeds {seeds}. In the plot each point is a seed and "
        "each bar the mean over seeds.",
        "![The table's metrics, one point for each seed](plot.png)",
    ]
    if has_images:
        parts.append(f"![Images of the variants, one row each]({IMAGES})")
    parts += [
        f"    {command}",
        made,
        "Settings:",
        "".join(f"- {name}: {_setting(value)}\n" for name, value in settings.items()).rstrip(),
    ]
    return "\n\n".join(parts) + "\n"


def _made(runs: Sequence[Run], machine: str, shared: float) -> str:
    """Dates, machine and duration."""
    dates = sorted({run.date for run in runs})
    return (
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}, {machine}; shared preparation took "
        f"{shared / 60:.0f} minutes, the runs {sum(run.seconds for run in runs) / 60:.0f}."
    )


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else f"`{json.dumps(value)}`"


def describe_machine() -> str:
    """Processor, cores, torch's threads and version."""
    threads = torch.get_num_threads()
    return (
        f"{_processor()}, {os.cpu_count()} cores, {threads} thread{'s' * (threads > 1)}, "
        f"PyTorch {torch.__version__}"
    )


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
