"""The batch and the caches of a request: by the memory of the workers' GPUs, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.conditioning import find_tokenizer
from pipelines.flags import GenerateFlags
from pipelines.generation.flags import make_request
from pipelines.generation.settings import GenerationRequest, read_record
from pipelines.jobs import WorkerDevices
from pipelines.store import StoreError
from prior import load_prior
from prior.sampling import DEFAULT_CACHE_MEMORY, LARGEST_DEFAULT_BATCH, memory_plan
from tests.generate_run import generate


class Cards(WorkerDevices):
    """Workers with a GPU of that many GiB; None: of unknown memory."""

    def __init__(self, gib: int | None) -> None:
        super().__init__(2)
        self.gib = gib

    def resolve(self, name: str, gpus_per_worker: float | str = "auto") -> str:
        return "cuda"

    def gpu_memory(self, name: str) -> int | None:
        return None if self.gib is None else self.gib << 30


def request_on(
    run: Path, gib: int | None, record: dict[str, Any] | None = None, **flags: Any
) -> GenerationRequest:
    prior = load_prior(run)
    tokenizer = find_tokenizer(run, prior, torch.device("cpu"))
    given = GenerateFlags(prior=run, out=run / "out", count=1000, size="256x256", **flags)
    return make_request(given, prior, tokenizer, record, Cards(gib))


def test_a_gpu_s_memory_decides_batch_and_caches(prior_run: Path) -> None:
    request = request_on(prior_run, 80)
    assert request.batch_size == memory_plan.LARGEST_BATCH
    assert request.cache_memory > DEFAULT_CACHE_MEMORY
    assert request_on(prior_run, 80, gpus_per_worker=0.5).cache_memory < request.cache_memory
    given = request_on(prior_run, 80, batch_size=3, cache_memory=1.5)
    assert (given.batch_size, given.cache_memory) == (3, 3 << 29)


def test_usual_defaults_where_the_memory_is_not_known(prior_run: Path) -> None:
    request = request_on(prior_run, None)
    assert request.batch_size == LARGEST_DEFAULT_BATCH
    assert request.cache_memory == DEFAULT_CACHE_MEMORY


def test_a_folder_keeps_its_numbers_on_another_gpu(prior_run: Path) -> None:
    record = {"device": "cuda", "precision": "bfloat16", "torch": torch.__version__}
    record |= {"batch_size": 16, "cache_memory": 5 << 30}
    for gib in (8, 140):
        request = request_on(prior_run, gib, record)
        assert (request.batch_size, request.cache_memory) == (16, 5 << 30)


def test_a_recorded_cache_memory_that_is_no_number_is_an_error(
    prior_run: Path, tmp_path: Path
) -> None:
    assert generate(prior_run, tmp_path, "--count", 1) == 0
    path = tmp_path / "generation.json"
    path.write_text(path.read_text().replace(str(DEFAULT_CACHE_MEMORY), '"much"'))
    with pytest.raises(StoreError, match="cache_memory is 'much'"):
        read_record(tmp_path)
