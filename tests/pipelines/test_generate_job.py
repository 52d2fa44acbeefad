"""Generation as a Ray job on a head and a second node, which is killed meanwhile."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.generate_run import everything, generate, words
from tests.ray_head import descendants, kill_raylet, running_head

pytestmark = [pytest.mark.slow, pytest.mark.ray]
FLAGS = ["--count", 240, "--batch-size", 2, "--samples-per-task", 2, "--save", "images,codes,tars"]


def test_losing_a_node_loses_no_sample(prior_run: Path, tmp_path: Path) -> None:
    alone, out = tmp_path / "alone", tmp_path / "out"
    assert generate(prior_run, alone, *FLAGS, "--size", "64x48") == 0
    with running_head(cpus=1) as head:
        code, printed = head.run("python", "-c", "print('the head is up')")
        assert code == 0, printed
        node = head.add_node(cpus=1)
        flags = words(prior_run, out, *FLAGS, "--size", "64x48", "--workers", 2)
        job = head.submit("python", "pipelines/generate.py", *flags)
        while not any("_Actor" in command for _, command in descendants(node.pid)):
            assert job.poll() is None, job.stdout.read()  # type: ignore[union-attr]
            time.sleep(0.1)
        while len(list(out.glob("index/*.parquet"))) < 10:
            assert job.poll() is None, job.stdout.read()  # type: ignore[union-attr]
            time.sleep(0.1)
        kill_raylet(node)
        lost_at = len(list(out.glob("index/*.parquet")))
        printed, _ = job.communicate(timeout=400)
    assert job.returncode == 0, printed
    assert lost_at < 120
    assert "240 generated" in printed
    assert "codes/s" in printed
    assert everything(out) == everything(alone)
