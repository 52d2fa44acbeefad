"""?"""

from pipelines.jobs.actors import ray_running
from pipelines.jobs.cluster import check_absolute, check_on_every_node, cluster_address
from pipelines.jobs.queue import halves
from pipelines.jobs.run import run_tasks

__all__ = [
    "check_absolute",
    "check_on_every_node",
    "cluster_address",
    "halves",
    "ray_running",
    "run_tasks",
]
