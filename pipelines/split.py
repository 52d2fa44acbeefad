"""Which samples are held out for validation: decided by the key alone, for ever."""

from __future__ import annotations

import hashlib


def held_out(key: str, share: float) -> bool:
    """Whether the sample called `key` belongs to the held-out `share` (0 .. 1) of all keys.

    A larger share holds out the same keys and more; other samples coming or going change nothing.
    """
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) < share * 2**32
