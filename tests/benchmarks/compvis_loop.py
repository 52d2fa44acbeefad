"""The GPT of CompVis' taming-transformers out of a checkout, and ours with its weights.

Their code stays where it is; a benchmark is given its folder.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prior import GPT, Conditions, StartOfSequence
from prior.importers import import_compvis_gpt


@dataclass(frozen=True, kw_only=True)
class WindowOfCodes:
    """A condition that is a window of codes beside the image's, as the importer is told of it."""

    length: int
    codebook_size: int
    name: ClassVar[str] = "window-of-codes"

    @property
    def vocab_size(self) -> int:
        return self.codebook_size + 1

    def tokens(self, batch: Mapping[str, Any], batch_size: int) -> Tensor:
        return batch["condition"].reshape(batch_size, self.length)

    def null_tokens(self, batch_size: int) -> Tensor:
        return torch.full((batch_size, self.length), self.codebook_size)


def load_their_gpt(
    checkout: Path, *, codebook_size: int, length: int, layers: int, heads: int, width: int
) -> nn.Module:
    """Their GPT for sequences of `length`, with weights as they start; not yet anything learned."""
    stub = types.ModuleType("transformers")  # of which they import one function, for another loop
    stub.__dict__["top_k_top_p_filtering"] = None
    sys.modules.setdefault("transformers", stub)
    sys.path.insert(0, str(checkout))
    mingpt = importlib.import_module("taming.modules.transformer.mingpt")
    model = mingpt.GPT(codebook_size, length, n_layer=layers, n_head=heads, n_embd=width)
    nn.init.normal_(model.pos_emb, std=0.02)  # zeros at their start: places would not tell
    return model.eval()


def with_their_weights(
    theirs: nn.Module, *, codebook_size: int, condition_length: int, window: int, heads: int
) -> GPT:
    """Our GPT, imported from theirs; a condition of one token is their start token, 0."""
    part = (
        StartOfSequence()
        if condition_length == 1
        else WindowOfCodes(length=condition_length, codebook_size=codebook_size)
    )
    conditions = Conditions([part], codebook_size)
    config, tensors = import_compvis_gpt(
        theirs.state_dict(), conditions, window=window, num_heads=heads
    )
    model = GPT(config)
    model.load_state_dict(tensors)
    return model.eval()
