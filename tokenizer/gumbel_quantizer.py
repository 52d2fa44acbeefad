"""The Gumbel-softmax quantizer: samples in training, takes the most likely code in encoding."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.quantizers import (
    QUANTIZERS,
    Quantized,
    Quantizer,
    QuantizerConfig,
    as_vectors,
    in_slices,
)


@QUANTIZERS.register("gumbel")
class GumbelQuantizer(Quantizer):
    """Gumbel-softmax over all codes (Jang et al. 2016), with straight-through samples.

    A linear map gives each latent a logit for every code, so training holds (B, K, h, w) values:
    suited to codebooks of some thousand codes. The temperature falls along half a cosine and the
    KL weight rises linearly, both as functions of `step`.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        self.config = config
        self.proj = nn.Conv2d(self.code_dim, self.codebook_size, 1)
        self.embedding = nn.Embedding(self.codebook_size, self.code_dim)

    @property
    def temperature(self) -> float:
        """Of the Gumbel-softmax at `step`."""
        config = self.config
        passed = min(1.0, self.step / max(1, config.temperature_steps))
        above = (config.temperature - config.final_temperature) * (1 + math.cos(math.pi * passed))
        return config.final_temperature + above / 2

    @property
    def kl_weight(self) -> float:
        """Weight of the KL term at `step`."""
        return self.config.kl_weight * min(1.0, (self.step + 1) / max(1, self.config.kl_steps))

    def quantize(self, latents: Tensor) -> Quantized:
        logits = F.conv2d(latents, *self._weights(latents.dtype))
        log_probs = F.log_softmax(logits, dim=1)
        probs = log_probs.exp()
        # KL divergence of each position's distribution from the uniform one, in nats.
        kl = (probs * (log_probs + math.log(self.codebook_size))).sum(dim=1).mean()
        if self.training:
            soft = F.gumbel_softmax(logits, tau=self.temperature, dim=1)
            codes = soft.argmax(dim=1)
        else:
            soft, codes = probs, self.assign(latents)
        quantized = self.lookup(codes).to(latents.dtype)
        if self.training or latents.requires_grad:
            # Straight-through: the value is the code's, the gradient that of the soft sample.
            codebook = self.embedding.weight.detach().to(soft.dtype)
            mixture = torch.einsum("bkhw,kd->bdhw", soft, codebook)
            quantized = quantized + mixture - mixture.detach()
        return Quantized(quantized, codes, self.kl_weight * kl)

    @torch.no_grad()
    def assign(self, latents: Tensor) -> Tensor:
        weight, bias = self._weights(latents.dtype)
        parts = in_slices(as_vectors(latents), self.codebook_size)
        codes = torch.cat([F.linear(part, weight.flatten(1), bias).argmax(1) for part in parts])
        return codes.view(latents.shape[0], *latents.shape[2:])

    def _weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weight and bias of the logits' map in the latents' dtype, whatever they are stored in."""
        assert self.proj.bias is not None
        return self.proj.weight.to(dtype), self.proj.bias.to(dtype)

    def lookup(self, codes: Tensor) -> Tensor:
        latents: Tensor = self.embedding(codes).movedim(-1, 1)
        return latents

    def metrics(self) -> dict[str, Tensor]:
        temperature = torch.full((), self.temperature, device=self.share.device)
        return {**super().metrics(), "temperature": temperature}
