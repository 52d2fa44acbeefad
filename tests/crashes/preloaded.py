"""Imported only by the server that child processes are forked from.

Imports and parses the command lines once, so that each child need not.
"""

from __future__ import annotations

import numpy.ma
import torch._dynamo  # imported where a model's shapes are made
import tyro
from PIL import Image

import pipelines.encode
import pipelines.encoding.flags
import pipelines.generate
import pipelines.generation.flags
import tests.crashes.scenarios

__all__ = ["numpy", "pipelines", "tests", "torch"]

Image.init()  # imports every format
tyro.cli(pipelines.encoding.flags.EncodeFlags, args=["--in", ".", "--out", "."])
tyro.cli(pipelines.generation.flags.GenerateFlags, args=["--prior", ".", "--out", "."])
