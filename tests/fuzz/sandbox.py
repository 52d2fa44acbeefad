"""Sandbox: a folder with a fuzzed input, good ones next to it and files that must not change."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tests.conftest import photograph

ROOT = Path(__file__).parents[2]
STORE, RUN, SAMPLES = "out/codes.zarr", "out/run", "out/samples"
THESIS = b"years of work"
GOOD = ("good-1.png", "good-2.jpg")  # encoded whatever lies next to them


@dataclass(frozen=True)
class Run:
    """What one command did."""

    module: str
    argv: tuple[str, ...]
    code: int | None  # minus a signal's number; None: it did not end
    stdout: bytes
    stderr: bytes
    seconds: float
    memory: int  # bytes, the most that were resident
    outside: tuple[str, ...]  # paths outside of --out that it made, changed or removed

    @property
    def command(self) -> str:
        return shlex.join(["python", "-m", self.module, *self.argv])


def image_bytes(seed: int, name: str) -> bytes:
    """A small image as a file called `name` has it."""
    buffer = io.BytesIO()
    file_format = "JPEG" if name.endswith(".jpg") else "PNG"
    Image.fromarray(photograph(seed, 24, 32)).save(buffer, file_format)
    return buffer.getvalue()


class Server:
    """The process that forks a child for each command."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment,
            text=True,
        )
        self._ready = False

    def call(self, job: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        if not self._ready:  # it imports while the first input is made
            self._ready = self._reply()["ready"]
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended with {self._process.wait()}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


class Sandbox:
    """The same folder for every input, so that a mutated path can name what lies in it.

    in/ good images, where fuzzed inputs are put; tokenizer/ a small one; canary/ files that nothing
    may change; out/ what commands may write; home/ and tmp/ the environment's.
    """

    def __init__(self, folder: Path, tokenizer: Path, server: Server) -> None:
        self.folder, self._tokenizer, self._server = folder, tokenizer, server
        self.images, self.canary = folder / "in", folder / "canary"
        self._good = {name: image_bytes(seed, name) for seed, name in enumerate(GOOD)}

    def reset(self) -> None:
        """Make the folder what it is before every input."""
        if self.folder.exists():
            for path in self.folder.rglob("*"):
                if path.is_dir() and not path.is_symlink():
                    path.chmod(0o755)
            shutil.rmtree(self.folder)
        for name in ("in", "out", "canary/folder", "home", "tmp"):
            (self.folder / name).mkdir(parents=True)
        (self.canary / "thesis.txt").write_bytes(THESIS)
        (self.canary / "folder" / "letter.txt").write_text("dear reader")
        shutil.copytree(self._tokenizer, self.folder / "tokenizer")
        for name, data in self._good.items():
            self.add(name, data)

    def add(self, name: str, data: bytes) -> Path:
        """Write an input file; its time is always the same, as if it had been there before."""
        path = self.images / name
        path.write_bytes(data)
        os.utime(path, (1e9, 1e9))
        return path

    def run(self, module: str, *argv: object) -> Run:
        """Run a command in the folder; it may write to out/ only."""
        words = tuple(map(str, argv))
        before = self._listing()
        output = {name: self.folder.with_name(name) for name in ("stdout", "stderr")}
        job = {
            "module": module,
            "argv": words,
            "folder": str(self.folder),
            "environment": {"HOME": f"{self.folder}/home", "TMPDIR": f"{self.folder}/tmp"},
            **{name: str(path) for name, path in output.items()},
        }
        reply = self._server.call(job)
        after = self._listing()
        changed = {path for path, _ in before.items() ^ after.items()}
        printed = {name: path.read_bytes() for name, path in output.items()}
        return Run(module, words, **reply, **printed, outside=tuple(sorted(changed)))

    def encode(self, *argv: object) -> Run:
        """Encode in/ with settings that take little time."""
        fixed = ("--image-size", 16, "--batch-size", 1, "--rows-per-task", 4, "--max-bad", 1)
        words = ("--in", "in", "--out", STORE, "--tokenizer", "tokenizer")
        return self.run("pipelines.encode", *words, *fixed, "--device", "cpu", *argv)

    def train(self, steps: int) -> Run:
        """Train a prior on the store until so many steps are done."""
        words = ("tiny", "--codes", STORE, "--out", RUN, "--steps", steps, "--batch-size", 2)
        return self.run("pipelines.train_prior", *words, "--window", 2, "--device", "cpu")

    def generate(self, prior: str, count: int) -> Run:
        """Generate so many samples."""
        words = ("--prior", prior, "--out", SAMPLES, "--count", count, "--size", "16x16")
        fixed = ("--batch-size", 1, "--samples-per-task", 1, "--device", "cpu")
        return self.run("pipelines.generate", *words, *fixed)

    def save(self, folder: Path, runs: Sequence[Run]) -> Path:
        """Copy the sandbox, and how to run it again, to `folder`; returns it."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        # not shutil.copytree, which would wait for ever for a FIFO
        subprocess.run(["cp", "-a", "--", self.folder, folder / "sandbox"], check=True)
        lines = ["cd sandbox  # after the run", *(run.command for run in runs)]
        (folder / "commands.txt").write_text("\n".join(lines) + "\n")
        return folder

    def _listing(self) -> dict[str, tuple[object, ...]]:
        """Path -> what a change would change, of everything that is not below out/."""
        found: dict[str, tuple[object, ...]] = {}
        for top, folders, files in os.walk(self.folder):
            if Path(top) == self.folder:
                folders.remove("out")
            for name in (*folders, *files):
                path = os.path.join(top, name)
                found[os.path.relpath(path, self.folder)] = _state(path)
        return found


def _state(path: str) -> tuple[object, ...]:
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        return "link", os.readlink(path)
    if stat.S_ISREG(status.st_mode):
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        return "file", digest, status.st_mode, status.st_mtime_ns, status.st_nlink
    return "other", status.st_mode
