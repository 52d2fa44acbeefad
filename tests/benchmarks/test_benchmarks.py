"""Every benchmark runs at its smallest size, with a stand-in for the peer."""

import json
import re

import bench_class_accuracy
import bench_encode
import bench_gpu
import bench_local_prior
import bench_prior_step
import bench_quantizers
import bench_scale
import bench_sliding_window
import bench_sources
import bench_stream
import bench_stride_quality
import bench_tokenizer
import bench_upscaler
import numpy as np
import pytest
import torch
from compvis_peer import import_peer
from peer_stand_in import write_stand_in

from ops.images import write_png
from pipelines import generate
from pipelines.conditioning import tokenizer_info
from prior import (
    ClassLabel,
    Conditions,
    LowResolution,
    StartOfSequence,
    condition_sizes,
    make_model,
    preset_config,
    save_prior,
)
from tests.generate_run import make_run
from tokenizer import build_tokenizer, save_tokenizer

TINY_TRANSFORMER = ["--layers", "1", "--width", "32", "--heads", "2"]


@pytest.fixture(autouse=True)
def _keep_number_of_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    return str(write_stand_in(tmp_path_factory.mktemp("taming")))


@pytest.fixture(scope="module")
def tiny_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "model"
    save_tokenizer(folder, build_tokenizer("tiny", seed=0))
    return str(folder)


def ratio(text):
    return float(re.search(r"ratio ([\d.]+)$", text.strip())[1])


def test_encode(tiny_tokenizer, capsys):
    flags = ["--images", "2", "--rounds", "1", "--tokenizer", tiny_tokenizer]
    assert bench_encode.main([*flags, "--what", "command"]) == 0
    assert ratio(capsys.readouterr().out) > 0


@pytest.mark.slow
@pytest.mark.ray
def test_encode_workers(tiny_tokenizer, capsys):
    flags = ["--images", "60", "--rounds", "1", "--tokenizer", tiny_tokenizer]
    assert bench_encode.main([*flags, "--what", "workers"]) == 0
    assert "workers ratio" in capsys.readouterr().out


@pytest.mark.parametrize("variant", [["peer"], ["peer", "--unconditional"], []])
def test_sliding_window(peer, variant, capsys):
    variant = ["--peer", peer, *variant[1:]] if variant else []
    flags = [*TINY_TRANSFORMER, *variant, "--grid", "18", "--cells", "3", "--threads", "1"]
    assert bench_sliding_window.main(flags) == 0
    out = capsys.readouterr().out
    assert "3 of 3 sampled cells have the loop's code" in out
    assert ratio(out) > 0


def test_sliding_window_times_a_part_of_many_rows(monkeypatch, capsys):
    monkeypatch.setattr(bench_sliding_window, "MANY_ROWS", 16)
    monkeypatch.setattr(bench_sliding_window, "MIDDLE_ROWS", 1)
    flags = [*TINY_TRANSFORMER, "--grid", "18", "--stride", "1", "--cells", "2", "--threads", "1"]
    assert bench_sliding_window.main(flags) == 0
    out = capsys.readouterr().out
    assert "timed rows 0 to 8, counted 1.00 times" in out
    assert "timed rows 10 to 17, counted 1.00 times" in out


@pytest.mark.parametrize("peer_flags", [True, False])
def test_local_prior(peer, peer_flags, capsys):
    peer_flags = ["--peer", peer] if peer_flags else []
    flags = [*TINY_TRANSFORMER, *peer_flags, "--grid", "16", "--cells", "2", "--threads", "1"]
    assert bench_local_prior.main(flags) == 0
    assert ratio(capsys.readouterr().out) > 0


def test_prior_step(peer, capsys):
    sizes = ["--codes", "16", "--batch-size", "1", "--rounds", "1", "--steps", "1"]
    flags = [*TINY_TRANSFORMER, *sizes, "--threads", "1", "--peer", peer]
    assert bench_prior_step.main([*flags, "--conditions", "256", "1", "--in-process"]) == 0
    losses = re.findall(r"loss after the last step ([\d.]+)", capsys.readouterr().out)
    assert [float(loss) for loss in losses] == pytest.approx([2.77] * 4, abs=0.1)  # log(16)


def test_tokenizer(peer, capsys):
    sizes = ["--channels", "32", "--size", "32", "--rounds", "1", "--threads", "1"]
    assert bench_tokenizer.main([*sizes, "--peer", peer, "--in-process"]) == 0
    out = capsys.readouterr().out
    assert out.count("100.00 % of the codes equal") == 2
    assert out.count("pixels differ by at most") == 2
    assert ratio(out) > 0


def test_tokenizer_without_a_peer(capsys):
    sizes = ["--channels", "32", "--size", "32", "--rounds", "1", "--threads", "1"]
    assert bench_tokenizer.main([*sizes, "--what", "encode", "--in-process"]) == 0
    assert "encode, nnpack" in capsys.readouterr().out


def test_quantizers(capsys):
    flags = ["--steps", "1", "--images", "24", "--kinds", "vq", "fsq"]
    assert bench_quantizers.main(flags) == 0
    assert capsys.readouterr().out.count("\n| ") == 4


def test_store(tmp_path, capsys):
    assert bench_scale.main(["--rows", "64", "--folder", str(tmp_path), "--in-process"]) == 0
    out = capsys.readouterr().out
    assert all(stage in out for stage in bench_scale.STAGES)


def test_stream(monkeypatch, capsys):
    monkeypatch.setattr(bench_stream, "CODES", 256)
    sizes = ["--rows", "64", "--rows-per-task", "16", "--files", "8", "--batch-sizes", "4"]
    assert bench_stream.main([*sizes, "--rounds", "1", "--seconds", "0.05"]) == 0
    assert "batch 4:" in capsys.readouterr().out


def test_sources(tiny_tokenizer, capsys):
    flags = ["--images", "4", "--rounds", "1", "--tokenizer", tiny_tokenizer, "--size", "32"]
    assert bench_sources.main(flags) == 0
    out = capsys.readouterr().out
    assert "codes equal from 6 sources: 4 images" in out
    assert len(re.findall(r"ratio [\d.]+$", out, re.MULTILINE)) == 6


def test_stride_quality(tmp_path, tiny_tokenizer, capsys):
    conditions = Conditions([StartOfSequence()], 256)
    config = preset_config("study", **condition_sizes("study", conditions, 4), num_layers=1)
    info = {"name": "tiny", "fingerprint": "-", "codebook_size": 256, "downsample_factor": 8}
    save_prior(tmp_path / "prior", make_model(config), conditions, info)
    out = tmp_path / "strides.png"
    flags = ["--prior", str(tmp_path / "prior"), "--rows", "6", "--columns", "5"]
    flags += ["--stride", "1", "2", "--tokenizer", tiny_tokenizer, "--out", str(out)]
    assert bench_stride_quality.main([*flags, "--threads", "1"]) == 0
    assert capsys.readouterr().out.count("nats a code at stride 1") == 2
    assert out.exists()


def test_class_accuracy(tmp_path, capsys):
    for name, brightness in (("dark", 0), ("light", 1)):
        (tmp_path / "real" / name).mkdir(parents=True)
        for number in range(24):
            image = np.full((20, 20, 3), 200 * brightness + number, np.uint8)
            write_png(tmp_path / "real" / name / f"{number}.png", image)
    run = make_run(tmp_path / "run", ClassLabel(num_classes=2))
    samples = tmp_path / "samples"
    flags = ["--prior", str(run), "--size", "32x32", "--count", "4", "--labels", "0,1"]
    assert generate.main([*flags, "--out", str(samples)]) == 0
    for number, shade in enumerate((10, 210, 210, 10)):  # of the classes 0, 1, 0, 1
        write_png(samples / f"sample-{number:05d}.png", np.full((32, 32, 3), shade, np.uint8))
    capsys.readouterr()
    flags = ["--data", str(tmp_path / "real"), "--samples", str(samples), "--size", "16"]
    assert bench_class_accuracy.main([*flags, "--epochs", "40", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "held-out photographs: 100.0%" in out
    assert f"{samples}: 50.0% of 4 in the class asked for, ratio 0.50" in out
    assert "dark: 1 of 2" in out
    assert "light: 1 of 2" in out


def test_upscaler(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_upscaler, "patch_distance", lambda *_: 0.0)  # loads photo-f8
    tokenizer = build_tokenizer("tiny", seed=0)
    save_tokenizer(tmp_path / "tokenizer", tokenizer)
    info = tokenizer_info(tokenizer)
    part = LowResolution(codebook_size=info["codebook_size"], ratio=4)
    conditions = Conditions([part], info["codebook_size"])
    config = preset_config(
        "study-local", **condition_sizes("study-local", conditions, 4), num_layers=1
    )
    save_prior(tmp_path / "prior", make_model(config), conditions, info)
    images, out = bench_encode.make_images(tmp_path / "images", 2), tmp_path / "pairs.png"
    flags = ["--prior", str(tmp_path / "prior"), "--data", str(images), "--side", "32"]
    assert bench_upscaler.main([*flags, "--out", str(out), "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in ("bicubic", flags[1], "reconstruction"))
    assert out.exists()


def test_gpu_sections(capsys):
    """On a CPU, at their smallest size."""
    for section in ("ceilings", "sampling", "prior_training"):
        assert bench_gpu.main(["--section", section, "--device", "cpu", "--small"]) == 0
    rows = [
        json.loads(line.removeprefix(bench_gpu.MARK))
        for line in capsys.readouterr().out.splitlines()
        if line.startswith(bench_gpu.MARK)
    ]
    table = bench_gpu.table(rows)
    assert len(table.splitlines()) == 2 + len(rows)
    assert "| matrix product, bfloat16 | tflops " in table
    assert "| training, tiny, batch 2 |" in table
    assert all(row["figures"] for row in rows)


def test_gpu_sections_without_time_are_listed_as_not_run(capsys):
    flags = ["--only", "encoding", "decoding", "--seconds", "1", "--device", "cpu", "--small"]
    assert bench_gpu.main(flags) == 1
    out = capsys.readouterr().out
    assert "| encoding | error not run: no time left |" in out
    assert "| decoding | error not run: no time left |" in out


def test_a_folder_that_is_not_a_checkout_is_explained(tmp_path):
    with pytest.raises(
        SystemExit, match=r"not a checkout of taming-transformers.*check out 3ba01b2"
    ):
        import_peer(tmp_path, "taming.modules.transformer.mingpt")


def test_a_missing_package_of_the_peer_is_named(tmp_path):
    path = tmp_path / "taming" / "modules" / "vqvae"
    path.mkdir(parents=True)
    (path / "needs_einops.py").write_text("import a_package_that_is_missing\n")
    with pytest.raises(
        SystemExit, match=r"needs the package a_package_that_is_missing.*pip install"
    ):
        import_peer(tmp_path, "taming.modules.vqvae.needs_einops")
