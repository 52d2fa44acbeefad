"""The batch of a new store on a GPU: measured by a worker, recorded, and at most so large."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ops.device_memory import DeviceMemoryError
from ops.images import Transform
from pipelines.encoding import batch_size
from pipelines.encoding.batch_size import BatchSizer, fitting_batch_size
from pipelines.encoding.settings import check_same, plan_settings
from pipelines.flags import EncodeFlags
from pipelines.jobs import WorkerDevices
from pipelines.planning import PlanSettings
from pipelines.store import StoreError
from tests.clusters import cluster_of
from tokenizer import PRESETS, load_tokenizer

MIB = 2**20


class ValuesMemory:
    """Counts the values that the networks' first layers read as if each took a byte."""

    def __init__(self, total: int) -> None:
        self.total = total

    def __call__(self, device: torch.device) -> ValuesMemory:
        return self

    def free(self) -> int:
        return self.total

    def peak(self, run: Callable[[], object]) -> int:
        seen: list[int] = []
        zeros = torch.zeros

        def counting(size: tuple[int, ...], **options: torch.device) -> torch.Tensor:
            seen.append(torch.Size(size).numel())
            return zeros(size, **options)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(torch, "zeros", counting)
            run()
        return sum(seen) + MIB


def sizer(total: int, share: float = 1.0, size: tuple[int, int] = (64, 64)) -> BatchSizer:
    return BatchSizer(PRESETS["tiny"], "cpu", "float32", size, share, ValuesMemory(total))


def test_the_batch_is_what_the_memory_holds_of_images_of_that_size() -> None:
    image = 3 * 64 * 64
    assert sizer(MIB + 33 * image).run(64) == 32
    assert sizer(MIB + 33 * image, size=(64, 256)).run(64) == 8
    assert sizer(2 * (MIB + 33 * image), share=0.5).run(64) == 32
    assert sizer(1000 * MIB).run(28) == 16
    with pytest.raises(DeviceMemoryError, match=r"One item takes .* Use a GPU with more memory"):
        sizer(MIB).run(64)


def test_a_worker_measures_native_images_at_their_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[object, ...]] = []

    class Recorded(BatchSizer):
        def __init__(self, *arguments: object) -> None:
            made.append(arguments[1:])

        def run(self, most: int) -> int:
            return most // 2

    monkeypatch.setattr(batch_size, "BatchSizer", Recorded)
    flags = EncodeFlags(in_=(Path("in"),), out=Path("out"), device="cpu")
    environment = {"device": "cpu", "precision": "bfloat16"}
    for crop in ("center", "native"):
        transform = Transform(image_size=64, crop=crop, multiple_of=8)
        found = fitting_batch_size(
            flags, WorkerDevices(), PRESETS["tiny"], transform, environment, 64
        )
        assert found == 32
    assert made == [
        ("cpu", "bfloat16", (64, 64), 0.8),
        ("cpu", "bfloat16", (64, 256), 0.8),
    ]


def test_only_a_new_store_on_a_gpu_is_measured_for(tiny_tokenizer: Path) -> None:
    tokenizer, measured = load_tokenizer(tiny_tokenizer), []

    def fit(environment: Mapping[str, str], most: int) -> int:
        measured.append((environment["device"], most))
        return 16

    def planned(**asked: Any) -> PlanSettings:
        flags = EncodeFlags(in_=(Path("in"),), out=Path("out"), workers=2, **asked)
        return plan_settings(flags, tokenizer, Transform(), 10**6, None, WorkerDevices(2), fit)

    with cluster_of(gpus=4):
        assert planned().track["batch_size"] == 16
        assert measured == [("cuda", 64)]
        assert planned(batch_size=5).track["batch_size"] == 5
    assert planned(device="cpu").track["batch_size"] == 1
    assert len(measured) == 1


def test_a_gpus_encoder_is_compiled_for_many_images_only(tiny_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(tiny_tokenizer)

    def compiled(num_rows: int, older: PlanSettings | None = None, **asked: Any) -> str:
        flags = EncodeFlags(in_=(Path("in"),), out=Path("out"), workers=2, **asked)
        devices = WorkerDevices(2)
        found = plan_settings(flags, tokenizer, Transform(), num_rows, older, devices)
        if older is not None:
            check_same(Path("store"), older, found)
        return str(found.track["compile"])

    with cluster_of(gpus=4):
        assert [compiled(49_999), compiled(50_000)] == ["no", "yes"]
        assert [compiled(10**6, compile="no"), compiled(1, compile="yes")] == ["no", "yes"]
        flags = EncodeFlags(in_=(Path("in"),), out=Path("out"), workers=2)
        begun = plan_settings(flags, tokenizer, Transform(), 10**6, None, WorkerDevices(2))
        assert compiled(1, begun) == "yes"
        with pytest.raises(StoreError, match=r"--compile \(the store has yes, asked for no\)"):
            compiled(1, begun, compile="no")
        del begun.track["compile"]  # of a store of an earlier version
        assert compiled(10**6, begun) == "no"
    assert compiled(10**6, device="cpu") == "no"
