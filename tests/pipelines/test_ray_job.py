"""The commands as Ray jobs, on a real head with token authentication."""

import json
import os
import signal
import time

import pytest

from ops.checkpoint import newest_step
from tests import generate_run
from tests.encode_run import everything
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


@pytest.mark.parametrize("command", ["encode", "train_prior", "generate"])
def test_a_relative_output_is_refused_with_the_reason(head, rule_store, prior_run, run, command):
    run.out = "r"
    arguments = {
        "encode": run.flags(rule_store),
        "train_prior": train_prior(rule_store, "r", 2),
        "generate": generate_run.words(prior_run, "r"),
    }
    code, printed = head.run("python", f"pipelines/{command}.py", *arguments[command])
    assert code != 0
    assert "error: --out r is relative, but a Ray job runs in a copy" in printed
    assert "Traceback" not in printed


def test_the_bare_script_is_a_job(head, rule_store, tmp_path):
    run = tmp_path / "run"
    code, printed = head.run("pipelines/train_prior.py", *train_prior(rule_store, run, 2))
    assert code == 0, printed
    assert "2 steps taken" in printed
    assert newest_step(run).name == "step-00000002"


def test_a_job_with_a_killed_worker_resumes_from_the_last_checkpoint(head, rule_store, tmp_path):
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


@pytest.mark.parametrize("form", [["python", "pipelines/encode.py"], ["pipelines/encode.py"]])
def test_encode_as_a_job_gives_the_store_of_one_process(head, photographs, run, form):
    assert run(photographs, convolution="direct") == 0
    alone, run.out = run.out, run.out.with_name("job.zarr")
    arguments = run.flags(photographs, convolution="direct", workers=2)
    code, printed = head.run(*form, *arguments)
    assert code == 0, printed
    assert "10 encoded, 0 failed" in printed
    assert everything(run.out) == everything(alone)


@pytest.mark.parametrize("form", [["python", "pipelines/generate.py"], ["pipelines/generate.py"]])
def test_generate_as_a_job_gives_the_images_of_one_process(head, prior_run, tmp_path, form):
    flags = ["--count", 6, "--batch-size", 2, "--samples-per-task", 2]
    assert generate_run.generate(prior_run, tmp_path / "alone", *flags) == 0
    arguments = generate_run.words(prior_run, tmp_path / "job", *flags, "--workers", 2)
    code, printed = head.run(*form, *arguments)
    assert code == 0, printed
    assert "6 generated" in printed
    assert everything(tmp_path / "job") == everything(tmp_path / "alone")
