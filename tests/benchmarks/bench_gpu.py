"""One table of a GPU: its ceilings, encoding, sampling, training, decoding, memory, kernels.

    python tests/benchmarks/bench_gpu.py [--out figures.json] [--seconds 400] [--only NAME ...]

Each section is a process of its own with a time limit, so that one that fails or hangs costs its
own rows alone. The sections that say most come first; what the total time does not allow is listed
as not run. Weights are random and images are noise of several scales: rates do not depend on them.
`--device cpu --small` runs everything at its smallest size.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from gpu_sections import SECTIONS, Row, Setting

LEAST_SECONDS = 10.0  # with less left a section is not begun
MARK = "row "  # before each row that a section prints


def main(argv: list[str] | None = None) -> int:
    options = parse_options(argv)
    setting = Setting(torch.device(options.device), options.small)
    if options.section:
        for row in SECTIONS[options.section].run(setting):
            print(MARK + json.dumps(row), flush=True)
        return 0
    if setting.device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU here; --device cpu --small tries the sections", file=sys.stderr)
        return 2
    rows = run_sections(options)
    print(table(rows))
    if options.out:
        options.out.write_text(json.dumps({"where": where(setting), "rows": rows}, indent=1) + "\n")
    return int(any("error" in row["figures"] for row in rows))


def run_sections(options: argparse.Namespace) -> list[Row]:
    """The rows of all sections that were asked for, in order."""
    begun, rows = time.monotonic(), []
    for name in options.only or SECTIONS:
        left = options.seconds - (time.monotonic() - begun)
        found = run_section(name, options, left)
        for row in found:
            print(line(row), file=sys.stderr, flush=True)
        rows += found
    return rows


def run_section(name: str, options: argparse.Namespace, left: float) -> list[Row]:
    """The rows of one section, with a last one if it failed, took too long or was not begun."""
    if left < LEAST_SECONDS:
        return [row(name, error="not run: no time left")]
    command = [sys.executable, __file__, "--section", name, "--device", options.device]
    command += ["--small"] if options.small else []
    limit = min(left, SECTIONS[name].seconds)
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as errors:
        try:
            code = subprocess.run(command, stdout=printed, stderr=errors, timeout=limit).returncode
            problem = f"exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            problem = f"took more than {limit:.0f} s"
        printed.seek(0)
        errors.seek(0)
        lines = [text for text in printed if text.startswith(MARK)]
        last = errors.read().strip().splitlines()[-1:] if problem else []
    found = [json.loads(text.removeprefix(MARK)) for text in lines]
    return [*found, row(name, error="; ".join([problem, *last]))] if problem else found


def row(what: str, **figures: Any) -> Row:
    return {"what": what, "figures": figures}


def where(setting: Setting) -> dict[str, Any]:
    """The machine and the versions that figures belong to."""
    on_gpu = setting.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        "date": time.strftime("%Y-%m-%d"),
    }


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table."""
    return "\n".join(["| what | figures |", "|---|---|", *map(line, rows)])


def line(row: Row) -> str:
    figures = ", ".join(
        f"{name} {round(value, 4) if isinstance(value, float) else value}"
        for name, value in row["figures"].items()
        if value is not None
    )
    return f"| {row['what']} | {figures} |"


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    parser.add_argument("--seconds", type=float, default=400.0, help="of all sections together")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), metavar="NAME")
    parser.add_argument("--section", choices=list(SECTIONS), help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="smallest sizes")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
