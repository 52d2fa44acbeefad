"""What a prior is told, through the commands: encode with tracks, train on them, paint what files
tell. That a prior listens is tested where it is small: see tests/prior."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipelines import encode, evaluate, train_prior
from pipelines.conditioning.encode import make_condition_encoder
from pipelines.reports.samples import sample_images
from pipelines.store import CodeStore
from pipelines.train_prior import TrainPriorFlags, open_data
from prior import load_prior
from tests.conftest import photograph
from tests.generate_run import contents, generate, picture, request_of
from tokenizer import build_tokenizer, load_tokenizer, save_tokenizer
from tokenizer.modalities import ModalityConfig

CLASSES, SIDE, RATIO = 9, 48, 4  # of label maps; pixels; of low_res
FACTOR = build_tokenizer("tiny").config.downsample_factor
GRID = SIDE // FACTOR
WINDOW = GRID // 2
TRAINING = [
    "--steps", "2", "--save-every", "2", "--sample-every", "2", "--batch-size", "2",
    "--held-out", "0.3", "--threads", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory):
    """Photographs in two class folders, with label maps, depth, boxes and poses."""
    root = tmp_path_factory.mktemp("scenes")
    boxes, poses = [], []
    for seed in range(10):
        image, name = photograph(seed), f"{'lake' if seed % 2 else 'wood'}/{seed}"
        maps = {
            "images": image,
            "segs": image[..., 0] // 32,
            "depths": image[..., 0].astype(np.uint16) * 256,
        }
        for folder, raster in maps.items():
            path = root / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(raster).save(path)
        file = f"{name}.png"
        boxes += [
            {"file": file, "category": "disc", "bbox": [3 * seed, 5, 20, 20 + seed]},
            {"file": file, "category": "sky", "bbox": [0, 0, 64, 10]},
        ]
        points = [[x, 2 * x % 48, 2] for x in range(seed, seed + 5)]
        poses.append({"file": file, "keypoints": points})
    for name, lines in (("boxes", boxes), ("poses", poses)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (root / f"{name}.jsonl").write_text(text)
    for name, content in (
        ("image", ModalityConfig()),
        ("segmentation", ModalityConfig(kind="segmentation", num_classes=CLASSES)),
        ("depth", ModalityConfig(kind="depth")),
    ):
        save_tokenizer(root / "tokenizers" / name, build_tokenizer("tiny", 0, content))
    return root


@pytest.fixture(scope="module")
def store(scenarios):
    """Their codes, with every track."""
    flags = ["--in", scenarios / "images", "--out", scenarios / "codes.zarr", "--labels", "first"]
    flags += ["--tokenizer", scenarios / "tokenizers/image", "--image-size", SIDE]
    tracks = {
        "segmentation": scenarios / "segs",
        "depth": scenarios / "depths",
        "low_res": RATIO,
        "boxes": scenarios / "boxes.jsonl",
        "keypoints": scenarios / "poses.jsonl",
    }
    for name, value in tracks.items():
        flags += ["--track", f"{name}={value}"]
    for name in ("segmentation", "depth"):
        flags += ["--track-tokenizer", f"{name}={scenarios / 'tokenizers' / name}"]
    assert encode.main([*map(str, flags)]) == 0
    return scenarios / "codes.zarr"


def train(store, out, recipe, *conditions):
    # A prior without windows is trained on whole grids.
    window = GRID if recipe == "tiny-local" else WINDOW
    words = [recipe, "--codes", store, "--out", out, "--conditions", *conditions]
    words += ["--window", window, *TRAINING]
    assert train_prior.main([*map(str, words)]) == 0
    return out


def test_tracks_come_with_their_codes_cut_at_the_same_place(store):
    tracks = ("segmentation", "depth", "low_res", "boxes", "keypoints")
    flags = TrainPriorFlags(
        recipe="tiny", codes=(store,), out=store, conditions=tracks, window=WINDOW, batch_size=4
    )
    dataset = open_data(flags).dataset
    opened = CodeStore.open(store)
    row_of = dict(
        zip(opened.index["key"].to_pylist(), opened.index["row"].to_pylist(), strict=True)
    )
    (grid,) = opened.grids
    for step in range(3):
        batch = dataset.train_batch(step)
        rows = np.array([row_of[key] for key in dataset.train_keys(step)])
        for sample, (top, left, *shape) in enumerate(batch["place"].tolist()):
            assert shape == [SIDE // FACTOR] * 2
            window = slice(top, top + WINDOW), slice(left, left + WINDOW)
            for name in ("segmentation", "depth", "low_res"):
                whole = opened.track(name).read(grid, rows)[sample]
                np.testing.assert_array_equal(batch[name][sample].numpy(), whole[window])
            np.testing.assert_array_equal(
                batch["codes"][sample].numpy(), opened.read(grid, rows)[sample][window]
            )
            points = opened.track("keypoints").read(grid, rows)[sample] * SIDE / FACTOR
            seen = batch["keypoints"][sample].numpy() * WINDOW + [left, top]
            np.testing.assert_allclose(seen, points, atol=1e-4)
            boxes = opened.track("boxes").read(grid, rows)[sample, 1:3]
            np.testing.assert_array_equal(batch["boxes"][sample, :2, 0], boxes[:, 0])
            corners = batch["boxes"][sample, :2, 1:].numpy() * WINDOW + [left, top, left, top]
            np.testing.assert_allclose(corners, boxes[:, 1:] * SIDE / FACTOR, atol=1e-4)


def condition_flags(scenarios, name):
    """The flag that tells samples by this condition, of files that fit it."""
    paths = {
        "segmentation": scenarios / "segs",
        "depth": scenarios / "depths",
        "low_res": scenarios / "images",
        "boxes": scenarios / "boxes.jsonl",
        "keypoints": scenarios / "poses.jsonl",
        "half": scenarios / "images",
        "inpaint": holes(scenarios),
    }
    return f"{name}={paths[name]}"


def holes(scenarios):
    """A folder of three pictures, each with a hole of its own."""
    folder = scenarios / "holes"
    folder.mkdir(exist_ok=True)
    for seed in range(3):
        layers = np.dstack([photograph(seed), np.full((48, 64), 255, np.uint8)])
        layers[8 * seed : 8 * seed + 16, 16:40, 3] = 0
        Image.fromarray(layers).save(folder / f"{seed}.png")
    return folder


@pytest.mark.parametrize(
    ("recipe", "conditions"),
    [
        ("tiny", ("segmentation", "class")),
        ("tiny", ("depth", "coordinates")),
        ("tiny", ("low_res",)),
        ("tiny", ("inpaint",)),
        ("tiny", ("boxes",)),
        ("tiny", ("keypoints", "segmentation")),
        ("tiny-local", ("keypoints", "segmentation")),
        ("tiny-snail", ("segmentation",)),
    ],
)
def test_a_prior_is_told_by_files_what_it_was_trained_to_hear(
    store, scenarios, tmp_path, recipe, conditions
):
    run = train(store, tmp_path / "run", recipe, *conditions)
    condition_inputs = [
        condition_flags(scenarios, n) for n in conditions if n not in ("class", "coordinates")
    ]
    flags = [
        "--count",
        3,
        "--batch-size",
        2,
        "--size",
        f"{SIDE + 8}x{SIDE}",
        "--save",
        "codes,images",
    ]
    flags += [word for flag in condition_inputs for word in ("--condition", flag)]
    out = tmp_path / "samples"
    assert generate(run, out, *flags, "--guidance-scale", 2) == 0
    assert (out / "grid.png").exists()
    for flag in condition_inputs:
        assert (out / f"condition-{flag.partition('=')[0]}.png").exists()

    prior = load_prior(run)
    size = f"{SIDE + 8}x{SIDE}"
    request = request_of(
        run, tmp_path / "other", count=3, batch_size=2, samples_per_task=4, size=size,
        condition=tuple(condition_inputs),
    )  # fmt: skip
    condition_encoder = make_condition_encoder(
        request.condition_inputs, request.prior, prior, load_tokenizer(run / "tokenizer"),
        request.size,
    )  # fmt: skip
    sampled = prior.sample(
        *request.shape, samples=range(4), batch_size=2, guidance_scale=2,
        condition_inputs=condition_encoder.condition_inputs(range(4)),
        forced=condition_encoder.forced(range(4)),
    )  # fmt: skip
    stored = CodeStore.open(out / "codes.zarr")
    (grid,) = stored.grids
    np.testing.assert_array_equal(stored.read(grid, np.arange(3)), sampled[:3].numpy())

    # One that is gone is painted again as it was, with its mates told what they were.
    assert sample_images(out, 2)[0][0][0].startswith("condition-")
    assert sample_images(out, 2)[1] == 3
    before = contents(out)
    (out / "sample-00001.png").unlink()
    assert generate(run, out, *flags, "--guidance-scale", 2) == 0
    assert contents(out) == before


@pytest.mark.parametrize("recipe", ["tiny", "tiny-local", "tiny-snail"])
def test_what_a_told_prior_will_take_is_told_before(store, tmp_path, capsys, recipe):
    words = [recipe, "--codes", store, "--out", tmp_path / "run", "--window", GRID, "--dry-run"]
    assert train_prior.main([*map(str, words), "--conditions", "segmentation", "keypoints"]) == 0
    assert "parameters" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("conditions", [("segmentation", "class"), ("inpaint",)])
def test_evaluate_tells_a_prior_what_training_told_it(store, tmp_path, conditions):
    run = train(store, tmp_path / "run", "tiny", *conditions)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (measured,) = [
        line["held_out_loss"] for line in map(json.loads, lines) if "held_out_loss" in line
    ]
    words = ["prior", run, "--data", store, "--out", tmp_path / "metrics.json", "--held-out", 0.3]
    assert evaluate.main([*map(str, words)]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    assert metrics["nats_per_code"] == pytest.approx(measured, rel=1e-5)


def test_a_folder_painted_from_other_files_is_not_gone_on_with(store, scenarios, tmp_path, capsys):
    run = train(store, tmp_path / "run", "tiny", "sos")
    flags = ["--count", 1, "--size", f"{SIDE}x{SIDE}", "--condition"]
    one, two = scenarios / "images/lake/1.png", scenarios / "images/lake/3.png"
    assert generate(run, tmp_path / "out", *flags, f"half={one}") == 0
    assert generate(run, tmp_path / "out", *flags, f"half={two}") == 2
    assert "condition_inputs was" in capsys.readouterr().err


def test_the_known_half_stays_as_it_was(store, scenarios, tmp_path):
    """Any prior goes on from the codes of an upper half, which it leaves as they are."""
    run = train(store, tmp_path / "run", "tiny", "sos")
    flags = ["--count", 2, "--size", f"{SIDE}x{SIDE}", "--save", "codes,images"]
    half = f"half={scenarios / 'images/wood'}"
    assert generate(run, tmp_path / "out", *flags, "--condition", half) == 0
    stored = CodeStore.open(tmp_path / "out/codes.zarr")
    request = request_of(run, tmp_path / "other", size=f"{SIDE}x{SIDE}", condition=(half,))
    condition_encoder = make_condition_encoder(
        request.condition_inputs, run, load_prior(run), load_tokenizer(run / "tokenizer"),
        request.size,
    )  # fmt: skip
    rows = SIDE // FACTOR // 2
    found = stored.read(next(iter(stored.grids)), np.arange(2))
    np.testing.assert_array_equal(
        found[:, :rows], condition_encoder.forced([0, 1])[:, :rows].numpy()
    )
    lower = [picture(tmp_path / f"out/sample-0000{k}.png")[SIDE // 2 :] for k in range(2)]
    assert (lower[0] != lower[1]).any()
    assert pq.read_table(tmp_path / "out/index")["status"].to_pylist() == ["ok", "ok"]
    assert torch.get_num_threads() == 1


def test_a_store_without_the_track_is_refused(rule_store, tmp_path, capsys):
    words = ["tiny", "--codes", rule_store, "--out", tmp_path, "--conditions", "depth"]
    words += ["--window", 4, *TRAINING]
    assert train_prior.main([*map(str, words)]) == 2
    assert "has no track 'depth'" in capsys.readouterr().err
