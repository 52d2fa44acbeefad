"""Conditions from the user's side: one file, one class, a condition (or a close family).

Each class builds the prior's Condition from code stores, encodes a user's files for sampling, draws
their preview and names the kind of track that encode makes for it. Code stores and files come in;
a prior's Conditions and entries of batches go out. Read conditioning.py first, then a condition
such as code_grids.py or boxes.py, then encoder.py. A condition is two modules, one here and one in
prior/conditions: a module here that registers a class in CONDITIONINGS needs no other mention.
tokenizers.py keeps the tokenizers that a prior and its conditions need in its run folder.
"""

import importlib
import pkgutil

from pipelines.conditioning.build import make_conditions, own_tokenizers, track_kinds, tracks_of
from pipelines.conditioning.encoder import ConditionEncoder, make_condition_encoder
from pipelines.conditioning.files import ConditionFiles
from pipelines.conditioning.flags import (
    accepted_files,
    gives_known_codes,
    parse_conditions,
    parse_known_codes,
    path_of_condition,
)
from pipelines.conditioning.tokenizers import find_tokenizer, keep_tokenizers, tokenizer_info

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "ConditionEncoder",
    "ConditionFiles",
    "accepted_files",
    "find_tokenizer",
    "gives_known_codes",
    "keep_tokenizers",
    "make_condition_encoder",
    "make_conditions",
    "own_tokenizers",
    "parse_conditions",
    "parse_known_codes",
    "path_of_condition",
    "tokenizer_info",
    "track_kinds",
    "tracks_of",
]
