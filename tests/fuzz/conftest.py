"""The server, the sandbox and the valid inputs of the fuzz tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.sandbox import Server
from tests.fuzz.valid_inputs import ValidInputs

MEMORY = Path("/dev/shm")  # where flushing a file costs nothing


@pytest.fixture(scope="session")
def valid() -> Iterator[ValidInputs]:
    """Valid inputs, and the sandbox in which mutated ones are tried."""
    folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
    server = Server()
    yield ValidInputs(folder, server)
    server.close()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where inputs that cause faults are kept."""
    return tmp_path_factory.mktemp("fuzz-faults")
