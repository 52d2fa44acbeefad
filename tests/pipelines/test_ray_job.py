"""Training as a Ray job, on a real head of this test's own, with token authentication."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from ops.checkpoint import newest_step

pytestmark = [pytest.mark.slow, pytest.mark.ray]
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
FLAGS = [
    "--save-every", "10", "--log-every", "1", "--sample-every", "1000", "--batch-size", "4",
    "--window", "4", "--threads", "1", "--device", "cpu",
]  # fmt: skip


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def descendants(pid):
    """(pid, command) of every process below `pid`."""
    below: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        below.setdefault(parent, []).append(int(folder.name))
    waiting, found = [pid], []
    while waiting:
        children = below.get(waiting.pop(), [])
        waiting += children
        found += [(c, Path(f"/proc/{c}/cmdline").read_text(errors="replace")) for c in children]
    return found


class Head:
    """A running head; `submit` sends it a command as a job."""

    def __init__(self, folder):
        self.folder, dashboard = folder, free_port()
        (folder / "token").write_text(secrets.token_hex(32))
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONWARNINGS": "ignore",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        }
        command = [
            BIN / "ray", "start", "--head", "--block", "--include-dashboard=true",
            f"--port={free_port()}", f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={folder / 't'}",
            "--num-cpus=4", "--object-store-memory=100000000", "--disable-usage-stats",
        ]  # fmt: skip
        with open(folder / "head.log", "w") as log:
            self.process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def submit(self, *command):
        """The running `ray job submit`, which ends as its job does."""
        return subprocess.Popen(
            [BIN / "ray", "job", "submit", "--working-dir", ".", "--", *map(str, command)],
            cwd=ROOT, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *command):
        """A job's exit code and what it printed; a head that is not up yet is asked again."""
        while True:
            job = self.submit(*command)
            printed, _ = job.communicate(timeout=300)
            if "Running entrypoint" in printed:
                return job.returncode, printed
            assert self.process.poll() is None, (self.folder / "head.log").read_text()
            time.sleep(2)

    def end(self):
        self.process.terminate()
        self.process.wait(60)


@pytest.fixture(scope="module")
def head():
    # Not tmp_path: Ray puts sockets there, whose names must be short.
    with tempfile.TemporaryDirectory(prefix="sr", dir="/tmp", ignore_cleanup_errors=True) as folder:
        running = Head(Path(folder))
        yield running
        running.end()


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
