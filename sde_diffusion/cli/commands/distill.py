"""`sdediff distill`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from sde_diffusion.cli.errors import echo
from sde_diffusion.cli.options import DataDirOption, DeviceOption, RunArgument, completion_of, option, refuse
from sde_diffusion.data import load_data
from sde_diffusion.distillation.students import METHODS, START
from sde_diffusion.distillation.students import distill as run_distillation
from sde_diffusion.models.autoencoder import AutoencoderModel
from sde_diffusion.sampling import generate
from sde_diffusion.storage import sample_record
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.storage.locate import find_model, name_of, new_run, recorded_data, unused
from sde_diffusion.storage.run_folder import run_config
from sde_diffusion.training.autoencoding.latents import encoded
from solvers.errors import InputError

EXAMPLES = """
\b
Examples:
sdediff distill runs/digits-vp                          1 to 4 evaluations
sdediff distill runs/digits-vp --method progressive --nfe 4
sdediff distill runs/digits-vp --method progressive --nfe 1 --start 16
sdediff distill runs/digits-vp --method denoising-gan --nfe 4
sdediff distill bundled --steps 1000 --out fast-digits
sdediff sample fast-digits --nfe 2
"""


def distill(
    ctx: typer.Context,
    run: RunArgument = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            autocompletion=completion_of(METHODS),
            help="; ".join(f"{name}: {text}" for name, text in METHODS.items()) + ".",
        ),
    ] = "consistency",
    nfe: Annotated[
        int, typer.Option("--nfe", help="Network evaluations of a student of progressive or denoising-gan.")
    ] = 4,
    start: Annotated[
        int, typer.Option("--start", help="Number of steps of the first teacher of progressive, halved down to --nfe.")
    ] = START,
    steps: Annotated[int, typer.Option("--steps", help="Number of updates; with progressive, per halving.")] = 3000,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Number of samples in one update.")] = 128,
    learning_rate: Annotated[float, typer.Option("--learning-rate", "--lr", help="Learning rate of AdamW.")] = 1e-3,
    seed: Annotated[int, typer.Option("--seed", help="Random seed.")] = 0,
    data: Annotated[
        str | None,
        option("--data", "Training data: a data set or a path, as for train.", "what the model was trained on"),
    ] = None,
    data_dir: DataDirOption = None,
    device: DeviceOption = None,
    out: Annotated[
        Path | None, option("--out", "Folder of the run; with --resume, the run to resume.", "runs/DATA-METHOD")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the distillation in --out.")] = False,
) -> dict[str, Any]:
    """Distill a trained model into a student that needs one to four evaluations.

    The student is a run like any other: sample and evaluate take it, and sample uses the solver that it was made for.
    """
    if method == "denoising-gan":
        refuse(ctx, ["start"], "a denoising GAN has no stages; see --method progressive")
    elif method != "progressive":
        refuse(ctx, ["nfe", "start"], f"a student of {method} takes any number of steps; see --method progressive")
    if resume and out is None:
        raise InputError("--resume needs the folder of the distillation: --out DIR")
    stored = find_model(run)
    name = data or recorded_data(stored.data.get("name", ""), "--data")
    samples = load_data(name, data_dir)
    place = out or new_run(name, method)
    teacher = load(stored)
    if isinstance(teacher.decoder, AutoencoderModel):
        samples = encoded(teacher.decoder, samples, place.parent)
    settings: dict[str, Any] = {
        "steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed,
        "device": device or "auto", "labels": labelled(stored.path),
    }  # fmt: skip
    echo(samples.describe())
    echo(f"teacher {stored.path}; student {place}, {method}")
    begin = time.perf_counter()
    run_distillation(
        teacher, samples, method, nfe=nfe, start=start, out=place, resume=resume,
        source={"path": name_of(stored), "step": stored.step, "sha256": stored.sha256}, **settings,
    )  # fmt: skip
    echo(f"distilled in {time.perf_counter() - begin:.0f} s")
    student = find_model(place / f"steps-{nfe}" if method == "progressive" else place)
    folder = student.path.parent.parent
    drawn = generate.draw(student, device=device or "auto")
    picture = sample_record.save_samples(drawn, unused(folder / "samples" / sample_record.folder_name(drawn.record)))
    echo("next:", f"sdediff sample {folder}")
    echo(f"{'picture' if picture.suffix == '.png' else 'arrays'} {picture}")
    return {"written": [picture], "run": folder, "teacher": stored.path, "method": method, "steps": steps}


def labelled(checkpoint: Path) -> bool:
    """Whether the run of a checkpoint was trained with labels."""
    run = checkpoint.parent.parent
    return checkpoint.is_dir() and (run / "config.json").exists() and bool(run_config(run)["train"].get("labels"))
