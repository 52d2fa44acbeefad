"""Another distribution's package with the name of one of ours is named when ours is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("form", ["package", "module"])
@pytest.mark.parametrize(
    ("imported", "shadowed"),
    [
        ("pipelines.console", "ops"),
        ("pipelines.console", "prior"),
        ("pipelines.console", "tokenizer"),
        ("prior", "ops"),
        ("tokenizer", "ops"),
    ],
)
def test_shadowed_package_is_an_error_that_says_what_to_do(
    tmp_path: Path, imported: str, shadowed: str, form: str
) -> None:
    name = f"{shadowed}.py" if form == "module" else f"{shadowed}/__init__.py"
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", f"import {imported}"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        f"ImportError: `import {shadowed}` finds {tmp_path / name}, not Smalti's"
    )
    assert "virtual environment" in last
