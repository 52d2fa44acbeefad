import json

import pytest
import torch

from ops.checkpoint import (
    CheckpointError,
    fingerprint,
    newest_step,
    prune_steps,
    read_description,
    resolve_model_folder,
    save_model,
    step_folder,
    step_folders,
    step_of,
)
from ops.tensor_files import load_tensors

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([True, False])}


def make_step(run, step, *, complete=True):
    folder = step_folder(run, step)
    save_model(folder, "thing", {"size": 1}, TENSORS)
    if complete:
        torch.save({}, folder / "train_state.pt")
    return folder


def test_a_model_folder_round_trips(tmp_path):
    strided = {**TENSORS, "a": TENSORS["a"].T}
    save_model(tmp_path / "m", "thing", {"size": 1}, strided, {"name": "x"})
    description = read_description(tmp_path / "m", "thing")
    tensors = load_tensors(tmp_path / "m" / "model.safetensors")
    assert description == {"format": 2, "kind": "thing", "config": {"size": 1}, "name": "x"}
    assert set(tensors) == {"a", "b"}
    assert torch.equal(tensors["a"], TENSORS["a"].T)


def test_foreign_and_corrupt_folders_are_refused_with_the_reason(tmp_path):
    save_model(tmp_path / "m", "thing", {}, TENSORS)
    with pytest.raises(CheckpointError, match="holds a 'thing', not a 'prior'"):
        read_description(tmp_path / "m", "prior")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        read_description(tmp_path, "thing")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tensors(tmp_path / "m" / "model.safetensors")
    (tmp_path / "m" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        read_description(tmp_path / "m", "thing")
    (tmp_path / "m" / "config.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(CheckpointError, match="newer format"):
        read_description(tmp_path / "m", "thing")
    (tmp_path / "m" / "config.json").write_text(json.dumps({"format": 1, "kind": "thing"}))
    with pytest.raises(CheckpointError, match="written by an older version of Smalti"):
        read_description(tmp_path / "m", "thing")
    (tmp_path / "m" / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds no JSON object"):
        read_description(tmp_path / "m", "thing")


def test_the_newest_complete_step_is_where_to_resume(tmp_path):
    assert newest_step(tmp_path) is None
    assert newest_step(tmp_path / "missing") is None
    make_step(tmp_path, 10)
    second = make_step(tmp_path, 200)
    make_step(tmp_path, 300, complete=False)
    (tmp_path / "step-00000400.abcd1234.partial").mkdir()
    assert newest_step(tmp_path) == second
    assert step_of(second) == 200


def test_pruning_keeps_the_newest_and_removes_partial_folders_of_kills(tmp_path):
    for step in (1, 2, 3):
        make_step(tmp_path, step)
    (tmp_path / "step-00000004.abcd1234.partial").mkdir()
    prune_steps(tmp_path, keep=2)
    assert [step_of(folder) for folder in step_folders(tmp_path)] == [2, 3]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_run_folder_resolves_to_its_newest_step(tmp_path):
    with pytest.raises(CheckpointError, match="neither a model folder"):
        resolve_model_folder(tmp_path)
    folder = make_step(tmp_path, 5)
    assert resolve_model_folder(tmp_path) == folder
    assert resolve_model_folder(folder) == folder


def test_a_fingerprint_depends_on_every_bit_but_not_on_the_order():
    base = fingerprint({"k": 1}, TENSORS)
    assert base == fingerprint({"k": 1}, dict(reversed(TENSORS.items())))
    assert base != fingerprint({"k": 2}, TENSORS)
    changed = TENSORS["a"].clone()
    changed[0, 0] += 1e-7
    assert base != fingerprint({"k": 1}, {**TENSORS, "a": changed})
    assert base != fingerprint({"k": 1}, {**TENSORS, "a": TENSORS["a"].view(3, 2)})
    assert len(base) == 16
