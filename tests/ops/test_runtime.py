import ctypes
import subprocess
import sys

import pytest
import torch

from ops.config import ConfigError
from ops.runtime import keep_freed_memory, resolve_device


def test_devices_are_resolved_or_refused():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ConfigError, match="No device 'abacus'"):
        resolve_device("abacus")
    with pytest.raises(ConfigError, match="not on this machine"):
        resolve_device(f"cuda:{torch.cuda.device_count()}")


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
