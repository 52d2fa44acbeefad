"""Training as a Ray job, on a real head of this test's own, with token authentication."""

import json
import os
import signal
import time

import pytest

from ops.checkpoint import newest_step
from tests.ray_head import descendants, running_head

pytestmark = [pytest.mark.slow, pytest.mark.ray]
FLAGS = [
    "--save-every", "10", "--log-every", "1", "--sample-every", "1000", "--batch-size", "4",
    "--window", "4", "--threads", "1", "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def head():
    with running_head(cpus=4) as running:
        yield running


def train_prior(store, out, steps, *more):
    return ["tiny", "--codes", store, "--out", out, "--steps", steps, *FLAGS, *more]


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def test_a_relative_output_is_refused_with_the_reason(head, rule_store):
    code, printed = head.run("python", "pipelines/train_prior.py", *train_prior(rule_store, "r", 2))
    assert code != 0
    assert "error: --out r is relative, but a Ray job runs in a copy" in printed
    assert "Traceback" not in printed


def test_the_bare_script_is_a_job(head, rule_store, tmp_path):
    run = tmp_path / "run"
    code, printed = head.run("pipelines/train_prior.py", *train_prior(rule_store, run, 2))
    assert code == 0, printed
    assert "2 steps taken" in printed
    assert newest_step(run).name == "step-00000002"


def test_a_job_with_a_killed_worker_goes_on_from_the_newest_checkpoint(head, rule_store, tmp_path):
    run, alone = tmp_path / "run", tmp_path / "alone"
    head.run("pipelines/train_prior.py", *train_prior(rule_store, alone, 60))
    arguments = train_prior(rule_store, run, 60, "--workers", 2)
    job = head.submit("python", "pipelines/train_prior.py", *arguments)
    while newest_step(run) is None:
        assert job.poll() is None, job.stdout.read()
        time.sleep(0.05)
    workers = [pid for pid, command in descendants(head.process.pid) if "TrainWorker" in command]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    printed, _ = job.communicate(timeout=400)
    assert job.returncode == 0, printed
    assert "60 steps taken" in printed
    assert [step for step, _ in losses(run)] == list(range(1, 61))
    for (_, loss), (_, expected) in zip(losses(run), losses(alone), strict=True):
        assert loss == pytest.approx(expected, rel=0.02)  # rounding grows over the steps
