import collections
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ops.checkpoint import CheckpointError
from ops.published import load_published

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


def equal(found):
    return found.keys() == TENSORS.keys() and all(torch.equal(found[k], TENSORS[k]) for k in found)


class Callback:
    """Something of a trainer's own; making one leaves a trace."""

    made = 0

    def __init__(self):
        type(self).made += 1
        self.best = {"score": 1.5}


@pytest.mark.parametrize("name", ["x.ckpt", "x.pt", "x.bin", "x.pth"])
def test_plain_state_dicts_are_read(tmp_path, name):
    for zipped in (True, False):  # torch's format, and the one before
        tensors = collections.OrderedDict(TENSORS)
        torch.save(tensors, tmp_path / name, _use_new_zipfile_serialization=zipped)
        assert equal(load_published(tmp_path / name))


def test_safetensors_are_read(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    assert equal(load_published(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("old_format", [False, True])
def test_a_trainers_checkpoint_gives_its_weights_and_runs_nothing(tmp_path, old_format):
    checkpoint = {
        "epoch": 3,
        "global_step": 17,
        "state_dict": TENSORS,
        "callbacks": {Callback: {"kept": Callback()}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
    }
    path = tmp_path / "last.ckpt"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not old_format)
    made = Callback.made
    if old_format:
        # torch cannot list what such a file names: it is refused, not run.
        with pytest.raises(CheckpointError, match="no checkpoint that can be read"):
            load_published(path)
    else:
        assert equal(load_published(path))
    assert Callback.made == made


def test_averaged_weights_come_first(tmp_path):
    other = {name: tensor + 1 for name, tensor in TENSORS.items()}
    torch.save({"model": other, "ema": TENSORS, "steps": 3}, tmp_path / "x.pt")
    assert equal(load_published(tmp_path / "x.pt"))


def leave_trace(path):
    Path(path).touch()


class Burglar:
    """Pickled, it is a call of some function with a path."""

    def __init__(self, function, path):
        self.call = function, (str(path),)

    def __reduce__(self):
        return self.call


def test_a_call_that_a_file_asks_for_is_not_made(tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "x.ckpt"
    torch.save({"state_dict": TENSORS, "more": Burglar(leave_trace, trace)}, path)
    assert equal(load_published(path))
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the danger is real
    assert trace.exists()


def test_a_call_into_the_system_is_refused_without_advice_to_make_it(tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "x.ckpt"
    torch.save({"state_dict": TENSORS, "more": Burglar(os.mkdir, trace)}, path)
    with pytest.raises(CheckpointError, match="mkdir") as refused:
        load_published(path)
    assert "weights_only" not in str(refused.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint at all", pickle.dumps({"a": 1}, protocol=2)]
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.ckpt"):
        load_published(tmp_path / "x.ckpt")


def test_a_missing_file_and_one_without_tensors_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="is no file"):
        load_published(tmp_path / "x.ckpt")
    torch.save({"state_dict": {"a": 1}}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="holds no tensors by name"):
        load_published(tmp_path / "x.ckpt")
