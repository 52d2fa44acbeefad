"""A store to export, and exporting it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import export
from pipelines.console.settings_file import SETTINGS
from tests.exported_store import make_exported_store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """tests/exported_store.py tells what is in it; do not change it."""
    return make_exported_store(tmp_path_factory.mktemp("store") / "codes.zarr", tiny_tokenizer)


def run_export(store: Path, out: Path, to: str, *more: object) -> int:
    return export.main(["store", str(store), "--to", to, "--out", str(out), *map(str, more)])


def everything(root: Path) -> dict[str, bytes]:
    """Every file of an export, by path, but for the lock and the flags."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in ("driver.lock", SETTINGS)
    }
