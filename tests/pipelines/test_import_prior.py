import pytest
import torch
from safetensors.torch import save_file

from pipelines import generate, import_prior
from prior import load_prior
from tests.prior.published_gpt import CODES, HEADS, WINDOW, published_gpt, published_logits
from tests.tokenizer.published_weights import GROUPS, Published, compvis_vqgan
from tokenizer import build_tokenizer, load_tokenizer, save_tokenizer

VQGAN = "first_stage_model."


def net2net(block_size=1 + WINDOW**2):
    """A Net2NetTransformer's state dict: the GPT and its tokenizer."""
    tensors = compvis_vqgan(codes=CODES, prefix=VQGAN)
    tensors[f"{VQGAN}loss.discriminator.main.0.weight"] = torch.zeros(2)
    tensors["permuter.forward_shuffle_idx"] = torch.arange(WINDOW**2)
    return {key: tensor.float() for key, tensor in (published_gpt(block_size) | tensors).items()}


@pytest.fixture
def checkpoint(tmp_path):
    torch.save({"state_dict": net2net(), "global_step": 5}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def run(file, out, *more):
    sizes = ["--window", WINDOW, "--num-heads", HEADS, "--norm-groups", GROUPS]
    return import_prior.main(["compvis", *map(str, [file, "--out", out, *sizes, *more])])


@torch.no_grad()
def test_a_lightning_checkpoint_becomes_a_prior_with_the_published_logits(checkpoint, capsys):
    out = checkpoint.parent / "prior"
    assert run(checkpoint, out, "--num-classes", 5) == 0
    assert "2 layers of 12, 11 codes" in capsys.readouterr().out
    prior, tensors = load_prior(out), net2net()
    codes = torch.randint(CODES, (5, WINDOW, WINDOW), generator=torch.Generator().manual_seed(1))
    prefixes = prior.conditions.tokens({"label": torch.arange(5)}, 5)
    ours = prior.model.code_logits(prefixes, codes).flatten(1, 2)
    gpt = {key: tensor for key, tensor in tensors.items() if key.startswith("transformer.")}
    for label in range(5):  # the published model reads a class as the code of that number
        tokens = torch.cat([torch.tensor([label]), codes[label].flatten()])[:-1]
        torch.testing.assert_close(ours[label], published_logits(gpt, tokens), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_model_with_coordinates_samples_images_larger_than_its_window(tmp_path, capsys):
    torch.save({"state_dict": net2net(2 * WINDOW**2)}, tmp_path / "coordinates.ckpt")
    out, samples = tmp_path / "prior", tmp_path / "samples"
    assert run(tmp_path / "coordinates.ckpt", out, "--conditions", "coordinates") == 0
    assert [part.name for part in load_prior(out).conditions.parts] == ["coordinates"]
    flags = ["--prior", str(out), "--count", "1", "--size", "24x16", "--out", str(samples)]
    assert generate.main(flags) == 0
    assert (samples / "sample-00000.png").exists()
    both = ["--conditions", "coordinates", "--num-classes", 5]
    assert run(tmp_path / "coordinates.ckpt", tmp_path / "other", *both) == 2
    assert "leave out one" in capsys.readouterr().err


def test_the_tokenizer_in_the_checkpoint_is_imported_and_used(checkpoint):
    out = checkpoint.parent / "prior"
    assert run(checkpoint, out) == 0
    prior, tokenizer = load_prior(out), load_tokenizer(out / "tokenizer")
    assert prior.tokenizer_info["fingerprint"] == tokenizer.fingerprint
    inside = {
        key.removeprefix(VQGAN): tensor
        for key, tensor in net2net().items()
        if key.startswith(VQGAN)
    }
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert torch.equal(tokenizer.encode(pixels), Published(inside).codes(pixels))
    flags = ["--count", "1", "--size", "16x12", "--out", str(out.parent / "samples")]
    assert generate.main(["--prior", str(out), *flags]) == 0
    assert list((out.parent / "samples").rglob("*.png"))


def test_safetensors_without_a_tokenizer_need_the_flag(tmp_path, capsys):
    gpt = {key: tensor.float() for key, tensor in published_gpt(prefix="").items()}
    save_file(gpt, tmp_path / "gpt.safetensors")
    assert run(tmp_path / "gpt.safetensors", tmp_path / "prior") == 2
    assert "holds no tokenizer (first_stage_model.*)" in capsys.readouterr().err
    torch.save({"state_dict": net2net()}, tmp_path / "whole.ckpt")
    assert run(tmp_path / "whole.ckpt", tmp_path / "whole") == 0
    named = ["--tokenizer", tmp_path / "whole" / "tokenizer"]
    assert run(tmp_path / "gpt.safetensors", tmp_path / "prior", *named) == 0
    one, other = load_prior(tmp_path / "prior"), load_prior(tmp_path / "whole")
    assert one.tokenizer_info == other.tokenizer_info
    for first, second in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(first, second)


def test_a_second_run_does_nothing_and_other_folders_are_kept(checkpoint, capsys):
    out = checkpoint.parent / "prior"
    assert run(checkpoint, out) == 0
    first = (out / "model.safetensors").stat().st_mtime_ns
    assert run(checkpoint, out) == 0
    assert (out / "model.safetensors").stat().st_mtime_ns == first
    assert run(checkpoint, out, "--num-classes", 5) == 2
    assert run(checkpoint, checkpoint.parent) == 2
    assert capsys.readouterr().err.count("exists and holds something else") == 2


def test_invalid_input_ends_with_one_line_and_code_2(checkpoint, capsys):
    folder = checkpoint.parent
    depth = net2net() | {"cond_stage_model.encoder.conv_in.weight": torch.zeros(2)}
    torch.save({"state_dict": depth}, folder / "depth.ckpt")
    torch.save({"weight": torch.zeros(2)}, folder / "other.pt")
    save_tokenizer(folder / "foreign", build_tokenizer("tiny", seed=0))
    assert run(folder / "none.ckpt", folder / "prior") == 2
    assert run(folder / "depth.ckpt", folder / "prior") == 2
    assert run(folder / "other.pt", folder / "prior", "--tokenizer", folder / "foreign") == 2
    assert run(checkpoint, folder / "prior", "--tokenizer", folder / "foreign") == 2
    assert run(checkpoint, folder / "prior", "--num-classes", 12) == 2
    error = capsys.readouterr().err
    assert "is not a file" in error
    assert "was trained with images as its condition" in error
    assert "Not a published GPT" in error
    assert "head.weight is (11, 12), expected (256, 12)" in error
    assert "too few for the condition 'class'" in error
    assert "Traceback" not in error
    assert not (folder / "prior").exists()
