"""Samples of several solvers from the same initial noise, and the reference solution: the gallery of a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.report.html.page import Gallery, Shown, TimeGrid
from sde_diffusion.report.share_of_work import part_of
from sde_diffusion.sampling.reference_solution import rms
from sde_diffusion.sampling.reference_states import reference_path
from sde_diffusion.sampling.sampler import noise_for
from sde_diffusion.sampling.settings import SamplingSettings, seeds_of
from solvers import Solver, solve
from solvers.conditions import cut
from solvers.errors import InputError

IMAGES, POINTS = 12, 240  # samples shown
_VALUES = 2**24  # values of the states that are kept at once
_DRAWN = 48  # times at which the reference path of points is drawn


def default_shown(shape: tuple[int, ...]) -> int:
    """Samples that a report shows: 240 of points and vectors, 12 of images and signals.

    >>> default_shown((2,)), default_shown((1, 8, 8))
    (240, 12)
    """
    return POINTS if len(shape) == 1 else IMAGES


@torch.no_grad()
def same_noise_gallery(
    model: ScoreModel,
    ways: Mapping[tuple[str, int], Solver | SamplingSettings],
    *,
    n: int | None = None,
    seed: int = 0,
    rows: int | None = None,
    condition: Mapping[str, Any] | None = None,
    reference_steps: int = 400,
    on_share: Callable[[float], None] | None = None,
) -> Gallery:
    """The samples of solvers from the same initial noise, and their distance to the reference solution over time.

    Args:
        model: any ScoreModel with a shape.
        ways: by (name, NFE), solvers that run with so many evaluations, or settings with a grid or noise of their own.
        n: samples; by the kind of data.
        seed: sample k starts from the noise that ``sample`` gives it.
        rows: rows of the condition; the first n are taken. n by default.
        condition: conditions of the network.
        reference_steps: steps of the reference solution.
        on_share: called with the share done.

    Raises:
        ValueError: the model has no shape.
        FloatingPointError: the model does not return numbers.
    """
    if model.shape is None:
        raise InputError("the model does not know the shape of a sample: set model.shape")
    n = default_shown(model.shape) if n is None else n
    if rows is not None:
        n = min(n, rows)
    seeds = seeds_of(seed, n)
    x1 = noise_for(model, model.shape, seeds)
    given = cut(model.bind(dict(condition or {})), rows or n, torch.arange(n, device="cpu"), x1.device)
    runs: dict[tuple[str, int], Any] = {}
    missing: dict[tuple[str, int], str] = {}
    chosen = {key: _settings(way, key[1], seed) for key, way in ways.items()}
    deterministic = any(not settings.chosen(model).stochastic for settings in chosen.values())
    cost = 3.0 * reference_steps if deterministic else 0.0
    total = cost + sum(nfe for _, nfe in ways)
    done = 0.0
    for (name, nfe), settings in chosen.items():
        try:
            run = settings.resolve(model, model.shape)
        except ValueError as refused:  # the NFE does not suffice for one step, or is not the one it was tuned for
            missing[name, nfe] = str(refused)
            continue
        keep = not run.solver.adaptive and not run.solver.stochastic
        # A solver of noise has a path too, which is drawn for points.
        keep = keep or (not run.solver.adaptive and model.shape == (2,))
        out = solve(
            run.process(model, given), x1, solver=run.solver, nfe=run.nfe, grid=run.times, seeds=seeds, trajectory=keep
        )
        if bool(out.x.isfinite().all()):
            runs[name, nfe] = run, out
        else:
            missing[name, nfe] = "its samples are not finite"
        done += nfe
        if on_share is not None:
            on_share(done / total)
    compared = {key: out for key, (run, out) in runs.items() if not run.solver.stochastic}
    every = sorted({t for out in compared.values() if out.trajectory is not None for t in out.times.tolist()} | {0.0})
    drawn = torch.linspace(1, 0, _DRAWN, dtype=torch.float64, device="cpu").tolist() if model.shape == (2,) else []
    reference, path = None, None
    deviations: dict[tuple[str, int], Tensor] = {}
    if compared:
        share = part_of(None if on_share is None else lambda s, _=None: on_share(s), done / total, cost / total)
        states = _reference_states(model, x1, every, drawn, compared, reference_steps, given, share)
        reference, path, deviations = states
    shown = []
    for (name, nfe), (run, out) in runs.items():
        x = model.units.to_data(out.x)
        error = None if run.solver.stochastic or reference is None else rms((x.double() - reference).cpu())
        points = model.shape == (2,) and out.trajectory is not None
        shown.append(
            Shown(
                name,
                nfe,
                x.cpu(),
                error,
                None if out.trajectory is None else out.times.cpu(),
                deviations.get((name, nfe)),
                model.units.to_data(out.trajectory).cpu() if points else None,
            )
        )
    noise = (x1 / model.sde.prior_std()).cpu()
    return Gallery(noise, None if reference is None else reference.cpu(), shown, missing, path)


def _reference_states(
    model: ScoreModel,
    x1: Tensor,
    every: list[float],
    drawn: list[float],
    compared: Mapping[tuple[str, int], Any],
    steps: int,
    given: dict[str, Any],
    on_share: Callable[[float], None] | None,
) -> tuple[Tensor, Tensor | None, dict[tuple[str, int], Tensor]]:
    """The endpoints of the reference solution, its path, and the distance of each run from it at each time."""
    times = every + drawn
    size = max(1, _VALUES // (len(times) * x1[0].numel()))
    parts = torch.split(torch.arange(len(x1), device="cpu"), size)
    ends, paths = [], []
    deviations: dict[tuple[str, int], list[Tensor]] = {}
    for k, part in enumerate(parts):
        condition = cut(given, len(x1), part, x1.device)
        share = part_of(None if on_share is None else lambda s, _=None: on_share(s), k / len(parts), 1 / len(parts))
        states = reference_path(model, x1[part.to(x1.device)], times, steps=steps, on_share=share, **condition)
        ends.append(model.units.to_data(states[every.index(0.0)]))
        paths.append(model.units.to_data(states[len(every) :]))
        for key, out in compared.items():
            if out.trajectory is None:
                continue
            at = states[[every.index(t) for t in out.times.tolist()]]
            there = model.units.to_data(out.trajectory[:, part.to(x1.device)].double())
            gap = (there - model.units.to_data(at)).flatten(2).square().mean(2).sqrt()
            deviations.setdefault(key, []).append(gap.cpu())
    joined = {key: torch.cat(found, 1) for key, found in deviations.items()}
    return torch.cat(ends), torch.cat(paths, 1).cpu() if drawn else None, joined


def _settings(way: Solver | SamplingSettings, nfe: int, seed: int) -> SamplingSettings:
    return replace(way, seed=seed) if isinstance(way, SamplingSettings) else SamplingSettings(way, nfe, seed=seed)


def time_grids(model: ScoreModel, ways: Mapping[tuple[str, int], Solver | SamplingSettings]) -> list[TimeGrid]:
    """The time grids of solvers with fixed steps, by (name, NFE); those that cannot run are left out."""
    if model.shape is None:
        return []
    found = []
    for (name, nfe), way in ways.items():
        settings = _settings(way, nfe, 0)
        if settings.chosen(model).adaptive:
            continue
        try:
            times = settings.resolve(model, model.shape).times
        except ValueError:
            continue
        half = model.sde.half_log_snr(times).double().tolist()
        values = [v if abs(v) < 1e6 else None for v in half]
        found.append(TimeGrid(name, nfe, [float(f"{t:.8g}") for t in times.tolist()], values))
    return found
