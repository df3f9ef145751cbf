"""`sdediff doctor`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Annotated

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from sde_diffusion.cli.errors import echo
from sde_diffusion.cli.options import DataDirOption, DeviceOption, ModelOption, RunArgument, complete_data, model_at
from sde_diffusion.cli.output import JsonOption
from sde_diffusion.data import load_data
from sde_diffusion.interop.doctor import Diagnosis, examine
from sde_diffusion.report import terminal
from sde_diffusion.sampling.devices import device_for
from sde_diffusion.sampling.sampler import MOST_SAMPLES
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.storage.locate import recorded_data, recorded_layout
from solvers.errors import InputError, require_whole

WEAK = 1.1  # ratio of the model's error to the error of a linear denoiser

EXAMPLES = """
\b
Examples:
sdediff doctor                             latest run, or bundled, on its data
sdediff doctor --model mine.py:model --data cats.npy
sdediff doctor --model diffusers:my-pipeline --data cifar10
"""


def doctor(
    run: RunArgument = None,
    model: ModelOption = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Held-out data: a data set or a path, as for train.",
            show_default="that of the run",
            autocompletion=complete_data,
        ),
    ] = None,
    data_dir: DataDirOption = None,
    n: Annotated[int, typer.Option("--n", help="Number of data samples.")] = 128,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the noise.")] = 0,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a model for common mistakes: parametrization, time, schedule, data range, mode, dtype.

    The network denoises held-out data at several noise levels. The exit code is 1 if a mistake was found.
    """
    require_whole("--n", n, 1, MOST_SAMPLES)
    stored = model_at(run, model)
    name = data or (recorded_data(stored.data["name"], "--data") if stored.data.get("name") else None)
    if name is None:
        raise InputError(f"{stored.path} does not say what it was trained on; name held-out data: --data digits")
    found = load_data(name, data_dir, labels=False, layout=recorded_layout(stored.data, name))
    if tuple(found.shape) != (stored.sample_shape or tuple(found.shape)):
        raise InputError(f"samples of {name} have shape {tuple(found.shape)}, the model's {stored.sample_shape}")
    held = found.batch(torch.linspace(0, len(found) - 1, min(len(found), n), dtype=torch.float64).long())
    network = load(stored, device=str(device_for(device or "auto")))
    result = examine(network, network.to_latents(held.to(network.device)).cpu(), seed=seed)
    if as_json:
        typer.echo(json.dumps(_plain(result), indent=2))
    else:
        echo(f"model {stored.path}, {len(held)} samples of {name}")
        _show(result)
    if not result.healthy:
        raise typer.Exit(1)


def _show(result: Diagnosis) -> None:
    """Print what was measured and found."""
    table = Table("sigma / alpha", "error / linear", box=SIMPLE_HEAD, pad_edge=False)
    for rho, ratio in zip(result.rho, result.ratio, strict=True):
        table.add_row(f"{rho:.3g}", f"{ratio:.3g}")
    terminal.stdout().print(table)
    if result.healthy:
        echo("no fault found: no usual mistake explains its answers better than what it is declared to be")
        if weak := [f"{rho:.3g}" for rho, q in zip(result.rho, result.ratio, strict=True) if q > WEAK]:
            echo(f"the network denoises worse than a linear denoiser at sigma / alpha = {', '.join(weak)}")
    for finding in result.findings:
        echo(f"{finding.fault}: {finding.measured}")
        echo(f"  likely cure: {finding.cure}")


def _plain(result: Diagnosis) -> dict[str, object]:
    """The diagnosis as JSON; non-finite values are null."""

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "healthy": result.healthy,
        "findings": [asdict(finding) for finding in result.findings],
        "levels": [{"rho": r, "ratio": finite(q)} for r, q in zip(result.rho, result.ratio, strict=True)],
        "readings": {name: finite(score) for name, score in result.readings.items()},
    }
