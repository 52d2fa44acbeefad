"""Planning: which row of a store each image gets, before anything is encoded.

A listing of the input goes in; the frozen plan comes out, parts of Parquet files below the store's
_plan folder, from which tasks are read. Only new and changed images are planned, so running again
on the same input plans nothing. Read plan.py first; diff.py finds what is new, selection.py which
of it is wanted, grid_shapes.py gives the shape of each image's codes.
"""

from pipelines.planning.diff import DUPLICATE
from pipelines.planning.expressions import parse_condition
from pipelines.planning.grid_shapes import grids_of
from pipelines.planning.plan import (
    Plan,
    PlanSettings,
    Task,
    extend_plan,
    prune_plan,
    read_plan,
    task_table,
    write_part,
)
from pipelines.planning.planned_input import (
    PlannedInput,
    keep_planned_input,
    read_planned_input,
)
from pipelines.planning.rows import PLAN_SCHEMA, planned_rows
from pipelines.planning.selection import Selection, Selector
from pipelines.planning.source_records import ArchiveLists

__all__ = [
    "ArchiveLists",
    "DUPLICATE",
    "PLAN_SCHEMA",
    "Plan",
    "PlanSettings",
    "PlannedInput",
    "Selection",
    "Selector",
    "Task",
    "extend_plan",
    "grids_of",
    "keep_planned_input",
    "parse_condition",
    "planned_rows",
    "prune_plan",
    "read_plan",
    "read_planned_input",
    "task_table",
    "write_part",
]
