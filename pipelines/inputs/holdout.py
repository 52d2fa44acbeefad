"""Which samples are held out for validation: decided by the key alone, for ever."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def held_out(key: str, share: float) -> bool:
    """Whether the sample called `key` belongs to the held-out `share` (0 .. 1) of all keys.

    A larger share holds out the same keys and more; other samples coming or going change nothing.
    """
    return bool(which_held_out([key.encode()], share)[0])


def which_held_out(keys: Iterable[bytes], share: float) -> NDArray[np.bool_]:
    """`held_out` of many keys in UTF-8, (N,): about 0.6 us each, nearly all of it sha256 itself."""
    sha256 = hashlib.sha256
    places = np.frombuffer(b"".join([sha256(key).digest()[:4] for key in keys]), ">u4")
    return places < share * 2**32
