"""Studies at toy size: the figures mean nothing, the runs are done once and told whole."""

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
from pipelines.studies.plots import CELL, GAP, picture_sheet
from pipelines.studies.runs import do_runs, run_file
from pipelines.studies.study import Column, PictureRow, Study, StudyError
from pipelines.studies.study_report import write_report
from pipelines.training.loop import TrainingError
from tests.conftest import photograph


class Sums(Study):
    """Measures in no time, and remembers what it was asked for."""

    title, paper = "sums", "The paper says nothing about sums."
    variants = ("once", "twice")
    columns = (Column("sum", "the sum"),)

    def __init__(self):
        self.asked, self.stop_at = [], None

    def settings(self, context):
        return {"steps": context.capped(100)}

    def prepare(self, context):
        self.asked.append("prepare")

    def measure(self, context, variant, seed):
        if (variant, seed) == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append((variant, seed))
        return {"sum": float(seed * (1 + self.variants.index(variant)))}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures of which one, at least, is held out."""
    folder = tmp_path_factory.mktemp("pictures")
    names = [f"{number:02d}.png" for number in range(12)]
    assert 0 < sum(held_out(name, HELD_OUT) for name in names) < 6
    for number, name in enumerate(names):
        Image.fromarray(photograph(number)).save(folder / name)
    return folder


def do(study, pictures, out, seeds, **more):
    context = StudyContext(data=pictures, out=out, **more)
    return context, do_runs("sums", study, context, seeds, lambda what: None)


def test_stopped_study_goes_on_and_does_nothing_twice(pictures, tmp_path):
    study = Sums()
    study.stop_at = ("once", 1)
    with pytest.raises(KeyboardInterrupt):
        do(study, pictures, tmp_path, (0, 1))
    assert study.asked == ["prepare", ("once", 0), ("twice", 0)]
    study.asked, study.stop_at = [], None
    _, runs = do(study, pictures, tmp_path, (0, 1))
    assert study.asked == ["prepare", ("once", 1), ("twice", 1)]
    found = [(run.variant, run.seed, run.metrics["sum"]) for run in runs]
    assert found == [("once", 0, 0), ("once", 1, 1), ("twice", 0, 0), ("twice", 1, 2)]
    study.asked = []
    assert do(study, pictures, tmp_path, (0, 1))[1] == runs
    assert study.asked == []
    assert len(do(study, pictures, tmp_path, (0, 1, 7))[1]) == 6
    assert study.asked == ["prepare", ("once", 7), ("twice", 7)]


def test_other_settings_and_other_photographs_are_refused(pictures, tmp_path):
    out = tmp_path / "study"
    do(Sums(), pictures, out, (0,))
    with pytest.raises(TrainingError, match="steps was 100, is 5"):
        do(Sums(), pictures, out, (0,), steps=5)
    shutil.copytree(pictures, tmp_path / "more")
    shutil.copy(pictures / "00.png", tmp_path / "more" / "another.png")
    with pytest.raises(TrainingError, match="photographs was 12, is 13"):
        do(Sums(), tmp_path / "more", out, (0,))


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_seeds_are_named_once_each(pictures, tmp_path, seeds):
    with pytest.raises(StudyError, match="each seed once"):
        do(Sums(), pictures, tmp_path, seeds)


def test_report_tells_all_and_no_path_of_this_machine(pictures, tmp_path):
    study = Sums()
    context, runs = do(study, pictures, tmp_path, (1, 2))
    report = write_report(study, context, runs, "python -m pipelines.study sums")
    text = report.read_text()
    assert "| twice | 3.00 ± 1.41 |" in text
    assert "    python -m pipelines.study sums\n" in text
    assert runs[0].date in text
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["runs"] == [run._asdict() for run in runs]
    assert results["summary"]["twice"]["sum"]["values"] == [2, 4]
    for name in ("report.md", "results.json", "table.md", "run.json"):
        condition_inputs = (tmp_path / name).read_text()
        assert str(tmp_path) not in condition_inputs
        assert str(pictures) not in condition_inputs
    assert decode_image((tmp_path / "plot.png").read_bytes()).shape[1] > 100


def test_pictures_of_a_sheet_are_shown_pixel_for_pixel():
    random = np.random.default_rng(0)
    # Few colours, so that the palette of the sheet holds them all.
    colours = random.integers(0, 256, (8, 3)).astype(np.uint8)
    shown = [colours[random.integers(0, 8, (CELL, CELL))] for _ in range(2)]
    found = decode_image(picture_sheet([PictureRow("a row", shown)]))
    for picture in shown:
        assert any(
            np.array_equal(found[:CELL, left : left + CELL], picture)
            for left in range(found.shape[1] - CELL + 1)
        )


def words(name, pictures, out, *more):
    given = ["--data", str(pictures), "--out", str(out), "--show", str(pictures)]
    return [name, *given, "--steps", "2", "--threads", "1", *more]


def test_losses_study_goes_all_the_way_and_measures_nothing_again(pictures, tmp_path, capsys):
    asked = words("vqvae_vqgan", pictures, tmp_path / "study", "--seeds", "0")
    assert command.main(asked) == 0
    assert "run 2 of 2: VQGAN, seed 0" in capsys.readouterr().out
    report = (tmp_path / "study" / "report.md").read_text()
    assert "--data photographs/ --out runs/studies/vqvae_vqgan --seeds 0 --threads 1" in report
    kept = run_file(tmp_path / "study", "VQGAN", 0)
    metrics = json.loads(kept.read_text())["metrics"]
    assert set(metrics) >= {"psnr", "ssim", "sharpness", "patch_distance"}
    assert all(np.isfinite(value) for value in metrics.values())
    sheet = decode_image((tmp_path / "study" / "pictures.png").read_bytes())
    assert len(sheet) == 3 * (CELL + GAP)  # photographs, VQ-VAE, VQGAN

    before = kept.stat().st_mtime_ns
    assert command.main(asked) == 0
    assert kept.stat().st_mtime_ns == before
    assert "seed 0]" not in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--steps", "--threads"])
def test_counts_below_one_are_refused(pictures, tmp_path, capsys, flag):
    asked = words("vqvae_vqgan", pictures, tmp_path / "out", flag, "0")
    assert command.main(asked) == 2
    assert f"{flag} must be at least 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_downsampling_study_goes_all_the_way(pictures, tmp_path):
    assert command.main(words("downsampling", pictures, tmp_path, "--seeds", "0")) == 0
    summary = json.loads((tmp_path / "results.json").read_text())["summary"]
    assert [summary[f"f{f}"]["context"]["mean"] for f in (4, 8, 16)] == [64, 128, 256]
    for factor in (4, 8, 16):
        found = {name: cell["mean"] for name, cell in summary[f"f{factor}"].items()}
        assert found["nats_per_pixel"] == pytest.approx(found["nats_per_code"] / factor**2)


@pytest.mark.parametrize("name", STUDIES)
def test_studies_say_what_the_paper_found_and_how_they_were_set(name, tmp_path):
    study = STUDIES[name]
    assert "Esser et al. 2021" in study.paper
    assert len(study.variants) > 1
    assert all("," not in variant for variant in study.variants)
    context = StudyContext(data=tmp_path, out=tmp_path)
    few = dataclasses.replace(context, steps=1)
    assert json.loads(json.dumps(study.settings(context))) == study.settings(context)
    assert study.settings(context) != study.settings(few)


KEPT = sorted((Path(studies.__file__).parent / "results").iterdir())


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_kept_results_are_small_and_those_of_a_study_there_is(folder):
    assert folder.name in STUDIES
    report = (folder / "report.md").read_text()
    assert f"python -m pipelines.study {folder.name} --data photographs/ --out runs/" in report
    for name in re.findall(r"\]\((.*?)\)", report):
        assert (folder / name).stat().st_size <= (200 if name == "plot.png" else 400) << 10


def test_unknown_study_and_a_folder_too_small_to_measure_are_told(pictures, tmp_path, capsys):
    with pytest.raises(ConfigError, match="No study 'nonesuch'"):
        STUDIES["nonesuch"]
    few = tmp_path / "few"
    few.mkdir()
    (taken,) = [name for name in ("00.png", "01.png", "02.png") if not held_out(name, HELD_OUT)][:1]
    shutil.copy(pictures / taken, few)
    asked = words("vqvae_vqgan", few, tmp_path / "out", "--seeds", "0")
    assert command.main(asked) == 2
    assert "none is left" in capsys.readouterr().err
