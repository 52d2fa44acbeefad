"""The local prior by the commands: training, evaluation, generation, resuming."""

import json
import shutil

import numpy as np
import pytest
import torch

from ops.checkpoint import step_folder
from ops.tensor_files import load_tensors
from pipelines import evaluate, generate, train_prior
from pipelines.store import CodeStore
from pipelines.streaming.dataset import CodeDataset
from pipelines.training.prior_task import held_out_cut, held_out_nll
from prior import (
    Conditions,
    LocalGPT,
    StartOfSequence,
    load_prior,
    make_model,
    preset_config,
    save_prior,
)
from tests.conftest import make_store

FLAGS = [
    "--steps", "4", "--save-every", "2", "--sample-every", "4", "--log-every", "1",
    "--batch-size", "2", "--window", "5", "--threads", "1",
]  # fmt: skip


def train(store, out, *more):
    words = ["tiny-local", "--codes", str(store), "--out", str(out), *FLAGS, *more]
    return train_prior.main(words)


def losses_of(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_it_learns_the_rule_and_generates_canvases_of_any_size(rule_store, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    assert train(rule_store, run, "--steps", "30", "--batch-size", "4") == 0
    assert losses_of(run)[0] > 5  # ln 256 is 5.5 nats
    assert losses_of(run)[-1] < 1.8  # only few codes occur; ln 2 is 0.69
    prior = load_prior(run)
    assert isinstance(prior.model, LocalGPT)
    assert prior.sample(3, 11, count=2).shape == (2, 3, 11)
    words = ["--prior", str(run), "--out", str(out), "--count", "2", "--size", "72x40"]
    assert generate.main(words) == 0
    assert {path.name for path in out.glob("*.png")} >= {"sample-00000.png", "sample-00001.png"}
    capsys.readouterr()
    words[3] = str(tmp_path / "other")
    assert generate.main([*words, "--stride", "2"]) == 2
    assert "leave stride out" in capsys.readouterr().err


def test_it_has_row_major_order_only(rule_store, tmp_path, capsys):
    assert train(rule_store, tmp_path / "run", "--ordering", "random") == 2
    assert "'tiny-local' has no ordering" in capsys.readouterr().err


def test_a_resumed_run_has_the_losses_and_weights_of_an_uninterrupted_one(rule_store, tmp_path):
    for name in ("whole", "parts"):
        assert train(rule_store, tmp_path / name) == 0
    shutil.rmtree(step_folder(tmp_path / "parts", 4))  # as if it had been killed in step 3
    assert train(rule_store, tmp_path / "parts") == 0
    assert losses_of(tmp_path / "parts") == losses_of(tmp_path / "whole")
    whole, parts = (
        load_tensors(step_folder(tmp_path / name, 4) / "model.safetensors")
        for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.fixture(scope="module")
def large_store(tmp_path_factory):
    """Grids larger than the windows cut from them."""
    codes = np.random.default_rng(0).integers(0, 16, (5, 25, 27))
    return make_store(tmp_path_factory.mktemp("large") / "codes.zarr", codes)


def test_only_cells_with_their_whole_neighbourhood_are_measured(large_store, tmp_path):
    conditions = Conditions([StartOfSequence()], 16)
    sizes = {"codebook_size": 16, "condition_vocab_size": 1, "condition_length": 1}
    torch.manual_seed(0)
    model = make_model(preset_config("tiny-local", window=25, **sizes))
    info = CodeStore.open(large_store).provenance["image"]
    save_prior(tmp_path / "prior", model, conditions, info)
    dataset = CodeDataset(
        CodeStore.open(large_store), window=25, batch_size=5, held_out_share=1.0,
        may_be_all_held_out=True,
    )  # fmt: skip
    (batch,) = dataset.held_out_batches(cut=held_out_cut(model.config))
    assert batch["true_edges"].tolist() == [[True, True, False]] * 5
    with torch.no_grad():
        nll = model.nll(conditions.tokens({}, 5), batch["codes"]).mean(0)
        found = held_out_nll(model, conditions, [batch], torch.device("cpu"))
    measured = model.uncut(torch.tensor([[True, True, False, True]]), 25, 25)[0]
    assert 0 < measured.sum() < 25 * 25
    assert torch.equal(~found.places.isnan(), measured)
    assert found.mean == pytest.approx(float(nll[measured].mean()), rel=1e-5)
    out = tmp_path / "metrics.json"
    words = ["prior", str(tmp_path / "prior"), "--data", str(large_store), "--held-out", "1"]
    assert evaluate.main([*words, "--out", str(out)]) == 0
    assert json.loads(out.read_text())["metrics"]["nats_per_code"] == pytest.approx(
        found.mean, rel=1e-5
    )


def test_windows_without_any_whole_neighbourhood_are_refused(large_store, tmp_path, capsys):
    assert train(large_store, tmp_path / "run", "--window", "24") == 2
    message = capsys.readouterr().err
    assert "codes up to 24 away" in message
    assert "--window 32" in message
