"""`sdediff tune`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from sde_diffusion.cascade.run import is_cascade
from sde_diffusion.cli.cascades import tune_stages
from sde_diffusion.cli.errors import echo
from sde_diffusion.cli.evaluation_inputs import features_for_tuning, real_for_tuning
from sde_diffusion.cli.guidance_options import GuidanceArguments, with_guidance
from sde_diffusion.cli.options import (
    DataDirOption,
    DeviceOption,
    HtmlOption,
    ModelOption,
    RunArgument,
    completion_of,
    model_at,
    refuse,
    typed_line,
    whole_numbers,
)
from sde_diffusion.evaluation.features import NAMES, Extractor
from sde_diffusion.files.writing import require_writable
from sde_diffusion.parallel.processes import Processes
from sde_diffusion.report.share_of_work import share_bar
from sde_diffusion.sampling.devices import device_for
from sde_diffusion.sampling.guidance_settings import GuidanceSettings, guided_model
from sde_diffusion.storage.checkpoint import StoredModel, load
from sde_diffusion.storage.locate import name_of
from sde_diffusion.storage.provenance import versions
from sde_diffusion.storage.tuned_solver import Tuned, file_name, require_tuned, save_tuned, tuned_folder
from sde_diffusion.tuning.effort import bar
from sde_diffusion.tuning.feature_loss import LOSSES
from sde_diffusion.tuning.html_page import write_tuning_page
from sde_diffusion.tuning.stochastic.decision import words_on_noise
from sde_diffusion.tuning.tuner import DEFAULT_SOLVER, tuned_each

_TIMED_ROWS = 256  # conditions, where the time is given

EXAMPLES = """
\b
Examples:
sdediff tune                               latest run, or bundled, at 8 NFE
sdediff tune runs/digits-vp --nfe 5,8,10
sdediff tune --minutes 1                   the best result within a minute
sdediff sample --solver tuned --nfe 8      and use it
sdediff tune runs/mnist-vp --label all --guidance 2
sdediff tune runs/cascade --nfe 20         evaluations of each stage
sdediff tune --loss features               distances of features
sdediff tune --stochastic --minutes 10     noise where it makes better samples
"""


@with_guidance
def tune(
    ctx: typer.Context,
    run: RunArgument = None,
    given: ModelOption = None,
    nfe: Annotated[
        str, typer.Option("--nfe", help="Network evaluations of the tuned solver; several separated by commas.")
    ] = "8",
    seed: Annotated[int, typer.Option("--seed", help="Seed of the initial noise.")] = 0,
    noise_samples: Annotated[
        int, typer.Option("--noise-samples", help="Number of initial noise samples for the fit.")
    ] = 128,
    noises: Annotated[int | None, typer.Option("--noises", hidden=True, help="Former name of --noise-samples.")] = None,
    held_out: Annotated[
        int, typer.Option("--held-out", help="Number of held-out noise samples, on which the candidates are compared.")
    ] = 128,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            help="Time for all NFE together; the numbers of noise samples then follow from the speed of the network.",
            show_default="no limit",
        ),
    ] = None,
    loss: Annotated[
        str,
        typer.Option(
            "--loss",
            help="What is minimised: rmse, the distance of samples to the reference solution, or features, that of "
            "their features.",
            autocompletion=completion_of(LOSSES),
        ),
    ] = "rmse",
    features: Annotated[
        str | None,
        typer.Option(
            "--features",
            help=f"Features for --loss features and --stochastic: {', '.join(NAMES)}.",
            show_default="a classifier of digits, for images of its size",
            autocompletion=completion_of(NAMES),
        ),
    ] = None,
    stochastic: Annotated[
        bool,
        typer.Option(
            "--stochastic",
            help="Let the solver draw noise, of a strength for each step, where the Frechet distance of its features "
            "to the training data is smaller with it.",
        ),
    ] = False,
    law_samples: Annotated[
        int,
        typer.Option(
            "--law-samples",
            help="With --stochastic: samples drawn for the decision on noise, after half as many for the choice.",
        ),
    ] = 1000,
    data_dir: DataDirOption = None,
    mean_start: Annotated[
        bool,
        typer.Option(
            "--mean-start/--no-mean-start",
            help="With --minutes: whether the first step may use the mean of the data in place of an evaluation, which "
            "pipelines of diffusers cannot run.",
        ),
    ] = True,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Number of samples per call of the network.")] = 512,
    device: DeviceOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder for nfe-NFE.json; an earlier result of tune is replaced.", show_default="RUN/tuned"
        ),
    ] = None,
    html: HtmlOption = None,
    *,
    asked: GuidanceArguments,
) -> dict[str, Any]:
    """Fit a solver to one model and one number of evaluations.

    Fits times and weights to the endpoints of the model's reference solution, and keeps the candidate with the lowest
    error on held-out noise samples, where it is never worse than the default. --solver tuned uses it.

    Of a cascade, finds how the evaluations are split between the stages; sample uses the split.
    """
    start = time.perf_counter()
    noise_samples = noise_samples if noises is None else noises
    if run is not None and is_cascade(run):
        names = [
            name.replace("-", "_")
            for name in (
                *asked.given(),
                "minutes",
                "out",
                "html",
                "loss",
                "features",
                "stochastic",
                "law_samples",
                "data_dir",
            )
        ]
        refuse(ctx, names, f"{run} is a cascade, of which tune finds how many evaluations each stage has")
        budgets = whole_numbers(nfe, "--nfe")
        return tune_stages(run, budgets, seed, noise_samples, held_out, batch_size, device or "auto")
    processes = Processes.join(device or "auto")
    stored = model_at(run, given, asked.labelled)
    budgets = whole_numbers(nfe, "--nfe")
    if minutes is not None:
        counts = ["noise_samples", "noises", "held_out", "law_samples"]
        refuse(ctx, counts, "with --minutes the numbers of samples follow from the time")
    if not stochastic:
        refuse(ctx, ["law_samples"], "only --stochastic compares laws")
        if features != "pca":
            refuse(ctx, ["data_dir"], "only --stochastic and --features pca read data")
    labels, guidance = asked.labels(stored), asked.settings(stored)
    if html is not None:
        require_writable(html, ".html", force=False)
    report = None if html is None else (html, typed_line(ctx))
    found = tune_model(
        stored,
        budgets,
        minutes,
        device or "auto",
        seed,
        noise_samples,
        held_out,
        batch_size,
        out,
        labels,
        guidance,
        processes,
        report,
        loss,
        features_for_tuning(features, stored, data_dir),
        mean_start,
        stochastic,
        real_for_tuning(stored, labels, data_dir) if stochastic else None,
        law_samples,
    )
    if not processes.main:
        return {}
    echo(f"{time.perf_counter() - start:.0f} s{processes}")
    if out is None or out.resolve() == tuned_folder(stored).resolve():
        model = stored.argument if stored.given else name_of(stored)
        echo("use it:", " ".join(["sdediff sample", str(model), *asked.words(), f"--nfe {budgets[0]}"]))
    else:
        echo(f"--solver tuned looks in {tuned_folder(stored)}; move the files there to use them")
    files = [*(made["file"] for made in found), *([html] if html else [])]
    return {"written": files, "solvers": found}


def tune_model(
    stored: StoredModel,
    budgets: Sequence[int],
    minutes: float | None,
    device: str = "auto",
    seed: int = 0,
    noise_samples: int = 128,
    held_out: int = 128,
    batch_size: int = 512,
    out: Path | None = None,
    labels: Sequence[int] | None = None,
    guidance: GuidanceSettings | None = None,
    processes: Processes | None = None,
    report: tuple[Path, str] | None = None,
    loss: str = "rmse",
    features: str | Extractor | None = None,
    mean_start: bool = True,
    stochastic: bool = False,
    real: Tensor | None = None,
    law_samples: int = 1000,
) -> list[dict[str, Any]]:
    """Tune for each NFE, store each solver as soon as it is fitted, print its error, and return file and errors.

    Args:
        stored: the model.
        budgets: numbers of network evaluations.
        minutes: time for all of them; None for no limit.
        device: a name in ``DEVICES``.
        seed: seed of the initial noise.
        noise_samples: initial noise samples for the fit.
        held_out: others, on which the candidates are compared.
        batch_size: samples in one call of the network.
        out: folder of the files; that of the model by default.
        labels: classes that the samples take in turn.
        guidance: settings of guidance.
        processes: processes that share the work.
        report: an HTML file to write as well, and the command line that it states.
        loss: what is minimised, "rmse" or "features".
        features: for the loss "features"; the classifier for images of its size by default.
        mean_start: whether the first step may use the mean of the data.
        stochastic: whether the solver may draw noise.
        real: real samples that noise is judged by; endpoints of the reference solution by default.
        law_samples: samples for the decision on noise, after half as many for the choice.
    """
    guidance = guidance or GuidanceSettings()
    tag = guidance.tag(labels)
    folder = out or tuned_folder(stored)
    for budget in budgets:
        require_tuned(folder / file_name(budget, tag))  # now, not after the work
    rows = noise_samples + held_out if minutes is None else _TIMED_ROWS
    loaded = load(stored, device=str(device_for(device)))
    model, condition = guided_model(loaded, rows, labels, guidance)
    found: list[Tuned] = []
    with bar() as progress:
        each = tuned_each(
            model,
            budgets,
            seed=seed,
            noise_samples=noise_samples,
            held_out=held_out,
            batch_size=batch_size,
            minutes=minutes,
            progress=progress or False,
            on_effort=lambda effort: echo(f"tuning takes {effort}", err=True),
            processes=processes,
            loss=loss,
            features=features,
            mean_start=mean_start,
            stochastic=stochastic,
            real=real,
            law_samples=law_samples,
            condition=condition,
        )
        for made in each:
            path = folder / file_name(made.nfe, tag)
            towards = guidance.record(labels) if tag else {}
            counts = {"noise_samples": made.noise_samples, "held_out": made.held_out}
            save_tuned(path, made, stored, tag, seed=seed, **counts, **towards)
            found.append(made)
    if report is not None:
        about = {
            "checkpoint": {"path": name_of(stored), "step": stored.step, "sha256": stored.sha256},
            **guidance.record(labels),
            "versions": versions(),
        }
        with share_bar(True, "samples of the report") as share:
            write_tuning_page(
                report[0], found, model, title=f"Solvers tuned for {name_of(stored)}", command=report[1], seed=seed,
                condition=condition, rows=rows, provenance=about, on_share=share,
            )  # fmt: skip
    echo(f"model {stored.path}")
    for made in found:
        compared = made.loss.get("extractor", {}).get("name")
        echo(
            f"{made.nfe} evaluations, error {f'in the features {compared} ' if compared else ''}on {made.held_out} "
            f"held-out noise samples: {DEFAULT_SOLVER} {made.default_error:.4g}, tuned {made.error:.4g}, "
            f"{made.gain:.2f} times that"
        )
        if compared:
            echo(f"  RMS distance of the samples themselves: {DEFAULT_SOLVER} {made.default_rmse:.4g}, {made.rmse:.4g}")
        stages = ", ".join(f"{name} {error:.4g}" for name, error in made.stages.items())
        echo(f"  best of each stage: {stages}; reference solution known to {made.teacher_error:.1g}")
        if stochastic:
            echo(f"  {words_on_noise(made)}")
        echo(f"  solver {folder / file_name(made.nfe, tag)}")
    if report is not None:
        echo(f"report {report[0]}")
    return [
        {
            "file": folder / file_name(made.nfe, tag),
            "nfe": made.nfe,
            "error": made.error,
            "default_error": made.default_error,
            "teacher_error": made.teacher_error,
            "held_out": made.held_out,
            "loss": made.loss,
            **({} if made.noise is None else {"noise": made.noise}),
        }
        for made in found
    ]
