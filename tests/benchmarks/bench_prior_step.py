"""Training steps a second of a prior, against the peer's transformer of the same size.

    python tests/benchmarks/bench_prior_step.py [--peer CHECKOUT] [--layers 8] [--width 512] ...

CHECKOUT is a checkout of taming-transformers: see compvis_peer.py. Without it, only this package is
measured. The sides are separate processes that take turns on equal sequences: 256 condition tokens
with 256 codes, and one condition token with 256 codes. Ours is the trainer's whole step, with
gradient clipping and averaged weights; the peer's is what its trainer does: forward, cross-entropy,
backward, AdamW (0.9, 0.95) with weight decay 0.01 on linear weights. Peak memory is the process's
from start to end; `idle` is what it held before the model was made.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from compvis_peer import import_peer
from side_process import Side
from torch import Tensor, nn

from ops.runtime import keep_freed_memory
from pipelines.recipes import PRIOR_RECIPES
from pipelines.training.prior_task import PriorTask
from prior import GPT, Conditions, GPTConfig, StartOfSequence
from tokenizer import build_tokenizer

SIDE = 16  # rows and columns of codes, as in all published models
RATE = 1e-4
MIB = 2**20


def sequences(flags: argparse.Namespace, condition_length: int) -> tuple[Tensor, Tensor]:
    """Condition tokens (B, C) and codes (B, 16, 16), both in 0 .. codes - 1."""
    random = torch.Generator().manual_seed(0)
    shapes = (flags.batch_size, condition_length), (flags.batch_size, SIDE, SIDE)
    condition, codes = (torch.randint(flags.codes, shape, generator=random) for shape in shapes)
    return condition, codes


def our_step(flags: argparse.Namespace, condition_length: int) -> Callable[[int], float]:
    """One training step of this package; returns the loss."""
    keep_freed_memory()  # as the trainer does
    condition, codes = sequences(flags, condition_length)
    config = GPTConfig(
        codebook_size=flags.codes,
        condition_vocab_size=flags.codes,
        condition_length=condition_length,
        window=SIDE,
        num_layers=flags.layers,
        num_heads=flags.heads,
        width=flags.width,
    )
    recipe = PRIOR_RECIPES["large"]
    optimizer = dataclasses.replace(recipe.optimizer, learning_rate=RATE, warmup_steps=1)
    train_task = PriorTask(
        GPT(config),
        Conditions([StartOfSequence()], flags.codes),
        build_tokenizer("tiny", seed=0),
        {},
        dataclasses.replace(recipe, optimizer=optimizer, batch_size=flags.batch_size),
        steps=1000,
        seed=0,
        held_out=[],
        device=torch.device("cpu"),
    )
    batch = {"tokens": flags.codes + condition, "codes": codes, "inputs": codes}
    return lambda step: float(train_task.train_step(batch, step)["loss"])


def peer_step(flags: argparse.Namespace, condition_length: int) -> Callable[[int], float]:
    """One training step of the peer's transformer; returns the loss."""
    mingpt = import_peer(flags.peer, "taming.modules.transformer.mingpt")
    condition, codes = sequences(flags, condition_length)
    model = mingpt.GPT(
        vocab_size=flags.codes,
        block_size=condition_length + SIDE**2,
        n_layer=flags.layers,
        n_head=flags.heads,
        n_embd=flags.width,
    ).train()
    decayed = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    others = [p for p in model.parameters() if all(p is not weight for weight in decayed)]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95))
    tokens = torch.cat([condition, codes.flatten(1)], dim=1)[:, :-1]

    def step(_number: int) -> float:
        optimizer.zero_grad()
        logits = model(tokens)[0][:, condition_length - 1 :]
        loss = F.cross_entropy(logits.reshape(-1, flags.codes), codes.flatten())
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def measure(flags: argparse.Namespace, condition_length: int) -> float | None:
    """Rounds by turns; prints each, then medians and memory. The ratio of rates, with a peer."""
    steps = {"ours": our_step} | ({"peer": peer_step} if flags.peer else {})
    sides = {
        name: Side(partial(step, flags, condition_length), flags.threads, flags.in_process)
        for name, step in steps.items()
    }
    print(f"{condition_length} condition tokens, {SIDE**2} codes, batch {flags.batch_size}:")
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(flags.rounds + 1):  # the first one warms up
        for side in sides.values():
            side.run(flags.steps)
        if number:
            for name, side in sides.items():
                rates[name].append(flags.steps / side.seconds[-1])
            line = ", ".join(f"{name} {rates[name][-1]:.3f}" for name in sides)
            print(f"  round {number}: {line} steps/s")
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, side in sides.items():
        loss, idle, peak = side.stop()
        print(
            f"  {name}: median {medians[name]:.3f} steps/s; peak memory {peak / MIB:,.0f} MiB, "
            f"{(peak - idle) / MIB:,.0f} above idle; loss after the last step {loss:.4f}"
        )
    return medians["ours"] / medians["peer"] if flags.peer else None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="a checkout of taming-transformers")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--codes", type=int, default=1024, help="size of the codebook")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps a round")
    parser.add_argument("--conditions", type=int, nargs="+", default=[256, 1], help="tokens")
    parser.add_argument(
        "--in-process", action="store_true", help="both sides in this process: for tests"
    )
    flags = parser.parse_args(argv)
    for condition_length in flags.conditions:
        ratio = measure(flags, condition_length)
        if ratio is not None:
            print(f"{condition_length} condition tokens: ratio {ratio:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
