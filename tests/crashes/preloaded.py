"""Imported only by the server that child processes are forked from.

Imports the stages and parses the command lines once, so that each child need not.
"""

from __future__ import annotations

import numpy.ma
import tyro
from PIL import Image

import pipelines.encode
import pipelines.flags
import pipelines.generate
import pipelines.generation
import pipelines.tracks
import tests.crashes.scenarios

__all__ = ["numpy", "pipelines", "tests"]

Image.init()  # imports every format
tyro.cli(pipelines.flags.EncodeFlags, args=["--in", ".", "--out", "."])
tyro.cli(pipelines.flags.GenerateFlags, args=["--prior", ".", "--out", "."])
