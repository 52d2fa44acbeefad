"""?"""

from pipelines.planning.diff import DUPLICATE, planned_rows
from pipelines.planning.grid_shapes import grids_of
from pipelines.planning.plan import (
    PLAN_SCHEMA,
    Plan,
    PlanSettings,
    Task,
    extend_plan,
    prune_plan,
    read_plan,
    task_table,
    write_part,
)

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
