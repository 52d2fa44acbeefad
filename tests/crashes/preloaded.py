"""Imported only by the server that child processes are forked from.

Imports and parses the command lines once, so that each child need not.
"""

from __future__ import annotations

import numpy.ma
import tyro
from PIL import Image

import pipelines.encode
import pipelines.encoding.flags
import pipelines.generate
import pipelines.generation.flags
import tests.crashes.scenarios

__all__ = ["numpy", "pipelines", "tests"]

Image.init()  # imports every format
tyro.cli(pipelines.encoding.flags.EncodeFlags, args=["--in", ".", "--out", "."])
tyro.cli(pipelines.generation.flags.GenerateFlags, args=["--prior", ".", "--out", "."])
