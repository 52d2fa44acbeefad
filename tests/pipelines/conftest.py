"""Fixtures of the pipelines' tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import make_store
from tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def rule_store(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """Codes with a rule to learn: each is its row's number modulo 3, or one more. Read only."""
    rng = np.random.default_rng(0)
    codes = np.arange(24)[:, None, None] % 3 + rng.integers(0, 2, (24, 5, 5))
    tokenizer = load_tokenizer(tiny_tokenizer)
    path = make_store(
        tmp_path_factory.mktemp("rule") / "codes.zarr",
        codes,
        codebook_size=tokenizer.config.codebook_size,
        labels=[row % 3 for row in range(24)],
        fingerprint=tokenizer.fingerprint,
        downsample_factor=tokenizer.config.downsample_factor,
    )
    shutil.copytree(tiny_tokenizer, path / "_tokenizer" / "image")
    return path
