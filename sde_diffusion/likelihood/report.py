"""Likelihood of held-out data under a stored model: nats, bits per dimension, their limits, terms of the bound.

Images of bytes are dequantised uniformly over their levels: 17 of them if the bytes are those of 17 equally spaced
levels, as in the bundled digits. Means are over the data, with their standard errors.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sde_diffusion.data import Conditions, Data
from sde_diffusion.likelihood.dequantization import bits_per_dim, dequantise
from sde_diffusion.likelihood.flow import EXACT_LIMIT, LogLikelihood, log_likelihood
from sde_diffusion.likelihood.lower_bound import Bound, elbo
from sde_diffusion.models.autoencoder import AutoencoderModel
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.parallel.pool import Pool
from sde_diffusion.parallel.processes import Processes
from sde_diffusion.report.pictures import save_figure
from sde_diffusion.sampling.given.conditions import GivenCondition
from sde_diffusion.sampling.guidance_settings import GuidanceSettings, guided_model
from sde_diffusion.sampling.settings import seeds_of
from sde_diffusion.storage.checkpoint import StoredModel, load
from sde_diffusion.storage.locate import name_of
from sde_diffusion.training.autoencoding.latents import latents_of
from solvers.errors import InputError, require_whole
from solvers.planning import MOST

T = TypeVar("T")
OWN = "own"  # labels: those of the data


def levels_of(x: Tensor) -> int:
    """The number of equally spaced levels that bytes take: the fewest, 2 or more, that all of them lie on.

    >>> levels_of(torch.tensor([0, 64, 128, 191], dtype=torch.uint8))
    5
    """
    present = torch.unique(x).double()
    for bins in range(2, 256):
        step = 255 / (bins - 1)
        if bool((((present / step).round() * step).round() == present).all()):
            return bins
    return 256


def chosen_rows(data: Data, n: int, seed: int) -> Tensor:
    """The rows (n,) of the samples that a seed chooses.

    Raises:
        ValueError: n is not between 1 and the size of the data.
    """
    if not 1 <= n <= len(data):
        raise InputError(f"{data.name} has {len(data)} samples; n must be from 1 to {len(data)}, got {n}")
    require_whole("seed", seed, 0, 2**31 - 1)
    return torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:n]


def likelihood_data(data: Data, n: int, seed: int) -> tuple[Tensor, int | None]:
    """n samples chosen by the seed as float64 (n, ...), and the levels they had; None for real numbers.

    Raises:
        ValueError: n is not between 1 and the size of the data.
    """
    chosen = chosen_rows(data, n, seed)
    if data.x.dtype != torch.uint8:
        return data.batch(chosen).double(), None
    bins = levels_of(data.x)
    levels = (data.x[chosen].double() * ((bins - 1) / 255)).round()
    return dequantise(levels, bins, seeds=seeds_of(seed, n)), bins


def measure(
    stored: StoredModel,
    data: Data,
    *,
    n: int = 64,
    trace: str | None = None,
    probe: str = "rademacher",
    n_probes: int = 2,
    tolerance: float = 1e-5,
    solver: str = "rk45",
    steps: int | None = None,
    t_min: float = 1e-5,
    elbo_steps: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    labels: Sequence[int] | str | None = None,
    guidance: GuidanceSettings | None = None,
    condition_noise: float = 0.0,
    progress: Callable[[float], None] | None = None,
    processes: Processes | None = None,
) -> tuple[dict[str, Any], Bound | None]:
    """The results as JSON, with the bound if elbo_steps is given.

    The arguments are those of ``log_likelihood``, at t_min and at 10 t_min; trace None is exact up to the limit.

    Labels are classes that the samples take in turn, or "own" for those of the data. Conditions are those of the data,
    condition images at the noise level ``condition_noise``. With guidance the likelihood is
    that of the guided probability flow, whose samples the guided model draws.

    Processes share the batches; all but the first get an empty report.

    Raises:
        ValueError: arguments out of range or in conflict, see the message.
    """
    for name, value, least, most in (
        ("batch_size", batch_size, 1, 2**53),
        ("n_probes (--probes)", n_probes, 1, 100_000),
        ("steps", 1 if steps is None else steps, 1, MOST),
        ("elbo_steps (--elbo)", 2 if elbo_steps is None else elbo_steps, 2, MOST),
    ):
        require_whole(name, value, least, most)
    model = load(stored, device=str(device)).requires_grad_(False)
    decoder = model.decoder
    of_latents = isinstance(decoder, AutoencoderModel) and data.shape == model.sample_shape
    if isinstance(decoder, AutoencoderModel) and of_latents:
        data = latents_of(decoder, data)
    x, bins = likelihood_data(data, n, seed)
    own = isinstance(labels, str)
    given = _own_labels(data, chosen_rows(data, n, seed)) if isinstance(labels, str) else labels
    guidance = guidance or GuidanceSettings()
    if (all_given := data.condition) is not None:
        some = Conditions(all_given.name, all_given.values[chosen_rows(data, n, seed)], all_given.kind)
        guidance = replace(guidance, condition=GivenCondition(some, condition_noise, seed))
    model, condition = guided_model(model, n, given, guidance)
    conditional = bool(condition) or not guidance.plain
    trace = trace or ("exact" if x[0].numel() <= EXACT_LIMIT else "hutchinson")
    seeds = seeds_of(seed, n)

    main = processes is None or processes.main

    def tell(start: int, share: float) -> None:
        if progress is not None:
            progress((start + share * min(batch_size, n - start)) / n)

    def batch(start: int) -> tuple[LogLikelihood, Bound | None]:
        rows = slice(start, start + batch_size)
        x0 = x[rows].to(device)
        part = {name: value[rows].to(device) for name, value in condition.items()}
        likelihood = log_likelihood(
            model, x0, trace=trace, probe=probe, n_probes=n_probes, seeds=seeds[rows], tolerance=tolerance,
            solver=solver, steps=steps, t_min=t_min, other_t_min=min(10 * t_min, 0.5),
            progress=main and partial(tell, start), **part,
        )  # fmt: skip
        if elbo_steps is None:
            return _on_cpu(likelihood), None
        return _on_cpu(likelihood), _on_cpu(
            elbo(model, x0.to(_dtype(model)), steps=elbo_steps, seed=seed, first=start, **part)
        )

    parts, bounds = [], []
    with Pool({"batch": batch}, processes) as pool:
        if pool is None:
            return {}, None
        for likelihood, terms in pool.map("batch", ((start,) for start in range(0, n, batch_size))):
            parts.append(likelihood)
            bounds += [] if terms is None else [terms]
            if progress is not None:
                progress(min(len(parts) * batch_size, n) / n)
    report = {
        "checkpoint": {"path": name_of(stored), "sha256": stored.sha256},
        "data": {"name": data.name, "n": n, "fingerprint": data.fingerprint, "seed": seed},
        "solver": {"name": solver, "tolerance": tolerance, "steps": steps},
        **({**guidance.record(given), **({"labels": OWN} if own else {})} if conditional else {}),
        **_summary(parts, bins, probe),
    }
    bound = _joined(bounds)
    if decoder is not None:
        report["latent"] = {"shape": list(x.shape[1:]), "of_data": of_latents}
    if bound is not None:
        report["elbo"] = {
            "steps": elbo_steps,
            "variance": bound.variance,
            "nats": _mean(bound.nats),
            "prior": float(bound.prior.mean()),
            "decoder": float(bound.decoder.mean()),
            "sum_of_steps": float(bound.steps.sum(0).mean()),
            "bits_per_dim": None if bins is None else _mean(bits_per_dim(bound, bins).bits),
        }
    return report, bound


def _own_labels(data: Data, rows: Tensor) -> list[int]:
    """The labels of some samples of the data."""
    if data.labels is None:
        raise InputError(f"--label own takes the labels of the data, and {data.name} has none; name a class")
    return [int(label) for label in data.labels[rows]]


def _summary(parts: list[LogLikelihood], bins: int | None, probe: str) -> dict[str, Any]:
    nats, error, truncation = (
        torch.cat([c.double().cpu() for c in column])
        for column in zip(*[(p.nats, p.standard_error, _known(p.truncation)) for p in parts], strict=True)
    )
    first = parts[0]
    summary: dict[str, Any] = {
        "nats": _mean(nats),
        "trace": first.trace,
        # Pooled over the samples, each with its own degrees of freedom.
        "trace_standard_error": _finite(float(error.square().mean().sqrt())),
        "trace_degrees_of_freedom": None
        if first.degrees_of_freedom is None
        else first.degrees_of_freedom * int(error.isfinite().sum()),
        "t_min": first.t_min,
        "rho_min": first.rho_min,
        "nats_at_10_t_min": _mean(nats + truncation),
        "nfe": float(torch.cat([p.nfe for p in parts]).double().mean()),
        "divergences": float(torch.cat([p.divergences for p in parts]).double().mean()),
        "not_finite": int(nats.isnan().sum()),
        "note": first.note,
    }
    if bins is not None:
        bits = bits_per_dim(nats, bins, dim=first.dim)
        settings = {name: value for name, value in asdict(bits).items() if name != "bits"}
        summary["bits_per_dim"] = {**_mean(bits.bits), **settings}
    return summary


def _known(truncation: Tensor | None) -> Tensor:
    assert truncation is not None  # two times were requested
    return truncation


def _dtype(model: ScoreModel) -> torch.dtype:
    return model.state_dtype if model.dtype else torch.float64


def _joined(bounds: list[Bound]) -> Bound | None:
    if not bounds:
        return None
    first = bounds[0]
    joined = {
        name: torch.cat([getattr(b, name) for b in bounds], dim=-1).cpu()
        for name in ("nats", "standard_error", "prior", "steps", "decoder")
    }
    return Bound(**joined, times=first.times, nfe=first.nfe, dim=first.dim, variance=first.variance)


def _on_cpu(found: T) -> T:
    """The same results with their tensors on the CPU, for the way to another process."""
    held = {f.name: getattr(found, f.name) for f in fields(found)}  # type: ignore[arg-type]
    moved = {name: value.cpu() for name, value in held.items() if isinstance(value, Tensor)}
    return replace(found, **moved)  # type: ignore[type-var]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean(values: Tensor) -> dict[str, float | None]:
    """Mean over the samples that have a value, and its standard error."""
    values = values[values.isfinite()].double()
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {"mean": _finite(float(values.mean())), "standard_error": _finite(error)}


def table_of_terms(bound: Bound, rows: int = 10) -> list[tuple[str, float]]:
    """L_0, the sums of L_{i-1} over equal ranges of time, and L_T: names and means over the samples, nats."""
    table = [("L_0", float(bound.decoder.mean()))]
    steps = bound.steps.mean(1)
    for part, times in zip(steps.tensor_split(rows), bound.times.tensor_split(rows), strict=True):
        if len(part):
            table.append((f"L, t = {float(times[0]):.3f} to {float(times[-1]):.3f}", float(part.sum())))
    return [*table, ("L_T", float(bound.prior.mean()))]


def plot_terms(path: str | os.PathLike[str] | Path, bound: Bound) -> None:
    """Write the terms L_{i-1} over time, mean over the samples, to a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import; needs no display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="tight")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(bound.times.cpu().numpy(), bound.steps.mean(1).clamp_min(1e-12).cpu().numpy(), linewidth=1)
    axes.set(xlabel="t", ylabel="nats", yscale="log", title=f"terms of the bound, T = {len(bound.times) + 1}")
    axes.grid(alpha=0.3)
    save_figure(path, figure, dpi=100)


def headline(report: Mapping[str, Any]) -> list[str]:
    """The results as readable lines."""

    def shown(value: Mapping[str, Any]) -> str:
        error = value["standard_error"]
        if value["mean"] is None:
            return "is not finite for any sample:"
        return f"{value['mean']:.4f}" + ("" if error is None else f" +- {error:.4f}")

    lines = [f"log-likelihood {shown(report['nats'])} nats, {report['data']['n']} samples of {report['data']['name']}"]
    lines.append(f"at t_min = {report['t_min']:g}; at ten times that {shown(report['nats_at_10_t_min'])} nats")
    if "bits_per_dim" in report:
        bits = report["bits_per_dim"]
        lines.append(f"bits/dim {shown(bits)}, {bits['bins']} levels, {bits['dequantisation']} dequantisation")
    error = report["trace_standard_error"]
    known = (
        ""
        if error == 0
        else ", of unknown error"
        if error is None
        else f", standard error {error:.3g} nats a sample ({report['trace_degrees_of_freedom']} degrees of freedom in "
        "all samples together)"
    )
    lines.append(f"trace {report['trace']}{known}; {report['nfe']:.0f} evaluations for both times")
    if "elbo" in report:
        lines.append(f"ELBO {shown(report['elbo']['nats'])} nats, {report['elbo']['steps']} steps")
    if "latent" in report:
        shape = tuple(report["latent"]["shape"])
        lines.append(
            f"these are nats of the latents z, of shape {shape}, not of the data x: for a decoder p(x | z) and a "
            "posterior q(z | x), E_q[log p(x | z) + log p(z)] + H(q) is a lower bound of log p(x)"
        )
    return lines + ([report["note"]] if report["note"] else [])
