"""The sizes of a cascade's stages, from what config.json says of its two priors."""

from __future__ import annotations

from ops.config import ConfigError
from prior import LowResolution, Prior, PriorDescription

LOW_RES = LowResolution.name

AnyPrior = Prior | PriorDescription
Size = tuple[int, int]  # (width, height) in pixels


def composition_side(base: AnyPrior) -> int:
    """The longer side, in pixels, of images that a prior samples whole."""
    factor: int = base.tokenizer_info["downsample_factor"]
    return base.config.window * factor


def low_res_ratio(prior: AnyPrior) -> int | None:
    """By how much the images were shrunk that a prior was conditioned on; None for other priors."""
    ratios = [part.ratio for part in prior.conditions.parts if isinstance(part, LowResolution)]
    return ratios[0] if ratios else None


def upscale_ratio(upscaler: AnyPrior) -> int:
    """How many times a prior can enlarge a stage; raises ConfigError for one that cannot."""
    ratio = low_res_ratio(upscaler)
    if ratio is None or ratio < 2:
        names = ", ".join(part.name for part in upscaler.conditions.parts)
        raise ConfigError(
            f"The prior that enlarges was trained with {names}; it must have been trained with the "
            f"condition {LOW_RES} of a ratio of 2 or more."
        )
    return ratio


def stage_sizes(target: Size, side: int, ratio: int) -> list[Size]:
    """The sizes of all stages, the target last; they have its aspect, and the first's longer side
    is `side`.

    Each is at most `ratio` times the one before. Raises ConfigError where the target is no larger
    than the first.
    """
    longer = max(target)
    if longer <= side:
        raise ConfigError(
            f"{target[0]}x{target[1]} pixels are not larger than the {side} that the first prior "
            "samples whole. Ask for more, or leave out the prior that enlarges."
        )
    sizes, reached = [], side
    while reached < longer:
        width, height = (max(1, round(each * reached / longer)) for each in target)
        sizes.append((width, height))
        reached *= ratio
    return [*sizes, target]
