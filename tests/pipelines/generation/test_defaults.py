"""generate without --prior, --size or --count: bundled priors, and what its inputs suggest."""

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import generate
from pipelines.generation import defaults
from pipelines.generation.settings import read_record
from prior import bundled_priors, load_prior, model_folder
from tests.cascade_run import make_bundled, make_prior
from tests.conftest import photograph
from tests.generate_run import image_in


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    make_bundled(root)
    return root


@pytest.fixture
def bundled(weights, monkeypatch, tmp_path):
    monkeypatch.setattr(model_folder, "WEIGHTS", weights)
    monkeypatch.chdir(tmp_path)


def run(*words):
    return generate.main([*map(str, words)])


def thumbs(folder, *sizes):
    folder.mkdir()
    for number, (width, height) in enumerate(sizes):
        Image.fromarray(photograph(number, height, width)).save(folder / f"{number}.png")
    return f"low_res={folder}"


def test_without_a_prior_the_bundled_ones_make_every_class(bundled, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--out", out) == 0
    assert "prior: clothing, enlarged by photo-upscale4" in capsys.readouterr().out
    assert image_in(out / "sample-00003.png").shape == (64, 64, 3)  # twice the base's 32
    labels = pq.read_table(out / "stages" / "32x32" / "index")["label"].to_pylist()
    assert labels == [0, 1, 2, 0]
    base = read_record(out / "stages" / "32x32")
    assert (base["top_p"], base["guidance_scale"], base["temperature"]) == (0.9, 2.0, 1.0)
    assert read_record(out)["temperature"] == 0.7
    assert run("--out", out) == 0
    assert "nothing left to do" in capsys.readouterr().out


def test_flags_replace_what_the_bundled_priors_would_do(bundled, tmp_path):
    out = tmp_path / "out"
    assert run("--out", out, "--size", "32x24", "--labels", "hat", "--count", 1, "--top-p", 1) == 0
    assert not (out / "stages").exists()
    assert pq.read_table(out / "index")["label"].to_pylist() == [1]
    assert read_record(out)["top_p"] == 1.0


def test_without_bundled_priors_a_prior_is_needed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(model_folder, "WEIGHTS", tmp_path / "none")
    assert run("--out", tmp_path / "out") == 2
    assert "--prior is needed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_base_alone_is_used_where_no_upscaler_is_bundled(tmp_path, monkeypatch, capsys):
    make_bundled(tmp_path / "weights")
    (tmp_path / "weights" / "photo-upscale4" / "config.json").unlink()
    monkeypatch.setattr(model_folder, "WEIGHTS", tmp_path / "weights")
    assert run("--out", tmp_path / "out", "--count", 1) == 0
    assert "prior: clothing; --prior" in capsys.readouterr().out
    assert image_in(tmp_path / "out" / "sample-00000.png").shape == (32, 32, 3)


def test_thumbnails_decide_size_and_count(bundled, tmp_path, capsys):
    given = thumbs(tmp_path / "thumbs", (20, 12), (20, 12), (12, 12))
    out = tmp_path / "out"
    assert run("--prior", "photo-upscale4", "--condition", given, "--out", out) == 0
    assert "1 of 3 images of low_res have another aspect" in capsys.readouterr().out
    shapes = [image_in(path).shape for path in sorted(out.glob("sample-*.png"))]
    assert shapes == [(24, 40, 3)] * 3


def test_small_images_are_enlarged_twice_by_a_cascade(bundled, tmp_path):
    given, out = thumbs(tmp_path / "thumbs", (16, 16)), tmp_path / "out"
    both = ["--prior", "photo-upscale4", "--upscale", "photo-upscale4"]
    assert run(*both, "--condition", given, "--out", out) == 0
    assert image_in(out / "stages" / "32x32" / "sample-00000.png").shape == (32, 32, 3)
    assert [image_in(path).shape for path in out.glob("sample-*.png")] == [(64, 64, 3)]


def test_a_folder_keeps_its_size_and_count(bundled, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--prior", "clothing", "--out", out, "--size", "24x16", "--count", 2) == 0
    assert run("--prior", "clothing", "--out", out) == 0
    assert "2 were there; 24x16 pixels" in capsys.readouterr().out
    assert run("--prior", "clothing", "--out", out, "--count", 3) == 0
    assert len([*out.glob("sample-*.png")]) == 3


def test_a_size_that_nobody_asked_for_has_a_limit(bundled, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(defaults, "MOST_PIXELS", 1000)
    given = ["--condition", thumbs(tmp_path / "thumbs", (16, 16))]
    assert run("--prior", "photo-upscale4", *given, "--out", tmp_path / "out") == 2
    assert "Name a smaller --size" in capsys.readouterr().err


def help_of(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        run(*words, "--help")
    assert stopped.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_describes_bundled_priors_and_those_that_are_named(
    bundled, weights, tmp_path, capsys, monkeypatch
):
    own = make_prior(tmp_path / "own", "tiny", load_prior("clothing").conditions.parts[0])
    monkeypatch.setattr(model_folder, "load_weights", None)  # config.json alone is read
    assert "With --prior NAME|RUN" in help_of(capsys)
    shown = help_of(capsys, "--prior", "clothing")
    assert "clothing: trained on 32x32 pixels with class; labels dress, hat, shoes" in shown
    assert "recommended settings: --top-p 0.9, --guidance-scale 2.0" in shown
    assert "photo-upscale4: trained on 32x32 pixels with low_res; enlarges 2 times" in shown
    shown = help_of(capsys, "--prior", own, f"--upscale={tmp_path / 'gone'}")
    assert "recommended settings: none" in shown
    assert "neither a folder nor one of the bundled" in shown


def test_a_folder_with_the_name_of_a_bundled_prior_does_not_hide_it(bundled, tmp_path):
    (tmp_path / "clothing").mkdir()
    assert load_prior("clothing").recommended["top_p"] == 0.9
    make_prior(tmp_path / "clothing", "tiny", load_prior("clothing").conditions.parts[0])
    assert load_prior("clothing").recommended == {}
    assert bundled_priors() == ["clothing", "photo-upscale4"]
