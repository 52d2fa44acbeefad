"""The settings of a new store: the choices of `auto`, and what later runs must match."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from ops.config import ConfigError
from ops.cpu import Convolution, nnpack_works
from ops.images import Transform
from pipelines.encoding import settings as encode_settings
from pipelines.encoding.flags import EncodeFlags
from pipelines.encoding.settings import (
    accepted_environment,
    check_same,
    plan_settings,
    record_environment,
)
from pipelines.encoding.worker import EncodeWorker
from pipelines.planning import read_plan
from pipelines.store import StoreError
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
    flags = EncodeFlags(in_=Path("in"), out=Path("out"), **{"device": "cpu", **asked})
    return plan_settings(flags, tokenizer, Transform(image_size=image_size), 100, older)


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


def test_a_store_begun_on_a_gpu_goes_on_on_a_cpu_where_that_is_accepted(run, photographs):
    assert run(photographs, image_size=32, device="cpu") == 0
    track = read_plan(run.out).settings.track | {"device": "cuda", "convolution": "direct"}
    begun = dataclasses.replace(read_plan(run.out).settings, track=track)
    tokenizer = load_tokenizer(run.tokenizer)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"begun there\. --accept device goes on"):
            settings(tokenizer, begun, device="auto")
    other = settings(tokenizer, begun, device="cpu")
    with pytest.raises(StoreError, match=r"--device \(the store has cuda.* --accept device goes"):
        check_same(run.out, begun, other)
    for device in ("cpu", "auto"):
        asked = {"device": device, "accept": ("device",)}
        assert settings(tokenizer, begun, **asked).track["device"] == "cuda"
    flags = EncodeFlags(in_=photographs, out=run.out, device="cpu", accept=("device",))
    environment = accepted_environment(flags, track)
    assert environment == {"device": "cpu", "convolution": "direct"}
    assert accepted_environment(flags, track | environment) == {}
    record_environment(run.out, environment, read_plan(run.out).tasks[:2])
    (entry,) = json.loads((run.out / "environments.json").read_text())
    assert entry["tasks"] == ["4x4/0", "4x4/1"]
    assert (entry["device"], entry["torch"]) == ("cpu", torch.__version__)
    worker = EncodeWorker(run.out, environment={"convolution": "direct"})
    assert {m.method for m in worker.tokenizer.modules() if isinstance(m, Convolution)} == {
        "direct"
    }


def test_nnpack_is_for_cpus(tokenizer, machine, monkeypatch):
    machine(has_nnpack=True)
    device = dataclasses.make_dataclass("Device", [("type", str)])
    monkeypatch.setattr(encode_settings, "resolve_device", lambda name: device("cuda"))
    assert settings(tokenizer, device="cuda").track["convolution"] == "direct"
    with pytest.raises(ConfigError, match="for CPUs"):
        settings(tokenizer, device="cuda", convolution="nnpack")


@pytest.mark.parametrize("convolution", ["direct", "nnpack"])
def test_workers_use_the_convolution_of_the_store(run, photographs, convolution):
    if convolution == "nnpack" and not nnpack_works():
        pytest.skip("this torch has no NNPACK for this processor")
    assert run(photographs, convolution=convolution) == 0
    worker = EncodeWorker(run.out)
    methods = {m.method for m in worker.tokenizer.modules() if isinstance(m, Convolution)}
    assert methods == {convolution}
