"""The contract of every registered condition, from a code store to samples; and that a condition
is two classes, one in prior/conditions and one in pipelines/conditioning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ops.config import ConfigError
from ops.images import ImageArray
from ops.views import View
from pipelines import encode
from pipelines.conditioning import (
    ConditionEncoder,
    make_conditions,
    own_tokenizers,
    parse_conditions,
    track_kinds,
    tracks_of,
)
from pipelines.conditioning.annotations import AnnotationConditioning
from pipelines.conditioning.code_grids import CodeGridConditioning
from pipelines.conditioning.conditioning import CONDITIONINGS, track_provenance
from pipelines.conditioning.files import ConditionFiles, annotation_lines
from pipelines.conditioning.flags import file_conditioning
from pipelines.inputs import Lines, are_numbers, read_lines
from pipelines.store import CodeStore
from pipelines.streaming import CodeDataset
from pipelines.tracks import AnnotationTrack, Numbers, Track
from prior import Conditions, Prior, condition_sizes, make_model, preset_config
from prior.conditions import CONDITIONS, GRID, CodeGrid, Condition, Entry, Shape
from prior.conditions.frames import framed
from tests.condition_run import (
    FACTOR,
    SIDE,
    WINDOW,
    condition_flag,
    encode_scenes,
    train,
)
from tests.generate_run import generate
from tokenizer import VQGAN, load_tokenizer

TRAINED = list(CONDITIONS)  # half is no prior's: any prior goes on from known codes
BY_FILE = [name for name in CONDITIONINGS if file_conditioning(name) is not None]
SIZE = SIDE, SIDE + 5  # height, width; the canvas is a code wider


def tokenizers_of(scenes: Path) -> dict[str, VQGAN]:
    return {path.name: load_tokenizer(path) for path in (scenes / "tokenizers").iterdir()}


def conditions_of(store: Path, *names: str) -> Conditions:
    opened = CodeStore.open(store)
    return make_conditions(names, [opened], opened.label_names)


def prior_after_one_step(store: Path, conditions: Conditions, *names: str) -> Prior:
    """A tiny prior of these conditions that one batch of the store has changed."""
    torch.manual_seed(0)
    sizes = {**condition_sizes("tiny", conditions, WINDOW), "num_layers": 1, "width": 16}
    model = make_model(preset_config("tiny", **sizes))
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    opened = CodeStore.open(store)
    batch = CodeDataset(opened, window=WINDOW, batch_size=3, tracks=tracks_of(names)).train_batch(0)
    generators = [torch.Generator().manual_seed(number) for number in range(3)]
    tokens = conditions.training_tokens(batch, generators, 0.1)
    model.nll(tokens, batch["codes"]).mean().backward()
    optimizer.step()
    changed = (
        not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)
    )
    assert any(changed)
    return Prior(model.eval(), conditions, {"codebook_size": conditions.codebook_size})


def encoder_of(scenes: Path, conditions: Conditions, flag: str) -> ConditionEncoder:
    tokenizers = tokenizers_of(scenes)
    files = parse_conditions([flag], conditions)
    return ConditionEncoder(files, conditions, tokenizers["image"], tokenizers, SIZE)


def test_prior_and_pipelines_have_the_same_conditions() -> None:
    assert sorted([*CONDITIONS, "half"]) == sorted(CONDITIONINGS)
    for name in CONDITIONINGS:
        assert CONDITIONINGS[name].name == name
    for name in CONDITIONS:
        assert CONDITIONS[name].name == name
        assert name not in CONDITIONS[name].entries or name in track_kinds()


@pytest.mark.parametrize("name", TRAINED)
def test_every_condition_builds_from_a_store_and_trains_and_samples(
    scene_store: Path, name: str
) -> None:
    conditions = conditions_of(scene_store, name)
    (part,) = conditions.parts
    assert type(part) is CONDITIONS[name]
    prior = prior_after_one_step(scene_store, conditions, name)
    codes = prior.sample(WINDOW + 1, WINDOW, count=2)
    assert codes.shape == (2, WINDOW + 1, WINDOW)


@pytest.mark.parametrize("name", BY_FILE)
def test_every_condition_encodes_a_file_and_draws_it_and_samples_from_it(
    scenes: Path, scene_store: Path, name: str
) -> None:
    trained = [name] if name in CONDITIONS else ["sos"]
    conditions = conditions_of(scene_store, *trained)
    encoder = encoder_of(scenes, conditions, condition_flag(scenes, name))
    encoder.check(encoder.names)
    assert encoder.names == (name,)
    preview = encoder.preview(name, 1)
    assert preview.shape == (*SIZE, 3)
    assert preview.dtype == np.uint8
    inputs, forced = encoder.condition_inputs([0, 1]), encoder.forced([0, 1])
    assert set(inputs) <= set(conditions.entries)
    for entry, value in inputs.items():
        assert value.ndim == 1 + conditions.entries[entry].axes
    assert (forced is not None) == encoder.has_known_codes
    assert inputs or forced is not None
    rows, columns = (-(-side // FACTOR) for side in SIZE)
    prior = prior_after_one_step(scene_store, conditions, *trained)
    codes = prior.sample(rows, columns, count=2, condition_inputs=inputs, forced=forced)
    if forced is not None:
        assert torch.equal(codes[forced >= 0], forced[forced >= 0])


@pytest.mark.parametrize("name", sorted(set(CONDITIONINGS) - set(BY_FILE)))
def test_conditions_that_no_file_gives_are_refused(
    scenes: Path, scene_store: Path, name: str
) -> None:
    conditions = conditions_of(scene_store, name)
    with pytest.raises(ConfigError, match=CONDITIONINGS[name].not_by_file or "does not take"):
        parse_conditions([f"{name}={scenes}"], conditions)


def test_conditions_that_no_prior_is_trained_with_are_refused(scene_store: Path) -> None:
    with pytest.raises(ConfigError, match="any prior can be given"):
        conditions_of(scene_store, "half")
    with pytest.raises(ConfigError, match="No condition 'smell'; there are boxes"):
        conditions_of(scene_store, "smell")
    with pytest.raises(ConfigError, match="'sos' twice"):
        conditions_of(scene_store, "sos", "sos")


# --- a condition of codes of files: two classes, and nothing else


@dataclass(frozen=True, kw_only=True)
class Edges(CodeGrid):
    name: ClassVar[str] = "edges"
    entries: ClassVar[Mapping[str, Entry]] = {"edges": GRID}


class EdgesConditioning(CodeGridConditioning):
    name: ClassVar[str] = "edges"
    condition: ClassVar[type[CodeGrid]] = Edges


# --- a condition of lines of annotations: what they say, the row of a view, and two classes


def horizons_in(horizons: Tensor, frames: Tensor) -> Tensor:
    top, bottom = frames[:, 1:2], frames[:, 3:4]
    return (horizons - top) / (bottom - top)


@dataclass(frozen=True, kw_only=True)
class Horizon(Condition):
    """`batch["horizon"]` (B, 1): how far down the window it lies, as one of ten levels."""

    name: ClassVar[str] = "horizon"
    entries: ClassVar[Mapping[str, Entry]] = {"horizon": Entry(1, framed(horizons_in))}
    length: ClassVar[int] = 1
    vocab_size: ClassVar[int] = 11

    def tokens(self, batch: Mapping[str, Any], batch_size: int, shape: Shape) -> Tensor:
        return (batch["horizon"] * 10).long().clamp(0, 9)

    @classmethod
    def from_track(cls, rows: Tensor, frames: Tensor) -> dict[str, Tensor]:
        return {"horizon": horizons_in(rows[:, 0], frames).float()}


def parse_horizon(line: dict[str, Any]) -> float | None:
    if not are_numbers([line.get("y")], 1):
        raise ValueError('no "y"')
    return float(line["y"])


class HorizonTrack(AnnotationTrack):
    """Rows (1, 1): y in fractions of the view."""

    def read(self) -> Lines:
        return read_lines(self.path, parse_horizon)

    def meaning(self) -> dict[str, Any]:
        return {"row_shape": [1, 1], "unit": "view"}

    def row(self, items: Sequence[float], size: tuple[int, int], view: View) -> Numbers:
        return np.array([[(items[0] / size[1] - view.top) / (view.bottom - view.top)]])


class HorizonConditioning(AnnotationConditioning[Horizon, float]):
    name: ClassVar[str] = "horizon"
    track: ClassVar[type[Track] | None] = HorizonTrack

    @classmethod
    def build(cls, stores: Sequence[CodeStore], label_names: Sequence[str]) -> Condition:
        assert track_provenance(stores, cls.name)["unit"] == "view"
        return Horizon()

    @classmethod
    def parse(cls, path: Path, part: Horizon) -> ConditionFiles:
        return annotation_lines(cls.name, path, parse_horizon)

    def encode(self, item: Sequence[float]) -> dict[str, Tensor]:
        return {self.name: torch.tensor(self.fractions([0, item[0]])[1:])}

    def preview(self, item: Sequence[float]) -> ImageArray:
        image, pen = self.blank()
        pen.line((0, item[0], self.size[1], item[0]), fill="black")
        return np.asarray(image)


@pytest.fixture
def two_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the conditions of this file for one test."""
    for condition in (Edges, Horizon):
        monkeypatch.setitem(CONDITIONS._entries, condition.name, condition)
    for conditioning in (EdgesConditioning, HorizonConditioning):
        monkeypatch.setitem(CONDITIONINGS._entries, conditioning.name, conditioning)


@pytest.fixture
def store_with_two_more(
    two_more: None, scenes: Path, scene_store: Path, tmp_path: Path
) -> tuple[Path, Path]:
    """A store with the tracks `edges` and `horizon`, and the file of the latter."""
    images = sorted((scenes / "images").rglob("*.png"))
    lines = [
        {"file": str(path.relative_to(scenes / "images")), "y": 4 * number}
        for number, path in enumerate(images)
    ]
    horizons = tmp_path / "horizons.jsonl"
    horizons.write_text("".join(json.dumps(line) + "\n" for line in lines))
    store = Path(shutil.copytree(scene_store, tmp_path / "codes.zarr"))
    encode_scenes(
        scenes, store, "--track", f"horizon={horizons}", "--track", f"edges={scenes / 'segs'}",
        "--track-tokenizer", f"edges={scenes / 'tokenizers/segmentation'}",
    )  # fmt: skip
    return store, horizons


def test_new_condition_needs_its_own_tokenizer_where_its_kind_of_track_does(
    two_more: None, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert own_tokenizers(["edges", "horizon", "sos"]) == ("edges",)
    assert tracks_of(["edges", "horizon", "sos"]) == ("edges", "horizon")
    words = ["--in", scenes / "images", "--out", tmp_path / "x", "--track", f"edges={scenes}"]
    words += ["--tokenizer", scenes / "tokenizers/image"]
    assert encode.main([*map(str, words)]) == 2
    assert "--track-tokenizer edges=DIR" in capsys.readouterr().err


def test_new_condition_of_code_grids_is_two_classes(
    scenes: Path, store_with_two_more: tuple[Path, Path]
) -> None:
    store, _ = store_with_two_more
    conditions = conditions_of(store, "edges")
    opened = CodeStore.open(store)
    assert conditions.parts == (
        Edges(
            codebook_size=opened.provenance["segmentation"]["codebook_size"],
            fingerprint=opened.provenance["segmentation"]["fingerprint"],
        ),
    )
    batch = CodeDataset(
        opened, window=WINDOW, batch_size=3, tracks=("edges", "segmentation")
    ).train_batch(0)
    assert torch.equal(batch["edges"], batch["segmentation"])
    tokens = conditions.tokens(batch, 3)
    assert torch.equal(tokens - conditions.codebook_size, batch["edges"].flatten(1))
    tokenizers = tokenizers_of(scenes)
    files = parse_conditions([f"edges={scenes / 'segs'}"], conditions)
    own = {"edges": tokenizers["segmentation"]}
    encoder = ConditionEncoder(files, conditions, tokenizers["image"], own, SIZE)
    flag = condition_flag(scenes, "segmentation")
    other = encoder_of(scenes, conditions_of(store, "segmentation"), flag)
    found, expected = encoder.condition_inputs([3]), other.condition_inputs([3])
    assert torch.equal(found["edges"], expected["segmentation"])
    np.testing.assert_array_equal(encoder.preview("edges", 3), other.preview("segmentation", 3))


def test_new_condition_of_annotations_is_two_classes(
    scenes: Path, store_with_two_more: tuple[Path, Path]
) -> None:
    store, horizons = store_with_two_more
    conditions = conditions_of(store, "horizon")
    opened = CodeStore.open(store)
    dataset = CodeDataset(opened, window=WINDOW, batch_size=4, tracks=("horizon",))
    batch, keys = dataset.train_batch(0), dataset.train_keys(0)
    grid = SIDE // FACTOR
    lines = [json.loads(line) for line in horizons.read_text().splitlines()]
    of_image = {line["file"]: line["y"] / 48 for line in lines}
    tops = batch["place"][:, 0].tolist()
    expected = [(of_image[key] * grid - top) / WINDOW for key, top in zip(keys, tops, strict=True)]
    np.testing.assert_allclose(batch["horizon"][:, 0], expected, atol=1e-5)
    tokens = conditions.tokens(batch, 4)[:, 0] - conditions.codebook_size
    assert tokens.tolist() == [min(9, max(0, int(y * 10))) for y in expected]
    encoder = encoder_of(scenes, conditions, f"horizon={horizons}")
    assert encoder.condition_inputs([2])["horizon"].item() == pytest.approx(8 / SIDE)
    assert encoder.preview("horizon", 2).shape == (*SIZE, 3)


def test_new_conditions_go_through_the_commands(
    scenes: Path, store_with_two_more: tuple[Path, Path], tmp_path: Path
) -> None:
    store, horizons = store_with_two_more
    run = train(store, tmp_path / "run", "tiny", "edges", "horizon")
    assert (run / "track_tokenizers/edges").is_dir()
    out = tmp_path / "out"
    flags = ["--condition", f"edges={scenes / 'segs'}", "--condition", f"horizon={horizons}"]
    assert generate(run, out, "--count", 2, *flags) == 0
    for name in ("edges", "horizon"):
        with Image.open(out / f"condition-{name}.png") as shown:
            assert shown.size[0] >= 24
