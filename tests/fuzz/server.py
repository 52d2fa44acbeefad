"""Runs commands in children forked from one process that has imported everything.

Each line on stdin is a JSON object, see `run`; each line on stdout its result. A child costs
milliseconds; a fresh interpreter would take seconds to import torch.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

MEMORY = 1536 << 20  # bytes that a child may allocate beyond what it inherits
ADDRESSES = 4 << 30  # bytes of address space beyond that: threads reserve more than they use
FILE_SIZE = 64 << 20  # bytes
CPU_SECONDS = 15  # a run takes a few tenths of a second
WALL_SECONDS = 40  # of a blocked child; far more than a busy machine needs
COMMANDS = tuple(
    f"pipelines.{name}"
    for name in ("encode", "verify", "report", "import_tokenizer", "generate", "train_prior")
)

#: What commands import only where they need it.
LATER = (
    "numpy.ma", "pyarrow.dataset", "PIL.Image", "torchmetrics", "torchvision", "lpips",
    "pipelines.generation", "pipelines.recipes", "pipelines.reports", "pipelines.training",
)  # fmt: skip


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # only replies go to stdout
    _preload()
    inherited = _memory()
    gc.collect()
    gc.freeze()  # a collection would write to inherited pages and so copy them
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line), inherited)), file=replies, flush=True)


def _preload() -> None:
    """Import what commands import, and parse their command lines once."""
    torch.set_num_threads(1)
    for name in (*LATER, *COMMANDS):
        importlib.import_module(name)
    sys.modules["PIL.Image"].init()  # imports every format
    for name in COMMANDS:
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
            sys.modules[name].main(["--help"])


def _memory() -> tuple[int, int]:
    """Bytes of private memory and of address space of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    data, size = (int(fields[name].split()[0]) << 10 for name in ("VmData", "VmSize"))
    return data, size


def run(job: dict[str, Any], inherited: tuple[int, int]) -> dict[str, Any]:
    """Run the command `job["module"]` with `job["argv"]` in the folder `job["folder"]`.

    Its output goes to the files `job["stdout"]` and `job["stderr"]`. Returns the exit code, minus
    a signal's number, or None where the child was killed for its time.
    """
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _run_command(job, inherited)
    watched = os.pidfd_open(pid)
    ended = select.select([watched], [], [], WALL_SECONDS)[0]
    if not ended:
        os.killpg(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    os.close(watched)
    return {
        "code": os.waitstatus_to_exitcode(status) if ended else None,
        "seconds": time.monotonic() - started,
        "memory": usage.ru_maxrss << 10,
    }


def _run_command(job: dict[str, Any], inherited: tuple[int, int]) -> None:
    """Become the command; does not return."""
    code: object = 1
    try:
        os.setpgid(0, 0)
        files = (
            os.open(os.devnull, os.O_RDONLY),
            *(os.open(job[n], os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for n in ("stdout", "stderr")),
        )
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.chdir(job["folder"])
        os.environ.update(job["environment"])
        data, size = inherited
        for limit, value in (
            (resource.RLIMIT_DATA, data + MEMORY),
            (resource.RLIMIT_AS, size + MEMORY + ADDRESSES),
            (resource.RLIMIT_FSIZE, FILE_SIZE),
            (resource.RLIMIT_CPU, CPU_SECONDS),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(limit, (value, value))
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False, buffering=1)
        sys.argv = [job["module"].replace(".", "/") + ".py", *job["argv"]]
        code = importlib.import_module(job["module"]).main(job["argv"])
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    main()
