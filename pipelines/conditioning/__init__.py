"""?"""

from pipelines.conditioning.build import make_conditions, tracks_of
from pipelines.conditioning.encode import ConditionEncoder, make_condition_encoder
from pipelines.conditioning.inputs import ConditionFiles, parse_conditions
from pipelines.conditioning.preview import condition_picture

__all__ = [
    "ConditionEncoder",
    "ConditionFiles",
    "condition_picture",
    "make_condition_encoder",
    "make_conditions",
    "parse_conditions",
    "tracks_of",
]
