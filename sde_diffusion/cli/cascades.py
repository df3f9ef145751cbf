"""Cascades on the command line: one command trains all stages, one splits the evaluations, one draws from them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sde_diffusion.cascade.drawing import sample_cascade
from sde_diffusion.cascade.run import load_cascade, read_stages, train_cascade
from sde_diffusion.cascade.split_file import keep_split, read_splits
from sde_diffusion.cascade.splitting import tuned_split
from sde_diffusion.cascade.stages import split_nfe
from sde_diffusion.cli.errors import echo
from sde_diffusion.files.writing import new_folder, write_file
from sde_diffusion.report.pictures import save_grid
from sde_diffusion.report.share_of_work import share_bar
from sde_diffusion.report.terminal import shows_progress
from sde_diffusion.sampling.job import default_count, digest
from sde_diffusion.sampling.sampler import check_count
from sde_diffusion.sampling.settings import seeds_of
from sde_diffusion.storage.atomic_folder import FORMAT, require_new, to_json
from sde_diffusion.storage.locate import new_run, unused
from sde_diffusion.storage.provenance import versions
from solvers.errors import InputError

KIND = "sdediff cascade samples"
KNOWN = ("n", "solver", "nfe", "seed", "batch_size")


def train_stages(file: Path, out: Path | None, typed: Mapping[str, Any], resume: bool) -> dict[str, Any]:
    """Train the stages of a file, and draw samples.

    Raises:
        ValueError: options that a cascade does not take.
    """
    if resume and out is None:
        raise InputError("--resume continues the cascade in --out; name its folder")
    folder = out or new_run(file, "cascade")
    begin = time.perf_counter()
    options = {name: value for name, value in typed.items() if name != "out"}
    runs = train_cascade(file, folder, typed=options, resume=resume, progress=shows_progress(), tell=echo)
    echo(f"trained in {time.perf_counter() - begin:.0f} s")
    drawn = draw_stages(folder, {}, None, "auto", None)
    echo("next:", f"sdediff sample {folder}")
    return {"written": drawn["written"], "run": folder, "stages": runs}


def tune_stages(
    folder: Path, budgets: Sequence[int], seed: int, samples: int, held_out: int, batch_size: int, device: str
) -> dict[str, Any]:
    """Find how many evaluations each stage has, for each number of all evaluations, and keep it in the cascade.

    Raises:
        ValueError: fewer evaluations than stages.
    """
    entries, stored = read_stages(folder)
    for budget in budgets:  # now, not after the work
        split_nfe(budget, [entry["nfe"] for entry in entries])
    read_splits(folder)
    stages = load_cascade(folder, device=device)
    hashes, noise = [one.sha256 for one in stored], [stage.noise for stage in stages]
    found = []
    for budget in budgets:
        begin = time.perf_counter()
        with share_bar(True, f"splitting {budget} evaluations") as progress:
            split = tuned_split(
                stages, budget, n=samples, held_out=held_out, seed=seed, batch_size=batch_size, progress=progress
            )
        file = keep_split(folder, split, hashes, noise)
        own, given = (" + ".join(map(str, nfe)) for nfe in (split.nfe, split.given))
        echo(
            f"{budget} evaluations: {own}, error {split.error:.4g} on {held_out} held-out noise samples; {given} has "
            f"{split.given_error:.4g}; {split.tried} splits in {time.perf_counter() - begin:.0f} s"
        )
        found.append({"nfe": budget, "split": list(split.nfe), "error": split.error, "given_error": split.given_error})
    echo("use it:", f"sdediff sample {folder} --nfe {budgets[0]}")
    return {"written": [file], "model": folder, "splits": found}


def draw_stages(
    folder: Path, options: Mapping[str, Any], noise: float | None, device: str, out: Path | None
) -> dict[str, Any]:
    """Draw samples of a cascade into a folder: picture, arrays of all stages, and a record.

    Args:
        folder: that of the cascade.
        options: those of ``sample`` by name.
        noise: level to which the image before is noised; that of each stage by default.
        device: a name in ``DEVICES``.
        out: where to write; in the folder of the cascade by default.

    Raises:
        ValueError: options that a cascade does not take.
    """
    if other := [name for name in options if name not in KNOWN]:
        raise InputError(
            f"{folder} is a cascade, whose stages are drawn one after the other, and --{other[0].replace('_', '-')} is "
            "an option of a single model; leave it out, or name the run of a stage"
        )
    if out is not None:
        require_new(out)
    stages = load_cascade(folder, nfe=options.get("nfe"), noise=noise, solver=options.get("solver"), device=device)
    shape = stages[-1].model.shape or ()
    n, seed = options.get("n", default_count(shape)), options.get("seed", 0)
    check_count(n, shape)
    begin = time.perf_counter()
    with share_bar(True, "sampling") as progress:
        found = sample_cascade(stages, n, seed=seed, batch_size=options.get("batch_size", 256), progress=progress)
    seconds = time.perf_counter() - begin
    x = [part.float().cpu() for part in found]
    entries, stored = read_stages(folder)
    record = {
        "format": FORMAT,
        "kind": KIND,
        "stages": [
            {**entry, "nfe": stage.nfe, "noise": stage.noise, "sha256": one.sha256, "step": one.step}
            for entry, stage, one in zip(entries, stages, stored, strict=True)
        ],
        "solver": options.get("solver") or "pf-ode",
        "n": n,
        "shape": list(shape),
        "seed": seed,
        "x": {"dtype": "float32", "sha256": digest(x[-1])},
        "versions": versions(),
    }
    total = sum(stage.nfe for stage in stages)
    place = out or unused(folder / "samples" / f"nfe{total}")
    with new_folder(place, taken="next") as new:
        arrays = {f"stage_{k}": part.numpy() for k, part in enumerate(x[:-1], 1)}
        seeds = seeds_of(seed, n).numpy()
        np.savez(new.temporary / "samples.npz", x=x[-1].numpy(), seeds=seeds, **arrays)  # type: ignore[arg-type]
        write_file(new.temporary / "samples.json", to_json(record))
        if len(shape) == 3 and shape[0] in (1, 3):
            save_grid(new.temporary / "samples.png", torch.as_tensor(x[-1]))
    split = " + ".join(str(stage.nfe) for stage in stages)
    echo(f"{n} samples of {len(stages)} stages, {split} evaluations each, in {seconds:.1f} s")
    written = [path for path in (new.path / f"samples.{end}" for end in ("png", "npz", "json")) if path.is_file()]
    echo(f"picture {written[0]}" if written[0].suffix == ".png" else f"arrays {written[0]}")
    return {"written": written, "model": folder, "n": n, "nfe": [stage.nfe for stage in stages], "seconds": seconds}
