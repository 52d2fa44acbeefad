"""The kinds of fuzzed input: how each is made, which command reads it and what it may do."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.annotation_files import ANNOTATIONS, annotation_files, class_tables
from tests.fuzz.checkpoint_files import CheckpointFile, safetensors_files, torch_files
from tests.fuzz.edited_folders import EditedFolder, apply_edits, edited_folders
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
from tests.fuzz.sandbox import GOOD, RUN, SAMPLES, STORE, THESIS, Run, Sandbox
from tests.fuzz.tar_files import TarFile, tar_files
from tests.fuzz.valid_inputs import ValidInputs, config_of, weights_of
from tests.tokenizer.published_weights import GROUPS


class Unprinted:
    """A value whose repr is short: hypothesis prints what it is given, and that has megabytes."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"{type(self.value).__name__} that is saved"


@dataclass
class Trial:
    """The runs on one input and their faults."""

    runs: list[Run] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def after(self, run: Run, codes: tuple[int, ...] = (0,)) -> Trial:
        """This trial with a run added that may end with one of `codes`."""
        self.runs.append(run)
        self.faults += faults_of_run(run, codes)
        return self


Try = Callable[[ValidInputs, Any], Trial]
Inputs = Callable[[ValidInputs], st.SearchStrategy[Any]]


@dataclass(frozen=True)
class Kind:
    """One kind of input."""

    inputs: Inputs
    try_input: Try


def _encode_with_good(
    valid: ValidInputs, name: str, data: bytes, members: tuple[str, ...]
) -> Trial:
    """Encode a folder of good images and one fuzzed file."""
    sandbox = valid.sandbox
    sandbox.add(name, data)
    run = sandbox.encode()
    faults = faults_of_encode(run, sandbox.folder / STORE, name, members)
    return Trial([run], list(faults))


def _try_tar(valid: ValidInputs, tar: TarFile) -> Trial:
    return _encode_with_good(valid, "fuzz.tar", tar.data, tar.members)


def _try_parquet(valid: ValidInputs, table: ParquetFile) -> Trial:
    trial = _encode_with_good(valid, "fuzz.parquet", table.data, ())
    if trial.runs[0].code == 0:
        rows, named = encode_outcome(trial.runs[0], valid.sandbox.folder / STORE)
        found = sum(key.startswith("fuzz.parquet/") for key in rows)
        if found < table.rows and "fuzz.parquet" not in named:
            trial.faults.append(Fault("a row vanished", f"{found} of {table.rows} rows"))
    return trial


def _try_image(valid: ValidInputs, image: ImageFile) -> Trial:
    name = f"fuzz.{image.suffix}"
    trial = _encode_with_good(valid, name, image.data, ())
    if image.good and trial.runs[0].code == 0:
        rows, named = encode_outcome(trial.runs[0], valid.sandbox.folder / STORE)
        if rows.get(name) != "ok":
            trial.faults.append(Fault("metadata costs an image", named[-300:]))
    return trial


def _try_folder(valid: ValidInputs, odd: OddFolder) -> Trial:
    sandbox, trial = valid.sandbox, Trial()
    add_odd_files(odd, sandbox.images, sandbox.canary)
    run = sandbox.encode()
    trial.runs.append(run)
    trial.faults += faults_of_encode(run, sandbox.folder / STORE, "", ())
    if run.code == 0:
        rows, named = encode_outcome(run, sandbox.folder / STORE)
        for file in odd.files:
            if not shows(file, rows, named):
                trial.faults.append(Fault(f"a {file.content} vanished", f"{file.name!r}: {named}"))
    return trial


def _try_annotations(kind: str, suffix: str) -> Try:
    def try_lines(valid: ValidInputs, data: bytes) -> Trial:
        sandbox = valid.sandbox
        path = sandbox.add(f"fuzz.{suffix}", data)
        trial = Trial()
        track = f"{kind}=in/{path.name}"
        run = sandbox.encode("--track", track)
        trial.after(run)
        if run.code == 0 and suffix == "jsonl":
            rows, named = encode_outcome(run, sandbox.folder / STORE / "_tracks" / kind)
            last = GOOD[1]  # an odd line break may make two lines of the first one
            if rows.get(last) != "ok" and last not in named and not data.endswith(b"\0"):
                trial.faults.append(Fault("a good line vanished", f"{rows}"))
        return trial

    return try_lines


def _try_config(valid: ValidInputs, data: bytes) -> Trial:
    return _encode_with(valid, {"config.json": data})


def _encode_with(valid: ValidInputs, files: dict[str, bytes]) -> Trial:
    """Encode by the tokenizer with some files replaced."""
    sandbox = valid.sandbox
    for name, data in files.items():
        (sandbox.folder / "tokenizer" / name).write_bytes(data)
    return Trial().after(sandbox.encode())


def _try_weights(valid: ValidInputs, weights: CheckpointFile) -> Trial:
    trial = _encode_with(valid, {"model.safetensors": weights.data})
    if weights.non_finite and trial.runs[0].code == 0:
        trial.faults.append(Fault("weights that are not finite are accepted", ""))
    return trial


def _try_checkpoint(suffix: str) -> Try:
    def try_file(valid: ValidInputs, checkpoint: CheckpointFile) -> Trial:
        sandbox, trial = valid.sandbox, Trial()
        path = sandbox.add(f"fuzz.{suffix}", checkpoint.data)
        words = ("compvis", f"in/{path.name}", "--out", "out/model", "--norm-groups", GROUPS)
        run = sandbox.run("pipelines.import_tokenizer", *words)
        trial.after(run)
        if checkpoint.non_finite and run.code == 0:
            trial.faults.append(Fault("weights that are not finite are imported", ""))
        return trial

    return try_file


def _try_prior_config(valid: ValidInputs, data: bytes) -> Trial:
    return _generate_with(valid, {"config.json": data})


def _try_prior_weights(valid: ValidInputs, weights: CheckpointFile) -> Trial:
    trial = _generate_with(valid, {"model.safetensors": weights.data})
    if weights.non_finite and trial.runs[0].code == 0:
        trial.faults.append(Fault("weights that are not finite are accepted", ""))
    return trial


def _generate_with(valid: ValidInputs, files: dict[str, bytes]) -> Trial:
    """Generate by the prior with some files replaced."""
    sandbox, trial = valid.sandbox, Trial()
    folder = sandbox.folder / "prior"
    shutil.copytree(valid.prior.parent, folder)
    for name, data in files.items():
        (folder / valid.prior.name / name).write_bytes(data)
    return trial.after(sandbox.generate("prior", 1))


Command = Callable[[ValidInputs, EditedFolder], Trial]


def _edited(files: str, commands: Sequence[Command]) -> Kind:
    """A kind of folder, `files` of the valid inputs, and commands that read it."""

    def inputs(valid: ValidInputs) -> st.SearchStrategy[tuple[EditedFolder, Command]]:
        edited = edited_folders(getattr(valid, files), _folder(valid))
        return st.tuples(edited, st.sampled_from(commands))

    return Kind(inputs, lambda valid, given: given[1](valid, given[0]))


def _with_edits(valid: ValidInputs, original: Path, name: str, edited: EditedFolder) -> Sandbox:
    """The sandbox with an edited copy of a valid folder in out/."""
    root = valid.sandbox.folder / name
    shutil.copytree(original, root)
    apply_edits(edited, root, valid.sandbox.canary)
    return valid.sandbox


def _verify(valid: ValidInputs, edited: EditedFolder) -> Trial:
    sandbox = _with_edits(valid, valid.store, STORE, edited)
    return Trial().after(sandbox.run("pipelines.verify", STORE), (0, 1))


def _report(sandbox: Sandbox, folder: str) -> Trial:
    page = sandbox.folder / "out" / "report.html"
    trial = Trial().after(sandbox.run("pipelines.report", folder, "--out", "out/report.html"))
    if page.is_file() and base64.b64encode(THESIS) in page.read_bytes():
        trial.faults.append(Fault("a report embeds a file from elsewhere", ""))
    return trial


def _report_store(valid: ValidInputs, edited: EditedFolder) -> Trial:
    return _report(_with_edits(valid, valid.store, STORE, edited), STORE)


def _report_run(valid: ValidInputs, edited: EditedFolder) -> Trial:
    return _report(_with_edits(valid, valid.run, RUN, edited), RUN)


def _report_samples(valid: ValidInputs, edited: EditedFolder) -> Trial:
    return _report(_with_edits(valid, valid.samples, SAMPLES, edited), SAMPLES)


def _train(valid: ValidInputs, edited: EditedFolder) -> Trial:
    sandbox = _with_edits(valid, valid.store, STORE, edited)
    return Trial().after(sandbox.train(1))


def _resume_training(valid: ValidInputs, edited: EditedFolder) -> Trial:
    sandbox = _with_edits(valid, valid.run, RUN, edited)
    shutil.copytree(valid.store, sandbox.folder / STORE)
    return Trial().after(sandbox.train(2))


def _generate(valid: ValidInputs, edited: EditedFolder) -> Trial:
    sandbox = _with_edits(valid, valid.run, RUN, edited)
    return Trial().after(sandbox.generate(RUN, 1))


def _generate_more(valid: ValidInputs, edited: EditedFolder) -> Trial:
    sandbox = _with_edits(valid, valid.samples, SAMPLES, edited)
    shutil.copytree(valid.run, sandbox.folder / RUN)
    return Trial().after(sandbox.generate(RUN, 3))


def _encode_again(valid: ValidInputs, edited: EditedFolder) -> Trial:
    sandbox = _with_edits(valid, valid.store, STORE, edited)
    valid.add_images()
    run = sandbox.encode(*valid.tracks())
    return Trial().after(run)


def _encode_more(valid: ValidInputs, edited: EditedFolder) -> Trial:
    sandbox = _with_edits(valid, valid.store, STORE, edited)
    valid.add_images()
    sandbox.add("new.png", valid.png)
    trial = Trial().after(sandbox.encode(*valid.tracks()))
    if trial.runs[0].code == 0:
        rows = encode_outcome(trial.runs[0], sandbox.folder / STORE).rows
        if rows.get("new.png") != "ok":
            trial.faults.append(Fault("a new image is not encoded", f"{rows}"))
    return trial


def _folder(valid: ValidInputs) -> str:
    return str(valid.sandbox.folder)


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
    # The quick commands more often.
    "store": _edited(
        "store_files",
        [_verify, _verify, _report_store, _encode_again, _encode_again, _encode_more, _train],
    ),
    "run": _edited("run_files", [_report_run, _generate, _generate, _resume_training]),
    "samples": _edited("samples_files", [_report_samples, _generate_more, _generate_more]),
}


def inputs_of(valid: ValidInputs, kind: str) -> st.SearchStrategy[Unprinted]:
    """Inputs of a kind."""
    return KINDS[kind].inputs(valid).map(Unprinted)


def try_input(valid: ValidInputs, kind: str, given: Unprinted) -> Trial:
    """Lay out one input and run the command that reads it."""
    valid.sandbox.reset()
    return KINDS[kind].try_input(valid, given.value)
