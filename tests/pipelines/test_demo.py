"""The demo: photographs from installed packages, each stage done once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ops.images import decode_image
from pipelines import demo
from tokenizer import build_tokenizer, save_tokenizer

BROKEN = b"GIF89a"  # an image's first bytes only


def test_photographs_are_real_and_need_no_download(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    demo.gather_photographs(tmp_path)
    paths = sorted(tmp_path.iterdir())
    assert 8 <= len(paths) <= len(demo.PHOTOGRAPHS)
    for path in paths:
        image = decode_image(path.read_bytes())
        assert min(image.shape[:2]) >= 256
        assert len(np.unique(image)) > 100


def test_gathering_again_keeps_the_photographs(tmp_path: Path) -> None:
    demo.gather_photographs(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    demo.gather_photographs(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_missing_packages_are_an_error_that_names_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "PHOTOGRAPHS", (("no_such_package", "a.png"),))
    with pytest.raises(demo.UserError, match="--images"):
        demo.gather_photographs(tmp_path)


def test_a_demo_with_other_settings_is_renamed(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    assert demo.set_aside(out, {"images": "a"}) is None
    for name in ("a", "b"):
        out.mkdir()
        (out / "demo.json").write_text(json.dumps({"images": name}))
        assert demo.set_aside(out, {"images": name}) is None
        renamed = demo.set_aside(out, {"images": "c"})
        assert renamed is not None
        assert json.loads((renamed / "demo.json").read_text()) == {"images": name}
        assert not out.exists()


def test_timings_add_up_over_runs(tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    for stage, seconds in (("encode", 1.0), ("train", 5.0), ("encode", 0.5)):
        demo.add_timing(path, stage, seconds)
    assert json.loads(path.read_text()) == [
        {"stage": "encode", "seconds": 1.5},
        {"stage": "train", "seconds": 5.0},
    ]


def shapes(folder: Path) -> list[tuple[int, ...]]:
    return [decode_image(path.read_bytes()).shape for path in folder.glob("sample-*.png")]


def test_a_small_demo_completes_and_does_nothing_again(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    save_tokenizer(tmp_path / "tokenizer", build_tokenizer("tiny"))
    flags = ["--images", str(photographs), "--out", str(out)]
    flags += ["--tokenizer", str(tmp_path / "tokenizer"), "--image-size", "128"]
    flags += ["--steps", "2", "--samples", "1", "--canvas", "144x72"]
    assert demo.main(flags) == 0
    assert "100 rows of 16x16 codes" in capsys.readouterr().out
    assert shapes(out / "samples") == [(128, 128, 3)]
    assert shapes(out / "canvas") == [(72, 144, 3)]
    page = (out / "report.html").read_text()
    assert page.count(" dB</figcaption>") == 10
    assert "Timings" in page

    images = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert demo.main(flags) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == images
    assert str(out / "report.html") in capsys.readouterr().out


def test_a_failed_stage_stops_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "imgs").mkdir()
    (tmp_path / "imgs" / "bad.gif").write_bytes(BROKEN)
    save_tokenizer(tmp_path / "tokenizer", build_tokenizer("tiny"))
    flags = ["--images", str(tmp_path / "imgs"), "--out", str(tmp_path / "demo")]
    assert demo.main([*flags, "--tokenizer", str(tmp_path / "tokenizer")]) == 1
    assert "stopped in stage 'Encode the photographs'" in capsys.readouterr().err
    assert not (tmp_path / "demo" / "prior").exists()
