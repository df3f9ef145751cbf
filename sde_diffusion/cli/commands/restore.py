"""`sdediff restore`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from sde_diffusion.cli.errors import echo, say
from sde_diffusion.cli.options import DeviceOption, RunOption, complete_solver, refuse

EXAMPLES = """
\b
Examples:
sdediff restore inpaint photo.png --mask mask.png --run runs/photos
sdediff restore superres small.png --factor 4
sdediff restore deblur blurred.png --blur 1.5
sdediff restore colorize grey.png
sdediff restore superres sharp.png --simulate   degrade it first
"""


class Task(str, Enum):
    """The degradation to undo."""

    inpaint = "inpaint"
    superres = "superres"
    deblur = "deblur"
    colorize = "colorize"


def restore(
    ctx: typer.Context,
    task: Annotated[Task, typer.Argument(help=f"Restoration task: {', '.join(t.value for t in Task)}.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Degraded images, restored one by one.")],
    run: RunOption = None,
    mask: Annotated[Path | None, typer.Option("--mask", help="Image whose black pixels are hidden (inpaint).")] = None,
    factor: Annotated[int, typer.Option("--factor", help="Enlargement factor (superres).")] = 4,
    blur: Annotated[
        float, typer.Option("--blur", help="Standard deviation of the Gaussian blur in pixels (deblur).")
    ] = 1.5,
    noise: Annotated[
        float, typer.Option("--noise", help="Standard deviation of the noise in the image, where white - black is 2.")
    ] = 0.05,
    simulate: Annotated[
        bool,
        typer.Option("--simulate", help="Treat IMAGE as clean: degrade it, restore the result and measure the error."),
    ] = False,
    method: Annotated[
        str, typer.Option("--method", help="Method: replacement, ddnm, diffpir, dps, pigdm or moment.")
    ] = "moment",
    n: Annotated[int, typer.Option("--n", help="Number of posterior samples for each image.")] = 8,
    solver: Annotated[
        str,
        typer.Option(
            "--solver", help="Stochastic solver; 'sdediff solvers' lists them.", autocompletion=complete_solver
        ),
    ] = "ddpm",
    nfe: Annotated[int, typer.Option("--nfe", help="Network evaluations for each sample.")] = 60,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the samples and of simulated noise.")] = 0,
    device: DeviceOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the images and arrays; must be new.", show_default="restored"),
    ] = None,
) -> dict[str, Any]:
    """Restore images: fill in hidden parts, enlarge, deblur or colour them.

    Draws several samples from the posterior of the clean image, and shows them with their mean and their standard
    deviation. The standard deviation is large where the observation does not determine the image.
    """
    import numpy as np
    import torch

    from sde_diffusion.files.writing import new_folder, require_new, unused
    from sde_diffusion.guidance.observed import refuse_latent
    from sde_diffusion.report.restored import save_restoration
    from sde_diffusion.sampling.devices import device_for
    from sde_diffusion.sampling.given.conditions import refuse_required
    from sde_diffusion.sampling.given.degraded_images import Degraded, degraded, psnr
    from sde_diffusion.sampling.restoration import restore as run_restoration
    from sde_diffusion.sampling.sampler import MOST_SAMPLES
    from sde_diffusion.storage.checkpoint import load
    from sde_diffusion.storage.locate import find_model
    from solvers.errors import require_whole

    for of, name in ((Task.superres, "factor"), (Task.deblur, "blur")):
        if task is not of:
            refuse(ctx, [name], f"it applies to {of.value}, and this is {task.value}")
    require_whole("--n", n, 1, MOST_SAMPLES)
    folder = out or unused(Path("restored"))
    require_new(folder)
    stored = find_model(run)
    refuse_required(stored, "restore", "use a model trained without conditions, or with --drop-condition 0.1")
    model = load(stored, device=str(device_for(device or "auto")))
    refuse_latent(model)
    jobs: list[tuple[Path, Degraded]] = [
        (path, degraded(path, task.value, model.shape, mask, factor, blur, noise if simulate else None, seed))
        for path in images
    ]
    facts = []
    with new_folder(folder) as new:
        for number, (path, job) in enumerate(jobs, 1):
            found = run_restoration(
                model, job.operator, job.y, noise, n, method=method, solver=solver, nfe=nfe, seed=seed
            )
            name = f"{number:02d}-{path.stem}"
            save_restoration(
                new.temporary / f"{name}.png", job.shown, found.samples, found.mean, found.std, job.original
            )
            np.savez(
                new.temporary / f"{name}.npz",
                x=found.samples.cpu().numpy(),
                mean=found.mean.cpu().numpy(),
                std=found.std.cpu().numpy(),
                y=job.y.numpy(),
            )
            line = (
                f"{path}: residual {float(found.residual.mean()):.3f} for noise {noise:g}, spread "
                f"{float(found.std.square().mean().sqrt()):.3f}, {found.nfe} evaluations and {found.backward} backward "
                f"passes a sample, {found.seconds:.1f} s"
            )
            if job.original is not None:
                truth = job.original.expand_as(found.samples)
                line += (
                    f"; PSNR of a sample {psnr(found.samples, truth):.1f} dB, of the mean "
                    f"{psnr(found.mean[None], job.original[None]):.1f} dB, of the baseline "
                    f"{psnr(job.baseline[None], job.original[None]):.1f} dB"
                )
            echo(line)
            facts.append(
                {
                    "image": path,
                    "residual": float(found.residual.mean()),
                    "spread": float(found.std.square().mean().sqrt()),
                    "nfe": found.nfe,
                    "seconds": found.seconds,
                }
            )
            if torch.is_nonzero((found.residual.mean() > 2 * noise) & torch.tensor(noise > 0)):
                say(
                    "warning: the residual is far above the noise: the samples do not fit the observation; try "
                    "--method moment, more --nfe, or a larger --noise",
                    "yellow",
                )
    pictures = [new.path / f"{number:02d}-{path.stem}.png" for number, (path, _) in enumerate(jobs, 1)]
    for picture in pictures:
        echo(f"picture {picture}")
    return {"written": pictures, "noise": noise, "images": facts}
