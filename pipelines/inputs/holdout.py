"""Which samples are held out for validation: a function of the key alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.key_hashes import key_hashes


def held_out(key: str, share: float) -> bool:
    """Whether `key` is in the held-out `share` (0 .. 1) of all keys.

    A larger share holds out the same keys and more, whatever other samples there are.
    """
    return bool(which_held_out([key.encode()], share)[0])


def which_held_out(keys: Iterable[bytes], share: float) -> NDArray[np.bool_]:
    """`held_out` of many keys in UTF-8, as a mask (N,)."""
    return held_out_hashes(key_hashes(keys) >> 32, share)


def held_out_hashes(hashes: NDArray[np.integer[Any]], share: float) -> NDArray[np.bool_]:
    """`held_out` of the keys whose hashes (N,) begin with these four bytes, as a mask (N,)."""
    return hashes < share * 2**32
