"""A Ray head on this machine, with token authentication, that accepts jobs."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def descendants(pid: int) -> list[tuple[int, str]]:
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
    """A running head; `submit` submits a command as a job."""

    def __init__(self, folder: Path, cpus: int) -> None:
        self.folder, self.port, dashboard = folder, free_port(), free_port()
        self._started: list[subprocess.Popen[bytes]] = []
        (folder / "token").write_text(secrets.token_hex(32))
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONWARNINGS": "ignore",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        }
        self.process = self._start(
            "head", cpus, "--head", "--include-dashboard=true", f"--port={self.port}",
            f"--dashboard-port={dashboard}", f"--temp-dir={folder / 't'}",
        )  # fmt: skip

    def _start(self, name: str, cpus: int, *options: str) -> subprocess.Popen[bytes]:
        command = [
            BIN / "ray", "start", "--block", f"--num-cpus={cpus}", "--disable-usage-stats",
            f"--dashboard-agent-listen-port={free_port()}", "--object-store-memory=100000000",
            *options,
        ]  # fmt: skip
        with open(self.folder / f"{name}.log", "w") as log:
            started = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self._started.append(started)
        return started

    def add_node(self, cpus: int) -> subprocess.Popen[bytes]:
        """Start a second raylet on this machine; its processes are children of the one returned."""
        return self._start("node", cpus, f"--address=127.0.0.1:{self.port}")

    def submit(self, *command: object) -> subprocess.Popen[str]:
        """Start `ray job submit`, which ends when its job does."""
        return subprocess.Popen(
            [BIN / "ray", "job", "submit", "--working-dir", ".", "--", *map(str, command)],
            cwd=ROOT, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *command: object) -> tuple[int, str]:
        """A job's exit code and output; tried again while the head is starting."""
        while True:
            job = self.submit(*command)
            printed, _ = job.communicate(timeout=300)
            if "Running entrypoint" in printed:
                return job.returncode, printed
            assert self.process.poll() is None, (self.folder / "head.log").read_text()
            time.sleep(2)

    def end(self) -> None:
        for started in reversed(self._started):
            started.terminate()
            started.wait(60)


@contextlib.contextmanager
def running_head(cpus: int) -> Iterator[Head]:
    # Not below tmp_path: Ray makes sockets there, whose paths must be short.
    with tempfile.TemporaryDirectory(prefix="sr", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = Head(Path(folder), cpus)
        try:
            yield head
        finally:
            head.end()


def kill_raylet(node: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a node's raylet and all its processes, as in a power failure."""
    for pid, _ in [(node.pid, ""), *descendants(node.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    node.wait(60)
