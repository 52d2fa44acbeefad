"""The report: one HTML file with its images inside, for every kind of folder."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ops.images import image_grid, write_png
from ops.metrics_log import read_metrics
from pipelines import report
from pipelines.reports.plots import curve_plot, image_uri, usage_plot
from pipelines.reports.sections import samples_section, store_section
from pipelines.training.plots import plot_curves
from tests.conftest import make_store, photograph
from tests.encode_run import EncodeRun
from tests.pipelines.store.foreign import change_parquet
from tokenizer import build_tokenizer, save_tokenizer


class Page(HTMLParser):
    """The images and the text of an HTML file; fails on links to other files."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.images: list[Image.Image] = []
        self.text = ""
        self.tags: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        assert "href" not in values or str(values["href"]).startswith("#")
        if tag == "img":
            self.images.append(decoded(str(values["src"])))

    def handle_data(self, data: str) -> None:
        self.text += data


def decoded(uri: str) -> Image.Image:
    kind, data = uri.split(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    image.load()
    return image


def write_samples(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    for k in range(count):
        write_png(folder / f"{k:06d}.png", photograph(k))
    (folder / "generation.json").write_text(json.dumps({"seed": 7, "sampling": {"top_k": 100}}))
    return folder


def write_run(folder: Path) -> Path:
    (folder / "samples").mkdir(parents=True)
    lines = [{"step": s, "loss": 9 / s, "steps_per_second": 2.0} for s in (10, 20)]
    lines.append({"step": 20, "held_out_loss": float("nan")})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 30, "lo')
    for step in (10, 20):
        write_png(folder / "samples" / f"samples-{step:08d}.png", photograph(step))
    return folder


def write_store(path: Path, **options: object) -> Path:
    tokenizer = build_tokenizer("tiny")
    codes = np.random.default_rng(0).integers(0, tokenizer.config.codebook_size, (20, 4, 6))
    make_store(
        path, codes, codebook_size=tokenizer.config.codebook_size,
        downsample_factor=tokenizer.config.downsample_factor, **options,
    )  # fmt: skip
    save_tokenizer(path / "_tokenizer" / "image", tokenizer)
    return path


def test_store_report_shows_decoded_rows_usage_and_failures(tmp_path: Path) -> None:
    store = write_store(tmp_path / "codes.zarr", failed=(3, 4))
    assert report.main([str(store)]) == 0
    page = Page(store / "report.html")
    factor = build_tokenizer("tiny").config.downsample_factor
    assert [p.size for p in page.images[:-1]] == [(6 * factor, 4 * factor)] * 12
    assert "18 of 4x6" in page.text
    assert page.text.count("it would not open") == 2
    assert "0003.jpg" in page.text


def test_store_with_failed_rows_only_has_a_report(tmp_path: Path) -> None:
    store = write_store(tmp_path / "codes.zarr", failed=tuple(range(20)))
    section = store_section(store)
    assert not section.figures
    assert len(section.tables[-1].rows) == 20


def test_run_report_plots_each_metric_and_shows_the_newest_images(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert report.main([str(run)]) == 0
    page = Page(run / "report.html")
    assert len(page.images) == 3 + 1
    newest = np.asarray(page.images[-1])
    np.testing.assert_array_equal(newest, photograph(20))
    assert "loss: 0.45 after 20 steps" in page.text


def test_samples_report_contains_the_images_and_settings(tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "samples")
    out = tmp_path / "other" / "page.html"
    assert report.main([str(samples), "--out", str(out)]) == 0
    page = Page(out)
    for k, shown in enumerate(page.images):
        np.testing.assert_array_equal(np.asarray(shown), photograph(k))
    assert "sampling.top_k" in page.text
    assert not (samples / "report.html").exists()


def write_cascade(folder: Path) -> Path:
    """Three samples with two stages before them, and a contact sheet of conditions."""
    write_samples(folder, count=0)
    for stage, side in (("stages/9x9", 9), ("stages/24x24", 24), ("", 32)):
        (folder / stage).mkdir(parents=True, exist_ok=True)
        for k in range(3):
            write_png(folder / stage / f"sample-{k:05d}.png", photograph(k, side, side))
    sheet = image_grid(np.stack([photograph(10 + k, 8, 8) for k in range(3)]), columns=2)
    for name in ("depth", "low_res"):  # low_res is what the stages show
        write_png(folder / f"condition-{name}.png", sheet)
    return folder


def test_samples_are_next_to_their_conditions_and_stages(tmp_path: Path) -> None:
    folder = write_cascade(tmp_path / "samples")
    section = samples_section(folder)
    assert [figure.caption for figure in section.figures] == [
        f"sample-0000{k}: 9x9, 24x24, then enlarged" for k in range(3)
    ]
    for k, figure in enumerate(section.figures):
        assert figure.wide
        shown = [np.asarray(decoded(uri)) for uri in figure.sources]
        np.testing.assert_array_equal(shown[0], photograph(10 + k, 8, 8))
        for image, side in zip(shown[1:], (9, 24, 32), strict=True):
            np.testing.assert_array_equal(image, photograph(k, side, side))


def test_a_contact_sheet_that_cannot_be_divided_is_shown_whole(tmp_path: Path) -> None:
    folder = write_cascade(tmp_path / "samples")
    write_png(folder / "condition-depth.png", photograph(0, 9, 9))
    (folder / "stages" / "9x9" / "sample-00001.png").unlink()
    figures = samples_section(folder).figures
    assert [len(figure.sources) for figure in figures] == [1, 3, 2, 3]
    assert figures[0].caption == "condition-depth"
    assert figures[2].caption == "sample-00001: 24x24, then enlarged"


def test_folder_report_joins_the_folders_in_it(tmp_path: Path) -> None:
    write_store(tmp_path / "codes.zarr")
    write_run(tmp_path / "prior")
    write_samples(tmp_path / "samples")
    write_samples(tmp_path / "canvas", count=1)
    timings = [{"stage": "encode", "seconds": 2.0}, {"stage": "generate", "seconds": 3.5}]
    (tmp_path / "timings.json").write_text(json.dumps(timings))
    assert report.main([str(tmp_path)]) == 0
    page = Page(tmp_path / "report.html")
    titles = ("Samples: canvas", "Samples: samples", "Codes: codes.zarr", "Training: prior")
    places = [page.text.index(title) for title in (*titles, "Timings")]
    assert places == sorted(places)
    assert "5.5 s" in page.text


def test_file_names_and_settings_are_escaped(tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "samples", count=0)
    hostile = "<script>alert(1)</script>"
    (samples / "generation.json").write_text(json.dumps({"prior": hostile}))
    write_png(samples / '"><b>.png', photograph(0))
    assert report.main([str(samples)]) == 0
    page = Page(samples / "report.html")
    assert hostile in page.text
    assert not {"script", "b"} & set(page.tags)


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_nothing_to_report_is_an_error_of_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert report.main([str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / name}")
    assert not (tmp_path / name / "report.html").exists()


def test_incomplete_last_line_of_metrics_is_ignored(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [10, 20, 20]


def test_an_image_uri_decodes_to_the_same_image() -> None:
    image = photograph(1)
    np.testing.assert_array_equal(np.asarray(decoded(image_uri(image))), image)


def test_plots_have_a_transparent_background() -> None:
    for uri in (curve_plot([1, 2], [3.0, 4.0], "loss"), usage_plot(np.array([5, 0, 2, 9]))):
        alpha = np.asarray(decoded(uri))[..., 3]
        assert alpha.min() == 0
        assert alpha.max() == 255


def encoded(run: EncodeRun, folder: Path) -> Path:
    """Two images in `folder`, encoded."""
    folder.mkdir()
    for seed in range(2):
        write_png(folder / f"{seed}.png", photograph(seed))
    assert run(folder) == 0
    return run.out


def images_of_store(store: Path, *flags: str) -> int:
    """How many images of the page show rows of the store, which has two."""
    assert report.main([str(store), *flags]) == 0
    return len(Page(store / "report.html").images) - 1  # without the plot


def test_originals_are_shown_where_they_are_what_was_encoded(
    run: EncodeRun, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    store = encoded(run, folder)
    assert images_of_store(store) == 4
    assert f"images read from {folder}" in Page(store / "report.html").text
    os.utime(folder / "0.png", (1, 1))
    assert images_of_store(store) == 3
    assert images_of_store(store, "--originals-by-content") == 4
    write_png(folder / "1.png", photograph(5))
    assert images_of_store(store) == 2
    assert images_of_store(store, "--originals-by-content") == 3
    assert "has changed" in Page(store / "report.html").text


@pytest.mark.parametrize("plan", [False, True])
@pytest.mark.parametrize("flags", [[], ["--originals-by-content"]])
def test_foreign_store_puts_no_file_of_its_choice_into_a_page(
    run: EncodeRun, tmp_path: Path, plan: bool, flags: list[str]
) -> None:
    store = encoded(run, tmp_path / "images")
    write_png(tmp_path / "secret.png", photograph(9))
    secret = [str(tmp_path / "secret.png")] * 2
    change_parquet(next(store.glob("_index/*/0.parquet")), columns={"source": secret})
    if plan:
        sizes = [(tmp_path / "secret.png").stat().st_size] * 2
        change_parquet(store / "_plan" / "0.parquet", columns={"uri": secret, "size": sizes})
    assert images_of_store(store, *flags) == 1
    assert "no file from outside the store" in Page(store / "report.html").text


@pytest.mark.parametrize("name", ["sample-00000.png", "tars", "index"])
def test_links_in_a_folder_of_samples_are_not_followed(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_samples(tmp_path / "samples")
    write_png(tmp_path / "elsewhere" / "secret.png", photograph(9))
    target = tmp_path / "elsewhere"
    (folder / name).symlink_to(target / "secret.png" if name.endswith(".png") else target)
    assert report.main([str(folder)]) == 2
    assert "symbolic link" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["samples", "image"])
def test_links_in_a_run_are_not_followed(tmp_path: Path, what: str) -> None:
    folder = write_run(tmp_path / "run")
    secrets = tmp_path / "elsewhere"
    write_png(secrets / "secret.png", photograph(9))
    if what == "samples":
        shutil.rmtree(folder / "samples")
        (folder / "samples").symlink_to(secrets)
        assert report.main([str(folder)]) == 0
        assert "secret" not in Page(folder / "report.html").text
    else:
        (folder / "samples" / "secret.png").symlink_to(secrets / "secret.png")
        assert report.main([str(folder)]) == 2


@pytest.mark.parametrize("name", ["run.json", "generation.json", "timings.json"])
@pytest.mark.parametrize("content", [b"[1", b"7", b"[" * 10**5, b'{"a": NaN}', b"\xff"])
def test_settings_that_are_no_json_are_one_line(
    tmp_path: Path, name: str, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run")
    (folder / name).write_bytes(content)
    assert report.main([str(folder)]) == 2
    assert f"{folder / name} cannot be read" in capsys.readouterr().err


def test_deeply_nested_settings_are_cut_short(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "run.json").write_text('{"a": ' * 300 + "1" + "}" * 300)
    assert report.main([str(folder)]) == 0
    assert "..." in Page(folder / "report.html").text


HOSTILE = "<b>\x1b[31m$\\frac{$ \u202egnp.\u2028 $\\foo$"


def test_names_hide_and_reorder_nothing_on_the_page(tmp_path: Path) -> None:
    path = write_samples(tmp_path / "a\u202eb\x1bc")
    (path / "generation.json").write_text(json.dumps({"seed": HOSTILE}))
    assert report.main([str(path), "--out", str(tmp_path / "page.html")]) == 0
    page = Page(tmp_path / "page.html")
    assert "b" not in page.tags
    assert not {"\x1b", "\u202e", "\u2028"} & set(page.text)
    assert r"a\u202eb\x1bc" in page.text
    assert r"<b>\x1b[31m$\frac{$ \u202egnp.\u2028 $\foo$" in page.text


def test_plots_take_any_name_of_a_metric(tmp_path: Path) -> None:
    assert decoded(curve_plot([1, 2], [0.5, 0.25], HOSTILE)).width > 100
    image = plot_curves([{"step": 1, HOSTILE: 0.5}, {"step": 2, HOSTILE: 0.25}])
    assert image is not None
