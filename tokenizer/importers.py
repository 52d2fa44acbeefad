"""Published tokenizers' state dicts converted to our config and state dict, without files.

CompVis (taming-transformers and the first stages of latent diffusion), LlamaGen and diffusers use
other names for the same network; a Layout describes those of each family. Sizes are read from the
tensors, every shape is checked, and an unknown key is an error.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ops.checkpoint import CheckpointError
from ops.meta_device import on_meta_device
from ops.tensor_files import check_finite
from ops.text import printable
from tokenizer.autoencoder import AutoencoderConfig
from tokenizer.quantizers import QuantizerConfig
from tokenizer.vqgan import PRESETS, VQGAN, VQGANConfig

Tensors = Mapping[str, Tensor]
Imported = tuple[VQGANConfig, dict[str, Tensor]]
FIRST_STAGE = "first_stage_model."  # prefix in checkpoints of transformers and diffusion models


SAME = {name: name for name in ("norm", "q", "k", "v", "proj_out")}
EMBEDDING = {"quantizer.embedding.weight": "quantize.embedding.weight"}  # our key -> theirs


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A family's names of the network's parts; the defaults are CompVis'.

    `{}` stands for a number. Level 0 is that of the pixels, but the decoder's levels may be counted
    from the latents instead.
    """

    encoder_level: str
    decoder_level: str
    counted_from_latents: bool
    block: str
    middle: tuple[str, str, str]
    ignored: str
    """a pattern of keys that only training uses"""
    attention: str = "attn.{}"
    downsample: str = "downsample.conv"
    upsample: str = "upsample.conv"
    shortcut: str = "nin_shortcut"
    norm_out: str = "norm_out"
    attention_parts: Mapping[str, str] = field(default_factory=SAME.copy)


COMPVIS = Layout(
    encoder_level="encoder.down.{}",
    decoder_level="decoder.up.{}",
    counted_from_latents=False,
    block="block.{}",
    middle=("mid.block_1", "mid.attn_1", "mid.block_2"),
    ignored=r"loss\..*|model_ema\..*|colorize|quantize\.used"
    r"|quantize\.embedding\.(cluster_size|embed_avg)",
)
LLAMAGEN = Layout(
    encoder_level="encoder.conv_blocks.{}",
    decoder_level="decoder.conv_blocks.{}",
    counted_from_latents=True,
    block="res.{}",
    middle=("mid.0", "mid.1", "mid.2"),
    ignored=r"quantize\.codebook_used",
)
DIFFUSERS = Layout(
    encoder_level="encoder.down_blocks.{}",
    decoder_level="decoder.up_blocks.{}",
    counted_from_latents=True,
    block="resnets.{}",
    middle=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    ignored=r"(?!)",
    attention="attentions.{}",
    downsample="downsamplers.0.conv",
    upsample="upsamplers.0.conv",
    shortcut="conv_shortcut",
    norm_out="conv_norm_out",
    attention_parts={
        "norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0",
    },
)  # fmt: skip
OLDER_DIFFUSERS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def import_compvis(tensors: Tensors, norm_groups: int = 32) -> Imported:
    """A VQModel or GumbelVQ, alone or as the first stage of a transformer or diffusion model.

    Of a remapped codebook (`quantize.used`) only the codes in use are taken, in the order of its
    numbering; latents that it maps to an unknown code get the nearest of them.
    Raises CheckpointError naming the key that is missing, unknown or of a wrong shape.
    """
    theirs = _first_stage(tensors)
    if "quantize.proj.weight" in theirs:
        published = PRESETS["f8-8192-gumbel"].quantizer
        keys = {
            "quantizer.proj.weight": "quantize.proj.weight",
            "quantizer.proj.bias": "quantize.proj.bias",
            "quantizer.embedding.weight": "quantize.embed.weight",
        }
    else:
        # The published models were trained with beta on the codebook term, not the commitment term.
        published = QuantizerConfig(kind="vq", commitment_weight=1.0, codebook_weight=0.25)
        keys = EMBEDDING
    if "quantize.used" in theirs:
        theirs = _in_use(theirs, list(keys.values()))
    return _import(theirs, COMPVIS, published, keys, norm_groups)


def import_llamagen(tensors: Tensors, norm_groups: int = 32) -> Imported:
    """A VQModel of LlamaGen, with l2-normalised codes; raises as import_compvis does."""
    return _import(tensors, LLAMAGEN, QuantizerConfig(kind="l2"), EMBEDDING, norm_groups)


def import_diffusers(tensors: Tensors, norm_groups: int = 32) -> Imported:
    """A VQModel of diffusers with group norms; raises as import_compvis does."""
    theirs = {}
    for key, tensor in tensors.items():
        *path, part, kind = ("", *key.split("."))
        theirs[".".join([*path, OLDER_DIFFUSERS.get(part, part), kind])[1:]] = tensor
    return _import(theirs, DIFFUSERS, QuantizerConfig(kind="vq"), EMBEDDING, norm_groups)


IMPORTERS: dict[str, Callable[[Tensors, int], Imported]] = {
    "compvis": import_compvis,
    "llamagen": import_llamagen,
    "diffusers": import_diffusers,
}


def _import(
    theirs: Tensors,
    layout: Layout,
    published: QuantizerConfig,
    quantizer_keys: Mapping[str, str],
    norm_groups: int,
) -> Imported:
    config = _config(theirs, layout, published, quantizer_keys, norm_groups)
    table = {**key_table(config.autoencoder, layout), **quantizer_keys}
    with on_meta_device():
        shapes = {name: tensor.shape for name, tensor in VQGAN(config).named_parameters()}
    known = re.compile("|".join([*map(re.escape, table.values()), layout.ignored]))
    for key in theirs:
        if not known.fullmatch(key):
            raise CheckpointError(f"{printable(key, 100)} is not a key of such a tokenizer.")
    return config, {name: _fetch(theirs, table[name], shape) for name, shape in shapes.items()}


def key_table(config: AutoencoderConfig, layout: Layout) -> dict[str, str]:
    """Our keys of encoder, decoder and 1x1 convolutions, each with the family's key."""
    modules = {"pre_quant": "quant_conv", "post_quant": "post_quant_conv"}
    for side, blocks in (
        ("encoder", _encoder_blocks(config, layout)),
        ("decoder", _decoder_blocks(config, layout)),
    ):
        ends = {"conv_in": "conv_in", "norm_out": layout.norm_out, "conv_out": "conv_out"}
        modules |= {f"{side}.{ours}": f"{side}.{key}" for ours, key in ends.items()}
        for number, parts in enumerate(blocks):
            modules |= {f"{side}.blocks.{number}.{part}": key for part, key in parts.items()}
    return {
        f"{ours}.{kind}": f"{key}.{kind}"
        for ours, key in modules.items()
        for kind in ("weight", "bias")
    }


def _encoder_blocks(config: AutoencoderConfig, layout: Layout) -> Iterator[dict[str, str]]:
    """For each of our encoder's blocks: the names of its parts, with the family's keys."""
    in_channels = config.channels
    for level, mult in enumerate(config.channel_mult):
        theirs, out_channels = layout.encoder_level.format(level), config.channels * mult
        count = config.num_res_blocks
        widens = in_channels != out_channels
        yield from _level_blocks(config, layout, level, theirs, widens, count)
        in_channels = out_channels
        if level < len(config.channel_mult) - 1:
            yield {"conv": f"{theirs}.{layout.downsample}"}
    yield from _middle_blocks(config, layout, "encoder")


def _decoder_blocks(config: AutoencoderConfig, layout: Layout) -> Iterator[dict[str, str]]:
    """The same for the decoder."""
    yield from _middle_blocks(config, layout, "decoder")
    top = len(config.channel_mult) - 1
    in_channels = config.channels * config.channel_mult[top]
    for level in range(top, -1, -1):
        number = top - level if layout.counted_from_latents else level
        theirs = layout.decoder_level.format(number)
        out_channels = config.channels * config.channel_mult[level]
        widens, count = in_channels != out_channels, config.decoder_res_blocks
        yield from _level_blocks(config, layout, level, theirs, widens, count)
        in_channels = out_channels
        if level:
            yield {"conv": f"{theirs}.{layout.upsample}"}


def _level_blocks(
    config: AutoencoderConfig,
    layout: Layout,
    level: int,
    theirs: str,
    widens: bool,
    count: int,
) -> Iterator[dict[str, str]]:
    for number in range(count):
        has_shortcut = number == 0 and widens
        yield _res_block(f"{theirs}.{layout.block.format(number)}", layout, has_shortcut)
        if level in config.attention_levels:
            yield _attention(f"{theirs}.{layout.attention.format(number)}", layout)


def _middle_blocks(
    config: AutoencoderConfig, layout: Layout, side: str
) -> Iterator[dict[str, str]]:
    first, attention, second = (f"{side}.{name}" for name in layout.middle)
    yield _res_block(first, layout, has_shortcut=False)
    if config.mid_attention:
        yield _attention(attention, layout)
    yield _res_block(second, layout, has_shortcut=False)


def _res_block(theirs: str, layout: Layout, has_shortcut: bool) -> dict[str, str]:
    parts = {name: f"{theirs}.{name}" for name in ("norm1", "conv1", "norm2", "conv2")}
    return {**parts, "shortcut": f"{theirs}.{layout.shortcut}"} if has_shortcut else parts


def _attention(theirs: str, layout: Layout) -> dict[str, str]:
    return {ours: f"{theirs}.{key}" for ours, key in layout.attention_parts.items()}


def _config(
    theirs: Tensors,
    layout: Layout,
    published: QuantizerConfig,
    quantizer_keys: Mapping[str, str],
    norm_groups: int,
) -> VQGANConfig:
    """The config that the tensors' names and shapes imply."""

    def size(key: str, place: int = 0) -> int:
        if key not in theirs or theirs[key].ndim <= place:
            raise CheckpointError(f"{key} is missing: these are not the weights of a tokenizer.")
        return theirs[key].shape[place]

    def count(pattern: str) -> int:
        names = re.escape(pattern).replace(re.escape("{}"), r"(\d{1,6})")
        found = [int(m[1]) for key in theirs if (m := re.match(rf"{names}\.", key))]
        return max(found, default=-1) + 1

    first, channels = layout.encoder_level.format(0), size("encoder.conv_in.weight")
    levels = range(count(layout.encoder_level))
    block = layout.block.format(0)
    widths = [size(f"{layout.encoder_level.format(i)}.{block}.conv1.weight") for i in levels]
    if not widths:
        raise CheckpointError(f"{first} is missing: these are weights of another family.")
    for width in widths:
        if width % channels:
            raise CheckpointError(
                f"A level has {width} channels, not a multiple of the first level's {channels}."
            )
    attends = [count(f"{layout.encoder_level.format(i)}.{layout.attention}") > 0 for i in levels]
    middle = f"encoder.{layout.middle[1]}."
    return VQGANConfig(
        autoencoder=AutoencoderConfig(
            image_channels=size("encoder.conv_in.weight", 1),
            channels=channels,
            channel_mult=tuple(width // channels for width in widths),
            num_res_blocks=count(f"{first}.{layout.block}"),
            decoder_res_blocks=count(f"{layout.decoder_level.format(0)}.{layout.block}"),
            attention_levels=tuple(level for level in levels if attends[level]),
            mid_attention=any(key.startswith(middle) for key in theirs),
            latent_channels=size("encoder.conv_out.weight"),
            norm_groups=norm_groups,
        ),
        quantizer=dataclasses.replace(
            published,
            codebook_size=size(quantizer_keys["quantizer.embedding.weight"]),
            code_dim=size("quant_conv.weight"),
        ),
    )


def _first_stage(tensors: Tensors) -> dict[str, Tensor]:
    inside = {
        key.removeprefix(FIRST_STAGE): tensor
        for key, tensor in tensors.items()
        if key.startswith(FIRST_STAGE)
    }
    return inside or dict(tensors)


def _in_use(theirs: Tensors, keys: Iterable[str]) -> dict[str, Tensor]:
    """The tensors, those of `keys` reduced to the rows listed in `quantize.used`."""
    used = theirs["quantize.used"].flatten()
    if used.is_floating_point():
        raise CheckpointError(f"quantize.used is {used.dtype}, not a list of codes.")
    used = used.long()
    chosen = dict(theirs)
    for key in keys:
        if key in theirs:
            if len(used) == 0 or not 0 <= int(used.min()) <= int(used.max()) < len(theirs[key]):
                raise CheckpointError(f"quantize.used lists codes that {key} does not have.")
            chosen[key] = theirs[key][used]
    return chosen


def _fetch(theirs: Tensors, key: str, shape: tuple[int, ...]) -> Tensor:
    if key not in theirs:
        raise CheckpointError(f"{key} is missing.")
    tensor = theirs[key]
    if (*tensor.shape, 1, 1) == tuple(shape):  # a linear layer is a 1x1 convolution
        tensor = tensor[..., None, None]
    if tuple(tensor.shape) != tuple(shape):
        raise CheckpointError(f"{key} is {tuple(tensor.shape)}, expected {tuple(shape)}.")
    if not tensor.is_floating_point():
        raise CheckpointError(f"{key} is {tensor.dtype}, not floating point.")
    tensor = tensor.float()
    check_finite(key, tensor)
    return tensor
