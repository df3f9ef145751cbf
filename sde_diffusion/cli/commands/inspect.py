"""`sdediff inspect`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from sde_diffusion.cli.errors import echo
from sde_diffusion.cli.options import DataDirOption, refuse
from sde_diffusion.data import NAMES, Data, load_data
from sde_diffusion.data.images import SUFFIXES
from sde_diffusion.data.inspection import inspect_data
from sde_diffusion.data.normalization import Normalization
from sde_diffusion.data.prepared import NOTE
from sde_diffusion.files.writing import require_writable
from sde_diffusion.report.pictures import save_grid, scatter, stretched
from sde_diffusion.storage.atomic_folder import STATE
from sde_diffusion.storage.checkpoint import check_described, skeleton
from sde_diffusion.storage.locate import BUNDLED_NAME, find_model
from solvers.errors import InputError, NotFoundError

SHOWN = 64

EXAMPLES = """
\b
Examples:
sdediff inspect                 the model that sdediff sample would use
sdediff inspect runs/moons-vp
sdediff inspect --json digits.safetensors
sdediff inspect cats/ --picture cats.png   a data set, by name or path
"""


def inspect(
    ctx: typer.Context,
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN|DATA",
            help="A run folder, one of its checkpoints, an exported .safetensors file, or the word bundled; or a data "
            "set, by name or path, as for train.",
            show_default="the latest in runs/, else the bundled model",
        ),
    ] = None,
    data_dir: DataDirOption = None,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", help="Write samples of a data set as this .png file.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Let --picture replace a file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead, for programs.")] = False,
) -> None:
    """Describe a run or checkpoint (process, network, data, training), or a data set.

    Every file of a run is checked against its hash. For a data set, prints counts, range, spread, duplicates, and
    suitable values of sigma_data and sigma_max.
    """
    if picture is not None:
        require_writable(picture, ".png", force)
    else:
        refuse(ctx, ["force"], "it lets --picture replace a file, and there is no --picture")
    if run is not None and is_data(run):
        data = load_data(data_name(run), data_dir)
        facts = inspect_data(data)
        if picture is not None:
            draw(data, picture)
        show(facts, as_json)
        return
    if picture is not None or data_dir is not None:
        raise InputError("--picture and --data-dir apply to data sets; sdediff sample draws images of a model")
    if run is not None and not run.exists() and str(run) != BUNDLED_NAME:
        raise NotFoundError(f"no model and no data at {run}: expected a run, a checkpoint, or data as for train")
    stored = find_model(run)
    network = stored.model["network"]
    facts = {
        "path": str(stored.path),
        "sha256": stored.sha256,
        "steps": stored.step,
        "sde": stored.model["sde"],
        "predicts": stored.model["predicts"],
        "shape": stored.model["shape"],
        "normalization": Normalization.from_entry(stored.model.get("normalization")).describe(),
        "network": network,
        "data": stored.data,
    }
    if network["name"] is not None:
        check_described(stored.model, stored.weights)
        facts["parameters"] = sum(p.numel() for p in skeleton(stored.model).parameters())
    show(facts, as_json)


def show(facts: dict[str, Any], as_json: bool) -> None:
    """Print facts as text, or as JSON."""
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        echo(f"{key:11} {words(value)}")


def is_data(path: Path) -> bool:
    """Whether a path or name refers to data rather than to a model."""
    if str(path) in NAMES and not (path / "config.json").is_file():
        return True
    if path.suffix in (".npy", ".npz"):
        return True
    known = ("config.json", STATE, "checkpoints", "*/config.json")
    return path.is_dir() and not any(any(path.glob(name)) for name in known) and any(images_or_note(path))


def images_or_note(folder: Path) -> Iterator[Path]:
    """Whether a folder holds data."""
    return (p for p in folder.rglob("*") if p.name == NOTE or p.suffix.lower() in SUFFIXES)


def data_name(path: Path) -> str:
    """The name of a data set, or a path that cannot be mistaken for a name."""
    return str(path) if str(path) in NAMES or path.suffix or len(path.parts) > 1 else f"./{path}"


def draw(data: Data, path: Path) -> None:
    """Write an image of samples spaced evenly over a data set."""
    x = data.batch(torch.linspace(0, len(data) - 1, min(len(data), SHOWN), dtype=torch.float64).long())
    if data.is_image and data.shape[0] in (1, 3):
        save_grid(path, x if data.x.dtype == torch.uint8 else stretched(x))
    elif data.shape == (2,):
        scatter(path, data.batch(slice(0, 5000)))
    else:
        raise InputError(f"--picture cannot draw {data.kind}s of shape {data.shape}")


def words(value: Any) -> str:
    """A value as readable text.

    >>> words({"name": "vp", "settings": {"beta_min": 0.1, "beta_max": 20.0}})
    'vp (beta_min 0.1, beta_max 20.0)'
    """
    if value is None or value == {}:
        return "unknown"
    if isinstance(value, dict) and "name" not in value:
        return ", ".join(f"{k}: {f'{v:,}' if isinstance(v, int) else v}" for k, v in value.items())
    if isinstance(value, dict):
        rest = value.get("settings") or {k: v for k, v in value.items() if k != "name"}
        inner = ", ".join(f"{k} {words(v) if isinstance(v, list) else v}" for k, v in rest.items())
        return f"{value['name'] or 'your own'}{f' ({inner})' if inner else ''}"
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return ", ".join(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
