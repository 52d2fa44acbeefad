"""Small repetitions of the paper's studies, registered by name for `python -m pipelines.study`.

A study compares variants under several seeds: each (variant, seed) is trained and measured by the
public commands on a folder of photographs, and runs that are done are kept. Out come the study's
runs, results.json, a table, a plot, image sheets and report.md; reports of finished studies are in
results/. Read study.py first, which defines a study, then runs.py.
"""

from ops.config import Registry
from pipelines.studies.context import StudyContext
from pipelines.studies.downsampling import Downsampling
from pipelines.studies.orderings import Orderings
from pipelines.studies.runs import do_runs
from pipelines.studies.snail import Snail
from pipelines.studies.study import Study
from pipelines.studies.study_report import write_report
from pipelines.studies.vqvae_vqgan import Losses
from pipelines.studies.windows import Windows

__all__ = ["STUDIES", "StudyContext", "do_runs", "write_report"]

STUDIES: Registry[Study] = Registry("study")
STUDIES.register("downsampling")(Downsampling())
STUDIES.register("orderings")(Orderings())
STUDIES.register("snail")(Snail())
STUDIES.register("vqvae_vqgan")(Losses())
STUDIES.register("windows")(Windows())
