"""SIGKILL of the export command after every step of its disk; the next run finishes the folder.

It is compared with that of an uninterrupted run, byte by byte.
"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from pipelines import export
from tests.crashes.disk_doubles import KillingDisk, ListingDisk, WatchedDisk, read_steps
from tests.crashes.encode_processes import exit_code, start
from tests.exported_store import make_exported_store
from tests.pipelines.exporting.conftest import everything


@pytest.mark.parametrize(
    ("to", "stride"),
    [
        ("webdataset", 6),
        ("images", 9),
        pytest.param("webdataset", 1, marks=pytest.mark.slow),
        pytest.param("images", 1, marks=pytest.mark.slow),
    ],
)
def test_folder_is_whole_whenever_the_command_was_killed(
    tmp_path: Path, tiny_tokenizer: Path, to: str, stride: int
) -> None:
    store, out = make_exported_store(tmp_path / "codes.zarr", tiny_tokenizer), tmp_path / "out"
    words = ["store", str(store), "--to", to, "--out", str(out)]
    listing = ListingDisk(out, tmp_path / "steps.txt")
    assert exit_code(start(export.main, words, disk=listing)) == 0
    expected = everything(out)
    steps = read_steps(tmp_path / "steps.txt")
    assert len(steps) > 15
    # Of many steps of one name, such as writing a PNG, the first and the second stand for all.
    steps = [step for step in steps if step.occurrence < 2]
    for step in [steps[0], *steps[2::stride]]:
        shutil.rmtree(out)
        killed = start(export.main, words, disk=KillingDisk(out, step, "after"))
        assert exit_code(killed) == -signal.SIGKILL, step
        assert exit_code(start(export.main, words, disk=WatchedDisk(out))) == 0, step
        assert everything(out) == expected, step
