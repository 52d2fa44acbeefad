"""The demo: photographs from installed packages, each stage done once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ops.images import decode_image
from pipelines import demo, demo_stages
from pipelines.flags import DemoFlags
from pipelines.inputs import list_input
from prior import model_folder
from tests.cascade_run import make_bundled
from tokenizer import build_tokenizer, save_tokenizer

BROKEN = b"GIF89a"  # an image's first bytes only


def test_photographs_are_real_and_need_no_download(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    demo_stages.gather_photographs(tmp_path)
    paths = sorted(tmp_path.iterdir())
    assert 8 <= len(paths) <= len(demo_stages.PHOTOGRAPHS)
    for path in paths:
        image = decode_image(path.read_bytes())
        assert min(image.shape[:2]) >= 256
        assert len(np.unique(image)) > 100


def test_gathering_again_keeps_the_photographs(tmp_path: Path) -> None:
    demo_stages.gather_photographs(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    demo_stages.gather_photographs(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_missing_packages_are_an_error_that_names_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_stages, "PHOTOGRAPHS", (("no_such_package", "a.png"),))
    with pytest.raises(demo_stages.UserError, match="--images"):
        demo_stages.gather_photographs(tmp_path)


def test_a_demo_with_other_settings_is_renamed(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    assert demo_stages.set_aside(out, {"images": "a"}) is None
    for name in ("a", "b"):
        out.mkdir()
        (out / "demo.json").write_text(json.dumps({"images": name}))
        assert demo_stages.set_aside(out, {"images": name}) is None
        renamed = demo_stages.set_aside(out, {"images": "c"})
        assert renamed is not None
        assert json.loads((renamed / "demo.json").read_text()) == {"images": name}
        assert not out.exists()


def test_timings_add_up_over_runs(tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    for stage, seconds in (("encode", 1.0), ("train", 5.0), ("encode", 0.5)):
        demo_stages.add_timing(path, stage, seconds)
    assert json.loads(path.read_text()) == [
        {"stage": "encode", "seconds": 1.5},
        {"stage": "train", "seconds": 5.0},
    ]


def shapes(folder: Path) -> list[tuple[int, ...]]:
    return [decode_image(path.read_bytes()).shape for path in folder.glob("sample-*.png")]


def run_demo(photographs: Path, root: Path) -> int:
    if not (root / "tokenizer").exists():
        save_tokenizer(root / "tokenizer", build_tokenizer("tiny"))
    flags = ["--images", str(photographs), "--out", str(root / "demo"), "--image-size", "128"]
    flags += ["--tokenizer", str(root / "tokenizer"), "--steps", "2", "--samples", "1"]
    return demo.main(flags)


#: The demo's command without bundled priors, whose stages would take most of its time.
WITHOUT_PRIORS = """
import sys
from pathlib import Path

from pipelines import demo
from prior import model_folder

model_folder.WEIGHTS = Path("none")
sys.exit(demo.main())
"""


def test_the_command_works_with_threads(photographs: Path, tmp_path: Path) -> None:
    """Its worker processes must not be forked after this process has computed with threads."""
    flags = ["--images", str(photographs), "--out", str(tmp_path / "demo"), "--image-size", "128"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PRIORS, *flags, "--steps", "1", "--samples", "1"],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo/report.html").exists()


def test_a_small_demo_completes_and_does_nothing_again(
    photographs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_bundled(tmp_path / "weights")
    monkeypatch.setattr(model_folder, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(demo_stages, "THUMBNAIL", 40)
    out = tmp_path / "demo"
    assert run_demo(photographs, tmp_path) == 0
    assert "100 rows of 16x16 codes" in capsys.readouterr().out
    assert shapes(out / "samples") == [(128, 128, 3)]
    assert shapes(out / "clothing") == [(64, 64, 3)] * 3
    assert shapes(out / "enlarged") == [(80, 80, 3)]
    page = (out / "report.html").read_text()
    titles = ["A thumbnail enlarged", "Clothing", "Photographs and their codes"]
    titles += ["A first minute of training", "Timings"]
    places = [page.index(f"<h2>{title}</h2>") for title in titles]
    assert places == sorted(places)
    assert page.count(" dB</figcaption>") == 10
    assert page.count("right: by the prior") == 4  # two captions, and texts for screen readers
    assert page.count("sample-00002: 32x32, then enlarged</figcaption>") == 1

    images = {path: path.stat().st_mtime_ns for path in out.rglob("sample-*.png")}
    assert run_demo(photographs, tmp_path) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("sample-*.png")} == images
    assert str(out / "report.html") in capsys.readouterr().out


def test_stages_without_their_bundled_prior_are_left_out(
    photographs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_folder, "WEIGHTS", tmp_path / "none")
    flags = DemoFlags(images=photographs, out=tmp_path / "demo")
    for name, stage in demo_stages.stages_of(flags, photographs):
        if "bundled" in name:
            assert stage() == 0
    assert capsys.readouterr().out.splitlines() == [
        "left out: these priors are not bundled: clothing, photo-upscale4",
        "left out: these priors are not bundled: photo-upscale4",
    ]
    assert not (tmp_path / "demo").exists()


def test_the_largest_photograph_is_shrunk(tmp_path: Path) -> None:
    for name, size in (("a", (50, 20)), ("b", (30, 31)), ("c", (31, 30))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    (tmp_path / "d.png").write_bytes(BROKEN)
    assert demo_stages.largest_image(list_input(tmp_path).entries).key == "b.png"
    with pytest.raises(demo_stages.UserError, match="can be read"):
        demo_stages.largest_image([])


def test_a_failed_stage_stops_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "imgs").mkdir()
    (tmp_path / "imgs" / "bad.gif").write_bytes(BROKEN)
    save_tokenizer(tmp_path / "tokenizer", build_tokenizer("tiny"))
    flags = ["--images", str(tmp_path / "imgs"), "--out", str(tmp_path / "demo")]
    assert demo.main([*flags, "--tokenizer", str(tmp_path / "tokenizer")]) == 1
    assert "stopped in stage 'Encode the photographs'" in capsys.readouterr().err
    assert not (tmp_path / "demo" / "prior").exists()
