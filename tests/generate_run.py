"""The generate command as tests call it: a run folder of random weights, small images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ops.paths import AnyPath
from pipelines.conditioning.tokenizers import find_tokenizer
from pipelines.console.settings_file import SETTINGS
from pipelines.flags import GenerateFlags
from pipelines.generate import main
from pipelines.generation.flags import make_request
from pipelines.generation.settings import GenerationRequest
from pipelines.jobs import WorkerDevices
from pipelines.store.layout import staging_path
from prior import (
    GPT,
    Conditions,
    GPTConfig,
    LocalConfig,
    LocalGPT,
    load_prior,
    save_prior,
)
from prior.conditions import Condition
from tokenizer import build_tokenizer, load_tokenizer, save_tokenizer

#: Files of every folder of samples apart from the samples.
LASTING = {"_staging/driver.lock"}


def make_run(folder: Path, condition: Condition, windows: bool = True) -> Path:
    """A run folder as train_prior leaves it, of random weights: window 4, the tiny tokenizer."""
    save_tokenizer(folder / "tokenizer", build_tokenizer("tiny", seed=0))
    tokenizer = load_tokenizer(folder / "tokenizer")
    conditions = Conditions([condition], tokenizer.config.codebook_size)
    torch.manual_seed(0)
    sizes = {
        "codebook_size": tokenizer.config.codebook_size,
        "condition_vocab_size": conditions.vocab_size,
        "condition_length": 1,
        "window": 4,
        "num_layers": 1,
        "num_heads": 2,
        "width": 16,
    }
    model = GPT(GPTConfig(**sizes)) if windows else LocalGPT(LocalConfig(**sizes, radius=2))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    info = {
        "name": "made-up",
        "fingerprint": tokenizer.fingerprint,
        "codebook_size": tokenizer.config.codebook_size,
        "downsample_factor": tokenizer.config.downsample_factor,
    }
    save_prior(folder / "step-00000007", model, conditions, info)
    (folder / "step-00000007" / "train_state.pt").touch()
    return folder


def words(run: AnyPath, out: AnyPath, *flags: object) -> list[str]:
    return ["--prior", str(run), "--out", str(out), "--size", "24x16", *map(str, flags)]


def generate(run: Path, out: Path, *flags: object) -> int:
    return main(words(run, out, *flags))


def image_in(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.array(file)


def contents(folder: Path, pattern: str = "sample-*") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


def everything(folder: Path) -> dict[str, bytes]:
    """Every file of a folder of samples, by path."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != SETTINGS
    }


def request_of(run: Path, out: Path, **changed: Any) -> GenerationRequest:
    """The request of these flags: by default six samples in one task, batches of two."""
    flags = {"count": 6, "batch_size": 2, "samples_per_task": 6, "size": "24x16", **changed}
    prior = load_prior(run)
    tokenizer = find_tokenizer(run, prior, torch.device("cpu"))
    request = make_request(
        GenerateFlags(prior=run, out=out, **flags), prior, tokenizer, None, WorkerDevices()
    )
    staging_path(out).mkdir(parents=True, exist_ok=True)
    return request
