"""Imported once by the server that child processes are forked from, and by nobody else.

What every child would otherwise do first is done here: imports, and the command line's parser.
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
