"""Conditions through the commands: encode with tracks, train on them, sample from files. That
conditions change what a prior samples is tested where it is small: see tests/prior."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipelines import evaluate, train_prior
from pipelines.conditioning import make_condition_encoder
from pipelines.flags import TrainPriorFlags
from pipelines.recipes import PRIOR_RECIPES
from pipelines.reports.samples import sample_images
from pipelines.store import CodeStore
from pipelines.training.flags import override_recipe
from pipelines.training.prior_run import open_data
from prior import load_prior
from tests.condition_run import FACTOR, GRID, SIDE, TRAINING, WINDOW, condition_flag, train
from tests.generate_run import contents, generate, image_in, request_of
from tokenizer import load_tokenizer


def test_tracks_come_with_their_codes_cut_at_the_same_place(scene_store):
    tracks = ("segmentation", "depth", "low_res", "boxes", "keypoints")
    flags = TrainPriorFlags(
        recipe="tiny",
        codes=(scene_store,),
        out=scene_store,
        conditions=tracks,
        window=WINDOW,
        batch_size=4,
    )
    recipe = override_recipe(PRIOR_RECIPES, flags.recipe, flags, "window", "ordering")
    dataset = open_data(flags, recipe).dataset
    opened = CodeStore.open(scene_store)
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
            found = batch["keypoints"][sample].numpy() * WINDOW + [left, top]
            np.testing.assert_allclose(found, points, atol=1e-4)
            boxes = opened.track("boxes").read(grid, rows)[sample, 1:3]
            np.testing.assert_array_equal(batch["boxes"][sample, :2, 0], boxes[:, 0])
            corners = batch["boxes"][sample, :2, 1:].numpy() * WINDOW + [left, top, left, top]
            np.testing.assert_allclose(corners, boxes[:, 1:] * SIDE / FACTOR, atol=1e-4)


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
def test_generate_conditions_samples_on_files(scene_store, scenes, tmp_path, recipe, conditions):
    run = train(scene_store, tmp_path / "run", recipe, *conditions)
    asked = tuple(
        condition_flag(scenes, name) for name in conditions if name not in ("class", "coordinates")
    )
    size = f"{SIDE + 8}x{SIDE}"
    flags = ["--count", 3, "--batch-size", 2, "--size", size, "--save", "codes,images"]
    flags += [word for flag in asked for word in ("--condition", flag)]
    out = tmp_path / "samples"
    assert generate(run, out, *flags, "--guidance-scale", 2) == 0
    assert (out / "grid.png").exists()
    for flag in asked:
        assert (out / f"condition-{flag.partition('=')[0]}.png").exists()

    prior = load_prior(run)
    request = request_of(
        run, tmp_path / "other", count=3, batch_size=2, samples_per_task=4, size=size,
        condition=asked,
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

    # A sample that is missing is made again as it was, with the inputs of its batch.
    assert len(sample_images(out, 2)[0][0].sources) == len(asked) + 1  # before the image
    assert sample_images(out, 2)[1] == 3
    before = contents(out)
    (out / "sample-00001.png").unlink()
    assert generate(run, out, *flags, "--guidance-scale", 2) == 0
    assert contents(out) == before


@pytest.mark.parametrize("recipe", ["tiny", "tiny-local", "tiny-snail"])
def test_dry_run_estimates_a_conditional_prior(scene_store, tmp_path, capsys, recipe):
    words = [recipe, "--codes", scene_store, "--out", tmp_path / "run", "--window", GRID]
    words += ["--dry-run", "--conditions", "segmentation", "keypoints"]
    assert train_prior.main([*map(str, words)]) == 0
    assert "parameters" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("conditions", [("segmentation", "class"), ("inpaint",)])
def test_evaluate_measures_with_the_conditions_of_training(scene_store, tmp_path, conditions):
    run = train(scene_store, tmp_path / "run", "tiny", *conditions)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (measured,) = [
        line["held_out_loss"] for line in map(json.loads, lines) if "held_out_loss" in line
    ]
    out = tmp_path / "metrics.json"
    words = ["prior", run, "--data", scene_store, "--out", out, "--held-out", 0.3]
    assert evaluate.main([*map(str, words)]) == 0
    metrics = json.loads(out.read_text())["metrics"]
    assert metrics["nats_per_code"] == pytest.approx(measured, rel=1e-5)


def test_samples_of_other_files_are_not_mixed_into_a_folder(scene_store, scenes, tmp_path, capsys):
    run = train(scene_store, tmp_path / "run", "tiny", "sos")
    flags = ["--count", 1, "--size", f"{SIDE}x{SIDE}", "--condition"]
    one, two = scenes / "images/lake/1.png", scenes / "images/lake/3.png"
    assert generate(run, tmp_path / "out", *flags, f"half={one}") == 0
    assert generate(run, tmp_path / "out", *flags, f"half={two}") == 2
    assert "condition_inputs was" in capsys.readouterr().err


def test_known_half_stays_as_it_was(scene_store, scenes, tmp_path):
    """Any prior samples below the codes of an upper half, which do not change."""
    run = train(scene_store, tmp_path / "run", "tiny", "sos")
    flags = ["--count", 2, "--size", f"{SIDE}x{SIDE}", "--save", "codes,images"]
    half = f"half={scenes / 'images/wood'}"
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
    lower = [image_in(tmp_path / f"out/sample-0000{k}.png")[SIDE // 2 :] for k in range(2)]
    assert (lower[0] != lower[1]).any()
    assert pq.read_table(tmp_path / "out/index")["status"].to_pylist() == ["ok", "ok"]
    assert torch.get_num_threads() == 1


def test_store_without_the_track_is_refused(rule_store, tmp_path, capsys):
    words = ["tiny", "--codes", rule_store, "--out", tmp_path, "--conditions", "depth"]
    words += ["--window", 4, *TRAINING]
    assert train_prior.main([*map(str, words)]) == 2
    assert "has no track 'depth'" in capsys.readouterr().err
