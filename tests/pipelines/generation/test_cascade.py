"""generate --upscale: sizes, what each stage is conditioned on, resuming and extending."""

import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ops.config import ConfigError
from pipelines.generation import image_writer, worker
from pipelines.generation.settings import read_record
from pipelines.generation.stage_sizes import stage_sizes
from prior import ClassLabel, LowResolution, StartOfSequence, load_prior
from tests.cascade_run import make_prior
from tests.conftest import photograph
from tests.generate_run import contents, everything, generate, image_in
from tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def priors(tmp_path_factory):
    """The flags that name a base with classes, and an upscaler that recommends a temperature."""
    root = tmp_path_factory.mktemp("priors")
    base = make_prior(root / "base", "tiny", ClassLabel(num_classes=3))
    upscaler = make_prior(root / "upscaler", "tiny-local", LowResolution, {"temperature": 0.7})
    return {"prior": base, "upscale": upscaler}


def cascade(priors, out, *flags):
    words = ["--upscale", priors["upscale"], "--size", "80x56", "--labels", "0,2", *flags]
    return generate(priors["prior"], out, *words)


@given(
    width=st.integers(1, 12_000), height=st.integers(1, 12_000),
    side=st.integers(8, 512), ratio=st.integers(2, 8),
)  # fmt: skip
def test_stages_grow_from_the_base_to_the_target(width, height, side, ratio):
    if max(width, height) <= side:
        with pytest.raises(ConfigError, match="not larger than"):
            stage_sizes((width, height), side, ratio)
        return
    sizes = stage_sizes((width, height), side, ratio)
    assert max(sizes[0]) == side
    assert sizes[-1] == (width, height)
    for before, after in itertools.pairwise(sizes):
        assert max(before) < max(after) <= ratio * max(before)
        assert min(after) >= min(before)


def test_each_stage_is_made_from_the_one_before(priors, tmp_path, capsys):
    out = tmp_path / "out"
    assert cascade(priors, out, "--count", 3, "--temperature", 0.9) == 0
    assert "stage 3 of 3" in capsys.readouterr().out
    first, second = out / "stages" / "32x22", out / "stages" / "64x45"
    assert [image_in(folder / "sample-00002.png").shape for folder in (first, second, out)] == [
        (22, 32, 3), (45, 64, 3), (56, 80, 3),
    ]  # fmt: skip
    labels = pq.read_table(first / "index")["label"].to_pylist()
    assert labels == [0, 2, 0]
    alone = tmp_path / "alone"
    flags = ["--condition", f"low_res={tmp_path / 'given'}", "--size", "64x45", "--count", 3]
    (tmp_path / "given").mkdir()
    for name, data in contents(first).items():
        (tmp_path / "given" / name).write_bytes(data)
    assert generate(priors["upscale"], alone, *flags) == 0
    assert contents(alone) == contents(second)


def test_a_larger_count_and_an_interruption_change_no_sample(priors, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "out"
    flags = ["--batch-size", 2, "--samples-per-task", 2]
    assert cascade(priors, whole, *flags, "--count", 5) == 0
    assert cascade(priors, out, *flags, "--count", 2) == 0
    draw, drawn = image_writer.write_png_strips, []

    def interrupted(path, *arguments, **options):
        drawn.append(path)
        if len(drawn) == 5:  # in the second stage
            raise KeyboardInterrupt
        draw(path, *arguments, **options)

    monkeypatch.setattr(image_writer, "write_png_strips", interrupted)
    assert cascade(priors, out, *flags, "--count", 5) == 130
    monkeypatch.undo()
    assert cascade(priors, out, *flags, "--count", 5) == 0
    assert {k: v for k, v in everything(out).items() if k.endswith(".png")} == {
        k: v for k, v in everything(whole).items() if k.endswith(".png")
    }


def test_one_sample_alone_is_the_same(priors, tmp_path):
    assert cascade(priors, tmp_path / "all", "--count", 3, "--batch-size", 2) == 0
    assert cascade(priors, tmp_path / "one", "--count", 3, "--batch-size", 2, "--only", 1) == 0
    one = contents(tmp_path / "one")
    assert list(one) == ["sample-00001.png"]
    assert one.items() <= contents(tmp_path / "all").items()


def test_a_sample_that_the_base_gave_up_is_given_up(priors, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert cascade(priors, out, "--count", 1, "--batch-size", 1) == 0
    given_up = worker.SampleLine(worker.CRASHED, "made-up")
    put = worker.SampleBuffer.put

    def crashing(buffer, place, line, codes=None):
        crashes = buffer.samples[place] == 1 and "32x22" in str(buffer.root)
        put(buffer, place, given_up, None) if crashes else put(buffer, place, line, codes)

    monkeypatch.setattr(worker.SampleBuffer, "put", crashing)
    assert cascade(priors, out, "--count", 3, "--batch-size", 1) == 1
    monkeypatch.undo()
    index = pq.read_table(out / "index").sort_by("sample")
    assert index["status"].to_pylist() == ["ok", "crashed", "ok"]
    assert "was given up" in index["error"][1].as_py()
    assert cascade(priors, out, "--count", 3, "--batch-size", 1, "--retry-failed") == 0
    assert pq.read_table(out / "index")["status"].to_pylist() == ["ok"] * 3


def test_known_halves_are_known_in_every_stage(priors, tmp_path):
    Image.fromarray(photograph(0, 56, 80)).save(tmp_path / "known.png")
    out, flags = tmp_path / "out", ["--condition", f"half={tmp_path / 'known.png'}", "--count", 1]
    assert cascade(priors, out, *flags) == 0
    tokenizer = load_tokenizer(priors["prior"] / "tokenizer")
    for folder, (width, height) in ((out / "stages" / "64x45", (64, 45)), (out, (80, 56))):
        found = image_in(folder / "sample-00000.png").astype(float)
        shown = np.asarray(Image.open(tmp_path / "known.png").resize((width, height)), float)
        pixels = torch.from_numpy(shown / 127.5 - 1).float().permute(2, 0, 1)[None]
        expected = tokenizer.decode(tokenizer.encode(pixels), size=(height, width))
        expected = (expected[0].permute(1, 2, 0).clamp(-1, 1).numpy() + 1) * 127.5
        top = height // 2 - 16  # beyond what the lower half's codes reach
        assert np.abs(found[:top] - expected[:top]).mean() < 12


def test_what_cannot_be_a_cascade_is_refused(priors, tmp_path, capsys):
    out = tmp_path / "out"
    swapped = {"prior": priors["prior"], "upscale": priors["prior"]}
    for where, flags, said in (
        (priors, ["--size", "32x32"], "not larger than the 32 that"),
        (swapped, [], "must have been trained with the condition low_res"),
        ({**priors, "upscale": "nonesuch"}, [], "neither a folder nor one of the bundled"),
        (priors, ["--condition", "boxes=x"], "does not take the condition 'boxes'"),
    ):
        assert cascade(where, out, *flags) == 2
        assert said in capsys.readouterr().err


def test_recommended_settings_are_used_unless_flags_name_others(tmp_path, priors):
    recommended = {"temperature": 0.5, "top_p": 0.8}
    run = make_prior(tmp_path / "run", "tiny", StartOfSequence(), recommended)
    assert generate(run, tmp_path / "a", "--count", 1) == 0
    assert generate(run, tmp_path / "b", "--count", 1, "--temperature", 0.25) == 0
    found = [read_record(tmp_path / name) for name in "ab"]
    assert [each["temperature"] for each in found] == [0.5, 0.25]
    assert [each["top_p"] for each in found] == [0.8, 0.8]


def test_the_python_api_uses_recommended_settings(tmp_path):
    run = make_prior(tmp_path / "run", "tiny", StartOfSequence(), {"temperature": 0.0})
    prior = load_prior(run)
    assert torch.equal(prior.sample(seed=0), prior.sample(seed=1))  # the most probable codes
    assert not torch.equal(prior.sample(seed=0, temperature=1), prior.sample(seed=1, temperature=1))
