"""Fixtures of the pipelines' tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from prior import ClassLabel, StartOfSequence
from tests.condition_run import encode_scenes, write_scenes
from tests.conftest import make_store
from tests.generate_run import make_run
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


@pytest.fixture(scope="session")
def prior_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a prior without classes; read only."""
    return make_run(tmp_path_factory.mktemp("runs") / "plain", StartOfSequence())


@pytest.fixture(scope="session")
def labelled_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a prior with the classes lake, town and wood; read only."""
    classes = ClassLabel(num_classes=3, label_names=("lake", "town", "wood"))
    return make_run(tmp_path_factory.mktemp("runs") / "labelled", classes)


@pytest.fixture(scope="session")
def local_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a prior without windows; read only."""
    return make_run(tmp_path_factory.mktemp("runs") / "local", StartOfSequence(), windows=False)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with an input for every condition; read only."""
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="session")
def scene_store(scenes: Path) -> Path:
    """Their codes, with every track; read only."""
    return encode_scenes(scenes, scenes / "codes.zarr")
