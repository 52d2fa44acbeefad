import ctypes
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from ops.config import ConfigError
from ops.runtime import MetricsLog, autocast, keep_freed_memory, resolve_device


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_devices_are_resolved_or_refused():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ConfigError, match="No device 'abacus'"):
        resolve_device("abacus")
    with pytest.raises(ConfigError, match="not on this machine"):
        resolve_device(f"cuda:{torch.cuda.device_count()}")


def test_autocast_on_a_cpu_keeps_full_precision():
    with autocast(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


PAGES_OF_TENSORS = """
import resource, threading, torch
from ops.runtime import keep_freed_memory
def pages(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
mapped = pages(20)
keep_freed_memory()
thread = threading.Thread(target=lambda: print(mapped, *(pages(20) for _ in range(3))))
thread.start()
thread.join()
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"),
    reason="needs glibc",
)
def test_freed_memory_is_reused_instead_of_mapped_anew():
    command = [sys.executable, "-c", PAGES_OF_TENSORS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    mapped, *_, kept = map(int, done.stdout.split())
    assert kept < 0.05 * mapped


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    keep_freed_memory()


def test_metrics_are_appended_as_json_lines(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.log(1, {"loss": 2.0})
        log.log(2, {"loss": 1.0, "psnr": 20.0})
        log.image(2, "samples", np.zeros((4, 4, 3), np.uint8))
    assert lines(tmp_path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "psnr": 20.0}]
    assert list((tmp_path / "tensorboard").iterdir())


def test_lines_of_steps_to_repeat_are_dropped_on_resume(tmp_path):
    with MetricsLog(tmp_path) as log:
        for step in (1, 2, 3):
            log.log(step, {"loss": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # cut short by a kill
    with MetricsLog(tmp_path, after_step=2) as log:
        log.log(3, {"loss": 30.0})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 1), (2, 2), (3, 30)]
