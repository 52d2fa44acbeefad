"""The server, the scene and the valid inputs of the fuzz tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.kinds import Material
from tests.fuzz.scene import Scene, Server

MEMORY = Path("/dev/shm")  # where flushing a file costs nothing


@pytest.fixture(scope="session")
def material() -> Iterator[Material]:
    """Valid inputs, and the scene in which mutated ones are tried."""
    folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
    server = Server()
    yield Material(folder, Scene(folder / "scene", server))
    server.close()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where inputs that cause faults are kept."""
    return tmp_path_factory.mktemp("fuzz-faults")
