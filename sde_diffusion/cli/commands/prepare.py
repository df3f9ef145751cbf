"""`sdediff prepare`."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from sde_diffusion.cli.errors import echo, say
from sde_diffusion.cli.options import refuse
from sde_diffusion.data.dataset import LAYOUTS
from sde_diffusion.data.images import BACKGROUND, CHANNELS
from sde_diffusion.data.preparation import kind_of, size_of
from sde_diffusion.data.preparation import prepare as run_preparation
from sde_diffusion.data.prepared import read_note
from sde_diffusion.report import terminal

SHOWN = 5  # number of skipped images to name
FACTS = ("samples", "shape", "classes", "class_names", "fingerprint", "source", "skipped")  # of the note, for --json

EXAMPLES = """
\b
Examples:
sdediff prepare photos/ --size 64          a folder of images, to 64 x 64
sdediff prepare photos/ --size 48x64 --mode L --out grey
sdediff prepare train.parquet --skip-bad   leaves out what cannot be read
sdediff prepare hf:cifar10 --out cifar     from the Hugging Face hub
sdediff train --data photos-prepared
"""


def prepare(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="A folder of images, .parquet (a file or a folder of them), hf:NAME for a Hugging Face data set, or "
            ".npy or .npz."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the prepared data; must be new.", show_default="SOURCE-prepared"),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            help="Image size, 64 or HEIGHTxWIDTH: the largest centred crop of this aspect ratio, resized.",
            show_default="unchanged; all must be equal",
        ),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option("--mode", help=f"Convert to {', '.join(CHANNELS)}.", show_default="unchanged: grey stays grey"),
    ] = None,
    background: Annotated[
        str, typer.Option("--background", help="Colour behind transparent pixels where the mode has no transparency.")
    ] = BACKGROUND,
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout", help=f"Layout of an array of images: {', '.join(LAYOUTS)}.", show_default="by its shape"
        ),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out images that cannot be read, and count them.")
    ] = False,
    split: Annotated[str, typer.Option("--split", help="Split of a Hugging Face data set.")] = "train",
    image_column: Annotated[
        str | None, typer.Option("--image-column", help="Column of the images in a table.", show_default="image, img")
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option("--label-column", help="Column of the labels in a table.", show_default="label, labels"),
    ] = None,
) -> dict[str, Any]:
    """Decode and resize a data set once, into one array that training maps from disk.

    Training then holds one batch in memory, not the whole data set.
    """
    kind = kind_of(source)
    if kind != "hub":
        refuse(ctx, ["split"], f"it applies to hf:NAME, and {source} is none")
    if kind not in ("hub", "parquet"):
        refuse(ctx, ["image_column", "label_column"], f"they apply to tables, and {source} is none")
    if kind == "array":
        names = ["size", "mode", "background", "skip_bad"]
        refuse(ctx, names, f"they apply to image files, and {source} holds an array")
    else:
        refuse(ctx, ["layout"], f"it applies to arrays, and {source} holds image files")
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", Path(source.removeprefix("hf:")).stem).strip("-.") or "data"
    target = out or Path(f"{name}-prepared")
    start = time.perf_counter()
    console = terminal.stderr()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("preparing", total=None)
        data = run_preparation(
            source,
            target,
            size=None if size is None else size_of(size),
            mode=mode,
            background=background,
            layout=layout,
            skip_bad=skip_bad,
            split=split,
            image_column=image_column,
            label_column=label_column,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    skipped = read_note(target)["skipped"]
    for text in skipped[:SHOWN]:
        say(f"skipped: {text}", "yellow")
    if skipped:
        say(f"skipped {len(skipped)} in all; {target / 'prepared.json'} names every one", "yellow")
    echo(data.describe())
    echo(f"prepared in {time.perf_counter() - start:.1f} s; next:", f"sdediff train --data {target}")
    note = read_note(target)
    return {"written": [target], **{name: note.get(name) for name in FACTS}}
