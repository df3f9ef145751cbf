"""The batch size that memory allows: doubled until it runs out."""

from __future__ import annotations

from collections.abc import Callable

import torch

from solvers.errors import InputError

FIRST = 16


def largest_batch(run: Callable[[int], object], most: int, first: int = FIRST) -> int:
    """The largest batch size, of first, 2 first, 4 first, ..., that runs with room for twice as many samples.

    Args:
        run: does the work for a batch size; ``torch.OutOfMemoryError`` or ``MemoryError`` says that it is too large.
        most: the largest batch size of use; a half of what fits is not asked for where this one fits.
        first: the smallest batch size.

    Raises:
        ValueError: not even one sample fits.

    >>> def run(size):
    ...     if size > 300:
    ...         raise MemoryError
    >>> largest_batch(run, 1000), largest_batch(run, 100)
    (128, 100)
    """
    size, fits = min(first, most), 0
    while True:
        try:
            run(size)
        except (torch.OutOfMemoryError, MemoryError):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if fits:
                return max(1, fits // 2)
            if size == 1:
                raise InputError("not even one sample fits into memory; use another device") from None
            most, size = size - 1, max(1, size // 2)
            continue
        fits = size
        if size >= most:
            return most
        size = min(2 * size, most)
