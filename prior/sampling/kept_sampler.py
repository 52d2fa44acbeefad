"""KeptSampler: the last static sampler, kept for batches of the same shape and settings."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class KeptSampler:
    """Keeps what was made last: making a static sampler takes memory, and time on a GPU."""

    def __init__(self) -> None:
        self._kept: tuple[Hashable, Any] | None = None

    @contextmanager
    def use(self, key: Hashable, make: Callable[[], T]) -> Iterator[T]:
        """What make() returned for the same key, or returns now.

        Nobody else gets it meanwhile: two threads have one each. It is dropped on an exception.
        """
        kept, self._kept = self._kept, None
        sampler: T | None = kept[1] if kept is not None and kept[0] == key else None
        del kept  # its memory is free before the next one is made
        made = make() if sampler is None else sampler
        yield made
        self._kept = key, made
