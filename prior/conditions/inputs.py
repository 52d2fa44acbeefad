"""The condition inputs of one call of a prior: checked, and as the tokens of each window."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ops.config import ConfigError
from ops.windows import Window
from prior.conditions.condition import Shape
from prior.conditions.frames import in_window
from prior.conditions.joined import Conditions

Prefix = Callable[[Window], Tensor]
"""The condition's tokens (P, C) before a window of the canvas."""


class ConditionInputs:
    """Entries for each of the requested samples, about a canvas (rows, columns).

    They are those that the conditions' classes describe, of all samples or one for all. What
    follows from the canvas or from other entries may be left out: see Condition.implied. Conditions
    of which no entry is there are not given. Raises ConfigError for entries that the prior was not
    trained with, of wrong shapes or out of range.
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
        count = len(self._chosen)
        self._entries = {
            name: self._of_each(name, value)
            for name, value in condition_inputs.items()
            if value is not None
        }
        for part in conditions.parts:
            self._entries = {**part.implied(self._entries, count, canvas), **self._entries}
            missing = [name for name in part.entries if name not in self._entries]
            if missing and len(missing) < len(part.entries):
                raise ConfigError(
                    f"The condition {part.name!r} needs {' and '.join(part.entries)}; "
                    f"{' and '.join(missing)} is missing."
                )
        conditions.available_tokens(self._entries, count, canvas)  # or raises

    def of(self, together: Sequence[int]) -> dict[str, Tensor]:
        """The entries of a whole batch of samples; those that were not requested get another's."""
        places = [self._chosen.index(sample) for sample in together if sample in self._chosen]
        own = {self._chosen[place]: place for place in places}
        rows = [own.get(sample, places[0]) for sample in together]
        return {name: value[rows] for name, value in self._entries.items()}

    def _of_each(self, name: str, value: Any) -> Tensor:
        """An entry with a row for each sample."""
        known = self.conditions.entries
        if name not in known:
            names = ", ".join(known) or "none"
            raise ConfigError(f"This prior was trained without {name!r}; its inputs are {names}.")
        entries, count = torch.as_tensor(value).cpu(), len(self._chosen)
        axes = known[name].axes
        if entries.ndim == axes:
            return entries.expand(count, *entries.shape)
        if entries.ndim != axes + 1 or len(entries) != count:
            raise ConfigError(
                f"{name!r} is {tuple(entries.shape)} for {count} samples: give one for all, with "
                f"{axes} axes, or one each."
            )
        return entries


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

    Grids slide with the window; entries that are given in the window's frame, such as boxes, are
    converted to it for each window.
    """
    whole = conditions.available_tokens(batch, count, canvas)
    ungridded = whole[:, : conditions.length]
    grids = whole[:, conditions.length :].reshape(count, conditions.num_grids, *canvas)
    sliding = grid_prefix(grids, side) if conditions.num_grids else None
    plain = [part for part in conditions.parts if not part.is_grid]
    moves = any(
        entry.in_window is not None and name in batch
        for part in plain
        for name, entry in part.entries.items()
    )

    def of_window(window: Window) -> Tensor:
        tokens = ungridded
        if moves:
            cut = in_window(conditions.entries, batch, window, canvas, (side, side))
            # Their part of the vocabulary comes first, whatever grids there are.
            own = Conditions(plain, conditions.codebook_size)
            tokens = own.available_tokens(cut, count, canvas)
        return tokens if sliding is None else torch.cat([tokens, sliding(window)], dim=1)

    return of_window


def canvas_tokens(
    conditions: Conditions, batch: Mapping[str, Tensor], count: int, canvas: Shape, side: int
) -> Tensor:
    """Tokens (count, P + G * rows * columns) for a whole canvas, for a prior without windows.

    The frame is at least the side x side codes that the prior was trained on.
    """
    frame = (max(side, canvas[0]), max(side, canvas[1]))
    cut = in_window(conditions.entries, batch, Window(0, 0, *canvas), canvas, frame)
    return conditions.available_tokens(cut, count, canvas)
