import ctypes
import os
import subprocess
import sys

import pytest
import torch

from ops.config import ConfigError
from ops.runtime import (
    compute_repeatably,
    describe_environment,
    keep_freed_memory,
    named_device,
    resolve_device,
)


def test_devices_are_resolved_or_refused():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ConfigError, match="No device 'abacus'"):
        resolve_device("abacus")
    with pytest.raises(ConfigError, match="not on this machine"):
        resolve_device(f"cuda:{torch.cuda.device_count()}")


def test_why_there_is_no_gpu_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)

    def too_old():
        raise RuntimeError("The NVIDIA driver is too old (found version 11040). Please update it.")

    monkeypatch.setattr(torch.cuda, "init", too_old)
    with monkeypatch.context() as patched:
        patched.setattr(torch.version, "cuda", "13.0")
        with pytest.raises(
            ConfigError, match=r"The NVIDIA driver is too old \(found .* 11040\)\. Use"
        ):
            resolve_device("cuda")
        patched.setattr(torch.cuda, "init", lambda: None)
        patched.setenv("CUDA_VISIBLE_DEVICES", "")
        with pytest.raises(ConfigError, match="torch sees none"):
            resolve_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ConfigError, match=r"torch .* is built without CUDA"):
        resolve_device("cuda:1")
    assert named_device("cuda:1").index == 1  # whether it exists or not


def test_an_environment_is_described_by_device_and_versions(monkeypatch):
    found = describe_environment(torch.device("cpu"))
    assert found.keys() == {"device", "device_name", "torch"}
    assert found["device"] == "cpu"
    assert found["device_name"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    found = describe_environment(torch.device("cuda"))
    assert (found["device_name"], found["cudnn"]) == ("NVIDIA H100", "91002")
    assert found["torch"] == torch.__version__
    assert found["cuda"] == str(torch.version.cuda)


def test_algorithms_of_a_gpu_are_neither_timed_nor_changing(monkeypatch):
    cudnn = torch.backends.cudnn
    for name in ("benchmark", "deterministic"):
        monkeypatch.setattr(cudnn, name, getattr(cudnn, name))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    cudnn.benchmark = True
    compute_repeatably()
    assert (cudnn.benchmark, cudnn.deterministic) == (False, True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # the user's own choice is kept
    compute_repeatably()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


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
