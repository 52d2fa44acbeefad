import torch

from pipelines import import_tokenizer
from tests.tokenizer.published_weights import GROUPS, Published, compvis_vqgan, llamagen_vqgan
from tokenizer import load_tokenizer

PIXELS = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def run(kind, file, out, groups=GROUPS):
    flags = [kind, str(file), "--out", str(out), "--norm-groups", str(groups)]
    return import_tokenizer.main(flags)


def test_a_lightning_checkpoint_becomes_a_tokenizer(tmp_path, capsys):
    tensors = {key: tensor.float() for key, tensor in compvis_vqgan().items()}
    torch.save({"state_dict": tensors, "global_step": 5}, tmp_path / "last.ckpt")
    assert run("compvis", tmp_path / "last.ckpt", tmp_path / "model") == 0
    assert "f 4, 11 codes of vq" in capsys.readouterr().out
    tokenizer = load_tokenizer(tmp_path / "model")
    theirs = Published(tensors)
    codes = tokenizer.encode(PIXELS)
    assert torch.equal(codes, theirs.codes(PIXELS))
    torch.testing.assert_close(tokenizer.decode(codes), theirs.pixels(codes), rtol=1e-3, atol=1e-4)
    assert not tokenizer.quantizer.needs_init  # further training starts from these codes


def test_a_second_run_does_nothing_and_other_folders_are_kept(tmp_path, capsys):
    torch.save({"model": llamagen_vqgan()}, tmp_path / "vq.pt")
    assert run("llamagen", tmp_path / "vq.pt", tmp_path / "model") == 0
    first = (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns
    assert run("llamagen", tmp_path / "vq.pt", tmp_path / "model") == 0
    assert (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns == first
    capsys.readouterr()
    assert run("llamagen", tmp_path / "vq.pt", tmp_path / "model", groups=2) == 2
    assert run("llamagen", tmp_path / "vq.pt", tmp_path) == 2
    assert capsys.readouterr().err.count("exists and holds something else") == 2


def test_invalid_input_ends_with_one_line_and_code_2(tmp_path, capsys):
    torch.save(compvis_vqgan(), tmp_path / "x.ckpt")
    assert run("llamagen", tmp_path / "x.ckpt", tmp_path / "model") == 2
    assert run("compvis", tmp_path / "none.ckpt", tmp_path / "model") == 2
    assert run("compvis", tmp_path / "x.ckpt", tmp_path / "model", groups=3) == 2
    error = capsys.readouterr().err
    assert "encoder.conv_blocks.0 is missing" in error
    assert "is not a file" in error
    assert "are not divisible by 3 groups" in error
    assert not (tmp_path / "model").exists()
