"""The encode command as tests call it: small settings, its output kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops.web_paths import SourcePath
from pipelines import encode
from pipelines.console.settings_file import SETTINGS
from pipelines.store import CodeStore


class EncodeRun:
    """Calls the command with small settings that each test may replace."""

    def __init__(self, tokenizer: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.tokenizer, self.out, self.capsys = tokenizer, out, capsys
        self.printed = self.errors = ""

    def flags(self, images: SourcePath, **changed: object) -> list[str]:
        flags = {
            "in": images,
            "out": self.out,
            "tokenizer": self.tokenizer,
            "image_size": 32,
            "batch_size": 4,
            "rows_per_task": 4,
            **changed,
        }
        words: list[str] = []
        for name, value in flags.items():
            flag = f"--{name.replace('_', '-')}"
            for each in value if isinstance(value, tuple) else (value,):
                words += [flag] if each is True else [flag, str(each)]
        return words

    def __call__(self, images: SourcePath, **changed: object) -> int:
        code = encode.main(self.flags(images, **changed))
        self.printed, self.errors = self.capsys.readouterr()
        return code

    def store(self) -> CodeStore:
        return CodeStore.open(self.out)


def file_times(folder: Path) -> dict[Path, int]:
    """When each file was written, in ns, but for settings.yaml: the flags of the last command."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "settings.yaml"]
    return {path: path.stat().st_mtime_ns for path in files}


def everything(root: Path) -> dict[str, bytes]:
    """Every file of a store, by path, but for the flags it was made with."""
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in root.rglob("*")
        if p.is_file() and p.name != SETTINGS
    }
