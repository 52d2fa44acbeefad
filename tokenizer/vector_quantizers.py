"""Quantizers with a learned codebook: a latent's code is the nearest codebook vector."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.ranks import all_samples, from_first, ranks_here
from tokenizer.quantizers import (
    QUANTIZERS,
    Quantized,
    Quantizer,
    QuantizerConfig,
    as_vectors,
    at_least_float32,
    nearest_codes,
    straight_through,
)


@QUANTIZERS.register("vq")
class VectorQuantizer(Quantizer):
    """The paper's quantizer (Esser et al. 2021, eq. 2-4), with beta on the commitment term.

    A random codebook collapses to a few codes in small runs, so the codebook is initialised with
    latents of the first batch, and every `restart_after` steps the codes that were not used for as
    many forwards are replaced by random latents. All processes count and sample over the latents
    of all, and stay equal.
    """

    is_initialised: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        self.commitment_weight = config.commitment_weight
        self.codebook_weight = config.codebook_weight
        self.embedding = nn.Embedding(self.codebook_size, self.code_dim)
        nn.init.uniform_(self.embedding.weight, -1 / self.codebook_size, 1 / self.codebook_size)
        self.register_buffer("is_initialised", torch.tensor(False))
        self._remember(needs_init=True)

    def codebook(self) -> Tensor:
        """The codebook vectors (K, D)."""
        return self.embedding.weight

    def comparable(self, latents: Tensor) -> Tensor:
        """Latents (B, D, h, w) in the form that is compared with the codebook."""
        return latents

    def quantize(self, latents: Tensor) -> Quantized:
        latents = self.comparable(latents)
        codes = self._nearest(latents)
        quantized = self.lookup(codes).to(latents.dtype)
        loss = self.commitment_weight * F.mse_loss(latents, quantized.detach())
        if self.codebook_weight:
            loss = loss + self.codebook_weight * F.mse_loss(quantized, latents.detach())
        return Quantized(straight_through(latents, quantized), codes, loss)

    def assign(self, latents: Tensor) -> Tensor:
        return self._nearest(self.comparable(latents))

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.codebook()).movedim(-1, 1)

    @property
    def needs_init(self) -> bool:
        # Reading the flag makes the host wait for a GPU, so it is read again only after a write,
        # as that of load_state_dict, and after a move to another device.
        flag, version, needs_init = self._known
        if flag is not self.is_initialised or version != _num_writes(flag):
            needs_init = not self.is_initialised
            self._remember(needs_init)
        return needs_init

    def _remember(self, needs_init: bool) -> None:
        self._known = self.is_initialised, _num_writes(self.is_initialised), needs_init

    @torch.no_grad()
    def prepare(self, latents: Tensor) -> None:
        """Initialise the codebook from latents (B, D, h, w), or reinitialise its dead codes."""
        if self.needs_init:
            self._reinitialise(torch.ones_like(self.idle_steps, dtype=torch.bool), latents)
            self.is_initialised.fill_(True)
            self._remember(needs_init=False)
        elif self.step % self.restart_after == 0:
            self._reinitialise(self.idle_steps >= self.restart_after, latents)

    def _reinitialise(self, which: Tensor, latents: Tensor) -> None:
        """Replace the codes of mask (K,) by random latents plus noise, so that no two are equal."""
        vectors = as_vectors(all_samples(latents))
        # Latents for all codes, since only the device knows how many are to be replaced.
        chosen = vectors[torch.randint(len(vectors), which.shape, device=vectors.device)]
        sampled = chosen + 0.01 * vectors.std() * torch.randn_like(chosen)
        sampled = from_first(sampled)  # random states differ between processes
        self.embedding.weight.copy_(torch.where(which[:, None], sampled, self.embedding.weight))

    @torch.no_grad()
    def _nearest(self, latents: Tensor) -> Tensor:
        codes = nearest_codes(as_vectors(latents), self.codebook())
        return codes.view(latents.shape[0], *latents.shape[2:])

    def _default_buffers(self) -> Mapping[str, Tensor]:
        # A codebook from a file needs no initialisation.
        return {**super()._default_buffers(), "is_initialised": torch.tensor(True)}


def _num_writes(tensor: Tensor) -> int:
    """How often a tensor was written to; 0 for one made in inference mode, which does not count."""
    return 0 if tensor.is_inference() else tensor._version


@QUANTIZERS.register("l2")
class NormalisedQuantizer(VectorQuantizer):
    """Codes on the unit sphere, few dimensions (ViT-VQGAN, Yu et al. 2022, section 3.1).

    Latents and codes are normalised to length 1, so the nearest code is the one with the smallest
    angle; with 8 to 32 dimensions large codebooks stay in use.
    """

    def codebook(self) -> Tensor:
        return F.normalize(at_least_float32(self.embedding.weight), dim=1)

    def comparable(self, latents: Tensor) -> Tensor:
        return F.normalize(latents, dim=1)


@QUANTIZERS.register("simvq")
class ProjectedQuantizer(VectorQuantizer):
    """SimVQ (Zhu et al. 2024): a frozen codebook behind one learned linear map.

    The map moves all codes at once, including those that are never assigned.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        self.embedding.weight.requires_grad_(False)
        self.projection = nn.Linear(self.code_dim, self.code_dim, bias=False)
        nn.init.eye_(self.projection.weight)  # the codebook starts as initialised

    def codebook(self) -> Tensor:
        weights = self.embedding.weight, self.projection.weight
        return F.linear(*map(at_least_float32, weights))

    def prepare(self, latents: Tensor) -> None:
        if self.needs_init:  # no code is reinitialised: the map moves them all
            super().prepare(latents)


@QUANTIZERS.register("ema")
class AveragingQuantizer(VectorQuantizer):
    """Codes as running means of their latents (van den Oord et al. 2017, appendix A.1).

    The codebook gets no gradient. Numerator and denominator decay alike, and the means are over the
    latents of all processes.
    """

    sums: Tensor  # (K, D): running mean of (latent if the code was assigned, else 0)

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        self.codebook_weight = 0.0
        self.embedding.weight.requires_grad_(False)
        self.register_buffer("sums", torch.zeros(self.codebook_size, self.code_dim))

    @torch.no_grad()
    def learn(self, latents: Tensor, codes: Tensor) -> None:
        vectors = as_vectors(latents)
        sums = torch.zeros_like(self.sums).index_add_(0, codes.flatten(), vectors)
        self.sums.lerp_(ranks_here().mean(sums / len(vectors)), 1 - self.decay)
        # For codes not assigned in this step both decayed alike, so their means are unchanged.
        chosen = (self.idle_steps == 0).unsqueeze(1)
        means = self.sums / self.share.unsqueeze(1)
        self.embedding.weight.copy_(torch.where(chosen, means, self.embedding.weight))

    def _reinitialise(self, which: Tensor, latents: Tensor) -> None:
        super()._reinitialise(which, latents)
        sums = self.embedding.weight * self.share.unsqueeze(1)
        self.sums.copy_(torch.where(which.unsqueeze(1), sums, self.sums))

    def _default_buffers(self) -> Mapping[str, Tensor]:
        return {**super()._default_buffers(), "sums": torch.zeros_like(self.sums)}
