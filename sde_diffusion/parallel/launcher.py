"""The environment variables that a launcher sets for this process; needs no torch."""

from __future__ import annotations

import os


def rank() -> int:
    """The number of this process, from 0; 0 without a launcher.

    >>> rank()
    0
    """
    return int(os.environ.get("RANK", "0"))


def launched() -> int:
    """The number of processes that the launcher started; 1 without a launcher.

    >>> launched()
    1
    """
    return int(os.environ.get("WORLD_SIZE", "1"))
