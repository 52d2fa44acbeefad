"""The encoder and decoder of a VQGAN (Esser et al. 2021, section 3.1 and appendix A).

With `patch_size=1` and `norm="group"` it is the paper's network: residual blocks, levels that each
halve the resolution, attention at chosen levels. With `patch_size > 1` pixels are folded into
channels first. With `norm="channel"` and no attention every output depends on a bounded
neighbourhood only, so tiles of a large image are exact (see tokenizer/tiling.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ops.config import ConfigError, Range, check_fields
from ops.cpu import Convolution, norm_silu

NORMS = ("group", "channel")
MOST_LEVELS = 8
Channels = Annotated[int, Range(least=1, most=2**16)]
NumBlocks = Annotated[int, Range(least=1, most=64)]


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderConfig:
    """Sizes of encoder and decoder; the downsample factor is patch_size * 2**(levels - 1)."""

    image_channels: Channels = 3
    channels: Channels = 128
    channel_mult: tuple[Annotated[int, Range(least=1, most=1024)], ...] = (1, 1, 2, 2, 4)
    num_res_blocks: NumBlocks = 2
    decoder_res_blocks: NumBlocks = 3
    decoder_channels: Annotated[int, Range(least=0, most=2**16)] = 0
    """the decoder's `channels` where they differ from the encoder's; 0: the same"""
    attention_levels: tuple[Annotated[int, Range(least=0)], ...] = (4,)
    """levels, counted from the pixels, with attention after each residual block"""
    mid_block: bool = True
    """two residual blocks at the resolution of the latents"""
    mid_attention: bool = True
    """attention between those two, as in all published networks; independent of attention_levels"""
    latent_channels: Channels = 256
    norm: str = "group"
    norm_groups: Channels = 32
    patch_size: Annotated[int, Range(least=1, most=64)] = 1
    dropout: Annotated[float, Range(least=0, below=1)] = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 1 <= len(self.channel_mult) <= MOST_LEVELS:
            raise ConfigError(
                f"channel_mult must have 1 to {MOST_LEVELS} levels, found {len(self.channel_mult)}."
            )
        if self.norm not in NORMS:
            raise ConfigError(f"norm must be one of {', '.join(NORMS)}, found {self.norm!r}.")
        widths = (self.channels, self.decoder_channels)
        pairs = [(width, mult) for width in widths for mult in self.channel_mult]
        for width, mult in pairs if self.norm == "group" else ():
            if width * mult % self.norm_groups:
                raise ConfigError(
                    f"{width} x {mult} channels are not divisible by "
                    f"{self.norm_groups} groups. Choose another norm_groups."
                )

    @property
    def downsample_factor(self) -> int:
        factor: int = self.patch_size * 2 ** (len(self.channel_mult) - 1)
        return factor

    @property
    def is_local(self) -> bool:
        """Whether every output depends only on a bounded neighbourhood of the input."""
        return (
            self.norm == "channel"
            and not self.attention_levels
            and not (self.mid_block and self.mid_attention)
        )


class ChannelNorm(nn.Module):
    """Root-mean-square norm of each position over its channels (Zhang & Sennrich 2019).

    Unlike GroupNorm it computes no statistics over the image, so a position's output does not
    depend on the size of the crop around it.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.square().mean(dim=1, keepdim=True) + self.eps)
        return x * scale * self.weight[:, None, None]


def make_norm(config: AutoencoderConfig, channels: int) -> nn.Module:
    if config.norm == "channel":
        return ChannelNorm(channels)
    return nn.GroupNorm(config.norm_groups, channels, eps=1e-6)


class ResBlock(nn.Module):
    """norm, SiLU, 3x3, norm, SiLU, dropout, 3x3, plus a shortcut: (B,C_in,H,W) -> (B,C_out,H,W)."""

    def __init__(self, config: AutoencoderConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = make_norm(config, in_channels)
        self.conv1 = Convolution(in_channels, out_channels)
        self.norm2 = make_norm(config, out_channels)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = Convolution(out_channels, out_channels)
        self.shortcut = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(norm_silu(self.norm1, x))
        h = self.conv2(self.dropout(norm_silu(self.norm2, h)))
        latents: Tensor = self.shortcut(x) + h
        return latents


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions, residual: (B, C, H, W) -> same."""

    def __init__(self, config: AutoencoderConfig, channels: int) -> None:
        super().__init__()
        self.norm = make_norm(config, channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        # (B, 1, H*W, C): without an axis of heads, GPUs would store the matrix of all scores.
        q, k, v = (
            layer(h).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (self.q, self.k, self.v)
        )
        if h.device.type != "cpu":  # So they would for channels that are not contiguous.
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        h = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        latents: Tensor = x + self.proj_out(h.transpose(1, 2).reshape(x.shape))
        return latents


class Downsample(nn.Module):
    """Stride-2 3x3 convolution, zero-padded on the right and below, as published weights expect."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        latents: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return latents


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        latents: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return latents


def _level(
    config: AutoencoderConfig, level: int, in_channels: int, num_res_blocks: int
) -> list[nn.Module]:
    """The residual and attention blocks of one resolution."""
    out_channels = config.channels * config.channel_mult[level]
    blocks: list[nn.Module] = []
    for _ in range(num_res_blocks):
        blocks.append(ResBlock(config, in_channels, out_channels))
        in_channels = out_channels
        if level in config.attention_levels:
            blocks.append(AttnBlock(config, out_channels))
    return blocks


def _mid(config: AutoencoderConfig) -> list[nn.Module]:
    """The blocks at the resolution of the latents: residual, attention, residual."""
    if not config.mid_block:
        return []
    channels = config.channels * config.channel_mult[-1]
    attention = [AttnBlock(config, channels)] if config.mid_attention else []
    return [ResBlock(config, channels, channels), *attention, ResBlock(config, channels, channels)]


class Blocks(nn.Sequential):
    """A sequence of blocks, with activation checkpointing if `recompute` is set.

    Then only the blocks' inputs are saved for the backward pass: a fraction of the memory for a
    third more computation, with bit-identical results.
    """

    recompute = False

    def forward(self, x: Tensor) -> Tensor:
        recompute = self.recompute and torch.is_grad_enabled()
        for block in self:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x


class Encoder(nn.Module):
    """pixels (B, image_channels, H, W) -> latents (B, latent_channels, H/f, W/f)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.conv_in = Convolution(config.image_channels * config.patch_size**2, config.channels)
        blocks: list[nn.Module] = []
        channels = config.channels
        for level, mult in enumerate(config.channel_mult):
            blocks += _level(config, level, channels, config.num_res_blocks)
            channels = config.channels * mult
            if level < len(config.channel_mult) - 1:
                blocks.append(Downsample(channels))
        self.blocks = Blocks(*blocks, *_mid(config))
        self.norm_out = make_norm(config, channels)
        self.conv_out = Convolution(channels, config.latent_channels)

    def forward(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.conv_in.weight.dtype)
        h = self.conv_in(F.pixel_unshuffle(pixels, self.patch_size))
        latents: Tensor = self.conv_out(norm_silu(self.norm_out, self.blocks(h)))
        return latents


class Decoder(nn.Module):
    """latents (B, latent_channels, h, w) -> pixels (B, image_channels, h*f, w*f), not clamped."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        config = replace(config, channels=config.decoder_channels or config.channels)
        channels = config.channels * config.channel_mult[-1]
        self.conv_in = Convolution(config.latent_channels, channels)
        blocks: list[nn.Module] = _mid(config)
        for level in reversed(range(len(config.channel_mult))):
            blocks += _level(config, level, channels, config.decoder_res_blocks)
            channels = config.channels * config.channel_mult[level]
            if level:
                blocks.append(Upsample(channels))
        self.blocks = Blocks(*blocks)
        self.norm_out = make_norm(config, channels)
        self.conv_out = Convolution(channels, config.image_channels * config.patch_size**2)

    def forward(self, latents: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv_out(self.features(latents)), self.patch_size)

    def features(self, latents: Tensor) -> Tensor:
        """The last layer's input (B, channels, h*f/p, w*f/p), p the patch size."""
        return norm_silu(self.norm_out, self.blocks(self.conv_in(latents)))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile all but the last layer: the adaptive weight differentiates by that layer more
        than once in a step (eq. 7), which a compiled region does not allow."""
        self.features = torch.compile(self.features, *args, **kwargs)  # type: ignore[method-assign]


def encoder_halo(config: AutoencoderConfig) -> int:
    """Pixels around a tile that its latents depend on: a local config's receptive field."""
    pixels, scale = config.patch_size, config.patch_size  # conv_in
    for level in range(len(config.channel_mult)):
        pixels += 2 * config.num_res_blocks * scale
        if level < len(config.channel_mult) - 1:
            pixels += (
                2 * scale
            )  # the stride-2 convolution reads two positions to the right and below
            scale *= 2
    return pixels + (4 * config.mid_block + 1) * scale


def decoder_halo(config: AutoencoderConfig) -> int:
    """Codes around a tile that its pixels depend on: a local config's receptive field."""
    factor = config.downsample_factor
    scale, pixels = factor, (1 + 4 * config.mid_block) * factor  # conv_in and the mid blocks
    for level in reversed(range(len(config.channel_mult))):
        pixels += 2 * config.decoder_res_blocks * scale
        if level:
            scale //= 2
            pixels += scale  # the convolution after upsampling
    pixels += config.patch_size  # conv_out
    return -(-pixels // factor)
