"""The inputs of the crash tests and the finished stores that they compare with."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import photograph
from tests.crashes.null_encode import NullScenario, null_scenarios
from tests.crashes.scenarios import Scenario, run_uninterrupted
from tests.crashes.zombies import ZombieTrial, prepare_trial
from tests.track_run import make_tokenizer, write_labels


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photograph(seed, 24, 32)).save(path)


@pytest.fixture(scope="session")
def input_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four files, rows for two tasks: three images and one that is none."""
    folder = tmp_path_factory.mktemp("input_images")
    for seed, name in enumerate(("b.png", "lake/a.png", "lake/c.png")):
        write_image(folder / name, seed)
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="session")
def later_images(input_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folder with one image new, one changed and one removed."""
    folder = tmp_path_factory.mktemp("later") / "input_images"
    # with modification times, which identify an image's content
    shutil.copytree(input_images, folder)
    write_image(folder / "a first.png", 10)
    write_image(folder / "lake/a.png", 11)
    (folder / "lake/c.png").unlink()
    return folder


@pytest.fixture(scope="session")
def fresh(
    input_images: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Scenario:
    """A store made from nothing."""
    scenario = Scenario(input_images, tiny_tokenizer)
    return run_uninterrupted(scenario, tmp_path_factory.mktemp("fresh") / "codes.zarr")


@pytest.fixture(scope="session")
def extended(
    fresh: Scenario,
    later_images: Path,
    tiny_tokenizer: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Scenario:
    """A finished store extended by a new and a changed image, with one marked as removed."""
    scenario = Scenario(later_images, tiny_tokenizer, base=fresh.finished, changed={"prune": True})
    return run_uninterrupted(scenario, tmp_path_factory.mktemp("extended") / "codes.zarr")


@pytest.fixture(scope="session")
def label_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("label-tokenizer") / "labels", "segmentation")


@pytest.fixture(scope="session")
def tracked(
    fresh: Scenario,
    input_images: Path,
    later_images: Path,
    label_tokenizer: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Scenario:
    """A finished store with tracks, extended by new images, a partner file added later, one that
    changed, other boxes, and another track."""
    folder = tmp_path_factory.mktemp("partners")
    labels = write_labels(input_images, folder / "labels")
    (labels / "b.png").rename(folder / "b.png")
    boxes = folder / "boxes.jsonl"
    boxes.write_text('{"file": "b.png", "category": "it", "bbox": [0, 0, 20, 20]}\n')
    tracks = {
        "track": (f"segmentation={labels}", f"boxes={boxes}"),
        "track_tokenizer": f"segmentation={label_tokenizer}",
    }
    before = replace(fresh, base=fresh.finished, changed=tracks)
    base = run_uninterrupted(before, folder / "before" / "codes.zarr").finished
    (folder / "b.png").rename(labels / "b.png")
    write_image(labels / "lake" / "c.png", 3)  # in colour, so no label map
    boxes.write_text('{"file": "lake/a.png", "category": "also", "bbox": [9, 9, 20, 20]}\n')
    scenario = Scenario(later_images, fresh.tokenizer, base=base, changed={"track": "low_res=2"})
    return run_uninterrupted(scenario, folder / "tracked" / "codes.zarr")


@pytest.fixture
def scenario(request: pytest.FixtureRequest) -> Scenario:
    """The scenario that a test names by indirect parameters."""
    found: Scenario = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def zombie_trial(fresh: Scenario, tmp_path_factory: pytest.TempPathFactory) -> ZombieTrial:
    return prepare_trial(fresh, tmp_path_factory.mktemp("zombies"))


@pytest.fixture(scope="session")
def null_commands(tmp_path_factory: pytest.TempPathFactory) -> tuple[NullScenario, NullScenario]:
    """Like `fresh` and `extended`, with a tokenizer that takes no time."""
    return null_scenarios(tmp_path_factory.mktemp("null") / "scenarios")
