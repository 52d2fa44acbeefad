"""Tars of samples: readable by WebDataset, the same bytes whenever they are written."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_iterator

from pipelines import report
from pipelines.generation.index import read_index
from pipelines.generation.outputs import codes_in_tar
from tests.generate_run import everything, generate


@pytest.fixture(scope="module")
def both(prior_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five samples as PNGs and as tars of two; tests must not change the folder."""
    out = tmp_path_factory.mktemp("both")
    assert generate(prior_run, out, *flags_of("images,tars")) == 0
    return out


def flags_of(save: str) -> list[object]:
    return ["--count", 5, "--batch-size", 2, "--samples-per-task", 2, "--save", save]


def test_webdataset_reads_every_sample_whole(both: Path) -> None:
    shards = sorted(map(str, (both / "tars").iterdir()))
    assert [Path(shard).name for shard in shards] == ["00000.tar", "00001.tar", "00002.tar"]
    samples = []
    for shard in shards:  # by WebDataset's parts, as its pipeline leaves the files open
        with open(shard, "rb") as file:
            parts = ({**part, "__url__": shard} for part in tar_file_iterator(file))
            samples += list(group_by_keys(parts))
    lines = read_index(both).to_pylist()
    assert [sample["__key__"] for sample in samples] == [f"sample-{k:05d}" for k in range(5)]
    for k, (sample, line) in enumerate(zip(samples, lines, strict=True)):
        assert sample["png"] == (both / f"sample-{k:05d}.png").read_bytes()
        assert np.load(io.BytesIO(sample["npy"])).shape == (2, 3)
        facts = json.loads(sample["json"])
        assert facts == {"sample": k, "seed": 0, "label": None, "width": 24, "height": 16}
        assert Image.open(io.BytesIO(sample["png"])).size == (24, 16)
        assert line["file"] == f"sample-{k:05d}.png"


def test_tars_alone_have_the_same_members_and_no_png_is_left(
    both: Path, prior_run: Path, tmp_path: Path
) -> None:
    assert generate(prior_run, tmp_path, *flags_of("tars")) == 0
    tars = {name: data for name, data in everything(both).items() if name.startswith("tars")}
    found = everything(tmp_path)
    assert {name: data for name, data in found.items() if name.startswith("tars")} == tars
    assert not [name for name in found if name.endswith(".png")]
    ours, theirs = read_index(tmp_path).to_pylist(), read_index(both).to_pylist()
    for k, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        assert our.pop("file") == f"tars/{k // 2:05d}.tar"
        del their["file"]
        assert our == their


def test_a_report_shows_the_images_in_tars(prior_run: Path, tmp_path: Path) -> None:
    assert generate(prior_run, tmp_path, *flags_of("tars")) == 0
    assert report.main([str(tmp_path)]) == 0
    assert (tmp_path / "report.html").read_text().count("data:image/png") == 5


def test_codes_are_read_from_the_intact_part_of_a_tar(both: Path, tmp_path: Path) -> None:
    data = (both / "tars/00000.tar").read_bytes()
    assert codes_in_tar(both / "tars/00000.tar").keys() == {"sample-00000", "sample-00001"}
    (tmp_path / "cut.tar").write_bytes(data[: len(data) // 2])
    assert codes_in_tar(tmp_path / "cut.tar").keys() <= {"sample-00000", "sample-00001"}
    assert codes_in_tar(tmp_path / "none.tar") == {}
