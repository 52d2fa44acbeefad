"""A small stand-in for the peer: the modules of taming-transformers that the benchmarks import.

Written for the tests, with the peer's interfaces, state dict keys and mathematics, but none of its
code. `write_stand_in` makes a folder that compvis_peer.import_peer takes for a checkout.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MODULES = {
    "taming/modules/transformer/mingpt.py": ["GPT"],
    "taming/modules/diffusionmodules/model.py": ["Decoder", "Encoder"],
    "taming/modules/losses/vqperceptual.py": ["VQLPIPSWithDiscriminator"],
    "taming/modules/vqvae/quantize.py": ["VectorQuantizer2"],
}


def write_stand_in(folder: Path) -> Path:
    """Write a package `taming` into a folder, whose modules import the classes below."""
    for name, classes in MODULES.items():
        path = folder / name
        path.parent.mkdir(parents=True)
        path.write_text(f"from peer_stand_in import {', '.join(classes)}\n")
    return folder


class GPT(nn.Module):
    """taming.modules.transformer.mingpt.GPT: (B, T) tokens -> logits (B, T, K) and no loss."""

    def __init__(
        self, vocab_size: int, block_size: int, n_layer: int, n_head: int, n_embd: int
    ) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(vocab_size, n_embd)
        self.pos_emb = nn.Parameter(torch.zeros(1, block_size, n_embd))
        self.blocks = nn.ModuleList(_GPTBlock(n_head, n_embd) for _ in range(n_layer))
        self.ln_f = nn.LayerNorm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        x = self.tok_emb(tokens) + self.pos_emb[:, : tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x)), None


class _GPTBlock(nn.Module):
    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = _SelfAttention(heads, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class _SelfAttention(nn.Module):
    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.key, self.query, self.value, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.proj(attended.transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    """taming.modules.diffusionmodules.model.Encoder: (B, 3, H, W) -> (B, z_channels, h, w)."""

    def __init__(
        self, *, ch: int, ch_mult: tuple[int, ...], num_res_blocks: int, in_channels: int,
        z_channels: int, attn_resolutions: tuple[int, ...], resolution: int, **_unused: object,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv_in = _convolution(in_channels, ch)
        self.down, width = nn.ModuleList(), ch
        for level, multiple in enumerate(ch_mult):
            attends = resolution // 2**level in attn_resolutions
            stage = _Level(width, ch * multiple, num_res_blocks, attends)
            width = ch * multiple
            if level < len(ch_mult) - 1:
                stage.downsample = nn.ModuleDict({"conv": nn.Conv2d(width, width, 3, stride=2)})
            self.down.append(stage)
        self.mid = _Middle(width)
        self.norm_out, self.conv_out = _norm(width), _convolution(width, z_channels)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(pixels)
        for level in self.down:
            x = level(x)
            if hasattr(level, "downsample"):
                x = level.downsample["conv"](F.pad(x, (0, 1, 0, 1)))
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """taming.modules.diffusionmodules.model.Decoder: (B, z_channels, h, w) -> (B, 3, H, W)."""

    def __init__(
        self, *, ch: int, ch_mult: tuple[int, ...], num_res_blocks: int, out_ch: int,
        z_channels: int, attn_resolutions: tuple[int, ...], resolution: int, **_unused: object,
    ) -> None:  # fmt: skip
        super().__init__()
        width = ch * ch_mult[-1]
        self.conv_in, self.mid = _convolution(z_channels, width), _Middle(width)
        stages = []
        for level in reversed(range(len(ch_mult))):
            attends = resolution // 2**level in attn_resolutions
            stage = _Level(width, ch * ch_mult[level], num_res_blocks + 1, attends)
            width = ch * ch_mult[level]
            if level:
                stage.upsample = nn.ModuleDict({"conv": _convolution(width, width)})
            stages.insert(0, stage)
        self.up = nn.ModuleList(stages)
        self.norm_out, self.conv_out = _norm(width), _convolution(width, out_ch)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
            if hasattr(level, "upsample"):
                x = level.upsample["conv"](F.interpolate(x, scale_factor=2.0))
        return self.conv_out(F.silu(self.norm_out(x)))


class _Level(nn.Module):
    def __init__(self, inputs: int, width: int, num_blocks: int, attends: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            _ResBlock(width if number else inputs, width) for number in range(num_blocks)
        )
        self.attn = nn.ModuleList(_SpatialAttention(width) for _ in range(num_blocks * attends))

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[number](x)
        return x


class _Middle(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1, self.block_2 = _ResBlock(width, width), _ResBlock(width, width)
        self.attn_1 = _SpatialAttention(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class _ResBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs), _convolution(inputs, outputs)
        self.norm2, self.conv2 = _norm(outputs), _convolution(outputs, outputs)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + hidden


class _SpatialAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        queries, keys, values = (layer(normed).flatten(2).mT for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(queries, keys, values)
        return x + self.proj_out(attended.mT.view_as(x))


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


class VectorQuantizer2(nn.Module):
    """taming.modules.vqvae.quantize.VectorQuantizer2: latents -> latents, loss, (.., .., codes)."""

    def __init__(self, n_e: int, e_dim: int, beta: float) -> None:
        super().__init__()
        self.beta, self.embedding = beta, nn.Embedding(n_e, e_dim)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        vectors = latents.movedim(1, -1)
        codes = torch.cdist(vectors.flatten(0, 2), self.embedding.weight).argmin(1)
        quantized = self.embedding(codes).view_as(vectors).movedim(-1, 1)
        loss = F.mse_loss(quantized.detach(), latents)
        loss = loss + self.beta * F.mse_loss(quantized, latents.detach())
        return latents + (quantized - latents).detach(), loss, (None, None, codes)


class VQLPIPSWithDiscriminator(nn.Module):
    """taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator, without its LPIPS term."""

    def __init__(self, disc_start: int, disc_weight: float, perceptual_weight: float) -> None:
        super().__init__()
        assert perceptual_weight == 0
        self.start, self.weight = disc_start, disc_weight
        self.discriminator = nn.Sequential(
            nn.Conv2d(3, 8, 4, stride=2), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 4)
        )

    def forward(
        self, codebook_loss: Tensor, inputs: Tensor, reconstructions: Tensor, optimizer_idx: int,
        global_step: int, last_layer: Tensor, split: str,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        factor = float(global_step >= self.start)
        if optimizer_idx == 1:
            real, fake = (
                self.discriminator(images.detach()) for images in (inputs, reconstructions)
            )
            return factor * (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2, {}
        reconstruction = (inputs - reconstructions).abs().mean()
        adversarial = -self.discriminator(reconstructions).mean()
        norms = [
            torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm()
            for loss in (reconstruction, adversarial)
        ]
        weight = self.weight * factor * (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
        return reconstruction + weight * adversarial + codebook_loss.mean(), {}
