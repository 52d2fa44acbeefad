"""Fields: what is read of each image's sample or row, apart from the image."""

from __future__ import annotations

from dataclasses import dataclass, field

from ops.config import ConfigError
from pipelines.inputs.carried import Carry


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Which columns of a table or a list, or members of a tar sample, are read."""

    labels: bool = False  # the classes
    image_column: str | None = None  # None: the only likely one
    label_column: str | None = None  # None: the first of the usual names
    carry: Carry = field(default_factory=Carry)  # what goes into a store's index

    def __post_init__(self) -> None:
        if self.image_column is not None and "#" in self.image_column:
            raise ConfigError("--image-column: a name with # cannot be used. Rename the column.")

    @property
    def description(self) -> str:
        """A text that differs where listing an archive would give something else."""
        names = self.carry.names
        carried = "all" if names is None else sorted(names)
        return repr((self.labels, self.image_column, self.label_column, carried))
