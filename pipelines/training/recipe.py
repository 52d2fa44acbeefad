"""What decides a training run besides data and seed. `pipelines.recipes` lists recipes by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from ops.config import ConfigError, Count, Range, Share, check_fields
from pipelines.flags import BatchSize, Factorised, Side, Steps, Window
from pipelines.training.optimizer import OptimizerConfig
from prior import ROW_MAJOR, LossSettings
from tokenizer import PRESETS, LossConfig, ModalityConfig, VQGANConfig

#: Fields of a recipe that may change when a run is resumed: they decide no step.
LOOP_FIELDS = ("steps", "save_every", "sample_every", "log_every")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerRecipe:
    """One tokenizer run. `preset` names a network of tokenizer.PRESETS; sizes are in pixels."""

    preset: str
    modality: ModalityConfig = field(default_factory=ModalityConfig)
    """what it is trained on; a num_classes of 0 is replaced by the number found in the data"""
    losses: LossConfig
    optimizer: OptimizerConfig
    discriminator_optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(betas=(0.5, 0.9), learning_rate=1e-4)
    )
    batch_size: BatchSize = 16
    crop_size: Side = 64
    scale_range: tuple[Side, Side] = (192, 448)
    evaluation_size: Side = 256
    steps: Steps = 1000
    save_every: Count = 250
    sample_every: Count = 250
    log_every: Count = 10

    def __post_init__(self) -> None:
        check_fields(self)
        kind, losses = self.modality.kind, self.losses
        if kind != "image" and (losses.perceptual, losses.adversarial) != ("none", "none"):
            raise ConfigError(
                f"{kind}: the perceptual loss and the discriminator are for photographs alone. "
                "Leave both at none."
            )
        if (kind == "segmentation") != (losses.reconstruction != "pixels"):
            raise ConfigError(
                f"reconstruction loss {losses.reconstruction!r} does not fit modality {kind!r}."
            )

    @property
    def config(self) -> VQGANConfig:
        """The network's config, with as many channels as the modality has."""
        return PRESETS[self.preset].with_modality(self.modality)


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorRecipe:
    """One prior run. `preset` is one of prior.preset_config; `window` is in codes a side."""

    preset: str
    optimizer: OptimizerConfig
    window: Window = 16
    ordering: str = ROW_MAJOR
    """order in which the window's codes are predicted: see prior.orderings"""
    dropout: Annotated[float, Range(least=0, below=1)] = 0.0
    label_dropout: Share = 0.1
    init_from_codebook: bool = False
    """initialise code embeddings from the codebook: see prior.init_from_codebook"""
    factorised: Factorised = "no"
    """embed and predict a code by its levels (fsq, lfq; see prior.models.code_levels); auto: where
    the tokenizer's codes have levels"""
    loss: LossSettings = field(default_factory=LossSettings)
    """terms in addition to the cross entropy: see prior.objective"""
    batch_size: BatchSize = 8
    steps: Steps = 1000
    save_every: Count = 250
    sample_every: Count = 250
    log_every: Count = 10

    def __post_init__(self) -> None:
        check_fields(self)
