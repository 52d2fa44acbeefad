"""Train steps a second of a prior against another code base's transformer of the same size.

    python tests/benchmarks/bench_prior_step.py [--peer CHECKOUT] [--layers 8] [--width 512] ...

`--peer` is a checkout of CompVis' taming-transformers; without it ours is measured alone. Each side
is a process of its own, with the memory that its trainer would have it keep, and the two take their
rounds by turns on equal sequences: 256 condition tokens with 256 codes, and one class with 256
codes. Ours is the trainer's whole step, with clipping and averaged weights; theirs what its trainer
does: forward, cross-entropy, backward, AdamW (0.9, 0.95) with decay 0.01 on linear weights. Peak
memory is the process's own, from start to end; `idle` is what it held before it made the model.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import resource
import statistics
import sys
import time
import types
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.runtime import keep_freed_memory
from pipelines.recipes import PRIOR_RECIPES
from pipelines.training.prior_task import PriorTask
from prior import GPT, Conditions, GPTConfig, StartOfSequence
from tokenizer import build_tokenizer

SIDE = 16  # codes a side, as in all published models
RATE = 1e-4
MIB = 2**20


def sequences(flags: argparse.Namespace, condition_length: int) -> tuple[Tensor, Tensor]:
    """Condition numbers (B, C) and codes (B, 16, 16), both in 0 .. codes - 1."""
    random = torch.Generator().manual_seed(0)
    shapes = (flags.batch_size, condition_length), (flags.batch_size, SIDE, SIDE)
    condition, codes = (torch.randint(flags.codes, shape, generator=random) for shape in shapes)
    return condition, codes


def our_step(flags: argparse.Namespace, condition_length: int) -> Callable[[], float]:
    """One training step of ours; the loss."""
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
    steps = iter(range(1000))
    return lambda: float(train_task.train_step(batch, next(steps))["loss"])


def their_step(flags: argparse.Namespace, condition_length: int) -> Callable[[], float]:
    """One training step of the peer's transformer; the loss."""
    unused: Any = types.ModuleType("transformers")  # it is asked for one function of sampling
    unused.top_k_top_p_filtering = None
    sys.modules["transformers"] = unused
    sys.path.insert(0, str(flags.peer))
    from taming.modules.transformer import mingpt  # type: ignore[import-not-found]

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

    def step() -> float:
        optimizer.zero_grad()
        logits = model(tokens)[0][:, condition_length - 1 :]
        loss = F.cross_entropy(logits.reshape(-1, flags.codes), codes.flatten())
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


SIDES = {"ours": our_step, "theirs": their_step}


def peak_memory() -> int:
    """The most bytes of memory this process has had, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(name: str, flags: argparse.Namespace, condition_length: int, orders: Connection) -> None:
    """Take as many steps as ordered, again and again; answer (seconds, loss, idle, peak)."""
    torch.set_num_threads(flags.threads)
    torch.manual_seed(0)
    idle = peak_memory()
    step = SIDES[name](flags, condition_length)
    while count := orders.recv():
        started = time.perf_counter()
        losses = [step() for _ in range(count)]
        orders.send((time.perf_counter() - started, losses[-1], idle, peak_memory()))


def measure(flags: argparse.Namespace, condition_length: int) -> float | None:
    """Rounds by turns; prints each, then medians and memory. The ratio of rates, with a peer."""
    names = [name for name in SIDES if name == "ours" or flags.peer]
    context = multiprocessing.get_context("spawn")
    lines = {name: context.Pipe() for name in names}
    workers = [
        context.Process(target=work, args=(name, flags, condition_length, lines[name][1]))
        for name in names
    ]
    for worker in workers:
        worker.start()
    print(f"{condition_length} condition tokens, {SIDE**2} codes, batch {flags.batch_size}:")
    rates: dict[str, list[float]] = {name: [] for name in names}
    for number in range(flags.rounds + 1):
        condition_inputs = {name: ask(lines[name][0], flags.steps) for name in names}
        if number == 0:
            continue  # first touches of memory
        for name, (seconds, *_) in condition_inputs.items():
            rates[name].append(flags.steps / seconds)
        round_rates = ", ".join(f"{name} {rates[name][-1]:.3f}" for name in names)
        print(f"  round {number}: {round_rates} steps/s")
    for line, _ in lines.values():
        line.send(0)
    for worker in workers:
        worker.join()
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, (_, loss, idle, peak) in condition_inputs.items():
        print(
            f"  {name}: median {medians[name]:.3f} steps/s; peak memory {peak / MIB:,.0f} MiB, "
            f"{(peak - idle) / MIB:,.0f} above idle; loss after the last step {loss:.4f}"
        )
    return medians["ours"] / medians["theirs"] if flags.peer else None


def ask(line: Connection, steps: int) -> tuple[float, float, int, int]:
    """What the process at the other end answers after so many steps."""
    line.send(steps)
    return line.recv()


def main() -> None:
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
    flags = parser.parse_args()
    for condition_length in flags.conditions:
        ratio = measure(flags, condition_length)
        if ratio is not None:
            print(f"{condition_length} condition tokens: ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
