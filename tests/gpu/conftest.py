"""The device of the tests that need a GPU."""

import os

import pytest
import torch

from ops.precision import use_precision


@pytest.fixture
def gpu():
    """A GPU. SMALTI_TEST_GPU=cpu tries the tests themselves where there is none."""
    return torch.device(os.environ.get("SMALTI_TEST_GPU", "cuda"))


@pytest.fixture
def real_gpu(gpu):
    """The GPU, for what a CPU has nothing to compare with: nvJPEG, waiting for a device."""
    if gpu.type == "cpu":
        pytest.skip("SMALTI_TEST_GPU=cpu tries only what a CPU can do")
    return gpu


@pytest.fixture(autouse=True)
def exact_products():
    """float32 products are exact before and after each test, whatever it asks for."""
    use_precision("float32")
    yield
    use_precision("float32")
