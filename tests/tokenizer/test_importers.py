import pytest
import torch

from ops.checkpoint import CheckpointError
from tests.tokenizer.published_weights import (
    CODES,
    GROUPS,
    Published,
    compvis_vqgan,
    diffusers_vqgan,
    llamagen_vqgan,
)
from tokenizer import PRESETS, VQGAN
from tokenizer.importers import IMPORTERS, import_compvis, import_diffusers, import_llamagen

PIXELS = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)).double() * 2 - 1


def imported(importer, tensors):
    config, ours = importer(tensors, GROUPS)
    model = VQGAN(config).eval()
    model.load_state_dict(ours)
    return model.double().requires_grad_(False)


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@pytest.mark.parametrize("kind", ["vq", "gumbel", "no attention"])
def test_a_compvis_model_computes_the_published_codes_and_pixels(kind, prefix):
    options = {"gumbel": kind == "gumbel", "attention": kind != "no attention"}
    theirs = Published(compvis_vqgan(**options))
    other = {"transformer.tok_emb.weight": torch.zeros(3)} if prefix else {}
    model = imported(import_compvis, {**other, **compvis_vqgan(prefix=prefix, **options)})
    codes = model.quantizer.assign(model.pre_quant(model.encoder(PIXELS)))
    assert torch.equal(codes, theirs.codes(PIXELS))
    assert len(codes.unique()) > 2
    # The importer stores float32, as all published weights are.
    torch.testing.assert_close(model.decode(codes), theirs.pixels(codes), rtol=1e-4, atol=1e-5)
    assert model.config.autoencoder.mid_attention
    assert model.config.quantizer.kind == ("gumbel" if kind == "gumbel" else "vq")


def test_other_families_give_the_same_weights():
    _, expected = import_compvis(compvis_vqgan(), GROUPS)
    for importer, tensors in (
        (import_llamagen, llamagen_vqgan()),
        (import_diffusers, diffusers_vqgan()),
        (import_diffusers, diffusers_vqgan(older=True)),
    ):
        _, found = importer(tensors, GROUPS)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_each_family_has_its_quantizer():
    compvis, _ = import_compvis(compvis_vqgan(), GROUPS)
    assert (compvis.quantizer.commitment_weight, compvis.quantizer.codebook_weight) == (1, 0.25)
    llamagen, _ = import_llamagen(llamagen_vqgan(), GROUPS)
    assert llamagen.quantizer.kind == "l2"
    diffusers, _ = import_diffusers(diffusers_vqgan(), GROUPS)
    assert diffusers.quantizer.kind == "vq"
    assert (diffusers.quantizer.commitment_weight, diffusers.quantizer.codebook_weight) == (0.25, 1)


@pytest.mark.parametrize(
    ("preset", "sizes"),
    [
        ("imagenet-f16-1024", ((1, 1, 2, 2, 4), 256, 1024, 256)),
        ("f8-16384", ((1, 2, 2, 4), 4, 16384, 4)),
    ],
)
def test_published_sizes_are_read_from_the_shapes(preset, sizes):
    mult, latents, codes, dim = sizes
    tensors = compvis_vqgan(128, mult, latents, codes, dim, values=False)
    config, _ = import_compvis(tensors)
    assert config.autoencoder == PRESETS[preset].autoencoder
    assert config.quantizer.codebook_size == PRESETS[preset].quantizer.codebook_size
    if preset == "imagenet-f16-1024":  # as counted in the published checkpoint
        assert len(tensors) == 343
        assert sum(tensor.numel() for tensor in tensors.values()) == 72_141_699


@pytest.mark.parametrize("gumbel", [False, True])
def test_a_remapped_codebook_is_reduced_to_its_used_codes_in_order(gumbel):
    used = torch.tensor([7, 2, 9, 4, 0])
    tensors = compvis_vqgan(gumbel=gumbel)
    model = imported(import_compvis, {**tensors, "quantize.used": used})
    assert model.config.codebook_size == 5
    theirs = Published(tensors)
    codes = torch.arange(5).repeat(4).view(1, 4, 5)
    expected = theirs.pixels(used[codes])
    torch.testing.assert_close(model.decode(codes), expected, rtol=1e-4, atol=1e-5)
    before, after = theirs.codes(PIXELS), model.quantizer.assign(theirs.latents(PIXELS))
    known = torch.isin(before, used)
    assert known.any()
    assert torch.equal(used[after][known], before[known])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.conv_in.weight": None}, r"encoder\.conv_in\.weight is missing"),
        (
            {"decoder.up.1.block.2.conv2.bias": None},
            r"decoder\.up\.1\.block\.2\.conv2\.bias is mis",
        ),
        ({"quant_conv.weight": torch.zeros(5, 7, 1, 1)}, r"quant_conv\.weight is \(5, 7, 1, 1\)"),
        ({"encoder.down.0.block.0.temb.weight": torch.zeros(1)}, r"temb\.weight is not a key"),
        ({"quantize.used": torch.tensor([0, CODES])}, r"quantize\.used lists codes"),
        (
            {"encoder.down.2.block.0.conv1.weight": torch.zeros(9, 8, 3, 3)},
            "has 9 channels, not a multiple",
        ),
    ],
)
def test_missing_unknown_and_misshapen_keys_are_named(change, message):
    tensors = {**compvis_vqgan(), **change}
    with pytest.raises(CheckpointError, match=message):
        import_compvis({k: v for k, v in tensors.items() if v is not None}, GROUPS)


def test_another_familys_weights_are_refused():
    with pytest.raises(CheckpointError, match=r"encoder\.conv_blocks\.0 is missing"):
        import_llamagen(compvis_vqgan(), GROUPS)
    with pytest.raises(CheckpointError, match=r"encoder\.down\.0 is missing"):
        import_compvis(diffusers_vqgan(), GROUPS)


@pytest.mark.parametrize("name", IMPORTERS)
def test_another_models_weights_are_refused(name):
    with pytest.raises(CheckpointError, match="not the weights of a tokenizer"):
        IMPORTERS[name]({"blocks.0.attn.key.weight": torch.zeros(2, 2)}, 32)


def test_keys_that_only_training_uses_are_ignored():
    leftovers = {key: torch.zeros(1) for key in ("loss.discriminator.main.0.weight", "colorize")}
    _, found = import_compvis({**compvis_vqgan(), **leftovers}, GROUPS)
    _, expected = import_compvis(compvis_vqgan(), GROUPS)
    assert found.keys() == expected.keys()
