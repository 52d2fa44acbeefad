"""Model folders from elsewhere: a tokenizer, or a reason in one line."""

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ops.checkpoint import CheckpointError
from ops.config import UserError
from tests.conftest import examples
from tokenizer import VQGAN, NonFiniteLatentsError, build_tokenizer, load_tokenizer, save_tokenizer


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("valid") / "tiny"
    save_tokenizer(folder, build_tokenizer("tiny"), half=True)
    return folder


def changed(valid, folder, change):
    """A copy of a model folder with the entries that change(description) replaces in it."""
    shutil.copytree(valid, folder, dirs_exist_ok=True)
    description = json.loads((valid / "config.json").read_text())
    change(description)
    (folder / "config.json").write_text(json.dumps(description))
    return folder


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("autoencoder", "num_res_blocks", 10**9, "num_res_blocks must be at most 64"),
        ("autoencoder", "channels", 2**40, "channels must be at most 65536"),
        ("autoencoder", "channels", 2**16, r"is \(64,\), but config.json asks for \(131072"),
        ("autoencoder", "norm_groups", 0, "norm_groups must be at least 1"),
        ("autoencoder", "channel_mult", [1] * 99, "channel_mult must have 1 to 8 levels"),
        ("autoencoder", "dropout", 1e999, "Infinity is not a finite number"),
        ("autoencoder", "channles", 4, "no channles; did you mean channels"),
        ("quantizer", "codebook_size", 2**60, "codebook_size must be at most"),
        ("quantizer", "kind", "other", "No quantizer 'other'"),
        ("quantizer", "levels", [3] * 10**5, "levels must be at most 24 numbers"),
        ("modality", "num_classes", -1, "num_classes must be at least 0"),
    ],
)
def test_a_config_is_checked_before_memory_is_taken(valid, tmp_path, part, name, value, message):
    folder = changed(valid, tmp_path, lambda d: d["config"][part].update({name: value}))
    with pytest.raises(CheckpointError, match=message) as raised:
        load_tokenizer(folder)
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ["a"]}, "name must be str"),
        ({"config": None}, "VQGANConfig must be an object"),
        ({"format": "2"}, "newer format"),
        ({"kind": {}}, "holds a {}, not a 'vqgan'"),
    ],
)
def test_other_entries_are_checked_too(valid, tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(changed(valid, tmp_path, lambda d: d.update(change)))


def test_a_weight_that_is_not_finite_is_refused_by_its_name(valid, tmp_path):
    shutil.copytree(valid, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["decoder.conv_in.weight"][0, 0, 0, 0] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"decoder.conv_in.weight holds values that are nan"):
        load_tokenizer(tmp_path)


def test_latents_that_are_not_finite_have_no_code():
    model = build_tokenizer("tiny").eval()
    pixels = torch.zeros(2, 3, 32, 32)
    pixels[1, :, :8, :8] = torch.nan
    with pytest.raises(NonFiniteLatentsError, match="weights, or the precision"):
        model.encode(pixels)
    codes = model.encode(pixels, check=False)
    assert torch.equal(codes[0], model.encode(pixels[:1])[0])
    assert codes[1, 0, 0] == -1


def load_or_refuse(folder):
    """The tokenizer, or the message of the UserError; any other error is a fault."""
    try:
        return load_tokenizer(folder)
    except UserError as error:
        return str(error)


NUMBERS = st.sampled_from([0, -1, 1, 2, 3, 2**31, 2**63, 2**100, 0.5, -0.5, 1e300])
VALUES = NUMBERS | st.none() | st.booleans() | st.text(max_size=3) | st.lists(NUMBERS, max_size=3)


@settings(max_examples=examples(60))
@given(data=st.data())
def test_any_change_to_a_model_folder_gives_a_model_or_a_reason(valid, data):
    """Values of config.json are replaced, or bytes of the weights' header."""
    folder = valid.parent / "changed"

    def change(description):
        places = [description, *description["config"].values(), description["config"]]
        objects = [place for place in places if isinstance(place, dict)]
        for _ in range(data.draw(st.integers(0, 2))):
            place = data.draw(st.sampled_from(objects))
            place[data.draw(st.sampled_from(sorted(place)))] = data.draw(VALUES)

    changed(valid, folder, change)
    content = bytearray((valid / "model.safetensors").read_bytes())
    for place in data.draw(st.lists(st.integers(0, 2000), max_size=3)):
        content[place] = data.draw(st.integers(32, 126))
    (folder / "model.safetensors").write_bytes(content)
    outcome = load_or_refuse(folder)
    assert isinstance(outcome, VQGAN) or "\n" not in outcome
