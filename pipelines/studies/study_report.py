"""What a study leaves to read: results.json, table.md, plot.png, pictures.png and report.md."""

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
from pipelines.studies.plots import metrics_plot, picture_sheet
from pipelines.studies.runs import Run, shared_seconds
from pipelines.studies.study import Study
from pipelines.studies.summary import summarise, table

PICTURES = "pictures.png"


def write_report(study: Study, context: StudyContext, runs: Sequence[Run], command: str) -> Path:
    """Write everything that is told of the runs into the study's folder; the report's path.

    `command` is what a reader would type to have the same; no path of this machine is in any file.
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
    rows = study.pictures(context, runs[0].seed)
    if rows:
        write_bytes(context.out / PICTURES, picture_sheet(rows))
    report = context.out / "report.md"
    about = {"command": command, "made": _made(runs, machine, shared_seconds(context.out))}
    text = _report(study, runs, settings, has_pictures=bool(rows), **about)
    write_bytes(report, text.encode())
    return report


def _report(
    study: Study,
    runs: Sequence[Run],
    settings: dict[str, Any],
    *,
    has_pictures: bool,
    command: str,
    made: str,
) -> str:
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(run.seed for run in runs))
    parts = [
        f"# {study.title}",
        study.paper,
        table(study, runs).rstrip(),
        f"Mean and standard deviation over seeds {seeds}. In the plot each point is a seed and "
        "each bar their mean.",
        "![The table's figures, a point a seed](plot.png)",
    ]
    if has_pictures:
        parts.append(f"![What the variants give, side by side]({PICTURES})")
    parts += [
        f"    {command}",
        made,
        "Settings:",
        "".join(f"- {name}: {_setting(value)}\n" for name, value in settings.items()).rstrip(),
    ]
    return "\n\n".join(parts) + "\n"


def _made(runs: Sequence[Run], machine: str, shared: float) -> str:
    """When, on what, and how long it took."""
    dates = sorted({run.date for run in runs})
    return (
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}, {machine}; what all runs share took "
        f"{shared / 60:.0f} minutes, the runs {sum(run.seconds for run in runs) / 60:.0f}."
    )


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else f"`{json.dumps(value)}`"


def describe_machine() -> str:
    """The processor, how many threads torch computes with, and torch's version."""
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
