"""`sdediff compare`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from sde_diffusion.cli.errors import echo, say
from sde_diffusion.cli.guidance_options import GuidanceArguments, with_guidance
from sde_diffusion.cli.options import (
    BatchSizeOption,
    DataDirOption,
    DeviceOption,
    HtmlOption,
    ModelOption,
    RunArgument,
    complete_data,
    completion_of,
    model_at,
    typed_line,
    whole_numbers,
)
from sde_diffusion.comparison.comparison import BUDGETS, SHORTLIST
from sde_diffusion.comparison.comparison import compare as run_comparison
from sde_diffusion.comparison.html_page import write_comparison_page
from sde_diffusion.comparison.report import as_dict, save_comparison, summary, table
from sde_diffusion.data import load_data
from sde_diffusion.files.writing import require_writable
from sde_diffusion.parallel.processes import Processes
from sde_diffusion.report import terminal
from sde_diffusion.report.share_of_work import share_bar
from sde_diffusion.sampling.devices import device_for
from sde_diffusion.sampling.guidance_settings import guided_model
from sde_diffusion.storage.atomic_folder import require_new
from sde_diffusion.storage.checkpoint import StoredModel, load
from sde_diffusion.storage.locate import folder_of, name_of, recorded_data, recorded_layout, unused
from sde_diffusion.storage.provenance import versions
from sde_diffusion.storage.record_types import LossEntry
from sde_diffusion.storage.tuned_solver import NAME as TUNED
from sde_diffusion.storage.tuned_solver import find_tuned, tuned_loss
from solvers import SOLVERS, Solver
from solvers.errors import InputError
from solvers.plugin import find_solver

MOST = 10_000  # number of data samples that distances are measured to

EXAMPLES = """
\b
Examples:
sdediff compare                            a shortlist, latest run or bundled
sdediff compare bundled --solvers pf-ode,unipc --nfe 8
sdediff compare --solvers pf-ode,tuned --nfe 8   after tune --nfe 8
sdediff compare --solvers ddpm,sde --nfe 50,100 --n 2000
sdediff compare runs/mnist-vp --data-dir data --out mine
sdediff compare --html solvers.html        samples side by side, in a browser
sdediff compare runs/mnist-vp --label all --guidance 2
"""


@with_guidance
def compare(
    ctx: typer.Context,
    run: RunArgument = None,
    model: ModelOption = None,
    solvers: Annotated[
        str,
        typer.Option(
            "--solvers",
            help="Solvers, separated by commas: names, tuned, or your own as path/to/file.py:Name.",
            autocompletion=completion_of(SOLVERS),
        ),
    ] = ",".join(SHORTLIST),
    nfe: Annotated[
        str,
        typer.Option("--nfe", help="Network evaluations for each sample, separated by commas."),
    ] = ",".join(map(str, BUDGETS)),
    n: Annotated[int, typer.Option("--n", help="Number of samples for each solver and NFE.")] = 512,
    paired: Annotated[
        int, typer.Option("--paired", help="Number of samples compared with the reference solution.")
    ] = 64,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the initial noise, which all solvers share.")] = 0,
    batch_size: BatchSizeOption = 256,
    reference_steps: Annotated[
        int, typer.Option("--reference-steps", help="Number of steps of the reference solution.")
    ] = 800,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Data that distances are measured to: a data set or a path, as for train.",
            show_default="what the model was trained on",
            autocompletion=complete_data,
        ),
    ] = None,
    data_dir: DataDirOption = None,
    device: DeviceOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for compare.json and compare.png; must be new or empty.",
            show_default="RUN/compare",
        ),
    ] = None,
    html: HtmlOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead, for programs.")] = False,
    *,
    asked: GuidanceArguments,
) -> dict[str, Any] | None:
    """Compare solvers on a trained model: same initial noise, paired error, distance to the data, time.

    The error of a sample is its distance to the reference solution: the endpoint of the model's probability flow from
    the same initial noise. Differences between solvers have confidence intervals; those that may be due to chance are
    marked.
    """
    processes = Processes.join(device or "auto")
    budgets = whole_numbers(nfe, "--nfe")
    if out is not None:
        require_new(out)  # fails before the computation starts
    if html is not None:
        require_writable(html, ".html", force=False)
    stored = model_at(run, model, asked.labelled)
    place = out or folder_of(stored, "compare")  # a link is refused now, not after the work
    labels, guidance = asked.labels(stored), asked.settings(stored)
    chosen: dict[str, Solver | dict[int, Solver]] = {}
    for spec in dict.fromkeys(solvers.split(",")):
        if spec == TUNED:
            chosen[spec] = {budget: find_tuned(stored, budget, guidance.tag(labels)) for budget in budgets}
            if note := note_on_loss([tuned_loss(stored, budget, guidance.tag(labels)) for budget in budgets]):
                say(note, "yellow")
            continue
        name, solver = find_solver(spec)
        chosen[spec if name in chosen else name] = solver
    target = reference(stored, data, data_dir) if processes.main else None
    with terminal.stderr().status("loading"):
        loaded = load(stored, device=str(device_for(device or "auto")))
        guided, condition = guided_model(loaded, n, labels, guidance)
    found = run_comparison(
        guided,
        chosen,
        budgets,
        n=n,
        paired=paired,
        seed=seed,
        data=target,
        batch_size=batch_size,
        reference_steps=reference_steps,
        processes=processes,
        condition=condition,
    )
    if not processes.main:
        return None
    folder = out or unused(place)
    checkpoint = {"path": name_of(stored), "step": stored.step, "sha256": stored.sha256}
    about = {
        "checkpoint": checkpoint,
        **guidance.record(labels),
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }
    folder = save_comparison(found, folder, about)
    if html is not None:
        with share_bar(True, "samples of the report") as report:
            write_comparison_page(
                html,
                found,
                guided,
                chosen,
                title=f"Solvers on {name_of(stored)}",
                command=typed_line(ctx),
                condition=condition,
                provenance=about,
                on_share=report,
            )
    if as_json:
        typer.echo(json.dumps(as_dict(found), indent=2))
        return None
    echo(f"model {stored.path}{processes}")
    terminal.stdout().print(table(found))
    for line in summary(found):
        echo(line)
    echo(f"figures {folder / 'compare.json'}")
    echo(f"picture {folder / 'compare.png'}")
    if html is not None:
        echo(f"report {html}")
    return {"written": [folder / "compare.json", folder / "compare.png", *([html] if html else [])]}


def note_on_loss(losses: Sequence[LossEntry]) -> str:
    """How far the errors of a comparison are those that the tuned solvers minimised; "" without tuned solvers.

    >>> note_on_loss([{"name": "rmse"}])
    'warning: the tuned solvers minimised the error that is compared here, on other noise; evaluate judges by features'
    """
    own = [loss.get("extractor", {}).get("name", "pixels") for loss in losses]
    if "pixels" in own:
        return (
            "warning: the tuned solvers minimised the error that is compared here, on other noise; evaluate judges by "
            "features"
        )
    return f"the tuned solvers minimised a distance of features ({', '.join(dict.fromkeys(own))})" if own else ""


def reference(stored: StoredModel, data: str | None, data_dir: Path | None) -> Tensor | None:
    """The data to measure distances to; None, with a message on stderr, if the model's training data is unavailable."""
    name = data or stored.data.get("name")
    if name is None:
        if data_dir is not None:
            raise InputError(
                "--data-dir would have no effect: the model does not say what it was trained on; name the data too"
            )
        say("no distances to the data: the model does not say what it was trained on; see --data", "yellow")
        return None
    try:
        name = data or recorded_data(name, "--data")
        found = load_data(name, data_dir, labels=False, layout=recorded_layout(stored.data, name))
        if found.shape != (stored.sample_shape or found.shape):
            raise InputError(f"samples of {name} have shape {found.shape}, those of the model {stored.sample_shape}")
    except (ValueError, OSError) as error:
        if data is not None or data_dir is not None:
            raise
        say(f"no distances to the data: {error}", "yellow")
        return None
    # Evenly spaced, so that sorted data sets are sampled uniformly.
    return found.batch(torch.linspace(0, len(found) - 1, min(len(found), MOST), dtype=torch.float64).long())
