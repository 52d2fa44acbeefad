"""The kinds of fuzzed input: how each is made, which command reads it and what it may do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from prior.conditions import StartOfSequence
from tests.conftest import photograph
from tests.fuzz.annotation_files import ANNOTATIONS, annotation_files, class_tables
from tests.fuzz.checkpoint_files import CheckpointFile, safetensors_files, torch_files
from tests.fuzz.folders import OddFolder, add_odd_files, folders, shows
from tests.fuzz.image_files import ImageFile, image_files
from tests.fuzz.json_values import json_files
from tests.fuzz.oracle import (
    Fault,
    encode_outcome,
    faults_of_encode,
    faults_of_run,
)
from tests.fuzz.parquet_files import ParquetFile, parquet_files
from tests.fuzz.scene import GOOD, Run, Scene, image_bytes
from tests.fuzz.store_files import EditedStore, apply_edits, edited_stores
from tests.fuzz.tar_files import TarFile, tar_files
from tests.generate_run import make_run
from tests.tokenizer.published_weights import GROUPS, compvis_vqgan
from tokenizer import build_tokenizer, save_tokenizer

STORE = "out/codes.zarr"


class Unprinted:
    """A value whose repr is short: hypothesis prints what it is given, and that has megabytes."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"{type(self.value).__name__} that is saved"


class LargeMapping(dict[str, Any]):
    """A dict whose repr is short."""

    def __repr__(self) -> str:
        return f"{len(self)} values"


def config_of(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())


def weights_of(folder: Path) -> LargeMapping:
    return LargeMapping(load_file(folder / "model.safetensors"))


class Material:
    """The valid inputs, below a folder that no run changes."""

    def __init__(self, folder: Path, scene: Scene) -> None:
        self.scene = scene
        self.image = Image.fromarray(photograph(9, 24, 32))
        self.png = image_bytes(9, "a.png")
        self.tokenizer = folder / "tokenizer"
        save_tokenizer(self.tokenizer, build_tokenizer("tiny", seed=0))
        self.config = config_of(self.tokenizer)
        self.weights = weights_of(self.tokenizer)
        self.published = LargeMapping({name: t.float() for name, t in compvis_vqgan().items()})
        self.prior = make_run(folder / "prior", StartOfSequence()) / "step-00000007"
        self.store = self._encoded(folder)
        self.store_files = LargeMapping(
            (str(path.relative_to(self.store)), path.read_bytes())
            for path in self.store.rglob("*")
            if path.is_file() and path.name != "driver.lock"
        )

    def _encoded(self, folder: Path) -> Path:
        """A store of the good images and two more, with two tracks, in two tasks."""
        scene = self.scene
        scene.reset()
        self.add_images()
        run = scene.encode(*self.tracks(), tokenizer=self.tokenizer)
        assert run.code == 0, run.stderr.decode()
        return Path(shutil.copytree(scene.folder / STORE, folder / "codes.zarr"))

    def add_images(self) -> None:
        for number in range(3):
            self.scene.add(f"more-{number}.png", self.png)

    def tracks(self) -> tuple[str, ...]:
        lines = [json.dumps({"file": name, **ANNOTATIONS["boxes"]}) + "\n" for name in GOOD]
        self.scene.add("boxes.jsonl", "".join(lines).encode())
        return "--track", "boxes=in/boxes.jsonl", "--track", "low_res=2"


@dataclass
class Trial:
    """The runs on one input and their faults."""

    runs: list[Run] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def add(self, run: Run, codes: tuple[int, ...]) -> Run:
        self.runs.append(run)
        self.faults += faults_of_run(run, codes)
        return run


Try = Callable[[Material, Any], Trial]
Inputs = Callable[[Material], st.SearchStrategy[Any]]


@dataclass(frozen=True)
class Kind:
    """One kind of input."""

    inputs: Inputs
    try_input: Try


def _encode_beside_good(
    material: Material, name: str, data: bytes, members: tuple[str, ...]
) -> Trial:
    """Encode a folder of good images and one fuzzed file."""
    scene = material.scene
    scene.add(name, data)
    run = scene.encode(tokenizer=material.tokenizer)
    faults = faults_of_encode(run, scene.folder / STORE, name, members)
    return Trial([run], list(faults))


def _try_tar(material: Material, tar: TarFile) -> Trial:
    return _encode_beside_good(material, "fuzz.tar", tar.data, tar.members)


def _try_parquet(material: Material, table: ParquetFile) -> Trial:
    trial = _encode_beside_good(material, "fuzz.parquet", table.data, ())
    if trial.runs[0].code == 0:
        rows, named = encode_outcome(trial.runs[0], material.scene.folder / STORE)
        found = sum(key.startswith("fuzz.parquet/") for key in rows)
        if found < table.rows and "fuzz.parquet" not in named:
            trial.faults.append(Fault("a row vanished", f"{found} of {table.rows} rows"))
    return trial


def _try_image(material: Material, image: ImageFile) -> Trial:
    name = f"fuzz.{image.suffix}"
    trial = _encode_beside_good(material, name, image.data, ())
    if image.good and trial.runs[0].code == 0:
        rows, named = encode_outcome(trial.runs[0], material.scene.folder / STORE)
        if rows.get(name) != "ok":
            trial.faults.append(Fault("metadata costs an image", named[-300:]))
    return trial


def _try_folder(material: Material, odd: OddFolder) -> Trial:
    scene, trial = material.scene, Trial()
    add_odd_files(odd, scene.images, scene.canary)
    run = scene.encode(tokenizer=material.tokenizer)
    trial.runs.append(run)
    trial.faults += faults_of_encode(run, scene.folder / STORE, "", ())
    if run.code == 0:
        rows, named = encode_outcome(run, scene.folder / STORE)
        for file in odd.files:
            if not shows(file, rows, named):
                trial.faults.append(Fault(f"a {file.content} vanished", f"{file.name!r}: {named}"))
    return trial


def _try_annotations(kind: str, suffix: str) -> Try:
    def try_lines(material: Material, data: bytes) -> Trial:
        scene = material.scene
        path = scene.add(f"fuzz.{suffix}", data)
        trial = Trial()
        track = f"{kind}=in/{path.name}"
        run = trial.add(scene.encode("--track", track, tokenizer=material.tokenizer), (0,))
        if run.code == 0 and suffix == "jsonl":
            rows = encode_outcome(run, scene.folder / STORE / "_tracks" / kind).rows
            # Its first line is lost where a line break inside it makes two of it.
            if rows.get(GOOD[1]) != "ok" and not data.endswith(b"\0"):
                trial.faults.append(Fault("a good line vanished", f"{rows}"))
        return trial

    return try_lines


def _try_config(material: Material, data: bytes) -> Trial:
    return _encode_with(material, {"config.json": data})


def _encode_with(material: Material, files: dict[str, bytes]) -> Trial:
    """Encode by the tokenizer with some files replaced."""
    scene, trial = material.scene, Trial()
    folder = scene.folder / "tokenizer"
    shutil.copytree(material.tokenizer, folder)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    trial.add(scene.encode(tokenizer=folder), (0,))
    return trial


def _try_weights(material: Material, weights: CheckpointFile) -> Trial:
    trial = _encode_with(material, {"model.safetensors": weights.data})
    if weights.non_finite and trial.runs[0].code == 0:
        trial.faults.append(Fault("weights that are not finite are accepted", ""))
    return trial


def _try_checkpoint(suffix: str) -> Try:
    def try_file(material: Material, checkpoint: CheckpointFile) -> Trial:
        scene, trial = material.scene, Trial()
        path = scene.add(f"fuzz.{suffix}", checkpoint.data)
        words = ("compvis", f"in/{path.name}", "--out", "out/model", "--norm-groups", GROUPS)
        run = trial.add(scene.run("pipelines.import_tokenizer", *words), (0,))
        if checkpoint.non_finite and run.code == 0:
            trial.faults.append(Fault("weights that are not finite are imported", ""))
        return trial

    return try_file


def _try_prior_config(material: Material, data: bytes) -> Trial:
    return _generate_with(material, {"config.json": data})


def _try_prior_weights(material: Material, weights: CheckpointFile) -> Trial:
    trial = _generate_with(material, {"model.safetensors": weights.data})
    if weights.non_finite and trial.runs[0].code == 0:
        trial.faults.append(Fault("weights that are not finite are accepted", ""))
    return trial


def _generate_with(material: Material, files: dict[str, bytes]) -> Trial:
    """Generate by the prior with some files replaced."""
    scene, trial = material.scene, Trial()
    folder = scene.folder / "prior"
    shutil.copytree(material.prior.parent, folder)
    for name, data in files.items():
        (folder / material.prior.name / name).write_bytes(data)
    words = ("--prior", "prior", "--out", "out/samples", "--count", 1, "--size", "16x16")
    trial.add(scene.run("pipelines.generate", *words, "--device", "cpu"), (0,))
    return trial


#: What reads an edited store; the quick ones more often.
STORE_COMMANDS = ("verify", "verify", "report", "encode", "encode", "extend", "train")


def _store_inputs(material: Material) -> st.SearchStrategy[tuple[EditedStore, str]]:
    edited = edited_stores(material.store_files, str(material.scene.folder))
    return st.tuples(edited, st.sampled_from(STORE_COMMANDS))


def _try_store(material: Material, given: tuple[EditedStore, str]) -> Trial:
    (edited, command), scene, trial = given, material.scene, Trial()
    root = scene.folder / STORE
    shutil.copytree(material.store, root)
    material.add_images()
    tracks = material.tracks()
    apply_edits(edited, root, scene.canary)
    if command == "verify":
        trial.add(scene.run("pipelines.verify", STORE), (0, 1))
    elif command == "report":
        trial.add(scene.run("pipelines.report", STORE, "--out", "out/report.html"), (0,))
    elif command == "train":
        words = ("tiny", "--codes", STORE, "--out", "out/run", "--steps", 1, "--batch-size", 2)
        trial.add(
            scene.run("pipelines.train_prior", *words, "--window", 2, "--device", "cpu"), (0,)
        )
    else:
        if command == "extend":
            scene.add("new.png", material.png)
        run = trial.add(scene.encode(*tracks, tokenizer=material.tokenizer), (0, 1))
        if run.code == 0 and command == "extend" and not edited.reseal:
            rows = encode_outcome(run, root).rows
            if rows.get("new.png") != "ok":
                trial.faults.append(Fault("a new image is not encoded", f"{rows}"))
    return trial


def _folder(material: Material) -> str:
    return str(material.scene.folder)


KINDS: dict[str, Kind] = {
    "folder": Kind(lambda m: folders(m.png), _try_folder),
    "tar": Kind(lambda m: tar_files(m.png), _try_tar),
    "parquet": Kind(lambda m: parquet_files(m.png), _try_parquet),
    "image": Kind(lambda m: image_files(m.image), _try_image),
    **{
        f"{name} JSONL": Kind(
            lambda m, name=name: annotation_files(name, _folder(m)),
            _try_annotations(name, "jsonl"),
        )
        for name in ANNOTATIONS
    },
    "class CSV": Kind(lambda m: class_tables(), _try_annotations("class", "csv")),
    "config.json": Kind(lambda m: json_files(m.config, _folder(m)), _try_config),
    "prior config.json": Kind(
        lambda m: json_files(config_of(m.prior), _folder(m)), _try_prior_config
    ),
    "safetensors": Kind(lambda m: safetensors_files(m.weights, _folder(m)), _try_weights),
    "prior safetensors": Kind(
        lambda m: safetensors_files(weights_of(m.prior), _folder(m)), _try_prior_weights
    ),
    "torch checkpoint": Kind(lambda m: torch_files(m.published), _try_checkpoint("ckpt")),
    "store": Kind(_store_inputs, _try_store),
}


def inputs_of(material: Material, kind: str) -> st.SearchStrategy[Unprinted]:
    """Inputs of a kind."""
    return KINDS[kind].inputs(material).map(Unprinted)


def try_input(material: Material, kind: str, given: Unprinted) -> Trial:
    """Lay out one input and run the command that reads it."""
    material.scene.reset()
    return KINDS[kind].try_input(material, given.value)
