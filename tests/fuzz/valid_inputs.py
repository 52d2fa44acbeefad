"""The valid inputs that are mutated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load_file

from prior.conditions import StartOfSequence
from tests.conftest import photograph
from tests.fuzz.annotation_files import ANNOTATIONS
from tests.fuzz.sandbox import GOOD, RUN, SAMPLES, STORE, Sandbox, Server, image_bytes
from tests.generate_run import make_run
from tests.tokenizer.published_weights import compvis_vqgan
from tokenizer import build_tokenizer, save_tokenizer


class LargeMapping(dict[str, Any]):
    """A dict whose repr is short."""

    def __repr__(self) -> str:
        return f"{len(self)} values"


def config_of(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())


def weights_of(folder: Path) -> LargeMapping:
    return LargeMapping(load_file(folder / "model.safetensors"))


def files_of(folder: Path) -> LargeMapping:
    """The content of every file but locks, by path below the folder."""
    return LargeMapping(
        (str(path.relative_to(folder)), path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    )


class ValidInputs:
    """The valid inputs, below a folder that no run changes."""

    def __init__(self, folder: Path, server: Server) -> None:
        tokenizer = folder / "tokenizer"
        save_tokenizer(tokenizer, build_tokenizer("tiny", seed=0))
        self.sandbox = Sandbox(folder / "sandbox", tokenizer, server)
        self.image = Image.fromarray(photograph(9, 24, 32))
        self.png = image_bytes(9, "a.png")
        self.config = config_of(tokenizer)
        self.weights = weights_of(tokenizer)
        self.published = LargeMapping({name: t.float() for name, t in compvis_vqgan().items()})
        self.prior = make_run(folder / "prior", StartOfSequence()) / "step-00000007"
        self._make_outputs()
        self.store, self.run, self.samples = (
            Path(shutil.copytree(self.sandbox.folder / name, folder / name))
            for name in (STORE, RUN, SAMPLES)
        )
        self.store_files = files_of(self.store)
        self.run_files = files_of(self.run)
        self.samples_files = files_of(self.samples)

    def _make_outputs(self) -> None:
        """A store of the good images and three more with two tracks, in two tasks; a run that
        trained on it, and samples of that."""
        self.sandbox.reset()
        self.add_images()
        for run in (
            self.sandbox.encode(*self.tracks()),
            self.sandbox.train(1),
            self.sandbox.generate(RUN, 2),
        ):
            assert run.code == 0, run.stderr.decode()

    def add_images(self) -> None:
        for number in range(3):
            self.sandbox.add(f"more-{number}.png", self.png)

    def tracks(self) -> tuple[str, ...]:
        lines = [json.dumps({"file": name, **ANNOTATIONS["boxes"]}) + "\n" for name in GOOD]
        self.sandbox.add("boxes.jsonl", "".join(lines).encode())
        return "--track", "boxes=in/boxes.jsonl", "--track", "low_res=2"
