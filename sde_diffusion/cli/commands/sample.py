"""`sdediff sample`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from sde_diffusion.cascade.run import is_cascade
from sde_diffusion.cli.batch_size import AUTO, fitting_batch, whole_or_auto
from sde_diffusion.cli.cascades import draw_stages
from sde_diffusion.cli.errors import echo, say
from sde_diffusion.cli.guidance_options import GuidanceArguments, with_guidance
from sde_diffusion.cli.options import (
    CompileOption,
    DeviceOption,
    ModelOption,
    PrecisionOption,
    RunArgument,
    completion_of,
    model_at,
    option,
)
from sde_diffusion.cli.sample_parts import (
    FilmOption,
    choose,
    recorded_beside,
    report_same,
    require_film,
    show_profile,
)
from sde_diffusion.cli.shards import begin, fill
from sde_diffusion.cli.solver_options import EtaOption, GridOption, StepsOption, listed, times_of
from sde_diffusion.models.speed import Speed
from sde_diffusion.parallel.pool import Pool
from sde_diffusion.parallel.processes import Processes
from sde_diffusion.report.film import write_reverse
from sde_diffusion.report.share_of_work import share_bar
from sde_diffusion.sampling import generate, sharded
from sde_diffusion.sampling.devices import device_for
from sde_diffusion.sampling.given.samples import given_samples
from sde_diffusion.sampling.job import job_again, new_job, settings_for
from sde_diffusion.sampling.local_errors import error_profile
from sde_diffusion.sampling.noised_start import NoisedStart
from sde_diffusion.sampling.settings import DEFAULT_NFE, SamplingSettings
from sde_diffusion.sampling.sharded import FORMS, FROM, SIZE, shards_for
from sde_diffusion.sampling.shown.model_figures import film_of_samples
from sde_diffusion.storage import sample_record
from sde_diffusion.storage.atomic_folder import require_new
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.storage.locate import recorded_model, samples_folder, unused
from sde_diffusion.storage.sharded_set import JOB, SHARDS, open_set
from sde_diffusion.storage.tuned_solver import NAME as TUNED
from sde_diffusion.storage.tuned_solver import usable_tuned, why_not_tuned
from solvers import SOLVERS
from solvers.errors import InputError

EXAMPLES = """
\b
Examples:
sdediff sample --solver pf-ode --nfe 20    latest run, or bundled model
sdediff sample runs/moons-vp --n 5000      another run
sdediff sample --solver ddpm --nfe 200 --seed 7
sdediff sample --solver rk45               chooses its own steps
sdediff sample --nfe 8 --grid karras --out karras8
sdediff sample --tolerance 0.02            cheapest solver within that error
sdediff sample --model mine.py:model       a model of your own
sdediff sample --label 3 --guidance 2      one class of digits
sdediff sample runs/pairs --caption "a three left of a seven"
sdediff sample runs/shapes --label chair --points 256
sdediff sample --classifier runs/digits-classifier --label 3 --scale 4
sdediff sample runs/high-vp --condition low/   for these images
sdediff sample --from photo.png --strength 0.4
sdediff sample --solver pf-ode --profile   and where the error arises
sdediff sample --n 9 --nfe 30 --film digits.gif   noise becomes digits
sdediff sample --record samples/pf-ode-nfe20/samples.json
sdediff sample --n 100000 --out many       in shards; then --resume many
torchrun --nproc-per-node 2 -m sde_diffusion -- sample --n 4096
"""
# Options that --tolerance excludes.
HOW = ("solver", "nfe", "steps", "grid", "eta", "seed", "batch_size", "partial")
CHOSEN = ("nfe", "steps", "grid", "eta")
# Options that a record needs again, since it opens no file by itself.
BESIDE = ("autoguide", "classifier", "condition")
# Options with which a solver tuned for the model is not the default.
OWN_WAY = ("solver", "steps", "grid", "eta", "partial")
STRENGTH, VARIATIONS = 0.4, 8  # of --from


@with_guidance
def sample(
    run: RunArgument = None,
    model: ModelOption = None,
    n: Annotated[
        int | None,
        typer.Option("--n", help="Number of samples.", show_default="64; 2000 for points in 2-D"),
    ] = None,
    solver: Annotated[
        str | None,
        typer.Option(
            "--solver",
            autocompletion=completion_of(SOLVERS),
            help=f"{', '.join(SOLVERS)}; or your own as path/to/file.py:Name. 'sdediff solvers' describes each.",
            show_default="that of a distilled model, else the one tuned for the model and --nfe, else pf-ode",
        ),
    ] = None,
    nfe: Annotated[
        int | None,
        typer.Option(
            "--nfe",
            help="Network evaluations for each sample, never exceeded.",
            show_default="20; no limit for solvers that choose their steps",
        ),
    ] = None,
    steps: StepsOption = None,
    grid: GridOption = None,
    eta: EtaOption = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            help="Random seed; sample k depends only on the seed and on k.",
            show_default="0",
        ),
    ] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            "--batch-size",
            help="Number of samples per batch; auto: half of the largest batch, by doubling, that fits into memory.",
            show_default="256",
        ),
    ] = None,
    points: Annotated[
        int | None,
        option("--points", "Number of points of a cloud, for a network of point clouds.", "as in training"),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Allow a --grid of times that does not run from 1 to 0.")
    ] = False,
    precision: PrecisionOption = None,
    compiled: CompileOption = False,
    device: DeviceOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for samples.png, samples.npz and samples.json; must be new or empty.",
            show_default="RUN/samples/SOLVER-nfeNFE",
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            "--record",
            "--card",
            help="Reproduce the samples of a samples.json bit for bit; only RUN, --device, --out, "
            "--solver FILE.py:NAME, if the solver came from a file, and --autoguide, --classifier, --condition and "
            "--from, if the samples have them, may be given with it.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            help="Start from an image, noised to --strength, instead of pure noise (SDEdit); also .npy or .npz. "
            "Several are taken in turn.",
            show_default="pure noise",
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            "--strength",
            help="Time t in (0, 1] to which --from is noised: near 0 nothing changes, at 1 nothing is kept.",
            show_default=str(STRENGTH),
        ),
    ] = None,
    shards: Annotated[
        str | None,
        option(
            "--shards",
            f"Write the samples part by part into files of this format: {', '.join(FORMS)}.",
            f"npz from {FROM:,} samples",
            "Large sets",
            FORMS,
        ),
    ] = None,
    shard_size: Annotated[
        int | None,
        option("--shard-size", "Number of samples in a file, rounded up to whole batches.", f"{SIZE}", "Large sets"),
    ] = None,
    resume: Annotated[
        Path | None,
        option(
            "--resume",
            "Continue the shards in this folder after an interruption: whole files are kept. Only RUN, --device, "
            "--solver FILE.py:NAME and --autoguide may be given with it, as with --record.",
            False,
            "Large sets",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            help="Instead of --nfe: the largest mean distance of a sample to the model's reference solution (RMS, "
            "in units of the data). A pilot run finds the cheapest solver within it; with --solver, the smallest NFE.",
            show_default=False,
        ),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Also show the solver's estimate of the local error of each step."),
    ] = False,
    film: FilmOption = None,
    *,
    asked: GuidanceArguments,
) -> dict[str, Any]:
    """Draw samples from a trained model.

    Writes an image, the samples as arrays, and a record that reproduces them.
    """
    began = time.perf_counter()
    processes = Processes.join(device or "auto")
    drawing: dict[str, Any] = {
        "n": n, "solver": solver, "nfe": nfe, "steps": steps, "grid": times_of(grid), "eta": eta,
        "seed": seed, "batch_size": None if batch_size is None else whole_or_auto(batch_size),
    }  # fmt: skip
    options = {name: value for name, value in drawing.items() if value is not None}
    if partial:
        options["partial"] = True
    if run is not None and is_cascade(run):
        unknown = {name: True for name in asked.given() if name != "condition_noise"}
        unknown |= {} if points is None else {"points": True}
        return draw_stages(run, {**options, **unknown}, asked.condition_noise, device or "auto", out)
    if out is not None:
        require_new(out)  # fails before the computation starts
    chosen, local, waited, source = None, None, 0.0, source or None
    if strength is not None and (source is None or record is not None):
        raise InputError(
            "--strength has no effect without --from, the image to start from"
            if record is None
            else "the record holds the strength of its samples; leave out --strength"
        )
    alone = {
        "--tolerance": tolerance, "--profile": profile, "--partial": partial, "--shards": shards,
        "--shard-size": shard_size, "--resume": resume, "--film": film,
    }  # fmt: skip
    if source is not None and (clash := [name for name, value in alone.items() if value]):
        raise InputError(f"{clash[0]} needs samples that start from pure noise; leave out {clash[0]} or --from")
    if tolerance is not None and (clash := [k for k in CHOSEN if k in options] + asked.given()):
        raise InputError(
            f"--tolerance chooses the solver and its NFE, for samples without a class; leave out {listed(clash)}"
        )
    whole = {"--film": film, "--profile": profile, "--tolerance": tolerance, "--from": source}
    if points is not None and (clash := [name for name, value in whole.items() if value]):
        raise InputError(
            f"{clash[0]} works on clouds of as many points as in training; leave out {clash[0]} or --points"
        )
    require_film(film, again=record is not None or resume is not None)
    if profile and record is not None:
        raise InputError("--profile needs newly drawn samples; leave out --record, or give its --solver and --nfe")
    if profile and (clash := asked.given()):
        raise InputError(f"--profile needs samples without a class; leave out {listed(clash)}")
    if partial and not isinstance(drawing["grid"], list):
        raise InputError("--partial would have no effect: it allows the times of a --grid, such as 1,0.5; leave it out")
    if record is not None and resume is not None:
        raise InputError("--record makes samples again and --resume continues them; give one of them")
    again = record if resume is None else resume / JOB
    old, tuned = None, None
    if again is not None:
        others = {
            "points": points,
            "tolerance": tolerance,
            "shards": shards,
            "precision": precision,
            "compile": compiled or None,
        }
        options |= {name: value for name, value in others.items() if value is not None}
        options |= {name: value for name, value in (("shard_size", shard_size), ("out", out)) if resume and value}
        named = options.pop("solver", None)
        if clash := [*options, *(name for name in asked.given() if name not in BESIDE)]:
            raise InputError(f"the record holds all settings of its samples; leave out {listed(clash)}")
        old = sample_record.read_record(again) if resume is None else open_set(resume).record
        where = recorded_model(old["checkpoint"]["path"], again) if run is None and model is None else run
        stored = model_at(where, model)
        place = out or samples_folder(stored)  # a link is refused now, not after the work
        rule = old.get("guidance_rule", {})
        guide = recorded_beside(rule.get("guide"), again, asked.autoguide, "--autoguide")
        classifier = recorded_beside(rule.get("classifier"), again, asked.classifier, "--classifier")
        job = job_again(
            old, stored, solver=named, guide=guide, classifier=classifier, device=device,
            condition=asked.again(rule.get("condition"), stored),
            source=None if source is None else given_samples(source, stored),
        )  # fmt: skip
    else:
        stored = model_at(run, model, asked.labelled)
        place = out or samples_folder(stored)
        labels, guidance, start = asked.labels(stored), asked.settings(stored), None
        if source is not None:
            start = NoisedStart(given_samples(source, stored), STRENGTH if strength is None else strength)
            n = VARIATIONS * len(start.x) if n is None else n
        if tolerance is not None:
            pilot = time.perf_counter()
            chosen = choose(load(stored, device=str(device_for(device or "auto"))), tolerance, solver, seed)
            options |= {"solver": chosen.solver, "nfe": chosen.nfe}
            waited = time.perf_counter() - pilot
        if guidance.plus_plus:
            options.setdefault("solver", "ddim")  # the default solver has no noise that CFG++ could exchange
        plain = start is None and stored.model.get("sampler") is None
        if plain and not any(k in options for k in OWN_WAY):
            wanted = (stored, options.get("nfe", DEFAULT_NFE), guidance.tag(labels))
            tuned = usable_tuned(*wanted)
            if tuned is None and (reason := why_not_tuned(*wanted)):
                say(f"pf-ode, not a tuned solver: {reason}", "yellow")
        if tuned is not None:
            options |= {"solver": TUNED, "nfe": options.get("nfe", DEFAULT_NFE)}
        if options.get("batch_size") == AUTO:
            options["batch_size"] = processes.once(lambda: fitting_batch(stored, device or "auto"))
        settings = SamplingSettings(**{k: v for k, v in options.items() if k in HOW})
        if film is not None:  # before the samples: not every solver has a film
            where = str(device_for(device or "auto"))
            write_reverse(film, film_of_samples(stored, where, settings, n, labels, guidance))
        if profile:  # before the samples: not every solver estimates its error
            network = load(stored, device=str(device_for(device or "auto")))
            local = error_profile(network, settings_for(stored, settings))
        parts = None if start is not None else shards_for(n, shards, shard_size, settings.batch_size)
        speed = Speed(precision or "fp32", compiled)
        job = new_job(
            stored, n, settings, labels=labels, guidance=guidance, start=start, device=device or "auto", shards=parts,
            speed=speed, points=points,
        )  # fmt: skip
        if chosen is not None:
            job.record["choice"] = chosen.to_dict()
    far = ""
    work = {**generate.work_of(job), **sharded.work_of(job)}
    with Pool(work, processes) as pool, share_bar(True, "sampling") as progress:
        if pool is None:
            return {}
        if "shards" in job.record:
            found = open_set(resume) if resume else begin(job, out, place)
            made, shown = fill(job, found, pool, progress)
            arrays = found.folder / SHARDS
        else:
            drawn = generate.run_job(job, pool, progress)
            made = drawn.record
            shown = sample_record.save_samples(drawn, out or unused(place / sample_record.folder_name(made)))
            far, arrays = sample_record.outliers(drawn), shown.parent / "samples.npz"
    seconds = time.perf_counter() - began - waited
    out = shown.parent
    trained = "" if stored.step is None else f", trained {stored.step:,} steps"
    echo(f"model {stored.path}{trained}")
    echo(
        f"{made['n']} samples by {made['solver']['name']}, {sample_record.evaluations(made)} evaluations "
        f"each, in {seconds:.1f} s{'' if chosen is None else f', after a pilot of {waited:.1f} s'}{processes}"
    )
    if far:
        say(f"warning: {far}", "yellow")
    if tuned is not None:
        echo(f"the solver that was tuned for this model: {tuned}; --solver pf-ode samples without it")
    if chosen is not None:
        echo(f"chosen: {chosen.reason}")
    if record is not None and old is not None:
        report_same(made, old)
    echo(f"shards {found.describe()}" if "shards" in made else f"arrays {arrays}")
    echo(f"record {out / sample_record.RECORD}")
    if shown.suffix == ".png":
        echo(f"picture {shown}")
    else:
        echo(f"no image for samples of shape {tuple(made['shape'])}; see {shown}")
    if film is not None:
        echo(f"film {film}")
    if local is not None:
        show_profile(local)
    return {
        "written": [*dict.fromkeys([shown, arrays]), out / sample_record.RECORD, *([film] if film else [])],
        "model": stored.path,
        "n": made["n"],
        "solver": made["solver"]["name"],
        "nfe": made["nfe"],
        "seed": made["seed"],
        "seconds": seconds,
        "choice": made.get("choice"),
    }
