"""`sdediff evaluate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from sde_diffusion.cli.errors import echo, say
from sde_diffusion.cli.evaluation_inputs import (
    FIT,
    find_reference,
    given_samples,
    held_out,
    range_of,
    several_processes,
)
from sde_diffusion.cli.guidance_options import GuidanceArguments, with_guidance
from sde_diffusion.cli.options import (
    BatchSizeOption,
    CompileOption,
    DataDirOption,
    DeviceOption,
    HtmlOption,
    ModelOption,
    PrecisionOption,
    complete_data,
    completion_of,
    model_at,
    refuse,
    typed,
    typed_line,
    whole_numbers,
)
from sde_diffusion.cli.solver_options import EtaOption, GridOption, StepsOption, listed, times_of
from sde_diffusion.evaluation import FeatureSampler, SamplingSettings, error_budget, plot, quality
from sde_diffusion.evaluation import report as reports
from sde_diffusion.evaluation.cost import LONG, seconds_for
from sde_diffusion.evaluation.curve import as_dict
from sde_diffusion.evaluation.features import NAMES, Features, default_features, make_extractor
from sde_diffusion.evaluation.html_page import write_quality_page
from sde_diffusion.evaluation.metrics import METRICS
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.evaluation.score import DEFAULT_METRICS, MOST_DRAWS, too_few
from sde_diffusion.evaluation.score import evaluate as measure
from sde_diffusion.files.text import printable
from sde_diffusion.files.writing import require_writable
from sde_diffusion.models.speed import Speed
from sde_diffusion.parallel.pool import Pool
from sde_diffusion.parallel.processes import Processes
from sde_diffusion.report import terminal
from sde_diffusion.report.share_of_work import share_bar
from sde_diffusion.sampling.devices import device_for
from sde_diffusion.sampling.guidance_settings import GuidanceSettings, guided_model
from sde_diffusion.sampling.job import settings_for
from sde_diffusion.sampling.sampler import MOST_SAMPLES
from sde_diffusion.storage.atomic_folder import STATE, require_new
from sde_diffusion.storage.checkpoint import StoredModel, load
from sde_diffusion.storage.evaluation_record import CURVE, EVALUATION, write_evaluation
from sde_diffusion.storage.locate import (
    BUNDLED_NAME,
    LABELLED_NAME,
    find_model,
    folder_of,
    name_of,
    unused,
)
from sde_diffusion.storage.run_folder import CASCADE
from sde_diffusion.storage.sample_record import RECORD, folder_name
from sde_diffusion.storage.tuned_solver import NAME as TUNED
from sde_diffusion.storage.tuned_solver import judged_by
from sde_diffusion.tuning.effort import duration
from solvers import SOLVERS
from solvers.errors import InputError, require_whole

EXAMPLES = """
\b
Examples:
sdediff evaluate                           latest run, or bundled model
sdediff evaluate runs/digits-vp --nfe 5,10,20,50 --solver pf-ode,ddim
sdediff evaluate samples/pf-ode-nfe20 --reference digits
sdediff evaluate images/ --reference real-images/ --features pca
sdediff evaluate my.npz --range 0,1 --reference digits --metrics all
sdediff evaluate --save-reference digits.safetensors
sdediff evaluate --nfe 8 --budget          where the error comes from
sdediff evaluate --nfe 5,10,20 --html quality.html
sdediff evaluate runs/mnist-vp --label all --guidance 2
"""
FOLDER = Path("evaluation")
# Options on how samples are drawn.
DRAWING = ("n", "solver", "nfe", "steps", "grid", "eta", "batch_size", "processes", "precision", "compiled")


@with_guidance
def evaluate(
    ctx: typer.Context,
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN|FOLDER|NPZ",
            help="A model as in 'sdediff sample', a folder of images or of 'sdediff sample', or an .npy or .npz file.",
            show_default="the latest in runs/, else the bundled model",
        ),
    ] = None,
    model: ModelOption = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            help="Reference data: a data set or path as in 'sdediff train --data', or a --save-reference file.",
            show_default="the training data of the run",
            autocompletion=complete_data,
        ),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Split of the reference: train or test.")] = "train",
    data_dir: DataDirOption = None,
    features: Annotated[
        str | None,
        typer.Option(
            "--features",
            autocompletion=completion_of(NAMES),
            help=f"Feature extractor: {', '.join(NAMES)}.",
            show_default="a stored reference's own, else by shape",
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Weights of inception or dinov2.", show_default=False)
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            "--metrics",
            help=f"Metrics, separated by commas: all, or some of {', '.join(METRICS)}.",
            autocompletion=completion_of(METRICS),
        ),
    ] = ",".join(DEFAULT_METRICS),
    n: Annotated[int, typer.Option("--n", help="Number of samples to draw.")] = 1000,
    solver: Annotated[
        str | None,
        typer.Option(
            "--solver",
            help="Solver, as in 'sdediff sample'; several, separated by commas, give a curve.",
            show_default="of a distilled model its own; else pf-ode",
            autocompletion=completion_of(SOLVERS),
        ),
    ] = None,
    nfe: Annotated[
        str | None,
        typer.Option(
            "--nfe",
            help="Network evaluations; several, such as 5,10,20, for a curve.",
            show_default="20; its own of a distilled model",
        ),
    ] = None,
    steps: StepsOption = None,
    grid: GridOption = None,
    eta: EtaOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the samples and of the metrics.")] = 0,
    batch_size: BatchSizeOption = 250,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            help="1; for several, start torchrun --nproc-per-node N -m sde_diffusion -- evaluate ...",
            show_default="1",
        ),
    ] = None,
    draws: Annotated[int, typer.Option("--draws", help="Number of half-samples for the standard errors.")] = 40,
    value_range: Annotated[
        str | None,
        typer.Option(
            "--range",
            help="Value range (black,white) of float images, such as 0,1, for a reference or features of bytes.",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        bool, typer.Option("--budget", help="Also split the distance into its sources of error.")
    ] = False,
    save_reference: Annotated[
        Path | None,
        typer.Option(
            "--save-reference", help="Write the reference's features to a .safetensors file.", show_default=False
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Let --save-reference replace a file.")] = False,
    precision: PrecisionOption = None,
    compiled: CompileOption = False,
    device: DeviceOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help=f"Folder for {EVALUATION} and curve.png; must be new or empty.", show_default="evaluation/..."
        ),
    ] = None,
    html: HtmlOption = None,
    *,
    asked: GuidanceArguments,
) -> dict[str, Any]:
    """Measure sample quality, with standard errors.

    Draws samples from a model, or reads samples from a file, and compares them with a reference. Several NFE or
    solvers give a curve.
    """
    several_processes(processes)
    group = Processes.join(device or "auto")
    if out is not None:
        require_new(out)  # fails before the computation starts
    if html is not None:
        require_writable(html, ".html", force=False)
    if save_reference is not None:
        require_writable(save_reference, ".safetensors", force)
    else:
        refuse(ctx, ["force"], "it lets --save-reference replace a file, and there is no --save-reference")
    require_whole("--n", n, 1, MOST_SAMPLES)
    require_whole("--draws", draws, 2, MOST_DRAWS)
    require_whole("--batch-size", batch_size, 1, 2**53)
    device = device_for(device or "auto").type
    stored = model_of(source, asked.labelled) if model is None else model_at(source, model)
    if stored is None:
        refuse(ctx, (*DRAWING, "html"), f"{source} holds samples, and none are drawn")
    if reference is not None and reference.endswith(".safetensors"):
        refuse(ctx, ["split", "data_dir"], f"the reference {reference} holds features that were taken already")
        if stored is None:
            refuse(ctx, ["device"], "nothing is computed on it")
    if (budget or stored is None) and asked.given():
        what_for = "--budget" if budget else "samples from files"
        raise InputError(f"{what_for} and guidance do not go together; leave out {listed(asked.given())}")
    labels, guidance = (None, GuidanceSettings()) if stored is None else (asked.labels(stored), asked.settings(stored))
    limits = range_of(value_range)
    if stored is not None and out is None:
        folder_of(stored, FOLDER.name)  # a link is refused now, not after the work
    times = tuple(g) if isinstance(g := times_of(grid), list) else g
    ways = [
        settings if stored is None else settings_for(stored, settings, guidance.tag(labels))
        for s in ([None] if solver is None else solver.split(","))
        for b in ([None] if nfe is None else whole_numbers(nfe, "--nfe"))
        for settings in [SamplingSettings(s, b, steps, times, eta, seed, batch_size, s)]
    ]
    if budget and (stored is None or len(ways) != 1 or (reference or "").endswith(".safetensors")):
        raise InputError("--budget needs a model, one solver, one --nfe and a reference that is a data set")
    own: dict[str, Any] = {}

    def taken() -> FeatureStatistics:
        """The reference, which the first process alone makes from its data."""
        what, own["data"] = find_reference(reference, split, data_dir, stored)
        if what is None:
            data = own["data"]
            of_bytes = data.x.dtype == torch.uint8
            name = features or default_features(data.shape, of_bytes=of_bytes)
            limit = None if of_bytes else limits
            fit = lambda: data.batch(slice(0, FIT))  # noqa: E731
            own["extractor"] = make_extractor(name, fit=fit, weights=weights, value_range=limit)
            return FeatureStatistics.of(data, own["extractor"], split, device)
        kept = what.data.get("range") or (limits if what.of_floats else None)
        limit = None if kept is None else (kept[0], kept[1])
        name = features or what.extractor["name"]
        own["extractor"] = make_extractor(name, tensors=what.tensors, weights=weights, value_range=limit)
        what.check(own["extractor"])
        return what

    what = group.once(taken)
    extractor = own["extractor"] if group.main else what.make_extractor(weights)
    if stored and limits and not what.of_floats:
        raise InputError("--range is the value range of float files; leave it out for samples of a model")
    if stored is None and not group.main:
        return {}  # metrics of given samples are the work of one process
    samples: Tensor | Features | None = None
    if stored is None and source is not None:
        samples = given_samples(source, what, extractor, limits)
    count = n if samples is None else len(samples) if isinstance(samples, Tensor) else len(samples.features)
    names = feasible(metrics, count, what, named=bool(typed(ctx, "metrics")))
    if save_reference is not None and group.main:
        what.save(save_reference, force=force)
    real = what.data
    echo(f"reference {real['name']}, {real['n']:,} samples of {real['split']}; features {extractor.name}")
    if stored is None:
        assert samples is not None and source is not None
        found = measure(samples, what, extractor=extractor, metrics=names, draws=draws, seed=seed)
        terminal.stdout().print(reports.table([(printable(str(source)), found)], count))
        run = {"n": count, "figures": as_dict(found)}
        content = reports.record({"path": str(source)}, what, [run])
        saved = write_evaluation(out or unused(FOLDER / source.stem), content)
        echo(f"figures {saved}")
        return {"written": [saved], **content}
    network = load(stored, device=device)
    Speed(precision or "fp32", compiled).apply(network.network)
    what.check_shape(network.sample_shape or ())
    guided, condition = guided_model(network, n, labels, guidance)
    for budget_of in dict.fromkeys(way.nfe for way in ways if way.called == TUNED):
        used = judged_by(stored, budget_of, guidance.tag(labels))
        if any(entry["sha256"] == extractor.sha256 for entry in used):
            say(
                f"warning: the tuned solver was fitted to these features ({extractor.name}), which judge it too "
                "favourably; judge it by others: --features",
                "yellow",
            )
            break
    sampler = FeatureSampler(guided, extractor, condition)
    with Pool(sampler.work, group) as pool:
        if pool is None:
            return {}
        sampler = replace(sampler, pool=pool)
        if n >= LONG:
            to_draw, to_measure = seconds_for(sampler, ways, n, what, names, draws)
            echo(
                f"evaluation takes about {duration(to_draw + to_measure)}: {duration(to_draw)} to draw and "
                f"{duration(to_measure)} to measure {n:,} samples {len(ways)} times{group}",
                err=True,
            )
        with share_bar(True, "sampling") as progress:
            points = quality(sampler, ways, n, what, metrics=names, draws=draws, on_share=progress)
        terminal.stdout().print(reports.table(reports.columns(points), n))
        made = {"path": name_of(stored), "step": stored.step, "sha256": stored.sha256}
        made |= guidance.record(labels) if asked.given() else {}
        made |= {"precision": precision, "compiled": compiled} if precision or compiled else {}
        content = reports.record(made, what, [p.as_dict() for p in points])
        if budget:
            data = own["data"]
            with share_bar(True, "error budget") as progress:
                parts = error_budget(
                    sampler, ways[0], n, what, data, held_out(data, split), draws=draws, progress=progress
                )
            content["budget"] = reports.budget_dict(parts)
            for table in (reports.budget_table(parts), reports.loss_table(parts)):
                terminal.stdout().print(table)
            echo(f"prior mismatch, bounds: KL {parts.prior_kl:.2e} nats, W2 {parts.prior_w2:.3g}")
    if html is not None:
        with share_bar(True, "samples of the report") as report:
            write_quality_page(
                html,
                points,
                guided,
                title=f"Samples of {name_of(stored)}",
                command=typed_line(ctx),
                reference=f"{real['name']}, {real['n']:,} samples; features {extractor.name}",
                condition=condition,
                provenance={"checkpoint": made, "versions": content["versions"], "reference": dict(real)},
                on_share=report,
            )
    first = {"solver": {"name": points[0].solver}, "nfe": {"most": round(points[0].nfe)}}
    name = folder_name(first) if len(points) == 1 else "curve"
    folder = out or unused(folder_of(stored, FOLDER.name) / name)
    several = len(points) > 1
    saved = write_evaluation(
        folder, content, (lambda path: plot(path, points, next(iter(points[0].figures)))) if several else None
    )
    echo(f"figures {saved}")
    if several:
        echo(f"picture {saved.with_name(CURVE)}")
    if html is not None:
        echo(f"report {html}")
    extra = [*([saved.with_name(CURVE)] if several else []), *([html] if html else [])]
    return {"written": [saved, *extra], **content}


def feasible(metrics: str, n: int, reference: FeatureStatistics, *, named: bool) -> list[str]:
    """The metrics to measure, chosen before samples are drawn: those that n samples suffice for.

    Args:
        metrics: names separated by commas, or all.
        n: number of samples.
        reference: the reference.
        named: whether the user chose them; of others, those that n samples do not suffice for are left out.

    Raises:
        ValueError: an unknown name; n does not suffice for one that was chosen, or for any.
    """
    names = metrics.split(",")
    few = too_few(METRICS if names == ["all"] else names, n, reference)
    if not few:
        return names
    others = [name for name in METRICS if name not in too_few(METRICS, n, reference) and name != "inception-score"]
    rest = [name for name in names if name not in few]
    if not others or (named and names != ["all"]) or not rest:
        instead = f"; these metrics take fewer: --metrics {','.join(others)}" if others else ""
        raise InputError(f"{'; '.join(few.values())}{instead}")
    say(f"warning: left out: {'; '.join(few.values())}", "yellow")
    return rest


def model_of(source: Path | None, labelled: bool = False) -> StoredModel | None:
    """The model at a path, or None where it holds samples; ``labelled`` as in ``model_at``."""
    if source is None or (str(source) in (BUNDLED_NAME, LABELLED_NAME) and not source.exists()):
        return model_at(source, None, labelled)
    is_run = (source / "checkpoints").is_dir() or (source / CASCADE).exists()
    is_run = is_run or ((source / STATE).is_file() and not (source / RECORD).is_file())
    return find_model(source) if is_run or source.suffix == ".safetensors" else None
