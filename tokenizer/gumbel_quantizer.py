"""A quantizer that samples: soft choices while training, the likeliest code when encoding."""

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
    it is for codebooks of some thousand codes. The temperature falls along half a cosine and the
    weight of the KL term rises in a line, both functions of `step`.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        self.config = config
        self.proj = nn.Conv2d(self.code_dim, self.codebook_size, 1)
        self.embedding = nn.Embedding(self.codebook_size, self.code_dim)

    @property
    def temperature(self) -> float:
        """Of the soft choices at `step`."""
        config = self.config
        passed = min(1.0, self.step / max(1, config.temperature_steps))
        above = (config.temperature - config.final_temperature) * (1 + math.cos(math.pi * passed))
        return config.final_temperature + above / 2

    @property
    def kl_weight(self) -> float:
        """Of the KL term at `step`."""
        return self.config.kl_weight * min(1.0, (self.step + 1) / max(1, self.config.kl_steps))

    def quantize(self, latents: Tensor) -> Quantized:
        logits = self.proj(latents)
        log_shares = F.log_softmax(logits, dim=1)
        shares = log_shares.exp()
        # The distance of each position's choice from an even one, in nats.
        kl = (shares * (log_shares + math.log(self.codebook_size))).sum(dim=1).mean()
        if self.training:
            soft = F.gumbel_softmax(logits, tau=self.temperature, dim=1)
            codes = soft.argmax(dim=1)
        else:
            soft, codes = shares, self.assign(latents)
        quantized = self.lookup(codes)
        if (
            self.training or latents.requires_grad
        ):  # the value is the code's, the gradient that of the soft choice
            mixture = torch.einsum("bkhw,kd->bdhw", soft, self.embedding.weight.detach())
            quantized = quantized + mixture - mixture.detach()
        return Quantized(quantized, codes, self.kl_weight * kl)

    @torch.no_grad()
    def assign(self, latents: Tensor) -> Tensor:
        weight, bias = self.proj.weight.flatten(1), self.proj.bias
        parts = in_slices(as_vectors(latents), self.codebook_size)
        codes = torch.cat([F.linear(part, weight, bias).argmax(dim=1) for part in parts])
        return codes.view(latents.shape[0], *latents.shape[2:])

    def lookup(self, codes: Tensor) -> Tensor:
        latents: Tensor = self.embedding(codes).movedim(-1, 1)
        return latents

    def metrics(self) -> dict[str, Tensor]:
        return {**super().metrics(), "temperature": torch.tensor(self.temperature)}
