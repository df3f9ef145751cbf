"""A pool gives the results of one process, in order, and the errors of its jobs."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from sde_diffusion.parallel.pool import Pool
from sde_diffusion.parallel.processes import Processes
from solvers.errors import InputError

Launch = Callable[[int, Callable[[], Any]], list[Any]]


def worked(jobs: list[int]) -> dict[str, Any] | None:
    """What the first process gets; None on the others, which only work."""
    processes = Processes.join("cpu")
    done: list[int] = []

    def square(k: int) -> tuple[int, int]:
        if k < 0:
            raise InputError(f"no {k}")
        done.append(k)
        return k**2, processes.rank

    with Pool({"square": square}, processes) as pool:
        if pool is None:
            return {"worked": done}
        found = list(pool.map("square", ((k,) for k in jobs)))
        return {"squares": [value for value, _ in found], "ranks": {rank for _, rank in found}, "world": pool.world}


@pytest.mark.parametrize("world", [2, 3])
def test_results_come_in_the_order_of_the_jobs_from_all_processes(launch: Launch, world: int) -> None:
    first, *others = launch(world, lambda: worked(list(range(7))))
    assert first == {"squares": [k**2 for k in range(7)], "ranks": set(range(world)), "world": world}
    assert sorted(k for other in others for k in other["worked"]) == [k for k in range(7) if k % world]


def test_an_error_of_any_job_is_that_of_the_first_process_and_the_others_end(launch: Launch) -> None:
    for jobs in ([0, -1, 2, 3], [-1, 1]):  # on the second process, on the first
        error, other = launch(2, lambda jobs=jobs: worked(jobs))
        assert isinstance(error, InputError) and str(error) == "no -1"
        assert isinstance(other, dict)


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worked([3, 1]) == {"squares": [9, 1], "ranks": {0}, "world": 1}
    assert "WORLD_SIZE" not in os.environ


def test_what_the_first_process_finds_or_raises_is_the_same_for_all(launch: Launch) -> None:
    def job(fails: bool) -> tuple[Any, int]:
        processes = Processes.join("cpu")

        def action() -> dict[str, int]:
            if fails:
                raise InputError(f"process {processes.rank}")
            return {"rank": processes.rank}

        return processes.once(action), processes.world

    assert launch(2, lambda: job(False)) == [({"rank": 0}, 2)] * 2
    assert [str(error) for error in launch(2, lambda: job(True))] == ["process 0"] * 2
