"""A local Ray of ours: who can reach it, and what a signal to its driver leaves."""

from __future__ import annotations

import http.client
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.jobs import cores_for_gpus
from tests.ray_head import descendants

ROOT = Path(__file__).parents[3]
DRIVER = """
import os, sys, time
from dataclasses import dataclass
from pipelines.console import run_command
from pipelines.jobs import ray_running, run_tasks

@dataclass(frozen=True)
class Flags:
    '''Waits.'''

class Waiting:
    def run(self, task):
        print("running", file=open(task, "w"))
        time.sleep(600)

def run(flags):
    run_tasks([os.environ["TASK"]], Waiting, on_result=print, workers=1)
    return 0

sys.exit(run_command(Flags, run, [], "pipelines.thing"))
"""


def listening_of(pids: set[int]) -> list[tuple[str, int]]:
    """(address, port) of each TCP socket that one of the processes listens on."""
    lines = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    fields = [line.split() for line in lines.splitlines()]
    ours = [f for f in fields if any(f"pid={pid}," in f[-1] for pid in pids)]
    places = [f[3].rpartition(":") for f in ours]
    return [(address, int(port)) for address, _, port in places]


def answer(port: int, path: str) -> int | None:
    """The status of an HTTP POST without a token; None where there is no answer to it."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=b"{}", method="POST")
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):
        return None


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A command whose one task runs on a local Ray, with a home that cannot be written."""
    task = tmp_path / "task"
    environment = {
        "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore",
        "HOME": "/proc/nowhere", "TASK": str(task), "RAY_AUTH_MODE": "disabled",
        "TMPDIR": str(tmp_path),
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER], env=environment, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        while not task.exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.ray
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_local_ray_is_private_and_ends_with_its_driver(driver: subprocess.Popen[str]) -> None:
    processes = descendants(driver.pid)
    pids = {pid for pid, _ in processes}
    sockets = listening_of({driver.pid, *pids})
    assert len(sockets) > 5
    assert {address for address, _ in sockets} <= {"127.0.0.1", "[::ffff:127.0.0.1]", "[::1]"}
    for path in ("/api/job_agent/jobs/", "/get_or_create_runtime_env"):
        answers = {answer(port, path) for _, port in sockets}
        assert answers <= {None, 401, 403, 404, 405}
        assert answers & {401, 403}, f"nobody asks for a token at {path}"
    (folder,) = [
        Path(word.partition("=")[2]).parent
        for _, command in processes
        for word in command.split("\0")
        if word.startswith("--temp-dir=")
    ][:1]
    assert folder.name.startswith("smalti-")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    driver.send_signal(signal.SIGTERM)
    _, errors = driver.communicate(timeout=60)
    assert errors == "interrupted; run the same command again to resume\n"
    assert driver.returncode == 143
    end = time.monotonic() + 20
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < end, left
        time.sleep(0.2)
    assert not folder.exists()


def test_cores_of_an_actor_are_those_of_the_node_with_the_fewest_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    nodes = [
        {"Alive": True, "Resources": {"CPU": 96.0, "GPU": 8.0}},
        {"Alive": True, "Resources": {"CPU": 30.0, "GPU": 4.0}},
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": False, "Resources": {"CPU": 1.0, "GPU": 8.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert [cores_for_gpus(gpus) for gpus in (1, 2, 0.5, 0.01)] == [7, 15, 3, 1]
    monkeypatch.setattr(ray, "nodes", lambda: nodes[2:])
    assert cores_for_gpus(1) == 1  # an autoscaler has not started any
