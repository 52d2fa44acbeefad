"""The settings of a new store: the choices of `auto`, and what later runs must match."""

import dataclasses
from pathlib import Path

import pytest
import torch

from ops.config import ConfigError
from ops.cpu import Convolution, nnpack_works
from ops.images import DECODERS, Transform
from pipelines.encoding import settings as encode_settings
from pipelines.encoding.settings import check_same, plan_settings, run_environment
from pipelines.encoding.sources import source_of
from pipelines.encoding.worker import EncodeWorker
from pipelines.flags import EncodeFlags
from pipelines.jobs import WorkerDevices, accepted
from pipelines.store import StoreError
from tests.clusters import cluster_of
from tokenizer import load_tokenizer


@pytest.fixture
def tokenizer(tiny_tokenizer):
    return load_tokenizer(tiny_tokenizer)


@pytest.fixture
def machine(monkeypatch):
    """Sets whether torch has NNPACK on this machine."""

    def become(has_nnpack):
        monkeypatch.setattr(encode_settings, "nnpack_works", lambda: has_nnpack)

    return become


def settings(tokenizer, older=None, image_size=256, **asked):
    flags = EncodeFlags(in_=(Path("in"),), out=Path("out"), **{"device": "cpu", **asked})
    devices = WorkerDevices(flags.workers)
    return plan_settings(flags, tokenizer, Transform(image_size=image_size), 100, older, devices)


def on_a_gpu(begun, **changed):
    """The settings of a store that was begun on a GPU."""
    track = {**begun.track, "device": "cuda", "precision": "tf32", "convolution": "direct"}
    return dataclasses.replace(begun, track={**track, **changed})


def test_on_cpus_a_batch_is_one_image_or_several_small_ones(tokenizer):
    sizes = {side: settings(tokenizer, image_size=side) for side in (1024, 256, 64, 8)}
    assert {side: found.track["batch_size"] for side, found in sizes.items()} == {
        1024: 1, 256: 1, 64: 16, 8: 256,
    }  # fmt: skip


def test_auto_takes_nnpack_where_it_exists_and_is_faster(tokenizer, machine):
    machine(has_nnpack=True)
    assert settings(tokenizer).track["convolution"] == "nnpack"
    assert settings(tokenizer, threads=2).track["convolution"] == "direct"
    assert settings(tokenizer, convolution="direct").track["convolution"] == "direct"
    machine(has_nnpack=False)
    assert settings(tokenizer).track["convolution"] == "direct"


def test_auto_keeps_the_settings_of_an_older_store(tokenizer, machine):
    machine(has_nnpack=False)
    begun = settings(tokenizer)
    machine(has_nnpack=True)
    again = settings(tokenizer, begun)
    assert again.track["convolution"] == "direct"
    check_same(Path("store"), begun, again)


def test_another_convolution_than_the_stores_is_refused(tokenizer, machine):
    machine(has_nnpack=True)
    begun = settings(tokenizer)
    other = settings(tokenizer, begun, convolution="direct")
    with pytest.raises(StoreError, match=r"--convolution \(the store has nnpack, asked for direct"):
        check_same(Path("store"), begun, other)


def test_a_store_of_a_version_that_read_files_otherwise_is_not_extended(tokenizer):
    begun = settings(tokenizer)
    older = {**begun.track["transform"], "decoding": "orientation applied, first frame"}
    begun = dataclasses.replace(begun, track={**begun.track, "transform": older})
    with pytest.raises(StoreError, match=r"read images otherwise: orientation applied, first"):
        check_same(Path("store"), begun, settings(tokenizer))


def test_the_decoder_of_a_store_is_recorded_and_not_changed(tokenizer):
    by_pillow = settings(tokenizer)
    other = {**by_pillow.track["transform"], **DECODERS["nvjpeg"]}
    by_nvjpeg = dataclasses.replace(by_pillow, track={**by_pillow.track, "transform": other})
    for decoder, begun, asked in (
        ("pillow", by_pillow, by_nvjpeg),
        ("nvjpeg", by_nvjpeg, by_pillow),
    ):
        check_same(Path("store"), begun, begun)
        with pytest.raises(StoreError, match=f"was made with --decoder {decoder}, whose pixels"):
            check_same(Path("store"), begun, asked)
    with pytest.raises(ConfigError, match="nvjpeg is for GPUs"):
        settings(tokenizer, decoder="nvjpeg")
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert source_of(by_pillow.track, tokenizer.modality, gpu).read
    with pytest.raises(ConfigError, match="begun with --decoder nvjpeg, which needs a GPU"):
        source_of(by_nvjpeg.track, tokenizer.modality, cpu)


def test_missing_nnpack_is_reported_before_planning(tokenizer, machine):
    machine(has_nnpack=True)
    begun = settings(tokenizer)
    machine(has_nnpack=False)
    with pytest.raises(ConfigError, match="store was made with it, but torch has no NNPACK"):
        settings(tokenizer, begun)
    with pytest.raises(ConfigError, match="--convolution direct"):
        settings(tokenizer, convolution="nnpack")
    # Actors run on other machines, and each checks its own.
    assert settings(tokenizer, begun, workers=2).track == begun.track


def test_a_store_begun_on_a_gpu_goes_on_on_a_cpu_where_that_is_accepted(tokenizer):
    begun = on_a_gpu(settings(tokenizer))
    with pytest.raises(StoreError, match=r"--device \(the store has cuda.* --accept device preci"):
        check_same(Path("store"), begun, settings(tokenizer, begun, device="cpu"))
    flags = EncodeFlags(in_=(Path("in"),), out=Path("out"), device="cpu", accept=("device",))
    other = settings(tokenizer, begun, device="cpu", accept=("device",))
    check_same(Path("store"), begun, other, accepted(flags.accept, False))
    assert run_environment(flags, begun.track, WorkerDevices()) == {
        "device": "cpu", "precision": "float32", "convolution": "direct",
    }  # fmt: skip
    if not torch.cuda.is_available():
        flags = EncodeFlags(in_=(Path("in"),), out=Path("out"))
        with pytest.raises(ConfigError, match=r"was begun there\. --accept device goes on"):
            run_environment(flags, begun.track, WorkerDevices())


@pytest.mark.parametrize(
    ("begun", "word"),
    [({"precision": "float32"}, "precision"), ({"torch": "1.0"}, "torch-version")],
)
def test_another_precision_or_torch_is_refused_unless_it_is_accepted(tokenizer, begun, word):
    asked = {"precision": "bfloat16", "convolution": "direct"}
    first = settings(tokenizer, **asked)
    first = dataclasses.replace(first, track={**first.track, **begun})
    again = settings(tokenizer, first, **asked)
    with pytest.raises(StoreError, match=f"--accept {word} goes on"):
        check_same(Path("store"), first, again, accepted(("device",), False))
    check_same(Path("store"), first, again, accepted((word,), False))
    check_same(Path("store"), first, again, accepted((), True))
    if word == "precision":  # without the flag it goes on as it was begun
        check_same(Path("store"), first, settings(tokenizer, first))


def test_the_default_precision_is_that_of_the_device_and_a_cpu_has_no_tf32(tokenizer):
    assert settings(tokenizer).track["precision"] == "float32"
    assert settings(tokenizer, precision="tf32").track["precision"] == "float32"
    with cluster_of(gpus=4):
        found = settings(tokenizer, device="auto", workers=2).track
        assert (found["device"], found["precision"]) == ("cuda", "tf32")
        assert found["batch_size"] == 64
        exact = settings(tokenizer, device="cuda", precision="float32", workers=2).track
        assert exact["precision"] == "float32"


def test_stores_of_versions_that_recorded_no_precision_go_on(tokenizer):
    begun = settings(tokenizer)
    older = {n: v for n, v in begun.track.items() if n not in ("precision", "torch")}
    begun = dataclasses.replace(begun, track=older)
    check_same(Path("store"), begun, settings(tokenizer, begun))
    on_gpu = on_a_gpu(begun)
    del on_gpu.track["precision"]  # then torch's own choice was TF32
    assert settings(tokenizer, on_gpu, device="cuda").track["precision"] == "tf32"


def test_nnpack_is_for_float32_on_cpus(tokenizer, machine):
    machine(has_nnpack=True)
    with cluster_of(gpus=1):
        gpu = {"device": "cuda", "workers": 1}
        assert settings(tokenizer, **gpu).track["convolution"] == "direct"
        with pytest.raises(ConfigError, match="for float32 on CPUs"):
            settings(tokenizer, **gpu, convolution="nnpack")
    assert settings(tokenizer, precision="bfloat16").track["convolution"] == "direct"
    with pytest.raises(ConfigError, match="for float32 on CPUs"):
        settings(tokenizer, precision="bfloat16", convolution="nnpack")
    begun, accept = settings(tokenizer), {"precision": "bfloat16", "accept": ("precision",)}
    check_same(
        Path("store"), begun, settings(tokenizer, begun, **accept), accepted(("precision",), False)
    )
    flags = EncodeFlags(in_=(Path("in"),), out=Path("out"), **accept)
    assert run_environment(flags, begun.track, WorkerDevices())["convolution"] == "direct"


@pytest.mark.parametrize("convolution", ["direct", "nnpack"])
def test_workers_use_the_convolution_of_the_store(run, photographs, convolution):
    if convolution == "nnpack" and not nnpack_works():
        pytest.skip("this torch has no NNPACK for this processor")
    assert run(photographs, convolution=convolution) == 0
    worker = EncodeWorker(run.out)
    methods = {m.method for m in worker.tokenizer.modules() if isinstance(m, Convolution)}
    assert methods == {convolution}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (1, 256),
        (100_000, 1600),
        (1_000_000, 4096),
        (10_000_000, 9792),
        (100_000_000, 65_536),
        (10**10, 65_536),
    ],
)
def test_tasks_grow_with_the_number_of_rows(tokenizer, rows, expected):
    transform = Transform(image_size=64, crop="center", multiple_of=8)
    flags = EncodeFlags(in_=(Path("in"),), out=Path("out"), device="cpu")
    found = plan_settings(flags, tokenizer, transform, rows, None, WorkerDevices())
    assert found.rows_per_task == expected
    assert plan_settings(flags, tokenizer, transform, 1, found, WorkerDevices()) == found
