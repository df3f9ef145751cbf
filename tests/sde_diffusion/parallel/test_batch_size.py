from __future__ import annotations

import pytest
import torch

from sde_diffusion.parallel.batch_size import largest_batch


@pytest.mark.parametrize(("limit", "most", "expected"), [(1000, 4096, 256), (1000, 500, 500), (5, 4096, 2), (1, 64, 1)])
def test_the_batch_doubles_until_memory_runs_out(limit: int, most: int, expected: int) -> None:
    tried: list[int] = []

    def run(size: int) -> None:
        tried.append(size)
        if size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert largest_batch(run, most) == expected
    assert max(tried) <= max(2 * limit, 16) and len(tried) < 12


def test_no_sample_fits() -> None:
    def run(size: int) -> None:
        raise MemoryError

    with pytest.raises(ValueError, match="not even one sample"):
        largest_batch(run, 8)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def run(size: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        largest_batch(run, 8)
