"""The peer of the benchmarks: modules of CompVis' taming-transformers, imported from a checkout.

No code of the peer is part of this repository. A benchmark's --peer takes a checkout of it:

    git clone https://github.com/CompVis/taming-transformers
    git -C taming-transformers checkout 3ba01b2

The transformer (mingpt) needs torch only. The tokenizer's modules need `pip install einops requests
tqdm` as well. The package transformers is not needed: a stub takes its place, since the peer
imports one function of it that is never called here.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import torch
from torch import nn

from prior import GPT, Conditions, Segmentation, StartOfSequence, import_compvis_gpt

COMMIT = "3ba01b2"


def import_peer(checkout: Path, module: str) -> types.ModuleType:
    """A module of the peer, such as "taming.modules.transformer.mingpt".

    Raises SystemExit with instructions for a folder that is not a checkout, and for a package that
    is missing.
    """
    if not (checkout / "taming").is_dir():
        raise SystemExit(
            f"{checkout} is not a checkout of taming-transformers: it has no folder taming. Clone "
            f"https://github.com/CompVis/taming-transformers and check out {COMMIT}."
        )
    stub = types.ModuleType("transformers")
    stub.__dict__["top_k_top_p_filtering"] = None
    installed = sys.modules.get("transformers")
    sys.modules["transformers"] = stub
    sys.path.insert(0, str(checkout))
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"{checkout} needs the package {error.name}, which is not installed: pip install "
            f"einops requests tqdm"
        ) from error
    finally:
        sys.path.remove(str(checkout))
        del sys.modules["transformers"]
        if installed is not None:
            sys.modules["transformers"] = installed


def peer_gpt(
    checkout: Path, *, codebook_size: int, length: int, layers: int, heads: int, width: int
) -> nn.Module:
    """The peer's GPT for sequences of `length` tokens, with initial weights, in eval mode."""
    mingpt = import_peer(checkout, "taming.modules.transformer.mingpt")
    model = mingpt.GPT(codebook_size, length, n_layer=layers, n_head=heads, n_embd=width)
    nn.init.normal_(model.pos_emb, std=0.02)  # initially zero, which would hide wrong positions
    return model.eval()


def with_peer_weights(
    peer: nn.Module, *, codebook_size: int, condition_length: int, window: int, heads: int
) -> GPT:
    """This package's GPT with the weights of the peer's.

    With one condition token, the prior is unconditional and starts from the peer's start token, 0;
    otherwise its condition is a grid of window x window codes.
    """
    part = StartOfSequence() if condition_length == 1 else Segmentation(codebook_size=codebook_size)
    config, tensors = import_compvis_gpt(
        peer.state_dict(), Conditions([part], codebook_size), window=window, num_heads=heads
    )
    with torch.device("meta"):
        model = GPT(config)
    model.load_state_dict(tensors, assign=True)
    return model.eval()
