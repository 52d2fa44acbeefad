"""Weights that others publish, and that some metrics need: found as files, never downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ops.config import UserError
from ops.files import file_hash


class UnavailableError(UserError):
    """A file or library that a metric needs is not there; the message says what and where from."""


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """A file of weights: its name, the start of its SHA-256, who publishes it, and our flag."""

    file: str
    sha256: str
    project: str
    flag: str

    def find(self, given: Path | None) -> Path:
        """The file given, or the one in torch's cache.

        Raises UserError where a given file is missing or another one, UnavailableError where none
        is given and the cache has none: other features must not give a metric its name.
        """
        cached = Path(torch.hub.get_dir()) / "checkpoints" / self.file
        path = cached if given is None else given
        if not path.is_file():
            where = f"{self.file}, which the project {self.project} publishes"
            if given is not None:
                raise UserError(f"{self.flag} {given} is not a file. It takes {where}.")
            raise UnavailableError(
                f"it needs {where}: give it with {self.flag}, or put it into {cached.parent}"
            )
        found = file_hash(path)
        if not found.startswith(self.sha256):
            message = (
                f"{path} is not {self.project}'s {self.file}: its SHA-256 starts with {found[:8]}, "
                f"not {self.sha256}."
            )
            raise UserError(f"{message} Get the file again, or leave it out.")
        return path


INCEPTION = PublishedWeights(
    "weights-inception-2015-12-05-6726825d.pth", "6726825d", "torch-fidelity", "--inception"
)
VGG = PublishedWeights("vgg16-397923af.pth", "397923af", "torchvision", "--vgg")
