"""A wheel built from the tree works in an environment of its own, away from the tree."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from ops.version import __version__

ROOT = Path(__file__).parents[1]
PACKAGES = ("ops", "pipelines", "prior", "tokenizer")

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path) -> str:
    """What a command prints, run without this process's import paths."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked_files() -> list[str]:
    """Every file of the tree that belongs to the project, new ones included."""
    names = run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT).split("\0")
    return [name for name in names if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the tree: building in the tree itself would leave files there."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked_files():
        target = folder / "tree" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder]
    run(sys.executable, "-m", "pip", "wheel", *flags, folder / "tree", cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, which finds the dependencies of this one.

    A line of a .pth file adds a folder without its own .pth files, so that a Smalti installed here
    in editable mode is not found there.
    """
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin/python"
    flags = ["--no-deps", "--no-index"]
    run(sys.executable, "-m", "pip", "--python", python, "install", *flags, wheel, cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    dependencies = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    return folder


def test_wheel_holds_every_package_and_data_file_and_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {name for name in tracked_files() if name.endswith(".py")}
    expected = {name for name in modules if name.startswith(tuple(f"{p}/" for p in PACKAGES))}
    expected |= {f"{package}/py.typed" for package in PACKAGES}
    expected |= {
        n for n in tracked_files() if n.startswith(("tokenizer/weights/", "prior/weights"))
    }
    expected |= {n for n in tracked_files() if n.startswith("pipelines/") and n.endswith(".html")}
    found = {name for name in names if ".dist-info/" not in name}
    assert found == expected
    assert any(name.endswith("model.safetensors") for name in found)
    assert any(name.endswith(".html") for name in found)


def test_version_and_scripts_are_those_of_the_project(wheel: Path) -> None:
    assert wheel.name.startswith(f"smalti-{__version__}-")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert project["scripts"] == {"smalti": "pipelines.console.smalti:main"}


def test_installed_wheel_encodes_a_photograph(
    environment: Path, photographs: Path, tmp_path: Path
) -> None:
    python, smalti = environment / "bin/python", environment / "bin/smalti"
    code = "import ops, pipelines, prior, tokenizer as t; print(pipelines.__file__, t.__file__)"
    for path in run(python, "-c", code, cwd=tmp_path).split():
        assert Path(path).is_relative_to(environment)
    assert run(smalti, "--version", cwd=tmp_path) == f"smalti {__version__}\n"
    photograph = next(photographs.rglob("*.jpg"))
    store = tmp_path / "codes.zarr"
    flags = ["--in", photograph, "--out", store, "--image-size", 64]
    assert "1 encoded" in run(smalti, "encode", *flags, cwd=tmp_path)
    assert "no problems" in run(smalti, "verify", store, cwd=tmp_path)
