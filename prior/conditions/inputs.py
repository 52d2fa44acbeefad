"""What the samples of one call of a prior are told, checked, and as the tokens that it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ops.config import ConfigError
from ops.windows import Window
from prior.conditions.contract import Shape
from prior.conditions.frames import in_window
from prior.conditions.joined import Conditions

#: How many axes the entry of one sample has, where it is no grid.
AXES = {"label": 0, "place": 1, "crop": 1, "boxes": 2, "keypoints": 2}
GRID_AXES = 2
WHOLE = (0.0, 0.0, 1.0, 1.0)

Prefix = Callable[[Window], Tensor]
"""The condition's tokens (P, C) before a window of the canvas."""


class ConditionInputs:
    """Entries for each of the samples that are asked for, about a canvas (rows, columns).

    They are those of prior.conditions.frames, of all samples or one for all. What follows from the
    canvas may be left out: `place` of a whole grid, `crop` of a whole picture, `known` where the
    codes that are not known are -1. Conditions of which no entry is there tell nothing.
    Raises ConfigError for entries that the prior was not trained with, or that cannot be.
    """

    def __init__(
        self,
        conditions: Conditions,
        condition_inputs: Mapping[str, Any],
        chosen: Sequence[int],
        canvas: Shape,
    ) -> None:
        self.conditions, self.canvas = conditions, canvas
        self._chosen = list(chosen)
        self._entries = {
            name: self._of_each(name, value)
            for name, value in condition_inputs.items()
            if value is not None
        }
        self._add_what_follows()
        for part in conditions.parts:
            missing = [name for name in part.entries if name not in self._entries]
            if missing and len(missing) < len(part.entries):
                raise ConfigError(
                    f"The condition {part.name!r} is told by {' and '.join(part.entries)}; "
                    f"{' and '.join(missing)} is missing."
                )
        conditions.tokens_of_what_is_there(self._entries, len(self._chosen), canvas)  # or raises

    def of(self, together: Sequence[int]) -> dict[str, Tensor]:
        """The entries of a whole batch of samples; those nobody asked for are told somebody's."""
        places = [self._chosen.index(sample) for sample in together if sample in self._chosen]
        own = {self._chosen[place]: place for place in places}
        rows = [own.get(sample, places[0]) for sample in together]
        return {name: value[rows] for name, value in self._entries.items()}

    def _of_each(self, name: str, value: Any) -> Tensor:
        """An entry with a row for each sample."""
        if name not in self.conditions.entries:
            known = ", ".join(self.conditions.entries) or "nothing"
            raise ConfigError(
                f"This prior was trained without {name!r}; what it can be told is {known}."
            )
        entries, count = torch.as_tensor(value).cpu(), len(self._chosen)
        axes = AXES.get(name, GRID_AXES)
        if entries.ndim == axes:
            return entries.expand(count, *entries.shape)
        if entries.ndim != axes + 1 or len(entries) != count:
            raise ConfigError(
                f"{name!r} is {tuple(entries.shape)} for {count} samples: give one for all, with "
                f"{axes} axes, or one each."
            )
        return entries

    def _add_what_follows(self) -> None:
        entries, count = self._entries, len(self._chosen)
        if "codes" in entries:
            entries.setdefault("known", entries["codes"] >= 0)
        if "boxes" in entries:
            entries.setdefault("crop", torch.tensor(WHOLE).expand(count, -1))
        if "place" in self.conditions.entries:
            entries.setdefault("place", torch.tensor([0, 0, *self.canvas]).expand(count, -1))


def grid_prefix(tokens: Tensor, window: int) -> Prefix:
    """The prefix of a condition that is a grid itself, tokens (P, rows, columns): its window; of
    several grids, (P, G, rows, columns), one after another.

    Where the canvas is smaller than window x window, the last row and column are repeated, so
    that the prefix has the length that the prior was trained on.
    """
    last_row, last_column = tokens.shape[-2] - 1, tokens.shape[-1] - 1

    def of_window(place: Window) -> Tensor:
        side = torch.arange(window, device=tokens.device)
        rows = (place.row + side).clamp(max=last_row)
        columns = (place.column + side).clamp(max=last_column)
        return tokens[..., rows[:, None], columns].flatten(1)

    return of_window


def window_prefix(
    conditions: Conditions, batch: Mapping[str, Tensor], count: int, canvas: Shape, side: int
) -> Prefix:
    """The tokens (count, P + G * side**2) before each window, at most side x side, of a canvas.

    Grids slide with the window; what is told by where things lie is told by where they lie in it.
    """
    whole = conditions.tokens_of_what_is_there(batch, count, canvas)
    ungridded = whole[:, : conditions.length]
    grids = whole[:, conditions.length :].unflatten(1, (conditions.num_grids, *canvas))
    sliding = grid_prefix(grids, side) if conditions.num_grids else None
    plain = [part for part in conditions.parts if not part.is_grid]
    moves = any(part.in_frame and part.entries[0] in batch for part in plain)

    def of_window(window: Window) -> Tensor:
        tokens = ungridded
        if moves:
            seen = in_window(batch, window, canvas, (side, side))
            # Their part of the vocabulary comes first, so they need not know of the grids.
            tokens = Conditions(plain, conditions.codebook_size).tokens_of_what_is_there(
                seen, count, canvas
            )
        return tokens if sliding is None else torch.cat([tokens, sliding(window)], dim=1)

    return of_window


def canvas_tokens(
    conditions: Conditions, batch: Mapping[str, Tensor], count: int, canvas: Shape, side: int
) -> Tensor:
    """Tokens (count, P + G * rows * columns) beside a whole canvas, for a prior without windows.

    Of canvases that are smaller than the side x side codes it was trained on, the frame is not.
    """
    frame = (max(side, canvas[0]), max(side, canvas[1]))
    seen = in_window(batch, Window(0, 0, *canvas), canvas, frame)
    return conditions.tokens_of_what_is_there(seen, count, canvas)
