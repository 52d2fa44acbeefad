"""The rules of the code base, read from the source files: who imports whom, names, sizes, words."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("ops", "tokenizer", "prior", "pipelines")
ALLOWED = {"ops": set(), "tokenizer": {"ops"}, "prior": {"ops"}, "pipelines": set(PACKAGES)}
#: Stages from the bottom up: each may import those in earlier lines, and itself.
LAYERS = (
    ("pipelines.console",),
    ("pipelines.flags",),
    ("pipelines.jobs", "pipelines.store", "pipelines.inputs"),
    ("pipelines.planning", "pipelines.streaming"),
    ("pipelines.encoding",),
    ("pipelines.tracks",),
    ("pipelines.conditioning",),
    ("pipelines.training",),
    ("pipelines.exporting",),
    ("pipelines.generation",),
    ("pipelines.evaluation",),
    ("pipelines.reports",),
    ("pipelines.recipes",),
    ("pipelines",),  # the commands
    ("pipelines.demo_stages",),
    ("pipelines.demo",),
    ("pipelines.studies",),
    ("pipelines.study",),
)
PRIOR_LAYERS = (("prior.conditions",), ("prior.models",), ("prior.sampling",), ("prior.prior",))
#: Words of an earlier, private vocabulary, for which the field has its own.
PRIVATE_WORDS = re.compile(
    r"(?<![a-z])(told|tellers?|foretells?|foretold|trainees?|condemn\w*|crew|paint(s|ed|er|ing)*"
    r"|hears?|heard|lanes?|sitting|subparts?|pictures?|careless|aftermath|beside)(?![a-z])",
    re.IGNORECASE,
)
TOP_LEVEL = {
    *PACKAGES, "tests", "pyproject.toml", "README.md", "Makefile", "LICENSE", "CONTRIBUTING.md",
    ".gitignore", ".ci",
}  # fmt: skip
HEAVY = {"ray", "zarr", "pyarrow"}
#: Importing them takes as long as many a command does, and most commands do not use them.
LAZY = {"litdata", "ray", "streaming", "webdataset", "zarr"}
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
    files = sorted((ROOT / "pipelines").glob("*.py"))
    return [path.stem for path in files if defines_main(ast.parse(path.read_text()))]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_down(package: str) -> None:
    for path in sources(package):
        for module, _ in imported_modules(ast.parse(path.read_text())):
            top = module.split(".")[0]
            if top in (*PACKAGES, "tests"):
                assert top in ALLOWED[package] | {package}, f"{name_of(path)} imports {module}"


@functools.cache
def packages() -> dict[str, Path]:
    """Every package by its dotted name, with its `__init__` file."""
    inits = [path for path in sources(*PACKAGES) if path.name == "__init__.py"]
    return {name_of(path.parent).replace("/", "."): path for path in inits}


def module_of(path: Path) -> str:
    return name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def package_of(module: str) -> str:
    """The innermost package that a module is, or lies in."""
    known = packages()
    while module not in known:
        module = module.rpartition(".")[0]
    return module


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def imported_names(path: Path) -> Iterator[tuple[str, str | None]]:
    """Every (module, name) of ours that a file imports; no name for `import module`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        yield from (pair for pair in found if pair[0].split(".")[0] in PACKAGES)


def layer_of(module: str, layers: Sequence[Sequence[str]]) -> int | None:
    """The number of the layer with the longest name that `module` lies in."""
    names = {name: number for number, layer in enumerate(layers) for name in layer}
    fitting = [name for name in names if is_within(module, name)]
    return names[max(fitting, key=len)] if fitting else None


@pytest.mark.parametrize(("package", "layers"), [("pipelines", LAYERS), ("prior", PRIOR_LAYERS)])
def test_stages_import_downwards(package: str, layers: Sequence[Sequence[str]]) -> None:
    modules = {module_of(path) for path in sources(package)}
    upwards = []
    for path in sources(package):
        importer = module_of(path)
        own = layer_of(importer, layers)
        if own is None or importer == package:
            continue
        for module, name in imported_names(path):
            target = f"{module}.{name}" if f"{module}.{name}" in modules else module
            other = layer_of(target, layers)
            stage = ".".join(importer.split(".")[:2])
            if other is None or is_within(target, stage):
                continue
            # Commands may call each other; other stages of one layer stay apart.
            if other > own or (other == own and layers[own] != (package,)):
                upwards.append(f"{name_of(path)} imports {target}")
    assert not upwards


def test_packages_are_imported_through_the_names_they_export() -> None:
    exports = {
        name: {
            element.value
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
            for element in node.value.elts  # type: ignore[attr-defined]
        }
        for name, path in packages().items()
    }
    wrong = []
    for path in sources(*PACKAGES):
        for module, name in imported_names(path):
            package = package_of(module)
            # `ops` is a set of independent parts, the files of `pipelines` itself are commands.
            if package in ("ops", "pipelines") or is_within(module_of(path), package):
                continue
            if module != package or name not in exports[package]:
                wrong.append(f"{name_of(path)}: {module}.{name}")
    assert not wrong


def test_every_package_says_what_it_is_for() -> None:
    for name, path in packages().items():
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        sentences = re.findall(r"[^.!?]+[.!?](?=\s|$)", text)
        assert 3 <= len(sentences) <= 6, f"{name} has {len(sentences)} sentences"


def test_private_words_are_gone() -> None:
    code = [path for path in sources(*PACKAGES, "tests") if path != Path(__file__)]
    texts = [*code, *ROOT.glob("*.md"), *(ROOT / "tokenizer").rglob("*.md")]
    texts += [path for form in ("*.md", "*.html") for path in (ROOT / "pipelines").rglob(form)]
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in texts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if PRIVATE_WORDS.search(line)
    ]
    assert not found


def test_only_pipelines_touch_ray_zarr_and_arrow() -> None:
    for path in sources("ops", "tokenizer", "prior"):
        tops = {m.split(".")[0] for m, _ in imported_modules(ast.parse(path.read_text()))}
        assert not tops & HEAVY, f"{name_of(path)} imports {tops & HEAVY}"


def test_libraries_that_few_functions_need_are_imported_in_these() -> None:
    found = {
        f"{name_of(path)} imports {module}"
        for path in sources(*PACKAGES)
        for node in ast.parse(path.read_text()).body
        for module, _ in imported_modules(node)
        if isinstance(node, ast.Import | ast.ImportFrom) and module.split(".")[0] in LAZY
    }
    assert not found


def test_imports_are_absolute() -> None:
    for path in sources(*PACKAGES, "tests"):
        for module, level in imported_modules(ast.parse(path.read_text())):
            assert level == 0, f"{name_of(path)} imports {'.' * level}{module}"


def test_files_stay_short() -> None:
    lengths = {name_of(p): len(p.read_text().splitlines()) for p in sources(*PACKAGES, "tests")}
    assert not {name: lines for name, lines in lengths.items() if lines >= LINES}


def test_files_are_named_for_what_they_define() -> None:
    for path in sources(*PACKAGES, "tests"):
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
    assert packages == {name_of(path.parent).replace("/", ".") for path in sources(*PACKAGES)}


def test_all_that_is_printed_passes_one_module() -> None:
    printing = re.compile(r"(?<![\w.])print\(|std(out|err)\.write|\bConsole\(")
    found = [name_of(path) for path in sources(*PACKAGES) if printing.search(path.read_text())]
    assert found == ["pipelines/console/progress.py", "pipelines/console/terminal.py"]


def test_promised_commands_exist() -> None:
    assert set(commands()) >= COMMANDS


@pytest.mark.parametrize("name", commands())
def test_command_answers_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"pipelines.{name}")
    with pytest.raises(SystemExit) as stopped:
        module.main(["--help"])
    assert stopped.value.code == 0
    assert f"pipelines.{name}" in capsys.readouterr().out


def test_command_runs_as_a_script_from_any_folder(tmp_path: Path) -> None:
    """As `ray job submit` calls it; that `python -m` works is seen where a command is killed."""
    command = [sys.executable, str(ROOT / "pipelines/train_prior.py"), "--help"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()
    assert os.listdir(tmp_path) == []
