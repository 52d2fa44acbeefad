"""The encode command as a user starts it: an image that kills its process costs one row."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipelines.store import CodeStore
from tests.conftest import photograph
from tests.encode_run import EncodeRun

#: Imported by Python when it starts: decoding an image of 48x64 pixels is a crash.
KILLER = """
import os, signal, sys
from PIL import ImageFile

load = ImageFile.ImageFile.load

def load_or_die(self):
    if self.size == (64, 48):
        os.kill(os.getpid(), signal.SIGKILL)
    return load(self)

ImageFile.ImageFile.load = load_or_die
"""


@pytest.mark.slow
def test_an_image_that_kills_is_one_crashed_row(run: EncodeRun, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(KILLER)
    (tmp_path / "in").mkdir()
    for seed in range(6):
        height = 48 if seed == 3 else 40
        Image.fromarray(photograph(seed, height, 64)).save(tmp_path / f"in/{seed}.png")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.encode", *map(str, run.flags(tmp_path / "in"))],
        env={"PYTHONPATH": f"{tmp_path / 'site'}:{root}", "OMP_NUM_THREADS": "1"},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "5 encoded, 1 failed" in done.stdout
    (failed,) = CodeStore.open(run.out).failed.to_pylist()
    assert (failed["key"], failed["status"]) == ("3.png", "crashed")
