"""The rules of the house, read off the source files themselves: who imports whom, names, sizes."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("ops", "tokenizer", "prior", "pipelines")
ALLOWED = {"ops": set(), "tokenizer": {"ops"}, "prior": {"ops"}, "pipelines": set(ROOMS)}
TOP_LEVEL = {
    *ROOMS, "tests", "pyproject.toml", "README.md", "Makefile", "LICENSE", "CONTRIBUTING.md",
    ".gitignore", ".ci",
}  # fmt: skip
HEAVY = {"ray", "zarr", "pyarrow"}
EMPTY_NAMES = {"utils", "util", "common", "helpers", "helper", "base", "manager", "misc"}
LINES = 600
# The commands whose names DESIGN and the README promise; others may join them.
COMMANDS = {"encode", "train_tokenizer", "train_prior", "generate", "report", "demo"}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every module imported anywhere in a file, functions included, with its relative level."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "", node.level)


def defines_main(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)


def commands() -> list[str]:
    files = sources("pipelines")
    return [path.stem for path in files if defines_main(ast.parse(path.read_text()))]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_down(room: str) -> None:
    for path in sources(room):
        for module, _ in imported_modules(ast.parse(path.read_text())):
            top = module.split(".")[0]
            if top in (*ROOMS, "tests"):
                assert top in ALLOWED[room] | {room}, f"{name_of(path)} imports {module}"


def test_only_pipelines_touch_ray_zarr_and_arrow() -> None:
    for path in sources("ops", "tokenizer", "prior"):
        tops = {m.split(".")[0] for m, _ in imported_modules(ast.parse(path.read_text()))}
        assert not tops & HEAVY, f"{name_of(path)} imports {tops & HEAVY}"


def test_imports_are_absolute() -> None:
    for path in sources(*ROOMS, "tests"):
        for module, level in imported_modules(ast.parse(path.read_text())):
            assert level == 0, f"{name_of(path)} imports {'.' * level}{module}"


def test_files_stay_short() -> None:
    lengths = {name_of(p): len(p.read_text().splitlines()) for p in sources(*ROOMS, "tests")}
    assert not {name: lines for name, lines in lengths.items() if lines >= LINES}


def test_files_are_named_for_what_they_define() -> None:
    for path in sources(*ROOMS, "tests"):
        words = {path.stem, path.parent.name} | set(path.stem.split("_"))
        assert not words & EMPTY_NAMES, name_of(path)


def test_pipelines_shadow_no_other_module() -> None:
    # `python pipelines/train_prior.py` puts pipelines/ first on sys.path, so a module of ours
    # called `queue` would be what the standard library then imports.
    installed = importlib.metadata.packages_distributions()
    others = {name for name, owners in installed.items() if set(owners) != {"smalti"}}
    ours = {path.stem for path in (ROOT / "pipelines").iterdir() if path.suffix in ("", ".py")}
    assert not (ours - {"__init__", "__pycache__"}) & (others | sys.stdlib_module_names)


def test_top_level_holds_only_what_the_design_names() -> None:
    ignored = (ROOT / ".gitignore").read_text().split()
    made_here = {pattern.strip("/") for pattern in ignored} | {".git"}
    tops = {
        path.name
        for path in ROOT.iterdir()
        if not any(path.match(pattern) for pattern in made_here)
    }
    assert tops <= TOP_LEVEL


def test_every_package_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = set(project["tool"]["setuptools"]["packages"])
    assert packages == {name_of(path.parent).replace("/", ".") for path in sources(*ROOMS)}


def test_only_commands_print() -> None:
    for path in sources(*ROOMS):
        tree = ast.parse(path.read_text())
        if defines_main(tree) or path.name == "run.py":
            continue
        calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
        assert not any(isinstance(c, ast.Name) and c.id == "print" for c in calls), name_of(path)


def test_promised_commands_exist() -> None:
    assert set(commands()) >= COMMANDS


@pytest.mark.parametrize("name", commands())
def test_command_answers_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"pipelines.{name}")
    with pytest.raises(SystemExit) as stopped:
        module.main(["--help"])
    assert stopped.value.code == 0
    assert f"pipelines.{name}" in capsys.readouterr().out


@pytest.mark.parametrize("form", [["pipelines/train_prior.py"], ["-m", "pipelines.report"]])
def test_command_runs_as_script_and_as_module(form: list[str], tmp_path: Path) -> None:
    if form[0] != "-m":  # from any folder, as `ray job submit` calls it
        form = [str(ROOT / form[0])]
    command = [sys.executable, *form, "--help"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()
