"""Studies at toy size: runs are done once and reported completely."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ops.config import ConfigError
from ops.images import decode_image
from pipelines import studies
from pipelines import study as command
from pipelines.inputs.holdout import held_out
from pipelines.studies import STUDIES
from pipelines.studies.context import HELD_OUT, StudyContext
from pipelines.studies.plots import CELL, GAP, image_sheet
from pipelines.studies.runs import do_runs, run_file
from pipelines.studies.study import Column, ImageRow, Study, StudyError
from pipelines.studies.study_report import write_report
from pipelines.training.loop import TrainingError
from tests.conftest import photograph


class Sums(Study):
    """A study that computes trivially and records its calls."""

    title, paper = "sums", "The paper has no such study."
    variants = ("once", "twice")
    columns = (Column("sum", "the sum"),)

    def __init__(self):
        self.calls, self.stop_at = [], None

    def settings(self, context):
        return {"steps": context.capped(100)}

    def prepare(self, context):
        self.calls.append("prepare")

    def measure(self, context, variant, seed):
        if (variant, seed) == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append((variant, seed))
        return {"sum": float(seed * (1 + self.variants.index(variant)))}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images of which at least one is held out."""
    folder = tmp_path_factory.mktemp("images")
    names = [f"{number:02d}.png" for number in range(12)]
    assert 0 < sum(held_out(name, HELD_OUT) for name in names) < 6
    for number, name in enumerate(names):
        Image.fromarray(photograph(number)).save(folder / name)
    return folder


def do(study, images, out, seeds, **more):
    context = StudyContext(data=images, out=out, **more)
    return context, do_runs("sums", study, context, seeds, lambda line: None)


def test_a_stopped_study_resumes_and_does_nothing_twice(images, tmp_path):
    study = Sums()
    study.stop_at = ("once", 1)
    with pytest.raises(KeyboardInterrupt):
        do(study, images, tmp_path, (0, 1))
    assert study.calls == ["prepare", ("once", 0), ("twice", 0)]
    study.calls, study.stop_at = [], None
    _, runs = do(study, images, tmp_path, (0, 1))
    assert study.calls == ["prepare", ("once", 1), ("twice", 1)]
    found = [(run.variant, run.seed, run.metrics["sum"]) for run in runs]
    assert found == [("once", 0, 0), ("once", 1, 1), ("twice", 0, 0), ("twice", 1, 2)]
    study.calls = []
    assert do(study, images, tmp_path, (0, 1))[1] == runs
    assert study.calls == []
    assert len(do(study, images, tmp_path, (0, 1, 7))[1]) == 6
    assert study.calls == ["prepare", ("once", 7), ("twice", 7)]


def test_other_settings_and_other_photographs_are_refused(images, tmp_path):
    out = tmp_path / "study"
    do(Sums(), images, out, (0,))
    with pytest.raises(TrainingError, match="steps: 100 -> 5"):
        do(Sums(), images, out, (0,), steps=5)
    shutil.copytree(images, tmp_path / "more")
    shutil.copy(images / "00.png", tmp_path / "more" / "another.png")
    with pytest.raises(TrainingError, match="photographs: 12 -> 13"):
        do(Sums(), tmp_path / "more", out, (0,))


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_missing_and_repeated_seeds_are_refused(images, tmp_path, seeds):
    with pytest.raises(StudyError, match="each seed once"):
        do(Sums(), images, tmp_path, seeds)


def test_the_report_has_all_runs_and_no_path_of_this_machine(images, tmp_path):
    study = Sums()
    context, runs = do(study, images, tmp_path, (1, 2))
    report = write_report(study, context, runs, "python -m pipelines.study sums")
    text = report.read_text()
    assert "| twice | 3.00 ± 1.41 |" in text
    assert "    python -m pipelines.study sums\n" in text
    assert runs[0].date in text
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["runs"] == [run._asdict() for run in runs]
    assert results["summary"]["twice"]["sum"]["values"] == [2, 4]
    for name in ("report.md", "results.json", "table.md", "run.json"):
        text = (tmp_path / name).read_text()
        assert str(tmp_path) not in text
        assert str(images) not in text
    assert decode_image((tmp_path / "plot.png").read_bytes()).shape[1] > 100


def test_images_of_the_cell_size_are_shown_unscaled():
    random = np.random.default_rng(0)
    # Few colours, so that the sheet's palette has them all.
    colours = random.integers(0, 256, (8, 3)).astype(np.uint8)
    shown = [colours[random.integers(0, 8, (CELL, CELL))] for _ in range(2)]
    found = decode_image(image_sheet([ImageRow("a row", shown)]))
    for image in shown:
        assert any(
            np.array_equal(found[:CELL, left : left + CELL], image)
            for left in range(found.shape[1] - CELL + 1)
        )


def flags_of(name, images, out, *more):
    paths = ["--data", str(images), "--out", str(out), "--show", str(images)]
    return [name, *paths, "--steps", "2", "--threads", "1", *more]


def test_losses_study_completes_and_measures_nothing_again(images, tmp_path, capsys):
    flags = flags_of("vqvae_vqgan", images, tmp_path / "study", "--seeds", "0")
    assert command.main(flags) == 0
    assert "run 2 of 2: VQGAN, seed 0" in capsys.readouterr().out
    report = (tmp_path / "study" / "report.md").read_text()
    assert "--data photographs/ --out runs/studies/vqvae_vqgan --seeds 0 --threads 1" in report
    file = run_file(tmp_path / "study", "VQGAN", 0)
    metrics = json.loads(file.read_text())["metrics"]
    assert set(metrics) >= {"psnr", "ssim", "sharpness", "patch_distance"}
    assert all(np.isfinite(value) for value in metrics.values())
    sheet = decode_image((tmp_path / "study" / "images.png").read_bytes())
    assert len(sheet) == 3 * (CELL + GAP)  # photographs, VQ-VAE, VQGAN

    before = file.stat().st_mtime_ns
    assert command.main(flags) == 0
    assert file.stat().st_mtime_ns == before
    assert "seed 0]" not in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--steps", "--threads"])
def test_counts_below_one_are_refused(images, tmp_path, capsys, flag):
    flags = flags_of("vqvae_vqgan", images, tmp_path / "out", flag, "0")
    assert command.main(flags) == 2
    assert f"{flag} must be at least 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_downsampling_study_completes(images, tmp_path):
    assert command.main(flags_of("downsampling", images, tmp_path, "--seeds", "0")) == 0
    summary = json.loads((tmp_path / "results.json").read_text())["summary"]
    assert [summary[f"f{f}"]["context"]["mean"] for f in (4, 8, 16)] == [64, 128, 256]
    for factor in (4, 8, 16):
        found = {name: cell["mean"] for name, cell in summary[f"f{factor}"].items()}
        assert found["nats_per_pixel"] == pytest.approx(found["nats_per_code"] / factor**2)


@pytest.mark.parametrize("name", STUDIES)
def test_studies_cite_the_paper_and_have_settings_as_json(name, tmp_path):
    study = STUDIES[name]
    assert "Esser et al. 2021" in study.paper
    assert len(study.variants) > 1
    assert all("," not in variant for variant in study.variants)
    context = StudyContext(data=tmp_path, out=tmp_path)
    few = dataclasses.replace(context, steps=1)
    assert json.loads(json.dumps(study.settings(context))) == study.settings(context)
    assert study.settings(context) != study.settings(few)


RESULTS = sorted((Path(studies.__file__).parent / "results").iterdir())


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.name)
def test_results_are_small_and_belong_to_a_study(folder):
    assert folder.name in STUDIES
    report = (folder / "report.md").read_text()
    assert f"python -m pipelines.study {folder.name} --data photographs/ --out runs/" in report
    for name in re.findall(r"\]\((.*?)\)", report):
        assert (folder / name).stat().st_size <= (200 if name == "plot.png" else 400) << 10


def test_an_unknown_study_and_too_few_photographs_are_refused(images, tmp_path, capsys):
    with pytest.raises(ConfigError, match="No study 'nonesuch'"):
        STUDIES["nonesuch"]
    few = tmp_path / "few"
    few.mkdir()
    names = ("00.png", "01.png", "02.png")
    training = next(name for name in names if not held_out(name, HELD_OUT))
    shutil.copy(images / training, few)
    flags = flags_of("vqvae_vqgan", few, tmp_path / "out", "--seeds", "0")
    assert command.main(flags) == 2
    assert "none is left" in capsys.readouterr().err
