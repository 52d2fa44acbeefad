"""The paper's studies in miniature, by name; `python -m pipelines.study NAME` repeats one."""

from ops.config import Registry
from pipelines.studies.downsampling import Downsampling
from pipelines.studies.orderings import Orderings
from pipelines.studies.snail import Snail
from pipelines.studies.study import Study
from pipelines.studies.vqvae_vqgan import Losses
from pipelines.studies.windows import Windows

STUDIES: Registry[Study] = Registry("study")
STUDIES.register("downsampling")(Downsampling())
STUDIES.register("orderings")(Orderings())
STUDIES.register("snail")(Snail())
STUDIES.register("vqvae_vqgan")(Losses())
STUDIES.register("windows")(Windows())
