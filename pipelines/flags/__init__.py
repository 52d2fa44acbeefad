"""The flags of the commands, as dataclasses that run_command parses, and the types they share.

Each file has the flags of one command, or of two alike. Nothing here imports torch, Ray, pyarrow or
any stage, so that --help and errors of a command line take no longer than Python and tyro need; the
commands import their stages after parsing. flag_types.py has what recipes and jobs use as well.
Read encode.py first.
"""

from collections.abc import Mapping
from typing import Any

from pipelines.flags.condition_notes import CONDITION_NOTES
from pipelines.flags.demo import DemoFlags
from pipelines.flags.encode import EncodeFlags, check_encode_flags
from pipelines.flags.evaluate import EvaluateFlags, Kind, Resize, check_kind
from pipelines.flags.export import ExportFlags
from pipelines.flags.export_formats import FORMAT_NOTES
from pipelines.flags.flag_types import (
    CACHE_BYTES,
    Accept,
    BatchSize,
    Factorised,
    LearningRate,
    Side,
    Steps,
    Window,
    stall_seconds,
)
from pipelines.flags.generate import GenerateFlags
from pipelines.flags.published import ImportPriorFlags, ImportTokenizerFlags
from pipelines.flags.report import ReportFlags
from pipelines.flags.study import StudyFlags
from pipelines.flags.train import TrainingFlags, TrainPriorFlags, TrainTokenizerFlags
from pipelines.flags.verify import VerifyFlags

__all__ = [
    "Accept",
    "BatchSize",
    "CACHE_BYTES",
    "CONDITION_NOTES",
    "COMMAND_FLAGS",
    "DemoFlags",
    "EncodeFlags",
    "EvaluateFlags",
    "Kind",
    "Resize",
    "check_kind",
    "ExportFlags",
    "FORMAT_NOTES",
    "Factorised",
    "GenerateFlags",
    "ImportPriorFlags",
    "ImportTokenizerFlags",
    "LearningRate",
    "ReportFlags",
    "Side",
    "Steps",
    "StudyFlags",
    "TrainPriorFlags",
    "TrainTokenizerFlags",
    "TrainingFlags",
    "VerifyFlags",
    "Window",
    "check_encode_flags",
    "stall_seconds",
]

#: The flags of every command, by its name.
COMMAND_FLAGS: Mapping[str, type[Any]] = {
    "demo": DemoFlags,
    "encode": EncodeFlags,
    "evaluate": EvaluateFlags,
    "export": ExportFlags,
    "generate": GenerateFlags,
    "import_prior": ImportPriorFlags,
    "import_tokenizer": ImportTokenizerFlags,
    "report": ReportFlags,
    "study": StudyFlags,
    "train_prior": TrainPriorFlags,
    "train_tokenizer": TrainTokenizerFlags,
    "verify": VerifyFlags,
}
