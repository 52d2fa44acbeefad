"""The flags of the demo command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class DemoFlags:
    """Encode photographs, generate with the bundled priors, train a small prior, write a report."""

    EXAMPLE: ClassVar[str] = "--images photographs/"

    images: Path | None = None
    """Folder of photographs; by default about ten contained in scikit-image, scikit-learn and
    matplotlib."""
    out: Path = Path("runs/demo")
    """Output folder."""
    tokenizer: str = "photo-f8"
    """A bundled tokenizer, or a model folder."""
    image_size: int = 256
    """Side of encoded images and of samples, in pixels."""
    steps: int = 150
    """Training steps of the small prior; about a minute."""
    samples: int = 4
    """Number of its samples."""
