"""State dicts with the keys of published tokenizers and random weights.

`compvis_vqgan` has the keys of a VQModel; those of the other families are its keys renamed.
`Published` computes such a model's codes and pixels independently of our code.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

CHANNELS, MULT, LATENTS, CODES, DIM = 8, (1, 1, 2), 6, 11, 5
GROUPS = 4


class Keys:
    """Collects a state dict with small weights from a fixed seed."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix, self.tensors = prefix, {}
        self.random = torch.Generator().manual_seed(0)

    def put(self, key: str, *shape: int, scale: float = 1.0) -> None:
        values = torch.empty(shape, device="meta")
        if self.random is not None:
            values = scale * torch.randn(shape, generator=self.random, dtype=torch.float64)
        self.tensors[self.prefix + key] = values

    def conv(self, key: str, inside: int, outside: int, size: int = 3) -> None:
        self.put(f"{key}.weight", outside, inside, size, size, scale=(inside * size**2) ** -0.5)
        self.put(f"{key}.bias", outside, scale=0.1)

    def norm(self, key: str, channels: int) -> None:
        self.put(f"{key}.weight", channels)
        self.put(f"{key}.bias", channels, scale=0.1)

    def res_block(self, key: str, inside: int, outside: int) -> None:
        self.norm(f"{key}.norm1", inside)
        self.conv(f"{key}.conv1", inside, outside)
        self.norm(f"{key}.norm2", outside)
        self.conv(f"{key}.conv2", outside, outside)
        if inside != outside:
            self.conv(f"{key}.nin_shortcut", inside, outside, 1)

    def attention(self, key: str, channels: int) -> None:
        self.norm(f"{key}.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            self.conv(f"{key}.{part}", channels, channels, 1)

    def middle(self, side: str, channels: int) -> None:
        self.res_block(f"{side}.mid.block_1", channels, channels)
        self.attention(f"{side}.mid.attn_1", channels)
        self.res_block(f"{side}.mid.block_2", channels, channels)


def compvis_vqgan(
    channels=CHANNELS, mult=MULT, latents=LATENTS, codes=CODES, dim=DIM, prefix="", gumbel=False,
    attention=True, values=True,
) -> dict[str, Tensor]:  # fmt: skip
    """A VQModel with two residual blocks a level and, at the last level, attention."""
    keys, top, before = Keys(prefix), len(mult) - 1, channels
    keys.random = keys.random if values else None
    keys.conv("encoder.conv_in", 3, channels)
    for level, times in enumerate(mult):
        for number in range(2):
            keys.res_block(f"encoder.down.{level}.block.{number}", before, channels * times)
            before = channels * times
            if level == top and attention:
                keys.attention(f"encoder.down.{level}.attn.{number}", before)
        if level < top:
            keys.conv(f"encoder.down.{level}.downsample.conv", before, before)
    keys.middle("encoder", before)
    keys.norm("encoder.norm_out", before)
    keys.conv("encoder.conv_out", before, latents)
    keys.conv("decoder.conv_in", latents, before)
    keys.middle("decoder", before)
    for level in reversed(range(len(mult))):
        for number in range(3):
            keys.res_block(f"decoder.up.{level}.block.{number}", before, channels * mult[level])
            before = channels * mult[level]
            if level == top and attention:
                keys.attention(f"decoder.up.{level}.attn.{number}", before)
        if level:
            keys.conv(f"decoder.up.{level}.upsample.conv", before, before)
    keys.norm("decoder.norm_out", before)
    keys.conv("decoder.conv_out", before, 3)
    if gumbel:
        keys.conv("quantize.proj", dim, codes, 1)
        keys.put("quantize.embed.weight", codes, dim)
    else:
        keys.put("quantize.embedding.weight", codes, dim)
    keys.conv("quant_conv", latents, dim, 1)
    keys.conv("post_quant_conv", dim, latents, 1)
    return keys.tensors


def renamed(tensors: dict[str, Tensor], *rules: tuple[str, str | Callable]) -> dict[str, Tensor]:
    def name(key: str) -> str:
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        return key

    return {name(key): tensor for key, tensor in tensors.items()}


def from_latents(match: re.Match[str]) -> str:
    """The decoder's level counted from the latents."""
    return f"{match[1]}{len(MULT) - 1 - int(match[2])}"


def llamagen_vqgan() -> dict[str, Tensor]:
    """The same weights under LlamaGen's names, with a key that only training uses."""
    tensors = renamed(
        compvis_vqgan(),
        (r"^(encoder)\.down\.", r"\1.conv_blocks."),
        (r"^(decoder\.)up\.(\d+)", from_latents),
        (r"^decoder\.(\d)", r"decoder.conv_blocks.\1"),
        (r"(conv_blocks\.\d+)\.block", r"\1.res"),
        (r"mid\.block_1", "mid.0"),
        (r"mid\.attn_1", "mid.1"),
        (r"mid\.block_2", "mid.2"),
    )
    return {**tensors, "quantize.codebook_used": torch.zeros(65536)}


def diffusers_vqgan(older: bool = False) -> dict[str, Tensor]:
    """The same weights under the names of diffusers, whose attention has linear layers."""
    parts = (
        ("query", "key", "value", "proj_attn") if older else ("to_q", "to_k", "to_v", "to_out.0")
    )
    tensors = renamed(
        compvis_vqgan(),
        (r"attn\S*\.(\d)\.norm\.", r"attentions.\1.group_norm."),
        (r"attn_1\.norm\.", "attn_1.group_norm."),
        *[
            (rf"(attn_1|attn\.\d)\.{ours}\.", rf"\1.{theirs}.")
            for ours, theirs in zip(("q", "k", "v", "proj_out"), parts, strict=True)
        ],
        (r"^encoder\.down\.", "encoder.down_blocks."),
        (r"^(decoder\.)up\.(\d+)", from_latents),
        (r"^decoder\.(\d)", r"decoder.up_blocks.\1"),
        (r"(_blocks\.\d+)\.block", r"\1.resnets"),
        (r"(_blocks\.\d+)\.attn\.", r"\1.attentions."),
        (r"downsample\.conv", "downsamplers.0.conv"),
        (r"upsample\.conv", "upsamplers.0.conv"),
        (r"mid\.block_1", "mid_block.resnets.0"),
        (r"mid\.attn_1", "mid_block.attentions.0"),
        (r"mid\.block_2", "mid_block.resnets.1"),
        (r"nin_shortcut", "conv_shortcut"),
        (r"norm_out", "conv_norm_out"),
    )
    inside = re.compile(r"attentions\.\d\.(?!group_norm)")
    return {
        key: tensor.flatten(1) if inside.search(key) and tensor.ndim == 4 else tensor
        for key, tensor in tensors.items()
    }


class Published:
    """A VQModel of CompVis with these weights, computed module by module in float64."""

    def __init__(self, tensors: dict[str, Tensor], mult=MULT) -> None:
        self.tensors, self.mult = tensors, mult

    def conv(self, key, x, **options):
        weight = self.tensors[f"{key}.weight"]
        options = {"padding": weight.shape[-1] // 2, **options}
        return F.conv2d(x, weight, self.tensors[f"{key}.bias"], **options)

    def normed(self, key, x):
        weight, bias = self.tensors[f"{key}.weight"], self.tensors[f"{key}.bias"]
        parts = x.unflatten(1, (GROUPS, -1))
        mean = parts.mean((2, 3, 4), keepdim=True)
        variance = parts.var((2, 3, 4), correction=0, keepdim=True)
        parts = (parts - mean) / (variance + 1e-6).sqrt()
        return parts.flatten(1, 2) * weight[:, None, None] + bias[:, None, None]

    def active(self, key, x):
        x = self.normed(key, x)
        return x * torch.sigmoid(x)

    def res_block(self, key, x):
        h = self.conv(f"{key}.conv1", self.active(f"{key}.norm1", x))
        h = self.conv(f"{key}.conv2", self.active(f"{key}.norm2", h))
        if f"{key}.nin_shortcut.weight" in self.tensors:
            x = self.conv(f"{key}.nin_shortcut", x)
        return x + h

    def attention(self, key, x):
        if f"{key}.q.weight" not in self.tensors:
            return x
        h = self.normed(f"{key}.norm", x)
        q, k, v = (self.conv(f"{key}.{part}", h).flatten(2) for part in "qkv")
        weights = (torch.einsum("bci,bcj->bij", q, k) / q.shape[1] ** 0.5).softmax(2)
        h = torch.einsum("bij,bcj->bci", weights, v).view_as(x)
        return x + self.conv(f"{key}.proj_out", h)

    def middle(self, side, x):
        x = self.attention(f"{side}.mid.attn_1", self.res_block(f"{side}.mid.block_1", x))
        return self.res_block(f"{side}.mid.block_2", x)

    def latents(self, pixels):
        x = self.conv("encoder.conv_in", pixels)
        for level in range(len(self.mult)):
            for number in range(2):
                x = self.res_block(f"encoder.down.{level}.block.{number}", x)
                x = self.attention(f"encoder.down.{level}.attn.{number}", x)
            if level < len(self.mult) - 1:
                x = F.pad(x, (0, 1, 0, 1))
                x = self.conv(f"encoder.down.{level}.downsample.conv", x, stride=2, padding=0)
        x = self.active("encoder.norm_out", self.middle("encoder", x))
        return self.conv("quant_conv", self.conv("encoder.conv_out", x))

    def codes(self, pixels):
        latents = self.latents(pixels).movedim(1, -1)
        if "quantize.proj.weight" in self.tensors:
            weight = self.tensors["quantize.proj.weight"].flatten(1)
            return (latents @ weight.T + self.tensors["quantize.proj.bias"]).argmax(-1)
        codebook = self.tensors["quantize.embedding.weight"]
        return (latents.unsqueeze(-2) - codebook).square().sum(-1).argmin(-1)

    def pixels(self, codes):
        name = "embed" if "quantize.embed.weight" in self.tensors else "embedding"
        x = self.tensors[f"quantize.{name}.weight"][codes].movedim(-1, 1)
        x = self.conv("decoder.conv_in", self.conv("post_quant_conv", x))
        x = self.middle("decoder", x)
        for level in reversed(range(len(self.mult))):
            for number in range(3):
                x = self.res_block(f"decoder.up.{level}.block.{number}", x)
                x = self.attention(f"decoder.up.{level}.attn.{number}", x)
            if level:
                x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
                x = self.conv(f"decoder.up.{level}.upsample.conv", x)
        return self.conv("decoder.conv_out", self.active("decoder.norm_out", x))
