"""The encode command in a child process: an image that kills or hangs it costs one row."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.encoding import batches, job
from pipelines.inputs import read_bytes
from pipelines.jobs import local
from pipelines.jobs.fork_server import fork_server
from pipelines.store import CodeStore
from tests.conftest import photograph
from tests.encode_run import EncodeRun, everything

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


def test_an_image_whose_reading_hangs_is_one_stalled_row(
    run: EncodeRun, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(photographs, convolution="direct") == 0
    expected = {row["key"]: row["codes"] for row in run.store()}
    shutil.rmtree(run.out)
    os.mkfifo(tmp_path / "fifo")

    def read_or_hang(
        uri: str, offset: int | None, size: int | None, etag: str | None = None
    ) -> bytes:
        if uri.endswith("05.jpg"):
            open(tmp_path / "fifo").close()  # nobody writes
        return read_bytes(uri, offset, size, etag)

    monkeypatch.setattr(batches, "read_bytes", read_or_hang)
    monkeypatch.setattr(job, "stall_seconds", lambda _: 0.4)
    with fork_server(local._serve_driver):
        assert run(photographs, convolution="direct", rows_per_task=2) == 0, run.errors
    assert "9 encoded, 1 failed" in run.printed
    (failed,) = run.store().failed.to_pylist()
    assert (failed["key"], failed["status"]) == ("lake/05.jpg", "stalled")
    assert failed["error"] == "reading or encoding it never ended"
    codes = {row["key"]: row["codes"] for row in run.store()}
    del expected["lake/05.jpg"]
    assert codes.keys() == expected.keys()
    for key in codes:
        np.testing.assert_array_equal(codes[key], expected[key])
    before = everything(run.out)
    assert run(photographs, convolution="direct", rows_per_task=2) == 0
    assert everything(run.out) == before
