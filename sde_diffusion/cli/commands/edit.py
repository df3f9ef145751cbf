"""`sdediff edit`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from sde_diffusion.cli.errors import echo
from sde_diffusion.cli.guidance_options import CaptionOption, GuidanceArguments, GuidanceOption, LabelOption
from sde_diffusion.cli.options import (
    DeviceOption,
    ModelOption,
    RunOption,
    model_at,
    refuse,
)

EXAMPLES = """
\b
Examples:
sdediff edit variations cat.png --strength 0.2,0.5,0.8
sdediff edit interpolate a.png b.png --n 9
sdediff edit transport three.png --label 3 --to 5,8
sdediff edit transport pair.png --caption "a one left of a two" --to "a six"
sdediff sample --from cat.png --strength 0.4   samples of one strength
"""


class Mode(str, Enum):
    """The edits."""

    variations = "variations"
    interpolate = "interpolate"
    transport = "transport"


# The modes that take an option.
OF = {
    "strength": (Mode.variations,),
    "solver": (Mode.variations,),
    "nfe": (Mode.variations,),
    "seed": (Mode.variations,),
    "guidance": (Mode.variations,),
    "to": (Mode.transport,),
    "caption": (Mode.transport,),
    "n": (Mode.variations, Mode.interpolate),
    "tolerance": (Mode.interpolate, Mode.transport),
}


def edit(
    ctx: typer.Context,
    mode: Annotated[Mode, typer.Argument(help="Kind of edit.")],
    files: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Images of the model's size, or .npy or .npz arrays.")
    ],
    run: RunOption = None,
    model: ModelOption = None,
    strength: Annotated[
        str,
        typer.Option("--strength", help="Times in (0, 1] to which the images are noised, for variations."),
    ] = "0.2,0.4,0.6,0.8",
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            help="Classes of the results, for transport: names, numbers or all; with --caption captions, apart by ;",
            show_default=False,
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Results in a row, for variations and interpolate.")] = 7,
    label: LabelOption = None,
    caption: CaptionOption = None,
    guidance: GuidanceOption = None,
    solver: Annotated[str, typer.Option("--solver", help="Solver, for variations.")] = "pf-ode",
    nfe: Annotated[int, typer.Option("--nfe", help="Network evaluations of a variation.")] = 20,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Tolerance of the flow to a code and back (interpolate, transport).")
    ] = 1e-4,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the noise, for variations.")] = 0,
    device: DeviceOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for picture, arrays and record; must be new.", show_default="MODE"),
    ] = None,
) -> dict[str, Any]:
    """Edit images: variations, interpolation between two, or transport from one class to another.

    variations adds noise to an image up to the times --strength and samples from there. interpolate follows the
    probability flow to the codes of two images and decodes the codes between them. transport encodes with the class
    --label, or with the --caption, and decodes with the classes or captions --to.
    """
    from sde_diffusion.files.writing import require_new, unused
    from sde_diffusion.sampling.devices import device_for
    from sde_diffusion.sampling.given.conditions import given_captions, refuse_required
    from sde_diffusion.sampling.given.edit_folder import save_edits
    from sde_diffusion.sampling.given.edits import morphs, retold, transports, variations
    from sde_diffusion.sampling.given.samples import given_samples
    from sde_diffusion.sampling.sampler import check_count
    from sde_diffusion.sampling.settings import SamplingSettings
    from sde_diffusion.storage.checkpoint import load
    from solvers.errors import InputError

    for name, modes in OF.items():
        if mode not in modes:
            refuse(ctx, [name], f"it applies to {' and '.join(m.value for m in modes)}, and this is {mode.value}")
    folder = out or unused(Path(mode.value))
    require_new(folder)
    asked = GuidanceArguments(label=label, guidance=guidance)
    stored = model_at(run, model, asked.labelled)
    if mode is not Mode.transport or not caption:
        other = "sdediff sample --from IMAGE --strength 0.4 takes --condition and --caption"
        refuse_required(stored, f"edit {mode.value}", other)
    labels = asked.labels(stored)
    x = given_samples(files, stored)
    check_count(n, x.shape[1:])
    network = load(stored, device=str(device_for(device or "auto")))
    settings: dict[str, Any] = {"labels": labels}
    if mode is Mode.transport and caption:
        told = [part.strip() for part in (to or "").split(";") if part.strip()]
        if label is not None or not told:
            raise InputError('transport by captions needs both: --caption "a three left of a two" --to "a three ..."')
        settings |= {"captions": list(caption), "to": told, "tolerance": tolerance}
        others = {text: given_captions([text], stored) for text in told}
        edits = retold(network, x, given_captions(caption, stored), others, tolerance)
    elif mode is Mode.transport:
        if labels is None or to is None:
            raise InputError("transport needs the class of the images and those of the results: --label 3 --to 5,8")
        targets = GuidanceArguments(label=to).labels(stored) or []
        settings |= {"to": targets, "tolerance": tolerance}
        edits = transports(network, x, labels, targets, tolerance, stored.data.get("class_names"))
    elif mode is Mode.interpolate:
        settings |= {"n": n, "tolerance": tolerance}
        edits = morphs(network, x, n, tolerance, labels)
    else:
        strengths, towards = _numbers(strength), asked.settings(stored)
        settings |= {"strength": strengths, "n": n, "solver": solver, "nfe": nfe, "seed": seed}
        settings["guidance"] = towards.scale
        sampling = SamplingSettings(solver, nfe, seed=seed)
        edits = variations(network, x, strengths, n, sampling, labels, towards)
    shown = save_edits(folder, mode.value, edits, stored, settings)
    least, most = edits.nfe
    line = f"{edits.x.shape[0] * edits.x.shape[1]} results, {least if least == most else f'{least} to {most}'} "
    line += "evaluations each"
    if edits.error is not None:
        line += f"; error of the round trip to a code and back {edits.error:.3g} (RMS)"
    echo(line)
    echo(f"record {shown.parent / 'edit.json'}")
    echo(f"{'picture' if shown.suffix == '.png' else 'arrays'} {shown}")
    return {
        "written": [shown, shown.parent / "edit.json"],
        "results": edits.x.shape[0] * edits.x.shape[1],
        "nfe": {"least": least, "most": most},
        "round_trip_error": edits.error,
    }


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        from solvers.errors import InputError

        raise InputError(f"--strength takes numbers separated by commas, such as 0.2,0.5; got '{text}'") from None
