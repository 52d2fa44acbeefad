"""The encode command in child processes, forked from one that has imported everything, so that a
kill and a resume take a fraction of a second."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

import ops.disk
from ops.disk import Disk
from pipelines import encode

# Children of the server inherit its imports, but no threads, Ray or locks.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.crashes.preloaded"])
TIMEOUT = 600  # seconds; far more than anything here takes


def flags(images: Path, out: Path, tokenizer: Path, **changed: object) -> list[str]:
    """The command's arguments: small images, small batches, few rows a task."""
    asked = {
        "in": images,
        "out": out,
        "tokenizer": tokenizer,
        "image_size": 32,
        "batch_size": 2,
        "rows_per_task": 2,
        "device": "cpu",
        **changed,
    }
    words = []
    for name, value in asked.items():
        flag = f"--{name.replace('_', '-')}"
        for each in value if isinstance(value, tuple) else (value,):
            words += [flag] if each is True else [flag, str(each)]
    return words


def start(run: Callable[..., Any], *arguments: Any, disk: Disk | None = None) -> BaseProcess:
    """Start `run(*arguments)` in a child process with `disk` installed.

    Its exit code is what `run` returns; its output is discarded.
    """
    process = CONTEXT.Process(target=_run, args=(run, arguments, disk), daemon=True)
    process.start()
    return process


def _run(run: Callable[..., Any], arguments: tuple[Any, ...], disk: Disk | None) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    torch.set_num_threads(1)
    gc.freeze()  # a collection would write to inherited pages and so copy them
    if disk is not None:
        ops.disk.disk = disk
    sys.exit(run(*arguments))


def start_encode(words: list[str], disk: Disk | None = None) -> BaseProcess:
    return start(encode.main, words, disk=disk)


def exit_code(process: BaseProcess) -> int:
    """Wait for a child; its exit code, -9 if it was killed."""
    process.join(TIMEOUT)
    code = process.exitcode
    if code is None:
        process.kill()
        raise TimeoutError(f"{process} did not end in {TIMEOUT} s")
    process.close()
    return code


def run_encode(words: list[str], disk: Disk | None = None) -> int:
    return exit_code(start_encode(words, disk))


def wait_until_stopped(process: BaseProcess) -> bool:
    """Wait until a child stops (SIGSTOP) or ends; whether it stopped."""
    deadline = time.monotonic() + TIMEOUT
    while process.is_alive():
        if process_state(process.pid) == "T":
            return True
        if time.monotonic() > deadline:
            raise TimeoutError(f"{process} neither stopped nor ended")
        time.sleep(0.01)
    return False


def process_state(pid: int | None) -> str:
    """The kernel's letter for a process's state; "" when there is no such process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""
