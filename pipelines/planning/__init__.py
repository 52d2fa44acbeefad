"""Planning: which row of a store each image gets, before anything is encoded.

A listing of the input goes in; the frozen plan comes out, parts of Parquet files below the store's
_plan folder, from which tasks are read. Only new and changed images are planned, so running again
on the same input plans nothing. Read plan.py first; diff.py finds what is new, grid_shapes.py gives
the shape of each image's codes.
"""

from pipelines.planning.diff import DUPLICATE
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
from pipelines.planning.rows import PLAN_SCHEMA, planned_rows

__all__ = [
    "DUPLICATE",
    "PLAN_SCHEMA",
    "Plan",
    "PlanSettings",
    "Task",
    "extend_plan",
    "grids_of",
    "planned_rows",
    "prune_plan",
    "read_plan",
    "task_table",
    "write_part",
]
