"""`sdediff likelihood`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from sde_diffusion.cli.errors import echo
from sde_diffusion.cli.guidance_options import GuidanceArguments, with_guidance
from sde_diffusion.cli.options import (
    BatchSizeOption,
    DataDirOption,
    DeviceOption,
    ModelOption,
    RunArgument,
    complete_data,
    complete_solver,
    model_at,
    refuse,
)
from sde_diffusion.data import NAMES, load_data
from sde_diffusion.files.writing import new_folder, require_new, write_file
from sde_diffusion.likelihood.divergence import PROBES
from sde_diffusion.likelihood.flow import EXACT_LIMIT, TRACES
from sde_diffusion.likelihood.report import OWN, headline, measure, plot_terms, table_of_terms
from sde_diffusion.parallel.processes import Processes
from sde_diffusion.report import terminal
from sde_diffusion.report.share_of_work import share_bar
from sde_diffusion.sampling.devices import device_for
from sde_diffusion.storage.atomic_folder import FORMAT, to_json
from sde_diffusion.storage.locate import recorded_data, recorded_layout
from solvers import find
from solvers.errors import InputError

EXAMPLES = """
\b
Examples:
sdediff likelihood                         latest run, or bundled model
sdediff likelihood runs/moons-vp --n 1000
sdediff likelihood --trace hutchinson --probes 8
sdediff likelihood --elbo 1000 --out bounds   and the bound of DDPM
sdediff likelihood runs/mnist-vp --label own   given the data's labels
"""


@with_guidance
def likelihood(
    ctx: typer.Context,
    run: RunArgument = None,
    model: ModelOption = None,
    n: Annotated[int, typer.Option("--n", help="Number of data samples.")] = 64,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help=f"Data: {', '.join(NAMES)}; or the path of an .npy or .npz file or a folder of images.",
            show_default="what the model was trained on",
            autocompletion=complete_data,
        ),
    ] = None,
    data_dir: DataDirOption = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            help="Split of the data: train, or test, which is held out.",
            show_default="test; train for a path",
        ),
    ] = None,
    trace: Annotated[
        str | None,
        typer.Option(
            "--trace",
            help=f"Trace of the Jacobian: {' or '.join(TRACES)}.",
            show_default=f"exact up to {EXACT_LIMIT} values",
        ),
    ] = None,
    probe: Annotated[
        str, typer.Option("--probe", help=f"Probe vectors of hutchinson: {' or '.join(PROBES)}.")
    ] = "rademacher",
    probes: Annotated[
        int, typer.Option("--probes", help="Number of probes for each sample; the standard error needs at least two.")
    ] = 2,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Tolerance of an adaptive solver, per step and value.")
    ] = 1e-4,
    solver: Annotated[
        str,
        typer.Option(
            "--solver", help="rk23, rk45, tsit5; or adams, heun with --steps.", autocompletion=complete_solver
        ),
    ] = "rk45",
    steps: Annotated[
        int | None, typer.Option("--steps", help="Number of steps of a fixed-step solver.", show_default=False)
    ] = None,
    t_min: Annotated[
        float, typer.Option("--t-min", help="Start time of the flow; the likelihood from ten times this is also shown.")
    ] = 1e-5,
    elbo: Annotated[
        int | None,
        typer.Option(
            "--elbo",
            help="Also compute the variational bound of a discrete process with this number of steps.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of data selection, dequantisation and probes.")] = 0,
    batch_size: BatchSizeOption = 64,
    device: DeviceOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder for likelihood.json, and elbo.png with --elbo.", show_default="nothing is written"
        ),
    ] = None,
    *,
    asked: GuidanceArguments,
) -> dict[str, Any]:
    """Measure the log-likelihood of data under a trained model.

    Integrates the probability-flow ODE. The unit is nats and, for images, also bits per dimension. --label own
    conditions each sample on its label in the data; --condition names one condition for each sample, in their order.
    """
    processes = Processes.join(device or "auto")
    if out is not None:
        require_new(out)  # fails before the computation starts
    stored = model_at(run, model, asked.labelled)
    name = data or stored.data.get("name")
    if name is None:
        raise InputError(f"{stored.path} does not say what it was trained on; name the data: --data digits")
    name = data or recorded_data(name, "--data")
    labels = OWN if asked.label == OWN else asked.labels(stored)
    if asked.condition is None and asked.condition_noise is not None:
        raise InputError("--condition-noise would have no effect without --condition")
    guidance = asked._replace(condition=None, condition_noise=None).settings(stored)
    samples = load_data(
        name,
        data_dir,
        split=split or ("test" if name in NAMES else "train"),
        condition=asked.condition,
        layout=recorded_layout(stored.data, name),
    )
    values = math.prod(stored.model["shape"] or samples.shape)
    if (trace or ("exact" if values <= EXACT_LIMIT else "hutchinson")) == "exact":
        refuse(ctx, ["probe", "probes"], "the trace is exact; only --trace hutchinson uses probes")
    if find(solver).adaptive:
        refuse(ctx, ["steps"], f"{solver} chooses its own steps; see --tolerance")
    else:
        refuse(ctx, ["tolerance"], f"{solver} has fixed steps; see --steps")
    with share_bar(True, "integrating the flow") as progress:
        report, bound = measure(
            stored,
            samples,
            n=n,
            trace=trace,
            probe=probe,
            n_probes=probes,
            tolerance=tolerance,
            solver=solver,
            steps=steps,
            t_min=t_min,
            elbo_steps=elbo,
            seed=seed,
            batch_size=batch_size,
            device=device_for(device or "auto"),
            labels=labels,
            guidance=guidance,
            condition_noise=asked.condition_noise or 0.0,
            progress=progress,
            processes=processes,
        )
    if not processes.main:
        return {}
    lines = headline(report)
    for line in lines:
        echo(line)
    written = []
    if bound is not None:
        table = Table("term", "nats", title="Terms of the bound", box=SIMPLE_HEAD, pad_edge=False)
        for term, nats in table_of_terms(bound):
            table.add_row(term, f"{nats:.4f}")
        terminal.stdout().print(table)
    if out is not None:
        with new_folder(out, taken="next") as new:
            content = to_json({"format": FORMAT, "kind": "sdediff likelihood", **report})
            write_file(new.temporary / "likelihood.json", content)
            if bound is not None:
                plot_terms(new.temporary / "elbo.png", bound)
        written.append(new.path / "likelihood.json")
        echo(f"figures {written[0]}")
        if bound is not None:
            echo(f"picture {new.path / 'elbo.png'}")
            written.append(new.path / "elbo.png")
    return {"written": written, "summary": lines[0], **report}
