"""The paper's studies in miniature, by name; `python -m pipelines.study NAME` repeats one."""

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

__all__ = ["STUDIES", "Study", "StudyContext", "do_runs", "write_report"]

STUDIES: Registry[Study] = Registry("study")
STUDIES.register("downsampling")(Downsampling())
STUDIES.register("orderings")(Orderings())
STUDIES.register("snail")(Snail())
STUDIES.register("vqvae_vqgan")(Losses())
STUDIES.register("windows")(Windows())
